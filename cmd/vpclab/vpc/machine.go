package vpc

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strconv"
	"strings"
	"time"

	"github.com/vishvananda/netlink"
)

// A machine is an instance with a kernel of its own, Debian's for clouds, in QEMU: for what a
// container cannot show. As on EC2, it boots from an NVMe disk and says in its DMI strings that
// it is an instance, and ENIs are PCIe devices that come and go while it runs. QEMU emulates
// the processor: virtual machines need not be able to have some of their own.

const (
	qemu = "qemu-system-x86_64"
	// machinePackage is the kernel, which is installed over the image of a suite.
	machinePackage = "linux-image-cloud-amd64"
	// machineMemory is in MiB.
	machineMemory = 1024
	// machineTimeout is how long a boot may take where the caller sets no limit: 40 s with two
	// processors for it alone, several times that beside other labs.
	machineTimeout = 10 * time.Minute
	// diskSize is that of the root file system, of which the disk has what is used.
	diskSize = "4G"
)

// The slots of a machine's PCIe ports: an ENI in slot 5 is ens5.
const (
	firstSlot = 5
	lastSlot  = 16
)

// machine is one boot of a machine.
type machine struct {
	monitor *monitor
	guest   *guest
}

// slot is the number of the port in which an ENI is, or 0.
func slot(name string) int {
	digits, ok := strings.CutPrefix(name, "ens")
	if n, err := strconv.Atoi(digits); ok && err == nil && n >= firstSlot && n <= lastSlot {
		return n
	}
	return 0
}

// checkMachine says why there can be no such machine.
func checkMachine(opts InstanceOptions) error {
	if opts.Stock != "" {
		return fmt.Errorf("the stock image %s boots as a container only", opts.Stock)
	}
	if runtime.GOARCH != "amd64" {
		return fmt.Errorf("machines are emulated on amd64 only, not on %s", runtime.GOARCH)
	}
	return needTools(qemu, "mke2fs")
}

// machineMasked units cost a machine seconds, and have nothing to do in it.
var machineMasked = []string{
	"dev-hugepages.mount", "dev-mqueue.mount", "sys-fs-fuse-connections.mount", "sys-kernel-config.mount",
	"sys-kernel-debug.mount", "sys-kernel-tracing.mount", "modprobe@.service",
}

// prepareMachine writes what makes a root a machine's.
func (inst *Instance) prepareMachine() error {
	for _, unit := range machineMasked {
		if err := os.Symlink("/dev/null", filepath.Join(inst.root, "etc/systemd/system", unit)); err != nil {
			return err
		}
	}
	for path, text := range agentFiles {
		if err := WriteFile(inst.root, path, text); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(inst.root, agentPath), 0o755)
}

// makeDisk makes the machine's disk of its root, which is only looked at again if the disk is
// made anew. The file has no name, so that nothing can leave it behind.
func (inst *Instance) makeDisk(ctx context.Context) (err error) {
	if inst.disk != nil {
		return nil
	}
	disk, err := os.CreateTemp(inst.vpc.opts.Images.dir(), ".disk-")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			disk.Close()
		}
	}()
	if err := os.Remove(disk.Name()); err != nil {
		return err
	}
	cmd := exec.CommandContext(ctx, "mke2fs", "-q", "-F", "-t", "ext4", "-L", "root", "-E", "lazy_itable_init=1,lazy_journal_init=1,nodiscard",
		"-d", inst.root, "/proc/self/fd/3", diskSize)
	cmd.ExtraFiles = []*os.File{disk}
	if err := runTool(cmd); err != nil {
		return fmt.Errorf("making the disk: %w", err)
	}
	inst.disk = disk
	return nil
}

// startMachine makes the command that runs a machine. The ready function waits until it is up.
func (inst *Instance) startMachine(ctx context.Context, r *running) (*exec.Cmd, func(context.Context) error, error) {
	if err := inst.makeDisk(ctx); err != nil {
		return nil, nil, err
	}
	for _, socket := range []string{"qmp", "port", "commands"} {
		if err := os.Remove(filepath.Join(inst.dir, socket)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return nil, nil, err
		}
	}
	return inst.qemu(), func(ctx context.Context) error { return inst.machineReady(ctx, r) }, nil
}

// qemu is the command that runs a machine.
func (inst *Instance) qemu() *exec.Cmd {
	cmd := exec.CommandContext(inst.vpc.life, qemu, inst.machineArgs()...)
	cmd.ExtraFiles = []*os.File{inst.disk}
	return cmd
}

