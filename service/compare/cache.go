package compare

import (
	"net/netip"
	"slices"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// Cache keeps the last comparison of one ENI, and what it was made of. With 15 ENIs of 50
// addresses the comparison is most of what a pass takes, and most often nothing has changed. The
// zero Cache is ready for use.
type Cache struct {
	Result
	// MissingNames and UnwantedNames are Missing and Unwanted as the API shows them.
	MissingNames, UnwantedNames []string

	made      bool
	of        sources
	withdrawn []netip.Addr
	// items and gaps, with the reason for all that is missing.
	whole status.Reason
	items []state.Item
	gaps  []string
}

// Version identifies inputs that are too large to compare: it changes whenever they do.
type Version struct {
	// Plan counts the plans: the ENI is the same as long as it is.
	Plan uint64
	// Record counts the changes of what [Actual.Ours] answers.
	Record uint64
}

// sources are all that a comparison depends on but the addresses that were withdrawn. Drop-ins and
// snapshots count as the same if they are the same pointers: none is ever changed.
type sources struct {
	version         Version
	rendered        Rendered
	applied, kernel *kernel.Snapshot
}

// Update compares the ENI, unless the last comparison was made of the same, and reports whether
// any item has changed in more than what networkd says of it.
func (c *Cache) Update(eni *plan.ENI, version Version, actual Actual) (changed bool) {
	of := sources{version: version, rendered: actual.Rendered, applied: actual.Applied, kernel: actual.Kernel}
	if c.made && c.of == of && slices.Equal(c.withdrawn, actual.Withdrawn) {
		return false
	}
	result, before := ENI(eni, actual), c.items
	items := result.Items(status.Reason{})
	*c = Cache{
		Result: result, MissingNames: status.Names(result.Missing), UnwantedNames: status.Names(result.Unwanted),
		made: true, of: of, withdrawn: slices.Clone(actual.Withdrawn),
		items: items, gaps: state.GapsOf(items),
	}
	return !slices.EqualFunc(items, before, same)
}

// Shown returns the items, see [Result.Items], and the gaps among them as the API shows them.
func (c *Cache) Shown(whole status.Reason) ([]state.Item, []string) {
	if !c.whole.Equal(whole) {
		c.whole, c.items = whole, c.Items(whole)
		c.gaps = state.GapsOf(c.items)
	}
	return c.items, c.gaps
}

// same reports whether an item is the same, whatever networkd says of it.
func same(x, y state.Item) bool {
	return x.Kind == y.Kind && x.Value == y.Value && x.Metadata == y.Metadata && x.Rendered == y.Rendered && x.Kernel == y.Kernel
}
