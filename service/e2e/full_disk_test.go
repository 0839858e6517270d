package e2e

import (
	"path"
	"slices"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// restartDaemon kills the daemon and waits until systemd has started it again.
func restartDaemon(l *labtest.Lab) {
	l.T.Helper()
	pid := func() string { return l.DaemonPID() }
	before := pid()
	l.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
	l.Until("the daemon is back", func() (bool, error) {
		if now := pid(); now == before || now == "0" {
			return false, nil
		}
		_, err := l.TryDescribe()
		return err == nil, nil
	})
}

// ownFiles are the directories that the daemon writes to in /run.
var ownFiles = []string{"/run/ec2netd", "/run/systemd/network"}

// fillDisk leaves no space in the file systems of ownFiles.
func fillDisk(l *labtest.Lab) {
	l.T.Helper()
	for _, dir := range ownFiles {
		l.Run("sh", "-c", "! head -c 1M /dev/zero >>"+dir+"/full")
	}
}

// TestLabFullDisk: what cannot be written is said, with what to do; a daemon that is killed
// meanwhile does not act on what is older; and all is written by itself, once it can be, and
// configured within seconds (E10). Then the same where a file system becomes read-only.
func TestLabFullDisk(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitComplete(eni, "ens6")
		// Before it starts: the daemon's sandbox has the directories mounted.
		l.Run("systemctl", "stop", "ec2netd.socket", "ec2netd-metrics.socket", "ec2netd.service", "ec2netd-release.service")
		for _, dir := range ownFiles {
			l.Run("sh", "-c", "cp -a "+dir+" /root/copy && mount -t tmpfs -o size=128k,mode=0755 small "+dir+" && cp -a /root/copy/. "+dir+" && rm -r /root/copy")
		}
		l.Run("systemctl", "restart", "systemd-networkd.service")
		l.Run("systemctl", "start", "ec2netd.socket", "ec2netd-metrics.socket", "ec2netd.service")
		l.AwaitComplete(eni, "ens6")
		stored := func(has bool, text string) func() (bool, error) {
			return func() (bool, error) {
				views := l.Run("sh", "-c", "cat /run/ec2netd/views.json 2>/dev/null || :")
				return has == strings.Contains(views, `"`+text+`"`), nil
			}
		}
		unreachable := func() {
			t.Helper()
			if _, err := l.Inst.Metadata().AddFault(imds.Fault{Pattern: "**", Effect: imds.Status, Status: 500}); err != nil {
				t.Fatal(err)
			}
		}

		fillDisk(l)
		// One address comes and one goes.
		withdrawn := eni.IPv4()[2]
		added, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		if err := eni.UnassignIPv4(t.Context(), withdrawn); err != nil {
			t.Fatal(err)
		}
		got := l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && !slices.Contains(i.Addresses, withdrawn.String())
		})
		for _, want := range []string{"writing /run/systemd/network/70-ens6.network.d/50-ec2netd.conf: no space left on device", "free space"} {
			if !strings.Contains(got.Reason, want) {
				t.Errorf("the reason is %q, want %q in it", got.Reason, want)
			}
		}
		l.AwaitManager(state.Degraded)
		l.Until("what is kept of it has gone, or is new", stored(false, withdrawn.String()))
		fillDisk(l)
		// What the daemon knew for the next boot is right, and that is enough to take the
		// withdrawn address away where the end of the daemon has left a little space.
		const dropIn = "/run/systemd/network/70-ens6.network.d/50-ec2netd.conf"
		others := func() string {
			return strings.Join(slices.DeleteFunc(strings.Split(l.Files(), "\n"), func(file string) bool { return strings.HasPrefix(file, dropIn) }), "\n")
		}
		files := others()
		unreachable()
		restartDaemon(l)
		s := l.Describe()
		if i, ok := s.Find(eni.ID()); ok && slices.Contains(i.Addresses, withdrawn.String()) {
			t.Errorf("after a start without metadata it knows %v, which was withdrawn: %+v", withdrawn, i)
		}
		if now := others(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		text := l.Run("cat", dropIn)
		for _, address := range eni.IPv4()[1:] {
			if address != added[0] && !strings.Contains(text, "\nAddress="+address.String()+"/32\n") {
				t.Errorf("%s has gone from the file:\n%s", address, text)
			}
		}
		l.Inst.Metadata().ClearFaults()
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && strings.Contains(i.Reason, "free space")
		})
		l.Run("rm", ownFiles[0]+"/full", ownFiles[1]+"/full")
		began := time.Now()
		l.AwaitComplete(eni, "ens6")
		l.Until("what is known is kept", stored(true, added[0].String()))
		if took := time.Since(began); took > 20*time.Second {
			t.Errorf("%v from the time that there is space until it is configured", took)
		} else {
			t.Logf("configured %v after there was space", took.Round(100*time.Millisecond))
		}
		l.CheckOwn(eni)

		// One that has become read-only: what the reason promises of that.
		const readOnly = "read-only file system: have that file system mounted writable, and ec2netd writes it by itself"
		pid := func() string { return l.DaemonPID() }
		before := pid()
		l.Run("mount", "-o", "remount,ro", ownFiles[1])
		more, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && strings.HasPrefix(i.Reason, "writing "+dropIn+": "+readOnly)
		})
		l.Run("mount", "-o", "remount,rw", ownFiles[1])
		l.AwaitComplete(eni, "ens6")

		// One that the daemon, which has no capability to pass by permissions, may not write to.
		l.Run("chmod", "0555", path.Dir(dropIn))
		last, err := eni.AssignIPv4(t.Context())
		if err != nil {
			t.Fatal(err)
		}
		denied := l.AwaitENI(eni.ID(), func(i *state.Interface) bool {
			return i.State == state.ENIDegraded && strings.HasPrefix(i.Reason, "writing "+dropIn+": permission denied: let root write to that directory: ")
		})
		advice, _, _ := strings.Cut(denied.Reason, ". If that does not help")
		l.Follow(advice, "directory: ")
		l.AwaitComplete(eni, "ens6")
		if now := pid(); now != before {
			t.Errorf("process %s, %s before", now, before)
		}
		for _, address := range append(more, last...) {
			l.PingFrom(address)
		}

		// It cannot be removed from, either.
		l.Run("mount", "-o", "remount,ro", "/run/ec2netd")
		withdrawn = added[0]
		if err := eni.UnassignIPv4(t.Context(), withdrawn); err != nil {
			t.Fatal(err)
		}
		l.Until("what is kept is marked as void", func() (bool, error) {
			return l.Run("sh", "-c", "cat /var/lib/ec2netd/views.void 2>/dev/null || :") != "", nil
		})
		var reason string
		l.UntilOr("the state says so", func() (bool, error) {
			reason = l.AwaitManager(state.Configured).Reason
			return strings.Contains(reason, readOnly), nil
		}, &reason)
		if ok, _ := stored(true, withdrawn.String())(); !ok {
			t.Error("what is kept is not the older one: nothing is tried here")
		}
		files = l.Files()
		unreachable()
		l.Run("systemctl", "kill", "--signal=KILL", "--kill-whom=main", "ec2netd.service")
		l.Run("mount", "-o", "remount,rw", "/run/ec2netd")
		l.Run("systemctl", "restart", "ec2netd.service")
		s = l.Describe()
		if i, ok := s.Find(eni.ID()); ok && slices.Contains(i.Addresses, withdrawn.String()) {
			t.Errorf("after a start without metadata it knows %v, which was withdrawn: %+v", withdrawn, i)
		}
		if text := l.Run("journalctl", "--unit=ec2netd.service", "--output=cat"); !strings.Contains(text, "it is older than what ec2netd knew last") {
			t.Errorf("the log does not say that what is kept is void:\n%s", text)
		}
		if now := l.Files(); now != files {
			t.Errorf("files changed:\n%s\nbefore:\n%s", now, files)
		}
		l.Inst.Metadata().ClearFaults()
		l.AwaitComplete(eni, "ens6")
		if left := l.Run("ls", "/var/lib/ec2netd"); strings.Contains(left, "void") {
			t.Errorf("a mark is left: %s", left)
		}
	})
}
