package metadata

import (
	"net/netip"
	"reflect"
	"testing"
)

// KeyNames are the names of the keys that a view is made of, for tests from outside.
func KeyNames() (names []string) {
	for _, k := range eniKeys {
		names = append(names, k.name)
	}
	return names
}

// The keys make all of a view: each of its fields counts where views are compared, and each key
// survives being written, read, and taken from another view.
func TestKeysMakeAView(t *testing.T) {
	card := 1
	view := ENI{
		MAC: "02:00:00:00:01:11", ID: "eni-0123456789abcdef1", DeviceIndex: 2, NetworkCard: &card,
		IPv4: []netip.Addr{netip.MustParseAddr("10.0.1.20")}, IPv6: []netip.Addr{netip.MustParseAddr("2001:db8:1::20")},
		IPv4Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.240/28")}, IPv6Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1:0:1::/80")},
		IPv4Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}, IPv6Subnets: []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
	}
	if err := view.Check(); err != nil {
		t.Fatal(err)
	}
	for i := range reflect.TypeFor[ENI]().NumField() {
		field, other := reflect.TypeFor[ENI]().Field(i), view
		reflect.ValueOf(&other).Elem().Field(i).SetZero()
		if other.Equal(&view) || view.Equal(&other) {
			t.Errorf("a view without %s is as one with it", field.Name)
		}
	}
	read, carried := ENI{MAC: view.MAC}, ENI{MAC: view.MAC}
	for _, k := range eniKeys {
		if k.same(&read, &view) || (k.has(&read) && !k.always) {
			t.Errorf("an empty view has %s", k.name)
		}
		if err := k.parse(&read, k.text(&view)); err != nil {
			t.Errorf("%s: %v", k.name, err)
		}
		if k.carry(&carried, &view); !k.same(&carried, &view) || !k.has(&view) {
			t.Errorf("%s is not taken from another view", k.name)
		}
	}
	if !read.Equal(&view) || !carried.Equal(&view) {
		t.Errorf("read: %+v, taken from another one: %+v", read, carried)
	}
}
