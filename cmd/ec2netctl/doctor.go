package main

import (
	"cmp"
	"context"
	"fmt"
	"maps"
	"os"
	"path"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"time"

	"ec2netd/service/conflict"
	"ec2netd/service/file"
	"ec2netd/service/kernel"
	"ec2netd/service/metadata"
	"ec2netd/service/networkd"
	"ec2netd/service/plan"
	"ec2netd/service/platform"
	"ec2netd/service/state"
	"ec2netd/service/store"
)

// The levels of a finding. Only problems make doctor fail.
const (
	levelOK      = "ok"
	levelWarning = "warning"
	levelProblem = "problem"
)

// finding is what doctor says of one thing.
type finding struct {
	// Check names the thing: platform, ec2netd, configuration, eni, conflict, metadata, unit, file,
	// dns, systemd, nexthop, rp_filter, group, published.
	Check string `json:"check"`
	Level string `json:"level"`
	Text  string `json:"text"`
	// Advice is what to do, empty where nothing is to be done.
	Advice string `json:"advice"`
}

// symptoms are what doctor found out. What they mean is for diagnose to say.
type symptoms struct {
	// state of ec2netd, or nil and why there is none, with what to do.
	state           *state.State
	silence, remedy string
	// waits is what the next boot changes, if that is what ec2netd waits for.
	waits bootWait
	// notEC2 says why ec2netd has nothing to do on this machine; empty where it has.
	notEC2 string
	// mistakes in the configuration.
	mistakes  []string
	conflicts []state.Conflict
	// probes are the ways to the metadata service that were tried; nil: not as root.
	probes []probe
	units  []unitStatus
	// busError says why systemd could not be asked for units.
	busError string
	// systemd is its version, or empty.
	systemd string
	// missing are files of the installation, and masked is the base unit if that is masked.
	missing []string
	masked  string
	// filters is the reverse path filter in force of each ENI.
	filters []filter
	// groups are those of the links of ENIs, by name.
	groups map[string]int
	// nextHops is how many next hop objects of others there are.
	nextHops int
	// bridges are links behind which containers or virtual machines can be, on a host that
	// forwards. marked are the tables that rules by firewall mark lead to.
	bridges []string
	marked  map[int]bool
	// resolv is what /etc/resolv.conf says.
	resolv resolvConf
	// unmatched are directories of drop-ins for links that no ENI has the name of, and unused the
	// [ENI] sections that hold for none.
	unmatched, unused []string
}

type probe struct {
	path  metadata.Path
	took  time.Duration
	error string
}

// unitStatus is a unit as systemctl list-unit-files and systemctl status tell it.
type unitStatus struct{ name, load, active, enabled, preset string }

type filter struct {
	link string
	mode int
}

// instance is the ID of the instance, empty if the daemon has not told it.
func (s *symptoms) instance() string {
	if s.state == nil {
		return ""
	}
	return s.state.InstanceID
}

// metricsSocket is for monitoring alone.
const metricsSocket = "ec2netd-metrics.socket"

// needed are the units that ec2netd needs, or is: those that the presets enable.
var needed = []string{
	"systemd-networkd.service", "systemd-networkd-wait-online.service", "systemd-resolved.service", "ec2netd.service", "ec2netd.socket", metricsSocket,
}

// installAgain is what to do where a file of the installation is missing: to install it is nothing to
// do for a package manager that has it installed.
const installAgain = "install ec2netd again: apt-get install --reinstall PACKAGE, dnf reinstall PACKAGE, or make install"

// runs tells whether a unit must be active, for the others to be of use.
func runs(unit string) bool {
	return unit == "systemd-networkd.service" || unit == "ec2netd.socket" || unit == metricsSocket
}

// doctor says what keeps ec2netd from its work, and what to do.
func (c *ctl) doctor(ctx context.Context) error {
	stop := c.progress("Looking around")
	found, err := c.examine(ctx)
	stop()
	if err != nil {
		return err
	}
	findings := diagnose(found)
	problems := 0
	for _, f := range findings {
		if f.Level == levelProblem {
			problems++
		}
	}
	if c.wantsJSON() {
		err = c.printJSON(struct {
			Problems int       `json:"problems"`
			Findings []finding `json:"findings"`
		}{problems, findings})
	} else {
		err = c.page(c.describeFindings(findings))
	}
	if err == nil && problems > 0 {
		err = errSilent
	}
	return err
}

