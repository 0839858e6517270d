package main

import (
	"bytes"
	"context"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/api/apitest"
	"ec2netd/service/state"
)

// online is an instance of which every managed ENI is configured.
func online() *state.State {
	s := apitest.State()
	s.Interfaces[1].State, s.Interfaces[1].Reason, s.Interfaces[1].Missing = state.ENIConfigured, "", nil
	s.Interfaces[2].State, s.Interfaces[2].Reason = state.ENIUnmanaged, "Name=ens7 is not managed"
	return s
}

func TestUnfinished(t *testing.T) { // H5
	const first, second, third = "eni-0a1b2c3d4e5f60001 (ens5)", "eni-0a1b2c3d4e5f60002 (ens6)", "02:00:00:00:00:03 (ens7)"
	all := []state.ENI{
		state.ENIConfigured, state.ENIConfiguring, state.ENIPending, state.ENIShadowed, state.ENIOverridden,
		state.ENIUnmanaged, state.ENIDegraded,
	}
	for _, c := range []struct {
		name   string
		change func(*state.State)
		ids    []string
		want   []string
	}{
		{name: "online"},
		{name: "starting", change: func(s *state.State) { s.State, s.Reason = state.Starting, "the metadata has not been read yet" },
			want: []string{"ec2netd is starting: the metadata has not been read yet"}},
		// What was configured stays and works.
		{name: "offline with the last views", change: func(s *state.State) {
			s.State, s.Reason = state.Offline, "no answer"
			s.Interfaces[0].Reason = "the last view of the metadata holds: no answer"
		}},
		{name: "degraded by the metadata alone", change: func(s *state.State) { s.State, s.Reason = state.Degraded, "HTTP 503" }},
		{name: "offline from the start", change: func(s *state.State) {
			s.State = state.Offline
			s.Interfaces = s.Interfaces[:1]
			s.Interfaces[0].State, s.Interfaces[0].Reason = state.ENIPending, "no answer\n  of 169.254.169.254"
		}, want: []string{first + " is pending: no answer of 169.254.169.254"}},
		{name: "no ENI", change: func(s *state.State) { s.Interfaces = nil }, want: []string{"there is no ENI"}},
		{name: "starting without an ENI", change: func(s *state.State) { *s = state.State{State: state.Starting} },
			want: []string{"ec2netd is starting", "there is no ENI"}},
		{name: "all unmanaged", change: func(s *state.State) {
			for i := range s.Interfaces {
				s.Interfaces[i].State = state.ENIUnmanaged
			}
		}},
		{name: "in every state", change: func(s *state.State) {
			e := s.Interfaces[0]
			s.Interfaces = nil
			for _, now := range all {
				e.State, e.Reason = now, "so it is"
				s.Interfaces = append(s.Interfaces, e)
			}
		}, want: []string{
			first + " is configuring: so it is", first + " is pending: so it is", first + " is shadowed: so it is",
			first + " is overridden: so it is", first + " is degraded: so it is",
		}},
		{name: "named", change: func(s *state.State) { s.Interfaces[1].State = state.ENIDegraded },
			ids: []string{"ens5", "02:00:00:00:00:01", "device-number-0.0", "2"}},
		{name: "named and not configured", change: func(s *state.State) { s.Interfaces[1].State = state.ENIDegraded },
			ids: []string{"ens5", "ens6", "eni-0a1b2c3d4e5f60002"}, want: []string{second + " is degraded"}},
		// Who asks for an ENI by name wants it, whoever manages it.
		{name: "named and unmanaged", ids: []string{"ens7"}, want: []string{third + " is unmanaged: Name=ens7 is not managed"}},
		{name: "named and not there", ids: []string{"ens9"}, want: []string{`there is no ENI "ens9"`}},
		{name: "named while starting", change: func(s *state.State) { s.State, s.Reason = state.Starting, "" },
			ids: []string{"ens5"}, want: []string{"ec2netd is starting"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := online()
			if c.change != nil {
				c.change(s)
			}
			if diff := cmp.Diff(c.want, unfinished(s, c.ids)); diff != "" {
				t.Error(diff)
			}
		})
	}
}

