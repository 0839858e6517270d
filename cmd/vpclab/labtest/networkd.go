package labtest

import (
	"fmt"
	"strings"

	"ec2netd/service/plan"
)

// NetworkdLog returns what networkd said since the boot.
func (l *Networkd) NetworkdLog() string {
	return l.Run("journalctl", "--boot", "--unit=systemd-networkd", "--output=cat", "--no-pager")
}

// Reload tells networkd to read its files, as an administrator does.
func (l *Networkd) Reload() {
	l.T.Helper()
	l.Reloads("networkctl reload")
}

// Reloads runs a command that tells networkd to read its files. From 257 on networkd refuses that while
// it does so for somebody else, so this tries until it is accepted.
func (l *Networkd) Reloads(command string) {
	l.T.Helper()
	l.Until(command+" is accepted", func() (bool, error) {
		_, err := l.Inst.Exec(l.T.Context(), "sh", "-ec", command)
		if err != nil && !strings.Contains(err.Error(), "lready") {
			return false, err
		}
		return err == nil, nil
	})
}

// Files lists the generated files, with inode, time and size: what networkd compares.
func (l *Networkd) Files() string {
	return l.Run("sh", "-c", "find /run/systemd/network -path '*70-*' ! -type d -printf '%p %l %i %T@ %s\\n' | sort")
}

// FilesOf returns the generated files of a link: as Files has them, and what is in them.
func (l *Networkd) FilesOf(name string) string {
	return l.Run("sh", "-c", "find /run/systemd/network -path '*70-"+name+".*' ! -type d -printf '%p %l %i %T@ %s\\n' -exec cat {} + | sort")
}

// Units returns the paths of the generated .network drop-ins for a MAC address.
func (l *Networkd) Units(mac fmt.Stringer) []string {
	l.T.Helper()
	return strings.Fields(l.Run("sh", "-c", "grep -lsiE '^(Permanent)?MACAddress="+mac.String()+"$' /run/systemd/network/*.network.d/50-ec2netd.conf || true"))
}

// Residue lists hidden files and empty directories that a killed run may leave.
func (l *Networkd) Residue() string {
	l.T.Helper()
	return l.Run("find", "/run/systemd/network", "/run/ec2netd", "-mindepth", "1", "(", "-name", ".*", "-o", "-type", "d", "-empty", ")")
}

// AwaitHeld waits until networkd leaves new ENIs alone until their own files are there, or does not.
func (l *Networkd) AwaitHeld(want bool) {
	l.T.Helper()
	l.Until("new ENIs are held or not", func() (bool, error) {
		return (l.Run("sh", "-c", "cat "+plan.HoldPath+" 2>/dev/null || true") != "") == want, nil
	})
}
