package metadata

import (
	"context"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"net/http"
	"net/url"
	"os"
	"slices"
	"sync"
	"sync/atomic"
	"syscall"
	"time"

	"github.com/aws/aws-sdk-go-v2/aws"
	"github.com/aws/aws-sdk-go-v2/aws/ratelimit"
	"github.com/aws/aws-sdk-go-v2/aws/retry"
	"github.com/aws/aws-sdk-go-v2/feature/ec2/imds"
	"github.com/aws/smithy-go"
)

// The two well-known base URLs of the service. The IPv6 one is off by default in
// EC2.
const (
	EndpointIPv4 = "http://169.254.169.254"
	EndpointIPv6 = "http://[fd00:ec2::254]"
)

const (
	// requestTimeout bounds the reading of one key on one path, with that of a token. The service
	// answers in a few milliseconds.
	requestTimeout = 2 * time.Second
	// deadTime is how long a path that gave no answer is tried after all others.
	deadTime = 5 * time.Minute
	// probeTime is how long what the routing tables say holds.
	probeTime = time.Second
)

// Path is one way to the service.
type Path struct {
	// Device is the link that requests are bound to (SO_BINDTODEVICE), or empty
	// for whatever the main routing table says. Index is its index: a socket stays
	// bound to the link, not to the name.
	Device string
	Index  int
	// Endpoint is the base URL.
	Endpoint string
	// Socket is that of systemd-imdsd in place of an endpoint. It is asked for the key,
	// over the link of Index or, if that is 0, over one of its choice; but only where
	// direct access proves to be prohibited (D9).
	Socket string
}

// String names the path in messages.
func (p Path) String() string {
	if p.Socket != "" {
		return "systemd-imdsd at " + p.Socket
	}
	if p.Device == "" {
		return p.Endpoint
	}
	return p.Endpoint + " over " + p.Device
}

// Options of a [Client].
type Options struct {
	// UserAgent is added to the User-Agent header, "ec2netd/VERSION".
	UserAgent string
	// Timeout of one request on one path, 2 s if zero.
	Timeout time.Duration
	// Dial makes connections in place of the network, for a service in the same
	// process; nil for the network. [DialedPath] tells it the path.
	Dial func(ctx context.Context, network, address string) (net.Conn, error)
	// Ignored is told, once for each, of names in the listings of the service that this client does
	// not know and therefore ignores: what it is, and the name, which is any printable text of a
	// bounded length. Nil for not to care. Several goroutines may call it.
	Ignored func(what, name string)
}

// Client reads keys. One token serves all paths: EC2 issues it for the instance,
// not for an ENI. It may be used by several goroutines.
type Client struct {
	// session holds the token. It is replaced to get rid of one that is of no use.
	session atomic.Pointer[session]
	// renewing is held by the one reader that may fetch a token. The SDK has the others
	// wait too, but behind a lock that knows no deadline.
	renewing  chan struct{}
	transport *transport
	timeout   time.Duration
	answered  atomic.Pointer[Path]
	ignored   ignored
	helpers   helpers
	// instance is the ID of the instance, nil until it is known.
	instance atomic.Pointer[string]

	mu sync.Mutex
	// dead are the paths that gave no answer, and since when; lived are those over which a key was
	// read, and when last.
	dead, lived map[Path]time.Time
	// locked is when direct access was found to be prohibited last.
	locked time.Time
	imdsd  imdsd
	// prohibited tells whether the routing tables prohibit direct access; it was asked last
	// at probed, and said barred.
	prohibited func() bool
	probed     time.Time
	barred     bool
}

// NewClient returns a client. It does not connect.
func NewClient(options Options) *Client {
	if options.Timeout == 0 {
		options.Timeout = requestTimeout
	}
	t := &transport{idle: make(map[connKey][]*conn), agent: options.UserAgent, dial: options.Dial}
	c := &Client{transport: t, timeout: options.Timeout, renewing: make(chan struct{}, 1), dead: make(map[Path]time.Time), lived: make(map[Path]time.Time)}
	c.ignored.told, c.ignored.to = make(map[string]bool), options.Ignored
	c.imdsd.busy = make(chan struct{}, 1)
	c.helpers.work, c.helpers.stop = make(chan func()), make(chan struct{})
	c.prohibited = prohibited
	if options.Dial != nil {
		c.prohibited = func() bool { return false }
	}
	c.session.Store(newSession(t))
	return c
}

