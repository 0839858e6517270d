package plan

import (
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/kernel"
)

// unitWriter writes a unit file. Sections of one name stay apart, other than with the
// libraries of the field, which merge them.
type unitWriter struct{ text strings.Builder }

func (u *unitWriter) comment(format string, args ...any) {
	fmt.Fprintf(&u.text, "# %s\n", clean(fmt.Sprintf(format, args...)))
}

func (u *unitWriter) section(name string) {
	if u.text.Len() > 0 {
		u.text.WriteByte('\n')
	}
	u.text.WriteString("[" + name + "]\n")
}

func (u *unitWriter) set(key, value string) {
	u.text.WriteString(key)
	u.text.WriteByte('=')
	u.text.WriteString(clean(value))
	u.text.WriteByte('\n')
}

func (u *unitWriter) number(key string, value int) { u.set(key, strconv.Itoa(value)) }

func (u *unitWriter) String() string { return u.text.String() }

// clean refuses control characters: no value may end its line. All values are
// numbers, addresses and checked names, so there is nothing that could fail here
// but a mistake in this program.
func clean(value string) string {
	if strings.ContainsFunc(value, func(r rune) bool { return r < ' ' || r == 0x7f }) {
		panic(fmt.Sprintf("control character in a unit file: %q", value))
	}
	return value
}

// addressLine is how a static address stands in a drop-in.
func addressLine(address netip.Addr) string {
	return "Address=" + netip.PrefixFrom(address, address.BitLen()).String()
}

// inDropIn tells whether an address stands in the content of a drop-in.
func inDropIn(content string, address netip.Addr) bool {
	return strings.Contains(content, "\n"+addressLine(address)+"\n")
}

// MACIn returns the MAC address that a generated drop-in is for, or empty.
func MACIn(content string) string {
	for line := range strings.Lines(content) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		if key == macAddress || key == permanentMACAddress {
			return value
		}
	}
	return ""
}

// The keys of [Match] for the MAC address that a link has now, and for the permanent one of its
// device.
const (
	macAddress          = "MACAddress"
	permanentMACAddress = "PermanentMACAddress"
)

// matchMAC continues the section [Match]. By its permanent address a unit stays in force for a port
// of a bond, which gives its ports an address of its own: with another unit networkd would take the
// link out of the bond.
func matchMAC(u *unitWriter, link *Link) {
	if link.Permanent {
		u.set(permanentMACAddress, link.MAC)
	} else {
		u.set(macAddress, link.MAC)
	}
}

// StaticIn returns the static addresses that stand in a generated drop-in, without the
// primary one if that stands before them.
func StaticIn(content string) []netip.Addr {
	var found []netip.Addr
	for line := range strings.Lines(content) {
		if prefix, ok := addressIn(line); ok && prefix.IsSingleIP() {
			found = append(found, prefix.Addr())
		}
	}
	return found
}

// addressIn returns the address of a line of a generated drop-in, if it has one.
func addressIn(line string) (netip.Prefix, bool) {
	value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "Address=")
	prefix, err := netip.ParsePrefix(value)
	return prefix, ok && err == nil
}

// tableRoute is a route to a prefix and the table of it.
type tableRoute struct {
	prefix netip.Prefix
	table  int
}

// files is what the generated drop-ins of an ENI say.
type files struct {
	addresses map[netip.Addr]bool
	routes    map[tableRoute]bool
	rules     map[Rule]bool
	local     map[netip.Prefix]bool
	altnames  []string
	// metric of the default routes in the main table, 0 if they say nothing of them.
	metric int
	// mtu of the link, 0 if they say nothing of it.
	mtu int
}

