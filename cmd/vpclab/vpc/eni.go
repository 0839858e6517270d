package vpc

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
)

// ENISpec describes an ENI. The zero value is an ENI in the first subnet with one address of
// each family of the subnet.
type ENISpec struct {
	ID   string           // default: a random one
	MAC  net.HardwareAddr // default: a random one
	Name string           // of the link in the instance; default: ens5, ens6, …
	// Subnet by name; default: the subnet of the primary ENI, or the VPC's first.
	Subnet string
	// DeviceIndex on its card; 0 means the next free one. The primary has 0.
	DeviceIndex int
	// NetworkCard; nil means that the instance type has only one card, so that the metadata has
	// no such key. On an instance with several cards the default is 0.
	NetworkCard *int

	// Addresses, the primary one first.
	IPv4, IPv6 []netip.Addr
	// IPv4Count and IPv6Count are the total numbers of addresses, including given ones; 0 means
	// one if the subnet has the family, negative means none.
	IPv4Count, IPv6Count int
	// Delegated prefixes: /28 and /80.
	PrefixesV4, PrefixesV6 []netip.Prefix
	// PrefixV4Count and PrefixV6Count are the total numbers of prefixes.
	PrefixV4Count, PrefixV6Count int

	// Propagation of the metadata at each attachment; nil: that of the VPC's behaviour, while
	// the instance runs. The metadata appear before the link, unless the propagation sets a
	// time for the listing, which counts from the link on.
	Propagation *imds.Propagation
}

// ENI is an elastic network interface of an instance. Its metadata can be published and its
// link plugged in separately; [Instance.Attach] does both.
type ENI struct {
	vpc    *VPC
	inst   *Instance
	subnet *Subnet
	id     string
	mac    net.HardwareAddr
	port   string // name of the VPC's end

	// work serializes changes, so that the last one takes effect.
	work sync.Mutex

	// Guarded by vpc.mu.
	name        string
	index       int
	card        *int
	ipv4, ipv6  []netip.Addr
	prefixes4   []netip.Prefix
	prefixes6   []netip.Prefix
	published   bool
	plugged     bool
	deleted     bool
	peers       []netip.Addr // neighbours that the router has been told
	routes      []netip.Prefix
	propagation *imds.Propagation
	ordinal     int // among all ENIs that the instance ever had
	attachments int // so far
	events      []DHCPEvent
}

// maxEvents bounds the DHCP log of an ENI.
const maxEvents = 10_000

// Create creates an ENI for the instance, with its addresses and its source check, without
// attaching it: see [ENI.Publish] and [ENI.Plug].
func (inst *Instance) Create(ctx context.Context, spec ENISpec) (*ENI, error) {
	e, err := inst.create(spec)
	if err != nil {
		return nil, fmt.Errorf("making an ENI of %s: %w", inst.id, err)
	}
	rules := filterRules(e.filterName(), e.port, e.mac.String())
	if err := inst.vpc.nft(ctx, rules); err != nil {
		return nil, fmt.Errorf("making %s: %w", e.id, err)
	}
	if err := e.apply(ctx, imds.Propagation{}); err != nil {
		return nil, fmt.Errorf("making %s: %w", e.id, err)
	}
	return e, nil
}

