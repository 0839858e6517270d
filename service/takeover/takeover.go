package takeover

import (
	"context"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"

	"ec2netd/service/plan"
)

const (
	networkdSockets = "systemd-networkd*.socket"
	orphansUnit     = "ec2netd-orphans.service"
)

// oldUnits are the instances of units of amazon-ec2-net-utils.
var oldUnits = []string{"refresh-policy-routes@*.timer", "refresh-policy-routes@*.service", "policy-routes@*.service"}

// System asks systemd and networkd for what a takeover needs.
type System interface {
	// Systemctl runs systemctl(1), whose output it returns.
	Systemctl(ctx context.Context, args ...string) (string, error)
	// Reload tells networkd to read its files again.
	Reload(ctx context.Context) error
	// Rest waits until networkd has nothing to do for some links, as long as that makes sense.
	Rest(ctx context.Context, links []string)
}

// Kernel is what a takeover changes itself: links, routes and policy rules.
type Kernel interface {
	// Flush takes all addresses and routes from a link and leaves it down; SetUp sets it up.
	Flush(link string) error
	SetUp(link string) error
	// NoteRules writes to a file the policy rules that nobody removes who stops, and
	// RemoveRules removes those of them that nobody wants by then.
	NoteRules(file string, p *Plan) error
	RemoveRules(file string) error
	// HoldRoutes sets stand-ins beside the routes over some links, and notes them in a file before.
	// ReleaseRoutes removes those of the file, if there is one, and where the takeover is done the
	// routes that the kernel has made of router advertisements.
	HoldRoutes(file string, links []string) error
	ReleaseRoutes(file string, done bool) error
}

// Takeover carries out the attempt of which the files are in [Dir].
type Takeover struct {
	// Root is put before every path; empty for the system.
	Root   string
	System System
	Kernel Kernel
	// Wait waits until the ENIs are configured.
	Wait func(ctx context.Context, request *Request) error
	// Out is told what is noted.
	Out io.Writer
}

func (t *Takeover) at(p string) string    { return filepath.Join("/", t.Root, p) }
func (t *Takeover) in(file string) string { return filepath.Join(t.at(Dir), file) }

// Do goes through the steps of a takeover. It never goes back: whatever ends it, [Takeover.Settle]
// is to be called after it, by another process.
func (t *Takeover) Do(ctx context.Context) error {
	var request Request
	if err := read(t.in(planFile), &request); err != nil {
		return err
	}
	if err := t.prepare(ctx, &request.Plan); err != nil {
		return errors.Join(err, t.note(Record{Error: err.Error()}))
	}
	for _, s := range t.steps(&request) {
		if err := t.note(Record{Step: s.step, Text: s.text}); err != nil {
			return err
		}
		if err := s.do(ctx); err != nil {
			return errors.Join(err, t.note(Record{Error: err.Error()}))
		}
	}
	if err := t.note(Record{Step: Commit}); err != nil {
		return err
	}
	return t.complete()
}

// prepare writes down what undoing needs.
func (t *Takeover) prepare(ctx context.Context, p *Plan) error {
	var before prior
	var err error
	if before.Generated, err = t.generated(); err != nil {
		return err
	}
	// The service that a timer starts is not started again: the timer does it.
	out, err := t.System.Systemctl(ctx, "list-units", "--plain", "--no-legend", "--state=active", oldUnits[0], oldUnits[2], networkdSockets)
	if err != nil {
		return err
	}
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 {
			before.Active = append(before.Active, f[0])
		}
	}
	if err := t.Kernel.NoteRules(t.in(rulesFile), p); err != nil {
		return err
	}
	if err := os.MkdirAll(t.in(movedDir), 0o700); err != nil {
		return fmt.Errorf("making room for the files of amazon-ec2-net-utils: %w", err)
	}
	return write(t.in(priorFile), &before)
}

type step struct {
	step Step
	text string
	do   func(context.Context) error
}

