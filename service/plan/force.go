package plan

import (
	"fmt"
	"net" //nolint:depguard // ParseMAC does no I/O
	"path"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/status"
)

// MatchDropIn is the file name of the generated drop-in that keeps a unit to its one
// link where somebody else's file hides [DropInName]: the unit that a generated one leads
// to matches every ENI.
const MatchDropIn = "40-ec2netd-match.conf"

// Text is a unit file or a drop-in that is read with it.
type Text struct {
	// Path under which it is found, and Source where that leads if it is a symbolic
	// link.
	Path, Source string
	Content      string
}

// Generated tells whether it was written by this daemon.
func (t *Text) Generated() bool {
	name := path.Base(t.Path)
	return path.Dir(path.Dir(t.Path)) == Directory && (name == DropInName || name == MatchDropIn || name == StartDropInName)
}

// UnitText is all that is read under the name of one .network or .link file.
type UnitText struct {
	// Path of the file that wins among the directories, empty if there is none.
	Path string
	// Masked: the file that wins is empty or leads to /dev/null, so that none is read.
	Masked bool
	// Texts in the order in which they are read, the unit file first.
	Texts []Text
	// MaskedDropIns are drop-ins that are empty or lead to /dev/null.
	MaskedDropIns []string
}

// Extent tells how far somebody else's files stand in the way of those of one link.
type Extent struct {
	// Taken is the file that takes the place of the whole .network unit, or empty.
	Taken string
	// NetworkHidden and LinkHidden are the files that hide the drop-in of the .network
	// unit and of the .link file, or empty.
	NetworkHidden, LinkHidden string
}

// GiveWay makes the plan one that leaves files of somebody else's their effect, and the
// other ENIs out of it.
//
// A file of the unit's own name has its full effect only without this daemon's drop-ins,
// which networkd would apply to it too (F2). Where the drop-in is hidden by one of its
// name, another one keeps the unit to its link. That one is always there for networkd,
// for whom a reload by the administrator comes before this daemon looks; udevd applies
// .link files to a link only when something happens to that.
func (p *Plan) GiveWay() {
	p.Files = nil
	for i := range p.ENIs {
		eni := &p.ENIs[i]
		name := eni.Link.Name
		if eni.Link.Taken != "" {
			eni.Files = slices.DeleteFunc(eni.Files, func(f File) bool {
				return f.of(NetworkPath(name)) || (eni.Link.Generator != "" && path.Dir(f.Path) == GeneratorDir(eni.Link.Generator))
			})
			eni.DropIn = nil
			// Nothing of the unit is to be kept, but the .link file is.
			eni.Keep, eni.KeepLink = false, eni.KeepLink || eni.Keep
		}
		eni.Files = keepToLink(eni.Files, NetworkPath(name), &eni.Link)
		if eni.Link.LinkHidden != "" {
			eni.Files = keepToLink(eni.Files, LinkPath(name), &eni.Link)
		}
		p.Files = append(p.Files, eni.Files...)
	}
	p.Files = append(p.Files, p.shared...)
}

func (f *File) of(unit string) bool { return f.Path == unit || path.Dir(f.Path) == unit+".d" }

// keepToLink adds the drop-in [MatchDropIn] of a unit, if it has files.
func keepToLink(files []File, unit string, link *Link) []File {
	first := slices.IndexFunc(files, func(f File) bool { return f.of(unit) })
	if first < 0 {
		return files
	}
	var content string
	if path.Ext(unit) == ".network" {
		match := networkMatch(link)
		content = match.Render()
	} else {
		match := linkMatch(link)
		content = match.Render()
	}
	return slices.Insert(files, first+1, File{Path: path.Join(unit+".d", MatchDropIn), Content: content})
}

// setting is one line of a unit file: a key of a section with its value.
type setting struct{ section, key, value string }

// settings are the lines of a unit file. What networkd would not understand is left
// out.
func settings(content string) []setting {
	var found []setting
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
			found = append(found, setting{section, strings.TrimSpace(key), strings.TrimSpace(value)})
		}
	}
	return found
}

// Match is how surely a unit matches a link: [Match] has conditions that only networkd
// knows the answer to.
type Match int

