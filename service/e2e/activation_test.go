package e2e

import (
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
)

// H1, H2: the service starts when it is asked for, over D-Bus and over the socket,
// by an ordinary user too.
func TestLabActivation(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		asks := [][]string{
			{"busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"},
			{"busctl", "introspect", "org.ec2netd1", "/org/ec2netd1"},
			{"ec2netctl", "status"},
		}
		if suite != "bookworm" {
			asks = append(asks, []string{"varlinkctl", "call", "/run/ec2netd/org.ec2netd.Network", "org.ec2netd.Network.Describe", "{}"})
		}
		for _, ask := range asks {
			files := l.Files()
			l.Run("systemctl", "stop", "ec2netd.service")
			if now := l.Files(); now != files {
				t.Errorf("stopping the daemon changed files:\n%s", now)
			}
			out := l.AsUser(ask...)
			l.Until("the service is active", func() (bool, error) {
				_, err := l.Inst.Exec(t.Context(), "systemctl", "is-active", "ec2netd.service")
				return err == nil, nil
			})
			// The last view is kept over the restart, so the first answer knows the ENI.
			if ask[1] != "introspect" && !strings.Contains(out, l.Inst.Primary().ID()) {
				t.Errorf("%q answered\n%s", ask, out)
			}
		}
		// Without the socket and the service, an error for people.
		l.Run("systemctl", "stop", "ec2netd.socket", "ec2netd.service")
		if out := l.Fails("ec2netctl", "status"); !strings.Contains(out, "systemctl") {
			t.Errorf("ec2netctl without a daemon says: %s", out)
		}
		// I5: as far as it is known here, the units are sound.
		l.Run("systemd-analyze", "verify", "--man=no", "ec2netd.service", "ec2netd.socket")
	})
}
