package dbusserver_test

import (
	"fmt"
	"net"
	"os"
	"runtime"
	"strconv"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
)

// dialAs connects a client as another user, by the user of the thread that connects.
func dialAs(t *testing.T, b *bus, uid int) *dbus.Conn {
	t.Helper()
	runtime.LockOSThread()
	defer runtime.UnlockOSThread()
	become := func(uid int) {
		if _, _, err := syscall.RawSyscall(unix.SYS_SETRESUID, ^uintptr(0), uintptr(uid), ^uintptr(0)); err != 0 {
			t.Fatal(err)
		}
	}
	become(uid)
	socket, err := net.Dial("unix", b.Socket)
	become(0)
	if err != nil {
		t.Fatal(err)
	}
	c, err := dbus.NewConn(socket)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.Close() })
	if err := c.Auth([]dbus.Auth{dbus.AuthExternal(strconv.Itoa(uid))}); err != nil {
		t.Fatal(err)
	}
	if err := c.Hello(); err != nil {
		t.Fatal(err)
	}
	return c
}

// TestFlood: root's calls are answered while users make as many calls as they can, on many
// connections.
func TestFlood(t *testing.T) { // J1
	if os.Getuid() != 0 {
		t.Skip("needs root to be several users: run the tests as root")
	}
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	b.serve(dbusserver.Options{Agent: agent})
	root := b.Dial()
	var answered, refused atomic.Int64
	var clients sync.WaitGroup
	stop := make(chan struct{})
	for n := range 30 {
		c := dialAs(t, b, []int{65534, 1, 2}[n%3]) // users that exist on every system
		clients.Go(func() {
			flood(c, n, stop, &answered, &refused)
		})
	}
	for deadline := time.Now().Add(20 * time.Second); answered.Load() == 0 || refused.Load() == 0; {
		if time.Now().After(deadline) {
			t.Fatalf("the flood is none: %d answers, %d refusals", answered.Load(), refused.Load())
		}
		time.Sleep(time.Millisecond)
	}
	var slowest time.Duration
	for n := range 12 {
		method, args := describe, []any{}
		if n%2 == 0 {
			method, args = refresh, []any{true}
		}
		c := root
		if n%3 == 0 {
			c = b.Dial() // a connection that the server does not know yet
		}
		started := time.Now()
		if _, err := call(object(c, api.ObjectPath), method, args...); err != nil {
			t.Errorf("root: %s: %v", method, err)
		}
		slowest = max(slowest, time.Since(started))
	}
	close(stop)
	clients.Wait()
	t.Logf("%d answers and %d refusals for users; root waited %v at most", answered.Load(), refused.Load(), slowest)
	// This includes the time of the bus itself, which has to deliver the flood. With the race
	// detector and on a busy machine that is seconds; TestLabTrust measures on an idle one.
	if slowest > 20*time.Second {
		t.Errorf("root waited %v", slowest)
	}
}

// flood keeps 120 calls in progress on a connection until it is told to stop.
func flood(c *dbus.Conn, n int, stop <-chan struct{}, answered, refused *atomic.Int64) {
	done := make(chan *dbus.Call, 1000)
	underway := 0
	for {
		for underway < 120 {
			object(c, dbus.ObjectPath(fmt.Sprintf("/org/ec2netd1/n%d", n))).Go(describe, 0, done)
			underway++
		}
		call := <-done
		underway--
		switch errorName(call.Err) {
		case "org.freedesktop.DBus.Error.LimitsExceeded":
			refused.Add(1)
		default:
			answered.Add(1)
		}
		select {
		case <-stop:
			for ; underway > 0; underway-- {
				<-done
			}
			return
		default:
		}
	}
}
