package metadata

import (
	"net/netip"
	"strings"
	"testing"
)

// FuzzValues: whatever a value is, it is refused or it survives being written again:
// no text of the service gets through unparsed (D4).
func FuzzValues(f *testing.F) {
	for _, seed := range []string{"10.0.1.20\n10.0.1.21", "2001:db8::1", "10.0.1.240/28", "2001:db8::/80", "eni-0123456789abcdef0", "3", "02:00:00:00:01:10", "", "\n", "device-number\nlocal-ipv4s\nipv4-associations/", "[Match]\nName=*",
		"Future_Key.v2\ndevice-number\nnew/\n../..", "169.254.169.254", "fd00:ec2::254", "240.0.0.1", "10.0.0.0/16", "2001:db8::/44", "2001:db8::/60", "eni-0", "i-0123456789abcdef0123456789"} {
		f.Add(seed)
	}
	f.Fuzz(func(t *testing.T, body string) {
		again := func(values []string) {
			if got := strings.Join(values, "\n"); !strings.EqualFold(got, strings.TrimSuffix(body, "\n")) && len(got) != 0 {
				// Only spelling may differ: IPv6 addresses have several.
				if !strings.Contains(body, ":") {
					t.Errorf("%q was read as %q", body, got)
				}
			}
			for _, v := range values {
				if strings.ContainsAny(v, "\n\r[]=% ") {
					t.Errorf("%q passed through", v)
				}
			}
		}
		for _, ipv4 := range []bool{true, false} {
			if addresses, err := parseAddresses(body, ipv4); err == nil {
				again(texts(addresses))
				for _, a := range addresses {
					if a.Is4() != ipv4 || a.IsLoopback() || a.IsMulticast() || a.IsUnspecified() || a.IsLinkLocalUnicast() {
						t.Errorf("%s is of the wrong family, or none that an ENI can have", a)
					}
				}
			}
			for _, parse := range []func(string, bool) ([]netip.Prefix, error){parseDelegated, parseSubnets} {
				prefixes, err := parse(body, ipv4)
				if err != nil {
					continue
				}
				again(texts(prefixes))
				for _, p := range prefixes {
					if p != p.Masked() || p == (netip.Prefix{}) || !possible(p.Addr()) {
						t.Errorf("%s has host bits, or is none of a VPC", p)
					}
				}
			}
		}
		for _, parse := range []func(string) (string, error){parseENIID, parseInstanceID, parseMAC} {
			if value, err := parse(body); err == nil {
				again([]string{value})
			}
		}
		if number, err := parseNumber(body); err == nil && (number < 0 || number > maxNumber) {
			t.Errorf("%q was read as %d", body, number)
		}
		if keys, unknown, err := parseKeys(body); err == nil {
			for key := range keys {
				if !isKnown(key) {
					t.Errorf("the key %q passed through", key)
				}
			}
			for _, name := range unknown {
				if strings.ContainsAny(name, "\n\r\x00\x1b") || len(clip(name)) > 100 {
					t.Errorf("the name %q passed through", name)
				}
			}
		}
	})
}
