package plan

import (
	"cmp"
	"net/netip"
	"slices"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/status"
)

// Networkd is what was observed of the networkd that runs.
type Networkd struct {
	// Running: it is on the bus.
	Running bool
	// Varlink: it has its socket io.systemd.Network.
	Varlink bool
	// Keeps: the one that is installed, and will run, is of 256 or later.
	Keeps bool
}

// keepsAll tells whether ENIs have KeepConfiguration=yes (A8, F1). With that systemd 257 and
// 262 take away what was in the files and is no more, and nothing else; 252 takes all away with
// each reload, and adds it anew. It has to be right in what networkd reads first.
func keepsAll(n Networkd) bool {
	if n.Running {
		return n.Varlink
	}
	return n.Keeps
}

// applicable is what of a view applies to a link: all, or all but IPv6 where the link has
// none (A13).
func applicable(view metadata.ENI, ipv6 kernel.IPv6) metadata.ENI {
	if ipv6 != kernel.IPv6On {
		view.IPv6, view.IPv6Prefixes, view.IPv6Subnets = nil, nil, nil
	}
	return view
}

// IPv6NotApplicable says why the IPv6 of the metadata does not apply to the ENI. It says nothing
// where it does, and where the metadata has none.
func (e *ENI) IPv6NotApplicable() status.Reason {
	if len(e.View.IPv6)+len(e.View.IPv6Prefixes) == 0 {
		return status.Reason{}
	}
	switch e.Link.IPv6 {
	case kernel.IPv6OffHost:
		return status.Reason{Code: status.IPv6OffHost}
	case kernel.IPv6OffLink:
		return status.Reason{Code: status.IPv6OffLink, Subject: e.Link.Name}
	case kernel.IPv6None:
		return status.Reason{Code: status.IPv6None}
	}
	return status.Reason{}
}

// RulesWithIPv6 returns the policy rules that the ENI would have in addition if its link had IPv6.
func (e *ENI) RulesWithIPv6() []Rule {
	want := &e.Want
	of := Want{Table: want.Table, Guarded: want.Guarded, Rules: slices.Clone(e.View.IPv6Prefixes)}
	for _, address := range e.View.IPv6 {
		of.Rules = append(of.Rules, netip.PrefixFrom(address, address.BitLen()))
	}
	switch {
	case len(want.LocalFirst) == 0:
	case slices.Equal(want.LocalFirst, want.Rules):
		of.LocalFirst = of.Rules
	default:
		of.LocalFirst = e.View.IPv6Subnets
	}
	if want.Mark.Value != 0 {
		of.Mark, of.Marked = want.Mark, every(false, true)
	}
	return of.PolicyRules()
}

// ipv6Off keeps networkd from switching IPv6 on, which it does on a link that is to have a
// link-local or any static IPv6 address, with each reload and restart (facts:
// ipv6-switched-off-by-sysctl): the administrator's sysctl shall win.
func ipv6Off(n *dropin.Network) {
	n.Network.DHCP, n.Network.LinkLocalAddressing, n.Network.IPv6AcceptRA = dropin.DHCPIPv4, dropin.LinkLocalNo, dropin.No
}

// Technique is how the IPv6 of the primary ENI outlives a reload. A secondary ENI's is
// static in any case: it can be so from the first moment, when there is nothing to lose.
type Technique int

// The techniques.
const (
	// Undecided: networkd does not run. What stands in the drop-in stays as it is.
	Undecided Technique = iota
	// Dynamic: addresses and routers come by DHCPv6 and router advertisements. A reload
	// keeps them, so nothing must change for its sake. Several addresses are static, as one of
	// them is the source (A11).
	Dynamic
	// Static: addresses, and a route to each known router, stand in the drop-in, for a
	// reload drops all that DHCPv6 and advertisements brought.
	Static
)

// String names it, for the log.
func (t Technique) String() string { return [...]string{"undecided", "dynamic", "static"}[t] }

// Choose decides on the technique (decisions/003), and says why. That a reload keeps what is dynamic is
// nothing that networkd tells. Its Varlink socket came with it: 252 has neither, 257 and
// 262 have both (facts: versions), and it is a fact of the networkd that runs, which a version,
// PID 1's or that of a file, is not. Where it is missing for another reason the choice is
// the one that is right for all.
func Choose(networkd Networkd) (technique Technique, why string) {
	switch {
	case !networkd.Running:
		return Undecided, "systemd-networkd does not run"
	case networkd.Varlink:
		return Dynamic, "systemd-networkd keeps leases and routers over a reload, being one with a Varlink socket"
	}
	return Static, "systemd-networkd drops the DHCPv6 lease and routers with a reload, being one without a Varlink socket"
}

