package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// G1, G2: an ENI gets its alternative names without an event that others take for another link that
// comes, and .link files of others keep their effect, whenever they come.
func TestLabUevents(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		l.Run("systemd-run", "--quiet", "--unit=uevents", "stdbuf", "-oL", "udevadm", "monitor", "--kernel", "--subsystem-match=net")
		events := func() (of []string) {
			for line := range strings.Lines(l.Run("journalctl", "--unit=uevents", "--output=cat", "--no-pager")) {
				if fields := strings.Fields(line); len(fields) > 3 && strings.HasPrefix(fields[0], "KERNEL[") {
					of = append(of, fields[1]+" "+fields[2][strings.LastIndex(fields[2], "/")+1:])
				}
			}
			return of
		}
		l.Until("udevadm listens", func() (bool, error) {
			l.Run("udevadm", "trigger", "--action=change", "/sys/class/net/lo")
			return slices.Contains(events(), "change lo"), nil
		})
		eni := l.Attach(labtest.HotplugSpec())
		name := eni.Name()
		named := func() {
			t.Helper()
			entry := l.AwaitConfigured(eni.ID())
			link := l.Run("ip", "link", "show", name)
			for _, altname := range entry.Altnames {
				if !strings.Contains(link, "altname "+altname+"\n") && !strings.HasSuffix(link, "altname "+altname) {
					t.Errorf("no %s: %s", altname, link)
				}
			}
		}
		named()
		l.Run("systemctl", "restart", "ec2netd.service")
		named()
		own := events()
		own = slices.DeleteFunc(own, func(event string) bool {
			return !strings.HasSuffix(event, " "+name) && !strings.HasSuffix(event, " ens5")
		})
		if want := []string{"add " + name}; !slices.Equal(own, want) {
			t.Errorf("uevents %q, want %q", own, want)
		}

		queue := func(want int) {
			t.Helper()
			l.Run("ec2netctl", "refresh", "--wait")
			l.Run("udevadm", "control", "--reload")
			l.Run("udevadm", "trigger", "--action=add", "/sys/class/net/"+name)
			l.Until(fmt.Sprintf("the queue of %s has %d packets", name, want), func() (bool, error) {
				return strings.Contains(l.Run("ip", "-o", "link", "show", name), fmt.Sprintf(" qlen %d", want)), nil
			})
		}
		l.Put("/etc/systemd/network/99-default.link.d/queue.conf", "[Link]\nTransmitQueueLength=701\n")
		queue(701)
		l.Put("/etc/systemd/network/80-late.link", "[Match]\nMACAddress="+eni.MAC().String()+"\n\n[Link]\nTransmitQueueLength=702\n")
		queue(702)
		l.Run("rm", "/etc/systemd/network/80-late.link")
		queue(701)
		named()
		l.Detach(eni)
		l.AwaitGone(eni, 1)
		if left := l.Run("sh", "-c", "ls -d /run/systemd/network/70-"+name+"* 2>/dev/null || :"); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}

// G1, G2: where no .link file applies, as with a masked 99-default.link, the altnames
// come all the same and the name stays the kernel's.
func TestLabNoLinkFile(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.MaskFile(o, "etc/systemd/network/99-default.link")
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(vpc.ENISpec{Name: "eth7"})
		l.AwaitConfigured(eni.ID())
		for _, altname := range []string{eni.ID(), "device-number-1"} {
			if out := l.Run("ip", "-brief", "link", "show", altname); !strings.HasPrefix(out, "eth7") {
				t.Errorf("%s: %s", altname, out)
			}
		}
		l.Run("ec2netctl", "refresh", "--wait")
		files := l.Files()
		l.Run("ec2netctl", "refresh", "--wait")
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckLog("warning")
	})
}
