package plan

import (
	"errors"
	"net/netip"
	"slices"
	"strings"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/unitfile"
)

// OwnAddress is a static address that stands or stood in the generated drop-in of an ENI.
type OwnAddress struct {
	// MAC address of the ENI.
	MAC     string
	Address netip.Addr
}

// MarshalText implements [encoding.TextMarshaler].
func (a OwnAddress) MarshalText() ([]byte, error) {
	return []byte(a.MAC + " " + a.Address.String()), nil
}

// UnmarshalText implements [encoding.TextUnmarshaler].
func (a *OwnAddress) UnmarshalText(text []byte) error {
	mac, address, ok := strings.Cut(string(text), " ")
	parsed, err := netip.ParseAddr(address)
	if err == nil && (!ok || mac == "" || parsed.Zone() != "") {
		err = errors.New("no address of an ENI")
	}
	*a = OwnAddress{mac, parsed}
	return err
}

// Compare orders addresses.
func (a OwnAddress) Compare(o OwnAddress) int {
	if a.MAC != o.MAC {
		return strings.Compare(a.MAC, o.MAC)
	}
	return a.Address.Compare(o.Address)
}

// OwnAddresses returns the addresses of a generated drop-in.
func OwnAddresses(n *dropin.Network) []OwnAddress {
	var found []OwnAddress
	for _, address := range n.Singles() {
		found = append(found, OwnAddress{n.MACAddress(), address})
	}
	return found
}

// addressesIn returns the addresses that any unit file of networkd has. Which links one of somebody
// else's is for is not known: MAC is empty then.
func addressesIn(text *unitfile.Text) []OwnAddress {
	if dropin.Ours(text.Content) {
		return OwnAddresses(text.Network())
	}
	var found []OwnAddress
	for _, address := range text.Addresses() {
		found = append(found, OwnAddress{Address: address})
	}
	return found
}

// OrphanAddresses are the addresses that networkd has left behind: a link has them, record
// says that they were in its drop-in, and no file wants them for it any more, see
// [WantedAddresses]. From systemd 257 on ENIs have KeepConfiguration=yes, with which networkd takes
// an address that was there before
// it started for somebody else's; 252 takes a deprecated one for DHCP's then.
func OrphanAddresses(record []OwnAddress, wanted map[OwnAddress]bool, links []kernel.Link) []OwnAddress {
	var found []OwnAddress
	for _, own := range record {
		if !wanted[own] && !wanted[OwnAddress{Address: own.Address}] && slices.ContainsFunc(links, func(l kernel.Link) bool { return l.MAC == own.MAC && has(&l, own.Address) }) {
			found = append(found, own)
		}
	}
	slices.SortFunc(found, OwnAddress.Compare)
	return found
}

// has tells whether a link has an address as a drop-in would give it.
func has(l *kernel.Link, address netip.Addr) bool {
	return slices.ContainsFunc(l.Addresses, func(a kernel.Address) bool {
		return !a.Dynamic && a.Prefix == netip.PrefixFrom(address, address.BitLen())
	})
}

// Foreign are the addresses that somebody else has put on an ENI's link, of those that a
// drop-in could give it: they do not stand there, and ours tells that they never did.
func Foreign(link *Link, ours func(OwnAddress) bool) []netip.Addr {
	var found []netip.Addr
	for _, a := range link.Addresses {
		address := a.Prefix.Addr()
		if a.Prefix.IsSingleIP() && !a.Dynamic && !ours(OwnAddress{link.MAC, address}) && !link.Current.HasSingle(address) {
			found = append(found, address)
		}
	}
	return found
}
