package agent

import (
	"errors"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/service/conflict"
	"ec2netd/service/kernel"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// link changes a link by its name.
func (w *world) link(name string, change func(*kernel.Link)) {
	w.set(func() {
		i := slices.IndexFunc(w.links, func(l kernel.Link) bool { return l.Name == name })
		change(&w.links[i])
	})
	w.ring()
}

// F10: a link that somebody sets down stays down, also for the next daemon, and one that comes up
// again is as before. What udevd does in passing is nothing of the kind.
func TestSetDown(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer func() { stop() }()
		settle(time.Minute)
		down := func(l *kernel.Link) { l.Down, l.Carrier = true, false }
		up := func(l *kernel.Link) { l.Down, l.Carrier = false, true }
		keptDown := func() bool {
			return strings.Contains(w.store.Read(plan.NetworkDropIn("ens6")), "\nActivationPolicy=manual\n")
		}
		_, reloads, _ := w.counts()
		w.link("ens6", down)
		settle(100 * time.Millisecond)
		w.link("ens6", up)
		settle(time.Minute)
		if _, now, _ := w.counts(); keptDown() || now != reloads {
			t.Errorf("down for a moment: kept down %v, %d reloads", keptDown(), now-reloads)
		}
		w.link("ens6", down)
		settle(time.Minute)
		for _, when := range []string{"set down", "with a new daemon"} {
			if got := must(t, a, "ens6", state.ENIOverridden); !strings.Contains(got.Reason, "ip link set dev ens6 up") || !keptDown() {
				t.Errorf("%s: %q, kept down %v", when, got.Reason, keptDown())
			}
			if when == "set down" {
				stop()
				a, stop = w.start(t)
				settle(time.Minute)
			}
		}
		// The lease is lost with the carrier on 252, and the others are there before it (A3).
		w.link("ens6", func(l *kernel.Link) {
			up(l)
			l.Addresses = append(l.Addresses[1:], l.Addresses[0])
		})
		settle(time.Minute)
		if must(t, a, "ens6", state.ENIConfigured); keptDown() {
			t.Error("it is kept down")
		}
		w.link("ens6", func(l *kernel.Link) {
			if first, ok := l.FirstGlobalIPv4(); !ok || first != netip.MustParseAddr("10.0.1.20") || len(l.Addresses) != 2 {
				t.Errorf("it has %v", l.Addresses)
			}
		})
	})
}

// F10: who sets a link down early at boot, before networkd runs, as cloud-init does when it has asked
// the metadata service, does not mean it to stay down.
func TestSetDownBeforeNetworkd(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.running = false
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Second)
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
		settle(5 * time.Second)
		w.set(func() { w.running = true })
		w.ring()
		settle(4 * time.Second)
		if text := w.store.Read(plan.NetworkDropIn("ens5")); strings.Contains(text, "ActivationPolicy") {
			t.Errorf("it is kept down:\n%s", text)
		}
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
		settle(time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
	})
}

// F10: a link that is down when the daemon starts, as ifdown leaves it, is set up by networkd.
func TestDownAtStart(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		settle(time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		stop()
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
		raised := func() (n int) {
			w.set(func() { n = strings.Count(strings.Join(w.log, ""), "set the link up") })
			return n
		}
		a, stop = w.start(t)
		defer stop()
		settle(14 * time.Second)
		if raised() == 0 {
			t.Error("networkd was not asked")
		}
		settle(time.Minute)
		if got := must(t, a, "ens5", state.ENIDegraded); !strings.Contains(got.Reason, "the link is down") {
			t.Error(got.Reason)
		}
		n := raised()
		settle(24 * time.Hour)
		if more := raised() - n; more < 100 || more > 150 {
			t.Errorf("asked %d times in a day", more)
		}
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
		settle(time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
	})
}

// F8, F10: a link that ifdown has set down, because networking.service was stopped, is set up again;
// one that somebody sets down later stays down.
func TestIfdown(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.set(func() { w.others = conflict.Facts{Raised: []string{"ens5"}} })
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if s := a.State(); len(s.Conflicts) != 1 || s.Conflicts[0].Name != conflict.Ifupdown {
			t.Errorf("%+v", s.Conflicts)
		}
		raised := func() (n int) {
			w.set(func() { n = strings.Count(strings.Join(w.log, ""), "set the link up") })
			return n
		}
		// Its state is without the link before that is down, and is looked at in between.
		w.set(func() { w.others = conflict.Facts{} })
		if _, err := a.Refresh(t.Context(), false); err != nil {
			t.Error(err)
		}
		settle(5 * time.Second)
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
		settle(time.Minute)
		if text := w.store.Read(plan.NetworkDropIn("ens5")); raised() == 0 || strings.Contains(text, "ActivationPolicy") {
			t.Errorf("networkd was asked %d times to set the link up:\n%s", raised(), text)
		}
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
		settle(2 * time.Minute)
		must(t, a, "ens5", state.ENIConfigured)
		n := raised()
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
		settle(time.Minute)
		if must(t, a, "ens5", state.ENIOverridden); raised() != n {
			t.Error("it does not stay down")
		}
	})
}

