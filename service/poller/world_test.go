package poller

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"path/filepath"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/persist"
)

// world is an instance with ENIs: the simulated metadata service, the true client over a network in
// the process, and a poller that is called as the daemon's loop does it.
type world struct {
	t      *testing.T
	server *imds.Server
	client *metadata.Client
	views  persist.Place

	mu sync.Mutex // guards what follows
	// refused is why connections over a path fail, nil for not at all.
	refused func(metadata.Path) error
	links   []kernel.Link
	log     []string

	poller *Poller
	// calls are for the loop to make.
	calls chan func()
	// news counts the ends of reads that were worth a pass.
	news int
}

// errSilent stands for packets that nobody answers.
var errSilent = errors.New("silent")

func newWorld(t *testing.T) *world {
	t.Helper()
	w := &world{t: t, server: imds.New(imds.Options{}), calls: make(chan func()), views: persist.Place{Path: filepath.Join(t.TempDir(), "views.json")}}
	pipes := imds.NewPipes()
	server := &http.Server{Handler: w.server}
	go server.Serve(pipes)
	w.client = metadata.NewClient(metadata.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		w.mu.Lock()
		refused := w.refused
		var err error
		if refused != nil {
			err = refused(metadata.DialedPath(ctx))
		}
		w.mu.Unlock()
		if err == nil {
			return pipes.DialContext(ctx, network, address)
		}
		select {
		case <-ctx.Done():
		case <-time.After(time.Second): // as the true dialer
		}
		return nil, context.DeadlineExceeded
	}})
	t.Cleanup(func() {
		server.Close()
		w.client.CloseIdle()
	})
	w.server.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: macOf(0)})
	return w
}

func macOf(n int) string { return fmt.Sprintf("02:00:00:00:01:%02x", 0x10+n) }

// specOf is an ENI with every key that the daemon reads.
func specOf(n int) imds.Interface {
	return imds.Interface{
		MAC: macOf(n), ID: fmt.Sprintf("eni-%017x", n), DeviceNumber: n, NetworkCard: new(int),
		IPv4:         []netip.Addr{netip.AddrFrom4([4]byte{10, 0, byte(n), 10}), netip.AddrFrom4([4]byte{10, 0, byte(n), 11})},
		IPv6:         []netip.Addr{netip.MustParseAddr(fmt.Sprintf("2001:db8:0:1::%x:10", n))},
		IPv4Prefixes: []netip.Prefix{netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 0, byte(n), 32}), 28)},
		IPv6Prefixes: []netip.Prefix{netip.MustParsePrefix(fmt.Sprintf("2001:db8:0:1:%x::/80", n+1))},
		SubnetID:     "subnet-0123456789abcdef0", SubnetIPv4: netip.MustParsePrefix("10.0.0.0/16"),
		SubnetIPv6: []netip.Prefix{netip.MustParsePrefix("2001:db8:0:1::/64")},
	}
}

// linkOf is the link of an ENI, with its primary address.
func linkOf(n int) kernel.Link {
	primary := netip.PrefixFrom(specOf(n).IPv4[0], 16)
	return kernel.Link{Index: 2 + n, Name: fmt.Sprintf("ens%d", 5+n), MAC: macOf(n), Addresses: []kernel.Address{{Prefix: primary, Global: true}}}
}

// publish tells the metadata of an ENI, and plug gives it a link.
func (w *world) publish(n int, p imds.Propagation, change func(*imds.Interface)) {
	spec := specOf(n)
	if change != nil {
		change(&spec)
	}
	w.server.PutInterface(spec, p)
}

func (w *world) plug(link kernel.Link) {
	w.set(func() { w.links = append(w.links, link) })
	if w.poller != nil {
		w.do(func(*Poller) {})
	}
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

// inTurns is a world with ENIs that are looked at turn by turn.
func inTurns(t *testing.T, enis int, change func(*imds.Interface)) *world {
	t.Helper()
	w := newWorld(t)
	for n := range enis {
		w.publish(n, imds.Propagation{}, change)
		w.plug(linkOf(n))
	}
	w.run()
	settle(3 * time.Minute)
	for n := range enis {
		if eni := w.known().ENIs[macOf(n)]; eni.View == nil || eni.Err != nil {
			t.Fatalf("ENI %d: %+v", n, eni)
		}
	}
	w.server.ResetRequests()
	return w
}

// run is the daemon's loop.
func (w *world) run() {
	w.poller = New(Options{Client: w.client, Log: slog.New(slog.NewTextHandler(logWriter{w}, nil)), RefreshEvery: time.Minute, Views: w.views})
	ctx, cancel := context.WithCancel(w.t.Context())
	var done sync.WaitGroup
	done.Go(func() {
		p := w.poller
		p.Start(ctx, time.Now())
		snapshot := &kernel.Snapshot{}
		for {
			w.mu.Lock()
			now := &kernel.Snapshot{Links: append([]kernel.Link(nil), w.links...)}
			w.mu.Unlock()
			if !now.Equal(snapshot) {
				snapshot = now
			}
			p.Observe(snapshot, time.Now())
			var timer <-chan time.Time
			if at := p.Step(ctx, time.Now()); !at.IsZero() {
				timer = time.After(time.Until(at))
			}
			select {
			case <-ctx.Done():
				return
			case r := <-p.Results():
				if p.Take(r, time.Now()) {
					w.news++
				}
			case call := <-w.calls:
				call()
			case <-timer:
			}
		}
	})
	w.t.Cleanup(func() {
		cancel()
		done.Wait()
	})
}

// do has the loop do something with the poller, and look at the links again after that.
func (w *world) do(call func(*Poller)) {
	done := make(chan struct{})
	w.calls <- func() { call(w.poller); close(done) }
	<-done
}

func (w *world) known() (known *Known) {
	w.do(func(p *Poller) { known = p.Known() })
	return known
}

type logWriter struct{ *world }

func (l logWriter) Write(p []byte) (int, error) {
	l.set(func() { l.log = append(l.log, string(p)) })
	return len(p), nil
}

// settle lets the time pass that everything needs that is under way.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// macIn is the MAC address of the ENI that a request is about.
func macIn(key string) string {
	rest, ok := strings.CutPrefix(key, "network/interfaces/macs/")
	if !ok {
		return ""
	}
	mac, _, _ := strings.Cut(rest, "/")
	return mac
}
