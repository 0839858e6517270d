package vpc

import (
	"errors"
	"os"
	"os/exec"
	"runtime"
	"testing"

	"golang.org/x/sys/unix"
)

// TestLabSharesNames: after somebody's first "ip netns add" on a machine a running lab can still be
// removed. The test has its own /run.
func TestLabSharesNames(t *testing.T) {
	RequireForTest(t)
	const lab, others = "vpclab-test", "others"
	err := onOwnThread(func() error {
		if err := unix.Unshare(unix.CLONE_FS | unix.CLONE_NEWNS); err != nil {
			return err
		}
		if err := unix.Mount("", "/", "", unix.MS_PRIVATE|unix.MS_REC, ""); err != nil {
			return err
		}
		if err := unix.Mount("test", "/run", "tmpfs", 0, "mode=0755"); err != nil {
			return err
		}
		ns, err := newNamed(lab)
		if err != nil {
			return err
		}
		defer func() { _ = ns.Close() }()
		if out, err := exec.CommandContext(t.Context(), "ip", "netns", "add", others).CombinedOutput(); err != nil {
			return errors.New(string(out))
		}
		if err := removeNamespace(lab); err != nil {
			return err
		}
		if _, err := os.Stat(namesDir + "/" + others); err != nil {
			return err
		}
		return removeNamespace(others)
	})
	if err != nil {
		t.Error(err)
	}
}

// onOwnThread calls f on a thread that ends with it, and with it the namespaces that it has made.
func onOwnThread(f func() error) error {
	done := make(chan error)
	go func() {
		runtime.LockOSThread() // not unlocked: so the thread ends with the goroutine
		if unix.Gettid() != unix.Getpid() {
			done <- f()
			return
		}
		// The main thread would not end, and /proc/self is what it has. As long as it is held,
		// another goroutine has another thread.
		err := onOwnThread(f)
		runtime.UnlockOSThread()
		done <- err
	}()
	return <-done
}