// session is a client of the SDK, which keeps a token for its life, and what is known
// of that token.
type session struct {
	sdk *imds.Client
	// expires is when the token's life ends, in nanoseconds of the epoch. got: there is
	// one that a request can be made with.
	expires atomic.Int64
	got     atomic.Bool
}

// usable tells whether there is a token that needs no renewal.
func (s *session) usable() bool {
	return s.got.Load() && time.Now().UnixNano() < s.expires.Load()
}

func newSession(t *transport) *session {
	return &session{sdk: imds.New(imds.Options{
		// The path of the request decides the real endpoint, see transport.
		Endpoint:          EndpointIPv4,
		ClientEnableState: imds.ClientEnabled,
		EnableFallback:    aws.FalseTernary,
		// The SDK's retry quota would block the client after some 50 failures, and
		// retries are for whoever knows about paths and back-off.
		Retryer: retry.NewStandard(func(o *retry.StandardOptions) {
			o.MaxAttempts = 1
			o.RateLimiter = ratelimit.None
		}),
		HTTPClient: &http.Client{
			Transport: t,
			CheckRedirect: func(*http.Request, []*http.Request) error {
				return errors.New("the metadata service answered with a redirect, which is refused")
			},
		},
	})}
}

// Requests returns how many requests were sent, tokens included, and how many of
// them failed. A 404 is no failure.
func (c *Client) Requests() (sent, failed uint64) {
	return c.transport.sent.Load(), c.transport.failed.Load()
}

// Results returns how many requests have ended, by result: "ok" or the name of a [Kind],
// with zeros; and how long all of them took together. A request that was given up
// because its reader was does not count.
func (c *Client) Results() (counts map[string]uint64, took time.Duration) {
	counts = make(map[string]uint64)
	for i := range c.transport.results {
		counts[resultName(i)] = c.transport.results[i].Load()
	}
	return counts, time.Duration(c.transport.took.Load())
}

// Answered names the endpoint that gave an answer last, empty while none has.
func (c *Client) Answered() string {
	if path := c.answered.Load(); path != nil {
		return path.Endpoint + path.Socket // it has one of them
	}
	return ""
}

// CloseIdle closes connections that no request uses, and ends goroutines that wait for one.
func (c *Client) CloseIdle() {
	c.transport.closeIdle()
	c.helpers.dismiss()
}

// get reads one key below meta-data/ over the paths in order: the next one is tried
// when one gives no HTTP answer at all. It returns the body and the path that
// answered, also with an error status. Proven is a path that has just answered for
// another key: where it falls silent it is the key that hangs more likely than the
// path, so that one other path is tried and not all of them.
func (c *Client) get(ctx context.Context, paths []Path, key string, proven Path) (string, Path, error) {
	var failure error
	silent, viaImdsd := 0, false
	for i, path := range paths {
		if path.Socket != "" && !c.isLocked() {
			continue
		}
		// A second one that is silent may be so because the service is slow.
		leaves := silent == 0 && c.answersAmong(paths[i+1:])
		body, asked, err := c.getOver(ctx, path, key, leaves)
		if err == nil {
			c.answered.Store(&path)
			c.alive(path)
			c.mu.Lock()
			c.lived[path] = time.Now()
			c.mu.Unlock()
			return body, path, nil
		}
		if KindOf(err) == Disabled && path.Endpoint == EndpointIPv6 && failure != nil {
			// It has a switch of its own, which is off by default: how the other endpoint
			// fails says more.
			continue
		}
		// Why the way that is left fails says more than that the other is closed.
		direct := path.Socket == ""
		closed := (direct && viaImdsd && locked(err)) || (!direct && absent(err))
		if failure == nil || !closed {
			failure, viaImdsd = err, !direct && !closed
		}
		if ctx.Err() != nil {
			break
		}
		switch KindOf(err) {
		case Timeout:
			silent++
		case Unreachable, Reset:
		case Disabled:
			c.alive(path)
			if path.Endpoint == EndpointIPv6 {
				continue // as above, where the other comes later
			}
			return "", path, err
		case ServerError:
			// Over another link systemd-imdsd may have more luck.
			if path.Socket != "" && i+1 < len(paths) && paths[i+1].Socket != "" {
				continue
			}
			c.alive(path)
			return "", path, err
		default:
			c.alive(path)
			return "", path, err
		}
		if asked && path != proven {
			c.died(path, err)
		}
		if proven != (Path{}) && silent == 2 {
			break
		}
	}
	if failure == nil {
		failure = &Error{Key: key, Kind: Unreachable, Err: errors.New("no link has an address to ask from yet")}
	}
	return "", Path{}, failure
}

