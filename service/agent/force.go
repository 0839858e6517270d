package agent

import (
	"path"
	"slices"
	"strings"
	"time"

	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/store"
)

// stillThere begins the gap of what is on a link and should not be.
const stillThere = "still there: "

// explainTime is how long what is missing is waited for before files of somebody else's
// are asked whether they explain it.
const explainTime = 5 * time.Second

// takeUp is how long networkd may take to tell which file it uses after a reload: on
// 252 it replies before that.
const takeUp = time.Second

// watchBase has networkd reload when the base unit or one of its drop-ins has changed:
// the generated units are made of them, so that nobody else knows what it means.
func (a *Agent) watchBase(unit string, dropIns []string) {
	stamp := a.Store.Stamp(append([]string{unit}, dropIns...)...)
	if a.baseStamp != "" && stamp != a.baseStamp {
		now := time.Now()
		a.reloadDue = true
		for _, l := range a.links {
			l.atWork(now)
		}
		a.hasten(now)
	}
	a.baseStamp = stamp
}

// inForce tells by what file an ENI is configured, if that is not its own unit with its
// own drop-in; the state is empty if it is, or may be in a moment.
func (a *Agent) inForce(eni *plan.ENI, why networkd.LinkState, age time.Duration) (state.ENI, string) {
	own, inForce := plan.NetworkPath(eni.Link.Name), eni.Link.UnitInForce(why.File)
	settled := why.Administrative != "pending" && why.Administrative != "initialized" && age > takeUp
	if why.File == plan.HoldPath {
		why.File = ""
	}
	nothing := why.File == "" && why.Administrative == "unmanaged"
	base := path.Base(why.File) == store.BaseName
	taken := eni.Link.Taken
	switch {
	case !inForce && !settled && age < settleTime && (why.File != "" || nothing):
		// It may be on its way from one file to another.
		return state.ENIConfiguring, "waiting for networkd to take up its files"
	case taken != "" && (base || nothing || why.File == taken):
		return state.ENIOverridden, a.takenOver(eni, why)
	case a.refused[own] != "":
		return state.ENIOverridden, own + " is not written: " + a.refused[own] + ". Remove that to have the ENI configured"
	case inForce && eni.Link.NetworkHidden != "":
		return state.ENIOverridden, "the administrator's " + eni.Link.NetworkHidden + " is in force in place of " +
			plan.NetworkDropIn(eni.Link.Name) + ". Give it another name to have both, or remove it"
	case inForce || !settled || (why.File == "" && !nothing):
		return "", ""
	case path.Base(why.File) == path.Base(own):
		return state.ENIOverridden, why.File + " is still in force in place of " + own + ": have networkd read its files with networkctl reload"
	case !base && !nothing:
		return state.ENIShadowed, a.shadowed(eni, why.File)
	}
	if base := a.Store.Look(store.BaseName); nothing && base.Masked {
		return state.ENIOverridden, base.Path + " masks the base unit of all ENIs. Remove it to have them configured"
	}
	unit := a.Store.Look(path.Base(own))
	if match, culprit := plan.MatchOf(unit, &eni.Link); match != plan.Matches && culprit != "" {
		return state.ENIOverridden, culprit + " has a [Match] that " + own + " does not match " + eni.Link.Name +
			" with" + using(why) + ". Change it to have the ENI configured"
	}
	if nothing {
		if other, reason := a.unmanagedBy(eni); other != "" {
			return other, reason
		}
	}
	switch {
	case len(unit.MaskedDropIns) > 0:
		// 262 does not read such a unit at all, other versions only leave the drop-in out.
		return state.ENIOverridden, unit.MaskedDropIns[0] + " masks a drop-in of " + own + using(why) +
			". Remove it to have the ENI configured"
	case age < settleTime:
		return "", ""
	case nothing:
		return state.ENIUnmanaged, "networkd leaves the link alone: see networkctl status " + eni.Link.Name
	}
	return state.ENIDegraded, "networkd has not taken up " + own + " and uses " + why.File + ": see networkctl status " + eni.Link.Name
}

// using says what networkd uses instead.
func using(why networkd.LinkState) string {
	if why.File == "" {
		return ", and networkd leaves the link alone"
	}
	return ", and networkd uses " + why.File
}

// takenOver says who has the place of the unit.
func (a *Agent) takenOver(eni *plan.ENI, why networkd.LinkState) string {
	own, taken := plan.NetworkPath(eni.Link.Name), eni.Link.Taken
	const mend = ". Remove it to have the ENI configured"
	switch unit := a.Store.Look(path.Base(own)); {
	case taken == plan.NetworkDropIn(eni.Link.Name):
		return taken + " is not this daemon's: a mask, maybe" + using(why) + mend
	case unit.Masked:
		return taken + " masks the unit of the ENI" + using(why) + mend
	case why.File == taken:
		return "the administrator's " + taken + " is in force, and nothing of ec2netd" + mend
	default:
		return "the administrator's " + taken + " takes the place of the ENI's unit, but does not match the link" + using(why) + mend
	}
}

