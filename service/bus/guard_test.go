package bus

import (
	"bytes"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"reflect"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	caller  = ":1.7"
	service = "org.example.Service"
	owner   = ":1.8"
)

// stream is a socket with given data to read. It keeps the data that is written to it.
type stream struct {
	net.Conn
	io.Reader
	sent *bytes.Buffer
}

func (s stream) Read(b []byte) (int, error)       { return s.Reader.Read(b) }
func (s stream) Write(b []byte) (int, error)      { return s.sent.Write(b) }
func (s stream) SetWriteDeadline(time.Time) error { return nil }
func (s stream) Close() error                     { return nil }

// guarded returns a guard after the handshake. It knows that the caller is user 1000, expects
// a reply of the service to serial 1, and has subscribed to a signal of the bus and to one of
// the service.
func guarded(r io.Reader) *guard {
	calls := NewCalls(map[string]bool{"": true, "s": true, "b": true})
	calls.known[caller] = 1000
	g := newGuard(stream{Reader: r, sent: &bytes.Buffer{}}, &Options{Calls: calls, Signals: []Signal{
		{Sender: busName, Interface: busName, Member: "NameOwnerChanged", Arg0: service},
		{Sender: service, Interface: "org.example.Service", Member: "Changed"},
	}})
	g.begun.Store(true)
	g.replies.owners[service] = owner
	g.replies.await(&message{serial: 1, destination: service})
	go g.run()
	return g
}

// received decodes everything that a guard passes on, as godbus does.
func received(t testing.TB, g *guard) (all []*dbus.Message) {
	t.Helper()
	for {
		m, err := dbus.DecodeMessage(g)
		if err != nil {
			if !errors.Is(err, g.reason()) {
				t.Fatalf("godbus cannot decode what came through: %v", err)
			}
			return all
		}
		if m.Type == dbus.TypeMethodCall {
			sender, _ := m.Headers[dbus.FieldSender].Value().(string)
			g.calls.finish(callKey{sender, m.Serial()})
		}
		all = append(all, m)
	}
}

// encode encodes a message as the bus sends it.
func encode(t testing.TB, m *dbus.Message, order binary.ByteOrder) []byte {
	t.Helper()
	if len(m.Body) > 0 {
		m.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(m.Body...))
	}
	var b bytes.Buffer
	if err := m.EncodeTo(&b, order); err != nil {
		t.Fatal(err)
	}
	order.PutUint32(b.Bytes()[8:], 7)
	return b.Bytes()
}

// with adds raw header fields and a raw body to an encoded message.
func with(raw []byte, order binary.ByteOrder, fields, body []byte) []byte {
	length := order.Uint32(raw[12:])
	head := pad(slices.Clone(raw[:fixedSize+length]), 0, 8)
	head = append(head, fields...)
	order.PutUint32(head[12:], uint32(len(head)-fixedSize))
	order.PutUint32(head[4:], uint32(len(body)))
	return append(pad(head, 0, 8), body...)
}

func headers(path dbus.ObjectPath, iface, member, sender string) map[dbus.HeaderField]dbus.Variant {
	return map[dbus.HeaderField]dbus.Variant{
		dbus.FieldPath: dbus.MakeVariant(path), dbus.FieldInterface: dbus.MakeVariant(iface),
		dbus.FieldMember: dbus.MakeVariant(member), dbus.FieldSender: dbus.MakeVariant(sender),
		dbus.FieldDestination: dbus.MakeVariant(":1.1"),
	}
}

func methodCall(member string, body ...any) *dbus.Message {
	return &dbus.Message{Type: dbus.TypeMethodCall, Headers: headers("/org/example", "org.example.Manager", member, caller), Body: body}
}

func signal(sender, iface, member string, body ...any) *dbus.Message {
	return &dbus.Message{Type: dbus.TypeSignal, Headers: headers("/org/example", iface, member, sender), Body: body}
}

