// Package state is the model of what ec2netd tells others: what EC2 says of each
// ENI, what was made of it, and how far it has come, with the reason in words.
//
// It holds values only. A *State is immutable once published; the agent makes a
// new one for each pass. The JSON names here are the names in D-Bus (with a
// capital first letter, as D-Bus properties have), in Varlink and in the output of
// ec2netctl --json; api/ documents them for clients.
package state

import (
	"encoding/json"
	"time"
)

// Manager is the state of the whole daemon, [State.State].
type Manager string

// The states of the daemon.
const (
	// Starting: no pass with an answer of the metadata service has ended yet.
	Starting Manager = "starting"
	// Configured: every managed ENI is as EC2 says, or is on the way there.
	Configured Manager = "configured"
	// Degraded: at least one ENI is not as EC2 says, or networkd does not do its
	// part. Reason says which.
	Degraded Manager = "degraded"
	// Offline: the metadata service does not answer, or is switched off for the instance.
	// What was configured stays.
	Offline Manager = "offline"
	// Unsupported: the machine is no EC2 instance. Nothing is asked and nothing configured.
	Unsupported Manager = "unsupported"
)

// ENI is the state of one ENI, [Interface.State].
type ENI string

// The states of an ENI.
const (
	// ENIConfigured: the kernel has all that the metadata says.
	ENIConfigured ENI = "configured"
	// ENIConfiguring: files are written, networkd is applying them.
	ENIConfiguring ENI = "configuring"
	// ENIPending: the metadata of this ENI is not complete (yet); what was
	// configured before stays.
	ENIPending ENI = "pending"
	// ENIShadowed: networkd uses another .network file for the link.
	ENIShadowed ENI = "shadowed"
	// ENIOverridden: an administrator's file takes the place of the daemon's own.
	ENIOverridden ENI = "overridden"
	// ENIContested: somebody takes away again and again what the ENI shall have. It is put
	// back, less and less often.
	ENIContested ENI = "contested"
	// ENIUnmanaged: the configuration or networkd leaves this link alone.
	ENIUnmanaged ENI = "unmanaged"
	// ENIDegraded: the kernel does not have what the metadata says, and time for
	// it is up.
	ENIDegraded ENI = "degraded"
)

// Unknown stands for a device index or network card that the metadata has not
// told yet, and for a metric, table or priority that an ENI does not have.
const Unknown = -1

// State is all that the daemon has to say, at one moment.
type State struct {
	// Version of the daemon, as ec2netd --version prints it.
	Version string `json:"version"`
	// State of the daemon and Reason in words; Reason is empty when configured, unless
	// the configuration has mistakes or there are Conflicts.
	State  Manager `json:"state"`
	Reason string  `json:"reason"`
	// InstanceID (i-…), empty until the metadata told it.
	InstanceID string `json:"instanceId"`
	// Metadata, Networkd: the two that the daemon works between.
	Metadata Metadata `json:"metadata"`
	Networkd Networkd `json:"networkd"`
	// Conflicts: other software that configures ENIs too.
	Conflicts []Conflict `json:"conflicts"`
	// Interfaces: the primary first, then by network card and device index, then
	// by name.
	Interfaces []Interface `json:"interfaces"`
	// LastChange is when the daemon last changed a file, or zero.
	LastChange time.Time `json:"lastChange,omitzero"`
}

// Metadata tells how the daemon gets on with the instance metadata service.
type Metadata struct {
	// Endpoint is the base URL that answered last.
	Endpoint string `json:"endpoint"`
	// LastSuccess is when a read was last complete; LastError is the error since,
	// or empty.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	LastError   string    `json:"lastError"`
	// Requests and Errors count since the daemon started. A 404 of a key that may
	// be absent is not an error.
	Requests uint64 `json:"requests"`
	Errors   uint64 `json:"errors"`
}

// Networkd tells how the daemon gets on with systemd-networkd.
type Networkd struct {
	// Running: networkd owns its bus name.
	Running bool `json:"running"`
	// Version of systemd as networkd reports it ("252", "257.13…"), or empty.
	Version string `json:"version"`
	// Reloads that the daemon asked for since it started.
	Reloads uint64 `json:"reloads"`
	// LastError of the last call to networkd, or empty.
	LastError string `json:"lastError"`
}

