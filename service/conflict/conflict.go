// Package conflict detects other software that also configures ENIs (F5). From facts that are
// cheap to collect it determines what conflicts, how this is known, and what to do. It changes
// nothing, and starts no process.
package conflict

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/unit"

	"ec2netd/service/state"
)

// Names of the detected software, [state.Conflict.Name].
const (
	NetworkManager = "NetworkManager"
	NMCloudSetup   = "nm-cloud-setup"
	CloudInit      = "cloud-init"
	Ifupdown       = "ifupdown"
	DHClient       = "dhclient"
	DHCPCD         = "dhcpcd"
	OldPackage     = "amazon-ec2-net-utils"
)

// Units of that software.
const (
	managerUnit  = "NetworkManager.service"
	setupService = "nm-cloud-setup.service"
	setupTimer   = "nm-cloud-setup.timer"
	networking   = "networking.service"
	dhcpcdUnit   = "dhcpcd.service"
)

// dhcpcdAll is the PID file of a dhcpcd for all links.
const dhcpcdAll = "/run/dhcpcd/pid"

// Patterns match the units whose active state is a fact.
var Patterns = []string{
	managerUnit, setupService, setupTimer, networking, "ifup@*.service", dhcpcdUnit,
	"policy-routes@*.service", "refresh-policy-routes@*.timer", "refresh-policy-routes@*.service",
	"ec2net-ifup@*.service", "ec2net-scan.service",
}

// Facts are the findings on the instance.
type Facts struct {
	// Active are the units that match Patterns and are active or activating.
	Active []string
	// Enabled are the units of NetworkManager, nm-cloud-setup and ifupdown that the next boot
	// starts.
	Enabled []string
	// Managed says, by name, whether NetworkManager manages an ENI, for each ENI of which it has
	// reported this. Links are the names of all ENIs.
	Managed map[string]bool
	Links   []string
	// Raised are the ENIs that ifupdown has configured and not released since. Auto are the ENIs
	// that networking.service configures when it starts.
	Raised, Auto []string
	// Lowered are the ENIs that ifupdown has configured in this boot and released since. Its values
	// are the times of the last release, or of the last failed configuration.
	Lowered map[string]time.Time
	// Clients are the DHCP clients that run for an ENI and belong to no software above.
	Clients []Client
	// Drivers are the drivers whose links are ENIs.
	Drivers []string
	// PolicyRouting are the files of cloud-init with policy rules for an ENI.
	PolicyRouting []string
	// OldFiles are the files of amazon-ec2-net-utils, or of ec2-net-utils before it: its udev rules
	// in force, its own directory, and its generated files for ENIs.
	OldFiles []string
	// Unread are relevant files and directories that could not be read, with the reason.
	Unread []string
}

// Client is a DHCP client that runs for an ENI: [DHClient] or [DHCPCD].
type Client struct {
	Name, Link string
	// PIDFile identifies the client. One process may serve several links.
	PIDFile string
	// Family is "-4" or "-6", or empty for the client's default.
	Family string
}

// Find returns the conflicts. It is a pure function.
func Find(f Facts) []state.Conflict {
	conflicts := []state.Conflict{}
	add := func(name string, evidence []string, advice string) {
		if len(evidence) > 0 {
			conflicts = append(conflicts, state.Conflict{Name: name, Evidence: evidence, Advice: advice})
		}
	}
	add(NetworkManager, f.manager(), f.adviceOnManager())
	add(NMCloudSetup, f.units("nm-cloud-setup."),
		"systemctl disable --now nm-cloud-setup.timer nm-cloud-setup.service: ec2netd does what it is for")
	evidence, advice := f.ifupdown()
	add(Ifupdown, evidence, advice)
	for _, name := range []string{DHClient, DHCPCD} {
		evidence, advice := f.clients(name)
		add(name, evidence, "have networkd alone ask for leases: "+strings.Join(advice, "; "))
	}
	add(CloudInit, f.PolicyRouting,
		"remove the files that the evidence names, and reboot: ec2netd does what they are for, and keeps cloud-init from writing them again")
	old := slices.Clone(f.OldFiles)
	for _, unit := range f.Active {
		if strings.HasPrefix(unit, "policy-routes@") || strings.HasPrefix(unit, "refresh-policy-routes@") || strings.HasPrefix(unit, "ec2net-") {
			old = append(old, unit+" is active")
		}
	}
	add(OldPackage, old, f.adviceOnOld())
	return conflicts
}

// adviceOnManager says how to disable NetworkManager. If it were only stopped, its addresses, routes
// and rules would stay, and networkd keeps those of others.
func (f *Facts) adviceOnManager() string {
	advice := "have networkd alone configure the ENIs: systemctl disable " + managerUnit
	if slices.Contains(f.Active, managerUnit) {
		advice += ", then ec2netctl takeover, which stops it and removes what it has set"
	}
	if len(f.Drivers) == 0 {
		return advice
	}
	return advice + "; or, to keep NetworkManager for other links, unmanaged-devices+=driver:" + strings.Join(f.Drivers, ";driver:") +
		" in the section [keyfile] of a file in /etc/NetworkManager/conf.d, and systemctl reload " + managerUnit
}