func reply(kind dbus.Type, sender string, serial uint32, body ...any) *dbus.Message {
	m := &dbus.Message{Type: kind, Body: body, Headers: map[dbus.HeaderField]dbus.Variant{
		dbus.FieldReplySerial: dbus.MakeVariant(serial), dbus.FieldSender: dbus.MakeVariant(sender), dbus.FieldDestination: dbus.MakeVariant(":1.1"),
	}}
	if kind == dbus.TypeError {
		m.Headers[dbus.FieldErrorName] = dbus.MakeVariant("org.example.Error.No")
	}
	return m
}

// nested returns a variant that is n levels deep.
func nested(n int) dbus.Variant {
	v := dbus.MakeVariant("x")
	for range n - 1 {
		v = dbus.MakeVariant(v)
	}
	return v
}

// unknown returns a header field that is unknown to the specification, with a value of a kind.
func unknown(code byte, kind string, value ...byte) []byte {
	return append(append(append([]byte{code, byte(len(kind))}, kind...), 0), value...)
}

// TestGuard sends one message of each kind and checks what the guard passes on.
func TestGuard(t *testing.T) { // J1
	huge := methodCall("Describe")
	huge.Headers[dbus.FieldPath] = dbus.MakeVariant(dbus.ObjectPath("/" + strings.Repeat("a", maxHeader)))
	long := methodCall("Describe")
	long.Headers[dbus.FieldPath] = dbus.MakeVariant(dbus.ObjectPath("/" + strings.Repeat("a", maxPath)))
	fds := methodCall("Describe", dbus.UnixFDIndex(0))
	fds.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(1))
	set := func(v any) *dbus.Message { return methodCall("Set", "a.b", "c", dbus.MakeVariant(v)) }
	fdReply := reply(dbus.TypeMethodReply, owner, 1, []dbus.UnixFDIndex{0})
	fdReply.Headers[dbus.FieldUnixFDs] = dbus.MakeVariant(uint32(1))
	var tooDeep, tooLarge, hasFDs = []any{"nested more than"}, []any{"more than 1048576"}, []any{"file descriptors"}
	for _, c := range []struct {
		name string
		in   *dbus.Message
		pass bool
		// body is what the guard passes on; for an error, words in its text.
		body []any
	}{
		{"call without arguments", methodCall("Describe"), true, nil},
		{"call with arguments", methodCall("Get", "ens5"), true, []any{"ens5"}},
		{"call with others", methodCall("Get", uint32(1), "x"), true, nil},
		{"call with large ones", methodCall("Get", strings.Repeat("x", maxArguments)), true, nil},
		{"call with 30 MiB", methodCall("Get", strings.Repeat("x", 30<<20)), true, nil},
		{"call with deep ones", methodCall("Get", nested(62)), true, nil},
		{"call with descriptors", fds, true, nil},
		{"set to a text", set("x"), true, []any{"a.b", "c", dbus.MakeVariant("x")}},
		{"set to a number", set(uint32(1)), true, nil},
		{"set to something deep", set(nested(62)), true, nil},
		{"set to a descriptor", set(dbus.UnixFDIndex(0)), true, nil},
		{"call of a long path", long, false, nil},
		{"call of a path without end", huge, false, nil},
		{"reply", reply(dbus.TypeMethodReply, owner, 1, "words", map[string]dbus.Variant{"a": nested(3)}), true, []any{"words", map[string]dbus.Variant{"a": nested(3)}}},
		{"reply of the bus", reply(dbus.TypeError, busName, 1, "gone"), true, []any{"gone"}},
		{"long reply", reply(dbus.TypeMethodReply, owner, 1, strings.Repeat("é", 100_000)), true, []any{strings.Repeat("é", 100_000)}},
		{"reply of another", reply(dbus.TypeMethodReply, caller, 1, "words"), false, nil},
		{"reply to nothing", reply(dbus.TypeMethodReply, owner, 2, "words"), false, nil},
		{"deep reply", reply(dbus.TypeMethodReply, owner, 1, nested(62)), true, tooDeep},
		{"deep error", reply(dbus.TypeError, owner, 1, nested(62)), true, tooDeep},
		{"large reply", reply(dbus.TypeMethodReply, owner, 1, strings.Repeat("x", DefaultMaxReply)), true, tooLarge},
		{"reply with descriptors", fdReply, true, hasFDs},
		{"signal of the bus", signal(busName, busName, "NameOwnerChanged", service, owner, ""), true, []any{service, owner, ""}},
		{"forged signal of the bus", signal(caller, busName, "NameOwnerChanged", service, owner, ""), false, nil},
		{"signal of the bus of another name", signal(busName, busName, "NameOwnerChanged", "org.example.Other", owner, ""), false, nil},
		{"another signal of the bus", signal(busName, busName, "NameLost"), false, nil},
		{"signal of the service", signal(owner, "org.example.Service", "Changed", uint32(3)), true, []any{uint32(3)}},
		{"another signal of the service", signal(owner, "org.example.Service", "Other", uint32(3)), false, nil},
		{"signal of another", signal(caller, "org.example.Service", "Changed", uint32(3)), false, nil},
		{"deep signal of the service", signal(owner, "org.example.Service", "Changed", nested(62)), false, nil},
		{"large signal of the service", signal(owner, "org.example.Service", "Changed", strings.Repeat("x", maxSignal)), false, nil},
		{"signal with descriptors", signal(owner, "org.example.Service", "Changed", []dbus.UnixFDIndex{0}), false, nil},
	} {
		for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
			t.Run(fmt.Sprint(c.name, order), func(t *testing.T) {
				raw := encode(t, c.in, order)
				last := encode(t, methodCall("Last"), order)
				order.PutUint32(last[8:], 8)
				got := received(t, guarded(bytes.NewReader(append(raw, last...))))
				if n := len(got); n == 0 || got[n-1].Headers[dbus.FieldMember].Value() != "Last" {
					t.Fatalf("the message behind it did not come: %v", got)
				}
				if !c.pass {
					if len(got) != 1 {
						t.Errorf("came through: %v", got[0])
					}
					return
				}
				if len(got) != 2 {
					t.Fatalf("got %d messages", len(got))
				}
				body := got[0].Body
				if got[0].Type == dbus.TypeError && c.in.Headers[dbus.FieldSender].Value() != busName {
					if len(body) != 1 || !strings.Contains(body[0].(string), c.body[0].(string)) {
						t.Errorf("the error says %v", body)
					}
				} else if !reflect.DeepEqual(body, c.body) {
					t.Errorf("got %.100v", body)
				}
				for _, f := range []dbus.HeaderField{dbus.FieldPath, dbus.FieldMember, dbus.FieldSender, dbus.FieldReplySerial} {
					if got[0].Headers[f] != c.in.Headers[f] {
						t.Errorf("field %d is %v", f, got[0].Headers[f])
					}
				}
			})
		}
	}
}

