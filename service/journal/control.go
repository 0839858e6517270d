package journal

import (
	"context"
	"fmt"
	"io"
	"log/slog"
	"strings"
	"sync"

	"github.com/coreos/go-systemd/v22/journal"
)

// Log is a log whose level and target can be changed while it is in use, with the values
// of org.freedesktop.LogControl1(5).
type Log struct {
	level slog.LevelVar
	// targets by name.
	targets map[string]slog.Handler

	mu            sync.RWMutex
	target, shown string
}

// Targets of a log: the journal's native protocol, standard error, and nothing. "auto"
// is the journal where standard error goes there.
const (
	TargetAuto    = "auto"
	TargetJournal = "journal"
	TargetConsole = "console"
	TargetNull    = "null"
)

// NewLog returns a log of a level that writes to stderr or to the journal, as auto says.
func NewLog(level slog.Level, stderr io.Writer) *Log {
	l := &Log{target: TargetConsole}
	l.level.Set(level)
	if onJournal, _ := journal.StderrIsJournalStream(); onJournal {
		l.target = TargetJournal
	}
	l.targets = map[string]slog.Handler{
		TargetJournal: &Handler{Level: &l.level, Send: journal.Send},
		TargetConsole: Text(stderr, &l.level),
		TargetNull:    slog.DiscardHandler,
	}
	l.targets[TargetAuto] = l.targets[l.target]
	return l
}

// Logger returns a logger that follows the log.
func (l *Log) Logger() *slog.Logger {
	return slog.New(&following{log: l, derive: func(h slog.Handler) slog.Handler { return h }})
}

// Level is the level by its name in syslog(3).
func (l *Log) Level() string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	if l.shown != "" {
		return l.shown
	}
	switch priority(l.level.Level()) {
	case journal.PriErr:
		return "err"
	case journal.PriWarning:
		return "warning"
	case journal.PriInfo:
		return "info"
	}
	return "debug"
}

// SetLevel sets the level by its name in syslog(3). What is worse than an error, and
// notice, does not occur here: such a level shows what the next one that does shows.
func (l *Log) SetLevel(name string) error {
	level, ok := map[string]slog.Level{
		"emerg": slog.LevelError + 1, "alert": slog.LevelError + 1, "crit": slog.LevelError + 1, "err": slog.LevelError,
		"warning": slog.LevelWarn, "notice": slog.LevelWarn, "info": slog.LevelInfo, "debug": slog.LevelDebug,
	}[name]
	if !ok {
		return fmt.Errorf("no log level %.20q: give emerg, alert, crit, err, warning, notice, info or debug", name)
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.level.Set(level)
	l.shown = name
	return nil
}

// Target is where the log goes.
func (l *Log) Target() string {
	l.mu.RLock()
	defer l.mu.RUnlock()
	return l.target
}

// SetTarget has the log go to another place.
func (l *Log) SetTarget(name string) error {
	if l.targets[name] == nil {
		return fmt.Errorf("no log target %.20q: give %s", name, strings.Join([]string{TargetAuto, TargetJournal, TargetConsole, TargetNull}, ", "))
	}
	l.mu.Lock()
	defer l.mu.Unlock()
	l.target = name
	return nil
}

// Identifier is what journalctl --identifier= finds the lines by.
func (l *Log) Identifier() string { return Identifier }

// following is a handler that goes where the log goes now.
type following struct {
	log *Log
	// derive adds attributes and groups.
	derive func(slog.Handler) slog.Handler
}

func (f *following) now() slog.Handler { return f.derive(f.log.targets[f.log.Target()]) }

// Enabled implements slog.Handler.
func (f *following) Enabled(ctx context.Context, level slog.Level) bool {
	return f.log.targets[f.log.Target()].Enabled(ctx, level)
}

// Handle implements slog.Handler.
func (f *following) Handle(ctx context.Context, record slog.Record) error {
	return f.now().Handle(ctx, record)
}

// WithAttrs implements slog.Handler.
func (f *following) WithAttrs(attrs []slog.Attr) slog.Handler {
	return &following{f.log, func(h slog.Handler) slog.Handler { return f.derive(h).WithAttrs(attrs) }}
}

// WithGroup implements slog.Handler.
func (f *following) WithGroup(name string) slog.Handler {
	return &following{f.log, func(h slog.Handler) slog.Handler { return f.derive(h).WithGroup(name) }}
}
