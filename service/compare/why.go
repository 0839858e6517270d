package compare

import (
	"net/netip"
	"slices"

	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// why says why an item is not the same everywhere. It says nothing if it is.
func (c *comparison) why(e *entry) status.Reason {
	code := status.None
	switch {
	case e.apart != status.None:
	case e.unwanted && e.Kind == state.ItemRoute:
		code = status.RouteStays
	case e.unwanted && e.cause != nil:
		return status.Reason{Code: status.StaysDespite, Of: e.cause}
	case e.unwanted && e.Rendered:
		code = status.WithdrawnInFiles
	case e.unwanted:
		code = status.Withdrawn
	case e.wanted:
		return c.whyWanted(e)
	case e.Metadata == state.Yes && !c.eni.Settings.Managed:
		code = status.ItemUnmanaged
	case e.Metadata == state.Yes:
		code = status.ItemUnknown
	case e.Rendered:
		code = status.ItemKept
	case e.Networkd == state.Yes && e.Kind == state.ItemAddress:
		code = status.ForeignConfigured
	case e.Kernel && e.Kind == state.ItemAddress:
		code = status.ForeignAdded
	case !c.eni.Known:
		return c.eni.Reason
	}
	return status.Reason{Code: code}
}

// whyWanted is why for an item that the kernel shall have.
func (c *comparison) whyWanted(e *entry) status.Reason {
	link := &c.eni.Link
	code := status.NetworkdLacks
	switch {
	case e.Kernel && e.Rendered && e.Networkd != state.No:
		code = status.None
	case e.Kernel && e.Rendered:
		code = status.Disowned
	case e.Kernel && e.Kind == state.ItemAddress && slices.Contains(link.Foreign, addressOf(e.Value)):
		code = status.AddedToo
	case e.Kernel:
		return status.Reason{Code: status.Unasked, Of: &status.Reason{Code: c.unwritten(e)}}
	case !e.Rendered:
		code = c.unwritten(e)
	case e.late:
		code = status.RouteLate
	case e.Kind == state.ItemMTU:
		return status.Reason{Code: status.OtherMTU, Number: link.MTU}
	case e.Kind == state.ItemAltname:
		code = status.NameNotAdded
	case e.Networkd == state.Yes:
		code = status.RemovedOrAsked
	case tentative(link, e.Value):
		code = status.Tentative
	case e.Kind == state.ItemAddress && !c.files.addresses[addressOf(e.Value)]:
		code = status.DHCPSilent
	}
	return status.Reason{Code: code}
}

// unwritten says why the files do not have what the kernel shall have.
func (c *comparison) unwritten(e *entry) status.Code {
	switch {
	case e.Kind == state.ItemAltname && c.eni.Link.LinkFile == "":
		return status.UdevBusy
	case e.Kind == state.ItemAddress && c.eni.Held && c.files.leases && addressOf(e.Value).Is4():
		return status.AwaitsLease
	case e.Kind == state.ItemAddress && c.eni.Held && c.files.leases:
		return status.AwaitsDHCPv6
	}
	return status.FileMissing
}

func addressOf(value string) netip.Addr {
	address, _ := netip.ParseAddr(value)
	return address
}

func tentative(link *plan.Link, value string) bool {
	return slices.ContainsFunc(link.Addresses, func(a kernel.Address) bool { return a.Tentative && a.Prefix.Addr().String() == value })
}
