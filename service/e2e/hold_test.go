package e2e

import (
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
)

// networkd leaves an ENI alone that has just come until its own files are there, and so
// configures it once, also where its device number is late. One that is not known in time has the
// base unit, and so have all that come once the daemon is stopped.
func TestLabHold(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		l.configured("ens5")
		l.held(true)
		// What networkd did with a link, and what DHCP said of it.
		log := func(eni *vpc.ENI, of string) int {
			return strings.Count(l.networkdLog(), eni.Name()+": "+of)
		}
		once := func(eni *vpc.ENI) {
			t.Helper()
			if n := log(eni, "Configuring with ") + log(eni, "Reconfiguring with "); n != 1 {
				t.Errorf("networkd configured %s %d times:\n%s", eni.Name(), n, l.networkdLog())
			}
			if n := log(eni, "DHCP lease lost") + log(eni, "DHCPv6 lease lost"); n != 0 {
				t.Errorf("%s lost leases:\n%s", eni.Name(), l.networkdLog())
			}
		}
		base := func(eni *vpc.ENI) {
			t.Helper()
			l.until(eni.Name()+" has a lease by the base unit", func() (bool, error) {
				return strings.Contains(l.run("ip", "route", "show", "default", "dev", eni.Name()), "metric 30000"), nil
			})
		}
		spec := hotplugSpec()
		spec.Propagation = &imds.Propagation{Listed: 200 * time.Millisecond, Secondaries: 600 * time.Millisecond,
			Keys: map[string]time.Duration{"device-number": 2500 * time.Millisecond}}
		first := l.attach(spec)
		l.configured(first.ID())
		l.checkKernel(first)
		once(first)

		l.setEndpoints(vpc.EndpointRefused)
		unknown := l.attach(vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{}})
		base(unknown)
		l.held(false)
		l.setEndpoints(vpc.EndpointOn)
		l.configured(unknown.ID())
		l.checkKernel(unknown)
		l.held(true)
		once(first)

		inode := func() string { return l.run("stat", "--format=%i %Y", plan.HoldPath) }
		before := inode()
		l.run("systemctl", "restart", "ec2netd.service")
		l.configured(first.ID())
		if now := inode(); now != before {
			t.Errorf("a restart made the file anew: %s, before %s", now, before)
		}
		l.run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.held(false)
		alone := l.attach(vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{}})
		base(alone)
		l.run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
		l.configured(alone.ID())
		l.checkKernel(alone)
		l.held(true)
		once(first)
		// A signal is no restart.
		l.run("systemctl", "kill", "--kill-whom=main", "ec2netd.service")
		l.held(false)
		l.run("systemctl", "start", "ec2netd.service")
		l.configured(first.ID())
		l.held(true)
		// One whose unit is masked has the base unit, and the primary too.
		for _, name := range []string{alone.Name(), "ens5"} {
			mask := "/etc/systemd/network/70-" + name + ".network"
			l.put(mask, masked)
			l.reload()
			l.run("ec2netctl", "refresh")
			l.until(name+" has the base unit", func() (bool, error) {
				return strings.Contains(l.run("networkctl", "status", name), "80-ec2.network"), nil
			})
			l.held(false)
			l.run("rm", mask)
			l.reload()
			l.configured(name)
		}
		once(first)
		// An ENI that is left to others has the base unit, so none is held.
		l.put("/etc/ec2netd.conf.d/left.conf", "[ENI]\nName="+alone.Name()+"\nManaged=no\n")
		l.run("systemctl", "restart", "ec2netd.service")
		l.held(false)
		base(alone)
		once(first)
	})
}

// held waits until networkd leaves new ENIs alone, or does not.
func (l *lab) held(want bool) {
	l.t.Helper()
	l.until("new ENIs are held or not", func() (bool, error) {
		return (l.run("sh", "-c", "cat "+plan.HoldPath+" 2>/dev/null || true") != "") == want, nil
	})
}
