package metadata

import (
	"fmt"
	"net/netip"
	"slices"
)

// What an address, a prefix and a subnet can be in a VPC (D14). The rules are those that AWS
// states, and no stricter: what EC2 might do after all is taken.

// never are addresses that no ENI has: "this network", loopback, multicast and the range
// reserved for future use, which no host may have (RFC 6890), and link-local ones, which are
// those of EC2's metadata, DNS and time services.
var never = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("127.0.0.0/8"),
	netip.MustParsePrefix("169.254.0.0/16"),
	netip.MustParsePrefix("224.0.0.0/4"),
	netip.MustParsePrefix("240.0.0.0/4"),
	// EC2's own services: metadata [fd00:ec2::254], DNS [fd00:ec2::253], time [fd00:ec2::123].
	netip.MustParsePrefix("fd00:ec2::/32"),
}

// unicastIPv6 are the ranges of IPv6 that a VPC's blocks are from: global addresses, Amazon's
// or the customer's own, and private ones, unique local addresses of an IPAM pool ("IPv6 VPC
// CIDR blocks").
var unicastIPv6 = []netip.Prefix{netip.MustParsePrefix("2000::/3"), netip.MustParsePrefix("fc00::/7")}

// possible reports whether an ENI can have an address.
func possible(address netip.Addr) bool {
	has := func(prefix netip.Prefix) bool { return prefix.Contains(address) }
	return !slices.ContainsFunc(never, has) && (address.Is4() || slices.ContainsFunc(unicastIPv6, has))
}

// delegatedBits is the length of delegated prefixes. EC2 User Guide, "Prefix delegation for
// Amazon EC2 network interfaces": /28 for IPv4 and /80 for IPv6.
func delegatedBits(ipv4 bool) int {
	if ipv4 {
		return 28
	}
	return 80
}

// subnetSize reports whether a CIDR block has a size that a subnet's can have. VPC User
// Guide, "Subnet CIDR blocks": /16 to /28 for IPv4, /44 to /64 in steps of 4 for IPv6.
func subnetSize(block netip.Prefix) bool {
	if block.Addr().Is4() {
		return block.Bits() >= 16 && block.Bits() <= 28
	}
	return block.Bits() >= 44 && block.Bits() <= 64 && block.Bits()%4 == 0
}

// reserved reports whether an address is one of the first four or the last of a subnet's CIDR
// block, which cannot be assigned to a resource (VPC User Guide, "Subnet CIDR blocks", for
// either family).
func reserved(address netip.Addr, block netip.Prefix) bool {
	first, a := block.Masked().Addr(), address
	for range 4 {
		if a == first {
			return true
		}
		a = a.Prev()
	}
	next := address.Next()
	return !next.IsValid() || !block.Contains(next)
}

// misplaced names the first key whose value cannot be in the ENI's subnet, and says why; nil
// if there is none. A prefix is not asked whether it has one of the reserved addresses in it: AWS
// does not say that none does.
func (e *ENI) misplaced() (key string, err error) {
	for _, family := range []struct {
		subnets            []netip.Prefix
		addresses          []netip.Addr
		prefixes           []netip.Prefix
		keyAddrs, keyPrefs string
	}{
		{e.IPv4Subnets, e.IPv4, e.IPv4Prefixes, keyIPv4, keyIPv4Prefixes},
		{e.IPv6Subnets, e.IPv6, e.IPv6Prefixes, keyIPv6, keyIPv6Prefixes},
	} {
		for _, address := range family.addresses {
			block, ok := blockOf(address, family.subnets)
			if !ok {
				return family.keyAddrs, fmt.Errorf("%s is not in the ENI's subnet %s", address, family.subnets)
			}
			if reserved(address, block) {
				return family.keyAddrs, fmt.Errorf("%s is one that a VPC reserves in each subnet, here %s", address, block)
			}
		}
		for _, prefix := range family.prefixes {
			if _, ok := blockOf(prefix.Addr(), family.subnets); !ok {
				return family.keyPrefs, fmt.Errorf("%s is not in the ENI's subnet %s", prefix, family.subnets)
			}
		}
	}
	return "", nil
}

// blockOf returns the CIDR block that an address is in. A delegated prefix is in the same, for it
// is longer than any.
func blockOf(address netip.Addr, blocks []netip.Prefix) (netip.Prefix, bool) {
	i := slices.IndexFunc(blocks, func(block netip.Prefix) bool { return block.Contains(address) })
	if i < 0 {
		return netip.Prefix{}, false
	}
	return blocks[i], true
}
