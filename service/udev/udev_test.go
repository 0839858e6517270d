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
