// Package varlinkserver serves org.ec2netd.Network and io.systemd.Metrics, the contracts of
// the .varlink files in api/, on listeners that systemd or a test has opened.
// It shows what the agent says and passes Refresh on to it; it decides nothing about
// the network.
package varlinkserver

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"sync"
	"time"

	"github.com/varlink/go/varlink"
	"golang.org/x/sync/errgroup"

	"ec2netd/api"
	"ec2netd/api/orgec2netdnetwork"
)

// Options are what a [Server] needs.
type Options struct {
	// Listeners take the connections; one is required. They must be of Unix sockets.
	// All serve the same, within the same limits. Run closes them.
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
	// Limits on clients; zero values mean the defaults.
	Limits Limits
}

// Limits bound what clients can make the daemon hold.
type Limits struct {
	// Connections at once, 512 by default, and ConnectionsPerUser of any user but
	// root, half of that by default. One too many is closed at once.
	Connections, ConnectionsPerUser int
	// Message is the size of the largest request in bytes, 1 MiB by default.
	Message int
	// Idle is how long a connection may be without a call, 2 minutes by default.
	Idle time.Duration
	// Write is how long a client may take to read one reply, 10 seconds by default.
	Write time.Duration
}

// Server serves Varlink.
type Server struct {
	options Options
	service *varlink.Service

	mu          sync.Mutex
	connections int
	users       map[uint32]int
}

// New makes a Server; nothing happens before Run, but that clients may connect and
// wait. The error is one of the options.
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
	o.Limits.Connections = cmp.Or(o.Limits.Connections, 512)
	o.Limits.ConnectionsPerUser = cmp.Or(o.Limits.ConnectionsPerUser, (o.Limits.Connections+1)/2)
	o.Limits.Message = cmp.Or(o.Limits.Message, 1<<20)
	o.Limits.Idle = cmp.Or(o.Limits.Idle, 2*time.Minute)
	o.Limits.Write = cmp.Or(o.Limits.Write, 10*time.Second)
	service, err := varlink.NewService("ec2netd", "ec2netd", o.Version, "man:ec2netd(8)")
	if err != nil {
		return nil, fmt.Errorf("making the Varlink server: %w", err)
	}
	s := &Server{options: o, service: service, users: map[uint32]int{}}
	d := &dispatcher{VarlinkInterface: orgec2netdnetwork.VarlinkNew(&network{options: &s.options}), options: &s.options}
	if err := errors.Join(service.RegisterInterface(d), service.RegisterInterface(&metricsInterface{&s.options})); err != nil {
		return nil, fmt.Errorf("making the Varlink server: %w", err)
	}
	return s, nil
}

// String names the task for the log.
func (s *Server) String() string {
	return "Varlink server " + api.VarlinkInterface
}

// Run serves until ctx is done, waits for the connections to end, and returns nil
// then. An error is one of the listener that will not pass. Run must be called once
// only.
//
// The library's own loop is not used: it ignores its context and races with its
// Shutdown (libraries.md).
func (s *Server) Run(ctx context.Context) error {
	group, ctx := errgroup.WithContext(ctx)
	for _, l := range s.options.Listeners {
		group.Go(func() error { return s.accept(ctx, l) })
	}
	return group.Wait()
}

// accept serves on one listener, as Run does.
func (s *Server) accept(ctx context.Context, listener net.Listener) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	stop := context.AfterFunc(ctx, func() { _ = listener.Close() }) // Accept tells of it
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
			// Out of file descriptors, mostly: clients wait in the meantime.
			s.options.Logger.Warn("Could not accept a Varlink connection; trying on", "error", err, "pause", pause)
			select {
			case <-ctx.Done():
			case <-time.After(pause):
			}
			pause = min(2*pause, time.Second)
			continue
		}
		pause = 5 * time.Millisecond
		running.Go(func() {
			defer nc.Close()
			c, err := newConnection(nc.(*net.UnixConn), &s.options)
			if err != nil {
				s.options.Logger.Debug("Varlink client refused", "error", err)
				return
			}
			if !s.admit(c.peer.UID) {
				s.options.Logger.Debug("Varlink client refused: too many connections", "uid", c.peer.UID)
				return
			}
			defer s.dismiss(c.peer.UID)
			if err := c.serve(ctx, s.service); err != nil {
				s.options.Logger.Debug("Varlink connection ended", "uid", c.peer.UID, "pid", c.peer.PID, "error", err)
			}
		})
	}
}

// admit counts a connection in, or says that there are too many. Root always gets
// one, so that users cannot lock the administrator out.
func (s *Server) admit(uid uint32) bool {
	s.mu.Lock()
	defer s.mu.Unlock()
	if uid != 0 && (s.connections >= s.options.Limits.Connections || s.users[uid] >= s.options.Limits.ConnectionsPerUser) {
		return false
	}
	s.connections++
	s.users[uid]++
	return true
}

func (s *Server) dismiss(uid uint32) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.connections--
	if s.users[uid]--; s.users[uid] == 0 {
		delete(s.users, uid)
	}
}
