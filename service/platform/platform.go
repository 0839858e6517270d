// Package platform determines whether this machine is an EC2 instance, from data of its firmware
// and its hypervisor. It sends nothing over the network: on another machine something else may
// answer at the address of EC2's metadata service.
//
// Compatible clouds set these data as they like, so Platform= in ec2netd.conf(5) can disable the
// check.
package platform

import (
	"fmt"
	"path/filepath"
	"strings"

	"ec2netd/service/file"
)

// Identity contains the data that identify a machine, without surrounding space. Data that
// cannot be read are empty.
type Identity struct {
	// SystemVendor, BIOSVendor and ChassisVendor are "Amazon EC2" on Nitro instances and
	// on bare metal, x86 and Arm.
	SystemVendor, BIOSVendor, ChassisVendor string
	// ProductVersion ends in "amazon" on Xen instances, as in "4.11.amazon".
	ProductVersion string
	// ProductUUID begins with EC2 on Xen instances; in some the bytes of its first part are
	// reversed. Only root can read it.
	ProductUUID string
	// HypervisorUUID is the UUID of Xen, and begins with ec2.
	HypervisorUUID string
}

// dmi is the directory of the DMI (SMBIOS) strings. /sys/class/dmi/id is a symlink to it.
const dmi = "sys/devices/virtual/dmi/id"

// mostText bounds one of the files. sysfs reports a size of one page for each of them, which is
// 64 KiB with some kernels for arm64, whatever the content.
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

// text returns the content of a small regular file, without unprintable characters, and an empty
// string for anything else (J2).
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

// NotEC2 returns why the machine is not an EC2 instance, in words, and an empty string for an
// instance. A machine without any data is not one: all EC2 instance types have DMI, except those
// of Xen, whose hypervisor identifies them.
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

// onXen reports whether the hypervisor is Xen. One machine in 4096 has a UUID that begins like
// those of EC2, so the UUID counts only on Xen.
func (i Identity) onXen() bool {
	return i.HypervisorUUID != "" || i.SystemVendor == xen || i.BIOSVendor == xen
}

// startsWithEC2 reports whether a UUID begins with ec2, also if the bytes of its first part are
// reversed, as in 45e12aec-….
func startsWithEC2(uuid string) bool {
	uuid = strings.ToLower(uuid)
	const part = 8
	return strings.HasPrefix(uuid, "ec2") || (len(uuid) > part && uuid[part] == '-' && uuid[6:8] == "ec" && uuid[4] == '2')
}
