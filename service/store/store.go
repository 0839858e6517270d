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
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"github.com/google/renameio/v2"
	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
	"ec2netd/service/plan"
	"ec2netd/service/status"
)

// Store is the directory of generated files.
type Store struct {
	// Root is put before every path; empty for the system.
	Root string
	// Step, if set, is called after each single change of the disk. Tests take a copy
	// of the disk there: it is what a kill at that moment leaves.
	Step func()

	swept bool
	// starts are the [plan.StartDropIn] that were there when Complete was last called.
	starts map[string]bool
	// had are the generated files that are in place, by path, see Restore.
	had map[string]plan.File

	files file.Reader
	// parsed are the drop-ins of links by name, see Network.
	parsed map[string]parsed
}

// parsed is a drop-in and the text of it.
type parsed struct {
	text   string
	dropIn *dropin.Network
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

// Network returns the generated .network drop-in of a link, nil if there is none. It is the same
// one as long as the file has not changed.
func (s *Store) Network(link string) *dropin.Network {
	text, last := s.Read(plan.NetworkDropIn(link)), s.parsed[link]
	if text != last.text {
		last = parsed{text, dropin.ParseNetwork(text)}
		if s.parsed == nil {
			s.parsed = make(map[string]parsed)
		}
		s.parsed[link] = last
	}
	return last.dropIn
}

// LinkDropIn returns the generated .link drop-in of a link, nil if there is none.
func (s *Store) LinkDropIn(link string) *dropin.Link {
	return dropin.ParseLink(s.Read(plan.LinkDropIn(link)))
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
		if of, err := os.Stat(s.at(path.Join(dir, BaseName))); err == nil && (of.Mode().IsRegular() || of.Mode()&fs.ModeDevice != 0) {
			unit = path.Join(dir, BaseName)
		}
		for _, name := range s.list(path.Join(dir, BaseName+".d"), "*.conf") {
			if name != plan.DropInName {
				byName[name] = path.Join(dir, BaseName+".d", name)
			}
		}
	}
	for _, p := range byName {
		// A mask only takes away one of lower directories, which is not here any more. Of what
		// is no file there is no copy among the drop-ins of ENIs: networkd drops a unit that has
		// a link to itself there, and waits for a FIFO (facts: file-in-force).
		if !s.masked(p) && s.readable(p) {
			dropIns = append(dropIns, p)
		}
	}
	slices.SortFunc(dropIns, func(a, b string) int { return strings.Compare(path.Base(a), path.Base(b)) })
	if len(dropIns) > file.MostNames {
		dropIns = dropIns[:file.MostNames]
	}
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

// Kept are the units of an ENI of which all stays that is there.
func Kept(eni *plan.ENI) []Unit {
	var kept []Unit
	if eni.Keep {
		kept = append(kept, Unit{Name: eni.Link.Name, Kind: Network})
	}
	if eni.Keep || eni.KeepLink {
		kept = append(kept, Unit{Name: eni.Link.Name, Kind: Link})
	}
	return kept
}

func (u Unit) unit() string   { return plan.Directory + "/70-" + u.Name + "." + u.Kind }
func (u Unit) dir() string    { return u.unit() + ".d" }
func (u Unit) dropIn() string { return u.unit() + ".d/" + plan.DropInName }

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
	names, err := s.files.List(s.at(plan.Directory), "70-*.d")
	if err != nil && !errors.Is(err, file.ErrTooMany) {
		return nil, fmt.Errorf("listing %s: %w", plan.Directory, err)
	}
	var units []Unit
	for _, found := range names {
		rest := strings.TrimPrefix(found, "70-")
		var dir unix.Stat_t
		if err := unix.Lstat(s.at(plan.Directory+"/"+found), &dir); err != nil || dir.Mode&unix.S_IFMT != unix.S_IFDIR {
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
			case err == nil && kind == Network && unit.leadsTo(s.Target(unit.unit())):
				// Something was put in the drop-in's place, and the unit, which is ours, is
				// left. Without the drop-in it matches every ENI.
				units = append(units, unit)
			}
		}
	}
	return units, nil
}

