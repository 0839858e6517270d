package e2e

import (
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/plan"
	"ec2netd/service/state"
)

// TestLabStrangeFiles: FIFOs, devices, sockets, directories, links that lead to themselves and
// huge files in the places of files that the daemon or ec2netctl reads neither hold them up
// nor bloat them, are named once, and cost no ENI anything (J2). networkd runs all the time;
// it has no part of those that it would wait for itself.
func TestLabStrangeFiles(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitComplete(eni, "ens6")
		before := l.Usage()
		// Where networkd and udevd read too, there is what they do not wait for. What networkd
		// would name a mask, a device, has no effect among the drop-ins of a file that is not.
		// The daemon finds all at once, and has one thing to say.
		l.Run("sh", "-ec", `
			systemctl kill --kill-whom=main --signal=STOP ec2netd.service
			mkdir -p /etc/netplan /etc/systemd/network/80-ec2.network.d /etc/systemd/network/10-none.network.d /run/NetworkManager/devices /etc/ec2netd.conf.d
			mkfifo /etc/netplan/50-cloud-init.yaml /run/NetworkManager/devices/2 /etc/ec2netd.conf.d/a.conf
			mkfifo /run/ec2netd/.views.json1 /var/lib/ec2netd/.boot.json1
			truncate -s 8T /etc/ec2netd.conf.d/b.conf /run/NetworkManager/devices/3
			ln -s /dev/zero /etc/ec2netd.conf.d/c.conf
			ln -s d.conf /etc/ec2netd.conf.d/d.conf
			mkdir /etc/ec2netd.conf.d/e.conf /etc/systemd/network/80-ec2.network.d/x.conf
			ln -s loop.conf /etc/systemd/network/80-ec2.network.d/loop.conf
			ln -s loop.network /etc/systemd/network/98-loop.network
			ln -s /dev/zero /etc/systemd/network/10-none.network.d/zero.conf
			mkdir /etc/systemd/network/97-directory.network
			# 20,000 files with any name
			cd /etc/systemd/network && seq -f 'junk%05g' 20000 | xargs touch
			systemctl kill --kill-whom=main --signal=CONT ec2netd.service`)
		alive := func(what string) {
			t.Helper()
			began := time.Now()
			l.Run("ec2netctl", "refresh", "--wait")
			l.AwaitComplete(eni, "ens6")
			if took := time.Since(began); took > 20*time.Second {
				t.Errorf("%s: a refresh took %v", what, took)
			}
		}
		alive("with them there")
		var reason string
		l.UntilOr("the state names one", func() (bool, error) {
			reason = l.Describe().Reason
			return strings.Contains(reason, "a FIFO"), nil
		}, &reason)
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.AwaitComplete(eni, "ens6")

		// The daemon's own files, and its configuration, are read when it starts.
		l.Run("sh", "-ec", `
			systemctl stop ec2netd.socket ec2netd-metrics.socket ec2netd.service
			rm /run/ec2netd/views.json /run/ec2netd/rules.json /var/lib/ec2netd/boot.json
			mkfifo /run/ec2netd/views.json
			ln -s /dev/zero /run/ec2netd/rules.json
			truncate -s 8T /var/lib/ec2netd/boot.json
			mkfifo /var/lib/ec2netd/views.void
			systemctl start ec2netd.socket ec2netd-metrics.socket ec2netd.service`)
		l.AwaitComplete(eni, "ens6")
		alive("after a start")
		text := l.Run("journalctl", "--unit=ec2netd.service", "--output=cat", "--boot")
		for _, want := range []string{
			"/etc/ec2netd.conf.d/a.conf: cannot be read and is ignored: it is not a regular file but a FIFO",
			"/etc/ec2netd.conf.d/b.conf: cannot be read and is ignored: it is too large",
			"/etc/ec2netd.conf.d/c.conf: cannot be read and is ignored: it is not a regular file but a device",
			"/etc/ec2netd.conf.d/d.conf: cannot be read and is ignored: too many levels of symbolic links",
			"/etc/ec2netd.conf.d/e.conf: cannot be read and is ignored: it is not a regular file but a directory",
			"/etc/netplan/50-cloud-init.yaml: it is not a regular file but a FIFO",
			"/run/NetworkManager/devices/3: it is too large",
			"read /run/ec2netd/views.json: it is not a regular file but a FIFO",
			"read /var/lib/ec2netd/boot.json: it is too large",
		} {
			if !strings.Contains(text, want) {
				t.Errorf("the log does not say %q:\n%s", want, text)
			}
		}
		if n := strings.Count(text, "Failed to read files"); n > 4 {
			t.Errorf("what cannot be read is said %d times:\n%s", n, text)
		}
		l.Until("its own files are there again", func() (bool, error) {
			out := l.Run("sh", "-c", "cd / && for f in run/ec2netd/views.json run/ec2netd/rules.json var/lib/ec2netd/boot.json; do test -f $f -a ! -L $f && grep -l "+added[0].String()+" $f; done || :")
			return len(strings.Fields(out)) == 3, nil
		})
		for _, command := range [][]string{{"doctor"}, {"plan"}, {"status"}, {"takeover", "--dry-run"}} {
			began := time.Now()
			_, _ = l.Inst.Exec(t.Context(), append([]string{"timeout", "20", "ec2netctl"}, command...)...)
			if took := time.Since(began); took > 15*time.Second {
				t.Errorf("ec2netctl %v took %v", command, took)
			}
		}
		if now := l.Usage(); now.RSS > 40<<10 || now.RSS > before.RSS+8<<10 || now.Threads > before.Threads+5 {
			t.Errorf("the daemon has %+v, before %+v", now, before)
		} else {
			t.Logf("%+v, before %+v", now, before)
		}
		l.Run("sh", "-ec", "rm -r /etc/ec2netd.conf.d/[a-e].conf /etc/netplan /run/NetworkManager /etc/systemd/network/80-ec2.network.d/x.conf "+
			"/etc/systemd/network/80-ec2.network.d/loop.conf /etc/systemd/network/9[78]-* /etc/systemd/network/10-none.network.d; "+
			"cd /etc/systemd/network && ls | grep junk | xargs rm; systemctl restart ec2netd.service")
		l.AwaitComplete(eni, "ens6")
		l.UntilOr("nothing is unread any more", func() (bool, error) {
			s := l.Describe()
			reason = s.Reason
			return s.State == state.Configured && !strings.Contains(reason, "cannot be read"), nil
		}, &reason)
		if !l.HasAddress("ens6", added[0]) {
			t.Errorf("%v is not there", added[0])
		}
	})
}

