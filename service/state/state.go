// Package state is the model of the data that ec2netd publishes: the metadata of each ENI, the
// resulting configuration, and its current state, with the reason in words.
//
// It only contains values. A *State is immutable once published; the agent creates a new one for
// each pass. The JSON names here are also the names in D-Bus (with a capital first letter, as
// usual for D-Bus properties), in Varlink and in the output of ec2netctl --json; api/ documents
// them for clients.
package state

import (
	"encoding/json"
	"time"
)

// Manager is the state of the whole daemon, [State.State].
type Manager string

// The states of the daemon.
const (
	// Starting: no pass with an answer from the metadata service has ended yet.
	Starting Manager = "starting"
	// Configured: every managed ENI is configured as EC2 describes it, or is being configured.
	Configured Manager = "configured"
	// Degraded: at least one ENI is not configured as EC2 describes it, or networkd fails. Reason
	// says which.
	Degraded Manager = "degraded"
	// Offline: the metadata service does not answer, or is switched off for the instance. The
	// existing configuration stays.
	Offline Manager = "offline"
	// Unsupported: the machine is not an EC2 instance. No metadata is read and nothing is
	// configured.
	Unsupported Manager = "unsupported"
)

// ENI is the state of one ENI, [Interface.State].
type ENI string

// The states of an ENI.
const (
	// ENIConfigured: the kernel has everything that the metadata lists.
	ENIConfigured ENI = "configured"
	// ENIConfiguring: the files are written, and networkd is applying them.
	ENIConfiguring ENI = "configuring"
	// ENIPending: the metadata of this ENI is not complete (yet); the existing configuration
	// stays.
	ENIPending ENI = "pending"
	// ENIShadowed: networkd uses another .network file for the link.
	ENIShadowed ENI = "shadowed"
	// ENIOverridden: an administrator's file replaces the daemon's own file, or removes
	// something.
	ENIOverridden ENI = "overridden"
	// ENIContested: something repeatedly deletes addresses, routes or rules of the ENI. The
	// daemon restores them at growing intervals.
	ENIContested ENI = "contested"
	// ENIUnmanaged: the configuration excludes this link, or networkd does not manage it.
	ENIUnmanaged ENI = "unmanaged"
	// ENIDegraded: something in the metadata is missing in the kernel, and was not applied in
	// time.
	ENIDegraded ENI = "degraded"
)

// Unknown stands for a device index or network card that is not in the metadata yet, and for a
// metric, table or priority that an ENI does not have.
const Unknown = -1

// State is everything that the daemon publishes, at one moment.
type State struct {
	// Version of the daemon, as ec2netd --version prints it.
	Version string `json:"version"`
	// State of the daemon and Reason in words; Reason is empty when configured, unless
	// the configuration has mistakes or there are Conflicts.
	State  Manager `json:"state"`
	Reason string  `json:"reason"`
	// InstanceID (i-…), empty until the metadata provides it.
	InstanceID string `json:"instanceId"`
	// Metadata and Networkd: the daemon's use of these two services.
	Metadata Metadata `json:"metadata"`
	Networkd Networkd `json:"networkd"`
	// Conflicts: other software that also configures ENIs.
	Conflicts []Conflict `json:"conflicts"`
	// Interfaces: the primary ENI first, then by network card and device index, then by name.
	Interfaces []Interface `json:"interfaces"`
	// LastChange is the time at which the daemon last changed a file, or zero.
	LastChange time.Time `json:"lastChange,omitzero"`
}

// Metadata describes the daemon's use of the instance metadata service.
type Metadata struct {
	// Endpoint is the base URL that answered last.
	Endpoint string `json:"endpoint"`
	// LastSuccess is the time of the last complete read; LastError is the latest error since that
	// time, or empty.
	LastSuccess time.Time `json:"lastSuccess,omitzero"`
	LastError   string    `json:"lastError"`
	// Requests and Errors count since the daemon started. A 404 for an optional key is not an
	// error.
	Requests uint64 `json:"requests"`
	Errors   uint64 `json:"errors"`
}

// Networkd describes the daemon's use of systemd-networkd.
type Networkd struct {
	// Running: networkd owns its bus name.
	Running bool `json:"running"`
	// Version of systemd as networkd reports it ("252", "257.13…"), or empty.
	Version string `json:"version"`
	// Reloads is the number of reloads that the daemon has requested since it started.
	Reloads uint64 `json:"reloads"`
	// LastError is the error of the last call to networkd, or empty.
	LastError string `json:"lastError"`
}

// Conflict is other software that also configures ENIs, or will at the next boot.
type Conflict struct {
	// Name of the software: "NetworkManager", "nm-cloud-setup", "ifupdown", "dhclient", "dhcpcd",
	// "cloud-init" or "amazon-ec2-net-utils".
	Name string `json:"name"`
	// Evidence: the units and files that identify it, in words.
	Evidence []string `json:"evidence"`
	// Advice says what to do about it, in words.
	Advice string `json:"advice"`
}

