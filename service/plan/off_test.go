package plan

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
)

// withoutIPv6 are the ways in which a link can have none, and what is said of it.
var withoutIPv6 = map[kernel.IPv6]string{
	kernel.IPv6OffHost: "ipv6.disable=1",
	kernel.IPv6OffLink: "net.ipv6.conf.ens",
	kernel.IPv6None:    "MTU",
}

// dualStackENIs are the views of a primary and a secondary ENI with all that IPv6 can have,
// and the same without IPv6.
func dualStackENIs() (both, ipv4 []metadata.ENI) {
	for index := range 2 {
		v := view(index, addrs(fmt.Sprintf("10.0.1.%d0", index+1), fmt.Sprintf("10.0.1.%d1", index+1)),
			addrs(fmt.Sprintf("2001:db8:1::%d0", index+1), fmt.Sprintf("2001:db8:1::%d1", index+1)))
		v.IPv6Prefixes = prefixes(fmt.Sprintf("2001:db8:1:0:%d::/80", index+1))
		both = append(both, v)
		ipv4 = append(ipv4, view(index, v.IPv4, nil))
	}
	return both, ipv4
}

// A13: an ENI whose link has no IPv6 gets all of IPv4 and nothing of IPv6, networkd has no
// reason to switch IPv6 on.
func TestWithoutIPv6(t *testing.T) {
	both, ipv4 := dualStackENIs()
	for _, networkd := range []Networkd{oldNetworkd, newNetworkd, {}} {
		for why, words := range withoutIPv6 {
			links := []Link{leased(0, &both[0]), leased(1, &both[1])}
			for i := range links {
				links[i].IPv6, links[i].Done = why, true
			}
			in := input(links, both...)
			in.Networkd = networkd
			inWithout := input(links, ipv4...)
			inWithout.Networkd = networkd
			plan, without := Make(in), Make(inWithout)
			for i := range plan.ENIs {
				eni := &plan.ENIs[i]
				if diff := cmp.Diff(eni.Files, without.ENIs[i].Files); diff != "" {
					t.Errorf("%d: not the files of an ENI without IPv6:\n%s", why, diff)
				}
				dropIn := rendered(eni).Network.Render()
				for _, line := range []string{"DHCP=ipv4", "LinkLocalAddressing=no", "IPv6AcceptRA=no"} {
					if strings.Count(dropIn, "\n"+line+"\n") != 1 {
						t.Errorf("%d: no %s in\n%s", why, line, dropIn)
					}
				}
				if reason := eni.IPv6NotApplicable().Words(); !strings.Contains(reason, words) {
					t.Errorf("the reason is %q, want one with %q", reason, words)
				}
			}
		}
	}
}

// A13: what is on disk follows the link's IPv6 both ways.
func TestIPv6Switched(t *testing.T) {
	both, _ := dualStackENIs()
	in := input([]Link{leased(0, &both[0]), leased(1, &both[1])}, both...)
	in.Networkd = newNetworkd
	written := func() []string {
		var texts []string
		for i := range in.Links {
			in.Links[i].LeaseOverdue = true
		}
		plan := Make(in)
		for i := range in.Links {
			eni := plan.ENIs[i]
			in.Links[i].Current = rendered(&eni).Network
			texts = append(texts, in.Links[i].Current.Render())
		}
		return texts
	}
	on := written()
	in.Links[1].IPv6 = kernel.IPv6OffLink
	off := written()
	if off[0] != on[0] || off[1] == on[1] || strings.Contains(off[1], "2001:db8") {
		t.Errorf("of the first, which has IPv6:\n%s\nof the second, which has none:\n%s", off[0], off[1])
	}
	in.Links[1].IPv6 = kernel.IPv6On
	if again := written(); !slices.Equal(again, on) {
		t.Errorf("after off and on:\n%s\nbefore:\n%s", again[1], on[1])
	}
}

// A13: so it is before the metadata is known: the base unit alone would have networkd switch
// IPv6 on.
func TestUnknownWithoutIPv6(t *testing.T) {
	both, _ := dualStackENIs()
	in := Input{PrimaryMAC: primaryMAC, Base: base, Links: []Link{leased(0, &both[0]), leased(1, &both[1])}}
	for i := range in.Links {
		in.Links[i].IPv6 = kernel.IPv6OffLink
	}
	for _, eni := range Make(in).ENIs {
		if n := rendered(&eni).Network; !n.WithoutIPv6() {
			t.Errorf("%s:\n%+v", eni.Link.Name, n)
		}
	}
	in.Links = in.Links[1:]
	in.Links[0].Current = rendered(&Make(in).ENIs[0]).Network
	if eni := Make(in).ENIs[0]; !eni.Keep {
		t.Errorf("what is right does not stay: %+v", eni)
	}
	in.Links[0].IPv6 = kernel.IPv6On
	if n := rendered(&Make(in).ENIs[0]).Network; n == nil || n.WithoutIPv6() {
		t.Errorf("IPv6 on again:\n%+v", n)
	}
}
