// Package agent is the loop of the daemon: it observes the kernel, the metadata and
// networkd, has package plan decide, acts through the store, networkd and udevd,
// verifies, and publishes the state.
//
// It is level-triggered: an event (a link, a timer, a call, networkd coming back)
// carries no data, it only asks for a pass, and a pass looks at everything that
// matters. One goroutine does it all but the reading of metadata, which package poller
// does, so that a slow metadata service delays nothing else.
package agent

import (
	"context"
	"log/slog"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"ec2netd/service/compare"
	"ec2netd/service/config"
	"ec2netd/service/conflict"
	"ec2netd/service/journal"
	"ec2netd/service/kernel"
	"ec2netd/service/metrics"
	"ec2netd/service/networkd"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/schedule"
	"ec2netd/service/snapshot"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/udev"
	"ec2netd/service/unitfile"
)

// Kernel takes snapshots of the network namespace.
type Kernel interface {
	Observe() (*kernel.Snapshot, error)
}

// Metadata tells of the requests to the instance metadata service.
type Metadata interface {
	Requests() (sent, failed uint64)
	Results() (counts map[string]uint64, took time.Duration)
	Answered() string
}

// Networkd is what systemd-networkd shows of itself.
type Networkd interface {
	Link(index int) networkd.LinkState
	Keeps() bool
	Version(ctx context.Context) string
}

// Udev is udevd.
type Udev interface {
	LinkFile(index int) (file string, ok bool)
	Apply(ctx context.Context, names []string) error
}

// Store keeps the generated files.
type Store interface {
	Restore() (written []string, err error)
	Apply(want store.Want) (store.Changes, error)
	Withdraw(shall []store.File) error
	Prepare(shall []store.File) error
	Renew(path string) error
	Unread() []string
}

// Files reads the unit files of networkd and udevd.
type Files interface {
	Tree() *unitfile.Tree
	Unread() []string
}

// Others looks for other software that configures ENIs.
type Others interface {
	Look(ctx context.Context, links []conflict.Link) conflict.Facts
}

// Options of an [Agent]. All fields without a remark are needed.
type Options struct {
	Version string
	Kernel  Kernel
	// Poller reads the metadata. The agent starts it, and calls it from then on.
	Poller   *poller.Poller
	Metadata Metadata
	Networkd Networkd
	// Manager is how networkd is asked to do something.
	Manager networkd.Manager
	Udev    Udev
	Store   Store
	Files   Files
	Log     *slog.Logger
	// Others is looked at when the daemon or networkd starts, once more in the refresh time
	// after that and after an attachment, from then on each othersTime, or each refresh time
	// while there is a conflict, for a Refresh, and when a link was set down; nil for not at all.
	Others Others

	// Events ask for a pass each time something can be received.
	Events []<-chan struct{}
	// RefreshEvery is the longest time between two looks at everything but the metadata.
	RefreshEvery time.Duration
	// Sections of the configuration, which say how each ENI is treated.
	Sections []config.Section
	// Drivers of ENIs; empty for not to have networkd wait for the files of new ones.
	Drivers []string
	// Rules keeps the record of the policy rules that are this daemon's, and
	// RemoveOrphans has those of them removed that networkd has forgotten, and alternative
	// names that are another ENI's by now; nil for neither.
	Rules         Rules
	RemoveOrphans func(ctx context.Context) error
	// Hint keeps what the next boot can begin with.
	Hint persist.Place
	// Problems of the configuration, shown in the state.
	Problems []string
	// SetDrivers tells the kernel's watchers of other drivers, see [Agent.Configure]; nil for
	// nobody.
	SetDrivers func(drivers []string)
	// CPU tells the processor time that the process has used, and Trim gives memory back
	// to the system that a burst of work took; nil for not to care.
	CPU  func() time.Duration
	Trim func()
	// Watchdog is called often enough by the loop itself, so that a hang shows;
	// WatchdogEvery is how often. Nil for none.
	Watchdog      func()
	WatchdogEvery time.Duration
}

