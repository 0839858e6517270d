package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strconv"
	"strings"
	"time"

	"ec2netd/service/state"
	"ec2netd/service/status"
)

// mostLines is how many addresses or prefixes of an ENI the table shows without
// --full.
const mostLines = 8

// status shows everything in a table, or the ENIs in args in full.
func (c *ctl) status(ctx context.Context, args []string) error {
	if len(args) > 0 {
		return c.statusOf(ctx, args)
	}
	raw, s, err := c.describe(ctx)
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return c.printJSON(raw)
	}
	if s.State == state.Unsupported {
		return c.page(c.title(s))
	}
	return c.page(c.summary(s) + "\n" + c.statusTable(s))
}

func (c *ctl) statusOf(ctx context.Context, args []string) error {
	raw, enis, err := c.chosen(ctx, args)
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return c.printJSON(map[string][]json.RawMessage{"interfaces": raw})
	}
	var out strings.Builder
	for i, e := range enis {
		if i > 0 {
			out.WriteByte('\n')
		}
		out.WriteString(c.detail(e))
		if c.lines > 0 && c.journal != nil {
			if log := c.journal(ctx, e, c.lines); log != "" {
				out.WriteString("\n" + clean(log))
			}
		}
	}
	return c.page(out.String())
}

// list shows one line an ENI.
func (c *ctl) list(ctx context.Context, _ []string) error {
	raw, s, err := c.describe(ctx)
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		elements, err := interfacesOf(raw)
		if err != nil {
			return err
		}
		return c.printJSON(map[string][]json.RawMessage{"interfaces": elements})
	}
	if len(s.Interfaces) == 0 {
		return c.print(noENI(s))
	}
	rows := [][]cell{header("ENI", "INTERFACE", "DEVICE", "ADDRESS", "STATE")}
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		address := ""
		if n := len(e.Addresses); n > 0 {
			address = e.Addresses[0]
			if n > 1 {
				address += fmt.Sprintf(" +%d", n-1)
			}
		}
		rows = append(rows, []cell{
			text(e.ID()), text(e.Name), text(device(s, e)), text(address),
			text(string(e.State)).in(eniColour(e.State)),
		})
	}
	return c.page(table(rows, c.width, c.colour, "DEVICE", "ADDRESS"))
}

// noENI is said where there is none.
func noENI(s *state.State) string {
	if s.State == state.Unsupported {
		return "There is no ENI: " + clean(s.Reason) + ".\n"
	}
	return "No ENI is known yet.\n"
}

// title is the daemon with its state.
func (c *ctl) title(s *state.State) string {
	title := "ec2netd " + s.Version + ": " + paint(string(s.State), managerColour(s.State), c.colour)
	if s.Reason != "" {
		title += " (" + clean(s.Reason) + ")"
	}
	return paint("●", managerColour(s.State), c.colour) + " " + title + "\n"
}

// summary is the head of status: the daemon and the two that it works between.
func (c *ctl) summary(s *state.State) string {
	metadata := s.Metadata.Endpoint
	if metadata == "" {
		metadata = "no answer yet"
	}
	if !s.Metadata.LastSuccess.IsZero() {
		metadata += ", read " + c.ago(s.Metadata.LastSuccess)
	}
	metadata += " (" + count(s.Metadata.Requests, "request")
	if s.Metadata.Errors > 0 {
		metadata += ", " + count(s.Metadata.Errors, "error")
	}
	metadata += ")"
	networkd := "not running"
	if s.Networkd.Running {
		networkd = strings.TrimSpace(s.Networkd.Version+" running") + ", " + count(s.Networkd.Reloads, "reload")
	}
	fields := []field{
		{"Instance", lines([]string{s.InstanceID})},
		{"Metadata", lines([]string{metadata, s.Metadata.LastError})},
		{"systemd-networkd", lines([]string{networkd, s.Networkd.LastError})},
	}
	for i, conflict := range s.Conflicts {
		name := ""
		if i == 0 {
			name = "Conflicts"
		}
		fields = append(fields, field{name, lines([]string{
			conflict.Name + ": " + strings.Join(conflict.Evidence, ", "), "→ " + conflict.Advice,
		}).in(yellow)})
	}
	if !s.LastChange.IsZero() {
		fields = append(fields, field{"Last change", text(c.moment(s.LastChange))})
	}
	return c.title(s) + c.fields(fields)
}

// statusTable is the table of all ENIs.
func (c *ctl) statusTable(s *state.State) string {
	if len(s.Interfaces) == 0 {
		return "No ENI is known yet.\n"
	}
	rows := [][]cell{header("ENI", "INTERFACE", "DEVICE", "ADDRESSES", "PREFIXES", "TABLE", "METRIC", "STATE", "REASON")}
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		rows = append(rows, []cell{
			text(e.ID()), text(e.Name), text(device(s, e)),
			lines(c.shorten(e.Addresses)), lines(c.shorten(e.Prefixes)),
			text(number(e.Table)), text(number(e.Metric)),
			text(string(e.State)).in(eniColour(e.State)), text(strings.ReplaceAll(worthKnowing(e), "\n", " ")),
		})
	}
	// On a narrow screen the state is what matters; status ENI has the rest.
	return table(rows, c.width, c.colour, "REASON", "METRIC", "TABLE", "PREFIXES", "DEVICE", "INTERFACE")
}

// worthKnowing is the reason for the state of an ENI or, where all is well, why its IPv6 does
// not apply.
func worthKnowing(e *state.Interface) string {
	if e.Reason == "" && e.IPv6NotApplicable != "" {
		return status.IPv6NotApplicable(e.IPv6NotApplicable)
	}
	return e.Reason
}

