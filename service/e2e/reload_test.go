package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// H12: systemctl reload takes up all but the platform, without losing a packet; a mistake is
// refused, and what was in force holds.
func TestLabReload(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		primary := l.inst.Primary()
		l.configured(primary.ID())
		eni := l.attach(vpc.ENISpec{Subnet: "b", IPv4Count: 3})
		l.configured(eni.ID())
		l.whole(eni)
		const file = "/etc/ec2netd.conf.d/reload.conf"
		pid := l.daemonPID()
		reload := func() {
			t.Helper()
			l.run("systemctl", "reload", "ec2netd.service")
			l.until("the reload is over", func() (bool, error) {
				return l.run("systemctl", "show", "--property=ActiveState", "--value", "ec2netd.service") == "active", nil
			})
		}
		result := l.measurePings(primary)
		others := eni.IPv4()[1:]
		has := func(want bool) {
			t.Helper()
			l.until(fmt.Sprintf("%s has its secondary addresses: %v", eni.Name(), want), func() (bool, error) {
				got := l.addresses(eni.Name())
				return slices.Contains(got, others[0]) == want && slices.Contains(got, others[1]) == want, nil
			})
		}
		l.put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=no\nDNS=192.0.2.53\n")
		reload()
		has(false)
		l.until("the DNS server is the ENI's", func() (bool, error) {
			return strings.HasSuffix(l.run("resolvectl", "dns", eni.Name()), ": 192.0.2.53"), nil
		})

		// A mistake beside something that is right: neither is taken up.
		l.put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=yes\nDNS=192.0.2.300\n")
		l.fails("systemctl", "reload", "ec2netd.service")
		l.run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "ec2netd.service")
		l.until("the state names the mistake", func() (bool, error) {
			s := l.describe()
			return s.State == state.Configured && strings.Contains(s.Reason, "reload.conf:4: ENI.DNS") && strings.Contains(s.Reason, "the former configuration holds"), nil
		})
		if log := l.run("journalctl", "--boot", "--unit=ec2netd.service", "--output=cat"); !strings.Contains(log, "reload.conf:4: ENI.DNS") {
			t.Errorf("the log has no word of the mistake:\n%s", log)
		}
		l.run("ec2netctl", "refresh", "--wait")
		has(false)

		l.put(file, "[Metadata]\nRefreshSec=1\n[Match]\nDriver=tun\n")
		reload()
		has(true)
		l.configured(eni.ID())
		if s := l.describe(); s.Reason != "" {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
		// RefreshSec=1: what is assigned comes without a word.
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.until(added[0].String()+" is there", func() (bool, error) { return slices.Contains(l.addresses(eni.Name()), added[0]), nil })
		if hold := l.run("cat", "/run/systemd/network/80-ec2-new.network"); !strings.Contains(hold, " tun") {
			t.Errorf("the unit for new ENIs has other drivers:\n%s", hold)
		}
		if got := result(); !got.none() {
			t.Errorf("the primary ENI lost %s", got)
		}

		// Without the driver there is no ENI, and what doctor says of that brings all back.
		l.put(file, "[Match]\nDriver=\nDriver=tun\n")
		reload()
		l.until("there is no ENI", func() (bool, error) { return len(l.describe().Interfaces) == 0, nil })
		command := l.between("then: ", "")(l.adviceOf("no link is an ENI"))
		driver := ""
		for line := range strings.Lines(l.run("networkctl", "status", "--no-pager", "ens5")) {
			if found, ok := strings.CutPrefix(strings.TrimSpace(line), "Driver: "); ok {
				driver = found
			}
		}
		l.put(file, "[Match]\nDriver="+driver+"\n")
		l.run("sh", "-c", command)
		l.configured("ens5")
		l.configured(eni.ID())
		l.whole(eni)
		if now := l.daemonPID(); now != pid {
			t.Errorf("process %s, %s before", now, pid)
		}
	})
}
