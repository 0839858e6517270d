package compare

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
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// side shows an item as a line: M, R, N and K are the places that have it, ? those that
// are not known.
func side(i state.Item) string {
	column := func(letter string, a state.Answer) string {
		return map[state.Answer]string{state.Yes: letter, state.No: "-", state.Untold: "?"}[a]
	}
	line := column("M", i.Metadata) + column("R", state.Told(i.Rendered)) + column("N", i.Networkd) + column("K", state.Told(i.Kernel)) +
		" " + string(i.Kind) + " " + i.Value
	if i.Reason != "" {
		line += ": " + i.Reason
	}
	return line
}

func sides(items []state.Item) []string {
	var lines []string
	for _, i := range items {
		lines = append(lines, side(i))
	}
	return lines
}

// whole is a kernel, or a networkd, that has all that an ENI shall have.
func whole(eni *plan.ENI) *kernel.Snapshot {
	s := &kernel.Snapshot{}
	link := eni.Link.Link
	link.Addresses = nil
	for _, a := range eni.Want.Addresses {
		link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(a, a.BitLen()), Global: true})
	}
	s.Links = []kernel.Link{link}
	add := func(to netip.Prefix, table, metric int) {
		s.Routes = append(s.Routes, kernel.Route{Link: link.Index, Destination: to, Table: table, Metric: metric})
	}
	for i, use := range []bool{eni.Want.IPv4, eni.Want.IPv6} {
		to := []netip.Prefix{netip.MustParsePrefix("0.0.0.0/0"), netip.MustParsePrefix("::/0")}[i]
		if use {
			add(to, kernel.MainTable, eni.Want.Metric)
		}
		if use && eni.Want.Table != 0 {
			add(to, eni.Want.Table, 0)
		}
	}
	if eni.Want.Table != 0 {
		for _, subnet := range slices.Concat(eni.Applies.IPv4Subnets, eni.Applies.IPv6Subnets) {
			add(subnet, eni.Want.Table, 0)
		}
	}
	for _, prefix := range eni.Want.Local {
		s.Routes = append(s.Routes, kernel.Route{Link: link.Index, Destination: prefix, Local: true})
	}
	for _, rule := range eni.Want.PolicyRules() {
		s.Rules = append(s.Rules, kernel.Rule{
			Priority: rule.Priority, Table: rule.Table, From: rule.From, Plain: !rule.Guard, Guard: rule.Guard, Group: rule.Group,
			Protocol: kernel.ProtocolStatic, IPv4: rule.From.Addr().Is4(), Mark: rule.Mark.Value, Mask: rule.Mark.Mask,
		})
	}
	return s
}

// known is a secondary ENI after its lease, with all that it shall have on its link.
func known(t *testing.T, sections ...config.Section) (eni plan.ENI, snapshot *kernel.Snapshot) {
	t.Helper()
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	v.IPv4Prefixes = prefixes("10.0.24.0/28")
	in := input([]plan.Link{leased(1, &v)}, v)
	in.Sections = sections
	eni = plan.Make(in).ENIs[0]
	snapshot = whole(&eni)
	eni.Link.Addresses = snapshot.Links[0].Addresses
	eni.Link.Altnames = eni.Want.Altnames
	return eni, snapshot
}

// TestENI sets the four places side by side (H4).
func TestENI(t *testing.T) {
	eni, snapshot := known(t)
	all := []string{
		"MRNK address 10.0.1.20", "MRNK address 10.0.1.21", "MRNK address 2001:db8:1::20",
		"MRNK route 0.0.0.0/0 table 10001", "MRNK route 0.0.0.0/0 metric 513", "MRNK route 10.0.1.0/24 table 10001",
		"MRNK route ::/0 table 10001", "MRNK route ::/0 metric 513", "MRNK route 2001:db8:1::/64 table 10001",
		"MRNK rule from 10.0.1.0/24 lookup 254 suppress_prefixlength 7 suppress_ifgroup 3778",
		"MRNK rule from 2001:db8:1::/64 lookup 254 suppress_prefixlength 7 suppress_ifgroup 3778",
		"MRNK rule from 10.0.24.0/28 lookup 254 suppress_prefixlength 7 suppress_ifgroup 3778",
		"MRNK rule from 10.0.1.20/32 lookup 10001", "MRNK rule from 10.0.1.21/32 lookup 10001",
		"MRNK rule from 10.0.24.0/28 lookup 10001", "MRNK rule from 2001:db8:1::20/128 lookup 10001",
		"MR?K altname eni-0123456789abcdef1", "MR?K altname device-number-1",
	}
	result := against(&eni, snapshot, snapshot)
	if diff := cmp.Diff(all, sides(result.Items(status.Reason{}))); diff != "" {
		t.Error(diff)
	}
	if len(result.Missing)+len(result.Late)+len(result.Unwanted) > 0 || result.Disputed {
		t.Errorf("%q, %q, %q", result.Missing, result.Late, result.Unwanted)
	}
}

