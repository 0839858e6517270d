package agent

import (
	"bytes"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"ec2netd/service/conflict"
	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/metrics"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/poller"
	"ec2netd/service/state"
)

func bubble(t *testing.T, test func(*testing.T, *world)) {
	t.Helper()
	synctest.Test(t, func(t *testing.T) { test(t, newWorld(t)) })
}

func (w *world) tree(t *testing.T) string {
	t.Helper()
	var out strings.Builder
	err := filepath.WalkDir(filepath.Join(w.dir, plan.Directory), func(p string, d os.DirEntry, err error) error {
		if errors.Is(err, fs.ErrNotExist) || d.IsDir() {
			return nil
		}
		info, err := d.Info()
		if err != nil {
			return err
		}
		text, _ := os.ReadFile(p)
		target, _ := os.Readlink(p)
		out.WriteString(p + target + info.ModTime().String() + string(text) + "\n")
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return out.String()
}

// C1, E3: one consistent view, one reload; then nothing, however often it looks.
func TestAttachAndIdle(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Second)
		must(t, a, "ens5", state.ENIConfigured)
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.22", "10.0.1.21")
		_, before, _ := w.counts()
		settle(time.Second)
		got := must(t, a, "eni-00000000000000001", state.ENIConfigured)
		if got.Table != 10001 || got.Metric != 513 || !slices.Equal(got.Altnames, []string{"eni-00000000000000001", "device-number-1"}) {
			t.Errorf("%+v", got)
		}
		if _, reloads, _ := w.counts(); reloads != before+1 {
			t.Errorf("%d reloads for one ENI", reloads-before)
		}
		if a.State().State != state.Configured {
			t.Errorf("%s: %s", a.State().State, a.State().Reason)
		}
		// H2: of the two, one came while the daemon ran.
		each := 0
		for _, m := range a.Metrics() {
			switch value := m.Value.(type) {
			case uint64:
				if m.Name == metrics.Prefix+"Attachments" && value != 1 ||
					m.Name == metrics.Prefix+"NetworkdReloads" && value != a.State().Networkd.Reloads ||
					m.Name == metrics.Prefix+"MetadataReads" && (value > 0) != (m.Fields["result"] == "ok") {
					t.Errorf("%+v", m)
				}
			case float64:
				if m.Object == "ens6" {
					each++
				}
				if strings.HasSuffix(m.Name, "AttachmentSeconds") && (value < 0 || value > 1 || (m.Object != "" && m.Object != "ens6")) {
					t.Errorf("%+v", m)
				}
			}
		}
		if each != 1 {
			t.Errorf("%d ENIs tell how long they took", each)
		}
		settle(10 * time.Minute)
		tree := w.tree(t)
		reads, reloads, lines := w.counts()
		published := a.State()
		// H4: networkd was asked, and is not asked again while nothing changes.
		asked := w.questions
		for _, item := range must(t, a, "ens6", state.ENIConfigured).Items {
			if item.Reason != "" || !item.Kernel || (item.Networkd != state.Yes && item.Kind != state.ItemAltname) {
				t.Errorf("of a configured ENI: %+v", item)
			}
		}
		settle(100 * time.Minute)
		reads2, reloads2, lines2 := w.counts()
		if reads2 < reads+150 {
			t.Errorf("%d reads in 100 refreshes of 2 ENIs", reads2-reads)
		}
		if reloads2 != reloads || lines2 != lines || w.tree(t) != tree || w.triggers > 2 {
			t.Errorf("idle: %d reloads, %d log lines, %d triggers", reloads2-reloads, lines2-lines, w.triggers)
		}
		if !published.Same(a.State()) {
			t.Errorf("the state changed: %+v to %+v", published, a.State())
		}
		if asked == 0 || w.questions != asked {
			t.Errorf("networkd was asked %d times what it has applied, and %d times when idle", asked, w.questions-asked)
		}
	})
}

// H4: a networkd that does not count as its own what is there, or does not answer, is asked
// ever more seldom; a Refresh asks it at once.
func TestDisputed(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.set(func() { w.denies = true })
		a, stop := w.start(t)
		defer stop()
		says := func() state.Answer {
			for _, item := range must(t, a, "ens5", state.ENIConfigured).Items {
				if item.Kind == state.ItemAddress {
					return item.Networkd
				}
			}
			t.Fatal("there is no address")
			return 0
		}
		if n := w.during(&w.questions, time.Hour); n < 10 || n > 25 || says() != state.No {
			t.Errorf("asked %d times in the first hour, and said %v", n, says())
		}
		if n := w.during(&w.questions, 2*time.Hour); n < 10 || n > 13 {
			t.Errorf("asked %d times in two hours", n)
		}
		w.set(func() { w.denies = false })
		if _, err := a.Refresh(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		settle(time.Second)
		if says() != state.Yes {
			t.Errorf("after a Refresh it says %v", says())
		}
		if n := w.during(&w.questions, time.Hour); n > 0 {
			t.Errorf("asked %d times with nothing disputed", n)
		}
		// A failure does not slow down what comes after it.
		w.set(func() { w.dumb = true })
		w.attach(1, "ens6", "10.0.2.10")
		if n := w.during(&w.questions, time.Hour); n < 55 || n > 75 {
			t.Errorf("asked %d times in an hour without an answer", n)
		}
		w.set(func() { w.dumb, w.denies = false, true })
		if n := w.during(&w.questions, 5*time.Minute); n < 8 || says() != state.No {
			t.Errorf("asked %d times in the five minutes after the first answer, and said %v", n, says())
		}
	})
}

// Several ENIs at once make few reloads.
func TestManyAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.delay = 5 * time.Millisecond
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Second)
		_, before, _ := w.counts()
		for i := 1; i < 15; i++ {
			w.attach(i, fmt.Sprintf("ens%d", 5+i), fmt.Sprintf("10.0.1.%d", 20+2*i), fmt.Sprintf("10.0.1.%d", 21+2*i))
		}
		settle(time.Second)
		for _, i := range a.State().Interfaces {
			if i.State != state.ENIConfigured {
				t.Errorf("%s is %s: %s", i.Name, i.State, i.Reason)
			}
		}
		if _, reloads, _ := w.counts(); reloads-before > 3 {
			t.Errorf("%d reloads for 14 ENIs", reloads-before)
		}
	})
}

// C6: a link that vanishes in the middle of a slow read takes the read with it: nobody
// waits, the other reads go on at once, and nothing is said of it.
func TestVanishedWhileRead(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Second)
		must(t, a, "ens5", state.ENIConfigured)
		w.set(func() { w.delay = 15 * time.Second })
		// As many as are read at once.
		for i := 1; i <= poller.Readers; i++ {
			w.attach(i, fmt.Sprintf("ens%d", 5+i), fmt.Sprintf("10.0.1.%d", 20+i))
		}
		settle(time.Second)
		// The primary may be among them.
		if got := w.underWay(); got < poller.Readers-1 {
			t.Fatalf("%d reads are under way, want %d", got, poller.Readers)
		}
		for i := 1; i <= poller.Readers; i++ {
			w.detach(i)
		}
		settle(time.Second)
		if got := w.underWay(); got != 0 {
			t.Errorf("%d reads are under way for links that are gone", got)
		}
		if len(a.State().Interfaces) != 1 || strings.Contains(w.tree(t), "ens6") {
			t.Errorf("residue: %+v\n%s", a.State().Interfaces, w.tree(t))
		}
		// The same link again, with the old read's end still to come, is a new one.
		w.set(func() { w.delay = time.Millisecond })
		w.attach(1, "ens6", "10.0.1.21")
		settle(time.Second)
		must(t, a, "ens6", state.ENIConfigured)
		w.detach(1)
		settle(time.Minute)
		for _, line := range w.log {
			if !strings.Contains(line, "level=INFO") || (!strings.Contains(line, "ENI configured") && !strings.Contains(line, "ENI detached")) {
				t.Errorf("said: %s", line)
			}
		}
	})
}

