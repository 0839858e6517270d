package doctor

import (
	"strings"

	"ec2netd/service/conflict"
	"ec2netd/service/kernel"
	"ec2netd/service/networkd"
)

// UntilBoot is what the next boot changes, where ec2netd has been installed and waits for it.
type UntilBoot struct {
	// Owner says who configures the ENIs until then; it is empty if ec2netd does not wait.
	Owner string
	// Left are links, other than those of ENIs, that ifupdown does not configure any more from then on.
	Left []string
}

const (
	// takeOverNow is what to do where ec2netd waits for the next boot, for a user who does not want to
	// wait.
	takeOverNow = "To have it take over now: sudo ec2netctl takeover"
	// leftAdvice is what to do about links that ifupdown does not configure any more.
	leftAdvice = "have networkd configure them; or, to keep ifupdown for them, take the ENIs out of /etc/network/interfaces, " +
		"then: systemctl enable networking.service"
)

// LookUntilBoot returns what the next boot changes on the system below root, empty for this one. Links
// are those of ENIs, and said returns what networkd says of the link with an index. The files alone
// tell it, so that no service needs to run.
func LookUntilBoot(root string, links []kernel.Link, said func(index int) networkd.LinkState) UntilBoot {
	looker := &conflict.Looker{Root: root}
	enis := linksOf(links)
	owner := looker.Waiting(enis, func(index int) string { return said(index).File })
	if owner == "" {
		return UntilBoot{}
	}
	return UntilBoot{
		Owner: "ec2netd is installed and configures the ENIs from the next boot on; until then " + owner + " does",
		Left:  looker.LeftByIfupdown(enis),
	}
}

// others says what the next boot changes for links that are no ENIs, or is empty.
func (u *UntilBoot) others() string {
	if len(u.Left) == 0 {
		return ""
	}
	return "ifupdown does not configure " + strings.Join(u.Left, ", ") + " from the next boot on, as networking.service is not enabled"
}

// Advice is what to do, in one line or two.
func (u *UntilBoot) Advice() string {
	if others := u.others(); others != "" {
		return "But " + others + ": " + leftAdvice + "\n" + takeOverNow
	}
	return takeOverNow
}

// untilBoot tells who configures the ENIs until the next boot, and what that changes for other links.
func untilBoot(f *Facts) []Finding {
	all := []Finding{warning(DaemonAnswers, takeOverNow, "%s", f.UntilBoot.Owner)}
	if others := f.UntilBoot.others(); others != "" {
		all = append(all, warning(UnitStates, leftAdvice, "%s", others))
	}
	return all
}
