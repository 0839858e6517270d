package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

// whole tells whether the long matrices run whole rather than by a sample.
func whole() bool { return os.Getenv("EC2NETD_LONG") != "" }

// luck is the chance of a test. EC2NETD_SEED is another one than the usual.
func luck(t testing.TB) *rand.Rand {
	t.Helper()
	return rand.New(rand.NewPCG(vpc.ChanceForTest(t), 0))
}

// The keys that the daemon reads: those of the instance, and those of an ENI.
// TestFaultMatrix of package agent runs all of the matrix, and checks that these are
// all keys.
var (
	instanceKeys = []string{imds.TokenKey, "mac", "instance-id"}
	eniKeys      = []string{
		"", "device-number", "interface-id", "network-card", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix",
		"subnet-ipv4-cidr-block", "subnet-ipv6-cidr-blocks",
	}
)

// cell is one cell of the matrix: a key and the way in which its answer fails.
type cell struct{ key, failure string }

// cellsOf are all cells of some keys, in an order of chance.
func cellsOf(random *rand.Rand, keys []string) []cell {
	var cells []cell
	for _, failure := range slices.Sorted(maps.Keys(imds.Failures())) {
		for _, key := range keys {
			if key == "" && imds.Failures()[failure].Effect == imds.Inject {
				continue // names that nobody knows in a listing are ignored (D13)
			}
			cells = append(cells, cell{key, failure})
		}
	}
	random.Shuffle(len(cells), func(i, j int) { cells[i], cells[j] = cells[j], cells[i] })
	return cells
}

// dealt deals cells out: each round has at most size. Without EC2NETD_LONG=1 it is
// only the first few.
func dealt(cells []cell, size, sample int) [][]cell {
	all := slices.Collect(slices.Chunk(cells, size))
	if !whole() {
		all = all[:sample]
	}
	return all
}

// faulted is an ENI with a cell's fault in force.
type faulted struct {
	cell
	eni   *vpc.ENI
	fault int
	since time.Time
	files string
	// withdrawn was taken from the ENI since.
	withdrawn []string
}

// breakKey puts a cell's fault on an ENI in force.
func (l *lab) breakKey(eni *vpc.ENI, c cell) *faulted {
	l.t.Helper()
	f := &faulted{cell: c, eni: eni, since: time.Now(), files: l.filesOf(eni.Name())}
	fault := imds.Failures()[c.failure]
	fault.Pattern = strings.TrimSuffix("network/interfaces/macs/"+eni.MAC().String()+"/"+c.key, "/")
	if slices.Contains(instanceKeys, c.key) {
		fault.Pattern = c.key
	}
	var err error
	if f.fault, err = l.inst.Metadata().AddFault(fault); err != nil {
		l.t.Fatal(err)
	}
	return f
}

// filesOf are the generated files of a link, with all that networkd compares.
func (l *lab) filesOf(name string) string {
	return l.run("sh", "-c", "find /run/systemd/network -path '*70-"+name+".*' ! -type d -printf '%p %l %i %T@ %s\\n' -exec cat {} + | sort")
}

// hits is how often a fault was met, and reads how often the daemon has begun to read
// the ENI since it is there.
func (l *lab) hits(f *faulted) (hits, reads int) {
	for _, fault := range l.inst.Metadata().Faults() {
		if fault.ID == f.fault {
			hits = fault.Hits
		}
	}
	listing := "network/interfaces/macs/" + f.eni.MAC().String()
	for _, r := range l.inst.Metadata().RequestsSince(f.since) {
		if r.Key == listing {
			reads++
		}
	}
	return hits, reads
}

// explained tells whether a reason names the key that fails, and how.
func (f *faulted) explained(reason string) bool {
	how, key := "", f.key
	fault := imds.Failures()[f.failure]
	switch {
	case fault.Status == 404 && !slices.Contains(instanceKeys, f.key):
		how = "not" // "does not list", "not complete yet"
	case fault.Status != 0:
		how = strconv.Itoa(fault.Status)
	case fault.Effect == imds.Hang || fault.Effect == imds.Drip:
		how = "did not answer in time"
	case fault.Effect == imds.Reset || fault.Effect == imds.Truncate:
		how = "ended the connection"
	}
	if key == "" {
		key = f.eni.MAC().String()
	}
	return strings.Contains(reason, key) && strings.Contains(reason, how)
}

