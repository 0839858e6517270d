package e2e

import (
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/api"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/conflict"
	"ec2netd/service/state"
	"ec2netd/service/takeover"
)

// staysConnected does something that a TCP connection from before outlasts.
func staysConnected(l *labtest.Lab, what string, do func()) {
	l.T.Helper()
	stream, err := l.Inst.StartStream(l.T.Context(), l.Inst.Primary().IPv4()[0], vpc.FarIPv4, 100*time.Millisecond)
	if err != nil {
		l.T.Fatal(err)
	}
	do()
	if r := stream.Stop(); r.Echoed < r.Sent || r.Sent == 0 {
		l.T.Errorf("%s: a TCP connection from before: %s", what, r)
	} else {
		l.T.Logf("%s: a TCP connection from before: %s", what, r)
	}
}

// managerComesBack has somebody start NetworkManager again and give it the primary ENI, and follows
// each way that the advice names: nothing is left of it, and a connection from before goes on.
func managerComesBack(l *labtest.Lab) {
	l.T.Helper()
	primary := l.Inst.Primary()
	const file = "/etc/NetworkManager/conf.d/90-enis.conf"
	rules := func() bool { return strings.Contains(l.Run("ip", "rule"), "lookup 30400") }
	for _, way := range []func(advice string){
		func(advice string) {
			first, _, _ := strings.Cut(advice, "; or, ")
			l.Obey(first)
			networkManagerIsOff(l)
		},
		func(advice string) {
			_, second, _ := strings.Cut(advice, "; or, ")
			setting := regexp.MustCompile(`unmanaged-devices\S*=[^ ,]*`).FindString(second)
			l.Put(file, "[keyfile]\n"+setting+"\n")
			l.Obey(second)
			l.Run("systemctl", "is-active", "NetworkManager.service")
		},
	} {
		l.Run("systemctl", "start", "NetworkManager.service")
		var last string
		l.UntilOr("NetworkManager has the primary ENI", func() (bool, error) {
			last = l.Run("sh", "-c", "nmcli connection up ens5 2>&1 || :; ip route")
			return rules() && strings.Contains(last, "metric 100"), nil
		}, &last)
		staysConnected(l, "what is advised against NetworkManager", func() {
			followAdvice(l, conflict.NetworkManager, way)
			primaryWhole(l)
		})
		const when = "after what is advised against NetworkManager"
		oneDefaultRoute(l, when, primary)
		if rules() || len(l.Routes("-4", "30400")) > 0 {
			l.T.Errorf("%s there are its rules and routes: %s", when, l.Run("ip", "rule"))
		}
	}
	l.Run("rm", file)
	l.Run("systemctl", "stop", "NetworkManager.service")
	if slices.ContainsFunc(l.Describe().Conflicts, func(c state.Conflict) bool { return c.Name == conflict.NetworkManager }) {
		l.T.Error("the conflict is not over")
	}
}

// mendFiles has what doctor advises done for files of the package that are missing.
func mendFiles(l *labtest.Lab, deb string) {
	l.T.Helper()
	for _, file := range []string{"/usr/lib/systemd/network/80-ec2.network", "/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"} {
		l.Run("rm", file)
		l.Obey(strings.ReplaceAll(l.AdviceOf(file+" is missing"), "PACKAGE", deb))
		l.Run("test", "-s", file)
		l.AwaitConfigured("ens5")
		if said := l.Run("sh", "-c", "ec2netctl doctor || [ $? = 1 ]"); strings.Contains(said, "is missing") {
			l.T.Errorf("after the advice doctor says\n%s", said)
		}
	}
	// A link to /dev/null is for the administrator to remove.
	const mask = "/etc/systemd/network/80-ec2.network"
	l.Put(mask, labtest.Masked)
	// While the daemon takes that up, networkd refuses to reload for somebody else. A refresh fails
	// where networkd has just taken the addresses away that the metadata is asked from.
	_, _ = l.Inst.Exec(l.T.Context(), "ec2netctl", "refresh", "--wait")
	l.AwaitENI("ens5", func(i *state.Interface) bool {
		return i.State == state.ENIOverridden && strings.Contains(i.Reason, mask+" masks")
	})
	l.Obey(l.AdviceOf(mask + " masks the base unit: "))
	l.Until("doctor does not know of it any more", func() (bool, error) {
		return !strings.Contains(l.Run("sh", "-c", "ec2netctl doctor || [ $? = 1 ]"), mask), nil
	})
}

