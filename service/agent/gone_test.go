package agent

import (
	"testing"
	"time"

	"ec2netd/service/compare"
)

// B10: a Refresh has what is gone put back at once, but for the routes of routers that go with a
// reload, which networkd 252 brings back by itself.
func TestHurry(t *testing.T) {
	t.Parallel()
	now := time.Now()
	for _, c := range []struct {
		name            string
		early, byRouter bool
		want            time.Duration
	}{
		{"a rule", false, false, 0},
		{"a rule, as networkd begins", true, false, 0},
		{"a router's route", false, true, 0},
		{"a router's route, as networkd begins", true, true, routerTime},
	} {
		g := gone{whole: true, hurry: true, since: now, early: c.early}
		at, ok := g.due(&compare.Lost{ByRouter: c.byRouter}, &link{since: now}, now)
		if got := at.Sub(now); !ok || got != c.want {
			t.Errorf("%s: put back after %s (%v), want %s", c.name, got, ok, c.want)
		}
	}
}
