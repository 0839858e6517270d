package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

const (
	etcNetwork = "/etc/systemd/network/"
	runNetwork = "/run/systemd/network/"
)

// others is what somebody else has on disk about one ENI, and what must come of it.
type others struct {
	name string
	// link is the name of the ENI's link.
	link string
	// file holds content, or is masked. IF, MAC and ID in both stand for the ENI's.
	file, content string
	// early: the file is there before the ENI is attached.
	early bool
	state state.ENI
	// either: networkd 252 lets the ENI have all the same what the file would take away, and
	// then it is configured; again: so do others now and then, until they read the file anew.
	either, again bool
	// says must be in the reason, besides the file unless the ENI is configured.
	says string
	// effect, of the file, in the output of ip addr show; absent must not be in it.
	effect, absent string
	// advice is in the reason, follow is a command that does as it says, and after is in the output
	// of ip addr show then. FILE stands for the file in it, and NAMES for the alternative names.
	advice, follow, after string
}

var othersFiles = []others{
	{name: "a file of the same name", link: "ens11", file: etcNetwork + "70-IF.network",
		content: "[Match]\nName=IF\n[Network]\nDHCP=no\nLinkLocalAddressing=ipv6\nAddress=192.0.2.11/32\n", state: state.ENIOverridden,
		effect: "192.0.2.11/32", absent: " 10.0.", advice: "Remove it to have", follow: "rm FILE"},
	{name: "a drop-in that adds", link: "ens12", file: etcNetwork + "70-IF.network.d/x.conf",
		content: "[Link]\nMTUBytes=1412\n[Address]\nAddress=192.0.2.12/32\n", state: state.ENIConfigured, effect: "192.0.2.12/32"},
	{name: "a drop-in that takes addresses away", link: "ens13", file: etcNetwork + "70-IF.network.d/x.conf",
		content: "[Network]\nAddress=\n", state: state.ENIOverridden, either: true, says: "Address= in [Network]", advice: "Change it, or remove it, then: ", follow: "sed -i s/Address=/LLMNR=yes/ FILE"},
	{name: "a drop-in that takes default routes away", link: "ens14", file: etcNetwork + "70-IF.network.d/x.conf",
		content: "[DHCPv4]\nUseGateway=no\nUseRoutes=no\n", state: state.ENIOverridden, either: true, again: true, says: "in [DHCPv4]", advice: "Change it, or remove it, then: ", follow: "rm FILE"},
	{name: "a drop-in for another host", link: "ens15", file: etcNetwork + "70-IF.network.d/x.conf",
		content: "[Match]\nHost=elsewhere\n", state: state.ENIOverridden, says: "[Match]", advice: "Change it to have", follow: "sed -i /Host=/d FILE"},
	{name: "a drop-in that leaves the link alone", link: "ens16", file: etcNetwork + "70-IF.network.d/x.conf",
		content: "[Link]\nUnmanaged=yes\n", state: state.ENIOverridden, says: "Unmanaged=yes", advice: "Change it to have", follow: "sed -i s/yes/no/ FILE"},
	{name: "a drop-in of the same name", link: "ens17", file: etcNetwork + "70-IF.network.d/50-ec2netd.conf",
		content: "[Link]\nMTUBytes=1417\n", state: state.ENIOverridden, effect: "mtu 1417", advice: "Give it another name to have both", follow: "mv FILE FILE.conf", after: "mtu 1417"},
	{name: "a masked drop-in", link: "ens18", file: etcNetwork + "70-IF.network.d/50-ec2netd.conf", content: labtest.Masked,
		state: state.ENIOverridden, advice: "emove it", follow: "rm FILE"},
	{name: "a drop-in masked in its place", link: "ens19", file: runNetwork + "70-IF.network.d/50-ec2netd.conf", content: labtest.Masked,
		state: state.ENIOverridden, advice: "emove it", follow: "rm FILE"},
	{name: "a masked unit", link: "ens20", file: etcNetwork + "70-IF.network", content: labtest.Masked, state: state.ENIOverridden, says: "masks", advice: "Remove it to have", follow: "rm FILE"},
	{name: "a unit masked in its place", link: "ens21", file: runNetwork + "70-IF.network", content: labtest.Masked, state: state.ENIOverridden, says: "masks", advice: "Remove it to have", follow: "rm FILE"},
	{name: "netplan", link: "ens22", file: runNetwork + "10-netplan-IF.network",
		content: "[Match]\nName=IF\n[Network]\nDHCP=yes\nLinkLocalAddressing=ipv6\n[DHCP]\nRouteMetric=100\nUseMTU=true\n[Link]\nMTUBytes=1422\n", state: state.ENIConfigured, effect: "mtu 1422"},
	{name: "cloud-init", link: "ens23", file: etcNetwork + "10-cloud-init-IF.network",
		content: "[Match]\nMACAddress=MAC\nName=IF\n[Network]\nDHCP=ipv4\n[DHCPv4]\nRouteMetric=200\n[Address]\nAddress=192.0.2.23/32\n", state: state.ENIConfigured, effect: "192.0.2.23/32"},
	{name: "a name just before", link: "ens24", file: etcNetwork + "70-eks-IF.network",
		content: "[Match]\nName=IF\n[Network]\nDHCP=ipv4\n", state: state.ENIShadowed, says: "sorts after 70-IF.network", advice: "or give it a name that sorts after 70-IF.network", follow: "mv FILE " + etcNetwork + "75-IF.network"},
	{name: "a name just after", link: "ens25", file: etcNetwork + "70-zzz-IF.network",
		content: "[Match]\nName=IF\n[Network]\nDHCP=no\nAddress=192.0.2.25/32\n", state: state.ENIConfigured, absent: "192.0.2.25"},
	{name: "a file that leaves the link alone", link: "ens26", file: etcNetwork + "10-x-IF.network",
		content: "[Match]\nName=IF\n[Link]\nUnmanaged=yes\n", state: state.ENIShadowed, says: "Unmanaged=yes", advice: "or have its [Match] leave out IF", follow: "sed -i s/Name=.*/Name=elsewhere/ FILE"},
	{name: "a file that matches an altname", link: "ens27", file: etcNetwork + "10-x-IF.network",
		content: "[Match]\nName=ID\n[Network]\nDHCP=ipv4\n", state: state.ENIShadowed, advice: ": remove it, or", follow: "rm FILE"},
	{name: "a .link file that comes before", link: "ens28", file: etcNetwork + "10-x-IF.link",
		content: "[Match]\nOriginalName=IF\n[Link]\nNamePolicy=keep\nMTUBytes=1428\n", early: true, state: state.ENIOverridden,
		says: "sorts after 70-IF.link", effect: "mtu 1428", advice: "for now if nothing else acts on links that come, then: ", follow: "for name in NAMES; do echo AlternativeName=$name; done >> FILE", after: "mtu 1428"},
	{name: "a .link file of the same name", link: "ens29", file: etcNetwork + "70-IF.link",
		content: "[Match]\nOriginalName=IF\n[Link]\nNamePolicy=keep\nMTUBytes=1429\n", early: true, state: state.ENIConfigured, effect: "mtu 1429"},
	{name: "a masked .link file", link: "ens30", file: etcNetwork + "70-IF.link", content: labtest.Masked, early: true, state: state.ENIOverridden, says: "masks", advice: "Remove it to have them", follow: "rm FILE"},
	{name: "a masked .link drop-in", link: "ens31", file: etcNetwork + "70-IF.link.d/50-ec2netd.conf", content: labtest.Masked, early: true,
		state: state.ENIOverridden, advice: "emove it", follow: "rm FILE"},
	{name: "a .link file with a name just before", link: "ens32", file: etcNetwork + "70-a-IF.link",
		content: "[Match]\nOriginalName=IF\n[Link]\nNamePolicy=keep\nMTUBytes=1432\n", early: true, state: state.ENIOverridden,
		says: "sorts after 70-IF.link", effect: "mtu 1432",
		advice: "give it a name that sorts after 70-IF.link", follow: "mv FILE " + etcNetwork + "75-IF.link"},
	{name: "a .link drop-in for another link", link: "ens33", file: etcNetwork + "70-IF.link.d/x.conf", content: "[Match]\nMACAddress=\nMACAddress=02:00:00:00:00:01\n", early: true,
		state: state.ENIOverridden, says: "[Match]", advice: "Change it to have them", follow: "sed -i /=/d FILE"},
	{name: "another ENI's unit", link: "ens34", file: etcNetwork + "70-ens25.network.d/y.conf", content: "[Match]\nMACAddress=MAC\nName=IF\n",
		state: state.ENIShadowed, says: "because of the [Match] in", advice: "change that, then: ", follow: "sed -i s/Name=.*/LLMNR=yes/ FILE && sed -i /MACAddress=/d FILE && sed -i s/Match/Network/ FILE"},
}

