package agent

import (
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"ec2netd/service/dropin"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/unitfile"
)

// put makes a file of an administrator, or with no content a mask.
func (w *world) put(t *testing.T, file, content string) {
	t.Helper()
	p := filepath.Join(w.dir, file)
	err := os.MkdirAll(filepath.Dir(p), 0o755)
	// Generated links lead out of the directory of the test: never write through one.
	_ = os.Remove(p)
	if err == nil && content == "" {
		err = os.Symlink(os.DevNull, p)
	} else if err == nil {
		err = os.WriteFile(p, []byte(content), 0o644)
	}
	if err != nil {
		t.Fatal(err)
	}
}

// files are the generated files with their content or target.
func (w *world) files(t *testing.T) map[string]string {
	t.Helper()
	found := make(map[string]string)
	err := filepath.WalkDir(filepath.Join(w.dir, plan.Directory), func(p string, d os.DirEntry, err error) error {
		if err == nil && !d.IsDir() {
			name := strings.TrimPrefix(p, w.dir)
			if found[name] = w.store.Target(name); found[name] == "" {
				found[name] = w.store.Read(name)
			}
		}
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

const (
	baseUnit = "/usr/lib/systemd/network/80-ec2.network"
	admin    = "/etc/systemd/network/"
)

// F2, F3: whatever networkd uses for a link, the state says so, names the file, and is
// the old one when that is over.
func TestInForce(t *testing.T) {
	t.Parallel()
	const own = "/run/systemd/network/70-ens6.network"
	base := networkd.LinkState{Administrative: "configured", File: baseUnit}
	unmanaged := networkd.LinkState{Administrative: "unmanaged"}
	uses := func(file string) networkd.LinkState {
		return networkd.LinkState{Administrative: "configured", File: file}
	}
	for name, c := range map[string]struct {
		// file with content, a mask if that is empty; what networkd says then.
		file, content string
		said          networkd.LinkState
		// late: only after a while is it anything else than on the way.
		late bool
		want state.ENI
		says string
	}{
		"another file":            {admin + "10-x.network", "[Match]\nName=e*\n", uses(admin + "10-x.network"), false, state.ENIShadowed, admin + "10-x.network"},
		"another ENI's unit":      {admin + "70-ens5.network.d/x.conf", "[Match]\nName=\n", uses("/run/systemd/network/70-ens5.network"), false, state.ENIShadowed, "because of the [Match] in " + admin + "70-ens5.network.d/x.conf"},
		"of the same name":        {admin + "70-ens6.network", "[Match]\nName=ens6\n", uses(admin + "70-ens6.network"), false, state.ENIOverridden, "the administrator's " + admin + "70-ens6.network is in force"},
		"it does not match":       {admin + "70-ens6.network", "[Match]\nName=x\n", base, false, state.ENIOverridden, "does not match the link, and networkd uses " + baseUnit},
		"another one comes first": {admin + "70-ens6.network", "[Match]\nName=ens6\n", uses(admin + "10-x.network"), false, state.ENIShadowed, admin + "10-x.network"},
		"a mask":                  {admin + "70-ens6.network", "", base, false, state.ENIOverridden, admin + "70-ens6.network masks"},
		"a mask in its place":     {own, "", base, false, state.ENIOverridden, own + " masks"},
		"a file in its place":     {own, "[Match]\nName=ens6\n[Network]\nDHCP=yes\n", uses(own), false, state.ENIOverridden, own + " is in force"},
		"a mask of the drop-in":   {own + ".d/50-ec2netd.conf", "", base, false, state.ENIOverridden, own + ".d/50-ec2netd.conf"},
		"a hidden drop-in":        {admin + "70-ens6.network.d/50-ec2netd.conf", "[Link]\nMTUBytes=1400\n", uses(own), false, state.ENIOverridden, admin + "70-ens6.network.d/50-ec2netd.conf"},
		"a [Match]":               {admin + "70-ens6.network.d/x.conf", "[Match]\nHost=x\n", base, false, state.ENIOverridden, admin + "70-ens6.network.d/x.conf has a [Match]"},
		"the base unit's [Match]": {admin + "80-ec2.network.d/x.conf", "[Match]\nHost=x\n", unmanaged, false, state.ENIOverridden, admin + "80-ec2.network.d/x.conf has a [Match]"},
		"a masked base unit":      {admin + "80-ec2.network", "", unmanaged, false, state.ENIOverridden, admin + "80-ec2.network masks"},
		"unmanaged":               {admin + "10-x.network", "[Match]\nName=ens6\n[Link]\nUnmanaged=yes\n", unmanaged, false, state.ENIShadowed, admin + "10-x.network"},
		"unmanaged, for others":   {admin + "10-x.network", "[Match]\nName=ens7\n[Link]\nUnmanaged=yes\n", unmanaged, true, state.ENIUnmanaged, "networkctl"},
		"unmanaged, comes after":  {admin + "90-x.network", "[Match]\nName=*\n[Link]\nUnmanaged=yes\n", unmanaged, true, state.ENIUnmanaged, "networkctl"},
		"a drop-in: unmanaged":    {admin + "70-ens6.network.d/x.conf", "[Link]\nUnmanaged=yes\n", unmanaged, false, state.ENIOverridden, admin + "70-ens6.network.d/x.conf"},
		"a mask, of any drop-in":  {admin + "70-ens6.network.d/10-vendor.conf", "", base, false, state.ENIOverridden, admin + "70-ens6.network.d/10-vendor.conf masks"},
		"which does no harm":      {admin + "70-ens6.network.d/10-vendor.conf", "", uses(own), false, state.ENIConfigured, ""},
		"all: unmanaged":          {admin + "80-ec2.network.d/x.conf", "[Link]\nUnmanaged=yes\n", unmanaged, false, state.ENIOverridden, admin + "80-ec2.network.d/x.conf"},
		"nobody's fault":          {admin + "10-x.network", "[Match]\nName=ens7\n", base, true, state.ENIDegraded, "networkd has not taken up " + own},
		"networkd is at it":       {admin + "10-x.network", "[Match]\nName=e*\n", networkd.LinkState{Administrative: "pending", File: baseUnit}, true, state.ENIConfigured, ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
				w.put(t, "/usr/lib/systemd/network/99-default.link", "[Match]\nOriginalName=*\n")
				w.attach(0, "ens5", "10.0.1.10")
				w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
				a, stop := w.start(t)
				defer stop()
				settle(2 * time.Minute)
				must(t, a, "ens6", state.ENIConfigured)
				files := w.files(t)
				w.set(func() { w.uses = map[int]networkd.LinkState{3: c.said} })
				w.put(t, c.file, c.content)
				w.ring()
				settle(takeUp + time.Second)
				if !c.late {
					must(t, a, "ens6", c.want)
				}
				settle(3 * time.Minute)
				got := must(t, a, "ens6", c.want)
				if !strings.Contains(got.Reason, c.says) {
					t.Errorf("the reason: %s", got.Reason)
				}
				must(t, a, "ens5", state.ENIConfigured)
				// Nothing of this daemon's is added to a unit of somebody else's (F2).
				if _, err := os.Stat(filepath.Join(w.dir, plan.NetworkDropIn("ens6"))); err == nil && strings.HasSuffix(c.file, "/70-ens6.network") {
					t.Error("the drop-in is still there")
				}
				_, reloads, lines := w.counts()
				settle(10 * time.Minute)
				if _, r, l := w.counts(); r != reloads || l != lines {
					t.Errorf("idle: %d reloads, %d lines: %q", r-reloads, l-lines, w.log[lines:])
				}
				// A Refresh has networkd read the files that are in the way again.
				if c.want != state.ENIConfigured && c.want != state.ENIUnmanaged {
					if changes, err := a.Refresh(t.Context(), true); err != nil || !changes.Reloaded || !changes.Settled {
						t.Errorf("refresh: %+v, %v", changes, err)
					}
					must(t, a, "ens6", c.want)
				}
				w.set(func() { w.uses = nil })
				if err := os.Remove(filepath.Join(w.dir, c.file)); err != nil {
					t.Fatal(err)
				}
				w.ring()
				settle(3 * time.Minute)
				must(t, a, "ens6", state.ENIConfigured)
				if diff := cmp.Diff(files, w.files(t)); diff != "" {
					t.Errorf("files afterwards: %s", diff)
				}
			})
		})
	}
}

