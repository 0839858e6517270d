package agent

import (
	"context"
	"net/netip"
	"path"
	"reflect"
	"slices"
	"time"

	"ec2netd/service/dropin"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/schedule"
	"ec2netd/service/snapshot"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/unitfile"
)

// pass observes, decides, acts, verifies and publishes, once.
func (a *Agent) pass(ctx context.Context) {
	a.nextLook, a.passAt = time.Time{}, time.Time{}
	if !a.observe() {
		a.nextLook = time.Now().Add(slowestLook)
		return
	}
	if !a.restore() {
		// What is configured stays, whatever the files that are left say.
		a.decide()
		a.publish(ctx, a.verify())
		return
	}
	a.decide()
	if a.gathering(time.Now()) {
		a.Log.Debug("waiting for others that were attached too", "for", a.gather.expected)
		if a.gather.leases {
			// What is waited for may be waiting for that.
			a.repair(ctx)
		}
		a.publish(ctx, a.verify())
		return
	}
	if a.act(ctx) {
		// What was done shows in the kernel, on 256 and later at once.
		if !a.observe() {
			a.nextLook = time.Now().Add(slowestLook)
			return
		}
		a.decide()
		a.noteRules(time.Now())
	}
	a.repair(ctx)
	a.saveHint()
	a.removeOrphans(ctx, time.Now())
	a.removeNames(ctx, time.Now())
	a.lookAtOthers(ctx)
	a.tellUnread()
	a.publish(ctx, a.verify())
}

// gather is the waiting for several ENIs that were attached at once, so that they make
// one reload and not one each.
type gather struct {
	// began is when it did, zero while nothing is waited for; progress when it was last
	// less or more that is waited for.
	began, progress time.Time
	expected        int
	// leases: only those are waited for.
	leases bool
}

// gathering tells whether what is to be done had better wait a moment: for the metadata of
// links that came just now or, where all there is to be done is for ENIs that came just
// now and have their lease, for the leases of others. A networkd with 15 ENIs of 50
// addresses takes about a second for what one reload brings, whether that is one ENI's or
// that of all.
func (a *Agent) gathering(now time.Time) bool {
	expected, step, longest, leases := 0, gatherStep, gatherTime, false
	if a.session.Running() && a.seen.Metadata.Identified {
		expected = a.unread(now)
		if expected == 0 && a.onlyLeased() {
			expected, step, longest, leases = a.unleased(now), leaseStep, leaseGatherTime, true
		}
	}
	g := &a.gather
	if expected == 0 {
		*g = gather{}
		return false
	}
	g.leases = leases
	if g.began.IsZero() {
		g.began = now
	}
	if expected != g.expected {
		g.expected, g.progress = expected, now
	}
	// Not for ever: one of them may be silent.
	until := g.progress.Add(step)
	if latest := g.began.Add(longest); latest.Before(until) {
		until = latest
	}
	if schedule.Reached(until, now) {
		return false
	}
	a.ask(min(until.Sub(now), newTime))
	return true
}

// unread is how many ENIs came just now whose metadata is being read for the first time.
func (a *Agent) unread(now time.Time) int {
	n := 0
	for _, eni := range a.Poller.Known().ENIs {
		if l := a.links[eni.Index]; eni.View == nil && !eni.Tried && l != nil && now.Sub(l.seen) < gatherTime {
			n++
		}
	}
	return n
}

// onlyLeased tells whether there is nothing to be done but to give ENIs that came just now
// the addresses that have waited for the lease.
func (a *Agent) onlyLeased() bool {
	some := false
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		for _, file := range eni.Files {
			if file.Path != plan.NetworkDropIn(eni.Link.Name) || eni.DropIn.Equal(eni.Link.Current) {
				continue
			}
			if !eni.Link.Fresh || eni.Link.Current == nil {
				return false
			}
			some = true
		}
	}
	return some && !a.session.ReloadDue()
}

// unleased is how many ENIs that came just now still wait for their lease.
func (a *Agent) unleased(now time.Time) int {
	n := 0
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		if eni.Held && eni.Link.Fresh && !eni.Link.LeaseOverdue && now.Sub(a.links[eni.Link.Index].since) < leaseGatherTime {
			n++
		}
	}
	return n
}

