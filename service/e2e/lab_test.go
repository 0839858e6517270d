package e2e

import (
	"context"
	"encoding/json"
	"fmt"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// patience is the limit of every wait. Waits are on conditions: it is never used up
// by a test that passes.
const patience = 60 * time.Second

// eachSuite runs a test on systemd 252, 257 and 262, side by side with other tests: an
// instance waits for most of its time.
func eachSuite(t *testing.T, test func(t *testing.T, suite string)) {
	t.Helper()
	t.Parallel()
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) {
			t.Parallel()
			test(t, suite.Name)
		})
	}
}

// lab is one instance with ec2netd installed.
type lab struct {
	t    testing.TB
	vpc  *vpc.VPC
	inst *vpc.Instance
	// drops of the source check when countDrops was called, by ENI ID.
	drops map[string]uint64
	// late are ENIs that were attached, by ID, with the time when the metadata will tell all
	// of them.
	late map[string]time.Time
}

// boot boots an instance as a user would have it: installed, presets applied.
func boot(t testing.TB, suite string, change func(*vpc.InstanceOptions)) *lab {
	t.Helper()
	v := vpc.ForTest(t, vpc.Options{})
	options := vpc.InstanceOptions{Suite: suite, Files: map[string]string{}}
	options.Install = func(root string) error { return vpc.InstallTree(t.Context(), root, vpc.StageForTest(t)) }
	if change != nil {
		change(&options)
	}
	return newLab(t, v, vpc.BootForTest(t, v, options))
}

// newLab returns the lab of an instance.
func newLab(t testing.TB, v *vpc.VPC, inst *vpc.Instance) *lab {
	return &lab{t: t, vpc: v, inst: inst, late: make(map[string]time.Time)}
}

// with returns the lab for another test, a part of the one that made it.
func (l *lab) with(t testing.TB) *lab {
	other := *l
	other.t = t
	return &other
}

// run runs a command in the instance as root and returns its output.
func (l *lab) run(argv ...string) string {
	l.t.Helper()
	out, err := l.inst.Exec(l.t.Context(), argv...)
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// fails runs a command that must fail, and returns what it said.
func (l *lab) fails(argv ...string) string {
	l.t.Helper()
	out, err := l.inst.Exec(l.t.Context(), argv...)
	if err == nil {
		l.t.Fatalf("%q did not fail: %s", argv, out)
	}
	return err.Error()
}

// user runs a command as an ordinary user.
func (l *lab) user(argv ...string) string {
	l.t.Helper()
	out, err := l.inst.Run(l.t.Context(), vpc.Command{Argv: argv, User: vpc.OrdinaryUser})
	if err != nil {
		l.t.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// patience is the limit of a wait; a machine's processor is emulated.
func (l *lab) patience() time.Duration {
	if l.inst.Machine() {
		return 5 * patience
	}
	return patience
}

// until waits for a condition.
func (l *lab) until(what string, condition func() (bool, error)) {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), l.patience())
	defer cancel()
	if err := vpc.Until(ctx, what, condition); err != nil {
		l.t.Fatal(err)
	}
}

// describe asks the daemon over D-Bus.
func (l *lab) describe() *state.State {
	l.t.Helper()
	s, err := l.tryDescribe()
	if err != nil {
		l.t.Fatal(err)
	}
	return s
}

func (l *lab) tryDescribe() (*state.State, error) {
	out, err := l.inst.Exec(l.t.Context(), "busctl", "--json=short", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe")
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

// configured waits until the daemon says that an interface is as it shall be; of one that was
// attached, until it knows all that the metadata tells late.
func (l *lab) configured(id string) *state.Interface {
	l.t.Helper()
	return l.reaches(id, func(i *state.Interface) bool {
		if i.State != state.ENIConfigured {
			return false
		}
		at, isLate := l.late[i.ENIID]
		if !isLate {
			return true
		}
		for _, eni := range l.inst.ENIs() {
			if eni.ID() != i.ENIID {
				continue
			}
			now, ok := l.inst.Metadata().Complete(i.MAC)
			if !ok || time.Now().Before(at) || (now.Equal(at) && len(i.Addresses)+len(i.Prefixes) != len(sources(eni))) {
				return false
			}
		}
		delete(l.late, i.ENIID)
		return true
	})
}

// attached notes when the metadata will tell all of an ENI that was attached just now.
func (l *lab) attached(eni *vpc.ENI) {
	if at, ok := l.inst.Metadata().Complete(eni.MAC().String()); ok {
		l.late[eni.ID()] = at
	}
}

// reaches waits until the daemon says something of an interface.
func (l *lab) reaches(id string, condition func(*state.Interface) bool) *state.Interface {
	l.t.Helper()
	var last *state.Interface
	var lastErr error
	ctx, cancel := context.WithTimeout(l.t.Context(), l.patience())
	defer cancel()
	err := vpc.Until(ctx, id+" reaches a state", func() (bool, error) {
		var s *state.State
		if s, lastErr = l.tryDescribe(); lastErr == nil {
			if found, ok := s.Find(id); ok {
				last = found
				return condition(found), nil
			}
		}
		return false, nil
	})
	if err != nil {
		l.t.Fatalf("%v; last: %+v, %v", err, last, lastErr)
	}
	return last
}
