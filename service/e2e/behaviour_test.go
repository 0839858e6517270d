package e2e

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"
	"unsafe"

	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// H1, H2: the service starts when it is asked for, over D-Bus and over the socket,
// by an ordinary user too.
func TestLabActivation(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		asks := [][]string{
			{"busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe"},
			{"busctl", "introspect", "org.ec2netd1", "/org/ec2netd1"},
			{"ec2netctl", "status"},
		}
		if suite != "bookworm" {
			asks = append(asks, []string{"varlinkctl", "call", "/run/ec2netd/org.ec2netd.Network", "org.ec2netd.Network.Describe", "{}"})
		}
		for _, ask := range asks {
			files := l.Files()
			l.Run("systemctl", "stop", "ec2netd.service")
			if now := l.Files(); now != files {
				t.Errorf("stopping the daemon changed files:\n%s", now)
			}
			out := l.AsUser(ask...)
			l.Until("the service is active", func() (bool, error) {
				_, err := l.Inst.Exec(t.Context(), "systemctl", "is-active", "ec2netd.service")
				return err == nil, nil
			})
			// The last view is kept over the restart, so the first answer knows the ENI.
			if ask[1] != "introspect" && !strings.Contains(out, l.Inst.Primary().ID()) {
				t.Errorf("%q answered\n%s", ask, out)
			}
		}
		// Without the socket and the service, an error for people.
		l.Run("systemctl", "stop", "ec2netd.socket", "ec2netd.service")
		if out := l.Fails("ec2netctl", "status"); !strings.Contains(out, "systemctl") {
			t.Errorf("ec2netctl without a daemon says: %s", out)
		}
		// I5: as far as it is known here, the units are sound.
		l.Run("systemd-analyze", "verify", "--man=no", "ec2netd.service", "ec2netd.socket")
	})
}

// E6, D7: a restart of the daemon needs no metadata, changes nothing and is no event
// for the kernel.
func TestLabRestartWithoutMetadata(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		primary := l.Inst.Primary()
		l.CheckKernel(eni)
		l.CountDrops()
		monitor := l.Monitor("ens")
		l.SetEndpoints(vpc.EndpointRefused)
		files, log := l.Files(), l.NetworkdLog()
		ping, err := l.Inst.StartPing(t.Context(), eni.IPv4()[1], vpc.FarIPv4, 10*time.Millisecond)
		if err != nil {
			t.Fatal(err)
		}
		l.Run("systemctl", "restart", "ec2netd.service")
		s := l.AwaitManager(state.Offline)
		if len(s.Interfaces) != 2 || s.InstanceID != l.Inst.ID() || !strings.Contains(s.Reason, "metadata service") {
			t.Errorf("after the restart: %+v", s)
		}
		for _, id := range []string{primary.ID(), eni.ID()} {
			if got := l.AwaitConfigured(id); !strings.Contains(got.Reason, "last view") {
				t.Errorf("%s: %+v", id, got)
			}
		}
		if result := ping.Stop(); result.Received != result.Sent {
			t.Errorf("pings over the restart: %s", result)
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		if now := l.NetworkdLog(); now != log {
			t.Errorf("networkd did something: %s", strings.TrimPrefix(now, log))
		}
		if events := monitor(); events != "" {
			t.Errorf("events:\n%s", events)
		}
		l.CheckKernel(eni)
		// C4: what changed meanwhile is taken up.
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.SetEndpoints(vpc.EndpointOn)
		l.Run("ec2netctl", "refresh", "--wait")
		if !slices.Contains(l.Addresses(eni.Name()), added[0]) {
			t.Errorf("an address assigned while the metadata service was off is not there: %v", l.Addresses(eni.Name()))
		}
		l.AwaitManager(state.Configured)
		l.CheckDrops()
	})
}

// C4: ENIs that are attached and detached while the daemon is down.
func TestLabChangesWhileDown(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		gone := l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(gone.ID())
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		if err := gone.Detach(t.Context()); err != nil {
			t.Fatal(err)
		}
		eni := l.Attach(vpc.ENISpec{IPv4Count: 2, Name: "ens33"})
		l.Run("systemctl", "start", "ec2netd.service")
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		if now := l.Files(); strings.Contains(now, gone.Name()+".") {
			t.Errorf("files of the detached ENI:\n%s", now)
		}
	})
}

