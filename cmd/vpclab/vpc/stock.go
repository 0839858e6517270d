package vpc

import (
	"context"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
)

// Stock describes a distribution's image for EC2, in addition to the image of the lab: the software
// that configures the network there, as the distribution ships it.
type Stock struct {
	Name string
	// packages are unmodified packages of Debian.
	packages []string
	// units are enabled by their presets.
	units []string
	// files make the instance look like an EC2 instance for this software, by path.
	files map[string]string
	// drivers are files of the packages that contain the drivers of ENIs: a text in them, and its
	// replacement in the lab, where ENIs are veth links.
	drivers map[string][2]string
	// suites contains additions for single suites.
	suites map[string]stockSuite
}

type stockSuite struct {
	packages []string
	files    map[string]string
}

// Stocks are the stock images, see [InstanceOptions].Stock.
var Stocks = []Stock{
	// cloud-init writes netplan's YAML, and netplan writes networkd's units.
	{Name: "cloud-init-netplan", packages: []string{"cloud-init", "netplan.io"}, units: networkdUnits, files: netplanFiles()},
	// cloud-init writes networkd's units itself.
	{Name: "cloud-init-networkd", packages: []string{"cloud-init"}, units: networkdUnits, files: cloudInitFiles},
	// networking.service configures the primary ENI, which /etc/network/interfaces lists, and udev
	// configures ens6 when it is attached. sid no longer has dhclient, and its dhcpcd also requests
	// IPv6 addresses.
	{
		Name: "ifupdown", packages: []string{"ifupdown"}, units: []string{"systemd-resolved.service"}, files: deviceFiles,
		suites: map[string]stockSuite{
			"bookworm": {[]string{"isc-dhcp-client"}, map[string]string{"/etc/network/interfaces": interfaces("inet", "inet6")}},
			"trixie":   {[]string{"isc-dhcp-client"}, map[string]string{"/etc/network/interfaces": interfaces("inet", "inet6")}},
			"sid":      {[]string{"dhcpcd-base"}, map[string]string{"/etc/network/interfaces": interfaces("inet")}},
		},
	},
	// NetworkManager configures all ENIs, by a profile for each of their names: by default it
	// creates none for virtual links, such as veth links.
	{
		Name: "networkmanager", packages: []string{"network-manager"},
		units: []string{"NetworkManager.service", "NetworkManager-wait-online.service", "NetworkManager-dispatcher.service"},
		files: map[string]string{
			"/etc/udev/rules.d/85-nm-unmanaged.rules": "# Debian's keeps NetworkManager from veth links.\n",
			"/etc/NetworkManager/conf.d/vpclab.conf":  "[device-vpclab]\nmatch-device=driver:veth\nmanaged=1\n",
			profiles + "ens.nmconnection": "[connection]\nid=ens\nuuid=0e7a61d2-3f3f-4b5e-9a86-1a2b3c4d5e6f\ntype=ethernet\nmulti-connect=3\n" +
				"[match]\ninterface-name=ens*\n[ipv4]\nmethod=auto\n[ipv6]\nmethod=auto\n",
		},
	},
	// The package that ec2netd replaces, 2.3.0 in bookworm and 2.4.1 later.
	{
		Name: "amazon-ec2-net-utils", packages: []string{"amazon-ec2-net-utils"}, units: networkdUnits,
		drivers: map[string][2]string{
			"/usr/lib/systemd/network/80-ec2.network":          {"Driver=ena", "Driver=veth ena"},
			"/usr/lib/udev/rules.d/99-vpc-policy-routes.rules": {`=="vif|ena`, `=="veth|vif|ena`},
		},
	},
}

// profiles is the directory of NetworkManager's profiles, which it uses only if nobody else can read
// them.
const profiles = "/etc/NetworkManager/system-connections/"

// interfaces returns a configuration of ifupdown with DHCP for some families, see interfaces(5).
func interfaces(families ...string) string {
	var out strings.Builder
	out.WriteString("source /etc/network/interfaces.d/*\n\nauto lo\niface lo inet loopback\n")
	for _, link := range []struct{ how, name string }{{"auto", "ens5"}, {"allow-hotplug", "ens6"}} {
		fmt.Fprintf(&out, "\n%s %s\n", link.how, link.name)
		for _, family := range families {
			fmt.Fprintf(&out, "iface %s %s dhcp\n", link.name, family)
		}
	}
	return out.String()
}

// deviceFiles make devices known to systemd, which does not know them if it starts before udevd and
// /dev is not a devtmpfs. A unit that is bound to a device, such as ifup@.service, would otherwise
// wait in vain.
var deviceFiles = map[string]string{
	"/etc/systemd/system/vpclab-devices.service": `[Unit]
DefaultDependencies=no
After=systemd-udevd-control.socket
Before=systemd-udev-trigger.service
[Service]
Type=oneshot
ExecStart=systemctl daemon-reexec
`,
	"/etc/systemd/system/systemd-udev-trigger.service.d/vpclab.conf": "[Unit]\nWants=vpclab-devices.service\n",
}

