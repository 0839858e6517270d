package store

import (
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// completion is a directory of drop-ins of a generator's file that this daemon has completed
// for a link, see [plan.Link].Generator. Its links are this daemon's, as the one tells by which
// its own drop-in is found there.
type completion struct{ link, dir string }

// completions lists them.
func (s *Store) completions() []completion {
	var found []completion
	for _, dir := range s.list(plan.Directory, "10-*."+Network+".d") {
		dir = path.Join(plan.Directory, dir)
		if name, ok := linkOf(s.Target(path.Join(dir, plan.DropInName))); ok {
			found = append(found, completion{name, dir})
		}
	}
	return found
}

// linkOf returns the name of the link whose own drop-in, or an administrator's in place of it,
// a path is.
func linkOf(dropIn string) (string, bool) {
	dir := path.Dir(dropIn)
	name, is := strings.CutPrefix(path.Base(dir), "70-")
	name, isUnit := strings.CutSuffix(name, "."+Network+".d")
	return name, is && isUnit && path.Base(dropIn) == plan.DropInName && slices.Contains(unitDirs, path.Dir(dir))
}

// leadsTo reports whether a link in the directory may lead to target.
func (c completion) leadsTo(target string) bool {
	dir := path.Dir(target)
	base := path.Base(target) == BaseName && slices.Contains(unitDirs, dir)
	own := path.Base(dir) == path.Base(plan.NetworkPath(c.link))+".d" && slices.Contains(unitDirs, path.Dir(dir))
	return base || own || target == plan.NoAddresses || mirrored(target)
}

// completes reports whether a link was made by this daemon in a completion.
func (s *Store) completes(p, target string) bool {
	return slices.ContainsFunc(s.completions(), func(c completion) bool { return c.dir == path.Dir(p) && c.leadsTo(target) })
}

// UnwantedLinks lists the links in drop-in directories of generators' files that are this daemon's
// and not wanted, in the order in which they are to go: last the one that tells whose the others
// are. Those of links that are kept are left out.
func (s *Store) UnwantedLinks(wanted map[string]bool, kept func(link string) bool) []string {
	var unwanted []string
	for _, c := range s.completions() {
		if kept(c.link) {
			continue
		}
		names := slices.DeleteFunc(s.list(c.dir, "*"), func(name string) bool { return name == plan.DropInName })
		for _, name := range append(names, plan.DropInName) {
			if p := path.Join(c.dir, name); !wanted[p] && c.leadsTo(s.Target(p)) {
				unwanted = append(unwanted, p)
			}
		}
	}
	return unwanted
}

// pruneGenerators removes what is not wanted in drop-in directories of generators' files: of links,
// and of files with content.
func (s *Store) pruneGenerators(links map[string]bool, content map[string]string, keep []Unit, changes *Changes) error {
	kept := func(link string) bool { return slices.Contains(keep, Unit{Name: link, Kind: Network}) }
	for _, p := range append(s.UnwantedLinks(links, kept), s.unwantedLeftOut(content)...) {
		if err := s.remove(p, changes); err != nil {
			return err
		}
		// It fails where something is left in it.
		if path.Base(p) == plan.DropInName && os.Remove(s.at(path.Dir(p))) == nil {
			s.step()
		}
	}
	return nil
}

// unwantedLeftOut lists drop-ins of this daemon's own that leave ENIs out of a generator's file, and
// are not wanted.
func (s *Store) unwantedLeftOut(content map[string]string) []string {
	var unwanted []string
	for _, dir := range s.list(plan.Directory, "10-*."+Network+".d") {
		p := path.Join(plan.Directory, dir, plan.DropInName)
		if content[p] == "" && s.regular(p) && dropin.Ours(s.Read(p)) {
			unwanted = append(unwanted, p)
		}
	}
	return unwanted
}

// sweepCompletions removes what a run that was killed while writing left.
func (s *Store) sweepCompletions() {
	for _, dir := range s.list(plan.Directory, "10-*."+Network+".d") {
		dir = path.Join(plan.Directory, dir)
		if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
			continue
		}
		for _, pattern := range []string{".*" + linkSuffix, "." + plan.DropInName + "*"} {
			for _, name := range s.list(dir, pattern) {
				_ = os.Remove(s.at(path.Join(dir, name)))
			}
		}
		// One that has something in it stays.
		_ = unix.Rmdir(s.at(dir))
	}
}

