package preview

import (
	"errors"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/config"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/snapshot"
	"ec2netd/service/store"
	"ec2netd/service/udev"
	"ec2netd/service/unitfile/disk"
)

// instance is a dump of one with two ENIs.
func instance(t *testing.T) *Dump {
	t.Helper()
	text, err := os.ReadFile("testdata/instance.json")
	if err != nil {
		t.Fatal(err)
	}
	d, err := ParseDump(text)
	if err != nil {
		t.Fatal(err)
	}
	return d
}

// decide makes the plan that the daemon makes of a dump.
func decide(t *testing.T, d *Dump, in plan.Input) plan.Plan {
	t.Helper()
	instance, err := d.Instance()
	if err != nil {
		t.Fatal(err)
	}
	in.PrimaryMAC, in.Views = instance.PrimaryMAC, make(map[string]metadata.ENI)
	for _, mac := range d.MACs() {
		if view, err := d.ENI(mac); err == nil {
			in.Views[mac] = *view
		}
	}
	p := plan.Make(in)
	p.GiveWay()
	return p
}

// apply does what the daemon does about a dump.
func apply(t *testing.T, d *Dump, in plan.Input, on *store.Store) store.Changes {
	t.Helper()
	p := decide(t, d, in)
	var want store.Want
	for i := range p.ENIs {
		want.Keep = append(want.Keep, p.ENIs[i].Kept()...)
	}
	for _, f := range p.Files {
		want.Files = append(want.Files, store.File(f))
	}
	changes, err := on.Apply(want)
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

// TestPlanRemoves: plan says what the daemon would remove, and nothing else. Of a link that udevd has
// not handled, or whose ENI is not known, the .link file may stay where the .network unit goes.
func TestPlanRemoves(t *testing.T) { // H5
	d := instance(t)
	no := false
	unmanaged := []config.Section{{Managed: &no}}
	for _, c := range []struct {
		name     string
		sections []config.Section
		change   func(known, unknown *plan.Link)
		removed  []string
	}{
		{"all stays", nil, func(_, _ *plan.Link) {}, nil},
		{"udevd has not handled the link", nil, func(known, unknown *plan.Link) { known.LinkFile, unknown.LinkFile = "", "" }, nil},
		{"the units are taken", nil, func(known, unknown *plan.Link) {
			known.Taken, unknown.Taken = "/etc/systemd/network/70-ens6.network", "/etc/systemd/network/70-ens7.network"
		}, []string{"ens6", "ens7"}},
		{"no ENI is managed", unmanaged, func(_, _ *plan.Link) {}, []string{"ens5", "ens6", "ens7"}},
		{"no ENI is managed, and udevd has not handled one", unmanaged, func(known, _ *plan.Link) { known.LinkFile = "" }, []string{"ens5", "ens6", "ens7"}},
	} {
		t.Run(c.name, func(t *testing.T) {
			links, err := d.PlanLinks(nil, "")
			if err != nil {
				t.Fatal(err)
			}
			on := &store.Store{Root: t.TempDir()}
			if err := os.MkdirAll(filepath.Join(on.Root, plan.Directory), 0o755); err != nil {
				t.Fatal(err)
			}
			files := func(name, mac string) (all []store.File) {
				for _, unit := range []string{plan.NetworkPath(name), plan.LinkPath(name)} {
					all = append(all, store.File{Path: unit + ".d/" + plan.DropInName, Content: "# Written by ec2netd\n[Match]\nMACAddress=" + mac + "\n"},
						store.File{Path: unit, Target: "/usr/lib/systemd/network/80-ec2.network"})
				}
				return all
			}
			// One whose metadata is not complete.
			unknown := links[1]
			unknown.Index, unknown.Name, unknown.MAC = 9, "ens7", "02:00:00:00:01:30"
			links = append(links, unknown)
			before := []store.File{}
			for i := range links {
				l := &links[i]
				before = append(before, files(l.Name, l.MAC)...)
				l.Current = dropin.ParseNetwork(files(l.Name, l.MAC)[0].Content)
			}
			if _, err := on.Apply(store.Want{Files: before}); err != nil {
				t.Fatal(err)
			}
			units, err := on.Units()
			if err != nil {
				t.Fatal(err)
			}
			c.change(&links[1], &links[2])
			in := plan.Input{Links: links, Base: "/base", Sections: c.sections}
			result, err := Make(&d.Dump, in)
			if err == nil {
				err = result.Compare(on, units)
			}
			if err != nil {
				t.Fatal(err)
			}
			var want []string
			for _, name := range c.removed {
				want = append(want, plan.NetworkPath(name), plan.NetworkDropIn(name))
			}
			slices.Sort(want)
			got := slices.DeleteFunc(slices.Clone(result.Removed), func(file string) bool { return path.Base(file) == plan.MatchDropIn })
			if slices.Sort(got); !slices.Equal(got, want) {
				t.Errorf("plan removes %q, want %q", got, want)
			}

			changes := apply(t, d, in, on)
			if slices.Sort(changes.Removed); !slices.Equal(changes.Removed, want) {
				t.Errorf("the daemon removes %q, want %q", changes.Removed, want)
			}
		})
	}
}

// TestSettle: the plan of an ENI whose lease is not there yet is the final one, as it will be once DHCP
// has configured its part.
func TestSettle(t *testing.T) { // H6
	d := instance(t)
	links, err := d.PlanLinks(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	links[1].DHCPMetrics, links[1].OnBase, links[1].Busy = []int{plan.UnknownMetric}, true, true
	links[1].Addresses = []kernel.Address{}
	no := false
	for _, sections := range [][]config.Section{nil, {{DefaultRoute: &no}}} {
		result, err := Make(&d.Dump, plan.Input{Links: slices.Clone(links), Base: "/base", Sections: sections})
		if err != nil {
			t.Fatal(err)
		}
		if text := result.Interfaces[1].Files[0].Content; !strings.Contains(text, "Address=10.0.1.9/32") || !strings.Contains(text, "2001:db8:0:2::20/128") {
			t.Errorf("addresses are held back:\n%s", text)
		}
	}
}

// TestSite: the plan for a machine on which all is in place changes nothing, one without the files is of
// new ones, and one offline compares nothing.
func TestSite(t *testing.T) { // H5, H6
	d := instance(t)
	links, err := d.PlanLinks(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	put := func(name, content string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(filepath.Join(root, name)), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(filepath.Join(root, name), []byte(content), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	put("usr/lib/systemd/network/80-ec2.network", "[Match]\nDriver=ena\n")
	put("usr/lib/systemd/network/99-default.link", "[Match]\nOriginalName=*\n")
	put("run/systemd/network/.keep", "")
	seen := &kernel.Snapshot{}
	for _, l := range links {
		seen.Links = append(seen.Links, l.Link)
		put("run/udev/data/n"+strconv.Itoa(l.Index), "I:1\nE:ID_NET_LINK_FILE=/usr/lib/systemd/network/99-default.link\n")
	}
	site := siteOf(t, root, seen)
	if got := site.LinkFile(&seen.Links[0]); got != "/usr/lib/systemd/network/99-default.link" {
		t.Errorf("the .link file is %q", got)
	}
	if got := site.LinkFile(&kernel.Link{Index: 99}); got != "" {
		t.Errorf("the .link file of a link that udevd has not handled is %q", got)
	}
	changes := func(p *Plan, err error) map[Change]int {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		counts := make(map[Change]int)
		for i := range p.Interfaces {
			for _, f := range p.Interfaces[i].Files {
				counts[f.Change]++
			}
		}
		return counts
	}
	if got := changes(site.Offline(&d.Dump, links)); len(got) != 1 || got[""] == 0 {
		t.Errorf("offline: %v", got)
	}
	p, err := site.Here(&d.Dump)
	if got := changes(p, err); len(got) != 1 || got[New] == 0 {
		t.Errorf("nothing is there: %v", got)
	}
	var files []store.File
	for i := range p.Interfaces {
		for _, f := range p.Interfaces[i].Files {
			files = append(files, store.File{Path: f.Path, Content: f.Content, Target: f.Target})
		}
	}
	if _, err := site.Store.Apply(store.Want{Files: files}); err != nil {
		t.Fatal(err)
	}
	site = siteOf(t, root, seen)
	p, err = site.Here(&d.Dump)
	if got := changes(p, err); len(got) != 1 || got[Same] != len(files) || len(p.Removed) > 0 {
		t.Errorf("all is there: %v, and %q would go", got, p.Removed)
	}
}

// A8: an address of the metadata that somebody else has added is left alone, as the daemon does, where
// its record can be read and networkd does not take the address away.
func TestForeignAddress(t *testing.T) {
	d := instance(t)
	links, err := d.PlanLinks(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	root := t.TempDir()
	if err := os.MkdirAll(filepath.Join(root, plan.Directory), 0o755); err != nil {
		t.Fatal(err)
	}
	seen := &kernel.Snapshot{}
	for _, l := range links {
		seen.Links = append(seen.Links, l.Link)
	}
	ours := func(all bool) func(plan.OwnAddress) bool { return func(plan.OwnAddress) bool { return all } }
	// here returns the drop-in of the second ENI, and writes all of its files if it is told to.
	here := func(running, varlink bool, ours func(plan.OwnAddress) bool, write bool) File {
		t.Helper()
		site := siteOf(t, root, seen)
		site.Running, site.Varlink, site.Ours = running, varlink, ours
		p, err := site.Here(&d.Dump)
		if err != nil {
			t.Fatal(err)
		}
		var files []store.File
		for _, f := range p.Interfaces[1].Files {
			files = append(files, store.File{Path: f.Path, Content: f.Content, Target: f.Target})
		}
		if write {
			if _, err := site.Store.Apply(store.Want{Files: files}); err != nil {
				t.Fatal(err)
			}
		}
		return p.Interfaces[1].Files[0]
	}
	const key, section = "network/interfaces/macs/02:00:00:00:01:20/local-ipv4s", "[Address]\nAddress=10.0.1.9/32"
	complete := d.Keys[key]
	d.Keys[key] = "10.0.1.20"
	if f := here(true, true, ours(false), true); f.Change != New || strings.Contains(f.Content, section) {
		t.Fatalf("before the metadata lists it: %+v", f)
	}
	d.Keys[key] = complete
	seen.Links[1].Addresses = []kernel.Address{{Prefix: netip.MustParsePrefix("10.0.1.9/32"), Global: true}}
	for _, step := range []struct {
		name    string
		running bool
		varlink bool
		ours    func(plan.OwnAddress) bool
		write   bool
		change  Change
		has     bool
	}{
		{"its policy rules are new", true, true, ours(false), true, Changed, false},
		{"nothing would change", true, true, ours(false), false, Same, false},
		{"it was the daemon's", true, true, ours(true), false, Changed, true},
		{"the record cannot be read", true, true, nil, false, Changed, true},
		{"networkd does not run", false, true, ours(false), false, Changed, true},
		{"networkd 252 would take it away", true, false, ours(false), false, Changed, true},
	} {
		if f := here(step.running, step.varlink, step.ours, step.write); f.Change != step.change || strings.Contains(f.Content, section) != step.has {
			t.Errorf("%s: %s\n%s", step.name, f.Change, f.Content)
		}
	}
}

// TestPlanLinks: names and drivers of an offline plan are as they are asked for.
func TestPlanLinks(t *testing.T) { // H6
	d := instance(t)
	macs := d.MACs()
	links, err := d.PlanLinks(map[string]string{macs[1]: "eth7"}, "vif")
	if err != nil || !slices.ContainsFunc(links, func(l plan.Link) bool { return l.MAC == macs[1] && l.Name == "eth7" && l.Driver == "vif" }) {
		t.Errorf("%v: %+v", err, links)
	}
	var unknown *UnknownENIError
	if _, err := d.PlanLinks(map[string]string{"02:00:00:00:00:99": "eth7"}, ""); !errors.As(err, &unknown) || !slices.Equal(unknown.Known, macs) {
		t.Errorf("an ENI that the dump does not have: %v", err)
	}
	var same *SameNameError
	if _, err := d.PlanLinks(map[string]string{macs[0]: "eth7", macs[1]: "eth7"}, ""); !errors.As(err, &same) || same.Name != "eth7" {
		t.Errorf("two links of one name: %v", err)
	}
	// Without links in the dump there is one for each ENI, the primary first.
	d.Links = nil
	links, err = d.PlanLinks(nil, "")
	if err != nil || len(links) != len(macs) || links[0].Name != "ens5" || links[0].Driver != "ena" {
		t.Errorf("%v: %+v", err, links)
	}
}

// TestParseDump: a dump of somebody else's names no file, link or driver that cannot be.
func TestParseDump(t *testing.T) { // H6
	for _, text := range []string{
		"", "[]", "{}",
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "ens5", "mac": "x"}]}`,
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "../x", "mac": "02:00:00:00:00:01"}]}`,
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "..", "mac": "02:00:00:00:00:01"}]}`,
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "ens5", "mac": "02:00:00:00:00:01", "driver": "a b"}]}`,
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "ens5", "mac": "02:00:00:00:00:01", "linkFile": "a"}]}`,
		`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "ens5", "mac": "02:00:00:00:00:01", "linkFile": "/a\nb"}]}`,
	} {
		if d, err := ParseDump([]byte(text)); err == nil {
			t.Errorf("%s gives %+v", text, d)
		}
	}
	d, err := ParseDump([]byte(`{"keys": {"mac": "02:00:00:00:00:01"}, "links": [{"name": "ens5", "mac": "02:00:00:00:00:0A"}]}`))
	if err != nil || d.Links[0].MAC != "02:00:00:00:00:0a" {
		t.Errorf("%v: %+v", err, d)
	}
}

// kernelOf is a kernel.
type kernelOf struct{ *kernel.Snapshot }

func (k kernelOf) Observe() (*kernel.Snapshot, error) { return k.Snapshot, nil }

// siteOf is a machine with the files below a root.
func siteOf(t *testing.T, root string, seen *kernel.Snapshot) *Site {
	t.Helper()
	sources := snapshot.Sources{
		Kernel: kernelOf{seen}, Networkd: &networkd.Client{Root: root}, Udev: &udev.Udev{Root: root}, Files: &disk.Reader{Root: root},
	}
	taken, err := sources.Take(snapshot.Settings{}, nil)
	if err != nil {
		t.Fatal(err)
	}
	return &Site{Store: &store.Store{Root: root}, Seen: taken}
}

// B9, D9, F13: what others have set in the kernel counts for the plan as it does for the daemon: behind a
// VPN the rules of ENIs come first, and the services keep their routes; where systemd-imdsd has locked
// the metadata service, the rule for routes over the host's other links is one for each address.
func TestOthersRules(t *testing.T) {
	d := instance(t)
	links, err := d.PlanLinks(nil, "")
	if err != nil {
		t.Fatal(err)
	}
	const tunnel, imdsMark = 9000, 0x7FFF0815
	seen := &kernel.Snapshot{Rules: []kernel.Rule{{Mark: imdsMark, Table: 1}}, Tunnel: tunnel}
	in := plan.Input{Locked: true, Tunnel: tunnel}
	for i := range links {
		links[i].Group = plan.Group
		seen.Links = append(seen.Links, links[i].Link)
		in.Links = append(in.Links, plan.Observed(links[i].Link, nil))
	}
	result, err := siteOf(t, t.TempDir(), seen).Here(&d.Dump)
	if err != nil {
		t.Fatal(err)
	}
	var files []plan.File
	for i := range result.Interfaces {
		for _, f := range result.Interfaces[i].Files {
			files = append(files, plan.File{Path: f.Path, Content: f.Content})
		}
	}
	// The routes and rules, each with the path of its file.
	sections := func(files []plan.File) (found []string) {
		for _, f := range files {
			for section := range strings.SplitSeq(f.Content, "\n\n") {
				if section = strings.TrimSpace(section); strings.HasPrefix(section, "[Rout") {
					found = append(found, f.Path+": "+section)
				}
			}
		}
		slices.Sort(found)
		return found
	}
	got := sections(files)
	if diff := cmp.Diff(sections(decide(t, d, in).Files), got); diff != "" {
		t.Errorf("the routes and rules are not those of the daemon:\n%s", diff)
	}
	for _, want := range []string{
		plan.NetworkDropIn("ens5") + ": [Route]\nDestination=169.254.169.0/24\nGateway=_dhcp4\nMetric=512",
		plan.NetworkDropIn("ens5") + ": [Route]\nDestination=fd00:ec2::/32\nGateway=_ipv6ra\nMetric=512",
		plan.NetworkDropIn("ens6") + ": [RoutingPolicyRule]\nFrom=10.0.1.9/32\nTable=254\nPriority=9999\nSuppressPrefixLength=7\nSuppressInterfaceGroup=3778",
		plan.NetworkDropIn("ens6") + ": [RoutingPolicyRule]\nFrom=10.0.1.9/32\nTable=10001\nPriority=8998",
	} {
		if !slices.Contains(got, want) {
			t.Errorf("no %s", want)
		}
	}
}
