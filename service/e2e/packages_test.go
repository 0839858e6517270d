package e2e

import (
	"fmt"
	"maps"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// packageTools are what the tests of packages, and of what sudo allows, need of Debian besides
// the image.
var packageTools = []string{"createrepo-c", "dnf", "less", "network-manager", "rpm", "sudo"}

// builtPackage returns a package of ec2netd: its first or second version, deb or rpm.
func builtPackage(t testing.TB, version int, kind string) string {
	t.Helper()
	dir := os.Getenv("EC2NETD_PACKAGES")
	if dir == "" {
		module, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
		if err != nil {
			t.Fatalf("looking for the sources of ec2netd: %v", err)
		}
		root := filepath.Dir(strings.TrimSpace(string(module)))
		dir = t.TempDir()
		args := []string{"-C", root, "stage-packages", "STAGE=" + filepath.Join(dir, "stage"), "PACKAGES=" + dir}
		if out, err := exec.CommandContext(t.Context(), "make", args...).CombinedOutput(); err != nil {
			t.Fatalf("make stage-packages: %v\n%s", err, out)
		}
		dir = filepath.Join(dir, "test")
	}
	found, err := filepath.Glob(filepath.Join(dir, fmt.Sprint(version), "*."+kind))
	if err != nil || len(found) != 1 {
		t.Fatalf("packages of version %d in %s: %v, %v", version, dir, found, err)
	}
	return found[0]
}

// withPackages boots what an image has before ec2netd is installed: with the packages to
// install as /root/1.deb and so on.
func withPackages(t testing.TB, suite string, change func(*vpc.InstanceOptions)) *lab {
	t.Helper()
	return boot(t, suite, func(o *vpc.InstanceOptions) {
		o.Packages = packageTools
		for path, text := range vpc.LabFiles() {
			o.Files[path] = text
		}
		o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=5\n"
		var then func(root string) error
		o.Install = func(root string) error {
			for _, kind := range []string{"deb", "rpm"} {
				for version := 1; version <= 2; version++ {
					text, err := os.ReadFile(builtPackage(t, version, kind))
					if err != nil {
						return err
					}
					if err := vpc.WriteFile(root, fmt.Sprintf("/root/%d.%s", version, kind), string(text)); err != nil {
						return err
					}
				}
			}
			if then != nil {
				return then(root)
			}
			return nil
		}
		if change != nil {
			install := o.Install
			o.Install = nil
			change(o)
			then, o.Install = o.Install, install
		}
	})
}

// inRoot runs a command in a root that is not booted.
func inRoot(t testing.TB, root string, argv ...string) (string, error) {
	t.Helper()
	cmd := exec.CommandContext(t.Context(), "chroot", append([]string{root}, argv...)...)
	cmd.Env = []string{"PATH=/usr/sbin:/usr/bin:/sbin:/bin", "LANG=C.UTF-8"}
	out, err := cmd.CombinedOutput()
	if err != nil {
		return "", fmt.Errorf("%q in the root: %w\n%s", argv, err, out)
	}
	return string(out), nil
}

// hitless runs something that must cost no packet and remove nothing from the kernel.
func (l *lab) hitless(what string, do func()) {
	l.t.Helper()
	subnet := l.inst.Primary().Subnet()
	deleted := l.monitor("ens5")
	four, err := l.inst.StartPing(l.t.Context(), l.inst.Primary().IPv4()[0], subnet.Gateway4(), 10*time.Millisecond)
	if err != nil {
		l.t.Fatal(err)
	}
	do()
	if r := four.Stop(); r.Received != r.Sent {
		l.t.Errorf("%s: IPv4: %v", what, r)
	} else {
		l.t.Logf("%s: %v", what, r)
	}
	if events := deleted(); strings.Contains(events, "Deleted") {
		l.t.Errorf("%s: the kernel lost\n%s", what, events)
	}
}

// enabled are the units that the preset file names, as systemctl is-enabled tells.
func (l *lab) enabled() map[string]string {
	l.t.Helper()
	units, err := vpc.PresetUnits(l.inst.Path("/" + vpc.PresetFile))
	if err != nil {
		l.t.Fatal(err)
	}
	states := make(map[string]string)
	for _, unit := range units {
		states[unit] = l.run("sh", "-c", "systemctl is-enabled "+unit+" 2>/dev/null || :")
	}
	return states
}

// onNetworkd checks that networkd has the primary ENI by a file, with its address and the
// default route.
func (l *lab) onNetworkd(file string) {
	l.t.Helper()
	primary := l.inst.Primary()
	l.until("networkd has "+primary.Name()+" by "+file, func() (bool, error) {
		status := l.run("networkctl", "--no-pager", "status", primary.Name())
		if !strings.Contains(status, file) || !slices.Contains(l.addresses(primary.Name()), primary.IPv4()[0]) {
			return false, nil
		}
		for _, r := range l.routes("-4", "main") {
			if r.Dst == "default" && r.Dev == primary.Name() {
				return true, nil
			}
		}
		return false, nil
	})
	l.pingFrom(primary.IPv4()[0])
}

// swapped has dnf put ec2netd in the place of an old package, from a repository with both,
// where neither an upgrade nor an installation that does not say so has replaced it.
func (l *lab) swapped(old string) {
	l.t.Helper()
	l.run("sh", "-c", "cp /root/1.rpm "+rpmRepo+" && createrepo_c --quiet "+rpmRepo)
	dnf := func(args ...string) []string {
		return append([]string{"dnf", "--assumeyes", "--repofrompath=both," + rpmRepo, "--repo=both", "--nogpgcheck"}, args...)
	}
	if all := l.run(dnf("list", "--showduplicates", "ec2netd", old)...); !strings.Contains(all, "ec2netd") {
		l.t.Fatalf("the repository has no ec2netd:\n%s", all)
	}
	installed := func(when string) {
		l.t.Helper()
		if out := l.run("sh", "-c", "rpm --query "+old+"; ! rpm --query ec2netd"); !strings.Contains(out, old+"-2.7.4") {
			l.t.Errorf("%s: %s", when, out)
		}
	}
	for _, args := range [][]string{{"upgrade"}, {"upgrade", old}, {"distro-sync"}} {
		l.run(dnf(args...)...)
		installed(fmt.Sprint("after dnf ", args))
	}
	if out := l.fails(dnf("install", "ec2netd")...); !strings.Contains(out, "conflicts with") {
		l.t.Errorf("dnf install beside the old package: %s", out)
	}
	installed("after an installation that was refused")
	l.hitless("swapping", func() { l.run(dnf("swap", old, "ec2netd")...) })
}

// TestLabRPM: the rpm is installed into the root of an image and removed from it; then, on a
// system with the old package and the masks that images for Kubernetes have, by dnf swap in the
// place of that, which a boot completes; it is upgraded, downgraded, and removed.
func TestLabRPM(t *testing.T) { // I2, I4, E6, E9
	eachSuite(t, func(t *testing.T, suite string) {
		name := "amazon-ec2-net-utils"
		if suite == "bookworm" {
			name = "ec2-net-utils"
		}
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			o.Install = func(root string) error {
				if err := installRPM(t, root, systemRPM); err != nil {
					return err
				}
				// NetworkManager is enabled.
				for _, argv := range [][]string{{"--install", "/root/1.rpm"}, {"--erase", "ec2netd"}} {
					if out, err := inRoot(t, root, append([]string{"rpm"}, argv...)...); err != nil || strings.Contains(out, "rror") {
						return fmt.Errorf("rpm %v: %w\n%s", argv, err, out)
					}
					out, err := inRoot(t, root, "sh", "-c", "for u in systemd-networkd ec2netd NetworkManager; do echo $u:$(systemctl is-enabled $u.service 2>/dev/null); done")
					if err != nil {
						return err
					}
					if !strings.Contains(out, "systemd-networkd:enabled") || !strings.Contains(out, "NetworkManager:disabled") ||
						strings.Contains(out, "ec2netd:enabled") != (argv[0] == "--install") {
						return fmt.Errorf("in a root, after rpm %v: %s", argv, out)
					}
				}
				return installOldRPM(t, root, name)
			}
		})
		// What the removal left has the place of the old package's base unit.
		l.onNetworkd("/etc/systemd/network/80-ec2.network")
		l.oldRuns("70")
		for _, file := range masksOfOld {
			l.put(file, masked)
		}
		l.swapped(name)
		if _, err := l.inst.Exec(t.Context(), "rpm", "--query", "--whatprovides", name, "--queryformat=%{NAME}\n"); err != nil {
			t.Errorf("%s is not provided: %v", name, err)
		}
		if out, err := l.inst.Exec(t.Context(), "rpm", "--query", name); err == nil {
			t.Errorf("%s is installed: %s", name, out)
		}
		// So that no advice has that command.
		if out := l.run("sh", "-c", "dnf --assumeno remove "+name+" 2>&1 || :"); !strings.Contains(out, "ec2netd") {
			t.Errorf("dnf remove %s would leave ec2netd: %s", name, out)
		}
		if out := l.fails("rpm", "--erase", name); !strings.Contains(out, "not installed") {
			t.Errorf("rpm --erase %s: %s", name, out)
		}
		l.run("rpm", "--query", "ec2netd")
		l.run("rpm", "--query", "--file", "/usr/share/doc/ec2netd/dependencies.txt", "/usr/share/doc/ec2netd/ec2netd.spdx.json")
		l.everyAddress()
		l.reboot()
		l.replacesOld("after the boot")
		for _, file := range masksOfOld {
			if to := l.run("readlink", file); to != masked {
				t.Errorf("the mask %s is %s", file, to)
			}
		}
		primary := l.configured("ens5")
		want := map[string]string{
			"systemd-networkd.service": "enabled", "systemd-networkd-wait-online.service": "enabled", "systemd-resolved.service": "enabled",
			"ec2netd.service": "enabled", "ec2netd.socket": "enabled", "ec2netd-wait-online.service": "disabled",
			"NetworkManager.service": "disabled", "NetworkManager-dispatcher.service": "disabled", "NetworkManager-wait-online.service": "disabled",
		}
		got := l.enabled()
		for unit, state := range want {
			if got[unit] != state {
				t.Errorf("%s is %s, want %s", unit, got[unit], state)
			}
		}
		if out := l.run("rpm", "--query", "--obsoletes", "ec2netd"); out != "" {
			t.Errorf("an upgrade of others would install it, since it obsoletes\n%s", out)
		}
		l.run("sh", "-c", "echo '# mine' >>/etc/ec2netd.conf")
		files, pid := l.files(), l.daemonPID()

		upgrade := func(argv ...string) {
			l.hitless(strings.Join(argv, " "), func() { l.run(argv...); l.configured("ens5") })
			if now := l.daemonPID(); now == pid || now == "0" {
				t.Errorf("after %q the daemon that runs is the one before", argv)
			} else {
				pid = now
			}
		}
		l.withoutAlias()
		upgrade("rpm", "--upgrade", "/root/2.rpm")
		l.hasAlias()
		upgrade("rpm", "--upgrade", "--oldpackage", "/root/1.rpm")
		if now := l.files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}

		l.run("rpm", "--erase", "ec2netd")
		l.removed(primary)
		if text := l.run("cat", "/etc/ec2netd.conf.rpmsave"); !strings.HasSuffix(text, "# mine") {
			t.Errorf("what is kept of the configuration:\n%s", text)
		}
	})
}

