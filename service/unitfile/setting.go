package unitfile

import (
	"slices"
	"strconv"
	"strings"
)

// MTUSetting is what unit files of others than this daemon say of a link's MTU.
type MTUSetting struct {
	// Bytes is the administrator's MTUBytes=, 0 for none.
	Bytes int
	// Lease reports whether the MTU of the DHCPv4 lease is used (UseMTU=).
	Lease bool
	// OfLink reports whether Bytes stands in the .link file in force, which udevd applies once. A
	// lease would take its place.
	OfLink bool
}

// MTU returns what a unit and its drop-ins say of the MTU, see systemd.network(5).
func (u Unit) MTU() MTUSetting {
	var found MTUSetting
	for i := range u.Texts {
		text := &u.Texts[i]
		if text.Generated() {
			continue
		}
		for _, s := range text.Settings() {
			switch {
			case s.Section == "Link" && s.Key == "MTUBytes":
				if bytes, ok := size(s.Value); ok || s.Value == "" {
					found.Bytes = bytes
				}
			case (s.Section == "DHCPv4" || s.Section == "DHCP") && s.Key == "UseMTU":
				if set := Yes(s.Value); set || No(s.Value) {
					found.Lease = set
				}
			}
		}
	}
	return found
}

// size parses a number of bytes, with a suffix to the base of 1024 or without.
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

// PortSetting is what unit files of others than this daemon say of the link's master, and of whether
// the link is up.
type PortSetting struct {
	// OthersMaster reports whether they say what the link is a port of, or that it stays one.
	OthersMaster bool
	// OthersVRF reports whether they name a VRF. networkd then puts the routes of DHCP and router
	// advertisements into the table of that VRF.
	OthersVRF bool
	// OthersActivation reports whether they say whether networkd sets the link up or down.
	OthersActivation bool
}

// Port returns what a unit and its drop-ins say of the link's master, see systemd.network(5).
func (u Unit) Port() PortSetting {
	var found PortSetting
	for i := range u.Texts {
		text := &u.Texts[i]
		if text.Generated() {
			continue
		}
		for _, s := range text.Settings() {
			switch {
			case s.Section == "Network" && slices.Contains([]string{"Bridge", "Bond", "VRF", "BatmanAdvanced"}, s.Key):
				found.OthersMaster = s.Value != ""
				if s.Key == "VRF" {
					found.OthersVRF = s.Value != ""
				}
			case s.Section == "Network" && s.Key == "KeepMaster":
				found.OthersMaster = true
			case s.Section == "Link" && s.Key == "ActivationPolicy":
				found.OthersActivation = s.Value != ""
			}
		}
	}
	return found
}
