package e2e

import (
	"encoding/json"
	"fmt"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// hotplugSpec is the ENI of the main job: 3 IPv4 addresses, 1 IPv6 address, an IPv4
// and an IPv6 prefix.
func hotplugSpec() vpc.ENISpec {
	return vpc.ENISpec{IPv4Count: 3, IPv6Count: 1, PrefixV4Count: 1, PrefixV6Count: 1}
}

func (l *lab) attach(spec vpc.ENISpec) *vpc.ENI {
	l.t.Helper()
	eni, err := l.inst.Attach(l.t.Context(), spec)
	if err != nil {
		l.t.Fatal(err)
	}
	l.attached(eni)
	return eni
}

// addresses are the global addresses of a link, in the order of the kernel.
func (l *lab) addresses(name string) []netip.Addr {
	l.t.Helper()
	prefixes, err := l.inst.Addrs(name)
	if err != nil {
		l.t.Fatal(err)
	}
	var out []netip.Addr
	for _, p := range prefixes {
		if !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// rules are the sources that a table is looked up for, with priority and table of
// the same number.
func (l *lab) rules(table int) []string {
	l.t.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		var rules []struct {
			Priority int
			Src      string
			SrcLen   int
			Table    string
		}
		l.json(&rules, "ip", "-j", family, "rule", "show")
		for _, r := range rules {
			if r.Priority == table && r.Table == fmt.Sprint(table) {
				src := r.Src
				if r.SrcLen != 0 {
					src = fmt.Sprintf("%s/%d", r.Src, r.SrcLen)
				}
				out = append(out, src)
			}
		}
	}
	slices.Sort(out)
	return out
}

func (l *lab) json(into any, argv ...string) {
	l.t.Helper()
	out := l.run(argv...)
	// For a table that is not there ip of Debian 12 prints half a list.
	if out == "" || out == "[" {
		out = "[]"
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		l.t.Fatalf("%q printed %q: %v", argv, out, err)
	}
}

type route struct {
	Dst      string
	Gateway  string
	Dev      string
	Protocol string
	Metric   int
	Scope    string
	PrefSrc  string
}

func (l *lab) routes(family, table string) []route {
	l.t.Helper()
	var out []route
	l.json(&out, "sh", "-c", "ip -j "+family+" route show table "+table+" 2>/dev/null || true")
	return out
}

// sources of an ENI: what must have a rule.
func sources(eni *vpc.ENI) []string {
	var out []string
	for _, a := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		out = append(out, a.String())
	}
	for _, p := range eni.Prefixes() {
		out = append(out, p.String())
	}
	slices.Sort(out)
	return out
}

func sorted(addresses []netip.Addr) []netip.Addr {
	return slices.SortedFunc(slices.Values(addresses), netip.Addr.Compare)
}

// networkdLog is what networkd said since the boot.
func (l *lab) networkdLog() string {
	return l.run("journalctl", "--boot", "--unit=systemd-networkd", "--output=cat", "--no-pager")
}

// files are the generated files, with inode, time and size: what networkd compares.
func (l *lab) files() string {
	return l.run("sh", "-c", "find /run/systemd/network -path '*70-*' ! -type d -printf '%p %l %i %T@ %s\\n' | sort")
}

// countDrops starts to count what the source check of the VPC drops. A new ENI has
// its address before its rules, from the base unit: what the kernel sends of its own
// accord in those milliseconds (measured: an ICMP error for a late DHCP answer) goes
// out of the primary and is dropped. From the moment on that it is configured,
// nothing may be.
func (l *lab) countDrops() { l.t.Helper(); l.drops = l.dropped() }

func (l *lab) dropped() map[string]uint64 {
	l.t.Helper()
	counts := make(map[string]uint64)
	for _, eni := range l.inst.ENIs() {
		drops, err := eni.Drops(l.t.Context())
		if err != nil {
			l.t.Fatal(err)
		}
		counts[eni.ID()] = drops.Total()
	}
	return counts
}

// noDrops checks that the source check of the VPC has dropped nothing since
// countDrops.
func (l *lab) noDrops() {
	l.t.Helper()
	for id, count := range l.dropped() {
		if count != l.drops[id] {
			l.t.Errorf("the VPC dropped %d packets of %s", count-l.drops[id], id)
		}
	}
}

// setEndpoints sets the state of the metadata service at both of its addresses.
func (l *lab) setEndpoints(state vpc.EndpointState) {
	l.t.Helper()
	for _, family := range []vpc.Family{vpc.IPv4, vpc.IPv6} {
		if err := l.vpc.SetMetadataEndpoint(l.t.Context(), family, state); err != nil {
			l.t.Fatal(err)
		}
	}
}

// pingFrom pings the far host from an address, and expects every reply.
func (l *lab) pingFrom(source netip.Addr) {
	l.t.Helper()
	far := vpc.FarIPv4
	if source.Is6() {
		far = vpc.FarIPv6
	}
	result, err := l.inst.Ping(l.t.Context(), source, far, 5, 20*time.Millisecond)
	if err != nil {
		l.t.Fatal(err)
	}
	if result.Received != result.Sent {
		l.t.Errorf("ping from %s to %s: %s", source, far, result)
	}
}

// TestLabMainJob is the main job: a hotplugged ENI works, the API says so, changes
// follow, and a detach leaves nothing behind.
func TestLabMainJob(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		primary := l.inst.Primary()

		// B1, B3, A3, G1: the primary.
		got := l.configured("ens5")
		if !got.Primary || got.Metric != 512 || got.Table != state.Unknown || got.ENIID != primary.ID() {
			t.Errorf("the primary: %+v", got)
		}
		if rules := l.run("sh", "-c", "ip rule; ip -6 rule"); strings.Contains(rules, "lookup 10000") {
			t.Errorf("the primary has rules:\n%s", rules)
		}
		// What was written before the metadata answered was right: the link was
		// configured once.
		if log := l.networkdLog(); strings.Contains(log, "Reconfiguring") || strings.Contains(log, "lease lost") {
			t.Errorf("the primary was configured more than once:\n%s", log)
		}
		look := func() string {
			return l.run("sh", "-c", "{ ip -o addr show ens5; ip route show table all dev ens5; } | sed 's/valid_lft.*//; s/expires [0-9]*sec//'")
		}
		before := look()

		// C1: attach.
		monitor := l.monitor("ens5")
		eni := l.hotplug(hotplugSpec())
		got = l.configured(eni.ID())
		if got.Metric != 513 || got.Table != 10001 || got.Priority != 10001 || got.DeviceIndex != 1 || got.Name != eni.Name() {
			t.Errorf("the new ENI: %+v", got)
		}
		l.checkKernel(eni)
		l.countDrops()
		// A3, B6, B2: by packets, from each address, out of its own ENI.
		for _, source := range slices.Concat(primary.IPv4(), primary.IPv6(), eni.IPv4(), eni.IPv6()) {
			l.pingFrom(source)
		}
		l.noDrops()

		l.checkAPI(suite, eni)

		// A2: the order of secondary addresses makes no difference.
		files, log := l.files(), l.networkdLog()
		if err := eni.PermuteIPv4(t.Context(), func(a, b netip.Addr) int { return b.Compare(a) }); err != nil {
			t.Fatal(err)
		}
		l.run("ec2netctl", "refresh", "--wait")
		if now := l.files(); now != files {
			t.Errorf("permuted addresses changed files:\n%s\nbefore:\n%s", now, files)
		}
		if now := l.networkdLog(); now != log {
			t.Errorf("permuted addresses made networkd do something:\n%s", strings.TrimPrefix(now, log))
		}

		// A1, H3: assign; Refresh returns when it is in the kernel. In the first seconds of an
		// attachment the daemon sees it by itself as soon (D11), so these have to be over: it has
		// just looked, and does so again in some seconds.
		l.until("the daemon looks at the ENI less often", func() (bool, error) {
			var looks []time.Time
			for _, r := range l.inst.Metadata().Requests() {
				if strings.HasSuffix(r.Key, eni.MAC().String()+"/local-ipv4s") {
					looks = append(looks, r.Time)
				}
			}
			n := len(looks)
			return n > 1 && looks[n-1].Sub(looks[n-2]) > 2*time.Second, nil
		})
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		var changes state.Changes
		l.json(&changes, "ec2netctl", "refresh", "--wait", "--json=short")
		if !slices.Contains(l.addresses(eni.Name()), added[0]) || !changes.Settled {
			t.Errorf("after Refresh the new address is not there: %v; %+v", l.addresses(eni.Name()), changes)
		}
		if len(changes.Interfaces) != 1 || !slices.Equal(changes.Interfaces[0].Added, []string{added[0].String()}) {
			t.Errorf("Refresh says that it changed %+v", changes)
		}
		l.pingFrom(added[0])
		// And without anyone's help, within a refresh period, both ways.
		l.put("/etc/ec2netd.conf.d/test.conf", "[Metadata]\nRefreshSec=3\n")
		l.run("systemctl", "reload", "ec2netd.service")
		more, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.until("an assigned address arrives by itself", func() (bool, error) {
			return slices.Contains(l.addresses(eni.Name()), more[0]), nil
		})
		if err := eni.UnassignIPv4(t.Context(), append(added, more...)...); err != nil {
			t.Fatal(err)
		}
		l.until("unassigned addresses go by themselves", func() (bool, error) {
			now := l.addresses(eni.Name())
			return !slices.Contains(now, added[0]) && !slices.Contains(now, more[0]) && slices.Equal(l.rules(10001), sources(eni)), nil
		})
		l.configured(eni.ID())
		l.checkKernel(eni)
		l.noDrops()

		// C2: detach.
		reloads := l.describe().Networkd.Reloads
		if err := eni.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.until("the files of the detached ENI are gone", func() (bool, error) {
			return !strings.Contains(l.files(), eni.Name()), nil
		})
		l.until("the rules of the detached ENI are gone", func() (bool, error) { return len(l.rules(10001)) == 0, nil })
		if left := l.run("ls", "/run/systemd/network"); strings.Contains(left, eni.Name()) {
			t.Errorf("left behind: %s", left)
		}
		if s := l.describe(); len(s.Interfaces) != 1 || s.State != state.Configured || s.Networkd.Reloads != reloads {
			t.Errorf("after the detach: %+v", s)
		}
		// C1, C2: none of that was an event for the primary.
		if events := monitor(); events != "" {
			t.Errorf("events on the primary:\n%s", events)
		}
		if now := look(); now != before {
			t.Errorf("the primary changed:\n%s\nbefore:\n%s", now, before)
		}

		// C3: attached again under another name.
		l.reattach(eni, "ens42")
		l.configured("ens42")
		l.checkKernel(eni)
		if now := l.files(); strings.Contains(now, "ens6") {
			t.Errorf("the old name has files:\n%s", now)
		}
		// I1: the journal finds an ENI by its ID.
		if out := l.run("journalctl", "--boot", "ENI="+eni.ID(), "--output=cat", "--no-pager"); !strings.Contains(out, "ENI configured") || !strings.Contains(out, "ENI detached") {
			t.Errorf("the journal says of the ENI:\n%s", out)
		}
		l.logOf("warning")
	})
}

