package plan

import (
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
)

// refusesRoutes reports whether the kernel refuses the routes of the link's leases: networkd asks for
// them in the main table where the link is a port of a VRF that none of its files names.
func (l *Link) refusesRoutes() bool { return l.InVRF() && !l.OthersVRF }

// withoutGateway reports whether the drop-in has networkd set no default route of a lease or an
// advertisement.
func (e *ENI) withoutGateway() bool { return !e.Settings.DefaultRoute || e.Link.refusesRoutes() }

// KeptDown reports whether the generated drop-in of a link has networkd leave it down.
func (l *Link) KeptDown() bool { return l.Current.KeepsDown() }

// keepsDown reports whether a link stays down when networkd configures it anew, since somebody has
// set it down (F10).
func (l *Link) keepsDown() bool { return l.SetDown && !l.OthersActivation }

// keepDown keeps such a link down.
func keepDown(n *dropin.Network, link *Link) {
	if link.keepsDown() {
		n.Link.ActivationPolicy = dropin.Manual
	}
}

// keepMaster keeps a link the port that it is when networkd configures it anew (F10). By itself
// networkd releases a link from a master that none of its files names. With KeepMaster= it takes
// IPv6 from the link unless it is told otherwise, which a port of a VRF needs; and for others it
// says at each reload what it does without. A link that somebody has set down may be about to become
// a port: were it one by the time that networkd reads the file, networkd would release it.
func keepMaster(n *dropin.Network, link *Link) {
	if (link.Master == "" && !link.keepsDown()) || link.OthersMaster {
		return
	}
	n.Network.KeepMaster = dropin.Yes
	if link.IPv6 == kernel.IPv6On {
		n.Network.LinkLocalAddressing = dropin.LinkLocalIPv6
	}
}
