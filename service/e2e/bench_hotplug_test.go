package e2e

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"net"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/vishvananda/netlink"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// rounds of a figure that takes no time.
const rounds = 5

// plugging is the attachment of ENIs, by the daemon and by the oracle in turn.
type plugging struct {
	*labtest.Lab
	handle *netlink.Handle
	enis   []*vpc.ENI
	// every is how often the kernel is looked at.
	every time.Duration
}

// newPlugging prepares it: the ENIs are configured by the daemon, whose files are those of the
// oracle.
func newPlugging(l *labtest.Lab, b *testing.B, enis []*vpc.ENI, every time.Duration) *plugging {
	b.Helper()
	handle, err := l.Inst.Netlink()
	if err != nil {
		b.Fatal(err)
	}
	b.Cleanup(handle.Close)
	for _, eni := range enis {
		l.AwaitConfigured(eni.ID())
	}
	l.Run("mkdir", "/run/oracle")
	for _, eni := range enis {
		l.Run("sh", "-c", "cp -a /run/systemd/network/70-"+eni.Name()+".* /run/oracle/")
	}
	return &plugging{Lab: l, handle: handle, enis: enis, every: every}
}

func (p *plugging) detachAll() {
	p.T.Helper()
	for _, eni := range p.enis {
		p.Detach(eni)
	}
	p.ruleless()
}

func (p *plugging) ruleless() {
	p.T.Helper()
	p.Until("the rules of the ENIs are gone", func() (bool, error) {
		return !strings.Contains(p.Run("sh", "-c", "ip rule; ip -6 rule"), "lookup 100"), nil
	})
}

// attachAll plugs the ENIs in, and returns when it began.
func (p *plugging) attachAll() time.Time {
	p.T.Helper()
	began := time.Now()
	for _, eni := range p.enis {
		p.Reattach(eni, "")
	}
	return began
}

// byDaemon has the daemon configure the ENIs, and tells how long that takes. Before it
// returns the daemon has seen that all is there.
func (p *plugging) byDaemon() time.Duration {
	p.T.Helper()
	began := p.attachAll()
	p.applied()
	took := time.Since(began)
	p.Until("the daemon says that all is configured", func() (bool, error) {
		// A description of everything would be work.
		out, err := p.Inst.Exec(p.T.Context(), "busctl", "get-property", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "State")
		return err == nil && strings.Contains(out, string(state.Configured)), nil
	})
	return took
}

// forgetful waits until the daemon knows that the ENIs are gone, and has networkd forget
// their files, which that of the oracle does not know either.
func (p *plugging) forgetful() {
	p.T.Helper()
	p.Until("the daemon knows that the ENIs are gone", func() (bool, error) { return len(p.Describe().Interfaces) == 1, nil })
	p.Reload()
}

// byOracle has networkd configure the ENIs by the files that are there at once, and tells
// how long that takes, and what CPU time the whole system. ENIs are detached before and
// after, the daemon is stopped meanwhile.
func (p *plugging) byOracle() (took, cpu time.Duration) {
	p.T.Helper()
	// What ends with the daemon has networkd reload, too.
	p.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket", "ec2netd-release.service")
	remove := func() {
		for _, eni := range p.enis {
			p.Run("sh", "-c", "rm -rf /run/systemd/network/70-"+eni.Name()+".*")
		}
		p.Reload()
	}
	remove()
	before := p.CPU("")
	began := p.attachAll()
	p.Run("sh", "-c", "cp -a /run/oracle/* /run/systemd/network/ && networkctl reload")
	p.applied()
	took, cpu = time.Since(began), p.CPU("")-before
	for _, eni := range p.enis {
		p.Detach(eni)
	}
	remove()
	// systemd gives up on a socket that is opened anew too often.
	p.Run("systemctl", "reset-failed", "ec2netd.socket")
	p.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
	p.AwaitConfigured("ens5")
	p.ruleless() // what networkd leaves of them the daemon has removed
	return took, cpu
}

// applied waits until the kernel has all addresses and rules of the ENIs, and default routes
// in their tables.
func (p *plugging) applied() {
	p.T.Helper()
	ctx, cancel := context.WithTimeout(p.T.Context(), labtest.Patience)
	defer cancel()
	err := vpc.UntilExactly(ctx, "all addresses, rules and default routes are in the kernel", p.every, func() (bool, error) {
		rules, err := p.handle.RuleList(netlink.FAMILY_ALL)
		if err != nil {
			return false, err
		}
		from := make(map[int][]string)
		for _, r := range rules {
			if r.Src != nil {
				source := r.Src.String()
				if ones, bits := r.Src.Mask.Size(); ones == bits {
					source = r.Src.IP.String()
				}
				from[r.Priority] = append(from[r.Priority], source)
			}
		}
		for _, eni := range p.enis {
			got := from[labtest.TableOf(eni)]
			slices.Sort(got)
			if !slices.Equal(got, labtest.Sources(eni)) || !p.hasAddresses(eni) || !p.hasRoutes(eni) {
				return false, nil
			}
		}
		return true, nil
	})
	if err != nil {
		p.T.Fatal(err)
	}
}

