package e2e

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// dhcpTime is how long an ENI may be without network, whatever became of the daemon (E9).
const dhcpTime = 10 * time.Second

// releaseLimit is the time after which "ec2netd --release" gives up.
const releaseLimit = 12 * time.Second

// strandedKills is how often [TestLabStranded] kills the daemon, on all suites together, and
// with EC2NETD_LONG=1 on each.
const strandedKills = 200

// hasDHCP checks that an ENI has its primary address by DHCP in time, with no daemon there to
// see to that.
func hasDHCP(l *labtest.Lab, eni *vpc.ENI, since time.Time, when string) {
	l.T.Helper()
	l.Until(eni.Name()+" has an address "+when, func() (bool, error) {
		return l.HasAddress(eni.Name(), eni.IPv4()[0]), nil
	})
	if took := time.Since(since); took > dhcpTime {
		l.T.Errorf("%s has an address %s after %s", eni.Name(), when, took)
	}
}

// checkNewENI attaches an ENI that must get DHCP, and detaches it.
func checkNewENI(l *labtest.Lab, when string) {
	l.T.Helper()
	since := time.Now()
	eni := l.Attach(vpc.ENISpec{IPv4Count: 1})
	hasDHCP(l, eni, since, when)
	l.Detach(eni)
}

func killDaemon(l *labtest.Lab) {
	l.T.Helper()
	l.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
}

// TestLabStranded: the daemon is killed at random moments while ENIs come and go. One that
// comes while it is down or masked gets DHCP, and so does one that was waiting for its files
// when the daemon was killed; when it is back, all is as it should be.
func TestLabStranded(t *testing.T) { // E9, C10
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		random := labtest.Seeded(t)
		rounds := (strandedKills + len(vpc.Suites) - 1) / len(vpc.Suites)
		if labtest.Long() {
			rounds = strandedKills
		}
		monitor := l.Monitor("ens5")
		var moving *vpc.ENI
		for n := range rounds {
			since := time.Now()
			moving = moveENI(l, random, moving)
			// The daemon needs a tenth of a second for any of that.
			time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
			when := fmt.Sprintf("in round %d of %d, after a kill", n+1, rounds)
			kill := func() { killDaemon(l) }
			steps := []func(){kill}
			mask := func() { l.Run("systemctl", "mask", "ec2netd.service") }
			switch random.IntN(3) {
			case 0:
				steps, when = append(steps, mask), when+" and a mask"
			case 1:
				steps, when = []func(){mask, kill}, when+" while it was masked"
			}
			for _, step := range steps {
				step()
			}
			late := time.Now()
			eni := l.Attach(vpc.ENISpec{IPv4Count: 1})
			hasDHCP(l, eni, late, when)
			if moving.Plugged() {
				hasDHCP(l, moving, since, when)
			}
			if len(steps) > 1 {
				l.AwaitHeld(false)
				if out := l.Run("systemctl", "show", "--value", "--property=MainPID", "ec2netd.service"); out != "0" {
					t.Fatalf("a masked daemon runs as %s %s", out, when)
				}
				l.Run("systemctl", "unmask", "ec2netd.service")
			}
			l.Run("systemctl", "start", "ec2netd.service")
			for _, e := range []*vpc.ENI{eni, moving} {
				if e.Plugged() {
					l.AwaitComplete(e, e.Name())
				}
			}
			l.Detach(eni)
		}
		if !moving.Plugged() {
			l.Reattach(moving, "")
		}
		l.AwaitSettled(moving)
		l.AwaitHeld(true)
		if left := l.Residue(); left != "" {
			t.Errorf("residue: %s", left)
		}
		for line := range strings.Lines(monitor()) {
			// It tells of ens50 too, and that DHCPv6 has renewed a lease.
			if f := strings.Fields(line); f[0] == "Deleted" && slices.Contains(f, "ens5") {
				t.Errorf("of the primary went: %s", line)
			}
		}
	})
}

// moveENI changes something of an ENI: it is attached, detached, or gets another address.
func moveENI(l *labtest.Lab, random *rand.Rand, eni *vpc.ENI) *vpc.ENI {
	l.T.Helper()
	var err error
	switch {
	case eni == nil:
		return l.Attach(labtest.HotplugSpec())
	case !eni.Plugged():
		l.Reattach(eni, "")
	case random.IntN(2) == 0:
		l.Detach(eni)
	case random.IntN(2) == 0 && len(eni.IPv4()) > 3:
		err = eni.UnassignIPv4(l.T.Context(), eni.IPv4()[2])
	default:
		_, err = eni.AssignIPv4(l.T.Context())
	}
	if err != nil {
		l.T.Fatal(err)
	}
	return eni
}

