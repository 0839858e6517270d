package vpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/insomniacslk/dhcp/dhcpv4"
	"github.com/insomniacslk/dhcp/dhcpv6"
	"github.com/insomniacslk/dhcp/iana"
	"github.com/mdlayher/ndp"
	"github.com/mdlayher/packet"
	"golang.org/x/net/bpf"
	"golang.org/x/sys/unix"
)

// DHCPEvent is a DHCP message of an ENI and the answer of the router.
type DHCPEvent struct {
	Time    time.Time  `json:"time"`
	Service Service    `json:"service"`
	Message string     `json:"message"` // DISCOVER, REQUEST, SOLICIT, …
	Answer  string     `json:"answer"`  // OFFER, ACK, NAK, …; empty: not answered
	Address netip.Addr `json:"address"` // what was handed out, the first of several
	// Addresses are all addresses in an answer of DHCPv6.
	Addresses []netip.Addr `json:"addresses,omitempty"`
}

// startServices opens the sockets of DHCPv4, DHCPv6 and router advertisements in
// the VPC's namespace and serves them.
func (sn *Subnet) startServices() error {
	v := sn.vpc
	err := v.thread.do(func() error {
		lc := net.ListenConfig{Control: func(_, _ string, c syscall.RawConn) error {
			var err error
			ctlErr := c.Control(func(fd uintptr) {
				err = errors.Join(
					unix.SetsockoptString(int(fd), unix.SOL_SOCKET, unix.SO_BINDTODEVICE, sn.bridge.Attrs().Name),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_REUSEADDR, 1),
					unix.SetsockoptInt(int(fd), unix.SOL_SOCKET, unix.SO_BROADCAST, 1))
			})
			return errors.Join(err, ctlErr)
		}}
		var err error
		if sn.dhcp4, err = lc.ListenPacket(v.life, "udp4", "0.0.0.0:67"); err != nil {
			return fmt.Errorf("opening the DHCPv4 socket: %w", err)
		}
		if !sn.spec.IPv6.IsValid() {
			return nil
		}
		if sn.dhcp6, err = listenRaw(sn.bridge.Attrs().Index); err != nil {
			return fmt.Errorf("opening the DHCPv6 and RA socket: %w", err)
		}
		return nil
	})
	if err != nil {
		return err
	}
	v.tasks.Go(sn.serveDHCPv4)
	if sn.dhcp6 != nil {
		v.tasks.Go(sn.serveIPv6)
		v.tasks.Go(func() { sn.advertiseRegularly(v.life) })
	}
	return nil
}

// serveDHCPv4 answers until the socket is closed.
func (sn *Subnet) serveDHCPv4() {
	buf := make([]byte, 9216)
	for {
		n, _, err := sn.dhcp4.ReadFrom(buf)
		if err != nil {
			if sn.vpc.life.Err() == nil && !errors.Is(err, net.ErrClosed) {
				sn.vpc.logf("subnet %s: DHCPv4: %v", sn.spec.Name, err)
			}
			return
		}
		req, err := dhcpv4.FromBytes(buf[:n])
		if err != nil || req.OpCode != dhcpv4.OpcodeBootRequest {
			continue
		}
		e := sn.eni(req.ClientHWAddr)
		if e == nil {
			continue
		}
		event := DHCPEvent{Time: time.Now(), Service: DHCPv4, Message: req.MessageType().String()}
		if reply := sn.answerDHCPv4(e, req); reply != nil && !sn.isMuted(DHCPv4) {
			event.Answer = reply.MessageType().String()
			event.Address, _ = netip.AddrFromSlice(reply.YourIPAddr.To4())
			to := &net.UDPAddr{IP: reply.YourIPAddr, Port: 68}
			switch {
			case req.IsBroadcast() || reply.MessageType() == dhcpv4.MessageTypeNak:
				to.IP = net.IPv4bcast
			case !req.ClientIPAddr.IsUnspecified():
				to.IP = req.ClientIPAddr
			}
			// Unicast needs no ARP: the address is a known neighbour.
			if _, err := sn.dhcp4.WriteTo(reply.ToBytes(), to); err != nil && sn.vpc.life.Err() == nil {
				sn.vpc.logf("subnet %s: answering %s of %s: %v", sn.spec.Name, event.Message, e.id, err)
			}
		}
		e.note(event)
	}
}