// create reserves the resources of the ENI.
func (inst *Instance) create(spec ENISpec) (_ *ENI, err error) {
	v := inst.vpc
	v.mu.Lock()
	defer v.mu.Unlock()
	e := &ENI{
		vpc: v, inst: inst, id: spec.ID, mac: spec.MAC, name: spec.Name, index: spec.DeviceIndex, card: spec.NetworkCard,
		propagation: spec.Propagation, ordinal: inst.created,
	}
	inst.created++
	switch {
	case spec.Subnet != "":
		if e.subnet = v.Subnet(spec.Subnet); e.subnet == nil {
			return nil, fmt.Errorf("there is no subnet %q", spec.Subnet)
		}
	case len(inst.enis) > 0:
		e.subnet = inst.enis[0].subnet
	default:
		e.subnet = v.subnets[0]
	}
	if e.id == "" {
		e.id = resourceID("eni")
	}
	if !strings.HasPrefix(e.id, "eni-") || !validName.MatchString(e.id) {
		return nil, fmt.Errorf("ENI ID %q does not look like eni-0123456789abcdef0", e.id)
	}
	if e.mac == nil {
		e.mac = randomMAC()
	}
	if v.enis[e.mac.String()] != nil {
		return nil, fmt.Errorf("MAC %s is in use by %s", e.mac, v.enis[e.mac.String()].id)
	}
	if e.card == nil && inst.opts.NetworkCards > 1 {
		e.card = new(int)
	}
	if e.index == 0 && len(inst.enis) > 0 {
		e.index = inst.freeIndex(e.card)
	}
	if e.name == "" {
		e.name = inst.freeName()
	}
	if inst.opts.Machine && slot(e.name) == 0 {
		return nil, fmt.Errorf("a machine has the links ens%d to ens%d, not %s", firstSlot, lastSlot, e.name)
	}
	e.port = "p" + randomHex(6)
	defer func() {
		if err != nil {
			e.release()
		}
	}()
	if err := e.reserve(spec); err != nil {
		return nil, err
	}
	v.enis[e.mac.String()] = e
	inst.enis = append(inst.enis, e)
	return e, nil
}

// reserve takes addresses and prefixes from the subnet's pool.
func (e *ENI) reserve(spec ENISpec) error {
	p := &e.subnet.pool
	if err := e.takeAddrs(&e.ipv4, p.v4, spec.IPv4, total(spec.IPv4Count, p.v4, len(spec.IPv4))); err != nil {
		return err
	}
	if err := e.takeAddrs(&e.ipv6, p.v6, spec.IPv6, total(spec.IPv6Count, p.v6, len(spec.IPv6))); err != nil {
		return err
	}
	if err := e.takePrefixes(&e.prefixes4, p.v4, spec.PrefixesV4, spec.PrefixV4Count); err != nil {
		return err
	}
	return e.takePrefixes(&e.prefixes6, p.v6, spec.PrefixesV6, spec.PrefixV6Count)
}

func total(count int, subnet netip.Prefix, given int) int {
	if count == 0 && subnet.IsValid() {
		return max(1, given)
	}
	return max(count, given)
}

func (e *ENI) takeAddrs(list *[]netip.Addr, subnet netip.Prefix, given []netip.Addr, count int) error {
	for n := range max(count, len(given)) {
		var want netip.Addr
		if n < len(given) {
			want = given[n]
		}
		addr, err := e.subnet.pool.take(e.id, subnet, want)
		if err != nil {
			return fmt.Errorf("an address in subnet %s: %w", e.subnet.spec.Name, err)
		}
		*list = append(*list, addr)
	}
	return nil
}

func (e *ENI) takePrefixes(list *[]netip.Prefix, subnet netip.Prefix, given []netip.Prefix, count int) error {
	for n := range max(count, len(given)) {
		var want netip.Prefix
		if n < len(given) {
			want = given[n]
		}
		p, err := e.subnet.pool.takePrefix(e.id, subnet, want)
		if err != nil {
			return fmt.Errorf("a prefix in subnet %s: %w", e.subnet.spec.Name, err)
		}
		*list = append(*list, p)
	}
	return nil
}

// release returns all addresses.
func (e *ENI) release() {
	for _, a := range slices.Concat(e.ipv4, e.ipv6) {
		delete(e.subnet.pool.used, a)
	}
	for _, p := range slices.Concat(e.prefixes4, e.prefixes6) {
		delete(e.subnet.pool.usedP, p)
	}
	e.ipv4, e.ipv6, e.prefixes4, e.prefixes6 = nil, nil, nil, nil
}

// ID is the ENI's ID.
func (e *ENI) ID() string { return e.id }

// MAC is the ENI's address.
func (e *ENI) MAC() net.HardwareAddr { return slices.Clone(e.mac) }

// Subnet returns the subnet of the ENI.
func (e *ENI) Subnet() *Subnet { return e.subnet }

// Name returns the name that the link has, or will have, when it is plugged in. It does not
// follow a later renaming by the instance.
func (e *ENI) Name() string {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return e.name
}

// DeviceIndex is the number on the card.
func (e *ENI) DeviceIndex() int {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return e.index
}

// NetworkCard is the number of the card, or nil.
func (e *ENI) NetworkCard() *int { return e.card }

