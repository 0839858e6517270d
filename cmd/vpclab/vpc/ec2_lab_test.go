package vpc_test

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// The tests in this file prove that the lab behaves like EC2 if told to.

// eachSuite runs a test with a behaviour that is based on EC2's, on each systemd.
func eachSuite(t *testing.T, test func(t *testing.T, suite string, b vpc.Behaviour)) {
	vpc.RequireForTest(t)
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) { test(t, suite.Name, vpc.EC2()) })
	}
}

// bootTaking boots an instance whose networkd uses options of DHCP that it does not use
// by default, only on ens5.
func bootTaking(t *testing.T, v *vpc.VPC, opts vpc.InstanceOptions) *vpc.Instance {
	t.Helper()
	opts = plain(t.Context(), opts)
	opts.Files["/etc/systemd/network/70-ens5.network"] = "[Match]\nName=ens5\n[Network]\nDHCP=yes\n" +
		"[DHCPv4]\nUseMTU=yes\nUseDomains=yes\n[DHCPv6]\nUseDomains=yes\n"
	return vpc.BootForTest(t, v, opts)
}

// linkState reads a value of networkd's state of a link: DNS, NTP, DOMAINS.
func linkState(t *testing.T, inst *vpc.Instance, link, key string) string {
	t.Helper()
	text := try[[]byte](t)(os.ReadFile(filepath.Join(inst.Path("/run/systemd/netif/links"), fmt.Sprint(attrs(t, inst, link).Index))))
	for line := range strings.Lines(string(text)) {
		if value, ok := strings.CutPrefix(strings.TrimSpace(line), key+"="); ok {
			return value
		}
	}
	return ""
}

// attrs returns the attributes of a link in the instance.
func attrs(t *testing.T, inst *vpc.Instance, link string) *netlink.LinkAttrs {
	t.Helper()
	var l netlink.Link
	must(t, inst.Do(func() (err error) {
		l, err = netlink.LinkByName(link)
		return err
	}))
	return l.Attrs()
}

// arrives sends one UDP packet of a size, IP header included, that must not be
// fragmented, and reports whether it arrives.
func arrives(t *testing.T, from, to func(func() error) error, src, dst netip.Addr, size int) bool {
	t.Helper()
	var listener, sender *net.UDPConn
	must(t, to(func() (err error) {
		listener, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(dst, 0)))
		return err
	}))
	defer listener.Close()
	must(t, from(func() (err error) {
		sender, err = net.DialUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(src, 0)), listener.LocalAddr().(*net.UDPAddr))
		return err
	}))
	defer sender.Close()
	raw := try[interface {
		Control(func(uintptr)) error
	}](t)(sender.SyscallConn())
	headers, level, option, value := 28, unix.IPPROTO_IP, unix.IP_MTU_DISCOVER, unix.IP_PMTUDISC_PROBE
	if dst.Is6() {
		headers, level, option, value = 48, unix.IPPROTO_IPV6, unix.IPV6_MTU_DISCOVER, unix.IPV6_PMTUDISC_PROBE
	}
	var setErr error
	must(t, errors.Join(raw.Control(func(fd uintptr) { setErr = unix.SetsockoptInt(int(fd), level, option, value) }), setErr))
	payload := bytes.Repeat([]byte{42}, size-headers)
	if _, err := sender.Write(payload); errors.Is(err, unix.EMSGSIZE) {
		return false
	} else if err != nil {
		t.Fatal(err)
	}
	must(t, listener.SetReadDeadline(time.Now().Add(2*time.Second)))
	got := make([]byte, 65536)
	n, err := listener.Read(got)
	if errors.Is(err, os.ErrDeadlineExceeded) {
		return false
	}
	must(t, err)
	return bytes.Equal(got[:n], payload)
}

