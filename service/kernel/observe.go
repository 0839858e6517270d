package kernel

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Observer takes snapshots. It has sockets for netlink and one for ethtool. Only one goroutine may
// use it.
type Observer struct {
	drivers *atomic.Pointer[[]string]
	handle  *netlink.Handle
	dumper  *dumper
	ethtool int
	// known caches the driver by link index: otherwise each container's veth would cost a system
	// call.
	known map[int]known
	// listed is the number of rules in the last snapshot.
	listed int
}

// known is the driver of a link. A link from another network namespace may have the index of a link
// that was moved away, so the other fields identify the link.
type known struct{ kind, mac, driver string }

// NewObserver returns an observer of links with one of the given drivers.
func NewObserver(drivers []string) (*Observer, error) {
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("opening rtnetlink: %w", err)
	}
	dumper, err := newDumper()
	if err != nil {
		handle.Close()
		return nil, err
	}
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		handle.Close()
		dumper.close()
		return nil, fmt.Errorf("opening a socket for ethtool: %w", err)
	}
	o := &Observer{drivers: &atomic.Pointer[[]string]{}, handle: handle, dumper: dumper, ethtool: fd, known: make(map[int]known)}
	o.SetDrivers(drivers)
	return o, nil
}

// SetDrivers changes the drivers for later snapshots.
func (o *Observer) SetDrivers(drivers []string) { o.drivers.Store(&drivers) }

// Close releases the sockets.
func (o *Observer) Close() {
	o.handle.Close()
	o.dumper.close()
	_ = unix.Close(o.ethtool)
}

// Observe takes a snapshot. It leaves out a link that disappears meanwhile.
func (o *Observer) Observe() (*Snapshot, error) {
	links, err := retryInterrupted(o.handle.LinkList)
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	snapshot := &Snapshot{Others: make(map[string]string)}
	present := make(map[int]bool, len(links))
	for _, link := range links {
		attrs := link.Attrs()
		present[attrs.Index] = true
		driver, ok := o.driver(link)
		if !ok {
			for _, name := range attrs.AltNames {
				snapshot.Others[name] = attrs.Name
			}
			snapshot.Others[attrs.Name] = attrs.Name
			continue
		}
		entry := Link{
			Index:    attrs.Index,
			Name:     attrs.Name,
			Driver:   driver,
			Altnames: slices.Sorted(slices.Values(attrs.AltNames)),
			Group:    int(attrs.Group),
			Down:     attrs.RawFlags&unix.IFF_UP == 0,
			Carrier:  attrs.RawFlags&unix.IFF_LOWER_UP != 0,
		}
		entry.MAC, entry.Permanent = MACOf(attrs)
		if current := attrs.HardwareAddr.String(); current != entry.MAC {
			entry.Lent = current
		}
		if i := slices.IndexFunc(links, func(l netlink.Link) bool { return l.Attrs().Index == attrs.MasterIndex }); i >= 0 {
			entry.Master, entry.MasterKind = links[i].Attrs().Name, links[i].Type()
		}
		if err := errors.Join(o.addresses(&entry), o.details(&entry)); err != nil {
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
		elsewhere, err := listRoutes(o.dumper.dump, snapshot)
		if err != nil {
			return nil, err
		}
		rules, host, err := listRules(o.dumper.dump, o.listed)
		if err != nil {
			return nil, err
		}
		snapshot.Rules, o.listed = rules, len(rules)
		snapshot.Tunnel = tunnel(rules, elsewhere)
		offHost(snapshot.Links, host)
	}
	return snapshot, nil
}

// offHost sets IPv6OffHost, according to the policy rules, for the links that have no IPv6. Some
// kernels have IPv6 but no policy rules for it, so a link with IPv6 counts as such.
func offHost(links []Link, host IPv6) {
	for i := range links {
		if host == IPv6OffHost && links[i].IPv6 == IPv6None {
			links[i].IPv6 = host
		}
	}
}

// plainName matches a link name that is valid in a file name and a unit file. The kernel permits more
// names.
var plainName = regexp.MustCompile(`^[A-Za-z0-9@_.-]{1,15}$`)

// driver returns the driver of a link that can be an ENI.
func (o *Observer) driver(link netlink.Link) (string, bool) {
	attrs := link.Attrs()
	if len(attrs.HardwareAddr) != 6 || attrs.Flags&net.FlagLoopback != 0 || !plainName.MatchString(attrs.Name) {
		return "", false
	}
	cached := o.known[attrs.Index]
	if now := (known{link.Type(), attrs.HardwareAddr.String(), cached.driver}); cached != now || cached.driver == "" {
		info, err := unix.IoctlGetEthtoolDrvinfo(o.ethtool, attrs.Name)
		if err != nil {
			// The link was renamed or removed meanwhile: its event causes another look.
			return "", false
		}
		cached = now
		cached.driver = unix.ByteSliceToString(info.Driver[:])
		o.known[attrs.Index] = cached
	}
	return cached.driver, slices.Contains(*o.drivers.Load(), cached.driver)
}

func (o *Observer) addresses(entry *Link) error {
	header := make([]byte, unix.SizeofIfAddrmsg)
	binary.NativeEndian.PutUint32(header[4:], uint32(entry.Index))
	err := o.dumper.dump(unix.RTM_GETADDR, header, func() { entry.Addresses = nil }, func(item []byte) {
		if len(item) < unix.SizeofIfAddrmsg || int(binary.NativeEndian.Uint32(item[4:])) != entry.Index {
			return
		}
		bits, flags, scope := int(item[1]), int(item[2]), item[3]
		var local, address []byte
		attributes(item, unix.SizeofIfAddrmsg, func(kind uint16, value []byte) {
			switch kind {
			case unix.IFA_LOCAL:
				local = value
			case unix.IFA_ADDRESS:
				address = value
			case unix.IFA_FLAGS:
				flags = number(value)
			}
		})
		// If there is also the address of a peer, the prefix is the peer's (ip-address(8)).
		if local != nil && !bytes.Equal(local, address) {
			address, bits = local, 8*len(local)
		}
		prefix := prefixed(address, bits)
		if !prefix.IsValid() {
			return
		}
		entry.Addresses = append(entry.Addresses, Address{
			Prefix:    prefix,
			Global:    scope == unix.RT_SCOPE_UNIVERSE,
			Tentative: flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) != 0 && flags&unix.IFA_F_OPTIMISTIC == 0,
			Dynamic:   flags&unix.IFA_F_PERMANENT == 0,
		})
	})
	if err != nil {
		return fmt.Errorf("listing addresses of %s: %w", entry.Name, err)
	}
	slices.SortStableFunc(entry.Addresses, func(a, b Address) int { return a.Prefix.Addr().BitLen() - b.Prefix.Addr().BitLen() })
	return nil
}

