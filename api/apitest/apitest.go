// Package apitest has a fake of the daemon's agent, for tests of the servers and of
// ec2netctl. It configures no network.
package apitest

import (
	"context"
	"fmt"
	"slices"
	"sync"
	"time"

	"ec2netd/service/metrics"
	"ec2netd/service/state"
)

// Agent is a fake of the daemon. The zero value is not usable: see [NewAgent].
type Agent struct {
	mu        sync.Mutex
	current   *state.State
	watchers  map[chan *state.State]bool
	refreshed []string
	// OnRefresh, if set, implements Refresh. Set it before the agent is used.
	OnRefresh func(ctx context.Context, wait bool) (*state.Changes, error)
}

// NewAgent returns an agent with the state s.
func NewAgent(s *state.State) *Agent {
	return &Agent{current: s, watchers: map[chan *state.State]bool{}}
}

// State implements api.Agent.
func (a *Agent) State() *state.State {
	a.mu.Lock()
	defer a.mu.Unlock()
	return a.current
}

// Set replaces the state by s.
func (a *Agent) Set(s *state.State) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.current = s
	for w := range a.watchers {
		replace(w, s)
	}
}

// Watch implements api.Agent.
func (a *Agent) Watch(ctx context.Context) <-chan *state.State {
	w := make(chan *state.State, 1)
	a.mu.Lock()
	defer a.mu.Unlock()
	w <- a.current
	a.watchers[w] = true
	context.AfterFunc(ctx, func() {
		a.mu.Lock()
		defer a.mu.Unlock()
		delete(a.watchers, w)
		close(w)
	})
	return w
}

// Told returns a channel that is closed when all watchers have received s.
func (a *Agent) Told(s *state.State) <-chan struct{} {
	told := make(chan struct{})
	go func() {
		defer close(told)
		for {
			a.mu.Lock()
			waiting := a.current == s
			pending := 0
			for w := range a.watchers {
				pending += len(w)
			}
			a.mu.Unlock()
			if !waiting || pending == 0 {
				return
			}
			time.Sleep(time.Millisecond)
		}
	}()
	return told
}

// Watchers returns the current number of watchers.
func (a *Agent) Watchers() int {
	a.mu.Lock()
	defer a.mu.Unlock()
	return len(a.watchers)
}

// Refresh implements api.Agent.
func (a *Agent) Refresh(ctx context.Context, wait bool) (*state.Changes, error) {
	if a.OnRefresh == nil {
		return &state.Changes{Settled: true}, nil
	}
	return a.OnRefresh(ctx, wait)
}

// RefreshInterface implements api.Agent.
func (a *Agent) RefreshInterface(ctx context.Context, mac string, wait bool) (*state.Changes, error) {
	a.mu.Lock()
	a.refreshed = append(a.refreshed, mac)
	a.mu.Unlock()
	return a.Refresh(ctx, wait)
}

// Metrics implements api.Agent.
func (a *Agent) Metrics() []metrics.Metric {
	return metrics.Metrics(metrics.Numbers{
		Requests:    map[string]uint64{"ok": 40, "not-found": 1, "timeout": 1},
		RequestTime: 250 * time.Millisecond,
		Reads:       map[string]uint64{"ok": 9, "malformed": 0},
		Reloads:     3,
		Attachments: 1, AttachmentTime: 1500 * time.Millisecond,
		Took: map[int]time.Duration{3: 1500 * time.Millisecond},
	}, a.State())
}

// Refreshed returns the MAC addresses of all calls of RefreshInterface.
func (a *Agent) Refreshed() []string {
	a.mu.Lock()
	defer a.mu.Unlock()
	return slices.Clone(a.refreshed)
}

// replace puts s into w in place of the old state.
func replace(w chan *state.State, s *state.State) {
	select {
	case <-w:
	default:
	}
	w <- s
}

