// Package persist keeps values over a restart of the daemon, one in a file (E10, decisions/001).
//
// A file of it has the value that its owner last put there, or none that may be acted on: a
// value that could not be stored is stored as soon as it can be, and until then the older one
// on disk is made unusable. Its owner is one goroutine of one process; any other process may
// [Peek] at it.
//
// How an older value is made unusable: the file is removed, which a full file system allows.
// Where that fails too, as in a file system that has become read-only, a mark in another file
// system names the content that is void, by its digest. Nothing can be done where neither may
// be written, which the error then says; and for a file that outlives a boot nothing outlives
// it either but its own file system. So the one such file, boot.json, is only ever a hint.
//
// The package does not say what is kept, and waits for nothing: its owner calls Step, which
// returns when it wants to be called again.
package persist

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/google/renameio/v2"

	"ec2netd/service/file"
)

// Limits of a file. The views of 64 ENIs with 50 addresses of each family are 300 KiB.
const (
	mostBytes = 512 << 10
	// mostObjects bounds what the decoder makes of a file full of "{}".
	mostObjects = 8192
	mostMark    = 1 << 10
)

// Times of a value that could not be stored.
const (
	firstRetry   = time.Second
	slowestRetry = 10 * time.Second
)

// Place is where a value is kept.
type Place struct {
	// Path of the file; empty for not to keep the value.
	Path string
	// Mark is a file in another file system, for the digest of a content of Path that is void
	// and could not be removed; empty for none.
	Mark string
}

// File keeps a value of type T. Place and Check must be set before its first use.
type File[T any] struct {
	Place
	// Check refuses a value that no run of the daemon writes; nil for none.
	Check func(*T) error

	keeper
}

// Load returns the value that an earlier run has left, nil if it left none. It is for the
// owner, before the first Put: it also removes what a run that was killed while it wrote left.
func (f *File[T]) Load() (*T, error) {
	if f.Path == "" {
		return nil, nil
	}
	sweep(f.Path)
	sweep(f.Mark)
	value, text, err := f.read()
	if err == nil && value != nil {
		f.want, f.disk = text, text
		f.of, _ = os.Lstat(f.Path)
	}
	return value, err
}

// Peek returns the value, nil if there is none, and changes nothing.
func (f *File[T]) Peek() (*T, error) {
	value, _, err := f.read()
	return value, err
}

func (f *File[T]) read() (*T, []byte, error) {
	text, _, err := file.ReadOwn(f.Path, mostBytes)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil, nil
	}
	if err != nil {
		return nil, nil, err
	}
	fail := func(err error) (*T, []byte, error) {
		return nil, text, fmt.Errorf("reading %s: %w", f.Path, err)
	}
	mark, err := readMark(f.Mark)
	if err != nil {
		return fail(fmt.Errorf("whether it is void cannot be told: %w", err))
	}
	if !current(text, mark) {
		return fail(fmt.Errorf("it is older than what ec2netd knew last, says %s", f.Mark))
	}
	if n := bytes.Count(text, []byte("{")); n > mostObjects {
		return fail(fmt.Errorf("it has %d objects, more than %d", n, mostObjects))
	}
	value := new(T)
	if err := json.Unmarshal(text, value); err != nil {
		return fail(err)
	}
	if f.Check != nil {
		if err := f.Check(value); err != nil {
			return fail(err)
		}
	}
	return value, text, nil
}

// current reports whether a content may be acted on: no, if the mark names it.
func current(text, mark []byte) bool { return string(mark) != digest(text) }

// digest identifies a content in the mark.
func digest(text []byte) string {
	sum := sha256.Sum256(text)
	return hex.EncodeToString(sum[:])
}

func readMark(path string) ([]byte, error) {
	if path == "" {
		return nil, nil
	}
	text, _, err := file.ReadOwn(path, mostMark)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	return bytes.TrimSpace(text), err
}

// Put makes value the one that is kept. It is stored at once unless another one has just
// failed to be; Step tries again.
func (f *File[T]) Put(value *T, now time.Time) {
	if f.Path == "" {
		return
	}
	text, err := json.Marshal(value)
	if err == nil && (len(text) > mostBytes || bytes.Count(text, []byte("{")) > mostObjects) {
		err = errors.New("it is larger than a later run would read")
	}
	if err == nil && f.err == nil && f.disk != nil && bytes.Equal(text, f.disk) {
		f.want, f.bad = text, nil
		return
	}
	f.want, f.bad = text, err
	if !now.Before(f.due) {
		f.store(now)
	}
}