// machineArgs are QEMU's arguments.
func (inst *Instance) machineArgs() []string {
	line := []string{
		"root=/dev/nvme0n1", "rootfstype=ext4", "rw", "fsck.mode=skip", "console=ttyS0", "quiet", "systemd.show_status=no",
		"panic=-1", // a reboot, which ends QEMU
		// The processor is emulated anyway.
		"mitigations=off",
	}
	args := []string{
		"-name", inst.id, "-nodefaults", "-no-user-config", "-display", "none",
		// Each boot has a QEMU of its own, so that it finds its links as they shall be then.
		"-no-reboot",
		// Without what Debian would load drivers for in vain.
		"-machine", "q35,sata=off,smbus=off", "-cpu", "qemu64,-svm",
		// One processor: where the emulation has several, one of them may still meet the breakpoint
		// by which the kernel patches its code after the kernel has taken that away, and panics
		// ("Oops: int3", seen at boot with QEMU 7.2.22 and Linux 6.12).
		"-accel", "tcg", "-smp", "1", "-m", strconv.Itoa(machineMemory),
		// Native PCIe hotplug: with that of ACPI the slots have no numbers.
		"-global", "ICH9-LPC.acpi-pci-hotplug-with-bridge-support=off",
		"-smbios", "type=0,vendor=Amazon EC2,version=1.0",
		"-smbios", "type=1,manufacturer=Amazon EC2,product=" + inst.opts.Type + ",uuid=ec2" + inst.opts.MachineID[:5] + "-" +
			inst.opts.MachineID[5:9] + "-" + inst.opts.MachineID[9:13] + "-" + inst.opts.MachineID[13:17] + "-" + inst.opts.MachineID[17:29],
		"-smbios", "type=2,manufacturer=Amazon EC2,asset=" + inst.id,
		"-smbios", "type=3,manufacturer=Amazon EC2,asset=Amazon EC2",
		"-kernel", filepath.Join(inst.root, "vmlinuz"),
		"-append", strings.Join(append(line, inst.kernelArgs...), " "),
		"-chardev", "file,id=console,append=on,path=" + inst.Console(), "-serial", "chardev:console",
		"-chardev", "socket,id=qmp,server=on,wait=off,path=" + filepath.Join(inst.dir, "qmp"), "-mon", "chardev=qmp,mode=control",
		"-device", "virtio-serial-pci",
		"-chardev", "socket,id=port,server=on,wait=off,path=" + filepath.Join(inst.dir, "port"),
		"-device", "virtserialport,chardev=port,name=" + agentPort,
		"-device", "virtio-rng-pci",
		// unsafe: it must not survive a crash of the host.
		"-drive", "if=none,id=root,format=raw,cache=unsafe,file.locking=off,file=/proc/self/fd/3",
		"-device", "nvme,drive=root,serial=vol" + strings.TrimPrefix(inst.id, "i-"),
	}
	for n := firstSlot; n <= lastSlot; n++ {
		args = append(args, "-device", fmt.Sprintf("pcie-root-port,id=slot%d,slot=%d,chassis=%d", n, n, n))
	}
	for _, e := range inst.ENIs() {
		if e.Plugged() {
			args = append(args, "-netdev", e.netdev(), "-device", e.device())
		}
	}
	return args
}

// netdev and device are the two halves of an ENI in QEMU: its tap, and the device in a port.
func (e *ENI) netdev() string {
	return "tap,id=" + e.port + ",ifname=" + e.port + ",script=no,downscript=no,vhost=off"
}

func (e *ENI) device() string {
	return fmt.Sprintf("virtio-net-pci,id=d%s,netdev=%s,mac=%s,romfile=,bus=slot%d", e.port, e.port, e.mac, slot(e.Name()))
}

// arguments are those of a QMP command for an option as on the command line.
func arguments(option, first string) map[string]any {
	out := make(map[string]any)
	kind, rest, _ := strings.Cut(option, ",")
	out[first] = kind
	for _, pair := range strings.Split(rest, ",") {
		key, value, _ := strings.Cut(pair, "=")
		out[key] = value
		if key == "vhost" {
			out[key] = value == "on"
		}
	}
	return out
}

// dialQEMU connects to a socket of a QEMU that has just been started.
func dialQEMU(ctx context.Context, path string, exited <-chan struct{}) (conn net.Conn, err error) {
	var d net.Dialer
	err = until(ctx, "QEMU listens on "+path, func() (bool, error) {
		var dialErr error
		if conn, dialErr = d.DialContext(ctx, "unix", path); dialErr == nil {
			return true, nil
		}
		select {
		case <-exited:
			return false, errors.New("QEMU has ended")
		default:
			return false, nil
		}
	})
	return conn, err
}

