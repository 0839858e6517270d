package agent

import (
	"fmt"
	"net/netip"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/state"
)

// BenchmarkPass is a pass with nothing to do over 15 ENIs: of 50 addresses, and of 1, 10,
// 100 and 1000, in which it is to be linear. Kernel and networkd are fakes that answer
// from memory, the files are true ones.
func BenchmarkPass(b *testing.B) {
	const enis = 15
	for _, addresses := range []int{50, 1, 10, 100, 1000} {
		b.Run(fmt.Sprintf("addresses=%d", addresses), func(b *testing.B) {
			a, _ := idle(b, enis, addresses)
			b.ReportAllocs()
			began := cpu()
			for b.Loop() {
				a.pass(b.Context())
			}
			b.ReportMetric(float64((cpu()-began).Microseconds())/float64(b.N), "cpu-µs/op")
		})
	}
}

// idle is an agent that has configured everything and whose loop has ended: passes are the
// caller's to make.
func idle(tb testing.TB, enis, addresses int) (*Agent, *world) {
	tb.Helper()
	w := newWorld(tb)
	for i := range enis {
		var ipv4 []string
		for address := netip.AddrFrom4([4]byte{10, 0, byte(8 * i), 1}); len(ipv4) < addresses; address = address.Next() {
			ipv4 = append(ipv4, address.String())
		}
		w.attach(i, fmt.Sprintf("ens%d", 5+i), ipv4...)
	}
	a, stop := w.start(tb)
	defer stop()
	for now := range a.Watch(tb.Context()) {
		if now.State == state.Configured && len(now.Interfaces) == enis && a.configured(now) {
			break
		}
	}
	// Files are only taken to be unchanged once they are a second old.
	time.Sleep(1100 * time.Millisecond)
	return a, w
}

// cpu is what this process has used so far: a machine that is busy with others does not
// count.
func cpu() time.Duration {
	var used unix.Rusage
	_ = unix.Getrusage(unix.RUSAGE_SELF, &used)
	return time.Duration(used.Utime.Nano() + used.Stime.Nano())
}

func (a *Agent) configured(now *state.State) bool {
	for _, i := range now.Interfaces {
		if i.State != state.ENIConfigured {
			return false
		}
	}
	return true
}