// observe looks at the kernel and brings the poller and the links up to date. It is false
// if the kernel cannot be asked.
func (a *Agent) observe() bool {
	last := a.seen.Kernel
	sources := snapshot.Sources{Kernel: a.Kernel, Networkd: a.Networkd, Udev: a.Udev, Files: a.Files}
	next, err := sources.Take(snapshot.Settings{Sections: a.Sections, Drivers: a.Drivers}, a.seen)
	if err != nil {
		a.said.Warn("kernel", "Cannot look at the kernel; trying again", "reason", err.Error())
		return false
	}
	a.said.Clear("kernel")
	a.seen = next
	snapshot, now, running := next.Kernel, next.Taken, last != nil
	if a.Poller.Observe(snapshot, now) {
		a.hasten(now)
	}
	a.seen = a.seen.Knowing(a.Poller.Known())
	present := make(map[int]bool)
	held := running && a.session.HoldRead() && a.holdThere()
	for _, l := range snapshot.Links {
		present[l.Index] = true
		if a.links[l.Index] == nil {
			a.links[l.Index] = &link{since: now, entered: now, seen: now, attached: a.Poller.Attached(l.Index), held: held, ipv6: l.IPv6}
			a.othersAt = time.Time{}
			a.session.NeedReloadOfRemoved()
		} else if memory := a.links[l.Index]; memory.ipv6 != l.IPv6 {
			// DHCPv6 begins anew, and gets its time.
			memory.since, memory.ipv6 = now, l.IPv6
		}
	}
	for index, l := range a.links {
		if !present[index] {
			delete(a.links, index)
			a.session.Forget(index)
			say := a.Log.Info
			if l.eni == "" {
				say = a.Log.Debug // nobody was told of it
			}
			say("ENI detached", "eni", l.eni, "mac", l.mac, "interface", l.name)
		}
	}
	return true
}

// holdThere tells whether the unit is on disk that has networkd leave new ENIs alone.
func (a *Agent) holdThere() bool { return dropin.Ours(a.seen.Files.Read(plan.HoldPath)) }

// holdFor is how long networkd leaves a new ENI alone whose files are not there.
func (a *Agent) holdFor(mac, name string) time.Duration {
	if a.seen.Metadata.ENIs[mac].Listed() && !a.unwritable(name) {
		return listedHoldTime
	}
	return holdTime
}

// unwritable tells whether the unit of a link could not be written.
func (a *Agent) unwritable(name string) bool {
	return a.storeErr != "" || !a.refused[plan.NetworkPath(name)].None() || !a.refused[plan.NetworkDropIn(name)].None()
}

// elsewhere tells whether networkd uses the base unit for a link, or none, in place of the
// unit that is there for it. It has its time to take that up, once.
func (a *Agent) elsewhere(link *plan.Link, said networkd.LinkState, now time.Time) bool {
	memory := a.links[link.Index]
	other := said.File == plan.HoldPath || link.OnBase || (said.File == "" && said.Administrative == "unmanaged")
	switch {
	case link.Current == nil || !other:
		memory.elsewhere = false
	case now.Sub(memory.since) >= takeUp && said.Administrative != "pending" && said.Administrative != "initialized":
		memory.elsewhere = true
	}
	return memory.elsewhere
}

// linkState is what networkd says of a link, as of the last look at the kernel.
func (a *Agent) linkState(index int) networkd.LinkState {
	return a.seen.Links[index].Networkd
}

