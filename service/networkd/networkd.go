// Package networkd talks to systemd-networkd: has it reload or reconfigure, and
// tells what it says of itself and of a link.
//
// It decides nothing. What networkd cannot be asked over D-Bus on every version
// (which file is in force for a link) is read from its state files.
package networkd

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	systemd "github.com/coreos/go-systemd/v22/dbus"
	"github.com/godbus/dbus/v5"

	"ec2netd/service/file"
)

// What networkd is called on the system bus, see org.freedesktop.network1(5). Its
// Manager has Reload and ReconfigureLink on all versions from 244.
const (
	busName   = "org.freedesktop.network1"
	busPath   = dbus.ObjectPath("/org/freedesktop/network1")
	manager   = "org.freedesktop.network1.Manager"
	unitName  = "systemd-networkd.service"
	netifPath = "run/systemd/netif"
	// noSuchLink is networkd's error for an index that it does not know.
	noSuchLink = "org.freedesktop.network1.NoSuchLink"
)

// dialTimeout bounds the setting up of a connection. A bus whose socket systemd holds
// open takes it and says nothing until it runs.
const dialTimeout = 3 * time.Second

// callTimeout bounds one call. A reload of 15 ENIs with 50 addresses each takes
// about a second (facts: the bar).
const callTimeout = 15 * time.Second

// ErrNoBus says that the system bus does not answer. Early at boot that is normal.
var ErrNoBus = errors.New("the system bus does not answer")

// Client is a connection to networkd. It dials when it is needed and again when
// the bus went away.
type Client struct {
	// Address of the bus, empty for the system's.
	Address string
	// Root is put before /run/systemd/netif; empty for the system.
	Root string

	files   file.Reader
	mu      sync.Mutex
	conn    *dbus.Conn
	version string
	changed chan struct{}
	once    sync.Once
}

// Changed carries no data: networkd came or went, or the bus did.
func (c *Client) Changed() <-chan struct{} {
	c.init()
	return c.changed
}

func (c *Client) init() { c.once.Do(func() { c.changed = make(chan struct{}, 1) }) }

func (c *Client) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// connection returns a live connection, dialled if need be.
func (c *Client) connection(ctx context.Context) (*dbus.Conn, error) {
	c.init()
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil && c.conn.Connected() {
		return c.conn, nil
	}
	c.version = ""
	signals := make(chan *dbus.Signal, 16)
	conn, err := c.dial() //nolint:contextcheck // the connection outlives the call
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	conn.Signal(signals)
	if err := conn.AddMatchSignalContext(ctx,
		dbus.WithMatchSender("org.freedesktop.DBus"), dbus.WithMatchInterface("org.freedesktop.DBus"),
		dbus.WithMatchMember("NameOwnerChanged"), dbus.WithMatchArg(0, busName)); err != nil {
		_ = conn.Close()
		return nil, fmt.Errorf("%w: watching for networkd: %w", ErrNoBus, err)
	}
	c.conn = conn
	go func() {
		// The library closes the channel with the connection.
		for range signals {
			c.poke()
		}
		c.poke()
	}()
	return conn, nil
}

// dial connects. The library's handshake knows no deadline, but ends when the
// connection's context does.
func (c *Client) dial() (*dbus.Conn, error) {
	ctx, cancel := context.WithCancel(context.Background())
	timer := time.AfterFunc(dialTimeout, cancel)
	options := []dbus.ConnOption{dbus.WithContext(ctx), dbus.WithSignalHandler(dbus.NewSequentialSignalHandler())}
	var conn *dbus.Conn
	var err error
	if c.Address != "" {
		conn, err = dbus.Connect(c.Address, options...)
	} else {
		conn, err = dbus.ConnectSystemBus(options...)
	}
	if err != nil || !timer.Stop() {
		cancel()
		if err == nil {
			_ = conn.Close()
		}
		return nil, fmt.Errorf("connecting to it within %s: %w", dialTimeout, errors.Join(err, ctx.Err()))
	}
	return conn, nil
}

// Close ends the connection.
func (c *Client) Close() {
	c.mu.Lock()
	defer c.mu.Unlock()
	if c.conn != nil {
		_ = c.conn.Close()
		c.conn = nil
	}
}

