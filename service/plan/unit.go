package plan

import (
	"net/netip"
	"path"
	"slices"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
)

// NumbersIn returns the numbers that a generated drop-in gives an ENI.
func NumbersIn(n *dropin.Network) (Numbers, bool) {
	metric := n.RouteMetric()
	numbers := Numbers{Card: (metric - metricBase) / cardStep, Index: (metric - metricBase) % cardStep}
	if exception := (Numbers{Card: 5, Index: 12}); metric == exception.Metric() {
		numbers = exception
	}
	if metric < metricBase || numbers.Card > highest || numbers.Metric() != metric {
		return Numbers{}, false
	}
	return numbers, true
}

// pendingMetricIn returns the metric above UnknownMetric that a generated drop-in gives an ENI.
func pendingMetricIn(n *dropin.Network) (int, bool) {
	metric := n.RouteMetric()
	return metric, metric > UnknownMetric
}

// localPriority is the priority of the rules that let routes of the main table over links of
// the host's own go before the tables of ENIs (B9).
const localPriority = tableBase - 1

// guard is the priority of the rules that let specific routes of the main table go
// before a table.
func guard(table int) int { return table - 1 }

// networkFiles are the unit, its own drop-in, and the base unit's drop-ins. The
// drop-in comes first: a reader that sees the unit sees all of it.
func networkFiles(eni *ENI, in Input) []File {
	eni.DropIn = networkDropIn(eni)
	return unitFiles(&eni.Link, eni.DropIn, in)
}

// holdFile is the unit that has networkd leave ENIs alone that are still to come. The
// primary ENI is none of them, whatever becomes of its own unit.
func holdFile(enis []ENI, drivers []string) File {
	hold := dropin.Hold{Drivers: drivers, Property: HoldProperty + "=1"}
	for i := range enis {
		if enis[i].Primary {
			hold.Except = append(hold.Except, enis[i].Link.Name)
		}
	}
	return File{Path: HoldPath, Content: hold.Render()}
}

// baseFile is the drop-in of the base unit for a networkd that is of 256 or later, see [keepsAll].
// The base unit itself is for 252 too. Without this networkd 257 deletes all groups of next hops of
// others whenever it configures a link by the base unit (F6), whatever ManageForeignNextHops= says.
func baseFile() File {
	base := dropin.Base{KeepConfiguration: dropin.KeepYes}
	return File{Path: BaseDropIn, Content: base.Render()}
}

// pendingFiles are those of an ENI that is not known: its metric alone.
func pendingFiles(eni *ENI, in Input) []File {
	n := newDropIn(&eni.Link)
	if keepsAll(in.Networkd) {
		n.Network.KeepConfiguration = dropin.KeepYes
	}
	n.DHCPv4.RouteMetric = eni.Want.Metric
	if eni.Link.IPv6 == kernel.IPv6On {
		n.IPv6AcceptRA.RouteMetric = eni.Want.Metric
	} else {
		ipv6Off(n)
	}
	eni.DropIn = n
	return unitFiles(&eni.Link, n, in)
}

func unitFiles(link *Link, own *dropin.Network, in Input) []File {
	unit := NetworkPath(link.Name)
	files := []File{{Path: NetworkDropIn(link.Name), Content: own.Render()}}
	for _, dropIn := range in.BaseDropIns {
		files = append(files, File{Path: path.Join(unit+".d", path.Base(dropIn)), Target: dropIn})
	}
	if link.generatedOwn() {
		unit = path.Join(unit+".d", BaseLinkName)
	}
	return append(files, File{Path: unit, Target: in.Base})
}

// networkMatch has a .network unit match one link. By its permanent address a unit stays in force for a
// port of a bond, which gives its ports an address of its own: with another unit networkd would take
// the link out of the bond.
func networkMatch(link *Link) dropin.NetworkMatch {
	if link.Permanent {
		return dropin.NetworkMatch{PermanentMACAddress: link.MAC, Name: link.Name}
	}
	return dropin.NetworkMatch{MACAddress: link.MAC, Name: link.Name}
}

// linkMatch has a .link file match one link, as networkMatch.
func linkMatch(link *Link) dropin.LinkMatch {
	if link.Permanent {
		return dropin.LinkMatch{PermanentMACAddress: link.MAC, Driver: link.Driver}
	}
	return dropin.LinkMatch{MACAddress: link.MAC, Driver: link.Driver}
}

// newDropIn begins a drop-in for one link.
func newDropIn(link *Link) *dropin.Network {
	n := &dropin.Network{Match: networkMatch(link)}
	// By its group an ENI is told from links of the host's own, whatever base unit is in
	// force (B9).
	n.Link.Group = Group
	keepDown(n, link)
	keepMaster(n, link)
	return n
}

