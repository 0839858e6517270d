// Package plan decides: out of what was observed it makes the files that networkd
// and udev shall have, and what the kernel shall have once they are applied.
//
// Everything here is a pure function of its input. It reads no file, asks nobody,
// and does not know how a file is written.
package plan

import (
	"cmp"
	"fmt"
	"maps"
	"net/netip"
	"slices"
	"strings"

	"ec2netd/service/config"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// Numbers of an ENI (B1). They are those of amazon-ec2-net-utils, which VPC CNI,
// nodeadm and others rely on (facts: numbers).
const (
	metricBase = 512
	tableBase  = 10000
	cardStep   = 100
	// highest card, and highest index, that the numbers keep apart.
	highest = cardStep - 1
)

// defaultMetric is the metric that networkd gives to routes by DHCP where nothing
// else is said (systemd.network(5)), and the kernel to IPv6 routes: links of others
// have it.
const defaultMetric = 1024

// dhcpcdMetric and the index of the link make the metric of dhcpcd's routes, which have the
// protocol of networkd's by DHCP (dhcpcd.conf(5)). cloud-init runs it on secondary ENIs to learn
// their gateways, and leaves them with these routes. networkd does not take them away, whatever is
// asked of it.
const dhcpcdMetric = 1000

// Group is the group of the links of all ENIs, set in the base unit 80-ec2.network and in
// the generated drop-ins: policy rules tell ENIs from other links by it (B9, decisions/008). It is 0xec2.
const Group = 3778

// UnknownMetric is the route metric of an ENI that is not known yet, set in the
// base unit 80-ec2.network. It is worse than that of every known ENI, so that such
// an ENI never takes traffic from the primary one (B6). Of several such ENIs all but
// one get drop-ins with the metrics that follow.
const UnknownMetric = 30000

// Directory in which generated files are looked up by networkd and udevd.
const Directory = dropin.Directory

// DefaultPolicy is the .link file that applies where nothing else does, and NoPolicy
// one of this daemon that has no policy at all, for links that no .link file applies
// to.
const (
	DefaultPolicy = "/usr/lib/systemd/network/99-default.link"
	NoPolicy      = dropin.NoPolicy
)

// HoldName is the file name of the unit that has networkd leave an ENI alone that comes
// while the daemon runs, until the ENI's own files are there a moment later: so networkd
// configures it once, and need not take away again what the base unit had it ask for. It
// sorts right before the base unit (decisions/002).
const HoldName = dropin.HoldName

// HoldProperty is the udev property, set to 1, of the links that the unit is for. Only the
// udev rule 80-ec2netd.rules sets it, and only while the daemon runs. So the unit has no
// effect on a link that comes after the daemon ended in whatever way (E9), although it may
// be on disk and in networkd's memory then.
const HoldProperty = "EC2NETD_RUNS"

// HoldPath is where that unit is generated.
const HoldPath = dropin.HoldPath

// DropInName is the file name of every generated drop-in.
const DropInName = dropin.FileName

// BaseDropIn is the generated drop-in of the base unit. It has no copy among the drop-ins of ENIs,
// whose own say the same.
const BaseDropIn = dropin.BaseDropIn

// Numbers are the two coordinates of an ENI on its instance.
type Numbers struct {
	Card  int
	Index int
}

// Metric of the ENI's default routes in the main table: 512 + 100 * card + index, but
// for device index 12 on card 5, which would have the metric that links of others have
// by default. It has the number of its table instead, which no other ENI can have.
func (n Numbers) Metric() int {
	if metric := metricBase + cardStep*n.Card + n.Index; metric != defaultMetric {
		return metric
	}
	return n.Table()
}

// Table of the ENI's own routes, and priority of its policy rules.
func (n Numbers) Table() int { return tableBase + cardStep*n.Card + n.Index }

// Input is what was observed.
type Input struct {
	// PrimaryMAC as the metadata tells it, or empty while it has not.
	PrimaryMAC string
	// Views are the last complete views by MAC address.
	Views map[string]metadata.ENI
	// Links that can be ENIs.
	Links []Link
	// Base is the .network file that generated units build upon, an absolute path.
	Base string
	// BaseDropIns are the drop-ins of the base unit in force: absolute paths, at
	// most one for each file name. A link to the base unit drops them out of
	// networkd's sight (facts: symlinks, decisions/007), so they are linked into each generated
	// drop-in directory.
	BaseDropIns []string
	// Assigned are the numbers that ENIs have now, by MAC address: while an ENI
	// holds them, no other one gets them (B5).
	Assigned map[string]Numbers
	// Presumed is the MAC address of the link that was taken for the primary ENI
	// because it was the only one, or empty.
	Presumed string
	// Sections of the configuration, which say how each ENI is treated.
	Sections []config.Section
	// Networkd is what was observed of the networkd that runs.
	Networkd Networkd
	// Locked: the host keeps the metadata service to itself, see [Locked].
	Locked bool
	// Tunnel is the priority of the rule of a VPN that takes everything along, see
	// [kernel.Snapshot]; 0 for none.
	Tunnel int
	// Drivers of ENIs; empty for no unit that has networkd leave new ones alone. Holding:
	// there is one on disk.
	Drivers []string
	Holding bool
	// Hint is what the last boot knew, nil for nothing.
	Hint *Hint
}

// Link is a link that can be an ENI, and what is known of it.
type Link struct {
	kernel.Link
	// LinkFile is the .link file that holds for the link besides the generated one: an absolute
	// path, or empty while udevd is not done with the link.
	LinkFile string
	// LinkDropIns are the drop-ins of that file: absolute paths, sorted by name.
	LinkDropIns []string
	// Current is the generated .network drop-in that is on disk for this name and this MAC
	// address, or nil.
	Current *dropin.Network
	// DHCPMetrics are the metrics of the default routes by DHCPv4 that the link has
	// in the main table.
	DHCPMetrics []int
	// Metrics are those of all its default routes in the main table, and Tables the
	// other tables that have routes out of the link: the kernel may still have what an
	// earlier file said.
	Metrics, Tables []int
	// Routers are the IPv6 routers that advertise themselves on the link, by the
	// default routes that the main table has through them.
	Routers []netip.Addr
	// LeaseOverdue: the link has had time enough for DHCP and DHCPv6 to bring its
	// addresses; what is missing will not come that way.
	LeaseOverdue bool
	// Busy: networkd is at work on the link. It may be about to take the lease away for
	// a moment.
	Busy bool
	// Done: networkd has configured the link.
	Done bool
	// OnBase: networkd still has the base unit for the link. By that one DHCPv6 brings
	// the addresses that the ENI's own unit has as static ones.
	OnBase bool
	// Reconfigured is the metric that routes were to have when networkd was last asked to
	// configure the link anew for the sake of its routes, or 0.
	Reconfigured int
	// OffBase: networkd uses a file of somebody else's for the link, or leaves it alone.
	// OnOthers: it uses one.
	OffBase, OnOthers bool
	// Elsewhere: networkd does not use the unit that was generated for the link, but the base
	// unit or none.
	Elsewhere bool
	// New: the link came so lately that its metadata is most likely about to be read.
	New bool
	// MTUSetting is what the files of others say of its MTU, and LeaseMTU the MTU that its
	// DHCPv4 lease tells, 0 where it tells none or that is not known.
	unitfile.MTUSetting
	LeaseMTU int
	unitfile.PortSetting
	// SetDown: somebody has set the link down, which was up.
	SetDown bool
	// Domains are several search domains that networkd has taken for one, see
	// networkd.LinkState, LeaseDomains those of its DHCPv4 lease, both separated by spaces.
	// Leased: what the lease tells is known.
	Domains, LeaseDomains string
	Leased                bool
	// Foreign are the addresses that somebody else has put on the link, of those that a drop-in
	// could give it.
	Foreign []netip.Addr
	// Waits: the link came lately, and networkd leaves it alone until its files are there.
	Waits bool
	// Unwritten: the files of the link cannot be written, and it has none.
	Unwritten bool
	// Generator is the .network file that a generator made and that networkd will use for the
	// link in place of its own unit, an absolute path, or empty. It is for no other link. DropIns
	// are the drop-ins of others for the own unit then.
	Generator string
	DropIns   []string
	// FirstBoot are the static addresses that cloud-init has put there in the first boot of the
	// instance, if there are no others.
	FirstBoot []netip.Addr
	// Shared are such files that are for several links, and of which ENIs can be left out.
	Shared []string
	// StartFile: the link's [StartDropIn] is there. Settled: networkd has had some seconds since
	// it was last asked to do something about the link, or was started.
	StartFile, Settled bool
	// Fresh: the link was attached just now and has not been configured yet, or was set up just now,
	// so that its order of addresses can be mended by taking some away for a moment.
	Fresh bool
	// Extent of somebody else's files in place of the generated ones.
	unitfile.Extent
}

// Observed is a link with what the kernel's routes tell of it.
func Observed(link kernel.Link, routes []kernel.Route) Link {
	entry := Link{Link: link}
	for _, route := range routes {
		if route.Link != link.Index {
			continue
		}
		if route.Table != kernel.MainTable {
			entry.Tables = append(entry.Tables, route.Table)
			continue
		}
		if !route.IsDefault() {
			continue
		}
		entry.Metrics = append(entry.Metrics, route.Metric)
		switch {
		case route.Protocol == kernel.ProtocolDHCP && route.Metric == dhcpcdMetric+link.Index && route.Metric != defaultMetric:
		case route.Protocol == kernel.ProtocolDHCP && route.Destination.Addr().Is4():
			entry.DHCPMetrics = append(entry.DHCPMetrics, route.Metric)
		case route.Protocol == kernel.ProtocolRA && route.Gateway.IsLinkLocalUnicast():
			entry.Routers = append(entry.Routers, route.Gateway)
		}
	}
	return entry
}

// File is one file to be: regular with Content, or a symbolic link to Target.
type File struct {
	Path    string
	Content string
	Target  string
}

// Want is what the kernel shall have for one ENI.
type Want struct {
	// Addresses, IPv4 before IPv6, the primary one first, those of delegated prefixes
	// last.
	Addresses []netip.Addr
	// Delegated are those of Addresses that come of delegated prefixes.
	Delegated []netip.Addr
	// Static are those of Addresses that stand in the generated drop-in; the others
	// come by DHCP.
	Static []netip.Addr
	// Primary IPv4 address, or the zero Addr.
	Primary netip.Addr
	// Source is the IPv6 address of what does not bind to one: the others are deprecated (A11).
	// It is the zero Addr where there is none.
	Source netip.Addr
	// Ahead is Primary with the length of its subnet if it stands in the drop-in, before
	// those of Static, or the zero Prefix.
	Ahead netip.Prefix
	// Rules are the source prefixes that are looked up in Table. Guarded: for each of
	// them the specific routes of the main table go before.
	Rules   []netip.Prefix
	Guarded bool
	// LocalFirst are the sources for which a specific route of the main table over a link that
	// is no ENI goes before Table (B9).
	LocalFirst []netip.Prefix
	// Mark is the firewall mark whose packets are looked up in Table, and Marked are 0.0.0.0/0
	// and ::/0 as the families have rules for it.
	Mark   dropin.Mark
	Marked []netip.Prefix
	// Local are prefixes that are the host's own without being listed on the link.
	Local []netip.Prefix
	// Table is 0 for an ENI without a table of its own.
	Table int
	// Lead is the priority from which on the rules stand a second time, before those of a VPN,
	// 0 for not to. Services: the metadata and time services have routes of their own.
	Lead     int
	Services bool
	// Metric of the default routes in the main table.
	Metric int
	// IPv4, IPv6: families in use, whose default routes must be there. NoDefault: not
	// in the main table.
	IPv4, IPv6 bool
	NoDefault  bool
	// StaticIPv6: IPv6 addresses stand in the drop-in, none comes by DHCPv6. Routers are
	// the IPv6 routers that it names then, known from advertisements.
	StaticIPv6 bool
	Routers    []netip.Addr
	// MTU that the link shall have, 0 where that is not known. OwnMTU: it stands in the
	// drop-in, and DHCP's is not used.
	MTU    int
	OwnMTU bool
	// KeepAll: what others have put on the link stays over a reload and a restart of networkd.
	KeepAll bool
	// LeaveDNS: the servers of the lease are the primary ENI's, and not used again.
	LeaveDNS bool
	// Domains are search domains in the place of the lease's, separated by spaces, or empty.
	Domains  string
	Altnames []string
}

// ENI is what was decided for one link.
type ENI struct {
	Link    Link
	Primary bool
	// Presumed: the ENI is taken for the primary because it is the only link.
	Presumed bool
	// Known: View is complete and its numbers may be used. Hinted: it is the last
	// boot's, the metadata has not been read yet.
	Known   bool
	Hinted  bool
	View    metadata.ENI
	Numbers Numbers
	// Applies is what of View applies to the link: all, or all but IPv6 where it has none.
	Applies metadata.ENI
	// Settings of the configuration for it.
	Settings config.Settings
	// Files that belong to the ENI; they are in Plan.Files too. AtStart are those of them that
	// networkd is to find otherwise, or in addition, when it starts the next time.
	Files, AtStart []File
	// DropIn and LinkDropIn are the drop-ins of the .network unit and the .link file that are among
	// Files, nil where they are not.
	DropIn     *dropin.Network
	LinkDropIn *dropin.Link
	// Keep: nothing is known that could replace what is on disk for this link, so
	// all of it stays. KeepLink: that is so of the .link file alone.
	Keep, KeepLink bool
	// Told are the addresses of the link's FirstBoot that EC2 gave the ENI, by now or earlier.
	Told []netip.Addr
	// Unmarked says why there is no rule for the firewall mark of Settings, nothing where there is.
	Unmarked status.Reason
	// Held: addresses that the metadata lists wait for the lease, so that the
	// primary address is the first one of the link (A3).
	Held bool
	Want Want
	// Twice: another link has its MAC address too, so nothing tells which of them is
	// the ENI. View is with the one that was configured before.
	Twice bool
	// Reason says why the ENI is not Known.
	Reason status.Reason

	// yields: its numbers on disk are to go first, see [settleNumbers].
	yields bool
}

// Kept returns the paths of the generated units of which everything stays that is there.
func (e *ENI) Kept() []string {
	var kept []string
	if e.Keep {
		kept = append(kept, NetworkPath(e.Link.Name))
	}
	if e.Keep || e.KeepLink {
		kept = append(kept, LinkPath(e.Link.Name))
	}
	return kept
}

// Plan is the decision.
type Plan struct {
	ENIs  []ENI
	Files []File
	// shared are those of Files that belong to no ENI.
	shared []File
}

// Make decides.
func Make(in Input) Plan {
	var plan Plan
	in, hinted := recall(in)
	cards := slices.ContainsFunc(slices.Collect(maps.Values(in.Views)), func(v metadata.ENI) bool { return v.NetworkCard != nil })
	presumed := presume(in)
	for _, link := range in.Links {
		eni := ENI{Link: link, Primary: link.MAC == in.PrimaryMAC}
		view, viewed := in.Views[link.MAC]
		switch {
		case duplicate(in.Links, link):
			eni.Twice = true
			eni.Reason = status.Reason{Code: status.SharedMAC, Subject: link.MAC, Other: twin(in.Links, link)}
			if _, ok := NumbersIn(link.Current); ok && viewed {
				eni.View = view
			}
		case link.MAC == presumed && !viewed:
			// So the primary gets its metric before the metadata answers.
			eni.Primary, eni.Presumed = true, true
			eni.Reason = status.Reason{Code: status.MetadataUnread}
		case !viewed:
			eni.Reason = status.Reason{Code: status.MetadataUnread}
		default:
			eni.View, eni.Hinted = view, hinted[link.MAC]
			eni.Numbers, eni.Reason.Code = number(&view, eni.Primary, cards)
			eni.Known = eni.Reason.None()
		}
		eni.Applies = applicable(eni.View, link.IPv6)
		plan.ENIs = append(plan.ENIs, eni)
	}
	settleNumbers(plan.ENIs, in.Assigned)
	for i := range plan.ENIs {
		eni := &plan.ENIs[i]
		eni.Settings = config.For(in.Sections, identity(eni, in))
	}
	settleMarks(plan.ENIs)
	grouped := !slices.ContainsFunc(plan.ENIs, func(eni ENI) bool { return ungrouped(&eni) })
	for i := range plan.ENIs {
		eni := &plan.ENIs[i]
		eni.Presumed = eni.Presumed && eni.Settings.Managed && !eni.Settings.Undecided
		early := eni.Primary && !viewedIn(in, eni) && !duplicate(in.Links, eni.Link)
		switch {
		case eni.Settings.Undecided && !eni.Known:
			eni.Keep, eni.KeepLink = eni.Link.Current != nil, true
			if numbers, ok := NumbersIn(eni.Link.Current); ok {
				eni.Want.Metric = numbers.Metric()
			}
		case !eni.Settings.Managed:
			renderUnmanaged(eni)
		case eni.Known:
			render(eni, in, grouped)
		case eni.yields:
			eni.Link.Current = nil
		case early && eni.Link.Current == nil:
			eni.Want.Metric = Numbers{}.Metric()
			eni.Want.NoDefault = !eni.Settings.DefaultRoute || eni.Link.InVRF()
			eni.Want.KeepAll = keepsAll(in.Networkd)
			eni.Files = networkFiles(eni, in)
		case eni.Link.MAC == in.Presumed && !eni.Primary && !viewedIn(in, eni):
			// The metadata names another one, or a link has come that is more likely to be
			// it: what was presumed must not give it the primary's metric (B5, B6).
			eni.Link.Current = nil
		default:
			eni.Keep = eni.Link.Current != nil
			eni.Presumed = eni.Link.MAC == in.Presumed
			if numbers, ok := NumbersIn(eni.Link.Current); ok {
				eni.Want.Metric = numbers.Metric()
			}
		}
	}
	holding := holds(plan.ENIs, in)
	pendingMetrics(plan.ENIs, in, holding)
	for i := range plan.ENIs {
		eni := &plan.ENIs[i]
		tell(eni, in.Hint)
		eni.Files = append(eni.Files, generatorFiles(eni, in)...)
		plan.Files = append(plan.Files, eni.Files...)
	}
	plan.shared = leaveOut(plan.ENIs, in.Drivers)
	if keepsAll(in.Networkd) {
		plan.shared = append(plan.shared, baseFile())
	}
	if holding {
		plan.shared = append(plan.shared, holdFile(plan.ENIs, in.Drivers))
	}
	plan.Files = append(plan.Files, plan.shared...)
	slices.SortFunc(plan.ENIs, order)
	return plan
}

// holds tells whether networkd shall leave ENIs alone that are still to come, until their
// files are there. It must not as long as there is an ENI that needs the base unit, which
// it would not get any more: one that is left to others, one whose metadata is not there in
// time, one whose files cannot be written, or one that networkd does not use the generated unit
// for.
func holds(enis []ENI, in Input) bool {
	if len(in.Drivers) == 0 || !slices.ContainsFunc(enis, func(eni ENI) bool { return eni.Primary }) {
		return false
	}
	return !slices.ContainsFunc(enis, func(eni ENI) bool {
		own := eni.Keep || (!eni.Link.Unwritten && slices.ContainsFunc(eni.Files, func(f File) bool { return f.Path == NetworkDropIn(eni.Link.Name) }))
		left := eni.Twice && in.Holding // nobody knows which of two it is
		return eni.Link.Taken != "" || eni.Link.Elsewhere || (!own && !left && !waits(&eni))
	})
}

// waits tells whether networkd leaves an ENI alone for the sake of files that may come.
func waits(eni *ENI) bool { return eni.Link.Waits && (eni.Settings.Managed || eni.Settings.Undecided) }

// presume returns the MAC address of the link that is taken for the primary ENI as long
// as nobody has named it; empty for none. An instance always has its primary ENI: if there
// is one link, it is that. Of several at boot it is the one that the kernel found first:
// the primary has the first slot, and whatever is attached later comes behind. networkd 252
// takes the lease of a link away to change its metric, so the guess spares the primary that
// (E1). Where networkd runs already there is nothing to be won by it.
func presume(in Input) string {
	if in.PrimaryMAC != "" || len(in.Links) == 0 {
		return ""
	}
	first := slices.MinFunc(in.Links, func(a, b Link) int { return cmp.Compare(a.Index, b.Index) })
	if len(in.Links) == 1 || !in.Networkd.Running || in.Presumed == first.MAC {
		return first.MAC
	}
	return ""
}

// identity is what the configuration's sections can ask of an ENI.
func identity(eni *ENI, in Input) config.Identity {
	id := config.Identity{ENIID: eni.View.ID, MAC: eni.Link.MAC, Driver: eni.Link.Driver, Name: eni.Link.Name}
	if in.PrimaryMAC != "" || eni.Presumed {
		id.Primary = &eni.Primary
	}
	if eni.Known || eni.yields {
		id.DeviceIndex, id.NetworkCard = &eni.Numbers.Index, &eni.Numbers.Card
	} else if id.Primary != nil && eni.Primary {
		id.DeviceIndex, id.NetworkCard = new(int), new(int)
	}
	return id
}

// pendingMetrics sees to it that no two ENIs that are not known have the same metric
// (B5): all but one get drop-ins with one of their own. Whoever has one keeps it. A
// link that is about to be known is not worth a reload.
func pendingMetrics(enis []ENI, in Input, holding bool) {
	var without []*ENI
	taken := make(map[int]bool)
	for i := range enis {
		eni := &enis[i]
		// One of two links with one MAC address may be no ENI at all: neither is touched.
		if eni.Known || eni.Want.Metric != 0 || eni.Twice || (!eni.Settings.Managed && !eni.Settings.Undecided) {
			continue
		}
		metric, ok := pendingMetricIn(eni.Link.Current)
		if ok && !taken[metric] {
			taken[metric] = true
			eni.Want.Metric = metric
			if eni.Link.Current.WithoutIPv6() != (eni.Link.IPv6 != kernel.IPv6On) {
				eni.Keep, eni.Files = false, pendingFiles(eni, in)
			}
			continue
		}
		without = append(without, eni)
	}
	slices.SortFunc(without, func(a, b *ENI) int { return cmp.Compare(a.Link.Index, b.Link.Index) })
	// Routes of an earlier metric may still be in the kernel.
	for i := range enis {
		for _, metric := range enis[i].Link.Metrics {
			taken[metric] = true
		}
	}
	next := UnknownMetric
	for i, eni := range without {
		eni.Want.Metric = UnknownMetric
		// networkd 252 takes routes of an old metric away only where it has the ENI's unit.
		// With the base unit networkd would switch IPv6 on (A13).
		onBase := i == 0 && eni.Link.IPv6 == kernel.IPv6On
		if (onBase || eni.Link.New || (holding && waits(eni)) || eni.Settings.Undecided) && !eni.yields {
			continue
		}
		for next++; taken[next]; next++ {
		}
		eni.Want.Metric = next
		eni.Keep = false
		eni.Files = pendingFiles(eni, in)
	}
}

func viewedIn(in Input, eni *ENI) bool {
	_, ok := in.Views[eni.Link.MAC]
	return ok
}

// NumbersOf returns the numbers of a view, and whether they can be used as far as the ENI
// itself is concerned. Cards: some ENI of the instance has a network card.
func NumbersOf(view *metadata.ENI, primary, cards bool) (Numbers, bool) {
	numbers, why := number(view, primary, cards)
	return numbers, why == status.None
}

// number returns the numbers of a view, and why they may not be used, [status.None] if they may.
func number(view *metadata.ENI, primary, cards bool) (numbers Numbers, why status.Code) {
	if view.NetworkCard != nil {
		numbers.Card = *view.NetworkCard
	} else if cards {
		// B5: other ENIs of this instance have the key, so this one's is still to
		// come; taking it as 0 could give two ENIs one table.
		return Numbers{}, status.CardUnknown
	}
	numbers.Index = view.DeviceIndex
	if !primary && numbers == (Numbers{}) {
		// B4: 0 on card 0 is the primary's alone; here it means that the attachment
		// has not propagated.
		return Numbers{}, status.NotPropagated
	}
	return numbers, status.None
}

// settleNumbers sees to it that no two ENIs have the same numbers (B5). Who has
// them now keeps them, also while it is giving them up in the kernel; of several that
// are new, none gets them, since nothing tells which is wrong. Where ENIs wait for each
// other's numbers in a circle, as when two were attached anew with each other's, one gives
// its own up first.
func settleNumbers(enis []ENI, assigned map[string]Numbers) {
	owner := make(map[Numbers]string)
	for _, eni := range enis {
		if numbers, ok := assigned[eni.Link.MAC]; ok {
			owner[numbers] = eni.Link.MAC
		}
	}
	claims := make(map[Numbers][]string)
	for _, eni := range enis {
		if eni.Known {
			claims[eni.Numbers] = append(claims[eni.Numbers], eni.Link.MAC)
		}
	}
	waitsFor := make(map[string]string)
	for i := range enis {
		eni := &enis[i]
		if !eni.Known {
			continue
		}
		mac := eni.Link.MAC
		held, taken := owner[eni.Numbers]
		if other := occupant(enis, i, assigned); other != "" && held != mac {
			eni.Known = false
			waitsFor[mac] = other
			eni.Reason = status.Reason{Code: status.NumbersInUse, Other: other, Index: eni.Numbers.Index, Card: eni.Numbers.Card}
			continue
		}
		if (taken && held == mac) || (!taken && len(claims[eni.Numbers]) == 1) {
			continue
		}
		other := held
		for _, claimant := range claims[eni.Numbers] {
			if other == "" && claimant != mac {
				other = claimant
			}
		}
		eni.Known = false
		eni.Reason = status.Reason{Code: status.NumbersTaken, Other: other, Index: eni.Numbers.Index, Card: eni.Numbers.Card}
		if len(claims[eni.Numbers]) == 1 {
			waitsFor[mac] = held
		}
	}
	yield(enis, waitsFor, assigned)
}

// yield has one of each circle of ENIs that wait for each other give up its numbers: the
// one whose link came last. In a circle where one has done so that goes on in the kernel.
func yield(enis []ENI, waitsFor map[string]string, assigned map[string]Numbers) {
	byMAC := make(map[string]*ENI)
	for i := range enis {
		byMAC[enis[i].Link.MAC] = &enis[i]
	}
	for mac := range waitsFor {
		last, next := byMAC[mac], mac
		for range waitsFor {
			if _, holds := assigned[next]; !holds {
				break
			}
			if byMAC[next].Link.Index > last.Link.Index {
				last = byMAC[next]
			}
			if next = waitsFor[next]; next == mac {
				last.yields = true
				break
			}
		}
	}
}

// occupant returns the MAC address of another ENI whose routes still have the numbers
// of one that is to get them; empty if there is none. It is about to get other ones
// itself: whose files say something else is brought there by networkd. The primary
// never waits.
func occupant(enis []ENI, wants int, assigned map[string]Numbers) string {
	if enis[wants].Primary {
		return ""
	}
	numbers := enis[wants].Numbers
	for i := range enis {
		link := &enis[i].Link
		_, numbered := assigned[link.MAC]
		_, yielded := pendingMetricIn(link.Current)
		if (numbered || yielded) && i != wants &&
			(slices.Contains(link.Metrics, numbers.Metric()) || slices.Contains(link.Tables, numbers.Table())) {
			return link.MAC
		}
	}
	return ""
}

func duplicate(links []Link, link Link) bool {
	return slices.ContainsFunc(links, func(l Link) bool { return l.MAC == link.MAC && l.Index != link.Index })
}

// twin names another link with the MAC address of this one.
func twin(links []Link, link Link) string {
	for _, l := range links {
		if l.MAC == link.MAC && l.Index != link.Index {
			return l.Name
		}
	}
	return ""
}

// order: the primary first, then by card and index, then by name.
func order(a, b ENI) int {
	rank := func(e ENI) int {
		switch {
		case e.Primary:
			return 0
		case e.Known:
			return 1
		}
		return 2
	}
	return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a.Numbers.Table(), b.Numbers.Table()), cmp.Compare(a.Link.Name, b.Link.Name))
}

