package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
)

// oldNetworkd is one that drops what is dynamic with a reload, newNetworkd one that does
// not.
var oldNetworkd, newNetworkd = Networkd{Running: true}, Networkd{Running: true, Varlink: true}

// E2: one place decides how IPv6 outlives a reload, by what was observed.
func TestChoose(t *testing.T) {
	for _, test := range []struct {
		networkd Networkd
		want     Technique
	}{
		{Networkd{}, Undecided},
		{Networkd{Varlink: true}, Undecided}, // it is there from an earlier run
		{oldNetworkd, Static},
		{newNetworkd, Dynamic},
	} {
		if got, why := Choose(test.networkd); got != test.want || !strings.Contains(why, "systemd-networkd") {
			t.Errorf("%+v: %v, want %v: %s", test.networkd, got, test.want, why)
		}
	}
}

// dualStack is the primary ENI after DHCP and DHCPv6, with a router.
func dualStack(v *metadata.ENI) Link {
	link := leased(0, v)
	link.Done = true
	link.Routers = addrs("fe80::1")
	link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(v.IPv6[0], 128), Global: true, Dynamic: true})
	return link
}

// keepless is the drop-in of an ENI without what a new networkd is told besides (A8).
func keepless(eni *ENI) string {
	return strings.Replace(eni.Files[0].Content, "KeepConfiguration=yes\n", "", 1)
}

// E1, E2: on an old networkd the primary's IPv6 is dynamic until its drop-in must change,
// then goes static in two steps, and stays so; on a new one it never does.
func TestPrimaryIPv6(t *testing.T) {
	v := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10"))
	link := dualStack(&v)
	plan := func(networkd Networkd) ENI {
		in := input([]Link{link}, v)
		in.Networkd = networkd
		return Make(in).ENIs[0]
	}
	bare := plan(Networkd{})
	link.Current = bare.DropIn
	for _, networkd := range []Networkd{{}, oldNetworkd, newNetworkd} {
		if e := plan(networkd); keepless(&e) != bare.Files[0].Content || e.Want.StaticIPv6 || e.Held {
			t.Errorf("%+v: with nothing to change:\n%s", networkd, e.Files[0].Content)
		}
	}
	v.IPv4 = append(v.IPv4, netip.MustParseAddr("10.0.1.11"))
	link.LeaseOverdue = true // it has been there for long
	for _, networkd := range []Networkd{{}, newNetworkd} {
		if e := plan(networkd); e.Want.StaticIPv6 || e.Held || !slices.Equal(e.Want.Static, v.IPv4[1:]) {
			t.Errorf("%+v: %+v", networkd, e.Want)
		}
	}
	first := plan(oldNetworkd)
	if !first.Want.StaticIPv6 || !first.Held || !slices.Equal(first.Want.Static, v.IPv4[1:]) {
		t.Errorf("the lease has not ended: held %v, %+v", first.Held, first.Want)
	}
	golden(t, Plan{Files: first.Files[:1]})
	link.Current, link.LeaseOverdue = current(&first), false
	if e := plan(oldNetworkd); !e.Held || e.Files[0].Content != first.Files[0].Content {
		t.Errorf("the lease is ending: held %v\n%s", e.Held, e.Files[0].Content)
	}
	link.LeaseOverdue = true
	if e := plan(oldNetworkd); e.Held || len(e.Want.Static) != 2 {
		t.Errorf("it does not end: held %v, %+v", e.Held, e.Want)
	}
	link.LeaseOverdue = false
	link.Addresses = slices.DeleteFunc(link.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == v.IPv6[0] })
	second := plan(oldNetworkd)
	if second.Held || !slices.Equal(second.Want.Static, []netip.Addr{v.IPv4[1], v.IPv6[0]}) {
		t.Errorf("the lease has ended: held %v, %+v", second.Held, second.Want)
	}
	// It stays so, whatever networkd comes, and while the router is silent.
	link.Current = current(&second)
	link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(v.IPv6[0], 128), Global: true})
	for _, routers := range [][]netip.Addr{nil, addrs("fe80::1"), addrs("fe80::1", "fe80::2")} {
		link.Routers = routers
		for _, networkd := range []Networkd{{}, oldNetworkd, newNetworkd} {
			before := second
			link.Current = current(&before)
			if keepsAll(networkd) {
				// It takes it over in its own way, once.
				before = plan(networkd)
				link.Current = current(&before)
				if content := before.Files[0].Content; !before.Want.StaticIPv6 || !strings.Contains(content, "\nUseAddress=no\n") {
					t.Errorf("%+v, routers %v:\n%s", networkd, routers, content)
				}
			}
			if e := plan(networkd); e.Files[0].Content != before.Files[0].Content || e.Held {
				t.Errorf("%+v, routers %v:\n%s", networkd, routers, e.Files[0].Content)
			}
		}
	}
	link.Current = current(&second)
	// With the next change all routers are written, and a router that is the only one
	// at once.
	v.IPv4 = v.IPv4[:1]
	if e := plan(oldNetworkd); !slices.Equal(e.Want.Routers, addrs("fe80::2", "fe80::1")) {
		t.Errorf("two routers: %v", e.Want.Routers)
	}
	v.IPv4 = addrs("10.0.1.10", "10.0.1.11")
	link.Routers = addrs("fe80::2")
	if e := plan(oldNetworkd); strings.Contains(e.Files[0].Content, "fe80::1") || !strings.Contains(e.Files[0].Content, "\nGateway=fe80::2\n") {
		t.Errorf("another router:\n%s", e.Files[0].Content)
	}
}