func networkDropIn(eni *ENI) *dropin.Network {
	want := &eni.Want
	n := newDropIn(&eni.Link)
	if want.OwnMTU {
		n.Link.MTUBytes = want.MTU
		n.DHCPv4.UseMTU = dropin.No
	}
	if want.Domains != "" {
		n.Network.Domains = want.Domains
		n.DHCPv4.UseDomains = dropin.No
	}
	if want.KeepAll {
		n.Network.KeepConfiguration = dropin.KeepYes
	}
	switch {
	case eni.withoutGateway():
		n.Network.DNSDefaultRoute = dropin.No
	case eni.Primary:
		n.Network.DNSDefaultRoute = dropin.Yes
	}
	n.DHCPv4.RouteMetric = want.Metric
	if eni.withoutGateway() {
		n.DHCPv4.UseGateway = dropin.No
	}
	if eni.Link.refusesRoutes() {
		n.DHCPv4.RoutesToDNS, n.DHCPv4.RoutesToNTP = dropin.No, dropin.No
	}
	dns(n, eni.Settings.DNS, want.LeaveDNS)

	// The primary ENI's router in the main table: with it stands a static route.
	beside := eni.Primary && !routersFirst(eni) && want.IPv6 && len(want.Routers) > 0
	if eni.Link.IPv6 != kernel.IPv6On {
		ipv6Off(n)
	} else {
		if want.StaticIPv6 && want.IPv4 && !takesOver(eni) {
			n.Network.DHCP = dropin.DHCPIPv4
		}
		advertisements(n, eni, beside)
	}
	addresses(n, want)
	for _, prefix := range want.Local {
		n.Routes = append(n.Routes, dropin.Route{Destination: prefix, Type: dropin.TypeLocal})
	}
	if want.Services {
		services(n, want)
	}
	if beside {
		routersBeside(n, eni)
	}
	if routersFirst(eni) {
		keepRouters(n, eni)
	}
	if want.Table != 0 {
		ownTable(n, eni)
	}
	return n
}

// addresses adds the static addresses.
func addresses(n *dropin.Network, want *Want) {
	if want.Ahead.IsValid() {
		n.Addresses = append(n.Addresses, dropin.Address{
			Address: want.Ahead,
			// networkd 252 forgets the metric of that route when it is restarted, and without one
			// it goes before the primary ENI's.
			AddPrefixRoute: dropin.No,
			Subnet:         dropin.Route{Destination: want.Ahead.Masked(), Scope: dropin.ScopeLink, Metric: want.Metric},
		})
	}
	for _, address := range want.Static {
		a := dropin.Address{Address: netip.PrefixFrom(address, address.BitLen()), AddPrefixRoute: dropin.No}
		if address.Is6() {
			// EC2 sees to it that an address is not given twice; detection would only
			// delay its use.
			a.DuplicateAddressDetection = dropin.DetectNone
			if address != want.Source {
				a.PreferredLifetime = dropin.Deprecated
			}
		}
		n.Addresses = append(n.Addresses, a)
	}
}

// routersBeside adds routes beside those that are advertised.
//
// networkd 252 drops what a router advertised with each reload, and has it again
// after up to a second: these stay meanwhile (facts: static-ipv6). Other ENIs have default
// routes with the next metric, so these have the primary's own (B6), and what is
// advertised is better by one: a new router is followed at once, whoever runs.
func routersBeside(n *dropin.Network, eni *ENI) {
	want := &eni.Want
	for _, subnet := range sorted(eni.Applies.IPv6Subnets) {
		n.Routes = append(n.Routes, dropin.Route{Destination: subnet, Metric: want.Metric})
	}
	for _, router := range want.Routers {
		if !eni.withoutGateway() {
			n.Routes = append(n.Routes, dropin.Route{Gateway: dropin.Gateway{Address: router}, Metric: want.Metric})
		}
	}
}

// ownTable adds the table of an ENI and the rules that lead to it.
func ownTable(n *dropin.Network, eni *ENI) {
	view, want := &eni.Applies, &eni.Want
	family := func(use bool, gateway dropin.LearnedGateway, subnets []netip.Prefix) {
		if !use {
			return
		}
		n.Routes = append(n.Routes, dropin.Route{Gateway: dropin.Gateway{Learned: gateway}, Table: want.Table})
		for _, subnet := range sorted(subnets) {
			r := dropin.Route{Destination: subnet, Table: want.Table}
			if subnet.Addr().Is4() {
				r.Scope = dropin.ScopeLink
			}
			n.Routes = append(n.Routes, r)
		}
	}
	family(want.IPv4, dropin.FromDHCPv4, view.IPv4Subnets)
	family(want.IPv6, dropin.FromRA, view.IPv6Subnets)
	if !want.StaticIPv6 || slices.ContainsFunc(want.Static, netip.Addr.Is6) {
		for _, router := range want.Routers {
			// The route by advertisement comes a second or two after the link, and on 252
			// it goes for as long with each reload. Until it is there again, this one is
			// used: a static route that stands in the old and the new file is not touched
			// (facts: static-ipv6). Once there, that one is better: a new router is followed.
			n.Routes = append(n.Routes, dropin.Route{Gateway: dropin.Gateway{Address: router}, Table: want.Table, Metric: UnknownMetric})
		}
	}
	for _, rule := range want.PolicyRules() {
		n.Rules = append(n.Rules, rule.section())
	}
}

