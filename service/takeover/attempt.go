package takeover

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"time"

	"github.com/google/renameio/v2"

	"ec2netd/service/file"
)

// Dir has the files of one attempt. It is there from the moment an attempt is prepared until
// somebody has been told how it ended, and never longer than until the next boot, which makes
// the system what is enabled anyway.
const Dir = "/run/ec2netd.takeover"

// Files in [Dir]: what is to be done, what was there before, the steps that were begun, the
// policy rules that have no owner afterwards, the routes that stand in meanwhile, and what was moved
// out of the way.
const (
	planFile   = "plan.json"
	priorFile  = "prior.json"
	stepsFile  = "steps"
	rulesFile  = "rules.json"
	routesFile = "routes.json"
	movedDir   = "moved"
	// mostRecord bounds one of them.
	mostRecord = 1 << 20
)

// Request is a plan, the links that it is about, and how long the ENIs may take to be configured.
type Request struct {
	Plan    Plan          `json:"plan"`
	Links   []string      `json:"links"`
	Timeout time.Duration `json:"timeout"`
}

// prior is what undoing needs to know of the system before the first step.
type prior struct {
	// Generated are the daemon's files that were there.
	Generated []string `json:"generated"`
	// Active are units that run, and that are stopped without being in the plan.
	Active []string `json:"active"`
}

// Step is a step of an attempt. It is noted before it is taken.
type Step string

// The steps in their order. [Commit] is the one after which an attempt is completed and not
// undone any more. [Undo] begins the way back.
const (
	Stop    Step = "stop"
	Remove  Step = "remove"
	Flush   Step = "flush"
	Hold    Step = "hold"
	Start   Step = "start"
	Reload  Step = "reload"
	Restart Step = "restart"
	Wait    Step = "wait"
	Commit  Step = "commit"
	Undo    Step = "undo"
)

// Outcome is how an attempt ended.
type Outcome string

// The outcomes: the ENIs are configured as after a boot; what ran before runs again; neither.
const (
	Configured Outcome = "configured"
	Restored   Outcome = "restored"
	Broken     Outcome = "broken"
)

// Record is a line of the attempt's record: a step that begins, why one failed, or the outcome.
type Record struct {
	Time    time.Time `json:"time"`
	Step    Step      `json:"step,omitempty"`
	Outcome Outcome   `json:"outcome,omitempty"`
	// Text is for people. Error says what failed, if anything did, and Hint what to do.
	Text  string `json:"text,omitempty"`
	Error string `json:"error,omitempty"`
	Hint  string `json:"hint,omitempty"`
}

// Records is the record of an attempt.
type Records []Record

// Last returns the last record.
func (r Records) Last() Record {
	if len(r) == 0 {
		return Record{}
	}
	return r[len(r)-1]
}

// Began reports whether a step was begun.
func (r Records) Began(step Step) bool {
	for i := range r {
		if r[i].Step == step {
			return true
		}
	}
	return false
}

// failure returns why the attempt failed, as far as that was noted.
func (r Records) failure() string {
	for i := range r {
		if r[i].Error != "" && r[i].Outcome == "" {
			return r[i].Error
		}
	}
	return ""
}

// Prepare makes the files of an attempt. It fails with [fs.ErrExist] if there are those of
// another one.
func Prepare(root string, request *Request) error {
	dir := filepath.Join("/", root, Dir)
	if err := os.Mkdir(dir, 0o700); err != nil {
		return fmt.Errorf("preparing the takeover: %w", err)
	}
	return write(filepath.Join(dir, planFile), request)
}

// Discard removes the files of an attempt that has ended, or that nobody has begun.
func Discard(root string) error {
	if err := os.RemoveAll(filepath.Join("/", root, Dir)); err != nil {
		return fmt.Errorf("removing the files of the takeover: %w", err)
	}
	return nil
}

// Read returns the record of the attempt that is under way, or that has ended and that nobody
// has discarded. Exists reports whether there is one; its record may be empty.
func Read(root string) (records Records, exists bool, err error) {
	dir := filepath.Join("/", root, Dir)
	if _, err := os.Lstat(dir); errors.Is(err, fs.ErrNotExist) {
		return nil, false, nil
	}
	text, _, err := file.ReadOwn(filepath.Join(dir, stepsFile), mostRecord)
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, true, fmt.Errorf("reading how far the takeover came: %w", err)
	}
	for line := range bytes.Lines(text) {
		var record Record
		if !bytes.HasSuffix(line, []byte("\n")) || json.Unmarshal(line, &record) != nil {
			break // it was killed as it wrote that
		}
		records = append(records, record)
	}
	return records, true, nil
}

// note adds a record, and prints it.
func (t *Takeover) note(record Record) error {
	record.Time = time.Now()
	text, err := json.Marshal(record)
	if err != nil {
		return err
	}
	//nolint:forbidigo // it is written, in a directory that is root's alone
	steps, err := os.OpenFile(t.in(stepsFile), os.O_WRONLY|os.O_CREATE|os.O_APPEND, 0o600)
	if err == nil {
		_, err = steps.Write(append(text, '\n'))
		err = errors.Join(err, steps.Close())
	}
	if err != nil {
		return fmt.Errorf("noting a step of the takeover: %w", err)
	}
	for _, line := range []string{record.Text, record.Error, record.Hint} {
		if line != "" && t.Out != nil {
			fmt.Fprintln(t.Out, line) // the journal may be gone
		}
	}
	return nil
}

// write replaces a file by a value.
func write(path string, value any) error {
	text, err := json.Marshal(value)
	if err == nil {
		err = renameio.WriteFile(path, text, 0o600, renameio.WithTempDir(filepath.Dir(path)))
	}
	if err != nil {
		return fmt.Errorf("writing %s: %w", path, err)
	}
	return nil
}

// read reads a file that [write] wrote.
func read(path string, value any) error {
	text, _, err := file.ReadOwn(path, mostRecord)
	if err == nil {
		err = json.Unmarshal(text, value)
	}
	if err != nil {
		return fmt.Errorf("reading %s: %w", path, err)
	}
	return nil
}
