// Package store keeps the generated files on disk as the plan has them.
//
// It writes only what differs, always by rename, and removes only what is its own.
// What is its own follows from the disk alone, so that nothing is forgotten when
// the daemon is killed: a directory 70-NAME.network.d or 70-NAME.link.d of
// /run/systemd/network with a 50-ec2netd.conf in it. The drop-in is written before
// the unit that makes it effective, and removed after it, so that whoever reads the
// directory at any moment sees a unit whole or not at all (C10).
package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// Store is the directory of generated files.
type Store struct {
	// Root is put before every path; empty for the system.
	Root string
	// Step, if set, is called after each single change of the disk. Tests take a copy
	// of the disk there: it is what a kill at that moment leaves.
	Step func()

	swept bool
	// had are the generated files that are in place, by path, see Restore.
	had map[string]File

	files file.Reader
}

func (s *Store) step() {
	if s.Step != nil {
		s.Step()
	}
}

// Changes are what Apply did, absolute paths without Root.
type Changes struct {
	Written []string
	Removed []string
	// Refused are files that are not written because something of somebody else's
	// is in the place, by path, and what it is.
	Refused map[string]status.Reason
}

// Any tells whether anything changed.
func (c *Changes) Any() bool { return len(c.Written)+len(c.Removed) > 0 }

// wrote notes a file that was written, removed before or not.
func (c *Changes) wrote(p string) {
	c.Removed = slices.DeleteFunc(c.Removed, func(removed string) bool { return removed == p })
	c.Written = append(c.Written, p)
}

func (s *Store) at(p string) string {
	if s.Root == "" && path.IsAbs(p) {
		return path.Clean(p) // the same text, most often
	}
	return filepath.Join("/", s.Root, path.Join("/", p))
}

// Read returns the content of a file of the store, empty if there is none.
func (s *Store) Read(p string) string {
	text, err := s.files.Read(s.at(p))
	if err != nil {
		return ""
	}
	return text
}

// list lists the matching names of a directory of networkd's. What cannot be listed has none;
// Unread tells of it.
func (s *Store) list(dir, pattern string) []string {
	names, _ := s.files.List(s.at(dir), pattern)
	return names
}

// Unread tells which files and directories could not be read when they were last needed.
func (s *Store) Unread() []string { return s.files.Unread() }

// Target returns where a symbolic link of the store leads, empty if it is none.
func (s *Store) Target(p string) string {
	target, err := os.Readlink(s.at(p))
	if err != nil {
		return ""
	}
	return target
}

// The kinds of units.
const (
	Network = "network"
	Link    = "link"
)

// Unit is one generated unit on disk.
type Unit struct {
	// Name of the link.
	Name string
	// Kind is Network or Link.
	Kind string
}

// Path returns the path of the unit.
func (u Unit) Path() string { return dropin.Directory + "/70-" + u.Name + "." + u.Kind }

// unitAt returns the generated unit with a path.
func unitAt(p string) Unit {
	kind := path.Ext(p)
	return Unit{Name: strings.TrimSuffix(strings.TrimPrefix(path.Base(p), "70-"), kind), Kind: strings.TrimPrefix(kind, ".")}
}

func (u Unit) dir() string    { return u.Path() + ".d" }
func (u Unit) dropIn() string { return u.Path() + ".d/" + dropin.FileName }

// mac returns the MAC address of the link that a text of the drop-in is for.
func (u Unit) mac(text string) string {
	if u.Kind == Link {
		return dropin.ParseLinkMatch(text).MAC()
	}
	return dropin.ParseNetworkMatch(text).MAC()
}

// Units lists the generated units.
func (s *Store) Units() ([]Unit, error) {
	// More than count there are none of this daemon's.
	names, err := s.files.List(s.at(dropin.Directory), "70-*.d")
	if err != nil && !errors.Is(err, file.ErrTooMany) {
		return nil, fmt.Errorf("listing %s: %w", dropin.Directory, err)
	}
	var units []Unit
	for _, found := range names {
		rest := strings.TrimPrefix(found, "70-")
		var dir unix.Stat_t
		if err := unix.Lstat(s.at(dropin.Directory+"/"+found), &dir); err != nil || dir.Mode&unix.S_IFMT != unix.S_IFDIR {
			continue
		}
		for _, kind := range []string{Network, Link} {
			name, ok := strings.CutSuffix(rest, "."+kind+".d")
			if !ok || name == "" {
				continue
			}
			unit := Unit{Name: name, Kind: kind}
			var there unix.Stat_t
			err := unix.Lstat(s.at(unit.dropIn()), &there)
			switch {
			case err == nil && there.Mode&unix.S_IFMT == unix.S_IFREG:
				units = append(units, unit)
			case err == nil && kind == Network && unit.leadsTo(s.Target(unit.Path())):
				// Something was put in the drop-in's place, and the unit, which is ours, is
				// left. Without the drop-in it matches every ENI.
				units = append(units, unit)
			}
		}
	}
	return units, nil
}

