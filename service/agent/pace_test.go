package agent

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
	"ec2netd/service/poller"
	"ec2netd/service/state"
)

// inTurns is a site with ENIs that are configured and looked at turn by turn. Change says
// what the metadata has of them that is not as specOf makes it.
func inTurns(t *testing.T, enis int, change func(*imds.Interface)) (*site, *Agent) {
	t.Helper()
	s := newSite(t, imds.Options{})
	for i := range enis {
		s.add(i, change)
	}
	a, stop := s.run()
	t.Cleanup(stop)
	settle(3 * time.Minute)
	for i := range enis {
		must(t, a, macOf(i), state.ENIConfigured)
	}
	s.server.ResetRequests()
	return s, a
}

func (s *site) add(i int, change func(*imds.Interface)) {
	name, spec := fmt.Sprintf("ens%d", 5+i), specOf(i, 0, i)
	s.publish(name, spec, imds.Propagation{})
	if change != nil {
		change(&spec)
		s.server.PutInterface(spec, imds.Propagation{})
	}
	s.plug(name)
}

// amend changes what the metadata has of an ENI.
func (s *site) amend(i int, change func(*imds.Interface)) {
	spec := specOf(i, 0, i)
	change(&spec)
	s.server.PutInterface(spec, imds.Propagation{})
}

// errSilent stands for packets that nobody answers.
var errSilent = errors.New("silent")

// refuse has connections fail for which a function returns an error.
func (s *site) refuse(why func(metadata.Path) error) {
	// Keys are read side by side.
	var asking sync.Mutex
	ask := func(path metadata.Path) error {
		asking.Lock()
		defer asking.Unlock()
		return why(path)
	}
	dial := func(ctx context.Context, network, address string) (net.Conn, error) {
		switch err := ask(metadata.DialedPath(ctx)); {
		case errors.Is(err, errSilent):
			select {
			case <-ctx.Done():
			case <-time.After(time.Second): // as the true dialer
			}
			return nil, context.DeadlineExceeded
		case err != nil:
			return nil, &net.OpError{Op: "dial", Net: network, Err: err}
		}
		return s.pipes.DialContext(ctx, network, address)
	}
	s.mu.Lock()
	s.dial = dial
	s.mu.Unlock()
	s.client.CloseIdle()
}

// A1: an address that nobody tells of is in use within ten seconds in the mean, whenever it
// is assigned, and an ENI that nothing has happened to for a while is looked at no less.
func TestUnpromptedAssign(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 2, nil)
		const changes = 60
		var total time.Duration
		for n := range changes {
			// Long enough that it is not looked at more often for the last change.
			settle(40*time.Second + time.Duration(rand.Int64N(int64(time.Minute))))
			address := netip.MustParseAddr(fmt.Sprintf("10.0.99.%d", 10+n))
			s.amend(1, func(i *imds.Interface) { i.IPv4 = append(i.IPv4[:1], address) })
			began := time.Now()
			for !slices.Contains(s.addresses("ens6"), address.String()) {
				settle(100 * time.Millisecond)
				if time.Since(began) > time.Minute {
					t.Fatalf("%s does not come: %+v", address, a.State())
				}
			}
			total += time.Since(began)
		}
		if mean := total / changes; mean > 10*time.Second {
			t.Errorf("an address is in use after %v in the mean", mean)
		} else {
			t.Logf("an address is in use after %v in the mean", mean)
		}
	})
}

// E3, E5: a look at the metadata that finds nothing new is no reason to look at anything
// else, and it is told all the same that it was.
func TestLookAlone(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 2, nil)
		passes := 0
		s.set(func() { s.observed = func() { passes++ } })
		began, requests := time.Now(), a.State().Metadata.Requests
		settle(10 * time.Minute)
		// One for each refresh time, which is up to a tenth shorter.
		if passes < 10 || passes > 12 {
			t.Errorf("%d passes in ten minutes", passes)
		}
		now := a.State().Metadata
		if now.LastSuccess.Sub(began) < 9*time.Minute+45*time.Second {
			t.Errorf("the last read was %v before now", time.Since(now.LastSuccess))
		}
		if sent, _ := s.client.Requests(); now.Requests != sent || now.Requests-requests < 2*8*9 {
			t.Errorf("%d requests are told, %d were before, and %d were sent", now.Requests, requests, sent)
		}
	})
}

