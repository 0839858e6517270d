package vpc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Lifetimes of leases and advertisements of the router, in whole seconds.
type Lifetimes struct {
	DHCPv4          time.Duration // lease
	DHCPv6Preferred time.Duration // of addresses; half of it is the time of renewal
	DHCPv6Valid     time.Duration
	Router          time.Duration // of the default route in advertisements; 0: it is none
	AdvertiseEvery  time.Duration // unasked advertisements; 0: none
}

// defaultLifetimes are the lifetimes of EC2.
func defaultLifetimes() Lifetimes {
	return Lifetimes{
		DHCPv4: time.Hour, DHCPv6Preferred: 140 * time.Second, DHCPv6Valid: 450 * time.Second,
		Router: 30 * time.Minute, AdvertiseEvery: 10 * time.Second,
	}
}

func (l Lifetimes) check() error {
	switch {
	case l.DHCPv4 < time.Second || l.DHCPv6Preferred < time.Second:
		return fmt.Errorf("lifetimes %s of DHCPv4 leases and %s of DHCPv6 ones: want at least a second", l.DHCPv4, l.DHCPv6Preferred)
	case l.DHCPv6Valid < l.DHCPv6Preferred:
		return fmt.Errorf("an IPv6 address is preferred for %s but valid for %s only", l.DHCPv6Preferred, l.DHCPv6Valid)
	case l.Router < 0 || l.Router > 65535*time.Second: // RFC 4861, 4.2
		return fmt.Errorf("lifetime %s of a router is not in 0…65535 s", l.Router)
	case l.AdvertiseEvery < 0:
		return fmt.Errorf("interval %s of advertisements is negative", l.AdvertiseEvery)
	}
	return nil
}

// Service is a service of a subnet's router for its ENIs.
type Service string

// The services.
const (
	DHCPv4 Service = "dhcpv4"
	DHCPv6 Service = "dhcpv6"
	RA     Service = "ra"
)

// Subnet is a bridge with a router on it.
type Subnet struct {
	vpc    *VPC
	spec   SubnetSpec
	id     string
	bridge netlink.Link
	mac    net.HardwareAddr
	dhcp4  net.PacketConn
	dhcp6  *rawConn
	repace chan struct{} // the interval of advertisements has changed

	mu     sync.Mutex
	delays *rand.Rand // of solicited advertisements
	muted  []Service
	router netip.Addr // link-local source of advertisements
	pool   pool
}

// defaultRouter is the link-local address of every subnet's router.
var defaultRouter = netip.MustParseAddr("fe80::ec2:1")

// check rejects blocks that EC2 would reject.
func (s SubnetSpec) check() error {
	if b := s.IPv4; b.IsValid() && (!b.Addr().Is4() || b != b.Masked() || b.Bits() < 16 || b.Bits() > 28) {
		return fmt.Errorf("IPv4 block %s: want one of /16 to /28", b)
	}
	if b := s.IPv6; b.IsValid() && (!b.Addr().Is6() || b != b.Masked() || b.Bits() < 44 || b.Bits() > 64 || b.Bits()%4 != 0) {
		return fmt.Errorf("IPv6 block %s: want one of /44 to /64 in steps of 4", b)
	}
	return nil
}

// newSubnet creates the bridge and starts the router's services on it.
func (v *VPC) newSubnet(spec SubnetSpec) (*Subnet, error) {
	if len(spec.Name) > 12 || !validName.MatchString(spec.Name) {
		return nil, fmt.Errorf("name %q: want at most 12 letters, digits and dashes", spec.Name)
	}
	if !spec.IPv4.IsValid() && !spec.IPv6.IsValid() {
		return nil, fmt.Errorf("it has neither an IPv4 nor an IPv6 block")
	}
	if err := spec.check(); err != nil {
		return nil, err
	}
	sn := &Subnet{
		vpc: v, spec: spec, id: resourceID("subnet"), router: defaultRouter, mac: randomMAC(),
		pool:   pool{v4: spec.IPv4, v6: spec.IPv6, used: make(map[netip.Addr]string), usedP: make(map[netip.Prefix]string)},
		repace: make(chan struct{}, 1), delays: v.chance("solicited advertisements", len(v.subnets)),
	}
	link := v.thread.link
	snooping := false
	attrs := netlink.NewLinkAttrs()
	attrs.Name = "br-" + spec.Name
	attrs.HardwareAddr = sn.mac
	if err := link.LinkAdd(&netlink.Bridge{LinkAttrs: attrs, MulticastSnooping: &snooping}); err != nil {
		return nil, fmt.Errorf("making bridge %s: %w", attrs.Name, err)
	}
	var err error
	if sn.bridge, err = link.LinkByName(attrs.Name); err != nil {
		return nil, fmt.Errorf("finding bridge %s: %w", attrs.Name, err)
	}
	// An explicit MAC address stays; otherwise a new port would change it.
	if err := link.LinkSetMTU(sn.bridge, v.Behaviour().mtu()); err != nil {
		return nil, fmt.Errorf("setting the MTU of bridge %s: %w", attrs.Name, err)
	}
	if err := link.LinkSetUp(sn.bridge); err != nil {
		return nil, fmt.Errorf("bringing up bridge %s: %w", attrs.Name, err)
	}
	var addrs []netip.Prefix
	if spec.IPv4.IsValid() {
		addrs = append(addrs, netip.PrefixFrom(sn.Gateway4(), spec.IPv4.Bits()))
	} else {
		// The source of DHCPv4 answers. The gateway in them is another address.
		addrs = append(addrs, netip.MustParsePrefix("169.254.169.253/32"))
	}
	if spec.IPv6.IsValid() {
		addrs = append(addrs,
			netip.PrefixFrom(addOffset(spec.IPv6.Addr(), 1), spec.IPv6.Bits()),
			netip.PrefixFrom(sn.router, 64),
			// Neighbour discovery answers for addresses of the interface only.
			netip.PrefixFrom(MetadataIPv6, 128))
	}
	for _, a := range addrs {
		if err := v.addAddr(sn.bridge, a); err != nil {
			return nil, err
		}
	}
	if err := sn.startServices(); err != nil {
		return nil, err
	}
	return sn, nil
}