// decide makes the plan of what is known now.
func (a *Agent) decide() {
	now := a.seen.Taken
	known := a.seen.Metadata
	in := plan.Input{PrimaryMAC: known.Instance.PrimaryMAC, Views: make(map[string]metadata.ENI), Presumed: known.Presumed, Sections: a.seen.Settings.Sections,
		Networkd: a.networkd(), Locked: plan.Locked(a.seen.Kernel.Rules), Tunnel: a.seen.Kernel.Tunnel, Hint: a.planHint(), Drivers: a.seen.Settings.Drivers, Holding: a.holdThere()}
	in.Base, in.BaseDropIns = a.seen.Files.Base()
	// Numbers are held by MAC address, under whatever name the link had.
	in.Assigned = plan.Assigned(a.seen.Files, known.Presumed)
	for mac, eni := range known.ENIs {
		if eni.View != nil {
			in.Views[mac] = *eni.View
		}
	}
	for i := range a.seen.Kernel.Links {
		l := &a.seen.Kernel.Links[i]
		entry := a.seen.Observed(l)
		memory := a.links[l.Index]
		if !a.session.Running() || a.unhandled(l.Index) {
			memory.idle = now
		}
		entry.LeaseOverdue = now.Sub(memory.since) > leaseTime && now.Sub(memory.idle) > leaseTime
		// Before networkd runs, what is written for a link costs no reload.
		entry.New = a.session.Running() && now.Sub(memory.seen) < newTime
		said := a.linkState(l.Index)
		reconfigured, metric := a.session.Reconfigured(l.Index)
		done, configured := said.Administrative == "configured", memory.state == state.ENIConfigured
		entry.SetDown = a.setDown(&entry, &memory.unused, done, configured, now)
		entry.Fresh = (memory.attached && memory.took == nil && now.Sub(memory.seen) < 2*settleTime) || now.Sub(memory.unused.shuffled) < 2*settleTime
		switch said.Administrative {
		case "pending", "initialized", "configuring":
			// At first it waits for its IPv6 link-local address too, which is no reason to
			// wait with the ENI's addresses.
			entry.Busy = now.Sub(reconfigured) < settleTime
		}
		if entry.StartFile && !memory.startFile {
			memory.since = now // networkd has just started, whether that is known by now or not
		}
		memory.startFile = entry.StartFile
		entry.Settled = now.Sub(memory.since) >= settledTime
		if entry.StartFile && !entry.Settled {
			a.ask(settledTime - now.Sub(memory.since))
		}
		entry.Reconfigured = metric
		if said.Domains != "" {
			// What networkd said of the lease before may be older.
			memory.lease.Domains = said.Domains
		}
		lease := said.Lease
		if !lease.Known {
			lease = memory.lease
		}
		entry.Leased, entry.LeaseMTU, entry.LeaseDomains = lease.Known, lease.MTU, lease.Domains
		entry.Domains = said.Domains
		entry.Foreign = plan.Foreign(&entry, a.isOurs)
		entry.Done = said.Administrative == "configured"
		entry.OnBase = path.Base(said.File) == dropin.BaseName
		entry.OffBase = !entry.OnBase && said.File != plan.HoldPath &&
			(said.Administrative == "unmanaged" || (said.File != "" && !entry.UnitInForce(said.File)))
		entry.OnOthers = entry.OffBase && said.File != "" && !entry.UnitInForce(said.File)
		entry.Waits = a.session.Running() && memory.held && !entry.OnBase && now.Before(memory.seen.Add(a.holdFor(l.MAC, l.Name)))
		entry.Unwritten = entry.Current == nil && !entry.Waits && a.unwritable(l.Name)
		entry.Elsewhere = a.elsewhere(&entry, said, now)
		in.Links = append(in.Links, entry)
	}
	if technique, why := plan.Choose(in.Networkd); technique != a.technique {
		a.technique = technique
		a.Log.Debug("how IPv6 is kept over a reload: "+technique.String(), "reason", why)
	}
	// What the plan follows from is most often what it was.
	if a.planned == 0 || !reflect.DeepEqual(in, a.input) {
		a.input = in
		a.plan = plan.Make(in)
		a.plan.GiveWay()
		a.planned++
	}
	a.watchBase(in.Base, in.BaseDropIns)
	presumed := ""
	for i := range a.plan.ENIs {
		if a.plan.ENIs[i].Presumed {
			presumed = a.plan.ENIs[i].Link.MAC
		}
	}
	a.Poller.Presume(presumed, now)
}

// networkd is what is known of the networkd that runs.
func (a *Agent) networkd() plan.Networkd {
	return plan.Networkd{Running: a.session.Running(), Varlink: a.session.Varlink(), Keeps: a.seen.Keeps}
}

// act brings the disk to the plan and has networkd and udevd take it up. It tells
// whether either was asked to do something.
func (a *Agent) act(ctx context.Context) bool {
	want := store.Want{Files: storeFiles(a.plan.Files)}
	before := make(map[string]*dropin.Network)
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		before[eni.Link.Name] = eni.Link.Current
		want.Keep = append(want.Keep, eni.Kept()...)
		if eni.Link.StartFile {
			want.Starts = append(want.Starts, plan.StartDropIn(eni.Link.Name))
		}
	}
	a.noteRules(time.Now())
	a.prepare(a.Store.Withdraw)
	changes, err := a.Store.Apply(want)
	a.refused = changes.Refused
	changes.Written = append(changes.Written, a.restored...)
	a.restored = nil
	if a.stored(err) && a.prepare(a.Store.Prepare) {
		a.prepared = a.planned
	}
	if changes.Any() {
		a.seen = a.seen.With(a.Files.Tree())
		a.lastChange = time.Now()
		for _, r := range a.waiting {
			r.written = append(r.written, changes.Written...)
			r.removed = append(r.removed, changes.Removed...)
		}
		a.tellCleared(changes.Written)
		a.Log.Debug("files changed", "written", changes.Written, "removed", changes.Removed)
	}
	if len(changes.Removed) > 0 {
		a.session.Removed()
	}
	// That it is there may wait for the next reload, that it has gone may not.
	if slices.Contains(changes.Removed, plan.HoldPath) {
		a.session.NeedReloadNow()
		for _, l := range a.links {
			l.held = false
		}
	}
	// Links that have the base unit may be those of others, and the next one may come before the
	// next reload.
	if slices.Contains(changes.Written, plan.BaseDropIn) || slices.Contains(changes.Removed, plan.BaseDropIn) {
		a.session.NeedReloadNow()
	}
	acted := a.applyNetwork(ctx, touched(&a.plan, changes.Written, changes.Removed, ofNetwork), before)
	a.applyLinks(ctx, touched(&a.plan, changes.Written, nil, ofLink))
	return acted
}

