package main

import (
	"net"
	"net/http"
	"net/http/httptest"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/api/apitest"
	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/config"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// healthy is an instance on which there is nothing to do.
func healthy() *symptoms {
	s := &symptoms{
		state: online(), systemd: "257.13-1~deb13u1", filters: []filter{{"ens5", 2}, {"ens6", 0}},
		probes: []probe{
			{path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv4}, took: 2 * time.Millisecond},
			{path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv6}, error: "no route"},
		},
	}
	s.state.Conflicts = nil
	for _, name := range needed {
		s.units = append(s.units, unitStatus{name, "loaded", "active", "enabled", "enabled"})
	}
	return s
}

// F8: before the boot it is said which links, other than ENIs, ifupdown does not configure any more.
func TestLeftByIfupdown(t *testing.T) {
	waits := bootWait{owner: "until then ifupdown does", left: []string{"br0", "eth1"}}
	const others = "ifupdown does not configure br0, eth1 from the next boot on, as networking.service is not enabled"
	want := []finding{
		{Check: "ec2netd", Level: levelWarning, Text: waits.owner, Advice: takeOverNow},
		{Check: "unit", Level: levelWarning, Text: others, Advice: leftAdvice},
	}
	if diff := cmp.Diff(want, diagnose(&symptoms{waits: waits})); diff != "" {
		t.Error(diff)
	}
	if advice := waits.advice(); advice != "But "+others+": "+leftAdvice+"\n"+takeOverNow {
		t.Error(advice)
	}
	if waits.left = nil; waits.advice() != takeOverNow || waits.others() != "" {
		t.Errorf("without such links: %q", waits.advice())
	}
}

