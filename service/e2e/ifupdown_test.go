package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/conflict"
	"ec2netd/service/state"
)

// withIfupdown boots the image whose ENIs ifupdown configures.
func withIfupdown(t *testing.T, suite string, change func(*vpc.InstanceOptions)) *labtest.Lab {
	t.Helper()
	l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
		o.Packages = nil
		o.Stock = "ifupdown"
		o.Primary.IPv4Count = 2
		if change != nil {
			change(o)
		}
	})
	onIfupdown(l)
	return l
}

// dhcpClients are the DHCP clients that run beside networkd.
func dhcpClients(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("sh", "-c", "ps -eo args | grep -E '^(/[^ ]*/)?(dhclient|dhcpcd)' || :")
}

// onIfupdown waits until ifupdown has the primary ENI, and its client a lease.
func onIfupdown(l *labtest.Lab) {
	l.T.Helper()
	primary := l.Inst.Primary()
	var last string
	l.UntilOr("ifupdown has "+primary.Name(), func() (bool, error) {
		last = l.Run("sh", "-c", "cat /run/network/ifstate; ip -4 route show default dev "+primary.Name()) + dhcpClients(l)
		return strings.Contains(last, "ens5=ens5") && strings.Contains(last, "default via") && strings.Contains(last, "dhc") &&
			l.HasAddress(primary.Name(), primary.IPv4()[0]), nil
	}, &last)
	l.PingFrom(primary.IPv4()[0])
}

// offIfupdown checks that ifupdown has no ENI, and that no client of its runs.
func offIfupdown(l *labtest.Lab, when string) {
	l.T.Helper()
	if clients := dhcpClients(l); clients != "" {
		l.T.Errorf("%s there are DHCP clients:\n%s", when, clients)
	}
	for _, unit := range []string{"networking.service", "ifup@ens5.service", "ifup@ens6.service"} {
		if state := l.Run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
			l.T.Errorf("%s %s is %s", when, unit, state)
		}
	}
}

// oneDefaultRoute waits until the main table has one IPv4 default route by each ENI, and of both
// families the primary's are the best.
func oneDefaultRoute(l *labtest.Lab, when string, enis ...*vpc.ENI) {
	l.T.Helper()
	var last string
	l.UntilOr(when+" there is one default route by each ENI", func() (bool, error) {
		last = ""
		for _, family := range []string{"-4", "-6"} {
			routes := slices.DeleteFunc(l.Routes(family, "main"), func(r labtest.Route) bool { return r.Dst != "default" })
			last += fmt.Sprintf("%+v\n", routes)
			best := map[string]int{}
			for _, r := range routes {
				if metric, ok := best[r.Dev]; !ok || r.Metric < metric {
					best[r.Dev] = r.Metric
				}
			}
			for _, eni := range enis {
				if best[eni.Name()] == 0 || best[eni.Name()] < best["ens5"] {
					return false, nil
				}
			}
			// Of IPv6 there is a second one to each router, a static one (E7).
			if family == "-4" && len(routes) != len(enis) {
				return false, nil
			}
		}
		return true, nil
	}, &last)
}

// checkReady checks that ENIs, the primary first, are configured by networkd alone.
func checkReady(l *labtest.Lab, when string, enis ...*vpc.ENI) {
	l.T.Helper()
	primaryWhole(l)
	for _, eni := range enis[1:] {
		l.AwaitComplete(eni, eni.Name())
		l.CheckKernel(eni)
	}
	offIfupdown(l, when)
	oneDefaultRoute(l, when, enis...)
	if s := l.Describe(); s.State != state.Configured || s.Reason != "" || len(s.Conflicts) > 0 {
		l.T.Errorf("%s ec2netd is %s: %s, %v", when, s.State, s.Reason, s.Conflicts)
	}
}

