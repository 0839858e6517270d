package vpc

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"sync"
	"sync/atomic"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Options for [New]. The zero value is a VPC with the subnets of
// [DefaultSubnets].
type Options struct {
	// Name of the lab; default: a random one. At most 32 letters, digits and dashes.
	Name string
	// Subnets; default: [DefaultSubnets].
	Subnets []SubnetSpec
	// IPv4 and IPv6 are the VPC's CIDR blocks; default: 10.0.0.0/16 and
	// 2001:db8:0:100::/56.
	IPv4, IPv6 []netip.Prefix
	// Region and Zone are in the metadata of instances; default: us-east-1, us-east-1a.
	Region, Zone string
	// Behaviour; default: that of [DefaultProfile].
	Behaviour *Behaviour
	// Seed makes all random decisions of the lab repeatable: those of the behaviour,
	// and the probabilities of metadata faults.
	Seed uint64
	// StateDir is the directory of the lab's files; default: [DefaultStateDir].
	StateDir string
	// Images is the cache of root file systems.
	Images Images
	// Logf, if set, is called with progress messages.
	Logf func(format string, args ...any)
}

// SubnetSpec describes a subnet. A family without a CIDR block is not served.
type SubnetSpec struct {
	Name string // "a"; at most 12 letters, digits and dashes
	IPv4 netip.Prefix
	IPv6 netip.Prefix
}

// DefaultSubnets are two dual-stack subnets, "a" and "b", one with IPv4 only,
// "v4", and one with IPv6 only, "v6".
func DefaultSubnets() []SubnetSpec {
	p := netip.MustParsePrefix
	return []SubnetSpec{
		{Name: "a", IPv4: p("10.0.16.0/20"), IPv6: p("2001:db8:0:101::/64")},
		{Name: "b", IPv4: p("10.0.32.0/20"), IPv6: p("2001:db8:0:102::/64")},
		{Name: "v4", IPv4: p("10.0.48.0/20")},
		{Name: "v6", IPv6: p("2001:db8:0:106::/64")},
	}
}

// The hosts outside of the VPC that answer pings.
var (
	FarIPv4 = netip.MustParseAddr("203.0.113.1")
	FarIPv6 = netip.MustParseAddr("2001:db8:ffff::1")
)

// VPC is a running simulation. Its methods may be called concurrently.
type VPC struct {
	opts Options
	// behaviour is read by everyone, and written under setMu.
	behaviour atomic.Pointer[Behaviour]
	setMu     sync.Mutex

	id     string
	dir    string
	cgroup string
	lock   *os.File
	thread *thread
	images []*os.File // locks of the images in use

	// life ends with Close, and ends all background work.
	life    context.Context
	endLife context.CancelFunc
	tasks   sync.WaitGroup
	meta    *metadata

	mu        sync.Mutex
	subnets   []*Subnet
	instances []*Instance
	enis      map[string]*ENI // by MAC
	record    record
	closed    bool
}

var validName = regexp.MustCompile(`^[a-zA-Z0-9][a-zA-Z0-9-]*$`)

// New creates a VPC. It first removes the remains of dead labs. The caller must close
// the VPC.
func New(ctx context.Context, opts Options) (_ *VPC, err error) {
	if os.Geteuid() != 0 {
		return nil, errors.New("the lab makes namespaces and mounts: run it as root")
	}
	if err := needTools("systemd-nspawn", "nft", "nsenter", "unshare"); err != nil {
		return nil, err
	}
	if opts.Name == "" {
		opts.Name = randomHex(4)
	}
	if len(opts.Name) > 32 || !validName.MatchString(opts.Name) {
		return nil, fmt.Errorf("lab name %q: want at most 32 letters, digits and dashes", opts.Name)
	}
	if opts.StateDir == "" {
		opts.StateDir = DefaultStateDir
	}
	if opts.Subnets == nil {
		opts.Subnets = DefaultSubnets()
	}
	if opts.IPv4 == nil {
		opts.IPv4 = []netip.Prefix{netip.MustParsePrefix("10.0.0.0/16")}
	}
	if opts.IPv6 == nil {
		opts.IPv6 = []netip.Prefix{netip.MustParsePrefix("2001:db8:0:100::/56")}
	}
	if opts.Region == "" {
		opts.Region, opts.Zone = "us-east-1", "us-east-1a"
	}
	behaviour := Profiles()[DefaultProfile]
	if opts.Behaviour != nil {
		behaviour = *opts.Behaviour
	}
	if err := behaviour.Check(); err != nil {
		return nil, err
	}
	v := &VPC{
		opts: opts, id: resourceID("vpc"), enis: make(map[string]*ENI),
		cgroup: path.Join(ownCgroup(), "vpclab-"+opts.Name),
	}
	v.behaviour.Store(&behaviour)
	v.logf("the lab's seed is %d", opts.Seed)
	stale, err := RemoveStale(ctx, opts.StateDir)
	if err != nil {
		v.logf("%v", err) // it does no harm, unless it has the same name
	}
	if len(stale) > 0 {
		v.logf("removed what these labs had left: %v", stale)
	}
	if v.dir, v.lock, err = claim(ctx, opts.StateDir, opts.Name, v.cgroup); err != nil {
		return nil, err
	}
	v.life, v.endLife = context.WithCancel(context.WithoutCancel(ctx))
	defer func() { //nolint:contextcheck // Close must work when ctx has ended
		if err != nil {
			err = errors.Join(err, v.Close())
		}
	}()
	if v.record, err = readRecord(v.dir); err != nil {
		return nil, err
	}
	if v.thread, err = newThread(netnsName(opts.Name)); err != nil {
		return nil, err
	}
	if err := v.setUpRouter(); err != nil {
		return nil, fmt.Errorf("setting up the VPC's router: %w", err)
	}
	if err := v.nft(ctx, filterBase); err != nil {
		return nil, err
	}
	for _, spec := range opts.Subnets {
		sn, err := v.newSubnet(spec)
		if err != nil {
			return nil, fmt.Errorf("making subnet %s: %w", spec.Name, err)
		}
		v.subnets = append(v.subnets, sn)
	}
	if v.meta, err = v.newMetadata(); err != nil {
		return nil, fmt.Errorf("starting the metadata service: %w", err)
	}
	return v, nil
}