func TestDiagnose(t *testing.T) { // H5, F5
	for _, c := range []struct {
		name   string
		change func(*symptoms)
		// level and words of the one finding that is not ok; none: all is well.
		level, check, text, advice string
	}{
		{name: "healthy", change: func(*symptoms) {}},
		{name: "without IPv6", change: func(s *symptoms) { s.state.Interfaces[1].IPv6NotApplicable = "it is disabled" }},
		{"silent", func(s *symptoms) { s.state, s.silence, s.remedy = nil, "ec2netd is not there", "start it" }, levelProblem, "ec2netd", "not there", "start it"},
		{"waiting for the boot", func(s *symptoms) {
			*s = symptoms{silence: "ec2netd is not there", remedy: "enable it", waits: bootWait{owner: "until then NetworkManager does"}}
		}, levelWarning, "ec2netd", "until then NetworkManager does", "sudo ec2netctl takeover"},
		{"no EC2 instance", func(s *symptoms) {
			*s = symptoms{state: unsupported(), notEC2: "this machine is no EC2 instance"}
		}, levelWarning, "platform", "no EC2 instance: ec2netd configures nothing", "Platform=any"},
		{"unsupported until restarted", func(s *symptoms) { s.state.State, s.state.Reason = state.Unsupported, "no EC2" }, levelProblem, "ec2netd", "unsupported (no EC2)", "systemctl restart"},
		{"starting", func(s *symptoms) { s.state.State = state.Starting }, levelWarning, "ec2netd", "starting", "journalctl"},
		{"offline", func(s *symptoms) { s.state.State, s.state.Reason = state.Offline, "no answer" }, levelProblem, "ec2netd", "offline (no answer)", "journalctl"},
		{"mistake", func(s *symptoms) { s.mistakes = []string{"/etc/ec2netd.conf:3: bad"} }, levelProblem, "configuration", "/etc/ec2netd.conf:3", "systemctl restart ec2netd"},
		{"no ENI", func(s *symptoms) { s.state.Interfaces = nil }, levelProblem, "eni", "no link is an ENI", "Driver="},
		{"shadowed", func(s *symptoms) {
			s.state.Interfaces[1].State, s.state.Interfaces[1].Reason = state.ENIShadowed, "networkd uses /etc/systemd/network/10-netplan-ens6.network: remove it"
		}, levelProblem, "eni", "ens6 (eni-0a1b2c3d4e5f60002) is shadowed: networkd uses /etc/systemd/network/10-netplan-ens6.network: remove it", "ec2netctl diff ens6"},
		{"overridden", func(s *symptoms) { s.state.Interfaces[1].State = state.ENIOverridden }, levelWarning, "eni", "overridden", "diff ens6"},
		{"pending without a link", func(s *symptoms) {
			s.state.Interfaces[1].State, s.state.Interfaces[1].Name = state.ENIPending, ""
		}, levelProblem, "eni", "eni-0a1b2c3d4e5f60002 is pending", "diff eni-0a1b2c3d4e5f60002"},
		{"degraded", func(s *symptoms) { s.state.Interfaces[0].State = state.ENIDegraded }, levelProblem, "eni", "degraded", "diff"},
		{"worth knowing", func(s *symptoms) { s.state.Interfaces[0].Reason = "the last view holds" }, levelWarning, "eni", "the last view holds", ""},
		{"conflict", func(s *symptoms) {
			s.conflicts = []state.Conflict{{Name: "NetworkManager", Evidence: []string{"it manages ens6"}, Advice: "disable it"}}
		}, levelProblem, "conflict", "NetworkManager configures ENIs too: it manages ens6", "disable it"},
		{"one way fails", func(s *symptoms) {
			s.probes = append(s.probes, probe{path: metadata.Path{Device: "ens6", Endpoint: metadata.EndpointIPv4}, error: "over ens6: no answer in time"})
		}, levelWarning, "metadata", "over ens6: no answer", "nothing, as long as"},
		{"no way", func(s *symptoms) { s.probes = s.probes[1:] }, levelProblem, "metadata", "no route", "HttpEndpoint"},
		{"no address", func(s *symptoms) { s.probes = []probe{} }, levelProblem, "metadata", "no ENI has an address", "networkctl"},
		{"not root, silent", func(s *symptoms) { s.probes, s.state.Metadata.LastError = nil, "HTTP 503" }, levelProblem, "metadata", "HTTP 503", "as root"},
		{"no bus", func(s *symptoms) { s.busError = "no such file" }, levelProblem, "unit", "no such file", "dbus"},
		{"masked", func(s *symptoms) { s.units[0].load = "masked" }, levelProblem, "unit", "systemd-networkd.service is masked", "systemctl unmask systemd-networkd.service && systemctl enable --now systemd-networkd.service"},
		{"masked until the next boot", func(s *symptoms) { s.units[4].load, s.units[4].enabled = "masked", "masked-runtime" }, levelProblem, "unit", "ec2netd.socket is masked", "systemctl unmask --runtime ec2netd.socket && systemctl enable ec2netd.socket && systemctl stop ec2netd.socket && systemctl restart ec2netd.service"},
		{"no metrics", func(s *symptoms) { s.units[5].enabled = "disabled" }, levelWarning, "unit", "ec2netd-metrics.socket is disabled", "systemctl preset ec2netd-metrics.socket"},
		{"metrics stopped", func(s *symptoms) { s.units[5].active = "inactive" }, levelWarning, "unit", "ec2netd-metrics.socket is inactive", "systemctl restart ec2netd.service"},
		{"not installed", func(s *symptoms) { s.units[3].load = "not-found" }, levelProblem, "unit", "ec2netd.service is not installed", "install"},
		{"no resolved", func(s *symptoms) { s.units[2].load = "not-found" }, levelWarning, "unit", "systemd-resolved.service", "name servers"},
		{"disabled", func(s *symptoms) { s.units[4].enabled = "disabled" }, levelProblem, "unit", "ec2netd.socket is disabled, though", "systemctl preset ec2netd.socket"},
		{"disabled by preset", func(s *symptoms) { s.units[1].preset = "disabled" }, levelProblem, "unit", "disabled by the presets", "system-preset"},
		{"failed", func(s *symptoms) { s.units[1].active = "failed" }, levelProblem, "unit", "has failed", "systemctl status"},
		{"stopped", func(s *symptoms) { s.units[0].active = "inactive" }, levelProblem, "unit", "systemd-networkd.service is inactive", "systemctl start"},
		{"no base", func(s *symptoms) { s.missing = []string{"/usr/lib/systemd/network/80-ec2.network"} }, levelProblem, "file", "no unit for ENIs", "install"},
		{"masked base", func(s *symptoms) { s.masked = "/etc/systemd/network/80-ec2.network" }, levelProblem, "file", "80-ec2.network masks the base unit", "rm /etc/systemd/network/80-ec2.network && networkctl reload"},
		{"empty base", func(s *symptoms) { s.masked = "/usr/lib/systemd/network/80-ec2.network" }, levelProblem, "file", "80-ec2.network masks the base unit", "install ec2netd again"},
		{"no networkd.conf", func(s *symptoms) { s.missing = []string{"/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"} }, levelProblem, "file", "takes away routes", "restart systemd-networkd"},
		{"old systemd", func(s *symptoms) { s.systemd = "249.11" }, levelProblem, "systemd", "too old", "252"},
		{"early 257", func(s *symptoms) { s.systemd = "257.2-1" }, levelWarning, "systemd", "late", "257.3"},
		{"next hops", func(s *symptoms) { s.systemd, s.nextHops = "252.39-1", 3 }, levelWarning, "nexthop", "3 of the next hops", "zebra"},
		{name: "next hops that stay", change: func(s *symptoms) { s.nextHops = 3 }},
		{"unknown systemd", func(s *symptoms) { s.systemd = "" }, levelWarning, "systemd", "could not", "252"},
		{"published ports", func(s *symptoms) { s.bridges = []string{"br-1", "docker0"} }, levelWarning, "published", "behind br-1, docker0 answer by the primary ENI what comes in by ens6,", "FirewallMark="},
		{name: "published ports with a mark", change: func(s *symptoms) {
			s.bridges, s.marked = []string{"docker0"}, map[int]bool{s.state.Interfaces[1].Table: true}
		}},
		{name: "a bridge, one ENI", change: func(s *symptoms) { s.bridges, s.state.Interfaces = []string{"docker0"}, s.state.Interfaces[:1] }},
		{"not in the group", func(s *symptoms) {
			s.groups = map[string]int{"ens5": 0, "ens6": plan.Group}
			s.state.Interfaces[0].State, s.state.Interfaces[0].NetworkFile = state.ENIUnmanaged, "/run/systemd/network/10-netplan-ens5.network"
		}, levelWarning, "group", "in the group of ENIs: ens5", "Group=3778 in [Link] of /etc/systemd/network/10-netplan-ens5.network.d/group.conf"},
		{"not in the group, without a unit", func(s *symptoms) {
			s.groups = map[string]int{"ens5": 1, "ens6": plan.Group}
			s.state.Interfaces[0].State, s.state.Interfaces[0].NetworkFile = state.ENIUnmanaged, ""
		}, levelWarning, "group", "in the group of ENIs: ens5", "ip link set dev ens5 group 3778"},
		{name: "in the group", change: func(s *symptoms) {
			s.groups, s.state.Interfaces[0].State = map[string]int{"ens5": plan.Group, "ens6": plan.Group}, state.ENIUnmanaged
		}},
		{name: "not in the group, and nobody else is", change: func(s *symptoms) {
			s.groups, s.state.Interfaces[1].State = map[string]int{"ens5": plan.Group}, state.ENIUnmanaged
		}},
		{"strict", func(s *symptoms) { s.filters[1].mode = 1 }, levelWarning, "rp_filter", "on ens6", "net.ipv4.conf.ens6.rp_filter=2"},
	} {
		s := healthy()
		c.change(s)
		var bad []finding
		for _, f := range diagnose(s) {
			if f.Level != levelOK {
				bad = append(bad, f)
			} else if f.Advice != "" {
				t.Errorf("%s: all is well, and advice is given: %+v", c.name, f)
			}
		}
		if c.level == "" {
			if len(bad) > 0 {
				t.Errorf("%s: %+v", c.name, bad)
			}
			continue
		}
		if len(bad) != 1 || bad[0].Level != c.level || bad[0].Check != c.check || !strings.Contains(bad[0].Text, c.text) || !strings.Contains(bad[0].Advice, c.advice) {
			t.Errorf("%s: %+v", c.name, bad)
		}
	}
	// Asked as somebody else, the daemon's word counts.
	s := healthy()
	s.probes = nil
	for _, f := range diagnose(s) {
		if f.Level != levelOK {
			t.Errorf("not as root: %+v", f)
		}
	}
	if f := diagnose(&symptoms{}); len(f) == 0 || f[0].Level != levelProblem {
		t.Errorf("nothing is known: %+v", f)
	}
}

