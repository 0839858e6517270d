package agent

import (
	"errors"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// lose takes the lease's address off a link.
func (w *world) lose(name string) {
	w.set(func() {
		for i := range w.links {
			if w.links[i].Name == name {
				w.links[i].Addresses = slices.DeleteFunc(w.links[i].Addresses, func(a kernel.Address) bool { return !a.Prefix.IsSingleIP() })
			}
		}
	})
	w.ring()
}

// repairs is how often the log says that networkd was asked to configure an ENI anew.
func (w *world) repairs() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	n := 0
	for _, line := range w.log {
		n += strings.Count(line, "configure the ENI anew")
	}
	return n
}

// asked is how often networkd was asked to configure a link anew.
func (w *world) asked() int {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.reconfigures
}

// B10, E7: an address that goes as networkd has just reloaded has two seconds to come back, as
// that of a DHCPv6 lease does on 252; nobody has taken it away. What somebody takes later is back
// sooner.
func TestLostAtReload(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		for _, c := range []struct{ after, away, repaired time.Duration }{
			{10 * time.Millisecond, 2 * time.Second, 0},
			{10 * time.Millisecond, time.Minute, 4 * time.Second},
			{2 * time.Second, time.Minute, 2 * time.Second},
		} {
			settle(5 * time.Minute) // what was taken before is forgotten
			must(t, a, "ens6", state.ENIConfigured)
			w.set(func() { w.leaseless = true })
			repairs := w.repairs()
			_, reloads, _ := w.counts()
			w.put(t, plan.NetworkDropIn("ens6"), w.store.Read(plan.NetworkDropIn("ens6"))+"# changed\n")
			w.ring()
			for now := reloads; now == reloads; _, now, _ = w.counts() {
				time.Sleep(time.Millisecond)
			}
			time.Sleep(c.after)
			var before []kernel.Address
			w.set(func() { before = w.links[1].Addresses })
			w.lose("ens6")
			began := time.Now()
			for time.Since(began) < c.away && w.repairs() == repairs {
				time.Sleep(10 * time.Millisecond)
			}
			took := time.Since(began)
			if repaired := w.repairs() > repairs; repaired != (c.repaired > 0) || (repaired && took > c.repaired) {
				t.Errorf("lost %v after a reload: repaired %v after %v", c.after, repaired, took)
			}
			w.set(func() { w.leaseless, w.links[1].Addresses = false, before })
			w.ring()
		}
	})
}

// E5: an ENI that lost its address is configured anew, not too soon, less and less
// often, and is shown as degraded meanwhile.
func TestWatchdog(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		w.set(func() { w.leaseless = true })
		before := w.repairs()
		w.lose("ens6")
		settle(5 * time.Second)
		must(t, a, "ens6", state.ENIConfiguring)
		// It had the address: somebody may have taken it away (B10).
		if n := w.repairs(); n != before+1 {
			t.Errorf("networkd was asked %d times at once", n-before)
		}
		settle(55 * time.Second)
		got := must(t, a, "ens6", state.ENIDegraded)
		if !slices.Contains(got.Missing, "address 10.0.1.20") || a.State().State != state.Degraded {
			t.Errorf("%+v, %s", got, a.State().State)
		}
		if n := w.repairs(); n != before+2 {
			t.Errorf("networkd was asked %d times in a minute", n-before)
		}
		settle(time.Hour)
		n := w.repairs() - before
		if n < 7 || n > 12 {
			t.Errorf("networkd was asked %d times in an hour", n)
		}
		must(t, a, "ens6", state.ENIDegraded)
		must(t, a, "ens5", state.ENIConfigured)
		w.set(func() { w.leaseless = false })
		settle(12 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		w.set(func() {
			if w.leases != 1 {
				t.Errorf("%d leases", w.leases)
			}
		})
		n = w.repairs()
		w.lose("ens6")
		// It had recovered: the next loss does not wait as long as the last one did.
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if w.repairs() != n+1 {
			t.Errorf("networkd was asked %d times for another loss", w.repairs()-n)
		}
		// Without a carrier there is nothing to repair.
		w.set(func() { w.links[1].Carrier = false })
		w.lose("ens6")
		settle(time.Hour)
		if w.repairs() != n+1 {
			t.Errorf("networkd was asked %d times about a link without carrier", w.repairs()-n-1)
		}
		must(t, a, "ens6", state.ENIDegraded)
		w.set(func() {
			for _, line := range w.log {
				if strings.Contains(line, "configure the ENI anew") && (!strings.Contains(line, "eni-") || !strings.Contains(line, "10.0.1.20")) {
					t.Error(line)
				}
			}
		})
	})
}

