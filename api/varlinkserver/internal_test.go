package varlinkserver

import "testing"

func TestAdmit(t *testing.T) {
	s := &Server{users: map[uint32]int{}, options: Options{Limits: Limits{Connections: 3, ConnectionsPerUser: 2}}}
	for i, c := range []struct {
		uid  uint32
		want bool
	}{{1000, true}, {1000, true}, {1000, false}, {1001, true}, {1002, false}, {0, true}, {0, true}} {
		if got := s.admit(c.uid); got != c.want {
			t.Errorf("%d: uid %d: admitted %v", i, c.uid, got)
		}
	}
	s.dismiss(1000)
	s.dismiss(0)
	s.dismiss(0)
	if !s.admit(1002) {
		t.Error("no room again")
	}
}
