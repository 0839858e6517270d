package networkd

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/status"
)

// peer is a networkd for a Session.
type peer struct {
	owner              string
	ownerErr           error
	reloadErr          error
	why                status.Code
	lasting, varlink   bool
	reloads, questions int
	anew               []int
	applied            *Applied
	appliedErr         error
}

func (p *peer) Owner(context.Context) (string, error) { return p.owner, p.ownerErr }

func (p *peer) Reload(context.Context) error {
	p.reloads++
	return p.reloadErr
}

func (p *peer) Reconfigure(_ context.Context, index int) error {
	p.anew = append(p.anew, index)
	return nil
}

func (p *peer) Varlink() bool { return p.varlink }

func (p *peer) WhyNotRunning(context.Context) (status.Code, bool) { return p.why, p.lasting }

func (p *peer) Applied(context.Context) (*Applied, error) {
	p.questions++
	return p.applied, p.appliedErr
}

// talk is a session with a networkd, in a bubble of its own.
type talk struct {
	*peer
	*Session
	t    *testing.T
	hold bool
	log  bytes.Buffer
}

func inTalk(t *testing.T, test func(t *testing.T, s *talk)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) {
		s := &talk{peer: &peer{owner: ":1.7", applied: &Applied{Snapshot: &kernel.Snapshot{}}}, t: t}
		s.Session = NewSession(SessionOptions{Manager: s.peer, Hold: func() bool { return s.hold }, Log: slog.New(slog.NewTextHandler(&s.log, nil))})
		s.Begin(t.Context())
		test(t, s)
	})
}

func (s *talk) step() Outcome {
	s.t.Helper()
	return s.Step(s.t.Context(), time.Now())
}

// rest is the time until the session wants to step again, 0 for not at all.
func (s *talk) rest() time.Duration {
	next := s.Schedule(time.Now(), false, false)
	if next.IsZero() {
		return 0
	}
	return time.Until(next)
}

func (s *talk) warnings() int { return strings.Count(s.log.String(), "level=WARN") }

// A reload that is due is asked for once, and one that fails again, later each time (D6, I1).
func TestReload(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		if got := s.step(); got != (Outcome{Another: true}) || s.rest() != 0 || s.reloads != 0 {
			t.Fatalf("nothing is due: %+v, %d reloads", got, s.reloads)
		}
		s.NeedReload()
		if got := s.step(); got != (Outcome{Asked: true, Reloaded: true}) || s.ReloadDue() || s.rest() != 0 || !s.Reloaded().Equal(time.Now()) {
			t.Fatalf("%+v, due: %v", got, s.ReloadDue())
		}
		s.reloadErr = errors.New("busy")
		s.NeedReload()
		for range 30 {
			if got := s.step(); got != (Outcome{Asked: true}) || s.LastError() != "busy" || !s.ReloadDue() {
				t.Fatalf("%+v, %q, due: %v", got, s.LastError(), s.ReloadDue())
			}
			if got := s.step(); got != (Outcome{}) {
				t.Fatalf("at once: %+v", got)
			}
			next := s.rest()
			if next < stepTime || next > slowestReload {
				t.Fatalf("again in %s", next)
			}
			time.Sleep(next)
		}
		s.step()
		if next := s.rest(); next < slowestReload*9/10 || s.warnings() != 1 {
			t.Errorf("again in %s, %d warnings", next, s.warnings())
		}
		s.reloadErr = nil
		if s.NeedReload(); s.step().Asked {
			t.Error("a reload that is due for longer hurries")
		}
		if s.NeedReloadNow(); !s.step().Reloaded || s.LastError() != "" {
			t.Errorf("a change waits for what failed before: %q", s.LastError())
		}
		if s.warnings() != 1 || s.Reloads() != uint64(s.reloads) {
			t.Errorf("%d warnings, %d reloads of %d:\n%s", s.warnings(), s.Reloads(), s.reloads, &s.log)
		}
	})
}

// A Refresh, and another networkd, end the wait after a failure too.
func TestReloadHurried(t *testing.T) {
	for name, hurry := range map[string]func(s *talk){
		"Refresh":          func(s *talk) { s.Hurry(time.Now()) },
		"another networkd": func(s *talk) { s.owner = ":1.8" },
	} {
		inTalk(t, func(t *testing.T, s *talk) {
			s.reloadErr = errors.New("busy")
			s.NeedReload()
			s.step()
			s.reloadErr = nil
			if s.step().Asked {
				t.Errorf("%s: it does not wait", name)
			}
			if hurry(s); !s.step().Reloaded {
				t.Errorf("%s: it waits", name)
			}
		})
	}
}

// Files of a link that has gone cost no reload before there is another link (C2).
func TestRemoved(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		s.NeedReloadOfRemoved()
		if s.ReloadDue() {
			t.Error("nothing was removed")
		}
		if s.Removed(); s.ReloadDue() {
			t.Error("a removal is no reason")
		}
		if s.NeedReloadOfRemoved(); !s.ReloadDue() {
			t.Error("networkd has the files in memory")
		}
		s.step()
		if s.NeedReloadOfRemoved(); s.ReloadDue() {
			t.Error("networkd has forgotten the files")
		}
	})
}

