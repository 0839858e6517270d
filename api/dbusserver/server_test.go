package dbusserver_test

import (
	"bytes"
	"context"
	"encoding/json"
	"encoding/xml"
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
	"runtime"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"github.com/godbus/dbus/v5/introspect"
	"go.uber.org/goleak"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
	"ec2netd/service/state"
)

const (
	getProperty    = "org.freedesktop.DBus.Properties.Get"
	getAll         = "org.freedesktop.DBus.Properties.GetAll"
	introspectCall = "org.freedesktop.DBus.Introspectable.Introspect"
	getManaged     = "org.freedesktop.DBus.ObjectManager.GetManagedObjects"
	describe       = api.ManagerInterface + ".Describe"
	getInterface   = api.ManagerInterface + ".GetInterface"
	refresh        = api.ManagerInterface + ".Refresh"

	primaryPath = "/org/ec2netd1/interface/eni_2d0a1b2c3d4e5f60001"
	pendingPath = "/org/ec2netd1/interface/_302_3a00_3a00_3a00_3a00_3a03"
)

// denyAll is an Authorizer that permits nothing to anybody.
type denyAll struct{}

func (denyAll) Authorize(_ context.Context, c api.Caller, action string) error {
	return &api.NotPermittedError{Caller: c, Action: action}
}

func errorName(err error) string {
	var e dbus.Error
	if errors.As(err, &e) {
		return e.Name
	}
	return fmt.Sprint(err)
}

func TestReading(t *testing.T) { // H1
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	b.serve(dbusserver.Options{Agent: agent})
	c := b.Dial()
	m := object(c, api.ObjectPath)

	out, err := call(m, describe)
	if err != nil {
		t.Fatal(err)
	}
	want, err := json.Marshal(api.NonNil(agent.State()))
	if err != nil {
		t.Fatal(err)
	}
	if out[0] != string(want) {
		t.Errorf("Describe: %s\nwant %s", out[0], want)
	}

	for _, id := range []string{"eni-0a1b2c3d4e5f60001", "02:00:00:00:00:01", "ens5", "device-number-0.0", "2"} {
		out, err := call(m, getInterface, id)
		if err != nil || out[0] != dbus.ObjectPath(primaryPath) {
			t.Errorf("GetInterface(%s) = %v, %v", id, out, err)
		}
	}
	_, err = call(m, getInterface, "eni-0f")
	if errorName(err) != api.ErrorNoSuchInterface || !strings.Contains(err.Error(), "eni-0f") {
		t.Errorf("GetInterface of an unknown ENI: %s: %v", errorName(err), err)
	}

	out, err = call(m, getManaged)
	if err != nil {
		t.Fatal(err)
	}
	objects := out[0].(map[dbus.ObjectPath]map[string]map[string]dbus.Variant)
	if len(objects) != 3 {
		t.Errorf("GetManagedObjects: %d objects", len(objects))
	}
	p := objects[primaryPath][api.InterfaceInterface]
	if got := p["Addresses"].Value(); !reflect.DeepEqual(got, agent.State().Interfaces[0].Addresses) {
		t.Errorf("Addresses = %v", got)
	}
	out, err = call(object(c, primaryPath), getAll, api.InterfaceInterface)
	if err != nil || !reflect.DeepEqual(out[0], p) {
		t.Errorf("GetAll = %v, %v; GetManagedObjects had %v", out, err, p)
	}
	out, err = call(object(c, pendingPath), getProperty, api.InterfaceInterface, "State")
	if err != nil || out[0].(dbus.Variant).Value() != "pending" {
		t.Errorf("State = %v, %v", out, err)
	}
	out, err = call(m, getProperty, api.ManagerInterface, "InstanceId")
	if err != nil || out[0].(dbus.Variant).Value() != "i-0123456789abcdef0" {
		t.Errorf("InstanceId = %v, %v", out, err)
	}
	if _, err := call(object(c, "/any/where"), "org.freedesktop.DBus.Peer.Ping"); err != nil {
		t.Errorf("Ping: %v", err)
	}
	// A client may omit the interface.
	if c := c.Object(api.BusName, api.ObjectPath).Call("Describe", 0); c.Err != nil {
		t.Errorf("Describe without interface: %v", c.Err)
	}
}

