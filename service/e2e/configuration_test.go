package e2e

import (
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// Bad input: a configuration file with mistakes costs the keys that are wrong, and
// says where.
func TestLabBadConfiguration(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/bad.conf"] = "[Metadata]\nRefreshSec=often\nEndpont=http://192.0.2.1\n[Nonsense]\nx\n"
		})
		got := l.AwaitConfigured("ens5")
		if got.Metric != 512 {
			t.Errorf("%+v", got)
		}
		log := l.Run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager")
		for _, want := range []string{"/etc/ec2netd.conf.d/bad.conf:2: Metadata.RefreshSec: ", "/etc/ec2netd.conf.d/bad.conf:3: Metadata.Endpont: ", "/etc/ec2netd.conf.d/bad.conf:4: Nonsense: "} {
			if !strings.Contains(log, want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
		if s := l.Describe(); s.State != state.Configured || !strings.Contains(s.Reason, "bad.conf:2") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		command := l.Between("correct it, then: ", "")(l.AdviceOf("/etc/ec2netd.conf.d/bad.conf:2: Metadata.RefreshSec: "))
		l.Put("/etc/ec2netd.conf.d/bad.conf", "[Metadata]\nRefreshSec=20\n")
		l.Run("sh", "-c", command)
		l.AwaitConfigured("ens5")
		if s := l.Describe(); s.State != state.Configured || s.Reason != "" {
			t.Errorf("after %s: %s: %s", command, s.State, s.Reason)
		}
		if said := l.Run("ec2netctl", "doctor"); !strings.HasSuffix(said, "\nNothing to do.") {
			t.Errorf("after %s:\n%s", command, said)
		}
	})
}

// H12: systemctl reload takes up all but the platform, without losing a packet; a mistake is
// refused, and what was in force holds.
func TestLabReload(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		primary := l.Inst.Primary()
		l.AwaitConfigured(primary.ID())
		eni := l.Attach(vpc.ENISpec{Subnet: "b", IPv4Count: 3})
		l.AwaitConfigured(eni.ID())
		l.CheckOwn(eni)
		const file = "/etc/ec2netd.conf.d/reload.conf"
		pid := l.DaemonPID()
		reload := func() {
			t.Helper()
			l.Run("systemctl", "reload", "ec2netd.service")
			l.Until("the reload is over", func() (bool, error) {
				return l.Run("systemctl", "show", "--property=ActiveState", "--value", "ec2netd.service") == "active", nil
			})
		}
		result := l.MeasurePings(primary)
		others := eni.IPv4()[1:]
		has := func(want bool) {
			t.Helper()
			l.Until(fmt.Sprintf("%s has its secondary addresses: %v", eni.Name(), want), func() (bool, error) {
				got := l.Addresses(eni.Name())
				return slices.Contains(got, others[0]) == want && slices.Contains(got, others[1]) == want, nil
			})
		}
		l.Put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=no\nDNS=192.0.2.53\n")
		reload()
		has(false)
		l.Until("the DNS server is the ENI's", func() (bool, error) {
			return strings.HasSuffix(l.Run("resolvectl", "dns", eni.Name()), ": 192.0.2.53"), nil
		})

		// A mistake beside something that is right: neither is taken up.
		l.Put(file, "[ENI]\nPrimary=no\nSecondaryAddresses=yes\nDNS=192.0.2.300\n")
		l.Fails("systemctl", "reload", "ec2netd.service")
		l.Run("systemctl", "kill", "--kill-who=main", "--signal=HUP", "ec2netd.service")
		l.Until("the state names the mistake", func() (bool, error) {
			s := l.Describe()
			return s.State == state.Configured && strings.Contains(s.Reason, "reload.conf:4: ENI.DNS") && strings.Contains(s.Reason, "the former configuration holds"), nil
		})
		if log := l.Run("journalctl", "--boot", "--unit=ec2netd.service", "--output=cat"); !strings.Contains(log, "reload.conf:4: ENI.DNS") {
			t.Errorf("the log has no word of the mistake:\n%s", log)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		has(false)

		l.Put(file, "[Metadata]\nRefreshSec=1\n[Match]\nDriver=tun\n")
		reload()
		has(true)
		l.AwaitConfigured(eni.ID())
		if s := l.Describe(); s.Reason != "" {
			t.Errorf("the state is %s: %s", s.State, s.Reason)
		}
		// RefreshSec=1: what is assigned comes without a word.
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.AwaitAddress(eni.Name(), added[0])
		if hold := l.Run("cat", "/run/systemd/network/80-ec2-new.network"); !strings.Contains(hold, " tun") {
			t.Errorf("the unit for new ENIs has other drivers:\n%s", hold)
		}
		if got := result(); !got.None() {
			t.Errorf("the primary ENI lost %s", got)
		}

		// Without the driver there is no ENI, and what doctor says of that brings all back.
		l.Put(file, "[Match]\nDriver=\nDriver=tun\n")
		reload()
		l.Until("there is no ENI", func() (bool, error) { return len(l.Describe().Interfaces) == 0, nil })
		command := l.Between("then: ", "")(l.AdviceOf("no link is an ENI"))
		driver := ""
		for line := range strings.Lines(l.Run("networkctl", "status", "--no-pager", "ens5")) {
			if found, ok := strings.CutPrefix(strings.TrimSpace(line), "Driver: "); ok {
				driver = found
			}
		}
		l.Put(file, "[Match]\nDriver="+driver+"\n")
		l.Run("sh", "-c", command)
		l.AwaitConfigured("ens5")
		l.AwaitConfigured(eni.ID())
		l.CheckOwn(eni)
		if now := l.DaemonPID(); now != pid {
			t.Errorf("process %s, %s before", now, pid)
		}
	})
}

