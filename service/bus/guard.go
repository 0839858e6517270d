package bus

import (
	"bufio"
	"bytes"
	"cmp"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"time"
)

const (
	// maxHeader bounds the header fields of a message; it and maxSteps bound their number.
	// The guard cannot parse a longer header, so such a message gets no answer.
	maxHeader = 64 << 10
	// maxSignal bounds the body of a signal.
	maxSignal = 64 << 10
	// maxMessage is the specification's limit.
	maxMessage = 1 << 27
	// maxHandshake bounds what the bus sends before the first message.
	maxHandshake = 16 << 10
	// maxAwaited bounds the number of calls that wait for a reply.
	maxAwaited = 4096
	// chunk is the size of the pieces in which a long message is passed on.
	chunk = 16 << 10
	// writeTimeout bounds a write. The bus reads messages at once; if it has not for so long,
	// the connection is unusable.
	writeTimeout = 30 * time.Second
	// ownSerials are those of the guard's own messages. godbus counts from 1.
	ownSerials = 1 << 31
)

// ErrEnd is the ordinary end of a connection: the bus closed it.
var ErrEnd = errors.New("the bus has closed the connection")

// guard filters the messages between the socket and godbus. Its own goroutine reads the
// socket, decides on each message, and passes one at a time to godbus.
type guard struct {
	socket   net.Conn
	in       *bufio.Reader
	maxReply int64
	signals  []Signal
	calls    *Calls

	// begun: the authentication is over, messages follow.
	begun atomic.Bool
	// answers are the guard's own answers that it has not sent yet.
	answers []byte
	// greeted is the number of bytes of the handshake so far.
	greeted int

	mu   sync.Mutex
	cond *sync.Cond
	// current is what godbus reads next; partial: more of the same message follows.
	current []byte
	partial bool
	// failed ends the connection; closed: by Close.
	failed error
	closed bool

	// writing keeps messages apart on the socket.
	writing sync.Mutex
	// replies records the calls that were sent, and the owners of names on the bus.
	replies replies
}

// replies are the calls that were sent, and the names whose owners are watched.
type replies struct {
	mu      sync.Mutex
	awaited map[uint32]awaited
	asked   map[uint32]func(*message)
	next    uint32
	// owners are the unique names of the owners of the watched names.
	owners map[string]string
}

// awaited is a call that was sent.
type awaited struct {
	destination string
	// owner of the destination when the call was sent, if known.
	owner string
}

func newGuard(socket net.Conn, o *Options) *guard {
	g := &guard{
		socket: socket, in: bufio.NewReaderSize(socket, chunk),
		maxReply: int64(cmp.Or(o.MaxReply, DefaultMaxReply)), signals: slices.Clone(o.Signals), calls: o.Calls,
		replies: replies{awaited: map[uint32]awaited{}, asked: map[uint32]func(*message){}, owners: map[string]string{}},
	}
	g.cond = sync.NewCond(&g.mu)
	if g.calls != nil {
		g.calls.wake = func() {
			g.mu.Lock()
			defer g.mu.Unlock()
			g.cond.Broadcast()
		}
	}
	return g
}

// Close implements io.Closer.
func (g *guard) Close() error {
	g.mu.Lock()
	g.closed = g.closed || g.failed == nil // godbus closes after a failure too
	g.mu.Unlock()
	_ = g.fail(net.ErrClosed)
	return nil
}

// fail ends the connection, and returns the reason: the first one counts.
func (g *guard) fail(err error) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.failed == nil {
		g.failed = err
	}
	g.cond.Broadcast()
	g.socket.Close()
	return g.failed
}

// reason returns why the connection ended, or nil after Close.
func (g *guard) reason() error {
	g.mu.Lock()
	defer g.mu.Unlock()
	if g.closed {
		return nil
	}
	return g.failed
}

