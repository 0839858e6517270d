// Package schedule has the times at which something that failed is tried again, and the small
// arithmetic of times that every part of the daemon's loop needs. It does not tell the time: callers
// pass the current time.
package schedule

import (
	"math/rand/v2"
	"time"
)

// Try is the schedule of something that is tried until it succeeds, with exponential back-off and
// jitter (D6). The zero value may be tried at once.
type Try struct {
	// Next is when it may be tried again.
	Next time.Time
	// Delay is the last delay, 0 after a success.
	Delay time.Duration
	// Failures counts them since the last success, and Failing is when the first of them was.
	Failures int
	Failing  time.Time
	// Busy reports whether a try is under way, and Began is when the last one that ended had begun.
	Busy  bool
	Began time.Time
}

// Failed puts the next try off: by first, or twice the last delay, and by limit at most.
func (t *Try) Failed(now time.Time, first, limit time.Duration) {
	if t.Failures == 0 {
		t.Failing = now
	}
	t.Failures++
	t.Delay = Double(t.Delay, first, limit)
	t.Next = now.Add(Jitter(t.Delay))
}

// Succeeded forgets the failures.
func (t *Try) Succeeded() { t.Failures, t.Delay = 0, 0 }

// Double returns twice a delay, but first at least and limit at most.
func Double(delay, first, limit time.Duration) time.Duration {
	return min(max(2*delay, first), limit)
}

// Jitter shortens a delay by up to a tenth, so that instances do not ask in step.
func Jitter(delay time.Duration) time.Duration { return Earlier(delay, 0.1) }

// Earlier shortens a delay at random by up to a part of it, which is between 0 and 1.
func Earlier(delay time.Duration, part float64) time.Duration {
	return delay - time.Duration(rand.Float64()*part*float64(delay))
}

// Reached reports whether a time that is set has come. The zero time never comes.
func Reached(at, now time.Time) bool { return !at.IsZero() && !now.Before(at) }

// Sooner returns the earlier of two times, where the zero time means never.
func Sooner(x, y time.Time) time.Time {
	if x.IsZero() || (!y.IsZero() && y.Before(x)) {
		return y
	}
	return x
}
