// Command ec2netctl shows what ec2netd makes of the network of an EC2 instance, and
// asks it to look again. It is a client of the Varlink interface org.ec2netd.Network
// and knows nothing about the network itself.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"runtime/debug"
	"time"

	"golang.org/x/sys/unix"
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
	os.Exit(run(os.Args[1:], environment{
		stdout:  os.Stdout,
		stderr:  os.Stderr,
		colour:  isTerminal(os.Stdout) && os.Getenv("NO_COLOR") == "" && os.Getenv("TERM") != "dumb",
		columns: columns(os.Stderr),
		uid:     os.Getuid(),
		now:     time.Now,
	}))
}

// environment is what the commands see of the system.
type environment struct {
	stdout, stderr io.Writer
	// colour: stdout is a terminal that is to show colours.
	colour bool
	// columns of stderr if it is a terminal on which a line can be written over, else 0.
	columns int
	uid     int
	now     func() time.Time
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
	if errors.Is(err, errSilent) {
		return exitFailure
	}
	if errors.As(err, &failed) {
		fmt.Fprintf(env.stderr, "ec2netctl: %s\n", clean(failed.Error()))
		var a *advice
		if errors.As(err, &a) {
			fmt.Fprintln(env.stderr, clean(a.hint))
		}
		return exitFailure
	}
	fmt.Fprintf(env.stderr, "ec2netctl: %v\nSee ec2netctl --help.\n", err)
	return exitUsage
}

// failure is an error of a command that was called rightly.
type failure struct{ error }

func (f *failure) Unwrap() error { return f.error }

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

func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}

// columns is the width of a terminal that knows more than to print, else 0.
func columns(f *os.File) int {
	if !isTerminal(f) || os.Getenv("TERM") == "dumb" {
		return 0
	}
	size, err := unix.IoctlGetWinsize(int(f.Fd()), unix.TIOCGWINSZ)
	if err != nil || size.Col == 0 {
		return 80
	}
	return int(size.Col)
}
