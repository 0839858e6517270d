package agent

import (
	"ec2netd/service/compare"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// compare compares what an ENI shall have with what it has. What networkd says counts as long as
// nothing else has changed since it was asked.
func (a *Agent) compare(eni *plan.ENI, l *link, entry *state.Interface) *compare.Cache {
	version := compare.Version{Plan: a.planned, Record: a.noted.count}
	actual := compare.Actual{Rendered: a.rendered(eni), Kernel: a.seen.Kernel, Withdrawn: l.withdrawn, Ours: a.ours}
	if a.session.Running() && a.session.Applied.Fresh(l.opinion.changed) {
		actual.Applied = a.session.Applied.Snapshot()
	}
	administrated := a.linkState(eni.Link.Index).Administrative
	changed := l.compared.Update(eni, version, actual)
	if changed || l.opinion.file != entry.NetworkFile || l.opinion.administrated != administrated {
		l.opinion.changed = a.session.Applied.Changed()
		actual.Applied = nil
		l.compared.Update(eni, version, actual)
	}
	l.opinion.file, l.opinion.administrated = entry.NetworkFile, administrated
	return &l.compared
}

// rendered are the drop-ins of an ENI as they are on the disk and in force.
func (a *Agent) rendered(eni *plan.ENI) compare.Rendered {
	name := eni.Link.Name
	var r compare.Rendered
	if eni.Keep || a.storeErr != "" {
		r.Network = eni.Link.Current
	}
	for _, file := range eni.Files {
		switch {
		case a.storeErr != "" || !a.refused[file.Path].None():
		case file.Path == plan.NetworkDropIn(name):
			r.Network = eni.DropIn
		case file.Path == plan.LinkDropIn(name):
			r.Link = eni.LinkDropIn
		}
	}
	if eni.Link.NetworkHidden != "" {
		r.Network = nil
	}
	if eni.Link.LinkHidden != "" {
		r.Link = nil
	}
	return r
}
