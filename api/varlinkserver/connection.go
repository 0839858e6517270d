package varlinkserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

	"ec2netd/api"
	"ec2netd/service/state"
)

// hangupPoll is how often the server checks whether a client has disconnected if a call
// is running and nothing is read from the connection.
const hangupPoll = time.Second

// Reasons why a connection ends.
var (
	errIdle     = errors.New("no call for too long")
	errTooLarge = errors.New("the request is too large")
	errGone     = errors.New("the client has gone")
	errBehind   = errors.New("the client does not read, and is too many states behind")
	errNoRaw    = errors.New("reading is the server's, not a method's")
)

// connection is the connection of one client.
type connection struct {
	net    *net.UnixConn
	peer   api.Caller
	server *Server
	limits Limits
	// drop ends the connection from another goroutine; it is set while the connection is
	// served.
	drop context.CancelCauseFunc
}

// newConnection asks the kernel for the client's identity once: the process may later
// pass the socket on or execute another program.
func (s *Server) newConnection(nc *net.UnixConn) (*connection, error) {
	raw, err := nc.SyscallConn()
	if err != nil {
		return nil, fmt.Errorf("reading the credentials of a Varlink client: %w", err)
	}
	var cred *unix.Ucred
	var credErr error
	err = raw.Control(func(fd uintptr) {
		cred, credErr = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED)
	})
	if err := errors.Join(err, credErr); err != nil {
		return nil, fmt.Errorf("reading the credentials of a Varlink client: %w", err)
	}
	return &connection{
		net:    nc,
		peer:   api.Caller{UID: cred.Uid, PID: cred.Pid},
		server: s,
		limits: s.options.Limits,
	}, nil
}

// request is one message of a client, or the end of its messages.
type request struct {
	message []byte
	// tooLarge: the message was not read completely, and nothing after it is read.
	tooLarge bool
}

// serve answers the calls of a client, one after the other, until it has disconnected or
// ctx is done.
func (c *connection) serve(ctx context.Context) error {
	ctx, cancel := context.WithCancelCause(withConnection(ctx, c))
	defer cancel(nil)
	c.drop = cancel
	// Unblocks the reader and any writer, of which a closed socket has none.
	stop := context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	requests := make(chan request)
	read := make(chan struct{})
	go func() {
		defer close(read)
		c.read(ctx, cancel, requests)
	}()
	defer func() {
		cancel(nil)
		<-read
	}()
	idle := time.NewTimer(c.limits.Idle)
	defer idle.Stop()
	for {
		idle.Reset(c.limits.Idle)
		select {
		case <-ctx.Done():
			return context.Cause(ctx)
		case <-idle.C:
			return errIdle
		case r, ok := <-requests:
			if !ok {
				return nil
			}
			if err := c.answer(ctx, r); err != nil {
				return err
			}
		}
	}
}

// answer answers one request. An error ends the connection.
func (c *connection) answer(ctx context.Context, r request) error {
	if r.tooLarge {
		return errors.Join(errTooLarge, c.refuse(ctx, fmt.Sprintf("a request has %d bytes at most: send less", c.limits.Message)))
	}
	var call struct {
		Method     string          `json:"method"`
		Parameters json.RawMessage `json:"parameters"`
		Oneway     bool            `json:"oneway"`
	}
	if err := json.Unmarshal(r.message, &call); err != nil {
		return fmt.Errorf("parsing a request: %w", err)
	}
	if !c.server.calls.take(c.peer.UID, 1) {
		if call.Oneway {
			return nil
		}
		return c.refuse(ctx, fmt.Sprintf("too many calls of UID %d, or of users like it, are being answered: wait for some of them", c.peer.UID))
	}
	defer c.server.calls.give(c.peer.UID, 1)
	if name := c.server.contract.check(call.Method, call.Parameters); name != "" {
		if call.Oneway {
			return nil
		}
		return c.reply(ctx, errorReply{serviceInterface + ".InvalidParameter", map[string]string{"parameter": name}})
	}
	return c.server.service.HandleMessage(ctx, c, r.message)
}

// errorReply is a reply that the library does not send for a service.
type errorReply struct {
	Error      string            `json:"error"`
	Parameters map[string]string `json:"parameters"`
}

// reply sends an error.
func (c *connection) reply(ctx context.Context, e errorReply) error {
	text, err := json.Marshal(e)
	if err != nil {
		return err
	}
	_, err = c.Write(ctx, append(text, 0))
	return err
}

// refuse replies that a limit is reached.
func (c *connection) refuse(ctx context.Context, reason string) error {
	return c.reply(ctx, errorReply{api.VarlinkInterface + ".LimitsExceeded", map[string]string{"reason": reason}})
}