// Read implements io.Reader, for godbus.
func (g *guard) Read(b []byte) (int, error) {
	if !g.begun.Load() {
		n, err := g.socket.Read(b)
		if g.greeted += n; g.greeted > maxHandshake {
			return 0, errors.New("the bus has too much to say before the first message")
		}
		return n, err
	}
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.current) == 0 {
		if !g.partial && g.calls != nil {
			if in := g.calls.next(); in != nil {
				g.current, in.bytes = in.bytes, nil
				break
			}
		}
		if g.failed != nil {
			return 0, g.failed
		}
		g.cond.Wait()
	}
	n := copy(b, g.current)
	if g.current = g.current[n:]; len(g.current) == 0 {
		g.current = nil
		g.cond.Broadcast()
	}
	return n, nil
}

// hand passes a message, or a part of one, to godbus when it has read the previous one.
func (g *guard) hand(b []byte, partial bool) error {
	g.mu.Lock()
	defer g.mu.Unlock()
	for len(g.current) > 0 && g.failed == nil {
		g.cond.Wait()
	}
	if g.failed != nil {
		return g.failed
	}
	g.current, g.partial = b, partial
	g.cond.Broadcast()
	return nil
}

// Write implements io.Writer, for godbus, which writes one message at a time.
func (g *guard) Write(b []byte) (int, error) {
	if !g.begun.Load() {
		n, err := g.send(b)
		if err == nil && bytes.Equal(b, []byte("BEGIN\r\n")) {
			g.begun.Store(true)
			go g.run()
		}
		return n, err
	}
	m, err := parseSent(b)
	if err != nil {
		return 0, err
	}
	switch m.kind {
	case typeCall:
		if err := g.watch(m.destination); err != nil {
			return 0, err
		}
		if m.flags&flagNoReply == 0 {
			g.replies.await(m)
		}
	case typeReply, typeError:
		if g.calls != nil {
			key := callKey{m.destination, m.replySerial}
			defer g.calls.finish(key)
			if g.calls.isQuiet(key) {
				return len(b), nil
			}
		}
	}
	return g.send(b)
}

// parseSent reads the header of a message of godbus's.
func parseSent(b []byte) (*message, error) {
	m, fields, _, err := parseFixed(b)
	if err == nil && fields > int64(len(b)-fixedSize) {
		err = errHeader
	}
	if err == nil {
		err = m.parseFields(b[fixedSize : fixedSize+fields])
	}
	if err != nil {
		return nil, fmt.Errorf("sending to the bus: %w", err)
	}
	return m, nil
}

// parseFixed reads the part that all messages have, and returns the lengths of the fields and
// of the body.
func parseFixed(b []byte) (m *message, fields, body int64, err error) {
	if len(b) < fixedSize {
		return nil, 0, 0, errHeader
	}
	m = &message{kind: b[1], flags: b[2] & knownFlags}
	switch b[0] {
	case 'l':
		m.order = binary.LittleEndian
	case 'B':
		m.order = binary.BigEndian
	default:
		return nil, 0, 0, errHeader
	}
	body, fields = int64(m.order.Uint32(b[4:])), int64(m.order.Uint32(b[12:]))
	m.serial = m.order.Uint32(b[8:])
	if b[3] != protocolVersion || fixedSize+fields+7+body > maxMessage {
		return nil, 0, 0, errHeader
	}
	return m, fields, body, nil
}

// send writes to the socket.
func (g *guard) send(b []byte) (int, error) {
	g.writing.Lock()
	defer g.writing.Unlock()
	err := g.socket.SetWriteDeadline(time.Now().Add(writeTimeout))
	n := 0
	if err == nil {
		n, err = g.socket.Write(b)
	}
	if err != nil {
		// Half a message may have been sent, so nothing can follow it. If the connection had
		// ended before, that is the reason.
		err = g.fail(fmt.Errorf("sending to the bus: %w", err))
	}
	return n, err
}

