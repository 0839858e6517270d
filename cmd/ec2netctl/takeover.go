package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

const (
	// presetFile names the units that have to do with who owns the links.
	presetFile = "usr/lib/systemd/system-preset/80-ec2netd.preset"
	// takeoverTime is how long the ENIs may take to be configured.
	takeoverTime = 60 * time.Second
	// takenAway is where files of the old package are until it has worked out.
	takenAway    = "/run/ec2netd.takeover"
	networkdUnit = "systemd-networkd.service"
	manager      = "NetworkManager.service"
)

// oldFiles are what amazon-ec2-net-utils generates: of version 2.7 as for Amazon Linux,
// and, with 07, as for Debian.
var oldFiles = []string{
	"run/systemd/network/70-*.network.d/eni.conf",
	"run/systemd/network/70-*.network.d/ec2net_*.conf",
	"run/systemd/network/07-*.network",
	"run/systemd/network/07-*.network.d",
	"run/amazon-ec2-net-utils",
}

// oldUnits are the instances of its units.
var oldUnits = []string{"refresh-policy-routes@*.timer", "refresh-policy-routes@*.service", "policy-routes@*.service"}

// takeover is what has to be done for the running system to be as after a boot: what is
// enabled runs, what is disabled does not.
type takeover struct {
	Stop  []string `json:"stop"`
	Start []string `json:"start"`
	// Restart is networkd if it runs, which reads networkd.conf.d at its start only.
	Restart []string `json:"restart"`
	// Remove are files of amazon-ec2-net-utils.
	Remove []string `json:"remove"`
	// Flush are links whose addresses and routes another manager has set.
	Flush []string `json:"flush"`
}

// planTakeover compares what is enabled with what runs. It fails if the system would boot
// with another owner of the links than networkd.
func planTakeover(units []string, enabled, active func(unit string) bool, links []string) (*takeover, error) {
	t := &takeover{Stop: []string{}, Start: []string{}, Restart: []string{}, Remove: []string{}, Flush: []string{}}
	for _, unit := range []string{networkdUnit, "ec2netd.service"} {
		if !enabled(unit) {
			return nil, advise("To have it enabled as the presets say: systemctl preset "+unit, "%s is not enabled, so that a boot would not start it", unit)
		}
	}
	if enabled(manager) {
		return nil, advise("To have it disabled as the presets say: systemctl preset "+manager, "%s is enabled, and would own the links after a boot", manager)
	}
	for _, unit := range units {
		switch {
		case unit == networkdUnit && active(unit):
			t.Restart = append(t.Restart, unit)
		case strings.Contains(unit, "wait-online"):
			// They are for boots only.
		case enabled(unit) && !active(unit):
			t.Start = append(t.Start, unit)
		case !enabled(unit) && active(unit) && !strings.HasPrefix(unit, "ec2netd"):
			t.Stop = append(t.Stop, unit)
		}
	}
	if slices.Contains(t.Stop, manager) {
		t.Flush = links
	}
	return t, nil
}

// takeover makes the running system what the next boot would make of it, and puts it back
// if the ENIs do not come up.
func (c *ctl) takeover(ctx context.Context, dryRun bool) error {
	units, err := presetUnits(filepath.Join("/", c.root, presetFile))
	if err != nil {
		return err
	}
	site, err := c.look()
	if err != nil {
		return err
	}
	var links []string
	for _, l := range site.kernel.Links {
		links = append(links, l.Name)
	}
	t, err := planTakeover(units,
		func(unit string) bool { return systemctl(ctx, "is-enabled", "--quiet", unit) == nil },
		func(unit string) bool { return systemctl(ctx, "is-active", "--quiet", unit) == nil }, links)
	if err != nil {
		return err
	}
	for _, pattern := range oldFiles {
		found, err := filepath.Glob(filepath.Join("/", c.root, pattern))
		if err != nil {
			return err
		}
		t.Remove = append(t.Remove, found...)
	}
	if dryRun {
		return c.showTakeover(t, "Would ")
	}
	if c.uid != 0 {
		return advise("Try: sudo ec2netctl takeover", "taking over is for root")
	}
	if err := c.showTakeover(t, ""); err != nil {
		return err
	}
	undo, err := t.do(ctx)
	if err == nil {
		wait := &waitOptions{timeout: span(c.within(takeoverTime)), quiet: true}
		if err = c.waitOnline(ctx, wait); err == nil {
			if err := os.RemoveAll(takenAway); err != nil {
				return err
			}
			return c.print("The ENIs are configured, as after a boot.\n")
		}
	}
	if errors.Is(err, errSilent) {
		err = errors.New("the ENIs were not configured in time")
	}
	// Whatever ended the attempt, the links are to come back.
	if failed := undo(context.WithoutCancel(ctx)); failed != nil {
		return advise("A reboot makes the system what is enabled. See also ec2netctl doctor.", "%w; and putting back what was there failed: %w", err, failed)
	}
	return advise("See journalctl -u ec2netd -u systemd-networkd. What is enabled has not changed.", "%w; what ran before runs again", err)
}

