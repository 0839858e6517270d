package main

import (
	"os"
	"path/filepath"
	"testing"
)

// F8: the link is there once the daemon has started, whatever was in its place, and goes when
// the daemon is masked.
func TestLeaveNetwork(t *testing.T) {
	root := t.TempDir()
	for _, dir := range []string{"run/ec2netd", "etc/systemd/system", "run/systemd/system"} {
		if err := os.MkdirAll(filepath.Join(root, dir), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	link := filepath.Join(root, cloudInitLink)
	leads := func(want string) {
		t.Helper()
		if target, _ := os.Readlink(link); target != want {
			t.Errorf("the link leads to %q, want %q", target, want)
		}
	}
	for _, before := range []string{"", "/dev/null", cloudInitConfig} {
		_ = os.Remove(link)
		if before != "" {
			if err := os.Symlink(before, link); err != nil {
				t.Fatal(err)
			}
		}
		if err := leaveNetwork(root); err != nil {
			t.Errorf("with a link to %q: %v", before, err)
		}
		leads(cloudInitConfig)
	}
	for _, mask := range []string{"etc/systemd/system/" + ownUnit, "run/systemd/system/" + ownUnit} {
		if err := returnNetwork(root); err != nil {
			t.Error(err)
		}
		leads(cloudInitConfig)
		if err := os.Symlink(os.DevNull, filepath.Join(root, mask)); err != nil {
			t.Fatal(err)
		}
		for range 2 { // the second time there is no link
			if err := returnNetwork(root); err != nil {
				t.Error(err)
			}
			leads("")
		}
		if err := os.Remove(filepath.Join(root, mask)); err != nil {
			t.Fatal(err)
		}
		if err := leaveNetwork(root); err != nil {
			t.Error(err)
		}
	}
	if err := os.Remove(link); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(link, 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(link, "x"), nil, 0o600); err != nil {
		t.Fatal(err)
	}
	if err := leaveNetwork(root); err == nil {
		t.Error("nothing is said of a directory in its place")
	}
}
