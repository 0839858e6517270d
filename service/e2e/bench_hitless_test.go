package e2e

import (
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/service/plan"
)

// costs is what happens to the primary ENI in its life, as packets lost of those sent each
// 10 ms to near and far, and the longest time that a byte took on a TCP connection (E1, E2,
// E6).
func costs(b *testing.B, r *report, suite string) {
	l := labtest.Boot(b, suite, nil)
	primary := l.Inst.Primary()
	l.AwaitConfigured("ens5")
	row := func(name string, cost, oracle *labtest.Losses) {
		note := func(kind, unit string, of func(*labtest.Losses) float64) {
			m := measured{Value: of(cost)}
			f := figure{Name: "lost " + kind + ": " + name, What: name + ": " + kind, Unit: unit}
			if oracle != nil {
				limit := of(oracle)
				m.Oracle = &limit
			}
			r.note(suite, f, m)
		}
		note("IPv4 lost", "packets", func(l *labtest.Losses) float64 { return float64(max(l.Lost[0], l.Lost[1])) })
		note("IPv6 lost", "packets", func(l *labtest.Losses) float64 { return float64(max(l.Lost[2], l.Lost[3])) })
		if len(cost.Streams) > 0 {
			note("TCP stood still", "ms", func(l *labtest.Losses) float64 { return ms(max(l.Streams[0].Stall, l.Streams[1].Stall)) })
		}
	}
	row("the first change", l.Measured(primary, hitlessSteps(l, primary)[0].do), nil)
	row("boot, known, with addresses more", measureReboot(l, primary), nil)
	for _, s := range hitlessSteps(l, primary) {
		row(s.name, l.Measured(primary, s.do), nil)
	}
	hitlessSteps(l, primary)[1].do()
	row("boot, known", measureReboot(l, primary), nil)
	l.Run("rm", "/var/lib/ec2netd/boot.json")
	row("boot, not known", measureReboot(l, primary), nil)
	// By itself: without the daemon, and what it has prepared.
	l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
	l.Run("rm", "-r", plan.StartDirectory)
	hand := l.Measured(primary, func() { l.Run("systemctl", "restart", "systemd-networkd.service") })
	l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
	l.AwaitConfigured(primary.ID())
	row("networkd restarted", l.Measured(primary, func() { l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service") }), hand)
}
