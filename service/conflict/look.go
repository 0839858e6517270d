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

// Link is the link of an ENI.
type Link struct {
	Index     int
	Name, MAC string
}

// Looker collects the facts. Its zero value reads the files of the system.
type Looker struct {
	// Root is prepended to every path; empty for the system.
	Root string
	// Units returns the active units that match patterns; nil for none.
	Units func(ctx context.Context, patterns []string) ([]string, error)
	// Drivers are the drivers whose links are ENIs.
	Drivers []string

	active []string
	files  file.Reader
}

// unitDirs are the directories of networkd, and udevRules those of udevd.
var (
	unitDirs  = []string{"/etc/systemd/network", "/run/systemd/network", "/usr/lib/systemd/network"}
	udevRules = []string{"/etc/udev/rules.d", "/run/udev/rules.d", "/usr/lib/udev/rules.d", "/lib/udev/rules.d"}
)

// generated is a file that amazon-ec2-net-utils 2 writes to 70-NAME.network.d.
var generated = []string{"eni.conf", "ec2net_alias.conf", "ec2net_policy_4.conf", "ec2net_policy_6.conf"}

// Look collects the facts about ENIs: it reads a few directories, and makes one call to
// systemd. If that does not answer, Look uses its last answer.
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
			// For a link that its configuration excludes it reports neither (NetworkManager
			// 1.52).
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

// managed reports whether NetworkManager manages a device, according to its state file.
func managed(device string) bool {
	return slices.ContainsFunc(strings.Split(device, "\n"), func(line string) bool { return strings.TrimSpace(line) == "managed=true" })
}

// policyRouting returns the files of cloud-init with policy rules for an ENI: those for
// netplan, and those for networkd itself.
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

// mentions reports whether a file refers to a link, by its MAC address or its name.
func mentions(text string, link Link) bool {
	if strings.Contains(strings.ToLower(text), link.MAC) {
		return true
	}
	words := strings.FieldsFunc(text, func(r rune) bool { return strings.ContainsRune(" \t\n=:,\"'[]{}", r) })
	return slices.Contains(words, link.Name)
}

func (l *Looker) oldFiles() []string {
	var found []string
	// ec2-net-utils 1 has udev rules that start scripts, version 2 has rules that start
	// units.
	for _, name := range []string{"99-vpc-policy-routes.rules", "53-ec2-network-interfaces.rules"} {
		for _, dir := range udevRules {
			file := filepath.Join(dir, name)
			if _, err := os.Lstat(l.at(file)); err != nil {
				continue
			}
			// udevd uses the first one.
			if !l.masked(file) {
				found = append(found, file)
			}
			break
		}
	}
	found = append(found, l.glob("/usr/share/amazon-ec2-net-utils")...)
	return append(found, l.below("/run/systemd/network/70-*.network.d", generated...)...)
}

// below returns the files with the given names in the directories that match a pattern, by
// name. It reads the parent of the directories once, and not the directories: a pattern for
// each name took several times as long.
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
		return "" // Unread has the reason
	}
	return text
}

// glob returns the paths, without Root, that match a pattern in their last part.
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

// masked reports whether a file is a symlink to /dev/null.
func (l *Looker) masked(p string) bool {
	target, err := os.Readlink(l.at(p))
	return err == nil && target == os.DevNull
}
