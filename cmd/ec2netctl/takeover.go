package main

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ec2netd/service/file"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/orphan"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/store"
)

const (
	// presetFile names the units that have to do with who owns the links.
	presetFile = "usr/lib/systemd/system-preset/80-ec2netd.preset"
	// takeoverTime is how long the ENIs may take to be configured.
	takeoverTime = 60 * time.Second
	// takenAway is where files of the old package are until it has worked out.
	takenAway = "/run/ec2netd.takeover"
	// networkFiles and runtimeFiles are where the daemon's files are.
	networkFiles = "/run/systemd/network/"
	runtimeFiles = "/run/ec2netd/"
	// networkdSocket is that of networkd 257 and later.
	networkdSocket = "/run/systemd/netif/io.systemd.Network"
	networkdUnit   = "systemd-networkd.service"
	daemonUnit     = "ec2netd.service"
	manager        = "NetworkManager.service"
)

// staleRules are the policy rules that are not for anybody after that.
func staleRules() *orphan.Record {
	return orphan.NewRecord(persist.Place{Path: takenAway + "/rules.json"})
}

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
	// Flush are links that are up, whose addresses and routes have to be set anew.
	Flush []string `json:"flush"`
}

// planTakeover compares what is enabled with what runs. It fails if the system would boot
// with another owner of the links than networkd.
func planTakeover(units []string, enabled, active func(unit string) bool, links []string, old bool) (*takeover, error) {
	t := &takeover{Stop: []string{}, Start: []string{}, Restart: []string{}, Remove: []string{}, Flush: []string{}}
	for _, unit := range []string{networkdUnit, daemonUnit} {
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
	// networkd 252 takes an address that it finds for none of its own, and adds it again
	// after the secondary ones: the primary address is the link's first only without.
	if slices.Contains(t.Stop, manager) || old && len(t.Restart) > 0 {
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
	if err == nil {
		err = site.supported()
	}
	if err != nil {
		return err
	}
	var links []string
	for _, l := range site.kernel.Links {
		said := (&networkd.Client{Root: c.root}).Link(l.Index)
		leftAlone := said.Administrative == "unmanaged" && said.File != "" // Unmanaged=yes
		if i, err := net.InterfaceByName(l.Name); err == nil && i.Flags&net.FlagUp != 0 && !leftAlone {
			links = append(links, l.Name)
		}
	}
	_, err = os.Stat(networkdSocket)
	t, err := planTakeover(units,
		func(unit string) bool { return systemctl(ctx, "is-enabled", "--quiet", unit) == nil },
		func(unit string) bool { return systemctl(ctx, "is-active", "--quiet", unit) == nil }, links, err != nil)
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
	wait := func() error {
		silent := *c
		silent.json = ""
		return silent.waitOnline(ctx, &waitOptions{timeout: span(c.within(takeoverTime)), quiet: true})
	}
	undo, err := t.do(ctx, wait)
	if err == nil {
		err = wait()
	}
	if err == nil {
		// Not before: what ec2netd's files want by now stays.
		if _, err := orphan.Remove(staleRules(), &store.Store{}); err != nil {
			return advise("A reboot removes them.", "policy rules of what ran before stay: %w", err)
		}
		if err := os.RemoveAll(takenAway); err != nil || c.wantsJSON() {
			return err
		}
		return c.print("The ENIs are configured, as after a boot.\n")
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

// do carries it out; wait waits for the ENIs. The returned function puts back what was
// there, as far as it came.
func (t *takeover) do(ctx context.Context, wait func() error) (undo func(context.Context) error, err error) {
	nothing := func(context.Context) error { return nil }
	before, err := generated()
	if err != nil {
		return nothing, err
	}
	if err := t.noteRules(); err != nil {
		return nothing, err
	}
	moved := map[string]string{}
	// networkd would notice that addresses are taken away, and ask for a lease; its socket
	// starts it for that.
	var quiet []string
	if len(t.Flush) > 0 {
		quiet = append([]string{"systemd-networkd*.socket"}, t.Restart...)
	}
	undo = func(ctx context.Context) error {
		var errs []error
		if stop := slices.Concat(t.Start, quiet); len(stop) > 0 {
			errs = append(errs, systemctl(ctx, append([]string{"stop"}, stop...)...))
		}
		takeBack := func(of string) {
			if !slices.Contains(t.Start, daemonUnit) {
				return // it runs, as before
			}
			after, err := generated()
			errs = append(errs, err)
			for _, file := range slices.Backward(after) { // what is in a directory comes after it
				if strings.HasPrefix(file, of) && !slices.Contains(before, file) {
					errs = append(errs, os.Remove(file))
				}
			}
		}
		takeBack(networkFiles)
		for from, to := range moved {
			errs = append(errs, os.MkdirAll(filepath.Dir(from), 0o755), os.Rename(to, from))
		}
		// Rules that no file wants any more, and networkd leaves when it stops.
		errs = append(errs, systemctl(ctx, "start", "ec2netd-orphans.service"))
		takeBack(runtimeFiles)
		for _, link := range t.Flush {
			// NetworkManager takes a link for up that was so when it stopped.
			errs = append(errs, flush(link), setUp(link))
		}
		for _, unit := range t.Restart {
			errs = append(errs, systemctl(ctx, "restart", unit))
		}
		if len(t.Stop) > 0 {
			errs = append(errs, systemctl(ctx, append([]string{"start"}, t.Stop...)...))
		}
		return errors.Join(append(errs, os.RemoveAll(takenAway))...)
	}
	if err := systemctl(ctx, append([]string{"stop"}, slices.Concat(t.Stop, oldUnits, quiet)...)...); err != nil {
		return undo, err
	}
	for i, file := range t.Remove {
		to := filepath.Join(takenAway, fmt.Sprint(i))
		if err := os.Rename(file, to); err != nil {
			return undo, fmt.Errorf("removing %s: %w", file, err)
		}
		moved[file] = to
	}
	for _, link := range t.Flush {
		if err := flush(link); err != nil {
			return undo, err
		}
	}
	// The daemon first, as at boot: networkd configures the primary ENI once then.
	slices.Sort(t.Start)
	for _, unit := range t.Start {
		if err := systemctl(ctx, "start", unit); err != nil {
			return undo, err
		}
	}
	// networkd that runs removes what was generated as it reads what ec2netd writes instead;
	// one that has just started would not know that it was its own.
	if len(t.Restart) > 0 && len(t.Flush) == 0 {
		if !slices.Contains(t.Start, daemonUnit) {
			// Its files are there, in the place of those that went.
			if out, err := exec.CommandContext(ctx, "networkctl", "reload").CombinedOutput(); err != nil {
				return undo, fmt.Errorf("networkctl reload: %w: %s", err, strings.TrimSpace(string(out)))
			}
		}
		if err := wait(); err != nil {
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

// noteRules notes the policy rules that nobody removes who stops, or starts without the
// file that has them: of the files that go, and by source for addresses that NetworkManager
// has set.
// They go at the end, those that are wanted by then excepted.
func (t *takeover) noteRules() error {
	stale, err := staleRules().Read() // of an attempt that was killed
	if err != nil {
		return err
	}
	for _, removed := range t.Remove {
		if err := filepath.WalkDir(removed, func(name string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.Type().IsRegular() {
				return err
			}
			text, err := file.Read(name, file.Limit)
			stale = append(stale, plan.RulesIn(text)...)
			return err
		}); err != nil {
			return fmt.Errorf("looking for policy rules of amazon-ec2-net-utils: %w", err)
		}
	}
	flushed := map[netip.Addr]bool{}
	for _, name := range t.Flush {
		if !slices.Contains(t.Stop, manager) {
			break // rules are those of files, which networkd that comes back reads
		}
		_, addresses, err := addressesOf(name)
		if err != nil {
			return err
		}
		for _, a := range addresses {
			if address, ok := netip.AddrFromSlice(a.IP); ok {
				flushed[address.Unmap()] = true
			}
		}
	}
	rules, err := kernel.Rules()
	if err != nil {
		return err
	}
	for i := range rules {
		if rule, ok := plan.RuleOf(&rules[i]); ok && rule.From.IsSingleIP() && flushed[rule.From.Addr()] {
			stale = append(stale, rule)
		}
	}
	if err := os.RemoveAll(takenAway); err != nil {
		return err
	}
	if err := os.MkdirAll(takenAway, 0o700); err != nil {
		return err
	}
	return staleRules().Write(stale)
}

// generated lists what there is of the daemon's: files of the names that it gives them
// for networkd and udevd, and what it keeps.
func generated() ([]string, error) {
	var all []string
	for _, pattern := range []string{
		networkFiles + "70-*.network", networkFiles + "70-*.link", networkFiles + "70-*.network.d", networkFiles + "70-*.link.d", plan.HoldPath, runtimeFiles + "*",
	} {
		found, err := filepath.Glob(pattern)
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

// addressesOf are those of a link, with the link.
func addressesOf(name string) (netlink.Link, []netlink.Addr, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return nil, nil, fmt.Errorf("looking at %s: %w", name, err)
	}
	addresses, err := netlink.AddrList(link, netlink.FAMILY_ALL)
	if err != nil {
		return nil, nil, fmt.Errorf("looking at the addresses of %s: %w", name, err)
	}
	return link, addresses, nil
}

// flush takes all addresses and routes from a link, and leaves it down as it is at boot:
// who configures it sets it up, and the kernel gives it its link-local address again.
func flush(name string) error {
	link, addresses, err := addressesOf(name)
	if err != nil {
		return err
	}
	if err := netlink.LinkSetDown(link); err != nil {
		return fmt.Errorf("setting %s down: %w", name, err)
	}
	for i := range addresses {
		// IPv6 ones have gone with that; secondary ones may go with the first of their subnet.
		if err := netlink.AddrDel(link, &addresses[i]); err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) {
			return fmt.Errorf("removing %s from %s: %w", addresses[i].IP, name, err)
		}
	}
	return nil
}

// setUp sets a link up that flush has left down.
func setUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
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
func presetUnits(name string) ([]string, error) {
	text, err := file.Read(name, file.Limit)
	if err != nil {
		return nil, advise("Is ec2netd installed as a package, or with make install PREFIX=/usr?", "reading which units are concerned: %w", err)
	}
	var units []string
	for line := range strings.Lines(text) {
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
