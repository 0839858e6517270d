// Package varlinkserver serves org.ec2netd.Network and io.systemd.Metrics, the contracts of
// the .varlink files in api/, on listeners that systemd or a test has opened.
// It serves the state of the agent and passes Refresh on to it; it makes no decisions about
// the network.
package varlinkserver

import (
	"bufio"
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"runtime"
	"sync"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sync/errgroup"

	"ec2netd/api"
	"ec2netd/api/orgec2netdnetwork"
)

// Options of a [Server].
type Options struct {
	// Listeners accept the connections; one is required. They must be Unix sockets. All
	// serve the same interfaces, within the same limits. Run closes them.
	Listeners []net.Listener
	// Agent is the daemon; required.
	Agent api.Agent
	// Authorizer decides on Refresh; nil means [api.RootOnly].
	Authorizer api.Authorizer
	// Logger; nil means none.
	Logger *slog.Logger
	// Version of the daemon for org.varlink.service.GetInfo.
	Version string
	// RefreshTimeout bounds one Refresh; zero means 90 seconds.
	RefreshTimeout time.Duration
	// Limits of clients; zero values mean the defaults.
	Limits Limits
}

// Server serves Varlink.
type Server struct {
	options   Options
	service   *varlink.Service
	contract  contract
	published *publisher

	// What the clients share, see [Limits].
	connections, calls, refreshes, bytes *pool
	connecting                           *pace
	// readers are *bufio.Reader for one message. They are reused, since new clients would
	// otherwise cause much garbage.
	readers sync.Pool
}

// New returns a Server. Before Run clients can connect, but have to wait. New fails if an
// option is invalid.
func New(o Options) (*Server, error) {
	if len(o.Listeners) == 0 || o.Agent == nil {
		return nil, errors.New("making the Varlink server: no listener or no agent given")
	}
	for _, l := range o.Listeners {
		if _, ok := l.(*net.UnixListener); !ok {
			return nil, fmt.Errorf("making the Varlink server: listener at %s: not of a Unix socket, so that clients cannot be told apart", l.Addr())
		}
	}
	if o.Authorizer == nil {
		o.Authorizer = api.RootOnly{}
	}
	if o.Logger == nil {
		o.Logger = slog.New(slog.DiscardHandler)
	}
	o.RefreshTimeout = cmp.Or(o.RefreshTimeout, 90*time.Second)
	o.Limits = o.Limits.withDefaults()
	service, err := varlink.NewService("ec2netd", "ec2netd", o.Version, "man:ec2netd(8)")
	if err != nil {
		return nil, fmt.Errorf("making the Varlink server: %w", err)
	}
	known, err := newContract()
	if err != nil {
		return nil, fmt.Errorf("making the Varlink server: %w", err)
	}
	s := &Server{
		options:     o,
		service:     service,
		contract:    known,
		published:   &publisher{agent: o.Agent, limit: o.Limits.Bytes / 8},
		connections: newPool(o.Limits.Connections),
		connecting:  newPace(o.Limits.ConnectionsPerSecond),
		calls:       newPool(o.Limits.Calls),
		refreshes:   newPool(o.Limits.Refreshes),
		bytes:       newPool(o.Limits.Bytes),
	}
	// One message with its NUL, which is also the maximum that is read ahead.
	s.readers.New = func() any { return bufio.NewReaderSize(nil, o.Limits.Message+1) }
	d := &dispatcher{VarlinkInterface: orgec2netdnetwork.VarlinkNew(&network{s}), options: &s.options}
	if err := errors.Join(service.RegisterInterface(d), service.RegisterInterface(&metricsInterface{&s.options})); err != nil {
		return nil, fmt.Errorf("making the Varlink server: %w", err)
	}
	return s, nil
}

// String returns the name of the task for the log.
func (s *Server) String() string {
	return "Varlink server " + api.VarlinkInterface
}

// Run serves until ctx is done, waits for the connections to end, and then returns nil. It
// returns an error if a listener fails permanently. Run must be called only once.
//
// It does not use the library's own loop, which ignores its context and races with its
// Shutdown (facts: varlink).
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.options.Listeners {
		group.Go(func() error { return s.accept(ctx, l) })
	}
	return group.Wait()
}

// accept serves one listener, as Run does.
func (s *Server) accept(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // Accept then fails
	defer stop()
	var running sync.WaitGroup
	defer running.Wait()
	defer cancel()
	pause := 5 * time.Millisecond
	for {
		nc, err := listener.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				nc.Close()
			}
			return nil
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accepting Varlink connections: %w", err)
		case err != nil:
			// Usually the daemon is out of file descriptors: clients have to wait.
			s.options.Logger.Warn("Could not accept a Varlink connection; trying on", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		// As long as there is another connection this loop never blocks, and would run for
		// 10 ms each time it gets the daemon's only processor. A Refresh of root, which
		// waits for many answers of the metadata service, then took seconds.
		runtime.Gosched()
		// A client is refused here at once: root has to pass the queue of connections too,
		// which thus empties faster than clients can fill it.
		c, err := s.newConnection(nc.(*net.UnixConn))
		if err == nil {
			err = s.admit(c)
		}
		if err != nil {
			s.options.Logger.Debug("Varlink client refused", "error", err)
			nc.Close()
			continue
		}
		running.Go(func() {
			defer s.dismiss(c)
			if err := c.serve(ctx); err != nil {
				s.options.Logger.Debug("Varlink connection ended", "uid", c.peer.UID, "pid", c.peer.PID, "error", err)
			}
		})
	}
}

// admit counts a connection, or tells its client that it has too many.
func (s *Server) admit(c *connection) error {
	uid := c.peer.UID
	if !s.connecting.allow(uid, time.Now()) {
		return c.turnAway(fmt.Sprintf("UID %d has made too many connections in one second: wait, or use one for several calls", uid))
	}
	if !s.connections.take(uid, 1) {
		return c.turnAway(fmt.Sprintf("too many connections of UID %d, or of users like it: close some of them", uid))
	}
	if !s.bytes.take(uid, s.options.Limits.held()) {
		s.connections.give(uid, 1)
		return c.turnAway(fmt.Sprintf("too many bytes wait for UID %d, or for users like it: read the replies", uid))
	}
	if classOf(uid) != root {
		if err := c.net.SetWriteBuffer(s.options.Limits.sendBuffer()); err != nil {
			s.options.Logger.Debug("Could not limit the send buffer of a Varlink client", "error", err)
		}
	}
	return nil
}

// dismiss ends an admitted connection.
func (s *Server) dismiss(c *connection) {
	_ = c.net.Close() // it may already be closed
	s.bytes.give(c.peer.UID, s.options.Limits.held())
	s.connections.give(c.peer.UID, 1)
}
