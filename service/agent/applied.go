package agent

import (
	"context"
	"slices"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
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
	// slowestApplied bounds the time between two questions where networkd does not count
	// as its own what is there, or does not answer.
	slowestApplied = time.Minute
)

// applied is what networkd last said, and when it is asked next.
type applied struct {
	snapshot *kernel.Snapshot
	// next is when to ask, zero for not at all; since when that was first wanted.
	next, since time.Time
	delay       time.Duration
	busy        bool
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
	snapshot *kernel.Snapshot
	err      error
}

// compare looks at the four places of an ENI. What networkd says counts as long as nothing
// else has changed since it was asked.
func (a *Agent) compare(eni *plan.ENI, l *link, entry *state.Interface) plan.Truth {
	rendered := a.rendered(eni)
	var known *kernel.Snapshot
	if l.opinion.fresh() && a.networkdUp {
		known = a.applied.snapshot
	}
	truth := plan.Compare(eni, rendered, known, a.snapshot, l.withdrawn, a.ours)
	administrated := a.Networkd.Link(eni.Link.Index).Administrative
	items := truth.Items("")
	if l.opinion.file != entry.NetworkFile || l.opinion.administrated != administrated || !slices.EqualFunc(items, l.opinion.items, unchanged) {
		l.opinion.changes++
		if known != nil {
			truth = plan.Compare(eni, rendered, nil, a.snapshot, l.withdrawn, a.ours)
		}
	}
	l.opinion.items, l.opinion.file, l.opinion.administrated = items, entry.NetworkFile, administrated
	return truth
}

// unchanged tells whether an item is the same, whatever networkd says of it.
func unchanged(x, y state.Item) bool {
	return x.Kind == y.Kind && x.Value == y.Value && x.Metadata == y.Metadata && x.Rendered == y.Rendered && x.Kernel == y.Kernel
}

// rendered are the drop-ins of an ENI as they are on the disk and in force.
func (a *Agent) rendered(eni *plan.ENI) plan.Rendered {
	name := eni.Link.Name
	var r plan.Rendered
	if eni.Keep || a.storeErr != "" {
		r.Network = eni.Link.Current
	}
	for _, file := range eni.Files {
		switch {
		case a.storeErr != "" || a.refused[file.Path] != "":
		case file.Path == plan.NetworkDropIn(name):
			r.Network = file.Content
		case file.Path == plan.LinkDropIn(name):
			r.Link = file.Content
		}
	}
	if eni.Link.NetworkHidden != "" {
		r.Network = ""
	}
	if eni.Link.LinkHidden != "" {
		r.Link = ""
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
	case stale || p.snapshot == nil:
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
			p.delay = min(max(2*p.delay, appliedDelay), slowestApplied)
			p.next = now.Add(p.delay)
		}
	default:
		p.next, p.since, p.delay = time.Time{}, time.Time{}, 0
	}
}

// askApplied asks networkd, if it is time to.
func (a *Agent) askApplied(ctx context.Context, now time.Time) {
	if a.applied.busy || !reached(a.applied.next, now) {
		return
	}
	a.applied.busy, a.applied.next, a.applied.since = true, time.Time{}, time.Time{}
	for _, l := range a.links {
		l.opinion.asked = l.opinion.changes
	}
	go func() {
		snapshot, err := a.Networkd.Applied(ctx)
		select {
		case a.answers <- answer{snapshot, err}:
		case <-ctx.Done():
		}
	}()
}

// takeApplied puts an answer where it belongs.
func (a *Agent) takeApplied(r answer, now time.Time) {
	a.applied.busy = false
	if r.err != nil {
		a.Log.Debug("networkd does not tell what it has applied", "reason", r.err.Error())
		a.applied.delay = min(max(2*a.applied.delay, time.Second), slowestApplied)
		a.applied.since, a.applied.next = now, now.Add(a.applied.delay)
		return
	}
	a.applied.snapshot = r.snapshot
	for _, l := range a.links {
		l.opinion.told = l.opinion.asked
	}
	a.ask(0)
}
