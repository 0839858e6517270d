package metadata

import (
	"net/netip"
	"testing"
)

// A1, D8: within a round everything that can change is looked at, with at most two requests
// a turn, and addresses as often as was asked for, if there is room.
func TestRound(t *testing.T) {
	address, prefix := []netip.Addr{netip.MustParseAddr("10.0.0.1")}, []netip.Prefix{netip.MustParsePrefix("10.0.0.0/28")}
	for name, test := range map[string]struct {
		view ENI
		// ipv4 and ipv6 of a round with addresses looked at four times, and its requests.
		ipv4, ipv6, requests int
	}{
		"nothing":       {ENI{}, 0, 0, 1},
		"IPv4":          {ENI{IPv4: address}, 4, 0, 5},
		"IPv6":          {ENI{IPv6: address}, 0, 4, 5},
		"both families": {ENI{IPv4: address, IPv6: address}, 4, 3, 8},
		"IPv4 prefixes": {ENI{IPv4: address, IPv4Prefixes: prefix}, 4, 0, 6},
		"IPv6 prefixes": {ENI{IPv4: address, IPv6: address, IPv6Prefixes: prefix}, 4, 2, 8},
		"only prefixes": {ENI{IPv6Prefixes: prefix}, 0, 0, 2},
		"all":           {ENI{IPv4: address, IPv6: address, IPv4Prefixes: prefix, IPv6Prefixes: prefix}, 4, 1, 8},
	} {
		for often := range 6 {
			keys, requests := make(map[string]int), 0
			round := test.view.round(often)
			for _, turn := range round {
				seen := make(map[string]bool)
				for _, key := range turn {
					seen[key] = true
					keys[key]++
					requests++
				}
				if len(turn) == 0 || len(turn) > perTurn || len(seen) < len(turn) {
					t.Errorf("%s, %d: %q", name, often, round)
				}
			}
			if test.view.Turns(often) != len(round) {
				t.Errorf("%s, %d: %d turns", name, often, test.view.Turns(often))
			}
			// What is not looked at often is looked at once.
			for _, k := range eniKeys {
				if want := k.rank.changes() && k.has(&test.view); want != (keys[k.name] > 0) || (k.rank != assigned && keys[k.name] > 1) {
					t.Errorf("%s, %d: %q", name, often, round)
				}
			}
			if keys[""] != 1 {
				t.Errorf("%s, %d: the listing %d times in %q", name, often, keys[""], round)
			}
			if often <= 1 && requests != len(keys) {
				t.Errorf("%s, %d: %d requests for %d keys", name, often, requests, len(keys))
			}
			if often == 4 && (keys[keyIPv4] != test.ipv4 || keys[keyIPv6] != test.ipv6 || requests != test.requests) {
				t.Errorf("%s: %d requests, want %d; %d of IPv4, want %d; %d of IPv6, want %d: %q", name,
					requests, test.requests, keys[keyIPv4], test.ipv4, keys[keyIPv6], test.ipv6, round)
			}
		}
	}
}