// TestErrors makes calls that are unknown or invalid.
func TestErrors(t *testing.T) {
	b := newBus(t)
	b.Start()
	b.serve(dbusserver.Options{})
	c := b.Dial()
	const e = "org.freedesktop.DBus.Error."
	deep := dbus.MakeVariant("x")
	for range 40 {
		deep = dbus.MakeVariant(deep)
	}
	for _, test := range []struct {
		path   dbus.ObjectPath
		method string
		args   []any
		want   string
	}{
		{"/org/ec2netd1/interface/nobody", introspectCall, nil, e + "UnknownObject"},
		{"/org/ec2netd1/interface/nobody", getAll, []any{api.InterfaceInterface}, e + "UnknownObject"},
		{"/org/other", describe, nil, e + "UnknownObject"},
		{"/org/ec2netd1/interface", describe, nil, e + "UnknownInterface"},
		{api.ObjectPath, "org.example.Other.Describe", nil, e + "UnknownInterface"},
		{primaryPath, describe, nil, e + "UnknownInterface"},
		{primaryPath, getManaged, nil, e + "UnknownInterface"},
		{api.ObjectPath, api.ManagerInterface + ".Other", nil, e + "UnknownMethod"},
		{api.ObjectPath, describe, []any{"x"}, e + "InvalidArgs"},
		{api.ObjectPath, getInterface, nil, e + "InvalidArgs"},
		{api.ObjectPath, getInterface, []any{uint32(2)}, e + "InvalidArgs"},
		{api.ObjectPath, getInterface, []any{deep}, e + "InvalidArgs"},
		{api.ObjectPath, getInterface, []any{strings.Repeat("x", 1<<20)}, e + "InvalidArgs"},
		{api.ObjectPath, getInterface, []any{make([]dbus.Variant, 0)}, e + "InvalidArgs"},
		{api.ObjectPath, refresh, []any{"yes"}, e + "InvalidArgs"},
		{api.ObjectPath, getProperty, []any{api.ManagerInterface, "Other"}, e + "UnknownProperty"},
		{api.ObjectPath, getProperty, []any{"org.example.Other", "State"}, e + "UnknownInterface"},
		{primaryPath, getAll, []any{api.ManagerInterface}, e + "UnknownInterface"},
		{api.ObjectPath, "org.freedesktop.DBus.Properties.Set", []any{api.ManagerInterface, "State", dbus.MakeVariant("x")}, e + "PropertyReadOnly"},
		{api.ObjectPath, "org.freedesktop.DBus.Properties.Set", []any{api.ManagerInterface, "State", deep}, e + "PropertyReadOnly"},
	} {
		_, err := call(object(c, test.path), test.method, test.args...)
		if got := errorName(err); got != test.want {
			t.Errorf("%s on %s: %s, want %s", test.method, test.path, got, test.want)
		}
		var d dbus.Error
		if !errors.As(err, &d) || len(d.Body) != 1 || d.Body[0] == "" {
			t.Errorf("%s on %s: an error without a message", test.method, test.path)
		}
	}
	// The connection still works after all that.
	if _, err := call(object(c, api.ObjectPath), describe); err != nil {
		t.Error(err)
	}
}

