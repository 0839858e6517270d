package e2e

import (
	"context"
	"fmt"
	"maps"
	"math/rand/v2"
	"net/netip"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"ec2netd/cmd/vpclab/imds"
	"ec2netd/cmd/vpclab/labtest"
	"ec2netd/cmd/vpclab/vpc"
	"ec2netd/service/state"
)

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
	if !labtest.Long() {
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
func breakKey(l *labtest.Lab, eni *vpc.ENI, c cell) *faulted {
	l.T.Helper()
	f := &faulted{cell: c, eni: eni, since: time.Now(), files: l.FilesOf(eni.Name())}
	fault := imds.Failures()[c.failure]
	fault.Pattern = strings.TrimSuffix("network/interfaces/macs/"+eni.MAC().String()+"/"+c.key, "/")
	if slices.Contains(instanceKeys, c.key) {
		fault.Pattern = c.key
	}
	var err error
	if f.fault, err = l.Inst.Metadata().AddFault(fault); err != nil {
		l.T.Fatal(err)
	}
	return f
}

// hitsOf is how often a fault was met, and reads how often the daemon has begun to read
// the ENI since it is there.
func hitsOf(l *labtest.Lab, f *faulted) (hits, reads int) {
	for _, fault := range l.Inst.Metadata().Faults() {
		if fault.ID == f.fault {
			hits = fault.Hits
		}
	}
	listing := "network/interfaces/macs/" + f.eni.MAC().String()
	for _, r := range l.Inst.Metadata().RequestsSince(f.since) {
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

// meets waits until the daemon has met the fault and says so of the ENI, or has read the
// ENI several times without asking for the key. It tells which.
func meets(l *labtest.Lab, f *faulted) (met bool) {
	l.T.Helper()
	var said string
	ctx, cancel := context.WithTimeout(l.T.Context(), 2*labtest.Patience)
	defer cancel()
	err := vpc.Until(ctx, fmt.Sprintf("%s of %s: %q is met and explained", f.eni.Name(), f.failure, f.key), func() (bool, error) {
		hits, reads := hitsOf(l, f)
		if hits == 0 {
			// A read that had begun before the fault may still be under way in the second.
			met = false
			return reads >= 4, nil
		}
		met = true
		s, err := l.TryDescribe()
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
		hits, reads := hitsOf(l, f)
		l.T.Fatalf("%v; hit %d times in %d reads; the daemon says %s", err, hits, reads, said)
	}
	return met
}

// liftFaults ends all faults, and waits until every ENI is as EC2 has it.
func liftFaults(l *labtest.Lab) {
	l.T.Helper()
	l.Inst.Metadata().ClearFaults()
	asEC2(l)
	for _, eni := range l.Inst.ENIs()[1:] {
		l.CheckKernel(eni)
	}
}

// asEC2 waits until every ENI is configured as EC2 has it.
func asEC2(l *labtest.Lab) {
	l.T.Helper()
	for _, eni := range l.Inst.ENIs() {
		l.AwaitENI(eni.Name(), func(i *state.Interface) bool {
			want := slices.Concat(eni.IPv4(), eni.IPv6())
			numbered := i.Table == labtest.TableOf(eni) || eni == l.Inst.Primary()
			return i.State == state.ENIConfigured && !strings.Contains(i.Reason, "metadata") && numbered &&
				len(i.Addresses) == len(want) && slices.Equal(labtest.Sorted(l.Addresses(eni.Name())), labtest.Sorted(want))
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
	if n := slices.Index(words, "lookup"); n >= 0 && words[n+1] != strconv.Itoa(labtest.TableOf(f.eni)) {
		return false
	}
	for _, source := range append(labtest.Sources(f.eni), f.withdrawn...) {
		if slices.Contains(words, source) {
			return true
		}
	}
	return false
}

// changeAddresses takes of an ENI one address and one prefix away, and gives it others.
func changeAddresses(l *labtest.Lab, f *faulted) {
	l.T.Helper()
	ctx, eni := l.T.Context(), f.eni
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
		l.T.Fatal(err)
	}
}

// TestLabFaultMatrix: in each cell of the matrix of keys, failures and phases nothing
// that was there goes, no file is made of a view that is not complete, the reason is
// shown per ENI, and all converges once the fault is lifted (D3, D4, D5, C1). Several
// ENIs meet a fault each at the same time. It is a sample, with EC2NETD_LONG=1 all.
func TestLabFaultMatrix(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		random := labtest.Luck(t)
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.NetworkCards = 2
			o.Primary = vpc.ENISpec{IPv4Count: 3}
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.AwaitConfigured("ens5")
		keys, spec := slices.Clone(eniKeys), labtest.HotplugSpec()
		if suite == "bookworm" {
			// Now and then networkd of 252 loses a static IPv6 address where DHCPv6 had
			// brought it before: that is not what this test is about.
			keys = slices.DeleteFunc(keys, func(key string) bool { return key == "ipv6s" || key == "ipv6-prefix" })
			spec.IPv6Count, spec.PrefixV6Count = -1, 0
		}
		const several = 4
		for _, cells := range dealt(cellsOf(random, keys), several, 1) {
			firstConfiguration(l, random, spec, cells)
		}
		if !labtest.Long() {
			// The others are not read again while an ENI is attached.
			keys = slices.DeleteFunc(keys, func(key string) bool {
				return !slices.Contains([]string{"", "local-ipv4s", "ipv6s", "ipv4-prefix", "ipv6-prefix"}, key)
			})
		}
		for _, change := range []bool{false, true} {
			for _, cells := range dealt(cellsOf(random, keys), several+1, 1) {
				faultsInForce(l, cells, change)
			}
		}
		for _, cells := range dealt(cellsOf(random, instanceKeys), 1, 1) {
			faultOfInstance(l, cells[0])
		}
		l.CheckLog("err")
	})
}

// firstConfiguration attaches ENIs in the place of all that there are, each with a
// fault.
func firstConfiguration(l *labtest.Lab, random *rand.Rand, spec vpc.ENISpec, cells []cell) {
	l.T.Helper()
	ctx := l.T.Context()
	for _, eni := range l.Inst.ENIs()[1:] {
		if err := eni.Delete(ctx); err != nil {
			l.T.Fatal(err)
		}
	}
	l.Until("only the primary is left", func() (bool, error) { return len(l.Describe().Interfaces) == 1, nil })
	deleted := l.WatchDeletions()
	before := l.FilesOf("ens5")
	var all []*faulted
	for _, c := range cells {
		card := random.IntN(2)
		spec.NetworkCard = &card
		eni, err := l.Inst.Create(ctx, spec)
		if err != nil {
			l.T.Fatal(err)
		}
		f := breakKey(l, eni, c)
		eni.Publish(imds.Propagation{})
		if err := eni.Plug(ctx); err != nil {
			l.T.Fatal(err)
		}
		all = append(all, f)
	}
	for _, f := range all {
		l.T.Logf("first: %s: %q %s", f.eni.Name(), f.key, f.failure)
		if !meets(l, f) {
			l.T.Errorf("the key %q is not read at all", f.key)
		}
		if got := l.AwaitENI(f.eni.Name(), func(i *state.Interface) bool { return f.explained(i.Reason) }); got.State != state.ENIPending {
			l.T.Errorf("%s with %q %s is %s: %s", f.eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
		if files := l.FilesOf(f.eni.Name()); strings.Contains(files, "\nTable=") || strings.Contains(files, "\nAddress=") || strings.Contains(files, "AlternativeName") {
			l.T.Errorf("%s was written of a view that is not complete:\n%s", f.eni.Name(), files)
		}
	}
	for _, line := range deleted() {
		if slices.Contains(strings.Fields(line), "ens5") || !strings.Contains(line, " dev ") && !strings.Contains(line, "ens") {
			l.T.Errorf("with ENIs that cannot be read the kernel lost: %s", line)
		}
	}
	if now := l.FilesOf("ens5"); now != before {
		l.T.Errorf("ENIs that cannot be read changed the primary's files:\n%s\nbefore:\n%s", now, before)
	}
	liftFaults(l)
}

// faultsInForce has each ENI meet a fault, and change meanwhile or not.
func faultsInForce(l *labtest.Lab, cells []cell, change bool) {
	l.T.Helper()
	deleted := l.WatchDeletions()
	var all []*faulted
	for n, c := range cells {
		f := breakKey(l, l.Inst.ENIs()[n], c)
		if change {
			changeAddresses(l, f)
		}
		all = append(all, f)
	}
	var still []*faulted
	for _, f := range all {
		met := meets(l, f)
		l.T.Logf("change %v: %s: %q %s: met %v", change, f.eni.Name(), f.key, f.failure, met)
		if met || !change {
			still = append(still, f)
		}
	}
	for _, f := range still {
		got := l.AwaitENI(f.eni.Name(), func(*state.Interface) bool { return true })
		if got.State != state.ENIConfigured {
			l.T.Errorf("%s with %q %s is %s: %s", f.eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
		if now := l.FilesOf(f.eni.Name()); now != f.files {
			l.T.Errorf("%s with %q %s: files changed to\n%s\nbefore\n%s", f.eni.Name(), f.key, f.failure, now, f.files)
		}
	}
	for _, line := range deleted() {
		for _, f := range still {
			if f.concerns(line) {
				l.T.Errorf("%s with %q %s: the kernel lost: %s", f.eni.Name(), f.key, f.failure, line)
			}
		}
	}
	liftFaults(l)
	for _, f := range still {
		if now := l.FilesOf(f.eni.Name()); !change && now != f.files {
			l.T.Errorf("%s after %q %s: files changed to\n%s\nbefore\n%s", f.eni.Name(), f.key, f.failure, now, f.files)
		}
	}
}

// faultOfInstance has a daemon that knows nothing start with a fault of the instance's
// keys.
func faultOfInstance(l *labtest.Lab, c cell) {
	l.T.Helper()
	files, deleted := l.Files(), l.WatchDeletions()
	l.Run("systemctl", "stop", "ec2netd.service", "ec2netd.socket")
	l.Run("rm", "-f", "/run/ec2netd/views.json")
	f := breakKey(l, l.Inst.Primary(), c)
	l.Run("systemctl", "start", "ec2netd.socket", "ec2netd.service")
	l.T.Logf("instance: %q %s", f.key, f.failure)
	if !meets(l, f) {
		l.T.Errorf("the key %q is not read at all", f.key)
	}
	for _, eni := range l.Inst.ENIs() {
		got := l.AwaitENI(eni.Name(), func(i *state.Interface) bool { return f.explained(i.Reason) })
		if got.State != state.ENIPending {
			l.T.Errorf("%s with %q %s is %s: %s", eni.Name(), f.key, f.failure, got.State, got.Reason)
		}
	}
	if now := l.Files(); now != files {
		l.T.Errorf("%q %s: files changed to\n%s\nbefore\n%s", f.key, f.failure, now, files)
	}
	liftFaults(l)
	if now := l.Files(); now != files {
		l.T.Errorf("after %q %s: files changed to\n%s\nbefore\n%s", f.key, f.failure, now, files)
	}
	for _, line := range deleted() {
		l.T.Errorf("%q %s: the kernel lost: %s", f.key, f.failure, line)
	}
}

// TestLabConnectionsLost: with three connections in ten lost and 15 ENIs all is
// configured, changes follow, and nothing goes (D3, D6).
func TestLabConnectionsLost(t *testing.T) {
	t.Parallel()
	random := labtest.Luck(t)
	l := labtest.Boot(t, "trixie", func(o *vpc.InstanceOptions) {
		o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=3\n"
	})
	l.VPC.SetMetadataLoss(0.3, random.Uint64())
	for range 14 {
		l.Attach(vpc.ENISpec{IPv4Count: 2})
	}
	liftFaults(l) // there is no other fault: it waits until all is there
	if l.VPC.MetadataLost() == 0 {
		t.Error("no connection was lost")
	}
	deleted := l.WatchDeletions()
	var all []*faulted
	for _, eni := range l.Inst.ENIs()[1:] {
		f := &faulted{eni: eni}
		if _, err := eni.AssignIPv4(t.Context()); err != nil {
			t.Fatal(err)
		}
		all = append(all, f)
	}
	liftFaults(l)
	for _, line := range deleted() {
		t.Errorf("the kernel lost: %s", line)
	}
	for _, f := range all {
		f.files = l.FilesOf(f.eni.Name())
	}
	// The failures of a while, and their end, change nothing more.
	lost := l.VPC.MetadataLost()
	// Those that are there last from look to look: a daemon that starts makes new ones.
	for range 20 {
		l.Run("systemctl", "restart", "ec2netd.service")
		time.Sleep(time.Second)
		if l.VPC.MetadataLost() >= lost+5 {
			break
		}
	}
	if now := l.VPC.MetadataLost(); now < lost+5 {
		t.Errorf("%d more connections were lost", now-lost)
	}
	l.VPC.SetMetadataLoss(0, 0)
	liftFaults(l)
	for _, f := range all {
		if now := l.FilesOf(f.eni.Name()); now != f.files {
			t.Errorf("lost connections changed the files of %s to\n%s\nbefore\n%s", f.eni.Name(), now, f.files)
		}
	}
}

// D3, D4: neither errors nor malformed values of the metadata take anything away.
func TestLabMetadataFaults(t *testing.T) {
	labtest.EachSuite(t, func(t *testing.T, suite string) {
		l := labtest.Boot(t, suite, func(o *vpc.InstanceOptions) {
			o.Files["/etc/ec2netd.conf.d/test.conf"] = "[Metadata]\nRefreshSec=1\n"
		})
		l.AwaitConfigured("ens5")
		eni := l.Attach(labtest.HotplugSpec())
		l.AwaitConfigured(eni.ID())
		l.CountDrops()
		service := l.Inst.Metadata()
		files := l.Files()
		dir := "network/interfaces/macs/" + eni.MAC().String() + "/"
		for _, fault := range []imds.Fault{
			{Pattern: "**", Effect: imds.Status, Status: 500},
			{Pattern: "**", Effect: imds.Status, Status: 403},
			{Pattern: imds.TokenKey, Effect: imds.Status, Status: 403},
			{Pattern: dir + "local-ipv4s", Effect: imds.Status, Status: 404},
			{Pattern: dir + "local-ipv4s", Effect: imds.Empty},
			{Pattern: dir + "ipv4-prefix", Effect: imds.HTML},
			{Pattern: strings.TrimSuffix(dir, "/"), Effect: imds.Status, Status: 404},
			{Pattern: strings.TrimSuffix(dir, "/"), Effect: imds.HTML},
			{Pattern: dir + "**", Effect: imds.Reset},
			{Pattern: dir + "ipv6s", Effect: imds.Body, Body: "2001:db8::1\n[Match]\nName=*"},
		} {
			id, err := service.AddFault(fault)
			if err != nil {
				t.Fatal(err)
			}
			if fault.Pattern == imds.TokenKey {
				service.RevokeTokens()
			}
			got := l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.Reason != "" })
			if got.State != state.ENIConfigured {
				t.Errorf("%s: %s: %s", fault, got.State, got.Reason)
			}
			// The key is named; a directory that is not there stands for all its keys.
			if key := filepath.Base(fault.Pattern); !strings.Contains(key, "*") && fault.Status != 404 && !strings.Contains(got.Reason, key) {
				t.Errorf("%s: the reason does not name the key: %s", fault, got.Reason)
			}
			l.CheckKernel(eni)
			service.ClearFault(id)
			l.AwaitENI(eni.ID(), func(i *state.Interface) bool { return i.State == state.ENIConfigured && i.Reason == "" })
			if now := l.Files(); now != files {
				t.Errorf("%s: files changed:\n%s\nbefore:\n%s", fault, now, files)
			}
		}
		l.AwaitManager(state.Configured)
		l.CheckDrops()
	})
}