// TestLabIfupdown: on an image that ifupdown configures, with dhclient or dhcpcd, ec2netd is
// installed as install.md says. After one reboot each ENI is configured, by networkd alone, also
// one that udev has ifupdown configure when it comes. Removed, ifupdown has them from the next
// boot on.
func TestLabIfupdown(t *testing.T) { // F8, F9, I2
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, nil)
		primary := l.Inst.Primary()
		checkHitless(l, "installing", func() { l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
		onIfupdown(l)
		waitsForBoot(l, "ifupdown (networking.service)")
		// What udev has configured when it comes still is until the reboot.
		eni := l.Attach(labtest.HotplugSpec())
		l.Until("ifupdown has "+eni.Name(), func() (bool, error) {
			return strings.Contains(l.Run("cat", "/run/network/ifstate"), eni.Name()+"="), nil
		})

		l.Reboot()
		checkReady(l, "after the reboot", primary, eni)
		if out := l.Run("ec2netctl", "plan"); out != "Nothing would change." {
			t.Errorf("ec2netctl plan:\n%s", out)
		}
		l.Detach(eni)
		l.AwaitGone(eni, 1)
		since := l.Run("date", "+%F %T")
		if cost := l.Measured(primary, func() {
			eni = l.Attach(vpc.ENISpec{Name: "ens6", IPv4Count: 3, IPv6Count: 2, PrefixV4Count: 1})
			l.AwaitConfigured(eni.ID())
			l.Until("udev has told ifupdown of "+eni.Name()+", which leaves it alone", func() (bool, error) {
				log, err := l.Inst.Journal(t.Context(), "--boot", "--unit=ifup@"+eni.Name()+".service", "--since="+since)
				return strings.Contains(log, "exec-condition"), err
			})
		}); !cost.None() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		checkReady(l, "after the attachment", primary, eni)
		cost := l.Measured(primary, func() {
			for _, to := range []*vpc.ENI{primary, eni} {
				l.Refreshed(func() error {
					if _, err := to.AssignIPv4(t.Context()); err != nil {
						return err
					}
					_, err := to.AssignIPv6(t.Context())
					return err
				})
			}
		})
		if suite == "bookworm" {
			cost.Lost[2], cost.Lost[3] = 0, 0 // the one change of 252's that is not hitless for IPv6 (E2)
		}
		if !cost.None() {
			t.Errorf("assigning addresses cost the primary %s", cost)
		}
		checkReady(l, "after the assignment", primary, eni)
		l.Reboot()
		checkReady(l, "after the second reboot", primary, eni)
		if cost := l.Measured(primary, func() { l.Detach(eni); l.AwaitGone(eni, 1) }); !cost.None() {
			t.Errorf("detaching an ENI cost the primary %s", cost)
		}
		strayClients(l)

		l.Run("apt-get", "remove", "--yes", "ec2netd")
		onNetworkd(l, "75-ec2netd-ens5.network")
		l.Reboot()
		onIfupdown(l)
		before := func(when string) {
			t.Helper()
			for unit, want := range map[string]string{
				"networking.service": "enabled", "systemd-networkd.service": "disabled", "systemd-networkd-wait-online.service": "disabled",
			} {
				if got := l.Run("sh", "-c", "systemctl is-enabled "+unit+" || :"); got != want {
					t.Errorf("%s %s is %s", when, unit, got)
				}
			}
		}
		before("after the removal")
		if left := l.Run("sh", "-c", "find /run /etc -name '*ec2netd*' ! -path '*/ec2netd.conf*' 2>/dev/null | grep -v system/ || :"); left != "" {
			t.Errorf("after the removal there are\n%s", left)
		}
		// dpkg does not take that for an installation.
		l.Run("apt-get", "install", "--yes", "/root/2.deb")
		waitsForBoot(l, "ifupdown (networking.service)")
		l.Run("apt-get", "purge", "--yes", "ec2netd")
		before("after another removal")
		onIfupdown(l)

		// An ifupdown that could not configure anything at the next boot does not get the ENIs back:
		// one that is gone, and, after a boot with ec2netd, one that is masked.
		keeps := func(when, networking string) {
			t.Helper()
			for unit, want := range map[string]string{"networking.service": networking, "systemd-networkd.service": "enabled"} {
				if got := l.Run("sh", "-c", "systemctl is-enabled "+unit+" || :"); got != want {
					t.Errorf("%s %s is %s", when, unit, got)
				}
			}
		}
		l.Run("apt-get", "install", "--yes", "/root/2.deb")
		l.Run("sh", "-ec", "mkdir /root/gone; for f in /sbin/ifup /usr/sbin/ifup; do if [ -e $f ]; then mv $f /root/gone; fi; done")
		l.Run("apt-get", "purge", "--yes", "ec2netd")
		keeps("without ifup", "disabled")
		l.Run("sh", "-ec", "mv /root/gone/ifup /sbin; systemctl enable networking.service; systemctl disable systemd-networkd.service")
		l.Run("apt-get", "install", "--yes", "/root/2.deb")
		l.Reboot()
		checkReady(l, "after the reboot with the other version", primary)
		l.Run("systemctl", "mask", "networking.service")
		l.Run("apt-get", "remove", "--yes", "ec2netd")
		keeps("where networking.service is masked", "masked")
		onNetworkd(l, "70-ens5.network")
		l.Reboot()
		onNetworkd(l, "70-ens5.network")
		offIfupdown(l, "where networking.service is masked")
	})
}

