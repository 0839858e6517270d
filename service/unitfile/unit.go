// Package unitfile reads what unit files of systemd-networkd and systemd-udevd say, whoever has
// written them: .network and .link files with their drop-ins, see systemd.network(5) and
// systemd.link(5). It knows which file is in force, and for which links.
//
// It reads no file itself: package disk takes a [Tree] of the files, and everything here is a pure
// function of that. The package takes no decision about an ENI: package plan does.
package unitfile

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"ec2netd/service/dropin"
)

// Text is a unit file, or a drop-in that is read together with it.
type Text struct {
	// Path is the path under which the file is found. Source is the path that it leads to if it is a
	// symbolic link, and the same as Path otherwise.
	Path, Source string
	Content      string

	// of is Content with what has been parsed of it, nil for a text of no [Tree].
	of *Content
}

// Generated reports whether this daemon has written the file.
func (t *Text) Generated() bool {
	name := path.Base(t.Path)
	return path.Dir(path.Dir(t.Path)) == dropin.Directory && (name == dropin.FileName || name == dropin.MatchName || name == dropin.StartName)
}

// Settings returns the settings of the file in their order. Callers must not change them.
func (t *Text) Settings() []Setting {
	if t.of == nil {
		return Parse(t.Content)
	}
	return t.of.settings()
}

// Network returns the file as a .network drop-in, nil if it is empty. Callers must not change it.
func (t *Text) Network() *dropin.Network {
	if t.of == nil {
		return dropin.ParseNetwork(t.Content)
	}
	return t.of.network()
}

// Addresses returns the static addresses of the file.
func (t *Text) Addresses() []netip.Addr {
	var found []netip.Addr
	for _, s := range t.Settings() {
		text, _, _ := strings.Cut(s.Value, "/")
		if s.Key != "Address" {
			continue
		}
		if address, err := netip.ParseAddr(text); err == nil {
			found = append(found, address)
		}
	}
	return found
}

// Unit is everything that is read under the name of one .network or .link file.
type Unit struct {
	// Path is the path of the file that wins among the directories. It is empty if there is none.
	Path string
	// Masked reports whether that file is empty or leads to /dev/null, so that nothing is read.
	Masked bool
	// Texts are the files in the order in which they are read, the unit file first.
	Texts []Text
	// MaskedDropIns are drop-ins that are empty or lead to /dev/null.
	MaskedDropIns []string
}

// Setting is one line of a unit file: a key of a section with its value.
type Setting struct{ Section, Key, Value string }

// Parse returns the settings of a unit file. It skips what networkd would not understand.
func Parse(content string) []Setting {
	var found []Setting
	section, pending := "", ""
	for line := range strings.Lines(content) {
		line = pending + strings.TrimSpace(line)
		pending = ""
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if rest, ok := strings.CutSuffix(line, `\`); ok {
			pending = rest + " "
			continue
		}
		if line[0] == '[' {
			section = strings.Trim(line, "[]")
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			found = append(found, Setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return found
}

// Yes reports whether a value is a boolean that is true (systemd.syntax(7)).
func Yes(value string) bool {
	return slices.Contains([]string{"yes", "true", "1", "on", "y", "t"}, strings.ToLower(value))
}

// No reports whether a value is a boolean that is false, or "none".
func No(value string) bool {
	return slices.Contains([]string{"no", "false", "0", "off", "n", "f", "none"}, strings.ToLower(value))
}

// Unmanaged returns the file of the unit that tells networkd to leave the link alone, or an empty
// string.
func (u Unit) Unmanaged() (culprit string) {
	for i := range u.Texts {
		for _, s := range u.Texts[i].Settings() {
			if s.Section == "Link" && s.Key == "Unmanaged" {
				culprit = ""
				if Yes(s.Value) {
					culprit = u.Texts[i].Source
				}
			}
		}
	}
	return culprit
}

// Matching returns a drop-in of the unit that this daemon has not written and that says which links
// the unit is for, or an empty string.
func (u Unit) Matching() (culprit string) {
	for i := range u.Texts {
		text := &u.Texts[i]
		if i > 0 && !text.Generated() && slices.ContainsFunc(text.Settings(), func(s Setting) bool { return s.Section == "Match" }) {
			culprit = text.Source
		}
	}
	return culprit
}
