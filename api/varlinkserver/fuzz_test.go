package varlinkserver

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"log/slog"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/api"
	"ec2netd/api/apitest"
)

// noted is a log that records whether a call panicked.
type noted struct {
	slog.Handler
	said *bool
}

func (n noted) Enabled(context.Context, slog.Level) bool { return true }
func (n noted) Handle(_ context.Context, r slog.Record) error {
	*n.said = *n.said || r.Level >= slog.LevelError
	return nil
}

// FuzzConnection: whatever bytes a client sends, in whatever pieces, each message is answered
// in JSON or ends the connection. No call panics, no unauthorized call causes a refresh, and
// all resources of the client are returned (D4, J1).
func FuzzConnection(f *testing.F) {
	const limit = 1 << 10
	for _, seed := range []string{
		`{"method":"org.ec2netd.Network.Describe"}` + "\x00" + `{"method":"org.ec2netd.Network.ListInterfaces","more":true,"parameters":{}}` + "\x00",
		`{"method":"org.ec2netd.Network.Refresh","parameters":{"id":"ens5","wait":true}}` + "\x00",
		`{"method":"org.ec2netd.Network.Monitor","more":true}` + "\x00" + `{"method":"org.varlink.service.GetInfo"}` + "\x00",
		`{"method":"org.ec2netd.Network.Monitor","more":true,"oneway":true}` + "\x00" + `{"method":"io.systemd.Metrics.List","more":true}` + "\x00",
		`{"method":"org.varlink.service.GetInterfaceDescription","parameters":{"interface":"x"}}` + "\x00",
		`{"method":"Describe","oneway":true,"parameters":[]}` + "\x00", `{"method":"."}` + "\x00", "null\x00", "\x00\x00", "{",
		`{"method":"org.ec2netd.Network.Describe","parameters":{"x":` + strings.Repeat("[", 400) + strings.Repeat("]", 400) + "}}\x00",
		`{"method":"org.ec2netd.Network.Describe"}` + "\x00" + strings.Repeat("x", limit) + "\x00",
		strings.Repeat("{", 4*limit),
	} {
		f.Add([]byte(seed), uint16(1))
		f.Add([]byte(seed), uint16(len(seed)))
	}
	f.Fuzz(func(t *testing.T, raw []byte, piece uint16) {
		panicked := false
		agent := apitest.NewAgent(apitest.State())
		s := newServer(t, Options{
			Agent: agent, Logger: slog.New(noted{slog.DiscardHandler, &panicked}), Authorizer: refuses{}, Limits: Limits{Message: limit},
		})
		c := connect(t, s, 1000)
		go func() {
			for part := range slices.Chunk(raw, max(int(piece), 1+len(raw)/64)) {
				if _, err := c.Write(part); err != nil {
					return // the server has ended the connection
				}
			}
			_ = c.CloseWrite()
		}()
		for {
			_ = c.SetReadDeadline(time.Now().Add(20 * time.Second))
			reply, err := c.r.ReadBytes(0)
			if err != nil {
				if len(reply) > 0 || errors.Is(err, os.ErrDeadlineExceeded) {
					t.Fatalf("%q ended with %q, %v", raw, reply, err)
				}
				break
			}
			if !json.Valid(reply[:len(reply)-1]) {
				t.Fatalf("%q was answered %q", raw, reply)
			}
			// A Monitor ends with its client.
			if bytes.HasSuffix(reply, []byte(`"continues":true}`+"\x00")) && bytes.Contains(reply, []byte(`"instanceId"`)) {
				break
			}
		}
		c.Close()
		<-c.ended
		s.idle(t)
		if refreshed := len(agent.Refreshed()) > 0; refreshed || panicked {
			t.Errorf("%q: refreshed %v, panicked %v", raw, refreshed, panicked)
		}
	})
}

// refuses permits nothing to anybody.
type refuses struct{}

func (refuses) Authorize(context.Context, api.Caller, string) error { return errors.New("no") }
