package varlinkserver

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"net"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ec2netd/api"
	"ec2netd/api/apitest"
)

// replies take what a client would get. A stream ends with the client, after some replies.
type replies struct {
	bytes.Buffer
	left int
}

func (r *replies) Write(_ context.Context, b []byte) (int, error) {
	if r.left--; r.left < 0 {
		return 0, errGone
	}
	return r.Buffer.Write(b)
}

func (r *replies) Read(context.Context, []byte) (int, error)       { return 0, errNoRaw }
func (r *replies) ReadBytes(context.Context, byte) ([]byte, error) { return nil, errNoRaw }

// noted is a log that says whether a call panicked.
type noted struct {
	slog.Handler
	said *bool
}

func (n noted) Enabled(context.Context, slog.Level) bool { return true }
func (n noted) Handle(_ context.Context, r slog.Record) error {
	*n.said = *n.said || r.Level >= slog.LevelError
	return nil
}

// FuzzFrames: whatever a client sends is cut into messages of the size that is allowed, and
// each is answered in JSON or ends the connection; no call panics, and nothing is refreshed
// for somebody who may not (D4).
func FuzzFrames(f *testing.F) {
	for _, seed := range []string{
		`{"method":"org.ec2netd.Network.Describe"}` + "\x00" + `{"method":"org.ec2netd.Network.ListInterfaces","more":true,"parameters":{}}` + "\x00",
		`{"method":"org.ec2netd.Network.Refresh","parameters":{"id":"ens5","wait":true}}` + "\x00",
		`{"method":"org.ec2netd.Network.Monitor","more":true}` + "\x00" + `{"method":"org.varlink.service.GetInfo"}` + "\x00",
		`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}}` + "\x00",
		`{"method":"Describe","oneway":true,"parameters":[]}` + "\x00", `{"method":"."}` + "\x00", "null\x00", "\x00\x00", "{",
	} {
		f.Add([]byte(seed))
	}
	dir, err := os.MkdirTemp("", "ec2netd-fuzz")
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { os.RemoveAll(dir) })
	listener, err := net.Listen("unix", filepath.Join(dir, "s"))
	if err != nil {
		f.Fatal(err)
	}
	f.Cleanup(func() { listener.Close() })
	const limit = 1 << 10
	f.Fuzz(func(t *testing.T, raw []byte) {
		panicked := false
		agent := apitest.NewAgent(apitest.State())
		s, err := New(Options{Listeners: []net.Listener{listener}, Agent: agent, Logger: slog.New(noted{slog.DiscardHandler, &panicked}),
			Authorizer: refuses{}, Version: "1"})
		if err != nil {
			t.Fatal(err)
		}
		defer func() {
			if refreshed := len(agent.Refreshed()) > 0; refreshed || panicked {
				t.Errorf("%q: refreshed %v, panicked %v", raw, refreshed, panicked)
			}
		}()
		r, rest := bufio.NewReader(bytes.NewReader(raw)), raw
		for {
			message, err := readMessage(r, limit)
			if err != nil {
				return
			}
			if len(message) >= limit || !bytes.HasPrefix(rest, append(message[:len(message):len(message)], 0)) {
				t.Fatalf("read %q of %q", message, rest)
			}
			rest = rest[len(message)+1:]
			// What streams ends when the client goes.
			ctx, cancel := context.WithTimeout(withPeer(t.Context(), api.Caller{UID: 1000}), 100*time.Millisecond)
			out := &replies{left: 8}
			err = s.service.HandleMessage(ctx, out, message)
			cancel()
			for reply := range bytes.SplitSeq(bytes.TrimSuffix(out.Bytes(), []byte{0}), []byte{0}) {
				if out.Len() > 0 && !json.Valid(reply) {
					t.Errorf("%q was answered %q", message, reply)
				}
			}
			if err != nil {
				return
			}
		}
	})
}

// refuses lets nobody do anything.
type refuses struct{}

func (refuses) Authorize(context.Context, api.Caller, string) error { return errors.New("no") }
