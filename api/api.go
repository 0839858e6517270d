// Package api is the contract of ec2netd with its clients: the names, the D-Bus and
// Varlink interface descriptions beside this file, and the functions that both servers
// require of the daemon. It serves nothing itself: see api/dbusserver and
// api/varlinkserver.
package api

import (
	"context"
	_ "embed"

	"ec2netd/service/metrics"
	"ec2netd/service/state"
)

// The names that clients use (H1).
const (
	// BusName is the well-known name on the system bus. The digit is the version of the
	// interfaces: an incompatible change requires another name.
	BusName = "org.ec2netd1"
	// ObjectPath is the path of the manager object; an ObjectManager is there too.
	ObjectPath = "/org/ec2netd1"
	// InterfacePath is the parent of the object of each ENI.
	InterfacePath = ObjectPath + "/interface"
	// ManagerInterface and InterfaceInterface are the D-Bus interfaces of the two
	// kinds of object.
	ManagerInterface   = "org.ec2netd1.Manager"
	InterfaceInterface = "org.ec2netd1.Interface"
	// VarlinkInterface is the name of the Varlink interface.
	VarlinkInterface = "org.ec2netd.Network"
	// VarlinkSocket is where ec2netd.socket listens.
	VarlinkSocket = "/run/ec2netd/org.ec2netd.Network"
	// MetricsInterface is the name of systemd's Varlink interface for metrics.
	MetricsInterface = "io.systemd.Metrics"
)

// The D-Bus errors of org.ec2netd1. Varlink uses the last part of the name, under
// [VarlinkInterface].
const (
	ErrorNoSuchInterface = "org.ec2netd1.Error.NoSuchInterface"
	ErrorRefreshFailed   = "org.ec2netd1.Error.RefreshFailed"
)

// The interface descriptions, verbatim as introspection returns them.
var (
	//go:embed org.ec2netd.Network.varlink
	NetworkVarlink string
	//go:embed io.systemd.Metrics.varlink
	MetricsVarlink string
	//go:embed org.ec2netd1.Manager.xml
	ManagerXML string
	//go:embed org.ec2netd1.Interface.xml
	InterfaceXML string
)

// Agent is the interface of the daemon that the servers use. All methods may be called
// concurrently.
type Agent interface {
	// State returns the current state, which is never nil and never changes afterwards.
	State() *state.State
	// Watch sends the current state, and then the latest state after each change. A
	// slow reader misses intermediate states, but never the last one. The channel is
	// closed when ctx is done.
	Watch(ctx context.Context) <-chan *state.State
	// Refresh reads the metadata now and applies the changes. With wait it returns when
	// the kernel has the changes or the agent stops waiting (Changes.Settled tells
	// which); it returns early with ctx's error when ctx is done. An error means that
	// nothing was changed or that the changes are unknown.
	Refresh(ctx context.Context, wait bool) (*state.Changes, error)
	// RefreshInterface does the same only for the ENI with a MAC address.
	RefreshInterface(ctx context.Context, mac string, wait bool) (*state.Changes, error)
	// Metrics returns the current metrics.
	Metrics() []metrics.Metric
}

// NonNil returns s with empty slices in place of nil ones: the contracts have no null
// for a list. It does not change s itself.
func NonNil(s *state.State) *state.State {
	c := *s
	c.Conflicts = make([]state.Conflict, len(s.Conflicts))
	for i, e := range s.Conflicts {
		orEmpty(&e.Evidence)
		c.Conflicts[i] = e
	}
	c.Interfaces = make([]state.Interface, len(s.Interfaces))
	for i := range s.Interfaces {
		c.Interfaces[i] = *NonNilInterface(&s.Interfaces[i])
	}
	return &c
}

// NonNilInterface is [NonNil] for one ENI.
func NonNilInterface(e *state.Interface) *state.Interface {
	c := *e
	for _, list := range []*[]string{
		&c.Addresses, &c.Prefixes, &c.Subnets, &c.Altnames, &c.Files, &c.Gaps, &c.Missing, &c.Unwanted,
	} {
		orEmpty(list)
	}
	if c.Items == nil {
		c.Items = []state.Item{}
	}
	return &c
}

// NonNilChanges is [NonNil] for the result of a Refresh; nil counts as no change.
func NonNilChanges(ch *state.Changes) *state.Changes {
	var c state.Changes
	if ch != nil {
		c = *ch
	}
	orEmpty(&c.FilesWritten)
	orEmpty(&c.FilesRemoved)
	interfaces := make([]state.InterfaceChange, len(c.Interfaces))
	for i, e := range c.Interfaces {
		orEmpty(&e.Added)
		orEmpty(&e.Removed)
		interfaces[i] = e
	}
	c.Interfaces = interfaces
	return &c
}

func orEmpty(list *[]string) {
	if *list == nil {
		*list = []string{}
	}
}
