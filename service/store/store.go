// Package store keeps the generated files on disk as the plan has them.
//
// It writes only what differs, always by rename, and removes only what is its own.
// What is its own follows from the disk alone, so that nothing is forgotten when
// the daemon is killed: a directory 70-NAME.network.d or 70-NAME.link.d of
// /run/systemd/network with a 50-ec2netd.conf in it. The drop-in is written before
// the unit that makes it effective, and removed after it.
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

	"ec2netd/service/plan"
)

// Store is the directory of generated files.
type Store struct {
	// Root is put before every path; empty for the system.
	Root string
}

// Changes are what Apply did, absolute paths without Root.
type Changes struct {
	Written []string
	Removed []string
	// Refused are files that are not written because something of somebody else's
	// is in the place, by path, and what it is.
	Refused map[string]string
}

// Any tells whether anything changed.
func (c *Changes) Any() bool { return len(c.Written)+len(c.Removed) > 0 }

func (s *Store) at(p string) string { return filepath.Join("/", s.Root, p) }

// Read returns the content of a file of the store, empty if there is none.
func (s *Store) Read(p string) string {
	text, err := os.ReadFile(s.at(p))
	if err != nil {
		return ""
	}
	return string(text)
}

// Target returns where a symbolic link of the store leads, empty if it is none.
func (s *Store) Target(p string) string {
	target, err := os.Readlink(s.at(p))
	if err != nil {
		return ""
	}
	return target
}

// BaseName is the file name of the unit that generated units build upon.
const BaseName = "80-ec2.network"

// unitDirs are the directories of networkd, the first wins (systemd.network(5)).
// /usr/local/lib is looked at from 256 on.
var unitDirs = []string{"/etc/systemd/network", "/run/systemd/network", "/usr/local/lib/systemd/network", "/usr/lib/systemd/network"}

// Base returns the base unit in force and its drop-ins in force, sorted by name.
// The shipped path is returned also where the file does not exist.
func (s *Store) Base() (unit string, dropIns []string) {
	unit = path.Join(unitDirs[len(unitDirs)-1], BaseName)
	byName := make(map[string]string)
	for _, dir := range slices.Backward(unitDirs) {
		if _, err := os.Stat(s.at(path.Join(dir, BaseName))); err == nil {
			unit = path.Join(dir, BaseName)
		}
		entries, _ := os.ReadDir(s.at(path.Join(dir, BaseName+".d")))
		for _, entry := range entries {
			if path.Ext(entry.Name()) == ".conf" && entry.Name() != plan.DropInName {
				byName[entry.Name()] = path.Join(dir, BaseName+".d", entry.Name())
			}
		}
	}
	for _, p := range byName {
		dropIns = append(dropIns, p)
	}
	slices.SortFunc(dropIns, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	return unit, dropIns
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

func (u Unit) unit() string { return path.Join(plan.Directory, "70-"+u.Name+"."+u.Kind) }
func (u Unit) dir() string  { return u.unit() + ".d" }

// Units lists the generated units.
func (s *Store) Units() ([]Unit, error) {
	entries, err := os.ReadDir(s.at(plan.Directory))
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, fmt.Errorf("listing %s: %w", plan.Directory, err)
	}
	var units []Unit
	for _, entry := range entries {
		rest, ok := strings.CutPrefix(entry.Name(), "70-")
		if !ok || !entry.IsDir() {
			continue
		}
		for _, kind := range []string{Network, Link} {
			name, ok := strings.CutSuffix(rest, "."+kind+".d")
			if !ok || name == "" {
				continue
			}
			unit := Unit{Name: name, Kind: kind}
			if info, err := os.Lstat(s.at(path.Join(unit.dir(), plan.DropInName))); err == nil && info.Mode().IsRegular() {
				units = append(units, unit)
			}
		}
	}
	return units, nil
}

// Apply makes the disk have files, in their order, and nothing else of its own but
// the units in keep. On an error what was done so far stays, and is
// told.
func (s *Store) Apply(files []plan.File, keep []Unit) (Changes, error) {
	changes := Changes{Refused: make(map[string]string)}
	units, err := s.Units()
	if err != nil {
		return changes, err
	}
	wanted := make(map[string]bool, len(files))
	for _, file := range files {
		wanted[file.Path] = true
	}
	// Remove first: a link that was renamed must not be matched by two units.
	for _, unit := range units {
		if slices.Contains(keep, unit) {
			continue
		}
		if err := s.prune(unit, wanted, &changes); err != nil {
			return changes, err
		}
	}
	for _, file := range files {
		if err := s.write(file, units, &changes); err != nil {
			return changes, err
		}
	}
	return changes, nil
}

// prune removes what is not wanted of a unit: the unit itself first, its own
// drop-in last, since that is what tells that the others are ours.
func (s *Store) prune(unit Unit, wanted map[string]bool, changes *Changes) error {
	own := path.Join(unit.dir(), plan.DropInName)
	if !wanted[unit.unit()] {
		if target, err := os.Readlink(s.at(unit.unit())); err == nil && unit.leadsTo(target) {
			if err := s.remove(unit.unit(), changes); err != nil {
				return err
			}
		}
	}
	entries, err := os.ReadDir(s.at(unit.dir()))
	if err != nil {
		return fmt.Errorf("listing %s: %w", unit.dir(), err)
	}
	for _, entry := range entries {
		p := path.Join(unit.dir(), entry.Name())
		if p == own || wanted[p] || entry.Type()&fs.ModeSymlink == 0 {
			continue
		}
		if target, err := os.Readlink(s.at(p)); err == nil && mirrored(target) {
			if err := s.remove(p, changes); err != nil {
				return err
			}
		}
	}
	if wanted[own] {
		return nil
	}
	if err := s.remove(own, changes); err != nil {
		return err
	}
	// What a run that was killed while writing left.
	half, _ := filepath.Glob(s.at(path.Join(unit.dir(), "."+plan.DropInName+"*")))
	for _, file := range half {
		_ = os.Remove(file)
	}
	// Somebody else's drop-ins in it keep the directory.
	_ = os.Remove(s.at(unit.dir()))
	return nil
}

// leadsTo tells whether the unit of this daemon may be a link to target: the base
// unit, or the .link file that was in force. Any other link is somebody else's.
func (u Unit) leadsTo(target string) bool {
	if u.Kind == Network {
		return path.Base(target) == BaseName
	}
	return target == plan.NoPolicy || (path.Ext(target) == ".link" && slices.Contains(unitDirs, path.Dir(target)))
}

// mirrored tells whether a link in a drop-in directory leads to a drop-in of the base
// unit, as this daemon makes them.
func mirrored(target string) bool {
	dir := path.Dir(target)
	return path.Base(dir) == BaseName+".d" && slices.Contains(unitDirs, path.Dir(dir))
}

func (s *Store) remove(p string, changes *Changes) error {
	if err := os.Remove(s.at(p)); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing %s: %w", p, err)
	}
	changes.Removed = append(changes.Removed, p)
	return nil
}

