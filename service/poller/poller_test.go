package poller

import (
	"errors"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
)

// What is known is one value until something else is known: a read that brings nothing new, or the
// same failure again, makes no other one.
func TestKnown(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := inTurns(t, 2, nil)
		before, news := w.known(), w.news
		count := func() (n uint64) {
			w.do(func(p *Poller) { n = p.Counts().Reads["unchanged"] })
			return n
		}
		reads := count()
		settle(10 * time.Minute)
		if now := w.known(); now != before || w.news != news || count() == reads {
			t.Errorf("%d reads, of which %d were worth a pass: %+v, before %+v", count()-reads, w.news-news, now, before)
		}
		address := netip.MustParseAddr("10.0.1.99")
		w.publish(1, imds.Propagation{}, func(i *imds.Interface) { i.IPv4 = append(i.IPv4, address) })
		settle(time.Minute)
		now := w.known()
		if now == before || !slices.Contains(now.ENIs[macOf(1)].View.IPv4, address) {
			t.Errorf("%+v", now)
		}
		if slices.Contains(before.ENIs[macOf(1)].View.IPv4, address) || now.ENIs[macOf(0)] != before.ENIs[macOf(0)] {
			t.Errorf("the value of before has changed: %+v", before)
		}
		w.set(func() { w.refused = func(metadata.Path) error { return errSilent } })
		w.client.CloseIdle()
		settle(10 * time.Minute)
		silent := w.known()
		if !silent.Silent || silent.Err == nil || silent.Off != nil || silent.ENIs[macOf(1)].View != now.ENIs[macOf(1)].View {
			t.Errorf("while nothing answers: %+v", silent)
		}
		settle(10 * time.Minute)
		if now := w.known(); now != silent {
			t.Errorf("while nothing answers: %+v, before %+v", now, silent)
		}
		w.set(func() { w.refused = nil })
		settle(2 * time.Minute)
		if now := w.known(); now.Silent || now.Err != nil {
			t.Errorf("afterwards: %+v", now)
		}
	})
}

// C3: an ENI is a MAC address on a link. The same MAC address on a new link is another attachment,
// but takes nothing from a link that has it too.
func TestObserve(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := inTurns(t, 2, nil)
		twin := kernel.Link{Index: 90, Name: "v0", MAC: macOf(1)}
		view := w.known().ENIs[macOf(1)].View
		w.plug(twin)
		if eni := w.known().ENIs[macOf(1)]; eni.View != view || eni.Index != linkOf(1).Index {
			t.Errorf("a second link with its MAC address: %+v", eni)
		}
		remove := func(index int) {
			w.set(func() { w.links = slices.DeleteFunc(w.links, func(l kernel.Link) bool { return l.Index == index }) })
			w.do(func(*Poller) {})
		}
		remove(linkOf(1).Index)
		if eni := w.known().ENIs[macOf(1)]; eni.View != nil || eni.Index != twin.Index || eni.Tried {
			t.Errorf("on another link: %+v", eni)
		}
		settle(time.Second)
		if eni := w.known().ENIs[macOf(1)]; eni.View == nil || !eni.Listed() {
			t.Errorf("on another link: %+v", eni)
		}
		w.do(func(p *Poller) {
			if p.Attached(linkOf(0).Index) || !p.Attached(twin.Index) || p.Attached(linkOf(1).Index) {
				t.Errorf("attached: %+v", p.arrivals)
			}
		})
		remove(twin.Index)
		if known := w.known(); len(known.ENIs) != 1 || !known.Reachable {
			t.Errorf("after it was detached: %+v", known)
		}
		remove(linkOf(0).Index)
		if known := w.known(); len(known.ENIs) != 0 || known.Reachable {
			t.Errorf("without an ENI: %+v", known)
		}
	})
}

