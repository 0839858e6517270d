package metadata

import (
	"testing"
	"testing/synctest"
	"time"
)

// D9: whether direct access is prohibited is asked once for what is read at the same time,
// and again for what is read later.
func TestProhibitedAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(Options{})
		asked, barred := 0, false
		c.prohibited = func() bool { asked++; return barred }
		paths := []Path{{Device: "ens5", Index: 2, Endpoint: EndpointIPv4}, {Socket: ImdsdSocket}}
		for range 4 {
			if first := c.order(paths)[0]; first != paths[0] {
				t.Errorf("%v comes first", first)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times for one look", asked)
		}
		barred = true
		time.Sleep(probeTime)
		if first := c.order(paths)[0]; first != paths[1] || asked != 2 || !c.isLocked() {
			t.Errorf("%v comes first after %d questions", first, asked)
		}
	})
}

// D2: a connection is bound to a link, not to its name: one that was attached again
// under the same name gets connections of its own.
func TestConnectionsByLink(t *testing.T) {
	transport := NewClient(Options{}).transport
	first := transport.over(Path{Device: "ens6", Index: 3})
	if transport.over(Path{Device: "ens6", Index: 3, Endpoint: EndpointIPv6}) != first {
		t.Error("one link has two pools of connections")
	}
	if transport.over(Path{Device: "ens6", Index: 4}) == first {
		t.Error("another link of the same name has the connections of the first")
	}
}
