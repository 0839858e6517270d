package takeover

import (
	"errors"
	"fmt"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// StandInMetric is the metric of stand-ins: routes beside those of networkd, which takes the routes
// of one metric away before it sets those of another, and asks the router for them in between.
// They come after all others.
const StandInMetric = 0xEC2D_0000

// standInProtocol is that of routes that networkd of all versions leaves alone (networkd-route.c).
// The kernel has such a route of [StandInMetric] only for an address to which somebody gave it.
const standInProtocol = unix.RTPROT_KERNEL

// heldProtocols are those of routes that networkd has set, or has the kernel set.
var heldProtocols = []netlink.RouteProtocol{unix.RTPROT_DHCP, unix.RTPROT_RA, unix.RTPROT_STATIC, unix.RTPROT_KERNEL}

// standIn returns the stand-in of a route, if it has one.
func standIn(r *netlink.Route) (netlink.Route, bool) {
	if r.Type != unix.RTN_UNICAST || r.Table == unix.RT_TABLE_LOCAL || len(r.MultiPath) > 0 || !slices.Contains(heldProtocols, r.Protocol) {
		return netlink.Route{}, false
	}
	return netlink.Route{
		Family: r.Family, LinkIndex: r.LinkIndex, Dst: r.Dst, Gw: r.Gw, Src: r.Src, Scope: r.Scope, Table: r.Table, Type: r.Type, MTU: r.MTU,
		Protocol: standInProtocol, Priority: StandInMetric,
	}, true
}

// routesOver lists the routes of all tables over a link; none if there is no such link.
func routesOver(name string) ([]netlink.Route, error) {
	link, err := netlink.LinkByName(name)
	if errors.As(err, &netlink.LinkNotFoundError{}) {
		return nil, nil
	}
	var routes []netlink.Route
	if err == nil {
		filter := &netlink.Route{LinkIndex: link.Attrs().Index, Table: unix.RT_TABLE_UNSPEC}
		routes, err = netlink.RouteListFiltered(netlink.FAMILY_ALL, filter, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
	}
	if err != nil {
		return nil, fmt.Errorf("looking at the routes of %s: %w", name, err)
	}
	return routes, nil
}

// HoldRoutes implements [System].
func (Host) HoldRoutes(links []string) error {
	for _, name := range links {
		routes, err := routesOver(name)
		if err != nil {
			return err
		}
		for i := range routes {
			held, ok := standIn(&routes[i])
			if !ok {
				continue
			}
			// One that there is already differs in nothing that counts.
			if err := netlink.RouteAdd(&held); err != nil && !errors.Is(err, unix.EEXIST) {
				return fmt.Errorf("keeping the route %s: %w", routes[i], err)
			}
		}
	}
	return nil
}

// ReleaseRoutes implements [System].
func (Host) ReleaseRoutes(links []string) error {
	var errs []error
	for _, name := range links {
		routes, err := routesOver(name)
		errs = append(errs, err)
		for i := range routes {
			if r := &routes[i]; r.Protocol == standInProtocol && r.Priority == StandInMetric {
				// It goes with an address, too.
				if err := netlink.RouteDel(r); err != nil && !errors.Is(err, unix.ESRCH) {
					errs = append(errs, fmt.Errorf("removing the route %s: %w", r, err))
				}
			}
		}
	}
	return errors.Join(errs...)
}
