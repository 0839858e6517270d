package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ec2netd/api"
	"ec2netd/service/state"
	"ec2netd/service/takeover"
)

// ctl is what the commands share.
type ctl struct {
	environment
	// The flags.
	address string
	json    string
	full    bool
	lines   int
	noPager bool
	timeout span // 0: what is usual
	// deaf: what was printed may have reached nobody.
	deaf bool
}

// help is the template of what --help prints.
const help = `{{with (or .Long .Short)}}{{. | trimTrailingWhitespaces}}

{{end}}{{if or .Runnable .HasSubCommands}}{{.UsageString}}{{end}}
Exit codes:
  0  done
  1  {{or .Annotations.failure "failed: ec2netd is not there, refused, did not finish, or knows no such ENI"}}
  2  {{or .Annotations.usage "called wrongly"}}

Environment:
  NO_COLOR              no colours, if set to anything
  SYSTEMD_PAGER, PAGER  cat for no pager on a terminal; for another, see ec2netctl(1)
`

func newRoot(env environment) *cobra.Command {
	c := &ctl{environment: env}
	root := &cobra.Command{
		Use:   "ec2netctl",
		Short: "Show and refresh the network configuration of an EC2 instance",
		Long: `ec2netctl shows what ec2netd makes of the elastic network interfaces (ENIs) of
this EC2 instance, and asks it to look at the instance metadata again. Without a
command it does what status does.

An ENI can be given by its ID, MAC address, interface name, altname or interface
index.`,
		Example: `  ec2netctl                               all ENIs
  ec2netctl status ens6                   one ENI in full
  ec2netctl status --json=short | jq '.interfaces[].addresses'
  sudo ec2netctl refresh --wait           apply what has just been changed in EC2
  ec2netctl dump-metadata > FILE          save the metadata
  ec2netctl plan --metadata FILE          and see elsewhere what would be made of it`,
		Version:       currentVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
		Args:          cobra.NoArgs,
		RunE:          c.run(c.status),
	}
	root.SetVersionTemplate("ec2netctl {{.Version}}\n")
	root.SetHelpTemplate(help)
	c.addFlags(root)
	c.addFull(root)
	root.AddCommand(
		c.newTakeover(), c.newStatus(), c.newList(), c.newShow(), c.newDiff(), c.newDoctor(), c.newRefresh(), c.newMonitor(),
		c.newWaitOnline(), c.newPlan(), c.newDump(), c.newMetrics(), c.newHostname(),
	)
	for _, cmd := range root.Commands() {
		if cmd.ValidArgsFunction == nil {
			cmd.ValidArgsFunction = cobra.NoFileCompletions
		}
	}
	strict(root)
	return root
}

// addFlags adds the flags of all commands.
func (c *ctl) addFlags(root *cobra.Command) {
	f := root.PersistentFlags()
	f.Var(&jsonFlag{&c.json}, "json", "print JSON: pretty, short or off")
	f.Lookup("json").NoOptDefVal = "pretty"
	f.Var(&c.timeout, "timeout", "how long to wait for ec2netd, in seconds or with a unit as in 2min (default 10; 30 for refresh, 120 with --wait)")
	f.BoolVar(&c.noPager, "no-pager", false, "do not pipe long output into a pager")
	f.StringVar(&c.address, "address", api.VarlinkSocket, "socket of ec2netd")
	f.Lookup("address").Hidden = true
	must(root.RegisterFlagCompletionFunc("json", cobra.FixedCompletions([]string{"pretty", "short", "off"}, cobra.ShellCompDirectiveNoFileComp)))
	must(root.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions))
}

// addFull adds --full to a command that shows the table of ENIs.
func (c *ctl) addFull(cmd *cobra.Command) {
	cmd.Flags().BoolVarP(&c.full, "full", "l", false, "show all addresses of an ENI in the table, however many")
}

