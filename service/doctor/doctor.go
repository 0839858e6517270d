// Package doctor finds what keeps ec2netd from its work on a machine, and says what to do about it (H5).
//
// [Examiner.Examine] looks at the machine and judges nothing. [Diagnose] judges what was found, and is a
// pure function. The package changes nothing and prints nothing.
package doctor

import (
	"fmt"
	"strings"

	"ec2netd/service/platform"
)

// Level says how bad a [Finding] is.
type Level string

// The levels. A problem keeps ec2netd from some of its work. A warning is worth knowing, or can become
// a problem.
const (
	OK      Level = "ok"
	Warning Level = "warning"
	Problem Level = "problem"
)

// Check names what was examined.
type Check string

// The checks.
const (
	// Platform: whether the machine is an EC2 instance.
	Platform Check = "platform"
	// DaemonAnswers: whether ec2netd answers, and how it is.
	DaemonAnswers Check = "ec2netd"
	// Configuration: mistakes in ec2netd.conf(5), and sections that hold for no ENI.
	Configuration Check = "configuration"
	// ENIs: the state of each.
	ENIs Check = "eni"
	// Conflicts: other software that configures ENIs.
	Conflicts Check = "conflict"
	// MetadataService: each way to it.
	MetadataService Check = "metadata"
	// UnitStates: whether the units that the presets enable are enabled and active.
	UnitStates Check = "unit"
	// Files: files of the installation, and drop-ins that have no effect.
	Files Check = "file"
	// DNS: which name servers /etc/resolv.conf leads to.
	DNS Check = "dns"
	// SystemdVersion: what the version of systemd implies.
	SystemdVersion Check = "systemd"
	// NextHopObjects: those of others, which networkd deletes.
	NextHopObjects Check = "nexthop"
	// ReversePath: reverse path filtering of each ENI.
	ReversePath Check = "rp_filter"
	// LinkGroup: whether the links of all ENIs are in the group of ENIs.
	LinkGroup Check = "group"
	// PublishedPorts: whether containers answer by the ENI that was asked.
	PublishedPorts Check = "published"
)

// Finding is the result of a check for one thing: an ENI, a unit, a file.
type Finding struct {
	Check Check  `json:"check"`
	Level Level  `json:"level"`
	Text  string `json:"text"`
	// Advice is what to do, empty where nothing is to be done.
	Advice string `json:"advice"`
}

func ok(check Check, format string, args ...any) Finding {
	return Finding{Check: check, Level: OK, Text: fmt.Sprintf(format, args...)}
}

func warning(check Check, advice, format string, args ...any) Finding {
	return Finding{Check: check, Level: Warning, Text: fmt.Sprintf(format, args...), Advice: advice}
}

func problem(check Check, advice, format string, args ...any) Finding {
	return Finding{Check: check, Level: Problem, Text: fmt.Sprintf(format, args...), Advice: advice}
}

// Diagnose judges the facts. It returns the findings in the order in which they are shown. It is a pure
// function.
func Diagnose(f *Facts) []Finding {
	checks := []func(*Facts) []Finding{
		daemonAnswers, mistakes, enis, conflicts, metadataService, units, installedFiles, unusedSections, unmatchedDropIns,
		nameServers, systemdVersion, nextHops, reversePath, linkGroup, publishedPorts,
	}
	switch {
	case f.NotEC2 != "":
		// Nothing else has to be as ec2netd needs it.
		checks = []func(*Facts) []Finding{noInstance, mistakes}
	case f.UntilBoot.Owner != "":
		// Nothing else is as it shall be before that boot.
		checks = []func(*Facts) []Finding{untilBoot, mistakes}
	}
	var all []Finding
	for _, check := range checks {
		all = append(all, check(f)...)
	}
	return all
}

// noInstance tells that the machine is no EC2 instance.
func noInstance(f *Facts) []Finding {
	return []Finding{warning(Platform, platform.Advice, "%s: ec2netd configures nothing", f.NotEC2)}
}

// conflicts names other software that configures ENIs.
func conflicts(f *Facts) []Finding {
	if len(f.Conflicts) == 0 {
		return []Finding{ok(Conflicts, "nothing else configures ENIs")}
	}
	var all []Finding
	for _, c := range f.Conflicts {
		all = append(all, problem(Conflicts, c.Advice, "%s configures ENIs too: %s", c.Name, strings.Join(c.Evidence, ", ")))
	}
	return all
}
