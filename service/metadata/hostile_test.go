package metadata_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"errors"
	"io"
	"net"
	"net/http"
	"path/filepath"
	"runtime"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// rawService is a metadata service that says what HTTP libraries do not let anybody say. It
// gives a token to whoever asks, and leaves the keys to the test.
type rawService struct {
	net.Listener
	path metadata.Path

	mu     sync.Mutex
	answer func(w io.Writer, request *http.Request)
	conns  int
	asked  []string
}

const (
	rawToken = "HTTP/1.1 200 OK\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 300\r\nContent-Length: 5\r\n\r\ntoken"
	rawMAC   = "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + primaryMAC
)

// startRaw starts one whose answers are those of the function.
func startRaw(t *testing.T, answer func(w io.Writer, request *http.Request)) (*rawService, *metadata.Client) {
	t.Helper()
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	s := &rawService{Listener: listener, path: metadata.Path{Endpoint: "http://" + listener.Addr().String()}, answer: answer}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			s.mu.Lock()
			s.conns++
			s.mu.Unlock()
			served.Go(func() { s.serve(conn) })
		}
	})
	client := metadata.NewClient(metadata.Options{Timeout: time.Second})
	t.Cleanup(func() {
		client.CloseIdle()
		listener.Close()
		served.Wait()
	})
	return s, client
}

// errHangUp ends a connection: an answer panics with it.
var errHangUp = errors.New("hang up")

func (s *rawService) serve(conn net.Conn) {
	defer conn.Close()
	defer func() {
		if v := recover(); v != nil && v != errHangUp { //nolint:errorlint // it is that very value
			panic(v)
		}
	}()
	reader := bufio.NewReader(conn)
	for {
		request, err := http.ReadRequest(reader)
		if err != nil {
			return
		}
		s.mu.Lock()
		answer := s.answer
		s.asked = append(s.asked, request.Method+" "+request.URL.Path)
		s.mu.Unlock()
		answer(conn, request)
	}
}

func (s *rawService) set(answer func(w io.Writer, request *http.Request)) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.answer = answer
}

func (s *rawService) counts() (conns, asked int) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.conns, len(s.asked)
}

// says answers each key with a text, and the request for a token with one.
func says(text string) func(io.Writer, *http.Request) {
	return func(w io.Writer, request *http.Request) {
		if request.Method == http.MethodPut {
			_, _ = io.WriteString(w, rawToken) // the client may have gone
			return
		}
		_, _ = io.WriteString(w, text) // the client may have gone
	}
}

// endless begins the answer to a token or to a key and goes on until the client has gone.
func endless(head, part string, token bool) func(io.Writer, *http.Request) {
	// Made once: what the service costs would count with what the client costs.
	first, more := []byte(head), []byte(part)
	return func(w io.Writer, request *http.Request) {
		if (request.Method == http.MethodPut) != token {
			says(rawMAC)(w, request)
			return
		}
		_, err := w.Write(first)
		for err == nil {
			_, err = w.Write(more)
		}
		panic(errHangUp)
	}
}

