package kernel

import (
	"context"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"runtime"
	"slices"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// own moves the test into its own network namespace. The thread is not reused: it ends with the test,
// and the namespace with it.
func own(tb testing.TB) {
	tb.Helper()
	if os.Geteuid() != 0 {
		tb.Skip("a network namespace takes root: sudo go test ./service/kernel")
	}
	runtime.LockOSThread()
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		tb.Fatal(err)
	}
}

// newLink creates a link that is up, and returns its index.
func newLink(tb testing.TB, name string) int {
	tb.Helper()
	peer := name + "p"
	if err := netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: peer}); err != nil {
		tb.Fatal(err)
	}
	index := 0
	for _, each := range []string{peer, name} {
		link, err := netlink.LinkByName(each)
		if err != nil {
			tb.Fatal(err)
		}
		if err := netlink.LinkSetUp(link); err != nil {
			tb.Fatal(err)
		}
		index = link.Attrs().Index
	}
	return index
}

// F10: the snapshot has the master of a link, and whether the link is set down.
func TestObservePort(t *testing.T) {
	own(t)
	index := newLink(t, "ens5")
	observer, err := NewObserver([]string{"veth"})
	if err != nil {
		t.Fatal(err)
	}
	defer observer.Close()
	expect := func(want Link) {
		t.Helper()
		snapshot, err := observer.Observe()
		if err != nil {
			t.Fatal(err)
		}
		i := slices.IndexFunc(snapshot.Links, func(l Link) bool { return l.Index == index })
		got := &snapshot.Links[i]
		if got.Master != want.Master || got.MasterKind != want.MasterKind || got.Port() != want.Port() || got.Down != want.Down {
			t.Errorf("got %+v, want %+v", *got, want)
		}
	}
	expect(Link{})
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index}}
	bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: "br0"}}
	if err := netlink.LinkAdd(bridge); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetMaster(link, bridge); err != nil {
		t.Fatal(err)
	}
	expect(Link{Master: "br0", MasterKind: "bridge"})
	if err := netlink.LinkSetNoMaster(link); err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetDown(link); err != nil {
		t.Fatal(err)
	}
	expect(Link{Down: true})
	if vrf := (Link{Master: "red", MasterKind: "vrf"}); vrf.Port() {
		t.Error("a port of a VRF has addresses of its own")
	}
}

// F10, C3: a port of a bond keeps the MAC address of its ENI, whatever address the bond assigns to
// it. If somebody has changed the address of a link that is not a port, its permanent address does
// not count.
func TestMACOf(t *testing.T) {
	own, other := net.HardwareAddr{2, 0, 0, 0, 0, 5}, net.HardwareAddr{2, 0, 0, 0, 0, 6}
	for name, c := range map[string]struct {
		attrs     netlink.LinkAttrs
		want      net.HardwareAddr
		permanent bool
	}{
		"no permanent address":         {netlink.LinkAttrs{HardwareAddr: own}, own, false},
		"a port without one":           {netlink.LinkAttrs{HardwareAddr: other, MasterIndex: 9}, other, false},
		"its permanent address":        {netlink.LinkAttrs{HardwareAddr: own, PermHWAddr: own}, own, true},
		"the first port of a bond":     {netlink.LinkAttrs{HardwareAddr: own, PermHWAddr: own, MasterIndex: 9}, own, true},
		"another port of the bond":     {netlink.LinkAttrs{HardwareAddr: other, PermHWAddr: own, MasterIndex: 9}, own, true},
		"an address given by somebody": {netlink.LinkAttrs{HardwareAddr: other, PermHWAddr: own}, other, false},
	} {
		if mac, permanent := MACOf(&c.attrs); mac != c.want.String() || permanent != c.permanent {
			t.Errorf("%s: %s, permanent %v", name, mac, permanent)
		}
	}
	if l := (Link{MAC: own.String()}); l.Address() != own.String() {
		t.Errorf("the address is %s", l.Address())
	}
	if l := (Link{MAC: own.String(), Lent: other.String()}); l.Address() != other.String() {
		t.Errorf("the address of a port is %s", l.Address())
	}
}

