package compare

import (
	"fmt"
	"net/netip"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
)

const (
	primaryMAC = "02:00:00:00:01:10"
	base       = "/usr/lib/systemd/network/80-ec2.network"
	defaultFor = "/usr/lib/systemd/network/99-default.link"
)

func addrs(texts ...string) []netip.Addr {
	var out []netip.Addr
	for _, t := range texts {
		out = append(out, netip.MustParseAddr(t))
	}
	return out
}

func prefixes(texts ...string) []netip.Prefix {
	var out []netip.Prefix
	for _, t := range texts {
		out = append(out, netip.MustParsePrefix(t))
	}
	return out
}

func view(index int, ipv4, ipv6 []netip.Addr) metadata.ENI {
	v := metadata.ENI{
		MAC: fmt.Sprintf("02:00:00:00:01:1%x", index), ID: fmt.Sprintf("eni-0123456789abcdef%x", index), DeviceIndex: index,
		IPv4: ipv4, IPv6: ipv6,
	}
	if len(ipv4) > 0 {
		v.IPv4Subnets = prefixes("10.0.1.0/24")
	}
	if len(ipv6) > 0 {
		v.IPv6Subnets = prefixes("2001:db8:1::/64")
	}
	return v
}

// leased is the link of a view after DHCP has done its part.
func leased(index int, v *metadata.ENI) plan.Link {
	l := plan.Link{LinkFile: defaultFor}
	l.Index, l.Name, l.MAC, l.Driver = index+2, fmt.Sprintf("ens%d", index+5), v.MAC, "ena"
	if len(v.IPv4) > 0 {
		l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.PrefixFrom(v.IPv4[0], 24), Global: true, Dynamic: true})
		l.DHCPMetrics = []int{plan.Numbers{Index: v.DeviceIndex}.Metric()}
	}
	return l
}

func input(links []plan.Link, views ...metadata.ENI) plan.Input {
	in := plan.Input{PrimaryMAC: primaryMAC, Views: map[string]metadata.ENI{}, Links: links, Base: base}
	for _, v := range views {
		in.Views[v.MAC] = v
	}
	return in
}

// rendered are the drop-ins of an ENI's files as they are read from the disk.
func rendered(eni *plan.ENI) (r Rendered) {
	for _, f := range eni.Files {
		switch f.Path {
		case plan.NetworkDropIn(eni.Link.Name):
			r.Network = dropin.ParseNetwork(f.Content)
		case plan.LinkDropIn(eni.Link.Name):
			r.Link = dropin.ParseLink(f.Content)
		}
	}
	return r
}

// anyRule: every rule by networkd's protocol is this daemon's.
func anyRule(plan.Rule) bool { return true }

// against compares an ENI whose files are written with what networkd and the kernel have. applied is
// nil if networkd has not told.
func against(eni *plan.ENI, applied, snapshot *kernel.Snapshot, withdrawn ...netip.Addr) Result {
	return ENI(eni, Actual{Rendered: rendered(eni), Applied: applied, Kernel: snapshot, Withdrawn: withdrawn, Ours: anyRule})
}
