package status

import (
	"fmt"
	"path"
	"strings"
)

// PlatformAdvice is what to do where a machine is taken for none of EC2 and is to be one.
const PlatformAdvice = "on a cloud that is compatible with EC2 set Platform=any in [Match] of ec2netd.conf(5), then: systemctl restart ec2netd.service"

// InstallAgain is what to do where a file of the installation is missing. A package manager that has
// ec2netd installed does nothing when it is told to install it.
const InstallAgain = "install ec2netd again: apt-get install --reinstall PACKAGE, dnf reinstall PACKAGE, or make install"

// IPv6NotApplicable says of an ENI that its IPv6 does not apply, for the reason in why.
func IPv6NotApplicable(why string) string { return "IPv6 is not applicable: " + why }

// Parts of several reasons.
const (
	networkdUnit = "systemd-networkd.service"
	mend         = ". Remove it to have the ENI configured"
)

// Words are the reason for people. They are empty if there is none.
func (r Reason) Words() string {
	words := r.words()
	if r.Undecided && words != "" {
		words += "; whether it is managed depends on that"
	}
	for i := range r.More {
		words += "; " + r.More[i].Words()
	}
	return words
}

func (r *Reason) words() string {
	//exhaustive:enforce
	switch r.Code {
	case None:
		return ""
	case BusSilent, NetworkdStopped, NetworkdMasked, NetworkdMaskedRuntime, NetworkdNotInstalled, NetworkdFailed, NetworkdStarting, NetworkdOffBus:
		return r.ofNetworkd()
	case OfENI, FilesUnwritten, ConfigurationWrong, RecordUnwritten, FileUnreadable, Conflicting, NotEC2:
		return r.ofDaemon()
	case MetadataUnread, MetadataOff, MetadataSilent, MetadataFailed, MetadataIncomplete, ManagedNo, SharedMAC, CardUnknown, NotPropagated,
		NumbersInUse, NumbersTaken, LastBoot, LastView, Detached, NoLink:
		return r.ofMetadata()
	case TakingUp, DropInTaken, UnitMasked, UnitReplaced, UnitUnmatched, UnitTaken, DropInHidden, DropInMasked, ReloadDue,
		OthersUnit, OtherENIsUnit, BaseMasked, MatchFails, UnmanagedBySetting, UnmanagedByUnit, LeftAlone, NotTakenUp:
		return r.ofFiles()
	case SetDown, PortWithoutAddresses, LinkDown, NoCarrier, PortOf:
		return r.ofLink()
	case WaitingFor, FilesUnread, UdevMissed, NotBrought, Contested, KeptBySetting, TakenBySetting, MarkTaken, WrittenStays, Misordered:
		return r.ofGaps()
	case NameHeld, NamesMissing, NamesRefused, NamesMasked, NamesHidden, NamesUnmatched, NamesEarlier:
		return r.ofNames()
	case RouteStays, StaysDespite, WithdrawnInFiles, Withdrawn, Disowned, AddedToo, Unasked, RouteLate, OtherMTU, NameNotAdded, RemovedOrAsked,
		Tentative, DHCPSilent, NetworkdLacks, ItemUnmanaged, ItemUnknown, ItemKept, ForeignConfigured, ForeignAdded:
		return r.ofItem()
	case PlaceTaken, PlaceHasFile, PlaceMasked, PlaceHasLink:
		return r.ofPlace()
	case UdevBusy, AwaitsLease, AwaitsDHCPv6, FileMissing, SecondariesNo, NoMark, LeftToOthers, IPv6OffHost, IPv6OffLink, IPv6None:
		return r.behindItem()
	}
	return ""
}

func (r *Reason) ofNetworkd() string {
	switch r.Code {
	case BusSilent:
		return "the system bus does not answer, so systemd-networkd cannot be asked to reload"
	case NetworkdMasked:
		return "systemd-networkd is masked: have it run with systemctl unmask " + networkdUnit + " && systemctl enable --now " + networkdUnit
	case NetworkdMaskedRuntime:
		return "systemd-networkd is masked until the next boot: have it run with systemctl unmask --runtime " + networkdUnit + " && systemctl enable --now " + networkdUnit
	case NetworkdNotInstalled:
		return "systemd-networkd is not installed: install it, ec2netd needs it"
	case NetworkdFailed:
		return "systemd-networkd has failed: see systemctl status " + networkdUnit
	case NetworkdStarting:
		return "systemd-networkd is starting"
	case NetworkdOffBus:
		return "systemd-networkd runs and is not on the system bus, which it does not join again where that was restarted: restart it with systemctl restart " +
			networkdUnit
	case NetworkdStopped:
		return "systemd-networkd does not run: start it with systemctl enable --now " + networkdUnit
	}
	return ""
}

