package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// backTime is how soon what somebody has taken away must be back (B10).
const backTime = 5 * time.Second

// possessionsOf are the rules of the instance, and the addresses and routes of its ENIs, without
// what differs from time to time.
func possessionsOf(l *labtest.Lab, enis ...*vpc.ENI) []string {
	l.T.Helper()
	on252 := strings.HasSuffix(l.T.Name(), "/bookworm")
	var script strings.Builder
	script.WriteString("ip -4 rule; ip -6 rule;")
	for _, eni := range enis {
		name := eni.Name()
		fmt.Fprintf(&script, "ip -4 route show table all dev %[1]s | sed 's/^/%[1]s /'; ip -6 route show table all dev %[1]s | sed 's/^/%[1]s /';", name)
		fmt.Fprintf(&script, "ip -oneline addr show dev %s scope global;", name)
	}
	var found []string
	for line := range strings.Lines(l.Run("sh", "-c", script.String())) {
		words := strings.Fields(line)
		if len(words) > 0 && strings.HasSuffix(words[0], ":") && strings.Contains(line, "scope global") {
			found = append(found, strings.Join(words[1:4], " "))
			continue
		}
		// networkd 252 drops what a router has advertised with each reload of the link, and has it
		// again when the router says so; a static route does meanwhile.
		if on252 && strings.Contains(line, "proto ra") {
			continue
		}
		// What the kernel makes of addresses by itself follows them.
		if strings.Contains(line, "multicast") || strings.Contains(line, "proto kernel") || strings.Contains(line, "anycast") || strings.Contains(line, "fe80::/64") {
			continue
		}
		for _, varies := range []string{" expires ", " hoplimit ", " mtu ", " pref "} {
			line, _, _ = strings.Cut(line, varies)
		}
		found = append(found, strings.Join(strings.Fields(line), " "))
	}
	slices.Sort(found)
	return slices.Compact(found)
}

// checkRegained runs a command that takes something away from an ENI, and checks that all is back
// in time, that the log names what was gone, and that others lost no packet.
func checkRegained(l *labtest.Lab, what, command, named string, eni *vpc.ENI, all []*vpc.ENI, others ...*vpc.ENI) {
	l.T.Helper()
	before := possessionsOf(l, all...)
	logged := func() string {
		return l.DaemonLog("ENI="+eni.ID(), "--priority=warning")
	}
	said := len(logged())
	var checks []func() *labtest.Losses
	for _, other := range others {
		checks = append(checks, l.MeasurePings(other))
	}
	began := time.Now()
	l.Run("sh", "-c", command)
	if slices.Equal(possessionsOf(l, all...), before) {
		l.T.Errorf("%s: nothing is gone", what)
	}
	var last []string
	l.Until("what was gone is back: "+what, func() (bool, error) {
		last = possessionsOf(l, all...)
		if time.Since(began) > labtest.Patience/2 {
			return false, fmt.Errorf("%s: there is\n%s\nbefore\n%s", what, strings.Join(last, "\n"), strings.Join(before, "\n"))
		}
		return slices.Equal(last, before), nil
	})
	if took := time.Since(began); took > backTime {
		l.T.Errorf("%s: back after %v", what, took)
	} else {
		l.T.Logf("%s: back after %v", what, took.Round(10*time.Millisecond))
	}
	if text := logged()[said:]; !strings.Contains(text, named) {
		l.T.Errorf("%s: %q is not named in the log: %s", what, named, text)
	}
	for i, check := range checks {
		if lost := check(); lost.Lost != (&labtest.Losses{}).Lost {
			l.T.Errorf("%s: %s lost packets: %s", what, others[i].Name(), lost)
		}
	}
	l.AwaitConfigured(eni.ID())
}