// In a subnet without IPv4 a VPC leases a link-local address for access to its
// link-local services, and a gateway that does not answer.
var unusableGateway = netip.MustParseAddr("169.254.0.1")

// answerDHCPv4 returns the answer, or nil for none.
func (sn *Subnet) answerDHCPv4(e *ENI, req *dhcpv4.DHCPv4) *dhcpv4.DHCPv4 {
	var addr netip.Addr
	mask := net.CIDRMask(32, 32)
	server, router := netip.MustParseAddr("169.254.169.253"), unusableGateway
	if sn.spec.IPv4.IsValid() {
		mask = net.CIDRMask(sn.spec.IPv4.Bits(), 32)
		server, router = sn.Gateway4(), sn.Gateway4()
		if list := e.IPv4(); len(list) > 0 {
			addr = list[0]
		}
	} else {
		addr = e.linkLocal4()
	}
	if !addr.IsValid() {
		return nil
	}
	answer := dhcpv4.MessageTypeOffer
	switch req.MessageType() {
	case dhcpv4.MessageTypeDiscover:
	case dhcpv4.MessageTypeRequest:
		if id := req.ServerIdentifier(); id != nil && !id.Equal(server.AsSlice()) {
			return nil // for another server
		}
		answer = dhcpv4.MessageTypeAck
		want := req.RequestedIPAddress()
		if want == nil || want.IsUnspecified() {
			want = req.ClientIPAddr
		}
		if !want.Equal(addr.AsSlice()) {
			answer = dhcpv4.MessageTypeNak
		}
	case dhcpv4.MessageTypeInform:
		answer = dhcpv4.MessageTypeAck
	default:
		return nil
	}
	mods := []dhcpv4.Modifier{
		dhcpv4.WithMessageType(answer),
		dhcpv4.WithOption(dhcpv4.OptServerIdentifier(server.AsSlice())),
	}
	if answer != dhcpv4.MessageTypeNak {
		mods = append(mods,
			dhcpv4.WithYourIP(addr.AsSlice()),
			dhcpv4.WithNetmask(mask),
			dhcpv4.WithRouter(router.AsSlice()),
			dhcpv4.WithLeaseTime(uint32(sn.vpc.Behaviour().Lifetimes.DHCPv4/time.Second)))
		mods = append(mods, sn.optionsDHCPv4(addr)...)
	}
	reply, err := dhcpv4.NewReplyFromRequest(req, mods...)
	if err != nil {
		return nil
	}
	return reply
}

// optionsDHCPv4 returns the VPC's DHCP options for the ENI with an address.
func (sn *Subnet) optionsDHCPv4(addr netip.Addr) []dhcpv4.Modifier {
	o := sn.vpc.Behaviour().DHCP
	dns := ofFamily(o.DNS, netip.Addr.Is4)
	if len(dns) == 0 {
		server := netip.MustParseAddr("169.254.169.253")
		if sn.spec.IPv4.IsValid() {
			server = addOffset(sn.vpc.opts.IPv4[0].Addr(), 2)
		}
		dns = []net.IP{server.AsSlice()}
	}
	mods := []dhcpv4.Modifier{dhcpv4.WithDNS(dns...)}
	if len(o.Domains) > 0 {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptDomainName(strings.Join(o.Domains, " "))))
	}
	if len(o.Search) > 0 {
		mods = append(mods, dhcpv4.WithDomainSearchList(o.Search...))
	}
	if ntp := ofFamily(o.NTP, netip.Addr.Is4); len(ntp) > 0 {
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptNTPServers(ntp...)))
	}
	if o.MTU != 0 {
		mods = append(mods, dhcpv4.WithGeneric(dhcpv4.OptionInterfaceMTU, binary.BigEndian.AppendUint16(nil, uint16(o.MTU))))
	}
	if o.Hostname && sn.spec.IPv4.IsValid() {
		name, _, _ := strings.Cut(hostname4(addr), ".")
		mods = append(mods, dhcpv4.WithOption(dhcpv4.OptHostName(name)))
	}
	return mods
}

// ofFamily returns the addresses for which a family's predicate is true.
func ofFamily(list []netip.Addr, family func(netip.Addr) bool) []net.IP {
	var out []net.IP
	for _, a := range list {
		if family(a) {
			out = append(out, a.AsSlice())
		}
	}
	return out
}

