package compare

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
)

// oldNetworkd is one that drops what is dynamic with a reload, newNetworkd one that does not.
var oldNetworkd, newNetworkd = plan.Networkd{Running: true}, plan.Networkd{Running: true, Varlink: true}

// dualStackENIs are the views of a primary and a secondary ENI with all that IPv6 can have.
func dualStackENIs() (both []metadata.ENI) {
	for index := range 2 {
		v := view(index, addrs(fmt.Sprintf("10.0.1.%d0", index+1), fmt.Sprintf("10.0.1.%d1", index+1)),
			addrs(fmt.Sprintf("2001:db8:1::%d0", index+1), fmt.Sprintf("2001:db8:1::%d1", index+1)))
		v.IPv6Prefixes = prefixes(fmt.Sprintf("2001:db8:1:0:%d::/80", index+1))
		both = append(both, v)
	}
	return both
}

// A13: of an ENI whose link has no IPv6, each item of IPv6 is there as one that does not apply.
func TestWithoutIPv6(t *testing.T) {
	both := dualStackENIs()
	for _, networkd := range []plan.Networkd{oldNetworkd, newNetworkd, {}} {
		for _, why := range []kernel.IPv6{kernel.IPv6OffHost, kernel.IPv6OffLink, kernel.IPv6None} {
			links := []plan.Link{leased(0, &both[0]), leased(1, &both[1])}
			for i := range links {
				links[i].IPv6, links[i].Done = why, true
			}
			in := input(links, both...)
			in.Networkd = networkd
			enis := plan.Make(in).ENIs
			for i := range enis {
				checkInapplicable(t, &enis[i])
			}
		}
	}
}

// checkInapplicable compares the items of an ENI with those that it would have with IPv6.
func checkInapplicable(t *testing.T, eni *plan.ENI) {
	t.Helper()
	kernelHas := whole(eni)
	eni.Link.Addresses, eni.Link.Altnames = kernelHas.Links[0].Addresses, eni.Want.Altnames
	result := against(eni, kernelHas, kernelHas)
	items := result.Items(status.Reason{})
	if gaps := state.GapsOf(items); len(gaps)+len(result.Missing)+len(result.Unwanted)+len(result.Late) > 0 {
		t.Errorf("%s: gaps: %q, %q, %q, %q", eni.Link.Name, gaps, result.Missing, result.Unwanted, result.Late)
	}
	var got, want []string
	for _, item := range items {
		if item.NotApplicable == "" {
			continue
		}
		got = append(got, string(item.Kind)+" "+item.Value)
		if item.NotApplicable != eni.IPv6NotApplicable().Words() || item.Rendered || item.Kernel || item.Metadata != state.Yes {
			t.Errorf("%s: %+v", eni.Link.Name, item)
		}
	}
	dual := input([]plan.Link{eni.Link}, eni.View)
	dual.Links[0].IPv6, dual.PrimaryMAC = kernel.IPv6On, primaryMAC
	applying := plan.Make(dual).ENIs[0]
	all := whole(&applying)
	compared := against(&applying, all, all)
	for _, item := range compared.Items(status.Reason{}) {
		if strings.Contains(item.Value, ":") {
			want = append(want, string(item.Kind)+" "+item.Value)
		}
	}
	slices.Sort(got)
	slices.Sort(want)
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("%s: what does not apply (-want +got):\n%s", eni.Link.Name, diff)
	}
}

// A13: rules of IPv6 that networkd has not taken away yet are told of with the reason.
func TestIPv6Switched(t *testing.T) {
	both := dualStackENIs()
	in := input([]plan.Link{leased(0, &both[0]), leased(1, &both[1])}, both...)
	in.Networkd = newNetworkd
	write := func() {
		for i := range in.Links {
			in.Links[i].LeaseOverdue = true
		}
		enis := plan.Make(in).ENIs
		for i := range in.Links {
			in.Links[i].Current = rendered(&enis[i]).Network
		}
	}
	write()
	with := whole(&plan.Make(in).ENIs[1])
	in.Links[1].IPv6 = kernel.IPv6OffLink
	write()
	eni := plan.Make(in).ENIs[1]
	result := against(&eni, nil, with)
	items := result.Items(status.Reason{})
	at := slices.IndexFunc(items, func(i state.Item) bool { return i.Value == "from 2001:db8:1::20/128 lookup 10001" })
	if at < 0 || !strings.Contains(items[at].Reason, "IPv6 is disabled") || !strings.Contains(items[at].Reason, "networkd") {
		t.Errorf("a rule that is still there: %+v", items)
	}
}
