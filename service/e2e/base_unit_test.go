package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// bootAsEC2 boots an instance in a VPC that says by DHCP what EC2 says, at once.
func bootAsEC2(t *testing.T, suite string) *labtest.Lab {
	t.Helper()
	behaviour := vpc.Instant()
	behaviour.MTU, behaviour.DHCP = vpc.EC2().MTU, vpc.EC2().DHCP
	behaviour.DHCP.NTP = []netip.Addr{vpc.TimeSync}
	options := vpc.InstanceOptions{Suite: suite}
	options.Install = func(root string) error { return vpc.InstallTree(t.Context(), root, vpc.StageForTest(t)) }
	v := vpc.ForTest(t, vpc.Options{Behaviour: &behaviour})
	return labtest.New(t, v, vpc.BootForTest(t, v, options))
}

// mtuOf returns the MTU of a link of the instance, as text.
func mtuOf(l *labtest.Lab, name string) string {
	l.T.Helper()
	return l.Run("cat", "/sys/class/net/"+name+"/mtu")
}

// says tells whether the daemon has an MTU as an item of an ENI that the kernel has.
func says(i *state.Interface, mtu string) bool {
	return i.State == state.ENIConfigured && slices.ContainsFunc(i.Items, func(item state.Item) bool {
		return item.Kind == state.ItemMTU && item.Value == mtu && item.Kernel
	})
}

// watchMTU notes the MTUs that links get; the returned function gives those of a link, in
// their order, without repetitions.
func watchMTU(l *labtest.Lab) func(name string) string {
	l.T.Helper()
	const log = "/run/mtu.log"
	l.Run("systemd-run", "--quiet", "--collect", "--unit=mtu", "--property=StandardOutput=truncate:"+log, "ip", "-oneline", "monitor", "link")
	l.Until("ip monitor watches", func() (bool, error) {
		l.Run("sh", "-c", "ip link set lo mtu 65000; ip link set lo mtu 65536")
		return l.Run("sh", "-c", "grep -c 'mtu 65000' "+log+" || true") != "0", nil
	})
	return func(name string) string {
		l.T.Helper()
		var seen []string
		for line := range strings.Lines(l.Run("cat", log)) {
			_, rest, ok := strings.Cut(line, " mtu ")
			if mtu, _, _ := strings.Cut(rest, " "); ok && strings.Contains(line, " "+name) {
				seen = append(seen, mtu)
			}
		}
		return strings.Join(slices.Compact(seen), " ")
	}
}

// A9: the MTU is that of the VPC, or the administrator's, from the first configuration on.
func checkMTUs(l *labtest.Lab) {
	t := l.T
	watched := watchMTU(l)
	eni, six := l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1}), l.Attach(vpc.ENISpec{Subnet: "v6", IPv6Count: 1})
	enis := []*vpc.ENI{l.Inst.Primary(), eni, six}
	all := func(mtu string) {
		t.Helper()
		for _, e := range enis {
			l.AwaitENI(e.ID(), func(i *state.Interface) bool { return says(i, mtu) })
			if got := mtuOf(l, e.Name()); got != mtu {
				t.Errorf("%s has an MTU of %s, want %s", e.Name(), got, mtu)
			}
		}
	}
	all("9001")
	l.Refreshed(func() error {
		_, err := eni.AssignIPv4(t.Context())
		return err
	})
	l.Run("networkctl", "reload")
	l.Run("systemctl", "restart", "systemd-networkd.service")
	l.Run("ec2netctl", "refresh", "--wait")
	all("9001")
	for _, e := range enis {
		if got := strings.TrimPrefix(watched(e.Name()), "1500 "); got != "9001" && got != "" {
			t.Errorf("%s had the MTUs %q one after the other", e.Name(), got)
		}
	}

	// A name before that of the daemon's own drop-in.
	const dropIn = "/etc/systemd/network/80-ec2.network.d/10-mtu.conf"
	l.Put(dropIn, "[Link]\nMTUBytes=1400\n")
	l.Run("ec2netctl", "refresh", "--wait")
	all("1400")
	l.Run("rm", dropIn)
	l.Run("ec2netctl", "refresh", "--wait")
	all("9001")
}

