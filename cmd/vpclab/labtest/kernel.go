package labtest

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ec2netd/cmd/vpclab/vpc"
)

// Addresses returns the global addresses of a link, in the order of the kernel.
func (l *Kernel) Addresses(name string) []netip.Addr {
	l.T.Helper()
	prefixes, err := l.Inst.Addrs(name)
	if err != nil {
		l.T.Fatal(err)
	}
	var out []netip.Addr
	for _, p := range prefixes {
		if !p.Addr().IsLinkLocalUnicast() {
			out = append(out, p.Addr())
		}
	}
	return out
}

// HasAddress reports whether a link has an address.
func (l *Kernel) HasAddress(name string, address netip.Addr) bool {
	l.T.Helper()
	return slices.Contains(l.Addresses(name), address)
}

// AwaitAddress waits until a link has an address.
func (l *Kernel) AwaitAddress(name string, address netip.Addr) {
	l.T.Helper()
	l.Until(name+" has "+address.String(), func() (bool, error) { return l.HasAddress(name, address), nil })
}

// AwaitNoAddress waits until a link does not have an address.
func (l *Kernel) AwaitNoAddress(name string, address netip.Addr) {
	l.T.Helper()
	l.Until(name+" does not have "+address.String(), func() (bool, error) { return !l.HasAddress(name, address), nil })
}

