package agent

import (
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/unitfile"
)

// nextBoot is what a boot finds of the last one: the hint alone.
func (w *world) nextBoot(t *testing.T) {
	t.Helper()
	w.set(func() {
		for _, gone := range []string{"views.json", plan.Directory} {
			if err := os.RemoveAll(filepath.Join(w.dir, gone)); err != nil {
				t.Fatal(err)
			}
		}
		w.apply()
	})
}

func (w *world) hintFile(t *testing.T) (string, time.Time) {
	t.Helper()
	file := filepath.Join(w.dir, "boot.json")
	text, err := os.ReadFile(file)
	if err != nil {
		t.Fatal(err)
	}
	info, err := os.Stat(file)
	if err != nil {
		t.Fatal(err)
	}
	return string(text), info.ModTime()
}

// E1, E3, C9: what one boot knew makes the files of the next before its metadata answers;
// it is written when it differs, and is nothing but a hint.
func TestHintOfLastBoot(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		_, stop := w.start(t)
		settle(time.Minute)
		text, written := w.hintFile(t)
		settle(time.Hour)
		if now, at := w.hintFile(t); now != text || !at.Equal(written) {
			t.Errorf("the hint was written again:\n%s\nbefore:\n%s", now, text)
		}
		stop()

		// The metadata says nothing yet.
		w.nextBoot(t)
		w.set(func() {
			for _, mac := range []string{"", macOf(0), macOf(1)} {
				w.errs[mac] = &metadata.Error{Kind: metadata.Unreachable}
			}
		})
		a, stop := w.start(t)
		settle(time.Minute)
		for i, name := range []string{"ens5", "ens6"} {
			got := must(t, a, name, state.ENIPending)
			if !strings.Contains(got.Reason, "last boot") || got.Metric != 512+i {
				t.Errorf("%+v", got)
			}
		}
		if content := w.store.Read(plan.NetworkDropIn("ens6")); !strings.Contains(content, "Table=10001") {
			t.Errorf("the drop-in:\n%s", content)
		}
		_, reloads, _ := w.counts()
		w.set(func() { clear(w.errs) })
		settle(5 * time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		must(t, a, "ens6", state.ENIConfigured)
		if _, now, _ := w.counts(); now != reloads {
			t.Errorf("%d reloads to confirm what was right", now-reloads)
		}
		stop()

		// Another instance with the same ENIs: nothing of it counts once that is known.
		w.nextBoot(t)
		w.set(func() {
			w.instance.ID = "i-0fedcba9876543210"
			w.errs[macOf(1)] = &metadata.Error{Kind: metadata.Unreachable}
		})
		a, stop = w.start(t)
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIPending); strings.Contains(got.Reason, "last boot") {
			t.Errorf("the hint of another instance: %+v", got)
		}
		stop()

		// A file that cannot be used is none, and is said.
		for _, bad := range []string{"", "{", `{"instance":{"primaryMac":"x"}}`,
			strings.Replace(text, "10.0.1.20", "10.0.1.20/32\\n[Match]", 1)} {
			w.nextBoot(t)
			w.set(func() { w.log = nil })
			if err := os.WriteFile(filepath.Join(w.dir, "boot.json"), []byte(bad), 0o600); err != nil {
				t.Fatal(err)
			}
			a, stop = w.start(t)
			settle(time.Second)
			must(t, a, "ens5", state.ENIConfigured)
			w.set(func() {
				if !strings.Contains(strings.Join(w.log, ""), "What the last boot knew cannot be used") {
					t.Errorf("%q: log %q", bad, w.log)
				}
			})
			stop()
		}
	})
}

