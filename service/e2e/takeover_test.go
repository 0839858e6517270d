package e2e

import (
	"bytes"
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net/netip"
	"os"
	"os/exec"
	"path"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
	"ec2netd/service/takeover"
)

// terminal is a pseudo-terminal with a program in an instance whose controlling terminal it is,
// as sshd makes them.
type terminal struct {
	l      *lab
	master *os.File
	cmd    *exec.Cmd
	ended  chan error
	// drained is closed when everything has been read that was printed.
	drained chan struct{}

	mu   sync.Mutex
	said bytes.Buffer
}

// onTerminal starts a program on a terminal.
func (l *lab) onTerminal(c vpc.Command) *terminal {
	l.t.Helper()
	master, err := os.OpenFile("/dev/ptmx", os.O_RDWR|unix.O_NOCTTY|unix.O_NONBLOCK, 0)
	if err != nil {
		l.t.Fatalf("making a terminal: %v", err)
	}
	var number int
	raw, err := master.SyscallConn()
	if err == nil {
		err = errors.Join(raw.Control(func(fd uintptr) {
			if err = unix.IoctlSetPointerInt(int(fd), unix.TIOCSPTLCK, 0); err == nil {
				number, err = unix.IoctlGetInt(int(fd), unix.TIOCGPTN)
			}
		}), err)
	}
	if err != nil {
		l.t.Fatalf("making a terminal: %v", err)
	}
	slave, err := os.OpenFile("/dev/pts/"+strconv.Itoa(number), os.O_RDWR|unix.O_NOCTTY, 0)
	if err != nil {
		l.t.Fatalf("opening the terminal: %v", err)
	}
	defer slave.Close()
	// setsid makes the program the leader of a session of that terminal, so that nsenter gets
	// no signal of it.
	c.Interactive, c.Argv = true, append([]string{"setsid", "--ctty", "--wait"}, c.Argv...)
	cmd, err := l.inst.Command(l.t.Context(), c)
	if err != nil {
		l.t.Fatal(err)
	}
	cmd.Stdin, cmd.Stdout, cmd.Stderr = slave, slave, slave
	cmd.SysProcAttr = &unix.SysProcAttr{Setsid: true}
	if err := cmd.Start(); err != nil {
		l.t.Fatal(err)
	}
	term := &terminal{l: l, master: master, cmd: cmd, ended: make(chan error, 1), drained: make(chan struct{})}
	go func() {
		defer close(term.drained)
		buffer := make([]byte, 4096)
		for {
			n, err := master.Read(buffer)
			term.mu.Lock()
			term.said.Write(buffer[:n])
			term.mu.Unlock()
			if err != nil {
				return
			}
		}
	}()
	go func() { term.ended <- cmd.Wait() }()
	l.t.Cleanup(term.hangUp)
	return term
}

// text is what was printed so far.
func (t *terminal) text() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return strings.ReplaceAll(t.said.String(), "\r\n", "\n")
}

// says waits until something is on the terminal.
func (t *terminal) says(what string) {
	t.l.t.Helper()
	t.l.until("the terminal says "+what, func() (bool, error) {
		if strings.Contains(t.text(), what) {
			return true, nil
		}
		select {
		case err := <-t.ended:
			t.ended <- err
			return strings.Contains(t.text(), what), fmt.Errorf("it ended and said %q: %w", t.text(), cmp.Or(err, io.EOF))
		default:
			return false, nil
		}
	})
}

func (t *terminal) types(keys string) {
	t.l.t.Helper()
	if _, err := io.WriteString(t.master, keys); err != nil {
		t.l.t.Fatal(err)
	}
}

// hangUp is what the end of an SSH connection does.
func (t *terminal) hangUp() { _ = t.master.Close() }

// signal sends a signal to the program; nsenter is its parent.
func (t *terminal) signal(s unix.Signal) {
	t.l.t.Helper()
	pid := t.cmd.Process.Pid
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/task/%[1]d/children", pid))
	if err == nil {
		pid, err = strconv.Atoi(strings.TrimSpace(string(text)))
	}
	if err == nil {
		err = unix.Kill(pid, s)
	}
	if err != nil {
		t.l.t.Fatalf("sending %v to the program on the terminal: %v", s, err)
	}
}

