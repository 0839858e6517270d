package vpc

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
)

const (
	accountID = "123456789012"
	// rebootStatus is nspawn's exit status when the container wants to reboot.
	rebootStatus = 133
	// rebootReason is QEMU's word for this.
	rebootReason = "guest-reset"
	// bootTimeout is the default timeout of a boot.
	bootTimeout = 3 * time.Minute
)

// InstanceOptions describe an instance.
type InstanceOptions struct {
	// Suite of Debian; default: trixie. See [Suites].
	Suite string
	// Stock is the name of one of [Stocks], if the instance should boot like that image;
	// default: an image in which no software owns the links.
	Stock string
	// Type is the instance type in the metadata; default: m7i.large.
	Type string
	// NetworkCards is the number of cards of the type; from 2 on, the metadata of every ENI
	// contain its card.
	NetworkCards int
	// Primary is the ENI with which the instance boots.
	Primary ENISpec
	// Hostname; default: the name that EC2 derives from the primary address.
	Hostname string
	// MachineID is fixed for the lifetime of the instance; default: a random one.
	MachineID string
	// Trees are directories that are copied over the root before the first boot. [ApplyPresets]
	// follows each of them.
	Trees []string
	// Files are written to the root before the first boot, by absolute path.
	Files map[string]string
	// Packages are installed in addition to those of the image; see [Images.GetLayer].
	Packages []string
	// Machine requests a machine with its own kernel, in QEMU, instead of a container. It takes
	// 40 s to boot. Its links are ens5 to ens16.
	Machine bool
	// KernelArgs are added to a machine's kernel command line.
	KernelArgs []string
	// Install, if set, is called last, with the root.
	Install func(root string) error
}

// Instance is a machine of the VPC.
type Instance struct {
	vpc   *VPC
	opts  InstanceOptions
	stock Stock
	id    string
	dir   string
	root  string
	cg    string
	meta  *imds.Server

	disk       *os.File // of a machine, once it has booted; guarded by boot
	kernelArgs []string // of a machine; guarded by boot

	ordinal int    // among the VPC's instances
	created int    // how many ENIs were made; guarded by vpc.mu
	enis    []*ENI // guarded by vpc.mu; the primary first

	boot sync.Mutex // one boot, reboot or shutdown at a time
	mu   sync.Mutex
	run  *running // nil while the instance is off
}

// running is one boot.
type running struct {
	thread  *thread  // in the network namespace of a container, nil for a machine
	machine *machine // nil for a container
	proc    process  // the outermost process
	leader  int      // the container's systemd
	booted  time.Duration
	exited  chan struct{}
	status  int // of the exit, once exited is closed
}

// NewInstance creates an instance with its primary ENI, and prepares its root. It does not boot
// it.
func (v *VPC) NewInstance(ctx context.Context, opts InstanceOptions) (_ *Instance, err error) {
	if opts.Suite == "" {
		opts.Suite = "trixie"
	}
	if opts.Type == "" {
		opts.Type = "m7i.large"
	}
	if opts.MachineID == "" {
		opts.MachineID = randomHex(16)
	}
	var stock Stock
	if opts.Stock != "" {
		if stock, err = stockNamed(opts.Stock); err != nil {
			return nil, err
		}
		stock.add(&opts)
	}
	if opts.Machine {
		if err := checkMachine(opts); err != nil {
			return nil, err
		}
		opts.Packages = append(slices.Clone(opts.Packages), machinePackage)
	}
	images := v.opts.Images
	if images.Logf == nil {
		images.Logf = v.opts.Logf
	}
	image, inUse, err := images.Get(ctx, opts.Suite)
	if err != nil {
		return nil, err
	}
	v.mu.Lock()
	v.images = append(v.images, inUse)
	v.mu.Unlock()
	if len(opts.Packages) > 0 {
		layer, inUse, err := images.GetLayer(ctx, opts.Suite, image, opts.Packages)
		if err != nil {
			return nil, err
		}
		v.mu.Lock()
		v.images = append(v.images, inUse)
		v.mu.Unlock()
		image = layer + ":" + image
	}
	inst := &Instance{vpc: v, opts: opts, stock: stock, id: resourceID("i"), kernelArgs: opts.KernelArgs, meta: imds.New(imds.Options{Seed: v.opts.Seed})}
	inst.dir = filepath.Join(v.dir, inst.id)
	inst.root = filepath.Join(inst.dir, "root")
	inst.cg = filepath.Join(v.cgroup, inst.id)
	if err := inst.mount(image); err != nil {
		return nil, fmt.Errorf("mounting the root of %s: %w", inst.id, err)
	}
	v.mu.Lock()
	inst.ordinal = len(v.instances)
	v.instances = append(v.instances, inst)
	v.mu.Unlock()
	primary := opts.Primary
	primary.DeviceIndex = 0
	e, err := inst.Attach(ctx, primary)
	if err != nil {
		return nil, err
	}
	if inst.opts.Hostname == "" {
		inst.opts.Hostname = inst.id
		if list := e.IPv4(); len(list) > 0 {
			inst.opts.Hostname, _, _ = strings.Cut(hostname4(list[0]), ".")
		}
	}
	if err := inst.prepare(ctx); err != nil {
		return nil, fmt.Errorf("preparing the root of %s: %w", inst.id, err)
	}
	return inst, nil
}