// F4: an unmanaged ENI has its altnames and nothing else, whatever changes.
func TestUnmanaged(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		no := false
		w.sections = []config.Section{{File: "/etc/ec2netd.conf", Line: 3, DeviceIndexes: []int{1, 2}, Managed: &no}, {DeviceIndexes: []int{2}, AlternativeNames: &no}}
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.attach(2, "ens7", "10.0.1.30")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		got := must(t, a, "ens6", state.ENIUnmanaged)
		if got.Reason != "/etc/ec2netd.conf:3 says Managed=no" || len(got.Missing)+len(got.Unwanted) > 0 || len(got.Altnames) != 2 || a.State().State != state.Configured {
			t.Errorf("%+v", got)
		}
		if names := w.altnames("ens6"); !slices.Equal(names, got.Altnames) {
			t.Errorf("altnames %q", names)
		}
		got = must(t, a, "ens7", state.ENIUnmanaged)
		if len(got.Altnames)+len(got.Files)+len(w.altnames("ens7")) > 0 {
			t.Errorf("%+v", got)
		}
		_, reloads, lines := w.counts()
		w.set(func() { w.views[macOf(1)] = viewOf(1, "10.0.1.20", "10.0.1.22") })
		w.lose("ens6")
		settle(5 * time.Minute)
		if _, r, _ := w.counts(); r != reloads || w.repairs() > 0 {
			t.Errorf("%d reloads and %d reconfigurations for an unmanaged ENI", r-reloads, w.repairs())
		}
		if _, _, l := w.counts(); l > lines+1 {
			t.Errorf("%d log lines for a change of an unmanaged ENI", l-lines)
		}
		for _, name := range []string{"ens6", "ens7"} {
			if text := w.store.Read(plan.NetworkDropIn(name)); text != "" {
				t.Errorf("%s has a drop-in:\n%s", name, text)
			}
		}
	})
}

func (w *world) altnames(name string) []string {
	w.mu.Lock()
	defer w.mu.Unlock()
	for _, l := range w.links {
		if l.Name == name {
			return l.Altnames
		}
	}
	return nil
}

// B5: ENIs that stay unknown get metrics of their own, without a word and in one
// reload; one whose metadata comes at once costs no reload more than before.
func TestPendingENIs(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Second)
		_, before, _ := w.counts()
		for i := 1; i < 5; i++ {
			if i == 4 { // networkd still leaves it alone when it is time for the others
				settle(holdTime / 2)
			}
			w.set(func() { w.plug(i, "ens"+string(rune('5'+i)), "10.0.1."+string(rune('1'+i))+"0") })
		}
		settle(holdTime)
		seen := map[int]bool{}
		for _, i := range a.State().Interfaces {
			if seen[i.Metric] || i.Metric < 512 {
				t.Errorf("%s has the metric %d", i.Name, i.Metric)
			}
			seen[i.Metric] = true
		}
		if _, reloads, _ := w.counts(); reloads != before+1 {
			t.Errorf("%d reloads for ENIs that are not known", reloads-before)
		}
		w.set(func() {
			for i := 1; i < 5; i++ {
				w.views[macOf(i)] = viewOf(i, "10.0.1."+string(rune('1'+i))+"0")
			}
		})
		settle(2 * time.Minute)
		for _, i := range a.State().Interfaces {
			if i.State != state.ENIConfigured || i.Metric != 512+i.DeviceIndex {
				t.Errorf("%+v", i)
			}
		}
	})
}

// B7: without a default route in the main table; where an administrator's drop-in brings
// one all the same, that is said, and networkd is not asked about it over and over.
func TestNoDefaultRoute(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		no := false
		w.sections = []config.Section{{DeviceIndexes: []int{1}, DefaultRoute: &no}}
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Metric != state.Unknown || got.Table != 10001 {
			t.Errorf("%+v", got)
		}
		w.set(func() { w.gateways = true; w.apply() })
		w.ring()
		settle(time.Minute)
		_, reloads, _ := w.counts()
		asked := w.asked()
		settle(time.Hour)
		if got := must(t, a, "ens6", state.ENIDegraded); len(got.Unwanted) == 0 || len(got.Missing) > 0 {
			t.Errorf("%+v", got)
		}
		if _, now, _ := w.counts(); now > reloads+2 || w.asked() > asked+10 {
			t.Errorf("%d reloads and %d reconfigurations in an hour", now-reloads, w.asked()-asked)
		}
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("addresses: %v", got)
		}
		w.set(func() { w.gateways = false; w.apply() })
		w.ring()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// F4: where only the metadata can tell whether an ENI is managed, nothing of it is
// removed before it does.
func TestUndecidedKeeps(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		no, yes := false, true
		w.sections = []config.Section{{File: "f", Line: 1, Managed: &no}, {File: "f", Line: 3, DeviceIndexes: []int{0, 1}, Managed: &yes}}
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		stop()
		// The metadata is silent, and nothing is remembered.
		if err := os.Remove(filepath.Join(w.dir, "views.json")); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.errs[""] = &metadata.Error{Key: "mac", Kind: metadata.Timeout, Err: errors.New("late")} })
		a, stop = w.start(t)
		defer stop()
		settle(10 * time.Minute)
		if got := must(t, a, "ens6", state.ENIPending); len(got.Files) == 0 {
			t.Errorf("%+v", got)
		}
		if got := w.addresses("ens6"); !slices.Equal(got, []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("addresses: %v", got)
		}
	})
}
