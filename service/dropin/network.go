package dropin

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
)

// Network is the .network drop-in of one link, see systemd.network(5). The zero value of a field means
// that the key is absent. Methods other than Render accept a nil Network, which sets nothing.
type Network struct {
	Match        NetworkMatch
	Link         LinkSection
	Network      NetworkSection
	DHCPv4       DHCPv4
	DHCPv6       DHCPv6
	IPv6AcceptRA IPv6AcceptRA
	Addresses    []Address
	// Routes does not include the routes in [Address].Subnet. Its first route must not be one to the
	// subnet of the last address, as that would be parsed as the latter's Subnet.
	Routes []Route
	Rules  []RoutingPolicyRule

	// otherwise reports whether the value was parsed from a text that Render would not return.
	otherwise bool
}

// NetworkMatch is the [Match] section. It restricts the unit to one link, instead of the drivers.
type NetworkMatch struct {
	// PermanentMACAddress is the address of the device, and MACAddress the current one of the link.
	// One of them is empty.
	PermanentMACAddress, MACAddress, Name string
}

// LinkSection is the [Link] section.
type LinkSection struct {
	Group            int
	ActivationPolicy ActivationPolicy
	MTUBytes         int
}

// ActivationPolicy is a value of ActivationPolicy=.
type ActivationPolicy string

// Manual tells networkd to set a link neither up nor down.
const Manual ActivationPolicy = "manual"

// NetworkSection is the [Network] section.
type NetworkSection struct {
	// KeepMaster tells networkd to leave a port with its bridge, bond or VRF.
	KeepMaster          Switch
	LinkLocalAddressing LinkLocalAddressing
	// Domains is a list of search domains, separated by spaces.
	Domains           string
	KeepConfiguration KeepConfiguration
	DNSDefaultRoute   Switch
	DHCP              DHCP
	IPv6AcceptRA      Switch
	DNS               []netip.Addr
}

// LinkLocalAddressing is a value of LinkLocalAddressing=.
type LinkLocalAddressing string

// Values of LinkLocalAddressing.
const (
	LinkLocalNo   LinkLocalAddressing = "no"
	LinkLocalIPv6 LinkLocalAddressing = "ipv6"
)

// KeepConfiguration is a value of KeepConfiguration=.
type KeepConfiguration string

// KeepYes tells networkd to keep addresses and routes that it has not configured itself.
const KeepYes KeepConfiguration = "yes"

// DHCP is a value of DHCP=.
type DHCP string

// DHCPIPv4 enables DHCPv4 only.
const DHCPIPv4 DHCP = "ipv4"

// DHCPv4 is the [DHCPv4] section.
type DHCPv4 struct {
	RouteMetric int
	UseGateway  Switch
	RoutesToDNS Switch
	RoutesToNTP Switch
	UseMTU      Switch
	UseDomains  Switch
	UseDNS      Switch
}

// DHCPv6 is the [DHCPv6] section.
type DHCPv6 struct{ UseDNS, UseAddress, WithoutRA Switch }

// IPv6AcceptRA is the [IPv6AcceptRA] section.
type IPv6AcceptRA struct {
	RouteMetric  int
	UseDNS       Switch
	UseGateway   Switch
	DHCPv6Client Switch
}

// Address is an [Address] section.
type Address struct {
	Address                   netip.Prefix
	AddPrefixRoute            Switch
	DuplicateAddressDetection DuplicateAddressDetection
	PreferredLifetime         Lifetime
	// Subnet is a route to the subnet of Address, in a [Route] section right after this one. It takes
	// the place of the route that AddPrefixRoute=no omits. The zero Route stands for none.
	Subnet Route
}

// DuplicateAddressDetection is a value of DuplicateAddressDetection=.
type DuplicateAddressDetection string

// DetectNone disables duplicate address detection, so the address can be used at once.
const DetectNone DuplicateAddressDetection = "none"

// Lifetime is a value of PreferredLifetime=.
type Lifetime string

// Deprecated makes the kernel prefer other addresses as the source of new connections.
const Deprecated Lifetime = "0"

// Route is a [Route] section.
type Route struct {
	Destination netip.Prefix
	// Gateway is the zero Gateway for a route without one.
	Gateway       Gateway
	GatewayOnLink Switch
	Scope         Scope
	Type          RouteType
	// Table is 0 for the main table.
	Table  int
	Metric int
}

// Gateway is a value of Gateway=: an address, or a way in which networkd learns it.
type Gateway struct {
	Address netip.Addr
	Learned LearnedGateway
}

// LearnedGateway is a way in which networkd learns a gateway.
type LearnedGateway string

