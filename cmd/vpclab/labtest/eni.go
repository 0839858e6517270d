package labtest

import (
	"net/netip"
	"slices"

	"ec2netd/cmd/vpclab/vpc"
)

// HotplugSpec is the ENI of the main job: 3 IPv4 addresses, 1 IPv6 address, an IPv4
// and an IPv6 prefix.
func HotplugSpec() vpc.ENISpec {
	return vpc.ENISpec{IPv4Count: 3, IPv6Count: 1, PrefixV4Count: 1, PrefixV6Count: 1}
}

// Sources lists what of an ENI must have a rule: its addresses and prefixes, sorted as text.
func Sources(eni *vpc.ENI) []string {
	var out []string
	for _, a := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		out = append(out, a.String())
	}
	for _, p := range eni.Prefixes() {
		out = append(out, p.String())
	}
	slices.Sort(out)
	return out
}

// TableOf returns the number of the ENI's routing table, which is also the priority of its rules (B1).
func TableOf(eni *vpc.ENI) int {
	table := 10000 + eni.DeviceIndex()
	if card := eni.NetworkCard(); card != nil {
		table += 100 * *card
	}
	return table
}

// Sorted returns addresses in their order.
func Sorted(addresses []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addresses), netip.Addr.Compare)
}
