package compare

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// comparison is a [Result] in the making.
type comparison struct {
	eni     *plan.ENI
	actual  Actual
	files   files
	entries []entry
	// ipv6 is why IPv6 does not apply to the ENI, and ipv6Words the same in words.
	ipv6      status.Reason
	ipv6Words string
	// listed are the addresses that have an entry, applied those that networkd counts as its own.
	listed, applied map[netip.Addr]bool
}

// entriesOf lists what the ENI shall have or has at any of the places, with the reason where they
// differ.
func entriesOf(eni *plan.ENI, actual Actual) []entry {
	// some is more than an ENI has of what is neither an address nor a rule.
	const some = 16
	c := &comparison{eni: eni, actual: actual, files: filesOf(actual.Rendered), ipv6: eni.IPv6NotApplicable()}
	c.ipv6Words = c.ipv6.Words()
	c.entries = make([]entry, 0, len(eni.Want.Addresses)+len(eni.Want.Rules)+some)
	c.addresses()
	c.routes()
	c.rules()
	c.inapplicable()
	c.mtu()
	c.altnames()
	for i := range c.entries {
		e := &c.entries[i]
		why := c.why(e)
		e.Reason = why.Words()
	}
	return c.entries
}

// add begins an entry that the metadata asks for, or that is there without it. gap has no value if
// it is that of the item. The entry must not be used after the next one is begun.
func (c *comparison) add(kind state.Kind, value string, asked bool, gap status.Gap) *entry {
	e := entry{Item: state.Item{Kind: kind, Value: value, Metadata: state.Told(asked)}, wanted: asked, gap: gap}
	if !asked && c.eni.View.MAC == "" {
		e.Metadata = state.Untold
	}
	c.entries = append(c.entries, e)
	return &c.entries[len(c.entries)-1]
}

// networkd answers whether networkd counts something as its own.
func (c *comparison) networkd(has func(*kernel.Snapshot) bool) state.Answer {
	if c.actual.Applied == nil {
		return state.Untold
	}
	return state.Told(has(c.actual.Applied))
}

func (c *comparison) addresses() {
	eni := c.eni
	c.listed, c.applied = make(map[netip.Addr]bool), addressesOn(c.actual.Applied, eni.Link.Index)
	for _, address := range eni.Want.Addresses {
		c.address(address, true, true)
	}
	for _, address := range slices.Concat(eni.View.IPv4, eni.View.IPv6) {
		if !c.listed[address] {
			c.notWanted(address)
		}
	}
	for _, address := range c.actual.Withdrawn {
		if !c.listed[address] && eni.Link.Has(address) {
			c.address(address, false, false).unwanted = eni.Known
		}
	}
	for _, a := range eni.Link.Addresses {
		// Link-local addresses are nobody's to give (A6).
		if address := a.Prefix.Addr(); !c.listed[address] && a.Global && !address.IsLinkLocalUnicast() {
			c.address(address, false, false)
		}
	}
	for _, address := range slices.SortedFunc(maps.Keys(c.files.addresses), netip.Addr.Compare) {
		if !c.listed[address] {
			c.address(address, false, false)
		}
	}
}

func (c *comparison) address(address netip.Addr, asked, wanted bool) *entry {
	c.listed[address] = true
	value := address.String()
	e := c.add(state.ItemAddress, value, asked, status.Gap{Kind: status.Address, Family: status.FamilyOf(address), Value: value})
	e.wanted = wanted
	if asked && !address.Is4() {
		e.apart, e.NotApplicable = c.ipv6.Code, c.ipv6Words
	}
	e.own = c.files.addresses[address]
	e.Rendered = e.own || (wanted && c.byDHCP(address))
	e.Networkd = c.networkd(func(*kernel.Snapshot) bool { return c.applied[address] })
	e.Kernel = c.eni.Link.Has(address)
	return e
}

// notWanted adds an address that the metadata lists and the kernel need not have: of an ENI that is
// not managed or not known well enough, of IPv6 that does not apply, or one that is left to others
// (A12).
func (c *comparison) notWanted(address netip.Addr) {
	eni := c.eni
	e := c.address(address, true, false)
	if !eni.Known || !eni.Settings.Managed || eni.Settings.SecondaryAddresses || e.apart != status.None {
		return
	}
	if eni.Link.Has(address) && slices.Contains(c.actual.Withdrawn, address) {
		e.unwanted, e.cause = true, &status.Reason{Code: status.SecondariesNo}
		return
	}
	left := status.Reason{Code: status.LeftToOthers}
	e.apart, e.NotApplicable = left.Code, left.Words()
}

// byDHCP reports whether the files leave a wanted address to DHCP.
func (c *comparison) byDHCP(address netip.Addr) bool {
	if !c.files.leases || c.files.addresses[address] {
		return false
	}
	return address == c.eni.Want.Primary || (address.Is6() && c.eni.Primary)
}

