package main

import (
	"bytes"
	"io"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ec2netd/service/takeover"
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

// TestWayBack: where the unit of a takeover cannot be started, an attempt that was begun keeps
// what it takes to undo it, and one that was not leaves nothing (J3).
func TestWayBack(t *testing.T) {
	// systemd refuses to run the unit, and says that it does not run.
	programs := t.TempDir()
	for name, script := range map[string]string{"systemd-run": "exit 1", "systemctl": "echo inactive"} {
		if err := os.WriteFile(filepath.Join(programs, name), []byte("#!/bin/sh\n"+script+"\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	t.Setenv("PATH", programs+":"+os.Getenv("PATH"))
	for name, c := range map[string]struct {
		phase, steps string
		kept         bool
	}{
		"nothing was begun": {phaseDo, "", false},
		"it was killed":     {phaseSettle, `{"step":"stop"}` + "\n", true},
	} {
		root := t.TempDir()
		dir := filepath.Join(root, takeover.Dir)
		if err := os.MkdirAll(dir, 0o700); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(dir, "steps"), []byte(c.steps), 0o600); err != nil {
			t.Fatal(err)
		}
		ctl := &ctl{environment: environment{root: root, stdout: io.Discard, stderr: io.Discard}}
		if err := ctl.watchTakeover(t.Context(), c.phase); err == nil {
			t.Errorf("%s: a unit that does not start is no error", name)
		}
		if _, err := os.Stat(dir); (err == nil) != c.kept {
			t.Errorf("%s: what is noted of it is kept: %v, want %v", name, err == nil, c.kept)
		}
	}
}
