package imds

import (
	"crypto/rand"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"io"
	"maps"
	mrand "math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"
)

// Headers of IMDSv2.
const (
	ttlHeader   = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	tokenHeader = "X-Aws-Ec2-Metadata-Token"
)

// MaxTTL is the longest life of a token that EC2 grants.
const MaxTTL = 21600 * time.Second

// maxLog bounds the request log, which drops the oldest requests.
const maxLog = 200_000

// Options for [New].
type Options struct {
	// Seed makes the random faults repeatable.
	Seed uint64
	// MaxTokenTTL limits the lifetime of tokens, so that a test sees an expired token
	// soon. 0 means [MaxTTL].
	MaxTokenTTL time.Duration
}

// Server is the metadata service of one instance. All methods may be called
// concurrently.
type Server struct {
	maxTTL time.Duration

	mu        sync.Mutex
	instance  Instance
	tree      tree
	overrides map[string]string
	tokens    map[string]token
	tokenSeq  int
	faults    []*Fault
	faultSeq  int
	rand      *mrand.Rand
	log       []*Request
	logSeq    int
}

type token struct {
	id      string
	expires time.Time
}

// New returns a service without an instance.
func New(opts Options) *Server {
	maxTTL := opts.MaxTokenTTL
	if maxTTL <= 0 || maxTTL > MaxTTL {
		maxTTL = MaxTTL
	}
	return &Server{
		maxTTL:    maxTTL,
		tree:      make(tree),
		overrides: make(map[string]string),
		tokens:    make(map[string]token),
		rand:      mrand.New(mrand.NewPCG(opts.Seed, 0x1d5)),
	}
}

// SetInstance sets the top-level keys.
func (s *Server) SetInstance(i Instance) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for key := range s.instance.Keys() {
		s.tree.set(key, "", false, now, 0)
	}
	for key, text := range i.Keys() {
		s.tree.set(key, text, true, now, 0)
	}
	s.instance = i
}

// PutInterface adds an ENI, or changes its metadata. It only touches keys whose value
// differs: they follow the propagation, and a value that has not propagated yet keeps
// its time.
func (s *Server) PutInterface(i Interface, p Propagation) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	dir := macsDir + "/" + i.MAC
	want, primary := i.Keys(), i.withoutSecondaries().Keys()
	listed, isNew := s.tree.appears(dir, now)
	if len(s.tree.under(dir)) == 0 {
		listed = p.Listed
	}
	for _, key := range s.tree.under(dir) {
		name := strings.TrimPrefix(key, dir+"/")
		if _, ok := want[name]; !ok && s.last(key).exists {
			s.tree.set(key, "", false, now, p.of(name))
		}
	}
	for name, text := range want {
		key := dir + "/" + name
		switch last := s.last(key); {
		case last.exists && last.text == text:
			continue
		case last.exists && isNew:
			s.tree.amend(key, text)
			continue
		}
		if !isNew {
			s.tree.set(key, text, true, now, p.of(name))
			continue
		}
		for n, step := range p.steps(name, primary[name], text, listed) {
			if n == 0 {
				s.tree.set(key, step.text, true, now, step.delay)
			} else {
				s.tree.add(key, step.text, now, step.delay)
			}
		}
	}
}

// Complete returns the moment from which every key of an ENI has its latest value, and
// whether there is one: a held key has none before its [Server.Reveal].
func (s *Server) Complete(mac string) (time.Time, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	var at time.Time
	keys := s.tree.under(macsDir + "/" + mac)
	for _, key := range keys {
		last := s.last(key)
		if last.held {
			return time.Time{}, false
		}
		if last.from.After(at) {
			at = last.from
		}
	}
	return at, len(keys) > 0
}

func (s *Server) last(key string) value {
	if vs := s.tree[key]; len(vs) > 0 {
		return vs[len(vs)-1]
	}
	return value{}
}

// RemoveInterface withdraws an ENI, at once or after its lingering time.
func (s *Server) RemoveInterface(mac string, linger time.Duration) {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	for _, key := range s.tree.under(macsDir + "/" + mac) {
		s.tree.set(key, "", false, now, linger)
	}
}

// Reveal ends the propagation of keys of an ENI, named relative to its directory;
// without names, of all its keys.
func (s *Server) Reveal(mac string, keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	dir := macsDir + "/" + mac
	if len(keys) == 0 {
		for _, key := range s.tree.under(dir) {
			s.tree.reveal(key)
		}
		return
	}
	for _, key := range keys {
		s.tree.reveal(dir + "/" + key)
	}
}

