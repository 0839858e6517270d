package plan

import (
	"flag"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/coreos/go-systemd/v22/unit"
	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"

	"ec2netd/service/config"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
)

var update = flag.Bool("update", false, "write the golden files anew")

const (
	primaryMAC = "02:00:00:00:01:10"
	base       = "/usr/lib/systemd/network/80-ec2.network"
	defaultFor = "/usr/lib/systemd/network/99-default.link"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func view(index int, ipv4, ipv6 []netip.Addr) metadata.ENI {
	v := metadata.ENI{
		MAC: fmt.Sprintf("02:00:00:00:01:1%x", index), ID: fmt.Sprintf("eni-0123456789abcdef%x", index), DeviceIndex: index,
		IPv4: ipv4, IPv6: ipv6,
	}
	if len(ipv4) > 0 {
		v.IPv4Subnets = prefixes("10.0.1.0/24")
	}
	if len(ipv6) > 0 {
		v.IPv6Subnets = prefixes("2001:db8:1::/64")
	}
	return v
}

// leased is the link of a view after DHCP has done its part.
func leased(index int, v *metadata.ENI) Link {
	l := Link{LinkFile: defaultFor}
	l.Index, l.Name, l.MAC, l.Driver = index+2, fmt.Sprintf("ens%d", index+5), v.MAC, "ena"
	if len(v.IPv4) > 0 {
		l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.PrefixFrom(v.IPv4[0], 24), Global: true, Dynamic: true})
		n := Numbers{Index: v.DeviceIndex}
		if v.NetworkCard != nil {
			n.Card = *v.NetworkCard
		}
		l.DHCPMetrics = []int{n.Metric()}
	}
	return l
}

func input(links []Link, views ...metadata.ENI) Input {
	in := Input{PrimaryMAC: primaryMAC, Views: map[string]metadata.ENI{}, Links: links, Base: base}
	for _, v := range views {
		in.Views[v.MAC] = v
	}
	return in
}

func text(p Plan) string {
	var b strings.Builder
	for _, f := range p.Files {
		if f.Target != "" {
			fmt.Fprintf(&b, "==> %s -> %s\n\n", f.Path, f.Target)
			continue
		}
		fmt.Fprintf(&b, "==> %s\n%s\n", f.Path, f.Content)
	}
	for _, e := range p.ENIs {
		fmt.Fprintf(&b, "--> %s known=%v keep=%v held=%v %s\n", e.Link.Name, e.Known, e.Keep, e.Held, e.Reason.Words())
	}
	return b.String()
}

func golden(t *testing.T, p Plan) {
	t.Helper()
	path := filepath.Join("testdata", strings.ReplaceAll(t.Name(), "/", "_")+".golden")
	got := text(p)
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("%s (make it anew with -update):\n%s", path, diff)
	}
}

func TestMake(t *testing.T) {
	plain := view(0, addrs("10.0.1.10"), nil)
	second := view(1, addrs("10.0.1.20", "10.0.1.9", "10.0.1.22"), addrs("2001:db8:1::20"))
	second.IPv4Prefixes, second.IPv6Prefixes = prefixes("10.0.1.240/28"), prefixes("2001:db8:1:0:1::/80")
	t.Run("before the metadata", func(t *testing.T) {
		in := input([]Link{leased(0, &plain)})
		in.PrimaryMAC = ""
		golden(t, Make(in))
	})
	t.Run("primary alone", func(t *testing.T) {
		golden(t, Make(input([]Link{leased(0, &plain)}, plain)))
	})
	t.Run("primary with secondary addresses", func(t *testing.T) {
		many := view(0, addrs("10.0.1.10", "10.0.1.11"), addrs("2001:db8:1::10", "2001:db8:1::11"))
		golden(t, Make(input([]Link{leased(0, &many)}, many)))
	})
	t.Run("secondary", func(t *testing.T) {
		golden(t, Make(input([]Link{leased(0, &plain), leased(1, &second)}, plain, second)))
	})
	t.Run("secondary with a permanent MAC address in a bond", func(t *testing.T) { // F10
		first, link := leased(0, &plain), leased(1, &second)
		link.Permanent, link.Lent = true, first.MAC
		link.Master, link.MasterKind, link.LinkHidden = "bond0", "bond", "/etc/systemd/network/70-ens6.link.d/50-ec2netd.conf"
		p := Make(input([]Link{first, link}, plain, second))
		p.GiveWay()
		golden(t, p)
	})
	t.Run("secondary in a VRF", func(t *testing.T) { // F10
		link := leased(1, &second)
		link.Master, link.MasterKind, link.DHCPMetrics = "blue", "vrf", nil
		golden(t, Make(input([]Link{leased(0, &plain), link}, plain, second)))
	})
	t.Run("secondary in a VRF that a file names", func(t *testing.T) { // F10
		link := leased(1, &second)
		link.Master, link.MasterKind, link.DHCPMetrics = "blue", "vrf", nil
		link.OthersMaster, link.OthersVRF = true, true
		golden(t, Make(input([]Link{leased(0, &plain), link}, plain, second)))
	})
	t.Run("secondary with a router known from the primary", func(t *testing.T) {
		dual := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10"))
		first := leased(0, &dual)
		first.Routers = addrs("fe80::1")
		golden(t, Make(input([]Link{first, leased(1, &second)}, dual, second)))
	})
	t.Run("secondary before its lease", func(t *testing.T) {
		link := leased(1, &second)
		link.Addresses = nil
		golden(t, Make(input([]Link{leased(0, &plain), link}, plain, second)))
	})
	t.Run("secondary IPv6 only on card 1", func(t *testing.T) {
		one, zero := 1, 0
		first, only := plain, view(2, nil, addrs("2001:db8:1::30"))
		first.NetworkCard, only.NetworkCard = &zero, &one
		golden(t, Make(input([]Link{leased(0, &plain), leased(2, &only)}, first, only)))
	})
	t.Run("base drop-ins", func(t *testing.T) {
		in := input([]Link{leased(0, &plain)}, plain)
		in.BaseDropIns = []string{"/etc/systemd/network/80-ec2.network.d/lab.conf"}
		golden(t, Make(in))
	})
}

