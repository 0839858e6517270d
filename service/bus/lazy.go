package bus

import (
	"context"
	"sync"
)

// Lazy is a connection that several callers share. It dials when a caller needs it, and
// again after the connection has ended. The zero value has the zero [Options].
type Lazy struct {
	Options Options
	// Opened, if set, is called with each new connection before anyone uses it. It must
	// not block.
	Opened func(*Conn)

	mu      sync.Mutex
	conn    *Conn
	dialing *dialing
	closed  bool
}

// dialing is one attempt to connect, for all callers that wait for it.
type dialing struct {
	done chan struct{}
	conn *Conn
	err  error
}

// Get returns the connection. Concurrent callers wait for the same attempt, but no longer
// than ctx; they hold no lock meanwhile.
func (l *Lazy) Get(ctx context.Context) (*Conn, error) {
	l.mu.Lock()
	if l.conn != nil && l.conn.Connected() {
		defer l.mu.Unlock()
		return l.conn, nil
	}
	d := l.dialing
	if d == nil {
		d = &dialing{done: make(chan struct{})}
		l.dialing, l.closed = d, false
		// The connection outlives the first call that needs it.
		go l.dial(context.WithoutCancel(ctx), d)
	}
	l.mu.Unlock()
	select {
	case <-d.done:
		return d.conn, d.err
	case <-ctx.Done():
		return nil, ctx.Err()
	}
}

func (l *Lazy) dial(ctx context.Context, d *dialing) {
	defer close(d.done)
	d.conn, d.err = Dial(ctx, l.Options)
	l.mu.Lock()
	defer l.mu.Unlock()
	l.dialing = nil
	if d.err != nil {
		return
	}
	if l.closed {
		d.conn.Close()
		return
	}
	if l.Opened != nil {
		l.Opened(d.conn)
	}
	l.conn = d.conn
}

// Close ends the connection, including one that is being established. A later Get dials
// again.
func (l *Lazy) Close() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	if l.conn != nil {
		l.conn.Close()
		l.conn = nil
	}
}
