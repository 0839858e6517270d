package agent

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/conflict"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/orphan"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/unitfile"
	"ec2netd/service/unitfile/disk"
)

// world is an instance for failure modes that a real one won't show on demand: a
// kernel, a metadata service, and a networkd that applies what the files say.
type world struct {
	mu        sync.Mutex
	dir       string
	links     []kernel.Link
	routes    []kernel.Route
	rules     []kernel.Rule
	instance  metadata.Instance
	views     map[string]metadata.ENI
	errs      map[string]error // by MAC; "" for the instance
	delay     time.Duration
	running   bool
	bus       bool
	reloadErr error
	// observed is called when the kernel is looked at.
	observed func()
	// onReload is called when networkd is asked to reload, before it does.
	onReload func()
	// mute: networkd takes the reload and does nothing.
	mute bool
	// leaseless: DHCP brings no address when networkd configures a link anew. leases
	// counts those that it brought; seen are the drop-ins that networkd has read.
	// behind: it brings them behind the others.
	leaseless bool
	behind    bool
	leases    int
	seen      map[string]os.FileInfo
	sections  []config.Section
	// cpu is the processor time that the daemon has used; nil for nobody to care.
	cpu func() time.Duration
	// drivers of ENIs.
	drivers []string
	// own is the directory of the daemon's own files, below dir.
	own string
	// late are links, by name, that have no lease yet, and left metrics of an earlier file
	// whose routes networkd has left, until it is asked to configure the link anew.
	late map[string]bool
	left map[string]int
	// gateways: an administrator's drop-in says UseGateway=yes everywhere.
	gateways bool
	// old: networkd is one that drops with a reload what is dynamic.
	old bool
	// stopping: networkd has its name, and its Varlink socket no more.
	stopping bool
	// deaf: udevd has nothing about links, and networkd waits for it.
	deaf bool
	// udevErr: udevadm fails, after a while.
	udevErr error
	// uses is what networkd says of links, by index, if not that all is well; applied the
	// .link files of udevd.
	uses    map[int]networkd.LinkState
	dhcp    map[int]networkd.Lease
	applied map[int]string
	// others is what else is found on the instance, looked how often it was looked for.
	others conflict.Facts
	looked int
	// forgetful: networkd knows no rule that it has set, as 257 after a restart. runs counts
	// how often orphans were to be removed, helpless: that does nothing; slow is how long it takes.
	forgetful bool
	helpless  bool
	slow      time.Duration
	runs      int
	// closed counts how often idle connections to the metadata service were closed.
	closed int
	// noAltnames: udevd adds none to a link, by its name. unique: nor any that another link
	// has, as the kernel has it.
	noAltnames map[string]bool
	unique     bool

	reads, reloads, reconfigures, triggers int
	// questions is how often networkd was asked what it has applied. denies: it says that no
	// address is its own; dumb: it says nothing.
	questions    int
	denies, dumb bool
	reading      int
	// path is the first over which an ENI was read last.
	path  metadata.Path
	log   []string
	poke  chan struct{}
	store *store.Store
	// restoreErr is why files that somebody has removed cannot be written again.
	restoreErr error
}

func newWorld(t testing.TB) *world {
	t.Helper()
	w := &world{
		dir: memory(t), views: map[string]metadata.ENI{}, errs: map[string]error{}, seen: map[string]os.FileInfo{}, running: true, bus: true,
		instance: metadata.Instance{ID: "i-0123456789abcdef0", PrimaryMAC: macOf(0)}, poke: make(chan struct{}, 1), drivers: []string{"ena"},
	}
	w.store = &store.Store{Root: w.dir}
	return w
}

// unitFiles are the unit files as they are now.
func (w *world) unitFiles() *unitfile.Tree { return (&disk.Reader{Root: w.dir}).Tree() }

// memory is a directory in memory, as /run is: on a disk each rename waits for it.
func memory(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ec2netd-test-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { _ = os.RemoveAll(dir) })
	return dir
}

func macOf(index int) string { return fmt.Sprintf("02:00:00:00:01:%02x", 0x10+index) }

