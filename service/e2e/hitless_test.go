package e2e

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// hitlessSteps are changes that cost an ENI nothing on any systemd, once its IPv6 is as it must
// be for that.
func hitlessSteps(l *labtest.Lab, eni *vpc.ENI) []step {
	ctx := l.T.Context()
	return []step{
		{"add", func() {
			l.Refreshed(func() error {
				if _, err := eni.AssignIPv4(ctx); err != nil {
					return err
				}
				_, err := eni.AssignIPv6(ctx)
				return err
			})
		}},
		{"remove", func() {
			l.Refreshed(func() error {
				if err := eni.UnassignIPv4(ctx, eni.IPv4()[1:]...); err != nil {
					return err
				}
				return eni.UnassignIPv6(ctx, eni.IPv6()[1:]...)
			})
		}},
		{"prefix", func() {
			l.Refreshed(func() error {
				_, err := eni.AssignPrefixV4(ctx)
				return err
			})
			l.Refreshed(func() error { return eni.UnassignPrefix(ctx, eni.Prefixes()...) })
		}},
		{"neighbour attached and detached", func() {
			other := l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1})
			l.AwaitConfigured(other.ID())
			l.Detach(other)
			l.Until("it is gone", func() (bool, error) {
				return len(l.Units(other.MAC())) == 0 && len(l.Rules(labtest.TableOf(other))) == 0, nil
			})
			if err := other.Delete(ctx); err != nil {
				l.T.Fatal(err)
			}
		}},
		{"third party reloads", func() {
			for _, change := range []string{"mkdir -p /etc/systemd/network/80-ec2.network.d && echo '[Network]' >", "rm "} {
				l.Run("sh", "-c", change+"/etc/systemd/network/80-ec2.network.d/other.conf")
				l.Reload()
				l.Run("ec2netctl", "refresh", "--wait")
			}
		}},
		{"daemon restarted", func() {
			l.Run("systemctl", "restart", "ec2netd.service")
			l.AwaitConfigured(eni.ID())
		}},
	}
}

type step struct {
	name string
	do   func()
}

// addForeignPaths adds routes and a rule of somebody else's that lead out of an ENI; the returned
// function checks that they are there.
func addForeignPaths(l *labtest.Lab, eni *vpc.ENI) func(when string) {
	l.T.Helper()
	gateway := eni.Subnet().Gateway4().String()
	l.Run("ip", "route", "add", "198.51.100.0/24", "via", gateway, "dev", eni.Name())
	l.Run("ip", "route", "add", "198.51.100.0/24", "via", gateway, "dev", eni.Name(), "table", "77")
	l.Run("ip", "rule", "add", "fwmark", "7", "lookup", "77", "priority", "50")
	return func(when string) {
		l.T.Helper()
		for _, table := range []string{"main", "77"} {
			if l.Run("ip", "route", "show", "198.51.100.0/24", "table", table) == "" {
				l.T.Errorf("after %s the route of somebody else's in table %s is gone", when, table)
			}
		}
		if !strings.Contains(l.Run("ip", "rule"), "fwmark 0x7 lookup 77") {
			l.T.Errorf("after %s the rule of somebody else's is gone", when)
		}
	}
}

