package agent

import (
	"context"
	"slices"
	"strings"
	"time"

	"ec2netd/service/conflict"
	"ec2netd/service/state"
)

// tellUnread says which files of others could not be read (J2). They count as if they were
// not there.
func (a *Agent) tellUnread() {
	unread := slices.Concat(a.Store.Unread(), a.Files.Unread(), a.othersUnread)
	slices.Sort(unread)
	a.unreadFiles = slices.Compact(unread)
	if len(a.unreadFiles) > 0 {
		a.said.Warn("unread", "Failed to read files, which count as if they were not there: remove or mend them", "files", strings.Join(a.unreadFiles, "; "))
	} else if a.said.Clear("unread") {
		a.Log.Info("All files can be read again")
	}
}

// lookAtOthers looks for other software that configures ENIs, where that is due, and says
// once of each what to do (F5). At boot there is nobody to ask yet.
func (a *Agent) lookAtOthers(ctx context.Context) {
	if a.Others == nil || !a.othersDue || !a.begun || a.session.BusSilent() || (!a.session.Running() && a.session.Why().None()) {
		return
	}
	a.othersDue = false
	links := make([]conflict.Link, 0, len(a.seen.Kernel.Links))
	for _, l := range a.seen.Kernel.Links {
		links = append(links, conflict.Link{Index: l.Index, Name: l.Name, MAC: l.MAC})
	}
	before := a.conflicts
	facts := a.Others.Look(ctx, links)
	a.conflicts, a.othersUnread = conflict.Find(facts), facts.Unread
	for _, l := range a.seen.Kernel.Links {
		memory := a.links[l.Index]
		if memory == nil {
			continue
		}
		memory.unused.others(facts.Holds(l.Name), facts.Lowered[l.Name], time.Now())
		if l.Down {
			a.ask(0) // see setDown
		}
	}
	for _, c := range a.conflicts {
		a.said.Warn("conflict "+c.Name, "Something else configures ENIs too", "with", c.Name,
			"evidence", strings.Join(c.Evidence, ", "), "advice", c.Advice)
	}
	for _, c := range before {
		if !slices.ContainsFunc(a.conflicts, func(now state.Conflict) bool { return now.Name == c.Name }) {
			a.said.Clear("conflict " + c.Name)
			a.Log.Info("The conflict is over", "with", c.Name)
		}
	}
}
