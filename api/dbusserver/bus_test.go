package dbusserver_test

import (
	"bufio"
	"context"
	"fmt"
	"log/slog"
	"os"
	"os/exec"
	"path/filepath"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
)

// bus is a private dbus-daemon. It listens in a directory of its own, so that no test
// ever speaks to the machine's.
type bus struct {
	t      testing.TB
	socket string
	config string
	daemon *exec.Cmd
}

const busConfig = `<busconfig>
  <type>system</type>
  <listen>unix:path=%s</listen>
  <auth>EXTERNAL</auth>
  <policy context="default">
    <allow user="*"/>
    <allow own="*"/>
    <allow send_type="method_call"/>
    <allow send_type="signal"/>
    <allow send_requested_reply="true" send_type="method_return"/>
    <allow send_requested_reply="true" send_type="error"/>
    <allow receive_type="method_call"/>
    <allow receive_type="method_return"/>
    <allow receive_type="error"/>
    <allow receive_type="signal"/>
  </policy>
  <limit name="max_connections_per_user">4096</limit>
  <limit name="max_replies_per_connection">50000</limit>
</busconfig>
`

// newBus makes a bus that does not run yet.
func newBus(t testing.TB) *bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Fatal("this test needs dbus-daemon: apt-get install dbus-daemon")
	}
	dir, err := os.MkdirTemp("", "ec2netd-bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	// Other users are to connect too.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	b := &bus{t: t, socket: filepath.Join(dir, "bus"), config: filepath.Join(dir, "bus.conf")}
	if err := os.WriteFile(b.config, fmt.Appendf(nil, busConfig, b.socket), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.stop)
	return b
}

// start starts the bus and waits until it takes connections.
func (b *bus) start() {
	b.t.Helper()
	b.daemon = exec.Command("dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--print-address")
	b.daemon.Stderr = b.t.Output()
	out, err := b.daemon.StdoutPipe()
	if err != nil {
		b.t.Fatal(err)
	}
	if err := b.daemon.Start(); err != nil {
		b.t.Fatal(err)
	}
	if _, err := bufio.NewReader(out).ReadString('\n'); err != nil {
		b.t.Fatalf("starting a private bus: %v", err)
	}
}

// stop kills the bus and removes its socket.
func (b *bus) stop() {
	if b.daemon == nil {
		return
	}
	b.daemon.Process.Kill()
	b.daemon.Wait()
	b.daemon = nil
	os.Remove(b.socket)
}

// dial connects a client.
func (b *bus) dial() *dbus.Conn {
	b.t.Helper()
	c, err := dbus.Connect("unix:path="+b.socket, dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { c.Close() })
	return c
}

// serve runs a server on the bus until the test ends, and waits until it owns its
// name if the bus runs. What o leaves out is filled in.
func (b *bus) serve(o dbusserver.Options) *dbusserver.Server {
	b.t.Helper()
	o.Socket = b.socket
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
	if b.daemon != nil {
		waitFor(b.t, s.Ready())
	}
	return s
}

func waitFor[T any](t testing.TB, c <-chan T) (v T) {
	t.Helper()
	select {
	case v = <-c:
	case <-time.After(20 * time.Second):
		t.Fatal("waited in vain")
	}
	return v
}

// object is the object of ec2netd at path, as c sees it.
func object(c *dbus.Conn, path dbus.ObjectPath) dbus.BusObject {
	return c.Object(api.BusName, path)
}

// call calls a method and returns the reply's body.
func call(o dbus.BusObject, method string, args ...any) ([]any, error) {
	ctx, cancel := context.WithTimeout(context.Background(), time.Minute)
	defer cancel()
	c := o.CallWithContext(ctx, method, 0, args...)
	return c.Body, c.Err
}
