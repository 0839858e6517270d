package preview

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"path"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/plan"
)

// Dump is the metadata of an instance, with its links.
type Dump struct {
	// Version of the program that has written it, and Time when.
	Version string    `json:"version"`
	Time    time.Time `json:"time,omitzero"`
	metadata.Dump
	// Links of the instance that can be ENIs. None: nothing is known of them.
	Links []Link `json:"links"`
}

// Link is what a plan takes from a link.
type Link struct {
	Name   string `json:"name"`
	MAC    string `json:"mac"`
	Driver string `json:"driver"`
	// LinkFile is the .link file that holds for it, without those of ec2netd.
	LinkFile string `json:"linkFile"`
}

// ParseDump reads the text of a dump, whoever has written it.
func ParseDump(text []byte) (*Dump, error) {
	var d Dump
	if err := json.Unmarshal(text, &d); err != nil {
		return nil, err
	}
	if len(d.Keys) == 0 {
		return nil, errors.New("it has no keys")
	}
	for i, l := range d.Links {
		mac, err := metadata.ParseMAC(l.MAC)
		if err == nil {
			err = l.check()
		}
		if err != nil {
			return nil, fmt.Errorf("link %d: %w", i+1, err)
		}
		d.Links[i].MAC = mac
	}
	return &d, nil
}

// linkName matches what the kernel and the names of the daemon's files can have, driverName the name of
// a kernel module.
var (
	linkName   = regexp.MustCompile(`^[A-Za-z0-9_@.:-]{1,15}$`)
	driverName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,31}$`)
)

// CheckName fails for what cannot be the name of a link.
func CheckName(name string) error {
	if !linkName.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("%q is not the name of a link", name)
	}
	return nil
}

// check fails for a link that no instance can have.
func (l *Link) check() error {
	if err := CheckName(l.Name); err != nil {
		return err
	}
	if l.Driver != "" && !driverName.MatchString(l.Driver) {
		return fmt.Errorf("%q is not the name of a driver", l.Driver)
	}
	if l.LinkFile != "" && (!path.IsAbs(l.LinkFile) || strings.ContainsFunc(l.LinkFile, func(r rune) bool { return r < ' ' || r == 0x7f })) {
		return fmt.Errorf("%q is not an absolute path", l.LinkFile)
	}
	return nil
}

// UnknownENIError says that a dump has no ENI with a MAC address.
type UnknownENIError struct {
	// MAC is the address that no ENI of the dump has.
	MAC string
	// Known are the MAC addresses of the ENIs in the dump.
	Known []string
}

// Error implements error.
func (e *UnknownENIError) Error() string { return "the dump has no ENI " + e.MAC }

// SameNameError says that the links of two ENIs would have the same name.
type SameNameError struct {
	// Name is the name that both links would have.
	Name string
	// MAC is the address of the link that comes first in the dump, and Other that of the later one.
	MAC, Other string
}

// Error implements error.
func (e *SameNameError) Error() string {
	return fmt.Sprintf("%s and %s would both be called %s", e.MAC, e.Other, e.Name)
}

// firstName is the number of the name that the primary ENI has on Nitro instances.
const firstName = 5

// PlanLinks returns the links that an offline plan is made for: those in the dump or, if it has none, one
// for each ENI. Names has the names of links by MAC address in place of those, and driver is theirs if it
// is not empty. It fails with an [UnknownENIError] or a [SameNameError].
func (d *Dump) PlanLinks(names map[string]string, driver string) ([]plan.Link, error) {
	macs := d.MACs()
	for mac := range names {
		if !slices.Contains(macs, mac) {
			return nil, &UnknownENIError{MAC: mac, Known: macs}
		}
	}
	known := d.Links
	if len(known) == 0 {
		primary := ""
		if instance, err := d.Instance(); err == nil {
			primary = instance.PrimaryMAC
		}
		known = assumedLinks(d, macs, primary)
	}
	var links []plan.Link
	for i, l := range known {
		if name := names[l.MAC]; name != "" {
			l.Name = name
		}
		l.Driver = cmp.Or(driver, l.Driver, config.DefaultDrivers()[0])
		links = append(links, plan.Link{
			Link:     kernel.Link{Index: i + 1, Name: l.Name, MAC: l.MAC, Driver: l.Driver, Carrier: true},
			LinkFile: cmp.Or(l.LinkFile, plan.DefaultPolicy),
		})
	}
	for i := range links {
		for k := range i {
			if links[i].Name == links[k].Name {
				return nil, &SameNameError{Name: links[i].Name, MAC: links[k].MAC, Other: links[i].MAC}
			}
		}
	}
	return links, nil
}

// assumedLinks names the ENIs of a dump without links in the order of their numbers, the
// primary first.
func assumedLinks(d *Dump, macs []string, primary string) []Link {
	rank := func(mac string) int {
		if mac == primary {
			return -1
		}
		view, err := d.ENI(mac)
		if err != nil {
			return plan.Numbers{Card: 99, Index: 99}.Table() + 1
		}
		numbers := plan.Numbers{Index: view.DeviceIndex}
		if view.NetworkCard != nil {
			numbers.Card = *view.NetworkCard
		}
		return numbers.Table()
	}
	macs = slices.Clone(macs)
	slices.SortStableFunc(macs, func(a, b string) int { return cmp.Compare(rank(a), rank(b)) })
	var links []Link
	for i, mac := range macs {
		links = append(links, Link{Name: "ens" + strconv.Itoa(firstName+i), MAC: mac})
	}
	return links
}