// F4: an ENI is left alone by its ID, MAC address, device index, card, driver or name:
// it has no unit and no events, and its altnames unless these are off too.
func TestLabOptOut(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		const file = "/etc/ec2netd.conf.d/test.conf"
		sections := []string{
			"[Metadata]\nRefreshSec=1",
			"[ENI]\nENIID=eni-00000000000000aa1\nManaged=no",
			"[ENI]\nMACAddress=02:aa:00:00:00:02\nManaged=no\nAlternativeNames=no",
			"[ENI]\nDeviceIndex=7\nManaged=no",
			"[ENI]\nNetworkCard=1\nManaged=no",
			"[ENI]\nName=ext*\nManaged=no",
			"[ENI]\nDriver=ve?h\nDeviceIndex=8\nManaged=no",
			"[ENI]\nDriver=ena\nManaged=no",
		}
		line := make([]int, len(sections))
		for i := 1; i < len(sections); i++ {
			line[i] = strings.Count(strings.Join(sections[:i], "\n"), "\n") + 2
		}
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.NetworkCards = 2
			o.Files[file] = strings.Join(sections, "\n") + "\n"
		})
		l.AwaitConfigured("ens5")
		one := 1
		type optedOut struct {
			spec    vpc.ENISpec
			section int
			eni     *vpc.ENI
		}
		out := []*optedOut{
			{spec: vpc.ENISpec{ID: "eni-00000000000000aa1", IPv4Count: 2}, section: 1},
			{spec: vpc.ENISpec{MAC: net.HardwareAddr{2, 0xaa, 0, 0, 0, 2}, IPv4Count: 2}, section: 2},
			{spec: vpc.ENISpec{DeviceIndex: 7}, section: 3},
			{spec: vpc.ENISpec{DeviceIndex: 1, NetworkCard: &one}, section: 4},
			{spec: vpc.ENISpec{Name: "ext0"}, section: 5},
			{spec: vpc.ENISpec{DeviceIndex: 8}, section: 6},
		}
		for _, o := range out {
			o.spec.Subnet = "b"
			o.eni = l.Attach(o.spec)
		}
		managed := l.Attach(vpc.ENISpec{DeviceIndex: 20, IPv4Count: 2})
		l.AwaitConfigured(managed.ID())
		for _, o := range out {
			got := l.AwaitENI(o.eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIUnmanaged })
			if want := fmt.Sprintf("%s:%d says Managed=no", file, line[o.section]); got.Reason != want {
				t.Errorf("%s: the reason is %q, want %q", o.eni.Name(), got.Reason, want)
			}
			named := o.section != 2
			if named {
				l.Until(o.eni.ID()+" is an altname", func() (bool, error) {
					_, err := l.Inst.Exec(t.Context(), "ip", "link", "show", o.eni.ID())
					return err == nil, nil
				})
			}
			files := l.Files()
			if strings.Contains(files, "70-"+o.eni.Name()+".network") || strings.Contains(files, "70-"+o.eni.Name()+".link") != named {
				t.Errorf("files of %s:\n%s", o.eni.Name(), files)
			}
			table := 10000 + o.eni.DeviceIndex()
			if card := o.eni.NetworkCard(); card != nil {
				table += 100 * *card
			}
			if rules := l.Rules(table); got.Table != state.Unknown || len(rules) > 0 || got.Metric != state.Unknown {
				t.Errorf("%s has the table %d with %v, metric %d", o.eni.Name(), got.Table, rules, got.Metric)
			}
		}
		if s := l.Describe(); s.State != state.Configured {
			t.Errorf("the daemon is %s: %s", s.State, s.Reason)
		}
		// A change of an unmanaged ENI is nobody's business, and one of a managed one no
		// event for it.
		watched := out[0].eni.Name()
		l.Until("networkd is done with "+watched, func() (bool, error) {
			out, err := l.Inst.Exec(t.Context(), "networkctl", "status", "--no-pager", watched)
			return err == nil && strings.Contains(out, "(configured)") && len(l.Addresses(watched)) == 2, nil
		})
		monitor := l.Monitor(watched)
		files := linesOf(l.Files(), "70-"+watched+".")
		if _, err := out[0].eni.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		if err := out[2].eni.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		if now := l.Files(); files == "" || linesOf(now, "70-"+watched+".") != files || strings.Contains(now, "70-"+out[2].eni.Name()+".") {
			t.Errorf("files after a change of an unmanaged ENI:\n%s\nbefore, of that one:\n%s", now, files)
		}
		added, err := managed.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		if !l.HasAddress(managed.Name(), added[0]) {
			t.Errorf("%s is not on %s", added[0], managed.Name())
		}
		if events := monitor(); events != "" {
			t.Errorf("events of an unmanaged ENI:\n%s", events)
		}
	})
}