// B10: rules, routes and addresses that somebody takes away are back within 5 s, and no other
// ENI loses a packet; who does it again and again is told of.
func TestLabTakenAway(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		primary := l.Inst.Primary()
		eni, other := l.Attach(labtest.HotplugSpec()), l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2})
		all := []*vpc.ENI{primary, eni, other}
		for _, eni := range all {
			l.AwaitConfigured(eni.ID())
		}
		l.Until("the routes by the router are there", func() (bool, error) {
			for _, table := range []string{"10001", "10002"} {
				if !slices.ContainsFunc(l.Routes("-6", table), func(r labtest.Route) bool { return labtest.IsDefault(r) && r.Protocol == "ra" }) {
					return false, nil
				}
			}
			return strings.Contains(l.Run("ip", "-6", "route", "show", "default", "dev", "ens5"), "metric 512"), nil
		})
		source := eni.IPv4()[1].String() + "/32"
		checkRegained(l, "rules of an ENI", "while ip rule del priority 10001; do :; done; while ip -6 rule del priority 10001; do :; done; ip rule del from "+
			eni.Subnet().IPv4().String()+" priority 9999", "rule from "+source+" lookup 10001", eni, all, primary, other)
		checkRegained(l, "an ENI's table", "ip route flush table 10001; ip -6 route flush table 10001", "default route (IPv4) in table 10001", eni, all, primary, other)
		flush := "ip addr flush dev " + eni.Name()
		if suite != "trixie" {
			// 252 and 262 ask for router advertisements anew, and nobody puts back the
			// link-local address that it takes for that.
			flush += " scope global"
		}
		checkRegained(l, "all addresses of an ENI", flush, "address "+eni.IPv4()[0].String(), eni, all, primary, other)
		checkRegained(l, "the default route", "ip route del default dev ens5", "default route (IPv4) with metric 512", primary, all, eni, other)
		checkRegained(l, "the default route, replaced", "ip route replace default via "+other.Subnet().Gateway4().String()+" dev "+other.Name()+" metric 512; ip route del default dev "+
			other.Name()+" metric 512", "default route (IPv4) with metric 512", primary, all)
		// Whoever does that takes the kernel's own too.
		checkRegained(l, "all rules", "ip rule flush; ip rule add priority 32766 table main; ip rule add priority 32767 table default", "lookup 10002", other, all)

		// Who asks for it need not wait.
		l.Run("ip", "rule", "del", "from", source, "priority", "10001")
		l.Run("ec2netctl", "refresh", "--wait")
		if got := l.Rules(10001); !slices.Equal(got, labtest.Sources(eni)) {
			t.Errorf("after a refresh: rules %v, want %v", got, labtest.Sources(eni))
		}

		stolen := other.IPv4()[1].String() + "/32"
		l.Run("systemd-run", "--quiet", "--unit=thief", "sh", "-c", "while :; do ip rule del from "+stolen+" priority 10002 2>/dev/null; sleep 0.2; done")
		reloads := l.Describe().Networkd.Reloads
		got := l.AwaitENI(other.ID(), func(i *state.Interface) bool { return i.State == state.ENIContested })
		if !strings.Contains(got.Reason, "again and again") || l.Describe().State != state.Degraded {
			t.Errorf("%+v, the daemon is %s", got, l.Describe().State)
		}
		if n := l.Describe().Networkd.Reloads - reloads; n > 6 {
			t.Errorf("%d reloads for somebody who takes a rule away", n)
		}
		l.Run("systemctl", "stop", "thief")
		l.AwaitConfigured(other.ID())
		if got := l.Rules(10002); !slices.Equal(got, labtest.Sources(other)) {
			t.Errorf("after somebody has stopped: rules %v, want %v", got, labtest.Sources(other))
		}
	})
}

// E5: an ENI that does not get its address back is configured anew by networkd, and is
// shown as degraded meanwhile.
func TestLabWatchdog(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		taken := l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(taken.ID())
		// One lost its address to somebody, and gets it back at once (B10). The other's DHCP
		// server does not answer.
		l.Run("ip", "address", "del", taken.IPv4()[0].String()+fmt.Sprintf("/%d", taken.Subnet().IPv4().Bits()), "dev", taken.Name())
		l.VPC.Subnet("b").Mute(vpc.DHCPv4)
		muted := l.Attach(vpc.ENISpec{Subnet: "b"})
		l.AwaitENI(muted.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && slices.Contains(i.Missing, "address "+muted.IPv4()[0].String())
		})
		l.AwaitAddress(taken.Name(), taken.IPv4()[0])
		said := func(eni *vpc.ENI) int {
			return strings.Count(l.DaemonLog("ENI="+eni.ID(), "--priority=warning"), "configure the ENI anew")
		}
		l.AwaitConfigured(taken.ID())
		l.Until("networkd was asked to configure the ENI without a DHCP server", func() (bool, error) { return said(muted) > 0, nil })
		if got := l.AwaitENI(muted.ID(), func(*state.Interface) bool { return true }); got.State != state.ENIDegraded {
			t.Errorf("without a DHCP server: %s: %s", got.State, got.Reason)
		}
		if n := said(taken); n > 1 {
			t.Errorf("networkd was asked %d times about the ENI that has a DHCP server", n)
		}
		muted.Subnet().Unmute()
		// networkd asks again by itself now, or when it is asked to the next time: after
		// a minute.
		deadline := time.Now().Add(3 * labtest.Patience)
		for {
			i, ok := l.Describe().Find(muted.ID())
			if ok && i.State == state.ENIConfigured {
				break
			}
			if time.Now().After(deadline) {
				t.Fatalf("not configured after its DHCP server answers again: %+v", i)
			}
			time.Sleep(200 * time.Millisecond)
		}
		checkAddresses(l, muted)
		checkAddresses(l, taken)
	})
}

// A3, B10: the primary address of an ENI that somebody takes away, as a DHCP client does that ends, is
// back, and the first of the link.
func TestLabOrderAfterRepair(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv4Count = 3 })
		l.AwaitConfigured("ens5")
		primary := l.Inst.Primary()
		l.Run("sh", "-ec", "ip address delete $(ip -4 -o address show dev ens5 | grep -o '"+primary.IPv4()[0].String()+"/[0-9]*') dev ens5")
		var last string
		l.UntilOr("the primary address is the first again", func() (bool, error) {
			all := l.Addresses("ens5")
			last = fmt.Sprint(all)
			return len(all) > 0 && all[0] == primary.IPv4()[0], nil
		}, &last)
		if entry := l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured }); entry.Reason != "" {
			t.Error(entry.Reason)
		}
		primaryWhole(l)
	})
}
