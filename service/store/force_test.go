package store

import (
	"os"
	"path"
	"path/filepath"
	"slices"
	"testing"

	"ec2netd/service/dropin"
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

// A unit without its drop-in would match every ENI: where something else is in the
// drop-in's place, the unit is not written, and goes if it is there.
func TestNoUnitWithoutDropIn(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	guarded := slices.Insert(files("ens6"), 1, File{Path: dropin.NetworkPath("ens6") + ".d/" + dropin.MatchName, Content: "[Match]\n"})
	for _, before := range []bool{false, true} {
		if before {
			_ = os.Remove(s.at(dropin.NetworkDropIn("ens6")))
			apply(t, s, guarded)
		}
		link(t, s.at(dropin.NetworkDropIn("ens6")), os.DevNull)
		changes := apply(t, s, guarded)
		if changes.Refused[dropin.NetworkDropIn("ens6")].None() {
			t.Errorf("%+v", changes)
		}
		if target := s.Target(dropin.NetworkPath("ens6")); target != "" {
			t.Errorf("the unit leads to %s", target)
		}
		apply(t, s, nil)
		if got := tree(t, s.Root); len(got) != 1 || got[dropin.NetworkDropIn("ens6")] != os.DevNull {
			t.Errorf("%v", got)
		}
	}
	// The mask goes, and all is as it was.
	_ = os.Remove(s.at(dropin.NetworkDropIn("ens6")))
	apply(t, s, guarded)
	if got := tree(t, s.Root); len(got) != 4 {
		t.Errorf("%v", got)
	}
	apply(t, s, files("ens6"))
	if _, there := tree(t, s.Root)[path.Join(dropin.NetworkPath("ens6")+".d", dropin.MatchName)]; there {
		t.Error("the drop-in that is not wanted any more is still there")
	}
}
