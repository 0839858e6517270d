package plan

import (
	"encoding/json"
	"path"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/metadata"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// FuzzUnits: whatever stands in a unit file, this daemon's or somebody else's, reading it
// ends, and what is taken from it is an address, a number or a rule that is read again as
// the same one (D4, F2).
func FuzzUnits(f *testing.F) {
	first, second := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	for _, file := range Make(input([]Link{leased(0, &first), leased(1, &second)}, first, second)).Files {
		f.Add(file.Content, "[Match]\nName=!ens7 *\nDriver=\n[Link]\nUnmanaged=yes\n")
	}
	f.Add("[RoutingPolicyRule]\nFrom=fe80::1%1\nTable=main\nPriority=-1\nSuppressPrefixLength=0\n", "[Match]\nName=[\n[Network]\nAddress=\nDHCP=no\n")
	f.Add("RouteMetric=99999999999999999999\nMACAddress=\nAddress=10.0.0.1/33\nGateway=::1%x\nRouteMetric=1024", "[Match\n]\n=\n\\\n[]\n\\")
	f.Fuzz(func(t *testing.T, own, other string) {
		for _, content := range []string{own, other} {
			checkRead(t, content)
		}
		unit := unitfile.Unit{Path: NetworkPath("ens6"), Texts: []unitfile.Text{
			{Path: NetworkPath("ens6"), Source: base, Content: "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n"},
			{Path: NetworkDropIn("ens6"), Source: NetworkDropIn("ens6"), Content: own},
			{Path: "/etc/x.conf", Source: "/etc/x.conf", Content: other},
		}}
		link := leased(1, &second)
		match, culprit := unit.Match(link.Matchable())
		if match < unitfile.NoMatch || match > unitfile.Matches || (match == unitfile.Matches && culprit != "") {
			t.Errorf("match %d because of %q", match, culprit)
		}
		takes, line := TakenAway(unit, []status.Gap{
			{Kind: status.Address, Family: status.IPv4, Value: "10.0.1.21"}, {Kind: status.DefaultRoute, Family: status.IPv6, Metric: 513},
			{Kind: status.Address, Family: status.IPv4, Value: "10.0.1.9", StillThere: true},
		}, base)
		if (takes == "") != (line == "") || strings.ContainsAny(line, "\n") {
			t.Errorf("%q by %q", line, takes)
		}
		for _, file := range []string{culprit, takes, unit.Unmanaged(), unit.Matching()} {
			if file != "" && !slices.ContainsFunc(unit.Texts, func(t unitfile.Text) bool { return t.Source == file }) {
				t.Errorf("%q is no file of the unit", file)
			}
		}
	})
}

func checkRead(t *testing.T, content string) {
	t.Helper()
	n := dropin.ParseNetwork(content)
	for _, own := range OwnAddresses(n) {
		if address := own.Address; !address.IsValid() || address.Zone() != "" || strings.Contains(own.MAC, "\n") {
			t.Errorf("address %+v", own)
		}
	}
	if numbers, ok := NumbersIn(n); ok {
		if numbers.Card < 0 || numbers.Card > highest || numbers.Index < 0 {
			t.Errorf("numbers %+v", numbers)
		}
		again, ok := NumbersIn(&dropin.Network{DHCPv4: dropin.DHCPv4{RouteMetric: numbers.Metric()}})
		if !ok || again != numbers {
			t.Errorf("numbers %+v became %+v", numbers, again)
		}
	}
	if metric, ok := pendingMetricIn(n); ok && metric <= UnknownMetric {
		t.Errorf("metric %d of an ENI that is not known", metric)
	}
	rules := RulesIn(content)
	again := &dropin.Network{}
	for _, rule := range rules {
		again.Rules = append(again.Rules, rule.section())
	}
	if again := RulesIn(again.Render()); !slices.Equal(again, rules) {
		t.Errorf("rules %v became %v", rules, again)
	}
	for _, rule := range rules {
		if !rule.From.IsValid() || rule.From != rule.From.Masked() || rule.Table == 0 {
			t.Errorf("rule %+v", rule)
		}
	}
}

// FuzzViews: a view that was kept in a file, and that is not refused, makes files in their
// place with nothing in them that could end a line (D4); so does a hint.
func FuzzViews(f *testing.F) {
	known := view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	known.IPv4Prefixes, known.IPv6Prefixes = prefixes("10.0.1.240/28"), prefixes("2001:db8:1:0:1::/80")
	text, err := json.Marshal(known)
	if err != nil {
		f.Fatal(err)
	}
	f.Add(text)
	f.Add([]byte(strings.Replace(string(text), "10.0.1.20", "fe80::1%ens5\\n[Match]", 1)))
	f.Add([]byte(`{"mac":"02:00:00:00:01:10","id":"eni-0123456789abcdef0","deviceIndex":-1}`))
	f.Fuzz(func(t *testing.T, text []byte) {
		var kept metadata.ENI
		if json.Unmarshal(text, &kept) != nil || kept.Check() != nil {
			return
		}
		again, err := json.Marshal(kept)
		var second metadata.ENI
		if err != nil || json.Unmarshal(again, &second) != nil || second.Check() != nil || !second.Equal(&kept) {
			t.Errorf("%s became %s: %v", text, again, err)
		}
		in := input([]Link{leased(1, &kept)}, kept)
		in.PrimaryMAC = ""
		hinted := in
		hinted.Views, hinted.Hint = nil, &Hint{PrimaryMAC: kept.MAC, Views: in.Views, StaticIPv6: true}
		for _, in := range []Input{in, hinted} {
			for _, file := range Make(in).Files {
				if path.Clean(file.Path) != file.Path || !strings.HasPrefix(file.Path, Directory+"/70-ens6.") {
					t.Errorf("a file at %q", file.Path)
				}
				checkRead(t, file.Content)
			}
		}
	})
}
