package main

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
)

// The link in cloud-init's configuration directory leads to cloudInitLink, and that to
// cloudInitConfig. It is there from the daemon's start to the end of the boot: what is
// configured outlives the daemon, and cloud-init must not undo it then (F8). ifupdown leaves ENIs
// alone as long, see inCharge.
const (
	cloudInitLink   = "/run/ec2netd/cloud-init.cfg"
	cloudInitConfig = "/usr/lib/ec2netd/cloud-init.cfg"
)

// leaveNetwork has cloud-init and ifupdown leave the network to ec2netd.
func leaveNetwork(root string) error {
	link := filepath.Join(root, cloudInitLink)
	if target, err := os.Readlink(link); err == nil && target == cloudInitConfig {
		return nil
	}
	if err := os.Remove(link); err != nil && !errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("removing what is in the place of a link: %w", err)
	}
	if err := os.Symlink(cloudInitConfig, link); err != nil {
		return fmt.Errorf("linking %s to %s: %w", link, cloudInitConfig, err)
	}
	return nil
}

// returnNetwork has cloud-init and ifupdown do again what they did, if the daemon is masked.
func returnNetwork(root string) error {
	for _, dir := range []string{"/etc/systemd/system", "/run/systemd/system"} {
		if target, err := os.Readlink(filepath.Join(root, dir, ownUnit)); err != nil || target != os.DevNull {
			continue
		}
		if err := os.Remove(filepath.Join(root, cloudInitLink)); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return fmt.Errorf("having cloud-init and ifupdown configure the network again: %w", err)
		}
		return nil
	}
	return nil
}
