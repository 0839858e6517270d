package plan

import (
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strconv"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// Rendered are the generated drop-ins of an ENI, as they are on the disk: nil where there is
// none, or where it is not in force.
type Rendered struct {
	Network *dropin.Network
	Link    *dropin.Link
}

// Truth is what one ENI has at the four places where it can be: in the metadata, in the
// generated files, with networkd, and in the kernel.
type Truth struct{ entries []entry }

// entry is an item, and what is to be made of it.
type entry struct {
	state.Item
	// wanted: the kernel shall have it. late: it comes with the next router
	// advertisement, and no traffic of the ENI's addresses depends on it.
	wanted, late bool
	// own: it comes of the files alone, not of a lease or a router. byRouter: it is a default
	// route that a router advertises.
	own, byRouter bool
	// unwanted: the kernel shall not have it, and it is surely this daemon's to take away.
	unwanted bool
	// apart is why the host is not to have it although the metadata does, and cause why it is
	// unwanted, where that is not the metadata.
	apart status.Code
	cause *status.Reason
	// gap is it as something that is missing or still there.
	gap status.Gap
}

// Compare looks at the four places side by side (H4). applied is what networkd counts as
// its own, in the shape of a snapshot, or nil if networkd has not told since the last
// change; withdrawn are the addresses that were taken out of the ENI's drop-in; ours tells
// whether a policy rule by networkd's protocol is surely this daemon's: anybody may add one
// with the ENI's priority and table.
//
// Unwanted are such policy rules with the ENI's own priority and table for a source that it no
// longer has, DHCP routes of an old metric, and withdrawn addresses that are still on the
// link. All else that is there without the metadata is somebody else's.
func Compare(eni *ENI, rendered Rendered, applied, snapshot *kernel.Snapshot, withdrawn []netip.Addr, ours func(Rule) bool) Truth {
	c := &comparison{eni: eni, files: saidBy(rendered), applied: applied, snapshot: snapshot, ours: ours}
	c.ipv6 = eni.IPv6NotApplicable()
	c.ipv6Words = c.ipv6.Words()
	c.entries = make([]entry, 0, len(eni.Want.Addresses)+len(eni.Want.Rules)+some)
	c.addresses(withdrawn)
	c.routes()
	c.rules()
	c.inapplicable()
	c.mtu()
	for _, altname := range eni.Want.Altnames {
		e := c.add(state.ItemAltname, altname, true, status.Gap{Kind: status.Altname, Value: altname})
		e.Rendered = slices.Contains(c.files.altnames, altname)
		e.Kernel = slices.Contains(eni.Link.Altnames, altname)
	}
	for i := range c.entries {
		e := &c.entries[i]
		why := c.why(e)
		e.Reason = why.Words()
	}
	return Truth{c.entries}
}

// Items are what the API shows. Where the ENI as a whole is not configured, whole is the
// reason for that, and so for every item that is not in the kernel or not managed.
func (t *Truth) Items(whole status.Reason) []state.Item {
	items := make([]state.Item, len(t.entries))
	words := whole.Words()
	for i := range t.entries {
		e := &t.entries[i]
		items[i] = e.Item
		if !whole.None() && !e.unwanted && e.apart == status.None && (!e.Kernel || (!e.Rendered && e.Metadata != state.No)) {
			items[i].Reason = words
		}
	}
	return items
}

// Missing is what is wanted and not in the kernel.
func (t *Truth) Missing() []status.Gap {
	return t.gaps(func(e *entry) bool { return e.wanted && !e.Kernel && !e.late })
}

// Late is not there, but comes with the next router advertisement, and no traffic of the
// ENI's addresses depends on it.
func (t *Truth) Late() []status.Gap {
	return t.gaps(func(e *entry) bool { return e.wanted && !e.Kernel && e.late })
}

// Lost is what the files say and the kernel does not have.
type Lost struct {
	Gaps []status.Gap
	// Own: some of it comes of the files alone, not of a lease or a router. ByRouter: all of
	// it are default routes that routers advertise.
	Own, ByRouter bool
}

// Lost returns what the files say and the kernel does not have. Alternative names and the MTU
// are not networkd's to bring back.
func (t *Truth) Lost() Lost {
	which := func(e *entry) bool {
		return e.wanted && e.Rendered && !e.Kernel && (e.Kind == state.ItemAddress || e.Kind == state.ItemRoute || e.Kind == state.ItemRule)
	}
	lost := Lost{Gaps: t.gaps(which), ByRouter: true}
	for i := range t.entries {
		if e := &t.entries[i]; which(e) {
			lost.Own = lost.Own || e.own
			lost.ByRouter = lost.ByRouter && e.byRouter
		}
	}
	return lost
}

// Unwanted is what is still there and stands in the way.
func (t *Truth) Unwanted() []status.Gap { return t.gaps(func(e *entry) bool { return e.unwanted }) }

// Disputed tells whether networkd does not count as its own what the files say and the
// kernel has. It does so for a moment when it is at work.
func (t *Truth) Disputed() bool {
	return slices.ContainsFunc(t.entries, func(e entry) bool { return e.Rendered && e.Kernel && e.Networkd == state.No })
}

func (t *Truth) gaps(which func(*entry) bool) []status.Gap {
	var found []status.Gap
	for i := range t.entries {
		e := &t.entries[i]
		if !which(e) {
			continue
		}
		gap := e.gap
		gap.StillThere = e.unwanted
		if !slices.Contains(found, gap) {
			found = append(found, gap)
		}
	}
	return found
}

// some is more than an ENI has of what is neither an address nor a rule.
const some = 16

// comparison is a Truth in the making.
type comparison struct {
	eni               *ENI
	files             files
	applied, snapshot *kernel.Snapshot
	ours              func(Rule) bool
	entries           []entry
	// ipv6 is why IPv6 does not apply to the ENI, and ipv6Words the same in words.
	ipv6      status.Reason
	ipv6Words string
}

// add begins an entry that the metadata asks for, or that is there without it. gap has no value if
// it is that of the item.
func (c *comparison) add(kind state.Kind, value string, asked bool, gap status.Gap) *entry {
	e := entry{Item: state.Item{Kind: kind, Value: value, Metadata: state.Told(asked)}, wanted: asked, gap: gap}
	if !asked && c.eni.View.MAC == "" {
		e.Metadata = state.Untold
	}
	c.entries = append(c.entries, e)
	return &c.entries[len(c.entries)-1]
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
	const everywhere = "::/0"
	if !want.NoDefault {
		add(state.ItemRoute, fmt.Sprintf("%s metric %d", everywhere, want.Metric))
	}
	if want.Table == 0 {
		return
	}
	add(state.ItemRoute, fmt.Sprintf("%s table %d", everywhere, want.Table))
	for _, subnet := range eni.View.IPv6Subnets {
		add(state.ItemRoute, fmt.Sprintf("%s table %d", subnet, want.Table))
	}
	// The rules that it would have with IPv6.
	of := Want{Table: want.Table, Guarded: want.Guarded, Rules: slices.Clone(eni.View.IPv6Prefixes)}
	for _, address := range eni.View.IPv6 {
		of.Rules = append(of.Rules, netip.PrefixFrom(address, address.BitLen()))
	}
	switch {
	case len(want.LocalFirst) == 0:
	case slices.Equal(want.LocalFirst, want.Rules):
		of.LocalFirst = of.Rules
	default:
		of.LocalFirst = eni.View.IPv6Subnets
	}
	if want.Mark.Value != 0 {
		of.Mark, of.Marked = want.Mark, every(false, true)
	}
	rules := of.policyRules()
	now := rulesOf(c.snapshot, want.Table, setOf(rules))
	for _, rule := range rules {
		if _, there := now[rule]; !there { // else it is told of already
			add(state.ItemRule, rule.String())
		}
	}
}

// networkd tells whether networkd counts something as its own.
func (c *comparison) networkd(has func(*kernel.Snapshot) bool) state.Answer {
	if c.applied == nil {
		return state.Untold
	}
	return state.Told(has(c.applied))
}

func (c *comparison) addresses(withdrawn []netip.Addr) {
	eni := c.eni
	applied := make(map[netip.Addr]bool)
	if c.applied != nil {
		for _, link := range c.applied.Links {
			for _, a := range link.Addresses {
				if link.Index == eni.Link.Index {
					applied[a.Prefix.Addr()] = true
				}
			}
		}
	}
	left := status.Reason{Code: status.LeftToOthers} // A12
	done := make(map[netip.Addr]bool)
	add := func(address netip.Addr, asked, wanted bool) *entry {
		done[address] = true
		value := address.String()
		e := c.add(state.ItemAddress, value, asked, status.Gap{Kind: status.Address, Family: status.FamilyOf(address), Value: value})
		e.wanted = wanted
		if asked && !address.Is4() {
			e.apart, e.NotApplicable = c.ipv6.Code, c.ipv6Words
		}
		e.own = c.files.addresses[address]
		e.Rendered = e.own || (wanted && c.byDHCP(address))
		e.Networkd = c.networkd(func(*kernel.Snapshot) bool { return applied[address] })
		e.Kernel = eni.Link.Has(address)
		return e
	}
	for _, address := range eni.Want.Addresses {
		add(address, true, true)
	}
	for _, address := range slices.Concat(eni.View.IPv4, eni.View.IPv6) {
		if done[address] {
			continue
		}
		e := add(address, true, false) // of an ENI that is not managed, or not known well enough
		if eni.Known && eni.Settings.Managed && !eni.Settings.SecondaryAddresses && e.apart == status.None {
			if e.unwanted = eni.Link.Has(address) && slices.Contains(withdrawn, address); e.unwanted {
				e.cause = &status.Reason{Code: status.SecondariesNo}
			} else {
				e.apart, e.NotApplicable = left.Code, left.Words()
			}
		}
	}
	for _, address := range withdrawn {
		if !done[address] && eni.Link.Has(address) {
			add(address, false, false).unwanted = eni.Known
		}
	}
	for _, a := range eni.Link.Addresses {
		// Link-local addresses are nobody's to give (A6).
		if address := a.Prefix.Addr(); !done[address] && a.Global && !address.IsLinkLocalUnicast() {
			add(address, false, false)
		}
	}
	for _, address := range slices.SortedFunc(maps.Keys(c.files.addresses), netip.Addr.Compare) {
		if !done[address] {
			add(address, false, false)
		}
	}
}

// byDHCP tells whether the files leave a wanted address to DHCP.
func (c *comparison) byDHCP(address netip.Addr) bool {
	if !c.files.leases || c.files.addresses[address] {
		return false
	}
	return address == c.eni.Want.Primary || (address.Is6() && c.eni.Primary)
}

func (c *comparison) routes() {
	eni, want := c.eni, &c.eni.Want
	index := eni.Link.Index
	for _, f := range []struct {
		use     bool
		family  status.Family
		to      netip.Prefix
		subnets []netip.Prefix
		// services is where EC2's are.
		services netip.Prefix
	}{
		{want.IPv4, status.IPv4, netip.PrefixFrom(netip.IPv4Unspecified(), 0), eni.View.IPv4Subnets, servicesIPv4},
		{want.IPv6, status.IPv6, netip.PrefixFrom(netip.IPv6Unspecified(), 0), eni.View.IPv6Subnets, servicesIPv6},
	} {
		if !f.use {
			continue
		}
		own := false
		if want.Table != 0 {
			has := func(s *kernel.Snapshot) bool { return hasRoute(s, index, want.Table, 0, f.to) }
			e := c.add(state.ItemRoute, fmt.Sprintf("%s table %d", f.to, want.Table), true,
				status.Gap{Kind: status.TableDefaultRoute, Family: f.family, Table: want.Table})
			e.Rendered, e.Networkd, e.Kernel = c.files.routes[tableRoute{f.to, want.Table}], c.networkd(has), has(c.snapshot)
			own, e.byRouter = e.Kernel, f.to.Addr().Is6()
		}
		if want.Services {
			has := func(s *kernel.Snapshot) bool { return hasRoute(s, index, kernel.MainTable, want.Metric, f.services) }
			e := c.add(state.ItemRoute, fmt.Sprintf("%s metric %d", f.services, want.Metric), true,
				status.Gap{Kind: status.ServicesRoute, Family: f.family})
			e.Rendered, e.Networkd, e.Kernel = c.files.routes[tableRoute{f.services, kernel.MainTable}], c.networkd(has), has(c.snapshot)
		}
		if !want.NoDefault {
			has := func(s *kernel.Snapshot) bool {
				return hasRoute(s, index, kernel.MainTable, want.Metric, f.to)
			}
			e := c.add(state.ItemRoute, fmt.Sprintf("%s metric %d", f.to, want.Metric), true, status.DefaultRouteGap(f.family, want.Metric))
			e.Rendered, e.Networkd, e.Kernel = c.files.metric == want.Metric, c.networkd(has), has(c.snapshot)
			e.byRouter = f.to.Addr().Is6()
			e.late = own && e.byRouter
		}
		for _, subnet := range f.subnets {
			if want.Table == 0 {
				break
			}
			has := func(s *kernel.Snapshot) bool { return hasRoute(s, index, want.Table, 0, subnet) }
			e := c.add(state.ItemRoute, fmt.Sprintf("%s table %d", subnet, want.Table), true,
				status.Gap{Kind: status.SubnetRoute, Family: f.family, Value: subnet.String(), Table: want.Table})
			e.own = true
			e.Rendered, e.Networkd, e.Kernel = c.files.routes[tableRoute{subnet, want.Table}], c.networkd(has), has(c.snapshot)
		}
	}
	for _, metric := range eni.Link.DHCPMetrics {
		if want.Metric == 0 || (metric == want.Metric && !want.NoDefault) {
			continue
		}
		to := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		gap := status.Gap{Kind: status.OtherMetric, Family: status.IPv4, Metric: want.Metric}
		if want.NoDefault {
			gap = status.Gap{Kind: status.MainDefaultRoute, Family: status.IPv4}
		}
		e := c.add(state.ItemRoute, fmt.Sprintf("%s metric %d", to, metric), false, gap)
		e.unwanted, e.Kernel = eni.Known, true
		e.Networkd = c.networkd(func(s *kernel.Snapshot) bool { return hasRoute(s, index, kernel.MainTable, metric, to) })
	}
	for _, prefix := range want.Local {
		has := func(s *kernel.Snapshot) bool {
			return slices.ContainsFunc(s.Routes, func(r kernel.Route) bool { return r.Local && r.Destination == prefix })
		}
		value := prefix.String()
		e := c.add(state.ItemRoute, "local "+value, true, status.Gap{Kind: status.LocalRoute, Family: status.FamilyOf(prefix.Addr()), Value: value})
		e.own = true
		e.Rendered, e.Networkd, e.Kernel = c.files.local[prefix], c.networkd(has), has(c.snapshot)
	}
}

func (c *comparison) rules() {
	want := &c.eni.Want
	if want.Table == 0 {
		return
	}
	rules := want.policyRules()
	wanted := setOf(rules)
	now := rulesOf(c.snapshot, want.Table, wanted)
	var applied map[Rule]int
	if c.applied != nil {
		applied = rulesOf(c.applied, want.Table, wanted)
	}
	addRule := func(rule Rule, asked bool) *entry {
		value := rule.String()
		return c.add(state.ItemRule, value, asked, status.Gap{Kind: status.Rule, Family: status.FamilyOf(rule.From.Addr()), Value: value})
	}
	told := func(e *entry, rule Rule) {
		e.Rendered = c.files.rules[rule]
		_, e.Kernel = now[rule]
		e.Networkd = c.networkd(func(*kernel.Snapshot) bool { _, ok := applied[rule]; return ok })
	}
	for _, rule := range rules {
		e := addRule(rule, true)
		e.own = true
		told(e, rule)
	}
	for _, rule := range slices.SortedFunc(maps.Keys(now), Rule.Compare) {
		if rule.Table != want.Table || now[rule] != kernel.ProtocolStatic || wanted[rule] || !c.ours(rule) {
			continue
		}
		e := addRule(rule, false)
		e.unwanted = true
		switch {
		case !rule.From.Addr().Is4() && !c.ipv6.None():
			e.cause = &c.ipv6
		case rule.Mark.Value != 0:
			e.cause = &status.Reason{Code: status.NoMark}
		}
		told(e, rule)
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

// setOf has the rules of a list.
func setOf(rules []Rule) map[Rule]bool {
	set := make(map[Rule]bool, len(rules))
	for _, rule := range rules {
		set[rule] = true
	}
	return set
}

// rulesOf are rules of the kernel, with their protocol: those that look an ENI's table up, and of
// those that let routes of the main one go before the wanted ones.
func rulesOf(s *kernel.Snapshot, table int, wanted map[Rule]bool) map[Rule]int {
	found := make(map[Rule]int)
	for i := range s.Rules {
		k := &s.Rules[i]
		own := k.Plain && k.Table == table && (k.Priority == table || (k.Priority == markPriority && k.Mark != 0))
		rule := asRule(k)
		if (own || wanted[rule]) && found[rule] != kernel.ProtocolStatic {
			found[rule] = k.Protocol
		}
	}
	return found
}

// why says why an item is not the same everywhere; it says nothing if it is.
func (c *comparison) why(e *entry) status.Reason {
	code := status.None
	switch {
	case e.apart != status.None:
	case e.unwanted && e.Kind == state.ItemRoute:
		code = status.RouteStays
	case e.unwanted && e.cause != nil:
		return status.Reason{Code: status.StaysDespite, Of: e.cause}
	case e.unwanted && e.Rendered:
		code = status.WithdrawnInFiles
	case e.unwanted:
		code = status.Withdrawn
	case e.wanted:
		return c.whyWanted(e)
	case e.Metadata == state.Yes && !c.eni.Settings.Managed:
		code = status.ItemUnmanaged
	case e.Metadata == state.Yes:
		code = status.ItemUnknown
	case e.Rendered:
		code = status.ItemKept
	case e.Networkd == state.Yes && e.Kind == state.ItemAddress:
		code = status.ForeignConfigured
	case e.Kernel && e.Kind == state.ItemAddress:
		code = status.ForeignAdded
	case !c.eni.Known:
		return c.eni.Reason
	}
	return status.Reason{Code: code}
}

// whyWanted does so for an item that the kernel shall have.
func (c *comparison) whyWanted(e *entry) status.Reason {
	link := &c.eni.Link
	code := status.NetworkdLacks
	switch {
	case e.Kernel && e.Rendered && e.Networkd != state.No:
		code = status.None
	case e.Kernel && e.Rendered:
		code = status.Disowned
	case e.Kernel && e.Kind == state.ItemAddress && slices.Contains(link.Foreign, addressOf(e.Value)):
		code = status.AddedToo
	case e.Kernel:
		return status.Reason{Code: status.Unasked, Of: &status.Reason{Code: c.unwritten(e)}}
	case !e.Rendered:
		code = c.unwritten(e)
	case e.late:
		code = status.RouteLate
	case e.Kind == state.ItemMTU:
		return status.Reason{Code: status.OtherMTU, Number: link.MTU}
	case e.Kind == state.ItemAltname:
		code = status.NameNotAdded
	case e.Networkd == state.Yes:
		code = status.RemovedOrAsked
	case tentative(link, e.Value):
		code = status.Tentative
	case e.Kind == state.ItemAddress && !c.files.addresses[addressOf(e.Value)]:
		code = status.DHCPSilent
	}
	return status.Reason{Code: code}
}

// unwritten says why the files do not have what the kernel shall have.
func (c *comparison) unwritten(e *entry) status.Code {
	switch {
	case e.Kind == state.ItemAltname && c.eni.Link.LinkFile == "":
		return status.UdevBusy
	case e.Kind == state.ItemAddress && c.eni.Held && c.files.leases && addressOf(e.Value).Is4():
		return status.AwaitsLease
	case e.Kind == state.ItemAddress && c.eni.Held && c.files.leases:
		return status.AwaitsDHCPv6
	}
	return status.FileMissing
}

func addressOf(value string) netip.Addr {
	address, _ := netip.ParseAddr(value)
	return address
}

func tentative(link *Link, value string) bool {
	return slices.ContainsFunc(link.Addresses, func(a kernel.Address) bool { return a.Tentative && a.Prefix.Addr().String() == value })
}

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

// hasRoute tells whether a link has a route in a table; metric 0 stands for any.
func hasRoute(snapshot *kernel.Snapshot, index, table, metric int, to netip.Prefix) bool {
	return slices.ContainsFunc(snapshot.Routes, func(r kernel.Route) bool {
		return r.Link == index && r.Table == table && !r.Local && r.Destination == to && (metric == 0 || r.Metric == metric)
	})
}
