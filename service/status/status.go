// Package status says why things are as they are: in codes for programs, and in words for people.
//
// Whoever judges the state of an ENI or of the daemon makes a [Reason] with a code and what its
// words need. The words are made here and nowhere else, once, where the state is published or
// logged. No code reads them.
//
// The package holds values only. It does no input or output and does not know the time.
package status

import "reflect"

// Code identifies a reason. The values are stable: programs may rely on them.
type Code string

// None is the code of the zero [Reason]: there is nothing to say.
const None Code = ""

// The codes of the daemon as a whole.
const (
	// OfENI: an ENI (Subject, on the link Other) is in State, for the reason Of.
	OfENI Code = "eni"
	// BusSilent: the system bus does not answer.
	BusSilent Code = "bus-silent"
	// NetworkdStopped: networkd does not run.
	NetworkdStopped Code = "networkd-stopped"
	// NetworkdMasked: its unit is masked, NetworkdMaskedRuntime: until the next boot.
	NetworkdMasked        Code = "networkd-masked"
	NetworkdMaskedRuntime Code = "networkd-masked-runtime"
	// NetworkdNotInstalled: there is no such unit.
	NetworkdNotInstalled Code = "networkd-not-installed"
	// NetworkdFailed: its unit has failed.
	NetworkdFailed Code = "networkd-failed"
	// NetworkdStarting: it is starting.
	NetworkdStarting Code = "networkd-starting"
	// NetworkdOffBus: it runs, and is not on the system bus.
	NetworkdOffBus Code = "networkd-off-bus"
	// FilesUnwritten: generated files cannot be written (Cause).
	FilesUnwritten Code = "files-unwritten"
	// MetadataUnread: the metadata has not been read yet.
	MetadataUnread Code = "metadata-unread"
	// MetadataOff: the metadata service is switched off for the instance (Cause).
	MetadataOff Code = "metadata-off"
	// MetadataSilent: the metadata service does not answer (Cause).
	MetadataSilent Code = "metadata-silent"
	// MetadataFailed: a read of the metadata failed (Cause).
	MetadataFailed Code = "metadata-failed"
	// ConfigurationWrong: the configuration has mistakes; Cause is the first.
	ConfigurationWrong Code = "configuration-wrong"
	// RecordUnwritten: what a restart needs cannot be stored (Cause).
	RecordUnwritten Code = "record-unwritten"
	// FileUnreadable: a file of others cannot be read; Cause names it and says why.
	FileUnreadable Code = "file-unreadable"
	// Conflicting: other software (Subject) configures ENIs too, by the evidence in Values.
	Conflicting Code = "conflict"
	// NotEC2: the machine is no EC2 instance (Cause).
	NotEC2 Code = "not-ec2"
)

// The codes of ENIs whose metadata cannot be used as it is, or has not been asked for.
const (
	// ManagedNo: the configuration at File leaves the ENI alone.
	ManagedNo Code = "managed-no"
	// MetadataIncomplete: the metadata does not tell all of the ENI yet (Cause).
	MetadataIncomplete Code = "metadata-incomplete"
	// SharedMAC: the link Other has the MAC address Subject too.
	SharedMAC Code = "shared-mac"
	// CardUnknown: the metadata tells the network card of other ENIs, and not of this one.
	CardUnknown Code = "card-unknown"
	// NotPropagated: the metadata says device-number 0 of a secondary ENI.
	NotPropagated Code = "not-propagated"
	// NumbersInUse: the ENI Other still has routes of the Index and Card that are this one's now.
	NumbersInUse Code = "numbers-in-use"
	// NumbersTaken: the ENI Other has the same Index and Card.
	NumbersTaken Code = "numbers-taken"
	// LastBoot: the ENI is configured as the last boot knew it; Cause is why nothing newer is
	// known, if reading has failed.
	LastBoot Code = "last-boot"
	// LastView: the metadata cannot be read again (Cause), and its last view holds.
	LastView Code = "last-view"
	// Detached: the ENI is gone.
	Detached Code = "detached"
	// NoLink: the instance has no link for the ENI.
	NoLink Code = "no-link"
)

