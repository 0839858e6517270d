package vpc

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"os/exec"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// LabFiles are files that ec2netd needs in the lab besides its installation: its ENIs
// are veth links here, and the host is usually not an EC2 instance. They are keyed by
// path, for [InstanceOptions].Files.
func LabFiles() map[string]string { return labFiles("veth", "Platform=any\n") }

// MachineFiles are [LabFiles] for a machine, which identifies itself as an EC2
// instance.
func MachineFiles() map[string]string { return labFiles("virtio_net", "") }

func labFiles(driver, platform string) map[string]string {
	match := "[Match]\nDriver=" + driver + "\n"
	return map[string]string{
		"/etc/ec2netd.conf.d/lab.conf":                   match + platform,
		"/etc/systemd/network/80-ec2.network.d/lab.conf": match,
	}
}

// PresetFile is the preset file of ec2netd, relative to a root.
const PresetFile = "usr/lib/systemd/system-preset/80-ec2netd.preset"

// InstallTree installs ec2netd from the result of "make install DESTDIR=": it copies
// the tree over the root, applies the presets, and writes [LabFiles], or [MachineFiles]
// if the root is that of a machine.
func InstallTree(ctx context.Context, root, tree string) error {
	if _, err := os.Stat(filepath.Join(tree, PresetFile)); err != nil {
		return fmt.Errorf("%s is not an installation of ec2netd: %w; make one with: make install DESTDIR=%s PREFIX=/usr", tree, err, tree)
	}
	if err := CopyTree(ctx, root, tree); err != nil {
		return err
	}
	units, err := PresetUnits(filepath.Join(root, PresetFile))
	if err != nil {
		return err
	}
	if err := ApplyPresets(ctx, root, units...); err != nil {
		return err
	}
	files := LabFiles()
	if _, err := os.Stat(filepath.Join(root, agentPath)); err == nil {
		files = MachineFiles()
	}
	for path, text := range files {
		if err := WriteFile(root, path, text); err != nil {
			return err
		}
	}
	return nil
}

// CopyTree copies the content of a directory over a root. Root owns all the copies.
func CopyTree(ctx context.Context, root, tree string) error {
	cmd := exec.CommandContext(ctx, "cp", "--recursive", "--no-dereference", "--preserve=mode,links",
		filepath.Clean(tree)+"/.", root)
	if err := runTool(cmd); err != nil {
		return fmt.Errorf("copying %s over %s: %w", tree, root, err)
	}
	return nil
}

// WriteFile writes a file of a root by its absolute path, and creates its parent
// directories. It follows symlinks as inside the root.
func WriteFile(root, path, text string) error {
	dir, err := os.OpenRoot(root)
	if err != nil {
		return err
	}
	defer func() { _ = dir.Close() }() // a directory has nothing to lose
	rel := strings.TrimPrefix(filepath.Clean("/"+path), "/")
	if err := dir.MkdirAll(filepath.Dir(rel), 0o755); err != nil {
		return fmt.Errorf("writing %s under %s: %w", path, root, err)
	}
	if err := dir.WriteFile(rel, []byte(text), 0o644); err != nil {
		return fmt.Errorf("writing %s under %s: %w", path, root, err)
	}
	return nil
}

// PresetUnits returns the units in a preset file: systemd.preset(5).
func PresetUnits(file string) ([]string, error) {
	text, err := os.ReadFile(file)
	if err != nil {
		return nil, fmt.Errorf("reading presets: %w", err)
	}
	var units []string
	for line := range strings.Lines(string(text)) {
		fields := strings.Fields(line)
		if len(fields) >= 2 && (fields[0] == "enable" || fields[0] == "disable") {
			units = append(units, fields[1])
		}
	}
	return units, nil
}

// ApplyPresets runs "systemctl preset" of the root's own systemd for those of the units
// that the root has.
func ApplyPresets(ctx context.Context, root string, units ...string) error {
	var present []string
	for _, unit := range units {
		for _, dir := range []string{"etc/systemd/system", "usr/lib/systemd/system", "lib/systemd/system"} {
			_, err := os.Lstat(filepath.Join(root, dir, unit))
			if err == nil {
				present = append(present, unit)
				break
			}
			if !errors.Is(err, fs.ErrNotExist) && !errors.Is(err, unix.ENOTDIR) {
				return fmt.Errorf("looking for %s under %s: %w", unit, root, err)
			}
		}
	}
	if len(present) == 0 {
		return nil
	}
	cmd := exec.CommandContext(ctx, "chroot", append([]string{root, "systemctl", "preset", "--"}, present...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "SYSTEMD_OFFLINE=1", "LANG=C.UTF-8"}
	if err := runTool(cmd); err != nil {
		return fmt.Errorf("applying presets under %s: %w", root, err)
	}
	return nil
}

// Preset applies the presets of the instance to units; the instance may be off or on.
func (inst *Instance) Preset(ctx context.Context, units ...string) error {
	if inst.Running() {
		_, err := inst.Exec(ctx, append([]string{"systemctl", "preset", "--"}, units...)...)
		return err
	}
	return ApplyPresets(ctx, inst.root, units...)
}