func (r *Reason) ofDaemon() string {
	switch r.Code {
	case OfENI:
		return fmt.Sprintf("%s (%s) is %s: %s", r.Subject, r.Other, r.State, r.of())
	case ConfigurationWrong:
		return "the configuration has mistakes: " + r.Cause
	case FileUnreadable:
		return "a file cannot be read, and counts as if it were not there: " + r.Cause
	case Conflicting:
		return fmt.Sprintf("in conflict with %s: %s", r.Subject, strings.Join(r.Values, ", "))
	case NotEC2:
		return r.Cause + ", and nothing is configured; " + PlatformAdvice
	case FilesUnwritten, RecordUnwritten:
		return r.Cause
	}
	return ""
}

func (r *Reason) ofMetadata() string {
	switch r.Code {
	case MetadataUnread:
		return "the metadata has not been read yet"
	case MetadataOff:
		return "what is configured stays: " + r.Cause
	case MetadataSilent:
		return "the metadata service does not answer, what is configured stays: " + r.Cause
	case ManagedNo:
		return r.File + " says Managed=no"
	case SharedMAC:
		return fmt.Sprintf("another link (%s) has the MAC address %s too, what is configured stays: remove the one that is not the ENI", r.Other, r.Subject)
	case CardUnknown:
		return "the metadata does not tell its network card yet, though it does for other ENIs"
	case NotPropagated:
		return "the metadata still says device-number 0, which is the primary's: the attachment has not propagated yet"
	case NumbersInUse:
		return fmt.Sprintf("%s had device index %d on network card %d until now, and still has routes of it", r.Other, r.Index, r.Card)
	case NumbersTaken:
		return fmt.Sprintf("device index %d on network card %d is that of %s too: one of the two has not propagated yet", r.Index, r.Card, r.Other)
	case LastBoot:
		const words = "the metadata has not been read yet; it is configured as the last boot knew it"
		if r.Cause != "" {
			return words + ": " + r.Cause
		}
		return words
	case LastView:
		return "the last view of the metadata holds: " + r.Cause
	case Detached:
		return "detached"
	case NoLink:
		return "the instance has no link for it"
	case MetadataFailed, MetadataIncomplete:
		return r.Cause
	}
	return ""
}

func (r *Reason) ofFiles() string {
	switch r.Code {
	case TakingUp:
		return "waiting for networkd to take up its files"
	case DropInTaken:
		return r.File + " is not this daemon's: a mask, maybe" + r.using() + mend
	case UnitMasked:
		return r.File + " masks the unit of the ENI" + r.using() + mend
	case UnitReplaced:
		return "the administrator's " + r.File + " is in force, and nothing of ec2netd" + mend
	case UnitUnmatched:
		return "the administrator's " + r.File + " takes the place of the ENI's unit, but does not match the link" + r.using() + mend
	case UnitTaken:
		return r.File + " takes the place of its unit"
	case DropInHidden:
		return "the administrator's " + r.File + " is in force in place of " + r.Own + ". Give it another name to have both, or remove it, then: networkctl reload"
	case DropInMasked:
		// 262 does not read such a unit at all, other versions only leave the drop-in out.
		return r.File + " masks a drop-in of " + r.Own + r.using() + mend + ", then: networkctl reload"
	case ReloadDue:
		return r.File + " is still in force in place of " + r.Own + ": have networkd read its files with networkctl reload"
	case OthersUnit:
		return "networkd uses " + r.File + " for the link instead of " + r.Own + ": remove it, or give it a name that sorts after " +
			path.Base(r.Own) + ", or have its [Match] leave out " + r.Subject + ", then: networkctl reload"
	case OtherENIsUnit:
		return "networkd uses " + r.InForce + " for the link, the unit of " + r.Other + ", because of the [Match] in " + r.File + ": change that, then: networkctl reload"
	case BaseMasked:
		return r.File + " masks the base unit of all ENIs. Remove it to have them configured"
	case MatchFails:
		return r.File + " has a [Match] that " + r.Own + " does not match " + r.Subject + " with" + r.using() + ". Change it to have the ENI configured, then: networkctl reload"
	case UnmanagedBySetting:
		return r.File + " has networkd leave the link alone (Unmanaged=yes). Change it to have the ENI configured, then: networkctl reload"
	case UnmanagedByUnit:
		return "networkd leaves the link alone, as " + r.File + " says (Unmanaged=yes) instead of " + r.Own +
			": remove it, or have its [Match] leave out " + r.Subject + ", then: networkctl reload"
	case LeftAlone:
		return "networkd leaves the link alone: see networkctl status " + r.Subject
	case NotTakenUp:
		return "networkd has not taken up " + r.Own + " and uses " + r.InForce + ": see networkctl status " + r.Subject
	}
	return ""
}

