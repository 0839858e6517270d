package e2e

import (
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/cmd/vpclab/labtest"
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
func withPackages(t testing.TB, suite string, change func(*vpc.InstanceOptions)) *labtest.Lab {
	t.Helper()
	return labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
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

// checkHitless runs something that must cost no packet and remove nothing from the kernel.
func checkHitless(l *labtest.Lab, what string, do func()) {
	l.T.Helper()
	subnet := l.Inst.Primary().Subnet()
	deleted := l.Monitor("ens5")
	four, err := l.Inst.StartPing(l.T.Context(), l.Inst.Primary().IPv4()[0], subnet.Gateway4(), 10*time.Millisecond)
	if err != nil {
		l.T.Fatal(err)
	}
	do()
	if r := four.Stop(); r.Received != r.Sent {
		l.T.Errorf("%s: IPv4: %v", what, r)
	} else {
		l.T.Logf("%s: %v", what, r)
	}
	if events := deleted(); strings.Contains(events, "Deleted") {
		l.T.Errorf("%s: the kernel lost\n%s", what, events)
	}
}

// enabledUnits are the units that the preset file names, as systemctl is-enabled tells.
func enabledUnits(l *labtest.Lab) map[string]string {
	l.T.Helper()
	units, err := vpc.PresetUnits(l.Inst.Path("/" + vpc.PresetFile))
	if err != nil {
		l.T.Fatal(err)
	}
	states := make(map[string]string)
	for _, unit := range units {
		states[unit] = l.Run("sh", "-c", "systemctl is-enabled "+unit+" 2>/dev/null || :")
	}
	return states
}

// onNetworkd checks that networkd has the primary ENI by a file, with its address and the
// default route.
func onNetworkd(l *labtest.Lab, file string) {
	l.T.Helper()
	primary := l.Inst.Primary()
	l.Until("networkd has "+primary.Name()+" by "+file, func() (bool, error) {
		status := l.Run("networkctl", "--no-pager", "status", primary.Name())
		if !strings.Contains(status, file) || !l.HasAddress(primary.Name(), primary.IPv4()[0]) {
			return false, nil
		}
		for _, r := range l.Routes("-4", "main") {
			if r.Dst == "default" && r.Dev == primary.Name() {
				return true, nil
			}
		}
		return false, nil
	})
	l.PingFrom(primary.IPv4()[0])
}

// swapPackage has dnf put ec2netd in the place of an old package, from a repository with both,
// where neither an upgrade nor an installation that does not say so has replaced it.
func swapPackage(l *labtest.Lab, old string) {
	l.T.Helper()
	l.Run("sh", "-c", "cp /root/1.rpm "+rpmRepo+" && createrepo_c --quiet "+rpmRepo)
	dnf := func(args ...string) []string {
		return append([]string{"dnf", "--assumeyes", "--repofrompath=both," + rpmRepo, "--repo=both", "--nogpgcheck"}, args...)
	}
	if all := l.Run(dnf("list", "--showduplicates", "ec2netd", old)...); !strings.Contains(all, "ec2netd") {
		l.T.Fatalf("the repository has no ec2netd:\n%s", all)
	}
	installed := func(when string) {
		l.T.Helper()
		if out := l.Run("sh", "-c", "rpm --query "+old+"; ! rpm --query ec2netd"); !strings.Contains(out, old+"-2.7.4") {
			l.T.Errorf("%s: %s", when, out)
		}
	}
	for _, args := range [][]string{{"upgrade"}, {"upgrade", old}, {"distro-sync"}} {
		l.Run(dnf(args...)...)
		installed(fmt.Sprint("after dnf ", args))
	}
	if out := l.Fails(dnf("install", "ec2netd")...); !strings.Contains(out, "conflicts with") {
		l.T.Errorf("dnf install beside the old package: %s", out)
	}
	installed("after an installation that was refused")
	checkHitless(l, "swapping", func() { l.Run(dnf("swap", old, "ec2netd")...) })
}

// TestLabRPM: the rpm is installed into the root of an image and removed from it; then, on a
// system with the old package and the masks that images for Kubernetes have, by dnf swap in the
// place of that, which a boot completes; it is upgraded, downgraded, and removed.
func TestLabRPM(t *testing.T) { // I2, I4, E6, E9
	labtest.EachSuite(t, func(t *testing.T, suite string) {
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
		onNetworkd(l, "/etc/systemd/network/80-ec2.network")
		oldRuns(l, "70")
		for _, file := range masksOfOld {
			l.Put(file, labtest.Masked)
		}
		swapPackage(l, name)
		if _, err := l.Inst.Exec(t.Context(), "rpm", "--query", "--whatprovides", name, "--queryformat=%{NAME}\n"); err != nil {
			t.Errorf("%s is not provided: %v", name, err)
		}
		if out, err := l.Inst.Exec(t.Context(), "rpm", "--query", name); err == nil {
			t.Errorf("%s is installed: %s", name, out)
		}
		// So that no advice has that command.
		if out := l.Run("sh", "-c", "dnf --assumeno remove "+name+" 2>&1 || :"); !strings.Contains(out, "ec2netd") {
			t.Errorf("dnf remove %s would leave ec2netd: %s", name, out)
		}
		if out := l.Fails("rpm", "--erase", name); !strings.Contains(out, "not installed") {
			t.Errorf("rpm --erase %s: %s", name, out)
		}
		l.Run("rpm", "--query", "ec2netd")
		l.Run("rpm", "--query", "--file", "/usr/share/doc/ec2netd/dependencies.txt", "/usr/share/doc/ec2netd/ec2netd.spdx.json")
		checkEveryAddress(l)
		l.Reboot()
		replacesOld(l, "after the boot")
		for _, file := range masksOfOld {
			if to := l.Run("readlink", file); to != labtest.Masked {
				t.Errorf("the mask %s is %s", file, to)
			}
		}
		primary := l.AwaitConfigured("ens5")
		want := map[string]string{
			"systemd-networkd.service": "enabled", "systemd-networkd-wait-online.service": "enabled", "systemd-resolved.service": "enabled",
			"ec2netd.service": "enabled", "ec2netd.socket": "enabled", "ec2netd-wait-online.service": "disabled",
			"NetworkManager.service": "disabled", "NetworkManager-dispatcher.service": "disabled", "NetworkManager-wait-online.service": "disabled",
		}
		got := enabledUnits(l)
		for unit, state := range want {
			if got[unit] != state {
				t.Errorf("%s is %s, want %s", unit, got[unit], state)
			}
		}
		if out := l.Run("rpm", "--query", "--obsoletes", "ec2netd"); out != "" {
			t.Errorf("an upgrade of others would install it, since it obsoletes\n%s", out)
		}
		l.Run("sh", "-c", "echo '# mine' >>/etc/ec2netd.conf")
		files, pid := l.Files(), l.DaemonPID()

		upgrade := func(argv ...string) {
			checkHitless(l, strings.Join(argv, " "), func() { l.Run(argv...); l.AwaitConfigured("ens5") })
			if now := l.DaemonPID(); now == pid || now == "0" {
				t.Errorf("after %q the daemon that runs is the one before", argv)
			} else {
				pid = now
			}
		}
		withoutAlias(l)
		upgrade("rpm", "--upgrade", "/root/2.rpm")
		hasAlias(l)
		upgrade("rpm", "--upgrade", "--oldpackage", "/root/1.rpm")
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}

		l.Run("rpm", "--erase", "ec2netd")
		checkRemoved(l, primary)
		if text := l.Run("cat", "/etc/ec2netd.conf.rpmsave"); !strings.HasSuffix(text, "# mine") {
			t.Errorf("what is kept of the configuration:\n%s", text)
		}
	})
}

// busAlias is the link by which the bus starts a daemon that is enabled.
const busAlias = "/etc/systemd/system/dbus-org.ec2netd1.service"

// withoutAlias makes what is enabled as a version left it that had no alias for the bus.
func withoutAlias(l *labtest.Lab) {
	l.T.Helper()
	l.Run("rm", busAlias)
	l.Run("systemctl", "daemon-reload")
}

// hasAlias checks that the bus can start the daemon.
func hasAlias(l *labtest.Lab) {
	l.T.Helper()
	if target := l.Run("readlink", busAlias); target != "/usr/lib/systemd/system/ec2netd.service" {
		l.T.Errorf("%s leads to %q", busAlias, target)
	}
	if got := l.Run("systemctl", "show", "--property=LoadState,Id", "dbus-org.ec2netd1.service"); !strings.Contains(got, "Id=ec2netd.service") {
		l.T.Errorf("the unit that the bus starts is\n%s", got)
	}
}

// checkRemoved checks that the system is on plain networkd, and after a boot too.
func checkRemoved(l *labtest.Lab, primary *state.Interface) {
	l.T.Helper()
	for _, path := range []string{"/run/ec2netd", "/var/lib/ec2netd", "/usr/lib/ec2netd", "/usr/bin/ec2netctl"} {
		if _, err := os.Lstat(l.Inst.Path(path)); err == nil {
			l.T.Errorf("%s is left", path)
		}
	}
	if left := l.Run("sh", "-c", "ls -d /run/systemd/network/* 2>/dev/null || :"); left != "" {
		l.T.Errorf("generated files are left:\n%s", left)
	}
	if out := l.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "ec2netd*"); strings.Contains(out, "running") || strings.Contains(out, "failed") {
		l.T.Errorf("units are left:\n%s", out)
	}
	onNetworkd(l, "/etc/systemd/network/70-ens5.network")
	checkNewENI(l, "where the package is removed") // E9
	l.Run("systemctl", "restart", "systemd-networkd.service")
	onNetworkd(l, "/etc/systemd/network/70-ens5.network")
	l.Reboot()
	onNetworkd(l, "/etc/systemd/network/70-ens5.network")
	for _, r := range l.Routes("-4", "main") {
		if r.Dst == "default" && r.Metric != primary.Metric {
			l.T.Errorf("a default route of metric %d", r.Metric)
		}
	}
}

