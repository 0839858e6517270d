package takeover

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/plan"
	"ec2netd/service/systemd"
)

// killed is what a process meets that is killed: nothing runs after it.
type killed struct{}

// world is a system that is taken over: which units run, which links have addresses, and files.
type world struct {
	root   string
	active map[string]bool
	empty  map[string]bool
	// until is how many changes there are before the process is killed; negative for never.
	// The change at which it is killed may have happened or not, as late says.
	until int
	late  bool
	// broken makes the starting of a unit fail.
	broken string
	rules  string
	// held are the links whose routes have stand-ins, by the file in which they are.
	held map[string][]string
}

// change makes a change, or kills the process.
func (w *world) change(do func() error) error {
	if w.until == 0 {
		if w.late {
			_ = do()
		}
		w.until--
		panic(killed{})
	}
	w.until--
	return do()
}

func (w *world) Rest(context.Context, []string) {}

func (w *world) Systemctl(_ context.Context, args ...string) (string, error) {
	if args[0] == "list-units" {
		var out strings.Builder
		for unit := range w.active {
			for _, pattern := range args[1:] {
				if ok, _ := filepath.Match(pattern, unit); ok {
					fmt.Fprintln(&out, unit, "loaded active")
				}
			}
		}
		return out.String(), nil
	}
	if args[0] == "reset-failed" {
		return "", errors.New("it has not failed")
	}
	isSocket := func(unit string) bool { return strings.HasSuffix(unit, ".socket") }
	if args[0] == "stop" && slices.ContainsFunc(args[1:], isSocket) && slices.ContainsFunc(args[1:], func(unit string) bool { return !isSocket(unit) }) {
		return "", fmt.Errorf("%v: systemd stops a service before its socket, which starts it again", args)
	}
	return "", w.change(func() error {
		for _, pattern := range args[1:] {
			if strings.HasPrefix(pattern, "--") || pattern == orphansUnit {
				continue
			}
			if args[0] == "stop" {
				for unit := range w.active {
					if ok, _ := filepath.Match(pattern, unit); ok {
						delete(w.active, unit)
					}
				}
				continue
			}
			if pattern == w.broken {
				return errors.New("it does not start")
			}
			w.active[pattern] = true
			if _, err := os.Stat(filepath.Join(w.root, runtimeFiles, "views.json")); pattern == systemd.Daemon && err != nil {
				dir := filepath.Join(w.root, networkFiles)
				const completed = "/10-netplan-ens6.network.d"
				return errors.Join(os.MkdirAll(dir+"/70-ens5.network.d", 0o755), os.MkdirAll(dir+completed, 0o755),
					os.Symlink(dir+"/70-ens6.network.d/"+plan.DropInName, dir+completed+"/"+plan.DropInName), os.Symlink(plan.NoAddresses, dir+completed+"/"+plan.ClearName), os.MkdirAll(filepath.Join(w.root, runtimeFiles), 0o755),
					os.WriteFile(filepath.Join(w.root, runtimeFiles, "views.json"), nil, 0o600),
					os.WriteFile(dir+"/70-ens5.network.d/"+plan.DropInName, nil, 0o600),
					os.Symlink("/etc/x.conf", dir+"/70-ens5.network.d/x.conf"), os.Symlink(baseUnit, dir+"/70-ens5.network"))
			}
		}
		return nil
	})
}

func (w *world) Reload(context.Context) error { return w.change(func() error { return nil }) }

func (w *world) Flush(link string) error {
	return w.change(func() error { w.empty[link] = true; return nil })
}

func (w *world) SetUp(link string) error {
	return w.change(func() error { delete(w.empty, link); return nil })
}

func (w *world) NoteRules(file string, _ *Plan) error {
	return w.change(func() error { w.rules = file; return nil })
}

func (w *world) RemoveRules(string) error { return w.change(func() error { w.rules = ""; return nil }) }

func (w *world) HoldRoutes(file string, links []string) error {
	return w.change(func() error { w.held[file] = links; return nil })
}

func (w *world) ReleaseRoutes(file string, _ bool) error {
	return w.change(func() error { delete(w.held, file); return nil })
}

