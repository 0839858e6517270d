// Package metadata reads what EC2 says of the instance's ENIs from the instance
// metadata service (IMDSv2).
//
// It turns answers into typed, checked values or into typed errors, and nothing
// else: when what is read is decided in package poller, what an error means for the
// configuration in package agent, and what a value means in package plan. No text of the service leaves this package
// unparsed.
package metadata

import (
	"fmt"
	"net/netip"
	"slices"
)

// Instance is what is true of the whole instance. It does not change while the
// instance runs.
type Instance struct {
	// ID of the instance, i-….
	ID string `json:"id"`
	// PrimaryMAC is the top-level mac key: the MAC address of the primary ENI,
	// lower case with colons. It is right from the start, other than the
	// device-number of a new ENI.
	PrimaryMAC string `json:"primaryMac"`
}

// ENI is one complete view of an ENI.
type ENI struct {
	// MAC address, lower case with colons.
	MAC string `json:"mac"`
	// ID of the ENI, eni-….
	ID string `json:"id"`
	// DeviceIndex is the key device-number. It reads 0 until the attachment has
	// propagated.
	DeviceIndex int `json:"deviceIndex"`
	// NetworkCard is the key network-card, nil where the key does not exist:
	// always on instance types with one card, and for a while on others.
	NetworkCard *int `json:"networkCard"`
	// IPv4 is local-ipv4s in the order of the service: the first is the primary
	// address. IPv6 is ipv6s: the first is the source of what does not bind (A11). Either is
	// empty when the ENI has no such address.
	IPv4 []netip.Addr `json:"ipv4"`
	IPv6 []netip.Addr `json:"ipv6"`
	// IPv4Prefixes and IPv6Prefixes are the delegated prefixes (ipv4-prefix,
	// ipv6-prefix).
	IPv4Prefixes []netip.Prefix `json:"ipv4Prefixes"`
	IPv6Prefixes []netip.Prefix `json:"ipv6Prefixes"`
	// IPv4Subnets and IPv6Subnets are the CIDR blocks of the ENI's subnet
	// (subnet-ipv4-cidr-block, subnet-ipv6-cidr-blocks).
	IPv4Subnets []netip.Prefix `json:"ipv4Subnets"`
	IPv6Subnets []netip.Prefix `json:"ipv6Subnets"`
}

// Equal tells whether two views say the same. The order of secondary addresses and
// of prefixes says nothing (A2, A11).
func (e *ENI) Equal(o *ENI) bool {
	return e.MAC == o.MAC && !slices.ContainsFunc(eniKeys, func(k eniKey) bool { return !k.same(e, o) })
}

// Sorted is the view with what has no order sorted, so that equal views have equal texts.
func (e *ENI) Sorted() ENI {
	s := *e
	// The first one is the primary of IPv4, and the source of IPv6.
	s.IPv4, s.IPv6 = slices.Clone(e.IPv4), slices.Clone(e.IPv6)
	for _, addresses := range [][]netip.Addr{s.IPv4, s.IPv6} {
		if len(addresses) > 0 {
			slices.SortFunc(addresses[1:], netip.Addr.Compare)
		}
	}
	s.IPv4Prefixes = slices.SortedFunc(slices.Values(e.IPv4Prefixes), netip.Prefix.Compare)
	s.IPv6Prefixes = slices.SortedFunc(slices.Values(e.IPv6Prefixes), netip.Prefix.Compare)
	return s
}

// Holdings are the addresses and prefixes of the ENI as texts.
func (e *ENI) Holdings() []string {
	return slices.Concat(texts(e.IPv4), texts(e.IPv6), texts(e.IPv4Prefixes), texts(e.IPv6Prefixes))
}

func equalCard(a, b *int) bool {
	if a == nil || b == nil {
		return a == b
	}
	return *a == *b
}

func equalAddresses(a, b []netip.Addr) bool {
	return equalFirst(a, b) && equalSets(a, b, netip.Addr.Compare)
}

func equalPrefixes(a, b []netip.Prefix) bool { return equalSets(a, b, netip.Prefix.Compare) }

func equalFirst(a, b []netip.Addr) bool {
	if len(a) == 0 || len(b) == 0 {
		return len(a) == len(b)
	}
	return a[0] == b[0]
}

func equalSets[T comparable](a, b []T, compare func(T, T) int) bool {
	return slices.Equal(slices.SortedFunc(slices.Values(a), compare), slices.SortedFunc(slices.Values(b), compare))
}

// Check refuses a view that no read of this package gives: for views that were kept
// in a file.
func (e *ENI) Check() error {
	mac, err := ParseMAC(e.MAC)
	if err != nil {
		return err
	}
	if mac != e.MAC {
		return fmt.Errorf("%q is not in lower case", e.MAC)
	}
	if !eniID.MatchString(e.ID) {
		return fmt.Errorf("%q is not an ENI ID", clip(e.ID))
	}
	for _, k := range eniKeys {
		if !k.has(e) {
			continue
		}
		if err := k.parse(new(ENI), k.text(e)); err != nil {
			return fmt.Errorf("%s: %w", e.ID, err)
		}
	}
	if _, err := e.misplaced(); err != nil {
		return fmt.Errorf("%s: %w", e.ID, err)
	}
	return nil
}

func texts[T fmt.Stringer](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
