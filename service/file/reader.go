package file

import (
	"errors"
	"io/fs"
	"maps"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"
)

// unixStat is the kernel's description of a file, in the form of package os.
type unixStat = syscall.Stat_t

// Reader reads small files that seldom change, and reads them again only after a change. A
// look at everything reads about 15 files of each kind, of which usually none has changed.
// Asking the kernel whether a file has changed is a tenth of the work of reading it. The
// Reader also remembers files that it could not read. Its zero value is ready for use, by
// several goroutines.
type Reader struct {
	mu   sync.Mutex
	read map[string]content
	// size is the size of the cache, and pruned the time at which unused entries were last
	// removed.
	size   int
	pruned time.Time
	failed map[string]failure
}

// content is the content of a file, with the data that show whether the file has changed.
type content struct {
	text string
	of   unixStat
	// proven: the file was old enough when it was read that a later change has a different
	// time. Several changes within one tick of the kernel's clock have the same time.
	proven bool
	// asked is the time of the last request.
	asked time.Time
}

// failure is a failure to read a file or a directory.
type failure struct {
	err   error
	asked time.Time
}

// keepTime is how long unused entries are kept, such as those of removed links.
const keepTime = 10 * time.Minute

// tick is longer than the tick of any kernel.
const tick = time.Second

// Limits of the cache.
const (
	mostKept     = 4 << 20
	mostFailures = 16
)

// Read returns what is in a file, as the function [Read] does with Limit. Nothing changes a
// file without its ctime, which only the kernel sets, or puts another one in its place
// without another inode.
func (r *Reader) Read(path string) (string, error) {
	text, _, err := r.Examine(path)
	return text, err
}

// Examine is Read, and returns what the kernel says of the file too, if it can be read.
func (r *Reader) Examine(path string) (string, syscall.Stat_t, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now unixStat
	last, known := r.read[path]
	if known && last.proven && syscall.Stat(path, &now) == nil && same(&last.of, &now) {
		last.asked = time.Now()
		r.read[path] = last
		return last.text, now, nil
	}
	text, of, err := read(path, Limit, 0)
	r.note(path, err)
	if err != nil {
		r.forget(path)
		return "", unixStat{}, err
	}
	if last.text != string(text) {
		last.text = string(text)
	}
	now = *of.Sys().(*unixStat)
	r.keep(path, content{text: last.text, of: now, proven: time.Since(time.Unix(now.Ctim.Unix())) > tick, asked: time.Now()})
	return last.text, now, nil
}

func same(a, b *unixStat) bool {
	return a.Dev == b.Dev && a.Ino == b.Ino && a.Size == b.Size && a.Mtim == b.Mtim && a.Ctim == b.Ctim
}

func (r *Reader) forget(path string) {
	r.size -= len(r.read[path].text)
	delete(r.read, path)
}

func (r *Reader) keep(path string, c content) {
	if now := time.Now(); now.Sub(r.pruned) > keepTime/10 {
		r.pruned = now
		for old, kept := range r.read {
			if now.Sub(kept.asked) > keepTime {
				r.forget(old)
			}
		}
	}
	r.forget(path)
	if r.size+len(c.text) > mostKept {
		return
	}
	if r.read == nil {
		r.read = make(map[string]content)
	}
	r.read[path] = c
	r.size += len(c.text)
}

// List is the function [List]. What it returns besides an error holds.
func (r *Reader) List(dir, pattern string) ([]string, error) {
	names, err := List(dir, pattern)
	r.mu.Lock()
	defer r.mu.Unlock()
	r.note(dir, err)
	return names, err
}

// note records whether a file could be read.
func (r *Reader) note(path string, err error) {
	if err == nil || errors.Is(err, fs.ErrNotExist) {
		delete(r.failed, path)
		return
	}
	if r.failed == nil {
		r.failed = make(map[string]failure)
	}
	if _, known := r.failed[path]; known || len(r.failed) < mostFailures {
		r.failed[path] = failure{err: err, asked: time.Now()}
	}
}

// Unread returns why existing files and directories could not be read at the last request,
// sorted; if there are many, it returns the first ones.
func (r *Reader) Unread() []string {
	r.mu.Lock()
	defer r.mu.Unlock()
	maps.DeleteFunc(r.failed, func(_ string, f failure) bool { return time.Since(f.asked) > keepTime })
	var all []string
	for _, f := range r.failed {
		all = append(all, Reason(f.err))
	}
	slices.SortFunc(all, strings.Compare)
	return all
}

// Reason says why a file could not be read, with its path first.
func Reason(err error) string {
	var at *fs.PathError
	if !errors.As(err, &at) {
		return err.Error()
	}
	return at.Path + ": " + at.Err.Error()
}
