package agent

import (
	"cmp"
	"fmt"
	"maps"
	"slices"
	"strconv"
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

// load takes up what earlier runs left. A file that cannot be used is none.
func (a *Agent) load(now time.Time) {
	a.views.Check, a.hintFile.Check = (*remembered).check, (*lastBoot).check
	kept, err := a.views.Load()
	if err != nil {
		a.Log.Warn("What the last run knew cannot be used; reading the metadata anew", "reason", err.Error())
	} else if kept != nil {
		if kept.Instance != nil {
			a.instance, a.instanceGot = *kept.Instance, true
			a.Metadata.SetInstance(a.instance.ID)
		}
		a.presumed = kept.Presumed
		for _, v := range kept.Views {
			a.targets[v.ENI.MAC] = &target{mac: v.ENI.MAC, index: v.Ifindex, view: &v.ENI, Try: schedule.Try{Next: now}}
		}
	}
	if a.hint, err = a.hintFile.Load(); err != nil {
		a.Log.Warn("What the last boot knew cannot be used; waiting for the metadata", "reason", err.Error())
	}
	if a.Rules == nil {
		return
	}
	// Without the record nothing is known to be this daemon's but what is in its files.
	rules, addresses, err := a.Rules.Load()
	if err != nil {
		a.Log.Warn("What the last run knew cannot be used; rules and addresses that networkd forgot may stay", "reason", err.Error())
	}
	for _, own := range addresses {
		a.addresses[own] = now
	}
	for _, rule := range rules {
		a.rules[rule] = now
	}
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

// save keeps what is known over a restart of the daemon.
func (a *Agent) save() {
	kept := &remembered{Views: []rememberedView{}, Presumed: a.presumed}
	if a.instanceGot {
		instance := a.instance
		kept.Instance = &instance
	}
	for _, mac := range slices.Sorted(maps.Keys(a.targets)) {
		if t := a.targets[mac]; t.view != nil {
			kept.Views = append(kept.Views, rememberedView{Ifindex: t.index, ENI: *t.view})
		}
	}
	a.views.Put(kept, time.Now())
}

// stored is a file of the daemon's own.
type stored interface {
	Step(now time.Time) time.Time
	Hurry()
	Err() error
}

// storedFiles are those files.
func (a *Agent) storedFiles() []stored {
	files := []stored{&a.views, &a.hintFile}
	if a.Rules != nil {
		files = append(files, a.Rules)
	}
	return files
}

// keep stores what could not be stored once it can be (E10), and says what is not.
func (a *Agent) keep(now time.Time) {
	before := a.unstored
	a.keepAt, a.unstored = time.Time{}, ""
	for i, f := range a.storedFiles() {
		if next := f.Step(now); a.keepAt.IsZero() || (!next.IsZero() && next.Before(a.keepAt)) {
			a.keepAt = next
		}
		key := "stored " + strconv.Itoa(i)
		if err := f.Err(); err != nil {
			a.said.Warn(key, "Failed to keep what a restart needs; trying again", "reason", err.Error())
			a.unstored = cmp.Or(a.unstored, err.Error())
		} else if a.said.Clear(key) {
			a.Log.Info("What a restart needs is kept again")
		}
	}
	if a.unstored != before {
		a.ask(0) // the state tells of it
	}
}
