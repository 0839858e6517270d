package udev

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// applier is udevd for a Queue.
type applier struct {
	calls [][]string
	takes time.Duration
	err   error
}

func (a *applier) Apply(_ context.Context, names []string) error {
	a.calls = append(a.calls, slices.Clone(names))
	err := a.err
	time.Sleep(a.takes)
	return err
}

// TestQueue: links are seen to by one call at a time, which takes them all, and again after a
// failure, later each time. That is worth a word only if it lasts (C4, D6, I1).
func TestQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		udevd := &applier{takes: 10 * time.Second}
		var log bytes.Buffer
		q := NewQueue(udevd, slog.New(slog.NewTextHandler(&log, nil)))
		warnings := func() int { return strings.Count(log.String(), "level=WARN") }
		if q.Step(t.Context(), time.Now()) || !q.Next(time.Now()).IsZero() {
			t.Error("there is nothing to do")
		}
		q.Add("ens5")
		q.Add("ens6")
		q.Add("ens5")
		if !q.Next(time.Now()).Equal(time.Now()) || !q.Step(t.Context(), time.Now()) {
			t.Error("there is something to do")
		}
		q.Add("ens7")
		if q.Step(t.Context(), time.Now()) || !q.Next(time.Now()).IsZero() {
			t.Error("a call is under way")
		}
		if !q.Take(<-q.Ends(), time.Now()) || !q.Step(t.Context(), time.Now()) || !q.Take(<-q.Ends(), time.Now()) {
			t.Error("it has succeeded, and another link waits")
		}
		if !slices.EqualFunc(udevd.calls, [][]string{{"ens5", "ens6"}, {"ens7"}}, slices.Equal) {
			t.Errorf("calls for %q", udevd.calls)
		}
		udevd.takes, udevd.err = 0, errors.New("no")
		q.Add("ens8")
		began := time.Now()
		for last := time.Duration(0); time.Since(began) < time.Hour; {
			if !q.Step(t.Context(), time.Now()) || q.Take(<-q.Ends(), time.Now()) {
				t.Fatal("it is not tried, or succeeds")
			}
			next := time.Until(q.Next(time.Now()))
			if next < firstRetry*9/10 || next > slowestRetry || next < last*8/10 || q.Step(t.Context(), time.Now()) {
				t.Fatalf("again in %s, after %s", next, last)
			}
			if lasts := time.Since(began) >= patience; (warnings() > 0) != lasts {
				t.Fatalf("%d warnings after %s", warnings(), time.Since(began))
			}
			time.Sleep(next)
			last = next
		}
		udevd.err = nil
		q.Add("ens9")
		if !q.Step(t.Context(), time.Now()) || !q.Take(<-q.Ends(), time.Now()) || !q.Next(time.Now()).IsZero() || warnings() != 1 {
			t.Errorf("%d warnings:\n%s", warnings(), &log)
		}
		if last := udevd.calls[len(udevd.calls)-1]; !slices.Equal(last, []string{"ens8", "ens9"}) {
			t.Errorf("the last call is for %q", last)
		}
	})
}