// takeOverAsAdvised has somebody want ec2netd who has kept it out: what takeover says, and does not do yet, is
// done until it goes through.
func takeOverAsAdvised(l *labtest.Lab) {
	l.T.Helper()
	for range 9 {
		out, err := l.Inst.Exec(l.T.Context(), "ec2netctl", "takeover", "--yes")
		if err == nil {
			l.T.Log(out)
			break
		}
		l.Obey(l.ToHaveIt(err.Error()))
	}
	l.AwaitConfigured("ens5")
	l.Run("ec2netctl", "doctor")
	onNetworkd(l, "70-ens5.network")
	networkManagerIsOff(l)
	l.Reboot()
	l.AwaitConfigured("ens5")
	l.Run("ec2netctl", "doctor")
}

// TestLabOldBeside: ec2netd is installed without a package beside amazon-ec2-net-utils, whose removal
// takes a file of its away.
func TestLabOldBeside(t *testing.T) { // F5, I4
	labtest.OneSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
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
		l.AwaitConfigured("ens5")
		const base = "/usr/lib/systemd/network/80-ec2.network"
		followAdvice(l, conflict.OldPackage, func(advice string) {
			l.Run("sh", "-ec", l.CommandsIn(advice)[0])
			if out, err := l.Inst.Exec(t.Context(), "test", "-e", base); err == nil {
				t.Errorf("%s is there without another installation: %s", base, out)
			}
			if !strings.Contains(advice, "then install ec2netd again") || !strings.HasSuffix(advice, "then reboot") {
				t.Errorf("the advice is %s", advice)
			}
			l.Run("rm", "/usr/lib/ec2netd/ec2netd", "/usr/bin/ec2netctl")                            // as install(1) does with what runs
			if err := vpc.CopyTree(t.Context(), l.Inst.Path("/"), vpc.StageForTest(t)); err != nil { // make install
				t.Fatal(err)
			}
			l.Reboot()
			l.AwaitConfigured("ens5")
		})
		primaryWhole(l)
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitSettled(eni)
		l.Run("ec2netctl", "doctor")
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
			labtest.OneSuite(t, func(t *testing.T, suite string) {
				l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
					o.Packages = nil
					o.Stock = stock
				})
				onNetworkd(l, stockFile[stock])
				l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
				l.Reboot()
				primaryWhole(l)
				l.Run("sh", "-ec", map[string]string{
					"cloud-init-netplan": `sed -i 's#^\( *\)dhcp4: .*#&\n\1routing-policy:\n\1- {from: 10.0.16.10, table: 101, priority: 101}#' ` + file +
						"; netplan generate; networkctl reload",
					"cloud-init-networkd": `printf '\n[RoutingPolicyRule]\nFrom=10.0.16.10\nTable=101\nPriority=101\n' >>` + file + "; networkctl reload",
				}[stock])
				l.Until("its rule is there", func() (bool, error) { return len(l.Rules(101)) == 1, nil })
				followAdvice(l, conflict.CloudInit, func(advice string) {
					if !strings.HasPrefix(advice, "remove the files that the evidence names, and reboot") {
						t.Errorf("the advice is %s", advice)
					}
					for _, found := range l.Describe().Conflicts {
						l.Run(append([]string{"rm"}, found.Evidence...)...)
					}
					l.Reboot()
					l.AwaitConfigured("ens5")
				})
				primaryWhole(l)
				if rules := l.Rules(101); len(rules) > 0 {
					t.Errorf("there are %v", rules)
				}
				l.AwaitSettled(l.Attach(labtest.HotplugSpec()))
			})
		})
	}
}

// takenOverByTwo has a user take over as status says, while somebody else begins to: who is told to
// run it again sees what becomes of it.
func takenOverByTwo(l *labtest.Lab, advised string) {
	l.T.Helper()
	l.Run("sh", "-c", "printf 'ec2-user ALL=(ALL) NOPASSWD: ALL\n' >/etc/sudoers.d/user && chmod 440 /etc/sudoers.d/user")
	if !strings.HasPrefix(advised, "sudo ") {
		l.T.Errorf("a user is told to run %s", advised)
	}
	users := l.OnTerminal(vpc.Command{User: vpc.OrdinaryUser, Argv: strings.Fields(advised)})
	other := l.OnTerminal(vpc.Command{Argv: []string{"ec2netctl", "takeover"}})
	for _, term := range []*labtest.Terminal{users, other} {
		term.Says("[y/N]")
	}
	users.Types("y\n")
	l.Until("the takeover is at its first step", func() (bool, error) { return takeoverRecord(l).Began(takeover.Stop), nil })
	other.Types("y\n")
	if code := other.Wait(); code != 1 || !strings.Contains(other.Text(), "somebody else has just begun a takeover") {
		l.T.Errorf("the other takeover: exit code %d:\n%s", code, other.Text())
	}
	again := regexp.MustCompile(`Run (ec2netctl takeover) again`).FindStringSubmatch(other.Text())
	if again == nil {
		l.T.Fatalf("the other is not told what to do:\n%s", other.Text())
	}
	second := l.OnTerminal(vpc.Command{Argv: strings.Fields(again[1])})
	second.Says("A takeover is under way; this is what it does.")
	code, code2 := users.Wait(), second.Wait()
	l.T.Logf("the user's:\n%s\nthe other, again:\n%s", users.Text(), second.Text())
	// Whoever is first has told how it ended.
	const configured = "The ENIs are configured, as after a boot."
	if (code == 0) != strings.Contains(users.Text(), configured) || (code2 == 0) != strings.Contains(second.Text(), configured) || code+code2 > 1 {
		l.T.Errorf("exit codes %d and %d", code, code2)
	}
	l.Run("rm", "/etc/sudoers.d/user")
}

