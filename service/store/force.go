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

	"golang.org/x/sys/unix"

	"ec2netd/service/plan"
)

// Shipped is the base unit as it is installed.
func Shipped() string { return path.Join(unitDirs[len(unitDirs)-1], BaseName) }

// Extent tells which files of somebody else's stand in the place of the generated ones
// of a link.
func (s *Store) Extent(name string) plan.Extent {
	network, link := Unit{Name: name, Kind: Network}, Unit{Name: name, Kind: Link}
	return plan.Extent{Taken: s.taken(network), NetworkHidden: s.hides(network), LinkHidden: s.hides(link)}
}

// taken is the file that networkd reads in place of a generated unit, or that is where
// it, or its drop-in, would have to be written.
func (s *Store) taken(u Unit) string {
	above := path.Join(unitDirs[0], path.Base(u.unit()))
	if s.exists(above) {
		return above
	}
	// It is no link where that is the error.
	if target, err := os.Readlink(s.at(u.unit())); errors.Is(err, unix.EINVAL) || (err == nil && !u.leadsTo(target)) {
		return u.unit()
	}
	var there unix.Stat_t
	if err := unix.Lstat(s.at(u.dropIn()), &there); err == nil && there.Mode&unix.S_IFMT != unix.S_IFREG {
		return u.dropIn()
	}
	return ""
}

// hides is the file that is read in place of the generated drop-in of a unit.
func (s *Store) hides(u Unit) string {
	above := path.Join(unitDirs[0], path.Base(u.dir()), plan.DropInName)
	if s.exists(above) {
		return above
	}
	return ""
}

// exists follows links, as networkd does: one that leads nowhere is no file.
func (s *Store) exists(p string) bool {
	var there unix.Stat_t
	if err := unix.Lstat(s.at(p), &there); err != nil || there.Mode&unix.S_IFMT != unix.S_IFLNK {
		return err == nil
	}
	_, err := s.stat(p)
	return err == nil
}

// stat follows links within Root.
func (s *Store) stat(p string) (fs.FileInfo, error) { return os.Stat(s.resolve(p)) }

// resolve is the path, with Root, of the file that links lead to. Nothing but /dev/null
// is looked at outside of Root.
func (s *Store) resolve(p string) string {
	const most = 8 // more than anybody makes; a loop is no file
	for range most {
		target := s.Target(p)
		switch {
		case target == "":
			return s.at(p)
		case target == os.DevNull:
			return os.DevNull
		case path.IsAbs(target):
			p = target
		default:
			p = path.Join(path.Dir(p), target)
		}
	}
	return s.at(p)
}

// masked: an empty file, or /dev/null.
func (s *Store) masked(p string) bool {
	info, err := s.stat(p)
	return err == nil && (info.Mode()&fs.ModeCharDevice != 0 || (info.Mode().IsRegular() && info.Size() == 0))
}

// Look reads what networkd and udevd read under the name of a unit file.
func (s *Store) Look(file string) plan.UnitText {
	var unit plan.UnitText
	byName := make(map[string]string)
	for _, dir := range slices.Backward(unitDirs) {
		if p := path.Join(dir, file); s.exists(p) {
			unit.Path, unit.Masked = p, s.masked(p)
		}
		entries, _ := os.ReadDir(s.at(path.Join(dir, file+".d")))
		for _, entry := range entries {
			if p := path.Join(dir, file+".d", entry.Name()); path.Ext(p) == ".conf" && s.exists(p) {
				byName[entry.Name()] = p
			}
		}
	}
	if unit.Path == "" || unit.Masked {
		return unit
	}
	unit.Texts = append(unit.Texts, s.text(unit.Path))
	names := make([]string, 0, len(byName))
	for name := range byName {
		names = append(names, name)
	}
	slices.Sort(names)
	for _, name := range names {
		if s.masked(byName[name]) {
			unit.MaskedDropIns = append(unit.MaskedDropIns, byName[name])
			continue
		}
		unit.Texts = append(unit.Texts, s.text(byName[name]))
	}
	return unit
}

func (s *Store) text(p string) plan.Text {
	source := p
	if target := s.Target(p); target != "" {
		source = target
		if !path.IsAbs(target) {
			source = path.Join(path.Dir(p), target)
		}
	}
	content, err := os.ReadFile(s.resolve(p))
	if err != nil {
		content = nil // networkd cannot read it either
	}
	return plan.Text{Path: p, Source: source, Content: string(content)}
}

// Names lists the names of all .network files, in the order in which networkd looks at
// them.
func (s *Store) Names() []string {
	var names []string
	for _, dir := range unitDirs {
		entries, _ := os.ReadDir(s.at(dir))
		for _, entry := range entries {
			if name := entry.Name(); path.Ext(name) == ".network" && !strings.HasPrefix(name, ".") && !slices.Contains(names, name) {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return names
}

// Rules are the policy rules by source that stand in any .network file or drop-in,
// whosoever's, in force or not.
func (s *Store) Rules() ([]plan.Rule, error) {
	var rules []plan.Rule
	for _, dir := range unitDirs {
		for _, pattern := range []string{"*.network", "*.network.d/*.conf"} {
			files, err := filepath.Glob(s.at(path.Join(dir, pattern)))
			if err != nil {
				return nil, fmt.Errorf("looking for rules in %s: %w", dir, err)
			}
			for _, file := range files {
				content, err := os.ReadFile(file)
				if err != nil && !errors.Is(err, fs.ErrNotExist) {
					// Whether it wants a rule is not known.
					return nil, fmt.Errorf("looking for rules: %w", err)
				}
				rules = append(rules, plan.RulesIn(string(content))...)
			}
		}
	}
	return rules, nil
}

// Stamp changes when one of some files does, in what networkd compares.
func (s *Store) Stamp(files ...string) string {
	var stamp strings.Builder
	for _, file := range files {
		if info, err := s.stat(file); err == nil {
			fmt.Fprintf(&stamp, "%s %d %d\n", file, info.ModTime().UnixNano(), info.Size())
		}
	}
	return stamp.String()
}