// TestLabFIFO: a FIFO among the unit files, for which networkd itself waits (252 and 257 for a
// file, 262 for a drop-in), holds up neither the daemon nor ec2netctl, and once it is gone and
// networkd runs again all is as before (J2).
func TestLabFIFO(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, nil)
		l.AwaitConfigured("ens5")
		const anew = "Asking networkd to configure the ENI anew"
		// For its next start networkd is prepared something (E7).
		l.Until("it is prepared", func() (bool, error) {
			return l.Run("sh", "-c", "find /run/ec2netd/networkd-start -name '*.conf'") != "", nil
		})
		for _, file := range []string{"/etc/systemd/network/10-cloud-init-x.network", "/etc/systemd/network/80-ec2.network.d/x.conf"} {
			l.Run("sh", "-ec", "mkdir -p ${1%/*}; mkfifo $1", "sh", file)
			l.Run("systemd-run", "--no-block", "--collect", "--quiet", "networkctl", "reload")
			for _, command := range []string{"refresh", "status", "show ens5", "doctor"} {
				began := time.Now()
				_, err := l.Inst.Exec(t.Context(), append([]string{"timeout", "40", "ec2netctl"}, strings.Fields(command)...)...)
				if took := time.Since(began); took > 30*time.Second || (err != nil && command == "status") {
					t.Errorf("%s: ec2netctl %s took %v, %v", file, command, took, err)
				}
			}
			text := ""
			l.UntilOr("the log names it", func() (bool, error) {
				text = l.Run("journalctl", "--unit=ec2netd.service", "--output=cat")
				return strings.Contains(text, file+": it is not a regular file but a FIFO"), nil
			}, &text)
			content, want := contentsOf(l, "/run/systemd/network"), atStart(l)
			asked, files := l.Said(anew), l.Files()
			l.Run("rm", file)
			l.Run("systemctl", "kill", "--signal=KILL", "systemd-networkd.service")
			l.Until("networkd answers again", func() (bool, error) {
				_, err := l.Inst.Exec(t.Context(), "timeout", "5", "networkctl", "--no-pager", "status", "ens5")
				return err == nil, nil
			})
			l.AwaitConfigured("ens5")
			onNetworkd(l, "70-ens5.network")
			// At its start it has found what was prepared for that (E7), on 252 for seconds.
			l.Until("nothing is left of its start", func() (bool, error) { return !strings.Contains(l.Files(), "ec2netd-start.conf"), nil })
			if now := contentsOf(l, "/run/systemd/network"); now != want {
				t.Errorf("files changed:\n%s\nwant:\n%s", now, want)
			}
			now := l.Files()
			// Only what waited for its start is written, and what has networkd put back what it has
			// lost (B10): on 252 it has no lease by DHCPv6 after it was killed.
			if own := plan.NetworkDropIn("ens5"); content != want || l.Said(anew) > asked {
				now, files = without(now, own), without(files, own)
			}
			if now != files {
				t.Errorf("files were written:\n%s\nbefore:\n%s", now, files)
			}
		}
	})
}

// without are the lines of a text without those that name a file.
func without(text, file string) string {
	return strings.Join(slices.DeleteFunc(strings.Split(text, "\n"), func(line string) bool { return strings.Contains(line, file+" ") }), "\n")
}

// contentsOf are all lines of the generated files in a directory, with their paths.
func contentsOf(l *labtest.Lab, dir string) string {
	l.T.Helper()
	return l.Run("sh", "-ec", "cd "+dir+" && grep -r '' 70-*.d | sort")
}

// atStart is what the generated files are to be after the next start of networkd: as they are, but
// for what waits for that. What is for the start alone is gone by then.
func atStart(l *labtest.Lab) string {
	l.T.Helper()
	l.Run("sh", "-ec", `rm -rf /run/want && mkdir /run/want && cp -a /run/systemd/network/70-* /run/want
		! test -d /run/ec2netd/networkd-start || cp -a /run/ec2netd/networkd-start/. /run/want
		rm -f /run/want/70-*.d/`+plan.StartDropInName)
	return contentsOf(l, "/run/want")
}