// networkd has not told: that is no gap (H4).
func TestNetworkdUntold(t *testing.T) {
	eni, snapshot := known(t)
	result := against(&eni, nil, snapshot)
	for _, i := range result.Items(status.Reason{}) {
		if i.Networkd != state.Untold || i.Reason != "" {
			t.Errorf("networkd was not asked: %s", side(i))
		}
	}
}

// difference is a change of an ENI that has all that it shall have.
type difference struct {
	change func(eni *plan.ENI, applied, snapshot *kernel.Snapshot)
	// wants are the lines with a reason.
	wants []string
}

// check compares the ENI after the change. 10.0.1.99 was taken out of its drop-in.
func (d *difference) check(t *testing.T) {
	eni, snapshot := known(t)
	applied := whole(&eni)
	d.change(&eni, applied, snapshot)
	result := against(&eni, applied, snapshot, addrs("10.0.1.99")...)
	var got []string
	for _, i := range result.Items(status.Reason{}) {
		if i.Reason != "" {
			got = append(got, side(i))
		}
	}
	if diff := cmp.Diff(d.wants, got); diff != "" {
		t.Error(diff)
	}
}

// H4: of what is missing the reason says who has not brought it.
func TestMissing(t *testing.T) {
	for name, test := range map[string]difference{
		"lost in the kernel": {
			func(eni *plan.ENI, _, snapshot *kernel.Snapshot) {
				eni.Link.Addresses = eni.Link.Addresses[:1]
				snapshot.Rules = slices.DeleteFunc(slices.Clone(snapshot.Rules), func(r kernel.Rule) bool {
					return r.From.String() == "10.0.1.20/32" || r.From.String() == "10.0.1.0/24"
				})
			},
			[]string{
				"MRN- address 10.0.1.21: networkd has asked the kernel for it, or somebody else has removed it",
				"MRN- address 2001:db8:1::20: networkd has asked the kernel for it, or somebody else has removed it",
				"MRN- rule from 10.0.1.0/24 lookup 254 suppress_prefixlength 7 suppress_ifgroup 3778: networkd has asked the kernel for it, or somebody else has removed it",
				"MRN- rule from 10.0.1.20/32 lookup 10001: networkd has asked the kernel for it, or somebody else has removed it",
			},
		},
		"not brought": {
			func(eni *plan.ENI, applied, _ *kernel.Snapshot) {
				eni.Link.Addresses = eni.Link.Addresses[2:]
				applied.Links[0].Addresses = applied.Links[0].Addresses[2:]
			},
			[]string{
				"MR-- address 10.0.1.20: DHCP has not brought it",
				"MR-- address 10.0.1.21: networkd has not brought it",
			},
		},
		"late": {
			func(_ *plan.ENI, applied, snapshot *kernel.Snapshot) {
				for _, s := range []*kernel.Snapshot{applied, snapshot} {
					s.Routes = slices.DeleteFunc(s.Routes, func(r kernel.Route) bool { return r.Destination.String() == "::/0" && r.Metric != 0 })
				}
			},
			[]string{"MR-- route ::/0 metric 513: it comes with the next router advertisement; the one in the ENI's own table does until then"},
		},
		"tentative": {
			func(eni *plan.ENI, applied, _ *kernel.Snapshot) {
				eni.Link.Addresses[2].Tentative = true
				applied.Links[0].Addresses = applied.Links[0].Addresses[:2]
			},
			[]string{"MR-- address 2001:db8:1::20: the kernel is looking whether anybody else has it (duplicate address detection)"},
		},
		"no names": {
			func(eni *plan.ENI, _, _ *kernel.Snapshot) { eni.Link.Altnames = nil },
			[]string{"MR?- altname eni-0123456789abcdef1: it has not been added yet", "MR?- altname device-number-1: it has not been added yet"},
		},
	} {
		t.Run(name, test.check)
	}
}

