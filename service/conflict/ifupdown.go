package conflict

import (
	"os"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"

	"ec2netd/service/file"
)

// interfacesFiles are the files that ifupdown reads on Debian's images. The last one is a directory in
// which a program of Debian writes a file for each new link.
var interfacesFiles = []string{"/etc/network/interfaces", "/etc/network/interfaces.d/*", "/run/network/interfaces.d/*"}

// Ifupdown returns those of the given ENIs that networking.service configures when it starts.
func (l *Looker) Ifupdown(links []Link) []string {
	words := l.interfaces("auto", "allow-auto")
	var found []string
	for _, link := range links {
		if slices.ContainsFunc(words, func(word string) bool { return namesLink(word, link.Name) }) {
			found = append(found, link.Name)
		}
	}
	return found
}

// interfaces returns the words of the lines of interfaces(5) that begin with one of the keywords.
func (l *Looker) interfaces(keywords ...string) (words []string) {
	for _, pattern := range interfacesFiles {
		for _, p := range l.glob(pattern) {
			for line := range strings.Lines(l.read(p)) {
				if f := strings.Fields(line); len(f) > 1 && slices.Contains(keywords, f[0]) {
					words = append(words, f[1:]...)
				}
			}
		}
	}
	return words
}

// LeftByIfupdown returns the links, except the given ENIs, that networking.service has configured in
// this boot and that ifupdown will not configure in the next one, because that unit is not enabled.
// Links with allow-hotplug are not included: udev starts ifup@.service for these.
func (l *Looker) LeftByIfupdown(enis []Link) []string {
	if l.enabled(networking) {
		return nil
	}
	automatic, hotplugged := l.interfaces("auto", "allow-auto"), l.interfaces("allow-hotplug")
	return slices.DeleteFunc(l.RaisedOthers(enis), func(name string) bool {
		names := func(word string) bool { return namesLink(word, name) }
		return !slices.ContainsFunc(automatic, names) || slices.ContainsFunc(hotplugged, names)
	})
}

// namesLink reports whether a word of interfaces(5) is the name of a link, or a pattern for it: a
// slash, and a second one before the name that it gets.
func namesLink(word, name string) bool {
	pattern, isPattern := strings.CutPrefix(word, "/")
	if !isPattern {
		return word == name
	}
	pattern, _, _ = strings.Cut(pattern, "/")
	matches, err := path.Match(pattern, name)
	return err == nil && matches
}

// raised returns those of the given ENIs that ifupdown has configured.
func (l *Looker) raised(links []Link) []string { return l.ifstate(links, true) }

// RaisedOthers returns the links that ifupdown has configured, except the given ENIs and the loopback
// link, which networking.service keeps when it is stopped.
func (l *Looker) RaisedOthers(links []Link) []string {
	return l.ifstate(append(slices.Clone(links), Link{Name: "lo"}), false)
}

// ifstate returns the links that ifupdown has configured, either those among the given links or the
// others.
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

// lowered returns when ifupdown has last released ENIs that it does not configure now. ifupdown has a
// state file for each link, from which ifdown removes the link before it sets it down.
func (l *Looker) lowered(links []Link, raised []string) map[string]time.Time {
	found := make(map[string]time.Time)
	for _, link := range links {
		if slices.Contains(raised, link.Name) {
			continue
		}
		// ifupdown sets the link down once per family, and dhclient sets it up in between.
		if l.process("/run/network/ifdown-"+link.Name+".pid", "ifdown") != 0 {
			found[link.Name] = time.Now()
		} else if info, err := os.Lstat(l.at("/run/network/ifstate." + link.Name)); err == nil {
			found[link.Name] = info.ModTime()
		}
	}
	return found
}

// clients returns the DHCP clients that run for the given ENIs.
func (l *Looker) clients(links []Link) []Client {
	var found []Client
	// PID files of ifupdown, of Fedora's scripts and of Debian's dhcpcd for one link.
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
			if l.process(c.PIDFile, c.Name) != 0 {
				found = append(found, c)
			}
		}
	}
	// The default PID files: one process serves several links.
	for _, c := range []Client{
		{DHClient, "", "/run/dhclient.pid", ""},
		{DHClient, "", "/run/dhclient6.pid", "-6"},
		{DHCPCD, "", dhcpcdAll, ""},
	} {
		pid := l.process(c.PIDFile, c.Name)
		if pid == 0 {
			continue
		}
		takes := l.dhcpcdTakes
		if c.Name == DHClient {
			named := namedLinks(l.procText(pid, "cmdline"))
			takes = func(link string) bool { return len(named) == 0 || slices.Contains(named, link) }
		}
		for _, link := range links {
			if takes(link.Name) {
				c.Link = link.Name
				found = append(found, c)
			}
		}
	}
	return found
}

// process returns the number of a process from its PID file, 0 if it does not run. A killed process
// leaves its file, and a process with another name may have its number now: that one must not be
// signalled.
func (l *Looker) process(pidFile, name string) int {
	if len(l.glob(pidFile)) == 0 {
		return 0
	}
	pid, err := strconv.Atoi(strings.TrimSpace(l.read(pidFile)))
	if err != nil || pid <= 0 || strings.TrimSpace(l.procText(pid, "comm")) != name {
		return 0
	}
	return pid
}

// procText returns the content of a file of proc(5) for a process, empty if there is none. The name
// (comm) and the command line are readable without any capability, but the program (exe) is not.
func (l *Looker) procText(pid int, name string) string {
	const most = 1 << 16
	text, err := file.Read(l.at("/proc/"+strconv.Itoa(pid)+"/"+name), most)
	if err != nil {
		return ""
	}
	return text
}

// withValue are the options of dhclient(8) whose value is the next word.
var withValue = strings.Fields("-4o6 -C -D -F -H -R -V -cf -df -e -g -lf -p -pf -s -sf -timeout " +
	"--address-prefix-len --dad-wait-time --decline-wait-time --prefix-len-hint")

// namedLinks returns the links on the command line of dhclient; none means all.
func namedLinks(cmdline string) []string {
	var named []string
	words := strings.Split(cmdline, "\x00")
	for i := 1; i < len(words); i++ { // the first is the program
		switch word := words[i]; {
		case slices.Contains(withValue, word):
			i++
		case word != "" && !strings.HasPrefix(word, "-"):
			named = append(named, word)
		}
	}
	return named
}

// dhcpcdTakes reports whether a dhcpcd(8) for all links configures the given one, according to
// dhcpcd.conf(5).
func (l *Looker) dhcpcdTakes(name string) bool {
	const conf = "/etc/dhcpcd.conf"
	if len(l.glob(conf)) == 0 {
		return true
	}
	takes := true
	for line := range strings.Lines(l.read(conf)) {
		words := strings.FieldsFunc(line, func(r rune) bool { return strings.ContainsRune(" \t\r\n,", r) })
		if len(words) == 0 {
			continue
		}
		some := slices.ContainsFunc(words[1:], func(pattern string) bool {
			matches, err := path.Match(pattern, name)
			return err == nil && matches
		})
		switch words[0] {
		case "denyinterfaces":
			takes = takes && !some
		case "allowinterfaces":
			takes = takes && some
		}
	}
	return takes
}
