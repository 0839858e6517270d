// Package persist keeps values over a restart of the daemon, one per file (E10, decisions/001).
//
// A file contains either the value that its owner stored last, or no usable value: if a value
// cannot be stored, persist makes the older one on disk unusable, and stores the new one as soon
// as possible. The owner of a file is one goroutine of one process; any other process may [Peek]
// at it.
//
// To make an older value unusable, persist removes the file, which a full file system permits.
// If that fails too, for example on a read-only file system, persist writes a mark to another
// file system, with the digest of the void content. If neither can be written, persist cannot do
// anything, and the error says so. For a file that survives a boot the mark does not: it is in
// /run. Therefore the only such file, boot.json, is just a hint.
//
// The package does not define which values are kept, and never blocks: its owner calls Step,
// which returns when it wants to be called again.
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
	"ec2netd/service/schedule"
)

// Limits of a file. The views of 64 ENIs with 50 addresses of each family are 300 KiB.
const (
	mostBytes = 512 << 10
	// mostObjects bounds the memory that the decoder needs for a file full of "{}".
	mostObjects = 8192
	mostMark    = 1 << 10
)

// Delays after a value could not be stored.
const (
	firstRetry   = time.Second
	slowestRetry = 10 * time.Second
)

// Place says where a value is kept.
type Place struct {
	// Path of the file; empty to keep no value.
	Path string
	// Mark is a file in another file system. It contains the digest of a void content of Path
	// that could not be removed; empty for none.
	Mark string
}

// File keeps a value of type T. Place and Check must be set before its first use.
type File[T any] struct {
	Place
	// Check rejects a value that no run of the daemon writes; nil for no check.
	Check func(*T) error

	keeper
}

// Load returns the value of an earlier run, nil if there is none. The owner calls it before the
// first Put. It also removes the temporary files of a run that was killed while it wrote.
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

// current reports whether a content may be used: not if the mark names it.
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

// Put sets the value to keep. It stores the value at once, unless an earlier one has just failed
// to be stored; Step tries again.
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

// Step stores the value if an earlier attempt failed and the next one is due, or if somebody has
// removed the file. It returns when it wants to be called again, zero for never.
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

// Hurry makes the next Step try again at once.
func (f *File[T]) Hurry() { f.due = time.Time{} }

// Err returns why the latest value is not stored, nil if it is. It says what to do.
func (f *File[T]) Err() error { return f.err }

// keeper is the state of a file.
type keeper struct {
	// want is the wanted content of the file, nil for none yet. bad is the error of encoding it.
	want []byte
	bad  error
	// disk is the known content of the file, nil for none or an unknown one. of describes the
	// file with this content.
	disk  []byte
	of    fs.FileInfo
	err   error
	delay time.Duration
	due   time.Time

	// Tests replace these; nil means the functions of the system.
	write  func(path string, text []byte) error
	remove func(path string) error
}

// store writes the value to the disk or, if that fails, makes the older one there unusable.
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

// failed records why the value is not stored, why the older one is still usable, if it is, and
// when to try again.
func (k *keeper) failed(path string, err, left error, now time.Time) {
	err = file.Failed("writing", path, err)
	if left != nil {
		err = fmt.Errorf("%w. An older one stays until then (%w), which ec2netd would act on: do not restart it before", err, file.Cause(left))
	}
	k.err = err
	k.delay = schedule.Double(k.delay, firstRetry, slowestRetry)
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
	// The mark matters if it names this content, which was void before and is valid again.
	matters := err != nil || !current(k.disk, mark)
	if err = k.unlink(place.Mark); matters {
		return err
	}
	return nil
}

// invalidate makes the content on disk unusable for a later run, unless it is the wanted one.
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

// writeFile replaces a file atomically, and creates its directory if that was removed.
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

// sweep removes the temporary files of a run that was killed while it wrote. renameio names them
// after the file, with a dot before and a number after the name.
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

// sameFile reports whether a file has been neither replaced nor changed.
func sameFile(a, b fs.FileInfo) bool {
	return b != nil && os.SameFile(a, b) && a.Size() == b.Size() && a.ModTime().Equal(b.ModTime())
}