// E6: what was known is known after a restart, without an answer of the service; and an ENI that is
// on another link by then was attached meanwhile.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, kept := range []bool{true, false} {
		synctest.Test(t, func(t *testing.T) {
			before := inTurns(t, 2, nil)
			before.do(func(p *Poller) { p.Presume(macOf(1), time.Now()) })
			known := before.known()
			w := newWorld(t)
			w.views = before.views
			if !kept {
				if err := os.WriteFile(w.views.Path, []byte(`{"views":[{"ifindex":3,"eni":{"mac":"02:00:00:00:01:11","id":"../../x"}}]}`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			moved := linkOf(1)
			moved.Index = 90
			w.links = []kernel.Link{linkOf(0), moved}
			w.refused = func(metadata.Path) error { return errSilent }
			w.run()
			now := w.known()
			if now.Identified != kept || (now.ENIs[macOf(0)].View != nil) != kept || now.ENIs[macOf(1)].View != nil {
				t.Errorf("kept %v: %+v", kept, now)
			}
			if kept && (now.Instance != known.Instance || now.Presumed != macOf(1) || !now.ENIs[macOf(0)].View.Equal(known.ENIs[macOf(0)].View)) {
				t.Errorf("%+v, before %+v", now, known)
			}
			w.do(func(p *Poller) {
				if p.Attached(linkOf(0).Index) || p.Attached(moved.Index) != kept {
					t.Errorf("attached: %+v", p.arrivals)
				}
			})
			if said := strings.Join(w.log, ""); strings.Contains(said, "cannot be used") == kept {
				t.Errorf("said: %q", said)
			}
			// What is under way ends before the test does.
			w.set(func() { w.refused = nil })
			settle(ReadTime)
		})
	}
}

// H3, D6: a Refresh is done when each of its ENIs was read since, or when there was no answer for a
// while; and says of which nothing could be read.
func TestRefresh(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := inTurns(t, 3, nil)
		refresh := func(mac string) (took time.Duration, err error) {
			began, done := time.Now(), false
			var r *Refresh
			w.do(func(p *Poller) { r = p.Refresh(mac, time.Now()) })
			for !done {
				settle(10 * time.Millisecond)
				w.do(func(*Poller) {
					if done = r.Done(time.Now()); done {
						err = r.Err()
						r.End()
					}
				})
			}
			return time.Since(began), err
		}
		w.server.ResetRequests()
		if took, err := refresh(macOf(1)); err != nil || took > time.Second {
			t.Errorf("of one ENI: after %v: %v", took, err)
		}
		for _, r := range w.server.Requests() {
			if mac := macIn(r.Key); mac != "" && mac != macOf(1) {
				t.Errorf("%s was read", r.Key)
			}
		}
		if _, err := refresh(macOf(7)); err == nil || !strings.Contains(err.Error(), "was detached") {
			t.Errorf("of no ENI: %v", err)
		}
		if _, err := w.server.AddFault(imds.Fault{Pattern: "network/interfaces/macs/" + macOf(2) + "/**", Effect: imds.Status, Status: 500}); err != nil {
			t.Fatal(err)
		}
		if _, err := refresh(macOf(1)); err != nil {
			t.Errorf("of one ENI while another one fails: %v", err)
		}
		var failure *metadata.Error
		if _, err := refresh(""); !errors.As(err, &failure) || failure.Kind != metadata.ServerError {
			t.Errorf("of all ENIs while one fails: %v", err)
		}
		w.server.ClearFaults()
		w.set(func() { w.refused = func(metadata.Path) error { return errSilent } })
		w.client.CloseIdle()
		if took, err := refresh(""); err == nil || took > silenceTime+10*time.Second {
			t.Errorf("while nothing answers: after %v: %v", took, err)
		}
		w.set(func() { w.refused = nil })
		settle(ReadTime)
	})
}

// C7: nothing is left of ENIs that come and go, whether their metadata can be read or not.
func TestNothingPilesUp(t *testing.T) {
	t.Parallel()
	synctest.Test(t, func(t *testing.T) {
		w := inTurns(t, 1, nil)
		if _, err := w.server.AddFault(imds.Fault{Pattern: "network/interfaces/macs/" + macOf(2) + "/**", Effect: imds.Status, Status: 500}); err != nil {
			t.Fatal(err)
		}
		w.publish(1, imds.Propagation{}, nil)
		w.publish(2, imds.Propagation{}, nil)
		for n := range 50 {
			link := linkOf(1 + n%2)
			link.Index = 100 + n
			w.plug(link)
			settle(time.Duration(n*37%200) * time.Millisecond)
			w.set(func() { w.links = w.links[:1] })
			w.do(func(*Poller) {})
		}
		settle(time.Minute)
		w.do(func(p *Poller) {
			if len(p.targets) != 1 || len(p.arrivals) != 1 || p.said.Len() != 0 || p.Reading() || len(p.Known().ENIs) != 1 {
				t.Errorf("%d ENIs, %d links, said %+v, reading %d", len(p.targets), len(p.arrivals), p.said, p.reading)
			}
		})
	})
}