// machineReady waits until a machine is up.
func (inst *Instance) machineReady(ctx context.Context, r *running) (err error) {
	// The port first: its agent has nobody to talk to before.
	port, err := dialQEMU(ctx, filepath.Join(inst.dir, "port"), r.exited)
	if err != nil {
		return err
	}
	var lc net.ListenConfig
	listener, err := lc.Listen(ctx, "unix", inst.socket())
	if err != nil {
		port.Close()
		return fmt.Errorf("opening the socket for commands: %w", err)
	}
	r.machine = &machine{guest: newGuest(port, listener)}
	conn, err := dialQEMU(ctx, filepath.Join(inst.dir, "qmp"), r.exited)
	if err != nil {
		return err
	}
	if r.machine.monitor, err = newMonitor(ctx, conn); err != nil {
		return err
	}
	select {
	case <-r.machine.guest.hello:
	case <-r.exited:
		return errors.New("QEMU ended before the machine was up")
	case <-ctx.Done():
		return fmt.Errorf("waiting until the machine's agent is there: %w", context.Cause(ctx))
	}
	// Failed units are no error, as with a container.
	var status StatusError
	_, err = inst.Exec(ctx, "systemctl", "is-system-running", "--wait")
	if errors.As(err, &status) {
		err = nil
	}
	return err
}

// end lets go of a machine that has ended.
func (m *machine) end() {
	m.guest.close()
	if m.monitor != nil {
		m.monitor.close()
	}
}

// socket is where [RunInMachine] reaches a machine.
func (inst *Instance) socket() string { return filepath.Join(inst.dir, "commands") }

// Machine reports whether the instance is a machine.
func (inst *Instance) Machine() bool { return inst.opts.Machine }

// SetKernelArgs changes [InstanceOptions].KernelArgs for the boots to come.
func (inst *Instance) SetKernelArgs(args ...string) {
	inst.boot.Lock()
	defer inst.boot.Unlock()
	inst.kernelArgs = args
}

// tap makes the VPC's end of an ENI of a machine; QEMU opens the other.
func (e *ENI) tap() error {
	attrs := netlink.NewLinkAttrs()
	attrs.Name = e.port
	tap := &netlink.Tuntap{LinkAttrs: attrs, Mode: netlink.TUNTAP_MODE_TAP, Flags: netlink.TUNTAP_NO_PI | netlink.TUNTAP_VNET_HDR}
	err := e.vpc.thread.do(func() error { return netlink.LinkAdd(tap) })
	if err != nil {
		return err
	}
	link, err := e.vpc.thread.link.LinkByName(e.port)
	if err == nil {
		err = e.vpc.thread.link.LinkSetMTU(link, e.vpc.Behaviour().mtu())
	}
	return err
}

// plug puts an ENI, whose tap is there, into a port of a running machine.
func (m *machine) plug(ctx context.Context, e *ENI) error {
	if err := m.monitor.execute(ctx, "netdev_add", arguments(e.netdev(), "type")); err != nil {
		return err
	}
	if err := m.monitor.execute(ctx, "device_add", arguments(e.device(), "driver")); err != nil {
		return errors.Join(err, m.monitor.execute(ctx, "netdev_del", map[string]any{"id": e.port}))
	}
	return nil
}

// unplug takes an ENI out of its port: the machine is asked to let it go, as on EC2, and gets
// five seconds for that by the standard.
func (m *machine) unplug(ctx context.Context, e *ENI) error {
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	device := "d" + e.port
	before := m.monitor.count("DEVICE_DELETED", device)
	if err := m.monitor.execute(ctx, "device_del", map[string]any{"id": device}); err != nil {
		return err
	}
	if err := m.monitor.await(ctx, "the machine has let "+e.id+" go", "DEVICE_DELETED", device, before); err != nil {
		return err
	}
	return m.monitor.execute(ctx, "netdev_del", map[string]any{"id": e.port})
}

// setCarrier tells a machine that an ENI has a carrier or none.
func (m *machine) setCarrier(ctx context.Context, e *ENI, on bool) error {
	return m.monitor.execute(ctx, "set_link", map[string]any{"name": "d" + e.port, "up": on})
}