// File is one file to be: a regular one with Content, or a symbolic link to Target.
type File struct {
	Path    string
	Content string
	Target  string
}

// Want is what the disk shall have.
type Want struct {
	// Files in the order in which they are to be written.
	Files []File
	// Keep are the paths of generated units of which everything stays that is there.
	Keep []string
	// Starts are the drop-ins for a start of networkd that were there when Files was decided on.
	// Others have been put in place since, for a networkd that is about to read them: they stay.
	Starts []string
}

// Apply makes the disk have what is wanted, and nothing else of its own. On an error what was done so
// far stays, and is told.
func (s *Store) Apply(want Want) (Changes, error) {
	files := want.Files
	keep := make([]Unit, 0, len(want.Keep))
	for _, p := range want.Keep {
		keep = append(keep, unitAt(p))
	}
	changes := Changes{Refused: make(map[string]status.Reason)}
	if !s.swept {
		s.sweep()
		s.swept = true
	}
	units, err := s.Units()
	if err != nil {
		return changes, err
	}
	wanted, links := make(map[string]bool, len(files)), make(map[string]bool, len(files))
	content := make(map[string]string, len(files))
	for _, file := range files {
		wanted[file.Path], content[file.Path] = true, file.Content
		links[file.Path] = file.Target != ""
	}
	// Before the units of ENIs that shall have the base unit, which this one keeps from them.
	if !wanted[dropin.HoldPath] {
		if err := s.release(&changes); err != nil {
			return changes, err
		}
	}
	// Remove first: a link that was renamed must not be matched by two units, and
	// where names were swapped no two units must have one ENI's numbers (B5).
	for _, unit := range units {
		if slices.Contains(keep, unit) {
			continue
		}
		stays := wanted
		own := unit.dropIn()
		if present := s.Read(own); wanted[own] && present != content[own] && unit.mac(present) != unit.mac(content[own]) {
			stays = nil
		}
		if err := s.prune(unit, stays, want.Starts, &changes); err != nil {
			return changes, err
		}
	}
	if err := s.pruneGenerators(links, content, keep, &changes); err != nil {
		return changes, err
	}
	if !wanted[dropin.BaseDropIn] {
		if err := s.pruneBase(&changes); err != nil {
			return changes, err
		}
	}
	for _, file := range files {
		dir := path.Dir(file.Path)
		if dir == dropin.Directory {
			dir = file.Path + ".d"
		}
		own := path.Join(dir, dropin.FileName)
		if !changes.Refused[own].None() {
			// Without the drop-in the unit would match other links.
			continue
		}
		if err := s.write(file, units, &changes); err != nil {
			return changes, err
		}
		for _, unit := range units {
			if !changes.Refused[own].None() && unit.dir() == dir {
				if err := s.prune(unit, nil, nil, &changes); err != nil {
					return changes, err
				}
			}
		}
	}
	s.hasOnly(wanted, keep)
	return changes, nil
}

// Release removes the unit that has networkd leave new ENIs alone, if it is this daemon's.
func (s *Store) Release() error { return s.release(&Changes{}) }

func (s *Store) release(changes *Changes) error {
	if !dropin.Ours(s.Read(dropin.HoldPath)) {
		return nil
	}
	return s.remove(dropin.HoldPath, changes)
}

// pruneBase removes the drop-in of the base unit, if it is this daemon's.
func (s *Store) pruneBase(changes *Changes) error {
	if !s.regular(dropin.BaseDropIn) || !dropin.Ours(s.Read(dropin.BaseDropIn)) {
		return nil
	}
	if err := s.remove(dropin.BaseDropIn, changes); err != nil {
		return err
	}
	// Drop-ins of others in it keep the directory.
	if os.Remove(s.at(path.Dir(dropin.BaseDropIn))) == nil {
		s.step()
	}
	return nil
}

// sweepBase removes what a run that was killed while writing the drop-in of the base unit left.
func (s *Store) sweepBase() {
	dir := path.Dir(dropin.BaseDropIn)
	if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
		return
	}
	for _, name := range s.list(dir, "."+dropin.FileName+"*") {
		_ = os.Remove(s.at(path.Join(dir, name)))
	}
	// One that has something in it stays.
	_ = unix.Rmdir(s.at(dir))
}