func viewOf(index int, ipv4 ...string) metadata.ENI {
	v := metadata.ENI{MAC: macOf(index), ID: fmt.Sprintf("eni-%017x", index), DeviceIndex: index, IPv4Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}
	for _, a := range ipv4 {
		v.IPv4 = append(v.IPv4, netip.MustParseAddr(a))
	}
	return v
}

// attach plugs a link in that networkd has a lease for, and tells the metadata.
func (w *world) attach(index int, name string, ipv4 ...string) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.views[macOf(index)] = viewOf(index, ipv4...)
	w.plug(index, name, ipv4[0])
}

// plug is attach without metadata. w.mu is held.
func (w *world) plug(index int, name, ipv4 string) {
	ifindex := 2
	for _, l := range w.links {
		ifindex = max(ifindex, l.Index+1)
	}
	l := kernel.Link{Index: ifindex, Name: name, MAC: macOf(index), Driver: "ena", Carrier: true}
	if !w.leaves(name) {
		l.Addresses = []kernel.Address{{Prefix: netip.PrefixFrom(netip.MustParseAddr(ipv4), 24), Global: true}}
	}
	w.links = append(w.links, l)
	w.ring()
}

// leaves tells whether networkd leaves a link alone, having neither the base unit for it nor
// one of its own.
func (w *world) leaves(name string) bool {
	hold := w.store.Read(plan.HoldPath)
	return hold != "" && w.store.Read(plan.NetworkDropIn(name)) == "" && !strings.Contains(hold, "\nName=!"+name+"\n")
}

func (w *world) detach(index int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.links = slices.DeleteFunc(w.links, func(l kernel.Link) bool { return l.MAC == macOf(index) })
	delete(w.views, macOf(index))
	w.apply()
	w.ring()
}

func (w *world) set(change func()) {
	w.mu.Lock()
	defer w.mu.Unlock()
	change()
}

func (w *world) ring() {
	select {
	case w.poke <- struct{}{}:
	default:
	}
}

// kernelRule is a rule of a generated file as the kernel has it.
func kernelRule(rule plan.Rule) kernel.Rule {
	return kernel.Rule{
		Priority: rule.Priority, Table: rule.Table, From: rule.From, Protocol: kernel.ProtocolStatic, IPv4: rule.From.Addr().Is4(),
		Plain: !rule.Guard, Guard: rule.Guard, Group: rule.Group, Mark: rule.Mark.Value, Mask: rule.Mark.Mask,
	}
}

// apply is what networkd does with the files.
func (w *world) apply() {
	before := w.rules
	w.routes, w.rules = nil, nil
	defer func() {
		for _, rule := range before {
			if (w.forgetful || rule.Protocol != kernel.ProtocolStatic) && !slices.Contains(w.rules, rule) {
				w.rules = append(w.rules, rule)
			}
		}
	}()
	for i := range w.links {
		l := &w.links[i]
		content := w.store.Read(plan.NetworkDropIn(l.Name))
		w.applyMTU(l)
		metric := plan.UnknownMetric
		for line := range strings.Lines(content) {
			if value, ok := strings.CutPrefix(strings.TrimSpace(line), "RouteMetric="); ok {
				metric, _ = strconv.Atoi(value)
			}
		}
		everywhere := netip.MustParsePrefix("0.0.0.0/0")
		if w.leaves(l.Name) {
			l.Addresses = nil
			continue
		}
		l.Group = plan.Group
		if w.late[l.Name] {
			l.Addresses = slices.DeleteFunc(l.Addresses, func(a kernel.Address) bool { return !a.Prefix.IsSingleIP() })
		} else if !strings.Contains(content, "UseGateway=no") || w.gateways {
			if left := w.left[l.Name]; left != 0 {
				w.routes = append(w.routes, kernel.Route{Link: l.Index, Table: kernel.MainTable, Metric: left, Destination: everywhere, Protocol: kernel.ProtocolDHCP})
			}
			w.routes = append(w.routes, kernel.Route{Link: l.Index, Table: kernel.MainTable, Metric: metric, Destination: everywhere, Protocol: kernel.ProtocolDHCP})
		}
		// The lease stays, and so do static addresses that the file had before.
		static := dropin.ParseNetwork(content).Singles()
		l.Addresses = slices.DeleteFunc(l.Addresses, func(a kernel.Address) bool {
			return a.Prefix.IsSingleIP() && !slices.Contains(static, a.Prefix.Addr())
		})
		for line := range strings.Lines(content) {
			// The primary address, if it is there before the lease.
			value, _ := strings.CutPrefix(strings.TrimSpace(line), "Address=")
			if ahead, err := netip.ParsePrefix(value); err == nil && !ahead.IsSingleIP() && !l.Has(ahead.Addr()) {
				l.Addresses = append(l.Addresses, kernel.Address{Prefix: ahead, Global: true})
			}
		}
		for _, a := range static {
			if !l.Has(a) {
				l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.PrefixFrom(a, a.BitLen()), Global: true})
			}
		}
		table := 0
		for _, rule := range plan.RulesIn(content) {
			if !rule.Guard {
				table = rule.Table
			}
			if k := kernelRule(rule); !slices.Contains(w.rules, k) {
				w.rules = append(w.rules, k)
			}
		}
		for line := range strings.Lines(content) {
			if to, ok := strings.CutPrefix(strings.TrimSpace(line), "Destination="); ok && table != 0 {
				w.routes = append(w.routes, kernel.Route{Link: l.Index, Table: table, Destination: netip.MustParsePrefix(to)})
			}
		}
		if table != 0 {
			w.routes = append(w.routes, kernel.Route{Link: l.Index, Table: table, Destination: everywhere})
		}
	}
}

