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
