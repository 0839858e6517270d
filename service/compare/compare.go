// Package compare sets what an ENI shall have, as package plan has decided, against what it has:
// in the generated files, with networkd, and in the kernel (H4).
//
// It decides nothing. Everything here is a pure function of its input: it reads no file, asks
// nobody, and does not know the time.
package compare

import (
	"net/netip"
	"slices"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// Rendered are the generated drop-ins of an ENI as they are on the disk: nil where there is
// none, or where it is not in force.
type Rendered struct {
	Network *dropin.Network
	Link    *dropin.Link
}

// Actual is what an ENI has, and the facts that show who owns it. What the metadata says of it is in
// the plan.
type Actual struct {
	Rendered Rendered
	// Applied is what networkd counts as its own, in the shape of a snapshot, or nil if networkd
	// has not told since the last change.
	Applied *kernel.Snapshot
	// Kernel is what the kernel has.
	Kernel *kernel.Snapshot
	// Withdrawn are the addresses that were taken out of the ENI's drop-in.
	Withdrawn []netip.Addr
	// Ours reports whether a policy rule by networkd's protocol is surely this daemon's: anybody
	// may add one with the ENI's priority and table.
	Ours func(plan.Rule) bool
}

// Result is a comparison. It is never changed.
type Result struct {
	// Missing is what is wanted and not in the kernel.
	Missing []status.Gap
	// Late is not in the kernel either, but comes with the next router advertisement, and no
	// traffic of the ENI's addresses depends on it.
	Late []status.Gap
	// Unwanted is what is still in the kernel and stands in the way.
	Unwanted []status.Gap
	// Lost is what the files ask for and the kernel does not have.
	Lost Lost
	// Disputed: networkd does not count as its own something that the files ask for and the
	// kernel has. This happens briefly while networkd is at work.
	Disputed bool

	entries []entry
}

// Lost is what the files ask for and the kernel does not have: addresses, routes and policy rules.
// Alternative names and the MTU are not networkd's to bring back.
type Lost struct {
	Gaps []status.Gap
	// Own: some of it comes of the files alone, not of a lease or a router.
	Own bool
	// ByRouter: all of it are default routes that routers advertise.
	ByRouter bool
}

// entry is an item, and what is to be made of it.
type entry struct {
	state.Item
	// wanted: the kernel shall have it. late: it comes with the next router
	// advertisement, and no traffic of the ENI's addresses depends on it.
	wanted, late bool
	// own: it comes of the files alone, not of a lease or a router. byRouter: it is a default
	// route that a router advertises.
	own, byRouter bool
	// unwanted: the kernel shall not have it, and it is surely this daemon's to take away.
	unwanted bool
	// apart is why the host is not to have it although the metadata does, and cause why it is
	// unwanted, where that is not the metadata.
	apart status.Code
	cause *status.Reason
	// gap is it as something that is missing or still there.
	gap status.Gap
}

// ENI compares what one ENI shall have with what it has.
//
// Unwanted are policy rules of this daemon's with the ENI's own priority and table for a source
// that it no longer has, DHCP routes of an old metric, and withdrawn addresses that are still on
// the link. All else that is there without the metadata is somebody else's.
func ENI(eni *plan.ENI, actual Actual) Result {
	entries := entriesOf(eni, actual)
	lost := lostOf(entries)
	return Result{
		Missing:  gaps(entries, func(e *entry) bool { return e.wanted && !e.Kernel && !e.late }),
		Late:     gaps(entries, func(e *entry) bool { return e.wanted && !e.Kernel && e.late }),
		Unwanted: gaps(entries, func(e *entry) bool { return e.unwanted }),
		Lost:     lost,
		Disputed: slices.ContainsFunc(entries, func(e entry) bool { return e.Rendered && e.Kernel && e.Networkd == state.No }),
		entries:  entries,
	}
}

// Items returns what the API shows. Where the ENI as a whole is not configured, whole is the
// reason for that, and so for every item that is not in the kernel or not managed.
func (r *Result) Items(whole status.Reason) []state.Item {
	items := make([]state.Item, len(r.entries))
	words := whole.Words()
	for i := range r.entries {
		e := &r.entries[i]
		items[i] = e.Item
		if !whole.None() && !e.unwanted && e.apart == status.None && (!e.Kernel || (!e.Rendered && e.Metadata != state.No)) {
			items[i].Reason = words
		}
	}
	return items
}

func lostOf(entries []entry) Lost {
	isLost := func(e *entry) bool {
		return e.wanted && e.Rendered && !e.Kernel && (e.Kind == state.ItemAddress || e.Kind == state.ItemRoute || e.Kind == state.ItemRule)
	}
	lost := Lost{Gaps: gaps(entries, isLost), ByRouter: true}
	for i := range entries {
		if e := &entries[i]; isLost(e) {
			lost.Own = lost.Own || e.own
			lost.ByRouter = lost.ByRouter && e.byRouter
		}
	}
	return lost
}

// gaps returns each gap once.
func gaps(entries []entry, which func(*entry) bool) []status.Gap {
	var found []status.Gap
	for i := range entries {
		e := &entries[i]
		if !which(e) {
			continue
		}
		gap := e.gap
		gap.StillThere = e.unwanted
		if !slices.Contains(found, gap) {
			found = append(found, gap)
		}
	}
	return found
}