// read parses generated drop-ins.
func read(rendered Rendered) files {
	f := files{
		addresses: make(map[netip.Addr]bool), routes: make(map[tableRoute]bool), rules: make(map[Rule]bool),
		local: make(map[netip.Prefix]bool),
	}
	for _, rule := range RulesIn(rendered.Network) {
		f.rules[rule] = true
	}
	for line := range strings.Lines(rendered.Network) {
		if address, ok := addressIn(line); ok {
			f.addresses[address.Addr()] = true
		}
	}
	noGateway := false
	section, values := "", make(map[string]string)
	flush := func() {
		table, err := strconv.Atoi(values["Table"])
		if err != nil {
			table = kernel.MainTable
		}
		switch section {
		case "[Link]":
			f.mtu, _ = strconv.Atoi(values["MTUBytes"])
		case "[DHCPv4]":
			f.metric, _ = strconv.Atoi(values["RouteMetric"])
			noGateway = values["UseGateway"] == "no"
		case "[Route]":
			to, _ := netip.ParsePrefix(values["Destination"])
			switch gateway := values["Gateway"]; {
			case to.IsValid():
			case gateway == "_dhcp4":
				to = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			case gateway != "":
				to = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if values["Type"] == "local" {
				f.local[to] = true
			} else {
				f.routes[tableRoute{to, table}] = true
			}
		}
		clear(values)
	}
	for line := range strings.Lines(rendered.Network) {
		line = strings.TrimSuffix(line, "\n")
		if strings.HasPrefix(line, "[") {
			flush()
			section = line
		} else if key, value, ok := strings.Cut(line, "="); ok {
			values[key] = value
		}
	}
	flush()
	if noGateway {
		f.metric = 0
	}
	f.altnames = altnamesIn(rendered.Link)
	return f
}

// altnamesIn returns the alternative names that stand in a generated .link drop-in.
func altnamesIn(content string) (names []string) {
	for line := range strings.Lines(content) {
		if name, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "AlternativeName="); ok {
			names = append(names, name)
		}
	}
	return names
}

// routersIn returns the IPv6 routers that stand in a generated drop-in, in their order.
func routersIn(content string) []netip.Addr {
	var found []netip.Addr
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "Gateway="); ok {
			if router, err := netip.ParseAddr(value); err == nil && !slices.Contains(found, router) {
				found = append(found, router)
			}
		}
	}
	return found
}

// keepKey is the key of what networkd leaves on a link.
const keepKey = "KeepConfiguration"

// keepsAllIn tells whether networkd leaves alone what others put on the link of a generated
// drop-in.
func keepsAllIn(content string) bool { return strings.Contains(content, "\n"+keepKey+"=yes\n") }

// staticIn tells whether a generated drop-in has static IPv6 addresses, and none by DHCPv6.
func staticIn(content string) bool {
	return strings.Contains(content, "\nDHCPv6Client=no\n") || strings.Contains(content, "\nUseAddress=no\n")
}

// valueIn returns the value of a key that stands once in a generated drop-in, or empty.
func valueIn(content, key string) string {
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), key+"="); ok {
			return value
		}
	}
	return ""
}

// metricIs tells whether the content of a drop-in has a route metric.
func metricIs(content string, metric int) bool {
	return strings.Contains(content, fmt.Sprintf("\nRouteMetric=%d\n", metric))
}

// NumbersIn returns the numbers that stand in a generated drop-in.
func NumbersIn(content string) (Numbers, bool) {
	for line := range strings.Lines(content) {
		value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "RouteMetric=")
		if !ok {
			continue
		}
		metric, err := strconv.Atoi(value)
		numbers := Numbers{Card: (metric - metricBase) / cardStep, Index: (metric - metricBase) % cardStep}
		if exception := (Numbers{Card: 5, Index: 12}); metric == exception.Metric() {
			numbers = exception
		}
		if err != nil || metric < metricBase || numbers.Card > highest || numbers.Metric() != metric {
			return Numbers{}, false
		}
		return numbers, true
	}
	return Numbers{}, false
}

// pendingMetricIn returns the metric above UnknownMetric that stands in a generated
// drop-in.
func pendingMetricIn(content string) (int, bool) {
	for line := range strings.Lines(content) {
		if value, ok := strings.CutPrefix(strings.TrimSuffix(line, "\n"), "RouteMetric="); ok {
			metric, err := strconv.Atoi(value)
			return metric, err == nil && metric > UnknownMetric
		}
	}
	return 0, false
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
	return unitFiles(&eni.Link, networkDropIn(eni), in)
}

// Ours tells whether the content of a file is what this daemon writes.
func Ours(content string) bool { return strings.HasPrefix(content, "# Written by ec2netd") }

// holdFile is the unit that has networkd leave ENIs alone that are still to come. The
// primary ENI is none of them, whatever becomes of its own unit.
func holdFile(enis []ENI, drivers []string) File {
	u := &unitWriter{}
	u.comment("Written by ec2netd, see ec2netd(8). An ENI that is attached waits here for its own")
	u.comment("unit, for a moment: so it is configured once. 80-ec2netd.rules sets the property of")
	u.comment("links that come while ec2netd runs, so this has no effect on others.")
	u.section("Match")
	u.set("Driver", strings.Join(drivers, " "))
	u.set("Property", HoldProperty+"=1")
	for i := range enis {
		if enis[i].Primary {
			u.set("Name", "!"+enis[i].Link.Name)
		}
	}
	u.section("Link")
	u.set("Unmanaged", "yes")
	return File{Path: HoldPath, Content: u.String()}
}

