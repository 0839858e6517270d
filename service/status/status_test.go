package status

import (
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"net/netip"
	"path/filepath"
	"reflect"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
)

// base is where networkd finds the base unit, and own the unit of ens6.
const (
	base = "/usr/lib/systemd/network/80-ec2.network"
	own  = "/run/systemd/network/70-ens6.network"
	link = "/run/systemd/network/70-ens6.link"
	file = "/etc/systemd/network/10-mine.network"
)

var (
	secondary = AddressGap(netip.MustParseAddr("10.0.1.21"))
	altname   = Gap{Kind: Altname, Value: "eni-0123"}
	old       = Gap{Kind: Address, Family: IPv4, Value: "10.0.1.22", StillThere: true}
)

// sayings are a reason of each code, with its words.
var sayings = []struct {
	reason Reason
	words  string
}{
	{Reason{}, ""},
	{Reason{Code: OfENI, Subject: "eni-0123", Other: "ens6", State: "degraded", Of: &Reason{Code: NoCarrier, Subject: "ens6"}},
		"eni-0123 (ens6) is degraded: the link has no carrier: see networkctl status ens6, and whether EC2 has the ENI attached"},
	{Reason{Code: BusSilent}, "the system bus does not answer, so systemd-networkd cannot be asked to reload"},
	{Reason{Code: NetworkdStopped}, "systemd-networkd does not run: start it with systemctl enable --now systemd-networkd.service"},
	{Reason{Code: NetworkdMaskedRuntime}, "systemd-networkd is masked until the next boot: have it run with systemctl unmask --runtime systemd-networkd.service && systemctl enable --now systemd-networkd.service"},
	{Reason{Code: NetworkdMasked}, "systemd-networkd is masked: have it run with systemctl unmask systemd-networkd.service && systemctl enable --now systemd-networkd.service"},
	{Reason{Code: NetworkdNotInstalled}, "systemd-networkd is not installed: install it, ec2netd needs it"},
	{Reason{Code: NetworkdFailed}, "systemd-networkd has failed: see systemctl status systemd-networkd.service"},
	{Reason{Code: NetworkdStarting}, "systemd-networkd is starting"},
	{Reason{Code: NetworkdOffBus}, "systemd-networkd runs and is not on the system bus, which it does not join again where that was restarted: " +
		"restart it with systemctl restart systemd-networkd.service"},
	{Reason{Code: FilesUnwritten, Cause: "writing " + own + ": no space"}, "writing " + own + ": no space"},
	{Reason{Code: MetadataUnread}, "the metadata has not been read yet"},
	{Reason{Code: MetadataUnread, Undecided: true}, "the metadata has not been read yet; whether it is managed depends on that"},
	{Reason{Code: MetadataOff, Cause: "it is off"}, "what is configured stays: it is off"},
	{Reason{Code: MetadataSilent, Cause: "no answer"}, "the metadata service does not answer, what is configured stays: no answer"},
	{Reason{Code: MetadataFailed, Cause: "reading mac: 503"}, "reading mac: 503"},
	{Reason{Code: ConfigurationWrong, Cause: "/etc/ec2netd.conf:3: no"}, "the configuration has mistakes: /etc/ec2netd.conf:3: no"},
	{Reason{Code: RecordUnwritten, Cause: "writing /run/ec2netd/views.json: no"}, "writing /run/ec2netd/views.json: no"},
	{Reason{Code: FileUnreadable, Cause: file + ": a FIFO"}, "a file cannot be read, and counts as if it were not there: " + file + ": a FIFO"},
	{Reason{Code: Conflicting, Subject: "dhclient", Values: []string{"it runs for ens5", "it runs for ens6"}},
		"in conflict with dhclient: it runs for ens5, it runs for ens6"},
	{Reason{Code: NotEC2, Cause: "no EC2 instance"}, "no EC2 instance, and nothing is configured; on a cloud that is compatible with EC2 set Platform=any in " +
		"[Match] of ec2netd.conf(5), then: systemctl restart ec2netd.service"},

	{Reason{Code: ManagedNo, File: "/etc/ec2netd.conf:3"}, "/etc/ec2netd.conf:3 says Managed=no"},
	{Reason{Code: MetadataIncomplete, Cause: "the metadata does not list it"}, "the metadata does not list it"},
	{Reason{Code: SharedMAC, Subject: "02:00:00:00:00:01", Other: "ens7"},
		"another link (ens7) has the MAC address 02:00:00:00:00:01 too, what is configured stays: remove the one that is not the ENI"},
	{Reason{Code: CardUnknown}, "the metadata does not tell its network card yet, though it does for other ENIs"},
	{Reason{Code: NotPropagated}, "the metadata still says device-number 0, which is the primary's: the attachment has not propagated yet"},
	{Reason{Code: NumbersInUse, Other: "02:00:00:00:00:01", Index: 1, Card: 2},
		"02:00:00:00:00:01 had device index 1 on network card 2 until now, and still has routes of it"},
	{Reason{Code: NumbersTaken, Other: "02:00:00:00:00:01", Index: 1, Card: 2},
		"device index 1 on network card 2 is that of 02:00:00:00:00:01 too: one of the two has not propagated yet"},
	{Reason{Code: LastBoot}, "the metadata has not been read yet; it is configured as the last boot knew it"},
	{Reason{Code: LastBoot, Cause: "no answer"}, "the metadata has not been read yet; it is configured as the last boot knew it: no answer"},
	{Reason{Code: LastView, Cause: "no answer"}, "the last view of the metadata holds: no answer"},
	{Reason{Code: Detached}, "detached"},
	{Reason{Code: NoLink}, "the instance has no link for it"},

	{Reason{Code: TakingUp}, "waiting for networkd to take up its files"},
	{Reason{Code: DropInTaken, File: own + ".d/50-ec2netd.conf", InForce: base},
		own + ".d/50-ec2netd.conf is not this daemon's: a mask, maybe, and networkd uses " + base + ". Remove it to have the ENI configured"},
	{Reason{Code: UnitMasked, File: file}, file + " masks the unit of the ENI, and networkd leaves the link alone. Remove it to have the ENI configured"},
	{Reason{Code: UnitReplaced, File: file}, "the administrator's " + file + " is in force, and nothing of ec2netd. Remove it to have the ENI configured"},
	{Reason{Code: UnitUnmatched, File: file, InForce: base}, "the administrator's " + file + " takes the place of the ENI's unit, but does not match the link, " +
		"and networkd uses " + base + ". Remove it to have the ENI configured"},
	{Reason{Code: UnitTaken, File: file}, file + " takes the place of its unit"},
	{Reason{Code: DropInHidden, File: file, Own: own},
		"the administrator's " + file + " is in force in place of " + own + ". Give it another name to have both, or remove it, then: networkctl reload"},
	{Reason{Code: DropInMasked, File: file, Own: own, InForce: base},
		file + " masks a drop-in of " + own + ", and networkd uses " + base + ". Remove it to have the ENI configured, then: networkctl reload"},
	{Reason{Code: ReloadDue, File: file, Own: own}, file + " is still in force in place of " + own + ": have networkd read its files with networkctl reload"},
	{Reason{Code: OthersUnit, File: file, Own: own, Subject: "ens6"}, "networkd uses " + file + " for the link instead of " + own +
		": remove it, or give it a name that sorts after 70-ens6.network, or have its [Match] leave out ens6, then: networkctl reload"},
	{Reason{Code: OtherENIsUnit, File: file, InForce: own, Other: "ens6"},
		"networkd uses " + own + " for the link, the unit of ens6, because of the [Match] in " + file + ": change that, then: networkctl reload"},
	{Reason{Code: BaseMasked, File: file}, file + " masks the base unit of all ENIs. Remove it to have them configured"},
	{Reason{Code: MatchFails, File: file, Own: own, Subject: "ens6"}, file + " has a [Match] that " + own +
		" does not match ens6 with, and networkd leaves the link alone. Change it to have the ENI configured, then: networkctl reload"},
	{Reason{Code: UnmanagedBySetting, File: file}, file + " has networkd leave the link alone (Unmanaged=yes). Change it to have the ENI configured, then: networkctl reload"},
	{Reason{Code: UnmanagedByUnit, File: file, Own: own, Subject: "ens6"}, "networkd leaves the link alone, as " + file + " says (Unmanaged=yes) instead of " + own +
		": remove it, or have its [Match] leave out ens6, then: networkctl reload"},
	{Reason{Code: LeftAlone, Subject: "ens6"}, "networkd leaves the link alone: see networkctl status ens6"},
	{Reason{Code: NotTakenUp, Own: own, InForce: base, Subject: "ens6"}, "networkd has not taken up " + own + " and uses " + base + ": see networkctl status ens6"},

	{Reason{Code: PlaceTaken}, "something of somebody else's, a mask maybe, is in its place"},
	{Reason{Code: PlaceHasFile}, "a file of somebody else's is in its place"},
	{Reason{Code: PlaceMasked}, "it is masked"},
	{Reason{Code: PlaceHasLink, File: "/usr/x"}, "a link of somebody else's to /usr/x is in its place"},

	{Reason{Code: SetDown, Subject: "ens6"}, "the link was set down, and stays so. Set it up with: ip link set dev ens6 up"},
	{Reason{Code: PortWithoutAddresses, Subject: "ens6", Other: "br0", OtherKind: "bridge"}, "the link is a port of br0 (bridge), which takes what arrives. " +
		"Release it with: ip link set dev ens6 nomaster; ip link set dev ens6 down; ip link set dev ens6 up"},
	{Reason{Code: LinkDown, Subject: "ens6"}, "the link is down, and networkd does not set it up: see networkctl status ens6"},
	{Reason{Code: NoCarrier, Subject: "ens6"}, "the link has no carrier: see networkctl status ens6, and whether EC2 has the ENI attached"},
	{Reason{Code: WaitingFor, Gaps: []Gap{secondary, altname, old}}, "waiting for: address 10.0.1.21, altname eni-0123, still there: address 10.0.1.22"},
	{Reason{Code: WaitingFor}, "waiting for: the lease"},
	{Reason{Code: FilesUnread, Gaps: []Gap{secondary}, Cause: "it is busy"},
		"missing: address 10.0.1.21; networkd has not read the files: it is busy. See journalctl -u systemd-networkd"},
	{Reason{Code: UdevMissed}, "udevd has not handled the link, which networkd waits for: see systemctl status systemd-udevd.service"},
	{Reason{Code: NotBrought, Gaps: []Gap{secondary, altname, secondary, altname, old}},
		"networkd has not brought: address 10.0.1.21, altname eni-0123, address 10.0.1.21 and 2 others; see journalctl -u systemd-networkd"},
	{Reason{Code: Contested, Number: 3}, "somebody takes away again and again what the ENI shall have: it was put back 3 times, and that is done less and less often. " +
		"See journalctl -u ec2netd for what it was, and stop whoever does it"},
	{Reason{Code: Contested, Number: 1, Gaps: []Gap{secondary}}, "somebody takes away again and again what the ENI shall have: it was put back 1 time, " +
		"and that is done less and less often. See journalctl -u ec2netd for what it was, and stop whoever does it. Missing: address 10.0.1.21"},
	{Reason{Code: KeptBySetting, File: file, Setting: "Address=10.0.1.22/24 in [Network]", Gaps: []Gap{old}},
		file + " keeps what the ENI has no more (Address=10.0.1.22/24 in [Network]). still there: address 10.0.1.22. Remove that line and run networkctl reload to have it go"},
	{Reason{Code: KeptBySetting, File: file, Setting: "Address=10.0.1.22/24 in [Network]", Gaps: []Gap{old}, Netplan: true},
		file + " keeps what the ENI has no more (Address=10.0.1.22/24 in [Network]). still there: address 10.0.1.22. netplan makes that file: " +
			"remove the address from the one in /etc/netplan that has it, and run netplan generate && networkctl reload"},
	{Reason{Code: TakenBySetting, File: file, Setting: "DHCP=no in [Network]", Gaps: []Gap{secondary}},
		file + " takes away what the ENI shall have (DHCP=no in [Network]). Missing: address 10.0.1.21. Change it, or remove it, then: networkctl reload"},
	{Reason{Code: NameHeld, Subject: "ens6", Value: "device-number-1", Other: "ens7"},
		"altname device-number-1 is still that of ens7: ip link property del dev ens7 altname device-number-1 && ip link property add dev ens6 altname device-number-1"},
	{Reason{Code: NamesMissing, Gaps: []Gap{altname}}, "missing: altname eni-0123; see journalctl -u ec2netd-orphans.service"},
	{Reason{Code: NamesRefused, Own: link, Of: &Reason{Code: PlaceMasked}},
		"the ENI has no alternative names: " + link + " is not written: it is masked. Remove that to have them"},
	{Reason{Code: NamesMasked, File: file}, "the ENI has no alternative names: " + file + " masks the .link file. Remove it to have them"},
	{Reason{Code: NamesHidden, File: file, Own: link}, "the ENI has no alternative names: the administrator's " + file + " is in force in place of " + link +
		". Give it another name to have both, or remove it"},
	{Reason{Code: NamesUnmatched, File: file},
		"the ENI has no alternative names: " + file + " has a [Match] that the .link file does not match the link with. Change it to have them"},
	{Reason{Code: NamesEarlier, Subject: "ens6", File: file, Own: link}, "the ENI has no alternative names: udevd uses " + file + " for the link instead of " + link +
		": give it a name that sorts after 70-ens6.link, or write the names into it (AlternativeName=), for the next boot, or for now if nothing else acts on links that come, then: udevadm control --reload && udevadm trigger --action=add /sys/class/net/ens6"},
	{Reason{Code: MarkTaken, Value: "0x2", Other: "ens5", OtherValue: "0x2/0xff"},
		"FirewallMark=0x2 of the configuration is not in force: that of ens5 is 0x2/0xff, and a packet can leave by one of the two only"},
	{Reason{Code: PortOf, Other: "blue", OtherKind: "vrf"}, "the link is a port of blue (vrf)"},
	{Reason{Code: PortOf, Other: "bond0", OtherKind: "bond", Value: "02:00:00:00:00:01", More: []Reason{{Code: Misordered, Value: "10.0.1.21", OtherValue: "10.0.1.20"}}},
		"the link is a port of bond0 (bond) with the MAC address 02:00:00:00:00:01 in place of its own; the first address of the link is 10.0.1.21, " +
			"not the primary one 10.0.1.20, which networkd has added anew: no address is missing"},
	{Reason{Code: WrittenStays, File: file, Own: own, Values: []string{"10.0.1.22", "10.0.1.23"}}, file + " has 10.0.1.22, 10.0.1.23, and nothing tells that EC2 gave " +
		"the ENI that: all addresses there stay, those too that EC2 withdraws. Remove that line and run networkctl reload to have it go, and have what you need in a drop-in in " +
		"/etc/systemd/network/70-ens6.network.d/"},
	{Reason{Code: Misordered, Value: "10.0.1.21", OtherValue: "10.0.1.20"},
		"the first address of the link is 10.0.1.21, not the primary one 10.0.1.20, which networkd has added anew: no address is missing"},

	{Reason{Code: RouteStays}, "the ENI has no such route any more; networkd has not taken it away"},
	{Reason{Code: StaysDespite, Of: &Reason{Code: SecondariesNo}}, "the configuration says SecondaryAddresses=no; networkd has not taken it away"},
	{Reason{Code: WithdrawnInFiles}, "the metadata has withdrawn it; the files are about to follow"},
	{Reason{Code: Withdrawn}, "the metadata has withdrawn it; networkd has not taken it away"},
	{Reason{Code: Disowned}, "networkd does not count it as its own: it is at work on it, or somebody else has added it too"},
	{Reason{Code: AddedToo}, "somebody else has added it; the ENI gets it from the files when it goes"},
	{Reason{Code: Unasked, Of: &Reason{Code: FileMissing}}, "it is there, and the files do not ask for it: the file that asks for it is not in place"},
	{Reason{Code: RouteLate}, "it comes with the next router advertisement; the one in the ENI's own table does until then"},
	{Reason{Code: OtherMTU, Number: 1500}, "the link has 1500: networkd has not set it, or somebody else has changed it"},
	{Reason{Code: NameNotAdded}, "it has not been added yet"},
	{Reason{Code: RemovedOrAsked}, "networkd has asked the kernel for it, or somebody else has removed it"},
	{Reason{Code: Tentative}, "the kernel is looking whether anybody else has it (duplicate address detection)"},
	{Reason{Code: DHCPSilent}, "DHCP has not brought it"},
	{Reason{Code: NetworkdLacks}, "networkd has not brought it"},
	{Reason{Code: ItemUnmanaged}, "the configuration says Managed=no"},
	{Reason{Code: ItemUnknown}, "the metadata of the ENI is not complete"},
	{Reason{Code: ItemKept}, "the metadata is not complete; what was configured stays"},
	{Reason{Code: ForeignConfigured}, "not of the metadata: from DHCP, a router or a file of somebody else's; it is left alone"},
	{Reason{Code: ForeignAdded}, "not of the metadata: somebody else has added it; it is left alone"},
	{Reason{Code: UdevBusy}, "udevd has not handled the link yet"},
	{Reason{Code: AwaitsLease}, "it waits for the lease, so that the primary address is the first of the link"},
	{Reason{Code: AwaitsDHCPv6}, "it waits until DHCPv6 has given it up"},
	{Reason{Code: FileMissing}, "the file that asks for it is not in place"},
	{Reason{Code: SecondariesNo}, "the configuration says SecondaryAddresses=no"},
	{Reason{Code: NoMark}, "the configuration has no such FirewallMark="},
	{Reason{Code: LeftToOthers}, "left to others by SecondaryAddresses=no"},
	{Reason{Code: IPv6OffHost}, "the host has no IPv6 (ipv6.disable=1 on the kernel command line)"},
	{Reason{Code: IPv6OffLink, Subject: "ens6.7"}, "IPv6 is disabled on the link (sysctl net.ipv6.conf.ens6/7.disable_ipv6=1)"},
	{Reason{Code: IPv6None}, "the kernel has given the link no IPv6, as it does where the MTU is below 1280"},
}