// busAlias is the link by which the bus starts a daemon that is enabled.
const busAlias = "/etc/systemd/system/dbus-org.ec2netd1.service"

// withoutAlias makes what is enabled as a version left it that had no alias for the bus.
func (l *lab) withoutAlias() {
	l.t.Helper()
	l.run("rm", busAlias)
	l.run("systemctl", "daemon-reload")
}

// hasAlias checks that the bus can start the daemon.
func (l *lab) hasAlias() {
	l.t.Helper()
	if target := l.run("readlink", busAlias); target != "/usr/lib/systemd/system/ec2netd.service" {
		l.t.Errorf("%s leads to %q", busAlias, target)
	}
	if got := l.run("systemctl", "show", "--property=LoadState,Id", "dbus-org.ec2netd1.service"); !strings.Contains(got, "Id=ec2netd.service") {
		l.t.Errorf("the unit that the bus starts is\n%s", got)
	}
}

// removed checks that the system is on plain networkd, and after a boot too.
func (l *lab) removed(primary *state.Interface) {
	l.t.Helper()
	for _, path := range []string{"/run/ec2netd", "/var/lib/ec2netd", "/usr/lib/ec2netd", "/usr/bin/ec2netctl"} {
		if _, err := os.Lstat(l.inst.Path(path)); err == nil {
			l.t.Errorf("%s is left", path)
		}
	}
	if left := l.run("sh", "-c", "ls -d /run/systemd/network/* 2>/dev/null || :"); left != "" {
		l.t.Errorf("generated files are left:\n%s", left)
	}
	if out := l.run("systemctl", "list-units", "--all", "--plain", "--no-legend", "ec2netd*"); strings.Contains(out, "running") || strings.Contains(out, "failed") {
		l.t.Errorf("units are left:\n%s", out)
	}
	l.onNetworkd("/etc/systemd/network/70-ens5.network")
	l.comes("where the package is removed") // E9
	l.run("systemctl", "restart", "systemd-networkd.service")
	l.onNetworkd("/etc/systemd/network/70-ens5.network")
	l.reboot()
	l.onNetworkd("/etc/systemd/network/70-ens5.network")
	for _, r := range l.routes("-4", "main") {
		if r.Dst == "default" && r.Metric != primary.Metric {
			l.t.Errorf("a default route of metric %d", r.Metric)
		}
	}
}

