package networkd

import (
	"bytes"
	"context"
	"encoding/binary"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/godbus/dbus/v5"

	"ec2netd/service/kernel"
)

// Applied is what networkd says that it has applied.
type Applied struct {
	// Snapshot is in the shape of one of the kernel. Links have no MTU.
	Snapshot *kernel.Snapshot
	// Leases are what is known of DHCPv4 leases from 258 on, by the index of the link.
	Leases map[int]Lease
}

// Lease is what a DHCPv4 lease tells.
type Lease struct {
	// Known: networkd has told of the lease. What is missing then is not in it.
	Known bool
	// MTU is that of the interface MTU option, or 0.
	MTU int
	// Domains are those of the domain name option, separated by spaces.
	Domains string
}

// Applied asks networkd what it counts as its own: the addresses and routes that it has
// configured on each link, and the policy rules. What it knows of and calls foreign is left
// out, and so is what it is asked for and has not brought yet.
//
// It asks for everything in one call of Describe, which is there from 249: rules belong to
// no link, and from 257 the IPv6 default routes of router advertisements do neither. It
// costs networkd about a millisecond for each 60 items.
func (c *Client) Applied(ctx context.Context) (*Applied, error) {
	ctx, cancel := context.WithTimeout(ctx, callTimeout)
	defer cancel()
	conn, err := c.connection(ctx)
	if err != nil {
		return nil, err
	}
	var text string
	if err := conn.Object(busName, busPath).CallWithContext(ctx, manager+".Describe", dbus.FlagNoAutoStart).Store(&text); err != nil {
		return nil, fmt.Errorf("asking networkd what it has applied: %w", err)
	}
	return parseApplied([]byte(text))
}

// described is as much of Describe's JSON as is needed. It is not part of networkd's
// documented interface, and each version adds to it, so whatever is missing or of another
// type than expected is passed over.
type described struct {
	Interfaces []struct {
		Index     int
		Name      string
		Addresses []describedAddress
		Routes    []describedRoute
		NextHops  []struct{ ID uint32 }

		DHCPv4Client struct {
			Lease struct {
				// Message is the server's last one, from 258 on. It is the whole of it, also
				// what networkd has been told not to use.
				Message struct{ Options []describedOption }
			}
		}
	}
	// Routes of no link: those by a next hop, from 257.
	Routes             []describedRoute
	RoutingPolicyRules []struct {
		configured
		Family                 int
		FirewallMark           uint32
		FirewallMask           uint32
		FromPrefix             octets
		FromPrefixLength       int
		Priority               int
		Table                  int
		Protocol               int
		SuppressPrefixLength   *int
		SuppressInterfaceGroup int
	}
}

// configured says whose something is and how far networkd has come with it.
type configured struct {
	ConfigSource string
	// ConfigState is a list: "configured", or "configuring,configured" on 252.
	ConfigState string
}

// own tells whether it is networkd's, and there.
func (c *configured) own() bool {
	return c.ConfigSource != "foreign" && strings.Contains(c.ConfigState, "configured") && !strings.Contains(c.ConfigState, "removing")
}

type describedAddress struct {
	configured
	Address      octets
	PrefixLength int
	Scope        int
}

// describedOption is a DHCP option, with its bytes in hexadecimal.
type describedOption struct {
	Tag  int
	Data string
}

// Numbers of DHCP options (RFC 2132).
const (
	optionDomain = 15
	optionMTU    = 26
)

// lease reads the options of a DHCPv4 lease.
func lease(options []describedOption) Lease {
	told := Lease{Known: true}
	for _, option := range options {
		data, err := hex.DecodeString(option.Data)
		switch {
		case err != nil:
		case option.Tag == optionDomain:
			told.Domains = domains(strings.TrimRight(string(data), "\x00"))
		case option.Tag == optionMTU && len(data) == 2:
			told.MTU = int(binary.BigEndian.Uint16(data))
		}
	}
	return told
}

type describedRoute struct {
	configured
	Destination             octets
	DestinationPrefixLength int
	Gateway                 octets
	Table                   int
	Priority                int
	Protocol                int
	Type                    int
	NextHopID               uint32
}

