package plan

import (
	"fmt"
	"net/netip"
	"slices"

	"ec2netd/service/kernel"
)

// Gap is what lies between what an ENI shall have and what the kernel has, in words.
type Gap struct {
	// Missing is not there.
	Missing []string
	// Late is not there, but comes with the next router advertisement, and no traffic
	// of the ENI's addresses depends on it.
	Late []string
	// Unwanted stands in the way and is surely this daemon's: policy rules with the
	// ENI's own priority and table for a source that it no longer has, DHCP routes of
	// an old metric, and withdrawn addresses that are still on the link.
	Unwanted []string
}

// Gaps compares what an ENI shall have with what the kernel has. withdrawn are the
// addresses that were taken out of its drop-in.
func Gaps(eni *ENI, snapshot *kernel.Snapshot, withdrawn []netip.Addr) Gap {
	var missing, late, unwanted []string
	want, link := &eni.Want, &eni.Link
	for _, address := range want.Addresses {
		if !link.Has(address) {
			missing = append(missing, "address "+address.String())
		}
	}
	for _, f := range []struct {
		use  bool
		ipv4 bool
		name string
	}{{want.IPv4, true, "IPv4"}, {want.IPv6, false, "IPv6"}} {
		if !f.use {
			continue
		}
		own := want.Table != 0 && hasDefault(snapshot, link.Index, want.Table, 0, f.ipv4)
		if want.Table != 0 && !own {
			missing = append(missing, fmt.Sprintf("default route (%s) in table %d", f.name, want.Table))
		}
		if !want.NoDefault && !hasDefault(snapshot, link.Index, kernel.MainTable, want.Metric, f.ipv4) {
			gap := fmt.Sprintf("default route (%s) with metric %d", f.name, want.Metric)
			if own && !f.ipv4 {
				late = append(late, gap)
			} else {
				missing = append(missing, gap)
			}
		}
	}
	switch {
	case want.NoDefault && len(link.DHCPMetrics) > 0:
		unwanted = append(unwanted, "default route by DHCP in the main table")
	case want.Metric != 0 && stale(link, want.Metric):
		unwanted = append(unwanted, fmt.Sprintf("default route by DHCP with another metric than %d", want.Metric))
	}
	for _, prefix := range want.Local {
		if !slices.ContainsFunc(snapshot.Routes, func(r kernel.Route) bool { return r.Local && r.Destination == prefix }) {
			missing = append(missing, "local route "+prefix.String())
		}
	}
	if want.Table != 0 {
		present, guarded := make(map[netip.Prefix]bool), make(map[netip.Prefix]bool)
		for _, rule := range snapshot.Rules {
			if rule.Guard && rule.Priority == guard(want.Table) && rule.Table == kernel.MainTable {
				guarded[rule.From] = true
				continue
			}
			if rule.Priority != want.Table || rule.Table != want.Table || !rule.Plain {
				continue
			}
			present[rule.From] = true
			if rule.Protocol == kernel.ProtocolStatic && !slices.Contains(want.Rules, rule.From) {
				unwanted = append(unwanted, fmt.Sprintf("rule from %s lookup %d", rule.From, rule.Table))
			}
		}
		for _, from := range want.Rules {
			if want.Guarded && !guarded[from] {
				missing = append(missing, fmt.Sprintf("rule from %s lookup %d suppress_prefixlength 0", from, kernel.MainTable))
			}
			if !present[from] {
				missing = append(missing, fmt.Sprintf("rule from %s lookup %d", from, want.Table))
			}
		}
	}
	for _, address := range withdrawn {
		if link.Has(address) && !slices.Contains(want.Addresses, address) {
			unwanted = append(unwanted, "address "+address.String())
		}
	}
	for _, altname := range want.Altnames {
		if !slices.Contains(link.Altnames, altname) {
			missing = append(missing, "altname "+altname)
		}
	}
	return Gap{Missing: missing, Late: late, Unwanted: unwanted}
}

// Lacking is an address that the ENI has by the metadata and not on its link, though the
// link has a carrier: the primary one, which DHCP has not brought, or else one that
// stands in the drop-in and that networkd has not added, or somebody took away. On 252
// networkd loses a static IPv6 address where the lease of the same address ends just
// then. It is the zero Addr if nothing is lacking.
func Lacking(eni *ENI) netip.Addr {
	if !eni.Known || !eni.Settings.Managed || !eni.Link.Carrier {
		return netip.Addr{}
	}
	if eni.Want.Primary.IsValid() && !eni.Link.Has(eni.Want.Primary) {
		return eni.Want.Primary
	}
	for _, address := range eni.Want.Static {
		if !eni.Link.Has(address) {
			return address
		}
	}
	return netip.Addr{}
}

// Misordered says in words that the primary address is not the first of the link
// (A3), or is empty. All addresses work nevertheless, and routes name their source;
// it is programs that take the first address of a link that see another one. On
// systemd 252 it comes of a restart of networkd, which adds the lease's address anew,
// after the others. Only removing the others would mend it.
func Misordered(eni *ENI) string {
	first, ok := eni.Link.FirstGlobalIPv4()
	if !ok || !eni.Want.Primary.IsValid() || first == eni.Want.Primary || !eni.Link.Has(eni.Want.Primary) {
		return ""
	}
	return fmt.Sprintf("the first address of the link is %s, not the primary one %s, which networkd has added anew: no address is missing", first, eni.Want.Primary)
}

// hasDefault tells whether a link has a default route of the family in a table;
// metric 0 stands for any.
func hasDefault(snapshot *kernel.Snapshot, index, table, metric int, ipv4 bool) bool {
	return slices.ContainsFunc(snapshot.Routes, func(r kernel.Route) bool {
		return r.Link == index && r.Table == table && r.IsDefault() && r.Destination.Addr().Is4() == ipv4 &&
			(metric == 0 || r.Metric == metric)
	})
}
