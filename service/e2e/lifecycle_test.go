package e2e

import (
	"fmt"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

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
		if !slices.Contains(l.Addresses(eni.Name()), added[0]) {
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

// C8: ENIs without a link are ignored, a link without metadata is retried with back-off,
// and neither is worth a word.
func TestLabGhosts(t *testing.T) {
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		log := func() string {
			return l.Run("journalctl", "--boot", "--identifier=ec2netd", "--priority=info", "--output=cat", "--no-pager", "--quiet")
		}
		said, began := log(), len(l.Inst.Metadata().Requests())
		of := func(eni *vpc.ENI) []imds.Request {
			return slices.DeleteFunc(l.Inst.Metadata().Requests()[began:], func(r imds.Request) bool {
				return !strings.Contains(r.Key, eni.MAC().String())
			})
		}
		// EFA-only, and a ghost that metadata still list after the detach.
		efa, err := l.Inst.Create(t.Context(), vpc.ENISpec{})
		if err != nil {
			t.Fatal(err)
		}
		efa.Publish(imds.Propagation{})
		// A link that the metadata do not have.
		bare, err := l.Inst.Create(t.Context(), vpc.ENISpec{})
		if err != nil {
			t.Fatal(err)
		}
		if err := bare.Plug(t.Context()); err != nil {
			t.Fatal(err)
		}
		backsOff(l, func() []imds.Request { return of(bare) })
		got := l.AwaitENI(bare.Name(), func(i *state.Interface) bool { return i.State == state.ENIPending && i.Reason != "" })
		if got.ENIID != "" || len(got.Files) > 0 {
			t.Errorf("%+v", got)
		}
		if requests := of(efa); len(requests) > 0 {
			t.Errorf("metadata of an ENI without a link were asked for: %+v", requests)
		}
		if s := l.Describe(); len(s.Interfaces) != 2 {
			t.Errorf("interfaces: %+v", s.Interfaces)
		}
		if now := log(); now != said {
			t.Errorf("said: %s", strings.TrimPrefix(now, said))
		}
		// When they come, all is well.
		bare.Publish(imds.Propagation{})
		if err := efa.Plug(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		l.AwaitSettledAs(bare, bare.Name())
		l.AwaitSettledAs(efa, efa.Name())
		// The ghost of one that is detached.
		if err := efa.DetachLingering(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		l.Until("the detached ENI is gone", func() (bool, error) { return len(l.Describe().Interfaces) == 2, nil })
		began = len(l.Inst.Metadata().Requests())
		l.Run("ec2netctl", "refresh", "--wait")
		if requests := of(efa); len(requests) > 0 {
			t.Errorf("metadata of a ghost were asked for: %+v", requests)
		}
		if units := l.Units(efa.MAC()); len(units) > 0 {
			t.Errorf("files of a ghost: %v", units)
		}
		l.CheckLog("warning")
	})
}

// backsOff checks the pace of the reads of a link that has no metadata: an ENI is listed late, so it
// is asked for after 50, 100, 200, 200, … ms for ten seconds (D11), and then with a delay that
// doubles (C8), each up to a tenth less. A delay counts from the answer, so no machine is so slow
// that two reads are closer together.
func backsOff(l *labtest.Lab, reads func() []imds.Request) {
	l.T.Helper()
	var early, late []time.Time
	l.Until("the metadata were asked for five times after ten seconds", func() (bool, error) {
		early, late = nil, nil
		for _, r := range reads() {
			if len(early) > 0 && r.Time.Sub(early[0]) > 10*time.Second {
				late = append(late, r.Time)
			} else {
				early = append(early, r.Time)
			}
		}
		return len(late) >= 5, nil
	})
	check := func(when string, times []time.Time, first, limit time.Duration) {
		for i, delay := 1, first; i < len(times); i, delay = i+1, min(2*delay, limit) {
			if gap := times[i].Sub(times[i-1]); gap < delay*9/10 {
				l.T.Errorf("%s, read %d came %v after the one before, and not %v", when, i+1, gap, delay)
			}
		}
	}
	check("in the first ten seconds", early, 50*time.Millisecond, 200*time.Millisecond)
	check("after ten seconds", late, 400*time.Millisecond, time.Minute)
	l.T.Logf("%d reads in ten seconds, then %d in %v", len(early), len(late), late[len(late)-1].Sub(late[0]))
	// Half of what there would be on a machine that takes no time.
	if len(early) < 25 {
		l.T.Errorf("%d reads in ten seconds", len(early))
	}
}

// C6: a link that vanishes at any step of a slow read leaves nothing, and nothing is said.
func TestLabVanishing(t *testing.T) {
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni, err := l.Inst.Create(t.Context(), vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		files, pid := l.Files(), l.DaemonPID()
		if _, err := l.Inst.Metadata().AddFault(imds.Fault{
			Pattern: "network/interfaces/macs/" + eni.MAC().String() + "/**", Effect: imds.Delay, Delay: 150 * time.Millisecond,
		}); err != nil {
			t.Fatal(err)
		}
		began := len(l.Inst.Metadata().Requests())
		for step := 1; step <= 9; step++ {
			l.Reattach(eni, "")
			l.Until(fmt.Sprintf("request %d of the ENI's is under way", step), func() (bool, error) {
				n := 0
				for _, r := range l.Inst.Metadata().Requests()[began:] {
					if strings.Contains(r.Key, eni.MAC().String()) {
						n++
					}
				}
				return n >= step, nil
			})
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			began = len(l.Inst.Metadata().Requests())
		}
		if now := l.Files(); now != files {
			t.Errorf("files:\n%s\nbefore:\n%s", now, files)
		}
		if left := l.Residue(); left != "" {
			t.Errorf("residue: %s", left)
		}
		// No process waits, and no connection to the metadata service.
		if procs := l.Run("cat", "/sys/fs/cgroup/system.slice/ec2netd.service/cgroup.procs"); procs != pid {
			t.Errorf("processes of the service: %q, want %s", procs, pid)
		}
		// At most it was configured for a moment.
		for line := range strings.Lines(l.Run("journalctl", "--boot", "--identifier=ec2netd", "--priority=info", "--output=cat", "--no-pager", "--quiet")) {
			if !strings.HasPrefix(line, "ENI configured ") && !strings.HasPrefix(line, "ENI detached ") {
				t.Errorf("said: %s", line)
			}
		}
		l.Inst.Metadata().ClearFaults()
		l.Reattach(eni, "")
		l.AwaitSettled(eni)
	})
}

// C4: what happens while udevd, the daemon or networkd is down is made up for.
func TestLabDaemonsDown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		// With their sockets, which would start them again.
		units := func(service string) []string {
			var found []string
			for line := range strings.Lines(l.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", service+"*.socket", service+".service", "systemd-network*.socket")) {
				unit := strings.Fields(line)[0]
				if service == "systemd-networkd" || !strings.HasPrefix(unit, "systemd-network") {
					found = append(found, unit)
				}
			}
			return found
		}
		down := func(service string, meanwhile func()) {
			t.Helper()
			all := units(service)
			l.Run(append([]string{"systemctl", "stop"}, all...)...)
			meanwhile()
			if active, err := l.Inst.Exec(t.Context(), "systemctl", "is-active", service+".service"); err == nil {
				t.Fatalf("%s is %s", service, active)
			}
			l.Run(append([]string{"systemctl", "start"}, all...)...)
		}
		var eni, second *vpc.ENI
		down("systemd-udevd", func() {
			eni = l.Attach(vpc.ENISpec{IPv4Count: 2})
			l.Until("the metadata of the ENI are read", func() (bool, error) { return len(l.Units(eni.MAC())) == 1, nil })
		})
		l.AwaitSettled(eni)

		down("systemd-networkd", func() {
			second = l.Attach(vpc.ENISpec{IPv4Count: 2})
			l.Until("the metadata of the ENI are read", func() (bool, error) { return len(l.Units(second.MAC())) == 1, nil })
		})
		l.AwaitSettled(second)
		// A networkd that is stopped takes the lease's address of others away and adds it
		// anew, after the static ones: the reason says so, nothing is missing.
		l.AwaitComplete(eni, eni.Name())

		// An attach, a detach, and a re-attach under the name of the other.
		third, name := (*vpc.ENI)(nil), eni.Name()
		down("ec2netd", func() {
			l.Detach(eni)
			l.Detach(second)
			l.Reattach(second, name)
			third = l.Attach(vpc.ENISpec{IPv4Count: 2})
		})
		l.AwaitSettledAs(second, name)
		l.AwaitSettled(third)
		if units := l.Units(eni.MAC()); len(units) > 0 {
			t.Errorf("files of an ENI that is detached: %v", units)
		}
		l.CountDrops()
		for _, source := range slices.Concat(second.IPv4(), third.IPv4()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// F11: dbus-daemon is restarted, as an upgrade may do, and networkd does not come
// back to the bus. systemd has those of 257 and 262 reload; for 252 the state names the command.
func TestLabBusRestarted(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.Refreshing(o)
			o.Primary.IPv6Count = 2
		})
		primary := l.Inst.Primary()
		l.AwaitConfigured("ens5")
		for range 2 {
			l.Run("systemctl", "restart", "dbus.service")
			if suite == "bookworm" {
				const advice = "systemctl restart systemd-networkd.service"
				l.Until("the state names the command", func() (bool, error) {
					s, err := l.TryDescribe()
					return err == nil && s.State == state.Degraded && strings.HasSuffix(s.Reason, advice), nil
				})
				if doctor := l.Fails("ec2netctl", "doctor"); !strings.Contains(doctor, advice) {
					t.Errorf("doctor says\n%s", doctor)
				}
				l.Run("sh", "-c", advice)
				l.AwaitManager(state.Configured)
			}
			added, err := primary.AssignIPv4(t.Context())
			if err != nil {
				t.Fatal(err)
			}
			l.Until("the address is there", func() (bool, error) { return slices.Contains(l.Addresses("ens5"), added[0]), nil })
			l.AwaitManager(state.Configured)
			l.AwaitConfigured("ens5")
			eni := l.Attach(labtest.HotplugSpec())
			l.AwaitConfigured(eni.ID())
			l.CheckKernel(eni)
			l.CheckArrival(eni)
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			if err := eni.Delete(t.Context()); err != nil {
				t.Fatal(err)
			}
		}
		// Where networkd itself is restarted it is on the bus again.
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.Until("networkd is on the bus", func() (bool, error) {
			_, err := l.Inst.Exec(t.Context(), "busctl", "status", "org.freedesktop.network1")
			return err == nil, nil
		})
		l.Run("ec2netctl", "refresh", "--wait")
		l.AwaitManager(state.Configured)
	})
}

