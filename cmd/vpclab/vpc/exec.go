package vpc

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os/exec"
	"strconv"
	"strings"
	"syscall"
)

// Command is a command to run in an instance.
type Command struct {
	Argv  []string
	Stdin io.Reader
	// User that runs it, with its groups; default: root. See [OrdinaryUser].
	User string
	// Env is added to the environment.
	Env []string
	// Interactive keeps the command in the caller's process group, so that it can use
	// the caller's terminal.
	Interactive bool
}

// ExecError says how a command in an instance failed.
type ExecError struct {
	Instance string
	Argv     []string
	ExitCode int // -1: ended by a signal, or not started
	Stdout   string
	Stderr   string
	Err      error
}

// Error implements error.
func (e *ExecError) Error() string {
	text := strings.TrimSpace(e.Stderr)
	if text == "" {
		text = strings.TrimSpace(e.Stdout)
	}
	if text != "" {
		text = ": " + text
	}
	return fmt.Sprintf("running %q in %s: %v%s", strings.Join(e.Argv, " "), e.Instance, e.Err, text)
}

// Unwrap returns the error of os/exec.
func (e *ExecError) Unwrap() error { return e.Err }

// Exec runs a command in the instance as root and returns its output. An error
// is an [*ExecError].
func (inst *Instance) Exec(ctx context.Context, argv ...string) (string, error) {
	return inst.Run(ctx, Command{Argv: argv})
}

// Run runs a command in the instance and returns its output. An error is an
// [*ExecError].
func (inst *Instance) Run(ctx context.Context, c Command) (string, error) {
	fail := func(err error, stdout, stderr string) error {
		code := -1
		var exit *exec.ExitError
		var status StatusError
		if errors.As(err, &exit) {
			code = exit.ExitCode()
		} else if errors.As(err, &status) {
			code = int(status)
		}
		if ctx.Err() != nil {
			err = context.Cause(ctx)
		}
		return &ExecError{Instance: inst.id, Argv: c.Argv, ExitCode: code, Stdout: stdout, Stderr: stderr, Err: err}
	}
	var stdout, stderr bytes.Buffer
	if inst.opts.Machine {
		if err := RunInMachine(ctx, inst.socket(), c, &stdout, &stderr); err != nil {
			return stdout.String(), fail(err, stdout.String(), stderr.String())
		}
		return stdout.String(), nil
	}
	cmd, err := inst.Command(ctx, c)
	if err != nil {
		return "", fail(err, "", "")
	}
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := cmd.Run(); err != nil {
		return stdout.String(), fail(err, stdout.String(), stderr.String())
	}
	return stdout.String(), nil
}

// Command prepares a command in all namespaces of the running container; the caller
// connects and starts it. The command, with all its children, is killed when ctx ends.
// For a machine see [RunInMachine].
func (inst *Instance) Command(ctx context.Context, c Command) (*exec.Cmd, error) {
	leader := inst.Leader()
	switch {
	case inst.opts.Machine:
		return nil, errors.New("no process of this machine is one in the instance, which is a machine of its own")
	case leader == 0:
		return nil, errors.New("the instance is not running")
	}
	return CommandIn(ctx, leader, c)
}

// CommandIn is [Instance.Command] for an instance of another process, identified by the
// PID of its leader.
func CommandIn(ctx context.Context, leader int, c Command) (*exec.Cmd, error) {
	argv, env, err := c.full()
	if err != nil {
		return nil, err
	}
	cmd := exec.CommandContext(ctx, "nsenter", append([]string{"--target", strconv.Itoa(leader), "--all", "--"}, argv...)...)
	cmd.Stdin = c.Stdin
	cmd.Env = env
	if !c.Interactive {
		// nsenter forks into the PID namespace: the signal goes to both.
		cmd.SysProcAttr = &syscall.SysProcAttr{Setpgid: true}
		cmd.Cancel = func() error { return syscall.Kill(-cmd.Process.Pid, syscall.SIGKILL) }
	}
	return cmd, nil
}

// full returns the command with a wrapper for its user, and its environment.
func (c Command) full() (argv, env []string, err error) {
	if len(c.Argv) == 0 {
		return nil, nil, errors.New("no command")
	}
	home := "/root"
	if c.User != "" && c.User != "root" {
		home = "/home/" + c.User
		argv = append(argv, "setpriv", "--reuid="+c.User, "--regid="+c.User, "--init-groups", "--inh-caps=-all", "--")
	}
	env = append([]string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8", "HOME=" + home,
		"SYSTEMD_PAGER=cat", "SYSTEMD_COLORS=0",
	}, c.Env...)
	return append(argv, c.Argv...), env, nil
}

// DialContext connects from within the instance, by IP address and port.
func (inst *Instance) DialContext(ctx context.Context, network, address string) (net.Conn, error) {
	var conn net.Conn
	err := inst.Do(func() (err error) {
		var d net.Dialer
		conn, err = d.DialContext(ctx, network, address)
		return err
	})
	return conn, err
}

// HTTPClient returns a client that connects from within the instance.
func (inst *Instance) HTTPClient() *http.Client {
	return &http.Client{Transport: &http.Transport{DialContext: inst.DialContext, DisableKeepAlives: true}}
}
