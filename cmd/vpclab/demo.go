package main

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
)

func demoCommand() *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "demo --install-root DIR",
		Short: "Show ec2netd at work, step by step, in a lab of its own",
		Long: `Boot an instance with ec2netd, attach an ENI, assign an address, detach the ENI,
and check after each step that the instance's network is as the VPC says.

DIR is what "make install DESTDIR=DIR PREFIX=/usr" has filled.`,
		Args: cobra.NoArgs,
		RunE: func(cmd *cobra.Command, _ []string) error {
			if o.installRoot == "" {
				return usageError{errors.New("--install-root is missing; fill a directory with: make install DESTDIR=DIR PREFIX=/usr")}
			}
			return demonstrate(cmd.Context(), cmd.OutOrStdout(), o)
		},
	}
	cmd.Flags().StringVar(&o.suite, "suite", "trixie", "Debian suite: "+suiteNames())
	cmd.Flags().BoolVar(&o.machine, "machine", false, "with a machine that has a kernel of its own, in QEMU")
	cmd.Flags().StringVar(&o.installRoot, "install-root", "", "install ec2netd from this `directory`")
	o.cards, o.secondaries, o.subnet = 1, 1, "a"
	return cmd
}

// Timeout of a step of the demo. Each step takes about a second, and with a machine up to a
// minute.
const (
	stepTimeout    = 90 * time.Second
	machineTimeout = 10 * time.Minute
)

// demo is one run of the demonstration.
type demo struct {
	out  io.Writer
	inst *vpc.Instance
	eni  *vpc.ENI
}

func demonstrate(ctx context.Context, out io.Writer, o upOptions) (err error) {
	begin := time.Now()
	d := &demo{out: out}
	v, err := vpc.New(ctx, vpc.Options{Logf: func(format string, args ...any) { fmt.Fprintf(out, format+"\n", args...) }})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }() //nolint:contextcheck // Close must work when ctx has ended
	if d.inst, err = newInstance(ctx, v, o); err != nil {
		return err
	}
	steps := []struct {
		title string
		do    func(context.Context) error
	}{
		{"An instance boots, with ec2netd enabled by its presets", d.boot},
		{"An ENI is attached", d.attach},
		{"What ec2netd says of it", d.describe},
		{"Each of its addresses reaches a host outside of the subnet", d.ping},
		{"An address is assigned", d.assign},
		{"The ENI is detached", d.detach},
	}
	limit := stepTimeout
	if o.machine {
		limit = machineTimeout
	}
	for n, step := range steps {
		fmt.Fprintf(out, "\n=== %d. %s\n", n+1, step.title)
		stepCtx, cancel := context.WithTimeoutCause(ctx, limit, fmt.Errorf("not within %s", limit))
		err := step.do(stepCtx)
		cancel()
		if err != nil {
			d.autopsy(ctx)
			return fmt.Errorf("step %d (%s) failed: %w", n+1, step.title, err)
		}
	}
	fmt.Fprintf(out, "\nAll steps passed, in %.1f s.\n", time.Since(begin).Seconds())
	return nil
}

// autopsy shows the log of the daemon.
func (d *demo) autopsy(ctx context.Context) {
	ctx, cancel := context.WithTimeout(context.WithoutCancel(ctx), 10*time.Second)
	defer cancel()
	if !d.inst.Running() {
		return
	}
	fmt.Fprintln(d.out, "\n--- What the instance says:")
	for _, argv := range [][]string{
		{"ec2netctl", "status"}, {"networkctl", "--no-pager", "list"}, {"ip", "-brief", "address"},
		{"journalctl", "--no-pager", "--unit=ec2netd.service", "--lines=40"},
	} {
		_ = d.show(ctx, argv...) // the output contains its error
	}
}

// show runs a command in the instance and prints both.
func (d *demo) show(ctx context.Context, argv ...string) error {
	fmt.Fprintf(d.out, "# %s\n", quote(argv))
	text, err := d.inst.Exec(ctx, argv...)
	fmt.Fprint(d.out, text)
	var failed *vpc.ExecError
	if errors.As(err, &failed) && failed.Stderr != "" {
		fmt.Fprint(d.out, failed.Stderr)
	}
	return err
}

// quote returns a command as one would type it.
func quote(argv []string) string {
	words := make([]string, len(argv))
	for n, w := range argv {
		words[n] = w
		if w == "" || strings.ContainsAny(w, " '\"{}$*") {
			words[n] = "'" + strings.ReplaceAll(w, "'", `'\''`) + "'"
		}
	}
	return strings.Join(words, " ")
}

