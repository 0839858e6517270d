package e2e

import (
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// E6, D7: a restart of the daemon needs no metadata, changes nothing and is no event
// for the kernel.
func TestLabRestartWithoutMetadata(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		primary := l.Inst.Primary()
		l.CheckKernel(eni)
		l.CountDrops()
		monitor := l.Monitor("ens")
		l.SetEndpoints(vpc.EndpointRefused)
		files, log := l.Files(), l.NetworkdLog()
		ping, err := l.Inst.StartPing(t.Context(), eni.IPv4()[1], vpc.FarIPv4, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		l.Run("systemctl", "restart", "ec2netd.service")
		s := l.AwaitManager(state.Offline)
		if len(s.Interfaces) != 2 || s.InstanceID != l.Inst.ID() || !strings.Contains(s.Reason, "metadata service") {
			t.Errorf("after the restart: %+v", s)
		}
		for _, id := range []string{primary.ID(), eni.ID()} {
			if got := l.AwaitConfigured(id); !strings.Contains(got.Reason, "last view") {
				t.Errorf("%s: %+v", id, got)
			}
		}
		if result := ping.Stop(); result.Received != result.Sent {
			t.Errorf("pings over the restart: %s", result)
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		if now := l.NetworkdLog(); now != log {
			t.Errorf("networkd did something: %s", strings.TrimPrefix(now, log))
		}
		if events := monitor(); events != "" {
			t.Errorf("events:\n%s", events)
		}
		l.CheckKernel(eni)
		// C4: what changed meanwhile is taken up.
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.SetEndpoints(vpc.EndpointOn)
		l.Run("ec2netctl", "refresh", "--wait")
		if !l.HasAddress(eni.Name(), added[0]) {
			t.Errorf("an address assigned while the metadata service was off is not there: %v", l.Addresses(eni.Name()))
		}
		l.AwaitManager(state.Configured)
		l.CheckDrops()
	})
}

// C4: ENIs that are attached and detached while the daemon is down.
func TestLabChangesWhileDown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		gone := l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(gone.ID())
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		if err := gone.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		eni := l.Attach(vpc.ENISpec{IPv4Count: 2, Name: "ens33"})
		l.Run("systemctl", "start", "ec2netd.service")
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		if now := l.Files(); strings.Contains(now, gone.Name()+".") {
			t.Errorf("files of the detached ENI:\n%s", now)
		}
	})
}

// networkd absent or masked: degraded, with the reason and what to do, and no crash.
func TestLabNetworkdMasked(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.MaskFile(o, "etc/systemd/system/systemd-networkd.service")
		})
		s := l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "masked") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "have it run with ")
		l.AwaitConfigured("ens5")
		l.AwaitManager(state.Configured)
		// It is enabled, so the next boot has it too.
		enabled := func() string { return l.Run("sh", "-c", "systemctl is-enabled systemd-networkd.service || :") }
		if is := enabled(); is != "enabled" {
			t.Errorf("unmasked as advised networkd is %s", is)
		}

		l.Run("systemctl", "stop", "systemd-networkd.socket")
		l.Run("systemctl", "disable", "--now", "systemd-networkd.service")
		s = l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "does not run") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "start it with ")
		l.AwaitManager(state.Configured)
		l.AwaitConfigured("ens5")
		l.AwaitAssignment(l.Inst.Primary())
		if is := enabled(); is != "enabled" {
			t.Errorf("started as advised networkd is %s", is)
		}

		l.Run("systemctl", "stop", "systemd-networkd.socket")
		l.Run("systemctl", "mask", "--runtime", "--now", "systemd-networkd.service")
		s = l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "masked until the next boot") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "have it run with ")
		l.AwaitManager(state.Configured)
		l.AwaitConfigured("ens5")
		if n := l.Run("systemctl", "show", "--property=NRestarts", "--value", "ec2netd.service"); n != "0" {
			t.Errorf("the daemon was restarted %s times", n)
		}
	})
}

// networkd that restarts is given time, and nothing is missing afterwards.
func TestLabNetworkdRestart(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		var files string
		for range 3 {
			l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service")
			if files == "" {
				// The first one has found in them what the daemon has prepared for it (E7).
				files = l.Files()
			}
			l.CheckKernel(eni)
		}
		if suite == "bookworm" {
			// From 257 on the lease's address comes after the static ones then.
			l.RestartNetworkd("sh", "-c", "systemctl stop systemd-networkd.service && systemctl start systemd-networkd.service")
			l.CheckKernel(eni)
		}
		l.CountDrops()
		for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		// The bus too: the API is there again.
		l.Run("systemctl", "restart", "dbus.service")
		l.AwaitConfigured(eni.ID())
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckLog("warning")
	})
}