// mount mounts a writable layer over the image. The mount is private, so that it stays in this
// mount namespace and in that of the container.
func (inst *Instance) mount(image string) error {
	upper, work := filepath.Join(inst.dir, "upper"), filepath.Join(inst.dir, "work")
	for _, dir := range []string{upper, work, inst.root} {
		if err := os.MkdirAll(dir, 0o755); err != nil {
			return err
		}
	}
	// volatile: nothing here must survive a crash of the host, so no fsync.
	data := fmt.Sprintf("lowerdir=%s,upperdir=%s,workdir=%s,volatile", image, upper, work)
	if err := unix.Mount("overlay", inst.root, "overlay", 0, data); err != nil {
		return fmt.Errorf("overlay (%s): %w", data, err)
	}
	return unix.Mount("", inst.root, "", unix.MS_PRIVATE, "")
}

// prepare writes the files that identify the instance to the root.
func (inst *Instance) prepare(ctx context.Context) error {
	files := map[string]string{
		"/etc/machine-id": inst.opts.MachineID + "\n",
		"/etc/hostname":   inst.opts.Hostname + "\n",
		"/etc/hosts":      "127.0.0.1 localhost\n::1 localhost\n127.0.1.1 " + inst.opts.Hostname + "\n",
	}
	for _, set := range []map[string]string{files, inst.opts.Files} {
		for path, text := range set {
			if err := WriteFile(inst.root, path, text); err != nil {
				return err
			}
		}
	}
	if inst.opts.Machine {
		if err := inst.prepareMachine(); err != nil {
			return err
		}
	}
	if err := inst.stock.prepare(ctx, inst.root); err != nil {
		return err
	}
	for _, tree := range inst.opts.Trees {
		if err := CopyTree(ctx, inst.root, tree); err != nil {
			return err
		}
	}
	if inst.opts.Install != nil {
		return inst.opts.Install(inst.root)
	}
	return nil
}

// ID is the instance's ID.
func (inst *Instance) ID() string { return inst.id }

// VPC returns the VPC of the instance.
func (inst *Instance) VPC() *VPC { return inst.vpc }

// Suite is the Debian suite.
func (inst *Instance) Suite() string { return inst.opts.Suite }

// Root returns the instance's root directory on this machine. It does not contain /run, /dev
// and so on of a running instance: see [Instance.Path]. A machine that has booted has its own
// disk.
func (inst *Instance) Root() string { return inst.root }

// Path returns the path on this machine of a file of the running container, including /run.
func (inst *Instance) Path(path string) string {
	if leader := inst.Leader(); leader != 0 {
		return filepath.Join(fmt.Sprintf("/proc/%d/root", leader), path)
	}
	return filepath.Join(inst.root, path)
}

// Metadata returns the instance's metadata service, for faults, overrides and the request log.
func (inst *Instance) Metadata() *imds.Server { return inst.meta }

