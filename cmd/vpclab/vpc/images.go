package vpc

import (
	"bytes"
	"context"
	"crypto/sha256"
	"encoding/hex"
	"errors"
	"fmt"
	"io/fs"
	"net/url"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"

	"golang.org/x/sys/unix"
)

// DefaultCacheDir is the directory of images; the environment variable VPCLAB_CACHE
// overrides it.
const DefaultCacheDir = "/var/cache/vpclab"

// Suites are the Debian suites for images, with their versions of systemd (sid: at the time
// of writing).
var Suites = []Suite{{"bookworm", "252"}, {"trixie", "257"}, {"sid", "262"}}

// Suite is a Debian suite.
type Suite struct {
	Name    string
	Systemd string // major version
}

// packages are the packages of an image besides the essential ones: those of a Debian cloud
// image that concern the network.
var packages = []string{
	"systemd-sysv", "systemd-resolved", "dbus", "udev", "polkitd", "libpam-systemd",
	"iproute2", "iputils-ping", "procps", "nftables", "login", "passwd",
}

// extra are packages of certain suites: systemd-imdsd, part of systemd 261 and later, is a
// separate package.
var extra = map[string][]string{"sid": {"systemd-imds"}}

// masked units would take time in a container and are of no use in it.
var masked = []string{
	"console-getty.service", "getty@.service", "getty.target", "systemd-firstboot.service",
	"apt-daily.timer", "apt-daily-upgrade.timer", "dpkg-db-backup.timer", "e2scrub_all.timer",
	"e2scrub_reap.service", "fstrim.timer", "systemd-pstore.service",
}

// OrdinaryUser is a user of every image, for tests without privileges.
const OrdinaryUser = "ec2-user"

// customize runs in the parent of the new image with its path as $1. It leaves networkd and
// all other software that could configure links as Debian ships them.
var customize = []string{
	`for u in ` + strings.Join(masked, " ") + `; do ln -sf /dev/null "$1/etc/systemd/system/$u"; done`,
	`chroot "$1" useradd --create-home --shell /bin/bash ` + OrdinaryUser,
	`: > "$1/etc/machine-id"; rm -f "$1/etc/hostname" "$1/etc/resolv.conf"; ln -s ../run/systemd/resolve/stub-resolv.conf "$1/etc/resolv.conf"`,
	// This does what ConditionNeedsUpdate= units would do at the first boot.
	`chroot "$1" journalctl --update-catalog; touch "$1/etc/.updated" "$1/var/.updated"`,
}

// Image is a root file system in the cache.
type Image struct {
	Suite string
	Path  string
	// Current is false for one that was built by another version of the lab.
	Current bool
}

// Images is the cache of root file systems.
type Images struct {
	// Dir is the cache's directory; the default is that of VPCLAB_CACHE, or else
	// [DefaultCacheDir].
	Dir string
	// Logf, if set, is called with messages about long steps.
	Logf func(format string, args ...any)
}

func (c Images) dir() string {
	if c.Dir != "" {
		return c.Dir
	}
	if dir := os.Getenv("VPCLAB_CACHE"); dir != "" {
		return dir
	}
	return DefaultCacheDir
}

func (c Images) logf(format string, args ...any) {
	if c.Logf != nil {
		c.Logf(format, args...)
	}
}

// name returns the file name of a suite's image; it depends on the content.
func imageName(suite string) string {
	h := sha256.New()
	for _, part := range slices.Concat(packages, extra[suite], customize) {
		h.Write([]byte(part + "\x00"))
	}
	return suite + "-" + hex.EncodeToString(h.Sum(nil))[:12]
}

// List returns the images in the cache.
func (c Images) List() ([]Image, error) {
	entries, err := os.ReadDir(c.dir())
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	if err != nil {
		return nil, err
	}
	var out []Image
	for _, e := range entries {
		suite, _, ok := strings.Cut(e.Name(), "-")
		if e.IsDir() && ok && knownSuite(suite) == nil {
			out = append(out, Image{
				Suite: suite, Path: filepath.Join(c.dir(), e.Name()), Current: e.Name() == imageName(suite) || strings.HasPrefix(e.Name(), imageName(suite)+"+"),
			})
		}
	}
	return out, nil
}

func knownSuite(suite string) error {
	var names []string
	for _, s := range Suites {
		if s.Name == suite {
			return nil
		}
		names = append(names, s.Name)
	}
	return fmt.Errorf("unknown suite %q, want one of %s", suite, strings.Join(names, ", "))
}

// Get returns the image of a suite, and builds it if it is not in the cache. The image is
// in use, and is not removed, until the returned lock is closed.
func (c Images) Get(ctx context.Context, suite string) (path string, inUse *os.File, err error) {
	if err := knownSuite(suite); err != nil {
		return "", nil, err
	}
	return c.get(ctx, imageName(suite), func(path string) error {
		if err := c.build(ctx, suite, path); err != nil {
			return fmt.Errorf("building the image of %s: %w", suite, err)
		}
		return nil
	})
}