// wait waits for the end of the program and returns its exit code, -1 for a signal.
func (t *terminal) wait() int {
	t.l.t.Helper()
	select {
	case err := <-t.ended:
		t.ended <- err
		<-t.drained
		var exit *exec.ExitError
		if err != nil && !errors.As(err, &exit) {
			t.l.t.Fatal(err)
		}
		return t.cmd.ProcessState.ExitCode()
	case <-time.After(patience):
		t.l.t.Fatalf("the program on the terminal does not end; it said %q", t.text())
		return -1
	}
}

// interruption is something that comes in the way of a takeover.
type interruption struct {
	name string
	do   func(*lab, *terminal)
	// vanishes: nobody sees how the takeover ends.
	vanishes bool
}

// interruptions are of three kinds. On each suite one of each kind comes in the way of each step,
// so that on one suite or another each one does.
var interruptions = [][]interruption{
	{
		{"^C", func(_ *lab, t *terminal) { t.types("\x03") }, false},
		{"^C twice", func(_ *lab, t *terminal) { t.types("\x03"); t.says("Interrupted."); t.types("\x03") }, false},
		{"SIGTERM", func(_ *lab, t *terminal) { t.signal(unix.SIGTERM) }, false},
	},
	{
		{"hang-up", func(_ *lab, t *terminal) { t.hangUp() }, true},
		{"kill -9 of the viewer", func(_ *lab, t *terminal) { t.signal(unix.SIGKILL) }, true},
	},
	{
		{"kill -9 of the doer", func(l *lab, _ *terminal) { l.killTakeover("MainPID") }, false},
		{"kill -9 of the doer and of what puts back", func(l *lab, _ *terminal) {
			l.killTakeover("MainPID")
			l.killTakeover("ControlPID")
		}, false},
	},
}

// killTakeover kills a process of the unit as soon as there is one.
func (l *lab) killTakeover(property string) {
	l.t.Helper()
	l.until("the unit has a "+property, func() (bool, error) {
		pid := l.run("systemctl", "show", "--property="+property, "--value", takeover.Unit)
		if pid == "0" || pid == "" {
			return false, nil
		}
		l.run("kill", "-9", pid)
		return true, nil
	})
}

