package takeover

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// standIn is a route beside one of networkd's, which takes the routes of one metric away before it
// sets those of another, and asks the router for them in between. It is in the main table, and comes
// directly after what it stands for, so that who goes before whom stays as it was.
type standIn struct {
	Link   int          `json:"link"`
	To     netip.Prefix `json:"to"`
	By     netip.Addr   `json:"by"`
	From   netip.Addr   `json:"from"`
	Scope  uint8        `json:"scope"`
	Onlink bool         `json:"onlink"`
	MTU    int          `json:"mtu"`
	Metric int          `json:"metric"`
}

// heldRoutes is what HoldRoutes notes in its file.
type heldRoutes struct {
	StandIns []standIn `json:"standIns"`
	// Advertised are the routes that the kernel has made of router advertisements before networkd had
	// the link. They are better than those of networkd with the metrics of ec2netd, so that what is for
	// the subnet of one ENI leaves by another, and a boot has none of them.
	Advertised []standIn `json:"advertised"`
}

// heldProtocols are those of routes that networkd takes away and sets anew.
var heldProtocols = []netlink.RouteProtocol{unix.RTPROT_DHCP, unix.RTPROT_RA, unix.RTPROT_STATIC}

// standIns returns those of the routes over some links. Routes are all of the main table. A route
// that is more than a destination, a gateway and a link has none.
func standIns(routes []netlink.Route, over []int) []standIn {
	taken := make(map[netip.Prefix]map[int]bool)
	for i := range routes {
		to := destination(&routes[i])
		if taken[to] == nil {
			taken[to] = make(map[int]bool)
		}
		taken[to][routes[i].Priority] = true
	}
	held := slices.DeleteFunc(slices.Clone(routes), func(r netlink.Route) bool {
		return !slices.Contains(over, r.LinkIndex) || !slices.Contains(heldProtocols, r.Protocol) || r.Type != unix.RTN_UNICAST ||
			len(r.MultiPath) > 0 || r.Via != nil || r.Encap != nil || r.NewDst != nil || r.MPLSDst != nil || r.Tos != 0
	})
	slices.SortStableFunc(held, func(a, b netlink.Route) int { return cmp.Compare(a.Priority, b.Priority) })
	all := make([]standIn, 0, len(held))
	for i := range held {
		r := &held[i]
		s := standIn{
			Link: r.LinkIndex, To: destination(r), By: address(r.Gw), From: address(r.Src), Scope: uint8(r.Scope),
			Onlink: r.Flags&int(netlink.FLAG_ONLINK) != 0, MTU: r.MTU, Metric: r.Priority + 1,
		}
		for taken[s.To][s.Metric] {
			s.Metric++
		}
		taken[s.To][s.Metric] = true
		all = append(all, s)
	}
	return all
}

// destination is where a route leads.
func destination(r *netlink.Route) netip.Prefix {
	switch {
	case r.Dst != nil:
		ones, _ := r.Dst.Mask.Size()
		return netip.PrefixFrom(address(r.Dst.IP), ones)
	case r.Family == unix.AF_INET:
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	default:
		return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	}
}

func address(ip net.IP) netip.Addr {
	a, _ := netip.AddrFromSlice(ip)
	return a.Unmap()
}

// route is the stand-in for the kernel. networkd of all versions leaves alone what the kernel has
// set itself (networkd-route.c), so it has that protocol. The kernel sets none with a gateway, by
// which the daemon knows stand-ins, see package kernel.
func (s *standIn) route() *netlink.Route {
	r := &netlink.Route{
		LinkIndex: s.Link, Gw: s.By.AsSlice(), Src: s.From.AsSlice(), Scope: netlink.Scope(s.Scope), MTU: s.MTU,
		Dst:   &net.IPNet{IP: s.To.Addr().AsSlice(), Mask: net.CIDRMask(s.To.Bits(), s.To.Addr().BitLen())},
		Table: unix.RT_TABLE_MAIN, Type: unix.RTN_UNICAST, Protocol: unix.RTPROT_KERNEL, Priority: s.Metric,
	}
	if s.Onlink {
		r.Flags = int(netlink.FLAG_ONLINK)
	}
	return r
}

// advertised returns the routes that the kernel has made of router advertisements over a link: to a
// subnet of which the link has no address. Routes are all of the main table.
func advertised(routes []netlink.Route, link int, addresses []netlink.Addr) (all []standIn) {
	for i := range routes {
		r := &routes[i]
		to := destination(r)
		if r.LinkIndex != link || r.Protocol != unix.RTPROT_KERNEL || r.Type != unix.RTN_UNICAST || r.Gw != nil || len(r.MultiPath) > 0 ||
			!to.Addr().Is6() || !to.Addr().IsGlobalUnicast() || to.IsSingleIP() {
			continue
		}
		if !slices.ContainsFunc(addresses, func(a netlink.Addr) bool {
			ones, _ := a.Mask.Size()
			return netip.PrefixFrom(address(a.IP), ones).Masked() == to
		}) {
			all = append(all, standIn{Link: link, To: to, Scope: uint8(r.Scope), Metric: r.Priority})
		}
	}
	return all
}

func (s *standIn) String() string { return fmt.Sprintf("%s with metric %d", s.To, s.Metric) }

// HoldRoutes implements [Kernel].
func (Host) HoldRoutes(file string, links []string) error {
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		return fmt.Errorf("looking at the routes: %w", err)
	}
	var held heldRoutes
	var over []int
	for _, name := range links {
		link, addresses, err := addressesOf(name)
		if err != nil {
			return err
		}
		over = append(over, link.Attrs().Index)
		held.Advertised = append(held.Advertised, advertised(routes, link.Attrs().Index, addresses)...)
	}
	held.StandIns = standIns(routes, over)
	if err := write(file, &held); err != nil {
		return err
	}
	var errs []error
	for i := range held.StandIns {
		if err := netlink.RouteAdd(held.StandIns[i].route()); err != nil {
			errs = append(errs, fmt.Errorf("%v: %w", &held.StandIns[i], err))
		}
	}
	return errors.Join(errs...)
}

// ReleaseRoutes implements [Kernel].
func (Host) ReleaseRoutes(file string, done bool) error {
	var held heldRoutes
	if _, err := os.Lstat(file); errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	if err := read(file, &held); err != nil {
		return err
	}
	all := held.StandIns
	if done {
		all = slices.Concat(held.Advertised, all)
	}
	var errs []error
	for i := range all {
		// It has gone with its link or an address, or was never set.
		if err := netlink.RouteDel(all[i].route()); err != nil && !isAny(err, unix.ESRCH, unix.ENODEV) {
			errs = append(errs, fmt.Errorf("removing the route %v: %w", &all[i], err))
		}
	}
	return errors.Join(errs...)
}
