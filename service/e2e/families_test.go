package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// A7, A6: a subnet without IPv4, and one without IPv6.
func TestLabOneFamily(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		six := l.Attach(vpc.ENISpec{Subnet: "v6", IPv6Count: 2})
		four := l.Attach(vpc.ENISpec{Subnet: "v4", IPv4Count: 2})
		if got := l.AwaitConfigured(six.ID()); got.Table != 10001 {
			t.Errorf("%+v", got)
		}
		l.AwaitConfigured(four.ID())
		for table, eni := range map[int]*vpc.ENI{10001: six, 10002: four} {
			if got := l.Rules(table); !slices.Equal(got, labtest.Sources(eni)) {
				t.Errorf("rules of table %d: %v, want %v", table, got, labtest.Sources(eni))
			}
		}
		if own := l.Routes("-4", "10001"); len(own) > 0 {
			t.Errorf("IPv4 routes of an ENI without IPv4: %+v", own)
		}
		l.CountDrops()
		for _, source := range slices.Concat(six.IPv6(), four.IPv4()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		l.CheckLog("warning")
	})
}

// A4: IPv6 addresses that DHCPv6 does not hand out are on the primary too.
func TestLabIPv6OnPrimary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv6Count, o.Primary.IPv4Count = 3, 3 })
		l.AwaitConfigured("ens5")
		primary := l.Inst.Primary()
		prefixes, err := l.Inst.Addrs("ens5")
		if err != nil {
			t.Fatal(err)
		}
		var global []netip.Addr
		for _, p := range prefixes {
			if !p.Addr().IsLinkLocalUnicast() {
				global = append(global, p.Addr())
				if p.Addr().Is6() && p.Bits() != 128 {
					t.Errorf("%s is not a /128", p)
				}
			}
		}
		if want := slices.Concat(primary.IPv4(), primary.IPv6()); !slices.Equal(labtest.Sorted(global), labtest.Sorted(want)) || global[0] != want[0] {
			t.Errorf("addresses %v, want %v", global, want)
		}
		for _, source := range slices.Concat(primary.IPv4(), primary.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// sysctlIPv6 is the sysctl that switches IPv6 off on a link, on all or on those to come.
func sysctlIPv6(link string) string { return "net.ipv6.conf." + link + ".disable_ipv6" }

// disableIPv6 switches the IPv6 of a link, or of all, off and on.
func disableIPv6(l *labtest.Lab, link string, off bool) {
	l.T.Helper()
	value := map[bool]string{true: "1", false: "0"}[off]
	l.Run("sysctl", "--quiet", "--write", sysctlIPv6(link)+"="+value)
}

// checkIPv4Only waits until an ENI is configured as one without IPv6, and checks it.
func checkIPv4Only(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	i := l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
		return i.State == state.ENIConfigured && i.IPv6NotApplicable != "" && !slices.ContainsFunc(l.Rules(i.Table), isIPv6)
	})
	if i.Reason != "" || len(i.Gaps)+len(i.Missing)+len(i.Unwanted) > 0 || !strings.Contains(i.IPv6NotApplicable, sysctlIPv6(eni.Name())) {
		l.T.Errorf("%+v", i)
	}
	for _, address := range eni.IPv6() {
		at := slices.IndexFunc(i.Items, func(item state.Item) bool { return item.Value == address.String() })
		if at < 0 || i.Items[at].NotApplicable != i.IPv6NotApplicable || i.Items[at].Reason != "" {
			l.T.Errorf("%s is not told of as one that does not apply: %+v", address, i.Items)
		}
	}
	checkStillOff(l, eni)
	if got := l.Addresses(eni.Name()); len(got) == 0 || got[0] != eni.IPv4()[0] || !slices.Equal(labtest.Sorted(got), labtest.Sorted(eni.IPv4())) {
		l.T.Errorf("%s has %v, want %v", eni.Name(), got, eni.IPv4())
	}
	if i.Table != state.Unknown {
		want := slices.DeleteFunc(labtest.Sources(eni), isIPv6)
		if got := l.Rules(i.Table); !slices.Equal(got, want) {
			l.T.Errorf("rules of table %d: %v, want %v", i.Table, got, want)
		}
	}
	for _, source := range eni.IPv4() {
		l.PingFrom(source)
	}
	l.Run("ec2netctl", "diff", eni.ID()) // or it exits with 1
	for _, show := range []string{"show", "status"} {
		if out := l.Run("ec2netctl", show, eni.ID()); !strings.Contains(out, "not applicable: IPv6 is disabled on the link") {
			l.T.Errorf("ec2netctl %s:\n%s", show, out)
		}
	}
}

// isIPv6 reports whether an address or prefix is one of IPv6.
func isIPv6(text string) bool { return strings.Contains(text, ":") }

