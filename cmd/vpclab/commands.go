package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"text/tabwriter"
	"time"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

func downCommand(c *client) *cobra.Command {
	var stale bool
	cmd := &cobra.Command{
		Use:   "down",
		Short: "End a lab and remove everything that it has made",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			ctx := cmd.Context()
			if stale {
				removed, err := vpc.RemoveStale(ctx, vpc.DefaultStateDir)
				for _, name := range removed {
					fmt.Fprintf(cmd.OutOrStdout(), "removed what was left of %s\n", name)
				}
				return err
			}
			if err := c.call(ctx, "down", struct{}{}, nil); err != nil {
				return err
			}
			// Remove the directory last.
			ctx, cancel := context.WithTimeout(ctx, time.Minute)
			defer cancel()
			return vpc.Until(ctx, "the lab "+*c.name+" is gone", func() (bool, error) {
				_, err := os.Stat(labDir(*c.name))
				return errors.Is(err, os.ErrNotExist), nil
			})
		},
	}
	cmd.Flags().BoolVar(&stale, "all-stale", false, "remove what labs have left whose process was killed; living labs stay")
	return cmd
}

func statusCommand(c *client) *cobra.Command {
	var asJSON bool
	cmd := &cobra.Command{
		Use:   "status",
		Short: "Show the VPC's side: ENIs, drops of the source check, metadata requests, faults",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			var s vpc.Status
			if err := c.call(cmd.Context(), "status", struct{}{}, &s); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), s)
			}
			return printStatus(cmd.OutOrStdout(), s)
		},
	}
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	return cmd
}

func printJSON(out io.Writer, v any) error {
	enc := json.NewEncoder(out)
	enc.SetIndent("", "  ")
	return enc.Encode(v)
}

func printStatus(out io.Writer, s vpc.Status) error {
	fmt.Fprintf(out, "Lab %s: %s in network namespace %s, files in %s\n", s.Name, s.VPC, s.NetNS, s.Dir)
	for _, addr := range []netip.Addr{vpc.MetadataIPv4, vpc.MetadataIPv6} {
		fmt.Fprintf(out, "Metadata endpoint %s: %s\n", addr, s.Endpoints[addr.String()])
	}
	fmt.Fprintln(out)
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "SUBNET\tIPV4\tIPV6\tMUTED")
	for _, sn := range s.Subnets {
		muted := make([]string, len(sn.Muted))
		for n, m := range sn.Muted {
			muted[n] = string(m)
		}
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\n", sn.Name, dash(sn.IPv4), dash(sn.IPv6), dash(strings.Join(muted, ",")))
	}
	if err := w.Flush(); err != nil {
		return err
	}
	for _, i := range s.Instances {
		state := "off"
		if i.Running {
			state = fmt.Sprintf("running, booted in %d ms, leader %d", i.BootTime.Milliseconds(), i.Leader)
		}
		fmt.Fprintf(out, "\nInstance %s (%s): %s\n", i.ID, i.Suite, state)
		fmt.Fprintf(out, "Metadata requests: %d, of them for tokens %d, failed %d (404: %d)\n\n",
			i.Requests.Total, i.Requests.Tokens, i.Requests.Errors, i.Requests.NotFound)
		if err := printENIs(out, i.ENIs...); err != nil {
			return err
		}
		if err := printFaults(out, i.Faults); err != nil {
			return err
		}
	}
	return nil
}

func printENIs(out io.Writer, enis ...vpc.ENIStatus) error {
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "ENI\tNAME\tMAC\tSUBNET\tINDEX\tATTACHED\tDROPS\tADDRESSES")
	for _, e := range enis {
		printENI(w, e)
	}
	return w.Flush()
}

func printENI(w io.Writer, e vpc.ENIStatus) {
	attached := "no"
	switch {
	case e.NoCarrier:
		attached = "no carrier"
	case e.Published && e.Plugged:
		attached = "yes"
	case e.Published:
		attached = "metadata"
	case e.Plugged:
		attached = "link"
	}
	index := strconv.Itoa(e.DeviceIndex)
	if e.NetworkCard != nil {
		index += fmt.Sprintf(" card %d", *e.NetworkCard)
	}
	var addrs []string
	for _, a := range slices.Concat(e.IPv4, e.IPv6) {
		addrs = append(addrs, a.String())
	}
	for _, p := range e.Prefixes {
		addrs = append(addrs, p.String())
	}
	if len(addrs) == 0 {
		addrs = []string{"-"}
	}
	fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%d\t%s\n", e.ID, e.Name, e.MAC, e.Subnet, index, attached, e.Drops.Total(), addrs[0])
	for _, a := range addrs[1:] {
		fmt.Fprintf(w, "\t\t\t\t\t\t\t%s\n", a)
	}
}

