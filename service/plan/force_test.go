package plan

import (
	"net/netip"
	"path"
	"slices"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// unitOf is a generated unit of ens6 with drop-ins of somebody else's, by name.
func unitOf(dropIns ...unitfile.Text) unitfile.Unit {
	u := unitfile.Unit{Path: NetworkPath("ens6"), Texts: []unitfile.Text{
		{Path: NetworkPath("ens6"), Source: base, Content: "[Match]\nDriver=ena ixgbevf vif\n[Network]\nDHCP=yes\n[DHCPv4]\nRouteMetric=30000\n"},
		{Path: NetworkDropIn("ens6"), Source: NetworkDropIn("ens6"),
			Content: "[Match]\nDriver=\nMACAddress=02:00:00:00:01:11\nName=ens6\n\n[DHCPv4]\nRouteMetric=513\n"},
	}}
	for _, d := range dropIns {
		if d.Source == "" {
			d.Source = d.Path
		}
		u.Texts = append(u.Texts, d)
	}
	slices.SortStableFunc(u.Texts[1:], func(a, b unitfile.Text) int {
		if path.Base(a.Path) < path.Base(b.Path) {
			return -1
		}
		return 1
	})
	return u
}

func admins(name, content string) unitfile.Text {
	return unitfile.Text{Path: "/etc/systemd/network/70-ens6.network.d/" + name, Content: content}
}

var ens6 = Link{Link: kernel.Link{Index: 3, Name: "ens6", MAC: "02:00:00:00:01:11", Driver: "ena", Altnames: []string{"eni-0123"}}}

// F2, F3: who is to blame that a unit does not match a link.
func TestMatchOf(t *testing.T) {
	for name, c := range map[string]struct {
		content string
		want    unitfile.Match
	}{
		"nothing":             {"[Network]\nAddress=192.0.2.1/32\n", unitfile.Matches},
		"the same driver":     {"[Match]\nDriver=ena\n", unitfile.Matches},
		"a pattern":           {"[Match]\nName=\nName=e* f*\n", unitfile.Matches},
		"an altname":          {"[Match]\nName=\nName=eni-*\n", unitfile.Matches},
		"the MAC address":     {"[Match]\nMACAddress=\nMACAddress=02-00-00-00-01-11\n", unitfile.Matches},
		"one more name":       {"[Match]\nName=other\n", unitfile.Matches},
		"another name":        {"[Match]\nName=\nName=other\n", unitfile.NoMatch},
		"not this name":       {"[Match]\nName=\nName=!ens6 ens7\n", unitfile.NoMatch},
		"not another name":    {"[Match]\nName=\nName=!ens7\n", unitfile.Matches},
		"another driver":      {"[Match]\nDriver=veth\n", unitfile.NoMatch},
		"another type":        {"[Match]\nType=wlan\n", unitfile.NoMatch},
		"this type":           {"[Match]\nType=ether\n", unitfile.Matches},
		"who knows":           {"[Match]\nHost=elsewhere\n", unitfile.MayMatch},
		"a continued line":    {"[Match]\nName=\nName=other \\\nanother\n", unitfile.NoMatch},
		"comments":            {"# [Match]\n; Name=other\n[Match]\n#Name=\n", unitfile.Matches},
		"nothing is left":     {"[Match]\nName=\nMACAddress=\n", unitfile.NoMatch},
		"another MAC address": {"[Match]\nMACAddress=\nMACAddress=02:00:00:00:01:12\n", unitfile.NoMatch},
	} {
		dropIn := admins("x.conf", c.content)
		match, culprit := unitOf(dropIn).Match(ens6.Matchable())
		want := ""
		if c.want != unitfile.Matches {
			want = dropIn.Path
		}
		if match != c.want || culprit != want {
			t.Errorf("%s: %d on account of %q, want %d, %q", name, match, culprit, c.want, want)
		}
	}
	// Of several it is the one that made the difference; a base unit for other drivers
	// alone is none, since the own drop-in takes that back.
	match, culprit := unitOf(admins("60.conf", "[Match]\nHost=elsewhere\n"), admins("70.conf", "[Match]\nType=wlan\n"), admins("80.conf", "[Match]\nType=wwan\n")).Match(ens6.Matchable())
	if match != unitfile.NoMatch || path.Base(culprit) != "70.conf" {
		t.Errorf("%d on account of %q", match, culprit)
	}
	if match, culprit := (unitfile.Unit{}).Match(ens6.Matchable()); match != unitfile.Matches || culprit != "" {
		t.Errorf("no unit: %d, %q", match, culprit)
	}
}

// F10: the unit of an ENI matches a port that has its MAC address from a bond, by the permanent one;
// one of somebody else's that names the address as the present one does not.
func TestMatchOfPort(t *testing.T) {
	port := ens6
	port.Permanent, port.Lent, port.Master, port.MasterKind = true, "02:00:00:00:01:12", "bond0", "bond"
	own := newDropIn(&port).Render()
	if mac := dropin.ParseNetwork(own).MACAddress(); mac != port.MAC {
		t.Errorf("the drop-in is for %q:\n%s", mac, own)
	}
	for content, want := range map[string]unitfile.Match{
		own: unitfile.Matches,
		"[Match]\nPermanentMACAddress=02:00:00:00:01:11\n": unitfile.Matches,
		"[Match]\nPermanentMACAddress=02:00:00:00:01:12\n": unitfile.NoMatch,
		"[Match]\nMACAddress=02:00:00:00:01:11\n":          unitfile.NoMatch,
		"[Match]\nMACAddress=02:00:00:00:01:12\n":          unitfile.Matches,
	} {
		unit := unitfile.Unit{Path: "/etc/systemd/network/x.network", Texts: []unitfile.Text{{Path: "/etc/systemd/network/x.network", Content: content}}}
		if match, _ := unit.Match(port.Matchable()); match != want {
			t.Errorf("%q: %d, want %d", content, match, want)
		}
	}
}

// F2: a file is named only for what it takes away.
func TestTakenAway(t *testing.T) {
	four, six := status.AddressGap(netip.MustParseAddr("10.0.1.21")), status.AddressGap(netip.MustParseAddr("2001:db8::1"))
	route4, route6 := status.DefaultRouteGap(status.IPv4, 513), status.DefaultRouteGap(status.IPv6, 513)
	table4 := status.Gap{Kind: status.TableDefaultRoute, Family: status.IPv4, Table: 10001}
	old := status.Gap{Kind: status.OtherMetric, Family: status.IPv4, Metric: 513, StillThere: true}
	stays := status.Gap{Kind: status.Address, Family: status.IPv4, Value: "10.0.1.22", StillThere: true}
	rule := status.Gap{Kind: status.Rule, Family: status.IPv4, Value: "from 10.0.1.21/32 lookup 10001"}
	altname := status.Gap{Kind: status.Altname, Value: "eni-0123"}
	const (
		somebody    = "Address= in [Network]"
		unmanaged   = "Unmanaged=yes in [Link]"
		noRoutes    = "UseGateway=no in [DHCPv4]"
		otherMetric = "RouteMetric=100 in [DHCPv4]"
	)
	for name, c := range map[string]struct {
		content string
		gap     status.Gap
		line    string
	}{
		"an MTU takes nothing":          {"[Link]\nMTUBytes=9001\n", four, ""},
		"an MTU too small for IPv6":     {"[Link]\nMTUBytes=1200\n", six, "MTUBytes=1200 in [Link]"},
		"which IPv4 can do with":        {"[Link]\nMTUBytes=1200\n", four, ""},
		"an address more":               {"[Network]\nAddress=192.0.2.1/32\n", four, ""},
		"all addresses":                 {"[Network]\nAddress=\n", four, somebody},
		"all addresses, one again":      {"[Network]\nAddress=\nAddress=192.0.2.1/32\n", six, somebody},
		"addresses are not rules":       {"[Network]\nAddress=\n", rule, ""},
		"unmanaged":                     {"[Link]\nUnmanaged=yes\n", rule, unmanaged},
		"managed":                       {"[Link]\nUnmanaged=yes\nUnmanaged=no\n", rule, ""},
		"no gateway":                    {"[DHCPv4]\nUseGateway=no\n", route4, noRoutes},
		"of the other family":           {"[DHCPv4]\nUseGateway=no\n", route6, ""},
		"gateway":                       {"[DHCPv4]\nUseGateway=yes\n", route4, ""},
		"a metric":                      {"[DHCPv4]\nRouteMetric=100\n", route4, otherMetric},
		"a metric, the old one stays":   {"[DHCPv4]\nRouteMetric=100\n", old, otherMetric},
		"a metric is for one table":     {"[DHCPv4]\nRouteMetric=100\n", table4, ""},
		"no DHCP":                       {"[Network]\nDHCP=no\n", four, "DHCP=no in [Network]"},
		"DHCPv6 only":                   {"[Network]\nDHCP=ipv6\n", route4, "DHCP=ipv6 in [Network]"},
		"DHCPv4 only":                   {"[Network]\nDHCP=ipv4\n", four, ""},
		"no router advertisements":      {"[Network]\nIPv6AcceptRA=false\n", route6, "IPv6AcceptRA=false in [Network]"},
		"addresses are kept":            {"[Network]\nKeepConfiguration=static\n", stays, "KeepConfiguration=static in [Network]"},
		"an address is kept":            {"[Network]\nAddress=10.0.1.22/32\n", stays, "Address=10.0.1.22/32 in [Network]"},
		"in a section of its own":       {"[Address]\nAddress=10.0.1.22/32\n", stays, "Address=10.0.1.22/32 in [Address]"},
		"another one is kept":           {"[Network]\nAddress=10.0.1.23/32\n", stays, ""},
		"leases are kept":               {"[Network]\nKeepConfiguration=dhcp\n", stays, ""},
		"altnames are not its business": {"[Network]\nAddress=\nDHCP=no\n[Link]\nUnmanaged=yes\n", altname, ""},
	} {
		dropIn := admins("x.conf", c.content)
		culprit, line := TakenAway(unitOf(dropIn), []status.Gap{c.gap}, base)
		if line != c.line || (culprit != "") != (c.line != "") || (culprit != "" && culprit != dropIn.Path) {
			t.Errorf("%s: %q of %q, want %q", name, line, culprit, c.line)
		}
	}
	// What this daemon's own drop-in says later counts.
	if culprit, line := TakenAway(unitOf(admins("10.conf", "[DHCPv4]\nRouteMetric=100\n[Network]\nAddress=\n")), []status.Gap{route4, four}, base); culprit != "" {
		t.Errorf("a drop-in that comes before: %q of %q", line, culprit)
	}
	if culprit, line := TakenAway(unitOf(), []status.Gap{four, six, route4, route6, rule, stays, old}, base); culprit != "" {
		t.Errorf("nobody's fault: %q of %q", line, culprit)
	}
	// A drop-in of the base unit is named where it is, not where it is linked.
	linked := unitfile.Text{Path: NetworkPath("ens6") + ".d/x.conf", Source: "/etc/systemd/network/80-ec2.network.d/x.conf", Content: "[Network]\nDHCP=no\n"}
	if culprit, _ := TakenAway(unitOf(linked), []status.Gap{four}, base); culprit != linked.Source {
		t.Errorf("a drop-in of the base unit: %q", culprit)
	}
	// An administrator's base unit, without DHCP.
	replaced := unitOf()
	replaced.Texts[0].Source = "/etc/systemd/network/80-ec2.network"
	replaced.Texts[0].Content = "[Match]\nDriver=ena\n"
	if culprit, line := TakenAway(replaced, []status.Gap{four}, base); culprit != replaced.Texts[0].Source || line != "no DHCP= in [Network]" {
		t.Errorf("a base unit without DHCP: %q of %q", line, culprit)
	}
}

func TestUnmanaged(t *testing.T) {
	dropIn := admins("x.conf", "[Link]\nUnmanaged=yes\n")
	if got := unitOf(dropIn).Unmanaged(); got != dropIn.Path {
		t.Errorf("%q", got)
	}
	if got := unitOf(dropIn, admins("y.conf", "[Link]\nUnmanaged=no\n")).Unmanaged(); got != "" {
		t.Errorf("taken back: %q", got)
	}
	if got := unitOf(dropIn).Matching(); got != "" {
		t.Errorf("no [Match]: %q", got)
	}
	wide := admins("y.conf", "[Match]\nName=\n")
	if got := unitOf(dropIn, wide).Matching(); got != wide.Path {
		t.Errorf("%q", got)
	}
}

// F2: what is on disk next to files of somebody else's.
func TestGiveWay(t *testing.T) {
	paths := func(extent unitfile.Extent) []string {
		v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
		link := leased(1, &v)
		link.Extent = extent
		p := Make(input([]Link{link}, v))
		p.GiveWay()
		if len(p.ENIs) != 1 || !slices.EqualFunc(p.Files, p.ENIs[0].Files, func(a, b File) bool { return a == b }) {
			t.Errorf("%+v", p)
		}
		var names []string
		for _, f := range p.Files {
			names = append(names, path.Base(path.Dir(f.Path))+"/"+path.Base(f.Path))
		}
		return names
	}
	v := view(1, addrs("10.0.1.20"), nil)
	name := leased(1, &v).Name
	network := []string{"70-" + name + ".network.d/50-ec2netd.conf", "70-" + name + ".network.d/40-ec2netd-match.conf", "network/70-" + name + ".network"}
	link := []string{"70-" + name + ".link.d/50-ec2netd.conf", "network/70-" + name + ".link"}
	for _, c := range []struct {
		extent unitfile.Extent
		want   []string
	}{
		{unitfile.Extent{}, slices.Concat(network, link)},
		{unitfile.Extent{Taken: "/etc/systemd/network/70-" + name + ".network"}, link},
		{unitfile.Extent{NetworkHidden: "/etc/x"}, slices.Concat(network, link)},
		{unitfile.Extent{LinkHidden: "/etc/x"}, slices.Concat(network, []string{link[0], "70-" + name + ".link.d/40-ec2netd-match.conf", link[1]})},
	} {
		if got := paths(c.extent); !slices.Equal(got, c.want) {
			t.Errorf("%+v: %q, want %q", c.extent, got, c.want)
		}
	}
}
