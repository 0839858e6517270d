package e2e

import (
	"context"
	"encoding/json"
	"errors"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/doctor"
	"ec2netd/service/plan"
	"ec2netd/service/preview"
)

// toolLab is an instance with a secondary ENI, on which the tools are tried.
type toolLab struct {
	*labtest.Lab
	eni *vpc.ENI
}

// run runs a command as root or as an ordinary user, and returns what it prints and its
// exit code.
func (l *toolLab) run(user string, argv ...string) (string, int) {
	l.T.Helper()
	out, err := l.Inst.Run(l.T.Context(), vpc.Command{Argv: argv, User: user})
	var failed *vpc.ExecError
	if errors.As(err, &failed) && failed.ExitCode >= 0 {
		return failed.Stdout + failed.Stderr, failed.ExitCode
	}
	if err != nil {
		l.T.Fatal(err)
	}
	return out, 0
}

// want runs a command that must end with a code and print some texts.
func (l *toolLab) want(user string, code int, texts []string, argv ...string) string {
	l.T.Helper()
	out, got := l.run(user, argv...)
	if got != code {
		l.T.Errorf("%q as %s: exit code %d, want %d:\n%s", argv, user, got, code, out)
	}
	for _, text := range texts {
		if !strings.Contains(out, text) {
			l.T.Errorf("%q as %s: no %q in\n%s", argv, user, text, out)
		}
	}
	return out
}

// write writes a file, which may be larger than an argument of a command can be.
func (l *toolLab) write(path, text string) {
	l.T.Helper()
	// From within: /tmp and /run are the instance's own.
	_, err := l.Inst.Run(l.T.Context(), vpc.Command{
		Argv: []string{"sh", "-c", `umask 022; mkdir -p "$(dirname "$0")" && cat >"$0"`, path}, Stdin: strings.NewReader(text),
	})
	if err != nil {
		l.T.Fatal(err)
	}
}

// TestLabTools: each tool on a real system, as root and as an ordinary user.
func TestLabTools(t *testing.T) { // H5, H6, F3, I1, I6
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) {
			t.Parallel()
			l := &toolLab{Lab: labtest.Boot(t, suite.Name, nil)}
			var err error
			if l.eni, err = l.Inst.Attach(t.Context(), vpc.ENISpec{IPv4Count: 3, PrefixV4Count: 1}); err != nil {
				t.Fatal(err)
			}
			l.want("root", 0, nil, "ec2netctl", "wait-online", "--timeout=60", "-i", l.eni.ID(), "-i", l.Inst.Primary().ID())
			// The metadata tells what is secondary up to a second later.
			for _, late := range []string{l.eni.IPv4()[1].String(), l.eni.IPv4()[2].String(), l.eni.Prefixes()[0].String()} {
				l.Until("status shows "+late, func() (bool, error) {
					out, _ := l.run("root", "ec2netctl", "status", "--no-pager")
					return strings.Contains(out, late), nil
				})
			}
			l.want("root", 0, nil, "ec2netctl", "wait-online", "--timeout=60", "-i", l.eni.ID())
			l.status()
			l.diff()
			l.plan()
			l.monitor()
			l.doctor()
			l.hostname()
		})
	}
}

// status shows the ENI to everybody, and its lines of the journal to root (I1).
func (l *toolLab) status() {
	id, name := l.eni.ID(), l.eni.Name()
	l.want(vpc.OrdinaryUser, 0, []string{id, l.eni.IPv4()[2].String(), "configured"}, "ec2netctl", "status", "--no-pager")
	l.want(vpc.OrdinaryUser, 0, []string{id + "\t" + name}, "ec2netctl", "__complete", "status", "")
	l.Until("the journal has a line about the ENI", func() (bool, error) {
		out := l.want("root", 0, []string{"● " + name + " (" + id + ")", l.eni.MAC().String()}, "ec2netctl", "status", name)
		return strings.Contains(out, " ec2netd["), nil
	})
	out := l.want("root", 0, nil, "ec2netctl", "status", "--lines=0", name)
	if strings.Contains(out, " ec2netd[") {
		l.T.Errorf("--lines=0 shows lines:\n%s", out)
	}
	out = l.want("root", 0, nil, "ec2netctl", "status", l.Inst.Primary().Name())
	if strings.Contains(out, id) {
		l.T.Errorf("the journal of another ENI is shown:\n%s", out)
	}
}

