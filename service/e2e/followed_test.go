package e2e

import (
	"encoding/json"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/api"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/conflict"
	"ec2netd/service/state"
	"ec2netd/service/takeover"
)

// adviceOf is what doctor advises where it says text and has advice.
func (l *lab) adviceOf(text string) string {
	l.t.Helper()
	// Problems make it fail with 1, as does not being there at all, which leaves nothing to parse.
	said := l.run("sh", "-c", "ec2netctl doctor --json=short || [ $? = 1 ]")
	var printed struct {
		Findings []struct{ Text, Advice string }
	}
	if err := json.Unmarshal([]byte(said), &printed); err != nil {
		l.t.Fatalf("doctor printed %q: %v", said, err)
	}
	for _, finding := range printed.Findings {
		if finding.Advice != "" && strings.Contains(finding.Text, text) {
			return finding.Advice
		}
	}
	l.t.Fatalf("doctor has no advice where it says %q: %s", text, said)
	return ""
}

// between returns what makes of advice the command between two of its phrases; an empty one stands
// for the beginning or the end.
func (l *lab) between(after, before string) func(advice string) string {
	return func(advice string) string {
		l.t.Helper()
		_, command, found := strings.Cut(advice, after)
		if before != "" && found {
			command, _, found = strings.Cut(command, before)
		}
		if !found {
			l.t.Fatalf("no command between %q and %q: %s", after, before, advice)
		}
		return command
	}
}

// follow runs the command that stands in an advice after some of its words, as a user would who
// copies it, and returns it. What ends the sentence is no part of it.
func (l *lab) follow(advice, after string) string {
	l.t.Helper()
	command := l.between(after, "")(advice)
	if command == "" {
		l.t.Fatalf("%q has no command after %q", advice, after)
	}
	l.run("sh", "-ec", command)
	return command
}

// command finds the commands in an advice: each goes on to the next punctuation mark.
var command = regexp.MustCompile(`(?:^|[ (])((?:sudo|systemctl|networkctl|ec2netctl|ifdown|dhclient|dhcpcd|dpkg|rpm|apt-get|rm) [^,;:()\n]*)`)

// commandsIn returns the commands that an advice names.
func (l *lab) commandsIn(advice string) (commands []string) {
	l.t.Helper()
	for _, found := range command.FindAllStringSubmatch(advice, -1) {
		commands = append(commands, strings.TrimSpace(strings.TrimSuffix(found[1], ".")))
	}
	if len(commands) == 0 {
		l.t.Fatalf("there is no command in %q", advice)
	}
	return commands
}

// obeys runs the commands that an advice names; a takeover on a terminal, where it is agreed to.
func (l *lab) obeys(advice string) {
	l.t.Helper()
	for _, command := range l.commandsIn(advice) {
		l.t.Logf("advised: %s", command)
		if strings.HasSuffix(command, "ec2netctl takeover") {
			l.takesOver(vpc.Command{Argv: strings.Fields(command)})
		} else {
			l.run("sh", "-ec", command)
		}
	}
}

// toHaveIt is the line of an error that says what to do, as in "To have it ...".
func (l *lab) toHaveIt(said string) string {
	l.t.Helper()
	for line := range strings.Lines(said) {
		if strings.HasPrefix(line, "To ") {
			return strings.TrimSpace(line)
		}
	}
	l.t.Fatalf("nothing says what to do: %s", said)
	return ""
}

// connected does something that a TCP connection from before outlasts.
func (l *lab) connected(what string, do func()) {
	l.t.Helper()
	stream, err := l.inst.StartStream(l.t.Context(), l.inst.Primary().IPv4()[0], vpc.FarIPv4, 100*time.Millisecond)
	if err != nil {
		l.t.Fatal(err)
	}
	do()
	if r := stream.Stop(); r.Echoed < r.Sent || r.Sent == 0 {
		l.t.Errorf("%s: a TCP connection from before: %s", what, r)
	} else {
		l.t.Logf("%s: a TCP connection from before: %s", what, r)
	}
}

// takesOver runs a takeover on a terminal, and agrees to it.
func (l *lab) takesOver(c vpc.Command) {
	l.t.Helper()
	term := l.onTerminal(c)
	term.says("[y/N]")
	term.types("y\n")
	if code := term.wait(); code != 0 || !strings.Contains(term.text(), "The ENIs are configured, as after a boot.") {
		l.t.Errorf("%q: exit code %d:\n%s", c.Argv, code, term.text())
	}
}