func (v *VPC) logf(format string, args ...any) {
	if v.opts.Logf != nil {
		v.opts.Logf(format, args...)
	}
}

// Name is the lab's name.
func (v *VPC) Name() string { return v.opts.Name }

// ID is the VPC's ID.
func (v *VPC) ID() string { return v.id }

// Dir is the lab's directory.
func (v *VPC) Dir() string { return v.dir }

// NetNSName is the name of the VPC's network namespace, for ip-netns(8).
func (v *VPC) NetNSName() string { return netnsName(v.opts.Name) }

// Do runs f on a thread in the VPC's network namespace. Goroutines that f starts
// are not in it.
func (v *VPC) Do(f func() error) error { return inNamespace(v.thread.ns, f) }

// Subnet returns a subnet by name, or nil.
func (v *VPC) Subnet(name string) *Subnet {
	for _, sn := range v.subnets {
		if sn.spec.Name == name {
			return sn
		}
	}
	return nil
}

// Subnets returns all subnets.
func (v *VPC) Subnets() []*Subnet { return slices.Clone(v.subnets) }

// Instances returns all instances.
func (v *VPC) Instances() []*Instance {
	v.mu.Lock()
	defer v.mu.Unlock()
	return slices.Clone(v.instances)
}

// setUpRouter prepares the namespace: forwarding, and the addresses outside.
func (v *VPC) setUpRouter() error {
	sysctls := []struct{ key, value string }{
		{"net/ipv4/ip_forward", "1"},
		{"net/ipv6/conf/all/forwarding", "1"},
		{"net/ipv4/conf/all/rp_filter", "0"},
		{"net/ipv4/conf/default/rp_filter", "0"},
		{"net/ipv4/conf/all/send_redirects", "0"},
		{"net/ipv4/conf/default/send_redirects", "0"},
		{"net/ipv6/conf/all/accept_dad", "0"},
		{"net/ipv6/conf/default/accept_dad", "0"},
		{"net/ipv6/conf/all/accept_ra", "0"},
		{"net/ipv6/conf/default/accept_ra", "0"},
		{"net/ipv6/conf/default/addr_gen_mode", "1"},
	}
	err := v.thread.do(func() error {
		for _, s := range sysctls {
			if err := os.WriteFile(filepath.Join("/proc/sys", s.key), []byte(s.value), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return err
	}
	lo, err := v.thread.link.LinkByName("lo")
	if err != nil {
		return fmt.Errorf("finding lo: %w", err)
	}
	for _, addr := range []netip.Addr{FarIPv4, FarIPv6, MetadataIPv4, MetadataIPv6} {
		if err := v.addAddr(lo, netip.PrefixFrom(addr, addr.BitLen())); err != nil {
			return err
		}
	}
	return v.thread.link.LinkSetUp(lo)
}

func (v *VPC) addAddr(link netlink.Link, p netip.Prefix) error {
	a := &netlink.Addr{IPNet: ipNet(p)}
	if p.Addr().Is6() {
		a.Flags = unix.IFA_F_NODAD
	}
	if err := v.thread.link.AddrReplace(link, a); err != nil {
		return fmt.Errorf("adding %s to %s: %w", p, link.Attrs().Name, err)
	}
	return nil
}

// remember records a process that would survive this one.
func (v *VPC) remember(p process) error {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.record.Processes = append(v.record.Processes, p)
	return writeRecord(v.dir, v.record)
}

func (v *VPC) forget(p process) {
	v.mu.Lock()
	defer v.mu.Unlock()
	v.record.Processes = slices.DeleteFunc(v.record.Processes, func(q process) bool { return q == p })
	if err := writeRecord(v.dir, v.record); err != nil {
		v.logf("writing the lab's record: %v", err)
	}
}

// Close ends the instances at once, and removes everything that the lab has created. It
// may be called again.
func (v *VPC) Close() error {
	v.mu.Lock()
	if v.closed {
		v.mu.Unlock()
		return nil
	}
	v.closed = true
	instances := slices.Clone(v.instances)
	v.mu.Unlock()

	ctx, cancel := context.WithTimeout(context.WithoutCancel(v.life), closeTimeout)
	defer cancel()
	var errs []error
	for _, inst := range instances {
		errs = append(errs, inst.kill(ctx))
		if inst.disk != nil {
			inst.disk.Close()
		}
	}
	v.endLife()
	if v.meta != nil {
		v.meta.close()
	}
	for _, sn := range v.subnets {
		sn.close()
	}
	v.tasks.Wait()
	if v.thread != nil {
		v.thread.close()
	}
	errs = append(errs, removeCgroup(ctx, v.cgroup))
	for _, lock := range v.images {
		lock.Close()
	}
	errs = append(errs, sweep(v.dir, v.opts.Name))
	v.lock.Close()
	return errors.Join(errs...)
}