// D3, D13: whatever the bytes of an answer are, the read ends with a typed error in bounded time
// and is right again when the service is.
func TestRawAnswers(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, test := range map[string]struct {
		answer string
		kind   metadata.Kind
	}{
		"no HTTP":                 {"SSH-2.0-OpenSSH_9.2\r\n\r\n", metadata.Malformed},
		"long line without HTTP":  {strings.Repeat("x", 100_000) + "\r\n\r\n", metadata.Malformed},
		"bad status":              {"HTTP/1.1 banana OK\r\n\r\n", metadata.Malformed},
		"bad header":              {ok + "no colon\r\n\r\n", metadata.Malformed},
		"two lengths":             {ok + "Content-Length: 17\r\nContent-Length: 5\r\n\r\n" + primaryMAC, metadata.Malformed},
		"negative length":         {ok + "Content-Length: -1\r\n\r\n" + primaryMAC, metadata.Malformed},
		"short of its length":     {ok + "Content-Length: 18\r\nConnection: close\r\n\r\n" + primaryMAC, metadata.Reset},
		"longer than its length":  {ok + "Content-Length: 5\r\n\r\n" + primaryMAC, metadata.Malformed},
		"incredible length":       {ok + "Content-Length: 9000000000000\r\n\r\n" + primaryMAC, metadata.Malformed},
		"length beyond numbers":   {ok + "Content-Length: 99999999999999999999\r\n\r\n" + primaryMAC, metadata.Malformed},
		"unknown encoding":        {ok + "Transfer-Encoding: gzip\r\n\r\n" + primaryMAC, metadata.Malformed},
		"bad chunk":               {ok + "Transfer-Encoding: chunked\r\n\r\nxyz\r\n" + primaryMAC, metadata.Malformed},
		"chunk that does not end": {ok + "Transfer-Encoding: chunked\r\n\r\nffffffff\r\n" + strings.Repeat("x", 1<<20), metadata.Malformed},
		"gzip":                    {ok + "Content-Encoding: gzip\r\nContent-Length: 4\r\n\r\n\x1f\x8b\x08\x00", metadata.Malformed},
		"many headers":            {ok + strings.Repeat("a:b\r\n", 20_000) + "\r\n", metadata.Malformed},
		"204":                     {"HTTP/1.1 204 No Content\r\n\r\n", metadata.ServerError},
		"206":                     {"HTTP/1.1 206 Partial Content\r\nContent-Length: 17\r\n\r\n" + primaryMAC, metadata.ServerError},
		"302":                     {"HTTP/1.1 302 Found\r\nLocation: http://192.0.2.1/\r\nContent-Length: 0\r\n\r\n", metadata.ServerError},
		"304":                     {"HTTP/1.1 304 Not Modified\r\n\r\n", metadata.ServerError},
		"101":                     {"HTTP/1.1 101 Switching Protocols\r\nConnection: Upgrade\r\nUpgrade: x\r\n\r\n", metadata.ServerError},
		"five interim answers":    {strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 5) + rawMAC, metadata.Malformed},
		"status 999":              {"HTTP/1.1 999 What\r\nContent-Length: 0\r\n\r\n", metadata.ServerError},
		"page of 5 MiB":           {"HTTP/1.1 503 No\r\nContent-Length: 5242880\r\n\r\n" + strings.Repeat("x", 5<<20), metadata.ServerError},
		"page that does not come": {"HTTP/1.1 404 Not Found\r\nContent-Length: 500\r\n\r\n", metadata.NotFound},
		"ended headers":           {ok + "Content-Length: 17\r\nX: \x00END", metadata.Reset},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, client := startRaw(t, func(w io.Writer, request *http.Request) {
				says(test.answer)(w, request)
				if request.Method == http.MethodGet && test.kind == metadata.Reset {
					panic(errHangUp)
				}
			})
			began := time.Now()
			instance, err := client.ReadInstance(t.Context(), []metadata.Path{service.path})
			var typed *metadata.Error
			if !errors.As(err, &typed) || typed.Kind != test.kind || typed.Key != "mac" {
				t.Fatalf("got %+v and %v (%v), want kind %s of the key mac", instance, err, metadata.KindOf(err), test.kind)
			}
			if took := time.Since(began); took > 5*time.Second {
				t.Errorf("it took %v", took)
			}
			if len(err.Error()) > 500 || strings.ContainsAny(err.Error(), "\n\r\x00") {
				t.Errorf("the error is %.600q", err.Error())
			}
			// The rest of that answer is not taken for the next one.
			service.set(says(rawMAC))
			if err := client.Probe(t.Context(), service.path); err != nil {
				t.Errorf("afterwards: %v", err)
			}
		})
	}
}

// D3: what is unusual and right is read.
func TestRawAnswersThatAreRight(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for name, answer := range map[string]string{
		"plain":               rawMAC,
		"chunks":              ok + "Transfer-Encoding: chunked\r\n\r\n8\r\n" + primaryMAC[:8] + "\r\n9;a=b\r\n" + primaryMAC[8:] + "\r\n0\r\nX-Trailer: y\r\n\r\n",
		"interim answers":     "HTTP/1.1 100 Continue\r\n\r\nHTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n" + rawMAC,
		"until the end":       "HTTP/1.0 200 OK\r\n\r\n" + primaryMAC,
		"same length twice":   ok + "Content-Length: 17\r\nContent-Length: 17\r\n\r\n" + primaryMAC,
		"newlines alone":      "HTTP/1.1 200 OK\nContent-Length: 17\n\n" + primaryMAC,
		"many ordinary lines": ok + strings.Repeat("X-A: b\r\n", 50) + "Content-Length: 17\r\n\r\n" + primaryMAC,
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, client := startRaw(t, func(w io.Writer, request *http.Request) {
				says(answer)(w, request)
				if request.Method == http.MethodGet && strings.HasPrefix(answer, "HTTP/1.0") {
					panic(errHangUp)
				}
			})
			for range 2 {
				if err := client.Probe(t.Context(), service.path); err != nil {
					t.Error(err)
				}
			}
		})
	}
}

