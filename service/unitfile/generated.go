package unitfile

import (
	"net/netip"
	"path"
	"slices"
	"strings"

	"ec2netd/service/dropin"
)

// Network returns the generated .network drop-in of a link, nil if there is none. It is the same one
// as long as the file has not changed.
func (t *Tree) Network(link string) *dropin.Network {
	f := t.file(dropin.NetworkDropIn(link))
	t.note(f)
	if f.Content == nil {
		return dropin.ParseNetwork("")
	}
	return f.Content.network()
}

// LinkDropIn returns the generated .link drop-in of a link, nil if there is none.
func (t *Tree) LinkDropIn(link string) *dropin.Link {
	f := t.file(dropin.LinkDropIn(link))
	t.note(f)
	if f.Content == nil {
		return dropin.ParseLink("")
	}
	return f.Content.link()
}

// Generated returns the names of the links for which this daemon has generated a .network unit.
func (t *Tree) Generated() []string {
	var links []string
	for _, dir := range t.dirs {
		if dir.Path != dropin.Directory {
			continue
		}
		for _, sub := range dir.Subs {
			name, ok := strings.CutPrefix(path.Base(sub.Path), "70-")
			link, network := strings.CutSuffix(name, ".network.d")
			if !ok || !network || link == "" || sub.Linked {
				continue
			}
			own := t.file(dropin.NetworkDropIn(link))
			// If something was put in the drop-in's place, the unit, which is this daemon's, is left.
			// Without the drop-in it matches every ENI.
			if own.Kind == Regular || (own.inPlace() && path.Base(t.Target(dropin.NetworkPath(link))) == dropin.BaseName) {
				links = append(links, link)
			}
		}
	}
	return links
}

// Extent tells how far somebody else's files stand in the way of the generated ones of one link.
type Extent struct {
	// Taken is the file that takes the place of the whole .network unit, or empty.
	Taken string
	// NetworkHidden and LinkHidden are the files that hide the drop-in of the .network unit and of
	// the .link file, or empty.
	NetworkHidden, LinkHidden string
}

// Extent returns which files of somebody else's stand in the place of the generated ones of a link.
func (t *Tree) Extent(link string) Extent {
	return Extent{Taken: t.taken(link), NetworkHidden: t.hides(dropin.NetworkPath(link)), LinkHidden: t.hides(dropin.LinkPath(link))}
}

// taken returns the file that networkd reads in place of the generated unit, or that is where the
// unit, or its drop-in, would have to be written.
func (t *Tree) taken(link string) string {
	own := dropin.NetworkPath(link)
	if above := t.file(path.Join(Dirs()[0], path.Base(own))); above.Exists() {
		return above.Path
	}
	switch there := t.file(own); there.Kind {
	case Nothing, Unknown:
	case Symlink:
		if path.Base(there.Target) != dropin.BaseName {
			return own
		}
	default:
		if !t.kernelLine(link) {
			return own
		}
	}
	if there := t.file(dropin.NetworkDropIn(link)); there.inPlace() {
		return there.Path
	}
	return ""
}

// inPlace reports whether something else has the place of a regular file.
func (f *File) inPlace() bool { return f.Kind != Nothing && f.Kind != Unknown && f.Kind != Regular }

// hides returns the file that is read in place of the generated drop-in of a unit.
func (t *Tree) hides(unit string) string {
	if above := t.file(path.Join(Dirs()[0], path.Base(unit)+".d", dropin.FileName)); above.Exists() {
		return above.Path
	}
	return ""
}

// kernelLine reports whether systemd-network-generator has made the file in the place of the
// .network unit of a link.
func (t *Tree) kernelLine(link string) bool {
	own := dropin.NetworkPath(link)
	return t.Regular(own) && FromKernelLine(t.Read(own))
}

// Generator returns the file of a generator that networkd will use for a link in place of the link's
// own unit, or would use without this daemon's drop-ins: sole if the file is for no other link.
// shared are those before it that are for several links, and from which a drop-in can exclude ENIs.
func (t *Tree) Generator(link *Link) (sole string, shared []string) {
	own := dropin.NetworkPath(link.Name)
	for _, name := range t.networks() {
		if name > path.Base(own) || (name == path.Base(own) && !t.kernelLine(link.Name)) {
			break
		}
		unit := t.Look(name)
		if unit.Path == "" || unit.Masked {
			continue
		}
		made := FromGenerator(unit.Path) || unit.Path == own
		if made {
			dir := GeneratorDir(unit.Path)
			unit.Texts = slices.DeleteFunc(slices.Clone(unit.Texts), func(text Text) bool {
				return path.Dir(text.Path) == dir && (text.Generated() || text.Source != text.Path)
			})
		}
		if match, _ := unit.Match(link); match == NoMatch {
			continue
		}
		switch {
		case made && unit.Texts[0].Sole(link):
			return unit.Path, shared
		case made && unit.Texts[0].LeavesOut():
			shared = append(shared, unit.Path)
		default:
			return "", shared
		}
	}
	return "", shared
}

// FirstBoot returns the static addresses in a generator's file if cloud-init has written all of them.
func (t *Tree) FirstBoot(unit Unit) []netip.Addr {
	all := unit.Texts[0].Addresses()
	if len(all) == 0 || strings.HasPrefix(path.Base(unit.Path), "10-cloud-init-") {
		return all
	}
	var written []netip.Addr
	isMark := func(r rune) bool { return strings.ContainsRune(" \t\r\n,\"'[]{}/", r) }
	for word := range strings.FieldsFuncSeq(t.Read(CloudInitYAML), isMark) {
		if address, err := netip.ParseAddr(word); err == nil {
			written = append(written, address)
		}
	}
	if slices.ContainsFunc(all, func(a netip.Addr) bool { return !slices.Contains(written, a) }) {
		return nil
	}
	return all
}
