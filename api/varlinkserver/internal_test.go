package varlinkserver

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/api"
	"ec2netd/api/apitest"
)

func TestClassOf(t *testing.T) { // J1
	for uid, want := range map[uint32]class{
		0: root, 1: system, 999: system, 1000: ordinary, 60000: ordinary, 61183: ordinary, 61184: system, 65519: system,
		65520: ordinary, 65534: ordinary, 100000: ordinary, 1<<32 - 2: ordinary,
	} {
		if got := classOf(uid); got != want {
			t.Errorf("UID %d is of class %d, want %d", uid, got, want)
		}
	}
}

// J1: a user cannot use the share of another, nor a class the share of a higher one.
func TestPool(t *testing.T) {
	p := newPool(32) // 16 for ordinary users, 2 each; 24 with system users, 3 each
	take := func(uid uint32, want int) {
		t.Helper()
		got := 0
		for got < 100 && p.take(uid, 1) {
			got++
		}
		if got != want {
			t.Errorf("UID %d got %d, want %d", uid, got, want)
		}
	}
	for uid := range uint32(8) {
		take(1000+uid, 2)
	}
	take(2000, 0)
	for uid := range uint32(2) {
		take(100+uid, 3)
	}
	take(102, 2)
	take(103, 0)
	take(0, 100)
	p.give(1003, 1)
	take(1000, 0)
	take(103, 1) // system users can also use what an ordinary user returned
	take(2000, 0)
	for uid := range uint32(8) {
		for p.users[1000+uid] > 0 {
			p.give(1000+uid, 1)
		}
	}
	take(2000, 2)
	if p.take(2001, 3) || !p.take(2001, 2) {
		t.Error("an amount is not taken as a whole")
	}
}

// J1: the rate of a user's connections is limited, and inactive users are forgotten.
func TestPace(t *testing.T) {
	p, now := newPace(10), time.Now()
	allowed := func(uid uint32) (n int) {
		for n < 1000 && p.allow(uid, now) {
			n++
		}
		return n
	}
	for i, want := range []int{20, 0} {
		if got := allowed(1000); got != want {
			t.Errorf("%d: %d", i, got)
		}
	}
	now = now.Add(500 * time.Millisecond)
	if got := allowed(1000); got != 5 {
		t.Errorf("after half a second: %d", got)
	}
	if got := allowed(1001); got != 20 {
		t.Errorf("another user: %d", got)
	}
	if got := allowed(0); got != 1000 {
		t.Errorf("root: %d", got)
	}
	for uid := range uint32(10000) {
		now = now.Add(10 * time.Millisecond)
		p.allow(2000+uid, now)
	}
	if len(p.users) > 500 {
		t.Errorf("%d users are remembered", len(p.users))
	}
}

// newServer returns a Server that does not listen: see [client.connect].
func newServer(t testing.TB, o Options) *Server {
	t.Helper()
	dir, err := os.MkdirTemp("", "ec2netd-varlink")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	o.Listeners, o.Version = []net.Listener{listener}, "1"
	if o.Agent == nil {
		o.Agent = apitest.NewAgent(apitest.State())
	}
	s, err := New(o)
	if err != nil {
		t.Fatal(err)
	}
	return s
}

// pair returns both ends of a connection.
func pair(t testing.TB) (server, client *net.UnixConn) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_STREAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	ends := make([]*net.UnixConn, 2)
	for i, fd := range fds {
		f := os.NewFile(uintptr(fd), "pair")
		c, err := net.FileConn(f)
		if err != nil {
			t.Fatal(err)
		}
		f.Close()
		ends[i] = c.(*net.UnixConn)
	}
	return ends[0], ends[1]
}

// client is a client of a given user.
type client struct {
	t testing.TB
	*net.UnixConn
	r *bufio.Reader
	// ended is closed when the server has finished with the client.
	ended chan struct{}
}