// C4: what happens while udevd, the daemon or networkd is down is made up for.
func TestLabDaemonsDown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		// With their sockets, which would start them again.
		units := func(service string) []string {
			var found []string
			for line := range strings.Lines(l.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", service+"*.socket", service+".service", "systemd-network*.socket")) {
				unit := strings.Fields(line)[0]
				if service == "systemd-networkd" || !strings.HasPrefix(unit, "systemd-network") {
					found = append(found, unit)
				}
			}
			return found
		}
		down := func(service string, meanwhile func()) {
			t.Helper()
			all := units(service)
			l.Run(append([]string{"systemctl", "stop"}, all...)...)
			meanwhile()
			if active, err := l.Inst.Exec(t.Context(), "systemctl", "is-active", service+".service"); err == nil {
				t.Fatalf("%s is %s", service, active)
			}
			l.Run(append([]string{"systemctl", "start"}, all...)...)
		}
		var eni, second *vpc.ENI
		down("systemd-udevd", func() {
			eni = l.Attach(vpc.ENISpec{IPv4Count: 2})
			l.Until("the metadata of the ENI are read", func() (bool, error) { return len(l.Units(eni.MAC())) == 1, nil })
		})
		l.AwaitSettled(eni)

		down("systemd-networkd", func() {
			second = l.Attach(vpc.ENISpec{IPv4Count: 2})
			l.Until("the metadata of the ENI are read", func() (bool, error) { return len(l.Units(second.MAC())) == 1, nil })
		})
		l.AwaitSettled(second)
		// A networkd that is stopped takes the lease's address of others away and adds it
		// anew, after the static ones: the reason says so, nothing is missing.
		l.AwaitComplete(eni, eni.Name())

		// An attach, a detach, and a re-attach under the name of the other.
		third, name := (*vpc.ENI)(nil), eni.Name()
		down("ec2netd", func() {
			l.Detach(eni)
			l.Detach(second)
			l.Reattach(second, name)
			third = l.Attach(vpc.ENISpec{IPv4Count: 2})
		})
		l.AwaitSettledAs(second, name)
		l.AwaitSettled(third)
		if units := l.Units(eni.MAC()); len(units) > 0 {
			t.Errorf("files of an ENI that is detached: %v", units)
		}
		l.CountDrops()
		for _, source := range slices.Concat(second.IPv4(), third.IPv4()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// F11: dbus-daemon is restarted, as an upgrade may do, and networkd does not come
// back to the bus. systemd has those of 257 and 262 reload; for 252 the state names the command.
func TestLabBusRestarted(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.Refreshing(o)
			o.Primary.IPv6Count = 2
		})
		primary := l.Inst.Primary()
		l.AwaitConfigured("ens5")
		for range 2 {
			l.Run("systemctl", "restart", "dbus.service")
			if suite == "bookworm" {
				const advice = "systemctl restart systemd-networkd.service"
				l.Until("the state names the command", func() (bool, error) {
					s, err := l.TryDescribe()
					return err == nil && s.State == state.Degraded && strings.HasSuffix(s.Reason, advice), nil
				})
				if doctor := l.Fails("ec2netctl", "doctor"); !strings.Contains(doctor, advice) {
					t.Errorf("doctor says\n%s", doctor)
				}
				l.Run("sh", "-c", advice)
				l.AwaitManager(state.Configured)
			}
			added, err := primary.AssignIPv4(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l.AwaitAddress("ens5", added[0])
			l.AwaitManager(state.Configured)
			l.AwaitConfigured("ens5")
			eni := l.Attach(labtest.HotplugSpec())
			l.AwaitConfigured(eni.ID())
			l.CheckKernel(eni)
			l.AwaitAssignment(eni)
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			if err := eni.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		// Where networkd itself is restarted it is on the bus again.
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.Until("networkd is on the bus", func() (bool, error) {
			_, err := l.Inst.Exec(t.Context(), "busctl", "status", "org.freedesktop.network1")
			return err == nil, nil
		})
		l.Run("ec2netctl", "refresh", "--wait")
		l.AwaitManager(state.Configured)
	})
}

