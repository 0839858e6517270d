package e2e

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

const waitUnit = "ec2netd-wait-online.service"

// customer is a unit that needs the network; without one nothing starts
// network-online.target.
const customer = `[Unit]
Wants=network-online.target
After=network-online.target
[Service]
Type=oneshot
RemainAfterExit=yes
ExecStart=/bin/true
[Install]
WantedBy=multi-user.target
`

// bootWaiting boots an instance whose primary ENI has a secondary address, as its
// administrator has it after enabling the unit. prepare is called before the boot.
func bootWaiting(t *testing.T, suite string, files map[string]string, prepare func(*vpc.VPC, *vpc.Instance)) *labtest.Lab {
	t.Helper()
	v := vpc.ForTest(t, vpc.Options{})
	options := vpc.InstanceOptions{Suite: suite, Files: files, Primary: vpc.ENISpec{IPv4Count: 2}}
	options.Install = func(root string) error {
		if err := vpc.InstallTree(t.Context(), root, vpc.StageForTest(t)); err != nil {
			return err
		}
		if err := vpc.WriteFile(root, "/etc/systemd/system/customer.service", customer); err != nil {
			return err
		}
		systemctl := func(args ...string) (string, error) {
			cmd := exec.CommandContext(t.Context(), "chroot", append([]string{root, "systemctl"}, args...)...)
			cmd.Env = append(os.Environ(), "SYSTEMD_OFFLINE=1", "PATH=/usr/sbin:/usr/bin:/sbin:/bin")
			out, err := cmd.Output() // stderr says on some suites that /proc is not there
			return strings.TrimSpace(string(out)), err
		}
		// The presets leave it to the administrator.
		if out, err := systemctl("is-enabled", waitUnit); out != "disabled" {
			t.Errorf("after the presets %s is %s (%v)", waitUnit, out, err)
		}
		if out, err := systemctl("enable", waitUnit, "customer.service"); err != nil {
			return fmt.Errorf("enabling %s: %w: %s", waitUnit, err, out)
		}
		prepare(v, v.Instances()[0])
		return nil
	}
	return labtest.New(t, v, vpc.BootForTest(t, v, options))
}

// show returns properties of a unit as systemctl show prints them.
func show(l *labtest.Lab, unit string) map[string]string {
	l.T.Helper()
	properties := make(map[string]string)
	for line := range strings.Lines(l.Run("systemctl", "show", unit)) {
		if name, value, ok := strings.Cut(strings.TrimSpace(line), "="); ok {
			properties[name] = value
		}
	}
	return properties
}

// moment is a time property of a unit: since the machine's start.
func moment(t *testing.T, properties map[string]string, name string) time.Duration {
	t.Helper()
	microseconds, err := strconv.ParseInt(properties[name+"TimestampMonotonic"], 10, 64)
	if err != nil || microseconds == 0 {
		t.Fatalf("%sTimestampMonotonic of %s is %q", name, properties["Id"], properties[name+"TimestampMonotonic"])
	}
	return time.Duration(microseconds) * time.Microsecond
}

// sinceStart is a time of day as a time since the machine's start, which is what
// systemctl shows. An instance has the clocks of this machine.
func sinceStart(t *testing.T, at time.Time) time.Duration {
	t.Helper()
	var clock unix.Timespec
	if err := unix.ClockGettime(unix.CLOCK_MONOTONIC, &clock); err != nil {
		t.Fatal(err)
	}
	return time.Duration(clock.Nano()) - time.Since(at)
}

// TestLabWaitOnline: network-online.target waits for the ENIs, and not for ever.
func TestLabWaitOnline(t *testing.T) { // H5
	for _, suite := range vpc.Suites {
		t.Run(suite.Name+"/online", func(t *testing.T) { t.Parallel(); labOnline(t, suite.Name) })
		t.Run(suite.Name+"/metadata off", func(t *testing.T) { t.Parallel(); labMetadataOff(t, suite.Name) })
	}
}