func printFaults(out io.Writer, faults []imds.Fault) error {
	if len(faults) == 0 {
		return nil
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "\nFAULT\tPATTERN\tEFFECT\tPROBABILITY\tCOUNT\tHITS")
	for _, f := range faults {
		probability, count := "always", "-"
		if f.Probability > 0 {
			probability = strconv.FormatFloat(f.Probability, 'g', -1, 64)
		}
		if f.Count > 0 {
			count = strconv.Itoa(f.Count)
		}
		fmt.Fprintf(w, "%d\t%s\t%s\t%s\t%s\t%d\n", f.ID, f.Pattern, f, probability, count, f.Hits)
	}
	return w.Flush()
}

func dash(s string) string {
	if s == "" {
		return "-"
	}
	return s
}

func logCommand(c *client) *cobra.Command {
	var since time.Duration
	var asJSON, reset bool
	cmd := &cobra.Command{
		Use:   "log",
		Short: "Show the requests to the metadata service",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if reset {
				return c.call(cmd.Context(), "fault", faultRequest{ResetLog: true}, nil)
			}
			var r logRequest
			if since > 0 {
				r.Since = time.Now().Add(-since)
			}
			var requests []imds.Request
			if err := c.call(cmd.Context(), "log", r, &requests); err != nil {
				return err
			}
			if asJSON {
				return printJSON(cmd.OutOrStdout(), requests)
			}
			w := tabwriter.NewWriter(cmd.OutOrStdout(), 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "TIME\tFROM\tTOKEN\tMETHOD\tPATH\tSTATUS\tFAULT")
			for _, r := range requests {
				fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%d\t%s\n", r.Time.Format("15:04:05.000"), r.Remote.Addr(), dash(r.Token),
					r.Method, r.Path, r.Status, dash(r.Fault))
			}
			return w.Flush()
		},
	}
	cmd.Flags().DurationVar(&since, "since", 0, "only those of the last `duration`, such as 30s")
	cmd.Flags().BoolVar(&asJSON, "json", false, "print JSON")
	cmd.Flags().BoolVar(&reset, "reset", false, "empty the log instead")
	return cmd
}