// examine looks at everything. What cannot be looked at is a symptom too.
func (c *ctl) examine(ctx context.Context) (*symptoms, error) {
	s, err := c.look()
	if err != nil {
		return nil, err
	}
	found := &symptoms{}
	for _, p := range s.config.Problems {
		found.mistakes = append(found.mistakes, p.String())
	}
	if _, found.state, err = c.describe(ctx); err != nil {
		found.silence = err.Error()
		if a, ok := asAdvice(err); ok {
			found.remedy = a.hint
		}
	}
	if s.notEC2 != "" && (found.state == nil || found.state.State == state.Unsupported) {
		// Nothing else has to be so here, and no other machine's service is asked.
		found.notEC2 = s.notEC2
		return found, nil
	}
	if found.state == nil {
		if found.waits = c.waitsForBoot(); found.waits.owner != "" {
			// What is not as it shall be is so until then.
			return found, nil
		}
	}
	bus := &networkd.Client{Root: c.root}
	defer bus.Close()
	found.systemd = bus.Version(ctx)
	looker := conflict.Looker{Root: c.root, Units: bus.ActiveUnits, Drivers: s.config.Drivers}
	links := make([]conflict.Link, 0, len(s.kernel.Links))
	found.groups = make(map[string]int)
	drivers := make(map[string]string)
	for _, l := range s.kernel.Links {
		drivers[l.Name] = l.Driver
		links = append(links, conflict.Link{Index: l.Index, Name: l.Name, MAC: l.MAC})
		found.groups[l.Name] = l.Group
		found.filters = append(found.filters, filter{l.Name, max(c.filterMode("all"), c.filterMode(l.Name))})
	}
	if found.nextHops, err = kernel.NextHops(); err != nil {
		return nil, err
	}
	found.bridges, found.marked = c.bridges(), make(map[int]bool)
	for _, rule := range s.kernel.Rules {
		if rule.Mark != 0 {
			found.marked[rule.Table] = true
		}
	}
	found.conflicts = conflict.Find(looker.Look(ctx, links))
	if found.units, err = unitsOf(ctx, bus); err != nil {
		found.busError = err.Error()
	}
	found.resolv = c.readResolvConf()
	found.unmatched = c.unmatched(slices.Collect(maps.Keys(drivers)))
	if found.state != nil {
		found.unused = forNone(s.config.ENIs, identities(found.state, drivers))
	}
	base, _ := s.store.Base()
	if unit := s.store.Look(store.BaseName); unit.Masked {
		base, found.masked = "", unit.Path
	}
	for _, file := range []string{base, "/usr/lib/systemd/networkd.conf.d/80-ec2netd.conf"} {
		if file != "" && s.store.Read(file) == "" {
			found.missing = append(found.missing, file)
		}
	}
	if c.uid == 0 {
		primary := ""
		if found.state != nil {
			for i := range found.state.Interfaces {
				if found.state.Interfaces[i].Primary {
					primary = found.state.Interfaces[i].MAC
				}
			}
		}
		found.probes = probeAll(ctx, s.paths(primary), found.instance())
	}
	return found, nil
}

// probeAll tries each way to the metadata service. systemd-imdsd, which a call starts, is
// asked only where no direct way gives an answer.
func probeAll(ctx context.Context, paths []metadata.Path, instance string) []probe {
	direct := slices.DeleteFunc(slices.Clone(paths), func(p metadata.Path) bool { return p.Socket != "" })
	probes := make([]probe, len(direct))
	var all sync.WaitGroup
	for i, p := range direct {
		all.Go(func() { probes[i] = probeOne(ctx, p, instance) })
	}
	all.Wait()
	if slices.ContainsFunc(probes, func(p probe) bool { return p.error == "" }) {
		return probes
	}
	for _, p := range paths {
		if _, err := os.Stat(p.Socket); p.Socket != "" && err == nil {
			return append(probes, probeOne(ctx, p, instance))
		}
	}
	return probes
}

// probeOne tries one way, with a client of its own: the ways would share a token, and all wait for
// it where it is asked for on one that hangs.
func probeOne(ctx context.Context, path metadata.Path, instance string) probe {
	client := metadata.NewClient(metadata.Options{UserAgent: "ec2netctl/" + currentVersion()})
	defer client.CloseIdle()
	client.SetInstance(instance)
	p, began := probe{path: path}, time.Now()
	if err := client.Probe(ctx, path); err != nil {
		p.error = err.Error()
	}
	p.took = time.Since(began)
	return p
}