func TestIntrospection(t *testing.T) { // H1
	b := newBus(t)
	b.Start()
	b.serve(dbusserver.Options{})
	c := b.Dial()
	for path, want := range map[dbus.ObjectPath]struct{ interfaces, children []string }{
		"/":                            {nil, []string{"org"}},
		"/org":                         {nil, []string{"ec2netd1", "freedesktop"}},
		"/org/freedesktop":             {nil, []string{"LogControl1"}},
		"/org/freedesktop/LogControl1": {[]string{"org.freedesktop.DBus.Properties", "org.freedesktop.LogControl1"}, nil},
		api.ObjectPath: {
			[]string{"org.freedesktop.DBus.Properties", "org.freedesktop.DBus.ObjectManager", api.ManagerInterface},
			[]string{"interface"},
		},
		api.InterfacePath: {nil, []string{filepath.Base(pendingPath), filepath.Base(primaryPath), "eni_2d0a1b2c3d4e5f60002"}},
		primaryPath:       {[]string{"org.freedesktop.DBus.Properties", api.InterfaceInterface}, nil},
	} {
		out, err := call(object(c, path), introspectCall)
		if err != nil {
			t.Fatal(err)
		}
		var n introspect.Node
		if err := xml.Unmarshal([]byte(out[0].(string)), &n); err != nil {
			t.Fatal(err)
		}
		var interfaces, children []string
		for _, i := range n.Interfaces[2:] { // every path has Peer and Introspectable
			interfaces = append(interfaces, i.Name)
		}
		for _, child := range n.Children {
			children = append(children, child.Name)
		}
		if !slices.Equal(interfaces, want.interfaces) || !slices.Equal(children, want.children) {
			t.Errorf("%s has %q and below it %q", path, interfaces, children)
		}
	}
	out, err := call(object(c, primaryPath), introspectCall)
	if err != nil {
		t.Fatal(err)
	}
	if !strings.Contains(out[0].(string), "<!-- DeviceIndex and NetworkCard as EC2 numbers them") {
		t.Error("introspection leaves the documentation out")
	}
}

func TestRefresh(t *testing.T) { // H3
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	failing := errors.New("reading mac: HTTP 500")
	agent.OnRefresh = func(_ context.Context, wait bool) (*state.Changes, error) {
		if wait {
			return &state.Changes{FilesWritten: []string{"/run/systemd/network/70-ens6.network"}, Reloaded: true, Settled: true}, nil
		}
		return nil, failing
	}
	b.serve(dbusserver.Options{Agent: agent})
	c := b.Dial()
	out, err := call(object(c, api.ObjectPath), refresh, true)
	if os.Getuid() != 0 {
		if errorName(err) != "org.freedesktop.DBus.Error.AccessDenied" {
			t.Errorf("Refresh by uid %d: %v", os.Getuid(), err)
		}
		t.Skip("the rest needs root: run the tests as root")
	}
	if err != nil {
		t.Fatal(err)
	}
	want := `{"filesWritten":["/run/systemd/network/70-ens6.network"],"filesRemoved":[],"reloaded":true,"settled":true,"interfaces":[]}`
	if out[0] != want {
		t.Errorf("Refresh = %s\nwant %s", out[0], want)
	}
	_, err = call(object(c, api.ObjectPath), refresh, false)
	if errorName(err) != api.ErrorRefreshFailed || !strings.Contains(err.Error(), "reading mac") {
		t.Errorf("a refresh that fails: %s: %v", errorName(err), err)
	}
}

func TestRefreshTimeout(t *testing.T) {
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(ctx context.Context, _ bool) (*state.Changes, error) {
		<-ctx.Done()
		return nil, ctx.Err()
	}
	b.serve(dbusserver.Options{Agent: agent, RefreshTimeout: 50 * time.Millisecond, Authorizer: allowAll{}})
	c := b.Dial()
	// Readers do not wait for the refreshes, and a seventeenth refresh fails at once.
	var wg sync.WaitGroup
	for range 20 {
		wg.Go(func() {
			_, err := call(object(c, api.ObjectPath), refresh, true)
			if n := errorName(err); n != "org.freedesktop.DBus.Error.Timeout" && n != "org.freedesktop.DBus.Error.LimitsExceeded" {
				t.Errorf("Refresh: %s", n)
			}
		})
	}
	if _, err := call(object(c, api.ObjectPath), describe); err != nil {
		t.Error(err)
	}
	wg.Wait()
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, api.Caller, string) error { return nil }

func TestDenied(t *testing.T) { // H1
	b := newBus(t)
	b.Start()
	b.serve(dbusserver.Options{Authorizer: denyAll{}})
	_, err := call(object(b.Dial(), api.ObjectPath), refresh, false)
	if errorName(err) != "org.freedesktop.DBus.Error.AccessDenied" || !strings.Contains(err.Error(), "sudo") {
		t.Errorf("Refresh: %s: %v", errorName(err), err)
	}
}

