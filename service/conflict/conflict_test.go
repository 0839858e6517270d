package conflict_test

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/conflict"
)

// F5: what is a conflict, and what is not.
func TestFind(t *testing.T) {
	for name, c := range map[string]struct {
		facts conflict.Facts
		// want is the evidence by name.
		want map[string][]string
	}{
		"nothing": {},
		"NetworkManager runs, and has said nothing of an ENI": {
			conflict.Facts{Active: []string{"NetworkManager.service"}, Links: []string{"ens5"}},
			map[string][]string{conflict.NetworkManager: {"NetworkManager.service is active"}},
		},
		"NetworkManager manages an ENI": {
			conflict.Facts{
				Active: []string{"NetworkManager.service"}, Enabled: []string{"NetworkManager.service"},
				Links: []string{"ens5", "ens6"}, Managed: map[string]bool{"ens5": false, "ens6": true},
			},
			map[string][]string{conflict.NetworkManager: {"NetworkManager.service is active", "it manages ens6"}},
		},
		"NetworkManager has said nothing of one of the ENIs": {
			conflict.Facts{Active: []string{"NetworkManager.service"}, Links: []string{"ens5", "ens6"}, Managed: map[string]bool{"ens5": false}},
			map[string][]string{conflict.NetworkManager: {"NetworkManager.service is active"}},
		},
		"NetworkManager leaves the ENIs alone": {
			facts: conflict.Facts{
				Active: []string{"NetworkManager.service"}, Enabled: []string{"NetworkManager.service"},
				Links: []string{"ens5"}, Managed: map[string]bool{"ens5": false},
			},
		},
		"NetworkManager will run": {
			conflict.Facts{Enabled: []string{"NetworkManager.service"}, Links: []string{"ens5"}, Managed: map[string]bool{"ens5": false}},
			map[string][]string{conflict.NetworkManager: {"NetworkManager.service is enabled, though it does not run now"}},
		},
		"nm-cloud-setup": {
			conflict.Facts{Active: []string{"nm-cloud-setup.timer"}, Enabled: []string{"nm-cloud-setup.timer", "nm-cloud-setup.service"}},
			map[string][]string{conflict.NMCloudSetup: {"nm-cloud-setup.service is enabled, though it does not run now", "nm-cloud-setup.timer is active"}},
		},
		"ifupdown has an ENI, and its client": {
			conflict.Facts{
				Enabled: []string{"networking.service"}, Links: []string{"ens5"}, Raised: []string{"ens5"}, Auto: []string{"ens5"},
				Clients: []conflict.Client{{Name: conflict.DHClient, Link: "ens5", PIDFile: "/run/dhclient.ens5.pid"}},
			},
			map[string][]string{conflict.Ifupdown: {"it has configured ens5", "networking.service is enabled, and configures ens5"}},
		},
		"ifupdown is not enabled":  {facts: conflict.Facts{Links: []string{"ens5"}, Auto: []string{"ens5"}}},
		"ifupdown has other links": {facts: conflict.Facts{Enabled: []string{"networking.service"}, Links: []string{"ens5"}}},
		"clients": {
			conflict.Facts{Clients: []conflict.Client{
				{Name: conflict.DHClient, Link: "ens5", PIDFile: "/run/dhclient.ens5.pid"}, {Name: conflict.DHCPCD, Link: "ens6", PIDFile: "/run/dhcpcd/ens6-6.pid", Family: "-6"},
			}},
			map[string][]string{conflict.DHClient: {"it runs for ens5 (/run/dhclient.ens5.pid)"}, conflict.DHCPCD: {"it runs for ens6 (/run/dhcpcd/ens6-6.pid)"}},
		},
		"cloud-init": {
			conflict.Facts{PolicyRouting: []string{"/etc/netplan/50-cloud-init.yaml"}},
			map[string][]string{conflict.CloudInit: {"/etc/netplan/50-cloud-init.yaml"}},
		},
		"the shell package": {
			conflict.Facts{Active: []string{"policy-routes@ens5.service"}, OldFiles: []string{"/usr/share/amazon-ec2-net-utils"}},
			map[string][]string{conflict.OldPackage: {"/usr/share/amazon-ec2-net-utils", "policy-routes@ens5.service is active"}},
		},
	} {
		t.Run(name, func(t *testing.T) {
			got := map[string][]string{}
			for _, c := range conflict.Find(c.facts) {
				got[c.Name] = c.Evidence
				if c.Advice == "" {
					t.Errorf("%s: there is no advice", c.Name)
				}
			}
			want := c.want
			if want == nil {
				want = map[string][]string{}
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// F5: the advice uses the configured drivers, and never removes ec2netd.
func TestAdvice(t *testing.T) {
	const manager = "have networkd alone configure the ENIs: systemctl disable NetworkManager.service"
	for _, c := range []struct {
		facts conflict.Facts
		want  string
	}{
		{conflict.Facts{Enabled: []string{"NetworkManager.service"}}, manager},
		{
			conflict.Facts{Active: []string{"NetworkManager.service"}, Drivers: []string{"ena", "vif"}},
			manager + ", then ec2netctl takeover, which stops it and removes what it has set; or, to keep NetworkManager for other links, " +
				"unmanaged-devices+=driver:ena;driver:vif in the section [keyfile] of a file in /etc/NetworkManager/conf.d, and systemctl reload NetworkManager.service",
		},
		{conflict.Facts{OldFiles: []string{"/run/systemd/network/70-ens5.network.d/eni.conf"}}, "ec2netctl takeover, which removes what the package has left in /run; or reboot"},
		{
			conflict.Facts{OldFiles: []string{"/usr/share/amazon-ec2-net-utils", "/run/systemd/network/70-ens5.network.d/eni.conf"}},
			"remove the package: dpkg --purge amazon-ec2-net-utils, rpm --erase amazon-ec2-net-utils, or rpm --erase ec2-net-utils; " +
				"then install ec2netd again, since the removal takes away its /usr/lib/systemd/network/80-ec2.network; then reboot",
		},
	} {
		if found := conflict.Find(c.facts); len(found) != 1 || found[0].Advice != c.want {
			t.Errorf("%+v: %+v", c.facts, found)
		}
	}
}

// F8: a takeover repairs changes by a unit of ifupdown, and nothing else.
func TestAdviceOnIfupdown(t *testing.T) {
	for _, c := range []struct {
		facts conflict.Facts
		want  string
	}{
		{conflict.Facts{Raised: []string{"ens5", "ens6"}}, ": ifdown ens5 ens6"},
		{conflict.Facts{Raised: []string{"ens5"}, Active: []string{"networking.service"}}, "ec2netctl takeover"},
		{conflict.Facts{Raised: []string{"ens5"}, Active: []string{"ifup@ens5.service"}}, "ec2netctl takeover"},
		{conflict.Facts{Enabled: []string{"networking.service"}, Auto: []string{"ens5"}}, "ec2netctl takeover"},
	} {
		if found := conflict.Find(c.facts); len(found) != 1 || !strings.Contains(found[0].Advice, c.want) {
			t.Errorf("%+v: %+v", c.facts, found)
		}
	}
}

// F5: the facts of a file system.
func TestLook(t *testing.T) {
	root := t.TempDir()
	put := func(file, content string) {
		t.Helper()
		file = filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if target, ok := strings.CutPrefix(content, "-> "); ok {
			if err := os.Symlink(target, file); err != nil {
				t.Fatal(err)
			}
			return
		}
		if err := os.WriteFile(file, []byte(content), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	links := []conflict.Link{{Index: 2, Name: "ens5", MAC: "02:00:00:00:00:0a"}, {Index: 3, Name: "ens6", MAC: "02:00:00:00:00:0b"}}
	var asked []string
	answer := []string{"policy-routes@ens5.service", "NetworkManager.service"}
	var err error
	looker := &conflict.Looker{Root: root, Units: func(_ context.Context, patterns []string) ([]string, error) {
		asked = patterns
		return answer, err
	}}
	answer = nil
	if f := looker.Look(t.Context(), links); len(conflict.Find(f)) > 0 {
		t.Errorf("an empty root: %+v", f)
	}

	answer = []string{"policy-routes@ens5.service", "NetworkManager.service"}
	put("/etc/systemd/system/multi-user.target.wants/NetworkManager.service", "-> /usr/lib/systemd/system/NetworkManager.service")
	put("/etc/systemd/system/timers.target.wants/nm-cloud-setup.timer", "-> /usr/lib/systemd/system/nm-cloud-setup.timer")
	// A mask takes precedence over a unit that wants the masked one.
	put("/etc/systemd/system/multi-user.target.wants/nm-cloud-setup.service", "-> /usr/lib/systemd/system/nm-cloud-setup.service")
	put("/etc/systemd/system/nm-cloud-setup.service", "-> /dev/null")
	put("/etc/systemd/system/multi-user.target.wants/networking.service", "-> /usr/lib/systemd/system/networking.service")
	put("/etc/systemd/system/network-online.target.wants/networking.service", "-> /usr/lib/systemd/system/networking.service")
	put("/etc/network/interfaces", "source /etc/network/interfaces.d/*\n# auto ens5\nauto lo\nallow-hotplug ens5\niface ens5 inet dhcp\n")
	put("/etc/network/interfaces.d/50-cloud-init", "auto eth0 /ens6*/=lab\niface lab inet dhcp\n")
	put("/run/network/ifstate", "lo=lo\nens5=ens5\nens50=ens50\n")
	lowered := time.Unix(1_700_000_000, 0)
	for name, text := range map[string]string{"ens5": "ens5", "ens6": "\n", "ens50": "\n"} {
		put("/run/network/ifstate."+name, text)
		if err := os.Chtimes(filepath.Join(root, "/run/network/ifstate."+name), lowered, lowered); err != nil {
			t.Fatal(err)
		}
	}
	put("/proc/120/comm", "dhclient\n")
	put("/proc/122/comm", "sshd\n")
	put("/proc/123/comm", "dhcpcd\n")
	put("/run/dhclient.ens5.pid", "120\n")
	put("/run/dhclient6.ens5.pid", "121\n") // killed
	put("/run/dhclient-ens6.pid", "122\n")  // killed, and another process has its number now
	put("/run/dhclient.ens50.pid", "120\n")
	put("/run/dhcpcd/ens6-4.pid", "123\n")
	put("/run/NetworkManager/devices/2", "[device]\nmanaged=true\nnm-owned=false\n")
	put("/run/NetworkManager/devices/3", "[device]\nmanaged=false\n")
	put("/run/NetworkManager/devices/9", "[device]\nmanaged=true\n")
	put("/etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    ens6:\n      match: {macaddress: \"02:00:00:00:00:0B\"}\n      routing-policy:\n      - {from: 10.0.1.20, table: 101}\n")
	put("/etc/systemd/network/10-cloud-init-ens5.network", "[Match]\nName=ens5\n[RoutingPolicyRule]\nFrom=10.0.1.10\nTable=100\n")
	// Files without rules, and a file for a link that is not an ENI.
	put("/run/systemd/network/10-cloud-init-ens6.network", "[Match]\nName=ens6\n[Network]\nDHCP=yes\n")
	put("/run/systemd/network/10-cloud-init-ens50.network", "[Match]\nName=ens50\n[RoutingPolicyRule]\nFrom=10.0.1.10\nTable=100\n")
	put("/usr/share/amazon-ec2-net-utils/lib.sh", "")
	put("/usr/lib/udev/rules.d/99-vpc-policy-routes.rules", "SUBSYSTEM==\"net\"\n")
	put("/usr/lib/udev/rules.d/53-ec2-network-interfaces.rules", "SUBSYSTEM==\"net\"\n")
	put("/etc/udev/rules.d/53-ec2-network-interfaces.rules", "-> /dev/null")
	put("/run/systemd/network/70-ens5.network.d/ec2net_alias.conf", "[Address]\n")
	put("/run/systemd/network/70-ens5.network.d/50-ec2netd.conf", "[Match]\n")
	want := conflict.Facts{
		Active:  []string{"NetworkManager.service", "policy-routes@ens5.service"},
		Enabled: []string{"NetworkManager.service", "nm-cloud-setup.timer", "networking.service"},
		Links:   []string{"ens5", "ens6"},
		Managed: map[string]bool{"ens5": true, "ens6": false},
		Raised:  []string{"ens5"}, Auto: []string{"ens6"},
		Lowered: map[string]time.Time{"ens6": lowered},
		Clients: []conflict.Client{
			{Name: conflict.DHClient, Link: "ens5", PIDFile: "/run/dhclient.ens5.pid"}, {Name: conflict.DHCPCD, Link: "ens6", PIDFile: "/run/dhcpcd/ens6-4.pid", Family: "-4"},
		},
		PolicyRouting: []string{"/etc/netplan/50-cloud-init.yaml", "/etc/systemd/network/10-cloud-init-ens5.network"},
		OldFiles: []string{
			"/usr/lib/udev/rules.d/99-vpc-policy-routes.rules", "/usr/share/amazon-ec2-net-utils",
			"/run/systemd/network/70-ens5.network.d/ec2net_alias.conf",
		},
	}
	if diff := cmp.Diff(want, looker.Look(t.Context(), links)); diff != "" {
		t.Error(diff)
	}
	if others := looker.RaisedOthers(links); !slices.Equal(others, []string{"ens50"}) {
		t.Errorf("ifupdown has also configured %q", others)
	}
	// As NetworkManager reports a link in unmanaged-devices=.
	put("/run/NetworkManager/devices/2", "[device]\nperm-hw-addr-fake=02:00:00:00:00:0A\nnm-owned=false\n")
	if is, told := looker.Look(t.Context(), links).Managed["ens5"]; is || !told {
		t.Errorf("a device that is left out: managed %v, told %v", is, told)
	}
	put("/run/NetworkManager/devices/2", "[device]\nmanaged=true\n")
	put("/proc/124/comm", "ifdown\n")
	put("/run/network/ifdown-ens6.pid", "124\n")
	if at := looker.Look(t.Context(), links).Lowered["ens6"]; time.Since(at) > time.Minute {
		t.Errorf("ifdown is at work, and was so last at %v", at)
	}
	put("/run/network/ifdown-ens6.pid", "121\n") // killed
	if !slices.Equal(asked, conflict.Patterns) {
		t.Errorf("systemd was asked for %q", asked)
	}
	// If systemd does not answer, its last answer is used.
	answer, err = nil, errors.New("no bus")
	if diff := cmp.Diff(want, looker.Look(t.Context(), links)); diff != "" {
		t.Error(diff)
	}
}

// F8: clients that were started without an option for their PID files are found by the
// default names of these, for the links that they serve.
func TestDefaultClients(t *testing.T) {
	links := []conflict.Link{{Index: 2, Name: "ens5"}, {Index: 3, Name: "ens6"}}
	client := func(name, link, pidFile, family string) conflict.Client {
		return conflict.Client{Name: name, Link: link, PIDFile: pidFile, Family: family}
	}
	const dhclient, dhclient6, dhcpcd = "/run/dhclient.pid", "/run/dhclient6.pid", "/run/dhcpcd/pid"
	for name, c := range map[string]struct {
		pidFile, comm, cmdline, conf string
		active                       []string
		want                         []conflict.Client
		advice                       string
	}{
		"dhclient": {
			dhclient, "dhclient", "dhclient\x00ens6\x00", "", nil,
			[]conflict.Client{client(conflict.DHClient, "ens6", dhclient, "")}, "dhclient -x -pf /run/dhclient.pid ens6",
		},
		"dhclient -6": {
			dhclient6, "dhclient", "/sbin/dhclient\x00-6\x00-lf\x00ens5\x00-v\x00ens6\x00", "", nil,
			[]conflict.Client{client(conflict.DHClient, "ens6", dhclient6, "-6")}, "dhclient -6 -x -pf /run/dhclient6.pid ens6",
		},
		"dhclient for all": {
			dhclient, "dhclient", "dhclient\x00-q\x00", "", nil,
			[]conflict.Client{client(conflict.DHClient, "ens5", dhclient, ""), client(conflict.DHClient, "ens6", dhclient, "")},
			"dhclient -x -pf /run/dhclient.pid ens5 ens6",
		},
		"dhclient for a link that is no ENI":    {dhclient, "dhclient", "dhclient\x00eth9\x00", "", nil, nil, ""},
		"another process has dhclient's number": {dhclient, "sshd", "sshd\x00ens6\x00", "", nil, nil, ""},
		"no process has dhclient's number":      {dhclient, "", "", "", nil, nil, ""},
		"dhcpcd's unit": {
			dhcpcd, "dhcpcd", "dhcpcd: [manager] [ip4] [ip6]\x00", "hostname\n# denyinterfaces ens5\ndenyinterfaces veth*, ens6\n", []string{"dhcpcd.service"},
			[]conflict.Client{client(conflict.DHCPCD, "ens5", dhcpcd, "")}, "dhcpcd -k; systemctl disable --now dhcpcd.service",
		},
		"dhcpcd for all": {
			dhcpcd, "dhcpcd", "dhcpcd\x00", "", nil,
			[]conflict.Client{client(conflict.DHCPCD, "ens5", dhcpcd, ""), client(conflict.DHCPCD, "ens6", dhcpcd, "")}, "dhcpcd -k",
		},
		"dhcpcd for links that are no ENIs": {dhcpcd, "dhcpcd", "dhcpcd\x00", "allowinterfaces wlan* eth?\n", []string{"dhcpcd.service"}, nil, ""},
		"another process has dhcpcd's":      {dhcpcd, "dhclient", "dhclient\x00", "", nil, nil, ""},
	} {
		t.Run(name, func(t *testing.T) {
			root := t.TempDir()
			for file, content := range map[string]string{
				c.pidFile: "120\n", "/proc/120/comm": c.comm + "\n", "/proc/120/cmdline": c.cmdline, "/etc/dhcpcd.conf": c.conf,
			} {
				if strings.TrimSpace(content) == "" {
					continue
				}
				file = filepath.Join(root, file)
				if err := errors.Join(os.MkdirAll(filepath.Dir(file), 0o755), os.WriteFile(file, []byte(content), 0o600)); err != nil {
					t.Fatal(err)
				}
			}
			looker := &conflict.Looker{Root: root, Units: func(context.Context, []string) ([]string, error) { return c.active, nil }}
			facts := looker.Look(t.Context(), links)
			if diff := cmp.Diff(c.want, facts.Clients); diff != "" || len(facts.Unread) > 0 {
				t.Errorf("%s, not read: %v", diff, facts.Unread)
			}
			found := conflict.Find(facts)
			if (len(found) > 0) != (c.advice != "") || (len(found) > 0 && !strings.HasSuffix(found[0].Advice, ": "+c.advice)) {
				t.Errorf("%+v, want %q", found, c.advice)
			}
		})
	}
}
