package plan

import (
	"cmp"
	"fmt"
	"net/netip"
	"slices"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/status"
)

// Rule is a policy rule as generated drop-ins have them.
type Rule struct {
	// From is the source, and tells the family; 0.0.0.0/0 or ::/0 with Mark.
	From     netip.Prefix `json:"from"`
	Table    int          `json:"table"`
	Priority int          `json:"priority"`
	// Guard: routes of the table that are no longer than [kernel.GuardLength] do not count
	// (SuppressPrefixLength=), nor do those over links of Group, if that is not 0
	// (SuppressInterfaceGroup=).
	Guard bool `json:"guard,omitempty"`
	Group int  `json:"group,omitempty"`
	// Mark selects by firewall mark, if it is not the zero Mark.
	Mark dropin.Mark `json:"mark,omitzero"`
}

// String is the rule as ip-rule(8) has it.
func (r Rule) String() string {
	text := "from " + r.From.String()
	if r.Mark != (dropin.Mark{}) {
		text += " fwmark " + r.Mark.String()
	}
	text += fmt.Sprintf(" lookup %d", r.Table)
	if r.Guard {
		text += fmt.Sprintf(" suppress_prefixlength %d", kernel.GuardLength(r.Group))
	}
	if r.Group != 0 {
		text += fmt.Sprintf(" suppress_ifgroup %d", r.Group)
	}
	return text
}

// PolicyRules are the policy rules of an ENI, in the order of its drop-in.
func (w *Want) PolicyRules() []Rule {
	if w.Table == 0 {
		return nil
	}
	rules := make([]Rule, 0, len(w.Marked)+len(w.LocalFirst)+2*len(w.Rules))
	for _, every := range w.Marked {
		rules = append(rules, Rule{From: every, Mark: w.Mark, Table: w.Table, Priority: MarkPriority})
	}
	for _, from := range w.LocalFirst {
		rules = append(rules, Rule{From: from, Table: kernel.MainTable, Priority: localPriority, Guard: true, Group: Group})
	}
	for _, from := range w.Rules {
		if w.Guarded {
			rules = append(rules, Rule{From: from, Table: kernel.MainTable, Priority: guard(w.Table), Guard: true})
		}
		rules = append(rules, Rule{From: from, Table: w.Table, Priority: w.Table})
	}
	if w.Lead == 0 {
		return rules
	}
	for _, every := range w.Marked {
		rules = append(rules, Rule{From: every, Mark: w.Mark, Table: w.Table, Priority: w.Lead})
	}
	for _, from := range w.LocalFirst {
		rules = append(rules, Rule{From: from, Table: kernel.MainTable, Priority: w.Lead + 1, Guard: true, Group: Group})
	}
	for _, from := range w.Rules {
		if w.Guarded {
			rules = append(rules, Rule{From: from, Table: kernel.MainTable, Priority: w.Lead + 1, Guard: true})
		}
		rules = append(rules, Rule{From: from, Table: w.Table, Priority: w.Lead + 2})
	}
	return rules
}

// lead returns the priority of the rules that go before those of a VPN, whose rule for everything
// has the priority tunnel, or 0 where there is no need or no room. The kernel gives a rule without
// a priority, as wg-quick(8) adds two, one less than the least there is: what comes last goes
// first, whatever the priorities of ENIs are. wg-quick's other rule has tunnel-1, and looks up what
// is specific in the main table: for packets of an ENI's address that is left to the ENI's rules.
func lead(tunnel, table int) int {
	const before = 4
	if tunnel == 0 || tunnel > table || tunnel <= before {
		return 0
	}
	return tunnel - before
}

// localFirst returns the sources for which a specific route of the main table over a link that is
// no ENI goes before the table of an ENI (B9): its subnets, which have all its addresses and
// prefixes. A rule for each address would double the rules, of which the kernel tries one after
// the other. ENIs of one subnet have the same rule: networkd keeps it as long as one of their files
// has it (facts: foreign-items).
//
// A subnet has addresses of others too, the primary's as a rule. Where the metadata service is
// locked (D9), the lock is a route of the main table, and the way through it from the primary's
// address a rule that comes later: so there is a rule for each address then.
func localFirst(eni *ENI, locked bool) []netip.Prefix {
	if locked {
		return eni.Want.Rules
	}
	subnets := slices.SortedFunc(slices.Values(slices.Concat(eni.Applies.IPv4Subnets, eni.Applies.IPv6Subnets)), netip.Prefix.Compare)
	sources := slices.Clone(subnets)
	for _, from := range eni.Want.Rules {
		if !slices.ContainsFunc(subnets, func(s netip.Prefix) bool { return s.Bits() <= from.Bits() && s.Contains(from.Addr()) }) {
			sources = append(sources, from)
		}
	}
	return sources
}

