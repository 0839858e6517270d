package api

import (
	"context"
	"fmt"
)

// The actions, as polkit names them: units/polkit-1 says who may do them by default.
const (
	// ActionRefresh is that of Refresh.
	ActionRefresh = "org.ec2netd1.refresh"
	// ActionSetLog is that of changing the level and the target of the log.
	ActionSetLog = "org.ec2netd1.set-log"
)

// Caller is who calls, as the bus or the kernel vouches for it.
type Caller struct {
	// UID of the calling process.
	UID uint32
	// PID of the calling process when it connected, or 0 where it is not known.
	// It may belong to another process by now.
	PID int32
	// BusName is the caller's unique name on the system bus (:1.42), empty for a
	// Varlink client.
	BusName string
	// Interactive: the caller can wait while its user is asked for a password.
	Interactive bool
}

// Authorizer decides who may change something. Reading is for everybody and asks
// nobody.
type Authorizer interface {
	// Authorize returns nil if the caller may do action, a *NotPermittedError if
	// not, and another error if that could not be found out, which refuses too.
	Authorize(ctx context.Context, caller Caller, action string) error
}

// RootOnly is the Authorizer that lets uid 0 do everything and others nothing.
type RootOnly struct{}

// Authorize implements [Authorizer].
func (RootOnly) Authorize(_ context.Context, caller Caller, action string) error {
	if caller.UID == 0 {
		return nil
	}
	return &NotPermittedError{Caller: caller, Action: action}
}

// NotPermittedError refuses an action.
type NotPermittedError struct {
	Caller Caller
	Action string
}

// Error says who was refused and who would not be.
func (e *NotPermittedError) Error() string {
	return fmt.Sprintf("%s is for root and for those whom polkit lets do it, and was called by uid %d: call it as root, for example with sudo",
		e.Action, e.Caller.UID)
}