// B1, B5: the numbers of amazon-ec2-net-utils, each different from all others, and
// none of the numbers that others have.
func TestNumbers(t *testing.T) {
	for _, test := range []struct {
		n             Numbers
		metric, table int
	}{
		{Numbers{}, 512, 10000}, {Numbers{0, 1}, 513, 10001}, {Numbers{1, 2}, 614, 10102}, {Numbers{5, 11}, 1023, 10511},
		{Numbers{5, 12}, 10512, 10512}, {Numbers{5, 13}, 1025, 10513}, {Numbers{6, 0}, 1112, 10600}, {Numbers{99, 99}, 10511, 19999},
	} {
		if test.n.Metric() != test.metric || test.n.Table() != test.table {
			t.Errorf("%+v: metric %d table %d, want %d and %d", test.n, test.n.Metric(), test.n.Table(), test.metric, test.table)
		}
	}
	metrics, tables := map[int]Numbers{}, map[int]Numbers{}
	for card := range cardStep {
		for index := range cardStep {
			n := Numbers{card, index}
			metric := n.Metric()
			if other, taken := metrics[metric]; taken {
				t.Errorf("%+v and %+v have the metric %d", n, other, metric)
			}
			if other, taken := tables[n.Table()]; taken {
				t.Errorf("%+v and %+v have the table %d", n, other, n.Table())
			}
			metrics[metric], tables[n.Table()] = n, n
			if metric == defaultMetric || metric >= UnknownMetric || (metric <= metricBase) != (n == Numbers{}) {
				t.Errorf("%+v has the metric %d", n, metric)
			}
			if back, ok := NumbersIn(dropin.ParseNetwork(fmt.Sprintf("[DHCPv4]\nRouteMetric=%d\n", metric))); !ok || back != n {
				t.Errorf("%+v was read back as %+v, %v", n, back, ok)
			}
		}
	}
	for metric := range UnknownMetric + 100 {
		if n, ok := NumbersIn(&dropin.Network{DHCPv4: dropin.DHCPv4{RouteMetric: metric}}); ok && metrics[metric] != n {
			t.Errorf("metric %d was read as that of %+v", metric, n)
		}
	}
}

// B5: several ENIs that are not known have different metrics, and keep them.
func TestPendingMetrics(t *testing.T) {
	in := Input{PrimaryMAC: primaryMAC, Base: base}
	for i := range 6 {
		v := view(i, addrs(fmt.Sprintf("10.0.1.%d", 10+i)), nil)
		in.Links = append(in.Links, leased(i, &v))
	}
	plans := func() map[string]ENI {
		out := map[string]ENI{}
		for _, e := range Make(in).ENIs {
			out[e.Link.Name] = e
		}
		return out
	}
	want := func(what string, metrics ...int) {
		t.Helper()
		got := plans()
		for i, metric := range metrics {
			if e := got[fmt.Sprintf("ens%d", 5+i)]; e.Want.Metric != metric || (len(e.Files) > 0) != (metric != UnknownMetric) && !e.Keep {
				t.Errorf("%s: %s has the metric %d, want %d: %+v", what, e.Link.Name, e.Want.Metric, metric, e)
			}
		}
	}
	in.Links[4].New, in.Links[5].New = true, true
	want("two are new", 512, 30000, 30001, 30002, 30000, 30000)
	in.Links[4].New, in.Links[5].New = false, false
	want("all have waited", 512, 30000, 30001, 30002, 30003, 30004)
	for i := range in.Links {
		if e := plans()[in.Links[i].Name]; i%2 == 1 && len(e.Files) > 0 {
			in.Links[i].Current = current(&e)
		}
	}
	want("some are written", 512, 30000, 30001, 30002, 30003, 30004)
	in.Links = in.Links[3:]
	if e := plans()["ens8"]; e.Want.Metric != 30002 || !e.Keep || len(e.Files) > 0 {
		t.Errorf("who has a metric does not keep it: %+v", e)
	}
	// No two files that came of different plans have the same one.
	in.Links[1].Current = in.Links[0].Current
	seen := map[int]bool{}
	for _, e := range plans() {
		if seen[e.Want.Metric] {
			t.Errorf("two have the metric %d", e.Want.Metric)
		}
		seen[e.Want.Metric] = true
	}
	for _, f := range Make(in).Files {
		if f.Target == "" && strings.Contains(f.Content, "DHCP=") {
			t.Errorf("more than a metric is said of an ENI that is not known:\n%s", f.Content)
		}
	}
}

