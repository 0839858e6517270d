package vpc

import (
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"time"

	"golang.org/x/sys/unix"
)

// StreamResult summarizes a TCP connection.
type StreamResult struct {
	// Sent and Echoed count bytes, each of which is sent separately.
	Sent, Echoed int
	// Stall is the longest time until a byte came back.
	Stall time.Duration
	// Retransmits counts the segments that the sender's kernel sent again: lost ones and,
	// on a busy machine, those with a late reply.
	Retransmits int
}

// String is for logs.
func (r StreamResult) String() string {
	return fmt.Sprintf("%d bytes, %d came back, longest stall %v, %d retransmits", r.Sent, r.Echoed, r.Stall.Round(time.Millisecond), r.Retransmits)
}

// Stream is a TCP connection between an address of the VPC and one of an instance, which
// sends one byte per interval and receives it back.
type Stream struct {
	client   *net.TCPConn
	server   net.Conn
	listener net.Listener
	cancel   context.CancelFunc
	tasks    sync.WaitGroup
	done     chan struct{} // the sender has ended
	received chan struct{} // everything sent has come back

	mu     sync.Mutex
	sent   []time.Time
	echoed int
	stall  time.Duration
	ended  bool
}

// StartStream connects from an address of the instance to one of the VPC, such as
// [FarIPv4], and sends a byte each interval until [Stream.Stop], or until ctx ends.
func (inst *Instance) StartStream(ctx context.Context, src, dst netip.Addr, interval time.Duration) (*Stream, error) {
	s := &Stream{received: make(chan struct{}), done: make(chan struct{})}
	failed := func(err error) (*Stream, error) {
		if s.listener != nil {
			_ = s.listener.Close()
		}
		return nil, fmt.Errorf("a TCP connection from %s to %s: %w", src, dst, err)
	}
	err := inst.vpc.thread.do(func() (err error) {
		var lc net.ListenConfig
		s.listener, err = lc.Listen(ctx, "tcp", netip.AddrPortFrom(dst, 0).String())
		return err
	})
	if err != nil {
		return failed(err)
	}
	err = inst.Do(func() error {
		dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), Timeout: replyTimeout}
		conn, err := dialer.DialContext(ctx, "tcp", s.listener.Addr().String())
		if err != nil {
			return err
		}
		s.client = conn.(*net.TCPConn)
		return nil
	})
	if err != nil {
		return failed(err)
	}
	if s.server, err = s.listener.Accept(); err != nil {
		_ = s.client.Close()
		return failed(err)
	}
	ctx, s.cancel = context.WithCancel(ctx)
	s.tasks.Go(func() { _, _ = io.Copy(s.server, s.server) }) // it ends when the connection is closed
	go s.receive()
	go s.send(ctx, interval)
	return s, nil
}

func (s *Stream) send(ctx context.Context, interval time.Duration) {
	defer close(s.done)
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-tick.C:
		}
		s.mu.Lock()
		s.sent = append(s.sent, time.Now())
		s.mu.Unlock()
		if _, err := s.client.Write([]byte{0}); err != nil {
			return // the connection is broken: the missing bytes show that
		}
	}
}

func (s *Stream) receive() {
	buf := make([]byte, 4096)
	for {
		n, err := s.client.Read(buf)
		s.mu.Lock()
		for range n {
			s.stall = max(s.stall, time.Since(s.sent[s.echoed]))
			s.echoed++
		}
		s.check()
		s.mu.Unlock()
		if err != nil {
			return
		}
	}
}

// check checks whether all bytes have come back; s.mu is held.
func (s *Stream) check() {
	if s.ended && s.echoed == len(s.sent) {
		select {
		case <-s.received:
		default:
			close(s.received)
		}
	}
}

// Stop stops sending, waits for outstanding bytes, closes the connection, and returns the
// result.
func (s *Stream) Stop() StreamResult {
	s.cancel()
	<-s.done
	s.mu.Lock()
	s.ended = true
	s.check()
	s.mu.Unlock()
	select {
	case <-s.received:
	case <-time.After(5 * replyTimeout):
	}
	retransmits, err := s.retransmits()
	_ = s.client.Close() // everything sent has been counted
	_ = s.server.Close()
	_ = s.listener.Close()
	s.tasks.Wait()
	s.mu.Lock()
	defer s.mu.Unlock()
	r := StreamResult{Sent: len(s.sent), Echoed: s.echoed, Stall: s.stall, Retransmits: retransmits}
	if err == nil && r.Echoed < r.Sent {
		// A byte that did not come back has stalled until now.
		r.Stall = max(r.Stall, time.Since(s.sent[s.echoed]))
	}
	return r
}

func (s *Stream) retransmits() (int, error) {
	raw, err := s.client.SyscallConn()
	if err != nil {
		return 0, err
	}
	total := 0
	ctlErr := raw.Control(func(fd uintptr) {
		var info *unix.TCPInfo
		if info, err = unix.GetsockoptTCPInfo(int(fd), unix.IPPROTO_TCP, unix.TCP_INFO); err == nil {
			total = int(info.Total_retrans)
		}
	})
	return total, errors.Join(err, ctlErr)
}