// addressesOn returns the addresses that a link has in a snapshot, which may be nil.
func addressesOn(snapshot *kernel.Snapshot, index int) map[netip.Addr]bool {
	found := make(map[netip.Addr]bool)
	if snapshot == nil {
		return found
	}
	for i := range snapshot.Links {
		if link := &snapshot.Links[i]; link.Index == index {
			for _, a := range link.Addresses {
				found[a.Prefix.Addr()] = true
			}
		}
	}
	return found
}

func (c *comparison) routes() {
	eni := c.eni
	if eni.Want.IPv4 {
		c.routesOf(status.IPv4, netip.PrefixFrom(netip.IPv4Unspecified(), 0), plan.ServicesIPv4, eni.View.IPv4Subnets)
	}
	if eni.Want.IPv6 {
		c.routesOf(status.IPv6, netip.PrefixFrom(netip.IPv6Unspecified(), 0), plan.ServicesIPv6, eni.View.IPv6Subnets)
	}
	c.otherMetrics()
	c.local()
}

// routesOf adds the routes of one family: those to everywhere, to EC2's services and to the subnets.
func (c *comparison) routesOf(family status.Family, everywhere, services netip.Prefix, subnets []netip.Prefix) {
	want := &c.eni.Want
	inOwnTable := false
	if want.Table != 0 {
		e := c.route(c.inTable(everywhere), status.Gap{Kind: status.TableDefaultRoute, Family: family, Table: want.Table},
			c.files.routes[tableRoute{everywhere, want.Table}], want.Table, 0, everywhere)
		inOwnTable, e.byRouter = e.Kernel, everywhere.Addr().Is6()
	}
	if want.Services {
		c.route(withMetric(services, want.Metric), status.Gap{Kind: status.ServicesRoute, Family: family},
			c.files.routes[tableRoute{services, kernel.MainTable}], kernel.MainTable, want.Metric, services)
	}
	if !want.NoDefault {
		e := c.route(withMetric(everywhere, want.Metric), status.DefaultRouteGap(family, want.Metric),
			c.files.metric == want.Metric, kernel.MainTable, want.Metric, everywhere)
		e.byRouter = everywhere.Addr().Is6()
		e.late = inOwnTable && e.byRouter
	}
	if want.Table == 0 {
		return
	}
	for _, subnet := range subnets {
		e := c.route(c.inTable(subnet), status.Gap{Kind: status.SubnetRoute, Family: family, Value: subnet.String(), Table: want.Table},
			c.files.routes[tableRoute{subnet, want.Table}], want.Table, 0, subnet)
		e.own = true
	}
}

// route adds a wanted route of the ENI's link; metric 0 stands for any.
func (c *comparison) route(value string, gap status.Gap, rendered bool, table, metric int, to netip.Prefix) *entry {
	has := func(s *kernel.Snapshot) bool { return hasRoute(s, c.eni.Link.Index, table, metric, to) }
	e := c.add(state.ItemRoute, value, true, gap)
	e.Rendered, e.Networkd, e.Kernel = rendered, c.networkd(has), has(c.actual.Kernel)
	return e
}

// inTable returns a route of the ENI's own table in words.
func (c *comparison) inTable(to netip.Prefix) string {
	return fmt.Sprintf("%s table %d", to, c.eni.Want.Table)
}

// withMetric returns a route of the main table in words.
func withMetric(to netip.Prefix, metric int) string { return fmt.Sprintf("%s metric %d", to, metric) }

// otherMetrics adds the default routes by DHCPv4 that the ENI is not to have.
func (c *comparison) otherMetrics() {
	eni, want := c.eni, &c.eni.Want
	to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	for _, metric := range eni.Link.DHCPMetrics {
		if want.Metric == 0 || (metric == want.Metric && !want.NoDefault) {
			continue
		}
		gap := status.Gap{Kind: status.OtherMetric, Family: status.IPv4, Metric: want.Metric}
		if want.NoDefault {
			gap = status.Gap{Kind: status.MainDefaultRoute, Family: status.IPv4}
		}
		e := c.add(state.ItemRoute, withMetric(to, metric), false, gap)
		e.unwanted, e.Kernel = eni.Known, true
		e.Networkd = c.networkd(func(s *kernel.Snapshot) bool { return hasRoute(s, eni.Link.Index, kernel.MainTable, metric, to) })
	}
}

// local adds the prefixes that are the host's own without being listed on the link.
func (c *comparison) local() {
	for _, prefix := range c.eni.Want.Local {
		has := func(s *kernel.Snapshot) bool {
			return slices.ContainsFunc(s.Routes, func(r kernel.Route) bool { return r.Local && r.Destination == prefix })
		}
		value := prefix.String()
		e := c.add(state.ItemRoute, "local "+value, true, status.Gap{Kind: status.LocalRoute, Family: status.FamilyOf(prefix.Addr()), Value: value})
		e.own = true
		e.Rendered, e.Networkd, e.Kernel = c.files.local[prefix], c.networkd(has), has(c.actual.Kernel)
	}
}