// F8, F10: a link that NetworkManager sets down, because it is told to leave it to others, is set up
// again.
func TestLeftByNetworkManager(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		const manager = "NetworkManager.service"
		w.attach(0, "ens5", "10.0.1.10")
		w.set(func() {
			w.others = conflict.Facts{Active: []string{manager}, Managed: map[string]bool{"ens5": true}, Links: []string{"ens5"}}
		})
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		if s := a.State(); len(s.Conflicts) != 1 || s.Conflicts[0].Name != conflict.NetworkManager {
			t.Errorf("%+v", s.Conflicts)
		}
		w.set(func() { w.others = conflict.Facts{Active: []string{manager}, Links: []string{"ens5"}} })
		w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
		settle(time.Minute)
		w.set(func() {
			if !strings.Contains(strings.Join(w.log, ""), "set the link up") {
				t.Error("networkd was not asked to set the link up")
			}
		})
	})
}

// F8, F10: a link that ifdown sets down is set up again also where ifupdown had not configured it when
// others were looked for last, and one that somebody sets down after it has released it stays down.
func TestIfdownUnseen(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(3 * othersTime / 2)
		looked := 0
		w.set(func() { looked = w.looked })
		for _, c := range []struct {
			name        string
			up, lowered time.Duration // how long before it goes down
			want        state.ENI
		}{
			{"ifdown", time.Minute, 5 * time.Second, state.ENIConfigured},
			{"somebody, just after that", 5 * time.Second, 6 * time.Second, state.ENIOverridden},
			{"somebody", time.Minute, ifdownTime + time.Second, state.ENIOverridden},
		} {
			w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
			settle(100 * time.Millisecond)
			w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
			settle(c.up)
			w.set(func() { w.others = conflict.Facts{Lowered: map[string]time.Time{"ens5": time.Now().Add(-c.lowered)}} })
			w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = true, false })
			settle(time.Minute)
			kept := strings.Contains(w.store.Read(plan.NetworkDropIn("ens5")), "ActivationPolicy")
			if kept != (c.want == state.ENIOverridden) {
				t.Errorf("%s: it is kept down: %v", c.name, kept)
			}
			if kept {
				must(t, a, "ens5", state.ENIOverridden)
			}
			w.link("ens5", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
			settle(time.Minute)
			must(t, a, "ens5", state.ENIConfigured)
		}
		if w.set(func() { looked = w.looked - looked }); looked > 8 {
			t.Errorf("others were looked for %d times", looked)
		}
	})
}

// F10: a link without a carrier is called that, but not for a moment without one (E8).
func TestNoCarrier(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.link("ens5", func(l *kernel.Link) { l.Carrier = false })
		settle(10 * time.Second)
		must(t, a, "ens5", state.ENIConfigured)
		settle(10 * time.Second)
		if got := must(t, a, "ens5", state.ENIDegraded); !strings.Contains(got.Reason, "no carrier") {
			t.Error(got.Reason)
		}
		w.link("ens5", func(l *kernel.Link) { l.Carrier = true })
		settle(10 * time.Second)
		must(t, a, "ens5", state.ENIConfigured)
	})
}

// F10: a port stays one, and the state says of what. What it lacks is not asked for.
func TestPort(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "br0", "bridge" })
		settle(time.Minute)
		keeps := func() bool {
			return strings.Contains(w.store.Read(plan.NetworkDropIn("ens6")), "\nKeepMaster=yes\n")
		}
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "the link is a port of br0 (bridge)" || !keeps() {
			t.Errorf("%q, %v", got.Reason, keeps())
		}
		n := w.repairs()
		w.lose("ens6")
		settle(time.Minute)
		got := must(t, a, "ens6", state.ENIOverridden)
		if !strings.Contains(got.Reason, "port of br0 (bridge)") || !strings.Contains(got.Reason, "Release it with: ip link set dev ens6 nomaster") || w.repairs() != n {
			t.Errorf("%q, %d repairs", got.Reason, w.repairs()-n)
		}
		w.set(w.lease)
		// The kernel refuses DHCP's routes in the main table there: networkd is to set none.
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "blue", "vrf" })
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "the link is a port of blue (vrf)" || got.Metric != state.Unknown || !keeps() {
			t.Errorf("%q, metric %d, %v", got.Reason, got.Metric, keeps())
		}
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "", "" })
		settle(2 * time.Minute)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" || keeps() {
			t.Errorf("%q, %v", got.Reason, keeps())
		}
	})
}

