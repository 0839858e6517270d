package metadata

import (
	"slices"

	"ec2netd/service/kernel"
)

// mostLinks is how many links a read is tried over.
const mostLinks = 3

// Way says how the service may be asked.
type Way struct {
	// Endpoint in place of the two well-known ones, or empty.
	Endpoint string
	// Imdsd is the socket of systemd-imdsd, or empty.
	Imdsd string
}

// Paths are the ways to the service, the best first (D2): over the ENI of mac, else
// over the primary one, else over others, by IPv4 and then by IPv6; each bound to its
// link. Links without a usable address give none.
func (w Way) Paths(links []kernel.Link, mac, primary string) []Path {
	if w.Endpoint != "" {
		return []Path{{Endpoint: w.Endpoint}}
	}
	var devices [3][]int
	for i, l := range links {
		rank := 2
		switch l.MAC {
		case mac:
			rank = 0
		case primary:
			rank = 1
		}
		devices[rank] = append(devices[rank], i)
	}
	var ipv4, ipv6 []Path
	best := 0
	for _, index := range slices.Concat(devices[:]...) {
		l := &links[index]
		var has4, has6 bool
		for _, address := range l.Addresses {
			// In an IPv6-only subnet DHCP hands out a link-local IPv4 address with an
			// unusable gateway (facts: ipv6-only-subnets).
			if address.Global && !address.Tentative && !address.Prefix.Addr().IsLinkLocalUnicast() {
				has4 = has4 || address.Prefix.Addr().Is4()
				has6 = has6 || address.Prefix.Addr().Is6()
			}
		}
		if (has4 || has6) && l.MAC == primary {
			best = l.Index
		}
		if has4 && len(ipv4) < mostLinks {
			ipv4 = append(ipv4, Path{Device: l.Name, Index: l.Index, Endpoint: EndpointIPv4})
		}
		if has6 && len(ipv6) < mostLinks {
			ipv6 = append(ipv6, Path{Device: l.Name, Index: l.Index, Endpoint: EndpointIPv6})
		}
	}
	direct := slices.Concat(ipv4, ipv6)
	if len(direct) == 0 || w.Imdsd == "" {
		return direct
	}
	// Where direct access is prohibited: over the primary ENI, the way that the lock leaves open,
	// or over any that it finds (D9). From another ENI's address the rules for local networks (B9) lead to the lock.
	if best == 0 {
		best = direct[0].Index
	}
	return append(direct, Path{Socket: w.Imdsd, Index: best}, Path{Socket: w.Imdsd})
}

// PathsAnywhere returns the ways to the service, the best first, of a program that does not wait for an
// ENI to have an address: where none has one, some other link may lead to the service.
func (w Way) PathsAnywhere(links []kernel.Link, primary string) []Path {
	if paths := w.Paths(links, "", primary); len(paths) > 0 {
		return paths
	}
	return []Path{{Endpoint: EndpointIPv4}, {Endpoint: EndpointIPv6}, {Socket: w.Imdsd}}
}
