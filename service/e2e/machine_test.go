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

	"ec2netd/cmd/vpclab/labtest"
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
		if !labtest.Long() && suite.Name != "trixie" {
			continue
		}
		t.Run(suite.Name, func(t *testing.T) {
			l := labtest.Boot(t, suite.Name, func(o *vpc.InstanceOptions) {
				o.Machine = true
				o.Packages = []string{"wireguard-tools"}
				labtest.Refreshing(o)
				o.Files["/etc/systemd/network/80-data.link"] = "[Match]\nMACAddress=" + renamed.String() +
					"\n[Link]\nName=data0\nAlternativeNamesPolicy=database onboard slot path\n"
			})
			began := time.Now()
			done := func(what string) {
				t.Logf("%s: %.0f s", what, time.Since(began).Seconds())
				began = time.Now()
			}
			t.Logf("booted in %.0f s", l.Inst.BootTime().Seconds())
			l.AwaitConfigured("ens5")
			runsCommands(l)
			done("the primary")
			eni := attachToMachine(l)
			done("hotplug")
			finish := slowPings(l, l.Inst.Primary())
			checkVLAN(l, eni)
			done("VLAN")
			portOf(l, eni, "bridge", "", "")
			done("bridge")
			// EC2 carries an ENI's own MAC address only.
			portOf(l, eni, "bond", "mode active-backup miimon 100 fail_over_mac active", "")
			done("bond")
			portOf(l, eni, "bond", "mode active-backup miimon 100", "02:00:00:00:0b:0d")
			done("bond with a MAC address of its own")
			checkClock(l, eni)
			done("clock")
			finish()
			suspends(l, eni)
			done("suspend")
			startTunnel(l)
			l.Run("test", "-d", "/sys/module/wireguard")
			underTunnel(l, "with the kernel's WireGuard", l.Inst.Primary(), eni)
			done("WireGuard")
			data := namedByFile(l)
			l.Run("wg-quick", "down", "wg0")
			done("an ENI after it, named by a file")
			l.Detach(data)
			l.AwaitGone(data, 2)
			done("detach")
			inNamedVRF(l, eni)
			done("vrf of a file")
			portOf(l, eni, "vrf", "table 500", "")
			done("vrf")
			withoutIPv6(l, eni)
			done("reboot without IPv6")
		})
	}
}

// runsCommands checks how the lab runs commands in a machine.
func runsCommands(l *labtest.Lab) {
	l.T.Helper()
	ctx, cancel := context.WithTimeout(l.T.Context(), labtest.Patience)
	defer cancel()
	var failed *vpc.ExecError
	if _, err := l.Inst.Exec(ctx, "sh", "-c", "echo out; echo err >&2; exit 7"); !errors.As(err, &failed) || failed.ExitCode != 7 || failed.Stdout != "out\n" || failed.Stderr != "err\n" {
		l.T.Errorf("a command that fails: %v", err)
	}
	if _, err := l.Inst.Exec(ctx, "/no/such/program"); !errors.As(err, &failed) || failed.ExitCode != 127 || !strings.Contains(failed.Stderr, "No such file") {
		l.T.Errorf("no program: %v", err)
	}
	input := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	out, err := l.Inst.Run(ctx, vpc.Command{Argv: []string{"sh", "-c", `id -un; echo "$WORD"; cat`}, Stdin: bytes.NewReader(input), User: vpc.OrdinaryUser, Env: []string{"WORD=a=b c"}})
	if want := vpc.OrdinaryUser + "\na=b c\n" + string(input); err != nil || out != want {
		l.T.Errorf("a megabyte through cat: %d bytes, %v", len(out), err)
	}
	short, end := context.WithTimeout(ctx, time.Second)
	defer end()
	if _, err := l.Inst.Exec(short, "sh", "-c", "sleep 3941 & wait"); !errors.Is(err, context.DeadlineExceeded) {
		l.T.Errorf("a command that takes too long: %v", err)
	}
	l.Until("it has ended, with its child", func() (bool, error) {
		_, err := l.Inst.Exec(ctx, "pgrep", "-f", "^sleep 3941")
		return err != nil, nil
	})
}

// attachToMachine attaches an ENI.
func attachToMachine(l *labtest.Lab) *vpc.ENI {
	l.T.Helper()
	eni := l.Attach(labtest.HotplugSpec())
	l.AwaitConfigured(eni.ID())
	l.CheckKernel(eni)
	for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.PingFrom(address)
	}
	for property, want := range map[string]string{"ID_NET_NAME_SLOT": eni.Name(), "ID_NET_DRIVER": "virtio_net"} {
		if got := l.Run("udevadm", "info", "--query=property", "--property="+property, "--value", "/sys/class/net/"+eni.Name()); got != want {
			l.T.Errorf("%s is %q, want %q", property, got, want)
		}
	}
	return eni
}