// takeoverRecord reads the record of a takeover from outside, where it takes no time.
func (l *lab) takeoverRecord() takeover.Records {
	l.t.Helper()
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/root%s/steps", l.inst.Leader(), takeover.Dir))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		l.t.Fatal(err)
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
func (l *lab) beginTakeover(step takeover.Step, args ...string) *terminal {
	l.t.Helper()
	term := l.onTerminal(vpc.Command{Argv: append([]string{"ec2netctl", "takeover"}, args...)})
	term.says("[y/N]")
	term.types("y\n")
	l.until("the takeover is at "+string(step), func() (bool, error) { return l.takeoverRecord().Began(step), nil })
	return term
}

// interrupted interrupts takeovers that cannot succeed, in each kind of way at each step, and
// checks that what ran before is back each time.
func (l *lab) interrupted(steps []takeover.Step, back func()) {
	l.t.Helper()
	suite := slices.IndexFunc(vpc.Suites, func(s vpc.Suite) bool { return s.Name == l.inst.Suite() })
	l.put("/etc/systemd/network/80-ec2.network.d/zz.conf", "[Network]\nDHCP=no\n")
	for n, step := range steps {
		for _, kind := range interruptions {
			i := kind[(n+suite)%len(kind)]
			what := fmt.Sprintf("%s at %s", i.name, step)
			term := l.beginTakeover(step, "--timeout=2s")
			i.do(l, term)
			began := time.Now()
			if !i.vanishes {
				if code := term.wait(); code != 1 || !strings.Contains(term.text(), "what ran before runs again") {
					l.t.Errorf("%s: exit code %d, and it says\n%s", what, code, term.text())
				}
			}
			l.until(what+": the unit is gone", func() (bool, error) {
				return l.run("systemctl", "show", "--property=LoadState", "--value", takeover.Unit) == "not-found", nil
			})
			if i.vanishes {
				// Nobody was told: the next one is.
				term.wait()
				if out := l.fails("ec2netctl", "takeover"); !strings.Contains(out, "no terminal to ask on") {
					l.t.Errorf("%s: takeover without a terminal: %s", what, out)
				}
			}
			back()
			l.t.Logf("%s: back after %v", what, time.Since(began).Round(10*time.Millisecond))
			if left := l.run("sh", "-c", "ls -d "+takeover.Dir+" 2>/dev/null || :"); left != "" {
				l.t.Errorf("%s: %s is left", what, left)
			}
		}
	}
	l.run("rm", "/etc/systemd/network/80-ec2.network.d/zz.conf")
}

// TestLabTakeoverInterrupted: a takeover from NetworkManager that is interrupted at any step by
// anything gives back what was there; one that loses its terminal and can succeed does.
func TestLabTakeoverInterrupted(t *testing.T) { // J3
	eachSuite(t, func(t *testing.T, suite string) {
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Primary.IPv4Count = 2
			onNetworkManager(o)
		})
		l.ownedByNetworkManager()
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")

		// It asks, and takes nothing but yes for an answer.
		if out := l.fails("ec2netctl", "takeover"); !strings.Contains(out, "takeover --yes") {
			t.Errorf("takeover without a terminal: %s", out)
		}
		for _, answer := range []string{"\n", "n\n", "\x04"} {
			term := l.onTerminal(vpc.Command{Argv: []string{"ec2netctl", "takeover"}})
			term.says("[y/N]")
			term.types(answer)
			if code := term.wait(); code != 1 || !strings.Contains(term.text(), "nothing was changed") {
				t.Errorf("takeover, answered %q: exit code %d:\n%s", answer, code, term.text())
			}
		}
		back := func() {
			l.t.Helper()
			l.ownedByNetworkManager()
			if left := l.run("sh", "-c", "ls -A /run/systemd/network 2>/dev/null || :"); left != "" {
				l.t.Errorf("in /run/systemd/network there is %s", left)
			}
			for _, unit := range []string{"ec2netd.service", "ec2netd.socket", "systemd-networkd.service"} {
				if state := l.run("sh", "-c", "systemctl is-active "+unit+" || :"); state != "inactive" {
					l.t.Errorf("%s is %s", unit, state)
				}
			}
			l.until("its policy rule is there", func() (bool, error) { return strings.Contains(l.run("ip", "rule"), "lookup 30400"), nil })
		}
		l.interrupted([]takeover.Step{takeover.Stop, takeover.Flush, takeover.Start, takeover.Wait}, back)
		l.killedForGood(back)

		// The end of a session, in which everything of the session may be killed.
		term := l.beginTakeover(takeover.Flush)
		if group := l.run("systemctl", "show", "--property=ControlGroup", "--value", takeover.Unit); group != "/system.slice/"+takeover.Unit {
			t.Errorf("what does the takeover is in %s", group)
		}
		term.hangUp()
		l.networkManagerGoes()
		l.configured("ens5")
		l.until("the unit is gone", func() (bool, error) {
			return l.run("systemctl", "show", "--property=LoadState", "--value", takeover.Unit) == "not-found", nil
		})
		if out := l.run("ec2netctl", "takeover"); !strings.Contains(out, "The ENIs are configured, as after a boot.") {
			t.Errorf("after a takeover without a terminal, takeover says %s", out)
		}
		l.onNetworkd("70-ens5.network")
		l.sudoGainsNothing()
	})
}

// networkManagerGoes waits until NetworkManager does not run.
func (l *lab) networkManagerGoes() {
	l.t.Helper()
	l.until("NetworkManager does not run", func() (bool, error) {
		return l.run("sh", "-c", "systemctl is-active NetworkManager.service || :") == "inactive", nil
	})
}