// dhcpcdUnit is the one of Debian's package dhcpcd in short.
const dhcpcdUnit = `[Service]
Type=forking
PIDFile=/run/dhcpcd/pid
ExecStart=/usr/sbin/dhcpcd -b
[Install]
WantedBy=multi-user.target
`

// strayClients has DHCP clients run for the primary ENI that nobody has asked for, in the ways in
// which they are started. What another process has the number of does not count.
func strayClients(l *labtest.Lab) {
	l.T.Helper()
	const stale = "echo 1 >/run/dhclient6.ens5.pid; echo 1 >/run/dhclient-ens5.pid; "
	if l.Inst.Suite() != "sid" {
		strayClient(l, conflict.DHClient, stale+"dhclient -pf /run/dhclient.ens5.pid ens5", "/run/dhclient.ens5.pid")
		strayClient(l, conflict.DHClient, stale+"dhclient ens5", "/run/dhclient.pid")
		strayClient(l, conflict.DHClient, "dhclient -6 -pf /run/dhclient6.ens5.pid ens5", "/run/dhclient6.ens5.pid")
		return
	}
	strayClient(l, conflict.DHCPCD, stale+"dhcpcd ens5", "/run/dhcpcd/ens5.pid")
	strayClient(l, conflict.DHCPCD, "dhcpcd -6 ens5", "/run/dhcpcd/ens5-6.pid")
	strayClient(l, conflict.DHCPCD, stale+"dhcpcd", "/run/dhcpcd/pid")
	l.Put("/etc/systemd/system/dhcpcd.service", dhcpcdUnit)
	strayClient(l, conflict.DHCPCD, "systemctl daemon-reload; systemctl enable --quiet --now dhcpcd.service", "/run/dhcpcd/pid")
	l.Run("rm", "/etc/systemd/system/dhcpcd.service")
	l.Run("systemctl", "daemon-reload")
}

// strayClient starts such a client, which has a PID file then, and follows the advice of the
// conflict.
func strayClient(l *labtest.Lab, name, start, pidFile string) {
	l.T.Helper()
	l.Run("sh", "-ec", start)
	followAdvice(l, name, func(advice string) {
		all := l.Describe().Conflicts
		if want := "it runs for ens5 (" + pidFile + ")"; len(all) != 1 || !slices.Equal(all[0].Evidence, []string{want}) {
			l.T.Errorf("conflicts are %+v, want %s", all, want)
		}
		_, commands, _ := strings.Cut(advice, ": ")
		l.Run("sh", "-ec", commands)
	})
	// It has taken away the address. Where networkd has put it back by itself that is behind the
	// secondary ones now: all of them work.
	const when = "after the client is ended"
	primary := l.Inst.Primary()
	l.AwaitConfigured(primary.ID())
	for _, a := range slices.Concat(primary.IPv4(), primary.IPv6()) {
		l.Until(when+" "+a.String()+" is there", func() (bool, error) { return l.HasAddress(primary.Name(), a), nil })
		l.PingFrom(a)
	}
	offIfupdown(l, when)
	oneDefaultRoute(l, when, primary)
}

