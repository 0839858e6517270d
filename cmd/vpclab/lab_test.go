package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// asCommand makes this test binary act as vpclab.
const asCommand = "VPCLAB_TEST_COMMAND"

func TestMain(m *testing.M) {
	if os.Getenv(asCommand) != "" {
		os.Exit(run())
	}
	m.Run()
}

// command is vpclab as a user runs it, on one lab.
type command struct {
	t    *testing.T
	name string
}

// try runs vpclab and returns what it printed, and its exit status.
func (c command) try(args ...string) (stdout, stderr string, status int) {
	c.t.Helper()
	self, err := os.Executable()
	if err != nil {
		c.t.Fatal(err)
	}
	ctx, cancel := context.WithTimeout(context.WithoutCancel(c.t.Context()), time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, self, append([]string{"--name=" + c.name}, args...)...)
	cmd.Env = append(os.Environ(), asCommand+"=yes")
	var out, errOut bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &errOut
	err = cmd.Run()
	var exit *exec.ExitError
	if err != nil && !errors.As(err, &exit) || ctx.Err() != nil {
		c.t.Fatalf("vpclab %q: %v: %s", args, err, &errOut)
	}
	return out.String(), errOut.String(), cmd.ProcessState.ExitCode()
}

// run runs vpclab, which must succeed, and returns its output.
func (c command) run(args ...string) string {
	c.t.Helper()
	stdout, stderr, status := c.try(args...)
	if status != 0 {
		c.t.Fatalf("vpclab %q: exit status %d: %s", args, status, stderr)
	}
	return stdout
}

// fails runs vpclab, which must end with an exit status and print some words to stderr.
func (c command) fails(want int, says string, args ...string) {
	c.t.Helper()
	if _, stderr, status := c.try(args...); status != want || !strings.Contains(stderr, says) {
		c.t.Errorf("vpclab %q: exit status %d, want %d; it says %q, want %q", args, status, want, stderr, says)
	}
}

// says runs vpclab, which must succeed and print some words.
func (c command) says(words []string, args ...string) {
	c.t.Helper()
	out := c.run(args...)
	for _, w := range words {
		if !strings.Contains(out, w) {
			c.t.Errorf("vpclab %q does not say %q: %s", args, w, out)
		}
	}
}

// status is the output of status --json.
func (c command) status() vpc.Status {
	c.t.Helper()
	var s vpc.Status
	if err := json.Unmarshal([]byte(c.run("status", "--json")), &s); err != nil || len(s.Instances) != 1 {
		c.t.Fatalf("status --json: %+v, %v", s, err)
	}
	return s
}

// instance is the instance in the output of status --json.
func (c command) instance() vpc.InstanceStatus {
	c.t.Helper()
	return c.status().Instances[0]
}

// up starts the lab, and returns its process and the instance's systemd.
func (c command) up(flags ...string) (pids []int) {
	c.t.Helper()
	c.says([]string{"(trixie) is up", "vpclab --name " + c.name + " down"}, append([]string{"up", "--suite=trixie"}, flags...)...)
	c.t.Cleanup(func() {
		if _, err := os.Stat(labDir(c.name)); err == nil { // the test has failed
			c.try("down")
			c.try("down", "--all-stale")
		}
	})
	var record struct{ PID int }
	text, err := os.ReadFile(filepath.Join(labDir(c.name), "lab.json"))
	if err := errors.Join(err, json.Unmarshal(text, &record)); err != nil || record.PID < 2 {
		c.t.Fatalf("the lab's process is %d: %v", record.PID, err)
	}
	return []int{record.PID, c.instance().Leader}
}

// gone checks that nothing of the lab is left; a process may still be ending.
func (c command) gone(pids ...int) {
	c.t.Helper()
	ctx, cancel := context.WithTimeout(c.t.Context(), 10*time.Second)
	defer cancel()
	var left []string
	err := vpc.Until(ctx, "nothing is left", func() (bool, error) {
		left = vpc.TracesForTest(c.t, vpc.DefaultStateDir, c.name, pids...)
		return !slices.ContainsFunc(left, func(s string) bool { return strings.HasPrefix(s, "process ") }), nil
	})
	if err != nil || len(left) > 0 {
		c.t.Errorf("left: %v, %v", left, err)
	}
}