// met waits until the daemon has met the fault and says so of the ENI, or has read the
// ENI several times without asking for the key. It tells which.
func (l *lab) met(f *faulted) (met bool) {
	l.t.Helper()
	var said string
	ctx, cancel := context.WithTimeout(l.t.Context(), 2*patience)
	defer cancel()
	err := vpc.Until(ctx, fmt.Sprintf("%s of %s: %q is met and explained", f.eni.Name(), f.failure, f.key), func() (bool, error) {
		hits, reads := l.hits(f)
		if hits == 0 {
			// A read that had begun before the fault may still be under way in the second.
			met = false
			return reads >= 4, nil
		}
		met = true
		s, err := l.tryDescribe()
		if err != nil {
			return false, nil //nolint:nilerr // the daemon is being started
		}
		found, ok := s.Find(f.eni.Name())
		if !ok {
			return false, nil
		}
		said = fmt.Sprintf("%s: %s", found.State, found.Reason)
		return f.explained(found.Reason), nil
	})
	if err != nil {
		hits, reads := l.hits(f)
		l.t.Fatalf("%v; hit %d times in %d reads; the daemon says %s", err, hits, reads, said)
	}
	return met
}

// lift ends all faults, and waits until every ENI is as EC2 has it.
func (l *lab) lift() {
	l.t.Helper()
	l.inst.Metadata().ClearFaults()
	l.asEC2()
	for _, eni := range l.inst.ENIs()[1:] {
		l.checkKernel(eni)
	}
}

// asEC2 waits until every ENI is configured as EC2 has it.
func (l *lab) asEC2() {
	l.t.Helper()
	for _, eni := range l.inst.ENIs() {
		l.reaches(eni.Name(), func(i *state.Interface) bool {
			want := slices.Concat(eni.IPv4(), eni.IPv6())
			numbered := i.Table == tableOf(eni) || eni == l.inst.Primary()
			return i.State == state.ENIConfigured && !strings.Contains(i.Reason, "metadata") && numbered &&
				len(i.Addresses) == len(want) && slices.Equal(sorted(l.addresses(eni.Name())), sorted(want))
		})
	}
}

// deletions watches what the kernel loses of addresses, routes and rules; the returned
// function gives the lines and ends it.
func (l *lab) deletions() func() []string {
	l.t.Helper()
	events := l.watchKernel()
	return func() []string {
		l.t.Helper()
		return slices.DeleteFunc(events(), func(line string) bool {
			return !strings.HasPrefix(line, "Deleted") || strings.Contains(line, "proto kernel")
		})
	}
}

// concerns tells whether a line of ip monitor is of an ENI: of its link, or a rule for
// what it has or had.
func (f *faulted) concerns(line string) bool {
	words := strings.Fields(line)
	if slices.Contains(words, f.eni.Name()) {
		return true
	}
	// An address may have been another ENI's before.
	if n := slices.Index(words, "lookup"); n >= 0 && words[n+1] != strconv.Itoa(tableOf(f.eni)) {
		return false
	}
	for _, source := range append(sources(f.eni), f.withdrawn...) {
		if slices.Contains(words, source) {
			return true
		}
	}
	return false
}

// tableOf is the ENI's table (B1).
func tableOf(eni *vpc.ENI) int {
	table := 10000 + eni.DeviceIndex()
	if card := eni.NetworkCard(); card != nil {
		table += 100 * *card
	}
	return table
}

// change takes of an ENI one address and one prefix away, and gives it others.
func (l *lab) change(f *faulted) {
	l.t.Helper()
	ctx, eni := l.t.Context(), f.eni
	var old []netip.Addr
	if all := eni.IPv4(); len(all) > 2 {
		old = all[len(all)-1:]
	}
	var prefixes []netip.Prefix
	for _, p := range eni.Prefixes() {
		if p.Addr().Is4() {
			prefixes = append(prefixes, p)
		}
	}
	_, err := eni.AssignIPv4(ctx)
	if err == nil && len(old) > 0 {
		f.withdrawn = append(f.withdrawn, old[0].String())
		err = eni.UnassignIPv4(ctx, old...)
	}
	if err == nil && len(prefixes) > 0 {
		if _, err = eni.AssignPrefixV4(ctx); err == nil {
			f.withdrawn = append(f.withdrawn, prefixes[0].String())
			err = eni.UnassignPrefix(ctx, prefixes[0])
		}
	}
	if err != nil {
		l.t.Fatal(err)
	}
}

