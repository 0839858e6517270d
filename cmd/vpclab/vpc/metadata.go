package vpc

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"sync"
	"time"

	"github.com/vishvananda/netlink"

	"ec2netd/cmd/vpclab/imds"
)

// The addresses of the metadata service.
var (
	MetadataIPv4 = netip.MustParseAddr("169.254.169.254")
	MetadataIPv6 = netip.MustParseAddr("fd00:ec2::254")
)

// closeTimeout bounds the clean-up.
const closeTimeout = 30 * time.Second

// EndpointState is the state of a metadata endpoint for its clients.
type EndpointState string

// The states of an endpoint.
const (
	EndpointOn      EndpointState = "on"      // it is served
	EndpointRefused EndpointState = "refused" // connections are refused
	EndpointSilent  EndpointState = "silent"  // packets are dropped
)

// Family is an IP family.
type Family int

// The families.
const (
	IPv4 Family = 4
	IPv6 Family = 6
)

// metadata serves the instances' metadata on the two endpoints.
type metadata struct {
	vpc   *VPC
	paced *imds.Paced

	mu        sync.Mutex
	endpoints map[Family]*endpoint

	loss struct {
		mu          sync.Mutex
		probability float64
		rand        *rand.Rand
		lost        int
	}
}

type endpoint struct {
	addr   netip.Addr
	state  EndpointState
	server *http.Server // nil while refused
	done   chan struct{}
}

func (v *VPC) newMetadata() (*metadata, error) {
	m := &metadata{vpc: v, endpoints: map[Family]*endpoint{
		IPv4: {addr: MetadataIPv4, state: EndpointRefused},
		IPv6: {addr: MetadataIPv6, state: EndpointRefused},
	}}
	m.paced = imds.NewPaced(http.HandlerFunc(m.serve), v.opts.Seed)
	m.paced.SetPace(v.Behaviour().Metadata)
	for family := range m.endpoints {
		if err := m.set(v.life, family, EndpointOn); err != nil {
			m.close()
			return nil, err
		}
	}
	return m, nil
}

// SetMetadataEndpoint changes the state of one endpoint of the metadata service. On EC2
// the IPv6 endpoint is off by default; here both are on.
func (v *VPC) SetMetadataEndpoint(ctx context.Context, family Family, state EndpointState) error {
	return v.meta.set(ctx, family, state)
}

// MetadataEndpoint returns the state of an endpoint.
func (v *VPC) MetadataEndpoint(family Family) EndpointState {
	v.meta.mu.Lock()
	defer v.meta.mu.Unlock()
	if e := v.meta.endpoints[family]; e != nil {
		return e.state
	}
	return ""
}

// SetMetadataLoss makes random connections to the metadata service fail: they are reset
// at once. A probability of 0 ends this.
func (v *VPC) SetMetadataLoss(probability float64, seed uint64) {
	l := &v.meta.loss
	l.mu.Lock()
	defer l.mu.Unlock()
	l.probability, l.rand = probability, rand.New(rand.NewPCG(seed, 0))
}

// MetadataLost returns the number of connections that [VPC.SetMetadataLoss] has reset.
func (v *VPC) MetadataLost() int {
	v.meta.loss.mu.Lock()
	defer v.meta.loss.mu.Unlock()
	return v.meta.loss.lost
}

// lossyListener resets random connections.
type lossyListener struct {
	net.Listener
	meta *metadata
}

// Accept returns the next connection that is not lost.
func (l lossyListener) Accept() (net.Conn, error) {
	for {
		conn, err := l.Listener.Accept()
		if err != nil || !l.meta.loses() {
			return conn, err
		}
		if tcp, ok := conn.(*net.TCPConn); ok {
			_ = tcp.SetLinger(0) // it fails if the client has already disconnected
		}
		conn.Close()
	}
}

func (m *metadata) loses() bool {
	m.loss.mu.Lock()
	defer m.loss.mu.Unlock()
	if m.loss.probability == 0 || m.loss.rand.Float64() >= m.loss.probability {
		return false
	}
	m.loss.lost++
	return true
}