// render fills in what a known ENI shall have. grouped: the links of all ENIs are in their
// group.
func render(eni *ENI, in Input, grouped bool) {
	view := &eni.Applies
	want := &eni.Want
	want.Metric = eni.Numbers.Metric()
	want.IPv4 = len(view.IPv4) > 0
	want.IPv6 = len(view.IPv6) > 0 || len(view.IPv6Prefixes) > 0
	want.Addresses = slices.Concat(eni.onLink(view.IPv4), eni.onLink(view.IPv6))
	if want.IPv4 {
		want.Primary = view.IPv4[0]
	}
	if len(view.IPv6) > 0 {
		want.Source = view.IPv6[0]
	}
	want.NoDefault = !eni.Settings.DefaultRoute || eni.Link.InVRF()
	if eni.Settings.AlternativeNames {
		want.Altnames = Altnames(view)
	}
	// Without a default route in the main table and without rules nothing would lead a
	// reply out of the primary ENI (B11). A mark needs a table (B12).
	want.Mark = markOf(eni)
	// Nor would a reply if a VPN takes everything along (F13).
	want.Services = eni.Primary && in.Tunnel != 0
	if !eni.Primary || eni.Settings.PrimaryRules || want.NoDefault || want.Mark.Value != 0 || in.Tunnel != 0 {
		want.Table = eni.Numbers.Table()
		want.Guarded = eni.Primary
		// Those of addresses too that others have (A12): their traffic leaves by this ENI.
		for _, address := range slices.Concat(view.IPv4, view.IPv6) {
			want.Rules = append(want.Rules, netip.PrefixFrom(address, address.BitLen()))
		}
		want.Rules = append(want.Rules, view.IPv4Prefixes...)
		want.Rules = append(want.Rules, view.IPv6Prefixes...)
		slices.SortFunc(want.Rules, netip.Prefix.Compare)
		if want.Mark.Value != 0 {
			want.Marked = every(want.IPv4, want.IPv6)
		}
		// Else what is for another ENI's subnet would leave by that ENI (B8).
		if grouped && !want.Guarded {
			want.LocalFirst = localFirst(eni, in.Locked)
		}
		want.Lead = lead(in.Tunnel, want.Table)
	}
	delegate(eni)
	settleMTU(eni)
	want.KeepAll = keepsAll(in.Networkd)
	want.LeaveDNS = leavesDNS(eni, in)
	want.Domains = severalDomains(&eni.Link)
	technique, better := compose(eni, in)
	eni.Files = append(networkFiles(eni, in), linkFiles(eni)...)
	eni.AtStart = startFiles(eni, technique, better)
	eni.KeepLink = eni.Link.LinkFile == ""
	if starting(&eni.Link, technique) {
		// With it in force a change would have networkd drop all of the link and add it again.
		eni.Files, eni.DropIn, eni.LinkDropIn = nil, nil, nil
		eni.Keep, eni.KeepLink = true, true
	}
}