// cloudSetupGoes has nm-cloud-setup enabled, and follows the advice. Its units have the names of the
// true ones, which Debian does not have.
func cloudSetupGoes(l *labtest.Lab) {
	l.T.Helper()
	const timer, service = "/etc/systemd/system/nm-cloud-setup.timer", "/etc/systemd/system/nm-cloud-setup.service"
	l.Put(timer, "[Timer]\nOnActiveSec=1h\n[Install]\nWantedBy=timers.target\n")
	l.Put(service, "[Service]\nType=oneshot\nExecStart=true\n[Install]\nWantedBy=network.target\n")
	l.Run("systemctl", "daemon-reload")
	l.Run("systemctl", "enable", "--now", "nm-cloud-setup.timer", "nm-cloud-setup.service")
	followAdvice(l, conflict.NMCloudSetup, l.Obey)
	l.Run("rm", timer, service)
	l.Run("systemctl", "daemon-reload")
}

// leftOfOldGoes has a file in /run that the old package has left, and follows the advice.
func leftOfOldGoes(l *labtest.Lab) {
	l.T.Helper()
	const file = "/run/systemd/network/70-ens5.network.d/eni.conf"
	l.Put(file, "# Configuration for ens5 generated by policy-routes@ens5.service\n[Match]\nMACAddress="+l.Inst.Primary().MAC().String()+"\n")
	followAdvice(l, conflict.OldPackage, func(advice string) {
		first, _, _ := strings.Cut(advice, "; or")
		l.Obey(first)
	})
	if out, err := l.Inst.Exec(l.T.Context(), "test", "-e", file); err == nil {
		l.T.Errorf("%s is there yet: %s", file, out)
	}
}

// killedForGood kills what carries out a takeover, and each process that is to undo it: what ran
// before comes back as is advised then.
func killedForGood(l *labtest.Lab, back func()) {
	l.T.Helper()
	term := beginTakeover(l, takeover.Flush)
	killTakeover(l, "MainPID")
	for range 2 {
		killTakeover(l, "ControlPID")
	}
	if code := term.Wait(); code != 1 || !strings.Contains(term.Text(), "the takeover was killed before it ended, twice") {
		l.T.Errorf("a takeover that is killed for good: exit code %d:\n%s", code, term.Text())
	}
	again := regexp.MustCompile(`run (ec2netctl takeover) again`).FindStringSubmatch(term.Text())
	if again == nil {
		l.T.Fatalf("nothing says what to do:\n%s", term.Text())
	}
	second := l.OnTerminal(vpc.Command{Argv: strings.Fields(again[1])})
	second.Says("Put back what ran before? [y/N]")
	second.Types("y\n")
	if second.Wait(); !strings.Contains(second.Text(), "what ran before runs again") {
		l.T.Errorf("the next takeover:\n%s", second.Text())
	}
	back()
}

// checkPermission has somebody take the permission away from everybody to connect to the daemon, and tries
// what a user is told then.
func checkPermission(l *labtest.Lab) {
	l.T.Helper()
	status := func() error {
		_, err := l.Inst.Run(l.T.Context(), vpc.Command{Argv: []string{"ec2netctl", "status"}, User: vpc.OrdinaryUser})
		return err
	}
	l.Run("chmod", "600", api.VarlinkSocket)
	const advice = "see what changed the permissions of the socket or its directory, or try sudo"
	if err := status(); err == nil || !strings.Contains(err.Error(), advice) {
		l.T.Errorf("a user whom the socket refuses is told %v", err)
	}
	l.Run("ec2netctl", "status") // as sudo would
	l.Run("chmod", "666", api.VarlinkSocket)
	if err := status(); err != nil {
		l.T.Errorf("where the socket has its permissions again: %v", err)
	}
}