// F3: where two files are in the way, the reason names that in force, and then the other one; and a
// file that is gone, until networkd has read its files. Who does what each says has the ENI configured.
func TestOneAfterTheOther(t *testing.T) {
	t.Parallel()
	const own = "/run/systemd/network/70-ens6.network"
	for name, c := range map[string]struct{ file, content, says string }{
		"a mask":               {own, "", own + " masks the unit of the ENI"},
		"a file in its place":  {own, "[Match]\nName=x\n", own + " takes the place of the ENI's unit"},
		"one that is gone":     {admin + "70-ens6.network", "[Match]\nName=x\n", ""},
		"nothing but the gone": {"", "", ""},
	} {
		t.Run(name, func(t *testing.T) {
			bubble(t, func(t *testing.T, w *world) {
				w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
				w.attach(1, "ens6", "10.0.1.20")
				a, stop := w.start(t)
				defer stop()
				settle(2 * time.Minute)
				said := func(s networkd.LinkState) {
					w.set(func() { w.uses = map[int]networkd.LinkState{w.links[0].Index: s} })
					w.ring()
					settle(3 * time.Minute)
				}
				remove := func(file string) {
					if err := os.Remove(filepath.Join(w.dir, file)); err != nil {
						t.Fatal(err)
					}
				}
				const first = admin + "10-x.network"
				w.put(t, first, "[Match]\nName=ens6\n")
				if c.file != "" {
					w.put(t, c.file, c.content)
				}
				said(networkd.LinkState{Administrative: "configured", File: first})
				if got := must(t, a, "ens6", state.ENIShadowed); !strings.Contains(got.Reason, first) {
					t.Errorf("the first one: %s", got.Reason)
				}
				remove(first)
				if c.says != "" {
					said(networkd.LinkState{Administrative: "configured", File: baseUnit})
					if got := must(t, a, "ens6", state.ENIOverridden); !strings.Contains(got.Reason, c.says) {
						t.Errorf("the other one: %s", got.Reason)
					}
				}
				if c.file != "" {
					remove(c.file)
				}
				if c.says == "" {
					said(networkd.LinkState{Administrative: "configured", File: admin + "70-ens6.network"})
					if got := must(t, a, "ens6", state.ENIOverridden); !strings.HasSuffix(got.Reason, "with networkctl reload") {
						t.Errorf("the one that is gone: %s", got.Reason)
					}
				}
				w.set(func() { w.uses = nil }) // networkd has read its files
				w.ring()
				settle(3 * time.Minute)
				if got := must(t, a, "ens6", state.ENIConfigured); got.Reason != "" {
					t.Errorf("in the end: %s", got.Reason)
				}
			})
		})
	}
}

