package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// foreignThings are rules, routes and addresses in the style of others; ENI, TABLE and
// LINK are those of an ENI.
const foreignThings = `set -e
# Docker: a bridge with an address.
ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up
ip addr add 192.0.2.200/32 dev docker0
# Cilium: marks, its own tables, low priorities.
ip rule add fwmark 0x200/0xf00 lookup 2004 priority 9 protocol kernel
ip -6 rule add fwmark 0x200/0xf00 lookup 2004 priority 9 protocol kernel
ip rule add fwmark 0xa00/0xf00 lookup 2005 priority 10 protocol kernel
ip rule add from all lookup 2005 priority 100 protocol boot
ip rule add from 10.0.16.77 lookup 2005 priority 111
ip route add local 198.51.100.1 dev lo table 2004 protocol kernel
ip route add 10.222.0.0/16 dev docker0 table 2005 protocol boot
# AWS VPC CNI: tables from 2 on, and those from 10001 on that it finds.
ip rule add to 10.0.16.200 lookup main priority 512
ip rule add fwmark 0x80/0x80 lookup main priority 1024
ip rule add from 10.0.16.200 lookup 2 priority 1536
ip route add 10.0.16.201 dev docker0 scope link table 2
ip route add 10.0.16.200 dev docker0 scope link table TABLE
ip route add 10.0.16.202 dev LINK scope link table 3
ip rule add from 10.0.16.201 lookup TABLE priority 1536
# Tailscale.
for p in 5210 5230 5250 5270; do
  ip rule add fwmark 0x80000/0xff0000 lookup 52 priority $p
  ip -6 rule add fwmark 0x80000/0xff0000 lookup 52 priority $p
done
ip route add 100.64.0.0/10 dev docker0 table 52
# WireGuard, as wg-quick does it.
ip rule add not fwmark 51820 lookup 51820 priority 32764
ip rule add lookup main suppress_prefixlength 0 priority 32763
ip route add 198.18.0.0/15 dev docker0 table 51820
# keepalived.
ip rule add from 192.0.2.200 lookup 200 priority 200 protocol 18
ip route add 192.0.2.128/25 dev docker0 table 200 protocol 18
# An administrator's, made as networkd makes rules, with the numbers of an ENI too.
ip rule add from 192.0.2.9 lookup TABLE priority TABLE protocol static
ip rule add from 192.0.2.10 lookup main priority TABLE protocol static
ip rule add from 10.0.16.77 fwmark 5 lookup TABLE priority TABLE protocol static
ip -6 rule add from 2001:db8:99::/64 lookup 77 priority 77 protocol static
ip route add 192.0.2.64/26 dev LINK table 77 protocol static
ip route add 192.0.2.32/27 dev LINK protocol static
`

// everyObject are the rules and routes of the kernel and the addresses that belong to no
// ENI, by lines, and how often each is there: rules are alike in both families.
func everyObject(l *labtest.Lab) map[string]int {
	l.T.Helper()
	out := l.Run("sh", "-c", "ip -4 rule; ip -6 rule; ip -4 route show table all; ip -6 route show table all; ip -oneline addr show dev docker0 2>/dev/null || true")
	lines := make(map[string]int)
	for line := range strings.Lines(out) {
		lines[strings.Join(strings.Fields(line), " ")]++
	}
	return lines
}

// addForeign adds things of others, and returns a function that checks that all of them
// are there, and have been there all the time.
func addForeign(l *labtest.Lab, eni *vpc.ENI, table int) (check func(what string)) {
	l.T.Helper()
	before := everyObject(l)
	script := strings.NewReplacer("TABLE", fmt.Sprint(table), "LINK", eni.Name()).Replace(foreignThings)
	l.Run("sh", "-c", script)
	foreign := make(map[string]int)
	for line, count := range everyObject(l) {
		if count > before[line] && !strings.Contains(line, "proto ra") && !strings.Contains(line, "fe80::") {
			foreign[line] = count
		}
	}
	if len(foreign) < 30 {
		l.T.Fatalf("only %d things of others: %v", len(foreign), foreign)
	}
	const log = "/run/foreign.log"
	l.Run("systemd-run", "--quiet", "--unit=foreign", "--property=StandardOutput=file:"+log, "ip", "monitor", "route", "rule", "address")
	l.Until("ip monitor watches", func() (bool, error) {
		l.Run("sh", "-c", "ip rule add from 192.0.2.1 priority 31999 table 31999; ip rule del from 192.0.2.1 priority 31999")
		return l.Run("sh", "-c", "grep -c 31999 "+log+" || true") != "0", nil
	})
	return func(what string) {
		l.T.Helper()
		now := everyObject(l)
		for line, count := range foreign {
			if now[line] < count {
				l.T.Errorf("%s: gone: %s", what, line)
			}
		}
		for line := range strings.Lines(l.Run("cat", log)) {
			deleted, ok := strings.CutPrefix(strings.Join(strings.Fields(line), " "), "Deleted ")
			if ok && foreign[deleted] > 0 {
				l.T.Errorf("%s: was gone for a moment: %s", what, deleted)
			}
		}
	}
}

