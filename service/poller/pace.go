package poller

import (
	"cmp"
	"errors"
	"slices"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/schedule"
)

// When the metadata is read.
//
// A new ENI is read whole. Its keys appear one by one. One that is attached while the daemon
// runs is looked at several times a second for youngTime: whether it is listed, whether its
// numbers can be used, and then whether it has more addresses, each with as few requests as
// tell that (D11). Any ENI is read whole again 2, 4, … seconds after a change while that is
// less than the time between two looks at addresses: changes seldom come alone. From then on
// it is looked at turn by turn: each turn is at most two requests
// (D8), and all turns together come round within the refresh time (A1), in which addresses
// are looked at up to four times. The first difference has the whole view read at once.
// Only a whole view ever takes the place of another (D5).
//
// A failed read is repeated whole, after a delay of the ENI's own that doubles. Where
// the failure is the service's and not one ENI's, all ENIs that failed share one more
// delay and are tried one at a time, whichever waited longest, until one is answered: so a
// service that is off costs the same with 15 ENIs as with one (D6, D7), and those that are
// answered never wait for those that are not.
const (
	// firstRetry is the first delay after a read that had no answer, or not the whole
	// one of a new ENI yet. An address is there a few milliseconds before its routes.
	firstRetry = 50 * time.Millisecond
	// firstRetryAnswered is the first delay after another answer than the wanted one.
	firstRetryAnswered = time.Second
	// slowestRetry bounds the delay, where the refresh time is not shorter.
	slowestRetry = time.Minute
	// patience is how often a read may fail without an answer, and patienceTime for how
	// long, before that is worth a word: at boot and attach the network is only coming
	// up, and a router may take its time to advertise itself.
	patience     = 5
	patienceTime = 15 * time.Second
	// ReadTime bounds one read of all that is to be known of an ENI: ten requests
	// that each take almost all of their two seconds.
	ReadTime = 25 * time.Second
	// Readers is how many ENIs are read at once, and retries how many of these may be
	// ENIs that failed before: the service allows 1024 packets a second an ENI
	// (facts: packet-limit).
	Readers = 4
	retries = 2
	// firstFollow is the time to the next whole view of what has just changed.
	firstFollow = 2 * time.Second
	// youngTime is for how long after an attachment EC2 is expected to tell more of the ENI;
	// a device number was seen to come after 10 s (facts: late-keys). firstPause and slowestPause
	// bound the time between two looks meanwhile. doubtTime is for how long numbers that cannot
	// be used are looked at as often; then they are read with everything else.
	youngTime    = 10 * time.Second
	doubtTime    = 12 * time.Second
	firstPause   = 100 * time.Millisecond
	slowestPause = 200 * time.Millisecond
	// often is how often addresses are looked at within the refresh time, if that is not
	// more often than each lookTime. With a refresh time of a minute that is at most eight
	// requests a minute and ENI, 490 an hour (the shell package: 504); an address that
	// nobody tells of is seen after 7 s in the mean, one of IPv6 after 11 s, or 30 s where
	// the ENI has IPv4 addresses and prefixes of both families too.
	often    = 4
	lookTime = 15 * time.Second
	// lookJitter is by how much a look may come earlier, as a part of the time to it. All
	// ENIs are looked at with the first of them.
	lookJitter = 0.04
)

// retry schedules the next try to read something, new or not, that failed.
func retry(t *schedule.Try, now time.Time, err error, isNew bool, limit time.Duration) {
	first := firstRetryAnswered
	if (isNew && metadata.IsIncomplete(err)) || noAnswer(err) {
		first = firstRetry
	}
	t.Failed(now, first, min(limit, slowestRetry))
}

// turnedDown is 0 for an ENI that failed once at most, and 1 for others.
func (t *target) turnedDown() int { return min(max(t.Failures-1, 0), 1) }

// early reports whether it is no surprise yet that nothing answers.
func early(t *schedule.Try, now time.Time) bool {
	return t.Failures < patience || now.Sub(t.Failing) < patienceTime
}

// outage is what all reads share that fail for the service's sake.
type outage struct {
	schedule.Try
	// probe is the ENI that is being tried for all, nil if none is.
	probe *target
}

// ofService reports whether a failure may be that of the service as a whole: it gave no
// answer, or refuses, or says that it is broken or asked too often.
func ofService(err error) bool {
	if err == nil || metadata.IsIncomplete(err) {
		return false
	}
	switch metadata.KindOf(err) {
	case metadata.NotFound, metadata.Malformed:
		return false
	}
	return true
}

// note takes the end of a read of an ENI into account.
func (o *outage) note(now time.Time, t *target, err error, limit time.Duration) {
	probed := o.probe == t
	o.forget(t)
	switch {
	case !ofService(err):
		if err == nil || metadata.IsIncomplete(err) {
			*o = outage{}
		}
	case probed || o.Failures == 0:
		retry(&o.Try, now, err, false, limit)
	}
}

// forget ends the trial of an ENI.
func (o *outage) forget(t *target) {
	if o.probe == t {
		o.probe = nil
	}
}

// due is when an ENI may be read next; false if it must wait for another read.
func (p *Poller) due(t *target) (time.Time, bool) {
	if t.Busy || p.reading >= Readers {
		return time.Time{}, false
	}
	if !ofService(t.err) || len(p.refreshes) > 0 {
		return t.Next, t.err == nil || len(p.refreshes) > 0 || p.retrying() < retries
	}
	if p.outage.probe != nil || p.retrying() >= retries {
		return time.Time{}, false
	}
	if p.outage.Next.After(t.Next) {
		return p.outage.Next, true
	}
	return t.Next, true
}

