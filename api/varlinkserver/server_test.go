package varlinkserver_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"math/rand/v2"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"reflect"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/varlink/go/varlink"
	"go.uber.org/goleak"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/orgec2netdnetwork"
	"ec2netd/api/varlinkserver"
	"ec2netd/service/state"
)

const method = api.VarlinkInterface + "."

// serve runs a server until the test ends and returns the path of its socket.
func serve(t testing.TB, o varlinkserver.Options) string {
	t.Helper()
	return serveIn(t, os.TempDir(), o)
}

// serveIn is like serve, with the socket in a new directory below parent.
func serveIn(t testing.TB, parent string, o varlinkserver.Options) string {
	t.Helper()
	dir, err := os.MkdirTemp(parent, "ec2netd-varlink")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	socket := filepath.Join(dir, api.VarlinkInterface)
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	// As in the socket unit: everybody may connect.
	if err := errors.Join(os.Chmod(dir, 0o755), os.Chmod(socket, 0o666)); err != nil {
		t.Fatal(err)
	}
	o.Listeners = append(o.Listeners, l)
	if o.Agent == nil {
		o.Agent = apitest.NewAgent(apitest.State())
	}
	o.Version = "1.2.3"
	o.Logger = slog.New(slog.NewTextHandler(t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	s, err := varlinkserver.New(o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			t.Error("Run did not end")
		}
	})
	return socket
}

