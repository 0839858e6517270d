package api

import (
	"context"
	"fmt"
)

// The actions, in polkit's terms: units/polkit-1 defines who may perform them by
// default.
const (
	// ActionRefresh is required for Refresh.
	ActionRefresh = "org.ec2netd1.refresh"
	// ActionSetLog is required to change the level and the target of the log.
	ActionSetLog = "org.ec2netd1.set-log"
)

// Caller is the caller of a method, as reported by the bus or the kernel.
type Caller struct {
	// UID of the calling process.
	UID uint32
	// PID of the calling process when it connected, or 0 if it is not known. The number
	// may belong to another process now.
	PID int32
	// BusName is the caller's unique name on the system bus (:1.42), empty for a
	// Varlink client.
	BusName string
	// Interactive: the caller can wait while polkit asks its user for a password.
	Interactive bool
}

// Authorizer decides who may change something. Everybody may read without it.
type Authorizer interface {
	// Authorize returns nil if the caller may perform the action, a *NotPermittedError
	// if not, and another error if it could not decide, which also refuses the action.
	Authorize(ctx context.Context, caller Caller, action string) error
}

// RootOnly is the Authorizer that permits everything to uid 0 and nothing to others.
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

// Error says who was refused and who is permitted.
func (e *NotPermittedError) Error() string {
	return fmt.Sprintf("%s is for root and for those whom polkit lets do it, and was called by uid %d: call it as root, for example with sudo",
		e.Action, e.Caller.UID)
}