// steps lists the steps that a plan takes.
func (t *Takeover) steps(r *Request) []step {
	p := &r.Plan
	var steps []step
	add := func(needed bool, name Step, text string, do func(context.Context) error) {
		if needed {
			steps = append(steps, step{name, text, do})
		}
	}
	each := func(verb string, units []string) func(context.Context) error {
		return func(ctx context.Context) error {
			// systemd refuses to start what was started a few times within seconds.
			_, _ = t.System.Systemctl(ctx, append([]string{"reset-failed"}, units...)...) // fails for what has not
			for _, unit := range units {
				if _, err := t.System.Systemctl(ctx, verb, unit); err != nil {
					return err
				}
			}
			return nil
		}
	}
	wait := func(ctx context.Context) error { return t.Wait(ctx, r) }
	add(true, Stop, "Stopping what ran before", func(ctx context.Context) error {
		return t.stop(ctx, slices.Concat(p.Stop, oldUnits, p.quiet()))
	})
	add(len(p.Remove) > 0, Remove, "Removing the files of amazon-ec2-net-utils", func(context.Context) error { return t.move(p) })
	add(len(p.Flush) > 0, Flush, "Taking the addresses and routes from "+strings.Join(p.Flush, ", "), func(context.Context) error {
		for _, link := range p.Flush {
			if err := t.Kernel.Flush(link); err != nil {
				return err
			}
		}
		return nil
	})
	// networkd that runs removes what was generated as it reads what ec2netd writes instead;
	// one that has just started would not know that it was its own.
	running := len(p.Restart) > 0 && len(p.Flush) == 0
	add(running, Hold, "Keeping the routes of "+strings.Join(r.Links, ", ")+" meanwhile", func(context.Context) error {
		if err := t.Kernel.HoldRoutes(t.in(routesFile), r.Links); err != nil {
			// That may cost packets, and no more.
			return t.note(Record{Text: fmt.Sprintf("Some have no stand-in: %v", err)})
		}
		return nil
	})
	add(len(p.Start) > 0, Start, "Starting "+strings.Join(p.Start, ", "), each("start", p.Start))
	// Where the daemon runs already its files are there, in the place of those that went.
	add(running && !p.startsDaemon(), Reload, "Reloading systemd-networkd", t.System.Reload)
	add(running, Wait, "Waiting for the ENIs", wait)
	add(len(p.Restart) > 0, Restart, "Restarting "+strings.Join(p.Restart, ", "), each("restart", p.Restart))
	add(true, Wait, "Waiting until the ENIs are configured", wait)
	return steps
}

