package doctor

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/unitfile/disk"
)

// fakeSystem answers for systemd and networkd.
type fakeSystem struct {
	version string
	err     error
	links   map[int]networkd.LinkState
}

func (s *fakeSystem) Version(context.Context) string { return s.version }
func (s *fakeSystem) ActiveUnits(context.Context, []string) ([]string, error) {
	return nil, s.err
}
func (s *fakeSystem) Unit(_ context.Context, name string) (networkd.UnitState, error) {
	return networkd.UnitState{Name: name, Load: "loaded"}, s.err
}
func (s *fakeSystem) Link(index int) networkd.LinkState { return s.links[index] }

// examiner looks at the files below a root, with ens5 and ens6 as links of ENIs.
func examiner(root string) *Examiner {
	return &Examiner{
		Root: root, NetworkFiles: (&disk.Reader{Root: root}).Tree(), System: &fakeSystem{version: "257"}, NextHops: func() (int, error) { return 2, nil },
		Kernel: &kernel.Snapshot{
			Links: []kernel.Link{{Index: 2, Name: "ens5", Group: plan.Group}, {Index: 3, Name: "ens6"}},
			Rules: []kernel.Rule{{Mark: 7, Table: 10001}, {Table: 10002}},
		},
	}
}

// put writes files below a root.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for name, content := range files {
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
}

func TestExamine(t *testing.T) { // H5
	root := t.TempDir()
	put(t, root, map[string]string{
		"usr/lib/systemd/network/80-ec2.network":    "[Match]\n",
		"etc/systemd/network/70-ens9.link.d/a.conf": "[Link]\n",
		"etc/resolv.conf":                           "nameserver 192.0.2.53\n",
		"proc/sys/net/ipv4/conf/all/rp_filter":      "0\n",
		"proc/sys/net/ipv4/conf/ens6/rp_filter":     "1\n",
		"proc/sys/net/ipv4/ip_forward":              "1\n",
		"sys/class/net/docker0/bridge/bridge_id":    "\n",
	})
	x := examiner(root)
	x.Daemon.State = online()
	x.Config.Problems = []config.Problem{{File: "/etc/ec2netd.conf", Line: 3, Message: "bad"}}
	x.Config.ENIs = []config.Section{{File: "/etc/ec2netd.conf", Line: 6, Names: []string{"ens9"}}}
	f, err := x.Examine(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &Facts{
		Daemon: x.Daemon, Systemd: "257", NextHops: 2,
		Mistakes: []string{x.Config.Problems[0].String()}, UnusedSections: []string{"/etc/ec2netd.conf:6"},
		MissingFiles: []string{networkdConf}, UnmatchedDropIns: []string{"/etc/systemd/network/70-ens9.link.d"},
		NameServers: NameServers{Asked: []string{"192.0.2.53"}},
		Links:       []Link{{Name: "ens5", Group: plan.Group}, {Name: "ens6", ReversePath: strict}},
		Bridges:     []string{"docker0"}, MarkedTables: map[int]bool{10001: true},
	}
	for _, name := range needed {
		want.Units = append(want.Units, networkd.UnitState{Name: name, Load: "loaded"})
	}
	if diff := cmp.Diff(want, f, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
}

// What cannot be looked at is a fact too, but for what the kernel does not tell.
func TestExamineFails(t *testing.T) { // H5
	x := examiner(t.TempDir())
	x.Elsewhere, x.System = true, &fakeSystem{err: errors.New("no bus")}
	x.Daemon = Daemon{Silence: "it does not answer"}
	f, err := x.Examine(t.Context())
	if err != nil || f.UnitsError != "no bus" || f.Units != nil || f.Probes != nil || f.UnusedSections != nil {
		t.Errorf("%v: %+v", err, f)
	}
	x.NextHops = func() (int, error) { return 0, errors.New("no netlink") }
	if _, err := x.Examine(t.Context()); err == nil {
		t.Error("no netlink is no error")
	}
}

// On a machine that is no EC2 instance nothing else is looked at, unless the daemon has found out
// otherwise.
func TestExamineNotEC2(t *testing.T) { // H5
	for name, c := range map[string]struct {
		told     *state.State
		examined bool
	}{
		"nobody answers":    {nil, false},
		"unsupported":       {unsupported(), false},
		"Platform= changed": {online(), true},
	} {
		x := examiner(t.TempDir())
		x.NotEC2, x.Daemon.State = "it is none", c.told
		x.Ways = func(primary string) []metadata.Path {
			if !c.examined || primary == "" {
				t.Errorf("%s: the ways for the primary ENI %q are asked for", name, primary)
			}
			return nil
		}
		f, err := x.Examine(t.Context())
		if err != nil || (f.NotEC2 == "") != c.examined || (f.Units != nil) != c.examined {
			t.Errorf("%s: %v: %+v", name, err, f)
		}
	}
}

// F8: between the installation and the next boot it is said who has the ENIs, and no more, where this
// system's daemon was asked.
func TestExamineUntilBoot(t *testing.T) {
	root := t.TempDir()
	put(t, root, map[string]string{
		"etc/systemd/system/multi-user.target.wants/ec2netd.service":          "[Unit]\n",
		"etc/systemd/system/multi-user.target.wants/systemd-networkd.service": "[Unit]\n",
	})
	x := examiner(root)
	x.System = &fakeSystem{links: map[int]networkd.LinkState{2: {File: "/run/systemd/network/10-netplan-ens5.network"}}}
	f, err := x.Examine(t.Context())
	want := "ec2netd is installed and configures the ENIs from the next boot on; until then " +
		"systemd-networkd by /run/systemd/network/10-netplan-ens5.network, which netplan makes, does"
	if err != nil || f.UntilBoot.Owner != want || f.Units != nil {
		t.Errorf("%v: %+v", err, f)
	}
	x.Elsewhere = true
	if f, err = x.Examine(t.Context()); err != nil || f.UntilBoot.Owner != "" || f.Units == nil {
		t.Errorf("another daemon was asked: %v: %+v", err, f)
	}
	x.Elsewhere, x.Daemon.State = false, online()
	if f, err = x.Examine(t.Context()); err != nil || f.UntilBoot.Owner != "" || f.Units == nil {
		t.Errorf("the daemon runs: %v: %+v", err, f)
	}
}
