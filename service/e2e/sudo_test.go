package e2e

import (
	"strings"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
)

// sudoGainsNothing checks that a user who may run ec2netctl as root, with an environment of their
// own choice, can do nothing else as root by it (J4).
func sudoGainsNothing(l *labtest.Lab) {
	l.T.Helper()
	const evil = "/tmp/evil"
	l.Run("sh", "-c", `
		mkdir -m 1777 `+evil+`
		for name in less more pager journalctl systemctl networkctl sh id open; do
			printf '#!/bin/sh\n/usr/bin/id -u >>`+evil+`/ran-$(/usr/bin/basename "$0")\n' >`+evil+`/$name
			chmod 755 `+evil+`/$name
		done
		printf '#env\nLESSOPEN=|`+evil+`/open %%s\n#command\nx shell `+evil+`/sh\\n\n' >`+evil+`/.lesskey
		printf 'Defaults:ec2-user !env_reset, !secure_path, !requiretty\nec2-user ALL=(root) NOPASSWD: /usr/bin/ec2netctl\n' >/etc/sudoers.d/lab
		chmod 440 /etc/sudoers.d/lab`)
	env := []string{
		"TERM=xterm", "PATH=" + evil + ":/usr/bin:/bin", "HOME=" + evil, "PAGER=" + evil + "/more", "SYSTEMD_PAGER=" + evil + "/pager",
		"SYSTEMD_PAGERSECURE=0", "SYSTEMD_LESS=RSXM", "SYSTEMD_LESSCHARSET=" + evil, "LESSSECURE=0", "LESSSECURE_ALLOW=shell,edit,examine,logfile",
		"LESSOPEN=|" + evil + "/open %s", "LESSKEYIN=" + evil + "/.lesskey", "LESSHISTFILE=" + evil + "/ran-history", "EDITOR=" + evil + "/sh",
		"VISUAL=" + evil + "/sh", "SHELL=" + evil + "/sh", "TERMINFO=" + evil, "DBUS_SYSTEM_BUS_ADDRESS=unix:path=" + evil + "/bus",
	}
	sudo := func(args ...string) *labtest.Terminal {
		l.T.Helper()
		return l.OnTerminal(vpc.Command{User: vpc.OrdinaryUser, Env: env, Argv: append([]string{"/usr/bin/sudo", "-n", "/usr/bin/ec2netctl"}, args...)})
	}
	nothing := func(when string, term *labtest.Terminal) {
		l.T.Helper()
		if gained := l.Run("sh", "-c", "ls -d "+evil+"/ran-* /tmp/gained* 2>/dev/null || :"); gained != "" {
			l.T.Errorf("%s: as root there ran, or was written, %s", when, gained)
		}
		if strings.Contains(term.Text(), "root:") {
			l.T.Errorf("%s: /etc/shadow is shown:\n%s", when, term.Text())
		}
	}
	id := l.Inst.Primary().ID()

	term := sudo("status", "ens5")
	term.Says(id)
	pid := ""
	l.Until("less runs", func() (bool, error) {
		pid = l.Run("sh", "-c", "pidof less || :")
		return pid != "" && !strings.Contains(pid, " "), nil
	})
	of := strings.Split(l.Run("sh", "-c", "tr '\\0' '\\n' </proc/"+pid+"/environ; readlink /proc/"+pid+"/exe"), "\n")
	if exe := of[len(of)-1]; exe != "/usr/bin/less" {
		l.T.Errorf("the pager is %s", exe)
	}
	if have := strings.Join(of, "\n"); !strings.Contains(have, "LESSSECURE=1") || strings.Contains(have, evil) {
		l.T.Errorf("the pager has the environment\n%s", have)
	}
	for _, keys := range []string{"!/usr/bin/touch /tmp/gained\n", "|./usr/bin/tee /tmp/gained\n", "s/tmp/gained-log\n", "v", "x", ":e /etc/shadow\n", "#/etc/shadow\n", "q"} {
		term.Types(keys)
		if keys != "q" {
			term.Types("\n")
		}
	}
	if code := term.Wait(); code != 0 {
		l.T.Errorf("status with a pager: exit code %d:\n%s", code, term.Text())
	}
	nothing("with less", term)

	// Where there is no less there is no pager.
	l.Run("mv", "/usr/bin/less", "/usr/bin/less-away")
	term = sudo("status", "ens5")
	term.Says(id)
	if code := term.Wait(); code != 0 {
		l.T.Errorf("status without less: exit code %d:\n%s", code, term.Text())
	}
	nothing("without less", term)
	l.Run("mv", "/usr/bin/less-away", "/usr/bin/less")

	// The command that an ordinary user is told of does what they wanted.
	refused := l.OnTerminal(vpc.Command{User: vpc.OrdinaryUser, Argv: []string{"/usr/bin/ec2netctl", "refresh"}})
	refused.Says("Run: ")
	if code := refused.Wait(); code != 1 {
		l.T.Errorf("refresh as an ordinary user: exit code %d:\n%s", code, refused.Text())
	}
	_, command, _ := strings.Cut(refused.Text(), "Run: ")
	command, _, _ = strings.Cut(strings.ReplaceAll(command, "\r", ""), "\n")
	if !strings.HasPrefix(command, "sudo ") {
		l.T.Errorf("refresh as an ordinary user says %q", command)
	}
	l.AsUser("sh", "-c", command)

	term = sudo("plan", "--metadata", "/etc/shadow")
	if code := term.Wait(); code == 0 || !strings.Contains(term.Text(), "/etc/shadow is no metadata dump") {
		l.T.Errorf("plan of /etc/shadow: exit code %d:\n%s", code, term.Text())
	}
	nothing("plan of /etc/shadow", term)
}