// C3: a second link with an ENI's MAC address takes nothing from either, the reason is
// shown, and it resolves whichever of the two goes.
func TestSameMACTwice(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(10 * time.Second)
		must(t, a, "ens6", state.ENIConfigured)
		tree := w.tree(t)
		twin := func() {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.links = append(w.links, kernel.Link{Index: 90, Name: "v0", MAC: macOf(1), Driver: "ena"})
			w.ring()
		}
		leave := func(name string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			w.links = slices.DeleteFunc(w.links, func(l kernel.Link) bool { return l.Name == name })
			w.apply()
			w.ring()
		}
		twin()
		for range 3 {
			settle(time.Minute)
			for name, other := range map[string]string{"ens6": "v0", "v0": "ens6"} {
				if got := must(t, a, name, state.ENIPending); !strings.Contains(got.Reason, "another link ("+other+")") {
					t.Errorf("%s: %s", name, got.Reason)
				}
			}
			if got, ok := a.State().Find("eni-00000000000000001"); !ok || got.Name != "ens6" {
				t.Errorf("the ENI is %+v", got)
			}
			if w.tree(t) != tree || !slices.Equal(w.addresses("ens6"), []string{"10.0.1.20", "10.0.1.21"}) {
				t.Errorf("files or addresses changed:\n%s\nbefore:\n%s", w.tree(t), tree)
			}
			must(t, a, "ens5", state.ENIConfigured)
		}
		leave("v0")
		settle(time.Second)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" || w.tree(t) != tree {
			t.Errorf("%+v\n%s", got, w.tree(t))
		}
		// The other one is the ENI now.
		twin()
		settle(time.Second)
		w.set(func() {
			w.links[len(w.links)-1].Addresses = []kernel.Address{{Prefix: netip.MustParsePrefix("10.0.1.20/24"), Global: true}}
		})
		leave("ens6")
		settle(5 * time.Second)
		if got := must(t, a, "eni-00000000000000001", state.ENIConfigured); got.Name != "v0" || strings.Contains(w.tree(t), "ens6") {
			t.Errorf("%+v\n%s", got, w.tree(t))
		}
	})
}

// A udevd that does not answer holds up nothing but alternative names, is worth a word
// only when that lasts, and is asked again.
func TestUdevHangs(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		warnings := func() (lines int) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, line := range w.log {
				if strings.Contains(line, "level=WARN") {
					lines++
				}
			}
			return lines
		}
		w.set(func() { w.udevErr = errors.New("udevadm control --reload: signal: killed") })
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(2 * time.Second)
		if got := must(t, a, "ens6", state.ENIConfiguring); !slices.Contains(w.addresses("ens6"), "10.0.1.21") || !onlyAltnames(got.Missing) {
			t.Errorf("while udevd hangs: addresses %q, missing %q", w.addresses("ens6"), got.Missing)
		}
		settle(18 * time.Second)
		if n := warnings(); n != 1 { // that of the ENI, which is degraded now
			t.Errorf("%d warnings after 20 s: %q", n, w.log)
		}
		must(t, a, "ens6", state.ENIDegraded)
		settle(5 * time.Minute)
		if n := warnings(); n != 2 {
			t.Errorf("%d warnings after 5 minutes: %q", n, w.log)
		}
		w.set(func() { w.udevErr = nil })
		settle(90 * time.Second)
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// C4: a link that udevd has missed is shown to it again.
func TestMissedByUdev(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(10 * time.Minute)
		triggers := w.triggers
		w.set(func() { w.deaf = true })
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(5 * time.Minute)
		if got := w.triggers - triggers; got < 2 || got > 2*7 {
			t.Errorf("udevd was asked %d times in 5 minutes", got)
		}
		w.set(func() { w.deaf = false })
		w.ring()
		settle(90 * time.Second)
		must(t, a, "ens6", state.ENIConfigured)
		triggers = w.triggers
		settle(10 * time.Minute)
		if w.triggers != triggers {
			t.Errorf("udevd was asked %d times with nothing to do", w.triggers-triggers)
		}
	})
}

// B8: an address that moves to another ENI leaves the old one as soon as the new one has it:
// until then its packets leave by the old one, where EC2 drops them.
func TestMovedAddress(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.50")
		w.attach(2, "ens7", "10.0.1.30")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		from, to := 1, 2
		name := func(index int) string { return fmt.Sprintf("ens%d", 5+index) }
		for range 10 {
			w.set(func() {
				w.views[macOf(from)] = viewOf(from, fmt.Sprintf("10.0.1.%d", 10+10*from))
				w.views[macOf(to)] = viewOf(to, fmt.Sprintf("10.0.1.%d", 10+10*to), "10.0.1.50")
			})
			for waited := 0; !slices.Contains(w.addresses(name(to)), "10.0.1.50"); waited++ {
				if waited > 70 {
					t.Fatalf("%s: %q", name(to), w.addresses(name(to)))
				}
				settle(time.Second)
			}
			settle(time.Second)
			if got := w.addresses(name(from)); slices.Contains(got, "10.0.1.50") {
				t.Errorf("%s still has %q", name(from), got)
			}
			settle(5 * time.Minute)
			must(t, a, name(from), state.ENIConfigured)
			must(t, a, name(to), state.ENIConfigured)
			from, to = to, from
		}
	})
}

