package main

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// The wire format of D-Bus, by hand: no library sends what is wrong.

const busSocket = "/run/dbus/system_bus_socket"

// Message types, flags and header fields.
const (
	typeCall   = 1
	typeReply  = 2
	typeError  = 3
	typeSignal = 4

	flagNoReply     = 1
	flagInteractive = 4

	fieldPath        = 1
	fieldInterface   = 2
	fieldMember      = 3
	fieldErrorName   = 4
	fieldReplySerial = 5
	fieldDestination = 6
	fieldSignature   = 8
	fieldFDs         = 9
)

// message is one to be sent, or one that was received.
type message struct {
	kind, flags byte
	// serial is chosen where it is 0.
	serial                             uint32
	path, iface, member, to, errorName string
	replySerial                        uint32
	signature                          string
	body                               []byte
	fds                                []int
	// extra are whole header fields.
	extra [][]byte
}

func pad(b []byte, to int) []byte {
	for len(b)%to != 0 {
		b = append(b, 0)
	}
	return b
}

func u32(b []byte, v uint32) []byte { return binary.LittleEndian.AppendUint32(pad(b, 4), v) }

func str(b []byte, s string) []byte {
	return append(append(u32(b, uint32(len(s))), s...), 0)
}

func sig(b []byte, s string) []byte {
	return append(append(append(b, byte(len(s))), s...), 0)
}

// field is a header field whose value is of one basic type.
func field(code, kind byte, value []byte) []byte {
	return append([]byte{code, 1, kind, 0}, value...)
}

func (m *message) header() []byte {
	var all [][]byte
	text := func(code, kind byte, s string) {
		if s != "" {
			all = append(all, field(code, kind, str(nil, s)))
		}
	}
	text(fieldPath, 'o', m.path)
	text(fieldInterface, 's', m.iface)
	text(fieldMember, 's', m.member)
	text(fieldErrorName, 's', m.errorName)
	text(fieldDestination, 's', m.to)
	if m.replySerial != 0 {
		all = append(all, field(fieldReplySerial, 'u', u32(nil, m.replySerial)))
	}
	if m.signature != "" {
		all = append(all, field(fieldSignature, 'g', sig(nil, m.signature)))
	}
	if len(m.fds) > 0 {
		all = append(all, field(fieldFDs, 'u', u32(nil, uint32(len(m.fds)))))
	}
	var fields []byte
	for _, f := range append(all, m.extra...) {
		fields = append(pad(fields, 8), f...)
	}
	h := []byte{'l', m.kind, m.flags, 1}
	h = u32(u32(u32(h, uint32(len(m.body))), m.serial), uint32(len(fields)))
	return pad(append(h, fields...), 8)
}

// bus is a connection to the system bus.
type bus struct {
	conn   *net.UnixConn
	serial uint32
	name   string
}

// dial connects and says hello, as any client does. It can pass descriptors.
func dial() (*bus, error) {
	c, err := net.DialUnix("unix", nil, &net.UnixAddr{Name: busSocket, Net: "unix"})
	if err != nil {
		return nil, err
	}
	b := &bus{conn: c}
	_ = c.SetDeadline(time.Now().Add(most))
	for _, line := range []string{"\x00AUTH EXTERNAL " + hex.EncodeToString([]byte(strconv.Itoa(os.Getuid()))), "NEGOTIATE_UNIX_FD"} {
		if _, err := io.WriteString(c, line+"\r\n"); err != nil {
			return nil, err
		}
		answer := make([]byte, 256)
		n, err := c.Read(answer)
		if err != nil || !(strings.HasPrefix(string(answer[:n]), "OK") || strings.HasPrefix(string(answer[:n]), "AGREE")) {
			return nil, fmt.Errorf("the bus answers %q, %w", answer[:n], err)
		}
	}
	if _, err := io.WriteString(c, "BEGIN\r\n"); err != nil {
		return nil, err
	}
	r, err := b.ask("Hello", "", nil)
	if err != nil {
		return nil, err
	}
	b.name, _ = readString(r.body)
	return b, nil
}

func (b *bus) close() { b.conn.Close() }

// send sends a message, with a serial if it has none.
func (b *bus) send(m *message) error {
	if m.serial == 0 {
		b.serial++
		m.serial = b.serial
	}
	header := m.header()
	var rights []byte
	if len(m.fds) > 0 {
		rights = unix.UnixRights(m.fds...)
	}
	n, _, err := b.conn.WriteMsgUnix(header, rights, nil)
	if err == nil && n < len(header) {
		_, err = b.conn.Write(header[n:])
	}
	if err == nil && len(m.body) > 0 {
		_, err = b.conn.Write(m.body)
	}
	return err
}