// details determines the MTU of a link and whether it has IPv6. It asks the kernel, since the daemon
// cannot read sysctls in its sandbox (ProcSubset=pid).
func (o *Observer) details(entry *Link) error {
	entry.IPv6 = IPv6None
	err := o.dumper.get(unix.RTM_GETLINK, linkRequest(entry.Index), func(item []byte) {
		entry.IPv6 = ipv6Of(item)
		entry.MTU, entry.MaxMTU = mtuOf(item)
	})
	if err != nil {
		return fmt.Errorf("looking at %s: %w", entry.Name, err)
	}
	return nil
}

// mtuOf parses a struct ifinfomsg.
func mtuOf(item []byte) (mtu, most int) {
	attributes(item, unix.SizeofIfInfomsg, func(kind uint16, value []byte) {
		switch kind {
		case unix.IFLA_MTU:
			mtu = number(value)
		case unix.IFLA_MAX_MTU:
			most = number(value)
		}
	})
	return mtu, most
}

// skipStatistics is RTEXT_FILTER_SKIP_STATS of linux/rtnetlink.h, and disableIPv6 the index of
// disable_ipv6 in IFLA_INET6_CONF, DEVCONF_DISABLE_IPV6 of linux/ipv6.h.
const (
	skipStatistics = 1 << 3
	disableIPv6    = 26
)

// linkRequest returns a request for the link with an index.
func linkRequest(index int) []byte {
	request := make([]byte, unix.SizeofIfInfomsg, unix.SizeofIfInfomsg+attributeSize+4)
	binary.NativeEndian.PutUint32(request[4:], uint32(index))
	request = binary.NativeEndian.AppendUint16(request, attributeSize+4)
	request = binary.NativeEndian.AppendUint16(request, unix.IFLA_EXT_MASK)
	return binary.NativeEndian.AppendUint32(request, skipStatistics)
}

// ipv6Of parses a struct ifinfomsg.
func ipv6Of(item []byte) IPv6 {
	found := IPv6None
	attributes(item, unix.SizeofIfInfomsg, func(kind uint16, families []byte) {
		if kind != unix.IFLA_AF_SPEC {
			return
		}
		attributes(families, 0, func(family uint16, settings []byte) {
			if family != unix.AF_INET6 {
				return
			}
			found = IPv6On
			attributes(settings, 0, func(kind uint16, value []byte) {
				if at := 4 * disableIPv6; kind == unix.IFLA_INET6_CONF && len(value) >= at+4 && number(value[at:]) != 0 {
					found = IPv6OffLink
				}
			})
		})
	})
	return found
}

