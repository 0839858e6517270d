package conflict_test

import (
	"os"
	"path/filepath"
	"strings"
	"testing"

	"ec2netd/service/conflict"
)

// F5, I2: between the installation and the next boot it is said who has the ENIs.
func TestWaiting(t *testing.T) {
	const wants = "/etc/systemd/system/multi-user.target.wants/"
	installed := map[string]string{wants + "systemd-networkd.service": "", wants + "ec2netd.service": ""}
	const netplan = "/run/systemd/network/10-netplan-ens5.network"
	for name, c := range map[string]struct {
		files map[string]string
		not   string // of the files of an installation
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
		put := func(files map[string]string) {
			for file, content := range files {
				if file == c.not {
					continue
				}
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
		put(installed)
		put(c.files)
		looker := &conflict.Looker{Root: root}
		links := []conflict.Link{{Index: 2, Name: "ens5", MAC: "02:00:00:00:00:0a"}}
		if got := looker.Waiting(links, func(int) string { return c.file }); got != c.want {
			t.Errorf("%s: %q, want %q", name, got, c.want)
		}
	}
}
