package metadata_test

import (
	"context"
	"errors"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/google/go-cmp/cmp/cmpopts"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

const (
	primaryMAC   = "02:00:00:00:01:10"
	secondaryMAC = "02:00:00:00:01:20"
)

// ignoreNil compares netip values by their own equality and takes nil for empty.
var same = []cmp.Option{
	cmp.Comparer(func(a, b netip.Addr) bool { return a == b }),
	cmp.Comparer(func(a, b netip.Prefix) bool { return a == b }),
	cmpopts.EquateEmpty(),
}

func secondary() imds.Interface {
	return imds.Interface{
		MAC: secondaryMAC, ID: "eni-0123456789abcdef1", DeviceNumber: 1,
		IPv4:         []netip.Addr{netip.MustParseAddr("10.0.1.20"), netip.MustParseAddr("10.0.1.9")},
		IPv6:         []netip.Addr{netip.MustParseAddr("2001:db8:1::20")},
		IPv4Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.240/28")},
		IPv6Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1:0:1::/80")},
		SubnetID:     "subnet-0123456789abcdef0",
		SubnetIPv4:   netip.MustParsePrefix("10.0.1.0/24"),
		SubnetIPv6:   []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
	}
}

func wanted() metadata.ENI {
	return metadata.ENI{
		MAC: secondaryMAC, ID: "eni-0123456789abcdef1", DeviceIndex: 1,
		IPv4:         []netip.Addr{netip.MustParseAddr("10.0.1.20"), netip.MustParseAddr("10.0.1.9")},
		IPv6:         []netip.Addr{netip.MustParseAddr("2001:db8:1::20")},
		IPv4Prefixes: []netip.Prefix{netip.MustParsePrefix("10.0.1.240/28")},
		IPv6Prefixes: []netip.Prefix{netip.MustParsePrefix("2001:db8:1:0:1::/80")},
		IPv4Subnets:  []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")},
		IPv6Subnets:  []netip.Prefix{netip.MustParsePrefix("2001:db8:1::/64")},
	}
}

func start(t *testing.T) (*imds.Server, *metadata.Client, []metadata.Path) {
	t.Helper()
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
	service.PutInterface(secondary(), imds.Propagation{})
	server := httptest.NewServer(service)
	t.Cleanup(server.Close)
	client := metadata.NewClient(metadata.Options{UserAgent: "ec2netd/test", Timeout: time.Second})
	t.Cleanup(client.CloseIdle)
	return service, client, []metadata.Path{{Endpoint: server.URL}}
}

func read(t *testing.T, client *metadata.Client, paths []metadata.Path, known *metadata.ENI) (*metadata.ENI, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
	defer cancel()
	return client.ReadENI(ctx, paths, metadata.Wanted{MAC: secondaryMAC, Known: known})
}

func TestReadENI(t *testing.T) {
	_, client, paths := start(t)
	eni, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted(), *eni, same...); diff != "" {
		t.Error(diff)
	}
	instance, err := client.ReadInstance(t.Context(), paths)
	if err != nil {
		t.Fatal(err)
	}
	if want := (metadata.Instance{ID: "i-0123456789abcdef0", PrimaryMAC: primaryMAC}); instance != want {
		t.Errorf("got %+v, want %+v", instance, want)
	}
	if got := client.Answered(); got != paths[0].Endpoint {
		t.Errorf("answered: %q", got)
	}
}

// D1: IMDSv2, one token for its life and renewed when it is refused, an identifying
// User-Agent, and no proxy whatever the environment says.
func TestTokenAndUserAgent(t *testing.T) {
	t.Setenv("HTTP_PROXY", "http://127.0.0.1:1")
	t.Setenv("http_proxy", "http://127.0.0.1:1")
	t.Setenv("AWS_EC2_METADATA_DISABLED", "true")
	service, client, paths := start(t)
	for range 3 {
		if _, err := read(t, client, paths, nil); err != nil {
			t.Fatal(err)
		}
	}
	counts := imds.Count(service.Requests())
	if counts.Tokens != 1 || counts.Errors != 0 {
		t.Errorf("%d requests for a token and %d errors, want 1 and 0", counts.Tokens, counts.Errors)
	}
	for _, request := range service.Requests() {
		if !strings.HasPrefix(request.UserAgent, "ec2netd/test") {
			t.Errorf("%s has User-Agent %q", request.Path, request.UserAgent)
		}
	}
	service.RevokeTokens()
	if _, err := read(t, client, paths, nil); err != nil {
		t.Errorf("the token was not renewed: %v", err)
	}
}

