package agent

import (
	"cmp"
	"context"
	"fmt"
	"log/slog"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/state"
	"ec2netd/service/store"
	"ec2netd/service/unitfile/disk"
)

// site is a world whose metadata service and client are the true ones, over a network
// in the process, and whose networkd does all that a generated unit asks for. It notes
// what networkd takes away.
type site struct {
	*world
	t      testing.TB
	server *imds.Server
	client *metadata.Client
	pipes  *imds.Pipes
	// dial stands between the client and the service; nil for nothing.
	dial func(ctx context.Context, network, address string) (net.Conn, error)
	// specs are the ENIs as EC2 has them now, by the name that the link has or will have.
	specs map[string]imds.Interface
	// have is what the kernel has, in words; taken is what networkd took away.
	have  map[string]bool
	taken []string
	// lingering: as on systemd 252, DHCP routes of an old metric stay until the link is
	// reconfigured. By the link's index: the metric now, and those that are left.
	lingering bool
	metric    map[int]int
	left      map[int][]int
	// reloaded is called after networkd has configured links, wrote after files were
	// written or removed; nil for nothing. s.mu is held in the first.
	reloaded func()
	wrote    func(store.Changes)
	// holding are the drivers of ENIs that networkd leaves alone when they come; nil for none.
	holding []string
}

// Addresses of the VPC.
var (
	gatewayIPv4 = netip.MustParseAddr("10.0.0.1")
	routerIPv6  = netip.MustParseAddr("fe80::1")
	subnetIPv4  = netip.MustParsePrefix("10.0.0.0/16")
	subnetIPv6  = netip.MustParsePrefix("2001:db8:0:1::/64")
	everywhere4 = netip.MustParsePrefix("0.0.0.0/0")
	everywhere6 = netip.MustParsePrefix("::/0")
)

func newSite(t *testing.T, options imds.Options) *site {
	t.Helper()
	s := &site{
		world: newWorld(t), t: t, server: imds.New(options), pipes: imds.NewPipes(), specs: map[string]imds.Interface{},
		have: map[string]bool{}, metric: map[int]int{}, left: map[int][]int{},
	}
	// Files are synchronised with the disk, which takes most of the time elsewhere.
	if dir, err := os.MkdirTemp("/dev/shm", "ec2netd-test"); err == nil {
		t.Cleanup(func() { os.RemoveAll(dir) })
		s.dir, s.store.Root = dir, dir
	}
	s.client = metadata.NewClient(metadata.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		s.mu.Lock()
		dial := s.dial
		s.mu.Unlock()
		if dial != nil {
			return dial(ctx, network, address)
		}
		return s.pipes.DialContext(ctx, network, address)
	}})
	s.server.SetInstance(imds.Instance{ID: s.instance.ID, MAC: s.instance.PrimaryMAC})
	return s
}

// specOf is an ENI with every key that the daemon reads.
func specOf(n, card, index int) imds.Interface {
	return imds.Interface{
		MAC: macOf(n), ID: fmt.Sprintf("eni-%017x", n), DeviceNumber: index, NetworkCard: &card,
		IPv4:         addrs("10.0.%d.10 10.0.%[1]d.11 10.0.%[1]d.12", n),
		IPv6:         addrs("2001:db8:0:1::%x:10 2001:db8:0:1::%[1]x:11", n),
		IPv4Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("10.0.%d.32/28", n))},
		IPv6Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:1:%x::/80", n+1))},
		SubnetID:     "subnet-0123456789abcdef0", SubnetIPv4: subnetIPv4, SubnetIPv6: []netip.Prefix{subnetIPv6},
	}
}

// changed is the ENI with one of each of its secondary things taken away and another
// one given.
func changed(spec imds.Interface) imds.Interface {
	spec.IPv4 = append(slices.Clone(spec.IPv4[:2]), spec.IPv4[2].Next())
	spec.IPv6 = append(slices.Clone(spec.IPv6[:1]), spec.IPv6[1].Next())
	next := func(p netip.Prefix, bit int) []netip.Prefix {
		bytes := p.Addr().AsSlice()
		bytes[bit/8] ^= 1 << (7 - bit%8)
		addr, _ := netip.AddrFromSlice(bytes)
		return []netip.Prefix{netip.PrefixFrom(addr, p.Bits())}
	}
	spec.IPv4Prefixes, spec.IPv6Prefixes = next(spec.IPv4Prefixes[0], 24), next(spec.IPv6Prefixes[0], 64)
	return spec
}