// Set gives one key the value text; the key is the path below meta-data/.
func (s *Server) Set(key, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree.set(key, text, true, time.Now(), 0)
}

// Delete removes one key.
func (s *Server) Delete(key string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.tree.set(key, "", false, time.Now(), 0)
}

// Override gives a key the value text, whatever the ENIs are, until the override is
// cleared.
func (s *Server) Override(key, text string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.overrides[key] = text
}

// ClearOverride ends the overrides of keys; without keys, all of them.
func (s *Server) ClearOverride(keys ...string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if len(keys) == 0 {
		clear(s.overrides)
	}
	for _, key := range keys {
		delete(s.overrides, key)
	}
}

// Snapshot returns every key that a client could read now, with its value.
func (s *Server) Snapshot() map[string]string {
	s.mu.Lock()
	defer s.mu.Unlock()
	now := time.Now()
	out := make(map[string]string)
	for key := range s.tree {
		if text, ok := s.tree.at(key, now); ok {
			out[key] = text
		}
	}
	maps.Copy(out, s.overrides)
	return out
}

// RevokeTokens invalidates all tokens.
func (s *Server) RevokeTokens() {
	s.mu.Lock()
	defer s.mu.Unlock()
	clear(s.tokens)
}

// AddFault adds a fault and returns its ID. Faults are tried in the order in which they
// were added; the first that applies decides.
func (s *Server) AddFault(f Fault) (int, error) {
	if err := f.Check(); err != nil {
		return 0, err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faultSeq++
	f.ID, f.Hits = s.faultSeq, 0
	s.faults = append(s.faults, &f)
	return f.ID, nil
}

// ClearFault ends one fault; it reports whether there was one with that ID.
func (s *Server) ClearFault(id int) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	n := len(s.faults)
	s.faults = slices.DeleteFunc(s.faults, func(f *Fault) bool { return f.ID == id })
	return len(s.faults) < n
}

// ClearFaults ends all faults.
func (s *Server) ClearFaults() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.faults = nil
}

// Faults returns the active faults.
func (s *Server) Faults() []Fault {
	s.mu.Lock()
	defer s.mu.Unlock()
	out := make([]Fault, len(s.faults))
	for n, f := range s.faults {
		out[n] = *f
	}
	return out
}

// fault returns the fault for a request.
func (s *Server) fault(key string) (Fault, bool) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for n, f := range s.faults {
		if !f.matches(key) {
			continue
		}
		if f.Probability > 0 && s.rand.Float64() >= f.Probability {
			continue
		}
		f.Hits++
		hit := *f
		if f.Count > 0 && f.Hits >= f.Count {
			s.faults = slices.Delete(s.faults, n, n+1)
		}
		return hit, true
	}
	return Fault{}, false
}

// answer is the answer of the service without faults.
type answer struct {
	status int
	body   string
	ttl    int // seconds left of the token, 0 for none
}

// ServeHTTP implements [http.Handler].
func (s *Server) ServeHTTP(w http.ResponseWriter, r *http.Request) {
	key := keyOf(r.URL.Path)
	entry := s.begin(r, key)
	fault, hit := s.fault(key)
	if hit {
		s.note(entry, fault.String(), "", 0)
		if fault.Delay > 0 {
			select {
			case <-time.After(fault.Delay):
			case <-r.Context().Done():
				panic(http.ErrAbortHandler) // a return would send an empty 200
			}
		}
	}
	if !hit || fault.Effect == Delay {
		a := s.answer(r, key, entry)
		s.note(entry, "", "", a.status)
		write(w, a)
		return
	}
	s.fail(w, r, fault, key, entry)
}

