package unitfile

import "testing"

const netplans = "/run/systemd/network/10-netplan-ens6."

var ens6 = Link{Name: "ens6", MAC: "02:00:00:00:01:11", Address: "02:00:00:00:01:11", Driver: "ena", Altnames: []string{"eni-0123"}}

func TestFromGenerator(t *testing.T) {
	for file, want := range map[string]bool{
		netplans + "network": true, netplans + "link": true, "/etc/systemd/network/10-cloud-init-ens5.network": true,
		// An administrator's copy.
		"/etc/systemd/network/10-netplan-ens6.network": false,
		"/run/systemd/network/70-ens6.network":         false, "/run/systemd/network/10-mine.network": false,
	} {
		if got := FromGenerator(file); got != want {
			t.Errorf("%s: %v", file, got)
		}
	}
}

// Files that name drivers lose no ENI by naming more.
func TestLeavesOut(t *testing.T) {
	for content, want := range map[string]bool{"[Match]\nName=en*\n": true, "[Match]\nDriver=ena\n": false, "[Link]\nDriver=x\n": true} {
		if got := (&Text{Content: content}).LeavesOut(); got != want {
			t.Errorf("%q: %v", content, got)
		}
	}
}

// What is said for one link, and what for others too.
func TestSole(t *testing.T) {
	for content, want := range map[string]bool{
		"[Match]\nMACAddress=02:00:00:00:01:11\nName=ens6\n": true,
		"[Match]\nPermanentMACAddress=02:00:00:00:01:11\n":   true,
		"[Match]\nName=ens6\n":                               true,
		"[Match]\nName=en*\n":                                false,
		"[Match]\nName=ens5 ens6\n":                          false,
		"[Match]\nMACAddress=02:00:00:00:01:12\n":            false,
		"[Match]\nDriver=ena\n":                              false,
		"[Network]\nName=ens6\n":                             false,
		"":                                                   false,
	} {
		if got := (&Text{Content: content}).Sole(&ens6); got != want {
			t.Errorf("%q: %v", content, got)
		}
	}
}

// F10: what files of others say of a master, the last of them for good.
func TestPortOf(t *testing.T) {
	for _, c := range []struct {
		lines       string
		master, vrf bool
	}{
		{"[Network]\nDHCP=yes\n", false, false},
		{"[Network]\nBridge=br0\n", true, false},
		{"[Network]\nKeepMaster=yes\n", true, false},
		{"[Network]\nVRF=blue\n", true, true},
		{"[Network]\nVRF=blue\n[Network]\nVRF=\n", false, false},
		{"[Link]\nVRF=blue\n", false, false},
	} {
		unit := Unit{Texts: []Text{{Path: "/etc/systemd/network/ens6.network", Content: c.lines}}}
		if got := unit.Port(); got.OthersMaster != c.master || got.OthersVRF != c.vrf {
			t.Errorf("%q: %+v", c.lines, got)
		}
	}
}
