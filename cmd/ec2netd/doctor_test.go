package main

import (
	"encoding/json"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/state"
)

// adviceOf is what doctor advises where it says text.
func (l *lab) adviceOf(text string) string {
	l.t.Helper()
	// Problems make it fail with 1, as does not being there at all, which leaves nothing to parse.
	said := l.run("sh", "-c", "ec2netctl doctor --json=short || [ $? = 1 ]")
	var printed struct{ Findings []struct{ Text, Advice string } }
	if err := json.Unmarshal([]byte(said), &printed); err != nil {
		l.t.Fatalf("doctor printed %q: %v", said, err)
	}
	for _, finding := range printed.Findings {
		if strings.Contains(finding.Text, text) {
			return finding.Advice
		}
	}
	l.t.Fatalf("doctor does not say %q: %s", text, said)
	return ""
}

// F8, H5: doctor tells of what has no effect, and what it advises helps.
func TestLabDoctor(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		l.configured("ens5")
		doctor := func() string { return l.run("ec2netctl", "doctor") }
		if said := doctor(); !strings.HasSuffix(said, "\nNothing to do.") {
			t.Fatalf("before anything is wrong:\n%s", said)
		}
		for _, c := range []struct {
			wrong, said, advice, follow string
		}{
			{
				"rm /etc/resolv.conf && echo nameserver 192.0.2.53 >/etc/resolv.conf", "servers that no ENI has told of: 192.0.2.53",
				"ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf", "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf",
			},
			{
				"mkdir -p /etc/systemd/network/70-ens9.network.d && printf '[Link]\\nMTUBytes=1400\\n' >/etc/systemd/network/70-ens9.network.d/mtu.conf",
				"70-ens9.network.d has no effect as long as no ENI has the name ens9", "rename it after that one's link",
				"mv /etc/systemd/network/70-ens9.network.d /etc/systemd/network/70-ens5.network.d && networkctl reload",
			},
			{
				"printf '[ENI]\\nName=eth1\\nManaged=no\\n' >/etc/ec2netd.conf && systemctl reload ec2netd.service",
				"the [ENI] section at /etc/ec2netd.conf:1 holds for no ENI", "correct what it asks for", "rm /etc/ec2netd.conf && systemctl reload ec2netd.service",
			},
		} {
			l.run("sh", "-c", c.wrong)
			said := doctor()
			if !strings.Contains(said, c.said) || !strings.Contains(said, c.advice) {
				t.Errorf("after %s:\n%s", c.wrong, said)
			}
			l.run("sh", "-c", c.follow)
			// networkd 252 configures IPv6 anew for a changed drop-in.
			l.untilOr("doctor has nothing to say after "+c.follow, func() (bool, error) {
				said = doctor()
				return strings.HasSuffix(said, "\nNothing to do."), nil
			}, &said)
		}
		// An address that EC2 withdraws and a drop-in of the administrator keeps.
		added, err := l.inst.Primary().AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.put("/etc/systemd/network/70-ens5.network.d/kept.conf", "[Address]\nAddress="+added[0].String()+"/32\n")
		l.run("ec2netctl", "refresh", "--wait")
		if err := l.inst.Primary().UnassignIPv4(t.Context(), added[0]); err != nil {
			t.Fatal(err)
		}
		l.run("ec2netctl", "refresh")
		entry := l.reaches("ens5", func(i *state.Interface) bool { return i.State == state.ENIOverridden })
		if !strings.HasPrefix(entry.Reason, "/etc/systemd/network/70-ens5.network.d/kept.conf keeps what the ENI has no more (Address=") {
			t.Error(entry.Reason)
		}
		l.run("rm", "/etc/systemd/network/70-ens5.network.d/kept.conf")
		l.run("networkctl", "reload")
		l.configured("ens5")
		if slices.Contains(l.addresses("ens5"), added[0]) {
			t.Errorf("%s is still there", added[0])
		}
		l.until("the drop-in is in force", func() (bool, error) {
			return strings.Contains(l.run("ip", "-o", "link", "show", "ens5"), " mtu 1400 "), nil
		})
	})
}