// rawConn sends and receives IPv6 packets of a bridge, below the kernel's IPv6: it sees
// the client's MAC address, which DHCPv6 does not contain, and answers without
// neighbour discovery.
type rawConn struct {
	conn *packet.Conn
}

const (
	protoUDP    = 17
	protoICMPv6 = 58
	portClient6 = 546
	portServer6 = 547
)

// listenRaw opens a packet socket for DHCPv6 requests and router solicitations.
func listenRaw(ifindex int) (*rawConn, error) {
	// Offsets from the IPv6 header; a packet with extension headers is ignored.
	filter, err := bpf.Assemble([]bpf.Instruction{
		bpf.LoadAbsolute{Off: 6, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoUDP, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 42, Size: 2},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: portServer6, SkipTrue: 4},
		bpf.RetConstant{Val: 0},
		bpf.JumpIf{Cond: bpf.JumpNotEqual, Val: protoICMPv6, SkipTrue: 3},
		bpf.LoadAbsolute{Off: 40, Size: 1},
		bpf.JumpIf{Cond: bpf.JumpEqual, Val: 133, SkipFalse: 1},
		bpf.RetConstant{Val: 1 << 16},
		bpf.RetConstant{Val: 0},
	})
	if err != nil {
		return nil, err
	}
	conn, err := packet.Listen(&net.Interface{Index: ifindex}, packet.Datagram, unix.ETH_P_IPV6, &packet.Config{Filter: filter})
	if err != nil {
		return nil, err
	}
	return &rawConn{conn: conn}, nil
}

// send sends one upper-layer packet with its checksum.
func (c *rawConn) send(mac net.HardwareAddr, src, dst netip.Addr, proto byte, payload []byte) error {
	b := make([]byte, 40, 40+len(payload))
	b[0] = 6 << 4
	binary.BigEndian.PutUint16(b[4:], uint16(len(payload)))
	b[6], b[7] = proto, 255
	copy(b[8:], src.AsSlice())
	copy(b[24:], dst.AsSlice())
	_, err := c.conn.WriteTo(append(b, payload...), &packet.Addr{HardwareAddr: mac})
	return err
}

// udp6 returns a UDP datagram with its checksum: RFC 8200, section 8.1.
func udp6(src, dst netip.Addr, from, to uint16, payload []byte) []byte {
	b := make([]byte, 8, 8+len(payload))
	binary.BigEndian.PutUint16(b[0:], from)
	binary.BigEndian.PutUint16(b[2:], to)
	binary.BigEndian.PutUint16(b[4:], uint16(8+len(payload)))
	b = append(b, payload...)
	pseudo := slices.Concat(src.AsSlice(), dst.AsSlice(), []byte{0, 0, b[4], b[5], 0, 0, 0, protoUDP}, b)
	if len(pseudo)%2 == 1 {
		pseudo = append(pseudo, 0)
	}
	var sum uint32
	for i := 0; i < len(pseudo); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(pseudo[i:]))
	}
	for sum > 0xffff {
		sum = sum>>16 + sum&0xffff
	}
	check := ^uint16(sum)
	if check == 0 {
		check = 0xffff
	}
	binary.BigEndian.PutUint16(b[6:], check)
	return b
}

// serveIPv6 answers DHCPv6 requests and router solicitations until the socket
// is closed.
func (sn *Subnet) serveIPv6() {
	buf := make([]byte, 9216)
	for {
		n, from, err := sn.dhcp6.conn.ReadFrom(buf)
		if err != nil {
			if sn.vpc.life.Err() == nil && !errors.Is(err, net.ErrClosed) {
				sn.vpc.logf("subnet %s: DHCPv6: %v", sn.spec.Name, err)
			}
			return
		}
		sender, ok := from.(*packet.Addr)
		if !ok || n < 48 {
			continue
		}
		e := sn.eni(sender.HardwareAddr)
		if e == nil {
			continue
		}
		src, _ := netip.AddrFromSlice(buf[8:24])
		if buf[6] == protoICMPv6 {
			sn.solicited(e, src)
			continue
		}
		req, err := dhcpv6.MessageFromBytes(buf[48:n])
		if err != nil {
			continue
		}
		event := DHCPEvent{Time: time.Now(), Service: DHCPv6, Message: req.MessageType.String()}
		if reply := sn.answerDHCPv6(e, req); reply != nil && !sn.isMuted(DHCPv6) {
			event.Answer = reply.MessageType.String()
			event.Addresses = leasedDHCPv6(reply)
			if len(event.Addresses) > 0 {
				event.Address = event.Addresses[0]
			}
			router := sn.Gateway6()
			err := sn.dhcp6.send(sender.HardwareAddr, router, src, protoUDP,
				udp6(router, src, portServer6, portClient6, reply.ToBytes()))
			if err != nil && sn.vpc.life.Err() == nil {
				sn.vpc.logf("subnet %s: answering %s of %s: %v", sn.spec.Name, event.Message, e.id, err)
			}
		}
		e.note(event)
	}
}

