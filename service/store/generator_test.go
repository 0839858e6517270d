package store

import (
	"os"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
)

// completed is a unit with the links by which a generator's files say the same.
func completed(name, mac, text string) []File {
	dir := dropin.Directory + "/10-netplan-" + name
	return append(unit(name, mac, text),
		File{Path: dir + ".network.d/" + dropin.FileName, Target: dropin.NetworkDropIn(name)},
		File{Path: dir + ".network.d/" + dropin.BaseLinkName, Target: base},
		File{Path: dir + ".network.d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
	)
}

// leftOut is a drop-in that leaves ENIs out of a generator's file for several links.
var leftOut = File{Path: dropin.Directory + "/10-netplan-all.network.d/" + dropin.FileName, Content: "# Written by ec2netd, a test.\n[Match]\nDriver=!ena\n"}

// F3: so is what leaves ENIs out; of a file for one link that becomes one for several.
func TestLeftOut(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, completed("ens6", "02:00:00:00:00:0a", "one"))
	instead := File{Path: dropin.Directory + "/10-netplan-ens6.network.d/" + dropin.FileName, Content: leftOut.Content}
	for range 2 {
		apply(t, s, append(unit("ens6", "02:00:00:00:00:0a", "one"), leftOut, instead))
		for _, f := range []File{leftOut, instead} {
			if !s.regular(f.Path) || s.Read(f.Path) != f.Content {
				t.Errorf("%s is %q", f.Path, s.Read(f.Path))
			}
		}
	}
	apply(t, s, completed("ens6", "02:00:00:00:00:0a", "one"))
	if s.Target(instead.Path) == "" {
		t.Error("the file is not completed again")
	}
	write(t, s.at(leftOut.Path), "[Match]\nDriver=!others\n")
	if changes := apply(t, s, []File{leftOut}); changes.Refused[leftOut.Path].None() || len(changes.Written) > 0 {
		t.Errorf("somebody else's: %+v", changes)
	}
	if apply(t, s, nil); !s.regular(leftOut.Path) {
		t.Error("somebody else's is gone")
	}
}

// F3: the links are there as long as they are wanted, and what others have beside them stays.
func TestCompletions(t *testing.T) {
	const mac, dir = "02:00:00:00:00:0a", dropin.Directory + "/10-netplan-ens6.network.d"
	s := &Store{Root: t.TempDir()}
	write(t, s.at(dir+"/others.conf"), "[Link]\n")
	link(t, s.at(dir+"/linked.conf"), "/opt/others.conf")
	// One that somebody made after our pattern, of something else.
	link(t, s.at(dropin.Directory+"/10-mine.network.d/"+dropin.FileName), "/opt/50-ec2netd.conf")
	others := tree(t, s.Root)
	all := completed("ens6", mac, "one")
	if changes := apply(t, s, all); len(changes.Written) != len(all) {
		t.Errorf("%+v", changes)
	}
	if changes := apply(t, s, all); changes.Any() {
		t.Errorf("again: %+v", changes)
	}
	// The base unit moved.
	all[6].Target = "/etc/systemd/network/80-ec2.network"
	if changes := apply(t, s, all); !slices.Equal(changes.Written, []string{dir + "/" + dropin.BaseLinkName}) || len(changes.Refused) > 0 {
		t.Errorf("the base unit moved: %+v", changes)
	}
	// The administrator's drop-in in place of ours is what the generator's file has too.
	all[5].Target = "/etc/systemd/network/70-ens6.network.d/" + dropin.FileName
	apply(t, s, all)
	if changes := apply(t, s, all); changes.Any() || s.Target(all[5].Path) != all[5].Target {
		t.Errorf("the administrator's: %+v, %s", changes, s.Target(all[5].Path))
	}
	if changes := apply(t, s, nil, Unit{"ens6", Network}, Unit{"ens6", Link}); changes.Any() {
		t.Errorf("kept: %+v", changes)
	}
	// The YAML file has gone, and netplan's with it.
	want := []string{dir + "/" + dropin.BaseLinkName, dir + "/lab.conf", dir + "/" + dropin.FileName}
	if got := s.UnwantedLinks(map[string]bool{}, func(string) bool { return false }); !slices.Equal(got, want) {
		t.Errorf("unwanted are %q", got)
	}
	apply(t, s, unit("ens6", mac, "one"))
	apply(t, s, nil)
	if diff := cmp.Diff(others, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}
	apply(t, s, completed("ens7", mac, "one"))
	apply(t, s, nil)
	if _, err := os.Lstat(s.at(dropin.Directory + "/10-netplan-ens7.network.d")); err == nil {
		t.Error("an empty directory is left")
	}
}
