package vpc

import (
	"bytes"
	"context"
	"encoding/json"
	"fmt"
	"net/netip"
	"os/exec"
	"strings"
)

// The source check of EC2, as nftables rules of the bridge family in the VPC's
// namespace: one chain per ENI, for every frame from its port.

// Drops counts the packets of an ENI that the source check has dropped, by reason. It
// does not count multicast group reports, which Linux sends from 0.0.0.0 while a link
// has no address and which a VPC never carries.
type Drops struct {
	MAC  uint64 `json:"mac"`  // a foreign Ethernet source
	ARP  uint64 `json:"arp"`  // an ARP sender that is not an address of the ENI
	IPv4 uint64 `json:"ipv4"` // an IPv4 source that is not the ENI's
	IPv6 uint64 `json:"ipv6"` // an IPv6 source that is not the ENI's
}

// Total returns the number of all drops.
func (d Drops) Total() uint64 { return d.MAC + d.ARP + d.IPv4 + d.IPv6 }

//nolint:dupword // nft: "ether type arp" is a match, and "arp operation" another
const filterBase = `
table bridge vpclab {
	map ports { type ifname : verdict; }
	set cut { type ifname; }
	chain prerouting {
		type filter hook prerouting priority -300; policy accept;
		iifname @cut ip daddr 169.254.169.254 tcp dport 80 drop
		iifname @cut ip6 daddr fd00:ec2::254 tcp dport 80 drop
		iifname vmap @ports
	}
	chain postrouting {
		type filter hook postrouting priority 0; policy accept;
		# A VPC answers ARP itself: no instance ever sees a request.
		oifname "p*" ether type arp arp operation request drop
	}
}
`

// filterName is the suffix of the names of an ENI's chain, sets and counters.
func (e *ENI) filterName() string { return "e" + strings.TrimPrefix(e.id, "eni-") }

// filterRules returns the chain of a new ENI.
func filterRules(name, port, mac string) string {
	r := strings.NewReplacer("NAME", name, "PORT", port, "MAC", mac)
	//nolint:dupword // as in filterBase
	return r.Replace(`
add counter bridge vpclab NAME_mac
add counter bridge vpclab NAME_arp
add counter bridge vpclab NAME_ipv4
add counter bridge vpclab NAME_ipv6
add set bridge vpclab NAME_v4 { type ipv4_addr; flags interval; auto-merge; }
add set bridge vpclab NAME_v6 { type ipv6_addr; flags interval; auto-merge; }
add chain bridge vpclab c_NAME
add rule bridge vpclab c_NAME ether saddr != MAC counter name NAME_mac drop
add rule bridge vpclab c_NAME ether type arp arp saddr ether != MAC counter name NAME_arp drop
add rule bridge vpclab c_NAME ether type arp arp saddr ip 0.0.0.0 accept
add rule bridge vpclab c_NAME ether type arp arp saddr ip @NAME_v4 accept
add rule bridge vpclab c_NAME ether type arp counter name NAME_arp drop
add rule bridge vpclab c_NAME ip saddr @NAME_v4 accept
add rule bridge vpclab c_NAME ip protocol igmp drop
add rule bridge vpclab c_NAME ip saddr 0.0.0.0 udp sport 68 udp dport 67 accept
add rule bridge vpclab c_NAME ether type ip counter name NAME_ipv4 drop
add rule bridge vpclab c_NAME ip6 saddr @NAME_v6 accept
add rule bridge vpclab c_NAME ip6 saddr fe80::/10 accept
add rule bridge vpclab c_NAME ip6 saddr :: meta l4proto ipv6-icmp accept
add rule bridge vpclab c_NAME ether type ip6 counter name NAME_ipv6 drop
add rule bridge vpclab c_NAME drop
add element bridge vpclab ports { "PORT" : jump c_NAME }
`)
}

// filterSources sets the permitted sources of an ENI; nft applies all of it at once.
func filterSources(name string, sources []netip.Prefix) string {
	var b strings.Builder
	fmt.Fprintf(&b, "flush set bridge vpclab %s_v4\nflush set bridge vpclab %s_v6\n", name, name)
	for _, p := range sources {
		set := "v4"
		if p.Addr().Is6() {
			set = "v6"
		}
		fmt.Fprintf(&b, "add element bridge vpclab %s_%s { %s }\n", name, set, p)
	}
	return b.String()
}

// filterRemove removes the chain of an ENI, its counters and sets.
func filterRemove(name, port string) string {
	r := strings.NewReplacer("NAME", name, "PORT", port)
	return r.Replace(`
delete element bridge vpclab ports { "PORT" }
delete chain bridge vpclab c_NAME
delete set bridge vpclab NAME_v4
delete set bridge vpclab NAME_v6
delete counter bridge vpclab NAME_mac
delete counter bridge vpclab NAME_arp
delete counter bridge vpclab NAME_ipv4
delete counter bridge vpclab NAME_ipv6
`)
}

// nft runs a script in the VPC's namespace, all or nothing.
func (v *VPC) nft(ctx context.Context, script string) error {
	cmd := exec.CommandContext(ctx, "nft", "-f", "-")
	cmd.Stdin = strings.NewReader(script)
	var stderr bytes.Buffer
	cmd.Stderr = &stderr
	if err := v.thread.run(cmd); err != nil {
		return fmt.Errorf("setting the source check: %w", toolError(cmd, err, stderr.String()))
	}
	return nil
}

// CutMetadata drops packets of the ENI to the metadata service, or stops that: it
// simulates a broken link or route of an ENI.
func (e *ENI) CutMetadata(ctx context.Context, cut bool) error {
	verb := map[bool]string{true: "add", false: "delete"}[cut]
	return e.vpc.nft(ctx, fmt.Sprintf("%s element bridge vpclab cut { %q }\n", verb, e.port))
}

// Drops returns the number of packets of the ENI that the source check has dropped
// since the ENI was created.
func (e *ENI) Drops(ctx context.Context) (Drops, error) {
	cmd := exec.CommandContext(ctx, "nft", "-j", "list", "counters", "table", "bridge", "vpclab")
	var stdout, stderr bytes.Buffer
	cmd.Stdout, cmd.Stderr = &stdout, &stderr
	if err := e.vpc.thread.run(cmd); err != nil {
		return Drops{}, fmt.Errorf("reading the drops of %s: %w", e.id, toolError(cmd, err, stderr.String()))
	}
	var list struct {
		Nftables []struct {
			Counter *struct {
				Name    string `json:"name"`
				Packets uint64 `json:"packets"`
			} `json:"counter"`
		} `json:"nftables"`
	}
	if err := json.Unmarshal(stdout.Bytes(), &list); err != nil {
		return Drops{}, fmt.Errorf("reading the drops of %s: nft's output: %w", e.id, err)
	}
	var d Drops
	for _, item := range list.Nftables {
		if item.Counter == nil {
			continue
		}
		kind, ok := strings.CutPrefix(item.Counter.Name, e.filterName()+"_")
		if !ok {
			continue
		}
		switch kind {
		case "mac":
			d.MAC = item.Counter.Packets
		case "arp":
			d.ARP = item.Counter.Packets
		case "ipv4":
			d.IPv4 = item.Counter.Packets
		case "ipv6":
			d.IPv6 = item.Counter.Packets
		}
	}
	return d, nil
}
