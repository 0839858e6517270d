package preview

import (
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/snapshot"
	"ec2netd/service/store"
)

// Site is the machine that a plan is for.
type Site struct {
	// Store has the generated files.
	Store *store.Store
	// Seen is what was seen of the machine.
	Seen *snapshot.Snapshot
	// Running reports whether networkd is on the bus, and Varlink whether it has its Varlink socket.
	Running, Varlink bool
	// Ours reports whether an address stands or stood in a drop-in of the daemon's. Nil if its record
	// cannot be read: then no address counts as somebody else's.
	Ours func(plan.OwnAddress) bool
}

// input returns what a plan follows from besides the metadata and the links.
func (s *Site) input() plan.Input {
	in := plan.Input{Sections: s.Seen.Settings.Sections}
	in.Networkd.Keeps = s.Seen.Keeps
	in.Base, in.BaseDropIns = s.Seen.Files.Base()
	return in
}

// Offline returns the plan for a dump, with links that are not here. No file is compared.
func (s *Site) Offline(d *metadata.Dump, links []plan.Link) (*Plan, error) {
	in := s.input()
	in.Links = links
	return Make(d, in)
}

// Here returns the plan for the metadata of this machine, with what becomes of each file on disk.
func (s *Site) Here(d *metadata.Dump) (*Plan, error) {
	in := s.input()
	in.Networkd.Running, in.Networkd.Varlink = s.Running, s.Varlink
	in.Assigned = plan.Assigned(s.Seen.Files, "")
	in.Locked, in.Tunnel = plan.Locked(s.Seen.Kernel.Rules), s.Seen.Kernel.Tunnel
	for i := range s.Seen.Kernel.Links {
		entry := s.Seen.Observed(&s.Seen.Kernel.Links[i])
		if s.Ours != nil {
			entry.Foreign = plan.Foreign(&entry, s.Ours)
		}
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
	link := s.Seen.Observed(l)
	return link.LinkFile
}
