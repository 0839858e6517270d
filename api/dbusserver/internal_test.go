package dbusserver

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"log/slog"
	"net"
	"reflect"
	"slices"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/service/bus"
	"ec2netd/service/state"
)

// TestContract compares the code with the XML: each method has a handler and each handler a
// method; the properties have the names and types in the XML.
func TestContract(t *testing.T) { // H1
	c, err := newContract()
	if err != nil {
		t.Fatal(err)
	}
	table := handlers()
	for name, i := range c.interfaces {
		if name == peerInterface {
			continue
		}
		var documented, handled []string
		for _, m := range i.Methods {
			documented = append(documented, m.Name)
		}
		for m := range table[name] {
			handled = append(handled, m)
		}
		slices.Sort(documented)
		slices.Sort(handled)
		if !slices.Equal(documented, handled) {
			t.Errorf("%s: the XML has the methods %q, the code %q", name, documented, handled)
		}
	}
	v := newView(apitest.State())
	for name, p := range map[string]properties{
		api.ManagerInterface:   v.manager,
		api.InterfaceInterface: newENIObject(&v.state.Interfaces[2]).properties, // the one with nil slices
	} {
		documented := map[string]string{}
		for _, d := range c.interfaces[name].Properties {
			documented[d.Name] = d.Type
			if d.Access != "read" {
				t.Errorf("%s.%s is not read-only", name, d.Name)
			}
		}
		served := map[string]string{}
		for property, value := range p {
			served[property] = value.Signature().String()
		}
		if !reflect.DeepEqual(documented, served) {
			t.Errorf("%s: the XML has\n%v\nthe code\n%v", name, documented, served)
		}
	}
	if want := (map[string]bool{"MetadataLastSuccess": true, "MetadataRequests": true, "MetadataErrors": true}); !reflect.DeepEqual(c.quiet[api.ManagerInterface], want) {
		t.Errorf("quiet properties: %v", c.quiet)
	}
}

func TestValues(t *testing.T) {
	s := apitest.State()
	p := managerProperties(s)
	for name, want := range map[string]any{
		"State": "configured", "InstanceId": "i-0123456789abcdef0", "NetworkdReloads": uint64(3),
		"NetworkdRunning": true, "LastChange": uint64(s.LastChange.UnixMicro()),
	} {
		if got := p[name].Value(); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
	e := state.Interface{Name: "a\xff\x00b", DeviceIndex: state.Unknown}
	p = newENIObject(&e).properties
	for name, want := range map[string]any{"Name": "a\uFFFD\uFFFDb", "DeviceIndex": int32(-1), "Since": uint64(0)} {
		if got := p[name].Value(); got != want {
			t.Errorf("%s = %v, want %v", name, got, want)
		}
	}
}

// C3: two links with the same MAC address have separate objects.
func TestSameMAC(t *testing.T) {
	s := &state.State{Interfaces: []state.Interface{
		{MAC: "02:00:00:00:00:0a", Name: "ens5"}, {MAC: "02:00:00:00:00:0b", Name: "ens6"}, {MAC: "02:00:00:00:00:0b", Name: "v0"},
	}}
	v := newView(s)
	if len(v.interfaces) != 3 {
		t.Errorf("objects: %v", v.interfaces)
	}
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		if got := v.interfaces[v.paths[e]].properties["Name"].Value(); got != e.Name {
			t.Errorf("%s leads to %v", v.paths[e], got)
		}
	}
}

func TestEscapeLabel(t *testing.T) {
	for in, want := range map[string]string{
		"":                      "_",
		"eni-0a1b2c3d4e5f60001": "eni_2d0a1b2c3d4e5f60001",
		"02:00:00:00:00:03":     "_302_3a00_3a00_3a00_3a00_3a03",
		"a_b/c\x00é":            "a_5fb_2fc_00_c3_a9",
	} {
		if got := escapeLabel(in); got != want {
			t.Errorf("escapeLabel(%q) = %q, want %q", in, got, want)
		}
		if p := dbus.ObjectPath(api.InterfacePath + "/" + escapeLabel(in)); !p.IsValid() {
			t.Errorf("%s is no object path", p)
		}
	}
}

func methodCall(member string, body ...any) *dbus.Message {
	return &dbus.Message{
		Type: dbus.TypeMethodCall,
		Headers: map[dbus.HeaderField]dbus.Variant{
			dbus.FieldPath:        dbus.MakeVariant(dbus.ObjectPath(api.ObjectPath)),
			dbus.FieldInterface:   dbus.MakeVariant(api.ManagerInterface),
			dbus.FieldMember:      dbus.MakeVariant(member),
			dbus.FieldDestination: dbus.MakeVariant(api.BusName),
			dbus.FieldSender:      dbus.MakeVariant(":1.7"),
		},
		Body: body,
	}
}