// F4, B7, B3: what the configuration says of an ENI.
func TestSettings(t *testing.T) {
	truth := func(b bool) *bool { return &b }
	primary := view(0, addrs("10.0.1.10", "10.0.1.11"), addrs("2001:db8:1::10"))
	primary.IPv4Prefixes = prefixes("10.0.1.224/28")
	second := view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	second.IPv4Prefixes, second.IPv6Prefixes = prefixes("10.0.1.240/28"), prefixes("2001:db8:1:0:1::/80")
	both := func(s config.Section, change func(*Input)) Plan {
		in := input([]Link{leased(0, &primary), leased(1, &second)}, primary, second)
		s.File, s.Line = "/etc/ec2netd.conf", 7
		in.Sections = []config.Section{s}
		if change != nil {
			change(&in)
		}
		return Make(in)
	}
	t.Run("unmanaged", func(t *testing.T) {
		golden(t, both(config.Section{Primary: truth(false), Managed: truth(false)}, nil))
	})
	t.Run("unmanaged without altnames", func(t *testing.T) {
		golden(t, both(config.Section{Names: []string{"ens6"}, Managed: truth(false), AlternativeNames: truth(false)}, nil))
	})
	t.Run("no default route", func(t *testing.T) {
		section := config.Section{DeviceIndexes: []int{1}, DefaultRoute: truth(false)}
		// Until networkd has taken away the one that it had, secondary addresses wait.
		before := both(section, nil).ENIs[1]
		if !before.Reconfigure() || !before.Held {
			t.Errorf("with a default route by DHCP: %+v", before)
		}
		golden(t, both(section, func(in *Input) { in.Links[1].DHCPMetrics = nil }))
	})
	// B11: whoever comes in by the primary's address is answered all the same.
	t.Run("no default route on the primary", func(t *testing.T) {
		golden(t, both(config.Section{Primary: truth(true), DefaultRoute: truth(false)}, func(in *Input) { in.Links[0].DHCPMetrics = nil }))
	})
	t.Run("primary rules", func(t *testing.T) {
		golden(t, both(config.Section{PrimaryRules: truth(true)}, nil))
	})
	for _, mode := range []config.Prefixes{config.PrefixesLocal, config.PrefixesAssign} {
		t.Run("prefixes "+string(mode), func(t *testing.T) { golden(t, both(config.Section{Prefixes: &mode}, nil)) })
	}
	t.Run("secondary addresses and DNS", func(t *testing.T) { // A12, A10
		old := primary.IPv6
		defer func() { primary.IPv6 = old }()
		primary.IPv6 = addrs("2001:db8:1::10", "2001:db8:1::11")
		p := both(config.Section{SecondaryAddresses: truth(false), DNS: addrs("192.0.2.53", "2001:db8::53")}, nil)
		golden(t, p)
		for _, e := range p.ENIs {
			if held := e.Held; held || len(e.Want.Addresses) != 2 {
				t.Errorf("%s: waits: %v, has %v", e.Link.Name, held, e.Want.Addresses)
			}
		}
	})
	t.Run("firewall mark", func(t *testing.T) { // B12
		golden(t, both(config.Section{Primary: truth(false), FirewallMark: &dropin.Mark{Value: 2, Mask: 0xff}}, nil))
	})
	t.Run("firewall mark of all", func(t *testing.T) { // B5
		p := both(config.Section{FirewallMark: &dropin.Mark{Value: 2, Mask: wholeMark}}, nil)
		golden(t, p)
		if e := p.ENIs[1]; !strings.Contains(e.Unmarked.Words(), "FirewallMark=0x2 of the configuration is not in force: that of ens5 is 0x2") || !p.ENIs[0].Unmarked.None() {
			t.Errorf("%q %q", p.ENIs[0].Unmarked.Words(), e.Unmarked.Words())
		}
	})
	t.Run("firewall mark of one that is not known", func(t *testing.T) { // B5
		section := config.Section{FirewallMark: &dropin.Mark{Value: 2, Mask: 0xff}}
		own := both(config.Section{Primary: truth(false), FirewallMark: section.FirewallMark}, nil).ENIs[1]
		p := both(section, func(in *Input) {
			in.Views = maps.Clone(in.Views)
			delete(in.Views, second.MAC)
			in.Links[1].Current = current(&own)
		})
		if p.ENIs[0].Want.Mark.Value != 0 || !strings.Contains(p.ENIs[0].Unmarked.Words(), "that of ens6 is 0x2/0xff") || !p.ENIs[1].Keep {
			t.Errorf("%+v", p.ENIs)
		}
	})
	t.Run("firewall mark without IPv6", func(t *testing.T) { // A13
		p := both(config.Section{Primary: truth(false), FirewallMark: &dropin.Mark{Value: 2, Mask: wholeMark}}, func(in *Input) { in.Links[1].IPv6 = kernel.IPv6OffLink })
		if got := p.ENIs[1].Want.Marked; len(got) != 1 || !got[0].Addr().Is4() {
			t.Errorf("%v", got)
		}
	})
	// Before the metadata tells, an ENI that may be unmanaged is left as it is, and so
	// is its .link file.
	unread := func(in *Input) { in.Views = nil }
	p := both(config.Section{ENIIDs: []string{second.ID}, Managed: truth(false)}, unread)
	for _, e := range p.ENIs {
		if e.Link.Name == "ens6" && (!e.Settings.Undecided || len(e.Files) > 0) {
			t.Errorf("undecided: %+v", e)
		}
	}
	p = both(config.Section{MACs: []string{second.MAC}, Managed: truth(false)}, unread)
	for _, e := range p.ENIs {
		if e.Link.Name == "ens6" && (e.Settings.Undecided || len(e.Files) > 0 || e.Keep || !e.KeepLink) {
			t.Errorf("unmanaged before its metadata: %+v", e)
		}
	}
	// The only link is presumed to be the primary unless that is to be unmanaged.
	only := func(in *Input) { in.Links, in.Views, in.PrimaryMAC = in.Links[:1], nil, "" }
	if e := both(config.Section{Primary: truth(true), Managed: truth(false)}, only).ENIs[0]; e.Presumed || len(e.Files) > 0 {
		t.Errorf("an unmanaged primary is presumed: %+v", e)
	}
	if e := both(config.Section{ENIIDs: []string{second.ID}, Managed: truth(false)}, only).ENIs[0]; e.Presumed || len(e.Files) > 0 {
		t.Errorf("a primary that may be unmanaged is presumed: %+v", e)
	}
	if e := both(config.Section{DeviceIndexes: []int{1}, Managed: truth(false)}, only).ENIs[0]; !e.Presumed || e.Want.Metric != 512 {
		t.Errorf("the primary's device index is 0: %+v", e)
	}
}