// constants are those of a type that the package has: their names by their values.
func constants(t *testing.T, of string) map[string]string {
	t.Helper()
	found := make(map[string]string)
	files, err := filepath.Glob("*.go")
	if err != nil {
		t.Fatal(err)
	}
	for _, name := range files {
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, 0)
		if err != nil {
			t.Fatal(err)
		}
		for _, decl := range parsed.Decls {
			group, ok := decl.(*ast.GenDecl)
			if !ok || group.Tok != token.CONST {
				continue
			}
			for _, spec := range group.Specs {
				constant := spec.(*ast.ValueSpec)
				if is, ok := constant.Type.(*ast.Ident); !ok || is.Name != of {
					continue
				}
				value, err := strconv.Unquote(constant.Values[0].(*ast.BasicLit).Value)
				if err != nil {
					t.Fatal(err)
				}
				if other, taken := found[value]; taken {
					t.Errorf("%s and %s are %q", other, constant.Names[0].Name, value)
				}
				found[value] = constant.Names[0].Name
			}
		}
	}
	if len(found) == 0 {
		t.Fatalf("no constants of type %s", of)
	}
	return found
}

// Each code has words, and a name that programs can rely on.
func TestWords(t *testing.T) {
	codes := constants(t, "Code")
	for value := range codes {
		if !regexp.MustCompile(`^[a-z0-9]+(-[a-z0-9]+)*$`).MatchString(value) && Code(value) != None {
			t.Errorf("%q is no code", value)
		}
	}
	said := make(map[Code]bool)
	for _, s := range sayings {
		said[s.reason.Code] = true
		if got := s.reason.Words(); got != s.words {
			t.Errorf("%s:\n%s\nwant\n%s", s.reason.Code, got, s.words)
		}
		if s.reason.None() != (s.words == "") {
			t.Errorf("%s says nothing: %v", s.reason.Code, s.reason.None())
		}
	}
	for value, name := range codes {
		if !said[Code(value)] {
			t.Errorf("there are no words of %s", name)
		}
	}
	if words := (Reason{Code: "unknown"}).Words(); words != "" {
		t.Errorf("of a code that is none: %q", words)
	}
}