// C10: the daemon is killed at any moment of attaches, assignments and detaches; what
// comes of it is the same as if it had not been.
func TestLabKilled(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.Refreshing(o)
			// Sooner than a user waits, so that it is killed in the middle of things.
			o.Files["/etc/systemd/system/ec2netd.service.d/test.conf"] = "[Service]\nRestartSec=20ms\n"
		})
		l.AwaitConfigured("ens5")
		random := labtest.Seeded(t)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		monitor := l.Monitor("ens5")
		kills := 10
		if labtest.Long() {
			kills = 100
		}
		var second *vpc.ENI
		for n := range kills {
			var err error
			switch {
			case second == nil:
				second = l.Attach(labtest.HotplugSpec())
			case !second.Plugged():
				l.Reattach(second, "")
			case random.IntN(3) == 0:
				l.Detach(second)
			case random.IntN(2) == 0 && len(eni.IPv4()) > 3:
				err = eni.UnassignIPv4(t.Context(), eni.IPv4()[2])
			default:
				_, err = eni.AssignIPv4(t.Context())
			}
			if err != nil {
				t.Fatal(err)
			}
			// The daemon needs a tenth of a second for any of that.
			time.Sleep(time.Duration(random.IntN(150)) * time.Millisecond)
			l.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
			l.Until("it runs again", func() (bool, error) {
				out := l.Run("systemctl", "show", "--property=NRestarts", "--property=ActiveState", "--value", "ec2netd.service")
				return slices.Equal(strings.Fields(out), []string{"active", strconv.Itoa(n + 1)}) ||
					slices.Equal(strings.Fields(out), []string{strconv.Itoa(n + 1), "active"}), nil
			})
		}
		if !second.Plugged() {
			l.Reattach(second, "")
		}
		l.Run("ec2netctl", "refresh", "--wait")
		for _, e := range []*vpc.ENI{eni, second} {
			l.Until(e.ID()+" has its rules", func() (bool, error) {
				return slices.Equal(l.Rules(labtest.TableOf(e)), labtest.Sources(e)), nil
			})
			l.AwaitSettled(e)
		}
		if left := l.Residue(); left != "" {
			t.Errorf("residue: %s", left)
		}
		if events := monitor(); events != "" {
			t.Errorf("events on the primary:\n%s", events)
		}
		l.CountDrops()
		for _, source := range slices.Concat(eni.IPv4(), second.IPv4(), eni.IPv6(), second.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}