// B4, B5: an ENI whose numbers are not certain gets none.
func TestUncertainNumbers(t *testing.T) {
	zero, one := 0, 1
	primary, a, b := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20"), nil), view(2, addrs("10.0.1.30"), nil)
	links := []Link{leased(0, &primary), leased(1, &a), leased(2, &b)}
	known := func(in Input) map[string]bool {
		out := map[string]bool{}
		for _, e := range Make(in).ENIs {
			out[e.Link.Name] = e.Known
			if !e.Known && (e.Reason.Words() == "" || strings.Contains(e.Reason.Words(), "  ") || e.Keep && len(e.Files) > 0 || (e.Link.Current != nil) != e.Keep || len(e.Files) > 0 && e.Want.Metric <= UnknownMetric) {
				t.Errorf("%s: not known, but reason %q, keep %v, %d files", e.Link.Name, e.Reason.Words(), e.Keep, len(e.Files))
			}
		}
		return out
	}
	t.Run("device-number 0", func(t *testing.T) {
		a := a
		a.DeviceIndex = 0
		if got := known(input(links, primary, a, b)); got["ens6"] || !got["ens5"] || !got["ens7"] {
			t.Error(got)
		}
	})
	t.Run("network-card missing", func(t *testing.T) {
		primary, b := primary, b
		primary.NetworkCard, b.NetworkCard = &zero, &one
		if got := known(input(links, primary, a, b)); got["ens6"] || !got["ens5"] || !got["ens7"] {
			t.Error(got)
		}
	})
	t.Run("the same number twice", func(t *testing.T) {
		b := b
		b.DeviceIndex = 1
		if got := known(input(links, primary, a, b)); got["ens6"] || got["ens7"] {
			t.Error(got)
		}
		in := input(slices.Clone(links), primary, a, b)
		in.Links[2].Current = dropin.ParseNetwork("[Match]\nMACAddress=" + b.MAC + "\n")
		in.Assigned = map[string]Numbers{a.MAC: {0, 1}}
		if got := known(in); !got["ens6"] || got["ens7"] {
			t.Error("who has the number does not keep it", got)
		}
	})
	t.Run("the same MAC twice", func(t *testing.T) {
		again := leased(1, &a)
		again.Index, again.Name = 9, "ens9"
		if got := known(input(append(slices.Clone(links), again), primary, a, b)); got["ens6"] || got["ens9"] || !got["ens7"] {
			t.Error(got)
		}
	})
}

// E1: of several links at boot the one that was there first has the primary's metric
// before the metadata answers, the others have worse ones; where networkd runs, nothing is
// presumed of several.
func TestPresumptionOfSeveral(t *testing.T) {
	var links []Link
	for _, index := range []int{2, 0, 1} {
		v := view(index, addrs("10.0.1.10"), nil)
		link := leased(index, &v)
		link.Addresses, link.DHCPMetrics, link.Metrics = nil, nil, nil
		links = append(links, link)
	}
	metrics := make(map[int]string)
	for _, e := range Make(Input{Links: links, Base: base}).ENIs {
		if primary := e.Link.MAC == links[1].MAC; e.Primary != primary || e.Presumed != primary || (e.Want.Metric == 512) != primary || metrics[e.Want.Metric] != "" || e.Want.Metric > UnknownMetric+1 {
			t.Errorf("%+v, metrics %v", e, metrics)
		}
		metrics[e.Want.Metric] = e.Link.Name
	}
	for _, e := range Make(Input{Links: links, Base: base, Networkd: Networkd{Running: true}}).ENIs {
		if e.Primary || e.Presumed || e.Want.Metric < UnknownMetric {
			t.Errorf("with networkd running: %+v", e)
		}
	}
}

// B5, B6: what was presumed of the only link does not outlive one that was there before it.
func TestPresumption(t *testing.T) {
	a, b := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20"), nil)
	first, second := leased(1, &b), leased(0, &a)
	in := Input{Links: []Link{first}, Base: base}
	e := Make(in).ENIs[0]
	if !e.Presumed || !e.Primary || e.Want.Metric != 512 || len(e.Files) == 0 {
		t.Fatalf("%+v", e)
	}
	first.Current = current(&e)
	check := func(what string, in Input, keep bool) {
		t.Helper()
		in.Presumed = first.MAC
		for _, e := range Make(in).ENIs {
			if e.Link.MAC == first.MAC && (e.Keep != keep || e.Presumed != keep || len(e.Files) > 0 && e.Want.Metric <= UnknownMetric) {
				t.Errorf("%s: %+v", what, e)
			}
		}
	}
	check("alone", Input{Links: []Link{first}, Base: base}, true)
	check("another link", Input{Links: []Link{first, second}, Base: base}, false)
	later := second
	later.Index = first.Index + 1
	check("a later link", Input{Links: []Link{later, first}, Base: base, Networkd: Networkd{Running: true}}, true)
	check("another primary", Input{Links: []Link{first}, Base: base, PrimaryMAC: a.MAC}, false)
	check("it is the primary", Input{Links: []Link{first, second}, Base: base, PrimaryMAC: b.MAC}, true)
}

// A3: where static addresses are there before the lease, as after a re-attachment that
// networkd was faster to see, they go and come again; not where anybody may use them.
func TestDisorderedAddresses(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	link := leased(1, &v)
	link.Current = Make(input([]Link{link}, v)).ENIs[0].DropIn
	secondary := kernel.Address{Prefix: netip.MustParsePrefix("10.0.1.21/32"), Global: true}
	link.Addresses = slices.Insert(slices.Clone(link.Addresses), 0, secondary)
	if e := Make(input([]Link{link}, v)).ENIs[0]; e.Held || !slices.Contains(e.Want.Static, v.IPv4[1]) || !misordered(&e) {
		t.Errorf("of an ENI in use: %+v", e)
	}
	link.Fresh = true
	e := Make(input([]Link{link}, v)).ENIs[0]
	if !e.Held || slices.Contains(e.Want.Static, v.IPv4[1]) {
		t.Errorf("of an ENI that has just come: %+v", e)
	}
	link.Current, link.Addresses = current(&e), link.Addresses[1:]
	if e := Make(input([]Link{link}, v)).ENIs[0]; e.Held || !slices.Contains(e.Want.Static, v.IPv4[1]) {
		t.Errorf("once they are gone: %+v", e)
	}
}