var networkdUnits = []string{"systemd-networkd.service", "systemd-networkd-wait-online.service", "systemd-resolved.service"}

// stockNamed returns the stock image with a name.
func stockNamed(name string) (Stock, error) {
	var names []string
	for _, s := range Stocks {
		if s.Name == name {
			return s, nil
		}
		names = append(names, s.Name)
	}
	return Stock{}, fmt.Errorf("unknown stock image %q, want one of %s", name, strings.Join(names, ", "))
}

// cloudInitFiles make cloud-init treat the container as an EC2 instance. Unless the DMI strings are
// EC2's, cloud-init does not query the metadata service before the network is up, and in a container
// it trusts no DMI strings: it calls systemd-detect-virt and dmidecode, and finds these replacements
// first, and reads the environment of PID 1, which is hidden from it.
var cloudInitFiles = map[string]string{
	// As in Debian's image for EC2.
	"/etc/cloud/cloud.cfg.d/01_debian_cloud.cfg": "datasource_list: [Ec2]\n",
	"/usr/local/bin/systemd-detect-virt":         "#!/bin/sh\ncase \"$*\" in *-c*) exit 1 ;; *-q*) exit 0 ;; esac\necho amazon\n",
	"/usr/local/sbin/dmidecode": `#!/bin/sh
case "$*" in
*system-uuid | *system-serial-number) echo ec2e1916-9099-7caf-fd21-0123456789ab ;;
*system-manufacturer | *chassis-manufacturer) echo 'Amazon EC2' ;;
*system-product-name) echo m7i.large ;;
esac
`,
	"/usr/local/sbin/vpclab-machine": `#!/bin/sh
mount --bind /dev/null /proc/1/environ
# The DMI strings of the machine that the lab runs on.
dmi=/sys/devices/virtual/dmi/id
if [ -d $dmi ]; then mount -t tmpfs vpclab $dmi; fi
`,
	"/etc/systemd/system/vpclab-machine.service": `[Unit]
DefaultDependencies=no
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/usr/local/sbin/vpclab-machine
`,
	"/etc/systemd/system/cloud-init-local.service.d/vpclab.conf": machineFirst,
	"/etc/systemd/system/cloud-init-main.service.d/vpclab.conf":  machineFirst,
	// Its rule for hotplug matches the drivers of ENIs, which are veth links here.
	"/etc/udev/rules.d/81-vpclab.rules": `SUBSYSTEM=="net", ENV{ID_NET_DRIVER}=="veth", ENV{ID_NET_DRIVER}="ena"` + "\n",
}

// netplanFiles make netplan's files match the links of ENIs: netplan uses the permanent MAC address,
// which a veth link does not have.
func netplanFiles() map[string]string {
	files := maps.Clone(cloudInitFiles)
	for n := 5; n < 10; n++ {
		files[fmt.Sprintf("/etc/systemd/network/10-netplan-ens%d.network.d/vpclab.conf", n)] = "[Match]\nPermanentMACAddress=\n"
		files[fmt.Sprintf("/etc/systemd/network/10-netplan-ens%d.link.d/vpclab.conf", n)] = fmt.Sprintf("[Match]\nPermanentMACAddress=\nOriginalName=ens%d\n", n)
	}
	return files
}

const machineFirst = "[Unit]\nWants=vpclab-machine.service\nAfter=vpclab-machine.service\n"

// add adds a stock image to the options of an instance.
func (s *Stock) add(o *InstanceOptions) {
	suite := s.suites[o.Suite]
	o.Packages = slices.Concat(s.packages, suite.packages, o.Packages)
	files := make(map[string]string)
	for _, these := range []map[string]string{s.files, suite.files, o.Files} {
		maps.Copy(files, these)
	}
	o.Files = files
}

// prepare adds the files of a stock image to a root.
func (s *Stock) prepare(ctx context.Context, root string) error {
	for path, text := range s.files {
		mode := os.FileMode(0o644)
		switch {
		case strings.HasPrefix(text, "#!"):
			mode = 0o755
		case strings.HasPrefix(path, profiles):
			mode = 0o600
		}
		if err := os.Chmod(filepath.Join(root, path), mode); err != nil {
			return fmt.Errorf("setting the mode of %s: %w", path, err)
		}
	}
	for path, change := range s.drivers {
		text, err := os.ReadFile(filepath.Join(root, path))
		if err != nil {
			return fmt.Errorf("looking for the drivers of ENIs: %w", err)
		}
		if !strings.Contains(string(text), change[0]) {
			return fmt.Errorf("%s of the stock image %s has no %s", path, s.Name, change[0])
		}
		if err := WriteFile(root, path, strings.ReplaceAll(string(text), change[0], change[1])); err != nil {
			return err
		}
	}
	return ApplyPresets(ctx, root, s.units...)
}
