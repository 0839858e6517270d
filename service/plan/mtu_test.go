package plan

import (
	"strings"
	"testing"

	"ec2netd/service/metadata"
	"ec2netd/service/unitfile"
)

// A9: whose word counts for the MTU.
func TestMTU(t *testing.T) {
	const base = "[DHCPv4]\nUseMTU=yes\n"
	unit := func(dropIns ...string) unitfile.Unit {
		u := unitfile.Unit{Path: NetworkPath("ens6"), Texts: []unitfile.Text{
			{Path: NetworkPath("ens6"), Content: base},
			{Path: NetworkDropIn("ens6"), Content: "[Link]\nMTUBytes=9001\n"}, // ours
		}}
		for _, content := range dropIns {
			u.Texts = append(u.Texts, unitfile.Text{Path: "/etc/systemd/network/70-ens6.network.d/x.conf", Content: content})
		}
		return u
	}
	ipv4, ipv6 := view(1, addrs("10.0.1.20"), nil), view(1, nil, addrs("2001:db8:1::20"))
	for _, test := range []struct {
		name    string
		view    metadata.ENI
		unit    unitfile.Unit
		lease   int
		most    int
		mtu     int
		written bool
	}{
		{"the lease", ipv4, unit(), 8500, 65535, 8500, false},
		{"a lease that does not tell", ipv4, unit(), 0, 65535, 0, false},
		{"UseMTU=no", ipv4, unit("[DHCPv4]\nUseMTU=no\n"), 9001, 65535, 0, false},
		{"a base unit that does not ask for it", ipv4, unitfile.Unit{}, 9001, 65535, 0, false},
		{"the administrator", ipv4, unit("[Link]\nMTUBytes=1400\n"), 9001, 65535, 1400, false},
		{"with a suffix", ipv4, unit("[Link]\nMTUBytes=2K\n"), 9001, 65535, 2048, false},
		{"taken back", ipv4, unit("[Link]\nMTUBytes=1400\n", "[Link]\nMTUBytes=\n"), 9001, 65535, 9001, false},
		{"no number", ipv4, unit("[Link]\nMTUBytes=much\n"), 9001, 65535, 9001, false},
		{"IPv6-only", ipv6, unit(), 0, 65535, 9001, true},
		{"IPv6-only, with a link-local lease", ipv6, unit(), 1500, 65535, 9001, true},
		{"IPv6-only and the administrator", ipv6, unit("[Link]\nMTUBytes=1400\n"), 0, 65535, 1400, false},
		{"a link that bears less", ipv6, unit(), 0, 1500, 1500, true},
		{"a link without a limit", ipv6, unit(), 0, 0, 9001, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			link := leased(1, &test.view)
			link.MTUSetting, link.LeaseMTU, link.MaxMTU = test.unit.MTU(), test.lease, test.most
			eni := Make(input([]Link{link}, test.view)).ENIs[0]
			if eni.Want.MTU != test.mtu || eni.Want.OwnMTU != test.written {
				t.Errorf("MTU %d, written %v; want %d, %v", eni.Want.MTU, eni.Want.OwnMTU, test.mtu, test.written)
			}
			content := eni.Files[0].Content
			if got := strings.Contains(content, "\nMTUBytes="); got != test.written {
				t.Errorf("written %v:\n%s", got, content)
			}
		})
	}
}

// F2, A9: the .link file in force has its effect too, which a lease would take away.
func TestMTUOfLinkFile(t *testing.T) {
	v := view(1, addrs("10.0.1.20"), nil)
	link := leased(1, &v)
	link.MTUSetting, link.LeaseMTU, link.MaxMTU = unitfile.MTUSetting{Bytes: 1400, Lease: true, OfLink: true}, 9001, 65535
	eni := Make(input([]Link{link}, v)).ENIs[0]
	if content := eni.Files[0].Content; eni.Want.MTU != 1400 || !strings.Contains(content, "\nMTUBytes=1400\n") || !strings.Contains(content, "\nUseMTU=no\n") {
		t.Errorf("MTU %d:\n%s", eni.Want.MTU, content)
	}
}
