package file

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// odd creates files of all kinds, and returns a part of the error message for each; it is
// empty for a readable file.
func odd(t *testing.T, dir string) map[string]string {
	t.Helper()
	at := func(name string) string { return filepath.Join(dir, name) }
	must := func(errs ...error) {
		t.Helper()
		if err := errors.Join(errs...); err != nil {
			t.Fatal(err)
		}
	}
	must(unix.Mkfifo(at("fifo"), 0o600), os.Mkdir(at("directory"), 0o755))
	must(os.Symlink("fifo", at("link-to-fifo")), os.Symlink("loop", at("loop")), os.Symlink("/dev/zero", at("zero")))
	must(os.Symlink(os.DevNull, at("null")), os.WriteFile(at("regular"), []byte("text"), 0o600), os.Symlink("regular", at("link")))
	must(os.WriteFile(at("sparse"), nil, 0o600), os.Truncate(at("sparse"), 1<<42), os.Symlink("sparse", at("link-to-sparse")))
	// Files that the kernel generates on reading have no size.
	must(os.Symlink("/proc/self/status", at("proc")))
	listener, err := net.Listen("unix", at("socket"))
	must(err)
	t.Cleanup(func() { _ = listener.Close() })
	return map[string]string{
		"fifo": "a FIFO", "directory": "a directory", "link-to-fifo": "a FIFO", "loop": "too many levels", "zero": "a device",
		"socket": "a socket", "sparse": "too large", "link-to-sparse": "too large", "null": "", "regular": "", "link": "", "proc": "",
	}
}

// J2: whatever kind of file exists under a name, reading it takes neither much time nor much
// memory.
func TestOdd(t *testing.T) {
	for name, says := range odd(t, t.TempDir()) {
		dir := t.TempDir()
		odd(t, dir)
		p := filepath.Join(dir, name)
		var r Reader
		var before, after runtime.MemStats
		runtime.ReadMemStats(&before)
		began := time.Now()
		text, err := r.Read(p)
		if took := time.Since(began); took > 5*time.Second {
			t.Errorf("%s: read after %v", name, took)
		}
		if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 4*Limit {
			t.Errorf("%s: %d bytes allocated", name, after.TotalAlloc-before.TotalAlloc)
		}
		unread := strings.Join(r.Unread(), "\n")
		if says == "" {
			want := map[string]string{"regular": "text", "link": "text", "null": ""}
			if err != nil || (name != "proc" && text != want[name]) || (name == "proc" && !strings.Contains(text, "VmRSS")) || unread != "" {
				t.Errorf("%s: %q, %v; unread is %q", name, text, err, unread)
			}
			continue
		}
		if err == nil || text != "" || !strings.HasPrefix(unread, p+": ") || !strings.Contains(unread, says) {
			t.Errorf("%s: %q, %v; unread is %q", name, text, err, unread)
		}
		if _, _, err := ReadOwn(p, Limit); err == nil {
			t.Errorf("%s: read as one of the own files", name)
		}
		// A repaired file is no longer reported.
		if err := errors.Join(os.RemoveAll(p), os.WriteFile(p, []byte("mended"), 0o600)); err != nil {
			t.Fatal(err)
		}
		if text, err := r.Read(p); text != "mended" || err != nil || len(r.Unread()) > 0 {
			t.Errorf("%s: after the repair it is %q, %v; unread are %q", name, text, err, r.Unread())
		}
	}
}

// A file of exactly the maximal size is read, and a file with one byte more is not.
func TestLimit(t *testing.T) {
	p := filepath.Join(t.TempDir(), "file")
	for _, size := range []int{0, 1, 511, 512, 513, Limit - 1, Limit, Limit + 1} {
		if err := os.WriteFile(p, make([]byte, size), 0o600); err != nil {
			t.Fatal(err)
		}
		text, err := Read(p, Limit)
		if size > Limit {
			if !errors.Is(err, ErrTooLarge) || text != "" {
				t.Errorf("of %d bytes %d are read, %v", size, len(text), err)
			}
		} else if err != nil || len(text) != size {
			t.Errorf("of %d bytes %d are read, %v", size, len(text), err)
		}
	}
}

