package e2e

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// What holds under attack (J1).
const (
	// attackedRSS bounds the daemon's memory, in KiB.
	attackedRSS = 40 << 10
	// restedRSS and restedFDs are by how much more of it, and of open files, there may be
	// after an attack than before: the Go runtime keeps some of what it once needed, and
	// connections to the metadata service stay open for a while.
	restedRSS = 12 << 10
	restedFDs = 4
	// promptly is when a Refresh of root is answered at the latest.
	promptly = time.Second
	// strayTime is what 2000 signals that are not the daemon's may cost it in processor
	// time. With hundreds of passes they cost 0.9 s.
	strayTime = 400 * time.Millisecond
)

// attackProgram is where the program of testdata/attack is in the instance.
const attackProgram = "/usr/local/lib/attack"

// buildAttack builds the program that attacks the daemon in [TestLabTrust].
func buildAttack(t testing.TB) string {
	t.Helper()
	program := filepath.Join(t.TempDir(), "attack")
	cmd := exec.CommandContext(t.Context(), "go", "build", "-o", program, "./testdata/attack")
	cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0")
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("building the program that attacks the daemon: %v\n%s", err, out)
	}
	return program
}

// TestLabTrust has an unprivileged user try all that a local user can do against the
// daemon, one attack after the other. Throughout, it is the same process, it stays small,
// root's calls are answered at once, and an ENI that is attached becomes configured.
func TestLabTrust(t *testing.T) { // J1
	program := ""
	if !testing.Short() {
		program = buildAttack(t)
	}
	// One after the other, unlike in [labtest.EachSuite]: an attack takes what processor it can get,
	// and how soon root is answered is to be the daemon's affair.
	each := func(test func(t *testing.T, suite string)) {
		for _, suite := range vpc.Suites {
			t.Run(suite.Name, func(t *testing.T) { test(t, suite.Name) })
		}
	}
	each(func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			install := o.Install
			o.Install = func(root string) error {
				if err := install(root); err != nil {
					return err
				}
				return exec.CommandContext(t.Context(), "install", "-D", program, filepath.Join(root, attackProgram)).Run()
			}
		})
		l.AwaitConfigured("ens5")
		tried, healthy := 0, true
		for line := range strings.Lines(l.Run(attackProgram, "list")) {
			name, what, _ := strings.Cut(strings.TrimSpace(line), "\t")
			t.Run(name, func(t *testing.T) {
				t.Log(what)
				sub := l.With(t)
				if !healthy {
					// What a former attack has done must not count against this one.
					sub.Run("sh", "-c", "systemctl reset-failed ec2netd.service; systemctl restart ec2netd.service")
				}
				healthy = false
				withstands(sub, name)
				healthy = !t.Failed()
			})
			tried++
		}
		if tried < 20 {
			t.Errorf("%d attacks were tried", tried)
		}
		t.Run("stray-passes", func(t *testing.T) {
			ignoresStray(l.With(t))
		})
		t.Run("activation", func(t *testing.T) {
			staysDisabled(l.With(t))
		})
	})
}

// runAttack runs one attack as an unprivileged user, and returns what it printed. It is the
// kernel that shares the processor among users; the attack leaves it to the others, so that
// what is measured is what the daemon makes of the messages.
func runAttack(ctx context.Context, l *labtest.Lab, name, pid string) (string, error) {
	out, err := l.Inst.Exec(ctx, slices.Concat([]string{"nice", "-n", "19"}, asNobody(), []string{attackProgram, name, pid})...)
	return strings.TrimSpace(out), err
}

// asNobody begins a command that is run as a user who may do nothing.
func asNobody() []string {
	return []string{"setpriv", "--reuid=65534", "--regid=65534", "--clear-groups", "--inh-caps=-all", "--no-new-privs", "--"}
}

// invocationOf tells one run of the daemon from any other.
func invocationOf(l *labtest.Lab) string {
	l.T.Helper()
	return l.Run("systemctl", "show", "--property=MainPID,InvocationID,NRestarts,ActiveState", "ec2netd.service")
}