func (c *ctl) newStatus() *cobra.Command {
	cmd := &cobra.Command{
		Use:   "status [ENI...]",
		Short: "Show all ENIs in a table, or some in full",
		Long: `status shows how ec2netd is, and each ENI: its device index in EC2 (with the network
card behind a dot on instances that have several), addresses, delegated prefixes,
routing table, route metric, state, and the reason for that state.

For each ENI that is given it shows all that is known, and what ec2netd logged about
it last, as far as the caller may read the journal.

The states of an ENI:
  configured   the kernel has all that the metadata says
  configuring  the files are written, systemd-networkd applies them
  pending      the metadata of this ENI is not complete yet
  shadowed     systemd-networkd uses another .network file for the link, not one of
               netplan or cloud-init
  overridden   a file of the administrator takes the place of ec2netd's, the link was set
               down by hand, or it is a port of a bridge or bond
  contested    somebody deletes again and again what the ENI needs; it is put back
  unmanaged    the configuration, or systemd-networkd, leaves the link alone
  degraded     the kernel lacks what the metadata says, and time for it is up`,
		ValidArgsFunction: c.completeENI,
		RunE:              c.run(c.status),
	}
	c.addFull(cmd)
	cmd.Flags().IntVarP(&c.lines, "lines", "n", 10, "lines of the journal to show of an ENI")
	must(cmd.RegisterFlagCompletionFunc("lines", cobra.NoFileCompletions))
	return cmd
}

func (c *ctl) newList() *cobra.Command {
	return &cobra.Command{
		Use:   "list",
		Short: "List the ENIs, one a line",
		Args:  noArgs,
		RunE:  c.run(c.list),
	}
}

func (c *ctl) newRefresh() *cobra.Command {
	var wait bool
	cmd := &cobra.Command{
		Use:   "refresh [ENI]",
		Short: "Read the metadata now and apply what changed (as root)",
		Long: `refresh makes ec2netd read the instance metadata now, rather than at its next turn,
and says what changed; with an ENI, the metadata of that one. With --wait it returns when
the kernel has the change, and fails if that takes too long.`,
		Args: atMostOne,
		ValidArgsFunction: func(cmd *cobra.Command, args []string, word string) ([]string, cobra.ShellCompDirective) {
			if len(args) > 0 {
				return nil, cobra.ShellCompDirectiveNoFileComp
			}
			return c.completeENI(cmd, args, word)
		},
		RunE: c.run(func(ctx context.Context, args []string) error { return c.refresh(ctx, args, wait) }),
	}
	cmd.Flags().BoolVar(&wait, "wait", false, "wait until the change is in the kernel")
	return cmd
}

func (c *ctl) newMonitor() *cobra.Command {
	return &cobra.Command{
		Use:   "monitor",
		Short: "Print what changes, until interrupted",
		Long: `monitor prints the state of each ENI, and then a line for each change: of a state, of
its reason, of addresses and prefixes, ENIs that come and go. With --json it prints the
whole state, as status does, each time that something changed; --json=short has one a
line. It goes on when ec2netd is restarted.`,
		Args: noArgs,
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.watch(ctx) }),
	}
}

func (c *ctl) newDump() *cobra.Command {
	return &cobra.Command{
		Use:   "dump-metadata",
		Short: "Print the instance metadata that plan --metadata takes",
		Long: `dump-metadata reads from the instance metadata service what it says of the ENIs (the
keys below network/interfaces/macs/), the keys mac, instance-id, instance-type and
local-hostname, and prints it as JSON, with the names and drivers of the links. It asks
the service itself, not ec2netd. There is no token, user data or credential in it.`,
		Example: `  ec2netctl dump-metadata > metadata.json`,
		Args:    noArgs,
		RunE:    c.run(func(ctx context.Context, _ []string) error { return c.dumpMetadata(ctx) }),
	}
}

func (c *ctl) newMetrics() *cobra.Command {
	return &cobra.Command{
		Use:   "metrics",
		Short: "Print the numbers of ec2netd for Prometheus",
		Long: `metrics prints the numbers of ec2netd in the text format of Prometheus: metadata
requests and reads by result, their time, reloads, how long ENIs took from their coming
until they were configured, the state of each ENI, and when a read was last complete.
Counters begin when ec2netd starts. With --json it prints what io.systemd.Metrics has.`,
		Args: noArgs,
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.metrics(ctx) }),
	}
}

func (c *ctl) newHostname() *cobra.Command {
	return &cobra.Command{
		Use:   "set-hostname",
		Short: "Set the hostname from the metadata, unless there is a static one",
		Long: `set-hostname gives the host the name of the metadata key local-hostname until the next
boot, by systemd-hostnamed or, where that is not there, by sethostname(2). If the host
has a static name (/etc/hostname) it stays. ec2netd-hostname.service runs it; that unit
is disabled unless someone enables it.`,
		Args:   noArgs,
		Hidden: true, // for the unit
		RunE: c.run(func(ctx context.Context, _ []string) error {
			return c.setHostname(ctx, &machine{root: c.root}, c.readHostname)
		}),
	}
}