// picture is what a good state is compared by.
func (w *world) picture(t *testing.T) []string {
	t.Helper()
	var all []string
	for unit := range w.active {
		all = append(all, unit)
	}
	for link := range w.empty {
		all = append(all, link+" has no address")
	}
	for file, links := range w.held {
		all = append(all, fmt.Sprintf("%v have stand-ins, see %s", links, file))
	}
	if err := filepath.WalkDir(w.root, func(file string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case strings.HasSuffix(file, Dir):
			return fs.SkipDir
		}
		if !entry.IsDir() || strings.HasPrefix(entry.Name(), "10-") {
			all = append(all, strings.TrimPrefix(file, w.root))
		}
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	slices.Sort(all)
	return all
}

// survive runs a process that may be killed.
func survive(do func() error) (err error, dead bool) {
	defer func() {
		if r := recover(); r != nil {
			if _, ok := r.(killed); !ok {
				panic(r)
			}
			dead = true
		}
	}()
	return do(), false
}

type scenario struct {
	name   string
	active []string
	files  map[string]string
	plan   Plan
	// after is what runs at the end.
	after []string
}

func scenarios() []scenario {
	const dir = "/run/systemd/network/"
	return []scenario{
		{"NetworkManager", []string{manager}, nil,
			Plan{Stop: []string{manager}, Start: []string{systemd.Daemon, systemd.Networkd}, Flush: []string{"ens5"}}, []string{systemd.Daemon, systemd.Networkd}},
		{"ifupdown", []string{ifupdown, "ifup@ens6.service"}, nil,
			Plan{Stop: []string{ifupdown, "ifup@ens6.service"}, Start: []string{systemd.Daemon, systemd.Networkd}, Flush: []string{"ens5"}}, []string{systemd.Daemon, systemd.Networkd}},
		{"ifupdown beside networkd", []string{ifupdown, systemd.Networkd, systemd.Daemon}, map[string]string{
			runtimeFiles + "views.json": "", dir + "70-ens5.network": "->" + baseUnit, dir + "70-ens5.network.d/" + plan.DropInName: "",
		},
			Plan{Stop: []string{ifupdown}, Restart: []string{systemd.Daemon, systemd.Networkd}, Flush: []string{"ens5"}}, []string{systemd.Daemon, systemd.Networkd}},
		{"amazon-ec2-net-utils on 257", []string{systemd.Networkd, "refresh-policy-routes@ens5.timer", "policy-routes@ens5.service"}, map[string]string{
			dir + "07-ens5.network": "->" + baseUnit, dir + "07-ens5.network.d/eni.conf": eniConf, oldRuntime + "/flag": "",
		}, Plan{Start: []string{systemd.Daemon}, Restart: []string{systemd.Networkd}}, []string{systemd.Daemon, systemd.Networkd}},
		{"amazon-ec2-net-utils on 252", []string{systemd.Networkd, "systemd-networkd.socket"}, map[string]string{
			dir + "70-ens5.network.d/eni.conf": eniConf, dir + "70-ens5.network.d/admin.conf": "[Link]\n",
		}, Plan{Start: []string{systemd.Daemon}, Restart: []string{systemd.Networkd}, Flush: []string{"ens5"}}, []string{systemd.Daemon, systemd.Networkd}},
	}
}

// begin makes the world of a scenario, and prepares a takeover.
func begin(t *testing.T, s *scenario) (*world, *Takeover) {
	t.Helper()
	w := &world{root: t.TempDir(), active: map[string]bool{}, empty: map[string]bool{}, held: map[string][]string{}, until: -1}
	for _, unit := range s.active {
		w.active[unit] = true
	}
	put(t, w.root, s.files)
	if err := os.MkdirAll(filepath.Join(w.root, "run"), 0o755); err != nil {
		t.Fatal(err)
	}
	p := s.plan
	var err error
	if p.Remove, p.LeaveAlone, err = FindOld(w.root); err != nil {
		t.Fatal(err)
	}
	if err := Prepare(w.root, &Request{Plan: p, Links: []string{"ens5"}}); err != nil {
		t.Fatal(err)
	}
	return w, &Takeover{Root: w.root, System: w, Kernel: w, Wait: func(context.Context, *Request) error {
		return w.change(func() error { return nil })
	}}
}

// TestKilled: a takeover that is killed at any change ends in one of the two good states, also
// if what settles it is killed at any change.
func TestKilled(t *testing.T) { // J3
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			t.Parallel()
			outcomes := map[Outcome]int{}
			for n := range 1000 {
				again := false
				for _, late := range []bool{false, true} {
					for m := range 1000 {
						w, takeover := begin(t, &s)
						before := w.picture(t)
						w.until, w.late = n, late
						err, dead := survive(func() error { return takeover.Do(t.Context()) })
						if err != nil {
							t.Fatal(err)
						}
						w.until, w.late = m, !late
						err, deadAgain := survive(func() error { return takeover.Settle(t.Context(), "it was killed") })
						if err != nil {
							t.Fatal(err)
						}
						w.until = -1
						if err := takeover.Settle(t.Context(), "it was killed"); err != nil {
							t.Fatal(err)
						}
						again = again || dead
						outcomes[w.good(t, &s, before, fmt.Sprintf("killed at %d (%v), and again at %d", n, late, m))]++
						if !deadAgain {
							break
						}
					}
				}
				if !again {
					break
				}
			}
			t.Log(outcomes)
			if outcomes[Restored] == 0 || outcomes[Configured] == 0 || len(outcomes) != 2 {
				t.Errorf("outcomes: %v", outcomes)
			}
		})
	}
}

