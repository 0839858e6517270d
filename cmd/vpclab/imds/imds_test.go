package imds_test

import (
	"context"
	"errors"
	"io"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/cmd/vpclab/imds"
)

const (
	mac    = "02:00:00:00:00:01"
	mac2   = "02:00:00:00:00:02"
	macs   = "network/interfaces/macs/"
	latest = "/latest/meta-data/"
)

func eni() imds.Interface {
	p := netip.MustParsePrefix
	return imds.Interface{
		MAC: mac, ID: "eni-0123456789abcdef0",
		IPv4:         []netip.Addr{netip.MustParseAddr("10.0.0.20"), netip.MustParseAddr("10.0.0.9")},
		IPv6:         []netip.Addr{netip.MustParseAddr("2001:db8::a")},
		IPv4Prefixes: []netip.Prefix{p("10.0.0.32/28")},
		SubnetID:     "subnet-0123456789abcdef0", SubnetIPv4: p("10.0.0.0/24"), SubnetIPv6: []netip.Prefix{p("2001:db8::/64")},
		VPCID: "vpc-0123456789abcdef0", VPCIPv4: []netip.Prefix{p("10.0.0.0/16"), p("100.64.0.0/16")},
	}
}

// service is a server with a client that has a token.
type service struct {
	*imds.Server
	t     *testing.T
	token string
}

func newService(t *testing.T, opts imds.Options) *service {
	t.Helper()
	s := &service{Server: imds.New(opts), t: t}
	s.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: mac, Region: "us-east-1", Zone: "us-east-1a"})
	s.renew()
	return s
}

