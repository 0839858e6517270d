package plan

import (
	"path"

	"ec2netd/service/dropin"
	"ec2netd/service/unitfile"
)

// Complete fills in what the unit files say of the link: the generated drop-in, and files of
// somebody else's.
func (l *Link) Complete(files *unitfile.Tree) {
	l.Current, l.Extent = files.Network(l.Name), files.Extent(l.Name)
	l.StartFile = files.Regular(StartDropIn(l.Name))
	if l.Current.MACAddress() != l.MAC {
		// It is of another ENI that had the name.
		l.Current = nil
	}
	unit := files.Look(path.Base(NetworkPath(l.Name)))
	if unit.Path == "" {
		unit = files.Look(dropin.BaseName)
	}
	l.FirstBoot = nil
	if l.Generator, l.Shared = files.Generator(l.Matchable()); l.Generator != "" {
		l.DropIns = files.OwnDropIns(l.Name)
		// What is read under its name, and as long as nothing of this daemon's is, what will be.
		of := files.Look(path.Base(l.Generator))
		l.FirstBoot = files.FirstBoot(of)
		unit.Texts = append(of.Texts[:len(of.Texts):len(of.Texts)], unit.Texts...)
	}
	l.MTUSetting, l.PortSetting = unit.MTU(), unit.Port()
}

// Assigned returns the numbers that the generated drop-ins give to ENIs, by MAC address. It leaves
// out those of presumed, which was taken for the primary ENI.
func Assigned(files *unitfile.Tree, presumed string) map[string]Numbers {
	held := make(map[string]Numbers)
	for _, link := range files.Generated() {
		n := files.Network(link)
		mac := n.MACAddress()
		if numbers, ok := NumbersIn(n); ok && mac != "" && mac != presumed {
			held[mac] = numbers
		}
	}
	return held
}

// WantedRules returns the policy rules by source or by mark that any .network file or drop-in has,
// whoever has written it, in force or not. It fails if some file cannot be read.
func WantedRules(files *unitfile.Tree) ([]Rule, error) {
	texts, err := files.Every()
	var rules []Rule
	for i := range texts {
		rules = append(rules, RulesOf(texts[i].Network())...)
	}
	return rules, err
}

// WantedAddresses returns the static addresses that any .network file or drop-in has, see
// [WantedRules].
func WantedAddresses(files *unitfile.Tree) (map[OwnAddress]bool, error) {
	texts, err := files.Every()
	all := make(map[OwnAddress]bool)
	for i := range texts {
		for _, own := range addressesIn(&texts[i]) {
			all[own] = true
		}
	}
	return all, err
}
