package agent

import (
	"cmp"
	"strconv"
	"time"
)

// load takes up what earlier runs and the last boot left, but for what the poller keeps. A file
// that cannot be used is none.
func (a *Agent) load(now time.Time) {
	a.hintFile.Check = (*lastBoot).check
	var err error
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

// stored is a file of the daemon's own.
type stored interface {
	Step(now time.Time) time.Time
	Hurry()
	Err() error
}

// storedFiles are those files.
func (a *Agent) storedFiles() []stored {
	files := []stored{a.Poller.Views(), &a.hintFile}
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