// leasedDHCPv6 returns the addresses in an answer.
func leasedDHCPv6(reply *dhcpv6.Message) (addrs []netip.Addr) {
	for _, ia := range reply.Options.IANA() {
		for _, a := range ia.Options.Addresses() {
			if addr, ok := netip.AddrFromSlice(a.IPv6Addr); ok && a.ValidLifetime > 0 {
				addrs = append(addrs, addr)
			}
		}
	}
	return addrs
}

// answerDHCPv6 returns the answer, or nil for none. It leases the ENI's IPv6 addresses,
// or the first of them, whatever the client requests.
func (sn *Subnet) answerDHCPv6(e *ENI, req *dhcpv6.Message) *dhcpv6.Message {
	mode, addrs := sn.vpc.Behaviour().DHCPv6, e.IPv6()
	if mode == DHCPv6First {
		addrs = addrs[:min(1, len(addrs))]
	}
	duid := &dhcpv6.DUIDLL{HWType: iana.HWTypeEthernet, LinkLayerAddr: sn.mac}
	server := dhcpv6.WithServerID(duid)
	if id := req.Options.ServerID(); id != nil && !id.Equal(duid) {
		return nil // for another server
	}
	var reply *dhcpv6.Message
	var err error
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit:
		if len(addrs) == 0 {
			return nil
		}
		// The highest preference: the client need not wait for another server.
		reply, err = dhcpv6.NewAdvertiseFromSolicit(req, server, dhcpv6.WithPreference(255))
	case dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind, dhcpv6.MessageTypeConfirm,
		dhcpv6.MessageTypeRelease, dhcpv6.MessageTypeInformationRequest:
		reply, err = dhcpv6.NewReplyFromMessage(req, server)
	default:
		return nil
	}
	if err != nil {
		return nil
	}
	if mode == DHCPv6All && !sn.spec.IPv4.IsValid() {
		sn.optionsDHCPv6(reply)
	}
	switch req.MessageType {
	case dhcpv6.MessageTypeSolicit, dhcpv6.MessageTypeRequest, dhcpv6.MessageTypeRenew, dhcpv6.MessageTypeRebind:
	default:
		return reply
	}
	// All addresses are in one association. A client with several associations, which
	// no client here uses, gets the same in each.
	for _, ia := range req.Options.IANA() {
		reply.AddOption(sn.leaseDHCPv6(ia, addrs))
	}
	return reply
}

// optionsDHCPv6 adds the VPC's DHCP options to an answer.
func (sn *Subnet) optionsDHCPv6(reply *dhcpv6.Message) {
	o := sn.vpc.Behaviour().DHCP
	dns := ofFamily(o.DNS, netip.Addr.Is6)
	if len(dns) == 0 {
		dns = []net.IP{AmazonDNS6.AsSlice()}
	}
	reply.AddOption(dhcpv6.OptDNS(dns...))
	if len(o.Domains) > 0 {
		dhcpv6.WithDomainSearchList(o.Domains...)(reply)
	}
	var ntp dhcpv6.OptNTPServer
	for _, server := range ofFamily(o.NTP, netip.Addr.Is6) {
		address := dhcpv6.NTPSuboptionSrvAddr(server)
		ntp.Suboptions.Add(&address)
	}
	if len(ntp.Suboptions) > 0 {
		reply.AddOption(&ntp)
	}
}