func (d *demo) boot(ctx context.Context) error {
	if err := d.inst.Boot(ctx); err != nil {
		return err
	}
	version, err := d.inst.SystemdVersion(ctx)
	if err != nil {
		return err
	}
	kernel, err := d.inst.Exec(ctx, "uname", "-r")
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s runs Debian %s with systemd %d on Linux %s; it booted in %d ms.\n",
		d.inst.ID(), d.inst.Suite(), version, strings.TrimSpace(kernel), d.inst.BootTime().Milliseconds())
	if _, err := d.configured(ctx, d.inst.Primary()); err != nil {
		return err
	}
	if err := d.show(ctx, "systemctl", "--no-pager", "list-units", "--plain", "--no-legend", "ec2netd.*", "systemd-networkd.service"); err != nil {
		return err
	}
	if failed, err := d.inst.FailedUnits(ctx); err != nil || len(failed) > 0 {
		return errors.Join(err, fmt.Errorf("failed units: %v", failed))
	}
	return nil
}

func (d *demo) attach(ctx context.Context) (err error) {
	begin := time.Now()
	d.eni, err = d.inst.Attach(ctx, vpc.ENISpec{IPv4Count: 3, PrefixV4Count: 1, PrefixV6Count: 1})
	if err != nil {
		return err
	}
	status, err := d.eni.Status(ctx)
	if err != nil {
		return err
	}
	fmt.Fprintf(d.out, "The VPC has attached it as %s:\n", d.eni.Name())
	if err := printENIs(d.out, status); err != nil {
		return err
	}
	took, err := d.configured(ctx, d.eni)
	if err != nil {
		return err
	}
	requests := imds.Count(d.inst.Metadata().RequestsSince(begin))
	fmt.Fprintf(d.out, "ec2netd says \"configured\" after %.2f s and %d metadata requests.\n", took.Seconds(), requests.Total)
	return nil
}

// described is the part of the daemon's Describe that the demo needs.
type described struct {
	State      string `json:"state"`
	Interfaces []struct {
		ENIID  string `json:"eniId"`
		State  string `json:"state"`
		Reason string `json:"reason"`
	} `json:"interfaces"`
}

// describeRaw calls the daemon over D-Bus, like any other program.
func (d *demo) describeRaw(ctx context.Context) (string, error) {
	out, err := d.inst.Exec(ctx, "busctl", "--json=short", "call", "org.ec2netd1", "/org/ec2netd1", "org.ec2netd1.Manager", "Describe")
	if err != nil {
		return "", err
	}
	var reply struct {
		Data []string `json:"data"`
	}
	if err := json.Unmarshal([]byte(out), &reply); err != nil || len(reply.Data) != 1 {
		return "", fmt.Errorf("unexpected answer of busctl: %q", out)
	}
	return reply.Data[0], nil
}

// configured waits until the daemon reports an ENI as configured and the kernel has all of
// its addresses, ready for use.
func (d *demo) configured(ctx context.Context, e *vpc.ENI) (time.Duration, error) {
	begin := time.Now()
	last := "nothing yet"
	err := vpc.Until(ctx, e.ID()+" is configured", func() (bool, error) {
		text, err := d.describeRaw(ctx)
		if err != nil {
			last = err.Error()
			return false, nil //nolint:nilerr // the daemon may be on its way
		}
		var s described
		if err := json.Unmarshal([]byte(text), &s); err != nil {
			return false, fmt.Errorf("ec2netd described %q: %w", text, err)
		}
		last = "it is not listed"
		for _, i := range s.Interfaces {
			if i.ENIID == e.ID() {
				last = fmt.Sprintf("%s %s", i.State, i.Reason)
				return i.State == "configured", nil
			}
		}
		return false, nil
	})
	if err != nil {
		return 0, fmt.Errorf("%w; ec2netd says: %s", err, last)
	}
	took := time.Since(begin)
	return took, d.inst.AwaitAddrs(ctx, e.Name(), slices.Concat(e.IPv4(), e.IPv6())...)
}