// The values of Match, the worse the smaller.
const (
	NoMatch Match = iota
	MayMatch
	Matches
)

// MatchOf tells whether a unit matches a link, see systemd.network(5). culprit is the
// text on account of which it does not, or may not, match.
func MatchOf(unit UnitText, link *Link) (match Match, culprit string) {
	conditions := make(map[string][]string)
	match = Matches
	for i := range unit.Texts {
		text := &unit.Texts[i]
		for _, s := range settings(text.Content) {
			switch {
			case s.section != "Match":
			case s.value == "":
				delete(conditions, s.key)
			default:
				conditions[s.key] = append(conditions[s.key], strings.Fields(s.value)...)
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

// evaluate: all conditions must hold. A unit without any is not read.
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
			holds = listed(values, []string{link.Address()}, sameMAC)
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

// Unmanaged tells which text of a unit has networkd leave the link alone, if one does.
func Unmanaged(unit UnitText) (culprit string) {
	for i := range unit.Texts {
		for _, s := range settings(unit.Texts[i].Content) {
			if s.section == "Link" && s.key == "Unmanaged" {
				culprit = ""
				if yes(s.value) {
					culprit = unit.Texts[i].Source
				}
			}
		}
	}
	return culprit
}

// Matching is a text of a unit that is not this daemon's and says what links the unit
// is for, or empty.
func Matching(unit UnitText) (culprit string) {
	for i := range unit.Texts {
		text := &unit.Texts[i]
		if i > 0 && !text.Generated() && slices.ContainsFunc(settings(text.Content), func(s setting) bool { return s.section == "Match" }) {
			culprit = text.Source
		}
	}
	return culprit
}

// lacking sums up gaps by what can take it away.
type lacking struct {
	address, address4, address6 bool
	// route4 and route6 are default routes of any table, metric4 and metric6 those of the main one.
	route4, route6, metric4, metric6 bool
	rule                             bool
	// oldRoute and oldAddress are still there.
	oldRoute, oldAddress bool
}

func lackingOf(gaps []status.Gap) lacking {
	var l lacking
	for _, gap := range gaps {
		ipv4, ipv6 := gap.Family == status.IPv4, gap.Family == status.IPv6
		switch {
		case gap.Kind == status.OtherMetric || gap.Kind == status.MainDefaultRoute:
			l.oldRoute = l.oldRoute || gap.StillThere
		case gap.StillThere:
			l.oldAddress = l.oldAddress || gap.Kind == status.Address
		case gap.Kind == status.Address:
			l.address, l.address4, l.address6 = true, l.address4 || ipv4, l.address6 || ipv6
		case gap.Kind == status.DefaultRoute:
			l.metric4, l.metric6 = l.metric4 || ipv4, l.metric6 || ipv6
			l.route4, l.route6 = l.route4 || ipv4, l.route6 || ipv6
		case gap.Kind == status.TableDefaultRoute:
			l.route4, l.route6 = l.route4 || ipv4, l.route6 || ipv6
		case gap.Kind == status.Rule:
			l.rule = true
		}
	}
	return l
}

// TakenAway names the text of a unit that is not this daemon's and explains gaps, and the line of
// it; empty if none does. shipped is the base unit as it is installed.
func TakenAway(unit UnitText, gaps []status.Gap, shipped string) (culprit, line string) {
	lacks := lackingOf(gaps)
	ipv4 := lacks.address4 || lacks.route4 || lacks.oldRoute
	ipv6 := lacks.address6 || lacks.route6
	something := ipv4 || ipv6 || lacks.rule

	// What counts is the last line of a key, but for lists, which an empty value clears.
	type place struct {
		text *Text
		setting
	}
	last := make(map[string]place)
	cleared := make(map[string]place)
	for i := range unit.Texts {
		text := &unit.Texts[i]
		for _, s := range settings(text.Content) {
			last[s.section+"."+s.key] = place{text, s}
			if s.section == "Network" && s.value == "" {
				cleared[s.key] = place{text, s}
			}
		}
		if text.Generated() {
			clear(cleared)
		}
	}
	blame := func(p place) bool {
		if culprit != "" || p.text == nil || p.text.Generated() || p.text.Source == shipped {
			return culprit != ""
		}
		culprit, line = p.text.Source, fmt.Sprintf("%s=%s in [%s]", p.key, p.value, p.section)
		return true
	}
	value := func(key string) (string, place) { return strings.ToLower(last[key].value), last[key] }
	when := func(lacking bool, key string, bad func(string) bool) {
		if v, p := value(key); lacking && p.text != nil && bad(v) {
			blame(p)
		}
	}
	whatever := func(string) bool { return true }
	oneOf := func(values ...string) func(string) bool {
		return func(v string) bool { return slices.Contains(values, v) }
	}

	when(something, "Link.Unmanaged", yes)
	when(something, "Link.ActivationPolicy", oneOf("manual", "always-down", "down"))
	if lacks.address {
		blame(cleared["Address"])
	}
	if lacks.route4 || lacks.route6 {
		blame(cleared["Gateway"])
	}
	when(ipv4, "Network.DHCP", func(v string) bool { return no(v) || v == "ipv6" || v == "" })
	if _, ok := last["Network.DHCP"]; !ok && ipv4 && len(unit.Texts) > 0 && unit.Texts[0].Source != shipped && culprit == "" {
		culprit, line = unit.Texts[0].Source, "no DHCP= in [Network]"
	}
	when(ipv6, "Network.DHCP", func(v string) bool { return no(v) || v == "" })
	when(ipv6, "Network.IPv6AcceptRA", no)
	when(ipv6, "Network.LinkLocalAddressing", oneOf("no", "false", "0", "off", "n", "f", "ipv4"))
	when(ipv6, "Link.MTUBytes", func(v string) bool {
		mtu, err := strconv.Atoi(v)
		return err == nil && mtu < 1280 // the least with which the kernel has IPv6
	})
	for _, key := range []string{"VRF", "Bridge", "Bond", "BindCarrier", "ConfigureWithoutCarrier"} {
		when(something, "Network."+key, whatever)
	}
	for _, key := range []string{"UseGateway", "UseRoutes"} {
		when(lacks.route4, "DHCPv4."+key, no)
		when(lacks.route6, "IPv6AcceptRA."+key, no)
	}
	for _, key := range []string{"RouteMetric", "RouteTable"} {
		when(lacks.metric4 || lacks.oldRoute, "DHCPv4."+key, whatever)
		when(lacks.metric6, "IPv6AcceptRA."+key, whatever)
	}
	for _, key := range []string{"AllowList", "DenyList"} {
		when(ipv4, "DHCPv4."+key, whatever)
	}
	for _, key := range []string{"RouterAllowList", "RouterDenyList", "DHCPv6Client"} {
		when(ipv6, "IPv6AcceptRA."+key, whatever)
	}
	when(lacks.address6, "DHCPv6.UseAddress", no)
	when(lacks.oldAddress, "Network.KeepConfiguration", func(v string) bool { return yes(v) || v == "static" })
	if text, kept := keeps(unit, gaps); text != nil {
		blame(place{text, kept})
	}
	return culprit, line
}

// keeps returns the line of a text that is not this daemon's by which a link keeps an address, of
// those that are still there.
func keeps(unit UnitText, gaps []status.Gap) (*Text, setting) {
	for i := range unit.Texts {
		text := &unit.Texts[i]
		if text.Generated() {
			continue
		}
		for _, s := range settings(text.Content) {
			address, _, _ := strings.Cut(s.value, "/")
			if s.key == "Address" && (s.section == "Network" || s.section == "Address") && slices.ContainsFunc(gaps, func(gap status.Gap) bool {
				return gap.StillThere && gap.Kind == status.Address && gap.Value == address
			}) {
				return text, s
			}
		}
	}
	return nil, setting{}
}

func yes(value string) bool {
	return slices.Contains([]string{"yes", "true", "1", "on", "y", "t"}, strings.ToLower(value))
}

func no(value string) bool {
	return slices.Contains([]string{"no", "false", "0", "off", "n", "f", "none"}, strings.ToLower(value))
}
