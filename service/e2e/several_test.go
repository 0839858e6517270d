package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// B1, B4, B5: several network cards, and an attachment that propagates key by key.
func TestLabCards(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		one := 1
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.NetworkCards = 2 })
		got := l.AwaitConfigured("ens5")
		if got.Metric != 512 || !slices.Contains(got.Altnames, "device-number-0.0") {
			t.Errorf("the primary: %+v", got)
		}
		eni := l.Attach(vpc.ENISpec{NetworkCard: &one, DeviceIndex: 1, IPv4Count: 2, Subnet: "b", Propagation: &imds.Propagation{
			Keys: map[string]time.Duration{"device-number": imds.Held, "network-card": imds.Held, "local-ipv4s": imds.Held},
		}})
		pending := func(why string) {
			t.Helper()
			got := l.AwaitENI(eni.MAC().String(), func(i *state.Interface) bool { return i.State == state.ENIPending && strings.Contains(i.Reason, why) })
			if now := l.Files(); strings.Contains(now, eni.Name()+".") {
				t.Errorf("files from an incomplete view (%s):\n%s", got.Reason, now)
			}
			// B6: its default routes are worse than the primary's.
			for _, family := range []string{"-4", "-6"} {
				for _, r := range l.Routes(family, "main") {
					if r.Dst == "default" && (r.Dev == eni.Name()) != (r.Metric == plan.UnknownMetric) {
						t.Errorf("default route (%s) of an ENI that is not known: %+v", family, r)
					}
				}
			}
		}
		pending("local-ipv4s")
		eni.Reveal("local-ipv4s")
		pending("network card")
		eni.Reveal("network-card")
		// (0, 1) is a number that an ENI can have: what is refused is (0, 0).
		eni.Reveal("device-number")
		got = l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.DeviceIndex == 1 })
		if got.Metric != 613 || got.Table != 10101 || got.NetworkCard != 1 {
			t.Errorf("%+v", got)
		}
		l.Until("the kernel has all of it", func() (bool, error) { return slices.Equal(l.Rules(10101), labtest.Sources(eni)), nil })
		l.CountDrops()
		for _, source := range eni.IPv4() {
			l.PingFrom(source)
		}
		l.CheckDrops()
		// The same on card 0: there 0 means that it has not propagated.
		second := l.Attach(vpc.ENISpec{DeviceIndex: 1, IPv4Count: 2, Propagation: &imds.Propagation{
			Keys: map[string]time.Duration{"device-number": imds.Held},
		}})
		l.AwaitENI(second.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIPending && strings.Contains(i.Reason, "device-number 0")
		})
		second.Reveal()
		if got := l.AwaitConfigured(second.ID()); got.Metric != 513 || got.Table != 10001 {
			t.Errorf("%+v", got)
		}
	})
}

// A5: as many ENIs and addresses as an instance can have, at once.
func TestLabMany(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		reloads := l.Describe().Networkd.Reloads
		var enis []*vpc.ENI
		began := time.Now()
		for range 14 {
			enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 50}))
		}
		for _, eni := range enis {
			l.AwaitConfigured(eni.ID())
		}
		t.Logf("14 ENIs of 50 addresses configured after %v, with %d reloads",
			time.Since(began).Round(time.Millisecond), l.Describe().Networkd.Reloads-reloads)
		for _, eni := range enis {
			l.CheckKernel(eni)
		}
		l.CountDrops()
		for _, eni := range enis {
			l.PingFrom(eni.IPv4()[49])
		}
		l.CheckDrops()
	})
}