// labOnline boots where the metadata service is slow, so that networkd has its lease
// long before ec2netd knows the secondary address.
func labOnline(t *testing.T, suite string) {
	l := bootWaiting(t, suite, nil, func(_ *vpc.VPC, inst *vpc.Instance) {
		_, err := inst.Metadata().AddFault(imds.Fault{
			Pattern: "network/interfaces/macs/*/local-ipv4s", Effect: imds.Delay, Delay: 1500 * time.Millisecond, Count: 1,
		})
		if err != nil {
			t.Error(err)
		}
	})
	out, err := l.Inst.Run(t.Context(), vpc.Command{Argv: []string{"ec2netctl", "status", "--json=short"}, User: vpc.OrdinaryUser})
	if err != nil {
		t.Fatal(err)
	}
	var s state.State
	if err := json.Unmarshal([]byte(out), &s); err != nil {
		t.Fatal(err)
	}
	primary, ok := s.Find("ens5")
	if !ok || primary.State != state.ENIConfigured || len(l.Inst.Primary().IPv4()) != 2 {
		t.Fatalf("after the boot: %+v", s)
	}
	unit, target, networkd := show(l, waitUnit), show(l, "network-online.target"), show(l, "systemd-networkd-wait-online.service")
	if unit["ActiveState"] != "active" || unit["Result"] != "success" || target["ActiveState"] != "active" {
		t.Errorf("%s is %s (%s), network-online.target %s", waitUnit, unit["ActiveState"], unit["Result"], target["ActiveState"])
	}
	began := moment(t, unit, "ExecMainStart")
	leased, configured := moment(t, networkd, "ActiveEnter"), sinceStart(t, primary.Since)
	ended, reached := moment(t, unit, "ExecMainExit"), moment(t, target, "ActiveEnter")
	t.Logf("from the start of ec2netctl: networkd online %v, ENI configured %v, ec2netctl done %v, network-online.target %v",
		leased-began, configured-began, ended-began, reached-began)
	if configured < leased {
		t.Error("the ENI was configured before networkd was online: the test proves nothing")
	}
	if ended < configured || reached < ended {
		t.Error("network-online.target did not wait for the ENI")
	}
	if ended-configured > 20*time.Second {
		t.Errorf("ec2netctl learned of it %v later", ended-configured)
	}
	for _, address := range l.Inst.Primary().IPv4() {
		if out := l.Run("ip", "-o", "address", "show", "to", address.String()); !strings.Contains(out, "ens5") {
			t.Errorf("%s is not on the link", address)
		}
	}
	// The unit as a whole.
	if out := l.Run("systemd-analyze", "verify", "--man=no", waitUnit); out != "" {
		t.Errorf("systemd-analyze verify: %s", out)
	}
	if out, err := l.Inst.Journal(t.Context(), "--boot", "--grep=ordering cycle|ec2netd-wait-online.*(unknown|ignoring)", "--quiet", "--case-sensitive=no"); err == nil && out != "" {
		t.Errorf("systemd complains: %s", out)
	}
	// A restart of the daemon leaves the unit alone, and a client that waits outlives it.
	l.Run("systemctl", "restart", "ec2netd.service")
	l.Run("ec2netctl", "wait-online", "--timeout=60", "--interface="+l.Inst.Primary().ID())
	again := show(l, waitUnit)
	if again["ActiveState"] != "active" || moment(t, again, "ExecMainStart") != began {
		t.Errorf("after a restart of ec2netd %s is %s, started at %v, before at %v",
			waitUnit, again["ActiveState"], moment(t, again, "ExecMainStart"), began)
	}
}

// labMetadataOff boots where the metadata service does not answer.
func labMetadataOff(t *testing.T, suite string) {
	files := map[string]string{
		"/etc/systemd/system/" + waitUnit + ".d/timeout.conf": "[Service]\nExecStart=\nExecStart=/usr/bin/ec2netctl wait-online --timeout=3\n",
	}
	l := bootWaiting(t, suite, files, func(v *vpc.VPC, _ *vpc.Instance) {
		for _, family := range []vpc.Family{vpc.IPv4, vpc.IPv6} {
			if err := v.SetMetadataEndpoint(t.Context(), family, vpc.EndpointSilent); err != nil {
				t.Error(err)
			}
		}
	})
	unit, target := show(l, waitUnit), show(l, "network-online.target")
	if unit["ActiveState"] != "failed" || unit["Result"] != "exit-code" || unit["ExecMainStatus"] != "1" {
		t.Errorf("%s is %s: %s, status %s", waitUnit, unit["ActiveState"], unit["Result"], unit["ExecMainStatus"])
	}
	ended := moment(t, unit, "ExecMainExit")
	if took := ended - moment(t, unit, "ExecMainStart"); took < 3*time.Second || took > 60*time.Second {
		t.Errorf("ec2netctl waited %v instead of 3 s", took)
	}
	// The boot went on then.
	if reached := moment(t, target, "ActiveEnter"); target["ActiveState"] != "active" || reached < ended {
		t.Errorf("network-online.target is %s since %v before the unit failed", target["ActiveState"], ended-reached)
	}
	if c := show(l, "customer.service"); c["ActiveState"] != "active" {
		t.Errorf("customer.service is %s", c["ActiveState"])
	}
	log, err := l.Inst.Journal(t.Context(), "--boot", "--unit="+waitUnit, "--output=cat")
	if err != nil || !strings.Contains(log, "not online after 3s") || !strings.Contains(log, "(ens5) is pending: ") || strings.Contains(log, "Waiting") {
		t.Errorf("the unit logged (%v):\n%s", err, log)
	}
	t.Logf("the unit logged:\n%s", log)

	// It waits for what comes later too.
	l.SetEndpoints(vpc.EndpointOn)
	l.Run("sh", "-c", "ec2netctl wait-online --timeout=60 & ec2netctl refresh; wait $!")
	l.Run("systemctl", "start", waitUnit)
}
