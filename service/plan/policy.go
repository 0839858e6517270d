package plan

import (
	"path"

	"ec2netd/service/unitfile"
)

// TakePolicy notes which .link file holds for a link besides the generated one, which leads to it:
// the first of those of others that matches, see [unitfile.Tree.Policies]. Applied is the file that udevd has
// applied to the link, or that the generated one leads to if it was that; empty for none. Of a file
// that asks for what only udevd knows, that is the answer.
func (l *Link) TakePolicy(units []unitfile.Unit, applied string) {
	l.LinkFile, l.LinkDropIns = DefaultPolicy, nil
	if applied == "" || applied == NoPolicy {
		// None, as where 99-default.link is masked to keep the kernel's names.
		l.LinkFile = NoPolicy
	}
	for i := range units {
		unit := &units[i]
		if unit.Masked && path.Base(unit.Path) == path.Base(DefaultPolicy) {
			l.LinkFile = NoPolicy
		}
		if match, _ := unit.Match(l.Matchable()); unit.Masked || match == unitfile.NoMatch || (match == unitfile.MayMatch && unit.Path != applied) {
			continue
		}
		l.LinkFile = unit.Path
		own := path.Base(unit.Path) == path.Base(LinkPath(l.Name))
		for _, text := range unit.Texts[1:] {
			// They are looked up under the name of the generated file, not of what it leads to.
			name := path.Base(text.Path)
			if !own && name != DropInName && name != MatchDropIn {
				l.LinkDropIns = append(l.LinkDropIns, text.Path)
			}
		}
		if set := unit.MTU(); l.Bytes == 0 && set.Bytes != 0 {
			l.Bytes, l.OfLink = set.Bytes, true
		}
		return
	}
}