// Complete fills in what the disk has for a link: the drop-in, and files of somebody
// else's.
func (s *Store) Complete(link *plan.Link, networks *Networks) {
	link.Current, link.Extent = s.Network(link.Name), s.Extent(link.Name)
	link.StartFile = s.regular(plan.StartDropIn(link.Name))
	if s.starts == nil {
		s.starts = make(map[string]bool)
	}
	s.starts[plan.StartDropIn(link.Name)] = link.StartFile
	if link.Current.MACAddress() != link.MAC {
		// It is of another ENI that had the name.
		link.Current = nil
	}
	unit := networks.Look(path.Base(plan.NetworkPath(link.Name)))
	if unit.Path == "" {
		unit = networks.Look(BaseName)
	}
	link.FirstBoot = nil
	if link.Generator, link.Shared = s.generator(link, networks); link.Generator != "" {
		link.DropIns = s.ownDropIns(link.Name)
		// What is read under its name, and as long as nothing of this daemon's is, what will be.
		of := networks.Look(path.Base(link.Generator))
		link.FirstBoot = s.firstBoot(of)
		unit.Texts = slices.Concat(of.Texts, unit.Texts)
	}
	link.MTUSetting, link.PortSetting = unit.MTU(), unit.Port()
}

// Assigned are the numbers that stand in generated drop-ins, by MAC address. Those of
// presumed are left out: it was taken for the primary ENI.
func (s *Store) Assigned(presumed string) map[string]plan.Numbers {
	held := make(map[string]plan.Numbers)
	units, err := s.Units()
	if err != nil {
		return held
	}
	for _, unit := range units {
		if unit.Kind != Network {
			continue
		}
		dropIn := s.Network(unit.Name)
		mac := dropIn.MACAddress()
		if numbers, ok := plan.NumbersIn(dropIn); ok && mac != "" && mac != presumed {
			held[mac] = numbers
		}
	}
	maps.DeleteFunc(s.parsed, func(link string, _ parsed) bool {
		return !slices.Contains(units, Unit{link, Network}) && !s.there(plan.NetworkDropIn(link))
	})
	return held
}

