package vpc

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func newPool() *pool {
	return &pool{
		v4: netip.MustParsePrefix("10.0.16.0/20"), v6: netip.MustParsePrefix("2001:db8:0:101::/64"),
		used: make(map[netip.Addr]string), usedP: make(map[netip.Prefix]string),
	}
}

func TestPool(t *testing.T) {
	p := newPool()
	take := func(subnet netip.Prefix, want string) (string, error) {
		var a netip.Addr
		if want != "" {
			a = netip.MustParseAddr(want)
		}
		got, err := p.take("eni-x", subnet, a)
		return got.String(), err
	}
	for _, c := range []struct {
		subnet       netip.Prefix
		want, got    string
		wrongBecause string
	}{
		{p.v4, "", "10.0.16.10", ""},
		{p.v4, "10.0.16.11", "10.0.16.11", ""},
		{p.v4, "", "10.0.16.12", ""},
		{p.v4, "10.0.16.12", "", "in use by eni-x"},
		{p.v4, "10.0.32.1", "", "is not in 10.0.16.0/20"},
		{p.v6, "", "2001:db8:0:101::a", ""},
		{p.v6, "", "2001:db8:0:101::b", ""},
		{netip.Prefix{}, "", "", "no such addresses"},
	} {
		got, err := take(c.subnet, c.want)
		switch {
		case c.wrongBecause != "" && (err == nil || !strings.Contains(err.Error(), c.wrongBecause)):
			t.Errorf("%v %q: %v, want %q", c.subnet, c.want, err, c.wrongBecause)
		case c.wrongBecause == "" && (err != nil || got != c.got):
			t.Errorf("%v %q: %s, %v, want %s", c.subnet, c.want, got, err, c.got)
		}
	}
	seen := make(map[netip.Addr]bool)
	for n := range 750 { // 15 ENIs of 50 addresses
		a, err := p.take("eni-y", p.v4, netip.Addr{})
		if err != nil || seen[a] || !p.v4.Contains(a) {
			t.Fatalf("address %d: %s, %v", n, a, err)
		}
		seen[a] = true
	}
}

func TestPoolPrefixes(t *testing.T) {
	p := newPool()
	var got []string
	for range 3 {
		for _, subnet := range []netip.Prefix{p.v4, p.v6} {
			prefix, err := p.takePrefix("eni-x", subnet, netip.Prefix{})
			if err != nil {
				t.Fatal(err)
			}
			got = append(got, prefix.String())
		}
	}
	want := []string{
		"10.0.24.0/28", "2001:db8:0:101:8000::/80", "10.0.24.16/28", "2001:db8:0:101:8001::/80",
		"10.0.24.32/28", "2001:db8:0:101:8002::/80",
	}
	if !slices.Equal(got, want) {
		t.Errorf("prefixes %v, want %v", got, want)
	}
	for _, wrong := range []string{"10.0.24.0/28", "10.0.24.8/29", "10.0.24.1/28", "10.1.0.0/28", "2001:db8:0:101:8002::/64"} {
		c := netip.MustParsePrefix(wrong)
		subnet := p.v4
		if c.Addr().Is6() {
			subnet = p.v6
		}
		if got, err := p.takePrefix("eni-x", subnet, c); err == nil {
			t.Errorf("%s was given as %s", wrong, got)
		}
	}
	if a, err := p.take("eni-x", p.v4, netip.MustParseAddr("10.0.24.17")); err == nil {
		t.Errorf("%s is in a delegated prefix and was given", a)
	}
}

func TestPresetUnits(t *testing.T) {
	root := t.TempDir()
	const text = "# comment\n\nenable systemd-networkd.service\ndisable NetworkManager.service\nenable ec2netd.* extra\n"
	if err := WriteFile(root, "/usr/lib/x.preset", text); err != nil {
		t.Fatal(err)
	}
	got, err := PresetUnits(root + "/usr/lib/x.preset")
	want := []string{"systemd-networkd.service", "NetworkManager.service", "ec2netd.*"}
	if err != nil || !slices.Equal(got, want) {
		t.Errorf("%v, %v, want %v", got, err, want)
	}
}

func TestMissingTools(t *testing.T) {
	t.Setenv("PATH", t.TempDir())
	err := needTools("mmdebstrap", "systemd-nspawn", "nft")
	want := "not found on this machine: mmdebstrap, systemd-nspawn, nft; install it with: apt-get install mmdebstrap systemd-container nftables"
	if err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