// A1, A4, B2: whatever changes of an ENI follows within the refresh time, in whichever
// turn it is seen.
func TestChangesFollowInTurn(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 2, nil)
		whole := func(*imds.Interface) {}
		for name, change := range map[string]func(*imds.Interface){
			"an IPv4 address less": func(i *imds.Interface) { i.IPv4 = i.IPv4[:1] },
			"an IPv4 address more": func(i *imds.Interface) { i.IPv4 = append(i.IPv4, netip.MustParseAddr("10.0.99.99")) },
			"an IPv6 address more": func(i *imds.Interface) { i.IPv6 = append(i.IPv6, i.IPv6[1].Next()) },
			"no IPv6 address":      func(i *imds.Interface) { i.IPv6 = nil },
			"no IPv4 prefix":       func(i *imds.Interface) { i.IPv4Prefixes = nil },
			"no prefix": func(i *imds.Interface) {
				i.IPv4Prefixes, i.IPv6Prefixes = nil, nil
			},
			"another IPv6 prefix": func(i *imds.Interface) {
				i.IPv6Prefixes = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1:77::/80")}
			},
			"another IPv6 block": func(i *imds.Interface) {
				i.SubnetIPv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8:77::/64")}
				i.IPv6, i.IPv6Prefixes = []netip.Addr{netip.MustParseAddr("2001:db8:77::5")}, nil
			},
		} {
			for _, step := range []func(*imds.Interface){change, whole} {
				// At another moment of the round each time.
				settle(5*time.Minute + 7*time.Second)
				s.amend(1, step)
				settle(time.Minute)
				got := must(t, a, macOf(1), state.ENIConfigured)
				want := s.server.Snapshot()
				dir := "network/interfaces/macs/" + macOf(1) + "/"
				addresses := strings.Fields(want[dir+"local-ipv4s"] + "\n" + want[dir+"ipv6s"])
				prefixes := strings.Fields(want[dir+"ipv4-prefix"] + "\n" + want[dir+"ipv6-prefix"])
				subnets := strings.Fields(want[dir+"subnet-ipv4-cidr-block"] + "\n" + want[dir+"subnet-ipv6-cidr-blocks"])
				for _, pair := range [][2][]string{{got.Addresses, addresses}, {got.Prefixes, prefixes}, {got.Subnets, subnets}} {
					if slices.Sort(pair[0]); !slices.Equal(pair[0], sortedStrings(pair[1])) {
						t.Errorf("%s: a minute later %v, want %v", name, pair[0], pair[1])
					}
				}
			}
		}
	})
}

func sortedStrings(all []string) []string {
	slices.Sort(all)
	return all
}

// What service/docs/metadata.md says of the requests that a failing service gets: in the first minute,
// and in each one after it, an ENI and besides.
const (
	firstMinuteENI, firstMinute = 32, 40
	laterMinuteENI, laterMinute = 7, 30
)

