package agent

import (
	"context"
	"slices"
	"time"

	"ec2netd/service/metrics"
	"ec2netd/service/poller"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// State returns the last published state. It is never nil and never changes.
func (a *Agent) State() *state.State { return a.current.Load() }

// Watch returns a channel with the current state first, and then the latest one
// after each change: a slow reader misses what lies between. It is closed when ctx
// ends.
func (a *Agent) Watch(ctx context.Context) <-chan *state.State {
	in := make(chan *state.State, 1)
	a.mu.Lock()
	a.watchers[in] = struct{}{}
	in <- a.State()
	a.mu.Unlock()
	out := make(chan *state.State)
	go func() {
		defer close(out)
		defer func() {
			a.mu.Lock()
			delete(a.watchers, in)
			a.mu.Unlock()
		}()
		for {
			select {
			case <-ctx.Done():
				return
			case latest := <-in:
				select {
				case <-ctx.Done():
					return
				case out <- latest:
				}
			}
		}
	}()
	return out
}

// publishCounts brings the current state up to date with what of it moves with each read
// and is told to nobody.
func (a *Agent) publishCounts() {
	a.counted.Store(a.count())
	a.mu.Lock()
	defer a.mu.Unlock()
	next := *a.State()
	next.Metadata.LastSuccess = a.Poller.Counts().LastSuccess
	next.Metadata.Requests, next.Metadata.Errors = a.Metadata.Requests()
	a.current.Store(&next)
}

// publish makes the state of this pass the current one, and tells the watchers if
// it says anything new.
func (a *Agent) publish(ctx context.Context, interfaces []state.Interface) {
	sent, failed := a.Metadata.Requests()
	known := a.Poller.Known()
	next := &state.State{
		Version:    a.Version,
		InstanceID: known.Instance.ID,
		Metadata: state.Metadata{
			Endpoint: a.Metadata.Answered(), LastSuccess: a.Poller.Counts().LastSuccess, LastError: errorText(known.Err), Requests: sent, Errors: failed,
		},
		Networkd: state.Networkd{
			Running: a.session.Running(), Version: a.versionOf(ctx), Reloads: a.session.Reloads(), LastError: a.session.LastError(),
		},
		Conflicts:  a.conflicts,
		Interfaces: interfaces,
		LastChange: a.lastChange,
	}
	var reason status.Reason
	next.State, reason = a.overall(interfaces)
	next.Reason = reason.Words()
	before := a.State()
	a.counted.Store(a.count())
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current.Store(next)
	if before.Same(next) {
		return
	}
	for watcher := range a.watchers {
		select {
		case <-watcher:
		default:
		}
		watcher <- next
	}
}

// count is what was counted so far, without what the client of the metadata service counts.
func (a *Agent) count() *metrics.Numbers {
	n := &metrics.Numbers{
		Reads: a.Poller.Counts().Reads, Reloads: a.session.Reloads(), Attachments: a.attachments, AttachmentTime: a.attachTime,
		Took: make(map[int]time.Duration),
	}
	for index, l := range a.links {
		if l.took != nil {
			n.Took[index] = *l.took
		}
	}
	return n
}

// Metrics returns the numbers of now.
func (a *Agent) Metrics() []metrics.Metric {
	n := *a.counted.Load()
	n.Requests, n.RequestTime = a.Metadata.Results()
	return metrics.Metrics(n, a.State())
}

func (a *Agent) versionOf(ctx context.Context) string {
	if !a.session.Running() || !a.begun {
		return ""
	}
	return a.Networkd.Version(ctx)
}

// overall is the state of the whole.
func (a *Agent) overall(interfaces []state.Interface) (state.Manager, status.Reason) {
	if !a.session.Running() && !a.session.Why().None() && !a.session.BusSilent() {
		return state.Degraded, a.session.Why()
	}
	for i := range interfaces {
		e := &interfaces[i]
		switch e.State {
		case state.ENIDegraded, state.ENIShadowed, state.ENIOverridden, state.ENIContested:
			reason := a.links[e.Ifindex].reason
			return state.Degraded, status.Reason{Code: status.OfENI, Subject: e.ID(), Other: e.Name, State: string(e.State), Of: &reason}
		}
	}
	known := a.Poller.Known()
	switch {
	case known.Off != nil:
		return state.Offline, status.Reason{Code: status.MetadataOff, Cause: known.Off.Error()}
	case known.Silent:
		return state.Offline, status.Reason{Code: status.MetadataSilent, Cause: errorText(known.Err)}
	case known.Err != nil:
		return state.Degraded, failed(known.Err)
	case !known.Identified:
		return state.Starting, status.Reason{Code: status.MetadataUnread}
	}
	return state.Configured, a.worthKnowing()
}

// worthKnowing is what is not as it should be although every ENI is.
func (a *Agent) worthKnowing() status.Reason {
	switch {
	case len(a.Problems) > 0:
		return status.Reason{Code: status.ConfigurationWrong, Cause: a.Problems[0]}
	case a.unstored != "":
		return status.Reason{Code: status.RecordUnwritten, Cause: a.unstored}
	case len(a.unreadFiles) > 0:
		return status.Reason{Code: status.FileUnreadable, Cause: a.unreadFiles[0]}
	case len(a.conflicts) > 0:
		return status.Reason{Code: status.Conflicting, Subject: a.conflicts[0].Name, Values: a.conflicts[0].Evidence}
	}
	return status.Reason{}
}

// request is a Refresh under way.
type request struct {
	wait bool
	// mac is the one ENI that is refreshed, empty for all.
	mac      string
	began    time.Time
	deadline time.Time
	// metadata is the wait for the poller.
	metadata *poller.Refresh
	before   *state.State
	written  []string
	removed  []string
	reloaded bool
	reply    chan reply
}

type reply struct {
	changes *state.Changes
	err     error
}

// Refresh reads all metadata again and brings everything up to date. With wait it
// returns when no ENI is configuring any more, at the latest after a minute, and
// says in Settled whether that is so. The error says what of the metadata could not
// be read; what was configured stays.
func (a *Agent) Refresh(ctx context.Context, wait bool) (*state.Changes, error) {
	return a.request(ctx, &request{wait: wait})
}

// RefreshInterface does that for the ENI with a MAC address alone: the metadata of the
// others is not read, and nothing else is waited for.
func (a *Agent) RefreshInterface(ctx context.Context, mac string, wait bool) (*state.Changes, error) {
	return a.request(ctx, &request{wait: wait, mac: mac})
}

func (a *Agent) request(ctx context.Context, r *request) (*state.Changes, error) {
	r.reply = make(chan reply, 1)
	select {
	case a.requests <- r:
	case <-ctx.Done():
		return nil, ctx.Err()
	}
	select {
	case done := <-r.reply:
		return done.changes, done.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

// begin starts a Refresh.
func (a *Agent) begin(r *request) {
	now := time.Now()
	r.began, r.deadline, r.before = now, now.Add(waitTime), a.State()
	a.waiting, a.othersDue = append(a.waiting, r), true
	a.paced = time.Time{}
	a.session.Hurry(now)
	r.metadata = a.Poller.Refresh(r.mac, now)
	a.askOfLeases()
	for _, l := range a.links {
		l.gone.hurry = true
		switch l.state {
		case state.ENIShadowed, state.ENIOverridden:
			// The files that are the reason may have changed since networkd read them. A
			// reload touches no link whose files have not.
			a.session.NeedReload()
			l.since = now
		case state.ENIDegraded:
			a.session.NeedReload()
		}
	}
}

// finish ends the Refreshes that are done.
func (a *Agent) finish(now time.Time) {
	a.waiting = slices.DeleteFunc(a.waiting, func(r *request) bool {
		late := !now.Before(r.deadline)
		if !late && !a.read(r, now) {
			return false
		}
		settled := !a.session.ReloadDue() && !slices.ContainsFunc(a.State().Interfaces, func(i state.Interface) bool {
			contested := i.State == state.ENIContested && len(i.Missing) > 0
			return (i.State == state.ENIConfiguring || contested) && r.of(i.MAC)
		})
		if r.wait && !late && !settled {
			return false
		}
		r.metadata.End()
		if err := r.metadata.Err(); err != nil {
			r.reply <- reply{err: err}
			return true
		}
		r.reply <- reply{changes: a.changes(r, settled)}
		return true
	})
}

// of tells whether a Refresh is one of an ENI.
func (r *request) of(mac string) bool { return r.mac == "" || r.mac == mac }

// read reports whether the metadata that a Refresh waits for were read, and the result passed on.
func (a *Agent) read(r *request, now time.Time) bool {
	return !a.Poller.Known().Reachable || (a.passAt.IsZero() && r.metadata.Done(now))
}

func errorText(err error) string {
	if err == nil {
		return ""
	}
	return err.Error()
}

// changes is what a Refresh did.
func (a *Agent) changes(r *request, settled bool) *state.Changes {
	now := a.State()
	c := &state.Changes{
		FilesWritten: orEmpty(r.written), FilesRemoved: orEmpty(r.removed), Reloaded: r.reloaded, Settled: settled,
		Interfaces: state.Diff(r.before, now, r.mac),
	}
	return c
}

func orEmpty(s []string) []string {
	if s == nil {
		return []string{}
	}
	return s
}
