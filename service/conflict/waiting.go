package conflict

import (
	"os"
	"path"
	"strconv"
	"strings"

	"ec2netd/service/systemd"
)

// The units that a boot must start for ec2netd to be in charge after it.
var inCharge = []string{systemd.Networkd, systemd.Daemon}

// runDirectory is there once ec2netd, or its socket, has been started in this boot.
const runDirectory = "/run/ec2netd"

// Waiting says in words who configures the ENIs as long as ec2netd is installed and waits for the
// next boot, which makes it the owner of the links. It is empty where that is not so: ec2netd has
// been started since the last boot, or the next one will not start it, or NetworkManager or
// ifupdown for an ENI as well.
// File tells which .network file networkd uses for a link, empty for none.
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

// owner says who configures a link that networkd uses a file for, or none; empty for nobody.
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
