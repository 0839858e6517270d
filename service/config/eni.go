package config

import (
	"fmt"
	"net"
	"net/netip"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/dropin"
)

// Prefixes says how the host uses a delegated prefix of an ENI.
type Prefixes string

// The values of [ENI] Prefixes=.
const (
	// PrefixesRule: only policy rules; other software can use the prefix.
	PrefixesRule Prefixes = "rule"
	// PrefixesLocal: every address of the prefix is local to this host, without being listed
	// on the link.
	PrefixesLocal Prefixes = "local"
	// PrefixesAssign: every address of an IPv4 prefix is on the link. An IPv6 prefix has too
	// many addresses, and is treated as with PrefixesLocal.
	PrefixesAssign Prefixes = "assign"
)

// Section is one [ENI] section: its conditions and its settings.
type Section struct {
	// File and Line of its header.
	File string
	Line int

	// Conditions: an ENI must have one of the values of each list that is not empty.
	ENIIDs        []string
	MACs          []string
	DeviceIndexes []int
	NetworkCards  []int
	Drivers       []string
	Names         []string
	Primary       *bool

	// Settings, nil if the section does not set them.
	Managed          *bool
	DefaultRoute     *bool
	AlternativeNames *bool
	PrimaryRules     *bool
	Prefixes         *Prefixes
	// SecondaryAddresses and DNS; DNS is empty if the section does not set it.
	SecondaryAddresses *bool
	DNS                []netip.Addr
	FirewallMark       *dropin.Mark
}

// Settings are the settings of one ENI, from all sections.
type Settings struct {
	// Managed: ec2netd generates its .network unit. [ENI] Managed=
	Managed bool
	// ManagedBy is the line that has set Managed last, "FILE:LINE", or empty.
	ManagedBy string
	// DefaultRoute: the ENI has default routes in the main table. [ENI] DefaultRoute=
	DefaultRoute bool
	// AlternativeNames: the ENI's link gets its alternative names. [ENI] AlternativeNames=
	AlternativeNames bool
	// PrimaryRules: the primary ENI has policy rules and a table of its own too. [ENI]
	// PrimaryRules=
	PrimaryRules bool
	// Prefixes says how the host uses delegated prefixes. [ENI] Prefixes=
	Prefixes Prefixes
	// SecondaryAddresses: all addresses of the ENI are on its link, not only the primary
	// address of each family (A12). [ENI] SecondaryAddresses=
	SecondaryAddresses bool
	// DNS are the servers in place of those from leases and routers (A10), none to use the
	// latter. [ENI] DNS=
	DNS []netip.Addr
	// FirewallMark is the mark of packets that leave through the ENI whatever their source
	// (B12), the zero Mark for none. [ENI] FirewallMark=
	FirewallMark dropin.Mark
	// Undecided: it depends on unknown metadata whether a section with another value of
	// Managed applies.
	Undecided bool
}

// DefaultSettings apply if no section sets anything else.
func DefaultSettings() Settings {
	return Settings{Managed: true, DefaultRoute: true, AlternativeNames: true, Prefixes: PrefixesRule, SecondaryAddresses: true}
}

// Identity contains the properties of an ENI that conditions can match. Pointers are nil and
// ENIID is empty while the metadata is not known.
type Identity struct {
	ENIID       string
	MAC         string
	DeviceIndex *int
	NetworkCard *int
	Driver      string
	Name        string
	Primary     *bool
}

// For returns the settings of an ENI: if several sections apply, the later one takes
// precedence, key by key.
func For(all []Section, id Identity) Settings {
	settings := DefaultSettings()
	undecided := false
	for i := range all {
		s := &all[i]
		switch s.holds(id) {
		case yes:
			s.apply(&settings)
			undecided = undecided && s.Managed == nil
		case unknown:
			undecided = undecided || (s.Managed != nil && *s.Managed != settings.Managed)
		}
	}
	settings.Undecided = undecided
	return settings
}

