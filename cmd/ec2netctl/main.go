// Command ec2netctl shows what ec2netd makes of the network of an EC2 instance, and
// asks it to look again. It is a client of the Varlink interface org.ec2netd.Network.
// Only plan, dump-metadata, doctor and takeover look at the system themselves, and only
// takeover changes it; what they know of the network is in the packages of the daemon.
package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math"
	"os"
	"runtime/debug"
	"strconv"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/service/state"
)

// version is set when linking: -ldflags "-X main.version=1.2.3".
var version string

// The exit codes, as --help tells them.
const (
	exitOK      = 0
	exitFailure = 1
	exitUsage   = 2
)

func main() {
	who := thisCaller()
	if who.elevated {
		replaceEnvironment(safeEnvironment(os.Environ()))
	}
	env := environment{
		stdin:   os.Stdin,
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		colour:  isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		columns: columns(os.Stderr),
		width:   columns(os.Stdout),
		uid:     os.Getuid(),
		who:     who,
		asks:    isTerminal(os.Stdin) && isTerminal(os.Stderr),
		now:     time.Now,
		journal: journal,
	}
	if env.width > 0 {
		env.pager = func(text string) bool { return runPager(text, who) }
	}
	os.Exit(run(os.Args[1:], env))
}

// environment is what the commands see of the system.
type environment struct {
	stdin          io.Reader
	stdout, stderr io.Writer
	// colour: stdout is a terminal that is to show colours.
	colour bool
	// columns of stderr if it is a terminal on which a line can be written over, else 0.
	columns int
	// width of stdout, likewise; 0: tables may be as wide as they are.
	width int
	uid   int
	who   caller
	// asks: stdin and stderr are a terminal, so that a question can be answered.
	asks bool
	now  func() time.Time
	// pager shows a text, and tells whether it did; nil for none.
	pager func(text string) bool
	// root is put before the paths of files, in tests; empty for the system.
	root string
	// journal returns the last lines about an ENI, see [journal].
	journal func(ctx context.Context, e *state.Interface, most int) string
}

// run is the whole program; it returns the exit code.
func run(args []string, env environment) int {
	root := newRoot(env)
	root.SetArgs(args)
	root.SetOut(env.stdout)
	root.SetErr(env.stderr)
	err := root.Execute()
	if err == nil {
		return exitOK
	}
	var failed *failure
	var usage *usageError
	if errors.Is(err, errSilent) {
		return exitFailure
	}
	if errors.As(err, &failed) && !errors.As(err, &usage) {
		fmt.Fprintf(env.stderr, "ec2netctl: %s\n", clean(failed.Error()))
		if a, ok := asAdvice(err); ok {
			fmt.Fprintln(env.stderr, clean(a.hint))
		}
		var t *trouble
		if errors.As(err, &t) {
			return exitUsage
		}
		return exitFailure
	}
	fmt.Fprintf(env.stderr, "ec2netctl: %v\nSee ec2netctl --help.\n", clean(err.Error()))
	return exitUsage
}

// failure is an error of a command that was called rightly.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

// trouble is an error of a command whose failure has a meaning of its own.
type trouble struct{ error }

func (t *trouble) Unwrap() error { return t.error }

// usageError is of a command that was called wrongly in a way that only it can tell.
type usageError struct{ message string }

func (u *usageError) Error() string { return u.message }

// currentVersion is what --version prints.
func currentVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok {
		for _, s := range info.Settings {
			if s.Key == "vcs.revision" && len(s.Value) >= 12 {
				return "devel-" + s.Value[:12]
			}
		}
	}
	return "devel"
}

// userAgent is that of requests to the metadata service.
func userAgent() string { return "ec2netctl/" + currentVersion() }

// columns is the width of a terminal that knows more than to print, else 0.
func columns(f *os.File) int {
	if !isTerminal(f) || os.Getenv("TERM") == "dumb" {
		return 0
	}
	// As systemd's tools have it.
	if said, err := strconv.Atoi(os.Getenv("COLUMNS")); err == nil && said > 0 && said <= math.MaxUint16 {
		return said
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}