// F10: a bond may give its ports a MAC address of its own. Its port is the ENI that it was, also for a
// daemon that starts then, and nothing is done but to keep it a port.
func TestPortWithMACOfBond(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.link("ens6", func(l *kernel.Link) { l.Permanent = true })
		a, stop := w.start(t)
		defer func() { stop() }()
		settle(time.Minute)
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind, l.Lent = "bond0", "bond", macOf(0) })
		settle(time.Minute)
		for _, when := range []string{"enslaved", "with a new daemon"} {
			got := must(t, a, "ens6", state.ENIConfigured)
			if got.MAC != macOf(1) || got.ENIID != viewOf(1).ID || got.Reason != "the link is a port of bond0 (bond) with the MAC address "+macOf(0)+" in place of its own" {
				t.Errorf("%s: %s %s %q", when, got.MAC, got.ENIID, got.Reason)
			}
			must(t, a, "ens5", state.ENIConfigured)
			if text := w.store.Read(plan.NetworkDropIn("ens6")); !strings.Contains(text, "\nPermanentMACAddress="+macOf(1)+"\n") || !strings.Contains(text, "\nKeepMaster=yes\n") {
				t.Errorf("%s:\n%s", when, text)
			}
			if when == "enslaved" {
				stop()
				a, stop = w.start(t)
				settle(time.Minute)
			}
		}
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind, l.Lent = "", "", "" })
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" || !slices.Equal(w.addresses("ens6"), []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("released: %q, %v", got.Reason, w.addresses("ens6"))
		}
	})
}

// F10: a link that somebody has set down, for however long, and then makes a port is up again: a bond
// sets it up, and for a bridge networkd does. Set down as a port it stays down, and so does one that
// is set down and no port. What a bond releases it sets down itself.
func TestSetDownAndEnslaved(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20")
		// networkd sets up a link that it configures anew, and takes out of its master what no file
		// keeps there. Each step is what somebody does just when it reads the files.
		w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		const keeps = "/etc/systemd/network/70-ens6.network.d/keep.conf"
		var step func(*kernel.Link)
		var read os.FileInfo
		w.onReload = func() {
			w.set(func() {
				i := slices.IndexFunc(w.links, func(l kernel.Link) bool { return l.Name == "ens6" })
				l := &w.links[i]
				if step != nil {
					step(l)
					step = nil
				}
				text := w.store.Read(plan.NetworkDropIn("ens6"))
				info, err := os.Stat(filepath.Join(w.dir, plan.NetworkDropIn("ens6")))
				if err != nil || (read != nil && os.SameFile(read, info) && read.ModTime().Equal(info.ModTime())) {
					return
				}
				read = info
				if !strings.Contains(text, "\nActivationPolicy=manual\n") {
					l.Down, l.Carrier = false, true
				}
				if l.Master != "" && !strings.Contains(text, "\nKeepMaster=yes\n") && w.store.Read(keeps) == "" {
					l.Master, l.MasterKind = "", ""
				}
			})
			w.ring()
		}
		a, stop := w.start(t)
		defer stop()
		settle(time.Minute)
		down := func(l *kernel.Link) { l.Down, l.Carrier = true, false }
		enslave := func(kind string) func(*kernel.Link) {
			return func(l *kernel.Link) {
				if l.Master, l.MasterKind = kind+"0", kind; kind == "bond" {
					l.Down, l.Carrier = false, true
				}
			}
		}
		expect := func(when, master string, isDown bool) {
			t.Helper()
			settle(time.Minute)
			w.link("ens6", func(l *kernel.Link) {
				kept := strings.Contains(w.store.Read(plan.NetworkDropIn("ens6")), "\nActivationPolicy=manual\n")
				if l.Master != master || l.Down != isDown || kept != isDown {
					t.Errorf("%s: a port of %q, down %v, kept down %v; want %q, %v", when, l.Master, l.Down, kept, master, isDown)
				}
			})
			want := state.ENIConfigured
			if isDown {
				want = state.ENIOverridden
			}
			must(t, a, "ens6", want)
		}
		for _, kind := range []string{"bridge", "bond", "vrf"} {
			for _, pause := range []time.Duration{10 * time.Millisecond, downTime - 10*time.Millisecond, downTime + 10*time.Millisecond, time.Hour} {
				when := kind + " after " + pause.String()
				w.link("ens6", down)
				settle(pause)
				w.link("ens6", enslave(kind))
				expect(when, kind+"0", false)
				w.link("ens6", func(l *kernel.Link) {
					if l.Master, l.MasterKind = "", ""; kind == "bond" {
						down(l)
					}
				})
				expect(when+", released", "", false)
			}
			w.link("ens6", down)
			w.set(func() { step = enslave(kind) })
			expect(kind+" while networkd is asked", kind+"0", false)
			w.link("ens6", down)
			expect(kind+", set down as a port", kind+"0", true)
			w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "", "" })
			expect(kind+", released while it is set down", "", true)
			w.link("ens6", func(l *kernel.Link) { l.Down, l.Carrier = false, true })
			expect(kind+", set up", "", false)
		}
		// Nothing changes in the generated drop-in then.
		w.put(t, keeps, "[Network]\nKeepMaster=yes\n")
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "bond0", "bond" })
		expect("a bond that a file keeps it in", "bond0", false)
		w.link("ens6", func(l *kernel.Link) {
			l.Master, l.MasterKind = "", ""
			down(l)
		})
		expect("released from that", "", false)
	})
}