// TestLabDeb: the deb is installed on a running system that NetworkManager owns, as
// install.md says; a reboot makes networkd the owner.
func TestLabDeb(t *testing.T) { // F5, I2, I4, E6, E9
	eachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			onNetworkManager(o)
			// An admin's preset of a lower number wins.
			o.Files["/etc/systemd/system-preset/10-admin.preset"] = "enable ec2netd-wait-online.service\n"
		})
		l.ownedByNetworkManager()
		before := l.enabled0()
		l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })

		// Nothing that runs has changed.
		l.ownedByNetworkManager()
		for _, unit := range []string{"ec2netd.service", "ec2netd.socket", "systemd-networkd.service"} {
			if state := l.run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
				t.Errorf("installing made %s %s", unit, state)
			}
		}
		l.waitsForBoot("NetworkManager")
		presets := map[string]string{
			"systemd-networkd.service": "enabled", "systemd-networkd-wait-online.service": "enabled", "systemd-resolved.service": "enabled",
			"ec2netd.service": "enabled", "ec2netd.socket": "enabled", "ec2netd-wait-online.service": "enabled",
			"NetworkManager.service": "disabled", "NetworkManager-dispatcher.service": "disabled", "NetworkManager-wait-online.service": "disabled",
		}
		after := l.enabled()
		for unit, want := range presets {
			if after[unit] != want {
				t.Errorf("%s is %s, want %s; before installing: %s", unit, after[unit], want, before)
			}
		}
		l.reboot()
		l.configured("ens5")
		l.onNetworkd("70-ens5.network")
		l.networkManagerIsOff()
		l.run("systemctl", "preset-all")
		if now := l.enabled(); !maps.Equal(now, after) {
			t.Errorf("systemctl preset-all made %v of %v", now, after)
		}
		l.managerComesBack()
		if now := l.enabled(); !maps.Equal(now, after) {
			t.Errorf("what is advised against NetworkManager made %v of %v", now, after)
		}

		// What the admin decides later is respected; an upgrade and a downgrade are hitless.
		l.run("systemctl", "enable", "NetworkManager.service")
		l.run("systemctl", "disable", "ec2netd-wait-online.service")
		after = l.enabled()
		l.run("sh", "-c", "echo '# mine' >>/etc/ec2netd.conf")
		files := l.files()
		l.withoutAlias()
		for _, version := range []string{"2", "1"} {
			l.hitless("to version "+version, func() {
				l.run("apt-get", "install", "--yes", "--allow-downgrades", "/root/"+version+".deb")
				l.configured("ens5")
			})
			if now := l.run("dpkg-query", "--show", "--showformat=${Version}", "ec2netd"); now != "0.0."+version+"-1" {
				t.Errorf("the version is %s", now)
			}
			l.hasAlias()
			status := ""
			l.untilOr("the status has the conflict with NetworkManager, which is enabled", func() (bool, error) {
				status = l.user("ec2netctl", "status")
				return strings.Contains(status, "configured") && strings.Contains(status, "Conflicts: NetworkManager"), nil
			}, &status)
		}
		if now := l.enabled(); !maps.Equal(now, after) {
			t.Errorf("upgrades made %v of %v", now, after)
		}
		if now := l.files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}

		l.mended("/root/1.deb")

		// Removed, installed again, and purged.
		l.run("systemctl", "disable", "NetworkManager.service")
		primary := l.configured("ens5")
		l.run("apt-get", "remove", "--yes", "ec2netd")
		l.removed(primary)
		l.run("apt-get", "install", "--yes", "/root/2.deb")
		l.reboot()
		l.configured("ens5")
		l.onNetworkd("70-ens5.network")
		if text := l.run("cat", "/etc/ec2netd.conf"); !strings.HasSuffix(text, "# mine") {
			t.Errorf("what is kept of the configuration:\n%s", text)
		}
		l.run("apt-get", "purge", "--yes", "ec2netd")
		l.onNetworkd("/etc/systemd/network/70-ens5.network")
		if left := l.run("sh", "-c", "find /etc -name '*ec2netd*' ! -path '*/ec2netd.conf.d*'"); left != "" {
			t.Errorf("after the purge:\n%s", left)
		}
	})
}