// diff tells of an address that somebody took away, and show of all.
func (l *toolLab) diff() {
	name, address := l.eni.Name(), l.eni.IPv4()[2].String()
	l.same()
	l.want("root", 0, nil, "ip", "address", "del", address+"/32", "dev", name)
	l.Until("diff tells of the address", func() (bool, error) {
		out, code := l.run(vpc.OrdinaryUser, "ec2netctl", "diff", name)
		return code == 1 && strings.Contains(out, "- address "+address), nil
	})
	l.want(vpc.OrdinaryUser, 0, []string{"address " + address, "from " + address + "/32 lookup 10001"}, "ec2netctl", "show", name)
	l.want(vpc.OrdinaryUser, 0, nil, "ec2netctl", "diff", l.Inst.Primary().ID())
	l.want("root", 0, nil, "networkctl", "reconfigure", name)
	l.same()
	// A restarted networkd (257, 262) counts next to nothing as its own.
	l.want("root", 0, nil, "systemctl", "restart", "systemd-networkd.service")
	l.same()
	l.want(vpc.OrdinaryUser, 2, []string{"ec2netd is not there"}, "ec2netctl", "--address=/nonexistent", "diff")
}

// same waits until diff has nothing to tell, but for routes that come with the next router
// advertisement, whenever that is. What networkd calls foreign for good is nothing: it has the
// answer of the kernel to adding it before it hears of it (seen on 257 and 262).
func (l *toolLab) same() {
	l.T.Helper()
	last := ""
	defer func() {
		if l.T.Failed() {
			l.T.Logf("diff says:\n%s", last)
		}
	}()
	l.Until("there is no difference", func() (bool, error) {
		out, code := l.run(vpc.OrdinaryUser, "ec2netctl", "diff")
		last = out
		known := func(line string) bool { return strings.Contains(line, "next router advertisement") }
		some := false
		for line := range strings.Lines(out) {
			if strings.HasPrefix(line, "  ") && !known(line) {
				return false, nil
			}
			some = some || known(line)
		}
		return code == 0 || some, nil
	})
}