// TestLabReleased: whatever becomes of the daemon, its unit and its files, a new ENI gets
// DHCP, and each restart that works again has networkd wait for the daemon again.
func TestLabReleased(t *testing.T) { // E9
	const program, dropIn = "/usr/lib/ec2netd/ec2netd", "/run/systemd/system/ec2netd.service.d/test.conf"
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		configure := func(text string) {
			t.Helper()
			if text == "" {
				l.Run("rm", dropIn)
			} else {
				l.Put(dropIn, "[Service]\n"+text)
			}
			l.Run("systemctl", "daemon-reload")
		}
		again := func() {
			t.Helper()
			l.Run("systemctl", "restart", "ec2netd.service")
			l.AwaitConfigured("ens5")
			l.AwaitHeld(true)
		}
		l.AwaitConfigured("ens5")
		l.AwaitHeld(true)

		l.Run("systemctl", "disable", "--now", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		l.AwaitHeld(false)
		checkNewENI(l, "where the daemon is disabled")
		l.Run("systemctl", "enable", "--now", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		l.AwaitConfigured("ens5")
		l.AwaitHeld(true)

		// It lives for less than a second, again and again.
		configure("RuntimeMaxSec=700ms\nRestartSec=200ms\nKillSignal=SIGKILL\n")
		l.Run("systemctl", "restart", "ec2netd.service")
		for range 5 {
			checkNewENI(l, "in a crash loop")
		}
		configure("")
		again()

		// A restart releases nothing, and then the start does not come about.
		for what, text := range map[string]string{
			"the program fails":     "ExecStart=\nExecStart=/bin/false\n",
			"a condition fails":     "[Unit]\nConditionPathExists=/nowhere\n",
			"the directory is gone": "WorkingDirectory=/nowhere\n",
		} {
			configure("RestartSec=1h\n" + text)
			_, _ = l.Inst.Exec(t.Context(), "systemctl", "restart", "ec2netd.service")
			// A unit that systemd skips has not ended, so the file stays, without an effect.
			if what != "a condition fails" {
				l.AwaitHeld(false)
			}
			checkNewENI(l, "where a restart failed as "+what)
			configure("")
			again()
		}
		// The program is gone, so that it cannot release anything.
		for what, spoil := range map[string][2]string{
			"missing":        {"mv " + program + " " + program + ".away", "mv " + program + ".away " + program},
			"not executable": {"chmod 0644 " + program, "chmod 0755 " + program},
		} {
			l.Run("sh", "-c", spoil[0])
			killDaemon(l)
			checkNewENI(l, "where the program is "+what)
			l.AwaitHeld(false)
			l.Fails("systemctl", "restart", "ec2netd.service")
			checkNewENI(l, "where the program is "+what+", after a restart")
			l.Run("sh", "-c", spoil[1])
			again()
		}

		// What a version leaves that knew of all this when one takes its place that does not.
		files := []string{"/usr/lib/systemd/system/ec2netd-release.service", "/usr/lib/udev/rules.d/80-ec2netd.rules"}
		for _, file := range files {
			l.Run("mv", file, "/root/"+path.Base(file))
		}
		l.Run("systemctl", "daemon-reload")
		killDaemon(l)
		l.Run("systemctl", "mask", "ec2netd.service")
		l.AwaitHeld(true)
		checkNewENI(l, "where another version is installed")
		l.Run("systemctl", "unmask", "ec2netd.service")
		for _, file := range files {
			l.Run("mv", "/root/"+path.Base(file), file)
		}
		l.Run("systemctl", "daemon-reload")
		again()

		// Nobody can tell networkd.
		l.Run("systemctl", "stop", "dbus.socket", "dbus.service")
		killDaemon(l)
		l.Run("systemctl", "mask", "--runtime", "ec2netd.service")
		checkNewENI(l, "where there is no bus")
		l.AwaitHeld(false)
		l.Until("the release gives up", func() (bool, error) {
			// Not --unit=: of a process that has ended journald may not know the unit.
			out := l.DaemonLog()
			return strings.Contains(out, "Failed to let networkd configure new ENIs") && strings.Contains(out, "networkctl reload"), nil
		})
		l.Run("systemctl", "unmask", "--runtime", "ec2netd.service")
		l.Run("systemctl", "start", "dbus.socket", "dbus.service")
		l.Run("systemctl", "restart", "systemd-networkd.service")
		again()

		// At a shutdown networkd may be gone, and the bus too: there is nobody to tell.
		l.Run("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd.service")
		l.Run("systemctl", "stop", "dbus.socket", "dbus.service")
		began := time.Now()
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd-release.service")
		if took := time.Since(began); took >= releaseLimit {
			t.Errorf("where neither networkd nor the bus is there, the release took %s", took)
		}
		l.AwaitHeld(false)
		l.Run("systemctl", "start", "dbus.socket", "dbus.service")
		l.Run("systemctl", "start", "systemd-networkd.service")
		again()
	})
}