// Bad input: a configuration file with mistakes costs the keys that are wrong, and
// says where.
func TestLabBadConfiguration(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/bad.conf"] = "[Metadata]\nRefreshSec=often\nEndpont=http://192.0.2.1\n[Nonsense]\nx\n"
		})
		got := l.AwaitConfigured("ens5")
		if got.Metric != 512 {
			t.Errorf("%+v", got)
		}
		log := l.Run("journalctl", "--boot", "--unit=ec2netd", "--output=cat", "--no-pager")
		for _, want := range []string{"/etc/ec2netd.conf.d/bad.conf:2: Metadata.RefreshSec: ", "/etc/ec2netd.conf.d/bad.conf:3: Metadata.Endpont: ", "/etc/ec2netd.conf.d/bad.conf:4: Nonsense: "} {
			if !strings.Contains(log, want) {
				t.Errorf("the log does not say %q:\n%s", want, log)
			}
		}
		if s := l.Describe(); s.State != state.Configured || !strings.Contains(s.Reason, "bad.conf:2") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		command := l.Between("correct it, then: ", "")(l.AdviceOf("/etc/ec2netd.conf.d/bad.conf:2: Metadata.RefreshSec: "))
		l.Put("/etc/ec2netd.conf.d/bad.conf", "[Metadata]\nRefreshSec=20\n")
		l.Run("sh", "-c", command)
		l.AwaitConfigured("ens5")
		if s := l.Describe(); s.State != state.Configured || s.Reason != "" {
			t.Errorf("after %s: %s: %s", command, s.State, s.Reason)
		}
		if said := l.Run("ec2netctl", "doctor"); !strings.HasSuffix(said, "\nNothing to do.") {
			t.Errorf("after %s:\n%s", command, said)
		}
	})
}

// D3, D4: neither errors nor malformed values of the metadata take anything away.
func TestLabMetadataFaults(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CountDrops()
		service := l.Inst.Metadata()
		files := l.Files()
		dir := "network/interfaces/macs/" + eni.MAC().String() + "/"
		for _, fault := range []imds.Fault{
			{Pattern: "**", Effect: imds.Status, Status: 500},
			{Pattern: "**", Effect: imds.Status, Status: 403},
			{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403},
			{Pattern: dir + "local-ipv4s", Effect: imds.Status, Status: 404},
			{Pattern: dir + "local-ipv4s", Effect: imds.Empty},
			{Pattern: dir + "ipv4-prefix", Effect: imds.HTML},
			{Pattern: strings.TrimSuffix(dir, "/"), Effect: imds.Status, Status: 404},
			{Pattern: strings.TrimSuffix(dir, "/"), Effect: imds.HTML},
			{Pattern: dir + "**", Effect: imds.Reset},
			{Pattern: dir + "ipv6s", Effect: imds.Body, Body: "2001:db8::1\n[Match]\nName=*"},
		} {
			id, err := service.AddFault(fault)
			if err != nil {
				t.Fatal(err)
			}
			if fault.Pattern == imds.TokenKey {
				service.RevokeTokens()
			}
			got := l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.Reason != "" })
			if got.State != state.ENIConfigured {
				t.Errorf("%s: %s: %s", fault, got.State, got.Reason)
			}
			// The key is named; a directory that is not there stands for all its keys.
			if key := filepath.Base(fault.Pattern); !strings.Contains(key, "*") && fault.Status != 404 && !strings.Contains(got.Reason, key) {
				t.Errorf("%s: the reason does not name the key: %s", fault, got.Reason)
			}
			l.CheckKernel(eni)
			service.ClearFault(id)
			l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
			if now := l.Files(); now != files {
				t.Errorf("%s: files changed:\n%s\nbefore:\n%s", fault, now, files)
			}
		}
		l.AwaitManager(state.Configured)
		l.CheckDrops()
	})
}

