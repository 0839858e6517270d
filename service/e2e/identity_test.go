package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// C3: two ENIs are detached and attached again with each other's names while the daemon
// is down, and one is attached again while it runs.
func TestLabSwappedNames(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		one, two := l.Attach(vpc.ENISpec{IPv4Count: 2}), l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(one.ID())
		l.AwaitConfigured(two.ID())
		names := []string{one.Name(), two.Name()}
		swap := func() {
			t.Helper()
			for _, eni := range []*vpc.ENI{one, two} {
				if err := eni.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			slices.Reverse(names)
			for i, eni := range []*vpc.ENI{one, two} {
				l.Reattach(eni, names[i])
			}
		}
		check := func() {
			t.Helper()
			for i, eni := range []*vpc.ENI{one, two} {
				l.AwaitENI(eni.ID(), func(s *state.Interface) bool { return s.Name == names[i] })
				l.AwaitConfigured(eni.ID())
				l.CheckKernel(eni)
			}
		}
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		swap()
		l.Run("systemctl", "start", "ec2netd.service")
		check()
		swap()
		check()
		l.CheckLog("warning")
	})
}

// TestLabIdentity: what an ENI is, is told by its MAC address on a link, whatever the
// link's name, and whatever else has that address or that name.
func TestLabIdentity(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)

		// A SIGHUP does not end the daemon: systemd would not start it again.
		pid := l.DaemonPID()
		l.Run("systemctl", "kill", "--signal=HUP", "ec2netd.service")
		l.Run("ec2netctl", "refresh")
		if now := l.DaemonPID(); now != pid {
			t.Errorf("process %s after a SIGHUP, %s before", now, pid)
		}

		// C3: attached again under another name, with and without the daemon.
		l.Detach(eni)
		l.Reattach(eni, "ens42")
		l.AwaitSettledAs(eni, "ens42")
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.Detach(eni)
		l.Reattach(eni, "ens43")
		l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
		l.AwaitSettledAs(eni, "ens43")
		if now := l.Files(); strings.Contains(now, "ens42") || strings.Contains(now, "ens6.") {
			t.Errorf("files of old names:\n%s", now)
		}

		// C3: a second link with its MAC address. The peer is elsewhere, so that it is none
		// of the instance's links.
		l.CountDrops()
		files, mac := l.Files(), eni.MAC().String()
		l.Run("ip", "netns", "add", "elsewhere")
		twin := func() {
			t.Helper()
			l.Run("ip", "link", "add", "twin", "address", mac, "type", "veth", "peer", "name", "peer", "netns", "elsewhere")
			for name, other := range map[string]string{"ens43": "twin", "twin": "ens43"} {
				l.AwaitENI(name, func(i *state.Interface) bool {
					return i.State == state.ENIPending && strings.Contains(i.Reason, "another link ("+other+")")
				})
			}
		}
		twin()
		l.Run("ec2netctl", "refresh")
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckKernel(eni)
		for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		if out := l.AsUser("busctl", "tree", "--list", "org.ec2netd1"); strings.Count(out, "/org/ec2netd1/interface/") != 3 {
			t.Errorf("objects:\n%s", out)
		}
		l.Run("ip", "link", "del", "twin")
		l.AwaitSettledAs(eni, "ens43")
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		twin()
		l.Detach(eni)
		l.Until("the files of the ENI are gone", func() (bool, error) { return !strings.Contains(l.Files(), "ens43"), nil })
		l.Run("ip", "link", "del", "twin")
		l.Reattach(eni, "ens43")
		l.AwaitSettledAs(eni, "ens43")

		// C6: moved to another network namespace it is detached, which is no event for
		// others; back again it is attached.
		monitor := l.Monitor("ens5")
		for range 2 {
			l.Run("ip", "link", "set", "ens43", "netns", "elsewhere")
			l.AwaitGone(eni, 1)
			if now := l.Files(); strings.Contains(now, "ens43") {
				t.Errorf("files of a link that is elsewhere:\n%s", now)
			}
			l.Run("ip", "-n", "elsewhere", "link", "set", "ens43", "netns", "1")
			l.AwaitSettledAs(eni, "ens43")
		}
		// So fast that nobody need have seen it: then the static addresses are there before
		// the lease.
		l.Run("sh", "-c", "ip link set ens43 netns elsewhere && ip -n elsewhere link set ens43 netns 1")
		l.AwaitComplete(eni, "ens43")
		if events := monitor(); events != "" {
			t.Errorf("events on the primary:\n%s", events)
		}
		l.CountDrops()
		for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		l.CheckLog("warning")
		l.Run("ip", "netns", "del", "elsewhere")

		// B5: two attached again under their names, each with the device index of the other.
		other := l.Attach(vpc.ENISpec{Name: "ens7"})
		l.AwaitSettledAs(other, "ens7")
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.Detach(eni)
		l.Detach(other)
		first, second := eni.DeviceIndex(), other.DeviceIndex()
		eni.SetDeviceIndex(second)
		other.SetDeviceIndex(first)
		l.Reattach(eni, "ens43")
		l.Reattach(other, "ens7")
		l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
		// udevd has called each what it was before, and takes no name away (G1): they are taken.
		l.AwaitSettledAs(eni, "ens43")
		l.AwaitSettledAs(other, "ens7")

		// Where they cannot be taken, the reason of each says what to do, and that is enough.
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		l.Run("systemctl", "mask", "--runtime", "ec2netd-orphans.service")
		l.Detach(eni)
		l.Detach(other)
		eni.SetDeviceIndex(first)
		other.SetDeviceIndex(second)
		l.Run("udevadm", "control", "--reload") // else it may have what the file of one said before, for 3 s
		l.Reattach(eni, "ens43")
		l.Reattach(other, "ens7")
		l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
		taken := func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && strings.Contains(i.Reason, " is still that of ")
		}
		for _, e := range []*vpc.ENI{eni, other} {
			l.AwaitENI(e.ID(), taken)
		}
		for _, e := range []*vpc.ENI{eni, other} {
			got := l.AwaitENI(e.ID(), taken)
			_, advice, _ := strings.Cut(got.Reason, " is still that of ")
			l.Follow(advice, ": ")
		}
		l.AwaitSettledAs(eni, "ens43")
		l.AwaitSettledAs(other, "ens7")
		l.Run("systemctl", "unmask", "--runtime", "ec2netd-orphans.service")
	})
}

