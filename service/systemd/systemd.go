// Package systemd names the units that the presets enable, and the commands that enable and start them.
//
// It looks at unit files only, as systemd may not answer. Package networkd asks systemd over the bus.
package systemd

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// The units that the presets enable, see 80-ec2netd.preset.
const (
	Networkd = "systemd-networkd.service"
	// WaitOnline is for boots alone.
	WaitOnline = "systemd-networkd-wait-online.service"
	Resolved   = "systemd-resolved.service"
	Daemon     = "ec2netd.service"
	Socket     = "ec2netd.socket"
	// MetricsSocket is for monitoring alone. It is enabled with the daemon.
	MetricsSocket = "ec2netd-metrics.socket"
)

// UnitFiles looks at the unit files of a system.
type UnitFiles struct {
	// Root is put before every path; empty for the system.
	Root string
}

// Masked returns those of some units that are masked for good, and those that are masked until the next
// boot.
func (f UnitFiles) Masked(units ...string) (lasting, runtime []string) {
	masked := func(dir, unit string) bool {
		file, err := os.Stat(filepath.Join("/", f.Root, dir, unit))
		return err == nil && !file.IsDir() && file.Size() == 0 // as systemd has it: /dev/null, or an empty file
	}
	for _, unit := range units {
		if masked("etc/systemd/system", unit) {
			lasting = append(lasting, unit)
		}
		if masked("run/systemd/system", unit) {
			runtime = append(runtime, unit)
		}
	}
	return lasting, runtime
}

// AnyMasked reports whether one of some units is masked.
func (f UnitFiles) AnyMasked(units ...string) bool {
	lasting, runtime := f.Masked(units...)
	return len(lasting)+len(runtime) > 0
}

// EnableCommand returns the command that enables units, so that each boot starts them. It works for
// masked units too: systemctl preset has no effect on those.
func (f UnitFiles) EnableCommand(units ...string) string { return f.enable("", units) }

// enable returns the command that enables units. Now is "--now " to start them too.
func (f UnitFiles) enable(now string, units []string) string {
	all := units
	if slices.Contains(units, Daemon) {
		all = append(slices.Clone(units), MetricsSocket)
	}
	lasting, runtime := f.Masked(all...)
	var commands []string
	if len(lasting) > 0 {
		commands = append(commands, "systemctl unmask "+strings.Join(lasting, " "))
	}
	if len(runtime) > 0 {
		commands = append(commands, "systemctl unmask --runtime "+strings.Join(runtime, " "))
	}
	return strings.Join(append(commands, "systemctl enable "+now+strings.Join(units, " ")), " && ")
}

// StartCommand returns the command that starts the daemon and its socket, now and at each boot.
//
// systemd starts no socket while its service runs, which it does if the socket alone was masked. A socket
// that was masked meanwhile may be active without listening. The service wants its sockets, and starts
// after them.
func (f UnitFiles) StartCommand() string {
	if f.AnyMasked(Socket, Daemon) {
		return f.EnableCommand(Socket, Daemon) + " && systemctl stop " + Socket + " && systemctl restart " + Daemon
	}
	return f.enable("--now ", []string{Socket, Daemon})
}
