package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"ec2netd/service/config"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/state"
	"ec2netd/service/status"
	"ec2netd/service/store"
	"ec2netd/service/udev"
)

// planOptions are the flags of plan.
type planOptions struct {
	metadata string
	links    linkNames
	driver   string
	root     string
	all      bool
}

// What becomes of a planned file.
const (
	fileNew     = "new"
	fileChanged = "changed"
	fileSame    = "same"
)

// planned is what plan prints as JSON.
type planned struct {
	Interfaces []plannedENI `json:"interfaces"`
	// Removed are files that would go.
	Removed []string `json:"removed"`
}

// plannedENI is what would be made of one ENI. The names are those of the state.
type plannedENI struct {
	ENIID       string `json:"eniId"`
	MAC         string `json:"mac"`
	Name        string `json:"name"`
	Primary     bool   `json:"primary"`
	DeviceIndex int    `json:"deviceIndex"`
	NetworkCard int    `json:"networkCard"`
	Metric      int    `json:"metric"`
	Table       int    `json:"table"`
	// Addresses that the link would have, by DHCP or by the files, and Altnames.
	Addresses []string `json:"addresses"`
	Altnames  []string `json:"altnames"`
	// Managed as the configuration says, and Reason why no files are made.
	Managed bool          `json:"managed"`
	Reason  string        `json:"reason"`
	Files   []plannedFile `json:"files"`
	// keep are the units of which all stays that is there.
	keep []store.Unit
}

// plannedFile is a file that is to be: one with Content, or a symbolic link to Target.
type plannedFile struct {
	Path    string `json:"path"`
	Content string `json:"content,omitempty"`
	Target  string `json:"target,omitempty"`
	// Change is new, changed or same as what is on disk; empty for an offline plan.
	Change string `json:"change,omitempty"`
	// before is the content on disk.
	before string
}

// plan shows which files would be written: of a saved dump, or on this machine now.
func (c *ctl) plan(ctx context.Context, o *planOptions) error {
	var result planned
	if o.root != "" && c.who.elevated {
		// Messages about a file there have what is in it, and it may be a link (J4).
		return advise("It needs no rights of root: run it with your own.", "plan --root is not for sudo")
	}
	if o.metadata != "" {
		d, err := c.loadDump(o.metadata)
		if err != nil {
			return err
		}
		links, err := offlineLinks(d, o.links, o.driver) //nolint:contextcheck // it waits for nothing
		if err != nil {
			return err
		}
		root := c.root
		if o.root != "" {
			if root, err = filepath.Abs(o.root); err != nil {
				return err
			}
			// What is not there would be planned for as if nothing were configured.
			if info, err := os.Stat(root); err != nil {
				return fmt.Errorf("looking for the configuration below --root: %w", err)
			} else if !info.IsDir() {
				return fmt.Errorf("looking for the configuration below --root: %s is not a directory", root)
			}
		}
		on, settings := &store.Store{Root: root}, config.Load("/"+root)
		c.warn(settings.Problems)
		in := plan.Input{Links: links, Sections: settings.ENIs}
		in.Networkd.Keeps = (&networkd.Client{Root: root}).Keeps()
		in.Base, in.BaseDropIns = on.Base()
		if result, err = makePlan(&d.Dump, in); err != nil { //nolint:contextcheck // it waits for nothing
			if c.who.elevated && o.metadata != "-" {
				err = errors.New("it is not complete, or has values that cannot be") // see loadDump (J4)
			}
			return advise("Write a dump on the instance with: ec2netctl dump-metadata > FILE", "%s: %w", o.metadata, err)
		}
	} else {
		if len(o.links) > 0 || o.driver != "" || o.root != "" {
			return &usageError{"--link, --driver and --root go with --metadata"}
		}
		s, err := c.look()
		if err != nil {
			return err
		}
		c.warn(s.config.Problems)
		d, err := c.readDump(ctx, s)
		if err != nil {
			return err
		}
		in := plan.Input{Sections: s.config.ENIs, Assigned: s.store.Assigned("")}
		in.Networkd.Keeps = (&networkd.Client{Root: c.root}).Keeps()
		in.Base, in.BaseDropIns = s.store.Base()
		networks := s.store.Networks()
		for i := range s.kernel.Links {
			l := &s.kernel.Links[i]
			entry := plan.Observed(*l, s.kernel.Routes)
			s.store.Complete(&entry, networks)
			if applied, ok := (&udev.Udev{Root: s.store.Root}).LinkFile(l.Index); ok {
				entry.TakePolicy(s.store.Policies(), s.store.Policy(applied))
			}
			in.Links = append(in.Links, entry)
		}
		if result, err = makePlan(d, in); err != nil { //nolint:contextcheck // it waits for nothing
			return err
		}
		units, err := s.store.Units()
		if err != nil {
			return err
		}
		if err := result.compare(s.store, units); err != nil {
			return err
		}
		// netplan's files are for root and networkd alone.
		for _, unread := range s.store.Unread() {
			fmt.Fprintf(c.stderr, "ec2netctl: the plan is without what is in %s\n", clean(unread))
		}
	}
	if c.wantsJSON() {
		return c.printJSON(result)
	}
	return c.page(c.describePlan(&result, o.metadata != "", o.all))
}