// managerComesBack has somebody start NetworkManager again and give it the primary ENI, and follows
// each way that the advice names: nothing is left of it, and a connection from before goes on.
func (l *lab) managerComesBack() {
	l.t.Helper()
	primary := l.inst.Primary()
	const file = "/etc/NetworkManager/conf.d/90-enis.conf"
	rules := func() bool { return strings.Contains(l.run("ip", "rule"), "lookup 30400") }
	for _, way := range []func(advice string){
		func(advice string) {
			first, _, _ := strings.Cut(advice, "; or, ")
			l.obeys(first)
			l.networkManagerIsOff()
		},
		func(advice string) {
			_, second, _ := strings.Cut(advice, "; or, ")
			setting := regexp.MustCompile(`unmanaged-devices\S*=[^ ,]*`).FindString(second)
			l.put(file, "[keyfile]\n"+setting+"\n")
			l.obeys(second)
			l.run("systemctl", "is-active", "NetworkManager.service")
		},
	} {
		l.run("systemctl", "start", "NetworkManager.service")
		var last string
		l.untilOr("NetworkManager has the primary ENI", func() (bool, error) {
			last = l.run("sh", "-c", "nmcli connection up ens5 2>&1 || :; ip route")
			return rules() && strings.Contains(last, "metric 100"), nil
		}, &last)
		l.connected("what is advised against NetworkManager", func() {
			l.followed(conflict.NetworkManager, way)
			l.primaryWhole()
		})
		const when = "after what is advised against NetworkManager"
		l.oneDefaultRoute(when, primary)
		if rules() || len(l.routes("-4", "30400")) > 0 {
			l.t.Errorf("%s there are its rules and routes: %s", when, l.run("ip", "rule"))
		}
	}
	l.run("rm", file)
	l.run("systemctl", "stop", "NetworkManager.service")
	if slices.ContainsFunc(l.describe().Conflicts, func(c state.Conflict) bool { return c.Name == conflict.NetworkManager }) {
		l.t.Error("the conflict is not over")
	}
}

// mended has what doctor advises done for files of the package that are missing.
func (l *lab) mended(deb string) {
	l.t.Helper()
	for _, file := range []string{"/usr/lib/systemd/network/80-ec2.network", "/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"} {
		l.run("rm", file)
		l.obeys(strings.ReplaceAll(l.adviceOf(file+" is missing"), "PACKAGE", deb))
		l.run("test", "-s", file)
		l.configured("ens5")
		if said := l.run("sh", "-c", "ec2netctl doctor || [ $? = 1 ]"); strings.Contains(said, "is missing") {
			l.t.Errorf("after the advice doctor says\n%s", said)
		}
	}
	// A link to /dev/null is for the administrator to remove.
	const mask = "/etc/systemd/network/80-ec2.network"
	l.put(mask, masked)
	l.obeys(l.adviceOf(mask + " masks the base unit"))
	l.until("doctor does not know of it any more", func() (bool, error) {
		return !strings.Contains(l.run("sh", "-c", "ec2netctl doctor || [ $? = 1 ]"), mask), nil
	})
}

// wanted has somebody want ec2netd who has kept it out: what takeover says, and does not do yet, is
// done until it goes through.
func (l *lab) wanted() {
	l.t.Helper()
	for range 9 {
		out, err := l.inst.Exec(l.t.Context(), "ec2netctl", "takeover", "--yes")
		if err == nil {
			l.t.Log(out)
			break
		}
		l.obeys(l.toHaveIt(err.Error()))
	}
	l.configured("ens5")
	l.run("ec2netctl", "doctor")
	l.onNetworkd("70-ens5.network")
	l.networkManagerIsOff()
	l.reboot()
	l.configured("ens5")
	l.run("ec2netctl", "doctor")
}