// hotplug attaches ENIs one after the other, waits until each has its addresses, rules and routes,
// and takes all but the first away again. From the moment on that the metadata tells all of an ENI
// the daemon has 0.3 s (D11) to write the files. In one that the machine is busy in with something
// else it takes longer, so this is the limit of the best of them, and half a second more that of
// each, and of the best until all is in the kernel: that is the time of udevd and networkd too, for
// which there is a figure in the benchmarks (late).
func (l *lab) hotplug(spec vpc.ENISpec) *vpc.ENI {
	l.t.Helper()
	handle, err := l.inst.Netlink()
	if err != nil {
		l.t.Fatal(err)
	}
	defer handle.Close()
	const times, limit, machine = 3, 300 * time.Millisecond, 500 * time.Millisecond
	var enis []*vpc.ENI
	writing, applying := time.Hour, time.Hour
	for range times {
		requests := len(l.inst.Metadata().Requests())
		eni := l.attach(spec)
		enis = append(enis, eni)
		began := time.Now()
		p := plugging{lab: l, handle: handle, enis: []*vpc.ENI{eni}, every: time.Millisecond}
		p.applied()
		there := time.Now()
		told, ok := l.inst.Metadata().Complete(eni.MAC().String())
		if !ok {
			l.t.Fatalf("the metadata will never tell all of %s", eni.ID())
		}
		written := l.written(plan.NetworkDropIn(eni.Name()))
		since := func(at time.Time) time.Duration { return at.Sub(told).Round(time.Millisecond) }
		l.t.Logf("hotplug: all was told %v after the link, the last file was written %v after that, and all was in the kernel after %v",
			-since(began), since(written), since(there))
		if there.Before(told) || written.Sub(told) > limit+machine {
			l.t.Errorf("hotplug: written %v after the metadata told all, and in the kernel after %v", since(written), since(there))
		}
		writing, applying = min(writing, since(written)), min(applying, since(there))
		l.configured(eni.ID())
		// That others are looked at is not part of it.
		l.readOnce(eni, slices.DeleteFunc(l.inst.Metadata().Requests()[requests:], func(r imds.Request) bool {
			return slices.ContainsFunc(l.inst.ENIs(), func(other *vpc.ENI) bool {
				return other != eni && strings.Contains(r.Key, other.MAC().String())
			})
		}))
	}
	if writing > limit || applying > limit+machine {
		l.t.Errorf("hotplug: at best written %v after the metadata told all, and in the kernel after %v", writing, applying)
	}
	for i, eni := range enis[1:] {
		if err := eni.Delete(l.t.Context()); err != nil {
			l.t.Fatal(err)
		}
		l.gone(eni, times-i)
	}
	return enis[0]
}