// Unwanted lists the files of a generated unit that are not wanted, in the order in which
// they are to go: the unit itself first, its own drop-in last, since that is what tells
// that the others are ours.
func (s *Store) Unwanted(unit Unit, wanted map[string]bool) ([]string, error) {
	var unwanted []string
	own := unit.dropIn()
	if !wanted[unit.Path()] {
		if target, err := os.Readlink(s.at(unit.Path())); err == nil && unit.leadsTo(target) {
			unwanted = append(unwanted, unit.Path())
		}
	}
	names, err := s.files.List(s.at(unit.dir()), "*")
	if err != nil && !errors.Is(err, file.ErrTooMany) {
		return nil, fmt.Errorf("listing %s: %w", unit.dir(), err)
	}
	for _, name := range names {
		p := path.Join(unit.dir(), name)
		if p == own || wanted[p] {
			continue
		}
		if unit.mirrored(p, s.Target(p)) || ((name == dropin.MatchName || name == dropin.StartName) && s.regular(p)) {
			unwanted = append(unwanted, p)
		}
	}
	if info, err := os.Lstat(s.at(own)); !wanted[own] && (err != nil || info.Mode().IsRegular()) {
		unwanted = append(unwanted, own)
	}
	return unwanted, nil
}

// prune removes what is not wanted of a unit. starts is [Want].Starts.
func (s *Store) prune(unit Unit, wanted map[string]bool, starts []string, changes *Changes) error {
	unwanted, err := s.Unwanted(unit, wanted)
	if err != nil {
		return err
	}
	for _, p := range unwanted {
		if path.Base(p) == dropin.StartName && !slices.Contains(starts, p) && wanted[unit.dropIn()] {
			continue
		}
		if err := s.remove(p, changes); err != nil {
			return err
		}
	}
	if !slices.Contains(unwanted, unit.dropIn()) {
		return nil
	}
	// Somebody else's drop-ins in it keep the directory.
	if os.Remove(s.at(unit.dir())) == nil {
		s.step()
	}
	return nil
}

// linkSuffix ends the hidden name under which a symbolic link is made that is to
// replace another one.
const linkSuffix = ".ec2netd"

// sweep removes what a run that was killed while writing left: hidden files that were
// not renamed yet, which networkd and udevd never look at, and directories without
// anything in them.
func (s *Store) sweep() {
	for _, pattern := range []string{".70-*" + linkSuffix, "." + dropin.HoldName + "*"} {
		for _, name := range s.list(dropin.Directory, pattern) {
			_ = os.Remove(s.at(path.Join(dropin.Directory, name)))
		}
	}
	s.sweepBase()
	s.sweepCompletions()
	for _, kind := range []string{Network, Link} {
		for _, dir := range s.list(dropin.Directory, "70-*."+kind+".d") {
			dir = path.Join(dropin.Directory, dir)
			if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
				continue
			}
			for _, pattern := range []string{"." + dropin.FileName + "*", "." + dropin.MatchName + "*", "." + dropin.StartName + "*", ".*" + linkSuffix} {
				for _, name := range s.list(dir, pattern) {
					_ = os.Remove(s.at(path.Join(dir, name)))
				}
			}
			// One that has something in it stays.
			_ = unix.Rmdir(s.at(dir))
		}
	}
}

// leadsTo tells whether the unit of this daemon may be a link to target: the base
// unit, or the .link file that was in force. Any other link is somebody else's.
func (u Unit) leadsTo(target string) bool {
	if u.Kind == Network {
		return path.Base(target) == dropin.BaseName
	}
	return target == dropin.NoPolicy || (path.Ext(target) == ".link" && slices.Contains(unitfile.Dirs(), path.Dir(target)))
}

// mirrored reports whether a link among the drop-ins of a unit is this daemon's: to a drop-in of the
// base unit, or to that itself, see [dropin.BaseLinkName].
func (u Unit) mirrored(p, target string) bool {
	return mirrored(target) || (path.Base(p) == dropin.BaseLinkName && u.Kind == Network && u.leadsTo(target))
}

// mirrored tells whether a link in a drop-in directory leads to a drop-in of the base
// unit, or of a .link file, as this daemon makes them.
func mirrored(target string) bool {
	dir := path.Dir(target)
	return (path.Base(dir) == dropin.BaseName+".d" || strings.HasSuffix(dir, ".link.d")) && slices.Contains(unitfile.Dirs(), path.Dir(dir))
}