// Owner names the networkd that is on the bus, by its unique name; it is empty while
// there is none, and another one after a restart. The error says that the bus does
// not answer; then nobody knows.
func (c *Client) Owner(ctx context.Context) (string, error) {
	if _, err := os.Stat(filepath.Join("/", c.Root, netifPath)); errors.Is(err, fs.ErrNotExist) {
		// networkd has not run since the boot. This daemon starts before it and before
		// the bus: do not wait for that.
		return "", nil
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return "", err
	}
	var owner string
	err = conn.BusObject().CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, busName).Store(&owner)
	var failure dbus.Error
	if errors.As(err, &failure) && failure.Name == "org.freedesktop.DBus.Error.NameHasNoOwner" {
		return "", nil
	}
	if err != nil {
		return "", fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	return owner, nil
}

// Reload has networkd read its files again. networkd touches only links whose file
// changed (facts.md 1). From 256 the call returns when the links are reconfigured,
// before that at once: whoever needs the effect looks at the kernel.
func (c *Client) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		err := c.call(ctx, "Reload")
		var failure dbus.Error
		// From 257 there is one reload at a time.
		if !errors.As(err, &failure) || !strings.Contains(failure.Error(), "lready reloading") {
			if err != nil {
				return fmt.Errorf("having networkd reload: %w", err)
			}
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("having networkd reload: it is busy with another reload: %w", ctx.Err())
		case <-time.After(20 * time.Millisecond):
		}
	}
}

// Reconfigure has networkd configure one link anew, also where nothing changed.
func (c *Client) Reconfigure(ctx context.Context, index int) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	err := c.call(ctx, "ReconfigureLink", int32(index))
	var failure dbus.Error
	if errors.As(err, &failure) && failure.Name == noSuchLink {
		return nil // it has gone meanwhile
	}
	if err != nil {
		return fmt.Errorf("having networkd reconfigure link %d: %w", index, err)
	}
	return nil
}

func (c *Client) call(ctx context.Context, method string, args ...any) error {
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	// Do not start networkd: that is for whoever enables it.
	return conn.Object(busName, busPath).CallWithContext(ctx, manager+"."+method, dbus.FlagNoAutoStart, args...).Err
}

// Version is systemd's, as PID 1 tells it ("252.39-1~deb12u2"), or empty.
func (c *Client) Version(ctx context.Context) string {
	c.mu.Lock()
	known := c.version
	c.mu.Unlock()
	if known != "" {
		return known
	}
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return ""
	}
	var text dbus.Variant
	if err := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").CallWithContext(ctx,
		"org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.systemd1.Manager", "Version").Store(&text); err != nil {
		return ""
	}
	known, _ = text.Value().(string)
	c.mu.Lock()
	c.version = known
	c.mu.Unlock()
	return known
}

// ActiveUnits returns the names of systemd's units that patterns match and that are
// active or on the way there.
func (c *Client) ActiveUnits(ctx context.Context, patterns []string) ([]string, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	var units []systemd.UnitStatus
	if err := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1").CallWithContext(ctx,
		"org.freedesktop.systemd1.Manager.ListUnitsByPatterns", 0, []string{"active", "activating", "reloading"}, patterns).Store(&units); err != nil {
		return nil, fmt.Errorf("asking systemd for units: %w", err)
	}
	names := make([]string, 0, len(units))
	for _, unit := range units {
		names = append(names, unit.Name)
	}
	return names, nil
}

// Returns tells whether systemd is about to start a unit again that it is stopping, by a
// restart or with the next boot. An end without being asked (a signal) is no restart.
func (c *Client) Returns(ctx context.Context, unit string) bool {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := systemd.NewConnection(c.dial)
	if err != nil {
		return false
	}
	defer conn.Close()
	state, err := conn.SystemStateContext(ctx)
	if err != nil || state.Value.Value() == "stopping" {
		return err == nil
	}
	jobs, err := conn.ListJobsContext(ctx)
	return err == nil && slices.ContainsFunc(jobs, func(j systemd.JobStatus) bool { return j.Unit == unit && j.JobType != "stop" })
}

// Varlink tells whether networkd has its Varlink socket (io.systemd.Network).
func (c *Client) Varlink() bool {
	_, err := os.Stat(filepath.Join("/", c.Root, netifPath, "io.systemd.Network"))
	return err == nil
}