func addrs(format string, n int) []netip.Addr {
	var out []netip.Addr
	for _, text := range strings.Fields(fmt.Sprintf(format, n)) {
		out = append(out, netip.MustParseAddr(text))
	}
	return out
}

// publish tells the metadata of an ENI, and plug gives it a link that networkd brings
// up by the base unit.
func (s *site) publish(name string, spec imds.Interface, p imds.Propagation) {
	s.server.PutInterface(spec, p)
	s.set(func() { s.specs[name] = spec })
}

func (s *site) plug(name string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	index := 2
	for _, l := range s.links {
		index = max(index, l.Index+1)
	}
	s.links = append(s.links, kernel.Link{Index: index, Name: name, MAC: s.specs[name].MAC, Driver: "ena", Carrier: true})
	s.apply()
	s.ring()
}

func (s *site) attach(name string, spec imds.Interface) {
	s.publish(name, spec, imds.Propagation{})
	s.plug(name)
}

// networkUnit is what networkd reads in a generated unit.
type networkUnit struct {
	metric4, metric6 int
	dhcp6            bool
	addresses        []netip.Addr
	routes           []kernel.Route
	rules            []kernel.Rule
}

// bare tells whether a unit has nothing that is only known from an ENI's metadata.
func (u *networkUnit) bare() bool {
	return len(u.addresses)+len(u.routes)+len(u.rules) == 0
}

func parseUnit(t testing.TB, content string) networkUnit {
	u := networkUnit{metric4: plan.UnknownMetric, metric6: plan.UnknownMetric, dhcp6: true}
	section, values := "", map[string]string{}
	number := func(key string) int {
		if values[key] == "" {
			return 0
		}
		n, err := strconv.Atoi(values[key])
		if err != nil {
			t.Errorf("%s=%s: %v", key, values[key], err)
		}
		return n
	}
	prefix := func(key string) netip.Prefix {
		p, err := netip.ParsePrefix(values[key])
		if err != nil {
			t.Errorf("%s=%s: %v", key, values[key], err)
		}
		return p
	}
	end := func() {
		switch section {
		case "DHCPv4":
			u.metric4 = number("RouteMetric")
		case "IPv6AcceptRA":
			u.metric6 = number("RouteMetric")
			u.dhcp6 = values["DHCPv6Client"] != "no"
		case "DHCPv6":
			u.dhcp6 = u.dhcp6 && values["UseAddress"] != "no"
		case "Address":
			u.addresses = append(u.addresses, prefix("Address").Addr())
		case "Route":
			r := kernel.Route{Table: cmp.Or(number("Table"), kernel.MainTable), Metric: number("Metric"), Protocol: kernel.ProtocolStatic}
			switch gateway := values["Gateway"]; gateway {
			case "":
				r.Destination = prefix("Destination")
			case "_dhcp4":
				r.Destination, r.Gateway = everywhere4, gatewayIPv4
			case "_ipv6ra":
				r.Destination, r.Gateway = everywhere6, routerIPv6
			default:
				r.Destination, r.Gateway = everywhere6, netip.MustParseAddr(gateway)
			}
			u.routes = append(u.routes, r)
		}
	}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			end()
			section, values = strings.Trim(line, "[]"), map[string]string{}
		} else if key, value, ok := strings.Cut(line, "="); ok {
			values[key] = value
		}
	}
	end()
	for _, rule := range plan.RulesIn(content) {
		u.rules = append(u.rules, kernelRule(rule))
	}
	return u
}

// unitOf is what networkd has for a link: the base unit where there is no other.
func (s *site) unitOf(name string) networkUnit {
	if s.store.Target(plan.NetworkPath(name)) == "" {
		return parseUnit(s.t, "")
	}
	return parseUnit(s.t, s.store.Read(plan.NetworkDropIn(name)))
}