// Interface is one ENI of the instance.
type Interface struct {
	// ENIID (eni-…), empty until the metadata provides it.
	ENIID string `json:"eniId"`
	// MAC address, lower case with colons; never empty.
	MAC string `json:"mac"`
	// Name and Ifindex of the link; empty and 0 while the ENI has none.
	Name    string `json:"name"`
	Ifindex int    `json:"ifindex"`
	// Primary: the ENI whose MAC address is the top-level mac key of the metadata.
	Primary bool `json:"primary"`
	// DeviceIndex and NetworkCard in the metadata, or Unknown. On instances without network cards
	// NetworkCard is 0.
	DeviceIndex int `json:"deviceIndex"`
	NetworkCard int `json:"networkCard"`
	// Metric of the ENI's default routes in the main table, Table of its own routes and Priority
	// of its policy rules; Unknown if it has none.
	Metric   int `json:"metric"`
	Table    int `json:"table"`
	Priority int `json:"priority"`
	// Addresses in the order of the metadata, IPv4 before IPv6; the first IPv4 address is the
	// primary address. Prefixes: delegated prefixes in CIDR notation. Subnets: the CIDR blocks of
	// the ENI's subnet.
	Addresses []string `json:"addresses"`
	Prefixes  []string `json:"prefixes"`
	Subnets   []string `json:"subnets"`
	// Altnames that the link should have.
	Altnames []string `json:"altnames"`
	// Files of the daemon that are in force for this ENI, as absolute paths.
	Files []string `json:"files"`
	// NetworkFile is the .network file that networkd uses for the link.
	NetworkFile string `json:"networkFile"`
	// State, and Reason in words. For a configured ENI Reason is empty, or contains something
	// else worth knowing: that the metadata could not be read again and the last view is used,
	// that the primary address is not the first of the link, or that another ENI has its firewall
	// mark.
	State  ENI    `json:"state"`
	Reason string `json:"reason"`
	// Items are what the ENI has or should have, as seen from four sides: addresses, routes,
	// policy rules, alternative names.
	Items []Item `json:"items"`
	// Gaps are the items that have a reason, in words: "address 10.0.1.7: networkd has not
	// brought it".
	Gaps []string `json:"gaps"`
	// Missing lists items that are missing in the kernel, and Unwanted withdrawn items that the
	// kernel still has: "address 10.0.1.7", "rule from 10.0.1.7 lookup 10001", "default route
	// (IPv4) in table 10001", "altname eni-…".
	Missing  []string `json:"missing"`
	Unwanted []string `json:"unwanted"`
	// IPv6NotApplicable says in words why the IPv6 addresses and prefixes of the metadata do not
	// apply to this ENI: its link or the host has no IPv6 (A13). Empty if they apply.
	IPv6NotApplicable string `json:"ipv6NotApplicable"`
	// Since is the time at which State was entered.
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
	// ItemMTU: the MTU of the link, from DHCP or the administrator; Value is "9001". The MTU from
	// DHCP counts as part of the metadata.
	ItemMTU Kind = "mtu"
)

// Item is one thing that an ENI has or should have, as seen from four sides.
type Item struct {
	Kind  Kind   `json:"kind"`
	Value string `json:"value"`
	// Metadata: whether the item follows from the metadata of the ENI; not known while that
	// metadata is not known.
	Metadata Answer `json:"metadata"`
	// Rendered: whether the generated files contain it, directly or through DHCP.
	Rendered bool `json:"rendered"`
	// Networkd: whether networkd regards it as its own. Not known if networkd has not reported
	// it since the ENI last changed, and for alternative names, which udevd sets.
	Networkd Answer `json:"networkd"`
	// Kernel: whether the kernel has it; an address must also be usable.
	Kernel bool `json:"kernel"`
	// Reason says in words why these differ, and is empty if nothing is wrong.
	Reason string `json:"reason"`
	// NotApplicable says in words why the host does not use this item of the metadata: it has no
	// IPv6 (A13), or the address is left to others (A12). Such an item is no gap. Empty for all
	// others.
	NotApplicable string `json:"notApplicable"`
}

// InUse reports whether the item is in the metadata, the files and the kernel, and only networkd
// does not regard it as its own: it did not notice that the kernel accepted it. This is permanent
// after a restart of networkd, and if the kernel's answer arrives first (257, 262).
func (i *Item) InUse() bool {
	return i.Metadata == Yes && i.Rendered && i.Kernel && i.Networkd == No
}

// GapsOf returns the items that have a reason, in words, see [Interface.Gaps].
func GapsOf(items []Item) []string {
	gaps := []string{}
	for _, i := range items {
		if i.Reason != "" {
			gaps = append(gaps, string(i.Kind)+" "+i.Value+": "+i.Reason)
		}
	}
	return gaps
}

// Answer is a yes or no that may be unknown: true, false or null in JSON.
type Answer int8

// The answers.
const (
	Untold Answer = iota
	No
	Yes
)

// Told returns the answer of a known value.
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

// ID identifies the interface for people and in object paths: the ENI ID, or the MAC address
// while the ID is not known.
func (i *Interface) ID() string {
	if i.ENIID != "" {
		return i.ENIID
	}
	return i.MAC
}

// Changes are the results of one Refresh.
type Changes struct {
	// FilesWritten and FilesRemoved are absolute paths.
	FilesWritten []string `json:"filesWritten"`
	FilesRemoved []string `json:"filesRemoved"`
	// Reloaded: networkd was told to reload.
	Reloaded bool `json:"reloaded"`
	// Settled: no ENI is still in the state configuring. A Refresh without wait reports it too,
	// but does not wait for it.
	Settled bool `json:"settled"`
	// Interfaces whose addresses, prefixes or state changed.
	Interfaces []InterfaceChange `json:"interfaces"`
}

// InterfaceChange contains the changes that one Refresh made on one ENI.
type InterfaceChange struct {
	ENIID string `json:"eniId"`
	Name  string `json:"name"`
	// Added and Removed: addresses, and prefixes in CIDR notation.
	Added   []string `json:"added"`
	Removed []string `json:"removed"`
	// State and Reason after the Refresh.
	State  ENI    `json:"state"`
	Reason string `json:"reason"`
}

// Find returns the interface with this ENI ID, MAC address (in any case), interface name,
// altname, or index in decimal.
func (s *State) Find(id string) (*Interface, bool) {
	for i := range s.Interfaces {
		if s.Interfaces[i].named(id) {
			return &s.Interfaces[i], true
		}
	}
	return nil, false
}
