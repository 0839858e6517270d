package agent

import (
	"strings"
	"time"

	"ec2netd/service/compare"
	"ec2netd/service/plan"
	"ec2netd/service/schedule"
	"ec2netd/service/status"
)

// Somebody takes away what an ENI shall have: with ip rule flush, with a VPN's script. networkd
// brings it back only where it configures the link anew, which it does at a reload if the
// ENI's drop-in has another time (facts: foreign-items). That costs no other link anything (measured on 252, 257 and
// 262: rules, routes and addresses come back within 0.2 s; ReconfigureLink brings back no
// route of a lease on 257 and 262).
const (
	// takenTime is how long something must be gone: networkd may be at work. routerTime is
	// that of the default routes by router advertisements, which 252 drops with each reload
	// of the link and has again a second later; and of what goes within takenTime of a reload:
	// networkd answers before it drops a lease, which on 252 is back two seconds later.
	takenTime  = time.Second
	routerTime = 3 * time.Second
	// contestedTimes is how often something must have been taken away, and come back, until
	// the ENI counts as contested. The time to the next repair doubles each time, and begins
	// anew when nothing was taken away for that time and quietTime.
	contestedTimes = 3
	quietTime      = time.Minute
)

// gone is what an ENI had and has no more, though its files say so.
type gone struct {
	// whole: since networkd was last at work on it the ENI had all but what routers advertise,
	// routed: that too. On 252 that takes a while longer.
	whole, routed bool
	// since when something is gone; zero if nothing is. early: networkd had just begun with the
	// link then.
	since time.Time
	early bool
	// times is how often something was taken away, last when networkd was last asked to bring
	// it back, delay how long the next time is put off from then.
	times int
	last  time.Time
	delay time.Duration
	// hurry: a Refresh asks for it. trying: networkd was asked for what it had not brought,
	// and still is not there.
	hurry, trying bool
}

// atWork notes that networkd is about to configure the link.
func (l *link) atWork(now time.Time) {
	l.since, l.gone.whole, l.gone.routed, l.gone.since = now, false, false, time.Time{}
}

// contested reports whether what the ENI has is taken away again and again.
func (g *gone) contested(now time.Time) bool {
	return g.times >= contestedTimes && (!g.since.IsZero() || now.Sub(g.last) < g.delay)
}

// due is when networkd is to be asked to bring back what is gone; false if it is not to be.
func (g *gone) due(lost *compare.Lost, l *link, now time.Time) (time.Time, bool) {
	at := g.since.Add(takenTime)
	switch {
	// 252 drops the routes of routers a moment after a reload, in which a pass may have seen them:
	// that is nobody else's doing.
	case g.hurry && (!g.early || !lost.ByRouter) && (g.whole || now.Sub(l.since) >= explainTime):
		return now, true
	case g.whole && (lost.ByRouter || g.early):
		at = g.since.Add(routerTime)
	case g.whole:
	case lost.Own && g.times > 0:
		// It may have been taken away before anybody looked.
	case lost.Own && !l.lacks.IsValid():
		// It was not there since networkd was last at work: that takes its time.
		at = l.since.Add(settleTime)
	case !lost.ByRouter && !l.lacks.IsValid():
		// networkd has the lease, but not its default route, and does not add it (facts: reload).
		at = l.since.Add(repairTime)
	default:
		// networkd goes on asking the DHCP server and the router by itself, and for an address
		// that is lacking it is asked in any case.
		return time.Time{}, false
	}
	if again := g.last.Add(g.delay); again.After(at) {
		at = again
	}
	return at, true
}

// regain has networkd bring back what somebody has taken away from an ENI (B10), and returns
// the time to the next look at that, 0 for none.
func (a *Agent) regain(eni *plan.ENI, lost compare.Lost, now time.Time) time.Duration {
	l := a.links[eni.Link.Index]
	g := &l.gone
	defer func() { g.hurry = false }()
	if eni.Link.Down {
		// The kernel drops the routes of a link that is set down. networkd brings them back only if
		// that lasts (IgnoreCarrierLoss=): what was there is gone when the link comes up.
		g.since = time.Time{}
		return 0
	}
	if !eni.Known || eni.Hinted || eni.Held || !eni.Settings.Managed || !eni.Link.Carrier || eni.Link.Port() || eni.Reconfigure() || !a.session.Running() || !a.begun ||
		a.storeErr != "" || a.session.LastError() != "" || !a.ownInForce(eni) {
		g.whole, g.routed, g.since = false, false, time.Time{}
		return 0
	}
	g.routed = g.routed || len(lost.Gaps) == 0
	if len(lost.Gaps) == 0 || (lost.ByRouter && !g.routed) {
		g.whole, g.trying, g.since = true, false, time.Time{}
		switch left := g.last.Add(g.delay + quietTime).Sub(now); {
		case g.times == 0:
			return 0
		case left <= 0:
			g.times, g.delay = 0, 0
			return 0
		case g.contested(now):
			return max(g.last.Add(g.delay).Sub(now), firstLook)
		default:
			return left
		}
	}
	if g.since.IsZero() {
		g.since, g.early = now, min(now.Sub(a.session.Reloaded()), now.Sub(l.since)) < takenTime
	}
	at, ok := g.due(&lost, l, now)
	if !ok {
		return 0
	}
	if at.After(now) {
		return max(at.Sub(now), firstLook)
	}
	if !a.explained(eni, lost.Gaps).None() {
		return 0
	}
	// What did not come back was not taken away again. Routers fall silent by themselves.
	if g.whole && !lost.ByRouter {
		g.times++
	}
	g.delay = schedule.Double(g.delay, takenTime, slowestRepair)
	if g.times == 0 {
		g.delay = max(g.delay, repairTime)
	}
	g.last = now
	a.Log.Warn("Asking networkd to configure the ENI anew: "+status.Summary(lost.Gaps)+" is gone", "eni", eni.View.ID, "mac", eni.Link.MAC,
		"interface", eni.Link.Name, "gone", strings.Join(status.Names(lost.Gaps), ", "), "times", g.times)
	if err := a.Store.Renew(plan.NetworkDropIn(eni.Link.Name)); err != nil {
		a.said.Warn("reconfigure", "networkd does not configure the link anew", "eni", eni.View.ID, "mac", eni.Link.MAC,
			"interface", eni.Link.Name, "reason", err.Error())
		return g.delay
	}
	l.broughtBack(eni, now)
	// An ENI that is degraded is so until it is there.
	g.trying = !g.whole
	if g.whole {
		l.atWork(now)
	}
	a.session.NeedReload()
	a.hasten(now)
	a.ask(0)
	return 0
}

// dispute says that what an ENI shall have is taken away again and again.
func (g *gone) dispute(lost *compare.Lost) status.Reason {
	return status.Reason{Code: status.Contested, Number: g.times, Gaps: lost.Gaps}
}
