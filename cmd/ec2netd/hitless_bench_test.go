package main

import (
	"fmt"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// BenchmarkLabHitless prints what happens to the primary ENI costs on each systemd, as
// packets lost of packets sent each 10 ms, and the longest time that a byte took on a TCP
// connection (E1, E2, E6).
func BenchmarkLabHitless(b *testing.B) {
	for _, suite := range vpc.Suites {
		b.Run(suite.Name, func(b *testing.B) {
			for range b.N {
				costs(b, suite.Name)
			}
			b.ReportMetric(0, "ns/op")
		})
	}
}

func costs(b *testing.B, suite string) {
	l := boot(b, suite, nil)
	primary := l.inst.Primary()
	l.configured("ens5")
	fmt.Printf("\n%-36s %10s %10s %10s %10s %9s\n", suite+", lost of sent", places[0], places[1], places[2], places[3], "TCP stall")
	row := func(name string, cost *losses) {
		fmt.Printf("%-36s", name)
		for i := range places {
			fmt.Printf(" %10s", fmt.Sprintf("%d/%d", cost.lost[i], cost.sent[i]))
		}
		stall := "-"
		if len(cost.streams) > 0 {
			stall = max(cost.streams[0].Stall, cost.streams[1].Stall).Round(time.Millisecond).String()
		}
		fmt.Printf(" %9s\n", stall)
	}
	row("the first change", l.measured(primary, l.steps(primary)[0].do))
	row("boot, known, with addresses more", l.rebooted(primary))
	for _, s := range l.steps(primary) {
		row(s.name, l.measured(primary, s.do))
	}
	l.steps(primary)[1].do()
	row("boot, known", l.rebooted(primary))
	l.run("rm", "/var/lib/ec2netd/boot.json")
	row("boot, not known", l.rebooted(primary))
	hand, with := l.networkdRestarted(primary)
	row("networkd restarted, without ec2netd", hand)
	row("networkd restarted", with)
}
