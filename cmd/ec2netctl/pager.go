package main

import (
	"cmp"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pagerCommands are the programs to try, as networkctl does: $SYSTEMD_PAGER, else $PAGER,
// else the usual ones. None: no pager is wanted.
func pagerCommands(getenv func(string) (string, bool)) [][]string {
	for _, name := range []string{"SYSTEMD_PAGER", "PAGER"} {
		value, ok := getenv(name)
		if !ok {
			continue
		}
		words := strings.Fields(value)
		if len(words) == 0 || (len(words) == 1 && words[0] == "cat") {
			return nil
		}
		return [][]string{words, {"less"}, {"more"}}
	}
	return [][]string{{"less"}, {"more"}}
}

// pagerEnvironment has less quit where all is on one screen (F), keep colours (R) and the
// screen (X), and end with Ctrl-C (K), unless SYSTEMD_LESS says otherwise.
func pagerEnvironment(environ []string, getenv func(string) (string, bool)) []string {
	less, _ := getenv("SYSTEMD_LESS")
	charset, _ := getenv("SYSTEMD_LESSCHARSET")
	environ = append(environ, "LESS="+cmp.Or(less, "FRSXMK"), "LESSCHARSET="+cmp.Or(charset, "utf-8"))
	// From sudo, a pager that starts no shell and opens no other file.
	_, viaSudo := getenv("SUDO_UID")
	if secure, ok := getenv("SYSTEMD_PAGERSECURE"); secure == "1" || (!ok && viaSudo) {
		environ = append(environ, "LESSSECURE=1")
	}
	return environ
}

// runPager shows text in a pager on the terminal; without one that starts it is false.
func runPager(text string) bool {
	for _, words := range pagerCommands(os.LookupEnv) {
		cmd := exec.Command(words[0], words[1:]...) //nolint:noctx // it ends when the user ends it
		cmd.Env = pagerEnvironment(os.Environ(), os.LookupEnv)
		cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
		pipe, err := cmd.StdinPipe()
		if err != nil {
			continue
		}
		if err := cmd.Start(); err != nil {
			continue
		}
		// Ctrl-C is for the pager: without it the terminal would be left as it is.
		interrupts := make(chan os.Signal, 1)
		signal.Notify(interrupts, os.Interrupt)
		_, _ = io.WriteString(pipe, text) // it may quit before it has read all
		_ = pipe.Close()
		_ = cmd.Wait()
		signal.Stop(interrupts)
		return true
	}
	return false
}

// page prints what may be long, through a pager where there is a terminal.
func (c *ctl) page(text string) error {
	if c.pager != nil && !c.noPager && c.pager(text) {
		return nil
	}
	return c.print(text)
}

// progressAfter is how long something must take before a word is said about it.
const progressAfter = time.Second

// progress shows a line with the time on the terminal of stderr while something takes
// long. The returned function ends it.
func (c *ctl) progress(what string) (stop func()) {
	if c.columns == 0 {
		return func() {}
	}
	quit, done := make(chan struct{}), make(chan struct{})
	began := time.Now()
	go func() {
		defer close(done)
		line := progress{w: c.stderr, columns: c.columns}
		defer line.clear()
		second := time.NewTicker(progressAfter)
		defer second.Stop()
		for {
			select {
			case <-quit:
				return
			case <-second.C:
				line.show(what + "… " + time.Since(began).Round(time.Second).String())
			}
		}
	}()
	return func() {
		close(quit)
		<-done
	}
}

// isTerminal tells whether a file is a terminal.
func isTerminal(f *os.File) bool {
	_, err := unix.IoctlGetTermios(int(f.Fd()), unix.TCGETS)
	return err == nil
}
