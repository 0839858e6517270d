package main

import (
	"os"
	"path/filepath"
	"slices"
	"strings"

	"ec2netd/service/takeover"
)

// The units of the daemon.
const (
	daemonUnit    = "ec2netd.service"
	daemonSocket  = "ec2netd.socket"
	metricsSocket = "ec2netd-metrics.socket"
)

// asPresetsSay is the advice to a takeover that is refused. systemctl preset is none: it changes
// nothing of a unit that is masked, or that a preset of the administrator's has as it is.
func (c *ctl) asPresetsSay(not *takeover.NotEnabledError) string {
	if not.Enabled {
		return "To have it disabled as the presets say: systemctl disable " + not.Unit
	}
	units := []string{not.Unit}
	if not.Unit == daemonUnit {
		units = []string{daemonSocket, daemonUnit}
	}
	return "To have it enabled as the presets say: " + c.enabling("", units...)
}

// enabling is the command that has each boot start units, and with "--now " starts them too. It
// works for units that are masked.
func (c *ctl) enabling(now string, units ...string) string {
	of := units
	if slices.Contains(units, daemonUnit) {
		of = append(slices.Clone(units), metricsSocket) // which is enabled with it
	}
	masked, runtime := c.masks(of...)
	var commands []string
	if len(masked) > 0 {
		commands = append(commands, "systemctl unmask "+strings.Join(masked, " "))
	}
	if len(runtime) > 0 {
		commands = append(commands, "systemctl unmask --runtime "+strings.Join(runtime, " "))
	}
	return strings.Join(append(commands, "systemctl enable "+now+strings.Join(units, " ")), " && ")
}

// starting is the command that has the daemon and its socket run now and after each boot. systemd
// starts no socket whose service runs, as it does where the socket alone was masked, and one that was
// masked meanwhile may be active and not listen. The service wants its sockets, and is started after
// them.
func (c *ctl) starting() string {
	if masked, runtime := c.masks(daemonSocket, daemonUnit); len(masked)+len(runtime) > 0 {
		return c.enabling("", daemonSocket, daemonUnit) + " && systemctl stop " + daemonSocket + " && systemctl restart " + daemonUnit
	}
	return c.enabling("--now ", daemonSocket, daemonUnit)
}

// masks returns those of some units that are masked for good, and those that are until the next boot.
func (c *ctl) masks(units ...string) (masked, runtime []string) {
	is := func(dir, unit string) bool {
		file, err := os.Stat(filepath.Join("/", c.root, dir, unit))
		return err == nil && !file.IsDir() && file.Size() == 0 // as systemd has it: /dev/null, or an empty file
	}
	for _, unit := range units {
		if is("etc/systemd/system", unit) {
			masked = append(masked, unit)
		}
		if is("run/systemd/system", unit) {
			runtime = append(runtime, unit)
		}
	}
	return masked, runtime
}