// applyMTU sets the MTU that files say.
func (w *world) applyMTU(l *kernel.Link) {
	entry := plan.Link{Link: *l}
	entry.Complete(w.unitFiles())
	if l.MTU = 1500; entry.Bytes != 0 {
		l.MTU = entry.Bytes
	} else if entry.Current != nil && entry.Current.Link.MTUBytes == 9001 {
		l.MTU = plan.VPCMTU
	}
}

func (w *world) Observe() (*kernel.Snapshot, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if w.observed != nil {
		w.observed()
	}
	s := &kernel.Snapshot{Routes: slices.Clone(w.routes), Rules: slices.Clone(w.rules)}
	for _, l := range w.links {
		l.Addresses, l.Altnames = slices.Clone(l.Addresses), slices.Clone(l.Altnames)
		s.Links = append(s.Links, l)
	}
	return s, nil
}

func (w *world) ReadInstance(ctx context.Context, _ []metadata.Path) (metadata.Instance, error) {
	w.pause(ctx, "")
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	return w.instance, w.errs[""]
}

func (w *world) SetInstance(string) {}

func (w *world) ReadENI(ctx context.Context, paths []metadata.Path, want metadata.Wanted) (*metadata.ENI, error) {
	w.pause(ctx, want.MAC)
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reads++
	w.path = paths[0]
	if err := w.errs[want.MAC]; err != nil {
		return nil, err
	}
	v, ok := w.views[want.MAC]
	if !ok {
		return nil, &metadata.IncompleteError{MAC: want.MAC}
	}
	return &v, nil
}

// pause is how long the answer takes.
func (w *world) pause(ctx context.Context, mac string) {
	w.mu.Lock()
	other := mac != "" && mac != w.instance.PrimaryMAC
	if other {
		w.reading++
	}
	delay := w.delay
	w.mu.Unlock()
	// With -race the runtime of Go 1.26 cannot have two goroutines of a bubble find their
	// timers expired at once.
	if delay > 0 {
		select {
		case <-time.After(delay):
		case <-ctx.Done():
		}
	}
	w.mu.Lock()
	if other {
		w.reading--
	}
	w.mu.Unlock()
}

// underWay is how many reads of other ENIs than the primary wait for their answer.
func (w *world) underWay() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reading
}

func (w *world) Requests() (uint64, uint64)                  { return 0, 0 }
func (w *world) Results() (map[string]uint64, time.Duration) { return nil, 0 }
func (w *world) Answered() string                            { return metadata.EndpointIPv4 }

func (w *world) CloseIdle() { w.set(func() { w.closed++ }) }

func (w *world) Owner(context.Context) (string, error) {
	w.mu.Lock()
	defer w.mu.Unlock()
	if !w.bus {
		return "", networkd.ErrNoBus
	}
	if !w.running {
		return "", nil
	}
	return ":1.7", nil
}