// warn tells of mistakes in the configuration, which are none of the plan.
func (c *ctl) warn(problems []config.Problem) {
	for _, p := range problems {
		fmt.Fprintf(c.stderr, "ec2netctl: %s\n", clean(p.String()))
	}
}

// makePlan decides what becomes of a dump once networkd has done its part: in.Links are
// given the leases that they will have, so that the plan is the last step and not the
// first.
func makePlan(d *metadata.Dump, in plan.Input) (planned, error) {
	instance, err := d.Instance()
	if err != nil {
		return planned{}, err
	}
	in.PrimaryMAC, in.Views = instance.PrimaryMAC, make(map[string]metadata.ENI)
	unread := make(map[string]error)
	for _, mac := range d.MACs() {
		view, err := d.ENI(mac)
		if err != nil {
			unread[mac] = err
			continue
		}
		in.Views[mac] = *view
	}
	first := plan.Make(in)
	for i := range first.ENIs {
		settle(&first.ENIs[i], in.Links)
	}
	p := plan.Make(in)
	p.GiveWay()

	result := planned{Interfaces: []plannedENI{}, Removed: []string{}}
	linked := make(map[string]bool)
	for i := range p.ENIs {
		eni := &p.ENIs[i]
		linked[eni.Link.MAC] = true
		result.Interfaces = append(result.Interfaces, describeENI(eni, unread[eni.Link.MAC]))
	}
	// ENIs without a link: EFA-only ones, ghosts of detached ones.
	for _, mac := range d.MACs() {
		if linked[mac] {
			continue
		}
		entry := plannedENI{MAC: mac, DeviceIndex: state.Unknown, NetworkCard: state.Unknown, Metric: state.Unknown, Table: state.Unknown,
			Addresses: []string{}, Altnames: []string{}, Files: []plannedFile{}, Managed: true, Reason: status.Reason{Code: status.NoLink}.Words()}
		if view, ok := in.Views[mac]; ok {
			entry.ENIID, entry.DeviceIndex = view.ID, view.DeviceIndex
		}
		result.Interfaces = append(result.Interfaces, entry)
	}
	return result, nil
}

// settle gives the link of an ENI the lease that DHCP will have brought.
func settle(eni *plan.ENI, links []plan.Link) {
	if !eni.Known || !eni.Settings.Managed {
		return
	}
	i := slices.IndexFunc(links, func(l plan.Link) bool { return l.Index == eni.Link.Index })
	l := &links[i]
	l.LeaseOverdue, l.Done, l.Busy, l.OnBase, l.New, l.Reconfigured = true, true, false, false, false, 0
	l.DHCPMetrics = nil
	if !eni.Want.NoDefault {
		l.DHCPMetrics = []int{eni.Want.Metric}
	}
	lease := func(address netip.Addr) {
		if !l.Has(address) {
			l.Addresses = append(slices.Clone(l.Addresses), kernel.Address{Prefix: netip.PrefixFrom(address, address.BitLen()), Global: true, Dynamic: true})
		}
	}
	if eni.Want.Primary.IsValid() {
		lease(eni.Want.Primary)
	}
	if eni.Primary && len(eni.Applies.IPv6) > 0 && !slices.ContainsFunc(l.Addresses, func(a kernel.Address) bool {
		return a.Dynamic && slices.Contains(eni.Applies.IPv6, a.Prefix.Addr())
	}) {
		lease(eni.Applies.IPv6[0])
	}
}

