package agent

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"math/rand/v2"
	"net"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/state"
	"ec2netd/service/store"
)

// The keys that the daemon reads: those of the instance, and those of an ENI. The
// matrix itself checks that these are all.
var (
	instanceKeys = []string{imds.TokenKey, "mac", "instance-id"}
	eniKeys      = []string{
		"", "device-number", "interface-id", "network-card", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix",
		"subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks",
	}
)

// phase is when a fault comes.
type phase string

const (
	first  phase = "first"  // before the ENI is configured for the first time
	steady phase = "steady" // all is configured
	during phase = "change" // with a change of everything that can change
)

// mutable are the keys that are read in each refresh; the others do not change while
// an ENI is attached.
func mutable(key string) bool {
	switch key {
	case imds.TokenKey, "", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix":
		return true
	}
	return false
}

// TestFaultMatrix: each key that is read × each way in which an answer fails × each
// phase. In each cell nothing that was there goes, no file is made of a view that is
// not complete, the reason is shown per ENI, and all converges once the fault is
// lifted (D3, D4, D5, D6, C1). A cell is the primary ENI's or another one's, by
// chance; with EC2NETD_LONG=1 it is both.
func TestFaultMatrix(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	for _, name := range slices.Sorted(maps.Keys(imds.Failures())) {
		fault := imds.Failures()[name]
		seed := random.Uint64()
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			random := rand.New(rand.NewPCG(seed, 0))
			for _, key := range instanceKeys {
				t.Run(key, func(t *testing.T) {
					synctest.Test(t, func(t *testing.T) { faultCells(t, key, key, "", fault) })
				})
			}
			for _, key := range eniKeys {
				if key == "" && fault.Effect == imds.Inject {
					continue // names that nobody knows in a listing are ignored (D13)
				}
				victims := slices.Sorted(maps.Keys(specs()))
				if !long() {
					victims = victims[random.IntN(len(victims)):][:1]
				}
				for _, victim := range victims {
					t.Run(victim+"/"+key, func(t *testing.T) {
						pattern := strings.TrimSuffix("network/interfaces/macs/"+specs()[victim].MAC+"/"+key, "/")
						synctest.Test(t, func(t *testing.T) { faultCells(t, key, pattern, victim, fault) })
					})
				}
			}
		})
	}
}

// long tells whether the long matrices run whole rather than by a sample.
func long() bool { return os.Getenv("EC2NETD_LONG") != "" }

// seeded is the chance of a test.
func seeded(t *testing.T) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(vpc.ChanceForTest(t), 0))
}

// specs are the ENIs of the matrix: the primary, and one on another network card.
func specs() map[string]imds.Interface {
	return map[string]imds.Interface{"ens5": specOf(0, 0, 0), "ens6": specOf(1, 1, 1)}
}

// faultCells are the cells of one key and one fault, phase by phase. victim is the link
// of the ENI whose key fails, empty for a key of the instance.
func faultCells(t *testing.T, key, pattern, victim string, fault imds.Fault) {
	fault.Pattern = pattern
	s := newSite(t, imds.Options{})
	s.wrote = s.onlyWhole
	names := slices.Sorted(maps.Keys(specs()))
	for _, name := range names {
		s.publish(name, specs()[name], imds.Propagation{})
	}
	// The instance boots with the fault, or the ENI is attached to it when it has long
	// been configured.
	attached := victim == "ens6"
	if !attached {
		s.addFault(fault)
	}
	for _, name := range names {
		if !attached || name != victim {
			s.plug(name)
		}
	}
	a, stop := s.run()
	defer stop()
	if attached {
		s.settled(a, time.Minute)
		s.addFault(fault)
		s.plug(victim)
	}
	s.faultCell(a, first, key, victim, fault)
	s.addFault(fault)
	s.faultCell(a, steady, key, victim, fault)
	s.addFault(fault)
	for name, spec := range specs() {
		s.publish(name, changed(spec), imds.Propagation{})
	}
	s.faultCell(a, during, key, victim, fault)

	// The matrix has every key that is read.
	for _, r := range s.server.Requests() {
		name := strings.TrimPrefix(r.Key, "network/interfaces/macs/")
		_, below, _ := strings.Cut(name, "/")
		if name == r.Key && !slices.Contains(instanceKeys, r.Key) || name != r.Key && !slices.Contains(eniKeys, below) {
			t.Errorf("%s is read, and not in the matrix", r.Key)
		}
	}
}

func (s *site) addFault(fault imds.Fault) {
	s.t.Helper()
	if _, err := s.server.AddFault(fault); err != nil {
		s.t.Fatal(err)
	}
	if fault.Pattern == imds.TokenKey {
		// Or it would not be met for the life of the token.
		s.server.RevokeTokens()
	}
}