func (m *metadata) set(ctx context.Context, family Family, state EndpointState) error {
	m.mu.Lock()
	defer m.mu.Unlock()
	e := m.endpoints[family]
	if e == nil {
		return fmt.Errorf("unknown IP family %d, want %d or %d", family, IPv4, IPv6)
	}
	if e.state == state {
		return nil
	}
	switch state {
	case EndpointOn, EndpointSilent, EndpointRefused:
	default:
		return fmt.Errorf("unknown endpoint state %q, want %s, %s or %s", state, EndpointOn, EndpointRefused, EndpointSilent)
	}
	keyword := map[Family]string{IPv4: "ip", IPv6: "ip6"}[family]
	if e.state == EndpointSilent {
		if err := m.vpc.nft(ctx, fmt.Sprintf("delete table %s vpclab_silent\n", keyword)); err != nil {
			return err
		}
		e.state = EndpointRefused
		if e.server != nil {
			e.state = EndpointOn
		}
	}
	switch state {
	case EndpointOn:
		if err := m.listen(ctx, e); err != nil {
			return err
		}
	case EndpointRefused:
		e.stop()
	case EndpointSilent:
		err := m.vpc.nft(ctx, fmt.Sprintf(`
add table %[1]s vpclab_silent
add chain %[1]s vpclab_silent input { type filter hook input priority 0; }
add rule %[1]s vpclab_silent input %[1]s daddr %[2]s tcp dport 80 drop
`, keyword, e.addr))
		if err != nil {
			return err
		}
	}
	e.state = state
	return nil
}

// listen opens an endpoint's socket in the VPC's namespace and serves it.
//
//nolint:contextcheck // connections live as long as the VPC, not as long as the caller
func (m *metadata) listen(ctx context.Context, e *endpoint) error {
	if e.server != nil {
		return nil
	}
	var l net.Listener
	err := m.vpc.thread.do(func() (err error) {
		var lc net.ListenConfig
		l, err = lc.Listen(ctx, "tcp", netip.AddrPortFrom(e.addr, 80).String())
		return err
	})
	if err != nil {
		return fmt.Errorf("listening on %s: %w", e.addr, err)
	}
	base, cancel := context.WithCancel(m.vpc.life)
	e.server = &http.Server{
		Handler:           m.paced,
		ConnContext:       imds.ConnContext,
		BaseContext:       func(net.Listener) context.Context { return base },
		ReadHeaderTimeout: time.Minute,
	}
	e.server.RegisterOnShutdown(cancel)
	done := make(chan struct{})
	e.done = done
	server := e.server
	m.vpc.tasks.Go(func() {
		defer close(done)
		defer cancel()
		if err := server.Serve(lossyListener{l, m}); !errors.Is(err, http.ErrServerClosed) {
			m.vpc.logf("metadata endpoint %s: %v", e.addr, err)
		}
	})
	return nil
}

// stop closes the endpoint and its connections.
func (e *endpoint) stop() {
	if e.server != nil {
		_ = e.server.Close() // it closes the sockets even if it fails
		<-e.done
		e.server = nil
	}
}

func (m *metadata) close() {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.endpoints {
		e.stop()
	}
}

// serve answers with the metadata of the instance with this source address.
func (m *metadata) serve(w http.ResponseWriter, r *http.Request) {
	inst := m.client(r.RemoteAddr)
	if inst == nil {
		http.NotFound(w, r)
		return
	}
	inst.meta.ServeHTTP(w, r)
}

func (m *metadata) client(remote string) *Instance {
	from, err := netip.ParseAddrPort(remote)
	if err != nil {
		return nil
	}
	addr := from.Addr().Unmap().WithZone("")
	m.vpc.mu.Lock()
	defer m.vpc.mu.Unlock()
	if len(m.vpc.instances) == 1 {
		return m.vpc.instances[0]
	}
	for _, e := range m.vpc.enis {
		for _, p := range e.sources() {
			if p.Contains(addr) {
				return e.inst
			}
		}
	}
	// A link-local source is not an address of the VPC: the neighbour table has its MAC
	// address.
	if !addr.IsLinkLocalUnicast() {
		return nil
	}
	neighbours, err := m.vpc.thread.link.NeighList(0, netlink.FAMILY_V6)
	if err != nil {
		return nil
	}
	for _, n := range neighbours {
		if ip, ok := netip.AddrFromSlice(n.IP); ok && ip == addr {
			if e := m.vpc.enis[n.HardwareAddr.String()]; e != nil {
				return e.inst
			}
		}
	}
	return nil
}