// Step stores the value if an earlier try failed and it is time for another, or if the file
// has gone meanwhile. It returns when it wants to be called again, zero for not at all.
func (f *File[T]) Step(now time.Time) time.Time {
	if f.Path == "" || (f.want == nil && f.bad == nil) {
		return time.Time{}
	}
	if f.err == nil {
		if of, err := os.Lstat(f.Path); err != nil || !sameFile(of, f.of) {
			f.disk = nil
			f.store(now)
		}
	}
	if f.err != nil && !now.Before(f.due) {
		f.store(now)
	}
	if f.err == nil {
		return time.Time{}
	}
	return f.due
}

// Hurry has the next Step not wait for the time of another try.
func (f *File[T]) Hurry() { f.due = time.Time{} }

// Err is why the value that was put last is not stored, nil if it is. It says what to do.
func (f *File[T]) Err() error { return f.err }

// keeper is what a file remembers.
type keeper struct {
	// want is the content that shall be on disk, nil for none yet. bad is why it
	// cannot be made.
	want []byte
	bad  error
	// disk is the content that is on disk, nil for none or another one. of is the file that
	// has it.
	disk  []byte
	of    fs.FileInfo
	err   error
	delay time.Duration
	due   time.Time

	// Tests replace these; nil for the system's.
	write  func(path string, text []byte) error
	remove func(path string) error
}

// store brings the value to the disk or, where that fails, makes what is there unusable.
func (f *File[T]) store(now time.Time) {
	err := f.bad
	if err == nil {
		err = f.replace(f.Place)
	}
	if err == nil {
		f.err, f.delay, f.due = nil, 0, time.Time{}
		return
	}
	f.failed(f.Path, err, f.invalidate(), now)
}

// failed notes why the value is not stored, why what is on disk is still usable, if it is, and
// when to try again.
func (k *keeper) failed(path string, err, left error, now time.Time) {
	err = file.Failed("writing", path, err)
	if left != nil {
		err = fmt.Errorf("%w. An older one stays until then (%w), which ec2netd would act on: do not restart it before", err, file.Cause(left))
	}
	k.err = err
	k.delay = min(max(2*k.delay, firstRetry), slowestRetry)
	k.due = now.Add(k.delay)
}

func (k *keeper) replace(place Place) error {
	if k.disk == nil || !bytes.Equal(k.disk, k.want) {
		if err := k.put(place.Path, k.want); err != nil {
			return err
		}
		k.disk = k.want
		k.of, _ = os.Lstat(place.Path)
	}
	mark, err := readMark(place.Mark)
	if err == nil && mark == nil {
		return nil
	}
	// The mark matters where it names this content, which was void once and is right again.
	matters := err != nil || !current(k.disk, mark)
	if err = k.unlink(place.Mark); matters {
		return err
	}
	return nil
}

// invalidate makes what is on disk unusable for a later run, unless it is what shall be there.
func (f *File[T]) invalidate() error {
	if f.bad == nil && f.disk != nil && bytes.Equal(f.disk, f.want) {
		return nil
	}
	f.disk = nil
	err := f.unlink(f.Path)
	if err == nil {
		return nil
	}
	usable, text, unusable := f.read()
	if unusable != nil || usable == nil {
		err = nil
	} else if f.Mark != "" && f.put(f.Mark, []byte(digest(text)+"\n")) == nil {
		err = nil
	}
	return err
}

func (k *keeper) put(path string, text []byte) error {
	if k.write != nil {
		return k.write(path, text)
	}
	return writeFile(path, text)
}

func (k *keeper) unlink(path string) error {
	remove := k.remove
	if remove == nil {
		remove = os.Remove
	}
	if err := remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}

// writeFile replaces a file as a whole, and makes its directory if that is gone.
func writeFile(path string, text []byte) error {
	dir := filepath.Dir(path)
	err := renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(dir))
	if errors.Is(err, fs.ErrNotExist) {
		if err = os.MkdirAll(dir, 0o755); err == nil {
			err = renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(dir))
		}
	}
	return err
}

// sweep removes what a run that was killed while it wrote a file left: renameio gives it the
// name of the file with a dot before it and a number after it.
func sweep(path string) {
	if path == "" {
		return
	}
	prefix := "." + filepath.Base(path)
	names, _ := file.List(filepath.Dir(path), ".*")
	for _, name := range names {
		number, ok := strings.CutPrefix(name, prefix)
		if ok && number != "" && strings.Trim(number, "0123456789") == "" {
			_ = os.Remove(filepath.Join(filepath.Dir(path), name))
		}
	}
}

// sameFile reports whether a file has not been replaced or changed.
func sameFile(a, b fs.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
