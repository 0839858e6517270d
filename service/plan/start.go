package plan

import (
	"net/netip"
	"slices"

	"ec2netd/service/dropin"
)

// StartDirectory is [dropin.StartDirectory], and StartDropInName is [dropin.StartName].
const (
	StartDirectory  = dropin.StartDirectory
	StartDropInName = dropin.StartName
)

// StartDropIn is [dropin.StartDropIn].
func StartDropIn(name string) string { return dropin.StartDropIn(name) }

// AtStart are the files for [StartDirectory], with the paths that they will have.
func (p *Plan) AtStart() []File {
	var files []File
	for i := range p.ENIs {
		if eni := &p.ENIs[i]; eni.Link.Taken == "" {
			files = append(files, eni.AtStart...)
		}
	}
	return files
}

// startFiles are what networkd shall find at its next start, beyond what it has been told of.
//
// A restarted networkd takes away the default routes that the one before it had by router
// advertisements: with ManageForeignRoutes=no it does not know them for its own (systemd#40510;
// measured on 257 and 262: far IPv6 stood still until the next advertisement). Static ones
// beside them stay. On 252 they are in the drop-in already, but there networkd does not know
// the address of the lease for its own either, adds it anew, and the kernel takes all routes
// with it that leave the link, those of others too. With KeepConfiguration=yes it stays
// (facts: restart).
func startFiles(eni *ENI, technique Technique, better []netip.Addr) []File {
	want := &eni.Want
	switch technique {
	case Static:
		return []File{startDropIn(eni)}
	case Dynamic:
		if slices.Equal(better, want.Routers) {
			return nil
		}
		known := want.Routers
		want.Routers = better
		defer func() { want.Routers = known }()
		return []File{{Path: NetworkDropIn(eni.Link.Name), Content: networkDropIn(eni).Render()}}
	}
	return nil
}

func startDropIn(eni *ENI) File {
	start := dropin.Start{KeepConfiguration: dropin.KeepYes}
	return File{Path: StartDropIn(eni.Link.Name), Content: start.Render()}
}

// starting reports whether what networkd 252 found at its start must stay a little longer, with
// all else that is there for the link. It has the lease again some milliseconds after it has
// begun; not to be early costs nothing.
func starting(link *Link, technique Technique) bool {
	return link.StartFile && link.Current != nil && (technique == Undecided || !link.LeaseOverdue && (!link.Settled || !link.Done || link.Busy))
}
