package conflict

import (
	"errors"
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/sys/unix"
)

// interfacesFiles are what ifupdown reads on Debian's images, the last by a program of Debian's
// that writes a file for each link that comes.
var interfacesFiles = []string{"/etc/network/interfaces", "/etc/network/interfaces.d/*", "/run/network/interfaces.d/*"}

// Ifupdown returns those of some ENIs that networking.service configures when it starts.
func (l *Looker) Ifupdown(links []Link) []string {
	var words []string
	for _, pattern := range interfacesFiles {
		for _, p := range l.glob(pattern) {
			for line := range strings.Lines(l.read(p)) {
				if f := strings.Fields(line); len(f) > 1 && (f[0] == "auto" || f[0] == "allow-auto") {
					words = append(words, f[1:]...)
				}
			}
		}
	}
	var found []string
	for _, link := range links {
		if slices.ContainsFunc(words, func(word string) bool { return namesLink(word, link.Name) }) {
			found = append(found, link.Name)
		}
	}
	return found
}

// namesLink reports whether a word of interfaces(5) is the name of a link, or a pattern for it: a
// slash, and a second one before what it is given a name by.
func namesLink(word, name string) bool {
	pattern, isPattern := strings.CutPrefix(word, "/")
	if !isPattern {
		return word == name
	}
	pattern, _, _ = strings.Cut(pattern, "/")
	matches, err := path.Match(pattern, name)
	return err == nil && matches
}

// raised returns those of some ENIs that ifupdown has configured.
func (l *Looker) raised(links []Link) []string { return l.ifstate(links, true) }

// RaisedOthers returns the links that ifupdown has configured and that are none of some ENIs', nor the
// loopback link, which networking.service leaves when it is stopped.
func (l *Looker) RaisedOthers(links []Link) []string {
	return l.ifstate(append(slices.Clone(links), Link{Name: "lo"}), false)
}

// ifstate returns the links that ifupdown has configured, those that are among some or the others.
func (l *Looker) ifstate(links []Link, among bool) []string {
	var found []string
	for line := range strings.Lines(l.read("/run/network/ifstate")) {
		name, _, ok := strings.Cut(strings.TrimSpace(line), "=")
		if ok && slices.ContainsFunc(links, func(link Link) bool { return link.Name == name }) == among {
			found = append(found, name)
		}
	}
	return found
}

// lowered returns when ifupdown has last released ENIs that it has not configured now: for each link
// it has a file with its state, of which ifdown takes the link out before it sets it down.
func (l *Looker) lowered(links []Link, raised []string) map[string]time.Time {
	found := make(map[string]time.Time)
	for _, link := range links {
		if slices.Contains(raised, link.Name) {
			continue
		}
		// It sets the link down once for each family, and dhclient sets it up in between.
		if l.runs("/run/network/ifdown-" + link.Name + ".pid") {
			found[link.Name] = time.Now()
		} else if info, err := os.Lstat(l.at("/run/network/ifstate." + link.Name)); err == nil {
			found[link.Name] = info.ModTime()
		}
	}
	return found
}

// clients returns the DHCP clients that run for some ENIs: the files are those of ifupdown, of
// Fedora's scripts and of Debian's dhcpcd.
func (l *Looker) clients(links []Link) []Client {
	var found []Client
	for _, link := range links {
		for _, c := range []Client{
			{DHClient, link.Name, "/run/dhclient." + link.Name + ".pid", ""},
			{DHClient, link.Name, "/run/dhclient6." + link.Name + ".pid", "-6"},
			{DHClient, link.Name, "/run/dhclient-" + link.Name + ".pid", ""},
			{DHClient, link.Name, "/run/dhclient6-" + link.Name + ".pid", "-6"},
			{DHCPCD, link.Name, "/run/dhcpcd/" + link.Name + ".pid", ""},
			{DHCPCD, link.Name, "/run/dhcpcd/" + link.Name + "-4.pid", "-4"},
			{DHCPCD, link.Name, "/run/dhcpcd/" + link.Name + "-6.pid", "-6"},
		} {
			if len(l.glob(c.PIDFile)) > 0 && l.runs(c.PIDFile) {
				found = append(found, c)
			}
		}
	}
	return found
}

// runs reports whether the process runs of which a file has the number. One that was killed leaves
// the file.
func (l *Looker) runs(file string) bool {
	pid, err := strconv.Atoi(strings.TrimSpace(l.read(file)))
	if err != nil || pid <= 0 {
		return false
	}
	if l.Runs != nil {
		return l.Runs(pid)
	}
	return !errors.Is(unix.Kill(pid, 0), unix.ESRCH)
}
