package plan

import (
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/config"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/unitfile"
)

const wholeMark = 1<<32 - 1

func ruleOf(from string) Rule {
	return Rule{From: netip.MustParsePrefix(from), Table: 10001, Priority: 10001}
}

// What stands in a generated file is read as it was meant, and what an administrator
// writes the same in other words.
func TestRulesIn(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	v.IPv4Prefixes = prefixes("10.0.1.64/28")
	made := Make(input([]Link{leased(1, &v)}, v))
	local := func(subnet string) Rule {
		return Rule{From: netip.MustParsePrefix(subnet), Table: kernel.MainTable, Priority: 9999, Guard: true, Group: Group}
	}
	want := []Rule{local("10.0.1.0/24"), local("2001:db8:1::/64"), ruleOf("10.0.1.20/32"), ruleOf("10.0.1.21/32"), ruleOf("10.0.1.64/28"), ruleOf("2001:db8:1::20/128")}
	compare := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	got := made.Rules()
	if len(got) != len(want) {
		t.Fatalf("%+v", got)
	}
	for i, rule := range want {
		if diff := cmp.Diff(rule, got[i], compare); diff != "" {
			t.Error(diff)
		}
	}
	text := `[Match]
Name=ens6
[RoutingPolicyRule]
# From=10.0.1.1
From = 10.0.1.20
Table=10001
Priority=10001
[RoutingPolicyRule]
From=10.0.1.20
Table=main
Priority=10000
SuppressPrefixLength=0
[RoutingPolicyRule]
FirewallMark=7/255
Table=10001
[RoutingPolicyRule]
FirewallMark=0x7
From=10.0.1.20
Table=10001
[RoutingPolicyRule]
Family=both
FirewallMark=7
Table=10001
[RoutingPolicyRule]
FirewallMark=0
From=10.0.1.20
Table=10001
[RoutingPolicyRule]
Family=ipv6
Table=10001
[RoutingPolicyRule]
From=nonsense
Table=10001
[RoutingPolicyRule]
To=10.0.1.20
Table=10001
[RoutingPolicyRule]
From=10.0.1.20
Table=main
SuppressPrefixLength=8
[RoutingPolicyRule]
From=10.0.1.20
Table=main
SuppressInterfaceGroup=3778
[Network]
DHCP=yes`
	guarded := Rule{From: netip.MustParsePrefix("10.0.1.20/32"), Table: kernel.MainTable, Priority: 10000, Guard: true}
	marked := func(from string, mask uint32) Rule {
		return Rule{From: netip.MustParsePrefix(from), Table: 10001, Mark: dropin.Mark{Value: 7, Mask: mask}}
	}
	if diff := cmp.Diff([]Rule{
		ruleOf("10.0.1.20/32"), guarded,
		marked("0.0.0.0/0", 255), marked("10.0.1.20/32", wholeMark), marked("0.0.0.0/0", wholeMark), marked("::/0", wholeMark),
	}, RulesIn(text), compare); diff != "" {
		t.Error(diff)
	}
}

// H4: a rule of another protocol, or of a kind that no drop-in has, is not this daemon's, and can be
// compared with one that is.
func TestRuleOf(t *testing.T) {
	own := ruleOf("10.0.1.99/32")
	there := kernel.Rule{From: own.From, Table: 10001, Priority: 10001, Protocol: kernel.ProtocolStatic, Plain: true, IPv4: true}
	all, marked := netip.MustParsePrefix("::/0"), dropin.Mark{Value: 7, Mask: wholeMark}
	for name, c := range map[string]struct {
		change func(*kernel.Rule)
		want   Rule
		ours   bool
	}{
		"networkd's":                {func(*kernel.Rule) {}, own, true},
		"of another protocol":       {func(r *kernel.Rule) { r.Protocol = 3 }, own, false},
		"neither plain nor a guard": {func(r *kernel.Rule) { r.Plain = false }, own, false},
		"a guard": {func(r *kernel.Rule) { r.Plain, r.Guard, r.Group = false, true, Group },
			Rule{From: own.From, Table: 10001, Priority: 10001, Guard: true, Group: Group}, true},
		"by mark, of another protocol": {func(r *kernel.Rule) {
			r.From, r.IPv4, r.Mark, r.Mask, r.Protocol = netip.Prefix{}, false, 7, wholeMark, 3
		}, Rule{From: all, Table: 10001, Priority: 10001, Mark: marked}, false},
	} {
		k := there
		c.change(&k)
		if rule, ours := RuleOf(&k); rule != c.want || ours != c.ours {
			t.Errorf("%s: %+v, %v; want %+v, %v", name, rule, ours, c.want, c.ours)
		}
	}
}