// noted is a log that records whether a call panicked.
type noted struct {
	slog.Handler
	said *bool
}

func (noted) Enabled(context.Context, slog.Level) bool { return true }
func (n noted) Handle(_ context.Context, r slog.Record) error {
	*n.said = *n.said || r.Level >= slog.LevelError
	return nil
}

// refuses permits nothing to anybody.
type refuses struct{}

func (refuses) Authorize(context.Context, api.Caller, string) error { return errors.New("no") }

// FuzzArguments: whatever object, method and arguments a call has, the answer is a D-Bus
// error or values that can be sent, whatever bytes a text contains. No call panics, and no
// unauthorized call causes a refresh (D4).
func FuzzArguments(f *testing.F) {
	for _, seed := range [][5]string{
		{api.ObjectPath, api.ManagerInterface, "GetInterface", "ens5", ""},
		{api.ObjectPath, "", "GetInterface", "02:00:00:00:00:01", ""},
		{api.ObjectPath, propertiesInterface, "Get", api.ManagerInterface, "State"},
		{api.InterfacePath + "/eni_2d0a1b2c3d4e5f60001", propertiesInterface, "GetAll", api.InterfaceInterface, ""},
		{logControlPath, propertiesInterface, "Set", logControlInterface, "LogLevel"},
		{api.ObjectPath, api.ManagerInterface, "Refresh", "", ""},
		{api.ObjectPath, api.ManagerInterface, "Describe", "", ""},
		{"/", objectManagerInterface, "GetManagedObjects", "", ""},
		{"/org", introspectInterface, "Introspect", "", "\n"},
	} {
		for kind := range uint8(5) {
			f.Add(seed[0], seed[1], seed[2], kind, seed[3], seed[4])
		}
	}
	c, err := newContract()
	if err != nil {
		f.Fatal(err)
	}
	// Nothing answers on it, so the caller is unknown.
	ours, theirs := net.Pipe()
	conn, err := dbus.NewConn(ours)
	if err != nil {
		f.Fatal(err)
	}
	conn.Close()
	theirs.Close()
	f.Fuzz(func(t *testing.T, path, iface, member string, kind uint8, one, two string) {
		in := methodCall(member)
		in.Headers[dbus.FieldPath] = dbus.MakeVariant(dbus.ObjectPath(path))
		in.Headers[dbus.FieldInterface] = dbus.MakeVariant(iface)
		if iface == "" {
			delete(in.Headers, dbus.FieldInterface)
		}
		in.Body = [][]any{nil, {one}, {one, two}, {one, two, dbus.MakeVariant(one)}, {len(one)%2 == 0}}[kind%5]
		if len(in.Body) > 0 {
			in.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(in.Body...))
		}
		var raw, sent bytes.Buffer
		if in.EncodeTo(&raw, binary.LittleEndian) != nil {
			return // the bus does not permit such a call
		}
		msg, err := dbus.DecodeMessage(&raw)
		if err != nil {
			return
		}
		panicked := false
		agent := apitest.NewAgent(apitest.State())
		o := Options{Agent: agent, Authorizer: refuses{}, Log: noLog{}, Logger: slog.New(noted{slog.DiscardHandler, &panicked}), RefreshTimeout: time.Minute}
		answering := &call{tree: newTree(&o, c, bus.NewCalls(c.inSignatures())), path: dbus.ObjectPath(path), iface: iface, member: member}
		if _, err := answering.DecodeArguments(conn, ":1.7", msg, nil); err != nil {
			t.Fatal(err)
		}
		out, err := answering.Call()
		var failed dbus.Error
		switch {
		case errors.As(err, &failed):
			out = failed.Body
		case err != nil:
			t.Errorf("the error is none of D-Bus: %v", err)
		}
		reply := &dbus.Message{Type: dbus.TypeMethodReply, Headers: map[dbus.HeaderField]dbus.Variant{dbus.FieldReplySerial: dbus.MakeVariant(uint32(1))}, Body: out}
		if len(out) > 0 {
			reply.Headers[dbus.FieldSignature] = dbus.MakeVariant(dbus.SignatureOf(out...))
		}
		if err := reply.EncodeTo(&sent, binary.LittleEndian); err != nil {
			t.Errorf("the answer %v cannot be sent: %v", out, err)
		}
		if refreshed := len(agent.Refreshed()) > 0; refreshed || panicked {
			t.Errorf("refreshed %v, panicked %v", refreshed, panicked)
		}
	})
}
