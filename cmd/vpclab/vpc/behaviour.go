package vpc

import (
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"

	"ec2netd/cmd/vpclab/imds"
)

// Behaviour is how a VPC treats its instances. It has no useful zero value: start from
// [EC2] or [Instant], and change what a test needs. [VPC.SetBehaviour] changes it while
// instances run.
type Behaviour struct {
	// DHCP is the VPC's DHCP options set.
	DHCP DHCPOptions
	// DHCPv6 selects the addresses that the DHCPv6 servers lease.
	DHCPv6 DHCPv6Mode
	// Lifetimes of leases and advertisements.
	Lifetimes Lifetimes
	// RADelay is the delay of the router's answer to a solicitation. With RFC 4861
	// (6.2.6) it is 0 to 500 ms (MAX_RA_DELAY_TIME).
	RADelay Range
	// MTU of the bridges and of the VPC's ends of ENIs; 0 means the kernel's, 1500. The
	// instance's end always comes up with 1500, as with ENA, and can be set to more.
	MTU int
	// Metadata is the pace of the metadata service.
	Metadata imds.Pace
	// Propagation of the metadata of an ENI that is attached to a running instance.
	Propagation Propagation
}

// EC2 is the behaviour of EC2: with the default DHCP options set, and metadata that
// follow an attachment as published logs show (facts: late-keys).
func EC2() Behaviour {
	return Behaviour{
		DHCP:      DHCPOptions{MTU: 9001, Hostname: true, Domains: []string{DefaultDomain}},
		DHCPv6:    DHCPv6All,
		Lifetimes: defaultLifetimes(),
		RADelay:   Range{0, 500 * time.Millisecond},
		MTU:       9001,
		Metadata:  imds.Pace{Latency: 2 * time.Millisecond, Jitter: time.Millisecond},
		Propagation: Propagation{
			Listed:           Range{100 * time.Millisecond, 300 * time.Millisecond},
			Secondaries:      Range{0, time.Second},
			DeviceNumber:     Range{0, 2 * time.Second},
			LateDeviceNumber: Range{10 * time.Second, 10 * time.Second},
			LateChance:       0.1,
		},
	}
}

// Instant is the behaviour of an ideal VPC, for tests that do not depend on time: no
// latency, complete metadata before the link, DHCP with only addresses, a DNS server
// and a domain.
func Instant() Behaviour {
	return Behaviour{
		DHCP:      DHCPOptions{Domains: []string{DefaultDomain}},
		DHCPv6:    DHCPv6First,
		Lifetimes: defaultLifetimes(),
	}
}

// Profiles are the behaviours that have a name.
func Profiles() map[string]Behaviour {
	return map[string]Behaviour{"ec2": EC2(), "instant": Instant()}
}

// DefaultProfile is the name of the default behaviour of a VPC.
const DefaultProfile = "ec2"

// DefaultDomain is the domain of the default DHCP options set in us-east-1.
const DefaultDomain = "ec2.internal"

// AmazonDNS6 is Amazon's DNS server for IPv6.
var AmazonDNS6 = netip.MustParseAddr("fd00:ec2::253")

// DHCPOptions are the options of a VPC's DHCP servers besides addresses. The DHCPv4
// server sends all of them. The DHCPv6 server sends them in an IPv6-only subnet, if
// [Behaviour].DHCPv6 is [DHCPv6All]; elsewhere it only leases addresses, as in the VPC
// user guide ("DHCP option sets in Amazon VPC").
type DHCPOptions struct {
	// DNS are the servers of option 6, and the IPv6 ones those of DHCPv6's option 23. A
	// family without servers gets Amazon's: the third address of the VPC's first block,
	// 169.254.169.253 in an IPv6-only subnet, and [AmazonDNS6].
	DNS []netip.Addr
	// Domains is option 15. EC2 sends several as one text, separated by spaces.
	Domains []string
	// Search is the search list of option 119, which EC2 never sends.
	Search []string
	// NTP are the servers of option 42, and the IPv6 ones those of DHCPv6's option
	// 56. The default DHCP options set has none.
	NTP []netip.Addr
	// MTU is option 26, which EC2 always sends; 0 omits it.
	MTU int
	// Hostname sends option 12, as EC2 does: the name that contains the primary IPv4
	// address.
	Hostname bool
}