// IPv4 returns the addresses, the primary one first.
func (e *ENI) IPv4() []netip.Addr {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return slices.Clone(e.ipv4)
}

// IPv6 returns the addresses, in the order of the metadata and of DHCPv6.
func (e *ENI) IPv6() []netip.Addr {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return slices.Clone(e.ipv6)
}

// Prefixes returns the delegated prefixes, IPv4 first.
func (e *ENI) Prefixes() []netip.Prefix {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return slices.Concat(e.prefixes4, e.prefixes6)
}

// Published reports whether the metadata lists the ENI, and Plugged whether the link exists.
func (e *ENI) Published() bool {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return e.published
}

// Plugged reports whether the link is plugged in.
func (e *ENI) Plugged() bool {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return e.plugged
}

// DHCPEvents returns the DHCP messages of the ENI, oldest first.
func (e *ENI) DHCPEvents() []DHCPEvent {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	return slices.Clone(e.events)
}

func (e *ENI) note(event DHCPEvent) {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	if len(e.events) >= maxEvents {
		e.events = slices.Delete(e.events, 0, maxEvents/10)
	}
	e.events = append(e.events, event)
}

// linkLocal4 returns the address that DHCPv4 leases in a subnet without IPv4.
func (e *ENI) linkLocal4() netip.Addr {
	// 169.254.1.0 … 169.254.168.255, below the link-local services.
	return netip.AddrFrom4([4]byte{169, 254, 1 + e.mac[4]%168, e.mac[5]})
}

// sources returns the permitted sources of the ENI; vpc.mu is held.
func (e *ENI) sources() []netip.Prefix {
	var out []netip.Prefix
	for _, a := range slices.Concat(e.ipv4, e.ipv6) {
		out = append(out, netip.PrefixFrom(a, a.BitLen()))
	}
	if !e.subnet.spec.IPv4.IsValid() {
		out = append(out, netip.PrefixFrom(e.linkLocal4(), 32))
	}
	return slices.Concat(out, e.prefixes4, e.prefixes6)
}

// nextHop returns an address, used nowhere else, for which the router knows the ENI's MAC
// address: it routes delegated IPv6 prefixes through it.
func (e *ENI) nextHop() netip.Addr {
	b := [16]byte{0xfe, 0x80, 8: 0x0e, 9: 0xc2}
	copy(b[10:], e.mac)
	return netip.AddrFrom16(b)
}

// metadata returns the metadata for the instance; vpc.mu is held.
func (e *ENI) metadata() imds.Interface {
	sn := e.subnet.spec
	i := imds.Interface{
		MAC: e.mac.String(), ID: e.id, DeviceNumber: e.index, NetworkCard: e.card,
		IPv4: slices.Clone(e.ipv4), IPv6: slices.Clone(e.ipv6),
		IPv4Prefixes: slices.Clone(e.prefixes4), IPv6Prefixes: slices.Clone(e.prefixes6),
		SubnetID: e.subnet.id, SubnetIPv4: sn.IPv4,
		VPCID: e.vpc.id, VPCIPv4: e.vpc.opts.IPv4, VPCIPv6: e.vpc.opts.IPv6,
		SecurityGroups: []string{"default"}, SecurityGroupIDs: []string{"sg-0" + strings.TrimPrefix(e.vpc.id, "vpc-0")},
		OwnerID: accountID,
	}
	if sn.IPv6.IsValid() {
		i.SubnetIPv6 = []netip.Prefix{sn.IPv6}
	}
	if len(e.ipv4) > 0 {
		i.LocalHostname = hostname4(e.ipv4[0])
	}
	return i
}

// hostname4 returns the name that EC2 derives from an address.
func hostname4(a netip.Addr) string {
	return "ip-" + strings.ReplaceAll(a.String(), ".", "-") + ".ec2.internal"
}

