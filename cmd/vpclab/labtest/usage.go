package labtest

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"time"
)

// CPU returns the processor time that a control group of the instance has used: "" for all of the
// instance.
func (l *Daemon) CPU(group string) time.Duration {
	l.T.Helper()
	text, err := os.ReadFile(l.Inst.Path(filepath.Join("/sys/fs/cgroup", group, "cpu.stat")))
	if err != nil {
		l.T.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		if usage, ok := strings.CutPrefix(line, "usage_usec "); ok {
			n, err := strconv.ParseInt(strings.TrimSpace(usage), 10, 64)
			if err != nil {
				l.T.Fatal(err)
			}
			return time.Duration(n) * time.Microsecond
		}
	}
	l.T.Fatalf("no usage in %q", text)
	return 0
}

// DaemonGroup is the control group of the daemon.
const DaemonGroup = "system.slice/ec2netd.service"

// OfDaemon returns the sum of a field of the status of the daemon's process, or of all its
// threads: proc_pid_status(5).
func (l *Daemon) OfDaemon(field string, threads bool) int {
	l.T.Helper()
	procs, err := os.ReadFile(l.Inst.Path("/sys/fs/cgroup/" + DaemonGroup + "/cgroup.procs"))
	if err != nil {
		l.T.Fatal(err)
	}
	sum, found := 0, false
	for pid := range strings.FieldsSeq(string(procs)) {
		// As this machine numbers processes.
		files := []string{"/proc/" + pid + "/status"}
		if threads {
			if files, err = filepath.Glob("/proc/" + pid + "/task/*/status"); err != nil {
				l.T.Fatal(err)
			}
		}
		for _, file := range files {
			text, err := os.ReadFile(file)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				l.T.Fatal(err)
			}
			for line := range strings.Lines(string(text)) {
				if value, ok := strings.CutPrefix(line, field+":"); ok {
					n, err := strconv.Atoi(strings.Fields(value)[0])
					if err != nil {
						l.T.Fatal(err)
					}
					sum, found = sum+n, true
				}
			}
		}
	}
	if !found {
		l.T.Fatalf("no %s of the daemon", field)
	}
	return sum
}

// Usage is what the daemon has: file descriptors, threads, and resident memory in KiB. Connections to the metadata service, which come and go with the
// looks at ENIs, are counted apart from the other file descriptors.
type Usage struct{ FDs, Connections, Threads, RSS int }

// Usage looks at what the daemon has.
func (l *Daemon) Usage() Usage {
	l.T.Helper()
	var u Usage
	out := l.Run("sh", "-ec", `pid=$(systemctl show --property=MainPID --value ec2netd.service)
		readlink /proc/$pid/fd/* >/run/fds || true # one may be closed meanwhile
		awk '$3 ~ /:0050$/ {print "socket:[" $10 "]"}' /proc/net/tcp /proc/net/tcp6 >/run/connections
		wc -l </run/fds
		grep -Fxc -f /run/connections /run/fds || true
		awk '/^Threads:|^VmRSS:/ {print $2}' /proc/$pid/status`)
	if _, err := fmt.Sscan(out, &u.FDs, &u.Connections, &u.RSS, &u.Threads); err != nil {
		l.T.Fatalf("%q: %v", out, err)
	}
	u.FDs -= u.Connections
	return u
}
