package agent

import (
	"context"
	"slices"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/schedule"
)

// Configuration is what of the configuration can change while the agent runs, as in
// [Options] and [poller.Options].
type Configuration struct {
	Endpoint     string
	RefreshEvery time.Duration
	Sections     []config.Section
	Drivers      []string
	Problems     []string
}

// configured is a configuration on its way to the loop, which closes done.
type configured struct {
	Configuration
	done chan struct{}
}

// Configure takes up another configuration (H12). When it returns files are written by it, and
// networkd has been asked to reload if any changed. The agent must run.
func (a *Agent) Configure(ctx context.Context, c Configuration) error {
	entry := configured{c, make(chan struct{})}
	select {
	case a.configurations <- entry:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case <-entry.done:
		return nil
	case <-ctx.Done():
		return ctx.Err()
	}
}

// takeUp puts a configuration in the place of the one in force, and makes a pass.
func (a *Agent) takeUp(ctx context.Context, c configured) {
	defer close(c.done)
	now := time.Now()
	a.Poller.Configure(c.Endpoint, c.RefreshEvery, now)
	if sooner := now.Add(schedule.Jitter(c.RefreshEvery)); c.RefreshEvery < a.RefreshEvery && a.nextRefresh.After(sooner) {
		a.nextRefresh = sooner
	}
	if !slices.Equal(c.Drivers, a.Drivers) && a.SetDrivers != nil {
		a.SetDrivers(c.Drivers)
	}
	a.RefreshEvery, a.Sections, a.Drivers, a.Problems = c.RefreshEvery, c.Sections, c.Drivers, c.Problems
	a.pass(ctx)
}
