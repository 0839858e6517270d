package main

import (
	"bytes"
	"context"
	"errors"
	"flag"
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"github.com/rogpeppe/go-internal/testscript"

	"ec2netd/api"
	"ec2netd/api/apitest"
	"ec2netd/api/varlinkserver"
	"ec2netd/service/platform"
	"ec2netd/service/state"
)

var update = flag.Bool("update", false, "write the golden files")

func TestMain(m *testing.M) {
	testscript.Main(m, map[string]func(){"ec2netctl": main})
}

// now is when the tests take place.
var now = time.Date(2026, 3, 14, 15, 9, 26, 0, time.UTC)

// serve runs a daemon that shows what agent does, until the test ends.
func serve(t testing.TB, dir string, agent api.Agent, authorizer api.Authorizer) string {
	t.Helper()
	socket := filepath.Join(dir, "socket")
	t.Cleanup(start(t, socket, agent, authorizer))
	return socket
}

// start runs a daemon until stop is called.
func start(t testing.TB, socket string, agent api.Agent, authorizer api.Authorizer) (stop func()) {
	t.Helper()
	l, err := net.Listen("unix", socket)
	if err != nil {
		t.Fatal(err)
	}
	s, err := varlinkserver.New(varlinkserver.Options{Listeners: []net.Listener{l}, Agent: agent, Authorizer: authorizer, Version: "1.2.3"})
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error)
	go func() { done <- s.Run(ctx) }()
	return func() {
		cancel()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// invoke runs the program within the test.
func invoke(agent string, colour bool, uid int, args ...string) (stdout, stderr string, code int) {
	var out, errs bytes.Buffer
	code = run(append([]string{"--address=" + agent}, args...), environment{
		stdout: &out, stderr: &errs, colour: colour, uid: uid, now: func() time.Time { return now },
		root: "/nonexistent", // nothing of this machine
		journal: func(_ context.Context, e *state.Interface, most int) string {
			return fmt.Sprintf("Mar 14 15:09:25 host ec2netd[7]: the last %d lines about %s\x1b[2J\n", most, e.ID())
		},
	})
	return out.String(), errs.String(), code
}

// dumps is where saved metadata is, and instanceDump that of an instance, which package preview has.
const (
	dumps        = "testdata/dumps/"
	instanceDump = "../../service/preview/testdata/instance.json"
)

func golden(t *testing.T, got string) {
	t.Helper()
	path := filepath.Join("testdata", filepath.FromSlash(t.Name())+".golden")
	if *update {
		if err := errors.Join(os.MkdirAll(filepath.Dir(path), 0o755), os.WriteFile(path, []byte(got), 0o644)); err != nil {
			t.Fatal(err)
		}
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	if diff := cmp.Diff(string(want), got); diff != "" {
		t.Errorf("not as %s (go test -update writes it):\n%s", path, diff)
	}
}

// cards is an instance with two network cards, an ENI of many addresses, and all that
// can be wrong with one.
func cards() *state.State {
	s := apitest.State()
	s.State, s.Reason = state.Degraded, "eni-0a1b2c3d4e5f60002 (ens6): address 10.0.1.22 is missing"
	s.Metadata.LastError = "reading local-ipv4s of eni-0a1b2c3d4e5f60002: HTTP 503"
	s.Networkd.LastError = "Reload: connection timed out"
	s.Interfaces[1].NetworkCard = 1
	s.Interfaces[1].State, s.Interfaces[1].Reason = state.ENIDegraded, "address 10.0.1.22 is missing\nfor 30 s"
	s.Interfaces[1].Unwanted = []string{"address 10.0.1.9"}
	for i := range 40 {
		s.Interfaces[1].Addresses = append(s.Interfaces[1].Addresses, "10.0.1."+string(rune('1'+i/10))+string(rune('0'+i%10)))
	}
	s.Interfaces[2].State, s.Interfaces[2].Reason = state.ENIUnmanaged, "Name=ens7 is not \x1b[2Jmanaged"
	s.Interfaces = append(s.Interfaces, state.Interface{
		ENIID: "eni-0a1b2c3d4e5f60004", MAC: "02:00:00:00:00:04", DeviceIndex: 2, NetworkCard: state.Unknown,
		Metric: state.Unknown, Table: state.Unknown, Priority: state.Unknown, State: state.ENIPending,
		Reason: "the metadata has no network-card yet", Since: now.Add(-50 * time.Hour),
	})
	return s
}

// differ is an instance with gaps of each sort.
func differ() *state.State {
	s := apitest.State()
	s.Interfaces[0].Items = []state.Item{
		{Kind: state.ItemAddress, Value: "10.0.0.10", Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true},
	}
	s.Interfaces[1].Items = append(s.Interfaces[1].Items,
		state.Item{Kind: state.ItemAddress, Value: "10.0.1.99", Metadata: state.No, Networkd: state.No, Kernel: true,
			Reason: "not of the metadata: somebody else has added it;\n it is left\x1b[2J alone"},
		state.Item{Kind: state.ItemRule, Value: "from 10.0.1.21/32 lookup 10001", Metadata: state.Yes, Rendered: true, Networkd: state.No, Kernel: true,
			Reason: "networkd does not count it as its own"})
	s.Interfaces = append(s.Interfaces, state.Interface{
		ENIID: "eni-0a1b2c3d4e5f60004", MAC: "02:00:00:00:00:04", Name: "ens8", Ifindex: 9, State: state.ENIUnmanaged, Reason: "as /etc/ec2netd.conf:1 says",
		Items: []state.Item{{Kind: state.ItemAddress, Value: "10.0.3.7", Metadata: state.Yes, Networkd: state.Yes, Kernel: true, Reason: "as /etc/ec2netd.conf:1 says"}},
	})
	return s
}

// inUse is an instance that has all, of which networkd does not know that it is its own.
func inUse() *state.State {
	s := same()
	for _, item := range differ().Interfaces[1].Items {
		if item.InUse() {
			s.Interfaces[1].Items = append(s.Interfaces[1].Items, item)
		}
	}
	return s
}

// unsupported is a machine that is no EC2 instance.
func unsupported() *state.State {
	return platform.NewUnsupported(platform.Options{Version: "1.2.3", Reason: platform.Identity{SystemVendor: "QEMU"}.NotEC2()}).State()
}

// ipv4 is an instance of which one link has no IPv6.
func ipv4() *state.State {
	s := online()
	e := &s.Interfaces[1]
	e.IPv6NotApplicable = "IPv6 is disabled on the link (sysctl net.ipv6.conf.ens6.disable_ipv6=1)"
	e.Items = append(e.Items[:1:1], state.Item{Kind: state.ItemAddress, Value: "2001:db8::20", Metadata: state.Yes, Networkd: state.No, NotApplicable: e.IPv6NotApplicable})
	return s
}

// same is an instance on which all is as the metadata says.
func same() *state.State {
	s := online()
	s.Interfaces[1].Items = s.Interfaces[1].Items[:1]
	return s
}

func TestOutput(t *testing.T) { // H5
	changes := &state.Changes{
		FilesWritten: []string{"/run/systemd/network/70-ens6.network.d/50-ec2netd.conf"},
		FilesRemoved: []string{"/run/systemd/network/70-ens8.network"},
		Reloaded:     true,
		Settled:      true,
		Interfaces: []state.InterfaceChange{{
			ENIID: "eni-0a1b2c3d4e5f60002", Name: "ens6", Added: []string{"10.0.1.22"}, Removed: []string{"10.0.1.9"},
			State: state.ENIConfigured,
		}},
	}
	unsettled := *changes
	unsettled.Settled = false
	for _, c := range []struct {
		name    string
		state   *state.State
		changes *state.Changes
		colour  bool
		args    []string
		code    int
	}{
		{name: "status", state: apitest.State(), args: []string{"status"}},
		{name: "default", state: apitest.State(), args: nil},
		{name: "status-colour", state: cards(), colour: true, args: []string{"status"}},
		{name: "status-cards", state: cards(), args: []string{"status"}},
		{name: "status-full", state: cards(), args: []string{"status", "-l"}},
		{name: "status-starting", state: &state.State{Version: "1.2.3", State: state.Starting}, args: []string{"status"}},
		{name: "status-unsupported", state: unsupported(), args: []string{"status"}},
		{name: "status-ipv4", state: ipv4(), args: []string{"status"}},
		{name: "status-ipv4-one", state: ipv4(), args: []string{"status", "ens6"}},
		{name: "show-ipv4", state: ipv4(), args: []string{"show", "ens6"}},
		{name: "diff-ipv4", state: ipv4(), args: []string{"diff", "ens6"}},
		{name: "list-unsupported", state: unsupported(), args: []string{"list"}},
		{name: "wait-online-unsupported", state: unsupported(), args: []string{"wait-online", "--timeout=60", "-i", "ens5"}},
		{name: "wait-online-unsupported-quiet", state: unsupported(), args: []string{"wait-online", "--quiet"}},
		{name: "status-one", state: apitest.State(), args: []string{"status", "ens6"}},
		{name: "status-two", state: apitest.State(), colour: true, args: []string{"status", "02:00:00:00:00:01", "4"}},
		{name: "status-no-link", state: cards(), args: []string{"status", "eni-0a1b2c3d4e5f60004"}},
		{name: "status-json", state: apitest.State(), args: []string{"status", "--json"}},
		{name: "status-json-short", state: apitest.State(), args: []string{"status", "--json=short"}},
		{name: "status-one-json", state: apitest.State(), args: []string{"status", "eni-0a1b2c3d4e5f60001", "--json"}},
		{name: "list", state: cards(), args: []string{"list", "--no-pager"}},
		{name: "list-json", state: apitest.State(), args: []string{"--json=short", "list"}},
		{name: "list-none", state: &state.State{}, args: []string{"list"}},
		{name: "refresh", state: apitest.State(), changes: changes, args: []string{"refresh", "--wait"}},
		{name: "refresh-colour", state: apitest.State(), changes: changes, colour: true, args: []string{"refresh", "--wait"}},
		{name: "refresh-unsettled", state: apitest.State(), changes: &unsettled, args: []string{"refresh"}},
		{name: "refresh-wait-unsettled", state: apitest.State(), changes: &unsettled, args: []string{"refresh", "--wait"}, code: 1},
		{name: "refresh-nothing", state: apitest.State(), changes: &state.Changes{Settled: true}, args: []string{"refresh"}},
		{name: "refresh-json", state: apitest.State(), changes: changes, args: []string{"refresh", "--json"}},
		{name: "refresh-one", state: apitest.State(), changes: changes, args: []string{"refresh", "--wait", "device-number-1.0"}},
		{name: "refresh-two", state: apitest.State(), args: []string{"refresh", "ens5", "ens6"}, code: 2},
		{name: "refresh-seconds", state: apitest.State(), changes: &state.Changes{Settled: true}, args: []string{"refresh", "--timeout=30"}},
		{name: "refresh-negative", state: apitest.State(), args: []string{"refresh", "--timeout=-30s"}, code: 2},
		{name: "unknown-eni", state: apitest.State(), args: []string{"status", "eni-0f"}, code: 1},
		{name: "unknown-command", state: apitest.State(), args: []string{"stauts"}, code: 2},
		{name: "unknown-flag", state: apitest.State(), args: []string{"list", "--wait"}, code: 2},
		{name: "unknown-json", state: apitest.State(), args: []string{"--json=xml"}, code: 2},
		{name: "too-many", state: apitest.State(), args: []string{"list", "ens5"}, code: 2},
		{name: "wait-online", state: online(), args: []string{"wait-online"}},
		{name: "wait-online-json", state: online(), args: []string{"wait-online", "--json=short"}},
		{name: "wait-online-interface", state: apitest.State(), args: []string{"wait-online", "--interface", "ens5", "-i", "02:00:00:00:00:01"}},
		{name: "wait-online-timeout", state: cards(), args: []string{"wait-online", "--timeout=1"}, code: 1},
		{name: "wait-online-timeout-json", state: apitest.State(), args: []string{"wait-online", "--timeout=1", "--json"}, code: 1},
		{name: "wait-online-timeout-quiet", state: apitest.State(), args: []string{"wait-online", "--timeout=1", "--quiet"}, code: 1},
		{name: "wait-online-timeout-interface", state: apitest.State(), args: []string{"wait-online", "--timeout=1", "-i", "ens7", "-i", "eni-none"}, code: 1},
		{name: "wait-online-bad-timeout", state: apitest.State(), args: []string{"wait-online", "--timeout=soon"}, code: 2},
		{name: "wait-online-bad-interface", state: apitest.State(), args: []string{"wait-online", "--interface="}, code: 2},
		{name: "wait-online-argument", state: apitest.State(), args: []string{"wait-online", "ens5"}, code: 2},
		{name: "help-wait-online", args: []string{"wait-online", "--help"}},
		{name: "help", args: []string{"--help"}},
		{name: "help-unknown", args: []string{"help", "stauts"}, code: 2},
		{name: "help-completion", args: []string{"help", "completion", "zsh"}},
		{name: "completion-unknown", args: []string{"completion", "tcsh"}, code: 2},
		{name: "completion-none", args: []string{"completion"}, code: 2},
		{name: "complete-nothing", state: apitest.State(), args: []string{"__complete", "monitor", ""}},
		{name: "complete-timeout", state: apitest.State(), args: []string{"__complete", "refresh", "--timeout", ""}},
		{name: "help-status", args: []string{"status", "--help"}},
		{name: "help-refresh", args: []string{"help", "refresh"}},
		{name: "complete-interface", state: apitest.State(), args: []string{"__complete", "wait-online", "-i", "eni-0a1b2c3d4e5f60001", "--interface", ""}},
		{name: "show", state: differ(), args: []string{"show"}},
		{name: "show-colour", state: differ(), colour: true, args: []string{"show", "ens6"}},
		{name: "show-json", state: differ(), args: []string{"show", "ens6", "--json"}},
		{name: "show-none", state: &state.State{}, args: []string{"show"}},
		{name: "diff", state: differ(), args: []string{"diff"}, code: 1},
		{name: "diff-all", state: differ(), args: []string{"diff", "--all"}, code: 1},
		{name: "diff-in-use", state: inUse(), args: []string{"diff"}},
		{name: "diff-in-use-all", state: inUse(), args: []string{"diff", "-a"}},
		{name: "diff-colour", state: differ(), colour: true, args: []string{"diff", "ens6"}, code: 1},
		{name: "diff-json", state: differ(), args: []string{"diff", "--json"}, code: 1},
		{name: "diff-same", state: differ(), args: []string{"diff", "ens5"}},
		{name: "diff-unmanaged", state: differ(), args: []string{"diff", "ens8"}, code: 1},
		{name: "diff-online", state: same(), args: []string{"diff", "--json=short"}},
		{name: "diff-unknown-eni", state: differ(), args: []string{"diff", "ens99"}, code: 2},
		{name: "diff-no-daemon", args: []string{"diff"}, code: 2},
		{name: "help-diff", args: []string{"diff", "--help"}},
		{name: "help-show", args: []string{"show", "--help"}},
		{name: "help-doctor", args: []string{"doctor", "--help"}},
		{name: "help-set-hostname", args: []string{"set-hostname", "--help"}},
		{name: "plan", args: []string{"plan", "--metadata", instanceDump}},
		{name: "plan-colour", colour: true, args: []string{"plan", "--metadata", dumps + "keys.json"}},
		{name: "plan-named", args: []string{"plan", "--metadata", dumps + "keys.json", "--link=02:00:00:00:01:20=eth1", "--driver=vif"}},
		{name: "plan-json", args: []string{"plan", "--metadata", instanceDump, "--json"}},
		{name: "plan-configured", args: []string{"plan", "--metadata", dumps + "keys.json", "--root", "testdata/root"}},
		{name: "plan-no-root", args: []string{"plan", "--metadata", dumps + "keys.json", "--root", "testdata/none"}, code: 1},
		{name: "plan-no-file", args: []string{"plan", "--metadata", dumps + "none.json"}, code: 1},
		{name: "plan-no-dump", args: []string{"plan", "--metadata", "testdata/scripts/cli.txtar"}, code: 1},
		{name: "plan-injected", args: []string{"plan", "--metadata", dumps + "injected.json"}, code: 1},
		{name: "plan-bad-link", args: []string{"plan", "--metadata", dumps + "bad-link.json"}, code: 1},
		{name: "plan-unknown-mac", args: []string{"plan", "--metadata", dumps + "keys.json", "--link=02:00:00:00:01:99=eth1"}, code: 1},
		{name: "plan-same-name", args: []string{"plan", "--metadata", dumps + "keys.json", "--link=02:00:00:00:01:20=ens5"}, code: 1},
		{name: "plan-bad-name", args: []string{"plan", "--metadata", dumps + "keys.json", "--link=02:00:00:00:01:20=../x"}, code: 2},
		{name: "plan-no-metadata", args: []string{"plan", "--driver=ena"}, code: 2},
		{name: "help-plan", args: []string{"plan", "--help"}},
		{name: "help-monitor", args: []string{"monitor", "--help"}},
		{name: "help-dump-metadata", args: []string{"dump-metadata", "--help"}},
		{name: "complete", state: apitest.State(), args: []string{"__complete", "status", "eni-0a1b2c3d4e5f60001", ""}},
	} {
		t.Run(c.name, func(t *testing.T) {
			agent := apitest.NewAgent(c.state)
			agent.OnRefresh = func(_ context.Context, wait bool) (*state.Changes, error) {
				if want := strings.Contains(strings.Join(c.args, " "), "--wait"); wait != want {
					t.Errorf("wait = %v", wait)
				}
				return c.changes, nil
			}
			socket := "/nonexistent"
			if c.state != nil {
				socket = serve(t, t.TempDir(), agent, allowAll{})
			}
			stdout, stderr, code := invoke(socket, c.colour, 0, c.args...)
			if code != c.code {
				t.Errorf("exit code %d, want %d", code, c.code)
			}
			if got, one := agent.Refreshed(), c.name == "refresh-one"; (len(got) == 1 && got[0] == "02:00:00:00:00:02") != one || len(got) > 1 {
				t.Errorf("refreshed alone: %q", got)
			}
			if stderr != "" {
				stdout += "--- stderr\n" + stderr
			}
			here, err := os.Getwd()
			if err != nil {
				t.Fatal(err)
			}
			golden(t, strings.ReplaceAll(stdout, here+"/", "/"))
		})
	}
}

type allowAll struct{}

func (allowAll) Authorize(context.Context, api.Caller, string) error { return nil }

type denyAll struct{}

func (denyAll) Authorize(_ context.Context, c api.Caller, action string) error {
	return &api.NotPermittedError{Caller: c, Action: action}
}

// TestErrors: what people get when something is not as it should be.
func TestErrors(t *testing.T) { // H5
	dir := t.TempDir()
	stale := filepath.Join(dir, "stale")
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: stale, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	l.Close()
	mute := filepath.Join(dir, "mute") // takes connections and never answers
	m, err := net.Listen("unix", mute)
	if err != nil {
		t.Fatal(err)
	}
	defer m.Close()
	hangsUp := filepath.Join(dir, "hangs-up")
	h, err := net.Listen("unix", hangsUp)
	if err != nil {
		t.Fatal(err)
	}
	defer h.Close()
	go func() {
		for {
			c, err := h.Accept()
			if err != nil {
				return
			}
			c.Read(make([]byte, 1))
			c.Close()
		}
	}()
	agent := apitest.NewAgent(apitest.State())
	agent.OnRefresh = func(context.Context, bool) (*state.Changes, error) {
		return nil, errors.New("reading mac: HTTP 500")
	}
	working, refusing := serve(t, t.TempDir(), agent, allowAll{}), serve(t, t.TempDir(), agent, denyAll{})
	for _, c := range []struct {
		name, socket string
		uid          int
		args         []string
		want         []string
	}{
		{"absent", filepath.Join(dir, "absent"), 0, nil, []string{"is not there", "enable --now ec2netd.socket ec2netd.service"}},
		{"stale", stale, 0, nil, []string{"does not listen", "restart ec2netd.service"}},
		{"mute", mute, 0, []string{"--timeout=50ms"}, []string{"did not answer within 50ms", "journalctl"}},
		{"hangs up", hangsUp, 0, nil, []string{"closed the connection"}},
		{"not root", refusing, 1000, []string{"refresh"}, []string{"refresh is for root", "sudo ec2netctl refresh"}},
		{"refused", refusing, 0, []string{"refresh"}, []string{"does not permit"}},
		{"failed", working, 0, []string{"refresh"}, []string{"reading mac: HTTP 500", "stays"}},
		{"unknown to refresh", working, 0, []string{"refresh", "ens9"}, []string{`there is no ENI "ens9"`, "ec2netctl list"}},
		{"unknown", working, 0, []string{"status", "ens9"}, []string{"ens9", "eni-0a1b2c3d4e5f60002 (ens6)"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			stdout, stderr, code := invoke(c.socket, false, c.uid, c.args...)
			if code != 1 || stdout != "" {
				t.Errorf("exit code %d, stdout %q", code, stdout)
			}
			for _, want := range c.want {
				if !strings.Contains(stderr, want) {
					t.Errorf("no %q in %q", want, stderr)
				}
			}
		})
	}
}

// full is an output that takes nothing.
type full struct{}

func (full) Write([]byte) (int, error) { return 0, syscall.ENOSPC }

func TestOutputFull(t *testing.T) {
	socket := serve(t, t.TempDir(), apitest.NewAgent(apitest.State()), nil)
	var errs bytes.Buffer
	code := run([]string{"--address=" + socket, "list"}, environment{stdout: full{}, stderr: &errs, now: time.Now})
	if code != 1 || !strings.Contains(errs.String(), "writing the output") {
		t.Errorf("exit code %d: %s", code, &errs)
	}
}

func TestAgo(t *testing.T) {
	c := &ctl{environment: environment{now: func() time.Time { return now }}}
	for d, want := range map[time.Duration]string{
		0:                              "0s ago",
		59 * time.Second:               "59s ago",
		90 * time.Second:               "1min 30s ago",
		100 * time.Minute:              "1h 40min ago",
		50 * time.Hour:                 "2d 2h ago",
		-time.Hour:                     "in the future (the clock was set)",
		59*time.Second + 600*1_000_000: "1min 0s ago",
	} {
		if got := c.ago(now.Add(-d)); got != want {
			t.Errorf("%v: %q, want %q", d, got, want)
		}
	}
}

// TestScripts runs the program as people do.
func TestScripts(t *testing.T) { // H5
	testscript.Run(t, testscript.Params{
		Dir: filepath.Join("testdata", "scripts"),
		Setup: func(e *testscript.Env) error {
			here, err := os.Getwd()
			if err != nil {
				return err
			}
			e.Setenv("DUMPS", filepath.Join(here, dumps))
			e.Setenv("INSTANCE", filepath.Join(here, instanceDump))
			e.Setenv("SOCKET", serve(e.T().(testing.TB), e.WorkDir, apitest.NewAgent(apitest.State()), denyAll{}))
			return nil
		},
	})
}