// ownRules waits until the rules with the numbers of ENIs are those of the ENIs that are
// attached, but for an administrator's.
func ownRules(l *labtest.Lab, what string, enis map[int]*vpc.ENI) {
	l.T.Helper()
	var last string
	l.UntilOr(what+": the rules are those of the ENIs", func() (bool, error) {
		want := []string{}
		for table, eni := range enis {
			for _, source := range labtest.Sources(eni) {
				want = append(want, fmt.Sprintf("%d: from %s lookup %d proto static", table, source, table))
			}
		}
		got := []string{}
		for line := range everyObject(l) {
			if strings.HasPrefix(line, "1000") && strings.Contains(line, "proto static") && !strings.Contains(line, "192.0.2.") && !strings.Contains(line, "fwmark") {
				got = append(got, line)
			}
		}
		slices.Sort(want)
		slices.Sort(got)
		last = fmt.Sprintf("%q\nwant %q", got, want)
		return slices.Equal(got, want), nil
	}, &last)
}

// E4: somebody touches a drop-in of the base unit and reloads, twenty times, as soon as
// there is a lease. IPv4 stays. (IPv6 by DHCPv6 does not on 252: that is networkd's.)
func TestLabThirdPartyReloads(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		primary := l.Inst.Primary().IPv4()[0]
		l.AwaitAddress("ens5", primary)
		monitor := l.Monitor("ens5")
		ping, err := l.Inst.StartPing(t.Context(), primary, vpc.FarIPv4, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		const dropIn = "/etc/systemd/network/80-ec2.network.d/third.conf"
		reload := "for i in 1 2 3 4 5 6 7 8 9 10; do touch " + dropIn + "; until networkctl reload 2>/dev/null; do sleep 0.01; done; done"
		l.Put(dropIn, "[Network]\n")
		l.Run("sh", "-c", reload)
		// Once the daemon has linked the drop-in, it is one of the link's unit.
		l.Run("ec2netctl", "refresh")
		l.Until("the drop-in of the base unit is in force", func() (bool, error) {
			return strings.Contains(l.Run("ls", "/run/systemd/network/70-ens5.network.d"), "third.conf"), nil
		})
		l.Run("sh", "-c", reload)
		l.Until("networkd has done what it was asked to", func() (bool, error) {
			said := l.NetworkdLog()
			return strings.LastIndex(said, "ens5: DHCPv4 address") > strings.LastIndex(said, "ens5: Reconfiguring"), nil
		})
		if result := ping.Stop(); result.Received != result.Sent || result.Sent < 20 {
			t.Errorf("pings over twenty reloads: %s", result)
		}
		for event := range strings.Lines(monitor()) {
			if strings.HasPrefix(event, "Deleted") && ipv4.MatchString(event) {
				t.Errorf("over twenty reloads: %s", event)
			}
		}
		if reconfigured := strings.Count(l.NetworkdLog(), "ens5: Reconfiguring"); reconfigured < 5 {
			t.Errorf("the reloads were for nothing: the link was configured anew %d times", reconfigured)
		}
	})
}

// ipv4 finds an IPv4 address in a line of ip monitor.
var ipv4 = regexp.MustCompile(`\b\d+\.\d+\.\d+\.\d+\b`)