func (s *service) renew() {
	s.t.Helper()
	w := s.do(http.MethodPut, "/latest/api/token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
	if w.Code != 200 {
		s.t.Fatalf("token: %d", w.Code)
	}
	s.token = w.Body.String()
}

func (s *service) do(method, path string, headers ...string) *httptest.ResponseRecorder {
	r := httptest.NewRequest(method, path, nil)
	for n := 0; n+1 < len(headers); n += 2 {
		r.Header.Set(headers[n], headers[n+1])
	}
	w := httptest.NewRecorder()
	s.ServeHTTP(w, r)
	return w
}

// get returns the status and body of a key.
func (s *service) get(key string) (int, string) {
	path := key
	if !strings.HasPrefix(key, "/") {
		path = latest + key
	}
	w := s.do(http.MethodGet, path, "X-Aws-Ec2-Metadata-Token", s.token)
	return w.Code, w.Body.String()
}

func (s *service) want(key string, status int, body string) {
	s.t.Helper()
	gotStatus, gotBody := s.get(key)
	if gotStatus != status || status == 200 && gotBody != body {
		s.t.Errorf("GET %s: %d %q, want %d %q", key, gotStatus, gotBody, status, body)
	}
}

func TestTree(t *testing.T) {
	s := newService(t, imds.Options{})
	s.PutInterface(eni(), imds.Propagation{})
	other := eni()
	other.MAC, other.DeviceNumber, other.NetworkCard = mac2, 1, new(int)
	s.PutInterface(other, imds.Propagation{})

	s.want("mac", 200, mac)
	s.want("instance-id", 200, "i-0123456789abcdef0")
	s.want("placement/region", 200, "us-east-1")
	s.want("placement", 200, "availability-zone\nregion")
	s.want("/2021-01-03/meta-data/mac", 200, mac)
	s.want("/latest", 200, "dynamic\nmeta-data")
	s.want("/1999/meta-data/mac", 404, "")
	s.want("network", 200, "interfaces/")
	s.want(macs, 200, mac+"/\n"+mac2+"/")
	s.want(strings.TrimSuffix(macs, "/"), 200, mac+"/\n"+mac2+"/")
	listing := "device-number\ninterface-id\nipv4-prefix\nipv6s\nlocal-ipv4s\nmac\nsubnet-id\nsubnet-ipv4-cidr-block\n" +
		"subnet-ipv6-cidr-blocks\nvpc-id\nvpc-ipv4-cidr-block\nvpc-ipv4-cidr-blocks"
	s.want(macs+mac, 200, listing)
	s.want(macs+mac+"/", 200, listing)
	s.want(macs+mac2+"/network-card", 200, "0")
	s.want(macs+mac+"/network-card", 404, "")
	s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")
	s.want(macs+mac+"/ipv4-prefix", 200, "10.0.0.32/28")
	s.want(macs+mac+"/ipv6-prefix", 404, "")
	s.want(macs+mac+"/vpc-ipv4-cidr-blocks", 200, "10.0.0.0/16\n100.64.0.0/16")
	s.want(macs+mac+"/mac/", 404, "")
	s.want(macs+"02:00:00:00:00:03/", 404, "")
	s.want("../api", 404, "")

	w := s.do(http.MethodGet, latest+"nothing", "X-Aws-Ec2-Metadata-Token", s.token)
	if w.Code != 404 || !strings.Contains(w.Body.String(), "<title>404 - Not Found</title>") || w.Header().Get("Server") != "EC2ws" {
		t.Errorf("an absent key: %d, %v, %q", w.Code, w.Header(), w.Body)
	}
	if w := s.do(http.MethodPost, latest+"mac", "X-Aws-Ec2-Metadata-Token", s.token); w.Code != 405 {
		t.Errorf("POST: %d", w.Code)
	}

	s.RemoveInterface(mac2, 0)
	s.want(macs, 200, mac+"/")
	s.want(macs+mac2+"/mac", 404, "")

	changed := eni()
	changed.IPv4Prefixes, changed.IPv4 = nil, changed.IPv4[:1]
	s.PutInterface(changed, imds.Propagation{})
	s.want(macs+mac+"/ipv4-prefix", 404, "")
	s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20")

	if got := s.Snapshot()[macs+mac+"/local-ipv4s"]; got != "10.0.0.20" {
		t.Errorf("snapshot: local-ipv4s is %q", got)
	}
}

func TestTokens(t *testing.T) {
	s := newService(t, imds.Options{})
	const ttl = "X-Aws-Ec2-Metadata-Token-Ttl-Seconds"
	for _, c := range []struct {
		ttl    string
		status int
	}{{"1", 200}, {"21600", 200}, {"0", 400}, {"21601", 400}, {"-1", 400}, {"x", 400}, {"", 400}} {
		if w := s.do(http.MethodPut, "/latest/api/token", ttl, c.ttl); w.Code != c.status {
			t.Errorf("ttl %q: %d, want %d", c.ttl, w.Code, c.status)
		} else if c.status == 200 && w.Header().Get(ttl) != c.ttl {
			t.Errorf("ttl %q: the header says %q", c.ttl, w.Header().Get(ttl))
		}
	}
	if w := s.do(http.MethodPut, "/latest/api/token"); w.Code != 400 {
		t.Errorf("no ttl: %d", w.Code)
	}
	if w := s.do(http.MethodPut, "/latest/api/token", ttl, "60", "X-Forwarded-For", "192.0.2.1"); w.Code != 403 {
		t.Errorf("forwarded: %d", w.Code)
	}
	if w := s.do(http.MethodGet, latest+"mac"); w.Code != 401 {
		t.Errorf("without a token: %d", w.Code)
	}
	if w := s.do(http.MethodGet, latest+"mac", "X-Aws-Ec2-Metadata-Token", "wrong"); w.Code != 401 {
		t.Errorf("with a wrong token: %d", w.Code)
	}
	s.want("mac", 200, mac)
	s.RevokeTokens()
	s.want("mac", 401, "")
	s.renew()
	s.want("mac", 200, mac)
}

func TestTokenExpires(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, imds.Options{})
		time.Sleep(59 * time.Second)
		s.want("mac", 200, mac)
		time.Sleep(time.Second)
		s.want("mac", 401, "")

		s = newService(t, imds.Options{MaxTokenTTL: 2 * time.Second})
		time.Sleep(3 * time.Second)
		s.want("mac", 401, "")
	})
}

