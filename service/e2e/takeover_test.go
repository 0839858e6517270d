package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
	"ec2netd/service/takeover"
)

// interruption is something that comes in the way of a takeover.
type interruption struct {
	name string
	do   func(*labtest.Lab, *labtest.Terminal)
	// vanishes: nobody sees how the takeover ends.
	vanishes bool
}

// interruptions are of three kinds. On each suite one of each kind comes in the way of each step,
// so that on one suite or another each one does.
var interruptions = [][]interruption{
	{
		{"^C", func(_ *labtest.Lab, t *labtest.Terminal) { t.Types("\x03") }, false},
		{"^C twice", func(_ *labtest.Lab, t *labtest.Terminal) { t.Types("\x03"); t.Says("Interrupted."); t.Types("\x03") }, false},
		{"SIGTERM", func(_ *labtest.Lab, t *labtest.Terminal) { t.Signal(unix.SIGTERM) }, false},
	},
	{
		{"hang-up", func(_ *labtest.Lab, t *labtest.Terminal) { t.HangUp() }, true},
		{"kill -9 of the viewer", func(_ *labtest.Lab, t *labtest.Terminal) { t.Signal(unix.SIGKILL) }, true},
	},
	{
		{"kill -9 of the doer", func(l *labtest.Lab, _ *labtest.Terminal) { killTakeover(l, "MainPID") }, false},
		{"kill -9 of the doer and of what puts back", func(l *labtest.Lab, _ *labtest.Terminal) {
			killTakeover(l, "MainPID")
			killTakeover(l, "ControlPID")
		}, false},
	},
}

// killTakeover kills a process of the unit as soon as there is one.
func killTakeover(l *labtest.Lab, property string) {
	l.T.Helper()
	l.Until("the unit has a "+property, func() (bool, error) {
		pid := l.Run("systemctl", "show", "--property="+property, "--value", takeover.Unit)
		if pid == "0" || pid == "" {
			return false, nil
		}
		l.Run("kill", "-9", pid)
		return true, nil
	})
}

// takeoverRecord reads the record of a takeover from outside, where it takes no time.
func takeoverRecord(l *labtest.Lab) takeover.Records {
	l.T.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s/steps", l.Inst.Leader(), takeover.Dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.T.Fatal(err)
	}
	var records takeover.Records
	for line := range bytes.Lines(text) {
		var r takeover.Record
		if err := json.Unmarshal(line, &r); err == nil {
			records = append(records, r)
		}
	}
	return records
}

// beginTakeover begins one on a terminal, and waits until a step is reached.
func beginTakeover(l *labtest.Lab, step takeover.Step, args ...string) *labtest.Terminal {
	l.T.Helper()
	term := l.OnTerminal(vpc.Command{Argv: append([]string{"ec2netctl", "takeover"}, args...)})
	term.Says("[y/N]")
	term.Types("y\n")
	l.Until("the takeover is at "+string(step), func() (bool, error) { return takeoverRecord(l).Began(step), nil })
	return term
}

// interrupted interrupts takeovers that cannot succeed, in each kind of way at each step, and
// checks that what ran before is back each time.
func interrupted(l *labtest.Lab, steps []takeover.Step, back func()) {
	l.T.Helper()
	suite := slices.IndexFunc(vpc.Suites, func(s vpc.Suite) bool { return s.Name == l.Inst.Suite() })
	l.Put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
	for n, step := range steps {
		for _, kind := range interruptions {
			i := kind[(n+suite)%len(kind)]
			what := fmt.Sprintf("%s at %s", i.name, step)
			term := beginTakeover(l, step, "--timeout=2s")
			i.do(l, term)
			began := time.Now()
			if !i.vanishes {
				if code := term.Wait(); code != 1 || !strings.Contains(term.Text(), "what ran before runs again") {
					l.T.Errorf("%s: exit code %d, and it says\n%s", what, code, term.Text())
				}
			}
			l.Until(what+": the unit is gone", func() (bool, error) {
				return l.Run("systemctl", "show", "--property=LoadState", "--value", takeover.Unit) == "not-found", nil
			})
			if i.vanishes {
				// Nobody was told: the next one is.
				term.Wait()
				if out := l.Fails("ec2netctl", "takeover"); !strings.Contains(out, "no terminal to ask on") {
					l.T.Errorf("%s: takeover without a terminal: %s", what, out)
				}
			}
			back()
			l.T.Logf("%s: back after %v", what, time.Since(began).Round(10*time.Millisecond))
			if left := l.Run("sh", "-c", "ls -d "+takeover.Dir+" 2>/dev/null || :"); left != "" {
				l.T.Errorf("%s: %s is left", what, left)
			}
		}
	}
	l.Run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
}

