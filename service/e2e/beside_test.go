package e2e

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// besideSettle is how long two instances have to become alike. The old package takes some five
// seconds for an ENI.
const besideSettle = 40 * time.Second

// refreshEvery and lookEvery are the times between two refreshes and two looks until then.
const (
	refreshEvery = 3 * time.Second
	lookEvery    = 200 * time.Millisecond
)

// worldsABoot is how many worlds a pair of instances lives through. The next pair is in a VPC
// with other DHCP options.
const worldsABoot = 5

// beside is one of two instances of a VPC with the same ENIs: old with the package, else with
// ec2netd.
type beside struct {
	*labtest.Lab
	old bool
}

// TestLabBeside: in any VPC an instance with ec2netd has what one with amazon-ec2-net-utils
// has, but for what service/docs/differences.md accepts, with a reason: links, names, MTU,
// addresses, routes of all tables, rules, DNS and NTP.
func TestLabBeside(t *testing.T) {
	t.Parallel()
	table := readDifferences(t)
	besideSuite := func(t *testing.T, suite string) {
		random := rand.New(rand.NewPCG(labtest.Luck(t).Uint64(), uint64(suite[0])))
		boots := 2
		if labtest.Long() {
			boots = 20
		}
		used := make(map[int]bool)
		for boot := range boots {
			cards := 1 + boot%2
			t.Run(fmt.Sprint(boot), func(t *testing.T) { besideBoot(t, suite, cards, random, table, used) })
		}
		if !t.Failed() {
			tellUnused(t, suite, table, used)
		}
	}
	// One after the other, unlike in [labtest.EachSuite]: a pair is two instances, of which the one with the
	// shell package is busy. Three pairs made a minute too little for it.
	for _, suite := range vpc.Suites {
		t.Run(suite.Name, func(t *testing.T) { besideSuite(t, suite.Name) })
	}
}

// tellUnused tells what no world needed of a table. After a hundred worlds that is out of date;
// after a few it may be what did not come up.
func tellUnused(t *testing.T, suite string, table []acceptedRow, used map[int]bool) {
	t.Helper()
	for _, row := range unusedRows(suite, table, used) {
		tell := t.Logf
		if labtest.Long() && !row.atTimes {
			tell = t.Errorf
		}
		tell("service/docs/differences.md:%d: no world needed this line: %s", row.line, row.pattern)
	}
}

// besideBoot boots a pair with so many network cards and has it live through some worlds.
func besideBoot(t *testing.T, suite string, cards int, random *rand.Rand, table []acceptedRow, used map[int]bool) {
	behaviour := vpc.EC2()
	behaviour.Propagation = vpc.Propagation{} // how soon they are is not the question here
	behaviour.RADelay = vpc.Range{}
	behaviour.DHCP = besideOptions(random, behaviour.DHCP)
	v := vpc.ForTest(t, vpc.Options{Behaviour: &behaviour, Seed: random.Uint64()})
	options := vpc.InstanceOptions{Suite: suite, NetworkCards: cards, Primary: besideENI(random, "a", "a", "v4", "v6")}
	t.Logf("%d cards, primary: %s; DHCP: %+v", cards, describeSpec(options.Primary), behaviour.DHCP)
	pair := []*beside{bootOld(t, v, options), bootNew(t, v, options)}
	for n := range worldsABoot {
		var specs []vpc.ENISpec
		if n > 0 { // the first is the primary alone
			specs = besideENIs(random, cards)
		}
		for _, s := range specs {
			t.Logf("world %d: %s", n, describeSpec(s))
		}
		began := time.Now()
		each(t, pair, func(ctx context.Context, b *beside) error { return b.enter(ctx, specs) })
		if !alike(t, suite, pair, table, used) {
			t.Fatalf("world %d", n)
		}
		if n == 2 {
			each(t, pair, func(ctx context.Context, b *beside) error { return b.change(ctx) })
			if !alike(t, suite, pair, table, used) {
				t.Fatalf("world %d after a change", n)
			}
		}
		t.Logf("world %d took %s", n, time.Since(began).Round(100*time.Millisecond))
		each(t, pair, func(ctx context.Context, b *beside) error { return b.leave(ctx) })
	}
}

// besideOptions changes DHCP options by chance.
func besideOptions(random *rand.Rand, o vpc.DHCPOptions) vpc.DHCPOptions {
	if random.IntN(2) == 0 {
		o.Domains = []string{"corp.example"}
	}
	if random.IntN(2) == 0 {
		o.NTP = []netip.Addr{vpc.TimeSync}
	}
	if random.IntN(3) == 0 {
		o.DNS = []netip.Addr{netip.MustParseAddr("192.0.2.53"), netip.MustParseAddr("192.0.2.54")}
	}
	return o
}