// TestLabDHCPOptions: networkd uses the DHCP options set, and packets of 9001 bytes
// pass if both ends have that MTU.
func TestLabDHCPOptions(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string, b vpc.Behaviour) {
		ctx := t.Context()
		b.DHCP.Search = []string{"s1.example.com", "s2.example.com"}
		b.DHCP.NTP = []netip.Addr{vpc.TimeSync}
		v := vpc.ForTest(t, vpc.Options{Behaviour: &b})
		inst := bootTaking(t, v, vpc.InstanceOptions{Suite: suite})
		primary := inst.Primary()
		await(t, inst, "ens5", primary.IPv4()[0], primary.IPv6()[0])
		expect := func(key, want string) {
			t.Helper()
			until(t, key+" is "+want, func() bool { return linkState(t, inst, "ens5", key) == want })
		}
		expect("DNS", "10.0.0.2")
		expect("NTP", "169.254.169.123")
		expect("DOMAINS", "ec2.internal s1.example.com s2.example.com")
		until(t, "the MTU is that of option 26", func() bool { return attrs(t, inst, "ens5").MTU == 9001 })

		// ens6 has no UseMTU=, so it keeps the kernel's default.
		e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{Subnet: "b"}))
		await(t, inst, "ens6", e.IPv4()[0], e.IPv6()[0])
		if mtu := attrs(t, inst, "ens6").MTU; mtu != 1500 {
			t.Errorf("the MTU of a new ENI is %d", mtu)
		}
		near := primary.Subnet()
		for _, c := range []struct {
			src, dst netip.Addr
			size     int
			passes   bool
		}{
			{primary.IPv4()[0], near.Gateway4(), 9001, true},
			{primary.IPv6()[0], near.Near6(), 9001, true},
			{primary.IPv4()[0], vpc.FarIPv4, 9001, true},
			{primary.IPv4()[0], near.Gateway4(), 9002, false},
		} {
			if got := arrives(t, inst.Do, v.Do, c.src, c.dst, c.size); got != c.passes {
				t.Errorf("%d bytes from %s to %s: arrived %t", c.size, c.src, c.dst, got)
			}
		}
		for _, c := range []struct {
			src, dst netip.Addr
			size     int
			passes   bool
		}{
			{near.Gateway4(), primary.IPv4()[0], 9001, true},
			{near.Near6(), primary.IPv6()[0], 9001, true},
			{e.Subnet().Gateway4(), e.IPv4()[0], 1500, true},
			// The VPC has a large MTU, but this end has not.
			{e.Subnet().Gateway4(), e.IPv4()[0], 9001, false},
		} {
			if got := arrives(t, v.Do, inst.Do, c.src, c.dst, c.size); got != c.passes {
				t.Errorf("%d bytes from %s to %s: arrived %t", c.size, c.src, c.dst, got)
			}
		}

		// Another options set takes effect with the next lease. Several domains are one
		// text; the test does not check how networkd handles the space.
		b.DHCP = vpc.DHCPOptions{Domains: []string{"one.example", "two.example"}, DNS: []netip.Addr{netip.MustParseAddr("10.0.0.9")}}
		must(t, v.SetBehaviour(b))
		leaseAgain(t, inst)
		expect("DNS", "10.0.0.9")
		expect("DOMAINS", `one.example\032two.example`)
		expect("NTP", "")
		noDrops(t, inst.ENIs()...)
	})
}

// leaseAgain makes networkd request all leases of ens5 again.
func leaseAgain(t *testing.T, inst *vpc.Instance) {
	t.Helper()
	try[string](t)(inst.Exec(t.Context(), "networkctl", "reconfigure", "ens5"))
}

