package e2e

import (
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
)

// networkd leaves an ENI alone that has just come until its own files are there, and so
// configures it once, also where its device number is late. One that is not known in time has the
// base unit, and so have all that come once the daemon is stopped.
func TestLabHold(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		l.AwaitHeld(true)
		// What networkd did with a link, and what DHCP said of it.
		log := func(eni *vpc.ENI, of string) int {
			return strings.Count(l.NetworkdLog(), eni.Name()+": "+of)
		}
		once := func(eni *vpc.ENI) {
			t.Helper()
			if n := log(eni, "Configuring with ") + log(eni, "Reconfiguring with "); n != 1 {
				t.Errorf("networkd configured %s %d times:\n%s", eni.Name(), n, l.NetworkdLog())
			}
			if n := log(eni, "DHCP lease lost") + log(eni, "DHCPv6 lease lost"); n != 0 {
				t.Errorf("%s lost leases:\n%s", eni.Name(), l.NetworkdLog())
			}
		}
		base := func(eni *vpc.ENI) {
			t.Helper()
			l.Until(eni.Name()+" has a lease by the base unit", func() (bool, error) {
				return strings.Contains(l.Run("ip", "route", "show", "default", "dev", eni.Name()), "metric 30000"), nil
			})
		}
		spec := labtest.HotplugSpec()
		spec.Propagation = &imds.Propagation{Listed: 200 * time.Millisecond, Secondaries: 600 * time.Millisecond,
			Keys: map[string]time.Duration{"device-number": 2500 * time.Millisecond}}
		first := l.Attach(spec)
		l.AwaitConfigured(first.ID())
		l.CheckKernel(first)
		once(first)

		l.SetEndpoints(vpc.EndpointRefused)
		unknown := l.Attach(vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{}})
		base(unknown)
		l.AwaitHeld(false)
		l.SetEndpoints(vpc.EndpointOn)
		l.AwaitConfigured(unknown.ID())
		l.CheckKernel(unknown)
		l.AwaitHeld(true)
		once(first)

		inode := func() string { return l.Run("stat", "--format=%i %Y", plan.HoldPath) }
		before := inode()
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitConfigured(first.ID())
		if now := inode(); now != before {
			t.Errorf("a restart made the file anew: %s, before %s", now, before)
		}
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.AwaitHeld(false)
		alone := l.Attach(vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{}})
		base(alone)
		l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
		l.AwaitConfigured(alone.ID())
		l.CheckKernel(alone)
		l.AwaitHeld(true)
		once(first)
		// A signal is no restart.
		l.Run("systemctl", "kill", "--kill-whom=main", "ec2netd.service")
		l.AwaitHeld(false)
		l.Run("systemctl", "start", "ec2netd.service")
		l.AwaitConfigured(first.ID())
		l.AwaitHeld(true)
		// One whose unit is masked has the base unit, and the primary too.
		for _, name := range []string{alone.Name(), "ens5"} {
			mask := "/etc/systemd/network/70-" + name + ".network"
			l.Put(mask, labtest.Masked)
			l.Reload()
			l.Run("ec2netctl", "refresh")
			l.Until(name+" has the base unit", func() (bool, error) {
				return strings.Contains(l.Run("networkctl", "status", name), "80-ec2.network"), nil
			})
			l.AwaitHeld(false)
			l.Run("rm", mask)
			l.Reload()
			l.AwaitConfigured(name)
		}
		once(first)
		// An ENI that is left to others has the base unit, so none is held.
		l.Put("/etc/ec2netd.conf.d/left.conf", "[ENI]\nName="+alone.Name()+"\nManaged=no\n")
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitHeld(false)
		base(alone)
		once(first)
	})
}