// Conflict is other software that configures ENIs too, or will at the next boot.
type Conflict struct {
	// Name of the software: "NetworkManager", "nm-cloud-setup", "ifupdown", "dhclient", "dhcpcd",
	// "cloud-init" or "amazon-ec2-net-utils".
	Name string `json:"name"`
	// Evidence: by which units and files it is recognised, in words.
	Evidence []string `json:"evidence"`
	// Advice is what to do about it, in words.
	Advice string `json:"advice"`
}

// Interface is one ENI of the instance.
type Interface struct {
	// ENIID (eni-…), empty until the metadata told it.
	ENIID string `json:"eniId"`
	// MAC address, lower case with colons; it is there from the first moment.
	MAC string `json:"mac"`
	// Name and Ifindex of the link; empty and 0 while the ENI has none.
	Name    string `json:"name"`
	Ifindex int    `json:"ifindex"`
	// Primary: the ENI whose MAC is the top-level mac key of the metadata.
	Primary bool `json:"primary"`
	// DeviceIndex and NetworkCard as EC2 numbers them, or Unknown. On instances
	// without network cards NetworkCard is 0.
	DeviceIndex int `json:"deviceIndex"`
	NetworkCard int `json:"networkCard"`
	// Metric of the ENI's default routes in the main table, Table of its own
	// routes and Priority of its policy rules; Unknown where it has none.
	Metric   int `json:"metric"`
	Table    int `json:"table"`
	Priority int `json:"priority"`
	// Addresses as the metadata lists them, IPv4 before IPv6; the first IPv4 one
	// is the primary address. Prefixes: delegated prefixes in CIDR notation.
	// Subnets: the CIDR blocks of the ENI's subnet.
	Addresses []string `json:"addresses"`
	Prefixes  []string `json:"prefixes"`
	Subnets   []string `json:"subnets"`
	// Altnames that the link should have.
	Altnames []string `json:"altnames"`
	// Files of the daemon in force for this ENI, absolute paths.
	Files []string `json:"files"`
	// NetworkFile is the .network file that networkd uses for the link.
	NetworkFile string `json:"networkFile"`
	// State, and Reason in words. Of a configured ENI Reason is empty, or says what is
	// worth knowing all the same: that the metadata could not be read again and its
	// last view holds, that the primary address is not the first of the link, or that another
	// ENI has its firewall mark.
	State  ENI    `json:"state"`
	Reason string `json:"reason"`
	// Items are what the ENI has, or should have, at each of the four places where that
	// can be: addresses, routes, policy rules, alternative names.
	Items []Item `json:"items"`
	// Gaps are those of the items that have a reason, in words: "address 10.0.1.7:
	// networkd has not brought it".
	Gaps []string `json:"gaps"`
	// Missing lists what is wanted and not in the kernel, Unwanted what was
	// withdrawn and still is: "address 10.0.1.7", "rule from 10.0.1.7 lookup
	// 10001", "default route (IPv4) in table 10001", "altname eni-…".
	Missing  []string `json:"missing"`
	Unwanted []string `json:"unwanted"`
	// IPv6NotApplicable says in words why the IPv6 addresses and prefixes of the metadata
	// do not apply to this ENI: its link or the host has no IPv6 (A13). Empty where they do.
	IPv6NotApplicable string `json:"ipv6NotApplicable"`
	// Since is when State was entered.
	Since time.Time `json:"since,omitzero"`
}

// Kind of an [Item].
type Kind string

// The kinds of items.
const (
	// ItemAddress: an IPv4 or IPv6 address; Value is "10.0.1.7".
	ItemAddress Kind = "address"
	// ItemRoute: a route; Value is "0.0.0.0/0 metric 513" for one of the main table,
	// "::/0 table 10001" for one of another table, or "local 10.0.24.0/28".
	ItemRoute Kind = "route"
	// ItemRule: a policy rule; Value is "from 10.0.1.7/32 lookup 10001".
	ItemRule Kind = "rule"
	// ItemAltname: an alternative name of the link; Value is the name.
	ItemAltname Kind = "altname"
	// ItemMTU: the MTU of the link, as DHCP or the administrator says; Value is "9001". What
	// DHCP says counts as told by the metadata.
	ItemMTU Kind = "mtu"
)