// Times of the loop.
const (
	// settleTime is how long an ENI may take from a change to being configured
	// before it counts as degraded.
	settleTime = 15 * time.Second
	// leaseTime is how long DHCP may take before other addresses wait for it no
	// longer. A lease takes a few milliseconds in EC2.
	leaseTime = 10 * time.Second
	// newTime is how long a link counts as new. Its metadata is there sooner as a rule.
	newTime = 60 * time.Millisecond
	// holdTime is how long networkd leaves a new ENI alone that is not known yet. Then it gets
	// the base unit. It is listedHoldTime while the metadata lists the ENI, and only does not
	// tell all of it: a device number was seen to be 10 s late (facts: late-keys), and before it is known an
	// address of the ENI is of no use (B8).
	holdTime       = 2 * time.Second
	listedHoldTime = 12 * time.Second
	// gatherStep is how long the metadata of several ENIs that were attached at once is
	// waited for without that of one having come, gatherTime how long at most; leaseStep and
	// leaseGatherTime are the same for their leases: a networkd that adds hundreds of
	// addresses for those that have theirs has none to spare for the others.
	gatherStep      = 2 * newTime
	gatherTime      = time.Second
	leaseStep       = 500 * time.Millisecond
	leaseGatherTime = 3 * time.Second
	// gatherPause is the time between two passes meanwhile: each lease is an event.
	gatherPause = 30 * time.Millisecond
	// A burst of passes may take mostCredit; beyond that they take one part in passShare
	// of the time of one processor, with passShare × mostDebt between two at most: while
	// networkd adds hundreds of addresses, each of them is an event. While a Refresh waits it
	// is one part in waitedShare.
	mostCredit  = 60 * time.Millisecond
	mostDebt    = 40 * time.Millisecond
	passShare   = 12
	waitedShare = 4
	// othersTime is the time between two looks at other software while nobody calls
	// Refresh: they take as long as all else that is looked at each refresh time.
	othersTime = 5 * time.Minute
	// firstStore and slowestStore bound the time between two attempts to write files that could
	// not be written (E10).
	firstStore   = time.Second
	slowestStore = 10 * time.Second
	// trimTime is how long after the last change memory is given back.
	trimTime = 2 * time.Second
	// repairTime is how long an ENI may lack its primary address before networkd is
	// asked to configure it anew, again after twice that time, and so on up to
	// slowestRepair (E5).
	repairTime    = 30 * time.Second
	slowestRepair = 10 * time.Minute
	// settledTime is how long networkd 252 has, when it has started and says that it is done,
	// until what was for its start alone goes: what it says may be its predecessor's word.
	settledTime = 3 * time.Second
	// udevTime is how long udevd may take for a new link before it is asked to look at
	// it again.
	udevTime = 5 * time.Second
	// batchTime is how long a pass waits for other reads that are under way, so that
	// several ENIs make one reload.
	batchTime = 40 * time.Millisecond
	// firstLook and slowestLook bound the time between two looks at the kernel while
	// networkd applies something.
	firstLook   = 10 * time.Millisecond
	slowestLook = 400 * time.Millisecond
	// waitTime bounds a Refresh that waits.
	waitTime = 60 * time.Second
)