// receive reads the next message.
func (b *bus) receive() (*message, error) {
	var fixed [16]byte
	if _, err := io.ReadFull(b.conn, fixed[:]); err != nil {
		return nil, err
	}
	size := int(binary.LittleEndian.Uint32(fixed[12:]))
	fields := make([]byte, (size+7)&^7)
	m := &message{kind: fixed[1], body: make([]byte, binary.LittleEndian.Uint32(fixed[4:]))}
	if _, err := io.ReadFull(b.conn, fields); err != nil {
		return nil, err
	}
	if _, err := io.ReadFull(b.conn, m.body); err != nil {
		return nil, err
	}
	for at := 0; at < size; {
		at = (at + 7) &^ 7
		code, kind := fields[at], fields[at+2]
		at += 4
		var value []byte
		switch kind {
		case 'u':
			value, at = fields[at:at+4], at+4
		case 'g':
			n := int(fields[at])
			value, at = fields[at+1:at+1+n], at+n+2
		default:
			n := int(binary.LittleEndian.Uint32(fields[at:]))
			value, at = fields[at+4:at+4+n], at+n+5
		}
		switch code {
		case fieldReplySerial:
			m.replySerial = binary.LittleEndian.Uint32(value)
		case fieldErrorName:
			m.errorName = string(value)
		case fieldSignature:
			m.signature = string(value)
		case fieldMember:
			m.member = string(value)
		}
	}
	return m, nil
}

// callError is an error that was the answer to a call.
type callError struct{ name, text string }

func (e *callError) Error() string { return e.name + ": " + e.text }

// call sends a call and waits for its reply; whatever else comes is dropped.
func (b *bus) call(m *message) (*message, error) {
	m.kind = typeCall
	if err := b.send(m); err != nil {
		return nil, err
	}
	for {
		r, err := b.receive()
		switch {
		case err != nil:
			return nil, err
		case r.replySerial != m.serial:
		case r.kind == typeError:
			text, _ := readString(r.body)
			return nil, &callError{r.errorName, text}
		case r.kind == typeReply:
			return r, nil
		}
	}
}

// ask calls a method of the bus itself.
func (b *bus) ask(member, signature string, body []byte) (*message, error) {
	return b.call(&message{
		path: "/org/freedesktop/DBus", iface: "org.freedesktop.DBus", member: member, to: "org.freedesktop.DBus",
		signature: signature, body: body,
	})
}

func readString(b []byte) (string, []byte) {
	if len(b) < 4 || len(b) < 5+int(binary.LittleEndian.Uint32(b)) {
		return "", nil
	}
	n := int(binary.LittleEndian.Uint32(b))
	return string(b[4 : 4+n]), b[5+n:]
}

// connectionsOf returns the unique names of all connections of a process: the one that
// serves, and those by which it asks others.
func (b *bus) connectionsOf(pid int) ([]string, error) {
	r, err := b.ask("ListNames", "", nil)
	if err != nil {
		return nil, err
	}
	var own []string
	for at := 4; at+4 < len(r.body); {
		at = (at + 3) &^ 3
		var name string
		name, _ = readString(r.body[at:])
		at += 5 + len(name)
		if !strings.HasPrefix(name, ":") {
			continue
		}
		owner, err := b.ask("GetConnectionUnixProcessID", "s", str(nil, name))
		if err != nil {
			continue // it has gone
		}
		if int(binary.LittleEndian.Uint32(owner.body)) == pid {
			own = append(own, name)
		}
	}
	if len(own) == 0 {
		return nil, fmt.Errorf("PID %d has no connection to the bus", pid)
	}
	return own, nil
}

// daemon connects and finds the connections of the daemon.
func daemon(pid int) (*bus, []string, error) {
	b, err := dial()
	if err != nil {
		return nil, nil, err
	}
	own, err := b.connectionsOf(pid)
	return b, own, err
}

const (
	busName          = "org.ec2netd1"
	managerPath      = "/org/ec2netd1"
	managerInterface = "org.ec2netd1.Manager"
)

// describe is a call that everybody may make.
func describe() *message {
	return &message{path: managerPath, iface: managerInterface, member: "Describe", to: busName}
}

// answered checks that the daemon answers what everybody may ask.
func (b *bus) answered(m *message) error {
	r, err := b.call(m)
	if err != nil {
		return fmt.Errorf("the daemon does not answer Describe: %w", err)
	}
	if !bytes.Contains(r.body, []byte(`"instanceId":"i-`)) {
		return fmt.Errorf("the daemon answers Describe with %.200q", r.body)
	}
	return nil
}

// refusedWith checks that the answer to a call was one of some errors, each the last part
// of its name.
func refusedWith(err error, names ...string) error {
	var refused *callError
	if !errors.As(err, &refused) {
		return fmt.Errorf("not refused: %w", errors.Join(err, errors.New("no error")))
	}
	for _, name := range names {
		if strings.HasSuffix(refused.name, "."+name) {
			return nil
		}
	}
	return refused
}
