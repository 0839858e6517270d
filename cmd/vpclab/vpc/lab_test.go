package vpc_test

import (
	"bufio"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"go.uber.org/goleak"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// crashDir makes this test binary act as a lab's process that is killed.
const crashDir = "VPCLAB_TEST_CRASH_DIR"

func TestMain(m *testing.M) {
	if dir := os.Getenv(crashDir); dir != "" {
		if err := beKilled(dir); err != nil {
			fmt.Fprintln(os.Stderr, err)
			os.Exit(1)
		}
	}
	goleak.VerifyTestMain(m)
}

// networkdFiles make plain networkd configure every veth link by DHCP and RA.
func networkdFiles() map[string]string {
	return map[string]string{
		"/etc/systemd/network/80-test.network": "[Match]\nDriver=veth\n[Network]\nDHCP=yes\n",
		// Otherwise networkd removes the rules and routes that a test has added by
		// hand.
		"/etc/systemd/networkd.conf.d/test.conf": "[Network]\nManageForeignRoutes=no\nManageForeignRoutingPolicyRules=no\n",
		"/usr/lib/systemd/system-preset/10-test.preset": "enable systemd-networkd.service\n" +
			"enable systemd-networkd-wait-online.service\n",
	}
}

// plain returns the options of an instance whose links are configured by plain
// networkd.
func plain(ctx context.Context, opts vpc.InstanceOptions) vpc.InstanceOptions {
	opts.Files = networkdFiles()
	opts.Install = func(root string) error {
		return vpc.ApplyPresets(ctx, root, "systemd-networkd.service", "systemd-networkd-wait-online.service")
	}
	return opts
}

func bootPlain(t *testing.T, v *vpc.VPC, opts vpc.InstanceOptions) *vpc.Instance {
	t.Helper()
	return vpc.BootForTest(t, v, plain(t.Context(), opts))
}

func try[T any](t *testing.T) func(T, error) T {
	return func(value T, err error) T {
		t.Helper()
		if err != nil {
			t.Fatal(err)
		}
		return value
	}
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// await waits until a link has addresses, and returns the time it took.
func await(t *testing.T, inst *vpc.Instance, link string, want ...netip.Addr) time.Duration {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	begin := time.Now()
	must(t, inst.AwaitAddrs(ctx, link, want...))
	return time.Since(begin)
}

func noDrops(t *testing.T, enis ...*vpc.ENI) {
	t.Helper()
	for _, e := range enis {
		d, err := e.Drops(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if d.Total() != 0 {
			t.Errorf("%s: packets dropped by the source check: %+v", e.ID(), d)
		}
	}
}

// lost pings five times and returns the number of requests without a reply.
func lost(t *testing.T, inst *vpc.Instance, src, dst netip.Addr) int {
	t.Helper()
	r, err := inst.Ping(t.Context(), src, dst, 5, 10*time.Millisecond)
	if err != nil {
		t.Fatal(err)
	}
	if r.Sent != 5 {
		t.Errorf("ping from %s to %s: %s", src, dst, r)
	}
	return r.Sent - r.Received
}

func reaches(t *testing.T, inst *vpc.Instance, src, dst netip.Addr) {
	t.Helper()
	if n := lost(t, inst, src, dst); n != 0 {
		t.Errorf("ping from %s to %s: %d of 5 lost", src, dst, n)
	}
}

// ip runs ip(8) in the instance.
func ip(t *testing.T, inst *vpc.Instance, args ...string) string {
	t.Helper()
	return try[string](t)(inst.Exec(t.Context(), append([]string{"ip"}, args...)...))
}

// tempState creates a state directory for a test's own labs; paths of sockets in it
// must be short.
func tempState(t *testing.T) string {
	t.Helper()
	vpc.RequireForTest(t)
	dir := try[string](t)(os.MkdirTemp("/run", "vpclab-test-"))
	t.Cleanup(func() { must(t, os.Remove(dir)) }) // empty, or the test has failed
	return dir
}

// metadata reads a key from within the instance.
func metadata(t *testing.T, inst *vpc.Instance, endpoint netip.Addr, key string) (string, error) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 5*time.Second)
	defer cancel()
	base := "http://" + netip.AddrPortFrom(endpoint, 80).String() + "/latest/"
	do := func(method, path, header, value string) (string, error) {
		req, err := http.NewRequestWithContext(ctx, method, base+path, nil)
		if err != nil {
			return "", err
		}
		req.Header.Set(header, value)
		resp, err := inst.HTTPClient().Do(req)
		if err != nil {
			return "", err
		}
		defer resp.Body.Close()
		body, err := io.ReadAll(resp.Body)
		if err == nil && resp.StatusCode != http.StatusOK {
			err = errors.New(resp.Status)
		}
		return string(body), err
	}
	token, err := do(http.MethodPut, "api/token", "X-Aws-Ec2-Metadata-Token-Ttl-Seconds", "60")
	if err != nil {
		return "", err
	}
	return do(http.MethodGet, "meta-data/"+key, "X-Aws-Ec2-Metadata-Token", token)
}

// TestLabSuites runs an instance from its boot to its end on each systemd.
func TestLabSuites(t *testing.T) {
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) { testSuite(t, suite) })
	}
}

