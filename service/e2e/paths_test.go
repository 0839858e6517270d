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
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// Every path to the metadata service. Which one is taken is the daemon's and the
// kernel's matter and not systemd's, so that one suite does.

// arrives assigns an address to an ENI and waits until it is there, with nobody asking.
func (l *lab) arrives(eni *vpc.ENI) {
	l.t.Helper()
	added, err := eni.AssignIPv4(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	l.until(added[0].String()+" arrives on "+eni.Name(), func() (bool, error) {
		return slices.Contains(l.addresses(eni.Name()), added[0]), nil
	})
}

// askedFrom waits until the metadata of an ENI is answered over another one, and from
// one endpoint: by the addresses of the connection.
func (l *lab) askedFrom(eni, over *vpc.ENI, endpoint netip.Addr) {
	l.t.Helper()
	since := time.Now()
	l.until("the metadata of "+eni.Name()+" is asked over "+over.Name()+" from "+endpoint.String(), func() (bool, error) {
		return slices.ContainsFunc(l.inst.Metadata().RequestsSince(since), func(r imds.Request) bool {
			return strings.Contains(r.Key, eni.MAC().String()) && r.Status == 200 && r.Local.Addr() == endpoint &&
				slices.Contains(slices.Concat(over.IPv4(), over.IPv6()), r.Remote.Addr())
		}), nil
	})
}

// cut cuts ENIs off from the metadata service, and all others not.
func (l *lab) cut(enis ...*vpc.ENI) func() {
	l.t.Helper()
	set := func(cut bool) {
		l.t.Helper()
		for _, eni := range enis {
			if err := eni.CutMetadata(l.t.Context(), cut); err != nil {
				l.t.Fatal(err)
			}
		}
	}
	set(true)
	return func() { set(false) }
}

// said counts the lines of the daemon's log that say something.
func (l *lab) said(what string) int {
	l.t.Helper()
	return strings.Count(l.run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager"), what)
}

// D2: over the ENI itself, else the primary, else any other; over IPv4, else IPv6.
func TestLabMetadataPaths(t *testing.T) {
	t.Parallel()
	l := boot(t, "trixie", refreshing)
	l.configured("ens5")
	primary := l.inst.Primary()
	eni, other := l.attach(vpc.ENISpec{}), l.attach(vpc.ENISpec{})
	l.configured(eni.ID())
	l.configured(other.ID())
	files := l.files()
	l.askedFrom(eni, eni, vpc.MetadataIPv4)
	l.arrives(eni)

	l.cut(eni)
	l.askedFrom(eni, primary, vpc.MetadataIPv4)
	l.arrives(eni)
	restore := l.cut(primary)
	l.askedFrom(eni, other, vpc.MetadataIPv4)
	l.askedFrom(primary, other, vpc.MetadataIPv4)
	l.arrives(primary)
	restore()

	if err := l.vpc.SetMetadataEndpoint(t.Context(), vpc.IPv4, vpc.EndpointSilent); err != nil {
		t.Fatal(err)
	}
	l.askedFrom(other, other, vpc.MetadataIPv6)
	l.arrives(other)
	if s := l.manager(state.Configured); s.Metadata.Endpoint != "http://[fd00:ec2::254]" {
		t.Errorf("the endpoint is said to be %s", s.Metadata.Endpoint)
	}
	// Back again: nothing of all that was worth a word, and nothing was lost.
	if err := l.vpc.SetMetadataEndpoint(t.Context(), vpc.IPv4, vpc.EndpointOn); err != nil {
		t.Fatal(err)
	}
	for _, e := range []*vpc.ENI{primary, eni, other} {
		for _, address := range slices.Concat(e.IPv4(), e.IPv6()) {
			if !slices.Contains(l.addresses(e.Name()), address) {
				t.Errorf("%s is not on %s", address, e.Name())
			}
		}
	}
	if now := l.files(); now == files {
		t.Error("no file changed")
	}
	l.logOf("warning")
}

// warnings are what the daemon logged with the priority of a warning or a worse one.
func (l *lab) warnings() string {
	l.t.Helper()
	return l.run("journalctl", "--boot", "--identifier=ec2netd", "--priority=warning", "--output=cat", "--no-pager", "--quiet")
}

// warned checks that the daemon logged lines of the priority of a warning or a worse one, and only
// those that are expected.
func (l *lab) warned(expected func(line string) bool) {
	l.t.Helper()
	out := l.warnings()
	if out == "" {
		l.t.Error("the daemon logged no warning")
	}
	for line := range strings.Lines(out) {
		if !expected(strings.TrimSpace(line)) {
			l.t.Errorf("the daemon logged: %s", line)
		}
	}
}

// D2: the default routes of the main table are gone, then lead into a tunnel, which a
// rule before all others prefers too.
func TestLabMovedDefaultRoute(t *testing.T) {
	t.Parallel()
	l := boot(t, "trixie", refreshing)
	l.configured("ens5")
	eni := l.attach(vpc.ENISpec{IPv4Count: 2})
	l.configured(eni.ID())
	l.checkKernel(eni)
	var requests []imds.Request
	lookAt := func(e *vpc.ENI) {
		t.Helper()
		since := time.Now()
		l.arrives(e)
		requests = l.inst.Metadata().RequestsSince(since)
	}
	// They are taken away again and again, since the daemon has them put back (B10).
	l.run("systemd-run", "--quiet", "--unit=thief", "sh", "-c", "while :; do ip route del default || ip -6 route del default || sleep 0.01; done 2>/dev/null")
	for _, family := range []string{"-4", "-6"} {
		l.until("no default routes ("+family+")", func() (bool, error) { return l.run("ip", family, "route", "show", "default") == "", nil })
	}
	lookAt(eni)
	lookAt(l.inst.Primary())
	l.until("the daemon warns", func() (bool, error) { return l.warnings() != "", nil })
	l.run("systemctl", "stop", "thief")
	// As WireGuard and Tailscale do it: a table of its own, which a rule of a good
	// priority leads to, and as OpenVPN does it.
	if err := l.inst.Do(func() error { return addTunnel("vpn0") }); err != nil {
		t.Fatal(err)
	}
	l.run("sh", "-c", `ip link set vpn0 up && ip addr add 192.0.2.2/32 dev vpn0 && ip addr add 2001:db8:ffff::2/128 nodad dev vpn0
		ip route add default dev vpn0 metric 1 && ip -6 route add default dev vpn0 metric 1
		ip route add default dev vpn0 table 51820 && ip -6 route add default dev vpn0 table 51820
		ip rule add priority 99 not fwmark 0xca6c table 51820 && ip -6 rule add priority 99 not fwmark 0xca6c table 51820`)
	for _, to := range []string{"169.254.169.254", "fd00:ec2::254"} {
		if route := l.run("ip", "route", "get", to); !strings.Contains(route, "vpn0") {
			t.Fatalf("the tunnel is not preferred: %s", route)
		}
	}
	lookAt(eni)
	lookAt(l.inst.Primary())
	if len(requests) == 0 {
		t.Error("no request")
	}
	l.manager(state.Configured)
	// What was taken away is worth a warning (B10), and nothing else is.
	l.warned(func(line string) bool {
		return slices.ContainsFunc([]*vpc.ENI{eni, l.inst.Primary()}, func(e *vpc.ENI) bool {
			route := fmt.Sprintf(`default route \(IPv[46]\) with metric %d`, 512+e.DeviceIndex())
			return regexp.MustCompile(`^Asking networkd to configure the ENI anew: `+route+`(, `+route+`)? is gone eni=`+e.ID()+` `).MatchString(line) ||
				regexp.MustCompile(`^ENI contested eni=`+e.ID()+` .*somebody takes away again and again`).MatchString(line)
		})
	})
}

// D7, D1, D6: the service is off, and on again; a token is used for its life, and renewed
// when it is refused; a slow service is waited for.
func TestLabMetadataOffAndOn(t *testing.T) {
	t.Parallel()
	l := boot(t, "trixie", refreshing)
	l.configured("ens5")
	eni := l.attach(vpc.ENISpec{IPv4Count: 3})
	l.configured(eni.ID())
	l.checkKernel(eni)
	service := l.inst.Metadata()

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
	l.arrives(eni)
	if n := tokens(); n != 1 {
		t.Errorf("%d tokens were asked for after the old one was revoked, want 1", n)
	}

	// D6: every answer takes its time.
	slow, err := service.AddFault(imds.Fault{Pattern: "**", Effect: imds.Delay, Delay: 700 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	l.arrives(eni)
	late := l.attach(vpc.ENISpec{})
	l.configured(late.ID())
	service.ClearFault(slow)
	l.logOf("warning")

	// D7: off, in two ways, for long enough to be said.
	files := l.files()
	for _, off := range []vpc.EndpointState{vpc.EndpointRefused, vpc.EndpointSilent} {
		l.setEndpoints(off)
		l.manager(state.Offline)
		if off == vpc.EndpointRefused {
			l.until("that it is off is said", func() (bool, error) {
				return l.said("metadata service does not answer") == 1, nil
			})
		}
		for _, id := range []string{"ens5", eni.ID(), late.ID()} {
			if got := l.configured(id); !strings.Contains(got.Reason, "last view") {
				t.Errorf("%s: %+v", id, got)
			}
		}
		if now := l.files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.checkKernel(eni)
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.setEndpoints(vpc.EndpointOn)
		l.until("what changed meanwhile arrives", func() (bool, error) {
			return slices.Contains(l.addresses(eni.Name()), added[0]), nil
		})
		l.manager(state.Configured)
		l.configured(eni.ID())
		files = l.files()
	}
	off, on, other := l.said("metadata service does not answer"), l.said("metadata service answers again"), l.said("Cannot read the metadata")
	if off < 1 || off > 2 || on != off || other != 0 {
		t.Errorf("the daemon logged:\n%s", l.run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager"))
	}
}

// A6, D2: an instance without any IPv4 address reads the metadata over IPv6.
func TestLabIPv6OnlyInstance(t *testing.T) {
	t.Parallel()
	l := boot(t, "trixie", func(o *vpc.InstanceOptions) {
		refreshing(o)
		o.Primary.Subnet, o.Primary.IPv6Count = "v6", 2
	})
	l.configured("ens5")
	primary := l.inst.Primary()
	l.askedFrom(primary, primary, vpc.MetadataIPv6)
	added, err := primary.AssignIPv6(t.Context())
	if err != nil {
		t.Fatal(err)
	}
	l.until("an assigned address arrives", func() (bool, error) {
		return slices.Contains(l.addresses("ens5"), added[0]), nil
	})
	for _, r := range l.inst.Metadata().Requests() {
		if r.Local.Addr() != vpc.MetadataIPv6 || (r.Status != 200 && r.Status != 0) {
			t.Errorf("%s %s from %s: %d", r.Method, r.Key, r.Local, r.Status)
		}
	}
	l.logOf("warning")
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
	l := boot(t, "sid", func(o *vpc.InstanceOptions) {
		refreshing(o)
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
	if err := l.vpc.SetMetadataEndpoint(t.Context(), vpc.IPv6, vpc.EndpointRefused); err != nil {
		t.Fatal(err)
	}
	primary := l.inst.Primary()
	l.configured(primary.ID())
	if out := l.fails("ip", "route", "get", "169.254.169.254"); !strings.Contains(out, "denied") {
		t.Errorf("direct access is not prohibited: %s", out)
	}
	// asks waits until somebody asks for an ENI's addresses, and nobody else any more.
	asks := func(daemon bool) {
		t.Helper()
		l.until(fmt.Sprintf("the daemon itself asks: %v", daemon), func() (bool, error) {
			log := l.inst.Metadata().RequestsSince(time.Now().Add(-10 * time.Second))
			log = slices.DeleteFunc(log, func(r imds.Request) bool { return !strings.HasSuffix(r.Key, "local-ipv4s") })
			return len(log) > 0 && !slices.ContainsFunc(log, func(r imds.Request) bool {
				return strings.HasPrefix(r.UserAgent, "ec2netd/") != daemon
			}), nil
		})
	}
	// Without systemd-imdsd the lock is none for a socket that is bound to its device.
	asks(true)
	l.run("systemctl", "start", "systemd-imdsd.socket")
	asks(false)
	eni := l.attach(hotplugSpec())
	l.configured(eni.ID())
	l.checkKernel(eni)
	l.arrives(eni)
	l.arrives(primary)
	if endpoint := l.manager(state.Configured).Metadata.Endpoint; endpoint != "/run/systemd/io.systemd.InstanceMetadata" {
		t.Errorf("the endpoint is said to be %s", endpoint)
	}
	// It goes away.
	l.run("sh", "-c", "systemctl stop systemd-imdsd.socket 'systemd-imdsd@*.service'")
	asks(true)
	l.arrives(eni)
	l.logOf("warning")
}