// shadowed says that networkd uses another file for the link, and what to do.
func (a *Agent) shadowed(eni *plan.ENI, file string) string {
	own := plan.NetworkPath(eni.Link.Name)
	for i := range a.plan.ENIs {
		// The unit of another ENI, which somebody's drop-in has made match this one.
		if other := &a.plan.ENIs[i]; other != eni && file == plan.NetworkPath(other.Link.Name) {
			if culprit := plan.Matching(a.Store.Look(path.Base(file))); culprit != "" {
				return "networkd uses " + file + " for the link, the unit of " + other.Link.Name + ", because of the [Match] in " + culprit +
					": change that"
			}
		}
	}
	return "networkd uses " + file + " for the link instead of " + own + ": remove it, or give it a name that sorts after " +
		path.Base(own) + ", or have its [Match] leave out " + eni.Link.Name
}

// unmanagedBy looks for the file that has networkd leave the link alone, which networkd
// does not tell.
func (a *Agent) unmanagedBy(eni *plan.ENI) (state.ENI, string) {
	unit, culprit := a.Store.Networks().Unmanaged(&eni.Link)
	name := path.Base(unit.Path)
	switch {
	case culprit == "":
		return "", ""
	case name == path.Base(plan.NetworkPath(eni.Link.Name)) || culprit != unit.Texts[0].Source || name == store.BaseName:
		return state.ENIOverridden, culprit + " has networkd leave the link alone (Unmanaged=yes). Change it to have the ENI configured"
	}
	return state.ENIShadowed, "networkd leaves the link alone, as " + culprit + " says (Unmanaged=yes) instead of " +
		plan.NetworkPath(eni.Link.Name) + ": remove it, or have its [Match] leave out " + eni.Link.Name
}

// explained tells what file of somebody else's, read together with the ENI's own, takes
// away what is missing.
func (a *Agent) explained(eni *plan.ENI, gaps []string) string {
	unit := a.Store.Look(path.Base(eni.Link.Unit()))
	culprit, line := plan.TakenAway(unit, gaps, store.Shipped())
	withdrawn := func(gap string) bool { return strings.HasPrefix(gap, stillThere) }
	switch {
	case culprit == "":
	case !slices.ContainsFunc(gaps, func(gap string) bool { return !withdrawn(gap) }):
		return culprit + " keeps what the ENI has no more (" + line + "). " + summary(gaps) + ". " + plan.RemoveAddress(culprit)
	default:
		return culprit + " takes away what the ENI shall have (" + line + "). Missing: " + summary(gaps) +
			". Change it, or remove it"
	}
	return ""
}

// namesTaken says why altnames cannot come: what stands in the way of the .link file, and
// what to do. It is empty if nothing does.
func (a *Agent) namesTaken(eni *plan.ENI) string {
	own := plan.LinkPath(eni.Link.Name)
	const without = "the ENI has no alternative names: "
	for _, file := range []string{own, plan.LinkDropIn(eni.Link.Name)} {
		if a.refused[file] != "" {
			return without + file + " is not written: " + a.refused[file] + ". Remove that to have them"
		}
	}
	applied, ok := a.Udev.LinkFile(eni.Link.Index)
	if !ok || (applied != "" && a.Store.Read(applied) == "") {
		applied = ""
	}
	switch why, file := plan.KeepsNames(&eni.Link, a.Store.Look(path.Base(own)), applied); why {
	case plan.NamesMasked:
		return without + file + " masks the .link file. Remove it to have them"
	case plan.NamesHidden:
		return without + "the administrator's " + file + " is in force in place of " + plan.LinkDropIn(eni.Link.Name) +
			". Give it another name to have both, or remove it"
	case plan.NamesElsewhere:
		return without + file + " has a [Match] that the .link file does not match the link with. Change it to have them"
	case plan.NamesEarlier:
		return without + "udevd uses " + file + " for the link instead of " + own + ": give it a name that sorts after " + path.Base(own) +
			", or write the names into it"
	case plan.NamesFree:
	}
	return ""
}

// nameElsewhere names an alternative name that an ENI lacks because another link has it,
// and that link. udevd never takes one away: what an ENI was called by its device index
// stays on its link where that index went to another one.
func (a *Agent) nameElsewhere(eni *plan.ENI) (name, holder string) {
	for _, name := range eni.Want.Altnames {
		for i := range a.snapshot.Links {
			other := &a.snapshot.Links[i]
			if other.Index != eni.Link.Index && (other.Name == name || slices.Contains(other.Altnames, name)) {
				return name, other.Name
			}
		}
	}
	return "", ""
}

// onlyAltnames tells whether nothing but altnames is missing.
func onlyAltnames(gaps []string) bool {
	for _, gap := range gaps {
		if !strings.HasPrefix(gap, "altname ") {
			return false
		}
	}
	return len(gaps) > 0
}