// apply updates the source check, the router and, if published, the metadata to match the ENI's
// addresses. New addresses work before they are announced.
func (e *ENI) apply(ctx context.Context, p imds.Propagation) error {
	v := e.vpc
	v.mu.Lock()
	sources := e.sources()
	before, routesBefore := e.peers, e.routes
	e.peers, e.routes = nil, nil
	if !e.deleted {
		e.peers = e.neighbours()
		e.routes = slices.Clone(e.prefixes6)
		if !e.subnet.spec.IPv4.IsValid() {
			e.routes = append(e.routes, netip.PrefixFrom(e.linkLocal4(), 32))
		}
	}
	peers, routes := e.peers, e.routes
	published, meta, deleted := e.published, e.metadata(), e.deleted
	v.mu.Unlock()

	if !deleted {
		if err := v.nft(ctx, filterSources(e.filterName(), sources)); err != nil {
			return err
		}
	}
	for _, a := range peers {
		if !slices.Contains(before, a) {
			if err := e.subnet.neighbour(a, e.mac, true); err != nil {
				return fmt.Errorf("telling the router of %s: %w", a, err)
			}
		}
	}
	via := func(p netip.Prefix) netip.Addr {
		if p.Addr().Is4() {
			return netip.Addr{} // on-link
		}
		return e.nextHop()
	}
	for _, r := range routes {
		if !slices.Contains(routesBefore, r) {
			if err := e.subnet.route(r, via(r), true); err != nil {
				return fmt.Errorf("routing %s: %w", r, err)
			}
		}
	}
	if published {
		e.inst.meta.PutInterface(meta, p)
		e.inst.publish()
	}
	for _, r := range routesBefore {
		if !slices.Contains(routes, r) {
			if err := e.subnet.route(r, via(r), false); err != nil {
				return fmt.Errorf("removing the route of %s: %w", r, err)
			}
		}
	}
	for _, a := range before {
		if !slices.Contains(peers, a) {
			if err := e.subnet.neighbour(a, e.mac, false); err != nil {
				return fmt.Errorf("making the router forget %s: %w", a, err)
			}
		}
	}
	return nil
}

// neighbours returns the addresses whose MAC address the router knows; vpc.mu is held.
func (e *ENI) neighbours() []netip.Addr {
	out := slices.Concat(e.ipv4, e.ipv6)
	for _, p := range e.prefixes4 {
		for a := p.Addr(); p.Contains(a); a = a.Next() {
			out = append(out, a)
		}
	}
	if e.subnet.spec.IPv6.IsValid() {
		out = append(out, e.nextHop())
	}
	if !e.subnet.spec.IPv4.IsValid() {
		out = append(out, e.linkLocal4())
	}
	return out
}

// Publish adds the ENI to the metadata.
func (e *ENI) Publish(p imds.Propagation) {
	e.work.Lock()
	defer e.work.Unlock()
	e.vpc.mu.Lock()
	e.published = true
	meta := e.metadata()
	e.vpc.mu.Unlock()
	e.inst.publish()
	e.inst.meta.PutInterface(meta, p)
}

// Withdraw removes the ENI from the metadata, after its lingering time.
func (e *ENI) Withdraw(linger time.Duration) {
	e.work.Lock()
	defer e.work.Unlock()
	e.vpc.mu.Lock()
	e.published = false
	e.vpc.mu.Unlock()
	e.inst.meta.RemoveInterface(e.mac.String(), linger)
}

// Plug adds the ENI's link to the instance; if that is not running, at its next boot.
func (e *ENI) Plug(ctx context.Context) error {
	e.vpc.mu.Lock()
	e.plugged = true
	e.vpc.mu.Unlock()
	r := e.inst.current()
	if r == nil {
		return nil
	}
	if err := e.link(r); err != nil || r.machine == nil {
		return err
	}
	if err := r.machine.plug(ctx, e); err != nil {
		return errors.Join(fmt.Errorf("plugging %s in as %s: %w", e.id, e.Name(), err), e.removeLink())
	}
	return nil
}

// instanceMTU is the MTU of ENA until somebody changes it (facts: ena).
const instanceMTU = 1500

// pair creates a veth pair: one end in the VPC, the other directly in the container, with its
// final name and MAC address.
func (e *ENI) pair(t *thread) error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.port
	attrs.MTU = e.vpc.Behaviour().mtu()
	veth := &netlink.Veth{
		LinkAttrs: attrs, PeerName: e.Name(), PeerHardwareAddr: e.mac, PeerNamespace: netlink.NsFd(int(t.ns)),
		PeerMTU: instanceMTU,
	}
	return e.vpc.thread.link.LinkAdd(veth)
}