func testSuite(t *testing.T, suite vpc.Suite) {
	ctx := t.Context()
	v := vpc.ForTest(t, vpc.Options{})
	inst := bootPlain(t, v, vpc.InstanceOptions{Suite: suite.Name})
	t.Logf("booted in %s", inst.BootTime())
	if got := try[int](t)(inst.SystemdVersion(ctx)); fmt.Sprint(got) != suite.Systemd {
		t.Errorf("systemd %d, want %s", got, suite.Systemd)
	}
	if failed := try[[]string](t)(inst.FailedUnits(ctx)); len(failed) > 0 {
		t.Errorf("failed units: %v", failed)
	}
	primary := inst.Primary()
	await(t, inst, "ens5", primary.IPv4()[0], primary.IPv6()[0])
	reaches(t, inst, primary.IPv4()[0], vpc.FarIPv4)
	reaches(t, inst, primary.IPv6()[0], vpc.FarIPv6)
	reaches(t, inst, primary.IPv4()[0], primary.Subnet().Gateway4())
	reaches(t, inst, primary.IPv6()[0], primary.Subnet().Near6())

	for _, endpoint := range []netip.Addr{vpc.MetadataIPv4, vpc.MetadataIPv6} {
		if got := try[string](t)(metadata(t, inst, endpoint, "mac")); got != primary.MAC().String() {
			t.Errorf("metadata on %s: mac is %q, want %s", endpoint, got, primary.MAC())
		}
	}

	// udev and networkd treat the new link as a hotplugged device.
	e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{Subnet: "b"}))
	t.Logf("hotplugged in %s", await(t, inst, "ens6", e.IPv4()[0], e.IPv6()[0]))
	if out := ip(t, inst, "-o", "link", "show", "ens6"); !strings.Contains(out, e.MAC().String()) {
		t.Errorf("ens6 does not have the ENI's MAC: %s", out)
	}
	noDrops(t, inst.ENIs()...)

	must(t, e.Detach(ctx))
	if _, err := inst.Addrs("ens6"); err == nil {
		t.Error("ens6 is still there")
	}
	if got := try[string](t)(metadata(t, inst, vpc.MetadataIPv4, "network/interfaces/macs/")); got != primary.MAC().String()+"/" {
		t.Errorf("after the detach, macs/ lists %q", got)
	}
	must(t, e.Reattach(ctx, "eth7"))
	await(t, inst, "eth7", e.IPv4()[0])

	out := try[string](t)(inst.Run(ctx, vpc.Command{Argv: []string{"id", "-un"}, User: vpc.OrdinaryUser}))
	if strings.TrimSpace(out) != vpc.OrdinaryUser {
		t.Errorf("an ordinary user is %q", out)
	}
	out = try[string](t)(inst.Run(ctx, vpc.Command{Argv: []string{"cat"}, Stdin: strings.NewReader("hello")}))
	if out != "hello" {
		t.Errorf("cat says %q", out)
	}
	var failed *vpc.ExecError
	if _, err := inst.Exec(ctx, "sh", "-c", "echo oops >&2; exit 7"); !errors.As(err, &failed) || failed.ExitCode != 7 ||
		!strings.Contains(err.Error(), "oops") {
		t.Errorf("a failing command: %v", err)
	}
	if _, err := os.Stat(inst.Path("/run/systemd/netif/links")); err != nil {
		t.Errorf("the instance's /run from outside: %v", err)
	}

	// A reboot: a new kernel network with the same ENIs, the same machine, and a
	// journal that continues.
	machine := try[string](t)(inst.Exec(ctx, "cat", "/etc/machine-id"))
	must(t, inst.Reboot(ctx))
	t.Logf("rebooted in %s", inst.BootTime())
	await(t, inst, "ens5", primary.IPv4()[0])
	await(t, inst, "eth7", e.IPv4()[0])
	if again := try[string](t)(inst.Exec(ctx, "cat", "/etc/machine-id")); again != machine || len(machine) != 33 {
		t.Errorf("machine ID %q, before the reboot %q", again, machine)
	}
	if boots := try[string](t)(inst.Journal(ctx, "--list-boots", "--quiet")); strings.Count(boots, "\n") < 2 {
		t.Errorf("boots in the journal: %q", boots)
	}
	must(t, inst.Shutdown(ctx))
	if inst.Running() {
		t.Error("it runs after a shutdown")
	}
	must(t, inst.Boot(ctx))
	await(t, inst, "ens5", primary.IPv4()[0])
	must(t, inst.Kill(ctx))
}

