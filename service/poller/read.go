package poller

import (
	"context"
	"slices"
	"strings"
	"time"

	"ec2netd/service/metadata"
	"ec2netd/service/schedule"
	"ec2netd/service/state"
)

// Result is the end of one read, for [Poller.Take].
type Result struct {
	began time.Time
	// target is the ENI that was read; nil for the instance.
	target   *target
	instance metadata.Instance
	view     *metadata.ENI
	err      error
}

// Results are the ends of reads. Each must be taken.
func (p *Poller) Results() <-chan Result { return p.results }

// Reading reports whether a read is under way.
func (p *Poller) Reading() bool { return p.reading > 0 }

// Step starts the reads that are due, which end with ctx, and returns when it wants to be called
// again without an event: zero for not at all.
func (p *Poller) Step(ctx context.Context, now time.Time) time.Time {
	if len(p.targets) > 0 {
		p.startInstance(ctx, now)
	}
	// Which ENI is the primary decides what numbers mean: know that first.
	if p.instance.got {
		for _, t := range p.dueTargets(now) {
			p.startENI(ctx, t, now)
		}
	}
	next := p.nextRead()
	for _, r := range p.refreshes {
		if silence := r.silence(); now.Before(silence) {
			next = schedule.Sooner(next, silence)
		}
	}
	return next
}

// startInstance reads the instance if that is due.
func (p *Poller) startInstance(ctx context.Context, now time.Time) {
	if p.instance.got || p.instance.Busy || now.Before(p.instance.Next) || p.reading >= Readers {
		return
	}
	paths := p.paths("")
	if len(paths) == 0 {
		return
	}
	p.instance.Busy = true
	_ = p.read(ctx, now, func(ctx context.Context) Result {
		instance, err := p.options.Client.ReadInstance(ctx, paths)
		return Result{instance: instance, err: err}
	})
}

// startENI reads an ENI that is due, unless a read that was started before is in its way.
func (p *Poller) startENI(ctx context.Context, t *target, now time.Time) {
	paths := p.paths(t.mac)
	if _, ok := p.due(t); !ok || len(paths) == 0 {
		return
	}
	t.Busy = true
	want := metadata.Wanted{MAC: t.mac, Primary: t.mac == p.instance.PrimaryMAC, Known: t.view, Doubtful: t.doubtful, Cards: p.cards()}
	if t.err == nil && len(p.refreshes) == 0 {
		want.Look, want.Turn, want.Often = t.look, t.turn, p.often()
	}
	if ofService(t.err) && p.outage.Failures > 0 {
		p.outage.probe = t
	}
	t.cancel = p.read(ctx, now, func(ctx context.Context) Result {
		view, err := p.options.Client.ReadENI(ctx, paths, want)
		return Result{target: t, view: view, err: err}
	})
}

// read runs a read, which the returned function ends early.
func (p *Poller) read(ctx context.Context, began time.Time, do func(context.Context) Result) context.CancelFunc {
	p.reading++
	bounded, cancel := context.WithTimeout(ctx, ReadTime)
	// Both channels have room for as many as are read at once.
	p.jobs <- func() {
		defer cancel()
		r := do(bounded)
		r.began = began
		p.results <- r
	}
	return cancel
}

// Take puts the end of a read where it belongs, and reports whether it says anything new or
// somebody waits for it.
func (p *Poller) Take(r Result, now time.Time) (news bool) {
	defer p.hurry(now)
	p.stale = true
	p.reading--
	if r.target == nil || p.targets[r.target.mac] == r.target {
		p.counts.Reads[r.word()]++
	}
	if r.err == nil {
		p.counts.LastSuccess = now
		if p.said.Clear("metadata") {
			p.options.Log.Info("The metadata service answers again")
			p.resume(now)
		}
	}
	if r.target == nil {
		p.takeInstance(r, now)
		return true
	}
	if p.targets[r.target.mac] != r.target {
		// Detached, or attached anew, meanwhile.
		p.outage.forget(r.target)
		return true
	}
	return p.takeENI(r, now)
}

