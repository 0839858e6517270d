package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/vpc"
)

// oldPackage stands in for amazon-ec2-net-utils 2.7: the names and the layout of its files,
// and what it generates, NN-ens5.network with drop-ins; NN is 07 on Debian, else 70. The
// addresses to add are in /root/aliases instead of the metadata.
func oldPackage() map[string]string {
	return map[string]string{
		"/DEBIAN/control": "Package: amazon-ec2-net-utils\nVersion: 2.7.4-1\nArchitecture: all\n" +
			"Maintainer: Nobody <nobody@ec2netd.example>\nDescription: stands in for the old package\n",
		"/usr/bin/setup-policy-routes": "#!/bin/sh\nset -e\n. /usr/share/amazon-ec2-net-utils/lib.sh\nsetup_interface \"$1\"\n",
		"/usr/share/amazon-ec2-net-utils/lib.sh": `setup_interface() {
	unit=/run/systemd/network/NN-$1.network
	mkdir -p "$unit.d"
	[ -e "$unit" ] || ln -s /usr/lib/systemd/network/80-ec2.network "$unit"
	printf '[Match]\nDriver=veth\nMACAddress=%s\n[Network]\nDHCP=yes\n[DHCPv4]\nRouteMetric=512\n' "$(cat "/sys/class/net/$1/address")" >"$unit.d/eni.conf"
	: >"$unit.d/ec2net_alias.conf"
	cat >"$unit.d/ec2net_policy_4.conf" <<-end
		[Route]
		Gateway=_dhcp4
		Table=10007
		[Route]
		Gateway=_ipv6ra
		Table=10007
		[RoutingPolicyRule]
		From=2001:db8:0:101:7::/80
		Priority=10007
		Table=10007
	end
	while read -r address; do
		printf '[Address]\nAddress=%s/32\nAddPrefixRoute=false\n' "$address" >>"$unit.d/ec2net_alias.conf"
		printf '[RoutingPolicyRule]\nFrom=%s\nPriority=10007\nTable=10007\n' "$address" >>"$unit.d/ec2net_policy_4.conf"
	done </root/aliases
	networkctl reload
}
`,
		"/usr/lib/systemd/network/80-ec2.network": "[Match]\nDriver=ena ixgbevf vif\n[Network]\nDHCP=yes\n",
		"/usr/lib/systemd/system/policy-routes@.service": "[Service]\nType=oneshot\nRemainAfterExit=yes\n" +
			"ExecStart=/usr/bin/setup-policy-routes %i start\n",
		"/usr/lib/systemd/system/refresh-policy-routes@.service": "[Service]\nType=oneshot\n" +
			"ExecStart=/usr/bin/setup-policy-routes %i refresh\n",
		"/usr/lib/systemd/system/refresh-policy-routes@.timer": "[Timer]\nOnActiveSec=30\nOnUnitInactiveSec=60\n" +
			"[Install]\nWantedBy=timers.target\n",
		"/usr/lib/udev/rules.d/99-vpc-policy-routes.rules": `SUBSYSTEM=="net", ACTION=="add", ENV{ID_NET_DRIVER}=="vif|ena|ixgbevf", ` +
			`RUN+="/usr/bin/systemctl enable --now --no-block policy-routes@$name.service refresh-policy-routes@$name.timer"` + "\n",
	}
}

// oldTree is where the stand-in is in a root, unpacked.
const oldTree = "/root/old"

// unpackOld puts the stand-in below oldTree of a root.
func unpackOld(root, number string) error {
	for file, text := range oldPackage() {
		if err := vpc.WriteFile(root, path.Join(oldTree, file), strings.ReplaceAll(text, "NN", number)); err != nil {
			return err
		}
	}
	return os.Chmod(filepath.Join(root, oldTree, "usr/bin/setup-policy-routes"), 0o755)
}

// installOldRPM makes an rpm of the stand-in, with a name, and installs it.
func installOldRPM(t testing.TB, root, name string) error {
	t.Helper()
	if err := unpackOld(root, "70"); err != nil {
		return err
	}
	var files strings.Builder
	files.WriteString("%dir /usr/share/amazon-ec2-net-utils\n")
	for file := range oldPackage() {
		if file != "/DEBIAN/control" {
			fmt.Fprintln(&files, file)
		}
	}
	return installRPM(t, root, "Name: "+name+"\nVersion: 2.7.4\n%description\n%install\nmkdir -p %{buildroot} && cp -a "+oldTree+"/usr %{buildroot}\n%files\n"+files.String())
}

