package store

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ec2netd/service/file"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// Shipped is the base unit as it is installed.
func Shipped() string { return path.Join(unitDirs[len(unitDirs)-1], BaseName) }

// Extent tells which files of somebody else's stand in the place of the generated ones
// of a link.
func (s *Store) Extent(name string) unitfile.Extent {
	network, link := Unit{Name: name, Kind: Network}, Unit{Name: name, Kind: Link}
	return unitfile.Extent{Taken: s.taken(network), NetworkHidden: s.hides(network), LinkHidden: s.hides(link)}
}

// taken is the file that networkd reads in place of a generated unit, or that is where
// it, or its drop-in, would have to be written.
func (s *Store) taken(u Unit) string {
	above := path.Join(unitDirs[0], path.Base(u.unit()))
	if s.exists(above) {
		return above
	}
	// It is no link where that is the error.
	if target, err := os.Readlink(s.at(u.unit())); (errors.Is(err, unix.EINVAL) && !s.fromKernelLine(u)) || (err == nil && !u.leadsTo(target)) {
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

// masked: an empty file, or /dev/null; for systemd any device is.
func (s *Store) masked(p string) bool {
	info, err := s.stat(p)
	return err == nil && (info.Mode()&fs.ModeDevice != 0 || (info.Mode().IsRegular() && info.Size() == 0))
}

// regular reports whether something is a regular file and no link.
func (s *Store) regular(p string) bool {
	info, err := os.Lstat(s.at(p))
	return err == nil && info.Mode().IsRegular()
}

// readable reports whether something is a regular file, or a link to one or to nothing. What
// else there is Unread tells of.
func (s *Store) readable(p string) bool {
	info, err := s.stat(p)
	if errors.Is(err, fs.ErrNotExist) || (err == nil && info.Mode().IsRegular()) {
		return true
	}
	_, _ = s.files.Read(s.resolve(p))
	return false
}

// Look reads what networkd and udevd read under the name of a unit file.
func (s *Store) Look(name string) unitfile.Unit {
	return s.look(name, "", func(string, string) bool { return true })
}

// look is Look; what has no entry in a directory is not looked for there. Absent is read where there
// is no file of that name, if it is not empty.
func (s *Store) look(name, absent string, entry func(dir, name string) bool) unitfile.Unit {
	var unit unitfile.Unit
	byName := make(map[string]string)
	for _, dir := range slices.Backward(unitDirs) {
		if p := path.Join(dir, name); entry(dir, name) && s.exists(p) {
			unit.Path, unit.Masked = p, s.masked(p)
		}
		if !entry(dir, name+".d") {
			continue
		}
		for _, dropIn := range s.list(path.Join(dir, name+".d"), "*.conf") {
			if p := path.Join(dir, name+".d", dropIn); s.exists(p) {
				byName[dropIn] = p
			}
		}
	}
	if unit.Path == "" {
		unit.Path = absent
	}
	if unit.Path == "" || unit.Masked {
		return unit
	}
	left := mostText
	read := func(p string) {
		text := s.text(p)
		if left -= len(text.Content); left < 0 {
			text.Content = ""
		}
		unit.Texts = append(unit.Texts, text)
	}
	read(unit.Path)
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
		read(byName[name])
	}
	return unit
}

// mostText is how much of a unit file and its drop-ins is read together.
const mostText = 2 * file.Limit

func (s *Store) text(p string) unitfile.Text {
	source := p
	if target := s.Target(p); target != "" {
		source = target
		if !path.IsAbs(target) {
			source = path.Join(path.Dir(p), target)
		}
	}
	content, err := s.files.Read(s.resolve(p))
	if err != nil {
		content = "" // networkd does not read it either
	}
	return unitfile.Text{Path: p, Source: source, Content: content}
}

// Networks are the .network files of one moment: each is read once at most, however many links are
// compared with it.
type Networks struct {
	// Names are those of all files, in the order in which networkd looks at them.
	Names []string
	store *Store
	units map[string]unitfile.Unit
	// entries are what is in the directories of networkd, by path; nil for too many to know.
	entries map[string]bool
}

// Networks lists the .network files.
func (s *Store) Networks() *Networks {
	n := &Networks{Names: s.names("*.network"), store: s, units: make(map[string]unitfile.Unit), entries: make(map[string]bool)}
	for _, dir := range unitDirs {
		names, err := file.List(s.at(dir), "*")
		if err != nil {
			n.entries = nil
			break
		}
		for _, name := range names {
			n.entries[dir+"/"+name] = true
		}
	}
	return n
}

// Look is [Store.Look]. The texts are not to be changed.
func (n *Networks) Look(name string) unitfile.Unit {
	unit, known := n.units[name]
	if !known {
		unit = n.store.look(name, "", n.has)
		n.units[name] = unit
	}
	return unit
}

func (n *Networks) has(dir, entry string) bool { return n.entries == nil || n.entries[dir+"/"+entry] }

// Unmanaged returns the .network file that networkd takes for a link if that has networkd leave the
// link alone, and the text of it that says so; culprit is empty otherwise. A file counts of which only
// networkd knows whether it matches. The unit in which a new ENI waits for its own does not, and what
// completes that does before it is there.
func (n *Networks) Unmanaged(link *plan.Link) (unit unitfile.Unit, culprit string) {
	own := path.Base(plan.NetworkPath(link.Name))
	names := n.Names
	if i, there := slices.BinarySearch(names, own); !there {
		names = slices.Insert(slices.Clone(names), i, own)
	}
	for _, name := range names {
		unit := n.Look(name)
		awaited := unit.Path == "" && name == own
		if awaited {
			unit = n.store.look(name, Shipped(), n.has)
		}
		if unit.Path == "" || unit.Masked || unit.Path == plan.HoldPath {
			continue
		}
		match, _ := unit.Match(link.Matchable())
		if match == unitfile.NoMatch {
			continue
		}
		if culprit := unit.Unmanaged(); culprit != "" {
			return unit, culprit
		}
		if match == unitfile.Matches && !awaited {
			break
		}
	}
	return unitfile.Unit{}, ""
}

// Rules are the policy rules by source that stand in any .network file or drop-in,
// whosoever's, in force or not.
func (s *Store) Rules() ([]plan.Rule, error) {
	var rules []plan.Rule
	err := s.each(func(content string) { rules = append(rules, plan.RulesIn(content)...) })
	return rules, err
}

// Addresses are those that stand in any .network file or drop-in, as Rules.
func (s *Store) Addresses() (map[plan.OwnAddress]bool, error) {
	all := make(map[plan.OwnAddress]bool)
	err := s.each(func(content string) {
		for _, own := range plan.AddressesIn(content) {
			all[own] = true
		}
	})
	return all, err
}

// each reads all .network files and drop-ins.
func (s *Store) each(take func(content string)) error {
	for _, dir := range unitDirs {
		names, err := s.files.List(s.at(dir), "*.network")
		if err == nil {
			var dropIns []string
			dropIns, err = s.dropIns(dir)
			names = append(names, dropIns...)
		}
		if err != nil && !errors.Is(err, unix.ENOTDIR) {
			return fmt.Errorf("looking at %s: %w", dir, err)
		}
		for _, name := range names {
			content, err := file.Read(s.at(path.Join(dir, name)), file.Limit)
			if err != nil && !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, file.ErrNotRegular) {
				// Whether it wants something is not known.
				return fmt.Errorf("looking for rules and addresses: %w", err)
			}
			take(content)
		}
	}
	return nil
}

// dropIns lists the drop-ins of all .network files in a directory, without it.
func (s *Store) dropIns(dir string) ([]string, error) {
	var all []string
	units, err := s.files.List(s.at(dir), "*.network.d")
	if err != nil {
		return nil, err
	}
	for _, unit := range units {
		names, err := s.files.List(s.at(path.Join(dir, unit)), "*.conf")
		if err != nil && !errors.Is(err, unix.ENOTDIR) {
			return nil, err
		}
		for _, name := range names {
			all = append(all, path.Join(unit, name))
		}
	}
	return all, nil
}

// Stamp changes when one of some files does, in what networkd compares.
func (s *Store) Stamp(files ...string) string {
	var stamp strings.Builder
	for _, p := range files {
		if info, err := s.stat(p); err == nil {
			fmt.Fprintf(&stamp, "%s %d %d\n", p, info.ModTime().UnixNano(), info.Size())
		}
	}
	return stamp.String()
}