// connect connects to s as a user, like accept.
func connect(t testing.TB, s *Server, uid uint32) *client {
	t.Helper()
	server, own := pair(t)
	c := &client{t: t, UnixConn: own, r: bufio.NewReader(own), ended: make(chan struct{})}
	conn, err := s.newConnection(server)
	if err != nil {
		t.Fatal(err)
	}
	conn.peer.UID = uid
	if err := s.admit(conn); err != nil {
		server.Close()
		close(c.ended)
		return c
	}
	go func() {
		defer close(c.ended)
		defer s.dismiss(conn)
		_ = conn.serve(t.Context())
	}()
	t.Cleanup(func() { own.Close(); <-c.ended })
	return c
}

func (c *client) send(message string) {
	c.t.Helper()
	if _, err := io.WriteString(c, message+"\x00"); err != nil {
		c.t.Fatal(err)
	}
}

// reply returns the next reply, or "" at the end of the connection.
func (c *client) reply() string {
	c.t.Helper()
	_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
	text, err := c.r.ReadString(0)
	if err != nil && os.IsTimeout(err) {
		c.t.Fatal("waited for a reply in vain")
	}
	return strings.TrimSuffix(text, "\x00")
}

func (c *client) expect(want string) {
	c.t.Helper()
	if got := c.reply(); !strings.Contains(got, want) {
		c.t.Errorf("got %.300q, want %q", got, want)
	}
}

const (
	limitsExceeded = `"error":"org.ec2netd.Network.LimitsExceeded"`
	describe       = `{"method":"org.ec2netd.Network.Describe"}`
	monitor        = `{"method":"org.ec2netd.Network.Monitor","more":true}`
)

// J1: limits of connections, of each user and of each class, with an error for refused
// ones.
func TestConnectionLimits(t *testing.T) {
	s := newServer(t, Options{Limits: Limits{Connections: 32}})
	for uid := range uint32(8) {
		first := connect(t, s, 1000+uid)
		connect(t, s, 1000+uid)
		connect(t, s, 1000+uid).expect(limitsExceeded)
		first.send(describe)
		first.expect(`"version"`)
	}
	refused := connect(t, s, 2000)
	refused.expect("close some of them")
	if got := refused.reply(); got != "" {
		t.Errorf("then %q", got)
	}
	for _, uid := range []uint32{100, 61200, 0, 0, 0} {
		c := connect(t, s, uid)
		c.send(describe)
		c.expect(`"version"`)
	}
}

// J1: limits of running calls, of which a Monitor is one; the connection stays.
func TestCallLimits(t *testing.T) {
	s := newServer(t, Options{Limits: Limits{Calls: 16}})
	m := connect(t, s, 1000)
	m.send(monitor)
	m.expect(`"continues":true`)
	c := connect(t, s, 1000)
	c.send(strings.Replace(describe, "}", `,"oneway":true}`, 1))
	c.send(describe)
	c.expect(limitsExceeded)
	for _, uid := range []uint32{1001, 100, 0} {
		other := connect(t, s, uid)
		other.send(describe)
		other.expect(`"version"`)
	}
	m.Close()
	<-m.ended
	c.send(describe)
	c.expect(`"version"`)
}

// patient is an Authorizer that permits everything to root, and makes everybody else
// wait.
type patient struct{ waiting chan uint32 }

func (p patient) Authorize(ctx context.Context, c api.Caller, action string) error {
	if c.UID == 0 {
		return nil
	}
	p.waiting <- c.UID
	<-ctx.Done()
	return api.RootOnly{}.Authorize(ctx, c, action)
}

// J1: limits of refreshes that run or wait for polkit.
func TestRefreshLimits(t *testing.T) {
	p := patient{make(chan uint32, 100)}
	s := newServer(t, Options{Authorizer: p, Limits: Limits{Refreshes: 16}})
	const refresh = `{"method":"org.ec2netd.Network.Refresh","parameters":{"allowInteractiveAuthentication":true}}`
	for uid := range uint32(8) {
		connect(t, s, 1000+uid).send(refresh)
		<-p.waiting
	}
	again, other := connect(t, s, 1000), connect(t, s, 2000)
	again.send(refresh)
	again.expect(limitsExceeded)
	other.send(refresh)
	other.expect(limitsExceeded)
	connect(t, s, 100).send(refresh)
	<-p.waiting
	admin := connect(t, s, 0)
	admin.send(refresh)
	admin.expect(`"settled":true`)
}