// TestPanic: a panic in one call only causes an error for its caller.
func TestPanic(t *testing.T) {
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(context.Context, bool) (*state.Changes, error) { panic("on purpose") }
	b.serve(dbusserver.Options{Agent: agent, Authorizer: allowAll{}})
	c := b.Dial()
	for range maxRefreshes + 1 {
		if _, err := call(object(c, api.ObjectPath), refresh, false); errorName(err) != "org.freedesktop.DBus.Error.Failed" {
			t.Fatalf("Refresh: %v", err)
		}
	}
}

// maxRefreshes is the limit of the package; a slot that is not returned would show.
const maxRefreshes = 16

// signals subscribes to all signals of ec2netd.
func signals(t *testing.T, c *dbus.Conn) <-chan *dbus.Signal {
	t.Helper()
	if err := c.AddMatchSignal(dbus.WithMatchSender(api.BusName)); err != nil {
		t.Fatal(err)
	}
	ch := make(chan *dbus.Signal, 64)
	c.Signal(ch)
	return ch
}

func TestSignals(t *testing.T) { // H1
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	b.serve(dbusserver.Options{Agent: agent})
	c := b.Dial()
	ch := signals(t, c)

	// The counters change without a signal; the marker that follows shows this.
	s := apitest.State()
	s.Metadata.Requests++
	s.Metadata.LastSuccess = time.Now()
	agent.Set(s)
	s = apitest.State()
	s.State, s.Reason = state.Degraded, "networkd is not running"
	agent.Set(s)
	got := waitFor(t, ch)
	if got.Name != "org.freedesktop.DBus.Properties.PropertiesChanged" || got.Path != api.ObjectPath ||
		got.Body[0] != api.ManagerInterface ||
		!reflect.DeepEqual(got.Body[1], map[string]dbus.Variant{
			"State": dbus.MakeVariant("degraded"), "Reason": dbus.MakeVariant("networkd is not running"),
		}) {
		t.Errorf("signal %s of %s: %v", got.Name, got.Path, got.Body)
	}

	// An ENI gets its ID, so its object moves. Another ENI changes.
	next := *s
	next.Interfaces = slices.Clone(s.Interfaces)
	next.Interfaces[1].State, next.Interfaces[1].Reason, next.Interfaces[1].Missing = state.ENIConfigured, "", nil
	next.Interfaces[2].ENIID = "eni-0a1b2c3d4e5f60003"
	agent.Set(&next)
	got = waitFor(t, ch)
	if got.Name != "org.freedesktop.DBus.ObjectManager.InterfacesRemoved" || got.Path != api.ObjectPath ||
		!reflect.DeepEqual(got.Body, []any{dbus.ObjectPath(pendingPath), []string{api.InterfaceInterface}}) {
		t.Errorf("signal %s: %v", got.Name, got.Body)
	}
	got = waitFor(t, ch)
	if got.Path != "/org/ec2netd1/interface/eni_2d0a1b2c3d4e5f60002" || !reflect.DeepEqual(got.Body, []any{
		api.InterfaceInterface, map[string]dbus.Variant{
			"State": dbus.MakeVariant("configured"), "Reason": dbus.MakeVariant(""), "Missing": dbus.MakeVariant([]string{}),
		}, []string{},
	}) {
		t.Errorf("signal %s of %s: %v", got.Name, got.Path, got.Body)
	}
	got = waitFor(t, ch)
	if got.Name != "org.freedesktop.DBus.ObjectManager.InterfacesAdded" || got.Body[0] != dbus.ObjectPath("/org/ec2netd1/interface/eni_2d0a1b2c3d4e5f60003") {
		t.Errorf("signal %s: %v", got.Name, got.Body)
	}
	p := got.Body[1].(map[string]map[string]dbus.Variant)[api.InterfaceInterface]
	if len(p) != reflect.TypeFor[state.Interface]().NumField()-1 || p["Name"].Value() != "ens7" {
		t.Errorf("InterfacesAdded with %v", p)
	}
}

