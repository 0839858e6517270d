package kernel

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Observer takes snapshots. It holds a netlink socket and a socket for ethtool; it
// is for one goroutine.
type Observer struct {
	drivers []string
	// strict has the kernel apply the filter of a dump, so that a machine with many
	// routes costs no more. It refuses the library's dump of rules.
	strict  *netlink.Handle
	lenient *netlink.Handle
	ethtool int
	// known caches the driver by link index: the answer costs a system call for every
	// container's veth otherwise.
	known map[int]known
}

// known is the driver of a link. A link that comes from another network namespace may
// have the index of one that went there, so the rest tells whether it is the same.
type known struct{ kind, mac, driver string }

// NewObserver returns an observer of links with one of the drivers.
func NewObserver(drivers []string) (*Observer, error) {
	strict, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	if err := strict.SetStrictCheck(true); err != nil {
		strict.Close()
		return nil, fmt.Errorf("asking rtnetlink for strict checking (Linux 4.20 or later): %w", err)
	}
	lenient, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		strict.Close()
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		strict.Close()
		lenient.Close()
		return nil, fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	return &Observer{drivers: drivers, strict: strict, lenient: lenient, ethtool: fd, known: make(map[int]known)}, nil
}

// Close releases the sockets.
func (o *Observer) Close() {
	o.strict.Close()
	o.lenient.Close()
	_ = unix.Close(o.ethtool)
}

// Observe takes a snapshot. A link that vanishes meanwhile is left out.
func (o *Observer) Observe() (*Snapshot, error) {
	links, err := retryInterrupted(o.lenient.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	snapshot := &Snapshot{}
	present := make(map[int]bool, len(links))
	for _, link := range links {
		attrs := link.Attrs()
		present[attrs.Index] = true
		driver, ok := o.driver(link)
		if !ok {
			continue
		}
		entry := Link{
			Index:    attrs.Index,
			Name:     attrs.Name,
			MAC:      attrs.HardwareAddr.String(),
			Driver:   driver,
			Altnames: slices.Sorted(slices.Values(attrs.AltNames)),
			Carrier:  attrs.RawFlags&unix.IFF_LOWER_UP != 0,
		}
		if err := o.addresses(link, &entry); err != nil {
			if gone(err) {
				continue
			}
			return nil, err
		}
		if err := o.routes(link, snapshot); err != nil {
			if gone(err) {
				continue
			}
			return nil, err
		}
		snapshot.Links = append(snapshot.Links, entry)
	}
	for index := range o.known {
		if !present[index] {
			delete(o.known, index)
		}
	}
	slices.SortFunc(snapshot.Links, func(a, b Link) int { return a.Index - b.Index })
	if len(snapshot.Links) > 0 {
		if err := o.rules(snapshot); err != nil {
			return nil, err
		}
	}
	return snapshot, nil
}

// plainName is a link name that can stand in a file name and a unit file. The kernel
// allows more.
var plainName = regexp.MustCompile(`^[A-Za-z0-9@_.-]{1,15}$`)

// driver tells the driver of a link that can be an ENI.
func (o *Observer) driver(link netlink.Link) (string, bool) {
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != 6 || attrs.Flags&net.FlagLoopback != 0 || !plainName.MatchString(attrs.Name) {
		return "", false
	}
	cached := o.known[attrs.Index]
	if now := (known{link.Type(), attrs.HardwareAddr.String(), cached.driver}); cached != now || cached.driver == "" {
		info, err := unix.IoctlGetEthtoolDrvinfo(o.ethtool, attrs.Name)
		if err != nil {
			// Renamed or gone since: the event that goes with it makes us look again.
			return "", false
		}
		cached = now
		cached.driver = unix.ByteSliceToString(info.Driver[:])
		o.known[attrs.Index] = cached
	}
	return cached.driver, slices.Contains(o.drivers, cached.driver)
}

func (o *Observer) addresses(link netlink.Link, entry *Link) error {
	found, err := retryInterrupted(func() ([]netlink.Addr, error) { return o.strict.AddrList(link, netlink.FAMILY_ALL) })
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", entry.Name, err)
	}
	for _, a := range found {
		prefix, ok := prefixOf(a.IPNet)
		if !ok {
			continue
		}
		entry.Addresses = append(entry.Addresses, Address{
			Prefix:    prefix,
			Global:    a.Scope == unix.RT_SCOPE_UNIVERSE,
			Tentative: a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && a.Flags&unix.IFA_F_OPTIMISTIC == 0,
			Dynamic:   a.Flags&unix.IFA_F_PERMANENT == 0,
		})
	}
	slices.SortStableFunc(entry.Addresses, func(a, b Address) int { return a.Prefix.Addr().BitLen() - b.Prefix.Addr().BitLen() })
	return nil
}