// fail answers a request according to a fault.
func (s *Server) fail(w http.ResponseWriter, r *http.Request, fault Fault, key string, entry *Request) {
	switch fault.Effect {
	case Status:
		s.note(entry, "", "", fault.Status)
		write(w, answer{status: fault.Status})
		return
	case Hang:
		<-r.Context().Done()
		panic(http.ErrAbortHandler)
	case Reset:
		reset(w)
		return
	}
	// A token still has its header: only the effect changes the answer.
	a := s.answer(r, key, entry)
	switch fault.Effect {
	case Interim:
		hijacked(w, func(conn net.Conn) {
			for err := error(nil); err == nil; {
				_, err = io.WriteString(conn, "HTTP/1.1 103 Early Hints\r\n\r\n")
			}
		})
		return
	case Upgrade:
		s.note(entry, "", "", http.StatusSwitchingProtocols)
		hijacked(w, func(conn net.Conn) {
			send(conn, "HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n")
			_, _ = io.Copy(io.Discard, conn) // until the client disconnects
		})
		return
	case Redirect:
		s.note(entry, "", "", http.StatusFound)
		w.Header().Set("Location", "http://192.0.2.1/latest/meta-data/")
		w.WriteHeader(http.StatusFound)
		return
	}
	s.note(entry, "", "", a.status)
	switch fault.Effect {
	case Empty, HTML, Body, Family, Inject, Huge, Unknown:
		a.status, a.body = http.StatusOK, fault.altered(a.body)
		s.note(entry, "", "", a.status)
		if fault.Effect == HTML {
			w.Header().Set("Content-Type", "text/html")
		}
		write(w, a)
	case Header:
		w.Header().Set("X-Padding", strings.Repeat("x", hugeSize))
		write(w, a)
	case Partial:
		a.status, a.body = http.StatusPartialContent, a.body[:len(a.body)/2]
		s.note(entry, "", "", a.status)
		write(w, a)
	case Surplus:
		hijacked(w, func(conn net.Conn) { send(conn, raw(a)+raw(answer{status: http.StatusOK, body: "0", ttl: a.ttl})) })
	case Truncate:
		w.Header().Set("Content-Type", "text/plain")
		w.Header().Set("Content-Length", strconv.Itoa(len(a.body)+1))
		w.WriteHeader(a.status)
		send(w, a.body[:len(a.body)/2])
		_ = http.NewResponseController(w).Flush() // see send
		panic(http.ErrAbortHandler)
	case Endless:
		if a.ttl > 0 {
			w.Header().Set(ttlHeader, strconv.Itoa(a.ttl))
		}
		lines := strings.Repeat(a.body+"\n", 1+(32<<10)/(len(a.body)+1))
		for err := error(nil); err == nil; {
			_, err = io.WriteString(w, lines)
		}
	case Drip:
		drip(w, r, a)
	}
}

// drip sends a byte of an answer from time to time.
func drip(w http.ResponseWriter, r *http.Request, a answer) {
	w.Header().Set("Content-Length", strconv.Itoa(len(a.body)+dripBytes))
	w.WriteHeader(a.status)
	next := time.NewTicker(dripTime)
	defer next.Stop()
	for _, one := range a.body + strings.Repeat("\n", dripBytes) {
		send(w, string(one))
		if http.NewResponseController(w).Flush() != nil {
			break // the client has disconnected
		}
		select {
		case <-next.C:
		case <-r.Context().Done():
			panic(http.ErrAbortHandler)
		}
	}
}

// raw is an answer in its wire format.
func raw(a answer) string {
	return fmt.Sprintf("HTTP/1.1 %d %s\r\nContent-Type: text/plain\r\nContent-Length: %d\r\n%s: %d\r\n\r\n%s",
		a.status, http.StatusText(a.status), len(a.body), ttlHeader, a.ttl, a.body)
}

// hijacked passes the connection of a request to f, and then closes it.
func hijacked(w http.ResponseWriter, f func(net.Conn)) {
	conn, _, err := http.NewResponseController(w).Hijack()
	if err != nil {
		panic(http.ErrAbortHandler)
	}
	defer conn.Close()
	f(conn)
}

// reset closes the connection with a RST: SO_LINGER of 0 makes close do that.
func reset(w http.ResponseWriter) {
	hijacked(w, func(conn net.Conn) {
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it fails if the client has already disconnected
		}
	})
}

func write(w http.ResponseWriter, a answer) {
	h := w.Header()
	h.Set("Server", "EC2ws")
	body := a.body
	if a.status >= 400 {
		h.Set("Content-Type", "text/html")
		body = errorPage(a.status)
	} else {
		if h.Get("Content-Type") == "" {
			h.Set("Content-Type", "text/plain")
		}
		h.Set("Accept-Ranges", "none")
	}
	if a.ttl > 0 {
		h.Set(ttlHeader, strconv.Itoa(a.ttl))
	}
	h.Set("Content-Length", strconv.Itoa(len(body)))
	w.WriteHeader(a.status)
	send(w, body)
}

// send writes a body. An error means that the client has disconnected, and is ignored.
func send(w io.Writer, body string) { _, _ = io.WriteString(w, body) }