func sorted(subnets []netip.Prefix) []netip.Prefix {
	return slices.SortedFunc(slices.Values(subnets), netip.Prefix.Compare)
}

// services adds routes to what EC2 has at link-local addresses: the metadata and time services and
// the VPC's name server ("Link-local addresses" and "Amazon Time Sync Service" in the EC2 user
// guide). A VPN that takes everything along leaves specific routes of the main table alone.
func services(n *dropin.Network, want *Want) {
	route := func(use bool, destination netip.Prefix, gateway dropin.LearnedGateway) {
		if use {
			n.Routes = append(n.Routes, dropin.Route{Destination: destination, Gateway: dropin.Gateway{Learned: gateway}, Metric: want.Metric})
		}
	}
	route(want.IPv4, ServicesIPv4, dropin.FromDHCPv4)
	route(want.IPv6, ServicesIPv6, dropin.FromRA)
}

// ServicesIPv4 and ServicesIPv6 are where EC2 has its link-local services.
var (
	ServicesIPv4 = netip.MustParsePrefix("169.254.169.0/24")
	ServicesIPv6 = netip.MustParsePrefix("fd00:ec2::/32")
)

// dns replaces the servers of leases and router advertisements, or leaves them.
func dns(n *dropin.Network, servers []netip.Addr, leave bool) {
	if len(servers) == 0 && !leave {
		return
	}
	n.DHCPv4.UseDNS, n.DHCPv6.UseDNS, n.IPv6AcceptRA.UseDNS = dropin.No, dropin.No, dropin.No
	n.Network.DNS = servers
}

// keepRouters adds what stays when networkd from 256 on restarts, and drops what a router
// advertised, see [startFiles]. It goes before that, so that none of it changes, and no other
// ENI's comes between. Of several routers the one that came last is the best.
func keepRouters(n *dropin.Network, eni *ENI) {
	want := &eni.Want
	if len(want.Routers) == 0 {
		return
	}
	for _, subnet := range sorted(eni.Applies.IPv6Subnets) {
		n.Routes = append(n.Routes, dropin.Route{Destination: subnet, Metric: want.Metric - 1})
	}
	if eni.withoutGateway() {
		return
	}
	for i, router := range want.Routers {
		n.Routes = append(n.Routes, dropin.Route{
			Gateway: dropin.Gateway{Address: router},
			// Else networkd sets it where no address stands in the file, and has another route,
			// which it adds anew, when one comes or goes.
			GatewayOnLink: dropin.Yes,
			Metric:        want.Metric - len(want.Routers) + i,
		})
	}
}

// advertisements says what becomes of router advertisements; beside: static routes stand
// with those that they bring.
func advertisements(n *dropin.Network, eni *ENI, beside bool) {
	want := &eni.Want
	n.IPv6AcceptRA.RouteMetric = want.Metric
	if beside {
		n.IPv6AcceptRA.RouteMetric--
	}
	if eni.withoutGateway() {
		n.IPv6AcceptRA.UseGateway = dropin.No
	}
	switch {
	case want.StaticIPv6 && takesOver(eni):
		if len(eni.onLink(eni.Applies.IPv6)) == len(eni.Applies.IPv6) {
			n.IPv6AcceptRA.DHCPv6Client = dropin.No
		}
		// Else with the next advertisement there is a lease, and networkd removes the addresses of
		// the last one that are not to be on the link (A12).
		n.DHCPv6.UseAddress, n.DHCPv6.WithoutRA = dropin.No, dropin.No
	case want.StaticIPv6 && want.IPv4:
		n.IPv6AcceptRA.DHCPv6Client = dropin.No
	case want.StaticIPv6:
		// In an IPv6-only subnet nothing but DHCPv6 tells of DNS and NTP servers that can be
		// reached, and of domains (A6, A10).
		n.DHCPv6.UseAddress = dropin.No
	}
}

// linkFiles add the altnames. The unit is a link to the .link file in force, so
// that every policy of that one stays in force (G2, facts: link-files).
func linkFiles(eni *ENI) []File {
	if eni.Link.LinkFile == "" {
		return nil
	}
	name := eni.Link.Name
	eni.LinkDropIn = &dropin.Link{
		Match: linkMatch(&eni.Link), AlternativeNames: eni.Want.Altnames,
	}
	files := []File{{Path: LinkDropIn(name), Content: eni.LinkDropIn.Render()}}
	for _, dropIn := range eni.Link.LinkDropIns {
		files = append(files, File{Path: path.Join(LinkPath(name)+".d", path.Base(dropIn)), Target: dropIn})
	}
	return append(files, File{Path: LinkPath(name), Target: eni.Link.LinkFile})
}
