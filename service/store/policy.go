package store

import (
	"path"
	"slices"
	"strings"

	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// Policies are the .link files that somebody else has made, in the order in which udevd looks at
// them, with their drop-ins.
func (s *Store) Policies() []unitfile.Unit {
	var units []unitfile.Unit
	for _, name := range s.names("*.link") {
		unit := s.Look(name)
		generated := path.Dir(unit.Path) == plan.Directory && strings.HasPrefix(name, "70-") && s.Target(unit.Path) != ""
		if unit.Path != "" && !generated {
			units = append(units, unit)
		}
	}
	return units
}

// Policy is the .link file that holds for a link of which udevd says what it has applied: that or,
// if it is a generated one, the one that it leads to.
func (s *Store) Policy(applied string) string {
	if path.Dir(applied) != plan.Directory || !strings.HasPrefix(path.Base(applied), "70-") {
		return applied
	}
	if target := s.Target(applied); target != "" {
		return target
	}
	return applied
}

// names are the names of the unit files that match a pattern, in the order in which networkd and
// udevd look at them.
func (s *Store) names(pattern string) []string {
	var names []string
	for _, dir := range unitDirs {
		for _, name := range s.list(dir, pattern) {
			if !strings.HasPrefix(name, ".") {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}