// written is when a file was written.
func (l *lab) written(file string) time.Time {
	l.t.Helper()
	seconds, err := strconv.ParseFloat(l.run("find", file, "-printf", "%T@"), 64)
	if err != nil {
		l.t.Fatal(err)
	}
	return time.UnixMicro(int64(seconds * 1e6))
}

// readOnce checks what an attachment cost the metadata service: what never changes is read
// once, no key is asked for in vain but the ENI itself before it is listed, and there are few
// requests a second (D5, D8, D11).
func (l *lab) readOnce(eni *vpc.ENI, requests []imds.Request) {
	l.t.Helper()
	dir := "network/interfaces/macs/" + eni.MAC().String()
	count := imds.Count(requests)
	for _, key := range []string{"interface-id", "subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks"} {
		if n := count.ByKey[dir+"/"+key]; n != 1 {
			l.t.Errorf("%s was read %d times", key, n)
		}
	}
	for _, r := range requests {
		if r.Status != http.StatusOK && (r.Status != http.StatusNotFound || r.Key != dir) {
			l.t.Errorf("%s: %d", r.Key, r.Status)
		}
	}
	took := requests[len(requests)-1].Time.Sub(requests[0].Time)
	l.t.Logf("hotplug: %d metadata requests in %v: %v", count.Total, took.Round(time.Millisecond), count.ByKey)
	if most := 20 + 24*took.Seconds(); float64(count.Total) > most {
		l.t.Errorf("%d metadata requests in %v: %v", count.Total, took, count.ByKey)
	}
}