func (c *ctl) newDoctor() *cobra.Command {
	return &cobra.Command{
		Use:   "doctor",
		Short: "Look for what is wrong, and say what to do",
		Long: `doctor looks for what keeps ec2netd from doing its work, and says what to do about each
thing: whether ec2netd answers, the state of each ENI and files that are in its way,
other software that configures ENIs, leftovers of amazon-ec2-net-utils, each way to the
metadata service (as root; otherwise what ec2netd says of it), sections of the
configuration and drop-ins that are for no ENI, /etc/resolv.conf, units that are not as
the presets have them, the version of systemd and what it implies, next hops of others,
published ports of containers, the group of the links, and reverse path filtering.
Between the installation and the next boot it says who has the ENIs and looks no further;
on a machine that is no EC2 instance it says that. It changes nothing.`,
		Args: noArgs,
		Annotations: map[string]string{
			"failure": "there is a problem; warnings alone are none",
		},
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.doctor(ctx) }),
	}
}

func (c *ctl) newShow() *cobra.Command {
	return &cobra.Command{
		Use:   "show [ENI...]",
		Short: "Show metadata, files, systemd-networkd and kernel side by side",
		Long: `show shows of each ENI that is given, or of all, its addresses, routes, policy rules and
alternative names, and whether they are in the metadata, in the generated files, with
systemd-networkd and in the kernel, with the reason for each gap.`,
		ValidArgsFunction: c.completeENI,
		RunE:              c.run(c.show),
	}
}

func (c *ctl) newDiff() *cobra.Command {
	all := false
	cmd := &cobra.Command{
		Use:   "diff [ENI...]",
		Short: "Show what is not as the metadata says, and fail if there is anything",
		Long: `diff shows those lines of show that are not the same everywhere, with the reason: "-"
before what is missing in the kernel, "+" before what is there without the metadata, "~"
before what is there and differs elsewhere. ENIs that are unmanaged count only where they
are given. What is in use and only systemd-networkd does not count as its own is no
difference: --all shows it nevertheless.`,
		ValidArgsFunction: c.completeENI,
		Annotations: map[string]string{
			"failure": "there are differences",
			"usage":   "called wrongly, or ec2netd cannot be asked",
		},
		RunE: c.run(func(ctx context.Context, args []string) error { return c.diff(ctx, args, all) }),
	}
	cmd.Flags().BoolVarP(&all, "all", "a", false, "show too what is in use and systemd-networkd does not count as its own")
	return cmd
}

// strict has the two commands that come with cobra refuse what they do not know: they
// would print some help and succeed.
func strict(root *cobra.Command) {
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd()
	for _, cmd := range root.Commands() {
		switch cmd.Name() {
		case "help":
			cmd.RunE = func(_ *cobra.Command, args []string) error {
				of, _, err := root.Find(args)
				if err != nil || (of == root && len(args) > 0) {
					return fmt.Errorf("there is no command %q", strings.Join(args, " "))
				}
				of.InitDefaultHelpFlag()
				of.InitDefaultVersionFlag()
				return of.Help()
			}
		case "completion":
			cmd.Args = cobra.ArbitraryArgs
			cmd.RunE = func(*cobra.Command, []string) error {
				return errors.New("completion takes the name of a shell: bash, zsh, fish or powershell")
			}
		}
	}
}

func (c *ctl) newPlan() *cobra.Command {
	var o planOptions
	cmd := &cobra.Command{
		Use:   "plan",
		Short: "Show the files that would be written, and change nothing",
		Long: `plan reads the metadata and shows which files ec2netd would write now, with the
configuration and the files of this machine: new ones whole, and of others what changes.
It asks the metadata service itself, not ec2netd, which need not run.

With --metadata it does so offline, from a file that dump-metadata wrote, and shows all
files whole. That needs neither root nor a network.

A plan is the end of it: it takes for granted that DHCP has brought the addresses that it
brings. The IPv6 router of a subnet is not in the metadata; an offline plan has no static
route to it.`,
		Example: `  ec2netctl plan
  ec2netctl plan --metadata metadata.json
  ssh instance ec2netctl dump-metadata | ec2netctl plan --metadata - --json`,
		Args: noArgs,
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.plan(ctx, &o) }),
	}
	f := cmd.Flags()
	f.StringVar(&o.metadata, "metadata", "", "plan offline from this `FILE`, - for standard input")
	f.Var(&o.links, "link", "name of the link of an ENI, for an offline plan; may be given several times")
	f.StringVar(&o.driver, "driver", "", "driver of the links, for an offline plan (default that in the file, or ena)")
	f.StringVar(&o.root, "root", "", "read configuration and base unit below this `DIR`, for an offline plan")
	f.BoolVarP(&o.all, "all", "a", false, "show files too that are on disk as they would be")
	for _, name := range []string{"link", "driver"} {
		must(cmd.RegisterFlagCompletionFunc(name, cobra.NoFileCompletions))
	}
	must(cmd.MarkFlagDirname("root"))
	return cmd
}