// slowPings is MeasurePings at a pace that an emulated processor keeps up with.
func slowPings(l *labtest.Lab, eni *vpc.ENI) (finish func()) {
	l.T.Helper()
	const slow = 10 * labtest.Pace
	var pings []*vpc.Pinger
	for far, address := range map[netip.Addr]netip.Addr{vpc.FarIPv4: eni.IPv4()[0], vpc.FarIPv6: eni.IPv6()[0]} {
		ping, err := l.VPC.StartPing(l.T.Context(), far, address, slow)
		if err != nil {
			l.T.Fatal(err)
		}
		pings = append(pings, ping)
	}
	return func() {
		l.T.Helper()
		for _, ping := range pings {
			sent := ping.Result().Received
			l.Until("there is a reply", func() (bool, error) { return ping.Result().Received > sent, nil })
			if lost, sent := ping.Stop().LostSinceFirst(); lost > 0 {
				l.T.Errorf("%s lost %d of %d packets", eni.Name(), lost, sent)
			}
		}
	}
}

// checkStillWhole checks that an ENI is as it shall be, and that a new address arrives.
func checkStillWhole(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.AwaitConfigured(eni.ID())
	l.AwaitAssignment(eni)
	l.AwaitConfigured(eni.ID())
	l.CheckKernel(eni)
}

// checkVLAN makes a VLAN over an ENI, with the ENI's MAC address.
func checkVLAN(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.Run("sh", "-ec", "ip link add vlan7 link "+eni.Name()+" type vlan id 7; ip address add 192.0.2.1/24 dev vlan7; ip link set vlan7 up")
	checkStillWhole(l, eni)
	if addresses := l.Run("ip", "-brief", "address", "show", "dev", "vlan7"); !strings.Contains(addresses, "192.0.2.1/24") {
		l.T.Errorf("the VLAN has %s", addresses)
	}
	if s := l.Describe(); len(s.Interfaces) != 2 {
		l.T.Errorf("there are %d ENIs: %+v", len(s.Interfaces), s.Interfaces)
	}
	l.Run("ip", "link", "delete", "vlan7")
}

// F10: an ENI is a port through its changes, of a master of the kind with options. The MAC address,
// if it is not empty, is the master's, which gives it to its ports.
func portOf(l *labtest.Lab, eni *vpc.ENI, kind, options, mac string) {
	l.T.Helper()
	name, address := eni.Name(), ""
	if mac != "" {
		address = "address " + mac
	}
	l.Run("sh", "-ec", "ip link add master0 "+address+" type "+kind+" "+options+"; echo 1 >/proc/sys/net/ipv6/conf/master0/disable_ipv6; ip link set master0 up")
	// A bond takes no link that is up. Were it down for longer, it would count as set down.
	down := map[string]string{"bond": "link set " + name + " down\n"}[kind]
	if _, err := l.Inst.Run(l.T.Context(), vpc.Command{Argv: []string{"ip", "-batch", "-"}, Stdin: strings.NewReader(down + "link set " + name + " master master0\n")}); err != nil {
		l.T.Fatal(err)
	}
	named := func(i *state.Interface) bool {
		return i.ENIID == eni.ID() && i.MAC == eni.MAC().String() && strings.Contains(i.Reason, "port of master0 ("+kind+")") &&
			strings.Contains(i.Reason, "MAC address "+mac) == (mac != "")
	}
	entry := l.AwaitENI(eni.ID(), named)
	l.T.Logf("%s: %s: %s", kind, entry.State, entry.Reason)
	if link := l.Run("ip", "-o", "link", "show", name); !strings.Contains(link, " link/ether "+cmp.Or(mac, eni.MAC().String())+" ") {
		l.T.Errorf("the port is %s", link)
	}
	added, err := eni.AssignIPv4(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	l.Until("the drop-in has "+added[0].String(), func() (bool, error) {
		_, err := l.Inst.Exec(l.T.Context(), "grep", "-q", "^Address="+added[0].String()+"/", "/run/systemd/network/70-"+name+".network.d/50-ec2netd.conf")
		return err == nil, nil
	})
	l.Run("networkctl", "reload")
	l.AwaitENI(eni.ID(), named)
	if link := l.Run("ip", "-o", "link", "show", name); !strings.Contains(link, " master master0 ") {
		l.T.Errorf("after a change: %s", link)
	}
	l.Run("sh", "-ec", fmt.Sprintf("ip link set %s nomaster; ip link set %[1]s down; ip link set %[1]s up; ip link delete master0", name))
	entry = l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
	// As the link goes into a VRF networkd may still ask for a route that the kernel refuses there,
	// give up on the link and add the primary address anew: that is told of until the next boot.
	if first := l.Addresses(name)[0]; kind == "vrf" && first != eni.IPv4()[0] {
		if !strings.HasPrefix(entry.Reason, "the first address of the link is "+first.String()) {
			l.T.Errorf("the first address is %s, and the reason %q", first, entry.Reason)
		}
		return
	}
	l.CheckKernel(eni)
}

// F10: in a VRF that the administrator's files name the routes of DHCP and router advertisements are
// in the table of that.
func inNamedVRF(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	const netdev, network = "/etc/systemd/network/20-blue.netdev", "/etc/systemd/network/20-blue.network"
	name := eni.Name()
	dropIn := "/etc/systemd/network/70-" + name + ".network.d/vrf.conf"
	l.Put(netdev, "[NetDev]\nName=blue\nKind=vrf\n[VRF]\nTable=500\n")
	l.Put(network, "[Match]\nName=blue\n[Network]\nLinkLocalAddressing=no\n")
	l.Put(dropIn, "[Network]\nVRF=blue\n")
	l.Run("networkctl", "reload")
	named := func(i *state.Interface) bool { return strings.Contains(i.Reason, "port of blue (vrf)") }
	whole := func(when string) {
		l.T.Helper()
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && named(i) })
		var last string
		l.UntilOr(when+" the VRF has default routes", func() (bool, error) {
			last = l.Run("sh", "-c", "ip -4 route show table 500 default; ip -6 route show table 500 default")
			return strings.Contains(last, "proto dhcp") && strings.Contains(last, "proto ra"), nil
		}, &last)
	}
	whole("named by a file")
	l.AwaitAssignment(eni)
	whole("after a change")
	l.Run("rm", netdev, network, dropIn)
	l.Run("sh", "-ec", fmt.Sprintf("networkctl reload; ip link delete blue; ip link set %s down; ip link set %[1]s up", name))
	l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && !named(i) })
}