// get returns a directory of the cache and a lock that marks it as in use. If the directory
// does not exist, one of the waiting processes builds it.
func (c Images) get(ctx context.Context, name string, build func(path string) error) (path string, inUse *os.File, err error) {
	if err := os.MkdirAll(c.dir(), 0o755); err != nil {
		return "", nil, err
	}
	path = filepath.Join(c.dir(), name)
	inUse, err = os.OpenFile(path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return "", nil, err
	}
	defer func() {
		if err != nil {
			inUse.Close()
		}
	}()
	lock := func(how int) error {
		return until(ctx, "the lock "+inUse.Name()+" is free", func() (bool, error) {
			err := unix.Flock(int(inUse.Fd()), how|unix.LOCK_NB)
			if errors.Is(err, unix.EWOULDBLOCK) {
				return false, nil
			}
			return err == nil, err
		})
	}
	for {
		if err := lock(unix.LOCK_SH); err != nil {
			return "", nil, err
		}
		if _, err := os.Stat(path); err == nil {
			return path, inUse, nil
		}
		if err := lock(unix.LOCK_EX); err != nil {
			return "", nil, err
		}
		if _, err := os.Stat(path); err == nil {
			continue
		}
		if err := build(path); err != nil {
			return "", nil, err
		}
	}
}

// Remove removes images from the cache; images in use stay, and are reported as an error.
func (c Images) Remove(images ...Image) error {
	var errs []error
	for _, i := range images {
		lock, err := os.OpenFile(i.Path+".lock", os.O_CREATE|os.O_RDWR, 0o600)
		if err != nil {
			errs = append(errs, err)
			continue
		}
		if err := unix.Flock(int(lock.Fd()), unix.LOCK_EX|unix.LOCK_NB); err != nil {
			errs = append(errs, fmt.Errorf("%s is in use by a lab", i.Path))
		} else {
			// The lock's file stays, since others have it locked.
			errs = append(errs, os.RemoveAll(i.Path))
		}
		lock.Close()
	}
	return errors.Join(errs...)
}

// GetLayer returns the files that some packages of the suite add to its image: a directory
// to lay over it, which is built if it is not in the cache. It is in use until the returned
// lock is closed.
func (c Images) GetLayer(ctx context.Context, suite, image string, add []string) (path string, inUse *os.File, err error) {
	add = slices.Compact(slices.Sorted(slices.Values(add)))
	sum := sha256.Sum256([]byte(strings.Join(add, "\x00")))
	name := filepath.Base(image) + "+" + hex.EncodeToString(sum[:])[:12]
	return c.get(ctx, name, func(path string) error {
		if err := c.buildLayer(ctx, image, path, add); err != nil {
			return fmt.Errorf("adding %s to the image of %s: %w", strings.Join(add, " "), suite, err)
		}
		return nil
	})
}

// buildLayer installs packages with apt into a file system over the image.
func (c Images) buildLayer(ctx context.Context, image, path string, add []string) (err error) {
	// Remove the remains of an interrupted build; this process has locked the layer.
	old, _ := filepath.Glob(filepath.Join(c.dir(), ".layer-"+filepath.Base(path)+"-*"))
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(c.dir(), ".layer-"+filepath.Base(path)+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	c.logf("adding %s to %s; this happens once", strings.Join(add, " "), filepath.Base(image))
	upper, work, root := filepath.Join(tmp, "upper"), filepath.Join(tmp, "work"), filepath.Join(tmp, "root")
	for _, dir := range []string{upper, work, root} {
		if err := os.Mkdir(dir, 0o755); err != nil {
			return err
		}
	}
	// Use the apt of this machine, with its network and proxies, in a mount namespace, so
	// that nothing stays mounted. Units are not started in a chroot.
	script := `set -e
mount -t overlay vpclab -o "lowerdir=$1,upperdir=$2/upper,workdir=$2/work,volatile" "$2/root"
mount -t proc vpclab "$2/root/proc"
shift 2
export DEBIAN_FRONTEND=noninteractive INITRD=No # machines need none
apt="apt-get -qq -o Dir=$ROOT -o Dir::Etc::TrustedParts=$ROOT/etc/apt/trusted.gpg.d -o DPkg::Chroot-Directory=$ROOT -o DPkg::Use-Pty=0
 -o APT::Sandbox::User=root -o Acquire::Check-Valid-Until=false -o Acquire::Languages=none -o DPkg::Options::=--force-unsafe-io $OPTIONS"
$apt update
$apt install -y --no-install-recommends "$@"
$apt clean
rm -rf "$ROOT"/var/lib/apt/lists/*
umount "$ROOT/proc" "$ROOT"
`
	cmd := exec.CommandContext(ctx, "unshare", append([]string{"--mount", "--propagation=private", "sh", "-c", script, "sh", image, tmp}, add...)...)
	var options []string
	for _, o := range hostAptOptions(ctx) {
		name, value, _ := strings.Cut(o, " ")
		options = append(options, "-o "+name+"="+strings.Trim(value, `"`))
	}
	cmd.Env = append(os.Environ(), "ROOT="+root, "OPTIONS="+strings.Join(options, " "))
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := runTool(cmd); err != nil {
		return err
	}
	return os.Rename(upper, path)
}

// build creates an image with mmdebstrap in a temporary directory, and moves it to its
// place when it is complete.
func (c Images) build(ctx context.Context, suite, path string) (err error) {
	if err := needTools("mmdebstrap"); err != nil {
		return err
	}
	// Remove the remains of an interrupted build; this process has locked the image.
	old, _ := filepath.Glob(filepath.Join(c.dir(), ".build-"+suite+"-*"))
	for _, dir := range old {
		if err := os.RemoveAll(dir); err != nil {
			return err
		}
	}
	tmp, err := os.MkdirTemp(c.dir(), ".build-"+suite+"-")
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, os.RemoveAll(tmp)) }()
	mirror := hostMirror()
	c.logf("building the image of %s from %s with mmdebstrap; this happens once", suite, mirror)
	root := filepath.Join(tmp, "root")
	args := []string{
		"--quiet", "--variant=minbase", "--format=directory", "--include=" + strings.Join(slices.Concat(packages, extra[suite]), ","),
		// Snapshots and mirrors behind a proxy may be older than their Release file
		// permits.
		`--aptopt=Acquire::Check-Valid-Until "false"`,
		`--aptopt=Acquire::Languages "none"`,
		"--dpkgopt=path-exclude=/usr/share/doc/*", "--dpkgopt=path-exclude=/usr/share/man/*",
		"--dpkgopt=path-exclude=/usr/share/locale/*", "--dpkgopt=force-unsafe-io",
	}
	for _, opt := range hostAptOptions(ctx) {
		args = append(args, "--aptopt="+opt)
	}
	for _, hook := range customize {
		args = append(args, "--customize-hook="+hook)
	}
	cmd := exec.CommandContext(ctx, "mmdebstrap", append(args, suite, root, mirror)...)
	// mmdebstrap unmounts everything when it is asked to stop.
	cmd.Cancel = func() error { return cmd.Process.Signal(os.Interrupt) }
	if err := runTool(cmd); err != nil {
		return err
	}
	if err := os.Chmod(root, 0o755); err != nil {
		return err
	}
	return os.Rename(root, path)
}

