package e2e

import (
	"encoding/json"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// A11, A4, E2: the first line of ipv6s is the IPv6 source address of an ENI, whatever comes and
// goes and starts anew, and whatever DHCPv6 leases; the others are usable and deprecated. To make
// another one the first costs nothing.
func TestLabSource(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		ctx := t.Context()
		l := labtest.Boot(t, suite, nil)
		primary := l.Inst.Primary()
		l.AwaitConfigured("ens5")
		other := l.Attach(vpc.ENISpec{Subnet: "b", IPv6Count: 2})
		l.AwaitConfigured(other.ID())
		checkSource(l, "the attachment", other)

		both := []*vpc.ENI{primary, other}
		assign := func() {
			l.Refreshed(func() error {
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
			l.Refreshed(func() error {
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
				l.Refreshed(func() error {
					for _, eni := range both {
						ipv6 := eni.IPv6()
						if err := eni.UnassignIPv6(ctx, ipv6[0], ipv6[2]); err != nil {
							return err
						}
					}
					return nil
				})
			}},
			{"the daemon was restarted", func() { l.Run("systemctl", "restart", "ec2netd.service") }},
			{"two more were assigned", assign},
			{"networkd was restarted", func() { l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service") }},
			{"one was withdrawn after that", func() {
				l.Refreshed(func() error { return primary.UnassignIPv6(ctx, primary.IPv6()[1]) })
			}},
		} {
			kept := slices.Concat(primary.IPv6(), other.IPv6())
			watched := pingAll(l, both)
			events := l.WatchKernel()
			step.do()
			for _, eni := range both {
				l.AwaitConfigured(eni.ID())
				checkSource(l, step.what, eni)
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
		if err := l.Inst.Reboot(ctx); err != nil {
			t.Fatal(err)
		}
		for _, eni := range both {
			l.AwaitConfigured(eni.ID())
			checkSource(l, "the reboot", eni)
		}
	})
}

// pingAll begins to ping the IPv6 addresses of ENIs from far away.
func pingAll(l *labtest.Lab, enis []*vpc.ENI) map[netip.Addr]*vpc.Pinger {
	l.T.Helper()
	pings := make(map[netip.Addr]*vpc.Pinger)
	for _, eni := range enis {
		for _, address := range eni.IPv6() {
			ping, err := l.VPC.StartPing(l.T.Context(), vpc.FarIPv6, address, labtest.Pace)
			if err != nil {
				l.T.Fatal(err)
			}
			pings[address] = ping
		}
	}
	return pings
}

// checkSource checks that an ENI has its IPv6 addresses, all but the first deprecated, and that
// the kernel takes that one for what leaves by the ENI.
func checkSource(l *labtest.Lab, when string, eni *vpc.ENI) {
	l.T.Helper()
	first, name := eni.IPv6()[0], eni.Name()
	l.Until(when+": "+name+" has its addresses, and one source", func() (bool, error) {
		var links []struct {
			Addresses []struct {
				Local      netip.Addr `json:"local"`
				Deprecated bool       `json:"deprecated"`
			} `json:"addr_info"`
		}
		if err := json.Unmarshal([]byte(l.Run("ip", "-6", "-json", "address", "show", "dev", name, "scope", "global")), &links); err != nil {
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
	l.Until(when+": a default route by "+name, func() (bool, error) {
		var err error
		route, err = l.Inst.Exec(l.T.Context(), "ip", "-6", "route", "get", far, "oif", name)
		return err == nil, nil
	})
	if !strings.Contains(route, " src "+first.String()+" ") {
		l.T.Errorf("after %s the source of %s is not %s: %s", when, name, first, route)
	}
	if eni != l.Inst.Primary() {
		return
	}
	if route := l.Run("ip", "-6", "route", "get", far); !strings.Contains(route, " src "+first.String()+" ") {
		l.T.Errorf("after %s the source is not %s: %s", when, first, route)
	}
	conn, err := l.Inst.DialContext(l.T.Context(), "tcp6", "[fd00:ec2::254]:80")
	if err != nil {
		l.T.Fatalf("after %s: %v", when, err)
	}
	defer conn.Close()
	if local, _ := netip.ParseAddrPort(conn.LocalAddr().(*net.TCPAddr).String()); local.Addr() != first {
		l.T.Errorf("after %s a connection is from %s, not from %s", when, local.Addr(), first)
	}
}
