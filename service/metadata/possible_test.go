package metadata_test

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/service/metadata"
)

// D14: values that are possible somewhere, but not in this ENI's subnet or in any VPC.
func TestImpossibleValues(t *testing.T) {
	for key, values := range map[string][]string{
		"local-ipv4s": {
			"10.0.2.20", "10.0.1.20\n10.0.2.20", "203.0.113.1", "240.0.0.1", "255.255.255.255", "0.1.2.3", "169.254.169.254",
			"10.0.1.0", "10.0.1.1", "10.0.1.2", "10.0.1.3", "10.0.1.255",
		},
		"ipv6s": {
			"2001:db8:2::20", "fd00:ec2::254", "fec0::1", "64:ff9b::a00:114", "4000::1", "::1", "2001:db8:1::", "2001:db8:1::1",
			"2001:db8:1::3", "2001:db8:1::ffff:ffff:ffff:ffff",
		},
		"ipv4-prefix":             {"10.0.1.240/27", "10.0.1.240/29", "10.0.1.240/32", "10.0.2.240/28", "169.254.169.240/28", "0.0.0.0/28"},
		"ipv6-prefix":             {"2001:db8:1::/64", "2001:db8:1::/81", "2001:db8:1::5/128", "2001:db8:2:0:1::/80", "fd00:ec2::/80"},
		"subnet-ipv4-cidr-block":  {"10.0.0.0/15", "10.0.1.0/29", "10.0.2.0/24", "169.254.0.0/16", "224.0.0.0/16", "10.0.1.16/28"},
		"subnet-ipv6-cidr-blocks": {"2001:db8::/40", "2001:db8::/43", "2001:db8:1::/62", "2001:db8:1::/68", "2001:db8:2::/64", "fd00:ec2::/64"},
	} {
		for _, value := range values {
			t.Run(key+"="+value, func(t *testing.T) {
				t.Parallel()
				service, client, paths := start(t)
				known, err := read(t, client, paths, nil)
				if err != nil {
					t.Fatal(err)
				}
				dir := "network/interfaces/macs/" + secondaryMAC + "/"
				service.Override(dir+key, value)
				for _, view := range []*metadata.ENI{nil, known} {
					if view != nil && strings.HasPrefix(key, "subnet") {
						continue // it is not read again
					}
					eni, err := read(t, client, paths, view)
					var typed *metadata.Error
					if !errors.As(err, &typed) || typed.Kind != metadata.Malformed {
						t.Fatalf("got %+v and %v, want a malformed %s", eni, err, key)
					}
					// Of a wrong subnet it is what is not in it that is named.
					if typed.Key != dir+key && (!strings.HasPrefix(key, "subnet") || !strings.Contains(err.Error(), "subnet")) {
						t.Errorf("the error names %s: %v", typed.Key, err)
					}
				}
			})
		}
	}
}

// D14: what EC2 does, however rarely, is taken.
func TestPossibleValues(t *testing.T) {
	for name, override := range map[string]map[string]string{
		"the least subnet":        {"subnet-ipv4-cidr-block": "10.0.1.16/28", "local-ipv4s": "10.0.1.20\n10.0.1.30", "ipv4-prefix": "10.0.1.16/28"},
		"the largest subnet":      {"subnet-ipv4-cidr-block": "10.0.0.0/16", "local-ipv4s": "10.0.1.0\n10.0.1.255\n10.0.255.254"},
		"a public range":          {"subnet-ipv4-cidr-block": "203.0.113.0/24", "local-ipv4s": "203.0.113.4", "ipv4-prefix": "203.0.113.240/28"},
		"shared address space":    {"subnet-ipv4-cidr-block": "100.64.0.0/18", "local-ipv4s": "100.64.0.4", "ipv4-prefix": "100.64.0.16/28"},
		"benchmark range":         {"subnet-ipv4-cidr-block": "198.19.0.0/20", "local-ipv4s": "198.19.1.4", "ipv4-prefix": "198.19.0.16/28"},
		"private IPv6":            {"subnet-ipv6-cidr-blocks": "fd80:1:2:3::/64", "ipv6s": "fd80:1:2:3::4", "ipv6-prefix": "fd80:1:2:3:1::/80"},
		"a large IPv6 subnet":     {"subnet-ipv6-cidr-blocks": "2001:db8:10::/44", "ipv6s": "2001:db8:1f:ffff::5", "ipv6-prefix": "2001:db8:11:0:1::/80"},
		"IPv6 blocks":             {"subnet-ipv6-cidr-blocks": "2001:db8:7::/64\n2001:db8:1::/64", "ipv6s": "2001:db8:1::20\n2001:db8:7::20"},
		"an ID of the first kind": {"interface-id": "eni-01234567"},
		"an ID of a later kind":   {"interface-id": "eni-0123456789abcdef0123456789abcdef"},
		"names to come":           {"Future_Key.v2": "1", "future/key": "1", "ipv4-associations/203.0.113.5": "10.0.1.20"},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			service, client, paths := start(t)
			for key, value := range override {
				service.Override("network/interfaces/macs/"+secondaryMAC+"/"+key, value)
			}
			eni, err := read(t, client, paths, nil)
			if err != nil {
				t.Fatal(err)
			}
			if err := eni.Check(); err != nil {
				t.Errorf("a view that was read is refused from a file: %v", err)
			}
		})
	}
}