// TimeSync is Amazon's time service, for [DHCPOptions].NTP.
var TimeSync = netip.MustParseAddr("169.254.169.123")

// DHCPv6Mode selects the addresses that DHCPv6 leases.
type DHCPv6Mode string

// The modes.
const (
	DHCPv6All   DHCPv6Mode = "all"   // every IPv6 address of the ENI, in the metadata's order
	DHCPv6First DHCPv6Mode = "first" // the first one only
)

// Propagation says, at random, when an attached ENI appears in the metadata;
// [imds.Propagation] describes the values until then. The zero value means at once, and
// before the link.
type Propagation struct {
	// Listed is the time from the link's appearance until the ENI is listed.
	Listed Range
	// Secondaries is the time from then on until its secondary addresses and prefixes
	// appear.
	Secondaries Range
	// DeviceNumber is how long the number is 0 after the ENI is listed. The number of a
	// network card appears with it.
	DeviceNumber Range
	// LateDeviceNumber replaces it with a probability of LateChance.
	LateDeviceNumber Range
	LateChance       float64
}

// draw decides the propagation of one attachment.
func (p Propagation) draw(random *rand.Rand) imds.Propagation {
	listed := p.Listed.draw(random)
	secondaries, number, late := p.Secondaries.draw(random), p.DeviceNumber.draw(random), p.LateDeviceNumber.draw(random)
	if random.Float64() < p.LateChance {
		number = late
	}
	return imds.Propagation{
		Listed: listed, Secondaries: listed + secondaries,
		Keys: map[string]time.Duration{"device-number": listed + number, "network-card": listed + number},
	}
}

// Range is a random time, uniformly distributed from Min to Max.
type Range struct{ Min, Max time.Duration }

// Exactly is a range with a single value.
func Exactly(d time.Duration) Range { return Range{d, d} }

// ParseRange parses the output of [Range.String]: "100ms-300ms", or "2s".
func ParseRange(text string) (Range, error) {
	from, to, two := strings.Cut(text, "-")
	if !two {
		to = from
	}
	low, err := time.ParseDuration(from)
	high, err2 := time.ParseDuration(to)
	r := Range{low, high}
	if err := errors.Join(err, err2); err != nil {
		return Range{}, fmt.Errorf("range %q: %w; want a time such as 2s, or two such as 100ms-300ms", text, err)
	}
	return r, r.check(text)
}

func (r Range) String() string {
	if r.Min == r.Max {
		return r.Min.String()
	}
	return r.Min.String() + "-" + r.Max.String()
}

func (r Range) check(what string) error {
	if r.Min < 0 || r.Max < r.Min {
		return fmt.Errorf("%s: the range %s ends before it begins, or is negative", what, r)
	}
	return nil
}

// draw uses one random number, whatever the range.
func (r Range) draw(random *rand.Rand) time.Duration {
	return r.Min + time.Duration(random.Float64()*float64(r.Max-r.Min))
}

// Check returns an error if a behaviour is invalid.
func (b Behaviour) Check() error {
	errs := []error{
		b.DHCP.check(), b.Lifetimes.check(), b.Metadata.Check(),
		b.RADelay.check("delay of solicited router advertisements"),
		b.Propagation.Listed.check("propagation, listed"), b.Propagation.Secondaries.check("propagation, secondaries"),
		b.Propagation.DeviceNumber.check("propagation, device number"),
		b.Propagation.LateDeviceNumber.check("propagation, late device number"),
	}
	if c := b.Propagation.LateChance; c < 0 || c > 1 {
		errs = append(errs, fmt.Errorf("chance %v of a late device number is not in 0…1", c))
	}
	if b.DHCPv6 != DHCPv6All && b.DHCPv6 != DHCPv6First {
		errs = append(errs, fmt.Errorf("unknown mode of DHCPv6 %q, want %s or %s", b.DHCPv6, DHCPv6All, DHCPv6First))
	}
	if b.MTU != 0 && (b.MTU < minMTU || b.MTU > maxMTU) {
		errs = append(errs, fmt.Errorf("MTU %d of the VPC's links is not in %d…%d", b.MTU, minMTU, maxMTU))
	}
	return errors.Join(errs...)
}

