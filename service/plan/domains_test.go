package plan

import (
	"strings"
	"testing"

	"ec2netd/service/dropin"
)

// A10: EC2's several search domains in one DHCP option are several.
func TestSeveralDomains(t *testing.T) {
	v := view(0, addrs("10.0.1.10"), nil)
	link := leased(0, &v)
	render := func(domains, lease string) string {
		link.Domains, link.LeaseDomains, link.Leased = domains, lease, lease != ""
		return Make(input([]Link{link}, v)).ENIs[0].Files[0].Content
	}
	content := render("", "ec2.internal")
	if strings.Contains(content, "Domains=") {
		t.Errorf("one domain:\n%s", content)
	}
	link.Current = dropin.ParseNetwork(content)
	content = render("a.example b.example", "a.example b.example")
	if !strings.Contains(content, "\nDomains=a.example b.example\n") || !strings.Contains(content, "\nUseDomains=no\n") {
		t.Errorf("two domains:\n%s", content)
	}
	link.Current = dropin.ParseNetwork(content)
	for _, lease := range []string{"a.example b.example", ""} {
		if now := render("", lease); now != content {
			t.Errorf("once they are there, with %q of the lease:\n%s", lease, now)
		}
	}
	if now := render("", "b.example c.example"); !strings.Contains(now, "\nDomains=b.example c.example\n") {
		t.Errorf("two others:\n%s", now)
	}
	if now := render("", "ec2.internal"); strings.Contains(now, "Domains=") {
		t.Errorf("one again:\n%s", now)
	}
	link.Domains, link.LeaseDomains, link.Leased = "", "", true
	if now := Make(input([]Link{link}, v)).ENIs[0].Files[0].Content; strings.Contains(now, "Domains=") {
		t.Errorf("none any more:\n%s", now)
	}
}