// followAdvice waits for a conflict, does what its advice says, and waits until it is over.
func followAdvice(l *labtest.Lab, name string, follow func(advice string)) {
	l.T.Helper()
	find := func() *state.Conflict {
		// NetworkManager takes the addresses away of a link that it is to leave alone; networkd has them
		// back some seconds later.
		l.Until("the metadata can be read", func() (bool, error) {
			_, err := l.Inst.Exec(l.T.Context(), "ec2netctl", "refresh", "--wait")
			if err != nil && strings.Contains(err.Error(), "no link has an address") {
				return false, nil
			}
			return err == nil, err
		})
		all := l.Describe().Conflicts
		if i := slices.IndexFunc(all, func(c state.Conflict) bool { return c.Name == name }); i >= 0 {
			return &all[i]
		}
		return nil
	}
	var found *state.Conflict
	l.Until("there is a conflict with "+name, func() (bool, error) { found = find(); return found != nil, nil })
	if out := l.Fails("ec2netctl", "--no-pager", "doctor"); !strings.Contains(strings.Join(strings.Fields(out), " "), found.Advice) {
		l.T.Errorf("doctor says\n%s", out)
	}
	l.T.Logf("%s: %s", found.Evidence, found.Advice)
	follow(found.Advice)
	l.Until("the conflict with "+name+" is over", func() (bool, error) { return find() == nil, nil })
}

