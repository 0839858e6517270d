package conflict_test

import (
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/conflict"
)

// put writes files below a root; "-> " creates a symlink.
func put(t *testing.T, root string, files map[string]string) {
	t.Helper()
	for file, content := range files {
		p := filepath.Join(root, file)
		if err := os.MkdirAll(filepath.Dir(p), 0o755); err != nil {
			t.Fatal(err)
		}
		target, isLink := strings.CutPrefix(content, "-> ")
		var err error
		if isLink {
			err = os.Symlink(target, p)
		} else {
			err = os.WriteFile(p, []byte(content), 0o600)
		}
		if err != nil {
			t.Fatal(err)
		}
	}
}

// F5, I2: between the installation and the next boot the tools say which software configures the
// ENIs.
func TestWaiting(t *testing.T) {
	const wants = "/etc/systemd/system/multi-user.target.wants/"
	installed := map[string]string{wants + "systemd-networkd.service": "", wants + "ec2netd.service": ""}
	const netplan = "/run/systemd/network/10-netplan-ens5.network"
	for name, c := range map[string]struct {
		files map[string]string
		not   string // files of an installation that are missing
		file  string
		want  string
	}{
		"nobody":               {want: "nobody that ec2netd knows"},
		"it has been started":  {files: map[string]string{"/run/ec2netd/x": ""}},
		"it is not enabled":    {not: wants + "ec2netd.service"},
		"networkd is not":      {not: wants + "systemd-networkd.service"},
		"it is masked":         {files: map[string]string{"/etc/systemd/system/ec2netd.service": "-> /dev/null"}},
		"NetworkManager stays": {files: map[string]string{wants + "NetworkManager.service": "", "/run/NetworkManager/devices/2": "managed=true\n"}},
		"NetworkManager":       {files: map[string]string{"/run/NetworkManager/devices/2": "[device]\nmanaged=true\n"}, want: "NetworkManager"},
		"a NetworkManager that leaves it alone": {
			files: map[string]string{"/run/NetworkManager/devices/2": "[device]\nmanaged=false\n"}, file: "/etc/systemd/network/x.network",
			want: "systemd-networkd by /etc/systemd/network/x.network",
		},
		"ifupdown stays": {files: map[string]string{
			wants + "networking.service": "", "/etc/network/interfaces": "auto ens5\n", "/run/network/ifstate": "ens5=ens5\n",
		}},
		"ifupdown stays for other links": {files: map[string]string{
			wants + "networking.service": "", "/etc/network/interfaces": "auto br0\n",
		}, want: "nobody that ec2netd knows"},
		"ifupdown":   {files: map[string]string{"/run/network/ifstate": "lo=lo\nens5=ens5\n"}, want: "ifupdown (networking.service)"},
		"netplan":    {file: netplan, want: "systemd-networkd by " + netplan + ", which netplan makes,"},
		"cloud-init": {file: "/etc/systemd/network/10-cloud-init-ens5.network", want: "systemd-networkd by /etc/systemd/network/10-cloud-init-ens5.network, which cloud-init wrote,"},
		"cloud-init with netplan": {
			files: map[string]string{"/etc/netplan/50-cloud-init.yaml": ""}, file: netplan,
			want: "systemd-networkd by " + netplan + ", which netplan makes of what cloud-init wrote,",
		},
		"the old package": {
			files: map[string]string{"/run/systemd/network/70-ens5.network.d/eni.conf": ""}, file: "/run/systemd/network/70-ens5.network",
			want: "systemd-networkd by /run/systemd/network/70-ens5.network, which amazon-ec2-net-utils wrote,",
		},
	} {
		root := t.TempDir()
		present := maps.Clone(installed)
		maps.Copy(present, c.files)
		delete(present, c.not)
		put(t, root, present)
		looker := &conflict.Looker{Root: root}
		links := []conflict.Link{{Index: 2, Name: "ens5", MAC: "02:00:00:00:00:0a"}}
		if got := looker.Waiting(links, func(int) string { return c.file }); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}

// F8: links that networking.service has configured and that nothing will configure after the
// presets have disabled it. ENIs, the loopback link, and links that udev or somebody by hand has
// configured are excluded.
func TestLeftByIfupdown(t *testing.T) {
	const interfaces = "/etc/network/interfaces"
	const wants = "/etc/systemd/system/multi-user.target.wants/networking.service"
	const raised = "lo=lo\nens5=ens5\nbr0=br0\neth1=work\neth2=eth2\neth3=eth3\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  []string
	}{
		"nothing":         {nil, nil},
		"ENIs":            {map[string]string{"/run/network/ifstate": "lo=lo\nens5=ens5\n", interfaces: "auto lo ens5\n"}, nil},
		"others":          {map[string]string{"/run/network/ifstate": raised, interfaces: "auto lo\nauto ens5 br0\nallow-auto eth1\nallow-hotplug eth2\n"}, []string{"br0", "eth1"}},
		"in another file": {map[string]string{"/run/network/ifstate": raised, interfaces + ".d/br0": "auto br0\n"}, []string{"br0"}},
		"a pattern":       {map[string]string{"/run/network/ifstate": raised, interfaces: "auto /eth*\nallow-hotplug eth2\n"}, []string{"eth1", "eth3"}},
		"not configured":  {map[string]string{"/run/network/ifstate": "lo=lo\n", interfaces: "auto br0\n"}, nil},
		"it stays":        {map[string]string{"/run/network/ifstate": raised, interfaces: "auto br0\n", wants: ""}, nil},
		"it is masked": {map[string]string{
			"/run/network/ifstate": raised, interfaces: "auto br0\n", wants: "", "/etc/systemd/system/networking.service": "-> /dev/null",
		}, []string{"br0"}},
	} {
		root := t.TempDir()
		put(t, root, c.files)
		looker := &conflict.Looker{Root: root}
		if got := looker.LeftByIfupdown([]conflict.Link{{Index: 2, Name: "ens5"}}); !slices.Equal(got, c.want) {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
