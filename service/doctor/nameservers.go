package doctor

import (
	"net/netip"
	"path/filepath"
	"slices"
	"strings"

	"ec2netd/service/file"
)

// NameServers are those that /etc/resolv.conf names, and those that systemd-resolved knows.
type NameServers struct {
	// Asked are those of /etc/resolv.conf, Known the ones of all links.
	Asked, Known []string
}

// readNameServers reads both; what cannot be read names none.
func readNameServers(root string) NameServers {
	return NameServers{
		Asked: namedBy(filepath.Join("/", root, "etc/resolv.conf")),
		Known: namedBy(filepath.Join("/", root, "run/systemd/resolve/resolv.conf")),
	}
}

// namedBy returns the servers that a file names, see resolv.conf(5).
func namedBy(name string) []string {
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

// linkResolvConf leads all programs to systemd-resolved, see systemd-resolved.service(8).
const linkResolvConf = "ln -sf ../run/systemd/resolve/stub-resolv.conf /etc/resolv.conf"

// nameServers judges whether programs that read /etc/resolv.conf ask servers that no ENI has told of.
// dhclient, NetworkManager or cloud-init may have written it once, and nobody since.
func nameServers(f *Facts) []Finding {
	s := &f.NameServers
	var stale []string
	for _, server := range s.Asked {
		address, err := netip.ParseAddr(server)
		if err != nil || (!address.IsLoopback() && !slices.Contains(s.Known, server)) {
			stale = append(stale, server)
		}
	}
	switch {
	case len(s.Known) == 0:
		// resolved does not run, or no ENI has told of a server.
		return nil
	case len(s.Asked) == 0:
		return []Finding{warning(DNS, linkResolvConf, "/etc/resolv.conf names no server, though the ENIs have told of %s", strings.Join(s.Known, ", "))}
	case len(stale) > 0:
		return []Finding{warning(DNS, "nothing, if that is on purpose; else: "+linkResolvConf,
			"/etc/resolv.conf names servers that no ENI has told of: %s; these are %s", strings.Join(stale, ", "), strings.Join(s.Known, ", "))}
	default:
		return []Finding{ok(DNS, "/etc/resolv.conf leads to the name servers of the ENIs")}
	}
}
