package poller

import (
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
	"ec2netd/service/schedule"
)

// D8: a look makes at most two requests an ENI, all looks no more than the shell package
// does, and nothing that does not change is read again.
func TestSteadyRequests(t *testing.T) {
	t.Parallel()
	const enis = 4
	for _, test := range []struct {
		name   string
		change func(*imds.Interface)
		// each is the number of requests an ENI and refresh time, whole those of a view.
		each, whole int
	}{
		{"all keys", nil, 8, 5},
		{"IPv4", func(i *imds.Interface) {
			i.IPv6, i.IPv4Prefixes, i.IPv6Prefixes, i.SubnetIPv6 = nil, nil, nil, nil
		}, 5, 2},
		{"both families", func(i *imds.Interface) { i.IPv4Prefixes, i.IPv6Prefixes = nil, nil }, 8, 3},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := inTurns(t, enis, test.change)
				settle(time.Hour)
				log := w.server.Requests()
				counts := imds.Count(log)
				// Looks are up to a twenty-fifth earlier.
				if most := enis*test.each*63 + counts.Tokens; counts.Total > most || counts.Total > enis*504 || counts.Total < enis*test.each*60 {
					t.Errorf("%d requests in an hour, want at most %d", counts.Total, most)
				}
				if counts.Tokens > 13 || counts.Errors > 0 {
					t.Errorf("%d requests for a token, %d errors", counts.Tokens, counts.Errors)
				}
				for key, n := range counts.ByKey {
					name := key[strings.LastIndex(key, "/")+1:]
					if !slices.Contains([]string{"token", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix"}, name) && name != macIn(key) {
						t.Errorf("%s was read %d times", key, n)
					}
				}
				looks := make(map[string]int)
				last := make(map[string]time.Time)
				for _, r := range log {
					mac := macIn(r.Key)
					if mac == "" {
						continue
					}
					if r.Time.Sub(last[mac]) > time.Second {
						looks[mac] = 0
					}
					last[mac] = r.Time
					if looks[mac]++; looks[mac] > 2 {
						t.Errorf("%d requests in one look at %s, at %s", looks[mac], mac, r.Key)
					}
				}
				// The whole view is read when somebody asks.
				w.server.ResetRequests()
				var refresh *Refresh
				w.do(func(p *Poller) { refresh = p.Refresh("", time.Now()) })
				settle(time.Second)
				w.do(func(*Poller) {
					defer refresh.End()
					if err := refresh.Err(); err != nil || !refresh.Done(time.Now()) {
						t.Errorf("the Refresh is not done: %v", err)
					}
				})
				if n := imds.Count(w.server.Requests()); n.Total-n.Tokens != enis*test.whole {
					t.Errorf("%d requests for a Refresh, want %d", n.Total-n.Tokens, enis*test.whole)
				}
			})
		})
	}
}

// D6: an ENI whose number never becomes right, and one that is never listed, are asked for less
// and less.
func TestNeverTold(t *testing.T) {
	t.Parallel()
	for name, p := range map[string]imds.Propagation{
		"listed": {Listed: imds.Held},
		"number": {Keys: map[string]time.Duration{"device-number": imds.Held, "network-card": 0}},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) {
				w := inTurns(t, 1, nil)
				w.plug(linkOf(1))
				w.publish(1, p, nil)
				of := func(d time.Duration) int {
					w.server.ResetRequests()
					settle(d)
					return len(slices.DeleteFunc(w.server.Requests(), func(r imds.Request) bool { return macIn(r.Key) != macOf(1) }))
				}
				if n := of(15 * time.Second); n < 50 || n > 170 {
					t.Errorf("%d requests in 15 s", n)
				}
				if n := of(time.Minute); n > 60 {
					t.Errorf("%d requests in the next minute", n)
				}
				if n := of(10 * time.Minute); n > 10*36 {
					t.Errorf("%d requests in the ten minutes after", n)
				}
			})
		})
	}
}

// D6: an ENI that has failed once need not wait until all have that never answer.
func TestFailedOnceGoesFirst(t *testing.T) {
	t.Parallel()
	now := time.Now()
	silent := &metadata.Error{Kind: metadata.Timeout, Err: errSilent}
	p := New(Options{RefreshEvery: time.Minute})
	for i := range 4 {
		p.targets[macOf(i)] = &target{mac: macOf(i), err: silent, Try: schedule.Try{Failures: 2, Next: now.Add(time.Duration(i-10) * time.Second)}}
	}
	p.targets[macOf(2)].Failures = 1
	due := p.dueTargets(now)
	var order []string
	for _, t := range due {
		order = append(order, t.mac)
	}
	if want := []string{macOf(2), macOf(0), macOf(1), macOf(3)}; !slices.Equal(order, want) {
		t.Errorf("read in the order %q, want %q", order, want)
	}
}

// D2: a path that gave no answer is not tried first again for a while.
func TestDeadPathCostsLittle(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := inTurns(t, 3, nil)
		dead := 0
		w.set(func() {
			w.refused = func(path metadata.Path) error {
				if path.Device == "ens6" {
					dead++
					return errSilent
				}
				return nil
			}
		})
		w.client.CloseIdle()
		settle(time.Hour)
		// ENI 1 over its own link, and others as their last resort.
		if dead > 30 {
			t.Errorf("a dead path was tried %d times in an hour", dead)
		}
		if dead < 5 {
			t.Errorf("a dead path was tried %d times in an hour: would one that came back be used?", dead)
		}
		if eni := w.known().ENIs[macOf(1)]; eni.Err != nil || eni.View == nil {
			t.Errorf("ENI 1: %+v", eni)
		}
		w.set(func() {
			if len(w.log) > 10 {
				t.Errorf("the log: %q", w.log)
			}
		})
	})
}
