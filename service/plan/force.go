package plan

import (
	"fmt"
	"path"
	"slices"
	"strconv"
	"strings"

	"ec2netd/service/dropin"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// MatchDropIn is [dropin.MatchName].
const MatchDropIn = dropin.MatchName

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
				return f.of(NetworkPath(name)) || (eni.Link.Generator != "" && path.Dir(f.Path) == unitfile.GeneratorDir(eni.Link.Generator))
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

// Matchable is what unit files can ask of a link.
func (l *Link) Matchable() *unitfile.Link {
	return &unitfile.Link{Name: l.Name, Altnames: l.Altnames, Driver: l.Driver, MAC: l.MAC, Address: l.Address()}
}

// TakenAway names the text of a unit that is not this daemon's and explains gaps, and the line of
// it; empty if none does. shipped is the base unit as it is installed.
func TakenAway(unit unitfile.Unit, gaps []status.Gap, shipped string) (culprit, line string) {
	lacks := lackingOf(gaps)
	ipv4 := lacks.address4 || lacks.route4 || lacks.oldRoute
	ipv6 := lacks.address6 || lacks.route6
	something := ipv4 || ipv6 || lacks.rule

	// What counts is the last line of a key, but for lists, which an empty value clears.
	type place struct {
		text *unitfile.Text
		unitfile.Setting
	}
	last := make(map[string]place)
	cleared := make(map[string]place)
	for i := range unit.Texts {
		text := &unit.Texts[i]
		for _, s := range text.Settings() {
			last[s.Section+"."+s.Key] = place{text, s}
			if s.Section == "Network" && s.Value == "" {
				cleared[s.Key] = place{text, s}
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
		culprit, line = p.text.Source, fmt.Sprintf("%s=%s in [%s]", p.Key, p.Value, p.Section)
		return true
	}
	value := func(key string) (string, place) { return strings.ToLower(last[key].Value), last[key] }
	when := func(lacking bool, key string, bad func(string) bool) {
		if v, p := value(key); lacking && p.text != nil && bad(v) {
			blame(p)
		}
	}
	whatever := func(string) bool { return true }
	oneOf := func(values ...string) func(string) bool {
		return func(v string) bool { return slices.Contains(values, v) }
	}

	when(something, "Link.Unmanaged", unitfile.Yes)
	when(something, "Link.ActivationPolicy", oneOf("manual", "always-down", "down"))
	if lacks.address {
		blame(cleared["Address"])
	}
	if lacks.route4 || lacks.route6 {
		blame(cleared["Gateway"])
	}
	when(ipv4, "Network.DHCP", func(v string) bool { return unitfile.No(v) || v == "ipv6" || v == "" })
	if _, ok := last["Network.DHCP"]; !ok && ipv4 && len(unit.Texts) > 0 && unit.Texts[0].Source != shipped && culprit == "" {
		culprit, line = unit.Texts[0].Source, "no DHCP= in [Network]"
	}
	when(ipv6, "Network.DHCP", func(v string) bool { return unitfile.No(v) || v == "" })
	when(ipv6, "Network.IPv6AcceptRA", unitfile.No)
	when(ipv6, "Network.LinkLocalAddressing", oneOf("no", "false", "0", "off", "n", "f", "ipv4"))
	when(ipv6, "Link.MTUBytes", func(v string) bool {
		mtu, err := strconv.Atoi(v)
		return err == nil && mtu < 1280 // the least with which the kernel has IPv6
	})
	for _, key := range []string{"VRF", "Bridge", "Bond", "BindCarrier", "ConfigureWithoutCarrier"} {
		when(something, "Network."+key, whatever)
	}
	for _, key := range []string{"UseGateway", "UseRoutes"} {
		when(lacks.route4, "DHCPv4."+key, unitfile.No)
		when(lacks.route6, "IPv6AcceptRA."+key, unitfile.No)
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
	when(lacks.address6, "DHCPv6.UseAddress", unitfile.No)
	when(lacks.oldAddress, "Network.KeepConfiguration", func(v string) bool { return unitfile.Yes(v) || v == "static" })
	if text, kept := keeps(unit, gaps); text != nil {
		blame(place{text, kept})
	}
	return culprit, line
}

// keeps returns the line of a text that is not this daemon's by which a link keeps an address, of
// those that are still there.
func keeps(unit unitfile.Unit, gaps []status.Gap) (*unitfile.Text, unitfile.Setting) {
	for i := range unit.Texts {
		text := &unit.Texts[i]
		if text.Generated() {
			continue
		}
		for _, s := range text.Settings() {
			address, _, _ := strings.Cut(s.Value, "/")
			if s.Key == "Address" && (s.Section == "Network" || s.Section == "Address") && slices.ContainsFunc(gaps, func(gap status.Gap) bool {
				return gap.StillThere && gap.Kind == status.Address && gap.Value == address
			}) {
				return text, s
			}
		}
	}
	return nil, unitfile.Setting{}
}
