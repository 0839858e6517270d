package metadata

import (
	"context"
	"errors"
	"maps"
	"slices"
	"strings"
)

// Dump is the part of the metadata that ec2netd lives on, as the service told it: for
// a plan of what would be made of it, elsewhere and later (H6).
//
// It holds the keys below network/interfaces/macs/ and the few of topKeys, and by that
// never a token, user data or credentials of a role. Directories of an ENI
// (ipv4-associations/) are left out: nothing is made of them.
type Dump struct {
	// Keys are paths below meta-data/ with their values as they came. The names of keys
	// are checked; values are not before [Dump.Instance] and [Dump.ENI] parse them.
	Keys map[string]string `json:"keys"`
	// Errors are the keys that the service lists and could not tell, with the reason. A
	// path that ends in a slash is a listing.
	Errors map[string]string `json:"errors,omitempty"`
}

// topKeys are the keys outside of network/interfaces/macs/ that a dump has: those that
// are read by this package, and what tells instance types apart.
var topKeys = []string{"mac", "instance-id", "instance-type", keyHostname}

// ReadDump reads everything that a [Dump] holds. What cannot be read is noted in it; the
// error is that of the service as a whole.
func (c *Client) ReadDump(ctx context.Context, paths []Path) (*Dump, error) {
	d := &Dump{Keys: make(map[string]string), Errors: make(map[string]string)}
	r := c.reader(paths)
	take := func(key string) error {
		err := r.read(ctx, key, func(body string) error { d.Keys[key] = body; return nil })
		switch {
		case err == nil:
		case ctx.Err() != nil:
			return err
		case KindOf(err) != NotFound:
			d.Errors[key] = err.Error()
		}
		return nil
	}
	// Without an answer to the first there is no service to ask for the others.
	if err := r.read(ctx, topKeys[0], func(body string) error { d.Keys[topKeys[0]] = body; return nil }); err != nil {
		return nil, err
	}
	for _, key := range topKeys[1:] {
		if err := take(key); err != nil {
			return nil, err
		}
	}
	var listed []string
	if err := r.read(ctx, macs, func(body string) error {
		found, unknown, err := parseMACs(body)
		listed = found
		r.ignore("interface", unknown)
		return err
	}); err != nil {
		return nil, err
	}
	for _, mac := range listed {
		dir := macs + mac + "/"
		var exists map[string]bool
		err := r.read(ctx, dir, func(body string) (err error) {
			exists, err = r.keys(body)
			maps.DeleteFunc(exists, func(name string, _ bool) bool { return strings.HasSuffix(name, "/") })
			return err
		})
		switch {
		case ctx.Err() != nil:
			return nil, err
		case err != nil && KindOf(err) == NotFound:
			continue // detached meanwhile
		case err != nil:
			d.Errors[dir] = err.Error()
			continue
		}
		for _, key := range slices.Sorted(maps.Keys(exists)) {
			if err := take(dir + key); err != nil {
				return nil, err
			}
		}
	}
	return d, nil
}

// MACs are the MAC addresses of the ENIs in the dump, sorted.
func (d *Dump) MACs() []string {
	found := make(map[string]bool)
	for _, keys := range []map[string]string{d.Keys, d.Errors} {
		for key := range keys {
			if rest, ok := strings.CutPrefix(key, macs); ok {
				if mac, _, ok := strings.Cut(rest, "/"); ok {
					found[mac] = true
				}
			}
		}
	}
	return slices.Sorted(maps.Keys(found))
}

// Instance is what the dump says of the instance, as [Client.ReadInstance] reads it.
func (d *Dump) Instance() (Instance, error) {
	return (&reader{source: d}).instance(context.Background())
}

// ENI is the view of an ENI in the dump, as [Client.ReadENI] reads it, with the same
// errors.
func (d *Dump) ENI(mac string) (*ENI, error) {
	return (&reader{source: d}).eni(context.Background(), Wanted{MAC: mac})
}

// get implements source. A directory lists what is below it in the dump.
func (d *Dump) get(_ context.Context, _ []Path, key string, _ Path) (string, Path, error) {
	if text, ok := d.Errors[key]; ok {
		return "", Path{}, &Error{Key: key, Kind: ServerError, Err: errors.New("the dump has no value, for it could not be read: " + text)}
	}
	if value, ok := d.Keys[key]; ok {
		return value, Path{}, nil
	}
	var names []string
	if strings.HasSuffix(key, "/") {
		for _, keys := range []map[string]string{d.Keys, d.Errors} {
			for path := range keys {
				if name, ok := strings.CutPrefix(path, key); ok && name != "" && !strings.Contains(name, "/") {
					names = append(names, name)
				}
			}
		}
	}
	if len(names) == 0 {
		return "", Path{}, &Error{Key: key, Kind: NotFound, Err: errors.New("the dump does not have it")}
	}
	slices.Sort(names)
	return strings.Join(names, "\n"), Path{}, nil
}
