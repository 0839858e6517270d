package e2e

import (
	"fmt"
	"math/rand/v2"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

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
func (l *lab) hasDHCP(eni *vpc.ENI, since time.Time, when string) {
	l.t.Helper()
	l.until(eni.Name()+" has an address "+when, func() (bool, error) {
		return slices.Contains(l.addresses(eni.Name()), eni.IPv4()[0]), nil
	})
	if took := time.Since(since); took > dhcpTime {
		l.t.Errorf("%s has an address %s after %s", eni.Name(), when, took)
	}
}

// comes attaches an ENI that must get DHCP, and detaches it.
func (l *lab) comes(when string) {
	l.t.Helper()
	since := time.Now()
	eni := l.attach(vpc.ENISpec{IPv4Count: 1})
	l.hasDHCP(eni, since, when)
	l.detach(eni)
}

func (l *lab) kill() {
	l.t.Helper()
	l.run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
}

// TestLabStranded: the daemon is killed at random moments while ENIs come and go. One that
// comes while it is down or masked gets DHCP, and so does one that was waiting for its files
// when the daemon was killed; when it is back, all is as it should be.
func TestLabStranded(t *testing.T) { // E9, C10
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, refreshing)
		l.configured("ens5")
		random := seeded(t)
		rounds := (strandedKills + len(vpc.Suites) - 1) / len(vpc.Suites)
		if whole() {
			rounds = strandedKills
		}
		monitor := l.monitor("ens5")
		var moving *vpc.ENI
		for n := range rounds {
			since := time.Now()
			moving = l.moves(random, moving)
			// The daemon needs a tenth of a second for any of that.
			time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
			when := fmt.Sprintf("in round %d of %d, after a kill", n+1, rounds)
			steps := []func(){l.kill}
			mask := func() { l.run("systemctl", "mask", "ec2netd.service") }
			switch random.IntN(3) {
			case 0:
				steps, when = append(steps, mask), when+" and a mask"
			case 1:
				steps, when = []func(){mask, l.kill}, when+" while it was masked"
			}
			for _, step := range steps {
				step()
			}
			late := time.Now()
			eni := l.attach(vpc.ENISpec{IPv4Count: 1})
			l.hasDHCP(eni, late, when)
			if moving.Plugged() {
				l.hasDHCP(moving, since, when)
			}
			if len(steps) > 1 {
				l.held(false)
				if out := l.run("systemctl", "show", "--value", "--property=MainPID", "ec2netd.service"); out != "0" {
					t.Fatalf("a masked daemon runs as %s %s", out, when)
				}
				l.run("systemctl", "unmask", "ec2netd.service")
			}
			l.run("systemctl", "start", "ec2netd.service")
			for _, e := range []*vpc.ENI{eni, moving} {
				if e.Plugged() {
					l.complete(e, e.Name())
				}
			}
			l.detach(eni)
		}
		if !moving.Plugged() {
			l.reattach(moving, "")
		}
		l.settled(moving)
		l.held(true)
		if left := l.residue(); left != "" {
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

// moves changes something of an ENI: it is attached, detached, or gets another address.
func (l *lab) moves(random *rand.Rand, eni *vpc.ENI) *vpc.ENI {
	l.t.Helper()
	var err error
	switch {
	case eni == nil:
		return l.attach(hotplugSpec())
	case !eni.Plugged():
		l.reattach(eni, "")
	case random.IntN(2) == 0:
		l.detach(eni)
	case random.IntN(2) == 0 && len(eni.IPv4()) > 3:
		err = eni.UnassignIPv4(l.t.Context(), eni.IPv4()[2])
	default:
		_, err = eni.AssignIPv4(l.t.Context())
	}
	if err != nil {
		l.t.Fatal(err)
	}
	return eni
}

// TestLabReleased: whatever becomes of the daemon, its unit and its files, a new ENI gets
// DHCP, and each restart that works again has networkd wait for the daemon again.
func TestLabReleased(t *testing.T) { // E9
	const program, dropIn = "/usr/lib/ec2netd/ec2netd", "/run/systemd/system/ec2netd.service.d/test.conf"
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		configure := func(text string) {
			t.Helper()
			if text == "" {
				l.run("rm", dropIn)
			} else {
				l.put(dropIn, "[Service]\n"+text)
			}
			l.run("systemctl", "daemon-reload")
		}
		again := func() {
			t.Helper()
			l.run("systemctl", "restart", "ec2netd.service")
			l.configured("ens5")
			l.held(true)
		}
		l.configured("ens5")
		l.held(true)

		l.run("systemctl", "disable", "--now", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		l.held(false)
		l.comes("where the daemon is disabled")
		l.run("systemctl", "enable", "--now", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		l.configured("ens5")
		l.held(true)

		// It lives for less than a second, again and again.
		configure("RuntimeMaxSec=700ms\nRestartSec=200ms\nKillSignal=SIGKILL\n")
		l.run("systemctl", "restart", "ec2netd.service")
		for range 5 {
			l.comes("in a crash loop")
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
			_, _ = l.inst.Exec(t.Context(), "systemctl", "restart", "ec2netd.service")
			// A unit that systemd skips has not ended, so the file stays, without an effect.
			if what != "a condition fails" {
				l.held(false)
			}
			l.comes("where a restart failed as " + what)
			configure("")
			again()
		}
		// The program is gone, so that it cannot release anything.
		for what, spoil := range map[string][2]string{
			"missing":        {"mv " + program + " " + program + ".away", "mv " + program + ".away " + program},
			"not executable": {"chmod 0644 " + program, "chmod 0755 " + program},
		} {
			l.run("sh", "-c", spoil[0])
			l.kill()
			l.comes("where the program is " + what)
			l.held(false)
			l.fails("systemctl", "restart", "ec2netd.service")
			l.comes("where the program is " + what + ", after a restart")
			l.run("sh", "-c", spoil[1])
			again()
		}

		// What a version leaves that knew of all this when one takes its place that does not.
		files := []string{"/usr/lib/systemd/system/ec2netd-release.service", "/usr/lib/udev/rules.d/80-ec2netd.rules"}
		for _, file := range files {
			l.run("mv", file, "/root/"+path.Base(file))
		}
		l.run("systemctl", "daemon-reload")
		l.kill()
		l.run("systemctl", "mask", "ec2netd.service")
		l.held(true)
		l.comes("where another version is installed")
		l.run("systemctl", "unmask", "ec2netd.service")
		for _, file := range files {
			l.run("mv", "/root/"+path.Base(file), file)
		}
		l.run("systemctl", "daemon-reload")
		again()

		// Nobody can tell networkd.
		l.run("systemctl", "stop", "dbus.socket", "dbus.service")
		l.kill()
		l.run("systemctl", "mask", "--runtime", "ec2netd.service")
		l.comes("where there is no bus")
		l.held(false)
		l.until("the release gives up", func() (bool, error) {
			// Not --unit=: of a process that has ended journald may not know the unit.
			out := l.run("journalctl", "--boot", "--identifier=ec2netd", "--output=cat", "--no-pager")
			return strings.Contains(out, "Failed to let networkd configure new ENIs") && strings.Contains(out, "networkctl reload"), nil
		})
		l.run("systemctl", "unmask", "--runtime", "ec2netd.service")
		l.run("systemctl", "start", "dbus.socket", "dbus.service")
		l.run("systemctl", "restart", "systemd-networkd.service")
		again()

		// At a shutdown networkd may be gone, and the bus too: there is nobody to tell.
		l.run("systemctl", "stop", "systemd-networkd.socket", "systemd-networkd.service")
		l.run("systemctl", "stop", "dbus.socket", "dbus.service")
		began := time.Now()
		l.run("systemctl", "stop", "ec2netd.service", "ec2netd-release.service")
		if took := time.Since(began); took >= releaseLimit {
			t.Errorf("where neither networkd nor the bus is there, the release took %s", took)
		}
		l.held(false)
		l.run("systemctl", "start", "dbus.socket", "dbus.service")
		l.run("systemctl", "start", "systemd-networkd.service")
		again()
	})
}
