package plan

import (
	"maps"
	"net/netip"
	"path"
	"slices"

	"ec2netd/service/dropin"
	"ec2netd/service/status"
	"ec2netd/service/unitfile"
)

// BaseLinkName is [dropin.BaseLinkName], ClearName is [dropin.ClearName], and NoAddresses is
// [dropin.NoAddresses].
const (
	BaseLinkName = dropin.BaseLinkName
	ClearName    = dropin.ClearName
	NoAddresses  = dropin.NoAddresses
)

// leaveOut are drop-ins that leave ENIs out of files that a generator made for several links:
// what is said of an ENI there would be said of all (F3). So the ENIs' own units are in force.
func leaveOut(enis []ENI, drivers []string) []File {
	if len(drivers) == 0 {
		return nil
	}
	var files []File
	for i := range enis {
		eni := &enis[i]
		for _, shared := range eni.Link.Shared {
			p := path.Join(unitfile.GeneratorDir(shared), DropInName)
			if !eni.Settings.Managed || slices.ContainsFunc(files, func(f File) bool { return f.Path == p }) {
				continue
			}
			leaveOut := dropin.LeaveOut{Drivers: drivers}
			files = append(files, File{Path: p, Content: leaveOut.Render(path.Base(shared))})
		}
	}
	return files
}

// Unit is the .network file that shall be in force for the link.
func (l *Link) Unit() string {
	if l.Generator != "" {
		return l.Generator
	}
	return NetworkPath(l.Name)
}

// UnitInForce reports whether a .network file that networkd uses for the link says all that the
// daemon has to say: the link's own, or a generator's with its drop-ins.
func (l *Link) UnitInForce(file string) bool {
	return file == NetworkPath(l.Name) || (l.Generator != "" && file == l.Generator)
}

// generatedOwn reports whether the generator's file has the place of the link's own unit.
func (l *Link) generatedOwn() bool { return l.Generator == NetworkPath(l.Name) }

// generatorFiles are links by which a generator's file, which networkd uses in place of the
// ENI's own unit, says all that this one says (F3): the base unit, its drop-ins, the generated
// drop-in, and the administrator's for the ENI. Where the generator's file goes, the ENI's own
// unit is there.
func generatorFiles(eni *ENI, in Input) []File {
	link := &eni.Link
	own := NetworkDropIn(link.Name)
	if link.Generator == "" || link.generatedOwn() || !slices.ContainsFunc(eni.Files, func(f File) bool { return f.Path == own }) {
		return nil
	}
	// The first tells that the others are this daemon's.
	targets := map[string]string{BaseLinkName: in.Base, DropInName: own}
	if !keepsAll(in.Networkd) {
		// It leads nowhere most of the time, and must be there when networkd starts.
		targets[StartDropInName] = StartDropIn(link.Name)
	}
	// networkd 252 calls Address= without a value invalid (facts: versions).
	if keepsAll(in.Networkd) && eni.cleared() {
		targets[ClearName] = NoAddresses
	}
	for _, dropIn := range slices.Concat(in.BaseDropIns, link.DropIns) {
		targets[path.Base(dropIn)] = dropIn
	}
	dir := unitfile.GeneratorDir(link.Generator)
	files := []File{{Path: path.Join(dir, DropInName), Target: targets[DropInName]}}
	delete(targets, DropInName)
	for _, name := range slices.Sorted(maps.Keys(targets)) {
		files = append(files, File{Path: path.Join(dir, name), Target: targets[name]})
	}
	return files
}

// tell settles which addresses of those that cloud-init wrote EC2 has told.
func tell(eni *ENI, hint *Hint) {
	var earlier []netip.Addr
	if hint != nil && hint.Views[eni.Link.MAC].ID == eni.View.ID {
		earlier = hint.Told[eni.Link.MAC]
	}
	if len(eni.Link.FirstBoot) == 0 {
		// netplan makes its files anew with each reload of systemd: what is known of them outlives that.
		eni.Told = earlier
		return
	}
	for _, address := range eni.Link.FirstBoot {
		if slices.Contains(earlier, address) || slices.Contains(eni.View.IPv4, address) || slices.Contains(eni.View.IPv6, address) {
			eni.Told = append(eni.Told, address)
		}
	}
	slices.SortFunc(eni.Told, netip.Addr.Compare)
	eni.Told = slices.Compact(eni.Told)
}

// cleared reports whether the addresses in a generator's file are not to count: cloud-init has had
// them from the metadata in the first boot, with the length of the subnet's prefix, so that one of
// them is the first on the link and not the primary one, and any of them stays when EC2 has
// withdrawn it. Those that the ENI has now stand in its drop-in. One that EC2 is not known to have
// told may be the administrator's: then all stay, as none can be taken away alone.
func (e *ENI) cleared() bool {
	return len(e.Link.FirstBoot) > 0 && len(e.untold()) == 0
}

// untold are the addresses of those that cloud-init wrote that EC2 is not known to have told.
func (e *ENI) untold() []netip.Addr {
	return slices.DeleteFunc(slices.Clone(e.Link.FirstBoot), func(a netip.Addr) bool { return slices.Contains(e.Told, a) })
}

// KeepsWritten says that the addresses in a generator's file count because of those that EC2 is not
// known to have told, or nothing.
func KeepsWritten(eni *ENI, networkd Networkd) status.Reason {
	untold := eni.untold()
	if !keepsAll(networkd) || len(untold) == 0 {
		return status.Reason{}
	}
	names := make([]string, 0, len(untold))
	for _, address := range untold {
		names = append(names, address.String())
	}
	return status.Reason{Code: status.WrittenStays, File: eni.Link.Generator, Netplan: unitfile.FromNetplan(eni.Link.Generator), Values: names,
		Own: NetworkPath(eni.Link.Name)}
}