// version matches the dated trees, which have the same content as latest here.
var version = regexp.MustCompile(`^(latest|1\.0|20\d\d-\d\d-\d\d)$`)

// split splits a URL path into its version and the rest.
func split(urlPath string) (rest string, ok bool) {
	v, rest, _ := strings.Cut(strings.TrimPrefix(urlPath, "/"), "/")
	return rest, version.MatchString(v)
}

// keyOf returns the name of a URL path in faults and the log.
func keyOf(urlPath string) string {
	rest, ok := split(urlPath)
	if !ok {
		return urlPath
	}
	if rest == "api/token" {
		return TokenKey
	}
	if rest == "meta-data" {
		return ""
	}
	if below, ok := strings.CutPrefix(rest, "meta-data/"); ok {
		return strings.TrimSuffix(below, "/")
	}
	return urlPath
}

// answer returns the answer of the service without faults.
func (s *Server) answer(r *http.Request, key string, entry *Request) answer {
	if key == TokenKey {
		return s.answerToken(r, entry)
	}
	if r.Method != http.MethodGet && r.Method != http.MethodHead {
		return answer{status: http.StatusMethodNotAllowed}
	}
	s.mu.Lock()
	t, ok := s.tokens[r.Header.Get(tokenHeader)]
	s.mu.Unlock()
	left := time.Until(t.expires)
	if ok {
		s.note(entry, "", t.id, 0)
	}
	if !ok || left <= 0 {
		return answer{status: http.StatusUnauthorized}
	}
	body, ok := s.read(r.URL.Path)
	if !ok {
		return answer{status: http.StatusNotFound, ttl: seconds(left)}
	}
	return answer{status: http.StatusOK, body: body, ttl: seconds(left)}
}

func seconds(d time.Duration) int {
	return int((d + time.Second - 1) / time.Second)
}

func (s *Server) answerToken(r *http.Request, entry *Request) answer {
	if r.Method != http.MethodPut {
		return answer{status: http.StatusMethodNotAllowed}
	}
	if _, forwarded := r.Header["X-Forwarded-For"]; forwarded {
		return answer{status: http.StatusForbidden}
	}
	ttl, err := strconv.Atoi(r.Header.Get(ttlHeader))
	if err != nil || ttl < 1 || ttl > int(MaxTTL/time.Second) {
		return answer{status: http.StatusBadRequest}
	}
	life := min(time.Duration(ttl)*time.Second, s.maxTTL)
	raw := make([]byte, 40)
	rand.Read(raw) // never fails: crypto/rand
	text := base64.URLEncoding.EncodeToString(raw)
	s.mu.Lock()
	s.tokenSeq++
	t := token{id: fmt.Sprintf("t%d", s.tokenSeq), expires: time.Now().Add(life)}
	s.tokens[text] = t
	maps.DeleteFunc(s.tokens, func(_ string, t token) bool { return time.Since(t.expires) > time.Minute })
	s.mu.Unlock()
	s.note(entry, "", t.id, 0)
	return answer{status: http.StatusOK, body: text, ttl: seconds(life)}
}