// A1, A2, D3: a change follows by itself, and only what the metadata withdrew goes.
func TestAssignAndUnassign(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.21") })
		settle(70 * time.Second)
		must(t, a, "ens6", state.ENIConfigured)
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("assigned: %v", got)
		}
		for _, err := range []error{
			&metadata.Error{Key: "local-ipv4s", Kind: metadata.ServerError, Status: 500, Err: errors.New("500")},
			&metadata.Error{Key: "local-ipv4s", Kind: metadata.Denied, Status: 403, Err: errors.New("403")},
			&metadata.Error{Key: "local-ipv4s", Kind: metadata.Throttled, Status: 429, Err: errors.New("429")},
			&metadata.Error{Key: "local-ipv4s", Kind: metadata.Timeout, Err: errors.New("late")},
			&metadata.Error{Key: "local-ipv4s", Kind: metadata.Malformed, Status: 200, Err: errors.New("garbage")},
			&metadata.IncompleteError{MAC: macOf(1), Missing: []string{"local-ipv4s"}},
			&metadata.IncompleteError{MAC: macOf(1)},
		} {
			tree := w.tree(t)
			w.set(func() { w.errs[macOf(1)] = err })
			settle(10 * time.Minute)
			got := must(t, a, "ens6", state.ENIConfigured)
			if !strings.Contains(got.Reason, err.Error()) {
				t.Errorf("%v: the reason is %q", err, got.Reason)
			}
			if w.tree(t) != tree || len(w.addresses("ens6")) != 2 {
				t.Errorf("%v: something changed", err)
			}
			_, _, lines := w.counts()
			settle(time.Hour)
			if _, _, now := w.counts(); now != lines {
				t.Errorf("%v: %d more log lines for the same error: %q", err, now-lines, w.log[lines:])
			}
			w.set(func() { delete(w.errs, macOf(1)) })
			settle(2 * time.Minute)
			if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" || a.State().State != state.Configured {
				t.Errorf("%v: afterwards %q, %s %s", err, got.Reason, a.State().State, a.State().Reason)
			}
		}
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20") })
		settle(70 * time.Second)
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.20"}) {
			t.Errorf("unassigned: %v", got)
		}
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// D7: a metadata service that is off is a normal state.
func TestOffline(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		off := &metadata.Error{Key: "mac", Kind: metadata.Unreachable, Err: errors.New("refused")}
		w.errs[""] = off
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Hour)
		if s := a.State(); s.State != state.Offline || !strings.Contains(s.Reason, "refused") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		if reads, _, lines := w.counts(); reads > 90 || lines > 3 {
			t.Errorf("%d reads and %d log lines in an hour: %q", reads, lines, w.log)
		}
		// The primary has its metric all the same.
		if got := must(t, a, "ens5", state.ENIPending); got.Metric != 512 || !got.Primary {
			t.Errorf("%+v", got)
		}
		unit := func() string {
			_, own, _ := strings.Cut(w.tree(t), "70-ens5.network/")
			return own
		}
		tree := unit()
		w.set(func() { delete(w.errs, "") })
		settle(2 * time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		// E1: what was presumed was right, so nothing of it is written again.
		if now := unit(); tree == "" || now != tree {
			t.Errorf("before:\n%s\nafter:\n%s", tree, now)
		}
	})
}

// C2: a detach removes files and touches nobody else.
func TestDetach(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10", "10.0.1.11")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		tree := w.tree(t)
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(time.Minute)
		_, reloads, _ := w.counts()
		w.detach(1)
		settle(time.Second)
		if _, ok := a.State().Find("ens6"); ok {
			t.Error("still in the state")
		}
		if _, now, _ := w.counts(); now != reloads {
			t.Errorf("%d reloads", now-reloads)
		}
		if w.tree(t) != tree {
			t.Errorf("files:\n%s\nbefore:\n%s", w.tree(t), tree)
		}
	})
}

// C3: attached again under another name: one unit for that MAC address.
func TestReattach(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.detach(1)
		w.attach(1, "ens9", "10.0.1.20")
		settle(time.Minute)
		must(t, a, "ens9", state.ENIConfigured)
		units, err := w.store.Units()
		if err != nil {
			t.Fatal(err)
		}
		for _, u := range units {
			if u.Name == "ens6" {
				t.Errorf("%+v is left", u)
			}
		}
	})
}

// A3: an ENI that is attached again under its name while the daemon is down has the
// addresses of its old drop-in before the lease.
func TestReattachedWhileDown(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		_, stop := w.start(t)
		settle(time.Minute)
		stop()
		w.set(func() {
			w.links[1].Index = 8
			slices.Reverse(w.links[1].Addresses)
		})
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.21", "10.0.1.20"}) {
			t.Fatal(got)
		}
		a, stop := w.start(t)
		defer stop()
		settle(10 * time.Second)
		if got := w.addresses("ens6"); must(t, a, "ens6", state.ENIConfigured).Reason != "" || !slices.Equal(got, []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("%q, %+v", got, must(t, a, "ens6", state.ENIConfigured))
		}
	})
}

// B5, C3: two ENIs that are attached again under their old names, with each other's device
// index: each waits for the other's numbers, and at no moment do two have the same on disk.
func TestSwappedNumbers(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) { swappedNumbers(t, w) })
	bubble(t, func(t *testing.T, w *world) {
		w.helpless = true
		swappedNumbers(t, w)
	})
}

func swappedNumbers(t *testing.T, w *world) {
	w.attach(0, "ens5", "10.0.1.10")
	w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
	w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
	a, stop := w.start(t)
	defer stop()
	settle(time.Minute)
	w.store.Step = func() {
		held := make(map[plan.Numbers]string)
		for mac, numbers := range plan.Assigned(w.unitFiles(), "") {
			if other := held[numbers]; other != "" {
				t.Errorf("%s and %s both have %+v on disk", mac, other, numbers)
			}
			held[numbers] = mac
		}
	}
	w.set(func() {
		one, two := w.views[macOf(1)], w.views[macOf(2)]
		one.DeviceIndex, two.DeviceIndex = 2, 1
		w.unique = true
		w.views[macOf(1)], w.views[macOf(2)] = one, two
		w.links[1].Index, w.links[2].Index = 8, 9
	})
	w.ring()
	settle(time.Minute)
	if w.helpless {
		swappedByHand(t, w, a)
	} else if w.runs > 2 {
		t.Errorf("names were removed %d times", w.runs)
	}
	for name, table := range map[string]int{"ens6": 10002, "ens7": 10001} {
		if got := must(t, a, name, state.ENIConfigured); got.Table != table {
			t.Errorf("%s has table %d, want %d", name, got.Table, table)
		}
	}
}

// swappedByHand is what an admin does where nobody takes the names of two ENIs by number
// from the other link.
func swappedByHand(t *testing.T, w *world, a *Agent) {
	t.Helper()
	for name, other := range map[string]string{"ens6": "ens7", "ens7": "ens6"} {
		if got := must(t, a, name, state.ENIDegraded); !strings.Contains(got.Reason, "ip link property del dev "+other+" altname device-number-") {
			t.Errorf("%s: %s", name, got.Reason)
		}
	}
	triggers := w.triggers
	settle(10 * time.Minute)
	if w.triggers != triggers {
		t.Errorf("udevd was asked %d times for names that it cannot give", w.triggers-triggers)
	}
	w.set(func() {
		for i := range w.links {
			w.links[i].Altnames = slices.DeleteFunc(w.links[i].Altnames, func(name string) bool { return i > 0 && strings.HasPrefix(name, "device-number-") })
		}
	})
	w.ring()
	settle(time.Second)
}

// C3: two ENIs that are attached again with each other's names, at once for the daemon
// or while it is down.
func TestSwappedNames(t *testing.T) {
	t.Parallel()
	for _, down := range []bool{false, true} {
		bubble(t, func(t *testing.T, w *world) {
			w.attach(0, "ens5", "10.0.1.10")
			w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
			w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
			a, stop := w.start(t)
			settle(time.Minute)
			if down {
				stop()
			}
			w.set(func() {
				w.links[1].Name, w.links[2].Name = "ens7", "ens6"
				w.links[1].Index, w.links[2].Index = 8, 9
			})
			if down {
				a, stop = w.start(t)
			} else {
				w.ring()
			}
			defer stop()
			settle(time.Minute)
			for name, index := range map[string]int{"ens7": 1, "ens6": 2} {
				if got := must(t, a, name, state.ENIConfigured); got.MAC != macOf(index) || got.Table != 10000+index {
					t.Errorf("%+v", got)
				}
			}
		})
	}
}