// takeInstance is Take for the instance.
func (p *Poller) takeInstance(r Result, now time.Time) {
	i := &p.instance
	i.Busy, i.Began, i.err = false, r.began, r.err
	if r.err == nil {
		i.Instance, i.got = r.instance, true
		p.save(now)
		return
	}
	retry(&i.Try, now, r.err, true, p.options.RefreshEvery)
	if !noAnswer(r.err) || !early(&i.Try, now) {
		p.said.WarnOf("metadata", metadata.KindOf(r.err).String(), "Cannot read the metadata yet; what is configured stays", "reason", r.err.Error())
	}
}

// takeENI is Take for an ENI.
func (p *Poller) takeENI(r Result, now time.Time) (news bool) {
	t := r.target
	failed := t.err != nil
	t.Busy, t.Began, t.err = false, r.began, r.err
	p.outage.note(now, t, r.err, p.options.RefreshEvery)
	if r.err != nil {
		retry(&t.Try, now, r.err, t.view == nil, p.slowest(t, now))
		t.look, t.turn = metadata.Whole, 0
		p.tellFailure(t, now)
		return true
	}
	p.said.Clear("read " + t.mac)
	t.Succeeded()
	changed := t.view == nil || !t.view.Equal(r.view)
	if changed {
		p.tellChange(t, r.view)
		t.view = r.view
		p.save(now)
		p.readFormer(t, now)
	}
	p.schedule(t, now, changed)
	return changed || failed || len(p.refreshes) > 0
}

// readFormer makes the ENIs due whose last view has an address or prefix that another one has
// now. Until they give that up, packets from there may leave by them, and EC2 drops these (B8).
func (p *Poller) readFormer(t *target, now time.Time) {
	has := t.view.Holdings()
	for _, other := range p.targets {
		if other != t && other.view != nil && other.err == nil && slices.ContainsFunc(other.view.Holdings(), func(held string) bool { return slices.Contains(has, held) }) {
			other.readWhole(now)
		}
	}
}

// resume makes the ENIs due that failed while the service was off: it is not any more.
func (p *Poller) resume(now time.Time) {
	for _, t := range p.targets {
		if ofService(t.err) {
			t.Next = now
		}
	}
}

// word is that by which the end of a read is counted.
func (r *Result) word() string {
	switch {
	case r.err == nil && r.target != nil && r.view == r.target.view:
		return "unchanged" // of a part it was asked whether it is as in that view
	case r.err == nil:
		return "ok"
	case metadata.IsIncomplete(r.err):
		return "incomplete"
	}
	return metadata.KindOf(r.err).String()
}

// tellChange logs what an ENI has that it had not, and the other way round.
func (p *Poller) tellChange(t *target, view *metadata.ENI) {
	if t.view == nil {
		return
	}
	was, is := t.view.Holdings(), view.Holdings()
	p.options.Log.Info("ENI changed", "eni", view.ID, "mac", t.mac, "interface", p.nameOf(t.index),
		"added", strings.Join(state.Without(is, was), " "), "removed", strings.Join(state.Without(was, is), " "))
}

// tellFailure logs that an ENI could not be read: once for each way in which that
// happens, and once for all ENIs where the service gives no answer to any (D7).
func (p *Poller) tellFailure(t *target, now time.Time) {
	off := p.off()
	switch {
	case metadata.IsIncomplete(t.err):
		return
	case off != nil:
		p.said.WarnOf("metadata", metadata.Disabled.String(), "The metadata service is switched off; what is configured stays", "reason", off.Error())
		return
	case !noAnswer(t.err):
	case p.silent():
		if !early(&p.outage.Try, now) {
			p.said.WarnOf("metadata", "", "The metadata service does not answer; what is configured stays", "reason", t.err.Error())
		}
		return
	case early(&t.Try, now) || !p.counts.LastSuccess.After(t.Failing):
		// Nothing was answered since: that may be all of the service.
		return
	}
	args := []any{"reason", t.err.Error()}
	if t.view != nil {
		args = append(args, "eni", t.view.ID)
	}
	p.said.WarnOf("read "+t.mac, metadata.KindOf(t.err).String(), "Cannot read the metadata of the ENI; its last view holds",
		append(args, "mac", t.mac, "interface", p.nameOf(t.index))...)
}
