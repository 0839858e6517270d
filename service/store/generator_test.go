package store

import (
	"net/netip"
	"os"
	"path"
	"slices"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// completed is a unit with the links by which a generator's files say the same.
func completed(name, mac, text string) []plan.File {
	dir := plan.Directory + "/10-netplan-" + name
	return append(unit(name, mac, text),
		plan.File{Path: dir + ".network.d/" + plan.DropInName, Target: plan.NetworkDropIn(name)},
		plan.File{Path: dir + ".network.d/" + plan.BaseLinkName, Target: base},
		plan.File{Path: dir + ".network.d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
	)
}

// leftOut is a drop-in that leaves ENIs out of a generator's file for several links.
var leftOut = plan.File{Path: plan.Directory + "/10-netplan-all.network.d/" + plan.DropInName, Content: "# Written by ec2netd, a test.\n[Match]\nDriver=!ena\n"}

// F3: so is what leaves ENIs out; of a file for one link that becomes one for several.
func TestLeftOut(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	apply(t, s, completed("ens6", "02:00:00:00:00:0a", "one"))
	instead := plan.File{Path: plan.Directory + "/10-netplan-ens6.network.d/" + plan.DropInName, Content: leftOut.Content}
	for range 2 {
		apply(t, s, append(unit("ens6", "02:00:00:00:00:0a", "one"), leftOut, instead))
		for _, f := range []plan.File{leftOut, instead} {
			if !s.regular(f.Path) || s.Read(f.Path) != f.Content {
				t.Errorf("%s is %q", f.Path, s.Read(f.Path))
			}
		}
	}
	apply(t, s, completed("ens6", "02:00:00:00:00:0a", "one"))
	if s.Target(instead.Path) == "" {
		t.Error("the file is not completed again")
	}
	write(t, s.at(leftOut.Path), "[Match]\nDriver=!others\n")
	if changes := apply(t, s, []plan.File{leftOut}); changes.Refused[leftOut.Path].None() || len(changes.Written) > 0 {
		t.Errorf("somebody else's: %+v", changes)
	}
	if apply(t, s, nil); !s.regular(leftOut.Path) {
		t.Error("somebody else's is gone")
	}
}

// F3: the links are there as long as they are wanted, and what others have beside them stays.
func TestCompletions(t *testing.T) {
	const mac, dir = "02:00:00:00:00:0a", plan.Directory + "/10-netplan-ens6.network.d"
	s := &Store{Root: t.TempDir()}
	write(t, s.at(dir+"/others.conf"), "[Link]\n")
	link(t, s.at(dir+"/linked.conf"), "/opt/others.conf")
	// One that somebody made after our pattern, of something else.
	link(t, s.at(plan.Directory+"/10-mine.network.d/"+plan.DropInName), "/opt/50-ec2netd.conf")
	others := tree(t, s.Root)
	all := completed("ens6", mac, "one")
	if changes := apply(t, s, all); len(changes.Written) != len(all) {
		t.Errorf("%+v", changes)
	}
	if changes := apply(t, s, all); changes.Any() {
		t.Errorf("again: %+v", changes)
	}
	// The base unit moved.
	all[6].Target = "/etc/systemd/network/80-ec2.network"
	if changes := apply(t, s, all); !slices.Equal(changes.Written, []string{dir + "/" + plan.BaseLinkName}) || len(changes.Refused) > 0 {
		t.Errorf("the base unit moved: %+v", changes)
	}
	// The administrator's drop-in in place of ours is what the generator's file has too.
	all[5].Target = "/etc/systemd/network/70-ens6.network.d/" + plan.DropInName
	apply(t, s, all)
	if changes := apply(t, s, all); changes.Any() || s.Target(all[5].Path) != all[5].Target {
		t.Errorf("the administrator's: %+v, %s", changes, s.Target(all[5].Path))
	}
	if changes := apply(t, s, nil, Unit{"ens6", Network}, Unit{"ens6", Link}); changes.Any() {
		t.Errorf("kept: %+v", changes)
	}
	// The YAML file has gone, and netplan's with it.
	want := []string{dir + "/" + plan.BaseLinkName, dir + "/lab.conf", dir + "/" + plan.DropInName}
	if got := s.UnwantedLinks(map[string]bool{}, func(string) bool { return false }); !slices.Equal(got, want) {
		t.Errorf("unwanted are %q", got)
	}
	apply(t, s, unit("ens6", mac, "one"))
	apply(t, s, nil)
	if diff := cmp.Diff(others, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}
	apply(t, s, completed("ens7", mac, "one"))
	apply(t, s, nil)
	if _, err := os.Lstat(s.at(plan.Directory + "/10-netplan-ens7.network.d")); err == nil {
		t.Error("an empty directory is left")
	}
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
		s := &Store{Root: t.TempDir()}
		write(t, s.at(base), "[Match]\nDriver=ena\n")
		for file, content := range c.files {
			write(t, s.at(file), content)
		}
		l := plan.Link{}
		l.Name, l.MAC, l.Driver = "ens6", "02:00:00:00:00:0a", "ena"
		s.Complete(&l, s.Networks())
		if l.Generator != c.want || !slices.Equal(l.Shared, c.shared) {
			t.Errorf("%s: %q, and %q", name, l.Generator, l.Shared)
		}
		// With ENIs left out it is the same one.
		for _, shared := range c.shared {
			write(t, s.at(unitfile.GeneratorDir(shared)+"/"+plan.DropInName), "# Written by ec2netd\n[Match]\nDriver=!ena\n")
		}
		if l.Generator == "" {
			if s.Complete(&l, s.Networks()); !slices.Equal(l.Shared, c.shared) {
				t.Errorf("%s, left out: %q", name, l.Shared)
			}
			continue
		}
		if l.Generator == plan.NetworkPath("ens6") {
			continue // see TestKernelLine
		}
		// And with what it is completed by.
		dir := unitfile.GeneratorDir(l.Generator)
		apply(t, s, append(unit("ens6", l.MAC, ""), plan.File{Path: path.Join(dir, plan.DropInName), Target: plan.NetworkDropIn("ens6")},
			plan.File{Path: path.Join(dir, plan.BaseLinkName), Target: base}))
		if s.Complete(&l, s.Networks()); l.Generator != c.want || l.Bytes != c.mtu || !slices.Equal(l.Shared, c.shared) {
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
		s := &Store{Root: t.TempDir()}
		write(t, s.at(base), "[Match]\nDriver=ena\n")
		write(t, s.at(c.file), c.content)
		if c.yaml != "" {
			write(t, s.at(cloudInitYAML), c.yaml)
		}
		l := plan.Link{}
		l.Name, l.MAC, l.Driver = "ens6", "02:00:00:00:00:0a", "ena"
		if s.Complete(&l, s.Networks()); l.Generator != c.file || len(l.FirstBoot) != c.want {
			t.Errorf("%s: %q, %v", name, l.Generator, l.FirstBoot)
		}
		// Its link among the drop-ins is this daemon's, and changes nothing of that.
		dir := unitfile.GeneratorDir(c.file)
		apply(t, s, append(unit("ens6", l.MAC, ""), plan.File{Path: path.Join(dir, plan.DropInName), Target: plan.NetworkDropIn("ens6")},
			plan.File{Path: path.Join(dir, plan.ClearName), Target: plan.NoAddresses}))
		if s.Complete(&l, s.Networks()); len(l.FirstBoot) != c.want {
			t.Errorf("%s, cleared: %v", name, l.FirstBoot)
		}
		apply(t, s, unit("ens6", l.MAC, ""))
		if left := s.list(dir, "*"); len(left) > 0 {
			t.Errorf("%s: %v is left", name, left)
		}
	}
}

// kernelLine is what systemd-network-generator makes of ip=ens6:dhcp.
const kernelLine = "# Automatically generated by systemd-network-generator\n\n[Match]\nName=ens6\n\n[Link]\n\n[Network]\nDHCP=ipv4\n\n[DHCP]\n"

// F3: what is made of ip= has the name of the ENI's own unit: it stays, and the base unit is one
// of its drop-ins.
func TestKernelLine(t *testing.T) {
	own := plan.NetworkPath("ens6")
	s := &Store{Root: t.TempDir()}
	write(t, s.at(own), kernelLine)
	before := tree(t, s.Root)
	l := plan.Link{LinkFile: plan.DefaultPolicy}
	l.Index, l.Name, l.MAC, l.Driver = 3, "ens6", "02:00:00:00:00:0a", "ena"
	view := metadata.ENI{MAC: l.MAC, ID: "eni-0123456789abcdef0", IPv4: []netip.Addr{netip.MustParseAddr("10.0.1.10")}, IPv4Subnets: []netip.Prefix{netip.MustParsePrefix("10.0.1.0/24")}}
	for _, unit := range []string{base, "/etc/systemd/network/80-ec2.network", base} {
		s.Complete(&l, s.Networks())
		if l.Generator != own || l.Taken != "" {
			t.Errorf("%+v", l)
		}
		p := plan.Make(plan.Input{PrimaryMAC: l.MAC, Views: map[string]metadata.ENI{l.MAC: view}, Links: []plan.Link{l}, Base: unit})
		p.GiveWay()
		if changes := apply(t, s, p.Files); len(changes.Refused) > 0 {
			t.Errorf("refused: %v", changes.Refused)
		}
		if changes := apply(t, s, p.Files); changes.Any() {
			t.Errorf("again: %+v", changes)
		}
		if target := s.Target(own + ".d/" + plan.BaseLinkName); target != unit || s.Read(own) != kernelLine {
			t.Errorf("the base unit is %q, the unit %q", target, s.Read(own))
		}
	}
	apply(t, s, nil)
	if diff := cmp.Diff(before, tree(t, s.Root)); diff != "" {
		t.Error(diff)
	}
}