// F1: only what is surely this daemon's is an orphan.
func TestOrphans(t *testing.T) {
	own := ruleOf("10.0.1.99/32")
	there := kernel.Rule{From: own.From, Table: 10001, Priority: 10001, Protocol: kernel.ProtocolStatic, Plain: true, IPv4: true}
	with := func(change func(*kernel.Rule)) kernel.Rule {
		rule := there
		change(&rule)
		return rule
	}
	guards := with(func(r *kernel.Rule) { r.Plain, r.Guard = false, true })
	local := with(func(r *kernel.Rule) { r.Plain, r.Guard, r.Group = false, true, Group })
	guarded, _ := RuleOf(&guards)
	grouped, _ := RuleOf(&local)
	byMark := with(func(r *kernel.Rule) {
		r.From, r.Priority, r.Mark, r.Mask = netip.Prefix{}, MarkPriority, 7, wholeMark
	})
	marked, _ := RuleOf(&byMark)
	for name, c := range map[string]struct {
		record, wanted []Rule
		rules          []kernel.Rule
		orphan         bool
	}{
		"forgotten":                 {[]Rule{own}, nil, []kernel.Rule{there}, true},
		"wanted":                    {[]Rule{own}, []Rule{own}, []kernel.Rule{there}, false},
		"never in a file":           {nil, nil, []kernel.Rule{there}, false},
		"gone":                      {[]Rule{own}, nil, nil, false},
		"of another source":         {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.From = netip.MustParsePrefix("10.0.1.98/32") })}, false},
		"of another family":         {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.From = netip.MustParsePrefix("::/32") })}, false},
		"to another table":          {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Table = 2 })}, false},
		"of another priority":       {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Priority = 1536 })}, false},
		"not by networkd":           {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Protocol = 3 })}, false},
		"with a mark":               {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Plain = false })}, false},
		"behind one with a mark":    {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Plain = false }), there}, false},
		"before one with a mark":    {[]Rule{own}, nil, []kernel.Rule{there, with(func(r *kernel.Rule) { r.Plain = false })}, true},
		"behind one with a group":   {[]Rule{guarded}, nil, []kernel.Rule{local, guards}, false},
		"before one with a group":   {[]Rule{guarded}, nil, []kernel.Rule{guards, local}, true},
		"a local one":               {[]Rule{grouped}, nil, []kernel.Rule{guards, local}, true},
		"a local one of others":     {[]Rule{guarded}, nil, []kernel.Rule{local}, false},
		"by mark":                   {[]Rule{marked}, nil, []kernel.Rule{byMark}, true},
		"by another mark":           {[]Rule{marked}, nil, []kernel.Rule{with(func(r *kernel.Rule) { *r = byMark; r.Mark = 8 })}, false},
		"by a mark of others":       {[]Rule{marked}, nil, []kernel.Rule{with(func(r *kernel.Rule) { *r = byMark; r.Mask = 255 })}, false},
		"by mark, and IPv6":         {[]Rule{marked}, nil, []kernel.Rule{with(func(r *kernel.Rule) { *r = byMark; r.IPv4 = false })}, false},
		"by mark, behind a source":  {[]Rule{marked}, nil, []kernel.Rule{with(func(r *kernel.Rule) { *r = byMark; r.From, r.Plain = there.From, false }), byMark}, false},
		"a guard, where it is none": {[]Rule{own}, nil, []kernel.Rule{with(func(r *kernel.Rule) { r.Plain, r.Guard = false, true })}, false},
	} {
		if got := Orphans(c.record, c.wanted, c.rules); (len(got) == 1 && got[0] == c.record[0]) != c.orphan || (!c.orphan && len(got) > 0) {
			t.Errorf("%s: %+v", name, got)
		}
	}
}

// B9: no rules let local networks go first while an ENI's link counts as one of them.
func TestUngrouped(t *testing.T) {
	first, second := view(1, addrs("10.0.1.20"), nil), view(2, addrs("10.0.1.30"), nil)
	const unit = "/etc/systemd/network/10-netplan-ens7.network"
	no := []config.Section{{Names: []string{"ens7"}, Managed: new(bool)}}
	for name, c := range map[string]struct {
		link     Link // as which the second is
		sections []config.Section
		local    bool
	}{
		"all well":                           {local: true},
		"on the base unit":                   {link: Link{OnBase: true}, local: true},
		"on its way":                         {link: Link{OffBase: true}, local: true},
		"left alone for good":                {link: Link{OffBase: true, Elsewhere: true}},
		"shadowed":                           {link: Link{OffBase: true, OnOthers: true}},
		"shadowed, in the group":             {link: Link{Link: kernel.Link{Group: Group}, OffBase: true, OnOthers: true}, local: true},
		"another unit in its place":          {link: Link{Extent: unitfile.Extent{Taken: unit}}},
		"another drop-in in its place":       {link: Link{Extent: unitfile.Extent{NetworkHidden: unit}}},
		"not managed, on the base unit":      {link: Link{OnBase: true}, sections: no, local: true},
		"not managed":                        {link: Link{OffBase: true}, sections: no},
		"not managed, in the group, by hand": {link: Link{Link: kernel.Link{Group: Group}, OffBase: true}, sections: no, local: true},
	} {
		link := leased(2, &second)
		link.Group, link.OnBase, link.OffBase, link.OnOthers, link.Elsewhere = c.link.Group, c.link.OnBase, c.link.OffBase, c.link.OnOthers, c.link.Elsewhere
		link.Taken, link.NetworkHidden = c.link.Taken, c.link.NetworkHidden
		in := input([]Link{leased(1, &first), link}, first, second)
		in.Sections = c.sections
		local := slices.ContainsFunc(RulesOf(Make(in).ENIs[0].DropIn), func(r Rule) bool { return r.Group == Group })
		if local != c.local {
			t.Errorf("%s: rules for local networks: %v", name, local)
		}
	}
}