// F1, F5: rules, routes and addresses of others survive all that happens, and rules of this
// daemon that networkd forgot do not, whoever was down or restarted when they were to go.
func TestLabOthersThings(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			// On 262 a networkd that was killed starts 45 s later: this unit, which is stopped
			// and started with it, waits for it in vain, and it for this unit.
			labtest.MaskFile(o, "etc/systemd/system/systemd-networkd-persistent-storage.service")
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(vpc.ENISpec{IPv4Count: 6, PrefixV4Count: 2})
		l.AwaitConfigured(eni.ID())
		foreign := addForeign(l, eni, 10001)
		enis := map[int]*vpc.ENI{10001: eni}
		refresh := func(what string) {
			t.Helper()
			l.Run("ec2netctl", "refresh", "--wait")
			for _, attached := range enis {
				l.AwaitConfigured(attached.ID())
			}
			ownRules(l, what, enis)
			foreign(what)
		}
		unassign := func() {
			t.Helper()
			if err := eni.UnassignIPv4(t.Context(), eni.IPv4()[1]); err != nil {
				t.Fatal(err)
			}
		}
		attach := func() *vpc.ENI {
			t.Helper()
			added := l.Attach(vpc.ENISpec{IPv4Count: 2})
			l.AwaitConfigured(added.ID())
			enis[labtest.TableOf(added)] = added
			return added
		}
		detach := func(other *vpc.ENI) {
			t.Helper()
			l.Detach(other)
			delete(enis, labtest.TableOf(other))
		}
		services := func(verb string, units ...string) {
			t.Helper()
			l.Run(append([]string{"systemctl", verb}, units...)...)
		}
		const daemon, networkd = "ec2netd.service", "systemd-networkd.service"

		other := attach()
		refresh("attach")
		unassign()
		if _, err := eni.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		refresh("change")
		detach(other)
		refresh("detach")
		services("restart", daemon)
		refresh("restart of the daemon")

		// networkd has set these rules, and does not know them any more: 257 and later never
		// remove one again by themselves.
		other = attach()
		services("restart", networkd)
		refresh("restart of networkd")
		unassign()
		refresh("change after a restart of networkd")
		detach(other)
		refresh("detach after a restart of networkd")

		// networkd is down, the daemon is not; then both are; then it has crashed.
		other = attach()
		services("stop", "systemd-networkd.socket", networkd)
		detach(other)
		unassign()
		services("start", networkd)
		refresh("networkd was down")
		other = attach()
		services("stop", daemon, "ec2netd.socket", "systemd-networkd.socket", networkd)
		detach(other)
		unassign()
		services("start", networkd, daemon)
		refresh("both were down")
		other = attach()
		services("kill", "--signal=KILL", networkd)
		detach(other)
		unassign()
		services("restart", daemon)
		refresh("networkd was killed and the daemon restarted while things changed")

		for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			if source != netip.MustParseAddr("10.0.16.77") {
				l.PingFrom(source)
			}
		}
		if s := l.Describe(); s.State != state.Configured {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		checkConflicts(l)
		// The daemon itself cannot do anything to the kernel.
		if out := l.Run("systemctl", "show", "--property=CapabilityBoundingSet", "--value", daemon); out != "" {
			t.Errorf("capabilities of the daemon: %s", out)
		}
		l.Run("systemd-analyze", "verify", "--man=no", "ec2netd-orphans.service")
	})
}

// checkConflicts checks that other software that configures ENIs is shown once it is there,
// and no more once it is gone (F5). Units and files have the names of the true ones.
func checkConflicts(l *labtest.Lab) {
	l.T.Helper()
	shown := func() (names []string) {
		l.T.Helper()
		l.Run("ec2netctl", "refresh", "--wait")
		for _, c := range l.Describe().Conflicts {
			names = append(names, c.Name)
		}
		return names
	}
	if now := shown(); len(now) > 0 {
		l.T.Errorf("conflicts of a bare instance: %v", now)
	}
	const device = "/run/NetworkManager/devices/$(cat /sys/class/net/ens5/ifindex)"
	l.Run("sh", "-c", "mkdir -p /run/NetworkManager/devices && printf '[device]\nmanaged=true\n' > "+device)
	for _, unit := range []string{"NetworkManager", "policy-routes@ens5"} {
		l.Run("systemd-run", "--quiet", "--unit="+unit, "sleep", "infinity")
	}
	l.Run("systemd-run", "--quiet", "--unit=nm-cloud-setup", "--on-active=1h", "true")
	l.Put("/etc/netplan/50-cloud-init.yaml", "network:\n  ethernets:\n    ens5:\n      routing-policy:\n      - {from: 10.0.16.10, table: 101}\n")
	if now, want := shown(), []string{"NetworkManager", "nm-cloud-setup", "cloud-init", "amazon-ec2-net-utils"}; !slices.Equal(now, want) {
		l.T.Errorf("conflicts: %v, want %v", now, want)
	}
	if s := l.Describe(); s.State != state.Configured || !strings.Contains(s.Reason, "NetworkManager.service is active, it manages ens5") {
		l.T.Errorf("%s: %s", s.State, s.Reason)
	}
	if out := l.AsUser("ec2netctl", "status"); !strings.Contains(out, "systemctl disable NetworkManager.service, then ec2netctl takeover") {
		l.T.Errorf("nothing says what to do:\n%s", out)
	}
	if out := l.Run("busctl", "get-property", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Conflicts"); !strings.HasPrefix(out, `a(sass) 4 "NetworkManager" 2 "NetworkManager.service is active"`) {
		l.T.Errorf("the property: %s", out)
	}
	l.Run("systemctl", "stop", "NetworkManager.service", "policy-routes@ens5.service", "nm-cloud-setup.timer")
	l.Run("rm", "-r", "/etc/netplan", "/run/NetworkManager")
	if now := shown(); len(now) > 0 {
		l.T.Errorf("conflicts that are over: %v", now)
	}
	said := l.DaemonLog()
	if once := strings.Count(said, "Something else configures ENIs too"); once != 4 {
		l.T.Errorf("four conflicts were said %d times", once)
	}
}

