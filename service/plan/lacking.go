package plan

import (
	"net/netip"

	"ec2netd/service/status"
)

// Lacking is an address that the ENI has by the metadata and not on its link, though the
// link has a carrier: the primary one, which DHCP has not brought, or else one that
// stands in the drop-in and that networkd has not added, or somebody took away. On 252
// networkd loses a static IPv6 address where the lease of the same address ends just
// then. An address that stands in the drop-in is lacking too where the lease has brought no
// route. It is the zero Addr if nothing is lacking.
func Lacking(eni *ENI) netip.Addr {
	if !eni.Known || !eni.Settings.Managed || !eni.Link.Carrier || eni.Link.Port() {
		return netip.Addr{}
	}
	// What stands in the drop-in is there without a lease, but no route of it.
	routeless := eni.Want.Ahead.IsValid() && len(eni.Link.DHCPMetrics) == 0
	if eni.Want.Primary.IsValid() && (routeless || !eni.Link.Has(eni.Want.Primary)) {
		return eni.Want.Primary
	}
	for _, address := range eni.Want.Static {
		if !eni.Link.Has(address) {
			return address
		}
	}
	return netip.Addr{}
}

// Misordered says that the primary address is not the first of the link (A3), or nothing. All
// addresses work nevertheless, and routes name their source;
// it is programs that take the first address of a link that see another one. On
// systemd 252 it comes of a restart of networkd, which adds the lease's address anew,
// after the others. Only removing the others would mend it.
func Misordered(eni *ENI) status.Reason {
	if !misordered(eni) {
		return status.Reason{}
	}
	first, _ := eni.Link.FirstGlobalIPv4()
	return status.Reason{Code: status.Misordered, Value: first.String(), OtherValue: eni.Want.Primary.String()}
}

func misordered(eni *ENI) bool {
	first, ok := eni.Link.FirstGlobalIPv4()
	return ok && eni.Want.Primary.IsValid() && first != eni.Want.Primary && eni.Link.Has(eni.Want.Primary)
}