// D14: a view that was kept is no way round the checks.
func TestCheckIsAsStrict(t *testing.T) {
	good := wanted()
	if err := good.Check(); err != nil {
		t.Error(err)
	}
	outside := wanted()
	outside.IPv4[1] = netip.MustParseAddr("10.0.2.9")
	none := wanted()
	none.IPv4Subnets = nil
	long := wanted()
	long.ID = "eni-" + strings.Repeat("0", 200)
	wide := wanted()
	wide.IPv6Prefixes = wide.IPv6Subnets
	for what, e := range map[string]metadata.ENI{"an address outside": outside, "no subnet": none, "long ID": long, "a subnet for a prefix": wide} {
		if err := e.Check(); err == nil {
			t.Errorf("%s is taken", what)
		}
	}
}

// D13: names that nobody knows do not stand in the way, and each is named once.
func TestUnknownNames(t *testing.T) {
	service, _, paths := start(t)
	var mu sync.Mutex
	var told []string
	client := metadata.NewClient(metadata.Options{Timeout: time.Second, Ignored: func(what, name string) {
		mu.Lock()
		defer mu.Unlock()
		told = append(told, what+" "+name)
	}})
	defer client.CloseIdle()
	if _, err := service.AddFault(imds.Fault{Pattern: "network/interfaces/macs/*", Effect: imds.Unknown}); err != nil {
		t.Fatal(err)
	}
	if _, err := service.AddFault(imds.Fault{Pattern: "network/interfaces/macs", Effect: imds.Unknown}); err != nil {
		t.Fatal(err)
	}
	known, err := read(t, client, paths, nil)
	if err != nil {
		t.Fatal(err)
	}
	for range 3 {
		for turn := range known.Turns(4) {
			if now, err := client.ReadENI(t.Context(), paths, metadata.Wanted{MAC: secondaryMAC, Known: known, Look: metadata.InTurn, Turn: turn + 1, Often: 4}); err != nil || now != known {
				t.Fatalf("%+v, %v", now, err)
			}
		}
	}
	if dump, err := client.ReadDump(t.Context(), paths); err != nil || !slices.Contains(dump.MACs(), secondaryMAC) {
		t.Errorf("%+v, %v", dump, err)
	}
	if len(told) != len(imds.UnknownNames) {
		t.Errorf("told %d names, want each of %d once: %q", len(told), len(imds.UnknownNames), told)
	}
	for _, name := range told {
		if len(name) > 120 {
			t.Errorf("a name of %d bytes", len(name))
		}
	}
	// Names that change all the time are not all kept.
	for n := range 200 {
		service.ClearFaults()
		body := fmt.Sprintf("made-up-%d\ndevice-number", n)
		if _, err := service.AddFault(imds.Fault{Pattern: "network/interfaces/macs/*", Effect: imds.Body, Body: body}); err != nil {
			t.Fatal(err)
		}
		_, _ = read(t, client, paths, nil)
	}
	if len(told) > 64 {
		t.Errorf("told %d names", len(told))
	}
}

// D4: what is no listing is refused, rather than taken for one that has lost its keys.
func TestNoListing(t *testing.T) {
	for _, body := range []string{"", "\n", "<html>\n<p>\n</html>", "a\nb\nc", "device-number\nlocal-\x00ipv4s\ninterface-id", "device-number\n\ninterface-id", "device-number\xff", "device-number\r\ninterface-id\r"} {
		service, client, paths := start(t)
		if _, err := service.AddFault(imds.Fault{Pattern: "network/interfaces/macs/*", Effect: imds.Body, Body: body}); err != nil {
			t.Fatal(err)
		}
		if eni, err := read(t, client, paths, nil); metadata.KindOf(err) != metadata.Malformed || errors.As(err, new(*metadata.IncompleteError)) {
			t.Errorf("%q: %+v, %v", body, eni, err)
		}
	}
}
