package doctor

import (
	"fmt"
	"path"
	"path/filepath"
	"slices"
	"strings"

	"ec2netd/service/dropin"
	"ec2netd/service/file"
	"ec2netd/service/plan"
	"ec2netd/service/status"
	"ec2netd/service/systemd"
)

// networkdConf keeps networkd from taking away routes and rules of others.
const networkdConf = "/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"

// missingFiles returns the files of the installation that are missing or empty, and the base unit if
// that is masked.
func missingFiles(root string, files NetworkFiles) (missing []string, masked string) {
	if unit := files.Look(dropin.BaseName); unit.Masked {
		masked = unit.Path
	} else if base, _ := files.Base(); files.Read(base) == "" {
		missing = append(missing, base)
	}
	if text, err := file.Read(filepath.Join("/", root, networkdConf), file.Limit); err != nil || text == "" {
		missing = append(missing, networkdConf)
	}
	return missing, masked
}

// installedFiles lists the files of the installation that are missing or masked.
func installedFiles(f *Facts) []Finding {
	var all []Finding
	if f.MaskedBase != "" {
		// Not "ec2netctl refresh": no link may have an address to ask the metadata service from.
		advice := "rm " + f.MaskedBase + " && networkctl reload"
		if strings.HasPrefix(f.MaskedBase, "/usr/") {
			advice = status.InstallAgain + "; then: networkctl reload"
		}
		all = append(all, problem(Files, advice, "%s masks the base unit: networkd has no unit for ENIs", f.MaskedBase))
	}
	for _, missing := range f.MissingFiles {
		const again = status.InstallAgain + "; then: "
		if path.Base(missing) == dropin.BaseName {
			all = append(all, problem(Files, again+"networkctl reload", "%s is missing: networkd has no unit for ENIs", missing))
		} else {
			all = append(all, problem(Files, again+"systemctl restart "+systemd.Networkd, "%s is missing: networkd takes away routes and rules of others", missing))
		}
	}
	return all
}

// adminUnits are the administrator's unit files of networkd and udevd.
const adminUnits = "etc/systemd/network"

// findUnmatched returns the directories of the administrator's drop-ins for links that no ENI has the
// name of. Links are those of ENIs.
func findUnmatched(root string, links []Link) []string {
	var found []string
	for _, kind := range []string{"network", "link"} {
		names, _ := file.List(filepath.Join("/", root, adminUnits), "70-*."+kind+".d")
		for _, name := range names {
			link := strings.TrimSuffix(strings.TrimPrefix(name, "70-"), "."+kind+".d")
			if slices.ContainsFunc(links, func(l Link) bool { return l.Name == link }) {
				continue
			}
			if kind == "network" && name != path.Base(plan.NetworkPath(link))+".d" {
				continue
			}
			// One of the administrator's own units has drop-ins too.
			if own, _ := file.List(filepath.Join("/", root, adminUnits), strings.TrimSuffix(name, ".d")); len(own) > 0 {
				continue
			}
			found = append(found, path.Join("/", adminUnits, name))
		}
	}
	return found
}

// unmatchedDropIns lists the drop-ins that have no effect.
func unmatchedDropIns(f *Facts) []Finding {
	var all []Finding
	for _, dir := range f.UnmatchedDropIns {
		link, kind, _ := strings.Cut(strings.TrimPrefix(path.Base(dir), "70-"), ".")
		const name = "NAME"
		move := fmt.Sprintf("mv -T %s %s && ", dir, path.Join(path.Dir(dir), "70-"+name+"."+kind))
		where := ", with the name of that one's link (see ec2netctl status)"
		if kind == "link.d" {
			// udevd applies a .link file with "add" alone (facts: link-files).
			move += "udevadm control --reload && udevadm trigger --action=add /sys/class/net/" + name
			where += "; other programs take the last command for a link that comes, the next boot does without"
		} else {
			move += "networkctl reload"
		}
		all = append(all, warning(Files, "if it is for another ENI: "+move+where+"; else: rm -r "+dir,
			"%s has no effect as long as no ENI has the name %s", dir, link))
	}
	return all
}
