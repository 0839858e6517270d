// Package kernel observes the links, addresses, routes and policy rules of this
// network namespace over rtnetlink, and tells when they may have changed.
//
// It only looks: networkd does all addressing and routing.
package kernel

import (
	"cmp"
	"net/netip"
	"reflect"
	"slices"

	"github.com/vishvananda/netlink"
)

// Snapshot is what the kernel had at one moment.
type Snapshot struct {
	// Links whose driver is one of those asked for, by index.
	Links []Link
	// Routes of these links, and Rules of the namespace, without the three default
	// rules.
	Routes []Route
	Rules  []Rule
	// Tunnel is the priority of the first rule that takes all packets without a firewall mark
	// to a table with a default route over another link, as that of a VPN's full tunnel does; 0
	// for none.
	Tunnel int
	// Others are the names of all other links, alternative ones too, each with the link's own.
	Others map[string]string
}

// Equal tells whether two snapshots say the same of the links whose driver was asked for. Others are
// not among what it compares.
func (s *Snapshot) Equal(o *Snapshot) bool {
	return s.Tunnel == o.Tunnel && slices.Equal(s.Routes, o.Routes) && slices.Equal(s.Rules, o.Rules) && reflect.DeepEqual(s.Links, o.Links)
}

// Link is a link that can be an ENI.
type Link struct {
	Index int
	Name  string
	// MAC is the MAC address by which EC2 knows the ENI, lower case with colons, see [MACOf].
	MAC string
	// Permanent: MAC is the permanent address of the device. Unit files match a link by it whatever
	// address a master gives the link.
	Permanent bool
	// Lent is the address that the link has from its master in place of MAC, or empty.
	Lent string
	// Driver as ethtool reports it.
	Driver   string
	Altnames []string
	// Group of the link, see ip-link(8).
	Group int
	// Down: the link is set down. Carrier: it is set up, and has a carrier.
	Down, Carrier bool
	// Master is the name of the link that this one is a port of, or empty, and MasterKind what
	// that is, in the words of ip-link(8): bridge, bond, vrf.
	Master, MasterKind string
	// MTU of the link, and the most that it can have, 0 where the driver sets no limit.
	MTU, MaxMTU int
	// IPv6 says whether the link has IPv6, and what has switched it off.
	IPv6 IPv6
	// Addresses in the order of the kernel, IPv4 before IPv6.
	Addresses []Address
}

// IPv6 says whether a link has IPv6 (A13).
type IPv6 int

// The answers. The zero value is that of most links.
const (
	// IPv6On: the link can have IPv6 addresses.
	IPv6On IPv6 = iota
	// IPv6OffHost: the kernel was booted with ipv6.disable=1, or has no IPv6 at all.
	IPv6OffHost
	// IPv6OffLink: the sysctl disable_ipv6 of the link is 1. Writing that of "all" sets it
	// on every link, and that of "default" on every link that comes afterwards.
	IPv6OffLink
	// IPv6None: the kernel has given the link no IPv6, as it does where the MTU is below 1280.
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
	// Local: what goes there is for this host (Type=local), and the route is a static one.
	// The kernel's own such routes, one for each address, are left out.
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
	// Plain: the rule selects by source alone, or by mark alone, and only looks a table up.
	// Guard: it selects by source alone, but routes of the table do not count that are no
	// longer than [GuardLength] (SuppressPrefixLength=), nor do routes over links of Group, if
	// that is not 0 (SuppressInterfaceGroup=).
	Plain bool
	Guard bool
	Group int
	IPv4  bool
	// Unmarked: the rule looks a table up for all packets that do not have the mark.
	Unmarked bool
}

// GuardLength is the length up to which prefixes do not count for a rule that guards a table.
// Without a group those are default routes. With one, which is for networks of the host's own
// (B9), they are also what a VPN has in the place of a default route, such as 0.0.0.0/1 and
// 128.0.0.0/1, or 2000::/3: that would take replies from an ENI's address along (F13).
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

// Port reports whether another link takes what arrives at this one: addresses and routes of a
// port are of no use. A VRF is only a table for its ports.
func (l *Link) Port() bool { return l.Master != "" && !l.InVRF() }

// InVRF reports whether the link is a port of a VRF. The kernel has its addresses in the VRF's table
// then, and refuses routes in another one that prefer one of them as the source (EINVAL), as DHCP's
// do: networkd takes that for a failure of the link, and begins anew.
func (l *Link) InVRF() bool { return l.Master != "" && l.MasterKind == "vrf" }

// MACOf returns the MAC address of the ENI that a link is, and reports whether that is the permanent
// address of its device (ethtool -P). A bond without fail_over_mac=active and a team give their ports
// one MAC address, that of the first port unless they are told another one: so what counts for a port
// is the permanent address. A veth has none.
func MACOf(attrs *netlink.LinkAttrs) (mac string, permanent bool) {
	current, own := attrs.HardwareAddr.String(), attrs.PermHWAddr.String()
	if own != "" && (own == current || attrs.MasterIndex != 0) {
		return own, true
	}
	return current, false
}

// Address returns the MAC address that the link has now.
func (l *Link) Address() string { return cmp.Or(l.Lent, l.MAC) }

// Has tells whether the address is on the link and may be used.
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

// IsDefault tells whether the route is a default route.
func (r *Route) IsDefault() bool { return r.Destination.Bits() == 0 }
