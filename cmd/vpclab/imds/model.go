package imds

import (
	"fmt"
	"maps"
	"net/netip"
	"path"
	"slices"
	"strconv"
	"strings"
	"time"
)

// macsDir is the directory with one subdirectory per ENI.
const macsDir = "network/interfaces/macs"

// Instance contains the top-level keys. The zero value of a field omits its key.
type Instance struct {
	ID           string     // i-0123456789abcdef0
	Type         string     // m7i.large
	AMI          string     // ami-0123456789abcdef0
	MAC          string     // of the primary ENI
	LocalIPv4    netip.Addr // primary address of the primary ENI
	IPv6         netip.Addr // first IPv6 address of the primary ENI
	Hostname     string     // for hostname, local-hostname
	PublicName   string     // public-hostname
	Region       string     // us-east-1
	Zone         string     // us-east-1a
	ZoneID       string     // use1-az1
	AccountID    string     // owner in the identity document
	Architecture string     // x86_64, in the identity document
}

// Keys returns the metadata keys of the instance, relative to meta-data/.
func (i Instance) Keys() map[string]string {
	k := map[string]string{
		"services/domain":     "amazonaws.com",
		"services/partition":  "aws",
		"ami-launch-index":    "0",
		"instance-life-cycle": "on-demand",
	}
	put := func(key, value string) {
		if value != "" {
			k[key] = value
		}
	}
	put("instance-id", i.ID)
	put("instance-type", i.Type)
	put("ami-id", i.AMI)
	put("mac", i.MAC)
	if i.LocalIPv4.IsValid() {
		k["local-ipv4"] = i.LocalIPv4.String()
	}
	if i.IPv6.IsValid() {
		k["ipv6"] = i.IPv6.String()
	}
	put("hostname", i.Hostname)
	put("local-hostname", i.Hostname)
	put("public-hostname", i.PublicName)
	put("placement/region", i.Region)
	put("placement/availability-zone", i.Zone)
	put("placement/availability-zone-id", i.ZoneID)
	return k
}

// Interface is the metadata of one ENI. The zero value of a field omits its key, as EC2
// does.
type Interface struct {
	MAC              string // identity: the directory's name, lower case
	ID               string // eni-…
	DeviceNumber     int
	NetworkCard      *int         // only on instance types with several cards
	IPv4             []netip.Addr // the primary address first
	IPv6             []netip.Addr
	IPv4Prefixes     []netip.Prefix // delegated, /28
	IPv6Prefixes     []netip.Prefix // delegated, /80
	SubnetID         string
	SubnetIPv4       netip.Prefix
	SubnetIPv6       []netip.Prefix
	VPCID            string
	VPCIPv4          []netip.Prefix
	VPCIPv6          []netip.Prefix
	SecurityGroups   []string
	SecurityGroupIDs []string
	OwnerID          string
	LocalHostname    string
	PublicIPv4       []netip.Addr
	PublicHostname   string
}

// Keys returns the metadata keys of the ENI, relative to its own directory.
func (i Interface) Keys() map[string]string {
	k := map[string]string{
		"mac":           i.MAC,
		"interface-id":  i.ID,
		"device-number": strconv.Itoa(i.DeviceNumber),
	}
	put := func(key string, lines ...string) {
		lines = slices.DeleteFunc(lines, func(s string) bool { return s == "" })
		if len(lines) > 0 {
			k[key] = strings.Join(lines, "\n")
		}
	}
	if i.NetworkCard != nil {
		put("network-card", strconv.Itoa(*i.NetworkCard))
	}
	put("local-ipv4s", texts(i.IPv4)...)
	put("ipv6s", texts(i.IPv6)...)
	put("ipv4-prefix", texts(i.IPv4Prefixes)...)
	put("ipv6-prefix", texts(i.IPv6Prefixes)...)
	put("subnet-id", i.SubnetID)
	if i.SubnetIPv4.IsValid() {
		put("subnet-ipv4-cidr-block", i.SubnetIPv4.String())
	}
	put("subnet-ipv6-cidr-blocks", texts(i.SubnetIPv6)...)
	put("vpc-id", i.VPCID)
	if len(i.VPCIPv4) > 0 {
		put("vpc-ipv4-cidr-block", i.VPCIPv4[0].String())
	}
	put("vpc-ipv4-cidr-blocks", texts(i.VPCIPv4)...)
	put("vpc-ipv6-cidr-blocks", texts(i.VPCIPv6)...)
	put("security-groups", i.SecurityGroups...)
	put("security-group-ids", i.SecurityGroupIDs...)
	put("owner-id", i.OwnerID)
	put("local-hostname", i.LocalHostname)
	put("public-hostname", i.PublicHostname)
	put("public-ipv4s", texts(i.PublicIPv4)...)
	for n, public := range i.PublicIPv4 {
		if n < len(i.IPv4) {
			put("ipv4-associations/"+public.String(), i.IPv4[n].String())
		}
	}
	return k
}

