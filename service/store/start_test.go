package store

import (
	"errors"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"testing"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/unitfile/disk"
)

// E7: files wait for networkd's start, and are put in place where their ENI is still there.
func TestStart(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	const mac, other = "02:00:00:00:01:10", "02:00:00:00:01:11"
	text := func(mac, more string) string {
		return "# Written by ec2netd, see ec2netd(8).\n\n[Match]\nMACAddress=" + mac + "\n" + more
	}
	own := func(name, mac, more string) File {
		return File{Path: dropin.NetworkDropIn(name), Content: text(mac, more)}
	}
	keep := func(name string) File {
		return File{Path: dropin.StartDropIn(name), Content: "[Network]\nKeepConfiguration=yes\n"}
	}
	for _, name := range []string{"ens5", "ens6", "ens7"} {
		write(t, filepath.Join(s.Root, dropin.NetworkDropIn(name)), text(mac, ""))
	}
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	// Nothing waits yet, nor is there a place to wait in.
	must(s.Withdraw(nil))
	must(s.Start(true))

	shall := []File{own("ens5", mac, "[Route]\n"), keep("ens6"), own("ens7", other, "[Route]\n"), own("ens8", mac, ""), keep("ens9")}
	must(s.Withdraw(shall))
	must(s.Prepare(shall))
	steps := 0
	s.Step = func() { steps++ }
	must(s.Withdraw(shall))
	must(s.Prepare(shall))
	if steps > 0 {
		t.Errorf("%d changes of what is as it shall be", steps)
	}
	s.Step = nil
	if err := s.Start(false); err != nil || s.there(dropin.StartDropIn("ens6")) {
		t.Errorf("without a daemon: %v", err)
	}
	must(s.Start(true))
	now := tree(t, filepath.Join(s.Root, dropin.Directory))
	want := map[string]string{
		"/70-ens5.network.d/50-ec2netd.conf":       text(mac, "[Route]\n"),
		"/70-ens6.network.d/50-ec2netd.conf":       text(mac, ""),
		"/70-ens6.network.d/55-ec2netd-start.conf": keep("").Content,
		"/70-ens7.network.d/50-ec2netd.conf":       text(mac, ""), // the name is another ENI's now
	}
	for p, text := range want {
		if now[p] != text {
			t.Errorf("%s: %q, want %q", p, now[p], text)
		}
	}
	if len(now) != len(want) {
		t.Errorf("%v", now)
	}
	// What has changed since is no more what it was made of.
	apply(t, s, []File{own("ens5", mac, "[Network]\n")}, Unit{"ens6", Network}, Unit{"ens7", Network})
	if slices.Contains(s.waiting(), shall[0].Path) {
		t.Error("what waits for ens5 is out of date")
	}
	must(s.Prepare(shall))
	must(s.Withdraw(shall[:1]))
	if left := s.waiting(); !slices.Equal(left, []string{shall[0].Path}) {
		t.Errorf("%v wait", left)
	}
	must(s.Withdraw([]File{own("ens5", mac, "[Route]\n\n")}))
	if s.there(dropin.StartDirectory) {
		t.Error("a directory is left in which nothing waits")
	}

	// A mask of the administrator's stays.
	must(os.Remove(filepath.Join(s.Root, dropin.StartDropIn("ens6"))))
	must(os.Symlink(os.DevNull, filepath.Join(s.Root, dropin.StartDropIn("ens6"))))
	must(s.Prepare([]File{keep("ens6")}))
	must(s.Start(true))
	if target := s.Target(dropin.StartDropIn("ens6")); target != os.DevNull {
		t.Errorf("the mask leads to %q", target)
	}
}

// E7: what is put in place for networkd's start while a plan is carried out that was made before
// stays until the next one, which knows of it; but not longer than its ENI.
func TestStartMeanwhile(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	own := File{Path: dropin.NetworkDropIn("ens6"), Content: "# Written by ec2netd, see ec2netd(8).\n\n[Match]\nMACAddress=02:00:00:00:01:10\n"}
	start := File{Path: dropin.StartDropIn("ens6"), Content: "[Network]\nKeepConfiguration=yes\n"}
	var starts []string
	apply := func(files ...File) {
		t.Helper()
		if _, err := s.Apply(Want{Files: files, Starts: starts}); err != nil {
			t.Fatal(err)
		}
	}
	look := func() (there bool) {
		if starts = nil; (&disk.Reader{Root: s.Root}).Tree().Regular(start.Path) {
			starts = []string{start.Path}
		}
		return starts != nil
	}
	begin := func() {
		t.Helper()
		if err := s.Prepare([]File{start}); err != nil {
			t.Fatal(err)
		}
		if err := s.Start(true); err != nil || !s.there(start.Path) {
			t.Fatal(err)
		}
	}
	apply(own)
	if look() {
		t.Fatal("it is there before networkd starts")
	}
	begin()
	if apply(own); !s.there(start.Path) {
		t.Error("a plan that did not know of it has removed it")
	}
	look()
	if apply(own); s.there(start.Path) {
		t.Error("the next plan has left it")
	}
	look()
	begin()
	if apply(); s.there(start.Path) {
		t.Error("it has outlived the files of its ENI")
	}
}

// E10: what waits for networkd's start on a file system that has become read-only keeps nothing from
// being written that it is not about.
func TestStartReadOnly(t *testing.T) {
	if os.Geteuid() != 0 {
		t.Skip("a mount takes root: sudo go test ./service/store")
	}
	runtime.LockOSThread() // it ends with the test, and its mounts with it
	if err := errors.Join(unix.Unshare(unix.CLONE_NEWNS), unix.Mount("", "/", "", unix.MS_REC|unix.MS_PRIVATE, "")); err != nil {
		t.Fatal(err)
	}
	s := &Store{Root: t.TempDir()}
	waiting := filepath.Join(s.Root, dropin.StartDirectory)
	start := File{Path: dropin.StartDropIn("ens6"), Content: "[Network]\nKeepConfiguration=yes\n"}
	if err := errors.Join(os.MkdirAll(waiting, 0o755), unix.Mount("test", waiting, "tmpfs", 0, ""), s.Prepare([]File{start}),
		unix.Mount("", waiting, "", unix.MS_REMOUNT|unix.MS_RDONLY, "")); err != nil {
		t.Fatal(err)
	}
	own := File{Path: dropin.NetworkDropIn("ens6"), Content: "# Written by ec2netd, see ec2netd(8).\n\n[Match]\nMACAddress=02:00:00:00:01:10\n"}
	if _, err := s.Apply(Want{Files: []File{own}}); err != nil {
		t.Error(err)
	}
	if err := unix.Unmount(waiting, 0); err != nil {
		t.Error(err)
	}
}
