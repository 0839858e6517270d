package labtest

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"time"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// Describe asks the daemon over D-Bus for its whole state.
func (l *Daemon) Describe() *state.State {
	l.T.Helper()
	s, err := l.TryDescribe()
	if err != nil {
		l.T.Fatal(err)
	}
	return s
}

// TryDescribe is Describe for a daemon that may not answer.
func (l *Daemon) TryDescribe() (*state.State, error) {
	out, err := l.Inst.Exec(l.T.Context(), "busctl", "--json=short", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe")
	if err != nil {
		return nil, err
	}
	var reply struct{ Data []string }
	if err := json.Unmarshal([]byte(out), &reply); err != nil || len(reply.Data) != 1 {
		return nil, fmt.Errorf("busctl printed %q: %w", out, err)
	}
	var s state.State
	if err := json.Unmarshal([]byte(reply.Data[0]), &s); err != nil {
		return nil, fmt.Errorf("the daemon described %q: %w", reply.Data[0], err)
	}
	return &s, nil
}

// AwaitManager waits until the daemon as a whole is in a state.
func (l *Daemon) AwaitManager(want state.Manager) *state.State {
	l.T.Helper()
	var last *state.State
	l.Until(fmt.Sprintf("the daemon is %s", want), func() (bool, error) {
		// A daemon that does not answer yet is waited for.
		s, err := l.TryDescribe()
		if err == nil {
			last = s
		}
		return err == nil && s.State == want, nil
	})
	return last
}

// AwaitENI waits until what the daemon says of an interface meets a condition, and returns it. The
// interface is named by an ENI ID, a MAC address, a name or an alternative name.
func (l *Daemon) AwaitENI(id string, condition func(*state.Interface) bool) *state.Interface {
	l.T.Helper()
	var last *state.Interface
	var lastErr error
	ctx, cancel := context.WithTimeout(l.T.Context(), l.Patience())
	defer cancel()
	err := vpc.Until(ctx, id+" reaches a state", func() (bool, error) {
		var s *state.State
		if s, lastErr = l.TryDescribe(); lastErr == nil {
			if found, ok := s.Find(id); ok {
				last = found
				return condition(found), nil
			}
		}
		return false, nil
	})
	if err != nil {
		l.T.Fatalf("%v; last: %+v, %v", err, last, lastErr)
	}
	return last
}

// AwaitConfigured waits until the daemon says that an interface is configured; of one that was
// attached, with all that the metadata tells late.
func (l *Daemon) AwaitConfigured(id string) *state.Interface {
	l.T.Helper()
	return l.AwaitENI(id, func(i *state.Interface) bool {
		if i.State != state.ENIConfigured {
			return false
		}
		at, isLate := l.late[i.ENIID]
		if !isLate {
			return true
		}
		for _, eni := range l.Inst.ENIs() {
			if eni.ID() != i.ENIID {
				continue
			}
			now, ok := l.Inst.Metadata().Complete(i.MAC)
			if !ok || time.Now().Before(at) || (now.Equal(at) && len(i.Addresses)+len(i.Prefixes) != len(Sources(eni))) {
				return false
			}
		}
		delete(l.late, i.ENIID)
		return true
	})
}

// DaemonLog returns what the daemon has logged since the boot. What is matched in addition are arguments
// of journalctl(1), as --priority=warning or ENI=eni-….
func (l *Daemon) DaemonLog(matches ...string) string {
	l.T.Helper()
	return l.Run(append([]string{"journalctl", "--boot", "--identifier=ec2netd", "--output=cat", "--no-pager", "--quiet"}, matches...)...)
}

// CheckLog checks that the daemon has logged nothing of a priority or a worse one since the boot.
func (l *Daemon) CheckLog(priority string) {
	l.T.Helper()
	if out := l.DaemonLog("--priority=" + priority); out != "" {
		l.T.Errorf("the daemon logged:\n%s", out)
	}
	if l.DaemonLog("--priority=info") == "" {
		l.T.Error("no line of the daemon is found in the journal")
	}
}

// Said counts how often something is in the journal of the daemon's unit, which has lines of systemd too.
func (l *Daemon) Said(what string) int {
	l.T.Helper()
	return strings.Count(l.Run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager"), what)
}

// DaemonPID is the daemon's PID as the instance numbers processes.
func (l *Daemon) DaemonPID() string {
	l.T.Helper()
	return l.Run("systemctl", "show", "--value", "--property=MainPID", "ec2netd.service")
}