// prepare withdraws or prepares what networkd is to find at its next start, where the plan is
// another one. What there is stays while networkd is away: it may be starting.
// It tells whether that is done.
func (a *Agent) prepare(do func([]store.File) error) bool {
	if a.prepared == a.planned || !a.session.Running() {
		return a.prepared == a.planned
	}
	if err := do(storeFiles(a.plan.AtStart())); err != nil {
		a.said.Warn("start", "Cannot prepare the next start of networkd, which may interrupt connections", "reason", err.Error())
		return false
	}
	a.said.Clear("start")
	return true
}

// storeFiles are files of a plan as the store has them.
func storeFiles(files []plan.File) []store.File {
	found := make([]store.File, 0, len(files))
	for _, f := range files {
		found = append(found, store.File(f))
	}
	return found
}

// touched are the present links of whose unit something was changed. A detached
// ENI's files go without a reload: networkd has forgotten the link already (C2).
func touched(p *plan.Plan, written, removed []string, of func(*plan.Link, string) bool) []*plan.ENI {
	var found []*plan.ENI
	for i := range p.ENIs {
		eni := &p.ENIs[i]
		if slices.ContainsFunc(slices.Concat(written, removed), func(file string) bool { return of(&eni.Link, file) }) {
			found = append(found, eni)
		}
	}
	return found
}

// ofNetwork reports whether a file is one of the .network unit of a link, or of a generator's in
// its place, and ofLink one of its .link file.
func ofNetwork(link *plan.Link, file string) bool {
	unit := plan.NetworkPath(link.Name)
	return file == unit || path.Dir(file) == unit+".d" || slices.ContainsFunc(append([]string{link.Generator}, link.Shared...), func(made string) bool {
		return made != "" && path.Dir(file) == unitfile.GeneratorDir(made)
	})
}

func ofLink(link *plan.Link, file string) bool {
	unit := plan.LinkPath(link.Name)
	return file == unit || path.Dir(file) == unit+".d"
}

// applyNetwork has networkd reload if files of present links changed, now or
// earlier when it could not be asked.
func (a *Agent) applyNetwork(ctx context.Context, changed []*plan.ENI, before map[string]*dropin.Network) bool {
	now := time.Now()
	for _, eni := range changed {
		l := a.links[eni.Link.Index]
		l.atWork(now)
		for _, address := range before[eni.Link.Name].Singles() {
			if !slices.Contains(eni.Want.Static, address) && !slices.Contains(l.withdrawn, address) {
				l.withdrawn = append(l.withdrawn, address)
			}
		}
	}
	if len(changed) > 0 {
		a.hasten(now)
		a.session.NeedReloadNow()
	}
	outcome := a.session.Step(ctx, now)
	if outcome.Another {
		// It configures all links, which takes its time.
		a.othersDue, a.othersAt = true, time.Time{}
		for _, l := range a.links {
			l.atWork(now)
		}
		a.hasten(now)
	}
	if outcome.Reloaded {
		for _, r := range a.waiting {
			r.reloaded = true
		}
	}
	return outcome.Asked
}

// missed tells whether udevd has nothing about a link, and networkd waits for it.
func (a *Agent) missed(eni *plan.ENI) bool {
	return eni.Link.LinkFile == "" && a.session.Running() && a.unhandled(eni.Link.Index)
}

// unhandled tells whether networkd has not begun with a link: it waits for udevd, or
// has not looked at the link yet.
func (a *Agent) unhandled(index int) bool {
	state := a.linkState(index).Administrative
	return state == "pending" || state == ""
}

