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

// Prefixes says what a delegated prefix of an ENI becomes on the host.
type Prefixes string

// The values of [ENI] Prefixes=.
const (
	// PrefixesRule: policy rules only; who uses the prefix is for others to say.
	PrefixesRule Prefixes = "rule"
	// PrefixesLocal: every address of the prefix is one of this host, without being
	// listed on the link.
	PrefixesLocal Prefixes = "local"
	// PrefixesAssign: every address of an IPv4 prefix is on the link. An IPv6 prefix
	// has too many and is local.
	PrefixesAssign Prefixes = "assign"
)

// Section is one [ENI] section: which ENIs it is for, and what it says of them.
type Section struct {
	// File and Line of its header.
	File string
	Line int

	// What an ENI must have for the section to hold: one of the values of each list
	// that is not empty.
	ENIIDs        []string
	MACs          []string
	DeviceIndexes []int
	NetworkCards  []int
	Drivers       []string
	Names         []string
	Primary       *bool

	// What the section says, nil where it says nothing.
	Managed          *bool
	DefaultRoute     *bool
	AlternativeNames *bool
	PrimaryRules     *bool
	Prefixes         *Prefixes
	// SecondaryAddresses and DNS; DNS is empty where the section says nothing.
	SecondaryAddresses *bool
	DNS                []netip.Addr
	FirewallMark       *dropin.Mark
}

// Settings are what the sections say of one ENI.
type Settings struct {
	// Managed: its .network unit is generated. [ENI] Managed=
	Managed bool
	// ManagedBy is where Managed was set last, "FILE:LINE", or empty.
	ManagedBy string
	// DefaultRoute: the ENI has default routes in the main table. [ENI] DefaultRoute=
	DefaultRoute bool
	// AlternativeNames: the ENI's link gets them. [ENI] AlternativeNames=
	AlternativeNames bool
	// PrimaryRules: the primary ENI has policy rules and a table of its own too.
	// [ENI] PrimaryRules=
	PrimaryRules bool
	// Prefixes is what delegated prefixes become. [ENI] Prefixes=
	Prefixes Prefixes
	// SecondaryAddresses: all addresses of the ENI are on its link, not the primary one of
	// each family alone (A12). [ENI] SecondaryAddresses=
	SecondaryAddresses bool
	// DNS are the servers in place of those of leases and routers (A10), none for not to
	// replace them. [ENI] DNS=
	DNS []netip.Addr
	// FirewallMark is the mark of packets that leave by the ENI whatever their source (B12),
	// the zero Mark for none. [ENI] FirewallMark=
	FirewallMark dropin.Mark
	// Undecided: a section that would say otherwise of Managed may or may not hold,
	// since what it asks for is not known yet.
	Undecided bool
}

// DefaultSettings hold where no section says otherwise.
func DefaultSettings() Settings {
	return Settings{Managed: true, DefaultRoute: true, AlternativeNames: true, Prefixes: PrefixesRule, SecondaryAddresses: true}
}

// Identity is what sections can ask of an ENI. Pointers and ENIID are nil and empty
// while the metadata has not told.
type Identity struct {
	ENIID       string
	MAC         string
	DeviceIndex *int
	NetworkCard *int
	Driver      string
	Name        string
	Primary     *bool
}

// For returns what the sections say of an ENI: of those that hold, a later one wins
// key by key.
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

// Holds reports whether a section is for an ENI, or may be: not all is known of it.
func (s *Section) Holds(id Identity) bool { return s.holds(id) != no }

// holds tells whether a section is for an ENI.
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
		// The pattern language of systemd negates a set with "!", that of Go with "^".
		matched, _ := path.Match(strings.ReplaceAll(pattern, "[!", "[^"), text)
		return matched
	})
}

// eniKeys is the table of the keys of [ENI]. Those that select take lists, as those
// of [Match] in systemd.network(5) do: a later line adds, an empty one clears.
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

// setENI sets a key of the last section. void tells that the section cannot hold any
// more: without a condition that was meant, it would be for ENIs that were not.
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

// parseBool reads a truth value as systemd.syntax(7) has it.
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

// eniID is as package metadata takes it from the service.
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