// D9, B9: where systemd-imdsd's rule leads through the lock of the metadata service, no rule for a
// subnet goes before it: the primary's address is in it.
func TestLocked(t *testing.T) {
	v := view(1, addrs("10.0.1.20"), nil)
	in := input([]Link{leased(1, &v)}, v)
	in.Locked = Locked([]kernel.Rule{{Priority: 32766, Table: kernel.MainTable}, {Priority: 32765, Table: imdsMark, Mark: imdsMark, Mask: wholeMark}})
	locked := Make(in)
	for _, rule := range locked.Rules() {
		if rule.From != netip.MustParsePrefix("10.0.1.20/32") {
			t.Errorf("%+v", rule)
		}
	}
	if Locked([]kernel.Rule{{Priority: 9998, Table: 10001, Mark: 7, Mask: wholeMark}}) {
		t.Error("any mark counts as the lock's")
	}
}

// F13: under a VPN that takes everything along, replies from each ENI's address leave by that ENI,
// and what EC2 has at link-local addresses is reached.
func TestTunnel(t *testing.T) {
	v, primary := view(1, addrs("10.0.1.20"), nil), view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10"))
	for name, c := range map[string]struct {
		tunnel int
		// The rules of the primary ENI and of another one: source, table and priority.
		primary, other []string
		services       bool
	}{
		"none": {
			0, nil, []string{"10.0.1.0/24 254 9999", "10.0.1.20/32 10001 10001"}, false,
		},
		"before ours": {
			32764,
			[]string{"10.0.1.10/32 254 9999", "10.0.1.10/32 10000 10000", "2001:db8:1::10/128 254 9999", "2001:db8:1::10/128 10000 10000"},
			[]string{"10.0.1.0/24 254 9999", "10.0.1.20/32 10001 10001"},
			true,
		},
		"after ours": {
			9998,
			[]string{
				"10.0.1.10/32 254 9999", "10.0.1.10/32 10000 10000", "2001:db8:1::10/128 254 9999", "2001:db8:1::10/128 10000 10000",
				"10.0.1.10/32 254 9995", "10.0.1.10/32 10000 9996", "2001:db8:1::10/128 254 9995", "2001:db8:1::10/128 10000 9996",
			},
			[]string{"10.0.1.0/24 254 9999", "10.0.1.20/32 10001 10001", "10.0.1.0/24 254 9995", "10.0.1.20/32 10001 9996"},
			true,
		},
		"no room": {
			3,
			[]string{"10.0.1.10/32 254 9999", "10.0.1.10/32 10000 10000", "2001:db8:1::10/128 254 9999", "2001:db8:1::10/128 10000 10000"},
			[]string{"10.0.1.0/24 254 9999", "10.0.1.20/32 10001 10001"},
			true,
		},
	} {
		in := input([]Link{leased(0, &primary), leased(1, &v)}, primary, v)
		in.PrimaryMAC, in.Tunnel = primary.MAC, c.tunnel
		made := Make(in)
		for i, want := range [][]string{c.primary, c.other} {
			var got []string
			content := networkDropIn(&made.ENIs[i]).Render()
			for _, rule := range RulesIn(content) {
				got = append(got, fmt.Sprintf("%s %d %d", rule.From, rule.Table, rule.Priority))
			}
			if !slices.Equal(got, want) {
				t.Errorf("%s: ENI %d has rules %q, want %q", name, i, got, want)
			}
			services := strings.Contains(content, "[Route]\nDestination=169.254.169.0/24\nGateway=_dhcp4\nMetric=512\n") &&
				strings.Contains(content, "[Route]\nDestination=fd00:ec2::/32\nGateway=_ipv6ra\nMetric=512\n")
			if services != (c.services && i == 0) {
				t.Errorf("%s: ENI %d:\n%s", name, i, content)
			}
		}
	}
}
