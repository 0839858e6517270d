package persist

import (
	"errors"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

type value struct {
	Name string `json:"name"`
	Of   []struct {
		N int `json:"n"`
	} `json:"of,omitempty"`
}

func check(v *value) error {
	if v.Name == "bad" {
		return errors.New("a bad name")
	}
	return nil
}

// disk is a directory for a file and one for its mark, with simulated failures.
type disk struct {
	t     *testing.T
	place Place
	// full: nothing new can be written beside the file; frozen: nothing can be changed there;
	// markless: nothing can be changed in the directory of the mark.
	full, frozen, markless bool
	writes                 int
}

func newDisk(t *testing.T) *disk {
	return &disk{t: t, place: Place{Path: filepath.Join(t.TempDir(), "run", "value.json"), Mark: filepath.Join(t.TempDir(), "value.void")}}
}

// open starts a run of the daemon, and returns the value that it loads, and the file.
func (d *disk) open() (*File[value], *value, error) {
	f := &File[value]{Place: d.place, Check: check}
	f.write = func(path string, text []byte) error {
		d.writes++
		inPlace := path == d.place.Path
		switch {
		case inPlace && d.frozen, !inPlace && d.markless:
			return &fs.PathError{Op: "open", Path: path + "123", Err: unix.EROFS}
		case inPlace && d.full:
			return &fs.PathError{Op: "write", Path: path + "123", Err: unix.ENOSPC}
		}
		return writeFile(path, text)
	}
	f.remove = func(path string) error {
		if d.frozen && path == d.place.Path || d.markless && path != d.place.Path {
			return &fs.PathError{Op: "remove", Path: path, Err: unix.EROFS}
		}
		return os.Remove(path)
	}
	v, err := f.Load()
	return f, v, err
}

// found returns the name that the next run loads, empty for none.
func (d *disk) found() string {
	d.t.Helper()
	_, v, _ := d.open()
	if v == nil {
		return ""
	}
	return v.Name
}

var start = time.Date(2026, 11, 28, 0, 0, 0, 0, time.UTC)

// E10: a value that cannot be stored is stored as soon as possible. A run that starts
// meanwhile never uses the older value, as long as anything can be written anywhere.
func TestNeverOlder(t *testing.T) {
	for name, c := range map[string]struct {
		broken func(*disk)
		// between is the value that a run meanwhile loads, and says is a part of the error.
		between, says string
	}{
		"a full file system":                      {func(d *disk) { d.full = true }, "", "no space left on device: free space"},
		"a read-only one":                         {func(d *disk) { d.frozen = true }, "", "read-only file system: have that file system mounted writable"},
		"two read-only ones":                      {func(d *disk) { d.frozen, d.markless = true, true }, "a", ": do not restart it before"},
		"a full one, and a read-only of the mark": {func(d *disk) { d.full, d.markless = true, true }, "", "free space"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			f, v, err := d.open()
			if v != nil || err != nil {
				t.Fatalf("at first there is %+v, %v", v, err)
			}
			f.Put(&value{Name: "a"}, start)
			if f.Err() != nil || d.found() != "a" {
				t.Fatalf("stored: %q, %v", d.found(), f.Err())
			}
			c.broken(d)
			f.Put(&value{Name: "b"}, start)
			if err := f.Err(); err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), "writing "+d.place.Path+": ") {
				t.Errorf("the error is %v", err)
			}
			if got := d.found(); got != c.between {
				t.Errorf("a run in between finds %q, want %q", got, c.between)
			}
			// It is tried again with growing delays, and not earlier.
			now, pauses := start, []time.Duration(nil)
			for range 6 {
				next := f.Step(now)
				pauses = append(pauses, next.Sub(now))
				d.writes = 0
				if f.Step(next.Add(-time.Millisecond)); d.writes > 0 {
					t.Errorf("%d writes before the time", d.writes)
				}
				now = next
			}
			if pauses[0] != firstRetry || pauses[1] != 2*firstRetry || pauses[5] != slowestRetry {
				t.Errorf("it is tried again after %v", pauses)
			}
			// The latest value is the one that is stored.
			f.Put(&value{Name: "c"}, now.Add(-time.Millisecond))
			*d = disk{t: t, place: d.place}
			if next := f.Step(now); !next.IsZero() || f.Err() != nil {
				t.Errorf("once it can be stored: again at %v, %v", next, f.Err())
			}
			if got := d.found(); got != "c" {
				t.Errorf("then a run finds %q", got)
			}
			if _, err := os.Lstat(d.place.Mark); !errors.Is(err, fs.ErrNotExist) {
				t.Errorf("the mark is left: %v", err)
			}
		})
	}
}

