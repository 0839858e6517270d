package main

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/rogpeppe/go-internal/diff"

	"ec2netd/service/config"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/orphan"
	"ec2netd/service/plan"
	"ec2netd/service/preview"
	"ec2netd/service/snapshot"
	"ec2netd/service/state"
	"ec2netd/service/store"
	"ec2netd/service/unitfile/disk"
)

// planOptions are the flags of plan.
type planOptions struct {
	metadata string
	links    linkNames
	driver   string
	root     string
	all      bool
}

// plan shows which files would be written: of a saved dump, or on this machine now.
func (c *ctl) plan(ctx context.Context, o *planOptions) error {
	if o.root != "" && c.who.elevated {
		// Messages about a file there have what is in it, and it may be a link (J4).
		return advise("It needs no rights of root: run it with your own.", "plan --root is not for sudo")
	}
	var result *preview.Plan
	var err error
	if o.metadata != "" {
		result, err = c.planOffline(o)
	} else {
		result, err = c.planHere(ctx, o)
	}
	if err != nil {
		return err
	}
	if c.wantsJSON() {
		return c.printJSON(result)
	}
	return c.page(c.describePlan(result, o.metadata != "", o.all))
}

// planOffline makes the plan of a saved dump.
func (c *ctl) planOffline(o *planOptions) (*preview.Plan, error) {
	d, err := c.loadDump(o.metadata)
	if err != nil {
		return nil, err
	}
	links, err := d.PlanLinks(o.links, o.driver)
	if err != nil {
		return nil, aboutLinks(err)
	}
	root, err := c.configured(o.root)
	if err != nil {
		return nil, err
	}
	settings := config.Load("/" + root)
	c.warn(settings.Problems)
	seen, err := sources(root, nil, &disk.Reader{Root: root}).Take(snapshot.Settings{Sections: settings.ENIs}, nil)
	if err != nil {
		return nil, err
	}
	result, err := (&preview.Site{Store: &store.Store{Root: root}, Seen: seen}).Offline(&d.Dump, links)
	if err != nil {
		if c.who.elevated && o.metadata != "-" {
			err = errors.New("it is not complete, or has values that cannot be") // see loadDump (J4)
		}
		return nil, advise("Write a dump on the instance with: ec2netctl dump-metadata > FILE", "%s: %w", o.metadata, err)
	}
	return result, nil
}

// configured returns the directory below which the configuration is that counts for an offline plan.
func (c *ctl) configured(dir string) (string, error) {
	if dir == "" {
		return c.root, nil
	}
	root, err := filepath.Abs(dir)
	if err != nil {
		return "", err
	}
	// A plan without it would be one as if nothing were configured.
	info, err := os.Stat(root)
	if err != nil {
		return "", fmt.Errorf("looking for the configuration below --root: %w", err)
	}
	if !info.IsDir() {
		return "", fmt.Errorf("looking for the configuration below --root: %s is not a directory", root)
	}
	return root, nil
}

// aboutLinks returns an error about the links of an offline plan, with what to do.
func aboutLinks(err error) error {
	var unknown *preview.UnknownENIError
	var same *preview.SameNameError
	switch {
	case errors.As(err, &unknown):
		return advise("It has "+strings.Join(unknown.Known, ", "), "%w", err)
	case errors.As(err, &same):
		return advise("Give other names with --link MAC=NAME.", "%w", err)
	}
	return err
}

// planHere makes the plan of this machine.
func (c *ctl) planHere(ctx context.Context, o *planOptions) (*preview.Plan, error) {
	if len(o.links) > 0 || o.driver != "" || o.root != "" {
		return nil, &usageError{"--link, --driver and --root go with --metadata"}
	}
	s, err := c.look()
	if err != nil {
		return nil, err
	}
	c.warn(s.config.Problems)
	d, err := c.readDump(ctx, s)
	if err != nil {
		return nil, err
	}
	site := s.preview()
	site.Running, site.Varlink = c.lookAtNetworkd(ctx)
	site.Ours = c.ownAddresses()
	result, err := site.Here(d)
	if err != nil {
		return nil, err
	}
	// netplan's files are for root and networkd alone.
	unread := slices.Concat(s.store.Unread(), s.reader.Unread())
	slices.Sort(unread)
	for _, unread := range slices.Compact(unread) {
		fmt.Fprintf(c.stderr, "ec2netctl: the plan is without what is in %s\n", clean(unread))
	}
	return result, nil
}

// lookAtNetworkd reports whether networkd is on the bus, and whether it has its Varlink socket.
func (c *ctl) lookAtNetworkd(ctx context.Context) (running, varlink bool) {
	system := &networkd.Client{Root: c.root}
	defer system.Close()
	owner, err := system.Owner(ctx)
	return err == nil && owner != "", system.Varlink()
}

// ownAddresses returns a function that reports whether an address is in ec2netd's record of its own. It
// returns nil if the record cannot be read: only root may.
func (c *ctl) ownAddresses() func(plan.OwnAddress) bool {
	addresses, err := orphan.NewRecord(orphan.PlaceOf(c.root)).ReadAddresses()
	if err != nil {
		return nil
	}
	return func(own plan.OwnAddress) bool { return slices.Contains(addresses, own) }
}

// warn tells of mistakes in the configuration, which are none of the plan.
func (c *ctl) warn(problems []config.Problem) {
	for _, p := range problems {
		fmt.Fprintf(c.stderr, "ec2netctl: %s\n", clean(p.String()))
	}
}

// describePlan is a plan in words. Offline all files are shown as they would be, else
// those that are not on disk that way, unless all are wanted.
func (c *ctl) describePlan(p *preview.Plan, offline, all bool) string {
	var b strings.Builder
	changes := len(p.Removed)
	for i := range p.Interfaces {
		e := &p.Interfaces[i]
		var files []preview.File
		for _, f := range e.Files {
			if f.Change == preview.New || f.Change == preview.Changed {
				changes++
			}
			if offline || all || f.Change != preview.Same {
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

func (c *ctl) planTitle(e *preview.ENI) string {
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
func (c *ctl) planFile(f *preview.File) string {
	head := "# " + f.Path
	if f.Target != "" {
		head += " -> " + f.Target
	}
	if f.Change != "" {
		head += " (" + string(f.Change) + ")"
	}
	head = paint(clean(head), grey, c.colour) + "\n"
	if f.Change != preview.Changed || f.Target != "" {
		return head + clean(f.Content)
	}
	var b strings.Builder
	b.WriteString(head)
	_, hunks, _ := strings.Cut(string(diff.Diff(f.Path, []byte(f.Before), f.Path, []byte(f.Content))), "\n+++ "+f.Path+"\n")
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
		err = preview.CheckName(name)
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
