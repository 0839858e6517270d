package metadata

import (
	"context"
	"errors"
	"net"
	"net/http"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// transport sends each request over the path in its context. It never uses a proxy
// (D1): link-local addresses are not reachable through one, and a token must not
// pass one.
//
// It takes the place of net/http's Transport, which reads as much as a service sends. That
// one also takes surplus bytes after an answer for the answer to the next request,
// and waits for the end of what follows a 101 without a deadline. Here an answer has been
// read, within the limits (D13), before anybody sees it.
type transport struct {
	counters
	agent string
	dial  func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	idle map[connKey][]*conn
	// slow is when an answer last took longer than shortAnswer, zero for never.
	slow time.Time
}

// isSlow tells whether an answer has lately taken so long that silence may be no fault of a path.
func (t *transport) isSlow() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	return !t.slow.IsZero() && time.Since(t.slow) < deadTime
}

const (
	// idleTime is how long a connection is kept that no request uses: until the next look at
	// the same ENI, which by default comes within 15 s. Without it an idle daemon took a third
	// more CPU time.
	idleTime = 20 * time.Second
	// maxIdle is how many connections of one kind are kept.
	maxIdle = 4
	// dialTimeout bounds the time for a connection. Where another path is left that has
	// lately answered it is shortDial: over an ENI that is only coming up, or going, a packet may go
	// nowhere, TCP sends the next one after a second (RFC 6298), and in EC2 an answer takes less
	// than a millisecond.
	dialTimeout = time.Second
	shortDial   = 250 * time.Millisecond
	// shortAnswer bounds the time for an answer there, unless one has lately taken longer: a
	// connection over an ENI that goes, or whose address is set anew, falls silent too.
	shortAnswer = 500 * time.Millisecond
)

// errRefused says that a key was refused with the token that was sent.
var errRefused = errors.New("the token was refused")

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(request *http.Request) (*http.Response, error) {
	seen, ok := request.Context().Value(traceKey{}).(*trace)
	if !ok {
		return nil, errors.New("a metadata request without a path")
	}
	if err := request.Context().Err(); err != nil {
		return nil, err // its time went by before it came here
	}
	to, err := target(seen.path.Endpoint, request.URL)
	if err != nil {
		return nil, err
	}
	ctx, cancel := context.WithTimeout(request.Context(), seen.answer)
	defer cancel()
	request = request.Clone(ctx)
	request.URL, request.Host = to, to.Host
	if t.agent != "" {
		request.Header.Set("User-Agent", strings.TrimSpace(t.agent+" "+request.Header.Get("User-Agent")))
	}
	seen.atToken = request.Method == http.MethodPut
	if !seen.atToken && !validToken(request.Header.Get(tokenHeader)) {
		seen.err = errToken
		return nil, errToken
	}
	if !seen.atToken {
		seen.session.got.Store(true)
		if seen.renewed != nil {
			seen.renewed()
		}
	}
	seen.asked = true
	t.sent.Add(1)
	began := time.Now()
	a, err := t.exchange(request, seen.path, seen.limit(), seen.dial)
	t.ended(began, seen.take(a, err))
	if a.status != 0 && time.Since(began) > shortAnswer {
		t.mu.Lock()
		t.slow = time.Now()
		t.mu.Unlock()
	}
	if err != nil {
		t.failed.Add(1)
		return nil, err
	}
	if a.status != http.StatusOK && a.status != http.StatusNotFound {
		t.failed.Add(1)
	}
	if a.status == http.StatusUnauthorized && !seen.atToken {
		// The SDK would drop its token, behind a lock that it holds for as long as another reader
		// fetches one. The client gives up a refused token by itself.
		return nil, errRefused
	}
	return a.response(request, seen.atToken)
}

// limit is how long the body of the answer may be (D13).
func (s *trace) limit() int {
	if s.atToken {
		return maxToken
	}
	return maxValue
}

// take records how a request ended, and returns it as an error for the counters.
func (s *trace) take(a answer, err error) error {
	if s.atToken {
		s.token = a.status
		life, _ := strconv.Atoi(a.header.Get(tokenLifeHeader)) // without it the SDK takes no token
		s.session.expires.Store(time.Now().Add(time.Duration(life) * time.Second).UnixNano())
		s.session.got.Store(false)
	} else {
		s.key, s.body = a.status, a.body
	}
	if err != nil {
		s.err = err
		return &Error{Kind: kindOfCause(err), Err: err}
	}
	if a.status != http.StatusOK {
		return &Error{Kind: kindOfStatus(a.status, s.atToken)}
	}
	return nil
}