// baseFile is the drop-in of the base unit for a networkd that is of 256 or later, see [keepsAll].
// The base unit itself is for 252 too. Without this networkd 257 deletes all groups of next hops of
// others whenever it configures a link by the base unit (F6), whatever ManageForeignNextHops= says.
func baseFile() File {
	u := &unitWriter{}
	u.comment("Written by ec2netd, see ec2netd(8). Changes here are lost: make a drop-in")
	u.comment("in /etc/systemd/network/80-ec2.network.d/ instead, with a name that sorts after this.")
	u.section("Network")
	u.set(keepKey, "yes")
	return File{Path: BaseDropIn, Content: u.String()}
}

// pendingFiles are those of an ENI that is not known: its metric alone.
func pendingFiles(eni *ENI, in Input) []File {
	u := &unitWriter{}
	matchLink(u, &eni.Link)
	if keepsAll(in.Networkd) {
		u.section("Network")
		u.set(keepKey, "yes")
	}
	if eni.Link.IPv6 != kernel.IPv6On {
		ipv6Off(u)
	}
	u.section("DHCPv4")
	u.number("RouteMetric", eni.Want.Metric)
	if eni.Link.IPv6 == kernel.IPv6On {
		u.section("IPv6AcceptRA")
		u.number("RouteMetric", eni.Want.Metric)
	}
	return unitFiles(&eni.Link, u.String(), in)
}

func unitFiles(link *Link, dropIn string, in Input) []File {
	unit := NetworkPath(link.Name)
	files := []File{{Path: NetworkDropIn(link.Name), Content: dropIn}}
	for _, dropIn := range in.BaseDropIns {
		files = append(files, File{Path: path.Join(unit+".d", path.Base(dropIn)), Target: dropIn})
	}
	if link.generatedOwn() {
		unit = path.Join(unit+".d", BaseLinkName)
	}
	return append(files, File{Path: unit, Target: in.Base})
}

// matchLink begins a drop-in for one link.
func matchLink(u *unitWriter, link *Link) {
	u.comment("Written by ec2netd, see ec2netd(8). Changes here are lost: make a drop-in")
	u.comment("in /etc/systemd/network/70-%s.network.d/ instead.", link.Name)

	u.section("Match")
	// The empty line takes back the base unit's drivers: this unit is for one link.
	// The name keeps it off VLANs and macvlans, which inherit the MAC address (C5).
	u.set("Driver", "")
	matchMAC(u, link)
	u.set("Name", link.Name)
	// By its group an ENI is told from links of the host's own, whatever base unit is in
	// force (B9).
	u.section("Link")
	u.number("Group", Group)
	keepDown(u, link)
	keepMaster(u, link)
}

