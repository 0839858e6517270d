package golden

import (
	"cmp"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// unitDirs are the directories of networkd, the first wins (systemd.network(5)).
var unitDirs = []string{"etc/systemd/network", "run/systemd/network", "usr/local/lib/systemd/network", "usr/lib/systemd/network"}

// The VPC.
var (
	gateway     = netip.MustParseAddr("10.0.0.1")
	router      = netip.MustParseAddr("fe80::1")
	everywhere4 = netip.MustParsePrefix("0.0.0.0/0")
	everywhere6 = netip.MustParsePrefix("::/0")
)

// section is a section of a unit file with its drop-ins.
type section struct {
	name   string
	values map[string][]string
}

// last is the value of a key, the last one where there are several.
func (s section) last(key string) string {
	if v := s.values[key]; len(v) > 0 {
		return v[len(v)-1]
	}
	return ""
}

func (s section) number(key string) int {
	n, _ := strconv.Atoi(s.last(key))
	return n
}

// unit is a .network file with its drop-ins.
type unit struct {
	path string
	// stamp changes when one of the files does, in what networkd compares.
	stamp    string
	sections []section
}

// one is a section that stands for one thing, however often it is there.
func (u *unit) one(name string) section {
	for _, s := range u.sections {
		if s.name == name {
			return s
		}
	}
	return section{}
}

// read adds a file.
func (in *instance) readUnit(u *unit, p string) {
	info, err := os.Stat(in.resolve(p))
	if err != nil {
		return
	}
	content, err := os.ReadFile(in.resolve(p))
	if err != nil {
		return
	}
	u.stamp += fmt.Sprintf("%s %d %s\n", p, info.ModTime().UnixNano(), content)
	var s *section
	for line := range strings.Lines(string(content)) {
		line = strings.TrimSpace(line)
		switch {
		case strings.HasPrefix(line, "#"), strings.HasPrefix(line, ";"):
		case strings.HasPrefix(line, "["):
			name := strings.Trim(line, "[]")
			i := slices.IndexFunc(u.sections, func(s section) bool { return s.name == name })
			switch name {
			case "Address", "Route", "RoutingPolicyRule":
				i = -1
			}
			if i < 0 {
				u.sections = append(u.sections, section{name, map[string][]string{}})
				i = len(u.sections) - 1
			}
			s = &u.sections[i]
		default:
			key, value, ok := strings.Cut(line, "=")
			if !ok || s == nil {
				continue
			}
			if value == "" {
				delete(s.values, key)
			} else {
				s.values[key] = append(s.values[key], value)
			}
		}
	}
}

// resolve follows a symbolic link within the root.
func (in *instance) resolve(p string) string {
	for range 4 {
		target, err := os.Readlink(in.at(p))
		switch {
		case err != nil:
			return in.at(p)
		case target == os.DevNull:
			return target
		case path.IsAbs(target):
			p = target
		default:
			p = path.Join(path.Dir(p), target)
		}
	}
	return in.at(p)
}

// unitOf is the .network file that networkd takes for a link, nil if there is none.
func (in *instance) unitOf(l *link) *unit {
	byName := make(map[string]string)
	for _, dir := range slices.Backward(unitDirs) {
		found, _ := filepath.Glob(in.at(dir) + "/*.network")
		for _, p := range found {
			byName[path.Base(p)] = path.Join(dir, path.Base(p))
		}
	}
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if info, err := os.Stat(in.resolve(byName[name])); err != nil || info.Size() == 0 {
			continue // masked
		}
		u := &unit{path: "/" + byName[name]}
		in.readUnit(u, byName[name])
		dropIns := make(map[string]string)
		for _, dir := range slices.Backward(unitDirs) {
			found, _ := filepath.Glob(in.at(dir) + "/" + name + ".d/*.conf")
			for _, p := range found {
				dropIns[path.Base(p)] = path.Join(dir, name+".d", path.Base(p))
			}
		}
		order := make([]string, 0, len(dropIns))
		for name := range dropIns {
			order = append(order, name)
		}
		slices.Sort(order)
		for _, name := range order {
			in.readUnit(u, dropIns[name])
		}
		if l.matches(u.one("Match")) {
			return u
		}
	}
	return nil
}

// matches is what [Match] means for a link.
func (l *link) matches(m section) bool {
	for key, values := range m.values {
		matched, negated := false, false
		for _, word := range strings.Fields(strings.Join(values, " ")) {
			pattern, not := strings.CutPrefix(word, "!")
			negated = negated || not
			switch key {
			case "Name":
				ok, _ := path.Match(pattern, l.Name)
				matched = matched || ok
			case "MACAddress":
				matched = matched || strings.EqualFold(pattern, l.MAC)
			case "Driver":
				ok, _ := path.Match(pattern, l.Driver)
				matched = matched || ok
			case "Property":
				matched = matched || pattern == "EC2NETD_RUNS=1" && l.plugged
			}
		}
		if matched == negated {
			return false
		}
	}
	return true
}