// TestLabSourceCheck sends packets that EC2 would drop.
func TestLabSourceCheck(t *testing.T) {
	ctx := t.Context()
	v := vpc.ForTest(t, vpc.Options{})
	inst := bootPlain(t, v, vpc.InstanceOptions{})
	e := inst.Primary()
	await(t, inst, "ens5", e.IPv4()[0], e.IPv6()[0])
	reaches(t, inst, e.IPv4()[0], vpc.FarIPv4)
	reaches(t, inst, e.IPv6()[0], vpc.FarIPv6)
	noDrops(t, e)

	foreign4, foreign6 := netip.MustParseAddr("10.0.16.99"), netip.MustParseAddr("2001:db8:0:101::99")
	ip(t, inst, "addr", "add", foreign4.String()+"/32", "dev", "ens5")
	ip(t, inst, "addr", "add", foreign6.String()+"/128", "dev", "ens5", "nodad")
	check := func(what string, count func(vpc.Drops) uint64, do func()) {
		t.Helper()
		before := try[vpc.Drops](t)(e.Drops(ctx))
		do()
		after := try[vpc.Drops](t)(e.Drops(ctx))
		if count(after) <= count(before) {
			t.Errorf("%s: drops before %+v, after %+v", what, before, after)
		}
	}
	check("a foreign IPv4 source", func(d vpc.Drops) uint64 { return d.IPv4 }, func() {
		if n := lost(t, inst, foreign4, vpc.FarIPv4); n != 5 {
			t.Errorf("%d of 5 spoofed packets lost", n)
		}
	})
	check("a foreign IPv6 source", func(d vpc.Drops) uint64 { return d.IPv6 }, func() {
		if n := lost(t, inst, foreign6, vpc.FarIPv6); n != 5 {
			t.Errorf("%d of 5 spoofed packets lost", n)
		}
	})
	check("a foreign ARP sender", func(d vpc.Drops) uint64 { return d.ARP }, func() {
		ip(t, inst, "neigh", "flush", "dev", "ens5")
		lost(t, inst, foreign4, e.Subnet().Gateway4())
	})
	check("a foreign MAC", func(d vpc.Drops) uint64 { return d.MAC }, func() {
		ip(t, inst, "link", "add", "link", "ens5", "name", "other0", "type", "macvlan")
		ip(t, inst, "addr", "add", e.IPv4()[0].String()+"/32", "dev", "other0")
		ip(t, inst, "link", "set", "other0", "up")
		ip(t, inst, "route", "add", "198.51.100.1/32", "dev", "other0")
		lost(t, inst, e.IPv4()[0], netip.MustParseAddr("198.51.100.1"))
		ip(t, inst, "link", "del", "other0")
	})

	// Packets from assigned addresses pass; from unassigned ones they do not.
	ip(t, inst, "neigh", "flush", "dev", "ens5")
	reaches(t, inst, e.IPv4()[0], e.Subnet().Gateway4())
	try[[]netip.Addr](t)(e.AssignIPv4(ctx, foreign4))
	try[[]netip.Addr](t)(e.AssignIPv6(ctx, foreign6))
	before := try[vpc.Drops](t)(e.Drops(ctx))
	reaches(t, inst, foreign4, vpc.FarIPv4)
	reaches(t, inst, foreign6, vpc.FarIPv6)
	if after := try[vpc.Drops](t)(e.Drops(ctx)); after != before {
		t.Errorf("assigned addresses are dropped: before %+v, after %+v", before, after)
	}
	must(t, e.UnassignIPv4(ctx, foreign4))
	must(t, e.UnassignIPv6(ctx, foreign6))
	if n := lost(t, inst, foreign4, vpc.FarIPv4); n != 5 {
		t.Errorf("from an unassigned address %d of 5 lost", n)
	}

	// Packets from addresses of delegated prefixes pass too, and so do the replies.
	p4 := try[[]netip.Prefix](t)(e.AssignPrefixV4(ctx))[0]
	p6 := try[[]netip.Prefix](t)(e.AssignPrefixV6(ctx))[0]
	in4, in6 := p4.Addr().Next().Next(), p6.Addr().Next()
	ip(t, inst, "addr", "add", in4.String()+"/32", "dev", "ens5")
	ip(t, inst, "addr", "add", in6.String()+"/128", "dev", "ens5", "nodad")
	reaches(t, inst, in4, vpc.FarIPv4)
	reaches(t, inst, in6, vpc.FarIPv6)
	must(t, e.UnassignPrefix(ctx, p4, p6))
	if n := lost(t, inst, in4, vpc.FarIPv4); n != 5 {
		t.Errorf("from a prefix that was taken away %d of 5 lost", n)
	}

	for what, err := range map[string]error{
		"unassigning the primary address":   e.UnassignIPv4(ctx, e.IPv4()[0]),
		"unassigning an unknown address":    e.UnassignIPv4(ctx, foreign4),
		"unassigning an unknown prefix":     e.UnassignPrefix(ctx, p4),
		"deleting the primary ENI":          e.Delete(ctx),
		"re-attaching an ENI that is there": e.Reattach(ctx, ""),
	} {
		if err == nil {
			t.Errorf("%s worked", what)
		}
	}
}