// Values of LearnedGateway.
const (
	FromDHCPv4 LearnedGateway = "_dhcp4"
	FromRA     LearnedGateway = "_ipv6ra"
)

// Scope is a value of Scope=.
type Scope string

// ScopeLink is the scope of a route to hosts on the link.
const ScopeLink Scope = "link"

// RouteType is a value of Type=.
type RouteType string

// TypeLocal is the type of a route to addresses of this host.
const TypeLocal RouteType = "local"

// To returns the destination of the route. A route with a gateway only is a default route.
func (r *Route) To() netip.Prefix {
	switch {
	case r.Destination.IsValid() || r.Gateway == Gateway{}:
		return r.Destination
	case r.Gateway.Learned == FromDHCPv4 || r.Gateway.Address.Is4():
		return netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	}
	return netip.PrefixFrom(netip.IPv6Unspecified(), 0)
}

// RoutingPolicyRule is a [RoutingPolicyRule] section.
type RoutingPolicyRule struct {
	From         netip.Prefix
	Family       Family
	FirewallMark Mark
	Table        int
	Priority     int
	// SuppressPrefixLength is the zero Length, and SuppressInterfaceGroup 0, if absent.
	SuppressPrefixLength   Length
	SuppressInterfaceGroup int
}

// Family is a value of Family=. If absent, a rule is for the family of its addresses, or for IPv4 if
// it has none.
type Family string

// Values of Family.
const (
	IPv4 Family = "ipv4"
	IPv6 Family = "ipv6"
	Both Family = "both"
)

// Length is the length of a prefix, which may be 0. The zero Length means that the key is absent.
type Length struct {
	Bits int
	Set  bool
}

// LengthOf returns a Length that is present.
func LengthOf(bits int) Length { return Length{bits, true} }

// Render returns the text of the drop-in.
func (n *Network) Render() string {
	c := rendering(author+", see ec2netd(8). Changes here are lost: make a drop-in",
		fmt.Sprintf("in /etc/systemd/network/70-%s.network.d/ instead.", n.Match.Name))
	n.sections(c)
	for i := range n.Addresses {
		n.Addresses[i].section(c)
		if subnet := &n.Addresses[i].Subnet; *subnet != (Route{}) {
			subnet.section(c)
		}
	}
	for i := range n.Routes {
		n.Routes[i].section(c)
	}
	for i := range n.Rules {
		n.Rules[i].section(c)
	}
	return c.out.String()
}

// ParseNetwork reads a .network file or drop-in, whoever has written it. It returns nil for an empty
// text.
func ParseNetwork(text string) *Network {
	if text == "" {
		return nil
	}
	n := &Network{}
	c := &codec{}
	// last is the address in the section before, which a route may belong to.
	var last *Address
	each(text, func(settings []setting) {
		before := last
		last = nil
		switch settings[0].section {
		case "Address":
			var a Address
			if parsed(settings, a.section) && a.Address.IsValid() {
				n.Addresses = append(n.Addresses, a)
				last = &n.Addresses[len(n.Addresses)-1]
			}
		case "Route":
			var r Route
			switch ok := parsed(settings, r.section); {
			case !ok || r == Route{}:
			case before != nil && r.toSubnet(before):
				before.Subnet = r
			default:
				n.Routes = append(n.Routes, r)
			}
		case "RoutingPolicyRule":
			var r RoutingPolicyRule
			if parsed(settings, r.section) && r != (RoutingPolicyRule{}) {
				n.Rules = append(n.Rules, r)
			}
		default:
			c.in = append(c.in, settings...)
		}
	})
	n.sections(c)
	// The same route after some other section: Render would put it right after the address.
	if last := len(n.Addresses) - 1; last >= 0 && len(n.Routes) > 0 && n.Addresses[last].Subnet == (Route{}) && n.Routes[0].toSubnet(&n.Addresses[last]) {
		n.Addresses[last].Subnet, n.Routes = n.Routes[0], n.Routes[1:]
	}
	n.otherwise = n.Render() != text
	return n
}

// toSubnet reports whether the route leads to the subnet of an address.
func (r *Route) toSubnet(a *Address) bool {
	return !a.Address.IsSingleIP() && r.Destination == a.Address.Masked()
}

// parsed fills in a section from its settings. It reports false if some value is invalid: networkd
// then ignores the section, or it means something else than the rest says.
func parsed(settings []setting, section func(*codec)) bool {
	c := &codec{in: settings}
	section(c)
	return !c.invalid
}