// C3, F2: while nothing is known of an ENI that has come under another's name, the
// files of that other one are not left in force for it.
func TestSwappedNamesWithoutMetadata(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		off := &metadata.Error{Key: "local-ipv4s", Kind: metadata.Timeout, Err: errors.New("late")}
		w.set(func() {
			w.errs[macOf(1)], w.errs[macOf(2)] = off, off
			w.links[1].Name, w.links[2].Name = "ens7", "ens6"
			w.links[1].Index, w.links[2].Index = 8, 9
		})
		w.ring()
		settle(time.Minute)
		for name, mac := range map[string]string{"ens7": macOf(1), "ens6": macOf(2)} {
			must(t, a, name, state.ENIPending)
			if got := dropin.ParseNetwork(w.store.Read(plan.NetworkDropIn(name))).MACAddress(); got != "" && got != mac {
				t.Errorf("%s has the file of %s", name, got)
			}
		}
		w.set(func() { clear(w.errs) })
		settle(3 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		must(t, a, "ens7", state.ENIConfigured)
	})
}

// A1, A3: secondary addresses wait for a lease that networkd has let go, but not for ever.
func TestLeaseThatDoesNotCome(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.old, w.drivers = true, nil // the base unit brings it
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.onReload = func() { w.set(func() { w.late = map[string]bool{"ens6": true} }) }
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.set(w.apply)
		settle(5 * time.Second)
		if got := w.addresses("ens6"); len(got) != 0 {
			t.Errorf("before the lease: %v", got)
		}
		settle(time.Minute)
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.21"}) {
			t.Errorf("the lease does not come: %v", got)
		}
		if got := must(t, a, "ens6", state.ENIDegraded); !strings.Contains(got.Reason, "10.0.1.20") {
			t.Error(got.Reason)
		}
	})
	// Where there was none, they need not wait, and what only the lease brings is missed.
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.late = map[string]bool{"ens6": true}
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.set(func() { w.links[1].Addresses = nil })
		_, before, _ := w.counts()
		settle(time.Second)
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("without a lease: %v", got)
		}
		settle(settleTime)
		if got := must(t, a, "ens6", state.ENIDegraded); !strings.Contains(got.Reason, "default route (IPv4)") {
			t.Error(got.Reason)
		}
		if _, now, _ := w.counts(); now != before+1 {
			t.Errorf("%d reloads", now-before)
		}
		// E5: networkd is asked to try again.
		settle(2 * repairTime)
		if _, now, _ := w.counts(); now <= before+1 {
			t.Error("nobody has networkd ask for the lease again")
		}
	})
}

// E7: a networkd that stops is still the one that it was, though its Varlink socket goes before its
// name: nothing is written, or laid ready for its start, that is for one without such a socket.
func TestStoppingNetworkd(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		before := w.tree(t)
		w.set(func() { w.stopping = true })
		w.ring()
		settle(time.Minute)
		if after := w.tree(t); after != before {
			t.Errorf("before:\n%s\nafter:\n%s", before, after)
		}
		if ready, err := filepath.Glob(filepath.Join(w.dir, plan.StartDirectory, "*", "*")); err != nil || len(ready) > 0 {
			t.Errorf("laid ready: %q (%v)", ready, err)
		}
	})
}

// networkd leaves new ENIs alone until their files are there: each is configured once. One
// whose metadata does not come gets the base unit, and so do all once the daemon is stopped
// for good.
func TestHold(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		_, stop := w.start(t)
		settle(time.Second)
		if !w.holds() {
			t.Fatal("new ENIs are not held")
		}
		_, before, _ := w.counts()
		settle(time.Hour)
		if _, now, _ := w.counts(); now != before {
			t.Errorf("%d reloads in an hour", now-before)
		}
		w.uses = map[int]networkd.LinkState{3: {Administrative: "unmanaged", File: plan.HoldPath}}
		w.set(func() {
			w.plug(1, "ens6", "10.0.1.20")
			w.errs[macOf(1)] = &metadata.Error{Kind: metadata.Timeout, Err: errors.New("no answer")}
		})
		settle(holdTime - 50*time.Millisecond)
		if _, now, _ := w.counts(); now != before || !w.holds() {
			t.Errorf("%d reloads while there is hope, held: %v", now-before, w.holds())
		}
		settle(100 * time.Millisecond)
		if _, now, _ := w.counts(); now != before+1 || w.holds() {
			t.Errorf("%d reloads for one that is not known, held: %v", now-before, w.holds())
		}
		w.set(func() {
			clear(w.errs)
			w.uses = nil
			w.views[macOf(1)] = viewOf(1, "10.0.1.20")
		})
		settle(2 * time.Minute)
		if _, now, _ := w.counts(); now > before+2 || !w.holds() {
			t.Errorf("%d reloads, and all is known; held: %v", now-before, w.holds())
		}

		// A restart leaves everything as it is.
		tree := w.tree(t)
		stop()
		_, stop = w.start(t)
		settle(time.Minute)
		if now := w.tree(t); now != tree {
			t.Errorf("a restart changed the files:\n%s\nbefore:\n%s", now, tree)
		}
		// Whoever sees the process end removes the file, if it does not start again.
		_, before, _ = w.counts()
		stop()
		if _, now, _ := w.counts(); now != before || w.tree(t) != tree {
			t.Errorf("the end took %d reloads and left the files:\n%s\nbefore:\n%s", now-before, w.tree(t), tree)
		}
	})
}

// Where networkd does not use the unit of an ENI but the base unit, that is not kept from it,
// until it does; and a new link that networkd has the base unit for is not taken for one that
// it leaves alone.
func TestHoldGivesWay(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		_, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		_, before, _ := w.counts()
		uses := func(index int, file string) {
			w.set(func() { w.uses = map[int]networkd.LinkState{index: {Administrative: "configured", File: file}} })
			w.ring()
		}
		base, _ := w.unitFiles().Base()
		uses(3, base)
		settle(5 * time.Minute)
		if _, now, _ := w.counts(); w.holds() || now != before+1 {
			t.Errorf("an ENI has the base unit: held %v, after %d reloads", w.holds(), now-before)
		}
		uses(3, plan.NetworkPath("ens6"))
		settle(5 * time.Minute)
		if _, now, _ := w.counts(); !w.holds() || now != before+1 {
			t.Errorf("it has its own: held %v, after %d reloads", w.holds(), now-before)
		}
		// The next reload has it in force.
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.21") })
		settle(time.Minute)
		uses(4, base)
		w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
		settle(time.Second)
		if content := w.store.Read(plan.NetworkDropIn("ens7")); content == "" || strings.Contains(content, "Address=10.0.1.30/24") {
			t.Errorf("of a link with the base unit:\n%s", content)
		}
	})
}

func (w *world) holds() bool { return w.store.Read(plan.HoldPath) != "" }

