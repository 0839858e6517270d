package plan

import (
	"slices"
	"strings"
	"testing"

	"ec2netd/service/dropin"
)

// E1, E7: what keeps connections over a restart of networkd waits for that, as a reload for its
// sake would configure the link once more; once networkd has found it, it stays.
func TestAtStart(t *testing.T) {
	v := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10"))
	link := dualStack(&v)
	link.Routers = nil
	planned := func(networkd Networkd) (Plan, string) {
		in := input([]Link{link}, v)
		in.Networkd = networkd
		p := Make(in)
		return p, p.ENIs[0].Files[0].Content
	}
	_, before := planned(newNetworkd)
	link.Current = dropin.ParseNetwork(before)
	link.Routers = addrs("fe80::1")

	p, content := planned(newNetworkd)
	files := p.AtStart()
	if content != before || len(files) != 1 || files[0].Path != NetworkDropIn("ens5") {
		t.Fatalf("%+v\n%s", files, content)
	}
	if added, ok := strings.CutPrefix(files[0].Content, before); !ok || !strings.Contains(added, "\nGateway=fe80::1\nGatewayOnLink=yes\nMetric=511\n") {
		t.Errorf("networkd is to find\n%s", files[0].Content)
	}
	if p, _ := planned(Networkd{}); len(p.AtStart()) > 0 {
		t.Errorf("without networkd: %+v", p.AtStart())
	}
	found := files[0].Content
	link.Current = dropin.ParseNetwork(found)
	for _, routers := range [][]string{{"fe80::1"}, nil} {
		link.Routers = addrs(routers...)
		if p, content := planned(newNetworkd); content != found || len(p.AtStart()) > 0 {
			t.Errorf("once found, routers %v: %+v\n%s", routers, p.AtStart(), content)
		}
	}
	// Another router is followed at once, and goes before the one that may be gone.
	link.Routers = addrs("fe80::1", "fe80::2")
	_, two := planned(newNetworkd)
	if link.Current = dropin.ParseNetwork(two); !slices.Equal(link.Current.Routers(), addrs("fe80::2", "fe80::1")) {
		t.Errorf("two routers:\n%s", two)
	} else if !strings.Contains(two, "Gateway=fe80::2\nGatewayOnLink=yes\nMetric=510\n") {
		t.Errorf("metrics:\n%s", two)
	}
	if _, content := planned(newNetworkd); content != two {
		t.Errorf("two routers, again:\n%s", content)
	}
}

// E7: networkd 252 finds at its start that it is to keep all that there is, until it has the
// lease again.
func TestStartDropIn(t *testing.T) {
	v := view(0, addrs("10.0.1.10"), addrs("2001:db8:1::10"))
	link := dualStack(&v)
	link.Current = Make(input([]Link{link}, v)).ENIs[0].DropIn
	stays := func(networkd Networkd, change func(*Link)) bool {
		t.Helper()
		now := link
		change(&now)
		in := input([]Link{now}, v)
		in.Networkd = networkd
		p := Make(in)
		if files := p.AtStart(); networkd == oldNetworkd && (len(files) != 1 || files[0].Path != StartDropIn("ens5")) {
			t.Errorf("networkd is to find %+v", files)
		}
		if slices.ContainsFunc(p.Files, func(f File) bool { return f.Path == StartDropIn("ens5") }) {
			t.Errorf("the daemon itself puts it there: %+v", p.Files)
		}
		return p.ENIs[0].Keep
	}
	link.Done, link.Settled, link.StartFile = true, true, true
	for name, change := range map[string]func(*Link){
		"it is there":         func(l *Link) { l.Settled = false },
		"it is not done":      func(l *Link) { l.Done = false },
		"it is at work again": func(l *Link) { l.Busy = true },
	} {
		if !stays(oldNetworkd, change) {
			t.Errorf("%s: the drop-in goes", name)
		}
	}
	for name, change := range map[string]func(*Link){
		"done":                func(*Link) {},
		"it has had its time": func(l *Link) { l.Done, l.Settled, l.LeaseOverdue = false, false, true },
		"nothing there":       func(l *Link) { l.StartFile = false },
		"another ENI's":       func(l *Link) { l.Current = nil },
	} {
		if stays(oldNetworkd, change) {
			t.Errorf("%s: the drop-in stays", name)
		}
	}
	if !stays(Networkd{}, func(*Link) {}) {
		t.Error("networkd is away: the drop-in goes")
	}
	if stays(newNetworkd, func(*Link) {}) {
		t.Error("another networkd has no use for the drop-in")
	}
}
