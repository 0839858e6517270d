package vpc

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"
)

// PingResult summarizes echo requests and their replies.
type PingResult struct {
	Sent     int
	Received int
	// Lost are the times at which the requests without a reply were sent.
	Lost []time.Time
	// SendErrors counts requests that the kernel refused to send; they also count as sent
	// and lost.
	SendErrors []error
	// First is the time at which the first request with a reply was sent, zero if there
	// was none.
	First time.Time
}

// LostSinceFirst returns the number of requests without a reply since the first request
// with one, and the number of all requests since then. It is for an address that appears
// later.
func (r PingResult) LostSinceFirst() (lost, sent int) {
	for _, t := range r.Lost {
		if t.After(r.First) {
			lost++
		}
	}
	return lost, lost + r.Received
}

// String is for logs.
func (r PingResult) String() string {
	s := fmt.Sprintf("%d sent, %d lost", r.Sent, r.Sent-r.Received)
	if len(r.SendErrors) > 0 {
		s += fmt.Sprintf(" (%d not sent: %v)", len(r.SendErrors), r.SendErrors[0])
	}
	return s
}

// replyTimeout is how long to wait for the last replies; in the lab a reply takes well
// under a millisecond.
const replyTimeout = time.Second

// Pinger sends echo requests from an instance until it is stopped.
type Pinger struct {
	conn     *icmp.PacketConn
	dst      net.Addr
	ipv6     bool
	id       int
	limit    int // 0: none
	interval time.Duration
	cancel   context.CancelFunc
	done     chan struct{} // the sender has ended
	all      chan struct{} // every request has its reply

	mu       sync.Mutex
	sent     []time.Time
	answered map[int]bool
	errs     []error
	ended    bool
}

// Ping sends count echo requests from an address of the instance, one per interval, and
// waits for the replies.
func (inst *Instance) Ping(ctx context.Context, src, dst netip.Addr, count int, interval time.Duration) (PingResult, error) {
	if inst.opts.Machine {
		return inst.machinePing(ctx, src, dst, count, interval)
	}
	p, err := inst.startPing(ctx, src, dst, count, interval)
	if err != nil {
		return PingResult{}, err
	}
	select {
	case <-p.done:
	case <-ctx.Done():
	}
	return p.Stop(), ctx.Err()
}

// StartPing sends echo requests until [Pinger.Stop], or until ctx ends.
func (inst *Instance) StartPing(ctx context.Context, src, dst netip.Addr, interval time.Duration) (*Pinger, error) {
	return inst.startPing(ctx, src, dst, 0, interval)
}

func (inst *Instance) startPing(ctx context.Context, src, dst netip.Addr, limit int, interval time.Duration) (*Pinger, error) {
	p, err := startPing(ctx, inst.Do, src, dst, limit, interval)
	if err != nil {
		return nil, fmt.Errorf("in %s: %w", inst.id, err)
	}
	return p, nil
}

// StartPing sends echo requests from an address of the VPC, such as a subnet's gateway or
// [FarIPv4], until [Pinger.Stop], or until ctx ends. The destination need not exist yet.
func (v *VPC) StartPing(ctx context.Context, src, dst netip.Addr, interval time.Duration) (*Pinger, error) {
	return startPing(ctx, v.thread.do, src, dst, 0, interval)
}

// startPing opens the socket in the network namespace in which do runs functions.
func startPing(ctx context.Context, do func(func() error) error, src, dst netip.Addr, limit int, interval time.Duration) (*Pinger, error) {
	network := "ip4:icmp"
	if dst.Is6() {
		network = "ip6:ipv6-icmp"
	}
	if src.Is4() != dst.Is4() {
		return nil, fmt.Errorf("pinging %s from %s: different families", dst, src)
	}
	ctx, cancel := context.WithCancel(ctx)
	p := &Pinger{
		dst: &net.IPAddr{IP: dst.AsSlice()}, ipv6: dst.Is6(), id: rand.IntN(1 << 16), limit: limit, interval: interval,
		cancel: cancel, done: make(chan struct{}), all: make(chan struct{}), answered: make(map[int]bool),
	}
	err := do(func() (err error) {
		p.conn, err = icmp.ListenPacket(network, src.String())
		return err
	})
	if err != nil {
		cancel()
		return nil, fmt.Errorf("pinging %s from %s: %w", dst, src, err)
	}
	go p.receive()
	go p.send(ctx)
	return p, nil
}

func (p *Pinger) send(ctx context.Context) {
	defer close(p.done)
	tick := time.NewTicker(p.interval)
	defer tick.Stop()
	for n := 0; p.limit == 0 || n < p.limit; n++ {
		if n > 0 {
			select {
			case <-tick.C:
			case <-ctx.Done():
				return
			}
		}
		var kind icmp.Type = ipv4.ICMPTypeEcho
		if p.ipv6 {
			kind = ipv6.ICMPTypeEchoRequest
		}
		// The data also contain the number: the field has only 16 bits.
		msg := icmp.Message{Type: kind, Body: &icmp.Echo{ID: p.id, Seq: n & 0xffff, Data: binary.BigEndian.AppendUint64(nil, uint64(n))}}
		b, err := msg.Marshal(nil) // the kernel fills in the checksum of ICMPv6
		p.mu.Lock()
		p.sent = append(p.sent, time.Now())
		p.mu.Unlock()
		if err == nil {
			_, err = p.conn.WriteTo(b, p.dst)
		}
		if err != nil {
			p.mu.Lock()
			p.errs = append(p.errs, err)
			p.mu.Unlock()
		}
	}
}

func (p *Pinger) receive() {
	buf := make([]byte, 1500)
	proto := 1
	if p.ipv6 {
		proto = protoICMPv6
	}
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // an ICMP error for some request, which stays unanswered
		}
		msg, err := icmp.ParseMessage(proto, buf[:n])
		if err != nil || msg.Type != ipv4.ICMPTypeEchoReply && msg.Type != ipv6.ICMPTypeEchoReply {
			continue
		}
		echo, ok := msg.Body.(*icmp.Echo)
		if !ok || echo.ID != p.id || len(echo.Data) != 8 {
			continue
		}
		p.mu.Lock()
		p.answered[int(binary.BigEndian.Uint64(echo.Data))] = true
		p.checkAll()
		p.mu.Unlock()
	}
}

// checkAll checks whether all replies have arrived; p.mu is held.
func (p *Pinger) checkAll() {
	if p.ended && len(p.answered)+len(p.errs) >= len(p.sent) {
		select {
		case <-p.all:
		default:
			close(p.all)
		}
	}
}

// Result returns the result so far; requests without a reply yet count as lost.
func (p *Pinger) Result() PingResult {
	p.mu.Lock()
	defer p.mu.Unlock()
	r := PingResult{Sent: len(p.sent), Received: len(p.answered), SendErrors: slices.Clone(p.errs)}
	for n, t := range p.sent {
		if !p.answered[n] {
			r.Lost = append(r.Lost, t)
		} else if r.First.IsZero() {
			r.First = t
		}
	}
	return r
}

// Stop stops sending, waits for outstanding replies, and returns the result.
func (p *Pinger) Stop() PingResult {
	p.cancel()
	<-p.done
	p.mu.Lock()
	p.ended = true
	p.checkAll()
	p.mu.Unlock()
	select {
	case <-p.all:
	case <-time.After(replyTimeout):
	}
	_ = p.conn.Close() // everything sent has been counted
	return p.Result()
}
