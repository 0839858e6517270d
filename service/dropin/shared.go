package dropin

import (
	"fmt"
	"strings"
)

// Hold is the .network unit that tells networkd to ignore new links, by Unmanaged=yes.
type Hold struct {
	Drivers []string
	// Property is a udev property that the links must have, as NAME=VALUE.
	Property string
	// Except are the names of links that the unit does not match.
	Except []string
}

// Render returns the text of the unit.
func (h *Hold) Render() string {
	c := rendering(author+", see ec2netd(8). An ENI that is attached waits here for its own",
		"unit, for a moment: so it is configured once. 80-ec2netd.rules sets the property of",
		"links that come while ec2netd runs, so this has no effect on others.")
	h.sections(c)
	return c.out.String()
}

// ParseHold reads the unit.
func ParseHold(text string) Hold {
	var h Hold
	h.sections(parsing(text))
	return h
}

func (h *Hold) sections(c *codec) {
	c.begin("Match")
	c.words("Driver", "", &h.Drivers)
	text(c, "Property", &h.Property)
	list(c, "Name", &h.Except, func(name string) string { return "!" + name }, parseExcept)
	c.begin("Link")
	c.fixed("Unmanaged", "yes")
}

func parseExcept(text string) (string, error) {
	name, ok := strings.CutPrefix(text, "!")
	if !ok {
		return "", fmt.Errorf("%q is not an exception", text)
	}
	return name, nil
}

// Base is the drop-in of the base unit, which applies to all links without a unit of their own.
type Base struct{ KeepConfiguration KeepConfiguration }

// Render returns the text of the drop-in.
func (b *Base) Render() string {
	c := rendering(author+", see ec2netd(8). Changes here are lost: make a drop-in",
		"in /etc/systemd/network/80-ec2.network.d/ instead, with a name that sorts after this.")
	keep(c, &b.KeepConfiguration)
	return c.out.String()
}

// ParseBase reads the drop-in.
func ParseBase(text string) Base {
	var b Base
	keep(parsing(text), &b.KeepConfiguration)
	return b
}

// Start is a drop-in of a link that is in force from the start of networkd until it has its lease.
type Start struct{ KeepConfiguration KeepConfiguration }

// Render returns the text of the drop-in.
func (s *Start) Render() string {
	c := rendering(author+", see ec2netd(8), for the start of networkd: it goes when the lease", "is back.")
	keep(c, &s.KeepConfiguration)
	return c.out.String()
}

// ParseStart reads the drop-in.
func ParseStart(text string) Start {
	var s Start
	keep(parsing(text), &s.KeepConfiguration)
	return s
}

func keep(c *codec, v *KeepConfiguration) {
	c.begin("Network")
	text(c, "KeepConfiguration", v)
}

// LeaveOut is a drop-in for a .network file of somebody else. It excludes the links with some drivers.
type LeaveOut struct{ Drivers []string }

// Render returns the text of the drop-in. Its comment names the file that it is for.
func (l *LeaveOut) Render(of string) string {
	c := rendering(author+", see ec2netd(8). "+of+" is for several links,", "and not for ENIs: these have units of their own.")
	l.section(c)
	return c.out.String()
}

// ParseLeaveOut reads the drop-in.
func ParseLeaveOut(text string) LeaveOut {
	var l LeaveOut
	l.section(parsing(text))
	return l
}

func (l *LeaveOut) section(c *codec) {
	c.begin("Match")
	c.words("Driver", "!", &l.Drivers)
}