// TestLabIfupdownTakeover: ifupdown's image is taken over without a reboot, as a reboot would, and
// gets back what it had if the ENIs do not come up.
func TestLabIfupdownTakeover(t *testing.T) { // F8, F10, J3
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, nil)
		eni := l.Attach(vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		both := func() {
			t.Helper()
			onIfupdown(l)
			l.Until("ifupdown has "+eni.Name(), func() (bool, error) {
				return l.Run("sh", "-c", "systemctl is-active ifup@ens6.service || :") == "active" && l.HasAddress("ens6", eni.IPv4()[0]), nil
			})
		}
		both()
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		would := l.Run("ec2netctl", "takeover", "--dry-run")
		if !strings.HasPrefix(would, "Would stop networking.service, ifup@ens5.service, ifup@ens6.service\n") &&
			!strings.HasPrefix(would, "Would stop networking.service, ifup@ens6.service\n") {
			t.Errorf("takeover --dry-run:\n%s", would)
		}
		both()
		l.Put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
		if out := l.Fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		l.Run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
		both()

		did := l.Run("ec2netctl", "takeover", "--yes")
		t.Log(did)
		for line := range strings.Lines(would) {
			if what := strings.TrimSpace(strings.TrimPrefix(line, "Would ")); !strings.Contains(strings.ToLower(did), what) {
				t.Errorf("takeover --dry-run says %q, and it did\n%s", what, did)
			}
		}
		checkReady(l, "after the takeover", l.Inst.Primary(), eni)
		// What somebody sets down afterwards stays down.
		l.Run("ip", "link", "set", "dev", "ens6", "down")
		entry := l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIOverridden })
		l.Run("sh", "-c", entry.Reason[strings.LastIndex(entry.Reason, "ip link"):])
		l.AwaitConfigured("ens6")
		asAfterBoot(l, "70-ens5.network", "ens5", "ens6")

		// Two owners: each way that the advice names.
		l.Run("systemctl", "enable", "--now", "networking.service")
		followAdvice(l, conflict.Ifupdown, func(advice string) {
			out := l.Fails("ec2netctl", "takeover", "--yes")
			if !strings.Contains(out, "networking.service is enabled") {
				t.Errorf("takeover where networking.service is enabled: %s", out)
			}
			l.Obey(l.ToHaveIt(out))
			for _, command := range []string{"systemctl disable networking.service", "ec2netctl takeover"} {
				if !strings.Contains(advice, command) {
					t.Errorf("the advice is %s", advice)
				}
			}
			first, _, _ := strings.Cut(advice, "; or")
			l.Obey(first)
		})
		checkReady(l, "after the other takeover", l.Inst.Primary(), eni)
		// What comes to mind first takes the links down, for a moment.
		l.Run("systemctl", "enable", "--now", "networking.service")
		followAdvice(l, conflict.Ifupdown, func(string) { l.Run("systemctl", "disable", "--now", "networking.service") })
		checkReady(l, "after ifdown", l.Inst.Primary(), eni)
		l.Run("ifup", "ens6")
		followAdvice(l, conflict.Ifupdown, func(advice string) {
			_, command, _ := strings.Cut(advice, ": ")
			l.Run("sh", "-ec", command)
		})
		checkReady(l, "after ifdown by hand", l.Inst.Primary(), eni)
		l.Run("ifup", "ens5")
		staysConnected(l, "ifdown of the primary ENI", func() {
			followAdvice(l, conflict.Ifupdown, l.Obey)
			checkReady(l, "after ifdown of the primary ENI", l.Inst.Primary(), eni)
		})
		// The daemon does not see in between that ifupdown has configured them.
		l.Run("systemctl", "enable", "--now", "networking.service")
		l.Run("systemctl", "disable", "--now", "networking.service")
		for _, name := range []string{"ens5", "ens6"} {
			l.Until(name+" is up after ifdown", func() (bool, error) {
				return strings.Contains(l.Run("ip", "link", "show", "dev", name, "up"), name), nil
			})
		}
		l.AwaitConfigured(l.Inst.Primary().ID())
		l.AwaitConfigured(eni.ID())
		checkReady(l, "after ifdown that the daemon has not foreseen", l.Inst.Primary(), eni)
		l.Run("systemctl", "enable", "--now", "networking.service")
		followAdvice(l, conflict.Ifupdown, func(string) {
			l.Put("/etc/network/interfaces", "auto lo br0\niface lo inet loopback\niface br0 inet manual\n  pre-up ip link add br0 type bridge\n")
			l.Reboot()
			l.AwaitConfigured("ens5")
		})
		l.Until("ifupdown has its bridge", func() (bool, error) { return strings.Contains(l.Run("cat", "/run/network/ifstate"), "br0="), nil })
		primaryWhole(l)
		if clients := dhcpClients(l); clients != "" {
			t.Errorf("there are DHCP clients:\n%s", clients)
		}
		oneDefaultRoute(l, "with ifupdown for other links", l.Inst.Primary(), eni)
	})
}

// TestLabIfupdownOthers: before the reboot it is said that ifupdown does not configure links any more
// that are no ENIs, and so it is.
func TestLabIfupdownOthers(t *testing.T) { // F8, I2
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/network/interfaces.d/br0"] = "auto br0\niface br0 inet manual\n  pre-up ip link add br0 type bridge || :\n"
		})
		l.Until("ifupdown has its bridge", func() (bool, error) { return strings.Contains(l.Run("cat", "/run/network/ifstate"), "br0="), nil })
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		const says = "ifupdown does not configure br0 from the next boot on, as networking.service is not enabled"
		if doctor := l.Run("ec2netctl", "--no-pager", "doctor"); !strings.Contains(strings.Join(strings.Fields(doctor), " "), says+" → have networkd configure them") {
			t.Errorf("doctor says\n%s", doctor)
		}
		if status := l.Fails("ec2netctl", "status"); !strings.Contains(status, "\nBut "+says+": ") {
			t.Errorf("status says\n%s", status)
		}
		l.Reboot()
		primaryWhole(l)
		if raised := l.Run("sh", "-c", "cat /run/network/ifstate 2>/dev/null || :"); strings.Contains(raised, "br0=") {
			t.Errorf("after the reboot ifupdown has\n%s", raised)
		}
	})
}