// generator returns the file of a generator that networkd will use for a link in place of its own
// unit, or would without this daemon's drop-ins: sole if it is for no other link. Shared are those
// before it that are for several links, and of which ENIs can be left out.
func (s *Store) generator(link *plan.Link, networks *Networks) (sole string, shared []string) {
	own := path.Base(plan.NetworkPath(link.Name))
	for _, name := range networks.Names {
		if name > own || (name == own && !s.fromKernelLine(Unit{Name: link.Name, Kind: Network})) {
			break
		}
		unit := networks.Look(name)
		if unit.Path == "" || unit.Masked {
			continue
		}
		made := unitfile.FromGenerator(unit.Path) || unit.Path == plan.NetworkPath(link.Name)
		if made {
			dir := unitfile.GeneratorDir(unit.Path)
			unit.Texts = slices.DeleteFunc(slices.Clone(unit.Texts), func(text unitfile.Text) bool {
				return path.Dir(text.Path) == dir && (text.Generated() || text.Source != text.Path)
			})
		}
		if match, _ := unit.Match(link.Matchable()); match == unitfile.NoMatch {
			continue
		}
		switch {
		case made && unit.Texts[0].Sole(link.Matchable()):
			return unit.Path, shared
		case made && unit.Texts[0].LeavesOut():
			shared = append(shared, unit.Path)
		default:
			return "", shared
		}
	}
	return "", shared
}

// cloudInitYAML is what cloud-init writes for netplan.
const cloudInitYAML = "/etc/netplan/50-cloud-init.yaml"

// firstBoot are the static addresses in a generator's file if cloud-init has written all of them.
func (s *Store) firstBoot(unit unitfile.Unit) []netip.Addr {
	var all []netip.Addr
	for _, own := range plan.AddressesIn(unit.Texts[0].Content) {
		all = append(all, own.Address)
	}
	if len(all) == 0 || strings.HasPrefix(path.Base(unit.Path), "10-cloud-init-") {
		return all
	}
	var written []netip.Addr
	isMark := func(r rune) bool { return strings.ContainsRune(" \t\r\n,\"'[]{}/", r) }
	for word := range strings.FieldsFuncSeq(s.Read(cloudInitYAML), isMark) {
		if address, err := netip.ParseAddr(word); err == nil {
			written = append(written, address)
		}
	}
	if slices.ContainsFunc(all, func(a netip.Addr) bool { return !slices.Contains(written, a) }) {
		return nil
	}
	return all
}

// fromKernelLine reports whether systemd-network-generator has made what is in the place of a unit.
func (s *Store) fromKernelLine(u Unit) bool {
	return u.Kind == Network && s.regular(u.unit()) && unitfile.FromKernelLine(s.Read(u.unit()))
}

// ownDropIns are the drop-ins that others have for the own unit of a link.
func (s *Store) ownDropIns(link string) []string {
	byName := make(map[string]string)
	for _, dir := range slices.Backward(unitDirs) {
		if dir == plan.Directory {
			continue
		}
		dir = path.Join(dir, path.Base(plan.NetworkPath(link))+".d")
		for _, name := range s.list(dir, "*.conf") {
			// Of what is no file there is no copy, see [Store.Base].
			if p := path.Join(dir, name); s.masked(p) || s.readable(p) {
				byName[name] = p
			}
		}
	}
	var all []string
	for _, p := range byName {
		all = append(all, p)
	}
	slices.Sort(all)
	return all
}