// besideENIs are the secondary ENIs of a world. No two have one index, on other cards either:
// the package takes such for one.
func besideENIs(random *rand.Rand, cards int) []vpc.ENISpec {
	indexes := random.Perm(7)
	specs := make([]vpc.ENISpec, 1+random.IntN(2))
	for i := range specs {
		specs[i] = besideENI(random, "a", "b", "v4", "v6")
		specs[i].DeviceIndex = 1 + indexes[i]
		if cards > 1 {
			card := random.IntN(cards)
			specs[i].NetworkCard = &card
		}
	}
	return specs
}

// besideENI is an ENI in one of the subnets.
func besideENI(random *rand.Rand, subnets ...string) (s vpc.ENISpec) {
	s.Subnet = subnets[random.IntN(len(subnets))]
	if s.Subnet != "v6" {
		s.IPv4Count, s.PrefixV4Count = 1+random.IntN(4), random.IntN(2)
	}
	if s.Subnet != "v4" {
		s.IPv6Count, s.PrefixV6Count = 1+random.IntN(3), random.IntN(2)
	}
	return s
}

func describeSpec(s vpc.ENISpec) string {
	card := 0
	if s.NetworkCard != nil {
		card = *s.NetworkCard
	}
	return fmt.Sprintf("card %d, index %d, subnet %q, %d IPv4, %d IPv6, %d and %d prefixes", card, s.DeviceIndex, s.Subnet, s.IPv4Count, s.IPv6Count, s.PrefixV4Count, s.PrefixV6Count)
}

// each does something on both instances at once.
func each(t *testing.T, pair []*beside, do func(context.Context, *beside) error) {
	t.Helper()
	var group sync.WaitGroup
	errs := make([]error, len(pair))
	for i, b := range pair {
		group.Go(func() { errs[i] = do(t.Context(), b) })
	}
	group.Wait()
	for _, err := range errs {
		if err != nil {
			t.Fatal(err)
		}
	}
}

// bootOld boots an instance with the old package, which is as Debian has it but for the driver.
func bootOld(t *testing.T, v *vpc.VPC, o vpc.InstanceOptions) *beside {
	t.Helper()
	o.Stock = "amazon-ec2-net-utils"
	inst := vpc.BootForTest(t, v, o)
	return &beside{labtest.New(t, v, inst), true}
}

// bootNew boots an instance with ec2netd.
func bootNew(t *testing.T, v *vpc.VPC, o vpc.InstanceOptions) *beside {
	t.Helper()
	o.Install = func(root string) error { return vpc.InstallTree(t.Context(), root, vpc.StageForTest(t)) }
	return &beside{labtest.New(t, v, vpc.BootForTest(t, v, o)), false}
}

// enter attaches the ENIs of a world, and waits until they are configured once.
func (b *beside) enter(ctx context.Context, specs []vpc.ENISpec) error {
	for _, spec := range specs {
		if _, err := b.Inst.Attach(ctx, spec); err != nil {
			return err
		}
	}
	ctx, cancel := context.WithTimeout(ctx, labtest.Patience)
	defer cancel()
	for _, eni := range b.Inst.ENIs() {
		name := eni.Name()
		if err := vpc.Until(ctx, name+" is configured", func() (bool, error) {
			if !b.old {
				s, err := b.TryDescribe()
				if err != nil {
					return false, nil //nolint:nilerr // it may be starting
				}
				i, ok := s.Find(eni.ID())
				return ok && i.State == state.ENIConfigured, nil
			}
			out, err := b.Inst.Exec(ctx, "systemctl", "show", "--property=ActiveState", "--value", "policy-routes@"+name+".service")
			return err == nil && strings.TrimSpace(out) == "active", nil
		}); err != nil {
			return err
		}
	}
	return nil
}

// change gives each ENI with IPv4 another address and takes one away, and delegates another
// prefix. New IPv6 addresses come to the old package with the next renewal of a lease alone.
func (b *beside) change(ctx context.Context) error {
	for _, eni := range b.Inst.ENIs() {
		before := eni.IPv4()
		if len(before) == 0 {
			continue
		}
		if _, err := eni.AssignIPv4(ctx); err != nil {
			return err
		}
		if _, err := eni.AssignPrefixV4(ctx); err != nil {
			return err
		}
		if len(before) > 1 {
			if err := eni.UnassignIPv4(ctx, before[1]); err != nil {
				return err
			}
		}
	}
	return b.refresh(ctx)
}