// suspendScript suspends a machine to RAM, and mends what SeaBIOS leaves undone as it wakes up.
// The wake-up resets the chipset. SeaBIOS up to 1.17.0 at least (pci_resume in src/fw/pciinit.c)
// sets PMBASE, ACPI_CNTL, RCBA and PCIEXBAR again, but writes them through the memory window that
// PCIEXBAR opens, which the reset has closed. The ports of power management are gone then: all bits
// read as ones, WAK_STS too, and the kernel would return from each later suspend without sleep.
const suspendScript = `set -e
cd /sys/bus/pci/devices
saved=$(mktemp -d -p /run)
dd if=0000:00:00.0/config of="$saved/pciexbar" bs=4 skip=24 count=1 status=none
dd if=0000:00:1f.0/config of="$saved/pmbase" bs=4 skip=16 count=2 status=none
dd if=0000:00:1f.0/config of="$saved/rcba" bs=4 skip=60 count=1 status=none
echo mem >/sys/power/state
dd if="$saved/pciexbar" of=0000:00:00.0/config bs=4 seek=24 conv=notrunc status=none
dd if="$saved/pmbase" of=0000:00:1f.0/config bs=4 seek=16 conv=notrunc status=none
dd if="$saved/rcba" of=0000:00:1f.0/config bs=4 seek=60 conv=notrunc status=none
rm -r "$saved"
`

// Suspend suspends a running machine to RAM and wakes it up at once. It returns when the machine
// runs again.
func (inst *Instance) Suspend(ctx context.Context) error {
	r := inst.current()
	if r == nil || r.machine == nil {
		return fmt.Errorf("suspending %s: it is no machine that is running", inst.id)
	}
	ctx, cancel := context.WithTimeout(ctx, machineTimeout)
	defer cancel()
	if err := inst.suspend(ctx, r.machine.monitor); err != nil {
		select {
		case <-r.machine.monitor.done:
			return fmt.Errorf("%w; QEMU has ended for %q%s", err, r.machine.monitor.shutdownReason(), inst.consoleTail())
		case <-time.After(time.Second): // QEMU's connections do not end at the same moment
			return err
		}
	}
	return nil
}

func (inst *Instance) suspend(ctx context.Context, m *monitor) error {
	slept, woken := m.count("SUSPEND", ""), m.count("WAKEUP", "")
	written := make(chan error, 1)
	go func() {
		_, err := inst.Exec(ctx, "sh", "-c", suspendScript)
		written <- err
	}()
	err := until(ctx, inst.id+" is suspended", func() (bool, error) {
		select {
		case err := <-written:
			return false, cmpErr(err, errors.New("its kernel has returned without sleep"))
		default:
			return m.count("SUSPEND", "") > slept, nil
		}
	})
	if err != nil {
		return err
	}
	if err := m.execute(ctx, "system_wakeup", nil); err != nil {
		return fmt.Errorf("waking %s up: %w", inst.id, err)
	}
	if err := m.await(ctx, inst.id+" wakes up", "WAKEUP", "", woken); err != nil {
		return err
	}
	if err := <-written; err != nil {
		return fmt.Errorf("waiting until %s runs again: %w", inst.id, err)
	}
	return nil
}

// machinePing is [Instance.Ping] of a machine, by the ping(8) in it: once for each request, as it
// waits for a late reply only if it has had none, and an emulated processor makes many late.
func (inst *Instance) machinePing(ctx context.Context, src, dst netip.Addr, count int, interval time.Duration) (PingResult, error) {
	const script = `for i in $(seq "$1"); do ping -n -q -c 1 -W 10 -I "$2" "$3" >/dev/null && echo yes; sleep "$4"; done; true`
	text, err := inst.Exec(ctx, "sh", "-c", script, "sh", strconv.Itoa(count), src.String(), dst.String(), fmt.Sprint(interval.Seconds()))
	return PingResult{Sent: count, Received: strings.Count(text, "yes")}, err
}

// machineAddrs is [Instance.Addrs] of a machine.
func (inst *Instance) machineAddrs(link string) ([]netip.Prefix, error) {
	text, err := inst.Exec(inst.vpc.life, "ip", "-json", "address", "show", "dev", link)
	if err != nil {
		return nil, err
	}
	var list []struct {
		Addrs []struct {
			Local     netip.Addr `json:"local"`
			PrefixLen int        `json:"prefixlen"`
			Tentative bool       `json:"tentative"`
			DADFailed bool       `json:"dadfailed"`
		} `json:"addr_info"`
	}
	if err := json.Unmarshal([]byte(text), &list); err != nil {
		return nil, fmt.Errorf("the addresses of %s in %s: %w", link, inst.id, err)
	}
	var out []netip.Prefix
	for _, l := range list {
		for _, a := range l.Addrs {
			if !a.Tentative && !a.DADFailed {
				out = append(out, netip.PrefixFrom(a.Local, a.PrefixLen))
			}
		}
	}
	return out, nil
}