// A content that was void and is valid again is used, even if its bytes are still on disk.
func TestVoidAndBack(t *testing.T) {
	d := newDisk(t)
	f, _, _ := d.open()
	f.Put(&value{Name: "a"}, start)
	d.frozen = true
	f.Put(&value{Name: "b"}, start)
	if got := d.found(); got != "" {
		t.Fatalf("what is void is found: %q", got)
	}
	d.frozen = false
	f.Put(&value{Name: "a"}, start.Add(time.Hour))
	if got := d.found(); got != "a" || f.Err() != nil {
		t.Errorf("a run finds %q, %v", got, f.Err())
	}
	// A mark that cannot be read does not permit the use of the content.
	if err := os.Mkdir(d.place.Mark, 0o700); err != nil {
		t.Fatal(err)
	}
	if _, v, err := d.open(); v != nil || err == nil || !strings.Contains(err.Error(), "a directory") {
		t.Errorf("with a mark that cannot be read: %+v, %v", v, err)
	}
}

// E3: a stored value is not written again; a removed file is, when that is noticed.
func TestWrittenOnce(t *testing.T) {
	d := newDisk(t)
	f, _, _ := d.open()
	f.Put(&value{Name: "a"}, start)
	g, _, _ := d.open()
	d.writes = 0
	for i := range 100 {
		now := start.Add(time.Duration(i) * time.Minute)
		f.Put(&value{Name: "a"}, now)
		g.Put(&value{Name: "a"}, now)
		if next := f.Step(now); !next.IsZero() {
			t.Errorf("it wants to run again at %v", next)
		}
	}
	if d.writes > 0 {
		t.Errorf("%d writes of an unchanged value", d.writes)
	}
	if err := os.RemoveAll(filepath.Dir(d.place.Path)); err != nil {
		t.Fatal(err)
	}
	f.Step(start.Add(3 * time.Hour))
	if got := d.found(); got != "a" {
		t.Errorf("after rm -rf of its directory there is %q", got)
	}
}

