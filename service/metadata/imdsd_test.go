package metadata_test

import (
	"bufio"
	"context"
	"encoding/base64"
	"encoding/json"
	"net"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// fakeImdsd is systemd-imdsd for the failures that the true one, which the lab tests, does
// not show on demand: it answers with what the lab's service has.
type fakeImdsd struct {
	service *imds.Server

	mu    sync.Mutex
	calls []string
	// fail is the name of the error that it answers with; "hang" and "close" are what
	// they say, and "text" an answer that is no base64.
	fail string
}

func (f *fakeImdsd) set(fail string) {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.fail = fail
}

func (f *fakeImdsd) serve(t *testing.T, conn net.Conn) {
	defer conn.Close()
	reader := bufio.NewReader(conn)
	for {
		text, err := reader.ReadBytes(0)
		if err != nil {
			return
		}
		var call struct {
			Method     string
			Parameters struct {
				Key       string
				Interface int
				Cache     *bool
			}
		}
		if err := json.Unmarshal(text[:len(text)-1], &call); err != nil || call.Method != "io.systemd.InstanceMetadata.Get" || call.Parameters.Cache == nil || *call.Parameters.Cache {
			t.Errorf("call %s: %v", text, err)
			return
		}
		f.mu.Lock()
		f.calls = append(f.calls, call.Parameters.Key)
		fail := f.fail
		f.mu.Unlock()
		reply := map[string]any{}
		key := strings.TrimPrefix(call.Parameters.Key, "/meta-data/")
		body, found := f.service.Snapshot()[key]
		if !found && strings.HasPrefix(key, "network/interfaces/macs/") {
			var names []string
			for name := range f.service.Snapshot() {
				if rest, ok := strings.CutPrefix(name, key+"/"); ok && !strings.Contains(rest, "/") {
					names = append(names, rest)
				}
			}
			body, found = strings.Join(names, "\n"), len(names) > 0
		}
		switch {
		case fail == "hang":
			continue
		case fail == "close":
			return
		case fail == "text":
			reply["parameters"] = map[string]any{"data": "not base64!"}
		case fail != "":
			reply["error"], reply["parameters"] = fail, map[string]any{"errno": 5}
		case !found:
			reply["error"] = "io.systemd.InstanceMetadata.KeyNotFound"
		default:
			reply["parameters"] = map[string]any{"data": base64.StdEncoding.EncodeToString([]byte(body))}
		}
		out, _ := json.Marshal(reply)
		if _, err := conn.Write(append(out, 0)); err != nil {
			return
		}
	}
}

// D9: where direct access is prohibited, and only there, systemd-imdsd is asked.
func TestImdsd(t *testing.T) {
	service, _, paths := start(t)
	fake := &fakeImdsd{service: service}
	socket := filepath.Join(t.TempDir(), "imdsd")
	var lc net.ListenConfig
	listener, err := lc.Listen(t.Context(), "unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	var served sync.WaitGroup
	served.Go(func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			served.Go(func() { fake.serve(t, conn) })
		}
	})
	var mu sync.Mutex
	refusal := error(syscall.EACCES)
	client := metadata.NewClient(metadata.Options{Timeout: time.Second, Dial: func(ctx context.Context, network, address string) (net.Conn, error) {
		mu.Lock()
		defer mu.Unlock()
		if refusal != nil {
			return nil, &net.OpError{Op: "dial", Net: network, Err: refusal}
		}
		return new(net.Dialer).DialContext(ctx, network, address)
	}})
	t.Cleanup(func() {
		listener.Close()
		client.CloseIdle()
		served.Wait()
	})
	refuse := func(err error) {
		mu.Lock()
		defer mu.Unlock()
		refusal = err
		client.CloseIdle()
	}
	locked := slices.Concat(paths, []metadata.Path{{Socket: socket, Index: 2}, {Socket: socket}})

	// Silence and refusal are no lock, and reach nobody else.
	refuse(syscall.ECONNREFUSED)
	if _, err := read(t, client, locked, nil); metadata.KindOf(err) != metadata.Unreachable || len(fake.calls) > 0 {
		t.Errorf("refused: %v, %d calls", err, len(fake.calls))
	}
	refuse(syscall.EACCES)
	if _, err := read(t, client, paths, nil); metadata.KindOf(err) != metadata.Unreachable || !strings.Contains(err.Error(), "systemd-imdsd.socket") {
		t.Errorf("locked without systemd-imdsd: %v", err)
	}
	if _, err := read(t, client, append(paths, metadata.Path{Socket: socket + "-none"}), nil); metadata.KindOf(err) != metadata.Unreachable || !strings.Contains(err.Error(), "systemd-imdsd.socket") {
		t.Errorf("locked without its socket: %v", err)
	}
	eni, err := read(t, client, locked, nil)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(wanted(), *eni, same...); diff != "" {
		t.Error(diff)
	}
	if len(service.Requests()) > 0 || client.Answered() != socket {
		t.Errorf("%d direct requests, answered by %q", len(service.Requests()), client.Answered())
	}

	// D3: its failures are told apart, and end with their cause.
	for fail, kind := range map[string]metadata.Kind{
		"io.systemd.InstanceMetadata.Timeout":              metadata.Timeout,
		"io.systemd.InstanceMetadata.CommunicationFailure": metadata.Unreachable,
		"io.systemd.System":                                metadata.ServerError,
		"org.varlink.service.PermissionDenied":             metadata.Denied,
		"close":                                            metadata.Reset,
		"text":                                             metadata.Malformed,
	} {
		fake.set(fail)
		if _, err := read(t, client, locked, eni); metadata.KindOf(err) != kind {
			t.Errorf("%s: %v (%s), want %s", fail, err, metadata.KindOf(err), kind)
		}
		fake.set("")
		if _, err := read(t, client, locked, eni); err != nil {
			t.Errorf("after %s: %v", fail, err)
		}
	}
	fake.set("hang")
	ctx, cancel := context.WithTimeout(t.Context(), time.Second)
	defer cancel()
	if _, err := client.ReadENI(ctx, locked, metadata.Wanted{MAC: secondaryMAC}); metadata.KindOf(err) != metadata.Timeout {
		t.Errorf("hang: %v", err)
	}
	fake.set("")
	service.RemoveInterface(secondaryMAC, 0)
	if eni, err := read(t, client, locked, nil); err == nil || metadata.KindOf(err) != metadata.Unreachable {
		t.Errorf("an ENI that is not listed: %+v, %v", eni, err)
	}
}