// It goes on over a detachment, which takes no reload, and is there before networkd is.
func TestHoldGoesOn(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		_, before, _ := w.counts()
		w.detach(1)
		settle(time.Second)
		if _, now, _ := w.counts(); now != before {
			t.Errorf("%d reloads for a detachment", now-before)
		}
		w.set(func() { w.delay = 400 * time.Millisecond })
		w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
		w.attach(3, "ens8", "10.0.1.40", "10.0.1.41")
		for range 30 {
			settle(50 * time.Millisecond)
			if !w.holds() {
				t.Fatal("ENIs whose metadata is being read are not held")
			}
		}
		for _, name := range []string{"ens7", "ens8"} {
			must(t, a, name, state.ENIConfigured)
			if content := w.store.Read(plan.NetworkDropIn(name)); !strings.Contains(content, "/24\nAddPrefixRoute=no\n") {
				t.Errorf("networkd has not left %s alone:\n%s", name, content)
			}
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		w.running = false
		w.attach(0, "ens5", "10.0.1.10")
		_, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if !w.holds() {
			t.Error("ENIs that come when networkd has started are not held")
		}
	})
}

// B5, B6: the first link was taken for the primary, which the metadata says another one
// is. A link that comes later is no reason to doubt it: the primary is there from the
// launch on, and is not attached while the instance runs.
func TestWrongPresumption(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		off := &metadata.Error{Key: "mac", Kind: metadata.Timeout, Err: errors.New("late")}
		w.errs[""] = off
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIPending); got.Metric != 512 {
			t.Errorf("%+v", got)
		}
		w.attach(0, "ens5", "10.0.1.10")
		settle(time.Minute)
		if a5, a6 := must(t, a, "ens5", state.ENIPending), must(t, a, "ens6", state.ENIPending); a6.Metric != 512 || a5.Metric < plan.UnknownMetric {
			t.Errorf("%+v, %+v", a5, a6)
		}
		w.set(func() { clear(w.errs) })
		settle(3 * time.Minute)
		if must(t, a, "ens5", state.ENIConfigured).Metric != 512 || must(t, a, "ens6", state.ENIConfigured).Metric != 513 {
			t.Errorf("%+v", a.State())
		}
	})
}

// One ENI that cannot be read is told once, not at each refresh.
func TestSteadyFailure(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		w.set(func() {
			w.errs[macOf(1)] = &metadata.Error{Key: "local-ipv4s", Kind: metadata.ServerError, Status: 500, Err: errors.New("500")}
		})
		settle(5 * time.Minute)
		published := 0
		watch := a.Watch(t.Context())
		go func() {
			for range watch {
				published++
			}
		}()
		settle(time.Hour)
		if published > 1 {
			t.Errorf("%d states in an hour in which nothing changed", published)
		}
	})
}

// The bus is there before networkd: that is no failure for a while.
func TestBusBeforeNetworkd(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.bus, w.running = false, false
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(2 * time.Second)
		w.set(func() { w.bus = true })
		settle(4 * time.Second)
		if s := a.State(); s.State == state.Degraded {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		w.set(func() { w.running = true })
		settle(2 * time.Second)
		must(t, a, "ens5", state.ENIConfigured)
	})
}

// E6, D3: a restart needs no metadata to keep things as they are, with or without
// what the last run knew.
func TestRestart(t *testing.T) {
	t.Parallel()
	for _, forget := range []string{"", "gone", "garbage"} {
		bubble(t, func(t *testing.T, w *world) {
			w.attach(0, "ens5", "10.0.1.10", "10.0.1.11")
			w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
			a, stop := w.start(t)
			settle(time.Minute)
			must(t, a, "ens6", state.ENIConfigured)
			stop()
			tree, addresses := w.tree(t), w.addresses("ens6")
			views := filepath.Join(w.dir, "views.json")
			switch forget {
			case "gone":
				if err := os.Remove(views); err != nil {
					t.Fatal(err)
				}
			case "garbage":
				if err := os.WriteFile(views, []byte(`{"views":[{"ifindex":3,"eni":{"mac":"02:00:00:00:01:11","id":"../../x"}}]}`), 0o600); err != nil {
					t.Fatal(err)
				}
			}
			off := &metadata.Error{Key: "mac", Kind: metadata.Timeout, Err: errors.New("late")}
			w.set(func() { w.errs[""], w.errs[macOf(0)], w.errs[macOf(1)] = off, off, off })
			a, stop = w.start(t)
			defer stop()
			settle(10 * time.Minute)
			if w.tree(t) != tree || !slices.Equal(w.addresses("ens6"), addresses) {
				t.Errorf("%s: something changed:\n%s\n%s", forget, tree, w.tree(t))
			}
			want := state.ENIConfigured
			if forget != "" {
				want = state.ENIPending
			}
			must(t, a, "ens6", want)
			w.set(func() { clear(w.errs) })
			settle(2 * time.Minute)
			must(t, a, "ens6", state.ENIConfigured)
			if w.tree(t) != tree {
				t.Errorf("%s: the metadata is back and something changed", forget)
			}
		})
	}
}

// networkd that is not there is a reason, not a crash; when it comes, it reads.
func TestNetworkdAbsent(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.running = false
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(10 * time.Minute)
		if s := a.State(); s.State != state.Degraded || !strings.Contains(s.Reason, "masked") {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
		must(t, a, "ens6", state.ENIDegraded)
		if _, reloads, _ := w.counts(); reloads != 0 {
			t.Errorf("%d reloads", reloads)
		}
		w.set(func() { w.running = true })
		w.ring()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if s := a.State(); s.State != state.Configured {
			t.Errorf("%s: %s", s.State, s.Reason)
		}
	})
}

// D6, H4: a networkd that does not reload is asked again, and is the reason that is told.
func TestReloadFails(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.reloadErr = errors.New("no")
		w.attach(0, "ens5", "10.0.1.10", "10.0.1.11")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if got, _ := a.State().Find("ens5"); got.State == state.ENIConfigured || a.State().Networkd.LastError == "" {
			t.Errorf("%+v", a.State())
		}
		if got := must(t, a, "ens5", state.ENIDegraded); !strings.Contains(got.Reason, "10.0.1.11") || !strings.Contains(got.Reason, "networkd has not read the files: no. See") {
			t.Error(got.Reason)
		}
		// It is asked again, ever more seldom.
		_, before, _ := w.counts()
		settle(time.Hour)
		if _, now, _ := w.counts(); now-before < 50 || now-before > 70 {
			t.Errorf("%d reloads in an hour", now-before)
		}
		// Whoever asks for a Refresh has waited long enough.
		w.set(func() { w.reloadErr = nil })
		began := time.Now()
		if _, err := a.Refresh(t.Context(), true); err != nil || time.Since(began) > time.Second {
			t.Errorf("after %v: %v", time.Since(began), err)
		}
		must(t, a, "ens5", state.ENIConfigured)
	})
}

// What networkd does not bring in time is degraded, and says what.
func TestDegraded(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.set(func() { w.mute = true })
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(5 * time.Second)
		must(t, a, "ens6", state.ENIConfiguring)
		settle(5 * time.Minute)
		if got := must(t, a, "ens6", state.ENIDegraded); !strings.Contains(got.Reason, "10.0.1.21") {
			t.Error(got.Reason)
		}
		if a.State().State != state.Degraded {
			t.Error(a.State().State)
		}
		if _, _, lines := w.counts(); lines > 8 {
			t.Errorf("%d log lines: %q", lines, w.log)
		}
	})
}