// measureReboot is what happens in a boot to the pings of an ENI since their first reply.
func measureReboot(l *labtest.Lab, eni *vpc.ENI) *labtest.Losses {
	l.T.Helper()
	if err := l.Inst.Shutdown(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
	finish := l.MeasurePings(eni)
	if err := l.Inst.Boot(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
	for _, eni := range l.Inst.ENIs() {
		l.AwaitConfigured(eni.ID())
	}
	return finish()
}

// timesConfigured is how often networkd configured a link again in this boot.
func timesConfigured(l *labtest.Lab, name string) int {
	l.T.Helper()
	return strings.Count(l.NetworkdLog(), name+": Reconfiguring")
}

// checkUntouched checks that networkd configured a link once in this boot, and kept its leases.
func checkUntouched(l *labtest.Lab, name string) {
	l.T.Helper()
	log := l.NetworkdLog()
	if strings.Contains(log, name+": Reconfiguring") || strings.Contains(log, "lease lost") {
		l.T.Errorf("networkd has touched %s:\n%s", name, log)
	}
}

// E1, E2, E6: what the life of an instance costs its primary ENI.
func TestLabHitlessPrimary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		primary := l.Inst.Primary()
		l.AwaitConfigured("ens5")
		checkUntouched(l, "ens5")
		old := suite == "bookworm"
		hitless := func(what string, cost *labtest.Losses) {
			t.Helper()
			t.Logf("%s: %s", what, cost)
			if !cost.None() {
				t.Errorf("%s cost %s", what, cost)
			}
			for _, line := range cost.Deleted {
				// Beside what 252 drops of a router with each reload stands a static route.
				if !old || !strings.Contains(line, " proto ra ") {
					for _, kept := range []string{primary.IPv4()[0].String() + "/", primary.IPv6()[0].String() + "/", "default"} {
						if strings.Contains(line, kept) {
							t.Errorf("%s: %s", what, line)
						}
					}
				}
			}
		}
		// E7: a restart, as an upgrade of systemd does it, while the IPv6 address is that of DHCPv6.
		// networkd 252 gives such a lease up when it stops, with the address.
		if !old {
			early := l.Measured(primary, func() { l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service") })
			t.Logf("networkd restarted before any change: %s", early)
			if !early.None() {
				t.Errorf("networkd restarted before any change cost %s", early)
			}
		}
		steps := hitlessSteps(l, primary)
		first := l.Measured(primary, steps[0].do)
		t.Logf("the first change: %s", first)
		// The exception (E2): 252 makes it cost IPv6 something to become static, once.
		if first.Lost[0]+first.Lost[1] > 0 || (!old && !first.None()) {
			t.Errorf("the first change cost %s", first)
		}
		hitless("changes", l.Measured(primary, func() {
			for _, s := range steps[1:] {
				s.do()
			}
			steps[0].do()
		}))
		for _, source := range append(primary.IPv4(), primary.IPv6()...) {
			l.PingFrom(source)
		}

		// A router with another address is followed, and one that is silent is used on.
		subnet := primary.Subnet()
		if err := subnet.SetRouter(netip.MustParseAddr("fe80::ec2:2")); err != nil {
			t.Fatal(err)
		}
		l.Until("there is a route by the new router", func() (bool, error) {
			return strings.Contains(l.Run("ip", "-6", "route", "show", "default"), "fe80::ec2:2"), nil
		})
		steps[1].do()
		if old {
			by := func(protocol, router string) bool {
				return strings.Contains(l.Run("ip", "-6", "route", "show", "default", "proto", protocol), router)
			}
			l.Until("there are routes by the new router", func() (bool, error) {
				return by("static", "fe80::ec2:2") && by("ra", "fe80::ec2:2"), nil
			})
			// The one before may be written down as well, until the next change after it has gone.
			steps[0].do()
			l.Until("the static route is that of the new router alone", func() (bool, error) {
				return by("static", "fe80::ec2:2") && !by("static", "fe80::ec2:1"), nil
			})
			steps[1].do()
		}
		l.PingFrom(primary.IPv6()[0])
		subnet.Mute(vpc.RA)
		hitless("a silent router", l.Measured(primary, steps[0].do))
		subnet.Unmute(vpc.RA)

		// E7: so is a restart of networkd, which loses what was advertised, or takes the lease's
		// address away: by the daemon, by itself, and where networkd is killed.
		foreign := addForeignPaths(l, primary)
		again := func(what string, command ...string) {
			t.Helper()
			cost := l.Measured(primary, func() { l.RestartNetworkd(command...) })
			t.Logf("networkd %s: %s", what, cost)
			if !cost.None() {
				t.Errorf("networkd %s cost %s", what, cost)
			}
			foreign("networkd was " + what)
		}
		again("restarted", "systemctl", "restart", "systemd-networkd.service")
		// While the daemon looks at it all the time, too: it sees networkd go and come.
		l.Run("systemd-run", "--quiet", "--unit=busy", "sh", "-c", "for i in $(seq 200); do ec2netctl refresh; done")
		again("restarted under a busy daemon", "systemctl", "restart", "systemd-networkd.service")
		l.Run("systemctl", "stop", "busy.service")
		// 262 takes 45 s, as a unit of its own waits for the networkd that was killed.
		again("killed", "systemctl", "kill", "--signal=KILL", "systemd-networkd.service")

		// E1: the next boot knows what this one knew: nothing is configured twice, with a
		// second ENI too.
		steps[1].do()
		second := l.Attach(vpc.ENISpec{IPv6Count: 1})
		l.AwaitConfigured(second.ID())
		// A router is kept once it has advertised itself.
		l.Until("the hint is whole", func() (bool, error) {
			return strings.Count(l.Run("cat", "/var/lib/ec2netd/boot.json"), "fe80::ec2:2") == 2, nil
		})
		hitless("boot", measureReboot(l, primary))
		for _, name := range []string{"ens5", second.Name()} {
			checkUntouched(l, name)
		}
		l.CheckKernel(second)
		for _, eni := range l.Inst.ENIs() {
			for _, source := range append(eni.IPv4(), eni.IPv6()...) {
				l.PingFrom(source)
			}
		}
		// What changed while it was off is right nevertheless, at the cost of one reload.
		if err := l.Inst.Shutdown(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := primary.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		if _, err := second.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		finish := l.MeasurePings(primary)
		if err := l.Inst.Boot(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(second.ID())
		hitless("boot with another address", finish())
		l.CheckKernel(second)
		if n := timesConfigured(l, "ens5"); n > 1 {
			t.Errorf("networkd configured ens5 %d times anew:\n%s", n, l.NetworkdLog())
		}
		if n := timesConfigured(l, second.Name()); n > 1 {
			t.Errorf("networkd configured %s %d times anew:\n%s", second.Name(), n, l.NetworkdLog())
		}

		// Without a hint.
		l.Run("rm", "/var/lib/ec2netd/boot.json")
		bare := measureReboot(l, primary)
		t.Logf("boot without a hint: %s", bare)
		// The link that was there first is taken for the primary until the metadata answers,
		// so networkd 252 need not take its lease away for the sake of its metric.
		if bare.Lost[0] > 0 || bare.Lost[1] > 0 {
			t.Errorf("a boot without a hint cost IPv4: %s", bare)
		}
		// On 252 its IPv6 becomes static, in two steps where DHCPv6 has brought the address by
		// then: it must be given up first.
		limit := 1
		if old {
			limit++
		}
		if n := timesConfigured(l, "ens5"); n > limit {
			t.Errorf("networkd configured ens5 %d times anew:\n%s", n, l.NetworkdLog())
		}
		l.CheckKernel(second)
	})
}

// E2: addresses come and go on a secondary ENI, on 252 too, and no packet of its other
// addresses is lost, IPv4 or IPv6, near or far.
func TestLabHitlessSecondary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		var pings []*vpc.Pinger
		for _, to := range []netip.Addr{vpc.FarIPv4, eni.Subnet().Gateway4(), vpc.FarIPv6, eni.Subnet().Gateway6()} {
			from := eni.IPv4()[0]
			if to.Is6() {
				from = eni.IPv6()[0]
			}
			ping, err := l.Inst.StartPing(t.Context(), from, to, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			pings = append(pings, ping)
		}
		l.CountDrops()
		refresh := func(what string, change func() error) {
			t.Helper()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			l.Run("ec2netctl", "refresh", "--wait")
			if got, want := l.Rules(10001), labtest.Sources(eni); !slices.Equal(got, want) {
				t.Errorf("%s: rules %v, want %v", what, got, want)
			}
			l.CheckKernel(eni)
		}
		for range 2 {
			refresh("assign", func() error {
				_, err := eni.AssignIPv4(t.Context())
				return err
			})
			refresh("assign IPv6", func() error {
				_, err := eni.AssignIPv6(t.Context())
				return err
			})
			refresh("unassign", func() error { return eni.UnassignIPv4(t.Context(), eni.IPv4()[1]) })
			refresh("unassign IPv6", func() error { return eni.UnassignIPv6(t.Context(), eni.IPv6()[1]) })
			refresh("unassign a prefix", func() error { return eni.UnassignPrefix(t.Context(), eni.Prefixes()[0]) })
			refresh("assign a prefix", func() error {
				_, err := eni.AssignPrefixV4(t.Context())
				return err
			})
		}
		for _, ping := range pings {
			if result := ping.Stop(); result.Received != result.Sent || result.Sent < 20 {
				t.Errorf("%s", result)
			}
		}
		l.CheckDrops()
		l.CheckLog("warning")
	})
}
