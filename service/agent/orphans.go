package agent

import (
	"context"
	"maps"
	"slices"
	"strings"
	"time"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/schedule"
	"ec2netd/service/unitfile"
)

// Times of rules that networkd has forgotten.
const (
	// orphanTime is how long networkd has to remove a rule that no file wants any more.
	// It takes some milliseconds.
	orphanTime = time.Second
	// recordTime is how long a rule that is nowhere any more stays in the record: networkd
	// may be about to add it.
	recordTime = time.Minute
	// addressTime is that of an address that has not been on the link. One that has leaves the
	// record with it: who adds it by hand afterwards means to have it.
	addressTime = 5 * time.Second
)

// Rules is the record of the rules and addresses that are this daemon's.
type Rules interface {
	stored
	Load() ([]plan.Rule, []plan.OwnAddress, error)
	Put(rules []plan.Rule, addresses []plan.OwnAddress, now time.Time)
}

// noteRules puts the rules and addresses of files that are, and of those that are about to be
// written, in the record: before networkd can read them, so that none is ever unknown. What
// has been nowhere for a while leaves it.
func (a *Agent) noteRules(now time.Time) {
	if a.Rules == nil {
		return
	}
	generated := a.generatedRules()
	of := noting{planned: a.planned, generated: a.generated.count, snapshot: a.seen.Kernel}
	if of == a.noted.of && !a.noted.leaving {
		a.noted.until = now
		return
	}
	until := a.noted.until
	if !until.Before(now) {
		until = now.Add(-1) // what is not seen now is to differ from what is
	}
	for rule, last := range a.rules {
		if last.Equal(a.noted.at) {
			a.rules[rule] = until
		}
	}
	for own, last := range a.addresses {
		if last.Equal(a.noted.at) {
			a.addresses[own] = until
		}
	}
	a.noted.of, a.noted.at, a.noted.until, a.noted.leaving = of, now, now, false
	changed := a.noteAddresses(now)
	for _, rules := range [][]plan.Rule{generated, a.plan.Rules()} {
		for _, rule := range rules {
			_, known := a.rules[rule]
			changed = changed || !known
			a.rules[rule] = now
		}
	}
	for i := range a.seen.Kernel.Rules {
		if rule, ok := plan.RuleOf(&a.seen.Kernel.Rules[i]); ok {
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
	a.Rules.Put(slices.Collect(maps.Keys(a.rules)), slices.Collect(maps.Keys(a.addresses)), now)
}

// noteAddresses is the part of noteRules that is about addresses. It tells whether the record
// has changed.
func (a *Agent) noteAddresses(now time.Time) (changed bool) {
	wanted := make(map[plan.OwnAddress]bool)
	note := func(own plan.OwnAddress) {
		_, known := a.addresses[own]
		changed = changed || !known
		a.addresses[own], wanted[own] = now, true
	}
	for _, own := range a.generated.addresses {
		note(own)
	}
	for i := range a.plan.ENIs {
		for _, own := range plan.OwnAddresses(a.plan.ENIs[i].DropIn) {
			note(own)
		}
	}
	was := a.there
	a.there = make(map[plan.OwnAddress]bool, len(was))
	for i := range a.seen.Kernel.Links {
		l := &a.seen.Kernel.Links[i]
		for _, address := range l.Addresses {
			own := plan.OwnAddress{MAC: l.MAC, Address: address.Prefix.Addr()}
			if _, known := a.addresses[own]; known {
				a.addresses[own], a.there[own] = now, true
			}
		}
	}
	maps.DeleteFunc(a.addresses, func(own plan.OwnAddress, last time.Time) bool {
		old := now.Sub(last) > addressTime || (was[own] && !a.there[own] && !wanted[own])
		changed = changed || old
		a.noted.leaving = a.noted.leaving || (!old && last.Before(now))
		return old
	})
	return changed
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

// generated are the rules of the generated files on disk: the drop-ins, what they say, the count of
// changes, and the files of which that is.
type generated struct {
	dropIns   []*dropin.Network
	rules     []plan.Rule
	addresses []plan.OwnAddress
	count     uint64
	of        *unitfile.Tree
}

// generatedRules are those of the generated files on disk.
func (a *Agent) generatedRules() []plan.Rule {
	if a.generated.of == a.seen.Files {
		return a.generated.rules
	}
	a.generated.of = a.seen.Files
	links := a.seen.Files.Generated()
	dropIns := make([]*dropin.Network, 0, len(links))
	for _, link := range links {
		dropIns = append(dropIns, a.seen.Files.Network(link))
	}
	if slices.Equal(dropIns, a.generated.dropIns) {
		return a.generated.rules
	}
	a.generated = generated{dropIns: dropIns, count: a.generated.count + 1, of: a.seen.Files}
	for _, n := range dropIns {
		a.generated.rules = append(a.generated.rules, plan.RulesOf(n)...)
		a.generated.addresses = append(a.generated.addresses, plan.OwnAddresses(n)...)
	}
	return a.generated.rules
}

// inOrder is what the absence of orphans was last seen from.
type inOrder struct {
	noted, generated uint64
	snapshot         *kernel.Snapshot
}

// cleaned is the end of one run of what removes rules, addresses and names.
type cleaned struct {
	// tell takes it into account.
	tell func(now time.Time, err error)
	err  error
}

// clean has it run beside the loop, once at a time: systemd starts a unit for it, which takes
// 0.1 s on a busy machine, and whoever calls is not to wait for that (J1).
func (a *Agent) clean(ctx context.Context, tell func(now time.Time, err error)) {
	a.cleaning = true
	go func() {
		// The loop takes one result for each run, or has ended.
		a.cleanings <- cleaned{tell, a.RemoveOrphans(ctx)}
	}()
}

// takeCleaned takes the end of a run.
func (a *Agent) takeCleaned(done cleaned, now time.Time) {
	a.cleaning = false
	done.tell(now, done.err)
}

// removeOrphans has the rules and addresses removed that networkd has forgotten.
func (a *Agent) removeOrphans(ctx context.Context, now time.Time) {
	// Files that could not be written want what they do not have: nothing is removed for that.
	if a.Rules == nil || a.RemoveOrphans == nil || a.storeErr != "" {
		return
	}
	generated := a.generatedRules()
	of := inOrder{a.noted.count, a.generated.count, a.seen.Kernel}
	if a.orphanAt.IsZero() && of == a.inOrder {
		return
	}
	record := slices.Collect(maps.Keys(a.rules))
	orphans := plan.Orphans(record, generated, a.seen.Kernel.Rules)
	addresses := a.orphanAddresses()
	if len(orphans)+len(addresses) > 0 {
		// What somebody else's file wants is not looked at before it matters.
		wanted, err := plan.WantedRules(a.seen.Files)
		var kept map[plan.OwnAddress]bool
		if err == nil {
			kept, err = plan.WantedAddresses(a.seen.Files)
		}
		if err != nil {
			a.said.Warn("orphans", "Rules and addresses that networkd forgot stay", "reason", err.Error())
			return
		}
		orphans = plan.Orphans(record, wanted, a.seen.Kernel.Rules)
		addresses = plan.OrphanAddresses(addresses, kept, a.seen.Kernel.Links)
	}
	a.stillThere(addresses)
	if len(orphans)+len(addresses) == 0 {
		a.orphanAt, a.orphanDelay, a.inOrder = time.Time{}, 0, of
		a.said.Clear("orphans")
		return
	}
	if a.orphanAt.IsZero() {
		a.orphanAt = now.Add(orphanTime)
	}
	// Whoever removes them reads the record.
	if !schedule.Reached(a.orphanAt, now) || a.cleaning || a.session.BusSilent() || a.Rules.Err() != nil {
		return
	}
	a.orphanDelay = schedule.Double(a.orphanDelay, settleTime, slowestRepair)
	a.orphanAt = now.Add(schedule.Jitter(a.orphanDelay))
	names := make([]string, 0, len(orphans))
	for _, rule := range orphans {
		names = append(names, rule.String())
	}
	gone := make([]string, 0, len(addresses))
	for _, own := range addresses {
		gone = append(gone, own.Address.String())
	}
	a.clean(ctx, func(_ time.Time, err error) {
		if err != nil {
			a.said.Warn("orphans", "Rules and addresses that networkd forgot stay", "rules", strings.Join(names, ", "), "addresses", strings.Join(gone, ", "),
				"reason", err.Error())
			return
		}
		if len(names) > 0 {
			// From 256 on each detached ENI leaves its rules: nothing that anybody must know of.
			a.Log.Debug("Removed policy rules that networkd had forgotten", "rules", strings.Join(names, ", "))
		}
		if len(gone) > 0 {
			a.Log.Info("Removed addresses that networkd had forgotten", "addresses", strings.Join(gone, ", "))
		}
	})
}

// orphanAddresses are the addresses that links have and generated files no longer want.
func (a *Agent) orphanAddresses() []plan.OwnAddress {
	if a.technique == plan.Undecided {
		return nil
	}
	wanted := make(map[plan.OwnAddress]bool, len(a.generated.addresses))
	for _, own := range a.generated.addresses {
		wanted[own] = true
	}
	orphans := plan.OrphanAddresses(slices.Collect(maps.Keys(a.addresses)), wanted, a.seen.Kernel.Links)
	if a.technique == plan.Static {
		// networkd 252 removes what it has forgotten, but takes a deprecated address (A11) for
		// one of DHCP, which KeepConfiguration=dhcp keeps (facts: keepconfiguration).
		orphans = slices.DeleteFunc(orphans, func(own plan.OwnAddress) bool { return own.Address.Is4() })
	}
	return orphans
}

// stillThere has addresses count as withdrawn and still there.
func (a *Agent) stillThere(addresses []plan.OwnAddress) {
	for _, own := range addresses {
		for i := range a.seen.Kernel.Links {
			link := &a.seen.Kernel.Links[i]
			if l := a.links[link.Index]; link.MAC == own.MAC && l != nil && !slices.Contains(l.withdrawn, own.Address) {
				l.withdrawn = append(l.withdrawn, own.Address)
			}
		}
	}
}

// isOurs tells whether an address stands or stood in a drop-in of this daemon's.
func (a *Agent) isOurs(own plan.OwnAddress) bool {
	_, recorded := a.addresses[own]
	return recorded
}

// removeNames has the alternative names removed that are another ENI's by now and keep
// udevd from giving it them.
func (a *Agent) removeNames(ctx context.Context, now time.Time) {
	taken := slices.ContainsFunc(a.plan.ENIs, func(eni plan.ENI) bool {
		_, holder := a.nameElsewhere(&eni)
		return holder != ""
	})
	if !taken || a.RemoveOrphans == nil {
		a.namesTry = schedule.Try{}
		a.said.Clear("names")
		return
	}
	if now.Before(a.namesTry.Next) || a.cleaning || a.session.BusSilent() || a.storeErr != "" {
		return
	}
	stale := plan.StaleNames(a.seen.Kernel.Links, a.seen.Files.LinkDropIn)
	if len(stale) == 0 {
		return
	}
	a.namesTry.Delay = schedule.Double(a.namesTry.Delay, settleTime, slowestRepair)
	a.namesTry.Next = now.Add(schedule.Jitter(a.namesTry.Delay))
	names := make([]string, 0, len(stale))
	for _, name := range stale {
		names = append(names, name.Name+" of "+name.Link)
	}
	a.clean(ctx, func(now time.Time, err error) {
		if err != nil {
			a.said.Warn("names", "Alternative names stay that are another ENI's by now", "names", strings.Join(names, ", "), "reason", err.Error())
			return
		}
		a.said.Clear("names")
		a.Log.Info("Removed alternative names that are another ENI's by now", "names", strings.Join(names, ", "))
		a.hasten(now)
	})
}

// ours tells whether a policy rule is surely this daemon's.
func (a *Agent) ours(rule plan.Rule) bool {
	_, recorded := a.rules[rule]
	return recorded
}