// withAnother adds an address to those that cloud-init wrote, beside one that EC2 has withdrawn: it
// stays, and the other one comes back with it, until it is removed as the reason says. In a drop-in,
// as the reason says too, it stays alone.
func (l *lab) withAnother(file string, withdrawn netip.Addr) {
	l.t.Helper()
	const yaml = "/etc/netplan/50-cloud-init.yaml"
	another := withdrawn.Next().Next().Next()
	add, source, apply := `s#^\( *\)- .*%s/\([0-9]*\).*#&\n\1- "%s/\2"#`, yaml, "netplan generate && networkctl reload"
	if strings.HasPrefix(file, "/etc/") {
		add, source, apply = `s#^Address=%s/\([0-9]*\).*#&\n\n[Address]\nAddress=%s/\1#`, file, "networkctl reload"
	}
	l.run("sed", "-i", fmt.Sprintf(add, withdrawn, another), source)
	l.reloads(apply)
	if err := l.inst.AwaitAddrs(l.t.Context(), "ens5", another, withdrawn); err != nil {
		l.t.Fatal(err)
	}
	advised := l.reaches("ens5", func(i *state.Interface) bool { return strings.HasPrefix(i.Reason, file+" has "+another.String()+", ") })
	if advised.State != state.ENIConfigured || !strings.Contains(advised.Reason, apply) {
		l.t.Errorf("%s: %s", advised.State, advised.Reason)
	}
	_, dir, _ := strings.Cut(advised.Reason, "have what you need in a drop-in in ")
	dropIn := path.Join(dir, "mine.conf")
	// As it is in the file: networkd never finishes with a link that has it with two lengths.
	l.put(dropIn, "[Address]\nAddress="+l.run("grep", "--only-matching", another.String()+"/[0-9]*", source)+"\n")
	l.run("sed", "-i", "/"+strings.ReplaceAll(another.String(), ".", `\.`)+"/d", source)
	l.reloads(apply)
	l.until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.addresses("ens5"), withdrawn), nil })
	l.reaches("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
	kept := func() bool { return slices.Contains(l.addresses("ens5"), another) }
	for _, then := range []string{"true", "networkctl reload", "networkctl reconfigure ens5", "systemctl restart ec2netd.service"} {
		l.reloads(then)
		l.configured("ens5")
		// networkd 262 takes an address for somebody else's that goes from its files while it configures the link.
		l.networkdIsDone("ens5")
		l.until(another.String()+" stays after "+then, func() (bool, error) { return kept(), nil })
	}
	l.run("rm", dropIn)
	l.reload()
	l.until(another.String()+" is gone", func() (bool, error) { return !kept(), nil })
	l.primaryWhole()
}

// networkdIsDone waits until networkd has nothing to do with a link: while it configures one it sets
// it up.
func (l *lab) networkdIsDone(name string) {
	l.t.Helper()
	l.until("networkd is done with "+name, func() (bool, error) {
		_, err := l.inst.Exec(l.t.Context(), "sh", "-c", "! grep -qE 'ADMIN_STATE=(pending|initialized|configuring)' /run/systemd/netif/links/$(cat /sys/class/net/"+name+"/ifindex)")
		return err == nil, nil
	})
}

// TestLabTakeoverCloudInitNetworkd: what withAnother checks, where cloud-init writes networkd's file itself.
func TestLabTakeoverCloudInitNetworkd(t *testing.T) { // F8
	oneSuite(t, func(t *testing.T, suite string) {
		if suite == "bookworm" {
			return // a drop-in cannot take an address of the file away there
		}
		const stock = "cloud-init-networkd"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
			o.Primary.IPv4Count = 2
		})
		file, primary := stockFile[stock], l.inst.Primary()
		l.onNetworkd(file)
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		l.run("ec2netctl", "takeover", "--yes")
		l.primaryThere()
		withdrawn := primary.IPv4()[1]
		l.refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		l.until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.addresses("ens5"), withdrawn), nil })
		l.withAnother(file, withdrawn)
	})
}