// TestLabKeptOut: an image that masks ec2netd as install.md says, and has the masks that
// images for Kubernetes have against the old package, keeps the owner of its links.
func TestLabKeptOut(t *testing.T) { // I2, I4
	t.Parallel()
	for _, c := range []struct{ suite, owner string }{{"bookworm", "NetworkManager"}, {"sid", "networkd"}} {
		t.Run(c.owner, func(t *testing.T) {
			t.Parallel()
			l := withPackages(t, c.suite, func(o *vpc.InstanceOptions) {
				if c.owner == "NetworkManager" {
					onNetworkManager(o)
					return
				}
				o.Packages = nil
				// The base unit would go before it.
				o.Files["/etc/systemd/network/90-image.network"] = "[Match]\nDriver=veth\n[Network]\nDHCP=yes\n"
				o.Install = func(root string) error {
					_, err := inRoot(t, root, "systemctl", "enable", "systemd-networkd.service", "systemd-resolved.service")
					return err
				}
			})
			owned := func() {
				t.Helper()
				if c.owner == "NetworkManager" {
					l.ownedByNetworkManager()
				} else {
					l.onNetworkd("90-image.network")
				}
			}
			image := func() string {
				t.Helper()
				return l.run("sh", "-c", `systemctl list-unit-files --no-legend 'systemd-networkd*' 'systemd-resolved*' 'NetworkManager*' | awk '{print $1, $2}'
					ip -o link show dev ens5 | sed 's/^[0-9]*: //; s/@if[0-9]*//'; ip -4 -o addr show dev ens5 | sed 's/valid_lft.*//'
					ip -4 route show table all; ip rule; ip -6 rule; ls -A /run/systemd/network 2>/dev/null || :`)
			}
			unchanged := func(when, before string) {
				t.Helper()
				owned()
				var diff string
				l.untilOr(when+" all is as before", func() (bool, error) {
					diff = cmp.Diff(strings.Split(before, "\n"), strings.Split(image(), "\n"))
					return diff == "", nil
				}, &diff)
				if running := l.run("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,failed", "ec2netd*"); running != "" {
					t.Errorf("%s there is of ec2netd\n%s", when, running)
				}
				if left := l.run("sh", "-c", "ls -d /run/systemd/network/* /run/ec2netd 2>/dev/null || :"); left != "" {
					t.Errorf("%s there are\n%s", when, left)
				}
				if out := l.fails("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"); !strings.Contains(out, "dbus-org.ec2netd1.service") {
					t.Errorf("%s D-Bus activation says %s", when, out)
				}
			}
			owned()
			before := image()
			l.run("systemctl", "mask", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
			for _, file := range append(masksOfOld, "/etc/systemd/network/80-ec2.network") {
				l.put(file, masked)
			}
			l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
			unchanged("after installing", before)
			l.reboot()
			unchanged("after the boot", before)
			l.hitless("upgrading", func() { l.run("apt-get", "install", "--yes", "/root/2.deb") })
			unchanged("after the upgrade", before)
			l.wanted()
		})
	}
}

// onNetworkManager has NetworkManager own the ENIs, as a distribution does that ships it, and the
// primary one with policy rules.
func onNetworkManager(o *vpc.InstanceOptions) {
	const file = "/etc/NetworkManager/system-connections/ens5.nmconnection"
	o.Stock = "networkmanager"
	o.Files[file] = "[connection]\nid=ens5\nuuid=5f7a0b8e-8f4e-4d2e-9b57-3d4a1b2c3d4e\ntype=ethernet\ninterface-name=ens5\nautoconnect-priority=1\n" +
		"[ipv4]\nmethod=auto\n" +
		// As nm-cloud-setup has them.
		"routing-rule1=priority 30400 from 10.0.16.10 table 30400\nroute1=0.0.0.0/0,10.0.16.1\nroute1_options=table=30400\n[ipv6]\nmethod=auto\n"
	install := o.Install
	o.Install = func(root string) error {
		if install != nil {
			if err := install(root); err != nil {
				return err
			}
		}
		return os.Chmod(filepath.Join(root, file), 0o600)
	}
}

// waitsForBoot checks what is said between the installation and the next boot: who has the ENIs,
// how long, and how to change it, and nothing else (F5).
func (l *lab) waitsForBoot(owner string) {
	l.t.Helper()
	const now = "To have it take over now: sudo ec2netctl takeover"
	says := "ec2netd is installed and configures the ENIs from the next boot on; until then " + owner + " does"
	for _, as := range []func(...string) string{l.run, l.user} {
		out := as("ec2netctl", "--no-pager", "doctor")
		if flat := strings.Join(strings.Fields(out), " "); !strings.Contains(flat, says+" → "+now+" 0 problems, 1 warning.") || strings.Contains(out, "systemctl") {
			l.t.Errorf("doctor says\n%s", out)
		}
	}
	if out := l.fails("ec2netctl", "status"); !strings.HasSuffix(strings.TrimSpace(out), "ec2netctl: "+says+"\n"+now) {
		l.t.Errorf("status says\n%s", out)
	}
}

// enabled0 is systemctl is-enabled of NetworkManager and networkd before the preset file
// is there.
func (l *lab) enabled0() string {
	l.t.Helper()
	return l.run("sh", "-c", "systemctl is-enabled NetworkManager.service systemd-networkd.service || :")
}

// ownedByNetworkManager waits until NetworkManager has the primary ENI with its address.
func (l *lab) ownedByNetworkManager() {
	l.t.Helper()
	primary := l.inst.Primary()
	var last string
	l.untilOr("NetworkManager has "+primary.Name(), func() (bool, error) {
		last = l.run("sh", "-c", "nmcli --terse --fields GENERAL.STATE,IP4.ADDRESS device show "+primary.Name()+" 2>&1 || :")
		return strings.Contains(last, "100 (connected)") && strings.Contains(last, primary.IPv4()[0].String()+"/"), nil
	}, &last)
	l.pingFrom(primary.IPv4()[0])
}

func (l *lab) networkManagerIsOff() {
	l.t.Helper()
	for _, unit := range []string{"NetworkManager.service", "NetworkManager-wait-online.service", "NetworkManager-dispatcher.service"} {
		if state := l.run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
			l.t.Errorf("%s is %s", unit, state)
		}
	}
}