// J1: a client that is turned away gets the reason, even after the deadline for
// writing. The server does not wait for a client with a full buffer.
func TestTurnAway(t *testing.T) {
	s := newServer(t, Options{})
	server, own := pair(t)
	c, err := s.newConnection(server)
	if err != nil {
		t.Fatal(err)
	}
	defer own.Close()
	if err := server.SetWriteDeadline(time.Unix(1, 0)); err != nil {
		t.Fatal(err)
	}
	told := 0
	for range 10_000 { // the buffer has room for some hundreds
		if got := c.turnAway("so many"); got.Error() != "so many" {
			t.Fatal(got)
		}
		told++
	}
	server.Close()
	text, err := io.ReadAll(own)
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.Count(string(text), limitsExceeded); got == 0 || got == told {
		t.Errorf("of %d refusals %d were read", told, got)
	}
}

// J1: incomplete requests only cost what was reserved for them.
func TestEndless(t *testing.T) {
	s := newServer(t, Options{Limits: Limits{ConnectionsPerSecond: 1000}})
	var before, after runtime.MemStats
	runtime.GC()
	runtime.ReadMemStats(&before)
	clients := make([]*client, 0, 400)
	flood := []byte(strings.Repeat("x", 64<<10))
	for uid := range uint32(400) {
		c := connect(t, s, 1000+uid/8)
		_ = c.SetWriteDeadline(time.Now().Add(20 * time.Second))
		// As much as the limit permits, so that it is kept.
		_, _ = c.Write(flood[:s.options.Limits.Message])
		clients = append(clients, c)
	}
	runtime.GC()
	runtime.ReadMemStats(&after)
	if grown := int(after.HeapAlloc) - int(before.HeapAlloc); grown > s.options.Limits.Bytes {
		t.Errorf("the heap has grown by %d bytes", grown)
	}
	admitted := 0
	for _, c := range clients {
		_, _ = c.Write(flood[:2])
		if got := c.reply(); strings.Contains(got, "at most") {
			admitted++
		} else if !strings.Contains(got, "too many") {
			t.Errorf("got %q", got)
		}
		if got := c.reply(); got != "" {
			t.Errorf("then %q", got)
		}
	}
	if admitted != 128 {
		t.Errorf("%d connections were admitted", admitted)
	}
	for _, c := range clients {
		<-c.ended
	}
	s.idle(t)
}

// idle checks that all resources were returned.
func (s *Server) idle(t testing.TB) {
	t.Helper()
	for name, p := range map[string]*pool{"connections": s.connections, "calls": s.calls, "refreshes": s.refreshes, "bytes": s.bytes} {
		if len(p.users) > 0 || p.below != [root]int{} {
			t.Errorf("%s are still taken: %v, %v", name, p.users, p.below)
		}
	}
	if len(s.published.stale) > 0 || (s.published.current != nil && len(s.published.current.readers) > 0) {
		t.Error("an encoded state is still read")
	}
}

// J1: the largest request is accepted, and one byte more is not.
func TestMessageLimit(t *testing.T) {
	s := newServer(t, Options{Limits: Limits{Message: 100}})
	c := connect(t, s, 1000)
	whole := describe + strings.Repeat(" ", 100-len(describe))
	for range 3 {
		c.send(whole)
		c.expect(`"version"`)
	}
	c.send(describe + "\x00" + whole + " ") // after the answer to the previous request
	c.expect(`"version"`)
	c.expect("100 bytes at most")
	if got := c.reply(); got != "" {
		t.Errorf("then %q", got)
	}
}

