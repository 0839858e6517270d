package dropin

import (
	"go/build"
	"net/netip"
	"os"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
	"pgregory.net/rapid"
)

var compare = cmp.Options{
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.AllowUnexported(Network{}),
}

// one draws one of the given values or the zero value.
func one[T comparable](t *rapid.T, what string, values ...T) T {
	var absent T
	return rapid.SampledFrom(append(values, absent)).Draw(t, what)
}

func anySwitch(t *rapid.T, what string) Switch { return one(t, what, Yes, No) }

func anyNumber(t *rapid.T, what string) int { return rapid.IntRange(0, 1<<31-1).Draw(t, what) }

func anyAddress(t *rapid.T, what string) netip.Addr {
	if rapid.Bool().Draw(t, what+" is IPv4") {
		return netip.AddrFrom4([4]byte(rapid.SliceOfN(rapid.Byte(), 4, 4).Draw(t, what)))
	}
	return netip.AddrFrom16([16]byte(rapid.SliceOfN(rapid.Byte(), 16, 16).Draw(t, what)))
}

func anyPrefix(t *rapid.T, what string) netip.Prefix {
	address := anyAddress(t, what)
	return netip.PrefixFrom(address, rapid.IntRange(0, address.BitLen()).Draw(t, what+" length"))
}

// anyWord draws a text that fits in one line.
func anyWord(t *rapid.T, what string) string {
	return rapid.StringMatching(`([a-zA-Z0-9:._-]([a-zA-Z0-9:._=#;! -]{0,10}[a-zA-Z0-9])?)?`).Draw(t, what)
}

func anyWords(t *rapid.T, what string) []string {
	return rapid.SliceOfN(rapid.StringMatching(`[a-z0-9-]{1,8}`), 0, 3).Draw(t, what)
}

func anyRoute(t *rapid.T) Route {
	r := Route{
		GatewayOnLink: anySwitch(t, "GatewayOnLink"), Scope: one(t, "Scope", ScopeLink), Type: one(t, "Type", TypeLocal),
		Table: anyNumber(t, "Table"), Metric: rapid.IntRange(1, 1<<30).Draw(t, "Metric"),
	}
	if rapid.Bool().Draw(t, "destination") {
		r.Destination = anyPrefix(t, "Destination")
	}
	switch rapid.IntRange(0, 2).Draw(t, "gateway") {
	case 1:
		r.Gateway.Address = anyAddress(t, "Gateway")
	case 2:
		r.Gateway.Learned = rapid.SampledFrom([]LearnedGateway{FromDHCPv4, FromRA}).Draw(t, "Gateway")
	}
	return r
}

