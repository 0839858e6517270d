package dbusserver

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"runtime/debug"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/service/bus"
	"ec2netd/service/state"
)

// maxRefreshes is how many refreshes of users may run or wait; those of root are not
// limited. [bus.Calls] limits the other calls.
const maxRefreshes = 16

// tree answers every method call that arrives on one bus connection.
//
// It replaces godbus's own table of exported objects, with which any local user can end the
// process: Introspect on a path that is not exported walks a map without a lock. tree looks
// up a path in an immutable view, so that ENIs may be added and removed during any call.
type tree struct {
	agent      api.Agent
	authorizer api.Authorizer
	log        *slog.Logger
	control    Log
	contract   *contract
	timeout    time.Duration
	handlers   map[string]map[string]handlerFunc
	// view is the state of the latest signals. ahead is a later one, which is not signalled
	// yet.
	view, ahead atomic.Pointer[view]

	admitted  *bus.Calls
	refreshes chan struct{}

	mu     sync.Mutex
	closed bool
	calls  int
	idle   *sync.Cond
}

func newTree(o *Options, c *contract, admitted *bus.Calls) *tree {
	t := &tree{
		agent:      o.Agent,
		authorizer: o.Authorizer,
		log:        o.Logger,
		control:    o.Log,
		contract:   c,
		timeout:    o.RefreshTimeout,
		handlers:   handlers(),
		admitted:   admitted,
		refreshes:  make(chan struct{}, maxRefreshes),
	}
	t.idle = sync.NewCond(&t.mu)
	t.view.Store(newView(o.Agent.State()))
	return t
}

// call is one method call.
type call struct {
	tree   *tree
	view   *view
	conn   *dbus.Conn
	path   dbus.ObjectPath
	iface  string
	member string
	msg    *dbus.Message
	sender string
}

// handlerFunc implements one method: it returns the values of its out arguments, or a
// dbus.Error.
type handlerFunc func(*call) ([]any, error)

// handlers maps interface and method to the handler. The tests compare it with the XML.
func handlers() map[string]map[string]handlerFunc {
	return map[string]map[string]handlerFunc{
		introspectInterface:    {"Introspect": (*call).introspect},
		propertiesInterface:    {"Get": (*call).get, "GetAll": (*call).getAll, "Set": (*call).set},
		objectManagerInterface: {"GetManagedObjects": (*call).getManagedObjects},
		api.ManagerInterface: {
			"Describe":     (*call).describe,
			"GetInterface": (*call).getInterface,
			"Refresh":      (*call).refresh,
		},
		api.InterfaceInterface: {
			"Describe": (*call).describeInterface,
			"Refresh":  (*call).refresh,
		},
		logControlInterface: {},
	}
}

// LookupObject implements [dbus.Handler]. Every path is an object here; its calls are
// answered later, within the limits.
func (t *tree) LookupObject(path dbus.ObjectPath) (dbus.ServerObject, bool) {
	return &call{tree: t, path: path}, true
}

// LookupInterface implements [dbus.ServerObject].
func (c *call) LookupInterface(name string) (dbus.Interface, bool) {
	c.iface = name
	return c, true
}

// LookupMethod implements [dbus.Interface].
func (c *call) LookupMethod(name string) (dbus.Method, bool) {
	c.member = name
	return c, true
}

// DecodeArguments implements [dbus.ArgumentDecoder].
func (c *call) DecodeArguments(conn *dbus.Conn, sender string, msg *dbus.Message, _ []any) ([]any, error) {
	c.conn, c.sender, c.msg = conn, sender, msg
	return nil, nil
}

// Call, NumArguments and so on implement [dbus.Method].
func (c *call) Call(...any) (out []any, err error) { return c.tree.answer(c) }

// NumArguments is not called: see DecodeArguments.
func (c *call) NumArguments() int { return 0 }

// NumReturns is not called.
func (c *call) NumReturns() int { return 0 }

// ArgumentValue is not called.
func (c *call) ArgumentValue(int) any { return nil }

// ReturnValue is not called.
func (c *call) ReturnValue(int) any { return nil }