// TestBusComesAndGoes: the server starts before the bus, and works again after the bus
// restarts.
func TestBusComesAndGoes(t *testing.T) {
	b := newBus(t)
	agent := apitest.NewAgent(apitest.State())
	s := b.serve(dbusserver.Options{Agent: agent})
	time.Sleep(300 * time.Millisecond) // some attempts without a socket
	started := time.Now()
	b.Start()
	waitFor(t, s.Ready())
	if d := time.Since(started); d > 30*time.Second {
		t.Errorf("took %v from the start of the bus", d)
	}
	if _, err := call(object(b.Dial(), api.ObjectPath), describe); err != nil {
		t.Fatal(err)
	}
	b.Stop()
	changed := apitest.State()
	changed.Reason = "changed while there was no bus"
	agent.Set(changed)
	b.Start()
	c := b.Dial()
	for deadline := time.Now().Add(10 * time.Second); ; {
		out, err := call(object(c, api.ObjectPath), getProperty, api.ManagerInterface, "Reason")
		if err == nil {
			if out[0].(dbus.Variant).Value() != changed.Reason {
				t.Errorf("Reason = %v", out[0])
			}
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("not on the bus again: ", err)
		}
		time.Sleep(10 * time.Millisecond)
	}
}

// TestSocketBeforeBus: systemd opens the socket long before the bus runs, and clients
// that connect have to wait. The server logs nothing meanwhile, and ends when it is
// told to.
func TestSocketBeforeBus(t *testing.T) {
	dir := t.TempDir()
	l, err := net.Listen("unix", filepath.Join(dir, "bus"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	var log bytes.Buffer
	_, cancel, done := run(t, "unix:path="+filepath.Join(dir, "bus"), &log)
	conn, err := l.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	cancel()
	if err := waitFor(t, done); err != nil {
		t.Error(err)
	}
	if log.Len() > 0 {
		t.Errorf("logged: %s", &log)
	}
}

// run runs a server that logs to a writer. The caller ends it by cancel; done returns
// its result.
func run(t *testing.T, address string, log io.Writer) (s *dbusserver.Server, cancel func(), done <-chan error) {
	t.Helper()
	s, err := dbusserver.New(dbusserver.Options{
		Agent: apitest.NewAgent(apitest.State()), Address: address, Logger: slog.New(slog.NewTextHandler(log, nil)),
	})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	ended := make(chan error)
	go func() { ended <- s.Run(ctx) }()
	return s, cancel, ended
}

// TestNameTaken: the server logs once that the name has another owner, and gets it
// later.
func TestNameTaken(t *testing.T) {
	b := newBus(t)
	b.Start()
	other := b.Dial()
	if _, err := other.RequestName(api.BusName, 0); err != nil {
		t.Fatal(err)
	}
	var log syncBuffer
	s, cancel, done := run(t, b.Address, &log)
	time.Sleep(400 * time.Millisecond)
	select {
	case <-s.Ready():
		t.Error("ready without the name")
	default:
	}
	if _, err := other.ReleaseName(api.BusName); err != nil {
		t.Fatal(err)
	}
	waitFor(t, s.Ready())
	cancel()
	waitFor(t, done)
	if n := strings.Count(log.String(), "level=WARN"); n != 1 || !strings.Contains(log.String(), "does another ec2netd run?") {
		t.Errorf("the log has %d warnings: %s", n, log.String())
	}
}

type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (b *syncBuffer) Write(p []byte) (int, error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.Write(p)
}

func (b *syncBuffer) String() string {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.b.String()
}

// TestStorm: twenty clients introspect and read existing, disappearing and unknown
// paths, while ENIs are added and removed. With godbus's own table this ends the
// process (facts: godbus).
func TestStorm(t *testing.T) {
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.Many(15))
	b.serve(dbusserver.Options{Agent: agent})
	stop := make(chan struct{})
	var wg sync.WaitGroup
	wg.Go(func() {
		for n := 0; ; n++ {
			select {
			case <-stop:
				return
			default:
				agent.Set(apitest.Many(n % 16))
				runtime.Gosched()
			}
		}
	})
	paths := []dbus.ObjectPath{"/", "/org", "/nowhere", api.ObjectPath, api.InterfacePath, api.InterfacePath + "/nobody"}
	for i := range 15 {
		paths = append(paths, dbus.ObjectPath(fmt.Sprintf("%s/eni_2d%017x", api.InterfacePath, i)))
	}
	var answers atomic.Int64
	var clients sync.WaitGroup
	for range 20 {
		c := b.Dial()
		clients.Go(func() {
			for range 150 {
				o := object(c, paths[rand.IntN(len(paths))])
				var err error
				switch rand.IntN(5) {
				case 0:
					_, err = call(o, getAll, api.InterfaceInterface)
				case 1:
					_, err = call(object(c, api.ObjectPath), getManaged)
				case 2:
					_, err = call(object(c, api.ObjectPath), getInterface, "ens7")
				default:
					_, err = call(o, introspectCall)
				}
				switch name := errorName(err); name {
				case "<nil>", "org.freedesktop.DBus.Error.UnknownObject", "org.freedesktop.DBus.Error.UnknownInterface", api.ErrorNoSuchInterface:
					answers.Add(1)
				default:
					t.Errorf("%s: %v", name, err)
					return
				}
			}
		})
	}
	clients.Wait()
	close(stop)
	wg.Wait()
	if got := answers.Load(); got != 20*150 {
		t.Errorf("%d answers", got)
	}
}

// unwatched is an agent that sends no states to its watchers.
type unwatched struct{ *apitest.Agent }

func (unwatched) Watch(context.Context) <-chan *state.State { return make(chan *state.State) }

// TestAheadOfSignals: a call returns the current state, even before its signals are
// sent.
func TestAheadOfSignals(t *testing.T) {
	b := newBus(t)
	b.Start()
	agent := unwatched{apitest.NewAgent(apitest.State())}
	b.serve(dbusserver.Options{Agent: agent})
	c := b.Dial()
	for n := range 3 {
		agent.Set(apitest.Many(n))
		for range 2 {
			body, err := call(object(c, api.ObjectPath), describe)
			if err != nil {
				t.Fatal(err)
			}
			var got state.State
			if err := json.Unmarshal([]byte(body[0].(string)), &got); err != nil || len(got.Interfaces) != n {
				t.Errorf("%d interfaces, want %d (%v)", len(got.Interfaces), n, err)
			}
		}
	}
}

// TestCrowd: two hundred clients at once, each with its own connection, are all served
// while the state changes. Clients that subscribe and never read do not affect the
// others.
func TestCrowd(t *testing.T) { // H1
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.Many(15))
	b.serve(dbusserver.Options{Agent: agent})
	for range 10 {
		deaf := rawClient(t, b)
		deaf.BusObject().Go("org.freedesktop.DBus.AddMatch", dbus.FlagNoReplyExpected, nil, "type='signal',sender='"+api.BusName+"'")
	}
	var wg sync.WaitGroup
	for i := range 200 {
		c := b.Dial()
		wg.Go(func() {
			for _, method := range []string{describe, getManaged, introspectCall} {
				// There is no time limit: the duration depends on the machine.
				if err := object(c, api.ObjectPath).CallWithContext(t.Context(), method, 0).Err; err != nil {
					t.Errorf("client %d: %s: %v", i, method, err)
				}
			}
			agent.Set(apitest.Many(i % 16))
		})
	}
	wg.Wait()
}

