package e2e

import (
	"regexp"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// fakeVendor has what the firmware says of the machine, whatever the machine below says. sysfs
// takes no new directories, so a directory with all that is in /sys/devices/virtual, and with
// dmi of the test's own, takes its place.
const (
	fakeVendor  = "/run/fake/dmi/id/sys_vendor"
	fakeMachine = `#!/bin/sh
set -eu
mkdir -p /run/fake
mount -t tmpfs fake /run/fake
for each in /sys/devices/virtual/*; do
	name=${each##*/}
	[ "$name" = dmi ] && continue
	mkdir "/run/fake/$name"
	mount --bind "$each" "/run/fake/$name"
done
mkdir -p /run/fake/dmi/id
echo "$1" >` + fakeVendor + `
mount --rbind /run/fake /sys/devices/virtual
if [ -d /sys/hypervisor ]; then mount -t tmpfs fake /sys/hypervisor; fi
`
)

// On a machine that is no EC2 instance nothing is asked and nothing is
// configured, and everybody is told so; on one that is, all is as ever.
func TestLabUnsupported(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			// It comes after lab.conf, which says any.
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Match]\nPlatform=ec2\n"
			o.Files["/usr/local/lib/fake-machine"] = fakeMachine
			o.Files["/etc/systemd/system/fake-machine.service"] = "[Unit]\nDefaultDependencies=no\n[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
				"ExecStart=/bin/sh /usr/local/lib/fake-machine QEMU\n"
			o.Files["/etc/systemd/system/ec2netd.service.d/test.conf"] = "[Unit]\nRequires=fake-machine.service\nAfter=fake-machine.service\n"
		})
		s := l.AwaitManager(state.Unsupported)
		for _, words := range []string{"no EC2 instance", `"QEMU"`, "Platform=any", "ec2netd.conf(5)"} {
			if !strings.Contains(s.Reason, words) {
				t.Errorf("the reason lacks %q: %s", words, s.Reason)
			}
		}
		// The links are networkd's, by the base unit.
		l.Until("networkd has configured the link", func() (bool, error) {
			return len(l.Addresses("ens5")) > 0, nil
		})
		eni := l.Attach(labtest.HotplugSpec())
		l.Until("networkd has configured the second link", func() (bool, error) {
			return len(l.Addresses(eni.Name())) > 0, nil
		})
		tellsUnsupported(l)
		if files := l.Run("find", "/run/systemd/network", "/var/lib/ec2netd", "-type", "f"); files != "" {
			t.Errorf("files were written:\n%s", files)
		}
		if log := l.NetworkdLog(); strings.Contains(log, "econfiguring") || strings.Contains(log, "eload") {
			t.Errorf("networkd was told something:\n%s", log)
		}
		if requests := l.Inst.Metadata().Requests(); len(requests) > 0 {
			t.Errorf("the metadata service was asked: %+v", requests)
		}
		l.CheckLog("notice")
		if log := l.DaemonLog(); strings.Count(log, "\n") > 0 || !strings.HasPrefix(log, "Nothing is configured") {
			t.Errorf("the log is not one line:\n%s", log)
		}

		// It is to be one.
		const own = "/etc/ec2netd.conf.d/zz.conf"
		for _, advice := range []string{s.Reason, l.AdviceOf("this machine is no EC2 instance")} {
			setting := regexp.MustCompile(`set (Platform=\S+) in (\[Match\])`).FindStringSubmatch(advice)
			if setting == nil {
				t.Fatalf("the advice is %q", advice)
			}
			l.Put(own, setting[2]+"\n"+setting[1]+"\n")
			l.Obey(advice)
			l.AwaitConfigured("ens5")
			l.AwaitConfigured(eni.ID())
			l.Run("rm", own)
			l.Run("systemctl", "restart", "ec2netd.service")
			l.AwaitManager(state.Unsupported)
		}

		// The same machine, had it been an EC2 instance.
		l.Run("sh", "-c", "echo 'Amazon EC2' >"+fakeVendor)
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		l.AwaitHeld(true)

		// And back: what is configured stays, and new ENIs are networkd's again.
		l.Run("sh", "-c", "echo QEMU >"+fakeVendor)
		files := l.Files()
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitManager(state.Unsupported)
		l.AwaitHeld(false)
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		third := l.Attach(vpc.ENISpec{})
		l.Until("networkd has configured the third link", func() (bool, error) {
			return len(l.Addresses(third.Name())) > 0, nil
		})
	})
}

// tellsUnsupported checks what the tools make of a machine that is no EC2 instance.
func tellsUnsupported(l *labtest.Lab) {
	l.T.Helper()
	began := time.Now()
	if out := l.Run("sh", "-c", "ec2netctl wait-online 2>&1"); !strings.Contains(out, "not waiting: this machine is no EC2 instance") {
		l.T.Errorf("wait-online: %s", out)
	}
	if took := time.Since(began); took > 10*time.Second {
		l.T.Errorf("wait-online took %s", took)
	}
	l.Run("systemctl", "start", "ec2netd-wait-online.service")
	for tool, words := range map[string]string{
		"status": "unsupported (this machine is no EC2 instance", "list": "There is no ENI: this machine is no EC2 instance",
		"doctor": "this machine is no EC2 instance", "set-hostname": "The hostname stays",
	} {
		if out := l.Run("ec2netctl", tool); !strings.Contains(out, words) {
			l.T.Errorf("ec2netctl %s:\n%s", tool, out)
		}
	}
	for _, tool := range []string{"refresh", "dump-metadata", "plan", "takeover --dry-run"} {
		out := l.Fails(append([]string{"ec2netctl"}, strings.Fields(tool)...)...)
		if !strings.Contains(out, "no EC2 instance") || !strings.Contains(out, "Platform=any") {
			l.T.Errorf("ec2netctl %s: %s", tool, out)
		}
	}
}
