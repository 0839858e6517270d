package golden

import (
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"

	"ec2netd/cmd/vpclab/imds"
)

// Names of the sections of a world that are no files of the instance.
const (
	dumpName     = "dump.json"
	instanceName = "instance.json"
)

// macsDir is where the metadata has the ENIs.
const macsDir = "network/interfaces/macs/"

// dump is what ec2netctl dump-metadata prints, as far as it is needed.
type dump struct {
	Keys  map[string]string `json:"keys"`
	Links []dumpLink        `json:"links"`
}

type dumpLink struct {
	Name     string `json:"name"`
	MAC      string `json:"mac"`
	Driver   string `json:"driver"`
	LinkFile string `json:"linkFile"`
}

// traits are what an instance has beyond a dump, all of it optional: the section instance.json
// of a world.
type traits struct {
	// Links by name.
	Links map[string]linkTraits `json:"links"`
	// Units of other software that are active.
	Units []string `json:"units"`
	// VPN is the priority of the rule of a VPN that takes everything, 0 for none.
	VPN int `json:"vpn"`
}

type linkTraits struct {
	// Lease is what DHCP hands out where that does not follow from the metadata; "none" for
	// nothing.
	Lease string `json:"lease"`
	// Domains are search domains in the lease, separated by spaces.
	Domains string `json:"domains"`
	// LeaseMTU is the MTU in the lease, 9001 if 0.
	LeaseMTU int `json:"leaseMTU"`
	MaxMTU   int `json:"maxMTU"`
	// Master and MasterKind say what the link is a port of.
	Master     string `json:"master"`
	MasterKind string `json:"masterKind"`
	// IPv6 is "host", "link" or "none" where the link has no IPv6: what switched it off.
	IPv6 string `json:"ipv6"`
	// Late: udevd does not know the link yet.
	Late bool `json:"late"`
	Down bool `json:"down"`
}

// link is a network interface of the instance.
type link struct {
	dumpLink
	traits linkTraits
	index  int
	// plugged: the link came while the daemon ran.
	plugged, noCarrier, down bool
	group, mtu               int
	altnames                 []string
	addresses                []address
	routes                   []route
	rules                    []rule
	// file is the .network file that networkd uses, stamp what it has read.
	file, stamp, setup string
}

type address struct {
	prefix  netip.Prefix
	dynamic bool
	// foreign: somebody else has added it.
	foreign bool
}

type route struct {
	table, metric int
	destination   netip.Prefix
	gateway       netip.Addr
	protocol      int
	local         bool
}

// Protocol numbers and the main table, see rtnetlink(7).
const (
	protocolStatic = 4
	protocolRA     = 9
	protocolDHCP   = 16
	mainTable      = 254
)

type rule struct {
	priority, table int
	from            netip.Prefix
	ipv4            bool
	mark, mask      uint32
	// suppress is SuppressPrefixLength=, or -1, and group SuppressInterfaceGroup=.
	suppress, group int
}

// instance is an EC2 instance without a kernel: its metadata service, its disk, its links, and a
// networkd that does what the files say.
type instance struct {
	t testing.TB
	// root has the instance's files.
	root string
	// systemd is the major version.
	systemd int
	server  *imds.Server
	pipes   *imds.Pipes
	// changed is what the kernel and the bus tell the daemon: look again.
	changed chan struct{}

	mu     sync.Mutex
	truth  map[string]string // metadata keys as EC2 means them
	traits traits
	links  []*link
	// loose are rules of links that are gone.
	loose []rule
	// networkd is up, on a bus that is up; refuses is what it answers to calls, mute: it
	// does not answer.
	up, busDown, mute bool
	refuses           error
	// away: networkd does not start with the instance.
	away bool
	// refused: the metadata service takes no connection. conns are those that it has.
	refused bool
	conns   []net.Conn
	// full: no file can be written.
	full bool
	// reloads and anew count what networkd was asked, starts how often it has started.
	reloads, anew, starts int
	// booted: the daemon has started; links that come from then on are plugged in.
	booted bool
}

// newInstance returns an instance with nothing but what is installed. Tokens of its metadata
// service live for a while, or as long as EC2's if that is 0.
func newInstance(t testing.TB, systemd int, tokens time.Duration) *instance {
	t.Helper()
	in := &instance{
		t: t, root: scratch(t), systemd: systemd, server: imds.New(imds.Options{MaxTokenTTL: tokens}), pipes: imds.NewPipes(), changed: make(chan struct{}, 1),
		truth: map[string]string{},
	}
	base, err := os.ReadFile("../../units/80-ec2.network")
	if err != nil {
		t.Fatal(err)
	}
	in.write("usr/lib/systemd/network/80-ec2.network", string(base))
	in.write("usr/lib/systemd/network/99-default.link", "[Match]\nOriginalName=*\n\n[Link]\nNamePolicy=keep kernel database onboard slot path\n")
	in.write("usr/lib/ec2netd/none.link", "[Match]\nOriginalName=*\n")
	in.write("sys/devices/virtual/dmi/id/sys_vendor", "Amazon EC2\n")
	if systemd >= 256 {
		// It came with 256, and the daemon tells the versions apart by it.
		in.write("usr/lib/systemd/system/systemd-networkd-persistent-storage.service", "[Unit]\n")
	}
	return in
}

