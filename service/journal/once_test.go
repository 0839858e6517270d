package journal

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// I1: a condition is one warning until it changes or has ended; each repeat is a line of level debug.
func TestOnce(t *testing.T) {
	var out bytes.Buffer
	o := &Once{Log: slog.New(slog.NewTextHandler(&out, &slog.HandlerOptions{Level: slog.LevelDebug}))}
	for _, c := range []struct {
		do func()
		// level and rest are those of the line, empty for none.
		level, rest string
	}{
		{func() { o.Warn("a", "failed", "reason", "x") }, "WARN", "msg=failed reason=x"},
		{func() { o.Warn("a", "failed", "reason", "x") }, "DEBUG", "msg=failed reason=x"},
		{func() { o.Warn("b", "failed", "reason", "x") }, "WARN", "msg=failed reason=x"},
		{func() { o.Warn("a", "failed", "reason", "y") }, "WARN", "msg=failed reason=y"},
		{func() { o.WarnOf("c", "silent", "failed", "after", 1) }, "WARN", "msg=failed after=1"},
		{func() { o.WarnOf("c", "silent", "failed", "after", 2) }, "DEBUG", "msg=failed after=2"},
		{func() { o.Clear("a") }, "", ""},
		{func() { o.Warn("a", "failed", "reason", "y") }, "WARN", "msg=failed reason=y"},
	} {
		out.Reset()
		c.do()
		want := ""
		if c.level != "" {
			want = "level=" + c.level + " " + c.rest + "\n"
		}
		_, got, _ := strings.Cut(out.String(), " ") // without the time
		if got != want {
			t.Errorf("logged %q, want %q", got, want)
		}
	}
	if o.Len() != 3 || !o.Clear("a") || o.Clear("a") || o.Len() != 2 {
		t.Errorf("%d conditions", o.Len())
	}
}
