package agent

import (
	"cmp"
	"fmt"
	"net/netip"
	"path"
	"slices"
	"strings"
	"time"

	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// lastBoot is what a boot leaves for the next one of the same instance, see [plan.Hint].
// It is the only thing that outlives a boot.
type lastBoot struct {
	Instance metadata.Instance `json:"instance"`
	// StaticIPv6: networkd was one that drops what is dynamic with a reload.
	StaticIPv6 bool           `json:"staticIPv6"`
	ENIs       []lastBootOfIt `json:"enis"`
}

type lastBootOfIt struct {
	ENI metadata.ENI `json:"eni"`
	// Routers that advertised themselves to it.
	Routers []netip.Addr `json:"routers,omitempty"`
	// Told are addresses in a file of cloud-init's that EC2 gave it, by now or earlier.
	Told []netip.Addr `json:"told,omitempty"`
}

// check refuses what no run of this daemon writes.
func (h *lastBoot) check() error {
	if _, err := metadata.ParseMAC(h.Instance.PrimaryMAC); err != nil {
		return err
	}
	for _, e := range h.ENIs {
		if err := e.ENI.Check(); err != nil {
			return err
		}
		for _, router := range e.Routers {
			if !router.Is6() || !router.IsLinkLocalUnicast() || router.Zone() != "" {
				return fmt.Errorf("%s: %q is not the link-local address of an IPv6 router", e.ENI.ID, router)
			}
		}
		for _, address := range e.Told {
			if !address.IsValid() || address.Zone() != "" {
				return fmt.Errorf("%s: %q is no address of an ENI", e.ENI.ID, address)
			}
		}
	}
	return nil
}

// planHint is the hint for the plan, nil if there is none or it is another instance's.
func (a *Agent) planHint() *plan.Hint {
	if known := a.seen.Metadata; a.hint == nil || (known.Identified && known.Instance != a.hint.Instance) {
		return nil
	}
	hint := &plan.Hint{PrimaryMAC: a.hint.Instance.PrimaryMAC, StaticIPv6: a.hint.StaticIPv6,
		Views: make(map[string]metadata.ENI), Routers: make(map[string][]netip.Addr),
		Told: make(map[string][]netip.Addr)}
	for _, e := range a.hint.ENIs {
		hint.Views[e.ENI.MAC], hint.Routers[e.ENI.MAC], hint.Told[e.ENI.MAC] = e.ENI, e.Routers, e.Told
	}
	return hint
}

// saveHint keeps what the next boot can begin with, once that is certain, if it is not
// what is kept already (E3).
func (a *Agent) saveHint() {
	known := a.seen.Metadata
	if a.hintFile.Path == "" || !known.Identified || len(a.plan.ENIs) == 0 || a.hinted == a.planned {
		return
	}
	technique, _ := plan.Choose(a.networkd())
	last := a.planHint()
	if technique == plan.Undecided {
		return
	}
	now := lastBoot{Instance: known.Instance, StaticIPv6: technique == plan.Static, ENIs: []lastBootOfIt{}}
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		if !eni.Known || eni.Hinted {
			// It is being read, or networkd is at it: the last word stays.
			if last != nil {
				if view, ok := last.Views[eni.Link.MAC]; ok {
					now.ENIs = append(now.ENIs, lastBootOfIt{ENI: view, Routers: last.Routers[eni.Link.MAC], Told: last.Told[eni.Link.MAC]})
				}
			}
			continue
		}
		routers := slices.Clone(eni.Link.Routers)
		if len(routers) == 0 && last != nil {
			// On 252 a reload takes what the router advertised away for a moment.
			routers = last.Routers[eni.Link.MAC]
		}
		// In the order in which they stand in the drop-in: the one that came last is first.
		known := eni.Want.Routers
		slices.SortFunc(routers, func(a, b netip.Addr) int {
			return cmp.Or(cmp.Compare(slices.Index(known, a), slices.Index(known, b)), a.Compare(b))
		})
		now.ENIs = append(now.ENIs, lastBootOfIt{ENI: eni.View.Sorted(), Routers: slices.Compact(routers), Told: eni.Told})
	}
	slices.SortFunc(now.ENIs, func(x, y lastBootOfIt) int { return strings.Compare(x.ENI.MAC, y.ENI.MAC) })
	a.hint, a.hinted = &now, a.planned
	a.hintFile.Put(&now, time.Now())
}

// tellCleared says for which ENIs files just written take away the addresses that cloud-init wrote.
func (a *Agent) tellCleared(written []string) {
	for i := range a.plan.ENIs {
		eni := &a.plan.ENIs[i]
		if made := eni.Link.Generator; made != "" && slices.Contains(written, path.Join(unitfile.GeneratorDir(made), plan.ClearName)) {
			a.Log.Info("Taking away the addresses that cloud-init wrote at the first boot, those that the ENI has stay", "eni", eni.View.ID,
				"mac", eni.Link.MAC, "interface", eni.Link.Name, "file", made, "addresses", strings.Join(texts(eni.Link.FirstBoot), ", "))
		}
	}
}