func (r *Reason) ofPlace() string {
	switch r.Code {
	case PlaceTaken:
		return "something of somebody else's, a mask maybe, is in its place"
	case PlaceHasFile:
		return "a file of somebody else's is in its place"
	case PlaceMasked:
		return "it is masked"
	case PlaceHasLink:
		return "a link of somebody else's to " + r.File + " is in its place"
	}
	return ""
}

// using says what networkd uses instead.
func (r *Reason) using() string {
	if r.InForce == "" {
		return ", and networkd leaves the link alone"
	}
	return ", and networkd uses " + r.InForce
}

func (r *Reason) ofLink() string {
	switch r.Code {
	case SetDown:
		return "the link was set down, and stays so. Set it up with: ip link set dev " + r.Subject + " up"
	case PortWithoutAddresses:
		return r.port() + ", which takes what arrives. Release it with: " + release(r.Subject)
	case LinkDown:
		return "the link is down, and networkd does not set it up: see networkctl status " + r.Subject
	case NoCarrier:
		return "the link has no carrier: see networkctl status " + r.Subject + ", and whether EC2 has the ENI attached"
	case PortOf:
		return r.port()
	}
	return ""
}

func (r *Reason) port() string {
	words := "the link is a port of " + r.Other + " (" + r.OtherKind + ")"
	if r.Value != "" {
		words += " with the MAC address " + r.Value + " in place of its own"
	}
	return words
}

// release makes a link no port any more. The kernel tells of that as it does of a link that goes, and
// networkd takes it for that: 262 then misses the link-local address, without which it asks no router,
// until there is another one.
func release(name string) string {
	return "ip link set dev " + name + " nomaster; ip link set dev " + name + " down; ip link set dev " + name + " up"
}

func (r *Reason) ofGaps() string {
	switch r.Code {
	case WaitingFor:
		return "waiting for: " + Summary(r.Gaps)
	case FilesUnread:
		return "missing: " + Summary(r.Gaps) + "; networkd has not read the files: " + r.Cause + ". See journalctl -u systemd-networkd"
	case UdevMissed:
		return "udevd has not handled the link, which networkd waits for: see systemctl status systemd-udevd.service"
	case Contested:
		words := "somebody takes away again and again what the ENI shall have: it was put back " + plural(r.Number, "time") +
			", and that is done less and less often. See journalctl -u ec2netd for what it was, and stop whoever does it"
		if len(r.Gaps) > 0 {
			words += ". Missing: " + Summary(r.Gaps)
		}
		return words
	case KeptBySetting:
		return r.File + " keeps what the ENI has no more (" + r.Setting + "). " + Summary(r.Gaps) + ". " + r.removal()
	case TakenBySetting:
		return r.File + " takes away what the ENI shall have (" + r.Setting + "). Missing: " + Summary(r.Gaps) + ". Change it, or remove it, then: networkctl reload"
	case MarkTaken:
		return fmt.Sprintf("FirewallMark=%s of the configuration is not in force: that of %s is %s, and a packet can leave by one of the two only",
			r.Value, r.Other, r.OtherValue)
	case WrittenStays:
		return fmt.Sprintf("%s has %s, and nothing tells that EC2 gave the ENI that: all addresses there stay, those too that EC2 withdraws. %s, "+
			"and have what you need in a drop-in in /etc/systemd/network/%s.d/", r.File, strings.Join(r.Values, ", "), r.removal(), path.Base(r.Own))
	case Misordered:
		return fmt.Sprintf("the first address of the link is %s, not the primary one %s, which networkd has added anew: no address is missing",
			r.Value, r.OtherValue)
	case NotBrought:
		return "networkd has not brought: " + Summary(r.Gaps) + "; see journalctl -u systemd-networkd"
	}
	return ""
}

// removal says how an address goes that stands in a .network file.
func (r *Reason) removal() string {
	if r.Netplan {
		return "netplan makes that file: remove the address from the one in /etc/netplan that has it, and run netplan generate && networkctl reload"
	}
	return "Remove that line and run networkctl reload to have it go"
}

