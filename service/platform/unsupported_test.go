package platform

import (
	"bytes"
	"context"
	"errors"
	"log/slog"
	"strings"
	"testing"
	"time"

	"ec2netd/api"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

var _ api.Agent = (*Unsupported)(nil)

// site is a disk with or without the unit that makes networkd leave new ENIs alone, and a
// networkd.
type site struct {
	hold              string
	owner             string
	released, reloads int
	refuses           error
}

func (s *site) Read(path string) string {
	if path != plan.HoldPath {
		panic("nothing else is to be read: " + path)
	}
	return s.hold
}

func (s *site) Release() error {
	s.released++
	return s.refuses
}

func (s *site) Owner(context.Context) (string, error) { return s.owner, nil }

func (s *site) Reload(context.Context) error {
	s.reloads++
	return s.refuses
}

func ping(pings chan<- struct{}) {
	select {
	case pings <- struct{}{}:
	default:
	}
}

// It reports the state, does nothing else, and ends when it is told to.
func TestUnsupported(t *testing.T) {
	ours := "# Written by ec2netd, see ec2netd(8)."
	for name, test := range map[string]struct {
		site              site
		released, reloads int
		warns             bool
	}{
		"a new machine":             {site{owner: ":1.1"}, 0, 0, false},
		"a unit of somebody's":      {site{hold: "[Match]", owner: ":1.1"}, 0, 0, false},
		"a unit of an earlier run":  {site{hold: ours, owner: ":1.1"}, 1, 1, false},
		"networkd does not run yet": {site{hold: ours}, 1, 0, false},
		"a disk that is full":       {site{hold: ours, owner: ":1.1", refuses: errors.New("no space")}, 1, 0, true},
	} {
		var log bytes.Buffer
		pings := make(chan struct{}, 1)
		u := NewUnsupported(Options{
			Version: "1.2.3", Reason: "no EC2 instance", Store: &test.site, Networkd: &test.site, Log: slog.New(slog.NewTextHandler(&log, nil)),
			Watchdog: func() { ping(pings) }, WatchdogEvery: time.Millisecond,
		})
		ctx, stop := context.WithTimeout(t.Context(), time.Minute)
		ended := make(chan error, 1)
		go func() { ended <- u.Run(ctx) }()
		<-u.Ready()
		views := u.Watch(ctx)
		s := <-views
		if s != u.State() || s.State != state.Unsupported || !strings.HasPrefix(s.Reason, "no EC2 instance, ") || !strings.Contains(s.Reason, "Platform=any") || s.Version != "1.2.3" {
			t.Errorf("%s: %+v", name, s)
		}
		_, err := u.Refresh(ctx, true)
		_, one := u.RefreshInterface(ctx, "02:00:00:00:00:01", false)
		for _, err := range []error{err, one} {
			if err == nil || err.Error() != s.Reason {
				t.Errorf("%s: a refresh: %v", name, err)
			}
		}
		if m := u.Metrics(); len(m) == 0 || m[0].Value != string(state.Unsupported) {
			t.Errorf("%s: metrics %+v", name, m)
		}
		select {
		case <-pings:
		case <-ctx.Done():
			t.Errorf("%s: the watchdog is not called", name)
		}
		stop()
		if err := <-ended; err != nil {
			t.Errorf("%s: %v", name, err)
		}
		if _, open := <-views; open {
			t.Errorf("%s: the state changed", name)
		}
		lines := strings.Count(log.String(), "\n")
		if test.site.released != test.released || test.site.reloads != test.reloads || strings.Contains(log.String(), "WARN") != test.warns || (!test.warns && lines != 1) {
			t.Errorf("%s: released %d, reloads %d, log:\n%s", name, test.site.released, test.site.reloads, &log)
		}
	}
}