// filterMode is the reverse path filter of a link, see rp_filter in the kernel's
// ip-sysctl.rst: 0 none, 1 strict, 2 loose. The greater of that of the link and of "all"
// is in force.
func (c *ctl) filterMode(link string) int {
	text, err := file.Read(filepath.Join("/", c.root, "proc/sys/net/ipv4/conf", link, "rp_filter"), file.Limit)
	if err != nil {
		return 0
	}
	mode, _ := strconv.Atoi(strings.TrimSpace(text))
	return mode
}

// bridges are the names of the bridges of a host that forwards.
func (c *ctl) bridges() []string {
	text, err := file.Read(filepath.Join("/", c.root, "proc/sys/net/ipv4/ip_forward"), file.Limit)
	if err != nil || strings.TrimSpace(text) == "0" {
		return nil
	}
	dir := filepath.Join("/", c.root, "sys/class/net")
	names, _ := file.List(dir, "*")
	return slices.DeleteFunc(names, func(name string) bool {
		_, err := os.Stat(filepath.Join(dir, name, "bridge"))
		return err != nil
	})
}

// busTime bounds the questions to systemd.
const busTime = 10 * time.Second

// unitsOf asks systemd for the needed units.
func unitsOf(ctx context.Context, bus *networkd.Client) ([]unitStatus, error) {
	ctx, cancel := context.WithTimeout(ctx, busTime)
	defer cancel()
	var units []unitStatus
	for _, name := range needed {
		unit, err := bus.Unit(ctx, name)
		if err != nil {
			return nil, err
		}
		units = append(units, unitStatus{name, unit.Load, unit.Active, unit.File, unit.Preset})
	}
	return units, nil
}

// nextHopsKept is the version of systemd that knows ManageForeignNextHops= (F6).
const nextHopsKept = 256

// diagnose says what symptoms mean.
func diagnose(s *symptoms) []finding {
	var d diagnosis
	if s.notEC2 != "" {
		d.warn("platform", platform.Advice, "%s: ec2netd configures nothing", s.notEC2)
		d.mistakes(s.mistakes)
		return d.findings
	}
	if s.waits.owner != "" {
		d.warn("ec2netd", takeOverNow, "%s", s.waits.owner)
		if others := s.waits.others(); others != "" {
			d.warn("unit", leftAdvice, "%s", others)
		}
		d.mistakes(s.mistakes)
		return d.findings
	}
	d.daemon(s)
	d.mistakes(s.mistakes)
	d.enis(s.state)
	for _, c := range s.conflicts {
		d.problem("conflict", c.Advice, "%s configures ENIs too: %s", c.Name, strings.Join(c.Evidence, ", "))
	}
	if len(s.conflicts) == 0 {
		d.ok("conflict", "nothing else configures ENIs")
	}
	d.metadata(s)
	d.units(s)
	if s.masked != "" {
		// Not "ec2netctl refresh": no link may have an address to ask the metadata service from.
		advice := "rm " + s.masked + " && networkctl reload"
		if strings.HasPrefix(s.masked, "/usr/") {
			advice = installAgain + "; then: networkctl reload"
		}
		d.problem("file", advice, "%s masks the base unit: networkd has no unit for ENIs", s.masked)
	}
	for _, file := range s.missing {
		const again = installAgain + "; then: "
		switch path.Base(file) {
		case store.BaseName:
			d.problem("file", again+"networkctl reload", "%s is missing: networkd has no unit for ENIs", file)
		default:
			d.problem("file", again+"systemctl restart systemd-networkd.service", "%s is missing: networkd takes away routes and rules of others", file)
		}
	}
	d.sections(s.unused)
	d.unmatched(s.unmatched)
	d.resolvConf(s.resolv)
	d.version(s.systemd)
	if major, _ := systemdVersion(s.systemd); s.nextHops > 0 && major < nextHopsKept {
		d.warn("nexthop", "have routes without them, in FRR by \"no zebra nexthop kernel enable\" and, for static ones, \"onlink\"; restart it and remove what it has left: "+
			"\"ip nexthop flush protocol 11\". Or update to systemd 256 or later",
			"%d of the next hops (ip nexthop) are others': networkd %s deletes them when it configures a link", s.nextHops, s.systemd)
	}
	d.filters(s.filters)
	d.groups(s)
	d.published(s)
	return d.findings
}

