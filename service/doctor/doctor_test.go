package doctor

import (
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/api/apitest"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/platform"
	"ec2netd/service/state"
)

// online is an instance of which every managed ENI is configured.
func online() *state.State {
	s := apitest.State()
	s.Conflicts = nil
	s.Interfaces[1].State, s.Interfaces[1].Reason, s.Interfaces[1].Missing = state.ENIConfigured, "", nil
	s.Interfaces[2].State, s.Interfaces[2].Reason = state.ENIUnmanaged, "Name=ens7 is not managed"
	return s
}

// unsupported is a machine that is no EC2 instance.
func unsupported() *state.State {
	return platform.NewUnsupported(platform.Options{Version: "1.2.3", Reason: platform.Identity{SystemVendor: "QEMU"}.NotEC2()}).State()
}

// healthy is an instance on which there is nothing to do.
func healthy() *Facts {
	f := &Facts{
		Daemon: Daemon{State: online()}, Systemd: "257.13-1~deb13u1",
		Links: []Link{{Name: "ens5", Group: plan.Group, ReversePath: 2}, {Name: "ens6", Group: plan.Group}},
		Probes: []Probe{
			{Path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv4}, Took: 2 * time.Millisecond},
			{Path: metadata.Path{Device: "ens5", Endpoint: metadata.EndpointIPv6}, Error: "no route"},
		},
	}
	for _, name := range needed {
		f.Units = append(f.Units, networkd.UnitState{Name: name, Load: "loaded", Active: "active", File: "enabled", Preset: "enabled"})
	}
	return f
}

// F8: before the boot it is said which links, other than ENIs, ifupdown does not configure any more.
func TestLeftByIfupdown(t *testing.T) {
	waits := UntilBoot{Owner: "until then ifupdown does", Left: []string{"br0", "eth1"}}
	const others = "ifupdown does not configure br0, eth1 from the next boot on, as networking.service is not enabled"
	want := []Finding{
		{Check: DaemonAnswers, Level: Warning, Text: waits.Owner, Advice: takeOverNow},
		{Check: UnitStates, Level: Warning, Text: others, Advice: leftAdvice},
	}
	if diff := cmp.Diff(want, Diagnose(&Facts{UntilBoot: waits})); diff != "" {
		t.Error(diff)
	}
	if advice := waits.Advice(); advice != "But "+others+": "+leftAdvice+"\n"+takeOverNow {
		t.Error(advice)
	}
	if waits.Left = nil; waits.Advice() != takeOverNow || waits.others() != "" {
		t.Errorf("without such links: %q", waits.Advice())
	}
}

// diagnosis is what changes on a healthy instance, and the one finding that is not ok then: its level,
// and words of it. With no level all is well.
type diagnosis struct {
	name         string
	change       func(*Facts)
	level        Level
	check        Check
	text, advice string
}

