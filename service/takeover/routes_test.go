package takeover

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// routesOf lists the routes of the main table: the stand-ins and those made of advertisements, or
// all others but those that come with addresses.
func routesOf(t *testing.T, standIns bool) []string {
	t.Helper()
	routes, err := netlink.RouteListFiltered(netlink.FAMILY_ALL, &netlink.Route{Table: unix.RT_TABLE_MAIN}, netlink.RT_FILTER_TABLE)
	if err != nil {
		t.Fatal(err)
	}
	var all []string
	for i := range routes {
		r := &routes[i]
		// What comes with an address has the metric 0, or 256.
		ofAddress := r.Protocol == unix.RTPROT_KERNEL && r.Gw == nil && (r.Priority == 0 || r.Priority == 256)
		if ofAddress || (r.Protocol == unix.RTPROT_KERNEL) != standIns {
			continue
		}
		line := fmt.Sprintf("%s via %v dev %d metric %d", destination(r), address(r.Gw), r.LinkIndex, r.Priority)
		if r.Flags&int(netlink.FLAG_ONLINK) != 0 {
			line += " onlink"
		}
		all = append(all, line)
	}
	slices.Sort(all)
	return all
}

// J3: with the routes of networkd gone, traffic goes as it went; what nobody can copy does no harm,
// and nothing stays that was not there, whatever became of the links meanwhile.
func TestStandIns(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a network namespace takes root: sudo go test ./service/takeover")
	}
	// The thread ends with the test, and the namespace with it.
	runtime.LockOSThread()
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Unshare(unix.CLONE_NEWNET))
	index := make(map[string]int)
	for name, addresses := range map[string][]string{"ens5": {"10.0.1.9/24", "2001:db8:1::9/128"}, "ens6": {"10.0.2.9/24", "2001:db8:2::9/128", "2001:db8:5::1/64"}, "wg0": {"10.9.0.1/24"}} {
		must(netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: name}, PeerName: name + "p"}))
		for _, each := range []string{name + "p", name} {
			link, err := netlink.LinkByName(each)
			must(err)
			must(netlink.LinkSetUp(link))
			index[each] = link.Attrs().Index
		}
		for _, text := range addresses {
			a, err := netlink.ParseAddr(text)
			must(err)
			a.Flags = unix.IFA_F_NODAD
			must(netlink.AddrAdd(&netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: index[name]}}, a))
		}
	}
	add := func(link, to, by string, metric int, protocol netlink.RouteProtocol, change func(*netlink.Route)) *netlink.Route {
		t.Helper()
		_, network, err := net.ParseCIDR(to)
		must(err)
		r := &netlink.Route{LinkIndex: index[link], Dst: network, Gw: net.ParseIP(by), Priority: metric, Protocol: protocol}
		if change != nil {
			change(r)
		}
		must(netlink.RouteAdd(r))
		return r
	}
	onlink := func(r *netlink.Route) { r.Flags = int(netlink.FLAG_ONLINK) }
	scoped := func(r *netlink.Route) { r.Scope = netlink.SCOPE_LINK }
	const static, dhcp, ra = unix.RTPROT_STATIC, unix.RTPROT_DHCP, unix.RTPROT_RA
	moving := []*netlink.Route{
		add("ens5", "0.0.0.0/0", "10.0.1.1", 100, dhcp, func(r *netlink.Route) { r.Src = net.ParseIP("10.0.1.9") }),
		add("ens6", "0.0.0.0/0", "10.0.2.1", 200, dhcp, nil),
		add("ens5", "10.0.1.1/32", "", 100, dhcp, scoped),
		add("ens5", "198.51.100.0/24", "192.0.2.1", 0, static, onlink),
		add("ens5", "::/0", "fe80::1", 100, ra, nil),
		add("ens6", "::/0", "fe80::1", 200, ra, nil),
		add("ens5", "2001:db8:1::/64", "", 100, ra, nil),
	}
	// Those of others stay, and go before and after the same as before.
	add("wg0", "0.0.0.0/0", "10.9.0.2", 50, unix.RTPROT_BOOT, nil)
	add("ens6", "0.0.0.0/0", "10.0.2.2", 101, unix.RTPROT_BOOT, nil)
	add("ens6", "203.0.113.0/24", "10.0.2.1", 20, unix.RTPROT_BIRD, nil)
	add("ens5", "203.0.114.0/24", "10.0.1.1", 20, static, func(r *netlink.Route) { r.Tos = 16 })
	// As the kernel makes one of an advertisement.
	add("ens6", "2001:db8:1::/64", "", 300, unix.RTPROT_KERNEL, nil)
	advertised := fmt.Sprintf("2001:db8:1::/64 via invalid IP dev %d metric 300", index["ens6"])
	before := routesOf(t, false)

	file := filepath.Join(t.TempDir(), routesFile)
	host := Host{}
	must(host.HoldRoutes(file, []string{"ens5", "ens6"}))
	want := []string{advertised}
	for _, route := range []struct {
		to, by, link string
		metric       int
		more         string
	}{
		{"0.0.0.0/0", "10.0.1.1", "ens5", 102, ""}, {"0.0.0.0/0", "10.0.2.1", "ens6", 201, ""}, {"10.0.1.1/32", "invalid IP", "ens5", 101, ""},
		{"198.51.100.0/24", "192.0.2.1", "ens5", 1, " onlink"},
		{"::/0", "fe80::1", "ens5", 101, ""}, {"::/0", "fe80::1", "ens6", 201, ""}, {"2001:db8:1::/64", "invalid IP", "ens5", 101, ""},
	} {
		want = append(want, fmt.Sprintf("%s via %s dev %d metric %d%s", route.to, route.by, index[route.link], route.metric, route.more))
	}
	slices.Sort(want)
	if diff := cmp.Diff(want, routesOf(t, true)); diff != "" {
		t.Error(diff)
	}
	for _, r := range moving {
		must(netlink.RouteDel(r))
	}
	if diff := cmp.Diff(want, routesOf(t, true)); diff != "" {
		t.Errorf("without those of networkd: %s", diff)
	}
	for _, r := range slices.Backward(moving) {
		must(netlink.RouteAdd(r))
	}
	ens5, err := netlink.LinkByIndex(index["ens5"])
	must(err)
	must(netlink.LinkSetDown(ens5))
	must(netlink.LinkSetName(ens5, "data0"))
	must(netlink.LinkSetUp(ens5))
	for _, r := range moving {
		_ = netlink.RouteAdd(r) // those of IPv4 went with the link
	}
	_ = netlink.RouteAdd(&netlink.Route{LinkIndex: index["ens5"], Dst: &net.IPNet{IP: net.ParseIP("203.0.114.0").To4(), Mask: net.CIDRMask(24, 32)}, Gw: net.ParseIP("10.0.1.1"), Priority: 20, Protocol: static, Tos: 16})
	for _, done := range []bool{false, true, true} {
		must(host.ReleaseRoutes(file, done))
		want := []string{advertised}
		if done {
			want = nil
		}
		if left := routesOf(t, true); !slices.Equal(left, want) {
			t.Errorf("there are %v, want %v", left, want)
		}
	}
	addresses, err := netlink.RouteListFiltered(netlink.FAMILY_V6, &netlink.Route{LinkIndex: index["ens6"]}, netlink.RT_FILTER_OIF)
	must(err)
	if !slices.ContainsFunc(addresses, func(r netlink.Route) bool { return destination(&r).String() == "2001:db8:5::/64" }) {
		t.Error("the route of an address is gone")
	}
	if diff := cmp.Diff(before, routesOf(t, false)); diff != "" {
		t.Error(diff)
	}
	must(host.ReleaseRoutes(filepath.Join(t.TempDir(), routesFile), true))

	// A link that goes takes its own with it.
	must(host.HoldRoutes(file, []string{"data0", "ens6"}))
	must(netlink.LinkDel(ens5))
	must(host.ReleaseRoutes(file, true))
	if left := routesOf(t, true); len(left) > 0 {
		t.Errorf("without a link there are %v", left)
	}
}
