package store

import (
	"maps"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
)

// F12: what somebody removes is there again with its bytes, drop-ins before units, and nothing
// else is written.
func TestRestore(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	hold := File{Path: dropin.HoldPath, Content: "# Written by ec2netd, see ec2netd(8).\n"}
	apply(t, s, slices.Concat(files("ens5"), files("ens6"), []File{baseDropIn, hold}))
	before := tree(t, s.Root)
	for _, removed := range [][]string{
		nil,
		{dropin.HoldPath},
		{path.Dir(dropin.BaseDropIn)},
		{dropin.NetworkPath("ens5")},
		{dropin.NetworkDropIn("ens6")},
		{path.Dir(dropin.NetworkDropIn("ens6")), dropin.NetworkPath("ens6")},
		{dropin.Directory},
	} {
		for _, p := range removed {
			if err := os.RemoveAll(s.at(p)); err != nil {
				t.Fatal(err)
			}
		}
		left := tree(t, s.Root)
		written, err := s.Restore()
		if err != nil || len(written) != len(before)-len(left) {
			t.Errorf("after the removal of %v it wrote %v, %v", removed, written, err)
		}
		if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
			t.Errorf("after the removal of %v:\n%s", removed, diff)
		}
		for i, p := range written {
			if i > 0 && rank(p) < rank(written[i-1]) {
				t.Errorf("a drop-in comes after a unit: %v", written)
			}
		}
	}
}

// F3, F12: so is what completes a generator's file, also of a link of which nothing is known now.
func TestRestoreCompletions(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	all := completed("ens6", "02:00:00:00:00:0a", "one")
	apply(t, s, all)
	before := tree(t, s.Root)
	kept := []Unit{{"ens6", Network}, {"ens6", Link}}
	for what, run := range []func(){
		func() { apply(t, s, all) },
		func() { apply(t, s, nil, kept...) },
		func() {
			s = &Store{Root: s.Root}
			apply(t, s, nil, kept...)
		},
	} {
		run()
		if err := os.RemoveAll(s.at(dropin.Directory)); err != nil {
			t.Fatal(err)
		}
		if _, err := s.Restore(); err != nil {
			t.Fatal(err)
		}
		if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
			t.Errorf("%d: %s", what, diff)
		}
	}
}

// What this daemon has removed itself, what is not wanted any more and what somebody else has
// put in the place of a file stays as it is. What is kept comes back, also where an earlier run
// has written it.
func TestRestoreOnlyWanted(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, slices.Concat(files("ens5"), files("ens6"), files("ens7")))
	write(t, s.at(dropin.NetworkPath("ens5")+".d/"+dropin.StartName), "[Network]\nKeepConfiguration=yes\n")
	before := tree(t, s.Root)

	s = &Store{Root: s.Root}
	apply(t, s, files("ens6"), Unit{"ens5", Network}, Unit{"ens5", Link})
	if err := os.RemoveAll(s.at(dropin.Directory)); err != nil {
		t.Fatal(err)
	}
	if _, err := s.Restore(); err != nil {
		t.Fatal(err)
	}
	maps.DeleteFunc(before, func(p, _ string) bool {
		of7 := slices.ContainsFunc(files("ens7"), func(f File) bool { return f.Path == p })
		return of7 || path.Base(p) == dropin.StartName
	})
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}

	apply(t, s, nil)
	if written, err := s.Restore(); len(written) > 0 || err != nil {
		t.Errorf("it wrote what is not wanted: %v, %v", written, err)
	}
	if got := tree(t, s.Root); len(got) > 0 {
		t.Errorf("what is not wanted: %v", got)
	}

	apply(t, s, files("ens6"))
	if err := os.Remove(s.at(dropin.NetworkPath("ens6"))); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", s.at(dropin.NetworkPath("ens6"))); err != nil {
		t.Fatal(err)
	}
	for range 2 {
		if written, err := s.Restore(); len(written) > 0 || err != nil || s.Target(dropin.NetworkPath("ens6")) != "/dev/null" {
			t.Errorf("it wrote over a mask: %v, %v", written, err)
		}
		if changes := apply(t, s, files("ens6")); changes.Refused[dropin.NetworkPath("ens6")].None() {
			t.Errorf("a mask is written over: %+v", changes)
		}
	}
	// A file that was refused is not this daemon's to bring back.
	if err := os.Remove(s.at(dropin.NetworkPath("ens6"))); err != nil {
		t.Fatal(err)
	}
	if written, err := s.Restore(); len(written) > 0 || err != nil {
		t.Errorf("it brought back what was refused: %v, %v", written, err)
	}
}
