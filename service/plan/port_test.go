package plan

import (
	"slices"
	"strings"
	"testing"
)

// F10: networkd, which knows of a VRF that a file names, has what comes by DHCP and advertisements in
// the table of that: the drop-in is as for a link outside of it.
func TestNamedVRF(t *testing.T) {
	first, second := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20", "10.0.1.9"), addrs("2001:db8:1::20"))
	link := leased(1, &second)
	for _, running := range []Networkd{{}, {Running: true}, {Running: true, Varlink: true, Keeps: true}} {
		made := func(vrf, named bool) (*ENI, string) {
			l := link
			if l.OthersMaster, l.OthersVRF = named, named; vrf {
				// DHCP's default route is in the VRF's table.
				l.Master, l.MasterKind, l.DHCPMetrics = "blue", "vrf", nil
			}
			in := input([]Link{leased(0, &first), l}, first, second)
			in.Networkd = running
			p := Make(in)
			i := slices.IndexFunc(p.Files, func(f File) bool { return f.Path == NetworkDropIn("ens6") })
			return &p.ENIs[1], p.Files[i].Content
		}
		_, outside := made(false, true)
		named, inside := made(true, true)
		if inside != outside || !named.Want.NoDefault || named.Reconfigure() {
			t.Errorf("%+v: a VRF that a file names: %+v, %s\nnot %s", running, named.Want, inside, outside)
		}
		if _, byHand := made(true, false); strings.Count(byHand, "UseGateway=no\n") != 2 || !strings.Contains(byHand, "RoutesToDNS=no\n") {
			t.Errorf("%+v: a VRF made by hand: %s", running, byHand)
		}
	}
}
