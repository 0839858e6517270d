package main

import (
	"fmt"
	"os"
	"path"
	"path/filepath"
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
	: >"$unit.d/ec2net_policy_4.conf"
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

// TestLabOldPackage: the deb is installed over amazon-ec2-net-utils that runs, which costs
// no packet; a takeover, and then a boot, leave nothing of it. The masks that images for
// Kubernetes have against it do no harm.
func TestLabOldPackage(t *testing.T) { // I3
	eachSuite(t, func(t *testing.T, suite string) {
		number := "70"
		if suite == "trixie" {
			number = "07"
		}
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Primary.IPv4Count = 2
			o.Install = func(root string) error {
				const tree = "/root/old"
				for file, text := range oldPackage() {
					text = strings.ReplaceAll(text, "NN", number)
					if err := vpc.WriteFile(root, path.Join(tree, file), text); err != nil {
						return err
					}
				}
				if err := os.Chmod(filepath.Join(root, tree, "usr/bin/setup-policy-routes"), 0o755); err != nil {
					return err
				}
				for _, argv := range [][]string{
					{"dpkg-deb", "--build", "--root-owner-group", tree, "/root/old.deb"},
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
		primary := l.inst.Primary()
		l.onNetworkd("80-ec2.network")
		// What its udev rule does for an ENI; the lab's have another driver.
		var aliases strings.Builder
		for _, a := range primary.IPv4()[1:] {
			fmt.Fprintln(&aliases, a)
		}
		l.put("/root/aliases", aliases.String())
		l.put("/etc/systemd/network/70-ens5.network.d/mine.conf", "[Link]\nMTUBytes=1400\n")
		l.run("systemctl", "enable", "--now", "policy-routes@ens5.service", "refresh-policy-routes@ens5.timer")
		l.onNetworkd(number + "-ens5.network")
		everything := func() {
			t.Helper()
			for _, a := range primary.IPv4() {
				l.until(a.String()+" answers", func() (bool, error) { return strings.Contains(fmt.Sprint(l.addresses("ens5")), a.String()), nil })
				l.pingFrom(a)
			}
		}
		everything()
		left := func() string {
			return l.run("sh", "-c", "systemctl list-units --all --plain --no-legend '*policy-routes@*'; systemctl list-timers --all --no-legend '*policy-routes@*'; "+
				"find /etc/systemd/system /usr/lib/systemd /usr/lib/udev -name '*policy-routes*' ! -lname /dev/null; ls -d /usr/bin/setup-policy-routes /usr/share/amazon-ec2-net-utils 2>/dev/null || :")
		}
		generated := func() string {
			return l.run("sh", "-c", "find /run/systemd/network -name '07-*' -o -name eni.conf -o -name 'ec2net_*'")
		}
		for what, have := range map[string]string{"timer": "refresh-policy-routes@ens5.timer", "link": "timers.target.wants/", "program": "setup-policy-routes"} {
			if out := left(); !strings.Contains(out, have) {
				t.Fatalf("the old package has no %s:\n%s", what, out)
			}
		}
		before := generated()
		if !strings.Contains(before, number+"-ens5.network.d/ec2net_policy_4.conf") {
			t.Fatalf("the old package generated %q", before)
		}

		l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
		if out := left(); out != "" {
			t.Errorf("after installing there is of the old package:\n%s", out)
		}
		if out, err := l.inst.Exec(t.Context(), "dpkg-query", "--show", "--showformat=${db:Status-Status}", "amazon-ec2-net-utils"); err == nil && out == "installed" {
			t.Errorf("the old package is %s", out)
		}
		if now := generated(); now != before {
			t.Errorf("what it generated is\n%s\nbefore:\n%s", now, before)
		}
		everything()

		check := func(when string) {
			t.Helper()
			l.configured("ens5")
			l.onNetworkd("70-ens5.network")
			everything()
			if out := left() + generated(); out != "" {
				t.Errorf("%s there is of the old package:\n%s", when, out)
			}
			if rules := l.rules(10007); len(rules) > 0 {
				t.Errorf("%s there are its rules: %v", when, rules)
			}
			l.until(when+" the drop-in applies", func() (bool, error) { return l.run("cat", "/sys/class/net/ens5/mtu") == "1400", nil })
		}
		l.run("ec2netctl", "takeover")
		check("after the takeover")
		for _, file := range []string{"/etc/systemd/system/policy-routes@.service", "/etc/systemd/system/refresh-policy-routes@.timer", "/etc/udev/rules.d/99-vpc-policy-routes.rules"} {
			l.put(file, masked)
		}
		l.hitless("with masks", func() {
			l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/2.deb")
			l.configured("ens5")
		})
		l.reboot()
		check("after the boot")
		if failed := l.run("systemctl", "--failed", "--plain", "--no-legend"); strings.Contains(failed, "policy-routes") {
			t.Errorf("failed: %s", failed)
		}
	})
}