// J2: other kinds of files at the path are neither used nor harmful.
func TestOdd(t *testing.T) {
	huge := `{"name":"` + strings.Repeat("x", mostBytes) + `"}`
	many := `{"of":[` + strings.Repeat("{},", mostObjects) + `{}]}`
	for name, c := range map[string]struct {
		put  func(path string) error
		says string
	}{
		"a FIFO":                  {func(p string) error { return unix.Mkfifo(p, 0o600) }, "a FIFO"},
		"a directory":             {func(p string) error { return os.Mkdir(p, 0o700) }, "a directory"},
		"a link to another file":  {func(p string) error { return os.Symlink("/etc/passwd", p) }, "a symbolic link"},
		"a link to itself":        {func(p string) error { return os.Symlink(p, p) }, "a symbolic link"},
		"a sparse file of 1 TiB":  {func(p string) error { return errors.Join(os.WriteFile(p, nil, 0o600), os.Truncate(p, 1<<40)) }, "too large"},
		"a large value":           {func(p string) error { return os.WriteFile(p, []byte(huge), 0o600) }, "too large"},
		"many objects":            {func(p string) error { return os.WriteFile(p, []byte(many), 0o600) }, "objects"},
		"half a value":            {func(p string) error { return os.WriteFile(p, []byte(`{"name":`), 0o600) }, "unexpected end"},
		"a value and more":        {func(p string) error { return os.WriteFile(p, []byte(`{"name":"a"} {"name":"b"}`), 0o600) }, "after top-level value"},
		"a value that is refused": {func(p string) error { return os.WriteFile(p, []byte(`{"name":"bad"}`), 0o600) }, "a bad name"},
		"an empty file":           {func(p string) error { return os.WriteFile(p, nil, 0o600) }, "unexpected end"},
		"a file of another user's": {func(p string) error {
			return errors.Join(os.WriteFile(p, []byte(`{"name":"a"}`), 0o600), os.Chown(p, 65534, 0))
		}, "owns it"},
	} {
		t.Run(name, func(t *testing.T) {
			d := newDisk(t)
			if err := os.Mkdir(filepath.Dir(d.place.Path), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := c.put(d.place.Path); err != nil {
				if errors.Is(err, syscall.EPERM) {
					t.Skip("only root can give a file away: run the tests as root")
				}
				t.Fatal(err)
			}
			f, v, err := d.open()
			if v != nil || err == nil || !strings.Contains(err.Error(), c.says) || !strings.Contains(err.Error(), d.place.Path) {
				t.Errorf("it loads %+v, %v", v, err)
			}
			f.Put(&value{Name: "mine"}, start)
			f.Step(start.Add(slowestRetry))
			if got := d.found(); got != "mine" {
				t.Errorf("then a run finds %q, %v", got, f.Err())
			}
		})
	}
}

// A value that could not be read back is not written, and the older one is still removed.
func TestTooLarge(t *testing.T) {
	d := newDisk(t)
	f, _, _ := d.open()
	f.Put(&value{Name: "a"}, start)
	f.Put(&value{Name: strings.Repeat("x", mostBytes)}, start)
	if err := f.Err(); err == nil || !strings.Contains(err.Error(), "larger") {
		t.Errorf("the error is %v", err)
	}
	if got := d.found(); got != "" {
		t.Errorf("a run finds %q", got)
	}
	f.Put(&value{Name: "b"}, f.Step(start))
	if got := d.found(); got != "b" || f.Err() != nil {
		t.Errorf("then a run finds %q, %v", got, f.Err())
	}
}

// C10: temporary files of a run that was killed are removed, and nothing else.
func TestSweep(t *testing.T) {
	d := newDisk(t)
	dir := filepath.Dir(d.place.Path)
	if err := os.Mkdir(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	for _, name := range []string{".value.json123", ".value.json", ".value.json12x", ".other.json1", "value.json1"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("{"), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	d.open()
	entries, err := os.ReadDir(dir)
	if err != nil {
		t.Fatal(err)
	}
	var left []string
	for _, e := range entries {
		left = append(left, e.Name())
	}
	if want := ".other.json1 .value.json .value.json12x value.json1"; strings.Join(left, " ") != want {
		t.Errorf("left are %q, want %q", left, want)
	}
}

// FuzzLoad: a file with any content is rejected, or can be written again unchanged.
func FuzzLoad(f *testing.F) {
	f.Add([]byte(`{"name":"a","of":[{"n":1}]}`))
	f.Add([]byte(`{"name":`))
	f.Fuzz(func(t *testing.T, text []byte) {
		p := Place{Path: filepath.Join(t.TempDir(), "value.json")}
		if err := os.WriteFile(p.Path, text, 0o600); err != nil {
			t.Fatal(err)
		}
		first := File[value]{Place: p, Check: check}
		v, err := first.Load()
		if err != nil {
			return
		}
		first.Put(v, start)
		second := File[value]{Place: p, Check: check}
		again, err := second.Load()
		if err != nil || again.Name != v.Name || len(again.Of) != len(v.Of) {
			t.Errorf("%+v became %+v: %v", v, again, err)
		}
	})
}
