// Package udev asks udevd about network links, and has it apply .link files. A [Queue] has that
// done beside its user's loop, and again where it fails.
//
// There is no library for it: what is needed is one file of its database and two
// commands of its own tool.
package udev

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"time"

	"ec2netd/service/file"
)

const commandTimeout = 10 * time.Second

// Udev gives access to the running udevd.
type Udev struct {
	// Root is prepended to /run/udev and /sys; empty for the system.
	Root string
	// GiveNames adds the alternative names in their .link files to links.
	GiveNames func(ctx context.Context) error

	files file.Reader
}

// LinkFile returns the .link file that udevd applied to a link (ID_NET_LINK_FILE), empty if it
// applied none. ok is false while udevd has not finished with the link.
func (u *Udev) LinkFile(index int) (file string, ok bool) {
	record, err := u.files.Read(filepath.Join("/", u.Root, "run/udev/data", "n"+strconv.Itoa(index)))
	if err != nil {
		return "", false
	}
	for line := range strings.Lines(record) {
		line = strings.TrimSuffix(line, "\n")
		if value, found := strings.CutPrefix(line, "E:ID_NET_LINK_FILE="); found {
			file = value
		}
		// The time at which the device was initialized.
		ok = ok || strings.HasPrefix(line, "I:")
	}
	return file, ok
}

// Apply adds the alternative names in their .link files to links. It shows links that udevd
// does not know to it again.
func (u *Udev) Apply(ctx context.Context, names []string) error {
	var missed []string
	for _, name := range names {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue // it was removed, which is no failure (C6)
		}
		if _, known := u.LinkFile(link.Index); !known {
			missed = append(missed, name)
		}
	}
	if len(missed) > 0 {
		return u.show(ctx, missed)
	}
	return u.GiveNames(ctx)
}

// show makes udevd read its files again, and process links like new ones.
func (u *Udev) show(ctx context.Context, names []string) error {
	if err := run(ctx, "control", "--reload"); err != nil {
		return err
	}
	for {
		// A link may disappear at any time, which is no failure (C6).
		var present []string
		for _, name := range names {
			if _, err := os.Lstat(u.device(name)); err == nil {
				present = append(present, name)
			}
		}
		if len(present) == 0 {
			return nil
		}
		args := []string{"trigger", "--action=add"}
		for _, name := range present {
			args = append(args, u.device(name))
		}
		err := run(ctx, args...)
		if err == nil || !slices.ContainsFunc(present, func(name string) bool {
			_, err := os.Lstat(u.device(name))
			return err != nil
		}) {
			return err
		}
		names = present
	}
}

// Announce creates a symlink that resolves only while this process exists, however it ends:
// 80-ec2netd.rules tests it (E9). The symlink points to file through the process's working
// directory, which Announce changes to that of file: a later process with the same number has
// another working directory.
func Announce(link, file string) error {
	if err := os.Chdir(filepath.Dir(file)); err != nil {
		return fmt.Errorf("changing to the directory of %s: %w", file, err)
	}
	target := filepath.Join("/proc", strconv.Itoa(os.Getpid()), "cwd", filepath.Base(file))
	hidden := filepath.Join(filepath.Dir(link), "."+filepath.Base(link))
	if err := os.Remove(hidden); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing what an earlier run left: %w", err)
	}
	if err := os.Symlink(target, hidden); err != nil {
		return fmt.Errorf("linking %s to %s: %w", link, target, err)
	}
	if err := os.Rename(hidden, link); err != nil {
		return fmt.Errorf("linking %s to %s: %w", link, target, err)
	}
	return nil
}

func (u *Udev) device(name string) string { return filepath.Join("/", u.Root, "sys/class/net", name) }

func run(ctx context.Context, args ...string) error {
	ctx, cancel := context.WithTimeout(ctx, commandTimeout)
	defer cancel()
	command := exec.CommandContext(ctx, "udevadm", args...)
	command.WaitDelay = time.Second
	output, err := command.CombinedOutput()
	if err != nil {
		return fmt.Errorf("udevadm %s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(output))
	}
	return nil
}