// startNetworkd has networkd start, and configure all links.
func (in *instance) startNetworkd() {
	in.set(func() {
		in.up = true
		in.starts++
		// Once there, they stay.
		in.write("run/systemd/netif/state", "")
		if in.systemd >= 256 {
			in.write("run/systemd/netif/io.systemd.Network", "")
		}
		in.apply(true)
	})
}

// stopNetworkd has networkd stop. What it configured stays.
func (in *instance) stopNetworkd() {
	in.set(func() {
		in.up = false
		os.Remove(in.at("run/systemd/netif/io.systemd.Network"))
	})
}

// reload is networkd's, and reconfigure too, for the link with an index.
func (in *instance) reload() error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.reloads++
	if in.refuses != nil {
		return in.refuses
	}
	in.apply(false)
	in.ring()
	return nil
}

func (in *instance) reconfigure(index int) error {
	in.mu.Lock()
	defer in.mu.Unlock()
	in.anew++
	if in.refuses != nil {
		return in.refuses
	}
	for _, l := range in.links {
		if l.index == index {
			in.configure(l)
		}
	}
	in.ring()
	return nil
}

// apply has networkd configure the links whose files have changed, or all. in.mu is held.
func (in *instance) apply(all bool) {
	if !in.up {
		return
	}
	for _, l := range in.links {
		if u := in.unitOf(l); all || u == nil || u.stamp != l.stamp {
			in.configure(l)
		}
	}
	in.loose = slices.DeleteFunc(in.loose, func(r rule) bool {
		return slices.ContainsFunc(in.links, func(l *link) bool { return slices.Contains(l.rules, r) })
	})
}

// configure is what networkd makes of a link.
func (in *instance) configure(l *link) {
	u := in.unitOf(l)
	l.routes, l.rules = nil, nil
	if u == nil || u.one("Link").last("Unmanaged") == "yes" {
		l.setup, l.file, l.stamp = "unmanaged", "", ""
		if u != nil {
			l.file, l.stamp = u.path, u.stamp
		}
		l.addresses = slices.DeleteFunc(l.addresses, func(a address) bool { return !a.foreign })
		in.tellOf(l)
		return
	}
	l.setup, l.file, l.stamp = "configured", u.path, u.stamp
	if group := u.one("Link").number("Group"); group != 0 {
		l.group = group
	}
	if l.down || l.noCarrier {
		l.setup = "configuring"
		in.tellOf(l)
		return
	}
	wanted := in.dynamic(l, u)
	for _, s := range u.sections {
		switch s.name {
		case "Network":
			for _, value := range s.values["Address"] {
				wanted = append(wanted, address{prefix: netip.MustParsePrefix(value)})
			}
		case "Address":
			prefix := netip.MustParsePrefix(s.last("Address"))
			if i := slices.IndexFunc(wanted, func(a address) bool { return a.prefix.Addr() == prefix.Addr() }); i >= 0 {
				wanted[i].dynamic = false
			} else {
				wanted = append(wanted, address{prefix: prefix})
			}
		case "Route":
			l.routes = append(l.routes, routeOf(s))
		case "RoutingPolicyRule":
			l.rules = append(l.rules, rulesOf(s)...)
		}
	}
	l.mtu = cmp.Or(u.one("Link").number("MTUBytes"), l.mtu)
	if l.traits.IPv6 != "" {
		wanted = slices.DeleteFunc(wanted, func(a address) bool { return a.prefix.Addr().Is6() })
		l.routes = slices.DeleteFunc(l.routes, func(r route) bool { return r.destination.Addr().Is6() })
	}
	// The kernel has addresses in the order in which they came.
	var now []address
	for _, a := range l.addresses {
		if a.foreign || slices.ContainsFunc(wanted, func(w address) bool { return w.prefix == a.prefix }) {
			now = append(now, a)
		}
	}
	for _, a := range wanted {
		if i := slices.IndexFunc(now, func(n address) bool { return n.prefix == a.prefix }); i >= 0 {
			now[i].dynamic = a.dynamic && !now[i].foreign
		} else {
			now = append(now, a)
		}
	}
	l.addresses = now
	in.tellOf(l)
}

