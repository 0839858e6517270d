package labtest

import (
	"context"
	"slices"
	"strings"
	"time"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// AwaitComplete waits until a secondary ENI is configured under a name, with all its addresses in any
// order, and all its rules.
func (l *Lab) AwaitComplete(eni *vpc.ENI, name string) {
	l.T.Helper()
	// The state is that of the last look: the kernel may be behind it for a moment.
	l.Until(eni.ID()+" is there as "+name, func() (bool, error) {
		s, err := l.TryDescribe()
		if err != nil {
			return false, nil // a daemon that is starting is waited for
		}
		got, ok := s.Find(eni.ID())
		if !ok || got.State != state.ENIConfigured || got.Name != name {
			return false, nil
		}
		if got.Reason != "" && !strings.Contains(got.Reason, "the first address of the link is") {
			return false, nil
		}
		ctx, cancel := context.WithTimeout(l.T.Context(), time.Second)
		defer cancel()
		return l.Inst.AwaitAddrs(ctx, name, slices.Concat(eni.IPv4(), eni.IPv6())...) == nil && slices.Equal(l.Rules(got.Table), Sources(eni)), nil
	})
}

// AwaitSettled is AwaitSettledAs with the name that the ENI has in the VPC.
func (l *Lab) AwaitSettled(eni *vpc.ENI) {
	l.T.Helper()
	l.AwaitSettledAs(eni, eni.Name())
}

// AwaitSettledAs waits until an ENI is configured under a name, and checks all of it.
func (l *Lab) AwaitSettledAs(eni *vpc.ENI, name string) {
	l.T.Helper()
	l.AwaitComplete(eni, name)
	l.CheckKernel(eni)
	// C3: one unit for the MAC address.
	if units := l.Units(eni.MAC()); len(units) != 1 || !strings.Contains(units[0], "70-"+name+".network.d") {
		l.T.Errorf("units for %s: %v", eni.MAC(), units)
	}
}

// AwaitGone waits until nothing of an ENI is left, and the number of interfaces is as said.
func (l *Lab) AwaitGone(eni *vpc.ENI, left int) {
	l.T.Helper()
	l.Until(eni.ID()+" is gone", func() (bool, error) {
		s, err := l.TryDescribe()
		return err == nil && len(s.Interfaces) == left && len(l.Units(eni.MAC())) == 0, nil
	})
}

// AwaitAssignment assigns an address to an ENI and waits until it is there, with nobody asking.
func (l *Lab) AwaitAssignment(eni *vpc.ENI) {
	l.T.Helper()
	added, err := eni.AssignIPv4(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	l.AwaitAddress(eni.Name(), added[0])
}

// RestartNetworkd ends networkd by a command, and waits until it is there again and all is as it
// was, and until what was for its start alone has gone.
func (l *Lab) RestartNetworkd(command ...string) {
	l.T.Helper()
	pid := func() string {
		return l.Run("systemctl", "show", "--property=MainPID", "--value", "systemd-networkd.service")
	}
	before := pid()
	l.Run(command...)
	l.Until("another networkd runs", func() (bool, error) {
		now := pid()
		return now != before && now != "0", nil
	})
	l.Until("the daemon has seen it, and nothing is left of its start", func() (bool, error) {
		s, err := l.TryDescribe()
		if err != nil || !s.Networkd.Running || strings.Contains(l.Files(), "ec2netd-start.conf") {
			return false, err
		}
		return !slices.ContainsFunc(s.Interfaces, func(i state.Interface) bool {
			return i.State != state.ENIConfigured && i.State != state.ENIUnmanaged
		}), nil
	})
}