// good checks that the world is in one of the two good states, in that of the outcome.
func (w *world) good(t *testing.T, s *scenario, before []string, when string) Outcome {
	t.Helper()
	records, _, err := Read(w.root)
	if err != nil {
		t.Fatal(err)
	}
	outcome, now := records.Last().Outcome, w.picture(t)
	if outcome == Restored {
		if diff := cmp.Diff(before, now); diff != "" {
			t.Errorf("%s: what ran before does not run again: %s", when, diff)
		}
		return outcome
	}
	for _, unit := range s.after {
		if !w.active[unit] {
			t.Errorf("%s: %s does not run", when, unit)
		}
	}
	marked, _, err := FindOld(w.root)
	if err != nil || len(marked) > 0 || len(w.active) > len(s.after) || w.rules != "" || len(w.held) > 0 {
		t.Errorf("%s: %v, %v are left, %q run", when, err, marked, now)
	}
	return outcome
}

// TestFails: a takeover of which a step fails gives back what was there, and says why; one of
// which that fails too says so, and can be settled later.
func TestFails(t *testing.T) { // J3
	for _, s := range scenarios() {
		t.Run(s.name, func(t *testing.T) {
			w, takeover := begin(t, &s)
			before := w.picture(t)
			w.broken = slices.Concat(s.plan.Start, s.plan.Restart)[0]
			if err := takeover.Do(t.Context()); err == nil {
				t.Fatal("it did not fail")
			}
			w.broken = s.active[0]
			if err := takeover.Settle(t.Context(), "nobody knows"); err == nil {
				t.Fatal("putting back did not fail")
			}
			records, _, _ := Read(w.root)
			if last := records.Last(); last.Outcome != Broken || last.Hint == "" {
				t.Errorf("%+v", last)
			}
			w.broken = ""
			if err := takeover.Settle(t.Context(), "nobody knows"); err != nil {
				t.Fatal(err)
			}
			if outcome := w.good(t, &s, before, "at last"); outcome != Restored {
				t.Error(outcome)
			}
			records, _, _ = Read(w.root)
			if last := records.Last(); last.Error != "it does not start; what ran before runs again" {
				t.Errorf("%+v", last)
			}
			if err := Prepare(w.root, &Request{}); !errors.Is(err, fs.ErrExist) {
				t.Errorf("another one can begin before the first is told of: %v", err)
			}
			if err := Discard(w.root); err != nil {
				t.Fatal(err)
			}
		})
	}
}