// H4: of what is there without the metadata, or without networkd, the reason says whose it may be.
func TestNotOurs(t *testing.T) {
	for name, test := range map[string]difference{
		"nobody's": {
			func(_ *plan.ENI, applied, _ *kernel.Snapshot) { applied.Links[0].Addresses = nil },
			[]string{
				"MR-K address 10.0.1.20: networkd does not count it as its own: it is at work on it, or somebody else has added it too",
				"MR-K address 10.0.1.21: networkd does not count it as its own: it is at work on it, or somebody else has added it too",
				"MR-K address 2001:db8:1::20: networkd does not count it as its own: it is at work on it, or somebody else has added it too",
			},
		},
		"too much": {
			func(eni *plan.ENI, applied, snapshot *kernel.Snapshot) {
				for _, a := range []string{"10.0.1.99", "10.0.1.77", "10.0.1.88", "169.254.7.7", "fe80::7"} {
					address := netip.MustParseAddr(a)
					entry := kernel.Address{Prefix: netip.PrefixFrom(address, address.BitLen()), Global: true}
					eni.Link.Addresses = append(eni.Link.Addresses, entry)
					if a == "10.0.1.88" {
						applied.Links[0].Addresses = append(applied.Links[0].Addresses, entry)
					}
				}
				eni.Link.DHCPMetrics = append(eni.Link.DHCPMetrics, 30000)
				rule := snapshot.Rules[len(snapshot.Rules)-1]
				rule.From = netip.MustParsePrefix("10.0.1.99/32")
				snapshot.Rules = append(snapshot.Rules, rule)
			},
			[]string{
				"---K address 10.0.1.99: the metadata has withdrawn it; networkd has not taken it away",
				"---K address 10.0.1.77: not of the metadata: somebody else has added it; it is left alone",
				"--NK address 10.0.1.88: not of the metadata: from DHCP, a router or a file of somebody else's; it is left alone",
				"---K route 0.0.0.0/0 metric 30000: the ENI has no such route any more; networkd has not taken it away",
				"---K rule from 10.0.1.99/32 lookup 10001: the metadata has withdrawn it; networkd has not taken it away",
			},
		},
	} {
		t.Run(name, test.check)
	}
}