// F3: where networkd 252 takes all addresses away for a moment, and one that EC2 withdrew comes again
// from cloud-init's file, the state tells of it.
func TestKeptByCloudInit(t *testing.T) {
	t.Parallel()
	const netplan = "/run/systemd/network/10-netplan-ens6.network"
	bubble(t, func(t *testing.T, w *world) {
		w.old = true
		w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		w.put(t, netplan, "[Match]\nName=ens6\n[Network]\nDHCP=ipv4\nAddress=10.0.1.21/24\n")
		w.put(t, "/etc/netplan/50-cloud-init.yaml", "addresses:\n- 10.0.1.21/24\n")
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.set(func() { w.uses = map[int]networkd.LinkState{3: {Administrative: "configured", File: netplan}} })
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20") })
		if _, err := a.Refresh(t.Context(), false); err != nil {
			t.Fatal(err)
		}
		settle(100 * time.Millisecond)
		w.link("ens6", func(l *kernel.Link) {
			if l.Has(netip.MustParseAddr("10.0.1.21")) {
				t.Error("the address is there")
			}
			l.Addresses = append(l.Addresses, kernel.Address{Prefix: netip.MustParsePrefix("10.0.1.21/24"), Global: true})
		})
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIOverridden).Reason; !strings.HasPrefix(got, netplan+" keeps what the ENI has no more") {
			t.Errorf("the reason: %q", got)
		}
	})
}

// F3: the addresses that cloud-init wrote do not count where EC2 is known to have told them, also after
// it has withdrawn one: in this run, in the next one, and in the next boot. One that the
// administrator has put beside them does.
func TestTold(t *testing.T) {
	t.Parallel()
	const netplan, yaml = "/run/systemd/network/10-netplan-ens6.network", "/etc/netplan/50-cloud-init.yaml"
	bubble(t, func(t *testing.T, w *world) {
		w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		written := func(addresses ...string) {
			t.Helper()
			file, list := "[Match]\nName=ens6\n[Network]\nDHCP=ipv4\n", "addresses:\n"
			for _, address := range addresses {
				file, list = file+"Address="+address+"/24\n", list+"- "+address+"/24\n"
			}
			w.put(t, netplan, file)
			w.put(t, yaml, list)
			w.ring()
			settle(time.Minute)
		}
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21", "10.0.1.22")
		w.set(func() { w.uses = map[int]networkd.LinkState{3: {Administrative: "configured", File: netplan}} })
		a, stop := w.start(t)
		written("10.0.1.21", "10.0.1.22")
		cleared := func(when string, want bool, reason string) {
			t.Helper()
			p := unitfile.GeneratorDir(netplan) + "/" + plan.ClearName
			if _, got := w.files(t)[p]; got != want {
				t.Errorf("%s the addresses in the file are taken away: %v", when, got)
			}
			if got := must(t, a, "ens6", state.ENIConfigured).Reason; !strings.HasPrefix(got, reason) || (got == "") != (reason == "") {
				t.Errorf("%s the reason: %q", when, got)
			}
		}
		lines := func() (n int) {
			w.set(func() {
				n = strings.Count(strings.Join(w.log, "\n"), "Taking away the addresses that cloud-init wrote")
			})
			return n
		}
		cleared("at first", true, "")
		if n := lines(); n != 1 {
			t.Errorf("%d lines tell of it", n)
		}
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.22") })
		settle(2 * time.Minute)
		cleared("after it was withdrawn", true, "")
		w.set(func() {
			if err := os.Remove(filepath.Join(w.dir, netplan)); err != nil {
				t.Fatal(err)
			}
		})
		w.ring()
		settle(time.Minute)
		written("10.0.1.21", "10.0.1.22")
		cleared("after netplan made the file anew", true, "")
		stop()
		a, stop = w.start(t)
		settle(time.Minute)
		cleared("after a restart", true, "")
		stop()
		w.nextBoot(t)
		a, stop = w.start(t)
		written("10.0.1.21", "10.0.1.22")
		settle(time.Minute)
		cleared("in the next boot", true, "")
		written("10.0.1.21", "10.0.1.22", "10.0.1.99")
		cleared("with the administrator's", false, netplan+" has 10.0.1.99, and nothing tells that EC2 gave the ENI that")
		written("10.0.1.21", "10.0.1.22")
		cleared("without it", true, "")
		stop()
		// What is kept is lost: the address that was withdrawn may be the administrator's.
		w.nextBoot(t)
		if err := os.Remove(filepath.Join(w.dir, "boot.json")); err != nil {
			t.Fatal(err)
		}
		a, stop = w.start(t)
		defer stop()
		written("10.0.1.21", "10.0.1.22")
		settle(time.Minute)
		cleared("without what was kept", false, netplan+" has 10.0.1.21, ")
	})
}
