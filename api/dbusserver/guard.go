package dbusserver

import (
	"bytes"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"slices"
	"sync/atomic"
	"time"
)

// What the guard lets through. No method here takes more than a word or two; 64 KiB
// leaves room for arguments that are merely wrong, and for the errors of the bus.
const (
	maxHeader = 64 << 10
	maxBody   = 64 << 10
	// maxSet bounds the arguments of Set.
	maxSet = 4 << 10
	// maxReply bounds answers to calls of our own.
	maxReply = 1 << 20
	// writeTimeout: the bus reads what it is sent at once; if it has not for so
	// long, the connection is as good as dead.
	writeTimeout = 30 * time.Second
)

// Message types and header fields of the D-Bus specification.
const (
	typeCall   = 1
	typeReply  = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldReplySerial = 5
	fieldSender      = 7
	fieldSignature   = 8
	fieldUnixFDs     = 9
)

// guard stands between the bus and godbus. It is there because godbus decodes
// whatever any local user sends, before anyone can ask what it is: 32 MiB of small
// variants become gigabytes of Go values, and a body or an unrequested signal that
// is nested too deeply for its decoder ends the connection. The guard lets pass only
// what this server can have a use for:
//
//   - method calls; the body only if it is small and of a signature that a method
//     here takes, else the call arrives without arguments, and gets the error that
//     this earns;
//   - replies, and signals of the bus itself.
//
// Everything else is skipped without being held in memory.
type guard struct {
	net.Conn
	// signatures of arguments that pass.
	signatures map[string]bool
	// begun: the authentication is over, messages follow.
	begun atomic.Bool
	// pending is the rest of a message that has passed.
	pending bytes.Reader
	// body is how much of the current message's body is still to be passed on.
	body int64
}

// Write implements io.Writer. It sees the end of the authentication, after which
// both sides send messages.
func (g *guard) Write(b []byte) (int, error) {
	if !g.begun.Load() && bytes.Equal(b, []byte("BEGIN\r\n")) {
		g.begun.Store(true)
	}
	if err := g.SetWriteDeadline(time.Now().Add(writeTimeout)); err != nil {
		return 0, err
	}
	n, err := g.Conn.Write(b)
	if err != nil {
		// Half a message may be out: nothing can follow it.
		g.Close()
	}
	return n, err
}

// Read implements io.Reader.
func (g *guard) Read(b []byte) (int, error) {
	if !g.begun.Load() {
		return g.Conn.Read(b)
	}
	for g.pending.Len() == 0 && g.body == 0 {
		if err := g.next(); err != nil {
			return 0, err
		}
	}
	if g.pending.Len() > 0 {
		return g.pending.Read(b)
	}
	if int64(len(b)) > g.body {
		b = b[:g.body]
	}
	n, err := g.Conn.Read(b)
	g.body -= int64(n)
	return n, err
}

// next reads the header of one message and decides on it.
func (g *guard) next() error {
	var fixed [16]byte
	if _, err := io.ReadFull(g.Conn, fixed[:]); err != nil {
		return err
	}
	var order binary.ByteOrder
	switch fixed[0] {
	case 'l':
		order = binary.LittleEndian
	case 'B':
		order = binary.BigEndian
	default:
		return errors.New("reading from the bus: no D-Bus message")
	}
	body := int64(order.Uint32(fixed[4:]))
	fields := int64(order.Uint32(fixed[12:]))
	padded := (fields + 7) &^ 7
	if fields > maxHeader {
		return g.skip(padded + body)
	}
	header := make([]byte, padded)
	if _, err := io.ReadFull(g.Conn, header); err != nil {
		return err
	}
	parsed, ok := parseHeader(header[:fields], order)
	switch {
	case !ok:
		return g.skip(body)
	case fixed[1] == typeCall && parsed.signature == "ssv" && body <= maxSet:
		value := make([]byte, body)
		if _, err := io.ReadFull(g.Conn, value); err != nil {
			return err
		}
		if !isText(value, order) {
			return g.passCallWithoutBody(fixed, parsed, 0, order)
		}
		g.pending.Reset(slices.Concat(fixed[:], header, value))
		return nil
	case fixed[1] == typeCall:
		if body > maxBody || !g.signatures[parsed.signature] {
			return g.passCallWithoutBody(fixed, parsed, body, order)
		}
	case fixed[1] == typeReply, fixed[1] == typeError:
		if body > maxReply {
			return g.skip(body)
		}
	case fixed[1] == typeSignal:
		if parsed.sender != "org.freedesktop.DBus" || body > maxBody {
			return g.skip(body)
		}
	default:
		return g.skip(body)
	}
	g.pending.Reset(append(fixed[:], header...))
	g.body = body
	return nil
}