// TestLabTakeoverInterrupted: a takeover from NetworkManager that is interrupted at any step by
// anything gives back what was there; one that loses its terminal and can succeed does.
func TestLabTakeoverInterrupted(t *testing.T) { // J3
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			onNetworkManager(o)
		})
		ownedByNetworkManager(l)
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")

		// It asks, and takes nothing but yes for an answer.
		if out := l.Fails("ec2netctl", "takeover"); !strings.Contains(out, "takeover --yes") {
			t.Errorf("takeover without a terminal: %s", out)
		}
		for _, answer := range []string{"\n", "n\n", "\x04"} {
			term := l.OnTerminal(vpc.Command{Argv: []string{"ec2netctl", "takeover"}})
			term.Says("[y/N]")
			term.Types(answer)
			if code := term.Wait(); code != 1 || !strings.Contains(term.Text(), "nothing was changed") {
				t.Errorf("takeover, answered %q: exit code %d:\n%s", answer, code, term.Text())
			}
		}
		back := func() {
			l.T.Helper()
			ownedByNetworkManager(l)
			if left := l.Run("sh", "-c", "ls -A /run/systemd/network 2>/dev/null || :"); left != "" {
				l.T.Errorf("in /run/systemd/network there is %s", left)
			}
			for _, unit := range []string{"ec2netd.service", "ec2netd.socket", "systemd-networkd.service"} {
				if state := l.Run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
					l.T.Errorf("%s is %s", unit, state)
				}
			}
			l.Until("its policy rule is there", func() (bool, error) { return strings.Contains(l.Run("ip", "rule"), "lookup 30400"), nil })
		}
		interrupted(l, []takeover.Step{takeover.Stop, takeover.Flush, takeover.Start, takeover.Wait}, back)
		killedForGood(l, back)

		// The end of a session, in which everything of the session may be killed.
		term := beginTakeover(l, takeover.Flush)
		if group := l.Run("systemctl", "show", "--property=ControlGroup", "--value", takeover.Unit); group != "/system.slice/"+takeover.Unit {
			t.Errorf("what does the takeover is in %s", group)
		}
		term.HangUp()
		networkManagerGoes(l)
		l.AwaitConfigured("ens5")
		l.Until("the unit is gone", func() (bool, error) {
			return l.Run("systemctl", "show", "--property=LoadState", "--value", takeover.Unit) == "not-found", nil
		})
		if out := l.Run("ec2netctl", "takeover"); !strings.Contains(out, "The ENIs are configured, as after a boot.") {
			t.Errorf("after a takeover without a terminal, takeover says %s", out)
		}
		onNetworkd(l, "70-ens5.network")
		sudoGainsNothing(l)
	})
}

// networkManagerGoes waits until NetworkManager does not run.
func networkManagerGoes(l *labtest.Lab) {
	l.T.Helper()
	l.Until("NetworkManager does not run", func() (bool, error) {
		return l.Run("sh", "-c", "systemctl is-active NetworkManager.service || :") == "inactive", nil
	})
}

