package varlinkserver

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sys/unix"

	"ec2netd/api"
)

// hangupPoll is how often a connection is looked at that is in a call and is not
// being read from, to see whether the client has gone.
const hangupPoll = time.Second

// Why a connection ends.
var (
	errIdle     = errors.New("no call for too long")
	errTooLarge = errors.New("the request is too large")
	errGone     = errors.New("the client has gone")
	errNoRaw    = errors.New("reading is the server's, not a method's")
)

// connection is one client.
type connection struct {
	net  *net.UnixConn
	peer api.Caller
	// limits of the server.
	limits Limits
}

// newConnection asks the kernel who the client is, once and for all: the process may
// pass the socket on or execute another program later.
func newConnection(nc *net.UnixConn, o *Options) (*connection, error) {
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
		limits: o.Limits,
	}, nil
}

// serve answers the calls of a client, one after the other, until it has gone or ctx
// is done.
func (c *connection) serve(ctx context.Context, service *varlink.Service) error {
	ctx, cancel := context.WithCancelCause(withPeer(ctx, c.peer))
	defer cancel(nil)
	// Unblocks the reader and any writer; of a closed socket there is none.
	stop := context.AfterFunc(ctx, func() { _ = c.net.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	requests := make(chan []byte)
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
		case request, ok := <-requests:
			if !ok {
				return nil
			}
			if err := service.HandleMessage(ctx, c, request); err != nil {
				return err
			}
		}
	}
}

// read sends each request of the client to requests. It goes on while a call runs,
// which is how it learns that the client has gone, and then ends the call by cancel.
func (c *connection) read(ctx context.Context, cancel context.CancelCauseFunc, requests chan<- []byte) {
	poll := time.NewTicker(hangupPoll)
	defer poll.Stop()
	// wait hands request over to taken; it gives up when there is nobody to read for.
	wait := func(request []byte, taken chan<- []byte) (more bool) {
		for {
			select {
			case <-ctx.Done():
				return false
			case taken <- request:
				return true
			case <-poll.C:
				if c.hungUp() {
					cancel(errGone)
					return false
				}
			}
		}
	}
	r := bufio.NewReader(c.net)
	for {
		request, err := readMessage(r, c.limits.Message)
		switch {
		case err == nil:
			if !wait(request, requests) {
				return
			}
		case errors.Is(err, io.EOF) && !c.hungUp():
			// The client says no more, but still listens: it gets its answer.
			close(requests)
			wait(nil, nil)
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

// readMessage reads one message without the NUL that ends it.
func readMessage(r *bufio.Reader, limit int) ([]byte, error) {
	var message []byte
	for {
		part, err := r.ReadSlice(0)
		if len(message)+len(part) > limit {
			return nil, errTooLarge
		}
		message = append(message, part...)
		switch {
		case err == nil:
			return message[:len(message)-1], nil
		case !errors.Is(err, bufio.ErrBufferFull):
			return nil, err
		}
	}
}

// hungUp tells whether the client has closed the connection, as opposed to having
// said its last word.
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

// Write implements varlink.ReadWriterContext for the replies.
func (c *connection) Write(ctx context.Context, b []byte) (int, error) {
	if err := c.net.SetWriteDeadline(time.Now().Add(c.limits.Write)); err != nil {
		return 0, err
	}
	// Looked at after the deadline is set: the end of ctx sets one too.
	if err := ctx.Err(); err != nil {
		return 0, err
	}
	return c.net.Write(b)
}

// Read and ReadBytes are for methods that take the connection over; there is none.
func (c *connection) Read(context.Context, []byte) (int, error) { return 0, errNoRaw }

// ReadBytes implements varlink.ReadWriterContext; see Read.
func (c *connection) ReadBytes(context.Context, byte) ([]byte, error) { return nil, errNoRaw }
