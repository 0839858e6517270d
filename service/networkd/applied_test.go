package networkd

import (
	"fmt"
	"os"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/kernel"
)

// TestParseApplied reads what Describe of each version said of an ENI with three IPv4
// addresses, an IPv6 address and two delegated prefixes.
func TestParseApplied(t *testing.T) { // H4
	for _, version := range []string{"252", "257", "262"} {
		t.Run(version, func(t *testing.T) {
			text, err := os.ReadFile("testdata/describe-" + version + ".json")
			if err != nil {
				t.Fatal(err)
			}
			applied, err := parseApplied(text)
			if err != nil {
				t.Fatal(err)
			}
			s := applied.Snapshot
			var got []string
			for _, l := range s.Links {
				for _, a := range l.Addresses {
					got = append(got, fmt.Sprintf("%s %s", l.Name, a.Prefix))
				}
			}
			for _, r := range s.Routes {
				if r.IsDefault() || r.Table != kernel.MainTable {
					metric := ""
					if r.Table == kernel.MainTable {
						metric = fmt.Sprintf(" metric %d", r.Metric)
					}
					got = append(got, fmt.Sprintf("route %s table %d%s", r.Destination, r.Table, metric))
				}
			}
			for _, r := range s.Rules {
				got = append(got, fmt.Sprintf("rule %d from %s lookup %d %v", r.Priority, r.From, r.Table, r.Plain))
			}
			slices.Sort(got)
			got = slices.Compact(got)
			// 262 puts the lease's own routes into the table too.
			got = slices.DeleteFunc(got, func(s string) bool { return s == "route 10.0.16.1/32 table 10001" })
			want := []string{
				"ens6 10.0.16.11/20", "ens6 10.0.16.12/32", "ens6 10.0.16.13/32", "ens6 2001:db8:0:101::b/128",
				"route 0.0.0.0/0 table 10001", "route 0.0.0.0/0 table 254 metric 513",
				"route 10.0.16.0/20 table 10001", "route 2001:db8:0:101::/64 table 10001",
				"route ::/0 table 10001", "route ::/0 table 254 metric 513",
				"rule 10001 from 10.0.16.11/32 lookup 10001 true", "rule 10001 from 10.0.16.12/32 lookup 10001 true",
				"rule 10001 from 10.0.16.13/32 lookup 10001 true", "rule 10001 from 10.0.24.0/28 lookup 10001 true",
				"rule 10001 from 2001:db8:0:101:8000::/80 lookup 10001 true", "rule 10001 from 2001:db8:0:101::b/128 lookup 10001 true",
			}
			if diff := cmp.Diff(want, got); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestParseAppliedOdd: what another version may say is passed over, and the rest counts.
func TestParseAppliedOdd(t *testing.T) {
	applied, err := parseApplied([]byte(`{"Interfaces":[
		{"Index":3,"Name":7,"Addresses":[
			{"Address":"10.0.0.7","PrefixLength":32,"ConfigSource":"static","ConfigState":"configured"},
			{"Address":[10,0,0,8],"PrefixLength":"32","ConfigSource":"static","ConfigState":"configured"},
			{"Address":[10,0,0,300],"PrefixLength":32,"ConfigSource":"static","ConfigState":"configured"},
			{"Address":{"a":1},"PrefixLength":32,"ConfigSource":"static","ConfigState":"configured"},
			{"Address":[10,0,0,9],"PrefixLength":32,"ConfigSource":"foreign","ConfigState":"configured"},
			{"Address":[10,0,0,10],"PrefixLength":32,"ConfigSource":"static","ConfigState":"requesting"},
			{"Address":[10,0,0,11],"PrefixLength":32,"ConfigSource":"static","ConfigState":"configured,removing"},
			{"Address":[10,0,0,12],"PrefixLength":32,"ConfigSource":"DHCPv4","ConfigState":"configuring,configured"}]}],
		"RoutingPolicyRules":"none","Routes":[1,{"Destination":[]}]}`))
	if err != nil {
		t.Fatal(err)
	}
	var got []string
	s := applied.Snapshot
	for _, a := range s.Links[0].Addresses {
		got = append(got, a.Prefix.String())
	}
	if diff := cmp.Diff([]string{"10.0.0.7/32", "10.0.0.8/0", "10.0.0.12/32"}, got); diff != "" || s.Links[0].Index != 3 {
		t.Errorf("link %d: %s", s.Links[0].Index, diff)
	}
	for _, text := range []string{"", "{", "[]x"} {
		if _, err := parseApplied([]byte(text)); err == nil {
			t.Errorf("%q is not JSON, and is read", text)
		}
	}
}

// TestParseLeases: 262 tells what DHCPv4 leases have, in bytes.
func TestParseLeases(t *testing.T) {
	option := func(tag int, data string) string { return fmt.Sprintf(`{"tag":%d,"data":"%x"}`, tag, data) }
	lease := func(index int, options ...string) string {
		return fmt.Sprintf(`{"Index":%d,"DHCPv4Client":{"Lease":{"Message":{"op":2,"options":[%s]}}}}`, index, strings.Join(options, ","))
	}
	applied, err := parseApplied([]byte(`{"Interfaces":[` + strings.Join([]string{
		lease(2, option(1, "\xff\xff\xf0\x00"), option(15, "ec2.internal"), option(26, "\x23\x29")),
		lease(3, option(15, "a.example b.example\x00"), option(26, "\x23")),
		lease(4, option(1, "\xff\xff\xf0\x00"), option(15, "a.example\nDNS=192.0.2.1"), `{"tag":26,"data":"none"}`),
		`{"Index":5,"DHCPv4Client":{"Lease":{"Hostname":"host"}}}`,
	}, ",") + `]}`))
	if err != nil {
		t.Fatal(err)
	}
	want := map[int]Lease{2: {Known: true, MTU: 9001, Domains: "ec2.internal"}, 3: {Known: true, Domains: "a.example b.example"}, 4: {Known: true}}
	if diff := cmp.Diff(want, applied.Leases); diff != "" {
		t.Error(diff)
	}
}
