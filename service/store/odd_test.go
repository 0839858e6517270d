package store

import (
	"errors"
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile/disk"
)

// strange puts things under the names of files that nobody expects there.
var strange = map[string]func(p string) error{
	"a FIFO":             func(p string) error { return unix.Mkfifo(p, 0o644) },
	"a directory":        func(p string) error { return os.Mkdir(p, 0o755) },
	"a link to itself":   func(p string) error { return os.Symlink(filepath.Base(p), p) },
	"a link to a device": func(p string) error { return os.Symlink("/dev/zero", p) },
	"a sparse file":      func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o644), os.Truncate(p, 1<<42)) },
	"a link that is a loop": func(p string) error {
		return errors.Join(os.Symlink(filepath.Base(p)+".2", p), os.Symlink(filepath.Base(p), p+".2"))
	},
}

// J2: whatever has the name of a unit file or a drop-in, of ours or of others, the store ends
// its work in no time, and our files are as they shall be wherever nothing is in their place.
func TestStrangeFiles(t *testing.T) {
	const etc, run = "/etc/systemd/network/", dropin.Directory + "/"
	for name, put := range strange {
		for _, at := range []string{
			etc + "10-other.network", etc + "10-other.network.d/x.conf", etc + "70-ens6.network.d/x.conf", etc + "80-ec2.network.d/x.conf",
			etc + "70-ens6.network.d", etc + "80-ec2.network.d", etc + "70-ens6.network", etc + dropin.BaseName, run + "70-ens6.network",
			run + "70-ens6.network.d/50-ec2netd.conf", run + "70-ens6.network.d", run + dropin.HoldName,
		} {
			t.Run(name+" "+strings.ReplaceAll(at, "/", "_"), func(t *testing.T) {
				s := &Store{Root: t.TempDir()}
				write(t, s.at(base), "[Match]\nDriver=ena\n")
				write(t, s.at(etc+"99-x.network"), "[RoutingPolicyRule]\nFrom=10.0.0.1\nTable=10001\nPriority=10001\n")
				if err := os.MkdirAll(filepath.Dir(s.at(at)), 0o755); err != nil {
					t.Fatal(err)
				}
				if err := put(s.at(at)); err != nil {
					t.Fatal(err)
				}
				before, err := os.Lstat(s.at(at))
				if err != nil {
					t.Fatal(err)
				}
				began := time.Now()
				want := slices.Concat(files("ens5"), files("ens6"), []File{{Path: dropin.HoldPath, Content: "[X-EC2]\n"}})
				_, _ = s.Apply(Want{Files: want})
				_ = s.Release()
				tree := (&disk.Reader{Root: s.Root}).Tree()
				(&plan.Link{}).Complete(tree)
				_, dropIns := tree.Base()
				for _, unit := range append(tree.Networks(), "70-ens6.network", dropin.BaseName, "10-other.network") {
					tree.Look(unit)
				}
				_, _ = plan.WantedRules(tree)
				_, _ = s.Units()
				tree.Extent("ens6")
				plan.Assigned(tree, "")
				tree.Stamp(at)
				s.Read(at)
				if took := time.Since(began); took > 5*time.Second {
					t.Errorf("it took %v", took)
				}
				// A regular file with the name of our drop-in, or an empty directory with that of
				// ours, is our own.
				own := name == "a sparse file" && path.Base(at) == dropin.FileName || name == "a directory" && at == run+"70-ens6.network.d"
				if after, err := os.Lstat(s.at(at)); !own && (err != nil || !os.SameFile(before, after)) {
					t.Errorf("what was there is gone: %v", err)
				}
				// No other ENI is concerned.
				if text := s.Read(dropin.NetworkDropIn("ens5")); text != "[Match]\nName=ens5\n" || s.Target(dropin.NetworkPath("ens5")) == "" {
					t.Errorf("the files of another ENI: %q", text)
				}
				if slices.Contains(dropIns, at) && name != "a sparse file" && name != "a link to a device" {
					t.Errorf("%s is multiplied", at)
				}
				if at == etc+"10-other.network.d/x.conf" && strings.HasPrefix(name, "a FIFO") && len(tree.Unread())+len(s.Unread()) != 1 {
					t.Errorf("unread are %q, %q", tree.Unread(), s.Unread())
				}
			})
		}
	}
}

// J2: among many files of others ours are found.
func TestManyFiles(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	write(t, s.at(base), "")
	apply(t, s, files("ens5"))
	for i := range 10_000 {
		f, err := os.Create(s.at(path.Join(dropin.Directory, fmt.Sprintf("50-%06d.txt", i))))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	began := time.Now()
	units, err := s.Units()
	if err != nil || len(units) != 1 || units[0].Name != "ens5" {
		t.Errorf("%v, %v", units, err)
	}
	if names := (&disk.Reader{Root: s.Root}).Tree().Networks(); !slices.Equal(names, []string{"70-ens5.network", dropin.BaseName}) {
		t.Errorf("%q", names)
	}
	apply(t, s, slices.Concat(files("ens5"), files("ens6")))
	if took := time.Since(began); took > 20*time.Second {
		t.Errorf("it took %v", took)
	}
}

// E10: what keeps a file from being written is named with the file, and with what to do.
func TestFailureSaysWhatToDo(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	write(t, s.at(dropin.NetworkPath("ens5")+".d"), "")
	_, err := s.Apply(Want{Files: files("ens5")})
	if want := "writing " + dropin.NetworkDropIn("ens5") + ": not a directory"; err == nil || err.Error() != want {
		t.Errorf("%v, want %s", err, want)
	}
}
