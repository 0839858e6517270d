package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// sysctlIPv6 is the sysctl that switches IPv6 off on a link, on all or on those to come.
func sysctlIPv6(link string) string { return "net.ipv6.conf." + link + ".disable_ipv6" }

// disableIPv6 switches the IPv6 of a link, or of all, off and on.
func (l *lab) disableIPv6(link string, off bool) {
	l.t.Helper()
	value := map[bool]string{true: "1", false: "0"}[off]
	l.run("sysctl", "--quiet", "--write", sysctlIPv6(link)+"="+value)
}

// ipv4Only waits until an ENI is configured as one without IPv6, and checks it.
func (l *lab) ipv4Only(eni *vpc.ENI) {
	l.t.Helper()
	i := l.reaches(eni.ID(), func(i *state.Interface) bool {
		return i.State == state.ENIConfigured && i.IPv6NotApplicable != "" && !slices.ContainsFunc(l.rules(i.Table), isIPv6)
	})
	if i.Reason != "" || len(i.Gaps)+len(i.Missing)+len(i.Unwanted) > 0 || !strings.Contains(i.IPv6NotApplicable, sysctlIPv6(eni.Name())) {
		l.t.Errorf("%+v", i)
	}
	for _, address := range eni.IPv6() {
		at := slices.IndexFunc(i.Items, func(item state.Item) bool { return item.Value == address.String() })
		if at < 0 || i.Items[at].NotApplicable != i.IPv6NotApplicable || i.Items[at].Reason != "" {
			l.t.Errorf("%s is not told of as one that does not apply: %+v", address, i.Items)
		}
	}
	l.stillOff(eni)
	if got := l.addresses(eni.Name()); len(got) == 0 || got[0] != eni.IPv4()[0] || !slices.Equal(sorted(got), sorted(eni.IPv4())) {
		l.t.Errorf("%s has %v, want %v", eni.Name(), got, eni.IPv4())
	}
	if i.Table != state.Unknown {
		want := slices.DeleteFunc(sources(eni), isIPv6)
		if got := l.rules(i.Table); !slices.Equal(got, want) {
			l.t.Errorf("rules of table %d: %v, want %v", i.Table, got, want)
		}
	}
	for _, source := range eni.IPv4() {
		l.pingFrom(source)
	}
	l.run("ec2netctl", "diff", eni.ID()) // or it exits with 1
	for _, show := range []string{"show", "status"} {
		if out := l.run("ec2netctl", show, eni.ID()); !strings.Contains(out, "not applicable: IPv6 is disabled on the link") {
			l.t.Errorf("ec2netctl %s:\n%s", show, out)
		}
	}
}

// isIPv6 reports whether an address or prefix is one of IPv6.
func isIPv6(text string) bool { return strings.Contains(text, ":") }

// stillOff checks that nobody has switched the IPv6 of an ENI on.
func (l *lab) stillOff(eni *vpc.ENI) {
	l.t.Helper()
	if got := l.run("sysctl", "--values", sysctlIPv6(eni.Name())); got != "1" {
		l.t.Errorf("%s of %s is %s", "disable_ipv6", eni.Name(), got)
	}
	if got := l.run("ip", "-6", "-brief", "address", "show", "dev", eni.Name()); got != "" {
		l.t.Errorf("IPv6 addresses: %s", got)
	}
}

// dualStack waits until an ENI is configured with its IPv6.
func (l *lab) dualStack(eni *vpc.ENI) {
	l.t.Helper()
	l.configured(eni.ID())
	i := l.reaches(eni.ID(), func(i *state.Interface) bool {
		return i.State == state.ENIConfigured && i.IPv6NotApplicable == ""
	})
	want := sorted(slices.Concat(eni.IPv4(), eni.IPv6()))
	if got := l.addresses(eni.Name()); !slices.Equal(sorted(got), want) {
		l.t.Errorf("%s has %v, want %v", eni.Name(), got, want)
	}
	if i.Table != state.Unknown {
		want := sources(eni)
		if got := l.rules(i.Table); !slices.Equal(got, want) {
			l.t.Errorf("rules of table %d: %v, want %v", i.Table, got, want)
		}
	}
	for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.pingFrom(source)
	}
}