// checkKernel checks what the kernel has for a secondary ENI that is configured.
func (l *lab) checkKernel(eni *vpc.ENI) {
	l.t.Helper()
	table := tableOf(eni)
	metric := table - 10000 + 512
	// A1, A4: all addresses, single ones without a prefix route.
	prefixes, err := l.inst.Addrs(eni.Name())
	if err != nil {
		l.t.Fatal(err)
	}
	var global []netip.Addr
	for _, p := range prefixes {
		if p.Addr().IsLinkLocalUnicast() {
			continue
		}
		global = append(global, p.Addr())
		if p.IsSingleIP() == (p.Addr() == eni.IPv4()[0]) {
			l.t.Errorf("%s on %s", p, eni.Name())
		}
	}
	if want := slices.Concat(eni.IPv4(), eni.IPv6()); !slices.Equal(sorted(global), sorted(want)) {
		l.t.Errorf("%s has %v, want %v", eni.Name(), global, want)
	}
	// A3: the primary address is the first.
	if len(global) == 0 || global[0] != eni.IPv4()[0] {
		l.t.Errorf("the first address of %s is not %s: %v", eni.Name(), eni.IPv4()[0], global)
	}
	// B2: rules and table.
	if got := l.rules(table); !slices.Equal(got, sources(eni)) {
		l.t.Errorf("rules of table %d: %v, want %v", table, got, sources(eni))
	}
	for _, family := range []string{"-4", "-6"} {
		subnet := eni.Subnet().IPv4().String()
		if family == "-6" {
			if len(eni.IPv6()) == 0 {
				continue
			}
			subnet = eni.Subnet().IPv6().String()
		}
		own := l.routes(family, fmt.Sprint(table))
		has := func(dst string, gateway bool) bool {
			return slices.ContainsFunc(own, func(r route) bool { return r.Dst == dst && (r.Gateway != "") == gateway && r.Dev == eni.Name() })
		}
		if !has("default", true) || !has(subnet, false) {
			l.t.Errorf("table %d (%s) lacks a default route or one for %s: %+v", table, family, subnet, own)
		}
		// B1, B6: the primary's default route is better. That of the ENI in the main table
		// comes with a router advertisement, for IPv6.
		var best route
		found := false
		l.until("a default route of "+eni.Name()+" in the main table ("+family+"), and a better one of the primary", func() (bool, error) {
			best = route{}
			for _, r := range l.routes(family, "main") {
				if r.Dst == "default" {
					if best.Dst == "" || r.Metric < best.Metric {
						best = r
					}
					found = found || (r.Dev == eni.Name() && r.Metric == metric)
				}
			}
			return found && best.Dev == l.inst.Primary().Name() && slices.Contains(l.primaryMetrics(family), best.Metric), nil
		})
	}
	// G1: altnames, by which the link is found.
	number := fmt.Sprintf("device-number-%d", eni.DeviceIndex())
	if card := eni.NetworkCard(); card != nil {
		number += fmt.Sprintf(".%d", *card)
	}
	var links []struct {
		Ifname   string
		Altnames []string
	}
	l.json(&links, "ip", "-j", "link", "show", eni.ID())
	if len(links) != 1 || links[0].Ifname != eni.Name() || !slices.Contains(links[0].Altnames, number) {
		l.t.Errorf("altnames: %+v", links)
	}
	// G2: the policies of the .link file in force stay.
	if link := l.run("readlink", "/run/systemd/network/70-"+eni.Name()+".link"); link != "/usr/lib/systemd/network/99-default.link" {
		l.t.Errorf("the .link file leads to %s", link)
	}
}

