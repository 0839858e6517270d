package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/conflict"
	"ec2netd/service/state"
)

// withIfupdown boots the image whose ENIs ifupdown configures.
func withIfupdown(t *testing.T, suite string, change func(*vpc.InstanceOptions)) *lab {
	t.Helper()
	l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
		o.Packages = nil
		o.Stock = "ifupdown"
		o.Primary.IPv4Count = 2
		if change != nil {
			change(o)
		}
	})
	l.onIfupdown()
	return l
}

// dhcpClients are the DHCP clients that run beside networkd.
func (l *lab) dhcpClients() string {
	l.t.Helper()
	return l.run("sh", "-c", "ps -eo args | grep -E '^(/[^ ]*/)?(dhclient|dhcpcd)' || :")
}

// onIfupdown waits until ifupdown has the primary ENI, and its client a lease.
func (l *lab) onIfupdown() {
	l.t.Helper()
	primary := l.inst.Primary()
	var last string
	l.untilOr("ifupdown has "+primary.Name(), func() (bool, error) {
		last = l.run("sh", "-c", "cat /run/network/ifstate; ip -4 route show default dev "+primary.Name()) + l.dhcpClients()
		return strings.Contains(last, "ens5=ens5") && strings.Contains(last, "default via") && strings.Contains(last, "dhc") &&
			slices.Contains(l.addresses(primary.Name()), primary.IPv4()[0]), nil
	}, &last)
	l.pingFrom(primary.IPv4()[0])
}

// offIfupdown checks that ifupdown has no ENI, and that no client of its runs.
func (l *lab) offIfupdown(when string) {
	l.t.Helper()
	if clients := l.dhcpClients(); clients != "" {
		l.t.Errorf("%s there are DHCP clients:\n%s", when, clients)
	}
	for _, unit := range []string{"networking.service", "ifup@ens5.service", "ifup@ens6.service"} {
		if state := l.run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
			l.t.Errorf("%s %s is %s", when, unit, state)
		}
	}
}

