package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
	"unicode/utf8"

	"github.com/varlink/go/varlink"

	"ec2netd/api"
	"ec2netd/api/orgec2netdnetwork"
	"ec2netd/service/state"
)

const (
	// onlineTimeout is the default of systemd-networkd-wait-online(8) too.
	onlineTimeout = 2 * time.Minute
	// firstReconnect and slowestReconnect bound the time between two attempts to
	// connect; it doubles. systemd gives up on a socket that starts its service 20
	// times in 2 s (TriggerLimitBurst= in systemd.socket(5)): stay far from that.
	firstReconnect   = 100 * time.Millisecond
	slowestReconnect = 2 * time.Second
)

// errSilent is a failure of which only the exit code shall tell.
var errSilent = errors.New("failed")

// waitOptions are the flags of wait-online.
type waitOptions struct {
	timeout    span
	interfaces names
	quiet      bool
}

// waitOnline waits until the instance is online, see [unfinished].
func (c *ctl) waitOnline(ctx context.Context, o *waitOptions) error {
	if o.timeout > 0 {
		limited, stop := context.WithTimeout(ctx, time.Duration(o.timeout))
		defer stop()
		ctx = limited
	}
	ctx, hangUp := context.WithCancel(ctx)
	views := c.monitor(ctx)
	defer func() {
		hangUp()
		for range views { // until it has hung up
		}
	}()
	columns := c.columns
	if o.quiet {
		columns = 0
	}
	line := progress{w: c.stderr, columns: columns}
	defer line.clear()
	second := time.NewTicker(time.Second)
	defer second.Stop()

	began := c.now()
	last := view{err: noAnswer()}
	waiting := []string{"for ec2netd to answer"}
	for {
		select {
		case v, ok := <-views:
			switch {
			case !ok:
				line.clear()
				return c.notOnline(o, last, waiting)
			case v.err != nil:
				waiting = []string{v.err.Error()}
			default:
				waiting = unfinished(v.state, o.interfaces)
			}
			last = v
			if len(waiting) == 0 {
				if v.state.State == state.Unsupported && !o.quiet {
					line.clear()
					fmt.Fprintf(c.stderr, "ec2netctl: not waiting: %s\n", clean(v.state.Reason))
				}
				if c.wantsJSON() {
					return c.printJSON(v.raw)
				}
				return nil
			}
		case <-second.C:
		}
		line.show(waitingText(c.now().Sub(began), time.Duration(o.timeout), waiting))
	}
}

// notOnline is how wait-online ends in vain.
func (c *ctl) notOnline(o *waitOptions, last view, waiting []string) error {
	if last.err == nil && c.wantsJSON() {
		if err := c.printJSON(last.raw); err != nil {
			return err
		}
	}
	switch {
	case o.quiet:
		return errSilent
	case last.final:
		return last.err
	case last.err != nil:
		return fmt.Errorf("not online after %v: %w", time.Duration(o.timeout), last.err)
	}
	return advise("See ec2netctl status and journalctl -u ec2netd.service.",
		"not online after %v:\n  %s", time.Duration(o.timeout), strings.Join(waiting, "\n  "))
}

// unfinished lists in words what is to be waited for until the instance counts as
// online, nothing if it is:
//
//   - ec2netd is not starting: before it has asked the metadata service it does not
//     know what an ENI lacks. Whether the service answers does not matter after that:
//     an ENI that is configured by its last view works, and one of which nothing is
//     known is pending;
//   - there is an ENI;
//   - every ENI is configured, those that are unmanaged excepted. If ids name some,
//     all of these, and no other.
//
// On a machine that is no EC2 instance nothing will ever come of it, and an image that is
// made for EC2 is to boot there too: nothing is waited for.
func unfinished(s *state.State, ids []string) []string {
	if s.State == state.Unsupported {
		return nil
	}
	var waiting []string
	add := func(format string, args ...any) {
		// One line for each, whatever is in a reason.
		line := strings.Join(strings.Fields(fmt.Sprintf(format, args...)), " ")
		if !slices.Contains(waiting, line) {
			waiting = append(waiting, line)
		}
	}
	check := func(e *state.Interface) {
		if e.State == state.ENIConfigured {
			return
		}
		name := e.ID()
		if e.Name != "" {
			name += " (" + e.Name + ")"
		}
		add("%s is %s%s", name, e.State, because(e.Reason))
	}
	if s.State == state.Starting {
		add("ec2netd is starting%s", because(s.Reason))
	}
	for _, id := range ids {
		if e, ok := s.Find(id); ok {
			check(e)
		} else {
			add("there is no ENI %q", id)
		}
	}
	if len(ids) > 0 {
		return waiting
	}
	if len(s.Interfaces) == 0 {
		add("there is no ENI")
	}
	for i := range s.Interfaces {
		if e := &s.Interfaces[i]; e.State != state.ENIUnmanaged {
			check(e)
		}
	}
	return waiting
}