// H4: a file that takes no default route of the lease leaves the address and the MTU to it all the
// same.
func TestWithoutGateway(t *testing.T) {
	for name, change := range map[string]func(in *plan.Input){
		"DefaultRoute=no": func(in *plan.Input) { in.Sections = []config.Section{{DefaultRoute: new(bool)}} },
		"port of a VRF":   func(in *plan.Input) { in.Links[0].Master, in.Links[0].MasterKind = "blue", "vrf" },
	} {
		t.Run(name, func(t *testing.T) {
			v := view(1, addrs("10.0.1.20"), nil)
			link := leased(1, &v)
			link.DHCPMetrics, link.Lease, link.LeaseMTU, link.MTU = nil, true, 9001, 9001
			in := input([]plan.Link{link}, v)
			change(&in)
			eni := plan.Make(in).ENIs[0]
			if files := rendered(&eni); files.Network.DHCPv4.UseGateway != dropin.No {
				t.Fatalf("the file takes the default route:\n%s", files.Network.Render())
			}
			snapshot := whole(&eni)
			result := against(&eni, snapshot, snapshot)
			var found []string
			for _, item := range result.Items(status.Reason{}) {
				if item.Kind == state.ItemAddress || item.Kind == state.ItemMTU {
					found = append(found, side(item))
				}
			}
			if diff := cmp.Diff([]string{"MRNK address 10.0.1.20", "MR?K mtu 9001"}, found); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestUnknown: what is configured of an ENI whose metadata is not known, or that is
// not managed, is shown as well, with the reason of the ENI.
func TestUnknown(t *testing.T) {
	eni, snapshot := known(t)
	files := rendered(&eni)
	in := input([]plan.Link{eni.Link})
	in.Links[0].Current = files.Network
	pending := plan.Make(in).ENIs[0]
	result := ENI(&pending, Actual{Rendered: files, Applied: snapshot, Kernel: snapshot, Ours: anyRule})
	if lines := sides(result.Items(status.Reason{Code: status.MetadataUnread})); len(lines) == 0 ||
		!slices.Contains(lines, "?RNK address 10.0.1.21: the metadata is not complete; what was configured stays") {
		t.Errorf("before the metadata:\n%s", strings.Join(lines, "\n"))
	}
	if len(result.Missing)+len(result.Unwanted) > 0 {
		t.Errorf("missing %q, unwanted %q", result.Missing, result.Unwanted)
	}

	configured := snapshot.Links[0].Addresses
	unmanaged, snapshot := known(t, config.Section{Managed: new(bool)})
	if unmanaged.Settings.Managed {
		t.Fatal("the section does not hold")
	}
	unmanaged.Link.Addresses = configured[:1]
	result = against(&unmanaged, snapshot, snapshot)
	lines := sides(result.Items(status.Reason{Code: status.ManagedNo, File: "FILE"}))
	for _, want := range []string{
		"M--K address 10.0.1.20: FILE says Managed=no", "M--- address 10.0.1.21: FILE says Managed=no",
	} {
		if !slices.Contains(lines, want) {
			t.Errorf("no %q in\n%s", want, strings.Join(lines, "\n"))
		}
	}
	if len(result.Missing) > 0 {
		t.Errorf("missing of an ENI that is not managed: %q", result.Missing)
	}
}

// BenchmarkENI is what the comparison of 15 ENIs of 50 addresses costs.
func BenchmarkENI(b *testing.B) {
	var enis []plan.ENI
	snapshot := &kernel.Snapshot{}
	for n := range 15 {
		var ipv4 []netip.Addr
		for a := range 50 {
			ipv4 = append(ipv4, netip.MustParseAddr(fmt.Sprintf("10.0.%d.%d", n, a+10)))
		}
		v := view(n+1, ipv4, nil)
		link := leased(n+1, &v)
		eni := plan.Make(input([]plan.Link{link}, v)).ENIs[0]
		s := whole(&eni)
		eni.Link.Addresses = s.Links[0].Addresses
		enis = append(enis, eni)
		snapshot.Links, snapshot.Routes, snapshot.Rules = append(snapshot.Links, s.Links...), append(snapshot.Routes, s.Routes...), append(snapshot.Rules, s.Rules...)
	}
	for b.Loop() {
		for i := range enis {
			result := against(&enis[i], snapshot, snapshot)
			_ = result.Items(status.Reason{})
		}
	}
}

// A12: addresses that are left to others are no gap, whether they are on the link or not,
// unless networkd has still to take them away.
func TestLeftToOthers(t *testing.T) {
	no := false
	eni, snapshot := known(t, config.Section{SecondaryAddresses: &no})
	of := func(withdrawn []netip.Addr) (item state.Item, unwanted []string) {
		result := against(&eni, snapshot, snapshot, withdrawn...)
		if missing := result.Missing; len(missing) > 0 {
			t.Errorf("missing: %q", missing)
		}
		for _, i := range result.Items(status.Reason{}) {
			switch {
			case i.Value == "10.0.1.21":
				item = i
			case i.Reason != "":
				t.Error(side(i))
			}
		}
		return item, status.Names(result.Unwanted)
	}
	if item, unwanted := of(nil); side(item) != "M--- address 10.0.1.21" || item.NotApplicable != "left to others by SecondaryAddresses=no" || len(unwanted) > 0 {
		t.Errorf("%+v, unwanted %q", item, unwanted)
	}
	if rule := netip.MustParsePrefix("10.0.1.21/32"); !slices.Contains(eni.Want.Rules, rule) {
		t.Errorf("no rule of %s: %v", rule, eni.Want.Rules)
	}
	eni.Link.Addresses = append(eni.Link.Addresses, kernel.Address{Prefix: netip.MustParsePrefix("10.0.1.21/32"), Global: true})
	if item, unwanted := of(nil); item.NotApplicable != "left to others by SecondaryAddresses=no" || len(unwanted) > 0 {
		t.Errorf("somebody has it: %+v, unwanted %q", item, unwanted)
	}
	if item, unwanted := of(addrs("10.0.1.21")); item.NotApplicable != "" || len(unwanted) != 1 || !strings.Contains(item.Reason, "SecondaryAddresses=no") {
		t.Errorf("networkd has it still: %+v, unwanted %q", item, unwanted)
	}
}

// TestMark: rules by firewall mark, of each family (B12).
func TestMark(t *testing.T) {
	section := config.Section{FirewallMark: &dropin.Mark{Value: 2, Mask: 0xff}}
	eni, snapshot := known(t, section)
	const ipv4, ipv6 = "rule from 0.0.0.0/0 fwmark 0x2/0xff lookup 10001", "rule from ::/0 fwmark 0x2/0xff lookup 10001"
	marks := func(result Result) []string {
		return slices.DeleteFunc(sides(result.Items(status.Reason{})), func(line string) bool { return !strings.Contains(line, "fwmark") })
	}
	check := func(what string, result Result, wants ...string) {
		t.Helper()
		if diff := cmp.Diff(wants, marks(result)); diff != "" {
			t.Errorf("%s: %s", what, diff)
		}
	}
	check("all is there", against(&eni, snapshot, snapshot), "MRNK "+ipv4, "MRNK "+ipv6)

	less := *snapshot
	less.Rules = slices.DeleteFunc(slices.Clone(snapshot.Rules), func(r kernel.Rule) bool { return r.Mark != 0 && r.IPv4 })
	result := against(&eni, &less, &less)
	check("one is missing", result, "MR-- "+ipv4+": networkd has not brought it", "MRNK "+ipv6)
	if !slices.Equal(status.Names(result.Missing), []string{ipv4}) || !result.Lost.Own {
		t.Errorf("%q, %+v", result.Missing, result.Lost)
	}
	less.Rules = slices.Clone(snapshot.Rules)
	for i := range less.Rules {
		less.Rules[i].Mask |= 0xff00 // another rule
	}
	result = against(&eni, nil, &less)
	if missing := status.Names(result.Missing); !slices.Contains(missing, ipv4) || !slices.Contains(missing, ipv6) {
		t.Errorf("%q", missing)
	}

	plain, _ := known(t)
	result = against(&plain, snapshot, snapshot)
	const left = ": the configuration has no such FirewallMark=; networkd has not taken it away"
	check("not configured any more", result, "--NK "+ipv4+left, "--NK "+ipv6+left)
	if !slices.Equal(status.Names(result.Unwanted), []string{ipv4, ipv6}) {
		t.Errorf("%q", result.Unwanted)
	}
	others := ENI(&plain, Actual{Rendered: rendered(&plain), Applied: snapshot, Kernel: snapshot, Ours: func(plan.Rule) bool { return false }})
	if lines := marks(others); len(lines) > 0 {
		t.Errorf("not configured, and of others: %q", lines)
	}

	v := view(1, addrs("10.0.1.20"), addrs("2001:db8:1::20"))
	in := input([]plan.Link{leased(1, &v)}, v)
	in.Links[0].IPv6, in.Sections = kernel.IPv6OffLink, []config.Section{section}
	eni = plan.Make(in).ENIs[0] // A13
	now := whole(&eni)
	check("a link without IPv6", against(&eni, now, now), "MRNK "+ipv4, "M-?- "+ipv6)
}

func TestGaps(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	link := leased(1, &v)
	eni := plan.Make(input([]plan.Link{link}, v)).ENIs[0]
	compare := func(snapshot *kernel.Snapshot, withdrawn ...netip.Addr) Result {
		// An administrator's rule is no gap, whatever its numbers.
		recorded := func(rule plan.Rule) bool { return rule.From != netip.MustParsePrefix("10.0.1.98/32") }
		return ENI(&eni, Actual{Rendered: rendered(&eni), Kernel: snapshot, Withdrawn: withdrawn, Ours: recorded})
	}
	nothing := compare(&kernel.Snapshot{})
	missing := status.Names(nothing.Missing)
	want := []string{
		"address 10.0.1.21", "default route (IPv4) in table 10001", "default route (IPv4) with metric 513", "route to 10.0.1.0/24 in table 10001",
		"rule from 10.0.1.0/24 lookup 254 suppress_prefixlength 7 suppress_ifgroup 3778",
		"rule from 10.0.1.20/32 lookup 10001", "rule from 10.0.1.21/32 lookup 10001",
		"altname eni-0123456789abcdef1", "altname device-number-1",
	}
	if diff := cmp.Diff(want, missing); diff != "" {
		t.Error(diff)
	}
	// All there, a rule too many, and one that is somebody else's.
	link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.MustParsePrefix("10.0.1.21/32"), Global: true})
	link.Altnames = []string{"device-number-1", "eni-0123456789abcdef1"}
	eni = plan.Make(input([]plan.Link{link}, v)).ENIs[0]
	snapshot := &kernel.Snapshot{
		Routes: []kernel.Route{
			{Link: 3, Table: kernel.MainTable, Metric: 513, Destination: netip.MustParsePrefix("0.0.0.0/0")},
			{Link: 3, Table: 10001, Destination: netip.MustParsePrefix("0.0.0.0/0")},
			{Link: 3, Table: 10001, Destination: netip.MustParsePrefix("10.0.1.0/24")},
		},
	}
	for _, from := range []string{"10.0.1.20/32", "10.0.1.21/32", "10.0.1.98/32", "10.0.1.99/32"} {
		snapshot.Rules = append(snapshot.Rules, kernel.Rule{Priority: 10001, Table: 10001, From: netip.MustParsePrefix(from), Plain: true, Protocol: kernel.ProtocolStatic})
	}
	snapshot.Rules = append(snapshot.Rules, kernel.Rule{Priority: 10001, Table: 10001, Protocol: kernel.ProtocolStatic},
		kernel.Rule{Priority: 9999, Table: kernel.MainTable, From: netip.MustParsePrefix("10.0.1.0/24"), Guard: true, Group: plan.Group, Protocol: kernel.ProtocolStatic})
	gap := compare(snapshot, addrs("10.0.1.20")...)
	if diff := cmp.Diff([]string{"rule from 10.0.1.99/32 lookup 10001"}, status.Names(gap.Unwanted)); diff != "" || len(gap.Missing)+len(gap.Late) > 0 {
		t.Errorf("%s missing %q, late %q", diff, gap.Missing, gap.Late)
	}
	// One of IPv4 comes with the lease, not late.
	bare := *snapshot
	bare.Routes = snapshot.Routes[1:]
	if gap := compare(&bare); !slices.Contains(status.Names(gap.Missing), "default route (IPv4) with metric 513") || len(gap.Late) > 0 {
		t.Errorf("without a default route in the main table: %+v", gap)
	}
	// An IPv6 default route of the main table comes with an advertisement.
	v.IPv6, v.IPv6Subnets = addrs("2001:db8:1::20"), prefixes("2001:db8:1::/64")
	link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.MustParsePrefix("2001:db8:1::20/128"), Global: true})
	eni = plan.Make(input([]plan.Link{link}, v)).ENIs[0]
	late := "default route (IPv6) with metric 513"
	if gap := compare(snapshot); !slices.Contains(status.Names(gap.Missing), late) || len(gap.Late) > 0 {
		t.Errorf("without one in its own table: %+v", gap)
	}
	snapshot.Routes = append(snapshot.Routes, kernel.Route{Link: 3, Table: 10001, Metric: plan.UnknownMetric, Destination: netip.MustParsePrefix("::/0")})
	if gap := compare(snapshot); slices.Contains(status.Names(gap.Missing), late) || !slices.Equal(status.Names(gap.Late), []string{late}) {
		t.Errorf("with one in its own table: %+v", gap)
	}
}
