package journal

import (
	"fmt"
	"log/slog"
)

// Once logs a condition when it begins or changes, not each time that it is seen: an error that
// repeats is one line (I1). Its methods must not be called concurrently.
type Once struct {
	// Log is where it is written to.
	Log *slog.Logger

	said map[string]string
}

// Warn logs a warning about the condition with a key, unless the same was logged for it last. Then
// the message is one of level debug.
func (o *Once) Warn(key, message string, args ...any) {
	o.WarnOf(key, fmt.Sprint(args...), message, args...)
}

// WarnOf is Warn for a message whose arguments differ from one time to the next. It counts as the
// same as long as its gist is the same.
func (o *Once) WarnOf(key, gist, message string, args ...any) {
	log, text := o.Log.Warn, message+gist
	if o.said[key] == text {
		log = o.Log.Debug
	}
	if o.said == nil {
		o.said = make(map[string]string)
	}
	o.said[key] = text
	log(message, args...)
}

// Clear ends the condition with a key, and reports whether there was one.
func (o *Once) Clear(key string) bool {
	_, was := o.said[key]
	delete(o.said, key)
	return was
}

// Len returns how many conditions there are.
func (o *Once) Len() int { return len(o.said) }
