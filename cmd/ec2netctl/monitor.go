package main

import (
	"context"
	"fmt"
	"slices"
	"strings"

	"ec2netd/service/state"
)

// watch prints what changes, until it is interrupted.
func (c *ctl) watch(ctx context.Context) error {
	ctx, stop := context.WithCancel(ctx)
	views := c.monitor(ctx)
	defer func() {
		stop()
		for range views { // until it has hung up
		}
	}()
	var last *state.State
	said := ""
	for v := range views {
		if v.err != nil {
			if v.final {
				return v.err
			}
			if text := v.err.Error(); text != said {
				said = text
				fmt.Fprintf(c.stderr, "ec2netctl: %s; waiting for it\n", clean(text))
			}
			continue
		}
		said = ""
		var err error
		if c.wantsJSON() {
			err = c.printJSON(v.raw)
		} else {
			err = c.print(c.events(last, v.state))
		}
		if err != nil {
			return err
		}
		last = v.state
	}
	return nil
}

// events are the lines about what is different between two states: what is there at
// first if there is none before.
func (c *ctl) events(before, now *state.State) string {
	var b strings.Builder
	stamp := paint(c.now().Format("15:04:05"), grey, c.colour) + " "
	line := func(format string, args ...any) { b.WriteString(stamp + fmt.Sprintf(format, args...) + "\n") }
	if before == nil {
		before = &state.State{}
	}
	if before.State != now.State || before.Reason != now.Reason {
		line("ec2netd: %s%s", paint(string(now.State), managerColour(now.State), c.colour), inBrackets(now.Reason))
	}
	// An ENI is its MAC address on a link: the same on another is another attachment.
	was := make(map[string]*state.Interface)
	key := func(e *state.Interface) string { return fmt.Sprintf("%s %d", e.MAC, e.Ifindex) }
	for i := range before.Interfaces {
		was[key(&before.Interfaces[i])] = &before.Interfaces[i]
	}
	present := make(map[string]bool)
	for i := range now.Interfaces {
		present[key(&now.Interfaces[i])] = true
	}
	for i := range before.Interfaces {
		if e := &before.Interfaces[i]; !present[key(e)] {
			line("%s: %s", c.called(e), paint("gone", grey, c.colour))
		}
	}
	for i := range now.Interfaces {
		e := &now.Interfaces[i]
		old, known := was[key(e)]
		if !known {
			old = &state.Interface{}
		}
		name := c.called(e)
		if old.State != e.State || old.Reason != e.Reason {
			line("%s: %s%s", name, paint(string(e.State), eniColour(e.State), c.colour), inBrackets(e.Reason))
		}
		if !known {
			continue // status tells what it has
		}
		if old.ENIID != e.ENIID || old.Name != e.Name {
			line("%s: was %s", name, c.called(old))
		}
		holds := func(e *state.Interface) []string { return slices.Concat(e.Addresses, e.Prefixes) }
		for _, a := range without(holds(e), holds(old)) {
			line("%s: %s", name, paint("+ "+clean(a), green, c.colour))
		}
		for _, a := range without(holds(old), holds(e)) {
			line("%s: %s", name, paint("- "+clean(a), red, c.colour))
		}
	}
	return b.String()
}

// called is an ENI in a line about it.
func (c *ctl) called(e *state.Interface) string {
	if e.Name == "" {
		return paint(clean(e.ID()), bold, c.colour)
	}
	return paint(clean(e.Name), bold, c.colour) + " (" + clean(e.ID()) + ")"
}

func inBrackets(reason string) string {
	if reason == "" {
		return ""
	}
	return " (" + clean(strings.Join(strings.Fields(reason), " ")) + ")"
}

// without returns those of a that are not in b.
func without(a, b []string) []string {
	return slices.DeleteFunc(slices.Clone(a), func(s string) bool { return slices.Contains(b, s) })
}
