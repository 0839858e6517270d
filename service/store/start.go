package store

import (
	"errors"
	"io/fs"
	"os"
	"path"
	"slices"

	"golang.org/x/sys/unix"

	"ec2netd/service/dropin"
)

// atStart is where a file waits for networkd's start.
func atStart(p string) string {
	return path.Join(dropin.StartDirectory, path.Base(path.Dir(p)), path.Base(p))
}

// waiting lists the files that wait for networkd's start, with the paths that they will have.
func (s *Store) waiting() []string {
	var found []string
	for _, dir := range s.list(dropin.StartDirectory, "70-*."+Network+".d") {
		for _, name := range []string{dropin.FileName, dropin.StartName} {
			if p := path.Join(dropin.Directory, dir, name); s.regular(atStart(p)) {
				found = append(found, p)
			}
		}
	}
	return found
}

// Withdraw takes away the files that wait for networkd's start and are not, or not with these
// bytes, among those that shall. It is to come before a change of what they are made of, and
// [Store.Prepare] after it: whoever kills the daemon in between leaves none that is out of date.
func (s *Store) Withdraw(shall []File) error {
	for _, p := range s.waiting() {
		if i := slices.IndexFunc(shall, func(f File) bool { return f.Path == p }); i >= 0 && s.Read(atStart(p)) == shall[i].Content {
			continue
		}
		if err := os.Remove(s.at(atStart(p))); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		s.tidyStart(p)
		s.step()
	}
	return nil
}

// Prepare has files wait for networkd's start.
func (s *Store) Prepare(shall []File) error {
	for _, f := range shall {
		f.Path = atStart(f.Path)
		if s.Read(f.Path) == f.Content {
			continue
		}
		if err := s.makeDir(f); err != nil {
			return err
		}
		if err := s.replace(f); err != nil {
			return err
		}
		s.step()
	}
	return nil
}

// tidyStart removes the directories of a file that waited, unless others are in them.
func (s *Store) tidyStart(p string) {
	if os.Remove(s.at(path.Dir(atStart(p)))) == nil {
		_ = os.Remove(s.at(dropin.StartDirectory))
	}
}

// outdated takes away the copy of a file that waits for networkd's start, as the file has
// changed.
func (s *Store) outdated(p string) error {
	// On a file system that is read-only the kernel refuses to remove also what is not there.
	if path.Base(p) != dropin.FileName || !s.there(atStart(p)) {
		return nil
	}
	if err := os.Remove(s.at(atStart(p))); err != nil {
		if errors.Is(err, fs.ErrNotExist) || errors.Is(err, unix.ENOTDIR) {
			return nil
		}
		return err
	}
	s.tidyStart(p)
	return nil
}

// Start puts the files in place that wait for networkd's start, where their ENI still has its
// unit. networkd must not run meanwhile. keepAll: those too that somebody must take away again,
// see [dropin.StartName].
func (s *Store) Start(keepAll bool) error {
	var errs []error
	for _, p := range s.waiting() {
		if path.Base(p) == dropin.StartName && !keepAll {
			continue
		}
		content, own := s.Read(atStart(p)), path.Join(path.Dir(p), dropin.FileName)
		present := s.Read(own)
		if !s.regular(own) || !dropin.Ours(present) || (p == own && dropin.ParseNetworkMatch(present).MAC() != dropin.ParseNetworkMatch(content).MAC()) {
			continue
		}
		if (p == own || s.regular(p) || !s.there(p)) && content != s.Read(p) {
			errs = append(errs, s.replace(File{Path: p, Content: content}))
		}
	}
	return errors.Join(errs...)
}

func (s *Store) there(p string) bool {
	_, err := os.Lstat(s.at(p))
	return err == nil
}