// networkd absent or masked: degraded, with the reason and what to do, and no crash.
func TestLabNetworkdMasked(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.MaskFile(o, "etc/systemd/system/systemd-networkd.service")
		})
		s := l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "masked") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "have it run with ")
		l.AwaitConfigured("ens5")
		l.AwaitManager(state.Configured)
		// It is enabled, so the next boot has it too.
		enabled := func() string { return l.Run("sh", "-c", "systemctl is-enabled systemd-networkd.service || :") }
		if is := enabled(); is != "enabled" {
			t.Errorf("unmasked as advised networkd is %s", is)
		}

		l.Run("systemctl", "stop", "systemd-networkd.socket")
		l.Run("systemctl", "disable", "--now", "systemd-networkd.service")
		s = l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "does not run") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "start it with ")
		l.AwaitManager(state.Configured)
		l.AwaitConfigured("ens5")
		l.CheckArrival(l.Inst.Primary())
		if is := enabled(); is != "enabled" {
			t.Errorf("started as advised networkd is %s", is)
		}

		l.Run("systemctl", "stop", "systemd-networkd.socket")
		l.Run("systemctl", "mask", "--runtime", "--now", "systemd-networkd.service")
		s = l.AwaitManager(state.Degraded)
		if !strings.Contains(s.Reason, "masked until the next boot") {
			t.Errorf("the reason: %s", s.Reason)
		}
		l.Follow(s.Reason, "have it run with ")
		l.AwaitManager(state.Configured)
		l.AwaitConfigured("ens5")
		if n := l.Run("systemctl", "show", "--property=NRestarts", "--value", "ec2netd.service"); n != "0" {
			t.Errorf("the daemon was restarted %s times", n)
		}
	})
}

// E3: a hundred refreshes with nothing to do, and those of the timer: no write, no reload,
// no event, no log line, no process.
func TestLabIdle(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, labtest.Refreshing)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		// A look after the attach is part of it.
		l.Run("ec2netctl", "refresh", "--wait")
		logs := func() string {
			return l.Run("journalctl", "--boot", "--unit=ec2netd", "--unit=ec2netd-orphans", "--unit=systemd-networkd", "--unit=systemd-udevd",
				"--output=cat", "--no-pager")
		}
		monitor, calls, writes := l.Monitor(""), networkdCalls(l), watchWrites(l, "/run/systemd/network", "/run/ec2netd")
		files, log, reloads, children := l.Files(), logs(), l.Describe().Networkd.Reloads, childrenOfDaemon(l)
		for i := range 100 {
			wait := strconv.FormatBool(i%2 == 0)
			if out := l.Run("busctl", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Refresh", "b", wait); !strings.Contains(out, `\"interfaces\":[]`) {
				t.Fatalf("a refresh changed something: %s", out)
			}
		}
		// Those of the timer: eight requests each time round.
		last := time.Now()
		l.Until("the timer has had some refreshes made", func() (bool, error) { return len(l.Inst.Metadata().RequestsSince(last)) > 24, nil })
		for event := range strings.Lines(monitor()) {
			if !strings.Contains(event, "31999") && (strings.Contains(event, "ens") || strings.Contains(event, "lookup")) {
				t.Errorf("event: %s", event)
			}
		}
		for _, write := range writes() {
			t.Errorf("written: %s", write)
		}
		for _, call := range calls() {
			if call != "Describe" && call != "DescribeLink" {
				t.Errorf("networkd was asked to %s", call)
			}
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		if now := logs(); now != log {
			t.Errorf("log lines: %s", strings.TrimPrefix(now, log))
		}
		if now := l.Describe().Networkd.Reloads; now != reloads {
			t.Errorf("%d reloads", now-reloads)
		}
		if now := childrenOfDaemon(l); now != children {
			t.Errorf("processes of the daemon: %s, before %s", now, children)
		}
	})
}

// childrenOfDaemon tells what nobody can hide of processes that the daemon starts: the page
// faults of those that it has waited for, and how many there are.
func childrenOfDaemon(l *labtest.Lab) string {
	l.T.Helper()
	// The name, in brackets, has no spaces; the fields are those of proc_pid_stat(5).
	stat := strings.Fields(l.Run("sh", "-c", "cat /proc/$(systemctl show --property=MainPID --value ec2netd.service)/stat"))
	const cminflt, cmajflt = 10, 12
	processes := l.Run("sh", "-c", "wc -l < /sys/fs/cgroup/system.slice/ec2netd.service/cgroup.procs")
	return fmt.Sprintf("%s processes, page faults of others %s and %s", processes, stat[cminflt], stat[cmajflt])
}