// TestLabSameSubnet has several ENIs in one subnet, each with its own table. A VPC
// answers ARP itself, so Linux, which answers for any of its addresses on any link,
// does not conflict with the source check.
func TestLabSameSubnet(t *testing.T) {
	ctx := t.Context()
	v := vpc.ForTest(t, vpc.Options{})
	inst := bootPlain(t, v, vpc.InstanceOptions{})
	await(t, inst, "ens5", inst.Primary().IPv4()[0])
	var enis []*vpc.ENI
	for n := range 3 {
		e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{IPv4Count: 3}))
		if e.DeviceIndex() != n+1 || e.Name() != fmt.Sprintf("ens%d", 6+n) {
			t.Errorf("ENI %d: index %d, name %s", n, e.DeviceIndex(), e.Name())
		}
		await(t, inst, e.Name(), e.IPv4()[0])
		table := fmt.Sprint(10001 + n)
		ip(t, inst, "route", "add", e.Subnet().IPv4().String(), "dev", e.Name(), "table", table)
		ip(t, inst, "route", "add", "default", "via", e.Subnet().Gateway4().String(), "dev", e.Name(), "table", table)
		for _, a := range e.IPv4() {
			ip(t, inst, "addr", "replace", a.String()+"/32", "dev", e.Name())
			ip(t, inst, "rule", "add", "from", a.String(), "table", table, "priority", table)
		}
		enis = append(enis, e)
	}
	for _, e := range enis {
		for _, a := range e.IPv4() {
			reaches(t, inst, a, vpc.FarIPv4)
			reaches(t, inst, a, e.Subnet().Gateway4())
		}
	}
	noDrops(t, inst.ENIs()...)
	must(t, enis[0].Delete(ctx))
	again := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{}))
	if again.Name() != "ens6" || again.DeviceIndex() != 1 {
		t.Errorf("name %s, index %d are not used again", again.Name(), again.DeviceIndex())
	}
}

