package main

import (
	"net/netip"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// The lab's process serves these requests as JSON over HTTP on a Unix socket in the
// lab's directory. This is not a public API: the command and the process are the same
// program.

const socketName = "control"

// attachRequest attaches a new ENI, or a detached one again.
type attachRequest struct {
	ENI  string // re-attach this one
	Name string // with this name
	Spec vpc.ENISpec
	// LinkOnly and MetadataOnly do only one half of it.
	LinkOnly, MetadataOnly bool
}

type detachRequest struct {
	ENI                    string
	Linger                 time.Duration
	Delete                 bool
	LinkOnly, MetadataOnly bool
}

// changeRequest assigns or unassigns.
type changeRequest struct {
	ENI                      string
	IPv4, IPv6               []netip.Addr
	Prefixes                 []netip.Prefix
	AnyIPv4, AnyIPv6         bool // one free address
	AnyPrefixV4, AnyPrefixV6 bool
	assign                   bool
}

type changeReply struct {
	Addrs    []netip.Addr
	Prefixes []netip.Prefix
}

// faultRequest changes the metadata service.
type faultRequest struct {
	Add           *imds.Fault
	Clear         []int
	ClearAll      bool
	Override      map[string]string
	ClearOverride []string
	RevokeTokens  bool
	Reveal        string // an ENI
	RevealKeys    []string
	ResetLog      bool
}

type faultReply struct {
	ID     int
	Faults []imds.Fault
}

// setRequest changes the VPC's behaviour: values by the name of a setting.
type setRequest struct {
	Settings map[string][]string
}

type carrierRequest struct {
	ENI string
	On  bool
	For time.Duration // until it is on again
}

type muteRequest struct {
	Subnet   string
	Services []vpc.Service
	Unmute   bool
}

type endpointRequest struct {
	Family vpc.Family
	State  vpc.EndpointState
}

type powerRequest struct {
	Action string // boot, shutdown, reboot, kill
}

type logRequest struct {
	Since time.Time
}

type errorReply struct {
	Error string
}