// TestLabOldBeside: ec2netd is installed without a package beside amazon-ec2-net-utils, whose removal
// takes a file of its away.
func TestLabOldBeside(t *testing.T) { // F5, I4
	oneSuite(t, func(t *testing.T, suite string) {
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
			install := o.Install
			o.Install = func(root string) error {
				if err := unpackOld(root, "70"); err != nil {
					return err
				}
				for _, argv := range [][]string{{"dpkg-deb", "--build", "--root-owner-group", oldTree, "/root/old.deb"}, {"dpkg", "--install", "/root/old.deb"}} {
					if _, err := inRoot(t, root, argv...); err != nil {
						return err
					}
				}
				return install(root)
			}
		})
		l.configured("ens5")
		const base = "/usr/lib/systemd/network/80-ec2.network"
		l.followed(conflict.OldPackage, func(advice string) {
			l.run("sh", "-ec", l.commandsIn(advice)[0])
			if out, err := l.inst.Exec(t.Context(), "test", "-e", base); err == nil {
				t.Errorf("%s is there without another installation: %s", base, out)
			}
			if !strings.Contains(advice, "then install ec2netd again") || !strings.HasSuffix(advice, "then reboot") {
				t.Errorf("the advice is %s", advice)
			}
			l.run("rm", "/usr/lib/ec2netd/ec2netd", "/usr/bin/ec2netctl")                            // as install(1) does with what runs
			if err := vpc.CopyTree(t.Context(), l.inst.Path("/"), vpc.StageForTest(t)); err != nil { // make install
				t.Fatal(err)
			}
			l.reboot()
			l.configured("ens5")
		})
		l.primaryWhole()
		eni := l.attach(hotplugSpec())
		l.settled(eni)
		l.run("ec2netctl", "doctor")
	})
}

// TestLabCloudInitRules: somebody has had cloud-init write policy rules. The advice ends that, for
// netplan and for networkd.
func TestLabCloudInitRules(t *testing.T) { // F5, F8
	t.Parallel()
	for stock, file := range map[string]string{
		"cloud-init-netplan": "/etc/netplan/50-cloud-init.yaml", "cloud-init-networkd": stockFile["cloud-init-networkd"],
	} {
		t.Run(stock, func(t *testing.T) {
			oneSuite(t, func(t *testing.T, suite string) {
				l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
					o.Packages = nil
					o.Stock = stock
				})
				l.onNetworkd(stockFile[stock])
				l.run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
				l.reboot()
				l.primaryWhole()
				l.run("sh", "-ec", map[string]string{
					"cloud-init-netplan": `sed -i 's#^\( *\)dhcp4: .*#&\n\1routing-policy:\n\1- {from: 10.0.16.10, table: 101, priority: 101}#' ` + file +
						"; netplan generate; networkctl reload",
					"cloud-init-networkd": `printf '\n[RoutingPolicyRule]\nFrom=10.0.16.10\nTable=101\nPriority=101\n' >>` + file + "; networkctl reload",
				}[stock])
				l.until("its rule is there", func() (bool, error) { return len(l.rules(101)) == 1, nil })
				l.followed(conflict.CloudInit, func(advice string) {
					if !strings.HasPrefix(advice, "remove the files that the evidence names, and reboot") {
						t.Errorf("the advice is %s", advice)
					}
					for _, found := range l.describe().Conflicts {
						l.run(append([]string{"rm"}, found.Evidence...)...)
					}
					l.reboot()
					l.configured("ens5")
				})
				l.primaryWhole()
				if rules := l.rules(101); len(rules) > 0 {
					t.Errorf("there are %v", rules)
				}
				l.settled(l.attach(hotplugSpec()))
			})
		})
	}
}

// takenOverByTwo has a user take over as status says, while somebody else begins to: who is told to
// run it again sees what becomes of it.
func (l *lab) takenOverByTwo(advised string) {
	l.t.Helper()
	l.run("sh", "-c", "printf 'ec2-user ALL=(ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/user && chmod 440 /etc/sudoers.d/user")
	if !strings.HasPrefix(advised, "sudo ") {
		l.t.Errorf("a user is told to run %s", advised)
	}
	users := l.onTerminal(vpc.Command{User: vpc.OrdinaryUser, Argv: strings.Fields(advised)})
	other := l.onTerminal(vpc.Command{Argv: []string{"ec2netctl", "takeover"}})
	for _, term := range []*terminal{users, other} {
		term.says("[y/N]")
	}
	users.types("y\n")
	l.until("the takeover is at its first step", func() (bool, error) { return l.takeoverRecord().Began(takeover.Stop), nil })
	other.types("y\n")
	if code := other.wait(); code != 1 || !strings.Contains(other.text(), "somebody else has just begun a takeover") {
		l.t.Errorf("the other takeover: exit code %d:\n%s", code, other.text())
	}
	again := regexp.MustCompile(`Run (ec2netctl takeover) again`).FindStringSubmatch(other.text())
	if again == nil {
		l.t.Fatalf("the other is not told what to do:\n%s", other.text())
	}
	second := l.onTerminal(vpc.Command{Argv: strings.Fields(again[1])})
	second.says("A takeover is under way; this is what it does.")
	code, code2 := users.wait(), second.wait()
	l.t.Logf("the user's:\n%s\nthe other, again:\n%s", users.text(), second.text())
	// Whoever is first has told how it ended.
	const configured = "The ENIs are configured, as after a boot."
	if (code == 0) != strings.Contains(users.text(), configured) || (code2 == 0) != strings.Contains(second.text(), configured) || code+code2 > 1 {
		l.t.Errorf("exit codes %d and %d", code, code2)
	}
	l.run("rm", "/etc/sudoers.d/user")
}