// TestLabSubnets boots in subnets with one address family.
func TestLabSubnets(t *testing.T) {
	t.Run("IPv6 only", func(t *testing.T) {
		v := vpc.ForTest(t, vpc.Options{})
		inst := bootPlain(t, v, vpc.InstanceOptions{Primary: vpc.ENISpec{Subnet: "v6"}})
		e := inst.Primary()
		if len(e.IPv4()) != 0 || len(e.IPv6()) != 1 {
			t.Errorf("it has %v and %v", e.IPv4(), e.IPv6())
		}
		await(t, inst, "ens5", e.IPv6()[0])
		reaches(t, inst, e.IPv6()[0], vpc.FarIPv6)
		if _, err := metadata(t, inst, vpc.MetadataIPv6, "network/interfaces/macs/"+e.MAC().String()+"/local-ipv4s"); err == nil ||
			!strings.HasPrefix(err.Error(), "404") {
			t.Errorf("local-ipv4s: %v, want 404", err)
		}
		// DHCPv4 leases a link-local /32 there (facts: ipv6-only-subnets).
		addrs := try[[]netip.Prefix](t)(inst.Addrs("ens5"))
		if !slices.ContainsFunc(addrs, func(p netip.Prefix) bool { return p.Addr().Is4() && p.Addr().IsLinkLocalUnicast() && p.Bits() == 32 }) {
			t.Errorf("no link-local IPv4 lease: %v", addrs)
		}
		noDrops(t, e)
	})
	t.Run("IPv4 only", func(t *testing.T) {
		v := vpc.ForTest(t, vpc.Options{})
		inst := bootPlain(t, v, vpc.InstanceOptions{Primary: vpc.ENISpec{Subnet: "v4"}})
		e := inst.Primary()
		await(t, inst, "ens5", e.IPv4()[0])
		reaches(t, inst, e.IPv4()[0], vpc.FarIPv4)
		if out := ip(t, inst, "-6", "route", "show", "default"); out != "" {
			t.Errorf("IPv6 default route: %q", out)
		}
		noDrops(t, e)
	})
}