// systemRPM stands in for what ec2netd needs: rpm and dnf know nothing of Debian's packages.
const systemRPM = "Name: debian\nVersion: 1\nProvides: systemd = 252, systemd-networkd, systemd-udev, dbus, /bin/sh\n%description\n%files\n"

// installRPM makes an rpm of a spec that has the rest, and installs it.
func installRPM(t testing.TB, root, spec string) error {
	t.Helper()
	if err := vpc.WriteFile(root, "/root/a.spec", "Summary: Stands in\nLicense: Apache-2.0\nRelease: 1\nBuildArch: noarch\n"+spec); err != nil {
		return err
	}
	for _, argv := range [][]string{
		{"rpmbuild", "-bb", "--quiet", "--define", "_topdir /root/rpmbuild", "--define", "debug_package %{nil}", "/root/a.spec"},
		{"sh", "-c", "rpm --install --nodeps /root/rpmbuild/RPMS/noarch/*.rpm && rm -r /root/rpmbuild"},
	} {
		if out, err := inRoot(t, root, argv...); err != nil {
			return fmt.Errorf("the rpm of\n%s: %w\n%s", spec, err, out)
		}
	}
	return nil
}

// masksOfOld are the masks that images for Kubernetes have against the old package.
var masksOfOld = []string{
	"/etc/systemd/system/policy-routes@.service", "/etc/systemd/system/refresh-policy-routes@.service",
	"/etc/systemd/system/refresh-policy-routes@.timer", "/etc/udev/rules.d/99-vpc-policy-routes.rules",
}

// oldRuns has the stand-in do what its udev rule does for an ENI, whose driver is another
// here, and waits until the ENI has all its addresses.
func (l *lab) oldRuns(number string) {
	l.t.Helper()
	var aliases strings.Builder
	for _, a := range l.inst.Primary().IPv4()[1:] {
		fmt.Fprintln(&aliases, a)
	}
	l.put("/root/aliases", aliases.String())
	l.put("/etc/systemd/network/70-ens5.network.d/mine.conf", "[Link]\nMTUBytes=1400\n")
	l.run("systemctl", "enable", "--now", "policy-routes@ens5.service", "refresh-policy-routes@ens5.timer")
	l.onNetworkd(number + "-ens5.network")
	l.everyAddress()
	l.policyOfOldWorks()
	left := l.leftOfOld()
	for what, have := range map[string]string{"timer": "refresh-policy-routes@ens5.timer", "link": "timers.target.wants/", "program": "setup-policy-routes"} {
		if !strings.Contains(left, have) {
			l.t.Fatalf("the old package has no %s:\n%s", what, left)
		}
	}
	if generated := l.generatedByOld(); !strings.Contains(generated, number+"-ens5.network.d/ec2net_policy_4.conf") {
		l.t.Fatalf("the old package generated %q", generated)
	}
}

// everyAddress waits until the primary ENI has all its IPv4 addresses, and uses each.
func (l *lab) everyAddress() {
	l.t.Helper()
	for _, a := range l.inst.Primary().IPv4() {
		l.until(a.String()+" is there", func() (bool, error) { return slices.Contains(l.addresses("ens5"), a), nil })
		l.pingFrom(a)
	}
}

// leftOfOld are units, timers and files of the old package; masks are no files of it.
func (l *lab) leftOfOld() string {
	l.t.Helper()
	return l.run("sh", "-c", "systemctl list-units --all --plain --no-legend '*policy-routes@*'; systemctl list-timers --all --no-legend '*policy-routes@*'; "+
		"find /etc/systemd/system /usr/lib/systemd /usr/lib/udev -name '*policy-routes*' ! -lname /dev/null; ls -d /usr/bin/setup-policy-routes /usr/share/amazon-ec2-net-utils 2>/dev/null || :")
}

func (l *lab) generatedByOld() string {
	l.t.Helper()
	return l.run("sh", "-c", "find /run/systemd/network -name '07-*' -o -name eni.conf -o -name 'ec2net_*' | sort")
}

