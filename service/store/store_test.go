package store

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/plan"
)

const base = "/usr/lib/systemd/network/80-ec2.network"

func files(name string) []plan.File {
	return []plan.File{
		{Path: plan.NetworkDropIn(name), Content: "[Match]\nName=" + name + "\n"},
		{Path: plan.NetworkPath(name) + ".d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
		{Path: plan.NetworkPath(name), Target: base},
	}
}

// tree lists all files below a root with their content or target.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.Readlink(p)
		if err != nil {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text = string(b)
		}
		out[strings.TrimPrefix(p, root)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, s *Store, want []plan.File, keep ...Unit) Changes {
	t.Helper()
	changes, err := s.Apply(want, keep)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func TestApply(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	want := slices.Concat(files("ens5"), files("ens6"))
	if changes := apply(t, s, want); len(changes.Written) != 6 || len(changes.Removed) != 0 {
		t.Errorf("first: %+v", changes)
	}
	stat := func() (out []os.FileInfo) {
		for _, f := range want {
			info, err := os.Lstat(s.at(f.Path))
			if err != nil {
				t.Fatal(err)
			}
			out = append(out, info)
		}
		return out
	}
	before := stat()
	// E3: what is right is not touched.
	if changes := apply(t, s, want); changes.Any() {
		t.Errorf("again: %+v", changes)
	}
	for i, info := range stat() {
		if !os.SameFile(info, before[i]) || info.ModTime() != before[i].ModTime() {
			t.Errorf("%s was touched", info.Name())
		}
	}
	// C2: a detached ENI's files go, with their directory; the others stay.
	if changes := apply(t, s, files("ens5")); len(changes.Removed) != 3 || len(changes.Written) != 0 {
		t.Errorf("detach: %+v", changes)
	}
	if _, err := os.Stat(s.at(filepath.Dir(plan.NetworkDropIn("ens6")))); !os.IsNotExist(err) {
		t.Error("the directory of ens6 is still there")
	}
	if got := len(tree(t, s.Root)); got != 3 {
		t.Errorf("%d files are left, want 3", got)
	}
}

// D3: what is kept is not touched, whatever is wanted.
func TestKeep(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, files("ens6"))
	before := tree(t, s.Root)
	if changes := apply(t, s, nil, Unit{"ens6", "network"}, Unit{"ens6", "link"}); changes.Any() {
		t.Errorf("%+v", changes)
	}
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}
}

// F1, F2: nothing of somebody else's is written over or removed.
func TestOthersFiles(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	dir := s.at(plan.Directory)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A mask, a file, a link, and drop-ins of others.
	if err := os.Symlink("/dev/null", s.at(plan.NetworkPath("ens5"))); err != nil {
		t.Fatal(err)
	}
	write(t, s.at(plan.NetworkPath("ens6")), "[Match]\nName=ens6\n")
	if err := os.Symlink("/opt/other.network", s.at(plan.NetworkPath("ens7"))); err != nil {
		t.Fatal(err)
	}
	write(t, s.at(plan.NetworkPath("ens8")+".d/admin.conf"), "[Network]\nLLMNR=no\n")
	write(t, s.at(plan.NetworkPath("old")+".d/eni.conf"), "[Network]\nDHCP=no\n")
	if err := os.Symlink("/opt/agent/networkd.d/60-agent.conf", s.at(plan.NetworkPath("ens8")+".d/60-agent.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.at(plan.NetworkPath("ens9")+".d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", s.at(plan.NetworkDropIn("ens9"))); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.Root)

	want := slices.Concat(files("ens5"), files("ens6"), files("ens7"), files("ens8"), files("ens9")[:1])
	changes := apply(t, s, want)
	if changes.Refused[plan.NetworkDropIn("ens9")] == "" {
		t.Error("a masked drop-in: not refused")
	}
	for _, name := range []string{"ens5", "ens6", "ens7"} {
		if changes.Refused[plan.NetworkPath(name)] == "" {
			t.Errorf("%s: not refused", name)
		}
	}
	apply(t, s, nil)
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Errorf("others' files changed:\n%s", diff)
	}
}

// C10: whatever step it is killed after, the next run ends in the same state.
func TestInterrupted(t *testing.T) {
	whole := files("ens6")
	for n := range len(whole) + 1 {
		s := &Store{Root: t.TempDir()}
		apply(t, s, whole[:n])
		apply(t, s, whole)
		if got := len(tree(t, s.Root)); got != len(whole) {
			t.Errorf("written up to %d: %d files, want %d", n, got, len(whole))
		}
		// A file that was not renamed yet is cleared away.
		if n > 0 {
			write(t, s.at(filepath.Dir(whole[0].Path)+"/."+plan.DropInName+"123"), "half")
		}
		// The drop-in goes last: as long as anything is left, it is known as ours.
		if n > 0 {
			apply(t, s, whole[:n])
			apply(t, s, nil)
			if got := tree(t, s.Root); len(got) != 0 {
				t.Errorf("removed from %d: %v is left", n, got)
			}
		}
	}
}

// A base unit that moves (an administrator's copy) takes the links along.
func TestRelink(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, files("ens6"))
	want := files("ens6")
	want[2].Target = "/etc/systemd/network/80-ec2.network"
	if changes := apply(t, s, want); !slices.Equal(changes.Written, []string{plan.NetworkPath("ens6")}) {
		t.Errorf("%+v", changes)
	}
}

func TestBase(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	if unit, dropIns := s.Base(); unit != base || len(dropIns) != 0 {
		t.Errorf("nothing there: %s, %v", unit, dropIns)
	}
	write(t, s.at(base), "")
	write(t, s.at(base+".d/a.conf"), "")
	write(t, s.at("/run/systemd/network/80-ec2.network.d/b.conf"), "")
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/a.conf"), "")
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/readme"), "")
	unit, dropIns := s.Base()
	want := []string{"/etc/systemd/network/80-ec2.network.d/a.conf", "/run/systemd/network/80-ec2.network.d/b.conf"}
	if unit != base || !slices.Equal(dropIns, want) {
		t.Errorf("%s, %v", unit, dropIns)
	}
	write(t, s.at("/etc/systemd/network/80-ec2.network"), "")
	if unit, _ := s.Base(); unit != "/etc/systemd/network/80-ec2.network" {
		t.Errorf("an administrator's copy does not win: %s", unit)
	}
}