// do carries it out. The returned function puts back what was there, as far as it came.
func (t *takeover) do(ctx context.Context) (undo func(context.Context) error, err error) {
	before, err := generated()
	if err != nil {
		return func(context.Context) error { return nil }, err
	}
	moved := map[string]string{}
	undo = func(ctx context.Context) error {
		errs := []error{systemctl(ctx, append([]string{"stop"}, t.Start...)...)}
		after, err := generated()
		errs = append(errs, err)
		for _, file := range slices.Backward(after) { // what is in a directory comes after it
			if !slices.Contains(before, file) {
				errs = append(errs, os.Remove(file))
			}
		}
		for from, to := range moved {
			errs = append(errs, os.MkdirAll(filepath.Dir(from), 0o755), os.Rename(to, from))
		}
		for _, unit := range t.Restart {
			errs = append(errs, systemctl(ctx, "restart", unit))
		}
		if len(t.Stop) > 0 {
			errs = append(errs, systemctl(ctx, append([]string{"start"}, t.Stop...)...))
		}
		return errors.Join(append(errs, os.RemoveAll(takenAway))...)
	}
	if err := systemctl(ctx, append([]string{"stop"}, slices.Concat(t.Stop, oldUnits)...)...); err != nil {
		return undo, err
	}
	for i, file := range t.Remove {
		to := filepath.Join(takenAway, fmt.Sprint(i))
		if err := os.MkdirAll(takenAway, 0o700); err != nil {
			return undo, err
		}
		if err := os.Rename(file, to); err != nil {
			return undo, fmt.Errorf("removing %s: %w", file, err)
		}
		moved[file] = to
	}
	for _, link := range t.Flush {
		if err := flush(link); err != nil {
			return undo, fmt.Errorf("removing the addresses of %s: %w", link, err)
		}
	}
	// The daemon first, as at boot: networkd configures the primary ENI once then.
	slices.Sort(t.Start)
	for _, unit := range t.Start {
		if err := systemctl(ctx, "start", unit); err != nil {
			return undo, err
		}
	}
	for _, unit := range t.Restart {
		if err := systemctl(ctx, "restart", unit); err != nil {
			return undo, err
		}
	}
	return undo, nil
}

// generated lists what there is of the names that the daemon gives files in /run.
func generated() ([]string, error) {
	var all []string
	for _, pattern := range []string{"70-*.network", "70-*.link", "70-*.network.d", "70-*.link.d"} {
		found, err := filepath.Glob(filepath.Join("/run/systemd/network", pattern))
		if err != nil {
			return nil, err
		}
		for _, name := range found {
			if err := filepath.WalkDir(name, func(file string, _ fs.DirEntry, err error) error {
				all = append(all, file)
				return err
			}); err != nil {
				return nil, err
			}
		}
	}
	slices.Sort(all)
	return all, nil
}

// flush takes the global addresses from a link, and with them its routes.
func flush(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return err
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for i := range addresses {
		if addresses[i].IP.IsGlobalUnicast() {
			if err := netlink.AddrDel(link, &addresses[i]); err != nil {
				return err
			}
		}
	}
	routes, err := netlink.RouteList(link, netlink.FAMILY_ALL)
	if err != nil {
		return err
	}
	for i := range routes {
		// Those of the kernel's own (2) go and come with the addresses.
		if routes[i].Protocol != 2 || routes[i].Priority != 256 {
			_ = netlink.RouteDel(&routes[i]) // it may have gone with its address
		}
	}
	return nil
}

// showTakeover says what is done.
func (c *ctl) showTakeover(t *takeover, would string) error {
	if c.wantsJSON() {
		return c.printJSON(t)
	}
	var out strings.Builder
	for _, step := range []struct {
		verb  string
		these []string
	}{
		{"stop", t.Stop}, {"remove", t.Remove}, {"take the addresses and routes from", t.Flush}, {"start", t.Start}, {"restart", t.Restart},
	} {
		if len(step.these) > 0 {
			text := would + step.verb + " " + strings.Join(step.these, ", ")
			out.WriteString(strings.ToUpper(text[:1]) + text[1:] + "\n")
		}
	}
	return c.print(out.String())
}

// presetUnits are the units that a preset file names, see systemd.preset(5).
func presetUnits(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, advise("Is ec2netd installed as a package, or with make install PREFIX=/usr?", "reading which units are concerned: %w", err)
	}
	var units []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) >= 2 && (f[0] == "enable" || f[0] == "disable") {
			units = append(units, f[1])
		}
	}
	return units, nil
}

// systemctl runs systemctl(1); its error has what that said.
func systemctl(ctx context.Context, args ...string) error {
	var stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, "systemctl", args...)
	cmd.Stderr = &stderr
	if err := cmd.Run(); err != nil {
		return fmt.Errorf("systemctl %s: %w: %s", strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return nil
}
