package vpc

import (
	"crypto/rand"
	"encoding/hex"
	"fmt"
	"net"
	"net/netip"
)

// randomHex returns n random bytes as hex digits.
func randomHex(n int) string {
	b := make([]byte, n)
	rand.Read(b) // never fails: crypto/rand
	return hex.EncodeToString(b)
}

// resourceID returns an ID as EC2 makes them: a kind, a zero and 16 hex digits.
func resourceID(kind string) string {
	return kind + "-0" + randomHex(8)
}

// randomMAC returns a locally administered unicast address, as EC2's are.
func randomMAC() net.HardwareAddr {
	b := make([]byte, 6)
	rand.Read(b)
	b[0] = 0x02
	return net.HardwareAddr(b)
}

// addOffset returns the address n after base.
func addOffset(base netip.Addr, n uint64) netip.Addr {
	b := base.AsSlice()
	for i := len(b) - 1; i >= 0 && n > 0; i-- {
		n += uint64(b[i])
		b[i] = byte(n)
		n >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}

// pool manages the free addresses and prefixes of a subnet.
type pool struct {
	v4, v6 netip.Prefix
	used   map[netip.Addr]string   // address → ENI
	usedP  map[netip.Prefix]string // prefix → ENI
}

// Sizes of delegated prefixes, which EC2 fixes.
const (
	prefixBits4 = 28
	prefixBits6 = 80
)

// Start of automatic addresses: EC2 reserves the first four of a subnet.
const firstHost = 10

func (p *pool) free(addr netip.Addr) bool {
	if _, taken := p.used[addr]; taken {
		return false
	}
	for prefix := range p.usedP {
		if prefix.Contains(addr) {
			return false
		}
	}
	return true
}

// reserved reports whether EC2 reserves an address of a subnet.
func reserved(addr netip.Addr, subnet netip.Prefix) bool {
	return addr.Less(addOffset(subnet.Addr(), 4)) || !subnet.Contains(addr.Next())
}

// take reserves one address of a family, either a given or any free one.
func (p *pool) take(owner string, subnet netip.Prefix, want netip.Addr) (netip.Addr, error) {
	if !subnet.IsValid() {
		return netip.Addr{}, fmt.Errorf("the subnet has no such addresses")
	}
	if want.IsValid() {
		if !subnet.Contains(want) {
			return netip.Addr{}, fmt.Errorf("%s is not in %s", want, subnet)
		}
		if reserved(want, subnet) {
			return netip.Addr{}, fmt.Errorf("%s is reserved in %s, as the first four addresses and the last one of each subnet are", want, subnet)
		}
		if !p.free(want) {
			return netip.Addr{}, fmt.Errorf("%s is in use by %s", want, p.used[want])
		}
		p.used[want] = owner
		return want, nil
	}
	for n := uint64(firstHost); n < firstHost+65536; n++ {
		addr := addOffset(subnet.Addr(), n)
		if !subnet.Contains(addr) {
			break
		}
		if p.free(addr) && !reserved(addr, subnet) {
			p.used[addr] = owner
			return addr, nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no free address in %s", subnet)
}

// takePrefix reserves one delegated prefix, either a given or any free one.
func (p *pool) takePrefix(owner string, subnet, want netip.Prefix) (netip.Prefix, error) {
	if !subnet.IsValid() {
		return netip.Prefix{}, fmt.Errorf("the subnet has no such addresses")
	}
	bits := prefixBits4
	if subnet.Addr().Is6() {
		bits = prefixBits6
	}
	free := func(c netip.Prefix) bool {
		for prefix := range p.usedP {
			if prefix.Overlaps(c) {
				return false
			}
		}
		for addr := range p.used {
			if c.Contains(addr) {
				return false
			}
		}
		return true
	}
	if want.IsValid() {
		switch {
		case want.Bits() != bits || want != want.Masked():
			return netip.Prefix{}, fmt.Errorf("%s is not a /%d prefix", want, bits)
		case !subnet.Contains(want.Addr()):
			return netip.Prefix{}, fmt.Errorf("%s is not in %s", want, subnet)
		case !free(want):
			return netip.Prefix{}, fmt.Errorf("%s overlaps with what is in use", want)
		}
		p.usedP[want] = owner
		return want, nil
	}
	// Start in the middle of the subnet, away from the automatic addresses.
	half := addOffsetBits(subnet.Addr(), subnet.Bits()+1)
	for n := range 4096 {
		addr := half
		for range n {
			addr = addOffsetBits(addr, bits)
		}
		c := netip.PrefixFrom(addr, bits)
		if !subnet.Contains(addr) {
			break
		}
		if free(c) {
			p.usedP[c] = owner
			return c, nil
		}
	}
	return netip.Prefix{}, fmt.Errorf("no free /%d prefix in %s", bits, subnet)
}

// addOffsetBits returns base plus one block of the size that a prefix length
// makes.
func addOffsetBits(base netip.Addr, bits int) netip.Addr {
	b := base.AsSlice()
	i := (bits - 1) / 8
	carry := 1 << (7 - (bits-1)%8)
	for ; i >= 0 && carry > 0; i-- {
		carry += int(b[i])
		b[i] = byte(carry)
		carry >>= 8
	}
	addr, _ := netip.AddrFromSlice(b)
	return addr
}