// checkStillOff checks that nobody has switched the IPv6 of an ENI on.
func checkStillOff(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	if got := l.Run("sysctl", "--values", sysctlIPv6(eni.Name())); got != "1" {
		l.T.Errorf("%s of %s is %s", "disable_ipv6", eni.Name(), got)
	}
	if got := l.Run("ip", "-6", "-brief", "address", "show", "dev", eni.Name()); got != "" {
		l.T.Errorf("IPv6 addresses: %s", got)
	}
}

// checkDualStack waits until an ENI is configured with its IPv6.
func checkDualStack(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.AwaitConfigured(eni.ID())
	i := l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
		return i.State == state.ENIConfigured && i.IPv6NotApplicable == ""
	})
	want := labtest.Sorted(slices.Concat(eni.IPv4(), eni.IPv6()))
	if got := l.Addresses(eni.Name()); !slices.Equal(labtest.Sorted(got), want) {
		l.T.Errorf("%s has %v, want %v", eni.Name(), got, want)
	}
	if i.Table != state.Unknown {
		want := labtest.Sources(eni)
		if got := l.Rules(i.Table); !slices.Equal(got, want) {
			l.T.Errorf("rules of table %d: %v, want %v", i.Table, got, want)
		}
	}
	for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.PingFrom(source)
	}
}

// A13: IPv6 that an administrator switches off while everything runs stays off, on one ENI
// or on all, whoever reloads or restarts networkd, and comes back when it is switched on;
// IPv4 does not notice.
func TestLabIPv6Switched(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv6Count = 2 })
		l.AwaitConfigured("ens5")
		primary, eni := l.Inst.Primary(), l.Attach(labtest.HotplugSpec())
		checkDualStack(l, eni)
		for _, off := range []*vpc.ENI{eni, primary} {
			other := map[*vpc.ENI]*vpc.ENI{eni: primary, primary: eni}[off]
			lost := measurePings4(l, off, other)
			disableIPv6(l, off.Name(), true)
			checkIPv4Only(l, off)
			l.Run("touch", "/run/systemd/network/70-"+off.Name()+".network.d/50-ec2netd.conf")
			l.Run("networkctl", "reload")
			l.Run("ec2netctl", "refresh", "--wait")
			checkIPv4Only(l, off)
			checkDualStack(l, other)
			disableIPv6(l, off.Name(), false)
			checkDualStack(l, off)
			l.CheckKernel(eni)
			lost()
		}
		disableIPv6(l, "all", true)
		third := l.Attach(labtest.HotplugSpec())
		for _, each := range []*vpc.ENI{primary, eni, third} {
			checkIPv4Only(l, each)
		}
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.Run("ec2netctl", "refresh", "--wait")
		for _, each := range []*vpc.ENI{primary, eni, third} {
			l.AwaitENI(each.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured })
			checkStillOff(l, each)
		}
		disableIPv6(l, "all", false)
		for _, each := range []*vpc.ENI{primary, eni, third} {
			checkDualStack(l, each)
		}
		if suite != "bookworm" { // there a restart of networkd puts the primary address last
			l.CheckKernel(eni)
			l.CheckKernel(third)
		}
		l.CheckLog("warning")
	})
}

// measurePings4 pings by IPv4 from each of the ENIs until the returned function is called,
// which checks that nothing was lost.
func measurePings4(l *labtest.Lab, enis ...*vpc.ENI) (check func()) {
	l.T.Helper()
	pings := make(map[netip.Addr]*vpc.Pinger)
	for _, eni := range enis {
		source := eni.IPv4()[0]
		ping, err := l.Inst.StartPing(l.T.Context(), source, vpc.FarIPv4, 10*time.Millisecond)
		if err != nil {
			l.T.Fatal(err)
		}
		pings[source] = ping
	}
	return func() {
		l.T.Helper()
		for source, ping := range pings {
			result := ping.Stop()
			if lost, sent := result.LostSinceFirst(); lost > 0 || sent == 0 {
				l.T.Errorf("from %s: %v", source, result)
			}
		}
	}
}

// A13: an instance that boots with IPv6 switched off for all links never has it, and is
// configured.
func TestLabBootWithoutIPv6(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/sysctl.d/90-ipv4.conf"] = sysctlIPv6("all") + "=1\n"
		})
		primary := l.Inst.Primary()
		checkIPv4Only(l, primary)
		eni := l.Attach(labtest.HotplugSpec())
		checkIPv4Only(l, eni)
		l.AwaitManager(state.Configured)
		if log := l.NetworkdLog(); strings.Contains(log, "IPv6 successfully enabled") || strings.Contains(log, "Gained IPv6LL") {
			t.Errorf("networkd switched IPv6 on:\n%s", log)
		}
		if out := l.Run("ec2netctl", "status"); !strings.Contains(out, "IPv6 is not applicable") {
			t.Errorf("ec2netctl status:\n%s", out)
		}
		l.Run("systemctl", "restart", "ec2netd.service")
		checkIPv4Only(l, primary)
		checkIPv4Only(l, eni)
		l.CheckLog("warning")
	})
}
