package varlinkserver

import (
	"encoding/json"
	"slices"
	"sync"

	"ec2netd/api"
	"ec2netd/service/state"
)

// publisher keeps the state in JSON, encoded once for all clients. With 15 ENIs of 50
// addresses each the encoding costs milliseconds and 200 KiB, which Describe and Monitor
// must not cost again for every client (J1).
//
// A client that does not read keeps the encoding that it is being sent in memory. The
// publisher bounds the size of old encodings: it drops the slowest clients.
type publisher struct {
	agent api.Agent
	// limit is the size of old encodings that clients can keep, in bytes.
	limit int

	mu      sync.Mutex
	current *encoding
	// stale encodings are still being sent to clients; the oldest is first.
	stale []*encoding
}

// encoding is one published state in JSON.
type encoding struct {
	state *state.State
	json  []byte
	// readers are the clients that are being sent the encoding, with functions to drop
	// them.
	readers map[*reader]struct{}
	dropped bool
}

// reader is one use of an encoding.
type reader struct{ drop func() }

// acquire returns the current state in JSON. The caller must release it, and drop must
// make the caller do so soon.
func (p *publisher) acquire(drop func()) (*encoding, *reader, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	if now := p.agent.State(); p.current == nil || p.current.state != now {
		text, err := json.Marshal(api.NonNil(now))
		if err != nil {
			return nil, nil, err
		}
		p.retire()
		p.current = &encoding{state: now, json: text, readers: map[*reader]struct{}{}}
	}
	r := &reader{drop: drop}
	p.current.readers[r] = struct{}{}
	return p.current, r, nil
}

// retire makes the current encoding a stale one, and drops the readers of the oldest
// encodings while these are too large. It never drops readers of the last one: a client
// that reads must not suffer from a state that is larger than the limit.
func (p *publisher) retire() {
	if p.current == nil || len(p.current.readers) == 0 {
		return
	}
	p.stale = append(p.stale, p.current)
	size := 0
	for i, e := range slices.Backward(p.stale) {
		size += len(e.json)
		if size <= p.limit || i == len(p.stale)-1 || e.dropped {
			continue
		}
		e.dropped = true
		for r := range e.readers {
			r.drop()
		}
	}
}

// release ends a use of an encoding.
func (p *publisher) release(e *encoding, r *reader) {
	p.mu.Lock()
	defer p.mu.Unlock()
	delete(e.readers, r)
	if len(e.readers) == 0 {
		p.stale = slices.DeleteFunc(p.stale, func(other *encoding) bool { return other == e })
	}
}