// imdsMark is the firewall mark of packets that systemd-imdsd sends to the metadata service
// (facts: locked-service).
const imdsMark = 0x7FFF0815

// Locked reports whether the kernel has the rule by which systemd-imdsd reaches a metadata service
// that is prohibited to all others.
func Locked(rules []kernel.Rule) bool {
	return slices.ContainsFunc(rules, func(k kernel.Rule) bool { return k.Mark == imdsMark })
}

// MarkPriority is the priority of the rules by firewall mark (B12), before all others of ENIs:
// whoever marks a packet knows better than its source where it has to go.
const MarkPriority = localPriority - 1

// settleMarks sees to it that a packet with a mark has one way to go: of ENIs whose marks a
// packet can have at once the first has the rule (B5, B12). The others say so. What is on disk
// for an ENI that is not known stays, and goes before.
func settleMarks(enis []ENI) {
	type claim struct {
		mark dropin.Mark
		of   string
	}
	var claims []claim
	var known []*ENI
	for i := range enis {
		eni := &enis[i]
		if eni.Known {
			known = append(known, eni)
			continue
		}
		for _, rule := range RulesOf(eni.Link.Current) {
			if rule.Mark.Value != 0 {
				claims = append(claims, claim{rule.Mark, eni.Link.Name})
			}
		}
	}
	slices.SortFunc(known, func(a, b *ENI) int { return order(*a, *b) })
	for _, eni := range known {
		mark := eni.Settings.FirewallMark
		if mark.Value == 0 || !eni.Settings.Managed {
			continue
		}
		first := slices.IndexFunc(claims, func(c claim) bool { return c.mark.Overlaps(mark) })
		if first < 0 {
			claims = append(claims, claim{mark, eni.Link.Name})
			continue
		}
		eni.Unmarked = status.Reason{Code: status.MarkTaken, Value: mark.String(), Other: claims[first].of, OtherValue: claims[first].mark.String()}
	}
}

// markOf is the firewall mark of an ENI that is in force, or the zero Mark.
func markOf(eni *ENI) dropin.Mark {
	if !eni.Unmarked.None() {
		return dropin.Mark{}
	}
	return eni.Settings.FirewallMark
}

// every is what the rules by mark of an ENI with these families are for.
func every(ipv4, ipv6 bool) []netip.Prefix {
	var all []netip.Prefix
	if ipv4 {
		all = append(all, netip.PrefixFrom(netip.IPv4Unspecified(), 0))
	}
	if ipv6 {
		all = append(all, netip.PrefixFrom(netip.IPv6Unspecified(), 0))
	}
	return all
}

// ungrouped reports whether the link of an ENI is not in the group of ENIs, and will not be:
// somebody else's file is in force for it, or none. By the rules for those (B9) it would count as a link
// of the host's own. ec2netctl doctor says so.
func ungrouped(eni *ENI) bool {
	link := &eni.Link
	if eni.View.MAC == "" || eni.Twice || link.Group == Group {
		return false
	}
	return link.Taken != "" || link.NetworkHidden != "" || link.OnOthers || (link.OffBase && (link.Elsewhere || !eni.Settings.Managed))
}

// Compare orders rules.
func (r Rule) Compare(o Rule) int {
	switch {
	case r.Priority != o.Priority:
		return r.Priority - o.Priority
	case r.Table != o.Table:
		return r.Table - o.Table
	case r.Group != o.Group:
		return r.Group - o.Group
	}
	return cmp.Or(r.From.Compare(o.From), cmp.Compare(r.Mark.Value, o.Mark.Value), cmp.Compare(r.Mark.Mask, o.Mark.Mask))
}

// section is the rule as it stands in a drop-in.
func (r Rule) section() dropin.RoutingPolicyRule {
	s := dropin.RoutingPolicyRule{FirewallMark: r.Mark, Table: r.Table, Priority: r.Priority, SuppressInterfaceGroup: r.Group}
	switch {
	case r.Mark.Value == 0 || r.From.Bits() > 0:
		s.From = r.From
	case r.From.Addr().Is4():
		s.Family = dropin.IPv4
	default:
		s.Family = dropin.IPv6
	}
	if r.Guard {
		s.SuppressPrefixLength = dropin.LengthOf(kernel.GuardLength(r.Group))
	}
	return s
}

