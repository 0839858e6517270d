// Package networkd talks to systemd-networkd: it asks networkd to reload or to configure a link
// anew, and tells what networkd says of itself and of a link.
//
// A [Client] decides nothing. What networkd cannot be asked over D-Bus on every version
// (which file is in force for a link) is read from its state files. A [Session] decides when
// networkd is asked for something that is due, but not what is due.
package networkd

import (
	"context"
	"encoding/hex"
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

	"github.com/godbus/dbus/v5"

	"ec2netd/service/bus"
	"ec2netd/service/file"
	"ec2netd/service/status"
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
	// noOwner and unknownService are errors of the bus where networkd is not on it: of
	// GetNameOwner, and of a call, where dbus-daemon and dbus-broker have one each.
	noOwner        = "org.freedesktop.DBus.Error.NameHasNoOwner"
	unknownService = "org.freedesktop.DBus.Error.ServiceUnknown"
)

// dialTimeout bounds the setting up of a connection. A bus whose socket systemd holds
// open takes it and says nothing until it runs.
const dialTimeout = 3 * time.Second

// maxReply bounds what networkd and systemd may answer. networkd's Describe of 15 ENIs with
// 50 addresses each has less than 3 MiB.
const maxReply = 32 << 20

// callTimeout bounds one call. A reload of 15 ENIs with 50 addresses each takes
// about a second (facts: reload).
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
	conn    bus.Lazy
	mu      sync.Mutex
	version string
	// absent is since when networkd has not been on the bus, or zero.
	absent  time.Time
	changed chan struct{}
	once    sync.Once
	// running is held while a unit runs.
	running sync.Mutex
}

// Changed carries no data: networkd came or went, or the bus did.
func (c *Client) Changed() <-chan struct{} {
	c.init()
	return c.changed
}

func (c *Client) init() {
	c.once.Do(func() {
		c.changed = make(chan struct{}, 1)
		c.conn.Options = bus.Options{
			Address: c.Address, Timeout: dialTimeout, MaxReply: maxReply,
			Signals: []bus.Signal{{Sender: "org.freedesktop.DBus", Interface: "org.freedesktop.DBus", Member: "NameOwnerChanged", Arg0: busName}},
		}
		c.conn.Opened = c.follow
	})
}

func (c *Client) poke() {
	select {
	case c.changed <- struct{}{}:
	default:
	}
}

// connection returns a live connection, dialled if need be.
func (c *Client) connection(ctx context.Context) (*bus.Conn, error) {
	c.init()
	conn, err := c.conn.Get(ctx)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	return conn, nil
}

// follow has Changed tell what a new connection hears of networkd.
func (c *Client) follow(conn *bus.Conn) {
	c.mu.Lock()
	c.version = ""
	c.mu.Unlock()
	signals := make(chan *dbus.Signal, 16)
	conn.Signal(signals)
	go func() {
		// The library closes the channel with the connection.
		for range signals {
			c.poke()
		}
		c.poke()
	}()
}

// Close ends the connection.
func (c *Client) Close() { c.conn.Close() }

// Owner names the networkd that runs, by its unique name on the bus; it is empty while
// there is none, and another one after a restart. One that has lost the bus and can be told to
// reload nevertheless (F11) has a name that is none of the bus. The error says that the bus
// does not answer; then nobody knows.
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
	absent := offTheBus(err)
	if err != nil && !absent {
		return "", fmt.Errorf("%w: %w", ErrNoBus, err)
	}
	c.mu.Lock()
	switch {
	case !absent:
		c.absent = time.Time{}
	case c.absent.IsZero():
		c.absent = time.Now()
	}
	since := c.absent
	c.mu.Unlock()
	if !absent || time.Since(since) < lostTime {
		return owner, nil
	}
	unit, err := c.offBus(ctx, conn)
	if err != nil || !unit.reloads {
		return "", nil // [Client.WhyNotRunning] tells
	}
	return "networkd-" + unit.invocation, nil
}

// lostTime is how long networkd may be absent from the bus before systemd is asked about it.
// When it starts it is there some milliseconds after it has begun.
const lostTime = 2 * time.Second

