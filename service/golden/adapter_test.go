package golden

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"path/filepath"
	"slices"
	"syscall"
	"testing/synctest"
	"time"

	"ec2netd/api"
	"ec2netd/service/agent"
	"ec2netd/service/config"
	"ec2netd/service/conflict"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/orphan"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/platform"
	"ec2netd/service/poller"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/udev"
	unitdisk "ec2netd/service/unitfile/disk"
)

// This file alone knows how the daemon is built out of its packages. It does what the daemon's
// main does, with an [instance] in the place of the system. Everything that reads files is the
// daemon's own, below the root of the instance.

// endpoint is that of the metadata service where the configuration says none. Connections end in
// this process, wherever they are to lead.
const endpoint = "http://192.0.2.254"

// callTime is how long the daemon waits for networkd.
const callTime = 15 * time.Second

// daemon is an ec2netd that runs on an instance.
type daemon struct {
	in    *instance
	agent api.Agent
	// loop is nil where the machine is no EC2 instance.
	loop   *agent.Agent
	kernel *kernelOf
	stop   func()
}

// startDaemon starts the daemon and waits for its first pass.
func startDaemon(in *instance) *daemon {
	in.t.Helper()
	settings := config.Load("/" + in.root)
	d := &daemon{in: in, kernel: &kernelOf{in: in, drivers: settings.Drivers}}
	client := metadata.NewClient(metadata.Options{Dial: in.dial})
	files := &disk{Store: &store.Store{Root: in.root}, in: in}
	log := slog.New(slog.NewTextHandler(io.Discard, nil))
	bus := &busOf{Client: &networkd.Client{Root: in.root}, in: in}
	place := func(path, mark string) persist.Place { return persist.Place{Path: in.at(path), Mark: in.at(mark)} }
	var part interface {
		Run(ctx context.Context) error
		Ready() <-chan struct{}
	}
	if reason := platform.Read("/" + in.root).NotEC2(); reason != "" && settings.Platform != config.PlatformAny {
		idle := platform.NewUnsupported(platform.Options{Version: "golden", Reason: reason, Store: files, Networkd: bus, Log: log})
		part, d.agent = idle, idle
	} else {
		d.loop = agent.New(agent.Options{
			Version: "golden", Kernel: d.kernel, Metadata: client,
			Poller: poller.New(poller.Options{
				Client: client, Log: log, Endpoint: cmp.Or(settings.Endpoint, endpoint), RefreshEvery: settings.Refresh,
				Views: place("run/ec2netd/views.json", "var/lib/ec2netd/views.void"),
			}),
			Networkd: bus, Manager: bus, Udev: &udevOf{in}, Store: files, Files: &unitdisk.Reader{Root: in.root},
			Others: &conflict.Looker{Root: in.root, Units: func(context.Context, []string) ([]string, error) { return in.units(), nil }},
			Log:    log, Events: []<-chan struct{}{in.changed},
			RefreshEvery: settings.Refresh, Sections: settings.ENIs, Drivers: settings.Drivers, Problems: problems(settings),
			Hint:  place("var/lib/ec2netd/boot.json", "run/ec2netd/boot.void"),
			Rules: orphan.NewRecord(place("run/ec2netd/rules.json", "var/lib/ec2netd/rules.void")),
			RemoveOrphans: func(context.Context) error {
				in.removeOrphans()
				return nil
			},
			SetDrivers: d.kernel.setDrivers,
		})
		part, d.agent = d.loop, d.loop
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- part.Run(ctx) }()
	<-part.Ready()
	synctest.Wait()
	d.stop = func() {
		cancel()
		if err := <-done; err != nil {
			in.t.Error(err)
		}
		client.CloseIdle()
	}
	return d
}

func problems(c config.Config) (all []string) {
	for _, p := range c.Problems {
		all = append(all, p.String())
	}
	return all
}

// describe is the answer of Describe.
func (d *daemon) describe() string {
	text, err := json.Marshal(api.NonNil(d.agent.State()))
	if err != nil {
		d.in.t.Fatal(err)
	}
	return string(text)
}