func TestPropagation(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, imds.Options{})
		e := eni()
		e.DeviceNumber = 3
		s.PutInterface(e, imds.Propagation{
			Default: time.Second,
			Keys:    map[string]time.Duration{"mac": 0, "device-number": imds.Held, "local-ipv4s": 2 * time.Second},
		})
		// Directly after the attachment only these keys exist, and the number is 0.
		s.want(macs, 200, mac+"/")
		s.want(macs+mac, 200, "device-number\nmac")
		s.want(macs+mac+"/device-number", 200, "0")
		s.want(macs+mac+"/interface-id", 404, "")
		time.Sleep(time.Second)
		s.want(macs+mac+"/interface-id", 200, e.ID)
		s.want(macs+mac+"/local-ipv4s", 404, "")
		time.Sleep(time.Second)
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")
		time.Sleep(time.Hour)
		s.renew()
		s.want(macs+mac+"/device-number", 200, "0")
		s.Reveal(mac, "device-number")
		s.want(macs+mac+"/device-number", 200, "3")

		// After a change the old value remains until the new one has propagated.
		// Another change meanwhile does not delay the first one.
		e.IPv4 = e.IPv4[:1]
		s.PutInterface(e, imds.Propagation{Default: 2 * time.Second})
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")
		time.Sleep(time.Second)
		e.IPv6 = nil
		s.PutInterface(e, imds.Propagation{Default: 2 * time.Second})
		time.Sleep(time.Second)
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20")
		s.want(macs+mac+"/ipv6s", 200, "2001:db8::a")
		time.Sleep(time.Second)
		s.want(macs+mac+"/ipv6s", 404, "")

		// A detached ENI remains listed for a while.
		s.RemoveInterface(mac, 5*time.Second)
		s.want(macs+mac+"/mac", 200, mac)
		time.Sleep(5 * time.Second)
		s.want(macs, 404, "")

		// Held: no keys before the reveal.
		s.PutInterface(eni(), imds.Propagation{Default: imds.Held})
		s.want(macs+mac, 200, "device-number")
		s.Reveal(mac)
		s.want(macs+mac+"/mac", 200, mac)
	})
}

// TestPropagationStages: a new ENI is listed late, its secondary addresses later, and
// its number last.
func TestPropagationStages(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, imds.Options{})
		e := eni()
		e.DeviceNumber = 3
		e.IPv6 = append(e.IPv6, netip.MustParseAddr("2001:db8::b"))
		p := imds.Propagation{
			Listed: time.Second, Secondaries: 2 * time.Second,
			Keys: map[string]time.Duration{"device-number": 3 * time.Second, "mac": time.Millisecond},
		}
		start := time.Now()
		s.PutInterface(e, p)
		if at, ok := s.Complete(mac); !ok || at.Sub(start) != 3*time.Second {
			t.Errorf("complete after %s, %t", at.Sub(start), ok)
		}
		time.Sleep(time.Second - time.Nanosecond)
		s.want(macs, 404, "")
		// An address that is assigned meanwhile does not make it appear sooner, and is
		// a secondary one.
		e.IPv4 = append(e.IPv4, netip.MustParseAddr("10.0.0.77"))
		e.IPv6Prefixes = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:0:1::/80")}
		s.PutInterface(e, imds.Propagation{})
		s.want(macs, 404, "")
		time.Sleep(time.Nanosecond)
		s.want(macs, 200, mac+"/")
		s.want(macs+mac+"/mac", 200, mac)
		s.want(macs+mac+"/device-number", 200, "0")
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20")
		s.want(macs+mac+"/ipv6s", 200, "2001:db8::a")
		s.want(macs+mac+"/ipv4-prefix", 404, "")
		time.Sleep(time.Second)
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9\n10.0.0.77")
		s.want(macs+mac+"/ipv6s", 200, "2001:db8::a\n2001:db8::b")
		s.want(macs+mac+"/ipv4-prefix", 200, "10.0.0.32/28")
		s.want(macs+mac+"/ipv6-prefix", 200, "2001:db8:0:0:1::/80")
		s.want(macs+mac+"/device-number", 200, "0")
		time.Sleep(time.Second)
		s.want(macs+mac+"/device-number", 200, "3")

		// An ENI that is already listed stays.
		e.IPv4 = e.IPv4[:2]
		s.PutInterface(e, p)
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")

		// If it is withdrawn before it was listed, it never appears.
		s.RemoveInterface(mac, 0)
		s.PutInterface(e, p)
		s.RemoveInterface(mac, 0)
		time.Sleep(time.Minute)
		s.renew()
		s.want(macs, 404, "")

		p.Listed = imds.Held
		s.PutInterface(e, p)
		e.IPv6Prefixes = nil
		s.PutInterface(e, imds.Propagation{})
		time.Sleep(time.Hour)
		s.renew()
		s.want(macs, 404, "")
		if at, ok := s.Complete(mac); ok {
			t.Errorf("a held ENI is complete at %s", at)
		}
		s.Reveal(mac)
		s.want(macs+mac+"/device-number", 200, "3")
		s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")
		s.want(macs+mac+"/ipv6-prefix", 404, "")
	})
}

