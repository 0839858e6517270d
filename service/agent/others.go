package agent

import (
	"context"
	"slices"
	"strings"

	"ec2netd/service/conflict"
	"ec2netd/service/state"
)

// lookAtOthers looks for other software that configures ENIs, where that is due, and says
// once of each what to do (F5). At boot there is nobody to ask yet.
func (a *Agent) lookAtOthers(ctx context.Context) {
	if a.Others == nil || !a.othersDue || !a.begun || a.busDown || (!a.networkdUp && a.networkdWhy == "") {
		return
	}
	a.othersDue = false
	links := make([]conflict.Link, 0, len(a.snapshot.Links))
	for _, l := range a.snapshot.Links {
		links = append(links, conflict.Link{Index: l.Index, Name: l.Name, MAC: l.MAC})
	}
	before := a.conflicts
	a.conflicts = conflict.Find(a.Others.Look(ctx, links))
	for _, c := range a.conflicts {
		a.say("conflict "+c.Name, "Something else configures ENIs too", "with", c.Name,
			"evidence", strings.Join(c.Evidence, ", "), "advice", c.Advice)
	}
	for _, c := range before {
		if !slices.ContainsFunc(a.conflicts, func(now state.Conflict) bool { return now.Name == c.Name }) {
			a.unsay("conflict " + c.Name)
			a.Log.Info("The conflict is over", "with", c.Name)
		}
	}
}