// onLink are those of the ENI's addresses of one family that shall be on its link.
func (e *ENI) onLink(family []netip.Addr) []netip.Addr {
	if e.Settings.SecondaryAddresses {
		return family
	}
	return family[:min(len(family), 1)]
}

// leavesDNS tells whether the DNS servers of the ENI's lease are not used: the ENIs of a VPC
// have the same, and resolved of 252 puts each into resolv.conf as often as a link has it, of
// which the C library reads three. 257 and 262 do not (facts: dns-servers).
func leavesDNS(eni *ENI, in Input) bool {
	if eni.Primary || keepsAll(in.Networkd) {
		return false
	}
	return slices.ContainsFunc(in.Links, func(l Link) bool { return l.MAC == in.PrimaryMAC })
}

// severalDomains are the search domains that stand in the drop-in as the lease has several in
// one option, and networkd would take them for one name. Where the lease is not known any more
// they stay.
func severalDomains(link *Link) string {
	now := link.Current.Domains()
	switch {
	case link.Domains != "":
		return link.Domains
	case now == "" || !link.Leased:
		return now
	case strings.Contains(link.LeaseDomains, " "):
		return link.LeaseDomains
	}
	return ""
}

// renderUnmanaged fills in what an ENI gets whose .network unit is not this daemon's
// to make: its altnames.
func renderUnmanaged(eni *ENI) {
	if !eni.Settings.AlternativeNames {
		return
	}
	if !eni.Known {
		eni.KeepLink = true
		return
	}
	eni.Want.Altnames = Altnames(&eni.View)
	eni.Files = linkFiles(eni)
	eni.KeepLink = eni.Link.LinkFile == ""
}

