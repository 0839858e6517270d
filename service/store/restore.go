package store

import (
	"cmp"
	"errors"
	"io/fs"
	"maps"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
)

// Restore writes generated files again that somebody has removed since the last Apply, with the
// bytes that they had (F12). It is to come before whatever follows from the files on disk: with
// them missing the next plan would take ENIs that are configured for new ones. It returns the
// paths of what it has written. An error leaves the rest for the next call.
func (s *Store) Restore() (written []string, err error) {
	var missing []string
	for p := range s.had {
		var there unix.Stat_t
		// What is not missing is there, or something of somebody else's is in its way.
		if err := unix.Lstat(s.at(p), &there); errors.Is(err, fs.ErrNotExist) {
			missing = append(missing, p)
		}
	}
	slices.SortFunc(missing, func(a, b string) int {
		return cmp.Or(cmp.Compare(rank(a), rank(b)), cmp.Compare(a, b))
	})
	for _, p := range missing {
		had := s.had[p]
		if err := s.makeDir(had); err != nil {
			return written, err
		}
		if had.Target != "" {
			err = s.symlink(had)
		} else {
			err = s.replace(had)
		}
		if err != nil {
			return written, file.Failed("writing", p, err)
		}
		written = append(written, p)
		s.step()
	}
	return written, nil
}

// rank orders files as they are to be written: first what tells that the others are this daemon's,
// last the units that make drop-ins effective.
func rank(p string) int {
	switch {
	case path.Dir(p) == dropin.Directory:
		return 2
	case path.Base(p) == dropin.FileName:
		return 0
	}
	return 1
}

// has notes that a file is in place.
func (s *Store) has(f File) {
	if s.had == nil {
		s.had = make(map[string]File)
	}
	s.had[f.Path] = f
}

// hasOnly forgets all files but those that are wanted and those of units that are kept. What it
// does not know yet of the latter an earlier run of the daemon has written: it is on disk.
func (s *Store) hasOnly(wanted map[string]bool, keep []Unit) {
	kept := make(map[string]bool)
	var unknown []Unit
	for _, unit := range keep {
		kept[unit.Path()], kept[unit.dir()] = true, true
		if _, known := s.had[unit.dropIn()]; !known && !wanted[unit.dropIn()] {
			unknown = append(unknown, unit)
		}
	}
	if len(unknown) > 0 {
		found := s.UnwantedLinks(nil, func(link string) bool { return !slices.Contains(unknown, Unit{link, Network}) })
		for _, unit := range unknown {
			if of, err := s.Unwanted(unit, nil); err == nil {
				found = append(found, of...)
			}
		}
		s.hasFound(found)
	}
	for p, f := range s.had {
		// What completes a generator's file by the unit's own drop-in.
		if link, completes := linkOf(f.Target); completes && slices.Contains(keep, Unit{link, Network}) {
			kept[path.Dir(p)] = true
		}
	}
	maps.DeleteFunc(s.had, func(p string, _ File) bool {
		return !wanted[p] && !kept[p] && !kept[path.Dir(p)]
	})
}

// hasFound notes files of the daemon's that are on disk.
func (s *Store) hasFound(found []string) {
	for _, p := range found {
		f := File{Path: p, Target: s.Target(p)}
		if f.Target == "" {
			f.Content = s.Read(p)
		}
		// What is for the start of networkd goes by itself.
		if path.Base(p) != dropin.StartName && (f.Target != "" || f.Content != "") {
			s.has(f)
		}
	}
}

// symlink makes a symbolic link in the place of whatever is there.
func (s *Store) symlink(want File) error {
	// Not renameio.Symlink: what a kill leaves of it is a directory of any name.
	hidden := s.at(path.Join(path.Dir(want.Path), "."+path.Base(want.Path)+linkSuffix))
	_ = os.Remove(hidden)
	err := os.Symlink(want.Target, hidden)
	s.step()
	if err != nil {
		return err
	}
	return os.Rename(hidden, s.at(want.Path))
}
