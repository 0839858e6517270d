// Package orphan removes policy rules and addresses of this daemon that networkd has
// forgotten, and that it therefore never removes, see [plan.Orphans] and
// [plan.OrphanAddresses]. It gives links the alternative names of their .link files, see
// [plan.LackingNames], and removes those that are left where another ENI needs them, see
// [plan.StaleNames].
//
// It is the one thing that this project does to the kernel by itself, and it takes
// CAP_NET_ADMIN, which the daemon has not: a unit of its own runs it, once, when the
// daemon sees such rules or names.
package orphan

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"path/filepath"
	"slices"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"ec2netd/service/kernel"
	"ec2netd/service/persist"
	"ec2netd/service/plan"
	"ec2netd/service/unitfile"
)

// Record is the file with the rules that stand or stood in this daemon's files, as long
// as the kernel may have them. It is lost with the kernel's rules, at the next boot. A rule
// that is not in it is never removed, so a record that is lost costs nothing but rules that
// stay, and one that is older than what the daemon knows must not be acted on: package
// persist sees to that.
type Record struct {
	persist.File[content]
}

// content of the file.
type content struct {
	Rules []plan.Rule `json:"rules"`
	// Addresses that stand or stood in drop-ins.
	Addresses []plan.OwnAddress `json:"addresses,omitempty"`
}

// PlaceOf returns where the daemon keeps its record on the system below root, empty for this one.
func PlaceOf(root string) persist.Place {
	return persist.Place{Path: filepath.Join("/", root, "run/ec2netd/rules.json"), Mark: filepath.Join("/", root, "var/lib/ec2netd/rules.void")}
}

// NewRecord returns the record that is kept in a place.
func NewRecord(place persist.Place) *Record {
	r := &Record{}
	r.Place, r.Check = place, (*content).check
	return r
}

func (c *content) check() error {
	if slices.ContainsFunc(c.Rules, func(rule plan.Rule) bool { return !rule.From.IsValid() }) {
		return errors.New("a rule without a source")
	}
	return nil
}

// Load returns the rules and addresses that an earlier run has left, none if there is no file
// yet. It is for the daemon; others use Read.
func (r *Record) Load() ([]plan.Rule, []plan.OwnAddress, error) { return parts(r.File.Load()) }

// Read returns the rules, none if there is no file yet.
func (r *Record) Read() ([]plan.Rule, error) {
	rules, _, err := parts(r.Peek())
	return rules, err
}

// ReadAddresses returns the addresses, none if there is no file yet.
func (r *Record) ReadAddresses() ([]plan.OwnAddress, error) {
	_, addresses, err := parts(r.Peek())
	return addresses, err
}

func parts(c *content, err error) ([]plan.Rule, []plan.OwnAddress, error) {
	if err != nil {
		return nil, nil, fmt.Errorf("reading which rules and addresses are ec2netd's: %w", err)
	}
	if c == nil {
		return nil, nil, nil
	}
	return c.Rules, c.Addresses, nil
}

// Put makes rules and addresses the record, see [persist.File]. Their order does not matter.
func (r *Record) Put(rules []plan.Rule, addresses []plan.OwnAddress, now time.Time) {
	sorted := slices.AppendSeq(make([]plan.Rule, 0, len(rules)), slices.Values(rules))
	slices.SortFunc(sorted, plan.Rule.Compare)
	addresses = slices.SortedFunc(slices.Values(addresses), plan.OwnAddress.Compare)
	r.File.Put(&content{Rules: sorted, Addresses: addresses}, now)
}

// Write replaces the record at once.
func (r *Record) Write(rules []plan.Rule) error {
	r.Put(rules, nil, time.Now())
	if err := r.Err(); err != nil {
		return fmt.Errorf("noting which rules are ec2netd's: %w", err)
	}
	return nil
}

// Files reads the unit files of networkd and udevd.
type Files interface {
	Tree() *unitfile.Tree
}

// Remove removes the orphans of this network namespace and returns them. Whatever it is
// not sure of stays.
func Remove(record *Record, files Files) ([]plan.Rule, error) {
	known, err := record.Read()
	if err != nil {
		return nil, err
	}
	// In this order: what a file brings that is written meanwhile stays.
	present, err := kernel.Rules()
	if err != nil {
		return nil, err
	}
	wanted, err := plan.WantedRules(files.Tree())
	if err != nil {
		return nil, err
	}
	orphans := plan.Orphans(known, wanted, present)
	for i, rule := range orphans {
		if err := remove(rule); err != nil {
			return orphans[:i], fmt.Errorf("removing the rule %s, priority %d: %w", rule, rule.Priority, err)
		}
	}
	return orphans, nil
}