func dial(t testing.TB, socket string) *varlink.Connection {
	t.Helper()
	c, err := varlink.NewConnection(t.Context(), "unix:"+socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return c
}

func call(t testing.TB, c *varlink.Connection, name string, in, out any) error {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	err := c.Call(ctx, method+name, in, out)
	return orgec2netdnetwork.Dispatch_Error(err)
}

// raw is a client without the library.
type raw struct {
	t *testing.T
	net.Conn
	r *bufio.Reader
}

func rawDial(t *testing.T, socket string) raw {
	t.Helper()
	c, err := net.Dial("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	return raw{t, c, bufio.NewReader(c)}
}

func (c raw) send(message string) {
	c.t.Helper()
	if _, err := io.WriteString(c, message+"\x00"); err != nil {
		c.t.Fatal(err)
	}
}

// reply returns the next reply, or "" at the end of the connection.
func (c raw) reply() string {
	c.t.Helper()
	c.SetReadDeadline(time.Now().Add(20 * time.Second))
	s, err := c.r.ReadString(0)
	switch {
	case err == nil:
		return strings.TrimSuffix(s, "\x00")
	case errors.Is(err, os.ErrDeadlineExceeded):
		c.t.Fatal("waited for a reply in vain")
	}
	return ""
}

func TestDescribe(t *testing.T) { // H2
	agent := apitest.NewAgent(apitest.State())
	socket := serve(t, varlinkserver.Options{Agent: agent})
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Describe","parameters":{}}`)
	b, err := json.Marshal(api.NonNil(agent.State()))
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.reply(), `{"parameters":`+string(b)+`}`; got != want {
		t.Errorf("Describe: %s\nwant %s", got, want)
	}
	var s state.State
	if err := call(t, dial(t, socket), "Describe", nil, &s); err != nil {
		t.Fatal(err)
	}
	if !reflect.DeepEqual(&s, api.NonNil(agent.State())) {
		t.Errorf("Describe: %+v", s)
	}
}

func TestListInterfaces(t *testing.T) { // H2
	agent := apitest.NewAgent(apitest.State())
	socket := serve(t, varlinkserver.Options{Agent: agent})
	c := rawDial(t, socket)
	const request = `{"method":"org.ec2netd.Network.ListInterfaces"`
	c.send(request + `,"more":true}`)
	for i := range 3 {
		var reply struct {
			Parameters struct{ Interface state.Interface }
			Continues  bool
		}
		if err := json.Unmarshal([]byte(c.reply()), &reply); err != nil {
			t.Fatal(err)
		}
		if got, want := reply.Parameters.Interface.MAC, agent.State().Interfaces[i].MAC; got != want || reply.Continues != (i < 2) {
			t.Errorf("reply %d: %s, continues %v", i, got, reply.Continues)
		}
	}
	c.send(request + `}`)
	if got, want := c.reply(), `{"error":"org.varlink.service.ExpectedMore","parameters":{}}`; got != want {
		t.Errorf("without more: %s", got)
	}
	for _, more := range []string{"", `,"more":true`} {
		c.send(request + more + `,"parameters":{"id":"ens6"}}`)
		if got := c.reply(); !strings.HasPrefix(got, `{"parameters":{"interface":{"eniId":"eni-0a1b2c3d4e5f60002",`) || strings.Contains(got, "continues") {
			t.Errorf("of ens6: %s", got)
		}
		c.send(request + more + `,"parameters":{"id":"eni-0f"}}`)
		if got, want := c.reply(), `{"parameters":{"id":"eni-0f"},"error":"org.ec2netd.Network.NoSuchInterface"}`; got != want {
			t.Errorf("of an unknown ENI: %s", got)
		}
	}
	agent.Set(&state.State{})
	c.send(request + `,"more":true,"parameters":{}}`)
	if got := c.reply(); got != `{"parameters":{}}` {
		t.Errorf("without ENIs: %s", got)
	}
}

func TestRefresh(t *testing.T) { // H3
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(_ context.Context, wait bool) (*state.Changes, error) {
		if !wait {
			return nil, errors.New("reading mac: HTTP 500")
		}
		return &state.Changes{Reloaded: true, Interfaces: []state.InterfaceChange{{ENIID: "eni-1", Added: []string{"10.0.0.1"}}}}, nil
	}
	socket := serve(t, varlinkserver.Options{Agent: agent, Authorizer: allowAll{}})
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Refresh","parameters":{"wait":true}}`)
	if got, want := c.reply(), `{"parameters":{"filesWritten":[],"filesRemoved":[],"reloaded":true,"settled":false,"interfaces":[{"eniId":"eni-1","name":"","added":["10.0.0.1"],"removed":[],"state":"","reason":""}]}}`; got != want {
		t.Errorf("Refresh: %s", got)
	}
	c.send(`{"method":"org.ec2netd.Network.Refresh"}`)
	if got, want := c.reply(), `{"parameters":{"reason":"reading mac: HTTP 500"},"error":"org.ec2netd.Network.RefreshFailed"}`; got != want {
		t.Errorf("Refresh: %s", got)
	}
}

// With more, a Refresh also sends the changes so far; with an ID it is for one ENI.
func TestRefreshProgress(t *testing.T) { // H3
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(ctx context.Context, _ bool) (*state.Changes, error) {
		next := *apitest.State()
		next.Interfaces[1].Addresses = append(next.Interfaces[1].Addresses, "10.0.1.29")
		next.Interfaces[2].State = state.ENIDegraded // another ENI's
		agent.Set(&next)
		select {
		case <-agent.Told(&next):
		case <-ctx.Done():
		}
		return &state.Changes{Settled: true, Interfaces: state.Diff(apitest.State(), &next, "02:00:00:00:00:02")}, nil
	}
	socket := serve(t, varlinkserver.Options{Agent: agent, Authorizer: allowAll{}})
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Refresh","parameters":{"id":"ens6","wait":true},"more":true}`)
	for _, want := range []string{`"settled":false`, `"settled":true`} {
		got := c.reply()
		if !strings.Contains(got, want) || !strings.Contains(got, `"added":["10.0.1.29"]`) || strings.Contains(got, "ens7") ||
			strings.Contains(got, `"continues":true`) != (want == `"settled":false`) {
			t.Errorf("%s is not in %s", want, got)
		}
	}
	if got := agent.Refreshed(); !slices.Equal(got, []string{"02:00:00:00:00:02"}) {
		t.Errorf("refreshed %q", got)
	}
	c.send(`{"method":"org.ec2netd.Network.Refresh","parameters":{"id":"eni-0f"}}`)
	if got := c.reply(); !strings.Contains(got, "NoSuchInterface") {
		t.Errorf("of an ENI that is not there: %s", got)
	}
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, api.Caller, string) error { return nil }

func TestRefreshTimeout(t *testing.T) {
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(ctx context.Context, _ bool) (*state.Changes, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	socket := serve(t, varlinkserver.Options{Agent: agent, Authorizer: allowAll{}, RefreshTimeout: 20 * time.Millisecond})
	var failed *orgec2netdnetwork.RefreshFailed
	if err := call(t, dial(t, socket), "Refresh", nil, nil); !errors.As(err, &failed) || !strings.Contains(failed.Reason, "20ms") {
		t.Errorf("Refresh: %v", err)
	}
}

// TestPeer: the kernel's information about the client decides who may refresh.
func TestPeer(t *testing.T) { // H2
	seen := make(chan api.Caller, 1)
	socket := serve(t, varlinkserver.Options{Authorizer: authorizer(func(c api.Caller, action string) error {
		if action != api.ActionRefresh {
			t.Errorf("action %s", action)
		}
		seen <- c
		return api.RootOnly{}.Authorize(t.Context(), c, action)
	})})
	err := call(t, dial(t, socket), "Refresh", nil, &struct{}{})
	if got := <-seen; got.UID != uint32(os.Getuid()) || got.PID != int32(os.Getpid()) {
		t.Errorf("the caller was %+v", got)
	}
	var no *orgec2netdnetwork.NotPermitted
	if os.Getuid() != 0 {
		if !errors.As(err, &no) {
			t.Errorf("Refresh by uid %d: %v", os.Getuid(), err)
		}
		t.Skip("the rest needs root: run the tests as root")
	}
	if err != nil {
		t.Error(err)
	}
	// Run this test again as another user.
	cmd := exec.Command("/proc/self/exe", "-test.run=^TestAsNobody$", "-test.v")
	cmd.Env = append(os.Environ(), "EC2NETD_TEST_SOCKET="+socket)
	cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd.Dir = "/"
	out, err := runExe(t, cmd)
	if err != nil || !strings.Contains(out, "PASS: TestAsNobody") {
		t.Errorf("as nobody: %v\n%s", err, out)
	}
	if got := <-seen; got.UID != 65534 {
		t.Errorf("the caller was %+v", got)
	}
}

// runExe runs a copy of the test binary, whose directory may be accessible only for
// root.
func runExe(t *testing.T, cmd *exec.Cmd) (string, error) {
	t.Helper()
	self, err := os.ReadFile("/proc/self/exe")
	if err != nil {
		t.Fatal(err)
	}
	dir, err := os.MkdirTemp("", "ec2netd-exe")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	cmd.Path = filepath.Join(dir, "test")
	if err := errors.Join(os.Chmod(dir, 0o755), os.WriteFile(cmd.Path, self, 0o755)); err != nil {
		t.Fatal(err)
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestAsNobody is the part of TestPeer that runs as another user.
func TestAsNobody(t *testing.T) {
	socket := os.Getenv("EC2NETD_TEST_SOCKET")
	if socket == "" {
		t.Skip("runs within TestPeer")
	}
	c := dial(t, socket)
	var no *orgec2netdnetwork.NotPermitted
	if err := call(t, c, "Refresh", nil, nil); !errors.As(err, &no) || !strings.Contains(no.Reason, "sudo") {
		t.Errorf("Refresh: %v", err)
	}
	if err := call(t, c, "Describe", nil, &state.State{}); err != nil {
		t.Errorf("Describe: %v", err)
	}
}

type authorizer func(api.Caller, string) error

func (a authorizer) Authorize(_ context.Context, c api.Caller, action string) error {
	return a(c, action)
}

func TestMonitor(t *testing.T) { // H2
	agent := apitest.NewAgent(apitest.State())
	socket := serve(t, varlinkserver.Options{Agent: agent})
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Monitor"}`)
	if got := c.reply(); !strings.Contains(got, "org.varlink.service.ExpectedMore") {
		t.Errorf("without more: %s", got)
	}
	c.send(`{"method":"org.ec2netd.Network.Monitor","more":true}`)
	next := func() (s state.State) {
		t.Helper()
		var reply struct {
			Parameters *state.State
			Continues  bool
		}
		reply.Parameters = &s
		if err := json.Unmarshal([]byte(c.reply()), &reply); err != nil || !reply.Continues {
			t.Fatalf("reply: %v, continues %v", err, reply.Continues)
		}
		return s
	}
	if s := next(); s.State != state.Configured || len(s.Interfaces) != 3 {
		t.Errorf("snapshot: %+v", s)
	}
	s := apitest.State()
	s.Metadata.Requests++ // does not count as a change
	agent.Set(s)
	s = apitest.State()
	s.Reason = "one"
	agent.Set(s)
	if s := next(); s.Reason != "one" {
		t.Errorf("change: %+v", s)
	}
	c.Close()
	eventually(t, "the watch to end", func() bool { return agent.Watchers() == 0 })
}

func eventually(t *testing.T, what string, done func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !done(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("waited for %s in vain", what)
		}
	}
}

// TestHangUp: a call ends when its client disconnects, even if more requests follow it.
// A client that only closes its sending side gets its reply.
func TestHangUp(t *testing.T) {
	started, ended := make(chan bool, 8), make(chan error, 8)
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(ctx context.Context, wait bool) (*state.Changes, error) {
		started <- wait
		if !wait {
			time.Sleep(50 * time.Millisecond)
			return nil, ctx.Err()
		}
		<-ctx.Done()
		ended <- context.Cause(ctx)
		return nil, ctx.Err()
	}
	socket := serve(t, varlinkserver.Options{Agent: agent, Authorizer: allowAll{}})
	const request = `{"method":"org.ec2netd.Network.Refresh","parameters":{"wait":true}}`
	for _, requests := range []string{request, request + "\x00" + request + "\x00" + request} {
		c := rawDial(t, socket)
		c.send(requests)
		<-started
		c.Close()
		select {
		case <-ended:
		case <-time.After(5 * time.Second):
			t.Fatal("the call outlived its client")
		}
	}
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Refresh"}`)
	if err := c.Conn.(*net.UnixConn).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if got := c.reply(); !strings.Contains(got, `"settled":false`) {
		t.Errorf("after the last word: %q", got)
	}
	if got := c.reply(); got != "" {
		t.Errorf("then %q", got)
	}
}

// TestBadRequests: the replies to invalid requests.
func TestBadRequests(t *testing.T) {
	socket := serve(t, varlinkserver.Options{})
	for request, want := range map[string]string{
		`{"method":"org.ec2netd.Network.Other"}`:                                  "org.varlink.service.MethodNotFound",
		`{"method":"org.example.Other.Describe"}`:                                 "org.varlink.service.InterfaceNotFound",
		`{"method":"Describe"}`:                                                   "org.varlink.service.InvalidParameter",
		`{"method":"org.ec2netd.Network.ListInterfaces","parameters":{"id":2}}`:   "org.varlink.service.InvalidParameter",
		`{"method":"org.ec2netd.Network.Refresh","parameters":{"wait":"yes"}}`:    "org.varlink.service.InvalidParameter",
		`{"method":"org.ec2netd.Network.Describe","parameters":{},"oneway":true}`: "",
		`nonsense`: "",
		``:         "",
		// Exactly the excessive size, so that nothing is left unread: see
		// TestMessageLimit.
		`{"method":"org.ec2netd.Network.Describe","parameters":{"x":"` + strings.Repeat("x", 1<<20) + `"}}`: "LimitsExceeded",
	} {
		c := rawDial(t, socket)
		c.SetWriteDeadline(time.Now().Add(10 * time.Second))
		io.WriteString(c, request+"\x00") // may fail: the server closes at its limit
		c.Conn.(*net.UnixConn).CloseWrite()
		got := c.reply()
		if (want == "") != (got == "") || !strings.Contains(got, want) {
			t.Errorf("%.100s: %q, want %s", request, got, want)
		}
	}
}

func TestPipeline(t *testing.T) {
	c := rawDial(t, serve(t, varlinkserver.Options{}))
	c.send(strings.TrimSuffix(strings.Repeat(`{"method":"org.ec2netd.Network.ListInterfaces","parameters":{"id":"ens5"}}`+"\x00", 100), "\x00"))
	for range 100 {
		if got := c.reply(); !strings.Contains(got, "eni-0a1b2c3d4e5f60001") {
			t.Fatalf("reply: %s", got)
		}
	}
}

func TestService(t *testing.T) { // H2
	c := dial(t, serve(t, varlinkserver.Options{}))
	var vendor, product, version, url string
	var interfaces []string
	if err := c.GetInfo(t.Context(), &vendor, &product, &version, &url, &interfaces); err != nil {
		t.Fatal(err)
	}
	if product != "ec2netd" || version != "1.2.3" || !slices.Contains(interfaces, api.VarlinkInterface) {
		t.Errorf("GetInfo: %s %s %v", product, version, interfaces)
	}
	d, err := c.GetInterfaceDescription(t.Context(), api.VarlinkInterface)
	if err != nil || d != api.NetworkVarlink {
		t.Errorf("GetInterfaceDescription: %v\n%s", err, d)
	}
}

func TestPanic(t *testing.T) {
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(context.Context, bool) (*state.Changes, error) { panic("on purpose") }
	socket := serve(t, varlinkserver.Options{Agent: agent, Authorizer: allowAll{}})
	c := rawDial(t, socket)
	c.send(`{"method":"org.ec2netd.Network.Refresh"}`)
	if got := c.reply(); got != "" {
		t.Errorf("reply: %s", got)
	}
	if err := call(t, dial(t, socket), "Describe", nil, &state.State{}); err != nil {
		t.Errorf("afterwards: %v", err)
	}
}

// TestLimits: limits of connections, idle ones, and clients that do not read.
func TestLimits(t *testing.T) {
	agent := apitest.NewAgent(apitest.Many(15))
	socket := serve(t, varlinkserver.Options{Agent: agent, Limits: varlinkserver.Limits{
		Idle: 200 * time.Millisecond, Write: 200 * time.Millisecond,
	}})
	idle := rawDial(t, socket)
	if got := idle.reply(); got != "" {
		t.Errorf("idle: %s", got)
	}
	slow := rawDial(t, socket)
	io.WriteString(slow, `{"method":`) // an incomplete request
	if got := slow.reply(); got != "" {
		t.Errorf("slow: %s", got)
	}
	deaf := rawDial(t, socket)
	for range 100 {
		if _, err := io.WriteString(deaf, `{"method":"org.ec2netd.Network.Describe"}`+"\x00"); err != nil {
			break // already closed
		}
	}
	eventually(t, "the deaf client to be dropped", func() bool {
		_, err := deaf.Write([]byte{' '})
		return err != nil
	})
	// A monitor that does not read is dropped too, if there are many changes.
	monitor := rawDial(t, socket)
	monitor.send(`{"method":"org.ec2netd.Network.Monitor","more":true}`)
	eventually(t, "the watch to begin", func() bool { return agent.Watchers() == 1 })
	n := 0
	eventually(t, "the watch to end", func() bool {
		s := apitest.Many(15)
		s.Reason = fmt.Sprint(n)
		n++
		agent.Set(s)
		return agent.Watchers() == 0
	})
}

// TestManyClients: hundreds of clients at once, while the state changes.
func TestManyClients(t *testing.T) {
	agent := apitest.NewAgent(apitest.Many(3))
	socket := serve(t, varlinkserver.Options{Agent: agent})
	var wg sync.WaitGroup
	for i := range 200 {
		wg.Go(func() {
			c, err := varlink.NewConnection(t.Context(), "unix:"+socket)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range 5 {
				// There is no time limit: the duration depends on the machine.
				if err := orgec2netdnetwork.Dispatch_Error(c.Call(t.Context(), method+"Describe", nil, &state.State{})); err != nil {
					t.Error(err)
				}
				agent.Set(apitest.Many(i % 4))
			}
		})
	}
	wg.Wait()
}

// TestStorm: ten clients introspect, list and look up existing, disappearing and unknown
// ENIs, and monitor changes, while ENIs are added and removed.
func TestStorm(t *testing.T) { // H2
	agent := apitest.NewAgent(apitest.Many(15))
	socket := serve(t, varlinkserver.Options{Agent: agent})
	descriptions := map[string]string{api.VarlinkInterface: api.NetworkVarlink, api.MetricsInterface: api.MetricsVarlink}
	var clients sync.WaitGroup
	for range 10 {
		clients.Go(func() {
			c, err := varlink.NewConnection(t.Context(), "unix:"+socket)
			if err != nil {
				t.Error(err)
				return
			}
			defer c.Close()
			for range 25 {
				agent.Set(apitest.Many(rand.IntN(16)))
				var interfaces []string
				switch rand.IntN(5) {
				case 0:
					if err := c.GetInfo(t.Context(), nil, nil, nil, nil, &interfaces); err != nil || len(interfaces) != 3 {
						t.Errorf("GetInfo: %v, %q", err, interfaces)
					}
				case 1:
					for name, want := range descriptions {
						if got, err := c.GetInterfaceDescription(t.Context(), name); err != nil || got != want {
							t.Errorf("GetInterfaceDescription of %s: %v\n%s", name, err, got)
						}
					}
				case 2:
					if got, err := c.GetInterfaceDescription(t.Context(), "org.example.Nobody"); err == nil {
						t.Errorf("GetInterfaceDescription of an unknown interface: %s", got)
					}
				case 3:
					var noSuch *orgec2netdnetwork.NoSuchInterface
					err := call(t, c, "ListInterfaces", map[string]string{"id": fmt.Sprintf("ens%d", rand.IntN(30))}, &struct{}{})
					if err != nil && !errors.As(err, &noSuch) {
						t.Errorf("ListInterfaces: %v", err)
					}
				default:
					// Read a few replies, and disconnect in the middle of the stream.
					m := rawDial(t, socket)
					m.send(`{"method":"org.ec2netd.Network.` + []string{"Monitor", "ListInterfaces"}[rand.IntN(2)] + `","more":true}`)
					if !strings.HasPrefix(m.reply(), `{"parameters":`) {
						t.Error("a stream without a reply")
					}
					m.Close()
				}
			}
		})
	}
	clients.Wait()
	eventually(t, "the watches to end", func() bool { return agent.Watchers() == 0 })
}

func TestNothingLeft(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	agent := apitest.NewAgent(apitest.State())
	t.Run("serve", func(t *testing.T) {
		socket := serve(t, varlinkserver.Options{Agent: agent})
		c := rawDial(t, socket)
		c.send(`{"method":"org.ec2netd.Network.Monitor","more":true}`)
		c.reply()
		rawDial(t, socket) // idle
		half := rawDial(t, socket)
		half.send(`{"method":"org.ec2netd.Network.Monitor","more":true}`)
		half.reply()
		half.Conn.(*net.UnixConn).CloseWrite()
	})
	goleak.VerifyNone(t, ignore)
	if n := agent.Watchers(); n != 0 {
		t.Errorf("%d watchers left", n)
	}
}

func TestNew(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	for _, o := range []varlinkserver.Options{{}, {Listeners: []net.Listener{l}, Agent: apitest.NewAgent(apitest.State())}} {
		if _, err := varlinkserver.New(o); err == nil {
			t.Errorf("New(%+v) returns no error", o)
		}
	}
}

// BenchmarkDescribe describes 15 ENIs of 50 addresses.
func BenchmarkDescribe(b *testing.B) {
	c := dial(b, serve(b, varlinkserver.Options{Agent: apitest.NewAgent(apitest.Many(15))}))
	for b.Loop() {
		var s json.RawMessage
		if err := call(b, c, "Describe", struct{}{}, &s); err != nil {
			b.Fatal(err)
		}
	}
}
