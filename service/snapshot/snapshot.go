// Package snapshot defines what a pass sees: the kernel, what networkd and udevd say of each link, the
// unit files, what is known of the metadata and the configuration, all of one moment.
//
// [Sources.Take] is the only place that asks. Whatever follows from a [Snapshot] reads no file and asks
// nobody, so that one pass never sees two states of the same thing. ec2netctl takes the same one.
package snapshot

import (
	"time"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/unitfile"
)

// Snapshot is what was seen at one moment. It does not change.
type Snapshot struct {
	// Taken is when that was.
	Taken time.Time
	// Kernel is what the network namespace contains. It is the same value as in the snapshot before
	// as long as it says the same.
	Kernel *kernel.Snapshot
	// Others are the names of links that are no ENIs, see [kernel.Snapshot].
	Others map[string]string
	// Links is what networkd and udevd say of the links of Kernel, by index.
	Links map[int]Link
	// Keeps reports whether the configuration of networkd makes it keep routes and rules of others.
	Keeps bool
	// Files are the unit files.
	Files *unitfile.Tree
	// Metadata is what is known of them, nil if nobody reads them, see [Snapshot.Knowing].
	Metadata *poller.Known
	// Settings of the daemon.
	Settings Settings

	// policies are the .link files of others.
	policies []unitfile.Unit
}

// Link is what networkd and udevd say of a link.
type Link struct {
	Networkd networkd.LinkState
	// LinkFile is the .link file that udevd has applied, empty for none. Handled reports whether
	// udevd is done with the link.
	LinkFile string
	Handled  bool
}

// Settings are the part of the configuration that a plan follows from.
type Settings struct {
	// Sections say how each ENI is treated.
	Sections []config.Section
	// Drivers of ENIs; empty for not to let networkd wait for the files of new ones.
	Drivers []string
}

// Kernel observes the network namespace.
type Kernel interface {
	Observe() (*kernel.Snapshot, error)
}

// Networkd tells what networkd says of itself and of links.
type Networkd interface {
	Link(index int) networkd.LinkState
	Keeps() bool
}

// Udev tells which .link file udevd has applied to a link.
type Udev interface {
	LinkFile(index int) (file string, ok bool)
}

// Files reads the unit files.
type Files interface {
	Tree() *unitfile.Tree
}

// Sources are where a snapshot comes from.
type Sources struct {
	// Kernel is nil for a snapshot without links.
	Kernel   Kernel
	Networkd Networkd
	Udev     Udev
	Files    Files
}

// Take looks at everything. last is the snapshot before, nil for none. It fails if the kernel cannot be
// observed.
func (s Sources) Take(settings Settings, last *Snapshot) (*Snapshot, error) {
	seen := &kernel.Snapshot{}
	if s.Kernel != nil {
		var err error
		if seen, err = s.Kernel.Observe(); err != nil {
			return nil, err
		}
	}
	others := seen.Others
	if last != nil && last.Kernel != nil && seen.Equal(last.Kernel) {
		seen = last.Kernel
	}
	now := &Snapshot{Taken: time.Now(), Kernel: seen, Others: others, Settings: settings, Keeps: s.Networkd.Keeps(), Links: make(map[int]Link, len(seen.Links))}
	for i := range seen.Links {
		index := seen.Links[i].Index
		link := Link{Networkd: s.Networkd.Link(index)}
		if applied, ok := s.Udev.LinkFile(index); ok {
			link.LinkFile, link.Handled = applied, true
		}
		now.Links[index] = link
	}
	return now.With(s.Files.Tree()), nil
}

// With returns the snapshot with other unit files.
func (s *Snapshot) With(files *unitfile.Tree) *Snapshot {
	now := *s
	now.Files, now.policies = files, files.Policies()
	return &now
}

// Knowing returns the snapshot with what is known of the metadata, which follows from the links.
func (s *Snapshot) Knowing(known *poller.Known) *Snapshot {
	now := *s
	now.Metadata = known
	return &now
}

// Observed returns a link as a plan needs it, with what the kernel, udevd and the unit files say of
// it.
func (s *Snapshot) Observed(link *kernel.Link) plan.Link {
	entry := plan.Observed(*link, s.Kernel.Routes)
	entry.Complete(s.Files)
	if of := s.Links[link.Index]; of.Handled {
		entry.TakePolicy(s.policies, s.Files.Policy(of.LinkFile))
	}
	return entry
}
