package file

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
	"testing"
	"testing/synctest"
	"time"
)

// E3, F1: a change of a file is noticed, whichever way somebody has made it.
func TestRead(t *testing.T) {
	var r Reader
	p := filepath.Join(t.TempDir(), "file")
	must := func(err error) {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
	}
	want := func(text string) {
		t.Helper()
		if got, err := r.Read(p); err != nil || got != text {
			t.Errorf("%q %v, want %q", got, err, text)
		}
	}
	if _, err := r.Read(p); !errors.Is(err, fs.ErrNotExist) {
		t.Error(err)
	}
	must(os.WriteFile(p, []byte("a"), 0o600))
	want("a")
	// Within one tick of the kernel's clock, and with the same length.
	for _, text := range []string{"b", "c", "d", "e"} {
		must(os.WriteFile(p, []byte(text), 0o600))
		want(text)
	}
	for !r.read[p].proven {
		time.Sleep(50 * time.Millisecond)
		want("e")
	}
	old, err := os.Stat(p)
	must(err)
	// The same length and modification time.
	must(os.WriteFile(p, []byte("f"), 0o600))
	must(os.Chtimes(p, old.ModTime(), old.ModTime()))
	want("f")
	must(os.WriteFile(p+"2", []byte("g"), 0o600))
	must(os.Chtimes(p+"2", old.ModTime(), old.ModTime()))
	must(os.Rename(p+"2", p))
	want("g")
	must(os.Remove(p))
	must(os.Symlink(p+"3", p))
	must(os.WriteFile(p+"3", []byte("h"), 0o600))
	want("h")
	must(os.Remove(p + "3"))
	if _, err := r.Read(p); !errors.Is(err, fs.ErrNotExist) || len(r.read) > 0 {
		t.Errorf("%v, %d are kept", err, len(r.read))
	}
}

// An unchanged file is not read again.
func TestReadOnce(t *testing.T) {
	var r Reader
	p := filepath.Join(t.TempDir(), "file")
	if err := os.WriteFile(p, make([]byte, 10000), 0o600); err != nil {
		t.Fatal(err)
	}
	for !r.read[p].proven {
		time.Sleep(50 * time.Millisecond)
		if _, err := r.Read(p); err != nil {
			t.Fatal(err)
		}
	}
	if n := testing.AllocsPerRun(100, func() { _, _ = r.Read(p) }); n > 2 {
		t.Errorf("%v allocations to read what has not changed", n)
	}
}

// C7: the reader forgets files of removed links.
func TestForgets(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var r Reader
		dir := t.TempDir()
		for i := range 500 {
			p := filepath.Join(dir, strconv.Itoa(i))
			if err := os.WriteFile(p, []byte("x"), 0o600); err != nil {
				t.Fatal(err)
			}
			if _, err := r.Read(p); err != nil {
				t.Fatal(err)
			}
			time.Sleep(time.Minute)
		}
		if len(r.read) > 12 {
			t.Errorf("%d files are kept", len(r.read))
		}
	})
}
