package vpc

import (
	"math/rand/v2"
	"net/netip"
	"reflect"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/insomniacslk/dhcp/dhcpv4"
)

// The random numbers of a lab depend on its seed and on their purpose, not on the order
// of the requests.
func TestChance(t *testing.T) {
	draw := func(seed uint64, what string, numbers ...int) uint64 {
		v := &VPC{opts: Options{Seed: seed}}
		return v.chance(what, numbers...).Uint64()
	}
	seen := make(map[uint64]string)
	for _, c := range []struct {
		name  string
		value uint64
	}{
		{"a", draw(1, "x", 1, 2)}, {"another seed", draw(2, "x", 1, 2)}, {"another use", draw(1, "y", 1, 2)},
		{"another number", draw(1, "x", 1, 3)}, {"another order", draw(1, "x", 2, 1)}, {"fewer numbers", draw(1, "x", 1)},
	} {
		if seen[c.value] != "" {
			t.Errorf("%s has the chance of %s", c.name, seen[c.value])
		}
		seen[c.value] = c.name
	}
	if again := draw(1, "x", 1, 2); seen[again] != "a" {
		t.Error("the same seed does not repeat")
	}
}

// The random delays of EC2's profile match those of EC2 (facts: late-keys).
func TestPropagationDraw(t *testing.T) {
	v := &VPC{opts: Options{Seed: 14}}
	const count = 2000
	profile, late := EC2().Propagation, 0
	spread := map[string]bool{}
	for n := range count {
		p := profile.draw(v.chance("propagation", 0, n, 1))
		if again := profile.draw(v.chance("propagation", 0, n, 1)); !reflect.DeepEqual(p, again) {
			t.Fatalf("%+v is not repeated: %+v", p, again)
		}
		secondaries, number := p.Secondaries-p.Listed, p.Keys["device-number"]-p.Listed
		if p.Listed < 100*time.Millisecond || p.Listed > 300*time.Millisecond || secondaries < 0 || secondaries > time.Second ||
			p.Default != 0 || p.Keys["network-card"] != p.Keys["device-number"] {
			t.Fatalf("%+v", p)
		}
		switch {
		case number == 10*time.Second:
			late++
		case number < 0 || number > 2*time.Second:
			t.Fatalf("%+v", p)
		}
		spread[p.Listed.Truncate(20*time.Millisecond).String()] = true
		spread["secondaries "+secondaries.Truncate(100*time.Millisecond).String()] = true
		spread["number "+number.Truncate(200*time.Millisecond).String()] = true
	}
	if late < count*7/100 || late > count*13/100 {
		t.Errorf("%d of %d numbers are late, want one in ten", late, count)
	}
	if len(spread) != 10+10+10+1 {
		t.Errorf("the chance is not spread: %v", spread)
	}
	if p := (Propagation{}).draw(rand.New(rand.NewPCG(1, 1))); p.Listed != 0 || p.Secondaries != 0 || p.Keys["device-number"] != 0 {
		t.Errorf("without a profile: %+v", p)
	}
}

// DHCPv4 sends the options of the set, and nothing else.
func TestOptionsDHCPv4(t *testing.T) {
	addr := netip.MustParseAddr("10.0.16.10")
	both := SubnetSpec{IPv4: netip.MustParsePrefix("10.0.16.0/20"), IPv6: netip.MustParsePrefix("2001:db8:0:101::/64")}
	only6 := SubnetSpec{IPv6: both.IPv6}
	for _, c := range []struct {
		name    string
		subnet  SubnetSpec
		options DHCPOptions
		want    map[uint8]string
	}{
		{"EC2", both, EC2().DHCP, map[uint8]string{
			6: "\x0a\x00\x00\x02", 12: "ip-10-0-16-10", 15: "ec2.internal", 26: "\x23\x29",
		}},
		{"EC2, IPv6 only", only6, EC2().DHCP, map[uint8]string{6: "\xa9\xfe\xa9\xfd", 15: "ec2.internal", 26: "\x23\x29"}},
		{"instant", both, Instant().DHCP, map[uint8]string{6: "\x0a\x00\x00\x02", 15: "ec2.internal"}},
		{"none", both, DHCPOptions{}, map[uint8]string{6: "\x0a\x00\x00\x02"}},
		{"all", both, DHCPOptions{
			DNS: []netip.Addr{netip.MustParseAddr("10.0.0.9"), AmazonDNS6, netip.MustParseAddr("10.0.0.8")},
			NTP: []netip.Addr{TimeSync, netip.MustParseAddr("fd00:ec2::123")}, MTU: 1500,
			Domains: []string{"one.example", "two.example"}, Search: []string{"a.example"},
		}, map[uint8]string{
			6: "\x0a\x00\x00\x09\x0a\x00\x00\x08", 15: "one.example two.example", 26: "\x05\xdc", 42: "\xa9\xfe\xa9\x7b",
			119: "\x01a\x07example\x00",
		}},
	} {
		v := &VPC{opts: Options{IPv4: []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}}}
		v.behaviour.Store(&Behaviour{DHCP: c.options})
		sn := &Subnet{vpc: v, spec: c.subnet}
		msg, err := dhcpv4.New(sn.optionsDHCPv4(addr)...)
		if err != nil {
			t.Fatal(err)
		}
		got := make(map[uint8]string)
		for code, value := range msg.Options {
			got[code] = string(value)
		}
		if diff := cmp.Diff(c.want, got); diff != "" {
			t.Errorf("%s (-want +got):\n%s", c.name, diff)
		}
	}
}

func TestBehaviourCheck(t *testing.T) {
	for name, b := range Profiles() {
		if err := b.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
	}
	if _, ok := Profiles()[DefaultProfile]; !ok {
		t.Errorf("there is no profile %s", DefaultProfile)
	}
	if err := (Behaviour{}).Check(); err == nil {
		t.Error("no behaviour is one")
	}
	b := EC2()
	b.DHCP.Domains = []string{strings.Repeat("a", 200), strings.Repeat("b", 100)}
	if err := b.Check(); err == nil || !strings.Contains(err.Error(), "option 15") {
		t.Errorf("too many domains: %v", err)
	}
}
