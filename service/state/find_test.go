package state

import "testing"

func TestFind(t *testing.T) {
	s := &State{Interfaces: []Interface{
		{ENIID: "eni-0123456789abcdef0", MAC: "02:00:00:00:01:1a", Name: "ens5", Ifindex: 2, Altnames: []string{"device-number-0"}},
		{MAC: "02:00:00:00:01:1b", Name: "7", Ifindex: 3},
	}}
	for id, want := range map[string]int{
		"eni-0123456789abcdef0": 2, "ens5": 2, "02:00:00:00:01:1A": 2, "device-number-0": 2, "2": 2,
		"7": 3, "02:00:00:00:01:1b": 3, "": 0, "eni-": 0, "9": 0, "-2": 0,
	} {
		found, ok := s.Find(id)
		if ok != (want != 0) || (ok && found.Ifindex != want) {
			t.Errorf("%q: %+v, %v", id, found, ok)
		}
	}
	if id := s.Interfaces[1].ID(); id != "02:00:00:00:01:1b" {
		t.Errorf("an ENI whose ID is not known is called %q", id)
	}
}