// RemoveAddresses removes the addresses that networkd has left behind, see
// [plan.OrphanAddresses], and returns them.
func RemoveAddresses(record *Record, files Files) ([]plan.OwnAddress, error) {
	known, err := record.ReadAddresses()
	if err != nil || len(known) == 0 {
		return nil, err
	}
	present, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	var removed []plan.OwnAddress
	for _, link := range present {
		attrs := link.Attrs()
		// Bridges, VLANs and macvlans can have an ENI's MAC address too.
		if link.Type() != "device" && link.Type() != "veth" {
			continue
		}
		listed, err := netlink.AddrList(link, netlink.FAMILY_ALL)
		if err != nil {
			continue // it has gone
		}
		entry := kernel.Link{}
		entry.MAC, _ = kernel.MACOf(attrs)
		for _, a := range listed {
			address, _ := netip.AddrFromSlice(a.IP)
			ones, _ := a.Mask.Size()
			entry.Addresses = append(entry.Addresses, kernel.Address{
				Prefix: netip.PrefixFrom(address.Unmap(), ones), Dynamic: a.Flags&unix.IFA_F_PERMANENT == 0,
			})
		}
		if len(plan.OrphanAddresses(known, nil, []kernel.Link{entry})) == 0 {
			continue
		}
		// After the look at the link: what a file brings that is written meanwhile stays.
		wanted, err := plan.WantedAddresses(files.Tree())
		if err != nil {
			return removed, err
		}
		for _, own := range plan.OrphanAddresses(known, wanted, []kernel.Link{entry}) {
			err := netlink.AddrDel(link, &netlink.Addr{IPNet: network(netip.PrefixFrom(own.Address, own.Address.BitLen()))})
			if err != nil && !errors.Is(err, unix.EADDRNOTAVAIL) && !errors.Is(err, unix.ENODEV) {
				return removed, fmt.Errorf("removing the address %s of %s: %w", own.Address, attrs.Name, err)
			}
			removed = append(removed, own)
		}
	}
	return removed, nil
}

// listLinks lists the links of this network namespace with their names.
func listLinks() ([]kernel.Link, error) {
	present, err := netlink.LinkList()
	if err != nil {
		return nil, fmt.Errorf("listing links: %w", err)
	}
	links := make([]kernel.Link, 0, len(present))
	for _, link := range present {
		attrs := link.Attrs()
		mac, _ := kernel.MACOf(attrs)
		links = append(links, kernel.Link{Index: attrs.Index, Name: attrs.Name, MAC: mac, Altnames: attrs.AltNames})
	}
	return links, nil
}

// AddNames gives the links of this network namespace the alternative names that stand in their
// .link files, and returns them. kept reports whether the administrator keeps the names away from a
// link.
//
// udevd gives them only with an "add" event, which programs take for another link that comes
// (cloud-init configures the network anew), and with which it applies sysctls anew; from 257 on
// it does nothing with "bind" and "move" (facts: alternative-names).
func AddNames(files Files, kept func(link *kernel.Link) bool) ([]plan.Name, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	var added []plan.Name
	for _, name := range plan.LackingNames(links, files.Tree().LinkDropIn) {
		i := slices.IndexFunc(links, func(l kernel.Link) bool { return l.Name == name.Link })
		if kept(&links[i]) {
			continue
		}
		err := netlink.LinkAddAltName(&netlink.Device{LinkAttrs: netlink.LinkAttrs{Index: links[i].Index}}, name.Name)
		switch {
		case errors.Is(err, unix.EEXIST), errors.Is(err, unix.ENODEV):
			// udevd or somebody else was faster, or the link has gone.
		case err != nil:
			return added, fmt.Errorf("giving %s the alternative name %s: %w", name.Link, name.Name, err)
		default:
			added = append(added, name)
		}
	}
	return added, nil
}

// RemoveNames removes the stale names of the links of this network namespace and returns
// them.
func RemoveNames(files Files) ([]plan.Name, error) {
	links, err := listLinks()
	if err != nil {
		return nil, err
	}
	stale := plan.StaleNames(links, files.Tree().LinkDropIn)
	for i, name := range stale {
		link, err := netlink.LinkByName(name.Link)
		if err == nil {
			err = netlink.LinkDelAltName(link, name.Name)
		}
		if err != nil {
			return stale[:i], fmt.Errorf("removing the alternative name %s of %s: %w", name.Name, name.Link, err)
		}
	}
	return stale, nil
}

func remove(rule plan.Rule) error {
	what := netlink.NewRule()
	what.Family = unix.AF_INET6
	if rule.From.Addr().Is4() {
		what.Family = unix.AF_INET
	}
	what.Priority, what.Table, what.Protocol = rule.Priority, rule.Table, kernel.ProtocolStatic
	if rule.From.Bits() > 0 {
		what.Src = network(rule.From)
	}
	if rule.Mark.Value != 0 {
		what.Mark, what.Mask = rule.Mark.Value, &rule.Mark.Mask
	}
	if rule.Guard {
		what.SuppressPrefixlen = kernel.GuardLength(rule.Group)
	}
	if rule.Group != 0 {
		what.SuppressIfgroup = rule.Group
	}
	if err := netlink.RuleDel(what); err != nil && !errors.Is(err, unix.ENOENT) {
		return err
	}
	return nil
}

func network(prefix netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Addr().BitLen())}
}
