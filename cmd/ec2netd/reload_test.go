package main

import (
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ec2netd/service/config"
)

// TestReloader: a configuration with a mistake is refused, and one that needs a restart says so.
func TestReloader(t *testing.T) { // H12
	root := t.TempDir()
	put := func(text string) {
		if err := os.MkdirAll(filepath.Join(root, "etc"), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, "etc/ec2netd.conf"), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	var said strings.Builder
	log := slog.New(slog.NewTextHandler(&said, nil))
	put("[Match]\nPlatform=any\n")
	r := &reloader{root: root, inForce: config.Load(root), log: log}
	for _, step := range []struct {
		text, says string
		refresh    string
	}{
		{"[Match]\nPlatform=any\n[Metadata]\nRefreshSec=5\n", "taken up", "5s"},
		{"[Match]\nPlatform=any\n[Metadata]\nRefreshSec=7\nEndpont=x\n", "ec2netd.conf:5: Metadata.Endpont", "5s"},
		{"[Match]\nPlatform=any\n[Metadata]\nRefreshSec=9\n", "takes effect when the daemon is restarted", "9s"},
	} {
		said.Reset()
		put(step.text)
		if err := r.reload(t.Context()); err != nil {
			t.Fatal(err)
		}
		if !strings.Contains(said.String(), step.says) || fmt.Sprint(r.inForce.Refresh) != step.refresh {
			t.Errorf("%q: in force is %s; it said\n%s", step.text, r.inForce.Refresh, &said)
		}
	}
	put("[Match]\nDrivers=ena\n")
	if err := askToReload(os.Getpid(), root, log); err == nil {
		t.Error("a daemon is asked to take up a mistake")
	}
}