func (w *world) Reload(context.Context) error {
	if w.onReload != nil {
		w.onReload()
	}
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reloads++
	if w.reloadErr == nil && !w.mute {
		w.apply()
		w.lease()
	}
	return w.reloadErr
}

// lease brings the addresses by DHCP back that links lost whose drop-in is another file
// than before.
func (w *world) lease() {
	for i := range w.links {
		l := &w.links[i]
		info, err := os.Stat(filepath.Join(w.dir, plan.NetworkDropIn(l.Name)))
		if w.leaves(l.Name) || (err == nil && w.seen[l.MAC] != nil && os.SameFile(w.seen[l.MAC], info) && w.seen[l.MAC].ModTime().Equal(info.ModTime())) {
			continue
		}
		if err == nil {
			w.seen[l.MAC] = info
		}
		if view, ok := w.views[l.MAC]; ok && !w.leaseless && !w.late[l.Name] && len(view.IPv4) > 0 && !l.Has(view.IPv4[0]) {
			at := 0
			if w.behind {
				at = len(l.Addresses)
			}
			l.Addresses = slices.Insert(l.Addresses, at, kernel.Address{Prefix: netip.PrefixFrom(view.IPv4[0], 24), Global: true})
			w.leases++
		}
	}
}

// removeOrphans is the unit that removes rules which networkd has forgotten.
func (w *world) removeOrphans(ctx context.Context) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.runs++
	if w.slow > 0 {
		w.mu.Unlock()
		select {
		case <-time.After(w.slow):
		case <-ctx.Done():
		}
		w.mu.Lock()
	}
	record, err := orphan.NewRecord(w.place("rules.json")).Read()
	if err != nil || w.helpless {
		return err
	}
	for _, stale := range plan.StaleNames(w.links, w.unitFiles().LinkDropIn) {
		for i := range w.links {
			if l := &w.links[i]; l.Name == stale.Link {
				l.Altnames = slices.DeleteFunc(l.Altnames, func(name string) bool { return name == stale.Name })
			}
		}
	}
	wanted, err := plan.WantedRules(w.unitFiles())
	orphans := plan.Orphans(record, wanted, w.rules)
	w.rules = slices.DeleteFunc(w.rules, func(k kernel.Rule) bool {
		rule, ok := plan.RuleOf(&k)
		return ok && slices.Contains(orphans, rule)
	})
	return err
}

func (w *world) Reconfigure(_ context.Context, index int) error {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.reconfigures++
	for _, l := range w.links {
		if l.Index == index {
			delete(w.left, l.Name)
		}
	}
	w.apply()
	return nil
}

func (w *world) Link(index int) networkd.LinkState {
	w.mu.Lock()
	defer w.mu.Unlock()
	s := networkd.LinkState{Administrative: "configured"}
	if w.deaf {
		s.Administrative = "pending"
	}
	for _, l := range w.links {
		if l.Index == index && w.store.Read(plan.NetworkDropIn(l.Name)) != "" {
			s.File = plan.NetworkPath(l.Name)
		}
	}
	if said, ok := w.uses[index]; ok {
		return said
	}
	return s
}
func (w *world) Look(context.Context, []conflict.Link) conflict.Facts {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.looked++
	return w.others
}

// during is by how much a count of the world grows in a time.
func (w *world) during(count *int, d time.Duration) (grown int) {
	w.set(func() { grown = -*count })
	settle(d)
	w.set(func() { grown += *count })
	return grown
}

// Applied is all that the kernel has.
func (w *world) Applied(context.Context) (*networkd.Applied, error) {
	w.mu.Lock()
	w.questions++
	denies, dumb, leases := w.denies, w.dumb, maps.Clone(w.dhcp)
	w.mu.Unlock()
	if dumb {
		return nil, errors.New("no answer")
	}
	s, err := w.Observe()
	if denies {
		for i := range s.Links {
			s.Links[i].Addresses = nil
		}
	}
	return &networkd.Applied{Snapshot: s, Leases: leases}, err
}

func (w *world) Varlink() bool                  { w.mu.Lock(); defer w.mu.Unlock(); return !w.old && !w.stopping }
func (w *world) Keeps() bool                    { return !w.old }
func (w *world) Version(context.Context) string { return "257" }
func (w *world) WhyNotRunning(context.Context) (status.Code, bool) {
	return status.NetworkdMasked, false
}