// Run has systemd run a unit that ends by itself, and waits for its end.
func (c *Client) Run(ctx context.Context, unit string) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	manager := conn.Object("org.freedesktop.systemd1", "/org/freedesktop/systemd1")
	var job dbus.ObjectPath
	if err := manager.CallWithContext(ctx, "org.freedesktop.systemd1.Manager.StartUnit", 0, unit, "replace").Store(&job); err != nil {
		return fmt.Errorf("having systemd start %s: %w", unit, err)
	}
	for {
		done, failed, err := c.ended(ctx, manager, conn, unit)
		switch {
		case err != nil:
			return fmt.Errorf("waiting for the end of %s: %w", unit, err)
		case failed:
			return fmt.Errorf("%s failed: see systemctl status %s", unit, unit)
		case done:
			return nil
		}
		select {
		case <-ctx.Done():
			return fmt.Errorf("waiting for the end of %s: %w", unit, ctx.Err())
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// ended tells whether a unit has no job any more and does not run, or has failed.
func (c *Client) ended(ctx context.Context, manager dbus.BusObject, conn *dbus.Conn, unit string) (done, failed bool, err error) {
	// A unit that has ended is forgotten; this has systemd know it again.
	var loaded dbus.ObjectPath
	if err := manager.CallWithContext(ctx, "org.freedesktop.systemd1.Manager.LoadUnit", 0, unit).Store(&loaded); err != nil {
		return false, false, err
	}
	get := func(property string) (any, error) {
		var value dbus.Variant
		err := conn.Object("org.freedesktop.systemd1", loaded).CallWithContext(ctx,
			"org.freedesktop.DBus.Properties.Get", 0, "org.freedesktop.systemd1.Unit", property).Store(&value)
		return value.Value(), err
	}
	// The job first: what it brings about is there when it has gone.
	job, err := get("Job")
	if err != nil {
		return false, false, err
	}
	if numbered, ok := job.([]any); !ok || len(numbered) == 0 || numbered[0] != uint32(0) {
		return false, false, nil
	}
	active, err := get("ActiveState")
	return active == "inactive" || active == "failed", active == "failed", err
}

// WhyNotRunning says in words why networkd is not on the bus, and what to do.
// lasting tells whether waiting is no help: it is masked, not installed or failed.
func (c *Client) WhyNotRunning(ctx context.Context) (reason string, lasting bool) {
	reason = "systemd-networkd does not run: start it with systemctl enable --now " + unitName
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := systemd.NewConnection(c.dial)
	if err != nil {
		return reason, false
	}
	defer conn.Close()
	properties, err := conn.GetUnitPropertiesContext(ctx, unitName)
	if err != nil {
		return reason, false
	}
	active, _ := properties["ActiveState"].(string)
	switch load, _ := properties["LoadState"].(string); {
	case load == "masked":
		return "systemd-networkd is masked: have it run with systemctl unmask " + unitName + " && systemctl enable --now " + unitName, true
	case load == "not-found":
		return "systemd-networkd is not installed: install it, ec2netd needs it", true
	case active == "failed":
		return "systemd-networkd has failed: see systemctl status " + unitName, true
	case active == "activating":
		return "systemd-networkd is starting", false
	}
	return reason, false
}

// LinkState is what networkd says of one link.
type LinkState struct {
	// Administrative is its setup state: pending, initialized, configuring,
	// configured, unmanaged, failed, linger; empty if networkd does not know the
	// link.
	Administrative string
	// File is the .network file in force, an absolute path, or empty.
	File string
}

// Link reads what networkd says of a link from its state file, which all versions
// keep (facts.md 7); Describe has the file from 249 only and costs a call.
func (c *Client) Link(index int) LinkState {
	var state LinkState
	text, err := c.files.Read(filepath.Join("/", c.Root, netifPath, "links", strconv.Itoa(index)))
	if err != nil {
		return state
	}
	for line := range strings.Lines(text) {
		key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "=")
		value = strings.Trim(value, `"`)
		switch key {
		case "ADMIN_STATE":
			state.Administrative = value
		case "NETWORK_FILE":
			state.File = value
		}
	}
	return state
}
