package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"time"

	"github.com/cenkalti/backoff/v5"
	"github.com/godbus/dbus/v5"
	"golang.org/x/sys/unix"

	"ec2netd/service/bus"
	"ec2netd/service/file"
	"ec2netd/service/metadata"
)

const (
	// hostnameTime is how long set-hostname tries: at boot the network has to come up.
	hostnameTime = time.Minute
	// hostnamedTime bounds a call to systemd-hostnamed, which is started by the first.
	hostnamedTime = 10 * time.Second
	// hostnamed is systemd-hostnamed on the system bus, see org.freedesktop.hostname1(5).
	hostnamed     = "org.freedesktop.hostname1"
	hostnamedPath = dbus.ObjectPath("/org/freedesktop/hostname1")
)

// host is the machine that set-hostname names.
type host interface {
	// static is the hostname that the administrator gave it, empty for none.
	static(ctx context.Context) (string, error)
	// current is the one that it has.
	current() (string, error)
	// setTransient gives it one until the next boot, and tells by what means.
	setTransient(ctx context.Context, name string) (by string, err error)
}

// setHostname gives the host the name that the metadata has for it, unless it has a
// static one (I6). The name is only until the next boot.
func (c *ctl) setHostname(ctx context.Context, h host, read func(context.Context) (string, error)) error {
	ctx, cancel := context.WithTimeout(ctx, c.within(hostnameTime))
	defer cancel()
	static, err := h.static(ctx)
	if err != nil {
		return fmt.Errorf("looking for a static hostname: %w", err)
	}
	if isSet(static) {
		return c.print("The hostname stays " + clean(static) + ", which is static.\n")
	}
	name, err := read(ctx)
	var elsewhere notEC2Error
	if errors.As(err, &elsewhere) {
		// An image with the service enabled is to boot on other machines too.
		return c.print("The hostname stays: " + clean(elsewhere.Error()) + ".\n")
	}
	if err != nil {
		return advise("The hostname stays. See also ec2netctl doctor.", "%w", err)
	}
	if now, err := h.current(); err == nil && now == name {
		return c.print("The hostname is " + name + " already.\n")
	}
	by, err := h.setTransient(ctx, name)
	if err != nil {
		return fmt.Errorf("setting the hostname to %s: %w", name, err)
	}
	return c.print("The hostname is " + name + " now, set by " + by + ".\n")
}

// isSet tells whether a static hostname is one: hostname(5) has localhost for none.
func isSet(static string) bool {
	switch strings.ToLower(static) {
	case "", "localhost", "localhost.localdomain", "localhost4", "localhost6":
		return false
	}
	return true
}

// readHostname asks the metadata service until it answers or ctx ends: at boot the links
// have no addresses yet.
func (c *ctl) readHostname(ctx context.Context) (string, error) {
	client := metadata.NewClient(metadata.Options{UserAgent: userAgent()})
	defer client.CloseIdle()
	delays := backoff.NewExponentialBackOff()
	delays.InitialInterval, delays.MaxInterval = 100*time.Millisecond, 5*time.Second
	for {
		s, err := c.look()
		if err == nil {
			err = s.supported()
		}
		if err != nil {
			return "", err
		}
		name, err := client.ReadHostname(ctx, s.paths(""))
		switch kind := metadata.KindOf(err); {
		case err == nil:
			return name, nil
		case kind == metadata.NotFound, kind == metadata.Malformed:
			return "", err // asking again does not help
		}
		select {
		case <-ctx.Done():
			return "", err
		case <-time.After(delays.NextBackOff()):
		}
	}
}

// machine is this host: by systemd-hostnamed or, where that is not there, by its file and
// by the kernel.
type machine struct{ root string }

func (m *machine) static(ctx context.Context) (string, error) {
	var name dbus.Variant
	err := call(ctx, "org.freedesktop.DBus.Properties.Get", []any{hostnamed, "StaticHostname"}, &name)
	if text, ok := name.Value().(string); err == nil && ok {
		return text, nil
	}
	text, err := file.Read(filepath.Join("/", m.root, "etc/hostname"), file.Limit)
	if errors.Is(err, os.ErrNotExist) {
		return "", nil
	}
	return staticIn(text), err
}

// staticIn is the name in a hostname(5) file.
func staticIn(text string) string {
	for line := range strings.Lines(text) {
		if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
			return line
		}
	}
	return ""
}

func (m *machine) current() (string, error) { return os.Hostname() }

func (m *machine) setTransient(ctx context.Context, name string) (string, error) {
	refused := call(ctx, hostnamed+".SetHostname", []any{name, false})
	if refused == nil {
		return "systemd-hostnamed", nil
	}
	if err := unix.Sethostname([]byte(name)); err != nil {
		return "", errors.Join(fmt.Errorf("by systemd-hostnamed: %w", refused), fmt.Errorf("by sethostname(2): %w", err))
	}
	return "sethostname(2)", nil
}

// call calls a method of systemd-hostnamed.
func call(ctx context.Context, method string, args []any, out ...any) error {
	ctx, cancel := context.WithTimeout(ctx, hostnamedTime)
	defer cancel()
	conn, err := bus.Dial(ctx, bus.Options{Timeout: hostnamedTime})
	if err != nil {
		return err
	}
	defer conn.Close()
	return conn.Object(hostnamed, hostnamedPath).CallWithContext(ctx, method, 0, args...).Store(out...)
}
