package agent

import (
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// contents lists what is below the directory of generated files, hidden files and empty
// directories too, without the times.
func contents(t *testing.T, dir string) map[string]string {
	t.Helper()
	out := map[string]string{}
	root := filepath.Join(dir, plan.Directory)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		text, _ := os.ReadFile(p)
		target, _ := os.Readlink(p)
		out[strings.TrimPrefix(p, root)] = target + string(text)
		if d.IsDir() {
			out[strings.TrimPrefix(p, root)] = "directory"
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// C10: killed at any step of any pass, also between the disk and the reload, the daemon
// converges at its next start to the same files and states as if it had not been.
func TestKilledAtEveryStep(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		dir := memory(t)
		// The disk, and what networkd has made of the files that it was told of.
		type moment struct {
			dir    string
			links  []kernel.Link
			routes []kernel.Route
			rules  []kernel.Rule
		}
		var killed []moment
		kill := func() {
			left := filepath.Join(dir, fmt.Sprintf("killed%03d", len(killed)))
			if err := os.CopyFS(left, os.DirFS(w.dir)); err != nil {
				t.Error(err)
			}
			now, err := w.Observe()
			if err != nil {
				t.Error(err)
				return
			}
			killed = append(killed, moment{dir: left, links: now.Links, routes: now.Routes, rules: now.Rules})
		}
		w.store.Step = kill
		w.onReload = kill
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		settle(5 * time.Second)
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.attach(2, "ens7", "10.0.1.30")
		settle(3 * time.Minute)
		w.set(func() { w.views[macOf(2)] = viewOf(2, "10.0.1.30", "10.0.1.31") })
		settle(2 * time.Minute)
		// The two change names, at once: a daemon that saw the one without the other would hold
		// it for a moment, and write its primary address ahead of the lease.
		w.set(func() { w.links[1].Name, w.links[2].Name = "ens7", "ens42" })
		w.ring()
		settle(3 * time.Minute)
		for _, name := range []string{"ens5", "ens7", "ens42"} {
			must(t, a, name, state.ENIConfigured)
		}
		stop()
		want := contents(t, w.dir)
		if len(killed) < 40 {
			t.Fatalf("%d steps", len(killed))
		}
		t.Logf("%d steps", len(killed))
		for _, then := range killed {
			left := then.dir
			next := newWorld(t)
			next.dir = left
			next.store.Root = left
			next.views = maps.Clone(w.views)
			for _, l := range w.links {
				known := slices.IndexFunc(then.links, func(was kernel.Link) bool { return was.Index == l.Index && was.Name == l.Name })
				if known >= 0 {
					next.links = append(next.links, then.links[known])
					next.rules = then.rules
					for _, r := range then.routes {
						if r.Link == l.Index {
							next.routes = append(next.routes, r)
						}
					}
					continue
				}
				// Attached while nobody was there: networkd has the lease.
				l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(a kernel.Address) bool { return a.Prefix.IsSingleIP() })
				l.Altnames = nil
				next.links = append(next.links, l)
				next.routes = append(next.routes, kernel.Route{
					Link: l.Index, Table: kernel.MainTable, Metric: plan.UnknownMetric, Destination: netip.MustParsePrefix("0.0.0.0/0"), Protocol: kernel.ProtocolDHCP,
				})
			}
			// As if it was just being written.
			for _, name := range []string{".views.json123", ".boot.json123", ".rules.json123"} {
				if err := os.WriteFile(filepath.Join(left, name), []byte("{"), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			a, stop := next.start(t)
			settle(3 * time.Minute)
			for _, name := range []string{"ens5", "ens7", "ens42"} {
				must(t, a, name, state.ENIConfigured)
			}
			stop()
			if diff := cmp.Diff(want, contents(t, left)); diff != "" {
				t.Errorf("%s: %s", filepath.Base(left), diff)
			}
			if half, _ := filepath.Glob(filepath.Join(left, ".*")); len(half) > 0 {
				t.Errorf("%s: residue %v", filepath.Base(left), half)
			}
		}
	})
}

// C7: ENIs come and go, and neither goroutines nor memory of them pile up.
func TestCycles(t *testing.T) {
	// Beside no other: it counts the goroutines of the process.
	bubble(t, func(t *testing.T, w *world) {
		w.delay = 20 * time.Millisecond
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(10 * time.Minute)
		files, goroutines := contents(t, w.dir), runtime.NumGoroutine()
		links, said := len(a.links), a.said.Len()
		for n := range 500 {
			w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
			time.Sleep(time.Duration(n*37%200) * time.Millisecond)
			w.detach(1)
			time.Sleep(time.Duration(n*53%200) * time.Millisecond)
		}
		settle(10 * time.Minute)
		if now := runtime.NumGoroutine(); now > goroutines {
			t.Errorf("%d goroutines, %d before", now, goroutines)
		}
		if diff := cmp.Diff(files, contents(t, w.dir)); diff != "" {
			t.Error(diff)
		}
		if enis := len(a.Poller.Known().ENIs); len(a.links) != links || a.said.Len() > said || enis != 1 {
			t.Errorf("%d links, %d ENIs, %d warnings, %d before", len(a.links), enis, a.said.Len(), said)
		}
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
	})
}