func describeENI(eni *plan.ENI, unread error) plannedENI {
	entry := plannedENI{
		ENIID: eni.View.ID, MAC: eni.Link.MAC, Name: eni.Link.Name, Primary: eni.Primary,
		DeviceIndex: state.Unknown, NetworkCard: state.Unknown, Metric: state.Unknown, Table: state.Unknown,
		Addresses: []string{}, Altnames: append([]string{}, eni.Want.Altnames...), Managed: eni.Settings.Managed, Files: []plannedFile{},
	}
	if eni.Known {
		entry.DeviceIndex, entry.NetworkCard = eni.Numbers.Index, eni.Numbers.Card
	}
	if eni.Want.Metric != 0 {
		entry.Metric = eni.Want.Metric
	}
	if eni.Want.Table != 0 {
		entry.Table = eni.Want.Table
	}
	for _, a := range eni.Want.Addresses {
		entry.Addresses = append(entry.Addresses, a.String())
	}
	reason := eni.Reason
	switch {
	case !eni.Settings.Managed:
		reason = status.Reason{Code: status.ManagedNo, File: eni.Settings.ManagedBy}
	case eni.Link.Taken != "":
		reason = status.Reason{Code: status.UnitTaken, File: eni.Link.Taken}
	case unread != nil:
		reason = status.Reason{Code: status.MetadataFailed, Cause: unread.Error()}
	}
	entry.Reason, entry.keep = reason.Planned(eni.Keep), store.Kept(eni)
	for _, f := range eni.Files {
		entry.Files = append(entry.Files, plannedFile{Path: f.Path, Content: f.Content, Target: f.Target})
	}
	return entry
}

// compare says what becomes of each file, and which of the generated ones would go.
func (p *planned) compare(on *store.Store, units []store.Unit) error {
	wanted := make(map[string]bool)
	var kept []store.Unit
	for i := range p.Interfaces {
		e := &p.Interfaces[i]
		for k := range e.Files {
			f := &e.Files[k]
			wanted[f.Path] = true
			f.before = on.Read(f.Path)
			target := on.Target(f.Path)
			switch {
			case f.Target != "" && f.Target == target, f.Target == "" && target == "" && f.Content == f.before:
				f.Change = fileSame
			case f.before == "" && target == "":
				f.Change = fileNew
			default:
				f.Change = fileChanged
			}
		}
		kept = append(kept, e.keep...)
	}
	for _, unit := range units {
		if slices.Contains(kept, unit) {
			continue
		}
		unwanted, err := on.Unwanted(unit, wanted)
		if err != nil {
			return err
		}
		p.Removed = append(p.Removed, unwanted...)
	}
	p.Removed = append(p.Removed, on.UnwantedLinks(wanted, func(link string) bool { return slices.Contains(kept, store.Unit{Name: link, Kind: store.Network}) })...)
	return nil
}

// describePlan is a plan in words. Offline all files are shown as they would be, else
// those that are not on disk that way, unless all are wanted.
func (c *ctl) describePlan(p *planned, offline, all bool) string {
	var b strings.Builder
	changes := len(p.Removed)
	for i := range p.Interfaces {
		e := &p.Interfaces[i]
		var files []plannedFile
		for _, f := range e.Files {
			if f.Change == fileNew || f.Change == fileChanged {
				changes++
			}
			if offline || all || f.Change != fileSame {
				files = append(files, f)
			}
		}
		if !offline && !all && len(files) == 0 && e.Reason == "" {
			continue
		}
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString(c.planTitle(e))
		for k := range files {
			if k > 0 {
				b.WriteByte('\n')
			}
			b.WriteString(c.planFile(&files[k]))
		}
	}
	for _, file := range p.Removed {
		b.WriteString(paint("- "+clean(file), red, c.colour) + "\n")
	}
	if !offline && changes == 0 {
		if b.Len() > 0 {
			b.WriteByte('\n')
		}
		b.WriteString("Nothing would change.\n")
	}
	return b.String()
}

