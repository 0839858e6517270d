// Package disk reads the directories of networkd and udevd into a [unitfile.Tree].
//
// It follows symbolic links as systemd does, and reads within bounds (J2). It does not know what the
// files mean: package unitfile does.
package disk

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
	"ec2netd/service/unitfile"
)

// Patterns of the names of unit files and of their directories of drop-ins, and of those that the
// daemon generates. The latter are listed by themselves, so that a flood of other files hides none of
// them: what is not there would be removed (E6).
var (
	units      = []string{"*.network", "*.link", "*.network.d", "*.link.d"}
	ownUnits   = []string{"70-*.network", "70-*.link", dropin.HoldName, "70-*.network.d", "70-*.link.d", dropin.BaseName + ".d"}
	ownDropIns = []string{dropin.FileName, dropin.MatchName, dropin.StartName, dropin.BaseLinkName, dropin.ClearName}
)

// Limits of one tree (J2).
const (
	// mostText is how much text of others it contains, and mostFiles how many files of others.
	mostText  = 32 << 20
	mostFiles = 1 << 16
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
	// last is the last tree, contents are those of its files, and listed its directories, by path.
	last     *unitfile.Tree
	contents map[string]*unitfile.Content
	listed   map[string]*unitfile.Directory
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
	t := &reading{
		Reader: r, contents: make(map[string]*unitfile.Content, len(r.contents)), listed: make(map[string]*unitfile.Directory, len(r.listed)),
		text: mostText, count: mostFiles,
	}
	dirs := make([]*unitfile.Directory, 0, len(unitfile.Dirs()))
	for _, dir := range unitfile.Dirs() {
		dirs = append(dirs, t.directory(dir))
	}
	tree := unitfile.NewTree(dirs, t.file(unitfile.CloudInitYAML))
	r.note()
	r.last, r.contents, r.listed = tree, t.contents, t.listed
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
		return now.Sub(f.asked) > keepTime || readable || (!there && (!f.file || generated(p)))
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
	listed   map[string]*unitfile.Directory
	// text is how much more text of others counts, and count how many more files.
	text, count int
}

// directory reads a directory of unit files with the drop-ins of these.
func (r *reading) directory(dir string) *unitfile.Directory {
	found := &unitfile.Directory{Path: dir}
	names, err := r.names(found, units, ownUnits)
	if last := r.lasting(dir, err); last != nil {
		return last
	}
	for _, name := range names {
		if path.Ext(name) == ".d" {
			found.Subs = append(found.Subs, r.dropIns(dir+"/"+name))
		} else {
			r.add(found, name)
		}
	}
	return found
}

// dropIns reads a directory of drop-ins.
func (r *reading) dropIns(dir string) *unitfile.Directory {
	found := &unitfile.Directory{Path: dir}
	var itself unix.Stat_t
	found.Linked = unix.Lstat(r.at(dir), &itself) == nil && itself.Mode&unix.S_IFMT == unix.S_IFLNK
	names, err := r.names(found, []string{"*.conf"}, ownDropIns)
	if last := r.lasting(dir, err); last != nil {
		return last
	}
	for _, name := range names {
		r.add(found, name)
	}
	return found
}

// names lists a directory: for each of the patterns the first names, and those that are the daemon's.
func (r *reading) names(found *unitfile.Directory, patterns, own []string) ([]string, error) {
	r.listed[found.Path] = found
	each, err := file.ListEach(r.at(found.Path), slices.Concat(patterns, own)...)
	found.Err, found.NoDirectory = err, errors.Is(err, unix.ENOTDIR)
	var names []string
	for i := range min(len(patterns), len(each)) {
		of := each[i]
		for k, pattern := range own {
			if strings.HasSuffix(pattern, strings.TrimPrefix(patterns[i], "*")) {
				of = append(of, each[len(patterns)+k]...)
			}
		}
		slices.Sort(of)
		names = append(names, slices.Compact(of)...)
	}
	return names, err
}

// lasting returns what a directory contained last if it cannot be listed now, as where the process has
// no descriptor left; nil if it can.
func (r *reading) lasting(dir string, err error) *unitfile.Directory {
	last := r.Reader.listed[dir]
	if err == nil || last == nil || errors.Is(err, file.ErrTooMany) || errors.Is(err, unix.ENOTDIR) {
		return nil
	}
	kept := *last
	kept.Err = err
	r.keep(&kept)
	return &kept
}

// keep takes a directory over from the last tree.
func (r *reading) keep(dir *unitfile.Directory) {
	r.listed[dir.Path] = dir
	for _, f := range dir.Files {
		if f.Content != nil {
			r.contents[f.Path] = f.Content
		}
	}
	for _, sub := range dir.Subs {
		r.keep(sub)
	}
}

// add reads a file of a directory.
func (r *reading) add(dir *unitfile.Directory, name string) {
	p := dir.Path + "/" + name
	if r.count--; r.count < 0 && !generated(p) {
		dir.Err = &fs.PathError{Op: "list", Path: r.at(dir.Path), Err: fmt.Errorf("%w: %d files count", file.ErrTooMany, mostFiles)}
		return
	}
	dir.Files = append(dir.Files, r.file(p))
}

// generated reports whether a file is one that the daemon writes, by its path.
func generated(p string) bool {
	dir, name := path.Dir(p), path.Base(p)
	if dir == dropin.Directory {
		return p == dropin.HoldPath || strings.HasPrefix(name, "70-")
	}
	return path.Dir(dir) == dropin.Directory && slices.Contains(ownDropIns, name)
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
	if r.text -= len(text); r.text < 0 && !generated(p) {
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