// withoutSecondaries returns the ENI with only the primary address of each family.
func (i Interface) withoutSecondaries() Interface {
	i.IPv4, i.IPv6 = i.IPv4[:min(1, len(i.IPv4))], i.IPv6[:min(1, len(i.IPv6))]
	i.IPv4Prefixes, i.IPv6Prefixes = nil, nil
	return i
}

func texts[T fmt.Stringer](list []T) []string {
	out := make([]string, len(list))
	for n, v := range list {
		out[n] = v.String()
	}
	return out
}

// Held as a delay hides a key until [Server.Reveal] names it.
const Held = time.Duration(-1)

// Propagation says when the keys of a changed ENI become visible, counted from the change.
// A key that is not visible yet keeps its value from before the change. A new key is
// missing in the listing and reads 404, except device-number, which reads 0 until it has
// propagated, as with EC2, where the top-level mac is right from the start (facts:
// late-keys). With the zero value everything is visible at once.
type Propagation struct {
	// Listed is how long a new ENI is not listed: no key of it appears before, whatever
	// its own delay, and device-number reads 0 from then on. [Held] waits for Reveal, as
	// everywhere here.
	Listed time.Duration
	// Secondaries is the delay of the secondary addresses of both families and of the
	// delegated prefixes of a new ENI. Until then a key that also has the primary address
	// contains only that.
	Secondaries time.Duration
	// Default is the delay of the keys that are not in Keys.
	Default time.Duration
	// Keys is the delay of single keys, by their name relative to the ENI's directory:
	// "device-number", "local-ipv4s". [Held] waits for Reveal.
	Keys map[string]time.Duration
}

// later returns the longer of two delays; none is longer than Held.
func later(a, b time.Duration) time.Duration {
	if a == Held || b == Held {
		return Held
	}
	return max(a, b)
}

func (p Propagation) of(key string) time.Duration {
	if d, ok := p.Keys[key]; ok {
		return d
	}
	return p.Default
}

// step is the value of a key after a delay.
type step struct {
	text  string
	delay time.Duration
}

// steps returns the values of a key of a new ENI until it has its final text. Without the
// secondary addresses and prefixes its value is primary, "" if it is absent then.
func (p Propagation) steps(key, primary, text string, listed time.Duration) []step {
	delay := later(listed, p.of(key))
	switch {
	case key == "device-number":
		return []step{{"0", listed}, {text, delay}}
	case primary == text:
		return []step{{text, delay}}
	case primary == "":
		return []step{{text, later(delay, p.Secondaries)}}
	}
	return []step{{primary, delay}, {text, later(delay, p.Secondaries)}}
}

// value is the value of one key from some moment on.
type value struct {
	from   time.Time
	held   bool // not before Reveal, whatever from says
	exists bool
	text   string
}

// tree contains the metadata keys, by their path below meta-data/, each with its
// successive values. Directories are not stored: they follow from the keys.
type tree map[string][]value