// answersAmong tells whether one of the paths is over a link and has lately answered: the endpoint of
// IPv6, which is off by default, never does.
func (c *Client) answersAmong(paths []Path) bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	return slices.ContainsFunc(paths, func(path Path) bool {
		at, answered := c.lived[path]
		return path.Socket == "" && answered && time.Since(at) < deadTime
	})
}

// order puts the paths that lately gave no answer last: a dead one costs a request
// and its time once in a while, not at each read.
func (c *Client) order(paths []Path) []Path {
	prohibited := slices.ContainsFunc(paths, func(p Path) bool { return p.Socket != "" }) && c.isBarred()
	c.mu.Lock()
	defer c.mu.Unlock()
	isLocked := prohibited || c.lockedLately()
	var living, dead, sockets []Path
	for _, path := range paths {
		since, died := c.dead[path]
		switch {
		case died && time.Since(since) < deadTime:
			dead = append(dead, path)
		case path.Socket != "":
			sockets = append(sockets, path)
		default:
			living = append(living, path)
		}
	}
	switch {
	case prohibited:
		return slices.Concat(sockets, living, dead)
	case isLocked:
		return slices.Concat(living, sockets, dead)
	}
	return slices.Concat(living, dead, sockets)
}

func (c *Client) died(path Path, err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	// Those of links that are gone go too.
	for _, paths := range []map[Path]time.Time{c.dead, c.lived} {
		maps.DeleteFunc(paths, func(_ Path, at time.Time) bool { return time.Since(at) >= deadTime })
	}
	c.dead[path] = time.Now()
	if path.Socket == "" && locked(err) {
		c.locked = time.Now()
	}
}

