// Package kernel observes the links, addresses, routes and policy rules of this network namespace
// over rtnetlink, and reports when they may have changed.
//
// It changes nothing: networkd does all addressing and routing.
package kernel

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
)

// Snapshot is the state of the kernel at one moment.
type Snapshot struct {
	// Links with one of the given drivers, by index.
	Links []Link
	// Routes of these links, and Rules of the namespace, except the three default rules.
	Routes []Route
	Rules  []Rule
	// Tunnel is the priority of the first rule that looks up all packets without a firewall mark in a
	// table with a default route over another link, like the rule of a full-tunnel VPN; 0 for none.
	Tunnel int
	// Others are the names of all other links, including alternative names, with the name of each
	// link.
	Others map[string]string
}

// Equal reports whether two snapshots are equal for the links with the given drivers. It does not
// compare Others.
func (s *Snapshot) Equal(o *Snapshot) bool {
	return s.Tunnel == o.Tunnel && slices.Equal(s.Routes, o.Routes) && slices.Equal(s.Rules, o.Rules) && reflect.DeepEqual(s.Links, o.Links)
}

// Link is a link that can be an ENI.
type Link struct {
	Index int
	Name  string
	// MAC is the MAC address by which EC2 knows the ENI, lower case with colons, see [MACOf].
	MAC string
	// Permanent: MAC is the permanent address of the device. Unit files match a link by it, whatever
	// address a master assigns to the link.
	Permanent bool
	// Lent is the address that the master has assigned to the link in place of MAC, or empty.
	Lent string
	// Driver as ethtool reports it.
	Driver   string
	Altnames []string
	// Group of the link, see ip-link(8).
	Group int
	// Down: the link is set down. Carrier: it is set up, and has a carrier.
	Down, Carrier bool
	// Master is the name of the master of this link, or empty. MasterKind is its kind, in the terms
	// of ip-link(8): bridge, bond, vrf.
	Master, MasterKind string
	// MTU of the link, and its maximum, 0 if the driver sets no limit.
	MTU, MaxMTU int
	// IPv6 says whether the link has IPv6, and what has switched it off.
	IPv6 IPv6
	// Addresses in the order of the kernel, IPv4 before IPv6.
	Addresses []Address
}

// IPv6 says whether a link has IPv6 (A13).
type IPv6 int

// The values of IPv6. The zero value is that of most links.
const (
	// IPv6On: the link can have IPv6 addresses.
	IPv6On IPv6 = iota
	// IPv6OffHost: the kernel was booted with ipv6.disable=1, or has no IPv6 at all.
	IPv6OffHost
	// IPv6OffLink: the sysctl disable_ipv6 of the link is 1. Writing that of "all" sets it on every
	// link, and that of "default" on every link that is added afterwards.
	IPv6OffLink
	// IPv6None: the kernel has not enabled IPv6 on the link, for example because its MTU is below
	// 1280.
	IPv6None
)

// Address on a link.
type Address struct {
	// Prefix: the address with its prefix length, not masked.
	Prefix netip.Prefix
	// Global scope, as opposed to link or host.
	Global bool
	// Tentative: duplicate address detection has not ended, or failed.
	Tentative bool
	// Dynamic: with a lifetime, from DHCP or a router advertisement.
	Dynamic bool
}

// Route of an observed link.
type Route struct {
	Link int
	// Table number and Metric (priority) of the route.
	Table  int
	Metric int
	// Destination, masked; 0.0.0.0/0 or ::/0 for a default route.
	Destination netip.Prefix
	// Gateway, or the zero Addr for an on-link route.
	Gateway netip.Addr
	// Protocol is an RTPROT_ number: 16 for DHCP, 9 for RA, 4 for static.
	Protocol int
	// Local: packets to Destination are for this host (Type=local), and the route is static. The
	// kernel's own local routes, one for each address, are left out.
	Local bool
}

// Rule is a policy rule.
type Rule struct {
	Priority int
	Table    int
	// From is the source prefix, the zero Prefix if the rule has none.
	From     netip.Prefix
	Protocol int
	// Mark and Mask are the firewall mark that packets must have, 0 if the rule has none.
	Mark, Mask uint32
	// Plain: the rule selects only by source, or only by mark, and only looks up a table. Guard: the
	// rule selects only by source, but ignores routes of the table whose prefix is not longer than
	// [GuardLength] (SuppressPrefixLength=), and routes over links of Group, if that is not 0
	// (SuppressInterfaceGroup=).
	Plain bool
	Guard bool
	Group int
	IPv4  bool
	// Unmarked: the rule looks up a table for all packets that do not have the mark.
	Unmarked bool
}

// GuardLength is the maximal length of prefixes that a rule that guards a table ignores. Without a
// group these are default routes. With a group, which is for the host's own networks (B9), they are
// also the routes that a VPN uses in place of a default route, such as 0.0.0.0/1 and 128.0.0.0/1, or
// 2000::/3: these would also redirect replies from an ENI's address (F13).
func GuardLength(group int) int {
	if group > 0 {
		return 7
	}
	return 0
}

// Protocol numbers of routes and rules (rtnetlink(7)).
const (
	ProtocolStatic = 4
	ProtocolRA     = 9
	ProtocolDHCP   = 16
)

// MainTable is the number of the main routing table.
const MainTable = 254

// Port reports whether another link takes the packets that arrive at this one: addresses and routes
// of a port are of no use. A VRF is only a table for its ports.
func (l *Link) Port() bool { return l.Master != "" && !l.InVRF() }

// InVRF reports whether the link is a port of a VRF. The kernel then has its addresses in the VRF's
// table, and rejects routes in another table that prefer one of them as the source (EINVAL), such as
// those from DHCP. networkd regards that as a failure of the link, and starts again.
func (l *Link) InVRF() bool { return l.Master != "" && l.MasterKind == "vrf" }

// MACOf returns the MAC address by which EC2 knows the link, and reports whether that is the
// permanent address of its device (ethtool -P). A bond without fail_over_mac=active and a team assign
// one MAC address to all their ports, by default that of the first port. Therefore the permanent
// address counts for a port. A veth has none.
func MACOf(attrs *netlink.LinkAttrs) (mac string, permanent bool) {
	current, own := attrs.HardwareAddr.String(), attrs.PermHWAddr.String()
	if own != "" && (own == current || attrs.MasterIndex != 0) {
		return own, true
	}
	return current, false
}

// Address returns the current MAC address of the link.
func (l *Link) Address() string { return cmp.Or(l.Lent, l.MAC) }

// Has reports whether the address is on the link and usable.
func (l *Link) Has(address netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(a Address) bool { return a.Prefix.Addr() == address && !a.Tentative })
}

// FirstGlobalIPv4 returns the first global IPv4 address of the link.
func (l *Link) FirstGlobalIPv4() (netip.Addr, bool) {
	for _, a := range l.Addresses {
		if a.Global && a.Prefix.Addr().Is4() {
			return a.Prefix.Addr(), true
		}
	}
	return netip.Addr{}, false
}

// IsDefault reports whether the route is a default route.
func (r *Route) IsDefault() bool { return r.Destination.Bits() == 0 }
