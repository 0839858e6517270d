package agent

import (
	"time"

	"ec2netd/service/plan"
	"ec2netd/service/schedule"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// downTime is how long a link must be down until somebody has set it down: udevd does so for a
// moment to rename it, the kernel when it becomes a port of a VRF, and EC2 before it is detached.
const downTime = 500 * time.Millisecond

// ifdownTime is how long ifdown may take from the moment at which ifupdown's state has a link no more
// until the link is down: it ends the client of each family, and those of other links before.
const ifdownTime = 30 * time.Second

// unused is why a link cannot be used, whatever its files say (F10).
type unused struct {
	// up: networkd has configured the link, and it was up.
	up bool
	// down and dark are since when it is set down, and up without a carrier.
	down, dark time.Time
	// raised: ifupdown or NetworkManager had configured the link when others were looked for last.
	// Lowered is when it has released it last.
	raised  bool
	lowered time.Time
	// back is when the link was last up again after it was down: what ifdown did before is over
	// then.
	back time.Time
	// shuffled is when something was last done to the link after which the primary address may come
	// back behind the others, so that their order is to be mended (A3): the link was set up again,
	// it became a port or was released, or networkd was asked to bring the primary address.
	shuffled time.Time
	// raise is when networkd is to be asked to set it up, and the delay to the next time.
	raise schedule.Try
	// looked: it has been looked at. master and kind are of what it was a port then.
	looked       bool
	master, kind string
	// handed: it is down, and has become a port since, or has been released by a bond, which sets it
	// down. Neither means that somebody wants it down.
	handed bool
}

// handOver notes of what the link is a port. A bond and a team take no link that is up, and set up
// what they have taken; a bridge and a VRF leave a link down that somebody has set down for them,
// as for a bond. What a bond or team releases it sets down.
func (u *unused) handOver(link *plan.Link, now time.Time) {
	if u.looked && link.Master != u.master {
		u.shuffled = now
	}
	enslaved := link.Master != "" && link.Master != u.master
	released := link.Master == "" && u.down.IsZero() && (u.kind == "bond" || u.kind == "team")
	u.handed = link.Down && (u.handed || (u.looked && (enslaved || released)))
	u.looked, u.master, u.kind = true, link.Master, link.MasterKind
}

// look notes whether a link is up, and reports whether somebody has set it down and how long it
// takes until that can be told. Who sets a link down that networkd has not configured, or while it
// does not run, means something else: so cloud-init does early at boot, when it has asked the
// metadata service, and networkd sets the link up. Nor does who ends ifupdown want a link down that
// it has configured: ifdown leaves it so, as when networking.service is stopped, and so does
// NetworkManager 1.42 with a link that it is told to leave to others. Nor does who sets a
// link down to make it a port, however long that takes. Running and done say whether networkd runs
// and is done with the link, configured whether the ENI was so when it was last looked at.
func (u *unused) look(link *plan.Link, running, done, configured bool, now time.Time) (setDown bool, wait time.Duration) {
	u.handOver(link, now)
	if !running {
		u.up = false
	} else if (!link.Down && done) || (u.down.IsZero() && configured) {
		u.up = true
	}
	if !link.Down {
		if !u.down.IsZero() {
			u.back, u.shuffled = now, now
		}
		u.down, u.raise = time.Time{}, schedule.Try{}
	} else if u.down.IsZero() {
		u.down = now
	}
	if link.Down || link.Carrier {
		u.dark = time.Time{}
	} else if u.dark.IsZero() {
		u.dark = now
	}
	lowered := u.lowered.After(u.back) && now.Sub(u.lowered) < ifdownTime
	if link.Down && (u.raised || lowered) && !link.KeptDown() {
		u.up = false
	}
	if u.handed {
		u.up = false
	}
	if !link.Down || u.handed || (!u.up && !link.KeptDown()) {
		return false, 0
	}
	wait = max(u.down.Add(downTime).Sub(now), 0)
	return wait == 0 || link.KeptDown(), wait
}

// others notes whether ifupdown or NetworkManager has configured the link, and when it has released it
// last, zero if that is not known.
func (u *unused) others(raised bool, lowered, now time.Time) {
	if u.raised && !raised && lowered.IsZero() {
		u.lowered = now
	}
	if lowered.After(u.lowered) && !lowered.After(now) {
		u.lowered = lowered
	}
	u.raised = raised
}

// setDown reports whether somebody has set down a link, and asks for a pass when that can be told.
// Whether ifdown has is looked at when the link goes down, and that comes first: what is kept down
// stays so.
func (a *Agent) setDown(link *plan.Link, u *unused, done, configured bool, now time.Time) bool {
	before := u.down
	setDown, wait := u.look(link, a.session.Running(), done, configured, now)
	if wait > 0 {
		a.ask(wait)
	}
	if u.up && before.IsZero() && !u.down.IsZero() {
		a.othersDue = true
	}
	return setDown && (link.KeptDown() || !a.othersDue || a.Others == nil)
}

// judge says what is wrong with the link of an ENI itself: gaps is whether something of the ENI
// is missing. The state is empty if nothing is.
func (u *unused) judge(link *plan.Link, gaps bool, now time.Time) (state.ENI, status.Reason) {
	switch {
	case link.SetDown:
		return state.ENIOverridden, status.Reason{Code: status.SetDown, Subject: link.Name}
	case link.Port() && gaps:
		reason := port(link)
		reason.Code = status.PortWithoutAddresses
		return state.ENIOverridden, reason
	case link.Down && !link.OthersActivation && now.Sub(u.down) >= settleTime:
		return state.ENIDegraded, status.Reason{Code: status.LinkDown, Subject: link.Name}
	case !u.dark.IsZero() && now.Sub(u.dark) >= settleTime:
		return state.ENIDegraded, status.Reason{Code: status.NoCarrier, Subject: link.Name}
	}
	return "", status.Reason{}
}

// port says of what the link of an ENI is a port, and what MAC address it has from that. It says
// nothing for a link that is no port.
func port(link *plan.Link) status.Reason {
	if link.Master == "" {
		return status.Reason{}
	}
	return status.Reason{Code: status.PortOf, Subject: link.Name, Other: link.Master, OtherKind: link.MasterKind, Value: link.Lent}
}

// raise has networkd set up a link that was down when the daemon came, as ifdown leaves it, and
// returns the time to the next look at that, 0 for none. networkd does so only where it
// configures the link anew.
func (a *Agent) raise(eni *plan.ENI, now time.Time) time.Duration {
	l, link := a.links[eni.Link.Index], &eni.Link
	if !l.unused.dark.IsZero() {
		return max(l.unused.dark.Add(settleTime).Sub(now), 0)
	}
	if !link.Down || l.unused.up || link.SetDown || link.OthersActivation || !eni.Known || !eni.Settings.Managed || !a.session.Running() || !a.begun ||
		a.storeErr != "" || a.session.LastError() != "" || !a.ownInForce(eni) {
		return 0
	}
	try := &l.unused.raise
	if try.Next.IsZero() {
		try.Next = l.since.Add(explainTime)
	}
	if now.Before(try.Next) {
		return try.Next.Sub(now)
	}
	try.Delay = schedule.Double(try.Delay, settleTime, slowestRepair)
	try.Next = now.Add(try.Delay)
	a.Log.Info("Asking networkd to set the link up", "eni", eni.View.ID, "mac", link.MAC, "interface", link.Name)
	if err := a.Store.Renew(plan.NetworkDropIn(link.Name)); err != nil {
		a.said.Warn("reconfigure", "networkd does not configure the link anew", "eni", eni.View.ID, "mac", link.MAC,
			"interface", link.Name, "reason", err.Error())
		return try.Delay
	}
	l.atWork(now)
	a.session.NeedReload()
	a.ask(0)
	return try.Delay
}
