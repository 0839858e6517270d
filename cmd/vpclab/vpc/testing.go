package vpc

import (
	"bytes"
	"fmt"
	"hash/fnv"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
)

// RequireForTest skips a test that boots instances if it cannot run: with -short, since it
// is not a unit test, and without root. In CI (the environment variable of that name) it
// fails without root: a skipped test proves nothing.
func RequireForTest(t testing.TB) {
	t.Helper()
	if testing.Short() {
		t.Skip("this test boots instances: run it without -short, as root")
	}
	if os.Geteuid() != 0 {
		const how = "this test boots instances in network namespaces and needs root; run it with: sudo -E go test -run '^%s$'"
		if os.Getenv("CI") != "" {
			t.Fatalf(how, t.Name())
		}
		t.Skipf(how, t.Name())
	}
}

// ForTest creates a VPC for a test that [RequireForTest] does not skip, and closes it at the
// end of the test. Its default seed depends on the name of the test and on the environment
// variable EC2NETD_SEED, so that a test behaves the same each time unless that variable
// changes.
func ForTest(t testing.TB, opts Options) *VPC {
	t.Helper()
	RequireForTest(t)
	if opts.Logf == nil {
		opts.Logf = t.Logf
	}
	if opts.Seed == 0 {
		opts.Seed = seedForTest(t)
	}
	v, err := New(t.Context(), opts)
	if err != nil {
		t.Fatalf("making a VPC: %v", err)
	}
	t.Cleanup(func() {
		if err := v.Close(); err != nil {
			t.Errorf("closing the VPC: %v", err)
		}
	})
	return v
}

func seedForTest(t testing.TB) uint64 {
	t.Helper()
	hash := fnv.New64a()
	fmt.Fprintf(hash, "%s %d", t.Name(), ChanceForTest(t))
	return hash.Sum64()
}

// ChanceForTest returns the seed of all random decisions of a test: EC2NETD_SEED, or 1. It
// logs the seed.
func ChanceForTest(t testing.TB) uint64 {
	t.Helper()
	seed := uint64(1)
	if text := os.Getenv("EC2NETD_SEED"); text != "" {
		var err error
		if seed, err = strconv.ParseUint(text, 10, 64); err != nil {
			t.Fatalf("EC2NETD_SEED: %v", err)
		}
	}
	t.Logf("EC2NETD_SEED=%d", seed)
	return seed
}

// BootForTest creates an instance and boots it. If the test fails, it adds the instance's
// journal to the test's log.
func BootForTest(t testing.TB, v *VPC, opts InstanceOptions) *Instance {
	t.Helper()
	inst, err := v.NewInstance(t.Context(), opts)
	if err != nil {
		t.Fatalf("making an instance: %v", err)
	}
	t.Cleanup(func() {
		if t.Failed() && inst.Running() {
			journal, err := inst.Journal(v.life, "--boot", "--lines=200", "--output=short-precise")
			t.Logf("journal of %s (%v):\n%s", inst.id, err, journal)
		}
	})
	if err := inst.Boot(t.Context()); err != nil {
		t.Fatal(err)
	}
	return inst
}

// StageForTest returns an installation of ec2netd for [InstallTree]: the directory in
// EC2NETD_STAGE, or else one of the test's own, built from the sources by "make stage": two
// tests that build in one place would disturb each other.
func StageForTest(t testing.TB) string {
	t.Helper()
	if dir := os.Getenv("EC2NETD_STAGE"); dir != "" {
		return dir
	}
	module, err := exec.CommandContext(t.Context(), "go", "env", "GOMOD").Output()
	if err != nil {
		t.Fatalf("looking for the sources of ec2netd: %v", err)
	}
	root, dir := filepath.Dir(string(bytes.TrimSpace(module))), filepath.Join(t.TempDir(), "stage")
	if out, err := exec.CommandContext(t.Context(), "make", "-C", root, "stage", "STAGE="+dir).CombinedOutput(); err != nil {
		t.Fatalf("make stage: %v\n%s", err, out)
	}
	return dir
}

// TracesForTest lists the traces of a lab on this machine: files, mounts, namespaces,
// cgroups, and processes that are still running.
func TracesForTest(t testing.TB, stateDir, name string, pids ...int) []string {
	t.Helper()
	var found []string
	dir, netns := filepath.Join(stateDir, name), filepath.Join(namesDir, netnsName(name))
	for _, path := range []string{dir, netns} {
		if _, err := os.Lstat(path); err == nil {
			found = append(found, path)
		}
	}
	mounts, err := os.ReadFile("/proc/self/mountinfo")
	if err != nil {
		t.Fatal(err)
	}
	for line := range strings.Lines(string(mounts)) {
		if strings.Contains(line, dir+"/") || strings.Contains(line, netnsName(name)) {
			found = append(found, "mount "+strings.TrimSpace(line))
		}
	}
	glob := func(pattern string) []string {
		paths, err := filepath.Glob(pattern)
		if err != nil {
			t.Fatal(err)
		}
		return paths
	}
	for _, above := range []string{"", "*", "*/*"} {
		found = append(found, glob(filepath.Join("/sys/fs/cgroup", above, "vpclab-"+name))...)
	}
	for _, pid := range pids {
		if _, err := startTime(pid); err == nil && !zombie(pid) {
			found = append(found, fmt.Sprintf("process %d", pid))
		}
	}
	// Any process that has the lab's directory as its root or in its mounts.
	for _, path := range glob("/proc/[0-9]*/mountinfo") {
		if text, err := os.ReadFile(path); err == nil && strings.Contains(string(text), dir+"/") {
			found = append(found, path)
		}
	}
	return found
}