// apply is networkd, configuring all links by the files. s.mu is held.
func (s *site) apply() {
	s.routes, s.rules = nil, nil
	for i := range s.links {
		s.configure(&s.links[i])
	}
	now := make(map[string]bool)
	for _, l := range s.links {
		for _, a := range l.Addresses {
			now[l.Name+" address "+a.Prefix.Addr().String()] = true
		}
	}
	for _, r := range s.routes {
		if r.Table == kernel.MainTable && r.Protocol == kernel.ProtocolStatic && !r.IsDefault() {
			continue // to the subnet, beside the one that is advertised
		}
		// One of another metric in its place is as good.
		now[fmt.Sprintf("%s route %s table %d", s.nameOf(r.Link), r.Destination, r.Table)] = true
	}
	for _, r := range s.rules {
		now[fmt.Sprintf("rule from %s lookup %d", r.From, r.Table)] = true
	}
	for word := range s.have {
		if !now[word] {
			s.taken = append(s.taken, word)
		}
	}
	s.have = now
	if s.reloaded != nil {
		s.reloaded()
	}
}

func (s *site) nameOf(index int) string {
	for _, l := range s.links {
		if l.Index == index {
			return l.Name
		}
	}
	return ""
}

func (s *site) configure(l *kernel.Link) {
	u, spec := s.unitOf(l.Name), s.specs[l.Name]
	l.Group = plan.Group
	wanted := []kernel.Address{{Prefix: netip.PrefixFrom(spec.IPv4[0], subnetIPv4.Bits()), Global: true, Dynamic: true}}
	if u.dhcp6 && !slices.Contains(u.addresses, spec.IPv6[0]) {
		wanted = append(wanted, kernel.Address{Prefix: netip.PrefixFrom(spec.IPv6[0], 128), Global: true, Dynamic: true})
	}
	for _, a := range u.addresses {
		wanted = append(wanted, kernel.Address{Prefix: netip.PrefixFrom(a, a.BitLen()), Global: true})
	}
	// The kernel orders addresses by age.
	old := l.Addresses
	l.Addresses = nil
	for _, a := range old {
		if slices.Contains(wanted, a) {
			l.Addresses = append(l.Addresses, a)
		}
	}
	for _, a := range wanted {
		if !slices.Contains(l.Addresses, a) {
			l.Addresses = append(l.Addresses, a)
		}
	}
	if was, ok := s.metric[l.Index]; ok && was != u.metric4 && s.lingering {
		s.left[l.Index] = append(s.left[l.Index], was)
	}
	s.metric[l.Index] = u.metric4
	metrics := []int{u.metric4}
	for _, metric := range s.left[l.Index] {
		if !slices.Contains(metrics, metric) {
			metrics = append(metrics, metric)
		}
	}
	for _, metric := range metrics {
		s.routes = append(s.routes, kernel.Route{
			Link: l.Index, Table: kernel.MainTable, Metric: metric, Destination: everywhere4, Gateway: gatewayIPv4, Protocol: kernel.ProtocolDHCP,
		})
	}
	s.routes = append(s.routes, kernel.Route{
		Link: l.Index, Table: kernel.MainTable, Metric: u.metric6, Destination: everywhere6, Gateway: routerIPv6, Protocol: kernel.ProtocolRA,
	})
	for _, r := range u.routes {
		r.Link = l.Index
		s.routes = append(s.routes, r)
	}
	for _, rule := range u.rules {
		// One that several ENIs have is there once.
		if !slices.Contains(s.rules, rule) {
			s.rules = append(s.rules, rule)
		}
	}
}

// Reload and Reconfigure are networkd's.
func (s *site) Reload(context.Context) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reloads++
	s.apply()
	s.ring()
	return nil
}

func (s *site) Reconfigure(_ context.Context, index int) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.reconfigures++
	delete(s.left, index)
	s.apply()
	s.ring()
	return nil
}

