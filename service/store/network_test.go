package store

import (
	"os"
	"path/filepath"
	"testing"

	"ec2netd/service/plan"
)

// E3: a drop-in is parsed again only when its file has changed, and is forgotten with it.
func TestNetwork(t *testing.T) {
	s := &Store{Root: t.TempDir()}
	file := s.at(plan.NetworkDropIn("ens6"))
	write := func(text string) {
		t.Helper()
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, []byte(text), 0o644); err != nil {
			t.Fatal(err)
		}
	}
	if n := s.Network("ens6"); n != nil {
		t.Errorf("without a file: %+v", n)
	}
	const text = "# Written by ec2netd\n[Match]\nMACAddress=02:00:00:00:00:0a\n[DHCPv4]\nRouteMetric=513\n"
	write(text)
	first := s.Network("ens6")
	if first.RouteMetric() != 513 || s.Network("ens6") != first {
		t.Errorf("%+v, then %+v", first, s.Network("ens6"))
	}
	if held := s.Assigned(""); held["02:00:00:00:00:0a"] != (plan.Numbers{Index: 1}) || s.Network("ens6") != first {
		t.Errorf("assigned are %v", held)
	}
	write(text + "[Link]\nGroup=3778\n")
	if second := s.Network("ens6"); second == first || second.Link.Group != 3778 {
		t.Errorf("of a changed file: %+v", second)
	}
	for _, other := range []string{"02:00:00:00:00:0a", "02:00:00:00:00:0b"} {
		link := plan.Link{}
		link.Name, link.MAC = "ens6", other
		if s.Complete(&link, s.Networks()); (link.Current != nil) != (other == "02:00:00:00:00:0a") {
			t.Errorf("of %s: %+v", other, link.Current)
		}
	}
	if err := os.RemoveAll(filepath.Dir(file)); err != nil {
		t.Fatal(err)
	}
	if s.Assigned(""); len(s.parsed) > 0 || s.Network("ens6") != nil {
		t.Errorf("of a removed file: %+v", s.parsed)
	}
}