// refresh is ec2netctl refresh: the metadata is read now, and not within RefreshSec=.
func (d *daemon) refresh() {
	// What cannot be read the state tells too.
	_, _ = d.agent.Refresh(context.Background(), false)
}

// reconfigure is systemctl reload ec2netd, if the configuration is another one.
func (d *daemon) reconfigure() {
	d.in.t.Helper()
	if d.loop == nil {
		return
	}
	c := config.Load("/" + d.in.root)
	err := d.loop.Configure(context.Background(), agent.Configuration{
		Endpoint: cmp.Or(c.Endpoint, endpoint), RefreshEvery: c.Refresh, Sections: c.ENIs, Drivers: c.Drivers, Problems: problems(c),
	})
	if err != nil {
		d.in.t.Fatal(err)
	}
}

// kernelOf is the kernel of an instance as the daemon observes it.
type kernelOf struct {
	in      *instance
	drivers []string
}

func (k *kernelOf) setDrivers(drivers []string) { k.in.set(func() { k.drivers = drivers }) }

func (k *kernelOf) Observe() (*kernel.Snapshot, error) {
	k.in.mu.Lock()
	defer k.in.mu.Unlock()
	return k.in.snapshot(k.drivers, true), nil
}

// snapshot is what the kernel has on links of some drivers: with foreign what others put there
// too.
func (in *instance) snapshot(drivers []string, foreign bool) *kernel.Snapshot {
	s := &kernel.Snapshot{Tunnel: in.traits.VPN}
	for _, l := range in.links {
		if drivers != nil && !slices.Contains(drivers, l.Driver) {
			continue
		}
		entry := kernel.Link{
			Index: l.index, Name: l.Name, MAC: l.MAC, Driver: l.Driver, Altnames: slices.Clone(l.altnames), Group: l.group,
			Down: l.down, Carrier: !l.down && !l.noCarrier, Master: l.traits.Master, MasterKind: l.traits.MasterKind, MTU: l.mtu, MaxMTU: l.traits.MaxMTU,
		}
		switch l.traits.IPv6 {
		case "host":
			entry.IPv6 = kernel.IPv6OffHost
		case "link":
			entry.IPv6 = kernel.IPv6OffLink
		case "none":
			entry.IPv6 = kernel.IPv6None
		}
		for _, family4 := range []bool{true, false} {
			for _, a := range l.addresses {
				if a.prefix.Addr().Is4() == family4 && (foreign || !a.foreign) {
					global := !a.prefix.Addr().IsLinkLocalUnicast()
					entry.Addresses = append(entry.Addresses, kernel.Address{Prefix: a.prefix, Global: global, Dynamic: a.dynamic})
				}
			}
		}
		s.Links = append(s.Links, entry)
		for _, r := range l.routes {
			s.Routes = append(s.Routes, kernel.Route{
				Link: l.index, Table: r.table, Metric: r.metric, Destination: r.destination, Gateway: r.gateway, Protocol: r.protocol, Local: r.local,
			})
		}
		for _, r := range l.rules {
			s.Rules = addRule(s.Rules, r)
		}
	}
	for _, r := range in.loose {
		s.Rules = addRule(s.Rules, r)
	}
	return s
}

// addRule adds a rule; one that several links have is there once.
func addRule(rules []kernel.Rule, r rule) []kernel.Rule {
	k := kernel.Rule{
		Priority: r.priority, Table: r.table, From: r.from, Protocol: kernel.ProtocolStatic, IPv4: r.ipv4, Mark: r.mark, Mask: r.mask,
		Plain: r.suppress < 0, Guard: r.suppress >= 0, Group: r.group,
	}
	if slices.Contains(rules, k) {
		return rules
	}
	return append(rules, k)
}

// busOf is networkd: what it tells by files is read as on a system, and calls are answered here.
type busOf struct {
	*networkd.Client
	in *instance
}