// B2, F1: the snapshot contains everything of an ENI, and nothing of others. A rule with selectors
// other than its source does not count as a rule of this daemon.
func TestObserve(t *testing.T) {
	own(t)
	ens5, other := newLink(t, "ens5"), newLink(t, "other")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	prefix := netip.MustParsePrefix
	for _, text := range []string{"10.0.1.9/24", "10.0.1.10/32", "192.0.2.1 peer 192.0.2.2/32", "2001:db8::5/128"} {
		link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: ens5}}
		var address *netlink.Addr
		var err error
		if text == "192.0.2.1 peer 192.0.2.2/32" {
			address, err = netlink.ParseAddr("192.0.2.1/32")
			must(err)
			peer, err := netlink.ParseAddr("192.0.2.2/32")
			must(err)
			address.Peer = peer.IPNet
		} else {
			address, err = netlink.ParseAddr(text)
			must(err)
		}
		address.Flags = unix.IFA_F_NODAD
		must(netlink.AddrAdd(link, address))
	}
	address, err := netlink.ParseAddr("10.9.0.1/24")
	must(err)
	must(netlink.AddrAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: other}}, address))

	network := func(text string) *netlink.Route {
		route := &netlink.Route{LinkIndex: ens5, Protocol: unix.RTPROT_STATIC}
		address, err := netlink.ParseIPNet(text)
		must(err)
		route.Dst = address
		return route
	}
	gateway := netip.MustParseAddr("10.0.1.1")
	byDHCP := network("0.0.0.0/0")
	byDHCP.Gw, byDHCP.Priority, byDHCP.Protocol = gateway.AsSlice(), 512, unix.RTPROT_DHCP
	ownTable := network("10.0.1.0/24")
	ownTable.Table, ownTable.Scope = 10001, unix.RT_SCOPE_LINK
	advertised := network("::/0")
	advertised.Gw, advertised.Priority, advertised.Protocol = netip.MustParseAddr("fe80::1").AsSlice(), 700, unix.RTPROT_RA
	local := network("10.0.9.0/28")
	local.Type, local.Table, local.Scope = unix.RTN_LOCAL, unix.RT_TABLE_LOCAL, unix.RT_SCOPE_HOST
	foreign := network("10.77.0.0/16")
	foreign.LinkIndex = other
	standIn := network("0.0.0.0/0")
	standIn.Gw, standIn.Priority, standIn.Protocol = gateway.AsSlice(), 513, unix.RTPROT_KERNEL
	for _, route := range []*netlink.Route{byDHCP, ownTable, advertised, local, foreign, standIn} {
		must(netlink.RouteAdd(route))
	}
	// A second router: the kernel merges both routes into one multipath route.
	advertised.Gw = netip.MustParseAddr("fe80::2").AsSlice()
	must(netlink.RouteAppend(advertised))

	mask := uint32(0xff)
	rule := func(change func(*netlink.Rule)) {
		t.Helper()
		r := netlink.NewRule()
		r.Priority, r.Table, r.Protocol = 10001, 10001, unix.RTPROT_STATIC
		source, err := netlink.ParseIPNet("10.0.1.10/32")
		must(err)
		r.Src = source
		change(r)
		must(netlink.RuleAdd(r))
	}
	rule(func(*netlink.Rule) {})
	for i, change := range []func(*netlink.Rule){
		func(r *netlink.Rule) { r.Mark, r.Mask = 1, &mask },
		func(r *netlink.Rule) { r.IifName = "ens5" },
		func(r *netlink.Rule) { r.OifName = "ens5" },
		func(r *netlink.Rule) { r.Tos = 8 },
		func(r *netlink.Rule) { r.Invert = true },
		func(r *netlink.Rule) { r.IPProto = unix.IPPROTO_TCP },
		func(r *netlink.Rule) { r.Dport = netlink.NewRulePortRange(80, 80) },
		func(r *netlink.Rule) { r.Sport = netlink.NewRulePortRange(80, 80) },
		func(r *netlink.Rule) { r.UIDRange = netlink.NewRuleUIDRange(1, 2) },
		func(r *netlink.Rule) { r.Flow = 7 },
		// The library omits these for a table with a number above 255.
		func(r *netlink.Rule) { r.SuppressIfgroup, r.Table = 3, 77 },
		func(r *netlink.Rule) { r.SuppressPrefixlen, r.Table = 8, 77 },
		func(r *netlink.Rule) { r.Dst, _ = netlink.ParseIPNet("10.8.0.0/16") },
		func(r *netlink.Rule) { r.Goto, r.Table = 20000, 0 },
	} {
		rule(func(r *netlink.Rule) { r.Priority = 11000 + i; change(r) })
	}
	rule(func(r *netlink.Rule) { r.Priority, r.Table, r.SuppressPrefixlen = 10000, unix.RT_TABLE_MAIN, 0 })
	rule(func(r *netlink.Rule) { r.Src, _ = netlink.ParseIPNet("2001:db8::/80"); r.Protocol = 0 })
	rule(func(r *netlink.Rule) { r.Priority, r.Src, r.Mark, r.Family = 500, nil, 7, netlink.FAMILY_V4 })

	observer, err := NewObserver([]string{"veth"})
	must(err)
	defer observer.Close()
	got, err := observer.Observe()
	must(err)
	got.Links = slices.DeleteFunc(got.Links, func(l Link) bool { return l.Index != ens5 })
	got.Routes = slices.DeleteFunc(got.Routes, func(r Route) bool {
		return r.Link != ens5 || (r.Protocol == unix.RTPROT_KERNEL && !r.Gateway.IsValid())
	})
	if len(got.Links) != 1 || len(got.Links[0].MAC) != 17 {
		t.Fatalf("%+v", got.Links)
	}
	addresses := slices.DeleteFunc(got.Links[0].Addresses, func(a Address) bool { return a.Prefix.Addr().IsLinkLocalUnicast() })
	compare := cmpopts.EquateComparable(netip.Prefix{}, netip.Addr{})
	if diff := cmp.Diff([]Address{
		{Prefix: prefix("10.0.1.9/24"), Global: true}, {Prefix: prefix("10.0.1.10/32"), Global: true},
		{Prefix: prefix("192.0.2.1/32"), Global: true}, {Prefix: prefix("2001:db8::5/128"), Global: true},
	}, addresses, compare); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]Route{
		{Link: ens5, Table: MainTable, Metric: 512, Destination: prefix("0.0.0.0/0"), Gateway: gateway, Protocol: ProtocolDHCP},
		{Link: ens5, Table: 10001, Destination: prefix("10.0.1.0/24"), Protocol: ProtocolStatic},
		{Link: ens5, Table: unix.RT_TABLE_LOCAL, Destination: prefix("10.0.9.0/28"), Protocol: ProtocolStatic, Local: true},
		{Link: ens5, Table: MainTable, Metric: 700, Destination: prefix("::/0"), Gateway: netip.MustParseAddr("fe80::1"), Protocol: ProtocolRA},
		{Link: ens5, Table: MainTable, Metric: 700, Destination: prefix("::/0"), Gateway: netip.MustParseAddr("fe80::2"), Protocol: ProtocolRA},
	}, got.Routes, compare, cmpopts.SortSlices(func(a, b Route) bool { return fmt.Sprint(a) < fmt.Sprint(b) })); diff != "" {
		t.Error(diff)
	}
	source := prefix("10.0.1.10/32")
	want := []Rule{
		{Priority: 500, Table: 10001, Protocol: ProtocolStatic, Plain: true, IPv4: true, Mark: 7, Mask: 1<<32 - 1},
		{Priority: 10000, Table: MainTable, From: source, Protocol: ProtocolStatic, Guard: true, IPv4: true},
		{Priority: 10001, Table: 10001, From: source, Protocol: ProtocolStatic, Plain: true, IPv4: true},
	}
	for i := range 14 {
		want = append(want, Rule{Priority: 11000 + i, Table: 10001, From: source, Protocol: ProtocolStatic, IPv4: true})
	}
	for i, rule := range want {
		switch rule.Priority {
		case 11000:
			want[i].Mark, want[i].Mask = 1, mask
		case 11010, 11011:
			want[i].Table = 77
		case 11013:
			want[i].Table = 0
		}
	}
	want = append(want, Rule{Priority: 10001, Table: 10001, From: prefix("2001:db8::/80"), Plain: true})
	if diff := cmp.Diff(want, got.Rules, compare); diff != "" {
		t.Error(diff)
	}
	if rules, err := Rules(); err != nil || !slices.Equal(rules, got.Rules) {
		t.Errorf("Rules: %v %v", rules, err)
	}

	must(netlink.LinkDel(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: "ens5", Index: ens5}}))
	if got, err = observer.Observe(); err != nil || slices.ContainsFunc(got.Links, func(l Link) bool { return l.Index == ens5 }) {
		t.Errorf("%+v %v", got, err)
	}
}