// A3: secondary addresses wait for the lease, but not for ever, and never go again.
func TestHeldAddresses(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	make1 := func(change func(*Link)) ENI {
		link := leased(1, &v)
		change(&link)
		return Make(input([]Link{link}, v)).ENIs[0]
	}
	with := make1(func(*Link) {})
	if with.Held || !slices.Equal(with.Want.Static, addrs("10.0.1.21")) {
		t.Errorf("after the lease: held %v, static %v", with.Held, with.Want.Static)
	}
	own := dropin.ParseNetwork("\n[DHCPv4]\nRouteMetric=513\n")
	if e := make1(func(l *Link) { l.Addresses, l.DHCPMetrics, l.Current = nil, nil, own }); !e.Held || len(e.Want.Static) > 0 {
		t.Errorf("before the lease: held %v, static %v", e.Held, e.Want.Static)
	}
	for _, metrics := range [][]int{nil, {30000}, {513, 30000}} {
		if e := make1(func(l *Link) { l.DHCPMetrics = metrics }); !e.Held {
			t.Errorf("with DHCP routes of the metrics %v: not held", metrics)
		}
	}
	if e := make1(func(l *Link) { l.Addresses, l.LeaseOverdue = nil, true }); e.Held {
		t.Error("the lease is overdue: held")
	}
	if e := make1(func(l *Link) { l.DHCPMetrics, l.Current = []int{513, 514}, current(&with) }); !e.Held || len(e.Want.Static) > 0 {
		t.Error("networkd is to configure the link anew: an address comes before the lease")
	}
	// One of the base unit, however old, is not: it goes for a moment when the drop-in
	// comes.
	if e := make1(func(l *Link) { l.DHCPMetrics, l.LeaseOverdue = []int{30000}, true }); !e.Held {
		t.Error("the lease has another metric still: not held")
	}
	if e := make1(func(l *Link) {
		l.DHCPMetrics, l.LeaseOverdue, l.Current = []int{30000}, true, own
	}); e.Held {
		t.Error("the metric does not come, though the drop-in says it: held")
	}
	if e := make1(func(l *Link) { l.Addresses, l.Current = nil, current(&with) }); e.Held || len(e.Want.Static) != 1 {
		t.Error("the lease was lost: an address that was there is taken away")
	}
	// As ifdown leaves a link, and a takeover: networkd sets it up, and would have no lease yet.
	for _, overdue := range []bool{false, true} {
		if e := make1(func(l *Link) {
			l.Addresses, l.DHCPMetrics, l.Down, l.LeaseOverdue, l.Current = nil, nil, true, overdue, current(&with)
		}); !e.Held || len(e.Want.Static) != 0 {
			t.Error("the link is down and has no address: one comes before the lease")
		}
	}
	if e := make1(func(l *Link) { l.Down, l.Current = true, current(&with) }); e.Held || len(e.Want.Static) != 1 {
		t.Error("the link was set down: an address that is there is taken away")
	}
}

// A3: the addresses of an ENI that has no lease yet need not wait for it: the primary one
// goes before them, and stays there.
func TestPrimaryAhead(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.9", "10.0.1.21"), nil)
	link := leased(1, &v)
	lease := link.Addresses
	link.Addresses, link.DHCPMetrics, link.Waits = nil, nil, true
	e := Make(input([]Link{link}, v)).ENIs[0]
	if e.Held || e.Want.Ahead.String() != "10.0.1.20/24" || !slices.Equal(e.Want.Static, addrs("10.0.1.9", "10.0.1.21")) {
		t.Fatalf("before the lease: held %v, ahead %v, static %v", e.Held, e.Want.Ahead, e.Want.Static)
	}
	before, content := e, e.Files[0].Content
	const first = "\nAddress=10.0.1.20/24\nAddPrefixRoute=no\n\n[Route]\nDestination=10.0.1.0/24\nScope=link\nMetric=513\n"
	if at := strings.Index(content, first); at < 0 || at > strings.Index(content, "Address=10.0.1.9/32") {
		t.Errorf("the primary address is not the first:\n%s", content)
	}
	for what, change := range map[string]func(*Link){
		"with the lease":      func(l *Link) { l.Addresses, l.DHCPMetrics = lease, []int{513} },
		"without it":          func(l *Link) { l.Addresses, l.DHCPMetrics = lease, nil },
		"networkd is at work": func(l *Link) { l.Addresses, l.Busy = nil, true },
		"old routes":          func(l *Link) { l.Addresses, l.DHCPMetrics = lease, []int{513, 30000} },
	} {
		link := leased(1, &v)
		link.Current, link.Carrier = current(&before), true
		change(&link)
		e := Make(input([]Link{link}, v)).ENIs[0]
		if e.Held || e.Files[0].Content != content {
			t.Errorf("%s: held %v, ahead %v, static %v", what, e.Held, e.Want.Ahead, e.Want.Static)
		}
		// E5: an address that stands in the drop-in says nothing of the lease.
		if missing := len(link.DHCPMetrics) == 0 || len(link.Addresses) == 0; missing != (Lacking(&e) == v.IPv4[0]) {
			t.Errorf("%s: lacking %v", what, Lacking(&e))
		}
	}
	none := func(what string, change func(*Link, *metadata.ENI, *Input)) {
		t.Helper()
		link, v, in := link, v, Input{}
		change(&link, &v, &in)
		in.Links, in.Views, in.Base = []Link{link}, map[string]metadata.ENI{v.MAC: v}, base
		if in.PrimaryMAC == "" {
			in.PrimaryMAC = "02:00:00:00:01:10"
		}
		if e := Make(in).ENIs[0]; e.Want.Ahead.IsValid() {
			t.Errorf("%s: ahead %v", what, e.Want.Ahead)
		}
	}
	none("with the base unit", func(l *Link, _ *metadata.ENI, _ *Input) { l.Waits = false })
	none("with one address", func(_ *Link, v *metadata.ENI, _ *Input) { v.IPv4 = v.IPv4[:1] })
	none("without a default route", func(_ *Link, _ *metadata.ENI, in *Input) {
		in.Sections = []config.Section{{Names: []string{link.Name}, DefaultRoute: new(bool)}}
	})
	none("of the primary ENI", func(_ *Link, v *metadata.ENI, in *Input) { v.DeviceIndex, in.PrimaryMAC = 0, v.MAC })
	none("configured without it", func(l *Link, _ *metadata.ENI, _ *Input) {
		l.Current = dropin.ParseNetwork("\n[DHCPv4]\nRouteMetric=513\n")
	})
	none("of a subnet that is not known", func(_ *Link, v *metadata.ENI, _ *Input) { v.IPv4Subnets = prefixes("10.0.2.0/24") })
}