// H3: Refresh says what it changed, waits for it, and says what failed.
func TestRefresh(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.delay = 10 * time.Millisecond
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		changes, err := a.Refresh(t.Context(), true)
		if err != nil || len(changes.FilesWritten)+len(changes.Interfaces) > 0 || !changes.Settled || changes.Reloaded {
			t.Errorf("nothing to do: %+v, %v", changes, err)
		}
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.22") })
		began := time.Now()
		changes, err = a.Refresh(t.Context(), true)
		if err != nil {
			t.Fatal(err)
		}
		if !changes.Settled || !changes.Reloaded || len(changes.FilesWritten) != 1 || len(changes.Interfaces) != 1 ||
			!slices.Equal(changes.Interfaces[0].Added, []string{"10.0.1.22"}) || !slices.Equal(changes.Interfaces[0].Removed, []string{"10.0.1.21"}) {
			t.Errorf("%+v", changes)
		}
		if took := time.Since(began); took > 300*time.Millisecond {
			t.Errorf("it took %v", took)
		}
		// Of one ENI: the other is not read, and what fails there is not its business.
		w.set(func() {
			w.views[macOf(0)] = viewOf(0, "10.0.1.10", "10.0.1.11")
			w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.22", "10.0.1.26")
			w.errs[macOf(0)] = &metadata.Error{Key: "local-ipv4s", Kind: metadata.ServerError, Status: 500, Err: errors.New("broken")}
		})
		reads, _, _ := w.counts()
		changes, err = a.RefreshInterface(t.Context(), macOf(1), true)
		if after, _, _ := w.counts(); err != nil || after != reads+1 || !changes.Settled || len(changes.Interfaces) != 1 ||
			!slices.Equal(changes.Interfaces[0].Added, []string{"10.0.1.26"}) {
			t.Errorf("of one ENI: %d reads, %+v, %v", after-reads, changes, err)
		}
		if _, err = a.RefreshInterface(t.Context(), "02:00:00:00:09:09", true); err == nil || !strings.Contains(err.Error(), "detached") {
			t.Errorf("of an ENI that is not there: %v", err)
		}
		w.set(func() {
			delete(w.errs, macOf(0))
			w.views[macOf(0)] = viewOf(0, "10.0.1.10")
			w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.22")
		})
		if _, err = a.Refresh(t.Context(), true); err != nil {
			t.Error(err)
		}
		// A read that is under way does not count, nor delays what does.
		w.set(func() { w.delay = 100 * time.Millisecond })
		go func() { _, _ = a.Refresh(t.Context(), false) }()
		time.Sleep(50 * time.Millisecond)
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.24") })
		began = time.Now()
		changes, err = a.Refresh(t.Context(), true)
		if took := time.Since(began); err != nil || took < 100*time.Millisecond || took > 500*time.Millisecond ||
			!slices.Contains(w.addresses("ens6"), "10.0.1.24") {
			t.Errorf("during a read: after %v: %+v, %v", took, changes, err)
		}
		w.set(func() {
			w.delay, w.mute = 0, true
			w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.23")
		})
		if changes, err = a.Refresh(t.Context(), false); err != nil || changes.Settled || len(changes.FilesWritten) != 1 {
			t.Errorf("without waiting: %+v, %v", changes, err)
		}
		w.set(func() {
			w.errs[macOf(1)] = &metadata.Error{Key: "local-ipv4s", Kind: metadata.ServerError, Status: 500, Err: errors.New("broken")}
		})
		if _, err = a.Refresh(t.Context(), true); err == nil || !strings.Contains(err.Error(), "local-ipv4s") {
			t.Errorf("an error of the metadata: %v", err)
		}
	})
}

// On 252 DHCP routes of an old metric stay until the link is reconfigured: once.
func TestOldMetric(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.attach(1, "ens6", "10.0.1.20")
		settle(20 * time.Millisecond)
		w.set(func() {
			stale := w.routes[len(w.routes)-1]
			for _, r := range w.routes {
				if r.Link == 3 && r.Table == kernel.MainTable {
					stale = r
				}
			}
			stale.Metric = plan.UnknownMetric
			w.routes = append(w.routes, stale)
		})
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if w.reconfigures != 1 {
			t.Errorf("%d reconfigures", w.reconfigures)
		}
	})
}

// J1: nobody waits for the unit that removes what networkd has forgotten.
func TestSlowCleaning(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.set(func() { w.forgetful, w.slow = true, 20*time.Second; w.views[macOf(1)] = viewOf(1, "10.0.1.20") })
		for range 30 {
			began := time.Now()
			if _, err := a.Refresh(t.Context(), false); err != nil {
				t.Fatal(err)
			}
			if took := time.Since(began); took > orphanTime {
				t.Fatalf("a Refresh took %s", took)
			}
			settle(100 * time.Millisecond)
		}
		settle(20 * time.Second)
		w.set(func() {
			if w.runs != 1 || slices.ContainsFunc(w.rules, func(r kernel.Rule) bool { return r.From == netip.MustParsePrefix("10.0.1.21/32") }) {
				t.Errorf("%d runs left %v", w.runs, w.rules)
			}
		})
	})
}

// H1: watchers see the latest state, and a slow one holds up nobody.
// Rules that networkd has forgotten go, and no others (F1); what is nowhere any more
// leaves the record, and what stays all the same is tried seldom.
func TestForgottenRules(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21", "10.0.1.22")
		a, stop := w.start(t)
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		record := func() string {
			text, err := os.ReadFile(filepath.Join(w.dir, "rules.json"))
			if err != nil {
				t.Fatal(err)
			}
			return string(text)
		}
		sources := func() (all []string) {
			w.mu.Lock()
			defer w.mu.Unlock()
			for _, rule := range w.rules {
				if rule.Guard {
					continue
				}
				all = append(all, rule.From.String())
			}
			slices.Sort(all)
			return all
		}
		unassign := func(left ...string) {
			t.Helper()
			w.set(func() { w.views[macOf(1)] = viewOf(1, left...) })
			if _, err := a.Refresh(t.Context(), true); err != nil {
				t.Fatal(err)
			}
			must(t, a, "ens6", state.ENIConfigured)
		}
		foreign := kernel.Rule{Priority: 10001, Table: 10001, From: netip.MustParsePrefix("10.0.1.99/32"), Plain: true, Protocol: kernel.ProtocolStatic}
		w.set(func() { w.forgetful, w.rules = true, append(w.rules, foreign) })
		unassign("10.0.1.20", "10.0.1.21")
		if got, want := sources(), []string{"10.0.1.20/32", "10.0.1.21/32", "10.0.1.99/32"}; !slices.Equal(got, want) || w.runs != 1 {
			t.Errorf("rules %v after %d runs, want %v", got, w.runs, want)
		}
		settle(5 * time.Minute)
		if text := record(); strings.Contains(text, "10.0.1.22/32") || !strings.Contains(text, "10.0.1.21/32") || strings.Contains(text, "10.0.1.99/32") {
			t.Errorf("the record: %s", text)
		}
		// Detached, and the daemon is killed before it is done.
		w.detach(1)
		stop()
		w.set(func() { w.helpless = true })
		a, stop = w.start(t)
		defer stop()
		settle(time.Hour)
		if w.runs < 4 || w.runs > 20 {
			t.Errorf("%d runs in an hour that did nothing", w.runs)
		}
		w.set(func() { w.helpless = false })
		settle(20 * time.Minute)
		if got, want := sources(), []string{"10.0.1.99/32"}; !slices.Equal(got, want) {
			t.Errorf("rules %v, want %v", got, want)
		}
		runs := w.runs
		settle(time.Hour)
		if text := record(); w.runs != runs || !strings.Contains(text, "[]") {
			t.Errorf("%d runs more, and the record is %s", w.runs-runs, text)
		}
	})
}

