package metadata

import (
	"context"
	"errors"
	"net/http"
	"slices"
	"sync"
)

// keyHostname is the private DNS name of the primary ENI.
const keyHostname = "local-hostname"

const macs = "network/interfaces/macs/"

// ReadInstance reads what does not change while the instance runs.
func (c *Client) ReadInstance(ctx context.Context, paths []Path) (Instance, error) {
	instance, err := c.reader(paths).instance(ctx)
	c.SetInstance(instance.ID)
	return instance, err
}

func (r *reader) instance(ctx context.Context) (Instance, error) {
	var instance Instance
	for _, err := range r.readAll(ctx, []keyReader{
		{"mac", func(body string) (err error) { instance.PrimaryMAC, err = parseMAC(body); return err }},
		{"instance-id", func(body string) (err error) { instance.ID, err = parseInstanceID(body); return err }},
	}) {
		if err != nil {
			return Instance{}, err
		}
	}
	return instance, nil
}

// ReadHostname reads the private DNS name of the primary ENI, as a name that a host can
// have.
func (c *Client) ReadHostname(ctx context.Context, paths []Path) (name string, err error) {
	err = c.reader(paths).read(ctx, keyHostname, func(body string) (err error) {
		name, err = parseHostname(body)
		return err
	})
	return name, err
}

// Probe asks for one key over one path, whatever is known of that path, and tells why it
// gave no answer. It is for finding out what is wrong: reads try paths by themselves.
func (c *Client) Probe(ctx context.Context, path Path) error {
	body, _, err := c.getOver(ctx, path, "mac", false)
	if err != nil {
		return err
	}
	if _, err := parseMAC(body); err != nil {
		return &Error{Key: "mac", Kind: Malformed, Status: http.StatusOK, Err: err}
	}
	return nil
}

// Wanted names the ENI whose view [Client.ReadENI] reads.
type Wanted struct {
	// MAC address of the ENI.
	MAC string
	// Primary: the ENI is the instance's primary one.
	Primary bool
	// Known is the last view of the same attachment, or nil: what does not change
	// while an ENI is attached is taken from it rather than read again (D8).
	Known *ENI
	// Doubtful: the numbers of Known cannot be used yet, so a whole view reads them again
	// (D11).
	Doubtful bool
	// Look is how much of the ENI is read. If that is a part of Known and the part is as
	// Known says, Known is the view. If it is not, the whole view is read at once.
	Look Look
	// Turn, from 1 to [ENI.Turns] of Known, is the part that [InTurn] looks at. Often is how
	// often a round of turns looks at addresses, as for Turns.
	Turn, Often int
	// Cards: other ENIs of the instance have a network card.
	Cards bool
}

// Look is how much of an ENI is read.
type Look int

const (
	// Whole reads a whole view.
	Whole Look = iota
	// InTurn looks at a part of what can change, with at most two requests (D8).
	InTurn
	// AtNumbers looks at the numbers, with one request, or two where network cards matter
	// (D11).
	AtNumbers
	// AtAddresses looks at what EC2 lists late of a new ENI: the listing and the addresses of
	// each family, with at most four requests side by side (D11).
	AtAddresses
)

// part is what is looked at of Known, the listing as an empty key; nothing for a whole view.
func (w *Wanted) part() []string {
	known := w.Known
	switch {
	case known == nil:
	case w.Look == AtNumbers && known.NetworkCard != nil:
		return []string{keyDeviceNumber, keyNetworkCard}
	case w.Look == AtNumbers && w.Cards:
		return []string{keyDeviceNumber, ""}
	case w.Look == AtNumbers:
		return []string{keyDeviceNumber}
	case w.Look == AtAddresses:
		part := []string{""}
		for _, k := range eniKeys {
			if k.rank == assigned && k.has(known) {
				part = append(part, k.name)
			}
		}
		if known.onOtherCard() {
			part = append(part, keyDeviceNumber)
		}
		return part
	case w.Look == InTurn && (w.numbered() || known.onOtherCard()):
		round := known.round(w.Often)
		return round[min(max(w.Turn, 1), len(round))-1]
	}
	return nil
}

