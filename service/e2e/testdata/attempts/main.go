// Attempts stands in for the daemon under its unit, and tries what the daemon must not
// be able to do, and what it must; it prints what came of each. Its arguments are the
// process of somebody else and the name of a link. What succeeds it takes back.
package main

import (
	"errors"
	"fmt"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

func main() {
	pid, err := strconv.Atoi(os.Args[1])
	if err != nil {
		panic(err)
	}
	link := os.Args[2]
	for _, a := range []struct {
		verb, what string
		try        func() error
	}{
		{"must", "write below /run/systemd/network", func() error { return create("/run/systemd/network/attempt") }},
		{"must", "write to /run/ec2netd", func() error { return create("/run/ec2netd/attempt") }},
		{"must", "write to its state directory", func() error { return create("/var/lib/ec2netd/attempt") }},
		{"must", "write files that everybody can read", readable},
		{"must", "list the links", func() error { _, err := netlink.LinkByName(link); return err }},
		{"must", "bind a socket to a link", func() error { return bind(link) }},
		{"must", "show a link to udevd", func() error {
			return os.WriteFile(filepath.Join("/sys/class/net", link, "uevent"), []byte("change"), 0)
		}},
		{"must", "start a program", exec.Command("/bin/true").Run},
		{"must", "reach the bus", func() error { return connect("/run/dbus/system_bus_socket") }},
		{"must", "reach udevd", udevd},
		{"must", "reach the journal", func() error { return connect("/run/systemd/journal/socket") }},

		{"must not", "write to /etc", func() error { return create("/etc/attempt") }},
		{"must not", "write a unit of systemd", func() error { return create("/run/systemd/system/attempt.service") }},
		{"must not", "write to /usr", func() error { return create("/usr/lib/ec2netd/attempt") }},
		{"must not", "write to /var", func() error { return create("/var/lib/attempt") }},
		{"must not", "write to /run", func() error { return create("/run/attempt") }},
		{"must not", "write to another directory of systemd's", func() error { return create("/run/systemd/attempt") }},
		{"must not", "write to /sys outside of devices", func() error { return openAny("/sys/bus/*/drivers_autoprobe", os.O_WRONLY) }},
		{"must not", "write to what /sys has of processors", func() error { return openAny("/sys/devices/system/cpu/uevent", os.O_WRONLY) }},
		{"must not", "look at the kernel in /sys", func() error { return list("/sys/kernel") }},
		{"must not", "look at the kernel's modules in /sys", func() error { return list("/sys/module") }},
		{"must not", "reach systemd's private bus", func() error { return connect("/run/systemd/private") }},
		{"must not", "reach systemd over Varlink", manager},
		{"must not", "reach systemd's users", func() error { return list("/run/systemd/userdb") }},
		{"must not", "make a cgroup", func() error {
			return errors.Join(os.Mkdir("/sys/fs/cgroup/attempt", 0o755), os.Remove("/sys/fs/cgroup/attempt"))
		}},
		{"must not", "set a sysctl", func() error { return open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY) }},
		{"must not", "set an MTU", func() error { return same(filepath.Join("/sys/class/net", link, "mtu")) }},
		{"must not", "read root's files", func() error { return open("/root/secret", os.O_RDONLY) }},
		{"must not", "read home directories", func() error { return open("/home/secret", os.O_RDONLY) }},
		{"must not", "read what is another user's alone", func() error { return open("/etc/secret", os.O_RDONLY) }},
		{"must not", "read the passwords", func() error { return open("/etc/shadow", os.O_RDONLY) }},
		{"must not", "read host keys", func() error { return open("/etc/ssh/secret", os.O_RDONLY) }},
		{"must not", "read what services have", func() error { return open("/srv/secret", os.O_RDONLY) }},
		{"must not", "read /var", func() error { return open("/var/lib/secret", os.O_RDONLY) }},
		{"must not", "read /tmp", func() error { return open("/tmp/secret", os.O_RDONLY) }},
		{"must not", "read credentials", func() error { return open("/run/credentials/secret", os.O_RDONLY) }},
		{"must not", "read volatile logs", func() error { return open("/run/log/secret", os.O_RDONLY) }},
		{"must not", "open what is in /dev", func() error { return open("/dev/secret", os.O_RDONLY) }},
		{"must not", "see other processes", func() error { return open("/proc/1/environ", os.O_RDONLY) }},
		{"must not", "signal another user's process", func() error { return unix.Kill(pid, 0) }},
		{"must not", "trace a process", trace},
		{"must not", "add an address", func() error { return address(link) }},
		{"must not", "add a route", func() error { return route(link) }},
		{"must not", "add a rule", rule},
		{"must not", "open a raw socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"must not", "open a packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }},
		{"must not", "open a socket of another family", family},
		{"must not", "set the hostname", hostname},
		{"must not", "ask for the clock's adjustment", func() error { _, err := unix.Adjtimex(&unix.Timex{}); return err }},
		{"must not", "ask for the kernel's log", func() error { _, err := unix.Klogctl(unix.SYSLOG_ACTION_SIZE_BUFFER, nil); return err }},
		{"must not", "remove a module", func() error {
			err := unix.DeleteModule("attempt", unix.O_NONBLOCK)
			if errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENOSYS) {
				return nil // it may, and there is none, or a kernel without modules
			}
			return err
		}},
		{"must not", "gain rights by a program", func() error {
			if set, err := unix.PrctlRetInt(unix.PR_GET_NO_NEW_PRIVS, 0, 0, 0, 0); err != nil || set != 0 {
				return errors.Join(errors.New("it is set"), err)
			}
			return nil
		}},
		{"must not", "look at keys", func() error { _, err := unix.KeyctlGetKeyringID(unix.KEY_SPEC_USER_KEYRING, true); return err }},
		{"must not", "run in real time", realtime},
		{"must not", "mount", func() error {
			return errors.Join(unix.Mount("none", "/mnt", "tmpfs", 0, ""), unix.Unmount("/mnt", 0))
		}},
		{"must not", "change the root directory", func() error { return unix.Chroot("/") }},
		{"must not", "make a network namespace", func() error { return start(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWNET}) }},
		{"must not", "make a user namespace", func() error { return start(&syscall.SysProcAttr{Cloneflags: unix.CLONE_NEWUSER}) }},
		{"must not", "become another user", func() error {
			return start(&syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534, NoSetGroups: true}})
		}},
		{"must not", "give a file away", func() error { return file(func(name string) error { return os.Chown(name, 65534, 65534) }) }},
		{"must not", "make a setuid program", func() error { return file(func(name string) error { return os.Chmod(name, 0o755|os.ModeSetuid) }) }},
		{"must not", "make code while it runs", func() error {
			_, err := unix.Mmap(-1, 0, 4096, unix.PROT_WRITE|unix.PROT_EXEC, unix.MAP_PRIVATE|unix.MAP_ANON)
			return err
		}},
		{"must not", "run as another kind of machine", func() error { return personality(8) }},
		{"must not", "run a program of another kind of machine", exec.Command("/usr/lib/ec2netd/other").Run},
		{"must not", "take precedence", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -1) }},
	} {
		fmt.Printf("%s\t%s\t%s\n", a.verb, a.what, strings.ReplaceAll(fmt.Sprint(a.try()), "\n", "; "))
	}
}

