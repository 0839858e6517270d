package vpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"strings"
)

// Each boot of an instance gets its own cgroup: two nspawn containers in one cgroup
// would share the tree of their payload, and each systemd would end the services of the
// other.

// cgroupRoots returns where the hierarchies are mounted: the unified one (empty
// if there is none), and the others in which nspawn makes directories.
func cgroupRoots() (unified string, legacy []string, err error) {
	text, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		return "", nil, err
	}
	for line := range strings.Lines(string(text)) {
		before, after, ok := strings.Cut(line, " - ")
		fields, kind := strings.Fields(before), strings.Fields(after)
		if !ok || len(fields) < 5 || len(kind) < 1 {
			continue
		}
		switch kind[0] {
		case "cgroup2":
			if unified == "" {
				unified = fields[4]
			}
		case "cgroup":
			legacy = append(legacy, fields[4])
		}
	}
	return unified, legacy, nil
}

// ownCgroup returns the cgroup of this process in the unified hierarchy.
func ownCgroup() string {
	text, _ := os.ReadFile("/proc/self/cgroup")
	for line := range strings.Lines(string(text)) {
		if rest, ok := strings.CutPrefix(line, "0::"); ok {
			return strings.TrimSpace(rest)
		}
	}
	return "/"
}

// makeCgroup creates a cgroup and opens its directory, for clone(2) into it.
func makeCgroup(path string) (*os.File, error) {
	unified, _, err := cgroupRoots()
	if err != nil {
		return nil, err
	}
	if unified == "" {
		return nil, errors.New("no cgroup2 hierarchy is mounted; mount one: mount -t cgroup2 none /sys/fs/cgroup/unified")
	}
	dir := filepath.Join(unified, path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("making a cgroup: %w", err)
	}
	return os.Open(dir)
}

// cgroupDir is the directory of a cgroup in the unified hierarchy.
func cgroupDir(path string) string {
	unified, _, _ := cgroupRoots()
	return filepath.Join(unified, path)
}

// removeCgroup ends everything in a cgroup and removes it, in all hierarchies.
func removeCgroup(ctx context.Context, path string) error {
	if path == "" || path == "/" {
		return nil
	}
	unified, legacy, err := cgroupRoots()
	if err != nil {
		return err
	}
	if unified != "" {
		err := os.WriteFile(filepath.Join(unified, path, "cgroup.kill"), []byte("1"), 0)
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("ending the processes of cgroup %s: %w", path, err)
		}
		legacy = append(legacy, unified)
	}
	for _, root := range legacy {
		// A directory can be removed when its last process has ended completely.
		dir := filepath.Join(root, path)
		err := until(ctx, "cgroup "+dir+" is empty", func() (bool, error) { return removeTree(dir), nil })
		if err != nil {
			return err
		}
	}
	return nil
}

// removeTree removes a tree of directories from the bottom; in a cgroup hierarchy files
// cannot and need not be removed.
func removeTree(dir string) bool {
	entries, err := os.ReadDir(dir)
	if errors.Is(err, fs.ErrNotExist) {
		return true
	}
	for _, e := range entries {
		if e.IsDir() {
			removeTree(filepath.Join(dir, e.Name()))
		}
	}
	err = os.Remove(dir)
	return err == nil || errors.Is(err, fs.ErrNotExist)
}
