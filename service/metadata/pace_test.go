package metadata_test

import (
	"context"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"strings"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// D10: a view takes a round trip for the listing and one for all keys, and one more for a token
// at the start, whatever the latency; with no more requests than there are keys. What is only
// looked at takes one.
func TestRoundTrips(t *testing.T) {
	for _, latency := range []time.Duration{2 * time.Millisecond, 200 * time.Millisecond} {
		synctest.Test(t, func(t *testing.T) {
			service := imds.New(imds.Options{})
			service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
			service.PutInterface(secondary(), imds.Propagation{})
			paced := imds.NewPaced(service, 1)
			paced.SetPace(imds.Pace{Latency: latency})
			pipes := imds.NewPipes()
			server := &http.Server{Handler: paced}
			go server.Serve(pipes)
			defer server.Close()
			client := metadata.NewClient(metadata.Options{Dial: pipes.DialContext})
			defer client.CloseIdle()
			paths := []metadata.Path{{Endpoint: "http://pipe"}}
			took := func(what string, trips, requests int, do func() error) {
				t.Helper()
				service.ResetRequests()
				began := time.Now()
				if err := do(); err != nil {
					t.Fatalf("%s: %v", what, err)
				}
				if now := time.Since(began); now != time.Duration(trips)*latency {
					t.Errorf("%s took %v with a latency of %v, want %d round trips", what, now, latency, trips)
				}
				if n := len(service.Requests()); n != requests {
					t.Errorf("%s took %d requests, want %d", what, n, requests)
				}
			}
			took("the instance", 2, 3, func() error { // a token, then both keys
				_, err := client.ReadInstance(t.Context(), paths)
				return err
			})
			var known *metadata.ENI
			view := func(want metadata.Wanted) func() error {
				want.MAC, want.Known = secondaryMAC, known
				return func() error {
					now, err := client.ReadENI(t.Context(), paths, want)
					if known == nil {
						known = now
					}
					return err
				}
			}
			took("a first view", 2, 9, view(metadata.Wanted{}))
			took("a whole view", 2, 5, view(metadata.Wanted{}))
			for turn := 1; turn <= known.Turns(4); turn++ {
				took("a turn", 1, 2, view(metadata.Wanted{Look: metadata.InTurn, Turn: turn, Often: 4}))
			}
			took("a look at the number", 1, 1, view(metadata.Wanted{Look: metadata.AtNumbers, Doubtful: true}))
			took("a look at the number and the listing", 1, 2, view(metadata.Wanted{Look: metadata.AtNumbers, Doubtful: true, Cards: true}))
			took("a look at the addresses", 1, 3, view(metadata.Wanted{Look: metadata.AtAddresses}))
			// Numbers that are in doubt are read again, and nothing else that does not change.
			took("a view of doubtful numbers", 2, 6, view(metadata.Wanted{Doubtful: true}))
		})
	}
}

// D3: of keys that fail at the same time, it is always the same one that counts.
func TestFirstErrorCounts(t *testing.T) {
	service, client, paths := start(t)
	for _, key := range []string{"ipv6s", "interface-id", "ipv6-prefix"} {
		effect := imds.Fault{Pattern: "network/interfaces/macs/*/" + key, Effect: imds.Status, Status: 500}
		if key == "interface-id" {
			effect = imds.Fault{Pattern: effect.Pattern, Effect: imds.Delay, Delay: 50 * time.Millisecond}
		}
		if _, err := service.AddFault(effect); err != nil {
			t.Fatal(err)
		}
	}
	service.Override("network/interfaces/macs/"+secondaryMAC+"/interface-id", "eni-none")
	for range 20 {
		if _, err := read(t, client, paths, nil); err == nil || !strings.Contains(err.Error(), "interface-id") {
			t.Fatalf("the error is %v", err)
		}
	}
}

// D10: an answer whose body waits for the acknowledgement of its headers takes no 40 ms, one
// after the other on one connection.
func TestDelayedAcknowledgement(t *testing.T) {
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
	paced := imds.NewPaced(service, 1)
	paced.SetPace(imds.Pace{Split: true})
	server := httptest.NewUnstartedServer(paced)
	server.Config.ConnContext = imds.ConnContext
	server.Start()
	defer server.Close()
	client := metadata.NewClient(metadata.Options{})
	defer client.CloseIdle()
	path := metadata.Path{Endpoint: server.URL}
	const reads = 50
	var slow int
	for range reads {
		began := time.Now()
		if err := client.Probe(t.Context(), path); err != nil {
			t.Fatal(err)
		}
		if time.Since(began) > 30*time.Millisecond {
			slow++
		}
	}
	if slow > reads/5 { // a busy machine has its share
		t.Errorf("%d of %d reads took over 30 ms", slow, reads)
	}
}

// D10: connections of one view serve the next: none is dialled anew for each. The service takes
// its time, so that every view has as many requests under way at once as it can.
func TestConnectionsAreKept(t *testing.T) {
	service := imds.New(imds.Options{})
	service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
	service.PutInterface(secondary(), imds.Propagation{})
	paced := imds.NewPaced(service, 1)
	paced.SetPace(imds.Pace{Latency: 50 * time.Millisecond})
	server := httptest.NewUnstartedServer(paced)
	server.Config.ConnContext = imds.ConnContext
	server.Start()
	defer server.Close()
	var dialled atomic.Int32
	client := metadata.NewClient(metadata.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		dialled.Add(1)
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	defer client.CloseIdle()
	paths := []metadata.Path{{Endpoint: server.URL}}
	known, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	first := dialled.Load()
	const views = 10
	for range views {
		if _, err := read(t, client, paths, known); err != nil {
			t.Fatal(err)
		}
	}
	// One of a later view may be dialled because its requests came closer together than the first
	// one's did; never as many as there are views.
	more := dialled.Load() - first
	t.Logf("%d connections for the first view, %d more for %d others", first, more, views)
	if first > 8 || more >= views/2 {
		t.Errorf("%d connections for the first view, %d more for %d others", first, more, views)
	}
}

// D2, J1: a path whose packets go nowhere, as one over an ENI that is only coming up, costs
// less than TCP takes to send them again where another path is left; the last one gets that time.
func TestSilentPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := imds.New(imds.Options{})
		service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
		service.PutInterface(secondary(), imds.Propagation{})
		pipes := imds.NewPipes()
		server := &http.Server{Handler: service}
		go server.Serve(pipes)
		defer server.Close()
		var slow time.Duration
		dial := func(ctx context.Context, network, address string) (net.Conn, error) {
			if metadata.DialedPath(ctx).Device == "ens6" {
				<-ctx.Done()
				return nil, ctx.Err()
			}
			select {
			case <-time.After(slow):
			case <-ctx.Done():
				return nil, ctx.Err()
			}
			return pipes.DialContext(ctx, network, address)
		}
		silent, answering := metadata.Path{Endpoint: "http://pipe", Device: "ens6"}, metadata.Path{Endpoint: "http://pipe", Device: "ens5"}
		for _, c := range []struct {
			paths []metadata.Path
			took  time.Duration
			fails bool
		}{
			{[]metadata.Path{silent, answering}, 250 * time.Millisecond, false},
			{[]metadata.Path{silent}, time.Second, true},
		} {
			client := metadata.NewClient(metadata.Options{Dial: dial})
			defer client.CloseIdle()
			if _, err := client.ReadInstance(t.Context(), []metadata.Path{answering}); err != nil { // for the token
				t.Fatal(err)
			}
			began := time.Now()
			_, err := client.ReadInstance(t.Context(), c.paths)
			if took := time.Since(began); took != c.took || (err != nil) != c.fails {
				t.Errorf("over %v: %v after %s, want %s", c.paths, err, took, c.took)
			}
			// What has never answered is no reason to leave the one that does, and one that has is a
			// reason although it was left itself just now.
			slow = 900 * time.Millisecond
			client.CloseIdle()
			began = time.Now()
			_, err = client.ReadInstance(t.Context(), []metadata.Path{answering, silent})
			if took := time.Since(began); took != slow || err != nil {
				t.Errorf("over a slow path and one that was silent: %v after %s, want %s", err, took, slow)
			}
			_, err = client.ReadInstance(t.Context(), []metadata.Path{{Endpoint: "http://pipe", Device: "ens7"}})
			if err != nil {
				t.Fatal(err)
			}
			client.CloseIdle()
			began = time.Now()
			_, err = client.ReadInstance(t.Context(), []metadata.Path{answering, {Endpoint: "http://pipe", Device: "ens7"}})
			if took := time.Since(began); took != slow+250*time.Millisecond || err != nil {
				t.Errorf("over two slow paths: %v after %s", err, took)
			}
			client.CloseIdle()
			began = time.Now()
			_, err = client.ReadInstance(t.Context(), []metadata.Path{silent, answering})
			if took := time.Since(began); took > slow+250*time.Millisecond || err != nil {
				t.Errorf("over a silent path and one that was left: %v after %s", err, took)
			}
			slow = 0
		}
	})
}