// oneDefaultRoute waits until the main table has one IPv4 default route by each ENI, and of both
// families the primary's are the best.
func (l *lab) oneDefaultRoute(when string, enis ...*vpc.ENI) {
	l.t.Helper()
	var last string
	l.untilOr(when+" there is one default route by each ENI", func() (bool, error) {
		last = ""
		for _, family := range []string{"-4", "-6"} {
			routes := slices.DeleteFunc(l.routes(family, "main"), func(r route) bool { return r.Dst != "default" })
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

// ready checks that ENIs, the primary first, are configured by networkd alone.
func (l *lab) ready(when string, enis ...*vpc.ENI) {
	l.t.Helper()
	l.primaryWhole()
	for _, eni := range enis[1:] {
		l.complete(eni, eni.Name())
		l.checkKernel(eni)
	}
	l.offIfupdown(when)
	l.oneDefaultRoute(when, enis...)
	if s := l.describe(); s.State != state.Configured || s.Reason != "" || len(s.Conflicts) > 0 {
		l.t.Errorf("%s ec2netd is %s: %s, %v", when, s.State, s.Reason, s.Conflicts)
	}
}

// TestLabIfupdown: on an image that ifupdown configures, with dhclient or dhcpcd, ec2netd is
// installed as install.md says. After one reboot each ENI is configured, by networkd alone, also
// one that udev has ifupdown configure when it comes. Removed, ifupdown has them from the next
// boot on.
func TestLabIfupdown(t *testing.T) { // F8, F9, I2
	eachSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, nil)
		primary := l.inst.Primary()
		l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
		l.onIfupdown()
		l.waitsForBoot("ifupdown (networking.service)")
		// What udev has configured when it comes still is until the reboot.
		eni := l.attach(hotplugSpec())
		l.until("ifupdown has "+eni.Name(), func() (bool, error) {
			return strings.Contains(l.run("cat", "/run/network/ifstate"), eni.Name()+"="), nil
		})

		l.reboot()
		l.ready("after the reboot", primary, eni)
		if out := l.run("ec2netctl", "plan"); out != "Nothing would change." {
			t.Errorf("ec2netctl plan:\n%s", out)
		}
		l.detach(eni)
		l.gone(eni, 1)
		since := l.run("date", "+%F %T")
		if cost := l.measured(primary, func() {
			eni = l.attach(vpc.ENISpec{Name: "ens6", IPv4Count: 3, IPv6Count: 2, PrefixV4Count: 1})
			l.configured(eni.ID())
			l.until("udev has told ifupdown of "+eni.Name()+", which leaves it alone", func() (bool, error) {
				log, err := l.inst.Journal(t.Context(), "--boot", "--unit=ifup@"+eni.Name()+".service", "--since="+since)
				return strings.Contains(log, "exec-condition"), err
			})
		}); !cost.none() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		l.ready("after the attachment", primary, eni)
		cost := l.measured(primary, func() {
			for _, to := range []*vpc.ENI{primary, eni} {
				l.refreshed(func() error {
					if _, err := to.AssignIPv4(t.Context()); err != nil {
						return err
					}
					_, err := to.AssignIPv6(t.Context())
					return err
				})
			}
		})
		if suite == "bookworm" {
			cost.lost[2], cost.lost[3] = 0, 0 // the one change of 252's that is not hitless for IPv6 (E2)
		}
		if !cost.none() {
			t.Errorf("assigning addresses cost the primary %s", cost)
		}
		l.ready("after the assignment", primary, eni)
		l.reboot()
		l.ready("after the second reboot", primary, eni)
		if cost := l.measured(primary, func() { l.detach(eni); l.gone(eni, 1) }); !cost.none() {
			t.Errorf("detaching an ENI cost the primary %s", cost)
		}
		l.strayClients()

		l.run("apt-get", "remove", "--yes", "ec2netd")
		l.onNetworkd("75-ec2netd-ens5.network")
		l.reboot()
		l.onIfupdown()
		before := func(when string) {
			t.Helper()
			for unit, want := range map[string]string{
				"networking.service": "enabled", "systemd-networkd.service": "disabled", "systemd-networkd-wait-online.service": "disabled",
			} {
				if got := l.run("sh", "-c", "systemctl is-enabled "+unit+" || :"); got != want {
					t.Errorf("%s %s is %s", when, unit, got)
				}
			}
		}
		before("after the removal")
		if left := l.run("sh", "-c", "find /run /etc -name '*ec2netd*' ! -path '*/ec2netd.conf*' 2>/dev/null | grep -v system/ || :"); left != "" {
			t.Errorf("after the removal there are\n%s", left)
		}
		// dpkg does not take that for an installation.
		l.run("apt-get", "install", "--yes", "/root/2.deb")
		l.waitsForBoot("ifupdown (networking.service)")
		l.run("apt-get", "purge", "--yes", "ec2netd")
		before("after another removal")
		l.onIfupdown()

		// An ifupdown that could not configure anything at the next boot does not get the ENIs back:
		// one that is gone, and, after a boot with ec2netd, one that is masked.
		keeps := func(when, networking string) {
			t.Helper()
			for unit, want := range map[string]string{"networking.service": networking, "systemd-networkd.service": "enabled"} {
				if got := l.run("sh", "-c", "systemctl is-enabled "+unit+" || :"); got != want {
					t.Errorf("%s %s is %s", when, unit, got)
				}
			}
		}
		l.run("apt-get", "install", "--yes", "/root/2.deb")
		l.run("sh", "-ec", "mkdir /root/gone; for f in /sbin/ifup /usr/sbin/ifup; do if [ -e $f ]; then mv $f /root/gone; fi; done")
		l.run("apt-get", "purge", "--yes", "ec2netd")
		keeps("without ifup", "disabled")
		l.run("sh", "-ec", "mv /root/gone/ifup /sbin; systemctl enable networking.service; systemctl disable systemd-networkd.service")
		l.run("apt-get", "install", "--yes", "/root/2.deb")
		l.reboot()
		l.ready("after the reboot with the other version", primary)
		l.run("systemctl", "mask", "networking.service")
		l.run("apt-get", "remove", "--yes", "ec2netd")
		keeps("where networking.service is masked", "masked")
		l.onNetworkd("70-ens5.network")
		l.reboot()
		l.onNetworkd("70-ens5.network")
		l.offIfupdown("where networking.service is masked")
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
func (l *lab) strayClients() {
	l.t.Helper()
	const stale = "echo 1 >/run/dhclient6.ens5.pid; echo 1 >/run/dhclient-ens5.pid; "
	if l.inst.Suite() != "sid" {
		l.strayClient(conflict.DHClient, stale+"dhclient -pf /run/dhclient.ens5.pid ens5", "/run/dhclient.ens5.pid")
		l.strayClient(conflict.DHClient, stale+"dhclient ens5", "/run/dhclient.pid")
		l.strayClient(conflict.DHClient, "dhclient -6 -pf /run/dhclient6.ens5.pid ens5", "/run/dhclient6.ens5.pid")
		return
	}
	l.strayClient(conflict.DHCPCD, stale+"dhcpcd ens5", "/run/dhcpcd/ens5.pid")
	l.strayClient(conflict.DHCPCD, "dhcpcd -6 ens5", "/run/dhcpcd/ens5-6.pid")
	l.strayClient(conflict.DHCPCD, stale+"dhcpcd", "/run/dhcpcd/pid")
	l.put("/etc/systemd/system/dhcpcd.service", dhcpcdUnit)
	l.strayClient(conflict.DHCPCD, "systemctl daemon-reload; systemctl enable --quiet --now dhcpcd.service", "/run/dhcpcd/pid")
	l.run("rm", "/etc/systemd/system/dhcpcd.service")
	l.run("systemctl", "daemon-reload")
}

// strayClient starts such a client, which has a PID file then, and follows the advice of the
// conflict.
func (l *lab) strayClient(name, start, pidFile string) {
	l.t.Helper()
	l.run("sh", "-ec", start)
	l.followed(name, func(advice string) {
		all := l.describe().Conflicts
		if want := "it runs for ens5 (" + pidFile + ")"; len(all) != 1 || !slices.Equal(all[0].Evidence, []string{want}) {
			l.t.Errorf("conflicts are %+v, want %s", all, want)
		}
		_, commands, _ := strings.Cut(advice, ": ")
		l.run("sh", "-ec", commands)
	})
	// It has taken away the address. Where networkd has put it back by itself that is behind the
	// secondary ones now: all of them work.
	const when = "after the client is ended"
	primary := l.inst.Primary()
	l.configured(primary.ID())
	for _, a := range slices.Concat(primary.IPv4(), primary.IPv6()) {
		l.until(when+" "+a.String()+" is there", func() (bool, error) { return slices.Contains(l.addresses(primary.Name()), a), nil })
		l.pingFrom(a)
	}
	l.offIfupdown(when)
	l.oneDefaultRoute(when, primary)
}

// followed waits for a conflict, does what its advice says, and waits until it is over.
func (l *lab) followed(name string, follow func(advice string)) {
	l.t.Helper()
	find := func() *state.Conflict {
		// NetworkManager takes the addresses away of a link that it is to leave alone; networkd has them
		// back some seconds later.
		l.until("the metadata can be read", func() (bool, error) {
			_, err := l.inst.Exec(l.t.Context(), "ec2netctl", "refresh", "--wait")
			if err != nil && strings.Contains(err.Error(), "no link has an address") {
				return false, nil
			}
			return err == nil, err
		})
		all := l.describe().Conflicts
		if i := slices.IndexFunc(all, func(c state.Conflict) bool { return c.Name == name }); i >= 0 {
			return &all[i]
		}
		return nil
	}
	var found *state.Conflict
	l.until("there is a conflict with "+name, func() (bool, error) { found = find(); return found != nil, nil })
	if out := l.fails("ec2netctl", "--no-pager", "doctor"); !strings.Contains(strings.Join(strings.Fields(out), " "), found.Advice) {
		l.t.Errorf("doctor says\n%s", out)
	}
	l.t.Logf("%s: %s", found.Evidence, found.Advice)
	follow(found.Advice)
	l.until("the conflict with "+name+" is over", func() (bool, error) { return find() == nil, nil })
}

// TestLabIfupdownTakeover: ifupdown's image is taken over without a reboot, as a reboot would, and
// gets back what it had if the ENIs do not come up.
func TestLabIfupdownTakeover(t *testing.T) { // F8, F10, J3
	oneSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, nil)
		eni := l.attach(vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		both := func() {
			t.Helper()
			l.onIfupdown()
			l.until("ifupdown has "+eni.Name(), func() (bool, error) {
				return l.run("sh", "-c", "systemctl is-active ifup@ens6.service || :") == "active" && slices.Contains(l.addresses("ens6"), eni.IPv4()[0]), nil
			})
		}
		both()
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		would := l.run("ec2netctl", "takeover", "--dry-run")
		if !strings.HasPrefix(would, "Would stop networking.service, ifup@ens5.service, ifup@ens6.service\n") &&
			!strings.HasPrefix(would, "Would stop networking.service, ifup@ens6.service\n") {
			t.Errorf("takeover --dry-run:\n%s", would)
		}
		both()
		l.put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
		if out := l.fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		l.run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
		both()

		did := l.run("ec2netctl", "takeover", "--yes")
		t.Log(did)
		for line := range strings.Lines(would) {
			if what := strings.TrimSpace(strings.TrimPrefix(line, "Would ")); !strings.Contains(strings.ToLower(did), what) {
				t.Errorf("takeover --dry-run says %q, and it did\n%s", what, did)
			}
		}
		l.ready("after the takeover", l.inst.Primary(), eni)
		// What somebody sets down afterwards stays down.
		l.run("ip", "link", "set", "dev", "ens6", "down")
		entry := l.reaches(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIOverridden })
		l.run("sh", "-c", entry.Reason[strings.LastIndex(entry.Reason, "ip link"):])
		l.configured("ens6")
		l.asAfterBoot("70-ens5.network", "ens5", "ens6")

		// Two owners: each way that the advice names.
		l.run("systemctl", "enable", "--now", "networking.service")
		l.followed(conflict.Ifupdown, func(advice string) {
			out := l.fails("ec2netctl", "takeover", "--yes")
			if !strings.Contains(out, "networking.service is enabled") {
				t.Errorf("takeover where networking.service is enabled: %s", out)
			}
			l.obeys(l.toHaveIt(out))
			for _, command := range []string{"systemctl disable networking.service", "ec2netctl takeover"} {
				if !strings.Contains(advice, command) {
					t.Errorf("the advice is %s", advice)
				}
			}
			first, _, _ := strings.Cut(advice, "; or")
			l.obeys(first)
		})
		l.ready("after the other takeover", l.inst.Primary(), eni)
		// What comes to mind first takes the links down, for a moment.
		l.run("systemctl", "enable", "--now", "networking.service")
		l.followed(conflict.Ifupdown, func(string) { l.run("systemctl", "disable", "--now", "networking.service") })
		l.ready("after ifdown", l.inst.Primary(), eni)
		l.run("ifup", "ens6")
		l.followed(conflict.Ifupdown, func(advice string) {
			_, command, _ := strings.Cut(advice, ": ")
			l.run("sh", "-ec", command)
		})
		l.ready("after ifdown by hand", l.inst.Primary(), eni)
		l.run("ifup", "ens5")
		l.connected("ifdown of the primary ENI", func() {
			l.followed(conflict.Ifupdown, l.obeys)
			l.ready("after ifdown of the primary ENI", l.inst.Primary(), eni)
		})
		// The daemon does not see in between that ifupdown has configured them.
		l.run("systemctl", "enable", "--now", "networking.service")
		l.run("systemctl", "disable", "--now", "networking.service")
		for _, name := range []string{"ens5", "ens6"} {
			l.until(name+" is up after ifdown", func() (bool, error) {
				return strings.Contains(l.run("ip", "link", "show", "dev", name, "up"), name), nil
			})
		}
		l.configured(l.inst.Primary().ID())
		l.configured(eni.ID())
		l.ready("after ifdown that the daemon has not foreseen", l.inst.Primary(), eni)
		l.run("systemctl", "enable", "--now", "networking.service")
		l.followed(conflict.Ifupdown, func(string) {
			l.put("/etc/network/interfaces", "auto lo br0\niface lo inet loopback\niface br0 inet manual\n  pre-up ip link add br0 type bridge\n")
			l.reboot()
			l.configured("ens5")
		})
		l.until("ifupdown has its bridge", func() (bool, error) { return strings.Contains(l.run("cat", "/run/network/ifstate"), "br0="), nil })
		l.primaryWhole()
		if clients := l.dhcpClients(); clients != "" {
			t.Errorf("there are DHCP clients:\n%s", clients)
		}
		l.oneDefaultRoute("with ifupdown for other links", l.inst.Primary(), eni)
	})
}

// TestLabIfupdownOthers: before the reboot it is said that ifupdown does not configure links any more
// that are no ENIs, and so it is.
func TestLabIfupdownOthers(t *testing.T) { // F8, I2
	eachSuite(t, func(t *testing.T, suite string) {
		l := withIfupdown(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/network/interfaces.d/br0"] = "auto br0\niface br0 inet manual\n  pre-up ip link add br0 type bridge || :\n"
		})
		l.until("ifupdown has its bridge", func() (bool, error) { return strings.Contains(l.run("cat", "/run/network/ifstate"), "br0="), nil })
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		const says = "ifupdown does not configure br0 from the next boot on, as networking.service is not enabled"
		if doctor := l.run("ec2netctl", "--no-pager", "doctor"); !strings.Contains(strings.Join(strings.Fields(doctor), " "), says+" → have networkd configure them") {
			t.Errorf("doctor says\n%s", doctor)
		}
		if status := l.fails("ec2netctl", "status"); !strings.Contains(status, "\nBut "+says+": ") {
			t.Errorf("status says\n%s", status)
		}
		l.reboot()
		l.primaryWhole()
		if raised := l.run("sh", "-c", "cat /run/network/ifstate 2>/dev/null || :"); strings.Contains(raised, "br0=") {
			t.Errorf("after the reboot ifupdown has\n%s", raised)
		}
	})
}
