package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

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
				eachSuite(t, test)
			} else {
				oneSuite(t, test)
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
	file, primary := stockFile[stock], l.inst.Primary()
	l.onNetworkd(file)
	written := l.ofCloudInit()
	if !strings.Contains(written, primary.MAC().String()) {
		t.Fatalf("cloud-init has written nothing of %s:\n%s", primary.MAC(), written)
	}
	unchanged := func(when string) {
		t.Helper()
		l.hooked()
		if now := l.ofCloudInit(); now != written {
			t.Errorf("%s there is of cloud-init\n%s\nbefore:\n%s", when, now, written)
		}
	}

	l.hitless("installing", func() { l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb") })
	l.onNetworkd(file)
	l.waitsForBoot(map[string]string{
		"cloud-init-netplan":  "systemd-networkd by " + file + ", which netplan makes of what cloud-init wrote,",
		"cloud-init-networkd": "systemd-networkd by " + file + ", which cloud-init wrote,",
	}[stock])
	l.keepsCloudInit(false, "before the reboot")

	l.reboot()
	ready := func(when string, enis ...*vpc.ENI) {
		t.Helper()
		l.primaryWhole()
		for _, eni := range enis {
			l.complete(eni, eni.Name())
			l.checkKernel(eni)
		}
		if s := l.describe(); s.State != state.Configured || s.Reason != "" {
			t.Errorf("%s ec2netd is %s: %s", when, s.State, s.Reason)
		}
		if now := l.configured("ens5").NetworkFile; now != file {
			t.Errorf("%s networkd uses %s", when, now)
		}
		unchanged(when)
	}
	ready("after the reboot")
	if out := l.run("ec2netctl", "plan"); out != "Nothing would change." {
		t.Errorf("ec2netctl plan:\n%s", out)
	}

	var eni *vpc.ENI
	if cost := l.measured(primary, func() {
		eni = l.attach(vpc.ENISpec{IPv4Count: 3, IPv6Count: 2, PrefixV4Count: 1})
		l.configured(eni.ID())
		l.hooked()
	}); !cost.none() {
		t.Errorf("attaching an ENI cost the primary %s", cost)
	}
	ready("after the attachment", eni)
	for _, to := range []*vpc.ENI{primary, eni} {
		l.refreshed(func() error {
			if _, err := to.AssignIPv4(t.Context()); err != nil {
				return err
			}
			_, err := to.AssignIPv6(t.Context())
			return err
		})
	}
	ready("after the assignment", eni)
	for _, step := range []step{
		{"a restart", func() { l.networkdAgain("systemctl", "restart", "systemd-networkd.service") }},
		{"a reload", func() {
			// netplan's generator runs again, and networkd reads what that makes.
			l.run("systemctl", "daemon-reload")
			l.run("networkctl", "reload")
			l.run("ec2netctl", "refresh", "--wait")
		}},
	} {
		if cost := l.measured(primary, step.do); !cost.none() {
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
		l.refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		l.run("systemctl", "restart", "ec2netd.service")
		ready("after the withdrawal and a restart of ec2netd", eni)
	}
	gone := func(when string) {
		t.Helper()
		if slices.Contains(l.addresses("ens5"), withdrawn) {
			t.Errorf("%s, which EC2 has withdrawn, is there %s", withdrawn, when)
		}
	}
	gone("after a restart of ec2netd")
	l.reboot()
	ready("after the second reboot", eni)
	gone("after a reboot")
	l.detach(eni)
	l.gone(eni, 1)
	ready("after the detachment")

	l.keepsCloudInit(true, "while ec2netd runs")
	units := []string{"ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket"}
	l.run(append([]string{"systemctl", "mask", "--now"}, units...)...)
	l.keepsCloudInit(false, "where it is masked")
	l.run(append([]string{"systemctl", "unmask"}, units...)...)
	l.run(append([]string{"systemctl", "start"}, units...)...)
	l.keepsCloudInit(true, "where it runs again")
	l.run("systemctl", "stop", "ec2netd.socket", "ec2netd.service", "ec2netd-release.service")
	l.keepsCloudInit(true, "where it was stopped")

	l.run("apt-get", "remove", "--yes", "ec2netd")
	removed := func(when string) {
		t.Helper()
		l.onNetworkd(file)
		if left := l.run("sh", "-c", "find /run/systemd/network /etc/cloud /run/ec2netd -name '*ec2netd*' 2>/dev/null || :"); left != "" {
			t.Errorf("%s there are\n%s", when, left)
		}
	}
	removed("after the removal")
	l.reboot()
	removed("after the boot without it")
}

// cloudInitSnippet is what cloud-init reads of ec2netd's.
const cloudInitSnippet = "/etc/cloud/cloud.cfg.d/95-ec2netd.cfg"

// primaryWhole waits until the primary ENI is configured, with all its addresses, the first one
// first, and uses each.
func (l *lab) primaryWhole() {
	l.t.Helper()
	l.primaryThere()
	primary := l.inst.Primary()
	if first := l.addresses(primary.Name())[0]; first != primary.IPv4()[0] {
		l.t.Errorf("the first address of the primary is %s", first)
	}
}

// primaryThere is primaryWhole for addresses in any order.
func (l *lab) primaryThere() {
	l.t.Helper()
	primary := l.inst.Primary()
	l.configured(primary.ID())
	for _, a := range slices.Concat(primary.IPv4(), primary.IPv6()) {
		l.until(a.String()+" is there", func() (bool, error) { return slices.Contains(l.addresses(primary.Name()), a), nil })
		l.pingFrom(a)
	}
}

// keepsCloudInit checks whether cloud-init is kept from the network. What ends with the daemon takes
// a moment.
func (l *lab) keepsCloudInit(want bool, when string) {
	l.t.Helper()
	l.until(fmt.Sprintf("%s cloud-init is kept from the network: %v", when, want), func() (bool, error) {
		text, err := l.inst.Exec(l.t.Context(), "cat", cloudInitSnippet)
		return (err == nil && strings.Contains(text, "config: disabled")) == want, nil
	})
}

// ofCloudInit is what cloud-init has written of the network, and what netplan has made of it.
func (l *lab) ofCloudInit() string {
	l.t.Helper()
	return l.run("sh", "-c", "for f in /etc/netplan/* /run/netplan/* /etc/systemd/network/10-cloud-init-* /run/systemd/network/10-*; do "+
		`if [ -f "$f" ]; then echo "$f:"; cat "$f"; fi; done`)
}

// hooked waits until cloud-init has dealt with the ENIs that came: it does so one after the other.
func (l *lab) hooked() {
	l.t.Helper()
	var last string
	l.untilOr("cloud-init's hook for hotplug is done", func() (bool, error) {
		last = l.run("sh", "-c", "systemctl is-active cloud-init-hotplugd.service || :; udevadm settle")
		return !slices.Contains([]string{"active", "activating", "reloading"}, strings.TrimSpace(last)), nil
	}, &last)
	if failed := l.run("systemctl", "list-units", "--failed", "--plain", "--no-legend", "cloud-init-hotplugd.service"); failed != "" {
		l.t.Error(fmt.Sprint("cloud-init's hook for hotplug failed: ", failed))
	}
}

// TestLabNetplanForAll: netplan has a file for all links, as some images have it beside what
// cloud-init writes. ENIs are left out of that, and new ones too; what is no ENI is not.
func TestLabNetplanForAll(t *testing.T) { // F3, F8
	const all, yaml = "/run/systemd/network/10-netplan-all-en.network", "/etc/netplan/90-default.yaml"
	oneSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = "cloud-init-netplan"
			o.Files[yaml] = "network:\n  version: 2\n  ethernets:\n    all-en:\n      match: {name: en*}\n      dhcp4: true\n      dhcp6: true\n"
			o.Install = func(root string) error { return os.Chmod(filepath.Join(root, yaml), 0o600) }
		})
		l.onNetworkd(all)
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		l.reboot()
		primary := l.inst.Primary()
		l.primaryWhole()
		if file := l.configured("ens5").NetworkFile; file == all {
			t.Errorf("networkd uses %s", file)
		}
		l.run("ip", "link", "add", "enx0", "type", "bridge")
		l.until("networkd has a bridge by that file", func() (bool, error) {
			return strings.Contains(l.run("networkctl", "--no-pager", "status", "enx0"), all), nil
		})
		var eni *vpc.ENI
		if cost := l.measured(primary, func() {
			eni = l.attach(hotplugSpec())
			l.configured(eni.ID())
		}); !cost.none() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		l.settled(eni)
		l.detach(eni) // of two default routes that are equal either may be used
		l.gone(eni, 1)
		l.run("apt-get", "remove", "--yes", "ec2netd")
		l.onNetworkd(all)
	})
}

// TestLabKernelLine: systemd makes a unit of ip= on the kernel command line, which has the name of
// the ENI's own from 257 on.
func TestLabKernelLine(t *testing.T) { // F3, F8
	oneSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
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
		made := l.run("sh", "-c", "grep -l systemd-network-generator /run/systemd/network/*.network")
		if !strings.HasSuffix(made, "-ens5.network") {
			t.Fatalf("made of the command line: %s", made)
		}
		l.primaryWhole()
		eni := l.attach(hotplugSpec())
		l.settled(eni)
		if now := l.run("cat", made); !strings.Contains(now, "DHCP=ipv4") {
			t.Errorf("%s is %s", made, now)
		}
	})
}