// D2, J1: a connection that falls silent, as over an ENI that goes, costs half a second where another
// path is left; but not where the service itself takes that long.
func TestStalledPath(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		service := imds.New(imds.Options{})
		service.SetInstance(imds.Instance{ID: "i-0123456789abcdef0", MAC: primaryMAC})
		paced := imds.NewPaced(service, 1)
		pipes := imds.NewPipes()
		server := &http.Server{Handler: paced}
		go server.Serve(pipes)
		defer server.Close()
		stalls := true
		client := metadata.NewClient(metadata.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
			if stalls && metadata.DialedPath(ctx).Device == "ens6" {
				mine, silent := net.Pipe()
				go io.Copy(io.Discard, silent)
				return mine, nil
			}
			return pipes.DialContext(ctx, network, address)
		}})
		defer client.CloseIdle()
		stalling, answering := metadata.Path{Endpoint: "http://pipe", Device: "ens6"}, metadata.Path{Endpoint: "http://pipe", Device: "ens5"}
		both := []metadata.Path{stalling, answering}
		read := func(what string, paths []metadata.Path, want time.Duration, fails bool) {
			t.Helper()
			began := time.Now()
			_, err := client.ReadInstance(t.Context(), paths)
			if took := time.Since(began); took != want || (err != nil) != fails {
				t.Errorf("%s: %v after %s, want %s", what, err, took, want)
			}
		}
		read("the first", []metadata.Path{answering}, 0, false)
		read("a path that stalls", both, 500*time.Millisecond, false)
		read("again", both, 0, false)
		read("a path that stalls, alone", []metadata.Path{stalling}, 2*time.Second, true)

		stalls = false
		time.Sleep(10 * time.Minute) // nothing is known of the paths any more
		third := metadata.Path{Endpoint: "http://pipe", Device: "ens7"}
		all := []metadata.Path{stalling, answering, third}
		for range 2 {
			for _, path := range all {
				read("each path", []metadata.Path{path}, 0, false)
			}
			time.Sleep(3 * time.Minute)
		}
		// The paths are known yet, and the token of the first read is to be renewed.
		paced.SetPace(imds.Pace{Latency: 400 * time.Millisecond})
		read("a token and a key, neither of which is late", all, 800*time.Millisecond, false)
		read("again, over the same path", all, 400*time.Millisecond, false)
		paced.SetPace(imds.Pace{Latency: 1200 * time.Millisecond})
		read("a slow service: one path is left", all, 1700*time.Millisecond, false)
		read("it is known to be slow", all, 1200*time.Millisecond, false)
		read("over each path", []metadata.Path{third, stalling, answering}, 1200*time.Millisecond, false)
	})
}