// mostAssigned is how many addresses of a prefix are assigned one by one. EC2
// delegates /28 for IPv4 and /80 for IPv6.
const mostAssigned = 256

// delegate fills in what the delegated prefixes are on this host.
func delegate(eni *ENI) {
	view, want := &eni.Applies, &eni.Want
	if eni.Settings.Prefixes == config.PrefixesRule {
		return
	}
	for _, prefix := range slices.Concat(view.IPv4Prefixes, view.IPv6Prefixes) {
		if eni.Settings.Prefixes == config.PrefixesLocal || prefix.Addr().Is6() || 1<<(prefix.Addr().BitLen()-prefix.Bits()) > mostAssigned {
			want.Local = append(want.Local, prefix)
			continue
		}
		for address := prefix.Addr(); prefix.Contains(address); address = address.Next() {
			if !slices.Contains(want.Addresses, address) {
				want.Delegated = append(want.Delegated, address)
			}
		}
	}
	slices.SortFunc(want.Local, netip.Prefix.Compare)
	want.Addresses = slices.Concat(want.Addresses, want.Delegated)
}

// static tells which addresses stand in the drop-in, and which shall stand there and wait.
func static(eni *ENI, technique Technique) (addresses, held []netip.Addr) {
	link, want := &eni.Link, &eni.Want
	// A networkd that keeps the lease over a reload keeps it whatever becomes of the
	// metric: where the lease is, it stays the first.
	leased := technique == Dynamic && link.Has(want.Primary) && len(link.DHCPMetrics) > 0
	// networkd is about to be asked to configure the link anew, which takes all its
	// addresses away for a moment: the primary one shall be the first to be back.
	anew := eni.Reconfigure() && link.Reconfigured != want.Metric && !leased
	// So it is where ifdown or a takeover has left the link, for networkd to set up.
	bare := link.Down && !link.Has(want.Primary)
	// What the last boot knew is about to be confirmed: until then nothing is added that
	// takes a reload.
	unsure := eni.Hinted && link.Current != nil && !link.LeaseOverdue
	// An ENI that comes back sooner than networkd has forgotten its unit gets the addresses
	// in it before the lease. So they go, and come again behind it (A3).
	disordered := link.Fresh && misordered(eni)
	// What somebody else has added is left to whoever that is, as long as it is there: so it
	// stays when EC2 withdraws it (A8).
	others := technique == Dynamic && link.Current.KeepsAll()
	add := func(address netip.Addr, now bool) {
		switch {
		case others && slices.Contains(link.Foreign, address):
		case disordered && address.Is4():
			held = append(held, address)
		case want.Ahead.IsValid() && address.Is4() && !unsure:
			addresses = append(addresses, address)
		case now && !unsure, link.Current.HasSingle(address) && !anew && (!bare || address.Is6()):
			addresses = append(addresses, address)
		default:
			held = append(held, address)
		}
	}
	// The kernel orders addresses by age. A secondary address that comes before the
	// lease makes the primary one not the first of the link, and nothing but
	// removing it mends that; so secondary addresses wait for the lease. A lease
	// whose routes do not all have the ENI's metric is about to be taken away for a
	// moment: networkd is at work on the link, or must configure it once more.
	settled := slices.Contains(link.DHCPMetrics, want.Metric) && !stale(link, want.Metric)
	if want.NoDefault {
		settled = len(link.DHCPMetrics) == 0
	}
	// A lease that the base unit or an earlier drop-in brought is not overdue: it is this
	// drop-in that has it taken away.
	overdue := link.LeaseOverdue && (len(link.DHCPMetrics) == 0 || settled || link.Current.RouteMetric() == want.Metric)
	ready := !bare && (overdue || leased || (link.Has(want.Primary) && settled && !link.Busy))
	for _, address := range slices.SortedFunc(slices.Values(slices.Concat(eni.onLink(eni.View.IPv4), want.Delegated)), netip.Addr.Compare) {
		if address != want.Primary {
			add(address, ready)
		}
	}
	for _, address := range slices.SortedFunc(slices.Values(eni.onLink(eni.Applies.IPv6)), netip.Addr.Compare) {
		switch {
		case !want.StaticIPv6 && !link.Current.HasSingle(address) && leftToDHCPv6(eni, address):
		case !want.StaticIPv6:
			add(address, true)
		default:
			add(address, !moving(eni, address))
		}
	}
	return addresses, held
}

