package e2e

import (
	"context"
	"fmt"
	"math"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

const (
	// calm is how long after an attachment a daemon looks at it as at any other time.
	calm = 75 * time.Second
	// idleTime is how long an idle instance is looked at: the daemon looks at other software
	// once in that time. Within stretch addresses are assigned.
	idleTime = 6 * time.Minute
	stretch  = 2 * time.Minute
	// phases is how many addresses are assigned, at moments of chance in the stretch, each
	// to an ENI of its own, and crowd how many of these an instance has: each takes of the
	// inotify instances that a machine has by default, 128.
	phases, crowd = 20, 10
)

// idle is what an instance costs to which nothing happens.
func idle(b *testing.B, r *report) {
	all := make(map[string]*idling)
	for _, suite := range vpc.Suites {
		l := labtest.Boot(b, suite.Name, nil)
		all[suite.Name] = &idling{Lab: l}
		for range 3 {
			l.Attach(labtest.HotplugSpec())
		}
	}
	for _, i := range all {
		for _, eni := range i.Inst.ENIs() {
			i.AwaitConfigured(eni.ID())
		}
	}
	time.Sleep(calm)
	for _, i := range all {
		i.begin()
	}
	time.Sleep(idleTime)
	for _, suite := range vpc.Suites {
		all[suite.Name].end(r, suite.Name)
	}
}

// assigned is how long it takes until an address is in use that is assigned to an instance
// to which nothing else happens, without a word to the daemon.
func assigned(b *testing.B, r *report) {
	random := labtest.Luck(b)
	type place struct {
		*labtest.Lab
		eni  *vpc.ENI
		when time.Duration
	}
	var places []place
	var l *labtest.Lab
	for n := range phases {
		if n%crowd == 0 {
			l = labtest.Boot(b, vpc.Suites[n/crowd].Name, nil)
		}
		places = append(places, place{l, l.Attach(vpc.ENISpec{IPv4Count: 2}), time.Duration(random.Int64N(int64(stretch)))})
	}
	for _, p := range places {
		p.AwaitConfigured(p.eni.ID())
	}
	time.Sleep(calm)

	type arrival struct {
		after time.Duration
		err   error
	}
	arrivals := make(chan arrival)
	ctx, cancel := context.WithTimeout(b.Context(), stretch+3*labtest.Patience)
	defer cancel()
	for _, p := range places {
		go func() {
			select {
			case <-ctx.Done():
			case <-time.After(p.when):
			}
			added, err := p.eni.AssignIPv4(ctx)
			assigned := time.Now()
			for err == nil {
				prefixes, addrsErr := p.Inst.Addrs(p.eni.Name())
				if addrsErr == nil && slices.ContainsFunc(prefixes, func(have netip.Prefix) bool { return have.Addr() == added[0] }) {
					break
				}
				select {
				case <-ctx.Done():
					err = fmt.Errorf("%s does not come: %w", added[0], context.Cause(ctx))
				case <-time.After(50 * time.Millisecond):
					err = addrsErr
				}
			}
			arrivals <- arrival{time.Since(assigned), err}
		}()
	}
	var took []float64
	for range places {
		a := <-arrivals
		if a.err != nil {
			b.Error(a.err)
			continue
		}
		took = append(took, a.after.Seconds())
	}
	if len(took) == 0 {
		b.FailNow()
	}
	shell := map[string]float64{"bookworm": 36, "trixie": 35}
	r.set("", figure{
		Name: "assigned", What: fmt.Sprintf("an address assigned and nobody says so, until it is in use (mean of %d)", phases), Unit: "s",
		Most: most(10), Shell: shell,
	}, mean(took))
	r.set("", figure{Name: "assigned-slowest", What: "  the slowest", Unit: "s"}, slices.Max(took))
}

// idling is an instance with 4 ENIs to which nothing happens.
type idling struct {
	*labtest.Lab
	began          time.Time
	daemon, system time.Duration
	switches, log  int
	children       string
	events         func() string
}

// lines is how many lines the daemons have logged.
func (i *idling) lines() int {
	return strings.Count(i.Run("journalctl", "--boot", "--unit=ec2netd", "--unit=ec2netd-orphans", "--unit=systemd-networkd", "--unit=systemd-udevd",
		"--output=cat", "--no-pager")+"\n", "\n")
}

func (i *idling) begin() {
	i.T.Helper()
	i.events, i.log, i.children = i.Monitor(""), i.lines(), childrenOfDaemon(i.Lab)
	i.daemon, i.system, i.switches = i.CPU(labtest.DaemonGroup), i.CPU(""), i.OfDaemon("voluntary_ctxt_switches", true)
	i.began = time.Now()
}

func (i *idling) end(r *report, suite string) {
	i.T.Helper()
	hour := float64(time.Hour) / float64(time.Since(i.began))
	daemon, system := i.CPU(labtest.DaemonGroup)-i.daemon, i.CPU("")-i.system
	switches := i.OfDaemon("voluntary_ctxt_switches", true) - i.switches
	requests := i.Inst.Metadata().RequestsSince(i.began)
	lines, processes, events := i.lines()-i.log, 0, 0
	if childrenOfDaemon(i.Lab) != i.children {
		processes = 1
	}
	for event := range strings.Lines(i.events()) {
		// 31999 is the mark of the monitor's own. A lease by DHCPv6 is renewed each minute.
		renewed := strings.Contains(event, "inet6") && strings.Contains(event, "dynamic") && !strings.HasPrefix(event, "Deleted")
		if !renewed && !strings.Contains(event, "31999") && (strings.Contains(event, "ens") || strings.Contains(event, "lookup")) {
			events++
		}
	}
	set := func(name, what, unit string, limit *float64, shell map[string]float64, value float64) {
		r.set(suite, figure{Name: "idle-" + name, What: what, Unit: unit, Most: limit, Shell: shell}, value)
	}
	set("cpu", "idle with 4 ENIs: CPU time of the daemon", "s an hour", most(1), nil, daemon.Seconds()*hour)
	set("cpu-system", "  CPU time of the whole system", "s an hour", nil, map[string]float64{"bookworm": 27, "trixie": 28}, system.Seconds()*hour)
	set("requests", "  metadata requests", "an hour", most(2016), map[string]float64{"bookworm": 2016, "trixie": 2016}, anHour(requests))
	set("requests-failed", "  of them errors", "an hour", most(0), map[string]float64{"bookworm": 432, "trixie": 432}, float64(imds.Count(requests).Errors)*hour)
	set("log", "  log lines", "an hour", most(0), map[string]float64{"bookworm": 1092, "trixie": 1116}, float64(lines)*hour)
	set("events", "  events of addresses, routes and rules", "an hour", most(0), nil, float64(events)*hour)
	set("processes", "  whether a process was started", "0 or 1", most(0), nil, float64(processes))
	set("wakeups", "  wake-ups of the daemon", "a minute", nil, nil, float64(switches)*hour/60)
}

// anHour is how many requests an hour there are where they come in rounds: those of all
// rounds but the last, in the time until that.
func anHour(requests []imds.Request) float64 {
	if len(requests) == 0 {
		return 0
	}
	last := requests[len(requests)-1].Time.Add(-time.Second)
	n, _ := slices.BinarySearchFunc(requests, last, func(r imds.Request, t time.Time) int { return r.Time.Compare(t) })
	if n == 0 {
		return math.Inf(1) // one round says nothing
	}
	return float64(n) / requests[n].Time.Sub(requests[0].Time).Hours()
}
