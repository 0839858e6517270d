package config

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/service/dropin"
)

// F4: each property of an ENI can select it.
func TestSections(t *testing.T) {
	at := func(n int) *int { return &n }
	truth := func(b bool) *bool { return &b }
	full := Identity{
		ENIID: "eni-0123456789abcdef1", MAC: "02:00:00:00:00:01", DeviceIndex: at(2), NetworkCard: at(1),
		Driver: "ena", Name: "ens6", Primary: truth(false),
	}
	for _, test := range []struct {
		text string
		want bool
	}{
		{"", true},
		{"ENIID=eni-0123456789abcdef1", true},
		{"ENIID=eni-0123456789abcdef2 eni-0123456789abcdef1", true},
		{"ENIID=eni-0123456789abcdef2", false},
		{"MACAddress=02:00:00:00:00:01", true},
		{"MACAddress=02-00-00-00-00-01", true},
		{"MACAddress=02:00:00:00:00:02\nMACAddress=02:00:00:00:00:01", true},
		{"MACAddress=02:00:00:00:00:01\nMACAddress=\nMACAddress=02:00:00:00:00:02", false},
		{"DeviceIndex=1 2 3", true},
		{"DeviceIndex=1 3", false},
		{"NetworkCard=1", true},
		{"NetworkCard=0", false},
		{"Driver=en*", true},
		{"Driver=vif ixgbevf", false},
		{"Name=ens[67]", true},
		{"Name=eth*", false},
		{"Name=ens[!6]", false},
		{"Name=ens[!5]", true},
		{"Primary=no", true},
		{"Primary=yes", false},
		{"Name=ens6\nDeviceIndex=1", false},
		{"Name=ens6\nDeviceIndex=2\nPrimary=off", true},
	} {
		c := load(t, map[string]string{"etc/ec2netd.conf": "[ENI]\n" + test.text + "\nManaged=no\n"})
		if len(c.Problems) > 0 || len(c.ENIs) != 1 {
			t.Fatalf("%q: %d sections, %v", test.text, len(c.ENIs), c.Problems)
		}
		if got := For(c.ENIs, full); got.Managed == test.want || got.Undecided {
			t.Errorf("%q: %+v", test.text, got)
		}
	}
}

func TestSettings(t *testing.T) {
	c := load(t, map[string]string{
		"etc/ec2netd.conf": "[ENI]\nManaged=no\nAlternativeNames=no\n[ENI]\nName=ens5\nManaged=yes\nPrefixes=assign\nPrimaryRules=yes\n",
		"etc/ec2netd.conf.d/10-route.conf": "[Match]\nDriver=veth\n[ENI]\nName=ens*\nDefaultRoute=no\nPrefixes=local\nX-Mine=1\n" +
			"[ENI]\nName=ens5\nPrefixes=\n",
	})
	if len(c.Problems) > 0 || len(c.ENIs) != 4 {
		t.Fatalf("%d sections, %v", len(c.ENIs), c.Problems)
	}
	got := For(c.ENIs, Identity{Name: "ens5"})
	if !got.Managed || !strings.HasSuffix(got.ManagedBy, "/etc/ec2netd.conf:4") || got.DefaultRoute || got.AlternativeNames || !got.PrimaryRules || got.Prefixes != PrefixesLocal {
		t.Errorf("ens5: %+v", got)
	}
	got = For(c.ENIs, Identity{Name: "eth0"})
	if got.Managed || !strings.HasSuffix(got.ManagedBy, "/etc/ec2netd.conf:1") || !got.DefaultRoute || got.PrimaryRules || got.Prefixes != PrefixesRule {
		t.Errorf("eth0: %+v", got)
	}
}

func TestSecondaryAddressesAndDNS(t *testing.T) { // A10, A12
	c := load(t, map[string]string{"etc/ec2netd.conf": `[ENI]
DNS=192.0.2.1
[ENI]
Name=ens6 ens7
SecondaryAddresses=no
DNS=192.0.2.53 2001:db8::53
DNS=::ffff:192.0.2.54
[ENI]
Name=ens7
SecondaryAddresses=
DNS=192.0.2.9
DNS=
DNS=10.0.0.2
DNS=10.0.0.300
DNS=fe80::1%ens7
DNS=0.0.0.0
SecondaryAddresses=some
`})
	var lines []int
	for _, p := range c.Problems {
		lines = append(lines, p.Line)
	}
	if len(c.ENIs) != 3 || !slices.Equal(lines, []int{14, 15, 16, 17}) {
		t.Fatalf("%d sections, %v", len(c.ENIs), c.Problems)
	}
	for name, want := range map[string]string{
		"ens5": "true [192.0.2.1]", "ens6": "false [192.0.2.53 2001:db8::53 192.0.2.54]", "ens7": "false [10.0.0.2]",
	} {
		if s := For(c.ENIs, Identity{Name: name}); fmt.Sprint(s.SecondaryAddresses, s.DNS) != want {
			t.Errorf("%s: %v %v, want %s", name, s.SecondaryAddresses, s.DNS, want)
		}
	}
	if s := DefaultSettings(); !s.SecondaryAddresses || s.DNS != nil {
		t.Errorf("%+v", s)
	}
}

