package store

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

func link(t *testing.T, at, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(at)
	if err := os.Symlink(target, at); err != nil {
		t.Fatal(err)
	}
}

func sameText(a, b unitfile.Text) bool {
	return a.Path == b.Path && a.Source == b.Source && a.Content == b.Content
}

// F2: what stands in the place of the generated files.
func TestExtent(t *testing.T) {
	const etc = "/etc/systemd/network/"
	unit, dropIn := plan.NetworkPath("ens6"), plan.NetworkDropIn("ens6")
	for name, c := range map[string]struct {
		change func(s *Store)
		want   unitfile.Extent
	}{
		"nothing":                   {func(*Store) {}, unitfile.Extent{}},
		"a file":                    {func(s *Store) { write(t, s.at(etc+"70-ens6.network"), "[Match]\n") }, unitfile.Extent{Taken: etc + "70-ens6.network"}},
		"a mask":                    {func(s *Store) { link(t, s.at(etc+"70-ens6.network"), os.DevNull) }, unitfile.Extent{Taken: etc + "70-ens6.network"}},
		"a link that leads nowhere": {func(s *Store) { link(t, s.at(etc+"70-ens6.network"), "/nonexistent") }, unitfile.Extent{}},
		"another link's":            {func(s *Store) { write(t, s.at(etc+"70-ens7.network"), "[Match]\n") }, unitfile.Extent{}},
		"a mask in its place":       {func(s *Store) { link(t, s.at(unit), os.DevNull) }, unitfile.Extent{Taken: unit}},
		"a file in its place": {func(s *Store) {
			_ = os.Remove(s.at(unit))
			write(t, s.at(unit), "[Match]\n")
		}, unitfile.Extent{Taken: unit}},
		"a link in its place":         {func(s *Store) { link(t, s.at(unit), "/opt/x.network") }, unitfile.Extent{Taken: unit}},
		"a mask in the drop-in's":     {func(s *Store) { link(t, s.at(dropIn), os.DevNull) }, unitfile.Extent{Taken: dropIn}},
		"a drop-in":                   {func(s *Store) { write(t, s.at(etc+"70-ens6.network.d/x.conf"), "") }, unitfile.Extent{}},
		"a drop-in of the same name":  {func(s *Store) { write(t, s.at(etc+"70-ens6.network.d/50-ec2netd.conf"), "") }, unitfile.Extent{NetworkHidden: etc + "70-ens6.network.d/50-ec2netd.conf"}},
		"a masked .link drop-in":      {func(s *Store) { link(t, s.at(etc+"70-ens6.link.d/50-ec2netd.conf"), os.DevNull) }, unitfile.Extent{LinkHidden: etc + "70-ens6.link.d/50-ec2netd.conf"}},
		"a .link file takes no place": {func(s *Store) { write(t, s.at(etc+"70-ens6.link"), "[Match]\n") }, unitfile.Extent{}},
	} {
		s := &Store{Root: t.TempDir()}
		apply(t, s, files("ens6"))
		c.change(s)
		if got := s.Extent("ens6"); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// What networkd reads under one name.
func TestLook(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	write(t, s.at(base), "[Match]\nDriver=ena\n")
	apply(t, s, files("ens6"))
	const etc, usr = "/etc/systemd/network/", "/usr/lib/systemd/network/"
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/lab.conf"), "lab")
	write(t, s.at(usr+"70-ens6.network.d/10-vendor.conf"), "vendor")
	write(t, s.at(usr+"70-ens6.network.d/20-vendor.conf"), "vendor")
	write(t, s.at(etc+"70-ens6.network.d/20-vendor.conf"), "admin")
	link(t, s.at(etc+"70-ens6.network.d/10-vendor.conf"), os.DevNull)
	write(t, s.at(etc+"70-ens6.network.d/60-empty.conf"), "")
	write(t, s.at(etc+"70-ens6.network.d/readme"), "x")
	link(t, s.at(etc+"70-ens6.network.d/70-gone.conf"), "/nonexistent")
	got := s.Look("70-ens6.network")
	if got.Path != plan.NetworkPath("ens6") || got.Masked {
		t.Errorf("%+v", got)
	}
	want := []unitfile.Text{
		{Path: plan.NetworkPath("ens6"), Source: base, Content: "[Match]\nDriver=ena\n"},
		{Path: etc + "70-ens6.network.d/20-vendor.conf", Source: etc + "70-ens6.network.d/20-vendor.conf", Content: "admin"},
		{Path: plan.NetworkDropIn("ens6"), Source: plan.NetworkDropIn("ens6"), Content: "[Match]\nName=ens6\n"},
		{Path: plan.NetworkPath("ens6") + ".d/lab.conf", Source: etc + "80-ec2.network.d/lab.conf", Content: "lab"},
	}
	if masks := []string{etc + "70-ens6.network.d/10-vendor.conf", etc + "70-ens6.network.d/60-empty.conf"}; !slices.Equal(got.MaskedDropIns, masks) {
		t.Errorf("masks: %q", got.MaskedDropIns)
	}
	if !slices.EqualFunc(got.Texts, want, sameText) {
		t.Errorf("%+v", got.Texts)
	}
	if !want[2].Generated() || want[1].Generated() || want[3].Generated() {
		t.Error("which text is generated?")
	}
	// The administrator's copy wins, and masks.
	link(t, s.at(etc+"80-ec2.network"), os.DevNull)
	if got := s.Look(BaseName); got.Path != etc+BaseName || !got.Masked || len(got.Texts) > 0 {
		t.Errorf("%+v", got)
	}
	link(t, s.at(plan.NetworkPath("ens6")), etc+BaseName)
	if got := s.Look("70-ens6.network"); !got.Masked {
		t.Errorf("a unit that leads to a masked one: %+v", got)
	}
	if got := s.Look("70-ens7.network"); got.Path != "" || got.Masked {
		t.Errorf("%+v", got)
	}
	if got := s.Networks().Names; !slices.Equal(got, []string{"70-ens6.network", BaseName}) {
		t.Errorf("%q", got)
	}
	stamp := s.Stamp(base)
	write(t, s.at(base), "[Match]\n")
	if s.Stamp(base) == stamp || s.Stamp("/nonexistent") != "" {
		t.Error("a stamp does not tell a change")
	}
}

// A unit without its drop-in would match every ENI: where something else is in the
// drop-in's place, the unit is not written, and goes if it is there.
func TestNoUnitWithoutDropIn(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	guarded := slices.Insert(files("ens6"), 1, plan.File{Path: plan.NetworkPath("ens6") + ".d/" + plan.MatchDropIn, Content: "[Match]\n"})
	for _, before := range []bool{false, true} {
		if before {
			_ = os.Remove(s.at(plan.NetworkDropIn("ens6")))
			apply(t, s, guarded)
		}
		link(t, s.at(plan.NetworkDropIn("ens6")), os.DevNull)
		changes := apply(t, s, guarded)
		if changes.Refused[plan.NetworkDropIn("ens6")].None() {
			t.Errorf("%+v", changes)
		}
		if target := s.Target(plan.NetworkPath("ens6")); target != "" {
			t.Errorf("the unit leads to %s", target)
		}
		apply(t, s, nil)
		if got := tree(t, s.Root); len(got) != 1 || got[plan.NetworkDropIn("ens6")] != os.DevNull {
			t.Errorf("%v", got)
		}
	}
	// The mask goes, and all is as it was.
	_ = os.Remove(s.at(plan.NetworkDropIn("ens6")))
	apply(t, s, guarded)
	if got := tree(t, s.Root); len(got) != 4 {
		t.Errorf("%v", got)
	}
	apply(t, s, files("ens6"))
	if _, there := tree(t, s.Root)[path.Join(plan.NetworkPath("ens6")+".d", plan.MatchDropIn)]; there {
		t.Error("the drop-in that is not wanted any more is still there")
	}
}