// D13: an answer costs no more than it may have, however much is sent, and the connection is closed
// rather than read to its end.
func TestAnswerMemory(t *testing.T) {
	const ok = "HTTP/1.1 200 OK\r\n"
	lines := strings.Repeat("10.0.1.20\n", 6554) // 64 KiB
	const huge = "Content-Length: 209715200\r\n\r\n"
	ttl := "X-Aws-Ec2-Metadata-Token-Ttl-Seconds: 300\r\n"
	for _, test := range []struct {
		name, head, part string
		token            bool
		kind             metadata.Kind
		most             uint64
	}{
		{"value", ok + huge, lines, false, metadata.Malformed, 256 << 10},
		{"value until the end", ok + "\r\n", lines, false, metadata.Malformed, 2 << 20},
		{"value in chunks", ok + "Transfer-Encoding: chunked\r\n\r\n", "10000\r\n" + strings.Repeat("x", 1<<16) + "\r\n", false, metadata.Malformed, 2 << 20},
		{"chunks of a byte", ok + "Transfer-Encoding: chunked\r\n\r\n", strings.Repeat("1\r\nx\r\n", 10_000), false, metadata.Malformed, 2 << 20},
		{"extension of a chunk", ok + "Transfer-Encoding: chunked\r\n\r\n1;", lines, false, metadata.Malformed, 256 << 10},
		{"trailers", ok + "Transfer-Encoding: chunked\r\n\r\n1\r\nx\r\n0\r\n", "X-A: b\r\n", false, metadata.Malformed, 256 << 10},
		{"token", ok + ttl + huge, lines, true, metadata.Malformed, 256 << 10},
		{"token until the end", ok + ttl + "\r\n", lines, true, metadata.Malformed, 256 << 10},
		{"page of an error", "HTTP/1.1 500 No\r\n" + huge, lines, false, metadata.ServerError, 256 << 10},
		{"page of a token's error", "HTTP/1.1 500 No\r\n\r\n", lines, true, metadata.ServerError, 256 << 10},
		{"header", ok + "X-A: ", strings.Repeat("x", 1<<16), false, metadata.Malformed, 512 << 10},
		{"headers", ok, strings.Repeat("X-A: b\r\n", 1<<13), false, metadata.Malformed, 512 << 10},
		{"different headers", ok, "A:\r\nB:\r\nC:\r\nD:\r\n", false, metadata.Malformed, 512 << 10},
		{"interim answers", "", "HTTP/1.1 103 Early Hints\r\nLink: x\r\n\r\n", false, metadata.Malformed, 512 << 10},
		{"headers of a token", ok, strings.Repeat("X-A: b\r\n", 1<<13), true, metadata.Malformed, 512 << 10},
	} {
		t.Run(test.name, func(t *testing.T) {
			service, client := startRaw(t, endless(test.head, test.part, test.token))
			// What is made once does not count: the SDK's stacks, the connection's.
			service.set(says(rawMAC))
			if err := client.Probe(t.Context(), service.path); err != nil {
				t.Fatal(err)
			}
			fresh := metadata.NewClient(metadata.Options{Timeout: 2 * time.Second})
			defer fresh.CloseIdle()
			service.set(endless(test.head, test.part, test.token))
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			err := fresh.Probe(t.Context(), service.path)
			runtime.ReadMemStats(&after)
			if metadata.KindOf(err) != test.kind || err == nil {
				t.Errorf("%v (%v), want %s", err, metadata.KindOf(err), test.kind)
			}
			if cost := after.TotalAlloc - before.TotalAlloc; cost > test.most {
				t.Errorf("it cost %d KiB, want at most %d", cost>>10, test.most>>10)
			} else {
				t.Logf("%d KiB", cost>>10)
			}
		})
	}
}

// D13: what comes after an answer is not the answer to the next request, whenever it comes.
func TestSurplusIsNoAnswer(t *testing.T) {
	other := "HTTP/1.1 200 OK\r\nContent-Length: 17\r\n\r\n" + secondaryMAC
	service, client := startRaw(t, says(rawMAC+other))
	if _, err := client.ReadInstance(t.Context(), []metadata.Path{service.path}); metadata.KindOf(err) != metadata.Malformed || !strings.Contains(err.Error(), "mac") {
		t.Errorf("an answer with another after it: %v", err)
	}
	// The answer is right, and something follows later: the connection is not used again.
	sent := make(chan struct{})
	var once sync.Once
	service.set(func(w io.Writer, request *http.Request) {
		says(rawMAC)(w, request)
		if request.Method == http.MethodGet {
			once.Do(func() {
				time.AfterFunc(50*time.Millisecond, func() {
					_, _ = io.WriteString(w, other) // nobody reads it
					close(sent)
				})
			})
		}
	})
	probe := func() {
		t.Helper()
		if err := client.Probe(t.Context(), service.path); err != nil {
			t.Error(err)
		}
	}
	probe()
	before, _ := service.counts()
	<-sent
	probe()
	if now, _ := service.counts(); now != before+1 {
		t.Errorf("%d connections after unasked bytes, %d before", now, before)
	}
	probe()
	if now, _ := service.counts(); now != before+1 {
		t.Errorf("a connection that was in order was not used again: %d", now)
	}
}

