package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// F13: under a full tunnel of WireGuard, as wg-quick(8) makes it, replies from each ENI's address
// leave by that ENI, and every program reaches the metadata and time services, whichever came first,
// the tunnel or the ENI. Nothing of that is left when the tunnel goes.
func TestLabWireGuard(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = []string{"wireguard-tools", "wireguard-go"}
		})
		l.AwaitConfigured("ens5")
		first := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(first.ID())
		// networkd keeps routes as long as the lease and the advertisement that they go by.
		rules := func() string {
			return l.Run("sh", "-c", "(ip rule; ip -6 rule) | sort")
		}
		before := rules()
		primary := l.Inst.Primary()
		startTunnel(l)
		underTunnel(l, "the tunnel comes after the ENIs", primary, first)
		second := l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2, IPv6Count: 1})
		l.AwaitConfigured(second.ID())
		underTunnel(l, "an ENI comes after the tunnel", primary, first, second)
		l.Detach(second)
		l.AwaitGone(second, 2)
		l.Run("wg-quick", "down", "wg0")
		var now string
		l.UntilOr("all is as it was before the tunnel:\n"+before, func() (bool, error) {
			now = rules()
			return now == before, nil
		}, &now)
		l.AwaitConfigured("ens5")
		l.CheckKernel(first)

		l.Run("systemctl", "enable", "--quiet", "wg-quick@wg0.service")
		if err := l.Inst.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Until("the tunnel is there", func() (bool, error) { return leavesBy(l, vpc.FarIPv4.String()) == "wg0", nil })
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(first.ID())
		underTunnel(l, "after a boot", primary, first)
	})
}

// startTunnel sets up a full tunnel by wg-quick(8).
func startTunnel(l *labtest.Lab) {
	l.T.Helper()
	l.Run("sh", "-ec", `umask 077; mkdir -p /etc/wireguard
		printf '[Interface]\nPrivateKey=%s\nAddress=10.9.0.2/32, fd00:9::2/128\n[Peer]\nPublicKey=%s\nEndpoint=198.51.100.9:51820\nAllowedIPs=0.0.0.0/0, ::/0\n' \
			"$(wg genkey)" "$(wg genkey | wg pubkey)" >/etc/wireguard/wg0.conf`)
	l.Run("wg-quick", "up", "wg0")
}

// leavesBy is the link by which the kernel would send.
func leavesBy(l *labtest.Lab, to string, more ...string) string {
	l.T.Helper()
	out, err := l.Inst.Exec(l.T.Context(), append([]string{"ip", "-o", "route", "get", to}, more...)...)
	if err != nil {
		return err.Error()
	}
	_, after, _ := strings.Cut(out, " dev ")
	name, _, _ := strings.Cut(after, " ")
	return name
}

// underTunnel checks some ENIs while a full tunnel is up (F13).
func underTunnel(l *labtest.Lab, when string, enis ...*vpc.ENI) {
	l.T.Helper()
	for _, to := range []string{"169.254.169.254", "169.254.169.123", "fd00:ec2::254", "fd00:ec2::123"} {
		l.Until(when+": "+to+" by the primary ENI", func() (bool, error) { return leavesBy(l, to) == "ens5", nil })
	}
	// By a program that binds to nothing.
	l.Run("timeout", "10", "bash", "-c", `exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep -q ^HTTP <&3`)
	for _, eni := range enis {
		for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			far := vpc.FarIPv4
			if address.Is6() {
				far = vpc.FarIPv6
			}
			l.Until(fmt.Sprintf("%s: from %s by %s", when, address, eni.Name()), func() (bool, error) {
				return leavesBy(l, far.String(), "from", address.String()) == eni.Name(), nil
			})
			ping, err := l.VPC.StartPing(l.T.Context(), far, address, labtest.Pace)
			if err != nil {
				l.T.Fatal(err)
			}
			l.Until(fmt.Sprintf("%s: %s answers from far away", when, address), func() (bool, error) { return ping.Result().Received > 10, nil })
			ping.Stop()
		}
	}
	for _, far := range []netip.Addr{vpc.FarIPv4, vpc.FarIPv6} {
		if by := leavesBy(l, far.String()); by != "wg0" {
			l.T.Errorf("%s: all else leaves by %s", when, by)
		}
	}
}