// sections handles the sections that occur once. Some are written in several parts. Their order is
// fixed: a file whose text changes makes networkd configure the link anew.
func (n *Network) sections(c *codec) {
	n.Match.section(c)
	c.begin("Link")
	c.number("Group", &n.Link.Group)
	text(c, "ActivationPolicy", &n.Link.ActivationPolicy)
	network := &n.Network
	c.begin("Network")
	c.boolean("KeepMaster", &network.KeepMaster)
	if network.LinkLocalAddressing != LinkLocalNo {
		text(c, "LinkLocalAddressing", &network.LinkLocalAddressing)
	}
	c.begin("Link")
	c.number("MTUBytes", &n.Link.MTUBytes)
	c.begin("Network")
	text(c, "Domains", &network.Domains)
	text(c, "KeepConfiguration", &network.KeepConfiguration)
	c.boolean("DNSDefaultRoute", &network.DNSDefaultRoute)
	c.begin("Network")
	text(c, "DHCP", &network.DHCP)
	if network.LinkLocalAddressing == LinkLocalNo {
		text(c, "LinkLocalAddressing", &network.LinkLocalAddressing)
	}
	c.boolean("IPv6AcceptRA", &network.IPv6AcceptRA)

	c.begin("DHCPv4")
	c.number("RouteMetric", &n.DHCPv4.RouteMetric)
	c.boolean("UseGateway", &n.DHCPv4.UseGateway)
	c.boolean("RoutesToDNS", &n.DHCPv4.RoutesToDNS)
	c.boolean("RoutesToNTP", &n.DHCPv4.RoutesToNTP)
	c.boolean("UseMTU", &n.DHCPv4.UseMTU)
	c.boolean("UseDomains", &n.DHCPv4.UseDomains)
	c.boolean("UseDNS", &n.DHCPv4.UseDNS)
	c.begin("DHCPv6")
	c.boolean("UseDNS", &n.DHCPv6.UseDNS)
	c.begin("IPv6AcceptRA")
	c.boolean("UseDNS", &n.IPv6AcceptRA.UseDNS)
	c.begin("Network")
	list(c, "DNS", &network.DNS, netip.Addr.String, parseAddr)
	c.begin("IPv6AcceptRA")
	c.number("RouteMetric", &n.IPv6AcceptRA.RouteMetric)
	c.boolean("UseGateway", &n.IPv6AcceptRA.UseGateway)
	c.boolean("DHCPv6Client", &n.IPv6AcceptRA.DHCPv6Client)
	c.begin("DHCPv6")
	c.boolean("UseAddress", &n.DHCPv6.UseAddress)
	c.boolean("WithoutRA", &n.DHCPv6.WithoutRA)
}

func (a *Address) section(c *codec) {
	c.begin("Address")
	c.prefix("Address", &a.Address)
	c.boolean("AddPrefixRoute", &a.AddPrefixRoute)
	text(c, "DuplicateAddressDetection", &a.DuplicateAddressDetection)
	text(c, "PreferredLifetime", &a.PreferredLifetime)
}

func (r *Route) section(c *codec) {
	c.begin("Route")
	c.prefix("Destination", &r.Destination)
	field(c, "Gateway", &r.Gateway, Gateway.String, parseGateway)
	c.boolean("GatewayOnLink", &r.GatewayOnLink)
	text(c, "Scope", &r.Scope)
	text(c, "Type", &r.Type)
	field(c, "Table", &r.Table, strconv.Itoa, parseTable)
	c.number("Metric", &r.Metric)
}

func (r *RoutingPolicyRule) section(c *codec) {
	c.begin("RoutingPolicyRule")
	field(c, "From", &r.From, netip.Prefix.String, parseSource)
	text(c, "Family", &r.Family)
	field(c, "FirewallMark", &r.FirewallMark, Mark.String, ParseMark)
	field(c, "Table", &r.Table, strconv.Itoa, parseTable)
	c.number("Priority", &r.Priority)
	field(c, "SuppressPrefixLength", &r.SuppressPrefixLength, Length.String, parseLength)
	field(c, "SuppressInterfaceGroup", &r.SuppressInterfaceGroup, strconv.Itoa, parseGroup)
}

// String returns the gateway in the form of Gateway=.
func (g Gateway) String() string {
	if g.Learned != "" {
		return string(g.Learned)
	}
	return g.Address.String()
}

func parseGateway(text string) (Gateway, error) {
	if learned := LearnedGateway(text); learned == FromDHCPv4 || learned == FromRA {
		return Gateway{Learned: learned}, nil
	}
	address, err := parseAddr(text)
	return Gateway{Address: address}, err
}

// mainTable is the number of the table main.
const mainTable = 254

