package doctor

import (
	"strconv"
	"strings"
)

// systemdVersion judges the version of systemd, see the tables in service/docs/how-it-works.md.
func systemdVersion(f *Facts) []Finding {
	major, minor := parseVersion(f.Systemd)
	switch {
	case f.Systemd == "":
		return []Finding{warning(SystemdVersion, "see systemctl --version; ec2netd needs 252 or later", "its version could not be asked for")}
	case major < 252:
		return []Finding{problem(SystemdVersion, "ec2netd needs 252 or later", "%s is too old", f.Systemd)}
	case major < 256:
		return []Finding{ok(SystemdVersion, "%s: the first change of the primary ENI after its first boot costs its IPv6 some 0.1 s; addresses and next hops of others do not survive a change of their ENI", f.Systemd)}
	case major == 257 && minor < 3:
		return []Finding{warning(SystemdVersion, "update to 257.3 or later", "%s sets policy rules late", f.Systemd)}
	case major >= 261:
		return []Finding{ok(SystemdVersion, "%s: does not read a unit that has a masked drop-in; can keep others from the metadata service, ec2netd asks systemd-imdsd then", f.Systemd)}
	default:
		return []Finding{ok(SystemdVersion, "%s", f.Systemd)}
	}
}

// nextHopsKept is the version of systemd that knows ManageForeignNextHops= (F6).
const nextHopsKept = 256

// nextHops warns of a networkd that deletes the next hop objects of others.
func nextHops(f *Facts) []Finding {
	if major, _ := parseVersion(f.Systemd); f.NextHops == 0 || major >= nextHopsKept {
		return nil
	}
	return []Finding{warning(NextHopObjects, "have routes without them, in FRR by \"no zebra nexthop kernel enable\" and, for static ones, \"onlink\"; restart it and remove what it has left: "+
		"\"ip nexthop flush protocol 11\". Or update to systemd 256 or later",
		"%d of the next hops (ip nexthop) are others': networkd %s deletes them when it configures a link", f.NextHops, f.Systemd)}
}

// parseVersion returns the version and the number of the stable update, as in "257.13-1~deb13u1",
// "v252.39" or "systemd 262.1"; 0 for what is not there.
func parseVersion(text string) (major, minor int) {
	digits := func(s string) (int, string) {
		end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(s)
		}
		n, _ := strconv.Atoi(s[:end])
		return n, s[end:]
	}
	text = strings.TrimLeftFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	major, rest := digits(text)
	if update, found := strings.CutPrefix(rest, "."); found {
		minor, _ = digits(update)
	}
	return major, minor
}
