package plan

import (
	"path"
	"slices"
	"strings"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// Name is an alternative name of a link.
type Name struct{ Link, Name string }

// StaleNames are alternative names (ID or number) that an ENI had before another one got
// them: udevd adds those of a .link file and takes none away. Links are the ENIs with the
// names that they have, read returns the generated .link drop-in of a link by its name, or nil. A
// name counts only where the files of both ENIs are this daemon's and say whose it is now.
func StaleNames(links []kernel.Link, read func(link string) *dropin.Link) (stale []Name) {
	own := make(map[int][]string)
	wanted := make(map[string]bool)
	for _, l := range links {
		dropIn := read(l.Name)
		if dropIn.MACAddress() != l.MAC {
			continue
		}
		own[l.Index] = dropIn.Names()
		for _, name := range own[l.Index] {
			wanted[name] = true
		}
	}
	for _, l := range links {
		for _, name := range l.Altnames {
			if wanted[name] && len(own[l.Index]) > 0 && !slices.Contains(own[l.Index], name) {
				stale = append(stale, Name{l.Name, name})
			}
		}
	}
	return stale
}

// LackingNames are alternative names that stand in the .link files of ENIs, see [StaleNames] for
// links and read, and that no link has.
func LackingNames(links []kernel.Link, read func(link string) *dropin.Link) (lacking []Name) {
	taken := make(map[string]bool)
	for _, l := range links {
		taken[l.Name] = true
		for _, name := range l.Altnames {
			taken[name] = true
		}
	}
	for _, l := range links {
		dropIn := read(l.Name)
		if dropIn.MACAddress() != l.MAC {
			continue
		}
		for _, name := range dropIn.Names() {
			if !taken[name] {
				taken[name] = true
				lacking = append(lacking, Name{l.Name, name})
			}
		}
	}
	return lacking
}

// KeepsNames says what keeps the alternative names of a link away, [status.None] if nothing does, and
// in which file that stands. Unit is all that is read under the name of its .link file, and applied the file that
// udevd has applied to the link, empty if that is none or has gone.
func KeepsNames(link *Link, unit unitfile.Unit, applied string) (why status.Code, file string) {
	own := path.Base(LinkPath(link.Name))
	switch {
	case unit.Masked:
		return status.NamesMasked, unit.Path
	case link.LinkHidden != "":
		return status.NamesHidden, link.LinkHidden
	case unit.Path != "":
		if match, culprit := unit.Match(link.Matchable()); match == unitfile.NoMatch && culprit != "" {
			return status.NamesUnmatched, culprit
		}
	}
	// netplan writes no names, and cannot be told to.
	if applied != "" && path.Base(applied) < own && !strings.HasPrefix(applied, Directory+"/70-") && !unitfile.FromGenerator(applied) {
		return status.NamesEarlier, applied
	}
	return status.None, ""
}