// D1: a token that is of no use is not kept, whatever is wrong with it; and it is not
// shown to the service if it cannot be one.
func TestBadTokens(t *testing.T) {
	for name, fault := range imds.Failures() {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, client, paths := start(t)
			fault.Pattern = imds.TokenKey
			if _, err := service.AddFault(fault); err != nil {
				t.Fatal(err)
			}
			for range 2 {
				if _, err := read(t, client, paths, nil); err == nil || !strings.Contains(err.Error(), "token") {
					t.Errorf("the error is %v", err)
				}
			}
			service.ClearFaults()
			if _, err := read(t, client, paths, nil); err != nil {
				t.Errorf("after the fault: %v", err)
			}
			for _, request := range service.Requests() {
				if request.Key != imds.TokenKey && request.Status != 200 && fault.Effect != imds.Family {
					t.Errorf("%s was asked for with a token that is none: %d", request.Key, request.Status)
				}
			}
		})
	}
}

// D6: readers that wait for a token keep their own deadline.
func TestTokenHangs(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := imds.New(imds.Options{})
		service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
		if _, err := service.AddFault(imds.Fault{Pattern: imds.TokenKey, Effect: imds.Hang}); err != nil {
			t.Fatal(err)
		}
		pipes := imds.NewPipes()
		server := &http.Server{Handler: service}
		go server.Serve(pipes)
		defer server.Close()
		client := metadata.NewClient(metadata.Options{Dial: pipes.DialContext})
		defer client.CloseIdle()
		var readers sync.WaitGroup
		for range 8 {
			readers.Go(func() {
				began := time.Now()
				_, err := client.ReadInstance(t.Context(), []metadata.Path{{Endpoint: "http://pipe"}})
				if took := time.Since(began); metadata.KindOf(err) != metadata.Timeout || !strings.Contains(err.Error(), "token") || took > 2*time.Second {
					t.Errorf("%v after %v", err, took)
				}
			})
		}
		readers.Wait()
		service.ClearFaults()
		if _, err := client.ReadInstance(t.Context(), []metadata.Path{{Endpoint: "http://pipe"}}); err != nil {
			t.Error(err)
		}
	})
}

// D5, D8: no key is probed in vain, and what does not change is read once.
func TestRequests(t *testing.T) {
	service, client, paths := start(t)
	bare := secondary()
	bare.IPv4Prefixes, bare.IPv6Prefixes = nil, nil
	service.PutInterface(bare, imds.Propagation{})
	eni, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	counts := imds.Count(service.Requests())
	if counts.NotFound != 0 {
		t.Errorf("%d keys were probed in vain: %v", counts.NotFound, counts.ByKey)
	}
	// The token, the listing, and six keys.
	if counts.Total != 8 {
		t.Errorf("%d requests for a first view, want 8: %v", counts.Total, counts.ByKey)
	}
	service.ResetRequests()
	if _, err := read(t, client, paths, eni); err != nil {
		t.Fatal(err)
	}
	if counts := imds.Count(service.Requests()); counts.Total != 3 {
		t.Errorf("%d requests for a next view, want 3: %v", counts.Total, counts.ByKey)
	}
}