// familyTable is a routing table of an address family.
type familyTable struct {
	ipv4  bool
	table int
}

// tunnel returns the priority of the first rule of a full tunnel, see [Snapshot]. Elsewhere are the
// tables with a default route over a link that is not an ENI.
func tunnel(rules []Rule, elsewhere map[familyTable]bool) int {
	first := 0
	for i := range rules {
		rule := &rules[i]
		if rule.Unmarked && elsewhere[familyTable{rule.IPv4, rule.Table}] && (first == 0 || rule.Priority < first) {
			first = rule.Priority
		}
	}
	return first
}

// listRoutes adds the routes of the links of the snapshot. It requests them by type, so that the
// kernel does not send its own local routes, one for each address; a request per link would make the
// kernel walk all of them each time. It returns the tables with a default route over another link.
func listRoutes(dump dumping, snapshot *Snapshot) (elsewhere map[familyTable]bool, err error) {
	elsewhere = make(map[familyTable]bool)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		for _, filter := range []struct{ kind, protocol byte }{{kind: unix.RTN_UNICAST}, {unix.RTN_LOCAL, ProtocolStatic}} {
			header := make([]byte, unix.SizeofRtMsg)
			header[0], header[5], header[7] = family, filter.protocol, filter.kind
			before := len(snapshot.Routes)
			err := dump(unix.RTM_GETROUTE, header, func() { snapshot.Routes = snapshot.Routes[:before] }, func(item []byte) {
				route, hops, ok := routeOf(item, family)
				if !ok {
					return
				}
				add := func(route Route) {
					if slices.ContainsFunc(snapshot.Links, func(l Link) bool { return l.Index == route.Link }) {
						snapshot.Routes = append(snapshot.Routes, route)
					} else if route.IsDefault() {
						elsewhere[familyTable{family == unix.AF_INET, route.Table}] = true
					}
				}
				if hops == nil {
					add(route)
				}
				eachHop(hops, func(link int, gateway netip.Addr) {
					route.Link, route.Gateway = link, gateway
					add(route)
				})
			})
			if withoutIPv6(family, err) {
				break
			}
			if err != nil {
				return nil, fmt.Errorf("listing routes: %w", err)
			}
		}
	}
	return elsewhere, nil
}

