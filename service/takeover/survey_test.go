package takeover

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/systemd"
	"ec2netd/service/unitfile/disk"
)

// fakeNetworkd says the same of each link.
type fakeNetworkd struct {
	said    networkd.LinkState
	varlink bool
}

func (n fakeNetworkd) Link(int) networkd.LinkState { return n.said }
func (n fakeNetworkd) Varlink() bool               { return n.varlink }

// survey is of a system on which NetworkManager has ens5, and a boot would give it to ec2netd. The
// other link is down.
func survey(t *testing.T) (s *Survey, enabled map[string]bool) {
	root := t.TempDir()
	put(t, root, map[string]string{"usr/lib/systemd/network/80-ec2.network": "[Match]\n"})
	put(t, root, map[string]string{presetFile: "# who owns the links\nenable systemd-networkd.service\nenable ec2netd.service\n\ndisable NetworkManager.service\n"})
	units, err := PresetUnits(root)
	if err != nil {
		t.Fatal(err)
	}
	enabled = map[string]bool{systemd.Networkd: true, systemd.Daemon: true}
	active := map[string]bool{manager: true, "ifup@ens5.service": true, "ifup@ens6.service": true}
	return &Survey{
		Root: root, Units: units, Links: []kernel.Link{{Index: 2, Name: "ens5"}, {Index: 3, Name: "ens6", Down: true}},
		NetworkFiles: (&disk.Reader{Root: root}).Tree(), Networkd: fakeNetworkd{varlink: true},
		Systemctl: func(_ context.Context, args ...string) (string, error) {
			of := map[string]map[string]bool{"is-enabled": enabled, "is-active": active}[args[0]]
			if !of[args[len(args)-1]] {
				return "", errors.New("no")
			}
			return "", nil
		},
	}, enabled
}

// TestSurvey: what is done follows from what runs, and from what is enabled.
func TestSurvey(t *testing.T) { // J3
	s, _ := survey(t)
	put(t, s.Root, map[string]string{networkFiles + "70-ens5.network.d/eni.conf": "# somebody else's\n"})
	p, links, err := s.Plan(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	want := &Plan{
		Stop: []string{manager, "ifup@ens5.service"}, Start: []string{systemd.Daemon, systemd.Networkd}, Flush: []string{"ens5"},
		LeaveAlone: []string{networkFiles + "70-ens5.network.d/eni.conf"},
	}
	if diff := cmp.Diff(want, p, cmpopts.EquateEmpty()); diff != "" {
		t.Error(diff)
	}
	if !slices.Equal(links, []string{"ens5"}) {
		t.Errorf("it is about %q", links)
	}
	if p.Remove == nil || p.LeaveAlone == nil || p.Flush == nil {
		t.Errorf("null in JSON: %+v", p)
	}
	// What networkd leaves alone by Unmanaged=yes stays as it is.
	s.Networkd = fakeNetworkd{networkd.LinkState{Administrative: "unmanaged", File: "/etc/systemd/network/10-mine.network"}, true}
	if _, links, err := s.Plan(t.Context()); err != nil || len(links) > 0 {
		t.Errorf("%q, %v", links, err)
	}
}

// TestRefused: a takeover that would not end well is not begun, and it is said what to do first.
func TestRefused(t *testing.T) { // J3
	for name, c := range map[string]struct {
		change       func(s *Survey, enabled map[string]bool)
		text, advice string
	}{
		"no base unit": {func(s *Survey, _ map[string]bool) {
			_ = os.Remove(filepath.Join(s.Root, "usr/lib/systemd/network/80-ec2.network"))
		}, "/usr/lib/systemd/network/80-ec2.network is missing", "install ec2netd again"},
		"empty base unit": {func(s *Survey, _ map[string]bool) {
			put(t, s.Root, map[string]string{"etc/systemd/network/80-ec2.network": ""})
		}, "/etc/systemd/network/80-ec2.network is empty", "rm /etc/systemd/network/80-ec2.network"},
		"masked socket": {func(s *Survey, _ map[string]bool) {
			put(t, s.Root, map[string]string{"etc/systemd/system/ec2netd.socket": ""})
		}, "ec2netd.socket is masked", "systemctl unmask ec2netd.socket && systemctl enable ec2netd.socket"},
		"daemon not enabled": {func(_ *Survey, enabled map[string]bool) { enabled[systemd.Daemon] = false },
			"ec2netd.service is not enabled", "systemctl enable ec2netd.socket ec2netd.service"},
		"networkd not enabled": {func(_ *Survey, enabled map[string]bool) { enabled[systemd.Networkd] = false },
			"systemd-networkd.service is not enabled", "systemctl enable systemd-networkd.service"},
		"NetworkManager enabled": {func(_ *Survey, enabled map[string]bool) { enabled[manager] = true },
			"NetworkManager.service is enabled", "systemctl disable NetworkManager.service"},
	} {
		s, enabled := survey(t)
		c.change(s, enabled)
		s.NetworkFiles = (&disk.Reader{Root: s.Root}).Tree()
		_, _, err := s.Plan(t.Context())
		var refused *RefusedError
		if !errors.As(err, &refused) || !strings.HasPrefix(refused.Error(), c.text) || !strings.Contains(refused.Advice, c.advice) {
			t.Errorf("%s: %v", name, err)
		}
	}
	var refused *RefusedError
	if _, err := PresetUnits(t.TempDir()); !errors.As(err, &refused) || !errors.Is(err, os.ErrNotExist) || refused.Advice == "" {
		t.Errorf("no preset file: %v", err)
	}
}

// TestProcessEnd: what systemd says of the end of a process is put in words.
func TestProcessEnd(t *testing.T) { // J3
	for _, c := range [][3]string{
		{"killed", "TERM", "it was interrupted"},
		{"killed", "KILL", "its process was killed by SIGKILL"},
		{"dumped", "SEGV", "its process was killed by SIGSEGV"},
		{"exited", "1", "its process ended (1)"},
		{"", "", "its process ended (nobody knows how)"},
	} {
		if got := ProcessEnd(func(name string) string { return map[string]string{"EXIT_CODE": c[0], "EXIT_STATUS": c[1]}[name] }); got != c[2] {
			t.Errorf("%q: %q", c, got)
		}
	}
}
