// Package bus dials the system bus. It is the only place that does: a bare godbus
// connection lets any local user end the process, because it decodes whatever the bus
// delivers to its unique name (J1, facts: godbus, decisions/006).
//
// A connection made here negotiates no file descriptors, and a guard stands between the
// socket and godbus. The guard passes on what its owner can use: expected replies,
// subscribed signals, and method calls within limits. It skips everything else without
// keeping it in memory.
//
// The package knows nothing of networkd, polkit or ec2netd's own interfaces, does not
// authorize anybody, and never dials again by itself.
package bus

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"strings"
	"time"

	"github.com/godbus/dbus/v5"
)

// SystemBus is the address of the system bus. systemd opens the socket early at boot, long
// before the bus runs; a program that connects then waits for the bus.
const SystemBus = "unix:path=/run/dbus/system_bus_socket"

// DefaultTimeout bounds the setup of a connection if [Options] do not.
const DefaultTimeout = 3 * time.Second

// DefaultMaxReply bounds the body of a reply if [Options] do not.
const DefaultMaxReply = 1 << 20

// Options describe the use of a connection. The zero value is a connection to the system bus
// that can only make calls.
type Options struct {
	// Address of the bus, as unix:path=FILE; empty means [SystemBus].
	Address string
	// Timeout bounds everything until the connection is ready; zero means [DefaultTimeout].
	Timeout time.Duration
	// MaxReply bounds the body of a reply in bytes; zero means [DefaultMaxReply]. The caller
	// gets an error instead of a larger one.
	MaxReply int
	// Signals are the signals to subscribe to. No other signal reaches the connection.
	Signals []Signal
	// Calls admits method calls, and Handler answers them. If Calls is nil, the guard
	// answers all calls with an error.
	Calls   *Calls
	Handler dbus.Handler
}

// Signal is a subscription to a signal. Empty fields match everything, but Sender, Interface
// and Member are required.
type Signal struct {
	// Sender is a bus name. The guard knows its owner, and passes on no signal of any other
	// sender.
	Sender string
	// Interface and Member name the signal.
	Interface, Member string
	// Arg0 is the first argument, a string.
	Arg0 string
}

// Conn is a guarded connection to the bus.
type Conn struct {
	*dbus.Conn
	guard *guard
	stop  func() bool
}

// Dial connects to the bus, and closes the connection when ctx is done. It subscribes to the
// signals of o, and returns within o.Timeout.
func Dial(ctx context.Context, o Options) (_ *Conn, err error) {
	address := cmp.Or(o.Address, SystemBus)
	setup, cancel := context.WithTimeout(ctx, cmp.Or(o.Timeout, DefaultTimeout))
	defer cancel()
	path, err := socketOf(address)
	if err != nil {
		return nil, err
	}
	var d net.Dialer
	socket, err := d.DialContext(setup, "unix", path)
	if err != nil {
		return nil, fmt.Errorf("connecting to the bus: %w", err)
	}
	g := newGuard(socket, &o)
	options := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	if o.Handler != nil {
		options = append(options, dbus.WithHandler(o.Handler))
	}
	inner, err := dbus.NewConn(g, options...)
	if err != nil {
		socket.Close()
		return nil, fmt.Errorf("connecting to the bus: %w", err)
	}
	// godbus's handshake has no deadline, and its Close waits for a write that the bus
	// may never read. Closing the socket ends both.
	c := &Conn{Conn: inner, guard: g, stop: context.AfterFunc(ctx, func() { _ = g.Close() })}
	expire := context.AfterFunc(setup, func() { _ = g.Close() })
	defer func() {
		if !expire() && err == nil {
			err = fmt.Errorf("connecting to the bus at %s: %w", path, context.Cause(setup))
		}
		if err != nil {
			if cause := context.Cause(setup); cause != nil && !errors.Is(err, cause) {
				err = fmt.Errorf("%w: %w", err, cause)
			}
			c.Close()
		}
	}()
	if err := inner.Auth(nil); err != nil {
		return nil, fmt.Errorf("authenticating to the bus at %s: %w", path, err)
	}
	if err := inner.Hello(); err != nil {
		return nil, fmt.Errorf("greeting the bus at %s: %w", path, c.because(err))
	}
	for _, s := range o.Signals {
		if err := c.subscribe(setup, s); err != nil {
			return nil, fmt.Errorf("subscribing to the signal %s.%s of %s: %w", s.Interface, s.Member, s.Sender, c.because(err))
		}
	}
	return c, nil
}

// because returns the reason why the connection has ended. godbus reports any end as a close
// by the user.
func (c *Conn) because(err error) error {
	if reason := c.Err(); reason != nil && errors.Is(err, dbus.ErrClosed) {
		return reason
	}
	return err
}

func (c *Conn) subscribe(ctx context.Context, s Signal) error {
	if s.Sender == "" || s.Interface == "" || s.Member == "" {
		return errors.New("a signal needs a sender, an interface and a name")
	}
	if err := c.guard.watch(s.Sender); err != nil {
		return err
	}
	match := []dbus.MatchOption{dbus.WithMatchSender(s.Sender), dbus.WithMatchInterface(s.Interface), dbus.WithMatchMember(s.Member)}
	if s.Arg0 != "" {
		match = append(match, dbus.WithMatchArg(0, s.Arg0))
	}
	return c.AddMatchSignalContext(ctx, match...)
}

// Close ends the connection. Calls in progress fail.
func (c *Conn) Close() {
	c.stop()
	_ = c.guard.Close()
	_ = c.Conn.Close() // it also closes the socket, which is already closed
}

// Err returns the reason why the connection has ended: [ErrEnd] if the bus closed it. It is nil
// while the connection is open and after Close.
func (c *Conn) Err() error { return c.guard.reason() }

// socketOf returns the file in an address of the bus.
func socketOf(address string) (string, error) {
	value, ok := strings.CutPrefix(address, "unix:path=")
	if ok && !strings.ContainsAny(value, ",;") {
		if path, err := dbus.UnescapeBusAddressValue(value); err == nil && path != "" {
			return path, nil
		}
	}
	return "", fmt.Errorf("connecting to the bus: the address %q is not of the form unix:path=FILE", address)
}