// What networkd has read is on disk at its start and at a reload.
func TestHoldRead(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		s.step()
		s.hold = true
		if s.step(); s.HoldRead() {
			t.Error("it has not read the unit")
		}
		s.NeedReload()
		if s.step(); !s.HoldRead() {
			t.Error("it has read the unit")
		}
		s.hold, s.owner = false, ":1.8"
		if s.step(); s.HoldRead() {
			t.Error("another one has started")
		}
	})
}

// That networkd does not run is told when it is clear that it lasts, and why it does not.
func TestAbsent(t *testing.T) {
	for name, test := range map[string]struct {
		why     status.Code
		lasting bool
		after   time.Duration
	}{
		"starts":    {status.NetworkdStarting, false, absentTime},
		"is masked": {status.NetworkdMasked, true, startTime},
	} {
		inTalk(t, func(t *testing.T, s *talk) {
			s.step()
			s.varlink = true
			s.Session.Varlink()
			s.owner, s.why, s.lasting, s.varlink = "", test.why, test.lasting, false
			if !s.Session.Varlink() {
				t.Errorf("%s: the socket goes before the name", name)
			}
			began := time.Now()
			if got := s.step(); !got.Another || s.Running() || s.Session.Varlink() {
				t.Errorf("%s: %+v, running: %v", name, got, s.Running())
			}
			s.NeedReload()
			for s.Why().None() && time.Since(began) < time.Minute {
				next := s.rest()
				if next != stepTime {
					t.Fatalf("%s: again in %s", name, next)
				}
				time.Sleep(next)
				if got := s.step(); got != (Outcome{}) {
					t.Fatalf("%s: %+v", name, got)
				}
			}
			if took := time.Since(began); s.Why().Code != test.why || took < test.after || took > test.after+2*stepTime {
				t.Errorf("%s: %v after %s", name, s.Why().Code, took)
			}
			if s.rest() != 0 || s.BusSilent() || s.warnings() != 1 {
				t.Errorf("%s: bus silent: %v, %d warnings", name, s.BusSilent(), s.warnings())
			}
			s.owner = ":1.8"
			if got := s.step(); got != (Outcome{Another: true, Asked: true, Reloaded: true}) || !s.Running() || !s.Why().None() {
				t.Errorf("%s: %+v, running: %v, %v", name, got, s.Running(), s.Why())
			}
		})
	}
}

// A bus that does not answer is asked again, less and less often.
func TestBusSilent(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		s.step()
		s.ownerErr = ErrNoBus
		want := firstSilence
		for range 12 {
			s.step()
			if next := s.rest(); next != want || !s.BusSilent() || s.Running() || s.Why().Code != status.BusSilent {
				t.Fatalf("again in %s, not %s; silent: %v, running: %v, %v", next, want, s.BusSilent(), s.Running(), s.Why())
			}
			time.Sleep(want)
			want = min(2*want, slowestSilence)
		}
		s.ownerErr = nil
		if got := s.step(); got.Another || s.BusSilent() || !s.Running() || !s.Why().None() || s.rest() != 0 {
			t.Errorf("%+v, silent: %v, running: %v, %v", got, s.BusSilent(), s.Running(), s.Why())
		}
		s.ownerErr = ErrNoBus
		if s.step(); s.rest() != firstSilence {
			t.Error("it was silent before, and that counts")
		}
	})
}

// A link is configured anew for routes of an old metric, and again if that does not help, later
// each time.
func TestReconfigure(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		ask := func(metric int) (due, first bool) {
			due, first = s.ReconfigureDue(3, metric, time.Now())
			if due {
				if err := s.Session.Reconfigure(t.Context(), 3, metric, time.Now()); err != nil {
					t.Fatal(err)
				}
			}
			return due, first
		}
		if due, first := ask(512); !due || !first {
			t.Fatalf("due: %v, first: %v", due, first)
		}
		if at, metric := s.Reconfigured(3); !at.Equal(time.Now()) || metric != 512 {
			t.Errorf("at %s for %d", at, metric)
		}
		for wait := reconfigureTime; wait < 2*slowestReconfigure; wait *= 2 {
			time.Sleep(min(wait, slowestReconfigure) - time.Millisecond)
			if due, first := ask(512); due || first {
				t.Errorf("before %s: due: %v, first: %v", wait, due, first)
			}
			time.Sleep(time.Millisecond)
			if due, first := ask(512); !due || first {
				t.Errorf("after %s: due: %v, first: %v", wait, due, first)
			}
		}
		if due, first := ask(613); !due || !first {
			t.Errorf("another metric: due: %v, first: %v", due, first)
		}
		time.Sleep(reconfiguredTime - time.Millisecond)
		s.ReconfigureDone(3, time.Now())
		if _, first := s.ReconfigureDue(3, 613, time.Now()); first {
			t.Error("the routes may only be gone for a moment")
		}
		time.Sleep(time.Millisecond)
		s.ReconfigureDone(3, time.Now())
		if due, first := s.ReconfigureDue(3, 613, time.Now()); !due || !first {
			t.Errorf("the routes were gone: due: %v, first: %v", due, first)
		}
		s.Forget(3)
		if at, metric := s.Reconfigured(3); !at.IsZero() || metric != 0 {
			t.Errorf("the link has gone, and was configured at %s for %d", at, metric)
		}
		for _, index := range s.peer.anew {
			if index != 3 {
				t.Errorf("link %d was configured", index)
			}
		}
	})
}
