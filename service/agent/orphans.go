package agent

import (
	"context"
	"fmt"
	"maps"
	"slices"
	"strings"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/store"
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
	stored
	Load() ([]plan.Rule, error)
	Put(rules []plan.Rule, now time.Time)
}

// noteRules puts the rules of files that are, and of those that are about to be written,
// in the record: before networkd can read them, so that none is ever unknown. Rules that
// have been nowhere for a while leave it.
func (a *Agent) noteRules(now time.Time) {
	if a.Rules == nil {
		return
	}
	generated := a.generatedRules()
	of := noting{planned: a.planned, generated: a.generated.count, snapshot: a.snapshot}
	if of == a.noted.of && !a.noted.leaving {
		a.noted.until = now
		return
	}
	for rule, last := range a.rules {
		if last.Equal(a.noted.at) {
			a.rules[rule] = a.noted.until
		}
	}
	a.noted.of, a.noted.at, a.noted.until, a.noted.leaving = of, now, now, false
	changed := false
	for _, rules := range [][]plan.Rule{generated, plan.RulesOf(a.plan.Files)} {
		for _, rule := range rules {
			_, known := a.rules[rule]
			changed = changed || !known
			a.rules[rule] = now
		}
	}
	for i := range a.snapshot.Rules {
		if rule, ok := plan.RuleOf(&a.snapshot.Rules[i]); ok {
			if _, known := a.rules[rule]; known {
				a.rules[rule] = now
			}
		}
	}
	maps.DeleteFunc(a.rules, func(_ plan.Rule, last time.Time) bool {
		old := now.Sub(last) > recordTime
		changed = changed || old
		a.noted.leaving = a.noted.leaving || (!old && last.Before(now))
		return old
	})
	if !changed {
		return
	}
	a.noted.count++
	a.Rules.Put(slices.Collect(maps.Keys(a.rules)), now)
}

// noted is how far the record is: what it was brought up to date with.
type noted struct {
	of noting
	// at is when that was, and until when nothing is known to have changed: the rules
	// that were last seen at the one were so until the other.
	at, until time.Time
	// leaving: some rules are to leave the record.
	leaving bool
	// count of the changes of the record.
	count uint64
}

// noting is what the record follows from: the count of plans and of changes of the files'
// rules, and the kernel.
type noting struct {
	planned, generated uint64
	snapshot           *kernel.Snapshot
}

// generated are the rules of the generated files on disk: the drop-ins, what they say, and
// the count of changes.
type generated struct {
	texts []string
	rules []plan.Rule
	count uint64
	seen  bool
}

// generatedRules are those of the generated files on disk.
// They are looked at once for each look at the kernel, and after files were written.
func (a *Agent) generatedRules() []plan.Rule {
	if a.generated.seen {
		return a.generated.rules
	}
	a.generated.seen = true
	units, err := a.Store.Units()
	if err != nil {
		units = nil
	}
	texts := make([]string, 0, len(units))
	for _, unit := range units {
		if unit.Kind == store.Network {
			texts = append(texts, a.Store.Read(plan.NetworkDropIn(unit.Name)))
		}
	}
	if slices.Equal(texts, a.generated.texts) {
		return a.generated.rules
	}
	a.generated = generated{texts: texts, count: a.generated.count + 1, seen: true}
	for _, text := range texts {
		a.generated.rules = append(a.generated.rules, plan.RulesIn(text)...)
	}
	return a.generated.rules
}

// inOrder is what the absence of orphans was last seen from.
type inOrder struct {
	noted, generated uint64
	snapshot         *kernel.Snapshot
}

// removeOrphans has the rules removed that networkd has forgotten. It tells whether it
// did.
func (a *Agent) removeOrphans(ctx context.Context, now time.Time) bool {
	if a.Rules == nil || a.RemoveOrphans == nil {
		return false
	}
	generated := a.generatedRules()
	of := inOrder{a.noted.count, a.generated.count, a.snapshot}
	if a.orphanAt.IsZero() && of == a.inOrder {
		return false
	}
	record := slices.Collect(maps.Keys(a.rules))
	orphans := plan.Orphans(record, generated, a.snapshot.Rules)
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
		a.orphanAt, a.orphanDelay, a.inOrder = time.Time{}, 0, of
		a.unsay("orphans")
		return false
	}
	if a.orphanAt.IsZero() {
		a.orphanAt = now.Add(orphanTime)
	}
	// Whoever removes them reads the record.
	if !reached(a.orphanAt, now) || a.busDown || a.Rules.Err() != nil {
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

// removeNames has the alternative names removed that are another ENI's by now and keep
// udevd from giving it them. It tells whether it did.
func (a *Agent) removeNames(ctx context.Context, now time.Time) bool {
	taken := slices.ContainsFunc(a.plan.ENIs, func(eni plan.ENI) bool {
		_, holder := a.nameElsewhere(&eni)
		return holder != ""
	})
	if !taken || a.RemoveOrphans == nil {
		a.namesTry = attempt{}
		a.unsay("names")
		return false
	}
	if now.Before(a.namesTry.next) || a.busDown || a.storeErr != "" {
		return false
	}
	stale := plan.StaleNames(a.snapshot.Links, a.Store.Read)
	if len(stale) == 0 {
		return false
	}
	a.namesTry.delay = min(max(2*a.namesTry.delay, settleTime), slowestRepair)
	a.namesTry.next = now.Add(jitter(a.namesTry.delay))
	names := make([]string, 0, len(stale))
	for _, name := range stale {
		names = append(names, name.Name+" of "+name.Link)
	}
	if err := a.RemoveOrphans(ctx); err != nil {
		a.say("names", "Alternative names stay that are another ENI's by now", "names", strings.Join(names, ", "), "reason", err.Error())
		return false
	}
	a.unsay("names")
	a.Log.Info("Removed alternative names that are another ENI's by now", "names", strings.Join(names, ", "))
	a.hasten(now)
	return true
}

// ours tells whether a policy rule is surely this daemon's.
func (a *Agent) ours(rule plan.Rule) bool {
	_, recorded := a.rules[rule]
	return recorded
}