// link creates the link of an ENI on the subnet's bridge: the link of a container is then in
// it, and that of a machine can be plugged in.
func (e *ENI) link(r *running) error {
	link := e.vpc.thread.link
	var err error
	if r.thread != nil {
		err = e.pair(r.thread)
	} else {
		err = e.tap()
	}
	if err != nil {
		return fmt.Errorf("plugging %s in as %s: %w", e.id, e.Name(), err)
	}
	steps := []struct {
		what string
		do   func(netlink.Link) error
	}{
		{"joining the bridge", func(l netlink.Link) error { return link.LinkSetMaster(l, e.subnet.bridge) }},
		// The bridge answers ARP for the addresses that the router knows behind this port
		// (proxy_arp alone would keep multicast from the port, neigh_suppress would not answer
		// requests from other such ports), and it does not learn from source addresses.
		{"switching the ARP proxy on", func(l netlink.Link) error { return link.LinkSetBrProxyArpWiFi(l, true) }},
		{"switching learning off", func(l netlink.Link) error { return link.LinkSetLearning(l, false) }},
		{"setting the forwarding entry", func(l netlink.Link) error {
			return link.NeighSet(&netlink.Neigh{
				LinkIndex: l.Attrs().Index, Family: unix.AF_BRIDGE, State: netlink.NUD_NOARP,
				Flags: netlink.NTF_MASTER, HardwareAddr: e.mac,
			})
		}},
		{"bringing it up", link.LinkSetUp},
	}
	l, err := link.LinkByName(e.port)
	for _, step := range steps {
		if err == nil {
			if err = step.do(l); err != nil {
				err = fmt.Errorf("%s: %w", step.what, err)
			}
		}
	}
	if err != nil {
		return errors.Join(fmt.Errorf("plugging %s in as %s: %w", e.id, e.Name(), err), e.removeLink())
	}
	return nil
}

// Unplug removes the link from the instance. A machine has to release it first.
func (e *ENI) Unplug(ctx context.Context) error {
	e.vpc.mu.Lock()
	was := e.plugged
	e.plugged = false
	e.vpc.mu.Unlock()
	if r := e.inst.current(); was && r != nil && r.machine != nil {
		if err := r.machine.unplug(ctx, e); err != nil {
			return fmt.Errorf("unplugging %s: %w", e.id, err)
		}
	}
	return e.removeLink()
}

// removeLink removes the VPC's end of the link, and thereby that of a container.
func (e *ENI) removeLink() error {
	link := e.vpc.thread.link
	l, err := link.LinkByName(e.port)
	if linkGone(err) {
		return nil
	}
	if err == nil {
		err = link.LinkDel(l)
	}
	if err != nil {
		return fmt.Errorf("unplugging %s: %w", e.id, err)
	}
	return nil
}

// linkGone reports whether an error says that a link does not exist (any more).
func linkGone(err error) bool {
	return errors.As(err, &netlink.LinkNotFoundError{}) || errors.Is(err, unix.ENODEV)
}

// Attach creates an ENI and attaches it: the metadata lists it, and its link exists.
func (inst *Instance) Attach(ctx context.Context, spec ENISpec) (*ENI, error) {
	e, err := inst.Create(ctx, spec)
	if err != nil {
		return nil, err
	}
	return e, e.attach(ctx)
}

// attach publishes the ENI and plugs it in, in the order of its propagation.
func (e *ENI) attach(ctx context.Context) error {
	p := e.nextPropagation()
	if p.Listed == 0 {
		e.Publish(p)
		return e.Plug(ctx)
	}
	if err := e.Plug(ctx); err != nil {
		return err
	}
	e.Publish(p)
	return nil
}

// nextPropagation decides on the next attachment.
func (e *ENI) nextPropagation() imds.Propagation {
	v := e.vpc
	v.mu.Lock()
	defer v.mu.Unlock()
	e.attachments++
	profile := v.Behaviour().Propagation
	switch { // an instance that is off has complete metadata when it boots
	case e.propagation != nil:
		return *e.propagation
	case !e.inst.Running() || profile == Propagation{}:
		return imds.Propagation{}
	}
	p := profile.draw(v.chance("propagation", e.inst.ordinal, e.ordinal, e.attachments))
	v.logf("%s (%s): after its link, it is listed in %s, its secondaries in %s, its number in %s",
		e.id, e.name, p.Listed, p.Secondaries, p.Keys["device-number"])
	return p
}