func (sn *Subnet) close() {
	if sn.dhcp4 != nil {
		_ = sn.dhcp4.Close() // its packets are no longer needed
	}
	if sn.dhcp6 != nil {
		_ = sn.dhcp6.conn.Close() // as above
	}
}

// Name is the subnet's name.
func (sn *Subnet) Name() string { return sn.spec.Name }

// ID is the subnet's ID.
func (sn *Subnet) ID() string { return sn.id }

// IPv4 is the IPv4 block, invalid if there is none.
func (sn *Subnet) IPv4() netip.Prefix { return sn.spec.IPv4 }

// IPv6 is the IPv6 block, invalid if there is none.
func (sn *Subnet) IPv6() netip.Prefix { return sn.spec.IPv6 }

// Gateway4 is the IPv4 gateway: the first address of the block.
func (sn *Subnet) Gateway4() netip.Addr {
	if !sn.spec.IPv4.IsValid() {
		return netip.Addr{}
	}
	return addOffset(sn.spec.IPv4.Addr(), 1)
}

// Gateway6 is the link-local address from which the router advertises itself.
func (sn *Subnet) Gateway6() netip.Addr {
	if !sn.spec.IPv6.IsValid() {
		return netip.Addr{}
	}
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return sn.router
}

// Near6 is a global address of the router on the subnet.
func (sn *Subnet) Near6() netip.Addr {
	if !sn.spec.IPv6.IsValid() {
		return netip.Addr{}
	}
	return addOffset(sn.spec.IPv6.Addr(), 1)
}

// Mute stops services of the subnet, which then answer no requests; without arguments,
// all services.
func (sn *Subnet) Mute(services ...Service) {
	if len(services) == 0 {
		services = []Service{DHCPv4, DHCPv6, RA}
	}
	sn.mu.Lock()
	defer sn.mu.Unlock()
	for _, s := range services {
		if !slices.Contains(sn.muted, s) {
			sn.muted = append(sn.muted, s)
		}
	}
}

// Unmute undoes [Subnet.Mute]; without arguments, for all services.
func (sn *Subnet) Unmute(services ...Service) {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	sn.muted = slices.DeleteFunc(sn.muted, func(s Service) bool {
		return len(services) == 0 || slices.Contains(services, s)
	})
}

// Muted returns the muted services.
func (sn *Subnet) Muted() []Service {
	sn.mu.Lock()
	defer sn.mu.Unlock()
	return slices.Clone(sn.muted)
}

func (sn *Subnet) isMuted(s Service) bool {
	return slices.Contains(sn.Muted(), s)
}

// SetRouter changes the link-local address of the router, as can happen on EC2. The old
// address stops answering, and the new one is advertised at once.
func (sn *Subnet) SetRouter(addr netip.Addr) error {
	if !addr.IsLinkLocalUnicast() || !addr.Is6() {
		return fmt.Errorf("router address %s is not an IPv6 link-local one", addr)
	}
	if err := sn.vpc.addAddr(sn.bridge, netip.PrefixFrom(addr, 64)); err != nil {
		return err
	}
	sn.mu.Lock()
	old := sn.router
	sn.router = addr
	sn.mu.Unlock()
	if old != addr {
		err := sn.vpc.thread.link.AddrDel(sn.bridge, &netlink.Addr{IPNet: ipNet(netip.PrefixFrom(old, 64))})
		if err != nil {
			return fmt.Errorf("removing %s from %s: %w", old, sn.bridge.Attrs().Name, err)
		}
	}
	return sn.Advertise()
}

// eni returns the ENI with a MAC address in this subnet.
func (sn *Subnet) eni(mac net.HardwareAddr) *ENI {
	sn.vpc.mu.Lock()
	defer sn.vpc.mu.Unlock()
	e := sn.vpc.enis[mac.String()]
	if e == nil || e.subnet != sn {
		return nil
	}
	return e
}

// neighbour sets or removes the MAC address for an address. There is no ARP or ND for
// it: it is known, as in a VPC.
func (sn *Subnet) neighbour(addr netip.Addr, mac net.HardwareAddr, add bool) error {
	n := &netlink.Neigh{
		LinkIndex: sn.bridge.Attrs().Index, State: netlink.NUD_PERMANENT, IP: addr.AsSlice(), HardwareAddr: mac,
		Family: netlink.FAMILY_V4,
	}
	if addr.Is6() {
		n.Family = netlink.FAMILY_V6
	}
	if add {
		return sn.vpc.thread.link.NeighSet(n)
	}
	// It may have been removed with an address that was assigned and unassigned
	// meanwhile.
	if err := sn.vpc.thread.link.NeighDel(n); !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

// route adds or removes a route for a prefix through a next hop on the subnet.
func (sn *Subnet) route(p netip.Prefix, via netip.Addr, add bool) error {
	r := &netlink.Route{
		LinkIndex: sn.bridge.Attrs().Index, Dst: ipNet(p), Scope: netlink.SCOPE_LINK, Protocol: unix.RTPROT_STATIC,
	}
	if via.IsValid() {
		r.Gw, r.Scope = via.AsSlice(), netlink.SCOPE_UNIVERSE
	}
	if add {
		return sn.vpc.thread.link.RouteReplace(r)
	}
	return sn.vpc.thread.link.RouteDel(r)
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
