package main

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"strings"
	"syscall"
	"time"

	"github.com/varlink/go/varlink"

	"ec2netd/api"
	"ec2netd/api/orgec2netdnetwork"
	"ec2netd/service/doctor"
	"ec2netd/service/networkd"
	"ec2netd/service/state"
	"ec2netd/service/systemd"
)

// How long to wait for ec2netd unless --timeout says it. The socket is there before
// the daemon at boot, so that an answer may take a while.
const (
	readTimeout    = 10 * time.Second
	refreshTimeout = 30 * time.Second
	waitTimeout    = 2 * time.Minute
)

// within is how long something may take: what --timeout says, or else what is usual.
func (c *ctl) within(usual time.Duration) time.Duration {
	return cmp.Or(time.Duration(c.timeout), usual)
}

// describe returns the state of ec2netd, as it came and as this program knows it.
func (c *ctl) describe(ctx context.Context) (json.RawMessage, *state.State, error) {
	var raw json.RawMessage
	if err := c.call(ctx, readTimeout, "Describe", struct{}{}, &raw); err != nil {
		return nil, nil, err
	}
	s, err := parseState(raw)
	if err != nil {
		return nil, nil, err
	}
	return raw, s, nil
}

// parseState reads a state as ec2netd sends it.
func parseState(raw json.RawMessage) (*state.State, error) {
	var s state.State
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("reading the reply of ec2netd: %w", err)
	}
	return &s, nil
}

// call calls a method of ec2netd. Its errors are for people.
func (c *ctl) call(ctx context.Context, timeout time.Duration, method string, in, out any) error {
	timeout = c.within(timeout)
	ctx, cancel := context.WithTimeout(ctx, timeout)
	defer cancel()
	conn, err := c.connect(ctx)
	if err == nil {
		defer func() { _ = conn.Close() }() // nothing is lost by it
		err = orgec2netdnetwork.Dispatch_Error(conn.Call(ctx, api.VarlinkInterface+"."+method, in, out))
	}
	if errors.Is(err, context.DeadlineExceeded) {
		return advise("See systemctl status ec2netd.service and journalctl -u ec2netd.service, or give it more time with --timeout.",
			"ec2netd did not answer within %v", timeout)
	}
	return c.explain(err, method)
}

// socket is the path of the socket of ec2netd.
func (c *ctl) socket() string { return strings.TrimPrefix(c.address, "unix:") }

// connect connects to ec2netd. It waits while the queue of those that do is full, as it
// is while somebody connects all the time (J1).
func (c *ctl) connect(ctx context.Context) (*varlink.Connection, error) {
	for {
		conn, err := varlink.NewConnection(ctx, "unix:"+c.socket())
		if !errors.Is(err, syscall.EAGAIN) {
			return conn, err
		}
		select {
		case <-ctx.Done():
			return nil, err
		case <-time.After(time.Millisecond):
		}
	}
}

// noAnswer is the error of a daemon that is there and says nothing.
func noAnswer() error {
	return advise("See systemctl status ec2netd.service and journalctl -u ec2netd.service.", "ec2netd does not answer")
}

// untilBoot returns what the next boot changes, if ec2netd waits for it.
func (c *ctl) untilBoot() doctor.UntilBoot {
	if c.elsewhere() {
		return doctor.UntilBoot{}
	}
	s, err := c.look()
	if err != nil || s.notEC2 != "" {
		return doctor.UntilBoot{}
	}
	files := &networkd.Client{Root: c.root} // nobody is asked, its files are read
	defer files.Close()
	return doctor.LookUntilBoot(c.root, s.seen.Kernel.Links, files.Link)
}

// unitFiles are those of this system.
func (c *ctl) unitFiles() systemd.UnitFiles { return systemd.UnitFiles{Root: c.root} }

// elsewhere reports whether another ec2netd is meant than the one of this system.
func (c *ctl) elsewhere() bool { return c.address != api.VarlinkSocket }

// explain puts an error of a call in words for people, with what to do about it.
func (c *ctl) explain(err error, method string) error {
	path := c.socket()
	var waits doctor.UntilBoot
	if errors.Is(err, fs.ErrNotExist) {
		waits = c.untilBoot()
	}
	full := method
	if !strings.Contains(full, ".") {
		full = api.VarlinkInterface + "." + method
	}
	var notPermitted *orgec2netdnetwork.NotPermitted
	var noSuch *orgec2netdnetwork.NoSuchInterface
	var refreshFailed *orgec2netdnetwork.RefreshFailed
	var exceeded *orgec2netdnetwork.LimitsExceeded
	var noInterface *varlink.InterfaceNotFound
	var noMethod *varlink.MethodNotFound
	switch {
	case err == nil:
		return nil
	case errors.Is(err, syscall.EAGAIN): // its queue of connections is full
		return noAnswer()
	case waits.Owner != "":
		return advise(waits.Advice(), "%s", waits.Owner)
	case errors.Is(err, fs.ErrNotExist):
		return advise("To start it now and at boot: "+c.unitFiles().StartCommand(),
			"ec2netd is not there: no socket %s", path)
	case errors.Is(err, syscall.ECONNREFUSED):
		// systemd leaves the socket where it is when it stops it. The socket may be stopped while the
		// service runs, and active without listening, where the unit was masked meanwhile.
		again := "To start it again: systemctl stop ec2netd.socket && systemctl restart ec2netd.service"
		if c.unitFiles().AnyMasked(systemd.Socket, systemd.Daemon) {
			again = "To start it now and at boot: " + c.unitFiles().StartCommand()
		}
		return advise(again, "ec2netd does not listen on %s any more", path)
	case errors.Is(err, fs.ErrPermission):
		return advise("Everybody may, normally: see what changed the permissions of the socket or its directory, or try sudo.",
			"not allowed to connect to %s", path)
	case errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.Is(err, syscall.ECONNRESET), errors.Is(err, syscall.EPIPE):
		return advise("It may have been restarted: try again, and see journalctl -u ec2netd.service.",
			"ec2netd closed the connection without an answer")
	case errors.As(err, &notPermitted) && c.uid != 0:
		return advise("Run: sudo ec2netctl "+strings.ToLower(method), "%s is for root", strings.ToLower(method))
	case errors.As(err, &notPermitted):
		return fmt.Errorf("ec2netd does not permit it: %s", notPermitted.Reason)
	case errors.As(err, &noSuch):
		return advise("See ec2netctl list for those that there are.",
			"there is no ENI %q: give an ENI ID, MAC address, interface name, altname or index", noSuch.Id)
	case errors.As(err, &refreshFailed):
		return advise("What was configured stays.", "the refresh failed: %s", refreshFailed.Reason)
	case errors.As(err, &exceeded):
		return advise("Try again later, or as root, for whom there is always room.", "ec2netd has refused the call: %s", exceeded.Reason)
	case errors.As(err, &noInterface), errors.As(err, &noMethod):
		return advise("Is it another version of ec2netd than this "+currentVersion()+"?",
			"what listens on %s does not know %s", path, full)
	default:
		return fmt.Errorf("calling %s of ec2netd: %w", method, err)
	}
}

// advice is an error with a line on what to do about it.
type advice struct {
	error
	hint string
}

func (a *advice) Unwrap() error { return a.error }

func asAdvice(err error) (*advice, bool) {
	var a *advice
	return a, errors.As(err, &a)
}

func advise(hint, format string, args ...any) error {
	return &advice{fmt.Errorf(format, args...), hint}
}