// Rules returns the sources that a table is looked up for, with priority and table of
// the same number.
func (l *Kernel) Rules(table int) []string {
	l.T.Helper()
	var out []string
	for _, family := range []string{"-4", "-6"} {
		var rules []struct {
			Priority int
			Src      string
			SrcLen   int
			Table    string
		}
		l.JSON(&rules, "ip", "-j", family, "rule", "show")
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

// Route is a route as ip(8) prints it.
type Route struct {
	Dst      string
	Gateway  string
	Dev      string
	Protocol string
	Metric   int
	Scope    string
	PrefSrc  string
}

// Routes returns the routes of a table, for family -4 or -6; of one that is not there none.
func (l *Kernel) Routes(family, table string) []Route {
	l.T.Helper()
	var out []Route
	l.JSON(&out, "sh", "-c", "ip -j "+family+" route show table "+table+" 2>/dev/null || true")
	return out
}

// IsDefault reports whether a route is a default route.
func IsDefault(r Route) bool { return r.Dst == "default" }

// CheckOwn checks that the kernel has all addresses of an ENI and, of a secondary one, all rules, and
// no others.
func (l *Kernel) CheckOwn(eni *vpc.ENI) {
	l.T.Helper()
	if got, want := Sorted(l.Addresses(eni.Name())), Sorted(slices.Concat(eni.IPv4(), eni.IPv6())); !slices.Equal(got, want) {
		l.T.Errorf("%s has %v, want %v", eni.Name(), got, want)
	}
	if eni == l.Inst.Primary() {
		return
	}
	if got := l.Rules(TableOf(eni)); !slices.Equal(got, Sources(eni)) {
		l.T.Errorf("%s has rules %v, want %v", eni.Name(), got, Sources(eni))
	}
}

// CheckKernel checks what the kernel has for a secondary ENI that is configured.
func (l *Kernel) CheckKernel(eni *vpc.ENI) {
	l.T.Helper()
	l.checkAddresses(eni)
	// B2: rules and table.
	if got := l.Rules(TableOf(eni)); !slices.Equal(got, Sources(eni)) {
		l.T.Errorf("rules of table %d: %v, want %v", TableOf(eni), got, Sources(eni))
	}
	for _, family := range []string{"-4", "-6"} {
		if family == "-4" || len(eni.IPv6()) > 0 {
			l.checkRoutes(eni, family)
		}
	}
	l.checkNames(eni)
}

// checkAddresses checks the addresses of an ENI.
func (l *Kernel) checkAddresses(eni *vpc.ENI) {
	l.T.Helper()
	// A1, A4: all addresses, single ones without a prefix route.
	prefixes, err := l.Inst.Addrs(eni.Name())
	if err != nil {
		l.T.Fatal(err)
	}
	var global []netip.Addr
	for _, p := range prefixes {
		if p.Addr().IsLinkLocalUnicast() {
			continue
		}
		global = append(global, p.Addr())
		if p.IsSingleIP() == (p.Addr() == eni.IPv4()[0]) {
			l.T.Errorf("%s on %s", p, eni.Name())
		}
	}
	if want := slices.Concat(eni.IPv4(), eni.IPv6()); !slices.Equal(Sorted(global), Sorted(want)) {
		l.T.Errorf("%s has %v, want %v", eni.Name(), global, want)
	}
	// A3: the primary address is the first.
	if len(global) == 0 || global[0] != eni.IPv4()[0] {
		l.T.Errorf("the first address of %s is not %s: %v", eni.Name(), eni.IPv4()[0], global)
	}
}

// checkRoutes checks the routes of an ENI, of one family.
func (l *Kernel) checkRoutes(eni *vpc.ENI, family string) {
	l.T.Helper()
	table := TableOf(eni)
	metric := table - 10000 + 512
	subnet := eni.Subnet().IPv4().String()
	if family == "-6" {
		subnet = eni.Subnet().IPv6().String()
	}
	own := l.Routes(family, fmt.Sprint(table))
	has := func(dst string, gateway bool) bool {
		return slices.ContainsFunc(own, func(r Route) bool { return r.Dst == dst && (r.Gateway != "") == gateway && r.Dev == eni.Name() })
	}
	if !has("default", true) || !has(subnet, false) {
		l.T.Errorf("table %d (%s) lacks a default route or one for %s: %+v", table, family, subnet, own)
	}
	// B1, B6: the primary's default route is better. That of the ENI in the main table
	// comes with a router advertisement, for IPv6.
	var best Route
	found := false
	l.Until("a default route of "+eni.Name()+" in the main table ("+family+"), and a better one of the primary", func() (bool, error) {
		best = Route{}
		for _, r := range l.Routes(family, "main") {
			if r.Dst == "default" {
				if best.Dst == "" || r.Metric < best.Metric {
					best = r
				}
				found = found || (r.Dev == eni.Name() && r.Metric == metric)
			}
		}
		return found && best.Dev == l.Inst.Primary().Name() && slices.Contains(l.primaryMetrics(family), best.Metric), nil
	})
}

// checkNames checks the alternative names of an ENI, by which its link is found, and its .link file.
func (l *Kernel) checkNames(eni *vpc.ENI) {
	l.T.Helper()
	// G1: altnames.
	number := fmt.Sprintf("device-number-%d", eni.DeviceIndex())
	if card := eni.NetworkCard(); card != nil {
		number += fmt.Sprintf(".%d", *card)
	}
	var links []struct {
		Ifname   string
		Altnames []string
	}
	l.JSON(&links, "ip", "-j", "link", "show", eni.ID())
	if len(links) != 1 || links[0].Ifname != eni.Name() || !slices.Contains(links[0].Altnames, number) {
		l.T.Errorf("altnames: %+v", links)
	}
	// G2: the policies of the .link file in force stay.
	if link := l.Run("readlink", "/run/systemd/network/70-"+eni.Name()+".link"); link != "/usr/lib/systemd/network/99-default.link" {
		l.T.Errorf("the .link file leads to %s", link)
	}
}

// primaryMetrics returns what the best default route of the primary in the main table may have for a
// metric.
func (l *Kernel) primaryMetrics(family string) []int {
	l.T.Helper()
	if family == "-4" {
		return []int{512}
	}
	if l.Inst.Suite() == "bookworm" {
		// 252 has a static one with 512 and the advertised one with 511, which it drops with each
		// reload, until the next advertisement.
		return []int{511, 512}
	}
	// The advertised one has 512. With a restart of networkd come static ones that go before it, one
	// for each router that there was (E7).
	n, err := strconv.Atoi(l.Run("sh", "-c", "grep -c '^Gateway=' /run/systemd/network/70-"+l.Inst.Primary().Name()+".network.d/50-ec2netd.conf || true"))
	if err != nil {
		l.T.Fatal(err)
	}
	return []int{512 - n}
}

// Monitor watches the addresses, routes and rules of the kernel; the returned
// function says what happened that has to do with a link.
func (l *Kernel) Monitor(name string) func() string {
	l.T.Helper()
	const log = "/run/monitor.log"
	l.Run("systemd-run", "--quiet", "--unit=monitor", "--property=StandardOutput=file:"+log, "ip", "-oneline", "monitor", "address", "route", "rule")
	// It is watching once it sees an event of ours.
	l.Until("ip monitor watches", func() (bool, error) {
		l.Run("sh", "-c", "ip rule add from 192.0.2.1 priority 31999 table 31999; ip rule del from 192.0.2.1 priority 31999")
		return l.Run("sh", "-c", "grep -c 31999 "+log+" || true") != "0", nil
	})
	return func() string {
		out := l.Run("sh", "-c", "cat "+log)
		l.Run("systemctl", "stop", "monitor")
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

// WatchKernel notes what happens to routes and rules; the returned function gives the
// lines of ip monitor and ends it.
func (l *Kernel) WatchKernel() func() []string {
	l.T.Helper()
	const log, mark = "/run/watch.log", "192.0.2.10"
	l.Run("systemd-run", "--quiet", "--collect", "--unit=watch", "--property=StandardOutput=truncate:"+log, "ip", "monitor", "address", "route", "rule")
	marked := func(table string) {
		l.Until("ip monitor watches", func() (bool, error) {
			l.Run("sh", "-c", "ip rule add from "+mark+" priority 31998 table "+table+"; ip rule del from "+mark+" priority 31998 table "+table)
			return l.Run("sh", "-c", "grep -c 'lookup "+table+"' "+log+" || true") != "0", nil
		})
	}
	marked("31998")
	return func() []string {
		l.T.Helper()
		// Events come in their order: what was before this one is in the log.
		marked("31997")
		out := l.Run("cat", log)
		l.Run("systemctl", "stop", "watch")
		return slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return strings.Contains(line, mark) })
	}
}

// WatchDeletions watches what the kernel loses of addresses, routes and rules; the returned
// function gives the lines and ends it.
func (l *Kernel) WatchDeletions() func() []string {
	l.T.Helper()
	events := l.WatchKernel()
	return func() []string {
		l.T.Helper()
		return slices.DeleteFunc(events(), func(line string) bool {
			return !strings.HasPrefix(line, "Deleted") || strings.Contains(line, "proto kernel")
		})
	}
}
