package doctor

import (
	"context"
	"time"

	"ec2netd/service/config"
	"ec2netd/service/conflict"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/state"
	"ec2netd/service/unitfile"
)

// System asks systemd and networkd; [networkd.Client] implements it.
type System interface {
	// Version returns that of systemd, empty if systemd does not answer.
	Version(ctx context.Context) string
	// ActiveUnits returns the names of the units that patterns match and that are active.
	ActiveUnits(ctx context.Context, patterns []string) ([]string, error)
	// Unit returns what systemd says of a unit.
	Unit(ctx context.Context, name string) (networkd.UnitState, error)
	// Link returns what networkd says of the link with an index.
	Link(index int) networkd.LinkState
}

// NetworkFiles reads the unit files of networkd; [unitfile.Tree] implements it.
type NetworkFiles interface {
	// Base returns the path of the base unit that is in force.
	Base() (unit string, dropIns []string)
	// Look returns the unit of a name that is in force.
	Look(name string) unitfile.Unit
	// Read returns the content of a unit file, empty if there is none.
	Read(path string) string
}

// Examiner examines a machine. All fields are needed but those that say otherwise.
type Examiner struct {
	// Root is put before every path; empty for the system.
	Root string
	// Config is the configuration, and Kernel what the kernel has.
	Config config.Config
	Kernel *kernel.Snapshot
	// NotEC2 says why this machine is no EC2 instance; empty for one that is.
	NotEC2 string
	// Daemon is what ec2netd has answered. Elsewhere reports whether Daemon is another system's
	// ec2netd.
	Daemon    Daemon
	Elsewhere bool

	// System asks systemd and networkd of this machine. NetworkFiles reads networkd's unit files below Root.
	System       System
	NetworkFiles NetworkFiles
	// NextHops counts the next hop objects that are not networkd's.
	NextHops func() (int, error)
	// Ways returns the ways to the metadata service, the best first. Primary is the MAC address of the
	// primary ENI, or empty. Nil for an ordinary user, who may not try them.
	Ways func(primary string) []metadata.Path
	// UserAgent is that of the requests to the metadata service.
	UserAgent string
}

// Facts are what an [Examiner] has found. [Diagnose] judges them.
type Facts struct {
	// Daemon is what ec2netd has answered.
	Daemon Daemon
	// UntilBoot is what the next boot changes, if ec2netd waits for it.
	UntilBoot UntilBoot
	// NotEC2 says why ec2netd has nothing to do on this machine; empty where it has.
	NotEC2 string
	// Mistakes are those in the configuration. UnusedSections are the [ENI] sections that hold for no
	// ENI, as FILE:LINE.
	Mistakes, UnusedSections []string
	Conflicts                []state.Conflict
	// Probes are the ways to the metadata service that were tried; nil if none was, as for an ordinary
	// user.
	Probes []Probe
	// Units are those that the presets enable. UnitsError says why systemd has not told of them.
	Units      []networkd.UnitState
	UnitsError string
	// Systemd is its version, or empty.
	Systemd string
	// MissingFiles are files of the installation. MaskedBase is the base unit if that is masked.
	MissingFiles []string
	MaskedBase   string
	// UnmatchedDropIns are directories of drop-ins for links that no ENI has the name of.
	UnmatchedDropIns []string
	NameServers      NameServers
	Links            []Link
	// NextHops is how many next hop objects of others there are.
	NextHops int
	// Bridges are links behind which containers or virtual machines can be, on a host that forwards.
	// MarkedTables are the routing tables that rules by firewall mark lead to.
	Bridges      []string
	MarkedTables map[int]bool
}

// Link is the link of an ENI.
type Link struct {
	Name string
	// Group is its link group.
	Group int
	// ReversePath is the mode of the reverse path filter that is in force, see [strict].
	ReversePath int
}

// systemdTime bounds the questions to systemd about units.
const systemdTime = 10 * time.Second

// Examine looks at the machine. That something cannot be looked at is a fact too; it is an error only
// where the kernel does not answer.
func (x *Examiner) Examine(ctx context.Context) (*Facts, error) {
	f := &Facts{Daemon: x.Daemon}
	for _, p := range x.Config.Problems {
		f.Mistakes = append(f.Mistakes, p.String())
	}
	told := x.Daemon.State
	if x.NotEC2 != "" && (told == nil || told.State == state.Unsupported) {
		// No other machine's service is asked.
		f.NotEC2 = x.NotEC2
		return f, nil
	}
	if told == nil && !x.Elsewhere {
		if f.UntilBoot = LookUntilBoot(x.Root, x.Kernel.Links, x.System.Link); f.UntilBoot.Owner != "" {
			return f, nil
		}
	}
	f.Systemd = x.System.Version(ctx)
	if err := x.lookAtKernel(f); err != nil {
		return nil, err
	}
	x.lookAtFiles(f)
	looker := conflict.Looker{Root: x.Root, Units: x.System.ActiveUnits, Drivers: x.Config.Drivers}
	f.Conflicts = conflict.Find(looker.Look(ctx, linksOf(x.Kernel.Links)))
	var err error
	if f.Units, err = x.unitStates(ctx); err != nil {
		f.UnitsError = err.Error()
	}
	if x.Ways != nil {
		f.Probes = probeAll(ctx, x.Ways(x.Daemon.primary()), x.Daemon.instance(), x.UserAgent)
	}
	return f, nil
}

// lookAtKernel collects the facts about links, rules and next hops.
func (x *Examiner) lookAtKernel(f *Facts) error {
	for i := range x.Kernel.Links {
		l := &x.Kernel.Links[i]
		f.Links = append(f.Links, Link{Name: l.Name, Group: l.Group, ReversePath: reversePathOf(x.Root, l.Name)})
	}
	f.Bridges, f.MarkedTables = bridges(x.Root), make(map[int]bool)
	for i := range x.Kernel.Rules {
		if rule := &x.Kernel.Rules[i]; rule.Mark != 0 {
			f.MarkedTables[rule.Table] = true
		}
	}
	var err error
	f.NextHops, err = x.NextHops()
	return err
}

// lookAtFiles collects the facts about the files of the installation and of the administrator.
func (x *Examiner) lookAtFiles(f *Facts) {
	f.MissingFiles, f.MaskedBase = missingFiles(x.Root, x.NetworkFiles)
	f.NameServers = readNameServers(x.Root)
	f.UnmatchedDropIns = findUnmatched(x.Root, f.Links)
	if x.Daemon.State != nil {
		f.UnusedSections = forNone(x.Config.ENIs, identities(x.Daemon.State, x.Kernel.Links))
	}
}

// unitStates asks systemd for the units that the presets enable.
func (x *Examiner) unitStates(ctx context.Context) ([]networkd.UnitState, error) {
	ctx, cancel := context.WithTimeout(ctx, systemdTime)
	defer cancel()
	var all []networkd.UnitState
	for _, name := range needed {
		unit, err := x.System.Unit(ctx, name)
		if err != nil {
			return nil, err
		}
		all = append(all, unit)
	}
	return all, nil
}

// linksOf returns links as package conflict takes them.
func linksOf(links []kernel.Link) []conflict.Link {
	all := make([]conflict.Link, 0, len(links))
	for i := range links {
		l := &links[i]
		all = append(all, conflict.Link{Index: l.Index, Name: l.Name, MAC: l.MAC})
	}
	return all
}
