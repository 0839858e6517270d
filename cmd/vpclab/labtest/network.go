package labtest

import (
	"net/netip"
	"sync"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// Attach attaches a new ENI. [Daemon.AwaitConfigured] then waits until the metadata has told all of it.
func (l *Network) Attach(spec vpc.ENISpec) *vpc.ENI {
	l.T.Helper()
	eni, err := l.Inst.Attach(l.T.Context(), spec)
	if err != nil {
		l.T.Fatal(err)
	}
	l.attached(eni)
	return eni
}

// Detach detaches an ENI, which stays in the VPC.
func (l *Network) Detach(eni *vpc.ENI) {
	l.T.Helper()
	if err := eni.Detach(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
}

// Reattach attaches an ENI again that was detached, under a name, or its former one if that is empty.
func (l *Network) Reattach(eni *vpc.ENI, name string) {
	l.T.Helper()
	if err := eni.Reattach(l.T.Context(), name); err != nil {
		l.T.Fatal(err)
	}
	l.attached(eni)
}

// attached notes when the metadata will tell all of an ENI that was attached just now.
func (l *Network) attached(eni *vpc.ENI) {
	if at, ok := l.Inst.Metadata().Complete(eni.MAC().String()); ok {
		l.late[eni.ID()] = at
	}
}

// Refreshed makes a change in the VPC and waits until the daemon has taken it up.
func (l *Network) Refreshed(change func() error) {
	l.T.Helper()
	if err := change(); err != nil {
		l.T.Fatal(err)
	}
	l.Run("ec2netctl", "refresh", "--wait")
}

// SetEndpoints sets the state of the metadata service at both of its addresses.
func (l *Network) SetEndpoints(state vpc.EndpointState) {
	l.T.Helper()
	for _, family := range []vpc.Family{vpc.IPv4, vpc.IPv6} {
		if err := l.VPC.SetMetadataEndpoint(l.T.Context(), family, state); err != nil {
			l.T.Fatal(err)
		}
	}
}

// CountDrops starts to count what the source check of the VPC drops. A new ENI has
// its address before its rules, from the base unit: what the kernel sends of its own
// accord in those milliseconds (measured: an ICMP error for a late DHCP answer) goes
// out of the primary and is dropped. From the moment on that it is configured,
// nothing may be.
func (l *Network) CountDrops() {
	l.T.Helper()
	l.drops = nil
	l.drops = l.Dropped()
}

// Dropped returns how many packets of each ENI, by ID, the source check of the VPC has dropped since
// CountDrops.
func (l *Network) Dropped() map[string]uint64 {
	l.T.Helper()
	counts := make(map[string]uint64)
	for _, eni := range l.Inst.ENIs() {
		drops, err := eni.Drops(l.T.Context())
		if err != nil {
			l.T.Fatal(err)
		}
		counts[eni.ID()] = drops.Total() - l.drops[eni.ID()]
	}
	return counts
}

// CheckDrops checks that the source check of the VPC has dropped nothing since CountDrops.
func (l *Network) CheckDrops() {
	l.T.Helper()
	for id, count := range l.Dropped() {
		if count != 0 {
			l.T.Errorf("the VPC dropped %d packets of %s", count, id)
		}
	}
}

// PingFrom pings the far host from an address, and expects every reply.
func (l *Network) PingFrom(source netip.Addr) {
	l.T.Helper()
	far := vpc.FarIPv4
	if source.Is6() {
		far = vpc.FarIPv6
	}
	result, err := l.Inst.Ping(l.T.Context(), source, far, 5, 20*time.Millisecond)
	if err != nil {
		l.T.Fatal(err)
	}
	if result.Received != result.Sent {
		l.T.Errorf("ping from %s to %s: %s", source, far, result)
	}
}

// Pace is that of the pings and streams that tell whether a change is hitless.
const Pace = 10 * time.Millisecond

// CountPings begins to ping, each from an address of the VPC to one of the instance; the returned
// function ends that, and says of each how many were lost since the first reply, and how many were
// sent.
func (l *Network) CountPings(all ...[2]netip.Addr) func() [][2]int {
	l.T.Helper()
	var pings []*vpc.Pinger
	for _, ends := range all {
		ping, err := l.VPC.StartPing(l.T.Context(), ends[0], ends[1], Pace)
		if err != nil {
			l.T.Fatal(err)
		}
		pings = append(pings, ping)
	}
	return func() (counts [][2]int) {
		l.T.Helper()
		// What was lost last shows when there are replies again; on 252 a router is back a
		// second after a reload.
		before := make(map[*vpc.Pinger]int)
		for _, ping := range pings {
			before[ping] = ping.Result().Received
		}
		l.Until("replies to all pings", func() (bool, error) {
			for ping, n := range before {
				if ping.Result().Received < n+150 {
					return false, nil
				}
			}
			return true, nil
		})
		counts = make([][2]int, len(pings))
		var stopped sync.WaitGroup // each waits for the replies that are under way
		for i, ping := range pings {
			stopped.Go(func() { counts[i][0], counts[i][1] = ping.Stop().LostSinceFirst() })
		}
		stopped.Wait()
		return counts
	}
}