// TestLabCommand runs the commands of a user on one lab, and ends it.
func TestLabCommand(t *testing.T) {
	vpc.RequireForTest(t)
	c := command{t, fmt.Sprintf("test-%d", os.Getpid())}
	c.fails(1, "there is no lab named "+c.name, "status")
	c.fails(2, "unknown flag", "up", "--sweet=trixie")
	c.fails(2, "1280", "up", "--mtu=100")
	pids := c.up("--profile=instant", "--seed=7", "--mtu=9001", "--domain=one.example,two.example", "--ipv4-count=1")
	if s := c.status(); s.Seed != 7 || s.Behaviour.MTU != 9001 || len(s.Behaviour.DHCP.Domains) != 2 || s.Behaviour.DHCPv6 != vpc.DHCPv6First {
		t.Errorf("after up with flags: seed %d, %+v", s.Seed, s.Behaviour)
	}
	if found := vpc.TracesForTest(t, vpc.DefaultStateDir, c.name, pids...); len(found) < 6 {
		t.Errorf("this test does not see the lab: %v", found)
	}
	c.fails(1, "already", "up")
	inst := c.instance()
	if !inst.Running || len(inst.ENIs) != 1 || inst.ENIs[0].Name != "ens5" || !inst.ENIs[0].Plugged || !inst.ENIs[0].Published {
		t.Fatalf("after up: %+v", inst)
	}
	c.says([]string{"Lab " + c.name, inst.ID, inst.ENIs[0].ID, "ens5", "169.254.169.254: on"}, "status")

	// ENIs and their addresses.
	c.says([]string{"ens6", "yes", "10.0.32."}, "attach", "--subnet=b", "--ipv4-count=2", "--prefix-v4-count=1")
	inst = c.instance()
	if len(inst.ENIs) != 2 || len(inst.ENIs[1].IPv4) != 2 || len(inst.ENIs[1].IPv6) != 1 || len(inst.ENIs[1].Prefixes) != 1 {
		t.Fatalf("after attach: %+v", inst.ENIs)
	}
	c.says([]string{inst.ENIs[1].MAC}, "exec", "--", "ip", "link", "show", "ens6")
	assigned := strings.Fields(c.run("assign", "ens6", "10.0.32.99", "--any-ipv6", "--any-prefix-v6"))
	if len(assigned) != 3 || assigned[0] != "10.0.32.99" || !strings.HasSuffix(assigned[2], "/80") {
		t.Fatalf("assign printed %q", assigned)
	}
	e := c.instance().ENIs[1]
	if has := fmt.Sprint(e.IPv4, e.IPv6, e.Prefixes); len(e.IPv4) != 3 || len(e.IPv6) != 2 || len(e.Prefixes) != 2 {
		t.Errorf("after assign: %s", has)
	}
	c.fails(1, "is not in 10.0.16.0/20", "assign", "ens5", "10.0.16.99", "10.0.32.99")
	if e := c.instance().ENIs[0]; len(e.IPv4) != 1 {
		t.Errorf("half of an assign: %v", e.IPv4)
	}
	c.fails(1, "ens9", "assign", "ens9", "--any-ipv4")
	c.fails(2, "neither", "assign", "ens6")
	c.fails(2, "10.0.32", "assign", "ens6", "10.0.32")
	c.run(append([]string{"unassign", "ens6"}, assigned...)...)
	if again := c.instance().ENIs[1]; !slices.Equal(again.IPv4, inst.ENIs[1].IPv4) || len(again.IPv6) != 1 || len(again.Prefixes) != 1 {
		t.Errorf("after unassign: %+v", again)
	}

	// Commands in the instance: their output, their exit status, their user.
	c.says([]string{vpc.OrdinaryUser}, "exec", "--user="+vpc.OrdinaryUser, "--", "id", "-un")
	c.fails(7, "oops", "exec", "--", "sh", "-c", "echo oops >&2; exit 7")

	// Break and repair the metadata service, and read its log. bash is the only program
	// of the image that can speak HTTP.
	c.run("exec", "--", "sh", "-ec", fmt.Sprintf(
		"ip link set ens5 up; ip addr add %s/20 dev ens5; ip route add default via 10.0.16.1", inst.ENIs[0].IPv4[0]))
	const get = `exec 3<>/dev/tcp/169.254.169.254/80; printf 'GET /latest/meta-data/mac HTTP/1.0\r\n\r\n' >&3; cat <&3`
	c.says([]string{"mac", "503"}, "fault", "mac", "--status=503")
	c.says([]string{"503"}, "exec", "--", "bash", "-c", get)
	if out := c.run("fault", "--clear"); out != "" {
		t.Errorf("the faults after --clear: %s", out)
	}
	c.says([]string{"401"}, "exec", "--", "bash", "-c", get) // without a token
	var requests []imds.Request
	if err := json.Unmarshal([]byte(c.run("log", "--json")), &requests); err != nil || len(requests) != 2 ||
		requests[0].Status != 503 || requests[1].Status != 401 || requests[1].Remote.Addr() != inst.ENIs[0].IPv4[0] {
		t.Errorf("log --json: %+v, %v", requests, err)
	}
	c.says([]string{"/latest/meta-data/mac", "503", "401"}, "log")
	c.run("log", "--reset")
	if out := c.run("log"); strings.Contains(out, "mac") {
		t.Errorf("the log after --reset: %s", out)
	}
	c.fails(2, "--effect", "fault", "mac")

	// The VPC's behaviour, and the carrier.
	c.fails(2, "what shall change", "set")
	c.fails(2, "5s-2s", "set", "--ra-delay=5s-2s")
	c.run("set", "--metadata-latency=20ms", "--domain=", "--listed-after=1h")
	c.fails(1, "jitter", "set", "--metadata-jitter=21ms")
	if b := c.status().Behaviour; b.Metadata.Latency != 20*time.Millisecond || b.Metadata.Jitter != 0 || len(b.DHCP.Domains) != 0 || b.MTU != 9001 {
		t.Errorf("after set: %+v", b)
	}
	begin := time.Now()
	c.says([]string{"401"}, "exec", "--", "bash", "-c", get)
	if took := time.Since(begin); took < 20*time.Millisecond {
		t.Errorf("the metadata service with 20 ms of latency took %s", took)
	}
	c.run("carrier", "ens6", "off")
	c.says([]string{"no carrier"}, "status")
	c.run("carrier", "ens6", "on")
	begin = time.Now()
	c.run("carrier", "ens6", "off", "--for=300ms")
	if took := time.Since(begin); took < 300*time.Millisecond || c.instance().ENIs[1].NoCarrier {
		t.Errorf("after a blip of 300 ms, %s: %+v", took, c.instance().ENIs[1])
	}
	c.fails(2, "maybe", "carrier", "ens6", "maybe")
	c.fails(2, "--for", "carrier", "ens6", "on", "--for=1s")
	c.fails(1, "ens9", "carrier", "ens9", "off")

	c.says([]string{"ens6", "no"}, "detach")
	if e := c.instance().ENIs[1]; e.Plugged || e.Published {
		t.Errorf("after detach: %+v", e)
	}
	// By default it is not listed within an hour; with flags it is.
	const list = `exec 3<>/dev/tcp/169.254.169.254/80
printf 'PUT /latest/api/token HTTP/1.0\r\nX-Aws-Ec2-Metadata-Token-Ttl-Seconds: 60\r\n\r\n' >&3; token=$(tail -n1 <&3)
exec 3<>/dev/tcp/169.254.169.254/80
printf 'GET /latest/meta-data/network/interfaces/macs/ HTTP/1.0\r\nX-Aws-Ec2-Metadata-Token: %s\r\n\r\n' "$token" >&3; cat <&3`
	listed := func() bool {
		out := c.run("exec", "--", "bash", "-c", list)
		if !strings.Contains(out, inst.ENIs[0].MAC) {
			t.Fatalf("no list: %s", out)
		}
		return strings.Contains(out, inst.ENIs[1].MAC)
	}
	c.says([]string{"ens6", "yes"}, "attach", "ens6")
	if listed() {
		t.Error("it is listed at once")
	}
	c.run("detach", "ens6")
	c.says([]string{"ens6", "yes"}, "attach", "ens6", "--number-after=1h")
	if !listed() {
		t.Error("it is not listed")
	}
	c.run("detach", "ens6", "--delete")
	c.fails(1, "primary", "detach") // the default is the last ENI, and never the primary one
	c.run("down")
	c.gone(pids...)
	c.fails(1, "there is no lab", "down")
}

// TestLabCommandKilled kills the lab's process, and cleans up after it.
func TestLabCommandKilled(t *testing.T) {
	vpc.RequireForTest(t)
	c := command{t, fmt.Sprintf("test-killed-%d", os.Getpid())}
	pids := c.up()
	if out := c.run("down", "--all-stale"); strings.Contains(out, c.name) || !c.instance().Running {
		t.Fatalf("a living lab was taken for stale: %s", out)
	}
	if err := syscall.Kill(pids[0], syscall.SIGKILL); err != nil {
		t.Fatal(err)
	}
	ended := func() (bool, error) {
		status, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pids[0]))
		return err != nil || strings.Contains(string(status), "\nState:\tZ"), nil //nolint:nilerr // it is gone then
	}
	if err := vpc.Until(t.Context(), "the killed process has ended", ended); err != nil {
		t.Fatal(err)
	}
	c.says([]string{"removed what was left of " + c.name}, "down", "--all-stale")
	c.gone(pids...)
	c.fails(1, "there is no lab", "status")
}
