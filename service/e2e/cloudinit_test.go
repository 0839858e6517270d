package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// stockFile is the .network file of the primary ENI on a stock image.
var stockFile = map[string]string{
	"cloud-init-netplan":  "/run/systemd/network/10-netplan-ens5.network",
	"cloud-init-networkd": "/etc/systemd/network/10-cloud-init-ens5.network",
}

// TestLabCloudInit: on images that cloud-init configures, with netplan and by itself, ec2netd is
// installed as install.md says. After one reboot each ENI is configured, with the files that
// cloud-init had written, and cloud-init does nothing more: neither when ENIs are attached nor in
// the next boot. Removed, the image is what it was.
func TestLabCloudInit(t *testing.T) { // F3, F8, F9, I2
	t.Parallel()
	for _, stock := range []string{"cloud-init-netplan", "cloud-init-networkd"} {
		t.Run(stock, func(t *testing.T) {
			test := func(t *testing.T, suite string) { cloudInit(t, suite, stock) }
			if stock == "cloud-init-netplan" {
				labtest.EachSuite(t, test)
			} else {
				labtest.OneSuite(t, test)
			}
		})
	}
}

func cloudInit(t *testing.T, suite, stock string) {
	l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
		o.Packages = nil
		o.Stock = stock
		if suite != "bookworm" {
			o.Primary.IPv4Count = 2 // see TestLabTakeoverCloudInit
		}
	})
	file, primary := stockFile[stock], l.Inst.Primary()
	onNetworkd(l, file)
	written := ofCloudInit(l)
	if !strings.Contains(written, primary.MAC().String()) {
		t.Fatalf("cloud-init has written nothing of %s:\n%s", primary.MAC(), written)
	}
	unchanged := func(when string) {
		t.Helper()
		awaitCloudInit(l)
		if now := ofCloudInit(l); now != written {
			t.Errorf("%s there is of cloud-init\n%s\nbefore:\n%s", when, now, written)
		}
	}

	checkHitless(l, "installing", func() { l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
	onNetworkd(l, file)
	waitsForBoot(l, map[string]string{
		"cloud-init-netplan":  "systemd-networkd by " + file + ", which netplan makes of what cloud-init wrote,",
		"cloud-init-networkd": "systemd-networkd by " + file + ", which cloud-init wrote,",
	}[stock])
	keepsCloudInit(l, false, "before the reboot")

	l.Reboot()
	ready := func(when string, enis ...*vpc.ENI) {
		t.Helper()
		primaryWhole(l)
		for _, eni := range enis {
			l.AwaitComplete(eni, eni.Name())
			l.CheckKernel(eni)
		}
		if s := l.Describe(); s.State != state.Configured || s.Reason != "" {
			t.Errorf("%s ec2netd is %s: %s", when, s.State, s.Reason)
		}
		if now := l.AwaitConfigured("ens5").NetworkFile; now != file {
			t.Errorf("%s networkd uses %s", when, now)
		}
		unchanged(when)
	}
	ready("after the reboot")
	if out := l.Run("ec2netctl", "plan"); out != "Nothing would change." {
		t.Errorf("ec2netctl plan:\n%s", out)
	}

	var eni *vpc.ENI
	if cost := l.Measured(primary, func() {
		eni = l.Attach(vpc.ENISpec{IPv4Count: 3, IPv6Count: 2, PrefixV4Count: 1})
		l.AwaitConfigured(eni.ID())
		awaitCloudInit(l)
	}); !cost.None() {
		t.Errorf("attaching an ENI cost the primary %s", cost)
	}
	ready("after the attachment", eni)
	for _, to := range []*vpc.ENI{primary, eni} {
		l.Refreshed(func() error {
			if _, err := to.AssignIPv4(t.Context()); err != nil {
				return err
			}
			_, err := to.AssignIPv6(t.Context())
			return err
		})
	}
	ready("after the assignment", eni)
	for _, step := range []step{
		{"a restart", func() { l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service") }},
		{"a reload", func() {
			// netplan's generator runs again, and networkd reads what that makes.
			l.Run("systemctl", "daemon-reload")
			l.Run("networkctl", "reload")
			l.Run("ec2netctl", "refresh", "--wait")
		}},
	} {
		if cost := l.Measured(primary, step.do); !cost.None() {
			t.Errorf("%s of networkd cost the primary %s", step.name, cost)
		}
		ready("after "+step.name+" of networkd", eni)
	}

	withdrawn := netip.Addr{}
	if suite != "bookworm" {
		withdrawn = primary.IPv4()[1]
		if !strings.Contains(written, withdrawn.String()+"/") {
			t.Fatalf("cloud-init has written nothing of %s:\n%s", withdrawn, written)
		}
		l.Refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		l.Run("systemctl", "restart", "ec2netd.service")
		ready("after the withdrawal and a restart of ec2netd", eni)
	}
	gone := func(when string) {
		t.Helper()
		if l.HasAddress("ens5", withdrawn) {
			t.Errorf("%s, which EC2 has withdrawn, is there %s", withdrawn, when)
		}
	}
	gone("after a restart of ec2netd")
	l.Reboot()
	ready("after the second reboot", eni)
	gone("after a reboot")
	l.Detach(eni)
	l.AwaitGone(eni, 1)
	ready("after the detachment")

	keepsCloudInit(l, true, "while ec2netd runs")
	units := []string{"ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket"}
	l.Run(append([]string{"systemctl", "mask", "--now"}, units...)...)
	keepsCloudInit(l, false, "where it is masked")
	l.Run(append([]string{"systemctl", "unmask"}, units...)...)
	l.Run(append([]string{"systemctl", "start"}, units...)...)
	keepsCloudInit(l, true, "where it runs again")
	l.Run("systemctl", "stop", "ec2netd.socket", "ec2netd.service", "ec2netd-release.service")
	keepsCloudInit(l, true, "where it was stopped")

	l.Run("apt-get", "remove", "--yes", "ec2netd")
	removed := func(when string) {
		t.Helper()
		onNetworkd(l, file)
		if left := l.Run("sh", "-c", "find /run/systemd/network /etc/cloud /run/ec2netd -name '*ec2netd*' 2>/dev/null || :"); left != "" {
			t.Errorf("%s there are\n%s", when, left)
		}
	}
	removed("after the removal")
	l.Reboot()
	removed("after the boot without it")
}

// cloudInitSnippet is what cloud-init reads of ec2netd's.
const cloudInitSnippet = "/etc/cloud/cloud.cfg.d/95-ec2netd.cfg"

// primaryWhole waits until the primary ENI is configured, with all its addresses, the first one
// first, and uses each.
func primaryWhole(l *labtest.Lab) {
	l.T.Helper()
	primaryThere(l)
	primary := l.Inst.Primary()
	if first := l.Addresses(primary.Name())[0]; first != primary.IPv4()[0] {
		l.T.Errorf("the first address of the primary is %s", first)
	}
}

// primaryThere is primaryWhole for addresses in any order.
func primaryThere(l *labtest.Lab) {
	l.T.Helper()
	primary := l.Inst.Primary()
	l.AwaitConfigured(primary.ID())
	for _, a := range slices.Concat(primary.IPv4(), primary.IPv6()) {
		l.AwaitAddress(primary.Name(), a)
		l.PingFrom(a)
	}
}

// keepsCloudInit checks whether cloud-init is kept from the network. What ends with the daemon takes
// a moment.
func keepsCloudInit(l *labtest.Lab, want bool, when string) {
	l.T.Helper()
	l.Until(fmt.Sprintf("%s cloud-init is kept from the network: %v", when, want), func() (bool, error) {
		text, err := l.Inst.Exec(l.T.Context(), "cat", cloudInitSnippet)
		return (err == nil && strings.Contains(text, "config: disabled")) == want, nil
	})
}

// ofCloudInit is what cloud-init has written of the network, and what netplan has made of it.
func ofCloudInit(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("sh", "-c", "for f in /etc/netplan/* /run/netplan/* /etc/systemd/network/10-cloud-init-* /run/systemd/network/10-*; do "+
		`if [ -f "$f" ]; then echo "$f:"; cat "$f"; fi; done`)
}

// awaitCloudInit waits until cloud-init has dealt with the ENIs that came: it does so one after the other.
func awaitCloudInit(l *labtest.Lab) {
	l.T.Helper()
	var last string
	l.UntilOr("cloud-init's hook for hotplug is done", func() (bool, error) {
		last = l.Run("sh", "-c", "systemctl is-active cloud-init-hotplugd.service || :; udevadm settle")
		return !slices.Contains([]string{"active", "activating", "reloading"}, strings.TrimSpace(last)), nil
	}, &last)
	if failed := l.Run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "cloud-init-hotplugd.service"); failed != "" {
		l.T.Error(fmt.Sprint("cloud-init's hook for hotplug failed: ", failed))
	}
}

// TestLabNetplanForAll: netplan has a file for all links, as some images have it beside what
// cloud-init writes. ENIs are left out of that, and new ones too; what is no ENI is not.
func TestLabNetplanForAll(t *testing.T) { // F3, F8
	const all, yaml = "/run/systemd/network/10-netplan-all-en.network", "/etc/netplan/90-default.yaml"
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = "cloud-init-netplan"
			o.Files[yaml] = "network:\n  version: 2\n  ethernets:\n    all-en:\n      match: {name: en*}\n      dhcp4: true\n      dhcp6: true\n"
			o.Install = func(root string) error { return os.Chmod(filepath.Join(root, yaml), 0o600) }
		})
		onNetworkd(l, all)
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		l.Reboot()
		primary := l.Inst.Primary()
		primaryWhole(l)
		if file := l.AwaitConfigured("ens5").NetworkFile; file == all {
			t.Errorf("networkd uses %s", file)
		}
		l.Run("ip", "link", "add", "enx0", "type", "bridge")
		l.Until("networkd has a bridge by that file", func() (bool, error) {
			return strings.Contains(l.Run("networkctl", "--no-pager", "status", "enx0"), all), nil
		})
		var eni *vpc.ENI
		if cost := l.Measured(primary, func() {
			eni = l.Attach(labtest.HotplugSpec())
			l.AwaitConfigured(eni.ID())
		}); !cost.None() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		l.AwaitSettled(eni)
		l.Detach(eni) // of two default routes that are equal either may be used
		l.AwaitGone(eni, 1)
		l.Run("apt-get", "remove", "--yes", "ec2netd")
		onNetworkd(l, all)
	})
}

// TestLabKernelLine: systemd makes a unit of ip= on the kernel command line, which has the name of
// the ENI's own from 257 on.
func TestLabKernelLine(t *testing.T) { // F3, F8
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			// A container's is the command line of its systemd.
			o.Files["/etc/systemd/system/systemd-network-generator.service.d/line.conf"] = "[Service]\nEnvironment=SYSTEMD_PROC_CMDLINE=ip=ens5:dhcp\n"
			install := o.Install
			o.Install = func(root string) error {
				if err := install(root); err != nil {
					return err
				}
				_, err := inRoot(t, root, "systemctl", "enable", "systemd-network-generator.service")
				return err
			}
		})
		made := l.Run("sh", "-c", "grep -l systemd-network-generator /run/systemd/network/*.network")
		if !strings.HasSuffix(made, "-ens5.network") {
			t.Fatalf("made of the command line: %s", made)
		}
		primaryWhole(l)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitSettled(eni)
		if now := l.Run("cat", made); !strings.Contains(now, "DHCP=ipv4") {
			t.Errorf("%s is %s", made, now)
		}
	})
}