// A11, A2, E2: the first of several addresses is the source and the others are deprecated, which
// is not left to DHCPv6; their order says nothing. A networkd that keeps leases over a reload
// takes the addresses over in one, and they stay static when only one is left.
func TestSource(t *testing.T) {
	v := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::12", "2001:db8:1::11", "2001:db8:1::13"))
	link := dualStack(&v)
	for _, address := range v.IPv6[1:] {
		link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(address, 128), Global: true, Dynamic: true})
	}
	plan := func(networkd Networkd, ipv6 ...string) ENI {
		v := v
		v.IPv6 = addrs(ipv6...)
		in := input([]Link{link}, v)
		in.Networkd = networkd
		return Make(in).ENIs[0]
	}
	deprecated := func(e ENI) (found []netip.Addr) {
		for section := range strings.SplitSeq(e.Files[0].Content, "\n\n") {
			if strings.Contains(section, "\nPreferredLifetime=0") {
				found = append(found, dropin.ParseNetwork(section).Singles()...)
			}
		}
		return found
	}
	link.Current = plan(newNetworkd, "2001:db8:1::12").DropIn
	first := plan(newNetworkd, "2001:db8:1::12", "2001:db8:1::11", "2001:db8:1::13")
	golden(t, Plan{Files: first.Files[:1]})
	if first.Held {
		t.Error("addresses wait for the lease to end")
	}
	link.Current = current(&first)
	if e := plan(newNetworkd, "2001:db8:1::12", "2001:db8:1::13", "2001:db8:1::11"); e.Files[0].Content != first.Files[0].Content {
		t.Errorf("others permuted:\n%s", e.Files[0].Content)
	}
	if got := deprecated(plan(newNetworkd, "2001:db8:1::13", "2001:db8:1::11", "2001:db8:1::12")); !slices.Equal(got, addrs("2001:db8:1::11", "2001:db8:1::12")) {
		t.Errorf("another one is the first: %v are deprecated", got)
	}
	if e := plan(newNetworkd, "2001:db8:1::12"); !slices.Equal(e.Want.Static, addrs("2001:db8:1::12")) || len(deprecated(e)) > 0 {
		t.Errorf("one is left:\n%s", e.Files[0].Content)
	}
	// 252 has them once the lease has ended.
	link.Current, link.Done, link.LeaseOverdue = nil, true, true
	if e := plan(oldNetworkd, "2001:db8:1::12", "2001:db8:1::11"); !e.Held || !e.Want.StaticIPv6 {
		t.Errorf("252, with the lease:\n%s", e.Files[0].Content)
	}
	link.Addresses = link.Addresses[:1]
	if got := deprecated(plan(oldNetworkd, "2001:db8:1::12", "2001:db8:1::11")); !slices.Equal(got, addrs("2001:db8:1::11")) {
		t.Errorf("252: %v are deprecated", got)
	}
}