// scratch is a directory in memory, as /run is.
func scratch(t testing.TB) string {
	t.Helper()
	dir, err := os.MkdirTemp("/dev/shm", "ec2netd-golden-")
	if err != nil {
		return t.TempDir()
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	return dir
}

func (in *instance) at(path string) string { return filepath.Join(in.root, path) }

// write makes a file of the instance.
func (in *instance) write(path, content string) {
	in.t.Helper()
	if err := os.MkdirAll(filepath.Dir(in.at(path)), 0o755); err != nil {
		in.t.Fatal(err)
	}
	if err := os.WriteFile(in.at(path), []byte(content), 0o644); err != nil {
		in.t.Fatal(err)
	}
}

// symlink makes a symbolic link.
func (in *instance) symlink(path, target string) {
	in.t.Helper()
	if err := os.MkdirAll(filepath.Dir(in.at(path)), 0o755); err != nil {
		in.t.Fatal(err)
	}
	os.Remove(in.at(path))
	if err := os.Symlink(target, in.at(path)); err != nil {
		in.t.Fatal(err)
	}
}

func (in *instance) read(path string) string {
	content, err := os.ReadFile(in.at(path))
	if err != nil {
		return ""
	}
	return string(content)
}

// become makes the instance what the sections of one step of a world say.
func (in *instance) become(files []txtar.File) {
	in.t.Helper()
	for _, f := range files {
		path, target, isLink := strings.Cut(f.Name, " -> ")
		switch {
		case f.Name == dumpName:
			var d dump
			decode(in.t, f, &d)
			in.mu.Lock()
			in.tell(d.Keys)
			in.plug(d.Links)
			in.mu.Unlock()
		case f.Name == instanceName:
			in.mu.Lock()
			in.traits = traits{}
			decode(in.t, f, &in.traits)
			in.mu.Unlock()
		case isLink:
			in.symlink(path, target)
		case len(f.Data) == 0 && !strings.HasSuffix(path, ".conf"):
			os.Remove(in.at(path)) // an empty section takes a file away
		default:
			in.write(path, string(f.Data))
		}
	}
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, l := range in.links {
		l.traits = in.traits.Links[l.Name]
		l.down = l.traits.Down
		in.record(l)
	}
	in.ring()
}

// change makes the instance what a later step of a world says, and does what goes with it: files
// of networkd's are taken up by a reload, and the configuration of the daemon by one of its own.
func (in *instance) change(d *daemon, files []txtar.File) {
	in.t.Helper()
	in.become(files)
	synctest.Wait()
	if slices.ContainsFunc(files, func(f txtar.File) bool { return strings.Contains(f.Name, "systemd/network/") }) {
		if err := in.reload(); err != nil {
			in.t.Fatal(err)
		}
		synctest.Wait()
	}
	if slices.ContainsFunc(files, func(f txtar.File) bool { return strings.Contains(f.Name, "ec2netd.conf") }) {
		d.reconfigure()
	}
	d.refresh()
}

func decode(t testing.TB, f txtar.File, into any) {
	t.Helper()
	d := json.NewDecoder(strings.NewReader(string(f.Data)))
	if err := d.Decode(into); err != nil {
		t.Fatalf("%s: %v", f.Name, err)
	}
}

// tell has the metadata service answer with keys, and with nothing else. in.mu is held.
func (in *instance) tell(keys map[string]string) {
	for key := range in.truth {
		if _, ok := keys[key]; !ok {
			in.server.Delete(key)
		}
	}
	for key, text := range keys {
		if was, ok := in.truth[key]; !ok || was != text {
			in.server.Set(key, text)
		}
	}
	in.truth = maps.Clone(keys)
}

// plug gives the instance links, and takes others away. in.mu is held.
func (in *instance) plug(links []dumpLink) {
	var now []*link
	for _, l := range in.links {
		if slices.Contains(links, l.dumpLink) {
			now = append(now, l)
		} else {
			in.loose = append(in.loose, l.rules...)
		}
	}
	next := 2
	for _, l := range in.links {
		next = max(next, l.index+1)
	}
	for _, l := range links {
		if slices.ContainsFunc(now, func(known *link) bool { return known.dumpLink == l }) {
			continue
		}
		l.LinkFile = cmp.Or(l.LinkFile, "/usr/lib/systemd/network/99-default.link")
		now = append(now, &link{dumpLink: l, index: next, plugged: in.booted, mtu: 1500})
		next++
	}
	in.links = now
	if in.systemd < 256 {
		// Up to 255 networkd removes those of an ENI that goes while it runs.
		in.loose = nil
	}
	in.apply(false)
}

// known are the links.
func (in *instance) known() (all []dumpLink) {
	for _, l := range in.links {
		all = append(all, l.dumpLink)
	}
	return all
}

// add has somebody add an address to ens6.
func (in *instance) add(prefix string) {
	in.set(func() {
		l := in.link("ens6")
		l.addresses = append(l.addresses, address{prefix: netip.MustParsePrefix(prefix), foreign: true})
	})
}

// dial connects to the metadata service, wherever a connection is to lead. It takes a moment, so that
// in a boot networkd has configured the links before an answer comes, as on EC2.
func (in *instance) dial(ctx context.Context, network, address string) (net.Conn, error) {
	in.mu.Lock()
	refused := in.refused
	in.mu.Unlock()
	if refused {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.ECONNREFUSED}
	}
	time.Sleep(time.Millisecond)
	conn, err := in.pipes.DialContext(ctx, network, address)
	if err == nil {
		in.mu.Lock()
		in.conns = append(in.conns, conn)
		in.mu.Unlock()
	}
	return conn, err
}

