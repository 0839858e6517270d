package main

import (
	"fmt"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
)

// attempts are what the daemon must not be able to do, as shell commands that succeed
// where nothing prevents them: writing outside of its directories, reading what it does
// not need, and whatever takes a capability.
var attempts = []struct{ what, command string }{
	{"write to /etc", "touch /etc/ec2netd.attempt"},
	{"write to /usr", "touch /usr/lib/ec2netd/attempt"},
	{"write to /var", "touch /var/attempt"},
	{"write to /run outside of its directories", "touch /run/attempt"},
	{"read home directories", "cat /root/secret"},
	{"read what only its owner may", "cat /home/ec2-user/secret"},
	{"set the hostname", "hostname attempt"},
	{"change an address", "ip address add 192.0.2.9/32 dev lo"},
	{"change a route", "ip route add 192.0.2.0/24 dev lo"},
	{"change a rule", "ip rule add from 192.0.2.9 table 99"},
	{"mount", "mount -t tmpfs none /mnt"},
	{"make a namespace", "unshare --net true"},
	{"give files away", "cp /etc/hostname /run/ec2netd/attempt && chown nobody /run/ec2netd/attempt"},
	{"become another user", "setpriv --reuid=65534 --clear-groups true"},
	{"open a raw socket", "ping -c 1 -W 1 127.0.0.1"},
	{"end another process", "kill -TERM \"$(pidof systemd-networkd)\""},
}

// TestLabSandbox: the units pass systemd's own checks, and what is started in the place
// of the daemon is refused what the daemon does not need.
func TestLabSandbox(t *testing.T) { // I5
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
			script := "#!/bin/sh\nexec 2>/dev/null\n"
			for i, a := range attempts {
				script += fmt.Sprintf("if (%s) >/dev/null; then echo \"attempt %d: succeeded\"; else echo \"attempt %d: refused\"; fi\n", a.command, i, i)
			}
			o.Files["/usr/local/bin/attempts"] = script
			o.Files["/root/secret"] = "secret\n"
			o.Files["/home/ec2-user/secret"] = "secret\n"
		})
		l.configured("ens5")
		for _, unit := range []string{"ec2netd.service", "ec2netd.socket", "ec2netd-wait-online.service"} {
			if out := l.run("sh", "-c", "systemd-analyze verify --man=no "+unit+" 2>&1"); out != "" {
				t.Errorf("systemd-analyze verify %s:\n%s", unit, out)
			}
		}
		for _, unit := range []string{"ec2netd.service", "ec2netd-wait-online.service"} {
			// It fails above the threshold, ten times the figure.
			out := l.run("systemd-analyze", "security", "--threshold=20", "--no-pager", unit)
			t.Log(out[strings.LastIndex(out, "\n")+1:])
		}

		// The same attempts free, and in the place of the daemon.
		free := l.run("sh", "/usr/local/bin/attempts")
		l.run("sh", "-c", "rm -f /etc/ec2netd.attempt /usr/lib/ec2netd/attempt /var/attempt /run/attempt /run/ec2netd/attempt; umount /mnt; ip rule del table 99; systemctl stop ec2netd.service ec2netd.socket")
		l.put("/run/systemd/system/ec2netd.service.d/attempts.conf", "[Service]\nType=oneshot\nNotifyAccess=none\nWatchdogSec=0\nRestart=no\nExecStart=\nExecStart=/bin/sh /usr/local/bin/attempts\nStandardOutput=file:/run/ec2netd/attempts.log\n")
		l.run("systemctl", "daemon-reload")
		l.run("systemctl", "start", "ec2netd.service")
		got := l.run("cat", "/run/ec2netd/attempts.log")
		for i, a := range attempts {
			if !strings.Contains(free, fmt.Sprintf("attempt %d: succeeded", i)) {
				t.Logf("to %s is refused here without the sandbox too", a.what)
			}
			if !strings.Contains(got, fmt.Sprintf("attempt %d: refused", i)) {
				t.Errorf("it can %s (%s)", a.what, a.command)
			}
		}
		if got == free {
			t.Error("the sandbox makes no difference: the test proves nothing")
		}
	})
}