// TestLabTakeoverCloudInit: an image that cloud-init configures is taken over without a reboot, as
// a reboot would, with the file that cloud-init had made; or it gets back what it had. From then on
// cloud-init leaves the network alone.
func TestLabTakeoverCloudInit(t *testing.T) { // I2, F8
	eachSuite(t, func(t *testing.T, suite string) {
		const stock = "cloud-init-netplan"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
			o.Primary.IPv4Count = 2
		})
		file, primary := stockFile[stock], l.inst.Primary()
		// udevd uses netplan's .link file from the second boot on.
		l.onNetworkd(file)
		l.reboot()
		l.onNetworkd(file)
		written := l.ofCloudInit()
		generated := l.run("sh", "-c", "ls -A /run/systemd/network")
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		if out := l.run("ec2netctl", "takeover", "--dry-run"); !strings.Contains(out, "ec2netd.service") || !strings.Contains(out, "Would restart systemd-networkd.service") {
			t.Errorf("takeover --dry-run:\n%s", out)
		}

		// The lease would be lost, and an ENI without is not configured.
		const failing = "/etc/systemd/network/10-netplan-ens5.network.d/zz.conf"
		l.put(failing, "[Network]\nDHCP=no\n")
		if out := l.fails("ec2netctl", "takeover", "--yes", "--timeout=5s"); !strings.Contains(out, "what ran before runs again") {
			t.Errorf("a takeover that fails: %s", out)
		}
		l.run("rm", failing)
		l.run("networkctl", "reload")
		l.onNetworkd(file)
		if now := l.run("sh", "-c", "ls -A /run/systemd/network"); now != generated {
			t.Errorf("a takeover that failed leaves in /run/systemd/network\n%s\nbefore:\n%s", now, generated)
		}
		l.keepsCloudInit(false, "after a takeover that failed")
		l.ofTakeover("ens5")
		if err := l.inst.AwaitAddrs(t.Context(), "ens5", slices.Concat(primary.IPv4(), primary.IPv6())...); err != nil {
			t.Fatal(err)
		}

		cost := l.measured(primary, func() { t.Log(l.run("ec2netctl", "takeover", "--yes")) })
		// 252 has to set the links anew, see install.md.
		if suite != "bookworm" && !cost.none() {
			t.Errorf("the takeover cost the primary %s", cost)
		}
		if l.primaryThere(); l.addresses("ens5")[0] != primary.IPv4()[0] {
			// 252 sets up what stands in cloud-init's file, and brings the lease: whichever is the
			// first. Only removing the other address would mend that (A3), so the state tells.
			reason := l.reaches("ens5", func(i *state.Interface) bool { return i.State == state.ENIConfigured }).Reason
			if suite != "bookworm" || !strings.Contains(reason, "the first address of the link is "+primary.IPv4()[1].String()) {
				t.Errorf("the first address of the primary is %s: %s", l.addresses("ens5")[0], reason)
			}
		}
		l.keepsCloudInit(true, "after the takeover")
		if now := l.ofCloudInit(); now != written {
			t.Errorf("there is of cloud-init\n%s\nbefore:\n%s", now, written)
		}
		// It stands in the file, and not in force.
		withdrawn := primary.IPv4()[1]
		if text := l.run("cat", file); !strings.Contains(text, "Address="+withdrawn.String()+"/") {
			t.Errorf("cloud-init has written\n%s", text)
		}
		l.refreshed(func() error { return primary.UnassignIPv4(t.Context(), withdrawn) })
		if suite == "bookworm" {
			// A drop-in cannot take it away there. The advice helps.
			advised := l.reaches("ens5", func(i *state.Interface) bool { return i.State == state.ENIOverridden })
			if !strings.HasPrefix(advised.Reason, file+" keeps what the ENI has no more (Address="+withdrawn.String()) ||
				!strings.HasSuffix(advised.Reason, "run netplan generate && networkctl reload") {
				t.Errorf("the reason: %s", advised.Reason)
			}
			l.run("sh", "-ec", "sed -i '/addresses:/d; /"+withdrawn.String()+"/d' /etc/netplan/50-cloud-init.yaml; netplan generate && networkctl reload")
		}
		l.until(withdrawn.String()+" is gone", func() (bool, error) { return !slices.Contains(l.addresses("ens5"), withdrawn), nil })
		l.primaryWhole()
		if suite != "bookworm" {
			l.withAnother(file, withdrawn)
		}
		l.asAfterBoot(file, "ens5")
		var eni *vpc.ENI
		if cost := l.measured(primary, func() {
			eni = l.attach(hotplugSpec())
			l.configured(eni.ID())
			l.hooked()
		}); !cost.none() {
			t.Errorf("attaching an ENI cost the primary %s", cost)
		}
		l.settled(eni)
	})
}

// TestLabTakeoverSeveral: with several ENIs that cloud-init has configured, each with its metric, the
// takeover costs the primary no packet either.
func TestLabTakeoverSeveral(t *testing.T) { // J3
	oneSuite(t, func(t *testing.T, suite string) {
		if suite == "bookworm" {
			return // cloud-init 22.4 does not configure an ENI that comes later
		}
		const stock = "cloud-init-netplan"
		l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = nil
			o.Stock = stock
		})
		primary := l.inst.Primary()
		l.onNetworkd(stockFile[stock])
		eni := l.attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: 1})
		l.until("cloud-init has "+eni.Name()+" configured", func() (bool, error) {
			routes := l.run("ip", "-4", "route", "show", "default", "dev", eni.Name(), "proto", "dhcp")
			return routes != "" && slices.Contains(l.addresses(eni.Name()), eni.IPv4()[0]), nil
		})
		l.hooked()
		l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		if cost := l.measured(primary, func() { t.Log(l.run("ec2netctl", "takeover", "--yes")) }); !cost.none() {
			t.Errorf("the takeover cost the primary %s", cost)
		}
		l.primaryWhole()
		l.complete(eni, eni.Name())
		l.ofTakeover("ens5", eni.Name())
		for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.pingFrom(address)
		}
	})
}