// Networkd leaves ENIs alone that are still to come, as long as there is none that needs
// the base unit.
func TestHold(t *testing.T) {
	first, second := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20"), nil)
	held := func(change func(in *Input)) bool {
		in := input([]Link{leased(0, &first), leased(1, &second)}, first, second)
		in.Drivers = []string{"ena", "vif"}
		change(&in)
		p := Make(in)
		p.GiveWay()
		at := slices.IndexFunc(p.Files, func(f File) bool { return f.Path == HoldPath })
		if at >= 0 && at != len(p.Files)-1 {
			t.Error("it is written before files that it keeps the base unit from")
		}
		if at >= 0 && !strings.Contains(p.Files[at].Content, "\nDriver=ena vif\nProperty=EC2NETD_RUNS=1\nName=!ens5\n\n[Link]\nUnmanaged=yes\n") {
			t.Errorf("%s", p.Files[at].Content)
		}
		return at >= 0
	}
	// networkd sorts the files by name, and the first that matches wins.
	if HoldName >= "80-ec2.network" || HoldName <= "80-ec1.network" {
		t.Errorf("%s does not sort right before the base unit", HoldName)
	}
	for what, test := range map[string]struct {
		change func(in *Input)
		want   bool
	}{
		"all is known":           {func(*Input) {}, true},
		"no drivers":             {func(in *Input) { in.Drivers = nil }, false},
		"no ENIs":                {func(in *Input) { in.Links = nil }, false},
		"one that came just now": {func(in *Input) { delete(in.Views, second.MAC); in.Links[1].Waits = true }, true},
		"one that is not known":  {func(in *Input) { delete(in.Views, second.MAC) }, false},
		"what was known stays": {func(in *Input) {
			delete(in.Views, second.MAC)
			in.Links[1].Current = dropin.ParseNetwork("\n[DHCPv4]\nRouteMetric=513\n")
		}, true},
		"one is left to others": {func(in *Input) { in.Sections = []config.Section{{Names: []string{"ens6"}, Managed: new(bool)}} }, false},
		"one left is not waited for": {func(in *Input) {
			in.Links[1].Waits, in.Sections = true, []config.Section{{Names: []string{"ens6"}, Managed: new(bool)}}
		}, false},
		"one has an admin's file": {func(in *Input) { in.Links[1].Taken = "/etc/systemd/network/70-ens6.network" }, false},
		"one has the base unit":   {func(in *Input) { in.Links[1].Elsewhere = true }, false},
		"two with one address": {func(in *Input) {
			in.Links = append(in.Links, in.Links[1])
			in.Links[2].Index, in.Links[2].Name = 9, "ens9"
			in.Links[1].Current = dropin.ParseNetwork("\n[DHCPv4]\nRouteMetric=513\n")
		}, false},
		"the same, and it is there": {func(in *Input) {
			in.Links = append(in.Links, in.Links[1])
			in.Links[2].Index, in.Links[2].Name = 9, "ens9"
			in.Links[1].Current, in.Holding = dropin.ParseNetwork("\n[DHCPv4]\nRouteMetric=513\n"), true
		}, true},
		"nobody knows the primary": {func(in *Input) { in.PrimaryMAC = "02:00:00:00:00:99" }, false},
	} {
		if got := held(test.change); got != test.want {
			t.Errorf("%s: %v", what, got)
		}
	}
}

// A static IPv6 address waits until DHCPv6 has given up the same one, but not for ever.
func TestIPv6AfterDHCPv6(t *testing.T) {
	v := view(1, addrs("10.0.1.20"), addrs("2001:db8:1::20", "2001:db8:1::21"))
	dynamic := kernel.Address{Prefix: netip.MustParsePrefix("2001:db8:1::20/128"), Global: true, Dynamic: true}
	for _, test := range []struct {
		name   string
		change func(*Link)
		want   []netip.Addr
	}{
		{"without DHCPv6", func(*Link) {}, v.IPv6},
		{"the base unit is in force", func(l *Link) { l.OnBase = true }, nil},
		{"with its lease", func(l *Link) { l.Addresses = append(l.Addresses, dynamic) }, v.IPv6[1:]},
		{"with a lease that does not end", func(l *Link) {
			l.Addresses, l.LeaseOverdue = append(l.Addresses, dynamic), true
			l.Current = dropin.ParseNetwork("[DHCPv4]\nRouteMetric=513\n")
		}, v.IPv6},
		{"with what is left of a lease", func(l *Link) { l.Addresses, l.Done = append(l.Addresses, dynamic), true }, v.IPv6},
		{"attached long ago", func(l *Link) { l.OnBase, l.LeaseOverdue = true, true }, nil},
		{"with routes of the base unit", func(l *Link) { l.DHCPMetrics = []int{30000, 513} }, nil},
		{"networkd is at it", func(l *Link) { l.Busy, l.Current = true, dropin.ParseNetwork("[DHCPv4]\nRouteMetric=513\n") }, nil},
		{"networkd has not begun", func(l *Link) { l.Busy = true }, v.IPv6},
	} {
		link := leased(1, &v)
		test.change(&link)
		if e := Make(input([]Link{link}, v)).ENIs[0]; !slices.Equal(e.Want.Static, test.want) || e.Held != (len(test.want) < 2) {
			t.Errorf("%s: static %v, held %v", test.name, e.Want.Static, e.Held)
		}
	}
	// One that is static already stays so.
	link := leased(1, &v)
	link.Current = Make(input([]Link{link}, v)).ENIs[0].DropIn
	link.OnBase, link.Addresses = true, append(link.Addresses, dynamic)
	if e := Make(input([]Link{link}, v)).ENIs[0]; len(e.Want.Static) != 2 || e.Held {
		t.Errorf("static before: %v", e.Want.Static)
	}
}