// Primary returns the ENI with which the instance boots.
func (inst *Instance) Primary() *ENI { return inst.ENIs()[0] }

// ENIs returns the ENIs of the instance, the primary one first.
func (inst *Instance) ENIs() []*ENI {
	inst.vpc.mu.Lock()
	defer inst.vpc.mu.Unlock()
	return slices.Clone(inst.enis)
}

// ENI finds an ENI by ID, MAC or name; nil if there is none.
func (inst *Instance) ENI(key string) *ENI {
	inst.vpc.mu.Lock()
	defer inst.vpc.mu.Unlock()
	for _, e := range inst.enis {
		if key == e.id || key == e.mac.String() || key == e.name {
			return e
		}
	}
	return nil
}

// freeIndex returns the lowest free device index of a card; vpc.mu is held.
func (inst *Instance) freeIndex(card *int) int {
	number := func(c *int) int {
		if c == nil {
			return 0
		}
		return *c
	}
	for n := 1; ; n++ {
		taken := slices.ContainsFunc(inst.enis, func(e *ENI) bool {
			return e.index == n && number(e.card) == number(card)
		})
		if !taken {
			return n
		}
	}
}

// freeName returns the next link name; vpc.mu is held.
func (inst *Instance) freeName() string {
	for n := 5; ; n++ {
		name := "ens" + strconv.Itoa(n)
		if !slices.ContainsFunc(inst.enis, func(e *ENI) bool { return e.name == name }) {
			return name
		}
	}
}

// publish updates the top-level keys of the metadata.
func (inst *Instance) publish() {
	v := inst.vpc
	v.mu.Lock()
	primary := inst.enis[0]
	i := imds.Instance{
		ID: inst.id, Type: inst.opts.Type, AMI: "ami-0" + strings.TrimPrefix(v.id, "vpc-0"),
		MAC: primary.mac.String(), Region: v.opts.Region, Zone: v.opts.Zone, AccountID: accountID, Architecture: "x86_64",
	}
	if len(primary.ipv4) > 0 {
		i.LocalIPv4 = primary.ipv4[0]
		i.Hostname = hostname4(i.LocalIPv4)
	} else {
		i.Hostname = inst.id + ".ec2.internal"
	}
	if len(primary.ipv6) > 0 {
		i.IPv6 = primary.ipv6[0]
	}
	v.mu.Unlock()
	inst.meta.SetInstance(i)
}

// current returns the running boot, or nil.
func (inst *Instance) current() *running {
	inst.mu.Lock()
	defer inst.mu.Unlock()
	return inst.run
}

// running returns the thread in the instance's namespace. The namespace of a machine is not
// accessible.
func (inst *Instance) running() (*thread, error) {
	switch r := inst.current(); {
	case r == nil:
		return nil, fmt.Errorf("%s is not running", inst.id)
	case r.thread == nil:
		return nil, fmt.Errorf("%s is a machine, whose network is its own: run a command in it", inst.id)
	default:
		return r.thread, nil
	}
}

// Running reports whether the instance is on.
func (inst *Instance) Running() bool { return inst.current() != nil }

// Leader returns the PID of the instance's systemd, 0 if the instance is off, or a machine.
func (inst *Instance) Leader() int {
	if r := inst.current(); r != nil {
		return r.leader
	}
	return 0
}

// BootTime returns the duration of the last boot: from the start of the container until systemd
// reported that the boot was complete.
func (inst *Instance) BootTime() time.Duration {
	if r := inst.current(); r != nil {
		return r.booted
	}
	return 0
}

// Console returns the file with the console output of all boots.
func (inst *Instance) Console() string { return filepath.Join(inst.dir, "console.log") }

// Boot starts the instance and waits until its systemd has reached its default target. Failed
// units are no error: see [Instance.FailedUnits].
func (inst *Instance) Boot(ctx context.Context) error {
	inst.boot.Lock()
	defer inst.boot.Unlock()
	if inst.Running() {
		return fmt.Errorf("booting %s: it is running", inst.id)
	}
	ctx, cancel := context.WithTimeout(ctx, inst.bootTimeout())
	defer cancel()
	if err := inst.start(ctx); err != nil {
		return fmt.Errorf("booting %s (%s): %w%s", inst.id, inst.opts.Suite, err, inst.consoleTail())
	}
	return nil
}

