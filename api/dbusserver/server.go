// Package dbusserver serves org.ec2netd1 on the system bus: the contract of
// api/org.ec2netd1.Manager.xml and api/org.ec2netd1.Interface.xml. It serves the state
// of the agent and passes Refresh on to it; it makes no decisions about the network.
package dbusserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"slices"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/service/bus"
	"ec2netd/service/state"
)

// Timeouts and delays of the connection to the bus.
const (
	// setupTimeout bounds the setup of the connection. At boot this waits for
	// dbus.service, and so for basic.target.
	setupTimeout = 2 * time.Minute
	// firstRetry and lastRetry bound the time between attempts to connect. They are
	// short enough that nobody has to wait for ec2netd when the bus is available.
	firstRetry = 50 * time.Millisecond
	lastRetry  = 2 * time.Second
	// patience is how long the bus may be unavailable before this is logged.
	patience = time.Minute
)

// Options of a [Server].
type Options struct {
	// Agent is the daemon; required.
	Agent api.Agent
	// Log is served as org.freedesktop.LogControl1; nil for a log without content.
	Log Log
	// Authorizer decides on Refresh and on changes of the log settings; nil means
	// [api.RootOnly].
	Authorizer api.Authorizer
	// Logger; nil means none.
	Logger *slog.Logger
	// Address of the bus; empty means [bus.SystemBus].
	Address string
	// RefreshTimeout bounds one Refresh; zero means 90 seconds.
	RefreshTimeout time.Duration
}

// Log is the object that org.freedesktop.LogControl1 shows and changes.
type Log interface {
	Level() string
	SetLevel(name string) error
	Target() string
	SetTarget(name string) error
	Identifier() string
}

// noLog is a Log without content.
type noLog struct{}

func (noLog) Level() string          { return "" }
func (noLog) SetLevel(string) error  { return errors.New("there is no log") }
func (noLog) Target() string         { return "" }
func (noLog) SetTarget(string) error { return errors.New("there is no log") }
func (noLog) Identifier() string     { return "" }

// Server serves D-Bus. It owns its connection to the bus and connects again when the bus
// restarts.
type Server struct {
	options  Options
	contract *contract
	ready    chan struct{}
}