func (c *ctl) planTitle(e *plannedENI) string {
	name, facts := e.Name, []string{}
	switch {
	case name == "":
		name = cmp.Or(e.ENIID, e.MAC)
	case e.ENIID != "":
		name += " (" + e.ENIID + ")"
	default:
		name += " (" + e.MAC + ")"
	}
	if e.Primary {
		facts = append(facts, "primary")
	}
	if e.DeviceIndex != state.Unknown {
		facts = append(facts, "device index "+strconv.Itoa(e.DeviceIndex))
	}
	if e.NetworkCard > 0 {
		facts = append(facts, "network card "+strconv.Itoa(e.NetworkCard))
	}
	if e.Metric != state.Unknown {
		facts = append(facts, "metric "+strconv.Itoa(e.Metric))
	}
	if e.Table != state.Unknown {
		facts = append(facts, "table "+strconv.Itoa(e.Table))
	}
	title := paint("● "+clean(name), bold, c.colour)
	if len(facts) > 0 {
		title += ": " + strings.Join(facts, ", ")
	}
	if e.Reason != "" {
		title += "\n  " + paint(clean(e.Reason), yellow, c.colour)
	}
	return title + "\n"
}

// planFile shows a file as systemctl cat does or, where it changes, how.
func (c *ctl) planFile(f *plannedFile) string {
	head := "# " + f.Path
	if f.Target != "" {
		head += " -> " + f.Target
	}
	if f.Change != "" {
		head += " (" + f.Change + ")"
	}
	head = paint(clean(head), grey, c.colour) + "\n"
	if f.Change != fileChanged || f.Target != "" {
		return head + clean(f.Content)
	}
	var b strings.Builder
	b.WriteString(head)
	_, hunks, _ := strings.Cut(string(diff.Diff(f.Path, []byte(f.before), f.Path, []byte(f.Content))), "\n+++ "+f.Path+"\n")
	for line := range strings.Lines(hunks) {
		line = clean(strings.TrimSuffix(line, "\n"))
		switch {
		case strings.HasPrefix(line, "+"):
			line = paint(line, green, c.colour)
		case strings.HasPrefix(line, "-"):
			line = paint(line, red, c.colour)
		}
		b.WriteString(line + "\n")
	}
	return b.String()
}

// firstName is the number of the name that the primary ENI has on Nitro instances.
const firstName = 5

// offlineLinks are the links that a plan is made for: those in the dump or, where it has
// none, one for each ENI. names say what they are called.
func offlineLinks(d *dump, names linkNames, driver string) ([]plan.Link, error) {
	macs := d.MACs()
	for mac := range names {
		if !slices.Contains(macs, mac) {
			return nil, advise("It has "+strings.Join(macs, ", "), "the dump has no ENI %s", mac)
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
				return nil, advise("Give other names with --link MAC=NAME.", "%s and %s would both be called %s", links[k].MAC, links[i].MAC, links[i].Name)
			}
		}
	}
	return links, nil
}

// assumedLinks names the ENIs of a dump without links in the order of their numbers, the
// primary first.
func assumedLinks(d *dump, macs []string, primary string) []dumpLink {
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
	var links []dumpLink
	for i, mac := range macs {
		links = append(links, dumpLink{Name: "ens" + strconv.Itoa(firstName+i), MAC: mac})
	}
	return links
}

// linkName: what the kernel and this daemon's file names can have.
var (
	linkName   = regexp.MustCompile(`^[A-Za-z0-9_@.:-]{1,15}$`)
	driverName = regexp.MustCompile(`^[A-Za-z0-9_.-]{1,31}$`)
)

func checkLink(name, driver, linkFile string) error {
	if !linkName.MatchString(name) || name == "." || name == ".." {
		return fmt.Errorf("%q is not the name of a link", name)
	}
	if driver != "" && !driverName.MatchString(driver) {
		return fmt.Errorf("%q is not the name of a driver", driver)
	}
	if linkFile != "" && (!path.IsAbs(linkFile) || strings.ContainsFunc(linkFile, func(r rune) bool { return r < ' ' || r == 0x7f })) {
		return fmt.Errorf("%q is not an absolute path", linkFile)
	}
	return nil
}

// linkNames is the value of --link: names by MAC address.
type linkNames map[string]string

func (l *linkNames) String() string { return "" }

// Set implements pflag.Value.
func (l *linkNames) Set(text string) error {
	address, name, ok := strings.Cut(text, "=")
	if !ok {
		return fmt.Errorf("%q is not MAC=NAME", text)
	}
	mac, err := metadata.ParseMAC(address)
	if err == nil {
		err = checkLink(name, "", "")
	}
	if err != nil {
		return err
	}
	if *l == nil {
		*l = make(linkNames)
	}
	(*l)[mac] = name
	return nil
}

// Type implements pflag.Value.
func (l *linkNames) Type() string { return "MAC=NAME" }