func (c *ctl) newTakeover() *cobra.Command {
	var o takeoverOptions
	cmd := &cobra.Command{
		Use:   "takeover",
		Short: "Make networkd and ec2netd own the ENIs now, as after a reboot (as root)",
		Long: `takeover does on the running system what the next boot would do: it stops those of the
units of the preset file of ec2netd that are disabled, NetworkManager and ifupdown's
networking.service above all, and starts those that are enabled. It enables and disables
nothing. What amazon-ec2-net-utils has generated goes, and what NetworkManager has set on the
ENIs: they are down for a moment where NetworkManager or ifupdown had them, or networkd of
systemd before 257 has. Files without the mark of amazon-ec2-net-utils stay where they are.

It shows what it will do and asks on the terminal; without a terminal it needs --yes. If the
ENIs are not configured after --timeout (1m), or something fails, or on Ctrl-C, it puts back
what ran before. It does not need its terminal: ec2netd-takeover.service, a transient unit,
does the work and ends in one of the two states also if the connection of the terminal breaks
or something is killed. The journal says what it did, and so does ec2netctl takeover when it
is run again.`,
		Args: noArgs,
		Annotations: map[string]string{
			"failure": "nothing was changed, or what ran before runs again",
		},
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.takeover(ctx, &o) }),
	}
	f := cmd.Flags()
	f.BoolVar(&o.dryRun, "dry-run", false, "say what would be done, and do nothing")
	f.BoolVarP(&o.yes, "yes", "y", false, "do not ask")
	f.StringVar(&o.phase, "phase", "", "what "+takeover.Unit+" does")
	must(f.MarkHidden("phase"))
	return cmd
}

func (c *ctl) newWaitOnline() *cobra.Command {
	o := waitOptions{timeout: span(onlineTimeout)}
	wait := &cobra.Command{
		Use:   "wait-online",
		Short: "Wait until the ENIs are configured",
		Long: `wait-online waits until every ENI has in the kernel all that the metadata says:
until the state of each is configured. ENIs that are unmanaged do not count; an
instance on which no ENI is known yet is not online. It says nothing when all is
well; if time is up it names each ENI that is not there, and the reason. With --json
it prints the state in which it ended, as status --json does.

On a machine that is no EC2 instance it says so and succeeds at once, so that an image
for EC2 boots elsewhere too.

An ENI that was configured counts also while the metadata service does not answer.
It does not matter whether ec2netd runs yet, or restarts meanwhile.

ec2netd-wait-online.service runs it before network-online.target. That unit is
disabled unless someone enables it. systemd-networkd-wait-online(8) waits for less:
for the addresses that DHCP and router advertisements bring.`,
		Example: `  ec2netctl wait-online --timeout=30
  ec2netctl wait-online -i eni-0123456789abcdef0 -i ens6
  sudo systemctl enable ec2netd-wait-online.service`,
		Args: noArgs,
		Annotations: map[string]string{
			"failure": "not online when time was up, or ec2netd cannot be asked",
		},
		RunE: c.run(func(ctx context.Context, _ []string) error { return c.waitOnline(ctx, &o) }),
	}
	f := wait.Flags()
	f.Var(&o.timeout, "timeout", "how long to wait, 0 for ever; in seconds, or with a unit as in 5min")
	f.VarP(&o.interfaces, "interface", "i", "wait for this ENI and ignore others; may be given several times")
	f.BoolVarP(&o.quiet, "quiet", "q", false, "no messages and no line of progress")
	must(wait.RegisterFlagCompletionFunc("timeout", cobra.NoFileCompletions))
	must(wait.RegisterFlagCompletionFunc("interface", func(cmd *cobra.Command, _ []string, word string) ([]string, cobra.ShellCompDirective) {
		return c.completeENI(cmd, o.interfaces, word)
	}))
	return wait
}

