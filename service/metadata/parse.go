package metadata

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
	"unicode/utf8"
)

// Limits that no honest answer comes near. An instance has at most a few dozen
// ENIs and an ENI a few dozen addresses; they bound what a broken or hostile
// service can make the daemon hold. Cards and indexes have two digits, since that is
// what the numbers made of them keep apart (B1).
const (
	maxLines  = 4096
	maxNumber = 99
)

// The shapes of identifiers: a prefix and hexadecimal digits. They have been 8 and are 17,
// and may become more; an ENI ID is an alternative name too, which has 127 characters at
// most (ALTIFNAMSIZ), and part of a unit's name.
var (
	eniID      = regexp.MustCompile(`^eni-[0-9a-f]{1,64}$`)
	instanceID = regexp.MustCompile(`^i-[0-9a-f]{1,64}$`)
)

// lines splits a body into its lines. Only a newline ends a line, and only one at
// the end of the body is allowed: everything else that is not part of a value is
// left for the value's parser to refuse.
func lines(body string) ([]string, error) {
	body = strings.TrimSuffix(body, "\n")
	if body == "" {
		return nil, fmt.Errorf("the answer is empty")
	}
	all := strings.Split(body, "\n")
	if len(all) > maxLines {
		return nil, fmt.Errorf("%d lines, more than the %d that are believable", len(all), maxLines)
	}
	return all, nil
}

func one(body string) (string, error) {
	all, err := lines(body)
	if err != nil {
		return "", err
	}
	if len(all) != 1 {
		return "", fmt.Errorf("%d lines where one is expected", len(all))
	}
	return all[0], nil
}

// ParseMAC accepts a 48-bit MAC address with colons and returns it in lower case.
func ParseMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 || len(text) != 17 || text[2] != ':' {
		return "", fmt.Errorf("%q is not a MAC address", clip(text))
	}
	return mac.String(), nil
}

func parseMAC(body string) (string, error) {
	line, err := one(body)
	if err != nil {
		return "", err
	}
	return ParseMAC(line)
}

// parseKeys reads the listing of an ENI's directory: which of the keys exist that EC2 is known
// to have, and what else is listed. A line that is no printable text, or a listing without any
// known key, is no listing, as are web pages (D4): what it seems to lack is not gone.
func parseKeys(body string) (exists map[string]bool, unknown []string, err error) {
	all, err := lines(body)
	if err != nil {
		return nil, nil, err
	}
	exists = make(map[string]bool, len(all))
	for _, line := range all {
		switch {
		case isKnown(line):
			exists[line] = true
		case line == "" || !utf8.ValidString(line) || strings.ContainsFunc(line, func(r rune) bool { return !strconv.IsPrint(r) }):
			return nil, nil, fmt.Errorf("%q is not the name of a key", clip(line))
		default:
			unknown = append(unknown, line)
		}
	}
	if len(exists) == 0 {
		return nil, nil, fmt.Errorf("none of the %d lines is the name of a key that an ENI has: %q", len(all), clip(all[0]))
	}
	return exists, unknown, nil
}

// parseMACs reads the listing of the ENIs: the MAC addresses, and what else is listed.
func parseMACs(body string) (macs, unknown []string, err error) {
	all, err := lines(body)
	if err != nil {
		return nil, nil, err
	}
	for _, line := range all {
		mac, err := ParseMAC(strings.TrimSuffix(line, "/"))
		if err != nil {
			unknown = append(unknown, line)
			continue
		}
		macs = append(macs, mac)
	}
	if len(macs) == 0 {
		return nil, nil, fmt.Errorf("none of the %d lines is a MAC address: %q", len(all), clip(all[0]))
	}
	return macs, unknown, nil
}

func parseID(body string, shape *regexp.Regexp, what string) (string, error) {
	line, err := one(body)
	if err != nil {
		return "", err
	}
	if !shape.MatchString(line) {
		return "", fmt.Errorf("%q is not %s", clip(line), what)
	}
	return line, nil
}

func parseENIID(body string) (string, error)      { return parseID(body, eniID, "an ENI ID") }
func parseInstanceID(body string) (string, error) { return parseID(body, instanceID, "an instance ID") }

// hostnameLabel is one label of a hostname; maxHostname is what sethostname(2) takes.
var hostnameLabel = regexp.MustCompile(`^[A-Za-z0-9]([A-Za-z0-9-]{0,61}[A-Za-z0-9])?$`)

