// Package disk reads the directories of networkd and udevd into a [unitfile.Tree].
//
// It follows symbolic links as systemd does, and reads within bounds (J2). It does not know what the
// files mean: package unitfile does.
package disk

import (
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/file"
	"ec2netd/service/unitfile"
)

// Limits of one tree (J2).
const (
	// mostText is how much text it contains.
	mostText = 32 << 20
	// mostHops is how many symbolic links lead from one to the next. A loop is no file.
	mostHops = 8
	// mostFailures is how many unreadable files are told of, and keepTime how long if they have gone.
	mostFailures = 16
	keepTime     = 10 * time.Minute
)

// Reader reads the directories. It reads a file again only if that has changed. The zero value is
// usable, by one goroutine at a time.
type Reader struct {
	// Root is put before every path; empty for the system.
	Root string

	files file.Reader
	// last is the last tree, and contents are those of its files, by path.
	last     *unitfile.Tree
	contents map[string]*unitfile.Content
	// failed are the files and directories that could not be read, by path.
	failed map[string]failure
}

// failure is that to read a file or a directory.
type failure struct {
	why   string
	asked time.Time
	// file reports whether it is a file.
	file bool
}

// Tree returns what the directories contain now.
func (r *Reader) Tree() *unitfile.Tree {
	t := &reading{Reader: r, contents: make(map[string]*unitfile.Content, len(r.contents)), left: mostText}
	dirs := make([]*unitfile.Directory, 0, len(unitfile.Dirs()))
	for _, dir := range unitfile.Dirs() {
		dirs = append(dirs, t.directory(dir))
	}
	tree := unitfile.NewTree(dirs, t.file(unitfile.CloudInitYAML))
	r.note()
	r.last, r.contents = tree, t.contents
	return tree
}

// note takes up which files the last tree could not read.
func (r *Reader) note() {
	if r.last == nil {
		return
	}
	now, unread := time.Now(), r.last.Unread()
	maps.DeleteFunc(r.failed, func(p string, f failure) bool {
		there, readable := r.last.Lists(p)
		// A file that has gone is told of a while longer.
		return now.Sub(f.asked) > keepTime || readable || (!there && !f.file)
	})
	for _, p := range slices.Sorted(maps.Keys(unread)) {
		if _, known := r.failed[p]; !known && len(r.failed) >= mostFailures {
			continue
		}
		if r.failed == nil {
			r.failed = make(map[string]failure)
		}
		r.failed[p] = failure{file.Reason(unread[p]), now, path.Ext(p) != ".d" && !slices.Contains(unitfile.Dirs(), p)}
	}
}

// Unread returns why files and directories that exist could not be read when they were needed last,
// sorted; of many the first ones.
func (r *Reader) Unread() []string {
	r.note()
	var all []string
	for _, f := range r.failed {
		all = append(all, f.why)
	}
	slices.Sort(all)
	return all
}

func (r *Reader) at(p string) string {
	if r.Root == "" && path.IsAbs(p) {
		return path.Clean(p) // the same text, most often
	}
	return filepath.Join("/", r.Root, path.Join("/", p))
}

// reading is one reading of the directories.
type reading struct {
	*Reader
	contents map[string]*unitfile.Content
	// left is how much more text counts.
	left int
}

// directory reads a directory of unit files with the drop-ins of these.
func (r *reading) directory(dir string) *unitfile.Directory {
	found := &unitfile.Directory{Path: dir}
	names, err := file.ListEach(r.at(dir), "*.network", "*.link", "*.network.d", "*.link.d")
	fail(found, err)
	for i, names := range names {
		for _, name := range names {
			if p := dir + "/" + name; i < 2 {
				found.Files = append(found.Files, r.file(p))
			} else {
				found.Subs = append(found.Subs, r.dropIns(p))
			}
		}
	}
	return found
}

// dropIns reads a directory of drop-ins.
func (r *reading) dropIns(dir string) *unitfile.Directory {
	found := &unitfile.Directory{Path: dir}
	var itself unix.Stat_t
	found.Linked = unix.Lstat(r.at(dir), &itself) == nil && itself.Mode&unix.S_IFMT == unix.S_IFLNK
	names, err := file.List(r.at(dir), "*.conf")
	fail(found, err)
	for _, name := range names {
		found.Files = append(found.Files, r.file(dir+"/"+name))
	}
	return found
}

func fail(dir *unitfile.Directory, err error) {
	dir.Err, dir.NoDirectory = err, errors.Is(err, unix.ENOTDIR)
}

// file reads a file, of whatever kind.
func (r *reading) file(p string) *unitfile.File {
	f, at := &unitfile.File{Path: p}, r.at(p)
	var itself unix.Stat_t
	switch err := unix.Lstat(at, &itself); {
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, unix.ENOTDIR):
		return f
	case err != nil:
		f.Kind, f.Leads, f.Err = unitfile.Unknown, unitfile.Unknown, &fs.PathError{Op: "lstat", Path: at, Err: err}
		return f
	}
	f.Kind = kindOf(itself.Mode)
	if f.Kind == unitfile.Symlink {
		if at, f.Target = r.resolve(p); at == "" {
			f.Leads, f.Err = unitfile.Unknown, &fs.PathError{Op: "stat", Path: r.at(p), Err: unix.ELOOP}
			return f
		}
	}
	text, of, err := r.files.Examine(at)
	switch {
	case err == nil:
		f.Leads, f.Size, f.Modified = kindOf(of.Mode), of.Size, of.Mtim.Nano()
	case errors.Is(err, fs.ErrNotExist):
		return f
	default:
		f.Leads, f.Err = unitfile.Unknown, err
		var leads unix.Stat_t
		if unix.Stat(at, &leads) == nil {
			f.Leads, f.Size, f.Modified = kindOf(leads.Mode), leads.Size, leads.Mtim.Nano()
		}
		return f
	}
	if r.left -= len(text); r.left < 0 {
		f.Err = &fs.PathError{Op: "read", Path: at, Err: file.ErrTooLarge}
		return f
	}
	f.Content = r.content(p, text)
	return f
}

// content returns the content of a file with a text, the last one if the text is the same.
func (r *reading) content(p, text string) *unitfile.Content {
	c := r.Reader.contents[p]
	if c == nil || c.Text != text {
		c = unitfile.NewContent(text)
	}
	r.contents[p] = c
	return c
}

// resolve returns the path, with Root, of the file that a symbolic link leads to, empty for a loop, and
// what the link contains. Nothing but /dev/null is looked at outside of Root.
func (r *reading) resolve(p string) (at, first string) {
	for range mostHops {
		target, err := os.Readlink(r.at(p))
		if first == "" {
			first = target
		}
		switch {
		case err != nil:
			return r.at(p), first
		case target == os.DevNull:
			return os.DevNull, first
		case path.IsAbs(target):
			p = target
		default:
			p = path.Join(path.Dir(p), target)
		}
	}
	return "", first
}

func kindOf(mode uint32) unitfile.Kind {
	switch mode & unix.S_IFMT {
	case unix.S_IFREG:
		return unitfile.Regular
	case unix.S_IFLNK:
		return unitfile.Symlink
	case unix.S_IFDIR:
		return unitfile.Subdirectory
	case unix.S_IFCHR, unix.S_IFBLK:
		return unitfile.Device
	}
	return unitfile.Other
}