// J1: all clients are sent the same encoded state, which is encoded once.
func TestShared(t *testing.T) {
	agent := apitest.NewAgent(apitest.Many(15))
	s := newServer(t, Options{Agent: agent})
	_, r, err := s.published.acquire(nil)
	if err != nil {
		t.Fatal(err)
	}
	first := s.published.current
	s.published.release(first, r)
	clients := make([]*client, 8)
	for i := range clients {
		clients[i] = connect(t, s, uint32(1000+i))
		clients[i].send(monitor)
	}
	text := string(first.json)
	for _, c := range clients {
		if got := c.reply(); got != `{"parameters":`+text+`,"continues":true}` {
			t.Errorf("Monitor: %.100q", got)
		}
	}
	c := connect(t, s, 1000)
	c.send(describe)
	if got := c.reply(); got != `{"parameters":`+text+`}` {
		t.Errorf("Describe: %.100q", got)
	}
	if s.published.current != first {
		t.Error("the same state was encoded again")
	}
	// Replies with it do not count towards the clients' shares.
	if s.bytes.users[1000] != 2*s.options.Limits.held() {
		t.Errorf("UID 1000 holds %d bytes", s.bytes.users[1000])
	}
	next := apitest.Many(15)
	next.Reason = "new"
	agent.Set(next)
	for _, c := range clients {
		c.expect(`"reason":"new"`)
	}
}

// J1: clients that do not read are dropped when too much is kept for them, the slowest
// first. Clients that read are not dropped.
func TestBehind(t *testing.T) {
	agent := apitest.NewAgent(apitest.Many(15))
	text, err := json.Marshal(api.NonNil(agent.State()))
	if err != nil {
		t.Fatal(err)
	}
	// Room for two and a half states.
	s := newServer(t, Options{Agent: agent, Limits: Limits{Bytes: 8 * len(text) * 5 / 2, Write: time.Hour}})
	reads := connect(t, s, 1001)
	reads.send(monitor)
	reads.expect(`"continues":true`)
	var deaf []*client
	for i := range 6 {
		next := apitest.Many(15)
		next.Reason = fmt.Sprint("state ", i)
		agent.Set(next)
		reads.expect(next.Reason)
		d := connect(t, s, 1000)
		d.send(describe)
		// Read one byte of it, so that it is being sent.
		_ = d.SetReadDeadline(time.Now().Add(20 * time.Second))
		if _, err := d.Read(make([]byte, 1)); err != nil {
			t.Fatal(err)
		}
		deaf = append(deaf, d)
	}
	agent.Set(apitest.Many(15))
	reads.expect(`"version"`)
	for _, d := range deaf[:4] {
		<-d.ended
	}
	for i, d := range deaf[4:] {
		rest, err := io.ReadAll(io.LimitReader(d, int64(len(text))))
		if err != nil || !strings.Contains(string(rest), fmt.Sprint("state ", 4+i)) {
			t.Errorf("the client of state %d got %d bytes, %v", 4+i, len(rest), err)
		}
	}
	var stale []string
	s.published.mu.Lock()
	for _, e := range s.published.stale {
		stale = append(stale, e.state.Reason)
	}
	s.published.mu.Unlock()
	if len(stale) > 2 {
		t.Errorf("kept for those who do not read: %q", stale)
	}
}

// J1: a client that does not read its own replies runs out of its share.
func TestUnread(t *testing.T) {
	s := newServer(t, Options{Limits: Limits{Bytes: 1 << 16, Message: 1 << 10}})
	list := `{"method":"org.ec2netd.Network.ListInterfaces","parameters":{"id":"` + strings.Repeat("x", 900) + `"}}`
	// Each of 4 connections costs 2 KiB of 4 KiB, so that there is no third.
	connect(t, s, 1000)
	c := connect(t, s, 1000)
	c.send(list)
	c.expect("too many bytes wait")
	if got := c.reply(); got != "" {
		t.Errorf("then %q", got)
	}
	<-c.ended
	c = connect(t, s, 1001)
	c.send(list)
	c.expect("NoSuchInterface")
}