// openAny opens one of the files that are there.
func openAny(pattern string, flags int) error {
	found, err := filepath.Glob(pattern)
	if err != nil || len(found) == 0 {
		return fmt.Errorf("no %s: %w", pattern, err)
	}
	return open(found[0], flags)
}

func list(dir string) error {
	found, err := os.ReadDir(dir)
	if err == nil && len(found) == 0 {
		return errors.New("it is empty")
	}
	return err
}

// connect connects to a socket, of whatever kind.
func connect(name string) error {
	var err error
	for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET, unix.SOCK_DGRAM} {
		var fd int
		if fd, err = unix.Socket(unix.AF_UNIX, kind, 0); err != nil {
			return err
		}
		err = errors.Join(unix.Connect(fd, &unix.SockaddrUnix{Name: name}), unix.Close(fd))
		if !errors.Is(err, unix.EPROTOTYPE) {
			break
		}
	}
	return err
}

// udevd is reached by a socket of its own protocol or, from 258 on, by Varlink.
func udevd() error {
	err := connect("/run/udev/control")
	if errors.Is(err, os.ErrNotExist) {
		err = connect("/run/udev/io.systemd.Udev")
	}
	return err
}

// manager is systemd's socket for Varlink; versions before 258 have one for another purpose.
func manager() error {
	err := connect("/run/systemd/io.systemd.Manager")
	for _, older := range []string{"/run/systemd/io.systemd.ManagedOOM", "/run/systemd/io.system.ManagedOOM"} {
		if errors.Is(err, os.ErrNotExist) {
			err = connect(older)
		}
	}
	return err
}

