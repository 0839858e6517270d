package e2e

import (
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// kubernetes is the configuration that configuration.md has for a node whose pods have the secondary
// addresses: the first after the word.
func kubernetes(t testing.TB) string {
	t.Helper()
	_, rest, _ := strings.Cut(configurationPage(t), "On a Kubernetes node")
	_, rest, _ = strings.Cut(rest, "```\n")
	recipe, _, ok := strings.Cut(rest, "```\n")
	if !ok || !strings.Contains(recipe, "[ENI]\n") {
		t.Fatalf("configuration.md has no recipe for Kubernetes: %q", recipe)
	}
	return recipe
}

// configurationPage is the page that has the recipes.
func configurationPage(t testing.TB) string {
	t.Helper()
	text, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	return string(text)
}

// A12, A10: with SecondaryAddresses=no an ENI has its primary addresses alone, and a pod that owns
// another one of a secondary ENI talks to the VPC by that ENI, both ways. DNS= takes the
// place of the servers of the lease.
func TestLabPods(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count, o.Primary.IPv6Count = 2, 2
			o.Files["/etc/ec2netd.conf.d/pods.conf"] = kubernetes(t)
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[ENI]\nPrimary=no\nDNS=192.0.2.53 2001:db8::53\n"
			o.Files["/etc/systemd/network/10-pods.network"] = "[Match]\nName=pod*\n[Link]\nUnmanaged=yes\n"
			o.Files["/etc/sysctl.d/90-pods.conf"] = "net.ipv4.ip_forward=1\nnet.ipv6.conf.all.forwarding=1\n"
		})
		eni := l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 3, IPv6Count: 3})
		for _, e := range []*vpc.ENI{l.Inst.Primary(), eni} {
			l.AwaitConfigured(e.ID())
			want := []netip.Addr{e.IPv4()[0], e.IPv6()[0]}
			l.Until(fmt.Sprintf("%s has %s alone", e.Name(), want), func() (bool, error) {
				return slices.Equal(l.Addresses(e.Name()), want), nil
			})
		}
		if got, want := l.Rules(10001), labtest.Sources(eni); !slices.Equal(got, want) {
			t.Errorf("rules: %v, want %v", got, want)
		}
		found, _ := l.Describe().Find(eni.ID())
		at := slices.IndexFunc(found.Items, func(i state.Item) bool { return i.Value == eni.IPv4()[1].String() })
		if at < 0 || !strings.Contains(found.Items[at].NotApplicable, "SecondaryAddresses=no") || found.Items[at].Reason != "" {
			t.Errorf("%+v", found)
		}
		dns := l.Run("resolvectl", "dns", eni.Name())
		if _, servers, _ := strings.Cut(dns, "):"); strings.TrimSpace(servers) != "192.0.2.53 2001:db8::53" {
			t.Errorf("DNS servers: %q", dns)
		}

		// What a CNI plugin does: a link into the pod, and a route to it. Without an address of
		// its own the link would get another one from udevd (MACAddressPolicy=persistent), after
		// the pod has been told of the first.
		pods := []netip.Addr{eni.IPv4()[1], eni.IPv6()[1]}
		l.Run("sh", "-ec", fmt.Sprintf(`
			ip netns add pod
			ip link add pod0 address 06:00:00:00:00:01 type veth peer name eth0 netns pod
			ip link set pod0 up
			ip -n pod link set lo up
			ip -n pod link set eth0 up
			ip -n pod addr add %[1]s/32 dev eth0
			ip -n pod addr add %[2]s/128 dev eth0 nodad
			ip -n pod neigh add 169.254.1.1 lladdr 06:00:00:00:00:01 dev eth0 nud permanent
			ip -n pod neigh add fe80::1 lladdr 06:00:00:00:00:01 dev eth0 nud permanent
			ip -n pod route add default via 169.254.1.1 dev eth0 onlink
			ip -n pod route add default via fe80::1 dev eth0 onlink
			ip route add %[1]s dev pod0
			ip route add %[2]s dev pod0`, pods[0], pods[1]))
		l.CountDrops()
		before := receivedBy(l, eni)
		for _, pod := range pods {
			far := vpc.FarIPv4
			if pod.Is6() {
				far = vpc.FarIPv6
			}
			out, err := l.Inst.Exec(t.Context(), "ip", "netns", "exec", "pod", "ping", "-c20", "-i0.05", "-W5", far.String())
			if err != nil || !strings.Contains(out, " 0% packet loss") {
				t.Errorf("from the pod's %s: %v\n%s", pod, err, out)
			}
			pinger, err := l.VPC.StartPing(t.Context(), far, pod, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			l.Until("the pod's "+pod.String()+" answers", func() (bool, error) { return pinger.Result().Received >= 20, nil })
			if r := pinger.Stop(); len(r.Lost) > 0 {
				t.Errorf("to the pod's %s: %s", pod, r)
			}
		}
		l.CheckDrops()
		if n := receivedBy(l, eni) - before; n < 80 {
			t.Errorf("the ENI has received %d packets only", n)
		}
	})
}

// receivedBy is how many packets an ENI's link has received.
func receivedBy(l *labtest.Lab, eni *vpc.ENI) (n int) {
	l.T.Helper()
	if _, err := fmt.Sscan(l.Run("cat", "/sys/class/net/"+eni.Name()+"/statistics/rx_packets"), &n); err != nil {
		l.T.Fatal(err)
	}
	return n
}
