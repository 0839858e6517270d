package metadata

import (
	"errors"
	"io"
	"net"
	"net/http"
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

	mu     sync.Mutex
	byLink map[linkKey]*http.Transport
}

// RoundTrip implements http.RoundTripper.
func (t *transport) RoundTrip(request *http.Request) (*http.Response, error) {
	seen, ok := request.Context().Value(traceKey{}).(*trace)
	if !ok {
		return nil, errors.New("a metadata request without a path")
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
	t.sent.Add(1)
	seen.atToken = request.Method == http.MethodPut
	response, err := t.over(seen.path).RoundTrip(request)
	if err != nil {
		seen.err = err
		t.failed.Add(1)
		return nil, err
	}
	if response.StatusCode >= 400 && response.StatusCode != http.StatusNotFound {
		t.failed.Add(1)
	}
	if seen.atToken {
		seen.token = response.StatusCode
	} else {
		seen.key = response.StatusCode
	}
	response.Body = &body{ReadCloser: response.Body, trace: seen}
	return response, nil
}

// body records why reading an answer failed.
type body struct {
	io.ReadCloser
	trace *trace
}

func (b *body) Read(p []byte) (int, error) {
	n, err := b.ReadCloser.Read(p)
	if err != nil && !errors.Is(err, io.EOF) {
		b.trace.err = err
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
		IdleConnTimeout:       5 * time.Second,
		ResponseHeaderTimeout: requestTimeout,
	}
	t.byLink[key] = made
	return made
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