// TestWaitOnline: the change comes while it waits; the daemon comes, goes, and is
// silent.
func TestWaitOnline(t *testing.T) { // H5
	type outcome struct {
		stdout, stderr string
		code           int
	}
	wait := func(socket string, args ...string) <-chan outcome {
		ended := make(chan outcome, 1)
		go func() {
			var o outcome
			o.stdout, o.stderr, o.code = invoke(socket, false, 1000, append([]string{"wait-online"}, args...)...)
			ended <- o
		}()
		return ended
	}
	succeeds := func(t *testing.T, ended <-chan outcome) {
		t.Helper()
		if o := <-ended; o != (outcome{}) {
			t.Errorf("ended with %+v", o)
		}
	}
	watched := func(t *testing.T, a *apitest.Agent, ended <-chan outcome) {
		t.Helper()
		for a.Watchers() == 0 {
			select {
			case o := <-ended:
				t.Fatalf("ended before its time: %+v", o)
			case <-time.After(time.Millisecond):
			}
		}
	}

	t.Run("comes online", func(t *testing.T) {
		agent := apitest.NewAgent(&state.State{State: state.Starting})
		ended := wait(serve(t, t.TempDir(), agent, nil), "--timeout=0")
		watched(t, agent, ended)
		agent.Set(apitest.State())
		agent.Set(online())
		succeeds(t, ended)
	})
	t.Run("restart", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "socket")
		before, after := apitest.NewAgent(apitest.State()), apitest.NewAgent(apitest.State())
		stop := start(t, socket, before, nil)
		ended := wait(socket)
		watched(t, before, ended)
		stop()
		t.Cleanup(start(t, socket, after, nil))
		watched(t, after, ended)
		after.Set(online())
		succeeds(t, ended)
	})
	t.Run("no socket yet", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "socket")
		ended := wait(socket)
		t.Cleanup(start(t, socket, apitest.NewAgent(online()), nil))
		succeeds(t, ended)
	})
	t.Run("absent", func(t *testing.T) {
		o := <-wait(filepath.Join(t.TempDir(), "socket"), "--timeout=200ms")
		for _, want := range []string{"not online after 200ms", "ec2netd is not there", "enable --now ec2netd.socket"} {
			if o.code != 1 || o.stdout != "" || !strings.Contains(o.stderr, want) {
				t.Errorf("no %q in %+v", want, o)
			}
		}
	})
	// As a daemon that is activated and does not come up.
	t.Run("silent", func(t *testing.T) {
		socket := filepath.Join(t.TempDir(), "socket")
		l, err := net.Listen("unix", socket)
		if err != nil {
			t.Fatal(err)
		}
		defer l.Close()
		o := <-wait(socket, "--timeout=200ms")
		if o.code != 1 || !strings.Contains(o.stderr, "not online after 200ms: ec2netd does not answer") {
			t.Errorf("ended with %+v", o)
		}
	})
	// Waiting does not help.
	t.Run("not a socket", func(t *testing.T) {
		file := filepath.Join(t.TempDir(), "socket")
		if err := os.Symlink(file, file); err != nil {
			t.Fatal(err)
		}
		if o := <-wait(file, "--timeout=0"); o.code != 1 || !strings.Contains(o.stderr, "too many levels of symbolic links") {
			t.Errorf("ended with %+v", o)
		}
	})
}

// TestProgress: a terminal sees what is waited for, and nothing of it is left.
func TestProgress(t *testing.T) { // H5
	socket := serve(t, t.TempDir(), apitest.NewAgent(apitest.State()), nil)
	for _, c := range []struct {
		name, want string
		columns    int
		args       []string
	}{
		{name: "wide", columns: 200, want: "\r\x1b[KWaiting 0s of 1.2s: eni-0a1b2c3d4e5f60002 (ens6) is configuring: waiting for address 10.0.1.22; and 1 more"},
		{name: "narrow", columns: 20, want: "\r\x1b[KWaiting 0s of 1.2s…\r"},
		{name: "quiet", columns: 200, args: []string{"--quiet"}},
		{name: "no terminal"},
	} {
		t.Run(c.name, func(t *testing.T) {
			var out, errs bytes.Buffer
			code := run(append([]string{"--address=" + socket, "wait-online", "--timeout=1.2"}, c.args...), environment{
				stdout: &out, stderr: &errs, columns: c.columns, now: func() time.Time { return now },
			})
			if code != 1 || out.Len() > 0 {
				t.Errorf("exit code %d, stdout %q", code, &out)
			}
			got := errs.String()
			if c.want == "" {
				if strings.Contains(got, "\x1b") || strings.Contains(got, "Waiting") {
					t.Errorf("a line of progress: %q", got)
				}
				return
			}
			if !strings.HasPrefix(got, c.want) || !strings.Contains(got, "\r\x1b[Kec2netctl: not online after 1.2s:\n") {
				t.Errorf("stderr %q, want it to begin with %q", got, c.want)
			}
		})
	}
}

func TestSpan(t *testing.T) {
	for text, want := range map[string]time.Duration{
		"0": 0, "120": 2 * time.Minute, "1.5": 1500 * time.Millisecond, "90s": 90 * time.Second, "90sec": 90 * time.Second,
		"5min": 5 * time.Minute, "1min 30s": 90 * time.Second, "1min30": 90 * time.Second, "2h": 2 * time.Hour, "250ms": 250 * time.Millisecond,
	} {
		var s span
		if err := s.Set(text); err != nil || time.Duration(s) != want {
			t.Errorf("%q: %v, %v, want %v", text, time.Duration(s), err, want)
		}
	}
	for _, text := range []string{"", "-1", "soon", "1x", "1e30", "infinity"} {
		if err := new(span).Set(text); err == nil {
			t.Errorf("%q is taken", text)
		}
	}
}

// TestMonitorHangsUp: the daemon sees the end of a client that has what it wants.
func TestMonitorHangsUp(t *testing.T) {
	agent := apitest.NewAgent(online())
	c := &ctl{address: serve(t, t.TempDir(), agent, nil)}
	ctx, cancel := context.WithCancel(t.Context())
	views := c.monitor(ctx)
	if v := <-views; v.err != nil || v.state.InstanceID == "" {
		t.Errorf("the first view: %+v", v)
	}
	cancel()
	for range views {
	}
	for deadline := time.Now().Add(10 * time.Second); agent.Watchers() > 0; time.Sleep(time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatal("the daemon still sends")
		}
	}
}
