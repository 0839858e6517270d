package agent

import (
	"net/netip"
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

// E5, B10: what has not been there since networkd was last at work. Of the lease only what networkd
// goes on asking for by itself is left to it: the whole of it, and what routers advertise.
func TestNeverThere(t *testing.T) {
	t.Parallel()
	began := time.Now()
	for _, c := range []struct {
		name  string
		lost  compare.Lost
		lacks bool
		want  time.Duration
	}{
		{"a rule", compare.Lost{Own: true}, false, settleTime},
		{"the lease's default route, with its address there", compare.Lost{}, false, repairTime},
		{"the whole lease", compare.Lost{}, true, 0},
		{"a router's route", compare.Lost{ByRouter: true}, false, 0},
	} {
		g, l := gone{since: began}, &link{since: began}
		if c.lacks {
			l.lacks = netip.MustParseAddr("10.0.1.10")
		}
		at, ok := g.due(&c.lost, l, began.Add(time.Second))
		if got := at.Sub(began); ok != (c.want > 0) || (ok && got != c.want) {
			t.Errorf("%s: put back after %s (%v), want %s", c.name, got, ok, c.want)
		}
	}
}
