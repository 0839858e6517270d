package e2e

import (
	"errors"
	"os/exec"
	"path"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// buildAttempts builds the program that stands in for the daemon in [TestLabSandbox], and one
// of another kind of machine that it tries to run.
func buildAttempts(t testing.TB) (program, other string) {
	t.Helper()
	dir := t.TempDir()
	program, other = filepath.Join(dir, "attempts"), filepath.Join(dir, "other")
	machine := map[string]string{"amd64": "386", "arm64": "arm"}[runtime.GOARCH]
	for _, build := range []struct{ out, source, machine string }{
		{program, "./testdata/attempts", runtime.GOARCH}, {other, "./testdata/attempts/other", machine},
	} {
		cmd := exec.CommandContext(t.Context(), "go", "build", "-o", build.out, build.source)
		cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOARCH="+build.machine)
		if out, err := cmd.CombinedOutput(); err != nil {
			t.Fatalf("building what tries what the daemon must not: %v\n%s", err, out)
		}
	}
	return program, other
}

// foreignProgram is what the kernels of some virtual machines do for nobody.
const foreignProgram = "run a program of another kind of machine"

// TestLabSandbox: the units pass systemd's own checks, and a program that is started in
// the place of the daemon is refused what the daemon must not do, and nothing that it must.
func TestLabSandbox(t *testing.T) { // I5, J5, J6
	program, other := "", ""
	if !testing.Short() {
		program, other = buildAttempts(t)
	}
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			for _, file := range []string{"/root/secret", "/home/secret", "/srv/secret", "/etc/secret", "/etc/ssh/secret", "/var/lib/secret"} {
				o.Files[file] = "secret\n"
			}
			install := o.Install
			o.Install = func(root string) error {
				if err := install(root); err != nil {
					return err
				}
				return exec.CommandContext(t.Context(), "install", program, other, filepath.Join(root, "/usr/lib/ec2netd")).Run()
			}
		})
		l.AwaitConfigured("ens5")
		shipped, err := filepath.Glob("../../units/ec2netd*.s*")
		if err != nil || len(shipped) < 7 {
			t.Fatalf("units: %v, %v", shipped, err)
		}
		for _, unit := range shipped {
			unit = path.Base(unit)
			if out := l.Run("sh", "-c", "systemd-analyze verify --man=no "+unit+" 2>&1"); out != "" {
				t.Errorf("systemd-analyze verify %s:\n%s", unit, out)
			}
			if strings.HasSuffix(unit, ".socket") {
				continue
			}
			// It fails above the threshold, ten times the figure. Of the file alone it may say
			// something else than of the unit as systemd has it.
			for _, offline := range []string{"no", "yes"} {
				out := l.Run("systemd-analyze", "security", "--threshold=20", "--no-pager", "--offline="+offline, unit)
				t.Log(out[strings.LastIndex(out, "\n")+1:])
			}
		}

		l.Run("chown", "nobody:", "/etc/secret")
		l.Run("chmod", "0600", "/etc/secret")
		l.Run("sh", "-c", "echo secret | tee /tmp/secret /run/credentials/secret /run/log/secret /dev/secret")
		argv := []string{"/usr/lib/ec2netd/attempts", l.Run("systemctl", "show", "--value", "--property=MainPID", "systemd-networkd.service"), "ens5"}
		// What nobody could do proves nothing.
		for line := range strings.Lines(l.Run(argv...)) {
			verb, what, result := attempt(t, line)
			if what == foreignProgram && errors.Is(exec.CommandContext(t.Context(), other).Run(), unix.ENOEXEC) {
				t.Logf("the kernel of this machine cannot %s at all: %s", what, result)
				continue
			}
			if result != "<nil>" {
				t.Errorf("without the sandbox it cannot %s (%s): %s", what, verb, result)
			}
		}
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket", "ec2netd-metrics.socket")
		l.Put("/run/systemd/system/ec2netd.service.d/attempts.conf", "[Service]\nType=oneshot\nNotifyAccess=none\nWatchdogSec=0\nRestart=no\nExecStart=\n"+
			"ExecStart="+strings.Join(argv, " ")+"\nStandardOutput=file:/run/ec2netd/attempts.log\n")
		l.Run("systemctl", "daemon-reload")
		l.Run("systemctl", "start", "ec2netd.service")
		tried := 0
		for line := range strings.Lines(l.Run("cat", "/run/ec2netd/attempts.log")) {
			tried++
			verb, what, result := attempt(t, line)
			if refused := result != "<nil>"; refused != (verb == "must not") {
				t.Errorf("it %s %s: %s", verb, what, result)
			}
		}
		if tried < 60 {
			t.Errorf("it tried %d things", tried)
		}
	})
}

// attempt is one line of what the program printed.
func attempt(t testing.TB, line string) (verb, what, result string) {
	t.Helper()
	field := strings.SplitN(strings.TrimSuffix(line, "\n"), "\t", 3)
	if len(field) != 3 {
		t.Fatalf("not a result: %q", line)
	}
	return field[0], field[1], field[2]
}