// watchWrites watches directories and those in them; the returned function says what happened
// to their files.
func watchWrites(l *labtest.Lab, dirs ...string) func() []string {
	l.T.Helper()
	fd, err := unix.InotifyInit1(unix.IN_NONBLOCK | unix.IN_CLOEXEC)
	if err != nil {
		l.T.Fatal(err)
	}
	l.T.Cleanup(func() { _ = unix.Close(fd) })
	watched := make(map[int]string)
	for _, dir := range dirs {
		err := filepath.WalkDir(l.Inst.Path(dir), func(path string, entry fs.DirEntry, err error) error {
			if err != nil || !entry.IsDir() {
				return err
			}
			watch, err := unix.InotifyAddWatch(fd, path,
				unix.IN_CREATE|unix.IN_MODIFY|unix.IN_ATTRIB|unix.IN_MOVE|unix.IN_DELETE|unix.IN_CLOSE_WRITE|unix.IN_DELETE_SELF)
			watched[watch] = path
			return err
		})
		if err != nil {
			l.T.Fatal(err)
		}
	}
	seen := func() (found []string) {
		l.T.Helper()
		buffer := make([]byte, 64<<10)
		for {
			n, err := unix.Read(fd, buffer)
			if errors.Is(err, unix.EAGAIN) {
				return found
			}
			if err != nil {
				l.T.Fatal(err)
			}
			for rest := buffer[:n]; len(rest) >= unix.SizeofInotifyEvent; {
				event := (*unix.InotifyEvent)(unsafe.Pointer(&rest[0]))
				name := rest[unix.SizeofInotifyEvent : unix.SizeofInotifyEvent+event.Len]
				found = append(found, fmt.Sprintf("%s/%s (%#x)", watched[int(event.Wd)], strings.TrimRight(string(name), "\x00"), event.Mask))
				rest = rest[unix.SizeofInotifyEvent+event.Len:]
			}
		}
	}
	// It watches: a file of ours is seen.
	for _, dir := range dirs {
		l.Run("sh", "-c", "touch "+dir+"/.watched && rm "+dir+"/.watched")
		if len(seen()) == 0 {
			l.T.Fatalf("nothing that happens in %s is seen", dir)
		}
	}
	return seen
}

// networkdCalls watches what networkd is asked for on the bus; the returned function says
// by which methods of its own.
func networkdCalls(l *labtest.Lab) func() []string {
	l.T.Helper()
	const log = "/run/calls.log"
	l.Run("systemd-run", "--quiet", "--unit=calls", "--property=StandardOutput=file:"+log, "busctl", "--json=short", "monitor",
		"--match=type='method_call',destination='org.freedesktop.network1'")
	const probe = "IsWatched"
	methods := func() (found []string) {
		l.T.Helper()
		for line := range strings.Lines(l.Run("cat", log)) {
			var message struct{ Type, Member, Interface string }
			if err := json.Unmarshal([]byte(line), &message); err != nil {
				continue // half a line
			}
			if message.Type == "method_call" && strings.HasPrefix(message.Interface, "org.freedesktop.network1") && message.Member != probe {
				found = append(found, message.Member)
			}
		}
		return found
	}
	l.Until("busctl monitors", func() (bool, error) {
		// There is no such method.
		l.Run("sh", "-c", "busctl call org.freedesktop.network1 /org/freedesktop/network1 org.freedesktop.network1.Manager "+probe+" 2>/dev/null || true")
		return l.Run("sh", "-c", "grep -c "+probe+" "+log+" || true") != "0", nil
	})
	return func() []string {
		defer l.Run("systemctl", "stop", "calls")
		return methods()
	}
}