// D3: failures are told apart.
func TestKinds(t *testing.T) {
	const key = "network/interfaces/macs/" + secondaryMAC + "/local-ipv4s"
	for _, test := range []struct {
		name  string
		fault imds.Fault
		kind  metadata.Kind
	}{
		{"401", imds.Fault{Pattern: key, Effect: imds.Status, Status: 401}, metadata.Denied},
		{"403", imds.Fault{Pattern: key, Effect: imds.Status, Status: 403}, metadata.Denied},
		{"429", imds.Fault{Pattern: key, Effect: imds.Status, Status: 429}, metadata.Throttled},
		{"500", imds.Fault{Pattern: key, Effect: imds.Status, Status: 500}, metadata.ServerError},
		{"503", imds.Fault{Pattern: key, Effect: imds.Status, Status: 503}, metadata.ServerError},
		{"hang", imds.Fault{Pattern: key, Effect: imds.Hang}, metadata.Timeout},
		{"reset", imds.Fault{Pattern: key, Effect: imds.Reset}, metadata.Reset},
		{"truncated", imds.Fault{Pattern: key, Effect: imds.Truncate}, metadata.Reset},
		{"empty", imds.Fault{Pattern: key, Effect: imds.Empty}, metadata.Malformed},
		{"page", imds.Fault{Pattern: key, Effect: imds.HTML}, metadata.Malformed},
		{"huge", imds.Fault{Pattern: key, Effect: imds.Body, Body: strings.Repeat("10.0.1.20\n", 1<<17)}, metadata.Malformed},
		{"token 401", imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 401}, metadata.Denied},
		{"token 403", imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403}, metadata.Disabled},
		{"token 500", imds.Fault{Pattern: imds.TokenKey, Effect: imds.Status, Status: 500}, metadata.ServerError},
		{"token hang", imds.Fault{Pattern: imds.TokenKey, Effect: imds.Hang}, metadata.Timeout},
		{"token reset", imds.Fault{Pattern: imds.TokenKey, Effect: imds.Reset}, metadata.Reset},
	} {
		t.Run(test.name, func(t *testing.T) {
			t.Parallel()
			service, client, paths := start(t)
			if _, err := service.AddFault(test.fault); err != nil {
				t.Fatal(err)
			}
			eni, err := read(t, client, paths, nil)
			var typed *metadata.Error
			if !errors.As(err, &typed) || typed.Kind != test.kind {
				t.Fatalf("got %+v and %v (%v), want kind %s", eni, err, metadata.KindOf(err), test.kind)
			}
			if strings.HasPrefix(test.name, "token") != (typed.Key == "token") || !strings.HasSuffix(typed.Key, "local-ipv4s") && typed.Key != "token" {
				t.Errorf("the error names the key %q: %v", typed.Key, err)
			}
			// What failed once works again when the fault is gone.
			service.ClearFaults()
			if _, err := read(t, client, paths, nil); err != nil {
				t.Errorf("after the fault: %v", err)
			}
		})
	}
}

// D4: malformed values are refused whole, with the key named.
func TestMalformedValues(t *testing.T) {
	malformed := map[string][]string{
		"local-ipv4s":             {"10.0.1.20\n10.0.1.256", "2001:db8::1", "10.0.1.20\n[Match]\nName=*", "10.0.1.20 ", "10.0.1.20\r", "127.0.0.1", "169.254.1.1", "0.0.0.0", "10.0.1.20\n10.0.1.20"},
		"ipv6s":                   {"10.0.1.20", "2001:db8::1%eth0", "::ffff:10.0.1.20", "fe80::1", "::", "ff02::1"},
		"ipv4-prefix":             {"10.0.1.240", "10.0.1.241/28", "0.0.0.0/0", "2001:db8::/80"},
		"ipv6-prefix":             {"2001:db8::1/80", "10.0.1.0/28", "::/0"},
		"subnet-ipv4-cidr-block":  {"10.0.1.0/33", "0.0.0.0/0"},
		"subnet-ipv6-cidr-blocks": {"::/0", "2001:db8::1/64"},
		"device-number":           {"-1", "one", "1\n2", "4294967297", "01", "+1"},
		"network-card":            {"100", "x"},
		"interface-id":            {"eni-../../etc", "eni-0123\n[Match]", "i-0123456789abcdef1", "eni-0123456789ABCDEF1"},
	}
	for _, key := range metadata.KeyNames() {
		values := malformed[key]
		if len(values) == 0 {
			t.Errorf("no value of %s is tried", key)
		}
		for _, value := range values {
			t.Run(key+"="+value, func(t *testing.T) {
				service, client, paths := start(t)
				full := "network/interfaces/macs/" + secondaryMAC + "/" + key
				service.Override(full, value)
				eni, err := read(t, client, paths, nil)
				var typed *metadata.Error
				if !errors.As(err, &typed) || typed.Kind != metadata.Malformed || typed.Key != full {
					t.Errorf("got %+v and %v, want a malformed %s", eni, err, full)
				}
			})
		}
	}
}