// numbered reports whether the numbers of Known need not be read again. A secondary ENI that
// reads device-number 0 may be one whose attachment has not propagated (B4).
func (w *Wanted) numbered() bool {
	return w.Known != nil && !w.Doubtful && (w.Primary || w.Known.DeviceIndex != 0)
}

// perTurn is how many requests a turn makes (D8).
const perTurn = 2

// Turns is how many turns make a round, in which all that can change of an ENI is looked
// at: the listing, which shows keys that appear and vanish, and each key that changes.
// With often 1 it is 1 for an ENI with IPv4 addresses only, 2 with IPv6 addresses as
// well, and 3 at most, and a round costs what one whole view does. With more, there are
// that many turns if not more, and addresses are looked at as often, as far as the
// requests of the turns allow: those of IPv4 first.
func (e *ENI) Turns(often int) int { return len(e.round(often)) }

// round is what is looked at in each turn, the listing as an empty key.
func (e *ENI) round(often int) [][]string {
	var repeated []string
	once := []string{""}
	for _, k := range eniKeys {
		switch {
		case !k.has(e):
		case k.rank == assigned:
			repeated = append(repeated, k.name)
		case k.rank.changes():
			once = append(once, k.name)
		}
	}
	if e.onOtherCard() {
		once = append(once, keyDeviceNumber)
	}
	turns := (len(repeated) + len(once) + perTurn - 1) / perTurn
	if len(repeated) > 0 {
		turns = max(turns, often)
	}
	round := make([][]string, turns)
	// spread puts a key into as many turns, evenly where there is room.
	spread := func(key string, times int) {
		for i := range times {
			turn := i * turns / times
			for len(round[turn]) == perTurn || slices.Contains(round[turn], key) {
				turn = (turn + 1) % turns
			}
			round[turn] = append(round[turn], key)
		}
	}
	room := perTurn*turns - len(once) - len(repeated)
	for _, key := range repeated {
		more := min(max(often, 1)-1, room)
		room -= more
		spread(key, 1+more)
	}
	for _, key := range once {
		spread(key, 1)
	}
	return round
}

// onOtherCard tells whether device index 0 may be an ENI's own, since it is not on the
// first card; or what reads 0 until the attachment has propagated. So it is looked at with
// what can change.
func (e *ENI) onOtherCard() bool {
	return e.DeviceIndex == 0 && e.NetworkCard != nil && *e.NetworkCard > 0
}

// unchanged looks at a part of an ENI, side by side, and reports whether it is as known.
func (r *reader) unchanged(ctx context.Context, known *ENI, part []string) (bool, error) {
	same := make([]bool, len(part))
	keys := make([]keyReader, len(part))
	for i, key := range part {
		check := r.check(known, key)
		keys[i] = keyReader{key, func(body string) (err error) {
			same[i], err = check(body)
			return err
		}}
	}
	for i, err := range r.readAll(ctx, keys) {
		if err != nil && KindOf(err) == NotFound {
			same[i], err = false, nil
		}
		if err != nil || !same[i] {
			return false, err
		}
	}
	return true, nil
}

// check returns what reports whether a key, or the listing, is as known.
func (r *reader) check(known *ENI, name string) func(body string) (bool, error) {
	if name == "" {
		return func(body string) (bool, error) {
			exists, err := r.keys(body)
			return known.has(exists), err
		}
	}
	return func(body string) (bool, error) {
		var now ENI
		k := keyNamed(name)
		err := k.parse(&now, body)
		return err == nil && k.same(known, &now), err
	}
}

// has tells whether a listing has the keys that the view was read from.
func (e *ENI) has(exists map[string]bool) bool {
	return !slices.ContainsFunc(eniKeys, func(k eniKey) bool { return exists[k.name] != k.has(e) })
}

