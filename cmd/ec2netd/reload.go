package main

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"os"
	"syscall"

	"github.com/coreos/go-systemd/v22/daemon"
	"golang.org/x/sys/unix"

	"ec2netd/service/agent"
	"ec2netd/service/config"
)

// reloader takes up the configuration when a SIGHUP asks for it (H12). It is a task.
type reloader struct {
	hangups <-chan os.Signal
	root    string
	inForce config.Config
	// agent is nil on a machine that is no EC2 instance.
	agent *agent.Agent
	log   *slog.Logger
}

// String names the task.
func (r *reloader) String() string { return "reload" }

// Run waits for signals until ctx ends.
func (r *reloader) Run(ctx context.Context) error {
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-r.hangups:
		}
		notify(r.log, fmt.Sprintf("%s\nMONOTONIC_USEC=%d", daemon.SdNotifyReloading, monotonic()))
		if err := r.reload(ctx); err != nil {
			return err
		}
		notify(r.log, daemon.SdNotifyReady)
	}
}

// reload reads the configuration. One with a mistake is refused as a whole: what was meant
// is not known, and what is in force works.
func (r *reloader) reload(ctx context.Context) error {
	read := config.Load(r.root)
	next, problems := read, []string{}
	if len(read.Problems) > 0 {
		for _, problem := range read.Problems {
			r.log.Error("Configuration: " + problem.String())
		}
		r.log.Error("The configuration has mistakes and is not taken up; the former one holds")
		next, problems = r.inForce, problemsOf(read)
		problems[0] += " (not taken up; the former configuration holds)"
	}
	if what := r.needsRestart(next); what != "" {
		r.log.Warn(what + " takes effect when the daemon is restarted: systemctl restart " + ownUnit)
	}
	if r.agent != nil {
		err := r.agent.Configure(ctx, agent.Configuration{
			Endpoint: next.Endpoint, RefreshEvery: next.Refresh, Sections: next.ENIs, Drivers: next.Drivers, Problems: problems,
		})
		if err != nil {
			return nil //nolint:nilerr // the daemon is ending, which is no error
		}
	}
	if len(read.Problems) == 0 {
		r.inForce = read
		r.log.Info("Configuration taken up", "files", len(read.Files))
	}
	return nil
}

// needsRestart names what of a configuration needs another daemon, and is empty if nothing
// does: one that asks nobody, or one that does.
func (r *reloader) needsRestart(next config.Config) string {
	if idle := notEC2(next.Platform) != ""; idle != (r.agent == nil) {
		return fmt.Sprintf("[Match] Platform=%s", next.Platform)
	}
	return ""
}

// problemsOf are the mistakes of a configuration, in words.
func problemsOf(c config.Config) (problems []string) {
	for _, problem := range c.Problems {
		problems = append(problems, problem.String())
	}
	return problems
}

// askToReload has a daemon take up the configuration, unless it has a mistake. So
// "systemctl reload" fails where the daemon would refuse it.
func askToReload(pid int, root string, log *slog.Logger) error {
	problems := problemsOf(config.Load(root))
	for _, problem := range problems {
		log.Error("Configuration: " + problem)
	}
	if len(problems) > 0 {
		return errors.New("the configuration has mistakes; the former one holds")
	}
	if err := syscall.Kill(pid, syscall.SIGHUP); err != nil {
		return fmt.Errorf("sending SIGHUP to process %d: %w", pid, err)
	}
	return nil
}

// monotonic is the time of CLOCK_MONOTONIC in microseconds, as sd_notify(3) wants it.
func monotonic() int64 {
	var now unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &now); err != nil {
		return 0
	}
	return now.Nano() / 1000
}