// F3: what netplan makes for the ENI alone is completed, and in force in place of the ENI's own
// unit. When it goes, or comes while the daemon runs, nothing is missing in between.
func TestNetplan(t *testing.T) {
	t.Parallel()
	const netplan = "/run/systemd/network/10-netplan-ens6.network"
	bubble(t, func(t *testing.T, w *world) {
		w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		w.put(t, netplan, "[Match]\nMACAddress="+macOf(1)+"\nName=ens6\n[Network]\nDHCP=ipv4\n")
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		uses := func(file string) {
			w.set(func() { w.uses = map[int]networkd.LinkState{3: {Administrative: "configured", File: file}} })
		}
		uses(netplan)
		a, stop := w.start(t)
		defer stop()
		settle(2 * time.Minute)
		dropIn := unitfile.GeneratorDir(netplan) + "/" + plan.DropInName
		if got := must(t, a, "ens6", state.ENIConfigured); got.NetworkFile != netplan || got.Reason != "" || !slices.Contains(got.Files, dropIn) {
			t.Errorf("%+v", got)
		}
		with := w.files(t)
		if with[dropIn] != plan.NetworkDropIn("ens6") {
			t.Errorf("%s leads to %q", dropIn, with[dropIn])
		}
		if err := os.Remove(filepath.Join(w.dir, netplan)); err != nil {
			t.Fatal(err)
		}
		uses(plan.NetworkPath("ens6"))
		w.ring()
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
		if _, there := w.files(t)[dropIn]; there {
			t.Errorf("%s is still there", dropIn)
		}
		_, before, _ := w.counts()
		w.put(t, netplan, "[Match]\nName=ens6\n[Network]\nDHCP=ipv4\n")
		w.ring()
		settle(time.Minute)
		// networkd is told of it, and may not have looked yet.
		must(t, a, "ens6", state.ENIConfigured)
		if _, reloads, _ := w.counts(); reloads != before+1 {
			t.Errorf("%d reloads", reloads-before)
		}
		with[netplan] = w.store.Read(netplan)
		if diff := cmp.Diff(with, w.files(t)); diff != "" {
			t.Error(diff)
		}
		// It is for others too now, and networkd uses it all the same.
		w.put(t, netplan, "[Match]\nName=ens*\n[Network]\nDHCP=ipv4\n")
		uses(netplan)
		w.ring()
		settle(3 * time.Minute)
		if got := must(t, a, "ens6", state.ENIShadowed); !strings.Contains(got.Reason, netplan) {
			t.Errorf("the reason: %s", got.Reason)
		}
	})
}