// linesOf are the lines of a text that contain something.
func linesOf(text, something string) string {
	var found strings.Builder
	for line := range strings.Lines(text) {
		if strings.Contains(line, something) {
			found.WriteString(line)
		}
	}
	return found.String()
}

// B7, B11: an ENI with DefaultRoute=no has default routes in its own table alone; what has
// its addresses works all the same, on the primary too.
func TestLabNoDefaultRoute(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[ENI]\nDeviceIndex=0 1\nDefaultRoute=no\n"
		})
		check := func(eni *vpc.ENI, when string) {
			t.Helper()
			table := labtest.TableOf(eni)
			if got := l.AwaitConfigured(eni.ID()); got.Metric != state.Unknown || got.Table != table {
				t.Errorf("%s: %+v", when, got)
			}
			// Of IPv6 the one by the router's advertisement comes last.
			l.Until("default routes in the ENI's own table", func() (bool, error) {
				return slices.ContainsFunc(l.Routes("-4", fmt.Sprint(table)), labtest.IsDefault) &&
					slices.ContainsFunc(l.Routes("-6", fmt.Sprint(table)), func(r labtest.Route) bool { return labtest.IsDefault(r) && r.Protocol == "ra" }), nil
			})
			for _, family := range []string{"-4", "-6"} {
				for _, r := range l.Routes(family, "main") {
					if labtest.IsDefault(r) && r.Dev == eni.Name() {
						t.Errorf("%s: a default route (%s) in the main table: %+v", when, family, r)
					}
				}
			}
			if got := l.Addresses(eni.Name()); !slices.Equal(labtest.Sorted(got), labtest.Sorted(slices.Concat(eni.IPv4(), eni.IPv6()))) || got[0] != eni.IPv4()[0] {
				t.Errorf("%s: addresses %v", when, got)
			}
			if got := l.Rules(table); !slices.Equal(got, labtest.Sources(eni)) {
				t.Errorf("%s: rules %v", when, got)
			}
			l.CountDrops()
			for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
				l.PingFrom(source)
			}
			l.CheckDrops()
		}
		l.AwaitConfigured("ens5")
		check(l.Inst.Primary(), "the primary")
		eni := l.Attach(labtest.HotplugSpec())
		check(eni, "after the attach")
		if _, err := eni.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		check(eni, "after a change")
	})
}