// Agent is the loop. Make one with [New].
type Agent struct {
	Options

	current atomic.Pointer[state.State]
	// counted is what was counted when that was published.
	counted  atomic.Pointer[metrics.Numbers]
	mu       sync.Mutex // guards watchers
	watchers map[chan *state.State]struct{}

	ready    chan struct{}
	requests chan *request
	// cleanings are the ends of runs of RemoveOrphans.
	cleanings chan cleaned
	bell      chan struct{}
	// configurations are those to take up.
	configurations chan configured
	// restores are closed when what somebody has removed is there again.
	restores chan chan struct{}

	// Below: the loop's alone.
	// hint is what the last boot knew, nil for nothing, and hinted the count of the plan that
	// it was last seen to be right for.
	hint   *lastBoot
	hinted uint64
	// hintFile keeps the hint. keepAt is when a file of the daemon's own that could not be
	// written is tried again, zero if there is none, and unstored why it could not.
	hintFile  persist.File[lastBoot]
	keepAt    time.Time
	unstored  string
	technique plan.Technique
	// prepared is the count of the plan for which files wait for networkd's next start.
	prepared uint64
	waiting  []*request
	// begun: the first pass is over.
	begun bool

	// seen is what the pass sees. planned counts the plans, which are made when input is another one:
	// nothing that follows from what is the same is worked out again.
	seen    *snapshot.Snapshot
	input   plan.Input
	plan    plan.Plan
	planned uint64
	links   map[int]*link
	// session is the conversation with networkd.
	session *networkd.Session
	// altnames are the links that udevd is to give alternative names.
	altnames *udev.Queue

	lastChange time.Time
	// attachments and attachTime are as in metrics.Numbers.
	attachments uint64
	attachTime  time.Duration
	storeErr    string
	storeTry    schedule.Try
	refused     map[string]status.Reason
	// restored are files that somebody had removed, until what follows from that is done.
	restored []string
	// rules are this daemon's policy rules, with the time when each last stood in a file
	// or in the kernel. orphanAt is when rules that networkd has forgotten are to be
	// removed, zero if there are none; orphanDelay the time to the try after.
	rules map[plan.Rule]time.Time
	// addresses are those that stand or stood in drop-ins, with when each was last somewhere, and
	// there those of them that have been on their links.
	addresses   map[plan.OwnAddress]time.Time
	there       map[plan.OwnAddress]bool
	noted       noted
	generated   generated
	inOrder     inOrder
	orphanAt    time.Time
	orphanDelay time.Duration
	// cleaning: RemoveOrphans runs.
	cleaning bool
	// namesTry is when names that are another ENI's by now are removed, if that did not help.
	namesTry schedule.Try
	// conflicts are those found last; othersDue: they must be looked for. othersAt is when a
	// refresh last had that done, zero if the next one shall.
	conflicts []state.Conflict
	othersDue bool
	// unreadFiles are files of others that could not be read, othersUnread those of other software.
	unreadFiles, othersUnread []string
	othersAt                  time.Time
	// baseStamp changes when the base unit or one of its drop-ins does.
	baseStamp string

	// passAt is when a pass is due, nextLook when the kernel shall be looked at
	// again, nextRead when the poller wants to run again; zero for not at all.
	passAt      time.Time
	nextRead    time.Time
	nextRefresh time.Time
	nextLook    time.Time
	lookDelay   time.Duration
	gather      gather
	said        journal.Once
	// credit is how long passes may take before they are put off, as of credited; paced is
	// until when.
	credit          time.Duration
	credited, paced time.Time
	// trimAt is when memory is given back, zero for not at all, and trimmed the count of
	// the plan for which that was done last.
	trimAt  time.Time
	trimmed uint64
}

// link is what the loop remembers of a link.
type link struct {
	// since is when the link was first seen, or when networkd last was asked to do
	// something about it: the start of the time that it is given.
	since time.Time
	// seen is when the link was first seen. attached: that was after the start of the
	// daemon, or it was attached while the daemon was down, as another link than before.
	seen     time.Time
	attached bool
	// held: networkd left it alone when it came, and still does.
	held bool
	// elsewhere: networkd had not taken up the unit that was there for it, and has not since.
	elsewhere bool
	// startFile: what networkd 252 is to find at its start was there.
	startFile bool
	// took is how long it took from then until it was configured first, nil before that.
	took *time.Duration
	// idle is when networkd was last seen not to have begun with it: the lease is not
	// late before that.
	idle time.Time
	// withdrawn are addresses that were taken out of its drop-in and may still be
	// on the link.
	withdrawn []netip.Addr
	// lacks is the address that it should have and has not (E5), repairAt when
	// networkd shall be asked to configure it anew for that, repairDelay the time to
	// the try after.
	lacks       netip.Addr
	repairAt    time.Time
	repairDelay time.Duration
	// gone is what was taken away from it.
	gone gone
	// unused is why it cannot be used.
	unused unused
	// triggered is when udevd was last asked to apply its .link file.
	triggered time.Time
	// nameElsewhere: another link had one of its alternative names.
	nameElsewhere bool
	// ipv6 is whether it had IPv6 when last seen.
	ipv6 kernel.IPv6
	// lease is its DHCPv4 lease by networkd's last answer.
	lease networkd.Lease
	// file is the .network file that networkd used for it last.
	file string
	// state, and why it is that, by the last pass.
	state   state.ENI
	reason  status.Reason
	entered time.Time
	opinion opinion
	// compared is the last comparison of it, and described what of its state follows from
	// the plan of the count.
	compared  compare.Cache
	described state.Interface
	planned   uint64
	// eni, mac and name are what it was last known by.
	eni, mac, name string
}

