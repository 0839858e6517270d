package main

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/spf13/cobra"
	"golang.org/x/sys/unix"

	"ec2netd/cmd/vpclab/vpc"
)

// upOptions are the flags of "up".
type upOptions struct {
	suite       string
	stock       string
	installRoot string
	cards       int
	secondaries int
	subnet      string
	machine     bool
	kernelArgs  []string
	foreground  bool
	readyFD     int
	seed        uint64
	behaviour   vpc.Behaviour
}

func upCommand(name *string) *cobra.Command {
	var o upOptions
	cmd := &cobra.Command{
		Use:   "up",
		Short: "Start a lab: a VPC and one instance in it",
		Long: `Start a lab: a VPC with the subnets a and b (dual-stack), v4 and v6, and one
instance with one ENI, booted. The lab lives in a process in the background until
"vpclab down".

With --install-root DIR, ec2netd is installed in the instance before it boots:
DIR is what "make install DESTDIR=DIR PREFIX=/usr" has filled.

With --machine the instance is no container, but a machine with Debian's kernel for
clouds, in QEMU: its ENIs are PCIe devices, and it can do with its kernel what it
likes. It boots in 40 s, as its processor is emulated.

The other flags say how the VPC behaves. Unless told otherwise it does so as EC2 does: DHCP
hands out the MTU and the host name, DHCPv6 all addresses, the router and the metadata
service take their time, and the metadata of a new ENI appear one after the other, as
chance has it; --seed repeats it. --profile=instant is without any of that. Single flags
change the profile. A range is a time, such as
2s, or two, such as 100ms-300ms, with chance between them.`,
		Args: cobra.NoArgs,
	}
	given := behaviourFlags(cmd)
	cmd.RunE = func(cmd *cobra.Command, _ []string) (err error) {
		if o.behaviour, err = change(vpc.Profiles()[vpc.DefaultProfile], given()); err != nil {
			return usageError{err}
		}
		if o.foreground {
			return o.serve(cmd.Context(), *name, cmd.OutOrStdout())
		}
		return o.background(cmd.Context(), *name, cmd.OutOrStdout(), forwarded(cmd.Flags(), "name", "foreground", "ready-fd"))
	}
	f := cmd.Flags()
	f.StringVar(&o.suite, "suite", "trixie", "Debian suite: "+suiteNames())
	f.StringVar(&o.stock, "stock", "", "boot as a distribution's image does: "+stockNames())
	f.StringVar(&o.installRoot, "install-root", "", "install ec2netd from this `directory`")
	f.BoolVar(&o.machine, "machine", false, "boot a machine with a kernel of its own, in QEMU; it takes 40 s")
	f.StringSliceVar(&o.kernelArgs, "kernel-args", nil, "add `words` to a machine's kernel command line")
	f.IntVar(&o.cards, "network-cards", 1, "how many network cards the instance type has")
	f.IntVar(&o.secondaries, "ipv4-count", 1, "IPv4 addresses of the primary ENI")
	f.StringVar(&o.subnet, "subnet", "a", "subnet of the primary ENI: a, b, v4 or v6")
	f.Uint64Var(&o.seed, "seed", 0, "seed of all chance")
	f.BoolVar(&o.foreground, "foreground", false, "stay in the foreground; ^C ends the lab")
	f.IntVar(&o.readyFD, "ready-fd", 0, "")
	if err := f.MarkHidden("ready-fd"); err != nil {
		panic(err) // the flag was defined two lines above
	}
	return cmd
}

func suiteNames() string {
	var names []string
	for _, s := range vpc.Suites {
		names = append(names, fmt.Sprintf("%s (systemd %s)", s.Name, s.Systemd))
	}
	return strings.Join(names, ", ")
}

func stockNames() string {
	var names []string
	for _, s := range vpc.Stocks {
		names = append(names, s.Name)
	}
	return strings.Join(names, ", ")
}

// serve runs the lab in this process.
func (o upOptions) serve(ctx context.Context, name string, out io.Writer) (err error) {
	logf := func(format string, args ...any) { fmt.Fprintf(os.Stderr, "vpclab: "+format+"\n", args...) }
	v, err := vpc.New(ctx, vpc.Options{Name: name, Logf: logf, Seed: o.seed, Behaviour: &o.behaviour})
	if err != nil {
		return err
	}
	defer func() { err = errors.Join(err, v.Close()) }() //nolint:contextcheck // Close must work when ctx has ended
	inst, err := newInstance(ctx, v, o)
	if err != nil {
		return err
	}
	if err := inst.Boot(ctx); err != nil {
		return err
	}
	s := &server{vpc: v, inst: inst}
	var readyErr error
	err = s.serve(ctx, func() {
		if o.readyFD == 0 {
			howToGoOn(out, name, inst)
			fmt.Fprintln(out, "^C ends the lab.")
			return
		}
		readyErr = o.detach(v.Dir())
	})
	return errors.Join(err, readyErr)
}

