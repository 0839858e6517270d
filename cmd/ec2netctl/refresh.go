package main

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"

	"ec2netd/service/state"
)

// refreshCall is what the method Refresh takes.
type refreshCall struct {
	ID   string `json:"id,omitempty"`
	Wait bool   `json:"wait"`
	// Interactive: polkit may ask, for somebody is there.
	Interactive bool `json:"allowInteractiveAuthentication,omitempty"`
}

// refresh makes ec2netd look again, at one ENI if args name it, and says what changed.
func (c *ctl) refresh(ctx context.Context, args []string, wait bool) error {
	timeout := refreshTimeout
	if wait {
		timeout = waitTimeout
	}
	what := "Refreshing"
	if wait {
		what = "Refreshing, and waiting for the change in the kernel"
	}
	stop := c.progress(what)
	var raw json.RawMessage
	in := refreshCall{Wait: wait, Interactive: c.columns > 0}
	if len(args) > 0 {
		in.ID = args[0]
	}
	err := c.call(ctx, timeout, "Refresh", in, &raw)
	stop()
	if err != nil {
		return err
	}
	var changes state.Changes
	if err := json.Unmarshal(raw, &changes); err != nil {
		return fmt.Errorf("reading the reply of ec2netd: %w", err)
	}
	if c.wantsJSON() {
		err = c.printJSON(raw)
	} else {
		err = c.print(c.describeChanges(&changes, wait))
	}
	if err == nil && wait && !changes.Settled {
		err = advise("See ec2netctl status for what is missing.",
			"the change is not in the kernel yet, and the time for it is up")
	}
	return err
}

// describeChanges is what a refresh did, in words.
func (c *ctl) describeChanges(changes *state.Changes, waited bool) string {
	var b strings.Builder
	for _, i := range changes.Interfaces {
		name := i.Name
		switch {
		case name == "":
			name = i.ENIID
		case i.ENIID != "":
			name += " (" + i.ENIID + ")"
		}
		fmt.Fprintf(&b, "%s: %s", paint(clean(name), bold, c.colour), paint(string(i.State), eniColour(i.State), c.colour))
		if i.Reason != "" {
			fmt.Fprintf(&b, " (%s)", clean(i.Reason))
		}
		b.WriteByte('\n')
		for _, a := range i.Added {
			b.WriteString("  " + paint("+ "+clean(a), green, c.colour) + "\n")
		}
		for _, a := range i.Removed {
			b.WriteString("  " + paint("- "+clean(a), red, c.colour) + "\n")
		}
	}
	for _, f := range changes.FilesWritten {
		b.WriteString("Wrote " + clean(f) + "\n")
	}
	for _, f := range changes.FilesRemoved {
		b.WriteString("Removed " + clean(f) + "\n")
	}
	if changes.Reloaded {
		b.WriteString("systemd-networkd was asked to reload.\n")
	}
	if b.Len() == 0 {
		b.WriteString("Nothing changed.\n")
	}
	if !changes.Settled && !waited {
		b.WriteString("systemd-networkd still applies it: see ec2netctl status, or refresh with --wait.\n")
	}
	return b.String()
}