type diagnosis struct{ findings []finding }

func (d *diagnosis) add(level, check, advice, format string, args ...any) {
	d.findings = append(d.findings, finding{Check: check, Level: level, Text: fmt.Sprintf(format, args...), Advice: advice})
}

func (d *diagnosis) ok(check, format string, args ...any) { d.add(levelOK, check, "", format, args...) }

func (d *diagnosis) warn(check, advice, format string, args ...any) {
	d.add(levelWarning, check, advice, format, args...)
}

func (d *diagnosis) problem(check, advice, format string, args ...any) {
	d.add(levelProblem, check, advice, format, args...)
}

func (d *diagnosis) daemon(s *symptoms) {
	if s.state == nil {
		d.problem("ec2netd", s.remedy, "%s", s.silence)
		return
	}
	said := fmt.Sprintf("%s answers: %s", s.state.Version, s.state.State)
	if s.state.Reason != "" {
		said += " (" + strings.Join(strings.Fields(s.state.Reason), " ") + ")"
	}
	switch s.state.State {
	case state.Configured:
		d.ok("ec2netd", "%s", said)
	case state.Unsupported:
		d.problem("ec2netd", "the configuration has changed since it was started: systemctl restart ec2netd.service", "%s", said)
	case state.Starting:
		d.warn("ec2netd", "if it stays so: journalctl -u ec2netd.service", "%s", said)
	default:
		d.problem("ec2netd", "see what else is found, and journalctl -u ec2netd.service", "%s", said)
	}
}

func (d *diagnosis) mistakes(all []string) {
	for _, mistake := range all {
		d.problem("configuration", "correct it, then: systemctl restart ec2netd.service", "%s", mistake)
	}
}

func (d *diagnosis) enis(s *state.State) {
	if s == nil {
		return
	}
	if len(s.Interfaces) == 0 {
		d.problem("eni", "give their driver, which networkctl status NAME shows, as Driver= in [Match] of ec2netd.conf(5), and of a drop-in of 80-ec2.network, then: systemctl reload ec2netd && networkctl reload", "no link is an ENI")
	}
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		name := e.ID()
		if e.Name != "" {
			name = e.Name + " (" + name + ")"
		}
		text := fmt.Sprintf("%s is %s", name, e.State)
		if e.Reason != "" {
			text += ": " + strings.Join(strings.Fields(e.Reason), " ")
		}
		more := "ec2netctl diff " + cmp.Or(e.Name, e.ID()) + " shows what differs"
		switch e.State {
		case state.ENIConfigured:
			if e.IPv6NotApplicable != "" {
				text += "; " + ipv6Words(e)
			}
			if e.Reason == "" {
				d.ok("eni", "%s", text)
			} else {
				d.warn("eni", "", "%s", text)
			}
		case state.ENIUnmanaged:
			d.ok("eni", "%s", text)
		case state.ENIConfiguring, state.ENIOverridden:
			// It is on its way there, or as somebody wants it.
			d.warn("eni", more, "%s", text)
		default:
			d.problem("eni", more, "%s", text)
		}
	}
}

func (d *diagnosis) metadata(s *symptoms) {
	command := "aws ec2 describe-instances"
	if id := s.instance(); id != "" {
		command += " --instance-ids " + id
	}
	advice := "see the metadata options of the instance (" + command + ", MetadataOptions: HttpEndpoint must be enabled) and packet filters"
	if s.probes == nil {
		switch {
		case s.state == nil:
			d.warn("metadata", "run ec2netctl doctor as root", "nobody could be asked whether the metadata service answers")
		case s.state.Metadata.LastError != "":
			d.problem("metadata", advice+"; ec2netctl doctor tries each way as root", "%s", s.state.Metadata.LastError)
		default:
			d.ok("metadata", "%s answers ec2netd; as root each way is tried", cmp.Or(s.state.Metadata.Endpoint, "the service"))
		}
		return
	}
	answered := slices.ContainsFunc(s.probes, func(p probe) bool { return p.error == "" })
	for _, p := range s.probes {
		switch {
		case p.error == "":
			d.ok("metadata", "%s answers in %d ms", p.path, p.took.Milliseconds())
		case answered && p.path.Endpoint == metadata.EndpointIPv6:
			d.ok("metadata", "%s does not answer, and need not: %s", p.path, p.error)
		case answered:
			d.warn("metadata", "nothing, as long as another way answers; else "+advice, "%s", p.error)
		default:
			d.problem("metadata", advice, "%s", p.error)
		}
	}
	if len(s.probes) == 0 {
		d.problem("metadata", "see networkctl status", "no ENI has an address to ask the metadata service from")
	}
}

