package networkd

import (
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/service/kernel"
)

// settle is a loop that runs for a time: it asks when it is time to, takes answers, and makes a
// pass at first and after each answer.
func (s *talk) settle(d time.Duration, stale func() bool, disputed bool) {
	s.t.Helper()
	i, end := s.Session.Applied, time.Now().Add(d)
	s.Schedule(time.Now(), stale(), disputed)
	for {
		i.Ask(s.t.Context(), time.Now())
		synctest.Wait()
		select {
		case answer := <-i.Answers():
			if i.Take(answer, time.Now()) {
				s.Schedule(time.Now(), stale(), disputed)
			}
			continue
		default:
		}
		if next := i.Next(); next.IsZero() || next.After(end) {
			break
		}
		time.Sleep(time.Until(i.Next()))
	}
	time.Sleep(time.Until(end))
}

// allFresh: nothing is stale.
func allFresh() bool { return false }

// networkd is asked when what changes has come to rest, and not again before something changes
// (H4).
func TestInquiry(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		s.step()
		i := s.Session.Applied
		if i.Fresh(0) || i.Snapshot() != nil {
			t.Fatal("it has said nothing")
		}
		s.applied = &Applied{Snapshot: &kernel.Snapshot{}, Leases: map[int]Lease{3: {Known: true, MTU: 9001}}}
		s.settle(time.Hour, allFresh, false)
		if s.questions != 1 || !i.Fresh(0) || i.Lease(3).MTU != 9001 || !i.Next().IsZero() {
			t.Fatalf("%d questions, fresh: %v, %+v", s.questions, i.Fresh(0), i.Lease(3))
		}
		same := i.Snapshot()
		changed := i.Changed()
		if i.Fresh(changed) || !i.Fresh(0) {
			t.Error("one thing has changed, and not the other")
		}
		s.settle(appliedDelay-10*time.Millisecond, func() bool { return !i.Fresh(changed) }, false)
		if s.questions != 1 {
			t.Error("it is asked before the change is over")
		}
		// The answer says the same as before, in other words.
		s.applied = &Applied{Snapshot: &kernel.Snapshot{}}
		s.settle(time.Hour, func() bool { return !i.Fresh(changed) }, false)
		if s.questions != 2 || !i.Fresh(changed) || i.Snapshot() != same || i.Lease(3).Known {
			t.Errorf("%d questions, fresh: %v", s.questions, i.Fresh(changed))
		}
		if i.WantLeases(); !i.Fresh(changed) {
			t.Error("leases make nothing else stale")
		}
		if s.settle(time.Hour, allFresh, false); s.questions != 3 {
			t.Errorf("%d questions for the leases", s.questions-2)
		}
		for range 200 {
			changed = i.Changed()
			s.settle(10*time.Millisecond, func() bool { return !i.Fresh(changed) }, false)
		}
		if n := s.questions - 3; n < 5 || n > 7 {
			t.Errorf("%d questions in 2 s of changes", n)
		}
	})
}

// A change while networkd is asked counts for the next question.
func TestInquiryLate(t *testing.T) {
	inTalk(t, func(t *testing.T, s *talk) {
		s.step()
		i := s.Session.Applied
		s.Schedule(time.Now(), true, false)
		time.Sleep(appliedDelay)
		before := i.Changed()
		i.Ask(t.Context(), time.Now())
		during := i.Changed()
		i.Ask(t.Context(), time.Now())
		synctest.Wait()
		if !i.Take(<-i.Answers(), time.Now()) || !i.Fresh(before) || i.Fresh(during) || s.questions != 1 {
			t.Errorf("before: %v, meanwhile: %v, %d questions", i.Fresh(before), i.Fresh(during), s.questions)
		}
		// So does another networkd that has started meanwhile.
		s.settle(time.Second, func() bool { return !i.Fresh(during) }, false)
		i.Changed()
		s.Schedule(time.Now(), true, false)
		time.Sleep(appliedDelay)
		i.Ask(t.Context(), time.Now())
		s.owner = ":1.8"
		s.step()
		synctest.Wait()
		if i.Take(<-i.Answers(), time.Now()); i.Fresh(0) {
			t.Error("the networkd that has gone has the word")
		}
		if s.settle(time.Second, func() bool { return !i.Fresh(0) }, false); !i.Fresh(0) {
			t.Error("the one that runs is not asked")
		}
		s.owner = ""
		s.step()
		if s.settle(time.Hour, func() bool { return true }, false); s.questions != 4 || i.Snapshot() != nil {
			t.Errorf("%d questions, and none runs", s.questions)
		}
	})
}

// A networkd that does not answer, or does not count as its own what is there, is asked again,
// less and less often, and at once for a Refresh.
func TestInquiryAgain(t *testing.T) {
	for name, test := range map[string]struct {
		err      error
		disputed bool
		// least and most bound the number of questions in an hour.
		least, most int
	}{
		"no answer": {errors.New("no"), false, 60, 66},
		"denies":    {nil, true, 15, 21},
	} {
		inTalk(t, func(t *testing.T, s *talk) {
			s.step()
			i := s.Session.Applied
			stale := func() bool { return !i.Fresh(0) }
			s.appliedErr = test.err
			s.settle(time.Hour, stale, test.disputed)
			if s.questions < test.least || s.questions > test.most || s.warnings() > 0 {
				t.Errorf("%s: %d questions in an hour, %d warnings", name, s.questions, s.warnings())
			}
			if next := time.Until(i.Next()); next < time.Second {
				t.Errorf("%s: again in %s", name, next)
			}
			before := s.questions
			s.Hurry(time.Now())
			s.appliedErr = nil
			if s.settle(20*time.Millisecond, stale, test.disputed); s.questions != before+1 {
				t.Errorf("%s: %d questions for a Refresh", name, s.questions-before)
			}
			before = s.questions
			if s.settle(time.Hour, stale, false); s.questions != before || !i.Next().IsZero() {
				t.Errorf("%s: %d questions when all is well", name, s.questions-before)
			}
		})
	}
}