// faultCell is one cell: the fault is in force, and is lifted.
func (s *site) faultCell(a *Agent, when phase, key, victim string, fault imds.Fault) {
	t := s.t
	t.Logf("phase: %s", when)
	names := slices.Sorted(maps.Keys(specs()))
	tree := s.units()
	s.set(func() { s.taken = nil })
	settle(90 * time.Second) // more than a refresh, and all the retries before it

	hits := s.server.Faults()[0].Hits
	if want := when == first || mutable(key); (hits > 0) != want {
		t.Errorf("the key was read %d times in this phase", hits)
	}
	var faulty []string // the ENIs that cannot be read
	switch {
	case hits == 0:
	case victim == "":
		faulty = names
	default:
		faulty = []string{victim}
	}
	now := s.units()
	for _, name := range names {
		got, ok := a.State().Find(name)
		if !ok {
			t.Fatalf("%s is not in the state", name)
		}
		switch {
		case !slices.Contains(faulty, name):
			if got.State != state.ENIConfigured || got.Reason != "" {
				t.Errorf("%s, which nothing is wrong with, is %s: %s", name, got.State, got.Reason)
			}
			continue
		case when == first:
			if u := parseUnit(t, s.store.Read(plan.NetworkDropIn(name))); got.State != state.ENIPending || !u.bare() {
				t.Errorf("%s, of which nothing can be known, is %s and has %+v", name, got.State, u)
			}
		default:
			if got.State != state.ENIConfigured || now[name] != tree[name] {
				t.Errorf("%s, whose last view holds, is %s and has\n%s\nbefore\n%s", name, got.State, now[name], tree[name])
			}
		}
		if !explains(got.Reason, key, got.MAC, fault) {
			t.Errorf("the reason of %s is %q", name, got.Reason)
		}
	}
	if whole := a.State(); len(faulty) > 0 && whole.Reason == "" && whole.State == state.Configured && fault.Status != 404 {
		t.Errorf("the whole is %s: %q", whole.State, whole.Reason)
	}
	if when == first {
		s.forgetMoved(faulty)
	}
	s.onlyWithdrawn(faulty)

	s.server.ClearFaults()
	s.settled(a, 2*time.Minute+poller.ReadTime)
	if when == first {
		s.forgetMoved(nil)
	}
	s.onlyWithdrawn(nil)
	if now := s.units(); when == steady && !maps.Equal(now, tree) {
		t.Errorf("a fault that came and went left\n%v\nbefore\n%v", now, tree)
	}
}

// explains tells whether a reason names the key that fails, and how.
func explains(reason, key, mac string, fault imds.Fault) bool {
	how := ""
	switch fault.Effect {
	case imds.Status:
		how = strconv.Itoa(fault.Status)
		if fault.Status == 404 && key != imds.TokenKey && !slices.Contains(instanceKeys, key) {
			how = "not" // "does not list", "not complete yet"
		}
	case imds.Hang:
		how = "did not answer in time"
	case imds.Reset, imds.Truncate:
		how = "ended the connection"
	}
	if key == "" {
		key = mac
	}
	return strings.Contains(reason, key) && strings.Contains(reason, how)
}

// forgetMoved takes out of what networkd took away the address of each secondary ENI
// that DHCPv6 had brought: it goes for a moment when its unit is made, to come back as a
// static one. That of a faulty one stays.
func (s *site) forgetMoved(faulty []string) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, spec := range s.specs {
		if spec.MAC == s.instance.PrimaryMAC || len(spec.IPv6) == 0 || slices.Contains(faulty, name) {
			continue
		}
		s.taken = slices.DeleteFunc(s.taken, func(word string) bool { return word == name+" address "+spec.IPv6[0].String() })
	}
}

// onlyWithdrawn checks that networkd took nothing away that EC2 has not withdrawn, and
// of ENIs that cannot be read nothing at all.
func (s *site) onlyWithdrawn(faulty []string) {
	s.t.Helper()
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, spec := range s.specs {
		kept := wanted(name, spec, spec.MAC == s.instance.PrimaryMAC)
		if slices.Contains(faulty, name) {
			maps.Copy(kept, wanted(name, specs()[name], spec.MAC == s.instance.PrimaryMAC))
		}
		for _, word := range s.taken {
			if kept[word] {
				s.t.Errorf("networkd took away: %s", word)
			}
		}
	}
	s.taken = nil
}

// onlyWhole checks that a unit that was written is of a whole view, or of none: that
// it has all sources of one view, and no address of another.
func (s *site) onlyWhole(changes store.Changes) {
	s.mu.Lock()
	defer s.mu.Unlock()
	for name, spec := range s.specs {
		if !slices.Contains(changes.Written, plan.NetworkDropIn(name)) {
			continue
		}
		content := s.store.Read(plan.NetworkDropIn(name))
		u := parseUnit(s.t, content)
		whole := u.bare()
		for _, view := range []imds.Interface{specs()[name], spec} {
			sources := make(map[string]bool)
			for _, source := range sourcesOf(view) {
				sources[source.String()] = true
			}
			// Those that let local networks go first are for its subnets.
			rules := slices.DeleteFunc(slices.Clone(u.rules), func(r kernel.Rule) bool { return r.Guard })
			fits := len(rules) == len(sources) || spec.MAC == s.instance.PrimaryMAC && len(rules) == 0
			for _, rule := range rules {
				fits = fits && sources[rule.From.String()] && rule.Table == tableOf(view) && rule.Priority == rule.Table
			}
			for _, address := range u.addresses {
				fits = fits && (slices.Contains(view.IPv4, address) || slices.Contains(view.IPv6, address))
			}
			whole = whole || fits
		}
		if !whole {
			s.t.Errorf("%s was written of a view that is not complete:\n%s", name, content)
		}
	}
}