// E3: renewing the lifetime of an address is no event, and any other change is one.
func TestWatchAddresses(t *testing.T) {
	own(t)
	// Its link-local addresses would cause events of their own.
	if err := os.WriteFile("/proc/sys/net/ipv6/conf/default/disable_ipv6", []byte("1"), 0o644); err != nil {
		t.Fatal(err)
	}
	link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: newLink(t, "ens5")}}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		t.Fatal(err)
	}
	defer handle.Close()
	w := NewWatcher([]string{"veth"}, slog.New(slog.DiscardHandler))
	ctx, stop := context.WithTimeout(t.Context(), time.Minute)
	go func() {
		defer stop()
		<-w.Ready()
		event := func(what string) {
			select {
			case <-w.Changed():
			case <-ctx.Done():
				t.Errorf("%s is no event", what)
			}
		}
		quiet := func(what string) {
			select {
			case <-w.Changed():
				if what != "" {
					t.Errorf("%s is an event", what)
				}
			case <-time.After(500 * time.Millisecond):
			}
		}
		address := func(lifetime int) *netlink.Addr {
			return &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(10, 0, 1, 5), Mask: net.CIDRMask(24, 32)}, ValidLft: lifetime, PreferedLft: lifetime}
		}
		event("the start")
		quiet("")
		if err := handle.AddrAdd(link, address(1000)); err != nil {
			t.Error(err)
		}
		event("an address more")
		for range 3 {
			if err := handle.AddrReplace(link, address(2000)); err != nil {
				t.Error(err)
			}
		}
		quiet("a renewed lease")
		if err := handle.AddrReplace(link, address(0)); err != nil {
			t.Error(err)
		}
		event("an address that has become permanent")
		if err := handle.AddrDel(link, address(0)); err != nil {
			t.Error(err)
		}
		event("an address less")
	}()
	if err := w.Run(ctx); err != nil {
		t.Error(err)
	}
}

