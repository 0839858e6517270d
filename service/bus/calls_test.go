package bus

import (
	"fmt"
	"slices"
	"testing"
)

// arrived lets a call of a sender arrive, and returns the calls that are refused.
func arrived(c *Calls, sender string, serial, size int) []*call {
	_, refused := c.arrive(&call{key: callKey{sender, uint32(serial)}, bytes: make([]byte, size)})
	return refused
}

// TestRootFirst: root is admitted and served, however many calls of users wait or run.
func TestRootFirst(t *testing.T) { // J1
	c := NewCalls(nil)
	serial := 0
	for uid := range 6 {
		for n := range 8 {
			sender := fmt.Sprintf(":%d.%d", uid, n)
			c.known[sender] = 1000 + uint32(uid)
			for range maxSender {
				serial++
				arrived(c, sender, serial, 300)
			}
		}
	}
	if c.all.calls > maxUsers || c.all.bytes > usersBytes {
		t.Errorf("%+v wait", c.all)
	}
	running := 0
	for c.next() != nil {
		running++
	}
	if running != maxRunning {
		t.Errorf("%d calls run", running)
	}
	c.known[":9.0"] = 0
	for n := range maxRunning {
		if refused := arrived(c, ":9.0", n+1, 4000); len(refused) > 0 {
			t.Fatal("root is refused")
		}
		if in := c.next(); in == nil || in.key.sender != ":9.0" {
			t.Fatalf("%+v runs, not root's call", in)
		}
	}
}

// TestTurns: users are served in turn, and so are the connections of one user; none
// gets more than its share.
func TestTurns(t *testing.T) { // J1
	c := NewCalls(nil)
	c.known[":1.1"], c.known[":1.2"], c.known[":1.3"] = 1000, 1000, 1001
	refused := 0
	for _, sender := range []string{":1.1", ":1.2"} {
		for n := range maxSender {
			refused += len(arrived(c, sender, n+1, 100))
		}
	}
	if refused != 0 {
		t.Errorf("%d are refused within the limits", refused)
	}
	if got := arrived(c, ":1.1", 9999, 100); len(got) != 1 {
		t.Error("a connection has more than its share")
	}
	if got := arrived(c, ":1.3", 1, 100); len(got) != 0 {
		t.Error("another user is refused")
	}
	var order []string
	for range 3 {
		order = append(order, c.next().key.sender)
	}
	if want := []string{":1.1", ":1.3", ":1.2"}; !slices.Equal(order, want) {
		t.Errorf("served: %q, want %q", order, want)
	}
	c.finish(callKey{":1.3", 1})
	if got := arrived(c, ":1.3", 1, userBytes+1); len(got) != 1 {
		t.Error("a user may have any number of bytes waiting")
	}
}

// TestSlow: a slow call occupies no slot, but still counts towards the limits of its
// user.
func TestSlow(t *testing.T) {
	c := NewCalls(nil)
	c.known[":1.1"] = 1000
	for n := range maxRunning + 1 {
		arrived(c, ":1.1", n+1, 100)
	}
	for range maxRunning {
		c.next()
	}
	if c.next() != nil {
		t.Fatal("too many run")
	}
	c.Slow(":1.1", 1)
	c.Slow(":1.1", 1)
	c.Slow(":1.1", 99)
	if in := c.next(); in == nil || in.key.serial != maxRunning+1 {
		t.Fatalf("%+v runs", in)
	}
	if uid, ok := c.User(":1.1", 1); !ok || uid != 1000 {
		t.Errorf("user %d, %v", uid, ok)
	}
	for n := range maxRunning + 1 {
		c.finish(callKey{":1.1", uint32(n + 1)})
	}
	if c.running != 0 || c.all != (load{}) || len(c.users)+len(c.flight)+len(c.senders)+len(c.turns) != 0 {
		t.Errorf("something is left: %+v", c)
	}
}

// TestHeld: many callers whose users are not known yet do not shut out a new caller.
func TestHeld(t *testing.T) { // J1
	c := NewCalls(nil)
	for sender := range 64 {
		for n := range maxSender {
			arrived(c, fmt.Sprintf(":1.%d", sender), n+1, 4000)
		}
	}
	if c.heldBytes > heldBytes {
		t.Errorf("%d bytes are held", c.heldBytes)
	}
	ask, refused := c.arrive(&call{key: callKey{":0.0", 1}, bytes: make([]byte, 4000)})
	if !ask || len(refused) == 0 || refused[0].key.sender == ":0.0" {
		t.Errorf("ask %v, refused %v", ask, refused)
	}
	if got := c.identified(":0.0", 0, true); len(got) > 0 {
		t.Error("root is refused")
	}
	if in := c.next(); in == nil || in.uid != 0 || in.key.sender != ":0.0" {
		t.Errorf("%+v runs", in)
	}
	for sender := range 64 {
		c.identified(fmt.Sprintf(":1.%d", sender), 1000, sender%2 == 0)
	}
	if c.heldBytes != 0 || len(c.held) != 0 {
		t.Errorf("%d bytes are held for %d callers", c.heldBytes, len(c.held))
	}
}