// TestLabDHCPv6 leases every address of an ENI for a short time, and checks that the
// next renewal applies changes.
func TestLabDHCPv6(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string, b vpc.Behaviour) {
		ctx := t.Context()
		v := vpc.ForTest(t, vpc.Options{Behaviour: &b})
		inst := bootTaking(t, v, vpc.InstanceOptions{Suite: suite, Primary: vpc.ENISpec{IPv6Count: 3}})
		primary := inst.Primary()
		await(t, inst, "ens5", primary.IPv6()...)
		leased := func(e *vpc.ENI) []netip.Addr {
			events := e.DHCPEvents()
			for n := len(events) - 1; n >= 0; n-- {
				if events[n].Service == vpc.DHCPv6 && events[n].Answer != "" {
					return events[n].Addresses
				}
			}
			return nil
		}
		if got := leased(primary); !slices.Equal(got, primary.IPv6()) {
			t.Errorf("leased are %v, want %v in this order", got, primary.IPv6())
		}
		list := func(link string) (out []netlink.Addr) {
			must(t, inst.Do(func() error {
				l, err := netlink.LinkByName(link)
				if err == nil {
					out, err = netlink.AddrList(l, netlink.FAMILY_V6)
				}
				return err
			}))
			return slices.DeleteFunc(out, func(a netlink.Addr) bool { return a.IP.IsLinkLocalUnicast() })
		}
		for _, a := range list("ens5") {
			if a.ValidLft > 450 || a.ValidLft < 350 || a.PreferedLft > 140 || a.PreferedLft < 40 || a.Mask.String() != strings.Repeat("f", 32) {
				t.Errorf("%s is valid for %d s, preferred for %d", a.IPNet, a.ValidLft, a.PreferedLft)
			}
		}
		// In a dual-stack subnet DHCPv6 only leases addresses.
		if dns := linkState(t, inst, "ens5", "DNS"); strings.Contains(dns, vpc.AmazonDNS6.String()) {
			t.Errorf("DNS servers %s", dns)
		}

		// A renewal, after half of the preferred lifetime, adds assigned addresses and
		// removes unassigned ones.
		b.Lifetimes.DHCPv6Preferred, b.Lifetimes.DHCPv6Valid = 6*time.Second, 60*time.Second
		must(t, v.SetBehaviour(b))
		requests := func() (n int) {
			for _, e := range primary.DHCPEvents() {
				if e.Service == vpc.DHCPv6 && e.Message == "REQUEST" { // not a RELEASE
					n++
				}
			}
			return n
		}
		before := requests()
		leaseAgain(t, inst)
		until(t, "there is another lease", func() bool { return requests() > before })
		await(t, inst, "ens5", primary.IPv6()...)
		gone := primary.IPv6()[1]
		added := try[[]netip.Addr](t)(primary.AssignIPv6(ctx))
		must(t, primary.UnassignIPv6(ctx, gone))
		await(t, inst, "ens5", added...)
		until(t, "an address that was taken away is gone", func() bool {
			return !slices.ContainsFunc(list("ens5"), func(a netlink.Addr) bool { return a.IP.Equal(gone.AsSlice()) })
		})
		if !slices.ContainsFunc(primary.DHCPEvents(), func(e vpc.DHCPEvent) bool {
			return (e.Message == "RENEW" || e.Message == "REBIND") && slices.Contains(e.Addresses, added[0])
		}) {
			t.Errorf("no renewal has brought %s: %+v", added[0], primary.DHCPEvents())
		}

		// Only the first address, as before.
		b.DHCPv6, b.Lifetimes = vpc.DHCPv6First, vpc.EC2().Lifetimes
		must(t, v.SetBehaviour(b))
		e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{Subnet: "b", IPv6Count: 3}))
		await(t, inst, "ens6", e.IPv6()[0])
		if got := leased(e); !slices.Equal(got, e.IPv6()[:1]) || len(list("ens6")) != 1 {
			t.Errorf("leased are %v, on the link %v, want %v", got, list("ens6"), e.IPv6()[:1])
		}

		// Without IPv4, DHCPv6 also sends the options.
		b.DHCPv6 = vpc.DHCPv6All
		b.DHCP.Domains = []string{"one.example", "two.example"}
		b.DHCP.NTP = []netip.Addr{netip.MustParseAddr("fd00:ec2::123")}
		must(t, v.SetBehaviour(b))
		only := bootTaking(t, v, vpc.InstanceOptions{Suite: suite, Primary: vpc.ENISpec{Subnet: "v6", IPv6Count: 2}})
		await(t, only, "ens5", only.Primary().IPv6()...)
		for key, want := range map[string]string{"DNS": vpc.AmazonDNS6.String(), "NTP": "fd00:ec2::123", "DOMAINS": "one.example two.example"} {
			until(t, key+" has "+want, func() bool { return strings.Contains(linkState(t, only, "ens5", key), want) })
		}
		noDrops(t, append(inst.ENIs(), only.ENIs()...)...)
	})
}

// TestLabRouterPace: the delays of the router's answers and advertisements.
func TestLabRouterPace(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string, b vpc.Behaviour) {
		ctx := t.Context()
		b.RADelay, b.Lifetimes.AdvertiseEvery = vpc.Exactly(1500*time.Millisecond), 0
		v := vpc.ForTest(t, vpc.Options{Behaviour: &b})
		inst := bootPlain(t, v, vpc.InstanceOptions{Suite: suite})
		// On 252 the kernel merges them into one multipath route.
		hasRouter := func(link string) bool {
			return strings.Contains(ip(t, inst, "-6", "route", "show", "default")+" ", " dev "+link+" ")
		}
		waits := func(link string) time.Duration {
			begin := time.Now()
			try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{}))
			until(t, "an IPv6 default route", func() bool { return hasRouter(link) })
			return time.Since(begin)
		}
		if took := waits("ens6"); took < 1500*time.Millisecond {
			t.Errorf("a router that takes 1.5 s to answer has done so after %s", took)
		}
		// A router that never answers in time, but advertises itself.
		b.RADelay, b.Lifetimes.AdvertiseEvery = vpc.Exactly(time.Hour), 500*time.Millisecond
		must(t, v.SetBehaviour(b))
		t.Logf("a router that speaks every 0.5 s is known after %s", waits("ens7"))
		// A router that does neither.
		b.Lifetimes.AdvertiseEvery = 0
		must(t, v.SetBehaviour(b))
		try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{}))
		time.Sleep(time.Second) // nothing should happen, and no event would show that
		if hasRouter("ens8") {
			t.Error("a silent router is a next hop")
		}
		b.RADelay = vpc.Exactly(0)
		must(t, v.SetBehaviour(b))
		waits("ens9")
	})
}