// The size of the cache and the number of reported failures are bounded.
func TestKeepsLittle(t *testing.T) {
	var r Reader
	dir := t.TempDir()
	for i := range 20 {
		p := filepath.Join(dir, fmt.Sprint(i))
		if err := os.WriteFile(p, make([]byte, Limit/2), 0o600); err != nil {
			t.Fatal(err)
		}
		for range 2 {
			if text, err := r.Read(p); err != nil || len(text) != Limit/2 {
				t.Fatal(err)
			}
		}
		_, _ = r.Read(dir)
		if err := os.Mkdir(p+".d", 0o700); err != nil {
			t.Fatal(err)
		}
		_, _ = r.Read(p + ".d")
	}
	if r.size > mostKept || len(r.read) != mostKept/(Limit/2) {
		t.Errorf("%d files of %d bytes are kept", len(r.read), r.size)
	}
	if n := len(r.Unread()); n != mostFailures {
		t.Errorf("%d failures are reported", n)
	}
}

// J2: in a directory with 100,000 entries only the matching ones count, and of too many the
// first.
func TestList(t *testing.T) {
	dir := t.TempDir()
	touch := func(name string) {
		t.Helper()
		f, err := os.Create(filepath.Join(dir, name))
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
	}
	many := 100_000
	if testing.Short() {
		many = 4 * MostNames
	}
	for i := range many {
		touch(fmt.Sprintf("junk%06d", i))
	}
	touch("b.conf")
	touch("a.conf")
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	began := time.Now()
	names, err := List(dir, "*.conf")
	if took := time.Since(began); err != nil || !slices.Equal(names, []string{"a.conf", "b.conf"}) || took > 10*time.Second {
		t.Errorf("%q, %v after %v", names, err, took)
	}
	if runtime.ReadMemStats(&after); after.TotalAlloc-before.TotalAlloc > 32<<20 {
		t.Errorf("%d bytes allocated", after.TotalAlloc-before.TotalAlloc)
	}
	if names, err = List(dir, "junk*"); !errors.Is(err, ErrTooMany) || len(names) != MostNames || names[0] != "junk000000" || names[MostNames-1] != fmt.Sprintf("junk%06d", MostNames-1) {
		t.Errorf("%d names from %q to %q, %v", len(names), names[0], names[len(names)-1], err)
	}
	if names, err := List(filepath.Join(dir, "none"), "*"); names != nil || err != nil {
		t.Errorf("of no directory: %q, %v", names, err)
	}
	if err := unix.Mkfifo(filepath.Join(dir, "fifo"), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{"a.conf", "fifo"} {
		if names, err := List(filepath.Join(dir, name), "*"); names != nil || !errors.Is(err, unix.ENOTDIR) {
			t.Errorf("of %s: %q, %v", name, names, err)
		}
	}
}

// The errors name the intended file, and say what to do.
func TestFailed(t *testing.T) {
	for errno, want := range map[error]string{
		unix.ENOSPC: "writing /run/x: no space left on device: free space", unix.EROFS: "writing /run/x: read-only file system: have that",
		unix.EACCES: "chown root /run && chmod u+rwx /run. ", unix.ENOENT: "systemctl restart", unix.EIO: "writing /run/x: input/output error",
	} {
		err := Failed("writing", "/run/x", &fs.PathError{Op: "open", Path: "/run/.x123", Err: errno})
		if !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "123") || !errors.Is(err, errno) {
			t.Errorf("%v: %v", errno, err)
		}
	}
	err := Failed("linking", "/run/a/x", &os.LinkError{Op: "symlink", Old: "/etc/y", New: "/run/a/.x123", Err: unix.EACCES})
	if want := "linking /run/a/x: permission denied: let root write to that directory: chown root /run/a && chmod u+rwx /run/a. "; !strings.HasPrefix(err.Error(), want) {
		t.Errorf("%v, want %s", err, want)
	}
}
