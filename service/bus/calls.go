package bus

import (
	"maps"
	"slices"
	"sync"
)

// Limits of the method calls that wait or run. A waiting call is kept in its wire format, a few
// hundred bytes; only running calls cost a goroutine. A call ends when its answer is written.
const (
	maxRunning = 8 // of all users, and as many of root
	maxSender  = 256
	maxUser    = 1024      // of one user
	maxUsers   = 4096      // of all users, and as many of root
	userBytes  = 512 << 10 // of one user's calls that wait
	usersBytes = 2 << 20   // of all users'
	rootBytes  = 2 << 20
	// heldBytes and heldSender bound the calls of callers whose user the bus has not reported
	// yet.
	heldBytes  = 2 << 20
	heldSender = 128 << 10
	// maxKnown bounds how many callers' users are kept.
	maxKnown = 2048
)

// Limits of a single call.
const (
	maxPath      = 1024
	maxArguments = 4 << 10
)

// tooMany refuses a call beyond a limit.
const tooMany = "too many calls are waiting for an answer: wait for some before making more"

// Calls admits the method calls that arrive on one connection, and decides on their order.
// Each user has its own limits. Root is served first: its calls neither wait for the calls of
// others nor count towards their limits (J1).
type Calls struct {
	arguments map[string]bool

	mu sync.Mutex
	// wake tells the guard that a call may be ready. It must not be called under mu.
	wake func()
	// known maps callers to their users. The bus never reuses a unique name.
	known map[string]uint32
	// held are the calls of callers that are not known yet.
	held      map[string][]*call
	heldBytes int

	flight  map[callKey]*call
	senders map[string]int
	users   map[uint32]*queue
	// turns are the users with waiting calls, in the order in which they are served.
	turns          []uint32
	all, root      load
	running, apart int // how many calls run: of users, of root
}

// callKey identifies a call until it is answered.
type callKey struct {
	sender string
	serial uint32
}

// call is a method call from its arrival to its answer.
type call struct {
	key   callKey
	uid   uint32
	bytes []byte
	// quiet: the caller expects no answer.
	quiet bool
	// dropped: the guard has removed the arguments.
	dropped bool
	// slow: the call no longer occupies a slot.
	slow, started bool
}

// queue contains the waiting calls of one user. Its connections are served in turn too.
type queue struct {
	load
	turns   []string
	waiting map[string][]*call
}

// load is a number of calls, including running ones, and the bytes of the waiting ones.
type load struct{ calls, bytes int }

func (l *load) add(calls, bytes int) { l.calls += calls; l.bytes += bytes }

// NewCalls returns a Calls that admits arguments of the given signatures. A call with other
// arguments, or with more than 4 KiB of them, arrives without arguments. So does a call with
// file descriptors, or with a variant that is not a string. The Handler must answer such a call
// with an error: see Dropped.
func NewCalls(signatures map[string]bool) *Calls {
	return &Calls{
		arguments: maps.Clone(signatures), wake: func() {},
		known: map[string]uint32{}, held: map[string][]*call{},
		flight: map[callKey]*call{}, senders: map[string]int{}, users: map[uint32]*queue{},
	}
}

// User returns the user who made a call that is in progress.
func (c *Calls) User(sender string, serial uint32) (uid uint32, ok bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if in := c.flight[callKey{sender, serial}]; in != nil {
		return in.uid, true
	}
	return 0, false
}

// Dropped reports whether the guard has removed the arguments of a call that is in progress.
func (c *Calls) Dropped(sender string, serial uint32) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.flight[callKey{sender, serial}]
	return in != nil && in.dropped
}

// Quiet reports whether the caller expects no answer to a call that is in progress. The guard
// does not send such an answer, so it may be empty.
func (c *Calls) Quiet(sender string, serial uint32) bool {
	return c.isQuiet(callKey{sender, serial})
}

// Slow marks a call as slow, so that other calls no longer wait for it. The handler that calls
// Slow must limit such calls in another way.
func (c *Calls) Slow(sender string, serial uint32) {
	defer c.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	if in := c.flight[callKey{sender, serial}]; in != nil && in.started && !in.slow {
		in.slow = true
		*c.slots(in.uid)--
	}
}

// slots returns the number of running calls of the user's kind.
func (c *Calls) slots(uid uint32) *int {
	if uid == 0 {
		return &c.apart
	}
	return &c.running
}