// at returns the value of key at a moment.
func (t tree) at(key string, now time.Time) (string, bool) {
	var current value
	for _, v := range t[key] {
		if v.held || v.from.After(now) {
			break
		}
		current = v
	}
	return current.text, current.exists
}

// set gives key the value text, or removes it, after a delay; it drops all later values.
func (t tree) set(key, text string, exists bool, now time.Time, delay time.Duration) {
	next := value{from: now.Add(max(delay, 0)), held: delay == Held, exists: exists, text: text}
	old, existed := t.at(key, now)
	switch {
	case delay == 0 && !exists:
		delete(t, key)
	case delay == 0:
		t[key] = []value{next}
	case existed:
		t[key] = []value{{exists: true, text: old}, next}
	default:
		t[key] = []value{next}
	}
}

// add gives key the value text after all its other values.
func (t tree) add(key, text string, now time.Time, delay time.Duration) {
	t[key] = append(t[key], value{from: now.Add(max(delay, 0)), held: delay == Held, exists: true, text: text})
}

// amend changes the last value of key, which keeps its time.
func (t tree) amend(key, text string) {
	t[key][len(t[key])-1].text = text
}

// appears returns the delay until the first key of a directory is readable, and whether
// none is yet.
func (t tree) appears(dir string, now time.Time) (delay time.Duration, pending bool) {
	delay = Held
	for _, key := range t.under(dir) {
		if _, visible := t.at(key, now); visible {
			return 0, false
		}
		for _, v := range t[key] {
			if left := v.from.Sub(now); v.exists && !v.held && (delay == Held || left < delay) {
				delay = left
			}
		}
	}
	return delay, true
}

// reveal makes the last value of key the current one.
func (t tree) reveal(key string) {
	if vs := t[key]; len(vs) > 0 {
		last := vs[len(vs)-1]
		last.held, last.from = false, time.Time{}
		if !last.exists {
			delete(t, key)
			return
		}
		t[key] = []value{last}
	}
}

// under returns the keys below a directory, in order.
func (t tree) under(dir string) []string {
	prefix := dir + "/"
	var keys []string
	for _, key := range slices.Sorted(maps.Keys(t)) {
		if strings.HasPrefix(key, prefix) {
			keys = append(keys, key)
		}
	}
	return keys
}

// reader answers requests as of one moment.
type reader struct {
	tree      tree
	overrides map[string]string
	now       time.Time
}

func (r reader) leaf(key string) (string, bool) {
	if text, ok := r.overrides[key]; ok {
		return text, true
	}
	return r.tree.at(key, r.now)
}

// list returns the entries of a directory, sorted by name, subdirectories with a final
// slash. An empty directory does not exist.
func (r reader) list(dir string) ([]string, bool) {
	prefix := ""
	if dir != "" {
		prefix = dir + "/"
	}
	entries := make(map[string]bool) // name → is a directory
	add := func(key string) {
		rest, ok := strings.CutPrefix(key, prefix)
		if !ok || rest == "" {
			return
		}
		name, _, isDir := strings.Cut(rest, "/")
		entries[name] = entries[name] || isDir
	}
	for key := range r.tree {
		if _, ok := r.tree.at(key, r.now); ok {
			add(key)
		}
	}
	for key := range r.overrides {
		add(key)
	}
	if len(entries) == 0 {
		return nil, false
	}
	var names []string
	for _, name := range slices.Sorted(maps.Keys(entries)) {
		if entries[name] {
			name += "/"
		}
		names = append(names, name)
	}
	return names, true
}

// key returns the key for the path after meta-data in a URL: without a leading or final
// slash. A path that is not in its shortest form has no key.
func cleanKey(s string) (key string, slash, ok bool) {
	key = strings.TrimPrefix(s, "/")
	key, slash = strings.CutSuffix(key, "/")
	if key == "" {
		return "", slash, true
	}
	return key, slash, path.Clean(key) == key && !strings.HasPrefix(key, "..")
}
