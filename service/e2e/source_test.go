package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
)

// A11, A4, E2: the first line of ipv6s is the IPv6 source address of an ENI, whatever comes and
// goes and starts anew, and whatever DHCPv6 leases; the others are usable and deprecated. To make
// another one the first costs nothing.
func TestLabSource(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		ctx := t.Context()
		l := boot(t, suite, nil)
		primary := l.inst.Primary()
		l.configured("ens5")
		other := l.attach(vpc.ENISpec{Subnet: "b", IPv6Count: 2})
		l.configured(other.ID())
		l.checkSource("the attachment", other)

		both := []*vpc.ENI{primary, other}
		assign := func() {
			l.refreshed(func() error {
				for _, eni := range both {
					for range 2 {
						if _, err := eni.AssignIPv6(ctx); err != nil {
							return err
						}
					}
				}
				return nil
			})
		}
		reverse := func() {
			l.refreshed(func() error {
				for _, eni := range both {
					if err := eni.PermuteIPv6(ctx, func(a, b netip.Addr) int { return b.Compare(a) }); err != nil {
						return err
					}
				}
				return nil
			})
		}
		for i, step := range []struct {
			what string
			do   func()
		}{
			{"two more were assigned", assign},
			{"the last became the first", reverse},
			{"the first and the third were withdrawn", func() {
				l.refreshed(func() error {
					for _, eni := range both {
						ipv6 := eni.IPv6()
						if err := eni.UnassignIPv6(ctx, ipv6[0], ipv6[2]); err != nil {
							return err
						}
					}
					return nil
				})
			}},
			{"the daemon was restarted", func() { l.run("systemctl", "restart", "ec2netd.service") }},
			{"two more were assigned", assign},
			{"networkd was restarted", func() { l.networkdAgain("systemctl", "restart", "systemd-networkd.service") }},
			{"one was withdrawn after that", func() {
				l.refreshed(func() error { return primary.UnassignIPv6(ctx, primary.IPv6()[1]) })
			}},
		} {
			kept := slices.Concat(primary.IPv6(), other.IPv6())
			watched := l.pingAll(both)
			events := l.watchKernel()
			step.do()
			for _, eni := range both {
				l.configured(eni.ID())
				l.checkSource(step.what, eni)
			}
			// On 252 the move from DHCPv6 costs something, once an attachment (E2).
			moves := suite == "bookworm" && i == 0
			now := slices.Concat(primary.IPv6(), other.IPv6())
			for address, ping := range watched {
				if lost, sent := ping.Stop().LostSinceFirst(); lost > 0 && slices.Contains(now, address) && !moves {
					t.Errorf("%s: %s lost %d of %d pings", step.what, address, lost, sent)
				}
			}
			for _, line := range events() {
				for _, address := range kept {
					if !moves && slices.Contains(now, address) && strings.HasPrefix(line, "Deleted") && strings.Contains(line, " "+address.String()+"/") {
						t.Errorf("%s: %s", step.what, line)
					}
				}
			}
		}
		if err := l.inst.Reboot(ctx); err != nil {
			t.Fatal(err)
		}
		for _, eni := range both {
			l.configured(eni.ID())
			l.checkSource("the reboot", eni)
		}
	})
}

// pingAll begins to ping the IPv6 addresses of ENIs from far away.
func (l *lab) pingAll(enis []*vpc.ENI) map[netip.Addr]*vpc.Pinger {
	l.t.Helper()
	pings := make(map[netip.Addr]*vpc.Pinger)
	for _, eni := range enis {
		for _, address := range eni.IPv6() {
			ping, err := l.vpc.StartPing(l.t.Context(), vpc.FarIPv6, address, pace)
			if err != nil {
				l.t.Fatal(err)
			}
			pings[address] = ping
		}
	}
	return pings
}

// checkSource checks that an ENI has its IPv6 addresses, all but the first deprecated, and that
// the kernel takes that one for what leaves by the ENI.
func (l *lab) checkSource(when string, eni *vpc.ENI) {
	l.t.Helper()
	first, name := eni.IPv6()[0], eni.Name()
	l.until(when+": "+name+" has its addresses, and one source", func() (bool, error) {
		var links []struct {
			Addresses []struct {
				Local      netip.Addr `json:"local"`
				Deprecated bool       `json:"deprecated"`
			} `json:"addr_info"`
		}
		if err := json.Unmarshal([]byte(l.run("ip", "-6", "-json", "address", "show", "dev", name, "scope", "global")), &links); err != nil {
			return false, err
		}
		var all []netip.Addr
		for _, link := range links {
			for _, address := range link.Addresses {
				if !address.Local.IsValid() { // ip prints an empty one for each that it leaves out
					continue
				}
				if all = append(all, address.Local); address.Deprecated == (address.Local == first) {
					return false, nil
				}
			}
		}
		slices.SortFunc(all, netip.Addr.Compare)
		return slices.Equal(all, slices.SortedFunc(slices.Values(eni.IPv6()), netip.Addr.Compare)), nil
	})
	far := vpc.FarIPv6.String()
	var route string
	// The main table has the ENI's default route with the next router advertisement.
	l.until(when+": a default route by "+name, func() (bool, error) {
		var err error
		route, err = l.inst.Exec(l.t.Context(), "ip", "-6", "route", "get", far, "oif", name)
		return err == nil, nil
	})
	if !strings.Contains(route, " src "+first.String()+" ") {
		l.t.Errorf("after %s the source of %s is not %s: %s", when, name, first, route)
	}
	if eni != l.inst.Primary() {
		return
	}
	if route := l.run("ip", "-6", "route", "get", far); !strings.Contains(route, " src "+first.String()+" ") {
		l.t.Errorf("after %s the source is not %s: %s", when, first, route)
	}
	conn, err := l.inst.DialContext(l.t.Context(), "tcp6", "[fd00:ec2::254]:80")
	if err != nil {
		l.t.Fatalf("after %s: %v", when, err)
	}
	defer conn.Close()
	if local, _ := netip.ParseAddrPort(conn.LocalAddr().(*net.TCPAddr).String()); local.Addr() != first {
		l.t.Errorf("after %s a connection is from %s, not from %s", when, local.Addr(), first)
	}
}
