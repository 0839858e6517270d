package networkd

import (
	"context"
	"log/slog"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/schedule"
)

// Times of an [Inquiry].
const (
	// appliedDelay is how long nothing must have changed before networkd is asked,
	// latestApplied how long that may be put off by further changes.
	appliedDelay  = 60 * time.Millisecond
	latestApplied = 300 * time.Millisecond
	// firstApplied and slowestApplied bound the time between two questions where networkd does
	// not answer. slowestDispute bounds it where networkd does not count as its own what is
	// there: from 257 on that may be so for good.
	firstApplied   = time.Second
	slowestApplied = time.Minute
	slowestDispute = 10 * time.Minute
)

// Describer tells what networkd has applied. A [Client] is one.
type Describer interface {
	Applied(ctx context.Context) (*Applied, error)
}

// Question is the number of a question to networkd, from 1.
type Question uint64

// Answer is the end of a question.
type Answer struct {
	*Applied
	err error
}

// Inquiry asks networkd what it has applied (H4).
//
// With many ENIs that costs networkd, and this daemon, several milliseconds. So an Inquiry asks
// beside its user's loop, one question at a time, and only when something that is shown of an ENI
// has changed and the change seems to be over: an idle pass asks nobody, and a reload waits for
// no answer.
type Inquiry struct {
	describer Describer
	log       *slog.Logger
	answers   chan Answer

	snapshot *kernel.Snapshot
	leases   map[int]Lease
	// next is when to ask, zero for not at all; since when that was first wanted.
	next, since time.Time
	delay       time.Duration
	busy        bool
	// failed: there was no answer to the last question.
	failed bool
	// changed: something has changed since the last schedule.
	changed bool
	// wantLeases: what leases tell is asked for, whatever else has changed.
	wantLeases bool
	// asked is the last question, told the last one that was answered. What was told before
	// the question valid does not count.
	asked, told, valid Question
}

func newInquiry(describer Describer, log *slog.Logger) *Inquiry {
	return &Inquiry{describer: describer, log: log, answers: make(chan Answer, 1)}
}

// Snapshot is what networkd last said that it has applied, in the shape of one of the kernel; nil
// for nothing. It does not change, and is another one only if it says something else.
func (i *Inquiry) Snapshot() *kernel.Snapshot { return i.snapshot }

// Lease is what networkd last said of the DHCPv4 lease of a link, see [Applied].
func (i *Inquiry) Lease(index int) Lease { return i.leases[index] }

// Changed notes that something has changed of which networkd may have other things to say by
// now. It returns the question whose answer tells.
func (i *Inquiry) Changed() Question {
	i.changed = true
	return i.asked + 1
}

// Fresh reports whether the answer to a question, or to a later one, is there. That is so of the
// zero question as soon as the networkd that runs has told anything.
func (i *Inquiry) Fresh(question Question) bool { return i.told >= max(question, i.valid) }

// WantLeases has networkd asked also where nothing has changed: nothing else tells that there is
// another lease.
func (i *Inquiry) WantLeases() { i.wantLeases = true }

// Next is when [Inquiry.Ask] has something to do, zero if not before something changes.
func (i *Inquiry) Next() time.Time { return i.next }

// Ask asks networkd, if it is time to. The answer is one of Answers. No question outlives ctx.
func (i *Inquiry) Ask(ctx context.Context, now time.Time) {
	if i.busy || !schedule.Reached(i.next, now) {
		return
	}
	i.busy, i.next, i.since, i.wantLeases = true, time.Time{}, time.Time{}, false
	i.asked++
	go func() {
		applied, err := i.describer.Applied(ctx)
		select {
		case i.answers <- Answer{applied, err}:
		case <-ctx.Done():
		}
	}()
}

// Answers are for [Inquiry.Take].
func (i *Inquiry) Answers() <-chan Answer { return i.answers }

// Take takes an answer, and reports whether networkd has told what it has applied.
func (i *Inquiry) Take(answer Answer, now time.Time) bool {
	i.busy = false
	if failed := answer.err != nil; failed != i.failed {
		i.failed, i.delay = failed, 0
	}
	if answer.err != nil {
		i.log.Debug("networkd does not tell what it has applied", "reason", answer.err.Error())
		i.delay = schedule.Double(i.delay, firstApplied, slowestApplied)
		i.since, i.next = now, now.Add(i.delay)
		return false
	}
	if i.snapshot == nil || !answer.Snapshot.Equal(i.snapshot) {
		i.snapshot = answer.Snapshot
	}
	i.leases, i.told = answer.Leases, i.asked
	return true
}

// schedule says when networkd is asked next, after a pass; see [Session.Schedule].
func (i *Inquiry) schedule(now time.Time, running, stale, disputed bool) {
	changed := i.changed
	i.changed = false
	switch {
	case !running:
		i.reset()
	case i.busy:
	case stale || i.wantLeases || i.snapshot == nil:
		if i.since.IsZero() {
			i.since, i.next = now, now.Add(appliedDelay)
		}
		if changed {
			i.next = now.Add(appliedDelay)
			if latest := i.since.Add(latestApplied); latest.Before(i.next) {
				i.next = latest
			}
			i.delay = 0
		}
	case disputed:
		if i.next.IsZero() {
			i.delay = schedule.Double(i.delay, appliedDelay, slowestDispute)
			i.next = now.Add(i.delay)
		}
	default:
		i.next, i.since, i.delay = time.Time{}, time.Time{}, 0
	}
}

// hurry asks at once what is put off because networkd did not answer, or not as was hoped.
func (i *Inquiry) hurry(now time.Time) {
	if i.delay > 0 && !i.busy {
		i.delay, i.next = 0, now
	}
}

// restart forgets what another networkd has said, and what it is still about to say.
func (i *Inquiry) restart() {
	i.reset()
	i.valid = i.asked + 1
}

// reset forgets what networkd has said, and that it is to be asked.
func (i *Inquiry) reset() {
	i.snapshot, i.leases, i.next, i.since, i.delay = nil, nil, time.Time{}, time.Time{}, 0
	i.failed, i.wantLeases = false, false
}