// ahead is the primary address of a secondary ENI as it stands in the drop-in, before the
// others: it is the first of the link then whenever the lease comes (A3), so that the others
// need not wait for that. networkd takes it for the same address as the lease's. It is so
// from the first drop-in on or not at all, and only where networkd has left the link alone
// until then: a lease that the base unit is just bringing comes in between.
func ahead(eni *ENI) netip.Prefix {
	link, want := &eni.Link, &eni.Want
	if eni.Primary || !want.IPv4 || eni.withoutGateway() {
		return netip.Prefix{}
	}
	first := link.Waits && len(eni.onLink(eni.View.IPv4))+len(want.Delegated) > 1 && link.Current.RouteMetric() != want.Metric
	for _, subnet := range eni.View.IPv4Subnets {
		prefix := netip.PrefixFrom(want.Primary, subnet.Bits())
		if subnet.Contains(want.Primary) && (first || link.Current.Has(prefix)) {
			return prefix
		}
	}
	return netip.Prefix{}
}

// withoutHeld are the rules by source without those that are new and of addresses that
// wait.
func withoutHeld(all []netip.Prefix, present []Rule, held []netip.Addr) []netip.Prefix {
	return slices.DeleteFunc(slices.Clone(all), func(from netip.Prefix) bool {
		return from.IsSingleIP() && slices.Contains(held, from.Addr()) &&
			!slices.ContainsFunc(present, func(r Rule) bool { return r.From == from })
	})
}