func TestOverride(t *testing.T) {
	s := newService(t, imds.Options{})
	s.PutInterface(eni(), imds.Propagation{})
	s.Override(macs+mac+"/local-ipv4s", "10.0.0.20\n[Match]\n")
	s.Override(macs+"x/y", "z")
	s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n[Match]\n")
	s.want(macs, 200, mac+"/\nx/")
	s.ClearOverride(macs + mac + "/local-ipv4s")
	s.want(macs+mac+"/local-ipv4s", 200, "10.0.0.20\n10.0.0.9")
	s.ClearOverride()
	s.want(macs, 200, mac+"/")
	s.Set("tags/instance/Name", "web")
	s.want("tags/instance", 200, "Name")
	s.Delete("tags/instance/Name")
	s.want("tags/instance", 404, "")
}

func addFault(t *testing.T, s *service, f imds.Fault) int {
	t.Helper()
	id, err := s.AddFault(f)
	if err != nil {
		t.Fatal(err)
	}
	return id
}

func TestFaults(t *testing.T) {
	s := newService(t, imds.Options{Seed: 1})
	s.PutInterface(eni(), imds.Propagation{})
	key := macs + mac + "/local-ipv4s"
	for _, status := range []int{400, 401, 403, 404, 429, 500, 503} {
		id := addFault(t, s, imds.Fault{Pattern: macs + "*/local-ipv4s", Effect: imds.Status, Status: status})
		s.want(key, status, "")
		s.want(macs+mac+"/mac", 200, mac)
		if !s.ClearFault(id) || s.ClearFault(id) {
			t.Error("ClearFault does not tell what it did")
		}
	}
	s.want(key, 200, "10.0.0.20\n10.0.0.9")

	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.Empty})
	s.want(key, 200, "")
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.Body, Body: "garbage"})
	s.want(key, 200, "garbage")
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.HTML})
	if status, body := s.get(key); status != 200 || !strings.Contains(body, "<html>") {
		t.Errorf("html: %d %q", status, body)
	}
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.Family})
	s.want(key, 200, "2001:db8::1\n2001:db8::2")
	addFault(t, s, imds.Fault{Pattern: macs + mac + "/*", Effect: imds.Family})
	s.want(macs+mac+"/ipv6s", 200, "198.51.100.1")
	s.want(macs+mac+"/ipv4-prefix", 200, "2001:db8:0::/64")
	s.want(macs+mac+"/subnet-ipv6-cidr-blocks", 200, "198.51.0.0/24")
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.Inject})
	s.want(key, 200, "10.0.0.20\n10.0.0.9\n[Match]\nName=*")
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: key, Effect: imds.Huge})
	if status, body := s.get(key); status != 200 || len(body) < 1<<20 || !strings.HasPrefix(body, "10.0.0.20\n10.0.0.9\n10.0.0.20\n") {
		t.Errorf("huge: %d, %d bytes", status, len(body))
	}
	s.ClearFaults()
	// Only the text of a token is wrong: a client may well keep it.
	for name, fault := range imds.Failures() {
		fault.Pattern = imds.TokenKey
		if err := fault.Check(); err != nil {
			t.Errorf("%s: %v", name, err)
		}
		switch fault.Effect {
		case imds.Empty, imds.HTML, imds.Family, imds.Inject, imds.Huge:
		default:
			continue
		}
		addFault(t, s, fault)
		w := s.do(http.MethodPut, "/latest/api/token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
		if w.Code != 200 || w.Header().Get("X-Aws-Ec2-Metadata-Token-Ttl-Seconds") != "60" || w.Body.String() == s.token {
			t.Errorf("token %s: %d %v", name, w.Code, w.Header())
		}
		s.ClearFaults()
	}

	// Only the first three requests.
	addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Status, Status: 503, Count: 3})
	for range 3 {
		s.want("mac", 503, "")
	}
	s.want("mac", 200, mac)
	if len(s.Faults()) != 0 {
		t.Errorf("faults left: %v", s.Faults())
	}

	// About one in three, and the same requests with the same seed.
	run := func() (failed []int) {
		s := newService(t, imds.Options{Seed: 7})
		addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Status, Status: 500, Probability: 0.3})
		for n := range 300 {
			if status, _ := s.get("mac"); status != 200 {
				failed = append(failed, n)
			}
		}
		return failed
	}
	first := run()
	if len(first) < 60 || len(first) > 120 || !slices.Equal(first, run()) {
		t.Errorf("of 300 requests %d failed: %v", len(first), first)
	}

	addFault(t, s, imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403})
	if w := s.do(http.MethodPut, "/latest/api/token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60"); w.Code != 403 {
		t.Errorf("token: %d", w.Code)
	}
	s.want("mac", 200, mac)

	for _, f := range []imds.Fault{
		{}, {Pattern: "**"}, {Pattern: "[", Effect: imds.Hang}, {Pattern: "**", Effect: imds.Status},
		{Pattern: "**", Effect: imds.Delay}, {Pattern: "**", Effect: imds.Hang, Probability: 2},
	} {
		if _, err := s.AddFault(f); err == nil {
			t.Errorf("fault %+v was taken", f)
		}
	}
}