func (s *Section) apply(settings *Settings) {
	if s.Managed != nil {
		settings.Managed, settings.ManagedBy = *s.Managed, fmt.Sprintf("%s:%d", s.File, s.Line)
	}
	if s.DefaultRoute != nil {
		settings.DefaultRoute = *s.DefaultRoute
	}
	if s.AlternativeNames != nil {
		settings.AlternativeNames = *s.AlternativeNames
	}
	if s.PrimaryRules != nil {
		settings.PrimaryRules = *s.PrimaryRules
	}
	if s.Prefixes != nil {
		settings.Prefixes = *s.Prefixes
	}
	if s.SecondaryAddresses != nil {
		settings.SecondaryAddresses = *s.SecondaryAddresses
	}
	if len(s.DNS) > 0 {
		settings.DNS = s.DNS
	}
	if s.FirewallMark != nil {
		settings.FirewallMark = *s.FirewallMark
	}
}

type answer int

const (
	no answer = iota
	yes
	unknown
)

// Holds reports whether a section applies to an ENI, or may apply because not all is known
// of it.
func (s *Section) Holds(id Identity) bool { return s.holds(id) != no }

// holds reports whether a section applies to an ENI.
func (s *Section) holds(id Identity) answer {
	result := yes
	ask := func(asked, known, match bool) {
		switch {
		case !asked || result == no:
		case !known:
			result = unknown
		case !match:
			result = no
		}
	}
	number := func(wanted []int, value *int) {
		ask(len(wanted) > 0, value != nil, value != nil && slices.Contains(wanted, *value))
	}
	ask(len(s.ENIIDs) > 0, id.ENIID != "", slices.Contains(s.ENIIDs, id.ENIID))
	ask(len(s.MACs) > 0, true, slices.Contains(s.MACs, id.MAC))
	number(s.DeviceIndexes, id.DeviceIndex)
	number(s.NetworkCards, id.NetworkCard)
	ask(len(s.Drivers) > 0, true, globbed(s.Drivers, id.Driver))
	ask(len(s.Names) > 0, true, globbed(s.Names, id.Name))
	ask(s.Primary != nil, id.Primary != nil, id.Primary != nil && s.Primary != nil && *s.Primary == *id.Primary)
	return result
}

func globbed(patterns []string, text string) bool {
	return slices.ContainsFunc(patterns, func(pattern string) bool {
		// systemd's patterns negate a set with "!", those of Go with "^".
		matched, _ := path.Match(strings.ReplaceAll(pattern, "[!", "[^"), text)
		return matched
	})
}

// eniKeys is the table of the keys of [ENI]. Conditions take lists, as in [Match] of
// systemd.network(5): a later line adds to the list, an empty one clears it.
var eniKeys = map[string]struct {
	selects bool
	set     func(*Section, string) error
}{
	"ENIID":       {true, listOf(func(s *Section) *[]string { return &s.ENIIDs }, parseENIID)},
	"MACAddress":  {true, listOf(func(s *Section) *[]string { return &s.MACs }, parseMAC)},
	"DeviceIndex": {true, listOf(func(s *Section) *[]int { return &s.DeviceIndexes }, parseNumber)},
	"NetworkCard": {true, listOf(func(s *Section) *[]int { return &s.NetworkCards }, parseNumber)},
	"Driver":      {true, listOf(func(s *Section) *[]string { return &s.Drivers }, parseGlob)},
	"Name":        {true, listOf(func(s *Section) *[]string { return &s.Names }, parseGlob)},
	"Primary":     {true, boolean(func(s *Section) **bool { return &s.Primary })},

	"Managed":          {false, boolean(func(s *Section) **bool { return &s.Managed })},
	"DefaultRoute":     {false, boolean(func(s *Section) **bool { return &s.DefaultRoute })},
	"AlternativeNames": {false, boolean(func(s *Section) **bool { return &s.AlternativeNames })},
	"PrimaryRules":     {false, boolean(func(s *Section) **bool { return &s.PrimaryRules })},
	"Prefixes":         {false, setPrefixes},

	"SecondaryAddresses": {false, boolean(func(s *Section) **bool { return &s.SecondaryAddresses })},
	"DNS":                {false, listOf(func(s *Section) *[]netip.Addr { return &s.DNS }, parseServer)},
	"FirewallMark":       {false, setMark},
}

