package conflict

import (
	"context"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/file"
)

// Link is an ENI's link.
type Link struct {
	Index     int
	Name, MAC string
}

// Looker collects the facts. Its zero value looks at the files of the system.
type Looker struct {
	// Root is put before every path; empty for the system.
	Root string
	// Units tells which units that patterns match are active. Nil for none.
	Units func(ctx context.Context, patterns []string) ([]string, error)
	// Drivers are those whose links are ENIs.
	Drivers []string

	active []string
	files  file.Reader
}

// unitDirs are the directories of networkd, udevRules those of udevd.
var (
	unitDirs  = []string{"/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network"}
	udevRules = []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"}
)

// generated is what amazon-ec2-net-utils 2 writes in 70-NAME.network.d.
var generated = []string{"eni.conf", "ec2net_alias.conf", "ec2net_policy_4.conf", "ec2net_policy_6.conf"}

// Look collects the facts of ENIs: a few directories, and one question to systemd. Where
// that does not answer, its last answer holds.
func (l *Looker) Look(ctx context.Context, links []Link) Facts {
	if l.Units != nil {
		if active, err := l.Units(ctx, Patterns); err == nil {
			l.active = slices.Sorted(slices.Values(active))
		}
	}
	f := Facts{Active: l.active, Managed: make(map[string]bool), Drivers: l.Drivers}
	for _, found := range l.below("/etc/systemd/system/*.wants", managerUnit, setupService, setupTimer, networking) {
		if unit := filepath.Base(found); !slices.Contains(f.Enabled, unit) && !l.masked("/etc/systemd/system/"+unit) {
			f.Enabled = append(f.Enabled, unit)
		}
	}
	for _, link := range links {
		f.Links = append(f.Links, link.Name)
		if said := l.read("/run/NetworkManager/devices/" + strconv.Itoa(link.Index)); said != "" {
			// Of one that its configuration leaves out it says neither (NetworkManager 1.52).
			f.Managed[link.Name] = managed(said)
		}
	}
	f.Raised, f.Auto, f.Clients = l.raised(links), l.Ifupdown(links), l.clients(links)
	f.Lowered = l.lowered(links, f.Raised)
	f.PolicyRouting = l.policyRouting(links)
	f.OldFiles = l.oldFiles()
	f.Unread = l.files.Unread()
	return f
}

// managed reports whether NetworkManager manages a device, by what it has written of it.
func managed(device string) bool {
	return slices.ContainsFunc(strings.Split(device, "\n"), func(line string) bool { return strings.TrimSpace(line) == "managed=true" })
}

// policyRouting are the files in which cloud-init has policy rules for an ENI: what it
// gives to netplan, and what it gives to networkd itself.
func (l *Looker) policyRouting(links []Link) []string {
	var found []string
	look := func(pattern, rules string) {
		for _, p := range l.glob(pattern) {
			text := l.read(p)
			if strings.Contains(text, rules) && slices.ContainsFunc(links, func(link Link) bool { return mentions(text, link) }) {
				found = append(found, p)
			}
		}
	}
	for _, dir := range []string{"/etc/netplan", "/run/netplan"} {
		look(dir+"/50-cloud-init.yaml", "routing-policy:")
	}
	for _, dir := range unitDirs {
		look(dir+"/10-cloud-init-*.network", "[RoutingPolicyRule]")
	}
	return found
}

// mentions tells whether a file is about a link, by its MAC address or its name.
func mentions(text string, link Link) bool {
	if strings.Contains(strings.ToLower(text), link.MAC) {
		return true
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n=:,\"'[]{}", r) })
	return slices.Contains(words, link.Name)
}

func (l *Looker) oldFiles() []string {
	var found []string
	// ec2-net-utils 1 has udev rules with which it starts scripts, 2 such that start units.
	for _, name := range []string{"99-vpc-policy-routes.rules", "53-ec2-network-interfaces.rules"} {
		for _, dir := range udevRules {
			file := filepath.Join(dir, name)
			if _, err := os.Lstat(l.at(file)); err != nil {
				continue
			}
			// The first one counts for udevd.
			if !l.masked(file) {
				found = append(found, file)
			}
			break
		}
	}
	found = append(found, l.glob("/usr/share/amazon-ec2-net-utils")...)
	return append(found, l.below("/run/systemd/network/70-*.network.d", generated...)...)
}

// below returns the files of some names in the directories that a pattern matches, by name.
// What has the directories is read once, and they are not: with a pattern for each name a
// look took several times as long.
func (l *Looker) below(pattern string, names ...string) []string {
	var found []string
	dirs := l.glob(pattern)
	for _, name := range names {
		for _, dir := range dirs {
			file := filepath.Join(dir, name)
			if _, err := os.Lstat(l.at(file)); err == nil {
				found = append(found, file)
			}
		}
	}
	return found
}

func (l *Looker) at(p string) string { return filepath.Join("/", l.Root, p) }

func (l *Looker) read(p string) string {
	text, err := l.files.Read(l.at(p))
	if err != nil {
		return "" // Unread tells of it
	}
	return text
}

// glob returns the paths, without Root, whose last part matches that of a pattern.
func (l *Looker) glob(pattern string) []string {
	dir, last := filepath.Split(pattern)
	if !strings.ContainsRune(last, '*') {
		if _, err := os.Lstat(l.at(pattern)); err != nil {
			return nil
		}
		return []string{pattern}
	}
	matches, _ := l.files.List(l.at(dir), last)
	for i, name := range matches {
		matches[i] = filepath.Join(dir, name)
	}
	return matches
}

// masked tells whether something is a link to /dev/null.
func (l *Looker) masked(p string) bool {
	target, err := os.Readlink(l.at(p))
	return err == nil && target == os.DevNull
}