// units are the generated files of each link, with the time of their last change.
func (s *site) units() map[string]string {
	s.t.Helper()
	out := make(map[string]string)
	root := filepath.Join(s.dir, plan.Directory)
	err := filepath.WalkDir(root, func(p string, d fs.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || err == nil && d.IsDir() {
			return nil
		}
		if err != nil {
			return err
		}
		info, err := d.Info()
		if errors.Is(err, fs.ErrNotExist) {
			return nil // half a file, which has its name by now
		}
		if err != nil {
			return err
		}
		content, _ := os.ReadFile(p)
		target, _ := os.Readlink(p)
		rest := strings.TrimPrefix(strings.TrimPrefix(p, root), "/70-")
		name, _, _ := strings.Cut(rest, ".")
		out[name] += fmt.Sprintf("%s %s %s %s\n", rest, target, info.ModTime(), content)
		return nil
	})
	if err != nil {
		s.t.Fatal(err)
	}
	return out
}

// lossy loses three connections in ten: it refuses them, lets them hang, or resets them
// after some bytes of the answers.
type lossy struct {
	pipes *imds.Pipes
	mu    sync.Mutex
	rand  *rand.Rand // nil once nothing is lost any more
	lost  int
}

func (l *lossy) dial(ctx context.Context, network, address string) (net.Conn, error) {
	l.mu.Lock()
	fate, bytes := 9, 0
	if l.rand != nil {
		fate, bytes = l.rand.IntN(10), l.rand.IntN(3000)
	}
	if fate < 3 {
		l.lost++
	}
	l.mu.Unlock()
	switch fate {
	case 0:
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	case 1:
		select {
		case <-time.After(time.Second):
			return nil, &net.OpError{Op: "dial", Net: network, Err: os.ErrDeadlineExceeded}
		case <-ctx.Done():
			return nil, ctx.Err()
		}
	}
	conn, err := l.pipes.DialContext(ctx, network, address)
	if fate == 2 && err == nil {
		conn = &shortLived{Conn: conn, left: bytes}
	}
	return conn, err
}

// shortLived is a connection that is reset after some bytes.
type shortLived struct {
	net.Conn
	left int
}

func (c *shortLived) Read(p []byte) (int, error) {
	if c.left == 0 {
		c.Close()
		return 0, &net.OpError{Op: "read", Net: "pipe", Err: syscall.ECONNRESET}
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	return n, err
}

// D3, D6: with three connections in ten lost and 15 ENIs nothing goes that EC2 has not
// withdrawn, and all converges, while it is so and after it.
func TestConnectionsLost(t *testing.T) {
	t.Parallel()
	random := seeded(t)
	runs := 1
	if long() {
		runs = 50
	}
	for range runs {
		seed := random.Uint64()
		t.Run(strconv.FormatUint(seed, 10), func(t *testing.T) {
			t.Parallel()
			synctest.Test(t, func(t *testing.T) { connectionsLost(t, seed) })
		})
	}
}

func connectionsLost(t *testing.T, seed uint64) {
	s := newSite(t, imds.Options{MaxTokenTTL: 100 * time.Second})
	loss := &lossy{pipes: s.pipes, rand: rand.New(rand.NewPCG(seed, 0))}
	s.dial = loss.dial
	const count = 15
	name := func(n int) string { return fmt.Sprintf("ens%d", 5+n) }
	spec := func(n int) imds.Interface { return specOf(n, n%3, n/3) }
	for n := range count {
		s.attach(name(n), spec(n))
	}
	a, stop := s.run()
	defer stop()
	s.settled(a, 5*time.Minute)
	for n := range count {
		s.publish(name(n), changed(spec(n)), imds.Propagation{})
	}
	s.set(func() { s.taken = nil })
	s.settled(a, 5*time.Minute)
	s.onlyWithdrawn(nil)
	tree := s.units()
	settle(10 * time.Minute)
	if loss.lost < 15 {
		t.Errorf("only %d connections were lost", loss.lost)
	}
	loss.mu.Lock()
	loss.rand = nil
	loss.mu.Unlock()
	settle(2 * time.Minute)
	s.settled(a, time.Minute)
	s.onlyWithdrawn(nil)
	if now := s.units(); !maps.Equal(now, tree) {
		t.Errorf("lost connections left\n%v\nbefore\n%v", now, tree)
	}
}