// B8: with several ENIs in one subnet a packet leaves by the ENI of its source address,
// after the attach, a restart of networkd, and a boot.
func TestLabOneSubnet(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		families := []string{"-4", "-6"}
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			if suite == "bookworm" {
				// After a boot with several ENIs 252 may take the primary's IPv6 address away,
				// and not bring it back for long.
				o.Primary.Subnet, families = "v4", families[:1]
			}
		})
		l.AwaitConfigured("ens5")
		enis := []*vpc.ENI{l.Inst.Primary()}
		for range 3 {
			enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 2}))
		}
		check := func(when string) {
			t.Helper()
			// networkd is at work for a while after its start.
			l.Until("networkd has configured all "+when, func() (bool, error) {
				list := l.Run("networkctl", "list", "--no-legend", "--no-pager")
				for _, eni := range enis {
					_, line, _ := strings.Cut(list, " "+eni.Name()+" ")
					if fields := strings.Fields(line); len(fields) < 3 || fields[2] != "configured" {
						return false, nil
					}
				}
				return true, nil
			})
			for _, eni := range enis {
				l.AwaitConfigured(eni.ID())
			}
			// The default routes of the main table come last, with the lease and a router's
			// advertisement: those of the primary are used by its addresses.
			l.Until("all have their default routes "+when, func() (bool, error) {
				var out []string
				for _, eni := range enis {
					for _, family := range families {
						out = append(out, l.Run("ip", family, "route", "show", "default", "dev", eni.Name()))
					}
				}
				return !slices.Contains(out, ""), nil
			})
			l.CountDrops()
			var pings []*vpc.Pinger
			var ways []string
			for _, eni := range enis {
				for _, from := range slices.Concat(eni.IPv4(), eni.IPv6()) {
					to := []netip.Addr{vpc.FarIPv4, eni.Subnet().Gateway4()}
					if from.Is6() {
						to = []netip.Addr{vpc.FarIPv6}
					}
					for _, to := range to {
						ping, err := l.Inst.StartPing(t.Context(), from, to, 20*time.Millisecond)
						if err != nil {
							t.Fatal(err)
						}
						pings = append(pings, ping)
						ways = append(ways, fmt.Sprintf("%s from %s to %s", when, from, to))
					}
				}
			}
			for n, ping := range pings {
				l.Until(ways[n]+" has answers", func() (bool, error) { return ping.Result().Received >= 10, nil })
			}
			for _, ping := range pings {
				ping.Stop()
			}
			if t.Failed() {
				t.Logf("%s", l.Run("sh", "-c", "ip addr; ip rule; ip -6 rule; ip route show table all; ip -6 route show table all; ip neigh; ip -6 neigh"))
				t.FailNow()
			}
			l.CheckDrops()
		}
		check("after the attach")
		l.Run("systemctl", "restart", "systemd-networkd.service")
		check("after a restart of networkd")
		if err := l.Inst.Reboot(t.Context()); err != nil {
			t.Fatal(err)
		}
		check("after a boot")
	})
}