// RulesIn returns the policy rules by source or by mark that a unit file of networkd has, those of
// others' that are the same as generated ones.
func RulesIn(content string) []Rule { return RulesOf(dropin.ParseNetwork(content)) }

// RulesOf returns the policy rules by source or by mark of a drop-in.
func RulesOf(n *dropin.Network) []Rule {
	if n == nil {
		return nil
	}
	found := make([]Rule, 0, len(n.Rules))
	for i := range n.Rules {
		s := &n.Rules[i]
		rule := Rule{From: s.From, Table: s.Table, Priority: s.Priority, Group: s.SuppressInterfaceGroup, Mark: s.FirewallMark}
		rule.Guard = s.SuppressPrefixLength == dropin.LengthOf(kernel.GuardLength(rule.Group))
		switch {
		case rule.Table == 0, !rule.Guard && (s.SuppressPrefixLength.Set || rule.Group != 0):
		case rule.From.IsValid():
			found = append(found, rule)
		case rule.Mark == dropin.Mark{}:
		default:
			for _, rule.From = range every(s.Family == "" || s.Family == dropin.IPv4 || s.Family == dropin.Both, s.Family == dropin.IPv6 || s.Family == dropin.Both) {
				found = append(found, rule)
			}
		}
	}
	return found
}

// is tells whether a rule of the kernel is this one, and networkd's.
func (r Rule) is(k *kernel.Rule) bool {
	rule, ok := RuleOf(k)
	return ok && rule == r
}

// hits reports whether the kernel, asked to remove the rule, could take another one for it:
// that has what it is asked for and maybe more, such as a mark.
func (r Rule) hits(k *kernel.Rule) bool {
	source := k.From == r.From || (r.From.Bits() == 0 && k.IPv4 == r.From.Addr().Is4())
	mark := r.Mark == (dropin.Mark{}) || r.Mark == dropin.Mark{Value: k.Mark, Mask: k.Mask}
	return k.Priority == r.Priority && k.Table == r.Table && source && mark && (!r.Guard || k.Guard) && (r.Group == 0 || k.Group == r.Group)
}

// Orphans are the policy rules that networkd has forgotten: the kernel has them, they
// are surely this daemon's, since record is of those that stood in its files, and no
// file wants them any more. From systemd 257 on networkd knows no rule that was there
// before it started (with ManageForeignRoutingPolicyRules=no), so that it never removes
// one again after a restart; on all versions it forgets those of a link that went while
// it did not run.
func Orphans(record, wanted []Rule, rules []kernel.Rule) []Rule {
	var found []Rule
	unwanted := make(map[Rule]bool, len(record))
	for _, rule := range record {
		unwanted[rule] = true
	}
	for _, rule := range wanted {
		delete(unwanted, rule)
	}
	if len(unwanted) == 0 {
		return nil
	}
	// The kernel removes the first rule that it can take for the one: a rule that is not this
	// daemon's must not be that.
	for rule := range unwanted {
		first := slices.IndexFunc(rules, func(k kernel.Rule) bool { return rule.hits(&k) })
		if first >= 0 && rule.is(&rules[first]) {
			found = append(found, rule)
		}
	}
	slices.SortFunc(found, Rule.Compare)
	return found
}

// Rules are the policy rules of all ENIs.
func (p *Plan) Rules() []Rule {
	var rules []Rule
	for i := range p.ENIs {
		rules = append(rules, RulesOf(p.ENIs[i].DropIn)...)
	}
	return rules
}

// RuleOf returns a rule of the kernel as a generated drop-in would have it, and reports whether one
// could have it and the rule is networkd's. The rule is set even if it reports false: it has what the
// kernel's rule has, so that a rule of another protocol can be compared with one of a drop-in.
func RuleOf(k *kernel.Rule) (Rule, bool) {
	rule := Rule{
		From: k.From, Table: k.Table, Priority: k.Priority, Guard: k.Guard, Group: k.Group,
		Mark: dropin.Mark{Value: k.Mark, Mask: k.Mask},
	}
	if k.Plain && !k.From.IsValid() {
		rule.From = every(k.IPv4, !k.IPv4)[0]
	}
	return rule, (k.Plain || k.Guard) && k.Protocol == kernel.ProtocolStatic
}
