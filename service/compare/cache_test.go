package compare

import (
	"slices"
	"testing"

	"ec2netd/service/kernel"
	"ec2netd/service/status"
)

// H4: an ENI is compared anew if anything that matters is another one, and what networkd alone says
// of it is no change.
func TestCache(t *testing.T) {
	eni, snapshot := known(t)
	less, other := *snapshot, *snapshot
	less.Rules = slices.DeleteFunc(slices.Clone(snapshot.Rules), func(r kernel.Rule) bool { return r.From.String() == "10.0.1.21/32" })
	const missing = "rule from 10.0.1.21/32 lookup 10001"
	files := rendered(&eni)
	actual := Actual{Rendered: files, Kernel: snapshot, Ours: anyRule}
	var c Cache
	for _, step := range []struct {
		name    string
		change  func()
		version Version
		anew    bool
		changed bool
		missing []string
	}{
		{"first", func() {}, Version{1, 1}, true, true, nil},
		{"the same", func() {}, Version{1, 1}, false, false, nil},
		{"another plan", func() {}, Version{2, 1}, true, false, nil},
		{"another record", func() {}, Version{2, 2}, true, false, nil},
		{"networkd has told", func() { actual.Applied = snapshot }, Version{2, 2}, true, false, nil},
		{"networkd has told something else", func() { actual.Applied = &less }, Version{2, 2}, true, false, nil},
		{"another snapshot that is equal", func() { actual.Kernel = &other }, Version{2, 2}, true, false, nil},
		{"a rule has gone", func() { actual.Kernel = &less }, Version{2, 2}, true, true, []string{missing}},
		{"it is back", func() { actual.Kernel = snapshot }, Version{2, 2}, true, true, nil},
		{"no files", func() { actual.Rendered = Rendered{} }, Version{2, 2}, true, true, nil},
		{"files", func() { actual.Rendered = files }, Version{2, 2}, true, true, nil},
		{"withdrawn", func() { actual.Withdrawn = addrs("10.0.1.99") }, Version{2, 2}, true, false, nil},
		{"as before", func() {}, Version{2, 2}, false, false, nil},
	} {
		step.change()
		was := c.items
		if changed := c.Update(&eni, step.version, actual); changed != step.changed {
			t.Errorf("%s: changed %v", step.name, changed)
		}
		if anew := len(was) == 0 || &was[0] != &c.items[0]; anew != step.anew {
			t.Errorf("%s: compared anew %v", step.name, anew)
		}
		if !slices.Equal(c.MissingNames, step.missing) || len(c.UnwantedNames) > 0 {
			t.Errorf("%s: missing %q, unwanted %q", step.name, c.MissingNames, c.UnwantedNames)
		}
	}
}

// H4: of an ENI that is not configured all items have the reason, and those that were shown stay as
// they were.
func TestCacheShown(t *testing.T) {
	eni, snapshot := known(t)
	less := *snapshot
	less.Rules = nil
	var c Cache
	c.Update(&eni, Version{}, Actual{Rendered: rendered(&eni), Kernel: &less, Ours: anyRule})
	plain, gaps := c.Shown(status.Reason{})
	if want := c.Items(status.Reason{}); !slices.Equal(sides(plain), sides(want)) || len(gaps) != len(c.Missing) {
		t.Errorf("%q, gaps %q", sides(plain), gaps)
	}
	before := sides(plain)
	why := status.Reason{Code: status.ManagedNo, File: "FILE"}
	items, gaps := c.Shown(why)
	for i := range items {
		want := ""
		if !items[i].Kernel {
			want = why.Words()
		}
		if items[i].Reason != want {
			t.Errorf("%s, want the reason %q", side(items[i]), want)
		}
	}
	if len(gaps) != len(c.Missing) || !slices.Equal(sides(plain), before) {
		t.Errorf("gaps %q", gaps)
	}
	again, _ := c.Shown(why)
	if &again[0] != &items[0] {
		t.Error("the same is worked out again")
	}
	if back, _ := c.Shown(status.Reason{}); !slices.Equal(sides(back), before) {
		t.Errorf("%q", sides(back))
	}
}
