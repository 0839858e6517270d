package e2e

import (
	"fmt"
	"slices"
	"strings"
	"testing"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// image is what is known of a stock image: who has the ENIs on it.
type image struct {
	name string
	// owner is what status and doctor call it until the first boot with ec2netd.
	owner func(*labtest.Lab) string
	// owns waits until it has the primary ENI.
	owns func(*labtest.Lab)
	// absent checks that nothing of it is in force while ec2netd is in charge.
	absent func(l *labtest.Lab, when string)
	// left waits until who has the primary ENI after the removal of ec2netd has it, at once and after
	// a boot.
	left, leftByBoot func(*labtest.Lab)
}

// images are those of [vpc.Stocks].
func images() []image {
	cloudInit := func(name, wrote string) image {
		file := stockFile[name]
		on := func(l *labtest.Lab) { l.T.Helper(); onNetworkd(l, file) }
		return image{
			name, func(*labtest.Lab) string { return "systemd-networkd by " + file + ", which " + wrote + "," }, on,
			func(l *labtest.Lab, when string) { l.T.Helper(); awaitCloudInit(l); keepsCloudInit(l, true, when) }, on, on,
		}
	}
	onNetworkdBy := func(file string) func(*labtest.Lab) {
		return func(l *labtest.Lab) { l.T.Helper(); onNetworkd(l, file) }
	}
	return []image{
		cloudInit("cloud-init-netplan", "netplan makes of what cloud-init wrote"),
		cloudInit("cloud-init-networkd", "cloud-init wrote"),
		{
			"ifupdown", func(*labtest.Lab) string { return "ifupdown (networking.service)" }, onIfupdown, offIfupdown,
			onNetworkdBy("75-ec2netd-ens5.network"), onIfupdown,
		},
		{
			"networkmanager", func(*labtest.Lab) string { return "NetworkManager" }, ownedByNetworkManager,
			func(l *labtest.Lab, _ string) { l.T.Helper(); networkManagerIsOff(l) },
			onNetworkdBy("/etc/systemd/network/70-ens5.network"), onNetworkdBy("/etc/systemd/network/70-ens5.network"),
		},
		{
			"amazon-ec2-net-utils", func(l *labtest.Lab) string {
				l.T.Helper()
				return "systemd-networkd by " + networkFileOf(l, "ens5") + ", which amazon-ec2-net-utils wrote,"
			}, onNetworkdBy("ens5.network"), // the package's: the base unit has another name
			func(l *labtest.Lab, when string) {
				l.T.Helper()
				if left := leftOfOld(l) + generatedByOld(l); left != "" {
					l.T.Errorf("%s there is of the old package:\n%s", when, left)
				}
			},
			onNetworkdBy("/etc/systemd/network/70-ens5.network"), onNetworkdBy("/etc/systemd/network/70-ens5.network"),
		},
	}
}

// networkFileOf is the file by which networkd has configured a link.
func networkFileOf(l *labtest.Lab, name string) string {
	l.T.Helper()
	var status struct{ NetworkFile string }
	l.JSON(&status, "networkctl", "--json=short", "status", name)
	return status.NetworkFile
}

// knownCosts are what a step costs the primary ENI of one family on some suites and images, with
// the reason. It must still do so: else it is to be removed.
var knownCosts = []struct {
	suites, images []string // no images: all
	step           string
	ipv6           bool
	reason         string
}{
	{
		[]string{"bookworm"}, nil, "assign", true,
		"networkd 252 makes the one change from dynamic to static IPv6 cost that (E2)",
	},
	{
		[]string{"bookworm", "trixie", "sid"}, nil, "removal", true,
		"an IPv6 address that was static is DHCPv6's again, which takes its time",
	},
	{
		[]string{"bookworm"}, []string{"cloud-init-netplan", "cloud-init-networkd"}, "removal", false,
		"networkd 252 takes a lease away to give its routes the metric of cloud-init's file",
	},
}

// stockSteps are what happens to an instance of a stock image.
func stockSteps(l *labtest.Lab, of image) []imageStep {
	primary, ctx := l.Inst.Primary(), l.T.Context()
	var eni *vpc.ENI
	ready := func(l *labtest.Lab, when string) {
		l.T.Helper()
		primaryWhole(l)
		if eni != nil {
			l.AwaitComplete(eni, eni.Name())
			l.CheckKernel(eni)
		}
		of.absent(l, when)
		if s := l.Describe(); s.State != state.Configured || s.Reason != "" || len(s.Conflicts) > 0 {
			l.T.Errorf("%s ec2netd is %s: %s, %v", when, s.State, s.Reason, s.Conflicts)
		}
	}
	return []imageStep{
		{"first boot", false, of.owns, func(l *labtest.Lab) {
			if err := l.Inst.AwaitAddrs(ctx, primary.Name(), primary.IPv4()[0], primary.IPv6()[0]); err != nil {
				l.T.Fatal(err)
			}
			l.Until("there is a default route for IPv6", func() (bool, error) {
				return l.Run("ip", "-6", "route", "show", "default", "dev", primary.Name()) != "", nil
			})
		}},
		{"installation", true, func(l *labtest.Lab) {
			l.Run("apt-get", "install", "--yes", "--no-install-recommends", "/root/1.deb")
		}, func(l *labtest.Lab) {
			of.owns(l)
			waitsForBoot(l, of.owner(l))
		}},
		{"reboot", false, (*labtest.Lab).Reboot, func(l *labtest.Lab) { ready(l, "after the reboot") }},
		{"attach", true, func(l *labtest.Lab) {
			eni = l.Attach(vpc.ENISpec{IPv4Count: 3, IPv6Count: 2, PrefixV4Count: 1, PrefixV6Count: 1})
			l.AwaitConfigured(eni.ID())
			of.absent(l, "while an ENI is attached")
		}, func(l *labtest.Lab) { ready(l, "after the attachment") }},
		{"assign", true, func(l *labtest.Lab) {
			for _, to := range []*vpc.ENI{primary, eni} {
				l.Refreshed(func() error {
					if _, err := to.AssignIPv4(ctx); err != nil {
						return err
					}
					_, err := to.AssignIPv6(ctx)
					return err
				})
			}
		}, func(l *labtest.Lab) { ready(l, "after the assignment") }},
		{"detach", true, func(l *labtest.Lab) {
			l.Detach(eni)
			l.AwaitGone(eni, 1)
			eni = nil
		}, func(l *labtest.Lab) { ready(l, "after the detachment") }},
		{"second reboot", false, (*labtest.Lab).Reboot, func(l *labtest.Lab) { ready(l, "after the second reboot") }},
		{"removal", true, func(l *labtest.Lab) { l.Run("apt-get", "remove", "--yes", "ec2netd") }, of.left},
		{"boot without", false, (*labtest.Lab).Reboot, of.leftByBoot},
	}
}

// Every stock image of the lab is in the matrix.
func TestImages(t *testing.T) {
	var have, want []string
	for _, i := range images() {
		have = append(have, i.name)
	}
	for _, s := range vpc.Stocks {
		want = append(want, s.Name)
	}
	if !slices.Equal(have, want) {
		t.Errorf("the matrix has the images %v, want %v", have, want)
	}
}

// imageStep is something that happens to an instance.
type imageStep struct {
	name string
	// measured: what it costs the primary ENI is counted.
	measured  bool
	do, check func(*labtest.Lab)
}

// TestLabStock: on each stock image ec2netd is installed as install.md says, lives, and is removed,
// and no packet of the primary ENI is lost but in a boot. Without EC2NETD_LONG=1 it is what no test
// of its own goes through.
func TestLabStock(t *testing.T) { // F3, F8, F9, I2
	t.Parallel()
	for _, of := range images() {
		if !labtest.Long() && !slices.Contains([]string{"networkmanager", "amazon-ec2-net-utils"}, of.name) {
			continue // see TestLabCloudInit and TestLabIfupdown
		}
		t.Run(of.name, func(t *testing.T) {
			labtest.OneSuite(t, func(t *testing.T, suite string) {
				l := withPackages(t, suite, func(o *vpc.InstanceOptions) {
					o.Packages = nil
					o.Stock = of.name
				})
				for _, step := range stockSteps(l, of) {
					said := ""
					ok := t.Run(step.name, func(t *testing.T) {
						said = stockStep(l.With(t), of, step)
					})
					if !ok {
						said = "FAILED: see above"
					}
					fmt.Fprintf(t.Output(), "%-8s  %-20s  %-13s  %s\n", suite, of.name, step.name, said)
					if !ok {
						t.Fatal("what comes next would prove nothing")
					}
				}
			})
		})
	}
}

// stockStep has a step happen, and says what it cost.
func stockStep(l *labtest.Lab, of image, step imageStep) string {
	l.T.Helper()
	if !step.measured {
		step.do(l)
		step.check(l)
		return "as it shall be"
	}
	cost := l.Measured(l.Inst.Primary(), func() { step.do(l) })
	step.check(l)
	var reasons []string
	known := make(map[bool]bool)
	for _, k := range knownCosts {
		if k.step != step.name || !slices.Contains(k.suites, l.Inst.Suite()) || (k.images != nil && !slices.Contains(k.images, of.name)) {
			continue
		}
		known[k.ipv6] = true
		reasons = append(reasons, k.reason)
		if cost.NoneOf(k.ipv6) {
			l.T.Errorf("it costs nothing any more, remove it from knownCosts: %s", k.reason)
		}
	}
	for _, ipv6 := range []bool{false, true} {
		if !known[ipv6] && !cost.NoneOf(ipv6) {
			l.T.Errorf("it cost the primary %s", cost)
		}
	}
	if len(reasons) > 0 {
		said, _, _ := strings.Cut(cost.String(), "; Deleted")
		return said + ": " + strings.Join(reasons, "; ")
	}
	return fmt.Sprintf("no packet lost of %d", cost.Sent[0]+cost.Sent[1]+cost.Sent[2]+cost.Sent[3])
}
