package e2e

import (
	"testing"

	"ec2netd/service/plan"
)

// costs is what happens to the primary ENI in its life, as packets lost of those sent each
// 10 ms to near and far, and the longest time that a byte took on a TCP connection (E1, E2,
// E6).
func costs(b *testing.B, r *report, suite string) {
	l := boot(b, suite, nil)
	primary := l.inst.Primary()
	l.configured("ens5")
	row := func(name string, cost, oracle *losses) {
		note := func(kind, unit string, of func(*losses) float64) {
			m := measured{Value: of(cost)}
			f := figure{Name: "lost " + kind + ": " + name, What: name + ": " + kind, Unit: unit}
			if oracle != nil {
				limit := of(oracle)
				m.Oracle = &limit
			}
			r.note(suite, f, m)
		}
		note("IPv4 lost", "packets", func(l *losses) float64 { return float64(max(l.lost[0], l.lost[1])) })
		note("IPv6 lost", "packets", func(l *losses) float64 { return float64(max(l.lost[2], l.lost[3])) })
		if len(cost.streams) > 0 {
			note("TCP stood still", "ms", func(l *losses) float64 { return ms(max(l.streams[0].Stall, l.streams[1].Stall)) })
		}
	}
	row("the first change", l.measured(primary, l.steps(primary)[0].do), nil)
	row("boot, known, with addresses more", l.rebooted(primary), nil)
	for _, s := range l.steps(primary) {
		row(s.name, l.measured(primary, s.do), nil)
	}
	l.steps(primary)[1].do()
	row("boot, known", l.rebooted(primary), nil)
	l.run("rm", "/var/lib/ec2netd/boot.json")
	row("boot, not known", l.rebooted(primary), nil)
	// By itself: without the daemon, and what it has prepared.
	l.run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
	l.run("rm", "-r", plan.StartDirectory)
	hand := l.measured(primary, func() { l.run("systemctl", "restart", "systemd-networkd.service") })
	l.run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
	l.configured(primary.ID())
	row("networkd restarted", l.measured(primary, func() { l.networkdAgain("systemctl", "restart", "systemd-networkd.service") }), hand)
}
