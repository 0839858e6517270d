package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/networkd"
	"ec2netd/service/takeover"
)

const (
	// takeoverTime is how long the ENIs may take to be configured.
	takeoverTime = 60 * time.Second
	// followEvery is how often the record of a takeover is read, and askEvery how often
	// systemd is asked whether its unit still runs.
	followEvery = 100 * time.Millisecond
	askEvery    = time.Second
)

// takeoverOptions are the flags of takeover.
type takeoverOptions struct {
	dryRun, yes bool
	// phase is what the unit does, see [takeover.StartUnit]; empty for people.
	phase string
}

// The phases.
const (
	phaseDo     = "do"
	phaseSettle = "settle"
)

// takeover makes the running system what the next boot would make of it. It shows what is to
// be done and asks; a unit of systemd's does it, which this only watches (J3).
func (c *ctl) takeover(ctx context.Context, o *takeoverOptions) error {
	switch o.phase {
	case phaseDo:
		return c.unitOfTakeover().Do(ctx)
	case phaseSettle:
		return c.unitOfTakeover().Settle(ctx, takeover.ProcessEnd(os.Getenv))
	case "":
	default:
		return &usageError{"there is no phase " + o.phase}
	}
	if c.uid != 0 && !o.dryRun {
		return advise("Try: sudo ec2netctl takeover", "taking over is for root")
	}
	if !o.dryRun {
		if done, err := c.earlierTakeover(ctx, o); done || err != nil {
			return err
		}
	}
	p, links, err := c.planTakeover(ctx)
	if err != nil {
		return err
	}
	would := ""
	if o.dryRun {
		would = "Would "
	}
	if c.wantsJSON() {
		err = c.printJSON(p)
	} else {
		err = c.print(p.Words(would))
	}
	if err != nil || o.dryRun {
		return err
	}
	if err := c.confirm(o, "The ENIs may be down for a moment. Take over now?"); err != nil {
		return err
	}
	request := &takeover.Request{Plan: *p, Links: links, Timeout: c.within(takeoverTime)}
	if err := takeover.Prepare(c.root, request); err != nil {
		if errors.Is(err, fs.ErrExist) {
			return advise("Run ec2netctl takeover again to see what becomes of it.", "somebody else has just begun a takeover")
		}
		return err
	}
	return c.watchTakeover(ctx, phaseDo)
}

// unitOfTakeover is what the unit works with.
func (c *ctl) unitOfTakeover() *takeover.Takeover {
	return &takeover.Takeover{Root: c.root, System: takeover.Host{}, Kernel: takeover.Host{}, Out: c.stdout, Wait: func(ctx context.Context, r *takeover.Request) error {
		silent := *c
		silent.json = ""
		err := silent.waitOnline(ctx, &waitOptions{timeout: span(r.Timeout), quiet: true})
		if errors.Is(err, errSilent) {
			return fmt.Errorf("the ENIs were not configured within %v", r.Timeout)
		}
		return err
	}}
}

// planTakeover looks at the system and says what has to be done, and for which links.
func (c *ctl) planTakeover(ctx context.Context) (*takeover.Plan, []string, error) {
	units, err := takeover.PresetUnits(c.root)
	if err != nil {
		return nil, nil, advised(err)
	}
	site, err := c.look()
	if err == nil {
		err = site.supported()
	}
	if err != nil {
		return nil, nil, err
	}
	survey := &takeover.Survey{
		Root: c.root, Units: units, Links: site.seen.Kernel.Links,
		NetworkFiles: site.seen.Files, Networkd: &networkd.Client{Root: c.root}, Systemctl: takeover.Host{}.Systemctl,
	}
	p, links, err := survey.Plan(ctx)
	return p, links, advised(err)
}

// advised returns an error with its advice, if a takeover is refused.
func advised(err error) error {
	var refused *takeover.RefusedError
	if errors.As(err, &refused) {
		return advise(refused.Advice, "%w", err)
	}
	return err
}

// earlierTakeover says what became of a takeover whose terminal has gone, and reports whether
// that is all there is to do: one that runs is watched, one that somebody has killed for good is
// undone, and the outcome of one that has ended is told.
func (c *ctl) earlierTakeover(ctx context.Context, o *takeoverOptions) (done bool, err error) {
	records, exists, err := takeover.Read(c.root)
	if err != nil || !exists {
		return err != nil, err
	}
	runs, err := takeover.UnitRuns(ctx)
	if err != nil {
		return true, err
	}
	if runs {
		c.tell("A takeover is under way; this is what it does.\n")
		return true, c.watchTakeover(ctx, "")
	}
	switch last := records.Last(); last.Outcome {
	case takeover.Configured, takeover.Restored:
		c.tell(fmt.Sprintf("An earlier takeover ended at %s.\n", last.Time.Local().Format(time.DateTime)))
		outcome := c.tellOutcome(last)
		if err := takeover.Discard(c.root); err != nil {
			return true, err
		}
		if outcome != nil {
			c.tell(outcome.Error() + "\n")
		}
		if last.Outcome == takeover.Restored {
			return false, nil
		}
		// Something else may own the links again since.
		p, _, err := c.planTakeover(ctx)
		return err != nil || len(p.Stop)+len(p.Start)+len(p.Remove) == 0, err
	case takeover.Broken:
		c.tell("An earlier takeover failed, and so did putting back what ran before.\n")
	default:
		c.tell("An earlier takeover was interrupted.\n")
	}
	if err := c.confirm(o, "Put back what ran before?"); err != nil {
		return true, err
	}
	return true, c.watchTakeover(ctx, phaseSettle)
}

