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
	"ec2netd/cmd/vpclab/labtest"
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
	if labtest.Long() {
		suites = vpc.Suites
	}
	for _, suite := range suites {
		t.Run(suite.Name, func(t *testing.T) { propagation(t, suite.Name) })
	}
}

func propagation(t *testing.T, suite string) {
	random := labtest.Luck(t)
	within := func(limit time.Duration) time.Duration { return time.Duration(random.Int64N(int64(limit))) }
	late := func(spec imds.Interface) *imds.Propagation {
		p := &imds.Propagation{Keys: map[string]time.Duration{}}
		for _, key := range slices.Sorted(maps.Keys(spec.Keys())) {
			p.Keys[key] = within(10 * time.Second)
		}
		return p
	}
	l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
		o.NetworkCards = 4
		o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=2\n"
	})
	l.AwaitConfigured("ens5")
	events := l.WatchKernel()
	// Any ENI has these keys.
	all := imds.Interface{NetworkCard: new(int), IPv4: l.Inst.Primary().IPv4(),
		SubnetIPv4: l.Inst.Primary().Subnet().IPv4()}
	all.SubnetIPv6 = append(all.SubnetIPv6, l.Inst.Primary().Subnet().IPv6())
	for n := range 11 {
		card := (n + 1) % 4
		l.Attach(vpc.ENISpec{NetworkCard: &card, IPv4Count: 2, IPv6Count: -1, Propagation: late(all)})
		time.Sleep(within(600 * time.Millisecond)) // the attachments are spread by chance
	}
	// An ENI is configured by what is told of it, with other numbers for a while.
	asEC2(l)
	uniqueThroughout(l, events())
}

// uniqueThroughout goes through the events of the kernel, and checks the state after
// each.
func uniqueThroughout(l *labtest.Lab, events []string) {
	l.T.Helper()
	owner := make(map[string]string)
	for _, eni := range l.Inst.ENIs() {
		for _, source := range labtest.Sources(eni) {
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
				l.T.Errorf("%q: %v", line, err)
			}
			if metric <= 512 && after("dev") != l.Inst.Primary().Name() {
				l.T.Errorf("a default route as good as the primary's: %s", line)
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
				l.T.Errorf("%s is %s's and %s's after: %s", what, other, who, line)
			}
		}
	}
	if metrics < len(l.Inst.ENIs()) {
		l.T.Errorf("only %d events of metrics were seen:\n%s", metrics, strings.Join(events, "\n"))
	}
}
