package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// Addresses of the host's own networks in these tests.
const (
	bridge4, container4 = "172.17.0.1", "172.17.0.2"
	bridge6, container6 = "fd00:17::1", "fd00:17::2"
	vpnPeer4, vpnPeer6  = "10.8.0.9", "fd00:8::9"
)

// withContainers keeps networkd off the links of containers: only in the lab they are of the
// same kind as ENIs.
func withContainers(o *vpc.InstanceOptions) {
	o.Files["/etc/systemd/network/10-containers.network"] = "[Match]\nName=c0 docker0 vpn0\n[Link]\nUnmanaged=yes\n"
}

// startContainer makes the bridge docker0 with a container behind it, a network namespace of its own,
// and lets the host forward.
func startContainer(l *labtest.Lab) {
	l.T.Helper()
	l.Run("sh", "-ec", fmt.Sprintf(`echo 1 > /proc/sys/net/ipv4/ip_forward; echo 1 > /proc/sys/net/ipv6/conf/all/forwarding
		ip link add docker0 type bridge; ip addr add %s/16 dev docker0; ip addr add %s/64 dev docker0 nodad; ip link set docker0 up
		ip netns add c; ip link add c0 type veth peer name eth0 netns c; ip link set c0 master docker0 up
		ip -n c link set lo up; ip -n c link set eth0 up
		ip -n c addr add %s/16 dev eth0; ip -n c addr add %s/64 dev eth0 nodad
		ip -n c route add default via %[1]s; ip -n c route add default via %[2]s`, bridge4, bridge6, container4, container6))
}

// checkPings sends pings side by side, each a source and a destination; "c" before them is the
// container, else it is the host. All must be answered.
func checkPings(l *labtest.Lab, what string, all ...[3]string) {
	l.T.Helper()
	var script strings.Builder
	for _, p := range all {
		in := ""
		if p[0] != "" {
			in = "ip netns exec " + p[0] + " "
		}
		// The first may have to wait for a neighbour.
		fmt.Fprintf(&script, "(%sping -n -c 3 -i 0.05 -W 2 -I %s %s >/dev/null || echo '%s %s to %s') &\n", in, p[1], p[2], p[0], p[1], p[2])
	}
	if out := l.Run("sh", "-c", script.String()+"wait"); out != "" {
		l.T.Errorf("%s: not answered:\n%s", what, out)
	}
}

// localRules are the rules that let local networks go first, in both families.
func localRules(l *labtest.Lab) string {
	lines := strings.Split(strings.TrimSpace(linesOf(l.Run("sh", "-c", "ip rule; ip -6 rule"), fmt.Sprintf("suppress_ifgroup %d", plan.Group))), "\n")
	slices.Sort(lines)
	return strings.Join(lines, "\n")
}

// attachUngrouped attaches an ENI to the subnet of another one, which somebody else has a unit for
// with the best route to the subnet. Nobody's addresses must leave by it but its own (B8), and
// so the rules are gone.
func attachUngrouped(l *labtest.Lab, beside *vpc.ENI) *vpc.ENI {
	l.T.Helper()
	l.Put(etcNetwork+"10-netplan-ens19.network", "[Match]\nName=ens19\n[Network]\nDHCP=yes\nIPv6AcceptRA=no\n[DHCPv4]\nRouteMetric=100\nUseGateway=no\n")
	l.Reload()
	eni := l.Attach(vpc.ENISpec{Name: "ens19", DeviceIndex: 19})
	if eni.Subnet() != beside.Subnet() {
		l.T.Fatalf("%s is in another subnet than %s", eni.Name(), beside.Name())
	}
	l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIShadowed })
	l.Until("it has the best route", func() (bool, error) {
		return slices.ContainsFunc(l.Routes("-4", "main"), func(r labtest.Route) bool {
			return r.Dev == eni.Name() && r.Metric == 100 && r.Dst == eni.Subnet().IPv4().String()
		}), nil
	})
	l.Until("the rules are gone", func() (bool, error) { return localRules(l) == "", nil })
	return eni
}

// leftAlone attaches an ENI that networkd leaves alone, because of which the rules are gone.
func leftAlone(l *labtest.Lab) *vpc.ENI {
	l.T.Helper()
	l.Put(etcNetwork+"10-alone.network", "[Match]\nName=ens20\n[Link]\nUnmanaged=yes\n")
	l.Reload()
	eni := l.Attach(vpc.ENISpec{Name: "ens20", DeviceIndex: 20})
	l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIShadowed })
	l.Run("ip", "link", "set", "dev", eni.Name(), "up")
	l.Run("ip", "addr", "add", eni.IPv4()[0].String()+"/24", "dev", eni.Name())
	l.Until("the rules are gone", func() (bool, error) { return localRules(l) == "", nil })
	return eni
}

