package e2e

import (
	_ "embed"
	"fmt"
	"net/netip"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// clientPackages have the clients of other people: gdbus and what Python has for D-Bus,
// shells that complete, and what asks for metrics where there is such a thing.
func clientPackages(suite string) []string {
	packages := []string{"libglib2.0-bin", "python3-dbus", "python3-gi", "zsh", "fish"}
	if suite == "sid" {
		packages = append(packages, "systemd-report")
	}
	return packages
}

//go:embed testdata/ipam.py
var ipamAgent string

//go:embed testdata/complete.zsh
var completeInZsh string

// startLogged starts a program as an ordinary user, in a unit of its own; the returned function
// waits until it has printed something, and fails when it ends without.
func startLogged(l *labtest.Lab, unit string, argv ...string) func(text string) {
	l.T.Helper()
	file := "/run/" + unit + ".log"
	l.Run(append([]string{
		"systemd-run", "--quiet", "--unit=" + unit, "--uid=" + vpc.OrdinaryUser,
		"--property=StandardOutput=file:" + file, "--property=StandardError=append:" + file,
	}, argv...)...)
	return func(text string) {
		l.T.Helper()
		l.Until(fmt.Sprintf("%s prints %q", unit, text), func() (bool, error) {
			// In this order: what it printed before it ended is in the file.
			active := l.Run("sh", "-c", "systemctl is-active "+unit+" || true")
			// systemd makes the file when it starts the program; run cuts off the last newline.
			out := l.Run("sh", "-c", "cat "+file+" 2>/dev/null || true") + "\n"
			if !strings.Contains(out, text) && active != "active" {
				return false, fmt.Errorf("%s is %s and has printed:\n%s", unit, active, out)
			}
			return strings.Contains(out, text), nil
		})
	}
}

// checkCompletions has zsh and fish, with the scripts as they are installed, complete the ID of an
// ENI. (For bash see the tests of ec2netctl.)
func checkCompletions(l *labtest.Lab, eni *vpc.ENI) { // H5
	l.T.Helper()
	id := eni.ID()
	line := "ec2netctl status " + id[:len(id)-4]
	if out := l.AsUser("timeout", "60", "zsh", "-f", "/usr/local/lib/complete.zsh", line); !strings.Contains(out, "\ncompleted: ec2netctl status "+id) {
		l.T.Errorf("zsh has made of %s:\n%s", line, out)
	}
	out := l.AsUser("env", "HOME=/tmp", "timeout", "60", "fish", "--command", "complete --do-complete '"+line+"'")
	if !strings.HasPrefix(out, id+"\t"+eni.Name()) || strings.Contains(out, "\n") {
		l.T.Errorf("fish completes %s with:\n%s", line, out)
	}
	if out := l.AsUser("env", "HOME=/tmp", "fish", "--command", "complete --do-complete 'ec2netctl monitor '"); out != "" {
		l.T.Errorf("fish completes a command without arguments with:\n%s", out)
	}
}

// TestLabClients has clients of others follow an ENI that is attached, gets an address
// and is detached: an agent in Python, and gdbus.
func TestLabClients(t *testing.T) { // H1, H6
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Packages = clientPackages(suite)
			o.Files["/usr/local/lib/ipam.py"] = ipamAgent
			o.Files["/usr/local/lib/complete.zsh"] = completeInZsh
		})
		primary := l.AwaitConfigured("ens5")
		const altname, own = "device-number-1", "10.0.31.99"
		monitor := startLogged(l, "gdbus", "gdbus", "monitor", "--system", "--dest", "org.ec2netd1")
		monitor("The name org.ec2netd1 is owned by ")
		agent := startLogged(l, "ipam", "python3", "-u", "/usr/local/lib/ipam.py", own, altname)
		agent("listed " + primary.ENIID + "\n")

		eni := l.Attach(labtest.HotplugSpec())
		agent("attached " + eni.ID() + "\n")
		if _, err := eni.AssignIPv4(t.Context(), netip.MustParseAddr(own)); err != nil {
			t.Fatal(err)
		}
		agent("assigned " + own + " " + eni.Name() + "\n")

		call := func(path, method string, args ...string) []string {
			return append([]string{"gdbus", "call", "--system", "--dest", "org.ec2netd1", "--object-path", path, "--method", method}, args...)
		}
		out := l.AsUser(call("/org/ec2netd1", "org.ec2netd1.Manager.GetInterface", altname)...)
		path := strings.TrimSuffix(strings.TrimPrefix(out, "(objectpath '"), "',)")
		if out = l.AsUser(call(path, "org.freedesktop.DBus.Properties.Get", "org.ec2netd1.Interface", "Addresses")...); !strings.Contains(out, "'"+own+"'") {
			t.Errorf("gdbus has the addresses of %s as %s", path, out)
		}
		out = l.AsUser("gdbus", "introspect", "--system", "--recurse", "--dest", "org.ec2netd1", "--object-path", "/org/ec2netd1")
		for _, want := range []string{"node " + path + " {", "interface org.ec2netd1.Manager {", "interface org.ec2netd1.Interface {", "readonly s EniId = '" + eni.ID() + "';"} {
			if !strings.Contains(out, want) {
				t.Errorf("gdbus introspect has no %q:\n%s", want, out)
			}
		}
		if out = l.Run(call("/org/ec2netd1", "org.ec2netd1.Manager.Refresh", "true")...); !strings.Contains(out, `"settled":true`) {
			t.Errorf("gdbus refresh: %s", out)
		}
		user := vpc.Command{User: vpc.OrdinaryUser, Argv: call("/org/ec2netd1", "org.ec2netd1.Manager.Refresh", "true")}
		if out, err := l.Inst.Run(t.Context(), user); err == nil || !strings.Contains(err.Error(), "org.freedesktop.DBus.Error.AccessDenied") {
			t.Errorf("a user may refresh: %s, %v", out, err)
		}

		checkCompletions(l, eni)
		if suite == "sid" {
			const report = "/usr/lib/systemd/systemd-report"
			if out := l.AsUser(report, "metrics", "org.ec2netd.InterfaceState", "--json=short"); !strings.Contains(out, `"fields":{"eni":"`+eni.ID()+`"}`) {
				t.Errorf("systemd-report metrics: %s", out)
			}
			if out := l.AsUser(report, "describe", "org.ec2netd", "--json=short"); !strings.Contains(out, "org.ec2netd.MetadataRequests") {
				t.Errorf("systemd-report describe: %s", out)
			}
		}

		l.Detach(eni)
		agent("gone org.ec2netd1.Error.NoSuchInterface")
		monitor("ObjectManager.InterfacesAdded (objectpath '" + path + "'")
		monitor(path + ": org.freedesktop.DBus.Properties.PropertiesChanged ('org.ec2netd1.Interface'")
		monitor("ObjectManager.InterfacesRemoved (objectpath '" + path + "'")
		l.Run("systemctl", "stop", "gdbus")
	})
}