// TestLabServices mutes the services of a subnet and the metadata service.
func TestLabServices(t *testing.T) {
	ctx := t.Context()
	v := vpc.ForTest(t, vpc.Options{})
	inst := bootPlain(t, v, vpc.InstanceOptions{})
	primary := inst.Primary()
	await(t, inst, "ens5", primary.IPv4()[0], primary.IPv6()[0])

	sn := v.Subnet("b")
	sn.Mute(vpc.DHCPv4)
	e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{Subnet: "b"}))
	await(t, inst, "ens6", e.IPv6()[0])
	for _, event := range e.DHCPEvents() {
		if event.Service == vpc.DHCPv4 && event.Answer != "" {
			t.Errorf("a muted server answered: %+v", event)
		}
	}
	sn.Unmute()
	await(t, inst, "ens6", e.IPv4()[0])
	var answers []string
	for _, event := range e.DHCPEvents() {
		if event.Service == vpc.DHCPv4 && event.Answer != "" {
			answers = append(answers, event.Message+" "+event.Answer)
		}
	}
	if want := []string{"DISCOVER OFFER", "REQUEST ACK"}; !slices.Equal(answers, want) {
		t.Errorf("answers of DHCPv4 %v, want %v", answers, want)
	}

	// A router with a new address advertises itself under that.
	router := netip.MustParseAddr("fe80::ec2:99")
	must(t, sn.SetRouter(router))
	until(t, "the new router is a next hop", func() bool {
		return strings.Contains(ip(t, inst, "-6", "route", "show", "default", "dev", "ens6"), router.String())
	})

	must(t, v.SetMetadataEndpoint(ctx, vpc.IPv4, vpc.EndpointRefused))
	if _, err := metadata(t, inst, vpc.MetadataIPv4, "mac"); !errors.Is(err, unix.ECONNREFUSED) {
		t.Errorf("the refused endpoint: %v", err)
	}
	if _, err := metadata(t, inst, vpc.MetadataIPv6, "mac"); err != nil {
		t.Errorf("the other endpoint: %v", err)
	}
	must(t, v.SetMetadataEndpoint(ctx, vpc.IPv4, vpc.EndpointSilent))
	short, cancel := context.WithTimeout(ctx, 200*time.Millisecond)
	defer cancel()
	if conn, err := inst.DialContext(short, "tcp", "169.254.169.254:80"); err == nil {
		conn.Close()
		t.Error("the silent endpoint answers")
	}
	must(t, v.SetMetadataEndpoint(ctx, vpc.IPv4, vpc.EndpointOn))
	if _, err := metadata(t, inst, vpc.MetadataIPv4, "mac"); err != nil {
		t.Errorf("the endpoint that is on again: %v", err)
	}

	inst.Metadata().ResetRequests()
	if _, err := inst.Metadata().AddFault(imds.Fault{Pattern: "mac", Effect: imds.Reset}); err != nil {
		t.Fatal(err)
	}
	if _, err := metadata(t, inst, vpc.MetadataIPv4, "mac"); !errors.Is(err, unix.ECONNRESET) {
		t.Errorf("a reset: %v", err)
	}
	requests := inst.Metadata().Requests()
	if len(requests) != 2 || requests[1].Remote.Addr() != primary.IPv4()[0] || requests[1].Local.Addr() != vpc.MetadataIPv4 {
		t.Errorf("the request log: %+v", requests)
	}
	status := try[vpc.Status](t)(v.Status(ctx))
	if _, err := json.Marshal(status); err != nil || len(status.Instances) != 1 || len(status.Instances[0].ENIs) != 2 {
		t.Errorf("status: %+v, %v", status, err)
	}
}

func until(t *testing.T, what string, cond func() bool) {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	must(t, vpc.Until(ctx, what, func() (bool, error) { return cond(), nil }))
}