// A8: addresses that someone added by hand stay, on 252 until networkd configures their ENI;
// those in a drop-in of the administrator's stay for good on all versions.
func TestLabForeignAddresses(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni, other := l.Attach(vpc.ENISpec{IPv4Count: 2}), l.Attach(vpc.ENISpec{})
		l.AwaitConfigured(eni.ID())
		l.AwaitConfigured(other.ID())
		l.Run("ec2netctl", "refresh", "--wait")
		hand := []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8:99::1")}
		kept := netip.MustParseAddr("192.0.2.78")
		l.Run("sh", "-c", "mkdir -p /etc/systemd/network/70-"+eni.Name()+".network.d && printf '[Address]\\nAddress="+kept.String()+"/32\\n' > /etc/systemd/network/70-"+eni.Name()+".network.d/mine.conf && networkctl reload")
		has := func(addresses ...netip.Addr) bool {
			now := l.Addresses(eni.Name())
			return !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return !slices.Contains(now, a) })
		}
		l.Until("the address of the drop-in is there", func() (bool, error) { return has(kept), nil })
		// On 252 networkd replies to a reload before it is done.
		l.Run("ec2netctl", "refresh", "--wait")
		l.Until("networkd is done", func() (bool, error) {
			return strings.Contains(l.Run("networkctl", "status", eni.Name()), "(configured)"), nil
		})
		add := func() {
			l.Run("sh", "-c", "ip addr replace "+hand[0].String()+"/32 dev "+eni.Name()+" && ip addr replace "+hand[1].String()+"/128 dev "+eni.Name()+" nodad")
		}
		add()
		stay := func(what string) {
			t.Helper()
			if !has(append(hand, kept)...) {
				t.Errorf("%s: %s has %v", what, eni.Name(), l.Addresses(eni.Name()))
			}
		}
		// What this daemon does without a change of the ENI's own.
		l.Run("ec2netctl", "refresh", "--wait")
		stay("a refresh")
		if _, err := other.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		stay("a change of another ENI")
		l.Run("networkctl", "reload")
		stay("a reload")
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitConfigured(eni.ID())
		stay("a restart of the daemon")
		// What has networkd configure the ENI: 252 takes them away.
		old := suite == "bookworm"
		for what, change := range map[string]func(){
			"a change of the ENI": func() {
				if _, err := eni.AssignIPv4(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.Run("ec2netctl", "refresh", "--wait")
			},
			"a reconfiguration":     func() { l.Run("networkctl", "reconfigure", eni.Name()) },
			"a restart of networkd": func() { l.Run("systemctl", "restart", "systemd-networkd.service") },
		} {
			add()
			stay("added again")
			change()
			if old {
				l.Until("networkd has taken the addresses away: "+what, func() (bool, error) {
					now := l.Addresses(eni.Name())
					return !slices.Contains(now, hand[0]) && !slices.Contains(now, hand[1]), nil
				})
			}
			l.Until("the address of the drop-in is there: "+what, func() (bool, error) { return has(kept), nil })
			l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured })
			if !old {
				stay(what)
			}
		}
	})
}
