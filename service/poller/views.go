package poller

import (
	"fmt"
	"maps"
	"slices"
	"time"

	"ec2netd/service/metadata"
	"ec2netd/service/schedule"
)

// remembered is what a restart of the daemon must not lose: with it everything
// stays as it is, whether or not the metadata service answers.
type remembered struct {
	Instance *metadata.Instance `json:"instance"`
	// Views with the index of the link that they were read for: an index is not
	// used twice before the next boot.
	Views []rememberedView `json:"views"`
	// Presumed is the MAC address that was taken for the primary's, or empty.
	Presumed string `json:"presumed,omitempty"`
}

type rememberedView struct {
	Ifindex int          `json:"ifindex"`
	ENI     metadata.ENI `json:"eni"`
}

// check refuses what no run of this daemon writes.
func (r *remembered) check() error {
	if r.Instance != nil {
		if _, err := metadata.ParseMAC(r.Instance.PrimaryMAC); err != nil {
			return err
		}
	}
	if r.Presumed != "" {
		if _, err := metadata.ParseMAC(r.Presumed); err != nil {
			return err
		}
	}
	for _, v := range r.Views {
		if err := v.ENI.Check(); err != nil {
			return fmt.Errorf("the view of link %d: %w", v.Ifindex, err)
		}
	}
	return nil
}

// load takes up what the last run left. A file that cannot be used is none.
func (p *Poller) load(now time.Time) {
	kept, err := p.views.Load()
	if err != nil {
		p.options.Log.Warn("What the last run knew cannot be used; reading the metadata anew", "reason", err.Error())
	}
	if err != nil || kept == nil {
		return
	}
	if kept.Instance != nil {
		p.instance.Instance, p.instance.got = *kept.Instance, true
		p.options.Client.SetInstance(kept.Instance.ID)
	}
	p.presumed = kept.Presumed
	for _, v := range kept.Views {
		p.targets[v.ENI.MAC] = &target{mac: v.ENI.MAC, index: v.Ifindex, view: &v.ENI, Try: schedule.Try{Next: now}}
	}
	p.stale = true
}

// save keeps what is known over a restart of the daemon.
func (p *Poller) save(now time.Time) {
	kept := &remembered{Views: []rememberedView{}, Presumed: p.presumed}
	if p.instance.got {
		kept.Instance = &p.instance.Instance
	}
	for _, mac := range slices.Sorted(maps.Keys(p.targets)) {
		if t := p.targets[mac]; t.view != nil {
			kept.Views = append(kept.Views, rememberedView{Ifindex: t.index, ENI: *t.view})
		}
	}
	p.views.Put(kept, now)
}

// Presume notes which link is taken for the primary ENI, by its MAC address, or that none is. It is
// kept over a restart with the views.
func (p *Poller) Presume(mac string, now time.Time) {
	if mac == p.presumed {
		return
	}
	p.presumed, p.stale = mac, true
	p.save(now)
}

// Stored is a file of the daemon's own, as package persist has it.
type Stored interface {
	// Step stores what could not be stored before, and returns when it wants to be called again.
	Step(now time.Time) time.Time
	// Hurry has the next Step not wait for the time of another try.
	Hurry()
	// Err is why the file is not stored, nil if it is.
	Err() error
}

// Views is the file that keeps what is known over a restart, for whoever looks after the daemon's
// files.
func (p *Poller) Views() Stored { return &p.views }