// TestLabPropagationProfile: the metadata of an ENI appear after its link, key by key.
func TestLabPropagationProfile(t *testing.T) {
	ctx := t.Context()
	b := vpc.EC2()
	// Large delays, for a busy machine.
	b.Propagation = vpc.Propagation{
		Listed: vpc.Exactly(2 * time.Second), Secondaries: vpc.Exactly(time.Second), DeviceNumber: vpc.Exactly(3 * time.Second),
	}
	v := vpc.ForTest(t, vpc.Options{Behaviour: &b, Seed: 14})
	inst := bootPlain(t, v, vpc.InstanceOptions{NetworkCards: 2, Primary: vpc.ENISpec{IPv4Count: 2}})
	dir := func(e *vpc.ENI) string { return "network/interfaces/macs/" + e.MAC().String() + "/" }
	keys := func() map[string]string { return inst.Metadata().Snapshot() }
	if got := keys()[dir(inst.Primary())+"local-ipv4s"]; !strings.Contains(got, "\n") {
		t.Errorf("an instance boots with half of its metadata: %q", got)
	}
	one := 1
	begin := time.Now()
	e := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{NetworkCard: &one, DeviceIndex: 1, IPv4Count: 3, PrefixV4Count: 1}))
	attached := time.Now()
	if attrs(t, inst, "ens6").Index == 0 {
		t.Error("there is no link")
	}
	d := dir(e)
	if got := keys(); got[d+"mac"] != "" || got[d+"device-number"] != "" {
		t.Errorf("it is listed at once: %v", got)
	}
	at, ok := inst.Metadata().Complete(e.MAC().String())
	if !ok || at.Before(begin.Add(5*time.Second)) || at.After(attached.Add(5*time.Second)) {
		t.Errorf("all keys are there after %s, %t; want 5 s", at.Sub(begin), ok)
	}
	// Each stage appears, in its order and not too early.
	stage := func(what string, after time.Duration, want map[string]string) {
		t.Helper()
		var got map[string]string
		until(t, what, func() bool {
			got = keys()
			return got[d+"mac"] != "" && got[d+"ipv4-prefix"] == want["ipv4-prefix"] && got[d+"device-number"] == want["device-number"]
		})
		if took := time.Since(begin); took < after {
			t.Errorf("%s after %s", what, took)
		}
		for key, text := range want {
			if got[d+key] != text {
				t.Errorf("%s: %s reads %q, want %q", what, key, got[d+key], text)
			}
		}
	}
	var all []string
	for _, a := range e.IPv4() {
		all = append(all, a.String())
	}
	stage("it is listed", 2*time.Second, map[string]string{
		"local-ipv4s": all[0], "ipv4-prefix": "", "device-number": "0", "network-card": "", "interface-id": e.ID(),
	})
	stage("its secondaries are", 3*time.Second, map[string]string{
		"local-ipv4s": strings.Join(all, "\n"), "ipv4-prefix": e.Prefixes()[0].String(), "device-number": "0",
	})
	stage("its number is", 5*time.Second, map[string]string{
		"ipv4-prefix": e.Prefixes()[0].String(), "device-number": "1", "network-card": "1",
	})

	// With other settings in a test the metadata appear at once and before the link.
	exact := try[*vpc.ENI](t)(inst.Attach(ctx, vpc.ENISpec{IPv4Count: 2, Propagation: &imds.Propagation{}}))
	if got := keys()[dir(exact)+"local-ipv4s"]; !strings.Contains(got, "\n") {
		t.Errorf("not at once: %q", got)
	}
	// When it is attached again, it is late again.
	must(t, e.Detach(ctx))
	must(t, e.Reattach(ctx, ""))
	if got := keys(); got[d+"mac"] != "" {
		t.Error("a re-attached ENI is listed at once")
	}
	// When it appears with an instance that was off, it is not late.
	must(t, e.Detach(ctx))
	must(t, inst.Shutdown(ctx))
	must(t, e.Reattach(ctx, ""))
	if got := keys(); got[d+"device-number"] != "1" {
		t.Errorf("an instance that was off boots with the number %q", got[d+"device-number"])
	}
}