// TestDeaf: clients that make many calls and never read a reply do not delay others.
func TestDeaf(t *testing.T) {
	b := newBus(t)
	b.Start()
	b.serve(dbusserver.Options{Agent: apitest.NewAgent(apitest.Many(15))})
	for range 10 {
		deaf := b.Dial()
		deaf.Eavesdrop(make(chan *dbus.Message)) // nothing is received from this channel
		for range 300 {
			object(deaf, api.ObjectPath).Go(describe, dbus.FlagNoReplyExpected, nil)
			object(deaf, api.ObjectPath).Go(introspectCall, 0, make(chan *dbus.Call, 1))
		}
	}
	// A client that does not even read its socket.
	stuck := rawClient(t, b)
	for range 300 {
		m := &dbus.Message{Type: dbus.TypeMethodCall, Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldDestination: dbus.MakeVariant(api.BusName),
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(api.ObjectPath)),
			dbus.FieldInterface:   dbus.MakeVariant(api.ManagerInterface),
			dbus.FieldMember:      dbus.MakeVariant("Describe"),
		}}
		stuck.Send(m, make(chan *dbus.Call, 1))
	}
	started := time.Now()
	if _, err := call(object(b.Dial(), api.ObjectPath), describe); err != nil {
		t.Fatal(err)
	}
	// With the race detector on a busy machine the 6000 earlier calls take seconds.
	if d := time.Since(started); d > time.Minute {
		t.Errorf("Describe took %v meanwhile", d)
	}
}