// isLocked tells whether direct access is prohibited, or was so when it was tried last.
func (c *Client) isLocked() bool {
	if c.isBarred() {
		return true
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return c.lockedLately()
}

// isBarred is prohibited, asked once for what is read at the same time.
func (c *Client) isBarred() bool {
	c.mu.Lock()
	defer c.mu.Unlock()
	if now := time.Now(); now.Sub(c.probed) >= probeTime {
		c.probed, c.barred = now, c.prohibited()
	}
	return c.barred
}

// lockedLately tells what a try has shown. c.mu is held.
func (c *Client) lockedLately() bool {
	return !c.locked.IsZero() && time.Since(c.locked) < deadTime
}

func (c *Client) alive(path Path) {
	c.mu.Lock()
	defer c.mu.Unlock()
	delete(c.dead, path)
	if path.Socket == "" {
		c.locked = time.Time{}
	}
}

// getOver reads one key over one path. Leaves: it gives up soon if the path is silent. It tells
// whether anything was asked over it: a reader may have waited in vain for the token of another.
func (c *Client) getOver(ctx context.Context, path Path, key string, leaves bool) (body string, asked bool, err error) {
	if path.Socket != "" {
		c.transport.sent.Add(1)
		began := time.Now()
		body, err = c.imdsd.get(ctx, path, key)
		c.transport.ended(began, err)
		if err != nil && KindOf(err) != NotFound {
			c.transport.failed.Add(1)
		}
		return body, !absent(err), err
	}
	trace := trace{path: path, dial: dialTimeout, answer: c.timeout}
	if leaves {
		trace.dial = shortDial
		if !c.transport.isSlow() {
			trace.answer = min(trace.answer, shortAnswer)
		}
	}
	ctx, cancel := context.WithTimeout(ctx, c.timeout)
	defer cancel()
	err = c.ask(ctx, &trace, key)
	if err != nil && refused(trace.key) && trace.token == 0 {
		// It may be the token of an earlier read that is refused, or the service was
		// switched off meanwhile: a new one tells (D12).
		trace.key, trace.err = 0, nil
		err = c.ask(ctx, &trace, key)
	}
	if err != nil {
		return "", trace.asked, c.classify(key, path, &trace, err)
	}
	return trace.body, true, nil
}

// refused reports whether a status may be due to the token.
func refused(status int) bool {
	return status == http.StatusUnauthorized || status == http.StatusForbidden
}

// ask has the SDK read a key, and fetch a token first where that is needed. A token
// that was refused, or that is none, is given up: the SDK would keep it
// for its life (D1). One that the service has just given is kept where it forbids the
// key.
func (c *Client) ask(ctx context.Context, trace *trace, key string) error {
	trace.session = c.session.Load()
	if !trace.session.usable() {
		trace.atToken = true
		select {
		case c.renewing <- struct{}{}:
		case <-ctx.Done():
			return ctx.Err()
		}
		// Whoever waits goes on as soon as there is one: the key may hang.
		trace.renewed = sync.OnceFunc(func() { <-c.renewing })
		defer trace.renewed()
		if trace.session = c.session.Load(); trace.session.usable() {
			trace.renewed()
		}
	}
	_, err := trace.session.sdk.GetMetadata(context.WithValue(ctx, traceKey{}, trace), &imds.GetMetadataInput{Path: key})
	if err != nil && trace.err == nil {
		trace.err = ctx.Err() // the SDK hides it where it fetches a token
	}
	busy := trace.key == http.StatusTooManyRequests || trace.key >= http.StatusInternalServerError
	stale := trace.key == http.StatusUnauthorized || (trace.key == http.StatusForbidden && trace.token == 0)
	if err != nil && (stale || (!trace.session.got.Load() && !busy)) {
		c.session.CompareAndSwap(trace.session, newSession(c.transport))
	}
	return err
}

// SetInstance tells the client the ID of the instance, for the commands that its errors advise.
// [Client.ReadInstance] sets it too. An empty ID changes nothing.
func (c *Client) SetInstance(id string) {
	if id != "" {
		c.instance.Store(&id)
	}
}

// classify turns a failure of the SDK into an Error. The SDK hides why a token was
// refused or a dial failed, so the transport records it in the trace.
func (c *Client) classify(key string, path Path, trace *trace, err error) error {
	e := &Error{Key: key, Kind: Unreachable, Status: trace.key}
	if trace.atToken {
		e.Key, e.Status = "token", trace.token
	}
	if e.Status != 0 && e.Status != http.StatusOK {
		e.Kind = kindOfStatus(e.Status, trace.atToken)
		e.Err = fmt.Errorf("%s answered %d %s", path, e.Status, http.StatusText(e.Status))
		if e.Kind == Disabled {
			e.Err = fmt.Errorf("%w: %s", e.Err, c.enable(path))
		}
		if e.Status == http.StatusUnauthorized && !trace.atToken {
			e.Err = fmt.Errorf("%w to a token that it had just given", e.Err)
		}
		return e
	}
	cause := err
	if trace.err != nil {
		cause = trace.err
	}
	if errors.Is(cause, errToken) {
		e.Key, e.Kind, e.Status = "token", Malformed, trace.token
		e.Err = fmt.Errorf("%s: %w", path, errToken)
		return e
	}
	e.Kind = kindOfCause(cause)
	switch e.Kind {
	case Timeout:
		e.Err = fmt.Errorf("%s did not answer in time", path)
		return e
	case Reset:
		e.Err = fmt.Errorf("%s ended the connection within the answer: %w", path, cause)
		return e
	case Malformed:
		e.Err = fmt.Errorf("%s: %w", path, cause)
		return e
	}
	e.Err = fmt.Errorf("%s: %w", path, cause)
	if errors.Is(cause, syscall.EACCES) {
		e.Err = fmt.Errorf("%w: direct access is prohibited here%s", e.Err, aroundLock())
	}
	return e
}

// aroundLock says what to do where direct access is prohibited.
func aroundLock() string {
	if _, err := os.Stat("/usr/lib/systemd/system/" + imdsdUnit); err != nil {
		return ", and this systemd has no " + imdsdUnit + ", by which it would be read"
	}
	return ": systemctl enable --now " + imdsdUnit + ", so that systemd-imdsd can be asked"
}

// kindOfCause is the kind of a failure without an answer.
func kindOfCause(cause error) Kind {
	var canceled *smithy.CanceledError
	var network net.Error
	var protocol *protocolError
	switch {
	case errors.As(cause, &protocol):
		return Malformed
	case errors.Is(cause, context.DeadlineExceeded), errors.Is(cause, os.ErrDeadlineExceeded),
		errors.As(cause, &canceled), errors.As(cause, &network) && network.Timeout():
		return Timeout
	case errors.Is(cause, syscall.ECONNRESET), errors.Is(cause, io.EOF), errors.Is(cause, io.ErrUnexpectedEOF), errors.Is(cause, syscall.EPIPE):
		return Reset
	}
	return Unreachable
}

// kindOfStatus is the kind of an answer that is not 200, to the request for a token or for
// a key.
func kindOfStatus(status int, token bool) Kind {
	switch {
	case token && status == http.StatusForbidden:
		return Disabled
	case token && status == http.StatusNotFound:
		return ServerError // it says nothing of the key (D3)
	case status == http.StatusNotFound:
		return NotFound
	case refused(status):
		return Denied
	case status == http.StatusTooManyRequests:
		return Throttled
	}
	return ServerError
}

// enable says what a 403 for a token means and what to do: EC2 gives it where the service
// is switched off for the instance (AWS: "the request is not allowed or the IMDS is turned
// off", of which the first is for proxies, and this client passes none).
func (c *Client) enable(path Path) string {
	id, option := "INSTANCE-ID", ""
	if known := c.instance.Load(); known != nil {
		id = *known
	}
	command := "aws ec2 modify-instance-metadata-options --instance-id " + id + " --http-endpoint enabled"
	if path.Endpoint == EndpointIPv6 {
		option = " --http-protocol-ipv6 enabled" // it has a switch of its own
	}
	return "the metadata service is switched off for this instance; switch it on with: " + command + option
}

// trace goes with a read's context: the path that it shall take, and what the
// transport saw.
type trace struct {
	path Path
	// dial bounds the time for a connection, and answer that for one request with its connection.
	dial, answer time.Duration
	// token and key are the HTTP status of the two requests, 0 for no answer.
	token, key int
	// atToken: the request for a token came last.
	atToken bool
	// asked: a request was sent.
	asked bool
	// body is what the key holds.
	body string
	err  error
	// session whose token is used.
	session *session
	// renewed lets others use it; nil for a request that fetches none.
	renewed func()
}

type traceKey struct{}

// counters of what was sent, and of how it ended.
type counters struct {
	sent, failed atomic.Uint64
	// results has what went well first, and then each Kind.
	results [Disabled + 2]atomic.Uint64
	// took is in nanoseconds.
	took atomic.Int64
}

// ended counts a request with its result, which is an [Error] or nil.
func (c *counters) ended(began time.Time, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	i := 0
	if err != nil {
		i = int(KindOf(err)) + 1
	}
	c.results[i].Add(1)
	c.took.Add(int64(time.Since(began)))
}

func resultName(i int) string {
	if i == 0 {
		return "ok"
	}
	return Kind(i - 1).String()
}

func target(endpoint string, u *url.URL) (*url.URL, error) {
	base, err := url.Parse(endpoint)
	if err != nil {
		return nil, err
	}
	to := *u
	to.Scheme, to.Host = base.Scheme, base.Host
	if base.Path != "" && base.Path != "/" {
		to.Path = base.Path + to.Path
	}
	return &to, nil
}
