package conflict

import (
	"os"
	"path"
	"strconv"
	"strings"

	"ec2netd/service/systemd"
)

// Units that a boot must start so that ec2netd configures the ENIs.
var inCharge = []string{systemd.Networkd, systemd.Daemon}

// runDirectory exists after ec2netd, or its socket, has been started in this boot.
const runDirectory = "/run/ec2netd"

// Waiting says in words which software configures the ENIs while ec2netd is installed and waits
// for the next boot to take over. It returns an empty string if ec2netd has been started since
// the last boot, or if the next boot will not start it, or will also start NetworkManager or
// ifupdown for an ENI. File returns the .network file that networkd uses for a link, empty for
// none.
func (l *Looker) Waiting(links []Link, file func(index int) string) string {
	if _, err := os.Lstat(l.at(runDirectory)); err == nil {
		return ""
	}
	for _, unit := range inCharge {
		if !l.enabled(unit) {
			return ""
		}
	}
	if l.enabled(managerUnit) || (l.enabled(networking) && len(l.Ifupdown(links)) > 0) {
		return ""
	}
	owners := []string{}
	for _, link := range links {
		owner := l.owner(link, file(link.Index))
		if owner != "" && (len(owners) == 0 || owner != owners[len(owners)-1]) {
			owners = append(owners, owner)
		}
	}
	if len(owners) == 0 {
		return "nobody that ec2netd knows"
	}
	return strings.Join(owners, ", and ")
}

// enabled reports whether the next boot starts a unit.
func (l *Looker) enabled(unit string) bool {
	return len(l.below("/etc/systemd/system/*.wants", unit)) > 0 && !l.masked("/etc/systemd/system/"+unit)
}

// owner returns the software that configures a link, given the file that networkd uses for it;
// empty for none.
func (l *Looker) owner(link Link, file string) string {
	if managed(l.read("/run/NetworkManager/devices/" + strconv.Itoa(link.Index))) {
		return NetworkManager
	}
	if len(l.raised([]Link{link})) > 0 {
		return "ifupdown (networking.service)"
	}
	name := path.Base(file)
	by := " by " + file
	switch {
	case file == "":
		return ""
	case strings.HasPrefix(name, "10-netplan-") && len(l.glob("/etc/netplan/50-cloud-init.yaml")) > 0:
		return "systemd-networkd" + by + ", which netplan makes of what cloud-init wrote,"
	case strings.HasPrefix(name, "10-netplan-"):
		return "systemd-networkd" + by + ", which netplan makes,"
	case strings.HasPrefix(name, "10-cloud-init-"):
		return "systemd-networkd" + by + ", which cloud-init wrote,"
	}
	for _, generated := range generated {
		if len(l.glob(path.Join("/run/systemd/network", name+".d", generated))) > 0 {
			return "systemd-networkd" + by + ", which " + OldPackage + " wrote,"
		}
	}
	return "systemd-networkd" + by
}