// cloudSetupGoes has nm-cloud-setup enabled, and follows the advice. Its units have the names of the
// true ones, which Debian does not have.
func (l *lab) cloudSetupGoes() {
	l.t.Helper()
	const timer, service = "/etc/systemd/system/nm-cloud-setup.timer", "/etc/systemd/system/nm-cloud-setup.service"
	l.put(timer, "[Timer]\nOnActiveSec=1h\n[Install]\nWantedBy=timers.target\n")
	l.put(service, "[Service]\nType=oneshot\nExecStart=true\n[Install]\nWantedBy=network.target\n")
	l.run("systemctl", "daemon-reload")
	l.run("systemctl", "enable", "--now", "nm-cloud-setup.timer", "nm-cloud-setup.service")
	l.followed(conflict.NMCloudSetup, l.obeys)
	l.run("rm", timer, service)
	l.run("systemctl", "daemon-reload")
}

// leftOfOldGoes has a file in /run that the old package has left, and follows the advice.
func (l *lab) leftOfOldGoes() {
	l.t.Helper()
	const file = "/run/systemd/network/70-ens5.network.d/eni.conf"
	l.put(file, "# Configuration for ens5 generated by policy-routes@ens5.service\n[Match]\nMACAddress="+l.inst.Primary().MAC().String()+"\n")
	l.followed(conflict.OldPackage, func(advice string) {
		first, _, _ := strings.Cut(advice, "; or")
		l.obeys(first)
	})
	if out, err := l.inst.Exec(l.t.Context(), "test", "-e", file); err == nil {
		l.t.Errorf("%s is there yet: %s", file, out)
	}
}

// killedForGood kills what carries out a takeover, and each process that is to undo it: what ran
// before comes back as is advised then.
func (l *lab) killedForGood(back func()) {
	l.t.Helper()
	term := l.beginTakeover(takeover.Flush)
	l.killTakeover("MainPID")
	for range 2 {
		l.killTakeover("ControlPID")
	}
	if code := term.wait(); code != 1 || !strings.Contains(term.text(), "the takeover was killed before it ended, twice") {
		l.t.Errorf("a takeover that is killed for good: exit code %d:\n%s", code, term.text())
	}
	again := regexp.MustCompile(`run (ec2netctl takeover) again`).FindStringSubmatch(term.text())
	if again == nil {
		l.t.Fatalf("nothing says what to do:\n%s", term.text())
	}
	second := l.onTerminal(vpc.Command{Argv: strings.Fields(again[1])})
	second.says("Put back what ran before? [y/N]")
	second.types("y\n")
	if second.wait(); !strings.Contains(second.text(), "what ran before runs again") {
		l.t.Errorf("the next takeover:\n%s", second.text())
	}
	back()
}

// permitted has somebody take the permission away from everybody to connect to the daemon, and tries
// what a user is told then.
func (l *lab) permitted() {
	l.t.Helper()
	status := func() error {
		_, err := l.inst.Run(l.t.Context(), vpc.Command{Argv: []string{"ec2netctl", "status"}, User: vpc.OrdinaryUser})
		return err
	}
	l.run("chmod", "600", api.VarlinkSocket)
	const advice = "see what changed the permissions of the socket or its directory, or try sudo"
	if err := status(); err == nil || !strings.Contains(err.Error(), advice) {
		l.t.Errorf("a user whom the socket refuses is told %v", err)
	}
	l.run("ec2netctl", "status") // as sudo would
	l.run("chmod", "666", api.VarlinkSocket)
	if err := status(); err != nil {
		l.t.Errorf("where the socket has its permissions again: %v", err)
	}
}