// TestBridges: links behind which containers can be, where the host forwards.
func TestBridges(t *testing.T) { // B12
	root := t.TempDir()
	for _, dir := range []string{"sys/class/net/docker0/bridge", "sys/class/net/ens5/device", "proc/sys/net/ipv4"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	c := &ctl{environment: environment{root: root}}
	for _, test := range []struct{ forward, want string }{{"1\n", "docker0"}, {"0\n", ""}} {
		if err := os.WriteFile(filepath.Join(root, "proc/sys/net/ipv4/ip_forward"), []byte(test.forward), 0o600); err != nil {
			t.Fatal(err)
		}
		if got := strings.Join(c.bridges(), " "); got != test.want {
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

func TestFindings(t *testing.T) { // H5
	s := healthy()
	s.state = apitest.State()
	s.systemd = "252.39-1~deb12u2"
	s.conflicts = []state.Conflict{{Name: "NetworkManager", Evidence: []string{"NetworkManager.service is active", "it manages ens6\x1b[2J"}, Advice: "systemctl disable --now NetworkManager.service"}}
	c := &ctl{environment: environment{width: 100}}
	golden(t, c.describeFindings(diagnose(s)))
	c.uid = 1000
	if out := c.describeFindings(diagnose(s)); !strings.HasSuffix(out, "\n2 problems, 1 warning.\nCommands that change something are for root.\n") {
		t.Error(out)
	}
	if out := c.describeFindings(diagnose(healthy())); !strings.HasSuffix(out, "\nNothing to do.\n") || strings.Contains(out, "→") {
		t.Error(out)
	}
}

func TestSystemdVersion(t *testing.T) {
	for text, want := range map[string][2]int{
		"252.39-1~deb12u2": {252, 39}, "257.13-1~deb13u1": {257, 13}, "262~rc2-1": {262, 0}, "262.1-2": {262, 1}, "v255": {255, 0},
		"systemd 254.5": {254, 5}, "": {0, 0}, "devel": {0, 0},
	} {
		if major, minor := systemdVersion(text); [2]int{major, minor} != want {
			t.Errorf("%q: %d.%d", text, major, minor)
		}
	}
}

// Where one way hangs, the others answer all the same, and are not blamed.
func TestProbeHangs(t *testing.T) { // H5
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01"})
	server := httptest.NewServer(service)
	defer server.Close()
	silent, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	probes := probeAll(t.Context(), []metadata.Path{{Endpoint: "http://" + silent.Addr().String()}, {Endpoint: server.URL}, {Endpoint: server.URL}}, "")
	if probes[0].error == "" || probes[1].error != "" || probes[2].error != "" {
		t.Errorf("%+v", probes)
	}
	if probes[1].took >= probes[0].took {
		t.Errorf("it waited for the one that hangs: %s", probes[1].took)
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
	c := &ctl{environment: environment{root: root}}
	got := c.unmatched([]string{"ens5", "ens6"})
	if want := []string{"/etc/systemd/network/70-ens9.network.d", "/etc/systemd/network/70-ens9.link.d"}; !slices.Equal(got, want) {
		t.Errorf("without effect: %q, want %q", got, want)
	}
	var d diagnosis
	d.resolvConf(c.readResolvConf())
	put("etc/resolv.conf", "")
	d.resolvConf(c.readResolvConf())
	put("etc/resolv.conf", "nameserver 10.0.0.2\n")
	d.resolvConf(c.readResolvConf())
	if err := os.Remove(filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	put("run/systemd/resolve/stub-resolv.conf", "nameserver 127.0.0.53\n")
	if err := os.Symlink("../run/systemd/resolve/stub-resolv.conf", filepath.Join(root, "etc/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	d.resolvConf(c.readResolvConf())
	if err := os.Remove(filepath.Join(root, "run/systemd/resolve/resolv.conf")); err != nil {
		t.Fatal(err)
	}
	d.resolvConf(c.readResolvConf())
	var levels []string
	for _, f := range d.findings {
		levels = append(levels, f.Level)
	}
	if want := []string{levelWarning, levelWarning, levelOK, levelOK}; !slices.Equal(levels, want) || !strings.Contains(d.findings[0].Text, "192.0.2.53") {
		t.Errorf("%+v", d.findings)
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

// TestProbes: each way is tried by itself, a few requests in all.
func TestProbes(t *testing.T) { // H5
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: "02:00:00:00:00:01"})
	server := httptest.NewServer(service)
	defer server.Close()
	portal := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		w.Header().Set("X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "300")
		w.Write([]byte("<html>"))
	}))
	defer portal.Close()
	closed, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	paths := []metadata.Path{{Endpoint: server.URL}, {Endpoint: "http://" + closed.Addr().String()}, {Endpoint: portal.URL}, {Socket: "/nonexistent"}}
	probes := probeAll(t.Context(), paths, "")
	if len(probes) != 3 || probes[0].error != "" || !strings.Contains(probes[1].error, "refused") || probes[2].error == "" {
		t.Errorf("%+v", probes)
	}
	if requests := len(service.Requests()); requests == 0 || requests > 6 {
		t.Errorf("%d requests", requests)
	}
}