// A8: addresses that someone added by hand stay, on 252 until networkd configures their ENI;
// those in a drop-in of the administrator's stay for good on all versions.
func TestLabForeignAddresses(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni, other := l.Attach(vpc.ENISpec{IPv4Count: 2}), l.Attach(vpc.ENISpec{})
		l.AwaitConfigured(eni.ID())
		l.AwaitConfigured(other.ID())
		l.Run("ec2netctl", "refresh", "--wait")
		hand := []netip.Addr{netip.MustParseAddr("192.0.2.77"), netip.MustParseAddr("2001:db8:99::1")}
		kept := netip.MustParseAddr("192.0.2.78")
		l.Run("sh", "-c", "mkdir -p /etc/systemd/network/70-"+eni.Name()+".network.d && printf '[Address]\\nAddress="+kept.String()+"/32\\n' > /etc/systemd/network/70-"+eni.Name()+".network.d/mine.conf && networkctl reload")
		has := func(addresses ...netip.Addr) bool {
			now := l.Addresses(eni.Name())
			return !slices.ContainsFunc(addresses, func(a netip.Addr) bool { return !slices.Contains(now, a) })
		}
		l.Until("the address of the drop-in is there", func() (bool, error) { return has(kept), nil })
		// On 252 networkd replies to a reload before it is done.
		l.Run("ec2netctl", "refresh", "--wait")
		l.Until("networkd is done", func() (bool, error) {
			return strings.Contains(l.Run("networkctl", "status", eni.Name()), "(configured)"), nil
		})
		add := func() {
			l.Run("sh", "-c", "ip addr replace "+hand[0].String()+"/32 dev "+eni.Name()+" && ip addr replace "+hand[1].String()+"/128 dev "+eni.Name()+" nodad")
		}
		add()
		stay := func(what string) {
			t.Helper()
			if !has(append(hand, kept)...) {
				t.Errorf("%s: %s has %v", what, eni.Name(), l.Addresses(eni.Name()))
			}
		}
		// What this daemon does without a change of the ENI's own.
		l.Run("ec2netctl", "refresh", "--wait")
		stay("a refresh")
		if _, err := other.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		stay("a change of another ENI")
		l.Run("networkctl", "reload")
		stay("a reload")
		l.Run("systemctl", "restart", "ec2netd.service")
		l.AwaitConfigured(eni.ID())
		stay("a restart of the daemon")
		// What has networkd configure the ENI: 252 takes them away.
		old := suite == "bookworm"
		for what, change := range map[string]func(){
			"a change of the ENI": func() {
				if _, err := eni.AssignIPv4(t.Context()); err != nil {
					t.Fatal(err)
				}
				l.Run("ec2netctl", "refresh", "--wait")
			},
			"a reconfiguration":     func() { l.Run("networkctl", "reconfigure", eni.Name()) },
			"a restart of networkd": func() { l.Run("systemctl", "restart", "systemd-networkd.service") },
		} {
			add()
			stay("added again")
			change()
			if old {
				l.Until("networkd has taken the addresses away: "+what, func() (bool, error) {
					now := l.Addresses(eni.Name())
					return !slices.Contains(now, hand[0]) && !slices.Contains(now, hand[1]), nil
				})
			}
			l.Until("the address of the drop-in is there: "+what, func() (bool, error) { return has(kept), nil })
			l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured })
			if !old {
				stay(what)
			}
		}
	})
}

