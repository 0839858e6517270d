package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/labtest"
)

// E3: a hundred refreshes with nothing to do, and those of the timer: no write, no reload,
// no event, no log line, no process.
func TestLabIdle(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		// A look after the attach is part of it.
		l.Run("ec2netctl", "refresh", "--wait")
		logs := func() string {
			return l.Run("journalctl", "--boot", "--unit=ec2netd", "--unit=ec2netd-orphans", "--unit=systemd-networkd", "--unit=systemd-udevd",
				"--output=cat", "--no-pager")
		}
		monitor, calls, writes := l.Monitor(""), networkdCalls(l), watchWrites(l, "/run/systemd/network", "/run/ec2netd")
		files, log, reloads, children := l.Files(), logs(), l.Describe().Networkd.Reloads, childrenOfDaemon(l)
		for i := range 100 {
			wait := strconv.FormatBool(i%2 == 0)
			if out := l.Run("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", wait); !strings.Contains(out, `\"interfaces\":[]`) {
				t.Fatalf("a refresh changed something: %s", out)
			}
		}
		// Those of the timer: eight requests each time round.
		last := time.Now()
		l.Until("the timer has had some refreshes made", func() (bool, error) { return len(l.Inst.Metadata().RequestsSince(last)) > 24, nil })
		for event := range strings.Lines(monitor()) {
			if !strings.Contains(event, "31999") && (strings.Contains(event, "ens") || strings.Contains(event, "lookup")) {
				t.Errorf("event: %s", event)
			}
		}
		for _, write := range writes() {
			t.Errorf("written: %s", write)
		}
		for _, call := range calls() {
			if call != "Describe" && call != "DescribeLink" {
				t.Errorf("networkd was asked to %s", call)
			}
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		if now := logs(); now != log {
			t.Errorf("log lines: %s", strings.TrimPrefix(now, log))
		}
		if now := l.Describe().Networkd.Reloads; now != reloads {
			t.Errorf("%d reloads", now-reloads)
		}
		if now := childrenOfDaemon(l); now != children {
			t.Errorf("processes of the daemon: %s, before %s", now, children)
		}
	})
}

// childrenOfDaemon tells what nobody can hide of processes that the daemon starts: the page
// faults of those that it has waited for, and how many there are.
func childrenOfDaemon(l *labtest.Lab) string {
	l.T.Helper()
	// The name, in brackets, has no spaces; the fields are those of proc_pid_stat(5).
	stat := strings.Fields(l.Run("sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value ec2netd.service)/stat"))
	const cminflt, cmajflt = 10, 12
	processes := l.Run("sh", "-c", "wc -l < /sys/fs/cgroup/system.slice/ec2netd.service/cgroup.procs")
	return fmt.Sprintf("%s processes, page faults of others %s and %s", processes, stat[cminflt], stat[cmajflt])
}

// watchWrites watches directories and those in them; the returned function says what happened
// to their files.
func watchWrites(l *labtest.Lab, dirs ...string) func() []string {
	l.T.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(func() { _ = unix.Close(fd) })
	watched := make(map[int]string)
	for _, dir := range dirs {
		err := filepath.WalkDir(l.Inst.Path(dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			watch, err := unix.InotifyAddWatch(fd, path,
				unix.IN_CREATE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_MOVE|unix.IN_DELETE|unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF)
			watched[watch] = path
			return err
		})
		if err != nil {
			l.T.Fatal(err)
		}
	}
	seen := func() (found []string) {
		l.T.Helper()
		buffer := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buffer)
			if errors.Is(err, unix.EAGAIN) {
				return found
			}
			if err != nil {
				l.T.Fatal(err)
			}
			for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
				name := rest[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+event.Len]
				found = append(found, fmt.Sprintf("%s/%s (%#x)", watched[int(event.Wd)], strings.TrimRight(string(name), "\x00"), event.Mask))
				rest = rest[unix.SizeofInotifyEvent+event.Len:]
			}
		}
	}
	// It watches: a file of ours is seen.
	for _, dir := range dirs {
		l.Run("sh", "-c", "touch "+dir+"/.watched && rm "+dir+"/.watched")
		if len(seen()) == 0 {
			l.T.Fatalf("nothing that happens in %s is seen", dir)
		}
	}
	return seen
}

// networkdCalls watches what networkd is asked for on the bus; the returned function says
// by which methods of its own.
func networkdCalls(l *labtest.Lab) func() []string {
	l.T.Helper()
	const log = "/run/calls.log"
	l.Run("systemd-run", "--quiet", "--unit=calls", "--property=StandardOutput=file:"+log, "busctl", "--json=short", "monitor",
		"--match=type='method_call',destination='org.freedesktop.network1'")
	const probe = "IsWatched"
	methods := func() (found []string) {
		l.T.Helper()
		for line := range strings.Lines(l.Run("cat", log)) {
			var message struct{ Type, Member, Interface string }
			if err := json.Unmarshal([]byte(line), &message); err != nil {
				continue // half a line
			}
			if message.Type == "method_call" && strings.HasPrefix(message.Interface, "org.freedesktop.network1") && message.Member != probe {
				found = append(found, message.Member)
			}
		}
		return found
	}
	l.Until("busctl monitors", func() (bool, error) {
		// There is no such method.
		l.Run("sh", "-c", "busctl call org.freedesktop.network1 /org/freedesktop/network1 org.freedesktop.network1.Manager "+probe+" 2>/dev/null || true")
		return l.Run("sh", "-c", "grep -c "+probe+" "+log+" || true") != "0", nil
	})
	return func() []string {
		defer l.Run("systemctl", "stop", "calls")
		return methods()
	}
}
