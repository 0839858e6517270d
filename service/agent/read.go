package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/schedule"
	"ec2netd/service/state"
)

// result is the end of one read.
type result struct {
	began time.Time
	// target is the ENI that was read; nil for the instance.
	target   *target
	instance metadata.Instance
	view     *metadata.ENI
	err      error
}

// startReads starts the reads that are due.
func (a *Agent) startReads(ctx context.Context, now time.Time) {
	if len(a.targets) == 0 {
		return
	}
	if paths := a.paths(""); !a.instanceGot && !a.instanceTry.Busy && !now.Before(a.instanceTry.Next) && len(paths) > 0 && a.reading < readers {
		a.instanceTry.Busy = true
		_ = a.read(ctx, func(ctx context.Context) result {
			instance, err := a.Metadata.ReadInstance(ctx, paths)
			return result{instance: instance, err: err}
		})
	}
	// Which ENI is the primary decides what numbers mean: know that first.
	if !a.instanceGot {
		return
	}
	for _, t := range a.dueTargets(now) {
		paths := a.paths(t.mac)
		// Each that starts may be in the way of the next.
		if _, ok := a.due(t); !ok || len(paths) == 0 {
			continue
		}
		t.Busy = true
		want := metadata.Wanted{MAC: t.mac, Primary: t.mac == a.instance.PrimaryMAC, Known: t.view, Doubtful: t.doubtful, Cards: a.cards()}
		if t.err == nil && len(a.waiting) == 0 {
			want.Look, want.Turn, want.Often = t.look, t.turn, a.often()
		}
		if ofService(t.err) && a.outage.Failures > 0 {
			a.outage.probe = t
		}
		t.cancel = a.read(ctx, func(ctx context.Context) result {
			view, err := a.Metadata.ReadENI(ctx, paths, want)
			return result{target: t, view: view, err: err}
		})
	}
}

// read runs a read, which the returned function ends early.
func (a *Agent) read(ctx context.Context, do func(context.Context) result) context.CancelFunc {
	a.reading++
	began := time.Now()
	bounded, cancel := context.WithTimeout(ctx, readTime)
	a.jobs <- func() { // there are as many readers as reads
		defer cancel()
		r := do(bounded)
		r.began = began
		select {
		case a.results <- r:
		case <-ctx.Done():
		}
	}
	return cancel
}

// reader runs reads until ctx ends. It is there for all of them, as a new goroutine's stack
// would be copied five times on the way down to the request, of an idle daemon's CPU time
// the twentieth part.
func (a *Agent) reader(ctx context.Context) {
	for {
		select {
		case <-ctx.Done():
			return
		case job := <-a.jobs:
			job()
		}
	}
}

// take puts the end of a read where it belongs, and tells whether it says anything new or
// somebody waits for it.
func (a *Agent) take(r result) bool {
	defer a.hurry(time.Now())
	a.reading--
	now := time.Now()
	if r.target == nil || a.targets[r.target.mac] == r.target {
		a.reads[r.word()]++
	}
	if r.err == nil {
		a.lastSuccess = now
		if a.said.Clear("metadata") {
			a.Log.Info("The metadata service answers again")
			a.resume(now)
		}
	}
	if r.target == nil {
		a.instanceTry.Busy, a.instanceTry.Began, a.instanceErr = false, r.began, r.err
		if r.err != nil {
			retry(&a.instanceTry, now, r.err, true, a.RefreshEvery)
			if !noAnswer(metadata.KindOf(r.err)) || !early(&a.instanceTry, now) {
				a.said.WarnOf("metadata", metadata.KindOf(r.err).String(), "Cannot read the metadata yet; what is configured stays", "reason", r.err.Error())
			}
			return true
		}
		a.instance, a.instanceGot = r.instance, true
		a.save()
		return true
	}
	t := r.target
	if a.targets[t.mac] != t {
		// Detached, or attached anew, meanwhile.
		a.outage.forget(t)
		return true
	}
	failed := t.err != nil
	t.Busy, t.Began, t.err = false, r.began, r.err
	a.outage.note(now, t, r.err, a.RefreshEvery)
	if r.err != nil {
		retry(&t.Try, now, r.err, t.view == nil, a.slowest(t, now))
		t.look, t.turn = metadata.Whole, 0
		a.tellFailure(t, now)
		return true
	}
	a.said.Clear("read " + t.mac)
	t.Succeeded()
	changed := t.view == nil || !t.view.Equal(r.view)
	if changed {
		if t.view != nil {
			was, is := holdings(t.view), holdings(r.view)
			a.Log.Info("ENI changed", "eni", r.view.ID, "mac", t.mac, "interface", a.nameOf(t.index),
				"added", strings.Join(state.Without(is, was), " "), "removed", strings.Join(state.Without(was, is), " "))
		}
		t.view = r.view
		a.save()
		a.readFormer(t, now)
	}
	a.schedule(t, now, changed)
	return changed || failed || len(a.waiting) > 0 || a.Metadata.Answered() != a.State().Metadata.Endpoint
}

// readFormer has an ENI read at once whose last view has an address or prefix that another
// one has now. Until it gives that up, packets from there may leave by it, and EC2 drops
// them (B8).
func (a *Agent) readFormer(t *target, now time.Time) {
	has := holdings(t.view)
	for _, other := range a.targets {
		if other != t && other.view != nil && other.err == nil && slices.ContainsFunc(holdings(other.view), func(held string) bool { return slices.Contains(has, held) }) {
			other.Next, other.look, other.turn = now, metadata.Whole, 0
		}
	}
}

