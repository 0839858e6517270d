package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/kernel"
	"ec2netd/service/state"
)

const (
	// soakSteps is how long a life is that is part of the tests. It takes about 20 s.
	soakSteps = 8
	// soakPatience is the limit of each wait in a life. What networkd has lost is brought
	// back after half a minute, what it loses of that after another minute (E5).
	soakPatience = 3 * time.Minute
	// soakENIs is how many secondary ENIs a life has at most.
	soakENIs = 6
)

// soakTime is how long the life of an instance is, 0 for soakSteps: EC2NETD_SOAK=20m.
func soakTime(t *testing.T) time.Duration {
	t.Helper()
	text := os.Getenv("EC2NETD_SOAK")
	if text == "" {
		return 0
	}
	d, err := time.ParseDuration(text)
	if err != nil {
		t.Fatalf("EC2NETD_SOAK: %v", err)
	}
	return d
}

// TestLabSoak is the life of an instance by chance: ENIs are attached, detached and
// attached again, addresses and prefixes come and go, the metadata service fails, and the
// daemons are restarted and killed. After each step the kernel is as EC2 says, and at the
// end nothing is left of it (C7, C10, D3, F1). The seed alone says which steps there are.
func TestLabSoak(t *testing.T) {
	limit := soakTime(t)
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		s := born(t, suite)
		began := time.Now()
		for n := 1; ; n++ {
			if limit == 0 && n > soakSteps || limit > 0 && time.Since(began) >= limit {
				break
			}
			s.step(n)
		}
		s.end()
	})
}

// life is that of an instance.
type life struct {
	*labtest.Lab
	random   *rand.Rand
	observer *kernel.Observer
	// before is what there was when nothing had happened yet.
	before leftovers
	// restarts is how often systemd has started the daemon again that was killed.
	restarts int
	// down: the daemon is stopped. came: an ENI was attached in this step.
	down, came bool
	slowest    time.Duration
	// networkdAt is when networkd was last restarted or killed.
	networkdAt time.Time
}

// leftovers is what may pile up.
type leftovers struct {
	usage                         labtest.Usage
	files, units, rules, altnames []string
}

