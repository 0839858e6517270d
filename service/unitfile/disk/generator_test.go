package disk

import (
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/store"
	"ec2netd/service/unitfile"
)

// tree lists all files below a root with their content or target.
func tree(t *testing.T, root string) map[string]string {
	t.Helper()
	out := map[string]string{}
	err := filepath.WalkDir(root, func(p string, d os.DirEntry, err error) error {
		if err != nil || d.IsDir() {
			return err
		}
		text, err := os.Readlink(p)
		if err != nil {
			b, err := os.ReadFile(p)
			if err != nil {
				return err
			}
			text = string(b)
		}
		out[strings.TrimPrefix(p, root)] = text
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out
}

// unit is what a generated unit of this ENI looks like to the store.
func unit(name, mac, text string) []store.File {
	return []store.File{
		{Path: dropin.NetworkDropIn(name), Content: "[Match]\nMACAddress=" + mac + "\nName=" + name + "\n" + text},
		{Path: dropin.NetworkPath(name) + ".d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
		{Path: dropin.NetworkPath(name), Target: base},
		{Path: dropin.LinkDropIn(name), Content: "[Match]\nMACAddress=" + mac + "\n" + text},
		{Path: dropin.LinkPath(name), Target: plan.DefaultPolicy},
	}
}

func storeFiles(files []plan.File) []store.File {
	var found []store.File
	for _, f := range files {
		found = append(found, store.File(f))
	}
	return found
}

// F3: a file that a generator made for the link alone is completed, and none that comes after
// somebody else's.
func TestGenerator(t *testing.T) {
	const run, etc = "/run/systemd/network/", "/etc/systemd/network/"
	const netplan = run + "10-netplan-ens6.network"
	sole := "[Match]\nPermanentMACAddress=02:00:00:00:00:0a\nName=ens6\n[Link]\nMTUBytes=1400\n"
	for name, c := range map[string]struct {
		files map[string]string
		want  string
		mtu   int
		// shared are those of which ENIs are left out.
		shared []string
	}{
		"nothing":                 {nil, "", 0, nil},
		"netplan":                 {map[string]string{netplan: sole}, netplan, 1400, nil},
		"an administrator's MTU":  {map[string]string{netplan: sole, etc + "70-ens6.network.d/mtu.conf": "[Link]\nMTUBytes=1300\n"}, netplan, 1300, nil},
		"cloud-init":              {map[string]string{etc + "10-cloud-init-ens6.network": sole}, etc + "10-cloud-init-ens6.network", 1400, nil},
		"another link's":          {map[string]string{netplan: "[Match]\nName=ens7\n"}, "", 0, nil},
		"several links'":          {map[string]string{netplan: "[Match]\nName=ens*\n"}, "", 0, []string{netplan}},
		"several links', and it":  {map[string]string{netplan: sole, run + "10-netplan-all.network": "[Match]\nName=ens*\n"}, netplan, 1400, []string{run + "10-netplan-all.network"}},
		"by their driver":         {map[string]string{netplan: "[Match]\nDriver=ena\n"}, "", 0, nil},
		"after somebody else's":   {map[string]string{netplan: sole, etc + "05-mine.network": "[Match]\nName=ens*\n"}, "", 0, nil},
		"after another link's":    {map[string]string{netplan: sole, run + "10-netplan-ens5.network": "[Match]\nName=ens5\n"}, netplan, 1400, nil},
		"masked":                  {map[string]string{netplan: sole, etc + "10-netplan-ens6.network": ""}, "", 0, nil},
		"an administrator's":      {map[string]string{netplan: sole, etc + "10-netplan-ens6.network": "[Match]\nName=ens6\n"}, "", 0, nil},
		"the kernel line":         {map[string]string{run + "70-ens6.network": kernelLine}, run + "70-ens6.network", 0, nil},
		"a file like that":        {map[string]string{run + "70-ens6.network": "[Match]\nName=ens6\n"}, "", 0, nil},
		"the kernel line, masked": {map[string]string{run + "70-ens6.network": kernelLine, etc + "70-ens6.network": ""}, "", 0, nil},
		"after ours":              {map[string]string{run + "90-netplan-ens6.network": sole}, "", 0, nil},
	} {
		s := newSite(t)
		write(t, s.at(base), "[Match]\nDriver=ena\n")
		for file, content := range c.files {
			write(t, s.at(file), content)
		}
		l := plan.Link{}
		l.Name, l.MAC, l.Driver = "ens6", "02:00:00:00:00:0a", "ena"
		l.Complete(s.Tree())
		if l.Generator != c.want || !slices.Equal(l.Shared, c.shared) {
			t.Errorf("%s: %q, and %q", name, l.Generator, l.Shared)
		}
		// With ENIs left out it is the same one.
		for _, shared := range c.shared {
			write(t, s.at(unitfile.GeneratorDir(shared)+"/"+dropin.FileName), "# Written by ec2netd\n[Match]\nDriver=!ena\n")
		}
		if l.Generator == "" {
			if l.Complete(s.Tree()); !slices.Equal(l.Shared, c.shared) {
				t.Errorf("%s, left out: %q", name, l.Shared)
			}
			continue
		}
		if l.Generator == dropin.NetworkPath("ens6") {
			continue // see TestKernelLine
		}
		// And with what it is completed by.
		dir := unitfile.GeneratorDir(l.Generator)
		apply(t, s, append(unit("ens6", l.MAC, ""), store.File{Path: path.Join(dir, dropin.FileName), Target: dropin.NetworkDropIn("ens6")},
			store.File{Path: path.Join(dir, dropin.BaseLinkName), Target: base}))
		if l.Complete(s.Tree()); l.Generator != c.want || l.Bytes != c.mtu || !slices.Equal(l.Shared, c.shared) {
			t.Errorf("%s, completed: %q with an MTU of %d", name, l.Generator, l.Bytes)
		}
	}
}

// F3: which addresses cloud-init has put into a file is known where there are no others.
func TestFirstBoot(t *testing.T) {
	const run, etc = "/run/systemd/network/10-netplan-ens6.network", "/etc/systemd/network/10-cloud-init-ens6.network"
	const match, both = "[Match]\nName=ens6\n[Network]\nDHCP=yes\n", "Address=10.0.1.21/24\nAddress=2001:db8::b/128\n"
	yaml := "network:\n  ethernets:\n    ens6:\n      addresses:\n      - \"10.0.1.21/24\"\n      - \"2001:0db8::b/128\"\n      dhcp4: true\n"
	for name, c := range map[string]struct {
		file, content, yaml string
		want                int
	}{
		"netplan of cloud-init's": {run, match + both, yaml, 2},
		"and somebody else's":     {run, match + both + "Address=10.0.1.2/24\n", yaml, 0},
		"netplan alone":           {run, match + both, "", 0},
		"cloud-init":              {etc, match + both, "", 2},
		"none":                    {run, match, yaml, 0},
	} {
		s := newSite(t)
		write(t, s.at(base), "[Match]\nDriver=ena\n")
		write(t, s.at(c.file), c.content)
		if c.yaml != "" {
			write(t, s.at(unitfile.CloudInitYAML), c.yaml)
		}
		l := plan.Link{}
		l.Name, l.MAC, l.Driver = "ens6", "02:00:00:00:00:0a", "ena"
		if l.Complete(s.Tree()); l.Generator != c.file || len(l.FirstBoot) != c.want {
			t.Errorf("%s: %q, %v", name, l.Generator, l.FirstBoot)
		}
		// Its link among the drop-ins is this daemon's, and changes nothing of that.
		dir := unitfile.GeneratorDir(c.file)
		apply(t, s, append(unit("ens6", l.MAC, ""), store.File{Path: path.Join(dir, dropin.FileName), Target: dropin.NetworkDropIn("ens6")},
			store.File{Path: path.Join(dir, dropin.ClearName), Target: dropin.NoAddresses}))
		if l.Complete(s.Tree()); len(l.FirstBoot) != c.want {
			t.Errorf("%s, cleared: %v", name, l.FirstBoot)
		}
		apply(t, s, unit("ens6", l.MAC, ""))
		if left, err := file.List(s.at(dir), "*"); len(left) > 0 || err != nil {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

// kernelLine is what systemd-network-generator makes of ip=ens6:dhcp.
const kernelLine = "# Automatically generated by systemd-network-generator\n\n[Match]\nName=ens6\n\n[Link]\n\n[Network]\nDHCP=ipv4\n\n[DHCP]\n"

// F3: what is made of ip= has the name of the ENI's own unit: it stays, and the base unit is one
// of its drop-ins.
func TestKernelLine(t *testing.T) {
	own := dropin.NetworkPath("ens6")
	s := newSite(t)
	write(t, s.at(own), kernelLine)
	before := tree(t, s.Root)
	l := plan.Link{LinkFile: plan.DefaultPolicy}
	l.Index, l.Name, l.MAC, l.Driver = 3, "ens6", "02:00:00:00:00:0a", "ena"
	view := metadata.ENI{MAC: l.MAC, ID: "eni-0123456789abcdef0", IPv4: []netip.Addr{netip.MustParseAddr("10.0.1.10")}, IPv4Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}
	for _, unit := range []string{base, "/etc/systemd/network/80-ec2.network", base} {
		l.Complete(s.Tree())
		if l.Generator != own || l.Taken != "" {
			t.Errorf("%+v", l)
		}
		p := plan.Make(plan.Input{PrimaryMAC: l.MAC, Views: map[string]metadata.ENI{l.MAC: view}, Links: []plan.Link{l}, Base: unit})
		p.GiveWay()
		if changes := apply(t, s, storeFiles(p.Files)); len(changes.Refused) > 0 {
			t.Errorf("refused: %v", changes.Refused)
		}
		if changes := apply(t, s, storeFiles(p.Files)); changes.Any() {
			t.Errorf("again: %+v", changes)
		}
		if target := s.Target(own + ".d/" + dropin.BaseLinkName); target != unit || s.Read(own) != kernelLine {
			t.Errorf("the base unit is %q, the unit %q", target, s.Read(own))
		}
	}
	apply(t, s, nil)
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}
}