// B1, B4, B5: several network cards, and an attachment that propagates key by key.
func TestLabCards(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		one := 1
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.NetworkCards = 2 })
		got := l.AwaitConfigured("ens5")
		if got.Metric != 512 || !slices.Contains(got.Altnames, "device-number-0.0") {
			t.Errorf("the primary: %+v", got)
		}
		eni := l.Attach(vpc.ENISpec{NetworkCard: &one, DeviceIndex: 1, IPv4Count: 2, Subnet: "b", Propagation: &imds.Propagation{
			Keys: map[string]time.Duration{"device-number": imds.Held, "network-card": imds.Held, "local-ipv4s": imds.Held},
		}})
		pending := func(why string) {
			t.Helper()
			got := l.AwaitENI(eni.MAC().String(), func(i *state.Interface) bool { return i.State == state.ENIPending && strings.Contains(i.Reason, why) })
			if now := l.Files(); strings.Contains(now, eni.Name()+".") {
				t.Errorf("files from an incomplete view (%s):\n%s", got.Reason, now)
			}
			// B6: its default routes are worse than the primary's.
			for _, family := range []string{"-4", "-6"} {
				for _, r := range l.Routes(family, "main") {
					if r.Dst == "default" && (r.Dev == eni.Name()) != (r.Metric == plan.UnknownMetric) {
						t.Errorf("default route (%s) of an ENI that is not known: %+v", family, r)
					}
				}
			}
		}
		pending("local-ipv4s")
		eni.Reveal("local-ipv4s")
		pending("network card")
		eni.Reveal("network-card")
		// (0, 1) is a number that an ENI can have: what is refused is (0, 0).
		eni.Reveal("device-number")
		got = l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.DeviceIndex == 1 })
		if got.Metric != 613 || got.Table != 10101 || got.NetworkCard != 1 {
			t.Errorf("%+v", got)
		}
		l.Until("the kernel has all of it", func() (bool, error) { return slices.Equal(l.Rules(10101), labtest.Sources(eni)), nil })
		l.CountDrops()
		for _, source := range eni.IPv4() {
			l.PingFrom(source)
		}
		l.CheckDrops()
		// The same on card 0: there 0 means that it has not propagated.
		second := l.Attach(vpc.ENISpec{DeviceIndex: 1, IPv4Count: 2, Propagation: &imds.Propagation{
			Keys: map[string]time.Duration{"device-number": imds.Held},
		}})
		l.AwaitENI(second.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIPending && strings.Contains(i.Reason, "device-number 0")
		})
		second.Reveal()
		if got := l.AwaitConfigured(second.ID()); got.Metric != 513 || got.Table != 10001 {
			t.Errorf("%+v", got)
		}
	})
}

// D2: the metadata is read whatever becomes of the main table's default route.
func TestLabWithoutDefaultRoute(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		// As a VPN does it.
		l.Run("sh", "-c", "ip link add vpn type bridge && ip link set vpn up && ip addr add 192.0.2.2/30 dev vpn && "+
			"ip route add 0.0.0.0/1 via 192.0.2.1 && ip route add 128.0.0.0/1 via 192.0.2.1")
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		if !slices.Contains(l.Addresses(eni.Name()), added[0]) {
			t.Errorf("the new address is not there: %v", l.Addresses(eni.Name()))
		}
		l.AwaitManager(state.Configured)
	})
}

// C3: two ENIs are detached and attached again with each other's names while the daemon
// is down, and one is attached again while it runs.
func TestLabSwappedNames(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		one, two := l.Attach(vpc.ENISpec{IPv4Count: 2}), l.Attach(vpc.ENISpec{IPv4Count: 2})
		l.AwaitConfigured(one.ID())
		l.AwaitConfigured(two.ID())
		names := []string{one.Name(), two.Name()}
		swap := func() {
			t.Helper()
			for _, eni := range []*vpc.ENI{one, two} {
				if err := eni.Detach(t.Context()); err != nil {
					t.Fatal(err)
				}
			}
			slices.Reverse(names)
			for i, eni := range []*vpc.ENI{one, two} {
				l.Reattach(eni, names[i])
			}
		}
		check := func() {
			t.Helper()
			for i, eni := range []*vpc.ENI{one, two} {
				l.AwaitENI(eni.ID(), func(s *state.Interface) bool { return s.Name == names[i] })
				l.AwaitConfigured(eni.ID())
				l.CheckKernel(eni)
			}
		}
		l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
		swap()
		l.Run("systemctl", "start", "ec2netd.service")
		check()
		swap()
		check()
		l.CheckLog("warning")
	})
}

// A5: as many ENIs and addresses as an instance can have, at once.
func TestLabMany(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		reloads := l.Describe().Networkd.Reloads
		var enis []*vpc.ENI
		began := time.Now()
		for range 14 {
			enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 50}))
		}
		for _, eni := range enis {
			l.AwaitConfigured(eni.ID())
		}
		t.Logf("14 ENIs of 50 addresses configured after %v, with %d reloads",
			time.Since(began).Round(time.Millisecond), l.Describe().Networkd.Reloads-reloads)
		for _, eni := range enis {
			l.CheckKernel(eni)
		}
		l.CountDrops()
		for _, eni := range enis {
			l.PingFrom(eni.IPv4()[49])
		}
		l.CheckDrops()
	})
}