func born(t *testing.T, suite string) *life {
	t.Helper()
	s := &life{random: labtest.Luck(t)}
	s.Lab = labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
		labtest.Refreshing(o)
		// Sooner than a user waits.
		o.Files["/etc/systemd/system/ec2netd.service.d/test.conf"] = "[Service]\nRestartSec=100ms\n"
		// From 257 on systemd stops this one first when networkd was killed, which then asks
		// networkd, for 45 s.
		labtest.MaskFile(o, "etc/systemd/system/systemd-networkd-persistent-storage.service")
	})
	err := s.Inst.Do(func() (err error) {
		s.observer, err = kernel.NewObserver([]string{"veth"})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(s.observer.Close)
	// One ENI has come and gone: that is no leak.
	s.settle("boot")
	eni := s.Attach(labtest.HotplugSpec())
	s.settle("the first ENI")
	s.delete(eni)
	s.settle("without it")
	s.before = s.look()
	return s
}

// look is what there is now.
func (s *life) look() leftovers {
	s.T.Helper()
	lines := func(command string) []string { return strings.Split(s.Run("sh", "-c", command), "\n") }
	return leftovers{
		usage: s.Usage(),
		// What waits for networkd's start goes with the first change of its ENI.
		files:    lines("find /run/systemd/network /run/ec2netd /var/lib/ec2netd ! -path '/run/ec2netd/networkd-start*'"),
		units:    lines("systemctl list-units --all --plain --no-legend --no-pager --full | cut -d' ' -f1"),
		rules:    lines("ip -4 rule; ip -6 rule"),
		altnames: lines("ip link show | grep altname"),
	}
}

// more says what is otherwise than it was before, nothing if there is no more.
func (l *leftovers) more(before *leftovers) string {
	for _, odd := range []string{
		difference(l.files, before.files), difference(l.units, before.units),
		difference(l.rules, before.rules), difference(l.altnames, before.altnames),
	} {
		if odd != "" {
			return odd
		}
	}
	// The Go runtime keeps threads and memory that it once needed; connections to the
	// metadata service come and go.
	if u, b := l.usage, before.usage; u.FDs > b.FDs+4 || u.Threads > b.Threads+6 || u.RSS > b.RSS+16<<10 {
		return fmt.Sprintf("%+v, before %+v", u, b)
	}
	return ""
}

// step does a few things in quick succession, and waits until all is as EC2 says.
func (s *life) step(n int) {
	s.T.Helper()
	began := time.Now()
	s.came = false
	var done []string
	note := func(what string) {
		done = append(done, what)
		time.Sleep(time.Duration(s.random.IntN(300)) * time.Millisecond) // at a moment of chance
	}
	// For a while nothing happens to the daemon itself, so that what it leaks piles up.
	if n%100 < 40 && s.random.IntN(8) == 0 {
		s.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		s.down = true
		note("daemon down")
	}
	fault := ""
	if s.random.IntN(4) == 0 {
		fault = s.fault()
		note(fault)
	}
	for range 1 + s.random.IntN(4) {
		note(s.act(n))
	}
	if fault != "" {
		s.Inst.Metadata().ClearFaults()
		s.VPC.SetMetadataLoss(0, 0)
	}
	if s.down {
		// systemd gives up on a socket that is opened anew too often.
		s.Run("systemctl", "reset-failed", "ec2netd.socket", "ec2netd-metrics.socket")
		s.Run("systemctl", "start", "ec2netd.socket", "ec2netd-metrics.socket", "ec2netd.service")
		s.down, s.restarts = false, 0
	}
	// H3: as a user who wants it now, or by itself.
	if s.random.IntN(2) == 0 {
		done = append(done, "refresh")
		s.Run("ec2netctl", "refresh", "--wait")
	}
	what := fmt.Sprintf("step %d: %s", n, strings.Join(done, ", "))
	s.settle(what)
	took := time.Since(began)
	s.slowest = max(s.slowest, took)
	s.T.Logf("%s: %v", what, took.Round(10*time.Millisecond))

	eni := pick(s.random, s.attached())
	source := pick(s.random, slices.Concat(eni.IPv4(), eni.IPv6()))
	if source.Is6() && time.Since(s.networkdAt) < routerTime {
		s.answered(source)
	}
	s.PingFrom(source)
	if left := s.Residue(); left != "" {
		s.T.Errorf("%s: residue: %s", what, left)
	}
	if restarts := s.Run("systemctl", "show", "--property=NRestarts", "--value", "ec2netd.service"); restarts != fmt.Sprint(s.restarts) {
		s.T.Errorf("%s: the daemon was restarted %s times, not %d", what, restarts, s.restarts)
	}
	if s.T.Failed() {
		s.T.FailNow()
	}
}

// routerTime is how long after its end networkd of 257 and later may be without an IPv6
// route: until the router advertises itself again, each 10 s at most in the lab.
const routerTime = 15 * time.Second

// answered waits until pings from an IPv6 address are answered.
func (s *life) answered(source netip.Addr) {
	s.T.Helper()
	s.Until("pings from "+source.String()+" are answered", func() (bool, error) {
		result, err := s.Inst.Ping(s.T.Context(), source, vpc.FarIPv6, 5, 20*time.Millisecond)
		return err == nil && result.Received == result.Sent, err
	})
}

// pick returns one of several.
func pick[T any](random *rand.Rand, all []T) T { return all[random.IntN(len(all))] }

// attached are the ENIs that are attached, the primary first; detached the others.
func (s *life) attached() []*vpc.ENI {
	return slices.DeleteFunc(s.Inst.ENIs(), func(e *vpc.ENI) bool { return !e.Plugged() })
}

func (s *life) detached() []*vpc.ENI {
	return slices.DeleteFunc(s.Inst.ENIs(), func(e *vpc.ENI) bool { return e.Plugged() })
}

// act does one thing, and says what.
func (s *life) act(n int) string {
	s.T.Helper()
	ctx, random := s.T.Context(), s.random
	attached, detached := s.attached(), s.detached()
	eni := pick(random, attached)
	must := func(err error) {
		s.T.Helper()
		if err != nil {
			s.T.Fatal(err)
		}
	}
	named := func(what string, args ...any) string { return eni.Name() + " " + fmt.Sprintf(what, args...) }
	for { // until it is something that can be done now
		switch random.IntN(20) {
		case 0, 1, 2:
			if len(attached)+len(detached) <= soakENIs {
				eni, s.came = s.Attach(s.spec()), true
				return named("attached: %d IPv4, %d IPv6, %d prefixes", len(eni.IPv4()), len(eni.IPv6()), len(eni.Prefixes()))
			}
		case 3, 4:
			if len(attached) > 1 {
				eni = pick(random, attached[1:])
				linger := time.Duration(random.IntN(2)*random.IntN(1000)) * time.Millisecond
				must(eni.DetachLingering(ctx, linger))
				return named("detached, lingering %v", linger)
			}
		case 5, 6, 7:
			if len(detached) > 0 {
				eni = pick(random, detached)
				if random.IntN(4) == 0 && !s.down {
					// udevd gives the link the name that stands in its .link file, and never takes
					// it away again: the other ENI that has this number next would lack it. And
					// the number is read once, so the metadata must not be that of the attachment
					// before.
					s.Until("nothing of "+eni.Name()+" is left", func() (bool, error) {
						listed := slices.ContainsFunc(slices.Collect(maps.Keys(s.Inst.Metadata().Snapshot())), func(key string) bool {
							return strings.Contains(key, eni.MAC().String())
						})
						return !listed && len(s.Units(eni.MAC())) == 0, nil
					})
					eni.SetDeviceIndex(s.freeIndex())
				}
				name := eni.Name()
				if random.IntN(3) == 0 {
					name = s.freeName()
				}
				must(eni.Reattach(ctx, name))
				s.came = true
				return named("attached again as number %d", eni.DeviceIndex())
			}
		case 8:
			if len(detached) > 0 {
				// Its addresses are free for others.
				eni = pick(random, detached)
				must(eni.Delete(ctx))
				return named("deleted")
			}
		case 9, 10:
			if eni.Subnet().IPv4().IsValid() {
				added, err := eni.AssignIPv4(ctx)
				must(err)
				return named("gets %v", added)
			}
		case 11:
			if eni.Subnet().IPv6().IsValid() {
				added, err := eni.AssignIPv6(ctx)
				must(err)
				return named("gets %v", added)
			}
		case 12:
			if all := eni.IPv4(); len(all) > 1 {
				address := pick(random, all[1:])
				must(eni.UnassignIPv4(ctx, address))
				return named("loses %s", address)
			}
		case 13:
			// The first is DHCPv6's.
			if all := eni.IPv6(); len(all) > 1 {
				address := pick(random, all[1:])
				must(eni.UnassignIPv6(ctx, address))
				return named("loses %s", address)
			}
		case 14:
			assign := eni.AssignPrefixV4
			if !eni.Subnet().IPv4().IsValid() || (eni.Subnet().IPv6().IsValid() && random.IntN(2) == 0) {
				assign = eni.AssignPrefixV6
			}
			added, err := assign(ctx)
			must(err)
			return named("gets %v", added)
		case 15:
			if all := eni.Prefixes(); len(all) > 0 {
				prefix := pick(random, all)
				must(eni.UnassignPrefix(ctx, prefix))
				return named("loses %s", prefix)
			}
		case 16:
			// An address moves to another ENI, as with a failover.
			to := pick(random, attached)
			if all := eni.IPv4(); len(all) > 1 && to != eni && to.Subnet() == eni.Subnet() {
				address := pick(random, all[1:])
				must(eni.UnassignIPv4(ctx, address))
				_, err := to.AssignIPv4(ctx, address)
				must(err)
				return named("gives %s to %s", address, to.Name())
			}
		case 17:
			must(eni.PermuteIPv4(ctx, func(a, b netip.Addr) int { return b.Compare(a) }))
			return named("permuted")
		case 18:
			if n%100 < 40 && !s.down {
				return s.disturb("ec2netd.service")
			}
		case 19:
			unit := pick(random, []string{"systemd-networkd.service", "systemd-networkd.service", "systemd-udevd.service"})
			// A networkd that ends while it configures an ENI may forget what it has done by
			// then. Once 257 kept a default route of the base unit's metric for good: the ENI
			// was degraded, and said why.
			if unit == "systemd-udevd.service" || !s.came {
				return s.disturb(unit)
			}
		}
	}
}

// spec is an ENI by chance.
func (s *life) spec() vpc.ENISpec {
	random := s.random
	spec := vpc.ENISpec{
		IPv4Count: 1 + random.IntN(6), IPv6Count: random.IntN(4) - 1,
		PrefixV4Count: random.IntN(2), PrefixV6Count: random.IntN(2),
		Subnet: pick(random, []string{"a", "a", "a", "b", "b", "v4", "v6"}),
	}
	switch spec.Subnet {
	case "v4":
		spec.IPv6Count, spec.PrefixV6Count = 0, 0
	case "v6":
		spec.IPv4Count, spec.PrefixV4Count, spec.IPv6Count = 0, 0, max(1, spec.IPv6Count)
	}
	if random.IntN(3) == 0 {
		spec.Propagation = &imds.Propagation{Keys: map[string]time.Duration{}}
		keys := slices.Sorted(maps.Keys(imds.Interface{IPv4: s.Inst.Primary().IPv4(), SubnetIPv4: s.Inst.Primary().Subnet().IPv4()}.Keys()))
		for _, key := range keys {
			spec.Propagation.Keys[key] = time.Duration(random.IntN(1000)) * time.Millisecond
		}
	}
	return spec
}

// freeIndex is a device index that no ENI has, and freeName a name.
func (s *life) freeIndex() int {
	for {
		index := 1 + s.random.IntN(20)
		if !slices.ContainsFunc(s.Inst.ENIs(), func(e *vpc.ENI) bool { return e.DeviceIndex() == index }) {
			return index
		}
	}
}

func (s *life) freeName() string {
	for {
		name := fmt.Sprintf("ens%d", 5+s.random.IntN(40))
		if s.Inst.ENI(name) == nil {
			return name
		}
	}
}

// fault makes the metadata service fail until the end of the step.
func (s *life) fault() string {
	s.T.Helper()
	random := s.random
	if random.IntN(4) == 0 {
		s.VPC.SetMetadataLoss(0.3, random.Uint64())
		return "connections lost"
	}
	failures := imds.Failures()
	name := pick(random, slices.Sorted(maps.Keys(failures)))
	fault := failures[name]
	eni := pick(random, s.attached())
	dir := "network/interfaces/macs"
	var what string
	switch random.IntN(4) {
	case 0:
		fault.Pattern, what = "**", "all"
	case 1:
		fault.Pattern, what = imds.TokenKey, imds.TokenKey
		s.Inst.Metadata().RevokeTokens()
	case 2:
		fault.Pattern, what = dir+"/"+eni.MAC().String()+"/**", eni.Name()
	default:
		key := pick(random, eniKeys)
		fault.Pattern, what = strings.TrimSuffix(dir+"/*/"+key, "/"), fmt.Sprintf("key %q", key)
	}
	if _, err := s.Inst.Metadata().AddFault(fault); err != nil {
		s.T.Fatal(err)
	}
	return fmt.Sprintf("fault %s: %s", name, what)
}

// disturb restarts or kills a daemon.
func (s *life) disturb(unit string) string {
	s.T.Helper()
	if unit != "ec2netd.service" {
		// systemd gives up on what ends too often.
		s.Run("systemctl", "reset-failed", unit)
	}
	if unit == "systemd-networkd.service" {
		s.networkdAt = time.Now()
	}
	if s.random.IntN(2) == 0 {
		s.Run("systemctl", "restart", unit)
		if unit == "ec2netd.service" {
			s.restarts = 0
		}
		return unit + " restarted"
	}
	restarts := func() string {
		return s.Run("systemctl", "show", "--property=NRestarts", "--property=ActiveState", "--value", unit)
	}
	before := restarts()
	s.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", unit)
	s.Until(unit+" runs again", func() (bool, error) {
		now := restarts()
		return now != before && slices.Contains(strings.Fields(now), "active"), nil
	})
	if unit == "ec2netd.service" {
		s.restarts++
	}
	return unit + " killed"
}

// settle waits until the kernel and the files are as EC2 has the instance, and the daemon
// says so.
func (s *life) settle(what string) {
	s.T.Helper()
	last := ""
	ctx, cancel := context.WithTimeout(s.T.Context(), soakPatience)
	defer cancel()
	err := vpc.Until(ctx, what+": all is as EC2 says", func() (bool, error) {
		var err error
		if last, err = s.differs(); err != nil || last != "" {
			return false, err
		}
		// The state is that of the last look: the kernel may have changed since.
		last = s.undescribed()
		return last == "", nil
	})
	if err != nil {
		s.T.Logf("%s", s.Run("sh", "-c", "ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; cat /run/systemd/network/*.d/*; networkctl"))
		s.T.Fatalf("%v; %s", err, last)
	}
}

// differs says in what the kernel or the files are not as EC2 has the instance, nothing if
// they are.
func (s *life) differs() (string, error) {
	snapshot, err := s.observer.Observe()
	if err != nil {
		return "", err
	}
	attached := s.attached()
	if len(snapshot.Links) != len(attached) {
		return fmt.Sprintf("%d links for %d ENIs", len(snapshot.Links), len(attached)), nil
	}
	wantRules, tables := []string{}, map[int]bool{}
	wantFiles := []string{}
	for _, eni := range attached {
		n := slices.IndexFunc(snapshot.Links, func(l kernel.Link) bool { return l.MAC == eni.MAC().String() })
		if n < 0 || snapshot.Links[n].Name != eni.Name() {
			return "no link for " + eni.Name(), nil
		}
		if lacks := lacksOf(&snapshot.Links[n], eni); lacks != "" {
			return eni.Name() + ": " + lacks, nil
		}
		if lacks := s.routeLacks(snapshot, snapshot.Links[n].Index, eni); lacks != "" {
			return eni.Name() + ": " + lacks, nil
		}
		for _, kind := range []string{".network", ".network.d/50-ec2netd.conf", ".link", ".link.d/50-ec2netd.conf"} {
			wantFiles = append(wantFiles, "70-"+eni.Name()+kind)
		}
		if eni == s.Inst.Primary() {
			continue
		}
		tables[labtest.TableOf(eni)] = true
		for _, source := range labtest.Sources(eni) {
			wantRules = append(wantRules, fmt.Sprintf("from %s lookup %d", source, labtest.TableOf(eni)))
		}
	}
	rules := []string{}
	for _, r := range snapshot.Rules {
		if r.Priority >= 10000 && r.Priority < 20000 {
			from := r.From.String()
			if r.From.IsSingleIP() {
				from = r.From.Addr().String()
			}
			rules = append(rules, fmt.Sprintf("from %s lookup %d", from, r.Table))
		}
	}
	if odd := difference(rules, wantRules); odd != "" {
		return "rules: " + odd, nil
	}
	for _, r := range snapshot.Routes {
		if r.Table >= 10000 && r.Table < 20000 && !tables[r.Table] {
			return fmt.Sprintf("a route in table %d", r.Table), nil
		}
	}
	files, err := s.generated()
	if err != nil {
		return "", err
	}
	if odd := difference(files, wantFiles); odd != "" {
		return "files: " + odd, nil
	}
	return "", nil
}

// generated are the files of ENIs below /run/systemd/network that every ENI has, and those
// of ENIs that have gone.
func (s *life) generated() ([]string, error) {
	dir := s.Inst.Path("/run/systemd/network")
	entries, err := os.ReadDir(dir)
	if err != nil {
		return nil, err
	}
	var files []string
	for _, e := range entries {
		if !strings.HasPrefix(e.Name(), "70-") {
			continue
		}
		if !e.IsDir() {
			files = append(files, e.Name())
			continue
		}
		inside, err := os.ReadDir(dir + "/" + e.Name())
		if err != nil && !os.IsNotExist(err) {
			return nil, err
		}
		for _, f := range inside {
			if f.Name() == "50-ec2netd.conf" {
				files = append(files, e.Name()+"/"+f.Name())
			}
		}
	}
	return files, nil
}

// difference says what of two lists is not in both, nothing if they are the same, in
// whatever order.
func difference(have, want []string) string {
	counts := make(map[string]int)
	for _, s := range have {
		counts[s]++
	}
	for _, s := range want {
		counts[s]--
	}
	var out []string
	for _, s := range slices.Sorted(maps.Keys(counts)) {
		switch {
		case counts[s] > 0:
			out = append(out, s+" is there")
		case counts[s] < 0:
			out = append(out, s+" is missing")
		}
	}
	return strings.Join(out, ", ")
}

// lacksOf says what a link has not of what EC2 says, or has too much.
func lacksOf(link *kernel.Link, eni *vpc.ENI) string {
	var have, want []string
	for _, a := range link.Addresses {
		if !a.Prefix.Addr().IsLinkLocalUnicast() {
			text := a.Prefix.Addr().String()
			if a.Tentative {
				text += " (tentative)"
			}
			have = append(have, text)
		}
	}
	for _, a := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		want = append(want, a.String())
	}
	if odd := difference(have, want); odd != "" {
		return odd
	}
	for _, name := range []string{eni.ID(), fmt.Sprintf("device-number-%d", eni.DeviceIndex())} {
		if !slices.Contains(link.Altnames, name) {
			return fmt.Sprintf("the altname %s is missing: %v", name, link.Altnames)
		}
	}
	return ""
}