// D6, D7: whatever fails, and with however many ENIs, the requests stay within bounds,
// nothing that is configured goes, it is said in few lines, and all is well soon after.
func TestFailuresAreBounded(t *testing.T) {
	t.Parallel()
	fault := func(pattern string, effect imds.Effect, status int) func(*site) {
		return func(s *site) {
			if _, err := s.server.AddFault(imds.Fault{Pattern: pattern, Effect: effect, Status: status}); err != nil {
				panic(err)
			}
		}
	}
	refuse := func(err error) func(*site) {
		return func(s *site) { s.refuse(func(metadata.Path) error { return err }) }
	}
	for _, test := range []struct {
		name string
		fail func(*site)
	}{
		{"404", fault("**", imds.Status, 404)},
		{"401", fault("**", imds.Status, 401)},
		{"401 with tokens", fault("network/**", imds.Status, 401)},
		{"403", fault("**", imds.Status, 403)},
		{"403 with tokens", fault("network/**", imds.Status, 403)},
		{"switched off", fault(imds.TokenKey, imds.Status, 403)},
		{"429", fault("**", imds.Status, 429)},
		{"500", fault("**", imds.Status, 500)},
		{"503", fault("**", imds.Status, 503)},
		{"hang", fault("**", imds.Hang, 0)},
		{"hang with tokens", fault("network/**", imds.Hang, 0)},
		{"reset", fault("**", imds.Reset, 0)},
		{"reset with tokens", fault("network/**", imds.Reset, 0)},
		{"empty", fault("**", imds.Empty, 0)},
		{"truncated", fault("**", imds.Truncate, 0)},
		{"page", fault("**", imds.HTML, 0)},
		{"endless", fault("**", imds.Endless, 0)},
		{"headers", fault("**", imds.Header, 0)},
		{"drip", fault("**", imds.Drip, 0)},
		{"interim", fault("**", imds.Interim, 0)},
		{"surplus", fault("**", imds.Surplus, 0)},
		{"one key: 404", fault("network/interfaces/macs/*/ipv6-prefix", imds.Status, 404)},
		{"one key: 500", fault("network/interfaces/macs/*/ipv6-prefix", imds.Status, 500)},
		{"one key: hang", fault("network/interfaces/macs/*/ipv6-prefix", imds.Hang, 0)},
		{"one key: page", fault("network/interfaces/macs/*/ipv6-prefix", imds.HTML, 0)},
		{"one key: 403", fault("network/interfaces/macs/*/ipv6-prefix", imds.Status, 403)},
		{"refused", refuse(syscall.ECONNREFUSED)},
		{"no route", refuse(syscall.ENETUNREACH)},
		{"silent", refuse(errSilent)},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				enis := 5
				if strings.HasSuffix(test.name, "hang") || strings.HasSuffix(test.name, "404") {
					enis = 15 // the modes that cost most
				}
				s, a := inTurns(t, enis, nil)
				tree := s.tree(t)
				_, _, lines := s.counts()
				// Connections that are refused are in no log: the client's own count has them.
				base, _ := s.client.Requests()
				minute := func() int {
					s.server.ResetRequests()
					settle(time.Minute)
					before := base
					base, _ = s.client.Requests()
					return max(int(base-before), len(s.server.Requests()))
				}
				test.fail(s)
				if test.name == "switched off" {
					s.server.RevokeTokens() // keys are refused too
				}
				first := max(minute(), minute()) // the last ENI meets it after a minute
				later := 0
				for range 8 {
					later = max(later, minute())
				}
				t.Logf("%d requests in the first minute, then at most %d", first, later)
				if most := firstMinuteENI*enis + firstMinute; first > most {
					t.Errorf("%d requests in the first minute, want at most %d", first, most)
				}
				most := laterMinute
				if strings.HasPrefix(test.name, "one key") {
					most += laterMinuteENI * enis
				}
				if later > most {
					t.Errorf("%d requests in a minute, want at most %d", later, most)
				}
				if now := s.tree(t); now != tree {
					t.Errorf("files changed:\n%s\nbefore:\n%s", now, tree)
				}
				for i := range enis {
					if got := must(t, a, macOf(i), state.ENIConfigured); got.Reason == "" {
						t.Errorf("%s has no reason", got.Name)
					}
				}
				if _, _, now := s.counts(); now-lines > enis {
					t.Errorf("%d log lines:\n%s", now-lines, strings.Join(s.log[lines:], ""))
				}
				s.server.ClearFaults()
				s.refuse(func(metadata.Path) error { return nil })
				settle(70 * time.Second)
				for i := range enis {
					if got := must(t, a, macOf(i), state.ENIConfigured); got.Reason != "" {
						t.Errorf("afterwards %s: %s", got.Name, got.Reason)
					}
				}
				if got := a.State(); got.State != state.Configured {
					t.Errorf("afterwards %s: %s", got.State, got.Reason)
				}
			})
		})
	}
}