// Things of others that nothing of this may take away: an address, routes, a rule.
const othersOnLink = `
ip addr add 192.0.2.77/32 dev LINK
ip -6 addr add 2001:db8:99::1/128 dev LINK nodad
ip route add 198.51.100.0/24 via GATEWAY dev LINK
ip -6 route add 2001:db8:98::/64 via fe80::ec2:1 dev LINK
ip rule add fwmark 7 lookup 7777 priority 500
ip route add default via GATEWAY dev LINK table 7777
`

// E8: a carrier that is lost for 3 s costs the packets of that time.
func checkCarrierLoss(l *labtest.Lab, eni *vpc.ENI) {
	t := l.T
	l.Run("sh", "-ec", strings.NewReplacer("LINK", eni.Name(), "GATEWAY", eni.Subnet().Gateway4().String()).Replace(othersOnLink))
	l.AwaitConfigured(eni.ID())
	events := l.WatchKernel()
	for _, e := range []*vpc.ENI{l.Inst.Primary(), eni} {
		ping, err := l.VPC.StartPing(t.Context(), vpc.FarIPv6, e.IPv6()[0], labtest.Pace)
		if err != nil {
			t.Fatal(err)
		}
		l.Until("a reply", func() (bool, error) { return ping.Result().Received > 0, nil })
		if err := e.Blip(t.Context(), 3*time.Second); err != nil {
			t.Fatal(err)
		}
		before := ping.Result().Received
		l.Until("replies again", func() (bool, error) { return ping.Result().Received > before+50, nil })
		if lost, sent := ping.Stop().LostSinceFirst(); lost > int(4*time.Second/labtest.Pace) {
			t.Errorf("%s without a carrier for 3 s: %d of %d packets lost", e.Name(), lost, sent)
		}
		l.PingFrom(e.IPv4()[0])
	}
	for _, line := range events() {
		if strings.HasPrefix(line, "Deleted") {
			t.Errorf("a carrier lost for 3 s: %s", line)
		}
	}
}

// F7: masquerading on any link does not take the router away from ENIs.
func checkMasquerades(l *labtest.Lab, enis ...*vpc.ENI) {
	l.T.Helper()
	l.Put("/etc/systemd/network/20-bridge.netdev", "[NetDev]\nName=lab0\nKind=bridge\n")
	l.Put("/etc/systemd/network/20-bridge.network", "[Match]\nName=lab0\n\n[Network]\nAddress=172.30.0.1/24\nIPMasquerade=both\nConfigureWithoutCarrier=yes\n")
	l.Run("systemctl", "restart", "systemd-networkd.service")
	l.Until("networkd forwards", func() (bool, error) {
		return l.Run("cat", "/proc/sys/net/ipv6/conf/all/forwarding", "/proc/sys/net/ipv6/conf/"+enis[0].Name()+"/forwarding") == "1\n1", nil
	})
	for _, e := range enis {
		want := fmt.Sprintf("dev %s proto ra", e.Name())
		l.Until("a router, and the address", func() (bool, error) {
			return strings.Contains(l.Run("ip", "-6", "route", "show", "default"), want) && l.HasAddress(e.Name(), e.IPv6()[0]), nil
		})
		l.PingFrom(e.IPv6()[0])
	}
}