// dynamic has DHCP and router advertisements give a link what they have for it.
func (in *instance) dynamic(l *link, u *unit) (leased []address) {
	dhcp := u.one("Network").last("DHCP")
	v4, ra, v6 := u.one("DHCPv4"), u.one("IPv6AcceptRA"), u.one("DHCPv6")
	if lease, ok := in.lease(l); ok && (dhcp == "yes" || dhcp == "ipv4") {
		leased = append(leased, address{prefix: lease, dynamic: true})
		if v4.last("UseGateway") != "no" {
			l.routes = append(l.routes, route{table: mainTable, metric: v4.number("RouteMetric"), destination: everywhere4, gateway: gateway, protocol: protocolDHCP})
		}
		if v4.last("UseMTU") == "yes" {
			l.mtu = l.leaseMTU()
		}
	} else if dhcp == "yes" || dhcp == "ipv4" {
		if in.truth[in.key(l, "local-ipv4s")] != "" {
			l.setup = "configuring"
		}
	}
	addresses := strings.Fields(in.truth[in.key(l, "ipv6s")])
	if len(addresses) == 0 && in.truth[in.key(l, "subnet-ipv6-cidr-blocks")] == "" {
		return leased
	}
	if ra.last("UseGateway") != "no" {
		l.routes = append(l.routes, route{table: mainTable, metric: ra.number("RouteMetric"), destination: everywhere6, gateway: router, protocol: protocolRA})
	}
	if dhcp == "ipv4" || dhcp == "no" || ra.last("DHCPv6Client") == "no" || v6.last("UseAddress") == "no" {
		return leased
	}
	for _, text := range addresses {
		if a, err := netip.ParseAddr(text); err == nil && a.Is6() {
			leased = append(leased, address{prefix: netip.PrefixFrom(a, 128), dynamic: true})
		}
	}
	return leased
}

// lease is what DHCP hands out to a link.
func (in *instance) lease(l *link) (netip.Prefix, bool) {
	if l.traits.Lease != "" {
		p, err := netip.ParsePrefix(l.traits.Lease)
		return p, err == nil
	}
	first, _, _ := strings.Cut(in.truth[in.key(l, "local-ipv4s")], "\n")
	a, err := netip.ParseAddr(first)
	subnet, subnetErr := netip.ParsePrefix(in.truth[in.key(l, "subnet-ipv4-cidr-block")])
	if err != nil || subnetErr != nil || !a.Is4() {
		return netip.Prefix{}, false
	}
	return netip.PrefixFrom(a, subnet.Bits()), true
}

// routeOf is what networkd makes of a section [Route].
func routeOf(s section) route {
	r := route{
		table: cmp.Or(s.number("Table"), mainTable), metric: s.number("Metric"), protocol: protocolStatic, local: s.last("Type") == "local",
	}
	r.destination, _ = netip.ParsePrefix(s.last("Destination"))
	switch via := s.last("Gateway"); via {
	case "":
	case "_dhcp4":
		r.gateway = gateway
	case "_ipv6ra":
		r.gateway = router
	default:
		r.gateway = netip.MustParseAddr(via)
	}
	if !r.destination.IsValid() {
		if r.destination = everywhere4; r.gateway.Is6() {
			r.destination = everywhere6
		}
	}
	if r.metric == 0 && r.destination.Addr().Is6() {
		r.metric = 1024 // the kernel's
	}
	return r
}

// rulesOf is what networkd makes of a section [RoutingPolicyRule].
func rulesOf(s section) []rule {
	r := rule{priority: s.number("Priority"), table: s.number("Table"), suppress: -1, group: s.number("SuppressInterfaceGroup")}
	if v := s.last("SuppressPrefixLength"); v != "" {
		r.suppress = s.number("SuppressPrefixLength")
	}
	if value, mask, ok := strings.Cut(s.last("FirewallMark"), "/"); value != "" {
		mark, _ := strconv.ParseUint(value, 0, 32)
		bits := uint64(0xffffffff)
		if ok {
			bits, _ = strconv.ParseUint(mask, 0, 32)
		}
		r.mark, r.mask = uint32(mark), uint32(bits)
	}
	if from, err := netip.ParsePrefix(s.last("From")); err == nil {
		r.from, r.ipv4 = from, from.Addr().Is4()
		return []rule{r}
	}
	r4, r6 := r, r
	r4.ipv4 = true
	switch s.last("Family") {
	case "ipv4":
		return []rule{r4}
	case "ipv6":
		return []rule{r6}
	}
	return []rule{r4, r6}
}

// tellOf writes what networkd tells of a link: its state file and, up to 257, that of its lease.
func (in *instance) tellOf(l *link) {
	index := strconv.Itoa(l.index)
	state := "ADMIN_STATE=" + l.setup + "\n"
	if l.file != "" {
		state += "NETWORK_FILE=" + l.file + "\n"
	}
	domains := strings.ReplaceAll(l.leaseDomains(), " ", `\032`)
	state += "DOMAINS=" + domains + "\n"
	_, leased := in.lease(l)
	if leased = leased && l.setup == "configured"; leased && in.systemd < 258 {
		state += "DHCP_LEASE=/run/systemd/netif/leases/" + index + "\n"
		in.write("run/systemd/netif/leases/"+index, fmt.Sprintf("MTU=%d\nDOMAINNAME=%s\n", l.leaseMTU(), domains))
	}
	in.write("run/systemd/netif/links/"+index, state)
}

// leaseMTU and leaseDomains are options of the lease.
func (l *link) leaseMTU() int { return cmp.Or(l.traits.LeaseMTU, 9001) }

func (l *link) leaseDomains() string { return cmp.Or(l.traits.Domains, "ec2.internal") }
