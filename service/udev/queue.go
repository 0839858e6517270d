package udev

import (
	"context"
	"log/slog"
	"slices"
	"time"

	"ec2netd/service/journal"
	"ec2netd/service/schedule"
)

// Times of a [Queue].
const (
	// firstRetry and slowestRetry bound the time between two calls that fail.
	firstRetry   = 50 * time.Millisecond
	slowestRetry = time.Minute
	// patience is how long udevd may fail to answer before that is worth a word: it is
	// restarted, or has other devices to see to.
	patience = 30 * time.Second
)

// Applier gives links the alternative names of their .link files. [Udev] does.
type Applier interface {
	Apply(ctx context.Context, names []string) error
}

// Queue has the links whose .link files are to be applied. It has that done beside its user's
// loop, one call at a time: a udevd that is stopped or busy lets udevadm wait for seconds (10
// measured), and alternative names must not hold up addresses. Make one with [NewQueue]. Its
// methods are not for several goroutines.
type Queue struct {
	applier Applier
	log     *slog.Logger
	ends    chan End

	said journal.Once
	try  schedule.Try
	// names of the links that are seen to by the next call.
	names []string
}

// End is the end of a call.
type End struct {
	names []string
	err   error
}

// NewQueue returns an empty queue.
func NewQueue(applier Applier, log *slog.Logger) *Queue {
	q := &Queue{applier: applier, log: log, ends: make(chan End, 1)}
	q.said.Log = log
	return q
}

// Add has a link seen to by the next call.
func (q *Queue) Add(name string) {
	if !slices.Contains(q.names, name) {
		q.names = append(q.names, name)
	}
}

// Step begins a call if there are links and it is time to, and reports whether it has. The end
// of the call is one of Ends.
func (q *Queue) Step(ctx context.Context, now time.Time) bool {
	if len(q.names) == 0 || q.try.Busy || now.Before(q.try.Next) {
		return false
	}
	names := q.names
	q.names, q.try.Busy = nil, true
	// There is room for the end of one call, and no other call begins before it is taken.
	go func() { q.ends <- End{names, q.applier.Apply(ctx, names)} }()
	return true
}

// Next is when Step has something to do, now at the earliest; zero if not before there are links
// or the call that is under way has ended.
func (q *Queue) Next(now time.Time) time.Time {
	switch {
	case len(q.names) == 0 || q.try.Busy:
		return time.Time{}
	case q.try.Next.After(now):
		return q.try.Next
	}
	return now
}

// Ends are for [Queue.Take].
func (q *Queue) Ends() <-chan End { return q.ends }

// Take takes the end of a call, and reports whether the links are seen to. If they are not, it
// is tried again.
func (q *Queue) Take(end End, now time.Time) bool {
	q.try.Busy = false
	if end.err == nil {
		q.try.Succeeded()
		q.said.Clear("udev")
		return true
	}
	for _, name := range end.names {
		q.Add(name)
	}
	q.try.Failed(now, firstRetry, slowestRetry)
	if now.Sub(q.try.Failing) >= patience {
		q.said.Warn("udev", "Alternative names cannot be given; trying again", "reason", end.err.Error())
	} else {
		q.log.Debug("alternative names cannot be given; trying again", "reason", end.err.Error())
	}
	return false
}
