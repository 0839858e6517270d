package compare

import (
	"cmp"
	"net/netip"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
)

// tableRoute is a route to a prefix and the table of it.
type tableRoute struct {
	prefix netip.Prefix
	table  int
}

// files is what the generated drop-ins of an ENI ask for.
type files struct {
	addresses map[netip.Addr]bool
	routes    map[tableRoute]bool
	rules     map[plan.Rule]bool
	local     map[netip.Prefix]bool
	altnames  []string
	// leases: they leave addresses and the MTU to DHCP.
	leases bool
	// metric of the default routes in the main table, 0 if they say nothing of them.
	metric int
	// mtu of the link, 0 if they say nothing of it.
	mtu int
}

// filesOf returns what drop-ins ask for.
func filesOf(rendered Rendered) files {
	f := files{altnames: rendered.Link.Names()}
	n := rendered.Network
	if n == nil {
		return f
	}
	f.rules = setOf(plan.RulesOf(n))
	f.addresses = make(map[netip.Addr]bool, len(n.Addresses))
	f.routes, f.local = make(map[tableRoute]bool, len(n.Routes)), make(map[netip.Prefix]bool)
	route := func(r *dropin.Route) {
		if r.Type == dropin.TypeLocal {
			f.local[r.To()] = true
		} else {
			f.routes[tableRoute{r.To(), cmp.Or(r.Table, kernel.MainTable)}] = true
		}
	}
	for i := range n.Addresses {
		f.addresses[n.Addresses[i].Address.Addr()] = true
		if subnet := &n.Addresses[i].Subnet; *subnet != (dropin.Route{}) {
			route(subnet)
		}
	}
	for i := range n.Routes {
		route(&n.Routes[i])
	}
	f.leases = n.DHCPv4.RouteMetric != 0
	if f.mtu = n.Link.MTUBytes; n.DHCPv4.UseGateway != dropin.No {
		f.metric = n.DHCPv4.RouteMetric
	}
	return f
}