// Numbers of rtnetlink(7) and of address families in the JSON.
const (
	typeUnicast = 1
	typeLocal   = 2
	familyIPv4  = 2
)

func parseApplied(text []byte) (*Applied, error) {
	var d described
	var odd *json.UnmarshalTypeError
	// The decoder passes over what is of an unexpected type, and goes on.
	if err := json.Unmarshal(text, &d); err != nil && !errors.As(err, &odd) {
		return nil, fmt.Errorf("reading what networkd has applied: %w", err)
	}
	s, leases := &kernel.Snapshot{}, make(map[int]Lease)
	hops := make(map[uint32]int)
	add := func(route *describedRoute, index int) {
		to, ok := prefix(route.Destination, route.DestinationPrefixLength)
		if !ok || !route.own() || (route.Type != typeUnicast && route.Type != typeLocal) {
			return
		}
		s.Routes = append(s.Routes, kernel.Route{
			Link: index, Table: route.Table, Metric: route.Priority, Destination: to, Gateway: netip.Addr(route.Gateway),
			Protocol: route.Protocol, Local: route.Type == typeLocal,
		})
	}
	for i := range d.Interfaces {
		entry := &d.Interfaces[i]
		link := kernel.Link{Index: entry.Index, Name: entry.Name}
		for j := range entry.Addresses {
			a := &entry.Addresses[j]
			if p, ok := prefix(a.Address, a.PrefixLength); ok && a.own() {
				link.Addresses = append(link.Addresses, kernel.Address{Prefix: p, Global: a.Scope == 0})
			}
		}
		if options := entry.DHCPv4Client.Lease.Message.Options; len(options) > 0 {
			leases[entry.Index] = lease(options)
		}
		for j := range entry.Routes {
			add(&entry.Routes[j], entry.Index)
		}
		for _, hop := range entry.NextHops {
			hops[hop.ID] = entry.Index
		}
		s.Links = append(s.Links, link)
	}
	for i := range d.Routes {
		if index, ok := hops[d.Routes[i].NextHopID]; ok {
			add(&d.Routes[i], index)
		}
	}
	for i := range d.RoutingPolicyRules {
		rule := &d.RoutingPolicyRules[i]
		from, ok := prefix(rule.FromPrefix, rule.FromPrefixLength)
		if !rule.own() || (!ok && rule.FirewallMark == 0) {
			continue
		}
		group := max(0, rule.SuppressInterfaceGroup)
		guard := rule.SuppressPrefixLength != nil && *rule.SuppressPrefixLength == kernel.GuardLength(group)
		s.Rules = append(s.Rules, kernel.Rule{
			Priority: rule.Priority, Table: rule.Table, From: from, Protocol: rule.Protocol,
			Mark: rule.FirewallMark, Mask: rule.FirewallMask,
			IPv4: from.Addr().Is4() || (!ok && rule.Family == familyIPv4), Guard: guard, Plain: !guard, Group: group,
		})
	}
	return &Applied{Snapshot: s, Leases: leases}, nil
}

func prefix(address octets, length int) (netip.Prefix, bool) {
	p := netip.PrefixFrom(netip.Addr(address), length)
	return p, p.IsValid()
}

// octets is an address: a list of numbers, or a text; the zero Addr if it is neither.
type octets netip.Addr

// UnmarshalJSON implements [json.Unmarshaler]. It does not fail.
func (o *octets) UnmarshalJSON(b []byte) error {
	*o = octets{}
	if text, ok := bytes.CutPrefix(b, []byte(`"`)); ok {
		address, _ := netip.ParseAddr(strings.TrimSuffix(string(text), `"`))
		*o = octets(address)
		return nil
	}
	var raw [16]byte
	n := 0
	for field := range bytes.SplitSeq(bytes.Trim(b, "[]"), []byte(",")) {
		value, err := strconv.ParseUint(string(bytes.TrimSpace(field)), 10, 8)
		if err != nil || n == len(raw) {
			return nil // no address
		}
		raw[n] = byte(value)
		n++
	}
	address, _ := netip.AddrFromSlice(raw[:n])
	*o = octets(address)
	return nil
}
