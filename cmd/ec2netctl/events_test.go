package main

import (
	"bytes"
	"context"
	"encoding/json"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"
	"unicode/utf8"

	"github.com/google/go-cmp/cmp"

	"ec2netd/api/apitest"
	"ec2netd/service/plan"
	"ec2netd/service/preview"
	"ec2netd/service/state"
	"ec2netd/service/store"
)

// TestEvents: what monitor says between two states.
func TestEvents(t *testing.T) { // H5
	c := &ctl{environment: environment{now: func() time.Time { return now }}}
	for _, v := range []struct {
		name   string
		change func(*state.State)
		want   string
	}{
		{"nothing", func(*state.State) {}, ""},
		{"counters", func(s *state.State) { s.Metadata.Requests++ }, ""},
		{"the daemon", func(s *state.State) { s.State, s.Reason = state.Offline, "no answer\n at all" }, "ec2netd: offline (no answer at all)"},
		{"an ENI", func(s *state.State) { s.Interfaces[1].State, s.Interfaces[1].Reason = state.ENIConfigured, "" },
			"ens6 (eni-0a1b2c3d4e5f60002): configured"},
		{"addresses", func(s *state.State) {
			s.Interfaces[0].Addresses = []string{"2001:db8:0:1::10", "10.0.0.11"}
			s.Interfaces[1].Prefixes = nil
		}, `ens5 (eni-0a1b2c3d4e5f60001): + 10.0.0.11
ens5 (eni-0a1b2c3d4e5f60001): - 10.0.0.10
ens6 (eni-0a1b2c3d4e5f60002): - 10.0.1.64/28
ens6 (eni-0a1b2c3d4e5f60002): - 2001:db8:0:2:1::/80`},
		{"its ID", func(s *state.State) { s.Interfaces[2].ENIID = "eni-0a1b2c3d4e5f60003" },
			"ens7 (eni-0a1b2c3d4e5f60003): was ens7 (02:00:00:00:00:03)"},
		{"gone and come", func(s *state.State) {
			s.Interfaces[2].Ifindex, s.Interfaces[2].Reason = 9, ""
			s.Interfaces = s.Interfaces[1:]
		}, `ens5 (eni-0a1b2c3d4e5f60001): gone
ens7 (02:00:00:00:00:03): gone
ens7 (02:00:00:00:00:03): pending`},
	} {
		s := apitest.State()
		v.change(s)
		want := ""
		for line := range strings.Lines(v.want) {
			want += "15:09:26 " + strings.TrimSuffix(line, "\n") + "\n"
		}
		if diff := cmp.Diff(want, c.events(apitest.State(), s)); diff != "" {
			t.Errorf("%s: %s", v.name, diff)
		}
	}
	if first := c.events(nil, apitest.State()); strings.Count(first, "\n") != 4 || !strings.Contains(first, "ens6 (eni-0a1b2c3d4e5f60002): configuring (waiting for address 10.0.1.22)") {
		t.Errorf("at first:\n%s", first)
	}
}

// lineWriter passes on what is written.
type lineWriter chan string

func (w lineWriter) Write(p []byte) (int, error) {
	w <- string(p)
	return len(p), nil
}

// TestMonitor: it goes on where the daemon goes away, and ends when its output does.
func TestMonitor(t *testing.T) { // H5
	socket := filepath.Join(t.TempDir(), "socket")
	agent := apitest.NewAgent(apitest.State())
	stop := start(t, socket, agent, nil)
	out, errs := make(lineWriter, 16), make(lineWriter, 16)
	c := &ctl{address: socket, environment: environment{stdout: out, stderr: errs, now: time.Now}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.watch(ctx) }()
	expect := func(from lineWriter, want string) {
		t.Helper()
		select {
		case got := <-from:
			if !strings.Contains(got, want) {
				t.Fatalf("got %q, want %q", got, want)
			}
		case <-time.After(time.Minute):
			t.Fatalf("nothing, want %q", want)
		}
	}
	expect(out, "ens5")
	s := apitest.State()
	s.Interfaces[0].Addresses = append(s.Interfaces[0].Addresses, "10.0.0.99")
	agent.Set(s)
	expect(out, "+ 10.0.0.99")
	stop()
	expect(errs, "waiting for it")
	os.Remove(socket)
	s = apitest.State()
	agent = apitest.NewAgent(s)
	stop = start(t, socket, agent, nil)
	defer stop()
	expect(out, "- 10.0.0.99")
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
}