func (r *Reason) ofNames() string {
	const without = "the ENI has no alternative names: "
	switch r.Code {
	case NameHeld:
		if r.Value == r.Other {
			return "altname " + r.Value + " is the name of another link: ip link set dev " + r.Value + " name NAME, with another NAME, frees it"
		}
		return "altname " + r.Value + " is still that of " + r.Other + ": ip link property del dev " + r.Other + " altname " + r.Value +
			" && ip link property add dev " + r.Subject + " altname " + r.Value
	case NamesRefused:
		return without + r.Own + " is not written: " + r.of() + ". Remove that to have them"
	case NamesMasked:
		return without + r.File + " masks the .link file. Remove it to have them"
	case NamesHidden:
		return without + "the administrator's " + r.File + " is in force in place of " + r.Own + ". Give it another name to have both, or remove it"
	case NamesUnmatched:
		return without + r.File + " has a [Match] that the .link file does not match the link with. Change it to have them"
	case NamesEarlier:
		return without + "udevd uses " + r.File + " for the link instead of " + r.Own + ": give it a name that sorts after " + path.Base(r.Own) +
			", or write the names into it (AlternativeName=), for the next boot, or for now if nothing else acts on links that come, then: udevadm control --reload && udevadm trigger --action=add /sys/class/net/" + r.Subject
	case NamesMissing:
		return "missing: " + Summary(r.Gaps) + "; see journalctl -u ec2netd-orphans.service"
	}
	return ""
}

func (r *Reason) ofItem() string {
	switch r.Code {
	case RouteStays:
		return "the ENI has no such route any more; networkd has not taken it away"
	case StaysDespite:
		return r.of() + "; networkd has not taken it away"
	case WithdrawnInFiles:
		return "the metadata has withdrawn it; the files are about to follow"
	case Withdrawn:
		return "the metadata has withdrawn it; networkd has not taken it away"
	case Disowned:
		return "networkd does not count it as its own: it is at work on it, or somebody else has added it too"
	case AddedToo:
		return "somebody else has added it; the ENI gets it from the files when it goes"
	case Unasked:
		return "it is there, and the files do not ask for it: " + r.of()
	case RouteLate:
		return "it comes with the next router advertisement; the one in the ENI's own table does until then"
	case OtherMTU:
		return fmt.Sprintf("the link has %d: networkd has not set it, or somebody else has changed it", r.Number)
	case NameNotAdded:
		return "it has not been added yet"
	case RemovedOrAsked:
		return "networkd has asked the kernel for it, or somebody else has removed it"
	case Tentative:
		return "the kernel is looking whether anybody else has it (duplicate address detection)"
	case DHCPSilent:
		return "DHCP has not brought it"
	case NetworkdLacks:
		return "networkd has not brought it"
	case ItemUnmanaged:
		return "the configuration says Managed=no"
	case ItemUnknown:
		return "the metadata of the ENI is not complete"
	case ItemKept:
		return "the metadata is not complete; what was configured stays"
	case ForeignConfigured:
		return "not of the metadata: from DHCP, a router or a file of somebody else's; it is left alone"
	case ForeignAdded:
		return "not of the metadata: somebody else has added it; it is left alone"
	}
	return ""
}

func (r *Reason) behindItem() string {
	switch r.Code {
	case UdevBusy:
		return "udevd has not handled the link yet"
	case AwaitsLease:
		return "it waits for the lease, so that the primary address is the first of the link"
	case AwaitsDHCPv6:
		return "it waits until DHCPv6 has given it up"
	case SecondariesNo:
		return "the configuration says SecondaryAddresses=no"
	case NoMark:
		return "the configuration has no such FirewallMark="
	case LeftToOthers:
		return "left to others by SecondaryAddresses=no"
	case IPv6OffHost:
		return "the host has no IPv6 (ipv6.disable=1 on the kernel command line)"
	case IPv6OffLink:
		return "IPv6 is disabled on the link (sysctl net.ipv6.conf." + strings.ReplaceAll(r.Subject, ".", "/") + ".disable_ipv6=1)"
	case IPv6None:
		return "the kernel has given the link no IPv6, as it does where the MTU is below 1280"
	case FileMissing:
		return "the file that asks for it is not in place"
	}
	return ""
}

// of are the words of the reason behind this one.
func (r *Reason) of() string {
	if r.Of == nil {
		return ""
	}
	return r.Of.Words()
}

// Planned are the words for a plan that is only shown: why an ENI gets no files, and whether what
// there is of them stays.
func (r Reason) Planned(kept bool) string {
	words := r.Words()
	if r.Code == ManagedNo {
		words = "not managed"
		if r.File != "" {
			words += ", as " + r.File + " says"
		}
	}
	if kept {
		words += "; what is configured stays"
	}
	return words
}