func anyNetwork(t *rapid.T) *Network {
	n := &Network{
		Match: NetworkMatch{anyWord(t, "PermanentMACAddress"), anyWord(t, "MACAddress"), anyWord(t, "Name")},
		Link:  LinkSection{anyNumber(t, "Group"), one(t, "ActivationPolicy", Manual, "up"), anyNumber(t, "MTUBytes")},
		Network: NetworkSection{
			KeepMaster: anySwitch(t, "KeepMaster"), LinkLocalAddressing: one(t, "LinkLocalAddressing", LinkLocalNo, LinkLocalIPv6, "ipv4"),
			Domains: anyWord(t, "Domains"), KeepConfiguration: one(t, "KeepConfiguration", KeepYes, "dhcp"), DNSDefaultRoute: anySwitch(t, "DNSDefaultRoute"),
			DHCP: one(t, "DHCP", DHCPIPv4, "yes"), IPv6AcceptRA: anySwitch(t, "IPv6AcceptRA"),
		},
		DHCPv4: DHCPv4{
			anyNumber(t, "RouteMetric"), anySwitch(t, "UseGateway"), anySwitch(t, "RoutesToDNS"), anySwitch(t, "RoutesToNTP"),
			anySwitch(t, "UseMTU"), anySwitch(t, "UseDomains"), anySwitch(t, "UseDNS"),
		},
		DHCPv6:       DHCPv6{anySwitch(t, "UseDNS"), anySwitch(t, "UseAddress"), anySwitch(t, "WithoutRA")},
		IPv6AcceptRA: IPv6AcceptRA{anyNumber(t, "RouteMetric"), anySwitch(t, "UseDNS"), anySwitch(t, "UseGateway"), anySwitch(t, "DHCPv6Client")},
	}
	for range rapid.IntRange(0, 3).Draw(t, "servers") {
		n.Network.DNS = append(n.Network.DNS, anyAddress(t, "DNS"))
	}
	for range rapid.IntRange(0, 3).Draw(t, "addresses") {
		a := Address{
			Address: anyPrefix(t, "Address"), AddPrefixRoute: anySwitch(t, "AddPrefixRoute"),
			DuplicateAddressDetection: one(t, "DuplicateAddressDetection", DetectNone, "both"), PreferredLifetime: one(t, "PreferredLifetime", Deprecated, "forever"),
		}
		if !a.Address.IsSingleIP() && rapid.Bool().Draw(t, "subnet") {
			a.Subnet = anyRoute(t)
			a.Subnet.Destination = a.Address.Masked()
		}
		n.Addresses = append(n.Addresses, a)
	}
	for range rapid.IntRange(0, 4).Draw(t, "routes") {
		r := anyRoute(t)
		if last := len(n.Addresses) - 1; last < 0 || len(n.Routes) > 0 || !r.toSubnet(&n.Addresses[last]) {
			n.Routes = append(n.Routes, r)
		}
	}
	for range rapid.IntRange(0, 4).Draw(t, "rules") {
		r := RoutingPolicyRule{
			Family: one(t, "Family", IPv4, IPv6, Both), Table: rapid.IntRange(1, 1<<30).Draw(t, "Table"), Priority: anyNumber(t, "Priority"),
			SuppressPrefixLength: one(t, "SuppressPrefixLength", LengthOf(0), LengthOf(7)), SuppressInterfaceGroup: anyNumber(t, "SuppressInterfaceGroup"),
		}
		if rapid.Bool().Draw(t, "source") {
			r.From = anyPrefix(t, "From").Masked()
		}
		if rapid.Bool().Draw(t, "mark") {
			value := rapid.Uint32Range(1, 1<<32-1).Draw(t, "FirewallMark")
			r.FirewallMark = Mark{value, value | rapid.Uint32().Draw(t, "mask")}
		}
		n.Rules = append(n.Rules, r)
	}
	return n
}

// Parsing the text of any value returns that value.
func TestRoundTrip(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		network := anyNetwork(t)
		text := network.Render()
		back := ParseNetwork(text)
		if diff := cmp.Diff(network, back, compare); diff != "" || !back.Equal(network) || !Ours(text) {
			t.Fatalf("%s\n%s", diff, text)
		}
		link := &Link{LinkMatch{anyWord(t, "PermanentMACAddress"), anyWord(t, "MACAddress"), anyWord(t, "Driver")}, anyWords(t, "AlternativeName")}
		hold := Hold{anyWords(t, "Driver"), anyWord(t, "Property"), anyWords(t, "Name")}
		base, start := Base{one(t, "KeepConfiguration", KeepYes)}, Start{one(t, "KeepConfiguration", KeepYes)}
		leaveOut := LeaveOut{anyWords(t, "Driver")}
		for _, of := range []struct{ value, back any }{
			{link, ParseLink(link.Render())},
			{network.Match, ParseNetworkMatch(network.Match.Render())},
			{link.Match, ParseLinkMatch(link.Match.Render())},
			{hold, ParseHold(hold.Render())},
			{base, ParseBase(base.Render())},
			{start, ParseStart(start.Render())},
			{leaveOut, ParseLeaveOut(leaveOut.Render("10-netplan-all.network"))},
		} {
			if diff := cmp.Diff(of.value, of.back, compare, cmp.Transformer("none", func(s []string) string { return strings.Join(s, "\n") })); diff != "" {
				t.Fatal(diff)
			}
		}
	})
}

// Each change of a value changes its text, and the value is no longer equal.
func TestEqual(t *testing.T) {
	rapid.Check(t, func(t *rapid.T) {
		a := anyNetwork(t)
		b := ParseNetwork(a.Render())
		mix(t, reflect.ValueOf(b).Elem(), reflect.ValueOf(anyNetwork(t)).Elem())
		if a.Equal(b) != (a.Render() == b.Render()) {
			t.Fatalf("equal: %v\n%s\n%s", a.Equal(b), a.Render(), b.Render())
		}
	})
	n := &Network{}
	if n.Equal(nil) || (*Network)(nil).Equal(n) || !(*Network)(nil).Equal(nil) {
		t.Error("nothing is equal to something")
	}
}

