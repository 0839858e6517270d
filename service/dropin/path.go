package dropin

// Directory is the directory of the generated files, in which networkd and udevd look for them.
const Directory = "/run/systemd/network"

// File names of generated drop-ins.
const (
	// FileName is the name of the drop-in of every generated unit.
	FileName = "50-ec2netd.conf"
	// MatchName is the name of the drop-in that keeps a unit to its one link where another file
	// hides the one called FileName: the unit that a generated one leads to matches every ENI.
	MatchName = "40-ec2netd-match.conf"
	// StartName is the name of a drop-in by which networkd 252 keeps all that it finds on a link
	// when it starts. The daemon removes it as soon as the lease is back: in a reload it makes
	// networkd drop everything and add it again.
	StartName = "55-ec2netd-start.conf"
	// BaseLinkName is the name of the link to the base unit among the drop-ins of a generator's
	// file. It sorts before the others, as the base unit does.
	BaseLinkName = "00-ec2netd-base.conf"
	// ClearName is the name of the link to NoAddresses among the drop-ins of a generator's file. It
	// sorts before all others, and takes away the addresses of the file itself (systemd.network(5)).
	ClearName = "00-ec2netd-addresses.conf"
)

// Installed files.
const (
	// BaseName is the file name of the unit that generated .network units build upon.
	BaseName = "80-ec2.network"
	// NoAddresses is a drop-in that takes addresses away.
	NoAddresses = "/usr/lib/ec2netd/no-addresses.conf"
	// NoPolicy is a .link file without any policy, for links that no .link file applies to.
	NoPolicy = "/usr/lib/ec2netd/none.link"
)

// HoldName is the file name of the unit that [Hold] renders. It sorts right before the base unit
// (decisions/002). HoldPath is its path.
const (
	HoldName = "80-ec2-new.network"
	HoldPath = Directory + "/" + HoldName
)

// BaseDropIn is the path of the generated drop-in of the base unit, see [Base].
const BaseDropIn = Directory + "/" + BaseName + ".d/" + FileName

// StartDirectory contains files that networkd is to find at its next start, and not before, under
// their paths below [Directory]. ec2netd-networkd-start.service puts them in place. What is written
// for a networkd that runs costs a configuration of the link at the next reload (facts: reload), and
// some of it is right at a start alone (E1, E7).
const StartDirectory = "/run/ec2netd/networkd-start"

// NetworkPath returns the path of the generated .network unit of a link.
func NetworkPath(link string) string { return Directory + "/70-" + link + ".network" }

// NetworkDropIn returns the path of the drop-in of the generated .network unit of a link.
func NetworkDropIn(link string) string { return Directory + "/70-" + link + ".network.d/" + FileName }

// LinkPath returns the path of the generated .link file of a link.
func LinkPath(link string) string { return Directory + "/70-" + link + ".link" }

// LinkDropIn returns the path of the drop-in of the generated .link file of a link.
func LinkDropIn(link string) string { return Directory + "/70-" + link + ".link.d/" + FileName }

// StartDropIn returns the path of the drop-in called [StartName] of a link.
func StartDropIn(link string) string { return NetworkPath(link) + ".d/" + StartName }
