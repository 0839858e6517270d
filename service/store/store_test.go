package store

import (
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile/disk"
)

const base = "/usr/lib/systemd/network/80-ec2.network"

func files(name string) []File {
	return []File{
		{Path: dropin.NetworkDropIn(name), Content: "[Match]\nName=" + name + "\n"},
		{Path: dropin.NetworkPath(name) + ".d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
		{Path: dropin.NetworkPath(name), Target: base},
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

func apply(t *testing.T, s *Store, want []File, keep ...Unit) Changes {
	t.Helper()
	paths := make([]string, 0, len(keep))
	for _, unit := range keep {
		paths = append(paths, unit.Path())
	}
	changes, err := s.Apply(Want{Files: want, Keep: paths})
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
	if _, err := os.Stat(s.at(filepath.Dir(dropin.NetworkDropIn("ens6")))); !os.IsNotExist(err) {
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
	dir := s.at(dropin.Directory)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	// A mask, a file, a link, and drop-ins of others.
	if err := os.Symlink("/dev/null", s.at(dropin.NetworkPath("ens5"))); err != nil {
		t.Fatal(err)
	}
	write(t, s.at(dropin.NetworkPath("ens6")), "[Match]\nName=ens6\n")
	if err := os.Symlink("/opt/other.network", s.at(dropin.NetworkPath("ens7"))); err != nil {
		t.Fatal(err)
	}
	write(t, s.at(dropin.NetworkPath("ens8")+".d/admin.conf"), "[Network]\nLLMNR=no\n")
	write(t, s.at(dropin.NetworkPath("old")+".d/eni.conf"), "[Network]\nDHCP=no\n")
	if err := os.Symlink("/opt/agent/networkd.d/60-agent.conf", s.at(dropin.NetworkPath("ens8")+".d/60-agent.conf")); err != nil {
		t.Fatal(err)
	}
	if err := os.MkdirAll(s.at(dropin.NetworkPath("ens9")+".d"), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink("/dev/null", s.at(dropin.NetworkDropIn("ens9"))); err != nil {
		t.Fatal(err)
	}
	before := tree(t, s.Root)

	want := slices.Concat(files("ens5"), files("ens6"), files("ens7"), files("ens8"), files("ens9")[:1])
	changes := apply(t, s, want)
	if changes.Refused[dropin.NetworkDropIn("ens9")].None() {
		t.Error("a masked drop-in: not refused")
	}
	for _, name := range []string{"ens5", "ens6", "ens7"} {
		if changes.Refused[dropin.NetworkPath(name)].None() {
			t.Errorf("%s: not refused", name)
		}
	}
	apply(t, s, nil)
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Errorf("others' files changed:\n%s", diff)
	}
}

// hold is the unit that belongs to no ENI.
var hold = File{Path: dropin.HoldPath, Content: "# Written by ec2netd, a test.\n"}

// What has networkd leave new ENIs alone goes when it is not wanted, and not if it is
// somebody else's.
func TestHold(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	if changes := apply(t, s, append(files("ens5"), hold)); !slices.Contains(changes.Written, dropin.HoldPath) {
		t.Errorf("%+v", changes)
	}
	if changes := apply(t, s, append(files("ens5"), hold)); changes.Any() {
		t.Errorf("again: %+v", changes)
	}
	if changes := apply(t, s, files("ens5")); !slices.Equal(changes.Removed, []string{dropin.HoldPath}) {
		t.Errorf("%+v", changes)
	}
	write(t, s.at(dropin.HoldPath), "[Match]\nName=eth9\n")
	for _, want := range [][]File{files("ens5"), append(files("ens5"), hold)} {
		if changes := apply(t, s, want); changes.Any() {
			t.Errorf("somebody else's: %+v", changes)
		}
	}
}

// baseDropIn belongs to no ENI either.
var baseDropIn = File{Path: dropin.BaseDropIn, Content: "# Written by ec2netd, a test.\n"}

// F6: the drop-in of the base unit is written and removed, is no drop-in of an ENI's, and leaves
// alone what others have in its place and beside it.
func TestBaseDropIn(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	want := append(files("ens5"), baseDropIn)
	if changes := apply(t, s, want); !slices.Contains(changes.Written, dropin.BaseDropIn) {
		t.Errorf("%+v", changes)
	}
	if changes := apply(t, s, want); changes.Any() {
		t.Errorf("again: %+v", changes)
	}
	if _, dropIns := (&disk.Reader{Root: s.Root}).Tree().Base(); len(dropIns) > 0 {
		t.Errorf("linked into those of ENIs: %v", dropIns)
	}
	if changes := apply(t, s, files("ens5")); !slices.Equal(changes.Removed, []string{dropin.BaseDropIn}) || s.there(filepath.Dir(dropin.BaseDropIn)) {
		t.Errorf("%+v", changes)
	}
	beside := filepath.Join(filepath.Dir(dropin.BaseDropIn), "mine.conf")
	write(t, s.at(beside), "[Link]\n")
	apply(t, s, want)
	apply(t, s, files("ens5"))
	if s.Read(beside) != "[Link]\n" || s.there(dropin.BaseDropIn) {
		t.Errorf("%v", tree(t, s.Root))
	}
	write(t, s.at(dropin.BaseDropIn), "[Link]\n")
	for _, want := range [][]File{files("ens5"), want} {
		if changes := apply(t, s, want); changes.Any() {
			t.Errorf("somebody else's: %+v", changes)
		}
	}
	if changes := apply(t, s, want); changes.Refused[dropin.BaseDropIn].None() {
		t.Errorf("somebody else's: %+v", changes)
	}
}

// unit is what a generated unit of this ENI looks like to the store.
func unit(name, mac, text string) []File {
	return []File{
		{Path: dropin.NetworkDropIn(name), Content: "[Match]\nMACAddress=" + mac + "\nName=" + name + "\n" + text},
		{Path: dropin.NetworkPath(name) + ".d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
		{Path: dropin.NetworkPath(name), Target: base},
		{Path: dropin.LinkDropIn(name), Content: "[Match]\nMACAddress=" + mac + "\n" + text},
		{Path: dropin.LinkPath(name), Target: plan.DefaultPolicy},
	}
}

// memory is a directory in memory, as /run is: on a disk each rename waits for it.
func memory(t *testing.T) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ec2netd-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

// copyTree copies all of a root, empty directories too.
func copyTree(t *testing.T, from, to string) {
	t.Helper()
	if err := os.CopyFS(to, os.DirFS(from)); err != nil {
		t.Fatal(err)
	}
}

// everything lists all that is below a root, hidden files and empty directories too.
func everything(t *testing.T, root string) []string {
	t.Helper()
	var out []string
	err := filepath.WalkDir(root, func(p string, _ os.DirEntry, err error) error {
		out = append(out, strings.TrimPrefix(p, root))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// whole checks what networkd and udevd see of a root at one moment: each unit with its
// drop-in, each file as one of those that were ever wanted, no MAC address in two units.
func whole(t *testing.T, root string, ever []File) {
	t.Helper()
	units := map[string]string{}
	for p, text := range tree(t, root) {
		if strings.HasPrefix(filepath.Base(p), ".") {
			switch filepath.Ext(p) {
			case ".conf", ".network", ".link":
				t.Errorf("networkd would take %s for a file of its own", p)
			}
			continue
		}
		if !slices.ContainsFunc(ever, func(f File) bool { return f.Path == p && f.Content+f.Target == text }) {
			t.Errorf("%s is %q, which was never wanted", p, text)
		}
		switch {
		case filepath.Base(p) == dropin.FileName && dropin.ParseLinkMatch(text).MAC() != "": // or it is a link to such a one
			unit := filepath.Dir(p)
			key := filepath.Ext(strings.TrimSuffix(unit, ".d")) + dropin.ParseLinkMatch(text).MAC()
			if other, ok := units[key]; ok {
				t.Errorf("%s and %s are for the same MAC address", other, unit)
			}
			units[key] = unit
		case !strings.HasSuffix(filepath.Dir(p), ".d") && p != dropin.HoldPath:
			if _, err := os.Stat(filepath.Join(root, p+".d", dropin.FileName)); err != nil {
				t.Errorf("%s without its drop-in", p)
			}
		}
	}
}

// C10, B5: killed after any single step of any change, it leaves nothing partial to
// networkd, and the next run ends with the same disk as if nothing had happened. Two
// units never are for one ENI, with its numbers, on the way.
func TestKilled(t *testing.T) {
	const a, b = "02:00:00:00:00:0a", "02:00:00:00:00:0b"
	relinked := unit("ens6", a, "one")
	relinked[2].Target = "/etc/systemd/network/80-ec2.network"
	states := map[string][]File{
		"nothing":  nil,
		"one":      unit("ens6", a, "one"),
		"changed":  unit("ens6", a, "two"),
		"two":      slices.Concat(unit("ens6", a, "one"), unit("ens7", b, "one")),
		"swapped":  slices.Concat(unit("ens6", b, "one"), unit("ens7", a, "one")),
		"renamed":  unit("ens42", a, "one"),
		"relinked": relinked,
		"bare":     {relinked[0], relinked[2]},
		"held":     append(unit("ens6", a, "one"), hold),
		"held two": append(slices.Concat(unit("ens6", a, "one"), unit("ens7", b, "one")), hold),
		"based":    append(unit("ens6", a, "one"), baseDropIn, hold),
		"netplan":  append(completed("ens6", a, "one"), leftOut),
		"netplans": slices.Concat(completed("ens6", a, "two"), completed("ens7", b, "one")),
	}
	steps := 0
	for from, goals := range map[string][]string{
		"nothing": {"one", "two", "netplan"}, "one": {"changed", "two", "renamed", "relinked", "nothing", "held", "netplans", "based"},
		"two": {"swapped", "one", "nothing"}, "swapped": {"renamed"}, "relinked": {"bare"}, "bare": {"two"},
		"held": {"held two", "two", "nothing"}, "netplan": {"one", "netplans", "nothing"}, "netplans": {"swapped"}, "based": {"one", "nothing"},
	} {
		for _, to := range goals {
			before, after := states[from], states[to]
			ever := slices.Concat(before, after)
			s := &Store{Root: filepath.Join(memory(t), "root")}
			apply(t, s, before)
			var killed []string
			s.Step = func() {
				left := fmt.Sprintf("%s%d", s.Root, len(killed))
				copyTree(t, s.Root, left)
				killed = append(killed, left)
			}
			apply(t, s, after)
			want := everything(t, s.Root)
			if diff := cmp.Diff(len(after), len(tree(t, s.Root))); diff != "" {
				t.Errorf("%s to %s: files: %s", from, to, diff)
			}
			steps += len(killed)
			for n, left := range killed {
				whole(t, left, ever)
				next := &Store{Root: left}
				apply(t, next, after)
				if diff := cmp.Diff(tree(t, s.Root), tree(t, left)); diff != "" {
					t.Errorf("%s to %s, killed after step %d: %s", from, to, n, diff)
				}
				if diff := cmp.Diff(want, everything(t, left)); diff != "" {
					t.Errorf("%s to %s, killed after step %d, residue: %s", from, to, n, diff)
				}
				// And the ENI may be gone when it comes to the next run.
				if apply(t, next, nil); len(tree(t, left)) != 0 {
					t.Errorf("%s to %s, killed after step %d: the files stay after a detach", from, to, n)
				}
			}
		}
	}
	if steps < 200 {
		t.Errorf("only %d steps were looked at", steps)
	}
}

// C10: and where the ENI is gone by the next run, nothing of it is left.
func TestKilledThenDetached(t *testing.T) {
	const mac = "02:00:00:00:00:0a"
	s := &Store{Root: filepath.Join(memory(t), "root")}
	if err := os.MkdirAll(s.at(dropin.Directory), 0o755); err != nil {
		t.Fatal(err)
	}
	empty := everything(t, s.Root)
	var killed []string
	s.Step = func() {
		left := fmt.Sprintf("%s%d", s.Root, len(killed))
		copyTree(t, s.Root, left)
		killed = append(killed, left)
	}
	apply(t, s, unit("ens6", mac, "one"))
	apply(t, s, append(unit("ens6", mac, "two"), baseDropIn, hold))
	apply(t, s, nil)
	for n, left := range killed {
		apply(t, &Store{Root: left}, nil)
		if diff := cmp.Diff(empty, everything(t, left)); diff != "" {
			t.Errorf("killed after step %d: %s", n, diff)
		}
	}
	if len(killed) < 20 {
		t.Errorf("only %d steps were looked at", len(killed))
	}
}

// A base unit that moves (an administrator's copy) takes the links along.
func TestRelink(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, files("ens6"))
	want := files("ens6")
	want[2].Target = "/etc/systemd/network/80-ec2.network"
	if changes := apply(t, s, want); !slices.Equal(changes.Written, []string{dropin.NetworkPath("ens6")}) {
		t.Errorf("%+v", changes)
	}
}

// E5, E3: a renewed file has the same bytes and is another one to networkd.
func TestRenew(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	p := dropin.NetworkDropIn("ens6")
	if err := s.Renew(p); err == nil {
		t.Error("a file that is not there was renewed")
	}
	if _, err := s.Apply(Want{Files: []File{{Path: p, Content: "[Match]\n"}}}); err != nil {
		t.Fatal(err)
	}
	// Held open, its inode is not used again.
	before, err := os.Open(s.at(p))
	if err != nil {
		t.Fatal(err)
	}
	defer before.Close()
	if err := s.Renew(p); err != nil {
		t.Fatal(err)
	}
	was, err := before.Stat()
	if err != nil {
		t.Fatal(err)
	}
	is, err := os.Stat(s.at(p))
	if err != nil {
		t.Fatal(err)
	}
	if os.SameFile(was, is) || s.Read(p) != "[Match]\n" || is.Mode() != was.Mode() {
		t.Errorf("renewed: the same file %v, %q, mode %v", os.SameFile(was, is), s.Read(p), is.Mode())
	}
}
