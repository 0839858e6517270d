package labtest

import (
	"context"
	"encoding/json"
	"path"
	"strings"
	"time"

	"ec2netd/cmd/vpclab/vpc"
)

// Run runs a command in the instance as root and returns its output.
func (l *Instance) Run(argv ...string) string {
	l.T.Helper()
	out, err := l.Inst.Exec(l.T.Context(), argv...)
	if err != nil {
		l.T.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// Fails runs a command that must fail, and returns what it said.
func (l *Instance) Fails(argv ...string) string {
	l.T.Helper()
	out, err := l.Inst.Exec(l.T.Context(), argv...)
	if err == nil {
		l.T.Fatalf("%q did not fail: %s", argv, out)
	}
	return err.Error()
}

// AsUser runs a command as an ordinary user and returns its output.
func (l *Instance) AsUser(argv ...string) string {
	l.T.Helper()
	out, err := l.Inst.Run(l.T.Context(), vpc.Command{Argv: argv, User: vpc.OrdinaryUser})
	if err != nil {
		l.T.Fatal(err)
	}
	return strings.TrimSpace(out)
}

// JSON runs a command as root and decodes the JSON that it prints.
func (l *Instance) JSON(into any, argv ...string) {
	l.T.Helper()
	out := l.Run(argv...)
	// For a table that is not there ip of Debian 12 prints half a list.
	if out == "" || out == "[" {
		out = "[]"
	}
	if err := json.Unmarshal([]byte(out), into); err != nil {
		l.T.Fatalf("%q printed %q: %v", argv, out, err)
	}
}

// Masked is the content by which Put makes a link to /dev/null.
const Masked = "/dev/null"

// Put writes a file of an administrator, with its directory, or a mask.
func (l *Instance) Put(file, content string) {
	l.T.Helper()
	l.Run("mkdir", "-p", path.Dir(file))
	if content == Masked {
		l.Run("ln", "-sfn", Masked, file)
		return
	}
	l.Run("sh", "-c", `printf %s "$1" > "$2.new" && mv "$2.new" "$2"`, "sh", content, file)
}

// Reboot reboots the instance.
func (l *Instance) Reboot() {
	l.T.Helper()
	if err := l.Inst.Reboot(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
}

// Patience is the limit of a wait in the instance: [Patience], and more for a machine, whose
// processor is emulated.
func (l *Instance) Patience() time.Duration {
	if l.Inst.Machine() {
		return 5 * Patience
	}
	return Patience
}

// Until waits until a condition holds. An error of it ends the test.
func (l *Instance) Until(what string, condition func() (bool, error)) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(l.T.Context(), l.Patience())
	defer cancel()
	if err := vpc.Until(ctx, what, condition); err != nil {
		l.T.Fatal(err)
	}
}

// UntilOr is Until for a condition that writes into last what it saw, which the log of a test that
// fails has.
func (l *Instance) UntilOr(what string, condition func() (bool, error), last *string) {
	l.T.Helper()
	defer func() {
		if l.T.Failed() {
			l.T.Logf("%s: at last\n%s", what, *last)
		}
	}()
	l.Until(what, condition)
}
