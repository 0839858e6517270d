package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
)

// G1, G2: an ENI gets its alternative names without an event that others take for another link that
// comes, and .link files of others keep their effect, whenever they come.
func TestLabUevents(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		l.configured("ens5")
		l.run("systemd-run", "--quiet", "--unit=uevents", "stdbuf", "-oL", "udevadm", "monitor", "--kernel", "--subsystem-match=net")
		events := func() (of []string) {
			for line := range strings.Lines(l.run("journalctl", "--unit=uevents", "--output=cat", "--no-pager")) {
				if fields := strings.Fields(line); len(fields) > 3 && strings.HasPrefix(fields[0], "KERNEL[") {
					of = append(of, fields[1]+" "+fields[2][strings.LastIndex(fields[2], "/")+1:])
				}
			}
			return of
		}
		l.until("udevadm listens", func() (bool, error) {
			l.run("udevadm", "trigger", "--action=change", "/sys/class/net/lo")
			return slices.Contains(events(), "change lo"), nil
		})
		eni := l.attach(hotplugSpec())
		name := eni.Name()
		named := func() {
			t.Helper()
			entry := l.configured(eni.ID())
			link := l.run("ip", "link", "show", name)
			for _, altname := range entry.Altnames {
				if !strings.Contains(link, "altname "+altname+"\n") && !strings.HasSuffix(link, "altname "+altname) {
					t.Errorf("no %s: %s", altname, link)
				}
			}
		}
		named()
		l.run("systemctl", "restart", "ec2netd.service")
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
			l.run("ec2netctl", "refresh", "--wait")
			l.run("udevadm", "control", "--reload")
			l.run("udevadm", "trigger", "--action=add", "/sys/class/net/"+name)
			l.until(fmt.Sprintf("the queue of %s has %d packets", name, want), func() (bool, error) {
				return strings.Contains(l.run("ip", "-o", "link", "show", name), fmt.Sprintf(" qlen %d", want)), nil
			})
		}
		l.put("/etc/systemd/network/99-default.link.d/queue.conf", "[Link]\nTransmitQueueLength=701\n")
		queue(701)
		l.put("/etc/systemd/network/80-late.link", "[Match]\nMACAddress="+eni.MAC().String()+"\n\n[Link]\nTransmitQueueLength=702\n")
		queue(702)
		l.run("rm", "/etc/systemd/network/80-late.link")
		queue(701)
		named()
		l.detach(eni)
		l.gone(eni, 1)
		if left := l.run("sh", "-c", "ls -d /run/systemd/network/70-"+name+"* 2>/dev/null || :"); left != "" {
			t.Errorf("left: %s", left)
		}
	})
}