// The codes of ENIs for whose link networkd does not use the daemon's files. File is the file that
// stands in the way, Own the generated one, Subject the name of the link, and InForce the .network
// file that networkd uses, which is empty where it leaves the link alone.
const (
	// TakingUp: networkd is expected to take up the files in a moment.
	TakingUp Code = "taking-up"
	// DropInTaken: File is in the place of the generated drop-in.
	DropInTaken Code = "drop-in-taken"
	// UnitMasked: File masks the ENI's unit.
	UnitMasked Code = "unit-masked"
	// UnitReplaced: the administrator's File is in force.
	UnitReplaced Code = "unit-replaced"
	// UnitUnmatched: the administrator's File has the unit's place, and does not match the link.
	UnitUnmatched Code = "unit-unmatched"
	// UnitTaken: File takes the place of the unit; plans say so, which do not know what networkd
	// makes of it.
	UnitTaken Code = "unit-taken"
	// DropInHidden: the administrator's File is in force in the place of the drop-in Own.
	DropInHidden Code = "drop-in-hidden"
	// DropInMasked: File masks a drop-in of Own.
	DropInMasked Code = "drop-in-masked"
	// ReloadDue: networkd has not read that File no longer counts.
	ReloadDue Code = "reload-due"
	// OthersUnit: networkd uses File.
	OthersUnit Code = "others-unit"
	// OtherENIsUnit: networkd uses InForce, the unit of the link Other, which File makes match this
	// link.
	OtherENIsUnit Code = "other-enis-unit"
	// BaseMasked: File masks the base unit.
	BaseMasked Code = "base-masked"
	// MatchFails: File has conditions in [Match] that Own does not match the link with.
	MatchFails Code = "match-fails"
	// UnmanagedBySetting: File, which counts for the ENI's unit, has Unmanaged=yes.
	UnmanagedBySetting Code = "unmanaged-by-setting"
	// UnmanagedByUnit: File, which networkd uses for the link, has Unmanaged=yes.
	UnmanagedByUnit Code = "unmanaged-by-unit"
	// LeftAlone: networkd leaves the link alone, and it is not known why.
	LeftAlone Code = "left-alone"
	// NotTakenUp: networkd uses InForce, and it is not known why.
	NotTakenUp Code = "not-taken-up"
)

// The codes of what is in the place of a generated file.
const (
	// PlaceTaken: something that is no file.
	PlaceTaken Code = "place-taken"
	// PlaceHasFile: a file of somebody else's.
	PlaceHasFile Code = "place-has-file"
	// PlaceMasked: a mask.
	PlaceMasked Code = "place-masked"
	// PlaceHasLink: a symbolic link of somebody else's to File.
	PlaceHasLink Code = "place-has-link"
)

// The codes of ENIs whose files are in force. Subject is the name of the link.
const (
	// SetDown: somebody has set the link down.
	SetDown Code = "set-down"
	// PortWithoutAddresses: the link is a port of Other, of the kind OtherKind, which takes what
	// arrives. Value is the MAC address that it has from that, or empty.
	PortWithoutAddresses Code = "port-without-addresses"
	// LinkDown: the link is down, and networkd does not set it up.
	LinkDown Code = "link-down"
	// NoCarrier: the link has no carrier.
	NoCarrier Code = "no-carrier"
	// WaitingFor: networkd is bringing the Gaps.
	WaitingFor Code = "waiting-for"
	// FilesUnread: the Gaps are missing, and networkd has not read the files (Cause).
	FilesUnread Code = "files-unread"
	// UdevMissed: udevd has not handled the link.
	UdevMissed Code = "udev-missed"
	// NotBrought: networkd has not brought the Gaps.
	NotBrought Code = "not-brought"
	// Contested: what the ENI shall have was taken away Number times; the Gaps are missing now.
	Contested Code = "contested"
	// KeptBySetting: Setting in File keeps the Gaps, which the ENI has no more.
	KeptBySetting Code = "kept-by-setting"
	// TakenBySetting: Setting in File takes the Gaps away, which the ENI shall have.
	TakenBySetting Code = "taken-by-setting"
	// NameHeld: the link Other has the alternative name Value.
	NameHeld Code = "name-held"
	// NamesMissing: alternative names (Gaps) are missing.
	NamesMissing Code = "names-missing"
	// NamesRefused: Own is not written, for what is in its place (Of).
	NamesRefused Code = "names-refused"
	// NamesMasked: File masks the .link file.
	NamesMasked Code = "names-masked"
	// NamesHidden: the administrator's File is in force in the place of the drop-in Own.
	NamesHidden Code = "names-hidden"
	// NamesUnmatched: File has conditions in [Match] that the .link file does not match the link
	// with.
	NamesUnmatched Code = "names-unmatched"
	// NamesEarlier: udevd uses File instead of Own.
	NamesEarlier Code = "names-earlier"
)

// The codes of ENIs that are configured and of which something is worth knowing.
const (
	// MarkTaken: the firewall mark Value is not in force, as the link Other has OtherValue.
	MarkTaken Code = "mark-taken"
	// PortOf: the link is a port of Other, of the kind OtherKind. Value is the MAC address that it has
	// from that, or empty.
	PortOf Code = "port"
	// WrittenStays: the addresses in File stay, since EC2 is not known to have told those in Values.
	WrittenStays Code = "written-stays"
	// Misordered: the first address of the link is Value, and not the primary one, OtherValue.
	Misordered Code = "misordered"
)

