package metadata

import (
	"bytes"
	"io"
	"net"
	"net/http"
	"strings"
	"testing"
	"time"
)

// wire is a connection over which a service has said all that it will say.
type wire struct {
	net.Conn
	io.Reader
}

func (w wire) Read(p []byte) (int, error)  { return w.Reader.Read(p) }
func (wire) Write(p []byte) (int, error)   { return len(p), nil }
func (wire) SetDeadline(_ time.Time) error { return nil }
func (wire) Close() error                  { return nil }

// FuzzAnswer: whatever bytes a service sends, the answer is within its limits or an error of a
// kind, and a connection is only used again where nothing of them is left (D3, D13).
func FuzzAnswer(f *testing.F) {
	const ok = "HTTP/1.1 200 OK\r\n"
	for _, seed := range []string{
		ok + "Content-Length: 5\r\n\r\nvalue", ok + "Content-Length: 3\r\n\r\nvalue", ok + "Content-Length: 9\r\n\r\nvalue",
		ok + "Transfer-Encoding: chunked\r\n\r\n5;x=y\r\nvalue\r\n0\r\nA: b\r\n\r\n", ok + "\r\nvalue", "HTTP/1.0 200 OK\n\nvalue",
		"HTTP/1.1 103 Early Hints\r\n\r\n" + ok + "Content-Length: 5\r\n\r\nvalue", strings.Repeat("HTTP/1.1 100 Continue\r\n\r\n", 6),
		"HTTP/1.1 404 Not Found\r\nContent-Length: 4\r\n\r\npage", "HTTP/1.1 101 Switching Protocols\r\n\r\nx", "HTTP/1.1 204 No\r\n\r\n",
		ok + "Content-Length: 5\r\nContent-Length: 6\r\n\r\nvalue", ok + "Content-Length: 99999999999\r\n\r\n", "SSH-2.0-x\r\n", "", "\n\n",
		ok + "A: " + strings.Repeat("x", 70_000) + "\r\n\r\n", ok + strings.Repeat("A: b\r\n", 200) + "\r\n",
	} {
		f.Add([]byte(seed))
	}
	f.Fuzz(func(t *testing.T, text []byte) {
		const limit = 1 << 10
		request, err := http.NewRequestWithContext(t.Context(), http.MethodGet, "http://192.0.2.1/", nil)
		if err != nil {
			t.Fatal(err)
		}
		c := newConn(wire{Reader: bytes.NewReader(text)})
		a, keep, err := c.exchange(request, limit)
		if len(a.body) > limit || (a.body != "" && (err != nil || a.status != http.StatusOK)) {
			t.Errorf("%d with %d bytes and %v", a.status, len(a.body), err)
		}
		if keep && (err != nil || c.buffer.Buffered()+c.rest.Buffered() > 0) {
			t.Errorf("the connection is kept with %d bytes and %v", c.buffer.Buffered()+c.rest.Buffered(), err)
		}
		if kind := kindOfCause(err); err != nil && kind != Malformed && kind != Reset {
			t.Errorf("%v is %s", err, kind)
		}
		if err != nil && len(err.Error()) > 300 {
			t.Errorf("an error of %d bytes", len(err.Error()))
		}
	})
}