// withAnother adds an address to those that cloud-init wrote, beside one that EC2 has withdrawn: it
// stays, and the other one comes back with it, until it is removed as the reason says. In a drop-in,
// as the reason says too, it stays alone.
func withAnother(l *labtest.Lab, file string, withdrawn netip.Addr) {
	l.T.Helper()
	const yaml = "/etc/netplan/50-cloud-init.yaml"
	another := withdrawn.Next().Next().Next()
	add, source, apply := `s#^\( *\)- .*%s/\([0-9]*\).*#&\n\1- "%s/\2"#`, yaml, "netplan generate && networkctl reload"
	if strings.HasPrefix(file, "/etc/") {
		add, source, apply = `s#^Address=%s/\([0-9]*\).*#&\n\n[Address]\nAddress=%s/\1#`, file, "networkctl reload"
	}
	l.Run("sed", "-i", fmt.Sprintf(add, withdrawn, another), source)
	l.Reloads(apply)
	if err := l.Inst.AwaitAddrs(l.T.Context(), "ens5", another, withdrawn); err != nil {
		l.T.Fatal(err)
	}
	advised := l.AwaitENI("ens5", func(i *state.Interface) bool { return strings.HasPrefix(i.Reason, file+" has "+another.String()+", ") })
	if advised.State != state.ENIConfigured || !strings.Contains(advised.Reason, apply) {
		l.T.Errorf("%s: %s", advised.State, advised.Reason)
	}
	_, dir, _ := strings.Cut(advised.Reason, "have what you need in a drop-in in ")
	dropIn := path.Join(dir, "mine.conf")
	// As it is in the file: networkd never finishes with a link that has it with two lengths.
	l.Put(dropIn, "[Address]\nAddress="+l.Run("grep", "--only-matching", another.String()+"/[0-9]*", source)+"\n")
	l.Run("sed", "-i", "/"+strings.ReplaceAll(another.String(), ".", `\.`)+"/d", source)
	l.Reloads(apply)
	l.AwaitNoAddress("ens5", withdrawn)
	l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
	kept := func() bool { return l.HasAddress("ens5", another) }
	for _, then := range []string{"true", "networkctl reload", "networkctl reconfigure ens5", "systemctl restart ec2netd.service"} {
		l.Reloads(then)
		l.AwaitConfigured("ens5")
		// networkd 262 takes an address for somebody else's that goes from its files while it configures the link.
		networkdIsDone(l, "ens5")
		l.Until(another.String()+" stays after "+then, func() (bool, error) { return kept(), nil })
	}
	l.Run("rm", dropIn)
	l.Reload()
	l.Until(another.String()+" is gone", func() (bool, error) { return !kept(), nil })
	primaryWhole(l)
}

// networkdIsDone waits until networkd has nothing to do with a link: while it configures one it sets
// it up.
func networkdIsDone(l *labtest.Lab, name string) {
	l.T.Helper()
	l.Until("networkd is done with "+name, func() (bool, error) {
		_, err := l.Inst.Exec(l.T.Context(), "sh", "-c", "! grep -qE 'ADMIN_STATE=(pending|initialized|configuring)' /run/systemd/netif/links/$(cat /sys/class/net/"+name+"/ifindex)")
		return err == nil, nil
	})
}

// TestLabTakeoverCloudInitNetworkd: what withAnother checks, where cloud-init writes networkd's file itself.
func TestLabTakeoverCloudInitNetworkd(t *testing.T) { // F8
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		if suite == "bookworm" {
			return // a drop-in cannot take an address of the file away there
		}
		const stock = "cloud-init-networkd"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
			o.Primary.IPv4Count = 2
		})
		file, primary := stockFile[stock], l.Inst.Primary()
		onNetworkd(l, file)
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		l.Run("ec2netctl", "takeover", "--yes")
		primaryThere(l)
		withdrawn := primary.IPv4()[1]
		l.Refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		l.AwaitNoAddress("ens5", withdrawn)
		withAnother(l, file, withdrawn)
	})
}