// F2: what a file takes away is explained by it; what has other causes is not.
func TestTakenAway(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		w.put(t, baseUnit, "[Match]\nDriver=ena\n[Network]\nDHCP=yes\n")
		w.attach(0, "ens5", "10.0.1.10")
		w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
		a, stop := w.start(t)
		defer stop()
		settle(2 * time.Minute)
		lose := func() {
			w.set(func() {
				w.mute = true // or it would bring it back
				w.links[1].Addresses = slices.DeleteFunc(w.links[1].Addresses, func(a kernel.Address) bool { return a.Prefix.IsSingleIP() })
			})
			w.ring()
			settle(time.Minute)
		}
		const harmless, culprit = admin + "70-ens6.network.d/mtu.conf", admin + "70-ens6.network.d/x.conf"
		w.put(t, harmless, "[Link]\nMTUBytes=9001\n")
		lose()
		if got := must(t, a, "ens6", state.ENIDegraded); strings.Contains(got.Reason, "mtu.conf") {
			t.Errorf("the wrong file is named: %s", got.Reason)
		}
		w.put(t, culprit, "[Network]\nAddress=\n")
		settle(time.Minute)
		if got := must(t, a, "ens6", state.ENIOverridden); !strings.Contains(got.Reason, culprit) || !strings.Contains(got.Reason, "10.0.1.21") {
			t.Errorf("the reason: %s", got.Reason)
		}
		// E5: networkd would not bring it; once that is over, it shall.
		_, reloads, _ := w.counts()
		settle(10 * time.Minute)
		if _, now, _ := w.counts(); now != reloads {
			t.Errorf("%d reloads for what a file takes away", now-reloads)
		}
		if err := os.Remove(filepath.Join(w.dir, culprit)); err != nil {
			t.Fatal(err)
		}
		w.set(func() { w.mute = false })
		settle(time.Minute)
		must(t, a, "ens6", state.ENIConfigured)
	})
}

// G1, G2: altnames that cannot come are no reason to ask udevd again and again, and the
// file that is in the way is named.
func TestLinkFilesOfOthers(t *testing.T) {
	t.Parallel()
	for file, content := range map[string]string{
		admin + "10-x.link":                        "[Match]\nOriginalName=ens6\n",
		admin + "70-ens6.link":                     "",
		admin + "70-ens6.link.d/50-ec2netd.conf":   "[Link]\nDescription=x\n",
		plan.Directory + "/70-ens6.link":           "",
		plan.LinkDropIn("ens6"):                    "",
		admin + "70-ens6.link.d/60-elsewhere.conf": "[Match]\nDriver=\nDriver=other\n",
	} {
		bubble(t, func(t *testing.T, w *world) {
			w.put(t, "/usr/lib/systemd/network/99-default.link", "[Match]\nOriginalName=*\n")
			w.put(t, file, content)
			if strings.HasSuffix(file, "10-x.link") {
				w.applied = map[int]string{3: file}
			}
			w.attach(0, "ens5", "10.0.1.10")
			w.attach(1, "ens6", "10.0.1.20", "10.0.1.21")
			w.noAltnames = map[string]bool{"ens6": true}
			a, stop := w.start(t)
			defer stop()
			settle(2 * time.Minute)
			got := must(t, a, "ens6", state.ENIOverridden)
			if !strings.Contains(got.Reason, file) || !slices.Equal(got.Missing, []string{"altname eni-00000000000000001", "altname device-number-1"}) {
				t.Errorf("%s: %s; %q", file, got.Reason, got.Missing)
			}
			triggers := w.triggers
			settle(10 * time.Minute)
			if w.triggers != triggers {
				t.Errorf("%s: udevd was asked %d times", file, w.triggers-triggers)
			}
			if err := os.Remove(filepath.Join(w.dir, file)); err != nil {
				t.Fatal(err)
			}
			w.set(func() { w.noAltnames = nil })
			settle(3 * time.Minute)
			must(t, a, "ens6", state.ENIConfigured)
			if target := w.store.Target(plan.LinkPath("ens6")); target != plan.DefaultPolicy {
				t.Errorf("%s: the .link file leads to %q", file, target)
			}
		})
	}
}

// Base units' drop-ins that change are taken up.
func TestBaseChanges(t *testing.T) {
	t.Parallel()
	bubble(t, func(t *testing.T, w *world) {
		const dropIn = admin + "80-ec2.network.d/x.conf"
		w.put(t, baseUnit, "[Match]\nDriver=ena\n")
		w.attach(0, "ens5", "10.0.1.10")
		a, stop := w.start(t)
		defer stop()
		settle(2 * time.Minute)
		for _, change := range []func(){
			func() { w.put(t, dropIn, "[Link]\nMTUBytes=9001\n") },
			func() { w.put(t, dropIn, "[Link]\nMTUBytes=1500\n\n") },
			func() { w.put(t, baseUnit, "[Match]\nDriver=ena vif\n") },
			func() { w.put(t, admin+dropin.BaseName, "[Match]\nDriver=ena\n") },
			func() { _ = os.Remove(filepath.Join(w.dir, admin+dropin.BaseName)) },
			func() { _ = os.Remove(filepath.Join(w.dir, dropIn)) },
		} {
			_, before, _ := w.counts()
			change()
			settle(2 * time.Minute)
			if _, reloads, _ := w.counts(); reloads != before+1 {
				t.Errorf("%d reloads", reloads-before)
			}
			must(t, a, "ens5", state.ENIConfigured)
		}
	})
}