// followGroupAdvice does what doctor says of an ENI that is not in the group.
func followGroupAdvice(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	// There are problems: the ENI is shadowed.
	out, _ := l.Inst.Exec(l.T.Context(), "ec2netctl", "doctor")
	const dropIn = etcNetwork + "10-netplan-ens19.network.d/group.conf"
	for _, want := range []string{"not in the group of ENIs: " + eni.Name(), fmt.Sprintf("Group=%d in [Link] of %s, then: networkctl reload", plan.Group, dropIn)} {
		if !strings.Contains(out, want) {
			l.T.Errorf("doctor does not say %q:\n%s", want, out)
		}
	}
	l.Run("mkdir", "-p", etcNetwork+"10-netplan-ens19.network.d")
	l.Put(dropIn, fmt.Sprintf("[Link]\nGroup=%d\n", plan.Group))
	l.Reload()
}

// B9: the host's own networks reach the addresses and prefixes of every ENI and are reached
// from them, and what is not for them leaves by the ENI whose address it has (B8).
func TestLabLocalNetworks(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			withContainers(o)
			o.Primary.IPv4Count = 2
		})
		l.AwaitConfigured("ens5")
		if got := localRules(l); got != "" {
			t.Errorf("one ENI, and the rules\n%s", got)
		}
		startContainer(l)
		l.Run("sh", "-ec", `ip tuntap add dev vpn0 mode tun; ip addr add 10.8.0.1/24 dev vpn0; ip addr add fd00:8::1/64 dev vpn0; ip link set vpn0 up`)
		same, other := l.Attach(labtest.HotplugSpec()), l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2, PrefixV4Count: 1})
		enis := []*vpc.ENI{l.Inst.Primary(), same, other}
		for _, eni := range enis {
			l.AwaitConfigured(eni.ID())
		}
		// Addresses of delegated prefixes are the container's.
		var delegated []netip.Addr
		for _, prefix := range same.Prefixes() {
			a := prefix.Addr().Next()
			delegated = append(delegated, a)
			l.Run("sh", "-ec", fmt.Sprintf("ip route add %s dev docker0; ip -n c addr add %s dev eth0 $(case %[2]s in *:*) echo nodad;; esac)", prefix, a))
		}
		check := func(when string) {
			t.Helper()
			l.CountDrops()
			var pings [][3]string
			ping := func(in string, from netip.Addr, to ...netip.Addr) {
				for _, address := range to {
					if from.Is4() == address.Is4() {
						pings = append(pings, [3]string{in, from.String(), address.String()})
					}
				}
			}
			own := []netip.Addr{netip.MustParseAddr(container4), netip.MustParseAddr(container6)}
			for _, eni := range enis {
				away := []netip.Addr{vpc.FarIPv4, vpc.FarIPv6, eni.Subnet().Gateway4()}
				if eni != enis[0] { // the primary has the main table, and that has the subnets of others
					away = append(away, l.Inst.Primary().Subnet().Gateway4(), other.Subnet().Gateway4())
				}
				for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
					ping("", address, slices.Concat(own, delegated, away)...)
					for _, from := range slices.Concat(own, delegated) {
						ping("c", from, address)
					}
				}
			}
			for _, from := range delegated {
				ping("c", from, vpc.FarIPv4, vpc.FarIPv6)
			}
			checkPings(l, when, pings...)
			l.CheckDrops()
			// Nobody is at the other end of this tunnel.
			for _, eni := range enis {
				for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
					to := vpnPeer4
					if address.Is6() {
						to = vpnPeer6
					}
					if out := l.Run("ip", "route", "get", to, "from", address.String()); !strings.Contains(out, "dev vpn0 ") {
						t.Errorf("%s: the way to the VPN: %s", when, out)
					}
				}
			}
		}
		check("after the attach")
		// F13: a VPN that takes everything has two routes in the place of a default route.
		const takesAll = `for to in 0.0.0.0/1 128.0.0.0/1; do ip route ACTION $to dev vpn0; done; for to in ::/1 8000::/1 2000::/3; do ip -6 route ACTION $to dev vpn0; done`
		l.Run("sh", "-ec", strings.ReplaceAll(takesAll, "ACTION", "add"))
		for _, eni := range enis[1:] {
			for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
				to := vpc.FarIPv4
				if address.Is6() {
					to = vpc.FarIPv6
				}
				if out := l.Run("ip", "route", "get", to.String(), "from", address.String()); !strings.Contains(out, "dev "+eni.Name()+" ") {
					t.Errorf("beside a VPN that takes everything: %s", out)
				}
			}
		}
		l.Run("sh", "-ec", strings.ReplaceAll(takesAll, "ACTION", "del"))
		// ENIs of one subnet have one rule: it comes and goes with the last of them.
		rules := localRules(l)
		for _, want := range []string{same.Subnet().IPv4().String(), same.Subnet().IPv6().String(), other.Subnet().IPv4().String()} {
			if strings.Count(rules, "from "+want+" ") != 1 {
				t.Errorf("rules for %s:\n%s", want, rules)
			}
		}
		monitor := l.Monitor("suppress_ifgroup")
		third := l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(third.ID())
		l.Run("systemctl", "restart", "systemd-networkd.service")
		for _, eni := range append(enis, third) {
			l.AwaitConfigured(eni.ID())
		}
		l.Detach(third)
		l.AwaitGone(third, len(enis)+1) // c0 is one more
		if events := monitor(); events != "" || localRules(l) != rules {
			t.Errorf("an ENI of the same subnet came and went: %s\nrules:\n%s\nbefore:\n%s", events, localRules(l), rules)
		}
		check("after a restart of networkd")
		shadowed := attachUngrouped(l, same)
		checkPings(l, "beside an ENI that is not in the group", [3]string{"", other.IPv4()[0].String(), same.Subnet().Gateway4().String()})
		followGroupAdvice(l, shadowed)
		l.Until("the rules are there again", func() (bool, error) { return localRules(l) == rules, nil })
		l.Detach(shadowed)
		l.AwaitGone(shadowed, len(enis)+1)
		// networkd was told to reload, and 252 drops what routers advertised with each reload.
		for _, eni := range enis {
			l.AwaitConfigured(eni.ID())
		}
		check("after an ENI with a unit of somebody else's")
		alone := leftAlone(l)
		l.Run("sh", "-c", l.Between("", ", at each boot")(l.AdviceOf("not in the group of ENIs: "+alone.Name())))
		l.Until("the rules are there after what doctor said", func() (bool, error) { return localRules(l) == rules, nil })
		l.Detach(alone)
		l.AwaitGone(alone, len(enis)+1)
		l.Detach(other)
		l.Detach(same)
		l.Until("the rules are gone", func() (bool, error) { return localRules(l) == "", nil })
	})
}

