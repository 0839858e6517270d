package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// C8: ENIs without a link are ignored, a link without metadata is retried with back-off,
// and neither is worth a word.
func TestLabGhosts(t *testing.T) {
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		log := func() string {
			return l.DaemonLog("--priority=info")
		}
		said, began := log(), len(l.Inst.Metadata().Requests())
		of := func(eni *vpc.ENI) []imds.Request {
			return slices.DeleteFunc(l.Inst.Metadata().Requests()[began:], func(r imds.Request) bool {
				return !strings.Contains(r.Key, eni.MAC().String())
			})
		}
		// EFA-only, and a ghost that metadata still list after the detach.
		efa, err := l.Inst.Create(t.Context(), vpc.ENISpec{})
		if err != nil {
			t.Fatal(err)
		}
		efa.Publish(imds.Propagation{})
		// A link that the metadata do not have.
		bare, err := l.Inst.Create(t.Context(), vpc.ENISpec{})
		if err != nil {
			t.Fatal(err)
		}
		if err := bare.Plug(t.Context()); err != nil {
			t.Fatal(err)
		}
		backsOff(l, func() []imds.Request { return of(bare) })
		got := l.AwaitENI(bare.Name(), func(i *state.Interface) bool { return i.State == state.ENIPending && i.Reason != "" })
		if got.ENIID != "" || len(got.Files) > 0 {
			t.Errorf("%+v", got)
		}
		if requests := of(efa); len(requests) > 0 {
			t.Errorf("metadata of an ENI without a link were asked for: %+v", requests)
		}
		if s := l.Describe(); len(s.Interfaces) != 2 {
			t.Errorf("interfaces: %+v", s.Interfaces)
		}
		if now := log(); now != said {
			t.Errorf("said: %s", strings.TrimPrefix(now, said))
		}
		// When they come, all is well.
		bare.Publish(imds.Propagation{})
		if err := efa.Plug(t.Context()); err != nil {
			t.Fatal(err)
		}
		l.Run("ec2netctl", "refresh", "--wait")
		l.AwaitSettledAs(bare, bare.Name())
		l.AwaitSettledAs(efa, efa.Name())
		// The ghost of one that is detached.
		if err := efa.DetachLingering(t.Context(), time.Hour); err != nil {
			t.Fatal(err)
		}
		l.Until("the detached ENI is gone", func() (bool, error) { return len(l.Describe().Interfaces) == 2, nil })
		began = len(l.Inst.Metadata().Requests())
		l.Run("ec2netctl", "refresh", "--wait")
		if requests := of(efa); len(requests) > 0 {
			t.Errorf("metadata of a ghost were asked for: %+v", requests)
		}
		if units := l.Units(efa.MAC()); len(units) > 0 {
			t.Errorf("files of a ghost: %v", units)
		}
		l.CheckLog("warning")
	})
}

// backsOff checks the pace of the reads of a link that has no metadata: an ENI is listed late, so it
// is asked for after 50, 100, 200, 200, … ms for ten seconds (D11), and then with a delay that
// doubles (C8), each up to a tenth less. A delay counts from the answer, so no machine is so slow
// that two reads are closer together.
func backsOff(l *labtest.Lab, reads func() []imds.Request) {
	l.T.Helper()
	var early, late []time.Time
	l.Until("the metadata were asked for five times after ten seconds", func() (bool, error) {
		early, late = nil, nil
		for _, r := range reads() {
			if len(early) > 0 && r.Time.Sub(early[0]) > 10*time.Second {
				late = append(late, r.Time)
			} else {
				early = append(early, r.Time)
			}
		}
		return len(late) >= 5, nil
	})
	check := func(when string, times []time.Time, first, limit time.Duration) {
		for i, delay := 1, first; i < len(times); i, delay = i+1, min(2*delay, limit) {
			if gap := times[i].Sub(times[i-1]); gap < delay*9/10 {
				l.T.Errorf("%s, read %d came %v after the one before, and not %v", when, i+1, gap, delay)
			}
		}
	}
	check("in the first ten seconds", early, 50*time.Millisecond, 200*time.Millisecond)
	check("after ten seconds", late, 400*time.Millisecond, time.Minute)
	l.T.Logf("%d reads in ten seconds, then %d in %v", len(early), len(late), late[len(late)-1].Sub(late[0]))
	// Half of what there would be on a machine that takes no time.
	if len(early) < 25 {
		l.T.Errorf("%d reads in ten seconds", len(early))
	}
}

