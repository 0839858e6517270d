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
		{"must", "list the links", func() error { _, err := netlink.LinkByName(link); return err }},
		{"must", "bind a socket to a link", func() error { return bind(link) }},
		{"must", "show a link to udevd", func() error {
			return os.WriteFile(filepath.Join("/sys/class/net", link, "uevent"), []byte("change"), 0)
		}},
		{"must", "start a program", exec.Command("/bin/true").Run},

		{"must not", "write to /etc", func() error { return create("/etc/attempt") }},
		{"must not", "write a unit of systemd", func() error { return create("/run/systemd/system/attempt.service") }},
		{"must not", "write to /usr", func() error { return create("/usr/lib/ec2netd/attempt") }},
		{"must not", "write to /var", func() error { return create("/var/lib/attempt") }},
		{"must not", "write to /run", func() error { return create("/run/attempt") }},
		{"must not", "make a cgroup", func() error {
			return errors.Join(os.Mkdir("/sys/fs/cgroup/attempt", 0o755), os.Remove("/sys/fs/cgroup/attempt"))
		}},
		{"must not", "set a sysctl", func() error { return open("/proc/sys/net/ipv4/ip_forward", os.O_WRONLY) }},
		{"must not", "set an MTU", func() error { return same(filepath.Join("/sys/class/net", link, "mtu")) }},
		{"must not", "read root's files", func() error { return open("/root/secret", os.O_RDONLY) }},
		{"must not", "read home directories", func() error { return open("/home/secret", os.O_RDONLY) }},
		{"must not", "read what is another user's alone", func() error { return open("/srv/secret", os.O_RDONLY) }},
		{"must not", "see other processes", func() error { return open("/proc/1/environ", os.O_RDONLY) }},
		{"must not", "signal another user's process", func() error { return unix.Kill(pid, 0) }},
		{"must not", "trace a process", trace},
		{"must not", "add an address", func() error { return address(link) }},
		{"must not", "add a route", func() error { return route(link) }},
		{"must not", "add a rule", rule},
		{"must not", "open a raw socket", func() error { return socket(unix.AF_INET, unix.SOCK_RAW, unix.IPPROTO_ICMP) }},
		{"must not", "open a packet socket", func() error { return socket(unix.AF_PACKET, unix.SOCK_DGRAM, 0) }},
		{"must not", "set the hostname", hostname},
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
		{"must not", "take precedence", func() error { return unix.Setpriority(unix.PRIO_PROCESS, 0, -1) }},
	} {
		fmt.Printf("%s\t%s\t%s\n", a.verb, a.what, strings.ReplaceAll(fmt.Sprint(a.try()), "\n", "; "))
	}
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
