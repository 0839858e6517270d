package disk

import (
	"os"
	"path/filepath"
	"slices"
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/plan"
	"ec2netd/service/store"
	"ec2netd/service/unitfile"
)

const base = "/usr/lib/systemd/network/80-ec2.network"

// site is a root with unit files, those of the store among them.
type site struct {
	*store.Store
	*Reader
	Root string
}

func newSite(t *testing.T) *site {
	t.Helper()
	root := t.TempDir()
	return &site{&store.Store{Root: root}, &Reader{Root: root}, root}
}

// at returns the path of a file of the site on this machine.
func (s *site) at(p string) string { return s.Reader.at(p) }

func write(t *testing.T, path, content string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(content), 0o644); err != nil {
		t.Fatal(err)
	}
}

func link(t *testing.T, at, target string) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(at), 0o755); err != nil {
		t.Fatal(err)
	}
	_ = os.Remove(at)
	if err := os.Symlink(target, at); err != nil {
		t.Fatal(err)
	}
}

func apply(t *testing.T, s *site, want []store.File) store.Changes {
	t.Helper()
	changes, err := s.Apply(store.Want{Files: want})
	if err != nil {
		t.Fatal(err)
	}
	return changes
}

func files(name string) []store.File {
	return []store.File{
		{Path: dropin.NetworkDropIn(name), Content: "[Match]\nName=" + name + "\n"},
		{Path: dropin.NetworkPath(name) + ".d/lab.conf", Target: "/etc/systemd/network/80-ec2.network.d/lab.conf"},
		{Path: dropin.NetworkPath(name), Target: base},
	}
}

func sameText(a, b unitfile.Text) bool {
	return a.Path == b.Path && a.Source == b.Source && a.Content == b.Content
}

// F2: what stands in the place of the generated files.
func TestExtent(t *testing.T) {
	const etc = "/etc/systemd/network/"
	unit, dropIn := dropin.NetworkPath("ens6"), dropin.NetworkDropIn("ens6")
	for name, c := range map[string]struct {
		change func(s *site)
		want   unitfile.Extent
	}{
		"nothing":                   {func(*site) {}, unitfile.Extent{}},
		"a file":                    {func(s *site) { write(t, s.at(etc+"70-ens6.network"), "[Match]\n") }, unitfile.Extent{Taken: etc + "70-ens6.network"}},
		"a mask":                    {func(s *site) { link(t, s.at(etc+"70-ens6.network"), os.DevNull) }, unitfile.Extent{Taken: etc + "70-ens6.network"}},
		"a link that leads nowhere": {func(s *site) { link(t, s.at(etc+"70-ens6.network"), "/nonexistent") }, unitfile.Extent{}},
		"another link's":            {func(s *site) { write(t, s.at(etc+"70-ens7.network"), "[Match]\n") }, unitfile.Extent{}},
		"a mask in its place":       {func(s *site) { link(t, s.at(unit), os.DevNull) }, unitfile.Extent{Taken: unit}},
		"a file in its place": {func(s *site) {
			_ = os.Remove(s.at(unit))
			write(t, s.at(unit), "[Match]\n")
		}, unitfile.Extent{Taken: unit}},
		"a link in its place":         {func(s *site) { link(t, s.at(unit), "/opt/x.network") }, unitfile.Extent{Taken: unit}},
		"a mask in the drop-in's":     {func(s *site) { link(t, s.at(dropIn), os.DevNull) }, unitfile.Extent{Taken: dropIn}},
		"a drop-in":                   {func(s *site) { write(t, s.at(etc+"70-ens6.network.d/x.conf"), "") }, unitfile.Extent{}},
		"a drop-in of the same name":  {func(s *site) { write(t, s.at(etc+"70-ens6.network.d/50-ec2netd.conf"), "") }, unitfile.Extent{NetworkHidden: etc + "70-ens6.network.d/50-ec2netd.conf"}},
		"a masked .link drop-in":      {func(s *site) { link(t, s.at(etc+"70-ens6.link.d/50-ec2netd.conf"), os.DevNull) }, unitfile.Extent{LinkHidden: etc + "70-ens6.link.d/50-ec2netd.conf"}},
		"a .link file takes no place": {func(s *site) { write(t, s.at(etc+"70-ens6.link"), "[Match]\n") }, unitfile.Extent{}},
	} {
		s := newSite(t)
		apply(t, s, files("ens6"))
		c.change(s)
		if got := s.Tree().Extent("ens6"); got != c.want {
			t.Errorf("%s: %+v, want %+v", name, got, c.want)
		}
	}
}

