package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// contents are the generated files with what they say.
func (w *world) contents(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	dir := filepath.Join(w.dir, plan.Directory)
	err := filepath.WalkDir(dir, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.ReadFile(p)
		if target, isLink := os.Readlink(p); isLink == nil {
			text, err = []byte(target), nil
		}
		found[strings.TrimPrefix(p, dir)] = string(text)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// F12: whatever of the generated files somebody removes is there again as it was, with one
// reload, and no address or rule goes meanwhile.
func TestRemoved(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.own = "own"
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		// It comes while the daemon runs, so its drop-in is not that of one that was there first.
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		before, addresses := w.contents(t), w.addresses("ens6")
		if !strings.Contains(before["/70-ens6.network.d/50-ec2netd.conf"], "Address=10.0.1.20/24") {
			t.Fatalf("the primary address does not stand in the drop-in:\n%s", before["/70-ens6.network.d/50-ec2netd.conf"])
		}
		for _, removed := range []string{
			"70-ens6.network", "70-ens6.network.d", "70-ens6.network.d/50-ec2netd.conf", "70-ens5.link", "70-ens5.link.d", plan.HoldName, "80-ec2.network.d", "",
		} {
			// That of a link without alternative names tells networkd nothing.
			want := 1
			if strings.Contains(removed, ".link") || removed == plan.HoldName {
				want = 0
			}
			_, reloads, _ := w.counts()
			runs := w.runs
			if err := os.RemoveAll(filepath.Join(w.dir, plan.Directory, removed)); err != nil {
				t.Fatal(err)
			}
			a.Restore(t.Context())
			for name, text := range before {
				if now := w.contents(t)[name]; now != text {
					t.Errorf("after the removal of %q, %s has\n%s\nbefore\n%s", removed, name, now, text)
				}
			}
			settle(20 * time.Second)
			if _, now, _ := w.counts(); now != reloads+want {
				t.Errorf("%d reloads after the removal of %q", now-reloads, removed)
			}
			if got := w.addresses("ens6"); !slices.Equal(got, addresses) || w.runs != runs {
				t.Errorf("after the removal of %q: addresses %v, before %v; orphans removed %d times", removed, got, addresses, w.runs-runs)
			}
			must(t, a, "ens6", state.ENIConfigured)
		}
		// What the daemon keeps for a restart, the same way.
		for _, name := range []string{"own/views.json", "own/rules.json", "own/boot.json"} {
			text, err := os.ReadFile(filepath.Join(w.dir, name))
			if err := errors.Join(err, os.Remove(filepath.Join(w.dir, name))); err != nil {
				t.Fatal(err)
			}
			a.Restore(t.Context())
			if now, err := os.ReadFile(filepath.Join(w.dir, name)); err != nil || string(now) != string(text) {
				t.Errorf("%s has\n%s\nbefore\n%s\n%v", name, now, text, err)
			}
		}
		// Whoever knows that they can be written need not wait for the next try.
		own := filepath.Join(w.dir, w.own)
		if err := errors.Join(os.RemoveAll(own), os.WriteFile(own, nil, 0o600)); err != nil {
			t.Fatal(err)
		}
		w.ring()
		settle(10 * time.Minute)
		if reason := a.State().Reason; !strings.Contains(reason, own) {
			t.Errorf("the state does not say what cannot be written: %s", reason)
		}
		if err := errors.Join(os.Remove(own), os.Mkdir(own, 0o700)); err != nil {
			t.Fatal(err)
		}
		a.Restore(t.Context())
		for _, name := range []string{"views.json", "rules.json", "boot.json"} {
			if _, err := os.Stat(filepath.Join(own, name)); err != nil {
				t.Error(err)
			}
		}
	})
}

// F12: while the files cannot be written, since the sandbox has not the directory, nothing is
// taken for unwanted that stood in them; then all is as it was.
func TestRemovedForAWhile(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.own = "own"
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		before, addresses, rules := w.contents(t), w.addresses("ens6"), len(w.rules)
		w.set(func() { w.restoreErr = errors.New("it is gone") })
		if err := os.RemoveAll(filepath.Join(w.dir, plan.Directory)); err != nil {
			t.Fatal(err)
		}
		w.ring()
		settle(10 * time.Minute)
		if got := must(t, a, "ens6", state.ENIDegraded); !strings.Contains(got.Reason, "it is gone") {
			t.Errorf("%+v", got)
		}
		if w.runs != 0 || len(w.rules) != rules || !slices.Equal(w.addresses("ens6"), addresses) {
			t.Errorf("orphans were removed %d times; rules %v; addresses %v", w.runs, w.rules, w.addresses("ens6"))
		}
		w.set(func() { w.restoreErr = nil })
		a.Restore(t.Context())
		if now := w.contents(t); len(now) != len(before) {
			t.Errorf("files %v, before %v", now, before)
		}
		for name, text := range w.contents(t) {
			if text != before[name] {
				t.Errorf("%s has\n%s\nbefore\n%s", name, text, before[name])
			}
		}
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if w.runs != 0 || !slices.Equal(w.addresses("ens6"), addresses) {
			t.Errorf("orphans were removed %d times; addresses %v", w.runs, w.addresses("ens6"))
		}
	})
}