// hostMirror returns the Debian mirror of this machine's apt configuration.
func hostMirror() string {
	files, _ := filepath.Glob("/etc/apt/sources.list.d/*")
	for _, file := range append([]string{"/etc/apt/sources.list"}, files...) {
		text, err := os.ReadFile(file)
		if err != nil {
			continue
		}
		for line := range strings.Lines(string(text)) {
			fields := strings.Fields(line)
			if len(fields) == 0 || fields[0] != "deb" && !strings.EqualFold(fields[0], "URIs:") {
				continue
			}
			for _, f := range fields[1:] {
				if u, err := url.Parse(f); err == nil && u.Host != "" && strings.TrimRight(u.Path, "/") == "/debian" {
					return strings.TrimRight(f, "/")
				}
			}
		}
	}
	return "http://deb.debian.org/debian"
}

// hostAptOptions returns the proxies of this machine's apt configuration.
func hostAptOptions(ctx context.Context) []string {
	out, err := exec.CommandContext(ctx, "apt-config", "dump", "Acquire").Output()
	if err != nil {
		return nil
	}
	var opts []string
	for line := range strings.Lines(string(out)) {
		line = strings.TrimSuffix(strings.TrimSpace(line), ";")
		if name, value, ok := strings.Cut(line, " "); ok && value != `""` && strings.Contains(strings.ToLower(name), "::proxy") {
			opts = append(opts, line)
		}
	}
	return opts
}

// hostPackages names the Debian package of each tool that the lab runs on the host.
var hostPackages = map[string]string{
	"mmdebstrap": "mmdebstrap", "systemd-nspawn": "systemd-container", "nft": "nftables",
	"nsenter": "util-linux", "unshare": "util-linux", qemu: "qemu-system-x86", "mke2fs": "e2fsprogs",
}

// needTools names the missing packages on the host.
func needTools(tools ...string) error {
	var missing, install []string
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			missing = append(missing, tool)
			if p := hostPackages[tool]; !slices.Contains(install, p) {
				install = append(install, p)
			}
		}
	}
	if len(missing) == 0 {
		return nil
	}
	return fmt.Errorf("not found on this machine: %s; install it with: apt-get install %s",
		strings.Join(missing, ", "), strings.Join(install, " "))
}

// runTool runs a command; its error contains the command's output on stderr.
func runTool(cmd *exec.Cmd) error {
	var stderr bytes.Buffer
	if cmd.Stderr == nil {
		cmd.Stderr = &stderr
	}
	if err := cmd.Run(); err != nil {
		return toolError(cmd, err, stderr.String())
	}
	return nil
}

func toolError(cmd *exec.Cmd, err error, stderr string) error {
	text := strings.TrimSpace(stderr)
	if len(text) > 4096 {
		text = "…" + text[len(text)-4096:]
	}
	if text != "" {
		text = ": " + text
	}
	return fmt.Errorf("%s: %w%s", strings.Join(cmd.Args[:min(len(cmd.Args), 6)], " "), err, text)
}