// TestLabTakeoverCloudInit: an image that cloud-init configures is taken over without a reboot, as
// a reboot would, with the file that cloud-init had made; or it gets back what it had. From then on
// cloud-init leaves the network alone.
func TestLabTakeoverCloudInit(t *testing.T) { // I2, F8
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		const stock = "cloud-init-netplan"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
			o.Primary.IPv4Count = 2
		})
		file, primary := stockFile[stock], l.Inst.Primary()
		// udevd uses netplan's .link file from the second boot on.
		onNetworkd(l, file)
		l.Reboot()
		onNetworkd(l, file)
		written := ofCloudInit(l)
		generated := l.Run("sh", "-c", "ls -A /run/systemd/network")
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		if out := l.Run("ec2netctl", "takeover", "--dry-run"); !strings.Contains(out, "ec2netd.service") || !strings.Contains(out, "Would restart systemd-networkd.service") {
			t.Errorf("takeover --dry-run:\n%s", out)
		}

		// The lease would be lost, and an ENI without is not configured.
		const failing = "/etc/systemd/network/10-netplan-ens5.network.d/zz.conf"
		l.Put(failing, "[Network]\nDHCP=no\n")
		if out := l.Fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		l.Run("rm", failing)
		l.Run("networkctl", "reload")
		onNetworkd(l, file)
		if now := l.Run("sh", "-c", "ls -A /run/systemd/network"); now != generated {
			t.Errorf("a takeover that failed leaves in /run/systemd/network\n%s\nbefore:\n%s", now, generated)
		}
		keepsCloudInit(l, false, "after a takeover that failed")
		ofTakeover(l, "ens5")
		if err := l.Inst.AwaitAddrs(t.Context(), "ens5", slices.Concat(primary.IPv4(), primary.IPv6())...); err != nil {
			t.Fatal(err)
		}

		cost := l.Measured(primary, func() { t.Log(l.Run("ec2netctl", "takeover", "--yes")) })
		// 252 has to set the links anew, see install.md.
		if suite != "bookworm" && !cost.None() {
			t.Errorf("the takeover cost the primary %s", cost)
		}
		if primaryThere(l); l.Addresses("ens5")[0] != primary.IPv4()[0] {
			// 252 sets up what stands in cloud-init's file, and brings the lease: whichever is the
			// first. Only removing the other address would mend that (A3), so the state tells.
			reason := l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured }).Reason
			if suite != "bookworm" || !strings.Contains(reason, "the first address of the link is "+primary.IPv4()[1].String()) {
				t.Errorf("the first address of the primary is %s: %s", l.Addresses("ens5")[0], reason)
			}
		}
		keepsCloudInit(l, true, "after the takeover")
		if now := ofCloudInit(l); now != written {
			t.Errorf("there is of cloud-init\n%s\nbefore:\n%s", now, written)
		}
		// It stands in the file, and not in force.
		withdrawn := primary.IPv4()[1]
		if text := l.Run("cat", file); !strings.Contains(text, "Address="+withdrawn.String()+"/") {
			t.Errorf("cloud-init has written\n%s", text)
		}
		l.Refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		if suite == "bookworm" {
			// A drop-in cannot take it away there. The advice helps.
			advised := l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIOverridden })
			if !strings.HasPrefix(advised.Reason, file+" keeps what the ENI has no more (Address="+withdrawn.String()) ||
				!strings.HasSuffix(advised.Reason, "run netplan generate && networkctl reload") {
				t.Errorf("the reason: %s", advised.Reason)
			}
			l.Run("sh", "-ec", "sed -i '/addresses:/d; /"+withdrawn.String()+"/d' /etc/netplan/50-cloud-init.yaml; netplan generate && networkctl reload")
		}
		l.AwaitNoAddress("ens5", withdrawn)
		primaryWhole(l)
		if suite != "bookworm" {
			withAnother(l, file, withdrawn)
		}
		asAfterBoot(l, file, "ens5")
		var eni *vpc.ENI
		if cost := l.Measured(primary, func() {
			eni = l.Attach(labtest.HotplugSpec())
			l.AwaitConfigured(eni.ID())
			awaitCloudInit(l)
		}); !cost.None() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		l.AwaitSettled(eni)
	})
}