// run reads messages until the connection ends.
func (g *guard) run() {
	for {
		err := g.flush()
		if err == nil {
			err = g.take()
		}
		if err != nil {
			if errors.Is(err, io.EOF) || errors.Is(err, io.ErrUnexpectedEOF) || errors.Is(err, syscall.ECONNRESET) {
				err = ErrEnd
			}
			_ = g.fail(err)
			return
		}
	}
}

// take reads one message and decides on it.
func (g *guard) take() error {
	var fixed [fixedSize]byte
	if _, err := io.ReadFull(g.in, fixed[:]); err != nil {
		return err
	}
	m, fields, body, err := parseFixed(fixed[:])
	if err != nil {
		return errors.New("reading from the bus: what it sent is no D-Bus message")
	}
	padded := (fields + 7) &^ 7
	if fields > maxHeader {
		return g.skip(padded + body)
	}
	header := make([]byte, padded)
	if _, err := io.ReadFull(g.in, header); err != nil {
		return err
	}
	if m.parseFields(header[:fields]) != nil || !m.valid() {
		return g.skip(body) // the bus passes no such message on
	}
	m.strip()
	switch m.kind {
	case typeCall:
		return g.takeCall(m, body)
	case typeReply, typeError:
		return g.takeReply(m, body)
	default:
		return g.takeSignal(m, body)
	}
}

func (g *guard) skip(n int64) error {
	_, err := io.CopyN(io.Discard, g.in, n)
	return err
}

func (g *guard) readBody(m *message, n int64) error {
	m.body = make([]byte, n)
	_, err := io.ReadFull(g.in, m.body)
	return err
}

// takeCall queues a method call, or refuses it.
func (g *guard) takeCall(m *message, body int64) error {
	quiet := m.flags&flagNoReply != 0
	if g.calls == nil || len(m.path) > maxPath {
		if err := g.skip(body); err != nil || quiet {
			return err
		}
		if g.calls == nil {
			g.answer(m.sender, m.serial, "org.freedesktop.DBus.Error.UnknownObject", "this connection to the bus has no objects")
		} else {
			g.answer(m.sender, m.serial, "org.freedesktop.DBus.Error.LimitsExceeded", fmt.Sprintf("an object path longer than %d bytes", maxPath))
		}
		return nil
	}
	isSet, given := m.signature == "ssv", m.signature
	if body > maxArguments || m.unixFDs > 0 || !isSet && !g.calls.arguments[m.signature] {
		if err := g.skip(body); err != nil {
			return err
		}
		m.signature = ""
	} else if err := g.readBody(m, body); err != nil {
		return err
	} else if m.checkBody() != nil || isSet && !m.setsText() {
		m.signature, m.body = "", nil
	}
	// godbus answers every call, so that the guard sees its end.
	m.flags &^= flagNoReply
	ask, refused := g.calls.arrive(&call{key: callKey{m.sender, m.serial}, bytes: m.append(nil), quiet: quiet, dropped: m.signature != given})
	if ask {
		sender := m.sender
		if err := g.ask("GetConnectionUnixUser", sender, func(reply *message) { g.identified(sender, reply) }); err != nil {
			return err
		}
	}
	g.refuse(refused)
	return nil
}

// setsText reports whether the value of a call of Set, of signature ssv, is a string.
func (m *message) setsText() bool {
	w := walker{b: m.body, order: m.order}
	w.value("s", 0)
	w.value("s", 0)
	kind, ok := w.signature()
	return ok && kind == "s"
}

// identified takes the answer of the bus with the user of a caller.
func (g *guard) identified(sender string, reply *message) {
	var uid uint32
	ok := reply.kind == typeReply && reply.signature == "u"
	if ok {
		w := walker{b: reply.body, order: reply.order}
		uid, ok = w.uint32()
	}
	g.refuse(g.calls.identified(sender, uid, ok))
}

// refuse answers calls with an error.
func (g *guard) refuse(calls []*call) {
	for _, in := range calls {
		if !in.quiet {
			g.answer(in.key.sender, in.key.serial, "org.freedesktop.DBus.Error.LimitsExceeded", tooMany)
		}
	}
}

