package udev

import (
	"os"
	"path/filepath"
	"testing"
)

func TestLinkFile(t *testing.T) {
	root := t.TempDir()
	dir := filepath.Join(root, "run/udev/data")
	if err := os.MkdirAll(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for name, text := range map[string]string{
		"n2": "I:668230541\nE:ID_NET_DRIVER=ena\nE:ID_NET_LINK_FILE=/usr/lib/systemd/network/99-default.link\nG:systemd\n",
		"n3": "I:1\nE:ID_NET_DRIVER=ena\n",
		"n4": "E:ID_NET_DRIVER=ena\n",
	} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	u := &Udev{Root: root}
	for index, want := range map[int]struct {
		file string
		ok   bool
	}{
		2: {"/usr/lib/systemd/network/99-default.link", true},
		3: {"", true},
		4: {"", false}, // not initialised
		5: {"", false}, // not known
	} {
		if file, ok := u.LinkFile(index); file != want.file || ok != want.ok {
			t.Errorf("link %d: %q, %v", index, file, ok)
		}
	}
}

// TestAnnounce: the symlink points to the file from any directory, and to nothing after the
// process that created it has ended or changed its working directory.
func TestAnnounce(t *testing.T) { // E9
	dir := t.TempDir()
	t.Chdir(dir)
	file, link := filepath.Join(dir, "lib", "none.link"), filepath.Join(dir, "running")
	if err := Announce(link, file); err == nil {
		t.Error("there is no directory for it, and nothing was said")
	}
	if err := os.Mkdir(filepath.Dir(file), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(file, []byte("here"), 0o644); err != nil {
		t.Fatal(err)
	}
	// Symlinks of an earlier run, and of one that was killed meanwhile.
	for _, left := range []string{link, filepath.Join(dir, ".running")} {
		if err := os.Symlink("/proc/1/cwd/none.link", left); err != nil {
			t.Fatal(err)
		}
	}
	for range 2 {
		if err := Announce(link, file); err != nil {
			t.Fatal(err)
		}
		if text, err := os.ReadFile(link); err != nil || string(text) != "here" {
			t.Errorf("%q, %v", text, err)
		}
	}
	t.Chdir(dir)
	if _, err := os.Stat(link); err == nil {
		t.Error("it leads somewhere, and nobody works there")
	}
	if left, err := filepath.Glob(filepath.Join(dir, ".*")); err != nil || len(left) > 0 {
		t.Errorf("left: %v, %v", left, err)
	}
}