// consoleTail returns the last lines of the console, for an error.
func (inst *Instance) consoleTail() string {
	text, _ := os.ReadFile(inst.Console())
	if len(text) == 0 {
		return ""
	}
	const limit = 2000
	if len(text) > limit {
		text = text[len(text)-limit:]
	}
	return "\nconsole: " + strings.TrimSpace(string(text))
}

func (inst *Instance) bootTimeout() time.Duration {
	if inst.opts.Machine {
		return machineTimeout
	}
	return bootTimeout
}

func (inst *Instance) start(ctx context.Context) (err error) {
	v := inst.vpc
	r := &running{exited: make(chan struct{})}
	thread, prepare := v.thread, inst.startMachine // QEMU opens taps of the VPC
	if !inst.opts.Machine {
		if r.thread, err = newThread(""); err != nil {
			return err
		}
		thread, prepare = r.thread, inst.startContainer
	}
	started := false
	defer func() {
		if err == nil {
			return
		}
		if started {
			err = errors.Join(err, inst.end(context.WithoutCancel(ctx), r))
		} else {
			err = errors.Join(err, inst.release(context.WithoutCancel(ctx), r))
		}
	}()
	// The links exist before the first process runs, as on EC2.
	for _, e := range inst.ENIs() {
		if e.Plugged() {
			if err := e.link(r); err != nil {
				return err
			}
		}
	}
	cgroup, err := makeCgroup(inst.cg)
	if err != nil {
		return err
	}
	defer cgroup.Close()
	console, err := os.OpenFile(inst.Console(), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer console.Close()
	cmd, ready, err := prepare(ctx, r)
	if err != nil {
		return err
	}
	begin := time.Now()
	cmd.Stdout, cmd.Stderr = console, console
	cmd.SysProcAttr = &syscall.SysProcAttr{
		Pdeathsig: syscall.SIGKILL, UseCgroupFD: true, CgroupFD: int(cgroup.Fd()), Setsid: true,
	}
	if err := thread.start(cmd); err != nil {
		return fmt.Errorf("starting %s: %w", cmd.Args[0], err)
	}
	started = true
	go func() {
		// The error of Wait contains the exit status.
		_ = cmd.Wait()
		r.status = cmd.ProcessState.ExitCode()
		close(r.exited)
	}()
	r.proc = process{PID: cmd.Process.Pid, What: cmd.Args[0] + " of " + inst.id}
	if r.proc.Start, err = startTime(r.proc.PID); err != nil {
		return err
	}
	if err := v.remember(r.proc); err != nil {
		return err
	}
	if err := ready(ctx); err != nil {
		return err
	}
	r.booted = time.Since(begin)
	inst.mu.Lock()
	inst.run = r
	inst.mu.Unlock()
	return nil
}

// startContainer returns the command that runs a container. The ready function waits until it
// is up.
func (inst *Instance) startContainer(_ context.Context, r *running) (*exec.Cmd, func(context.Context) error, error) {
	notify, socket, err := inst.listenNotify()
	if err != nil {
		return nil, nil, err
	}
	return inst.nspawn(socket), func(ctx context.Context) error {
		defer func() { _ = notify.Close() }() // it is only read
		if err := waitReady(ctx, notify, r.exited); err != nil {
			return err
		}
		r.leader, err = findLeader(inst.cg)
		return err
	}, nil
}

// nspawn returns the command that runs the container. It is started in the instance's network
// namespace. With --private-network nspawn would create its own, to which links could not be
// added before the boot. With --network-namespace-path= (252) the container would see the /sys
// of the host.
//
// unshare(1) creates a PID and a mount namespace around it. If this process is killed, the
// kernel kills unshare, then nspawn, the first process of that namespace, and with it
// everything in the container, which would survive a killed nspawn otherwise. The tmpfs keeps
// nspawn's run-time files off the host.
func (inst *Instance) nspawn(notify string) *exec.Cmd {
	cmd := exec.CommandContext(inst.vpc.life, "unshare", "--mount", "--propagation=private", "--pid", "--fork", "--kill-child=SIGKILL",
		"--mount-proc", "--",
		"sh", "-c", `mkdir -p /run/systemd/nspawn && mount -t tmpfs -o mode=0755 vpclab /run/systemd/nspawn && exec "$@"`, "sh",
		"systemd-nspawn", "--quiet", "--directory="+inst.root, "--machine="+inst.id, "--hostname="+inst.opts.Hostname,
		"--capability=all", "--boot", "--console=pipe", "--register=no", "--keep-unit", "--resolv-conf=off",
		"--timezone=off", "--link-journal=no", "--notify-ready=yes")
	cmd.Env = []string{
		"PATH=/usr/local/sbin:/usr/local/bin:/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8",
		// A writable /sys is what starts udevd in a container.
		"SYSTEMD_NSPAWN_API_VFS_WRITABLE=1",
		// From 258 on systemd refuses cgroup v1.
		"SYSTEMD_NSPAWN_UNIFIED_HIERARCHY=1",
		"SYSTEMD_SECCOMP=0",
		"NOTIFY_SOCKET=" + notify,
	}
	return cmd
}

// listenNotify opens the socket on which nspawn reports: sd_notify(3).
func (inst *Instance) listenNotify() (*net.UnixConn, string, error) {
	path := filepath.Join(inst.dir, "notify")
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return nil, "", err
	}
	conn, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		return nil, "", fmt.Errorf("opening the notification socket: %w", err)
	}
	return conn, path, nil
}

