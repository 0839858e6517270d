package vpc

import (
	"errors"
	"fmt"
	"os"
	"os/exec"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// thread is an operating system thread in its own network namespace. Sockets opened and processes
// started on it belong to that namespace. It lives until it is closed. So processes that request
// a signal at the death of their parent (which is a thread, see prctl(2)) get it then, and not
// when the Go runtime happens to end a thread.
type thread struct {
	ns   netns.NsHandle
	link *netlink.Handle

	work   chan func()
	ended  chan struct{}
	closed sync.Once
}

// newThread starts a thread in a new network namespace. A name, if given, is bound to
// /run/netns/name for ip-netns(8).
func newThread(name string) (*thread, error) {
	t := &thread{work: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(t.ended)
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if name != "" {
			t.ns, err = newNamed(name)
		} else {
			t.ns, err = netns.New()
		}
		ready <- err
		if err != nil {
			return
		}
		for f := range t.work {
			f()
		}
	}()
	if err := <-ready; err != nil {
		return nil, fmt.Errorf("making a network namespace: %w", err)
	}
	var err error
	if t.link, err = netlink.NewHandleAt(t.ns); err != nil {
		t.close()
		return nil, fmt.Errorf("opening netlink in the new network namespace: %w", err)
	}
	return t, nil
}

// namesDir is the directory in which ip-netns(8) looks for the names of network namespaces.
const namesDir = "/run/netns"

// newNamed moves the calling thread to a new network namespace with a name.
func newNamed(name string) (netns.NsHandle, error) {
	if err := shareNames(); err != nil {
		return netns.None(), err
	}
	return netns.NewNamed(name)
}

// shareNames makes the directory of names a mount point with shared propagation, as the first "ip
// netns add" on a machine does. That command mounts the directory on itself, including all names
// in it at that moment. These would then be mounted twice, and could no longer be removed.
// Therefore the directory must be shared before the first name is in it.
func shareNames() error {
	if err := os.MkdirAll(namesDir, 0o755); err != nil {
		return err
	}
	// Newer versions of ip-netns(8) use the same lock.
	dir, err := os.Open(namesDir)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // a directory has nothing to lose
	if err := unix.Flock(int(dir.Fd()), unix.LOCK_EX); err != nil {
		return fmt.Errorf("locking %s: %w", namesDir, err)
	}
	share := func() error { return unix.Mount("", namesDir, "none", unix.MS_SHARED|unix.MS_REC, "") }
	err = share()
	if errors.Is(err, unix.EINVAL) {
		if err := unix.Mount(namesDir, namesDir, "none", unix.MS_BIND|unix.MS_REC, ""); err != nil {
			return fmt.Errorf("binding %s over itself: %w", namesDir, err)
		}
		err = share()
	}
	if err != nil {
		return fmt.Errorf("sharing %s: %w", namesDir, err)
	}
	return nil
}

// do runs f on the thread and waits for it.
func (t *thread) do(f func() error) error {
	result := make(chan error, 1)
	select {
	case t.work <- func() { result <- f() }:
		return <-result
	case <-t.ended:
		return fmt.Errorf("the network namespace is closed")
	}
}

// start starts a command in the namespace.
func (t *thread) start(cmd *exec.Cmd) error {
	return t.do(cmd.Start)
}

// run runs a command in the namespace and waits for it.
func (t *thread) run(cmd *exec.Cmd) error {
	if err := t.start(cmd); err != nil {
		return err
	}
	return cmd.Wait()
}

// close ends the thread. The namespace exists as long as a process or a name refers to it.
func (t *thread) close() {
	t.closed.Do(func() {
		close(t.work)
		<-t.ended
		if t.link != nil {
			t.link.Close()
		}
		_ = t.ns.Close() // a handle has nothing to lose
	})
}

// inNamespace runs f on a thread that enters ns for the duration of the call.
func inNamespace(ns netns.NsHandle, f func() error) error {
	result := make(chan error, 1)
	go func() {
		runtime.LockOSThread()
		home, err := netns.Get()
		if err != nil {
			result <- fmt.Errorf("reading the current network namespace: %w", err)
			return
		}
		defer func() { _ = home.Close() }() // a handle has nothing to lose
		if err := netns.Set(ns); err != nil {
			result <- fmt.Errorf("entering the network namespace: %w", err)
			return
		}
		result <- f()
		// A thread that cannot return must not be used for anything else: it ends with the
		// goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}