// D12, D7: a service that is switched off for the instance is offline at once and with one log
// line, is asked slowly, and all is well when it is on again; also where the daemon starts
// with it off.
func TestSwitchedOff(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		const enis = 4
		s, a := inTurns(t, enis, nil)
		tree := s.tree(t)
		for range 3 {
			_, _, lines := s.counts()
			s.server.RevokeTokens()
			s.addFault(imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403})
			settle(a.RefreshEvery / 4)
			if got := a.State(); got.State != state.Offline || !strings.Contains(got.Reason, "--http-endpoint enabled") {
				t.Errorf("%s: %s", got.State, got.Reason)
			}
			settle(time.Hour)
			s.server.ResetRequests()
			settle(time.Hour)
			if got := a.State(); got.State != state.Offline {
				t.Errorf("two hours later %s: %s", got.State, got.Reason)
			}
			if n := len(s.server.Requests()); n == 0 || n > 80 {
				t.Errorf("%d requests in an hour", n)
			}
			if _, _, now := s.counts(); now-lines != 1 {
				t.Errorf("%d log lines, want 1: %q", now-lines, s.log[lines:])
			}
			s.server.ClearFaults()
			settle(70 * time.Second)
			if got := a.State(); got.State != state.Configured || got.Reason != "" {
				t.Errorf("switched on again it is %s: %s", got.State, got.Reason)
			}
			for i := range enis {
				if got := must(t, a, macOf(i), state.ENIConfigured); got.Reason != "" {
					t.Errorf("switched on again %s: %s", got.Name, got.Reason)
				}
			}
			if _, _, now := s.counts(); now-lines != 2 {
				t.Errorf("%d log lines, want 2: %q", now-lines, s.log[lines:])
			}
		}
		// A Refresh says why it has read nothing.
		s.server.RevokeTokens()
		s.addFault(imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403})
		if _, err := a.Refresh(t.Context(), true); err == nil || !strings.Contains(err.Error(), "switched off") {
			t.Errorf("Refresh: %v", err)
		}
		if now := s.tree(t); now != tree {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, tree)
		}
	})
}

// D6: ENIs that hang hold up none that are answered: those are looked at as ever.
func TestHangingENIsHoldNobodyUp(t *testing.T) {
	t.Parallel()
	for name, pattern := range map[string]string{"all keys": "/**", "one key": "/local-ipv4s"} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				s, a := inTurns(t, 15, nil)
				for i := range 14 {
					if _, err := s.server.AddFault(imds.Fault{Pattern: "network/interfaces/macs/" + macOf(i) + pattern, Effect: imds.Hang}); err != nil {
						t.Fatal(err)
					}
				}
				for n := range 5 {
					settle(time.Duration(n) * time.Minute)
					address := netip.MustParseAddr(fmt.Sprintf("10.0.99.%d", 200+n))
					s.amend(14, func(i *imds.Interface) { i.IPv4 = append(i.IPv4[:1], address) })
					settle(time.Minute)
					if got := must(t, a, macOf(14), state.ENIConfigured); !slices.Contains(got.Addresses, address.String()) {
						t.Errorf("a minute later %v, want %s", got.Addresses, address)
					}
				}
				// An ENI that is attached now is no slower than else.
				s.add(15, nil)
				settle(time.Second)
				must(t, a, macOf(15), state.ENIConfigured)
				// Somebody who asks waits for all, but not for ever.
				if _, err := a.Refresh(t.Context(), true); err == nil {
					t.Error("a Refresh that could not read 14 ENIs has no error")
				}
			})
		})
	}
}

// D1, D3: a request for a token that hangs on one path keeps nobody from asking for
// one on another, and an empty token is no silence.
func TestTokenHeldUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 4, nil)
		s.refuse(func(path metadata.Path) error {
			if path.Device == "ens5" {
				return errSilent
			}
			return nil
		})
		for range 5 {
			s.server.RevokeTokens()
			began := time.Now()
			if _, err := a.Refresh(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > 10*time.Second {
				t.Errorf("a Refresh took %v", took)
			}
		}
	})
}

// H3, D6: who asks for a Refresh while the service is silent is told so before a client
// gives up, however many ENIs there are.
func TestRefreshOfSilence(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		s, a := inTurns(t, 15, nil)
		s.server.RevokeTokens()
		s.refuse(func(metadata.Path) error { return errSilent })
		for _, since := range []time.Duration{0, 6 * time.Minute} {
			settle(since)
			began := time.Now()
			_, err := a.Refresh(t.Context(), true)
			if err == nil || !strings.Contains(err.Error(), "did not answer in time") {
				t.Errorf("a Refresh that nobody answers: %v", err)
			}
			if took := time.Since(began); took > 25*time.Second {
				t.Errorf("after %v a Refresh took %v", since, took)
			}
		}
		// What nobody answers ends by itself, and before the test does.
		s.refuse(func(metadata.Path) error { return nil })
		settle(poller.ReadTime)
		if _, err := a.Refresh(t.Context(), true); err != nil {
			t.Errorf("afterwards: %v", err)
		}
	})
}