// State returns an example of an instance: a primary ENI, a secondary ENI with several
// addresses and prefixes that is being configured, and a third one that is not in the
// metadata yet. Each call returns a new one.
func State() *state.State {
	at := time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)
	return &state.State{
		Version:    "1.2.3",
		State:      state.Configured,
		InstanceID: "i-0123456789abcdef0",
		Metadata: state.Metadata{
			Endpoint:    "http://169.254.169.254",
			LastSuccess: at.Add(-12 * time.Second),
			Requests:    42,
			Errors:      1,
		},
		Networkd: state.Networkd{Running: true, Version: "257.13-1~deb13u1", Reloads: 3},
		Conflicts: []state.Conflict{{
			Name: "NetworkManager", Evidence: []string{"NetworkManager.service is active", "it manages ens6"},
			Advice: "have networkd alone configure the ENIs: systemctl disable --now NetworkManager.service",
		}},
		LastChange: at.Add(-90 * time.Minute),
		Interfaces: []state.Interface{
			{
				ENIID: "eni-0a1b2c3d4e5f60001", MAC: "02:00:00:00:00:01", Name: "ens5", Ifindex: 2,
				Primary: true, DeviceIndex: 0, NetworkCard: 0,
				Metric: 512, Table: state.Unknown, Priority: state.Unknown,
				Addresses:   []string{"10.0.0.10", "2001:db8:0:1::10"},
				Subnets:     []string{"10.0.0.0/24", "2001:db8:0:1::/64"},
				Altnames:    []string{"eni-0a1b2c3d4e5f60001", "device-number-0.0"},
				Files:       []string{"/run/systemd/network/70-ens5.network"},
				NetworkFile: "/run/systemd/network/70-ens5.network",
				State:       state.ENIConfigured, Since: at.Add(-2 * time.Hour),
			},
			{
				ENIID: "eni-0a1b2c3d4e5f60002", MAC: "02:00:00:00:00:02", Name: "ens6", Ifindex: 3,
				DeviceIndex: 1, NetworkCard: 0,
				Metric: 613, Table: 10001, Priority: 10001,
				Addresses:   []string{"10.0.1.20", "10.0.1.21", "10.0.1.22", "2001:db8:0:2::20"},
				Prefixes:    []string{"10.0.1.64/28", "2001:db8:0:2:1::/80"},
				Subnets:     []string{"10.0.1.0/24", "2001:db8:0:2::/64"},
				Altnames:    []string{"eni-0a1b2c3d4e5f60002", "device-number-1.0"},
				Files:       []string{"/run/systemd/network/70-ens6.network", "/run/systemd/network/70-ens6.network.d/50-ec2netd.conf"},
				NetworkFile: "/run/systemd/network/70-ens6.network",
				State:       state.ENIConfiguring, Reason: "waiting for address 10.0.1.22",
				Items: []state.Item{
					{Kind: state.ItemAddress, Value: "10.0.1.20", Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true},
					{
						Kind: state.ItemAddress, Value: "10.0.1.22", Metadata: state.Yes, Rendered: true, Networkd: state.No,
						Reason: "networkd has not brought it",
					},
					{Kind: state.ItemRule, Value: "from 10.0.1.20/32 lookup 10001", Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true},
					{Kind: state.ItemAltname, Value: "eni-0a1b2c3d4e5f60002", Metadata: state.Yes, Rendered: true, Kernel: true},
				},
				Gaps:    []string{"address 10.0.1.22: networkd has not brought it"},
				Missing: []string{"address 10.0.1.22"}, Since: at.Add(-time.Second),
			},
			{
				MAC: "02:00:00:00:00:03", Name: "ens7", Ifindex: 4,
				DeviceIndex: state.Unknown, NetworkCard: state.Unknown,
				Metric: state.Unknown, Table: state.Unknown, Priority: state.Unknown,
				State: state.ENIPending, Reason: "the metadata does not list this MAC address yet", Since: at.Add(-3 * time.Second),
			},
		},
	}
}

// Many returns an instance of n ENIs of 50 addresses, each with its rule.
func Many(n int) *state.State {
	s := State()
	s.Interfaces = nil
	for i := range n {
		e := state.Interface{
			ENIID: fmt.Sprintf("eni-%017x", i), MAC: fmt.Sprintf("02:00:00:00:01:%02x", i),
			Name: fmt.Sprintf("ens%d", 5+i), Ifindex: i + 2, State: state.ENIConfigured,
		}
		for a := range 50 {
			address := fmt.Sprintf("10.0.%d.%d", i, a)
			e.Addresses = append(e.Addresses, address)
			for kind, value := range map[state.Kind]string{
				state.ItemAddress: address, state.ItemRule: fmt.Sprintf("from %s/32 lookup %d", address, 10000+i),
			} {
				e.Items = append(e.Items, state.Item{Kind: kind, Value: value, Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true})
			}
		}
		s.Interfaces = append(s.Interfaces, e)
	}
	return s
}