func attachCommand(c *client) *cobra.Command {
	var r attachRequest
	var ipv4, ipv6, prefixes, hold []string
	var card int
	var p imds.Propagation
	var number time.Duration
	cmd := &cobra.Command{
		Use:   "attach [ENI]",
		Short: "Attach a new ENI, or a detached one again",
		Long: `Attach a new ENI, or a detached one again (by ENI ID, MAC or name).

Its link and its metadata appear as the lab's behaviour has it ("vpclab set"), or
exactly as the flags say: all at once but for what --listed-after, --secondaries-after,
--number-after and --delay put off, and but for the keys of --hold, which stay back
until "vpclab fault --reveal". The times are counted from the attachment; device-number
reads 0 until its own.`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.ENI = args[0]
			}
			var err error
			if r.Spec.IPv4, r.Spec.IPv6, err = parseAddrs(slices.Concat(ipv4, ipv6)); err != nil {
				return err
			}
			list, err := parsePrefixes(prefixes)
			if err != nil {
				return err
			}
			r.Spec.PrefixesV4, r.Spec.PrefixesV6 = splitPrefixes(list)
			if cmd.Flags().Changed("network-card") {
				r.Spec.NetworkCard = &card
			}
			timed := []string{"listed-after", "secondaries-after", "number-after", "delay", "hold"}
			if slices.ContainsFunc(timed, cmd.Flags().Changed) {
				p.Keys = map[string]time.Duration{"device-number": max(number, p.Default), "network-card": max(number, p.Default)}
				for _, key := range hold {
					p.Keys[key] = imds.Held
				}
				r.Spec.Propagation = &p
			}
			var e vpc.ENIStatus
			if err := c.call(cmd.Context(), "attach", r, &e); err != nil {
				return err
			}
			return printENIs(cmd.OutOrStdout(), e)
		},
	}
	f := cmd.Flags()
	f.StringVar(&r.Name, "as", "", "`name` of the link; default: the next free one of ens6, ens7, …")
	f.StringVar(&r.Spec.Subnet, "subnet", "", "subnet: a, b, v4 or v6; default: that of the primary ENI")
	f.IntVar(&r.Spec.DeviceIndex, "device-index", 0, "device index; default: the next free one")
	f.IntVar(&card, "network-card", 0, "network card")
	f.StringSliceVar(&ipv4, "ipv4", nil, "IPv4 `addresses`, the primary one first")
	f.StringSliceVar(&ipv6, "ipv6", nil, "IPv6 `addresses`")
	f.IntVar(&r.Spec.IPv4Count, "ipv4-count", 0, "how many IPv4 addresses in total; default 1, -1 for none")
	f.IntVar(&r.Spec.IPv6Count, "ipv6-count", 0, "how many IPv6 addresses in total; default 1, -1 for none")
	f.StringSliceVar(&prefixes, "prefix", nil, "delegated `prefixes`, /28 or /80")
	f.IntVar(&r.Spec.PrefixV4Count, "prefix-v4-count", 0, "how many IPv4 prefixes in total")
	f.IntVar(&r.Spec.PrefixV6Count, "prefix-v6-count", 0, "how many IPv6 prefixes in total")
	f.StringSliceVar(&hold, "hold", nil, "metadata `keys` that stay back, such as device-number")
	f.DurationVar(&p.Default, "delay", 0, "time until the keys appear, but for device-number, which reads 0")
	f.DurationVar(&p.Listed, "listed-after", 0, "time until the ENI is listed at all")
	f.DurationVar(&p.Secondaries, "secondaries-after", 0, "time until secondary addresses and prefixes appear")
	f.DurationVar(&number, "number-after", 0, "time until device-number and network-card are right")
	f.BoolVar(&r.LinkOnly, "link-only", false, "plug in the link only")
	f.BoolVar(&r.MetadataOnly, "metadata-only", false, "publish the metadata only")
	return cmd
}

func detachCommand(c *client) *cobra.Command {
	var r detachRequest
	cmd := &cobra.Command{
		Use:   "detach [ENI]",
		Short: "Detach an ENI, by default the last one",
		Args:  cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				r.ENI = args[0]
			}
			var e vpc.ENIStatus
			if err := c.call(cmd.Context(), "detach", r, &e); err != nil {
				return err
			}
			return printENIs(cmd.OutOrStdout(), e)
		},
	}
	f := cmd.Flags()
	f.DurationVar(&r.Linger, "linger", 0, "how long the metadata go on listing it")
	f.BoolVar(&r.Delete, "delete", false, "give its addresses back: it cannot be attached again")
	f.BoolVar(&r.LinkOnly, "link-only", false, "take the link out only")
	f.BoolVar(&r.MetadataOnly, "metadata-only", false, "withdraw the metadata only")
	return cmd
}

func assignCommand(c *client) *cobra.Command {
	var r changeRequest
	cmd := &cobra.Command{
		Use:   "assign ENI [ADDRESS|PREFIX]...",
		Short: "Give an ENI addresses or prefixes",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if err := r.parse(args); err != nil {
				return err
			}
			if len(args) == 1 && !r.AnyIPv4 && !r.AnyIPv6 && !r.AnyPrefixV4 && !r.AnyPrefixV6 {
				return usageError{errors.New("neither addresses nor --any-… were given")}
			}
			return r.send(cmd, c, "assign")
		},
	}
	f := cmd.Flags()
	f.BoolVar(&r.AnyIPv4, "any-ipv4", false, "one free IPv4 address")
	f.BoolVar(&r.AnyIPv6, "any-ipv6", false, "one free IPv6 address")
	f.BoolVar(&r.AnyPrefixV4, "any-prefix-v4", false, "one free /28 prefix")
	f.BoolVar(&r.AnyPrefixV6, "any-prefix-v6", false, "one free /80 prefix")
	return cmd
}

func unassignCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "unassign ENI ADDRESS|PREFIX...",
		Short: "Take addresses or prefixes from an ENI",
		Args:  cobra.MinimumNArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			var r changeRequest
			if err := r.parse(args); err != nil {
				return err
			}
			return r.send(cmd, c, "unassign")
		},
	}
}

func (r *changeRequest) parse(args []string) error {
	r.ENI = args[0]
	for _, text := range args[1:] {
		list, addr := []string{text}, !strings.Contains(text, "/")
		if addr {
			v4, v6, err := parseAddrs(list)
			if err != nil {
				return err
			}
			r.IPv4, r.IPv6 = append(r.IPv4, v4...), append(r.IPv6, v6...)
			continue
		}
		prefixes, err := parsePrefixes(list)
		if err != nil {
			return err
		}
		r.Prefixes = append(r.Prefixes, prefixes...)
	}
	return nil
}

func (r *changeRequest) send(cmd *cobra.Command, c *client, what string) error {
	var reply changeReply
	if err := c.call(cmd.Context(), what, r, &reply); err != nil {
		return err
	}
	for _, a := range reply.Addrs {
		fmt.Fprintln(cmd.OutOrStdout(), a)
	}
	for _, p := range reply.Prefixes {
		fmt.Fprintln(cmd.OutOrStdout(), p)
	}
	return nil
}

func parseAddrs(list []string) (v4, v6 []netip.Addr, err error) {
	for _, text := range list {
		a, err := netip.ParseAddr(text)
		if err != nil {
			return nil, nil, usageError{err}
		}
		if a.Is4() {
			v4 = append(v4, a)
		} else {
			v6 = append(v6, a)
		}
	}
	return v4, v6, nil
}

func parsePrefixes(list []string) ([]netip.Prefix, error) {
	var out []netip.Prefix
	for _, text := range list {
		p, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usageError{err}
		}
		out = append(out, p)
	}
	return out, nil
}

func splitPrefixes(list []netip.Prefix) (v4, v6 []netip.Prefix) {
	for _, p := range list {
		if p.Addr().Is4() {
			v4 = append(v4, p)
		} else {
			v6 = append(v6, p)
		}
	}
	return v4, v6
}

func faultCommand(c *client) *cobra.Command {
	var r faultRequest
	var f imds.Fault
	var effect string
	cmd := &cobra.Command{
		Use:   "fault [PATTERN]",
		Short: "Break the metadata service, or mend it",
		Long: `Break the metadata service, or mend it. Without arguments: list the faults.

PATTERN is matched against the key, the path below meta-data/, as a shell would;
"/**" at its end stands for everything below, and "token" is the token endpoint:

  vpclab fault '**' --status 503
  vpclab fault 'network/interfaces/macs/*/local-ipv4s' --effect hang
  vpclab fault token --effect reset --count 3
  vpclab fault token --status 403        (the service is switched off; see --revoke-tokens)
  vpclab fault 'network/**' --effect endless
  vpclab fault 'network/interfaces/macs/*' --effect unknown
  vpclab fault 'network/interfaces/macs/**' --effect delay --delay 2s
  vpclab fault --clear
  vpclab fault --override network/interfaces/macs/02:…/device-number=x
  vpclab fault --reveal ens6`,
		Args: cobra.MaximumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			if len(args) > 0 {
				f.Pattern, f.Effect = args[0], imds.Effect(effect)
				if f.Status != 0 && effect == "" {
					f.Effect = imds.Status
				}
				if f.Body != "" && effect == "" {
					f.Effect = imds.Body
				}
				if f.Delay != 0 && f.Effect == "" {
					f.Effect = imds.Delay
				}
				if f.Effect == "" {
					return usageError{errors.New("what shall happen? Give one of --status, --body, --delay and --effect")}
				}
				if err := f.Check(); err != nil {
					return usageError{err}
				}
				r.Add = &f
			}
			var reply faultReply
			if err := c.call(cmd.Context(), "fault", r, &reply); err != nil {
				return err
			}
			return printFaults(cmd.OutOrStdout(), reply.Faults)
		},
	}
	var effects []string
	for _, e := range imds.Effects() {
		effects = append(effects, string(e))
	}
	fl := cmd.Flags()
	fl.StringVar(&effect, "effect", "", "what happens: "+strings.Join(effects, ", "))
	fl.IntVar(&f.Status, "status", 0, "the effect is this HTTP status")
	fl.StringVar(&f.Body, "body", "", "the effect is this body, with status 200")
	fl.DurationVar(&f.Delay, "delay", 0, "time before the effect")
	fl.Float64Var(&f.Probability, "probability", 0, "chance that a request is hit; default: always")
	fl.IntVar(&f.Count, "count", 0, "how many requests are hit; default: all")
	fl.BoolVar(&r.ClearAll, "clear", false, "end all faults and overrides")
	fl.IntSliceVar(&r.Clear, "clear-fault", nil, "end the faults of these `numbers`")
	fl.StringToStringVar(&r.Override, "override", nil, "make a key read any text: `KEY=TEXT`")
	fl.StringSliceVar(&r.ClearOverride, "clear-override", nil, "end the overrides of these `keys`")
	fl.BoolVar(&r.RevokeTokens, "revoke-tokens", false, "make all tokens invalid")
	fl.StringVar(&r.Reveal, "reveal", "", "end the propagation of the `ENI`'s keys")
	fl.StringSliceVar(&r.RevealKeys, "key", nil, "of these `keys` only, with --reveal")
	return cmd
}