const maxHostname = 64

// parseHostname reads a hostname. A VPC whose DHCP options have several domain names
// gives all of them, with spaces between: the first counts. One that is too long for the
// kernel loses its domain, as networkd does it.
func parseHostname(body string) (string, error) {
	line, err := one(body)
	if err != nil {
		return "", err
	}
	name, _, _ := strings.Cut(line, " ")
	name = strings.TrimSuffix(name, ".")
	for label := range strings.SplitSeq(name, ".") {
		if !hostnameLabel.MatchString(label) {
			return "", fmt.Errorf("%q is not a hostname", clip(line))
		}
	}
	if len(name) > maxHostname {
		name, _, _ = strings.Cut(name, ".")
	}
	return name, nil
}

// parseNumber reads a device index or the number of a card.
func parseNumber(body string) (int, error) {
	line, err := one(body)
	if err != nil {
		return 0, err
	}
	number, err := strconv.ParseUint(line, 10, 16)
	if err != nil || number > maxNumber || (len(line) > 1 && line[0] == '0') {
		return 0, fmt.Errorf("%q is not a number from 0 to %d", clip(line), maxNumber)
	}
	return int(number), nil
}

// parseAddresses reads addresses of one family, one a line.
func parseAddresses(body string, ipv4 bool) ([]netip.Addr, error) {
	return parseEach(body, func(line string) (netip.Addr, error) {
		address, err := netip.ParseAddr(line)
		if err != nil || address.Is4() != ipv4 || address.Zone() != "" || !possible(address) {
			return netip.Addr{}, fmt.Errorf("%q is not %s address that an ENI can have", clip(line), family(ipv4))
		}
		return address, nil
	})
}

// parseDelegated reads delegated prefixes of one family in CIDR notation, one a line.
func parseDelegated(body string, ipv4 bool) ([]netip.Prefix, error) {
	return parseEach(body, func(line string) (netip.Prefix, error) {
		prefix, err := parsePrefix(line, ipv4)
		if err != nil || prefix.Bits() != delegatedBits(ipv4) {
			return netip.Prefix{}, fmt.Errorf("%q is not %s prefix of /%d that an ENI can have", clip(line), family(ipv4), delegatedBits(ipv4))
		}
		return prefix, nil
	})
}

// parseSubnets reads CIDR blocks of a subnet of one family, one a line.
func parseSubnets(body string, ipv4 bool) ([]netip.Prefix, error) {
	return parseEach(body, func(line string) (netip.Prefix, error) {
		prefix, err := parsePrefix(line, ipv4)
		if err != nil || !subnetSize(prefix) {
			return netip.Prefix{}, fmt.Errorf("%q is not %s CIDR block that a subnet can have", clip(line), family(ipv4))
		}
		return prefix, nil
	})
}

// parsePrefix reads a prefix without host bits, of addresses that are possible in a VPC.
func parsePrefix(line string, ipv4 bool) (netip.Prefix, error) {
	prefix, err := netip.ParsePrefix(line)
	if err != nil {
		return netip.Prefix{}, err
	}
	if prefix.Addr().Is4() != ipv4 || prefix.Masked() != prefix || !possible(prefix.Addr()) {
		return netip.Prefix{}, fmt.Errorf("%s is none of a VPC", prefix)
	}
	return prefix, nil
}

// parseEach reads one value a line, each of them once.
func parseEach[T interface {
	comparable
	fmt.Stringer
}](body string, parse func(string) (T, error)) ([]T, error) {
	all, err := lines(body)
	if err != nil {
		return nil, err
	}
	values, seen := make([]T, 0, len(all)), make(map[T]bool, len(all))
	for _, line := range all {
		value, err := parse(line)
		if err != nil {
			return nil, err
		}
		if seen[value] {
			return nil, fmt.Errorf("%s is listed twice", value)
		}
		seen[value] = true
		values = append(values, value)
	}
	return values, nil
}

func family(ipv4 bool) string {
	if ipv4 {
		return "an IPv4"
	}
	return "an IPv6"
}

// clip bounds what of a bad value is quoted in an error.
func clip(text string) string {
	const most = 80
	if len(text) > most {
		return text[:most] + "…"
	}
	return text
}