// answer finds and runs the handler of a call. If it panics, only the caller gets an error,
// and the daemon goes on.
func (t *tree) answer(c *call) (out []any, err error) {
	if !t.enter() {
		return nil, failure("org.freedesktop.DBus.Error.Failed", "ec2netd is leaving the bus")
	}
	defer t.leave()
	defer func() {
		if r := recover(); r != nil {
			t.log.Error("A D-Bus call failed within ec2netd; please report this",
				"interface", c.iface, "member", c.member, "panic", fmt.Sprint(r), "stack", string(debug.Stack()))
			out, err = nil, failure("org.freedesktop.DBus.Error.Failed", "ec2netd failed on this call; its log says more")
		}
	}()
	c.view = t.view.Load()
	if c.member == "Describe" {
		c.view = t.now()
	}
	available := interfacesOf(c.view.kindOf(c.path))
	if available == nil {
		return nil, failure("org.freedesktop.DBus.Error.UnknownObject",
			"no object %s: ask GetManagedObjects on %s for those there are", clip(string(c.path)), api.ObjectPath)
	}
	if c.iface == "" {
		// A call may omit the interface; the method names are unique.
		for _, name := range available {
			if t.handlers[name][c.member] != nil {
				c.iface = name
			}
		}
	}
	if c.iface != "" && !slices.Contains(available, c.iface) {
		return nil, failure("org.freedesktop.DBus.Error.UnknownInterface",
			"%s has no interface %s", clip(string(c.path)), c.iface)
	}
	handler := t.handlers[c.iface][c.member]
	if handler == nil {
		return nil, failure("org.freedesktop.DBus.Error.UnknownMethod",
			"%s has no method %s of interface %q", clip(string(c.path)), c.member, c.iface)
	}
	got, _ := c.msg.Headers[dbus.FieldSignature].Value().(dbus.Signature)
	want := t.contract.inSignature(c.iface, c.member)
	if dropped := t.admitted.Dropped(c.sender, c.msg.Serial()); (got.String() != want || dropped) && c.member != "Set" {
		text := fmt.Sprintf("of signature %q", got.String())
		if dropped {
			text = "of another signature, with file descriptors or too many bytes"
		}
		return nil, failure(dbus.ErrMsgInvalidArg.Name, "%s takes arguments of signature %q and got some %s", c.member, want, text)
	}
	switch c.member {
	case "Refresh":
		// The call and its authorization take some time, which must not delay readers.
		t.admitted.Slow(c.sender, c.msg.Serial())
		if err := c.authorize(api.ActionRefresh); err != nil {
			return nil, err
		}
	case "Set":
		t.admitted.Slow(c.sender, c.msg.Serial())
	}
	out, err = handler(c)
	if t.admitted.Quiet(c.sender, c.msg.Serial()) {
		out = nil // the caller does not read it
	}
	return out, err
}

// now returns the state that Describe shows. The signals of a change may not have been sent
// yet, but a client that knows of the change, for example from the reply to a Refresh over
// Varlink, sees it. Properties have the values of the latest signals: a client that caches
// them would otherwise miss a value that changes back in between.
func (t *tree) now() *view {
	v, current := t.view.Load(), t.agent.State()
	if v.state == current || v.state.Same(current) {
		return v
	}
	if v = t.ahead.Load(); v == nil || v.state != current {
		v = newView(current)
		t.ahead.Store(v)
	}
	return v
}

// inSignature is the signature of the arguments of a method.
func (c *contract) inSignature(iface, member string) string {
	var s string
	for _, m := range c.interfaces[iface].Methods {
		if m.Name == member {
			for _, a := range m.Args {
				if a.Direction != "out" {
					s += a.Type
				}
			}
		}
	}
	return s
}

// enter begins a call, unless the connection is closing.
func (t *tree) enter() bool {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.closed {
		return false
	}
	t.calls++
	return true
}

func (t *tree) leave() {
	t.mu.Lock()
	defer t.mu.Unlock()
	if t.calls--; t.calls == 0 {
		t.idle.Broadcast()
	}
}

// close refuses further calls and waits for those in progress.
func (t *tree) close() {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.closed = true
	for t.calls > 0 {
		t.idle.Wait()
	}
}

// caller returns the calling user, as reported by the bus when the call arrived.
func (c *call) caller() (uid uint32, err error) {
	uid, ok := c.tree.admitted.User(c.sender, c.msg.Serial())
	if !ok {
		return 0, failure("org.freedesktop.DBus.Error.AccessDenied", "the bus does not say who calls")
	}
	return uid, nil
}

// authorize asks the Authorizer whether the caller is permitted.
func (c *call) authorize(action string) error {
	uid, err := c.caller()
	if err != nil {
		return err
	}
	err = c.tree.authorizer.Authorize(c.conn.Context(), api.Caller{
		UID:         uid,
		BusName:     c.sender,
		Interactive: c.msg.Flags&dbus.FlagAllowInteractiveAuthorization != 0,
	}, action)
	if err != nil {
		return failure("org.freedesktop.DBus.Error.AccessDenied", "%v", err)
	}
	return nil
}

func (c *call) introspect() ([]any, error) {
	return []any{c.tree.contract.introspectXML(c.view, c.path)}, nil
}

func (c *call) get() ([]any, error) {
	iface, name := c.msg.Body[0].(string), c.msg.Body[1].(string)
	p, err := c.properties(iface)
	if err != nil {
		return nil, err
	}
	value, ok := p[name]
	if !ok {
		return nil, failure("org.freedesktop.DBus.Error.UnknownProperty", "%s has no property %q", clip(string(c.path)), clip(name))
	}
	return []any{value}, nil
}

