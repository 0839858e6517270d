package plan

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/kernel"
)

// Rule is a policy rule as generated drop-ins have them.
type Rule struct {
	// From is the source, and tells the family.
	From     netip.Prefix `json:"from"`
	Table    int          `json:"table"`
	Priority int          `json:"priority"`
	// Guard: default routes of the table do not count (SuppressPrefixLength=0).
	Guard bool `json:"guard,omitempty"`
}

// Compare orders rules.
func (r Rule) Compare(o Rule) int {
	switch {
	case r.Priority != o.Priority:
		return r.Priority - o.Priority
	case r.Table != o.Table:
		return r.Table - o.Table
	}
	return r.From.Compare(o.From)
}

// RulesIn returns the policy rules by source that a unit file of networkd has: those of
// a generated one, and those of others' that are the same.
func RulesIn(content string) []Rule {
	var found []Rule
	var rule Rule
	inside, plain := false, false
	end := func() {
		if inside && plain && rule.From.IsValid() && rule.Table != 0 {
			found = append(found, rule)
		}
	}
	for line := range strings.Lines(content) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, "[") {
			end()
			rule, inside, plain = Rule{}, line == "[RoutingPolicyRule]", true
			continue
		}
		key, value, ok := strings.Cut(line, "=")
		if !inside || !ok || strings.HasPrefix(line, "#") || strings.HasPrefix(line, ";") {
			continue
		}
		value = strings.TrimSpace(value)
		var err error
		switch strings.TrimSpace(key) {
		case "From":
			rule.From, err = parsePrefix(value)
		case "Table":
			rule.Table, err = tableNumber(value)
		case "Priority":
			rule.Priority, err = strconv.Atoi(value)
		case "SuppressPrefixLength":
			rule.Guard = value == "0"
			plain = plain && rule.Guard
		}
		plain = plain && err == nil
	}
	end()
	return found
}

// parsePrefix takes a single address for a prefix, as networkd does.
func parsePrefix(value string) (netip.Prefix, error) {
	if address, err := netip.ParseAddr(value); err == nil {
		return netip.PrefixFrom(address, address.BitLen()), nil
	}
	prefix, err := netip.ParsePrefix(value)
	return prefix.Masked(), err
}

func tableNumber(value string) (int, error) {
	if value == "main" {
		return kernel.MainTable, nil
	}
	return strconv.Atoi(value)
}

// is tells whether a rule of the kernel is this one, and networkd's.
func (r Rule) is(k *kernel.Rule) bool {
	return k.Protocol == kernel.ProtocolStatic && k.Priority == r.Priority && k.Table == r.Table && k.From == r.From &&
		((k.Plain && !r.Guard) || (k.Guard && r.Guard))
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
	// The kernel removes the first rule that has what it is asked to remove and maybe more,
	// such as a mark: one that is not this daemon's must not be that.
	first := make(map[Rule]*kernel.Rule, len(rules))
	for i := range rules {
		k := &rules[i]
		asked := Rule{From: k.From, Table: k.Table, Priority: k.Priority}
		for _, asked.Guard = range []bool{false, true} {
			if first[asked] == nil && (!asked.Guard || k.Guard) {
				first[asked] = k
			}
		}
	}
	for rule := range unwanted {
		if k := first[rule]; k != nil && rule.is(k) {
			found = append(found, rule)
		}
	}
	slices.SortFunc(found, Rule.Compare)
	return found
}

// RulesOf are the rules of generated files.
func RulesOf(files []File) []Rule {
	var rules []Rule
	for _, file := range files {
		rules = append(rules, RulesIn(file.Content)...)
	}
	return rules
}

// RuleOf is a rule of the kernel as a generated drop-in would have it, if it could.
func RuleOf(k *kernel.Rule) (Rule, bool) {
	rule := Rule{From: k.From, Table: k.Table, Priority: k.Priority, Guard: k.Guard}
	return rule, rule.is(k)
}
