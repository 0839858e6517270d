package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ec2netd/service/plan"
)

// Times of rules that networkd has forgotten.
const (
	// orphanTime is how long networkd has to remove a rule that no file wants any more.
	// It takes some milliseconds.
	orphanTime = time.Second
	// recordTime is how long a rule that is nowhere any more stays in the record: networkd
	// may be about to add it.
	recordTime = time.Minute
)

// Rules is the record of the rules that are this daemon's.
type Rules interface {
	Read() ([]plan.Rule, error)
	Write(rules []plan.Rule) error
}

// loadRules takes up the record that an earlier run left. Without it no rule is known to
// be this daemon's but those of its files.
func (a *Agent) loadRules(now time.Time) {
	if a.Rules == nil {
		return
	}
	rules, err := a.Rules.Read()
	if err != nil {
		a.Log.Warn("What the last run knew cannot be used; rules that networkd forgot may stay", "reason", err.Error())
	}
	for _, rule := range rules {
		a.rules[rule] = now
	}
}

// noteRules puts the rules of files that are, and of those that are about to be written,
// in the record: before networkd can read them, so that none is ever unknown. Rules that
// have been nowhere for a while leave it.
func (a *Agent) noteRules(now time.Time) {
	if a.Rules == nil {
		return
	}
	changed := false
	for _, rule := range append(a.generatedRules(), plan.RulesOf(a.plan.Files)...) {
		_, known := a.rules[rule]
		changed = changed || !known
		a.rules[rule] = now
	}
	for i := range a.snapshot.Rules {
		if rule, ok := plan.RuleOf(&a.snapshot.Rules[i]); ok {
			if _, known := a.rules[rule]; known {
				a.rules[rule] = now
			}
		}
	}
	maps.DeleteFunc(a.rules, func(_ plan.Rule, last time.Time) bool {
		changed = changed || now.Sub(last) > recordTime
		return now.Sub(last) > recordTime
	})
	if !changed {
		return
	}
	if err := a.Rules.Write(slices.Collect(maps.Keys(a.rules))); err != nil {
		a.say("rules", "Rules that networkd forgets may stay", "reason", err.Error())
		return
	}
	a.unsay("rules")
}

// generatedRules are those of the generated files on disk.
func (a *Agent) generatedRules() []plan.Rule {
	units, err := a.Store.Units()
	if err != nil {
		return nil
	}
	var rules []plan.Rule
	for _, unit := range units {
		rules = append(rules, plan.RulesIn(a.Store.Read(plan.NetworkDropIn(unit.Name)))...)
	}
	return rules
}

// removeOrphans has the rules removed that networkd has forgotten. It tells whether it
// did.
func (a *Agent) removeOrphans(ctx context.Context, now time.Time) bool {
	if a.Rules == nil || a.RemoveOrphans == nil {
		return false
	}
	record := slices.Collect(maps.Keys(a.rules))
	orphans := plan.Orphans(record, a.generatedRules(), a.snapshot.Rules)
	if len(orphans) > 0 {
		// What somebody else's file wants is not looked at before it matters.
		wanted, err := a.Store.Rules()
		if err != nil {
			a.say("orphans", "Rules that networkd forgot stay", "reason", err.Error())
			return false
		}
		orphans = plan.Orphans(record, wanted, a.snapshot.Rules)
	}
	if len(orphans) == 0 {
		a.orphanAt, a.orphanDelay = time.Time{}, 0
		a.unsay("orphans")
		return false
	}
	if a.orphanAt.IsZero() {
		a.orphanAt = now.Add(orphanTime)
	}
	if !reached(a.orphanAt, now) || a.busDown {
		return false
	}
	a.orphanDelay = min(max(2*a.orphanDelay, settleTime), slowestRepair)
	a.orphanAt = now.Add(jitter(a.orphanDelay))
	names := make([]string, 0, len(orphans))
	for _, rule := range orphans {
		names = append(names, fmt.Sprintf("from %s lookup %d", rule.From, rule.Table))
	}
	if err := a.RemoveOrphans(ctx); err != nil {
		a.say("orphans", "Rules that networkd forgot stay", "rules", strings.Join(names, ", "), "reason", err.Error())
		return false
	}
	a.Log.Info("Removed policy rules that networkd had forgotten", "rules", strings.Join(names, ", "))
	return true
}

// ours tells whether a policy rule is surely this daemon's.
func (a *Agent) ours(rule plan.Rule) bool {
	_, recorded := a.rules[rule]
	return recorded
}
