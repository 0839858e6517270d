package main

import (
	"fmt"
	"net/netip"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"ec2netd/service/config"
	"ec2netd/service/file"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// resolvConf is what /etc/resolv.conf says, and what systemd-resolved knows.
type resolvConf struct {
	// servers are those that it names, known the ones of all links.
	servers, known []string
}

// readResolvConf reads both; what cannot be read names none.
func (c *ctl) readResolvConf() resolvConf {
	return resolvConf{
		servers: nameServers(filepath.Join("/", c.root, "etc/resolv.conf")),
		known:   nameServers(filepath.Join("/", c.root, "run/systemd/resolve/resolv.conf")),
	}
}

// nameServers are those that a file names, see resolv.conf(5).
func nameServers(name string) []string {
	text, err := file.Read(name, file.Limit)
	if err != nil {
		return nil
	}
	var servers []string
	for line := range strings.Lines(text) {
		if fields := strings.Fields(line); len(fields) > 1 && fields[0] == "nameserver" {
			servers = append(servers, fields[1])
		}
	}
	return servers
}

// resolvConf says that programs which read /etc/resolv.conf ask servers that no ENI has told of,
// as where dhclient, NetworkManager or cloud-init has written it once and nobody does any more.
func (d *diagnosis) resolvConf(r resolvConf) {
	var stale []string
	for _, server := range r.servers {
		address, err := netip.ParseAddr(server)
		if err != nil || (!address.IsLoopback() && !slices.Contains(r.known, server)) {
			stale = append(stale, server)
		}
	}
	switch {
	case len(r.known) == 0:
		// resolved does not run, or no ENI has told of a server.
	case len(r.servers) == 0:
		d.warn("dns", linkResolvConf, "/etc/resolv.conf names no server, though the ENIs have told of %s", strings.Join(r.known, ", "))
	case len(stale) > 0:
		d.warn("dns", "nothing, if that is on purpose; else: "+linkResolvConf,
			"/etc/resolv.conf names servers that no ENI has told of: %s; these are %s", strings.Join(stale, ", "), strings.Join(r.known, ", "))
	default:
		d.ok("dns", "/etc/resolv.conf leads to the name servers of the ENIs")
	}
}

// linkResolvConf makes systemd-resolved the one who is asked, see systemd-resolved.service(8).
const linkResolvConf = "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"

// unmatched are the drop-ins of the administrator for links that no ENI has the name of: paths of
// directories.
func (c *ctl) unmatched(enis []string) []string {
	var found []string
	for _, kind := range []string{"network", "link"} {
		names, _ := file.List(filepath.Join("/", c.root, adminUnits), "70-*."+kind+".d")
		for _, name := range names {
			link := strings.TrimSuffix(strings.TrimPrefix(name, "70-"), "."+kind+".d")
			if own := path.Base(plan.NetworkPath(link)); slices.Contains(enis, link) || (kind == "network" && name != own+".d") {
				continue
			}
			// One of the administrator's own units has drop-ins too.
			if units, _ := file.List(filepath.Join("/", c.root, adminUnits), strings.TrimSuffix(name, ".d")); len(units) > 0 {
				continue
			}
			found = append(found, path.Join("/", adminUnits, name))
		}
	}
	return found
}

// adminUnits are the administrator's unit files of networkd and udevd.
const adminUnits = "etc/systemd/network"

// unmatched says which drop-ins have no effect.
func (d *diagnosis) unmatched(dirs []string) {
	for _, dir := range dirs {
		link, kind, _ := strings.Cut(strings.TrimPrefix(path.Base(dir), "70-"), ".")
		const name = "NAME"
		move := fmt.Sprintf("mv -T %s %s && ", dir, path.Join(path.Dir(dir), "70-"+name+"."+kind))
		where := ", with the name of that one's link (see ec2netctl status)"
		if kind == "link.d" {
			// udevd applies a .link file with "add" alone (facts: link-files).
			move += "udevadm control --reload && udevadm trigger --action=add /sys/class/net/" + name
			where += "; other programs take the last command for a link that comes, the next boot does without"
		} else {
			move += "networkctl reload"
		}
		d.warn("file", "if it is for another ENI: "+move+where+"; else: rm -r "+dir,
			"%s has no effect as long as no ENI has the name %s", dir, link)
	}
}

// forNone are the sections of the configuration that hold for no ENI, as FILE:LINE.
func forNone(sections []config.Section, enis []config.Identity) []string {
	var found []string
	for i := range sections {
		if !slices.ContainsFunc(enis, sections[i].Holds) {
			found = append(found, fmt.Sprintf("%s:%d", sections[i].File, sections[i].Line))
		}
	}
	return found
}

// identities are what sections can ask of ENIs, by the state and the drivers of their links.
func identities(s *state.State, drivers map[string]string) []config.Identity {
	if s == nil {
		return nil
	}
	number := func(n int) *int {
		if n == state.Unknown {
			return nil
		}
		return &n
	}
	all := make([]config.Identity, 0, len(s.Interfaces))
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		all = append(all, config.Identity{
			ENIID: e.ENIID, MAC: e.MAC, Name: e.Name, Driver: drivers[e.Name], Primary: &e.Primary,
			DeviceIndex: number(e.DeviceIndex), NetworkCard: number(e.NetworkCard),
		})
	}
	return all
}

// sections says which of them have no effect.
func (d *diagnosis) sections(unused []string) {
	for _, section := range unused {
		d.warn("configuration", "nothing, if such an ENI is still to come; else correct what it asks for (see ec2netctl status --json=pretty), then: systemctl reload ec2netd",
			"the [ENI] section at %s holds for no ENI", section)
	}
}