func muteCommand(c *client) *cobra.Command {
	var r muteRequest
	cmd := &cobra.Command{
		Use:   "mute SUBNET [dhcpv4|dhcpv6|ra]...",
		Short: "Stop the answers of a subnet's DHCP servers and router",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			r.Subnet = args[0]
			for _, text := range args[1:] {
				s := vpc.Service(text)
				if s != vpc.DHCPv4 && s != vpc.DHCPv6 && s != vpc.RA {
					return usageError{fmt.Errorf("unknown service %q", text)}
				}
				r.Services = append(r.Services, s)
			}
			return c.call(cmd.Context(), "mute", r, nil)
		},
	}
	cmd.Flags().BoolVar(&r.Unmute, "off", false, "let them answer again")
	return cmd
}

func endpointCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:   "endpoint 4|6 on|refused|silent",
		Short: "Switch the IPv4 or IPv6 endpoint of the metadata service",
		Args:  cobra.ExactArgs(2),
		RunE: func(cmd *cobra.Command, args []string) error {
			family, err := strconv.Atoi(args[0])
			if err != nil {
				return usageError{fmt.Errorf("family %q: want 4 or 6", args[0])}
			}
			r := endpointRequest{Family: vpc.Family(family), State: vpc.EndpointState(args[1])}
			return c.call(cmd.Context(), "endpoint", r, nil)
		},
	}
}

func powerCommand(c *client) *cobra.Command {
	return &cobra.Command{
		Use:       "power boot|shutdown|reboot|kill",
		Short:     "Switch the instance off or on, or reboot it",
		Args:      cobra.MatchAll(cobra.ExactArgs(1), cobra.OnlyValidArgs),
		ValidArgs: []string{"boot", "shutdown", "reboot", "kill"},
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.call(cmd.Context(), "power", powerRequest{Action: args[0]}, nil)
		},
	}
}

func execCommand(c *client) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "exec [flags] -- COMMAND [ARG]...",
		Short: "Run a command in the instance",
		Args:  cobra.MinimumNArgs(1),
		RunE: func(cmd *cobra.Command, args []string) error {
			return c.exec(cmd.Context(), user, args)
		},
	}
	cmd.Flags().StringVar(&user, "user", "root", "user to run it as; "+vpc.OrdinaryUser+" is an ordinary one")
	return cmd
}

func shellCommand(c *client) *cobra.Command {
	var user string
	cmd := &cobra.Command{
		Use:   "shell",
		Short: "Start a shell in the instance",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			return c.shell(cmd.Context(), user)
		},
	}
	cmd.Flags().StringVar(&user, "user", "root", "user of the shell")
	return cmd
}