// C5: links that are not ENIs are never touched, whatever MAC address, name and altname
// they have.
func TestLabInheritedMAC(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		// A bridge that has taken the ENI's address over, and a macvlan that has it, with
		// names such as ENIs have.
		l.Run("sh", "-c", strings.ReplaceAll(`ip link add eth9 address MAC type bridge && ip link property add dev eth9 altname eni-0fedcba9876543210 &&
			ip link add br0 type bridge && ip link add link br0 name ens99 address MAC type macvlan mode private &&
			for link in eth9 br0 ens99; do ip link set dev $link addrgenmode none; done && ip link set br0 up && ip link set eth9 up && ip link set ens99 up &&
			ip addr add 192.0.2.9/24 dev eth9 && ip addr add 192.0.2.99/24 dev ens99`, "MAC", eni.MAC().String()))
		others := []string{"eth9", "br0", "ens99"}
		// As far as the kernel has them.
		if _, err := l.Inst.Exec(t.Context(), "ip", "link", "add", "link", eni.Name(), "name", eni.Name()+".7", "type", "vlan", "id", "7"); err == nil {
			others = append(others, eni.Name()+".7")
		} else {
			t.Logf("no VLAN: %v", err)
		}
		look := func() string {
			return l.Run("sh", "-c", "for link in "+strings.Join(others, " ")+"; do ip -o link show dev $link; ip -o addr show dev $link; done; ip route show table all dev eth9; ip route show table all dev ens99")
		}
		// udevd is done with them, by the .link file that is for any link.
		for _, name := range others {
			l.Run("udevadm", "trigger", "--action=add", "--settle", "/sys/class/net/"+name)
			if out := l.Run("udevadm", "info", "--query=property", "/sys/class/net/"+name); strings.Contains(out, "ID_NET_LINK_FILE=/run/") {
				t.Errorf("udevd applied a generated .link file to %s:\n%s", name, out)
			}
		}
		before, files := look(), l.Files()
		monitor := l.Monitor("9")
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		l.Run("networkctl", "reload")
		if !l.HasAddress(eni.Name(), added[0]) {
			t.Errorf("%s lacks %s", eni.Name(), added[0])
		}
		if now := look(); now != before {
			t.Errorf("changed:\n%s\nbefore:\n%s", now, before)
		}
		for line := range strings.Lines(monitor()) {
			if strings.Contains(line, " eth9 ") || strings.Contains(line, " ens99 ") {
				t.Errorf("event: %s", line)
			}
		}
		now := l.Files()
		if strings.Count(now, "\n") != strings.Count(files, "\n") || len(l.Units(eni.MAC())) != 1 {
			t.Errorf("files:\n%s\nbefore:\n%s", now, files)
		}
		list := l.Run("networkctl", "list", "--no-legend", "--no-pager")
		for _, name := range others {
			if strings.Contains(now, "70-"+name+".") {
				t.Errorf("files for %s:\n%s", name, now)
			}
			_, line, _ := strings.Cut(list, " "+name+" ")
			// TYPE OPERATIONAL SETUP
			if fields := strings.Fields(line); len(fields) < 3 || fields[2] != "unmanaged" {
				t.Errorf("networkd has %s as %v", name, fields)
			}
		}
		if s := l.Describe(); len(s.Interfaces) != 2 {
			t.Errorf("interfaces: %+v", s.Interfaces)
		}
		l.AwaitSettledAs(eni, eni.Name())
		l.CheckLog("warning")
		// The names of an ENI that another link has are free after what the reason says.
		for index, taken := range []string{
			"ip link add br2 type bridge && ip link property add dev br2 altname device-number-INDEX", "ip link add device-number-INDEX type bridge",
		} {
			spec := vpc.ENISpec{DeviceIndex: index + 2, IPv6Count: -1}
			name := fmt.Sprintf("device-number-%d", spec.DeviceIndex)
			l.Run("sh", "-c", strings.ReplaceAll(taken, "device-number-INDEX", name))
			other := l.Attach(spec)
			got := l.AwaitENI(other.ID(), func(i *state.Interface) bool {
				return i.State == state.ENIDegraded && strings.HasPrefix(i.Reason, "altname "+name+" is ")
			})
			_, command, _ := strings.Cut(got.Reason, ": ")
			if short, _, renames := strings.Cut(command, ", with another NAME"); renames {
				command = strings.ReplaceAll(short, "NAME", "br3")
			}
			l.Run("sh", "-c", command)
			if got := l.AwaitConfigured(other.ID()); !slices.Contains(got.Altnames, name) {
				t.Errorf("%s after %s: %q", other.Name(), command, got.Altnames)
			}
			if link := l.Run("ip", "link", "show", "dev", name); !strings.Contains(link, other.MAC().String()) {
				t.Errorf("%s after %s: %s", name, command, link)
			}
		}
	})
}