func (o *Observer) routes(link netlink.Link, snapshot *Snapshot) error {
	index := link.Attrs().Index
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := retryInterrupted(func() ([]netlink.Route, error) {
			return o.strict.RouteListFiltered(family, &netlink.Route{LinkIndex: index}, netlink.RT_FILTER_OIF|netlink.RT_FILTER_TABLE)
		})
		if err != nil {
			return fmt.Errorf("listing routes of %s: %w", link.Attrs().Name, err)
		}
		for _, r := range found {
			local := r.Type == unix.RTN_LOCAL && r.Protocol != unix.RTPROT_KERNEL
			if !local && (r.Type != unix.RTN_UNICAST || r.Table == unix.RT_TABLE_LOCAL) {
				continue
			}
			route := Route{Link: index, Table: r.Table, Metric: r.Priority, Protocol: int(r.Protocol), Local: local}
			if destination, ok := prefixOf(r.Dst); ok {
				route.Destination = destination
			} else if family == netlink.FAMILY_V4 {
				route.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
			} else {
				route.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
			}
			if gateway, ok := netip.AddrFromSlice(r.Gw); ok {
				route.Gateway = gateway.Unmap()
			}
			snapshot.Routes = append(snapshot.Routes, route)
		}
	}
	return nil
}

func (o *Observer) rules(snapshot *Snapshot) error {
	found, err := rules(o.lenient)
	snapshot.Rules = found
	return err
}

// Rules lists the policy rules of this network namespace, without the three default
// ones, in the order of the kernel.
func Rules() ([]Rule, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	defer handle.Close()
	return rules(handle)
}

func rules(handle *netlink.Handle) ([]Rule, error) {
	var all []Rule
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		found, err := retryInterrupted(func() ([]netlink.Rule, error) { return handle.RuleList(family) })
		if err != nil {
			return nil, fmt.Errorf("listing policy rules: %w", err)
		}
		for _, r := range found {
			if r.Priority == 0 || r.Priority == 32766 || r.Priority == 32767 {
				continue
			}
			rule := Rule{Priority: r.Priority, Table: r.Table, Protocol: int(r.Protocol), IPv4: family == netlink.FAMILY_V4}
			if from, ok := prefixOf(r.Src); ok {
				rule.From = from
			}
			bySource := rule.From.IsValid() && r.Dst == nil && r.Mark == 0 && r.IifName == "" && r.OifName == "" &&
				!r.Invert && r.Tos == 0 && r.IPProto == 0 && r.Dport == nil && r.Sport == nil && r.UIDRange == nil &&
				r.SuppressIfgroup < 0 && r.Goto < 0 && r.Table != 0
			rule.Plain = bySource && r.SuppressPrefixlen < 0
			rule.Guard = bySource && r.SuppressPrefixlen == 0
			all = append(all, rule)
		}
	}
	return all, nil
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
	if n == nil {
		return netip.Prefix{}, false
	}
	address, ok := netip.AddrFromSlice(n.IP)
	if !ok {
		return netip.Prefix{}, false
	}
	ones, bits := n.Mask.Size()
	address = address.Unmap()
	if bits != address.BitLen() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(address, ones), true
}

// retryInterrupted repeats a dump that a change in the kernel interrupted: its
// result is not consistent.
func retryInterrupted[T any](dump func() (T, error)) (T, error) {
	for range 10 {
		found, err := dump()
		if !errors.Is(err, netlink.ErrDumpInterrupted) {
			return found, err
		}
	}
	return dump()
}

func gone(err error) bool {
	return errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO) || errors.As(err, &netlink.LinkNotFoundError{})
}
