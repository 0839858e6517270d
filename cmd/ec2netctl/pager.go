package main

import (
	"cmp"
	"io"
	"os"
	"os/exec"
	"os/signal"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// pager is what shows long output on a terminal.
type pager struct {
	// commands are the programs to try. None: no pager is wanted.
	commands [][]string
	// secure: a pager that starts no program and opens no other file, as only less(1) can.
	secure bool
}

// pagerFor decides which pager to use as systemd's tools do, see $SYSTEMD_PAGERSECURE in
// networkctl(1): $SYSTEMD_PAGER, or else $PAGER, can always say that none is wanted, and can name
// one only with $SYSTEMD_PAGERSECURE. Secure mode is that variable, or else wherever the rights
// are not those of the owner of the login session.
//
// With the rights of somebody else (J4) it is less in secure mode or nothing, whatever that
// variable says: systemd leaves it to sudo to keep it from users.
func pagerFor(getenv func(string) (string, bool), who caller) pager {
	value, named := getenv("SYSTEMD_PAGER")
	if !named {
		value, named = getenv("PAGER")
	}
	words := strings.Fields(value)
	if named && (len(words) == 0 || (len(words) == 1 && words[0] == "cat")) {
		return pager{}
	}
	p := pager{secure: !who.ownsSession}
	trusted := false
	if said, ok := getenv("SYSTEMD_PAGERSECURE"); ok {
		if p.secure, trusted = parseBoolean(said); !trusted {
			p.secure = true
		}
	}
	if who.elevated {
		p.secure, trusted = true, false
	}
	if named && trusted {
		p.commands = append(p.commands, words)
	}
	if p.commands = append(p.commands, []string{"less"}); !p.secure {
		p.commands = append(p.commands, []string{"more"})
	}
	return p
}

// parseBoolean reads a boolean as systemd's tools do.
func parseBoolean(s string) (value, ok bool) {
	switch strings.ToLower(s) {
	case "1", "yes", "y", "true", "t", "on":
		return true, true
	case "0", "no", "n", "false", "f", "off":
		return false, true
	default:
		return false, false
	}
}

// environment of the pager has less quit where all is on one screen (F), keep colours (R) and the
// screen (X), and end with Ctrl-C (K), unless SYSTEMD_LESS says otherwise. In secure mode nothing
// else is handed on that could name a file or a program for less.
func (p *pager) environment(environ []string, getenv func(string) (string, bool)) []string {
	less, _ := getenv("SYSTEMD_LESS")
	charset, _ := getenv("SYSTEMD_LESSCHARSET")
	if p.secure {
		environ = append(safeEnvironment(environ), "LESSSECURE=1", "LESSHISTFILE=-")
		if !lessOptions.MatchString(less) {
			less = ""
		}
		if !lessCharset.MatchString(charset) {
			charset = ""
		}
	} else {
		environ = slices.DeleteFunc(slices.Clone(environ), func(pair string) bool { return strings.HasPrefix(pair, "LESSSECURE=") })
	}
	return append(environ, "LESS="+cmp.Or(less, "FRSXMK"), "LESSCHARSET="+cmp.Or(charset, "utf-8"))
}

// runPager shows text in a pager on the terminal; it reports whether one started.
func runPager(text string, who caller) bool {
	p := pagerFor(os.LookupEnv, who)
	for _, words := range p.commands {
		cmd := exec.Command(words[0], words[1:]...) //nolint:noctx // it ends when the user ends it
		cmd.Env = p.environment(os.Environ(), os.LookupEnv)
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