// B3: on the primary replies to containers use the main table, with PrimaryRules= too.
func TestLabContainersOnPrimary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		t.Run("by default", func(t *testing.T) { testContainersOnPrimary(t, suite, "") })
		t.Run("with PrimaryRules", func(t *testing.T) { testContainersOnPrimary(t, suite, "[ENI]\nPrimary=yes\nPrimaryRules=yes\n") })
	})
}

func testContainersOnPrimary(t *testing.T, suite, settings string) {
	l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
		o.Primary.IPv4Count, o.Primary.PrefixV4Count = 2, 1
		// Only in the lab are containers' links of the same kind as ENIs.
		o.Files["/etc/systemd/network/10-containers.network"] = "[Match]\nName=c0 docker0\n[Link]\nUnmanaged=yes\n"
		o.Files["/etc/ec2netd.conf.d/test.conf"] = settings
	})
	l.AwaitConfigured("ens5")
	l.Run("sh", "-c", `ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up &&
			ip netns add c && ip link add c0 type veth peer name eth0 netns c && ip link set c0 master docker0 up &&
			ip -n c addr add 172.17.0.2/16 dev eth0 && ip -n c link set eth0 up && ip -n c route add default via 172.17.0.1`)
	for _, source := range l.Inst.Primary().IPv4() {
		l.Until("a container answers "+source.String(), func() (bool, error) {
			_, err := l.Inst.Exec(t.Context(), "ping", "-c1", "-W1", "-I", source.String(), "172.17.0.2")
			return err == nil, nil
		})
	}
	// C5: the container's links are none of the daemon's, though they are veths.
	if now := l.Files(); strings.Contains(now, "c0.") || strings.Contains(now, "docker0") {
		t.Errorf("files for links of containers:\n%s", now)
	}
	l.Run("ec2netctl", "refresh", "--wait")
	for _, i := range l.Describe().Interfaces {
		if i.Name == "c0" && (i.State == state.ENIConfigured || len(i.Files) > 0) {
			t.Errorf("%+v", i)
		}
	}
	var want []string
	if settings != "" {
		want = labtest.Sources(l.Inst.Primary())
		if own := l.Routes("-4", "10000"); !slices.ContainsFunc(own, labtest.IsDefault) {
			t.Errorf("table 10000: %+v", own)
		}
	}
	if got := l.Rules(10000); !slices.Equal(got, want) {
		t.Errorf("rules of the primary: %v, want %v", got, want)
	}
	l.CountDrops()
	for _, source := range slices.Concat(l.Inst.Primary().IPv4(), l.Inst.Primary().IPv6()) {
		l.PingFrom(source)
	}
	l.CheckDrops()
}