// A3, F10: in a VRF the order of addresses is mended as the link goes there and comes from there. Where it
// is another one later, the reason says that and what the link is a port of.
func TestOrderInVRF(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(time.Hour)
		const inVRF, first = "the link is a port of blue (vrf)", "the first address of the link is 10.0.1.21, not the primary one 10.0.1.20"
		turn := func(l *kernel.Link) { l.Addresses = append(l.Addresses[1:], l.Addresses[0]) }
		right, wrong := []string{"10.0.1.20", "10.0.1.21"}, []string{"10.0.1.21", "10.0.1.20"}
		expect := func(when string, order []string, reasons ...string) {
			t.Helper()
			settle(time.Hour)
			got := must(t, a, "ens6", state.ENIConfigured)
			if !slices.Equal(w.addresses("ens6"), order) {
				t.Errorf("%s: the addresses are %v", when, w.addresses("ens6"))
			}
			if len(reasons) == 0 && got.Reason != "" {
				t.Errorf("%s: %s", when, got.Reason)
			}
			for _, reason := range reasons {
				if !strings.Contains(got.Reason, reason) {
					t.Errorf("%s: %q does not say %q", when, got.Reason, reason)
				}
			}
		}
		w.link("ens6", func(l *kernel.Link) {
			l.Master, l.MasterKind = "blue", "vrf"
			turn(l)
		})
		expect("in a VRF", right, inVRF)
		w.link("ens6", turn)
		expect("turned there", wrong, inVRF, first)
		w.set(func() { w.errs[macOf(1)] = errors.New("HTTP 503") })
		expect("with silent metadata", wrong, "the last view of the metadata holds: HTTP 503", inVRF, first)
		w.set(func() { delete(w.errs, macOf(1)) })
		w.link("ens6", func(l *kernel.Link) { l.Master, l.MasterKind = "", "" })
		expect("released", right)
		w.link("ens6", turn)
		expect("turned again", wrong, first)
	})
}

// A3, B10: where networkd brings a primary address back that somebody has taken away, as a DHCP client
// does that ends, it is the first of the link again; but not where that happens again and again.
func TestOrderAfterRepair(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		w.behind = true
		a, stop := w.start(t)
		defer stop()
		settle(time.Hour)
		take := func(l *kernel.Link) {
			l.Addresses = slices.DeleteFunc(l.Addresses, func(a kernel.Address) bool { return a.Prefix.Addr() == netip.MustParseAddr("10.0.1.20") })
		}
		w.link("ens6", take)
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" || !slices.Equal(w.addresses("ens6"), []string{"10.0.1.20", "10.0.1.21"}) {
			t.Errorf("%q, %v", got.Reason, w.addresses("ens6"))
		}
		settle(time.Hour)
		for range 6 {
			w.link("ens6", take)
			settle(time.Minute)
		}
		settle(time.Hour)
		if got := must(t, a, "ens6", state.ENIConfigured); !strings.HasPrefix(got.Reason, "the first address of the link is 10.0.1.21") {
			t.Errorf("taken away again and again: %q, %v", got.Reason, w.addresses("ens6"))
		}
	})
}