// rawClient is a client that does not read its socket after it has connected.
func rawClient(t *testing.T, b *bus) *dbus.Conn {
	t.Helper()
	conn, err := net.Dial("unix", b.Socket)
	if err != nil {
		t.Fatal(err)
	}
	h := &halting{Conn: conn, halt: make(chan struct{})}
	c, err := dbus.NewConn(h)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Auth(nil); err != nil {
		t.Fatal(err)
	}
	if err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	h.halted.Store(true)
	return c
}

// halting is a connection whose reader can be stopped.
type halting struct {
	net.Conn
	halted atomic.Bool
	halt   chan struct{}
}

func (h *halting) Read(b []byte) (int, error) {
	if h.halted.Load() {
		<-h.halt
		return 0, net.ErrClosed
	}
	return h.Conn.Read(b)
}

func (h *halting) Close() error {
	if h.halted.Swap(true) {
		close(h.halt)
	}
	return h.Conn.Close()
}

// TestHostile: messages that any local user can send directly to a bus connection.
func TestHostile(t *testing.T) {
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	b.serve(dbusserver.Options{Agent: agent})
	c := b.Dial()
	var owner string
	if err := c.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, api.BusName).Store(&owner); err != nil {
		t.Fatal(err)
	}
	deep := dbus.MakeVariant("x")
	for range 55 {
		deep = dbus.MakeVariant(deep)
	}
	variants := make([]dbus.Variant, 200_000)
	for i := range variants {
		variants[i] = dbus.MakeVariant(byte(1))
	}
	for _, kind := range []dbus.Type{dbus.TypeSignal, dbus.TypeMethodCall} {
		for _, body := range [][]any{{deep}, {variants}, nil} {
			m := &dbus.Message{Type: kind, Flags: dbus.FlagNoReplyExpected, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
				dbus.FieldDestination: dbus.MakeVariant(owner),
				dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath("/x")),
				dbus.FieldInterface:   dbus.MakeVariant("org.freedesktop.DBus"),
				dbus.FieldMember:      dbus.MakeVariant("NameLost"),
			}}
			if len(body) > 0 {
				m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(body...))
			}
			if call := c.Send(m, nil); call.Err != nil {
				t.Fatal(call.Err)
			}
		}
	}
	if _, err := call(object(c, api.ObjectPath), describe); err != nil {
		t.Fatal(err)
	}
	var after string
	if err := c.BusObject().Call("org.freedesktop.DBus.GetNameOwner", 0, api.BusName).Store(&after); err != nil || after != owner {
		t.Errorf("the server had to connect again: %s became %s (%v)", owner, after, err)
	}
}

// TestNothingLeft: no goroutines and no watchers are left.
func TestNothingLeft(t *testing.T) {
	ignore := goleak.IgnoreCurrent()
	agent := apitest.NewAgent(apitest.State())
	t.Run("serve", func(t *testing.T) {
		b := newBus(t)
		b.Start()
		b.serve(dbusserver.Options{Agent: agent})
		if _, err := call(object(b.Dial(), api.ObjectPath), describe); err != nil {
			t.Fatal(err)
		}
		b.Stop()
		b.Start()
	})
	goleak.VerifyNone(t, ignore)
	if n := agent.Watchers(); n != 0 {
		t.Errorf("%d watchers left", n)
	}
}