// confirm asks on the terminal whether to go on. It fails where the answer is not yes, or where
// there is nobody to ask.
func (c *ctl) confirm(o *takeoverOptions, question string) error {
	if o.yes {
		return nil
	}
	if !c.asks {
		return advise("To take over without being asked: ec2netctl takeover --yes", "there is no terminal to ask on")
	}
	fmt.Fprintf(c.stderr, "%s [y/N] ", question)
	answer, err := bufio.NewReader(c.stdin).ReadString('\n')
	if err != nil {
		fmt.Fprintln(c.stderr)
	}
	if answer = strings.ToLower(strings.TrimSpace(answer)); answer != "y" && answer != "yes" {
		return errors.New("nothing was changed")
	}
	return nil
}

// tell prints for people. That the terminal is gone is no error: the takeover does not need it.
func (c *ctl) tell(text string) {
	if c.wantsJSON() {
		return
	}
	if err := c.print(text); err != nil {
		c.deaf = true
	}
}

// tellOutcome prints how a takeover ended, or returns it as an error.
func (c *ctl) tellOutcome(last takeover.Record) error {
	if last.Error == "" {
		c.tell(last.Text + "\n")
		return nil
	}
	return advise(last.Hint, "%s", last.Error)
}

// watchTakeover starts the unit for a phase, if one is given, and shows what it does until it
// has ended. An interrupt makes the unit roll back. That the terminal goes away changes nothing:
// the outcome is kept for the next one who asks.
func (c *ctl) watchTakeover(ctx context.Context, phase string) error {
	signals := make(chan os.Signal, 8)
	signal.Notify(signals, unix.SIGINT, unix.SIGTERM, unix.SIGHUP)
	defer signal.Stop(signals)
	// A write to a pipe that nobody reads would end the process.
	signal.Ignore(unix.SIGPIPE)
	shown := 0
	if phase != "" {
		if records, _, err := takeover.Read(c.root); err == nil {
			shown = len(records) // of the attempt that is settled now
		}
		if err := takeover.StartUnit(ctx, []string{"takeover", "--phase=" + phase}, []string{"takeover", "--phase=" + phaseSettle}); err != nil {
			if runs, unknown := takeover.UnitRuns(ctx); !runs && unknown == nil {
				err = fmt.Errorf("starting the takeover: %w", err)
				if shown > 0 {
					return err // what is noted is the way back
				}
				return errors.Join(err, takeover.Discard(c.root))
			}
		}
	}
	tick := time.NewTicker(followEvery)
	defer tick.Stop()
	for asked := time.Now(); ; {
		select {
		case s := <-signals:
			if s == unix.SIGHUP {
				c.deaf = true
				continue
			}
			c.tell("Interrupted. This goes on until what ran before runs again.\n")
			if err := takeover.StopUnit(ctx); err != nil {
				fmt.Fprintf(c.stderr, "ec2netctl: %s\n", clean(err.Error()))
			}
			continue
		case <-tick.C:
		}
		records, _, err := takeover.Read(c.root)
		if err != nil {
			return err
		}
		for ; shown < len(records); shown++ {
			if r := &records[shown]; r.Outcome == "" && r.Text != "" {
				c.tell(r.Text + "\n")
			}
		}
		if records.Last().Outcome == "" && time.Since(asked) < askEvery {
			continue
		}
		asked = time.Now()
		if runs, err := takeover.UnitRuns(ctx); err == nil && !runs {
			return c.endOfTakeover()
		}
	}
}

// endOfTakeover tells the outcome of the takeover whose unit has just ended.
func (c *ctl) endOfTakeover() error {
	records, exists, err := takeover.Read(c.root)
	if err != nil {
		return err
	}
	if !exists {
		return errors.New("another ec2netctl takeover, which watched it too, has told how it ended")
	}
	last := records.Last()
	if last.Outcome == "" {
		return advise("To put back what ran before, run ec2netctl takeover again.", "the takeover was killed before it ended, twice: see journalctl -u %s", takeover.Unit)
	}
	err = c.tellOutcome(last)
	if c.deaf || last.Outcome == takeover.Broken {
		return err // there is somebody yet who has to be told, or who can try again
	}
	return errors.Join(err, takeover.Discard(c.root))
}
