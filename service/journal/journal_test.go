package journal

import (
	"log/slog"
	"maps"
	"strings"
	"testing"
	"testing/slogtest"

	"github.com/coreos/go-systemd/v22/journal"
)

type entry struct {
	message  string
	priority journal.Priority
	fields   map[string]string
}

func recorder(level slog.Level) (*Handler, *[]entry) {
	var entries []entry
	return &Handler{Level: level, Send: func(message string, p journal.Priority, fields map[string]string) error {
		entries = append(entries, entry{message, p, fields})
		return nil
	}}, &entries
}

// I1: the ENI, the MAC address and the interface are fields of their own.
func TestFields(t *testing.T) {
	h, entries := recorder(slog.LevelInfo)
	log := slog.New(h).With("eni", "eni-0123456789abcdef0")
	log.Info("ENI configured", "interface", "ens6", "device_index", 1, "_odd key", "a b")
	log.Debug("not shown")
	log.WithGroup("g").Error("bad", slog.Group("h", "k", 1))
	if len(*entries) != 2 {
		t.Fatalf("%d entries", len(*entries))
	}
	first := (*entries)[0]
	want := map[string]string{"ENI": "eni-0123456789abcdef0", "INTERFACE": "ens6", "DEVICE_INDEX": "1", "ODD_KEY": "a b", "SYSLOG_IDENTIFIER": "ec2netd"}
	if !maps.Equal(first.fields, want) || first.priority != journal.PriInfo {
		t.Errorf("%+v", first)
	}
	if first.message != `ENI configured eni=eni-0123456789abcdef0 interface=ens6 device_index=1 _odd key="a b"` {
		t.Error(first.message)
	}
	if second := (*entries)[1]; second.fields["G_H_K"] != "1" || second.priority != journal.PriErr {
		t.Errorf("%+v", second)
	}
}

// The rules that every slog handler keeps. The journal keeps the time by itself, so
// a record without a time cannot be told here.
func TestHandler(t *testing.T) {
	var entries *[]entry
	slogtest.Run(t, func(*testing.T) slog.Handler {
		var h *Handler
		h, entries = recorder(slog.LevelDebug)
		return h
	}, func(t *testing.T) map[string]any {
		last := (*entries)[len(*entries)-1]
		message, _, _ := strings.Cut(last.message, " ")
		result := map[string]any{slog.MessageKey: message, slog.LevelKey: last.priority}
		if !strings.HasSuffix(t.Name(), "zero-time") {
			result[slog.TimeKey] = true
		}
		for key, value := range last.fields {
			at := result
			parts := strings.Split(key, "_")
			for i, part := range parts {
				if len(part) == 1 && i < len(parts)-1 {
					next, ok := at[part].(map[string]any)
					if !ok {
						next = map[string]any{}
						at[part] = next
					}
					at = next
					continue
				}
				at[part] = value
			}
		}
		return lower(result)
	})
}

// lower undoes the upper case of field names where the rules want it as it was.
func lower(m map[string]any) map[string]any {
	for key, value := range maps.Clone(m) {
		if inner, ok := value.(map[string]any); ok {
			m[key] = lower(inner)
		} else if l := strings.ToLower(key); l != key {
			m[l] = value
		}
	}
	return m
}

// I1: the level and the target can be changed while loggers are in use.
func TestLog(t *testing.T) {
	var out strings.Builder
	l := NewLog(slog.LevelInfo, &out)
	if err := l.SetTarget(TargetConsole); err != nil {
		t.Fatal(err)
	}
	log := l.Logger().With("eni", "eni-1").WithGroup("g")
	log.Debug("not shown")
	for name, shows := range map[string]bool{"debug": true, "info": false, "emerg": false} {
		out.Reset()
		if err := l.SetLevel(name); err != nil || l.Level() != name {
			t.Errorf("level %s: %v, %s", name, err, l.Level())
		}
		log.Debug("shown", "k", 1)
		if strings.Contains(out.String(), "eni=eni-1 g.k=1") != shows {
			t.Errorf("at %s: %q", name, out.String())
		}
	}
	if err := l.SetLevel("debug"); err != nil {
		t.Fatal(err)
	}
	out.Reset()
	if err := l.SetTarget(TargetNull); err != nil {
		t.Fatal(err)
	}
	log.Error("nowhere")
	if out.Len() > 0 {
		t.Errorf("to null: %q", out.String())
	}
	if l.SetLevel("loud") == nil || l.SetTarget("printer") == nil || l.Target() != TargetNull {
		t.Error("what there is not can be set")
	}
}
