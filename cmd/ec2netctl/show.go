package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"ec2netd/service/state"
)

// chosen are the ENIs that args name, all without any, as ec2netd sent them and as this
// program knows them.
func (c *ctl) chosen(ctx context.Context, args []string) ([]json.RawMessage, []*state.Interface, error) {
	raw, s, err := c.describe(ctx)
	if err != nil {
		return nil, nil, err
	}
	elements, err := interfacesOf(raw)
	if err != nil {
		return nil, nil, err
	}
	if len(args) == 0 {
		all := make([]*state.Interface, len(s.Interfaces))
		for i := range s.Interfaces {
			all[i] = &s.Interfaces[i]
		}
		return elements, all, nil
	}
	var some []json.RawMessage
	var enis []*state.Interface
	for _, id := range args {
		at, err := indexOf(s, id)
		if err != nil {
			return nil, nil, err
		}
		some, enis = append(some, elements[at]), append(enis, &s.Interfaces[at])
	}
	return some, enis, nil
}

// show shows the four places side by side (H4).
func (c *ctl) show(ctx context.Context, args []string) error {
	raw, enis, err := c.chosen(ctx, args)
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return c.printJSON(map[string][]json.RawMessage{"interfaces": append([]json.RawMessage{}, raw...)})
	}
	if len(enis) == 0 {
		return c.print("No ENI is known yet.\n")
	}
	var out strings.Builder
	for i, e := range enis {
		if i > 0 {
			out.WriteByte('\n')
		}
		out.WriteString(c.truthTitle(e) + c.itemTable(e.Items))
	}
	return c.page(out.String())
}

// itemTable is the table of all items of an ENI.
func (c *ctl) itemTable(items []state.Item) string {
	if len(items) == 0 {
		return "Nothing is known of what it has.\n"
	}
	rows := [][]cell{header("ITEM", "METADATA", "FILES", "NETWORKD", "KERNEL", "REASON")}
	for _, i := range items {
		mark := plain
		if i.Reason != "" {
			mark = itemColour(i)
		}
		reason := i.Reason
		if i.NotApplicable != "" {
			mark, reason = grey, "not applicable: "+i.NotApplicable
		}
		rows = append(rows, []cell{
			text(string(i.Kind) + " " + i.Value).in(mark), text(answer(i.Metadata)), text(answer(state.Told(i.Rendered))),
			text(answer(i.Networkd)), text(answer(state.Told(i.Kernel))), text(strings.Join(strings.Fields(reason), " ")),
		})
	}
	return table(rows, c.width, c.colour, "REASON")
}

func answer(a state.Answer) string {
	switch a {
	case state.Yes:
		return "yes"
	case state.No:
		return "no"
	}
	return ""
}

// truthTitle is an ENI with its state.
func (c *ctl) truthTitle(e *state.Interface) string {
	return paint("●", eniColour(e.State), c.colour) + " " + c.called(e) + ": " +
		paint(string(e.State), eniColour(e.State), c.colour) + inBrackets(e.Reason) + "\n"
}

// differing are the items of an ENI that are not the same everywhere.
type differing struct {
	ENIID  string       `json:"eniId"`
	MAC    string       `json:"mac"`
	Name   string       `json:"name"`
	State  state.ENI    `json:"state"`
	Reason string       `json:"reason"`
	Items  []state.Item `json:"items"`
}

// differences are the ENIs that are not as the metadata says: that have items with a
// reason, or of which nothing can be told while they are not configured. Those that are
// unmanaged are as somebody wants them; they count where they were asked for. An item that
// is in use and that networkd does not count as its own is no difference. With all it is
// shown nevertheless: gaps reports whether there is anything else.
func differences(enis []*state.Interface, asked, all bool) (found []differing, gaps bool) {
	found = []differing{}
	for _, e := range enis {
		d := differing{ENIID: e.ENIID, MAC: e.MAC, Name: e.Name, State: e.State, Reason: e.Reason, Items: []state.Item{}}
		if e.State == state.ENIUnmanaged && !asked {
			continue
		}
		for _, i := range e.Items {
			inUse := i.InUse()
			if i.Reason != "" && (!inUse || all) {
				d.Items = append(d.Items, i)
				gaps = gaps || !inUse
			}
		}
		untold := len(e.Items) == 0 && e.State != state.ENIConfigured && e.State != state.ENIUnmanaged
		if len(d.Items) > 0 || untold {
			found = append(found, d)
			gaps = gaps || untold
		}
	}
	return found, gaps
}

// diff shows the gaps alone, and fails if there are any. As with diff(1) trouble has
// another exit code.
func (c *ctl) diff(ctx context.Context, args []string, all bool) error {
	_, enis, err := c.chosen(ctx, args)
	if err != nil {
		return &trouble{err}
	}
	found, gaps := differences(enis, len(args) > 0, all)
	if c.wantsJSON() {
		err = c.printJSON(map[string][]differing{"interfaces": found})
	} else {
		err = c.page(c.describeDifferences(found))
	}
	if err != nil {
		return &trouble{err}
	}
	if gaps {
		return errSilent
	}
	return nil
}

// describeDifferences has a line for each: - for what is missing in the kernel, + for what
// should not be there, ~ for what is there and differs elsewhere.
func (c *ctl) describeDifferences(found []differing) string {
	var b strings.Builder
	for _, d := range found {
		b.WriteString(c.truthTitle(&state.Interface{ENIID: d.ENIID, MAC: d.MAC, Name: d.Name, State: d.State, Reason: d.Reason}))
		for _, i := range d.Items {
			line := fmt.Sprintf("%s %s %s", itemSign(i), i.Kind, clean(i.Value))
			b.WriteString("  " + paint(line, itemColour(i), c.colour))
			if i.Reason != d.Reason { // which the title has said
				b.WriteString(": " + clean(strings.Join(strings.Fields(i.Reason), " ")))
			}
			b.WriteString("\n")
		}
	}
	return b.String()
}

func itemSign(i state.Item) string {
	switch {
	case !i.Kernel:
		return "-"
	case i.Metadata == state.No:
		return "+"
	}
	return "~"
}

func itemColour(i state.Item) colour {
	switch itemSign(i) {
	case "-":
		return red
	case "+":
		return green
	}
	return yellow
}
