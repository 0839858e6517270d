package agent

import (
	"path"
	"slices"
	"time"

	"ec2netd/service/dropin"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// explainTime is how long what is missing is waited for before files of somebody else's
// are asked whether they explain it.
const explainTime = 5 * time.Second

// takeUp is how long networkd may take to tell which file it uses after a reload: on
// 252 it replies before that.
const takeUp = time.Second

// watchBase has networkd reload when the base unit or one of its drop-ins has changed:
// the generated units are made of them, so that nobody else knows what it means.
func (a *Agent) watchBase(unit string, dropIns []string) {
	stamp := a.seen.Files.Stamp(append([]string{unit}, dropIns...)...)
	if a.baseStamp != "" && stamp != a.baseStamp {
		now := time.Now()
		a.session.NeedReload()
		for _, l := range a.links {
			l.atWork(now)
		}
		a.hasten(now)
	}
	a.baseStamp = stamp
}

// inForce tells by what file an ENI is configured, if that is not its own unit with its
// own drop-in; the state is empty if it is, or may be in a moment.
func (a *Agent) inForce(eni *plan.ENI, why networkd.LinkState, age time.Duration) (state.ENI, status.Reason) {
	own, inForce := plan.NetworkPath(eni.Link.Name), eni.Link.UnitInForce(why.File)
	settled := why.Administrative != "pending" && why.Administrative != "initialized" && age > takeUp
	if why.File == plan.HoldPath {
		why.File = ""
	}
	nothing := why.File == "" && why.Administrative == "unmanaged"
	base := path.Base(why.File) == dropin.BaseName
	taken := eni.Link.Taken
	reason := status.Reason{Subject: eni.Link.Name, Own: own, InForce: why.File}
	switch {
	case !inForce && !settled && age < settleTime && (why.File != "" || nothing):
		// It may be on its way from one file to another.
		reason.Code = status.TakingUp
		return state.ENIConfiguring, reason
	case taken != "" && (base || nothing || why.File == taken):
		reason.Code, reason.File = a.takenOver(eni, why), taken
		return state.ENIOverridden, reason
	case inForce && eni.Link.NetworkHidden != "":
		reason.Code, reason.File, reason.Own = status.DropInHidden, eni.Link.NetworkHidden, plan.NetworkDropIn(eni.Link.Name)
		return state.ENIOverridden, reason
	case inForce || !settled || (why.File == "" && !nothing):
		return "", status.Reason{}
	case path.Base(why.File) == path.Base(own):
		reason.Code, reason.File = status.ReloadDue, why.File
		return state.ENIOverridden, reason
	case !base && !nothing:
		reason.Code, reason.File = status.OthersUnit, why.File
		a.blameMatch(eni, &reason)
		return state.ENIShadowed, reason
	}
	return a.onBase(eni, reason, age)
}

// onBase continues inForce where networkd has the base unit for the link, or none.
func (a *Agent) onBase(eni *plan.ENI, reason status.Reason, age time.Duration) (state.ENI, status.Reason) {
	nothing := reason.InForce == ""
	if base := a.seen.Files.Look(dropin.BaseName); nothing && base.Masked {
		reason.Code, reason.File = status.BaseMasked, base.Path
		return state.ENIOverridden, reason
	}
	unit := a.seen.Files.Look(path.Base(reason.Own))
	if match, culprit := unit.Match(eni.Link.Matchable()); match != unitfile.Matches && culprit != "" {
		reason.Code, reason.File = status.MatchFails, culprit
		return state.ENIOverridden, reason
	}
	if nothing {
		if other, code, culprit := a.unmanagedBy(eni); other != "" {
			reason.Code, reason.File = code, culprit
			return other, reason
		}
	}
	switch {
	case len(unit.MaskedDropIns) > 0:
		reason.Code, reason.File = status.DropInMasked, unit.MaskedDropIns[0]
		return state.ENIOverridden, reason
	case age < settleTime:
		return "", status.Reason{}
	case nothing:
		reason.Code = status.LeftAlone
		return state.ENIUnmanaged, reason
	}
	reason.Code = status.NotTakenUp
	return state.ENIDegraded, reason
}

// takenOver says how another file has the place of the unit.
func (a *Agent) takenOver(eni *plan.ENI, why networkd.LinkState) status.Code {
	taken := eni.Link.Taken
	switch unit := a.seen.Files.Look(path.Base(plan.NetworkPath(eni.Link.Name))); {
	case taken == plan.NetworkDropIn(eni.Link.Name):
		return status.DropInTaken
	case unit.Masked:
		return status.UnitMasked
	case why.File == taken:
		return status.UnitReplaced
	}
	return status.UnitUnmatched
}

// blameMatch names the drop-in by which networkd uses the unit of another ENI for the link, if the
// file in force is one.
func (a *Agent) blameMatch(eni *plan.ENI, reason *status.Reason) {
	for i := range a.plan.ENIs {
		other := &a.plan.ENIs[i]
		if other == eni || reason.InForce != plan.NetworkPath(other.Link.Name) {
			continue
		}
		if culprit := a.seen.Files.Look(path.Base(reason.InForce)).Matching(); culprit != "" {
			reason.Code, reason.File, reason.Other = status.OtherENIsUnit, culprit, other.Link.Name
			return
		}
	}
}

// unmanagedBy looks for the file that has networkd leave the link alone, which networkd
// does not tell.
func (a *Agent) unmanagedBy(eni *plan.ENI) (other state.ENI, why status.Code, culprit string) {
	unit, culprit := a.seen.Files.Unmanaged(eni.Link.Matchable())
	name := path.Base(unit.Path)
	switch {
	case culprit == "":
		return "", status.None, ""
	case name == path.Base(plan.NetworkPath(eni.Link.Name)) || culprit != unit.Texts[0].Source || name == dropin.BaseName:
		return state.ENIOverridden, status.UnmanagedBySetting, culprit
	}
	return state.ENIShadowed, status.UnmanagedByUnit, culprit
}

// explained says what file of somebody else's, read together with the ENI's own, takes
// away what is missing, or keeps what is still there.
func (a *Agent) explained(eni *plan.ENI, gaps []status.Gap) status.Reason {
	unit := a.seen.Files.Look(path.Base(eni.Link.Unit()))
	culprit, line := plan.TakenAway(unit, gaps, unitfile.Shipped())
	if culprit == "" {
		return status.Reason{}
	}
	reason := status.Reason{Code: status.KeptBySetting, Subject: eni.Link.Name, File: culprit, Setting: line, Netplan: unitfile.FromNetplan(culprit), Gaps: gaps}
	if slices.ContainsFunc(gaps, func(gap status.Gap) bool { return !gap.StillThere }) {
		reason.Code = status.TakenBySetting
	}
	return reason
}

// namesTaken says what stands in the way of the .link file, so that altnames cannot come. It says
// nothing if nothing does.
func (a *Agent) namesTaken(eni *plan.ENI) status.Reason {
	own := plan.LinkPath(eni.Link.Name)
	for _, file := range []string{own, plan.LinkDropIn(eni.Link.Name)} {
		if why := a.refused[file]; !why.None() {
			return status.Reason{Code: status.NamesRefused, Subject: eni.Link.Name, Own: file, Of: &why}
		}
	}
	applied := a.seen.Links[eni.Link.Index].LinkFile
	if a.seen.Files.Gone(applied) {
		applied = ""
	}
	why, file := plan.KeepsNames(&eni.Link, a.seen.Files.Look(path.Base(own)), applied)
	if why == status.None {
		return status.Reason{}
	}
	if why == status.NamesHidden {
		own = plan.LinkDropIn(eni.Link.Name)
	}
	return status.Reason{Code: why, Subject: eni.Link.Name, Own: own, File: file}
}

// nameElsewhere names an alternative name that an ENI lacks because another link has it,
// and that link. udevd never takes one away: what an ENI was called by its device index
// stays on its link where that index went to another one.
func (a *Agent) nameElsewhere(eni *plan.ENI) (name, holder string) {
	for _, name := range eni.Want.Altnames {
		for i := range a.seen.Kernel.Links {
			other := &a.seen.Kernel.Links[i]
			if other.Index != eni.Link.Index && (other.Name == name || slices.Contains(other.Altnames, name)) {
				return name, other.Name
			}
		}
	}
	return "", ""
}

// nameOfOther is nameElsewhere for links that are no ENIs. Nobody but the administrator takes a
// name from these.
func (a *Agent) nameOfOther(eni *plan.ENI) (name, holder string) {
	for _, name := range eni.Want.Altnames {
		if holder := a.seen.Others[name]; holder != "" {
			return name, holder
		}
	}
	return "", ""
}
