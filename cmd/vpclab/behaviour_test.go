package main

import (
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/spf13/cobra"

	"ec2netd/cmd/vpclab/vpc"
)

// parsed returns the behaviour for a command line, and the flags that are passed on.
func parsed(t *testing.T, args ...string) (vpc.Behaviour, []string, error) {
	t.Helper()
	cmd := &cobra.Command{Use: "x"}
	given := behaviourFlags(cmd)
	if err := cmd.ParseFlags(args); err != nil {
		t.Fatal(err)
	}
	b, err := change(vpc.Instant(), given())
	return b, forwarded(cmd.Flags()), err
}

func TestBehaviourFlags(t *testing.T) {
	// Whatever the order, the other settings change the profile.
	args := []string{
		"--domain=example.com,example.net", "--mtu=8500", "--dhcp-mtu=0", "--dhcp-hostname=false", "--ntp=169.254.169.123",
		"--ntp=fd00:ec2::123", "--dns=10.0.0.9", "--search=corp.example", "--dhcpv6=first", "--dhcpv6-preferred=10s",
		"--dhcpv6-valid=20s", "--dhcpv4-lifetime=1m", "--ra-delay=1s-2s", "--ra-interval=0s", "--ra-lifetime=9s",
		"--metadata-latency=50ms", "--metadata-jitter=0s", "--metadata-split", "--listed-after=1s", "--secondaries-after=2s",
		"--number-after=3s", "--late-number-after=4s-5s", "--late-number-chance=0.5", "--profile=ec2",
	}
	want := vpc.EC2()
	want.MTU, want.DHCPv6, want.RADelay = 8500, vpc.DHCPv6First, vpc.Range{Min: time.Second, Max: 2 * time.Second}
	want.DHCP = vpc.DHCPOptions{
		DNS: []netip.Addr{netip.MustParseAddr("10.0.0.9")}, Domains: []string{"example.com", "example.net"},
		Search: []string{"corp.example"}, NTP: []netip.Addr{vpc.TimeSync, netip.MustParseAddr("fd00:ec2::123")},
	}
	want.Lifetimes = vpc.Lifetimes{
		DHCPv4: time.Minute, DHCPv6Preferred: 10 * time.Second, DHCPv6Valid: 20 * time.Second, Router: 9 * time.Second,
	}
	want.Metadata.Latency, want.Metadata.Jitter, want.Metadata.Split = 50*time.Millisecond, 0, true
	want.Propagation = vpc.Propagation{
		Listed: vpc.Exactly(time.Second), Secondaries: vpc.Exactly(2 * time.Second), DeviceNumber: vpc.Exactly(3 * time.Second),
		LateDeviceNumber: vpc.Range{Min: 4 * time.Second, Max: 5 * time.Second}, LateChance: 0.5,
	}
	got, passed, err := parsed(t, args...)
	if err != nil || !reflect.DeepEqual(got, want) {
		t.Errorf("%v\n got %+v\nwant %+v", err, got, want)
	}
	// The background process reads the same from the flags that are passed on to it.
	if again, _, err := parsed(t, passed...); err != nil || !reflect.DeepEqual(again, want) {
		t.Errorf("%v of %q\n got %+v\nwant %+v", err, passed, again, want)
	}
	for _, s := range settings() {
		if !slices.ContainsFunc(args, func(a string) bool { return strings.HasPrefix(a, "--"+s.name) }) {
			t.Errorf("this test does not know --%s", s.name)
		}
	}

	if b, passed, err := parsed(t, "--domain="); err != nil || len(b.DHCP.Domains) != 0 || fmt.Sprint(passed) != "[--domain=]" {
		t.Errorf("no domain: %q, %v, passed on as %q", b.DHCP.Domains, err, passed)
	}
	for text, says := range map[string]string{
		"--profile=azure": `no profile "azure"`, "--mtu=x": "--mtu=x", "--mtu=100": "1280", "--mtu=1,2": "one value",
		"--dns=x": "--dns=x", "--ra-delay=2s-1s": "ends before it begins", "--ra-delay=x": "100ms-300ms",
		"--domain=a b": "no domain name", "--dhcpv6=some": `"some"`, "--late-number-chance=2": "0…1",
		"--metadata-jitter=1s": "jitter", "--dhcpv6-valid=1s": "valid for 1s only", "--dhcpv4-lifetime=0s": "at least a second",
		"--dhcp-mtu=67": "option 26", "--ra-lifetime=24h": "65535", "--ra-interval=-1s": "negative",
		"--ntp=0.0.0.0": "no address of a server",
	} {
		if _, _, err := parsed(t, text); err == nil || !strings.Contains(err.Error(), says) {
			t.Errorf("%s: %v, want %q", text, err, says)
		}
	}
	// Valid by itself, but only for a VPC with such a latency.
	if _, _, err := parsed(t, "--metadata-jitter=1s"); !errors.Is(err, errTogether) {
		t.Errorf("%v", err)
	}
}