// checkClock sets the clock two days ahead and four back, which changes nothing.
func checkClock(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	for _, jump := range []string{"+2 days", "-4 days"} {
		l.Run("date", "--set="+jump)
		checkStillWhole(l, eni)
	}
	l.Run("date", "--set=+2 days")
}

// suspends puts a machine to sleep more than once, as the first time may leave it unable to do so again.
// The clock jumps, and the links lose their carrier and with it all that DHCP gave them.
func suspends(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	times := 2
	if labtest.Long() {
		times = 30
	}
	for range times {
		if err := l.Inst.Suspend(l.T.Context()); err != nil {
			l.T.Fatal(err)
		}
		for _, e := range []*vpc.ENI{l.Inst.Primary(), eni} {
			ctx, cancel := context.WithTimeout(l.T.Context(), l.Patience())
			err := l.Inst.AwaitAddrs(ctx, e.Name(), slices.Concat(e.IPv4(), e.IPv6())...)
			cancel()
			if err != nil {
				l.T.Fatal(err)
			}
			// What the daemon says afterwards is not what it said before the suspend.
			l.Run("ec2netctl", "refresh", "--wait")
			l.AwaitConfigured(e.ID())
		}
		l.CheckKernel(eni)
	}
	checkStillWhole(l, eni)
}

// namedByFile attaches an ENI that a .link file of the administrator names.
func namedByFile(l *labtest.Lab) *vpc.ENI {
	l.T.Helper()
	eni := l.Attach(vpc.ENISpec{Subnet: "b", MAC: renamed, IPv4Count: 2})
	entry := l.AwaitConfigured(eni.ID())
	if entry.Name != "data0" {
		l.T.Errorf("the ENI is %s", entry.Name)
	}
	l.Run("test", "-e", "/run/systemd/network/70-data0.network.d/50-ec2netd.conf")
	for _, name := range []string{eni.ID(), eni.Name()} {
		if link := l.Run("ip", "-o", "link", "show", name); !strings.Contains(link, ": data0: ") {
			l.T.Errorf("%s is %s", name, link)
		}
	}
	for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
		l.PingFrom(address)
	}
	return eni
}

// withoutIPv6 reboots a machine whose kernel shall have no IPv6.
func withoutIPv6(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.Inst.SetKernelArgs("ipv6.disable=1")
	if err := l.Inst.Reboot(l.T.Context()); err != nil {
		l.T.Fatal(err)
	}
	for _, e := range []*vpc.ENI{l.Inst.Primary(), eni} {
		i := l.AwaitENI(e.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIConfigured && i.IPv6NotApplicable != ""
		})
		if i.Reason != "" || len(i.Gaps)+len(i.Missing)+len(i.Unwanted) > 0 {
			l.T.Errorf("%+v", i)
		}
		if got := l.Addresses(e.Name()); !slices.Equal(labtest.Sorted(got), labtest.Sorted(e.IPv4())) {
			l.T.Errorf("%s has %v, want %v", e.Name(), got, e.IPv4())
		}
		for _, source := range e.IPv4() {
			l.PingFrom(source)
		}
	}
	l.AwaitAssignment(eni)
}
