package e2e

import (
	"fmt"
	"maps"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

// TestLabPropagation: ENIs over four network cards are attached within some seconds, and
// each key of theirs appears on its own, so that for a while device numbers read 0 and
// network cards are not there. At no instant have two links one metric, table or
// priority in the kernel, or one a better default route than the primary; in the end
// all are as EC2 has them (B4, B5, B6). TestPropagation of package agent has more ENIs
// and more chance, and looks at the files too.
func TestLabPropagation(t *testing.T) {
	t.Parallel()
	// The oldest systemd is the one that keeps routes of an old metric.
	suites := vpc.Suites[:1]
	if whole() {
		suites = vpc.Suites
	}
	for _, suite := range suites {
		t.Run(suite.Name, func(t *testing.T) { propagation(t, suite.Name) })
	}
}

func propagation(t *testing.T, suite string) {
	random := luck(t)
	within := func(limit time.Duration) time.Duration { return time.Duration(random.Int64N(int64(limit))) }
	late := func(spec imds.Interface) *imds.Propagation {
		p := &imds.Propagation{Keys: map[string]time.Duration{}}
		for _, key := range slices.Sorted(maps.Keys(spec.Keys())) {
			p.Keys[key] = within(10 * time.Second)
		}
		return p
	}
	l := boot(t, suite, func(o *vpc.InstanceOptions) {
		o.NetworkCards = 4
		o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=2\n"
	})
	l.configured("ens5")
	events := l.watchKernel()
	// Any ENI has these keys.
	all := imds.Interface{NetworkCard: new(int), IPv4: l.inst.Primary().IPv4(),
		SubnetIPv4: l.inst.Primary().Subnet().IPv4()}
	all.SubnetIPv6 = append(all.SubnetIPv6, l.inst.Primary().Subnet().IPv6())
	for n := range 11 {
		card := (n + 1) % 4
		l.attach(vpc.ENISpec{NetworkCard: &card, IPv4Count: 2, IPv6Count: -1, Propagation: late(all)})
		time.Sleep(within(600 * time.Millisecond)) // the attachments are spread by chance
	}
	// An ENI is configured by what is told of it, with other numbers for a while.
	l.asEC2()
	l.uniqueThroughout(events())
}

// watchKernel notes what happens to routes and rules; the returned function gives the
// lines of ip monitor and ends it.
func (l *lab) watchKernel() func() []string {
	l.t.Helper()
	const log, mark = "/run/watch.log", "192.0.2.10"
	l.run("systemd-run", "--quiet", "--collect", "--unit=watch", "--property=StandardOutput=truncate:"+log, "ip", "monitor", "address", "route", "rule")
	marked := func(table string) {
		l.until("ip monitor watches", func() (bool, error) {
			l.run("sh", "-c", "ip rule add from "+mark+" priority 31998 table "+table+"; ip rule del from "+mark+" priority 31998 table "+table)
			return l.run("sh", "-c", "grep -c 'lookup "+table+"' "+log+" || true") != "0", nil
		})
	}
	marked("31998")
	return func() []string {
		l.t.Helper()
		// Events come in their order: what was before this one is in the log.
		marked("31997")
		out := l.run("cat", log)
		l.run("systemctl", "stop", "watch")
		return slices.DeleteFunc(strings.Split(out, "\n"), func(line string) bool { return strings.Contains(line, mark) })
	}
}

// uniqueThroughout goes through the events of the kernel, and checks the state after
// each.
func (l *lab) uniqueThroughout(events []string) {
	l.t.Helper()
	owner := make(map[string]string)
	for _, eni := range l.inst.ENIs() {
		for _, source := range sources(eni) {
			owner[source] = eni.Name()
		}
	}
	// What there is of a number, and of whom: "metric 513 -4" → "ens6" → its routes.
	held := make(map[string]map[string]map[string]bool)
	metrics := 0
	addresses := make(map[string]bool) // IPv4, by link
	for _, line := range events {
		text, deleted := strings.CutPrefix(strings.TrimSpace(line), "Deleted ")
		words := strings.Fields(text)
		after := func(word string) string {
			if n := slices.Index(words, word); n >= 0 && n+1 < len(words) {
				return words[n+1]
			}
			return ""
		}
		var who, what string
		if after("inet") != "" {
			// "4: ens7    inet 10.0.16.14/32 scope global noprefixroute ens7"
			name := words[1]
			if !deleted {
				addresses[name+" "+after("inet")] = true
				continue
			}
			delete(addresses, name+" "+after("inet"))
			left := false
			for address := range addresses {
				left = left || strings.HasPrefix(address, name+" ")
			}
			// With the last address the kernel drops all IPv4 routes, and says nothing.
			for _, of := range held {
				for item := range of[name] {
					if !left && !strings.Contains(item, ":") {
						delete(of[name], item)
					}
				}
			}
			continue
		}
		switch {
		case after("lookup") != "":
			// "10001:	from 10.0.16.11 lookup 10001 proto static"
			who, what = owner[after("from")], "priority "+strings.TrimSuffix(words[0], ":")
		case after("table") != "" && after("table") != "local" && after("dev") != "":
			who, what = after("dev"), "table "+after("table")
		case len(words) > 0 && words[0] == "default" && after("table") == "" && after("dev") != "" && after("metric") != "":
			family := "-4"
			if strings.Contains(after("via"), ":") {
				family = "-6"
			}
			metric, err := strconv.Atoi(after("metric"))
			if err != nil {
				l.t.Errorf("%q: %v", line, err)
			}
			if metric <= 512 && after("dev") != l.inst.Primary().Name() {
				l.t.Errorf("a default route as good as the primary's: %s", line)
			}
			// The base unit's is that of every link until there is a drop-in for it.
			if metric == 30000 {
				continue
			}
			metrics++
			who, what = after("dev"), fmt.Sprintf("metric %d %s", metric, family)
			// What changes of a route while it is the same.
			words = []string{after("via"), after("proto")}
		default:
			continue
		}
		if who == "" {
			continue
		}
		if held[what] == nil {
			held[what] = make(map[string]map[string]bool)
		}
		if held[what][who] == nil {
			held[what][who] = make(map[string]bool)
		}
		item := strings.Join(words, " ")
		if deleted {
			delete(held[what][who], item)
		} else {
			held[what][who][item] = true
		}
		for other, items := range held[what] {
			if other != who && len(items) > 0 && len(held[what][who]) > 0 {
				l.t.Errorf("%s is %s's and %s's after: %s", what, other, who, line)
			}
		}
	}
	if metrics < len(l.inst.ENIs()) {
		l.t.Errorf("only %d events of metrics were seen:\n%s", metrics, strings.Join(events, "\n"))
	}
}
