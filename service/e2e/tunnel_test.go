package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
)

// F13: under a full tunnel of WireGuard, as wg-quick(8) makes it, replies from each ENI's address
// leave by that ENI, and every program reaches the metadata and time services, whichever came first,
// the tunnel or the ENI. Nothing of that is left when the tunnel goes.
func TestLabWireGuard(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = []string{"wireguard-tools", "wireguard-go"}
		})
		l.configured("ens5")
		first := l.attach(hotplugSpec())
		l.configured(first.ID())
		// networkd keeps routes as long as the lease and the advertisement that they go by.
		rules := func() string {
			return l.run("sh", "-c", "(ip rule; ip -6 rule) | sort")
		}
		before := rules()
		primary := l.inst.Primary()
		l.startTunnel()
		l.underTunnel("the tunnel comes after the ENIs", primary, first)
		second := l.attach(vpc.ENISpec{Subnet: "b", IPv4Count: 2, IPv6Count: 1})
		l.configured(second.ID())
		l.underTunnel("an ENI comes after the tunnel", primary, first, second)
		l.detach(second)
		l.gone(second, 2)
		l.run("wg-quick", "down", "wg0")
		var now string
		l.untilOr("all is as it was before the tunnel:\n"+before, func() (bool, error) {
			now = rules()
			return now == before, nil
		}, &now)
		l.configured("ens5")
		l.checkKernel(first)

		l.run("systemctl", "enable", "--quiet", "wg-quick@wg0.service")
		if err := l.inst.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.until("the tunnel is there", func() (bool, error) { return l.leavesBy(vpc.FarIPv4.String()) == "wg0", nil })
		l.configured("ens5")
		l.configured(first.ID())
		l.underTunnel("after a boot", primary, first)
	})
}

// startTunnel sets up a full tunnel by wg-quick(8).
func (l *lab) startTunnel() {
	l.t.Helper()
	l.run("sh", "-ec", `umask 077; mkdir -p /etc/wireguard
		printf '[Interface]\nPrivateKey=%s\nAddress=10.9.0.2/32, fd00:9::2/128\n[Peer]\nPublicKey=%s\nEndpoint=198.51.100.9:51820\nAllowedIPs=0.0.0.0/0, ::/0\n' \
			"$(wg genkey)" "$(wg genkey | wg pubkey)" >/etc/wireguard/wg0.conf`)
	l.run("wg-quick", "up", "wg0")
}

// leavesBy is the link by which the kernel would send.
func (l *lab) leavesBy(to string, more ...string) string {
	l.t.Helper()
	out, err := l.inst.Exec(l.t.Context(), append([]string{"ip", "-o", "route", "get", to}, more...)...)
	if err != nil {
		return err.Error()
	}
	_, after, _ := strings.Cut(out, " dev ")
	name, _, _ := strings.Cut(after, " ")
	return name
}

// underTunnel checks some ENIs while a full tunnel is up (F13).
func (l *lab) underTunnel(when string, enis ...*vpc.ENI) {
	l.t.Helper()
	for _, to := range []string{"169.254.169.254", "169.254.169.123", "fd00:ec2::254", "fd00:ec2::123"} {
		l.until(when+": "+to+" by the primary ENI", func() (bool, error) { return l.leavesBy(to) == "ens5", nil })
	}
	// By a program that binds to nothing.
	l.run("timeout", "10", "bash", "-c", `exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET / HTTP/1.0\r\n\r\n' >&3; grep -q ^HTTP <&3`)
	for _, eni := range enis {
		for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			far := vpc.FarIPv4
			if address.Is6() {
				far = vpc.FarIPv6
			}
			l.until(fmt.Sprintf("%s: from %s by %s", when, address, eni.Name()), func() (bool, error) {
				return l.leavesBy(far.String(), "from", address.String()) == eni.Name(), nil
			})
			ping, err := l.vpc.StartPing(l.t.Context(), far, address, pace)
			if err != nil {
				l.t.Fatal(err)
			}
			l.until(fmt.Sprintf("%s: %s answers from far away", when, address), func() (bool, error) { return ping.Result().Received > 10, nil })
			ping.Stop()
		}
	}
	for _, far := range []netip.Addr{vpc.FarIPv4, vpc.FarIPv6} {
		if by := l.leavesBy(far.String()); by != "wg0" {
			l.t.Errorf("%s: all else leaves by %s", when, by)
		}
	}
}