func TestFirewallMark(t *testing.T) { // B12
	for text, want := range map[string]string{
		"2": "0x2", "0x10": "0x10", "7/255": "0x7/0xff", "4294967295": "0xffffffff", "0x20/0xf0": "0x20/0xf0",
		"0": "that of packets without one", "0/255": "that of packets without one", "0x100/0xff": "bits that are not in its mask", "1/0": "bits that are not",
		"-1": "not a number from 1 to 4294967295", "4294967296": "not a number", "1_0": "not a number", "7/": "not a number", "/7": "not a number",
		"7/255/1": "not a number", "mark": "not a number", "1 2": "not a number",
	} {
		c := load(t, map[string]string{"etc/ec2netd.conf": "[ENI]\nFirewallMark=" + text + "\nDefaultRoute=no\n"})
		if len(c.ENIs) != 1 {
			t.Fatalf("%q: %v", text, c.Problems)
		}
		got, s := "", For(c.ENIs, Identity{Name: "ens6"})
		if s.FirewallMark != (dropin.Mark{}) {
			got = s.FirewallMark.String()
		}
		if len(c.Problems) > 0 {
			got += c.Problems[0].Message
		}
		if refused := len(c.Problems) > 0; !strings.Contains(got, want) || refused == (s.FirewallMark != dropin.Mark{}) || s.DefaultRoute {
			t.Errorf("%q: %q, %+v", text, got, s)
		}
	}
	c := load(t, map[string]string{"etc/ec2netd.conf": "[ENI]\nFirewallMark=1\n[ENI]\nName=ens6\nFirewallMark=3\nFirewallMark=\n[ENI]\nName=ens7\nFirewallMark=2\n"})
	for name, want := range map[string]uint32{"ens5": 1, "ens6": 1, "ens7": 2} {
		if s := For(c.ENIs, Identity{Name: name}); s.FirewallMark.Value != want || s.FirewallMark.Mask != 1<<32-1 {
			t.Errorf("%s: %v, want %d", name, s.FirewallMark, want)
		}
	}
	for _, both := range [][2]string{{"2", "2"}, {"2", "2/255"}, {"1/15", "16/240"}} {
		a, _ := dropin.ParseMark(both[0])
		b, _ := dropin.ParseMark(both[1])
		if !a.Overlaps(b) || !b.Overlaps(a) {
			t.Errorf("%v and %v do not overlap", a, b)
		}
	}
	if a, b := (dropin.Mark{Value: 1, Mask: 255}), (dropin.Mark{Value: 2, Mask: 1<<32 - 1}); a.Overlaps(b) || b.Overlaps(a) {
		t.Errorf("%v and %v overlap", a, b)
	}
}

// Unknown properties leave an ENI undecided only if they matter.
func TestUndecided(t *testing.T) {
	one := 1
	sections := func(text string) []Section {
		c := load(t, map[string]string{"etc/ec2netd.conf": text})
		if len(c.Problems) > 0 {
			t.Fatal(c.Problems)
		}
		return c.ENIs
	}
	for text, want := range map[string]bool{
		"":                                  false,
		"[ENI]\nDeviceIndex=1\nManaged=no":  true,
		"[ENI]\nDeviceIndex=1\nManaged=yes": false,
		"[ENI]\nDeviceIndex=1\nName=eth*\nManaged=no":                     false,
		"[ENI]\nPrimary=no\nDefaultRoute=no":                              false,
		"[ENI]\nManaged=no\n[ENI]\nPrimary=yes\nManaged=yes":              true,
		"[ENI]\nENIID=eni-01234567\nPrefixes=local":                       false,
		"[ENI]\nDeviceIndex=1\nManaged=no\n[ENI]\nName=ens5\nManaged=yes": false,
		"[ENI]\nManaged=no\n[ENI]\nDeviceIndex=0 1\nManaged=yes":          true,
	} {
		got := For(sections(text), Identity{Name: "ens5"})
		if got.Undecided != want {
			t.Errorf("%q: %+v", text, got)
		}
	}
	if got := For(sections("[ENI]\nDeviceIndex=1\nManaged=no"), Identity{DeviceIndex: &one}); got.Undecided || got.Managed {
		t.Errorf("%+v", got)
	}
}

// A mistake in a condition voids the section, since it must not apply to the wrong
// ENIs. A mistake in a setting voids the line.
func TestSectionProblems(t *testing.T) {
	c := load(t, map[string]string{"etc/ec2netd.conf": `[ENI]
ENIID=eni-xyz
Managed=no
[ENI]
MACAddress=02:00:00
Managed=no
[ENI]
DeviceIndex=-1
Managed=no
[ENI]
Name=!ens5
Managed=no
[ENI]
Primary=maybe
Managed=no
[ENI]
Interface=ens6
Managed=no
[ENI]
Name ens6
Managed=no
[ENI]
Name=ens6
Managed=perhaps
Prefixes=all
DefaultRoute=no
[ENI]
Managed=no
Name=ens7 \
`})
	var lines []int
	for _, p := range c.Problems {
		lines = append(lines, p.Line)
		if void := p.Line < 22 || p.Line > 25; void != strings.Contains(p.Message, "ignored, since") && p.Line != 29 {
			t.Errorf("%v", p)
		}
	}
	if !slices.Equal(lines, []int{2, 5, 8, 11, 14, 17, 20, 24, 25, 29}) {
		t.Errorf("%v", c.Problems)
	}
	if len(c.ENIs) != 1 || c.ENIs[0].DefaultRoute == nil || c.ENIs[0].Managed != nil || c.ENIs[0].Prefixes != nil {
		t.Errorf("%+v", c.ENIs)
	}
}