// A7, A6: a subnet without IPv4, and one without IPv6.
func TestLabOneFamily(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		six := l.Attach(vpc.ENISpec{Subnet: "v6", IPv6Count: 2})
		four := l.Attach(vpc.ENISpec{Subnet: "v4", IPv4Count: 2})
		if got := l.AwaitConfigured(six.ID()); got.Table != 10001 {
			t.Errorf("%+v", got)
		}
		l.AwaitConfigured(four.ID())
		for table, eni := range map[int]*vpc.ENI{10001: six, 10002: four} {
			if got := l.Rules(table); !slices.Equal(got, labtest.Sources(eni)) {
				t.Errorf("rules of table %d: %v, want %v", table, got, labtest.Sources(eni))
			}
		}
		if own := l.Routes("-4", "10001"); len(own) > 0 {
			t.Errorf("IPv4 routes of an ENI without IPv4: %+v", own)
		}
		l.CountDrops()
		for _, source := range slices.Concat(six.IPv6(), four.IPv4()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		l.CheckLog("warning")
	})
}

// B3: on the primary replies to containers use the main table, with PrimaryRules= too.
func TestLabContainersOnPrimary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		t.Run("by default", func(t *testing.T) { testContainersOnPrimary(t, suite, "") })
		t.Run("with PrimaryRules", func(t *testing.T) { testContainersOnPrimary(t, suite, "[ENI]\nPrimary=yes\nPrimaryRules=yes\n") })
	})
}

func testContainersOnPrimary(t *testing.T, suite, settings string) {
	l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
		o.Primary.IPv4Count, o.Primary.PrefixV4Count = 2, 1
		// Only in the lab are containers' links of the same kind as ENIs.
		o.Files["/etc/systemd/network/10-containers.network"] = "[Match]\nName=c0 docker0\n[Link]\nUnmanaged=yes\n"
		o.Files["/etc/ec2netd.conf.d/test.conf"] = settings
	})
	l.AwaitConfigured("ens5")
	l.Run("sh", "-c", `ip link add docker0 type bridge && ip addr add 172.17.0.1/16 dev docker0 && ip link set docker0 up &&
			ip netns add c && ip link add c0 type veth peer name eth0 netns c && ip link set c0 master docker0 up &&
			ip -n c addr add 172.17.0.2/16 dev eth0 && ip -n c link set eth0 up && ip -n c route add default via 172.17.0.1`)
	for _, source := range l.Inst.Primary().IPv4() {
		l.Until("a container answers "+source.String(), func() (bool, error) {
			_, err := l.Inst.Exec(t.Context(), "ping", "-c1", "-W1", "-I", source.String(), "172.17.0.2")
			return err == nil, nil
		})
	}
	// C5: the container's links are none of the daemon's, though they are veths.
	if now := l.Files(); strings.Contains(now, "c0.") || strings.Contains(now, "docker0") {
		t.Errorf("files for links of containers:\n%s", now)
	}
	l.Run("ec2netctl", "refresh", "--wait")
	for _, i := range l.Describe().Interfaces {
		if i.Name == "c0" && (i.State == state.ENIConfigured || len(i.Files) > 0) {
			t.Errorf("%+v", i)
		}
	}
	var want []string
	if settings != "" {
		want = labtest.Sources(l.Inst.Primary())
		if own := l.Routes("-4", "10000"); !slices.ContainsFunc(own, labtest.IsDefault) {
			t.Errorf("table 10000: %+v", own)
		}
	}
	if got := l.Rules(10000); !slices.Equal(got, want) {
		t.Errorf("rules of the primary: %v, want %v", got, want)
	}
	l.CountDrops()
	for _, source := range slices.Concat(l.Inst.Primary().IPv4(), l.Inst.Primary().IPv6()) {
		l.PingFrom(source)
	}
	l.CheckDrops()
}

// G1, G2: where no .link file applies, as with a masked 99-default.link, the altnames
// come all the same and the name stays the kernel's.
func TestLabNoLinkFile(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			labtest.MaskFile(o, "etc/systemd/network/99-default.link")
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(vpc.ENISpec{Name: "eth7"})
		l.AwaitConfigured(eni.ID())
		for _, altname := range []string{eni.ID(), "device-number-1"} {
			if out := l.Run("ip", "-brief", "link", "show", altname); !strings.HasPrefix(out, "eth7") {
				t.Errorf("%s: %s", altname, out)
			}
		}
		l.Run("ec2netctl", "refresh", "--wait")
		files := l.Files()
		l.Run("ec2netctl", "refresh", "--wait")
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckLog("warning")
	})
}