// routeLacks says what is wrong with the routes of an ENI: default routes in the main table
// with its metric (B1, B6), and in its own table these and the subnets (B2).
func (s *life) routeLacks(snapshot *kernel.Snapshot, index int, eni *vpc.ENI) string {
	primary, metric := eni == s.Inst.Primary(), labtest.TableOf(eni)-10000+512
	var families []netip.Prefix
	if len(eni.IPv4()) > 0 {
		families = append(families, eni.Subnet().IPv4())
	}
	if len(eni.IPv6()) > 0 {
		families = append(families, eni.Subnet().IPv6())
	}
	for _, subnet := range families {
		has := func(table, metric int, to netip.Prefix) bool {
			return slices.ContainsFunc(snapshot.Routes, func(r kernel.Route) bool {
				return r.Link == index && r.Table == table && (metric == 0 || r.Metric == metric) && r.Destination == to && r.Gateway.IsValid() == (to.Bits() == 0)
			})
		}
		everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
		if subnet.Addr().Is6() {
			everywhere = netip.PrefixFrom(netip.IPv6Unspecified(), 0)
		}
		switch {
		case !has(kernel.MainTable, metric, everywhere):
			return fmt.Sprintf("no default route for %s with metric %d in the main table", subnet, metric)
		case primary:
		case !has(labtest.TableOf(eni), 0, everywhere):
			return fmt.Sprintf("no default route for %s in table %d", subnet, labtest.TableOf(eni))
		case !has(labtest.TableOf(eni), 0, subnet):
			return fmt.Sprintf("no route to %s in table %d", subnet, labtest.TableOf(eni))
		}
	}
	for _, r := range snapshot.Routes {
		// 252 has an advertised one beside the static one of the primary.
		if r.Link == index && r.Table == kernel.MainTable && r.IsDefault() && r.Metric != metric && (!primary || r.Metric != 511) {
			return fmt.Sprintf("a default route of metric %d in the main table", r.Metric)
		}
	}
	return ""
}