func networkDropIn(eni *ENI) string {
	view, want := &eni.Applies, &eni.Want
	u := &unitWriter{}
	matchLink(u, &eni.Link)

	if want.OwnMTU {
		u.section("Link")
		u.number("MTUBytes", want.MTU)
	}
	if want.KeepAll || eni.Primary || eni.withoutGateway() || want.Domains != "" {
		u.section("Network")
	}
	if want.Domains != "" {
		u.set("Domains", want.Domains)
	}
	if want.KeepAll {
		u.set(keepKey, "yes")
	}
	switch {
	case eni.withoutGateway():
		u.set("DNSDefaultRoute", "no")
	case eni.Primary:
		u.set("DNSDefaultRoute", "yes")
	}

	off := eni.Link.IPv6 != kernel.IPv6On
	if off {
		ipv6Off(u)
	} else if want.StaticIPv6 && want.IPv4 && !takesOver(eni) {
		u.section("Network")
		u.set("DHCP", "ipv4")
	}

	u.section("DHCPv4")
	u.number("RouteMetric", want.Metric)
	if eni.withoutGateway() {
		u.set("UseGateway", "no")
	}
	if eni.Link.refusesRoutes() {
		u.set("RoutesToDNS", "no")
		u.set("RoutesToNTP", "no")
	}
	if want.OwnMTU {
		u.set("UseMTU", "no")
	}
	if want.Domains != "" {
		u.set("UseDomains", "no")
	}
	dns(u, eni.Settings.DNS, want.LeaveDNS)

	// The primary ENI's router in the main table: with it stands a static route.
	beside := eni.Primary && !routersFirst(eni) && want.IPv6 && len(want.Routers) > 0
	if !off {
		advertisements(u, eni, beside)
	}

	if want.Ahead.IsValid() {
		u.section("Address")
		u.set("Address", want.Ahead.String())
		// networkd 252 forgets the metric of that route when it is restarted, and without one
		// it goes before the primary ENI's.
		u.set("AddPrefixRoute", "no")
		u.section("Route")
		u.set("Destination", want.Ahead.Masked().String())
		u.set("Scope", "link")
		u.number("Metric", want.Metric)
	}
	for _, address := range want.Static {
		u.section("Address")
		u.text.WriteString(addressLine(address) + "\n")
		u.set("AddPrefixRoute", "no")
		if address.Is6() {
			// EC2 sees to it that an address is not given twice; detection would only
			// delay its use.
			u.set("DuplicateAddressDetection", "none")
			if address != want.Source {
				u.set("PreferredLifetime", "0")
			}
		}
	}
	for _, prefix := range want.Local {
		u.section("Route")
		u.set("Destination", prefix.String())
		u.set("Type", "local")
	}
	if want.Services {
		services(u, want)
	}
	if beside {
		// networkd 252 drops what a router advertised with each reload, and has it again
		// after up to a second: these stay meanwhile (facts.md 4). Other ENIs have default
		// routes with the next metric, so these have the primary's own (B6), and what is
		// advertised is better by one: a new router is followed at once, whoever runs.
		for _, subnet := range slices.SortedFunc(slices.Values(view.IPv6Subnets), netip.Prefix.Compare) {
			u.section("Route")
			u.set("Destination", subnet.String())
			u.number("Metric", want.Metric)
		}
		for _, router := range want.Routers {
			if !eni.withoutGateway() {
				u.section("Route")
				u.set("Gateway", router.String())
				u.number("Metric", want.Metric)
			}
		}
	}
	if routersFirst(eni) {
		keepRouters(u, eni)
	}
	if want.Table == 0 {
		return u.String()
	}

	family := func(use bool, gateway string, subnets []netip.Prefix) {
		if !use {
			return
		}
		u.section("Route")
		u.set("Gateway", gateway)
		u.number("Table", want.Table)
		for _, subnet := range slices.SortedFunc(slices.Values(subnets), netip.Prefix.Compare) {
			u.section("Route")
			u.set("Destination", subnet.String())
			if subnet.Addr().Is4() {
				u.set("Scope", "link")
			}
			u.number("Table", want.Table)
		}
	}
	family(want.IPv4, "_dhcp4", view.IPv4Subnets)
	family(want.IPv6, "_ipv6ra", view.IPv6Subnets)
	if !want.StaticIPv6 || slices.ContainsFunc(want.Static, netip.Addr.Is6) {
		for _, router := range want.Routers {
			// The route by advertisement comes a second or two after the link, and on 252
			// it goes for as long with each reload. Until it is there again, this one is
			// used: a static route that stands in the old and the new file is not touched
			// (facts.md 4). Once there, that one is better: a new router is followed.
			u.section("Route")
			u.set("Gateway", router.String())
			u.number("Table", want.Table)
			u.number("Metric", UnknownMetric)
		}
	}

	for _, rule := range want.policyRules() {
		policyRule(u, rule)
	}
	return u.String()
}

// services adds routes to what EC2 has at link-local addresses: the metadata and time services and
// the VPC's name server ("Link-local addresses" and "Amazon Time Sync Service" in the EC2 user
// guide). A VPN that takes everything along leaves specific routes of the main table alone.
func services(u *unitWriter, want *Want) {
	route := func(use bool, destination netip.Prefix, gateway string) {
		if !use {
			return
		}
		u.section("Route")
		u.set("Destination", destination.String())
		u.set("Gateway", gateway)
		u.number("Metric", want.Metric)
	}
	route(want.IPv4, servicesIPv4, "_dhcp4")
	route(want.IPv6, servicesIPv6, "_ipv6ra")
}

// Where EC2 has its link-local services.
var (
	servicesIPv4 = netip.MustParsePrefix("169.254.169.0/24")
	servicesIPv6 = netip.MustParsePrefix("fd00:ec2::/32")
)

// dns replaces the servers of leases and router advertisements, or leaves them; it continues
// the section [DHCPv4].
func dns(u *unitWriter, servers []netip.Addr, leave bool) {
	if len(servers) == 0 && !leave {
		return
	}
	u.set("UseDNS", "no")
	for _, section := range []string{"DHCPv6", "IPv6AcceptRA"} {
		u.section(section)
		u.set("UseDNS", "no")
	}
	if len(servers) > 0 {
		u.section("Network")
	}
	for _, server := range servers {
		u.set("DNS", server.String())
	}
}