// TestLabTakeoverSeveral: with several ENIs that cloud-init has configured, each with its metric, the
// takeover costs the primary no packet either.
func TestLabTakeoverSeveral(t *testing.T) { // J3
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		if suite == "bookworm" {
			return // cloud-init 22.4 does not configure an ENI that comes later
		}
		const stock = "cloud-init-netplan"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
		})
		primary := l.Inst.Primary()
		onNetworkd(l, stockFile[stock])
		eni := l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1})
		l.Until("cloud-init has "+eni.Name()+" configured", func() (bool, error) {
			routes := l.Run("ip", "-4", "route", "show", "default", "dev", eni.Name(), "proto", "dhcp")
			return routes != "" && l.HasAddress(eni.Name(), eni.IPv4()[0]), nil
		})
		awaitCloudInit(l)
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		if cost := l.Measured(primary, func() { t.Log(l.Run("ec2netctl", "takeover", "--yes")) }); !cost.None() {
			t.Errorf("the takeover cost the primary %s", cost)
		}
		primaryWhole(l)
		l.AwaitComplete(eni, eni.Name())
		ofTakeover(l, "ens5", eni.Name())
		for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.PingFrom(address)
		}
	})
}

// ofTakeover is what a takeover and a boot have to agree on: IPv4 addresses in their order,
// IPv6 addresses, routes and rules of all tables, names, files with what is in them, and what
// runs. Not, for IPv6, whether a route is advertised or static: a boot begins with the router
// that the last one knew, and on 252 with static addresses.
func ofTakeover(l *labtest.Lab, enis ...string) []string {
	l.T.Helper()
	text := map[string]bool{}
	for _, family := range []string{"-4", "-6"} {
		var all []struct {
			labtest.Route
			Table string
		}
		l.JSON(&all, "ip", "-j", "-N", family, "route", "show", "table", "all")
		for _, r := range all {
			if r.Table == "" { // ip leaves it out for main
				r.Table = "254"
			}
			if r.Protocol == "2" && r.Gateway != "" {
				l.T.Errorf("a route stands in yet: %+v", r)
			}
			// 2 is the kernel's protocol: these come with the addresses.
			if !slices.Contains(enis, r.Dev) || r.Protocol == "2" {
				continue
			}
			line := fmt.Sprintf("route %s via %s dev %s table %s", r.Dst, r.Gateway, r.Dev, r.Table)
			if family == "-4" {
				line += fmt.Sprintf(" metric %d", r.Metric)
			}
			text[line] = true
		}
	}
	out := slices.Sorted(maps.Keys(text))
	for _, name := range enis {
		addresses := l.Addresses(name)
		four := slices.DeleteFunc(slices.Clone(addresses), netip.Addr.Is6)
		out = append(out, fmt.Sprintf("%s: %v %v", name, four, labtest.Sorted(slices.DeleteFunc(addresses, netip.Addr.Is4))),
			l.Run("sh", "-c", "ip -6 address show dev "+name+" scope link | awk '/inet6/ {print $2}'; ip link show "+name+" | grep altname | sort; resolvectl dns "+name))
	}
	return append(out, strings.Split(l.Run("sh", "-c", "ip -4 rule | sort; ip -6 rule | sort; cd /run/systemd/network && find . -printf '%p %l\n' | sort && "+
		`find . -type f | sort | xargs awk 'FNR == 1 {skip = 0} /^#/ {next} /^\[/ {skip = $0 == "[Route]" || $0 ~ /v6/; next} /:/ || /^(DHCP|AddPrefixRoute|DuplicateAddressDetection)=/ {next} !skip && NF {print FILENAME, $0}'; `+
		"for u in NetworkManager.service systemd-resolved.service ec2netd.service $(cd /usr/lib/systemd/system && ls ec2netd*.socket systemd-networkd*.socket systemd-networkd.service); do "+
		"echo $u $(systemctl is-active $u); done"), "\n")...)
}