// TestParameters: unknown parameters are refused by name (J1).
func TestParameters(t *testing.T) {
	s := newServer(t, Options{})
	deep := strings.Repeat("[", 8000) + strings.Repeat("]", 8000)
	for _, c := range []struct{ method, parameters, invalid string }{
		{"org.ec2netd.Network.Describe", `{"x":1}`, "x"},
		{"org.ec2netd.Network.Describe", `[]`, "parameters"},
		{"org.ec2netd.Network.Describe", `"{}"`, "parameters"},
		{"org.ec2netd.Network.Describe", `{}`, ""},
		{"org.ec2netd.Network.Describe", `null`, ""},
		{"org.ec2netd.Network.Monitor", `{"interval":1}`, "interval"},
		{"org.ec2netd.Network.ListInterfaces", `{"id":2}`, "id"},
		{"org.ec2netd.Network.ListInterfaces", `{"id":{"id":"ens5"}}`, "id"},
		{"org.ec2netd.Network.ListInterfaces", `{"ID":"ens5"}`, "ID"},
		{"org.ec2netd.Network.ListInterfaces", `{"id":null}`, ""},
		{"org.ec2netd.Network.ListInterfaces", `{"id":"ens5","id":5}`, "id"},
		{"org.ec2netd.Network.Refresh", `{"wait":"yes"}`, "wait"},
		{"org.ec2netd.Network.Refresh", `{"wait":1,"id":"ens5"}`, "wait"},
		{"org.ec2netd.Network.Refresh", `{"allowInteractiveAuthentication":[true]}`, "allowInteractiveAuthentication"},
		{"org.ec2netd.Network.Refresh", `{"force":true,"wait":true}`, "force"},
		{"org.ec2netd.Network.Refresh", `{"x":` + deep + `}`, "x"},
		{"org.ec2netd.Network.Refresh", deep, "parameters"},
		{"org.ec2netd.Network.ListInterfaces", `{"id":` + deep + `}`, "id"},
		{"io.systemd.Metrics.List", `{"name":"x"}`, "name"},
		{"io.systemd.Metrics.Describe", `{"x":null}`, "x"},
		{"org.varlink.service.GetInfo", `{"x":1}`, "x"},
		{"org.varlink.service.GetInterfaceDescription", `{}`, "interface"},
		{"org.varlink.service.GetInterfaceDescription", `{"interface":null}`, "interface"},
		{"org.varlink.service.GetInterfaceDescription", `{"interface":1}`, "interface"},
		{"org.varlink.service.GetInterfaceDescription", `{"interface":"org.ec2netd.Network","x":1}`, "x"},
	} {
		// Each on its own connection, since the last reply of a streaming call only
		// comes when it ends.
		conn := connect(t, s, 1000)
		conn.send(`{"method":"` + c.method + `","parameters":` + c.parameters + `,"more":true}`)
		var reply struct {
			Error      string
			Parameters struct{ Parameter string }
		}
		text := conn.reply()
		if err := json.Unmarshal([]byte(text), &reply); err != nil {
			t.Fatalf("%s %.100s: %q: %v", c.method, c.parameters, text, err)
		}
		if invalid := reply.Error == "org.varlink.service.InvalidParameter"; invalid != (c.invalid != "") || reply.Parameters.Parameter != c.invalid {
			t.Errorf("%s %.100s: %.300s, want %q", c.method, c.parameters, text, c.invalid)
		}
		conn.Close()
		<-conn.ended
	}
	// Deeper than the decoder accepts, so that the parameter cannot be named.
	s.idle(t)
	s = newServer(t, Options{Limits: Limits{Message: 1 << 19}})
	conn := connect(t, s, 0)
	conn.send(strings.Repeat(`{"parameters":`, 20000))
	if got := conn.reply(); got != "" {
		t.Errorf("got %.100q", got)
	}
	<-conn.ended
	s.idle(t)
}

// A client that asks for no reply gets none, and its call does not keep running.
func TestOneway(t *testing.T) {
	agent := apitest.NewAgent(apitest.State())
	s := newServer(t, Options{Agent: agent})
	c := connect(t, s, 1000)
	for _, method := range []string{"Monitor", "Describe", "ListInterfaces", "Refresh"} {
		for _, parameters := range []string{"{}", `{"x":1}`} {
			c.send(`{"method":"org.ec2netd.Network.` + method + `","parameters":` + parameters + `,"more":true,"oneway":true}`)
		}
	}
	c.send(`{"method":"org.varlink.service.GetInfo"}`)
	c.expect(`"vendor":"ec2netd"`)
	if n := agent.Watchers(); n != 0 {
		t.Errorf("%d watchers", n)
	}
}
