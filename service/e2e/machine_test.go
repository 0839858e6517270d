package e2e

import (
	"bytes"
	"cmp"
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// renamed is the MAC address of an ENI that a .link file of the administrator names.
var renamed = net.HardwareAddr{0x02, 0, 0, 0, 0x0e, 0xc2}

// What a container cannot show, on a machine with Debian's kernel for clouds: ENIs are PCIe
// devices, named by their slots, and there are VLANs, bonds and VRFs. It boots twice, and is slow:
// without EC2NETD_LONG=1 it is trixie alone. No test runs beside it, as the emulation takes all
// processors.
func TestLabMachine(t *testing.T) {
	for _, suite := range vpc.Suites {
		if !whole() && suite.Name != "trixie" {
			continue
		}
		t.Run(suite.Name, func(t *testing.T) {
			l := boot(t, suite.Name, func(o *vpc.InstanceOptions) {
				o.Machine = true
				o.Packages = []string{"wireguard-tools"}
				refreshing(o)
				o.Files["/etc/systemd/network/80-data.link"] = "[Match]\nMACAddress=" + renamed.String() +
					"\n[Link]\nName=data0\nAlternativeNamesPolicy=database onboard slot path\n"
			})
			began := time.Now()
			done := func(what string) {
				t.Logf("%s: %.0f s", what, time.Since(began).Seconds())
				began = time.Now()
			}
			t.Logf("booted in %.0f s", l.inst.BootTime().Seconds())
			l.configured("ens5")
			l.runsCommands()
			done("the primary")
			eni := l.hotplugged()
			done("hotplug")
			finish := l.slowPings(l.inst.Primary())
			l.vlan(eni)
			done("VLAN")
			l.portOf(eni, "bridge", "", "")
			done("bridge")
			// EC2 carries an ENI's own MAC address only.
			l.portOf(eni, "bond", "mode active-backup miimon 100 fail_over_mac active", "")
			done("bond")
			l.portOf(eni, "bond", "mode active-backup miimon 100", "02:00:00:00:0b:0d")
			done("bond with a MAC address of its own")
			l.clock(eni)
			done("clock")
			finish()
			// QEMU's emulation ends now and then as it wakes a machine up.
			if whole() {
				if err := l.inst.Suspend(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.stillWhole(eni)
				done("suspend")
			}
			l.startTunnel()
			l.run("test", "-d", "/sys/module/wireguard")
			l.underTunnel("with the kernel's WireGuard", l.inst.Primary(), eni)
			done("WireGuard")
			data := l.namedByFile()
			l.run("wg-quick", "down", "wg0")
			done("an ENI after it, named by a file")
			l.detach(data)
			l.gone(data, 2)
			done("detach")
			l.inNamedVRF(eni)
			done("vrf of a file")
			l.portOf(eni, "vrf", "table 500", "")
			done("vrf")
			l.withoutIPv6(eni)
			done("reboot without IPv6")
		})
	}
}

// runsCommands checks how the lab runs commands in a machine.
func (l *lab) runsCommands() {
	l.t.Helper()
	ctx, cancel := context.WithTimeout(l.t.Context(), patience)
	defer cancel()
	var failed *vpc.ExecError
	if _, err := l.inst.Exec(ctx, "sh", "-c", "echo out; echo err >&2; exit 7"); !errors.As(err, &failed) || failed.ExitCode != 7 || failed.Stdout != "out\n" || failed.Stderr != "err\n" {
		l.t.Errorf("a command that fails: %v", err)
	}
	if _, err := l.inst.Exec(ctx, "/no/such/program"); !errors.As(err, &failed) || failed.ExitCode != 127 || !strings.Contains(failed.Stderr, "No such file") {
		l.t.Errorf("no program: %v", err)
	}
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	out, err := l.inst.Run(ctx, vpc.Command{Argv: []string{"sh", "-c", `id -un; echo "$WORD"; cat`}, Stdin: bytes.NewReader(input), User: vpc.OrdinaryUser, Env: []string{"WORD=a=b c"}})
	if want := vpc.OrdinaryUser + "\na=b c\n" + string(input); err != nil || out != want {
		l.t.Errorf("a megabyte through cat: %d bytes, %v", len(out), err)
	}
	short, end := context.WithTimeout(ctx, time.Second)
	defer end()
	if _, err := l.inst.Exec(short, "sh", "-c", "sleep 3941 & wait"); !errors.Is(err, context.DeadlineExceeded) {
		l.t.Errorf("a command that takes too long: %v", err)
	}
	l.until("it has ended, with its child", func() (bool, error) {
		_, err := l.inst.Exec(ctx, "pgrep", "-f", "^sleep 3941")
		return err != nil, nil
	})
}

// hotplugged attaches an ENI.
func (l *lab) hotplugged() *vpc.ENI {
	l.t.Helper()
	eni := l.attach(hotplugSpec())
	l.configured(eni.ID())
	l.checkKernel(eni)
	for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.pingFrom(address)
	}
	for property, want := range map[string]string{"ID_NET_NAME_SLOT": eni.Name(), "ID_NET_DRIVER": "virtio_net"} {
		if got := l.run("udevadm", "info", "--query=property", "--property="+property, "--value", "/sys/class/net/"+eni.Name()); got != want {
			l.t.Errorf("%s is %q, want %q", property, got, want)
		}
	}
	return eni
}

// slowPings is measurePings at a pace that an emulated processor keeps up with.
func (l *lab) slowPings(eni *vpc.ENI) (finish func()) {
	l.t.Helper()
	const slow = 10 * pace
	var pings []*vpc.Pinger
	for far, address := range map[netip.Addr]netip.Addr{vpc.FarIPv4: eni.IPv4()[0], vpc.FarIPv6: eni.IPv6()[0]} {
		ping, err := l.vpc.StartPing(l.t.Context(), far, address, slow)
		if err != nil {
			l.t.Fatal(err)
		}
		pings = append(pings, ping)
	}
	return func() {
		l.t.Helper()
		for _, ping := range pings {
			sent := ping.Result().Received
			l.until("there is a reply", func() (bool, error) { return ping.Result().Received > sent, nil })
			if lost, sent := ping.Stop().LostSinceFirst(); lost > 0 {
				l.t.Errorf("%s lost %d of %d packets", eni.Name(), lost, sent)
			}
		}
	}
}

// stillWhole checks that an ENI is as it shall be, and that a new address arrives.
func (l *lab) stillWhole(eni *vpc.ENI) {
	l.t.Helper()
	l.configured(eni.ID())
	l.arrives(eni)
	l.configured(eni.ID())
	l.checkKernel(eni)
}

// vlan makes a VLAN over an ENI, with the ENI's MAC address.
func (l *lab) vlan(eni *vpc.ENI) {
	l.t.Helper()
	l.run("sh", "-ec", "ip link add vlan7 link "+eni.Name()+" type vlan id 7; ip address add 192.0.2.1/24 dev vlan7; ip link set vlan7 up")
	l.stillWhole(eni)
	if addresses := l.run("ip", "-brief", "address", "show", "dev", "vlan7"); !strings.Contains(addresses, "192.0.2.1/24") {
		l.t.Errorf("the VLAN has %s", addresses)
	}
	if s := l.describe(); len(s.Interfaces) != 2 {
		l.t.Errorf("there are %d ENIs: %+v", len(s.Interfaces), s.Interfaces)
	}
	l.run("ip", "link", "delete", "vlan7")
}

// F10: an ENI is a port through its changes, of a master of the kind with options. The MAC address,
// if it is not empty, is the master's, which gives it to its ports.
func (l *lab) portOf(eni *vpc.ENI, kind, options, mac string) {
	l.t.Helper()
	name, address := eni.Name(), ""
	if mac != "" {
		address = "address " + mac
	}
	l.run("sh", "-ec", "ip link add master0 "+address+" type "+kind+" "+options+"; echo 1 >/proc/sys/net/ipv6/conf/master0/disable_ipv6; ip link set master0 up")
	// A bond takes no link that is up. Were it down for longer, it would count as set down.
	down := map[string]string{"bond": "link set " + name + " down\n"}[kind]
	if _, err := l.inst.Run(l.t.Context(), vpc.Command{Argv: []string{"ip", "-batch", "-"}, Stdin: strings.NewReader(down + "link set " + name + " master master0\n")}); err != nil {
		l.t.Fatal(err)
	}
	named := func(i *state.Interface) bool {
		return i.ENIID == eni.ID() && i.MAC == eni.MAC().String() && strings.Contains(i.Reason, "port of master0 ("+kind+")") &&
			strings.Contains(i.Reason, "MAC address "+mac) == (mac != "")
	}
	entry := l.reaches(eni.ID(), named)
	l.t.Logf("%s: %s: %s", kind, entry.State, entry.Reason)
	if link := l.run("ip", "-o", "link", "show", name); !strings.Contains(link, " link/ether "+cmp.Or(mac, eni.MAC().String())+" ") {
		l.t.Errorf("the port is %s", link)
	}
	added, err := eni.AssignIPv4(l.t.Context())
	if err != nil {
		l.t.Fatal(err)
	}
	l.until("the drop-in has "+added[0].String(), func() (bool, error) {
		_, err := l.inst.Exec(l.t.Context(), "grep", "-q", "^Address="+added[0].String()+"/", "/run/systemd/network/70-"+name+".network.d/50-ec2netd.conf")
		return err == nil, nil
	})
	l.run("networkctl", "reload")
	l.reaches(eni.ID(), named)
	if link := l.run("ip", "-o", "link", "show", name); !strings.Contains(link, " master master0 ") {
		l.t.Errorf("after a change: %s", link)
	}
	l.run("sh", "-ec", fmt.Sprintf("ip link set %s nomaster; ip link set %[1]s down; ip link set %[1]s up; ip link delete master0", name))
	entry = l.reaches(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
	// As the link goes into a VRF networkd may still ask for a route that the kernel refuses there,
	// give up on the link and add the primary address anew: that is told of until the next boot.
	if first := l.addresses(name)[0]; kind == "vrf" && first != eni.IPv4()[0] {
		if !strings.HasPrefix(entry.Reason, "the first address of the link is "+first.String()) {
			l.t.Errorf("the first address is %s, and the reason %q", first, entry.Reason)
		}
		return
	}
	l.checkKernel(eni)
}

// F10: in a VRF that the administrator's files name the routes of DHCP and router advertisements are
// in the table of that.
func (l *lab) inNamedVRF(eni *vpc.ENI) {
	l.t.Helper()
	const netdev, network = "/etc/systemd/network/20-blue.netdev", "/etc/systemd/network/20-blue.network"
	name := eni.Name()
	dropIn := "/etc/systemd/network/70-" + name + ".network.d/vrf.conf"
	l.put(netdev, "[NetDev]\nName=blue\nKind=vrf\n[VRF]\nTable=500\n")
	l.put(network, "[Match]\nName=blue\n[Network]\nLinkLocalAddressing=no\n")
	l.put(dropIn, "[Network]\nVRF=blue\n")
	l.run("networkctl", "reload")
	named := func(i *state.Interface) bool { return strings.Contains(i.Reason, "port of blue (vrf)") }
	whole := func(when string) {
		l.t.Helper()
		l.reaches(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && named(i) })
		var last string
		l.untilOr(when+" the VRF has default routes", func() (bool, error) {
			last = l.run("sh", "-c", "ip -4 route show table 500 default; ip -6 route show table 500 default")
			return strings.Contains(last, "proto dhcp") && strings.Contains(last, "proto ra"), nil
		}, &last)
	}
	whole("named by a file")
	l.arrives(eni)
	whole("after a change")
	l.run("rm", netdev, network, dropIn)
	l.run("sh", "-ec", fmt.Sprintf("networkctl reload; ip link delete blue; ip link set %s down; ip link set %[1]s up", name))
	l.reaches(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
}

// clock sets the clock two days ahead and four back, which changes nothing.
func (l *lab) clock(eni *vpc.ENI) {
	l.t.Helper()
	for _, jump := range []string{"+2 days", "-4 days"} {
		l.run("date", "--set="+jump)
		l.stillWhole(eni)
	}
	l.run("date", "--set=+2 days")
}

// namedByFile attaches an ENI that a .link file of the administrator names.
func (l *lab) namedByFile() *vpc.ENI {
	l.t.Helper()
	eni := l.attach(vpc.ENISpec{Subnet: "b", MAC: renamed, IPv4Count: 2})
	entry := l.configured(eni.ID())
	if entry.Name != "data0" {
		l.t.Errorf("the ENI is %s", entry.Name)
	}
	l.run("test", "-e", "/run/systemd/network/70-data0.network.d/50-ec2netd.conf")
	for _, name := range []string{eni.ID(), eni.Name()} {
		if link := l.run("ip", "-o", "link", "show", name); !strings.Contains(link, ": data0: ") {
			l.t.Errorf("%s is %s", name, link)
		}
	}
	for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.pingFrom(address)
	}
	return eni
}

// withoutIPv6 reboots a machine whose kernel shall have no IPv6.
func (l *lab) withoutIPv6(eni *vpc.ENI) {
	l.t.Helper()
	l.inst.SetKernelArgs("ipv6.disable=1")
	if err := l.inst.Reboot(l.t.Context()); err != nil {
		l.t.Fatal(err)
	}
	for _, e := range []*vpc.ENI{l.inst.Primary(), eni} {
		i := l.reaches(e.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIConfigured && i.IPv6NotApplicable != ""
		})
		if i.Reason != "" || len(i.Gaps)+len(i.Missing)+len(i.Unwanted) > 0 {
			l.t.Errorf("%+v", i)
		}
		if got := l.addresses(e.Name()); !slices.Equal(sorted(got), sorted(e.IPv4())) {
			l.t.Errorf("%s has %v, want %v", e.Name(), got, e.IPv4())
		}
		for _, source := range e.IPv4() {
			l.pingFrom(source)
		}
	}
	l.arrives(eni)
}
