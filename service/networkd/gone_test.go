package networkd

import (
	"os"
	"path/filepath"
	"testing"
)

// TestGone: only a control group that is not there says so (E9).
func TestGone(t *testing.T) {
	root := t.TempDir()
	c := &Client{Root: root}
	if c.Gone() {
		t.Error("without control groups nobody knows, and it says that networkd has gone")
	}
	slice := filepath.Join(root, "sys/fs/cgroup/system.slice")
	if err := os.MkdirAll(filepath.Join(slice, unitName), 0o755); err != nil {
		t.Fatal(err)
	}
	if c.Gone() {
		t.Error("networkd runs, and it says that it has gone")
	}
	if err := os.Remove(filepath.Join(slice, unitName)); err != nil {
		t.Fatal(err)
	}
	if !c.Gone() {
		t.Error("networkd has gone, and it does not say so")
	}
}