// repair has networkd configure links anew that it left with DHCP routes of an old
// metric, or without the address that DHCP should have brought.
func (a *Agent) repair(ctx context.Context) {
	if !a.session.Running() {
		for _, l := range a.links {
			l.lacks = netip.Addr{}
		}
	}
	if !a.session.Running() || a.session.ReloadDue() || !a.begun {
		return
	}
	now := time.Now()
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		l := a.links[eni.Link.Index]
		lacking := a.lacking(eni, now)
		var err error
		switch {
		case !eni.Reconfigure():
			a.session.ReconfigureDone(eni.Link.Index, now)
			if !lacking.IsValid() || !schedule.Reached(l.repairAt, now) || !a.explained(eni, []status.Gap{lackingGap(eni, lacking)}).None() {
				continue
			}
			err = a.renew(eni, lacking, now)
		case a.ownInForce(eni):
			due, first := a.session.ReconfigureDue(eni.Link.Index, eni.Want.Metric, now)
			if !due {
				continue
			}
			if first {
				l.since = now
				a.hasten(now)
			}
			a.Log.Debug("reconfiguring: DHCP routes with an old metric are left", "interface", eni.Link.Name)
			err = a.session.Reconfigure(ctx, eni.Link.Index, eni.Want.Metric, now)
		default:
			continue
		}
		if err != nil {
			a.said.Warn("reconfigure", "networkd does not configure the link anew", "eni", eni.View.ID, "mac", eni.Link.MAC,
				"interface", eni.Link.Name, "reason", err.Error())
			continue
		}
		a.said.Clear("reconfigure")
	}
}

// renew has networkd configure an ENI anew, DHCP included, that lacks an address.
func (a *Agent) renew(eni *plan.ENI, lacking netip.Addr, now time.Time) error {
	l := a.links[eni.Link.Index]
	l.repairDelay = min(2*l.repairDelay, slowestRepair)
	l.repairAt = now.Add(schedule.Jitter(l.repairDelay))
	a.Log.Warn("Asking networkd to configure the ENI anew: "+lackingGap(eni, lacking).String()+" is missing", "eni", eni.View.ID,
		"mac", eni.Link.MAC, "interface", eni.Link.Name, "address", lacking.String(), "next_try", l.repairDelay.String())
	l.broughtBack(eni, now)
	// ReconfigureLink leaves DHCP alone from 256 on, where the lease is kept over a
	// configuration (facts: keepconfiguration).
	if err := a.Store.Renew(plan.NetworkDropIn(eni.Link.Name)); err != nil {
		return err
	}
	a.session.NeedReload()
	a.ask(0)
	return nil
}

// broughtBack notes that networkd is asked to bring what an ENI lacks. A primary address comes behind the
// others then, on all versions: networkd adds what stands in the file before there is a lease. Where
// somebody takes it away again and again that is left so, as to mend it takes the others away for a
// moment.
func (l *link) broughtBack(eni *plan.ENI, now time.Time) {
	if eni.Want.Primary.IsValid() && !eni.Link.Has(eni.Want.Primary) && !l.gone.contested(now) {
		l.unused.shuffled = now
	}
}

// lackingGap is what an ENI lacks: the address or, where that stands in the drop-in, what else the
// lease brings.
func lackingGap(eni *plan.ENI, lacking netip.Addr) status.Gap {
	if eni.Link.Has(lacking) {
		return status.DefaultRouteGap(status.IPv4, eni.Want.Metric)
	}
	return status.AddressGap(lacking)
}

// ownInForce tells whether networkd uses the ENI's own unit with its own drop-in, or a
// generator's that says the same.
func (a *Agent) ownInForce(eni *plan.ENI) bool {
	return eni.Link.Taken == "" && eni.Link.NetworkHidden == "" &&
		eni.Link.UnitInForce(a.linkState(eni.Link.Index).File)
}

// lacking returns the address that an ENI lacks and that networkd would bring
// if it configured the link anew, and keeps the time since when that is so. Where
// another unit is in force it is not this daemon's to say what the link shall have.
func (a *Agent) lacking(eni *plan.ENI, now time.Time) netip.Addr {
	l := a.links[eni.Link.Index]
	address := plan.Lacking(eni)
	if address.IsValid() && !a.ownInForce(eni) {
		address = netip.Addr{}
	}
	if address != l.lacks {
		l.lacks, l.repairAt, l.repairDelay = address, time.Time{}, 0
		if address.IsValid() {
			l.repairDelay = repairTime
			l.repairAt = now.Add(schedule.Jitter(repairTime))
		}
	}
	return address
}

// repaired tells whether networkd has been asked to bring what is missing.
func (l *link) repaired() bool {
	return (l.lacks.IsValid() && l.repairDelay > repairTime) || l.gone.trying
}

// hasten makes the loop look at the kernel often again.
func (a *Agent) hasten(now time.Time) {
	a.lookDelay = firstLook
	a.nextLook = now.Add(a.lookDelay)
}