func (l *lab) reboot() {
	l.t.Helper()
	if err := l.inst.Reboot(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
}

// ofTakeover is what a takeover and a boot have to agree on: IPv4 addresses in their order,
// IPv6 addresses, routes and rules of all tables, names, files with what is in them, and what
// runs. Not, for IPv6, whether a route is advertised or static: a boot begins with the router
// that the last one knew, and on 252 with static addresses.
func (l *lab) ofTakeover(enis ...string) []string {
	l.t.Helper()
	text := map[string]bool{}
	for _, family := range []string{"-4", "-6"} {
		var all []struct {
			route
			Table string
		}
		l.json(&all, "ip", "-j", "-N", family, "route", "show", "table", "all")
		for _, r := range all {
			if r.Table == "" { // ip leaves it out for main
				r.Table = "254"
			}
			if r.Protocol == "2" && r.Gateway != "" {
				l.t.Errorf("a route stands in yet: %+v", r)
			}
			// 2 is the kernel's protocol: these come with the addresses.
			if !slices.Contains(enis, r.Dev) || r.Protocol == "2" {
				continue
			}
			line := fmt.Sprintf("route %s via %s dev %s table %s", r.Dst, r.Gateway, r.Dev, r.Table)
			if family == "-4" {
				line += fmt.Sprintf(" metric %d", r.Metric)
			}
			text[line] = true
		}
	}
	out := slices.Sorted(maps.Keys(text))
	for _, name := range enis {
		addresses := l.addresses(name)
		four := slices.DeleteFunc(slices.Clone(addresses), netip.Addr.Is6)
		out = append(out, fmt.Sprintf("%s: %v %v", name, four, sorted(slices.DeleteFunc(addresses, netip.Addr.Is4))),
			l.run("sh", "-c", "ip -6 address show dev "+name+" scope link | awk '/inet6/ {print $2}'; ip link show "+name+" | grep altname | sort; resolvectl dns "+name))
	}
	return append(out, strings.Split(l.run("sh", "-c", "ip -4 rule | sort; ip -6 rule | sort; cd /run/systemd/network && find . -printf '%p %l\n' | sort && "+
		`find . -type f | sort | xargs awk 'FNR == 1 {skip = 0} /^#/ {next} /^\[/ {skip = $0 == "[Route]" || $0 ~ /v6/; next} /:/ || /^(DHCP|AddPrefixRoute|DuplicateAddressDetection)=/ {next} !skip && NF {print FILENAME, $0}'; `+
		"for u in NetworkManager.service systemd-resolved.service ec2netd.service $(cd /usr/lib/systemd/system && ls ec2netd*.socket systemd-networkd*.socket systemd-networkd.service); do "+
		"echo $u $(systemctl is-active $u); done"), "\n")...)
}

// TestLabTakeover: a system of NetworkManager's is taken over without a reboot, as a reboot
// would, and gets back what it had if the ENIs do not come up.
func TestLabTakeover(t *testing.T) { // I2
	eachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			onNetworkManager(o)
		})
		l.ownedByNetworkManager()
		ruleOfNetworkManager := func() bool { return strings.Contains(l.run("ip", "rule"), "lookup 30400") }
		if !ruleOfNetworkManager() || len(l.routes("-4", "30400")) == 0 {
			t.Errorf("NetworkManager has set no policy rule, or no route: %s", l.run("ip", "rule"))
		}
		l.attach(vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		advised := l.commandsIn(l.toHaveIt(l.fails("ec2netctl", "status")))[0]
		if out := l.run("ec2netctl", "takeover", "--dry-run"); !strings.Contains(out, "Would stop NetworkManager") || !strings.Contains(out, "ec2netd.service") {
			t.Errorf("takeover --dry-run:\n%s", out)
		}
		l.ownedByNetworkManager()

		l.put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
		if out := l.fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		if left := l.run("sh", "-c", "ls /run/systemd/network"); left != "" {
			t.Errorf("a takeover that failed leaves in /run/systemd/network\n%s", left)
		}
		l.ownedByNetworkManager()
		if state := l.run("sh", "-c", "systemctl is-active ec2netd.service || :"); state != "inactive" {
			t.Errorf("after a takeover that failed ec2netd is %s", state)
		}
		l.until("its policy rule is there again", func() (bool, error) { return ruleOfNetworkManager(), nil })
		l.run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
		if again := l.commandsIn(l.toHaveIt(l.fails("ec2netctl", "status")))[0]; again != advised {
			t.Errorf("after a takeover that failed status advises %s, before it %s", again, advised)
		}

		l.takenOverByTwo(advised)
		l.networkManagerIsOff()
		l.asAfterBoot("70-ens5.network", "ens5", "ens6")
	})
}