func (s *Store) remove(p string, changes *Changes) error {
	if err := s.outdated(p); err != nil {
		return file.Failed("removing", atStart(p), err)
	}
	if err := os.Remove(s.at(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return file.Failed("removing", p, err)
	}
	changes.Removed = append(changes.Removed, p)
	delete(s.had, p)
	s.step()
	return nil
}

// write brings a file to the disk, unless something of somebody else's is in its place.
func (s *Store) write(want File, units []Unit, changes *Changes) error {
	err := s.writeFile(want, units, changes)
	switch {
	case !changes.Refused[want.Path].None():
		delete(s.had, want.Path)
	case err == nil:
		s.has(want)
	}
	return err
}

func (s *Store) writeFile(want File, units []Unit, changes *Changes) error {
	if want.Target != "" {
		return s.link(want, units, changes)
	}
	var there unix.Stat_t
	switch err := unix.Lstat(s.at(want.Path), &there); {
	case err != nil:
		if err := s.makeDir(want); err != nil {
			return err
		}
	case there.Mode&unix.S_IFMT != unix.S_IFREG:
		// A rename would replace it, a mask by an administrator too.
		changes.Refused[want.Path] = status.Reason{Code: status.PlaceTaken}
		return nil
	default:
		present, err := s.files.Read(s.at(want.Path))
		if err == nil && present == want.Content {
			return nil
		}
		if !strings.HasPrefix(path.Base(path.Dir(want.Path)), "70-") && !dropin.Ours(present) {
			changes.Refused[want.Path] = status.Reason{Code: status.PlaceHasFile}
			return nil
		}
	}
	if err := s.outdated(want.Path); err != nil {
		return file.Failed("removing", atStart(want.Path), err)
	}
	if err := s.replace(want); err != nil {
		return file.Failed("writing", want.Path, err)
	}
	changes.wrote(want.Path)
	s.step()
	return nil
}

// makeDir makes the directory of a file, if it is not there.
func (s *Store) makeDir(want File) error {
	dir := s.at(path.Dir(want.Path))
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		// In the daemon's sandbox a directory above it that somebody has removed cannot be made.
		if _, gone := os.Stat(s.at(dropin.Directory)); errors.Is(gone, fs.ErrNotExist) {
			err = gone
		}
		return file.Failed("making the directory of", want.Path, err)
	}
	s.step()
	return nil
}

// Renew writes a regular file of the store anew, with the bytes that it has: networkd
// compares inode and time, not content (facts: reload), and the next reload has it
// configure the link anew, DHCP included.
func (s *Store) Renew(p string) error {
	content, err := s.files.Read(s.at(p))
	if err != nil {
		return fmt.Errorf("reading %s: %w", p, err)
	}
	if err := s.replace(File{Path: p, Content: content}); err != nil {
		return file.Failed("writing", p, err)
	}
	return nil
}

// replace writes a file under a hidden name and renames it.
func (s *Store) replace(want File) error {
	pending, err := renameio.NewPendingFile(s.at(want.Path), renameio.WithTempDir(s.at(path.Dir(want.Path))),
		renameio.WithPermissions(0o644), renameio.IgnoreUmask())
	if err != nil {
		return err
	}
	defer func() { _ = pending.Cleanup() }() // does nothing to a file that was renamed
	s.step()
	if _, err := pending.WriteString(want.Content); err != nil {
		return err
	}
	s.step()
	return pending.CloseAtomicallyReplace()
}

func (s *Store) link(want File, units []Unit, changes *Changes) error {
	target, err := os.Readlink(s.at(want.Path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
		if err := s.makeDir(want); err != nil {
			return err
		}
	case errors.Is(err, unix.EINVAL):
		changes.Refused[want.Path] = status.Reason{Code: status.PlaceHasFile}
		return nil
	case err != nil:
		return file.Failed("looking at", want.Path, err)
	case target == want.Target:
		return nil
	default:
		if target == os.DevNull {
			changes.Refused[want.Path] = status.Reason{Code: status.PlaceMasked}
			return nil
		}
		if !known(want.Path, target, units) && !s.completes(want.Path, target) {
			changes.Refused[want.Path] = status.Reason{Code: status.PlaceHasLink, File: target}
			return nil
		}
	}
	if err := s.symlink(want); err != nil {
		return file.Failed("linking", want.Path, err)
	}
	changes.wrote(want.Path)
	s.step()
	return nil
}

// known tells whether a link was made by this daemon before this Apply.
func known(p, target string, units []Unit) bool {
	return slices.ContainsFunc(units, func(u Unit) bool {
		return (p == u.Path() && u.leadsTo(target)) || (path.Dir(p) == u.dir() && u.mirrored(p, target))
	})
}

// regular reports whether something is a regular file and no link.
func (s *Store) regular(p string) bool {
	info, err := os.Lstat(s.at(p))
	return err == nil && info.Mode().IsRegular()
}
