package kernel

import (
	"fmt"
	"net"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// BenchmarkObserve takes snapshots of 15 links of 50 addresses with a policy rule for each,
// in its own network namespace, as root.
func BenchmarkObserve(b *testing.B) {
	for _, addresses := range []int{50, 1, 10, 100} {
		b.Run(fmt.Sprintf("addresses=%d", addresses), func(b *testing.B) {
			own(b)
			fill(b, 15, addresses)
			observer, err := NewObserver([]string{"veth"})
			if err != nil {
				b.Fatal(err)
			}
			defer observer.Close()
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				snapshot, err := observer.Observe()
				if err != nil {
					b.Fatal(err)
				}
				if len(snapshot.Links) < 15 || len(snapshot.Rules) != 15*addresses {
					b.Fatalf("%d links, %d rules", len(snapshot.Links), len(snapshot.Rules))
				}
			}
			b.ReportMetric(float64((cpu()-began).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// cpu returns the CPU time of this process, which does not depend on the load of the
// machine.
func cpu() time.Duration {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

// fill creates links with addresses, a routing table for each, and policy rules.
func fill(b *testing.B, links, addresses int) {
	b.Helper()
	must := func(err error) {
		b.Helper()
		if err != nil {
			b.Fatal(err)
		}
	}
	for i := range links {
		name := fmt.Sprintf("ens%d", i)
		link := &netlink.Dummy{LinkAttrs: netlink.LinkAttrs{Index: newLink(b, name)}}
		for n := range addresses {
			address, err := netlink.ParseAddr(fmt.Sprintf("10.%d.%d.%d/32", i, n/250, n%250+1))
			must(err)
			must(netlink.AddrAdd(link, address))
			rule := netlink.NewRule()
			rule.Priority, rule.Table, rule.Src = 10001+i, 10001+i, address.IPNet
			must(netlink.RuleAdd(rule))
		}
		_, subnet, err := net.ParseCIDR(fmt.Sprintf("10.%d.0.0/16", i))
		must(err)
		must(netlink.RouteAdd(&netlink.Route{LinkIndex: link.Index, Table: 10001 + i, Dst: subnet, Scope: netlink.SCOPE_LINK}))
	}
}