// The least MTU of IPv6, and the greatest of a veth link and of an IP packet.
const (
	minMTU = 1280
	maxMTU = 65535
)

func (d DHCPOptions) check() error {
	var errs []error
	if d.MTU != 0 && (d.MTU < 68 || d.MTU > maxMTU) { // RFC 2132, 5.1
		errs = append(errs, fmt.Errorf("DHCP option 26: MTU %d is not in 68…%d", d.MTU, maxMTU))
	}
	for _, name := range append(append([]string{}, d.Domains...), d.Search...) {
		if name == "" || len(name) > 253 || strings.ContainsAny(name, " \t\n\x00") {
			errs = append(errs, fmt.Errorf("DHCP options: %q is no domain name", name))
		}
	}
	if text := strings.Join(d.Domains, " "); len(text) > 255 {
		errs = append(errs, fmt.Errorf("DHCP option 15: %d bytes of domain names are more than its 255", len(text)))
	}
	for _, a := range append(append([]netip.Addr{}, d.DNS...), d.NTP...) {
		if !a.IsValid() || a.IsUnspecified() || a.Zone() != "" {
			errs = append(errs, fmt.Errorf("DHCP options: %s is no address of a server", a))
		}
	}
	return errors.Join(errs...)
}

// Behaviour returns the current behaviour of the VPC.
func (v *VPC) Behaviour() Behaviour { return *v.behaviour.Load() }

// SetBehaviour changes the behaviour of the VPC. Instances learn other DHCP options
// with their next lease, as on EC2; another MTU applies to the links at once.
func (v *VPC) SetBehaviour(b Behaviour) error {
	if err := b.Check(); err != nil {
		return err
	}
	v.setMu.Lock()
	defer v.setMu.Unlock()
	old := v.behaviour.Swap(&b)
	v.meta.paced.SetPace(b.Metadata)
	if old.Lifetimes.AdvertiseEvery != b.Lifetimes.AdvertiseEvery {
		for _, sn := range v.subnets {
			select {
			case sn.repace <- struct{}{}:
			default: // a notification is already pending
			}
		}
	}
	if old.MTU == b.MTU {
		return nil
	}
	return v.setMTU(b.mtu())
}

// mtu is the MTU of the VPC's links in bytes.
func (b Behaviour) mtu() int {
	if b.MTU == 0 {
		return 1500
	}
	return b.MTU
}

// setMTU changes the MTU of all links that the VPC has.
func (v *VPC) setMTU(mtu int) error {
	links, err := v.thread.link.LinkList()
	if err != nil {
		return fmt.Errorf("listing the VPC's links: %w", err)
	}
	for _, l := range links {
		if l.Type() != "bridge" && l.Type() != "veth" && l.Type() != "tuntap" {
			continue
		}
		if err := v.thread.link.LinkSetMTU(l, mtu); err != nil && !linkGone(err) {
			return fmt.Errorf("setting the MTU of %s: %w", l.Attrs().Name, err)
		}
	}
	return nil
}

// chance is a source of random numbers that depends only on the lab's seed, its
// purpose, and numbers: a test gets the same numbers each time, whatever happens
// meanwhile.
func (v *VPC) chance(what string, numbers ...int) *rand.Rand {
	const prime = 0x100000001b3 // of FNV-1a
	stream := uint64(0xcbf29ce484222325)
	for _, b := range []byte(what) {
		stream = (stream ^ uint64(b)) * prime
	}
	for _, n := range numbers {
		stream = (stream ^ uint64(n)) * prime
	}
	return rand.New(rand.NewPCG(v.opts.Seed, stream))
}
