package agent

import (
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/state"
)

// TestConfigure: a configuration is taken up while the agent runs (H12): sections, drivers,
// refresh time, endpoint, and mistakes for all to see.
func TestConfigure(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(5 * time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		var drivers []string
		a.SetDrivers = func(d []string) { drivers = d }
		configuration := Configuration{RefreshEvery: a.RefreshEvery, Sections: a.Sections, Drivers: a.Drivers}
		take := func(wantReload bool) {
			t.Helper()
			_, before, _ := w.counts()
			if err := a.Configure(t.Context(), configuration); err != nil {
				t.Fatal(err)
			}
			if _, now, _ := w.counts(); (now > before) != wantReload {
				t.Errorf("%d reloads before, %d when it is taken up", before, now)
			}
			settle(time.Second)
			must(t, a, "ens6", state.ENIConfigured)
		}
		take(false)
		no := false
		configuration.Sections = []config.Section{{Names: []string{"ens6"}, SecondaryAddresses: &no}}
		take(true)
		if got := w.addresses("ens6"); slices.Contains(got, "10.0.1.21/32") {
			t.Errorf("ens6 has %q", got)
		}
		configuration.Sections = nil
		take(true)
		configuration.Problems = []string{"/etc/ec2netd.conf:1: it is wrong"}
		take(false)
		if reason := a.State().Reason; !strings.Contains(reason, "it is wrong") {
			t.Errorf("the reason is %q", reason)
		}
		configuration.Problems = nil
		configuration.Drivers = []string{"ena", "veth"}
		if err := a.Configure(t.Context(), configuration); err != nil {
			t.Fatal(err)
		}
		if !slices.Equal(drivers, configuration.Drivers) {
			t.Errorf("drivers: %q", drivers)
		}
		reads := func() int { n, _, _ := w.counts(); return n }
		before := reads()
		settle(10 * time.Minute)
		slow := reads() - before
		configuration.RefreshEvery = time.Second
		take(false)
		before = reads()
		settle(time.Minute)
		if fast := reads() - before; 10*fast < 5*slow {
			t.Errorf("%d reads in a minute, %d in ten before", fast, slow)
		}
		configuration.RefreshEvery = time.Hour
		take(false)
		settle(2 * time.Hour)
		before = reads()
		configuration.Endpoint = "http://192.0.2.1"
		take(false)
		if reads() == before || w.path.Endpoint != configuration.Endpoint {
			t.Errorf("nothing is read from another endpoint: %+v", w.path)
		}
	})
}
