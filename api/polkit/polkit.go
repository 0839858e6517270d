// Package polkit asks polkit who may change something. The only decision of its own is that
// root may do everything. If polkit does not run, nobody else may do anything.
package polkit

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"sync"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/service/bus"
)

// The authority on the system bus, see polkit(8).
const (
	busName = "org.freedesktop.PolicyKit1"
	busPath = dbus.ObjectPath("/org/freedesktop/PolicyKit1/Authority")
	method  = "org.freedesktop.PolicyKit1.Authority.CheckAuthorization"
	// allowInteraction is the flag that lets polkit ask the user.
	allowInteraction = 1
)

// Timeouts of an answer: of polkit's own, and of a user who is asked for a password.
const (
	patience            = 10 * time.Second
	interactivePatience = 2 * time.Minute
)

// Limits of the callers that wait for polkit at once: of one user, so that no user can block
// others, and of all users. Root never waits for polkit.
const (
	mostOfOne = 4
	mostOfAll = 32
)

// Authorizer implements [api.Authorizer]. It connects to the bus when necessary, and again
// when the connection has ended. The zero value is ready for use.
type Authorizer struct {
	// Address of the bus; empty for the system bus.
	Address string

	// conn is a separate connection, which keeps the messages of polkit apart from those of
	// clients.
	conn bus.Lazy
	once sync.Once

	mu      sync.Mutex
	waiting map[uint32]int
	all     int
}

// Authorize implements [api.Authorizer].
func (a *Authorizer) Authorize(ctx context.Context, caller api.Caller, action string) error {
	if caller.UID == 0 {
		return nil
	}
	if !a.enter(caller.UID) {
		return errors.New("too many callers are waiting for polkit: try again later")
	}
	defer a.leave(caller.UID)
	limit, flags := patience, uint32(0)
	if caller.Interactive {
		limit, flags = interactivePatience, allowInteraction
	}
	ctx, cancel := context.WithTimeout(ctx, limit)
	defer cancel()
	refused := &api.NotPermittedError{Caller: caller, Action: action}
	a.once.Do(func() { a.conn.Options = bus.Options{Address: a.Address, Timeout: patience} })
	conn, err := a.conn.Get(ctx)
	if err != nil {
		return fmt.Errorf("asking polkit about %s: %w", action, errors.Join(err, refused))
	}
	var result struct {
		Authorized, Challenge bool
		Details               map[string]string
	}
	err = conn.Object(busName, busPath).CallWithContext(ctx, method, 0,
		subject(caller), action, map[string]string{}, flags, "").Store(&result)
	var failure dbus.Error
	switch {
	case errors.As(err, &failure) && slices.Contains(absent, failure.Name):
		return refused
	case err != nil:
		return fmt.Errorf("asking polkit about %s: %w", action, errors.Join(err, refused))
	case !result.Authorized:
		return refused
	}
	return nil
}

// absent are the errors of the bus if polkit is not installed, is masked, or cannot be
// started.
var absent = []string{
	"org.freedesktop.DBus.Error.ServiceUnknown", "org.freedesktop.DBus.Error.NameHasNoOwner",
	"org.freedesktop.systemd1.UnitMasked", "org.freedesktop.systemd1.NoSuchUnit",
}

// polkitSubject is the subject of a question to polkit.
type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

// subject identifies a caller: on the bus by its unique name, which is never reused, and on a
// socket by the process that connected. With a start time of 0 polkit looks it up itself. By
// that moment another process may have the number, but only one of the same user.
func subject(caller api.Caller) polkitSubject {
	if caller.BusName != "" {
		return polkitSubject{"system-bus-name", map[string]dbus.Variant{"name": dbus.MakeVariant(caller.BusName)}}
	}
	return polkitSubject{"unix-process", map[string]dbus.Variant{
		"pid": dbus.MakeVariant(uint32(caller.PID)), "start-time": dbus.MakeVariant(uint64(0)), "uid": dbus.MakeVariant(int32(caller.UID)),
	}}
}

func (a *Authorizer) enter(uid uint32) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.all >= mostOfAll || a.waiting[uid] >= mostOfOne {
		return false
	}
	if a.waiting == nil {
		a.waiting = map[uint32]int{}
	}
	a.all++
	a.waiting[uid]++
	return true
}

func (a *Authorizer) leave(uid uint32) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.all--
	if a.waiting[uid]--; a.waiting[uid] == 0 {
		delete(a.waiting, uid)
	}
}

// Close ends the connection.
func (a *Authorizer) Close() { a.conn.Close() }
