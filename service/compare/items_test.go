package compare

import (
	"net/netip"
	"slices"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// A9: an MTU that is known and that the link does not have is missing, whoever tells it.
func TestMTU(t *testing.T) {
	ipv4, ipv6 := view(1, addrs("10.0.1.20"), nil), view(1, nil, addrs("2001:db8:1::20"))
	for _, test := range []struct {
		name  string
		view  metadata.ENI
		set   unitfile.MTUSetting
		lease int
		most  int
		mtu   int
	}{
		{"the lease", ipv4, unitfile.MTUSetting{Lease: true}, 8500, 65535, 8500},
		{"the administrator", ipv4, unitfile.MTUSetting{Bytes: 1400, Lease: true}, 9001, 65535, 1400},
		{"with a suffix", ipv4, unitfile.MTUSetting{Bytes: 2048, Lease: true}, 9001, 65535, 2048},
		{"a lease of the VPC's MTU", ipv4, unitfile.MTUSetting{Lease: true}, 9001, 65535, 9001},
		{"IPv6-only", ipv6, unitfile.MTUSetting{Lease: true}, 0, 65535, 9001},
		{"IPv6-only, with a link-local lease", ipv6, unitfile.MTUSetting{Lease: true}, 1500, 65535, 9001},
		{"IPv6-only and the administrator", ipv6, unitfile.MTUSetting{Bytes: 1400, Lease: true}, 0, 65535, 1400},
		{"a link that bears less", ipv6, unitfile.MTUSetting{Lease: true}, 0, 1500, 1500},
		{"a link without a limit", ipv6, unitfile.MTUSetting{Lease: true}, 0, 0, 9001},
	} {
		t.Run(test.name, func(t *testing.T) {
			link := leased(1, &test.view)
			link.MTUSetting, link.LeaseMTU, link.MaxMTU = test.set, test.lease, test.most
			eni := plan.Make(input([]plan.Link{link}, test.view)).ENIs[0]
			content := eni.Files[0].Content
			for _, right := range []bool{true, false} {
				eni.Link.MTU = test.mtu
				if !right {
					eni.Link.MTU++
				}
				result := ENI(&eni, Actual{Rendered: Rendered{Network: dropin.ParseNetwork(content)}, Kernel: whole(&eni), Ours: anyRule})
				if missing := slices.ContainsFunc(result.Missing, func(g status.Gap) bool { return g.Kind == status.MTU }); missing == right {
					t.Errorf("the MTU is right: %v; missing: %v", right, result.Missing)
				}
			}
		})
	}
}

// A8: an address that somebody else has added is not missing, as long as it is there.
func TestForeignAddress(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21", "10.0.1.22"), nil)
	link := leased(1, &v)
	for _, address := range v.IPv4[1:] {
		link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(address, 32), Global: true})
	}
	in := input([]plan.Link{link}, v)
	in.Networkd = newNetworkd
	n := plan.Make(in).ENIs[0].DropIn
	n.Addresses = slices.DeleteFunc(n.Addresses, func(a dropin.Address) bool { return a.Address.Addr() == v.IPv4[2] })
	link.Current = dropin.ParseNetwork(n.Render())
	for _, test := range []struct {
		name     string
		ours     bool
		networkd plan.Networkd
		there    bool
	}{
		{"left", false, newNetworkd, true},
		{"taken when it has gone", false, newNetworkd, false},
		{"ours", true, newNetworkd, true},
		{"252 would take it away", false, oldNetworkd, true},
	} {
		link := link
		link.Addresses = slices.Clone(link.Addresses)
		if !test.there {
			link.Addresses = slices.DeleteFunc(link.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == v.IPv4[2] })
		}
		link.Foreign = plan.Foreign(&link, func(own plan.OwnAddress) bool { return test.ours && own.MAC == link.MAC })
		in := input([]plan.Link{link}, v)
		in.Networkd = test.networkd
		eni := plan.Make(in).ENIs[0]
		result := against(&eni, nil, whole(&eni))
		if missing := slices.Contains(status.Names(result.Missing), "address 10.0.1.22"); missing == test.there {
			t.Errorf("%s: missing: %v", test.name, missing)
		}
	}
}