// Detach removes the link from the instance and the ENI from the metadata, at once. The ENI
// keeps its addresses and its counters: see [ENI.Reattach] and [ENI.Delete].
func (e *ENI) Detach(ctx context.Context) error {
	return e.DetachLingering(ctx, 0)
}

// DetachLingering is [ENI.Detach] with metadata that continue to list the ENI for a while.
func (e *ENI) DetachLingering(ctx context.Context, linger time.Duration) error {
	err := e.Unplug(ctx)
	e.Withdraw(linger)
	return err
}

// Reattach attaches a detached ENI again, under another name if one is given.
func (e *ENI) Reattach(ctx context.Context, name string) error {
	e.vpc.mu.Lock()
	if e.plugged || e.published {
		e.vpc.mu.Unlock()
		return fmt.Errorf("re-attaching %s: it is attached", e.id)
	}
	if name != "" {
		e.name = name
	}
	e.vpc.mu.Unlock()
	return e.attach(ctx)
}

// SetDeviceIndex changes the number for the next attachment of a detached ENI.
func (e *ENI) SetDeviceIndex(index int) {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	e.index = index
}

// SetPropagation changes [ENISpec].Propagation for later attachments.
func (e *ENI) SetPropagation(p *imds.Propagation) {
	e.vpc.mu.Lock()
	defer e.vpc.mu.Unlock()
	e.propagation = p
}

// Delete detaches a secondary ENI and returns its addresses. Its counters are removed.
func (e *ENI) Delete(ctx context.Context) error {
	if e == e.inst.Primary() {
		return fmt.Errorf("deleting %s: it is the primary ENI, which lives as long as %s", e.id, e.inst.id)
	}
	if err := e.Detach(ctx); err != nil {
		return err
	}
	e.work.Lock()
	defer e.work.Unlock()
	v := e.vpc
	v.mu.Lock()
	if e.deleted {
		v.mu.Unlock()
		return nil
	}
	e.deleted = true
	delete(v.enis, e.mac.String())
	e.inst.enis = slices.DeleteFunc(e.inst.enis, func(o *ENI) bool { return o == e })
	v.mu.Unlock()
	err := e.apply(ctx, imds.Propagation{})
	v.mu.Lock()
	e.release()
	v.mu.Unlock()
	return errors.Join(err, v.nft(ctx, filterRemove(e.filterName(), e.port)))
}

// Reveal ends the propagation of metadata keys of the ENI; without keys, of all keys.
func (e *ENI) Reveal(keys ...string) { e.inst.meta.Reveal(e.mac.String(), keys...) }

// change applies f to the ENI's addresses, and then updates everything else.
func (e *ENI) change(ctx context.Context, what string, f func() error) error {
	e.work.Lock()
	defer e.work.Unlock()
	e.vpc.mu.Lock()
	err := f()
	e.vpc.mu.Unlock()
	if err == nil {
		err = e.apply(ctx, imds.Propagation{})
	}
	if err != nil {
		return fmt.Errorf("%s %s: %w", what, e.id, err)
	}
	return nil
}

// AssignIPv4 assigns the given secondary addresses to the ENI; without any, a free one. It
// returns the new ones.
func (e *ENI) AssignIPv4(ctx context.Context, addrs ...netip.Addr) ([]netip.Addr, error) {
	return e.assignAddrs(ctx, &e.ipv4, e.subnet.pool.v4, addrs)
}

// AssignIPv6 is [ENI.AssignIPv4] for IPv6.
func (e *ENI) AssignIPv6(ctx context.Context, addrs ...netip.Addr) ([]netip.Addr, error) {
	return e.assignAddrs(ctx, &e.ipv6, e.subnet.pool.v6, addrs)
}

func (e *ENI) assignAddrs(ctx context.Context, list *[]netip.Addr, subnet netip.Prefix, addrs []netip.Addr) ([]netip.Addr, error) {
	return assign(ctx, e, "assigning an address to", list, e.subnet.pool.used, func() error {
		return e.takeAddrs(list, subnet, addrs, max(1, len(addrs)))
	})
}