// New returns a Server; nothing happens before Run. New fails if an interface
// description is invalid.
func New(o Options) (*Server, error) {
	if o.Agent == nil {
		return nil, errors.New("D-Bus server: no agent given")
	}
	if o.Authorizer == nil {
		o.Authorizer = api.RootOnly{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	if o.Log == nil {
		o.Log = noLog{}
	}
	o.RefreshTimeout = cmp.Or(o.RefreshTimeout, 90*time.Second)
	c, err := newContract()
	if err != nil {
		return nil, err
	}
	return &Server{options: o, contract: c, ready: make(chan struct{})}, nil
}

// String returns the name of the task for the log.
func (s *Server) String() string { return "D-Bus server " + api.BusName }

// Ready is closed when the server owns the name for the first time. At boot this is
// after the start of the bus: units before the bus must not wait for it.
func (s *Server) Ready() <-chan struct{} { return s.ready }

// Run serves until ctx is done, and then returns nil. A missing bus, or a lost
// connection, is no error: Run tries again soon, and logs nothing at first. Run must be
// called only once.
func (s *Server) Run(ctx context.Context) error {
	watch := s.options.Agent.Watch(ctx)
	retry := backoff.NewExponentialBackOff()
	retry.InitialInterval, retry.MaxInterval = firstRetry, lastRetry
	var failing time.Time
	var told bool
	for {
		connection, err := s.connect(ctx)
		if err == nil {
			if told {
				s.options.Logger.Info("The D-Bus API is available again", "name", api.BusName)
			}
			retry.Reset()
			failing, told = time.Time{}, false
			s.serve(ctx, connection, watch)
		} else if ctx.Err() == nil {
			s.options.Logger.Debug("No connection to the bus yet", "error", err)
			if failing.IsZero() {
				failing = time.Now()
			}
			var taken *nameTakenError
			var refused dbus.Error
			if !told && (time.Since(failing) > patience || errors.As(err, &taken) || errors.As(err, &refused)) {
				s.options.Logger.Warn("The D-Bus API is not available; trying on", "error", err)
				told = true
			}
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(retry.NextBackOff()):
		}
	}
}

// nameTakenError: another connection owns the name org.ec2netd1 on this bus.
type nameTakenError struct{ reply dbus.RequestNameReply }

func (e *nameTakenError) Error() string {
	return fmt.Sprintf("requesting the bus name %s: %v: does another ec2netd run? See busctl status %s",
		api.BusName, e.reply, api.BusName)
}

// connect dials the bus, prepares for all calls, and only then requests the name.
func (s *Server) connect(ctx context.Context) (_ *connection, err error) {
	calls := bus.NewCalls(s.contract.inSignatures())
	t := newTree(&s.options, s.contract, calls)
	conn, err := bus.Dial(ctx, bus.Options{Address: s.options.Address, Timeout: setupTimeout, Calls: calls, Handler: t})
	if err != nil {
		return nil, err
	}
	c := &connection{conn: conn, tree: t}
	defer func() {
		if err != nil {
			c.close()
		}
	}()
	setup, cancel := context.WithTimeout(ctx, setupTimeout)
	defer cancel()
	var reply dbus.RequestNameReply
	err = conn.BusObject().CallWithContext(setup, "org.freedesktop.DBus.RequestName", 0,
		api.BusName, dbus.NameFlagDoNotQueue).Store(&reply)
	if err != nil {
		return nil, fmt.Errorf("requesting the bus name %s: %w", api.BusName, err)
	}
	if reply != dbus.RequestNameReplyPrimaryOwner && reply != dbus.RequestNameReplyAlreadyOwner {
		return nil, &nameTakenError{reply}
	}
	return c, nil
}

// inSignatures lists the argument signatures of the methods, except that of Set, whose
// value can have any type and is always refused.
func (c *contract) inSignatures() map[string]bool {
	signatures := map[string]bool{}
	for _, i := range c.interfaces {
		for _, m := range i.Methods {
			if i.Name != propertiesInterface || m.Name != "Set" {
				signatures[c.inSignature(i.Name, m.Name)] = true
			}
		}
	}
	return signatures
}

// serve signals each change until the connection ends, at the latest when ctx is done.
func (s *Server) serve(ctx context.Context, c *connection, watch <-chan *state.State) {
	defer c.close()
	select {
	case <-s.ready:
	default:
		close(s.ready)
	}
	s.options.Logger.Debug("Serving D-Bus", "name", api.BusName)
	for {
		select {
		case <-c.conn.Context().Done():
			if err := c.conn.Err(); err != nil && ctx.Err() == nil && !errors.Is(err, bus.ErrEnd) {
				s.options.Logger.Warn("The connection to the bus has ended; connecting again", "reason", err.Error())
			}
			return
		case _, ok := <-watch:
			if !ok {
				return
			}
			// The state in the channel may be older than the one that connect used.
			if err := c.publish(s.options.Agent.State()); err != nil {
				s.options.Logger.Debug("Could not signal a change on the bus", "error", err)
				return
			}
		}
	}
}

// connection is one connection to the bus.
type connection struct {
	conn *bus.Conn
	tree *tree
}

func (c *connection) close() {
	c.conn.Close()
	c.tree.close()
}

// publish makes now available to callers, and then signals the differences.
func (c *connection) publish(now *state.State) error {
	before := c.tree.view.Load()
	if before.state == now {
		return nil
	}
	after := newView(now)
	c.tree.view.Store(after)
	c.tree.ahead.Store(nil)
	for _, path := range slices.Sorted(maps.Keys(before.interfaces)) {
		if _, stays := after.interfaces[path]; !stays {
			err := c.conn.Emit(api.ObjectPath, objectManagerInterface+".InterfacesRemoved", path, []string{api.InterfaceInterface})
			if err != nil {
				return err
			}
		}
	}
	for _, path := range slices.Sorted(maps.Keys(after.interfaces)) {
		o := after.interfaces[path]
		old, was := before.interfaces[path]
		var err error
		if was {
			err = c.emitChanged(path, api.InterfaceInterface, old.properties, o.properties)
		} else {
			err = c.conn.Emit(api.ObjectPath, objectManagerInterface+".InterfacesAdded",
				path, map[string]properties{api.InterfaceInterface: o.properties})
		}
		if err != nil {
			return err
		}
	}
	return c.emitChanged(api.ObjectPath, api.ManagerInterface, before.manager, after.manager)
}

// emitChanged signals the changed properties of one object, if there are any.
func (c *connection) emitChanged(path dbus.ObjectPath, iface string, before, after properties) error {
	diff := changed(before, after, c.tree.contract.quiet[iface])
	if len(diff) == 0 {
		return nil
	}
	return c.conn.Emit(path, propertiesInterface+".PropertiesChanged", iface, diff, []string{})
}