// adviceOnOld says how to remove amazon-ec2-net-utils. A package of ec2netd replaces it, so that
// only /run can contain files of it. dnf and apt would then remove ec2netd, which provides the old
// name; rpm and dpkg do not. If the old package is installed, ec2netd was installed without a
// package, and over one of its files.
func (f *Facts) adviceOnOld() string {
	if !slices.ContainsFunc(f.OldFiles, func(file string) bool { return !strings.HasPrefix(file, "/run/") }) {
		return "ec2netctl takeover, which removes what the package has left in /run; or reboot"
	}
	return "remove the package: dpkg --purge amazon-ec2-net-utils, rpm --erase amazon-ec2-net-utils, or rpm --erase ec2-net-utils; " +
		"then install ec2netd again, since the removal takes away its /usr/lib/systemd/network/80-ec2.network; then reboot"
}

// manager returns the evidence for NetworkManager: none if it runs and manages no ENI.
func (f *Facts) manager() []string {
	evidence := f.units(managerUnit)
	if !slices.Contains(f.Active, managerUnit) {
		return evidence
	}
	left := len(f.Links) > 0
	for _, link := range f.Links {
		managed, told := f.Managed[link]
		left = left && told && !managed
		if managed {
			evidence = append(evidence, "it manages "+link)
		}
	}
	if left {
		return nil
	}
	return evidence
}

// ifupdown returns the evidence for ifupdown, that is the ENIs that it has configured and those that
// it will configure, and the advice. A takeover stops units, but has nothing to stop after a manual
// ifup.
func (f *Facts) ifupdown() (evidence []string, advice string) {
	var byHand []string
	for _, link := range f.Raised {
		evidence = append(evidence, "it has configured "+link)
		if !slices.Contains(f.Active, networking) && !slices.Contains(f.Active, "ifup@"+unit.UnitNameEscape(link)+".service") {
			byHand = append(byHand, link)
		}
	}
	byUnit := len(byHand) < len(f.Raised)
	if slices.Contains(f.Enabled, networking) {
		for _, link := range f.Auto {
			evidence = append(evidence, networking+" is enabled, and configures "+link)
			byUnit = true
		}
	}
	if !byUnit {
		return evidence, "have networkd alone configure the ENIs: ifdown " + strings.Join(byHand, " ")
	}
	return evidence, "have networkd alone configure the ENIs: systemctl disable networking.service, then ec2netctl takeover, which stops it without leaving the ENIs down; " +
		"or, to keep ifupdown for other links, take the ENIs out of /etc/network/interfaces and reboot"
}

// clients returns the evidence for DHCP clients of a name that ifupdown has not started, and the
// commands that end them. Each client removes its configuration; dhcpcd would leave it with -x,
// because Debian configures it so. The daemon then restores what is missing.
func (f *Facts) clients(name string) (evidence, advice []string) {
	// There is one entry per process, with all its links.
	var processes []Client
	for _, c := range f.Clients {
		if c.Name != name || slices.Contains(f.Raised, c.Link) {
			continue
		}
		evidence = append(evidence, fmt.Sprintf("it runs for %s (%s)", c.Link, c.PIDFile))
		if i := slices.IndexFunc(processes, func(p Client) bool { return p.PIDFile == c.PIDFile }); i >= 0 {
			processes[i].Link += " " + c.Link
		} else {
			processes = append(processes, c)
		}
	}
	for _, c := range processes {
		family := ""
		if c.Family != "" {
			family = " " + c.Family
		}
		switch {
		case name == DHClient:
			advice = append(advice, fmt.Sprintf("dhclient%s -x -pf %s %s", family, c.PIDFile, c.Link))
		case c.PIDFile != dhcpcdAll:
			advice = append(advice, "dhcpcd"+family+" -k "+c.Link)
		case slices.Contains(f.Active, dhcpcdUnit):
			// systemd would stop it so that it leaves its configuration, because Debian configures
			// it so.
			advice = append(advice, "dhcpcd -k", "systemctl disable --now "+dhcpcdUnit)
		default:
			advice = append(advice, "dhcpcd -k")
		}
	}
	return evidence, advice
}

// units returns the active or enabled units with a prefix.
func (f *Facts) units(prefix string) []string {
	var evidence []string
	for _, unit := range slices.Compact(slices.Sorted(slices.Values(slices.Concat(f.Active, f.Enabled)))) {
		if !strings.HasPrefix(unit, prefix) {
			continue
		}
		how := "enabled, though it does not run now"
		if slices.Contains(f.Active, unit) {
			how = "active"
		}
		evidence = append(evidence, fmt.Sprintf("%s is %s", unit, how))
	}
	return evidence
}

// Holds reports whether ifupdown or NetworkManager has configured a link, and so may set it down
// when it gives it up.
func (f *Facts) Holds(link string) bool {
	return slices.Contains(f.Raised, link) || (f.Managed[link] && slices.Contains(f.Active, managerUnit))
}