// TestLabTakeover: a system of NetworkManager's is taken over without a reboot, as a reboot
// would, and gets back what it had if the ENIs do not come up.
func TestLabTakeover(t *testing.T) { // I2
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			onNetworkManager(o)
		})
		ownedByNetworkManager(l)
		ruleOfNetworkManager := func() bool { return strings.Contains(l.Run("ip", "rule"), "lookup 30400") }
		if !ruleOfNetworkManager() || len(l.Routes("-4", "30400")) == 0 {
			t.Errorf("NetworkManager has set no policy rule, or no route: %s", l.Run("ip", "rule"))
		}
		l.Attach(vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		advised := l.CommandsIn(l.ToHaveIt(l.Fails("ec2netctl", "status")))[0]
		if out := l.Run("ec2netctl", "takeover", "--dry-run"); !strings.Contains(out, "Would stop NetworkManager") || !strings.Contains(out, "ec2netd.service") {
			t.Errorf("takeover --dry-run:\n%s", out)
		}
		ownedByNetworkManager(l)

		l.Put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
		if out := l.Fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		if left := l.Run("sh", "-c", "ls /run/systemd/network"); left != "" {
			t.Errorf("a takeover that failed leaves in /run/systemd/network\n%s", left)
		}
		ownedByNetworkManager(l)
		if state := l.Run("sh", "-c", "systemctl is-active ec2netd.service || :"); state != "inactive" {
			t.Errorf("after a takeover that failed ec2netd is %s", state)
		}
		l.Until("its policy rule is there again", func() (bool, error) { return ruleOfNetworkManager(), nil })
		l.Run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
		if again := l.CommandsIn(l.ToHaveIt(l.Fails("ec2netctl", "status")))[0]; again != advised {
			t.Errorf("after a takeover that failed status advises %s, before it %s", again, advised)
		}

		takenOverByTwo(l, advised)
		networkManagerIsOff(l)
		asAfterBoot(l, "70-ens5.network", "ens5", "ens6")
	})
}

// asAfterBoot checks that a boot makes nothing of some ENIs, the primary first, that a takeover
// has not made of them. File is what networkd uses for the primary.
func asAfterBoot(l *labtest.Lab, file string, enis ...string) {
	l.T.Helper()
	state := func(want []string) (got []string) {
		l.T.Helper()
		for _, name := range enis {
			l.AwaitConfigured(name)
		}
		onNetworkd(l, file)
		var last string
		l.UntilOr("the state is what it is after a takeover", func() (bool, error) {
			got = ofTakeover(l, enis...)
			last = cmp.Diff(want, got)
			if want != nil {
				return last == "", nil
			}
			// A router is known when it has advertised itself.
			for i, name := range enis {
				route := "route default via fe80::ec2:1 dev " + name + " table "
				if !slices.Contains(got, route+"254") || (i > 0 && !slices.Contains(got, route+"10001")) {
					return false, nil
				}
			}
			return true, nil
		}, &last)
		return got
	}
	taken := state(nil)
	if !slices.ContainsFunc(taken, func(line string) bool {
		first, _, _ := strings.Cut(strings.TrimPrefix(line, "ens5: ["), "]")
		first, _, _ = strings.Cut(first, " ")
		return strings.HasPrefix(line, "ens5: [") && first == l.Inst.Primary().IPv4()[0].String()
	}) {
		l.T.Errorf("the primary address is not the first: %q", taken)
	}
	l.Reboot()
	state(taken)
}

