package e2e

import (
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/service/state"
)

// F8, H5: doctor tells of what has no effect, and what it advises helps.
func TestLabDoctor(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		doctor := func() string { return l.Run("sh", "-c", "ec2netctl doctor || [ $? = 1 ]") }
		if said := doctor(); !strings.HasSuffix(said, "\nNothing to do.") {
			t.Fatalf("before anything is wrong:\n%s", said)
		}
		for _, c := range []struct {
			wrong, said string
			// follow makes the command of the advice.
			follow func(advice string) string
			// effect is in the output of ip link show for the primary ENI afterwards.
			effect string
		}{
			{
				wrong: "rm /etc/resolv.conf && echo nameserver 192.0.2.53 >/etc/resolv.conf", said: "servers that no ENI has told of: 192.0.2.53",
				follow: l.Between("else: ", ""),
			},
			{
				wrong: "rm /etc/resolv.conf && echo '# empty' >/etc/resolv.conf", said: "/etc/resolv.conf names no server",
				follow: l.Between("", ""),
			},
			{
				wrong: "mkdir -p /etc/systemd/network/70-ens9.network.d && printf '[Link]\\nMTUBytes=1400\\n' >/etc/systemd/network/70-ens9.network.d/mtu.conf",
				said:  "70-ens9.network.d has no effect as long as no ENI has the name ens9",
				follow: func(advice string) string {
					return strings.ReplaceAll(l.Between("another ENI: ", ", with the name")(advice), "NAME", "ens5")
				},
				effect: " mtu 1400 ",
			},
			{
				wrong: "mkdir -p /etc/systemd/network/70-ens9.network.d && printf '[Link]\\nMTUBytes=1300\\n' >/etc/systemd/network/70-ens9.network.d/mtu.conf",
				said:  "70-ens9.network.d has no effect", follow: l.Between("else: ", ""), effect: " mtu 1400 ",
			},
			{
				wrong: "mkdir -p /etc/systemd/network/70-ens9.link.d && printf '[Link]\\nTransmitQueueLength=703\\n' >/etc/systemd/network/70-ens9.link.d/queue.conf",
				said:  "70-ens9.link.d has no effect",
				follow: func(advice string) string {
					return strings.ReplaceAll(l.Between("another ENI: ", ", with the name")(advice), "NAME", "ens5")
				},
				effect: " qlen 703",
			},
			{
				wrong: "printf '[ENI]\\nName=eth1\\nSecondaryAddresses=no\\n' >/etc/ec2netd.conf && systemctl reload ec2netd.service",
				said:  "the [ENI] section at /etc/ec2netd.conf:1 holds for no ENI",
				follow: func(advice string) string {
					return "sed -i s/eth1/ens5/ /etc/ec2netd.conf && " + l.Between("correct what it asks for (see ec2netctl status --json=pretty), then: ", "")(advice)
				},
			},
			{
				wrong: "rm /etc/ec2netd.conf && systemctl reload ec2netd.service && sysctl -qw net.ipv4.conf.ens5.rp_filter=1", said: "strict reverse path filtering on ens5",
				follow: l.Between("will do: ", ", and the same"),
			},
			{wrong: "systemctl stop ec2netd.socket", said: "ec2netd.socket is inactive", follow: l.Between("", "")},
			{wrong: "systemctl stop ec2netd-metrics.socket", said: "ec2netd-metrics.socket is inactive", follow: l.Between("", "")},
			{wrong: "systemctl disable --quiet --now ec2netd.socket", said: "ec2netd.socket is disabled, though", follow: l.Between("", "")},
			{wrong: "systemctl disable --quiet --now ec2netd-metrics.socket", said: "ec2netd-metrics.socket is disabled, though", follow: l.Between("", "")},
			{wrong: "systemctl mask --quiet --now ec2netd-metrics.socket", said: "ec2netd-metrics.socket is masked", follow: l.Between("", "")},
			{wrong: "systemctl mask --quiet --runtime ec2netd.socket", said: "ec2netd.socket is masked until", follow: l.Between("", "")},
			{
				wrong: "mkdir -p /etc/systemd/system-preset && echo 'disable ec2netd.*' >/etc/systemd/system-preset/10-mine.preset && systemctl daemon-reload",
				said:  "ec2netd.socket is disabled by the presets",
				follow: func(advice string) string {
					of := strings.Fields(l.Between("which file in ", " names it")(advice))
					files := l.Run("sh", "-c", "cd /; for dir in "+strings.ReplaceAll(strings.Join(of, " "), ",", "")+
						"; do case $dir in and) continue;; */system-preset) ;; *) dir=$dir/systemd/system-preset;; esac; grep -l ec2netd $dir/* 2>/dev/null; done; :")
					first, rest, _ := strings.Cut(files, "\n")
					if !strings.HasSuffix(rest, "/80-ec2netd.preset") {
						l.T.Errorf("files that name the unit: %s", files)
					}
					return "rm " + first + " && " + l.Between("remove it, then: ", "")(advice)
				},
			},
		} {
			l.Run("sh", "-c", c.wrong)
			follow := c.follow(l.AdviceOf(c.said))
			l.Run("sh", "-c", follow)
			// networkd 252 configures IPv6 anew for a changed drop-in.
			said := ""
			l.UntilOr("doctor has nothing to say after "+follow, func() (bool, error) {
				said = doctor()
				return strings.HasSuffix(said, "\nNothing to do."), nil
			}, &said)
			l.Until("the effect of "+follow, func() (bool, error) {
				return strings.Contains(l.Run("ip", "-o", "link", "show", "ens5"), c.effect), nil
			})
		}
		// An address that EC2 withdraws and a drop-in of the administrator keeps.
		added, err := l.Inst.Primary().AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Put("/etc/systemd/network/70-ens5.network.d/kept.conf", "[Address]\nAddress="+added[0].String()+"/32\n")
		l.Run("ec2netctl", "refresh", "--wait")
		if err := l.Inst.Primary().UnassignIPv4(t.Context(), added[0]); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh")
		entry := l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIOverridden })
		if !strings.HasPrefix(entry.Reason, "/etc/systemd/network/70-ens5.network.d/kept.conf keeps what the ENI has no more (Address=") {
			t.Error(entry.Reason)
		}
		l.Run("sed", "-i", "/^Address=/d", "/etc/systemd/network/70-ens5.network.d/kept.conf")
		l.Run("sh", "-c", l.Between("Remove that line and run ", " to have it go")(entry.Reason))
		l.AwaitConfigured("ens5")
		l.AwaitNoAddress("ens5", added[0])
		l.Until("the drop-in is in force", func() (bool, error) {
			return strings.Contains(l.Run("ip", "-o", "link", "show", "ens5"), " mtu 1400 "), nil
		})
	})
}
