package poller

import (
	"errors"
	"fmt"
	"slices"
	"time"
)

// silenceTime is how long a Refresh waits for the first answer of the metadata
// service. ec2netctl gives up after 30 s.
const silenceTime = 15 * time.Second

// Refresh is the wait of somebody for metadata that is read after a moment (H3). While there is one,
// ENIs are read whole, and at once.
type Refresh struct {
	poller *Poller
	// mac is the one ENI that is read, empty for all.
	mac   string
	began time.Time
}

// Refresh makes the ENI with a MAC address due, or all ENIs for an empty one. The caller must call
// End when nobody waits any more.
func (p *Poller) Refresh(mac string, now time.Time) *Refresh {
	r := &Refresh{poller: p, mac: mac, began: now}
	p.refreshes = append(p.refreshes, r)
	p.hurry(now)
	return r
}

// End ends the wait.
func (r *Refresh) End() {
	p := r.poller
	p.refreshes = slices.DeleteFunc(p.refreshes, func(other *Refresh) bool { return other == r })
}

// hurry makes due what a Refresh waits for: a read that was under way when it came does not
// count.
func (p *Poller) hurry(now time.Time) {
	for _, r := range p.refreshes {
		if !p.instance.got && p.instance.Began.Before(r.began) {
			p.instance.Next = now
		}
		for _, t := range p.targets {
			if r.of(t) && t.Began.Before(r.began) {
				t.Next = now
			}
		}
	}
}

// of reports whether an ENI is one of those that are read.
func (r *Refresh) of(t *target) bool { return r.mac == "" || r.mac == t.mac }

// Done reports whether each ENI was read by a read that began after the Refresh did; or whether
// there has been no answer for so long that there will be none, which takes a minute to find out of
// each of 15 ENIs.
func (r *Refresh) Done(now time.Time) bool {
	p := r.poller
	if !p.instance.got {
		return !p.instance.Busy && !p.instance.Began.Before(r.began)
	}
	all, silent, answered := true, false, p.counts.LastSuccess.After(r.began)
	for _, t := range p.targets {
		if !r.of(t) {
			continue
		}
		none := noAnswer(t.err)
		silent = silent || none
		if t.Busy || t.Began.Before(r.began) {
			all = false
		} else if !none {
			answered = true
		}
	}
	return all || (silent && !answered && !now.Before(r.silence()))
}

// silence is when the Refresh is done if there has been no answer until then.
func (r *Refresh) silence() time.Time { return r.began.Add(silenceTime) }

// Err is why nothing, or not all, could be read, nil if all could.
func (r *Refresh) Err() error {
	p := r.poller
	if !p.instance.got || len(p.paths("")) == 0 {
		err := p.instance.err
		if err == nil {
			err = errors.New("no link has an address to ask the metadata service from")
		}
		return fmt.Errorf("the metadata was not read: %w", err)
	}
	if r.mac == "" {
		return p.err()
	}
	t := p.targets[r.mac]
	if t == nil {
		return fmt.Errorf("the ENI %s was detached", r.mac)
	}
	return t.err
}