// retrying is how many ENIs that failed are being read.
func (p *Poller) retrying() int {
	n := 0
	for _, t := range p.targets {
		if t.Busy && t.err != nil {
			n++
		}
	}
	return n
}

// nextRead is when the next read is to begin, zero if none is to.
func (p *Poller) nextRead() time.Time {
	// Where no link has an address there is nothing to read over: an address event
	// ends that.
	if p.reading >= Readers || len(p.targets) == 0 || len(p.paths("")) == 0 {
		return time.Time{}
	}
	if !p.instance.got {
		if p.instance.Busy {
			return time.Time{}
		}
		return p.instance.Next
	}
	var at time.Time
	for _, t := range p.targets {
		if when, ok := p.due(t); ok && (at.IsZero() || when.Before(at)) {
			at = when
		}
	}
	return at
}

// dueTargets are the ENIs to be read now, those that wait longest first; but one that has
// failed once does not have to wait until all are through that never answer. Those that
// are due soon go along, so that one pass does for all.
func (p *Poller) dueTargets(now time.Time) []*target {
	var due, soon []*target
	for _, t := range p.targets {
		when, ok := p.due(t)
		switch {
		case ok && !now.Before(when):
			due = append(due, t)
		case ok && t.err == nil && t.turn > 0 && when.Sub(now) < p.options.RefreshEvery/20:
			soon = append(soon, t)
		}
	}
	slices.SortFunc(due, func(x, y *target) int {
		return cmp.Or(cmp.Compare(x.turnedDown(), y.turnedDown()), x.Next.Compare(y.Next))
	})
	if len(due) == 0 {
		return nil
	}
	return append(due, soon...)
}

// often is how often addresses are looked at within the refresh time.
func (p *Poller) often() int { return int(min(max(p.options.RefreshEvery/lookTime, 1), often)) }

// schedule says when an ENI that was read is looked at next, and how much of it.
func (p *Poller) schedule(t *target, now time.Time, changed bool) {
	if t.doubtful = p.doubts(t); !t.doubtful {
		t.doubted = time.Time{}
	} else if t.doubted.IsZero() {
		t.doubted, t.pause = now, 0
	}
	if changed {
		t.follow, t.pause = firstFollow, 0
	}
	if doubted := t.doubtful && now.Sub(t.doubted) < doubtTime; doubted || p.young(t, now) {
		t.look = metadata.AtAddresses
		if doubted {
			t.look = metadata.AtNumbers // without them nothing else is of use
		}
		t.pause = schedule.Double(t.pause, firstPause, slowestPause)
		t.turn, t.Next = 0, now.Add(schedule.Jitter(t.pause))
		return
	}
	if !changed && t.follow > 0 {
		t.follow *= 2
	}
	if t.follow > 0 && t.follow < p.options.RefreshEvery/time.Duration(p.often()) {
		t.look, t.turn = metadata.Whole, 0
		t.Next = now.Add(schedule.Jitter(t.follow))
		return
	}
	t.follow = 0
	turns := t.view.Turns(p.often())
	t.look, t.turn = metadata.InTurn, t.turn%turns+1
	t.Next = now.Add(schedule.Earlier(p.options.RefreshEvery/time.Duration(turns), lookJitter))
}

// readLeased makes an ENI due to which DHCPv6 has brought an address that the metadata have not
// told: the kernel prefers the address that it got last, until the plan says
// otherwise (A11).
func (p *Poller) readLeased(before, snapshot *kernel.Snapshot, now time.Time) {
	had := make(map[string]*kernel.Link, len(before.Links))
	for i := range before.Links {
		had[before.Links[i].MAC] = &before.Links[i]
	}
	for i := range snapshot.Links {
		l := &snapshot.Links[i]
		t, last := p.targets[l.MAC], had[l.MAC]
		if t == nil || t.view == nil || last == nil {
			continue
		}
		if slices.ContainsFunc(l.Addresses, func(address kernel.Address) bool {
			ip := address.Prefix.Addr()
			return address.Dynamic && address.Global && ip.Is6() && !slices.Contains(t.view.IPv6, ip) && !last.Has(ip)
		}) {
			t.look, t.turn = metadata.AtAddresses, 0
			t.follow, t.Next = firstFollow, now
		}
	}
}

// young reports whether an ENI was attached so lately that EC2 is expected to tell more of it.
func (p *Poller) young(t *target, now time.Time) bool {
	l := p.arrivals[t.index]
	return l.attached && now.Sub(l.seen) < youngTime
}

// slowest is the longest delay between two tries to read an ENI. Whether a new one is listed
// by now takes one request.
func (p *Poller) slowest(t *target, now time.Time) time.Duration {
	var incomplete *metadata.IncompleteError
	if t.view == nil && errors.As(t.err, &incomplete) && !incomplete.Vanished && p.young(t, now) {
		return slowestPause
	}
	return p.options.RefreshEvery
}

// doubts reports whether the numbers of a view cannot be used yet, by themselves or because
// another ENI has the same: one of the two has not propagated.
func (p *Poller) doubts(t *target) bool {
	numbers, usable := p.numbersOf(t)
	if !usable {
		return true
	}
	for _, other := range p.targets {
		if other != t && other.view != nil {
			if same, usable := p.numbersOf(other); usable && same == numbers {
				return t.mac != p.instance.PrimaryMAC
			}
		}
	}
	return false
}

func (p *Poller) numbersOf(t *target) (plan.Numbers, bool) {
	return plan.NumbersOf(t.view, t.mac == p.instance.PrimaryMAC, p.cards())
}

// cards reports whether any ENI of the instance has a network card.
func (p *Poller) cards() bool {
	for _, t := range p.targets {
		if t.view != nil && t.view.NetworkCard != nil {
			return true
		}
	}
	return false
}