// verify compares what is wanted with what is, and schedules the next look where
// they differ.
func (a *Agent) verify() []state.Interface {
	now := time.Now()
	interfaces := make([]state.Interface, 0, len(a.plan.ENIs))
	look := time.Duration(0)
	stale, disputed := false, false
	soonest := func(d time.Duration) {
		if look == 0 || d < look {
			look = d
		}
	}
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		l := a.links[eni.Link.Index]
		entry := a.describe(eni)
		if entry.NetworkFile != l.file && !l.repaired() {
			// networkd has taken up another file, and gets its time. While it configures a
			// link anew it names none for a moment: that is no reason to call an ENI better
			// than it is (E5).
			l.file, l.since = entry.NetworkFile, now
			a.lookDelay = firstLook
		}
		age := now.Sub(l.since)
		compared := a.compare(eni, l, &entry)
		stale = stale || !a.session.Applied.Fresh(l.opinion.changed)
		disputed = disputed || compared.Disputed
		var gaps []status.Gap
		if eni.Known {
			entry.Missing, entry.Unwanted = compared.MissingNames, compared.UnwantedNames
			gaps = slices.Concat(compared.Missing, compared.Unwanted)
			if len(compared.Late) > 0 && age >= settleTime {
				gaps = slices.Concat(compared.Missing, compared.Late, compared.Unwanted)
				entry.Missing = slices.Concat(entry.Missing, status.Names(compared.Late))
			} else if len(compared.Late) > 0 {
				soonest(slowestLook)
			}
			l.withdrawn = slices.DeleteFunc(l.withdrawn, func(address netip.Addr) bool {
				// networkd 252 takes all addresses away with a reload, and what stands in another file
				// comes again.
				again := a.technique == plan.Static && age < takenTime && slices.Contains(eni.Link.FirstBoot, address)
				return !again && !eni.Link.Has(address)
			})
		}
		if l.state == state.ENIConfigured && len(compared.Missing)+len(entry.Unwanted) > 0 && age >= settleTime {
			// Something went that was there: a carrier that was lost, somebody's reload.
			// networkd gets its time for that too.
			l.since, age = now, 0
			a.lookDelay = firstLook
		}
		a.tellMark(eni)
		for _, next := range []time.Duration{a.regain(eni, compared.Lost, now), a.raise(eni, now)} {
			if next > 0 {
				soonest(next)
			}
		}
		entry.State, l.reason = a.judge(eni, gaps, age)
		if disputed := entry.State == state.ENIConfigured || entry.State == state.ENIConfiguring || entry.State == state.ENIDegraded; disputed && l.gone.contested(now) {
			entry.State, l.reason = state.ENIContested, l.gone.dispute(&compared.Lost)
		}
		entry.Reason = l.reason.Words()
		entry.Items, entry.Gaps = compared.Shown(a.whole(entry.State, l.reason))
		if entry.State == state.ENIConfiguring || eni.Held || (eni.Known && eni.Link.LinkFile == "") {
			if age < settleTime+time.Second {
				if a.lookDelay == 0 {
					a.lookDelay = firstLook
				}
				soonest(a.lookDelay)
			} else {
				soonest(settleTime)
			}
		}
		switch entry.State {
		case state.ENIDegraded, state.ENIShadowed, state.ENIOverridden:
			soonest(settleTime)
		}
		if eni.Link.New {
			soonest(newTime)
		} else if eni.Link.Waits && (!eni.Known || a.unwritable(eni.Link.Name)) {
			soonest(max(l.seen.Add(a.holdFor(eni.Link.MAC, eni.Link.Name)).Sub(now), firstLook))
		}
		if a.missed(eni) {
			soonest(udevTime)
		}
		if entry.State != l.state {
			l.state, l.entered = entry.State, now
			if l.attached && l.took == nil && l.state == state.ENIConfigured {
				took := now.Sub(l.seen)
				l.took = &took
				a.attachments++
				a.attachTime += took
			}
			a.tell(&entry)
		}
		l.eni, l.mac, l.name = entry.ENIID, entry.MAC, entry.Name
		entry.Since = l.entered
		interfaces = append(interfaces, entry)
	}
	if next := a.session.Schedule(now, stale, disputed); !next.IsZero() {
		soonest(next.Sub(now))
	}
	if next := a.altnames.Next(now); !next.IsZero() {
		soonest(max(next.Sub(now), firstLook))
	}
	if a.storeErr != "" {
		soonest(max(a.storeTry.Next.Sub(now), firstLook))
	}
	if !a.orphanAt.IsZero() {
		soonest(max(a.orphanAt.Sub(now), firstLook))
	}
	if look > 0 {
		a.lookDelay = min(a.lookDelay*3/2, slowestLook)
		if at := now.Add(look); a.nextLook.IsZero() || at.Before(a.nextLook) {
			a.nextLook = at
		}
	} else {
		a.lookDelay = 0
		a.nextLook = time.Time{}
		if a.Trim != nil && a.trimmed != a.planned {
			a.trimmed, a.trimAt = a.planned, now.Add(trimTime)
		}
	}
	return interfaces
}

