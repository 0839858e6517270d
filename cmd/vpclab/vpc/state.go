package vpc

import (
	"bytes"
	"cmp"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// DefaultStateDir is the directory of the labs' files.
const DefaultStateDir = "/run/vpclab"

// lockName is the file in a lab's directory that its process keeps locked. The
// kernel releases the lock when the process ends, so a process that gets it has
// found a lab without an owner.
const lockName = "lock"

// record is the description of a lab on disk, for people and for [RemoveStale].
type record struct {
	Name    string    `json:"name"`
	PID     int       `json:"pid"`
	Start   uint64    `json:"start"` // of the process, in clock ticks after boot: proc(5)
	BootID  string    `json:"bootId"`
	Created time.Time `json:"created"`
	// Cgroup is the directory under which the lab makes its cgroups, relative
	// to a hierarchy's root.
	Cgroup string `json:"cgroup"`
	// Processes are those that survive the lab's process if it is killed.
	Processes []process `json:"processes,omitempty"`
}

// process identifies a process uniquely: no other has this PID and start.
type process struct {
	PID   int    `json:"pid"`
	Start uint64 `json:"start"`
	What  string `json:"what"`
}

// lockStateDir waits for the lock of the directory of all labs, which is only held
// while the lock of one lab is taken. So a directory that is being created never
// looks like one without an owner. Closing the file unlocks it.
func lockStateDir(ctx context.Context, stateDir string) (*os.File, error) {
	f, err := os.Open(stateDir)
	if err != nil {
		return nil, err
	}
	if err := until(ctx, "the lock of "+f.Name()+" is free", func() (bool, error) { return tryLock(f) }); err != nil {
		f.Close()
		return nil, err
	}
	return f, nil
}

// tryLock takes the lock of a file if it is free.
func tryLock(f *os.File) (bool, error) {
	err := unix.Flock(int(f.Fd()), unix.LOCK_EX|unix.LOCK_NB)
	if errors.Is(err, unix.EWOULDBLOCK) {
		return false, nil
	}
	return err == nil, err
}

// claim creates the directory of a lab and locks it.
func claim(ctx context.Context, stateDir, name, cgroup string) (dir string, lock *os.File, err error) {
	if err := os.MkdirAll(stateDir, 0o755); err != nil {
		return "", nil, err
	}
	all, err := lockStateDir(ctx, stateDir)
	if err != nil {
		return "", nil, err
	}
	defer all.Close()
	dir = filepath.Join(stateDir, name)
	tmp, err := os.MkdirTemp(stateDir, "."+name+".")
	if err != nil {
		return "", nil, err
	}
	var held *os.File
	defer func() {
		if err != nil {
			err = errors.Join(err, os.RemoveAll(tmp))
			if held != nil {
				held.Close()
			}
		}
	}()
	if err := os.Chmod(tmp, 0o755); err != nil {
		return "", nil, err
	}
	held, err = os.OpenFile(filepath.Join(tmp, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	if ok, err := tryLock(held); !ok {
		return "", nil, fmt.Errorf("locking %s, which was made just now: %w", held.Name(), cmp.Or(err, error(unix.EWOULDBLOCK)))
	}
	start, err := startTime(os.Getpid())
	if err != nil {
		return "", nil, err
	}
	r := record{
		Name: name, PID: os.Getpid(), Start: start, BootID: bootID(), Created: time.Now(), Cgroup: cgroup,
	}
	if err := writeRecord(tmp, r); err != nil {
		return "", nil, err
	}
	// The target of the rename must not exist, or be an empty directory.
	if err := os.Rename(tmp, dir); err != nil {
		if errors.Is(err, fs.ErrExist) || errors.Is(err, unix.ENOTEMPTY) {
			return "", nil, fmt.Errorf("there is a lab named %s already (%s); take another name, or remove it with: vpclab down --name %s", name, dir, name)
		}
		return "", nil, err
	}
	return dir, held, nil
}

func writeRecord(dir string, r record) error {
	text, err := json.MarshalIndent(r, "", "  ")
	if err != nil {
		return err
	}
	tmp := filepath.Join(dir, ".lab.json")
	if err := os.WriteFile(tmp, append(text, '\n'), 0o644); err != nil {
		return err
	}
	return os.Rename(tmp, filepath.Join(dir, "lab.json"))
}

func readRecord(dir string) (record, error) {
	var r record
	text, err := os.ReadFile(filepath.Join(dir, "lab.json"))
	if err != nil {
		return r, err
	}
	if err := json.Unmarshal(text, &r); err != nil {
		return r, fmt.Errorf("%s: %w", filepath.Join(dir, "lab.json"), err)
	}
	return r, nil
}

// startTime reads when a process started: field 22 of /proc/PID/stat.
func startTime(pid int) (uint64, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	// The name, in parentheses, may contain anything.
	_, rest, ok := bytes.Cut(text[bytes.LastIndexByte(text, ')')+1:], []byte(" "))
	fields := strings.Fields(string(rest))
	if !ok || len(fields) < 20 {
		return 0, fmt.Errorf("/proc/%d/stat has too few fields", pid)
	}
	return strconv.ParseUint(fields[19], 10, 64)
}

func bootID() string {
	text, _ := os.ReadFile("/proc/sys/kernel/random/boot_id")
	return strings.TrimSpace(string(text))
}

// RemoveStale removes what labs left whose process has ended without cleaning
// up: processes, mounts, namespaces, cgroups and files. It returns the names of
// the labs that it removed. Labs that are alive are not touched.
func RemoveStale(ctx context.Context, stateDir string) ([]string, error) {
	if stateDir == "" {
		stateDir = DefaultStateDir
	}
	entries, err := os.ReadDir(stateDir)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var removed []string
	var errs []error
	for _, entry := range entries {
		if !entry.IsDir() {
			continue
		}
		name, err := removeIfStale(ctx, filepath.Join(stateDir, entry.Name()))
		if err != nil {
			errs = append(errs, fmt.Errorf("removing the stale lab in %s: %w", filepath.Join(stateDir, entry.Name()), err))
		}
		if name != "" {
			removed = append(removed, name)
		}
	}
	return removed, errors.Join(errs...)
}

func removeIfStale(ctx context.Context, dir string) (string, error) {
	lock, err := lockIfStale(ctx, dir)
	if lock == nil || err != nil {
		return "", err
	}
	defer lock.Close()
	r, err := readRecord(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return "", os.RemoveAll(dir)
	}
	if err != nil {
		return "", err
	}
	if r.BootID == bootID() {
		for _, p := range r.Processes {
			if err := kill(ctx, p); err != nil {
				return "", err
			}
		}
		if err := removeCgroup(ctx, r.Cgroup); err != nil {
			return "", err
		}
	}
	return r.Name, sweep(dir, r.Name)
}

// lockIfStale takes the lock of a lab whose owner is gone. It returns nil if the
// lab is alive or not there any more.
func lockIfStale(ctx context.Context, dir string) (_ *os.File, err error) {
	all, err := lockStateDir(ctx, filepath.Dir(dir))
	if err != nil {
		return nil, err
	}
	defer all.Close()
	lock, err := os.OpenFile(filepath.Join(dir, lockName), os.O_RDWR, 0)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil // it is being removed, or is not a lab
	}
	if err != nil {
		return nil, err
	}
	defer func() {
		if err != nil {
			lock.Close()
		}
	}()
	ok, err := tryLock(lock)
	if err != nil {
		return nil, err
	}
	if !ok {
		r, readErr := readRecord(dir)
		if readErr != nil || alive(process{PID: r.PID, Start: r.Start}) {
			lock.Close()
			return nil, nil
		}
		// The owner has just been killed; its last thread has not ended yet.
		err = until(ctx, "the process of "+r.Name+" is gone", func() (bool, error) { return tryLock(lock) })
		if err != nil {
			return nil, err
		}
	}
	// The process that removes a lab unlinks the file while it holds the lock.
	var ours, there unix.Stat_t
	if unix.Fstat(int(lock.Fd()), &ours) != nil || unix.Stat(lock.Name(), &there) != nil || ours.Ino != there.Ino {
		lock.Close()
		return nil, nil
	}
	return lock, nil
}

// kill ends a process if it is still the recorded one, and waits until it has
// ended.
func kill(ctx context.Context, p process) error {
	fd, err := unix.PidfdOpen(p.PID, 0)
	if err != nil {
		if errors.Is(err, unix.ESRCH) {
			return nil
		}
		return fmt.Errorf("opening process %d (%s): %w", p.PID, p.What, err)
	}
	defer func() { _ = unix.Close(fd) }() // a pidfd has nothing to lose
	// The pidfd refers to one process: compare first, then signal.
	if start, err := startTime(p.PID); err != nil || start != p.Start {
		return nil
	}
	if err := unix.PidfdSendSignal(fd, unix.SIGKILL, nil, 0); err != nil && !errors.Is(err, unix.ESRCH) {
		return fmt.Errorf("ending process %d (%s): %w", p.PID, p.What, err)
	}
	return until(ctx, fmt.Sprintf("process %d (%s) has ended", p.PID, p.What), func() (bool, error) {
		return !alive(p), nil
	})
}

// alive reports whether a process exists and is not a zombie.
func alive(p process) bool {
	start, err := startTime(p.PID)
	return err == nil && start == p.Start && !zombie(p.PID)
}

func zombie(pid int) bool {
	text, _ := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	return strings.HasPrefix(string(text[bytes.LastIndexByte(text, ')')+1:]), " Z")
}

// sweep removes the remains of a lab without processes outside its directory.
func sweep(dir, name string) error {
	var errs []error
	if err := unmountUnder(dir); err != nil {
		errs = append(errs, err)
	}
	if err := removeNamespace(netnsName(name)); err != nil {
		errs = append(errs, fmt.Errorf("removing the network namespace %s: %w", netnsName(name), err))
	}
	if len(errs) == 0 {
		// This is only possible now that nothing is mounted there any more.
		if err := os.RemoveAll(dir); err != nil {
			errs = append(errs, err)
		}
	}
	return errors.Join(errs...)
}

// netnsName returns the name of a lab's namespace in [namesDir].
func netnsName(lab string) string { return "vpclab-" + lab }

// unmountUnder unmounts everything below a directory, the last mount first.
func unmountUnder(dir string) error {
	// What the calling thread has mounted: /proc/self is the main thread.
	text, err := os.ReadFile("/proc/thread-self/mountinfo")
	if err != nil {
		return err
	}
	var points []string
	for line := range strings.Lines(string(text)) {
		if f := strings.Fields(line); len(f) > 4 && strings.HasPrefix(f[4], dir+"/") {
			points = append(points, f[4])
		}
	}
	slices.Reverse(points)
	for _, point := range points {
		if err := unix.Unmount(point, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) {
			return fmt.Errorf("unmounting %s: %w", point, err)
		}
	}
	return nil
}

// until is [Until].
func until(ctx context.Context, what string, cond func() (bool, error)) error {
	return ask(ctx, what, cond, func(took time.Duration) time.Duration { return min(max(4*took, shortestPause), longestPause) })
}

// ask polls a condition until it is true; pause returns the time until the next poll, given the
// duration of the last one.
func ask(ctx context.Context, what string, cond func() (bool, error), pause func(took time.Duration) time.Duration) error {
	for {
		began := time.Now()
		ok, err := cond()
		if err != nil {
			return fmt.Errorf("waiting until %s: %w", what, err)
		}
		if ok {
			return nil
		}
		select {
		case <-time.After(pause(time.Since(began))):
		case <-ctx.Done():
			return fmt.Errorf("waiting until %s: %w", what, context.Cause(ctx))
		}
	}
}

// The time between two polls of a condition. It is longer than a poll, which usually is a
// process in the instance: the awaited change needs the processor too.
const (
	shortestPause = 5 * time.Millisecond
	longestPause  = 100 * time.Millisecond
)

// removeNamespace removes the name of a namespace, whether it was still bound to a
// namespace or not.
func removeNamespace(name string) error {
	path := filepath.Join(namesDir, name)
	if err := unix.Unmount(path, unix.MNT_DETACH); err != nil && !errors.Is(err, unix.EINVAL) && !errors.Is(err, unix.ENOENT) {
		return err
	}
	if err := os.Remove(path); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return err
	}
	return nil
}