// offBus is what systemd says of a networkd that is not on the bus. It may run all the same: it
// does not come back where dbus-daemon was restarted (facts: bus-restart).
type offBus struct {
	// reloads: it runs, and systemd can have it reload, by a signal (Type=notify-reload, from
	// 253 on). Before that systemd runs networkctl, which needs the bus.
	reloads bool
	// invocation identifies this run of it.
	invocation string
}

func (c *Client) offBus(ctx context.Context, conn *bus.Conn) (found offBus, err error) {
	object, err := load(ctx, conn, unitName)
	if err != nil {
		return found, err
	}
	var active, kind, invocation dbus.Variant
	for _, ask := range []struct {
		of, property string
		into         *dbus.Variant
	}{{systemdUnit, "ActiveState", &active}, {systemdUnit, "InvocationID", &invocation}, {systemdService, "Type", &kind}} {
		if err := object.CallWithContext(ctx, properties+".Get", 0, ask.of, ask.property).Store(ask.into); err != nil {
			return found, err
		}
	}
	state, _ := active.Value().(string)
	found.reloads = (state == "active" || state == "reloading") && kind.Value() == "notify-reload"
	id, _ := invocation.Value().([]byte)
	found.invocation = hex.EncodeToString(id)
	return found, nil
}

// Gone reports whether networkd does not run, by its control group: also where the bus has gone
// first, as dbus-broker does at each shutdown. It expects networkd in system.slice, where its
// unit puts it.
func (c *Client) Gone() bool {
	slice := filepath.Join("/", c.Root, "sys/fs/cgroup/system.slice")
	if _, err := os.Stat(slice); err != nil {
		return false // no unified hierarchy, or nothing to see of it
	}
	_, err := os.Stat(filepath.Join(slice, unitName))
	return errors.Is(err, fs.ErrNotExist)
}