// ReadENI reads one complete view of an ENI. The directory listing tells which keys
// exist, so that none is probed in vain (D5). The error is an [*Error], or an
// [*IncompleteError] where the service answered but does not tell all yet.
func (c *Client) ReadENI(ctx context.Context, paths []Path, want Wanted) (*ENI, error) {
	return c.reader(paths).eni(ctx, want)
}

func (r *reader) eni(ctx context.Context, want Wanted) (*ENI, error) {
	known := want.Known
	// The path of a request is joined and cleaned by the SDK: never let anything
	// but a MAC address into it.
	mac, err := ParseMAC(want.MAC)
	if err != nil {
		return nil, &Error{Key: macs, Kind: Malformed, Err: err}
	}
	r.base = macs + mac + "/"
	if part := want.part(); len(part) > 0 {
		same, err := r.unchanged(ctx, known, part)
		if err != nil {
			return nil, err
		}
		if same {
			return known, nil
		}
	}
	exists, err := r.listing(ctx, mac)
	if err != nil {
		return nil, err
	}
	eni := &ENI{MAC: mac}
	settled := want.numbered() && exists[keyNetworkCard] == (known.NetworkCard != nil)
	carried, read := make(map[string]bool), make(map[string]bool)
	for _, k := range eniKeys {
		if exists[k.name] && known != nil && k.has(known) && !k.rank.changes() && (k.rank != numbers || settled) {
			k.carry(eni, known)
			carried[k.name] = true
		}
	}
	for range 2 {
		var needed []keyReader
		for i := range eniKeys {
			k := &eniKeys[i]
			// What a known subnet lacks shows once the addresses are read.
			if exists[k.name] && !read[k.name] && (!carried[k.name] || (k.rank == ofSubnet && eni.outside(k))) {
				read[k.name] = true
				needed = append(needed, keyReader{k.name, func(body string) error { return k.parse(eni, body) }})
			}
		}
		for i, err := range r.readAll(ctx, needed) {
			if err != nil && KindOf(err) == NotFound {
				// Listed a moment ago and gone now: the view is changing under us.
				return nil, &IncompleteError{MAC: mac, Missing: []string{needed[i].name}, Vanished: true}
			}
			if err != nil {
				return nil, err
			}
		}
	}
	if key, err := eni.misplaced(); err != nil {
		return nil, &Error{Key: r.base + key, Kind: Malformed, Status: http.StatusOK, Err: err}
	}
	return eni, nil
}

// listing reads which keys an ENI has.
func (r *reader) listing(ctx context.Context, mac string) (exists map[string]bool, err error) {
	err = r.read(ctx, "", func(body string) (err error) {
		exists, err = r.keys(body)
		return err
	})
	if KindOf(err) == NotFound && err != nil {
		return nil, incomplete(mac)
	}
	if err != nil {
		return nil, err
	}
	if missing := missingKeys(exists); len(missing) > 0 {
		return nil, incomplete(mac, missing...)
	}
	return exists, nil
}

// keys reads the listing of an ENI's directory, and passes on what of it is not known.
func (r *reader) keys(body string) (map[string]bool, error) {
	exists, unknown, err := parseKeys(body)
	r.ignore("key of an ENI", unknown)
	return exists, err
}

// ignore names what a listing has and nobody knows.
func (r *reader) ignore(what string, names []string) {
	for _, name := range names {
		if r.ignored != nil {
			r.ignored(what, name)
		}
	}
}

// keyReader is a key, and what takes its value.
type keyReader struct {
	name  string
	parse func(body string) error
}

