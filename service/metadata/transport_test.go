package metadata

import (
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"testing"
	"testing/synctest"
	"time"
)

// D9: whether direct access is prohibited is asked once for what is read at the same time,
// and again for what is read later.
func TestProhibitedAskedOnce(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		c := NewClient(Options{})
		asked, barred := 0, false
		c.prohibited = func() bool { asked++; return barred }
		paths := []Path{{Device: "ens5", Index: 2, Endpoint: EndpointIPv4}, {Socket: ImdsdSocket}}
		for range 4 {
			if first := c.order(paths)[0]; first != paths[0] {
				t.Errorf("%v comes first", first)
			}
		}
		if asked != 1 {
			t.Errorf("asked %d times for one look", asked)
		}
		barred = true
		time.Sleep(probeTime)
		if first := c.order(paths)[0]; first != paths[1] || asked != 2 || !c.isLocked() {
			t.Errorf("%v comes first after %d questions", first, asked)
		}
	})
}

// D1, D6: the SDK does not see that a token was refused. It would drop it behind the lock that it holds
// while another reader fetches one.
func TestRefusedTokenIsKeptFromSDK(t *testing.T) {
	for status, want := range map[string]error{"401 Unauthorized": errRefused, "403 Forbidden": nil} {
		near, far := net.Pipe()
		tr := &transport{idle: make(map[connKey][]*conn), dial: func(context.Context, string, string) (net.Conn, error) { return near, nil }}
		go func() {
			defer far.Close()
			buffer := make([]byte, 4096)
			_, _ = far.Read(buffer)
			_, _ = io.WriteString(far, "HTTP/1.1 "+status+"\r\nContent-Length: 0\r\n\r\n")
		}()
		seen := &trace{path: Path{Endpoint: "http://pipe"}, session: newSession(tr), dial: dialTimeout, answer: requestTimeout}
		request, err := http.NewRequestWithContext(context.WithValue(t.Context(), traceKey{}, seen), http.MethodGet, EndpointIPv4+"/latest/meta-data/mac", nil)
		if err != nil {
			t.Fatal(err)
		}
		request.Header.Set(tokenHeader, "token")
		answer, err := tr.RoundTrip(request)
		if !errors.Is(err, want) {
			t.Errorf("%s: %v", status, err)
		}
		if answer != nil {
			answer.Body.Close()
		}
		if got := http.StatusText(seen.key); status[4:] != got {
			t.Errorf("%s: the trace has %q", status, got)
		}
		_ = near.Close()
	}
}