// plan says that nothing is to be done, what would be, and the same offline.
func (l *toolLab) plan() {
	for _, user := range []string{"root", vpc.OrdinaryUser} {
		if out := l.want(user, 0, nil, "ec2netctl", "plan"); out != "Nothing would change.\n" {
			l.T.Errorf("plan as %s:\n%s", user, out)
		}
	}
	text := l.want(vpc.OrdinaryUser, 0, []string{l.eni.ID()}, "ec2netctl", "dump-metadata")
	for _, secret := range []string{"user-data", "iam", "token"} {
		if strings.Contains(strings.ToLower(text), secret) {
			l.T.Errorf("the dump has %q:\n%s", secret, text)
		}
	}
	// Elsewhere, without a network and without a daemon.
	l.write("/tmp/dump.json", text)
	offline := l.want("root", 0, nil, "unshare", "--net", "setpriv", "--reuid="+vpc.OrdinaryUser, "--clear-groups", "--regid="+vpc.OrdinaryUser,
		"ec2netctl", "--address=/nonexistent", "plan", "--metadata", "/tmp/dump.json", "--json")
	var planned preview.Plan
	if err := json.Unmarshal([]byte(offline), &planned); err != nil || len(planned.Interfaces) != 2 {
		l.T.Fatalf("%v: %s", err, offline)
	}
	for _, e := range planned.Interfaces {
		found := 0
		for _, f := range e.Files {
			if f.Target != "" {
				if target := strings.TrimSpace(l.want("root", 0, nil, "readlink", f.Path)); target != f.Target {
					l.T.Errorf("%s leads to %s, planned was %s", f.Path, target, f.Target)
				}
				continue
			}
			text := l.want("root", 0, nil, "cat", f.Path)
			found++
			// What the network alone tells, an IPv6 router, comes on top.
			sections := func(text string) []string { return strings.Split(strings.TrimSpace(text), "\n\n") }
			for _, section := range sections(f.Content) {
				if !slices.Contains(sections(text), section) {
					l.T.Errorf("%s does not have the planned\n%s\nbut\n%s", f.Path, section, text)
				}
			}
		}
		if found < 3 {
			l.T.Errorf("%s: %d files were planned", e.Name, found)
		}
	}
	// Something is to be done.
	drop := plan.NetworkDropIn(l.eni.Name())
	l.want("root", 0, nil, "systemctl", "stop", "ec2netd.service", "ec2netd.socket")
	added, err := l.eni.AssignIPv4(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	l.want("root", 0, []string{drop + " (changed)", "+Address=" + added[0].String() + "/32"}, "ec2netctl", "plan")
	l.want("root", 0, nil, "systemctl", "start", "ec2netd.socket", "ec2netd.service")
	l.want("root", 0, nil, "ec2netctl", "refresh", "--wait")
	if out := l.want("root", 0, nil, "ec2netctl", "plan"); out != "Nothing would change.\n" {
		l.T.Errorf("after the refresh plan says:\n%s", out)
	}
}

// monitor tells of an address.
func (l *toolLab) monitor() {
	ctx, cancel := context.WithCancel(l.T.Context())
	defer cancel()
	cmd, err := l.Inst.Command(ctx, vpc.Command{Argv: []string{"sh", "-c", "exec ec2netctl monitor >/tmp/monitor"}, User: vpc.OrdinaryUser})
	if err != nil {
		l.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.T.Fatal(err)
	}
	defer func() {
		cancel()
		_ = cmd.Wait()
	}()
	says := func(text string) func() (bool, error) {
		return func() (bool, error) {
			out, _ := l.run("root", "cat", "/tmp/monitor")
			return strings.Contains(out, text), nil
		}
	}
	l.Until("monitor shows the ENI", says(l.eni.Name()+" ("+l.eni.ID()+"): configured"))
	added, err := l.eni.AssignIPv4(l.T.Context())
	if err != nil {
		l.T.Fatal(err)
	}
	l.want("root", 0, []string{"+ " + added[0].String()}, "ec2netctl", "refresh", "--wait", l.eni.Name())
	l.Until("monitor tells of the address", says("+ "+added[0].String()))
}

// doctor finds what is broken, and nothing else.
func (l *toolLab) doctor() {
	name := l.eni.Name()
	l.Until("there is nothing to do", func() (bool, error) {
		_, code := l.run("root", "ec2netctl", "doctor")
		return code == 0, nil
	})
	l.want("root", 0, []string{"over " + l.Inst.Primary().Name() + " answers in", "over " + name + " answers in", "nothing else configures ENIs"}, "ec2netctl", "doctor")
	l.want(vpc.OrdinaryUser, 0, []string{"as root each way is tried"}, "ec2netctl", "doctor")

	const shadow = "/etc/systemd/network/10-netplan-shadow.network"
	l.write(shadow, "[Match]\nName="+name+"\n[Network]\nDHCP=yes\n")
	l.write("/run/udev/rules.d/99-vpc-policy-routes.rules", "# of the old package\n")
	l.want("root", 0, nil, "systemctl", "disable", "--quiet", "ec2netd.socket")
	l.want("root", 0, nil, "sysctl", "-qw", "net.ipv4.conf."+name+".rp_filter=1")
	l.want("root", 0, nil, "networkctl", "reload")
	l.want("root", 0, nil, "ec2netctl", "refresh")
	l.Until("the ENI is shadowed", func() (bool, error) {
		out, _ := l.run("root", "ec2netctl", "list")
		return strings.Contains(out, "shadowed"), nil
	})
	out := l.want("root", 1, []string{shadow, "amazon-ec2-net-utils", "systemctl preset ec2netd.socket", "net.ipv4.conf." + name + ".rp_filter=2"}, "ec2netctl", "doctor", "--json=short")
	var report struct {
		Problems int
		Findings []doctor.Finding
	}
	if err := json.Unmarshal([]byte(out), &report); err != nil || report.Problems == 0 {
		l.T.Errorf("%v: %s", err, out)
	}
	for _, f := range report.Findings {
		if f.Level != doctor.OK && f.Advice == "" {
			l.T.Errorf("nothing is said about what to do: %+v", f)
		}
	}
	for _, file := range []string{shadow, "/run/udev/rules.d/99-vpc-policy-routes.rules"} {
		l.want("root", 0, nil, "rm", file)
	}
	l.want("root", 0, nil, "systemctl", "preset", "--quiet", "ec2netd.socket")
	l.want("root", 0, nil, "sysctl", "-qw", "net.ipv4.conf."+name+".rp_filter=0")
	l.want("root", 0, nil, "networkctl", "reload")
	l.want("root", 0, nil, "ec2netctl", "refresh", "--wait")
	l.Until("all is well again", func() (bool, error) {
		_, code := l.run("root", "ec2netctl", "doctor")
		return code == 0, nil
	})
	// Without the daemon it says so.
	l.want("root", 0, nil, "systemctl", "stop", "ec2netd.socket", "ec2netd.service")
	said := l.want("root", 1, []string{"does not listen"}, "ec2netctl", "status")
	_, command, found := strings.Cut(strings.TrimSpace(said), "To start it again: ")
	if !found || strings.Contains(command, "\n") {
		l.T.Fatalf("no command: %s", said)
	}
	if out := l.want("root", 1, []string{"does not listen"}, "ec2netctl", "doctor"); !strings.Contains(out, command) {
		l.T.Errorf("doctor does not say %q:\n%s", command, out)
	}
	l.want("root", 0, nil, "sh", "-c", command)
	l.Until("all is well after "+command, func() (bool, error) {
		_, code := l.run("root", "ec2netctl", "doctor")
		return code == 0, nil
	})
}

// hostname comes from the metadata where there is no static one, with and without
// systemd-hostnamed (I6).
func (l *toolLab) hostname() {
	const unit = "ec2netd-hostname.service"
	if out, _ := l.run("root", "systemctl", "is-enabled", unit); strings.TrimSpace(out) != "disabled" {
		l.T.Errorf("after the presets %s is %s", unit, out)
	}
	if out := l.want("root", 0, nil, "systemd-analyze", "verify", "--man=no", unit); strings.TrimSpace(out) != "" {
		l.T.Errorf("systemd-analyze verify: %s", out)
	}
	// I5
	if out, code := l.run("root", "systemd-analyze", "security", "--no-pager", "--threshold=20", unit); code != 0 {
		l.T.Errorf("systemd-analyze security:\n%s", out)
	}
	now := func() string { return strings.TrimSpace(l.want("root", 0, nil, "cat", "/proc/sys/kernel/hostname")) }
	start := func(said string) {
		l.T.Helper()
		l.want("root", 0, nil, "systemctl", "restart", unit)
		l.Until("the unit says that "+said, func() (bool, error) {
			out, _ := l.run("root", "journalctl", "--boot", "--output=cat", "--unit="+unit)
			return strings.Contains(out, said), nil
		})
	}
	before := now()
	start("The hostname stays " + before + ", which is static.")
	if got := now(); got != before {
		l.T.Errorf("the static hostname %s has become %s", before, got)
	}
	want := l.Inst.Metadata().Snapshot()["local-hostname"]
	if want == "" || want == before {
		l.T.Fatalf("the metadata has the hostname %q", want)
	}
	l.want("root", 0, nil, "rm", "/etc/hostname")
	l.want("root", 0, nil, "sysctl", "-qw", "kernel.hostname=nobody")
	start("The hostname is " + want + " now, set by systemd-hostnamed.")
	if got := now(); got != want {
		l.T.Errorf("the hostname is %s, want %s", got, want)
	}
	start("The hostname is " + want + " already.")
	// networkd does not take it away (UseHostname=no in the base unit).
	l.want("root", 0, nil, "networkctl", "renew", l.Inst.Primary().Name())

	l.want("root", 0, nil, "systemctl", "mask", "--quiet", "--now", "systemd-hostnamed.service")
	l.want("root", 0, nil, "sysctl", "-qw", "kernel.hostname=nobody")
	start("The hostname is " + want + " now, set by sethostname(2).")
	if got := now(); got != want {
		l.T.Errorf("the hostname is %s, want %s", got, want)
	}
	l.write("/etc/hostname", "mine\n")
	start("The hostname stays mine, which is static.")
	if got := now(); got != want {
		l.T.Errorf("the hostname is %s", got)
	}
}