// mix replaces one field of a value by that of another; for nested structs it replaces one of their
// fields.
func mix(t *rapid.T, value, other reflect.Value) {
	var fields []int
	for i := range value.NumField() {
		if value.Type().Field(i).IsExported() {
			fields = append(fields, i)
		}
	}
	i := rapid.SampledFrom(fields).Draw(t, "field")
	if field := value.Field(i); field.Kind() == reflect.Struct && field.Type().PkgPath() == value.Type().PkgPath() {
		mix(t, field, other.Field(i))
	} else {
		field.Set(other.Field(i))
	}
}

// The known parts of a file of another version are parsed, and the file is not equal.
func TestOtherVersion(t *testing.T) {
	n := &Network{Match: NetworkMatch{"", "02:00:00:00:01:11", "ens6"}, Network: NetworkSection{KeepConfiguration: KeepYes}, DHCPv4: DHCPv4{RouteMetric: 513},
		Addresses: []Address{{Address: netip.MustParsePrefix("10.0.1.21/32"), AddPrefixRoute: No}},
		Rules:     []RoutingPolicyRule{{From: netip.MustParsePrefix("10.0.1.21/32"), Table: 10001, Priority: 10001}}}
	for what, text := range map[string]string{
		"another comment":  "# Written by ec2netd, some other version.\n" + n.Render()[strings.Index(n.Render(), "\n\n")+1:],
		"an unknown key":   strings.Replace(n.Render(), "RouteMetric=513\n", "RouteMetric=513\nUseSomething=yes\n", 1),
		"a section":        n.Render() + "\n[NextHop]\nId=7\n",
		"another order":    "[RoutingPolicyRule]\nPriority=10001\nTable=10001\nFrom=10.0.1.21\n[Address]\nAddPrefixRoute=false\nAddress=10.0.1.21/32\n[DHCPv4]\nRouteMetric=513\n[Network]\nKeepConfiguration=yes\n[Match]\nName=ens6\nMACAddress=02:00:00:00:01:11\n",
		"spaces":           strings.ReplaceAll(n.Render(), "=", " = "),
		"a twisted value":  n.Render() + "\n[Address]\nAddress=10.0.1.22/33\n\n[Route]\nTable=all\n\n[RoutingPolicyRule]\nFrom=here\nTable=10001\n",
		"control letters":  n.Render() + "\n[Network]\nDomains=a\x01b\n",
		"no end":           strings.TrimSuffix(n.Render(), "\n"),
		"an earlier value": strings.Replace(n.Render(), "RouteMetric=513\n", "RouteMetric=512\nRouteMetric=513\n", 1),
	} {
		got := ParseNetwork(text)
		if got.Equal(n) || !got.otherwise {
			t.Errorf("%s: it counts as the same", what)
		}
		if got.otherwise = false; !got.Equal(n) {
			t.Errorf("%s: %s", what, cmp.Diff(n, got, compare))
		}
	}
	if Ours("[Match]\nName=ens6\n") || Ours("") || !Ours("# Written by ec2netd, some other version.\n") {
		t.Error("whose a file is")
	}
}

// D4: no value can end its line.
func TestControlCharacters(t *testing.T) {
	defer func() {
		if recover() == nil {
			t.Error("a newline got into a unit file")
		}
	}()
	(&Network{Match: NetworkMatch{Name: "a\n[Match]"}}).Render()
}