// answers waits until networkd answers, or the daemon has waited long enough.
func (b *busOf) answers(ctx context.Context) error {
	b.in.mu.Lock()
	mute, down, up := b.in.mute, b.in.busDown, b.in.up
	b.in.mu.Unlock()
	switch {
	case down:
		return networkd.ErrNoBus
	case !up:
		return errors.New("org.freedesktop.DBus.Error.ServiceUnknown: The name is not activatable")
	case !mute:
		return nil
	}
	select {
	case <-time.After(callTime):
		return context.DeadlineExceeded
	case <-ctx.Done():
		return ctx.Err()
	}
}

func (b *busOf) Owner(context.Context) (string, error) {
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	switch {
	case b.in.busDown:
		return "", networkd.ErrNoBus
	case !b.in.up:
		return "", nil
	}
	return fmt.Sprintf(":1.%d", b.in.starts), nil
}

func (b *busOf) Reload(ctx context.Context) error {
	if err := b.answers(ctx); err != nil {
		return fmt.Errorf("asking networkd to reload: %w", err)
	}
	return b.in.reload()
}

func (b *busOf) Reconfigure(ctx context.Context, index int) error {
	if err := b.answers(ctx); err != nil {
		return fmt.Errorf("asking networkd to reconfigure link %d: %w", index, err)
	}
	return b.in.reconfigure(index)
}

func (b *busOf) Applied(ctx context.Context) (*networkd.Applied, error) {
	if err := b.answers(ctx); err != nil {
		return nil, err
	}
	b.in.mu.Lock()
	defer b.in.mu.Unlock()
	told := &networkd.Applied{Snapshot: b.in.snapshot(nil, false), Leases: map[int]networkd.Lease{}}
	for i := range told.Snapshot.Links {
		told.Snapshot.Links[i].MTU = 0
	}
	for _, l := range b.in.links {
		if _, leased := b.in.lease(l); leased && l.setup == "configured" && b.in.systemd >= 258 {
			told.Leases[l.index] = networkd.Lease{Known: true, MTU: l.leaseMTU(), Domains: l.leaseDomains()}
		}
	}
	return told, nil
}

func (b *busOf) Version(context.Context) string { return fmt.Sprint(b.in.systemd) }

func (b *busOf) WhyNotRunning(context.Context) (status.Code, bool) {
	return status.NetworkdStopped, false
}

// udevOf is udevd, which has nothing to say that is not in its files.
type udevOf struct{ in *instance }

func (u *udevOf) LinkFile(index int) (string, bool) {
	return (&udev.Udev{Root: u.in.root}).LinkFile(index)
}

func (u *udevOf) Apply(context.Context, []string) error {
	u.in.giveNames()
	return nil
}

// disk is the store on a disk that may be full.
type disk struct {
	*store.Store
	in *instance
}

// full is why nothing can be written, or nil.
func (d *disk) full(path string) error {
	d.in.mu.Lock()
	defer d.in.mu.Unlock()
	if !d.in.full {
		return nil
	}
	return fmt.Errorf("writing %s: %w", filepath.Join(plan.Directory, path), syscall.ENOSPC)
}

func (d *disk) Apply(want store.Want) (store.Changes, error) {
	for _, f := range want.Files {
		if on := d.Read(f.Path); f.Target == "" && on != f.Content || f.Target != "" && d.Target(f.Path) != f.Target {
			if err := d.full(filepath.Base(f.Path)); err != nil {
				return store.Changes{}, err
			}
		}
	}
	return d.Store.Apply(want)
}

func (d *disk) Prepare(shall []store.File) error {
	if len(shall) > 0 {
		if err := d.full(filepath.Base(shall[0].Path)); err != nil {
			return err
		}
	}
	return d.Store.Prepare(shall)
}

func (d *disk) Renew(path string) error {
	if err := d.full(filepath.Base(path)); err != nil {
		return err
	}
	return d.Store.Renew(path)
}

func (d *disk) Restore() ([]string, error) {
	if err := d.full("."); err != nil {
		return nil, err
	}
	return d.Store.Restore()
}
