package plan

import (
	"strconv"
	"strings"
)

// VPCMTU is the MTU of a VPC's networks (A9): "Jumbo frames" in the EC2 user guide. DHCP
// tells it, but for an ENI in an IPv6-only subnet nobody does.
const VPCMTU = 9001

// MTUSetting is what unit files of others than this daemon say of a link's MTU.
type MTUSetting struct {
	// Bytes is the administrator's MTUBytes=, 0 for none.
	Bytes int
	// Lease: the MTU that DHCPv4 tells is used (UseMTU=).
	Lease bool
	// OfLink: Bytes stands in the .link file in force, which udevd applies once. A lease would
	// take its place.
	OfLink bool
}

// MTUOf reads a unit and its drop-ins, see systemd.network(5).
func MTUOf(unit UnitText) MTUSetting {
	var found MTUSetting
	for i := range unit.Texts {
		text := &unit.Texts[i]
		if text.Generated() {
			continue
		}
		for _, s := range settings(text.Content) {
			switch {
			case s.section == "Link" && s.key == "MTUBytes":
				if bytes, ok := size(s.value); ok || s.value == "" {
					found.Bytes = bytes
				}
			case (s.section == "DHCPv4" || s.section == "DHCP") && s.key == "UseMTU":
				if set := yes(s.value); set || no(s.value) {
					found.Lease = set
				}
			}
		}
	}
	return found
}

// size is a number of bytes, with a suffix to the base of 1024 or without.
func size(value string) (int, bool) {
	factor := 1
	for i, suffix := range []string{"K", "M", "G"} {
		if number, ok := strings.CutSuffix(value, suffix); ok {
			value, factor = number, 1<<(10*(i+1))
		}
	}
	bytes, err := strconv.Atoi(value)
	return bytes * factor, err == nil && bytes > 0 && bytes < 1<<31
}

// settleMTU decides on the MTU of a known ENI. Only where nobody else tells it the drop-in
// does.
func settleMTU(eni *ENI) {
	link, want := &eni.Link, &eni.Want
	set := link.MTUSetting
	switch {
	case set.Bytes != 0:
		want.MTU, want.OwnMTU = set.Bytes, set.OfLink
	case len(eni.View.IPv4) == 0:
		want.MTU, want.OwnMTU = VPCMTU, true
	case set.Lease:
		want.MTU = link.LeaseMTU
	}
	if link.MaxMTU != 0 {
		want.MTU = min(want.MTU, link.MaxMTU)
	}
}