// What networkd reads under one name.
func TestLook(t *testing.T) {
	s := newSite(t)
	write(t, s.at(base), "[Match]\nDriver=ena\n")
	apply(t, s, files("ens6"))
	const etc, usr = "/etc/systemd/network/", "/usr/lib/systemd/network/"
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/lab.conf"), "lab")
	write(t, s.at(usr+"70-ens6.network.d/10-vendor.conf"), "vendor")
	write(t, s.at(usr+"70-ens6.network.d/20-vendor.conf"), "vendor")
	write(t, s.at(etc+"70-ens6.network.d/20-vendor.conf"), "admin")
	link(t, s.at(etc+"70-ens6.network.d/10-vendor.conf"), os.DevNull)
	write(t, s.at(etc+"70-ens6.network.d/60-empty.conf"), "")
	write(t, s.at(etc+"70-ens6.network.d/readme"), "x")
	link(t, s.at(etc+"70-ens6.network.d/70-gone.conf"), "/nonexistent")
	got := s.Tree().Look("70-ens6.network")
	if got.Path != dropin.NetworkPath("ens6") || got.Masked {
		t.Errorf("%+v", got)
	}
	want := []unitfile.Text{
		{Path: dropin.NetworkPath("ens6"), Source: base, Content: "[Match]\nDriver=ena\n"},
		{Path: etc + "70-ens6.network.d/20-vendor.conf", Source: etc + "70-ens6.network.d/20-vendor.conf", Content: "admin"},
		{Path: dropin.NetworkDropIn("ens6"), Source: dropin.NetworkDropIn("ens6"), Content: "[Match]\nName=ens6\n"},
		{Path: dropin.NetworkPath("ens6") + ".d/lab.conf", Source: etc + "80-ec2.network.d/lab.conf", Content: "lab"},
	}
	if masks := []string{etc + "70-ens6.network.d/10-vendor.conf", etc + "70-ens6.network.d/60-empty.conf"}; !slices.Equal(got.MaskedDropIns, masks) {
		t.Errorf("masks: %q", got.MaskedDropIns)
	}
	if !slices.EqualFunc(got.Texts, want, sameText) {
		t.Errorf("%+v", got.Texts)
	}
	if !want[2].Generated() || want[1].Generated() || want[3].Generated() {
		t.Error("which text is generated?")
	}
	// The administrator's copy wins, and masks.
	link(t, s.at(etc+"80-ec2.network"), os.DevNull)
	if got := s.Tree().Look(dropin.BaseName); got.Path != etc+dropin.BaseName || !got.Masked || len(got.Texts) > 0 {
		t.Errorf("%+v", got)
	}
	link(t, s.at(dropin.NetworkPath("ens6")), etc+dropin.BaseName)
	if got := s.Tree().Look("70-ens6.network"); !got.Masked {
		t.Errorf("a unit that leads to a masked one: %+v", got)
	}
	if got := s.Tree().Look("70-ens7.network"); got.Path != "" || got.Masked {
		t.Errorf("%+v", got)
	}
	if got := s.Tree().Networks(); !slices.Equal(got, []string{"70-ens6.network", dropin.BaseName}) {
		t.Errorf("%q", got)
	}
	stamp := s.Tree().Stamp(base)
	write(t, s.at(base), "[Match]\n")
	if s.Tree().Stamp(base) == stamp || s.Tree().Stamp("/nonexistent") != "" {
		t.Error("a stamp does not tell a change")
	}
}

func TestBase(t *testing.T) {
	s := newSite(t)
	if unit, dropIns := s.Tree().Base(); unit != base || len(dropIns) != 0 {
		t.Errorf("nothing there: %s, %v", unit, dropIns)
	}
	write(t, s.at(base), "")
	write(t, s.at(base+".d/a.conf"), "[Link]\n")
	write(t, s.at("/run/systemd/network/80-ec2.network.d/b.conf"), "[Link]\n")
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/a.conf"), "[Link]\n")
	write(t, s.at("/etc/systemd/network/80-ec2.network.d/readme"), "")
	write(t, s.at(base+".d/c.conf"), "[Link]\n")
	link(t, s.at("/etc/systemd/network/80-ec2.network.d/c.conf"), os.DevNull)
	unit, dropIns := s.Tree().Base()
	want := []string{"/etc/systemd/network/80-ec2.network.d/a.conf", "/run/systemd/network/80-ec2.network.d/b.conf"}
	if unit != base || !slices.Equal(dropIns, want) {
		t.Errorf("%s, %v", unit, dropIns)
	}
	write(t, s.at("/etc/systemd/network/80-ec2.network"), "")
	if unit, _ := s.Tree().Base(); unit != "/etc/systemd/network/80-ec2.network" {
		t.Errorf("an administrator's copy does not win: %s", unit)
	}
}

// E3: a drop-in is parsed again only when its file has changed, and is forgotten with it.
func TestNetwork(t *testing.T) {
	s := newSite(t)
	file := s.at(dropin.NetworkDropIn("ens6"))
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Tree().Network("ens6"); n != nil {
		t.Errorf("without a file: %+v", n)
	}
	const text = "# Written by ec2netd\n[Match]\nMACAddress=02:00:00:00:00:0a\n[DHCPv4]\nRouteMetric=513\n"
	write(text)
	first := s.Tree().Network("ens6")
	if first.RouteMetric() != 513 || s.Tree().Network("ens6") != first {
		t.Errorf("%+v, then %+v", first, s.Tree().Network("ens6"))
	}
	if held := plan.Assigned(s.Tree(), ""); held["02:00:00:00:00:0a"] != (plan.Numbers{Index: 1}) || s.Tree().Network("ens6") != first {
		t.Errorf("assigned are %v", held)
	}
	write(text + "[Link]\nGroup=3778\n")
	if second := s.Tree().Network("ens6"); second == first || second.Link.Group != 3778 {
		t.Errorf("of a changed file: %+v", second)
	}
	for _, other := range []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"} {
		link := plan.Link{}
		link.Name, link.MAC = "ens6", other
		if link.Complete(s.Tree()); (link.Current != nil) != (other == "02:00:00:00:00:0a") {
			t.Errorf("of %s: %+v", other, link.Current)
		}
	}
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	if n := s.Tree().Network("ens6"); n != nil || s.contents[dropin.NetworkDropIn("ens6")] != nil {
		t.Errorf("of a removed file: %+v, %d files are known", n, len(s.contents))
	}
}