// C6: a link that vanishes at any step of a slow read leaves nothing, and nothing is said.
func TestLabVanishing(t *testing.T) {
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		eni, err := l.Inst.Create(t.Context(), vpc.ENISpec{IPv4Count: 2, PrefixV4Count: 1})
		if err != nil {
			t.Fatal(err)
		}
		files, pid := l.Files(), l.DaemonPID()
		if _, err := l.Inst.Metadata().AddFault(imds.Fault{
			Pattern: "network/interfaces/macs/" + eni.MAC().String() + "/**", Effect: imds.Delay, Delay: 150 * time.Millisecond,
		}); err != nil {
			t.Fatal(err)
		}
		began := len(l.Inst.Metadata().Requests())
		for step := 1; step <= 9; step++ {
			l.Reattach(eni, "")
			l.Until(fmt.Sprintf("request %d of the ENI's is under way", step), func() (bool, error) {
				n := 0
				for _, r := range l.Inst.Metadata().Requests()[began:] {
					if strings.Contains(r.Key, eni.MAC().String()) {
						n++
					}
				}
				return n >= step, nil
			})
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			began = len(l.Inst.Metadata().Requests())
		}
		if now := l.Files(); now != files {
			t.Errorf("files:\n%s\nbefore:\n%s", now, files)
		}
		if left := l.Residue(); left != "" {
			t.Errorf("residue: %s", left)
		}
		// No process waits, and no connection to the metadata service.
		if procs := l.Run("cat", "/sys/fs/cgroup/system.slice/ec2netd.service/cgroup.procs"); procs != pid {
			t.Errorf("processes of the service: %q, want %s", procs, pid)
		}
		// At most it was configured for a moment.
		for line := range strings.Lines(l.DaemonLog("--priority=info")) {
			if !strings.HasPrefix(line, "ENI configured ") && !strings.HasPrefix(line, "ENI detached ") {
				t.Errorf("said: %s", line)
			}
		}
		l.Inst.Metadata().ClearFaults()
		l.Reattach(eni, "")
		l.AwaitSettled(eni)
	})
}

// C7: ENIs come and go in quick succession, and nothing piles up. What the loop itself
// starts is counted in TestCycles of service/agent, where each goroutine can be seen.
// Policy rules are not looked at: networkd 257 forgets those that it was just setting
// when the link went (how-it-works.md).
func TestLabCycles(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		random := labtest.Seeded(t)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CheckKernel(eni)
		l.Detach(eni)
		l.AwaitGone(eni, 1)
		units := func() string {
			return l.Run("systemctl", "list-units", "--all", "--plain", "--no-legend", "--no-pager", "--full", "--output=json")
		}
		// Connections to the metadata service are kept for 20 s, and the primary is looked at each
		// 15 s with at most two requests side by side: two are never idle for long enough. Any
		// other is one for the ENI that is gone.
		connections := func() {
			t.Helper()
			l.Until("no connection is left but those that looks at the primary use", func() (bool, error) { return l.Usage().Connections <= 2, nil })
		}
		connections()
		list, files, before := units(), l.Files(), l.Usage()
		there := func() string { return l.Run("sh", "-c", "find /run/systemd/network /run/ec2netd | sort") }
		left := there()
		cycles := 40
		if labtest.Long() {
			cycles = 500
		}
		gap := func() { time.Sleep(time.Duration(random.IntN(200)) * time.Millisecond) }
		for range cycles {
			l.Reattach(eni, "")
			gap()
			l.Detach(eni)
			gap()
		}
		l.AwaitGone(eni, 1)
		if now := l.Files(); now != files {
			t.Errorf("files:\n%s\nbefore:\n%s", now, files)
		}
		if now := there(); now != left {
			t.Errorf("files:\n%s\nbefore:\n%s", now, left)
		}
		l.Until("list-units is as before", func() (bool, error) { return units() == list, nil })
		var after labtest.Usage
		l.Until("no more files are open than before", func() (bool, error) {
			after = l.Usage()
			return after.FDs <= before.FDs, nil
		})
		connections()
		t.Logf("before: %+v, after %d cycles: %+v", before, cycles, after)
		// The Go runtime keeps threads and memory that it once needed.
		if after.Threads > before.Threads+6 || after.RSS > before.RSS+16<<10 {
			t.Errorf("before: %+v, after %d cycles: %+v", before, cycles, after)
		}
		if n := l.Run("systemctl", "show", "--property=NRestarts", "--value", "ec2netd.service"); n != "0" {
			t.Errorf("the daemon was restarted %s times", n)
		}
		l.CheckLog("warning")
		l.Reattach(eni, "")
		l.AwaitSettled(eni)
	})
}