func (p *plugging) hasAddresses(eni *vpc.ENI) bool {
	link, err := p.handle.LinkByName(eni.Name())
	if err != nil {
		return false // the link is only coming
	}
	addresses, err := p.handle.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return false
	}
	has := make(map[string]bool)
	for _, a := range addresses {
		has[a.IP.String()] = true
	}
	return !slices.ContainsFunc(labtest.Sources(eni), func(s string) bool { return !strings.Contains(s, "/") && !has[s] })
}

func (p *plugging) hasRoutes(eni *vpc.ENI) bool {
	families := []int{netlink.FAMILY_V4}
	if len(eni.IPv6()) > 0 {
		families = append(families, netlink.FAMILY_V6)
	}
	return !slices.ContainsFunc(families, func(family int) bool {
		routes, err := p.handle.RouteListFiltered(family, &netlink.Route{Table: labtest.TableOf(eni)}, netlink.RT_FILTER_TABLE)
		return err != nil || !slices.ContainsFunc(routes, func(r netlink.Route) bool {
			ones := 0
			if r.Dst != nil {
				ones, _ = r.Dst.Mask.Size()
			}
			return ones == 0 && r.Gw != nil
		})
	})
}

// requests are those for the secondary ENIs in the time that it took to configure them: the
// looks that follow for ten seconds are not counted.
func (p *plugging) requests(since time.Time, took time.Duration) int {
	return imds.Count(slices.DeleteFunc(p.Inst.Metadata().RequestsSince(since), func(r imds.Request) bool {
		return strings.Contains(r.Key, p.Inst.Primary().MAC().String()) || r.Time.After(since.Add(took))
	})).Total
}

