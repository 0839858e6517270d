// Package journal is a slog handler for systemd-journald, with the attributes as
// native journal fields (I1).
//
// An attribute "eni" becomes the field ENI, "interface" INTERFACE, and so on: upper
// case, and everything that a field name cannot have becomes an underscore.
package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strconv"
	"strings"

	"github.com/coreos/go-systemd/v22/journal"
)

// Identifier is what journalctl --identifier= finds the daemon's lines by.
const Identifier = "ec2netd"

// Text returns the handler for a terminal.
func Text(w io.Writer, level slog.Leveler) slog.Handler {
	return slog.NewTextHandler(w, &slog.HandlerOptions{Level: level})
}

// Handler sends records to the journal.
type Handler struct {
	Level slog.Leveler
	// Send is journal.Send of go-systemd, or a test's.
	Send func(message string, priority journal.Priority, fields map[string]string) error

	attrs  []slog.Attr
	prefix string
}

// Enabled implements slog.Handler.
func (h *Handler) Enabled(_ context.Context, level slog.Level) bool {
	return level >= h.Level.Level()
}

// Handle implements slog.Handler. The message carries the values too, since that
// is what journalctl shows.
func (h *Handler) Handle(_ context.Context, record slog.Record) error {
	fields := map[string]string{"SYSLOG_IDENTIFIER": Identifier}
	var shown strings.Builder
	shown.WriteString(record.Message)
	add := func(prefix string, attr slog.Attr) {
		flatten(prefix, attr, func(key string, value slog.Value) {
			text := value.String()
			if name := fieldName(key); name != "" {
				fields[name] = text
			}
			if text == "" || strings.ContainsAny(text, " \"=\n\t") {
				text = strconv.Quote(text)
			}
			fmt.Fprintf(&shown, " %s=%s", key, text)
		})
	}
	for _, attr := range h.attrs {
		add("", attr)
	}
	record.Attrs(func(attr slog.Attr) bool {
		add(h.prefix, attr)
		return true
	})
	return h.Send(shown.String(), priority(record.Level), fields)
}

// WithAttrs implements slog.Handler.
func (h *Handler) WithAttrs(attrs []slog.Attr) slog.Handler {
	with := *h
	with.attrs = append([]slog.Attr(nil), h.attrs...)
	for _, attr := range attrs {
		flatten(h.prefix, attr, func(key string, value slog.Value) {
			with.attrs = append(with.attrs, slog.Attr{Key: key, Value: value})
		})
	}
	return &with
}

// WithGroup implements slog.Handler.
func (h *Handler) WithGroup(name string) slog.Handler {
	if name == "" {
		return h
	}
	with := *h
	with.prefix = h.prefix + name + "."
	return &with
}

func flatten(prefix string, attr slog.Attr, use func(string, slog.Value)) {
	value := attr.Value.Resolve()
	if value.Kind() == slog.KindGroup {
		if attr.Key != "" {
			prefix += attr.Key + "."
		}
		for _, inner := range value.Group() {
			flatten(prefix, inner, use)
		}
		return
	}
	if attr.Key == "" && value.Equal(slog.Value{}) {
		return
	}
	use(prefix+attr.Key, value)
}

// fieldName makes a journal field of an attribute's key: A-Z, 0-9 and underscores,
// beginning with a letter (systemd.journal-fields(7)).
func fieldName(key string) string {
	name := strings.Map(func(r rune) rune {
		switch {
		case r >= 'a' && r <= 'z':
			return r - 'a' + 'A'
		case r >= 'A' && r <= 'Z', r >= '0' && r <= '9':
			return r
		}
		return '_'
	}, key)
	name = strings.TrimLeft(name, "_0123456789")
	return name[:min(len(name), 64)]
}

func priority(level slog.Level) journal.Priority {
	switch {
	case level >= slog.LevelError:
		return journal.PriErr
	case level >= slog.LevelWarn:
		return journal.PriWarning
	case level >= slog.LevelInfo:
		return journal.PriInfo
	}
	return journal.PriDebug
}