// TestUnknownFields: header fields that are unknown to the specification are skipped,
// including those with containers; a malformed field only affects its own message.
func TestUnknownFields(t *testing.T) { // J1
	deep := unknown(200, "v")
	for range 62 {
		deep = append(deep, 1, 'v', 0)
	}
	deep = append(deep, 1, 'y', 0, 9)
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		u32 := func(n uint32) []byte { b := make([]byte, 4); order.PutUint32(b, n); return b }
		text := append(append([]byte{1, 's', 0, 0}, u32(1)...), 'x', 0) // aligned behind code and "v"
		array := append(pad(unknown(255, "a(yt)"), 0, 4), append(u32(32), make([]byte, 4+32)...)...)
		var many []byte
		for range 4000 {
			many = append(pad(many, 0, 8), unknown(11, "y", 1)...)
		}
		for _, c := range []struct {
			name   string
			fields []byte
			pass   bool
		}{
			{"a string", append(append(unknown(10, "s"), u32(3)...), 'a', 'b', 'c', 0), true},
			{"a variant of a string", append(unknown(200, "v"), text...), true},
			{"an array of structs", array, true},
			{"62 variants", deep, true},
			{"thousands", many, true},
			{"a value that is cut off", append(unknown(10, "s"), u32(1000)...), false},
			{"a type that is none", unknown(10, "Z", 1), false},
			{"a second sender", append(append(unknown(fieldSender, "s"), u32(2)...), ':', '9', 0), false},
			{"a field of code 0", unknown(0, "y", 1), false},
		} {
			raw := with(encode(t, methodCall("Describe"), order), order, c.fields, nil)
			last := encode(t, methodCall("Last"), order)
			order.PutUint32(last[8:], 8)
			got := received(t, guarded(bytes.NewReader(append(raw, last...))))
			var members []string
			for _, m := range got {
				members = append(members, m.Headers[dbus.FieldMember].Value().(string))
			}
			want := []string{"Last"}
			if c.pass {
				want = []string{"Describe", "Last"}
			}
			if !slices.Equal(members, want) {
				t.Errorf("%v: %s: came through: %q, want %q", order, c.name, members, want)
			}
		}
	}
}