// policyOfOld are the policy rules of the old package, and the routes of its table.
func (l *lab) policyOfOld() ([]string, []route) {
	l.t.Helper()
	return l.rules(10007), slices.Concat(l.routes("-4", "10007"), l.routes("-6", "10007"))
}

// policyOfOldWorks waits until they are there, for IPv4 and IPv6.
func (l *lab) policyOfOldWorks() {
	l.t.Helper()
	var last string
	l.untilOr("the old package's rules and routes are there", func() (bool, error) {
		rules, routes := l.policyOfOld()
		last = fmt.Sprint(rules, routes)
		routes = slices.DeleteFunc(routes, func(r route) bool { return r.Dst != "default" })
		return len(rules) == 2 && len(routes) == 2, nil
	}, &last)
}

// replacesOld checks that nothing of the old package is left, and that the admin's drop-in
// applies.
func (l *lab) replacesOld(when string) {
	l.t.Helper()
	l.configured("ens5")
	l.onNetworkd("70-ens5.network")
	l.everyAddress()
	if out := l.leftOfOld() + l.generatedByOld(); out != "" {
		l.t.Errorf("%s there is of the old package:\n%s", when, out)
	}
	if rules, routes := l.policyOfOld(); len(rules)+len(routes) > 0 {
		l.t.Errorf("%s there are its rules %v and routes %v", when, rules, routes)
	}
	l.until(when+" the drop-in applies", func() (bool, error) { return l.run("cat", "/sys/class/net/ens5/mtu") == "1400", nil })
	if failed := l.run("systemctl", "--failed", "--plain", "--no-legend"); strings.Contains(failed, "policy-routes") {
		l.t.Errorf("%s failed: %s", when, failed)
	}
}

// TestLabOldPackage: the deb is installed over amazon-ec2-net-utils that runs, which costs
// no packet; a takeover that fails gives back what was there, and one that does not leaves
// nothing of it. [TestLabRPM] has the boot without a takeover.
func TestLabOldPackage(t *testing.T) { // I4
	eachSuite(t, func(t *testing.T, suite string) {
		number := "70"
		if suite == "trixie" {
			number = "07"
		}
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Primary.IPv4Count = 2
			o.Install = func(root string) error {
				if err := unpackOld(root, number); err != nil {
					return err
				}
				for _, argv := range [][]string{
					{"dpkg-deb", "--build", "--root-owner-group", oldTree, "/root/old.deb"},
					{"dpkg", "--install", "/root/old.deb"},
					{"systemctl", "enable", "systemd-networkd.service", "systemd-resolved.service"},
				} {
					if _, err := inRoot(t, root, argv...); err != nil {
						return fmt.Errorf("the old package: %w", err)
					}
				}
				return nil
			}
		})
		l.onNetworkd("80-ec2.network")
		l.oldRuns(number)
		l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
		if out := l.leftOfOld(); out != "" {
			t.Errorf("after installing there is of the old package:\n%s", out)
		}
		if out, err := l.inst.Exec(t.Context(), "dpkg-query", "--show", "--showformat=${db:Status-Status}", "amazon-ec2-net-utils"); err == nil && out == "installed" {
			t.Errorf("the old package is %s", out)
		}
		everything := func() string {
			return l.run("sh", "-c", "cd /run/systemd/network && find . ! -type d -printf '%p %l\n' | sort && grep -r . . | sort")
		}
		before := everything()
		if !strings.Contains(before, number+"-ens5.network.d/ec2net_policy_4.conf") {
			t.Errorf("what the old package generated is gone:\n%s", before)
		}
		l.everyAddress()

		// The lease would be lost, and an ENI without is not configured.
		l.put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
		if out := l.fails("ec2netctl", "takeover", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		if now := everything(); now != before {
			t.Errorf("after a takeover that failed there are in /run/systemd/network\n%s\nbefore:\n%s", now, before)
		}
		l.run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
		l.run("networkctl", "reload")
		l.onNetworkd(number + "-ens5.network")
		l.everyAddress()
		l.policyOfOldWorks()

		l.run("ec2netctl", "takeover")
		l.replacesOld("after the takeover")
		l.asAfterBoot("ens5")
	})
}