// devices is udevd.
type devices struct{ *world }

func (d devices) LinkFile(index int) (string, bool) {
	d.mu.Lock()
	defer d.mu.Unlock()
	if file, ok := d.applied[index]; ok {
		return file, true
	}
	return plan.DefaultPolicy, !d.deaf
}

func (d devices) Apply(_ context.Context, names []string) error {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.triggers++
	if err := d.udevErr; err != nil {
		d.mu.Unlock()
		time.Sleep(10 * time.Second)
		d.mu.Lock()
		return err
	}
	for i := range d.links {
		l := &d.links[i]
		if !slices.Contains(names, l.Name) || d.noAltnames[l.Name] {
			continue
		}
		for line := range strings.Lines(d.store.Read(plan.LinkDropIn(l.Name))) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "AlternativeName="); ok && !slices.Contains(l.Altnames, name) && (!d.unique || !d.hasAltname(name)) {
				l.Altnames = append(l.Altnames, name)
			}
		}
	}
	return nil
}

// hasAltname tells whether some link has an alternative name.
func (w *world) hasAltname(name string) bool {
	return slices.ContainsFunc(w.links, func(l kernel.Link) bool { return slices.Contains(l.Altnames, name) })
}

// place is where a file of the daemon's own is.
func (w *world) place(name string) persist.Place {
	return persist.Place{Path: filepath.Join(w.dir, w.own, name)}
}

// start runs an agent in the world until the returned function is called.
func (w *world) start(t testing.TB) (*Agent, func()) {
	t.Helper()
	log := slog.New(slog.NewTextHandler(logWriter{w}, nil))
	a := New(Options{
		Version: "test", Kernel: w, Metadata: w, Poller: poller.New(poller.Options{Client: w, Log: log, RefreshEvery: time.Minute, Views: w.place("views.json")}), Networkd: w, Manager: w, Udev: devices{w}, Store: restorer{w.store, w}, Files: &disk.Reader{Root: w.dir}, Others: w, Rules: orphan.NewRecord(w.place("rules.json")), RemoveOrphans: w.removeOrphans,
		Log: log, Events: []<-chan struct{}{w.poke},
		RefreshEvery: time.Minute, Hint: w.place("boot.json"), Sections: w.sections,
		CPU: w.cpu, Trim: func() {}, Drivers: w.drivers,
	})
	ctx, stop := context.WithCancel(t.Context())
	done := make(chan error, 1)
	go func() { done <- a.Run(ctx) }()
	<-a.Ready()
	return a, func() {
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	}
}

// restorer is the store, which may fail to write files again.
type restorer struct {
	*store.Store
	*world
}

func (r restorer) Restore() ([]string, error) {
	r.mu.Lock()
	err := r.restoreErr
	r.mu.Unlock()
	if err != nil {
		return nil, err
	}
	return r.Store.Restore()
}

type logWriter struct{ *world }

func (l logWriter) Write(p []byte) (int, error) {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.log = append(l.log, string(p))
	return len(p), nil
}

// settle lets the time pass that everything needs that is under way.
func settle(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (w *world) counts() (reads, reloads, lines int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reads, w.reloads, len(w.log)
}

func (w *world) addresses(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var out []string
	for _, l := range w.links {
		for _, a := range l.Addresses {
			if l.Name == name {
				out = append(out, a.Prefix.Addr().String())
			}
		}
	}
	return out
}

func must(t *testing.T, a *Agent, id string, want state.ENI) *state.Interface {
	t.Helper()
	i, ok := a.State().Find(id)
	if !ok {
		t.Fatalf("%s is not in the state %+v", id, a.State())
	}
	if i.State != want {
		t.Fatalf("%s is %s (%s; missing %q), want %s", id, i.State, i.Reason, i.Missing, want)
	}
	return i
}

// onlyAltnames reports whether the state tells of alternative names that are missing, and of nothing
// else.
func onlyAltnames(missing []string) bool {
	return len(missing) > 0 && !slices.ContainsFunc(missing, func(what string) bool { return !strings.HasPrefix(what, "altname ") })
}
