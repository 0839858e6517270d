package vpc

import (
	"context"
	"fmt"
	"net/netip"
	"time"

	"ec2netd/cmd/vpclab/imds"
)

// Status describes a lab completely, for people and programs.
type Status struct {
	Name      string                   `json:"name"`
	VPC       string                   `json:"vpc"`
	Seed      uint64                   `json:"seed"`
	Behaviour Behaviour                `json:"behaviour"`
	Dir       string                   `json:"dir"`
	NetNS     string                   `json:"netns"`
	Endpoints map[string]EndpointState `json:"metadataEndpoints"`
	Subnets   []SubnetStatus           `json:"subnets"`
	Instances []InstanceStatus         `json:"instances"`
}

// SubnetStatus is a subnet in a [Status].
type SubnetStatus struct {
	Name  string    `json:"name"`
	ID    string    `json:"id"`
	IPv4  string    `json:"ipv4,omitempty"`
	IPv6  string    `json:"ipv6,omitempty"`
	Muted []Service `json:"muted,omitempty"`
}

// InstanceStatus is an instance in a [Status].
type InstanceStatus struct {
	ID       string        `json:"id"`
	Suite    string        `json:"suite"`
	Running  bool          `json:"running"`
	Leader   int           `json:"leader"`
	Machine  bool          `json:"machine,omitempty"`
	Socket   string        `json:"socket,omitempty"` // of a machine, for [RunInMachine]
	BootTime time.Duration `json:"bootTime"`
	Root     string        `json:"root"`
	Console  string        `json:"console"`
	ENIs     []ENIStatus   `json:"enis"`
	Faults   []imds.Fault  `json:"faults,omitempty"`
	Requests imds.Counters `json:"requests"`
}

// ENIStatus is an ENI in a [Status].
type ENIStatus struct {
	ID          string         `json:"id"`
	MAC         string         `json:"mac"`
	Name        string         `json:"name"`
	Subnet      string         `json:"subnet"`
	DeviceIndex int            `json:"deviceIndex"`
	NetworkCard *int           `json:"networkCard,omitempty"`
	IPv4        []netip.Addr   `json:"ipv4"`
	IPv6        []netip.Addr   `json:"ipv6"`
	Prefixes    []netip.Prefix `json:"prefixes"`
	Published   bool           `json:"published"`
	Plugged     bool           `json:"plugged"`
	NoCarrier   bool           `json:"noCarrier,omitempty"`
	Drops       Drops          `json:"drops"`
	DHCP        []DHCPEvent    `json:"dhcp"`
}

// Status describes an ENI.
func (e *ENI) Status(ctx context.Context) (ENIStatus, error) {
	drops, err := e.Drops(ctx)
	return ENIStatus{
		ID: e.id, MAC: e.mac.String(), Name: e.Name(), Subnet: e.subnet.spec.Name, DeviceIndex: e.DeviceIndex(),
		NetworkCard: e.card, IPv4: e.IPv4(), IPv6: e.IPv6(), Prefixes: e.Prefixes(),
		Published: e.Published(), Plugged: e.Plugged(), NoCarrier: e.NoCarrier(), Drops: drops, DHCP: e.DHCPEvents(),
	}, err
}

// Status describes the lab.
func (v *VPC) Status(ctx context.Context) (Status, error) {
	s := Status{
		Name: v.Name(), VPC: v.id, Seed: v.opts.Seed, Behaviour: v.Behaviour(), Dir: v.dir, NetNS: v.NetNSName(),
		Endpoints: map[string]EndpointState{
			MetadataIPv4.String(): v.MetadataEndpoint(IPv4), MetadataIPv6.String(): v.MetadataEndpoint(IPv6),
		},
	}
	for _, sn := range v.subnets {
		st := SubnetStatus{Name: sn.Name(), ID: sn.ID(), Muted: sn.Muted()}
		if sn.IPv4().IsValid() {
			st.IPv4 = sn.IPv4().String()
		}
		if sn.IPv6().IsValid() {
			st.IPv6 = sn.IPv6().String()
		}
		s.Subnets = append(s.Subnets, st)
	}
	for _, inst := range v.Instances() {
		is := InstanceStatus{
			ID: inst.id, Suite: inst.opts.Suite, Running: inst.Running(), Leader: inst.Leader(), BootTime: inst.BootTime(),
			Root: inst.root, Console: inst.Console(), Faults: inst.meta.Faults(), Requests: imds.Count(inst.meta.Requests()),
		}
		if is.Machine = inst.opts.Machine; is.Machine {
			is.Socket = inst.socket()
		}
		for _, e := range inst.ENIs() {
			es, err := e.Status(ctx)
			if err != nil {
				return s, fmt.Errorf("status of %s: %w", inst.id, err)
			}
			is.ENIs = append(is.ENIs, es)
		}
		s.Instances = append(s.Instances, is)
	}
	return s, nil
}