// The package holds values only.
func TestImports(t *testing.T) {
	for _, name := range []string{"status.go", "gap.go", "words.go"} {
		parsed, err := parser.ParseFile(token.NewFileSet(), name, nil, parser.ImportsOnly)
		if err != nil {
			t.Fatal(err)
		}
		for _, i := range parsed.Imports {
			if !slices.Contains([]string{"fmt", "net/netip", "path", "reflect", "slices", "strings"}, strings.Trim(i.Path.Value, `"`)) {
				t.Errorf("%s imports %s", name, i.Path.Value)
			}
		}
	}
}

// Each code is one that the daemon or ec2netctl can come to.
func TestProduced(t *testing.T) {
	used := make(map[string]bool)
	err := filepath.WalkDir("../..", func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && (name == "build" || name == "testdata" || name == ".git" || name == "status") {
			return fs.SkipDir
		}
		if !strings.HasSuffix(path, ".go") || strings.HasSuffix(path, "_test.go") {
			return nil
		}
		parsed, err := parser.ParseFile(token.NewFileSet(), path, nil, 0)
		if err != nil {
			return err
		}
		ast.Inspect(parsed, func(n ast.Node) bool {
			if s, ok := n.(*ast.SelectorExpr); ok {
				if of, ok := s.X.(*ast.Ident); ok && of.Name == "status" {
					used[s.Sel.Name] = true
				}
			}
			return true
		})
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	for _, of := range []string{"Code", "Kind"} {
		for _, name := range constants(t, of) {
			// Of this one there is a function.
			if !used[name] && (name != "DefaultRoute" || !used["DefaultRouteGap"]) {
				t.Errorf("nobody uses %s", name)
			}
		}
	}
}

// Each kind of gap has words.
func TestGaps(t *testing.T) {
	gaps := []struct {
		gap   Gap
		words string
	}{
		{secondary, "address 10.0.1.21"},
		{AddressGap(netip.MustParseAddr("2001:db8::1")), "address 2001:db8::1"},
		{old, "still there: address 10.0.1.22"},
		{DefaultRouteGap(IPv6, 513), "default route (IPv6) with metric 513"},
		{Gap{Kind: TableDefaultRoute, Family: IPv4, Table: 10001}, "default route (IPv4) in table 10001"},
		{Gap{Kind: OtherMetric, Metric: 513, StillThere: true}, "still there: default route by DHCP with another metric than 513"},
		{Gap{Kind: MainDefaultRoute, StillThere: true}, "still there: default route by DHCP in the main table"},
		{Gap{Kind: SubnetRoute, Value: "10.0.1.0/24", Table: 10001}, "route to 10.0.1.0/24 in table 10001"},
		{Gap{Kind: ServicesRoute, Family: IPv4}, "route to EC2's services (IPv4)"},
		{Gap{Kind: LocalRoute, Value: "10.0.24.0/28"}, "local route 10.0.24.0/28"},
		{Gap{Kind: Rule, Value: "from 10.0.1.21/32 lookup 10001"}, "rule from 10.0.1.21/32 lookup 10001"},
		{altname, "altname eni-0123"},
		{Gap{Kind: MTU, Value: "9001"}, "mtu 9001"},
	}
	for value, name := range constants(t, "Kind") {
		if !slices.ContainsFunc(gaps, func(g struct {
			gap   Gap
			words string
		}) bool {
			return g.gap.Kind == Kind(value)
		}) {
			t.Errorf("there are no words of %s", name)
		}
	}
	for _, g := range gaps {
		if got := g.gap.String(); got != g.words {
			t.Errorf("%+v: %q, want %q", g.gap, got, g.words)
		}
	}
	for _, c := range []struct {
		gaps []Gap
		only bool
	}{
		{nil, false}, {[]Gap{altname}, true}, {[]Gap{altname, secondary}, false}, {[]Gap{altname, old}, false},
	} {
		if got := OnlyAltnames(c.gaps); got != c.only {
			t.Errorf("%v are alternative names only: %v", c.gaps, got)
		}
	}
	if names := Names([]Gap{old, altname}); !slices.Equal(names, []string{"address 10.0.1.22", "altname eni-0123"}) || Names(nil) == nil {
		t.Errorf("%q", names)
	}
}

func TestReasons(t *testing.T) {
	down := Reason{Code: LinkDown, Subject: "ens6"}
	carrier := Reason{Code: NoCarrier, Subject: "ens6"}
	want := Reason{Code: LinkDown, Subject: "ens6", More: []Reason{carrier}}
	if got := Together(Reason{}, down, Reason{}, carrier); !reflect.DeepEqual(got, want) {
		t.Errorf("%+v, want %+v", got, want)
	}
	if got := Together(Reason{}); got.Code != None {
		t.Errorf("there is none, and together they are %+v", got)
	}
	one, other := Reason{Code: NotBrought, Gaps: []Gap{secondary}}, Reason{Code: NotBrought, Gaps: []Gap{old}}
	if one.Equal(other) || one.Equal(down) || !one.Equal(Reason{Code: NotBrought, Gaps: []Gap{secondary}}) {
		t.Error("reasons are equal that are not, or the other way round")
	}
	for _, c := range []struct {
		reason Reason
		kept   bool
		words  string
	}{
		{Reason{}, false, ""},
		{Reason{Code: ManagedNo}, false, "not managed"},
		{Reason{Code: ManagedNo, File: "/etc/ec2netd.conf:3"}, false, "not managed, as /etc/ec2netd.conf:3 says"},
		{Reason{Code: MetadataUnread}, true, "the metadata has not been read yet; what is configured stays"},
	} {
		if got := c.reason.Planned(c.kept); got != c.words {
			t.Errorf("%q, want %q", got, c.words)
		}
	}
}
