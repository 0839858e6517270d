package doctor

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/config"
)

// TestBridges: links behind which containers can be, where the host forwards.
func TestBridges(t *testing.T) { // B12
	root := t.TempDir()
	for _, dir := range []string{"sys/class/net/docker0/bridge", "sys/class/net/ens5/device", "proc/sys/net/ipv4"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	for _, test := range []struct{ forward, want string }{{"1\n", "docker0"}, {"0\n", ""}} {
		if err := os.WriteFile(filepath.Join(root, "proc/sys/net/ipv4/ip_forward"), []byte(test.forward), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(bridges(root), " "); got != test.want {
			t.Errorf("forwarding %q: %q", test.forward, got)
		}
	}
}

// TestNeeded: doctor looks at every unit that the presets enable.
func TestNeeded(t *testing.T) { // H5, I2
	text, err := os.ReadFile("../../presets/80-ec2netd.preset")
	if err != nil {
		t.Fatal(err)
	}
	var enabled []string
	for line := range strings.Lines(string(text)) {
		if unit, ok := strings.CutPrefix(strings.TrimSpace(line), "enable "); ok {
			enabled = append(enabled, unit)
		}
	}
	if diff := cmp.Diff(enabled, needed); diff != "" {
		t.Errorf("not what the preset file enables:\n%s", diff)
	}
}

func TestParseVersion(t *testing.T) {
	for text, want := range map[string][2]int{
		"252.39-1~deb12u2": {252, 39}, "257.13-1~deb13u1": {257, 13}, "262~rc2-1": {262, 0}, "262.1-2": {262, 1}, "v255": {255, 0},
		"systemd 254.5": {254, 5}, "": {0, 0}, "devel": {0, 0},
	} {
		if major, minor := parseVersion(text); [2]int{major, minor} != want {
			t.Errorf("%q: %d.%d", text, major, minor)
		}
	}
}

// F8: who is asked for names, and what of the administrator's files has no effect.
func TestIneffective(t *testing.T) {
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		p := filepath.Join(root, name)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(p, []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	for _, file := range []string{
		"70-ens5.network.d/a.conf", "70-ens9.network.d/a.conf", "70-ens9.link.d/a.conf", "70-mine.network", "70-mine.network.d/a.conf", "80-ec2.network.d/a.conf",
	} {
		put("etc/systemd/network/"+file, "[Network]\n")
	}
	put("etc/resolv.conf", "# dhclient\nsearch ec2.internal\nnameserver 192.0.2.53\nnameserver 10.0.0.2\n")
	put("run/systemd/resolve/resolv.conf", "nameserver 10.0.0.2\n")
	got := findUnmatched(root, []Link{{Name: "ens5"}, {Name: "ens6"}})
	if want := []string{"/etc/systemd/network/70-ens9.network.d", "/etc/systemd/network/70-ens9.link.d"}; !slices.Equal(got, want) {
		t.Errorf("without effect: %q, want %q", got, want)
	}
	var findings []Finding
	look := func() { findings = append(findings, nameServers(&Facts{NameServers: readNameServers(root)})...) }
	look()
	put("etc/resolv.conf", "")
	look()
	put("etc/resolv.conf", "nameserver 10.0.0.2\n")
	look()
	if err := os.Remove(filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	put("run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	look()
	if err := os.Remove(filepath.Join(root, "run/systemd/resolve/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	look()
	var levels []Level
	for _, f := range findings {
		levels = append(levels, f.Level)
	}
	if want := []Level{Warning, Warning, OK, OK}; !slices.Equal(levels, want) || !strings.Contains(findings[0].Text, "192.0.2.53") {
		t.Errorf("%+v", findings)
	}

	one := 1
	sections := []config.Section{
		{File: "/etc/ec2netd.conf", Line: 3, DeviceIndexes: []int{1}}, {File: "/etc/ec2netd.conf", Line: 6, DeviceIndexes: []int{7}},
		{File: "/etc/ec2netd.conf", Line: 9, Names: []string{"en*"}},
	}
	enis := []config.Identity{{Name: "ens5", DeviceIndex: new(int)}, {Name: "ens6", DeviceIndex: &one}}
	if got := forNone(sections, enis); !slices.Equal(got, []string{"/etc/ec2netd.conf:6"}) {
		t.Errorf("sections for no ENI: %q", got)
	}
	if got := forNone(sections, []config.Identity{{Name: "ens5"}}); len(got) > 0 {
		t.Errorf("sections for no ENI while their numbers are not known: %q", got)
	}
}
