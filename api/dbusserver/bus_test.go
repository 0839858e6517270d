package dbusserver_test

import (
	"context"
	"log/slog"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
)

// bus is a private dbus-daemon for ec2netd's server.
type bus struct {
	*apitest.Bus
	t testing.TB
}

// newBus returns a bus that does not run yet.
func newBus(t testing.TB) *bus {
	t.Helper()
	return &bus{apitest.NewBus(t), t}
}

// serve runs a server on the bus until the test ends, and waits until it owns its name
// if the bus runs. It fills in missing options.
func (b *bus) serve(o dbusserver.Options) *dbusserver.Server {
	b.t.Helper()
	o.Address = b.Address
	if o.Agent == nil {
		o.Agent = apitest.NewAgent(apitest.State())
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.NewTextHandler(b.t.Output(), &slog.HandlerOptions{Level: slog.LevelDebug}))
	}
	s, err := dbusserver.New(o)
	if err != nil {
		b.t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	b.t.Cleanup(func() {
		cancel()
		select {
		case err := <-done:
			if err != nil {
				b.t.Errorf("Run: %v", err)
			}
		case <-time.After(10 * time.Second):
			b.t.Error("Run did not end")
		}
	})
	if b.Running() {
		waitFor(b.t, s.Ready())
	}
	return s
}

func waitFor[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("timeout while waiting")
	}
	return v
}

// object returns the object of ec2netd at path, for c.
func object(c *dbus.Conn, path dbus.ObjectPath) dbus.BusObject {
	return c.Object(api.BusName, path)
}

// call calls a method and returns the body of the reply.
func call(o dbus.BusObject, method string, args ...any) ([]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := o.CallWithContext(ctx, method, 0, args...)
	return c.Body, c.Err
}
