// Package preview tells in advance what ec2netd would make of an instance: which files, and what becomes
// of those that there are.
//
// The preview is the final plan, as it will be once DHCP has configured its part. The package writes
// nothing, and asks neither ec2netd nor the metadata service.
package preview

import (
	"net/netip"
	"slices"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/store"
)

// Change is what becomes of a file.
type Change string

// The changes. An offline plan has none.
const (
	New     Change = "new"
	Changed Change = "changed"
	Same    Change = "same"
)

// Plan is what would be made of an instance.
type Plan struct {
	Interfaces []ENI `json:"interfaces"`
	// Removed are files that would go.
	Removed []string `json:"removed"`
}

// ENI is what would be made of one ENI. The names are those of the state.
type ENI struct {
	ENIID       string `json:"eniId"`
	MAC         string `json:"mac"`
	Name        string `json:"name"`
	Primary     bool   `json:"primary"`
	DeviceIndex int    `json:"deviceIndex"`
	NetworkCard int    `json:"networkCard"`
	Metric      int    `json:"metric"`
	Table       int    `json:"table"`
	// Addresses that the link would have, by DHCP or by the files, and Altnames.
	Addresses []string `json:"addresses"`
	Altnames  []string `json:"altnames"`
	// Managed as the configuration says, and Reason why no files are made.
	Managed bool   `json:"managed"`
	Reason  string `json:"reason"`
	Files   []File `json:"files"`
	// Keep are the paths of the units of which all files on disk stay.
	Keep []string `json:"-"`
}

// File is a file that is to be: one with Content, or a symbolic link to Target.
type File struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"`
	Target  string `json:"target,omitempty"`
	// Change is empty for an offline plan.
	Change Change `json:"change,omitempty"`
	// Before is the content on disk.
	Before string `json:"-"`
}

// Make returns what becomes of a dump once networkd has done its part: the links of in get the leases
// that they will have, so that the plan is the last step and not the first. In has neither the primary
// ENI nor views; they come from the dump.
func Make(d *metadata.Dump, in plan.Input) (*Plan, error) {
	instance, err := d.Instance()
	if err != nil {
		return nil, err
	}
	in.PrimaryMAC, in.Views = instance.PrimaryMAC, make(map[string]metadata.ENI)
	unread := make(map[string]error)
	for _, mac := range d.MACs() {
		view, err := d.ENI(mac)
		if err != nil {
			unread[mac] = err
			continue
		}
		in.Views[mac] = *view
	}
	first := plan.Make(in)
	for i := range first.ENIs {
		settle(&first.ENIs[i], in.Links)
	}
	p := plan.Make(in)
	p.GiveWay()

	result := &Plan{Interfaces: []ENI{}, Removed: []string{}}
	linked := make(map[string]bool)
	for i := range p.ENIs {
		eni := &p.ENIs[i]
		linked[eni.Link.MAC] = true
		result.Interfaces = append(result.Interfaces, describe(eni, unread[eni.Link.MAC]))
	}
	// ENIs without a link: EFA-only ones, ghosts of detached ones.
	for _, mac := range d.MACs() {
		if linked[mac] {
			continue
		}
		entry := ENI{MAC: mac, DeviceIndex: state.Unknown, NetworkCard: state.Unknown, Metric: state.Unknown, Table: state.Unknown,
			Addresses: []string{}, Altnames: []string{}, Files: []File{}, Managed: true, Reason: status.Reason{Code: status.NoLink}.Words()}
		if view, ok := in.Views[mac]; ok {
			entry.ENIID, entry.DeviceIndex = view.ID, view.DeviceIndex
		}
		result.Interfaces = append(result.Interfaces, entry)
	}
	return result, nil
}

