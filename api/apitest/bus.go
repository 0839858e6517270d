package apitest

import (
	"bufio"
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"testing"

	"github.com/godbus/dbus/v5"
)

// Bus is a private dbus-daemon. It listens in its own directory, so that tests never
// use the bus of the machine.
type Bus struct {
	// Socket is the file on which the bus listens, and Address its address.
	Socket, Address string

	t      testing.TB
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

// NewBus returns a bus that does not run yet. It ends with the test.
func NewBus(t testing.TB) *Bus {
	t.Helper()
	if _, err := exec.LookPath("dbus-daemon"); err != nil {
		t.Fatal("this test needs dbus-daemon: apt-get install dbus-daemon")
	}
	dir, err := os.MkdirTemp("", "ec2netd-bus")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	// Other users must be able to connect.
	if err := os.Chmod(dir, 0o755); err != nil {
		t.Fatal(err)
	}
	socket := filepath.Join(dir, "bus")
	b := &Bus{t: t, Socket: socket, Address: "unix:path=" + socket, config: filepath.Join(dir, "bus.conf")}
	if err := os.WriteFile(b.config, fmt.Appendf(nil, busConfig, socket), 0o644); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(b.Stop)
	return b
}

// Start starts the bus and waits until it accepts connections.
func (b *Bus) Start() {
	b.t.Helper()
	b.daemon = exec.CommandContext(context.Background(), "dbus-daemon", "--config-file="+b.config, "--nofork", "--nopidfile", "--print-address")
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

// Running reports whether the bus runs.
func (b *Bus) Running() bool { return b.daemon != nil }

// Stop kills the bus and removes its socket.
func (b *Bus) Stop() {
	if b.daemon == nil {
		return
	}
	_ = b.daemon.Process.Kill()
	_ = b.daemon.Wait()
	b.daemon = nil
	_ = os.Remove(b.Socket)
}

// Dial connects a client without a guard, until the test ends.
func (b *Bus) Dial() *dbus.Conn {
	b.t.Helper()
	c, err := dbus.Connect(b.Address, dbus.WithSignalHandler(dbus.NewSequentialSignalHandler()))
	if err != nil {
		b.t.Fatal(err)
	}
	b.t.Cleanup(func() { _ = c.Close() })
	return c
}