// withstands checks what holds while one attack runs, and after it.
func withstands(l *labtest.Lab, name string) {
	t := l.T
	t.Helper()
	l.AwaitConfigured("ens5")
	before, usage, cpu := invocationOf(l), l.Usage(), l.CPU(labtest.DaemonGroup)
	peak := resetPeak(l)

	pid, done := l.DaemonPID(), make(chan struct{})
	var said string
	var attackErr error
	go func() {
		defer close(done)
		said, attackErr = runAttack(t.Context(), l, name, pid)
	}()
	refreshed := refreshUntil(l)
	eni := l.Attach(vpc.ENISpec{IPv4Count: 2})
	defer func() {
		if t.Failed() {
			_ = eni.Detach(context.WithoutCancel(t.Context())) // it may be detached already
		}
	}()
	configuredUnder(l, eni)
	cycles := 1
	for ; !closed(done); cycles++ {
		l.Detach(eni)
		l.AwaitGone(eni, 1)
		l.Reattach(eni, "")
		configuredUnder(l, eni)
	}
	root := refreshed()
	// The tools of root have their answer too.
	l.Run("busctl", "--timeout=20", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", "false")
	l.Run("ec2netctl", "refresh", "--timeout=20s")
	l.Detach(eni)

	t.Logf("%s; an ENI was configured %d times; root's %d refreshes took %v at most over D-Bus, %v over Varlink; the daemon took %v of processor time; %s",
		said, cycles, root.count, root.dbus.Round(time.Millisecond), root.byVarlink.Round(time.Millisecond), (l.CPU(labtest.DaemonGroup) - cpu).Round(time.Millisecond), peak())
	if attackErr != nil {
		t.Errorf("what everybody may do is not as it should be: %v", attackErr)
	}
	if now := invocationOf(l); now != before {
		t.Errorf("the daemon was\n%s\nand is\n%s", before, now)
	}
	if root.err != nil {
		t.Errorf("a refresh of root failed: %v", root.err)
	}
	if max(root.dbus, root.byVarlink) > promptly {
		t.Errorf("a refresh of root took %v over D-Bus, %v over Varlink", root.dbus, root.byVarlink)
	}
	if rss := l.OfDaemon("VmHWM", false); rss >= attackedRSS {
		t.Errorf("the daemon had %d KiB", rss)
	}
	l.AwaitGone(eni, 1)
	awaitRest(l, usage)
}

func closed(done <-chan struct{}) bool {
	select {
	case <-done:
		return true
	default:
		return false
	}
}

// configuredUnder waits until an ENI is configured. It asks as root, over Varlink, which
// the attack must not keep from being answered.
func configuredUnder(l *labtest.Lab, eni *vpc.ENI) {
	l.T.Helper()
	l.Until(eni.ID()+" is configured", func() (bool, error) {
		out, err := l.Inst.Exec(l.T.Context(), "ec2netctl", "status", "--json=short", eni.ID())
		// Before the daemon knows the ENI that is an error.
		return err == nil && strings.Contains(out, `"state":"configured"`), nil
	})
}

// answers are what came of root's calls: how many there were over each of D-Bus and
// Varlink, and the slowest.
type answers struct {
	count           int
	dbus, byVarlink time.Duration
	err             error
}

// refreshUntil has root refresh all the time; the returned function ends that.
func refreshUntil(l *labtest.Lab) func() answers {
	l.T.Helper()
	cmd, err := l.Inst.Command(l.T.Context(), vpc.Command{Argv: []string{attackProgram, "probe"}})
	if err != nil {
		l.T.Fatal(err)
	}
	var out strings.Builder
	cmd.Stdout, cmd.Stderr = &out, &out
	stdin, err := cmd.StdinPipe()
	if err != nil {
		l.T.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		l.T.Fatal(err)
	}
	return func() (a answers) {
		_ = stdin.Close()
		if err := cmd.Wait(); err != nil {
			a.err = fmt.Errorf("%w: %s", err, &out)
			return a
		}
		var dbus, varlink string
		if _, a.err = fmt.Sscan(out.String(), &a.count, &dbus, &varlink); a.err == nil {
			a.dbus, a.err = time.ParseDuration(dbus)
		}
		if a.err == nil {
			a.byVarlink, a.err = time.ParseDuration(varlink)
		}
		return a
	}
}

// resetPeak has the kernel forget the most memory that the daemon has had; the returned
// function tells of it.
func resetPeak(l *labtest.Lab) func() string {
	l.T.Helper()
	procs, err := os.ReadFile(l.Inst.Path("/sys/fs/cgroup/" + labtest.DaemonGroup + "/cgroup.procs"))
	if err != nil {
		l.T.Fatal(err)
	}
	for pid := range strings.FieldsSeq(string(procs)) {
		// 5: see proc_pid_clear_refs(5).
		if err := os.WriteFile("/proc/"+pid+"/clear_refs", []byte("5"), 0); err != nil {
			l.T.Fatal(err)
		}
	}
	return func() string {
		return fmt.Sprintf("the daemon had %d KiB at most and has %d", l.OfDaemon("VmHWM", false), l.OfDaemon("VmRSS", false))
	}
}

// awaitRest waits until the daemon holds no more than before.
func awaitRest(l *labtest.Lab, before labtest.Usage) {
	l.T.Helper()
	last := ""
	l.UntilOr("the daemon holds no more than before", func() (bool, error) {
		now := l.Usage()
		last = fmt.Sprintf("before: %+v, after: %+v", before, now)
		return now.FDs <= before.FDs+restedFDs && now.RSS <= before.RSS+restedRSS && now.Threads <= before.Threads+6, nil
	}, &last)
}

// ignoresStray checks that signals which are not the daemon's make it do nothing.
func ignoresStray(l *labtest.Lab) {
	l.T.Helper()
	l.AwaitConfigured("ens5")
	before := l.CPU(labtest.DaemonGroup)
	said, err := runAttack(l.T.Context(), l, "stray", l.DaemonPID())
	if err != nil {
		l.T.Error(err)
	}
	took := l.CPU(labtest.DaemonGroup) - before
	l.T.Logf("%s: the daemon took %v of processor time", said, took)
	if took > strayTime {
		l.T.Errorf("2000 signals cost the daemon %v", took)
	}
}

// staysDisabled checks that nobody can start a daemon that the administrator has disabled.
func staysDisabled(l *labtest.Lab) { // F9
	l.T.Helper()
	l.Run("systemctl", "disable", "--now", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
	said := l.Fails(slices.Concat(asNobody(), []string{
		"busctl", "--timeout=5", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe",
	})...)
	if !strings.Contains(said, "org.ec2netd1") && !strings.Contains(said, "activat") {
		l.T.Errorf("a call by nobody to the disabled daemon: %s", said)
	}
	if got := l.Run("sh", "-c", "systemctl is-active ec2netd.service || true"); got != "inactive" {
		l.T.Errorf("after a call by nobody the disabled daemon is %s", got)
	}
}