// TestLabPrimitives attaches in steps: the metadata first, the link first, and key by
// key.
func TestLabPrimitives(t *testing.T) {
	ctx := t.Context()
	v := vpc.ForTest(t, vpc.Options{})
	inst := bootPlain(t, v, vpc.InstanceOptions{NetworkCards: 2})
	await(t, inst, "ens5", inst.Primary().IPv4()[0])
	one := 1
	e := try[*vpc.ENI](t)(inst.Create(ctx, vpc.ENISpec{NetworkCard: &one, DeviceIndex: 1, MAC: net.HardwareAddr{2, 0, 0, 0, 0, 9}}))
	dir := "network/interfaces/macs/" + e.MAC().String() + "/"
	keys := func() map[string]string { return inst.Metadata().Snapshot() }
	if _, ok := keys()[dir+"mac"]; ok || e.Published() || e.Plugged() {
		t.Error("an ENI that was only made shows")
	}
	must(t, e.Plug(ctx))
	await(t, inst, "ens6", e.IPv4()[0])
	if _, ok := keys()[dir+"mac"]; ok {
		t.Error("plugging in has published the metadata")
	}
	e.Publish(imds.Propagation{Keys: map[string]time.Duration{"device-number": imds.Held, "network-card": imds.Held}})
	if got := keys(); got[dir+"device-number"] != "0" || got[dir+"network-card"] != "" {
		t.Errorf("number %q, card %q before they have propagated", got[dir+"device-number"], got[dir+"network-card"])
	}
	e.Reveal("device-number")
	e.Reveal("network-card")
	if got := keys(); got[dir+"device-number"] != "1" || got[dir+"network-card"] != "1" {
		t.Errorf("number %q, card %q", got[dir+"device-number"], got[dir+"network-card"])
	}
	if got := keys()["network/interfaces/macs/"+inst.Primary().MAC().String()+"/network-card"]; got != "0" {
		t.Errorf("the primary's card is %q", got)
	}
	must(t, e.Unplug(ctx))
	if _, err := inst.Addrs("ens6"); err == nil {
		t.Error("the link is still there")
	}
	if keys()[dir+"mac"] == "" {
		t.Error("unplugging has withdrawn the metadata")
	}
	must(t, e.Unplug(ctx)) // nothing to do
	must(t, e.DetachLingering(ctx, time.Hour))
	if keys()[dir+"mac"] == "" {
		t.Error("the metadata do not linger")
	}
	must(t, e.Delete(ctx))
	if inst.ENI(e.ID()) != nil {
		t.Error("a deleted ENI is still there")
	}
	if _, err := inst.Create(ctx, vpc.ENISpec{MAC: inst.Primary().MAC()}); err == nil {
		t.Error("a MAC was given twice")
	}
	if _, err := inst.Create(ctx, vpc.ENISpec{IPv4: inst.Primary().IPv4()}); err == nil {
		t.Error("an address was given twice")
	}
	err := inst.Do(func() error {
		_, err := netlink.LinkByName("ens5")
		return err
	})
	if err != nil {
		t.Errorf("netlink in the instance: %v", err)
	}
}

// TestLabParallel runs several labs at once, and two instances in one VPC that read
// their own metadata.
func TestLabParallel(t *testing.T) {
	for n := range 2 {
		t.Run(fmt.Sprint("lab ", n), func(t *testing.T) {
			t.Parallel()
			v := vpc.ForTest(t, vpc.Options{})
			a := bootPlain(t, v, vpc.InstanceOptions{})
			b := bootPlain(t, v, vpc.InstanceOptions{})
			for _, inst := range []*vpc.Instance{a, b} {
				await(t, inst, "ens5", inst.Primary().IPv4()[0], inst.Primary().IPv6()[0])
				for _, endpoint := range []netip.Addr{vpc.MetadataIPv4, vpc.MetadataIPv6} {
					if got := try[string](t)(metadata(t, inst, endpoint, "instance-id")); got != inst.ID() {
						t.Errorf("%s reads on %s that it is %s", inst.ID(), endpoint, got)
					}
				}
				// Two systemds in one cgroup would end each other's services.
				if failed := try[[]string](t)(inst.FailedUnits(t.Context())); len(failed) > 0 {
					t.Errorf("failed units: %v", failed)
				}
			}
			reaches(t, a, a.Primary().IPv4()[0], b.Primary().IPv4()[0])
			reaches(t, a, a.Primary().IPv6()[0], b.Primary().IPv6()[0])
			noDrops(t, a.Primary(), b.Primary())
		})
	}
}