// header returns the header of a netlink message.
type header []byte

func (h header) Len() int          { return len(h) }
func (h header) Serialize() []byte { return h }

// F6: the next hops that networkd creates for routers do not count as next hops of others.
func TestNextHops(t *testing.T) {
	own(t)
	for _, protocol := range []int{ProtocolRA, unix.RTPROT_ZEBRA, unix.RTPROT_UNSPEC} {
		before, err := NextHops()
		if err != nil {
			t.Fatal(err)
		}
		index := newLink(t, fmt.Sprintf("ens%d", protocol))
		request := nl.NewNetlinkRequest(unix.RTM_NEWNEXTHOP, unix.NLM_F_CREATE|unix.NLM_F_ACK)
		request.AddData(header{unix.AF_INET6, 0, byte(protocol), 0, 0, 0, 0, 0})
		request.AddData(nl.NewRtAttr(unix.NHA_OIF, nl.Uint32Attr(uint32(index))))
		if _, err := request.Execute(unix.NETLINK_ROUTE, 0); err != nil {
			t.Fatal(err)
		}
		want := before + 1
		if protocol == ProtocolRA {
			want = before
		}
		if count, err := NextHops(); err != nil || count != want {
			t.Errorf("protocol %d: %d next hops, want %d: %v", protocol, count, want, err)
		}
	}
}