// hasRoute reports whether a link has a route in a table; metric 0 stands for any.
func hasRoute(snapshot *kernel.Snapshot, index, table, metric int, to netip.Prefix) bool {
	return slices.ContainsFunc(snapshot.Routes, func(r kernel.Route) bool {
		return r.Link == index && r.Table == table && !r.Local && r.Destination == to && (metric == 0 || r.Metric == metric)
	})
}

func (c *comparison) rules() {
	want := &c.eni.Want
	if want.Table == 0 {
		return
	}
	rules := want.PolicyRules()
	wanted := setOf(rules)
	now := rulesOf(c.actual.Kernel, want.Table, wanted)
	var applied map[plan.Rule]int
	if c.actual.Applied != nil {
		applied = rulesOf(c.actual.Applied, want.Table, wanted)
	}
	add := func(rule plan.Rule, asked bool) *entry {
		value := rule.String()
		e := c.add(state.ItemRule, value, asked, status.Gap{Kind: status.Rule, Family: status.FamilyOf(rule.From.Addr()), Value: value})
		e.Rendered = c.files.rules[rule]
		_, e.Kernel = now[rule]
		e.Networkd = c.networkd(func(*kernel.Snapshot) bool { _, ok := applied[rule]; return ok })
		return e
	}
	for _, rule := range rules {
		add(rule, true).own = true
	}
	for _, rule := range slices.SortedFunc(maps.Keys(now), plan.Rule.Compare) {
		if rule.Table != want.Table || now[rule] != kernel.ProtocolStatic || wanted[rule] || !c.actual.Ours(rule) {
			continue
		}
		e := add(rule, false)
		e.unwanted = true
		switch {
		case !rule.From.Addr().Is4() && !c.ipv6.None():
			e.cause = &c.ipv6
		case rule.Mark.Value != 0:
			e.cause = &status.Reason{Code: status.NoMark}
		}
	}
}

// setOf has the rules of a list.
func setOf(rules []plan.Rule) map[plan.Rule]bool {
	set := make(map[plan.Rule]bool, len(rules))
	for _, rule := range rules {
		set[rule] = true
	}
	return set
}

// rulesOf are rules of the kernel, with their protocol: those that look an ENI's table up, and of
// those that let routes of the main one go before the wanted ones.
func rulesOf(s *kernel.Snapshot, table int, wanted map[plan.Rule]bool) map[plan.Rule]int {
	found := make(map[plan.Rule]int)
	for i := range s.Rules {
		k := &s.Rules[i]
		own := k.Plain && k.Table == table && (k.Priority == table || (k.Priority == plan.MarkPriority && k.Mark != 0))
		rule, _ := plan.RuleOf(k) // of any protocol
		if (own || wanted[rule]) && found[rule] != kernel.ProtocolStatic {
			found[rule] = k.Protocol
		}
	}
	return found
}

// inapplicable adds the routes and rules that the ENI would have if its link had IPv6.
func (c *comparison) inapplicable() {
	eni, want := c.eni, &c.eni.Want
	if c.ipv6.None() || !eni.Known || !eni.Settings.Managed {
		return
	}
	add := func(kind state.Kind, value string) {
		e := c.add(kind, value, true, status.Gap{}) // it is none
		e.wanted, e.apart, e.NotApplicable = false, c.ipv6.Code, c.ipv6Words
	}
	everywhere := netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if !want.NoDefault {
		add(state.ItemRoute, withMetric(everywhere, want.Metric))
	}
	if want.Table == 0 {
		return
	}
	add(state.ItemRoute, c.inTable(everywhere))
	for _, subnet := range eni.View.IPv6Subnets {
		add(state.ItemRoute, c.inTable(subnet))
	}
	rules := eni.RulesWithIPv6()
	now := rulesOf(c.actual.Kernel, want.Table, setOf(rules))
	for _, rule := range rules {
		if _, there := now[rule]; !there { // else it is told of already
			add(state.ItemRule, rule.String())
		}
	}
}

// mtu compares the MTU of the link with the one that DHCP tells or, in an IPv6-only subnet,
// the VPC is known to have. networkd does not tell what it counts as its own.
func (c *comparison) mtu() {
	want := &c.eni.Want
	if want.MTU == 0 {
		return
	}
	value := strconv.Itoa(want.MTU)
	e := c.add(state.ItemMTU, value, true, status.Gap{Kind: status.MTU, Value: value})
	e.Kernel = c.eni.Link.MTU == want.MTU
	e.Rendered = c.files.leases || c.files.mtu == want.MTU
}

func (c *comparison) altnames() {
	for _, altname := range c.eni.Want.Altnames {
		e := c.add(state.ItemAltname, altname, true, status.Gap{Kind: status.Altname, Value: altname})
		e.Rendered = slices.Contains(c.files.altnames, altname)
		e.Kernel = slices.Contains(c.eni.Link.Altnames, altname)
	}
}
