package state

import (
	"slices"

	"ec2netd/service/status"
)

// Diff lists the interfaces whose addresses, prefixes or state differ between before and
// now. mac restricts it to one interface; empty means all.
func Diff(before, now *State, mac string) []InterfaceChange {
	changes := []InterfaceChange{}
	var macs []string
	for _, s := range []*State{before, now} {
		for i := range s.Interfaces {
			if m := s.Interfaces[i].MAC; !slices.Contains(macs, m) && (mac == "" || mac == m) {
				macs = append(macs, m)
			}
		}
	}
	for _, m := range macs {
		var was, is Interface
		if found, ok := before.Find(m); ok {
			was = *found
		}
		found, present := now.Find(m)
		if present {
			is = *found
		}
		change := InterfaceChange{
			ENIID: is.ENIID, Name: is.Name, State: is.State, Reason: is.Reason,
			Added:   Without(slices.Concat(is.Addresses, is.Prefixes), slices.Concat(was.Addresses, was.Prefixes)),
			Removed: Without(slices.Concat(was.Addresses, was.Prefixes), slices.Concat(is.Addresses, is.Prefixes)),
		}
		if !present {
			change.ENIID, change.Name, change.Reason = was.ENIID, was.Name, status.Reason{Code: status.Detached}.Words()
		}
		if len(change.Added)+len(change.Removed) > 0 || was.State != is.State || was.MAC == "" {
			changes = append(changes, change)
		}
	}
	return changes
}

// Without returns the elements of a that are not in b, never nil.
func Without(a, b []string) []string {
	out := []string{}
	for _, s := range a {
		if !slices.Contains(b, s) {
			out = append(out, s)
		}
	}
	return out
}