// routeOf parses a struct rtmsg. It returns false for a route that cannot belong to an ENI. hops are
// the next hops of a multipath route: the kernel merges routes through several IPv6 routers with the
// same metric into one.
func routeOf(item []byte, family byte) (route Route, hops []byte, ok bool) {
	if len(item) < unix.SizeofRtMsg || item[0] != family || binary.NativeEndian.Uint32(item[8:])&unix.RTM_F_CLONED != 0 {
		return Route{}, nil, false
	}
	bits, table, protocol, kind := int(item[1]), int(item[4]), int(item[5]), item[7]
	local := kind == unix.RTN_LOCAL && protocol == ProtocolStatic
	if !local && (kind != unix.RTN_UNICAST || table == unix.RT_TABLE_LOCAL) {
		return Route{}, nil, false
	}
	route = Route{Table: table, Protocol: protocol, Local: local}
	// Without a destination it is a default route.
	route.Destination = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
	if family == unix.AF_INET {
		route.Destination = netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	attributes(item, unix.SizeofRtMsg, func(kind uint16, value []byte) {
		switch kind {
		case unix.RTA_OIF:
			route.Link = number(value)
		case unix.RTA_TABLE:
			route.Table = number(value)
		case unix.RTA_PRIORITY:
			route.Metric = number(value)
		case unix.RTA_DST:
			route.Destination = prefixed(value, bits)
		case unix.RTA_GATEWAY:
			route.Gateway, _ = netip.AddrFromSlice(value)
		case unix.RTA_MULTIPATH:
			hops = value
		}
	})
	// The kernel itself creates no route with a gateway: this one stands in during a takeover, and is
	// removed soon.
	if protocol == unix.RTPROT_KERNEL && route.Gateway.IsValid() {
		return Route{}, nil, false
	}
	return route, hops, true
}

// eachHop iterates over a list of struct rtnexthop.
func eachHop(hops []byte, each func(link int, gateway netip.Addr)) {
	for len(hops) >= unix.SizeofRtNexthop {
		size := int(binary.NativeEndian.Uint16(hops))
		if size < unix.SizeofRtNexthop || size > len(hops) {
			return
		}
		var gateway netip.Addr
		attributes(hops[:size], unix.SizeofRtNexthop, func(kind uint16, value []byte) {
			if kind == unix.RTA_GATEWAY {
				gateway, _ = netip.AddrFromSlice(value)
			}
		})
		each(int(binary.NativeEndian.Uint32(hops[4:])), gateway)
		hops = hops[min((size+3)&^3, len(hops)):]
	}
}

// Rules lists the policy rules of this network namespace, except the three default ones, in the order
// of the kernel.
func Rules() ([]Rule, error) {
	dumper, err := newDumper()
	if err != nil {
		return nil, err
	}
	defer dumper.close()
	all, _, err := listRules(dumper.dump, 0)
	return all, err
}

// withoutIPv6 reports whether an answer is that of a kernel without IPv6. A kernel that was booted
// with ipv6.disable=1 rejects a request for the rules of that family (6.1 and 6.12), and has no
// routes.
func withoutIPv6(family byte, err error) bool {
	return family == unix.AF_INET6 && (errors.Is(err, unix.EAFNOSUPPORT) || errors.Is(err, unix.EOPNOTSUPP))
}

// listRules lists the policy rules, given their expected number, and reports whether the host has
// IPv6.
func listRules(dump dumping, expected int) ([]Rule, IPv6, error) {
	all := make([]Rule, 0, expected)
	for _, family := range []byte{unix.AF_INET, unix.AF_INET6} {
		header := make([]byte, ruleSize)
		header[0] = family
		before := len(all)
		err := dump(unix.RTM_GETRULE, header, func() { all = all[:before] }, func(item []byte) {
			if rule, ok := ruleOf(item, family); ok {
				all = append(all, rule)
			}
		})
		if withoutIPv6(family, err) {
			return all, IPv6OffHost, nil
		}
		if err != nil {
			return nil, IPv6On, fmt.Errorf("listing policy rules: %w", err)
		}
	}
	return all, IPv6On, nil
}

// toTable is the action of a rule that looks up a table (FR_ACT_TO_TBL of linux/fib_rules.h), and
// invert the flag of a rule that applies to all packets that do not match.
const (
	toTable = 1
	invert  = 2
)

// ruleOf parses a struct fib_rule_hdr. It returns false for the three default rules.
func ruleOf(item []byte, family byte) (Rule, bool) {
	if len(item) < ruleSize || item[0] != family {
		return Rule{}, false
	}
	bits, flags := int(item[2]), binary.NativeEndian.Uint32(item[8:])
	rule := Rule{Table: int(item[4]), IPv4: family == unix.AF_INET}
	// Any other selector or action has its own attribute.
	lookup := item[7] == toTable && item[1] == 0 && item[3] == 0
	const none = 1<<32 - 1
	suppress, group := none, none
	attributes(item, ruleSize, func(kind uint16, value []byte) {
		switch kind {
		case unix.FRA_SRC:
			rule.From = prefixed(value, bits)
		case unix.FRA_TABLE:
			rule.Table = number(value)
		case unix.FRA_PRIORITY:
			rule.Priority = number(value)
		case unix.FRA_PROTOCOL:
			if len(value) > 0 {
				rule.Protocol = int(value[0])
			}
		case unix.FRA_SUPPRESS_PREFIXLEN:
			suppress = number(value)
		case unix.FRA_SUPPRESS_IFGROUP:
			group = number(value)
		case unix.FRA_FWMARK:
			rule.Mark = uint32(number(value))
		case unix.FRA_FWMASK:
			rule.Mask = uint32(number(value))
		case unix.FRA_PAD:
		default:
			lookup = false
		}
	})
	if rule.Priority == 0 || rule.Priority == 32766 || rule.Priority == 32767 {
		return Rule{}, false
	}
	lookup = lookup && rule.Table != 0
	simple := lookup && flags&invert == 0
	rule.Unmarked = lookup && !simple && !rule.From.IsValid() && rule.Mark != 0 && suppress == none && group == none
	bySource := simple && rule.From.IsValid() && rule.Mark == 0 && rule.Mask == 0
	byMark := simple && !rule.From.IsValid() && rule.Mark != 0
	rule.Plain = (bySource || byMark) && suppress == none && group == none
	if bySource && group != none {
		rule.Group = group
	}
	rule.Guard = bySource && group != 0 && suppress == GuardLength(rule.Group)
	if !rule.Guard {
		rule.Group = 0
	}
	return rule, true
}

func prefixOf(n *net.IPNet) (netip.Prefix, bool) {
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

// retryInterrupted repeats a dump that a change in the kernel has interrupted, since its result is
// inconsistent.
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
