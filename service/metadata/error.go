package metadata

import (
	"errors"
	"fmt"
	"slices"
	"strings"
)

// Kind tells failures of a read apart (D3).
type Kind int

// The kinds of failure.
const (
	// Unreachable: no connection on any path: refused, no route, no address.
	Unreachable Kind = iota
	// Timeout: no answer in time.
	Timeout
	// Reset: the connection ended before the answer did.
	Reset
	// NotFound: 404. Of a key that may be absent it is an answer, not a failure.
	NotFound
	// Denied: 401 or 403 for a key, to a token that a running service has given; or 401 for
	// a token.
	Denied
	// Throttled: 429.
	Throttled
	// ServerError: 5xx, and every other status.
	ServerError
	// Malformed: an answer that is not what the key holds, is too long or no HTTP.
	Malformed
	// Disabled: 403 for a token. The service is switched off for the instance (D12).
	Disabled
)

// Kinds returns all of them.
func Kinds() []Kind {
	return []Kind{Unreachable, Timeout, Reset, NotFound, Denied, Throttled, ServerError, Malformed, Disabled}
}

// String names the kind as it is counted and logged.
func (k Kind) String() string {
	switch k {
	case Unreachable:
		return "unreachable"
	case Timeout:
		return "timeout"
	case Reset:
		return "reset"
	case NotFound:
		return "not-found"
	case Denied:
		return "denied"
	case Throttled:
		return "throttled"
	case ServerError:
		return "server-error"
	case Malformed:
		return "malformed"
	case Disabled:
		return "disabled"
	}
	return "unknown"
}

// Error is a failed read of one key.
type Error struct {
	// Key below meta-data/, or "token".
	Key  string
	Kind Kind
	// Status of the HTTP answer, 0 where there was none.
	Status int
	// Err says more.
	Err error
}

// Error says which key could not be read, and why.
func (e *Error) Error() string {
	return fmt.Sprintf("reading %s from the metadata service: %v", e.Key, e.Err)
}

// Unwrap returns the cause.
func (e *Error) Unwrap() error { return e.Err }

// KindOf returns the kind of a failed read, Unreachable for an error that is none.
func KindOf(err error) Kind {
	var e *Error
	if errors.As(err, &e) {
		return e.Kind
	}
	return Unreachable
}

// IncompleteError says that the service answered, but does not tell all of an ENI yet:
// keys of a new ENI appear one by one (facts: late-keys).
type IncompleteError struct {
	MAC string
	// Missing keys, sorted. Empty when the ENI itself is not listed.
	Missing []string
	// Vanished: the listing has the key that is missing.
	Vanished bool
}

// Error says what is missing.
func (e *IncompleteError) Error() string {
	if len(e.Missing) == 0 {
		return fmt.Sprintf("the metadata does not list %s", e.MAC)
	}
	return fmt.Sprintf("the metadata of %s is not complete yet: no %s", e.MAC, strings.Join(e.Missing, ", "))
}

// IsIncomplete reports whether the service answered a read, and does not tell all of an ENI yet.
func IsIncomplete(err error) bool {
	var incomplete *IncompleteError
	return errors.As(err, &incomplete)
}

func incomplete(mac string, missing ...string) *IncompleteError {
	slices.Sort(missing)
	return &IncompleteError{MAC: mac, Missing: missing}
}