// refresh has the instance look at the metadata, by the means that it has for that.
func (b *beside) refresh(ctx context.Context) error {
	argv := []string{"ec2netctl", "refresh", "--wait"}
	if b.old {
		argv = []string{"systemctl", "start"}
		for _, eni := range b.Inst.ENIs() {
			argv = append(argv, "refresh-policy-routes@"+eni.Name()+".service")
		}
	}
	_, err := b.Inst.Exec(ctx, argv...)
	return err
}

// leave detaches the secondary ENIs, and waits until the old package is done with them. It stops
// its unit after the link has gone: where a link of that name is there again by then, it takes
// the new one's files away, or never writes them.
func (b *beside) leave(ctx context.Context) error {
	var names []string
	for _, eni := range b.Inst.ENIs()[1:] {
		names = append(names, eni.Name())
		if err := eni.Delete(ctx); err != nil {
			return err
		}
	}
	if !b.old {
		return nil
	}
	ctx, cancel := context.WithTimeout(ctx, labtest.Patience)
	defer cancel()
	for _, name := range names {
		if err := vpc.Until(ctx, "the package is done with "+name, func() (bool, error) { return b.stopped(ctx, name) }); err != nil {
			return err
		}
	}
	return nil
}

// stopped reports whether the old package has stopped what it runs for a link, and removed its
// files.
func (b *beside) stopped(ctx context.Context, name string) (bool, error) {
	for _, unit := range []string{"policy-routes@" + name + ".service", "refresh-policy-routes@" + name + ".service", "refresh-policy-routes@" + name + ".timer"} {
		active, err := b.Inst.Exec(ctx, "systemctl", "show", "--property=ActiveState", "--value", unit)
		if err != nil {
			return false, err
		}
		if active = strings.TrimSpace(active); active != "inactive" && active != "failed" {
			return false, nil
		}
	}
	for _, file := range []string{"", ".d"} {
		if _, err := os.Lstat(b.Inst.Path("/run/systemd/network/70-" + name + ".network" + file)); !errors.Is(err, os.ErrNotExist) {
			return false, err
		}
	}
	return true, nil
}

// alike waits until there is no difference between the two but those that are accepted, and
// reports the others if there are any. used are the rows that were needed.
func alike(t *testing.T, suite string, pair []*beside, table []acceptedRow, used map[int]bool) bool {
	t.Helper()
	ctx, cancel := context.WithTimeout(t.Context(), besideSettle)
	defer cancel()
	var views [2]*view
	var left []string
	var needed map[int]bool
	var refreshed time.Time
	for last := false; ; {
		each(t, pair, func(ctx context.Context, b *beside) (err error) {
			which := 1
			if b.old {
				which = 0
			}
			views[which], err = b.look(ctx)
			return err
		})
		left, needed = compareViews(suite, views[0], views[1], table)
		if len(left) == 0 {
			for row := range needed {
				used[row] = true
			}
			return true
		}
		if last {
			break
		}
		// The old package's unit may be started five times in ten seconds.
		if time.Since(refreshed) > refreshEvery {
			each(t, pair, func(ctx context.Context, b *beside) error { return b.refresh(ctx) })
			refreshed = time.Now()
		}
		select {
		case <-ctx.Done():
			last = true
		case <-time.After(lookEvery):
		}
	}
	t.Errorf("differences that service/docs/differences.md does not accept:\n%s", strings.Join(left, "\n"))
	for i, name := range []string{"the package", "ec2netd"} {
		t.Logf("with %s:\n%s", name, views[i].JSON())
	}
	return false
}

// compareViews returns the lines by which two instances differ, but for those that a table
// accepts, and which of its rows were needed.
func compareViews(suite string, old, now *view, table []acceptedRow) (left []string, needed map[int]bool) {
	needed = make(map[int]bool)
	for _, side := range []struct {
		name     string
		has, not []string
	}{{sideOld, old.lines(), now.lines()}, {sideNew, now.lines(), old.lines()}} {
		for _, line := range side.has {
			if slices.Contains(side.not, line) {
				continue
			}
			row := slices.IndexFunc(table, func(d acceptedRow) bool { return d.accepts(suite, side.name, line) })
			if row < 0 {
				left = append(left, side.name+": "+line)
				continue
			}
			needed[row] = true
		}
	}
	return left, needed
}