// A13: IPv6 that an administrator switches off while everything runs stays off, on one ENI
// or on all, whoever reloads or restarts networkd, and comes back when it is switched on;
// IPv4 does not notice.
func TestLabIPv6Switched(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv6Count = 2 })
		l.configured("ens5")
		primary, eni := l.inst.Primary(), l.attach(hotplugSpec())
		l.dualStack(eni)
		for _, off := range []*vpc.ENI{eni, primary} {
			other := map[*vpc.ENI]*vpc.ENI{eni: primary, primary: eni}[off]
			lost := l.measurePings4(off, other)
			l.disableIPv6(off.Name(), true)
			l.ipv4Only(off)
			l.run("touch", "/run/systemd/network/70-"+off.Name()+".network.d/50-ec2netd.conf")
			l.run("networkctl", "reload")
			l.run("ec2netctl", "refresh", "--wait")
			l.ipv4Only(off)
			l.dualStack(other)
			l.disableIPv6(off.Name(), false)
			l.dualStack(off)
			l.checkKernel(eni)
			lost()
		}
		l.disableIPv6("all", true)
		third := l.attach(hotplugSpec())
		for _, each := range []*vpc.ENI{primary, eni, third} {
			l.ipv4Only(each)
		}
		l.run("systemctl", "restart", "systemd-networkd.service")
		l.run("ec2netctl", "refresh", "--wait")
		for _, each := range []*vpc.ENI{primary, eni, third} {
			l.reaches(each.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured })
			l.stillOff(each)
		}
		l.disableIPv6("all", false)
		for _, each := range []*vpc.ENI{primary, eni, third} {
			l.dualStack(each)
		}
		if suite != "bookworm" { // there a restart of networkd puts the primary address last
			l.checkKernel(eni)
			l.checkKernel(third)
		}
		l.logOf("warning")
	})
}

// measurePings4 pings by IPv4 from each of the ENIs until the returned function is called,
// which checks that nothing was lost.
func (l *lab) measurePings4(enis ...*vpc.ENI) (check func()) {
	l.t.Helper()
	pings := make(map[netip.Addr]*vpc.Pinger)
	for _, eni := range enis {
		source := eni.IPv4()[0]
		ping, err := l.inst.StartPing(l.t.Context(), source, vpc.FarIPv4, 10*time.Millisecond)
		if err != nil {
			l.t.Fatal(err)
		}
		pings[source] = ping
	}
	return func() {
		l.t.Helper()
		for source, ping := range pings {
			result := ping.Stop()
			if lost, sent := result.LostSinceFirst(); lost > 0 || sent == 0 {
				l.t.Errorf("from %s: %v", source, result)
			}
		}
	}
}

// A13: an instance that boots with IPv6 switched off for all links never has it, and is
// configured.
func TestLabBootWithoutIPv6(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/sysctl.d/90-ipv4.conf"] = sysctlIPv6("all") + "=1\n"
		})
		primary := l.inst.Primary()
		l.ipv4Only(primary)
		eni := l.attach(hotplugSpec())
		l.ipv4Only(eni)
		l.manager(state.Configured)
		if log := l.networkdLog(); strings.Contains(log, "IPv6 successfully enabled") || strings.Contains(log, "Gained IPv6LL") {
			t.Errorf("networkd switched IPv6 on:\n%s", log)
		}
		if out := l.run("ec2netctl", "status"); !strings.Contains(out, "IPv6 is not applicable") {
			t.Errorf("ec2netctl status:\n%s", out)
		}
		l.run("systemctl", "restart", "ec2netd.service")
		l.ipv4Only(primary)
		l.ipv4Only(eni)
		l.logOf("warning")
	})
}