func tryDiagnoses(t *testing.T, all []diagnosis) {
	t.Helper()
	for _, c := range all {
		s := healthy()
		c.change(s)
		var bad []Finding
		for _, f := range Diagnose(s) {
			if f.Level != OK {
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
}

func TestDiagnoseDaemon(t *testing.T) { // H5
	tryDiagnoses(t, []diagnosis{
		{name: "healthy", change: func(*Facts) {}},
		{name: "without IPv6", change: func(s *Facts) { s.Daemon.State.Interfaces[1].IPv6NotApplicable = "it is disabled" }},
		{"silent", func(s *Facts) {
			s.Daemon.State, s.Daemon.Silence, s.Daemon.Remedy = nil, "ec2netd is not there", "start it"
		}, Problem, "ec2netd", "not there", "start it"},
		{"waiting for the boot", func(s *Facts) {
			*s = Facts{Daemon: Daemon{Silence: "ec2netd is not there", Remedy: "enable it"}, UntilBoot: UntilBoot{Owner: "until then NetworkManager does"}}
		}, Warning, "ec2netd", "until then NetworkManager does", "sudo ec2netctl takeover"},
		{"no EC2 instance", func(s *Facts) {
			*s = Facts{Daemon: Daemon{State: unsupported()}, NotEC2: "this machine is no EC2 instance"}
		}, Warning, "platform", "no EC2 instance: ec2netd configures nothing", "Platform=any"},
		{"unsupported until restarted", func(s *Facts) { s.Daemon.State.State, s.Daemon.State.Reason = state.Unsupported, "no EC2" }, Problem, "ec2netd", "unsupported (no EC2)", "systemctl restart"},
		{"starting", func(s *Facts) { s.Daemon.State.State = state.Starting }, Warning, "ec2netd", "starting", "journalctl"},
		{"offline", func(s *Facts) { s.Daemon.State.State, s.Daemon.State.Reason = state.Offline, "no answer" }, Problem, "ec2netd", "offline (no answer)", "journalctl"},
		{"mistake", func(s *Facts) { s.Mistakes = []string{"/etc/ec2netd.conf:3: bad"} }, Problem, "configuration", "/etc/ec2netd.conf:3", "systemctl restart ec2netd"},
		{"no ENI", func(s *Facts) { s.Daemon.State.Interfaces = nil }, Problem, "eni", "no link is an ENI", "Driver="},
		{"shadowed", func(s *Facts) {
			s.Daemon.State.Interfaces[1].State, s.Daemon.State.Interfaces[1].Reason = state.ENIShadowed, "networkd uses /etc/systemd/network/10-netplan-ens6.network: remove it"
		}, Problem, "eni", "ens6 (eni-0a1b2c3d4e5f60002) is shadowed: networkd uses /etc/systemd/network/10-netplan-ens6.network: remove it", "ec2netctl diff ens6"},
		{"overridden", func(s *Facts) { s.Daemon.State.Interfaces[1].State = state.ENIOverridden }, Warning, "eni", "overridden", "diff ens6"},
		{"pending without a link", func(s *Facts) {
			s.Daemon.State.Interfaces[1].State, s.Daemon.State.Interfaces[1].Name = state.ENIPending, ""
		}, Problem, "eni", "eni-0a1b2c3d4e5f60002 is pending", "diff eni-0a1b2c3d4e5f60002"},
		{"degraded", func(s *Facts) { s.Daemon.State.Interfaces[0].State = state.ENIDegraded }, Problem, "eni", "degraded", "diff"},
		{"worth knowing", func(s *Facts) { s.Daemon.State.Interfaces[0].Reason = "the last view holds" }, Warning, "eni", "the last view holds", ""},
		{"conflict", func(s *Facts) {
			s.Conflicts = []state.Conflict{{Name: "NetworkManager", Evidence: []string{"it manages ens6"}, Advice: "disable it"}}
		}, Problem, "conflict", "NetworkManager configures ENIs too: it manages ens6", "disable it"},
		{"one way fails", func(s *Facts) {
			s.Probes = append(s.Probes, Probe{Path: metadata.Path{Device: "ens6", Endpoint: metadata.EndpointIPv4}, Error: "over ens6: no answer in time"})
		}, Warning, "metadata", "over ens6: no answer", "nothing, as long as"},
		{"no way", func(s *Facts) { s.Probes = s.Probes[1:] }, Problem, "metadata", "no route", "HttpEndpoint"},
		{"no address", func(s *Facts) { s.Probes = []Probe{} }, Problem, "metadata", "no ENI has an address", "networkctl"},
		{"not root, silent", func(s *Facts) { s.Probes, s.Daemon.State.Metadata.LastError = nil, "HTTP 503" }, Problem, "metadata", "HTTP 503", "as root"},
	})
}

func TestDiagnoseInstallation(t *testing.T) { // H5, F5
	tryDiagnoses(t, []diagnosis{
		{"no bus", func(s *Facts) { s.UnitsError = "no such file" }, Problem, "unit", "no such file", "dbus"},
		{"masked", func(s *Facts) { s.Units[0].Load = "masked" }, Problem, "unit", "systemd-networkd.service is masked", "systemctl unmask systemd-networkd.service && systemctl enable --now systemd-networkd.service"},
		{"masked until the next boot", func(s *Facts) { s.Units[4].Load, s.Units[4].File = "masked", "masked-runtime" }, Problem, "unit", "ec2netd.socket is masked", "systemctl unmask --runtime ec2netd.socket && systemctl enable ec2netd.socket && systemctl stop ec2netd.socket && systemctl restart ec2netd.service"},
		{"no metrics", func(s *Facts) { s.Units[5].File = "disabled" }, Warning, "unit", "ec2netd-metrics.socket is disabled", "systemctl preset ec2netd-metrics.socket"},
		{"metrics stopped", func(s *Facts) { s.Units[5].Active = "inactive" }, Warning, "unit", "ec2netd-metrics.socket is inactive", "systemctl restart ec2netd.service"},
		{"not installed", func(s *Facts) { s.Units[3].Load = "not-found" }, Problem, "unit", "ec2netd.service is not installed", "install"},
		{"no resolved", func(s *Facts) { s.Units[2].Load = "not-found" }, Warning, "unit", "systemd-resolved.service", "name servers"},
		{"disabled", func(s *Facts) { s.Units[4].File = "disabled" }, Problem, "unit", "ec2netd.socket is disabled, though", "systemctl preset ec2netd.socket"},
		{"disabled by preset", func(s *Facts) { s.Units[1].Preset = "disabled" }, Problem, "unit", "disabled by the presets", "system-preset"},
		{"failed", func(s *Facts) { s.Units[1].Active = "failed" }, Problem, "unit", "has failed", "systemctl status"},
		{"stopped", func(s *Facts) { s.Units[0].Active = "inactive" }, Problem, "unit", "systemd-networkd.service is inactive", "systemctl start"},
		{"no base", func(s *Facts) { s.MissingFiles = []string{"/usr/lib/systemd/network/80-ec2.network"} }, Problem, "file", "no unit for ENIs", "install"},
		{"masked base", func(s *Facts) { s.MaskedBase = "/etc/systemd/network/80-ec2.network" }, Problem, "file", "80-ec2.network masks the base unit", "rm /etc/systemd/network/80-ec2.network && networkctl reload"},
		{"empty base", func(s *Facts) { s.MaskedBase = "/usr/lib/systemd/network/80-ec2.network" }, Problem, "file", "80-ec2.network masks the base unit", "install ec2netd again"},
		{"no networkd.conf", func(s *Facts) { s.MissingFiles = []string{"/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"} }, Problem, "file", "takes away routes", "restart systemd-networkd"},
	})
}

func TestDiagnoseHost(t *testing.T) { // H5, B9, B12, F6
	tryDiagnoses(t, []diagnosis{
		{"old systemd", func(s *Facts) { s.Systemd = "249.11" }, Problem, "systemd", "too old", "252"},
		{"early 257", func(s *Facts) { s.Systemd = "257.2-1" }, Warning, "systemd", "late", "257.3"},
		{"next hops", func(s *Facts) { s.Systemd, s.NextHops = "252.39-1", 3 }, Warning, "nexthop", "3 of the next hops", "zebra"},
		{name: "next hops that stay", change: func(s *Facts) { s.NextHops = 3 }},
		{"unknown systemd", func(s *Facts) { s.Systemd = "" }, Warning, "systemd", "could not", "252"},
		{"published ports", func(s *Facts) { s.Bridges = []string{"br-1", "docker0"} }, Warning, "published", "behind br-1, docker0 answer by the primary ENI what comes in by ens6,", "FirewallMark="},
		{name: "published ports with a mark", change: func(s *Facts) {
			s.Bridges, s.MarkedTables = []string{"docker0"}, map[int]bool{s.Daemon.State.Interfaces[1].Table: true}
		}},
		{name: "a bridge, one ENI", change: func(s *Facts) {
			s.Bridges, s.Daemon.State.Interfaces = []string{"docker0"}, s.Daemon.State.Interfaces[:1]
		}},
		{"not in the group", func(s *Facts) {
			s.Links[0].Group = 0
			s.Daemon.State.Interfaces[0].State, s.Daemon.State.Interfaces[0].NetworkFile = state.ENIUnmanaged, "/run/systemd/network/10-netplan-ens5.network"
		}, Warning, "group", "in the group of ENIs: ens5", "Group=3778 in [Link] of /etc/systemd/network/10-netplan-ens5.network.d/group.conf"},
		{"not in the group, without a unit", func(s *Facts) {
			s.Links[0].Group = 1
			s.Daemon.State.Interfaces[0].State, s.Daemon.State.Interfaces[0].NetworkFile = state.ENIUnmanaged, ""
		}, Warning, "group", "in the group of ENIs: ens5", "ip link set dev ens5 group 3778"},
		{name: "in the group", change: func(s *Facts) {
			s.Daemon.State.Interfaces[0].State = state.ENIUnmanaged
		}},
		{name: "not in the group, and nobody else is", change: func(s *Facts) {
			s.Links, s.Daemon.State.Interfaces[1].State = s.Links[:1], state.ENIUnmanaged
		}},
		{"strict", func(s *Facts) { s.Links[1].ReversePath = strict }, Warning, "rp_filter", "on ens6", "net.ipv4.conf.ens6.rp_filter=2"},
	})
}

func TestDiagnoseUnasked(t *testing.T) { // H5
	// Asked as somebody else, the daemon's word counts.
	s := healthy()
	s.Probes = nil
	for _, f := range Diagnose(s) {
		if f.Level != OK {
			t.Errorf("not as root: %+v", f)
		}
	}
	if f := Diagnose(&Facts{}); len(f) == 0 || f[0].Level != Problem {
		t.Errorf("nothing is known: %+v", f)
	}
}