// Headers of IMDSv2.
const (
	tokenHeader     = "X-Aws-Ec2-Metadata-Token"
	tokenLifeHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// errToken: what the service gave as a token can be none. It is not sent.
var errToken = errors.New("the answer is not a token")

// validToken reports whether a text can be a token: one word of printable ASCII. EC2's
// have 56 characters.
func validToken(text string) bool {
	return text != "" && len(text) <= maxToken && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

// connKey tells connections apart: links, those that had the same name one after the other
// too, and where a connection leads.
type connKey struct {
	device  string
	index   int
	address string
}

// exchange sends a request over a path and reads the answer, over a connection of an
// earlier request if there is one. The service may have closed that one: then another is
// used, so that a request fails only over a connection that was made for it.
func (t *transport) exchange(request *http.Request, path Path, limit int, patience time.Duration) (answer, error) {
	address := request.URL.Host
	if request.URL.Port() == "" {
		address = net.JoinHostPort(request.URL.Hostname(), "80")
	}
	key := connKey{path.Device, path.Index, address}
	for {
		c := t.reuse(key)
		reused := c != nil
		if !reused {
			raw, err := t.connect(request.Context(), path, address, patience)
			if err != nil {
				return answer{}, err
			}
			c = newConn(raw)
		}
		a, keep, err := c.exchange(request, limit)
		if keep {
			t.keep(key, c)
		} else {
			_ = c.Close() // it is of no use, whatever it says
		}
		if err != nil && reused && !c.heard && request.Context().Err() == nil {
			continue
		}
		return a, err
	}
}

// reuse returns a connection of an earlier request, nil if there is none.
func (t *transport) reuse(key connKey) *conn {
	for {
		t.mu.Lock()
		all := t.idle[key]
		if len(all) == 0 {
			t.mu.Unlock()
			return nil
		}
		c := all[len(all)-1]
		t.forget(key, c)
		t.mu.Unlock()
		if c.pending() == nothing {
			return c
		}
		_ = c.Close() // it has ended, or what it has is no answer of ours
	}
}

// keep keeps a connection for the next request.
func (t *transport) keep(key connKey, c *conn) {
	t.mu.Lock()
	defer t.mu.Unlock()
	if len(t.idle[key]) >= maxIdle {
		_ = c.Close() // there are enough
		return
	}
	c.expiry = time.AfterFunc(idleTime, func() {
		t.mu.Lock()
		defer t.mu.Unlock()
		if t.forget(key, c) {
			_ = c.Close() // nobody uses it
		}
	})
	t.idle[key] = append(t.idle[key], c)
}

// forget takes a connection out of those that are kept, and reports whether it was one.
// t.mu is held.
func (t *transport) forget(key connKey, c *conn) bool {
	for i, kept := range t.idle[key] {
		if kept != c {
			continue
		}
		c.expiry.Stop()
		t.idle[key] = append(t.idle[key][:i:i], t.idle[key][i+1:]...)
		if len(t.idle[key]) == 0 {
			delete(t.idle, key)
		}
		return true
	}
	return false
}

// connect makes a connection over a path, for which it has a time.
func (t *transport) connect(ctx context.Context, path Path, address string, patience time.Duration) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(ctx, patience)
	defer cancel()
	if t.dial != nil {
		return t.dial(context.WithValue(ctx, dialKey{}, path), "tcp", address)
	}
	dialer := &net.Dialer{KeepAlive: -1}
	if path.Device != "" {
		dialer.Control = func(_, _ string, raw syscall.RawConn) error {
			var bound error
			err := raw.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), path.Device) })
			return errors.Join(err, bound)
		}
	}
	return dialer.DialContext(ctx, "tcp", address)
}

type dialKey struct{}

// DialedPath is the path that a connection of [Options].Dial is for, of which only the
// device and its index count.
func DialedPath(ctx context.Context) Path {
	path, _ := ctx.Value(dialKey{}).(Path)
	return path
}

// closeIdle closes idle connections, so that devices that went away leave nothing behind.
func (t *transport) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for _, all := range t.idle {
		for _, c := range all {
			c.expiry.Stop()
			_ = c.Close() // nobody uses it
		}
	}
	clear(t.idle)
}