// moving tells whether the link is on its way from the base unit, and an IPv6 address on
// its way from DHCPv6, to the ENI's own drop-in. Where a lease ends and the same address
// is made a static one at once, networkd 252 sometimes takes the latter away
// (facts: static-ipv6), and never lets it go without duplicate address detection, which keeps it
// from use for up to a second: so the lease ends first, if it does so in time. Others need
// no such way, see [takesOver].
func moving(eni *ENI, address netip.Addr) bool {
	link, metric := &eni.Link, eni.Want.Metric
	if takesOver(eni) {
		return false
	}
	if link.LeaseOverdue && link.Current.RouteMetric() == metric && (!eni.Primary || link.Current.WithoutDHCPv6()) {
		return false
	}
	if eni.Primary {
		return link.OnBase || link.dynamic(address)
	}
	// What of a lease is there once networkd is done with the link does not end.
	leased := link.dynamic(address) && !link.Done
	return link.OnBase || leased || stale(link, metric) || (link.Busy && link.Current != nil)
}

// leftToDHCPv6 tells whether an IPv6 address of the primary ENI is no concern of
// the drop-in: DHCPv6 has handed it out, or it is the first one and DHCPv6 may
// still do so. That way a boot configures the link once (E1).
func leftToDHCPv6(eni *ENI, address netip.Addr) bool {
	link := &eni.Link
	if link.dynamic(address) {
		return true
	}
	return address == eni.Applies.IPv6[0] && !link.LeaseOverdue && !slices.ContainsFunc(eni.Applies.IPv6, link.dynamic)
}