// waitReady waits until nspawn forwards the READY=1 of the container's systemd.
func waitReady(ctx context.Context, conn *net.UnixConn, exited <-chan struct{}) error {
	done := make(chan struct{})
	defer close(done)
	go func() {
		select {
		case <-ctx.Done():
		case <-exited:
		case <-done:
			return
		}
		_ = conn.SetReadDeadline(time.Now()) // this ends the read, unless the socket is closed
	}()
	buf := make([]byte, 8192)
	for {
		n, err := conn.Read(buf)
		if err != nil {
			select {
			case <-exited:
				return errors.New("systemd-nspawn ended before the instance was up")
			default:
			}
			return fmt.Errorf("waiting until the instance is up: %w", cmpErr(context.Cause(ctx), err))
		}
		if slices.Contains(strings.Split(string(buf[:n]), "\n"), "READY=1") {
			return nil
		}
	}
}

func cmpErr(first, second error) error {
	if first != nil {
		return first
	}
	return second
}

// findLeader finds the container's systemd: the only process of its cgroup that is the first of
// a PID namespace. nspawn reports its PID too, but in another namespace.
func findLeader(cgroup string) (int, error) {
	path := filepath.Join(cgroupDir(cgroup), "payload/init.scope/cgroup.procs")
	f, err := os.Open(path)
	if err != nil {
		return 0, fmt.Errorf("looking for the instance's systemd: %w", err)
	}
	defer f.Close()
	lines := bufio.NewScanner(f)
	for lines.Scan() {
		pid, err := strconv.Atoi(lines.Text())
		if err != nil {
			continue
		}
		status, _ := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
		for line := range strings.Lines(string(status)) {
			if f := strings.Fields(line); len(f) > 1 && f[0] == "NSpid:" && f[len(f)-1] == "1" {
				return pid, nil
			}
		}
	}
	return 0, fmt.Errorf("looking for the instance's systemd: none in %s", path)
}

// end kills the processes of a boot and waits until they have ended.
func (inst *Instance) end(ctx context.Context, r *running) error {
	inst.mu.Lock()
	if inst.run == r {
		inst.run = nil
	}
	inst.mu.Unlock()
	err := removeCgroup(ctx, inst.cg)
	select {
	case <-r.exited:
	case <-ctx.Done():
		err = errors.Join(err, fmt.Errorf("%s does not end: %w", r.proc.What, context.Cause(ctx)))
	}
	inst.vpc.forget(r.proc)
	return errors.Join(err, inst.release(ctx, r))
}