func parseTable(text string) (int, error) {
	if text == "main" {
		return mainTable, nil
	}
	return strconv.Atoi(text)
}

// parseSource accepts a single address for a prefix, as networkd does.
func parseSource(text string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(text); err == nil {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(text)
	return prefix.Masked(), err
}

// String returns the length in the form of SuppressPrefixLength=.
func (l Length) String() string { return strconv.Itoa(l.Bits) }

func parseLength(text string) (Length, error) {
	bits, err := strconv.Atoi(text)
	return Length{bits, true}, err
}

// parseGroup rejects group 0, which contains all links without another group.
func parseGroup(text string) (int, error) {
	group, err := strconv.Atoi(text)
	if err == nil && group <= 0 {
		err = fmt.Errorf("%d is no group of links", group)
	}
	return group, err
}

// Equal reports whether two drop-ins have the same text. A drop-in that was parsed from a text that
// Render would not return, such as that of another version, equals only itself.
func (n *Network) Equal(o *Network) bool {
	if n == o || n == nil || o == nil {
		return n == o
	}
	return !n.otherwise && !o.otherwise && n.Match == o.Match && n.Link == o.Link && n.Network.equal(&o.Network) &&
		n.DHCPv4 == o.DHCPv4 && n.DHCPv6 == o.DHCPv6 && n.IPv6AcceptRA == o.IPv6AcceptRA &&
		slices.Equal(n.Addresses, o.Addresses) && slices.Equal(n.Routes, o.Routes) && slices.Equal(n.Rules, o.Rules)
}

func (s *NetworkSection) equal(o *NetworkSection) bool {
	return s.KeepMaster == o.KeepMaster && s.LinkLocalAddressing == o.LinkLocalAddressing && s.Domains == o.Domains &&
		s.KeepConfiguration == o.KeepConfiguration && s.DNSDefaultRoute == o.DNSDefaultRoute && s.DHCP == o.DHCP &&
		s.IPv6AcceptRA == o.IPv6AcceptRA && slices.Equal(s.DNS, o.DNS)
}

// MACAddress returns the MAC address of the link, or "".
func (n *Network) MACAddress() string {
	if n == nil {
		return ""
	}
	return n.Match.MAC()
}

// RouteMetric returns the metric of routes by DHCPv4 or, if absent, by router advertisements.
func (n *Network) RouteMetric() int {
	if n == nil {
		return 0
	}
	return cmp.Or(n.DHCPv4.RouteMetric, n.IPv6AcceptRA.RouteMetric)
}

// Has reports whether there is an [Address] section with this address and prefix length.
func (n *Network) Has(address netip.Prefix) bool {
	return n != nil && slices.ContainsFunc(n.Addresses, func(a Address) bool { return a.Address == address })
}

// HasSingle reports whether there is an [Address] section with this address and the full length.
func (n *Network) HasSingle(address netip.Addr) bool {
	return n.Has(netip.PrefixFrom(address, address.BitLen()))
}

// Singles returns the addresses with the full prefix length.
func (n *Network) Singles() []netip.Addr {
	if n == nil {
		return nil
	}
	var found []netip.Addr
	for i := range n.Addresses {
		if a := n.Addresses[i].Address; a.IsSingleIP() {
			found = append(found, a.Addr())
		}
	}
	return found
}

// Routers returns the gateways of Routes that are addresses, each once, in the order of the routes.
func (n *Network) Routers() []netip.Addr {
	if n == nil {
		return nil
	}
	var found []netip.Addr
	for i := range n.Routes {
		if router := n.Routes[i].Gateway.Address; router.IsValid() && !slices.Contains(found, router) {
			found = append(found, router)
		}
	}
	return found
}

// Domains returns the search domains, separated by spaces.
func (n *Network) Domains() string {
	if n == nil {
		return ""
	}
	return n.Network.Domains
}

// KeepsAll reports whether networkd keeps what others have configured on the link.
func (n *Network) KeepsAll() bool { return n != nil && n.Network.KeepConfiguration == KeepYes }

// KeepsDown reports whether networkd leaves the link down if it is down.
func (n *Network) KeepsDown() bool { return n != nil && n.Link.ActivationPolicy == Manual }

// WithoutIPv6 reports whether networkd configures no IPv6, not even a link-local address.
func (n *Network) WithoutIPv6() bool {
	return n != nil && n.Network.LinkLocalAddressing == LinkLocalNo
}

// WithoutDHCPv6 reports whether networkd takes no address from DHCPv6.
func (n *Network) WithoutDHCPv6() bool {
	return n != nil && (n.IPv6AcceptRA.DHCPv6Client == No || n.DHCPv6.UseAddress == No)
}