// assign lets take add to a list of the ENI, all or nothing, and returns the new elements.
func assign[T comparable](ctx context.Context, e *ENI, what string, list *[]T, used map[T]string, take func() error) ([]T, error) {
	var added []T
	err := e.change(ctx, what, func() error {
		before := len(*list)
		err := take()
		added = slices.Clone((*list)[before:])
		if err != nil {
			for _, a := range added {
				delete(used, a)
			}
			*list, added = (*list)[:before], nil
		}
		return err
	})
	return added, err
}

// UnassignIPv4 unassigns secondary addresses.
func (e *ENI) UnassignIPv4(ctx context.Context, addrs ...netip.Addr) error {
	return e.unassignAddrs(ctx, &e.ipv4, addrs)
}

// UnassignIPv6 unassigns addresses.
func (e *ENI) UnassignIPv6(ctx context.Context, addrs ...netip.Addr) error {
	return e.unassignAddrs(ctx, &e.ipv6, addrs)
}

func (e *ENI) unassignAddrs(ctx context.Context, list *[]netip.Addr, addrs []netip.Addr) error {
	return e.change(ctx, "unassigning addresses from", func() error {
		rest := slices.Clone(*list)
		for _, a := range addrs {
			n := slices.Index(rest, a)
			switch {
			case n < 0:
				return fmt.Errorf("it does not have %s", a)
			case n == 0 && a.Is4():
				return fmt.Errorf("%s is its primary address, which stays for its life", a)
			}
			rest = slices.Delete(rest, n, n+1)
		}
		for _, a := range addrs {
			delete(e.subnet.pool.used, a)
		}
		*list = rest
		return nil
	})
}

// PermuteIPv4 changes the order of the secondary addresses in the metadata, which has no
// meaning (A2). compare defines the order.
func (e *ENI) PermuteIPv4(ctx context.Context, compare func(a, b netip.Addr) int) error {
	return e.change(ctx, "permuting the addresses of", func() error {
		if len(e.ipv4) > 1 {
			slices.SortFunc(e.ipv4[1:], compare)
		}
		return nil
	})
}

// PermuteIPv6 changes the order of all IPv6 addresses: the first one is the source of sockets
// that are not bound (A11).
func (e *ENI) PermuteIPv6(ctx context.Context, compare func(a, b netip.Addr) int) error {
	return e.change(ctx, "permuting the IPv6 addresses of", func() error {
		slices.SortFunc(e.ipv6, compare)
		return nil
	})
}

// AssignPrefixV4 delegates /28 prefixes to the ENI; without any, a free one. It returns the new
// ones.
func (e *ENI) AssignPrefixV4(ctx context.Context, prefixes ...netip.Prefix) ([]netip.Prefix, error) {
	return e.assignPrefixes(ctx, &e.prefixes4, e.subnet.pool.v4, prefixes)
}

// AssignPrefixV6 delegates /80 prefixes; without any, a free one.
func (e *ENI) AssignPrefixV6(ctx context.Context, prefixes ...netip.Prefix) ([]netip.Prefix, error) {
	return e.assignPrefixes(ctx, &e.prefixes6, e.subnet.pool.v6, prefixes)
}

func (e *ENI) assignPrefixes(ctx context.Context, list *[]netip.Prefix, subnet netip.Prefix, prefixes []netip.Prefix) ([]netip.Prefix, error) {
	return assign(ctx, e, "delegating a prefix to", list, e.subnet.pool.usedP, func() error {
		return e.takePrefixes(list, subnet, prefixes, max(1, len(prefixes)))
	})
}

// UnassignPrefix removes delegated prefixes of any family.
func (e *ENI) UnassignPrefix(ctx context.Context, prefixes ...netip.Prefix) error {
	return e.change(ctx, "taking prefixes from", func() error {
		for _, p := range prefixes {
			list := &e.prefixes4
			if p.Addr().Is6() {
				list = &e.prefixes6
			}
			if !slices.Contains(*list, p) {
				return fmt.Errorf("it does not have %s", p)
			}
		}
		gone := func(p netip.Prefix) bool { return slices.Contains(prefixes, p) }
		e.prefixes4 = slices.DeleteFunc(slices.Clone(e.prefixes4), gone)
		e.prefixes6 = slices.DeleteFunc(slices.Clone(e.prefixes6), gone)
		for _, p := range prefixes {
			delete(e.subnet.pool.usedP, p)
		}
		return nil
	})
}