// release releases the other resources of a boot.
func (inst *Instance) release(ctx context.Context, r *running) (err error) {
	if r.machine != nil {
		r.machine.end()
	}
	// When the last process and this thread have ended, the kernel removes the namespace of a
	// container, and thereby its links.
	if r.thread != nil {
		r.thread.close()
	}
	for _, e := range inst.ENIs() {
		err = errors.Join(err, inst.waitUnplugged(ctx, e))
	}
	return err
}

// waitUnplugged waits until the kernel has removed the VPC's end of a pair whose other end was
// removed with its namespace.
func (inst *Instance) waitUnplugged(ctx context.Context, e *ENI) error {
	return until(ctx, "the link of "+e.id+" is gone", func() (bool, error) {
		l, err := inst.vpc.thread.link.LinkByName(e.port)
		if err != nil {
			if linkGone(err) {
				return true, nil
			}
			return false, err
		}
		// Something else may still use the namespace, but the link must be removed.
		if err := inst.vpc.thread.link.LinkDel(l); err != nil && !linkGone(err) {
			return false, err
		}
		return false, nil
	})
}

// kill ends the instance at once.
func (inst *Instance) kill(ctx context.Context) error {
	if r := inst.current(); r != nil {
		return inst.end(ctx, r)
	}
	return nil
}

// Kill simulates a power failure: everything in the instance ends at once.
func (inst *Instance) Kill(ctx context.Context) error {
	inst.boot.Lock()
	defer inst.boot.Unlock()
	return inst.kill(ctx)
}

// Shutdown powers the instance off through systemd, and waits until it is off. Its ENIs stay
// attached; [Instance.Boot] starts it again.
func (inst *Instance) Shutdown(ctx context.Context) error {
	_, err := inst.stop(ctx, "poweroff")
	return err
}

// Reboot restarts the instance through systemd and waits until it is up again. As on hardware,
// the state of the kernel's network is lost.
func (inst *Instance) Reboot(ctx context.Context) error {
	r, err := inst.stop(ctx, "reboot")
	if err != nil {
		return err
	}
	if r.machine != nil {
		if reason := r.machine.monitor.shutdownReason(); reason != rebootReason {
			return fmt.Errorf("rebooting %s: QEMU ended for %q, want %q", inst.id, reason, rebootReason)
		}
	} else if r.status != rebootStatus {
		return fmt.Errorf("rebooting %s: systemd-nspawn ended with status %d, want %d", inst.id, r.status, rebootStatus)
	}
	return inst.Boot(ctx)
}

func (inst *Instance) stop(ctx context.Context, how string) (*running, error) {
	inst.boot.Lock()
	defer inst.boot.Unlock()
	r := inst.current()
	if r == nil {
		return nil, fmt.Errorf("%s of %s: it is not running", how, inst.id)
	}
	ctx, cancel := context.WithTimeout(ctx, inst.bootTimeout())
	defer cancel()
	// The bus may end before it answers: only the end of nspawn counts.
	_, cmdErr := inst.Exec(ctx, "systemctl", "--no-block", how)
	select {
	case <-r.exited:
	case <-ctx.Done():
		return nil, errors.Join(fmt.Errorf("%s of %s: %w", how, inst.id, context.Cause(ctx)), cmdErr)
	}
	return r, inst.end(ctx, r)
}

// NetNS returns the instance's network namespace, valid until it stops; -1 if it is off, or a
// machine.
func (inst *Instance) NetNS() netns.NsHandle {
	t, err := inst.running()
	if err != nil {
		return netns.None()
	}
	return t.ns
}

// Do runs f on a thread in the instance's network namespace, for example with
// functions of the netlink package. Goroutines that f starts are not in it.
func (inst *Instance) Do(f func() error) error {
	t, err := inst.running()
	if err != nil {
		return err
	}
	return inNamespace(t.ns, f)
}

// Netlink opens a netlink handle in the instance; the caller closes it.
func (inst *Instance) Netlink() (*netlink.Handle, error) {
	t, err := inst.running()
	if err != nil {
		return nil, err
	}
	return netlink.NewHandleAt(t.ns)
}

