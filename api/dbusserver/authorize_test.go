package dbusserver_test

import (
	"errors"
	"log/slog"
	"os"
	"os/exec"
	"slices"
	"strings"
	"sync"
	"testing"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
	"ec2netd/api/polkit"
	"ec2netd/service/journal"
)

// authority is a polkit that lets one caller do what is asked.
type authority struct {
	mu     sync.Mutex
	allows string
	asked  []string
}

type polkitResult struct {
	Authorized, Challenge bool
	Details               map[string]string
}

type polkitSubject struct {
	Kind    string
	Details map[string]dbus.Variant
}

func (a *authority) CheckAuthorization(subject polkitSubject, action string, _ map[string]string, flags uint32, _ string) (polkitResult, *dbus.Error) {
	a.mu.Lock()
	defer a.mu.Unlock()
	who := subject.Kind
	for _, key := range []string{"name", "pid", "uid"} {
		if value, ok := subject.Details[key]; ok {
			who += " " + strings.Trim(value.String(), `"`)
		}
	}
	line := who + " " + action
	if flags == 1 {
		line += " interactive"
	}
	a.asked = append(a.asked, line)
	return polkitResult{Authorized: strings.HasPrefix(line, a.allows)}, nil
}

func TestPolkit(t *testing.T) { // H1, H2
	b := newBus(t)
	b.Start()
	p := &polkit.Authorizer{Address: b.Address}
	defer p.Close()
	var refused *api.NotPermittedError
	user := api.Caller{UID: 1000, PID: 77}

	// Without polkit it is for root.
	if err := p.Authorize(t.Context(), user, api.ActionRefresh); !errors.As(err, &refused) {
		t.Errorf("without polkit: %v", err)
	}
	if err := p.Authorize(t.Context(), api.Caller{}, api.ActionRefresh); err != nil {
		t.Errorf("root: %v", err)
	}

	fake := &authority{allows: "system-bus-name :1.7"}
	c := b.Dial()
	if err := c.Export(fake, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	if err := p.Authorize(t.Context(), user, api.ActionRefresh); !errors.As(err, &refused) {
		t.Errorf("who may not: %v", err)
	}
	if err := p.Authorize(t.Context(), api.Caller{UID: 1000, BusName: ":1.7", Interactive: true}, api.ActionSetLog); err != nil {
		t.Errorf("who may: %v", err)
	}
	// The bus restarts, and takes polkit with it: nobody may by mistake.
	b.Stop()
	if err := p.Authorize(t.Context(), api.Caller{UID: 1000, BusName: ":1.7"}, api.ActionRefresh); err == nil {
		t.Error("without a bus")
	}
	b.Start()
	if err := p.Authorize(t.Context(), api.Caller{UID: 1000, BusName: ":1.7"}, api.ActionRefresh); !errors.As(err, &refused) {
		t.Errorf("after the bus restarted: %v", err)
	}
	want := []string{
		"unix-process 77 1000 org.ec2netd1.refresh", "system-bus-name :1.7 org.ec2netd1.set-log interactive",
	}
	for i, line := range fake.asked {
		fake.asked[i] = strings.NewReplacer("@u ", "", "@i ", "").Replace(line)
	}
	if !slices.Equal(fake.asked, want) {
		t.Errorf("polkit was asked %q", fake.asked)
	}
}

func TestPolicyFile(t *testing.T) {
	text, err := os.ReadFile("../../units/polkit-1/org.ec2netd1.policy")
	if err != nil {
		t.Fatal(err)
	}
	for _, action := range []string{api.ActionRefresh, api.ActionSetLog} {
		if !strings.Contains(string(text), `<action id="`+action+`">`) {
			t.Errorf("the policy has no %s", action)
		}
	}
}

// I1: the level and the target can be changed while the daemon runs, by root.
func TestLogControl(t *testing.T) {
	b := newBus(t)
	b.Start()
	log := journal.NewLog(slog.LevelInfo, t.Output())
	b.serve(dbusserver.Options{Log: log, Authorizer: allowAll{}})
	o := object(b.Dial(), "/org/freedesktop/LogControl1")
	const iface, get, set = "org.freedesktop.LogControl1", "org.freedesktop.DBus.Properties.Get", "org.freedesktop.DBus.Properties.Set"
	for name, want := range map[string]string{"LogLevel": "info", "LogTarget": log.Target(), "SyslogIdentifier": "ec2netd"} {
		if out, err := call(o, get, iface, name); err != nil || out[0].(dbus.Variant).Value() != want {
			t.Errorf("%s = %v, %v", name, out, err)
		}
	}
	for name, value := range map[string]string{"LogLevel": "debug", "LogTarget": "null"} {
		if _, err := call(o, set, iface, name, dbus.MakeVariant(value)); err != nil {
			t.Errorf("setting %s: %v", name, err)
		}
	}
	if log.Level() != "debug" || log.Target() != "null" || log.Logger().Enabled(t.Context(), slog.LevelDebug) {
		t.Errorf("the log is %s to %s", log.Level(), log.Target())
	}
	e := "org.freedesktop.DBus.Error."
	for _, bad := range []struct {
		name  string
		value any
		want  string
	}{
		{"LogLevel", "loud", e + "InvalidArgs"}, {"LogTarget", strings.Repeat("x", 3000), e + "InvalidArgs"},
		{"LogTarget", strings.Repeat("x", 5000), e + "PropertyReadOnly"}, {"LogLevel", 7, e + "PropertyReadOnly"},
		{"SyslogIdentifier", "x", e + "PropertyReadOnly"},
	} {
		if _, err := call(o, set, iface, bad.name, dbus.MakeVariant(bad.value)); errorName(err) != bad.want {
			t.Errorf("setting %s to %.20v: %v", bad.name, bad.value, err)
		}
	}
	if out, err := exec.Command("busctl", "--address="+b.Address, "introspect", api.BusName, "/org/freedesktop/LogControl1").CombinedOutput(); err != nil || !strings.Contains(string(out), "LogTarget") {
		t.Errorf("busctl introspect: %v\n%s", err, out)
	}

	denied := newBus(t)
	denied.Start()
	denied.serve(dbusserver.Options{Log: log, Authorizer: denyAll{}})
	if _, err := call(object(denied.Dial(), "/org/freedesktop/LogControl1"), set, iface, "LogLevel", dbus.MakeVariant("err")); errorName(err) != e+"AccessDenied" {
		t.Errorf("setting the level without permission: %v", err)
	}
}

// Refresh of one ENI is of that one.
func TestRefreshInterface(t *testing.T) { // H1, H3
	b := newBus(t)
	b.Start()
	agent := apitest.NewAgent(apitest.State())
	b.serve(dbusserver.Options{Agent: agent, Authorizer: allowAll{}})
	out, err := call(object(b.Dial(), "/org/ec2netd1/interface/eni_2d0a1b2c3d4e5f60002"), "org.ec2netd1.Interface.Refresh", true)
	if err != nil || !strings.Contains(out[0].(string), `"settled":true`) {
		t.Errorf("%v, %v", out, err)
	}
	if got := agent.Refreshed(); !slices.Equal(got, []string{"02:00:00:00:00:02"}) {
		t.Errorf("refreshed %q", got)
	}
}