// Prefixes=local and assign: every address of a delegated prefix can be used on the
// host, and goes when the prefix goes.
func TestLabPrefixes(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[ENI]\nDeviceIndex=0 1\nPrefixes=local\n[ENI]\nDeviceIndex=2\nPrefixes=assign\n"
			o.Primary.PrefixV4Count = 1
		})
		l.AwaitConfigured("ens5")
		local, assign := l.Attach(labtest.HotplugSpec()), l.Attach(labtest.HotplugSpec())
		// The kernel lets a program bind to an IPv6 address that is on no link with
		// IPV6_FREEBIND only; this stands for that.
		l.Run("sh", "-c", "echo 1 > /proc/sys/net/ipv6/ip_nonlocal_bind")
		inside := func(p netip.Prefix) []netip.Addr {
			last := p.Addr().Next().Next().Next()
			if p.Addr().Is4() {
				last = p.Addr()
				for p.Contains(last.Next()) {
					last = last.Next()
				}
			}
			return []netip.Addr{p.Addr(), last}
		}
		for _, eni := range []*vpc.ENI{l.Inst.Primary(), local, assign} {
			got := l.AwaitConfigured(eni.ID())
			if len(got.Addresses) != len(eni.IPv4())+len(eni.IPv6()) || len(got.Prefixes) != len(eni.Prefixes()) {
				t.Errorf("%s: addresses %v, prefixes %v", eni.Name(), got.Addresses, got.Prefixes)
			}
			l.CountDrops()
			for _, prefix := range eni.Prefixes() {
				for _, source := range inside(prefix) {
					l.PingFrom(source)
				}
			}
			l.CheckDrops()
		}
		listed := func(eni *vpc.ENI) int {
			n := 0
			for _, a := range l.Addresses(eni.Name()) {
				if slices.ContainsFunc(eni.Prefixes(), func(p netip.Prefix) bool { return p.Contains(a) }) {
					n++
				}
			}
			return n
		}
		if n := listed(local); n != 0 {
			t.Errorf("Prefixes=local put %d addresses on the link", n)
		}
		if n := listed(assign); n != 16 {
			t.Errorf("Prefixes=assign put %d addresses of a /28 on the link", n)
		}
		if first := l.Addresses(assign.Name())[0]; first != assign.IPv4()[0] {
			t.Errorf("the first address is %s", first)
		}
		for _, eni := range []*vpc.ENI{local, assign} {
			prefixes := eni.Prefixes()
			if err := eni.UnassignPrefix(t.Context(), prefixes...); err != nil {
				t.Fatal(err)
			}
			l.Run("ec2netctl", "refresh", "--wait")
			for _, prefix := range prefixes {
				for _, address := range inside(prefix) {
					l.Until(address.String()+" is not the host's any more", func() (bool, error) {
						out, err := l.Inst.Exec(t.Context(), "ip", "route", "get", address.String())
						return err == nil && !strings.Contains(out, "local"), nil
					})
				}
			}
			l.AwaitConfigured(eni.ID())
		}
	})
}