// The methods of a drop-in report its content, and nil has none.
func TestSays(t *testing.T) {
	n := ParseNetwork(`[Match]
MACAddress=02:00:00:00:01:11
[Link]
ActivationPolicy=manual
[Network]
KeepConfiguration=yes
LinkLocalAddressing=no
Domains=a.example b.example
[IPv6AcceptRA]
RouteMetric=511
[DHCPv4]
RouteMetric=512
[DHCPv6]
UseAddress=no
[Address]
Address=10.0.1.20/24
[Route]
Destination=10.0.1.0/24
Metric=512
[Address]
Address=10.0.1.21/32
[Route]
Gateway=fe80::1
[Route]
Gateway=_ipv6ra
[Route]
Gateway=fe80::1
Table=10000
[Route]
Gateway=_dhcp4
Table=10000
`)
	if n.MACAddress() != "02:00:00:00:01:11" || n.RouteMetric() != 512 || n.Domains() != "a.example b.example" || !n.KeepsAll() || !n.KeepsDown() || !n.WithoutIPv6() || !n.WithoutDHCPv6() {
		t.Errorf("%+v", n)
	}
	one, first := netip.MustParseAddr("10.0.1.21"), netip.MustParseAddr("10.0.1.20")
	if !n.HasSingle(one) || n.HasSingle(first) || !n.Has(netip.MustParsePrefix("10.0.1.20/24")) || !slices.Equal(n.Singles(), []netip.Addr{one}) {
		t.Errorf("addresses %+v", n.Addresses)
	}
	if !slices.Equal(n.Routers(), []netip.Addr{netip.MustParseAddr("fe80::1")}) || n.Addresses[0].Subnet.Metric != 512 {
		t.Errorf("routes %+v", n.Routes)
	}
	to := make([]string, 0, len(n.Routes))
	for i := range n.Routes {
		to = append(to, n.Routes[i].To().String())
	}
	if got := strings.Join(to, " "); got != "::/0 ::/0 ::/0 0.0.0.0/0" {
		t.Errorf("routes to %s", got)
	}
	var none *Network
	if none.MACAddress() != "" || none.RouteMetric() != 0 || none.Domains() != "" || none.KeepsAll() || none.KeepsDown() || none.WithoutIPv6() || none.WithoutDHCPv6() ||
		none.HasSingle(one) || none.Singles() != nil || none.Routers() != nil {
		t.Error("nil says something")
	}
	if l := ParseLink(""); l.MACAddress() != "" || l.Driver() != "" || l.Names() != nil {
		t.Error("nil says something")
	}
}

// The golden files of package plan are generated by the daemon: parsing and rendering them loses
// nothing.
func goldens(tb testing.TB) map[string]string {
	tb.Helper()
	names, err := filepath.Glob("../plan/testdata/*.golden")
	if err != nil || len(names) == 0 {
		tb.Fatal("no golden files", err)
	}
	found := make(map[string]string)
	for _, name := range names {
		content, err := os.ReadFile(name)
		if err != nil {
			tb.Fatal(err)
		}
		for part := range strings.SplitSeq("\n"+string(content), "\n==> ") {
			file, text, ok := strings.Cut(part, "\n")
			if text, _, _ = strings.Cut(text, "\n--> "); ok && Ours(text) {
				found[filepath.Base(name)+" "+file] = strings.TrimRight(text, "\n") + "\n"
			}
		}
	}
	return found
}

func TestGenerated(t *testing.T) {
	kinds := make(map[string]int)
	for file, text := range goldens(t) {
		dir, name := filepath.Split(file)
		var kind, again string
		switch dir = filepath.Base(dir); {
		case strings.HasPrefix(dir, "10-"):
			leaveOut := ParseLeaveOut(text)
			kind, again = "leave-out", leaveOut.Render(strings.TrimSuffix(dir, ".d"))
		case name == FileName && strings.HasPrefix(dir, "80-"):
			base := ParseBase(text)
			kind, again = "base", base.Render()
		case name == FileName && strings.HasSuffix(dir, ".link.d"):
			kind, again = "link", ParseLink(text).Render()
		case name == FileName:
			n := ParseNetwork(text)
			if kind, again = "network", n.Render(); n.otherwise {
				t.Errorf("%s says more than is understood", file)
			}
		case strings.HasSuffix(dir, ".network.d"):
			match := ParseNetworkMatch(text)
			kind, again = "match", match.Render()
		case strings.HasSuffix(dir, ".link.d"):
			match := ParseLinkMatch(text)
			kind, again = "link match", match.Render()
		default:
			hold := ParseHold(text)
			kind, again = "hold", hold.Render()
		}
		kinds[kind]++
		if diff := cmp.Diff(text, again); diff != "" {
			t.Errorf("%s (%s): %s", file, kind, diff)
		}
	}
	t.Log(kinds)
	if kinds["network"] == 0 || kinds["link"] == 0 || kinds["leave-out"] == 0 {
		t.Errorf("%v", kinds)
	}
}

