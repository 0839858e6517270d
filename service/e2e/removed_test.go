package e2e

import (
	"net"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// daemonFiles are files of the daemon's, by path, with what they say: their own, and those for networkd
// and udevd. Of those that tell the time or a process there is the path alone.
func daemonFiles(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("sh", "-c", "find "+ownPaths+` -name '.*' -prune -o -type d -printf '%p %M\n' -o ! -name running ! -name '*.json' -printf '%p %y %l\n' -o -printf '%p\n' 2>/dev/null | sort
		grep -r '' /run/systemd/network /run/ec2netd/networkd-start 2>/dev/null | sort
		! test -e /run/ec2netd/running || echo udevd knows that the daemon runs`)
}

// ownPaths are the directories and sockets of the daemon.
const ownPaths = "/run/systemd/network /run/ec2netd /var/lib/ec2netd /run/systemd/report/org.ec2netd /run/varlink/registry/org.ec2netd.Network"

// inodesOfFiles tell the files from others of the same names, which may have each other's numbers.
func inodesOfFiles(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("sh", "-c", "find "+ownPaths+" -printf '%p %D %i %B@\\n' | sort")
}

// socketsListen reports whether the daemon answers at the files of its sockets.
func socketsListen(l *labtest.Lab) bool {
	l.T.Helper()
	for _, socket := range []string{"/run/ec2netd/org.ec2netd.Network", "/run/systemd/report/org.ec2netd"} {
		var dialer net.Dialer
		conn, err := dialer.DialContext(l.T.Context(), "unix", l.Inst.Path(socket))
		if err != nil {
			return false
		}
		defer conn.Close()
		_ = conn.SetDeadline(time.Now().Add(labtest.Patience))
		_, err = conn.Write([]byte("{\"method\":\"org.varlink.service.GetInfo\"}\x00"))
		reply := make([]byte, 4096)
		n, readErr := conn.Read(reply)
		if err != nil || readErr != nil || !strings.Contains(string(reply[:n]), "org.ec2netd.Network") {
			return false
		}
	}
	return true
}

// awaitIntact waits until ENIs are configured and have all that they should.
func awaitIntact(l *labtest.Lab, enis ...*vpc.ENI) {
	l.T.Helper()
	for _, eni := range enis {
		if eni != l.Inst.Primary() {
			l.AwaitComplete(eni, eni.Name())
			continue
		}
		l.AwaitConfigured(eni.ID())
		if err := l.Inst.AwaitAddrs(l.T.Context(), eni.Name(), slices.Concat(eni.IPv4(), eni.IPv6())...); err != nil {
			l.T.Error(err)
		}
	}
}

// removal is what somebody removes of the daemon's.
type removal struct {
	what, command string
	// restarts: only another run of the daemon has what is removed.
	restarts bool
}

// remove is the command of somebody who removes directories, also where the daemon writes a file
// into one of them in the same moment.
func remove(dirs string) string { return "until rm -rf " + dirs + "; do :; done" }

// F12: files, directories and sockets of the daemon's that somebody removes are back within 5 s,
// with the bytes that they had, and no ENI loses a packet.
func TestLabRemoved(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		primary, eni := l.Inst.Primary(), l.Attach(labtest.HotplugSpec())
		l.AwaitSettled(eni)
		l.AwaitHeld(true)
		l.AwaitAssignment(primary)
		l.AwaitConfigured("ens5")
		for _, r := range []removal{
			{"a drop-in", "rm /run/systemd/network/70-ens6.network.d/50-ec2netd.conf", false},
			{"all units", "find /run/systemd/network -type l -delete", false},
			{"the unit for new ENIs", "rm " + plan.HoldPath, false},
			{"all generated files", "rm -r /run/systemd/network/*", false},
			{"what a restart needs", "rm /run/ec2netd/*.json /var/lib/ec2netd/boot.json", false},
			{"what networkd, udevd and cloud-init look for", "rm -rf /run/ec2netd/networkd-start; rm /run/ec2netd/running /run/ec2netd/cloud-init.cfg", false},
			{"the directory of generated files", remove("/run/systemd/network"), false},
			{"the same, again", remove("/run/systemd/network"), false},
			{"the same, moved", "rm -rf /run/moved; mv /run/systemd/network /run/moved", false},
			// systemd 252 cannot mount over what is mounted from a directory that is gone.
			{"the directory that outlives a boot", remove("/var/lib/ec2netd"), suite == "bookworm"},
			{"the same, moved", "mv /var/lib/ec2netd /var/lib/moved", false},
			{"a socket", "rm /run/ec2netd/org.ec2netd.Network", true},
			{"the other socket", remove("/run/systemd/report"), true},
			{"what tells of a socket", "rm /run/varlink/registry/org.ec2netd.Network", true},
			{"the directory of its own", remove("/run/ec2netd"), true},
			{"everything", remove("/run/systemd/network /run/ec2netd /var/lib/ec2netd /run/systemd/report"), true},
		} {
			comesBack(l, r, suite, primary, eni)
		}
		// It works in what it has got anew, and does nothing by itself.
		l.AwaitAssignment(eni)
		l.AwaitSettled(eni)
		third := l.Attach(labtest.HotplugSpec())
		l.AwaitSettled(third)
		l.Detach(third)
		l.AwaitGone(third, 2)
		writes := watchWrites(l, "/run/systemd/network", "/run/ec2netd", "/var/lib/ec2netd")
		reloads := l.Describe().Networkd.Reloads
		time.Sleep(3 * time.Second) // that nothing happens has no event
		if found := writes(); len(found) > 0 || l.Describe().Networkd.Reloads != reloads {
			t.Errorf("with nothing removed the daemon writes: %v", found)
		}

		// Where networkd reads its directory in between, the ENIs have the base unit for a moment.
		l.Run("sh", "-c", remove("/run/systemd/network")+"; networkctl reload")
		awaitIntact(l, primary, eni)
		l.CountDrops()
		for _, source := range slices.Concat(primary.IPv4(), eni.IPv4(), eni.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// comesBack removes something, and checks that it is back in time, and what that cost.
func comesBack(l *labtest.Lab, r removal, suite string, primary, eni *vpc.ENI) {
	l.T.Helper()
	l.AwaitManager(state.Configured)
	before, inodes, pid := daemonFiles(l), inodesOfFiles(l), l.DaemonPID()
	others, finish := l.MeasurePings(primary), l.Measure(eni)
	began := time.Now()
	l.Run("sh", "-ec", r.command)
	var now string
	l.UntilOr("it is there again: "+r.what, func() (bool, error) {
		now = daemonFiles(l)
		return now == before && socketsListen(l), nil
	}, &now)
	if took := time.Since(began); took > backTime {
		l.T.Errorf("%s: back after %v", r.what, took)
	} else {
		l.T.Logf("%s: back after %v", r.what, took.Round(10*time.Millisecond))
	}
	if inodesOfFiles(l) == inodes {
		l.T.Errorf("%s: nothing was gone", r.what)
	}
	l.AwaitManager(state.Configured)
	awaitIntact(l, primary, eni)
	if restarted := l.DaemonPID() != pid; restarted != r.restarts {
		l.T.Errorf("%s: the daemon was restarted: %v", r.what, restarted)
	}
	cost, other := finish(), others()
	if !cost.None() || other.Lost != (&labtest.Losses{}).Lost {
		l.T.Errorf("%s: it cost %s; the primary %s", r.what, cost, other)
	}
	for _, line := range cost.Deleted {
		// Beside what 252 drops of a router with each reload stands a static route.
		if suite != "bookworm" || !strings.Contains(line, " proto ra ") {
			for _, kept := range []string{eni.IPv4()[0].String() + "/", eni.IPv4()[1].String() + "/", eni.IPv6()[0].String() + "/", "default", "lookup"} {
				if strings.Contains(line, kept) {
					l.T.Errorf("%s: %s", r.what, line)
				}
			}
		}
	}
}

// systemdUpgraded restarts what an upgrade of systemd restarts, in the order of Debian's packages.
const systemdUpgraded = "systemctl daemon-reexec; systemctl restart systemd-journald.service; systemctl try-restart systemd-networkd.service systemd-resolved.service; systemctl restart systemd-udevd.service"
