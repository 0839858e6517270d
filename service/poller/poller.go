// Package poller decides which metadata is read when, starts the reads, and keeps what they brought
// (A1, D6, D8, D11).
//
// It is level-triggered: its owner tells it the links and the time, it starts the reads that are
// due, and what is known follows from the links and from the reads that have ended. Package metadata
// says how a key is read and what an answer is worth, package plan what a view means for the
// configuration.
package poller

import (
	"context"
	"log/slog"
	"maps"
	"time"

	"ec2netd/service/journal"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/persist"
	"ec2netd/service/schedule"
)

// Client reads the instance metadata service.
type Client interface {
	ReadInstance(ctx context.Context, paths []metadata.Path) (metadata.Instance, error)
	ReadENI(ctx context.Context, paths []metadata.Path, want metadata.Wanted) (*metadata.ENI, error)
	SetInstance(id string)
	CloseIdle()
}

// Options of a [Poller]. All fields without a remark are needed.
type Options struct {
	Client Client
	Log    *slog.Logger
	// Endpoint replaces the two well-known ones, unless it is empty.
	Endpoint string
	// Imdsd is the socket of systemd-imdsd, or empty.
	Imdsd string
	// RefreshEvery is the time within which all metadata of an ENI is looked at.
	RefreshEvery time.Duration
	// Views is where what is known is kept over a restart.
	Views persist.Place
}

// Poller reads the metadata of the ENIs. Make one with [New]. Its methods are for one goroutine;
// only the reads run beside it.
type Poller struct {
	options Options
	said    journal.Once
	jobs    chan func()
	results chan Result
	// reading counts the reads that have been started, and whose ends have not been taken.
	reading int

	// snapshot is what Observe was told last, nil before the first time. arrivals are the links
	// that it has, by index.
	snapshot *kernel.Snapshot
	arrivals map[int]arrival
	instance instance
	// targets are the ENIs by MAC address.
	targets   map[string]*target
	outage    outage
	refreshes []*Refresh
	// presumed is the MAC address of the link that is taken for the primary ENI, or empty.
	presumed string
	views    persist.File[remembered]

	// known is what was last told to be known. It is made anew when it is stale.
	known  *Known
	stale  bool
	counts Counts
}

// instance is what is known of the instance, and when it is read.
type instance struct {
	schedule.Try
	metadata.Instance
	// got: it has been read, by this run or an earlier one.
	got bool
	// err is why the last read failed, nil if it did not.
	err error
}

// target is an ENI whose metadata is read: a MAC address on a link.
type target struct {
	schedule.Try
	mac   string
	index int
	view  *metadata.ENI
	err   error
	// cancel ends the read that is under way, nil before the first.
	cancel context.CancelFunc
	// follow is the delay to the next look while the ENI is new or has just
	// changed, 0 once it is looked at turn by turn.
	follow time.Duration
	// look is what is read next, and turn the turn, from 1.
	look metadata.Look
	turn int
	// doubtful: the numbers of the view could not be used when it was read, since doubted.
	doubtful bool
	doubted  time.Time
	// pause is the delay between two looks while much is expected to change, 0 before the
	// first.
	pause time.Duration
}

// arrival is the beginning of a link.
type arrival struct {
	// seen is when the link was first seen.
	seen time.Time
	// attached: that was after the start of the daemon, or the ENI was on another link before.
	attached bool
}

// New returns a poller. It reads nothing before Start.
func New(options Options) *Poller {
	p := &Poller{
		options:  options,
		jobs:     make(chan func(), Readers),
		results:  make(chan Result, Readers),
		arrivals: make(map[int]arrival),
		targets:  make(map[string]*target),
		known:    new(Known),
		stale:    true,
		counts:   Counts{Reads: map[string]uint64{"ok": 0, "unchanged": 0, "incomplete": 0}},
	}
	p.said.Log = options.Log
	p.views.Place, p.views.Check = options.Views, (*remembered).check
	for _, kind := range metadata.Kinds() {
		p.counts.Reads[kind.String()] = 0
	}
	return p
}

// Start takes up what the last run knew, and starts the readers, which end with ctx.
func (p *Poller) Start(ctx context.Context, now time.Time) {
	for range Readers {
		go p.reader(ctx)
	}
	p.load(now)
}

