package plan

import (
	"maps"
	"net/netip"

	"ec2netd/service/metadata"
)

// Hint is what the last boot of this instance knew. It makes files right from the first
// moment, so that networkd configures each link once (E1); nothing is certain of it. What
// the metadata tells takes its place, ENI by ENI.
type Hint struct {
	// PrimaryMAC is the MAC address of the instance's primary ENI. It tells whether the
	// hint is for this instance: a primary ENI is never moved to another one, and an
	// instance that was made of an image of this one has an ENI of its own.
	PrimaryMAC string
	// Views by MAC address, and the IPv6 routers that advertised themselves to the ENI.
	Views   map[string]metadata.ENI
	Routers map[string][]netip.Addr
	// Told, by MAC address, are addresses in a file of cloud-init's that EC2 gave the ENI, by now or
	// earlier.
	Told map[string][]netip.Addr
	// StaticIPv6: networkd was one that needs [Static].
	StaticIPv6 bool
}

// recall completes the input by the hint, and tells for which ENIs, by MAC address.
func recall(in Input) (Input, map[string]bool) {
	hint := in.Hint
	in.Hint = nil
	if hint == nil || (in.PrimaryMAC != "" && in.PrimaryMAC != hint.PrimaryMAC) {
		return in, nil
	}
	present := make(map[string]bool)
	for _, link := range in.Links {
		present[link.MAC] = true
	}
	if !present[hint.PrimaryMAC] {
		return in, nil
	}
	in.Hint, in.PrimaryMAC = hint, hint.PrimaryMAC
	// Numbers that the metadata gave to one ENI are no other's: ENIs may have been
	// exchanged while the instance was off.
	taken := make(map[Numbers]bool)
	for _, view := range in.Views {
		taken[numbersOf(&view)] = true
	}
	views, hinted := maps.Clone(in.Views), make(map[string]bool)
	if views == nil {
		views = make(map[string]metadata.ENI)
	}
	for mac, view := range hint.Views {
		if _, known := in.Views[mac]; known || !present[mac] || taken[numbersOf(&view)] {
			continue
		}
		views[mac], hinted[mac] = view, true
	}
	in.Views = views
	return in, hinted
}

func numbersOf(view *metadata.ENI) Numbers {
	n := Numbers{Index: view.DeviceIndex}
	if view.NetworkCard != nil {
		n.Card = *view.NetworkCard
	}
	return n
}