// primaryMetrics are what the best default route of the primary in the main table may have for a
// metric.
func (l *lab) primaryMetrics(family string) []int {
	l.t.Helper()
	if family == "-4" {
		return []int{512}
	}
	if l.inst.Suite() == "bookworm" {
		// 252 has a static one with 512 and the advertised one with 511, which it drops with each
		// reload, until the next advertisement.
		return []int{511, 512}
	}
	// The advertised one has 512. With a restart of networkd come static ones that go before it, one
	// for each router that there was (E7).
	n, err := strconv.Atoi(l.run("sh", "-c", "grep -c '^Gateway=' /run/systemd/network/70-"+l.inst.Primary().Name()+".network.d/50-ec2netd.conf || true"))
	if err != nil {
		l.t.Fatal(err)
	}
	return []int{512 - n}
}

// checkAPI asks as an ordinary user with the tools of the suite (H1, H2).
func (l *lab) checkAPI(suite string, eni *vpc.ENI) {
	l.t.Helper()
	for _, argv := range [][]string{
		{"busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"},
		{"busctl", "tree", "org.ec2netd1"},
		{"ec2netctl", "status", "--no-pager"},
		{"ec2netctl", "list", "--no-pager"},
		{"ec2netctl", "status", "--json=short"},
	} {
		if out := l.user(argv...); !strings.Contains(strings.ReplaceAll(out, "_2d", "-"), eni.ID()) {
			l.t.Errorf("%q does not name %s:\n%s", argv, eni.ID(), out)
		}
	}
	if out := l.user("busctl", "introspect", "org.ec2netd1", "/org/ec2netd1"); !strings.Contains(out, "Describe") || !strings.Contains(out, "org.freedesktop.DBus.ObjectManager") {
		l.t.Errorf("introspection:\n%s", out)
	}
	for _, id := range []string{eni.ID(), eni.MAC().String(), eni.Name(), "device-number-1", fmt.Sprint(l.configured(eni.ID()).Ifindex)} {
		path := strings.Trim(strings.TrimPrefix(l.user("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "GetInterface", "s", id), "o "), `"`)
		out := l.user("busctl", "get-property", "org.ec2netd1", path, "org.ec2netd1.Interface", "State")
		if out != `s "configured"` {
			l.t.Errorf("State of %s at %s: %s", id, path, out)
		}
	}
	// Bad arguments get typed errors.
	if out := l.fails("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "GetInterface", "s", "eni-none"); !strings.Contains(out, "eni-none") {
		l.t.Errorf("GetInterface of an unknown interface: %s", out)
	}
	if out := l.fails("ec2netctl", "status", "eni-none"); !strings.Contains(out, "eni-none") {
		l.t.Errorf("status of an unknown interface: %s", out)
	}
	// Changing is for root.
	for _, argv := range [][]string{
		{"busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", "false"},
		{"ec2netctl", "refresh"},
	} {
		if out, err := l.inst.Run(l.t.Context(), vpc.Command{Argv: argv, User: vpc.OrdinaryUser}); err == nil {
			l.t.Errorf("%q as an ordinary user: %s", argv, out)
		}
	}
	if suite == "bookworm" {
		return // 252 has no varlinkctl
	}
	const socket = "/run/ec2netd/org.ec2netd.Network"
	if out := l.user("varlinkctl", "call", socket, "org.ec2netd.Network.Describe", "{}"); !strings.Contains(out, eni.ID()) {
		l.t.Errorf("varlinkctl Describe:\n%s", out)
	}
	if out := l.user("varlinkctl", "call", "--more", socket, "org.ec2netd.Network.ListInterfaces", "{}"); !strings.Contains(out, eni.ID()) {
		l.t.Errorf("varlinkctl ListInterfaces:\n%s", out)
	}
	if out := l.user("varlinkctl", "info", socket); !strings.Contains(out, "ec2netd") || !strings.Contains(out, "org.ec2netd.Network") {
		l.t.Errorf("varlinkctl info:\n%s", out)
	}
	if out := l.user("varlinkctl", "call", socket, "org.ec2netd.Network.ListInterfaces", `{"id":"device-number-1"}`); !strings.Contains(out, eni.ID()) {
		l.t.Errorf("varlinkctl ListInterfaces of one: %s", out)
	}
	if out, err := l.inst.Run(l.t.Context(), vpc.Command{Argv: []string{"varlinkctl", "call", socket, "org.ec2netd.Network.Refresh", "{}"}, User: vpc.OrdinaryUser}); err == nil {
		l.t.Errorf("varlinkctl Refresh as an ordinary user: %s", out)
	}
	if out := l.user("varlinkctl", "introspect", socket, "org.ec2netd.Network"); !strings.Contains(out, "method Refresh") {
		l.t.Errorf("varlinkctl introspect:\n%s", out)
	}
	if out := l.fails("varlinkctl", "call", "--more", socket, "org.ec2netd.Network.ListInterfaces", `{"id":"eni-none"}`); !strings.Contains(out, "NoSuchInterface") {
		l.t.Errorf("varlinkctl ListInterfaces of an unknown interface: %s", out)
	}
}

// monitor watches the addresses, routes and rules of the kernel; the returned
// function says what happened that has to do with a link.
func (l *lab) monitor(name string) func() string {
	l.t.Helper()
	const log = "/run/monitor.log"
	l.run("systemd-run", "--quiet", "--unit=monitor", "--property=StandardOutput=file:"+log, "ip", "-oneline", "monitor", "address", "route", "rule")
	// It is watching once it sees an event of ours.
	l.until("ip monitor watches", func() (bool, error) {
		l.run("sh", "-c", "ip rule add from 192.0.2.1 priority 31999 table 31999; ip rule del from 192.0.2.1 priority 31999")
		return l.run("sh", "-c", "grep -c 31999 "+log+" || true") != "0", nil
	})
	return func() string {
		out := l.run("sh", "-c", "cat "+log)
		l.run("systemctl", "stop", "monitor")
		var events []string
		for line := range strings.Lines(out) {
			// A router advertises itself when it likes.
			advertised := strings.Contains(line, "proto ra") && !strings.HasPrefix(line, "Deleted")
			if strings.Contains(line, name) && !advertised {
				events = append(events, line)
			}
		}
		return strings.Join(events, "")
	}
}

// logOf checks that the daemon logged nothing of a priority or a worse one.
func (l *lab) logOf(priority string) {
	l.t.Helper()
	said := func(priority string) string {
		return l.run("journalctl", "--boot", "--identifier=ec2netd", "--priority="+priority, "--output=cat", "--no-pager", "--quiet")
	}
	if out := said(priority); out != "" {
		l.t.Errorf("the daemon logged:\n%s", out)
	}
	if said("info") == "" {
		l.t.Error("no line of the daemon is found in the journal")
	}
}

// TestLabLeavesNothing: what the daemon does at run time is below /run and in its
// own state directory, and enables nothing (C9).
func TestLabLeavesNothing(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, nil)
		l.configured("ens5")
		find := func() string {
			return l.run("sh", "-c", "find /etc /usr /var /opt -xdev -newer /etc/machine-id ! -type d "+
				"! -path '/var/log/*' ! -path '/var/lib/systemd/*' ! -path '/var/tmp/*' ! -path '/var/lib/private/*' ! -path '/var/lib/ec2netd/boot.json' | sort")
		}
		units := func() string {
			return l.run("systemctl", "list-unit-files", "--no-pager", "--no-legend", "--state=enabled")
		}
		files, enabled := find(), units()
		eni := l.attach(hotplugSpec())
		l.configured(eni.ID())
		if err := eni.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.until("the ENI is gone", func() (bool, error) { return len(l.describe().Interfaces) == 1, nil })
		if now := find(); now != files {
			t.Errorf("files outside /run:\n%s\nbefore:\n%s", now, files)
		}
		if now := units(); now != enabled {
			t.Errorf("units enabled:\n%s\nbefore:\n%s", now, enabled)
		}
	})
}