func (l *Link) dynamic(address netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == address && a.Dynamic })
}

// stale tells whether the link has default routes by DHCPv4 with another metric
// than it shall have.
func stale(link *Link, metric int) bool {
	return slices.ContainsFunc(link.DHCPMetrics, func(m int) bool { return m != metric })
}

// Reconfigure tells whether networkd must be asked to configure the link anew:
// after a reload it has DHCP routes of both the old metric and the new one, or ones
// that it shall not have any more, which systemd 252 with KeepConfiguration=dhcp never
// takes away by itself (facts: keepconfiguration).
func (e *ENI) Reconfigure() bool {
	if e.Want.NoDefault {
		return len(e.Link.DHCPMetrics) > 0
	}
	return e.Settings.Managed && e.Want.Metric != 0 && slices.Contains(e.Link.DHCPMetrics, e.Want.Metric) && stale(&e.Link, e.Want.Metric)
}

// Altnames of an ENI's link (G1).
func Altnames(view *metadata.ENI) []string {
	number := fmt.Sprintf("device-number-%d", view.DeviceIndex)
	if view.NetworkCard != nil {
		number = fmt.Sprintf("device-number-%d.%d", view.DeviceIndex, *view.NetworkCard)
	}
	return []string{view.ID, number}
}

// NetworkPath is [dropin.NetworkPath].
func NetworkPath(name string) string { return dropin.NetworkPath(name) }

// NetworkDropIn is [dropin.NetworkDropIn].
func NetworkDropIn(name string) string { return dropin.NetworkDropIn(name) }

// LinkPath is [dropin.LinkPath].
func LinkPath(name string) string { return dropin.LinkPath(name) }

// LinkDropIn is [dropin.LinkDropIn].
func LinkDropIn(name string) string { return dropin.LinkDropIn(name) }
