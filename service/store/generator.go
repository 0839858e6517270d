package store

import (
	"os"
	"path"
	"slices"
	"strings"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/unitfile"
)

// completion is a directory of drop-ins of a generator's file that this daemon has completed
// for a link, see Generator of unitfile.Tree. Its links are this daemon's, as the one tells by which
// its own drop-in is found there.
type completion struct{ link, dir string }

// completions lists them.
func (s *Store) completions() []completion {
	var found []completion
	for _, dir := range s.list(dropin.Directory, "10-*."+Network+".d") {
		dir = path.Join(dropin.Directory, dir)
		if name, ok := linkOf(s.Target(path.Join(dir, dropin.FileName))); ok {
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
	return name, is && isUnit && path.Base(dropIn) == dropin.FileName && slices.Contains(unitfile.Dirs(), path.Dir(dir))
}

// leadsTo reports whether a link in the directory may lead to target.
func (c completion) leadsTo(target string) bool {
	dir := path.Dir(target)
	base := path.Base(target) == dropin.BaseName && slices.Contains(unitfile.Dirs(), dir)
	own := path.Base(dir) == path.Base(dropin.NetworkPath(c.link))+".d" && slices.Contains(unitfile.Dirs(), path.Dir(dir))
	return base || own || target == dropin.NoAddresses || mirrored(target)
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
		names := slices.DeleteFunc(s.list(c.dir, "*"), func(name string) bool { return name == dropin.FileName })
		for _, name := range append(names, dropin.FileName) {
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
		if path.Base(p) == dropin.FileName && os.Remove(s.at(path.Dir(p))) == nil {
			s.step()
		}
	}
	return nil
}

// unwantedLeftOut lists drop-ins of this daemon's own that leave ENIs out of a generator's file, and
// are not wanted.
func (s *Store) unwantedLeftOut(content map[string]string) []string {
	var unwanted []string
	for _, dir := range s.list(dropin.Directory, "10-*."+Network+".d") {
		p := path.Join(dropin.Directory, dir, dropin.FileName)
		if content[p] == "" && s.regular(p) && dropin.Ours(s.Read(p)) {
			unwanted = append(unwanted, p)
		}
	}
	return unwanted
}

// sweepCompletions removes what a run that was killed while writing left.
func (s *Store) sweepCompletions() {
	for _, dir := range s.list(dropin.Directory, "10-*."+Network+".d") {
		dir = path.Join(dropin.Directory, dir)
		if of, err := os.Lstat(s.at(dir)); err != nil || !of.IsDir() {
			continue
		}
		for _, pattern := range []string{".*" + linkSuffix, "." + dropin.FileName + "*"} {
			for _, name := range s.list(dir, pattern) {
				_ = os.Remove(s.at(path.Join(dir, name)))
			}
		}
		// One that has something in it stays.
		_ = unix.Rmdir(s.at(dir))
	}
}