// answer answers a call with an error, without godbus.
func (g *guard) answer(to string, serial uint32, name, text string) {
	m := &message{
		order: binary.LittleEndian, kind: typeError, flags: flagNoReply, serial: g.replies.serial(),
		destination: to, replySerial: serial, errorName: name,
	}
	m.setText(text)
	g.answers = m.append(g.answers)
}

// flush sends the guard's answers when there are no more messages to read, or when there are
// many answers: a flood of calls costs a write per batch, not per call.
func (g *guard) flush() error {
	if len(g.answers) == 0 || g.in.Buffered() > 0 && len(g.answers) < chunk {
		return nil
	}
	_, err := g.send(g.answers)
	g.answers = g.answers[:0]
	return err
}

// takeReply passes on an expected reply from the expected sender. It replaces a reply that
// godbus must not decode by an error, so that the caller does not wait until its timeout.
func (g *guard) takeReply(m *message, body int64) error {
	of, then := g.replies.match(m)
	if of == nil && then == nil {
		return g.skip(body)
	}
	problem := ""
	switch {
	case m.unixFDs > 0:
		problem = errFDs.Error()
	case body > g.maxReply:
		problem = fmt.Sprintf("it has %d bytes of arguments, more than %d", body, g.maxReply)
	case then == nil && m.signature == "s" && body >= chunk:
		return g.passText(m, body)
	}
	if problem != "" {
		if err := g.skip(body); err != nil {
			return err
		}
	} else {
		if err := g.readBody(m, body); err != nil {
			return err
		}
		if err := m.checkBody(); err != nil {
			problem = err.Error()
		}
	}
	if problem != "" {
		if m.kind == typeReply {
			m.kind, m.errorName = typeError, "org.freedesktop.DBus.Error.InconsistentMessage"
			problem = "the reply of " + of.destination + " cannot be read: " + problem
		} else {
			problem = m.errorName + " of " + of.destination + ", without words that can be read: " + problem
		}
		m.setText(problem)
	}
	if then != nil {
		then(m)
		return nil
	}
	return g.hand(m.append(nil), false)
}

// passText passes on a reply that is one long string, such as the JSON of networkd, in
// pieces, so that only godbus keeps it in memory.
func (g *guard) passText(m *message, body int64) error {
	var length [4]byte
	if _, err := io.ReadFull(g.in, length[:]); err != nil {
		return err
	}
	if int64(m.order.Uint32(length[:]))+5 != body {
		m.kind, m.errorName = typeError, "org.freedesktop.DBus.Error.InconsistentMessage"
		m.setText("the reply cannot be read: " + errBody.Error())
		if err := g.skip(body - 4); err != nil {
			return err
		}
		return g.hand(m.append(nil), false)
	}
	if err := g.hand(append(m.appendHeader(nil, int(body)), length[:]...), true); err != nil {
		return err
	}
	for left := body - 4; left > 0; {
		part := make([]byte, min(left, chunk))
		if _, err := io.ReadFull(g.in, part); err != nil {
			return err
		}
		left -= int64(len(part))
		if err := g.hand(part, left > 0); err != nil {
			return err
		}
	}
	return nil
}

// takeSignal passes on a subscribed signal if the owner of the sender's name sent it.
func (g *guard) takeSignal(m *message, body int64) error {
	moved := m.sender == busName && m.iface == busName && m.member == "NameOwnerChanged" && m.signature == "sss"
	candidates := slices.ContainsFunc(g.signals, func(s Signal) bool {
		return s.Interface == m.iface && s.Member == m.member && g.replies.is(s.Sender, m.sender)
	})
	if body > maxSignal || !moved && !candidates {
		return g.skip(body)
	}
	if err := g.readBody(m, body); err != nil {
		return err
	}
	if err := m.checkBody(); err != nil {
		return nil //nolint:nilerr // the signal is dropped, and the connection goes on
	}
	if moved {
		change := m.texts()
		g.replies.moved(change[0], change[2])
	}
	first := m.first()
	if !slices.ContainsFunc(g.signals, func(s Signal) bool {
		return s.Interface == m.iface && s.Member == m.member && g.replies.is(s.Sender, m.sender) && (s.Arg0 == "" || s.Arg0 == first)
	}) {
		return nil
	}
	return g.hand(m.append(nil), false)
}

