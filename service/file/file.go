// Package file reads small files that seldom change, again only when they have.
//
// A look at everything reads some 15 files of each kind, of which most often none has
// changed. To ask the kernel whether a file is the same is a tenth of the work of reading it.
package file

import (
	"io/fs"
	"maps"
	"os"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// Reader reads files. Its zero value can be used, by several goroutines.
type Reader struct {
	mu   sync.Mutex
	read map[string]content
}

// content is that of a file, and what tells whether it is still the same.
type content struct {
	text string
	of   unix.Stat_t
	// proven: the file was old enough when it was read that a later change has another
	// time. Several changes within one tick of the kernel's clock have one.
	proven bool
	// asked is when it was asked for last.
	asked time.Time
}

// keepTime is how long what nobody asks for is kept: that of links that are gone.
const keepTime = 10 * time.Minute

// tick is more than any kernel's.
const tick = time.Second

// Read returns what is in a file. Nothing changes a file without its ctime, which only
// the kernel sets, or puts another one in its place without another inode.
func (r *Reader) Read(path string) (string, error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	var now unix.Stat_t
	if err := unix.Stat(path, &now); err != nil {
		delete(r.read, path)
		return "", &fs.PathError{Op: "stat", Path: path, Err: err}
	}
	last, known := r.read[path]
	if known && last.proven && last.of.Dev == now.Dev && last.of.Ino == now.Ino && last.of.Size == now.Size &&
		last.of.Mtim == now.Mtim && last.of.Ctim == now.Ctim {
		last.asked = time.Now()
		r.read[path] = last
		return last.text, nil
	}
	text, err := os.ReadFile(path)
	if err != nil {
		delete(r.read, path)
		return "", err
	}
	if last.text != string(text) {
		last.text = string(text)
	}
	if r.read == nil {
		r.read = make(map[string]content)
	}
	maps.DeleteFunc(r.read, func(_ string, c content) bool { return time.Since(c.asked) > keepTime })
	r.read[path] = content{text: last.text, of: now, proven: time.Since(time.Unix(now.Ctim.Unix())) > tick, asked: time.Now()}
	return last.text, nil
}
