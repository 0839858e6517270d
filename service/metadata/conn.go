package metadata

import (
	"bufio"
	"bytes"
	"context"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// Limits of an answer (D13). Those of EC2 have some 300 bytes of headers, a token of 56
// bytes, and values of a few kilobytes at most: 50 addresses are 2 KiB.
const (
	maxToken  = 1 << 10
	maxValue  = 256 << 10
	maxHeader = 64 << 10
	// maxHeaderLines bounds what the headers take once they are parsed, which is far more
	// than their bytes where each line has a few.
	maxHeaderLines = 100
	// maxPage bounds what is read of the page that comes with an error, for the connection's
	// sake only: the status says it all. EC2's have some 350 bytes.
	maxPage = 4 << 10
	// maxInterim is how many 1xx answers may come before the answer.
	maxInterim = 4
	// maxFraming is what chunks and trailers may take besides the body.
	maxFraming = 64 << 10
)

// protocolError is an answer that cannot be taken for one: it is too long, or no HTTP.
type protocolError struct{ text string }

func (e *protocolError) Error() string { return e.text }

func tooLong(what string, limit int) error {
	return &protocolError{fmt.Sprintf("%s longer than the %d bytes that are believable", what, limit)}
}

// answer is an answer that has been read.
type answer struct {
	status int
	header http.Header
	body   string
}

// response is the answer for the SDK, which takes a token from it. The value of a key has
// its place in the trace: the SDK would copy it twice. Only 200 is success, for only that says what a
// key holds (D3); the SDK would take 206 for it too.
func (a answer) response(request *http.Request, token bool) (*http.Response, error) {
	if a.status > http.StatusOK && a.status < http.StatusMultipleChoices {
		return nil, fmt.Errorf("status %d is none that the service gives", a.status)
	}
	r := &http.Response{
		StatusCode: a.status, Status: http.StatusText(a.status), Proto: "HTTP/1.1", ProtoMajor: 1, ProtoMinor: 1,
		Header: a.header, Body: http.NoBody, Request: request,
	}
	if token {
		r.Body = io.NopCloser(bytes.NewReader([]byte(a.body)))
	}
	return r, nil
}

// conn is a connection to the service. One request uses it at a time.
type conn struct {
	net.Conn
	// buffer is what was read of the connection; rest is of the present answer, its headers
	// included; out is the request.
	buffer, rest *bufio.Reader
	out          *bufio.Writer
	// left is how many bytes may still be read.
	left int
	// heard: something came since the request was sent.
	heard bool
	// expiry closes the connection while no request uses it.
	expiry *time.Timer
}

func newConn(raw net.Conn) *conn {
	c := &conn{Conn: raw}
	c.buffer, c.rest, c.out = bufio.NewReader(c), bufio.NewReader(nil), bufio.NewWriterSize(raw, 1<<10)
	return c
}

// errLeft: a connection was to be read beyond what an answer may have.
var errLeft = &protocolError{"the answer does not end"}

// Read reads as much as is left. An answer that comes in parts may wait for the
// acknowledgement of the first (Nagle's algorithm), which the kernel puts off by 40 ms on a
// connection that is not new: so it is sent at once (D10).
func (c *conn) Read(p []byte) (int, error) {
	if c.left <= 0 {
		return 0, errLeft
	}
	if c.heard {
		c.acknowledge()
	}
	n, err := c.Conn.Read(p[:min(len(p), c.left)])
	c.left -= n
	c.heard = c.heard || n > 0
	return n, err
}

// acknowledge has the kernel acknowledge what has come, and what comes next.
func (c *conn) acknowledge() {
	socket, ok := c.Conn.(syscall.Conn)
	if !ok {
		return // a connection inside the process
	}
	if raw, err := socket.SyscallConn(); err == nil {
		// An error is that of the connection, which the read meets too.
		_ = raw.Control(func(fd uintptr) { _ = unix.SetsockoptInt(int(fd), unix.IPPROTO_TCP, unix.TCP_QUICKACK, 1) })
	}
}

// exchange sends a request and reads the answer. It reports whether the connection can be
// used again: after an answer of the plain kind, which ended where it said it would. The status
// and headers are there also where the body could not be read.
func (c *conn) exchange(request *http.Request, limit int) (a answer, keep bool, err error) {
	ctx := request.Context()
	stop := context.AfterFunc(ctx, func() { _ = c.SetDeadline(time.Unix(1, 0)) }) // a closed one needs none
	a, keep, err = c.ask(request, limit)
	if !stop() {
		keep = false
		if err != nil {
			err = ctx.Err()
		}
	}
	return a, keep, err
}

func (c *conn) ask(request *http.Request, limit int) (a answer, keep bool, err error) {
	c.heard = false
	err = request.Write(c.out)
	if err == nil {
		err = c.out.Flush()
	}
	if err != nil {
		return answer{}, false, err
	}
	response, err := c.head(request) //nolint:bodyclose // it would read to the end of what is sent; the connection is closed
	if err != nil {
		return answer{}, false, err
	}
	a = answer{status: response.StatusCode, header: response.Header}
	if a.status == http.StatusSwitchingProtocols {
		return a, false, nil // what follows is no HTTP
	}
	good := a.status == http.StatusOK
	if !good {
		limit = maxPage
	}
	c.left = limit + maxFraming
	body, err := readBody(response, limit)
	plain := response.ContentLength >= 0 && len(response.TransferEncoding) == 0 && !response.Close
	pending := nothing
	if plain {
		if pending = c.pending(); c.rest.Buffered()+c.buffer.Buffered() > 0 {
			pending = surplus
		}
	}
	switch {
	case !good:
		return a, err == nil && plain && pending == nothing, nil
	case err != nil:
		return a, false, err
	case pending == surplus:
		// Either of its length and its end is wrong, so it may lack something.
		return a, false, &protocolError{"the answer goes on after its end"}
	}
	a.body = body
	return a, plain && pending == nothing, nil
}

// head reads the headers of the answer. The body is to be read from the response.
func (c *conn) head(request *http.Request) (*http.Response, error) {
	c.left = maxHeader + c.buffer.Size()
	for range maxInterim + 1 {
		text, err := c.headers()
		if err != nil {
			return nil, err
		}
		c.rest.Reset(io.MultiReader(bytes.NewReader(text), c.buffer))
		response, err := http.ReadResponse(c.rest, request)
		if err != nil {
			return nil, &protocolError{"the answer is not HTTP: " + clip(err.Error())}
		}
		if response.StatusCode >= http.StatusOK || response.StatusCode == http.StatusSwitchingProtocols {
			return response, nil
		}
		if c.rest.Buffered() > 0 {
			return nil, &protocolError{"an interim answer has a body"}
		}
	}
	return nil, &protocolError{fmt.Sprintf("more than %d interim answers come before the answer", maxInterim)}
}

// headers reads up to the first empty line.
func (c *conn) headers() ([]byte, error) {
	var text []byte
	for lines, begin := 0, 0; ; {
		part, err := c.buffer.ReadSlice('\n')
		text = append(text, part...)
		switch {
		case errors.Is(err, errLeft), len(text) > maxHeader, lines > maxHeaderLines:
			return nil, tooLong("the headers of the answer are", maxHeader)
		case errors.Is(err, bufio.ErrBufferFull):
			continue
		case err != nil:
			return nil, err
		case len(bytes.TrimRight(text[begin:], "\r\n")) == 0:
			return text, nil
		}
		lines, begin = lines+1, len(text)
	}
}

// readBody reads the body of an answer, which may have so many bytes.
func readBody(response *http.Response, limit int) (string, error) {
	if response.ContentLength > int64(limit) {
		return "", tooLong("the answer is", limit)
	}
	var text []byte
	var err error
	if response.ContentLength >= 0 {
		text = make([]byte, response.ContentLength)
		_, err = io.ReadFull(response.Body, text)
	} else {
		text, err = io.ReadAll(io.LimitReader(response.Body, int64(limit)+1))
	}
	var protocol *protocolError
	var network net.Error
	switch {
	case len(text) > limit:
		return "", tooLong("the answer is", limit)
	case err == nil, errors.As(err, &protocol), errors.Is(err, io.ErrUnexpectedEOF), errors.Is(err, io.EOF), errors.As(err, &network):
		return string(text), err
	}
	return "", &protocolError{"the answer is not HTTP: " + clip(err.Error())}
}

// pending is what a connection has that nobody has asked for.
type pending int

const (
	nothing pending = iota
	// surplus: bytes that belong to no answer.
	surplus
	// end: the service has closed it, or it failed.
	end
)

// pending looks whether there is anything to read, without waiting for it.
func (c *conn) pending() pending {
	socket, ok := c.Conn.(syscall.Conn)
	if !ok {
		return nothing // a connection inside the process
	}
	raw, err := socket.SyscallConn()
	if err != nil {
		return end
	}
	found := end
	err = raw.Control(func(fd uintptr) {
		var one [1]byte
		n, _, err := unix.Recvfrom(int(fd), one[:], unix.MSG_PEEK|unix.MSG_DONTWAIT)
		switch {
		case errors.Is(err, unix.EAGAIN):
			found = nothing
		case err == nil && n > 0:
			found = surplus
		}
	})
	if err != nil {
		return end
	}
	return found
}