// D8: a connection is kept, and one that the service has closed meanwhile costs no failure, not
// even when it closes it on the request.
func TestConnectionsKept(t *testing.T) {
	service, client := startRaw(t, says(rawMAC))
	probe := func() {
		t.Helper()
		if err := client.Probe(t.Context(), service.path); err != nil {
			t.Error(err)
		}
	}
	probe()
	probe()
	if conns, asked := service.counts(); conns != 1 || asked != 3 {
		t.Errorf("%d connections for %d requests, want 1 for 3", conns, asked)
	}
	service.set(func(io.Writer, *http.Request) {
		service.set(says(rawMAC))
		panic(errHangUp)
	})
	probe()
	if conns, asked := service.counts(); conns != 2 || asked != 5 {
		t.Errorf("%d connections for %d requests, want 2 for 5", conns, asked)
	}
	if _, failed := client.Requests(); failed != 0 {
		t.Errorf("%d requests failed", failed)
	}
	client.CloseIdle()
	probe()
	if conns, _ := service.counts(); conns != 3 {
		t.Errorf("%d connections after all were closed, want 3", conns)
	}
}

// D2: a connection is bound to a link, not to its name: one that was attached again
// under the same name gets connections of its own.
func TestConnectionsByLink(t *testing.T) {
	service, _ := startRaw(t, says(rawMAC))
	client := metadata.NewClient(metadata.Options{Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	defer client.CloseIdle()
	for _, test := range []struct{ index, conns int }{{3, 1}, {3, 1}, {4, 2}, {3, 2}} {
		if err := client.Probe(t.Context(), metadata.Path{Device: "ens6", Index: test.index, Endpoint: service.path.Endpoint}); err != nil {
			t.Fatal(err)
		}
		if conns, _ := service.counts(); conns != test.conns {
			t.Errorf("link %d: %d connections, want %d", test.index, conns, test.conns)
		}
	}
}

// D12: 403 for the token says that the service is switched off, and so does 403 for a key once
// there is no token any more; 403 for a key with a new token is another thing.
func TestDisabled(t *testing.T) {
	service, client, paths := start(t)
	if _, err := read(t, client, paths, nil); err != nil {
		t.Fatal(err)
	}
	fault := func(pattern string) int {
		t.Helper()
		id, err := service.AddFault(imds.Fault{Pattern: pattern, Effect: imds.Status, Status: 403})
		if err != nil {
			t.Fatal(err)
		}
		return id
	}
	fault("network/**")
	if _, err := read(t, client, paths, nil); metadata.KindOf(err) != metadata.Denied || !strings.Contains(err.Error(), secondaryMAC) {
		t.Errorf("a key that is forbidden: %v", err)
	}
	// The token is still right for other keys, and is not fetched anew for each.
	service.ResetRequests()
	if _, err := client.ReadInstance(t.Context(), paths); err != nil {
		t.Error(err)
	}
	if counts := imds.Count(service.Requests()); counts.Tokens != 0 {
		t.Errorf("%d tokens", counts.Tokens)
	}
	// Switched off: keys are refused too.
	fault(imds.TokenKey)
	for range 2 {
		_, err := read(t, client, paths, nil)
		if metadata.KindOf(err) != metadata.Disabled || !strings.Contains(err.Error(), "modify-instance-metadata-options --instance-id i-") {
			t.Errorf("switched off: %v (%v)", err, metadata.KindOf(err))
		}
	}
	service.ResetRequests()
	_, _ = read(t, client, paths, nil)
	if counts := imds.Count(service.Requests()); counts.Total != 1 || counts.Tokens != 1 {
		t.Errorf("a try costs %+v", counts)
	}
	service.ClearFaults()
	if _, err := read(t, client, paths, nil); err != nil {
		t.Errorf("switched on again: %v", err)
	}
}

// D12, D2: the endpoint of IPv6 has a switch of its own, off by default: it says nothing of
// the service where there is IPv4 too.
func TestDisabledIPv6Endpoint(t *testing.T) {
	service, _, right := start(t)
	host := strings.TrimPrefix(right[0].Endpoint, "http://")
	off, client := startRaw(t, func(w io.Writer, _ *http.Request) {
		_, _ = io.WriteString(w, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n") // the client may have gone
	})
	client.CloseIdle()
	refused := true
	client = metadata.NewClient(metadata.Options{Timeout: time.Second, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		switch {
		case strings.HasPrefix(address, "[fd00:ec2::254]"):
			return new(net.Dialer).DialContext(ctx, network, off.Addr().String())
		case refused:
			return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
		}
		return new(net.Dialer).DialContext(ctx, network, host)
	}})
	defer client.CloseIdle()
	ipv4, ipv6 := metadata.Path{Endpoint: metadata.EndpointIPv4}, metadata.Path{Endpoint: metadata.EndpointIPv6}
	for range 2 { // IPv4 comes last once it is known to be dead
		if _, err := client.ReadInstance(t.Context(), []metadata.Path{ipv4, ipv6}); metadata.KindOf(err) != metadata.Unreachable {
			t.Errorf("IPv4 refused, IPv6 off: %v", err)
		}
	}
	if _, err := client.ReadInstance(t.Context(), []metadata.Path{ipv6}); metadata.KindOf(err) != metadata.Disabled || !strings.Contains(err.Error(), "--http-protocol-ipv6") {
		t.Errorf("IPv6 alone: %v", err)
	}
	refused = false
	if _, err := client.ReadInstance(t.Context(), []metadata.Path{ipv6, ipv4}); err != nil {
		t.Errorf("IPv4 answers: %v", err)
	}
	if len(service.Requests()) == 0 {
		t.Error("it was not asked")
	}
}

// D13: systemd-imdsd's replies are bounded as well.
func TestImdsdMemory(t *testing.T) {
	for name, reply := range map[string]struct {
		head, part string
		kind       metadata.Kind
	}{
		"value":   {`{"parameters":{"data":"`, strings.Repeat("eHh4", 1<<14), metadata.Malformed},
		"error":   {`{"error":"`, strings.Repeat("x.", 1<<15), metadata.Malformed},
		"nesting": {``, strings.Repeat("[", 1<<16), metadata.Malformed},
		"no JSON": {"220 mail.example.com ESMTP\x00", "", metadata.Malformed},
		"long":    {`{"parameters":{"data":"` + base64.StdEncoding.EncodeToString(make([]byte, 256<<10+1)) + "\"}}\x00", "", metadata.Malformed},
		"name":    {`{"error":"` + strings.Repeat("x.", 1<<15) + "\"}\x00", "", metadata.ServerError},
		"method":  {`{"error":"org.varlink.service.MethodNotFound","parameters":{"method":"x"}}` + "\x00", "", metadata.Malformed},
	} {
		t.Run(name, func(t *testing.T) {
			socket := filepath.Join(t.TempDir(), "imdsd")
			var lc net.ListenConfig
			listener, err := lc.Listen(t.Context(), "unix", socket)
			if err != nil {
				t.Fatal(err)
			}
			var served sync.WaitGroup
			served.Go(func() {
				conn, err := listener.Accept()
				if err != nil {
					return
				}
				defer conn.Close()
				_, err = bufio.NewReader(conn).ReadBytes(0)
				if err == nil {
					_, err = io.WriteString(conn, reply.head)
				}
				for more := []byte(reply.part); err == nil && len(more) > 0; {
					_, err = conn.Write(more)
				}
			})
			client := metadata.NewClient(metadata.Options{Dial: func(context.Context, string, string) (net.Conn, error) {
				return nil, &net.OpError{Op: "dial", Err: syscall.EACCES}
			}})
			paths := []metadata.Path{{Endpoint: "http://192.0.2.1"}, {Socket: socket}}
			_, _ = client.ReadInstance(t.Context(), paths[:1]) // it finds out that direct access is prohibited
			var before, after runtime.MemStats
			runtime.ReadMemStats(&before)
			_, err = client.ReadInstance(t.Context(), paths)
			runtime.ReadMemStats(&after)
			if metadata.KindOf(err) != reply.kind || err == nil || len(err.Error()) > 500 {
				t.Errorf("%.600v (%v), want %s", err, metadata.KindOf(err), reply.kind)
			}
			const most = 4 << 20
			if cost := after.TotalAlloc - before.TotalAlloc; cost > most {
				t.Errorf("it cost %d KiB", cost>>10)
			} else {
				t.Logf("%d KiB", cost>>10)
			}
			listener.Close()
			served.Wait()
		})
	}
}