// TestLabMetadataPace reads keys at the pace of the metadata service.
func TestLabMetadataPace(t *testing.T) {
	ctx := t.Context()
	b := vpc.Instant()
	v := vpc.ForTest(t, vpc.Options{Behaviour: &b})
	inst := bootPlain(t, v, vpc.InstanceOptions{})
	await(t, inst, "ens5", inst.Primary().IPv4()[0])
	// One kept connection without a token: a refusal is an answer too.
	client := &http.Client{Transport: &http.Transport{DialContext: inst.DialContext}}
	defer client.CloseIdleConnections()
	const count = 20
	read := func(pace imds.Pace) time.Duration {
		t.Helper()
		b.Metadata = pace
		must(t, v.SetBehaviour(b))
		begin := time.Now()
		for range count {
			req := try[*http.Request](t)(http.NewRequestWithContext(ctx, http.MethodGet, "http://169.254.169.254/latest/meta-data/mac", nil))
			resp, err := client.Do(req)
			must(t, err)
			if _, err := io.Copy(io.Discard, resp.Body); err != nil {
				t.Fatal(err)
			}
			resp.Body.Close()
		}
		return time.Since(begin)
	}
	read(imds.Pace{}) // the kernel acknowledges a new connection's segments at once
	if took := read(imds.Pace{Latency: 20 * time.Millisecond, Jitter: 2 * time.Millisecond}); took < count*18*time.Millisecond {
		t.Errorf("%d answers with 20 ms of latency took %s", count, took)
	}
	if took := read(imds.Pace{Split: true}); took < count/2*40*time.Millisecond {
		t.Errorf("%d answers in two writes took %s", count, took)
	}
	t.Logf("%d answers at once took %s", count, read(imds.Pace{}))
	if err := v.SetBehaviour(vpc.Behaviour{}); err == nil || !strings.Contains(err.Error(), "lifetimes") {
		t.Errorf("no behaviour: %v", err)
	}
	if got := v.Behaviour(); got.Lifetimes != b.Lifetimes {
		t.Errorf("a refused behaviour is in force: %+v", got)
	}
}

// TestLabCarrier removes the carrier of a link, which stays the same link.
func TestLabCarrier(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string, b vpc.Behaviour) {
		ctx := t.Context()
		v := vpc.ForTest(t, vpc.Options{Behaviour: &b})
		inst := bootPlain(t, v, vpc.InstanceOptions{Suite: suite})
		e := inst.Primary()
		await(t, inst, "ens5", e.IPv4()[0], e.IPv6()[0])
		index := attrs(t, inst, "ens5").Index
		carrier := func() bool { return attrs(t, inst, "ens5").RawFlags&unix.IFF_LOWER_UP != 0 }
		if !carrier() || e.NoCarrier() {
			t.Fatal("it has no carrier to begin with")
		}
		must(t, e.SetCarrier(false))
		until(t, "the carrier is gone", func() bool { return !carrier() })
		if !e.NoCarrier() || attrs(t, inst, "ens5").Index != index {
			t.Error("the link has changed with its carrier")
		}
		must(t, e.SetCarrier(true))
		until(t, "the carrier is back", carrier)

		blip := make(chan error, 1)
		begin := time.Now()
		go func() { blip <- e.Blip(ctx, 2*time.Second) }()
		until(t, "the carrier is gone for a time", func() bool { return !carrier() })
		until(t, "the carrier is back by itself", carrier)
		if took := time.Since(begin); took < 2*time.Second {
			t.Errorf("it was back after %s", took)
		}
		must(t, <-blip)
		await(t, inst, "ens5", e.IPv4()[0], e.IPv6()[0])
		reaches(t, inst, e.IPv4()[0], vpc.FarIPv4)
		until(t, "IPv6 works again", func() bool { return lost(t, inst, e.IPv6()[0], vpc.FarIPv6) == 0 })
		if attrs(t, inst, "ens5").Index != index {
			t.Error("the link is another")
		}
		noDrops(t, e)
		must(t, inst.Shutdown(ctx))
		if err := e.Blip(ctx, time.Second); err == nil || !strings.Contains(err.Error(), "the instance is off") {
			t.Errorf("of an instance that is off: %v", err)
		}
	})
}