// networkd that restarts is given time, and nothing is missing afterwards.
func TestLabNetworkdRestart(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		var files string
		for range 3 {
			l.RestartNetworkd("systemctl", "restart", "systemd-networkd.service")
			if files == "" {
				// The first one has found in them what the daemon has prepared for it (E7).
				files = l.Files()
			}
			l.CheckKernel(eni)
		}
		if suite == "bookworm" {
			// From 257 on the lease's address comes after the static ones then.
			l.RestartNetworkd("sh", "-c", "systemctl stop systemd-networkd.service && systemctl start systemd-networkd.service")
			l.CheckKernel(eni)
		}
		l.CountDrops()
		for _, source := range slices.Concat(eni.IPv4(), eni.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
		// The bus too: the API is there again.
		l.Run("systemctl", "restart", "dbus.service")
		l.AwaitConfigured(eni.ID())
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.CheckLog("warning")
	})
}

// E2: addresses come and go on a secondary ENI, on 252 too, and no packet of its other
// addresses is lost, IPv4 or IPv6, near or far.
func TestLabHitlessSecondary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		var pings []*vpc.Pinger
		for _, to := range []netip.Addr{vpc.FarIPv4, eni.Subnet().Gateway4(), vpc.FarIPv6, eni.Subnet().Gateway6()} {
			from := eni.IPv4()[0]
			if to.Is6() {
				from = eni.IPv6()[0]
			}
			ping, err := l.Inst.StartPing(t.Context(), from, to, 10*time.Millisecond)
			if err != nil {
				t.Fatal(err)
			}
			pings = append(pings, ping)
		}
		l.CountDrops()
		refresh := func(what string, change func() error) {
			t.Helper()
			if err := change(); err != nil {
				t.Fatal(err)
			}
			l.Run("ec2netctl", "refresh", "--wait")
			if got, want := l.Rules(10001), labtest.Sources(eni); !slices.Equal(got, want) {
				t.Errorf("%s: rules %v, want %v", what, got, want)
			}
			l.CheckKernel(eni)
		}
		for range 2 {
			refresh("assign", func() error {
				_, err := eni.AssignIPv4(t.Context())
				return err
			})
			refresh("assign IPv6", func() error {
				_, err := eni.AssignIPv6(t.Context())
				return err
			})
			refresh("unassign", func() error { return eni.UnassignIPv4(t.Context(), eni.IPv4()[1]) })
			refresh("unassign IPv6", func() error { return eni.UnassignIPv6(t.Context(), eni.IPv6()[1]) })
			refresh("unassign a prefix", func() error { return eni.UnassignPrefix(t.Context(), eni.Prefixes()[0]) })
			refresh("assign a prefix", func() error {
				_, err := eni.AssignPrefixV4(t.Context())
				return err
			})
		}
		for _, ping := range pings {
			if result := ping.Stop(); result.Received != result.Sent || result.Sent < 20 {
				t.Errorf("%s", result)
			}
		}
		l.CheckDrops()
		l.CheckLog("warning")
	})
}

// A4: IPv6 addresses that DHCPv6 does not hand out are on the primary too.
func TestLabIPv6OnPrimary(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) { o.Primary.IPv6Count, o.Primary.IPv4Count = 3, 3 })
		l.AwaitConfigured("ens5")
		primary := l.Inst.Primary()
		prefixes, err := l.Inst.Addrs("ens5")
		if err != nil {
			t.Fatal(err)
		}
		var global []netip.Addr
		for _, p := range prefixes {
			if !p.Addr().IsLinkLocalUnicast() {
				global = append(global, p.Addr())
				if p.Addr().Is6() && p.Bits() != 128 {
					t.Errorf("%s is not a /128", p)
				}
			}
		}
		if want := slices.Concat(primary.IPv4(), primary.IPv6()); !slices.Equal(labtest.Sorted(global), labtest.Sorted(want)) || global[0] != want[0] {
			t.Errorf("addresses %v, want %v", global, want)
		}
		for _, source := range slices.Concat(primary.IPv4(), primary.IPv6()) {
			l.PingFrom(source)
		}
		l.CheckDrops()
	})
}
