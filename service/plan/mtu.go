package plan

// VPCMTU is the MTU of a VPC's networks (A9): "Jumbo frames" in the EC2 user guide. DHCP
// tells it, but for an ENI in an IPv6-only subnet nobody does.
const VPCMTU = 9001

// settleMTU decides on the MTU of a known ENI. Only where nobody else tells it the drop-in
// does.
func settleMTU(eni *ENI) {
	link, want := &eni.Link, &eni.Want
	set := link.MTUSetting
	switch {
	case set.Bytes != 0:
		want.MTU, want.OwnMTU = set.Bytes, set.OfLink
	case len(eni.View.IPv4) == 0:
		want.MTU, want.OwnMTU = VPCMTU, true
	case set.Lease:
		want.MTU = link.LeaseMTU
	}
	if link.MaxMTU != 0 {
		want.MTU = min(want.MTU, link.MaxMTU)
	}
}
