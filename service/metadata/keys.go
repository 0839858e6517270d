package metadata

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// The keys of an ENI that are read, below network/interfaces/macs/MAC/.
const (
	keyInterfaceID  = "interface-id"
	keyDeviceNumber = "device-number"
	keyNetworkCard  = "network-card"
	keyIPv4         = "local-ipv4s"
	keyIPv6         = "ipv6s"
	keyIPv4Prefixes = "ipv4-prefix"
	keyIPv6Prefixes = "ipv6-prefix"
	keyIPv4Subnet   = "subnet-ipv4-cidr-block"
	keyIPv6Subnets  = "subnet-ipv6-cidr-blocks"
)

// rank says when a key is read anew.
type rank int

const (
	// lasting: it is read once, as it changes with the attachment only.
	lasting rank = iota
	// numbers: it is read once, and again as long as the numbers of the ENI are in doubt.
	numbers
	// ofSubnet: it is read once, and again when something of the ENI is outside of the subnet. A
	// subnet can be given another IPv6 block, and what was read earlier may be an old one.
	ofSubnet
	// delegated prefixes and assigned addresses change while an ENI is attached. They are read for
	// every whole view and looked at in turns, addresses more often.
	delegated
	assigned
)

// changes reports whether a key changes while an ENI is attached.
func (r rank) changes() bool { return r == delegated || r == assigned }

// eniKey is a key of an ENI that a view is made of.
type eniKey struct {
	name string
	rank rank
	// always: every ENI has it. Which of the others it has depends on its subnet and on what it was
	// given, see missingKeys.
	always bool
	// has reports whether a view was read from it.
	has func(*ENI) bool
	// text is the value that a view has of it, as the service gives it. The view must have it.
	text func(*ENI) string
	// parse takes the value into a view.
	parse func(e *ENI, body string) error
	// carry takes it from another view.
	carry func(e, from *ENI)
	// same reports whether two views say the same of it.
	same func(a, b *ENI) bool
}

// eniKeys are the keys of a view, in the order in which their errors count.
var eniKeys = []eniKey{
	{
		name: keyInterfaceID, rank: lasting, always: true,
		has:   func(*ENI) bool { return true },
		text:  func(e *ENI) string { return e.ID },
		parse: func(e *ENI, body string) (err error) { e.ID, err = parseENIID(body); return err },
		carry: func(e, from *ENI) { e.ID = from.ID },
		same:  func(a, b *ENI) bool { return a.ID == b.ID },
	},
	{
		name: keyDeviceNumber, rank: numbers, always: true,
		has:   func(*ENI) bool { return true },
		text:  func(e *ENI) string { return strconv.Itoa(e.DeviceIndex) },
		parse: func(e *ENI, body string) (err error) { e.DeviceIndex, err = parseNumber(body); return err },
		carry: func(e, from *ENI) { e.DeviceIndex = from.DeviceIndex },
		same:  func(a, b *ENI) bool { return a.DeviceIndex == b.DeviceIndex },
	},
	{
		name: keyNetworkCard, rank: numbers,
		has:  func(e *ENI) bool { return e.NetworkCard != nil },
		text: func(e *ENI) string { return strconv.Itoa(*e.NetworkCard) },
		parse: func(e *ENI, body string) error {
			card, err := parseNumber(body)
			e.NetworkCard = &card
			return err
		},
		carry: func(e, from *ENI) { e.NetworkCard = from.NetworkCard },
		same:  func(a, b *ENI) bool { return equalCard(a.NetworkCard, b.NetworkCard) },
	},
	listKey(keyIPv4, assigned, true, func(e *ENI) *[]netip.Addr { return &e.IPv4 }, parseAddresses, equalAddresses),
	listKey(keyIPv6, assigned, false, func(e *ENI) *[]netip.Addr { return &e.IPv6 }, parseAddresses, equalAddresses),
	listKey(keyIPv4Prefixes, delegated, true, func(e *ENI) *[]netip.Prefix { return &e.IPv4Prefixes }, parseDelegated, equalPrefixes),
	listKey(keyIPv6Prefixes, delegated, false, func(e *ENI) *[]netip.Prefix { return &e.IPv6Prefixes }, parseDelegated, equalPrefixes),
	listKey(keyIPv4Subnet, ofSubnet, true, func(e *ENI) *[]netip.Prefix { return &e.IPv4Subnets }, parseSubnets, equalPrefixes),
	listKey(keyIPv6Subnets, ofSubnet, false, func(e *ENI) *[]netip.Prefix { return &e.IPv6Subnets }, parseSubnets, equalPrefixes),
}

// listKey is a key with values of one family, one a line.
func listKey[T fmt.Stringer](name string, rank rank, ipv4 bool, in func(*ENI) *[]T, parse func(string, bool) ([]T, error), same func(a, b []T) bool) eniKey {
	return eniKey{
		name: name, rank: rank,
		has:   func(e *ENI) bool { return len(*in(e)) > 0 },
		text:  func(e *ENI) string { return strings.Join(texts(*in(e)), "\n") },
		parse: func(e *ENI, body string) (err error) { *in(e), err = parse(body, ipv4); return err },
		carry: func(e, from *ENI) { *in(e) = *in(from) },
		same:  func(a, b *ENI) bool { return same(*in(a), *in(b)) },
	}
}

// keyNamed returns the key of a view with a name, nil if there is none.
func keyNamed(name string) *eniKey {
	i := slices.IndexFunc(eniKeys, func(k eniKey) bool { return k.name == name })
	if i < 0 {
		return nil
	}
	return &eniKeys[i]
}

// informational are the other keys of an ENI that EC2 is known to have (EC2 User Guide, "Instance
// metadata categories"). They are not read.
var informational = []string{
	"ipv4-associations/", "local-hostname", "mac", "owner-id", "public-hostname", "public-ipv4s", "security-group-ids",
	"security-groups", "subnet-id", "vpc-id", "vpc-ipv4-cidr-block", "vpc-ipv4-cidr-blocks", "vpc-ipv6-cidr-blocks",
}

// isKnown reports whether EC2 is known to have a key of an ENI. Others are named once and ignored
// (D13).
func isKnown(name string) bool { return keyNamed(name) != nil || slices.Contains(informational, name) }

// outside reports whether an address or prefix of the ENI is outside of its subnet, of the family of
// a key.
func (e *ENI) outside(subnet *eniKey) bool {
	blocks, addresses, prefixes := e.IPv4Subnets, e.IPv4, e.IPv4Prefixes
	if subnet.name == keyIPv6Subnets {
		blocks, addresses, prefixes = e.IPv6Subnets, e.IPv6, e.IPv6Prefixes
	}
	out := func(a netip.Addr) bool { _, ok := blockOf(a, blocks); return !ok }
	return slices.ContainsFunc(addresses, out) || slices.ContainsFunc(prefixes, func(p netip.Prefix) bool { return out(p.Addr()) })
}