func (d *diagnosis) units(s *symptoms) {
	if s.busError != "" {
		d.problem("unit", "see systemctl status dbus.service", "systemd cannot be asked for its units: %s", s.busError)
		return
	}
	for _, u := range s.units {
		preset, start := "systemctl preset "+u.name, "systemctl start "+u.name
		enable := "systemctl enable --now " + u.name // whatever the presets say
		switch {
		case u.name == "systemd-networkd-wait-online.service":
			enable = "systemctl enable " + u.name // it is for boots
		case strings.HasPrefix(u.name, "ec2netd") && path.Ext(u.name) == ".socket":
			// A socket is not started while its service runs. The service wants its sockets, and is
			// started after them. One that was masked meanwhile may be active and not listen.
			start = "systemctl restart ec2netd.service"
			enable = "systemctl enable " + u.name + " && systemctl stop " + u.name + " && " + start
		}
		complain := d.problem
		if u.name == metricsSocket {
			complain = d.warn
		}
		enabled := strings.HasPrefix(u.enabled, "enabled") || u.enabled == "static" || u.enabled == "alias" || u.enabled == "linked"
		switch {
		case u.enabled == "masked-runtime":
			complain("unit", "systemctl unmask --runtime "+u.name+" && "+enable, "%s is masked until the next boot", u.name)
		case u.load == "masked" || u.enabled == "masked":
			complain("unit", "systemctl unmask "+u.name+" && "+enable, "%s is masked", u.name)
		case u.load == "not-found" && u.name == "systemd-resolved.service":
			d.warn("unit", "install it, or have something else take the name servers of networkd's leases", "%s is not installed", u.name)
		case u.load == "not-found":
			complain("unit", "install it", "%s is not installed", u.name)
		case u.preset == "disabled":
			complain("unit", "see which file in /etc, /run and /usr/lib/systemd/system-preset names it before 80-ec2netd.preset does, and correct or remove it, then: "+preset,
				"%s is disabled by the presets, which are to enable it", u.name)
		case !enabled:
			complain("unit", preset+" && "+start, "%s is %s, though the presets enable it", u.name, cmp.Or(u.enabled, "not enabled"))
		case u.active == "failed":
			complain("unit", "systemctl status "+u.name, "%s has failed", u.name)
		case runs(u.name) && u.active != "active":
			complain("unit", start, "%s is %s", u.name, u.active)
		default:
			d.ok("unit", "%s is %s and %s", u.name, u.enabled, u.active)
		}
	}
}

// version says what the version of systemd implies, see the tables in service/docs/how-it-works.md.
func (d *diagnosis) version(text string) {
	major, minor := systemdVersion(text)
	switch {
	case text == "":
		d.warn("systemd", "see systemctl --version; ec2netd needs 252 or later", "its version could not be asked for")
	case major < 252:
		d.problem("systemd", "ec2netd needs 252 or later", "%s is too old", text)
	case major < 256:
		d.ok("systemd", "%s: the first change of the primary ENI after its first boot costs its IPv6 some 0.1 s; addresses and next hops of others do not survive a change of their ENI", text)
	case major == 257 && minor < 3:
		d.warn("systemd", "update to 257.3 or later", "%s sets policy rules late", text)
	case major >= 261:
		d.ok("systemd", "%s: does not read a unit that has a masked drop-in; can keep others from the metadata service, ec2netd asks systemd-imdsd then", text)
	default:
		d.ok("systemd", "%s", text)
	}
}

// systemdVersion is the version and the number of the stable update, as in
// "257.13-1~deb13u1", "v252.39" or "systemd 262.1"; 0 for what is not there.
func systemdVersion(text string) (major, minor int) {
	digits := func(s string) (int, string) {
		end := strings.IndexFunc(s, func(r rune) bool { return r < '0' || r > '9' })
		if end < 0 {
			end = len(s)
		}
		n, _ := strconv.Atoi(s[:end])
		return n, s[end:]
	}
	text = strings.TrimLeftFunc(text, func(r rune) bool { return r < '0' || r > '9' })
	major, rest := digits(text)
	if update, ok := strings.CutPrefix(rest, "."); ok {
		minor, _ = digits(update)
	}
	return major, minor
}