// A router is taken from advertisements only, follows them, and stays while there are
// none.
func TestRouter(t *testing.T) {
	primary, v := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10")), view(1, addrs("10.0.1.20"), addrs("2001:db8:1::20"))
	elsewhere := view(2, nil, addrs("2001:db8:2::30"))
	elsewhere.IPv6Subnets = prefixes("2001:db8:2::/64")
	first, other := leased(0, &primary), leased(2, &elsewhere)
	first.Routers, other.Routers = addrs("fe80::1"), addrs("fe80::3")
	for _, test := range []struct {
		name    string
		own     []netip.Addr
		current string
		links   []Link
		want    string
	}{
		{"from the subnet's other link", nil, "", []Link{first, other}, "fe80::1"},
		{"of another subnet", nil, "", []Link{other}, ""},
		{"its own first", addrs("fe80::2"), "", []Link{first}, "fe80::2"},
		{"its own, changed", addrs("fe80::2"), "fe80::9", []Link{first}, "fe80::2"},
		{"one of several", addrs("fe80::4", "fe80::2"), "fe80::4", nil, "fe80::2 fe80::4"},
		{"none advertised now", nil, "fe80::4", nil, "fe80::4"},
	} {
		link := leased(1, &v)
		link.Routers = test.own
		if test.current != "" {
			link.Current = dropin.ParseNetwork("[Route]\nGateway=_ipv6ra\n\n[Route]\nGateway=" + test.current + "\n")
		}
		in := input(append(slices.Clone(test.links), link), primary, v, elsewhere)
		for _, e := range Make(in).ENIs {
			if e.Link.MAC != v.MAC {
				continue
			}
			got := strings.Trim(fmt.Sprint(e.Want.Routers), "[]")
			if got != test.want || strings.Contains(e.Files[0].Content, "\nMetric=") != (test.want != "") {
				t.Errorf("%s: router %q, want %q:\n%s", test.name, got, test.want, e.Files[0].Content)
			}
		}
	}
}

func TestReconfigure(t *testing.T) {
	v := view(1, addrs("10.0.1.20"), nil)
	for _, test := range []struct {
		metrics []int
		want    bool
	}{{nil, false}, {[]int{513}, false}, {[]int{30000}, false}, {[]int{513, 30000}, true}} {
		link := leased(1, &v)
		link.DHCPMetrics = test.metrics
		if got := Make(input([]Link{link}, v)).ENIs[0].Reconfigure(); got != test.want {
			t.Errorf("DHCP routes with metrics %v: %v", test.metrics, got)
		}
	}
}

// current is the drop-in of an ENI's files as it is read from the disk.
func current(eni *ENI) *dropin.Network { return rendered(eni).Network }

// dropIns are the drop-ins of an ENI's files, nil where there is none.
type dropIns struct {
	Network *dropin.Network
	Link    *dropin.Link
}

// rendered are the drop-ins of an ENI's files as they are read from the disk.
func rendered(eni *ENI) (r dropIns) {
	for _, f := range eni.Files {
		switch f.Path {
		case NetworkDropIn(eni.Link.Name):
			r.Network = dropin.ParseNetwork(f.Content)
		case LinkDropIn(eni.Link.Name):
			r.Link = dropin.ParseLink(f.Content)
		}
	}
	return r
}

// anyView draws an ENI.
func anyView(t *rapid.T, index int) metadata.ENI {
	v := metadata.ENI{
		MAC: fmt.Sprintf("02:00:00:00:01:%02x", index+0x10), ID: fmt.Sprintf("eni-%017x", index),
		DeviceIndex: rapid.IntRange(0, 4).Draw(t, "device"),
	}
	if rapid.Bool().Draw(t, "has card") {
		card := rapid.IntRange(0, 2).Draw(t, "card")
		v.NetworkCard = &card
	}
	n4, n6 := rapid.IntRange(0, 50).Draw(t, "ipv4"), rapid.IntRange(0, 50).Draw(t, "ipv6")
	for i := range n4 {
		v.IPv4 = append(v.IPv4, netip.AddrFrom4([4]byte{10, 0, byte(index), byte(i + 10)}))
	}
	for i := range n6 {
		v.IPv6 = append(v.IPv6, netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 0, byte(index), 15: byte(i + 10)}))
	}
	if n4 > 0 {
		v.IPv4Subnets = prefixes("10.0.0.0/16")
	}
	if n6 > 0 {
		v.IPv6Subnets = prefixes("2001:db8::/32")
	}
	return v
}

func anyInput(t *rapid.T) Input {
	in := Input{PrimaryMAC: primaryMAC, Views: map[string]metadata.ENI{}, Base: base}
	for i := range rapid.IntRange(0, 6).Draw(t, "ENIs") {
		v := anyView(t, i)
		link := leased(i, &v)
		if rapid.Bool().Draw(t, "no lease") {
			link.Addresses = nil
		}
		if rapid.IntRange(0, 3).Draw(t, "without IPv6") == 0 {
			link.IPv6 = kernel.IPv6(rapid.IntRange(1, 3).Draw(t, "why"))
		}
		in.Links = append(in.Links, link)
		if rapid.IntRange(0, 4).Draw(t, "viewed") > 0 {
			in.Views[v.MAC] = v
		}
	}
	return in
}