// Item is one thing that an ENI has or should have, seen at four places.
type Item struct {
	Kind  Kind   `json:"kind"`
	Value string `json:"value"`
	// Metadata: it follows from what the metadata says of the ENI; not known while the
	// metadata of the ENI is not.
	Metadata Answer `json:"metadata"`
	// Rendered: the generated files ask for it, by itself or by DHCP.
	Rendered bool `json:"rendered"`
	// Networkd: networkd counts it as its own. Not known where networkd has not told
	// since the ENI last changed, and of alternative names, which are udevd's.
	Networkd Answer `json:"networkd"`
	// Kernel: it is there, and an address can be used.
	Kernel bool `json:"kernel"`
	// Reason says in words why the places differ, and is empty where all is well.
	Reason string `json:"reason"`
	// NotApplicable says in words why the host is not to have it although the metadata
	// does: it has no IPv6 (A13), or the address is left to others (A12). Such an item is no
	// gap. Empty for all others.
	NotApplicable string `json:"notApplicable"`
}

// InUse reports whether the kernel has the item by the metadata and the files, and only
// networkd does not count it as its own: it did not learn that the kernel took it from it.
// It does so for good after a restart, and where the kernel's answer comes first (257, 262).
func (i *Item) InUse() bool {
	return i.Metadata == Yes && i.Rendered && i.Kernel && i.Networkd == No
}

// GapsOf are those of the items that have a reason, in words, see [Interface.Gaps].
func GapsOf(items []Item) []string {
	gaps := []string{}
	for _, i := range items {
		if i.Reason != "" {
			gaps = append(gaps, string(i.Kind)+" "+i.Value+": "+i.Reason)
		}
	}
	return gaps
}

// Answer is a yes or a no that may not be known: true, false or null in JSON.
type Answer int8

// The answers.
const (
	Untold Answer = iota
	No
	Yes
)

// Told is the answer where it is known.
func Told(yes bool) Answer {
	if yes {
		return Yes
	}
	return No
}

// MarshalJSON implements [json.Marshaler].
func (a Answer) MarshalJSON() ([]byte, error) {
	switch a {
	case Yes:
		return []byte("true"), nil
	case No:
		return []byte("false"), nil
	}
	return []byte("null"), nil
}

// UnmarshalJSON implements [json.Unmarshaler].
func (a *Answer) UnmarshalJSON(b []byte) error {
	var yes *bool
	if err := json.Unmarshal(b, &yes); err != nil {
		return err
	}
	*a = Untold
	if yes != nil {
		*a = Told(*yes)
	}
	return nil
}

// ID names the interface for people and in object paths: the ENI ID, or the MAC
// address while that is not known.
func (i *Interface) ID() string {
	if i.ENIID != "" {
		return i.ENIID
	}
	return i.MAC
}

// Changes is what one Refresh did.
type Changes struct {
	// FilesWritten and FilesRemoved, absolute paths.
	FilesWritten []string `json:"filesWritten"`
	FilesRemoved []string `json:"filesRemoved"`
	// Reloaded: networkd was asked to reload.
	Reloaded bool `json:"reloaded"`
	// Settled: no ENI is configuring any more. A Refresh without wait tells it too,
	// but does not wait for it.
	Settled bool `json:"settled"`
	// Interfaces whose addresses, prefixes or state changed.
	Interfaces []InterfaceChange `json:"interfaces"`
}

// InterfaceChange is what one Refresh changed on one ENI.
type InterfaceChange struct {
	ENIID string `json:"eniId"`
	Name  string `json:"name"`
	// Added and Removed: addresses, and prefixes in CIDR notation.
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	// State and Reason afterwards.
	State  ENI    `json:"state"`
	Reason string `json:"reason"`
}

// Find returns the interface that id names: ENI ID, MAC address (any case),
// interface name, altname, or index in decimal.
func (s *State) Find(id string) (*Interface, bool) {
	for i := range s.Interfaces {
		if s.Interfaces[i].named(id) {
			return &s.Interfaces[i], true
		}
	}
	return nil, false
}