// newInstance creates an instance according to the flags, with ec2netd if the flags ask
// for it.
func newInstance(ctx context.Context, v *vpc.VPC, o upOptions) (*vpc.Instance, error) {
	opts := vpc.InstanceOptions{
		Suite: o.suite, Stock: o.stock, NetworkCards: o.cards, Machine: o.machine, KernelArgs: o.kernelArgs,
		Primary: vpc.ENISpec{Subnet: o.subnet, IPv4Count: o.secondaries},
	}
	if o.subnet == "v6" {
		opts.Primary.IPv4Count = 0
	}
	if o.installRoot != "" {
		opts.Install = func(root string) error { return vpc.InstallTree(ctx, root, o.installRoot) }
	}
	return v.NewInstance(ctx, opts)
}

// detach tells the parent that the lab is up, and releases its terminal.
func (o upOptions) detach(dir string) error {
	log, err := os.OpenFile(filepath.Join(dir, "log"), os.O_CREATE|os.O_WRONLY|os.O_APPEND, 0o644)
	if err != nil {
		return err
	}
	defer log.Close()
	for _, fd := range []int{1, 2} {
		if err := unix.Dup3(int(log.Fd()), fd, 0); err != nil {
			return fmt.Errorf("redirecting the output to %s: %w", log.Name(), err)
		}
	}
	ready := os.NewFile(uintptr(o.readyFD), "ready")
	defer ready.Close()
	_, err = io.WriteString(ready, "ready\n")
	return err
}

// background starts this program again as the lab's process, and waits until the lab is
// up.
func (o upOptions) background(ctx context.Context, name string, out io.Writer, flags []string) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	reader, writer, err := os.Pipe()
	if err != nil {
		return err
	}
	defer reader.Close()
	args := append([]string{"up", "--foreground", "--ready-fd=3", "--name=" + name}, flags...)
	// The lab survives this command, however that ends.
	cmd := exec.CommandContext(context.WithoutCancel(ctx), self, args...)
	cmd.Stdout, cmd.Stderr, cmd.ExtraFiles = os.Stdout, os.Stderr, []*os.File{writer}
	// A separate session: the parent receives ^C, and passes it on.
	cmd.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	err = cmd.Start()
	writer.Close()
	if err != nil {
		return fmt.Errorf("starting the lab's process: %w", err)
	}
	ready := make(chan bool, 1)
	go func() {
		line, _ := bufio.NewReader(reader).ReadString('\n')
		ready <- line == "ready\n"
	}()
	select {
	case ok := <-ready:
		if ok {
			c := &client{name: &name}
			is, err := c.instance(ctx)
			if err != nil {
				return err
			}
			printUp(out, name, is)
			return cmd.Process.Release()
		}
		// The child has printed the reason to stderr.
		return fmt.Errorf("the lab did not start: %w", exitStatus(cmd.Wait()))
	case <-ctx.Done():
		err := cmd.Process.Signal(syscall.SIGTERM)
		return errors.Join(errors.New("interrupted"), err, exitStatus(cmd.Wait()))
	}
}

// exitStatus keeps the exit status of the child from becoming that of this process.
func exitStatus(err error) error {
	if err == nil {
		return nil
	}
	return errors.New(err.Error())
}

func howToGoOn(out io.Writer, name string, inst *vpc.Instance) {
	printUp(out, name, vpc.InstanceStatus{
		ID: inst.ID(), Suite: inst.Suite(), BootTime: inst.BootTime(), Leader: inst.Leader(),
	})
}

func printUp(out io.Writer, name string, is vpc.InstanceStatus) {
	flag := ""
	if name != "lab" {
		flag = " --name " + name
	}
	fmt.Fprintf(out, `Instance %s (%s) is up, booted in %d ms.

  vpclab%[4]s shell                          a shell in it
  vpclab%[4]s exec -- networkctl             a command in it
  vpclab%[4]s attach --ipv4-count 3          attach an ENI
  vpclab%[4]s assign ens6 --any-ipv4         give it one more address
  vpclab%[4]s fault '**' --status 503        break the metadata service
  vpclab%[4]s status                         the lab's side of it all
  vpclab%[4]s log                            what was asked of the metadata service
  vpclab%[4]s detach ens6
  vpclab%[4]s down
`, is.ID, is.Suite, is.BootTime.Milliseconds(), flag)
}