// TestLabDeb: the deb is installed on a running system that NetworkManager owns, as
// install.md says; a reboot makes networkd the owner.
func TestLabDeb(t *testing.T) { // F5, I2, I4, E6, E9
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			onNetworkManager(o)
			// An admin's preset of a lower number wins.
			o.Files["/etc/systemd/system-preset/10-admin.preset"] = "enable ec2netd-wait-online.service\n"
		})
		ownedByNetworkManager(l)
		before := enabledOwners(l)
		checkHitless(l, "installing", func() { l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })

		// Nothing that runs has changed.
		ownedByNetworkManager(l)
		for _, unit := range []string{"ec2netd.service", "ec2netd.socket", "systemd-networkd.service"} {
			if state := l.Run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
				t.Errorf("installing made %s %s", unit, state)
			}
		}
		waitsForBoot(l, "NetworkManager")
		presets := map[string]string{
			"systemd-networkd.service": "enabled", "systemd-networkd-wait-online.service": "enabled", "systemd-resolved.service": "enabled",
			"ec2netd.service": "enabled", "ec2netd.socket": "enabled", "ec2netd-wait-online.service": "enabled",
			"NetworkManager.service": "disabled", "NetworkManager-dispatcher.service": "disabled", "NetworkManager-wait-online.service": "disabled",
		}
		after := enabledUnits(l)
		for unit, want := range presets {
			if after[unit] != want {
				t.Errorf("%s is %s, want %s; before installing: %s", unit, after[unit], want, before)
			}
		}
		l.Reboot()
		l.AwaitConfigured("ens5")
		onNetworkd(l, "70-ens5.network")
		networkManagerIsOff(l)
		l.Run("systemctl", "preset-all")
		if now := enabledUnits(l); !maps.Equal(now, after) {
			t.Errorf("systemctl preset-all made %v of %v", now, after)
		}
		managerComesBack(l)
		if now := enabledUnits(l); !maps.Equal(now, after) {
			t.Errorf("what is advised against NetworkManager made %v of %v", now, after)
		}

		// What the admin decides later is respected; an upgrade and a downgrade are hitless.
		l.Run("systemctl", "enable", "NetworkManager.service")
		l.Run("systemctl", "disable", "ec2netd-wait-online.service")
		after = enabledUnits(l)
		l.Run("sh", "-c", "echo '# mine' >>/etc/ec2netd.conf")
		files := l.Files()
		withoutAlias(l)
		for _, version := range []string{"2", "1"} {
			checkHitless(l, "to version "+version, func() {
				l.Run("apt-get", "install", "--yes", "--allow-downgrades", "/root/"+version+".deb")
				l.AwaitConfigured("ens5")
			})
			if now := l.Run("dpkg-query", "--show", "--showformat=${Version}", "ec2netd"); now != "0.0."+version+"-1" {
				t.Errorf("the version is %s", now)
			}
			hasAlias(l)
			status := ""
			l.UntilOr("the status has the conflict with NetworkManager, which is enabled", func() (bool, error) {
				status = l.AsUser("ec2netctl", "status")
				return strings.Contains(status, "configured") && strings.Contains(status, "Conflicts: NetworkManager"), nil
			}, &status)
		}
		if now := enabledUnits(l); !maps.Equal(now, after) {
			t.Errorf("upgrades made %v of %v", now, after)
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}

		mendFiles(l, "/root/1.deb")

		// Removed, installed again, and purged.
		l.Run("systemctl", "disable", "NetworkManager.service")
		primary := l.AwaitConfigured("ens5")
		l.Run("apt-get", "remove", "--yes", "ec2netd")
		checkRemoved(l, primary)
		l.Run("apt-get", "install", "--yes", "/root/2.deb")
		l.Reboot()
		l.AwaitConfigured("ens5")
		onNetworkd(l, "70-ens5.network")
		if text := l.Run("cat", "/etc/ec2netd.conf"); !strings.HasSuffix(text, "# mine") {
			t.Errorf("what is kept of the configuration:\n%s", text)
		}
		l.Run("apt-get", "purge", "--yes", "ec2netd")
		onNetworkd(l, "/etc/systemd/network/70-ens5.network")
		if left := l.Run("sh", "-c", "find /etc -name '*ec2netd*' ! -path '*/ec2netd.conf.d*'"); left != "" {
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
					ownedByNetworkManager(l)
				} else {
					onNetworkd(l, "90-image.network")
				}
			}
			image := func() string {
				t.Helper()
				return l.Run("sh", "-c", `systemctl list-unit-files --no-legend 'systemd-networkd*' 'systemd-resolved*' 'NetworkManager*' | awk '{print $1, $2}'
					ip -o link show dev ens5 | sed 's/^[0-9]*: //; s/@if[0-9]*//'; ip -4 -o addr show dev ens5 | sed 's/valid_lft.*//'
					ip -4 route show table all; ip rule; ip -6 rule; ls -A /run/systemd/network 2>/dev/null || :`)
			}
			unchanged := func(when, before string) {
				t.Helper()
				owned()
				var diff string
				l.UntilOr(when+" all is as before", func() (bool, error) {
					diff = cmp.Diff(strings.Split(before, "\n"), strings.Split(image(), "\n"))
					return diff == "", nil
				}, &diff)
				if running := l.Run("systemctl", "list-units", "--plain", "--no-legend", "--state=active,activating,failed", "ec2netd*"); running != "" {
					t.Errorf("%s there is of ec2netd\n%s", when, running)
				}
				if left := l.Run("sh", "-c", "ls -d /run/systemd/network/* /run/ec2netd 2>/dev/null || :"); left != "" {
					t.Errorf("%s there are\n%s", when, left)
				}
				if out := l.Fails("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"); !strings.Contains(out, "dbus-org.ec2netd1.service") {
					t.Errorf("%s D-Bus activation says %s", when, out)
				}
			}
			owned()
			before := image()
			l.Run("systemctl", "mask", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
			for _, file := range append(masksOfOld, "/etc/systemd/network/80-ec2.network") {
				l.Put(file, labtest.Masked)
			}
			checkHitless(l, "installing", func() { l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
			unchanged("after installing", before)
			l.Reboot()
			unchanged("after the boot", before)
			checkHitless(l, "upgrading", func() { l.Run("apt-get", "install", "--yes", "/root/2.deb") })
			unchanged("after the upgrade", before)
			takeOverAsAdvised(l)
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
func waitsForBoot(l *labtest.Lab, owner string) {
	l.T.Helper()
	const now = "To have it take over now: sudo ec2netctl takeover"
	says := "ec2netd is installed and configures the ENIs from the next boot on; until then " + owner + " does"
	for _, as := range []func(...string) string{l.Run, l.AsUser} {
		out := as("ec2netctl", "--no-pager", "doctor")
		if flat := strings.Join(strings.Fields(out), " "); !strings.Contains(flat, says+" → "+now+" 0 problems, 1 warning.") || strings.Contains(out, "systemctl") {
			l.T.Errorf("doctor says\n%s", out)
		}
	}
	if out := l.Fails("ec2netctl", "status"); !strings.HasSuffix(strings.TrimSpace(out), "ec2netctl: "+says+"\n"+now) {
		l.T.Errorf("status says\n%s", out)
	}
}

// enabledOwners is systemctl is-enabled of NetworkManager and networkd before the preset file
// is there.
func enabledOwners(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("sh", "-c", "systemctl is-enabled NetworkManager.service systemd-networkd.service || :")
}

// ownedByNetworkManager waits until NetworkManager has the primary ENI with its address.
func ownedByNetworkManager(l *labtest.Lab) {
	l.T.Helper()
	primary := l.Inst.Primary()
	var last string
	l.UntilOr("NetworkManager has "+primary.Name(), func() (bool, error) {
		last = l.Run("sh", "-c", "nmcli --terse --fields GENERAL.STATE,IP4.ADDRESS device show "+primary.Name()+" 2>&1 || :")
		return strings.Contains(last, "100 (connected)") && strings.Contains(last, primary.IPv4()[0].String()+"/"), nil
	}, &last)
	l.PingFrom(primary.IPv4()[0])
}

func networkManagerIsOff(l *labtest.Lab) {
	l.T.Helper()
	for _, unit := range []string{"NetworkManager.service", "NetworkManager-wait-online.service", "NetworkManager-dispatcher.service"} {
		if state := l.Run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
			l.T.Errorf("%s is %s", unit, state)
		}
	}
}
