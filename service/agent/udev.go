package agent

import (
	"context"
	"slices"
	"time"

	"ec2netd/service/plan"
	"ec2netd/service/udev"
)

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
			a.altnames.Add(eni.Link.Name)
		}
	}
	if a.altnames.Step(ctx, now) {
		a.hasten(now)
	}
}

// takeUdev takes the end of a call to udevd.
func (a *Agent) takeUdev(end udev.End) {
	now := time.Now()
	if a.altnames.Take(end, now) {
		a.hasten(now)
	}
}