// asAfterBoot checks that a boot makes nothing of some ENIs, the primary first, that a takeover
// has not made of them. File is what networkd uses for the primary.
func (l *lab) asAfterBoot(file string, enis ...string) {
	l.t.Helper()
	state := func(want []string) (got []string) {
		l.t.Helper()
		for _, name := range enis {
			l.configured(name)
		}
		l.onNetworkd(file)
		var last string
		l.untilOr("the state is what it is after a takeover", func() (bool, error) {
			got = l.ofTakeover(enis...)
			last = cmp.Diff(want, got)
			if want != nil {
				return last == "", nil
			}
			// A router is known when it has advertised itself.
			for i, name := range enis {
				route := "route default via fe80::ec2:1 dev " + name + " table "
				if !slices.Contains(got, route+"254") || (i > 0 && !slices.Contains(got, route+"10001")) {
					return false, nil
				}
			}
			return true, nil
		}, &last)
		return got
	}
	taken := state(nil)
	if !slices.ContainsFunc(taken, func(line string) bool {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "ens5: ["), "]")
		first, _, _ = strings.Cut(first, " ")
		return strings.HasPrefix(line, "ens5: [") && first == l.inst.Primary().IPv4()[0].String()
	}) {
		l.t.Errorf("the primary address is not the first: %q", taken)
	}
	l.reboot()
	state(taken)
}