func TestFaultPatterns(t *testing.T) {
	s := newService(t, imds.Options{})
	s.PutInterface(eni(), imds.Propagation{})
	for _, c := range []struct {
		pattern string
		key     string
		hit     bool
	}{
		{"**", "mac", true},
		{"mac", "mac", true},
		{"mac", macs + mac + "/mac", false},
		{macs + "**", macs, true},
		{macs + "**", macs + mac + "/mac", true},
		{macs + "**", "mac", false},
		{macs + "*/**", macs + mac + "/mac", true},
		{macs + "*/**", macs, false},
		{macs + "*", macs + mac + "/", true},
		{macs + "*", macs + mac + "/mac", false},
		{"network/interfaces/macs", macs, true},
	} {
		addFault(t, s, imds.Fault{Pattern: c.pattern, Effect: imds.Status, Status: 500})
		if status, _ := s.get(c.key); (status == 500) != c.hit {
			t.Errorf("%s on %s: %d", c.pattern, c.key, status)
		}
		s.ClearFaults()
	}
}

// TestConnectionFaults needs a real connection.
func TestConnectionFaults(t *testing.T) {
	s := newService(t, imds.Options{})
	web := httptest.NewServer(s)
	defer web.Close()
	get := func(ctx context.Context) (string, error) {
		req, err := http.NewRequestWithContext(ctx, http.MethodGet, web.URL+latest+"instance-id", nil)
		if err != nil {
			return "", err
		}
		req.Header.Set("X-Aws-Ec2-Metadata-Token", s.token)
		resp, err := web.Client().Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		return string(body), err
	}
	if body, err := get(t.Context()); err != nil || body != "i-0123456789abcdef0" {
		t.Fatalf("without faults: %q, %v", body, err)
	}
	addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Reset})
	if _, err := get(t.Context()); !errors.Is(err, syscall.ECONNRESET) {
		t.Errorf("reset: %v", err)
	}
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Truncate})
	if body, err := get(t.Context()); !errors.Is(err, io.ErrUnexpectedEOF) || body != "i-0123456" {
		t.Errorf("truncate: %q, %v", body, err)
	}
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Hang})
	ctx, cancel := context.WithTimeout(t.Context(), 50*time.Millisecond)
	defer cancel()
	if _, err := get(ctx); !errors.Is(err, context.DeadlineExceeded) {
		t.Errorf("hang: %v", err)
	}
	s.ClearFaults()
	addFault(t, s, imds.Fault{Pattern: "**", Effect: imds.Delay, Delay: 30 * time.Millisecond})
	begin := time.Now()
	if _, err := get(t.Context()); err != nil || time.Since(begin) < 30*time.Millisecond {
		t.Errorf("delay: %v after %s", err, time.Since(begin))
	}
	for n, r := range s.Requests()[1:] {
		if r.Remote.Addr() != netip.MustParseAddr("127.0.0.1") || !r.Local.IsValid() {
			t.Errorf("request %d: from %s to %s", n, r.Remote, r.Local)
		}
	}
}

