package varlinkserver

import (
	"cmp"
	"sync"
	"time"
)

// Limits bound the resources that clients can use; zero values mean the defaults.
//
// The numbers of connections, calls, refreshes and bytes are for all users together.
// Ordinary users can use half of each, system users another quarter, and the last
// quarter is reserved for root, who is never refused. A user other than root can use an
// eighth of the share of its class: a user cannot lock out others of its class, and a
// class cannot lock out higher ones (J1).
type Limits struct {
	// Connections, 256 by default.
	Connections int
	// ConnectionsPerSecond is the number of connections that a user other than root can
	// open per second, and twice as many at once; 100 by default.
	ConnectionsPerSecond int
	// Calls that run at once, 128 by default. A Monitor runs until its client
	// disconnects.
	Calls int
	// Refreshes that run or wait for polkit at once, 32 by default.
	Refreshes int
	// Bytes of requests and unsent replies in memory, 16 MiB by default. All clients
	// share the encoded state, which counts only after a newer one has replaced it; see
	// [publisher].
	Bytes int
	// Message is the size of the largest request in bytes, 16 KiB by default.
	Message int
	// Idle is how long a connection may have no call, 2 minutes by default.
	Idle time.Duration
	// Write is how long a client may take to read one reply, 10 seconds by default.
	Write time.Duration
}

// withDefaults returns l with the default in place of each zero value.
func (l Limits) withDefaults() Limits {
	l.Connections = cmp.Or(l.Connections, 256)
	l.ConnectionsPerSecond = cmp.Or(l.ConnectionsPerSecond, 100)
	l.Calls = cmp.Or(l.Calls, 128)
	l.Refreshes = cmp.Or(l.Refreshes, 32)
	l.Bytes = cmp.Or(l.Bytes, 16<<20)
	l.Message = cmp.Or(l.Message, 16<<10)
	l.Idle = cmp.Or(l.Idle, 2*time.Minute)
	l.Write = cmp.Or(l.Write, 10*time.Second)
	return l
}

// held is the charge of a connection for its requests: the one in progress, and the one
// that is being read.
func (l Limits) held() int { return 2 * l.Message }

// sendBuffer is the size of the kernel's send buffer, in place of its default of 208
// KiB, which counts as the daemon's memory.
func (l Limits) sendBuffer() int { return l.Message }

// class is a class of users with the same share.
type class int

// The classes.
const (
	ordinary class = iota
	system
	root
)

// classOf returns the class of a user. System users are those below SYS_UID_MAX of
// login.defs(5), 999 on every distribution of the last ten years, and the dynamic users
// of systemd services, see systemd.exec(5): nobody can log in as one of these. The users
// of a user namespace are ordinary users.
func classOf(uid uint32) class {
	const (
		systemMax  = 999
		dynamicMin = 61184
		dynamicMax = 65519
	)
	switch {
	case uid == 0:
		return root
	case uid <= systemMax, uid >= dynamicMin && uid <= dynamicMax:
		return system
	}
	return ordinary
}

// pool is an amount of a resource that the clients share, with a reserve for the higher
// classes.
type pool struct {
	limit int

	mu    sync.Mutex
	below [root]int // used by each class and the lower ones
	users map[uint32]int
}

func newPool(limit int) *pool { return &pool{limit: limit, users: map[uint32]int{}} }

// of returns the part of the pool that a class and the lower ones can use together.
func (p *pool) of(c class) int { return p.limit * (int(c) + 2) / 4 }

// take takes n for a user, and reports whether this was within its limits. Root always
// gets it.
func (p *pool) take(uid uint32, n int) bool {
	p.mu.Lock()
	defer p.mu.Unlock()
	c := classOf(uid)
	if c != root {
		for above := c; above < root; above++ {
			if p.below[above]+n > p.of(above) {
				return false
			}
		}
		if p.users[uid]+n > max(p.of(c)/8, 1) {
			return false
		}
	}
	p.add(uid, c, n)
	return true
}

// give returns what was taken.
func (p *pool) give(uid uint32, n int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.add(uid, classOf(uid), -n)
}

func (p *pool) add(uid uint32, c class, n int) {
	for above := c; above < root; above++ {
		p.below[above] += n
	}
	if p.users[uid] += n; p.users[uid] == 0 {
		delete(p.users, uid)
	}
}

// pace limits how often each user does something.
type pace struct {
	perSecond int

	mu    sync.Mutex
	users map[uint32]*allowance
	// most is the number of users after which users that have been inactive for some
	// time are forgotten.
	most int
}

// allowance is the rest of a user's allowance when it last asked.
type allowance struct {
	left float64
	at   time.Time
}

func newPace(perSecond int) *pace {
	return &pace{perSecond: perSecond, users: map[uint32]*allowance{}, most: 64}
}

// allow reports whether a user may do it once more. Root always may.
func (p *pace) allow(uid uint32, now time.Time) bool {
	if classOf(uid) == root {
		return true
	}
	p.mu.Lock()
	defer p.mu.Unlock()
	full := float64(2 * p.perSecond)
	a := p.users[uid]
	if a == nil {
		p.forget(now)
		a = &allowance{left: full, at: now}
		p.users[uid] = a
	}
	a.left = min(full, a.left+now.Sub(a.at).Seconds()*float64(p.perSecond))
	a.at = now
	if a.left < 1 {
		return false
	}
	a.left--
	return true
}

// forget forgets the users whose allowance is complete again.
func (p *pace) forget(now time.Time) {
	if len(p.users) < p.most {
		return
	}
	for uid, a := range p.users {
		if now.Sub(a.at) > 2*time.Second {
			delete(p.users, uid)
		}
	}
	p.most = max(64, 2*len(p.users))
}
