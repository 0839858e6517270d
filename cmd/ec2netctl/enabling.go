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
	daemonUnit   = "ec2netd.service"
	daemonSocket = "ec2netd.socket"
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
	if len(masked) > len(runtime) {
		masked = slices.DeleteFunc(masked, func(unit string) bool { return slices.Contains(runtime, unit) })
		commands = append(commands, "systemctl unmask "+strings.Join(masked, " "))
	}
	if len(runtime) > 0 {
		commands = append(commands, "systemctl unmask --runtime "+strings.Join(runtime, " "))
	}
	return strings.Join(append(commands, "systemctl enable "+now+strings.Join(units, " ")), " && ")
}

// masks returns those of some units that are masked, and those of them that are until the next boot.
func (c *ctl) masks(units ...string) (masked, runtime []string) {
	is := func(dir, unit string) bool {
		file, err := os.Stat(filepath.Join("/", c.root, dir, unit))
		return err == nil && !file.IsDir() && file.Size() == 0 // as systemd has it: /dev/null, or an empty file
	}
	for _, unit := range units {
		switch {
		case is("etc/systemd/system", unit):
			masked = append(masked, unit)
		case is("run/systemd/system", unit):
			masked, runtime = append(masked, unit), append(runtime, unit)
		}
	}
	return masked, runtime
}