// read returns the body of a path, for a client with a token.
func (s *Server) read(urlPath string) (string, bool) {
	if urlPath == "/" || urlPath == "" {
		return "2021-01-03\n2021-03-23\n2021-07-15\n2022-09-24\nlatest", true
	}
	rest, ok := split(urlPath)
	if !ok {
		return "", false
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	switch strings.TrimSuffix(rest, "/") {
	case "":
		return "dynamic\nmeta-data", true
	case "dynamic":
		return "instance-identity/", true
	case "dynamic/instance-identity":
		return "document", true
	case "dynamic/instance-identity/document":
		return s.instance.document(), true
	}
	below, ok := strings.CutPrefix(rest, "meta-data")
	if !ok || below != "" && below[0] != '/' {
		return "", false
	}
	key, slash, ok := cleanKey(below)
	if !ok {
		return "", false
	}
	view := reader{tree: s.tree, overrides: s.overrides, now: time.Now()}
	if text, ok := view.leaf(key); ok && !slash {
		return text, true
	}
	names, ok := view.list(key)
	return strings.Join(names, "\n"), ok
}

// document renders the instance identity document.
func (i Instance) document() string {
	doc := map[string]any{
		"version":          "2017-09-30",
		"accountId":        i.AccountID,
		"architecture":     i.Architecture,
		"availabilityZone": i.Zone,
		"imageId":          i.AMI,
		"instanceId":       i.ID,
		"instanceType":     i.Type,
		"region":           i.Region,
		"privateIp":        nil,
	}
	if i.LocalIPv4.IsValid() {
		doc["privateIp"] = i.LocalIPv4.String()
	}
	text, _ := json.MarshalIndent(doc, "", "  ") // strings and nil only: cannot fail
	return string(text)
}

// errorPage is the body of EC2's errors.
func errorPage(status int) string {
	title := fmt.Sprintf("%d - %s", status, http.StatusText(status))
	return `<?xml version="1.0" encoding="iso-8859-1"?>
<!DOCTYPE html PUBLIC "-//W3C//DTD XHTML 1.0 Transitional//EN"
	"http://www.w3.org/TR/xhtml1/DTD/xhtml1-transitional.dtd">
<html xmlns="http://www.w3.org/1999/xhtml" xml:lang="en" lang="en">
 <head>
  <title>` + title + `</title>
 </head>
 <body>
  <h1>` + title + `</h1>
 </body>
</html>
`
}

// portalPage is a page of something other than the metadata service.
const portalPage = `<!DOCTYPE html>
<html><head><title>Sign in</title></head>
<body><p>Please sign in to use this network.</p></body></html>
`

// Request is one line of the request log.
type Request struct {
	Seq       int            `json:"seq"` // from 1, never used again
	Time      time.Time      `json:"time"`
	Method    string         `json:"method"`
	Path      string         `json:"path"`
	Key       string         `json:"key"`             // below meta-data/, or TokenKey
	Status    int            `json:"status"`          // 0 while unanswered, and for ever after a hang or reset
	Fault     string         `json:"fault,omitempty"` // what was done to it
	Remote    netip.AddrPort `json:"remote"`
	Local     netip.AddrPort `json:"local"`
	UserAgent string         `json:"userAgent"`
	Token     string         `json:"token,omitempty"` // t1, t2, …: which token was issued or shown
}

// begin adds a request to the log.
func (s *Server) begin(r *http.Request, key string) *Request {
	entry := &Request{
		Time: time.Now(), Method: r.Method, Path: r.URL.Path, Key: key, UserAgent: r.UserAgent(),
	}
	entry.Remote, _ = netip.ParseAddrPort(r.RemoteAddr)
	if local, ok := r.Context().Value(http.LocalAddrContextKey).(net.Addr); ok {
		entry.Local, _ = netip.ParseAddrPort(local.String())
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.logSeq++
	entry.Seq = s.logSeq
	if len(s.log) >= maxLog {
		s.log = slices.Delete(s.log, 0, maxLog/10)
	}
	s.log = append(s.log, entry)
	return entry
}

// note completes a log entry.
func (s *Server) note(entry *Request, fault, token string, status int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if fault != "" {
		entry.Fault = fault
	}
	if token != "" {
		entry.Token = token
	}
	if status != 0 {
		entry.Status = status
	}
}

// Requests returns the log, oldest first.
func (s *Server) Requests() []Request {
	return s.RequestsSince(time.Time{})
}

// RequestsSince returns the requests that came at t or later.
func (s *Server) RequestsSince(t time.Time) []Request {
	s.mu.Lock()
	defer s.mu.Unlock()
	from, _ := slices.BinarySearchFunc(s.log, t, func(r *Request, t time.Time) int { return r.Time.Compare(t) })
	out := make([]Request, 0, len(s.log)-from)
	for _, r := range s.log[from:] {
		out = append(out, *r)
	}
	return out
}

// ResetRequests empties the log; the sequence goes on.
func (s *Server) ResetRequests() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.log = nil
}

// Counters counts requests.
type Counters struct {
	Total    int            `json:"total"`    // all requests, for tokens too
	Tokens   int            `json:"tokens"`   // requests for a token
	Errors   int            `json:"errors"`   // answered with 400 or more, or not at all
	NotFound int            `json:"notFound"` // of these, 404
	ByKey    map[string]int `json:"byKey"`
}

// Count counts requests, such as those of [Server.RequestsSince].
func Count(requests []Request) Counters {
	c := Counters{ByKey: make(map[string]int)}
	for _, r := range requests {
		c.Total++
		c.ByKey[r.Key]++
		if r.Key == TokenKey {
			c.Tokens++
		}
		if r.Status >= 400 || r.Status == 0 {
			c.Errors++
		}
		if r.Status == http.StatusNotFound {
			c.NotFound++
		}
	}
	return c
}
