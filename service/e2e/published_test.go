package e2e

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// mark is the FirewallMark= of the ENI in the test, and of the rules of nftables.
const mark = "0x2/0xff"

// published has port 80 of the container answer at an address of the instance, as container
// engines do it.
const published = `table inet lab {
	chain publish {
		type nat hook prerouting priority dstnat;
		fib daddr type local tcp dport 80 dnat ip to ` + container4 + `
		fib daddr type local tcp dport 80 dnat ip6 to ` + container6 + `
	}
}
`

// documented are the lines of nftables that configuration.md has for the connection mark.
func documented(t *testing.T) string {
	t.Helper()
	const first, last = "\ntable inet published {\n", "\n}\n"
	_, found, ok := strings.Cut(configurationPage(t), first)
	found, _, ends := strings.Cut(found, last)
	if !ok || !ends {
		t.Fatal("configuration.md has no such lines")
	}
	return first + found + last
}

// fetchPage asks the container's service at an address and port of an ENI, from the VPC.
func fetchPage(l *labtest.Lab, from netip.Addr, to netip.AddrPort, patience time.Duration) error {
	return l.VPC.Do(func() error {
		ctx, cancel := context.WithTimeout(l.T.Context(), patience)
		defer cancel()
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(from, 0))}
		conn, err := dialer.DialContext(ctx, "tcp", to.String())
		if err != nil {
			return err
		}
		deadline, _ := ctx.Deadline()
		const text = "is anybody there?"
		defer func() { _ = conn.Close() }() // it has done its work, or failed
		_, err = io.WriteString(conn, text)
		answer := make([]byte, len(text))
		if err := errors.Join(err, conn.SetDeadline(deadline)); err != nil {
			return err
		}
		if _, err := io.ReadFull(conn, answer); err != nil || string(answer) != text {
			return fmt.Errorf("the answer %q: %w", answer, err)
		}
		return nil
	})
}

// markRules are the rules by firewall mark, in both families.
func markRules(l *labtest.Lab) string {
	return linesOf(l.Run("sh", "-c", "ip rule; ip -6 rule"), " fwmark ")
}

// B12: a container's port is reached at the address of a secondary ENI, since its answers leave
// by that ENI; without the mark they leave by the primary, and the VPC drops them.
func TestLabPublishedPort(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, withContainers)
		l.AwaitConfigured("ens5")
		eni := l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2, IPv6Count: 1})
		l.AwaitConfigured(eni.ID())
		startContainer(l)
		l.Run("systemd-run", "--unit=web", "ip", "netns", "exec", "c", "systemd-socket-activate", "--listen=[::]:80", "--accept", "--inetd", "cat")
		l.Run("sh", "-ec", `printf %s "$1" | nft -f -`, "sh", published+documented(t))
		clients := map[bool]netip.Addr{true: vpc.FarIPv4, false: vpc.FarIPv6}
		primary := l.Inst.Primary()
		all := func(when string) {
			t.Helper()
			l.CountDrops()
			for _, to := range append(append(eni.IPv4(), eni.IPv6()...), append(primary.IPv4(), primary.IPv6()...)...) {
				if err := fetchPage(l, clients[to.Is4()], netip.AddrPortFrom(to, 80), labtest.Patience); err != nil {
					t.Errorf("%s: %s: %v", when, to, err)
				}
			}
			// The container's own connections and the host's.
			checkPings(l, when, [3]string{"c", container4, bridge4}, [3]string{"", eni.IPv4()[0].String(), container4},
				[3]string{"", eni.IPv4()[1].String(), vpc.FarIPv4.String()}, [3]string{"", eni.IPv6()[0].String(), vpc.FarIPv6.String()})
			l.CheckDrops()
		}
		l.CountDrops()
		for _, to := range append(eni.IPv4()[:1], eni.IPv6()...) {
			if fetchPage(l, clients[to.Is4()], netip.AddrPortFrom(to, 80), 300*time.Millisecond) == nil {
				t.Errorf("without FirewallMark= %s answers all the same", to)
			}
		}
		if drops := l.Dropped()[primary.ID()]; drops == 0 {
			t.Error("without FirewallMark= the VPC drops nothing of the primary")
		}
		doctor := func() string {
			out, _ := l.Inst.Exec(t.Context(), "ec2netctl", "doctor", "--no-pager") // what else it finds does not matter
			return linesOf(out, " published ")
		}
		if out := doctor(); !strings.Contains(out, "warning") || !strings.Contains(out, "docker0") {
			t.Errorf("doctor: %s", out)
		}

		l.Put("/etc/ec2netd.conf.d/mark.conf", "[ENI]\nName=ens6\nFirewallMark="+mark+"\n")
		l.Run("systemctl", "reload", "ec2netd.service")
		want := "9998:\tfrom all fwmark 0x2/0xff lookup 10001 proto static\n"
		l.Until("there are rules by mark", func() (bool, error) { return markRules(l) == want+want, nil })
		l.AwaitConfigured(eni.ID())
		all("with FirewallMark=")
		if out := doctor(); !strings.Contains(out, "ok ") {
			t.Errorf("doctor: %s", out)
		}
		diff := func() {
			t.Helper()
			l.Until("all is in use, and networkd's", func() (bool, error) {
				_, err := l.Inst.Exec(t.Context(), "ec2netctl", "diff", "ens6")
				return err == nil, nil
			})
		}
		diff()
		if out := l.Run("ec2netctl", "show", "ens6"); strings.Count(out, " fwmark "+mark+" lookup 10001") != 2 {
			t.Errorf("ec2netctl show:\n%s", out)
		}
		l.CheckLog("warning")
		// B10: what somebody deletes comes back.
		l.Run("ip", "rule", "del", "fwmark", mark)
		l.Until("the deleted rule is back", func() (bool, error) { return markRules(l) == want+want, nil })
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(eni.ID())
		all("after a restart of networkd")

		// B5: the mark of two ENIs is that of the first, and on the primary it needs a table.
		l.Put("/etc/ec2netd.conf.d/mark.conf", "[ENI]\nFirewallMark="+mark+"\n")
		l.Run("systemctl", "reload", "ec2netd.service")
		want = strings.ReplaceAll(want, "10001", "10000")
		l.Until("the mark is the primary's", func() (bool, error) { return markRules(l) == want+want, nil })
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIConfigured && strings.Contains(i.Reason, "that of ens5 is 0x2/0xff")
		})
		l.AwaitConfigured("ens5")
		if out := l.DaemonLog("--priority=warning"); strings.Count(out, "is not in force: that of ens5") != 1 {
			t.Errorf("the daemon logged:\n%s", out)
		}

		// What networkd forgot when it was restarted goes all the same.
		l.Run("rm", "/etc/ec2netd.conf.d/mark.conf")
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.Run("systemctl", "reload", "ec2netd.service")
		l.Until("no rule by mark is left", func() (bool, error) { return markRules(l) == "", nil })
	})
}