// E10, F12: where files are gone and cannot be written anew, what they had is not forgotten:
// nothing that the metadata lists is removed.
func TestFilesGoneForgetNothing(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		dir := filepath.Join(w.store.Root, plan.Directory)
		if err := os.RemoveAll(dir); err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(dir, nil, 0o644); err != nil {
			t.Fatal(err)
		}
		w.ring()
		settle(5 * time.Minute)
		if w.runs > 0 {
			t.Errorf("rules and addresses were to be removed %d times", w.runs)
		}
		if err := os.Remove(dir); err != nil {
			t.Fatal(err)
		}
		settle(5 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if w.runs > 0 {
			t.Errorf("afterwards rules and addresses were to be removed %d times", w.runs)
		}
	})
}

// A8: an address that EC2 withdrew and somebody adds by hand afterwards is theirs.
func TestWithdrawnAddressOfOthers(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20") })
		if _, err := a.Refresh(t.Context(), true); err != nil {
			t.Fatal(err)
		}
		must(t, a, "ens6", state.ENIConfigured)
		w.set(func() {
			for i := range w.links {
				if w.links[i].Name == "ens6" {
					w.links[i].Addresses = append(w.links[i].Addresses, kernel.Address{Prefix: netip.MustParsePrefix("10.0.1.21/32"), Global: true})
				}
			}
		})
		w.ring()
		settle(5 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if w.runs > 0 {
			t.Errorf("it was to be removed %d times", w.runs)
		}
	})
}

// F5: a conflict is in the state from the next look on, and is one line in the log.
func TestConflict(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Second)
		if s := a.State(); len(s.Conflicts) > 0 || s.Reason != "" {
			t.Errorf("%+v", s)
		}
		w.set(func() { w.others = conflict.Facts{Active: []string{"NetworkManager.service"}} })
		settle(othersTime + 2*time.Minute)
		if s := a.State(); len(s.Conflicts) != 1 || s.Conflicts[0].Name != conflict.NetworkManager || s.State != state.Configured ||
			s.Reason != "in conflict with NetworkManager: NetworkManager.service is active" {
			t.Errorf("%+v", s)
		}
		if said := w.logged("with=NetworkManager"); len(said) != 1 || !strings.Contains(said[0], "systemctl disable") {
			t.Errorf("said: %q", said)
		}
		w.set(func() { w.others = conflict.Facts{} })
		if _, err := a.Refresh(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		if s := a.State(); len(s.Conflicts) > 0 || s.Reason != "" || len(w.logged("with=NetworkManager")) != 2 {
			t.Errorf("%+v", s)
		}
		// Events of the kernel are no reason to look.
		w.ring()
		if n := w.during(&w.looked, time.Second); n > 0 {
			t.Errorf("looked %d times", n)
		}
		if n := w.during(&w.looked, time.Hour); n < 10 || n > 12 {
			t.Errorf("looked %d times in an hour", n)
		}
	})
}

// logged are the lines of the log with something in them.
func (w *world) logged(what string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	var found []string
	for _, line := range w.log {
		if strings.Contains(line, what) {
			found = append(found, line)
		}
	}
	return found
}

func TestWatch(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		slow, quick := a.Watch(t.Context()), a.Watch(t.Context())
		<-quick
		settle(time.Minute)
		w.attach(1, "ens6", "10.0.1.20")
		settle(time.Minute)
		var last *state.State
		for range 3 {
			select {
			case last = <-slow:
			case <-time.After(time.Second):
			}
		}
		if last == nil || len(last.Interfaces) != 2 || last.Interfaces[1].State != state.ENIConfigured {
			t.Errorf("%+v", last)
		}
	})
}

// passAllocations are what one more pass allocates: the median, since on a slow machine a look that
// time asks for, once in a while, is among them.
func passAllocations(t *testing.T, a *Agent) float64 {
	var runs [21]float64
	for i := range runs {
		runs[i] = testing.AllocsPerRun(1, func() { a.pass(t.Context()) })
	}
	slices.Sort(runs[:])
	return runs[len(runs)/2]
}

// E3: twice as many ENIs cost twice as much: what is read for one is not read again for each.
func TestPassIsLinear(t *testing.T) {
	// Beside no other: it counts what the process allocates.
	var before float64
	for _, enis := range []int{15, 30} {
		a, _ := idle(t, enis, 2)
		allocations := passAllocations(t, a)
		t.Logf("%v allocations with %d ENIs", allocations, enis)
		if before > 0 && allocations > 2.2*before {
			t.Errorf("%v allocations with %d ENIs, and %v with half of them", allocations, enis, before)
		}
		before = allocations
	}
}

// E3: a pass with nothing to do works nothing out again, however many addresses there are,
// and what somebody else does is seen all the same.
func TestIdlePassIsCheap(t *testing.T) {
	// Beside no other: it counts what the process allocates.
	var most float64
	for _, addresses := range []int{5, 50} {
		a, w := idle(t, 15, addresses)
		a.pass(t.Context())
		allocations := passAllocations(t, a)
		t.Logf("%v allocations with %d addresses an ENI", allocations, addresses)
		if most == 0 {
			most = 1.1*allocations + 100
		} else if allocations > most {
			t.Errorf("%v allocations with %d addresses an ENI, want at most %v", allocations, addresses, most)
		}

		file := filepath.Join(w.dir, plan.NetworkDropIn("ens6"))
		was, err := os.ReadFile(file)
		if err != nil {
			t.Fatal(err)
		}
		if err := os.WriteFile(file, bytes.Replace(was, []byte("10001"), []byte("10002"), 1), 0o644); err != nil {
			t.Fatal(err)
		}
		a.pass(t.Context())
		if now, err := os.ReadFile(file); err != nil || !bytes.Equal(now, was) {
			t.Errorf("somebody's change of %s stays: %v", file, err)
		}
		gone := netip.MustParseAddr("10.0.8.2")
		w.set(func() {
			l := &w.links[1]
			l.Addresses = slices.DeleteFunc(slices.Clone(l.Addresses), func(k kernel.Address) bool { return k.Prefix.Addr() == gone })
		})
		a.pass(t.Context())
		if got, _ := a.State().Find("ens6"); !slices.Contains(got.Missing, "address "+gone.String()) {
			t.Errorf("%s was taken away, and missing is %q", gone, got.Missing)
		}
		w.set(func() { w.rules = w.rules[:len(w.rules)-1] })
		a.pass(t.Context())
		if got, _ := a.State().Find("ens19"); len(got.Missing) != 1 {
			t.Errorf("a rule was taken away, and missing is %q", got.Missing)
		}
	}
}