// hotplugs is the main job: one ENI.
func hotplugs(b *testing.B, r *report, suite string) {
	l := labtest.Boot(b, suite, nil)
	l.AwaitConfigured("ens5")
	tellAtOnce(l, 2*time.Millisecond)
	eni := l.Attach(labtest.HotplugSpec())
	p := newPlugging(l, b, []*vpc.ENI{eni}, 0)
	var daemon, oracle, requests, refresh []float64
	for range rounds {
		p.detachAll()
		p.forgetful()
		before := time.Now()
		took := p.byDaemon()
		daemon = append(daemon, ms(took))
		requests = append(requests, float64(p.requests(before, took)))

		// H3: an address assigned, and a Refresh that waits for it.
		added, err := eni.AssignIPv4(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		l.Run("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", "true")
		refresh = append(refresh, ms(time.Since(began)))
		if !l.HasAddress(eni.Name(), added[0]) {
			b.Errorf("after Refresh %s is not there", added[0])
		}
		if err := eni.UnassignIPv4(b.Context(), added...); err != nil {
			b.Fatal(err)
		}
		p.detachAll()
		limit, _ := p.byOracle()
		oracle = append(oracle, ms(limit))
		p.attachAll()
		l.AwaitConfigured(eni.ID())
	}
	r.compare(suite, figure{
		Name: "hotplug", What: "one ENI plugged in until all addresses, rules and routes are there", Unit: "ms", Most: most(300), MostRatio: most(2),
		Shell: map[string]float64{"bookworm": 5060, "trixie": 4560},
	}, daemon, oracle)
	r.set(suite, figure{
		Name: "hotplug-requests", What: "  metadata requests (most of all rounds)", Unit: "requests", Most: most(10),
		Shell: map[string]float64{"bookworm": 22, "trixie": 22},
	}, slices.Max(requests))
	r.set(suite, figure{Name: "refresh", What: "an address assigned and Refresh(wait) called until it is there", Unit: "ms"}, median(refresh))
	started, nothing := timeStarts(l)
	r.compare(suite, figure{Name: "start", What: "start to READY=1 (the oracle: a program that does nothing, in the same sandbox)", Unit: "ms", Most: most(50)}, started, nothing)
}

// timeStarts is how long the daemon takes from its start until it is ready, and how long the
// same unit takes in turn whose program does nothing: that is systemd's own time, most of it
// for the sandbox.
func timeStarts(l *labtest.Lab) (daemon, nothing []float64) {
	l.T.Helper()
	l.Run("sh", "-c", `sed -E 's|^ExecStart=.*|ExecStart=/bin/true|; s|^Type=.*|Type=oneshot\nRemainAfterExit=yes|
		/^(Wants|After|Before|NotifyAccess|BusName|Restart|RestartSec|WatchdogSec)=/d' /usr/lib/systemd/system/ec2netd.service \
		>/run/systemd/system/nothing.service && systemctl daemon-reload`)
	start := func(unit string) float64 {
		time.Sleep(500 * time.Millisecond) // what the one before has brought is over
		l.Run("systemctl", "restart", unit)
		var at []float64
		for _, property := range []string{"ExecMainStartTimestampMonotonic", "ActiveEnterTimestampMonotonic"} {
			n, err := strconv.ParseFloat(l.Run("systemctl", "show", "--property="+property, "--value", unit), 64)
			if err != nil {
				l.T.Fatal(err)
			}
			at = append(at, n/1000)
		}
		return at[1] - at[0]
	}
	for range 2 * rounds {
		daemon = append(daemon, start("ec2netd.service"))
		nothing = append(nothing, start("nothing.service"))
	}
	l.Run("systemctl", "stop", "nothing.service")
	return daemon, nothing
}

// many is an instance with as much as there can be: 14 ENIs of 50 addresses come at once,
// and then what a large instance costs and how long clients wait for an answer. The clients
// are in this process, so that the start of busctl is not counted.
func many(b *testing.B, r *report, suite string) {
	const enis, addresses, times = 14, 50, 3
	l := labtest.Boot(b, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv4Count = addresses })
	l.AwaitConfigured("ens5")
	tellAtOnce(l, 2*time.Millisecond)
	var all []*vpc.ENI
	for range enis {
		all = append(all, l.Attach(vpc.ENISpec{IPv4Count: addresses}))
	}
	p := newPlugging(l, b, all, 20*time.Millisecond)
	var daemon, oracle, cpu, system, systemOracle, reloads, requests []float64
	for range times {
		p.detachAll()
		p.forgetful()
		before, began := l.Describe(), time.Now()
		used, usedByAll := l.CPU(labtest.DaemonGroup), l.CPU("")
		took := p.byDaemon()
		daemon = append(daemon, ms(took))
		cpu = append(cpu, (l.CPU(labtest.DaemonGroup) - used).Seconds())
		system = append(system, (l.CPU("") - usedByAll).Seconds())
		requests = append(requests, float64(p.requests(began, took))/enis)
		reloads = append(reloads, float64(l.Describe().Networkd.Reloads-before.Networkd.Reloads))
		p.detachAll()
		limit, used := p.byOracle()
		oracle, systemOracle = append(oracle, ms(limit)), append(systemOracle, used.Seconds())
	}
	r.compare(suite, figure{
		Name: "many", What: "14 ENIs of 50 addresses plugged in until all addresses, rules and routes are there", Unit: "ms", MostRatio: most(1.3),
		Shell: map[string]float64{"bookworm": 8300, "trixie": 8300},
	}, daemon, oracle)
	r.set(suite, figure{Name: "many-reloads", What: "  reloads of networkd (most of all rounds)", Unit: "reloads", Most: most(3)}, slices.Max(reloads))
	r.set(suite, figure{Name: "many-cpu", What: "  CPU time of the daemon until it has seen that", Unit: "s", Most: most(0.5)}, median(cpu))
	r.compare(suite, figure{
		Name: "many-cpu-system", What: "  CPU time of the whole system until then", Unit: "s",
		Shell: map[string]float64{"bookworm": 7.4, "trixie": 7},
	}, system, systemOracle)
	r.set(suite, figure{
		Name: "many-requests", What: "  metadata requests an ENI (most of all rounds)", Unit: "requests", Most: most(10),
		Shell: map[string]float64{"bookworm": 22, "trixie": 22},
	}, slices.Max(requests))

	p.attachAll()
	l.Until("15 ENIs are configured", func() (bool, error) {
		s, err := l.TryDescribe()
		return err == nil && len(s.Interfaces) == enis+1 && !slices.ContainsFunc(s.Interfaces, func(i state.Interface) bool {
			return i.State != state.ENIConfigured || slices.ContainsFunc(i.Items, func(item state.Item) bool {
				return item.Kind == state.ItemRule && item.Networkd != state.Yes
			})
		}), nil
	})
	timeRequests(l, b, r, suite, all[enis-1])
	r.set(suite, figure{Name: "rss", What: "RSS with 15 ENIs of 50 addresses", Unit: "MiB", Most: most(20)}, float64(l.OfDaemon("VmRSS", false))/1024)
	started, nothing := timeStarts(l)
	r.compare(suite, figure{Name: "start-15x50", What: "start to READY=1 with 15 ENIs of 50 addresses (the same)", Unit: "ms", Most: most(50)}, started, nothing)
	l.AwaitConfigured(all[enis-1].ID())
	r.set(suite, figure{
		Name: "pass-15x50", What: "CPU time of an event with nothing to do, with 15 ENIs of 50 addresses", Unit: "ms", Most: most(5),
	}, costOfEvent(l, all[0]))
}