// The text of each kind that the golden files do not cover. A changed text makes networkd
// reconfigure links when the daemon is upgraded.
func TestTexts(t *testing.T) {
	hold := Hold{Drivers: []string{"ena", "vif"}, Property: "EC2NETD_RUNS=1", Except: []string{"ens5"}}
	base, start := Base{KeepYes}, Start{KeepYes}
	network, link := NetworkMatch{"", "02:00:00:00:01:11", "ens6"}, LinkMatch{"", "02:00:00:00:01:11", "ena"}
	leaveOut := LeaveOut{[]string{"ena", "vif"}}
	for kind, text := range map[string]struct{ got, want string }{
		"hold": {hold.Render(), `# Written by ec2netd, see ec2netd(8). An ENI that is attached waits here for its own
# unit, for a moment: so it is configured once. 80-ec2netd.rules sets the property of
# links that come while ec2netd runs, so this has no effect on others.

[Match]
Driver=ena vif
Property=EC2NETD_RUNS=1
Name=!ens5

[Link]
Unmanaged=yes
`},
		"base": {base.Render(), `# Written by ec2netd, see ec2netd(8). Changes here are lost: make a drop-in
# in /etc/systemd/network/80-ec2.network.d/ instead, with a name that sorts after this.

[Network]
KeepConfiguration=yes
`},
		"start": {start.Render(), `# Written by ec2netd, see ec2netd(8), for the start of networkd: it goes when the lease
# is back.

[Network]
KeepConfiguration=yes
`},
		"network": {network.Render(), `# Written by ec2netd, see ec2netd(8): for one link only, whatever becomes of
# 50-ec2netd.conf.

[Match]
Driver=
MACAddress=02:00:00:00:01:11
Name=ens6
`},
		"link": {link.Render(), `# Written by ec2netd, see ec2netd(8): for one link only, whatever becomes of
# 50-ec2netd.conf.

[Match]
MACAddress=02:00:00:00:01:11
Driver=ena
`},
		"leave out": {leaveOut.Render("10-netplan-all.network"), `# Written by ec2netd, see ec2netd(8). 10-netplan-all.network is for several links,
# and not for ENIs: these have units of their own.

[Match]
Driver=!ena vif
`},
	} {
		if diff := cmp.Diff(text.want, text.got); diff != "" {
			t.Errorf("%s: %s", kind, diff)
		}
	}
}

// The package does no I/O and does not tell the time: it imports nothing that does.
func TestImports(t *testing.T) {
	pure := []string{"cmp", "errors", "fmt", "net/netip", "slices", "strconv", "strings"}
	imports, err := build.ImportDir(".", 0)
	if err != nil {
		t.Fatal(err)
	}
	for _, path := range imports.Imports {
		if !slices.Contains(pure, path) {
			t.Errorf("it imports %s", path)
		}
	}
}

// FuzzParse: parsing any text ends. The result can be rendered, and parsing that returns the same
// value (D4).
func FuzzParse(f *testing.F) {
	for _, text := range goldens(f) {
		f.Add(text)
	}
	f.Add("[RoutingPolicyRule]\nFrom=fe80::1%1\nTable=main\nPriority=-1\nSuppressPrefixLength=0\n")
	f.Add("[Match]\nMACAddress=\n[DHCPv4]\nRouteMetric=99999999999999999999\n[Address]\nAddress=10.0.0.1/33\n[Route]\nGateway=::1%x\n[Route\n]\n=\n[]")
	f.Add("[Address]\nAddress=10.0.1.20/24\n[Else]\nA=b\n[Route]\nDestination=10.0.1.0/24\n[Match]\nName=!\nDriver=!! a\n[Link]\nAlternativeName=\n")
	f.Fuzz(func(t *testing.T, text string) {
		if network := ParseNetwork(text); network != nil {
			rendered := network.Render()
			back := ParseNetwork(rendered)
			if back.otherwise || back.Render() != rendered {
				t.Errorf("%q became %q", text, rendered)
			}
			if network.otherwise = false; !back.Equal(network) {
				t.Errorf("%+v became %+v", network, back)
			}
		}
		if link := ParseLink(text); link != nil {
			if rendered := link.Render(); ParseLink(rendered).Render() != rendered {
				t.Errorf("%q became %q", text, rendered)
			}
		}
		network, link := ParseNetworkMatch(text), ParseLinkMatch(text)
		hold, base, start, leaveOut := ParseHold(text), ParseBase(text), ParseStart(text), ParseLeaveOut(text)
		for rendered, again := range map[string]func(string) string{
			network.Render():     func(s string) string { v := ParseNetworkMatch(s); return v.Render() },
			link.Render():        func(s string) string { v := ParseLinkMatch(s); return v.Render() },
			hold.Render():        func(s string) string { v := ParseHold(s); return v.Render() },
			base.Render():        func(s string) string { v := ParseBase(s); return v.Render() },
			start.Render():       func(s string) string { v := ParseStart(s); return v.Render() },
			leaveOut.Render("x"): func(s string) string { v := ParseLeaveOut(s); return v.Render("x") },
		} {
			if got := again(rendered); got != rendered {
				t.Errorf("%q became %q", rendered, got)
			}
		}
	})
}
