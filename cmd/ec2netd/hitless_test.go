package main

import (
	"fmt"
	"net/netip"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// pace is that of the pings and streams that tell whether a change is hitless.
const pace = 10 * time.Millisecond

// places are where the other end of a ping is: the gateway of the subnet, and beyond it.
var places = []string{"IPv4 near", "IPv4 far", "IPv6 near", "IPv6 far"}

// losses are what a change cost an ENI.
type losses struct {
	// Pings lost and sent, in the order of places.
	lost, sent [4]int
	// streams are TCP connections to far away, IPv4 and IPv6.
	streams []vpc.StreamResult
	// deleted are the events of ip monitor by which something of the ENI went.
	deleted []string
}

// none tells whether nothing was lost, and no connection had to send anything again.
func (l *losses) none() bool {
	for _, s := range l.streams {
		if s.Retransmits > 0 || s.Echoed < s.Sent {
			return false
		}
	}
	return l.lost == [4]int{}
}

func (l *losses) String() string {
	var out []string
	for i, place := range places {
		out = append(out, fmt.Sprintf("%s %d/%d", place, l.lost[i], l.sent[i]))
	}
	for _, s := range l.streams {
		out = append(out, s.String())
	}
	return strings.Join(append(out, l.deleted...), "; ")
}

// measure begins to ping the primary addresses of a dual-stack ENI from near and far, and
// to send on TCP connections from them; the returned function ends it and counts.
func (l *lab) measure(eni *vpc.ENI) func() *losses {
	l.t.Helper()
	finish := l.measurePings(eni)
	var streams []*vpc.Stream
	for _, ends := range [][2]netip.Addr{{eni.IPv4()[0], vpc.FarIPv4}, {eni.IPv6()[0], vpc.FarIPv6}} {
		stream, err := l.inst.StartStream(l.t.Context(), ends[0], ends[1], pace)
		if err != nil {
			l.t.Fatal(err)
		}
		streams = append(streams, stream)
	}
	events := l.watchKernel()
	return func() *losses {
		l.t.Helper()
		out := finish()
		for _, stream := range streams {
			out.streams = append(out.streams, stream.Stop())
		}
		for _, line := range events() {
			if strings.HasPrefix(line, "Deleted") && strings.Contains(line, eni.Name()) {
				out.deleted = append(out.deleted, line)
			}
		}
		return out
	}
}

// measurePings is measure without what an ENI must have already.
func (l *lab) measurePings(eni *vpc.ENI) func() *losses {
	l.t.Helper()
	var pings []*vpc.Pinger
	for _, ends := range [][2]netip.Addr{
		{eni.Subnet().Gateway4(), eni.IPv4()[0]}, {vpc.FarIPv4, eni.IPv4()[0]},
		{eni.Subnet().Near6(), eni.IPv6()[0]}, {vpc.FarIPv6, eni.IPv6()[0]},
	} {
		ping, err := l.vpc.StartPing(l.t.Context(), ends[0], ends[1], pace)
		if err != nil {
			l.t.Fatal(err)
		}
		pings = append(pings, ping)
	}
	return func() *losses {
		l.t.Helper()
		// What was lost last shows when there are replies again; on 252 a router is back a
		// second after a reload.
		for _, ping := range pings {
			before := ping.Result().Received
			l.until("replies to pings", func() (bool, error) { return ping.Result().Received > before+150, nil })
		}
		out := &losses{}
		for i, ping := range pings {
			out.lost[i], out.sent[i] = ping.Stop().LostSinceFirst()
		}
		return out
	}
}

// refreshed changes something in the VPC and waits until the kernel has it.
func (l *lab) refreshed(change func() error) {
	l.t.Helper()
	if err := change(); err != nil {
		l.t.Fatal(err)
	}
	l.run("ec2netctl", "refresh", "--wait")
}

// onceConfigured checks that networkd configured a link once in this boot.
func (l *lab) onceConfigured(name string) {
	l.t.Helper()
	log := l.networkdLog()
	for _, bad := range []string{"Reconfiguring", "lease lost"} {
		if strings.Contains(log, bad) {
			l.t.Errorf("networkd says %q:\n%s", bad, log)
		}
	}
	if n := strings.Count(log, name+": Configuring with"); n != 1 {
		l.t.Errorf("networkd configured %s %d times:\n%s", name, n, log)
	}
}

// E1, E2, E6: what the life of an instance costs its primary ENI: nothing.
func TestLabHitlessPrimary(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		primary := l.inst.Primary()
		l.configured("ens5")
		l.onceConfigured("ens5")
		t.Log(l.run("cat", "/var/lib/ec2netd/boot.json"))
		check := func(what string, change func()) *losses {
			t.Helper()
			finish := l.measure(primary)
			change()
			cost := finish()
			t.Logf("%s: %s", what, cost)
			return cost
		}
		hitless := func(what string, change func()) {
			t.Helper()
			if cost := check(what, change); !cost.none() {
				t.Errorf("%s cost %s", what, cost)
			}
		}
		assign := func() {
			l.refreshed(func() error {
				_, err := primary.AssignIPv4(t.Context())
				return err
			})
		}
		check("first", assign)
		hitless("assign", assign)
		hitless("assign IPv6", func() {
			l.refreshed(func() error {
				_, err := primary.AssignIPv6(t.Context())
				return err
			})
		})
		t.Log(l.run("sh", "-c", "cat /run/systemd/network/70-ens5.network.d/50*; ip -6 route; ip addr show ens5"))
		hitless("unassign", func() {
			l.refreshed(func() error { return primary.UnassignIPv4(t.Context(), primary.IPv4()[1]) })
		})
		hitless("restart of the daemon", func() { l.run("systemctl", "restart", "ec2netd"); l.configured("ens5") })
		check("restart of networkd", func() { l.run("systemctl", "restart", "systemd-networkd"); l.configured("ens5") })
	})
}