// New returns an agent. It does nothing before Run.
func New(options Options) *Agent {
	a := &Agent{
		Options:        options,
		watchers:       make(map[chan *state.State]struct{}),
		ready:          make(chan struct{}),
		requests:       make(chan *request),
		cleanings:      make(chan cleaned, 1),
		bell:           make(chan struct{}, 1),
		configurations: make(chan configured),
		restores:       make(chan chan struct{}),
		links:          make(map[int]*link),
		seen:           &snapshot.Snapshot{},
		rules:          make(map[plan.Rule]time.Time),
		addresses:      make(map[plan.OwnAddress]time.Time),
		// As the state tells it: a list, not null.
		conflicts: []state.Conflict{},
	}
	a.session = networkd.NewSession(networkd.SessionOptions{Manager: options.Manager, Hold: a.holdThere, Log: options.Log})
	a.altnames = udev.NewQueue(options.Udev, options.Log)
	a.said.Log = options.Log
	a.hintFile.Place = options.Hint
	a.counted.Store(a.count())
	a.current.Store(&state.State{Version: options.Version, State: state.Starting, Conflicts: []state.Conflict{}, Interfaces: []state.Interface{}})
	return a
}

// String names the task.
func (a *Agent) String() string { return "agent" }

// Ready is closed after the first pass: what can be done without metadata is done,
// and what was configured is known.
func (a *Agent) Ready() <-chan struct{} { return a.ready }

// Run loops until ctx ends. It leaves files and kernel as they are (E6). The unit that has
// networkd leave new ENIs alone is for whoever sees the process end to remove.
func (a *Agent) Run(ctx context.Context) error {
	// Readers end with the loop.
	reads, stop := context.WithCancel(ctx)
	defer stop()
	for _, events := range a.Events {
		go a.forward(reads, events)
	}
	var watchdog <-chan time.Time
	if a.Watchdog != nil && a.WatchdogEvery > 0 {
		ticker := time.NewTicker(a.WatchdogEvery)
		defer ticker.Stop()
		watchdog = ticker.C
	}

	a.seen = a.seen.With(a.Files.Tree())
	a.Poller.Start(reads, time.Now())
	a.load(time.Now())
	a.othersDue = true
	a.session.Begin(ctx)
	a.nextRefresh = time.Now().Add(schedule.Jitter(a.RefreshEvery))
	a.pass(ctx)
	// What only PID 1 can tell comes after: it has a service to start, and takes its time
	// (20 ms an answer on a busy machine).
	a.begun = true
	close(a.ready)
	if a.session.Reloads() == 0 {
		// Files that an earlier run wrote may not have been read. A reload in which no
		// file changed touches no link (facts: reload).
		a.session.NeedReload()
	}
	a.ask(0)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		a.nextRead = a.Poller.Step(reads, time.Now())
		a.session.Applied.Ask(reads, time.Now())
		timer.Reset(time.Until(a.wake()))
		select {
		case <-ctx.Done():
			return nil
		case <-watchdog:
			a.Watchdog()
		case <-a.bell:
			a.ask(0)
		case r := <-a.Poller.Results():
			a.takeRead(r, time.Now())
		case end := <-a.altnames.Ends():
			a.takeUdev(end)
			a.ask(0)
		case done := <-a.cleanings:
			a.takeCleaned(done, time.Now())
			a.ask(0)
		case r := <-a.requests:
			a.begin(r)
		case c := <-a.configurations:
			a.takeUp(ctx, c)
		case done := <-a.restores:
			a.restoreAll(ctx, done)
		case answer := <-a.session.Applied.Answers():
			a.takeApplied(answer)
		case <-timer.C:
		}
		now := time.Now()
		if !now.Before(a.nextRefresh) {
			a.refresh(now)
		}
		if (schedule.Reached(a.passAt, now) || schedule.Reached(a.nextLook, now)) && !now.Before(a.paced) {
			a.pacedPass(ctx, now)
		}
		if schedule.Reached(a.trimAt, now) {
			a.trimAt = time.Time{}
			a.Trim()
		}
		a.finish(time.Now())
		a.keep(time.Now())
	}
}

