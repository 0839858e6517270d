package doctor

import (
	"cmp"
	"path"
	"strings"

	"ec2netd/service/networkd"
	"ec2netd/service/systemd"
)

// needed are the units that the presets enable, in the order of the preset file.
var needed = []string{systemd.Networkd, systemd.WaitOnline, systemd.Resolved, systemd.Daemon, systemd.Socket, systemd.MetricsSocket}

// mustRun reports whether a unit must be active for the others to be of use.
func mustRun(unit string) bool {
	return unit == systemd.Networkd || unit == systemd.Socket || unit == systemd.MetricsSocket
}

// units judges each unit that the presets enable.
func units(f *Facts) []Finding {
	if f.UnitsError != "" {
		return []Finding{problem(UnitStates, "see systemctl status dbus.service", "systemd cannot be asked for its units: %s", f.UnitsError)}
	}
	all := make([]Finding, len(f.Units))
	for i := range f.Units {
		all[i] = ofUnit(&f.Units[i])
	}
	return all
}

// ofUnit judges one unit.
func ofUnit(u *networkd.UnitState) Finding {
	complain := problem
	if u.Name == systemd.MetricsSocket {
		complain = warning
	}
	preset := "systemctl preset " + u.Name
	enable, start := commands(u.Name)
	switch {
	case u.File == "masked-runtime":
		return complain(UnitStates, "systemctl unmask --runtime "+u.Name+" && "+enable, "%s is masked until the next boot", u.Name)
	case u.Load == "masked" || u.File == "masked":
		return complain(UnitStates, "systemctl unmask "+u.Name+" && "+enable, "%s is masked", u.Name)
	case u.Load == "not-found" && u.Name == systemd.Resolved:
		return warning(UnitStates, "install it, or have something else take the name servers of networkd's leases", "%s is not installed", u.Name)
	case u.Load == "not-found":
		return complain(UnitStates, "install it", "%s is not installed", u.Name)
	case u.Preset == "disabled":
		return complain(UnitStates, "see which file in /etc, /run and /usr/lib/systemd/system-preset names it before 80-ec2netd.preset does, and correct or remove it, then: "+preset,
			"%s is disabled by the presets, which are to enable it", u.Name)
	case !enabled(u):
		return complain(UnitStates, preset+" && "+start, "%s is %s, though the presets enable it", u.Name, cmp.Or(u.File, "not enabled"))
	case u.Active == "failed":
		return complain(UnitStates, "systemctl status "+u.Name, "%s has failed", u.Name)
	case mustRun(u.Name) && u.Active != "active":
		return complain(UnitStates, start, "%s is %s", u.Name, u.Active)
	default:
		return ok(UnitStates, "%s is %s and %s", u.Name, u.File, u.Active)
	}
}

// enabled reports whether a unit counts as enabled.
func enabled(u *networkd.UnitState) bool {
	return strings.HasPrefix(u.File, "enabled") || u.File == "static" || u.File == "alias" || u.File == "linked"
}

// commands returns the command that enables a unit, whatever the presets say, and starts it, and the
// command that starts a unit that is enabled.
func commands(unit string) (enable, start string) {
	start = "systemctl start " + unit
	switch {
	case unit == systemd.WaitOnline:
		return "systemctl enable " + unit, start
	case strings.HasPrefix(unit, "ec2netd") && path.Ext(unit) == ".socket":
		// A socket is not started while its service runs. The service wants its sockets, and is
		// started after them. One that was masked meanwhile may be active and not listen.
		start = "systemctl restart " + systemd.Daemon
		return "systemctl enable " + unit + " && systemctl stop " + unit + " && " + start, start
	default:
		return "systemctl enable --now " + unit, start
	}
}
