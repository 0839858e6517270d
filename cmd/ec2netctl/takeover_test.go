package main

import (
	"bytes"
	"strings"
	"testing"
)

// TestConfirm: a takeover is begun after yes, or where nobody wants to be asked.
func TestConfirm(t *testing.T) { // J3
	for _, c := range []struct {
		answer      string
		asks, yes   bool
		goes, asked bool
	}{
		{"y\n", true, false, true, true},
		{" YES \n", true, false, true, true},
		{"\n", true, false, false, true},
		{"n\n", true, false, false, true},
		{"yesterday\n", true, false, false, true},
		{"", true, false, false, true}, // ^D
		{"y\n", false, false, false, false},
		{"", true, true, true, false},
		{"", false, true, true, false},
	} {
		var out bytes.Buffer
		ctl := &ctl{environment: environment{stdin: strings.NewReader(c.answer), stderr: &out, asks: c.asks}}
		err := ctl.confirm(&takeoverOptions{yes: c.yes}, "Take over?")
		if (err == nil) != c.goes || strings.Contains(out.String(), "Take over? [y/N] ") != c.asked {
			t.Errorf("%+v: %v, %q", c, err, out.String())
		}
		if a, ok := asAdvice(err); !c.asks && !c.yes && (!ok || !strings.Contains(a.hint, "--yes")) {
			t.Errorf("%+v: %v does not say what to do", c, err)
		}
	}
}

// TestHowItDied: what systemd says of the end of a process is put in words.
func TestHowItDied(t *testing.T) { // J3
	for _, c := range [][3]string{
		{"killed", "TERM", "it was interrupted"},
		{"killed", "KILL", "its process was killed by SIGKILL"},
		{"dumped", "SEGV", "its process was killed by SIGSEGV"},
		{"exited", "1", "its process ended (1)"},
		{"", "", "its process ended (nobody knows how)"},
	} {
		if got := howItDied(func(name string) string { return map[string]string{"EXIT_CODE": c[0], "EXIT_STATUS": c[1]}[name] }); got != c[2] {
			t.Errorf("%q: %q", c, got)
		}
	}
}