// policyRule writes a policy rule.
func policyRule(u *unitWriter, rule Rule) {
	u.section("RoutingPolicyRule")
	switch {
	case rule.Mark.Value == 0:
		u.set("From", rule.From.String())
	case rule.From.Bits() > 0:
		u.set("From", rule.From.String())
		u.set("FirewallMark", rule.Mark.String())
	case rule.From.Addr().Is4():
		u.set("Family", "ipv4")
		u.set("FirewallMark", rule.Mark.String())
	default:
		u.set("Family", "ipv6")
		u.set("FirewallMark", rule.Mark.String())
	}
	u.number("Table", rule.Table)
	u.number("Priority", rule.Priority)
	if rule.Guard {
		u.number("SuppressPrefixLength", kernel.GuardLength(rule.Group))
	}
	if rule.Group != 0 {
		u.number("SuppressInterfaceGroup", rule.Group)
	}
}

// keepRouters adds what stays when networkd from 256 on restarts, and drops what a router
// advertised, see [startFiles]. It goes before that, so that none of it changes, and no other
// ENI's comes between. Of several routers the one that came last is the best.
func keepRouters(u *unitWriter, eni *ENI) {
	view, want := &eni.Applies, &eni.Want
	if len(want.Routers) == 0 {
		return
	}
	for _, subnet := range slices.SortedFunc(slices.Values(view.IPv6Subnets), netip.Prefix.Compare) {
		u.section("Route")
		u.set("Destination", subnet.String())
		u.number("Metric", want.Metric-1)
	}
	if eni.withoutGateway() {
		return
	}
	for i, router := range want.Routers {
		u.section("Route")
		u.set("Gateway", router.String())
		// Else networkd sets it where no address stands in the file, and has another route,
		// which it adds anew, when one comes or goes.
		u.set("GatewayOnLink", "yes")
		u.number("Metric", want.Metric-len(want.Routers)+i)
	}
}

// advertisements says what becomes of router advertisements; beside: static routes stand
// with those that they bring.
func advertisements(u *unitWriter, eni *ENI, beside bool) {
	want := &eni.Want
	u.section("IPv6AcceptRA")
	if beside {
		u.number("RouteMetric", want.Metric-1)
	} else {
		u.number("RouteMetric", want.Metric)
	}
	if eni.withoutGateway() {
		u.set("UseGateway", "no")
	}
	switch {
	case want.StaticIPv6 && takesOver(eni):
		if len(eni.onLink(eni.Applies.IPv6)) == len(eni.Applies.IPv6) {
			u.set("DHCPv6Client", "no")
		}
		// Else with the next advertisement there is a lease, and networkd removes the addresses of
		// the last one that are not to be on the link (A12).
		u.section("DHCPv6")
		u.set("UseAddress", "no")
		u.set("WithoutRA", "no")
	case want.StaticIPv6 && want.IPv4:
		u.set("DHCPv6Client", "no")
	case want.StaticIPv6:
		// In an IPv6-only subnet nothing but DHCPv6 tells of DNS and NTP servers that can be
		// reached, and of domains (A6, A10).
		u.section("DHCPv6")
		u.set("UseAddress", "no")
	}
}

// linkFiles add the altnames. The unit is a link to the .link file in force, so
// that every policy of that one stays in force (G2, facts.md 15).
func linkFiles(eni *ENI) []File {
	if eni.Link.LinkFile == "" {
		return nil
	}
	name := eni.Link.Name
	u := &unitWriter{}
	u.comment("Written by ec2netd, see ec2netd(8). Changes here are lost.")
	u.section("Match")
	matchMAC(u, &eni.Link)
	// Bridges, bonds, VLANs and macvlans inherit the MAC address (C5).
	u.set("Driver", eni.Link.Driver)
	u.section("Link")
	for _, altname := range eni.Want.Altnames {
		u.set("AlternativeName", altname)
	}
	files := []File{{Path: LinkDropIn(name), Content: u.String()}}
	for _, dropIn := range eni.Link.LinkDropIns {
		files = append(files, File{Path: path.Join(LinkPath(name)+".d", path.Base(dropIn)), Target: dropIn})
	}
	return append(files, File{Path: LinkPath(name), Target: eni.Link.LinkFile})
}
