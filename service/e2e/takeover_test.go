package e2e

import (
	"bytes"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path"
	"slices"
	"strings"
	"testing"
	"time"

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
	l.Until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.Addresses("ens5"), withdrawn), nil })
	l.AwaitENI("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
	kept := func() bool { return slices.Contains(l.Addresses("ens5"), another) }
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
		l.Until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.Addresses("ens5"), withdrawn), nil })
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
		l.Until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.Addresses("ens5"), withdrawn), nil })
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
			return routes != "" && slices.Contains(l.Addresses(eni.Name()), eni.IPv4()[0]), nil
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