// readable makes a file that is for everybody.
func readable() error {
	const name = "/run/systemd/network/attempt"
	if err := os.WriteFile(name, nil, 0o666); err != nil {
		return err
	}
	info, err := os.Stat(name)
	if err == nil && info.Mode().Perm() != 0o644 {
		err = fmt.Errorf("its mode is %v", info.Mode())
	}
	return errors.Join(err, os.Remove(name))
}

// family opens a socket of a family that takes no capability and that the kernel has.
func family() error {
	var all []error
	for _, domain := range []int{unix.AF_VSOCK, unix.AF_ALG, unix.AF_TIPC, unix.AF_RDS} {
		for _, kind := range []int{unix.SOCK_STREAM, unix.SOCK_SEQPACKET} {
			err := socket(domain, kind, 0)
			if err == nil {
				return nil
			}
			all = append(all, err)
		}
	}
	return errors.Join(all...)
}

// realtime has the process run in real time for a moment.
func realtime() error {
	policy := func(policy, priority uint32) error {
		return unix.SchedSetAttr(0, &unix.SchedAttr{Size: unix.SizeofSchedAttr, Policy: policy, Priority: priority}, 0)
	}
	if err := policy(unix.SCHED_RR, 1); err != nil {
		return err
	}
	return policy(unix.SCHED_NORMAL, 0)
}

func create(name string) error { return errors.Join(os.WriteFile(name, nil, 0o644), os.Remove(name)) }

func open(name string, flags int) error {
	f, err := os.OpenFile(name, flags, 0)
	if err == nil {
		err = f.Close()
	}
	return err
}

// same writes what is there.
func same(name string) error {
	value, err := os.ReadFile(name)
	if err == nil {
		err = os.WriteFile(name, value, 0)
	}
	return err
}

// file does something to a file of its own.
func file(do func(name string) error) error {
	const name = "/run/ec2netd/attempt"
	if err := os.WriteFile(name, nil, 0o644); err != nil {
		panic(err)
	}
	return errors.Join(do(name), os.Remove(name))
}

func socket(domain, kind, protocol int) error {
	fd, err := unix.Socket(domain, kind, protocol)
	if err == nil {
		err = unix.Close(fd)
	}
	return err
}

func bind(link string) error {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_STREAM, 0)
	if err != nil {
		return err
	}
	return errors.Join(unix.BindToDevice(fd, link), unix.Close(fd))
}

func start(how *syscall.SysProcAttr) error {
	cmd := exec.Command("/bin/true")
	cmd.SysProcAttr = how
	return cmd.Run()
}

func trace() error {
	cmd := exec.Command("/bin/sleep", "60")
	if err := cmd.Start(); err != nil {
		panic(err)
	}
	err := unix.PtraceAttach(cmd.Process.Pid)
	return errors.Join(err, cmd.Process.Kill())
}

func personality(which uintptr) error {
	if _, _, errno := unix.RawSyscall(unix.SYS_PERSONALITY, which, 0, 0); errno != 0 {
		return errno
	}
	return nil
}

func hostname() error {
	name, err := os.Hostname()
	if err != nil {
		return err
	}
	return unix.Sethostname([]byte(name))
}

func address(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		panic(err)
	}
	a := &netlink.Addr{IPNet: &net.IPNet{IP: net.IPv4(192, 0, 2, 9), Mask: net.CIDRMask(32, 32)}}
	if err := netlink.AddrAdd(link, a); err != nil {
		return err
	}
	return netlink.AddrDel(link, a)
}

func route(name string) error {
	link, err := netlink.LinkByName(name)
	if err != nil {
		panic(err)
	}
	r := &netlink.Route{LinkIndex: link.Attrs().Index, Scope: netlink.SCOPE_LINK, Dst: &net.IPNet{IP: net.IPv4(192, 0, 2, 0), Mask: net.CIDRMask(24, 32)}}
	if err := netlink.RouteAdd(r); err != nil {
		return err
	}
	return netlink.RouteDel(r)
}

func rule() error {
	r := netlink.NewRule()
	r.Src = &net.IPNet{IP: net.IPv4(192, 0, 2, 9).To4(), Mask: net.CIDRMask(32, 32)}
	r.Table, r.Priority = 99, 99
	if err := netlink.RuleAdd(r); err != nil {
		return err
	}
	return netlink.RuleDel(r)
}