// judge says how far an ENI has come, and why no farther.
func (a *Agent) judge(eni *plan.ENI, gaps []status.Gap, age time.Duration) (state.ENI, status.Reason) {
	if !eni.Settings.Managed && (eni.Known || !eni.Settings.Undecided) {
		return state.ENIUnmanaged, status.Reason{Code: status.ManagedNo, File: eni.Settings.ManagedBy}
	}
	readError := a.seen.Metadata.ENIs[eni.Link.MAC].Err
	if !eni.Known || eni.Hinted {
		return state.ENIPending, a.pending(eni, readError)
	}
	why := a.linkState(eni.Link.Index)
	switch {
	case !a.session.Running() && !a.session.Why().None() && (!a.session.BusSilent() || age >= settleTime):
		return state.ENIDegraded, a.session.Why()
	case a.storeErr != "":
		return state.ENIDegraded, status.Reason{Code: status.FilesUnwritten, Cause: a.storeErr}
	}
	if other, reason := a.inForce(eni, why, age); other != "" {
		return other, reason
	}
	memory := a.links[eni.Link.Index]
	if other, reason := memory.unused.judge(&eni.Link, len(gaps) > 0, time.Now()); other != "" {
		return other, reason
	}
	if len(gaps) == 0 && !eni.Held {
		var stale status.Reason
		if readError != nil {
			stale = status.Reason{Code: status.LastView, Cause: readError.Error()}
		}
		return state.ENIConfigured, status.Together(stale, eni.Unmarked, port(&eni.Link), plan.KeepsWritten(eni, a.networkd()), plan.Misordered(eni))
	}
	if age >= explainTime && status.OnlyAltnames(gaps) {
		if reason := a.namesTaken(eni); !reason.None() {
			return state.ENIOverridden, reason
		}
	} else if age >= settleTime || (age >= explainTime && why.Administrative == "configured") {
		if reason := a.explained(eni, gaps); !reason.None() {
			return state.ENIOverridden, reason
		}
	}
	if age < settleTime {
		return state.ENIConfiguring, status.Reason{Code: status.WaitingFor, Gaps: gaps}
	}
	return state.ENIDegraded, a.unexplained(eni, gaps)
}

// pending says why an ENI is not known, or only as the last boot knew it.
func (a *Agent) pending(eni *plan.ENI, readError error) status.Reason {
	instanceErr := a.seen.Metadata.InstanceErr
	if eni.Known {
		reason := status.Reason{Code: status.LastBoot}
		if readError == nil {
			readError = instanceErr
		}
		if readError != nil {
			reason.Cause = readError.Error()
		}
		return reason
	}
	switch {
	case eni.Twice:
		return eni.Reason
	case eni.View.MAC == "" && readError != nil:
		return failed(readError)
	case eni.View.MAC == "" && instanceErr != nil:
		return failed(instanceErr)
	}
	reason := eni.Reason
	reason.Undecided = eni.Settings.Undecided
	return reason
}

// failed says that the metadata could not be read, or does not tell all yet.
func failed(err error) status.Reason {
	code := status.MetadataFailed
	if metadata.IsIncomplete(err) {
		code = status.MetadataIncomplete
	}
	return status.Reason{Code: code, Cause: err.Error()}
}

// unexplained says what an ENI lacks whose time is up, where nobody else's file is the reason.
func (a *Agent) unexplained(eni *plan.ENI, gaps []status.Gap) status.Reason {
	switch {
	case a.session.LastError() != "":
		return status.Reason{Code: status.FilesUnread, Gaps: gaps, Cause: a.session.LastError()}
	case a.missed(eni):
		return status.Reason{Code: status.UdevMissed}
	case status.OnlyAltnames(gaps):
		if name, holder := a.nameElsewhere(eni); holder != "" {
			return status.Reason{Code: status.NameHeld, Subject: eni.Link.Name, Value: name, Other: holder}
		}
		if name, holder := a.nameOfOther(eni); holder != "" {
			return status.Reason{Code: status.NameHeld, Subject: eni.Link.Name, Value: name, Other: holder}
		}
		return status.Reason{Code: status.NamesMissing, Gaps: gaps}
	}
	return status.Reason{Code: status.NotBrought, Gaps: gaps}
}

