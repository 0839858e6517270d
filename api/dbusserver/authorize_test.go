package dbusserver_test

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/dbusserver"
	"ec2netd/api/polkit"
	"ec2netd/service/journal"
)

// authority is a polkit that permits everything to one caller.
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

	// Without polkit only root is permitted.
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
	// The bus restarts, which ends polkit too: nobody is permitted by mistake.
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

// I1: root can change the level and the target of the log while the daemon runs.
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

// TestRefreshInterface: Refresh of one ENI reads only that ENI.
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

// silent is a polkit that does not answer until it is told to.
type silent struct {
	asked  chan polkitSubject
	answer chan struct{}
}

func (s silent) CheckAuthorization(subject polkitSubject, _ string, _ map[string]string, _ uint32, _ string) (polkitResult, *dbus.Error) {
	s.asked <- subject
	<-s.answer
	return polkitResult{Authorized: true}, nil
}

// TestPolkitPlaces: callers of one user that wait for polkit leave places for others, and
// root does not wait.
func TestPolkitPlaces(t *testing.T) { // J1
	b := newBus(t)
	b.Start()
	fake := silent{make(chan polkitSubject), make(chan struct{})}
	c := b.Dial()
	if err := c.Export(fake, "/org/freedesktop/PolicyKit1/Authority", "org.freedesktop.PolicyKit1.Authority"); err != nil {
		t.Fatal(err)
	}
	if _, err := c.RequestName("org.freedesktop.PolicyKit1", dbus.NameFlagDoNotQueue); err != nil {
		t.Fatal(err)
	}
	p := &polkit.Authorizer{Address: b.Address}
	defer p.Close()
	allowed := make(chan error)
	ask := func(uid uint32) {
		go func() {
			allowed <- p.Authorize(t.Context(), api.Caller{UID: uid, BusName: ":1.7", Interactive: true}, api.ActionRefresh)
		}()
	}
	const places, all = 4, 32
	for uid := range uint32(all / places) {
		for range places {
			ask(1000 + uid)
			waitFor(t, fake.asked)
		}
		ask(1000 + uid)
		if err := waitFor(t, allowed); err == nil || !strings.Contains(err.Error(), "too many") {
			t.Fatalf("a fifth caller of user %d: %v", 1000+uid, err)
		}
	}
	ask(2000)
	if err := waitFor(t, allowed); err == nil || !strings.Contains(err.Error(), "too many") {
		t.Errorf("one more than %d: %v", all, err)
	}
	ask(0)
	if err := waitFor(t, allowed); err != nil {
		t.Errorf("root: %v", err)
	}
	close(fake.answer)
	for range all {
		if err := waitFor(t, allowed); err != nil {
			t.Error(err)
		}
	}
	ask(1000)
	waitFor(t, fake.asked)
	if err := waitFor(t, allowed); err != nil {
		t.Errorf("when places are free again: %v", err)
	}
}

// TestPolkitSilentBus: a silent bus delays neither root nor a caller after its deadline.
func TestPolkitSilentBus(t *testing.T) { // J1
	socket := filepath.Join(t.TempDir(), "bus")
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	p := &polkit.Authorizer{Address: "unix:path=" + socket}
	dialed := make(chan error, 1)
	go func() { dialed <- p.Authorize(t.Context(), api.Caller{UID: 1000}, api.ActionRefresh) }()
	taken, err := l.Accept() // it is connecting now
	if err != nil {
		t.Fatal(err)
	}
	started := time.Now()
	if err := p.Authorize(t.Context(), api.Caller{}, api.ActionRefresh); err != nil {
		t.Error(err)
	}
	hasty, cancel := context.WithCancel(t.Context())
	cancel()
	if err := p.Authorize(hasty, api.Caller{UID: 1001}, api.ActionRefresh); err == nil {
		t.Error("allowed without polkit")
	}
	if d := time.Since(started); d > 3*time.Second {
		t.Errorf("took %v", d)
	}
	p.Close()
	taken.Close()
	if err := waitFor(t, dialed); err == nil {
		t.Error("allowed without polkit")
	}
}
