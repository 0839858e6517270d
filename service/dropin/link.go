package dropin

import "cmp"

// Link is the .link drop-in of one link, see systemd.link(5). Methods other than Render accept a nil
// Link, which sets nothing.
type Link struct {
	Match LinkMatch
	// AlternativeNames are the AlternativeName= lines of the [Link] section.
	AlternativeNames []string
}

// LinkMatch is the [Match] section. Bridges, bonds, VLANs and macvlans inherit the MAC address but
// have another driver (C5).
type LinkMatch struct{ PermanentMACAddress, MACAddress, Driver string }

// Render returns the text of the drop-in.
func (l *Link) Render() string {
	c := rendering(author + ", see ec2netd(8). Changes here are lost.")
	l.sections(c)
	return c.out.String()
}

// ParseLink reads a .link drop-in. It returns nil for a text that is not [Ours]: the names in a file of
// somebody else must not be taken from other links.
func ParseLink(text string) *Link {
	if !Ours(text) {
		return nil
	}
	l := &Link{}
	l.sections(parsing(text))
	return l
}

func (l *Link) sections(c *codec) {
	l.Match.section(c)
	c.begin("Link")
	c.header()
	list(c, "AlternativeName", &l.AlternativeNames, same, notEmpty)
}

func (m *LinkMatch) section(c *codec) {
	c.begin("Match")
	c.mac(&m.PermanentMACAddress, &m.MACAddress)
	c.name("Driver", &m.Driver)
}

// MACAddress returns the MAC address of the link, or "".
func (l *Link) MACAddress() string {
	if l == nil {
		return ""
	}
	return l.Match.MAC()
}

// Driver returns the driver of the link, or "".
func (l *Link) Driver() string {
	if l == nil {
		return ""
	}
	return l.Match.Driver
}

// Names returns the alternative names of the link.
func (l *Link) Names() []string {
	if l == nil {
		return nil
	}
	return l.AlternativeNames
}

// beside is the comment of the drop-ins that restrict a unit to its link.
var beside = []string{author + ", see ec2netd(8): for one link only, whatever becomes of", FileName + "."}

// Render returns the text of a .network drop-in that has only this [Match] section.
func (m *NetworkMatch) Render() string {
	c := rendering(beside...)
	m.section(c)
	return c.out.String()
}

// ParseNetworkMatch reads the [Match] section of a .network drop-in.
func ParseNetworkMatch(text string) NetworkMatch {
	var m NetworkMatch
	m.section(parsing(text))
	return m
}

func (m *NetworkMatch) section(c *codec) {
	c.begin("Match")
	// The empty value clears the drivers of the base unit, as this unit is for one link. The name
	// excludes VLANs and macvlans, which inherit the MAC address (C5).
	c.fixed("Driver", "")
	c.mac(&m.PermanentMACAddress, &m.MACAddress)
	c.name("Name", &m.Name)
}

// Render returns the text of a .link drop-in that has only this [Match] section.
func (m *LinkMatch) Render() string {
	c := rendering(beside...)
	m.section(c)
	return c.out.String()
}

// ParseLinkMatch reads the [Match] section of a .link drop-in.
func ParseLinkMatch(text string) LinkMatch {
	var m LinkMatch
	m.section(parsing(text))
	return m
}

// mac handles the keys for the permanent MAC address of a device and for the one that a link has now.
func (c *codec) mac(permanent, now *string) {
	text(c, "PermanentMACAddress", permanent)
	if *permanent == "" {
		c.name("MACAddress", now)
	} else {
		text(c, "MACAddress", now)
	}
}

// MAC returns the MAC address of the link, permanent or not.
func (m NetworkMatch) MAC() string { return cmp.Or(m.PermanentMACAddress, m.MACAddress) }

// MAC returns the MAC address of the link, permanent or not.
func (m LinkMatch) MAC() string { return cmp.Or(m.PermanentMACAddress, m.MACAddress) }