func TestLog(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := newService(t, imds.Options{})
		s.want("mac", 200, mac)
		s.want("nothing", 404, "")
		time.Sleep(time.Second)
		since := time.Now()
		addFault(t, s, imds.Fault{Pattern: "mac", Effect: imds.Status, Status: 503, Count: 1})
		w := s.do(http.MethodGet, latest+"mac", "User-Agent", "test/1", "X-Aws-Ec2-Metadata-Token", s.token)
		if w.Code != 503 {
			t.Fatal(w.Code)
		}
		recent := s.RequestsSince(since)
		want := []imds.Request{{
			Seq: 4, Time: since, Method: "GET", Path: latest + "mac", Key: "mac", Status: 503, Fault: "status 503",
			Remote: netip.MustParseAddrPort("192.0.2.1:1234"), UserAgent: "test/1",
		}}
		if diff := cmp.Diff(want, recent, cmp.Comparer(func(a, b netip.AddrPort) bool { return a == b })); diff != "" {
			t.Error(diff)
		}
		all := imds.Count(s.Requests())
		wantCount := imds.Counters{
			Total: 4, Tokens: 1, Errors: 2, NotFound: 1, ByKey: map[string]int{"token": 1, "mac": 2, "nothing": 1},
		}
		if diff := cmp.Diff(wantCount, all); diff != "" {
			t.Error(diff)
		}
		if got := s.Requests()[1].Token; got != "t1" {
			t.Errorf("token %q, want t1", got)
		}
		s.ResetRequests()
		s.want("mac", 200, mac)
		if r := s.Requests(); len(r) != 1 || r[0].Seq != 5 {
			t.Errorf("after a reset: %+v", r)
		}
	})
}

// TestConcurrent is for the race detector.
func TestConcurrent(t *testing.T) {
	s := newService(t, imds.Options{})
	done := make(chan struct{})
	for range 4 {
		go func() {
			defer func() { done <- struct{}{} }()
			for n := range 200 {
				e := eni()
				e.DeviceNumber = n
				s.PutInterface(e, imds.Propagation{Default: time.Duration(n % 2)})
				if status, body := s.get(macs + mac + "/device-number"); status == 200 {
					if _, err := strconv.Atoi(body); err != nil {
						t.Error(err)
					}
				}
				if n%50 == 0 {
					id, _ := s.AddFault(imds.Fault{Pattern: "x", Effect: imds.Empty})
					s.ClearFault(id)
					s.RequestsSince(time.Now())
					s.RemoveInterface(mac, 0)
				}
			}
		}()
	}
	for range 4 {
		<-done
	}
}
