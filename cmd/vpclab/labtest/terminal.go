package labtest

import (
	"bytes"
	"cmp"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/vpc"
)

// Terminal is a pseudo-terminal with a program in an instance whose controlling terminal it is,
// as sshd makes them.
type Terminal struct {
	l      *Instance
	master *os.File
	cmd    *exec.Cmd
	ended  chan error
	// drained is closed when everything has been read that was printed.
	drained chan struct{}

	mu   sync.Mutex
	said bytes.Buffer
}

// OnTerminal starts a program on a terminal.
func (l *Instance) OnTerminal(c vpc.Command) *Terminal {
	l.T.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		l.T.Fatalf("making a terminal: %v", err)
	}
	var number int
	raw, err := master.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		}), err)
	}
	if err != nil {
		l.T.Fatalf("making a terminal: %v", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		l.T.Fatalf("opening the terminal: %v", err)
	}
	defer slave.Close()
	// setsid makes the program the leader of a session of that terminal, so that nsenter gets
	// no signal of it.
	c.Interactive, c.Argv = true, append([]string{"setsid", "--ctty", "--wait"}, c.Argv...)
	cmd, err := l.Inst.Command(l.T.Context(), c)
	if err != nil {
		l.T.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		l.T.Fatal(err)
	}
	term := &Terminal{l: l, master: master, cmd: cmd, ended: make(chan error, 1), drained: make(chan struct{})}
	go func() {
		defer close(term.drained)
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			term.mu.Lock()
			term.said.Write(buffer[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { term.ended <- cmd.Wait() }()
	l.T.Cleanup(term.HangUp)
	return term
}

// Text returns what was printed so far.
func (t *Terminal) Text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(t.said.String(), "\r\n", "\n")
}

// Says waits until something is on the terminal.
func (t *Terminal) Says(what string) {
	t.l.T.Helper()
	t.l.Until("the terminal says "+what, func() (bool, error) {
		if strings.Contains(t.Text(), what) {
			return true, nil
		}
		select {
		case err := <-t.ended:
			t.ended <- err
			return strings.Contains(t.Text(), what), fmt.Errorf("it ended and said %q: %w", t.Text(), cmp.Or(err, io.EOF))
		default:
			return false, nil
		}
	})
}

// Types writes what a user types.
func (t *Terminal) Types(keys string) {
	t.l.T.Helper()
	if _, err := io.WriteString(t.master, keys); err != nil {
		t.l.T.Fatal(err)
	}
}

// HangUp closes the terminal, as the end of an SSH connection does.
func (t *Terminal) HangUp() { _ = t.master.Close() }

// Signal sends a signal to the program; nsenter is its parent.
func (t *Terminal) Signal(s unix.Signal) {
	t.l.T.Helper()
	pid := t.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err == nil {
		err = unix.Kill(pid, s)
	}
	if err != nil {
		t.l.T.Fatalf("sending %v to the program on the terminal: %v", s, err)
	}
}

// Wait waits for the end of the program and returns its exit code, -1 for a signal.
func (t *Terminal) Wait() int {
	t.l.T.Helper()
	select {
	case err := <-t.ended:
		t.ended <- err
		<-t.drained
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.l.T.Fatal(err)
		}
		return t.cmd.ProcessState.ExitCode()
	case <-time.After(Patience):
		t.l.T.Fatalf("the program on the terminal does not end; it said %q", t.Text())
		return -1
	}
}