// C10: the daemon is killed at any moment of attaches, assignments and detaches; what
// comes of it is the same as if it had not been.
func TestLabKilled(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.Refreshing(o)
			// Sooner than a user waits, so that it is killed in the middle of things.
			o.Files["/etc/systemd/system/ec2netd.service.d/test.conf"] = "[Service]\nRestartSec=20ms\n"
		})
		l.AwaitConfigured("ens5")
		random := labtest.Seeded(t)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		monitor := l.Monitor("ens5")
		kills := 10
		if labtest.Long() {
			kills = 100
		}
		var second *vpc.ENI
		for n := range kills {
			var err error
			switch {
			case second == nil:
				second = l.Attach(labtest.HotplugSpec())
			case !second.Plugged():
				l.Reattach(second, "")
			case random.IntN(3) == 0:
				l.Detach(second)
			case random.IntN(2) == 0 && len(eni.IPv4()) > 3:
				err = eni.UnassignIPv4(t.Context(), eni.IPv4()[2])
			default:
				_, err = eni.AssignIPv4(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			// The daemon needs a tenth of a second for any of that.
			time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
			l.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
			l.Until("it runs again", func() (bool, error) {
				out := l.Run("systemctl", "show", "--property=NRestarts", "--property=ActiveState", "--value", "ec2netd.service")
				return slices.Equal(strings.Fields(out), []string{"active", strconv.Itoa(n + 1)}) ||
					slices.Equal(strings.Fields(out), []string{strconv.Itoa(n + 1), "active"}), nil
			})
		}
		if !second.Plugged() {
			l.Reattach(second, "")
		}
		l.Run("ec2netctl", "refresh", "--wait")
		for _, e := range []*vpc.ENI{eni, second} {
			l.Until(e.ID()+" has its rules", func() (bool, error) {
				return slices.Equal(l.Rules(labtest.TableOf(e)), labtest.Sources(e)), nil
			})
			l.AwaitSettled(e)
		}
		if left := l.Residue(); left != "" {
			t.Errorf("residue: %s", left)
		}
		if events := monitor(); events != "" {
			t.Errorf("events on the primary:\n%s", events)
		}
		l.CountDrops()
		for _, source := range slices.Concat(eni.IPv4(), second.IPv4(), eni.IPv6(), second.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// F11: udevd, resolved, journald and PID 1 are restarted, each by itself and all at once as an
// upgrade of systemd does, and what is changed in the VPC afterwards is followed.
func TestLabSystemRestarted(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.Refreshing(o)
			o.Primary.IPv6Count = 2
		})
		primary := l.Inst.Primary()
		l.AwaitConfigured("ens5")
		pid, dns := l.DaemonPID(), l.Run("resolvectl", "dns", "ens5")
		for _, restart := range []struct{ what, command string }{
			{"udevd", "systemctl restart systemd-udevd.service"},
			{"resolved", "systemctl restart systemd-resolved.service"},
			{"journald", "systemctl restart systemd-journald.service"},
			{"PID 1, its units", "systemctl daemon-reload"},
			{"PID 1", "systemctl daemon-reexec"},
			{"all of systemd", systemdUpgraded},
			{"all of systemd and the bus", "systemctl daemon-reexec; systemctl restart dbus.service; systemctl restart systemd-networkd.service systemd-resolved.service systemd-udevd.service"},
		} {
			t.Logf("restarting %s", restart.what)
			l.Run("sh", "-ec", restart.command)
			l.AwaitAssignment(primary)
			eni := l.Attach(labtest.HotplugSpec())
			l.AwaitSettled(eni)
			l.AwaitAssignment(eni)
			l.AwaitSettled(eni)
			l.AwaitManager(state.Configured)
			l.Until("resolved has the servers of the lease", func() (bool, error) { return l.Run("resolvectl", "dns", "ens5") == dns, nil })
			l.Until("the log tells of the ENI", func() (bool, error) {
				return strings.Contains(l.DaemonLog("ENI="+eni.ID()), "ENI configured"), nil
			})
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			if err := eni.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
			l.Run("sh", "-c", remove("/run/systemd/network")) // F12: for what takes PID 1
			l.Until("the directory is back", func() (bool, error) { return len(l.Units(primary.MAC())) == 1, nil })
			awaitIntact(l, primary)
		}
		if now := l.DaemonPID(); now != pid {
			t.Errorf("the daemon was restarted: process %s, before %s", now, pid)
		}
	})
}