// TestLabLeavesNothing closes a lab with a running instance.
func TestLabLeavesNothing(t *testing.T) {
	dir := tempState(t)
	v := vpc.ForTest(t, vpc.Options{StateDir: dir})
	inst := bootPlain(t, v, vpc.InstanceOptions{})
	leader := inst.Leader()
	if found := vpc.TracesForTest(t, dir, v.Name(), leader); len(found) < 4 {
		t.Fatalf("this test does not see the lab: %v", found)
	}
	if _, err := vpc.New(t.Context(), vpc.Options{StateDir: dir, Name: v.Name()}); err == nil || !strings.Contains(err.Error(), "already") {
		t.Errorf("a second lab of the same name: %v", err)
	}
	if removed, err := vpc.RemoveStale(t.Context(), dir); err != nil || len(removed) > 0 || !inst.Running() {
		t.Errorf("a living lab was taken for stale: %v, %v", removed, err)
	}
	begin := time.Now()
	must(t, v.Close())
	t.Logf("closed in %s", time.Since(begin))
	if found := vpc.TracesForTest(t, dir, v.Name(), leader); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
	must(t, v.Close())
}

// TestLabKilled kills a lab's process and cleans up after it.
func TestLabKilled(t *testing.T) {
	dir := tempState(t)
	cmd := exec.CommandContext(t.Context(), os.Args[0])
	cmd.Env = append(os.Environ(), crashDir+"="+dir)
	cmd.Stderr = os.Stderr
	out := try[io.ReadCloser](t)(cmd.StdoutPipe())
	must(t, cmd.Start())
	var name string
	var leader int
	line, err := bufio.NewReader(out).ReadString('\n')
	if _, scanErr := fmt.Sscan(line, &name, &leader); err != nil || scanErr != nil {
		t.Fatalf("the other process says %q, %v", line, err)
	}
	if found := vpc.TracesForTest(t, dir, name, leader); len(found) < 4 {
		t.Fatalf("this test does not see the lab: %v", found)
	}
	must(t, cmd.Process.Kill())
	_ = cmd.Wait() // killed, as it says

	// The instance ends with the process, without any help.
	until(t, "the instance is gone", func() bool { return errors.Is(syscall.Kill(leader, 0), syscall.ESRCH) })
	removed := try[[]string](t)(vpc.RemoveStale(t.Context(), dir))
	if !slices.Equal(removed, []string{name}) {
		t.Errorf("removed %v, want %s", removed, name)
	}
	if found := vpc.TracesForTest(t, dir, name, leader); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}

// beKilled boots a lab, reports that, and waits for its end.
func beKilled(dir string) error {
	ctx := context.Background()
	v, err := vpc.New(ctx, vpc.Options{StateDir: dir})
	if err != nil {
		return err
	}
	inst, err := v.NewInstance(ctx, plain(ctx, vpc.InstanceOptions{}))
	if err != nil {
		return err
	}
	if err := inst.Boot(ctx); err != nil {
		return err
	}
	fmt.Println(v.Name(), inst.Leader())
	select {}
}

// TestLabFailedBoot: after a failed boot nothing of the instance is running.
func TestLabFailedBoot(t *testing.T) {
	dir := tempState(t)
	v := vpc.ForTest(t, vpc.Options{StateDir: dir})
	inst := try[*vpc.Instance](t)(v.NewInstance(t.Context(), vpc.InstanceOptions{
		Install: func(root string) error {
			return os.RemoveAll(filepath.Join(root, "usr/lib/systemd/systemd"))
		},
	}))
	err := inst.Boot(t.Context())
	if err == nil || !strings.Contains(err.Error(), "ended before") {
		t.Errorf("booting without an init: %v", err)
	}
	if inst.Running() {
		t.Error("it runs")
	}
	must(t, v.Close())
	if found := vpc.TracesForTest(t, dir, v.Name()); len(found) > 0 {
		t.Errorf("left: %v", found)
	}
}