// settle gives the link of an ENI the lease that DHCP is going to bring.
func settle(eni *plan.ENI, links []plan.Link) {
	if !eni.Known || !eni.Settings.Managed {
		return
	}
	i := slices.IndexFunc(links, func(l plan.Link) bool { return l.Index == eni.Link.Index })
	l := &links[i]
	l.LeaseOverdue, l.Done, l.Busy, l.OnBase, l.New, l.Reconfigured = true, true, false, false, false, 0
	l.DHCPMetrics = nil
	if !eni.Want.NoDefault {
		l.DHCPMetrics = []int{eni.Want.Metric}
	}
	lease := func(address netip.Addr) {
		if !l.Has(address) {
			l.Addresses = append(slices.Clone(l.Addresses), kernel.Address{Prefix: netip.PrefixFrom(address, address.BitLen()), Global: true, Dynamic: true})
		}
	}
	if eni.Want.Primary.IsValid() {
		lease(eni.Want.Primary)
	}
	if eni.Primary && len(eni.Applies.IPv6) > 0 && !slices.ContainsFunc(l.Addresses, func(a kernel.Address) bool {
		return a.Dynamic && slices.Contains(eni.Applies.IPv6, a.Prefix.Addr())
	}) {
		lease(eni.Applies.IPv6[0])
	}
}

// describe returns what would be made of one ENI. Unread says why its metadata could not be read, if
// so.
func describe(eni *plan.ENI, unread error) ENI {
	entry := ENI{
		ENIID: eni.View.ID, MAC: eni.Link.MAC, Name: eni.Link.Name, Primary: eni.Primary,
		DeviceIndex: state.Unknown, NetworkCard: state.Unknown, Metric: state.Unknown, Table: state.Unknown,
		Addresses: []string{}, Altnames: append([]string{}, eni.Want.Altnames...), Managed: eni.Settings.Managed, Files: []File{},
	}
	if eni.Known {
		entry.DeviceIndex, entry.NetworkCard = eni.Numbers.Index, eni.Numbers.Card
	}
	if eni.Want.Metric != 0 {
		entry.Metric = eni.Want.Metric
	}
	if eni.Want.Table != 0 {
		entry.Table = eni.Want.Table
	}
	for _, a := range eni.Want.Addresses {
		entry.Addresses = append(entry.Addresses, a.String())
	}
	reason := eni.Reason
	switch {
	case !eni.Settings.Managed:
		reason = status.Reason{Code: status.ManagedNo, File: eni.Settings.ManagedBy}
	case eni.Link.Taken != "":
		reason = status.Reason{Code: status.UnitTaken, File: eni.Link.Taken}
	case unread != nil:
		reason = status.Reason{Code: status.MetadataFailed, Cause: unread.Error()}
	}
	entry.Reason, entry.Keep = reason.Planned(eni.Keep), eni.Kept()
	for _, f := range eni.Files {
		entry.Files = append(entry.Files, File{Path: f.Path, Content: f.Content, Target: f.Target})
	}
	return entry
}

// Compare notes what becomes of each file on disk, and which of the generated ones would go. Units are
// those that are generated now.
func (p *Plan) Compare(on *store.Store, units []store.Unit) error {
	wanted := make(map[string]bool)
	var kept []string
	for i := range p.Interfaces {
		e := &p.Interfaces[i]
		for k := range e.Files {
			f := &e.Files[k]
			wanted[f.Path] = true
			f.Before = on.Read(f.Path)
			target := on.Target(f.Path)
			switch {
			case f.Target != "" && f.Target == target, f.Target == "" && target == "" && f.Content == f.Before:
				f.Change = Same
			case f.Before == "" && target == "":
				f.Change = New
			default:
				f.Change = Changed
			}
		}
		kept = append(kept, e.Keep...)
	}
	for _, unit := range units {
		if slices.Contains(kept, unit.Path()) {
			continue
		}
		unwanted, err := on.Unwanted(unit, wanted)
		if err != nil {
			return err
		}
		p.Removed = append(p.Removed, unwanted...)
	}
	p.Removed = append(p.Removed, on.UnwantedLinks(wanted, func(link string) bool { return slices.Contains(kept, plan.NetworkPath(link)) })...)
	return nil
}
