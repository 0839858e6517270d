// Package platform tells whether this machine is an EC2 instance, by what its firmware and
// its hypervisor say of it. It asks nothing over the network: on another machine something
// else may answer at the address of EC2's metadata service.
//
// Compatible clouds say of themselves what they like, so ec2netd.conf(5) has Platform= to
// switch the check off.
package platform

import (
	"fmt"
	"path/filepath"
	"strings"

	"ec2netd/service/file"
)

// Identity is what a machine says of itself, without the space around it. What cannot be
// read is empty.
type Identity struct {
	// SystemVendor, BIOSVendor and ChassisVendor are "Amazon EC2" on Nitro instances and
	// on bare metal, x86 and Arm.
	SystemVendor, BIOSVendor, ChassisVendor string
	// ProductVersion ends in "amazon" on Xen instances, as in "4.11.amazon".
	ProductVersion string
	// ProductUUID begins with EC2 on Xen instances; some have the bytes of its first part
	// the other way round. Root alone can read it.
	ProductUUID string
	// HypervisorUUID is Xen's, and begins with ec2.
	HypervisorUUID string
}

// dmi has the DMI (SMBIOS) strings. /sys/class/dmi/id is a link to it.
const dmi = "sys/devices/virtual/dmi/id"

// mostText bounds one of the files. sysfs says of each that it has a page, of 64 KiB with some
// kernels for arm64, whatever is in it.
const mostText = 64 << 10

// Read reads the identity of the machine below root ("/" for this one).
func Read(root string) Identity {
	read := func(file string) string { return text(filepath.Join("/", root, file)) }
	return Identity{
		SystemVendor:   read(dmi + "/sys_vendor"),
		BIOSVendor:     read(dmi + "/bios_vendor"),
		ChassisVendor:  read(dmi + "/chassis_vendor"),
		ProductVersion: read(dmi + "/product_version"),
		ProductUUID:    read(dmi + "/product_uuid"),
		HypervisorUUID: read("sys/hypervisor/uuid"),
	}
}

// text is what a small regular file has, without anything that is not printable; it is empty for
// anything else (J2).
func text(path string) string {
	content, err := file.Read(path, mostText)
	if err != nil {
		return ""
	}
	return strings.TrimSpace(strings.Map(func(r rune) rune {
		if r < ' ' || r > '~' {
			return ' '
		}
		return r
	}, content))
}

const (
	amazon = "Amazon EC2"
	xen    = "Xen"
)

// NotEC2 says in words why the machine is no EC2 instance; it is empty for one that is. A
// machine that says nothing of itself is none: there is no EC2 instance type without DMI
// but those of Xen, whose hypervisor tells.
func (i Identity) NotEC2() string {
	switch {
	case i.SystemVendor == amazon, i.BIOSVendor == amazon, i.ChassisVendor == amazon:
		return ""
	case i.onXen() && (startsWithEC2(i.HypervisorUUID) || startsWithEC2(i.ProductUUID) || strings.HasSuffix(strings.ToLower(i.ProductVersion), "amazon")):
		return ""
	case i.SystemVendor != "":
		return fmt.Sprintf("this machine is no EC2 instance: its vendor is %q (DMI sys_vendor)", i.SystemVendor)
	}
	return "nothing says that this machine is an EC2 instance: it has neither a DMI vendor nor a UUID of Xen"
}

// onXen reports whether the hypervisor is Xen. One machine in 4096 has a UUID that begins as
// those of EC2 do, so it counts only there.
func (i Identity) onXen() bool {
	return i.HypervisorUUID != "" || i.SystemVendor == xen || i.BIOSVendor == xen
}

// startsWithEC2 reports whether a UUID begins with ec2, also where the bytes of its first
// part are the other way round, as in 45e12aec-….
func startsWithEC2(uuid string) bool {
	uuid = strings.ToLower(uuid)
	const part = 8
	return strings.HasPrefix(uuid, "ec2") || (len(uuid) > part && uuid[part] == '-' && uuid[6:8] == "ec" && uuid[4] == '2')
}
