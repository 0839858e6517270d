package plan

import (
	"net/netip"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
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
	var want []Rule
	for _, from := range []string{"10.0.1.20/32", "10.0.1.21/32", "10.0.1.64/28", "2001:db8:1::20/128"} {
		local := Rule{From: netip.MustParsePrefix(from), Table: kernel.MainTable, Priority: 9999, Guard: true, Group: Group}
		want = append(want, local, ruleOf(from))
	}
	compare := cmp.Comparer(func(a, b netip.Prefix) bool { return a == b })
	got := RulesOf(made.Files)
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
		return Rule{From: netip.MustParsePrefix(from), Table: 10001, Mark: config.Mark{Value: 7, Mask: mask}}
	}
	if diff := cmp.Diff([]Rule{
		ruleOf("10.0.1.20/32"), guarded,
		marked("0.0.0.0/0", 255), marked("10.0.1.20/32", wholeMark), marked("0.0.0.0/0", wholeMark), marked("::/0", wholeMark),
	}, RulesIn(text), compare); diff != "" {
		t.Error(diff)
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
		r.From, r.Priority, r.Mark, r.Mask = netip.Prefix{}, markPriority, 7, wholeMark
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