// with fills in what IF, MAC and ID stand for.
func (o *others) with(text string, eni *vpc.ENI) string {
	if eni != nil {
		text = strings.NewReplacer("=MAC", "="+eni.MAC().String(), "=ID", "="+eni.ID()).Replace(text)
	}
	return strings.ReplaceAll(text, "IF", o.link)
}

// awaitAll waits until all ENIs are in a state, for a reason.
func awaitAll(l *labtest.Lab, what string, want state.ENI, reason string) {
	l.T.Helper()
	last := ""
	l.UntilOr(what, func() (bool, error) {
		s := l.Describe()
		if last = fmt.Sprintf("%d ENIs", len(s.Interfaces)); len(s.Interfaces) != len(l.Inst.ENIs()) {
			return false, nil
		}
		last = ""
		for _, i := range s.Interfaces {
			if i.State != want || !strings.Contains(i.Reason, reason) {
				last += fmt.Sprintf("%s is %s: %s %v %v\n", i.Name, i.State, i.Reason, i.Missing, i.Unwanted)
			}
		}
		return last == "", nil
	}, &last)
}

// F2, F3, G2: whatever files of somebody else's there are about an ENI, they have their
// effect, and the ENI is configured or says which file is in the way. When the file is
// gone, the ENI is as it shall be.
func TestLabOthersFiles(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=3\n"
			for _, c := range othersFiles {
				if c.early && c.content != labtest.Masked {
					o.Files[c.with(c.file, nil)] = c.with(c.content, nil)
				}
			}
		})
		for _, c := range othersFiles {
			if c.early && c.content == labtest.Masked {
				l.Put(c.with(c.file, nil), labtest.Masked)
			}
		}
		l.AwaitConfigured("ens5")
		enis := make(map[string]*vpc.ENI)
		for _, c := range othersFiles {
			// Without IPv6: where an ENI moves from the base unit to its own under load, 252
			// can lose an address of that, which is not the matter here.
			enis[c.link] = l.Attach(vpc.ENISpec{Name: c.link, IPv4Count: 2, IPv6Count: -1})
		}
		for _, c := range othersFiles {
			if !c.early {
				l.AwaitConfigured(c.link)
			}
		}
		for _, c := range othersFiles {
			if !c.early {
				l.Put(c.with(c.file, enis[c.link]), c.with(c.content, enis[c.link]))
			}
		}
		l.Reload()

		awaitEach(l, func(c *others) (string, bool) {
			got, ok := l.Describe().Find(c.link)
			if !ok {
				return "not there", false
			}
			file := c.with(c.file, enis[c.link])
			ok = got.State == c.state || (c.either && got.State == state.ENIConfigured && suite == "bookworm")
			if got.State == state.ENIConfigured {
				ok = ok && len(got.Missing) == 0
			} else {
				ok = ok && strings.Contains(got.Reason, file) && strings.Contains(got.Reason, c.with(c.says, enis[c.link]))
			}
			shown := l.Run("ip", "addr", "show", c.link)
			ok = ok && strings.Contains(shown, c.effect) && (c.absent == "" || !strings.Contains(shown, c.absent))
			if !ok && c.again {
				l.Run("touch", file)
				l.Reload()
			}
			return fmt.Sprintf("%s: %s; %v\n%s", got.State, got.Reason, got.Missing, shown), ok
		})
		for _, c := range othersFiles {
			got, _ := l.Describe().Find(c.link)
			if got.State != state.ENIConfigured {
				continue
			}
			// What is called configured is in the kernel.
			eni := enis[c.link]
			for _, address := range slices.Concat(eni.IPv4(), eni.IPv6()) {
				if !l.HasAddress(c.link, address) {
					t.Errorf("%s: %s is not there", c.name, address)
				}
			}
			if got := l.Rules(labtest.TableOf(eni)); !slices.Equal(got, labtest.Sources(eni)) {
				t.Errorf("%s: rules %v, want %v", c.name, got, labtest.Sources(eni))
			}
			if !slices.ContainsFunc(l.Routes("-4", "main"), func(r labtest.Route) bool {
				return r.Dst == "default" && r.Dev == c.link && r.Metric == 512+eni.DeviceIndex()
			}) {
				t.Errorf("%s: no default route with its metric", c.name)
			}
		}
		// Nobody else is touched: the primary is configured, by its own file.
		if got := l.AwaitConfigured("ens5"); got.NetworkFile != plan.NetworkPath("ens5") {
			t.Errorf("the primary: %+v", got)
		}

		// What the reasons say is done, and the command that they end with. First those that have none.
		for _, ends := range []bool{false, true} {
			commands := make(map[string]bool)
			var done []string
			for _, c := range othersFiles {
				got, _ := l.Describe().Find(c.link)
				_, command, found := strings.Cut(got.Reason, ", then: ")
				if c.follow == "" || got.State == state.ENIConfigured || found != ends {
					continue
				}
				if !strings.Contains(got.Reason, c.with(c.advice, nil)) {
					t.Errorf("%s: no %q: %s", c.name, c.advice, got.Reason)
				}
				file := c.with(c.file, enis[c.link])
				l.Run("sh", "-ec", strings.NewReplacer("FILE", file, "NAMES", strings.Join(got.Altnames, " ")).Replace(c.with(c.follow, nil)))
				commands[command], done = true, append(done, c.link)
			}
			for _, command := range slices.Sorted(maps.Keys(commands)) {
				l.Reloads(command)
			}
			for _, link := range done {
				l.AwaitConfigured(link)
			}
		}
		awaitAll(l, "what was advised has been done", state.ENIConfigured, "")
		for _, c := range othersFiles {
			shown := l.Run("ip", "addr", "show", c.link)
			for _, name := range append([]string{c.with(c.after, nil)}, enis[c.link].ID()) {
				if !strings.Contains(shown, name) {
					t.Errorf("%s: after what was advised there is no %q: %s", c.name, name, shown)
				}
			}
		}

		// All of it goes, and what was said goes with it.
		for _, c := range othersFiles {
			l.Run("sh", "-c", "rm -f "+c.with(c.file+" "+c.file+".conf "+etcNetwork+"75-IF.*", enis[c.link]))
		}
		l.Reload()
		_, _ = l.Inst.Exec(t.Context(), "ec2netctl", "refresh", "--wait")
		awaitAll(l, "all ENIs are configured again", state.ENIConfigured, "")
		for _, eni := range enis {
			l.CheckOwn(eni)
		}
		if left := l.Run("sh", "-c", "find /run/systemd/network -path '*.link.d/"+plan.MatchDropIn+"' -o -lname /dev/null"); left != "" {
			t.Errorf("left behind: %s", left)
		}
		for _, i := range l.Describe().Interfaces {
			if want := plan.NetworkPath(i.Name); i.NetworkFile != want {
				t.Errorf("%s is configured by %s, want %s", i.Name, i.NetworkFile, want)
			}
		}
	})
}