// SystemdVersion returns the major version of the instance's systemd.
func (inst *Instance) SystemdVersion(ctx context.Context) (int, error) {
	out, err := inst.Exec(ctx, "systemctl", "--version")
	if err != nil {
		return 0, err
	}
	// systemd 257 (257.13-1~deb13u1)
	fields := strings.Fields(out)
	if len(fields) < 2 {
		return 0, fmt.Errorf("unexpected output of systemctl --version: %q", out)
	}
	digits, _, _ := strings.Cut(fields[1], "~")
	version, err := strconv.Atoi(digits)
	if err != nil {
		return 0, fmt.Errorf("unexpected output of systemctl --version: %q", out)
	}
	return version, nil
}

// FailedUnits lists the units that have failed.
func (inst *Instance) FailedUnits(ctx context.Context) ([]string, error) {
	out, err := inst.Exec(ctx, "systemctl", "list-units", "--failed", "--plain", "--no-legend", "--no-pager")
	if err != nil {
		return nil, err
	}
	var units []string
	for line := range strings.Lines(out) {
		if f := strings.Fields(line); len(f) > 0 {
			units = append(units, f[0])
		}
	}
	return units, nil
}

// Journal returns the journal, as journalctl(1) prints it with these arguments.
func (inst *Instance) Journal(ctx context.Context, args ...string) (string, error) {
	return inst.Exec(ctx, append([]string{"journalctl", "--no-pager"}, args...)...)
}

// Addrs lists the addresses of a link of the instance, in the kernel's order. It omits IPv6
// addresses in duplicate address detection, which are not usable yet.
func (inst *Instance) Addrs(link string) ([]netip.Prefix, error) {
	if inst.opts.Machine {
		return inst.machineAddrs(link)
	}
	h, err := inst.Netlink()
	if err != nil {
		return nil, err
	}
	defer h.Close()
	l, err := h.LinkByName(link)
	if err != nil {
		return nil, fmt.Errorf("finding %s in %s: %w", link, inst.id, err)
	}
	list, err := h.AddrList(l, netlink.FAMILY_ALL)
	if err != nil {
		return nil, fmt.Errorf("listing the addresses of %s in %s: %w", link, inst.id, err)
	}
	var out []netip.Prefix
	for _, a := range list {
		addr, ok := netip.AddrFromSlice(a.IP)
		ones, _ := a.Mask.Size()
		if ok && a.Flags&(unix.IFA_F_TENTATIVE|unix.IFA_F_DADFAILED) == 0 {
			out = append(out, netip.PrefixFrom(addr.Unmap(), ones))
		}
	}
	return out, nil
}

// AwaitAddrs waits until these addresses are among [Instance.Addrs] of a link, which need not
// exist yet.
func (inst *Instance) AwaitAddrs(ctx context.Context, link string, want ...netip.Addr) error {
	var has []netip.Prefix
	var hasErr error
	lacks := func(addr netip.Addr) bool {
		return !slices.ContainsFunc(has, func(p netip.Prefix) bool { return p.Addr() == addr })
	}
	err := until(ctx, fmt.Sprintf("%s of %s has %v", link, inst.id, want), func() (bool, error) {
		has, hasErr = inst.Addrs(link)
		return hasErr == nil && !slices.ContainsFunc(want, lacks), nil
	})
	switch {
	case err != nil && hasErr != nil:
		return fmt.Errorf("%w; %w", err, hasErr)
	case err != nil:
		return fmt.Errorf("%w; it has %v", err, has)
	}
	return nil
}

// Until polls a condition until it is true or ctx ends. The pause between two polls is four
// times the duration of the last one, and 5 to 100 ms. An error of the condition also ends the
// wait.
func Until(ctx context.Context, what string, cond func() (bool, error)) error {
	return until(ctx, what, cond)
}

// UntilExactly is [Until] for measurements: the pause is always every.
func UntilExactly(ctx context.Context, what string, every time.Duration, cond func() (bool, error)) error {
	return ask(ctx, what, cond, func(time.Duration) time.Duration { return every })
}