func (s *Store) write(file plan.File, units []Unit, changes *Changes) error {
	if err := os.MkdirAll(s.at(path.Dir(file.Path)), 0o755); err != nil {
		return fmt.Errorf("making the directory of %s: %w", file.Path, err)
	}
	if file.Target != "" {
		return s.link(file, units, changes)
	}
	if info, err := os.Lstat(s.at(file.Path)); err == nil && !info.Mode().IsRegular() {
		// A rename would replace it, a mask by an administrator too.
		changes.Refused[file.Path] = "something of somebody else's, a mask maybe, is in its place"
		return nil
	}
	present, err := os.ReadFile(s.at(file.Path))
	if err == nil && string(present) == file.Content {
		return nil
	}
	if err := renameio.WriteFile(s.at(file.Path), []byte(file.Content), 0o644, renameio.IgnoreUmask(), renameio.WithTempDir(s.at(path.Dir(file.Path)))); err != nil {
		return fmt.Errorf("writing %s: %w", file.Path, err)
	}
	changes.Written = append(changes.Written, file.Path)
	return nil
}

func (s *Store) link(file plan.File, units []Unit, changes *Changes) error {
	info, err := os.Lstat(s.at(file.Path))
	switch {
	case errors.Is(err, fs.ErrNotExist):
	case err != nil:
		return fmt.Errorf("looking at %s: %w", file.Path, err)
	case info.Mode()&fs.ModeSymlink == 0:
		changes.Refused[file.Path] = "a file of somebody else's is in its place"
		return nil
	default:
		target, err := os.Readlink(s.at(file.Path))
		if err != nil {
			return fmt.Errorf("looking at %s: %w", file.Path, err)
		}
		if target == file.Target {
			return nil
		}
		if target == os.DevNull {
			changes.Refused[file.Path] = "it is masked"
			return nil
		}
		if !known(file.Path, target, units) {
			changes.Refused[file.Path] = "a link of somebody else's to " + target + " is in its place"
			return nil
		}
	}
	if err := renameio.Symlink(file.Target, s.at(file.Path)); err != nil {
		return fmt.Errorf("linking %s to %s: %w", file.Path, file.Target, err)
	}
	changes.Written = append(changes.Written, file.Path)
	return nil
}

// known tells whether a link was made by this daemon before this Apply.
func known(p, target string, units []Unit) bool {
	return slices.ContainsFunc(units, func(u Unit) bool {
		return (p == u.unit() && u.leadsTo(target)) || (path.Dir(p) == u.dir() && mirrored(target))
	})
}