// awaitEach waits until a condition holds for each of othersFiles, and says of which it does
// not.
func awaitEach(l *labtest.Lab, holds func(c *others) (string, bool)) {
	l.T.Helper()
	last := make(map[string]string)
	for i := range othersFiles {
		last[othersFiles[i].name] = "not looked at"
	}
	defer func() {
		for _, name := range slices.Sorted(maps.Keys(last)) {
			l.T.Logf("%s: %s", name, last[name])
		}
	}()
	l.Until("all files have their effect", func() (bool, error) {
		for i := range othersFiles {
			c := &othersFiles[i]
			if _, open := last[c.name]; !open {
				continue
			}
			said, ok := holds(c)
			last[c.name] = said
			if ok {
				delete(last, c.name)
			}
		}
		return len(last) == 0, nil
	})
}

// F2, F3: files about all ENIs: drop-ins of the base unit, the base unit itself, and one
// file that matches every link.
func TestLabOthersBase(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=3\n"
		})
		l.AwaitConfigured("ens5")
		enis := []*vpc.ENI{l.Inst.Primary(), l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: -1}), l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: -1})}
		// A refresh fails where networkd has just taken the addresses away that the metadata
		// is asked from; the files are taken up all the same.
		refresh := func() { _, _ = l.Inst.Exec(t.Context(), "ec2netctl", "refresh", "--wait") }
		awaitAll(l, "all ENIs are configured", state.ENIConfigured, "")
		// everywhere checks which of the test's addresses all ENIs have.
		everywhere := func(what string, want ...string) {
			t.Helper()
			awaitAll(l, what+": all ENIs are configured", state.ENIConfigured, "")
			last := ""
			l.UntilOr(what, func() (bool, error) {
				for _, eni := range enis {
					var got []string
					for _, a := range l.Addresses(eni.Name()) {
						if strings.HasPrefix(a.String(), "192.0.2.") {
							got = append(got, a.String())
						}
					}
					if last = fmt.Sprintf("%s has %v, want %v", eni.Name(), got, want); !slices.Equal(got, want) {
						return false, nil
					}
				}
				return true, nil
			}, &last)
		}
		address := func(last string) string { return "[Address]\nAddress=192.0.2." + last + "/32\n" }

		// A drop-in of the base unit: added, changed and removed, by refresh alone.
		const dropIn = etcNetwork + "80-ec2.network.d/admin.conf"
		l.Put(dropIn, address("97"))
		refresh()
		everywhere("a drop-in is added", "192.0.2.97")
		enis = append(enis, l.Attach(vpc.ENISpec{IPv4Count: 2, IPv6Count: -1}))
		everywhere("an ENI comes", "192.0.2.97")
		l.Put(dropIn, address("98"))
		refresh()
		everywhere("the drop-in is changed", "192.0.2.98")
		l.Run("rm", dropIn)
		refresh()
		everywhere("the drop-in is removed")

		// The base unit itself: replaced, and back.
		const base = etcNetwork + "80-ec2.network"
		shipped := l.Run("cat", "/usr/lib/systemd/network/80-ec2.network")
		l.Put(base, shipped+"\n\n"+address("99"))
		refresh()
		everywhere("the base unit is replaced", "192.0.2.99")
		l.Run("rm", base)
		refresh()
		everywhere("the base unit is back")

		// It is masked: nothing is configured, and the mask is named.
		l.Put(base, labtest.Masked)
		refresh()
		awaitAll(l, "the base unit is masked", state.ENIOverridden, base+" masks")
		// Told to reload before the daemon has seen that, networkd 252 may miss the primary's IPv6 address
		// for a minute.
		if advice := l.AdviceOf(base + " masks the base unit: "); suite == "bookworm" {
			l.Run("rm", base)
		} else {
			l.Reloads(advice)
		}
		awaitAll(l, "the mask is gone", state.ENIConfigured, "")
		if suite != "bookworm" {
			l.Put(base, "")
			refresh()
			awaitAll(l, "the base unit is empty", state.ENIOverridden, base+" masks")
			l.Reloads(l.AdviceOf(base + " masks the base unit: "))
			awaitAll(l, "the empty file is gone", state.ENIConfigured, "")
		}

		// One file for all links.
		for _, match := range []string{"Name=e*", "Driver=veth"} {
			const all = etcNetwork + "10-all.network"
			l.Put(all, "[Match]\n"+match+"\n[Network]\nDHCP=yes\n")
			l.Reload()
			awaitAll(l, "one file for all links", state.ENIShadowed, all)
			if s := l.AwaitManager(state.Degraded); !strings.Contains(s.Reason, all) {
				t.Errorf("the daemon's reason: %s", s.Reason)
			}
			l.Run("rm", all)
			refresh() // which has networkd reload, too
			awaitAll(l, "that file is gone", state.ENIConfigured, "")
		}
		for _, eni := range enis {
			l.CheckOwn(eni)
		}
	})
}