// C7: ENIs come and go in quick succession, and nothing piles up. What the loop itself
// starts is counted in TestCycles of service/agent, where each goroutine can be seen.
// Policy rules are not looked at: networkd 257 forgets those that it was just setting
// when the link went (how-it-works.md).
func TestLabCycles(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		random := labtest.Seeded(t)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		l.Detach(eni)
		l.AwaitGone(eni, 1)
		units := func() string {
			return l.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full", "--output=json")
		}
		// Connections to the metadata service are kept for 20 s, and the primary is looked at each
		// 15 s with at most two requests side by side: two are never idle for long enough. Any
		// other is one for the ENI that is gone.
		connections := func() {
			t.Helper()
			l.Until("no connection is left but those that looks at the primary use", func() (bool, error) { return l.Usage().Connections <= 2, nil })
		}
		connections()
		list, files, before := units(), l.Files(), l.Usage()
		there := func() string { return l.Run("sh", "-c", "find /run/systemd/network /run/ec2netd | sort") }
		left := there()
		cycles := 40
		if labtest.Long() {
			cycles = 500
		}
		gap := func() { time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond) }
		for range cycles {
			l.Reattach(eni, "")
			gap()
			l.Detach(eni)
			gap()
		}
		l.AwaitGone(eni, 1)
		if now := l.Files(); now != files {
			t.Errorf("files:\n%s\nbefore:\n%s", now, files)
		}
		if now := there(); now != left {
			t.Errorf("files:\n%s\nbefore:\n%s", now, left)
		}
		l.Until("list-units is as before", func() (bool, error) { return units() == list, nil })
		var after labtest.Usage
		l.Until("no more files are open than before", func() (bool, error) {
			after = l.Usage()
			return after.FDs <= before.FDs, nil
		})
		connections()
		t.Logf("before: %+v, after %d cycles: %+v", before, cycles, after)
		// The Go runtime keeps threads and memory that it once needed.
		if after.Threads > before.Threads+6 || after.RSS > before.RSS+16<<10 {
			t.Errorf("before: %+v, after %d cycles: %+v", before, cycles, after)
		}
		if n := l.Run("systemctl", "show", "--property=NRestarts", "--value", "ec2netd.service"); n != "0" {
			t.Errorf("the daemon was restarted %s times", n)
		}
		l.CheckLog("warning")
		l.Reattach(eni, "")
		l.AwaitSettled(eni)
	})
}
