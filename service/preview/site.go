package preview

import (
	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/store"
	"ec2netd/service/udev"
	"ec2netd/service/unitfile"
)

// Site is the machine that a plan is for, as its files tell of it.
type Site struct {
	// Store has the generated files. Its root is that of everything else here, too.
	Store *store.Store
	// Files are the unit files of networkd and udevd.
	Files *unitfile.Tree
	// Sections of the configuration.
	Sections []config.Section
}

// input returns what a plan follows from besides the metadata and the links.
func (s *Site) input() plan.Input {
	in := plan.Input{Sections: s.Sections}
	in.Networkd.Keeps = (&networkd.Client{Root: s.Store.Root}).Keeps()
	in.Base, in.BaseDropIns = s.Files.Base()
	return in
}

// Offline returns the plan for a dump, with links that are not here. No file is compared.
func (s *Site) Offline(d *metadata.Dump, links []plan.Link) (*Plan, error) {
	in := s.input()
	in.Links = links
	return Make(d, in)
}

// Here returns the plan for the metadata of this machine, with what becomes of each file on disk.
func (s *Site) Here(d *metadata.Dump, seen *kernel.Snapshot) (*Plan, error) {
	in := s.input()
	in.Assigned = plan.Assigned(s.Files, "")
	in.Locked, in.Tunnel = plan.Locked(seen.Rules), seen.Tunnel
	for i := range seen.Links {
		entry := plan.Observed(seen.Links[i], seen.Routes)
		entry.Complete(s.Files)
		s.takePolicy(&entry)
		in.Links = append(in.Links, entry)
	}
	p, err := Make(d, in)
	if err != nil {
		return nil, err
	}
	units, err := s.Store.Units()
	if err != nil {
		return nil, err
	}
	return p, p.Compare(s.Store, units)
}

// LinkFile returns the .link file that holds for a link besides that of ec2netd, empty if udevd does not
// tell.
func (s *Site) LinkFile(l *kernel.Link) string {
	link := plan.Link{Link: *l}
	s.takePolicy(&link)
	return link.LinkFile
}

// takePolicy notes which .link file holds for a link, if udevd is done with the link.
func (s *Site) takePolicy(link *plan.Link) {
	if applied, ok := (&udev.Udev{Root: s.Store.Root}).LinkFile(link.Index); ok {
		link.TakePolicy(s.Files.Policies(), s.Files.Policy(applied))
	}
}