// run makes a command of f whose errors are told apart from those of usage.
func (c *ctl) run(f func(context.Context, []string) error) func(*cobra.Command, []string) error {
	return func(_ *cobra.Command, args []string) error {
		if c.foreignAddress() {
			return &failure{advise("Run it with your own rights.", "--address is not for sudo")}
		}
		if err := f(context.Background(), args); err != nil {
			return &failure{err}
		}
		return nil
	}
}

// foreignAddress reports whether somebody without root's rights has named a socket, to which would
// be written with root's rights, and whose answer would be shown (J4).
func (c *ctl) foreignAddress() bool { return c.who.elevated && c.address != api.VarlinkSocket }

// completeENI offers the IDs of the ENIs that were not given yet.
func (c *ctl) completeENI(_ *cobra.Command, given []string, _ string) ([]string, cobra.ShellCompDirective) {
	if c.foreignAddress() {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	c.timeout = span(time.Second)
	_, s, err := c.describe(context.Background())
	if err != nil {
		return nil, cobra.ShellCompDirectiveNoFileComp
	}
	var ids []string
	for i := range s.Interfaces {
		e := &s.Interfaces[i]
		if !slices.Contains(given, e.ID()) {
			ids = append(ids, clean(e.ID())+"\t"+clean(strings.Join(append([]string{e.Name}, e.Addresses[:min(1, len(e.Addresses))]...), " ")))
		}
	}
	return ids, cobra.ShellCompDirectiveNoFileComp
}

// jsonFlag is the value of --json.
type jsonFlag struct{ value *string }

func (f *jsonFlag) String() string {
	if f.value == nil || *f.value == "" {
		return "off"
	}
	return *f.value
}

func (f *jsonFlag) Set(s string) error {
	switch s {
	case "pretty", "short", "off":
		*f.value = s
		return nil
	default:
		return fmt.Errorf("%q is none of pretty, short, off", s)
	}
}

func (f *jsonFlag) Type() string { return "MODE" }

// wantsJSON tells whether to print JSON instead of words.
func (c *ctl) wantsJSON() bool { return c.json != "" && c.json != "off" }

// printJSON prints what ec2netd sent, with fields too that this ec2netctl does not
// know.
func (c *ctl) printJSON(v any) error {
	b, err := json.Marshal(v)
	if err != nil {
		return err
	}
	if c.json == "pretty" {
		var out bytes.Buffer
		if err := json.Indent(&out, b, "", "  "); err != nil {
			return err
		}
		b = out.Bytes()
	}
	return c.print(string(b) + "\n")
}

// print writes to stdout; that may be a pipe that is closed.
func (c *ctl) print(s string) error {
	if _, err := fmt.Fprint(c.stdout, s); err != nil {
		return fmt.Errorf("writing the output: %w", err)
	}
	return nil
}

// interfacesOf returns the interfaces in raw, a state as JSON, as they are.
func interfacesOf(raw json.RawMessage) ([]json.RawMessage, error) {
	var s struct {
		Interfaces []json.RawMessage `json:"interfaces"`
	}
	if err := json.Unmarshal(raw, &s); err != nil {
		return nil, fmt.Errorf("reading the reply of ec2netd: %w", err)
	}
	return s.Interfaces, nil
}

// indexOf finds the interface that id names.
func indexOf(s *state.State, id string) (int, error) {
	e, err := api.Find(s, id)
	if err != nil {
		return 0, err
	}
	for i := range s.Interfaces {
		if &s.Interfaces[i] == e {
			return i, nil
		}
	}
	panic("Find returned an interface that is not in the state")
}

// noArgs is cobra.NoArgs in better words for a command without commands of its own.
func noArgs(cmd *cobra.Command, args []string) error {
	if len(args) > 0 {
		return fmt.Errorf("%s takes no arguments, and was given %q", cmd.Name(), args[0])
	}
	return nil
}

// atMostOne is for a command that takes one ENI, or none for all.
func atMostOne(cmd *cobra.Command, args []string) error {
	if len(args) > 1 {
		return fmt.Errorf("%s takes one ENI at most, and was given %q too", cmd.Name(), args[1])
	}
	return nil
}

func must(err error) {
	if err != nil {
		panic(err)
	}
}