func (d *diagnosis) filters(filters []filter) {
	var strict []string
	for _, f := range filters {
		if f.mode == 1 {
			strict = append(strict, f.link)
		}
	}
	if len(strict) == 0 {
		d.ok("rp_filter", "no ENI has strict reverse path filtering")
		return
	}
	var settings []string
	for _, link := range strict {
		settings = append(settings, "net.ipv4.conf."+strings.ReplaceAll(link, ".", "/")+".rp_filter=2")
	}
	d.warn("rp_filter", "loose filtering will do: sysctl -w "+strings.Join(settings, " ")+", and the same in a file in /etc/sysctl.d",
		"strict reverse path filtering on %s: what comes in for an address without a policy rule, of a container for one, is dropped where its answer would go out elsewhere",
		strings.Join(strict, ", "))
}

// groups says which ENIs keep the rules from being set by which the host's own networks reach
// the addresses of ENIs (B9): their links are not in the group, and ec2netd's unit, which would
// put them there, is not in force.
func (d *diagnosis) groups(s *symptoms) {
	if s.state == nil {
		return
	}
	var without, advice []string
	served := false
	for i := range s.state.Interfaces {
		e := &s.state.Interfaces[i]
		switch e.State {
		case state.ENIShadowed, state.ENIOverridden, state.ENIUnmanaged:
		default:
			served = served || !e.Primary
			continue
		}
		switch group, there := s.groups[e.Name]; {
		case !there || group == plan.Group:
			continue
		case e.NetworkFile == "":
			advice = append(advice, fmt.Sprintf("ip link set dev %s group %d, at each boot", e.Name, plan.Group))
		default:
			advice = append(advice, fmt.Sprintf("Group=%d in [Link] of /etc/systemd/network/%s.d/group.conf, then: networkctl reload", plan.Group, path.Base(e.NetworkFile)))
		}
		without = append(without, e.Name)
	}
	if served && len(without) > 0 {
		d.warn("group", strings.Join(advice, "; "),
			"containers, bridges and VPNs of the host do not reach the addresses of ENIs, since these are not in the group of ENIs: %s", strings.Join(without, ", "))
	}
}

// published says that answers of containers leave by the primary ENI, whatever ENI the question
// came in by (B12). Which ports are published only packet filters know.
func (d *diagnosis) published(s *symptoms) {
	if s.state == nil || len(s.bridges) == 0 {
		return
	}
	var without []string
	for i := range s.state.Interfaces {
		if e := &s.state.Interfaces[i]; !e.Primary && e.State == state.ENIConfigured && e.Table > 0 && !s.marked[e.Table] {
			without = append(without, cmp.Or(e.Name, e.ID()))
		}
	}
	if len(without) == 0 {
		d.ok("published", "answers of what is behind %s leave by the ENI that its FirewallMark= says", strings.Join(s.bridges, ", "))
		return
	}
	d.warn("published", "nothing, as long as no port is published (DNAT) on an address of theirs; else see FirewallMark= in ec2netd.conf(5)",
		"containers and virtual machines behind %s answer by the primary ENI what comes in by %s, and the VPC drops that",
		strings.Join(s.bridges, ", "), strings.Join(without, ", "))
}

// describeFindings are findings in words.
func (c *ctl) describeFindings(findings []finding) string {
	rows := make([][]cell, 0, len(findings))
	counts := make(map[string]uint64)
	for _, f := range findings {
		counts[f.Level]++
		colour := map[string]colour{levelOK: green, levelWarning: yellow, levelProblem: red}[f.Level]
		said := []string{f.Text}
		if f.Advice != "" {
			said = append(said, "→ "+f.Advice)
		}
		rows = append(rows, []cell{text(f.Level).in(colour), text(f.Check), lines(said)})
	}
	end := "Nothing to do."
	if counts[levelProblem]+counts[levelWarning] > 0 {
		end = count(counts[levelProblem], "problem") + ", " + count(counts[levelWarning], "warning") + "."
		if c.uid != 0 {
			end += "\nCommands that change something are for root."
		}
	}
	return table(rows, c.width, c.colour) + "\n" + end + "\n"
}
