package metadata

import (
	"context"
	"errors"
	"io"
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
type transport struct {
	counters
	agent string
	dial  func(ctx context.Context, network, address string) (net.Conn, error)

	mu     sync.Mutex
	byLink map[linkKey]*http.Transport
}

// idleTime is how long a connection is kept that no request uses: until the next look at
// the same ENI, which by default comes within 15 s. Without it an idle daemon took a third
// more CPU time.
const idleTime = 20 * time.Second

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
	request = request.Clone(request.Context())
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
	response, err := t.over(seen.path).RoundTrip(request)
	if err != nil {
		seen.err = err
		t.failed.Add(1)
		t.ended(began, &Error{Kind: kindOfCause(err), Err: err})
		return nil, err
	}
	if response.StatusCode >= 400 && response.StatusCode != http.StatusNotFound {
		t.failed.Add(1)
	}
	if seen.atToken {
		seen.token = response.StatusCode
		life, _ := strconv.Atoi(response.Header.Get(tokenLifeHeader)) // without it the SDK takes no token
		seen.session.expires.Store(time.Now().Add(time.Duration(life) * time.Second).UnixNano())
		seen.session.got.Store(false)
	} else {
		seen.key = response.StatusCode
	}
	made := &body{ReadCloser: response.Body, trace: seen}
	if response.StatusCode < 400 {
		made.ended = func(err error) { t.ended(began, err) }
	} else {
		t.ended(began, &Error{Kind: kindOfStatus(response.StatusCode)})
	}
	response.Body = made
	return response, nil
}

// Headers of IMDSv2.
const (
	tokenHeader     = "X-Aws-Ec2-Metadata-Token"
	tokenLifeHeader = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
)

// errToken: what the service gave as a token can be none. It is not sent.
var errToken = errors.New("the answer is not a token")

// validToken tells whether a text can be a token: one word of printable ASCII. EC2's
// have 56 characters.
func validToken(text string) bool {
	return text != "" && len(text) <= 1024 && !strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' })
}

// body records why reading an answer failed.
type body struct {
	io.ReadCloser
	trace *trace
	// ended is told once how the answer ended; nil if that is of no interest any more.
	ended func(error)
}

func (b *body) end(err error) {
	if b.ended != nil {
		b.ended(err)
		b.ended = nil
	}
}

// Close implements io.Closer.
func (b *body) Close() error {
	b.end(nil)
	return b.ReadCloser.Close()
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	switch {
	case errors.Is(err, io.EOF):
		b.end(nil)
	case err != nil:
		b.trace.err = err
		b.end(&Error{Kind: kindOfCause(err), Err: err})
	}
	return n, err
}

// linkKey tells links apart, those that had the same name one after the other too.
type linkKey struct {
	name  string
	index int
}

func (t *transport) over(path Path) *http.Transport {
	t.mu.Lock()
	defer t.mu.Unlock()
	key, name := linkKey{path.Device, path.Index}, path.Device
	if known, ok := t.byLink[key]; ok {
		return known
	}
	dialer := &net.Dialer{Timeout: time.Second, KeepAlive: -1}
	if name != "" {
		dialer.Control = func(_, _ string, raw syscall.RawConn) error {
			var bound error
			err := raw.Control(func(fd uintptr) { bound = unix.BindToDevice(int(fd), name) })
			return errors.Join(err, bound)
		}
	}
	made := &http.Transport{
		Proxy:                 nil,
		DialContext:           dialer.DialContext,
		DisableCompression:    true,
		MaxIdleConnsPerHost:   4,
		IdleConnTimeout:       idleTime,
		ResponseHeaderTimeout: requestTimeout,
	}
	if t.dial != nil {
		made.DialContext = func(ctx context.Context, network, address string) (net.Conn, error) {
			return t.dial(context.WithValue(ctx, dialKey{}, path), network, address)
		}
	}
	t.byLink[key] = made
	return made
}

type dialKey struct{}

// DialedPath is the path that a connection of [Options].Dial is for, of which only the
// device and its index count.
func DialedPath(ctx context.Context) Path {
	path, _ := ctx.Value(dialKey{}).(Path)
	return path
}

// closeIdle closes idle connections and forgets devices, so that those that went
// away leave nothing behind.
func (t *transport) closeIdle() {
	t.mu.Lock()
	defer t.mu.Unlock()
	for key, known := range t.byLink {
		known.CloseIdleConnections()
		delete(t.byLink, key)
	}
}