// takeRead takes the end of a read of the metadata.
func (a *Agent) takeRead(r poller.Result, now time.Time) {
	news := a.Poller.Take(r, now)
	switch {
	case !news && a.Metadata.Answered() == a.State().Metadata.Endpoint:
		// All is as it was: that is no reason to look at anything else.
		a.publishCounts()
	case !a.gather.began.IsZero() && !a.gather.leases && a.unread(now) == 0:
		// What was waited for is there, and networkd is not at work on it yet.
		a.paced = time.Time{}
		a.ask(0)
	case a.Poller.Reading():
		// Wait a moment for the others, so that all make one reload.
		a.ask(batchTime)
	default:
		a.ask(0)
	}
}

// refresh has everything but the metadata looked at, which has its own schedule; other
// software now and then.
func (a *Agent) refresh(now time.Time) {
	a.nextRefresh = now.Add(schedule.Jitter(a.RefreshEvery))
	if now.Sub(a.othersAt) >= othersTime || len(a.conflicts) > 0 {
		a.othersDue, a.othersAt = true, now
	}
	a.askOfLeases()
	a.ask(0)
}

// pacedPass makes a pass, and puts the next one off where passes take too much.
func (a *Agent) pacedPass(ctx context.Context, now time.Time) {
	if a.CPU == nil {
		a.pass(ctx)
		return
	}
	share := passShare
	if len(a.waiting) > 0 {
		share = waitedShare
	}
	a.credit = min(a.credit+now.Sub(a.credited)/time.Duration(share), mostCredit)
	before := a.CPU()
	a.pass(ctx)
	a.credit = max(a.credit-(a.CPU()-before), -mostDebt)
	a.credited = now
	a.paced = now
	if a.credit < 0 {
		a.paced = now.Add(-a.credit * time.Duration(share))
	}
	if pause := now.Add(gatherPause); a.gather.expected > 1 && pause.After(a.paced) {
		a.paced = pause
	}
}

// ask has a pass made after a delay, or earlier if one is asked for already.
func (a *Agent) ask(delay time.Duration) {
	if at := time.Now().Add(delay); a.passAt.IsZero() || at.Before(a.passAt) {
		a.passAt = at
	}
}

// forward makes events ring the bell.
func (a *Agent) forward(ctx context.Context, events <-chan struct{}) {
	for {
		select {
		case <-ctx.Done():
			return
		case _, ok := <-events:
			if !ok {
				return
			}
			select {
			case a.bell <- struct{}{}:
			default:
			}
		}
	}
}

// wake is when the loop must run again without an event.
func (a *Agent) wake() time.Time {
	at := a.nextRefresh
	earlier := func(t time.Time) {
		if !t.IsZero() && t.Before(at) {
			at = t
		}
	}
	for _, t := range []time.Time{a.passAt, a.nextLook} {
		if !t.IsZero() && t.Before(a.paced) {
			t = a.paced
		}
		earlier(t)
	}
	earlier(a.trimAt)
	earlier(a.keepAt)
	earlier(a.nextRead)
	earlier(a.session.Applied.Next())
	for _, r := range a.waiting {
		earlier(r.deadline)
	}
	return at
}