// Reload has networkd read its files again. networkd touches only links whose file
// changed (facts: reload). From 256 the call returns when the links are reconfigured,
// before that at once: whoever needs the effect looks at the kernel.
func (c *Client) Reload(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	for {
		err := c.call(ctx, "Reload")
		var failure dbus.Error
		if offTheBus(err) {
			err = c.signalReload(ctx)
		}
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

// offTheBus reports whether a call has failed because networkd is not on the bus.
func offTheBus(err error) bool {
	var failure dbus.Error
	return errors.As(err, &failure) && (failure.Name == noOwner || failure.Name == unknownService)
}

// signalReload has systemd tell a networkd to reload that is not on the bus (F11), and waits
// until that is done.
func (c *Client) signalReload(ctx context.Context) error {
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	unit, err := c.offBus(ctx, conn)
	if err != nil {
		return err
	}
	if !unit.reloads {
		return errors.New("it is not on the bus")
	}
	var started dbus.ObjectPath
	if err := systemd(conn).CallWithContext(ctx, systemdManager+".ReloadUnit", 0, unitName, "replace").Store(&started); err != nil {
		return fmt.Errorf("by systemctl reload %s: %w", unitName, err)
	}
	_, err = waitFor(ctx, conn, unitName, func(state string) bool { return state != "reloading" })
	return err
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
	if offTheBus(err) {
		return fmt.Errorf("having networkd reconfigure link %d: it is not on the system bus: restart it with systemctl restart %s", index, unitName)
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
	if known, err = managerProperty(ctx, conn, "Version"); err != nil {
		return ""
	}
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
	var units []struct {
		Name, Description, LoadState, ActiveState, SubState, Followed string
		Path                                                          dbus.ObjectPath
		JobID                                                         uint32
		JobType                                                       string
		JobPath                                                       dbus.ObjectPath
	}
	if err := systemd(conn).CallWithContext(ctx, systemdManager+".ListUnitsByPatterns", 0, []string{"active", "activating", "reloading"}, patterns).Store(&units); err != nil {
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
	conn, err := c.connection(ctx)
	if err != nil {
		return false
	}
	state, err := managerProperty(ctx, conn, "SystemState")
	if err != nil || state == "stopping" {
		return err == nil
	}
	var jobs []job
	err = systemd(conn).CallWithContext(ctx, systemdManager+".ListJobs", 0).Store(&jobs)
	return err == nil && slices.ContainsFunc(jobs, func(j job) bool { return j.Unit == unit && j.Type != "stop" })
}

// What systemd is called on the system bus, see org.freedesktop.systemd1(5).
const (
	systemdName    = "org.freedesktop.systemd1"
	systemdManager = systemdName + ".Manager"
	systemdUnit    = systemdName + ".Unit"
	systemdService = systemdName + ".Service"
	properties     = "org.freedesktop.DBus.Properties"
)

// job is an entry of systemd's ListJobs.
type job struct {
	ID                uint32
	Unit, Type, State string
	Path, UnitPath    dbus.ObjectPath
}

// systemd is systemd's manager object.
func systemd(conn *bus.Conn) dbus.BusObject {
	return conn.Object(systemdName, "/org/freedesktop/systemd1")
}

// managerProperty asks for a property of systemd's that is a string.
func managerProperty(ctx context.Context, conn *bus.Conn, name string) (string, error) {
	var value dbus.Variant
	err := systemd(conn).CallWithContext(ctx, properties+".Get", 0, systemdManager, name).Store(&value)
	text, _ := value.Value().(string)
	return text, err
}

// load returns the object of a unit, which systemd loads if need be.
func load(ctx context.Context, conn *bus.Conn, unit string) (dbus.BusObject, error) {
	var path dbus.ObjectPath
	err := systemd(conn).CallWithContext(ctx, systemdManager+".LoadUnit", 0, unit).Store(&path)
	return conn.Object(systemdName, path), err
}

// UnitState is what systemd says of a unit, see Unit in org.freedesktop.systemd1(5). The values are
// those that systemctl list-unit-files and systemctl status show.
type UnitState struct {
	Name string
	// Load is loaded, masked or not-found, among others, and Active is active, inactive or failed.
	Load, Active string
	// File says how the unit file is enabled: enabled, disabled, static or masked-runtime, among
	// others. Preset is enabled or disabled, as the presets say.
	File, Preset string
}

// Unit returns what systemd says of a unit, which systemd loads if need be.
func (c *Client) Unit(ctx context.Context, name string) (UnitState, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return UnitState{}, err
	}
	object, err := load(ctx, conn, name)
	if err != nil {
		return UnitState{}, fmt.Errorf("asking systemd for %s: %w", name, err)
	}
	var all map[string]dbus.Variant
	if err := object.CallWithContext(ctx, properties+".GetAll", 0, systemdUnit).Store(&all); err != nil {
		return UnitState{}, fmt.Errorf("asking systemd for %s: %w", name, err)
	}
	text := func(property string) string {
		value, _ := all[property].Value().(string)
		return value
	}
	return UnitState{Name: name, Load: text("LoadState"), Active: text("ActiveState"), File: text("UnitFileState"), Preset: text("UnitFilePreset")}, nil
}

// Varlink tells whether networkd has its Varlink socket (io.systemd.Network).
func (c *Client) Varlink() bool {
	_, err := os.Stat(filepath.Join("/", c.Root, netifPath, "io.systemd.Network"))
	return err == nil
}

// keepsUnit came with 256, and is part of every installation of it.
const keepsUnit = "usr/lib/systemd/system/systemd-networkd-persistent-storage.service"

// Keeps tells whether the networkd that is installed is of 256 or later, whether it runs or not.
func (c *Client) Keeps() bool {
	_, err := os.Stat(filepath.Join("/", c.Root, keepsUnit))
	return err == nil
}

// Run has systemd run a unit that ends by itself, and waits for its end. One runs at a time: who
// asks for a unit that runs already needs another run, which sees what is on disk by then.
func (c *Client) Run(ctx context.Context, unit string) error {
	c.running.Lock()
	defer c.running.Unlock()
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return err
	}
	var started dbus.ObjectPath
	if err := systemd(conn).CallWithContext(ctx, systemdManager+".StartUnit", 0, unit, "replace").Store(&started); err != nil {
		return fmt.Errorf("having systemd start %s: %w", unit, err)
	}
	state, err := waitFor(ctx, conn, unit, func(state string) bool { return state == "inactive" || state == "failed" })
	if err != nil {
		return fmt.Errorf("waiting for the end of %s: %w", unit, err)
	}
	if state == "failed" {
		return fmt.Errorf("%s failed: see systemctl status %s", unit, unit)
	}
	return nil
}

// waitFor waits until a unit has no job and is in a state that will do, which it returns
// (ActiveState).
func waitFor(ctx context.Context, conn *bus.Conn, unit string, will func(state string) bool) (state string, err error) {
	for {
		// A unit that has ended is forgotten; this has systemd know it again.
		object, err := load(ctx, conn, unit)
		if err != nil {
			return "", err
		}
		// The job first: what it brings about is there when it has gone.
		var job, active dbus.Variant
		for _, ask := range []struct {
			property string
			into     *dbus.Variant
		}{{"Job", &job}, {"ActiveState", &active}} {
			if err := object.CallWithContext(ctx, properties+".Get", 0, systemdUnit, ask.property).Store(ask.into); err != nil {
				return "", err
			}
		}
		numbered, ok := job.Value().([]any)
		state, _ := active.Value().(string)
		if ok && len(numbered) > 0 && numbered[0] == uint32(0) && will(state) {
			return state, nil
		}
		select {
		case <-ctx.Done():
			return "", ctx.Err()
		case <-time.After(10 * time.Millisecond):
		}
	}
}

// WhyNotRunning says why networkd is not on the bus. lasting reports whether waiting is no help: it is
// masked, not installed or failed.
func (c *Client) WhyNotRunning(ctx context.Context) (why status.Code, lasting bool) {
	unit, err := c.Unit(ctx, unitName)
	if err != nil {
		return status.NetworkdStopped, false
	}
	switch {
	case unit.Load == "masked" && unit.File == "masked-runtime":
		return status.NetworkdMaskedRuntime, true
	case unit.Load == "masked":
		return status.NetworkdMasked, true
	case unit.Load == "not-found":
		return status.NetworkdNotInstalled, true
	case unit.Active == "failed":
		return status.NetworkdFailed, true
	case unit.Active == "activating":
		return status.NetworkdStarting, false
	case unit.Active == "active" || unit.Active == "reloading":
		return status.NetworkdOffBus, false
	}
	return status.NetworkdStopped, false
}

// LinkState is what networkd says of one link.
type LinkState struct {
	// Administrative is its setup state: pending, initialized, configuring,
	// configured, unmanaged, failed, linger; empty if networkd does not know the
	// link.
	Administrative string
	// File is the .network file in force, an absolute path, or empty.
	File string
	// Lease is that of DHCPv4. From 258 on networkd keeps no file of a lease:
	// [Client.Applied] tells it.
	Lease Lease
	// Domains are several search domains that networkd has taken for one, separated by spaces:
	// EC2 sends them so in the DHCP option for the domain (15), and networkd escapes the spaces
	// (facts: search-domains). Empty where it has not.
	Domains string
}

// Link reads what networkd says of a link from its state file, which all versions
// keep (facts: file-in-force); Describe has the file from 249 only and costs a call.
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
		case "DHCP_LEASE":
			state.Lease = c.lease(index)
		case "DOMAINS":
			for _, name := range strings.Fields(value) {
				if joined := domains(name); strings.Contains(joined, " ") {
					state.Domains = joined
				}
			}
		}
	}
	return state
}

// lease reads the file that networkd up to 257 keeps of a lease.
func (c *Client) lease(index int) Lease {
	text, err := c.files.Read(filepath.Join("/", c.Root, netifPath, "leases", strconv.Itoa(index)))
	if err != nil {
		return Lease{}
	}
	told := Lease{Known: true}
	for line := range strings.Lines(text) {
		switch key, value, _ := strings.Cut(strings.TrimSuffix(line, "\n"), "="); key {
		case "MTU":
			told.MTU, _ = strconv.Atoi(value)
		case "DOMAINNAME":
			told.Domains = domains(value)
		}
	}
	return told
}

// domains splits a domain name that is several ones with spaces, escaped (RFC 4343 2.1) or
// not. It is empty where one of them is no name of hosts: a DHCP server may say anything.
func domains(name string) string {
	names := strings.Fields(strings.ReplaceAll(name, `\032`, " "))
	for _, each := range names {
		if len(each) > 253 || strings.Trim(each, "abcdefghijklmnopqrstuvwxyzABCDEFGHIJKLMNOPQRSTUVWXYZ0123456789-_.") != "" || strings.HasPrefix(each, ".") {
			return ""
		}
	}
	return strings.Join(names, " ")
}