func (d *demo) describe(ctx context.Context) error {
	if err := d.show(ctx, "ec2netctl", "status"); err != nil {
		return err
	}
	fmt.Fprintln(d.out, "\n# busctl call org.ec2netd1 /org/ec2netd1 org.ec2netd1.Manager Describe")
	text, err := d.describeRaw(ctx)
	if err != nil {
		return err
	}
	var pretty bytes.Buffer
	if err := json.Indent(&pretty, []byte(text), "", "  "); err != nil {
		return fmt.Errorf("ec2netd described %q: %w", text, err)
	}
	fmt.Fprintf(d.out, "%s\n", pretty.Bytes())
	fmt.Fprintln(d.out)
	for _, argv := range [][]string{{"ip", "rule"}, {"ip", "-6", "rule"}} {
		if err := d.show(ctx, argv...); err != nil {
			return err
		}
	}
	return nil
}

func (d *demo) ping(ctx context.Context) error {
	return d.pingFrom(ctx, slices.Concat(d.eni.IPv4(), d.eni.IPv6())...)
}

// pingFrom pings the far host from addresses, and checks that no reply was lost and that no
// packet left meanwhile through an ENI with an address of another.
func (d *demo) pingFrom(ctx context.Context, addrs ...netip.Addr) error {
	before, err := d.drops(ctx)
	if err != nil {
		return err
	}
	for _, src := range addrs {
		dst := vpc.FarIPv4
		if src.Is6() {
			dst = vpc.FarIPv6
		}
		r, err := d.inst.Ping(ctx, src, dst, 5, 10*time.Millisecond)
		if err != nil {
			return err
		}
		fmt.Fprintf(d.out, "ping %s from %s: %s\n", dst, src, r)
		if r.Received != r.Sent {
			return fmt.Errorf("pings from %s to %s were lost", src, dst)
		}
	}
	after, err := d.drops(ctx)
	if err != nil {
		return err
	}
	for _, e := range d.inst.ENIs() {
		dropped := after[e] - before[e]
		fmt.Fprintf(d.out, "packets of %s dropped by the VPC's source check: %d\n", e.Name(), dropped)
		if dropped != 0 {
			return fmt.Errorf("the source check dropped %d packets of %s", dropped, e.ID())
		}
	}
	return nil
}

// drops returns the number of packets that the source check of each ENI has dropped.
func (d *demo) drops(ctx context.Context) (map[*vpc.ENI]uint64, error) {
	counts := make(map[*vpc.ENI]uint64)
	for _, e := range d.inst.ENIs() {
		drops, err := e.Drops(ctx)
		if err != nil {
			return nil, err
		}
		counts[e] = drops.Total()
	}
	return counts, nil
}

func (d *demo) assign(ctx context.Context) error {
	added, err := d.eni.AssignIPv4(ctx)
	if err != nil {
		return err
	}
	begin := time.Now()
	fmt.Fprintf(d.out, "The VPC has assigned %s to %s. Left alone, ec2netd would see it at its next\nrefresh; here it is asked to look now.\n",
		added[0], d.eni.Name())
	if err := d.show(ctx, "ec2netctl", "refresh", "--wait"); err != nil {
		return err
	}
	if err := d.inst.AwaitAddrs(ctx, d.eni.Name(), added...); err != nil {
		return err
	}
	fmt.Fprintf(d.out, "%s arrived after %.2f s.\n", added[0], time.Since(begin).Seconds())
	if err := d.show(ctx, "ip", "-4", "-brief", "address", "show", "dev", d.eni.Name()); err != nil {
		return err
	}
	return d.pingFrom(ctx, added...)
}

func (d *demo) detach(ctx context.Context) error {
	if err := d.show(ctx, "ls", "/run/systemd/network"); err != nil {
		return err
	}
	begin := time.Now()
	name := d.eni.Name()
	if err := d.eni.Detach(ctx); err != nil {
		return err
	}
	var left string
	err := vpc.Until(ctx, "the files of "+name+" are gone", func() (bool, error) {
		var err error
		left, err = d.inst.Exec(ctx, "find", "/run/systemd/network", "-name", "70-"+name+".*")
		return err == nil && left == "", err
	})
	if err != nil {
		return fmt.Errorf("%w: %s", err, left)
	}
	fmt.Fprintf(d.out, "The VPC has detached %s; its files were gone after %.2f s.\n", name, time.Since(begin).Seconds())
	if err := d.show(ctx, "ls", "/run/systemd/network"); err != nil {
		return err
	}
	if _, err := d.inst.Exec(ctx, "test", "-d", "/run/ec2netd"); err != nil {
		return fmt.Errorf("the daemon's state directory: %w", err)
	}
	if _, err := d.configured(ctx, d.inst.Primary()); err != nil {
		return err
	}
	return d.show(ctx, "ec2netctl", "status")
}
