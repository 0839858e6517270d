package agent

import (
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// nextBoot is what a boot finds of the last one: the hint alone.
func (w *world) nextBoot(t *testing.T) {
	t.Helper()
	w.set(func() {
		for _, gone := range []string{"views.json", plan.Directory} {
			if err := os.RemoveAll(filepath.Join(w.dir, gone)); err != nil {
				t.Fatal(err)
			}
		}
		w.apply()
	})
}

func (w *world) hintFile(t *testing.T) (string, time.Time) {
	t.Helper()
	file := filepath.Join(w.dir, "boot.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), info.ModTime()
}

// E1, E3, C9: what one boot knew makes the files of the next before its metadata answers;
// it is written when it differs, and is nothing but a hint.
func TestHintOfLastBoot(t *testing.T) {
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		_, stop := w.start(t)
		settle(time.Minute)
		text, written := w.hintFile(t)
		settle(time.Hour)
		if now, at := w.hintFile(t); now != text || !at.Equal(written) {
			t.Errorf("the hint was written again:\n%s\nbefore:\n%s", now, text)
		}
		stop()

		// The metadata says nothing yet.
		w.nextBoot(t)
		w.set(func() {
			for _, mac := range []string{"", macOf(0), macOf(1)} {
				w.errs[mac] = &metadata.Error{Kind: metadata.Unreachable}
			}
		})
		a, stop := w.start(t)
		settle(time.Minute)
		for i, name := range []string{"ens5", "ens6"} {
			got := must(t, a, name, state.ENIPending)
			if !strings.Contains(got.Reason, "last boot") || got.Metric != 512+i {
				t.Errorf("%+v", got)
			}
		}
		if content := w.store.Read(plan.NetworkDropIn("ens6")); !strings.Contains(content, "Table=10001") {
			t.Errorf("the drop-in:\n%s", content)
		}
		_, reloads, _ := w.counts()
		w.set(func() { clear(w.errs) })
		settle(5 * time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		must(t, a, "ens6", state.ENIConfigured)
		if _, now, _ := w.counts(); now != reloads {
			t.Errorf("%d reloads to confirm what was right", now-reloads)
		}
		stop()

		// Another instance with the same ENIs: nothing of it counts once that is known.
		w.nextBoot(t)
		w.set(func() {
			w.instance.ID = "i-0fedcba9876543210"
			w.errs[macOf(1)] = &metadata.Error{Kind: metadata.Unreachable}
		})
		a, stop = w.start(t)
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIPending); strings.Contains(got.Reason, "last boot") {
			t.Errorf("the hint of another instance: %+v", got)
		}
		stop()

		// A file that cannot be used is none, and is said.
		for _, bad := range []string{"", "{", `{"instance":{"primaryMac":"x"}}`,
			strings.Replace(text, "10.0.1.20", "10.0.1.20/32\\n[Match]", 1)} {
			w.nextBoot(t)
			w.set(func() { w.log = nil })
			if err := os.WriteFile(filepath.Join(w.dir, "boot.json"), []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			a, stop = w.start(t)
			settle(time.Second)
			must(t, a, "ens5", state.ENIConfigured)
			w.set(func() {
				if !strings.Contains(strings.Join(w.log, ""), "What the last boot knew cannot be used") {
					t.Errorf("%q: log %q", bad, w.log)
				}
			})
			stop()
		}
	})
}
