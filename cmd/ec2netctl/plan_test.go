package main

import (
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"ec2netd/service/orphan"
	"ec2netd/service/plan"
)

// A8: the daemon's record tells its addresses from others. Without one none is the daemon's, and one that
// cannot be read tells nothing.
func TestOwnAddresses(t *testing.T) {
	c := &ctl{environment: environment{root: t.TempDir()}}
	place := orphan.PlaceOf(c.root)
	for _, file := range []string{place.Path, place.Mark} {
		if err := os.MkdirAll(filepath.Dir(file), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	own := plan.OwnAddress{MAC: "02:00:00:00:01:20", Address: netip.MustParseAddr("10.0.1.9")}
	other := plan.OwnAddress{MAC: own.MAC, Address: netip.MustParseAddr("10.0.1.8")}
	if ours := c.ownAddresses(); ours == nil || ours(own) {
		t.Error("there is no record")
	}
	record := orphan.NewRecord(place)
	record.Put(nil, []plan.OwnAddress{own}, time.Now())
	if err := record.Err(); err != nil {
		t.Fatal(err)
	}
	if ours := c.ownAddresses(); ours == nil || !ours(own) || ours(other) {
		t.Error("the record does not tell")
	}
	if err := os.WriteFile(place.Path, []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if c.ownAddresses() != nil {
		t.Error("the record cannot be read")
	}
}