// The plan's properties, whatever comes in.
func TestProperties(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		in := anyInput(t)
		p := Make(in)
		numbers := map[Numbers]string{}
		seen := map[string]bool{}
		for _, e := range p.ENIs {
			if e.Known {
				if other, taken := numbers[e.Numbers]; taken {
					t.Fatalf("%s and %s share %+v", other, e.Link.Name, e.Numbers) // B5
				}
				numbers[e.Numbers] = e.Link.Name
			}
			if e.Primary && len(e.Want.Rules) > 0 {
				t.Fatal("the primary has rules") // B3
			}
			sources := len(e.View.IPv4) + len(e.View.IPv6)
			if e.Link.IPv6 != kernel.IPv6On {
				sources -= len(e.View.IPv6)
			}
			if !e.Primary && e.Known && len(e.Want.Rules) != sources {
				t.Fatalf("%d rules for %d addresses", len(e.Want.Rules), len(e.Want.Addresses)) // B2
			}
			for _, f := range e.Files {
				if e.Link.IPv6 != kernel.IPv6On && f.Path == NetworkDropIn(e.Link.Name) && (strings.Contains(f.Content, "2001:db8") || !rendered(&e).Network.WithoutIPv6()) {
					t.Fatalf("the link has no IPv6:\n%s", f.Content) // A13
				}
			}
			if len(e.View.IPv4) > 0 && slices.Contains(e.Want.Static, e.View.IPv4[0]) {
				t.Fatal("the primary address is a secondary one")
			}
			if e.Primary && e.Want.Ahead.IsValid() {
				t.Fatal("the address of the primary ENI is static")
			}
			if said := rendered(&e); !e.DropIn.Equal(said.Network) || e.LinkDropIn.MACAddress() != said.Link.MACAddress() || !slices.Equal(e.LinkDropIn.Names(), said.Link.Names()) {
				t.Fatalf("the files say %+v, and not %+v", said, e)
			}
			for _, f := range e.Files {
				if seen[f.Path] {
					t.Fatalf("%s is written twice", f.Path)
				}
				seen[f.Path] = true
				if f.Target == "" {
					parse(t, f)
				}
			}
		}
		// A2: the order of secondary addresses makes no difference, nor does that of
		// the links.
		shuffled := in
		shuffled.Links = slices.Clone(in.Links)
		slices.Reverse(shuffled.Links)
		shuffled.Views = map[string]metadata.ENI{}
		for mac, v := range in.Views {
			v.IPv4, v.IPv6 = slices.Clone(v.IPv4), slices.Clone(v.IPv6)
			if len(v.IPv4) > 1 {
				slices.Reverse(v.IPv4[1:])
			}
			if len(v.IPv6) > 1 {
				slices.Reverse(v.IPv6[1:])
			}
			shuffled.Views[mac] = v
		}
		sorted := func(p Plan) []File {
			return slices.SortedFunc(slices.Values(p.Files), func(a, b File) int { return strings.Compare(a.Path, b.Path) })
		}
		if diff := cmp.Diff(sorted(p), sorted(Make(shuffled))); diff != "" {
			t.Fatalf("the order matters:\n%s", diff)
		}
		// What is on disk does not change the plan for it, and no address goes that
		// is still in the metadata.
		again := in
		again.Links = slices.Clone(in.Links)
		for i := range again.Links {
			for _, f := range p.Files {
				if f.Path == NetworkDropIn(again.Links[i].Name) {
					again.Links[i].Current = dropin.ParseNetwork(f.Content)
				}
			}
			again.Links[i].LeaseOverdue = true
		}
		before := map[string][]netip.Addr{}
		for _, e := range p.ENIs {
			before[e.Link.Name] = e.Want.Static
		}
		for _, e := range Make(again).ENIs {
			for _, a := range before[e.Link.Name] {
				if !slices.Contains(e.Want.Static, a) {
					t.Fatalf("%s went from %s by itself", a, e.Link.Name)
				}
			}
		}
	})
}

// parse holds a rendered file against another reader of unit files.
func parse(t *rapid.T, f File) {
	sections, err := unit.DeserializeSections(strings.NewReader(f.Content))
	if err != nil {
		t.Fatalf("%s: %v", f.Path, err)
	}
	if len(sections) == 0 || sections[0].Section != "Match" {
		t.Fatalf("%s does not begin with [Match]", f.Path)
	}
	for _, s := range sections {
		for _, e := range s.Entries {
			if e.Name == "" || strings.ContainsAny(e.Value, "\n\r") {
				t.Fatalf("%s: bad entry %+v", f.Path, e)
			}
		}
	}
}

func TestReadBack(t *testing.T) {
	v := view(3, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	e := Make(input([]Link{leased(3, &v)}, v)).ENIs[0]
	content := dropin.ParseNetwork(e.Files[0].Content)
	if got := content.Singles(); !slices.Equal(got, e.Want.Static) {
		t.Errorf("static addresses %v were read back as %v", e.Want.Static, got)
	}
	if got, ok := NumbersIn(content); !ok || got != e.Numbers {
		t.Errorf("numbers %v were read back as %v, %v", e.Numbers, got, ok)
	}
	if _, ok := NumbersIn(&dropin.Network{DHCPv4: dropin.DHCPv4{RouteMetric: 30000}}); ok {
		t.Error("the metric of an unknown ENI gives numbers")
	}
}

// F8: routes of dhcpcd's are none of networkd's that an old metric has left.
func TestObservedDHCP(t *testing.T) {
	link := kernel.Link{Index: 3, Name: "ens6"}
	everywhere := netip.MustParsePrefix("0.0.0.0/0")
	var routes []kernel.Route
	for _, metric := range []int{513, 100, 1003, 1004, 1024} {
		routes = append(routes, kernel.Route{Link: 3, Table: kernel.MainTable, Metric: metric, Protocol: kernel.ProtocolDHCP, Destination: everywhere})
	}
	l := Observed(link, routes)
	if want := []int{513, 100, 1004, 1024}; !slices.Equal(l.DHCPMetrics, want) {
		t.Errorf("networkd's are %v, want %v", l.DHCPMetrics, want)
	}
	if len(l.Metrics) != len(routes) {
		t.Errorf("all are %v", l.Metrics)
	}
	link.Index = 24
	routes = []kernel.Route{{Link: 24, Table: kernel.MainTable, Metric: defaultMetric, Protocol: kernel.ProtocolDHCP, Destination: everywhere}}
	if l := Observed(link, routes); !slices.Equal(l.DHCPMetrics, []int{defaultMetric}) {
		t.Errorf("the default of networkd's counts as dhcpcd's: %v", l.DHCPMetrics)
	}
}
