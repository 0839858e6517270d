package e2e

import (
	"fmt"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/vishvananda/netlink"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// Every path to the metadata service. Which one is taken is the daemon's and the
// kernel's matter and not systemd's, so that one suite does.

// askedFrom waits until the metadata of an ENI is answered over another one, and from
// one endpoint: by the addresses of the connection.
func askedFrom(l *labtest.Lab, eni, over *vpc.ENI, endpoint netip.Addr) {
	l.T.Helper()
	since := time.Now()
	l.Until("the metadata of "+eni.Name()+" is asked over "+over.Name()+" from "+endpoint.String(), func() (bool, error) {
		return slices.ContainsFunc(l.Inst.Metadata().RequestsSince(since), func(r imds.Request) bool {
			return strings.Contains(r.Key, eni.MAC().String()) && r.Status == 200 && r.Local.Addr() == endpoint &&
				slices.Contains(slices.Concat(over.IPv4(), over.IPv6()), r.Remote.Addr())
		}), nil
	})
}

// cutOff cuts ENIs off from the metadata service, and all others not.
func cutOff(l *labtest.Lab, enis ...*vpc.ENI) func() {
	l.T.Helper()
	set := func(cut bool) {
		l.T.Helper()
		for _, eni := range enis {
			if err := eni.CutMetadata(l.T.Context(), cut); err != nil {
				l.T.Fatal(err)
			}
		}
	}
	set(true)
	return func() { set(false) }
}

// D2: over the ENI itself, else the primary, else any other; over IPv4, else IPv6.
func TestLabMetadataPaths(t *testing.T) {
	t.Parallel()
	l := labtest.Boot(t, "trixie", labtest.Refreshing)
	l.AwaitConfigured("ens5")
	primary := l.Inst.Primary()
	eni, other := l.Attach(vpc.ENISpec{}), l.Attach(vpc.ENISpec{})
	l.AwaitConfigured(eni.ID())
	l.AwaitConfigured(other.ID())
	files := l.Files()
	askedFrom(l, eni, eni, vpc.MetadataIPv4)
	l.AwaitAssignment(eni)

	cutOff(l, eni)
	askedFrom(l, eni, primary, vpc.MetadataIPv4)
	l.AwaitAssignment(eni)
	restore := cutOff(l, primary)
	askedFrom(l, eni, other, vpc.MetadataIPv4)
	askedFrom(l, primary, other, vpc.MetadataIPv4)
	l.AwaitAssignment(primary)
	restore()

	if err := l.VPC.SetMetadataEndpoint(t.Context(), vpc.IPv4, vpc.EndpointSilent); err != nil {
		t.Fatal(err)
	}
	askedFrom(l, other, other, vpc.MetadataIPv6)
	l.AwaitAssignment(other)
	if s := l.AwaitManager(state.Configured); s.Metadata.Endpoint != "http://[fd00:ec2::254]" {
		t.Errorf("the endpoint is said to be %s", s.Metadata.Endpoint)
	}
	// Back again: nothing of all that was worth a word, and nothing was lost.
	if err := l.VPC.SetMetadataEndpoint(t.Context(), vpc.IPv4, vpc.EndpointOn); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*vpc.ENI{primary, eni, other} {
		for _, address := range slices.Concat(e.IPv4(), e.IPv6()) {
			if !l.HasAddress(e.Name(), address) {
				t.Errorf("%s is not on %s", address, e.Name())
			}
		}
	}
	if now := l.Files(); now == files {
		t.Error("no file changed")
	}
	l.CheckLog("warning")
}

// warningsOf are what the daemon logged with the priority of a warning or a worse one.
func warningsOf(l *labtest.Lab) string {
	l.T.Helper()
	return l.DaemonLog("--priority=warning")
}

// checkWarned checks that the daemon logged lines of the priority of a warning or a worse one, and only
// those that are expected.
func checkWarned(l *labtest.Lab, expected func(line string) bool) {
	l.T.Helper()
	out := warningsOf(l)
	if out == "" {
		l.T.Error("the daemon logged no warning")
	}
	for line := range strings.Lines(out) {
		if !expected(strings.TrimSpace(line)) {
			l.T.Errorf("the daemon logged: %s", line)
		}
	}
}

// D2: the default routes of the main table are gone, then lead into a tunnel, which a
// rule before all others prefers too.
func TestLabMovedDefaultRoute(t *testing.T) {
	t.Parallel()
	l := labtest.Boot(t, "trixie", labtest.Refreshing)
	l.AwaitConfigured("ens5")
	eni := l.Attach(vpc.ENISpec{IPv4Count: 2})
	l.AwaitConfigured(eni.ID())
	l.CheckKernel(eni)
	var requests []imds.Request
	lookAt := func(e *vpc.ENI) {
		t.Helper()
		since := time.Now()
		l.AwaitAssignment(e)
		requests = l.Inst.Metadata().RequestsSince(since)
	}
	// They are taken away again and again, since the daemon has them put back (B10).
	l.Run("systemd-run", "--quiet", "--unit=thief", "sh", "-c", "while :; do ip route del default || ip -6 route del default || sleep 0.01; done 2>/dev/null")
	for _, family := range []string{"-4", "-6"} {
		l.Until("no default routes ("+family+")", func() (bool, error) { return l.Run("ip", family, "route", "show", "default") == "", nil })
	}
	lookAt(eni)
	lookAt(l.Inst.Primary())
	l.Until("the daemon warns", func() (bool, error) { return warningsOf(l) != "", nil })
	l.Run("systemctl", "stop", "thief")
	// As WireGuard and Tailscale do it: a table of its own, which a rule of a good
	// priority leads to, and as OpenVPN does it.
	if err := l.Inst.Do(func() error { return addTunnel("vpn0") }); err != nil {
		t.Fatal(err)
	}
	l.Run("sh", "-c", `ip link set vpn0 up && ip addr add 192.0.2.2/32 dev vpn0 && ip addr add 2001:db8:ffff::2/128 nodad dev vpn0
		ip route add default dev vpn0 metric 1 && ip -6 route add default dev vpn0 metric 1
		ip route add default dev vpn0 table 51820 && ip -6 route add default dev vpn0 table 51820
		ip rule add priority 99 not fwmark 0xca6c table 51820 && ip -6 rule add priority 99 not fwmark 0xca6c table 51820`)
	for _, to := range []string{"169.254.169.254", "fd00:ec2::254"} {
		if route := l.Run("ip", "route", "get", to); !strings.Contains(route, "vpn0") {
			t.Fatalf("the tunnel is not preferred: %s", route)
		}
	}
	lookAt(eni)
	lookAt(l.Inst.Primary())
	if len(requests) == 0 {
		t.Error("no request")
	}
	l.AwaitManager(state.Configured)
	// What was taken away is worth a warning (B10), and nothing else is.
	checkWarned(l, func(line string) bool {
		return slices.ContainsFunc([]*vpc.ENI{eni, l.Inst.Primary()}, func(e *vpc.ENI) bool {
			route := fmt.Sprintf(`default route \(IPv[46]\) with metric %d`, 512+e.DeviceIndex())
			return regexp.MustCompile(`^Asking networkd to configure the ENI anew: `+route+`(, `+route+`)? is gone eni=`+e.ID()+` `).MatchString(line) ||
				regexp.MustCompile(`^ENI contested eni=`+e.ID()+` .*somebody takes away again and again`).MatchString(line) ||
				// After a reload the daemon may never have seen the routes that the thief takes.
				regexp.MustCompile(`^ENI degraded eni=`+e.ID()+` .*networkd has not brought: `+route+`(, `+route+`)?;`).MatchString(line)
		})
	})
}

// D7, D1, D6: the service is off, and on again; a token is used for its life, and renewed
// when it is refused; a slow service is waited for.
func TestLabMetadataOffAndOn(t *testing.T) {
	t.Parallel()
	l := labtest.Boot(t, "trixie", labtest.Refreshing)
	l.AwaitConfigured("ens5")
	eni := l.Attach(vpc.ENISpec{IPv4Count: 3})
	l.AwaitConfigured(eni.ID())
	l.CheckKernel(eni)
	service := l.Inst.Metadata()

	// D1: all requests of five minutes show one token.
	tokens := func() (issued int) {
		life := 5 * time.Minute
		var first time.Time
		for _, r := range service.Requests() {
			if r.Key == imds.TokenKey {
				if issued++; first.IsZero() {
					first = r.Time
				} else if issued == 2 && r.Time.Sub(first) > life-10*time.Second {
					issued = 1 // the machine is very slow today
				}
			}
		}
		return issued
	}
	if n := tokens(); n != 1 {
		t.Errorf("%d tokens were asked for, want 1", n)
	}
	service.ResetRequests()
	service.RevokeTokens()
	l.AwaitAssignment(eni)
	if n := tokens(); n != 1 {
		t.Errorf("%d tokens were asked for after the old one was revoked, want 1", n)
	}

	// D6: every answer takes its time.
	slow, err := service.AddFault(imds.Fault{Pattern: "**", Effect: imds.Delay, Delay: 700 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l.AwaitAssignment(eni)
	late := l.Attach(vpc.ENISpec{})
	l.AwaitConfigured(late.ID())
	service.ClearFault(slow)
	l.CheckLog("warning")

	// D7: off, in two ways, for long enough to be said.
	files := l.Files()
	for _, off := range []vpc.EndpointState{vpc.EndpointRefused, vpc.EndpointSilent} {
		l.SetEndpoints(off)
		l.AwaitManager(state.Offline)
		if off == vpc.EndpointRefused {
			l.Until("that it is off is said", func() (bool, error) {
				return l.Said("metadata service does not answer") == 1, nil
			})
		}
		for _, id := range []string{"ens5", eni.ID(), late.ID()} {
			if got := l.AwaitConfigured(id); !strings.Contains(got.Reason, "last view") {
				t.Errorf("%s: %+v", id, got)
			}
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckKernel(eni)
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.SetEndpoints(vpc.EndpointOn)
		l.AwaitAddress(eni.Name(), added[0])
		l.AwaitManager(state.Configured)
		l.AwaitConfigured(eni.ID())
		files = l.Files()
	}
	off, on, other := l.Said("metadata service does not answer"), l.Said("metadata service answers again"), l.Said("Cannot read the metadata")
	if off < 1 || off > 2 || on != off || other != 0 {
		t.Errorf("the daemon logged:\n%s", l.Run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager"))
	}
}

// A6, D2: an instance without any IPv4 address reads the metadata over IPv6.
func TestLabIPv6OnlyInstance(t *testing.T) {
	t.Parallel()
	l := labtest.Boot(t, "trixie", func(o *vpc.InstanceOptions) {
		labtest.Refreshing(o)
		o.Primary.Subnet, o.Primary.IPv6Count = "v6", 2
	})
	l.AwaitConfigured("ens5")
	primary := l.Inst.Primary()
	askedFrom(l, primary, primary, vpc.MetadataIPv6)
	added, err := primary.AssignIPv6(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.AwaitAddress("ens5", added[0])
	for _, r := range l.Inst.Metadata().Requests() {
		if r.Local.Addr() != vpc.MetadataIPv6 || (r.Status != 200 && r.Status != 0) {
			t.Errorf("%s %s from %s: %d", r.Method, r.Key, r.Local, r.Status)
		}
	}
	l.CheckLog("warning")
}

// addTunnel makes a tun device in the namespace of the caller, which nobody reads from.
func addTunnel(name string) error {
	tunnel := &netlink.Tuntap{LinkAttrs: netlink.LinkAttrs{Name: name}, Mode: netlink.TUNTAP_MODE_TUN}
	if err := netlink.LinkAdd(tunnel); err != nil {
		return fmt.Errorf("making the tunnel %s: %w", name, err)
	}
	return nil
}

// D9: direct access is prohibited as systemd-imdsd's own set-up does it. The metadata is
// read from the true systemd-imdsd, by a daemon without a capability.
func TestLabLocked(t *testing.T) {
	t.Parallel()
	l := labtest.Boot(t, "sid", func(o *vpc.InstanceOptions) {
		labtest.Refreshing(o)
		o.Files["/etc/systemd/network/80-ec2.network.d/lock.conf"] = `
[Route]
Destination=169.254.169.254
Type=prohibit
[Route]
Destination=169.254.169.254
Scope=link
Table=0x7FFF0815
[RoutingPolicyRule]
FirewallMark=0x7FFF0815
Table=0x7FFF0815
`
		// On EC2 these are known by the machine's DMI.
		o.Files["/etc/systemd/system/systemd-imdsd@.service.d/lab.conf"] = `
[Service]
Environment=SYSTEMD_IMDS_VENDOR=amazon-ec2
Environment=SYSTEMD_IMDS_TOKEN_URL=http://169.254.169.254/latest/api/token
Environment=SYSTEMD_IMDS_REFRESH_HEADER_NAME=X-aws-ec2-metadata-token-ttl-seconds
Environment=SYSTEMD_IMDS_DATA_URL=http://169.254.169.254/latest
Environment=SYSTEMD_IMDS_TOKEN_HEADER_NAME=X-aws-ec2-metadata-token
Environment=SYSTEMD_IMDS_ADDRESS_IPV4=169.254.169.254
`
	})
	// The lock is of IPv4; in EC2 the other endpoint is off by default.
	if err := l.VPC.SetMetadataEndpoint(t.Context(), vpc.IPv6, vpc.EndpointRefused); err != nil {
		t.Fatal(err)
	}
	primary := l.Inst.Primary()
	l.AwaitConfigured(primary.ID())
	if out := l.Fails("ip", "route", "get", "169.254.169.254"); !strings.Contains(out, "denied") {
		t.Errorf("direct access is not prohibited: %s", out)
	}
	// asks waits until somebody asks for an ENI's addresses, and nobody else any more.
	asks := func(daemon bool) {
		t.Helper()
		l.Until(fmt.Sprintf("the daemon itself asks: %v", daemon), func() (bool, error) {
			log := l.Inst.Metadata().RequestsSince(time.Now().Add(-10 * time.Second))
			log = slices.DeleteFunc(log, func(r imds.Request) bool { return !strings.HasSuffix(r.Key, "local-ipv4s") })
			return len(log) > 0 && !slices.ContainsFunc(log, func(r imds.Request) bool {
				return strings.HasPrefix(r.UserAgent, "ec2netd/") != daemon
			}), nil
		})
	}
	// Without systemd-imdsd the lock is none for a socket that is bound to its device.
	asks(true)
	l.Run("systemctl", "start", "systemd-imdsd.socket")
	asks(false)
	eni := l.Attach(labtest.HotplugSpec())
	l.AwaitConfigured(eni.ID())
	l.CheckKernel(eni)
	l.AwaitAssignment(eni)
	l.AwaitAssignment(primary)
	if endpoint := l.AwaitManager(state.Configured).Metadata.Endpoint; endpoint != "/run/systemd/io.systemd.InstanceMetadata" {
		t.Errorf("the endpoint is said to be %s", endpoint)
	}
	// It goes away.
	l.Run("sh", "-c", "systemctl stop systemd-imdsd.socket 'systemd-imdsd@*.service'")
	asks(true)
	l.AwaitAssignment(eni)
	l.CheckLog("warning")
}

// D2: the metadata is read whatever becomes of the main table's default route.
func TestLabWithoutDefaultRoute(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		// As a VPN does it.
		l.Run("sh", "-c", "ip link add vpn type bridge && ip link set vpn up && ip addr add 192.0.2.2/30 dev vpn && "+
			"ip route add 0.0.0.0/1 via 192.0.2.1 && ip route add 128.0.0.0/1 via 192.0.2.1")
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		if !l.HasAddress(eni.Name(), added[0]) {
			t.Errorf("the new address is not there: %v", l.Addresses(eni.Name()))
		}
		l.AwaitManager(state.Configured)
	})
}