// sudoGainsNothing checks that a user who may run ec2netctl as root, with an environment of their
// own choice, can do nothing else as root by it (J4).
func sudoGainsNothing(l *labtest.Lab) {
	l.T.Helper()
	const evil = "/tmp/evil"
	l.Run("sh", "-c", `
		mkdir -m 1777 `+evil+`
		for name in less more pager journalctl systemctl networkctl sh id open; do
			printf '#!/bin/sh\n/usr/bin/id -u >>`+evil+`/ran-$(/usr/bin/basename "$0")\n' >`+evil+`/$name
			chmod 755 `+evil+`/$name
		done
		printf '#env\nLESSOPEN=|`+evil+`/open %%s\n#command\nx shell `+evil+`/sh\\n\n' >`+evil+`/.lesskey
		printf 'Defaults:ec2-user !env_reset, !secure_path, !requiretty\nec2-user ALL=(root) NOPASSWD: /usr/bin/ec2netctl\n' >/etc/sudoers.d/lab
		chmod 440 /etc/sudoers.d/lab`)
	env := []string{
		"TERM=xterm", "PATH=" + evil + ":/usr/bin:/bin", "HOME=" + evil, "PAGER=" + evil + "/more", "SYSTEMD_PAGER=" + evil + "/pager",
		"SYSTEMD_PAGERSECURE=0", "SYSTEMD_LESS=RSXM", "SYSTEMD_LESSCHARSET=" + evil, "LESSSECURE=0", "LESSSECURE_ALLOW=shell,edit,examine,logfile",
		"LESSOPEN=|" + evil + "/open %s", "LESSKEYIN=" + evil + "/.lesskey", "LESSHISTFILE=" + evil + "/ran-history", "EDITOR=" + evil + "/sh",
		"VISUAL=" + evil + "/sh", "SHELL=" + evil + "/sh", "TERMINFO=" + evil, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + evil + "/bus",
	}
	sudo := func(args ...string) *labtest.Terminal {
		l.T.Helper()
		return l.OnTerminal(vpc.Command{User: vpc.OrdinaryUser, Env: env, Argv: append([]string{"/usr/bin/sudo", "-n", "/usr/bin/ec2netctl"}, args...)})
	}
	nothing := func(when string, term *labtest.Terminal) {
		l.T.Helper()
		if gained := l.Run("sh", "-c", "ls -d "+evil+"/ran-* /tmp/gained* 2>/dev/null || :"); gained != "" {
			l.T.Errorf("%s: as root there ran, or was written, %s", when, gained)
		}
		if strings.Contains(term.Text(), "root:") {
			l.T.Errorf("%s: /etc/shadow is shown:\n%s", when, term.Text())
		}
	}
	id := l.Inst.Primary().ID()

	term := sudo("status", "ens5")
	term.Says(id)
	pid := ""
	l.Until("less runs", func() (bool, error) {
		pid = l.Run("sh", "-c", "pidof less || :")
		return pid != "" && !strings.Contains(pid, " "), nil
	})
	of := strings.Split(l.Run("sh", "-c", "tr '\\0' '\\n' </proc/"+pid+"/environ; readlink /proc/"+pid+"/exe"), "\n")
	if exe := of[len(of)-1]; exe != "/usr/bin/less" {
		l.T.Errorf("the pager is %s", exe)
	}
	if have := strings.Join(of, "\n"); !strings.Contains(have, "LESSSECURE=1") || strings.Contains(have, evil) {
		l.T.Errorf("the pager has the environment\n%s", have)
	}
	for _, keys := range []string{"!/usr/bin/touch /tmp/gained\n", "|./usr/bin/tee /tmp/gained\n", "s/tmp/gained-log\n", "v", "x", ":e /etc/shadow\n", "#/etc/shadow\n", "q"} {
		term.Types(keys)
		if keys != "q" {
			term.Types("\n")
		}
	}
	if code := term.Wait(); code != 0 {
		l.T.Errorf("status with a pager: exit code %d:\n%s", code, term.Text())
	}
	nothing("with less", term)

	// Where there is no less there is no pager.
	l.Run("mv", "/usr/bin/less", "/usr/bin/less-away")
	term = sudo("status", "ens5")
	term.Says(id)
	if code := term.Wait(); code != 0 {
		l.T.Errorf("status without less: exit code %d:\n%s", code, term.Text())
	}
	nothing("without less", term)
	l.Run("mv", "/usr/bin/less-away", "/usr/bin/less")

	// The command that an ordinary user is told of does what they wanted.
	refused := l.OnTerminal(vpc.Command{User: vpc.OrdinaryUser, Argv: []string{"/usr/bin/ec2netctl", "refresh"}})
	refused.Says("Run: ")
	if code := refused.Wait(); code != 1 {
		l.T.Errorf("refresh as an ordinary user: exit code %d:\n%s", code, refused.Text())
	}
	_, command, _ := strings.Cut(refused.Text(), "Run: ")
	command, _, _ = strings.Cut(strings.ReplaceAll(command, "\r", ""), "\n")
	if !strings.HasPrefix(command, "sudo ") {
		l.T.Errorf("refresh as an ordinary user says %q", command)
	}
	l.AsUser("sh", "-c", command)

	term = sudo("plan", "--metadata", "/etc/shadow")
	if code := term.Wait(); code == 0 || !strings.Contains(term.Text(), "/etc/shadow is no metadata dump") {
		l.T.Errorf("plan of /etc/shadow: exit code %d:\n%s", code, term.Text())
	}
	nothing("plan of /etc/shadow", term)
}
