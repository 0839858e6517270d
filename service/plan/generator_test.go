package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/config"
	"ec2netd/service/metadata"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

const netplans = "/run/systemd/network/10-netplan-ens6."

// F3: a generator's files say all that the ENI's own say, as long as there are such.
func TestGenerator(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	link := leased(1, &v)
	link.Generator, link.LinkFile = netplans+"network", netplans+"link"
	link.Shared = []string{"/run/systemd/network/10-netplan-all-en.network"}
	link.DropIns = []string{"/etc/systemd/network/70-ens6.network.d/mtu.conf", "/etc/systemd/network/70-ens6.network.d/shared.conf"}
	in := input([]Link{link}, v)
	in.Drivers = []string{"ena", "vif"}
	in.BaseDropIns = []string{"/etc/systemd/network/80-ec2.network.d/lab.conf", "/etc/systemd/network/80-ec2.network.d/shared.conf"}
	p := Make(in)
	p.GiveWay()
	golden(t, p)

	none := func(name string, in Input) {
		t.Helper()
		p := Make(in)
		p.GiveWay()
		for _, f := range p.Files {
			if strings.HasPrefix(f.Path, netplans) {
				t.Errorf("%s: %s", name, f.Path)
			}
		}
	}
	taken := in
	taken.Links = []Link{link}
	taken.Links[0].Taken = "/etc/systemd/network/70-ens6.network"
	none("the administrator's", taken)
	unmanaged := in
	unmanaged.Sections = []config.Section{{Managed: new(bool)}}
	none("unmanaged", unmanaged)
	if text := text(Make(unmanaged)); strings.Contains(text, "10-netplan-all-en") {
		t.Errorf("an unmanaged ENI is left out:\n%s", text)
	}
}

// F3: of what cloud-init wrote in the first boot the addresses do not count, if EC2 is known to have
// told all of them, by now or earlier. Else one may be the administrator's, and the reason says so.
func TestFirstBoot(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	link := leased(1, &v)
	link.Generator = netplans + "network"
	for _, c := range []struct {
		addresses, earlier []netip.Addr
		new                bool
		want               bool
		told               []netip.Addr
		reason             string
	}{
		{nil, nil, true, false, nil, ""},
		{nil, addrs("10.0.1.99"), true, false, addrs("10.0.1.99"), ""}, // netplan is making the file anew
		{addrs("10.0.1.21"), nil, true, true, addrs("10.0.1.21"), ""},
		{addrs("10.0.1.21"), nil, false, false, addrs("10.0.1.21"), ""},
		{addrs("10.0.1.21", "10.0.1.99"), addrs("10.0.1.99", "10.0.1.98"), true, true, addrs("10.0.1.21", "10.0.1.99"), ""}, // EC2 has withdrawn that
		{addrs("10.0.1.21", "10.0.1.99"), nil, true, false, addrs("10.0.1.21"), netplans + "network has 10.0.1.99, "},
		{addrs("10.0.1.21", "10.0.1.99"), addrs("10.0.1.98"), false, false, addrs("10.0.1.21"), ""},
		{addrs("10.0.1.21", "192.0.2.1"), nil, true, false, addrs("10.0.1.21"), netplans + "network has 192.0.2.1, "},
	} {
		link.FirstBoot = c.addresses
		in := input([]Link{link}, v)
		in.Hint = &Hint{PrimaryMAC: link.MAC, Views: map[string]metadata.ENI{link.MAC: v}, Told: map[string][]netip.Addr{link.MAC: c.earlier}}
		in.PrimaryMAC = link.MAC
		in.Networkd = Networkd{Running: true, Varlink: c.new, Keeps: c.new}
		p := Make(in)
		p.GiveWay()
		var found []File
		for _, f := range p.Files {
			if f.Target == NoAddresses {
				found = append(found, f)
			}
		}
		if got := len(found) == 1 && found[0].Path == netplans+"network.d/"+ClearName; got != c.want || len(found) > 1 {
			t.Errorf("%v: %v", c.addresses, found)
		}
		eni := &p.ENIs[0]
		if reason := KeepsWritten(eni, in.Networkd).Words(); !slices.Equal(eni.Told, c.told) || !strings.HasPrefix(reason, c.reason) || (reason == "") != (c.reason == "") {
			t.Errorf("%v: %v, %q", c.addresses, eni.Told, reason)
		}
	}
}

// A .link file of netplan's keeps no names away (G1).
func TestNamesBesideGenerator(t *testing.T) {
	for file, want := range map[string]status.Code{netplans + "link": status.None, "/etc/systemd/network/10-mine.link": status.NamesEarlier} {
		if why, _ := KeepsNames(&ens6, unitfile.Unit{}, file); why != want {
			t.Errorf("%s: %s, want %s", file, why, want)
		}
	}
}