// setENI sets a key of the last section. void reports that the section is void: without one
// of its conditions it would apply to the wrong ENIs.
func setENI(s *Section, key, value string) (void bool, err error) {
	known, ok := eniKeys[key]
	if !ok {
		return true, fmt.Errorf("there is no such key in [ENI]; the whole section is ignored, since the key may have said which ENIs it is for")
	}
	if err := known.set(s, value); err != nil {
		if known.selects {
			return true, fmt.Errorf("%w; the whole section is ignored, since it does not tell any more which ENIs it is for", err)
		}
		return false, fmt.Errorf("%w; the line is ignored", err)
	}
	return false, nil
}

func listOf[T any](field func(*Section) *[]T, parse func(string) (T, error)) func(*Section, string) error {
	return func(s *Section, value string) error {
		if value == "" {
			*field(s) = nil
			return nil
		}
		for word := range strings.FieldsSeq(value) {
			parsed, err := parse(word)
			if err != nil {
				return err
			}
			*field(s) = append(*field(s), parsed)
		}
		return nil
	}
}

func boolean(field func(*Section) **bool) func(*Section, string) error {
	return func(s *Section, value string) error {
		*field(s) = nil
		if value == "" {
			return nil
		}
		truth, err := parseBool(value)
		if err != nil {
			return err
		}
		*field(s) = &truth
		return nil
	}
}

// parseBool parses a boolean of systemd.syntax(7).
func parseBool(text string) (bool, error) {
	switch strings.ToLower(text) {
	case "1", "yes", "y", "true", "t", "on":
		return true, nil
	case "0", "no", "n", "false", "f", "off":
		return false, nil
	}
	return false, fmt.Errorf("%q is neither yes nor no", text)
}

func setPrefixes(s *Section, value string) error {
	s.Prefixes = nil
	if value == "" {
		return nil
	}
	mode := Prefixes(value)
	if mode != PrefixesRule && mode != PrefixesLocal && mode != PrefixesAssign {
		return fmt.Errorf("%q is not rule, local or assign", value)
	}
	s.Prefixes = &mode
	return nil
}

func setMark(s *Section, value string) error {
	s.FirewallMark = nil
	if value == "" {
		return nil
	}
	mark, err := dropin.ParseMark(value)
	if err != nil {
		return err
	}
	s.FirewallMark = &mark
	return nil
}

// eniID matches the ENI IDs that package metadata accepts from the service.
var eniID = regexp.MustCompile(`^eni-[0-9a-f]{1,64}$`)

func parseENIID(text string) (string, error) {
	if !eniID.MatchString(text) {
		return "", fmt.Errorf("%q is not an ENI ID like eni-0123456789abcdef0", text)
	}
	return text, nil
}

func parseMAC(text string) (string, error) {
	mac, err := net.ParseMAC(text)
	if err != nil || len(mac) != 6 {
		return "", fmt.Errorf("%q is not a MAC address like 02:00:00:00:00:01", text)
	}
	return mac.String(), nil
}

func parseNumber(text string) (int, error) {
	number, err := strconv.ParseUint(text, 10, 16)
	if err != nil {
		return 0, fmt.Errorf("%q is not a number", text)
	}
	return int(number), nil
}

func parseServer(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err != nil || address.Zone() != "" || address.IsUnspecified() || address.IsMulticast() {
		return netip.Addr{}, fmt.Errorf("%q is not the address of a DNS server", text)
	}
	return address.Unmap(), nil
}

func parseGlob(text string) (string, error) {
	if _, err := path.Match(text, ""); err != nil || strings.ContainsAny(text, "/") || strings.HasPrefix(text, "!") {
		return "", fmt.Errorf("%q is not a pattern like ens* or ens[!5]", text)
	}
	return text, nil
}
