package journal

import (
	"bytes"
	"log/slog"
	"strings"
	"testing"
)

// I1: a condition is one line until it changes or has ended.
func TestOnce(t *testing.T) {
	var out bytes.Buffer
	o := &Once{Log: slog.New(slog.NewTextHandler(&out, nil))}
	lines := func() int { return strings.Count(out.String(), "\n") }
	for _, c := range []struct {
		do   func()
		want int
	}{
		{func() { o.Warn("a", "failed", "reason", "x") }, 1},
		{func() { o.Warn("a", "failed", "reason", "x") }, 1},
		{func() { o.Warn("b", "failed", "reason", "x") }, 2},
		{func() { o.Warn("a", "failed", "reason", "y") }, 3},
		{func() { o.WarnOf("c", "silent", "failed", "after", 1) }, 4},
		{func() { o.WarnOf("c", "silent", "failed", "after", 2) }, 4},
		{func() { o.Clear("a") }, 4},
		{func() { o.Warn("a", "failed", "reason", "y") }, 5},
	} {
		if c.do(); lines() != c.want {
			t.Errorf("%d lines, not %d:\n%s", lines(), c.want, out.String())
		}
	}
	if o.Len() != 3 || !o.Clear("a") || o.Clear("a") || o.Len() != 2 {
		t.Errorf("%d conditions", o.Len())
	}
}
