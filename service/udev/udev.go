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

// Udev is the running udevd.
type Udev struct {
	// Root is put before /run/udev and /sys; empty for the system.
	Root string
	// GiveNames gives links the alternative names of their .link files.
	GiveNames func(ctx context.Context) error

	files file.Reader
}

// LinkFile returns the .link file that udevd applied to a link (ID_NET_LINK_FILE),
// empty if it applied none. ok is false while udevd is not done with the link.
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
		// When the device was initialised.
		ok = ok || strings.HasPrefix(line, "I:")
	}
	return file, ok
}

// Apply gives links the alternative names of their .link files. A link that udevd knows nothing
// of is shown to it again.
func (u *Udev) Apply(ctx context.Context, names []string) error {
	var missed []string
	for _, name := range names {
		link, err := net.InterfaceByName(name)
		if err != nil {
			continue // it has gone, which is no failure (C6)
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

// show has udevd read its files again, and handle links as if they had just come.
func (u *Udev) show(ctx context.Context, names []string) error {
	if err := run(ctx, "control", "--reload"); err != nil {
		return err
	}
	for {
		// A link may vanish at any time, which is no failure (C6).
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

// Announce makes a symbolic link that leads somewhere as long as this process runs, and
// nowhere from its end on, whatever the end is: 80-ec2netd.rules tests it (E9). The link
// leads to file by the process's working directory, which becomes that of file, since a
// process that has the same number later has another one.
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
