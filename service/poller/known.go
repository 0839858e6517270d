package poller

import (
	"errors"
	"maps"
	"time"

	"ec2netd/service/metadata"
)

// Known is what is known of the metadata at a moment. It never changes.
type Known struct {
	// Instance, once it is Identified: it has been read, by this run or an earlier one.
	Instance   metadata.Instance
	Identified bool
	// InstanceErr is why the last read of the instance failed, nil if it did not.
	InstanceErr error
	// ENIs by MAC address.
	ENIs map[string]ENI
	// Presumed is the MAC address of the link that is taken for the primary ENI, or empty, see
	// [Poller.Presume].
	Presumed string

	// Reachable: there is a link, or an endpoint, over which the service can be asked.
	Reachable bool
	// Silent: the service gives no answer to any read.
	Silent bool
	// Off is how the service said that it is switched off for the instance, nil if it has not
	// or has answered since (D12).
	Off error
	// Err is what stands in the way of a complete view of everything: the error of the instance,
	// of the primary ENI, or of another one; nil if nothing does. A view that is not complete yet
	// is no error.
	Err error
}

// ENI is what is known of an ENI.
type ENI struct {
	// Index of its link.
	Index int
	// View is the last complete one, nil if there was none yet.
	View *metadata.ENI
	// Err is why the last read failed, nil if it did not.
	Err error
	// Tried: a read of this run has ended.
	Tried bool
}

// Listed reports whether the metadata lists the ENI by the last read, whether or not they tell all
// of it.
func (e ENI) Listed() bool {
	var incomplete *metadata.IncompleteError
	if e.View == nil {
		return errors.As(e.Err, &incomplete) && len(incomplete.Missing) > 0
	}
	return e.Err == nil
}

// Counts is what moves with each read, whether it brought anything new or not.
type Counts struct {
	// LastSuccess is when the last read ended that did not fail, zero if there was none.
	LastSuccess time.Time
	// Reads counts the ends of reads by their results, see metrics.Numbers.
	Reads map[string]uint64
}

// Known returns what is known. It is another value only if it says something else.
func (p *Poller) Known() *Known {
	if !p.stale {
		return p.known
	}
	p.stale = false
	now := &Known{
		Instance: p.instance.Instance, Identified: p.instance.got, InstanceErr: p.instance.err,
		ENIs: make(map[string]ENI, len(p.targets)), Presumed: p.presumed,
		Reachable: len(p.paths("")) > 0, Silent: p.silent(), Off: p.off(), Err: p.err(),
	}
	for mac, t := range p.targets {
		now.ENIs[mac] = ENI{Index: t.index, View: t.view, Err: t.err, Tried: !t.Began.IsZero()}
	}
	if !now.equal(p.known) {
		p.known = now
	}
	return p.known
}

// equal reports whether two values say the same.
func (k *Known) equal(o *Known) bool {
	return k.Instance == o.Instance && k.Identified == o.Identified && sameError(k.InstanceErr, o.InstanceErr) &&
		k.Presumed == o.Presumed && k.Reachable == o.Reachable && k.Silent == o.Silent &&
		sameError(k.Off, o.Off) && sameError(k.Err, o.Err) && maps.EqualFunc(k.ENIs, o.ENIs, ENI.equal)
}

func (e ENI) equal(o ENI) bool {
	return e.Index == o.Index && e.View == o.View && e.Tried == o.Tried && sameError(e.Err, o.Err)
}

// sameError reports whether two errors say the same.
func sameError(a, b error) bool {
	if a == nil || b == nil {
		return a == nil && b == nil
	}
	return a.Error() == b.Error()
}

// Counts returns what was counted so far.
func (p *Poller) Counts() Counts {
	return Counts{LastSuccess: p.counts.LastSuccess, Reads: maps.Clone(p.counts.Reads)}
}

// err is as in [Known].
func (p *Poller) err() error {
	if !p.instance.got {
		return p.instance.err
	}
	primary := p.instance.PrimaryMAC
	var first *target
	for _, t := range p.targets {
		if t.err == nil || metadata.IsIncomplete(t.err) {
			continue
		}
		if first == nil || t.mac == primary || (first.mac != primary && t.mac < first.mac) {
			first = t
		}
	}
	if first == nil {
		return nil
	}
	return first.err
}

// silent is as in [Known].
func (p *Poller) silent() bool {
	if !p.instance.got {
		return noAnswer(p.instance.err)
	}
	for _, t := range p.targets {
		if !noAnswer(t.err) {
			return false
		}
	}
	return len(p.targets) > 0
}

// off is as in [Known]. A token is the instance's, so one read tells it for all ENIs.
func (p *Poller) off() error {
	if !p.instance.got && isOff(p.instance.err) {
		return p.instance.err
	}
	for _, t := range p.targets {
		if isOff(t.err) && !p.counts.LastSuccess.After(t.Failing) {
			return t.err
		}
	}
	return nil
}

// isOff reports whether a read failed since the service is switched off.
func isOff(err error) bool { return err != nil && metadata.KindOf(err) == metadata.Disabled }

// noAnswer reports whether a read failed since the service gave no answer.
func noAnswer(err error) bool {
	if err == nil || metadata.IsIncomplete(err) {
		return false
	}
	switch metadata.KindOf(err) {
	case metadata.Unreachable, metadata.Timeout, metadata.Reset:
		return true
	}
	return false
}