// stop stops units, sockets before the others: systemd stops a service before its socket, which
// starts it again if anything arrives in between, and each change of a link arrives for networkd.
func (t *Takeover) stop(ctx context.Context, units []string) error {
	var sockets, others []string
	for _, unit := range units {
		if strings.HasSuffix(unit, ".socket") {
			sockets = append(sockets, unit)
		} else {
			others = append(others, unit)
		}
	}
	var errs []error
	for _, group := range [][]string{sockets, others} {
		if len(group) > 0 {
			_, err := t.System.Systemctl(ctx, append([]string{"stop"}, group...)...)
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// move moves the files of amazon-ec2-net-utils away, and removes directories that they leave
// empty.
func (t *Takeover) move(p *Plan) error {
	for i, file := range p.Remove {
		if err := os.Rename(t.at(file), t.moved(i)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("removing %s: %w", file, err)
		}
	}
	for _, file := range p.Remove {
		// 70-IFNAME.network.d is where ec2netd's own drop-in is.
		if dir := filepath.Dir(file); strings.HasPrefix(filepath.Base(dir), "07-") {
			if err := os.Remove(t.at(dir)); err != nil && !isAny(err, fs.ErrNotExist, unix.ENOTEMPTY, unix.EEXIST) {
				return fmt.Errorf("removing %s: %w", dir, err)
			}
		}
	}
	return nil
}

// moved is where a file of the plan is meanwhile.
func (t *Takeover) moved(i int) string { return t.in(filepath.Join(movedDir, strconv.Itoa(i))) }

// complete removes what the new owners of the links do not want.
func (t *Takeover) complete() error {
	record := Record{Outcome: Configured, Text: "The ENIs are configured, as after a boot."}
	if err := errors.Join(t.Kernel.RemoveRules(t.in(rulesFile)), t.Kernel.ReleaseRoutes(t.in(routesFile), true)); err != nil {
		record.Error, record.Hint = fmt.Sprintf("policy rules or routes that nobody wants stay: %v", err), "A reboot removes them."
	}
	return errors.Join(os.RemoveAll(t.in(movedDir)), t.note(record))
}

// Settle brings an attempt to one of its two ends after [Takeover.Do] is gone: it completes the
// attempt if the ENIs were configured, and otherwise puts back what was there before. It does so
// again after an attempt at that which failed or was killed. Died says how the process that did
// it ended, in case it could not say so itself.
func (t *Takeover) Settle(ctx context.Context, died string) error {
	records, exists, err := Read(t.Root)
	if err != nil || !exists {
		return err
	}
	if last := records.Last().Outcome; last == Configured || last == Restored {
		return nil
	}
	if records.Began(Commit) {
		return t.complete()
	}
	cause := records.failure()
	if cause == "" {
		cause = died
	}
	if err := t.note(Record{Step: Undo, Text: "Putting back what ran before"}); err != nil {
		return err
	}
	if err := t.undo(ctx, records); err != nil {
		return errors.Join(err, t.note(Record{
			Outcome: Broken, Error: fmt.Sprintf("%s; and putting back what was there failed: %v", cause, err),
			Hint: "Try again with: ec2netctl takeover. A reboot makes the system what is enabled. See also ec2netctl doctor.",
		}))
	}
	return errors.Join(os.RemoveAll(t.in(movedDir)), t.note(Record{
		Outcome: Restored, Error: cause + "; what ran before runs again",
		Hint: "See journalctl -u " + Unit + " -u ec2netd -u systemd-networkd. What is enabled has not changed.",
	}))
}

// undo puts back what was there, as far as the attempt came. Each of its parts may have been
// done before.
func (t *Takeover) undo(ctx context.Context, records Records) error {
	if !records.Began(Stop) {
		return nil
	}
	var r Request
	var before prior
	if err := errors.Join(read(t.in(planFile), &r), read(t.in(priorFile), &before)); err != nil {
		return err
	}
	p := &r.Plan
	var errs []error
	systemctl := func(args ...string) {
		_, err := t.System.Systemctl(ctx, args...)
		errs = append(errs, err)
	}
	// systemd refuses to start what was started a few times within seconds.
	start := func(verb string, units ...string) {
		if len(units) > 0 {
			_, _ = t.System.Systemctl(ctx, append([]string{"reset-failed"}, units...)...) // fails for what has not
			systemctl(append([]string{verb}, units...)...)
		}
	}
	flush := p.toFlush(records, r.Links)
	var stop []string
	if records.Began(Start) {
		stop = slices.Clone(p.Start)
	}
	if len(flush) > 0 {
		// Undoing that was killed may have started what ran before: NetworkManager takes half a
		// minute to come back to a link that it loses.
		stop = slices.Concat(stop, []string{networkdSockets}, p.Restart, p.Stop)
	}
	errs = append(errs, t.stop(ctx, stop))
	errs = append(errs, t.Kernel.ReleaseRoutes(t.in(routesFile), false), t.takeBack(p, &before, networkFiles), t.moveBack(p))
	if records.Began(Start) {
		// Rules that no file wants any more, and networkd leaves when it stops.
		start("start", orphansUnit)
		errs = append(errs, t.takeBack(p, &before, runtimeFiles))
	}
	for _, link := range flush {
		// NetworkManager takes a link for up that was so when it stopped.
		errs = append(errs, t.Kernel.Flush(link), t.Kernel.SetUp(link))
	}
	start("start", slices.DeleteFunc(slices.Clone(before.Active), func(unit string) bool { return !strings.HasSuffix(unit, ".socket") })...)
	if len(flush) > 0 && len(p.Restart) > 0 {
		start("restart", p.Restart...)
		t.System.Rest(ctx, r.Links)
	}
	// networking.service before what udev had configured later, so that the default route is by the
	// ENI by which it was.
	start("start", slices.DeleteFunc(slices.Clone(p.Stop), hotplugged)...)
	for _, unit := range p.Stop {
		if hotplugged(unit) {
			start("start", unit)
		}
	}
	old := slices.DeleteFunc(slices.Clone(before.Active), func(unit string) bool { return strings.HasSuffix(unit, ".socket") })
	if len(old) > 0 {
		// Each waits for networkd and the metadata service.
		systemctl(append([]string{"start", "--no-block"}, old...)...)
	}
	return errors.Join(errs...)
}

// toFlush lists the links whose addresses and routes are set anew as an attempt is undone, so that
// who comes back finds nothing on them that it would not remove, or add to in another order.
func (p *Plan) toFlush(records Records, links []string) []string {
	switch {
	case records.Began(Flush), len(p.Restart) > 0 && len(p.Flush) > 0:
		// networkd of before 257 does not recognise what it finds, see [Make]. NetworkManager
		// does, as long as it is all there.
		return p.Flush
	case len(p.Restart) > 0 && records.Began(Start):
		// networkd has set the links as ec2netd wants them. Until then it runs on, and has
		// noticed nothing.
		return links
	default:
		return nil
	}
}

// takeBack removes a directory and the files below it that the daemon has made meanwhile, if it did
// not run before.
func (t *Takeover) takeBack(p *Plan, before *prior, below string) error {
	if !p.startsDaemon() {
		return nil
	}
	now, err := t.generated()
	errs := []error{err}
	for _, file := range slices.Backward(now) { // what is in a directory comes after it
		if !strings.HasPrefix(file+"/", below) || slices.Contains(before.Generated, file) {
			continue
		}
		// A directory stays that has something of others' in it.
		if err := os.Remove(t.at(file)); err != nil && !isAny(err, fs.ErrNotExist, unix.ENOTEMPTY, unix.EEXIST) {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// moveBack undoes move.
func (t *Takeover) moveBack(p *Plan) error {
	var errs []error
	for i, file := range p.Remove {
		if _, err := os.Lstat(t.moved(i)); errors.Is(err, fs.ErrNotExist) {
			continue // it was not moved, or is back
		}
		errs = append(errs, os.MkdirAll(filepath.Dir(t.at(file)), 0o755), os.Rename(t.moved(i), t.at(file)))
	}
	return errors.Join(errs...)
}

// generated lists the daemon's files that there are: those that it gives networkd and udevd,
// with their directories, and its own. It links to others' drop-ins besides writing its own.
func (t *Takeover) generated() ([]string, error) {
	all, err := glob(t.Root, networkFiles+"70-*.network", networkFiles+"70-*.link", networkFiles+"70-*.network.d", networkFiles+"70-*.link.d",
		networkFiles+"*.d/"+plan.DropInName, networkFiles+"*.d/"+plan.MatchDropIn,
		networkFiles+"*.d/"+plan.StartDropInName, plan.HoldPath)
	if err != nil {
		return nil, err
	}
	within, err := glob(t.Root, networkFiles+"*.network.d/*", networkFiles+"70-*.link.d/*")
	if err != nil {
		return nil, err
	}
	for _, file := range within {
		if info, err := os.Lstat(t.at(file)); err == nil && info.Mode()&fs.ModeSymlink != 0 {
			all = append(all, file)
		}
		if filepath.Base(file) == plan.DropInName {
			// Of a generator's file too: the directory is made for what is in it.
			all = append(all, filepath.Dir(file))
		}
	}
	if err := filepath.WalkDir(t.at(runtimeFiles), func(file string, _ fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) {
			return nil // it goes as the daemon stops
		}
		all = append(all, filepath.Clean("/"+strings.TrimPrefix(file, t.at("/"))))
		return err
	}); err != nil {
		return nil, fmt.Errorf("looking for the files of ec2netd: %w", err)
	}
	slices.Sort(all)
	return slices.Compact(all), nil
}

func isAny(err error, targets ...error) bool {
	return slices.ContainsFunc(targets, func(target error) bool { return errors.Is(err, target) })
}