func TestMonitorJSON(t *testing.T) { // H5
	socket := serve(t, t.TempDir(), apitest.NewAgent(apitest.State()), nil)
	out := make(lineWriter, 1)
	c := &ctl{address: socket, json: "short", environment: environment{stdout: out, stderr: &bytes.Buffer{}, now: time.Now}}
	ctx, cancel := context.WithCancel(t.Context())
	ended := make(chan error, 1)
	go func() { ended <- c.watch(ctx) }()
	line := <-out
	cancel()
	if err := <-ended; err != nil {
		t.Error(err)
	}
	if s, err := parseState(json.RawMessage(line)); err != nil || len(s.Interfaces) != 3 || strings.Count(line, "\n") != 1 {
		t.Errorf("%v: %q", err, line)
	}
}

func TestPager(t *testing.T) { // H5
	for _, c := range []struct {
		name    string
		noPager bool
		pages   bool
		want    string
	}{{"paged", false, true, ""}, {"no pager", true, true, "text"}, {"none starts", false, false, "text"}} {
		var out bytes.Buffer
		paged := ""
		ctl := &ctl{noPager: c.noPager, environment: environment{stdout: &out, pager: func(text string) bool {
			paged = text
			return c.pages
		}}}
		if err := ctl.page("text"); err != nil || out.String() != c.want || (paged == "") != c.noPager {
			t.Errorf("%s: %v, printed %q, paged %q", c.name, err, out.String(), paged)
		}
	}
}

// TestTableWidth: a table is no wider than the screen as long as that can be.
func TestTableWidth(t *testing.T) { // H5
	rows := [][]cell{
		header("ENI", "ADDRESSES", "REASON"),
		{text("eni-1"), lines([]string{"10.0.0.1", "10.0.0.2"}), text("it takes many words to say what is wrong with this one")},
		{text("eni-2"), text("10.0.0.3"), text("")},
	}
	for width, want := range map[int]int{0: 72, 100: 72, 60: 60, 45: 45, 30: 30, 10: 26} {
		out := table(rows, width, false, "ADDRESSES")
		widest := 0
		for line := range strings.Lines(out) {
			widest = max(widest, len(line)-1)
		}
		if widest > want || strings.Join(strings.Fields(out), "") != strings.Join(strings.Fields(table(rows, 0, false)), "") && width == 0 {
			t.Errorf("width %d: %d columns\n%s", width, widest, out)
		}
		for _, word := range strings.Fields("it takes many words to say what is wrong with this one 10.0.0.2 eni-2") {
			if spared := width == 10 && word == "10.0.0.2"; strings.Contains(out, word) == spared {
				t.Errorf("width %d: there is a %q, or not, in\n%s", width, word, out)
			}
		}
	}
}

// TestNarrow: on the screen that terminals begin with, each state and reason is seen.
func TestNarrow(t *testing.T) { // H5
	s := differ()
	s.Interfaces[1].Addresses[3] = "2600:1f18:1234:5600:abcd:ef01:2345:6789"
	s.Interfaces[1].State, s.Interfaces[1].Reason = state.ENIDegraded, "networkd has not brought: address 10.0.1.22; see journalctl -u systemd-networkd"
	c := &ctl{environment: environment{width: 80}}
	out := c.statusTable(s) + "\n" + c.itemTable(append(s.Interfaces[1].Items,
		state.Item{Kind: state.ItemRule, Value: "from 2600:1f18:1234:5600:abcd:ef01:2345:6789/128 lookup 10001", Metadata: state.Yes, Rendered: true, Networkd: state.Yes, Kernel: true}))
	for line := range strings.Lines(out) {
		if n := utf8.RuneCountInString(line) - 1; n > 80 {
			t.Errorf("%d columns: %s", n, line)
		}
	}
	golden(t, out)
}