// shorten keeps a long list from filling the screen.
func (c *ctl) shorten(list []string) []string {
	if c.full || len(list) <= mostLines {
		return list
	}
	short := append([]string(nil), list[:mostLines-1]...)
	return append(short, fmt.Sprintf("… and %d more", len(list)-mostLines+1))
}

// detail is all about one ENI.
func (c *ctl) detail(e *state.Interface) string {
	title := e.Name
	switch {
	case title == "":
		title = e.ID()
	case e.ENIID != "":
		title += " (" + e.ENIID + ")"
	}
	st := string(e.State)
	if !e.Since.IsZero() {
		st += " since " + c.moment(e.Since)
	}
	primary := "no"
	if e.Primary {
		primary = "yes"
	}
	fields := []field{
		{"State", text(st).in(eniColour(e.State))},
		{"Reason", lines(strings.Split(e.Reason, "\n"))},
		{"Missing", lines(e.Missing).in(red)},
		{"Unwanted", lines(e.Unwanted).in(yellow)},
		{"Gaps", lines(e.Gaps)},
		{"MAC address", text(e.MAC)},
		{"Interface index", text(optional(e.Ifindex != 0, e.Ifindex))},
		{"Primary", text(primary)},
		{"Device index", text(optional(e.DeviceIndex != state.Unknown, e.DeviceIndex))},
		{"Network card", text(optional(e.NetworkCard != state.Unknown, e.NetworkCard))},
		{"Addresses", lines(e.Addresses)},
		{"Prefixes", lines(e.Prefixes)},
		{"Subnets", lines(e.Subnets)},
		{"Route metric", text(number(e.Metric))},
		{"Routing table", text(number(e.Table))},
		{"Rule priority", text(number(e.Priority))},
		{"Altnames", lines(e.Altnames)},
		{"Network file", text(e.NetworkFile)},
		{"Files", lines(e.Files)},
	}
	if e.IPv6NotApplicable != "" {
		fields = append(fields, field{"IPv6", lines([]string{"not applicable: " + e.IPv6NotApplicable})})
	}
	return paint("●", eniColour(e.State), c.colour) + " " + paint(clean(title), bold, c.colour) + "\n" + c.fields(fields)
}

// field is a name and a value in a list of such.
type field struct {
	name  string
	value cell
}

// fields lays out names and values as networkctl status does: the names to the
// right, before a colon. What has no value is left out.
func (c *ctl) fields(all []field) string {
	const width = len("systemd-networkd") + 2
	var b strings.Builder
	for _, f := range all {
		if len(f.value.lines) == 1 && f.value.lines[0] == "-" {
			continue
		}
		label := fmt.Sprintf("%*s: ", width, f.name)
		for _, l := range f.value.lines {
			b.WriteString(label + paint(l, f.value.colour, c.colour) + "\n")
			label = strings.Repeat(" ", len(label))
		}
	}
	return b.String()
}

func header(names ...string) []cell {
	row := make([]cell, len(names))
	for i, n := range names {
		row[i] = text(n).in(bold)
	}
	return row
}

// device is the device index, with the network card behind a dot where the instance
// has several cards.
func device(s *state.State, e *state.Interface) string {
	if e.DeviceIndex == state.Unknown {
		return ""
	}
	for i := range s.Interfaces {
		if s.Interfaces[i].NetworkCard > 0 {
			if e.NetworkCard == state.Unknown {
				return fmt.Sprintf("%d.?", e.DeviceIndex)
			}
			return fmt.Sprintf("%d.%d", e.DeviceIndex, e.NetworkCard)
		}
	}
	return strconv.Itoa(e.DeviceIndex)
}

// number is n, or nothing for one that is not known or not there.
func number(n int) string { return optional(n != state.Unknown, n) }

func optional(has bool, n int) string {
	if !has {
		return ""
	}
	return strconv.Itoa(n)
}

func count(n uint64, what string) string {
	if n == 1 {
		return "1 " + what
	}
	return fmt.Sprintf("%d %ss", n, what)
}

// moment is a time for people: absolute, in their zone, and relative.
func (c *ctl) moment(t time.Time) string {
	return t.In(c.now().Location()).Format("Mon 2006-01-02 15:04:05 MST") + "; " + c.ago(t)
}

// ago is how long t is past, in at most two units.
func (c *ctl) ago(t time.Time) string {
	d := c.now().Sub(t).Round(time.Second)
	switch {
	case d < 0:
		return "in the future (the clock was set)"
	case d < time.Minute:
		return fmt.Sprintf("%ds ago", d/time.Second)
	case d < time.Hour:
		return fmt.Sprintf("%dmin %ds ago", d/time.Minute, d%time.Minute/time.Second)
	case d < 24*time.Hour:
		return fmt.Sprintf("%dh %dmin ago", d/time.Hour, d%time.Hour/time.Minute)
	default:
		return fmt.Sprintf("%dd %dh ago", d/(24*time.Hour), d%(24*time.Hour)/time.Hour)
	}
}

func managerColour(s state.Manager) colour {
	switch s {
	case state.Configured:
		return green
	case state.Starting, state.Offline:
		return yellow
	case state.Unsupported:
		return grey
	default:
		return red
	}
}

func eniColour(s state.ENI) colour {
	switch s {
	case state.ENIConfigured:
		return green
	case state.ENIConfiguring, state.ENIPending, state.ENIShadowed, state.ENIOverridden, state.ENIContested:
		return yellow
	case state.ENIUnmanaged:
		return grey
	default:
		return red
	}
}