// turnAway tells a client that is not served the reason, if this does not require
// waiting, and returns the reason.
func (c *connection) turnAway(reason string) error {
	text, err := json.Marshal(errorReply{api.VarlinkInterface + ".LimitsExceeded", map[string]string{"reason": reason}})
	if err != nil {
		return errors.New(reason)
	}
	raw, err := c.net.SyscallConn()
	if err != nil {
		return errors.New(reason)
	}
	// The buffer of a new socket has room for it. On a busy machine a short write
	// deadline could expire before the write begins.
	_ = raw.Control(func(fd uintptr) {
		_, _ = unix.SendmsgN(int(fd), append(text, 0), nil, nil, unix.MSG_DONTWAIT|unix.MSG_NOSIGNAL)
	})
	return errors.New(reason)
}

// read sends each request of the client to requests. It continues while a call runs, so
// that it notices when the client disconnects, and then ends the call by cancel.
func (c *connection) read(ctx context.Context, cancel context.CancelCauseFunc, requests chan<- request) {
	poll := time.NewTicker(hangupPoll)
	defer poll.Stop()
	// wait passes a request to taken; it gives up when nobody receives it.
	wait := func(r request, taken chan<- request) (more bool) {
		for {
			select {
			case <-ctx.Done():
				return false
			case taken <- r:
				return true
			case <-poll.C:
				if c.hungUp() {
					cancel(errGone)
					return false
				}
			}
		}
	}
	r, _ := c.server.readers.Get().(*bufio.Reader)
	r.Reset(c.net)
	defer func() {
		r.Reset(nil)
		c.server.readers.Put(r)
	}()
	for {
		message, err := r.ReadSlice(0)
		switch {
		case err == nil:
			if !wait(request{message: bytes.Clone(message[:len(message)-1])}, requests) {
				return
			}
		case errors.Is(err, bufio.ErrBufferFull):
			if wait(request{tooLarge: true}, requests) {
				wait(request{}, nil)
			}
			return
		case errors.Is(err, io.EOF) && !c.hungUp():
			// The client sends no more, but still reads: it gets its reply.
			close(requests)
			wait(request{}, nil)
			return
		case errors.Is(err, io.EOF):
			cancel(errGone)
			return
		default:
			cancel(fmt.Errorf("reading a request: %w", err))
			return
		}
	}
}

// hungUp reports whether the client has closed the connection, not only its sending
// side.
func (c *connection) hungUp() bool {
	raw, err := c.net.SyscallConn()
	if err != nil {
		return true
	}
	gone := false
	err = raw.Control(func(fd uintptr) {
		p := []unix.PollFd{{Fd: int32(fd)}}
		_, err := unix.Poll(p, 0)
		gone = err == nil && p[0].Revents&(unix.POLLHUP|unix.POLLERR) != 0
	})
	return err != nil || gone
}

// Write implements varlink.ReadWriterContext for replies to this client only.
func (c *connection) Write(ctx context.Context, b []byte) (int, error) {
	if !c.server.bytes.take(c.peer.UID, len(b)) {
		return 0, c.turnAway(fmt.Sprintf("too many bytes wait for UID %d, or for users like it: read the replies", c.peer.UID))
	}
	defer c.server.bytes.give(c.peer.UID, len(b))
	if err := c.startWriting(ctx); err != nil {
		return 0, err
	}
	return c.net.Write(b)
}

// sendState sends the current state as a reply to call, and returns it. The clients
// share the text, see [publisher].
func (c *connection) sendState(ctx context.Context, call *varlink.Call) (*state.State, error) {
	e, r, err := c.server.published.acquire(func() { c.drop(errBehind) })
	if err != nil {
		return nil, err
	}
	defer c.server.published.release(e, r)
	if err := c.startWriting(ctx); err != nil {
		return nil, err
	}
	end := "}\x00"
	if call.Continues {
		end = `,"continues":true` + end
	}
	parts := net.Buffers{[]byte(`{"parameters":`), e.json, []byte(end)}
	_, err = parts.WriteTo(c.net)
	return e.state, err
}

// startWriting sets the deadline for the client to read.
func (c *connection) startWriting(ctx context.Context) error {
	if err := c.net.SetWriteDeadline(time.Now().Add(c.limits.Write)); err != nil {
		return err
	}
	// Check this after setting the deadline, since the end of ctx sets one too.
	return ctx.Err()
}

// Read and ReadBytes are for methods that take over the connection; there are none.
func (c *connection) Read(context.Context, []byte) (int, error) { return 0, errNoRaw }

// ReadBytes implements varlink.ReadWriterContext; see Read.
func (c *connection) ReadBytes(context.Context, byte) ([]byte, error) { return nil, errNoRaw }