// reader runs reads until ctx ends. It is there for all of them, as a new goroutine's stack
// would be copied five times on the way down to the request, of an idle daemon's CPU time
// the twentieth part.
func (p *Poller) reader(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-p.jobs:
			job()
		}
	}
}

// Configure takes up another endpoint and another refresh time (H12).
func (p *Poller) Configure(endpoint string, refreshEvery time.Duration, now time.Time) {
	if endpoint != p.options.Endpoint {
		// Another service may say otherwise of everything.
		p.instance.Next = now
		for _, t := range p.targets {
			t.readWhole(now)
		}
	}
	if refreshEvery < p.options.RefreshEvery {
		sooner := now.Add(schedule.Jitter(refreshEvery))
		for _, t := range p.targets {
			if t.Next.After(sooner) {
				t.Next = sooner
			}
		}
	}
	p.options.Endpoint, p.options.RefreshEvery = endpoint, refreshEvery
	p.stale = true
}

// readWhole makes a whole view of the ENI due.
func (t *target) readWhole(now time.Time) { t.Next, t.look, t.turn = now, metadata.Whole, 0 }

// Observe makes the ENIs follow the links, and reports whether there is one that was not there
// before. A snapshot that says the same as the last one must be the same one.
func (p *Poller) Observe(snapshot *kernel.Snapshot, now time.Time) (appeared bool) {
	before := p.snapshot
	if snapshot == before {
		return false
	}
	if before != nil {
		p.readLeased(before, snapshot, now)
	}
	p.snapshot, p.stale = snapshot, true
	there, present := make(map[string]bool), make(map[int]bool)
	for _, l := range snapshot.Links {
		there[l.MAC], present[l.Index] = true, true
	}
	dropped := false
	for _, l := range snapshot.Links {
		t := p.targets[l.MAC]
		if _, known := p.arrivals[l.Index]; !known {
			// While the daemon was down it was attached anew, if it was another link before.
			p.arrivals[l.Index] = arrival{seen: now, attached: before != nil || (t != nil && t.index != l.Index)}
		}
		// Identity is the MAC address and the link: the same MAC on a new link is a
		// new attachment (C3).
		if t == nil || !present[t.index] {
			if t != nil {
				p.drop(t)
				dropped = true
			}
			p.targets[l.MAC] = &target{mac: l.MAC, index: l.Index, Try: schedule.Try{Next: now}}
			appeared = true
		}
	}
	maps.DeleteFunc(p.arrivals, func(index int, _ arrival) bool { return !present[index] })
	for mac, t := range p.targets {
		if !there[mac] {
			delete(p.targets, mac)
			p.drop(t)
			dropped = true
		}
	}
	if dropped {
		p.save(now)
		// Connections that are bound to a link that is gone lead nowhere.
		p.options.Client.CloseIdle()
	}
	return appeared
}

// drop ends what goes on for an ENI: nobody waits for the metadata of a link that is
// gone (C6), and a reader is free for others.
func (p *Poller) drop(t *target) {
	if t.cancel != nil {
		t.cancel()
	}
	p.said.Clear("read " + t.mac)
}

// Attached reports whether the link with an index was attached after the start of the daemon, or
// while the daemon was down.
func (p *Poller) Attached(index int) bool { return p.arrivals[index].attached }

// paths are the ways to the metadata service for an ENI, best first: over the ENI
// itself, over the primary one, over any other (D2); bound to the device, so that a
// changed default route or a VPN does not cut the daemon off.
func (p *Poller) paths(mac string) []metadata.Path {
	if p.snapshot == nil && p.options.Endpoint == "" {
		return nil
	}
	var links []kernel.Link
	if p.snapshot != nil {
		links = p.snapshot.Links
	}
	return metadata.Way{Endpoint: p.options.Endpoint, Imdsd: p.options.Imdsd}.Paths(links, mac, p.instance.PrimaryMAC)
}

// nameOf returns the name of a link.
func (p *Poller) nameOf(index int) string {
	if p.snapshot == nil {
		return "" // the kernel has not answered yet
	}
	for _, l := range p.snapshot.Links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}
