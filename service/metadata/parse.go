package metadata

import (
	"fmt"
	"net"
	"net/netip"
	"regexp"
	"strconv"
	"strings"
)

// Limits that no honest answer comes near. An instance has at most a few dozen
// ENIs and an ENI a few dozen addresses; they bound what a broken or hostile
// service can make the daemon hold. Cards and indexes have two digits, since that is
// what the numbers made of them keep apart (B1).
const (
	maxLines  = 4096
	maxNumber = 99
)

// The shapes of identifiers: a prefix and 8 (old) or 17 hexadecimal digits.
var (
	eniID      = regexp.MustCompile(`^eni-([0-9a-f]{8}|[0-9a-f]{17})$`)
	instanceID = regexp.MustCompile(`^i-([0-9a-f]{8}|[0-9a-f]{17})$`)
	keyName    = regexp.MustCompile(`^[a-z0-9-]{1,64}/?$`)
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

// parseKeys reads the listing of an ENI's directory: which keys exist.
func parseKeys(body string) (map[string]bool, error) {
	all, err := lines(body)
	if err != nil {
		return nil, err
	}
	keys := make(map[string]bool, len(all))
	for _, line := range all {
		if !keyName.MatchString(line) {
			return nil, fmt.Errorf("%q is not the name of a key", clip(line))
		}
		keys[strings.TrimSuffix(line, "/")] = true
	}
	return keys, nil
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

// parseAddresses reads unicast addresses of one family, one a line.
func parseAddresses(body string, ipv4 bool) ([]netip.Addr, error) {
	all, err := lines(body)
	if err != nil {
		return nil, err
	}
	addresses := make([]netip.Addr, 0, len(all))
	seen := make(map[netip.Addr]bool, len(all))
	for _, line := range all {
		address, err := netip.ParseAddr(line)
		if err != nil || address.Is4() != ipv4 || address.Zone() != "" || address.Is4In6() ||
			address.IsUnspecified() || address.IsLoopback() || address.IsMulticast() || address.IsLinkLocalUnicast() {
			return nil, fmt.Errorf("%q is not %s address that an ENI can have", clip(line), family(ipv4))
		}
		if seen[address] {
			return nil, fmt.Errorf("%s is listed twice", address)
		}
		seen[address] = true
		addresses = append(addresses, address)
	}
	return addresses, nil
}

// parsePrefixes reads prefixes of one family in CIDR notation, one a line, with no
// host bits.
func parsePrefixes(body string, ipv4 bool) ([]netip.Prefix, error) {
	all, err := lines(body)
	if err != nil {
		return nil, err
	}
	prefixes := make([]netip.Prefix, 0, len(all))
	seen := make(map[netip.Prefix]bool, len(all))
	for _, line := range all {
		prefix, err := netip.ParsePrefix(line)
		// A prefix of under 8 bits would be a route or rule for much of the world.
		if err != nil || prefix.Addr().Is4() != ipv4 || prefix.Addr().Is4In6() || prefix.Masked() != prefix ||
			prefix.Bits() < 8 || prefix.Addr().IsLoopback() || prefix.Addr().IsMulticast() || prefix.Addr().IsLinkLocalUnicast() {
			return nil, fmt.Errorf("%q is not %s prefix that a subnet or an ENI can have", clip(line), family(ipv4))
		}
		if seen[prefix] {
			return nil, fmt.Errorf("%s is listed twice", prefix)
		}
		seen[prefix] = true
		prefixes = append(prefixes, prefix)
	}
	return prefixes, nil
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