// TestOwner: only the owner of a name at that place of the stream may reply and signal for it.
func TestOwner(t *testing.T) { // J1
	changed := func(sender string) *dbus.Message { return signal(sender, "org.example.Service", "Changed", sender) }
	moved := func(to string) *dbus.Message { return signal(busName, busName, "NameOwnerChanged", service, owner, to) }
	var raw []byte
	for _, m := range []*dbus.Message{
		changed(owner), changed(":1.9"), signal(":1.9", busName, "NameOwnerChanged", service, owner, ":1.9"), changed(":1.9"),
		moved(":1.9"), changed(owner), changed(":1.9"), moved(""), changed(owner), changed(":1.9"), changed(busName),
	} {
		raw = append(raw, encode(t, m, binary.LittleEndian)...)
	}
	var got []any
	for _, m := range received(t, guarded(bytes.NewReader(raw))) {
		if m.Headers[dbus.FieldMember].Value() == "Changed" {
			got = append(got, m.Body[0])
		}
	}
	if want := []any{owner, ":1.9"}; !reflect.DeepEqual(got, want) {
		t.Errorf("signals of %v, want %v", got, want)
	}
}

// TestMalformedStream: invalid data ends the connection, with a reason.
func TestMalformedStream(t *testing.T) {
	good := encode(t, methodCall("Describe"), binary.LittleEndian)
	version := slices.Clone(good)
	version[3] = 2
	long := slices.Clone(good)
	binary.LittleEndian.PutUint32(long[4:], 1<<31)
	for name, raw := range map[string][]byte{"text": []byte("HTTP/1.1 400 Bad Request"), "another version": version, "a length that cannot be": long} {
		g := guarded(bytes.NewReader(raw))
		if got := received(t, g); len(got) > 0 || g.reason() == nil || !strings.Contains(g.reason().Error(), "no D-Bus message") {
			t.Errorf("%s: %v, reason %v", name, got, g.reason())
		}
	}
	for cut := range len(good) {
		g := guarded(bytes.NewReader(good[:cut]))
		if got := received(t, g); len(got) > 0 || !errors.Is(g.reason(), ErrEnd) {
			t.Errorf("cut at %d: %v, reason %v", cut, got, g.reason())
		}
	}
}

// TestSkippedCostsNothing: skipped messages are not kept in memory.
func TestSkippedCostsNothing(t *testing.T) { // J1
	const n, size = 10, 30 << 20
	body := dbus.MakeVariant(strings.Repeat("x", size))
	var all []io.Reader
	for _, m := range []*dbus.Message{
		signal(caller, "org.example.Service", "Changed", body), methodCall("Get", body), reply(dbus.TypeMethodReply, owner, 9, body),
		signal(owner, "org.example.Service", "Changed", body), reply(dbus.TypeMethodReply, owner, 1, body),
	} {
		raw := encode(t, m, binary.LittleEndian)
		for range n {
			all = append(all, bytes.NewReader(raw))
		}
	}
	var before, after runtime.MemStats
	runtime.ReadMemStats(&before)
	received(t, guarded(io.MultiReader(all...)))
	runtime.ReadMemStats(&after)
	if got := after.TotalAlloc - before.TotalAlloc; got > 1<<20 {
		t.Errorf("%d MiB of messages cost %d KiB", len(all)*size>>20, got>>10)
	}
}

