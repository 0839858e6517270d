package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// H12: systemctl reload takes up all but the platform, without losing a packet; a mistake is
// refused, and what was in force holds.
func TestLabReload(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		primary := l.Inst.Primary()
		l.AwaitConfigured(primary.ID())
		eni := l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 3})
		l.AwaitConfigured(eni.ID())
		l.CheckOwn(eni)
		const file = "/etc/ec2netd.conf.d/reload.conf"
		pid := l.DaemonPID()
		reload := func() {
			t.Helper()
			l.Run("systemctl", "reload", "ec2netd.service")
			l.Until("the reload is over", func() (bool, error) {
				return l.Run("systemctl", "show", "--property=ActiveState", "--value", "ec2netd.service") == "active", nil
			})
		}
		result := l.MeasurePings(primary)
		others := eni.IPv4()[1:]
		has := func(want bool) {
			t.Helper()
			l.Until(fmt.Sprintf("%s has its secondary addresses: %v", eni.Name(), want), func() (bool, error) {
				got := l.Addresses(eni.Name())
				return slices.Contains(got, others[0]) == want && slices.Contains(got, others[1]) == want, nil
			})
		}
		l.Put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=no\nDNS=192.0.2.53\n")
		reload()
		has(false)
		l.Until("the DNS server is the ENI's", func() (bool, error) {
			return strings.HasSuffix(l.Run("resolvectl", "dns", eni.Name()), ": 192.0.2.53"), nil
		})

		// A mistake beside something that is right: neither is taken up.
		l.Put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=yes\nDNS=192.0.2.300\n")
		l.Fails("systemctl", "reload", "ec2netd.service")
		l.Run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "ec2netd.service")
		l.Until("the state names the mistake", func() (bool, error) {
			s := l.Describe()
			return s.State == state.Configured && strings.Contains(s.Reason, "reload.conf:4: ENI.DNS") && strings.Contains(s.Reason, "the former configuration holds"), nil
		})
		if log := l.Run("journalctl", "--boot", "--unit=ec2netd.service", "--output=cat"); !strings.Contains(log, "reload.conf:4: ENI.DNS") {
			t.Errorf("the log has no word of the mistake:\n%s", log)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		has(false)

		l.Put(file, "[Metadata]\nRefreshSec=1\n[Match]\nDriver=tun\n")
		reload()
		has(true)
		l.AwaitConfigured(eni.ID())
		if s := l.Describe(); s.Reason != "" {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
		// RefreshSec=1: what is assigned comes without a word.
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Until(added[0].String()+" is there", func() (bool, error) { return slices.Contains(l.Addresses(eni.Name()), added[0]), nil })
		if hold := l.Run("cat", "/run/systemd/network/80-ec2-new.network"); !strings.Contains(hold, " tun") {
			t.Errorf("the unit for new ENIs has other drivers:\n%s", hold)
		}
		if got := result(); !got.None() {
			t.Errorf("the primary ENI lost %s", got)
		}

		// Without the driver there is no ENI, and what doctor says of that brings all back.
		l.Put(file, "[Match]\nDriver=\nDriver=tun\n")
		reload()
		l.Until("there is no ENI", func() (bool, error) { return len(l.Describe().Interfaces) == 0, nil })
		command := l.Between("then: ", "")(l.AdviceOf("no link is an ENI"))
		driver := ""
		for line := range strings.Lines(l.Run("networkctl", "status", "--no-pager", "ens5")) {
			if found, ok := strings.CutPrefix(strings.TrimSpace(line), "Driver: "); ok {
				driver = found
			}
		}
		l.Put(file, "[Match]\nDriver="+driver+"\n")
		l.Run("sh", "-c", command)
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(eni.ID())
		l.CheckOwn(eni)
		if now := l.DaemonPID(); now != pid {
			t.Errorf("process %s, %s before", now, pid)
		}
	})
}
