// Package dropin models the unit files and drop-ins that the daemon generates as typed values. Each
// kind has a Render method, which returns its text, and a Parse function, which reads the text back.
//
// The package uses the terms of systemd.network(5) and systemd.link(5) and knows nothing about ENIs.
// Package plan decides what a value says, and package store writes its text. Package unitfile reads
// the unit files of others, except for the policy rules in them.
//
// Another version of the daemon may have written a file. Parsing is therefore tolerant: sections and
// keys may come in any order, and unknown sections, unknown keys and invalid values are skipped.
package dropin

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// author is the start of the first comment in every generated file.
const author = "Written by ec2netd"

// Ours reports whether the daemon has written the file with this text.
func Ours(text string) bool { return strings.HasPrefix(text, "# "+author) }

// Switch is a boolean setting that may be absent.
type Switch string

// The values of Switch. Unset leaves the setting to other files or to the default.
const (
	Unset Switch = ""
	Yes   Switch = "yes"
	No    Switch = "no"
)

// parseSwitch accepts the booleans of systemd.syntax(7).
func parseSwitch(text string) (Switch, error) {
	switch strings.ToLower(text) {
	case "yes", "y", "true", "t", "on", "1":
		return Yes, nil
	case "no", "n", "false", "f", "off", "0":
		return No, nil
	}
	return Unset, fmt.Errorf("%q is not a boolean", text)
}

// codec visits the keys of a file in the order of its text. A rendering codec writes each value that
// is set, and a parsing codec sets each value whose key it finds. Both run through the same function
// for a kind of file, so neither can know a key that the other does not.
type codec struct {
	// out is the text so far. It is nil in a parsing codec.
	out *strings.Builder
	// section is the section of the next keys. begun reports whether its header has been written: a
	// section without keys gets none.
	section string
	begun   bool
	// in are the settings to parse.
	in []setting
	// invalid reports whether some value was invalid.
	invalid bool
}

// setting is one line of a file: a key of a section and its value.
type setting struct{ section, key, value string }

// rendering returns a codec that writes a text with a comment at the top.
func rendering(comment ...string) *codec {
	c := &codec{out: &strings.Builder{}}
	for _, line := range comment {
		c.out.WriteString("# " + clean(line) + "\n")
	}
	return c
}

// parsing returns a codec that reads a text.
func parsing(text string) *codec {
	c := &codec{}
	each(text, func(settings []setting) { c.in = append(c.in, settings...) })
	return c
}

// each calls take with the settings of one section after the other.
func each(text string, take func([]setting)) {
	var settings []setting
	section := ""
	flush := func() {
		if len(settings) > 0 {
			take(settings)
		}
		settings = settings[:0]
	}
	for line := range strings.Lines(text) {
		line = strings.TrimSpace(line)
		if line == "" || line[0] == '#' || line[0] == ';' {
			continue
		}
		if line[0] == '[' {
			flush()
			section = ""
			if name, ok := strings.CutSuffix(line[1:], "]"); ok {
				section = name
			}
			continue
		}
		if key, value, ok := strings.Cut(line, "="); ok {
			settings = append(settings, setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	flush()
}

// begin starts a section. Two sections of the same name stay separate; the usual libraries for unit
// files would merge them (facts: unit-files).
func (c *codec) begin(section string) { c.section, c.begun = section, false }

// header writes the header of the section unless it has been written.
func (c *codec) header() {
	if c.out == nil || c.begun {
		return
	}
	if c.out.Len() > 0 {
		c.out.WriteByte('\n')
	}
	c.out.WriteString("[" + c.section + "]\n")
	c.begun = true
}

// fixed writes a key whose value is the same in every file of a kind, and parses nothing.
func (c *codec) fixed(key, value string) {
	if c.out == nil {
		return
	}
	c.header()
	c.out.WriteString(key)
	c.out.WriteByte('=')
	c.out.WriteString(clean(value))
	c.out.WriteByte('\n')
}

// values returns all values of a key in the section.
func (c *codec) values(key string) (found []string) {
	for i := range c.in {
		if s := &c.in[i]; s.section == c.section && s.key == key {
			found = append(found, s.value)
		}
	}
	return found
}

// value returns the last value of a key in the section, which is the one that counts.
func (c *codec) value(key string) (string, bool) {
	for i := len(c.in) - 1; i >= 0; i-- {
		if s := &c.in[i]; s.section == c.section && s.key == key {
			return s.value, true
		}
	}
	return "", false
}

// field handles a key that is absent for the zero value.
func field[T comparable](c *codec, key string, v *T, format func(T) string, parse func(string) (T, error)) {
	var absent T
	if c.out != nil {
		if *v != absent {
			c.fixed(key, format(*v))
		}
		return
	}
	text, ok := c.value(key)
	if !ok {
		return
	}
	parsed, err := parse(text)
	if err != nil || hasControl(text) {
		c.invalid = true
		return
	}
	*v = parsed
}

// text handles a key whose value is any text.
func text[T ~string](c *codec, key string, v *T) {
	field(c, key, v, func(t T) string { return string(t) }, func(s string) (T, error) { return T(s), nil })
}

// name handles a key whose value is any text, and which is written even if that is empty.
func (c *codec) name(key string, v *string) {
	if c.out != nil && *v == "" {
		c.fixed(key, "")
	}
	text(c, key, v)
}

func (c *codec) boolean(key string, v *Switch) {
	field(c, key, v, func(s Switch) string { return string(s) }, parseSwitch)
}

func (c *codec) number(key string, v *int) { field(c, key, v, strconv.Itoa, strconv.Atoi) }

func (c *codec) prefix(key string, v *netip.Prefix) {
	field(c, key, v, netip.Prefix.String, netip.ParsePrefix)
}

// list handles a key that is repeated for each of several values.
func list[T any](c *codec, key string, v *[]T, format func(T) string, parse func(string) (T, error)) {
	if c.out != nil {
		for _, value := range *v {
			c.fixed(key, format(value))
		}
		return
	}
	for _, text := range c.values(key) {
		if parsed, err := parse(text); err == nil && !hasControl(text) {
			*v = append(*v, parsed)
		}
	}
}

func same(text string) string { return text }

func notEmpty(text string) (string, error) {
	if text == "" {
		return "", errors.New("nothing")
	}
	return text, nil
}

// words handles a key whose value is a prefix and a list separated by spaces.
func (c *codec) words(key, prefix string, v *[]string) {
	if c.out != nil {
		if len(*v) > 0 {
			c.fixed(key, prefix+strings.Join(*v, " "))
		}
		return
	}
	if text, ok := c.value(key); ok && !hasControl(text) {
		if words := strings.Fields(strings.TrimPrefix(text, prefix)); len(words) > 0 {
			*v = slices.Clip(words)
		}
	}
}

// parseAddr parses an address without a zone, which networkd accepts nowhere.
func parseAddr(text string) (netip.Addr, error) {
	address, err := netip.ParseAddr(text)
	if err == nil && address.Zone() != "" {
		err = fmt.Errorf("%s has a zone", text)
	}
	return address, err
}

// clean panics if a value has a control character, which could end its line. All values are numbers,
// addresses or names that were checked before, so only a bug can trigger it.
func clean(value string) string {
	if hasControl(value) {
		panic(fmt.Sprintf("control character in a unit file: %q", value))
	}
	return value
}

func hasControl(text string) bool {
	return strings.ContainsFunc(text, func(r rune) bool { return r < ' ' || r == 0x7f })
}
