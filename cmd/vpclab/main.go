// Vpclab is a simulated Amazon VPC on one Linux machine: instances with a real systemd,
// ENIs that can be attached and detached, and a metadata service that can be broken.
// Package vpc describes its parts.
package main

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"os/signal"
	"runtime/debug"
	"syscall"

	"github.com/spf13/cobra"

	"ec2netd/cmd/vpclab/vpc"
)

// version is set by the Makefile.
var version string

func main() {
	os.Exit(run())
}

// run returns the exit status: 0, 1 for a failure, 2 for invalid usage, or that of a
// command in the instance.
func run() int {
	// The lab must be cleaned up: a signal only ends the context.
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	defer stop()
	err := rootCommand().ExecuteContext(ctx)
	var usage usageError
	var exit *exec.ExitError
	var status vpc.StatusError
	switch {
	case err == nil:
		return 0
	case errors.As(err, &exit) && exit.ExitCode() > 0:
		return exit.ExitCode()
	case errors.As(err, &status):
		return int(status)
	case errors.As(err, &usage):
		fmt.Fprintf(os.Stderr, "vpclab: %v\nSee vpclab --help.\n", err)
		return 2
	}
	fmt.Fprintf(os.Stderr, "vpclab: %v\n", err)
	return 1
}

// usageError is an error of the command line.
type usageError struct{ error }

func (e usageError) Unwrap() error { return e.error }

func rootCommand() *cobra.Command {
	root := &cobra.Command{
		Use:   "vpclab",
		Short: "A simulated Amazon VPC on one Linux machine",
		Long: `vpclab simulates an Amazon VPC on one Linux machine, in network namespaces:
instances with a real systemd of a Debian suite, ENIs that can be attached and
detached, DHCP, router advertisements, EC2's source check, and a metadata service
whose answers can be delayed and broken. It takes the time that EC2 takes, hands out
all that EC2 does, and has jumbo frames; with --profile=instant it does not.

It needs root, and the packages mmdebstrap, systemd-container and nftables, for
machines (vpclab up --machine) also qemu-system-x86 and e2fsprogs. The images of the
suites are built once and kept in /var/cache/vpclab.`,
		Example: `  vpclab up --suite trixie             # an instance with one ENI
  vpclab attach --ipv4-count 3         # a second ENI
  vpclab shell                         # look around in the instance
  vpclab down`,
		Version:       buildVersion(),
		SilenceErrors: true,
		SilenceUsage:  true,
	}
	root.SetFlagErrorFunc(func(_ *cobra.Command, err error) error { return usageError{err} })
	var name string
	root.PersistentFlags().StringVar(&name, "name", "lab", "name of the lab")
	c := &client{name: &name}
	root.AddCommand(
		upCommand(&name), downCommand(c), statusCommand(c), logCommand(c),
		attachCommand(c), detachCommand(c), assignCommand(c), unassignCommand(c),
		faultCommand(c), setCommand(c), carrierCommand(c), muteCommand(c), endpointCommand(c), powerCommand(c),
		execCommand(c), shellCommand(c), imagesCommand(), demoCommand(),
	)
	for _, cmd := range root.Commands() {
		if args := cmd.Args; args != nil {
			cmd.Args = func(cmd *cobra.Command, a []string) error {
				if err := args(cmd, a); err != nil {
					return usageError{err}
				}
				return nil
			}
		}
	}
	return root
}

func buildVersion() string {
	if version != "" {
		return version
	}
	if info, ok := debug.ReadBuildInfo(); ok && info.Main.Version != "" {
		return info.Main.Version
	}
	return "unknown"
}