// wanted is what the kernel shall have for an ENI, in the words of have.
func wanted(name string, spec imds.Interface, primary bool) map[string]bool {
	words := make(map[string]bool)
	for _, a := range slices.Concat(spec.IPv4, spec.IPv6) {
		words[name+" address "+a.String()] = true
	}
	tables := []int{kernel.MainTable}
	if !primary {
		table := tableOf(spec)
		tables = append(tables, table)
		for _, subnet := range append(slices.Clone(spec.SubnetIPv6), spec.SubnetIPv4) {
			words[fmt.Sprintf("%s route %s table %d", name, subnet, table)] = true
			words[fmt.Sprintf("rule from %s lookup %d", subnet, kernel.MainTable)] = true
		}
		for _, from := range sourcesOf(spec) {
			words[fmt.Sprintf("rule from %s lookup %d", from, table)] = true
		}
	}
	for _, table := range tables {
		words[fmt.Sprintf("%s route %s table %d", name, everywhere4, table)] = true
		words[fmt.Sprintf("%s route %s table %d", name, everywhere6, table)] = true
	}
	return words
}

// tableOf is the ENI's table (B1), and sourcesOf are the sources of its rules (B2).
func tableOf(spec imds.Interface) int { return 10000 + 100**spec.NetworkCard + spec.DeviceNumber }

func sourcesOf(spec imds.Interface) []netip.Prefix {
	sources := slices.Concat(spec.IPv4Prefixes, spec.IPv6Prefixes)
	for _, a := range slices.Concat(spec.IPv4, spec.IPv6) {
		sources = append(sources, netip.PrefixFrom(a, a.BitLen()))
	}
	return sources
}

// unsettled says what is not yet as EC2 has it, or is empty.
func (s *site) unsettled(a *Agent) string {
	s.mu.Lock()
	defer s.mu.Unlock()
	want := make(map[string]bool)
	for _, l := range s.links {
		name, spec := l.Name, s.specs[l.Name]
		maps.Copy(want, wanted(name, spec, spec.MAC == s.instance.PrimaryMAC))
		if i, ok := a.State().Find(name); !ok || i.State != state.ENIConfigured || i.Reason != "" {
			return fmt.Sprintf("%s is %+v", name, i)
		}
	}
	for word := range want {
		if !s.have[word] {
			return "no " + word
		}
	}
	for word := range s.have {
		if !want[word] {
			return "still " + word
		}
	}
	if len(s.left) > 0 {
		return fmt.Sprintf("routes of old metrics are left: %v", s.left)
	}
	return ""
}

// settled waits until all is as EC2 has it.
func (s *site) settled(a *Agent, limit time.Duration) {
	s.t.Helper()
	for began := time.Now(); ; settle(time.Second) {
		left := s.unsettled(a)
		if left == "" {
			return
		}
		if time.Since(began) > limit {
			s.t.Fatalf("after %v: %s\n%s", limit, left, strings.Join(s.log, ""))
		}
	}
}

// watchedStore tells when something was written.
type watchedStore struct {
	*store.Store
	wrote func(store.Changes)
}

func (w watchedStore) Apply(want store.Want) (store.Changes, error) {
	changes, err := w.Store.Apply(want)
	if changes.Any() && w.wrote != nil {
		w.wrote(changes)
	}
	return changes, err
}

// run starts the service and the daemon.
func (s *site) run() (*Agent, func()) {
	s.t.Helper()
	server := &http.Server{Handler: s.server}
	go server.Serve(s.pipes)
	log := slog.New(slog.NewTextHandler(logWriter{s.world}, nil))
	views := persist.Place{Path: filepath.Join(s.dir, "views.json")}
	a := New(Options{
		Version: "test", Kernel: s, Metadata: s.client, Poller: poller.New(poller.Options{Client: s.client, Log: log, RefreshEvery: time.Minute, Views: views}),
		Networkd: s, Manager: s, Udev: devices{s.world}, Store: watchedStore{s.store, s.wrote}, Files: &disk.Reader{Root: s.dir},
		Log: log, Events: []<-chan struct{}{s.poke}, RefreshEvery: time.Minute, Drivers: s.holding,
	})
	ctx, cancel := context.WithCancel(s.t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-a.Ready()
	return a, func() {
		cancel()
		if err := <-done; err != nil {
			s.t.Error(err)
		}
		server.Close()
		s.client.CloseIdle()
	}
}