// isOwner reports whether only one connection can ever own the name: a unique name, or the
// name of the bus.
func isOwner(name string) bool {
	return name == "" || name == busName || strings.HasPrefix(name, ":")
}

// watch asks the bus for the owner of a name, now and on changes. The bus answers before it
// delivers a reply or a signal of the owner.
func (g *guard) watch(name string) error {
	if isOwner(name) || !g.replies.watch(name) {
		return nil
	}
	rule := "type='signal',sender='" + busName + "',interface='" + busName + "',member='NameOwnerChanged',arg0='" + name + "'"
	if err := g.ask("AddMatch", rule, func(*message) {}); err != nil {
		return err
	}
	return g.ask("GetNameOwner", name, func(reply *message) {
		owner := ""
		if reply.kind == typeReply {
			owner = reply.first()
		}
		g.replies.moved(name, owner)
	})
}

// ask calls a method of the bus with one string. It passes the answer to then, in the order
// of the stream; then must not block.
func (g *guard) ask(member, argument string, then func(*message)) error {
	m := &message{
		order: binary.LittleEndian, kind: typeCall, serial: g.replies.serial(),
		destination: busName, path: "/org/freedesktop/DBus", iface: busName, member: member,
	}
	m.setText(argument)
	g.replies.ask(m.serial, then)
	_, err := g.send(m.append(nil))
	return err
}

// serial returns the next serial of the guard's own messages.
func (r *replies) serial() uint32 {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.next = (r.next + 1) &^ ownSerials
	return r.next | ownSerials
}

func (r *replies) ask(serial uint32, then func(*message)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	r.asked[serial] = then
}

// await notes a call that was sent.
func (r *replies) await(m *message) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.awaited) >= maxAwaited {
		// Each call has a deadline, so nobody waits for the oldest any more.
		delete(r.awaited, slices.Min(slices.Collect(maps.Keys(r.awaited))))
	}
	r.awaited[m.serial] = awaited{m.destination, r.owners[m.destination]}
}

// match finds the call to which a reply belongs: one of godbus, or a question of the guard.
// It finds none if the sender is neither the called connection nor the bus.
func (r *replies) match(m *message) (of *awaited, then func(*message)) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if then = r.asked[m.replySerial]; then != nil {
		if m.sender != busName {
			return nil, nil
		}
		delete(r.asked, m.replySerial)
		return &awaited{destination: busName}, then
	}
	call, ok := r.awaited[m.replySerial]
	if !ok {
		return nil, nil
	}
	owner, watched := r.owners[call.destination]
	switch {
	case m.sender == busName, m.sender == call.destination:
	case watched && m.sender != "" && (m.sender == owner || m.sender == call.owner):
	default:
		return nil, nil
	}
	delete(r.awaited, m.replySerial)
	return &call, nil
}

// watch records that the owner of a name is watched from now on, and reports whether that is
// new.
func (r *replies) watch(name string) bool {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.owners[name]; ok {
		return false
	}
	r.owners[name] = ""
	return true
}

// moved records a new owner of a name, if the name is watched.
func (r *replies) moved(name, owner string) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if _, ok := r.owners[name]; ok {
		r.owners[name] = owner
	}
}

// is reports whether the connection sender owns the name.
func (r *replies) is(name, sender string) bool {
	if sender == "" {
		return false
	}
	if isOwner(name) {
		return name == sender
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.owners[name] == sender
}
