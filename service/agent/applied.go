package agent

import (
	"time"

	"ec2netd/service/networkd"
)

// opinion is what was shown of a link last. What networkd has applied is known of it by the answer
// to the question changed.
type opinion struct {
	file, administrated string
	changed             networkd.Question
}

// askOfLeases has networkd asked for the leases where search domains of one stand in a drop-in
// and networkd keeps no file of it: nothing else tells that there are others now.
func (a *Agent) askOfLeases() {
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		if eni.Want.Domains != "" && !a.linkState(eni.Link.Index).Lease.Known {
			a.session.Applied.WantLeases()
		}
	}
}

// takeApplied puts an answer where it belongs.
func (a *Agent) takeApplied(answer networkd.Answer) {
	if !a.session.Applied.Take(answer, time.Now()) {
		return
	}
	for index, l := range a.links {
		l.lease = a.session.Applied.Lease(index)
	}
	a.ask(0)
}