// The codes of single items, which are not the same in the metadata, the files, networkd and the
// kernel.
const (
	// RouteStays: networkd has not taken away a route that the ENI has no more.
	RouteStays Code = "route-stays"
	// StaysDespite: networkd has not taken away what the ENI has no more for the reason Of.
	StaysDespite Code = "stays-despite"
	// WithdrawnInFiles: the files still have what the metadata has withdrawn.
	WithdrawnInFiles Code = "withdrawn-in-files"
	// Withdrawn: networkd has not taken away what the metadata has withdrawn.
	Withdrawn Code = "withdrawn"
	// Disowned: networkd does not count it as its own.
	Disowned Code = "disowned"
	// AddedToo: somebody else has added what the ENI shall have.
	AddedToo Code = "added-too"
	// Unasked: it is there, and the files do not have it for the reason Of.
	Unasked Code = "unasked"
	// RouteLate: it comes with the next router advertisement.
	RouteLate Code = "route-late"
	// OtherMTU: the link has the MTU Number.
	OtherMTU Code = "other-mtu"
	// NameNotAdded: the alternative name has not been added yet.
	NameNotAdded Code = "name-not-added"
	// RemovedOrAsked: networkd has it, and the kernel does not.
	RemovedOrAsked Code = "removed-or-asked"
	// Tentative: the kernel makes sure that nobody else has the address.
	Tentative Code = "tentative"
	// DHCPSilent: DHCP has not brought it.
	DHCPSilent Code = "not-by-dhcp"
	// NetworkdLacks: networkd has not brought it.
	NetworkdLacks Code = "not-by-networkd"
	// ItemUnmanaged: the configuration leaves the ENI alone.
	ItemUnmanaged Code = "item-unmanaged"
	// ItemUnknown: the metadata of the ENI is not complete.
	ItemUnknown Code = "item-unknown"
	// ItemKept: the metadata is not complete, and what was configured stays.
	ItemKept Code = "item-kept"
	// ForeignConfigured: networkd has an address that is not of the metadata.
	ForeignConfigured Code = "foreign-configured"
	// ForeignAdded: somebody else has added an address that is not of the metadata.
	ForeignAdded Code = "foreign-added"
	// UdevBusy: udevd has not handled the link yet.
	UdevBusy Code = "udev-busy"
	// AwaitsLease: the address waits for the lease.
	AwaitsLease Code = "awaits-lease"
	// AwaitsDHCPv6: the address waits until DHCPv6 has given it up.
	AwaitsDHCPv6 Code = "awaits-dhcpv6"
	// FileMissing: the file that asks for it is not in place.
	FileMissing Code = "file-missing"
	// SecondariesNo: the configuration says SecondaryAddresses=no.
	SecondariesNo Code = "secondaries-no"
	// NoMark: the configuration has no such firewall mark.
	NoMark Code = "no-mark"
)

// The codes of what the metadata has and the host is not to have.
const (
	// LeftToOthers: the address is left to others.
	LeftToOthers Code = "left-to-others"
	// IPv6OffHost: the host has no IPv6.
	IPv6OffHost Code = "ipv6-off-host"
	// IPv6OffLink: IPv6 is disabled on the link Subject.
	IPv6OffLink Code = "ipv6-off-link"
	// IPv6None: the kernel has given the link no IPv6.
	IPv6None Code = "ipv6-none"
)

// Reason says why something is as it is. The comment of each code tells which fields it has. The
// zero Reason says nothing.
type Reason struct {
	Code Code
	// Subject is what the reason is about, and Other what stands in a relation to it.
	Subject, Other string
	// OtherKind is the kind of Other as the kernel names it.
	OtherKind string
	// File is the file that is to blame or to be mended. Of the configuration it has the line, as
	// FILE:LINE. Setting is the line of it.
	File, Setting string
	// Netplan: netplan has made File.
	Netplan bool
	// Own is the file of the daemon that is concerned, and InForce the one that networkd uses.
	Own, InForce string
	// Index and Card are the numbers of an ENI.
	Index, Card int
	// Number is a count or a size.
	Number int
	// Value and OtherValue are an address, a name or a firewall mark, and Values are several.
	Value, OtherValue string
	Values            []string
	// Gaps are what the reason explains.
	Gaps []Gap
	// State is that of Subject.
	State string
	// Cause is what the system or a service has said, in its own words.
	Cause string
	// Of is the reason behind this one, and More are reasons beside it.
	Of   *Reason
	More []Reason
	// Undecided: it depends on the same whether the ENI is managed.
	Undecided bool
}

// None reports whether the reason says nothing.
func (r Reason) None() bool { return r.Code == None }

// Equal reports whether two reasons say the same.
func (r Reason) Equal(o Reason) bool {
	return r.Code == o.Code && (r.Code == None || reflect.DeepEqual(r, o))
}

// Together returns several reasons as one, without those that say nothing: the first of them, and the
// others in More.
func Together(reasons ...Reason) Reason {
	var all Reason
	for i := range reasons {
		switch {
		case reasons[i].Code == None:
		case all.Code == None:
			all = reasons[i]
		default:
			all.More = append(all.More, reasons[i])
		}
	}
	return all
}
