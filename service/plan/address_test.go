package plan

import (
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/unitfile"
)

// A8, F1: what others have put on a link stays, where networkd can be told so: not on 252.
func TestKeepsAll(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21"), nil)
	for _, test := range []struct {
		networkd Networkd
		want     bool
	}{
		{Networkd{}, false},
		{Networkd{Keeps: true}, true},                 // it is about to be started
		{Networkd{Running: true, Keeps: true}, false}, // another one is installed than runs
		{Networkd{Running: true, Varlink: true}, true},
	} {
		for _, known := range []bool{true, false} {
			links := []Link{leased(0, &v), leased(1, &v)}
			links[0].MAC, links[0].Index, links[0].Name = "02:00:00:00:01:1f", 9, "ens9"
			in := input(links)
			if known {
				in = input(links[1:], v)
			}
			in.Networkd = test.networkd
			const keeps = "\n[Network]\nKeepConfiguration=yes\n"
			p := Make(in)
			i := slices.IndexFunc(p.Files, func(f File) bool { return f.Path == BaseDropIn })
			if got := i >= 0; got != test.want {
				t.Errorf("%+v, known %v: the drop-in of the base unit %v", test.networkd, known, got)
			}
			if i >= 0 { // F6
				if content := p.Files[i].Content; !strings.HasSuffix(content, keeps) || !dropin.Ours(content) {
					t.Errorf("the drop-in of the base unit:\n%s", content)
				}
				p.Files = slices.Delete(p.Files, i, i+1)
			}
			content := text(p)
			if got := strings.Contains(content, keeps); got != test.want || !strings.Contains(content, "RouteMetric=") {
				t.Errorf("%+v, known %v: %v\n%s", test.networkd, known, got, content)
			}
		}
	}
}

// A8: an address that somebody else has added is not taken into the drop-in, as long as it is
// there.
func TestForeignAddress(t *testing.T) {
	v := view(1, addrs("10.0.1.20", "10.0.1.21", "10.0.1.22"), nil)
	link := leased(1, &v)
	for _, address := range v.IPv4[1:] {
		link.Addresses = append(link.Addresses, kernel.Address{Prefix: netip.PrefixFrom(address, 32), Global: true})
	}
	in := input([]Link{link}, v)
	in.Networkd = newNetworkd
	content := Make(in).ENIs[0].Files[0].Content
	content = strings.Replace(content, "[Address]\nAddress=10.0.1.22/32\nAddPrefixRoute=no\n\n", "", 1)
	link.Current = dropin.ParseNetwork(content)
	none := func(OwnAddress) bool { return false }
	if link.Foreign = Foreign(&link, none); !slices.Equal(link.Foreign, addrs("10.0.1.22")) {
		t.Fatalf("foreign are %v in\n%s", link.Foreign, content)
	}
	for _, test := range []struct {
		name     string
		ours     bool
		networkd Networkd
		there    bool
		static   []netip.Addr
	}{
		{"left", false, newNetworkd, true, addrs("10.0.1.21")},
		{"taken when it has gone", false, newNetworkd, false, addrs("10.0.1.21", "10.0.1.22")},
		{"ours", true, newNetworkd, true, addrs("10.0.1.21", "10.0.1.22")},
		{"252 would take it away", false, oldNetworkd, true, addrs("10.0.1.21", "10.0.1.22")},
	} {
		link := link
		link.Addresses = slices.Clone(link.Addresses)
		if !test.there {
			link.Addresses = slices.DeleteFunc(link.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == v.IPv4[2] })
		}
		link.Foreign = Foreign(&link, func(own OwnAddress) bool { return test.ours && own.MAC == link.MAC })
		in := input([]Link{link}, v)
		in.Networkd = test.networkd
		eni := Make(in).ENIs[0]
		if diff := cmp.Diff(test.static, eni.Want.Static, cmp.Comparer(func(a, b netip.Addr) bool { return a == b })); diff != "" || eni.Held {
			t.Errorf("%s: held %v: %s", test.name, eni.Held, diff)
		}
	}
}

// A8: what networkd has left behind is told by the record alone.
func TestOrphanAddresses(t *testing.T) {
	const mac = "02:00:00:00:01:11"
	record := []OwnAddress{{mac, netip.MustParseAddr("10.0.1.21")}, {mac, netip.MustParseAddr("10.0.1.22")}, {mac, netip.MustParseAddr("2001:db8:1::21")}}
	on := func(texts ...string) []kernel.Link {
		l := kernel.Link{MAC: mac}
		for _, text := range texts {
			text, dynamic := strings.CutSuffix(text, " dynamic")
			l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.MustParsePrefix(text), Dynamic: dynamic})
		}
		return []kernel.Link{l, {MAC: "02:00:00:00:01:12", Addresses: []kernel.Address{{Prefix: netip.MustParsePrefix("10.0.1.22/32")}}}}
	}
	const ours = "# Written by ec2netd\n"
	for _, test := range []struct {
		name   string
		wanted string
		links  []kernel.Link
		want   []OwnAddress
	}{
		{"left", "", on("10.0.1.20/24", "10.0.1.21/32", "2001:db8:1::21/128"), []OwnAddress{record[0], record[2]}},
		{"of another file", "[Network]\nAddress=10.0.1.21/32\n", on("10.0.1.21/32"), nil},
		{"of its own", ours + "[Match]\nMACAddress=" + mac + "\n[Address]\nAddress=10.0.1.21/32\n", on("10.0.1.21/32"), nil},
		{"moved to another ENI", ours + "[Match]\nMACAddress=02:00:00:00:01:12\n[Address]\nAddress=10.0.1.21/32\n", on("10.0.1.21/32"), record[:1]},
		{"as a comment", "#Address=10.0.1.21/32\n", on("10.0.1.21/32"), record[:1]},
		{"with another length", "", on("10.0.1.21/24"), nil},
		{"by DHCPv6", "", on("2001:db8:1::21/128 dynamic"), nil},
		{"of another link", "", on(), nil},
	} {
		wanted := make(map[OwnAddress]bool)
		for _, address := range addressesIn(&unitfile.Text{Content: test.wanted}) {
			wanted[address] = true
		}
		if got := OrphanAddresses(record, wanted, test.links); !slices.Equal(got, test.want) {
			t.Errorf("%s: %v, want %v", test.name, got, test.want)
		}
	}
	for _, own := range record {
		text, err := own.MarshalText()
		var again OwnAddress
		if err != nil || again.UnmarshalText(text) != nil || again != own {
			t.Errorf("%v became %s and %v", own, text, again)
		}
	}
	for _, text := range []string{"", "10.0.1.21", mac, mac + " 10.0.1.21/32", " 10.0.1.21", mac + " fe80::1%eth0"} {
		if err := new(OwnAddress).UnmarshalText([]byte(text)); err == nil {
			t.Errorf("%q is no address of an ENI", text)
		}
	}
}