// Apply makes the disk have files, in their order, and nothing else of its own but
// the units in keep. On an error what was done so far stays, and is
// told.
func (s *Store) Apply(files []plan.File, keep []Unit) (Changes, error) {
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
	if !wanted[plan.HoldPath] {
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
		if err := s.prune(unit, stays, &changes); err != nil {
			return changes, err
		}
	}
	if err := s.pruneGenerators(links, content, keep, &changes); err != nil {
		return changes, err
	}
	if !wanted[plan.BaseDropIn] {
		if err := s.pruneBase(&changes); err != nil {
			return changes, err
		}
	}
	for _, file := range files {
		dir := path.Dir(file.Path)
		if dir == plan.Directory {
			dir = file.Path + ".d"
		}
		own := path.Join(dir, plan.DropInName)
		if !changes.Refused[own].None() {
			// Without the drop-in the unit would match other links.
			continue
		}
		if err := s.write(file, units, &changes); err != nil {
			return changes, err
		}
		for _, unit := range units {
			if !changes.Refused[own].None() && unit.dir() == dir {
				if err := s.prune(unit, nil, &changes); err != nil {
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
	if !dropin.Ours(s.Read(plan.HoldPath)) {
		return nil
	}
	return s.remove(plan.HoldPath, changes)
}

// pruneBase removes the drop-in of the base unit, if it is this daemon's.
func (s *Store) pruneBase(changes *Changes) error {
	if !s.regular(plan.BaseDropIn) || !dropin.Ours(s.Read(plan.BaseDropIn)) {
		return nil
	}
	if err := s.remove(plan.BaseDropIn, changes); err != nil {
		return err
	}
	// Drop-ins of others in it keep the directory.
	if os.Remove(s.at(path.Dir(plan.BaseDropIn))) == nil {
		s.step()
	}
	return nil
}

// sweepBase removes what a run that was killed while writing the drop-in of the base unit left.
func (s *Store) sweepBase() {
	dir := path.Dir(plan.BaseDropIn)
	if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
		return
	}
	for _, name := range s.list(dir, "."+plan.DropInName+"*") {
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
	if !wanted[unit.unit()] {
		if target, err := os.Readlink(s.at(unit.unit())); err == nil && unit.leadsTo(target) {
			unwanted = append(unwanted, unit.unit())
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
		if unit.mirrored(p, s.Target(p)) || ((name == plan.MatchDropIn || name == plan.StartDropInName) && s.regular(p)) {
			unwanted = append(unwanted, p)
		}
	}
	if info, err := os.Lstat(s.at(own)); !wanted[own] && (err != nil || info.Mode().IsRegular()) {
		unwanted = append(unwanted, own)
	}
	return unwanted, nil
}

// prune removes what is not wanted of a unit.
func (s *Store) prune(unit Unit, wanted map[string]bool, changes *Changes) error {
	unwanted, err := s.Unwanted(unit, wanted)
	if err != nil {
		return err
	}
	for _, p := range unwanted {
		// Put in place since the plan was made, for a networkd that is about to read it.
		if path.Base(p) == plan.StartDropInName && !s.starts[p] && wanted[unit.dropIn()] {
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
	for _, pattern := range []string{".70-*" + linkSuffix, "." + plan.HoldName + "*"} {
		for _, name := range s.list(plan.Directory, pattern) {
			_ = os.Remove(s.at(path.Join(plan.Directory, name)))
		}
	}
	s.sweepBase()
	s.sweepCompletions()
	for _, kind := range []string{Network, Link} {
		for _, dir := range s.list(plan.Directory, "70-*."+kind+".d") {
			dir = path.Join(plan.Directory, dir)
			if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
				continue
			}
			for _, pattern := range []string{"." + plan.DropInName + "*", "." + plan.MatchDropIn + "*", "." + plan.StartDropInName + "*", ".*" + linkSuffix} {
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
		return path.Base(target) == BaseName
	}
	return target == plan.NoPolicy || (path.Ext(target) == ".link" && slices.Contains(unitDirs, path.Dir(target)))
}

// mirrored reports whether a link among the drop-ins of a unit is this daemon's: to a drop-in of the
// base unit, or to that itself, see [plan.BaseLinkName].
func (u Unit) mirrored(p, target string) bool {
	return mirrored(target) || (path.Base(p) == plan.BaseLinkName && u.Kind == Network && u.leadsTo(target))
}

// mirrored tells whether a link in a drop-in directory leads to a drop-in of the base
// unit, or of a .link file, as this daemon makes them.
func mirrored(target string) bool {
	dir := path.Dir(target)
	return (path.Base(dir) == BaseName+".d" || strings.HasSuffix(dir, ".link.d")) && slices.Contains(unitDirs, path.Dir(dir))
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
func (s *Store) write(want plan.File, units []Unit, changes *Changes) error {
	err := s.writeFile(want, units, changes)
	switch {
	case !changes.Refused[want.Path].None():
		delete(s.had, want.Path)
	case err == nil:
		s.has(want)
	}
	return err
}

func (s *Store) writeFile(want plan.File, units []Unit, changes *Changes) error {
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
func (s *Store) makeDir(want plan.File) error {
	dir := s.at(path.Dir(want.Path))
	if _, err := os.Stat(dir); err == nil {
		return nil
	}
	if err := os.MkdirAll(dir, 0o755); err != nil {
		// In the daemon's sandbox a directory above it that somebody has removed cannot be made.
		if _, gone := os.Stat(s.at(plan.Directory)); errors.Is(gone, fs.ErrNotExist) {
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
	if err := s.replace(plan.File{Path: p, Content: content}); err != nil {
		return file.Failed("writing", p, err)
	}
	return nil
}

// replace writes a file under a hidden name and renames it.
func (s *Store) replace(want plan.File) error {
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

func (s *Store) link(want plan.File, units []Unit, changes *Changes) error {
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
		return (p == u.unit() && u.leadsTo(target)) || (path.Dir(p) == u.dir() && u.mirrored(p, target))
	})
}
