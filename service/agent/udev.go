package agent

import (
	"context"
	"slices"
	"time"

	"ec2netd/service/plan"
	"ec2netd/service/schedule"
)

// udevPatience is how long udevd may fail to answer before that is worth a word: it is
// restarted, or has other devices to see to.
const udevPatience = 30 * time.Second

// udevWork is what udevd is to be asked. That goes on beside the loop, one call at a
// time: a udevd that is stopped or busy lets udevadm wait for seconds (10 measured), and
// alternative names must not hold up addresses.
type udevWork struct {
	schedule.Try
	// names of the links whose .link file is to be applied by the next call.
	names []string
}

// udevDone is the end of one call.
type udevDone struct {
	names []string
	err   error
}

// applyLinks has udevd apply the .link files of links.
func (a *Agent) applyLinks(ctx context.Context, changed []*plan.ENI) {
	now := time.Now()
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		l := a.links[eni.Link.Index]
		lacking := eni.Known && len(eni.Files) > 0 && eni.Link.LinkFile != "" &&
			slices.ContainsFunc(eni.Want.Altnames, func(name string) bool { return !slices.Contains(eni.Link.Altnames, name) })
		// udevd may have been busy or down, and have missed the link altogether: ask
		// again, seldom (C4).
		missed := a.missed(eni) && now.Sub(l.seen) > udevTime
		_, holder := a.nameElsewhere(eni)
		if holder == "" {
			_, holder = a.nameOfOther(eni)
		}
		freed := l.nameElsewhere && holder == "" && lacking
		l.nameElsewhere = holder != ""
		if slices.Contains(changed, eni) || freed || ((missed || (lacking && holder == "" && a.namesTaken(eni).None())) && now.Sub(l.triggered) > max(udevTime, a.RefreshEvery)) {
			l.triggered = now
			a.udev.add(eni.Link.Name)
		}
	}
	if len(a.udev.names) == 0 || a.udev.Busy || now.Before(a.udev.Next) {
		return
	}
	names := a.udev.names
	a.udev.names, a.udev.Busy = nil, true
	a.hasten(now)
	go func() {
		// The loop takes one result for each call, or has ended.
		a.udevEnds <- udevDone{names, a.Udev.Apply(ctx, names)}
	}()
}

// add has a link seen to by the next call.
func (u *udevWork) add(name string) {
	if !slices.Contains(u.names, name) {
		u.names = append(u.names, name)
	}
}

// takeUdev takes the end of a call to udevd.
func (a *Agent) takeUdev(done udevDone) {
	now := time.Now()
	a.udev.Busy = false
	if done.err == nil {
		a.udev.Succeeded()
		a.said.Clear("udev")
		a.hasten(now)
		return
	}
	for _, name := range done.names {
		a.udev.add(name)
	}
	a.udev.Failed(now, firstRetry, slowestRetry)
	if now.Sub(a.udev.Failing) >= udevPatience {
		a.said.Warn("udev", "Alternative names cannot be given; trying again", "reason", done.err.Error())
	} else {
		a.Log.Debug("alternative names cannot be given; trying again", "reason", done.err.Error())
	}
}
