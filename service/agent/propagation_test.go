package agent

import (
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/store"
)

// unique watches that no two ENIs have a number of the same kind.
type unique struct {
	t     testing.TB
	where string
	held  map[string]string // "metric 513" → who has it
}

func newUnique(t testing.TB, where string) *unique {
	return &unique{t: t, where: where, held: make(map[string]string)}
}

func (u *unique) take(who, kind string, number int) {
	what := fmt.Sprintf("%s %d", kind, number)
	if other, ok := u.held[what]; ok && other != who {
		u.t.Errorf("%s at %s: %s is %s's and %s's", u.where, time.Now().Format("04:05.000"), what, other, who)
	}
	u.held[what] = who
}

// uniqueOnDisk returns a function for site.wrote that goes through the changes one by
// one, and checks the disk after each.
func (s *site) uniqueOnDisk() func(store.Changes) {
	disk := make(map[string]networkUnit)
	check := func() {
		u := newUnique(s.t, "disk")
		for name, unit := range disk {
			u.take(name, "metric", unit.metric4)
			if unit.metric6 != unit.metric4 {
				s.t.Errorf("%s has metric %d for IPv4 and %d for IPv6", name, unit.metric4, unit.metric6)
			}
			for _, r := range unit.routes {
				u.take(name, "table", r.Table)
			}
			for _, r := range unit.rules {
				if r.Guard {
					continue // of a subnet, which may be that of several ENIs
				}
				u.take(name, "table", r.Table)
				u.take(name, "priority", r.Priority)
			}
		}
	}
	return func(changes store.Changes) {
		for _, p := range changes.Removed {
			delete(disk, path.Dir(p))
		}
		for _, p := range changes.Written {
			if dir := path.Dir(p); path.Base(p) == plan.DropInName && path.Ext(dir[:len(dir)-len(".d")]) == ".network" {
				disk[dir] = parseUnit(s.t, s.store.Read(p))
				check()
			}
		}
	}
}

// uniqueInKernel is for site.reloaded.
func (s *site) uniqueInKernel() {
	u := newUnique(s.t, "kernel")
	primary := 0
	for _, l := range s.links {
		if l.MAC == s.instance.PrimaryMAC {
			primary = s.metric[l.Index]
		}
	}
	for _, r := range s.routes {
		who := s.nameOf(r.Link)
		if r.Table != kernel.MainTable {
			u.take(who, "table", r.Table)
			continue
		}
		// The base unit's is that of every link until there is a drop-in for it.
		if r.Metric != plan.UnknownMetric {
			u.take(who, "metric", r.Metric)
		}
		// B6: once the primary has its metric, nothing is as good.
		if primary < plan.UnknownMetric && r.Metric <= primary && s.specs[who].MAC != s.instance.PrimaryMAC {
			s.t.Errorf("%s has a default route with metric %d, the primary with %d", who, r.Metric, primary)
		}
	}
	owner := make(map[netip.Prefix]string)
	for name, spec := range s.specs {
		for _, source := range sourcesOf(spec) {
			owner[source] = name
		}
	}
	for _, r := range s.rules {
		if r.Guard {
			continue
		}
		u.take(owner[r.From], "table", r.Table)
		u.take(owner[r.From], "priority", r.Priority)
	}
}

// TestPropagation: 60 ENIs over 4 cards are attached within some seconds, and each of
// their keys appears on its own within 15 s, so that for a while the device number reads
// 0 and the network card is not there. At no instant have two ENIs one table, priority
// or metric, on disk or in the kernel; in the end all are as EC2 has them (B4, B5, B6).
// With EC2NETD_LONG=1 it is a hundred seeds.
func TestPropagation(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	seeds := 1
	if long() {
		seeds = 100
	}
	for n := range seeds {
		seed := random.Uint64()
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			// On 252 a DHCP route stays for a while after its metric has changed.
			synctest.Test(t, func(t *testing.T) { propagation(t, rand.New(rand.NewPCG(seed, 0)), n%2 == 0) })
		})
	}
}

func propagation(t *testing.T, random *rand.Rand, lingering bool) {
	const cards, each = 4, 15
	s := newSite(t, imds.Options{})
	s.lingering = lingering
	s.reloaded, s.wrote = s.uniqueInKernel, s.uniqueOnDisk()
	type event struct {
		at time.Duration
		do func()
	}
	var events []event
	within := func(limit time.Duration) time.Duration { return time.Duration(random.Int64N(int64(limit))) }
	for n := range cards * each {
		name, spec := fmt.Sprintf("ens%d", 5+n), specOf(n, n%cards, n/cards)
		p := imds.Propagation{Keys: map[string]time.Duration{}}
		for _, key := range slices.Sorted(maps.Keys(spec.Keys())) {
			p.Keys[key] = within(15 * time.Second)
		}
		if n == 0 {
			// Of the primary, what an instance boots with: its card may be late.
			p.Keys = map[string]time.Duration{"network-card": within(15 * time.Second)}
			s.publish(name, spec, p)
			s.plug(name)
			continue
		}
		at := within(10 * time.Second)
		s.set(func() { s.specs[name] = spec })
		events = append(events,
			event{at, func() { s.publish(name, spec, p) }},
			event{at + within(2*time.Second), func() { s.plug(name) }})
	}
	slices.SortStableFunc(events, func(a, b event) int { return int(a.at - b.at) })
	a, stop := s.run()
	defer stop()
	began := time.Now()
	for _, e := range events {
		settle(time.Until(began.Add(e.at)))
		e.do()
	}
	s.settled(a, 3*time.Minute)
	t.Logf("configured after %v, %d reloads, %d reconfigurations, %d requests", time.Since(began), s.reloads, s.reconfigures, len(s.server.Requests()))
}