// costOfEvent is what an event that changes nothing costs the daemon, in ms of CPU time: the
// kernel tells the same of an address again.
func costOfEvent(l *labtest.Lab, eni *vpc.ENI) float64 {
	l.T.Helper()
	const events = 50
	address := []string{"ip", "address", "replace", "192.0.2.77/32", "dev", eni.Name()}
	l.Run(address...)
	l.Run("ec2netctl", "refresh", "--wait")
	before := l.CPU(labtest.DaemonGroup)
	for range events {
		l.Run(address...)
		time.Sleep(50 * time.Millisecond) // each gets a pass of its own
	}
	used := l.CPU(labtest.DaemonGroup) - before
	l.Run("ip", "address", "del", "192.0.2.77/32", "dev", eni.Name())
	return ms(used) / events
}

// timeRequests times what clients wait for: the description of everything by either API, and a
// Refresh that waits, after an address was assigned to an ENI.
func timeRequests(l *labtest.Lab, b *testing.B, r *report, suite string, eni *vpc.ENI) {
	b.Helper()
	const times = 21
	root := fmt.Sprintf("/proc/%d/root", l.Inst.Leader())
	conn, err := dbus.Connect("unix:path=" + root + "/run/dbus/system_bus_socket")
	if err != nil {
		b.Fatal(err)
	}
	defer conn.Close()
	link, err := net.Dial("unix", root+"/run/ec2netd/org.ec2netd.Network")
	if err != nil {
		b.Fatal(err)
	}
	defer link.Close()
	replies := bufio.NewReader(link)
	manager := conn.Object("org.ec2netd1", "/org/ec2netd1")

	var overBus, overVarlink, refresh []float64
	size := 0
	for range times {
		var text string
		began := time.Now()
		if err := manager.CallWithContext(b.Context(), "org.ec2netd1.Manager.Describe", 0).Store(&text); err != nil {
			b.Fatal(err)
		}
		overBus = append(overBus, ms(time.Since(began)))
		size = len(text)

		// The text alone, as over D-Bus: what a client makes of it is its own.
		began = time.Now()
		if _, err := link.Write([]byte(`{"method":"org.ec2netd.Network.Describe"}` + "\x00")); err != nil {
			b.Fatal(err)
		}
		reply, err := replies.ReadBytes(0)
		if err != nil {
			b.Fatal(err)
		}
		overVarlink = append(overVarlink, ms(time.Since(began)))
		if !json.Valid(reply[:len(reply)-1]) || len(reply) < size/2 {
			b.Fatalf("Varlink described in %d bytes what D-Bus did in %d", len(reply), size)
		}
	}
	for range rounds {
		if err := eni.UnassignIPv4(b.Context(), eni.IPv4()[len(eni.IPv4())-1]); err != nil {
			b.Fatal(err)
		}
		refreshOverDBus(b.Context(), l, manager)
		added, err := eni.AssignIPv4(b.Context())
		if err != nil {
			b.Fatal(err)
		}
		began := time.Now()
		refreshOverDBus(b.Context(), l, manager)
		refresh = append(refresh, ms(time.Since(began)))
		if !l.HasAddress(eni.Name(), added[0]) {
			b.Errorf("after Refresh %s is not there", added[0])
		}
	}
	r.set(suite, figure{Name: "describe-dbus", What: "Describe over D-Bus, with 15 ENIs of 50 addresses", Unit: "ms", Most: most(10)}, median(overBus))
	r.set(suite, figure{Name: "describe-varlink", What: "Describe over Varlink, the same", Unit: "ms", Most: most(10)}, median(overVarlink))
	r.set(suite, figure{Name: "describe-size", What: "  size of it", Unit: "kB"}, float64(size)/1000)
	r.set(suite, figure{Name: "refresh-15x50", What: "an address assigned and Refresh(wait) called, the same", Unit: "ms", Most: most(300)}, median(refresh))
}

func refreshOverDBus(ctx context.Context, l *labtest.Lab, manager dbus.BusObject) {
	l.T.Helper()
	var text string
	if err := manager.CallWithContext(ctx, "org.ec2netd1.Manager.Refresh", 0, true).Store(&text); err != nil {
		l.T.Fatal(err)
	}
}