// F6: next hops of others stay, where networkd can be told to leave them.
func checkNextHops(l *labtest.Lab, eni *vpc.ENI) {
	t := l.T
	gateway := eni.Subnet().Gateway4().String()
	l.Run("sh", "-ec", fmt.Sprintf("ip nexthop add id 81 via %s dev ens5; ip nexthop add id 82 via %s dev %s; ip nexthop add id 83 group 81/82; ip route add 198.51.103.0/24 nhid 83",
		gateway, gateway, eni.Name()))
	show := func() string {
		return l.Run("sh", "-c", "ip nexthop show id 81; ip nexthop show id 82; ip nexthop show id 83; ip route show 198.51.103.0/24")
	}
	before := show()
	if !strings.Contains(before, "group 81/82") {
		t.Fatalf("next hops: %s", before)
	}
	other := l.Attach(vpc.ENISpec{IPv4Count: 2})
	l.AwaitConfigured(other.ID())
	l.Refreshed(func() error {
		_, err := eni.AssignIPv4(t.Context())
		return err
	})
	l.Detach(other)

	// While one ENI is left to the base unit, others have that first.
	left := l.Attach(vpc.ENISpec{IPv4Count: 1})
	l.AwaitConfigured(left.ID())
	const conf = "/etc/ec2netd.conf.d/left.conf"
	l.Put(conf, "[ENI]\nName="+left.Name()+"\nManaged=no\n")
	l.Run("systemctl", "reload", "ec2netd.service")
	onBase := func() (bool, error) {
		return strings.Contains(l.Run("networkctl", "status", left.Name()), "80-ec2.network"), nil
	}
	l.Until("the ENI has the base unit", onBase)
	if status := l.Run("networkctl", "status", left.Name()); !strings.Contains(status, plan.BaseDropIn) {
		t.Errorf("the base unit is without its drop-in:\n%s", status)
	}
	other = l.Attach(vpc.ENISpec{IPv4Count: 2})
	l.AwaitConfigured(other.ID())
	if now := show(); now != before {
		t.Errorf("with an ENI that is left to the base unit next hops were %s, and are %s", before, now)
	}
	events := l.WatchKernel()
	l.Run("networkctl", "reload")
	l.Run("systemctl", "restart", "ec2netd.service")
	l.AwaitConfigured(other.ID())
	for _, line := range events() {
		if strings.HasPrefix(line, "Deleted") {
			t.Errorf("a reload and a restart: %s", line)
		}
	}
	l.Run("rm", conf)
	l.Run("systemctl", "reload", "ec2netd.service")
	l.AwaitConfigured(left.ID())
	l.Detach(left)
	l.Detach(other)

	// networkd does not touch groups that were there before it was started.
	l.Run("systemctl", "restart", "systemd-networkd.service")
	l.Run("ec2netctl", "refresh", "--wait")
	if now := show(); now != before {
		t.Errorf("next hops were %s, and are %s", before, now)
	}
}

// A10: names as the VPC means it, each server once, NTP servers, no LLMNR and mDNS.
func checkNames(l *labtest.Lab, enis ...*vpc.ENI) {
	l.T.Helper()
	var last string
	l.UntilOr("resolved knows the ENIs' servers", func() (bool, error) {
		last = l.Run("sh", "-c", "grep -v '^#' /run/systemd/resolve/resolv.conf")
		return strings.Count(last, "nameserver 10.0.0.2") == 1 && strings.Contains(last, "search "+vpc.DefaultDomain), nil
	}, &last)
	for _, e := range enis {
		status := l.Run("resolvectl", "status", e.Name())
		if !strings.Contains(status, "-LLMNR -mDNS") || !strings.Contains(status, vpc.DefaultDomain) {
			l.T.Errorf("%s: %s", e.Name(), status)
		}
	}
	if status := l.Run("resolvectl", "status", "ens5"); !strings.Contains(status, "+DefaultRoute") {
		l.T.Errorf("the primary is no default route for names: %s", status)
	}
	if status := l.Run("networkctl", "status", "ens5"); !strings.Contains(status, vpc.TimeSync.String()) {
		l.T.Errorf("no NTP server: %s", status)
	}
	l.Put("/etc/ec2netd.conf.d/names.conf", "[ENI]\nDeviceIndex=1\nDefaultRoute=no\n")
	l.Run("systemctl", "restart", "ec2netd.service")
	l.Until("the ENI is no default route for names", func() (bool, error) {
		return strings.Contains(l.Run("resolvectl", "status", enis[1].Name()), "-DefaultRoute"), nil
	})
	l.Run("rm", "/etc/ec2netd.conf.d/names.conf")
	l.Run("systemctl", "restart", "ec2netd.service")
	l.AwaitConfigured(enis[1].ID())

	// EC2 sends several domains as one text.
	behaviour := l.VPC.Behaviour()
	for _, names := range [][]string{{"example.com", "corp.example"}, {"corp.example", "example.net"}, {vpc.DefaultDomain}} {
		behaviour.DHCP.Domains = names
		if err := l.VPC.SetBehaviour(behaviour); err != nil {
			l.T.Fatal(err)
		}
		l.Run("networkctl", "renew", "ens5")
		want := "Link 2 (ens5): " + strings.Join(names, " ")
		l.UntilOr(want, func() (bool, error) {
			l.Run("ec2netctl", "refresh", "--wait")
			last = l.Run("resolvectl", "domain", "ens5")
			return last == want, nil
		}, &last)
	}
}