// FuzzMessages: whatever bytes follow the handshake, nothing panics, godbus can decode
// everything that the guard passes on, no message is nested deeply, and the guard neither
// passes on nor keeps more than it has received.
func FuzzMessages(f *testing.F) {
	for _, order := range []binary.ByteOrder{binary.LittleEndian, binary.BigEndian} {
		for _, m := range []*dbus.Message{
			methodCall("Describe"), methodCall("Get", uint32(1)), methodCall("Get", "x"), methodCall("Set", "a", "b", nested(3)),
			signal(caller, "org.example.Service", "Changed", nested(2)),
			signal(owner, "org.example.Service", "Changed", map[string]dbus.Variant{"a": nested(2)}, []uint64{1}, []struct{ A, B string }{{"a", "b"}}),
			signal(busName, busName, "NameOwnerChanged", service, "", owner), reply(dbus.TypeMethodReply, owner, 1, "x", true, dbus.ObjectPath("/"), 1.5),
			reply(dbus.TypeMethodReply, owner, 1, strings.Repeat("x", chunk)), reply(dbus.TypeError, busName, 1, "no"),
		} {
			raw := encode(f, m, order)
			f.Add(raw)
			f.Add(append(with(raw, order, unknown(10, "y", 1), nil), raw...))
		}
	}
	f.Fuzz(func(t *testing.T, raw []byte) {
		g := guarded(bytes.NewReader(raw))
		n := 0
		for _, m := range received(t, g) {
			n++
			if m.Type == dbus.TypeMethodCall && len(m.Body) > 0 && m.Headers[dbus.FieldSignature].String() == "" {
				t.Errorf("arguments without a signature: %v", m)
			}
			for _, v := range m.Body {
				if d := depth(reflect.ValueOf(v)); d > maxDepth {
					t.Errorf("%d levels came through", d)
				}
			}
		}
		// Each message has at least 16 bytes.
		if n > len(raw)/fixedSize {
			t.Errorf("%d bytes became %d messages", len(raw), n)
		}
		if held := g.calls.heldBytes; held > len(raw)+fixedSize {
			t.Errorf("%d bytes are held of %d", held, len(raw))
		}
	})
}

// depth counts nested variants.
func depth(v reflect.Value) (most int) {
	switch v.Kind() {
	case reflect.Interface:
		return depth(v.Elem())
	case reflect.Slice:
		for i := range v.Len() {
			most = max(most, depth(v.Index(i)))
		}
	case reflect.Map:
		for _, k := range v.MapKeys() {
			most = max(most, depth(v.MapIndex(k)))
		}
	case reflect.Struct:
		if variant, ok := v.Interface().(dbus.Variant); ok {
			return 1 + depth(reflect.ValueOf(variant.Value()))
		}
	}
	return most
}

// TestSignatures compares single with godbus, except for signatures that the specification
// forbids.
func TestSignatures(t *testing.T) {
	for s, want := range map[string]int{
		"": 0, "y": 1, "sv": 1, "as": 2, "a{sv}": 5, "a{s(ii)}x": 8, "(s)": 3, "((y)a{oas})": 11, "aa{yv}": 6,
		"a": 0, "()": 0, "(s": 0, "a{sv": 0, "a{s}": 0, "{sv}": 0, "a{vs}": 0, "a{(s)s}": 0, "a{svv}": 0, ")": 0, "e": 0, "m": 0,
		strings.Repeat("a", 32) + "y": 33, strings.Repeat("a", 33) + "y": 0,
		strings.Repeat("(", 32) + "y" + strings.Repeat(")", 32): 65, strings.Repeat("(", 33) + "y" + strings.Repeat(")", 33): 0,
	} {
		if got := single(s); got != want {
			t.Errorf("single(%q) = %d, want %d", s, got, want)
		}
		if n := single(s); n > 0 {
			if _, err := dbus.ParseSignature(s[:n]); err != nil {
				t.Errorf("godbus does not take %q: %v", s[:n], err)
			}
		}
	}
}

// BenchmarkRefuse measures the cost of a call beyond the limits.
func BenchmarkRefuse(b *testing.B) {
	raw := encode(b, methodCall("Describe"), binary.LittleEndian)
	g := guarded(bytes.NewReader(bytes.Repeat(raw, b.N)))
	g.calls.mu.Lock()
	g.calls.senders[caller] = maxSender
	g.calls.mu.Unlock()
	b.ReportAllocs()
	if got := received(b, g); len(got) > 1 {
		b.Errorf("%d came through", len(got))
	}
}