// shell starts a shell in the instance on this terminal. A machine gets a terminal of the same
// size.
func (c *client) shell(ctx context.Context, user string) (err error) {
	argv := []string{"bash", "-l"}
	inst, err := c.instance(ctx)
	if err != nil {
		return err
	}
	const stdin = 0
	before, err := unix.IoctlGetTermios(stdin, unix.TCGETS)
	if !inst.Machine || err != nil { // without a terminal it reads commands
		return c.exec(ctx, user, argv)
	}
	size, err := unix.IoctlGetWinsize(stdin, unix.TIOCGWINSZ)
	if err != nil {
		return fmt.Errorf("asking for the size of the terminal: %w", err)
	}
	raw := *before
	raw.Iflag &^= unix.BRKINT | unix.ICRNL | unix.INPCK | unix.ISTRIP | unix.IXON
	raw.Oflag &^= unix.OPOST
	raw.Lflag &^= unix.ECHO | unix.ICANON | unix.IEXTEN | unix.ISIG
	raw.Cc[unix.VMIN], raw.Cc[unix.VTIME] = 1, 0
	if err := unix.IoctlSetTermios(stdin, unix.TCSETSW, &raw); err != nil {
		return fmt.Errorf("setting up the terminal: %w", err)
	}
	defer func() { err = errors.Join(err, unix.IoctlSetTermios(stdin, unix.TCSETSW, before)) }()
	on := fmt.Sprintf("stty rows %d columns %d; exec bash -l", size.Row, size.Col)
	return c.exec(ctx, user, []string{"script", "--quiet", "--return", "--command", on, "/dev/null"})
}

// exec runs a command in the instance on this terminal.
func (c *client) exec(ctx context.Context, user string, argv []string) error {
	inst, err := c.instance(ctx)
	if err != nil {
		return err
	}
	if !inst.Running {
		return fmt.Errorf("%s is off; boot it with: vpclab power boot", inst.ID)
	}
	env := []string{}
	if term := os.Getenv("TERM"); term != "" {
		env = append(env, "TERM="+term)
	}
	if inst.Machine {
		return vpc.RunInMachine(ctx, inst.Socket, vpc.Command{Argv: argv, Stdin: os.Stdin, User: user, Env: env}, os.Stdout, os.Stderr)
	}
	// The command itself receives the signals of the terminal, and decides.
	cmd, err := vpc.CommandIn(context.WithoutCancel(ctx), inst.Leader, vpc.Command{
		Argv: argv, Stdin: os.Stdin, User: user, Env: env, Interactive: true,
	})
	if err != nil {
		return err
	}
	cmd.Stdout, cmd.Stderr = os.Stdout, os.Stderr
	return cmd.Run()
}

func imagesCommand() *cobra.Command {
	var build, remove []string
	var old bool
	cmd := &cobra.Command{
		Use:   "images",
		Short: "List, build or remove the images of the suites",
		Args:  cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			out := cmd.OutOrStdout()
			images := vpc.Images{Logf: func(format string, args ...any) { fmt.Fprintf(cmd.ErrOrStderr(), format+"\n", args...) }}
			if old || len(remove) > 0 {
				list, err := images.List()
				if err != nil {
					return err
				}
				list = slices.DeleteFunc(list, func(i vpc.Image) bool {
					asked := slices.Contains(remove, i.Suite) || slices.Contains(remove, "all") || old && !i.Current
					return !asked
				})
				if err := images.Remove(list...); err != nil {
					return err
				}
			}
			if slices.Contains(build, "all") {
				build = nil
				for _, s := range vpc.Suites {
					build = append(build, s.Name)
				}
			}
			for _, suite := range build {
				_, lock, err := images.Get(cmd.Context(), suite)
				if err != nil {
					return err
				}
				lock.Close()
			}
			list, err := images.List()
			if err != nil {
				return err
			}
			w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
			fmt.Fprintln(w, "SUITE\tCURRENT\tPATH")
			for _, i := range list {
				fmt.Fprintf(w, "%s\t%t\t%s\n", i.Suite, i.Current, i.Path)
			}
			return w.Flush()
		},
	}
	cmd.Flags().StringSliceVar(&build, "build", nil, "build the images of these `suites` if they are missing, or all")
	cmd.Flags().StringSliceVar(&remove, "remove", nil, "remove the images of these `suites`, or all")
	cmd.Flags().BoolVar(&old, "remove-old", false, "remove images of other versions of the lab")
	return cmd
}
