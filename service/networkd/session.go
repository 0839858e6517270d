package networkd

import (
	"context"
	"log/slog"
	"time"

	"ec2netd/service/journal"
	"ec2netd/service/schedule"
	"ec2netd/service/status"
)

// Times of a [Session].
const (
	// startTime is how long networkd may be missing before systemd is asked why: at boot
	// systemd cannot be asked yet either.
	startTime = time.Second
	// absentTime is how long it may be missing before that is worth a word: it starts after
	// this daemon, and is away for a moment when it is restarted.
	absentTime = 5 * time.Second
	// stepTime is the time to the next step while a reload is due or networkd is expected.
	stepTime = 400 * time.Millisecond
	// firstSilence and slowestSilence bound the time between two steps while the bus does not
	// answer.
	firstSilence   = 40 * time.Millisecond
	slowestSilence = 5 * time.Second
	// firstReload and slowestReload bound the time between two reloads that fail.
	firstReload   = 400 * time.Millisecond
	slowestReload = time.Minute
	// reconfigureTime is how long networkd has to remove routes of an old metric before it is
	// asked again; it doubles up to slowestReconfigure.
	reconfigureTime    = 2 * time.Second
	slowestReconfigure = 10 * time.Minute
	// reconfiguredTime is how long a link must have no such routes before they count as
	// removed: while networkd configures a link anew, none of its routes are there.
	reconfiguredTime = 15 * time.Second
)

// Manager is how a [Session] talks to networkd. A [Client] is one.
type Manager interface {
	Owner(ctx context.Context) (string, error)
	Reload(ctx context.Context) error
	Reconfigure(ctx context.Context, index int) error
	Varlink() bool
	WhyNotRunning(ctx context.Context) (why status.Code, lasting bool)
	Applied(ctx context.Context) (*Applied, error)
}

// SessionOptions are the options of a [Session]. All fields are needed.
type SessionOptions struct {
	Manager Manager
	// Hold reports whether the unit is on disk that has networkd leave new links alone.
	Hold func() bool
	Log  *slog.Logger
}

// Session is the conversation with networkd: what it is still to be asked for and when, what it
// has answered, and whether it runs. Make one with [NewSession].
//
// It starts nothing by itself but the questions of its [Inquiry]: its user calls [Session.Step] in
// each pass, and [Session.Schedule] at the end of it. Its methods are not for several goroutines.
type Session struct {
	SessionOptions
	// Applied asks networkd what it has applied.
	Applied *Inquiry

	said     journal.Once
	presence presence
	reload   reload
	// holdRead: networkd has read the unit that has it leave new links alone.
	holdRead bool
	// anew are the links that networkd was asked to configure anew, by their index.
	anew map[int]reconfiguration
}

// presence is whether networkd runs.
type presence struct {
	running bool
	// owner is its name on the bus. varlink: it has had its Varlink socket.
	owner   string
	varlink bool
	// absent is since when it does not run, zero while it does, and why the reason, if that is
	// worth a word.
	absent time.Time
	why    status.Reason
	// silent: the bus does not answer. delay is the time between the last two steps meanwhile.
	silent bool
	delay  time.Duration
}

// reload is whether networkd is to be asked to reload, and what came of it when it was.
type reload struct {
	due bool
	// try is when, if networkd has failed to reload, and err how.
	try schedule.Try
	err string
	// removed: files were removed without a reload, so that networkd still has them in memory.
	removed bool
	// last is when networkd last answered that it has reloaded, and count how often it was asked.
	last  time.Time
	count uint64
}

// reconfiguration is the last request for a link to be configured anew.
type reconfiguration struct {
	at time.Time
	// metric is the one that routes by DHCP were to have then.
	metric int
	// again is how long to wait before networkd is asked for the same metric again, 0 while
	// there is no need.
	again time.Duration
}

// NewSession returns a session. It asks for nothing before Begin.
func NewSession(options SessionOptions) *Session {
	s := &Session{SessionOptions: options, Applied: newInquiry(options.Manager, options.Log), anew: make(map[int]reconfiguration)}
	s.said.Log = options.Log
	return s
}