// leaseDHCPv6 answers one identity association: it confirms the addresses, and
// withdraws any other address of the client.
func (sn *Subnet) leaseDHCPv6(ia *dhcpv6.OptIANA, addrs []netip.Addr) *dhcpv6.OptIANA {
	life := sn.vpc.Behaviour().Lifetimes
	out := &dhcpv6.OptIANA{IaId: ia.IaId, T1: life.DHCPv6Preferred / 2, T2: life.DHCPv6Preferred * 4 / 5}
	for _, addr := range addrs {
		out.Options.Add(&dhcpv6.OptIAAddress{
			IPv6Addr: addr.AsSlice(), PreferredLifetime: life.DHCPv6Preferred, ValidLifetime: life.DHCPv6Valid,
		})
	}
	if len(addrs) == 0 {
		out.Options.Add(&dhcpv6.OptStatusCode{StatusCode: iana.StatusNoAddrsAvail, StatusMessage: "no address"})
	}
	for _, old := range ia.Options.Addresses() {
		if a, ok := netip.AddrFromSlice(old.IPv6Addr); ok && !slices.Contains(addrs, a) {
			out.Options.Add(&dhcpv6.OptIAAddress{IPv6Addr: old.IPv6Addr})
		}
	}
	return out
}

// allNodes is the Ethernet address of ff02::1.
var allNodes = net.HardwareAddr{0x33, 0x33, 0, 0, 0, 1}

// Advertise sends a router advertisement to the subnet now, unless muted.
func (sn *Subnet) Advertise() error {
	if sn.dhcp6 == nil || sn.isMuted(RA) {
		return nil
	}
	return sn.advertiseTo(allNodes, netip.IPv6LinkLocalAllNodes())
}

// solicited answers a router solicitation, after the router's delay.
func (sn *Subnet) solicited(e *ENI, src netip.Addr) {
	if src.IsUnspecified() {
		src = netip.IPv6LinkLocalAllNodes()
	}
	sn.mu.Lock()
	delay := sn.vpc.Behaviour().RADelay.draw(sn.delays)
	sn.mu.Unlock()
	answer := func() {
		if sn.isMuted(RA) {
			return
		}
		if err := sn.advertiseTo(e.mac, src); err != nil && sn.vpc.life.Err() == nil {
			sn.vpc.logf("subnet %s: advertising to %s: %v", sn.spec.Name, e.id, err)
		}
	}
	if delay <= 0 {
		answer()
		return
	}
	sn.vpc.tasks.Go(func() {
		select {
		case <-time.After(delay):
			answer()
		case <-sn.vpc.life.Done():
		}
	})
}

// advertiseTo sends an advertisement as EC2's routers do: addresses are managed, the
// subnet is on-link, and nothing is for autonomous configuration.
func (sn *Subnet) advertiseTo(mac net.HardwareAddr, to netip.Addr) error {
	router, life := sn.Gateway6(), sn.vpc.Behaviour().Lifetimes.Router
	ra := &ndp.RouterAdvertisement{
		CurrentHopLimit: 64, ManagedConfiguration: true, RouterLifetime: life,
		Options: []ndp.Option{
			&ndp.LinkLayerAddress{Direction: ndp.Source, Addr: sn.mac},
			&ndp.PrefixInformation{
				PrefixLength: uint8(sn.spec.IPv6.Bits()), OnLink: true,
				ValidLifetime: 2 * life, PreferredLifetime: life, Prefix: sn.spec.IPv6.Addr(),
			},
		},
	}
	b, err := ndp.MarshalMessageChecksum(ra, router, to)
	if err != nil {
		return fmt.Errorf("making a router advertisement: %w", err)
	}
	return sn.dhcp6.send(mac, router, to, protoICMPv6, b)
}

func (sn *Subnet) advertiseRegularly(ctx context.Context) {
	for {
		var next <-chan time.Time
		if every := sn.vpc.Behaviour().Lifetimes.AdvertiseEvery; every > 0 {
			next = time.After(every)
		}
		select {
		case <-ctx.Done():
			return
		case <-sn.repace:
		case <-next:
			if err := sn.Advertise(); err != nil && ctx.Err() == nil {
				sn.vpc.logf("subnet %s: router advertisement: %v", sn.spec.Name, err)
			}
		}
	}
}
