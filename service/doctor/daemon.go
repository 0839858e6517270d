package doctor

import (
	"cmp"
	"fmt"
	"slices"
	"strings"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// Daemon is what ec2netd has answered.
type Daemon struct {
	// State of ec2netd, nil if it does not answer.
	State *state.State
	// Silence says why it does not answer, and Remedy what to do about that.
	Silence, Remedy string
}

// instance returns the ID of the instance, empty if the daemon has not told it.
func (d *Daemon) instance() string {
	if d.State == nil {
		return ""
	}
	return d.State.InstanceID
}

// primary returns the MAC address of the primary ENI, empty if the daemon has not told it.
func (d *Daemon) primary() string {
	mac := ""
	if d.State != nil {
		for i := range d.State.Interfaces {
			if d.State.Interfaces[i].Primary {
				mac = d.State.Interfaces[i].MAC
			}
		}
	}
	return mac
}

// daemonAnswers judges the answer of ec2netd, or that there is none.
func daemonAnswers(f *Facts) []Finding {
	s := f.Daemon.State
	if s == nil {
		return []Finding{problem(DaemonAnswers, f.Daemon.Remedy, "%s", f.Daemon.Silence)}
	}
	said := fmt.Sprintf("%s answers: %s", s.Version, s.State)
	if s.Reason != "" {
		said += " (" + oneLine(s.Reason) + ")"
	}
	switch s.State {
	case state.Configured:
		return []Finding{ok(DaemonAnswers, "%s", said)}
	case state.Unsupported:
		return []Finding{problem(DaemonAnswers, "the configuration has changed since it was started: systemctl restart ec2netd.service", "%s", said)}
	case state.Starting:
		return []Finding{warning(DaemonAnswers, "if it stays so: journalctl -u ec2netd.service", "%s", said)}
	default:
		return []Finding{problem(DaemonAnswers, "see what else is found, and journalctl -u ec2netd.service", "%s", said)}
	}
}

// oneLine returns a text on one line.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }

// enis judges the state of each ENI.
func enis(f *Facts) []Finding {
	s := f.Daemon.State
	if s == nil {
		return nil
	}
	if len(s.Interfaces) == 0 {
		return []Finding{problem(ENIs, "give their driver, which networkctl status NAME shows, as Driver= in [Match] of ec2netd.conf(5), and of a drop-in of 80-ec2.network, then: networkctl reload && systemctl reload ec2netd", "no link is an ENI")}
	}
	all := make([]Finding, len(s.Interfaces))
	for i := range s.Interfaces {
		all[i] = ofENI(&s.Interfaces[i])
	}
	return all
}

// ofENI judges the state of one ENI.
func ofENI(e *state.Interface) Finding {
	name := e.ID()
	if e.Name != "" {
		name = e.Name + " (" + name + ")"
	}
	text := fmt.Sprintf("%s is %s", name, e.State)
	if e.Reason != "" {
		text += ": " + oneLine(e.Reason)
	}
	more := "ec2netctl diff " + cmp.Or(e.Name, e.ID()) + " shows what differs"
	switch e.State {
	case state.ENIConfigured:
		if e.IPv6NotApplicable != "" {
			text += "; " + status.IPv6NotApplicable(e.IPv6NotApplicable)
		}
		if e.Reason != "" {
			return warning(ENIs, "", "%s", text)
		}
		return ok(ENIs, "%s", text)
	case state.ENIUnmanaged:
		return ok(ENIs, "%s", text)
	case state.ENIConfiguring, state.ENIOverridden:
		// It is on its way there, or as somebody wants it.
		return warning(ENIs, more, "%s", text)
	default:
		return problem(ENIs, more, "%s", text)
	}
}

// mistakes lists those in the configuration.
func mistakes(f *Facts) []Finding {
	var all []Finding
	for _, mistake := range f.Mistakes {
		all = append(all, problem(Configuration, "correct it, then: systemctl restart ec2netd.service", "%s", mistake))
	}
	return all
}

// unusedSections lists the sections of the configuration that have no effect.
func unusedSections(f *Facts) []Finding {
	var all []Finding
	for _, section := range f.UnusedSections {
		all = append(all, warning(Configuration, "nothing, if such an ENI is still to come; else correct what it asks for (see ec2netctl status --json=pretty), then: systemctl reload ec2netd",
			"the [ENI] section at %s holds for no ENI", section))
	}
	return all
}

// forNone returns the sections of the configuration that hold for no ENI, as FILE:LINE.
func forNone(sections []config.Section, enis []config.Identity) []string {
	var found []string
	for i := range sections {
		if !slices.ContainsFunc(enis, sections[i].Holds) {
			found = append(found, fmt.Sprintf("%s:%d", sections[i].File, sections[i].Line))
		}
	}
	return found
}

// identities returns what sections can ask of ENIs, by the state and by the drivers of their links.
func identities(s *state.State, links []kernel.Link) []config.Identity {
	drivers := make(map[string]string)
	for i := range links {
		drivers[links[i].Name] = links[i].Driver
	}
	number := func(n int) *int {
		if n == state.Unknown {
			return nil
		}
		return &n
	}
	all := make([]config.Identity, 0, len(s.Interfaces))
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		all = append(all, config.Identity{
			ENIID: e.ENIID, MAC: e.MAC, Name: e.Name, Driver: drivers[e.Name], Primary: &e.Primary,
			DeviceIndex: number(e.DeviceIndex), NetworkCard: number(e.NetworkCard),
		})
	}
	return all
}
