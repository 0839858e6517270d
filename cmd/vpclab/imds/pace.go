package imds

import (
	"context"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"sync"
	"time"
)

// Pace is how fast the metadata service answers. The zero value means at once.
type Pace struct {
	// Latency is the time from a request to its answer, plus or minus a uniformly
	// distributed Jitter.
	Latency, Jitter time.Duration
	// Split sends headers and body in two writes, the second of which waits until the
	// client has acknowledged the first (Nagle's algorithm), like a plain server
	// without TCP_NODELAY. On a kept connection a client that delays its
	// acknowledgements then waits 40 ms for every body.
	Split bool
}

// Check returns an error if a pace is invalid.
func (p Pace) Check() error {
	if p.Latency < 0 || p.Jitter < 0 || p.Jitter > p.Latency {
		return fmt.Errorf("metadata latency %s with jitter %s: want a latency that is not negative, and a jitter from 0 to it", p.Latency, p.Jitter)
	}
	return nil
}

// Paced serves another handler at a [Pace]. It logs requests and decides on them when
// they arrive, and delays the answer. It does not delay faults without an answer, such
// as a reset.
type Paced struct {
	handler http.Handler

	mu   sync.Mutex
	pace Pace
	rand *rand.Rand
}

// NewPaced returns a handler with the zero pace. The seed makes the jitter repeatable.
func NewPaced(handler http.Handler, seed uint64) *Paced {
	return &Paced{handler: handler, rand: rand.New(rand.NewPCG(seed, 0x9ace))}
}

// SetPace changes the pace of later requests.
func (p *Paced) SetPace(pace Pace) {
	p.mu.Lock()
	defer p.mu.Unlock()
	p.pace = pace
}

// next draws the latency of one request.
func (p *Paced) next() (latency time.Duration, split bool) {
	p.mu.Lock()
	defer p.mu.Unlock()
	latency = p.pace.Latency
	if j := int64(p.pace.Jitter); j > 0 {
		latency += time.Duration(p.rand.Int64N(2*j+1) - j)
	}
	return latency, p.pace.Split
}

// connKey is the key of a request's connection in its context.
type connKey struct{}

// ConnContext is for [http.Server]; [Pace].Split needs it.
func ConnContext(ctx context.Context, conn net.Conn) context.Context {
	return context.WithValue(ctx, connKey{}, conn)
}

// ServeHTTP implements [http.Handler].
func (p *Paced) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	latency, split := p.next()
	if tcp, ok := r.Context().Value(connKey{}).(*net.TCPConn); ok {
		_ = tcp.SetNoDelay(!split) // it fails if the client has already disconnected
	}
	p.handler.ServeHTTP(&pacedWriter{
		ResponseWriter: w, request: r, latency: latency, began: time.Now(), split: split,
	}, r)
}

// pacedWriter delays an answer.
type pacedWriter struct {
	http.ResponseWriter
	request *http.Request
	latency time.Duration
	began   time.Time
	split   bool
	started bool
}

// Unwrap is for [http.ResponseController].
func (w *pacedWriter) Unwrap() http.ResponseWriter { return w.ResponseWriter }

// WriteHeader sends the headers after the delay.
func (w *pacedWriter) WriteHeader(status int) {
	if w.started {
		return
	}
	w.started = true
	if left := time.Until(w.began.Add(w.latency)); left > 0 {
		select {
		case <-time.After(left):
		case <-w.request.Context().Done():
			panic(http.ErrAbortHandler) // the client no longer waits for it
		}
	}
	w.ResponseWriter.WriteHeader(status)
	if w.split {
		_ = http.NewResponseController(w.ResponseWriter).Flush() // an error means that the client has disconnected
	}
}

// Write sends a part of the body.
func (w *pacedWriter) Write(b []byte) (int, error) {
	w.WriteHeader(http.StatusOK)
	return w.ResponseWriter.Write(b)
}