// B8: with several ENIs in one subnet a packet leaves by the ENI of its source address,
// after the attach, a restart of networkd, and a boot.
func TestLabOneSubnet(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		families := []string{"-4", "-6"}
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			if suite == "bookworm" {
				// After a boot with several ENIs 252 may take the primary's IPv6 address away,
				// and not bring it back for long.
				o.Primary.Subnet, families = "v4", families[:1]
			}
		})
		l.AwaitConfigured("ens5")
		enis := []*vpc.ENI{l.Inst.Primary()}
		for range 3 {
			enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 2}))
		}
		check := func(when string) {
			t.Helper()
			// networkd is at work for a while after its start.
			l.Until("networkd has configured all "+when, func() (bool, error) {
				list := l.Run("networkctl", "list", "--no-legend", "--no-pager")
				for _, eni := range enis {
					_, line, _ := strings.Cut(list, " "+eni.Name()+" ")
					if fields := strings.Fields(line); len(fields) < 3 || fields[2] != "configured" {
						return false, nil
					}
				}
				return true, nil
			})
			for _, eni := range enis {
				l.AwaitConfigured(eni.ID())
			}
			// The default routes of the main table come last, with the lease and a router's
			// advertisement: those of the primary are used by its addresses.
			l.Until("all have their default routes "+when, func() (bool, error) {
				var out []string
				for _, eni := range enis {
					for _, family := range families {
						out = append(out, l.Run("ip", family, "route", "show", "default", "dev", eni.Name()))
					}
				}
				return !slices.Contains(out, ""), nil
			})
			l.CountDrops()
			var pings []*vpc.Pinger
			var ways []string
			for _, eni := range enis {
				for _, from := range slices.Concat(eni.IPv4(), eni.IPv6()) {
					to := []netip.Addr{vpc.FarIPv4, eni.Subnet().Gateway4()}
					if from.Is6() {
						to = []netip.Addr{vpc.FarIPv6}
					}
					for _, to := range to {
						ping, err := l.Inst.StartPing(t.Context(), from, to, 20*time.Millisecond)
						if err != nil {
							t.Fatal(err)
						}
						pings = append(pings, ping)
						ways = append(ways, fmt.Sprintf("%s from %s to %s", when, from, to))
					}
				}
			}
			for n, ping := range pings {
				l.Until(ways[n]+" has answers", func() (bool, error) { return ping.Result().Received >= 10, nil })
			}
			for _, ping := range pings {
				ping.Stop()
			}
			if t.Failed() {
				t.Logf("%s", l.Run("sh", "-c", "ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip neigh; ip -6 neigh"))
				t.FailNow()
			}
			l.CheckDrops()
		}
		check("after the attach")
		l.Run("systemctl", "restart", "systemd-networkd.service")
		check("after a restart of networkd")
		if err := l.Inst.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("after a boot")
	})
}

// B5, B6: ENIs that are not known for longer than a moment have metrics of their own,
// all worse than the primary's, and become what they are when the metadata tells.
func TestLabSeveralUnknown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		var enis []*vpc.ENI
		for range 3 {
			enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{Keys: map[string]time.Duration{"device-number": imds.Held}}}))
		}
		for _, family := range []string{"-4", "-6"} {
			l.Until("default routes ("+family+") of four ENIs with different metrics", func() (bool, error) {
				owner := map[int]string{}
				for _, r := range l.Routes(family, "main") {
					if !labtest.IsDefault(r) {
						continue
					}
					if other, taken := owner[r.Metric]; taken && other != r.Dev {
						return false, nil
					}
					if r.Dev != "ens5" && r.Metric < plan.UnknownMetric {
						return false, fmt.Errorf("%s has the metric %d", r.Dev, r.Metric)
					}
					owner[r.Metric] = r.Dev
				}
				return owner[512] == "ens5" && len(owner) == 4, nil
			})
		}
		for _, eni := range enis {
			if got := l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIPending }); got.Table != state.Unknown {
				t.Errorf("%+v", got)
			}
		}
		for _, eni := range slices.Backward(enis) {
			eni.Reveal()
		}
		for _, eni := range enis {
			l.AwaitConfigured(eni.ID())
			l.CheckKernel(eni)
		}
		l.CountDrops()
		for _, eni := range enis {
			checkAddresses(l, eni)
		}
		l.CheckDrops()
	})
}

// checkAddresses checks that an ENI has all its addresses, that its rules are there, and
// that all of it works.
func checkAddresses(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.CheckOwn(eni)
	for _, source := range eni.IPv4() {
		l.PingFrom(source)
	}
}