// link returns a link by its name.
func (in *instance) link(name string) *link {
	for _, l := range in.links {
		if l.Name == name {
			return l
		}
	}
	in.t.Fatalf("there is no link %s", name)
	return nil
}

// record is what udevd keeps of a link.
func (in *instance) record(l *link) {
	path := "run/udev/data/n" + strconv.Itoa(l.index)
	if l.traits.Late {
		os.Remove(in.at(path))
		return
	}
	in.write(path, "I:1\nE:ID_NET_LINK_FILE="+l.LinkFile+"\n")
}

// giveNames is udevd with the .link files of links.
func (in *instance) giveNames() {
	in.mu.Lock()
	defer in.mu.Unlock()
	for _, l := range in.links {
		l.altnames = nil
		for line := range strings.Lines(in.read("run/systemd/network/70-" + l.Name + ".link.d/50-ec2netd.conf")) {
			if name, ok := strings.CutPrefix(strings.TrimSpace(line), "AlternativeName="); ok {
				l.altnames = append(l.altnames, name)
			}
		}
	}
	in.ring()
}

// removeOrphans is ec2netd-orphans.service: rules go that stand in no .network file.
func (in *instance) removeOrphans() {
	in.set(func() { in.loose = nil })
}

// units are those of other software that are active.
func (in *instance) units() []string {
	in.mu.Lock()
	defer in.mu.Unlock()
	return slices.Clone(in.traits.Units)
}

// set changes the instance while the daemon may look at it, and says that it has changed.
func (in *instance) set(change func()) {
	in.mu.Lock()
	defer in.mu.Unlock()
	change()
	in.ring()
}

func (in *instance) ring() {
	select {
	case in.changed <- struct{}{}:
	default:
	}
}

// key is the path of a metadata key of an ENI.
func (in *instance) key(l *link, key string) string { return macsDir + l.MAC + "/" + key }

// serve has the metadata service answer until the test ends.
func (in *instance) serve() (stop func()) {
	server := &http.Server{Handler: in.server}
	go server.Serve(in.pipes)
	return func() { server.Close() }
}

// pass lets time go by, and what is under way come to its end.
func pass(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// boot starts the daemon and, as in a boot, networkd after it.
func (in *instance) boot() *daemon {
	in.t.Helper()
	d := startDaemon(in)
	in.set(func() { in.booted = true })
	synctest.Wait() // so that it is not left to chance what the daemon has done before networkd starts
	if !in.away {
		in.startNetworkd()
	}
	return d
}

// files are what the daemon has generated, with their content; symbolic links have "-> TARGET".
func (in *instance) files() map[string]string {
	in.t.Helper()
	found := make(map[string]string)
	for _, dir := range []string{"run/systemd/network", "run/ec2netd/networkd-start"} {
		err := filepath.WalkDir(in.at(dir), func(path string, entry os.DirEntry, err error) error {
			if err != nil || entry.IsDir() {
				if errors.Is(err, fs.ErrNotExist) || errors.Is(err, syscall.ENOTDIR) {
					err = nil
				}
				return err
			}
			name := strings.TrimPrefix(path, in.root)
			if target, err := os.Readlink(path); err == nil {
				found[name] = "-> " + target
				return nil
			}
			content, err := os.ReadFile(path)
			found[name] = string(content)
			return err
		})
		if err != nil {
			in.t.Fatal(err)
		}
	}
	return found
}

// describe is the state as the daemon tells it, without what is another in each run.
func (in *instance) describe(d *daemon) map[string]any {
	in.t.Helper()
	var state map[string]any
	if err := json.Unmarshal([]byte(strings.ReplaceAll(d.describe(), in.root, "")), &state); err != nil {
		in.t.Fatal(err)
	}
	return state
}

func text(v any) string {
	if v == nil {
		return "?"
	}
	return fmt.Sprint(v)
}