// E1: a hint makes the files right before the metadata answers, the primary's IPv6
// included, and does no harm where it is wrong.
func TestHint(t *testing.T) {
	primary, second, third := view(0, addrs("10.0.1.10", "10.0.1.11"), addrs("2001:db8:1::10")), view(1, addrs("10.0.1.20", "10.0.1.21"), nil), view(2, addrs("10.0.1.30"), nil)
	hint := Hint{PrimaryMAC: primary.MAC, Views: map[string]metadata.ENI{primary.MAC: primary, second.MAC: second},
		Routers: map[string][]netip.Addr{primary.MAC: addrs("fe80::1")}, StaticIPv6: true}
	bare := func(views ...*metadata.ENI) []Link {
		var links []Link
		for _, v := range views {
			link := leased(v.DeviceIndex, v)
			link.Addresses, link.DHCPMetrics = nil, nil
			links = append(links, link)
		}
		return links
	}
	in := Input{Links: bare(&primary, &second, &third), Base: base, Hint: &hint}
	p := Make(in)
	golden(t, p)
	for _, e := range p.ENIs[:2] {
		if !e.Hinted || !e.Known {
			t.Errorf("%+v", e)
		}
	}
	// With the lease nothing is added yet, but for a metadata service that says nothing.
	in.Links[0] = leased(0, &primary)
	in.Links[0].Current = current(&p.ENIs[0])
	if e := Make(in).ENIs[0]; !e.Held || e.Files[0].Content != p.ENIs[0].Files[0].Content {
		t.Errorf("before it is confirmed:\n%s", e.Files[0].Content)
	}
	in.Links[0].LeaseOverdue = true
	if e := Make(in).ENIs[0]; e.Held || len(e.Want.Static) != 2 {
		t.Errorf("never confirmed: %+v", e.Want)
	}
	in.Links[0].LeaseOverdue = false

	// An address that was assigned while it was off waits for the lease, and its rule with
	// it: that is one reload, not two. What else is new does not wait.
	more := second
	more.IPv4 = addrs("10.0.1.20", "10.0.1.21", "10.0.1.22")
	booting := in
	booting.PrimaryMAC, booting.Views = primary.MAC, map[string]metadata.ENI{primary.MAC: primary, more.MAC: more}
	booting.Links = slices.Clone(in.Links)
	booting.Links[1].Current = current(&p.ENIs[1])
	if e := Make(booting).ENIs[1]; !e.Held || e.Files[0].Content != p.ENIs[1].Files[0].Content {
		t.Errorf("before the lease:\n%s", e.Files[0].Content)
	}
	more.IPv4Prefixes = prefixes("10.0.1.64/28")
	booting.Views[more.MAC] = more
	if e := Make(booting).ENIs[1]; !slices.Contains(e.Want.Rules, netip.MustParsePrefix("10.0.1.22/32")) || !strings.Contains(e.Files[0].Content, "From=10.0.1.64/28") {
		t.Errorf("a prefix before the lease:\n%s", e.Files[0].Content)
	}
	booting.Links[1] = leased(1, &second)
	booting.Links[1].Current = current(&p.ENIs[1])
	if e := Make(booting).ENIs[1]; e.Held || !strings.Contains(e.Files[0].Content, "From=10.0.1.22/32") {
		t.Errorf("with the lease:\n%s", e.Files[0].Content)
	}

	byName := func(in Input) map[string]ENI {
		out := make(map[string]ENI)
		for _, e := range Make(in).ENIs {
			out[e.Link.Name] = e
		}
		return out
	}
	// What the metadata tells takes its place, one by one; numbers that it gave away are
	// no other ENI's.
	in.PrimaryMAC = primary.MAC
	moved := third
	moved.DeviceIndex = 1
	in.Views = map[string]metadata.ENI{moved.MAC: moved}
	if got := byName(in); !got["ens5"].Hinted || got["ens6"].Known || got["ens7"].Hinted || got["ens7"].Numbers.Index != 1 {
		t.Errorf("exchanged while off: %+v", got)
	}
	// An image of the instance, and an ENI of it that was moved to another one.
	in.Views = nil
	for what, change := range map[string]func(*Input){
		"the primary is not there":           func(in *Input) { in.PrimaryMAC, in.Links = "", bare(&second, &third) },
		"the metadata names another primary": func(in *Input) { in.PrimaryMAC = third.MAC },
		"nothing is known of the last boot":  func(in *Input) { in.Hint = nil },
	} {
		in := in
		change(&in)
		for name, e := range byName(in) {
			if e.Hinted || e.Known {
				t.Errorf("%s: %s: %+v", what, name, e)
			}
		}
	}
}
