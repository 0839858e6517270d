package bus

import (
	"encoding/binary"
	"errors"
	"strings"

	"github.com/godbus/dbus/v5"
)

// Message types and header fields of the D-Bus specification.
const (
	typeCall   = 1
	typeReply  = 2
	typeError  = 3
	typeSignal = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSender      = 7
	fieldSignature   = 8
	fieldUnixFDs     = 9

	flagNoReply = 1
	// knownFlags are the flags that godbus knows. Others must be ignored (specification).
	knownFlags = 7

	protocolVersion = 1
	fixedSize       = 16
	// maxName bounds names of interfaces, members, errors and connections (specification).
	maxName = 255
)

// busName is the bus itself, as sender and destination.
const busName = "org.freedesktop.DBus"

// message is one D-Bus message: the header, and the body in its wire format.
type message struct {
	order       binary.ByteOrder
	kind, flags byte
	serial      uint32

	path, iface, member, errorName string
	replySerial                    uint32
	destination, sender, signature string
	unixFDs                        uint32

	body []byte
}

// errHeader is the only error of parseFields: the header cannot be parsed.
var errHeader = errors.New("malformed header")

// parseFields reads the header fields, an array of (code, variant) that begins at a multiple of
// eight. It skips fields that are unknown to the specification, as the specification requires.
func (m *message) parseFields(b []byte) error {
	w := walker{b: b, order: m.order, limit: maxSteps}
	var seen [fieldUnixFDs + 1]bool
	for w.at < len(b) {
		if !w.align(8) || w.at == len(b) {
			return errHeader
		}
		code := b[w.at]
		w.at++
		kind, ok := w.signature()
		if !ok || code == 0 {
			return errHeader
		}
		if code > fieldUnixFDs {
			if !isSingle(kind) || !w.value(kind, maxSpecDepth) {
				return errHeader
			}
			continue
		}
		if seen[code] || !m.field(code, kind, &w) {
			return errHeader
		}
		seen[code] = true
	}
	return nil
}

// field reads the value of a known field.
func (m *message) field(code byte, kind string, w *walker) (ok bool) {
	text := func(into *string, want string) bool {
		if kind == want {
			*into, ok = w.text()
		}
		return ok
	}
	number := func(into *uint32) bool {
		if kind == "u" {
			*into, ok = w.uint32()
		}
		return ok
	}
	switch code {
	case fieldPath:
		return text(&m.path, "o")
	case fieldInterface:
		return text(&m.iface, "s")
	case fieldMember:
		return text(&m.member, "s")
	case fieldErrorName:
		return text(&m.errorName, "s")
	case fieldReplySerial:
		return number(&m.replySerial)
	case fieldDestination:
		return text(&m.destination, "s")
	case fieldSender:
		return text(&m.sender, "s")
	case fieldSignature:
		if kind == "g" {
			m.signature, ok = w.signature()
		}
		return ok
	default:
		return number(&m.unixFDs)
	}
}

// valid reports whether the header has the fields that its message type requires, in a form
// that godbus accepts.
func (m *message) valid() bool {
	if m.serial == 0 || len(m.sender) > maxName {
		return false
	}
	switch m.kind {
	case typeCall:
		return validPath(m.path) && validMember(m.member) && (m.iface == "" || validInterface(m.iface))
	case typeReply:
		return m.replySerial != 0
	case typeError:
		return m.replySerial != 0 && validInterface(m.errorName)
	case typeSignal:
		return validPath(m.path) && validMember(m.member) && validInterface(m.iface)
	}
	return false
}

// strip removes the fields that a message of its type does not need, since godbus validates all
// fields. Without a destination godbus need not know the names of the connection.
func (m *message) strip() {
	m.destination = ""
	switch m.kind {
	case typeReply, typeError:
		m.path, m.iface, m.member = "", "", ""
		if m.kind == typeReply {
			m.errorName = ""
		}
	default:
		m.errorName, m.replySerial = "", 0
	}
}

func validPath(path string) bool { return dbus.ObjectPath(path).IsValid() }

// validInterface reports whether name is a valid name of an interface or an error.
func validInterface(name string) bool {
	if len(name) > maxName || !strings.Contains(name, ".") {
		return false
	}
	for element := range strings.SplitSeq(name, ".") {
		if !validMember(element) {
			return false
		}
	}
	return true
}

func validMember(name string) bool {
	if name == "" || len(name) > maxName || '0' <= name[0] && name[0] <= '9' {
		return false
	}
	for i := range len(name) {
		switch c := name[i]; {
		case 'a' <= c && c <= 'z', 'A' <= c && c <= 'Z', '0' <= c && c <= '9', c == '_':
		default:
			return false
		}
	}
	return true
}

// appendHeader appends the header to b, for a body of size bytes. It only writes known fields,
// since godbus accepts no others.
func (m *message) appendHeader(b []byte, size int) []byte {
	start := len(b)
	b = append(b, 0, m.kind, m.flags&knownFlags, protocolVersion)
	b[start] = 'l'
	if m.order == binary.BigEndian {
		b[start] = 'B'
	}
	put := func(v uint32) { b = append(b, 0, 0, 0, 0); m.order.PutUint32(b[len(b)-4:], v) }
	put(uint32(size))
	put(m.serial)
	put(0) // the length of the fields, below
	begin := func(code, kind byte) {
		b = pad(b, start, 8)
		b = append(b, code, 1, kind, 0)
	}
	text := func(code, kind byte, value string) {
		if value != "" {
			begin(code, kind)
			put(uint32(len(value)))
			b = append(append(b, value...), 0)
		}
	}
	text(fieldPath, 'o', m.path)
	text(fieldInterface, 's', m.iface)
	text(fieldMember, 's', m.member)
	text(fieldErrorName, 's', m.errorName)
	text(fieldDestination, 's', m.destination)
	text(fieldSender, 's', m.sender)
	if m.replySerial != 0 {
		begin(fieldReplySerial, 'u')
		put(m.replySerial)
	}
	if m.signature != "" {
		begin(fieldSignature, 'g')
		b = append(append(append(b, byte(len(m.signature))), m.signature...), 0)
	}
	m.order.PutUint32(b[start+fixedSize-4:], uint32(len(b)-start-fixedSize))
	return pad(b, start, 8)
}

// append appends the whole message to b.
func (m *message) append(b []byte) []byte {
	return append(m.appendHeader(b, len(m.body)), m.body...)
}

// pad appends zeros until b is a multiple of n long, counted from start.
func pad(b []byte, start, n int) []byte {
	for (len(b)-start)%n != 0 {
		b = append(b, 0)
	}
	return b
}

// setText makes text the body.
func (m *message) setText(text string) {
	m.signature = "s"
	m.body = append(append(make([]byte, 4, len(text)+5), text...), 0)
	m.order.PutUint32(m.body, uint32(len(text)))
}

// texts returns the arguments of a message with only strings, or nil.
func (m *message) texts() []string {
	w := walker{b: m.body, order: m.order}
	var all []string
	for range len(m.signature) {
		text, ok := w.text()
		if !ok {
			return nil
		}
		all = append(all, text)
	}
	return all
}

// first returns the first argument if it is a string, or an empty string.
func (m *message) first() string {
	w := walker{b: m.body, order: m.order}
	if !strings.HasPrefix(m.signature, "s") {
		return ""
	}
	text, _ := w.text()
	return text
}
