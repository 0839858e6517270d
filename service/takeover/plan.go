// Package takeover makes the running system what its next boot would make of it: networkd and
// ec2netd own the ENIs, and what owned them before does not run (J3).
//
// An attempt ends in one of two states: the ENIs are configured as after a boot, or what ran
// before runs again. [Takeover.Do] goes forward and never back. [Takeover.Settle] runs after
// it, however it ended, kill -9 included, and completes the attempt or undoes it. Both work
// on the files of one attempt in [Dir], where each step is noted before it is taken.
//
// The package decides nothing about who may take over, and asks nobody.
package takeover

import (
	"fmt"
	"slices"
	"strings"

	"ec2netd/service/systemd"
)

// The units that may own the links in place of networkd and the daemon.
const (
	manager  = "NetworkManager.service"
	ifupdown = "networking.service"
)

// Plan says what has to be done for the running system to be as after a boot: units that are
// enabled run, units that are disabled do not.
type Plan struct {
	Stop []string `json:"stop"`
	// TakenDown has the links that are no ENIs' and that ifupdown takes down when it is stopped.
	TakenDown []string `json:"takenDown"`
	Start     []string `json:"start"`
	// Restart has networkd if it runs, which reads networkd.conf.d only when it starts, and the daemon
	// that runs before it where addresses are set anew.
	Restart []string `json:"restart"`
	// Remove has the files of amazon-ec2-net-utils, each with its mark, see [FindOld].
	Remove []string `json:"remove"`
	// LeaveAlone has files in places where amazon-ec2-net-utils writes, without its mark.
	LeaveAlone []string `json:"leaveAlone"`
	// Flush has the links that are up and whose addresses and routes have to be set anew.
	Flush []string `json:"flush"`
}

// Facts is what [Make] decides from.
type Facts struct {
	// Units are those that the preset file names.
	Units []string
	// Enabled and Active report whether a unit is enabled, and whether it runs.
	Enabled, Active func(unit string) bool
	// Links are the ENIs' links that are up and that networkd does not leave alone. Hotplugged has
	// for each its unit of ifupdown, which is no unit of the preset file.
	Links      []string
	Hotplugged []string
	// Ifupdown reports whether ifupdown is told to configure an ENI at boot.
	Ifupdown bool
	// Raised are the links that are no ENIs' and that ifupdown has configured.
	Raised []string
	// Before257 reports whether networkd is older than 257.
	Before257 bool
}

// NotEnabledError says that a boot would not give the links to networkd and ec2netd.
type NotEnabledError struct {
	Unit string
	// Enabled: the unit is enabled, and would own the links; otherwise it is not enabled.
	Enabled bool
}

// Error implements error.
func (e *NotEnabledError) Error() string {
	if e.Enabled {
		return e.Unit + " is enabled, and would own the links after a boot"
	}
	return e.Unit + " is not enabled, so that a boot would not start it"
}

// Make compares the units that are enabled with those that run. It fails with a
// [NotEnabledError] if the system would boot with another owner of the links than networkd.
// It is a pure function.
func Make(f Facts) (*Plan, error) {
	p := &Plan{Stop: []string{}, TakenDown: []string{}, Start: []string{}, Restart: []string{}, Remove: []string{}, LeaveAlone: []string{}, Flush: []string{}}
	for _, unit := range []string{systemd.Networkd, systemd.Daemon} {
		if !f.Enabled(unit) {
			return nil, &NotEnabledError{Unit: unit}
		}
	}
	if f.Enabled(manager) {
		return nil, &NotEnabledError{Unit: manager, Enabled: true}
	}
	if f.Ifupdown && f.Enabled(ifupdown) {
		return nil, &NotEnabledError{Unit: ifupdown, Enabled: true}
	}
	for _, unit := range f.Units {
		switch {
		case unit == systemd.Networkd && f.Active(unit):
			p.Restart = append(p.Restart, unit)
		case strings.Contains(unit, "wait-online"):
			// They are for boots only.
		case f.Enabled(unit) && !f.Active(unit):
			p.Start = append(p.Start, unit)
		case !f.Enabled(unit) && f.Active(unit) && !strings.HasPrefix(unit, "ec2netd"):
			p.Stop = append(p.Stop, unit)
		}
	}
	if slices.Contains(p.Stop, ifupdown) {
		p.TakenDown = append(p.TakenDown, f.Raised...)
	}
	for _, unit := range f.Hotplugged {
		if f.Active(unit) {
			p.Stop = append(p.Stop, unit)
		}
	}
	// The daemon first, as at boot: networkd configures the primary ENI once then.
	slices.Sort(p.Start)
	// networkd 252 does not recognise an address that it finds as its own. It adds the address
	// again after the secondary ones: the primary address is the first only without it.
	if slices.ContainsFunc(p.Stop, owns) || f.Before257 && len(p.Restart) > 0 {
		p.Flush = f.Links
		// Its files have the secondary addresses of links that were configured. networkd would set
		// them before it has a lease: the daemon that starts has them wait.
		if len(p.Restart) > 0 && !p.startsDaemon() {
			p.Restart = append([]string{systemd.Daemon}, p.Restart...)
		}
	}
	return p, nil
}

// owns reports whether a unit has links configured that are up until it is stopped, or stay so.
func owns(unit string) bool {
	return unit == manager || unit == ifupdown || hotplugged(unit)
}

// hotplugged reports whether a unit is ifupdown's for a link that udev has seen.
func hotplugged(unit string) bool { return strings.HasPrefix(unit, "ifup@") }

// quiet lists the units of networkd that do not run while addresses are taken away: networkd
// would notice, and ask for a lease, and its sockets start it for that.
func (p *Plan) quiet() []string {
	if len(p.Flush) == 0 {
		return nil
	}
	return append([]string{networkdSockets}, p.Restart...)
}

// startsDaemon reports whether the daemon does not run yet, so that its files come with it.
func (p *Plan) startsDaemon() bool { return slices.Contains(p.Start, systemd.Daemon) }

// Words says what is done, one line for each kind of thing.
func (p *Plan) Words(would string) string {
	var out strings.Builder
	for _, step := range []struct {
		verb  string
		these []string
	}{
		{"stop", p.Stop},
		{"thereby take down, since ifupdown has configured them too,", p.TakenDown},
		{"remove", p.Remove},
		{"leave alone, without the mark of amazon-ec2-net-utils,", p.LeaveAlone},
		{"take the addresses and routes from", p.Flush},
		{"start", p.Start},
		{"restart", p.Restart},
	} {
		if len(step.these) > 0 {
			text := would + step.verb + " " + strings.Join(step.these, ", ")
			fmt.Fprintln(&out, strings.ToUpper(text[:1])+text[1:])
		}
	}
	return out.String()
}
