// Package api is the contract of ec2netd with its clients: the names, the D-Bus and
// Varlink interface descriptions that stand beside this file, and what both servers
// ask of the daemon. It serves nothing itself: see api/dbusserver and
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
	// BusName is the well-known name on the system bus. The digit is the version
	// of the interfaces: what breaks a client gets another name.
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
	// MetricsInterface is the name of systemd's Varlink interface for numbers.
	MetricsInterface = "io.systemd.Metrics"
)

// The D-Bus errors of org.ec2netd1. Varlink has the last part of the name under
// [VarlinkInterface].
const (
	ErrorNoSuchInterface = "org.ec2netd1.Error.NoSuchInterface"
	ErrorRefreshFailed   = "org.ec2netd1.Error.RefreshFailed"
)

// The interface descriptions, word for word as introspection serves them.
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

// Agent is what the servers ask of the daemon. All methods may be called from
// several goroutines at once.
type Agent interface {
	// State returns the state of now: never nil, and never changed afterwards.
	State() *state.State
	// Watch sends the state of now, and then the latest state after each change.
	// A reader that is slow misses steps in between, never the last one. The
	// channel is closed when ctx is done.
	Watch(ctx context.Context) <-chan *state.State
	// Refresh reads the metadata now and applies what changed. With wait it
	// returns when the kernel has the change or the agent gives up waiting
	// (Changes.Settled tells which); it returns early with ctx's error when ctx is
	// done. An error means that nothing was changed or that it is not known what.
	Refresh(ctx context.Context, wait bool) (*state.Changes, error)
	// RefreshInterface does that for the ENI with a MAC address alone.
	RefreshInterface(ctx context.Context, mac string, wait bool) (*state.Changes, error)
	// Metrics returns the numbers of now.
	Metrics() []metrics.Metric
}

// NonNil returns s with an empty slice wherever it has a nil one: the contracts
// know no null for a list. s itself is not changed.
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