// What the base unit and networkd.conf.d are for, on one instance.
func TestLabBase(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := bootAsEC2(t, suite)
		l.AwaitConfigured("ens5")
		checkMTUs(l)
		eni := l.Inst.ENIs()[1]
		checkNames(l, l.Inst.Primary(), eni)
		checkCarrierLoss(l, eni)
		if suite == "bookworm" {
			l.Run("ip", "nexthop", "add", "id", "81", "dev", "lo")
			if out := l.Run("ec2netctl", "doctor"); !strings.Contains(out, "1 of the next hops") {
				t.Errorf("doctor says nothing of next hops: %s", out)
			}
		} else {
			checkKeptAddresses(l, eni)
			checkNextHops(l, eni)
		}
		checkMasquerades(l, l.Inst.Primary(), eni)
	})
}

// A8, F1: addresses of others stay, and those of ours go that networkd has forgotten.
func checkKeptAddresses(l *labtest.Lab, eni *vpc.ENI) {
	t := l.T
	hand := []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8:99::1")} // see othersOnLink
	has := func(address netip.Addr) bool { return l.HasAddress(eni.Name(), address) }
	events := l.WatchKernel()
	assigned, err := eni.AssignIPv4(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.Run("ec2netctl", "refresh", "--wait")
	for _, change := range []string{"networkctl reload", "networkctl reconfigure " + eni.Name(), "systemctl restart systemd-networkd.service"} {
		l.Run("sh", "-c", change)
		l.Run("ec2netctl", "refresh", "--wait")
	}
	l.Refreshed(func() error { return eni.UnassignIPv4(t.Context(), assigned...) })
	l.Until("the withdrawn address is gone", func() (bool, error) { return !has(assigned[0]), nil })

	// One that somebody has added, and EC2 assigns and withdraws.
	taken := eni.IPv4()[0].Next().Next().Next().Next().Next()
	l.Run("ip", "address", "add", taken.String()+"/32", "dev", eni.Name())
	l.Refreshed(func() error {
		_, err := eni.AssignIPv4(t.Context(), taken)
		return err
	})
	l.PingFrom(taken)
	l.Refreshed(func() error { return eni.UnassignIPv4(t.Context(), taken) })
	l.Run("systemctl", "restart", "ec2netd.service")
	l.AwaitConfigured(eni.ID())
	l.Refreshed(func() error {
		_, err := eni.AssignIPv4(t.Context(), taken)
		return err
	})
	l.Refreshed(func() error { return eni.UnassignIPv4(t.Context(), taken) })
	for _, line := range events() {
		for _, kept := range append(hand, taken) {
			if strings.HasPrefix(line, "Deleted") && strings.Contains(line, " "+kept.String()+"/") {
				t.Errorf("an address of others: %s", line)
			}
		}
	}
	// It is the ENI's when its owner has gone.
	l.Refreshed(func() error {
		_, err := eni.AssignIPv4(t.Context(), taken)
		return err
	})
	l.Run("ip", "address", "del", taken.String()+"/32", "dev", eni.Name())
	l.Until("the address is back", func() (bool, error) { return has(taken), nil })
	l.AwaitConfigured(eni.ID())

	// One that EC2 withdraws while networkd is away.
	l.Run("systemctl", "stop", "systemd-networkd.service", "systemd-networkd.socket")
	if err := eni.UnassignIPv4(t.Context(), taken); err != nil {
		t.Fatal(err)
	}
	l.Until("the files do not have it", func() (bool, error) {
		_, _ = l.Inst.Exec(t.Context(), "ec2netctl", "refresh")
		return !strings.Contains(l.FilesOf(eni.Name()), taken.String()), nil
	})
	l.Run("systemctl", "start", "systemd-networkd.service")
	l.Until("the address is gone", func() (bool, error) { return !has(taken), nil })
	l.AwaitConfigured(eni.ID())
	for _, address := range append(hand, eni.IPv4()...) {
		if !has(address) {
			t.Errorf("%s is gone", address)
		}
	}
}