// D5: a view is complete or none.
func TestIncomplete(t *testing.T) {
	service, client, paths := start(t)
	service.RemoveInterface(secondaryMAC, 0)
	var incomplete *metadata.IncompleteError
	if _, err := read(t, client, paths, nil); !errors.As(err, &incomplete) || len(incomplete.Missing) != 0 {
		t.Errorf("an ENI that is not listed: %v", err)
	}
	held := imds.Propagation{Keys: map[string]time.Duration{"local-ipv4s": imds.Held, "interface-id": imds.Held}}
	service.PutInterface(secondary(), held)
	if _, err := read(t, client, paths, nil); !errors.As(err, &incomplete) ||
		!cmp.Equal(incomplete.Missing, []string{"interface-id", "local-ipv4s"}) {
		t.Errorf("keys that have not appeared: %v", err)
	}
	service.Reveal(secondaryMAC)
	if _, err := read(t, client, paths, nil); err != nil {
		t.Errorf("all keys there: %v", err)
	}
	// Listed a moment ago, and gone.
	if _, err := service.AddFault(imds.Fault{Pattern: "network/interfaces/macs/*/ipv6s", Effect: imds.Status, Status: 404}); err != nil {
		t.Fatal(err)
	}
	if eni, err := read(t, client, paths, nil); !errors.As(err, &incomplete) {
		t.Errorf("a key that vanishes during the read: %+v, %v", eni, err)
	}
}

// A7: families follow from the keys: an IPv6-only ENI has no IPv4 key.
func TestIPv6Only(t *testing.T) {
	service, client, paths := start(t)
	only := secondary()
	only.IPv4, only.IPv4Prefixes, only.SubnetIPv4 = nil, nil, netip.Prefix{}
	service.PutInterface(only, imds.Propagation{})
	eni, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(eni.IPv4) != 0 || len(eni.IPv6) != 1 {
		t.Errorf("got %+v", eni)
	}
}

// B4: the numbers of a secondary ENI are read again as long as they say 0.
func TestNumbersUntilTheySaySomething(t *testing.T) {
	service, client, paths := start(t)
	service.RemoveInterface(secondaryMAC, 0)
	service.PutInterface(secondary(), imds.Propagation{Keys: map[string]time.Duration{"device-number": imds.Held}})
	eni, err := read(t, client, paths, nil)
	if err != nil || eni.DeviceIndex != 0 {
		t.Fatalf("got %+v, %v", eni, err)
	}
	service.Reveal(secondaryMAC)
	if eni, err = read(t, client, paths, eni); err != nil || eni.DeviceIndex != 1 {
		t.Errorf("got %+v, %v", eni, err)
	}
}

// D8, B4: device index 0 on another card than the first is a number like others, so that
// such an ENI costs no more than two requests a turn; only it may still change.
func TestIndexZeroOnOtherCard(t *testing.T) {
	service, client, paths := start(t)
	card, spec := 1, secondary()
	spec.DeviceNumber, spec.NetworkCard = 0, &card
	service.PutInterface(spec, imds.Propagation{})
	known, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	round := func() (changed *metadata.ENI) {
		t.Helper()
		for turn := 1; turn <= known.Turns(4); turn++ {
			before, _ := client.Requests()
			now, err := client.ReadENI(t.Context(), paths, metadata.Wanted{MAC: secondaryMAC, Known: known, Look: metadata.InTurn, Turn: turn, Often: 4})
			if err != nil {
				t.Fatal(err)
			}
			if !now.Equal(known) {
				return now
			}
			if after, _ := client.Requests(); after-before > 2 {
				t.Errorf("%d requests in turn %d", after-before, turn)
			}
		}
		return nil
	}
	if changed := round(); changed != nil {
		t.Errorf("%+v", changed)
	}
	spec.DeviceNumber = 2
	service.PutInterface(spec, imds.Propagation{})
	if changed := round(); changed == nil || changed.DeviceIndex != 2 {
		t.Errorf("%+v", changed)
	}
}