// C1: several ENIs that are attached at once make one reload, though their metadata comes
// one after the other, and one of which nothing is heard holds up none of the others for long.
func TestAttachedAtOnce(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		_, before, _ := w.counts()
		w.set(func() { w.delay = 50 * time.Millisecond })
		for i := 1; i < 15; i++ {
			w.attach(i, fmt.Sprintf("ens%d", 5+i), fmt.Sprintf("10.0.1.%d", 10*(i+1)), fmt.Sprintf("10.0.1.%d", 10*(i+1)+1))
		}
		settle(1500 * time.Millisecond)
		if _, now, _ := w.counts(); now-before > 2 {
			t.Errorf("%d reloads for 14 ENIs", now-before)
		}
		for i := range 15 {
			must(t, a, macOf(i), state.ENIConfigured)
		}
	})
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.attach(1, "ens6", "10.0.1.20")
		w.attach(2, "ens7", "10.0.1.30")
		w.set(func() { w.errs[macOf(2)] = &metadata.Error{Kind: metadata.Timeout, Err: errors.New("no answer")} })
		settle(time.Second)
		must(t, a, macOf(1), state.ENIConfigured)
	})
}

// However much the passes have taken while the metadata of new ENIs was read: once it is
// there, their files are written at once.
func TestReadENIsAreNotPutOff(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		used := time.Duration(0)
		w.cpu = func() time.Duration {
			used += mostCredit + mostDebt
			return used
		}
		w.attach(0, "ens5", "10.0.1.10")
		_, stop := w.start(t)
		defer stop()
		settle(90 * time.Second) // between two refreshes
		w.set(func() { w.delay = 50 * time.Millisecond })
		for i := 1; i <= 3*poller.Readers; i++ {
			w.attach(i, fmt.Sprintf("ens%d", 5+i), fmt.Sprintf("10.0.1.%d", 20+i))
		}
		// Longer than the reads take that follow one another, and less than the pass would wait.
		settle(passShare*mostDebt - 2*gatherPause)
		for i := 1; i <= 3*poller.Readers; i++ {
			if name := fmt.Sprintf("ens%d", 5+i); w.store.Read(plan.NetworkDropIn(name)) == "" {
				t.Fatalf("%s has no file, though its metadata has been read", name)
			}
		}
	})
}

// A1, A3: an ENI whose addresses can be given waits a moment for the lease of another that
// was attached with it, so that there is one reload for both. What keeps the lease of the
// other one from being used, routes of an old metric, is mended meanwhile.
func TestLeasesAreGathered(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.old, w.drivers = true, nil
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		// The lease by the base unit goes when networkd has the ENI's own.
		w.onReload = func() { w.set(func() { w.late = map[string]bool{"ens6": true, "ens7": true} }) }
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.attach(2, "ens7", "10.0.1.30", "10.0.1.31")
		w.set(w.apply)
		settle(leaseStep)
		w.onReload = nil
		_, before, _ := w.counts()
		lease := func(name string, left int) {
			w.set(func() {
				delete(w.late, name)
				w.left = map[string]int{name: left}
				w.seen = map[string]os.FileInfo{}
				w.apply()
				w.lease()
			})
			w.ring()
			settle(2 * gatherPause)
		}
		lease("ens6", 0)
		if _, now, _ := w.counts(); now != before {
			t.Errorf("%d reloads for one ENI while another waits for its lease", now-before)
		}
		mended := w.reconfigures
		lease("ens7", plan.UnknownMetric)
		if w.reconfigures != mended+1 {
			t.Errorf("networkd was asked %d times to take an old metric's routes away", w.reconfigures-mended)
		}
		settle(leaseStep)
		if _, now, _ := w.counts(); now != before+1 {
			t.Errorf("%d reloads for two ENIs", now-before)
		}
		must(t, a, macOf(1), state.ENIConfigured)
		must(t, a, macOf(2), state.ENIConfigured)
	})
}

// D2, C3: connections that are bound to a link are not used any more when the ENI is on
// another one.
func TestConnectionsOfLinksThatAreGone(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if n := w.during(&w.closed, time.Hour); n != 0 {
			t.Errorf("connections were closed %d times while nothing happened", n)
		}
		closed := func(do func()) (n int) {
			w.set(func() { w.closed = 0 })
			do()
			settle(time.Second)
			w.set(func() { n = w.closed })
			return n
		}
		if n := closed(func() { // at once for the daemon
			w.set(func() {
				w.links[1].Index += 7
				w.apply()
			})
			w.ring()
		}); n != 1 {
			t.Errorf("connections were closed %d times after the ENI was attached again", n)
		}
		must(t, a, macOf(1), state.ENIConfigured)
		if n := closed(func() { w.detach(1) }); n != 1 {
			t.Errorf("connections were closed %d times after the ENI was detached", n)
		}
	})
}

// TestSeveralDomains: search domains that stand in a drop-in are those of the lease, also where
// only networkd's answer tells that they are others now.
func TestSeveralDomains(t *testing.T) { // A10
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		lease := func(names string) {
			w.set(func() { w.dhcp = map[int]networkd.Lease{2: {Known: true, MTU: 9001, Domains: names}} })
		}
		lease("ec2.internal")
		_, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		expect := func(want string) {
			t.Helper()
			if text := w.store.Read(plan.NetworkDropIn("ens5")); strings.Contains(text, "Domains=") != (want != "") || !strings.Contains(text, want) {
				t.Errorf("not %q:\n%s", want, text)
			}
		}
		// An answer that is older than the lease with several domains does not count.
		expect("")
		joined := networkd.LinkState{Administrative: "configured", File: plan.NetworkPath("ens5"), Domains: "a.example b.example"}
		w.set(func() { w.uses = map[int]networkd.LinkState{2: joined} })
		w.ring()
		settle(50 * time.Millisecond)
		w.set(func() { w.uses = nil })
		w.ring()
		settle(50 * time.Millisecond)
		expect("\nDomains=a.example b.example\n")
		for _, names := range []string{"a.example b.example", "c.example b.example"} {
			lease(names)
			settle(10 * time.Minute)
			expect("\nDomains=" + names + "\n")
		}
		lease("ec2.internal")
		settle(10 * time.Minute)
		expect("")
		var asked int
		w.set(func() { asked = w.questions })
		settle(time.Hour)
		w.set(func() { asked = w.questions - asked })
		if asked > 0 {
			t.Errorf("networkd was asked %d times, and no domains are in a drop-in", asked)
		}
	})
}

// An ENI whose files cannot be written is not held for them: it gets the base unit.
func TestHoldUnwritten(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		_, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if !w.holds() {
			t.Fatal("new ENIs are not held")
		}
		// In the place of the directory for its drop-in.
		blocked := filepath.Join(w.dir, plan.NetworkPath("ens6")+".d")
		if err := os.WriteFile(blocked, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		_, before, _ := w.counts()
		w.set(func() { w.uses = map[int]networkd.LinkState{3: {Administrative: "unmanaged", File: plan.HoldPath}} })
		w.attach(1, "ens6", "10.0.1.20")
		w.ring()
		settle(holdTime - 50*time.Millisecond)
		if !w.holds() {
			t.Error("it was not waited for")
		}
		settle(100 * time.Millisecond)
		if _, now, _ := w.counts(); w.holds() || now != before+1 {
			t.Errorf("held: %v, after %d reloads", w.holds(), now-before)
		}
		if err := os.Remove(blocked); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.uses = nil })
		settle(time.Minute)
		if w.store.Read(plan.NetworkDropIn("ens6")) == "" || !w.holds() {
			t.Errorf("its files are written, held: %v", w.holds())
		}
	})
}