// compose fills in what stands in the drop-in. Every reload costs a link of networkd 252
// what its router advertised, so what can wait for the next one does: a router that is
// known now and was not then, and moving the primary's IPv6 to static addresses (E1, E2).
// It returns the technique of the networkd that runs, and the routers that would stand in a
// new drop-in.
func compose(eni *ENI, in Input) (technique Technique, better []netip.Addr) {
	link, want := &eni.Link, &eni.Want
	stays, better := routers(eni, in)
	technique, _ = Choose(in.Networkd)
	want.Ahead = ahead(eni)
	// DHCPv6 leases all addresses of the ENI: those too that are not to be on the link (A12), and
	// all of them alike, with each renewal (A11).
	want.StaticIPv6, want.Routers = !eni.Primary || link.Current.WithoutDHCPv6() || len(eni.Applies.IPv6) > 1, stays
	var held []netip.Addr
	want.Static, held = static(eni, technique)
	eni.Held = len(held) > 0
	if networkDropIn(eni).Equal(link.Current) && !replaced(eni, better) {
		return technique, better
	}
	if all := want.Rules; eni.Held && link.Current != nil {
		// A rule alone is no reason for a reload: its address needs one soon (E1).
		want.Rules = withoutHeld(all, RulesOf(link.Current), held)
		if networkDropIn(eni).Equal(link.Current) {
			return technique, better
		}
		want.Rules = all
	}
	now := technique
	if technique == Undecided && in.Hint != nil && in.Hint.StaticIPv6 {
		now = Static
	}
	want.StaticIPv6 = want.StaticIPv6 || (want.IPv6 && now == Static)
	want.Routers = better
	want.Static, held = static(eni, now)
	eni.Held = len(held) > 0
	return technique, better
}

// routersFirst reports whether the routers of an ENI that stand in its drop-in go before those
// that are advertised, see [keepRouters].
func routersFirst(eni *ENI) bool {
	return eni.Primary && (!eni.Want.StaticIPv6 || eni.Want.KeepAll)
}

// takesOver reports whether static addresses take the place of those that DHCPv6 has brought in
// one reload, without a moment's absence (facts: static-ipv6). networkd from 256 on does so
// where DHCPv6 stays on and has no lease at that time. With DHCPv6 off it removes the addresses
// and adds them again, and does not know them for its own afterwards; with a lease some
// milliseconds later it may remove those that it has just added.
func takesOver(eni *ENI) bool { return eni.Primary && eni.Want.KeepAll && eni.Want.IPv4 }

// replaced reports whether routers that stand in the drop-in must not wait for the next reload:
// with [Dynamic] they go before those that are advertised, and another one advertises itself.
// Which of them is there, the kernel finds out.
func replaced(eni *ENI, better []netip.Addr) bool {
	stays := eni.Want.Routers
	return routersFirst(eni) && len(stays) > 0 &&
		slices.ContainsFunc(better, func(r netip.Addr) bool { return !slices.Contains(stays, r) })
}

// routers returns the IPv6 routers of an ENI's subnet: those that stand in the drop-in, as
// long as one of them advertises itself or none does, and those that would stand in a new
// one. They advertise themselves on the link or, before they have done so there, on the
// link of another ENI in the subnet; or the last boot knew them.
func routers(eni *ENI, in Input) (stay, better []netip.Addr) {
	if !eni.Want.IPv6 {
		return nil, nil
	}
	current := eni.Link.Current.Routers()
	found := slices.Clone(eni.Link.Routers)
	if len(found) == 0 {
		for _, link := range in.Links {
			view, ok := in.Views[link.MAC]
			if ok && slices.ContainsFunc(view.IPv6Subnets, func(p netip.Prefix) bool { return slices.Contains(eni.View.IPv6Subnets, p) }) {
				found = append(found, link.Routers...)
			}
		}
	}
	if len(found) == 0 && len(current) == 0 && in.Hint != nil {
		return nil, in.Hint.Routers[eni.Link.MAC]
	}
	if len(found) == 0 {
		return current, current
	}
	// Those that are new first: where they differ in their metrics, that is the best.
	slices.SortFunc(found, func(a, b netip.Addr) int {
		return cmp.Or(cmp.Compare(slices.Index(current, a), slices.Index(current, b)), a.Compare(b))
	})
	found = slices.Compact(found)
	if len(current) > 0 && !slices.ContainsFunc(current, func(r netip.Addr) bool { return slices.Contains(found, r) }) {
		return found, found
	}
	return current, found
}
