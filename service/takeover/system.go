package takeover

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"slices"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ec2netd/service/kernel"
	"ec2netd/service/orphan"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile/disk"
)

// Host is this machine: its [System] and its [Kernel].
type Host struct{}

// Systemctl implements [System]. Its error has what systemctl said.
func (Host) Systemctl(ctx context.Context, args ...string) (string, error) {
	return run(ctx, "systemctl", args...)
}

// Reload implements [System].
func (Host) Reload(ctx context.Context) error {
	_, err := run(ctx, "networkctl", "reload")
	return err
}

const (
	// restTime is how long networkd may take for a lease that it has had before, and restEvery
	// how often it is asked.
	restTime  = 20 * time.Second
	restEvery = 100 * time.Millisecond
)

// Rest implements [System]. It waits until networkd that runs has configured some links, or has given
// up on them. A link that it leaves alone does not count.
func (Host) Rest(ctx context.Context, links []string) {
	ctx, cancel := context.WithTimeout(ctx, restTime)
	defer cancel()
	for _, link := range links {
		for busy(ctx, link) {
			select {
			case <-ctx.Done():
				return
			case <-time.After(restEvery):
			}
		}
	}
}

// busy reports whether networkd has something to do for a link. It asks networkd itself: the
// files in /run/systemd/netif are those of the networkd before it for a moment.
func busy(ctx context.Context, link string) bool {
	out, err := run(ctx, "networkctl", "--json=short", "status", link)
	var status struct{ AdministrativeState string }
	if err != nil || json.Unmarshal([]byte(out), &status) != nil {
		return true // it is starting
	}
	return slices.Contains([]string{"pending", "initialized", "configuring"}, status.AdministrativeState)
}

// run runs a program in a process group of its own: a ^C on the terminal is for the caller.
func run(ctx context.Context, name string, args ...string) (string, error) {
	var stdout, stderr bytes.Buffer
	cmd := exec.CommandContext(ctx, name, args...)
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true}
	if err := cmd.Run(); err != nil {
		return stdout.String(), fmt.Errorf("%s %s: %w: %s", name, strings.Join(args, " "), err, strings.TrimSpace(stderr.String()))
	}
	return stdout.String(), nil
}

// NoteRules implements [Kernel]. The rules are those of the files that go, and by source those
// of addresses that NetworkManager has set. They go at the end, unless somebody wants them by
// then.
func (Host) NoteRules(file string, p *Plan) error {
	var stale []plan.Rule
	for _, old := range p.Remove {
		stale = append(stale, plan.RulesIn(string(readRegular(old)))...)
	}
	if slices.Contains(p.Stop, manager) { // otherwise the rules are those of files, which networkd that comes back reads
		of, err := rulesOfAddresses(p.Flush)
		if err != nil {
			return err
		}
		stale = append(stale, of...)
	}
	return orphan.NewRecord(persist.Place{Path: file}).Write(stale)
}

// rulesOfAddresses returns the policy rules whose source is an address of one of some links.
func rulesOfAddresses(links []string) ([]plan.Rule, error) {
	of := map[netip.Addr]bool{}
	for _, name := range links {
		_, addresses, err := addressesOf(name)
		if err != nil {
			return nil, err
		}
		for _, a := range addresses {
			if address, ok := netip.AddrFromSlice(a.IP); ok {
				of[address.Unmap()] = true
			}
		}
	}
	present, err := kernel.Rules()
	if err != nil {
		return nil, err
	}
	var rules []plan.Rule
	for i := range present {
		if rule, ok := plan.RuleOf(&present[i]); ok && rule.From.IsSingleIP() && of[rule.From.Addr()] {
			rules = append(rules, rule)
		}
	}
	return rules, nil
}

// RemoveRules implements [Kernel].
func (Host) RemoveRules(file string) error {
	_, err := orphan.Remove(orphan.NewRecord(persist.Place{Path: file}), &disk.Reader{})
	return err
}

// addressesOf returns a link and its addresses.
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

// Flush implements [Kernel]. The link is down afterwards as it is at boot: who configures it
// sets it up, and the kernel gives it its link-local address again.
func (Host) Flush(name string) error {
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

// SetUp implements [Kernel].
func (Host) SetUp(name string) error {
	link, err := netlink.LinkByName(name)
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		return fmt.Errorf("setting %s up: %w", name, err)
	}
	return nil
}

const (
	// Unit is the transient unit that carries out a takeover. It is nobody's session, so that
	// it outlives terminals, and PID 1 knows when its process ends.
	Unit = "ec2netd-takeover.service"
	// settleTime bounds what is done after the process, starting NetworkManager included.
	settleTime = "10min"
)

// StartUnit starts the unit: it runs the program with the arguments do, and after it, however
// that ends, with those of settle. It does that twice, so that the first may be killed too.
func StartUnit(ctx context.Context, do, settle []string) error {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("looking for ec2netctl: %w", err)
	}
	after := "--property=ExecStopPost=-" + program + " " + strings.Join(settle, " ")
	_, err = run(ctx, "systemd-run", append([]string{
		"--quiet", "--collect", "--no-ask-password", "--unit=" + Unit, "--service-type=exec",
		"--description=Make networkd and ec2netd Own the ENIs", after, after, "--property=TimeoutStopSec=" + settleTime, program,
	}, do...)...)
	return err
}

// StopUnit tells the unit to stop, which is to settle, and does not wait for that.
func StopUnit(ctx context.Context) error {
	_, err := run(ctx, "systemctl", "stop", "--no-block", Unit)
	return err
}

// UnitRuns reports whether the unit runs, or settles.
func UnitRuns(ctx context.Context) (bool, error) {
	state, err := run(ctx, "systemctl", "show", "--property=ActiveState", "--value", Unit)
	if err != nil {
		return false, err
	}
	return !slices.Contains([]string{"inactive", "failed", ""}, strings.TrimSpace(state)), nil
}

// ProcessEnd says how the process of the unit ended, as systemd tells those that it runs afterwards, see
// $EXIT_STATUS in systemd.exec(5). Getenv returns a variable of the environment.
func ProcessEnd(getenv func(string) string) string {
	code, end := getenv("EXIT_CODE"), getenv("EXIT_STATUS")
	switch {
	case code == "killed" && end == "TERM":
		return "it was interrupted"
	case code == "killed" || code == "dumped":
		return "its process was killed by SIG" + end
	default:
		return "its process ended (" + cmp.Or(end, "nobody knows how") + ")"
	}
}
