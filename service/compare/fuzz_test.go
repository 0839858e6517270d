package compare

import (
	"testing"

	"ec2netd/service/dropin"
	"ec2netd/service/plan"
)

// FuzzFiles: whatever stands in a drop-in, what it asks for is read, and is no more than stands in
// it (D4).
func FuzzFiles(f *testing.F) {
	first, second := view(0, addrs("10.0.1.10"), nil), view(1, addrs("10.0.1.20", "10.0.1.21"), addrs("2001:db8:1::20"))
	for _, file := range plan.Make(input([]plan.Link{leased(0, &first), leased(1, &second)}, first, second)).Files {
		f.Add(file.Content)
	}
	f.Add("[Match]\nName=!ens7 *\nDriver=\n[Link]\nUnmanaged=yes\n")
	f.Add("[RoutingPolicyRule]\nFrom=fe80::1%1\nTable=main\nPriority=-1\nSuppressPrefixLength=0\n")
	f.Add("[Match]\nName=[\n[Network]\nAddress=\nDHCP=no\n")
	f.Add("RouteMetric=99999999999999999999\nMACAddress=\nAddress=10.0.0.1/33\nGateway=::1%x\nRouteMetric=1024")
	f.Add("[Match\n]\n=\n\\\n[]\n\\")
	f.Fuzz(func(t *testing.T, content string) {
		n := dropin.ParseNetwork(content)
		asked := filesOf(Rendered{Network: n, Link: dropin.ParseLink(content)})
		if n != nil && len(asked.addresses) > len(n.Addresses) {
			t.Errorf("addresses %v", asked.addresses)
		}
	})
}