// word is that by which the end of a read is counted.
func (r *result) word() string {
	switch {
	case r.err == nil && r.target != nil && r.view == r.target.view:
		return "unchanged" // of a part it was asked whether it is as in that view
	case r.err == nil:
		return "ok"
	case isIncomplete(r.err):
		return "incomplete"
	}
	return metadata.KindOf(r.err).String()
}

// tellFailure logs that an ENI could not be read: once for each way in which that
// happens, and once for all ENIs where the service gives no answer to any (D7).
func (a *Agent) tellFailure(t *target, now time.Time) {
	kind := metadata.KindOf(t.err)
	switch {
	case isIncomplete(t.err):
		return
	case a.switchedOff() != nil:
		a.said.WarnOf("metadata", metadata.Disabled.String(), "The metadata service is switched off; what is configured stays", "reason", a.switchedOff().Error())
		return
	case !noAnswer(kind):
	case a.offline():
		if !early(&a.outage.Try, now) {
			a.said.WarnOf("metadata", "", "The metadata service does not answer; what is configured stays", "reason", t.err.Error())
		}
		return
	case early(&t.Try, now) || !a.lastSuccess.After(t.Failing):
		// Nothing was answered since: that may be all of the service.
		return
	}
	args := []any{"reason", t.err.Error()}
	if t.view != nil {
		args = append(args, "eni", t.view.ID)
	}
	a.said.WarnOf("read "+t.mac, kind.String(), "Cannot read the metadata of the ENI; its last view holds",
		append(args, "mac", t.mac, "interface", a.nameOf(t.index))...)
}

// holdings are the addresses and prefixes of an ENI.
func holdings(view *metadata.ENI) []string {
	return slices.Concat(texts(view.IPv4), texts(view.IPv6), texts(view.IPv4Prefixes), texts(view.IPv6Prefixes))
}

// hurry has what a Refresh waits for read at once: a read that was under way when it
// came does not count.
func (a *Agent) hurry(now time.Time) {
	for _, r := range a.waiting {
		if !a.instanceGot && a.instanceTry.Began.Before(r.began) {
			a.instanceTry.Next = now
		}
		for _, t := range a.targets {
			if r.of(t.mac) && t.Began.Before(r.began) {
				t.Next = now
			}
		}
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

// paths are the ways to the metadata service for an ENI, best first: over the ENI
// itself, over the primary one, over any other (D2); bound to the device, so that a
// changed default route or a VPN does not cut the daemon off.
func (a *Agent) paths(mac string) []metadata.Path {
	if a.seen.Kernel == nil && a.Endpoint == "" {
		return nil
	}
	var links []kernel.Link
	if a.seen.Kernel != nil {
		links = a.seen.Kernel.Links
	}
	return metadata.Way{Endpoint: a.Endpoint, Imdsd: a.Imdsd}.Paths(links, mac, a.instance.PrimaryMAC)
}

// lastError is the error that stands in the way of a complete view of everything: that
// of the instance, of the primary ENI, of any other; nil if there is none. A view that
// is not complete yet is no error.
func (a *Agent) lastError() error {
	if !a.instanceGot {
		return a.instanceErr
	}
	var first *target
	for _, t := range a.targets {
		if t.err == nil || isIncomplete(t.err) {
			continue
		}
		if first == nil || t.mac == a.instance.PrimaryMAC || (first.mac != a.instance.PrimaryMAC && t.mac < first.mac) {
			first = t
		}
	}
	if first == nil {
		return nil
	}
	return first.err
}

// offline reports whether the metadata service gives no answer at all, or is switched off.
func (a *Agent) offline() bool {
	if a.switchedOff() != nil {
		return true
	}
	if !a.instanceGot {
		return a.instanceErr != nil && noAnswer(metadata.KindOf(a.instanceErr))
	}
	for _, t := range a.targets {
		if t.err == nil || isIncomplete(t.err) || !noAnswer(metadata.KindOf(t.err)) {
			return false
		}
	}
	return len(a.targets) > 0
}

// switchedOff is how the service said that it is switched off for the instance, nil if it has
// not or has answered since. A token is the instance's, so one read tells it for all ENIs (D12).
func (a *Agent) switchedOff() error {
	if !a.instanceGot && a.instanceErr != nil && metadata.KindOf(a.instanceErr) == metadata.Disabled {
		return a.instanceErr
	}
	for _, t := range a.targets {
		if t.err != nil && metadata.KindOf(t.err) == metadata.Disabled && !a.lastSuccess.After(t.Failing) {
			return t.err
		}
	}
	return nil
}

// resume has those read at once that failed while the service was off: it is not any more.
func (a *Agent) resume(now time.Time) {
	for _, t := range a.targets {
		if ofService(t.err) {
			t.Next = now
		}
	}
}

func noAnswer(kind metadata.Kind) bool {
	return kind == metadata.Unreachable || kind == metadata.Timeout || kind == metadata.Reset
}

func (a *Agent) nameOf(index int) string {
	if a.seen.Kernel == nil {
		return "" // the kernel has not answered yet
	}
	for _, l := range a.seen.Kernel.Links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}