// whole is the reason for everything that an ENI has not, if there is one for all.
func (a *Agent) whole(of state.ENI, reason status.Reason) status.Reason {
	switch of {
	case state.ENIShadowed, state.ENIOverridden, state.ENIUnmanaged, state.ENIPending:
		return reason
	case state.ENIDegraded:
		if a.storeErr != "" {
			return status.Reason{Code: status.FilesUnwritten, Cause: a.storeErr}
		}
		return a.session.Why()
	}
	return status.Reason{}
}

// tell logs that an ENI entered a state: info for what is as it shall be, warning
// for what is not.
func (a *Agent) tell(entry *state.Interface) {
	args := []any{"eni", entry.ENIID, "mac", entry.MAC, "interface", entry.Name}
	switch entry.State {
	case state.ENIConfigured:
		a.Log.Info("ENI configured", append(args, "addresses", len(entry.Addresses), "prefixes", len(entry.Prefixes),
			"device_index", entry.DeviceIndex, "table", entry.Table, "metric", entry.Metric)...)
	case state.ENIDegraded, state.ENIShadowed, state.ENIOverridden, state.ENIContested:
		a.Log.Warn("ENI "+string(entry.State), append(args, "reason", entry.Reason)...)
	default:
		a.Log.Debug("ENI "+string(entry.State), append(args, "reason", entry.Reason)...)
	}
}

// tellMark logs that the configuration gives an ENI a firewall mark that another one has (B5).
func (a *Agent) tellMark(eni *plan.ENI) {
	key := "mark " + eni.Link.MAC
	if eni.Unmarked.None() {
		a.said.Clear(key)
		return
	}
	a.said.Warn(key, "The firewall mark of an ENI is another one's too", "eni", eni.View.ID, "mac", eni.Link.MAC, "interface", eni.Link.Name,
		"reason", eni.Unmarked.Words())
}

// describe is what is known of an ENI without looking at the kernel.
func (a *Agent) describe(eni *plan.ENI) state.Interface {
	l := a.links[eni.Link.Index]
	if l.planned != a.planned || eni.Keep {
		l.described, l.planned = a.describeAnew(eni), a.planned
	}
	entry := l.described
	entry.NetworkFile = a.linkState(eni.Link.Index).File
	return entry
}

func (a *Agent) describeAnew(eni *plan.ENI) state.Interface {
	entry := state.Interface{
		MAC: eni.Link.MAC, Name: eni.Link.Name, Ifindex: eni.Link.Index, Primary: eni.Primary,
		ENIID: eni.View.ID, DeviceIndex: state.Unknown, NetworkCard: state.Unknown,
		Metric: state.Unknown, Table: state.Unknown, Priority: state.Unknown,
		Addresses: []string{}, Prefixes: []string{}, Subnets: []string{}, Altnames: []string{}, Files: []string{},
		Items: []state.Item{}, Gaps: []string{}, Missing: []string{}, Unwanted: []string{},
	}
	for _, file := range eni.Files {
		entry.Files = append(entry.Files, file.Path)
	}
	if eni.Keep && len(eni.Files) == 0 {
		for _, file := range []string{plan.NetworkDropIn(eni.Link.Name), plan.NetworkPath(eni.Link.Name)} {
			if a.seen.Files.Read(file) != "" || a.seen.Files.Target(file) != "" {
				entry.Files = append(entry.Files, file)
			}
		}
	}
	if eni.Want.Metric != 0 && !eni.Want.NoDefault {
		entry.Metric = eni.Want.Metric
	}
	if !eni.Known {
		return entry
	}
	entry.DeviceIndex, entry.NetworkCard = eni.Numbers.Index, eni.Numbers.Card
	if eni.Want.Table != 0 {
		entry.Table, entry.Priority = eni.Want.Table, eni.Want.Table
	}
	entry.Addresses = texts(slices.Concat(eni.View.IPv4, eni.View.IPv6))
	entry.Prefixes = texts(slices.Concat(eni.View.IPv4Prefixes, eni.View.IPv6Prefixes))
	entry.Subnets = texts(slices.Concat(eni.View.IPv4Subnets, eni.View.IPv6Subnets))
	entry.Altnames = orEmpty(eni.Want.Altnames)
	entry.IPv6NotApplicable = eni.IPv6NotApplicable().Words()
	return entry
}

func texts[T interface{ String() string }](values []T) []string {
	out := make([]string, len(values))
	for i, v := range values {
		out[i] = v.String()
	}
	return out
}
