package agent

import (
	"context"
	"net/netip"
	"slices"
	"time"

	"ec2netd/service/compare"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/schedule"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// When networkd is asked what it has applied (H4).
//
// With many ENIs that costs it, and this daemon, several milliseconds. So it is asked
// beside the loop, and only when something that is shown of an ENI has changed and the
// change seems to be over: an idle pass asks nobody, and a reload waits for no answer.
const (
	// appliedDelay is how long nothing must have changed before networkd is asked,
	// latestApplied how long that may be put off by further changes.
	appliedDelay  = 60 * time.Millisecond
	latestApplied = 300 * time.Millisecond
	// slowestApplied bounds the time between two questions where networkd does not answer,
	// slowestDispute where it does not count as its own what is there. From 257 on that may
	// be so for good.
	slowestApplied = time.Minute
	slowestDispute = 10 * time.Minute
)

// applied is what networkd last said, and when it is asked next.
type applied struct {
	snapshot *kernel.Snapshot
	// next is when to ask, zero for not at all; since when that was first wanted.
	next, since time.Time
	delay       time.Duration
	busy        bool
	// failed: there was no answer to the last question.
	failed bool
	// leases: what leases tell is asked for, whatever else has changed.
	leases bool
}

// opinion is what networkd last said of a link: whether that is so still is known by the
// count of changes.
type opinion struct {
	items               []state.Item
	file, administrated string
	changes, asked      uint64
	told                uint64
}

func (o *opinion) fresh() bool { return o.told == o.changes }

// answer is the end of one question.
type answer struct {
	*networkd.Applied
	err error
}

// compared is the comparison of an ENI, and what it was made of. With 15 ENIs of 50
// addresses it is most of what a pass takes, and most often nothing has changed.
type compared struct {
	of                      comparing
	withdrawn               []netip.Addr
	result                  compare.Result
	missing, unwanted, late []status.Gap
	// missingNames and unwantedNames are those gaps as the API shows them.
	missingNames, unwantedNames []string
	lost                        compare.Lost
	// items and gaps, with the reason for all that is missing.
	whole status.Reason
	items []state.Item
	gaps  []string
}

// comparing is all that a comparison depends on but the addresses that were withdrawn. The
// plan and the rules of this daemon are told by their count, snapshots by themselves: an
// equal one is the same.
type comparing struct {
	planned, noted    uint64
	rendered          compare.Rendered
	applied, snapshot *kernel.Snapshot
}

// compare looks at the four places of an ENI. What networkd says counts as long as nothing
// else has changed since it was asked.
func (a *Agent) compare(eni *plan.ENI, l *link, entry *state.Interface) *compared {
	of := comparing{planned: a.planned, noted: a.noted.count, rendered: a.rendered(eni), snapshot: a.snapshot}
	if l.opinion.fresh() && a.networkdUp {
		of.applied = a.applied.snapshot
	}
	administrated := a.linkState(eni.Link.Index).Administrative
	same := l.compared != nil && l.compared.of == of && slices.Equal(l.compared.withdrawn, l.withdrawn)
	if !same {
		l.compared = a.compareAnew(eni, of, l.withdrawn)
	}
	// Items that are the same ones have not changed, whether networkd was asked or not.
	if l.opinion.file != entry.NetworkFile || l.opinion.administrated != administrated || (!same && !slices.EqualFunc(l.compared.items, l.opinion.items, unchanged)) {
		l.opinion.changes++
		if of.applied != nil {
			of.applied = nil
			l.compared = a.compareAnew(eni, of, l.withdrawn)
		}
	}
	if !same {
		l.opinion.items = l.compared.items
	}
	l.opinion.file, l.opinion.administrated = entry.NetworkFile, administrated
	return l.compared
}

func (a *Agent) compareAnew(eni *plan.ENI, of comparing, withdrawn []netip.Addr) *compared {
	result := compare.ENI(eni, compare.Actual{Rendered: of.rendered, Applied: of.applied, Kernel: of.snapshot, Withdrawn: withdrawn, Ours: a.ours})
	items := result.Items(status.Reason{})
	c := &compared{
		of: of, withdrawn: slices.Clone(withdrawn), result: result,
		missing: result.Missing, unwanted: result.Unwanted, late: result.Late, lost: result.Lost,
		items: items, gaps: state.GapsOf(items),
	}
	c.missingNames, c.unwantedNames = status.Names(c.missing), status.Names(c.unwanted)
	return c
}

// told are the items and gaps as the API shows them.
func (c *compared) told(whole status.Reason) ([]state.Item, []string) {
	if !c.whole.Equal(whole) {
		c.whole, c.items = whole, c.result.Items(whole)
		c.gaps = state.GapsOf(c.items)
	}
	return c.items, c.gaps
}

// unchanged tells whether an item is the same, whatever networkd says of it.
func unchanged(x, y state.Item) bool {
	return x.Kind == y.Kind && x.Value == y.Value && x.Metadata == y.Metadata && x.Rendered == y.Rendered && x.Kernel == y.Kernel
}

// rendered are the drop-ins of an ENI as they are on the disk and in force.
func (a *Agent) rendered(eni *plan.ENI) compare.Rendered {
	name := eni.Link.Name
	var r compare.Rendered
	if eni.Keep || a.storeErr != "" {
		r.Network = eni.Link.Current
	}
	for _, file := range eni.Files {
		switch {
		case a.storeErr != "" || !a.refused[file.Path].None():
		case file.Path == plan.NetworkDropIn(name):
			r.Network = eni.DropIn
		case file.Path == plan.LinkDropIn(name):
			r.Link = eni.LinkDropIn
		}
	}
	if eni.Link.NetworkHidden != "" {
		r.Network = nil
	}
	if eni.Link.LinkHidden != "" {
		r.Link = nil
	}
	return r
}

// schedule says when networkd is asked next, after a pass. disputed: it has said that
// something is not its own that is there.
func (p *applied) schedule(now time.Time, up, stale, changed, disputed bool) {
	switch {
	case !up:
		*p = applied{busy: p.busy}
	case p.busy:
	case stale || p.leases || p.snapshot == nil:
		if p.since.IsZero() {
			p.since, p.next = now, now.Add(appliedDelay)
		}
		if changed {
			p.next = now.Add(appliedDelay)
			if latest := p.since.Add(latestApplied); latest.Before(p.next) {
				p.next = latest
			}
			p.delay = 0
		}
	case disputed:
		if p.next.IsZero() {
			p.delay = min(max(2*p.delay, appliedDelay), slowestDispute)
			p.next = now.Add(p.delay)
		}
	default:
		p.next, p.since, p.delay = time.Time{}, time.Time{}, 0
	}
}

// askApplied asks networkd, if it is time to.
func (a *Agent) askApplied(ctx context.Context, now time.Time) {
	if a.applied.busy || !schedule.Reached(a.applied.next, now) {
		return
	}
	a.applied.busy, a.applied.next, a.applied.since, a.applied.leases = true, time.Time{}, time.Time{}, false
	for _, l := range a.links {
		l.opinion.asked = l.opinion.changes
	}
	go func() {
		said, err := a.Networkd.Applied(ctx)
		select {
		case a.answers <- answer{said, err}:
		case <-ctx.Done():
		}
	}()
}

// askOfLeases has networkd asked for the leases where search domains of one stand in a drop-in
// and networkd keeps no file of it: nothing else tells that there are others now.
func (a *Agent) askOfLeases() {
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		if eni.Want.Domains != "" && !a.linkState(eni.Link.Index).Lease.Known {
			a.applied.leases = true
		}
	}
}

// takeApplied puts an answer where it belongs.
func (a *Agent) takeApplied(r answer, now time.Time) {
	a.applied.busy = false
	if failed := r.err != nil; failed != a.applied.failed {
		a.applied.failed, a.applied.delay = failed, 0
	}
	if r.err != nil {
		a.Log.Debug("networkd does not tell what it has applied", "reason", r.err.Error())
		a.applied.delay = min(max(2*a.applied.delay, time.Second), slowestApplied)
		a.applied.since, a.applied.next = now, now.Add(a.applied.delay)
		return
	}
	if a.applied.snapshot == nil || !r.Snapshot.Equal(a.applied.snapshot) {
		a.applied.snapshot = r.Snapshot
	}
	for _, l := range a.links {
		l.opinion.told = l.opinion.asked
	}
	for index, l := range a.links {
		l.lease = r.Leases[index]
	}
	a.ask(0)
}
