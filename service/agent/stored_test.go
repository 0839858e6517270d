package agent

import (
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// E10: what a restart needs is stored as soon as it can be, without an event; what is not
// stored is said once, and in the state.
func TestStoredLater(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.own = "own"
		blocked := filepath.Join(w.dir, w.own)
		if err := os.WriteFile(blocked, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		settle(time.Hour)
		must(t, a, "ens6", state.ENIConfigured)
		if s := a.State(); s.State != state.Configured || !strings.Contains(s.Reason, "writing "+blocked) {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
		said := 0
		w.set(func() {
			for _, line := range w.log {
				if strings.Contains(line, "Failed to keep") {
					said++
				}
			}
		})
		if said != 3 {
			t.Errorf("three files are not stored, which is said %d times in an hour", said)
		}
		if err := errors.Join(os.Remove(blocked), os.Mkdir(blocked, 0o700)); err != nil {
			t.Fatal(err)
		}
		settle(11 * time.Second)
		for _, name := range []string{"views.json", "boot.json", "rules.json"} {
			text, err := os.ReadFile(filepath.Join(blocked, name))
			if err != nil || !strings.Contains(string(text), "10.0.1.21") {
				t.Errorf("%s has %s, %v", name, text, err)
			}
		}
		if s := a.State(); s.Reason != "" {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
		// Removed while it runs, they are back when that is noticed.
		if err := os.RemoveAll(blocked); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Minute)
		stop()
		w.set(func() {
			w.errs[""], w.errs[macOf(1)] = &metadata.Error{Kind: metadata.Unreachable}, &metadata.Error{Kind: metadata.Unreachable}
		})
		a, stop = w.start(t)
		defer stop()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// E10: generated files that could not be written are written within seconds of the time from
// which they can be, and meanwhile the state says what is in the way.
func TestWrittenLater(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		dir := filepath.Join(w.dir, plan.Directory)
		if err := errors.Join(os.RemoveAll(dir), os.MkdirAll(filepath.Dir(dir), 0o755), os.WriteFile(dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(20 * time.Minute)
		if got := must(t, a, "ens6", state.ENIDegraded); !strings.Contains(got.Reason, plan.Directory) {
			t.Errorf("%+v", got)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		settle(12 * time.Second)
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// J2: a file of others that cannot be read is named once, in the log and in the state.
func TestUnreadIsSaid(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		dir := filepath.Join(w.dir, "etc/systemd/network/80-ec2.network.d")
		if err := errors.Join(os.MkdirAll(filepath.Dir(dir), 0o755), os.WriteFile(dir, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		settle(time.Hour)
		must(t, a, "ens5", state.ENIConfigured)
		said := 0
		w.set(func() {
			for _, line := range w.log {
				if strings.Contains(line, "Failed to read files") && strings.Contains(line, dir) {
					said++
				}
			}
		})
		if s := a.State(); said != 1 || s.State != state.Configured || !strings.Contains(s.Reason, dir) {
			t.Errorf("said %d times; the state is %s: %s", said, s.State, s.Reason)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		settle(2 * time.Minute)
		if s := a.State(); s.Reason != "" {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
	})
}