// passCallWithoutBody passes a method call on as one without arguments.
func (g *guard) passCallWithoutBody(fixed [16]byte, parsed header, body int64, order binary.ByteOrder) error {
	if err := g.skip(body); err != nil {
		return err
	}
	// Each field starts at a multiple of eight, so that whole fields can be moved.
	var kept []byte
	end := 0
	for _, f := range parsed.fields {
		if f.code == fieldSignature || f.code == fieldUnixFDs {
			continue
		}
		kept = append(kept, make([]byte, (8-len(kept)%8)%8)...)
		kept = append(kept, f.bytes...)
		end = len(kept)
	}
	order.PutUint32(fixed[4:], 0)
	order.PutUint32(fixed[12:], uint32(end))
	kept = append(kept, make([]byte, (8-end%8)%8)...)
	g.pending.Reset(append(fixed[:], kept...))
	return nil
}

// isText tells whether a body of signature ssv has a variant that is a text: any other
// may be nested deeper than godbus can read.
func isText(body []byte, order binary.ByteOrder) bool {
	at := 0
	for range 2 {
		at = (at + 3) &^ 3
		if len(body)-at < 5 {
			return false
		}
		n := order.Uint32(body[at:])
		if uint64(n)+5 > uint64(len(body)-at) {
			return false
		}
		at += 4 + int(n) + 1
	}
	return len(body)-at > 3 && body[at] == 1 && body[at+1] == 's' && body[at+2] == 0
}

func (g *guard) skip(n int64) error {
	_, err := io.CopyN(io.Discard, g.Conn, n)
	return err
}

// header is what the guard needs to know of a message's header fields.
type header struct {
	sender, signature string
	fields            []field
}

type field struct {
	code  byte
	bytes []byte // without the padding behind it
}

// parseHeader reads the header fields of a message, an array of (code, variant) in
// the D-Bus wire format. It is not ok if there is a field that the specification
// does not know, or one that is not of the type it says.
func parseHeader(b []byte, order binary.ByteOrder) (h header, ok bool) {
	for at := 0; at < len(b); {
		at = (at + 7) &^ 7
		start := at
		// code, and the variant's signature: one byte of length, one type, a NUL.
		if len(b)-at < 4 || b[at+1] != 1 || b[at+3] != 0 {
			return header{}, false
		}
		code, kind := b[at], b[at+2]
		at += 4
		var value string
		switch {
		case code >= fieldPath && code <= fieldSender && code != fieldReplySerial && (kind == 's' || kind == 'o'):
			// The string's length is aligned already: at is a multiple of four.
			if len(b)-at < 5 {
				return header{}, false
			}
			n := order.Uint32(b[at:])
			if uint64(n)+5 > uint64(len(b)-at) {
				return header{}, false
			}
			value = string(b[at+4 : at+4+int(n)])
			at += 4 + int(n) + 1
		case code == fieldSignature && kind == 'g':
			if len(b)-at < 2 || len(b)-at < int(b[at])+2 {
				return header{}, false
			}
			value = string(b[at+1 : at+1+int(b[at])])
			at += 1 + int(b[at]) + 1
		case (code == fieldReplySerial || code == fieldUnixFDs) && kind == 'u':
			if len(b)-at < 4 {
				return header{}, false
			}
			at += 4
		default:
			return header{}, false
		}
		switch code {
		case fieldSender:
			h.sender = value
		case fieldSignature:
			h.signature = value
		}
		h.fields = append(h.fields, field{code: code, bytes: b[start:at]})
	}
	return h, true
}
