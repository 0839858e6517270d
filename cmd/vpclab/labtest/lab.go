// Package labtest has what tests need that boot instances with ec2netd in the simulated VPC: it
// boots one, runs commands in it, and looks at its kernel, at networkd and at the daemon.
//
// Functions whose names begin with Await wait for a condition, and end the test if it does not come to
// hold within [Patience]; those that begin with Check report what is not as it must be, and the test
// goes on. The requirements are proven by the tests, which cite them.
package labtest

import (
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// Lab is an instance with ec2netd in a VPC, of one test. Its parts are what the test can look at or
// change; what needs several of them is a method of Lab.
type Lab struct {
	*Instance
	Kernel
	Networkd
	Daemon
	Network
}

// Instance runs commands in the instance.
type Instance struct {
	// T is the test, to which everything reports.
	T    testing.TB
	VPC  *vpc.VPC
	Inst *vpc.Instance
	// late are ENIs that were attached, by ID, with the time when the metadata will tell all
	// of them.
	late map[string]time.Time
}

// Kernel is what the kernel has of links: addresses, policy rules and routes.
type Kernel struct{ *Instance }

// Networkd is what networkd logs, and what it reads.
type Networkd struct{ *Instance }

// Daemon is what ec2netd says, and what it uses.
type Daemon struct{ *Instance }

// Network is what the VPC does, and what it carries.
type Network struct {
	*Instance
	// drops of the source check when CountDrops was called, by ENI ID.
	drops map[string]uint64
}

// New returns the lab of an instance that runs.
func New(t testing.TB, v *vpc.VPC, inst *vpc.Instance) *Lab {
	return of(&Instance{T: t, VPC: v, Inst: inst, late: make(map[string]time.Time)})
}

func of(i *Instance) *Lab {
	return &Lab{Instance: i, Kernel: Kernel{i}, Networkd: Networkd{i}, Daemon: Daemon{i}, Network: Network{Instance: i}}
}

// Boot boots an instance as a user would have it: installed, presets applied. change, if it is not
// nil, may have other options.
func Boot(t testing.TB, suite string, change func(*vpc.InstanceOptions)) *Lab {
	t.Helper()
	v := vpc.ForTest(t, vpc.Options{})
	options := vpc.InstanceOptions{Suite: suite, Files: map[string]string{}}
	options.Install = func(root string) error { return vpc.InstallTree(t.Context(), root, vpc.StageForTest(t)) }
	if change != nil {
		change(&options)
	}
	return New(t, v, vpc.BootForTest(t, v, options))
}

// With returns the lab for another test, a part of the one that booted the instance.
func (l *Lab) With(t testing.TB) *Lab {
	part := *l.Instance
	part.T = t
	other := of(&part)
	other.drops = l.drops
	return other
}