// A subnet is given another IPv6 block: whatever is first of that one has it read.
func TestAnotherIPv6Block(t *testing.T) {
	service, client, paths := start(t)
	known, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	another := netip.MustParsePrefix("2001:db8:2::/64")
	for what, change := range map[string]func(*imds.Interface){
		"address": func(i *imds.Interface) { i.IPv6 = append(i.IPv6, netip.MustParseAddr("2001:db8:2::20")) },
		"prefix": func(i *imds.Interface) {
			i.IPv6Prefixes = append(i.IPv6Prefixes, netip.MustParsePrefix("2001:db8:2:0:1::/80"))
		},
	} {
		spec := secondary()
		spec.SubnetIPv6 = append(spec.SubnetIPv6, another)
		change(&spec)
		service.PutInterface(spec, imds.Propagation{})
		if now, err := read(t, client, paths, known); err != nil || !slices.Contains(now.IPv6Subnets, another) {
			t.Errorf("%s: %+v, %v", what, now, err)
		}
	}
}

// D2: the next path is tried where one gives no answer, and a path that works is
// kept for the view.
func TestPaths(t *testing.T) {
	service, client, paths := start(t)
	dead := metadata.Path{Endpoint: "http://127.0.0.1:1"}
	if _, err := read(t, client, append([]metadata.Path{dead}, paths...), nil); err != nil {
		t.Fatal(err)
	}
	if sent, failed := client.Requests(); failed != 1 {
		t.Errorf("%d of %d requests failed, want 1", failed, sent)
	}
	if _, err := read(t, client, []metadata.Path{dead}, nil); metadata.KindOf(err) != metadata.Unreachable {
		t.Errorf("a dead path alone: %v", err)
	}
	counts, took := client.Results()
	if sent, _ := client.Requests(); counts["unreachable"] != 2 || counts["ok"] == 0 || took <= 0 ||
		counts["ok"]+counts["not-found"]+counts["unreachable"] != sent {
		t.Errorf("of %d requests in %v: %v", sent, took, counts)
	}
	if _, err := read(t, client, nil, nil); metadata.KindOf(err) != metadata.Unreachable {
		t.Errorf("no path: %v", err)
	}
	_ = service
}

func TestEqual(t *testing.T) {
	a, b := wanted(), wanted()
	a.IPv4 = append(a.IPv4, netip.MustParseAddr("10.0.1.7"))
	b.IPv4 = []netip.Addr{b.IPv4[0], netip.MustParseAddr("10.0.1.7"), b.IPv4[1]}
	if !a.Equal(&b) {
		t.Error("the order of secondary addresses matters") // A2
	}
	b.IPv4[0], b.IPv4[1] = b.IPv4[1], b.IPv4[0]
	if a.Equal(&b) {
		t.Error("another primary address does not matter")
	}
	// A11
	a, b = wanted(), wanted()
	a.IPv6 = []netip.Addr{netip.MustParseAddr("2001:db8:1::1"), netip.MustParseAddr("2001:db8:1::2"), netip.MustParseAddr("2001:db8:1::3")}
	b.IPv6 = []netip.Addr{a.IPv6[0], a.IPv6[2], a.IPv6[1]}
	if !a.Equal(&b) {
		t.Error("the order of further IPv6 addresses matters")
	}
	b.IPv6 = []netip.Addr{a.IPv6[1], a.IPv6[0], a.IPv6[2]}
	if a.Equal(&b) {
		t.Error("another first IPv6 address does not matter")
	}
}

// D1: a token is everybody's as soon as it is there, also while the key hangs for which it
// was fetched.
func TestTokenWhileKeyHangs(t *testing.T) {
	service, _, paths := start(t)
	client := metadata.NewClient(metadata.Options{Timeout: time.Minute})
	defer client.CloseIdle()
	for _, fault := range []imds.Fault{
		{Pattern: "network/interfaces/macs/**", Effect: imds.Hang},
		{Pattern: imds.TokenKey, Effect: imds.Delay, Delay: time.Second},
	} {
		if _, err := service.AddFault(fault); err != nil {
			t.Fatal(err)
		}
	}
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		_, _ = client.ReadENI(ctx, paths, metadata.Wanted{MAC: secondaryMAC})
	}()
	// The other comes while the token is under way, and waits for it too.
	time.Sleep(100 * time.Millisecond)
	other, end := context.WithTimeout(t.Context(), 10*time.Second)
	defer end()
	if _, err := client.ReadInstance(other, paths); err != nil {
		t.Error(err)
	}
	select {
	case <-done:
		t.Error("the key did not hang")
	default:
	}
	cancel()
	<-done
}
