package main

import (
	"bytes"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"

	"ec2netd/api"
)

// lookup is an environment.
func lookup(pairs ...string) func(string) (string, bool) {
	return func(name string) (string, bool) {
		for _, p := range pairs {
			if n, v, _ := strings.Cut(p, "="); n == name {
				return v, true
			}
		}
		return "", false
	}
}

// TestCaller: who runs with the rights of somebody else is recognised.
func TestCaller(t *testing.T) { // J4
	const none = "4294967295"
	session := func(uid int) string { return fmt.Sprintf("0::/user.slice/user-%d.slice/session-3.scope\n", uid) }
	for name, c := range map[string]struct {
		env           []string
		uid, euid     int
		cgroup, login string
		want          caller
	}{
		"a user":                           {nil, 1000, 1000, session(1000), "1000", caller{ownsSession: true}},
		"a service of a user's manager":    {nil, 1000, 1000, "0::/user.slice/user-1000.slice/user@1000.service/app.slice/a.service\n", "1000", caller{ownsSession: true}},
		"root that has logged in":          {nil, 0, 0, session(0), "0", caller{ownsSession: true}},
		"a system service":                 {nil, 0, 0, "0::/system.slice/a.service\n", none, caller{}},
		"sudo":                             {[]string{"SUDO_UID=1000"}, 0, 0, session(1000), "1000", caller{elevated: true}},
		"sudo of root's":                   {[]string{"SUDO_UID=0"}, 0, 0, session(0), "0", caller{elevated: true, ownsSession: true}},
		"doas":                             {[]string{"DOAS_USER=joe"}, 0, 0, "0::/user.slice/user-0.slice/session-c1.scope\n", none, caller{elevated: true, ownsSession: true}},
		"pkexec":                           {[]string{"PKEXEC_UID=1000"}, 0, 0, "0::/user.slice/user-0.slice/session-c1.scope\n", none, caller{elevated: true, ownsSession: true}},
		"su, without a session":            {nil, 0, 0, "", "1000", caller{elevated: true}},
		"su, without audit":                {nil, 0, 0, session(1000), none, caller{elevated: true}},
		"su, with cgroups of version 1":    {nil, 0, 0, "4:memory:/x\n1:name=systemd:/user.slice/user-1000.slice/session-3.scope\n0::/\n", "", caller{elevated: true}},
		"sudo for another user":            {nil, 33, 33, session(1000), "1000", caller{elevated: true}},
		"a set-user-ID program":            {nil, 1000, 0, session(1000), "1000", caller{elevated: true}},
		"nothing that can be read":         {nil, 0, 0, "", "", caller{}},
		"a slice that is none of a user's": {nil, 0, 0, "0::/user-x.slice/user-99999999999999999999.slice\n", none, caller{}},
	} {
		if got := callerOf(lookup(c.env...), c.uid, c.euid, c.cgroup, c.login); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// TestPagerFor: which pager there is, and whether in secure mode, as systemd has it; with the
// rights of somebody else it is less in secure mode or none.
func TestPagerFor(t *testing.T) { // H5, J4
	own, none, sudo := caller{ownsSession: true}, caller{}, caller{elevated: true}
	const both, secure, off = "[[less] [more]] false", "[[less]] true", "[] false"
	for _, c := range []struct {
		who  caller
		env  []string
		want string
	}{
		{own, nil, both},
		{own, []string{"PAGER=most -x"}, both},
		{own, []string{"PAGER=most", "SYSTEMD_PAGER=pg"}, both},
		{own, []string{"PAGER=most -x", "SYSTEMD_PAGERSECURE=0"}, "[[most -x] [less] [more]] false"},
		{own, []string{"PAGER=most", "SYSTEMD_PAGER=pg", "SYSTEMD_PAGERSECURE=off"}, "[[pg] [less] [more]] false"},
		{own, []string{"PAGER=most", "SYSTEMD_PAGERSECURE=TRUE"}, "[[most] [less]] true"},
		{own, []string{"SYSTEMD_PAGERSECURE=1"}, secure},
		{own, []string{"PAGER=most", "SYSTEMD_PAGERSECURE=perhaps"}, secure},
		{own, []string{"PAGER=most", "SYSTEMD_PAGERSECURE="}, secure},
		{own, []string{"PAGER=cat"}, off},
		{own, []string{"PAGER=most", "SYSTEMD_PAGER="}, off},
		{own, []string{"PAGER=cat", "SYSTEMD_PAGER=pg"}, both},
		{none, nil, secure},
		{none, []string{"PAGER=most"}, secure},
		{none, []string{"SYSTEMD_PAGERSECURE=no"}, both},
		{sudo, nil, secure},
		{sudo, []string{"PAGER=most"}, secure},
		{sudo, []string{"PAGER=most", "SYSTEMD_PAGERSECURE=1"}, secure},
		{sudo, []string{"PAGER=most", "SYSTEMD_PAGERSECURE=0"}, secure},
		{sudo, []string{"PAGER=sh -c id", "SYSTEMD_PAGERSECURE=false"}, secure},
		{sudo, []string{"PAGER=cat"}, off},
		{sudo, []string{"SYSTEMD_PAGER="}, off},
	} {
		p := pagerFor(lookup(c.env...), c.who)
		if got := fmt.Sprint(p.commands, p.secure && len(p.commands) > 0); got != c.want {
			t.Errorf("%+v, %v: %s, want %s", c.who, c.env, got, c.want)
		}
	}
}

// hostile is an environment of somebody who wants more from root's pager.
var hostile = []string{
	"LESSOPEN=|/tmp/evil %s", "LESSCLOSE=/tmp/evil", "LESSKEY=/tmp/evil", "LESSKEYIN=/tmp/evil", "LESSKEY_CONTENT=! shell", "LESSKEY_SYSTEM=/tmp/evil",
	"LESSKEYIN_SYSTEM=/tmp/evil", "LESSEDIT=/tmp/evil", "LESSECHO=/tmp/evil", "LESSGLOBALTAGS=/tmp/evil", "LESSMETACHARS=x", "LESSHISTFILE=/tmp/evil",
	"LESSSECURE=0", "LESSSECURE_ALLOW=shell,edit,examine", "LESS=-o/etc/passwd", "LESSCHARDEF=8b", "EDITOR=/tmp/evil", "VISUAL=/tmp/evil", "SHELL=/tmp/evil",
	"PATH=/tmp/evil", "HOME=/tmp/evil", "XDG_CONFIG_HOME=/tmp/evil", "XDG_DATA_HOME=/tmp/evil", "XDG_STATE_HOME=/tmp/evil", "TMPDIR=/tmp/evil",
	"TERMINFO=/tmp/evil", "TERMINFO_DIRS=/tmp/evil", "TERMCAP=/tmp/evil", "TERM=../../tmp/evil", "LANG=/tmp/evil", "LC_ALL=../evil", "LOCPATH=/tmp/evil",
	"NLSPATH=/tmp/evil", "TZ=/etc/shadow", "TZDIR=/tmp/evil", "ZONEINFO=/tmp/evil", "DBUS_SYSTEM_BUS_ADDRESS=unix:path=/tmp/evil",
	"LD_PRELOAD=/tmp/evil.so", "LD_LIBRARY_PATH=/tmp/evil", "GCONV_PATH=/tmp/evil", "GODEBUG=x=1", "GOCOVERDIR=/tmp/evil", "SYSTEMD_EDITOR=/tmp/evil",
	"SYSTEMD_UNIT_PATH=/tmp/evil", "SYSTEMD_LOG_TARGET=console", "SYSTEMD_BUS_TIMEOUT=1", "EC2NETCTL_ACTIVE_HELP=0", "HTTP_PROXY=http://evil", "PAGER=/tmp/evil",
	"SYSTEMD_PAGER=sh -c /tmp/evil", "SYSTEMD_LESS=-o/etc/passwd", "SYSTEMD_LESSCHARSET=../x", "COLUMNS=80;x", "NO_COLOR=\x1b[31m", "=x", "BASH_FUNC_less%%=() { id; }",
}

// TestSafeEnvironment: nothing of an environment that could name a file, a socket or a program
// gets through with the rights of somebody else.
func TestSafeEnvironment(t *testing.T) { // J4
	want := []string{
		"COLUMNS=80", "LANG=C.UTF-8", "NO_COLOR=1", "PAGER=cat", "PATH=" + systemPath, "SUDO_UID=1000",
		"SYSTEMD_LESS=RSX", "SYSTEMD_PAGERSECURE=0", "TERM=xterm-256color", "TZ=Europe/Berlin",
	}
	good := slices.DeleteFunc(slices.Clone(want), func(pair string) bool { return strings.HasPrefix(pair, "PATH=") })
	if got := safeEnvironment(append(slices.Clone(hostile), good...)); !slices.Equal(got, want) {
		t.Errorf("%q\nwant\n%q", got, want)
	}
}

// TestPagerEnvironment: less is told its mode, and in secure mode nothing else that is not safe.
func TestPagerEnvironment(t *testing.T) { // H5, J4
	for _, c := range []struct {
		secure bool
		env    []string
		want   []string
	}{
		{true, append([]string{"TERM=xterm"}, hostile...), []string{"PATH=" + systemPath, "TERM=xterm", "LESSSECURE=1", "LESSHISTFILE=-", "LESS=FRSXMK", "LESSCHARSET=utf-8"}},
		{true, []string{"SYSTEMD_LESS=FRXM", "SYSTEMD_LESSCHARSET=latin1"}, []string{
			"PATH=" + systemPath, "SYSTEMD_LESS=FRXM", "SYSTEMD_LESSCHARSET=latin1", "LESSSECURE=1", "LESSHISTFILE=-", "LESS=FRXM", "LESSCHARSET=latin1"}},
		{false, []string{"HOME=/home/me", "LESSSECURE=1", "SYSTEMD_LESS=-F +G"}, []string{"HOME=/home/me", "SYSTEMD_LESS=-F +G", "LESS=-F +G", "LESSCHARSET=utf-8"}},
	} {
		p := pager{secure: c.secure}
		if got := p.environment(c.env, lookup(c.env...)); !slices.Equal(got, c.want) {
			t.Errorf("secure %v: %q\nwant\n%q", c.secure, got, c.want)
		}
	}
	for _, options := range []string{"-o/etc/passwd", "-ko", "+!id", "--log-file=/x", "--lesskey-content=x", "-T/x", "-Pprompt", "F\nG", "-F --", "x", "$", "-D1"} {
		if lessOptions.MatchString(options) {
			t.Errorf("SYSTEMD_LESS=%q is taken for safe", options)
		}
	}
}

// TestElevatedArguments: arguments lead to nothing that the user could not read without sudo.
func TestElevatedArguments(t *testing.T) { // J4
	dir := t.TempDir()
	secret, fifo := filepath.Join(dir, "secret"), filepath.Join(dir, "fifo")
	if err := os.WriteFile(secret, []byte("s3cr3t:$6$hash\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mkfifo(fifo, 0o600); err != nil {
		t.Fatal(err)
	}
	keyed := filepath.Join(dir, "keyed")
	if err := os.WriteFile(keyed, []byte(`{"keys":{"mac":"s3cr3t"}}`), 0o600); err != nil {
		t.Fatal(err)
	}
	for _, c := range []struct {
		args []string
		want string
	}{
		{[]string{"plan", "--metadata", secret}, "secret is no metadata dump"},
		{[]string{"plan", "--metadata", keyed}, "it is not complete"},
		{[]string{"plan", "--metadata", fifo}, "invalid argument"},
		{[]string{"plan", "--metadata", "/dev/zero"}, "invalid argument"},
		{[]string{"plan", "--metadata", instanceDump, "--root", "/"}, "--root is not for sudo"},
		{[]string{"status", "--address", "/run/other"}, "--address is not for sudo"},
	} {
		var out bytes.Buffer
		code := run(c.args, environment{stdin: strings.NewReader(""), stdout: &out, stderr: &out, who: caller{elevated: true}})
		if code == exitOK || !strings.Contains(out.String(), c.want) || strings.Contains(out.String(), "s3cr3t") || strings.Contains(out.String(), "$6$") {
			t.Errorf("%q: exit code %d: %s", c.args, code, out.String())
		}
	}
	// What needs no more rights than the user has goes on working.
	var out bytes.Buffer
	if code := run([]string{"plan", "--metadata", instanceDump, "--address", api.VarlinkSocket},
		environment{stdout: &out, stderr: &out, who: caller{elevated: true}}); code != exitOK {
		t.Errorf("plan of a dump: exit code %d: %s", code, out.String())
	}
}