// undescribed says what the daemon says otherwise than EC2, nothing if it agrees.
func (s *life) undescribed() string {
	said, err := s.TryDescribe()
	if err != nil {
		return err.Error()
	}
	if attached := s.attached(); len(said.Interfaces) != len(attached) || said.State != state.Configured {
		return fmt.Sprintf("the daemon has %d ENIs of %d, is %s: %s", len(said.Interfaces), len(attached), said.State, said.Reason)
	}
	for _, i := range said.Interfaces {
		// A restart of networkd may change the order of addresses.
		if i.State != state.ENIConfigured || (i.Reason != "" && !strings.Contains(i.Reason, "the first address of the link is")) {
			return fmt.Sprintf("the daemon says that %s is %s: %s", i.Name, i.State, i.Reason)
		}
	}
	return ""
}

// delete detaches an ENI for good.
func (s *life) delete(eni *vpc.ENI) {
	s.T.Helper()
	if err := eni.Delete(s.T.Context()); err != nil {
		s.T.Fatal(err)
	}
}

// end takes away all that came, and looks for what is left of it.
func (s *life) end() {
	s.T.Helper()
	ctx, primary := s.T.Context(), s.Inst.Primary()
	for _, eni := range s.Inst.ENIs()[1:] {
		s.delete(eni)
	}
	for _, err := range []error{
		primary.UnassignIPv4(ctx, primary.IPv4()[1:]...), primary.UnassignIPv6(ctx, primary.IPv6()[1:]...),
		primary.UnassignPrefix(ctx, primary.Prefixes()...),
	} {
		if err != nil {
			s.T.Fatal(err)
		}
	}
	s.settle("the end")
	var now leftovers
	last := ""
	s.UntilOr("nothing is left", func() (bool, error) {
		now = s.look()
		last = now.more(&s.before)
		return last == "", nil
	}, &last)
	s.T.Logf("the slowest step took %v; usage before %+v, now %+v", s.slowest.Round(10*time.Millisecond), s.before.usage, now.usage)
	s.CheckLog("err")
}
