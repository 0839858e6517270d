package api

import (
	"fmt"
	"strings"

	"ec2netd/service/state"
)

// NoSuchInterfaceError says that no ENI has a name, and lists the existing ones.
type NoSuchInterfaceError struct {
	// ID as the caller gave it.
	ID string
	// Known interfaces, for people: "eni-… (ens5)".
	Known []string
}

// Find returns the interface of s that id names, as [state.State.Find] does, or a
// *NoSuchInterfaceError.
func Find(s *state.State, id string) (*state.Interface, error) {
	if e, ok := s.Find(id); ok {
		return e, nil
	}
	err := &NoSuchInterfaceError{ID: id}
	for i := range s.Interfaces {
		known := s.Interfaces[i].ID()
		if name := s.Interfaces[i].Name; name != "" {
			known += " (" + name + ")"
		}
		err.Known = append(err.Known, known)
	}
	return nil, err
}

// Error implements error.
func (e *NoSuchInterfaceError) Error() string {
	const most = 64 // anybody can send an ID of any length, and it is logged
	id := e.ID
	if len(id) > most {
		id = id[:most] + "…"
	}
	if len(e.Known) == 0 {
		return fmt.Sprintf("no ENI %q: the instance has none that is known yet", id)
	}
	return fmt.Sprintf("no ENI %q: give an ENI ID, MAC address, interface name, altname or index; there are %s",
		id, strings.Join(e.Known, ", "))
}