func because(reason string) string {
	if reason == "" {
		return ""
	}
	return ": " + reason
}

// view is what is known of ec2netd at one moment: its state, or why there is none.
type view struct {
	raw   json.RawMessage
	state *state.State
	err   error
	// final: waiting does not help against err.
	final bool
}

// monitor sends what ec2netd says, over as many connections as it takes. The channel
// is closed when ctx is done, or after a view that is final.
func (c *ctl) monitor(ctx context.Context) <-chan view {
	views := make(chan view)
	send := func(v view) {
		select {
		case views <- v:
		case <-ctx.Done():
		}
	}
	go func() {
		defer close(views)
		delay := firstReconnect
		for {
			began := time.Now()
			err := c.monitorOnce(ctx, send)
			if ctx.Err() != nil {
				return
			}
			v := view{err: c.explain(err, "Monitor"), final: !passes(err)}
			send(v)
			if v.final {
				return
			}
			if time.Since(began) > slowestReconnect {
				delay = firstReconnect // it was well for a while
			}
			select {
			case <-ctx.Done():
				return
			case <-time.After(delay):
			}
			delay = min(2*delay, slowestReconnect)
		}
	}()
	return views
}

// monitorOnce sends what ec2netd says over one connection. It returns why that ended.
func (c *ctl) monitorOnce(ctx context.Context, send func(view)) error {
	conn, err := c.connect(ctx)
	if err != nil {
		return err
	}
	defer func() { _ = conn.Close() }() // nothing is lost by it
	receive, err := conn.Send(ctx, api.VarlinkInterface+".Monitor", struct{}{}, varlink.More)
	if err != nil {
		return err
	}
	for {
		var raw json.RawMessage
		flags, err := receive(ctx, &raw)
		if err != nil {
			return orgec2netdnetwork.Dispatch_Error(err)
		}
		s, err := parseState(raw)
		if err != nil {
			return err
		}
		send(view{raw: raw, state: s})
		if flags&varlink.Continues == 0 {
			return io.EOF
		}
	}
}

// passes tells whether an error is of a daemon that restarts, or is about to start.
func passes(err error) bool {
	return slices.ContainsFunc([]error{
		io.EOF, io.ErrUnexpectedEOF, syscall.ECONNRESET, syscall.EPIPE, // it went away
		fs.ErrNotExist, syscall.ECONNREFUSED, // its socket did
		syscall.EAGAIN, // it has not got round to taking connections
	}, func(target error) bool { return errors.Is(err, target) })
}

// waitingText is the line of progress.
func waitingText(since, timeout time.Duration, waiting []string) string {
	text := "Waiting " + since.Round(time.Second).String()
	if timeout > 0 {
		text += " of " + timeout.String()
	}
	text += ": " + waiting[0]
	if more := len(waiting) - 1; more > 0 {
		text += fmt.Sprintf("; and %d more", more)
	}
	return text
}

// progress is a line on a terminal that is written again and again. Without columns
// there is no terminal, and no line.
type progress struct {
	w       io.Writer
	columns int
	shown   bool
}

func (p *progress) show(text string) {
	if p.columns == 0 {
		return
	}
	p.shown = true
	text = strings.ReplaceAll(clean(text), "\n", " ")
	// A line that wraps could not be taken back; the last column may wrap too.
	if room := max(p.columns-1, 1); utf8.RuneCountInString(text) > room {
		text = string([]rune(text)[:room-1]) + "…"
	}
	fmt.Fprint(p.w, "\r\x1b[K"+text)
}

func (p *progress) clear() {
	if p.shown {
		fmt.Fprint(p.w, "\r\x1b[K")
		p.shown = false
	}
}

// span is the value of a flag that is a time as systemd's tools take it, see
// systemd.time(7): 90, 90s, 1.5min, "1min 30s", 2h. Only seconds need no unit.
type span time.Duration

func (s *span) String() string {
	return strconv.FormatFloat(time.Duration(*s).Seconds(), 'f', -1, 64)
}

// Set implements pflag.Value.
func (s *span) Set(text string) error {
	duration := strings.NewReplacer(" ", "", "min", "m", "sec", "s").Replace(text)
	if n := len(duration); n > 0 && duration[n-1] >= '0' && duration[n-1] <= '9' {
		duration += "s"
	}
	d, err := time.ParseDuration(duration)
	if err != nil || d < 0 {
		return fmt.Errorf("%q is no time in seconds, nor one with a unit such as 90s or 2min", text)
	}
	*s = span(d)
	return nil
}

// Type implements pflag.Value.
func (s *span) Type() string { return "SEC" }

// names is the value of a flag that may be given several times, and is never empty.
type names []string

func (n *names) String() string { return strings.Join(*n, " ") }

// Set implements pflag.Value.
func (n *names) Set(name string) error {
	if name == "" {
		return errors.New("the name is empty")
	}
	*n = append(*n, name)
	return nil
}

// Type implements pflag.Value.
func (n *names) Type() string { return "ENI" }