func TestJournalArgs(t *testing.T) { // I1
	e := apitest.State().Interfaces[1]
	got := strings.Join(journalArgs(&e, 7), " ")
	for _, want := range []string{"--lines=7", "_SYSTEMD_UNIT=ec2netd.service MAC=02:00:00:00:00:02 + _SYSTEMD_UNIT=ec2netd.service ENI=eni-0a1b2c3d4e5f60002"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in %q", want, got)
		}
	}
	e.ENIID = ""
	if got := journalArgs(&e, 7); slices.ContainsFunc(got, func(s string) bool { return strings.HasPrefix(s, "ENI=") }) {
		t.Error(got)
	}
}

// TestPlanCompare: what plan says of files that are on disk.
func TestPlanCompare(t *testing.T) { // H5
	on := &store.Store{Root: t.TempDir()}
	link := func(name string) store.File {
		return store.File{Path: plan.NetworkPath(name), Target: "/usr/lib/systemd/network/80-ec2.network"}
	}
	own := func(name, mac, more string) store.File {
		return store.File{Path: plan.NetworkDropIn(name), Content: "[Match]\nMACAddress=" + mac + "\n" + more}
	}
	const first, second, gone = "02:00:00:00:00:01", "02:00:00:00:00:02", "02:00:00:00:00:03"
	// What stands beside the drop-in of an ENI that is gone.
	match := store.File{Path: plan.NetworkPath("ens7") + ".d/" + plan.MatchDropIn, Content: "[Match]\n"}
	mtu := store.File{Path: plan.NetworkPath("ens7") + ".d/mtu.conf", Target: "/etc/systemd/network/80-ec2.network.d/mtu.conf"}
	if err := os.MkdirAll(filepath.Join(on.Root, plan.Directory), 0o755); err != nil {
		t.Fatal(err)
	}
	if _, err := on.Apply(store.Want{Files: []store.File{own("ens5", first, "a=1\n"), link("ens5"), own("ens7", gone, ""), match, mtu, link("ens7"), own("ens8", "02:00:00:00:00:04", ""), link("ens8")}}); err != nil {
		t.Fatal(err)
	}
	units, err := on.Units()
	if err != nil {
		t.Fatal(err)
	}
	files := func(all ...store.File) (out []preview.File) {
		for _, f := range all {
			out = append(out, preview.File{Path: f.Path, Content: f.Content, Target: f.Target})
		}
		return out
	}
	p := preview.Plan{Interfaces: []preview.ENI{
		{Name: "ens5", MAC: first, Metric: state.Unknown, Table: state.Unknown, DeviceIndex: 0, Files: files(own("ens5", first, "a=2\n"), link("ens5"))},
		{Name: "ens6", MAC: second, Metric: state.Unknown, Table: state.Unknown, DeviceIndex: 1, Files: files(own("ens6", second, ""), link("ens6"))},
		{Name: "ens8", MAC: "02:00:00:00:00:04", DeviceIndex: state.Unknown, Metric: state.Unknown, Table: state.Unknown, Reason: "the metadata has not been read yet; what is configured stays",
			Keep: []string{plan.NetworkPath("ens8"), plan.LinkPath("ens8")}},
	}}
	if err := p.Compare(on, units); err != nil {
		t.Fatal(err)
	}
	var got []preview.Change
	for _, e := range p.Interfaces {
		for _, f := range e.Files {
			got = append(got, f.Change)
		}
	}
	if diff := cmp.Diff([]preview.Change{preview.Changed, preview.Same, preview.New, preview.New}, got); diff != "" {
		t.Error(diff)
	}
	if diff := cmp.Diff([]string{plan.NetworkPath("ens7"), match.Path, mtu.Path, plan.NetworkDropIn("ens7")}, p.Removed); diff != "" {
		t.Error(diff)
	}
	c := &ctl{}
	golden(t, c.describePlan(&p, false, false))
	same := preview.Plan{Interfaces: []preview.ENI{{Name: "ens5", MAC: first, Files: files(own("ens5", first, "a=1\n"), link("ens5"))}}}
	if err := same.Compare(on, nil); err != nil {
		t.Fatal(err)
	}
	if got := c.describePlan(&same, false, false); got != "Nothing would change.\n" {
		t.Error(got)
	}
	if got := c.describePlan(&same, false, true); !strings.Contains(got, "a=1\n") || !strings.Contains(got, "(same)") {
		t.Error(got)
	}
}
