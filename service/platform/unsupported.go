package platform

import (
	"context"
	"errors"
	"log/slog"
	"time"

	"ec2netd/service/dropin"
	"ec2netd/service/metrics"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// Advice says what to do if a machine is an EC2 instance and was not recognized.
const Advice = status.PlatformAdvice

// Store keeps the generated files.
type Store interface {
	Read(path string) string
	Release() error
}

// Networkd is systemd-networkd.
type Networkd interface {
	Owner(ctx context.Context) (string, error)
	Reload(ctx context.Context) error
}

// Options configure an [Unsupported].
type Options struct {
	// Version of the daemon, and Reason why it does nothing on this machine, see
	// [Identity.NotEC2].
	Version, Reason string
	Store           Store
	Networkd        Networkd
	Log             *slog.Logger
	// Watchdog is called each WatchdogEvery; nil for never.
	Watchdog      func()
	WatchdogEvery time.Duration
}

// Unsupported replaces the daemon's loop on a machine that is not an EC2 instance. It
// observes and configures nothing, and reports that to all clients.
type Unsupported struct {
	options Options
	state   *state.State
	ready   chan struct{}
}

// NewUnsupported returns an Unsupported, which does nothing before Run.
func NewUnsupported(options Options) *Unsupported {
	return &Unsupported{
		options: options, ready: make(chan struct{}),
		state: &state.State{
			Version: options.Version, State: state.Unsupported, Reason: status.Reason{Code: status.NotEC2, Cause: options.Reason}.Words(),
			Conflicts: []state.Conflict{}, Interfaces: []state.Interface{},
		},
	}
}

// String returns the name of the task.
func (*Unsupported) String() string { return "unsupported platform" }

// Ready is closed when the state is available.
func (u *Unsupported) Ready() <-chan struct{} { return u.ready }

// Run waits until ctx ends.
func (u *Unsupported) Run(ctx context.Context) error {
	u.options.Log.Info("Nothing is configured", "reason", u.options.Reason, "advice", Advice)
	u.release(ctx)
	close(u.ready)
	var watchdog <-chan time.Time
	if u.options.Watchdog != nil && u.options.WatchdogEvery > 0 {
		ticker := time.NewTicker(u.options.WatchdogEvery)
		defer ticker.Stop()
		watchdog = ticker.C
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-watchdog:
			u.options.Watchdog()
		}
	}
}

// release makes networkd configure new ENIs by the base unit, if an earlier run of the
// daemon, with Platform=any, has told it to leave them to the daemon (E9).
func (u *Unsupported) release(ctx context.Context) {
	if !dropin.Ours(u.options.Store.Read(plan.HoldPath)) {
		return
	}
	err := u.options.Store.Release()
	if owner, ownerErr := u.options.Networkd.Owner(ctx); err == nil && ownerErr == nil && owner != "" {
		err = u.options.Networkd.Reload(ctx)
	}
	if err != nil {
		u.options.Log.Warn("networkd goes on to leave new ENIs alone: remove "+plan.HoldPath+" and call networkctl reload", "reason", err.Error())
	}
}

// State returns the state, which never changes.
func (u *Unsupported) State() *state.State { return u.state }

// Watch returns a channel with the state, which is closed when ctx ends.
func (u *Unsupported) Watch(ctx context.Context) <-chan *state.State {
	out := make(chan *state.State)
	go func() {
		defer close(out)
		select {
		case out <- u.state:
			<-ctx.Done()
		case <-ctx.Done():
		}
	}()
	return out
}

// Refresh fails: there is no metadata to read.
func (u *Unsupported) Refresh(context.Context, bool) (*state.Changes, error) {
	return nil, errors.New(u.state.Reason)
}

// RefreshInterface fails as [Unsupported.Refresh] does.
func (u *Unsupported) RefreshInterface(ctx context.Context, _ string, wait bool) (*state.Changes, error) {
	return u.Refresh(ctx, wait)
}

// Metrics returns the state, and counters that stay 0.
func (u *Unsupported) Metrics() []metrics.Metric { return metrics.Metrics(metrics.Numbers{}, u.state) }