// missingKeys tells what a listing lacks for the ENI to be configured. Which family
// is in use follows from the keys alone (A7): an IPv4 subnet means an IPv4 address,
// and every ENI has a subnet of at least one family.
func missingKeys(exists map[string]bool) []string {
	var missing []string
	need := func(key string) {
		if !exists[key] && !slices.Contains(missing, key) {
			missing = append(missing, key)
		}
	}
	for _, k := range eniKeys {
		if k.always {
			need(k.name)
		}
	}
	if exists[keyIPv4Subnet] || exists[keyIPv4Prefixes] {
		need(keyIPv4)
	}
	if exists[keyIPv4] {
		need(keyIPv4Subnet)
	}
	if exists[keyIPv6] || exists[keyIPv6Prefixes] {
		need(keyIPv6Subnets)
	}
	switch {
	case exists[keyIPv4], exists[keyIPv6], exists[keyIPv6Prefixes]:
	case exists[keyIPv6Subnets] && !exists[keyIPv4Subnet]:
		need(keyIPv6)
	default:
		need(keyIPv4)
	}
	return missing
}

// source gives the value of a key below meta-data/ over the paths in order, see
// [Client.get].
type source interface {
	get(ctx context.Context, paths []Path, key string, proven Path) (body string, used Path, err error)
}

// reader reads keys of one view, and stays on the path that answered.
type reader struct {
	source source
	base   string
	// beside runs a function beside the caller; nil: in its place.
	beside func(func())
	mu     sync.Mutex // guards paths and proven
	paths  []Path
	// proven is the path that answered last.
	proven Path
	// ignored is told of names in listings that are not known, as [Options].Ignored; nil for nobody.
	ignored func(what, name string)
}

// reader returns one for the paths.
func (c *Client) reader(paths []Path) *reader {
	return &reader{source: c, paths: c.order(paths), beside: c.helpers.run, ignored: c.ignored.tell}
}

// ignored tells of each name in a listing that is not known, once (D13).
type ignored struct {
	mu   sync.Mutex
	told map[string]bool
	to   func(what, name string)
}

// maxIgnored bounds how many names are kept as told. Beyond that nobody is told: the service
// is making them up.
const maxIgnored = 64

func (i *ignored) tell(what, name string) {
	if i.to == nil {
		return
	}
	name = clip(name)
	i.mu.Lock()
	known := i.told[name] || len(i.told) >= maxIgnored
	if !known {
		i.told[name] = true
	}
	i.mu.Unlock()
	if !known {
		i.to(what, name)
	}
}

// readAll reads keys side by side, so that they take one round trip (D10), and returns the
// error of each. systemd-imdsd is asked for one at a time, up to the first error.
func (r *reader) readAll(ctx context.Context, keys []keyReader) []error {
	errs := make([]error, len(keys))
	oneByOne := r.beside == nil || (len(r.paths) > 0 && r.paths[0].Socket != "")
	var others sync.WaitGroup
	for i := range keys {
		read := func() { errs[i] = r.read(ctx, keys[i].name, keys[i].parse) }
		if !oneByOne && i < len(keys)-1 {
			others.Add(1)
			r.beside(func() { defer others.Done(); read() })
			continue
		}
		if read(); oneByOne && errs[i] != nil {
			break
		}
	}
	others.Wait()
	return errs
}

func (r *reader) read(ctx context.Context, key string, parse func(string) error) error {
	r.mu.Lock()
	paths, proven := r.paths, r.proven
	r.mu.Unlock()
	body, used, err := r.source.get(ctx, paths, r.base+key, proven)
	if used != (Path{}) {
		r.mu.Lock()
		r.proven = used
		// Do not wait for a dead path again in this view.
		if i := slices.Index(r.paths, used); i > 0 {
			r.paths = append([]Path{used}, slices.Delete(slices.Clone(r.paths), i, i+1)...)
		}
		r.mu.Unlock()
	}
	if err != nil {
		return err
	}
	if err := parse(body); err != nil {
		var typed *Error
		if errors.As(err, &typed) {
			return err
		}
		return &Error{Key: r.base + key, Kind: Malformed, Status: http.StatusOK, Err: err}
	}
	return nil
}
