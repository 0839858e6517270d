package vpc

import (
	"fmt"
	"os/exec"
	"runtime"
	"sync"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// A thread is an operating system thread that lives in a network namespace of
// its own. Sockets opened and processes started on it belong to that namespace.
// It lives until it is closed, so that processes which ask for a signal at the
// death of their parent (which is a thread, see prctl(2)) get it then, and not
// when the Go runtime happens to end a thread.
type thread struct {
	ns   netns.NsHandle
	link *netlink.Handle

	work   chan func()
	ended  chan struct{}
	closed sync.Once
}

// newThread starts a thread in a new network namespace, bound to /run/netns/name
// for ip-netns(8) if a name is given.
func newThread(name string) (*thread, error) {
	t := &thread{work: make(chan func()), ended: make(chan struct{})}
	ready := make(chan error)
	go func() {
		defer close(t.ended)
		// Not unlocked: the thread ends with the goroutine.
		runtime.LockOSThread()
		var err error
		if name != "" {
			t.ns, err = netns.NewNamed(name)
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

// close ends the thread. The namespace lives on as long as a process or a name
// holds it.
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

// inNamespace runs f on a thread that has entered ns for the time of the call.
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
		// A thread that cannot go back must not be used for anything else: it
		// ends with the goroutine.
		if netns.Set(home) == nil {
			runtime.UnlockOSThread()
		}
	}()
	return <-result
}