// busctl runs systemd's client, as another user if uid is not 0.
func busctl(t *testing.T, b *bus, uid uint32, args ...string) (string, error) {
	t.Helper()
	cmd := exec.Command("busctl", append([]string{"--address=" + b.Address, "--no-pager"}, args...)...)
	if uid != 0 {
		cmd.SysProcAttr = &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: uid, Gid: uid}}
	}
	out, err := cmd.CombinedOutput()
	return string(out), err
}

// TestBusctl uses the command that people use.
func TestBusctl(t *testing.T) { // H1
	if _, err := exec.LookPath("busctl"); err != nil {
		t.Skip("needs busctl: apt-get install systemd")
	}
	b := newBus(t)
	b.Start()
	b.serve(dbusserver.Options{})
	var uid uint32
	if os.Getuid() == 0 {
		uid = 65534
	} else {
		t.Log("not root: everything runs as this user")
	}
	out, err := busctl(t, b, uid, "call", api.BusName, api.ObjectPath, api.ManagerInterface, "Describe")
	if err != nil || !strings.HasPrefix(out, `s "{\"version\":\"1.2.3\"`) {
		t.Errorf("Describe: %v\n%s", err, out)
	}
	out, err = busctl(t, b, uid, "introspect", api.BusName, api.ObjectPath)
	for _, want := range []string{".Refresh", "method", "b ", ".InstanceId", `"i-0123456789abcdef0"`, "emits-change", ".InterfacesAdded"} {
		if err != nil || !strings.Contains(out, want) {
			t.Errorf("introspect: %v: no %q in\n%s", err, want, out)
		}
	}
	out, err = busctl(t, b, uid, "introspect", api.BusName, primaryPath)
	if err != nil || !strings.Contains(out, ".DeviceIndex") || !strings.Contains(out, `"10.0.0.10"`) {
		t.Errorf("introspect: %v\n%s", err, out)
	}
	out, err = busctl(t, b, uid, "tree", "--list", api.BusName)
	if err != nil || !strings.Contains(out, primaryPath) || !strings.Contains(out, pendingPath) {
		t.Errorf("tree: %v\n%s", err, out)
	}
	out, err = busctl(t, b, uid, "call", api.BusName, api.ObjectPath, api.ManagerInterface, "GetInterface", "s", "eni-0f")
	if err == nil || !strings.Contains(out, "no ENI \"eni-0f\"") {
		t.Errorf("GetInterface: %v\n%s", err, out)
	}
	out, err = busctl(t, b, uid, "call", api.BusName, api.ObjectPath, api.ManagerInterface, "Refresh", "b", "false")
	if err == nil || !strings.Contains(out, "Access denied") { // busctl has its own words for it
		t.Errorf("Refresh as uid %d: %v\n%s", uid, err, out)
	}
	if os.Getuid() == 0 {
		out, err = busctl(t, b, 0, "call", api.BusName, api.ObjectPath, api.ManagerInterface, "Refresh", "b", "false")
		if err != nil || !strings.Contains(out, "settled") {
			t.Errorf("Refresh as root: %v\n%s", err, out)
		}
	}
}

// BenchmarkDescribe describes 15 ENIs of 50 addresses, each time a state that nobody
// has described yet.
func BenchmarkDescribe(b *testing.B) {
	bus := newBus(b)
	bus.Start()
	agent := apitest.NewAgent(apitest.Many(15))
	bus.serve(dbusserver.Options{Agent: agent})
	m := object(bus.Dial(), api.ObjectPath)
	for _, method := range []string{describe, getManaged} {
		b.Run(method[strings.LastIndexByte(method, '.')+1:], func(b *testing.B) {
			for b.Loop() {
				agent.Set(apitest.Many(15))
				if _, err := call(m, method); err != nil {
					b.Fatal(err)
				}
			}
		})
	}
}