// arrive takes a call. It returns the calls that are refused, and whether to ask the bus for
// the user of the caller: the answer goes to identified.
func (c *Calls) arrive(in *call) (ask bool, refused []*call) {
	defer c.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	if uid, ok := c.known[in.key.sender]; ok {
		if !c.admit(in, uid) {
			return false, []*call{in}
		}
		return false, nil
	}
	sender := in.key.sender
	own := sizeOfAll(c.held[sender]) + len(in.bytes)
	if own > heldSender || len(c.held[sender]) >= maxSender {
		return false, []*call{in}
	}
	for c.heldBytes+len(in.bytes) > heldBytes {
		// The caller with most bytes loses a call, so that a crowd does not shut out a new
		// caller.
		most, size := sender, own
		for other, calls := range c.held {
			if n := sizeOfAll(calls); n > size {
				most, size = other, n
			}
		}
		if most == sender {
			return false, append(refused, in)
		}
		calls := c.held[most]
		last := calls[len(calls)-1]
		c.held[most] = calls[:len(calls)-1]
		c.heldBytes -= len(last.bytes)
		refused = append(refused, last)
	}
	_, asked := c.held[sender]
	c.held[sender] = append(c.held[sender], in)
	c.heldBytes += len(in.bytes)
	return !asked, refused
}

func sizeOfAll(calls []*call) (n int) {
	for _, in := range calls {
		n += len(in.bytes)
	}
	return n
}

// identified takes the user of a caller. ok is false if the user is unknown, because the caller
// has disconnected. It returns the calls that are refused.
func (c *Calls) identified(sender string, uid uint32, ok bool) (refused []*call) {
	defer c.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	calls := c.held[sender]
	delete(c.held, sender)
	c.heldBytes -= sizeOfAll(calls)
	if !ok {
		return nil
	}
	if len(c.known) >= maxKnown {
		clear(c.known) // the guard asks the bus again
	}
	c.known[sender] = uid
	for _, in := range calls {
		if !c.admit(in, uid) {
			refused = append(refused, in)
		}
	}
	return refused
}

// admit queues a call within the limits.
func (c *Calls) admit(in *call, uid uint32) bool {
	in.uid = uid
	n := len(in.bytes)
	own := c.users[uid]
	if own == nil {
		own = &queue{waiting: map[string][]*call{}}
	}
	all, maxOwn, maxBytes := &c.all, load{maxUser, userBytes}, usersBytes
	if uid == 0 {
		all, maxOwn, maxBytes = &c.root, load{maxUsers, rootBytes}, rootBytes
	}
	if c.flight[in.key] != nil || c.senders[in.key.sender] >= maxSender ||
		own.calls >= maxOwn.calls || own.bytes+n > maxOwn.bytes || all.calls >= maxUsers || all.bytes+n > maxBytes {
		return false
	}
	c.flight[in.key] = in
	c.senders[in.key.sender]++
	all.add(1, n)
	own.add(1, n)
	c.users[uid] = own
	if len(own.turns) == 0 {
		c.turns = append(c.turns, uid)
	}
	own.push(in)
	return true
}

// next returns the call to run now, or nil. Users are served in turn.
func (c *Calls) next() *call {
	c.mu.Lock()
	defer c.mu.Unlock()
	i := slices.Index(c.turns, 0)
	if i < 0 || c.apart >= maxRunning {
		i = slices.IndexFunc(c.turns, func(uid uint32) bool { return uid != 0 })
		if i < 0 || c.running >= maxRunning {
			return nil
		}
	}
	uid := c.turns[i]
	c.turns = slices.Delete(c.turns, i, i+1)
	own := c.users[uid]
	in := own.pop()
	if len(own.turns) > 0 {
		c.turns = append(c.turns, uid)
	}
	c.loadOf(uid).add(0, -len(in.bytes))
	own.add(0, -len(in.bytes))
	in.started = true
	*c.slots(uid)++
	return in
}

func (q *queue) push(in *call) {
	sender := in.key.sender
	if len(q.waiting[sender]) == 0 {
		q.turns = append(q.turns, sender)
	}
	q.waiting[sender] = append(q.waiting[sender], in)
}

// pop takes the next call out of a queue that is not empty.
func (q *queue) pop() *call {
	sender := q.turns[0]
	q.turns = slices.Delete(q.turns, 0, 1)
	calls := q.waiting[sender]
	first := calls[0]
	if len(calls) > 1 {
		q.waiting[sender] = slices.Delete(calls, 0, 1)
		q.turns = append(q.turns, sender)
	} else {
		delete(q.waiting, sender)
	}
	return first
}

func (c *Calls) loadOf(uid uint32) *load {
	if uid == 0 {
		return &c.root
	}
	return &c.all
}

// isQuiet reports whether a call is under way whose caller expects no answer.
func (c *Calls) isQuiet(key callKey) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.flight[key]
	return in != nil && in.quiet
}

// finish ends a call.
func (c *Calls) finish(key callKey) {
	defer c.wake()
	c.mu.Lock()
	defer c.mu.Unlock()
	in := c.flight[key]
	if in == nil || !in.started {
		return
	}
	delete(c.flight, key)
	if c.senders[key.sender]--; c.senders[key.sender] == 0 {
		delete(c.senders, key.sender)
	}
	c.loadOf(in.uid).add(-1, 0)
	own := c.users[in.uid]
	if own.add(-1, 0); own.calls == 0 {
		delete(c.users, in.uid)
	}
	if !in.slow {
		*c.slots(in.uid)--
	}
}