// Begin finds out whether networkd runs, before the first step. It has read the files that an
// earlier run of the daemon left.
func (s *Session) Begin(ctx context.Context) {
	s.holdRead = s.Hold()
	if owner, err := s.Manager.Owner(ctx); err == nil {
		s.presence.running = owner != ""
	}
}

// Running reports whether networkd runs, as of the last step.
func (s *Session) Running() bool { return s.presence.running }

// BusSilent reports whether the bus did not answer at the last step. Then nobody knows whether
// networkd runs, and Running is false.
func (s *Session) BusSilent() bool { return s.presence.silent }

// Why is the reason why networkd does not run. There is none while it runs, and none while it may
// be about to start.
func (s *Session) Why() status.Reason { return s.presence.why }

// Varlink reports whether the networkd that runs has its Varlink socket, or has had it: one that
// stops removes the socket before it gives up its name (facts: restart).
func (s *Session) Varlink() bool {
	s.presence.varlink = s.presence.varlink || s.Manager.Varlink()
	return s.presence.varlink
}

// HoldRead reports whether networkd has read the unit that has it leave new links alone.
func (s *Session) HoldRead() bool { return s.holdRead }

// NeedReload has the next step ask networkd to reload, or a later one where it has just failed to.
func (s *Session) NeedReload() { s.reload.due = true }

// NeedReloadNow is NeedReload for something new, of which earlier failures say nothing.
func (s *Session) NeedReloadNow() { s.reload.due, s.reload.try = true, schedule.Try{} }

// Removed notes that files were removed that need no reload: those of a link that has gone,
// which networkd has forgotten already (C2).
func (s *Session) Removed() { s.reload.removed = true }

// NeedReloadOfRemoved is NeedReload where networkd has files in memory that were removed: it would
// configure a new link by them if they matched.
func (s *Session) NeedReloadOfRemoved() { s.reload.due = s.reload.due || s.reload.removed }

// ReloadDue reports whether networkd is to be asked to reload.
func (s *Session) ReloadDue() bool { return s.reload.due }

// Reloads is how often networkd was asked to reload.
func (s *Session) Reloads() uint64 { return s.reload.count }

// Reloaded is when networkd last answered that it has reloaded, zero if it has not.
func (s *Session) Reloaded() time.Time { return s.reload.last }

// LastError is how networkd failed to reload, empty if it did the last time.
func (s *Session) LastError() string { return s.reload.err }

// Hurry forgets what networkd failed to do, for somebody who waits: it is asked again without
// further delay.
func (s *Session) Hurry(now time.Time) {
	s.reload.try = schedule.Try{}
	s.Applied.hurry(now)
}

// Outcome is what a step has found and done.
type Outcome struct {
	// Another: another networkd runs than at the step before, or none. It configures all links.
	Another bool
	// Asked: networkd was asked to reload. Reloaded: it has done so.
	Asked, Reloaded bool
}

// Step finds out whether networkd runs, and asks it to reload if that is due.
func (s *Session) Step(ctx context.Context, now time.Time) (outcome Outcome) {
	p := &s.presence
	p.silent = false
	owner, err := s.Manager.Owner(ctx)
	if err != nil {
		// Early at boot networkd reads the files when it starts, without being asked.
		p.silent, p.running, p.why = true, false, status.Reason{Code: status.BusSilent}
		return outcome
	}
	p.running, p.why, p.delay = owner != "", status.Reason{}, 0
	if owner != p.owner {
		outcome.Another = true
		p.owner, p.varlink, s.reload.try = owner, false, schedule.Try{}
		s.holdRead = s.Hold()
		s.Applied.restart()
	}
	if !p.running {
		s.stepAbsent(ctx, now)
		return outcome
	}
	p.absent = time.Time{}
	s.said.Clear("networkd")
	if !s.reload.due || now.Before(s.reload.try.Next) {
		return outcome
	}
	outcome.Asked, outcome.Reloaded = true, s.stepReload(ctx, now)
	return outcome
}

