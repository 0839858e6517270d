package agent

import (
	"context"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/schedule"
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
