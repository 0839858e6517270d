package unitfile

import (
	"net" //nolint:depguard // ParseMAC does no I/O
	"path"
	"slices"
	"strings"
)

// Link is what [Match] sections can ask of a link, as far as it is known.
type Link struct {
	Name     string
	Altnames []string
	Driver   string
	// MAC is the permanent MAC address, and Address the present one.
	MAC, Address string
}

// Match is how surely a unit matches a link: [Match] has conditions to which only networkd knows the
// answer.
type Match int

// The values of Match, the worse the smaller.
const (
	NoMatch Match = iota
	MayMatch
	Matches
)

// Match reports whether the unit matches a link, see systemd.network(5). culprit is the file on
// account of which it does not, or may not, match.
func (u Unit) Match(link *Link) (match Match, culprit string) {
	conditions := make(map[string][]string)
	match = Matches
	for i := range u.Texts {
		text := &u.Texts[i]
		for _, s := range text.Settings() {
			switch {
			case s.Section != "Match":
			case s.Value == "":
				delete(conditions, s.Key)
			default:
				conditions[s.Key] = append(conditions[s.Key], strings.Fields(s.Value)...)
			}
		}
		now := evaluate(conditions, link)
		if now < match && !text.Generated() {
			culprit = text.Source
		}
		if now == Matches {
			culprit = ""
		}
		match = now
	}
	return match, culprit
}

// evaluate compares conditions with a link: all of them must hold. networkd ignores a unit without
// any.
func evaluate(conditions map[string][]string, link *Link) Match {
	if len(conditions) == 0 {
		return NoMatch
	}
	match := Matches
	for key, values := range conditions {
		holds := MayMatch
		switch key {
		case "Name":
			holds = listed(values, append([]string{link.Name}, link.Altnames...), glob)
		case "OriginalName":
			// The kernel's name is not known, but that anything will do.
			if slices.Contains(values, "*") {
				holds = Matches
			}
		case "Driver":
			holds = listed(values, []string{link.Driver}, glob)
		case "Type":
			holds = listed(values, []string{"ether"}, glob)
		case "MACAddress":
			holds = listed(values, []string{link.Address}, sameMAC)
		case "PermanentMACAddress": // that of a link that is no port is taken to be its present one
			holds = listed(values, []string{link.MAC}, sameMAC)
		}
		match = min(match, holds)
	}
	return match
}

func listed(values, names []string, same func(pattern, name string) bool) Match {
	inverted := strings.HasPrefix(values[0], "!")
	for i, value := range values {
		if i == 0 {
			value = strings.TrimPrefix(value, "!")
		}
		if slices.ContainsFunc(names, func(name string) bool { return same(value, name) }) {
			if inverted {
				return NoMatch
			}
			return Matches
		}
	}
	if inverted {
		return Matches
	}
	return NoMatch
}

func glob(pattern, name string) bool {
	matched, err := path.Match(pattern, name)
	return err == nil && matched
}

func sameMAC(text, mac string) bool {
	parsed, err := net.ParseMAC(text)
	return err == nil && parsed.String() == mac
}

// Sole reports whether a unit file, without its drop-ins, is for one link alone, by its MAC address
// or its name. What it says of that link it says of no other.
func (t *Text) Sole(link *Link) bool {
	sole := false
	for _, s := range t.Settings() {
		if s.Section != "Match" {
			continue
		}
		switch s.Key {
		case "MACAddress", "PermanentMACAddress":
			sole = sole || sameMAC(s.Value, link.MAC)
		case "Name":
			sole = sole || s.Value == link.Name
		}
	}
	return sole
}

// LeavesOut reports whether a drop-in can exclude ENIs from a unit file by their drivers: the file
// must not name drivers itself.
func (t *Text) LeavesOut() bool {
	return !slices.ContainsFunc(t.Settings(), func(s Setting) bool { return s.Section == "Match" && s.Key == "Driver" })
}