// stepAbsent says why networkd does not run, if that lasts.
func (s *Session) stepAbsent(ctx context.Context, now time.Time) {
	p := &s.presence
	if p.absent.IsZero() {
		p.absent = now
	}
	if now.Sub(p.absent) < startTime {
		return
	}
	why, lasting := s.Manager.WhyNotRunning(ctx)
	if lasting || now.Sub(p.absent) > absentTime {
		p.why = status.Reason{Code: why}
		s.said.Warn("networkd", "Nothing can be configured", "reason", p.why.Words())
	}
}

// stepReload asks networkd to reload, and reports whether it has.
func (s *Session) stepReload(ctx context.Context, now time.Time) bool {
	r := &s.reload
	r.count++
	defer func() { s.Log.Debug("asked networkd to reload", "took", time.Since(now).String()) }()
	if err := s.Manager.Reload(ctx); err != nil {
		r.err = err.Error()
		r.try.Delay = schedule.Double(r.try.Delay, firstReload, slowestReload)
		r.try.Next = time.Now().Add(schedule.Jitter(r.try.Delay))
		s.said.Warn("reload", "networkd did not reload; trying again", "reason", err.Error())
		return false
	}
	s.said.Clear("reload")
	*r = reload{last: time.Now(), count: r.count}
	s.holdRead = s.Hold()
	return true
}

// Schedule takes what a pass has found after its step, and returns when to step again, zero if
// not before something happens. stale: what networkd has applied is not known of
// some link, see [Inquiry.Fresh]. disputed: networkd does not count something as its own that is
// there.
func (s *Session) Schedule(now time.Time, stale, disputed bool) (next time.Time) {
	p := &s.presence
	s.Applied.schedule(now, p.running, stale, disputed)
	switch {
	case p.silent:
		// Nobody tells when the bus comes up.
		p.delay = schedule.Double(p.delay, firstSilence, slowestSilence)
		return now.Add(p.delay)
	case p.running && s.reload.due:
		return now.Add(max(s.reload.try.Next.Sub(now), stepTime))
	case !p.running && p.why.None():
		return now.Add(stepTime)
	}
	return time.Time{}
}

// Reconfigured returns when networkd was last asked to configure a link anew, zero if it was not,
// and the metric that its routes by DHCP were to have then.
func (s *Session) Reconfigured(index int) (at time.Time, metric int) {
	r := s.anew[index]
	return r.at, r.metric
}

// ReconfigureDue reports whether networkd may be asked to configure a link anew that has routes by
// DHCP of another metric than it is to have, and whether that is the first time.
func (s *Session) ReconfigureDue(index, metric int, now time.Time) (due, first bool) {
	r := s.anew[index]
	other := r.metric != metric
	return other || now.Sub(r.at) >= max(r.again, reconfigureTime), other || r.again == 0
}

// Reconfigure asks networkd to configure a link anew for that.
func (s *Session) Reconfigure(ctx context.Context, index, metric int, now time.Time) error {
	again := s.anew[index].again
	if _, first := s.ReconfigureDue(index, metric, now); first {
		again = reconfigureTime / 2
	}
	// 252 misses some of these where it is reloading. If several do not help, something else
	// than the old metric keeps the routes.
	s.anew[index] = reconfiguration{at: now, metric: metric, again: min(2*again, slowestReconfigure)}
	return s.Manager.Reconfigure(ctx, index)
}

// ReconfigureDone notes that a link has no routes by DHCP of another metric. If that lasts, the
// next that it has are new ones.
func (s *Session) ReconfigureDone(index int, now time.Time) {
	if r, asked := s.anew[index]; asked && now.Sub(r.at) >= max(r.again, reconfiguredTime) {
		r.again = 0
		s.anew[index] = r
	}
}

// Forget ends what goes on for a link that has gone.
func (s *Session) Forget(index int) { delete(s.anew, index) }
