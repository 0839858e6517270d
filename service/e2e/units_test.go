package e2e

import (
	"fmt"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
)

// TestLabUnits: what clean, disable, mask and presets do to the units harms nobody's files and
// is not undone by a call, and the daemon works where its state directory cannot be written.
func TestLabUnits(t *testing.T) { // F9
	units := []string{"ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket"}
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		systemctl := func(verb ...string) {
			t.Helper()
			l.Run(append(append([]string{"systemctl"}, verb...), units...)...)
		}
		for _, unit := range []string{"ec2netd.service", "ec2netd-release.service"} {
			// Or PrivateDevices=yes fails now and then at boot.
			if after := l.Run("systemctl", "show", "--property=After", unit); !strings.Contains(after, "systemd-tmpfiles-setup.service") {
				t.Errorf("%s starts while /tmp is emptied: %s", unit, after)
			}
		}
		// calls tells whether a user's call starts the daemon.
		calls := func(want bool, when string) {
			t.Helper()
			for _, ask := range [][]string{
				{"busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"}, {"ec2netctl", "status"},
			} {
				out, err := l.Inst.Exec(t.Context(), append([]string{"runuser", "-u", "nobody", "--"}, ask...)...)
				if (err == nil) != want {
					t.Errorf("%q %s: %v %s", ask, when, err, out)
				}
				if err != nil && ask[0] == "ec2netctl" && !strings.Contains(err.Error(), "systemctl") {
					t.Errorf("ec2netctl does not say what to do %s: %v", when, err)
				}
			}
			state := l.Run("sh", "-c", "systemctl is-active ec2netd.service || :")
			if (state == "active") != want {
				t.Errorf("after the calls %s the daemon is %s", when, state)
			}
		}

		const others = "/run/systemd/network/60-other.network"
		l.Put(others, "[Match]\nName=eth9\n")
		files := l.Files()
		l.Run("systemctl", "stop", "ec2netd.service")
		l.AwaitHeld(false)
		for _, unit := range append([]string{"ec2netd-release.service", "ec2netd-orphans.service", "ec2netd-networkd-start.service"}, units...) {
			// It fails where there is nothing to clean, and sockets are active.
			_, _ = l.Inst.Exec(t.Context(), "systemctl", "clean", "--what=all", unit)
		}
		if text := l.Run("cat", others); !strings.Contains(text, "eth9") {
			t.Errorf("systemctl clean left of others' file: %s", text)
		}
		calls(true, "after systemctl clean")
		l.AwaitConfigured("ens5")
		l.AwaitHeld(true)
		if now := l.Files(); now != files {
			t.Errorf("systemctl clean changed\n%s\nbefore:\n%s", now, files)
		}

		systemctl("disable", "--now")
		calls(false, "where the units are disabled")
		systemctl("preset")
		l.Run("systemctl", "daemon-reload")
		l.Run("systemctl", "start", "ec2netd.socket")
		calls(true, "where presets have enabled them again")
		systemctl("mask", "--now")
		calls(false, "where they are masked")
		systemctl("unmask")
		l.Run("systemctl", "start", "ec2netd.socket")
		calls(true, "where they are unmasked")
		for _, off := range [][]string{{"disable", "--now"}, {"mask", "--now"}, {"mask", "--runtime", "--now"}} {
			systemctl(off...)
			l.Until("nothing is being stopped any more", func() (bool, error) {
				return l.Run("systemctl", "list-jobs", "--no-legend") == "", nil
			})
			l.Obey(l.ToHaveIt(l.Fails("ec2netctl", "status")))
			calls(true, fmt.Sprintf("after what status says against %q", off))
			systemctl("enable") // one that is not needed is left as it was
		}
		// The service runs without its socket.
		l.Run("systemctl", "mask", "--now", "ec2netd.socket")
		l.Run("systemctl", "restart", "ec2netd.service")
		l.Obey(l.ToHaveIt(l.Fails("ec2netctl", "status")))
		calls(true, "after what status says where the socket alone was masked")
		checkPermission(l)
		cloudSetupGoes(l)
		l.AwaitConfigured("ens5")

		// Whatever /var is, and however it is mounted.
		for what, options := range map[string]string{"read-only": "ro", "full": "nr_inodes=1"} {
			l.Run("systemctl", "stop", "ec2netd.service")
			l.Run("mount", "-t", "tmpfs", "-o", options, "none", "/var/lib")
			l.Run("systemctl", "start", "ec2netd.service")
			eni := l.Attach(labtest.HotplugSpec())
			l.AwaitSettled(eni)
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			if out, err := l.Inst.Exec(t.Context(), "ls", "/var/lib/ec2netd"); err == nil {
				t.Errorf("where /var is %s there is a state directory: %s", what, out)
			}
			l.Run("umount", "/var/lib")
		}
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitConfigured("ens5")
		l.Until("the hint is stored", func() (bool, error) {
			_, err := l.Inst.Exec(t.Context(), "test", "-s", "/var/lib/ec2netd/boot.json")
			return err == nil, nil
		})
	})
}