func (c *call) getAll() ([]any, error) {
	p, err := c.properties(c.msg.Body[0].(string))
	if err != nil {
		return nil, err
	}
	return []any{map[string]dbus.Variant(p)}, nil
}

func (c *call) set() ([]any, error) {
	// The guard only passes on strings.
	if len(c.msg.Body) != 3 || c.path != logControlPath || c.msg.Body[0] != logControlInterface {
		return nil, failure("org.freedesktop.DBus.Error.PropertyReadOnly",
			"the properties of ec2netd tell what is, and cannot be set, but for the level and the target of the log, which are texts; see ec2netd.conf(5) for what can be configured")
	}
	value, _ := c.msg.Body[2].(dbus.Variant)
	text, ok := value.Value().(string)
	set := map[any]func(string) error{"LogLevel": c.tree.control.SetLevel, "LogTarget": c.tree.control.SetTarget}[c.msg.Body[1]]
	if !ok || set == nil {
		return nil, failure("org.freedesktop.DBus.Error.PropertyReadOnly", "only LogLevel and LogTarget can be set, to a text")
	}
	if err := c.authorize(api.ActionSetLog); err != nil {
		return nil, err
	}
	if err := set(text); err != nil {
		return nil, failure(dbus.ErrMsgInvalidArg.Name, "%v", err)
	}
	return nil, nil
}

// properties returns the properties of an interface of c's object; "" stands for its only
// one.
func (c *call) properties(iface string) (properties, error) {
	name, p := c.view.propertiesOf(c.path)
	if c.path == logControlPath {
		name, p = logControlInterface, properties{
			"LogLevel": dbus.MakeVariant(c.tree.control.Level()), "LogTarget": dbus.MakeVariant(c.tree.control.Target()),
			"SyslogIdentifier": dbus.MakeVariant(c.tree.control.Identifier()),
		}
	}
	switch {
	case iface == name || iface == "":
		return p, nil
	case slices.Contains(interfacesOf(c.view.kindOf(c.path)), iface):
		return properties{}, nil
	default:
		return nil, failure("org.freedesktop.DBus.Error.UnknownInterface", "%s has no interface %q", clip(string(c.path)), clip(iface))
	}
}

func (c *call) getManagedObjects() ([]any, error) {
	objects := make(map[dbus.ObjectPath]map[string]properties, len(c.view.interfaces))
	for path, o := range c.view.interfaces {
		objects[path] = map[string]properties{api.InterfaceInterface: o.properties}
	}
	return []any{objects}, nil
}

func (c *call) describe() ([]any, error) {
	s, err := c.view.describe()
	if err != nil {
		return nil, err
	}
	return []any{s}, nil
}

func (c *call) describeInterface() ([]any, error) {
	s, err := c.view.interfaces[c.path].describe()
	if err != nil {
		return nil, err
	}
	return []any{s}, nil
}

func (c *call) getInterface() ([]any, error) {
	e, err := api.Find(c.view.state, c.msg.Body[0].(string))
	if err != nil {
		return nil, failure(api.ErrorNoSuchInterface, "%v", err)
	}
	return []any{c.view.paths[e]}, nil
}

func (c *call) refresh() ([]any, error) {
	uid, err := c.caller()
	if err != nil {
		return nil, err
	}
	if uid != 0 {
		select {
		case c.tree.refreshes <- struct{}{}:
			defer func() { <-c.tree.refreshes }()
		default:
			return nil, failure("org.freedesktop.DBus.Error.LimitsExceeded", "%d refreshes are under way: wait for them", maxRefreshes)
		}
	}
	ctx, cancel := context.WithTimeout(c.conn.Context(), c.tree.timeout)
	defer cancel()
	wait := c.msg.Body[0].(bool)
	refresh := func() (*state.Changes, error) { return c.tree.agent.Refresh(ctx, wait) }
	if c.iface == api.InterfaceInterface {
		mac, _ := c.view.interfaces[c.path].properties["Mac"].Value().(string)
		refresh = func() (*state.Changes, error) { return c.tree.agent.RefreshInterface(ctx, mac, wait) }
	}
	changes, err := refresh()
	switch {
	case err != nil && errors.Is(ctx.Err(), context.DeadlineExceeded):
		return nil, failure("org.freedesktop.DBus.Error.Timeout",
			"the refresh was not done within %v and goes on by itself: %v", c.tree.timeout, err)
	case err != nil:
		return nil, failure(api.ErrorRefreshFailed, "refreshing: %v", err)
	}
	b, err := json.Marshal(api.NonNilChanges(changes))
	if err != nil {
		return nil, err
	}
	return []any{string(b)}, nil
}

// failure returns a D-Bus error with a text for people.
func failure(name, format string, args ...any) error {
	return dbus.Error{Name: name, Body: []any{text(fmt.Sprintf(format, args...))}}
}

// clip shortens text from a caller for errors and logs.
func clip(s string) string {
	const most = 256
	if len(s) > most {
		return s[:most] + "…"
	}
	return s
}
