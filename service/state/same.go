package state

import (
	"slices"
	"time"
)

// Same reports whether o contains no news for the clients that know s. Each pass of the
// agent changes the metadata counters and the time of the last success; notifying every
// client about that once a minute would wake up the whole machine for nothing. A nil
// list equals an empty one.
func (s *State) Same(o *State) bool {
	return s.Version == o.Version && s.State == o.State && s.Reason == o.Reason &&
		s.InstanceID == o.InstanceID && s.LastChange.Equal(o.LastChange) &&
		s.Metadata.quiet() == o.Metadata.quiet() && s.Networkd == o.Networkd &&
		slices.EqualFunc(s.Conflicts, o.Conflicts, Conflict.same) &&
		slices.EqualFunc(s.Interfaces, o.Interfaces, Interface.same)
}

// quiet returns m without the fields that change at each pass.
func (m Metadata) quiet() Metadata {
	m.LastSuccess, m.Requests, m.Errors = time.Time{}, 0, 0
	return m
}

func (c Conflict) same(o Conflict) bool {
	return c.Name == o.Name && c.Advice == o.Advice && slices.Equal(c.Evidence, o.Evidence)
}

func (i Interface) same(o Interface) bool {
	return i.ENIID == o.ENIID && i.MAC == o.MAC && i.Name == o.Name && i.Ifindex == o.Ifindex &&
		i.Primary == o.Primary && i.DeviceIndex == o.DeviceIndex && i.NetworkCard == o.NetworkCard &&
		i.Metric == o.Metric && i.Table == o.Table && i.Priority == o.Priority &&
		slices.Equal(i.Addresses, o.Addresses) && slices.Equal(i.Prefixes, o.Prefixes) &&
		slices.Equal(i.Subnets, o.Subnets) && slices.Equal(i.Altnames, o.Altnames) &&
		slices.Equal(i.Files, o.Files) && i.NetworkFile == o.NetworkFile &&
		i.State == o.State && i.Reason == o.Reason &&
		slices.Equal(i.Items, o.Items) && slices.Equal(i.Gaps, o.Gaps) &&
		slices.Equal(i.Missing, o.Missing) && slices.Equal(i.Unwanted, o.Unwanted) &&
		i.IPv6NotApplicable == o.IPv6NotApplicable &&
		i.Since.Equal(o.Since)
}
