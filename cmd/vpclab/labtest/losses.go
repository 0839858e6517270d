package labtest

import (
	"fmt"
	"net/netip"
	"strings"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// Losses are what a change cost an ENI.
type Losses struct {
	// Lost and Sent count pings to the primary addresses of the ENI: IPv4 from near and from far,
	// then IPv6. Near is the gateway of the subnet, far is beyond it.
	Lost, Sent [4]int
	// Streams are TCP connections to far away, first that of IPv4, then that of IPv6.
	Streams []vpc.StreamResult
	// Deleted are the events of ip monitor by which something of the ENI went.
	Deleted []string
}

// places names the elements of Lost and Sent.
var places = []string{"IPv4 near", "IPv4 far", "IPv6 near", "IPv6 far"}

// None reports whether nothing was lost, and no connection stood still. A lost segment is
// sent again after 200 ms at the earliest; this machine may be as slow.
func (l *Losses) None() bool { return l.NoneOf(false) && l.NoneOf(true) }

// NoneOf is None for one family.
func (l *Losses) NoneOf(ipv6 bool) bool {
	family := 0
	if ipv6 {
		family = 1
	}
	for i, s := range l.Streams {
		if i == family && (s.Stall > time.Second || s.Echoed < s.Sent) {
			return false
		}
	}
	return l.Lost[2*family] == 0 && l.Lost[2*family+1] == 0
}

// String lists all losses.
func (l *Losses) String() string {
	var out []string
	for i, place := range places {
		out = append(out, fmt.Sprintf("%s %d/%d", place, l.Lost[i], l.Sent[i]))
	}
	for _, s := range l.Streams {
		out = append(out, s.String())
	}
	return strings.Join(append(out, l.Deleted...), "; ")
}

// Measured does something and returns what it cost an ENI, see Measure.
func (l *Lab) Measured(eni *vpc.ENI, do func()) *Losses {
	l.T.Helper()
	finish := l.Measure(eni)
	do()
	return finish()
}

// Measure begins to ping the primary addresses of a dual-stack ENI from near and far, and
// to send on TCP connections from them; the returned function ends it and counts.
func (l *Lab) Measure(eni *vpc.ENI) func() *Losses {
	l.T.Helper()
	finish := l.MeasurePings(eni)
	var streams []*vpc.Stream
	for _, ends := range [][2]netip.Addr{{eni.IPv4()[0], vpc.FarIPv4}, {eni.IPv6()[0], vpc.FarIPv6}} {
		stream, err := l.Inst.StartStream(l.T.Context(), ends[0], ends[1], Pace)
		if err != nil {
			l.T.Fatal(err)
		}
		streams = append(streams, stream)
	}
	events := l.WatchKernel()
	return func() *Losses {
		l.T.Helper()
		out := finish()
		for _, stream := range streams {
			out.Streams = append(out.Streams, stream.Stop())
		}
		for _, line := range events() {
			if strings.HasPrefix(line, "Deleted") && strings.Contains(line, eni.Name()) {
				out.Deleted = append(out.Deleted, line)
			}
		}
		return out
	}
}

// MeasurePings is Measure with pings alone: the ENI need not have its addresses yet.
func (l *Lab) MeasurePings(eni *vpc.ENI) func() *Losses {
	l.T.Helper()
	finish := l.CountPings(PingEnds(eni)...)
	return func() *Losses {
		l.T.Helper()
		out := &Losses{}
		for i, counts := range finish() {
			out.Lost[i], out.Sent[i] = counts[0], counts[1]
		}
		return out
	}
}

// PingEnds are where pings of a dual-stack ENI come from and go to, in the order of [Losses].
func PingEnds(eni *vpc.ENI) [][2]netip.Addr {
	return [][2]netip.Addr{
		{eni.Subnet().Gateway4(), eni.IPv4()[0]}, {vpc.FarIPv4, eni.IPv4()[0]},
		{eni.Subnet().Near6(), eni.IPv6()[0]}, {vpc.FarIPv6, eni.IPv6()[0]},
	}
}