// TestLabFaultMatrix: in each cell of the matrix of keys, failures and phases nothing
// that was there goes, no file is made of a view that is not complete, the reason is
// shown per ENI, and all converges once the fault is lifted (D3, D4, D5, C1). Several
// ENIs meet a fault each at the same time. It is a sample, with EC2NETD_LONG=1 all.
func TestLabFaultMatrix(t *testing.T) {
	eachSuite(t, func(t *testing.T, suite string) {
		random := luck(t)
		l := boot(t, suite, func(o *vpc.InstanceOptions) {
			o.NetworkCards = 2
			o.Primary = vpc.ENISpec{IPv4Count: 3}
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.configured("ens5")
		keys, spec := slices.Clone(eniKeys), hotplugSpec()
		if suite == "bookworm" {
			// Now and then networkd of 252 loses a static IPv6 address where DHCPv6 had
			// brought it before: that is not what this test is about.
			keys = slices.DeleteFunc(keys, func(key string) bool { return key == "ipv6s" || key == "ipv6-prefix" })
			spec.IPv6Count, spec.PrefixV6Count = -1, 0
		}
		const several = 4
		for _, cells := range dealt(cellsOf(random, keys), several, 1) {
			l.firstConfiguration(random, spec, cells)
		}
		if !whole() {
			// The others are not read again while an ENI is attached.
			keys = slices.DeleteFunc(keys, func(key string) bool {
				return !slices.Contains([]string{"", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix"}, key)
			})
		}
		for _, change := range []bool{false, true} {
			for _, cells := range dealt(cellsOf(random, keys), several+1, 1) {
				l.faultsInForce(cells, change)
			}
		}
		for _, cells := range dealt(cellsOf(random, instanceKeys), 1, 1) {
			l.faultOfInstance(cells[0])
		}
		l.logOf("err")
	})
}

// firstConfiguration attaches ENIs in the place of all that there are, each with a
// fault.
func (l *lab) firstConfiguration(random *rand.Rand, spec vpc.ENISpec, cells []cell) {
	l.t.Helper()
	ctx := l.t.Context()
	for _, eni := range l.inst.ENIs()[1:] {
		if err := eni.Delete(ctx); err != nil {
			l.t.Fatal(err)
		}
	}
	l.until("only the primary is left", func() (bool, error) { return len(l.describe().Interfaces) == 1, nil })
	deleted := l.deletions()
	before := l.filesOf("ens5")
	var all []*faulted
	for _, c := range cells {
		card := random.IntN(2)
		spec.NetworkCard = &card
		eni, err := l.inst.Create(ctx, spec)
		if err != nil {
			l.t.Fatal(err)
		}
		f := l.breakKey(eni, c)
		eni.Publish(imds.Propagation{})
		if err := eni.Plug(ctx); err != nil {
			l.t.Fatal(err)
		}
		all = append(all, f)
	}
	for _, f := range all {
		l.t.Logf("first: %s: %q %s", f.eni.Name(), f.key, f.failure)
		if !l.met(f) {
			l.t.Errorf("the key %q is not read at all", f.key)
		}
		if got := l.reaches(f.eni.Name(), func(i *state.Interface) bool { return f.explained(i.Reason) }); got.State != state.ENIPending {
			l.t.Errorf("%s with %q %s is %s: %s", f.eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
		if files := l.filesOf(f.eni.Name()); strings.Contains(files, "\nTable=") || strings.Contains(files, "\nAddress=") || strings.Contains(files, "AlternativeName") {
			l.t.Errorf("%s was written of a view that is not complete:\n%s", f.eni.Name(), files)
		}
	}
	for _, line := range deleted() {
		if slices.Contains(strings.Fields(line), "ens5") || !strings.Contains(line, " dev ") && !strings.Contains(line, "ens") {
			l.t.Errorf("with ENIs that cannot be read the kernel lost: %s", line)
		}
	}
	if now := l.filesOf("ens5"); now != before {
		l.t.Errorf("ENIs that cannot be read changed the primary's files:\n%s\nbefore:\n%s", now, before)
	}
	l.lift()
}

// faultsInForce has each ENI meet a fault, and change meanwhile or not.
func (l *lab) faultsInForce(cells []cell, change bool) {
	l.t.Helper()
	deleted := l.deletions()
	var all []*faulted
	for n, c := range cells {
		f := l.breakKey(l.inst.ENIs()[n], c)
		if change {
			l.change(f)
		}
		all = append(all, f)
	}
	var still []*faulted
	for _, f := range all {
		met := l.met(f)
		l.t.Logf("change %v: %s: %q %s: met %v", change, f.eni.Name(), f.key, f.failure, met)
		if met || !change {
			still = append(still, f)
		}
	}
	for _, f := range still {
		got := l.reaches(f.eni.Name(), func(*state.Interface) bool { return true })
		if got.State != state.ENIConfigured {
			l.t.Errorf("%s with %q %s is %s: %s", f.eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
		if now := l.filesOf(f.eni.Name()); now != f.files {
			l.t.Errorf("%s with %q %s: files changed to\n%s\nbefore\n%s", f.eni.Name(), f.key, f.failure, now, f.files)
		}
	}
	for _, line := range deleted() {
		for _, f := range still {
			if f.concerns(line) {
				l.t.Errorf("%s with %q %s: the kernel lost: %s", f.eni.Name(), f.key, f.failure, line)
			}
		}
	}
	l.lift()
	for _, f := range still {
		if now := l.filesOf(f.eni.Name()); !change && now != f.files {
			l.t.Errorf("%s after %q %s: files changed to\n%s\nbefore\n%s", f.eni.Name(), f.key, f.failure, now, f.files)
		}
	}
}

// faultOfInstance has a daemon that knows nothing start with a fault of the instance's
// keys.
func (l *lab) faultOfInstance(c cell) {
	l.t.Helper()
	files, deleted := l.files(), l.deletions()
	l.run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
	l.run("rm", "-f", "/run/ec2netd/views.json")
	f := l.breakKey(l.inst.Primary(), c)
	l.run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
	l.t.Logf("instance: %q %s", f.key, f.failure)
	if !l.met(f) {
		l.t.Errorf("the key %q is not read at all", f.key)
	}
	for _, eni := range l.inst.ENIs() {
		got := l.reaches(eni.Name(), func(i *state.Interface) bool { return f.explained(i.Reason) })
		if got.State != state.ENIPending {
			l.t.Errorf("%s with %q %s is %s: %s", eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
	}
	if now := l.files(); now != files {
		l.t.Errorf("%q %s: files changed to\n%s\nbefore\n%s", f.key, f.failure, now, files)
	}
	l.lift()
	if now := l.files(); now != files {
		l.t.Errorf("after %q %s: files changed to\n%s\nbefore\n%s", f.key, f.failure, now, files)
	}
	for _, line := range deleted() {
		l.t.Errorf("%q %s: the kernel lost: %s", f.key, f.failure, line)
	}
}

// TestLabConnectionsLost: with three connections in ten lost and 15 ENIs all is
// configured, changes follow, and nothing goes (D3, D6).
func TestLabConnectionsLost(t *testing.T) {
	t.Parallel()
	random := luck(t)
	l := boot(t, "trixie", func(o *vpc.InstanceOptions) {
		o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=3\n"
	})
	l.vpc.SetMetadataLoss(0.3, random.Uint64())
	for range 14 {
		l.attach(vpc.ENISpec{IPv4Count: 2})
	}
	l.lift() // there is no other fault: it waits until all is there
	if l.vpc.MetadataLost() == 0 {
		t.Error("no connection was lost")
	}
	deleted := l.deletions()
	var all []*faulted
	for _, eni := range l.inst.ENIs()[1:] {
		f := &faulted{eni: eni}
		if _, err := eni.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	l.lift()
	for _, line := range deleted() {
		t.Errorf("the kernel lost: %s", line)
	}
	for _, f := range all {
		f.files = l.filesOf(f.eni.Name())
	}
	// The failures of a while, and their end, change nothing more.
	lost := l.vpc.MetadataLost()
	// Those that are there last from look to look: a daemon that starts makes new ones.
	for range 20 {
		l.run("systemctl", "restart", "ec2netd.service")
		time.Sleep(time.Second)
		if l.vpc.MetadataLost() >= lost+5 {
			break
		}
	}
	if now := l.vpc.MetadataLost(); now < lost+5 {
		t.Errorf("%d more connections were lost", now-lost)
	}
	l.vpc.SetMetadataLoss(0, 0)
	l.lift()
	for _, f := range all {
		if now := l.filesOf(f.eni.Name()); now != f.files {
			t.Errorf("lost connections changed the files of %s to\n%s\nbefore\n%s", f.eni.Name(), now, f.files)
		}
	}
}
