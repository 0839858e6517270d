package unitfile

import (
	"fmt"
	"maps"
	"path"
	"slices"
	"strings"
	"sync"

	"ec2netd/service/dropin"
)

// Dirs returns the directories in which networkd and udevd look for unit files. A file in an earlier
// one wins (systemd.network(5)). systemd looks at /usr/local/lib from 256 on.
func Dirs() []string {
	return []string{"/etc/systemd/network", dropin.Directory, "/usr/local/lib/systemd/network", "/usr/lib/systemd/network"}
}

// Shipped returns the path of the base unit as it is installed.
func Shipped() string { return "/usr/lib/systemd/network/" + dropin.BaseName }

// CloudInitYAML is the file that cloud-init writes for netplan.
const CloudInitYAML = "/etc/netplan/50-cloud-init.yaml"

// Limits of what counts, against a flood of files (J2).
const (
	// mostText is how much of a unit file and its drop-ins counts together.
	mostText = 2 << 20
	// mostDropIns is how many drop-ins of the base unit count.
	mostDropIns = 4096
)

// Kind is the kind of a file.
type Kind int

// The values of Kind. Nothing means that there is no file, and Unknown that it could not be examined.
const (
	Nothing Kind = iota
	Regular
	Symlink
	Subdirectory
	Device
	Other
	Unknown
)

// Content is the text of a file. It is parsed at most once, and a file that has not changed has the
// same Content in the next [Tree].
type Content struct {
	Text     string
	settings func() []Setting
	network  func() *dropin.Network
	link     func() *dropin.Link
}

// NewContent returns the content of a file with a text.
func NewContent(text string) *Content {
	return &Content{
		Text:     text,
		settings: sync.OnceValue(func() []Setting { return Parse(text) }),
		network:  sync.OnceValue(func() *dropin.Network { return dropin.ParseNetwork(text) }),
		link:     sync.OnceValue(func() *dropin.Link { return dropin.ParseLink(text) }),
	}
}

// File is what is found under a path.
type File struct {
	Path string
	// Kind is the kind of the file itself. Leads is the kind of the file that it leads to if it is a
	// symbolic link, and the same as Kind otherwise.
	Kind, Leads Kind
	// Target is what a symbolic link contains.
	Target string
	// Size in bytes and Modified, in nanoseconds since 1970, are those of the file that it leads to.
	Size, Modified int64
	// Content is nil if the file cannot be read, and Err says why. Err is nil too if there is no file.
	Content *Content
	Err     error
}

// Exists reports whether there is a file for systemd: a symbolic link that leads nowhere is none.
func (f *File) Exists() bool {
	return f.Kind != Nothing && f.Kind != Unknown && (f.Kind != Symlink || (f.Leads != Nothing && f.Leads != Unknown))
}

// masked reports whether the file is empty or leads to /dev/null. For systemd any device is a mask.
func (f *File) masked() bool { return f.Leads == Device || (f.Leads == Regular && f.Size == 0) }

// readable reports whether the file is a regular file, or a link to one or to nothing.
func (f *File) readable() bool { return f.Leads == Nothing || f.Leads == Regular }

func (f *File) text() string {
	if f.Content == nil {
		return ""
	}
	return f.Content.Text
}

// source returns the path that a symbolic link leads to, and that of any other file.
func (f *File) source() string {
	switch {
	case f.Target == "":
		return f.Path
	case path.IsAbs(f.Target):
		return f.Target
	}
	return path.Join(path.Dir(f.Path), f.Target)
}

// Directory is a directory of unit files or of drop-ins.
type Directory struct {
	Path string
	// Linked reports whether it is a symbolic link.
	Linked bool
	// Files are the unit files or the drop-ins, and Subs the directories of drop-ins. Those of one
	// extension are sorted by name.
	Files []*File
	Subs  []*Directory
	// Err says why not all of the directory is known, nil if it is. A directory that does not exist
	// is empty.
	Err error
	// NoDirectory reports whether something else has its place. Err is set then.
	NoDirectory bool
}

// Tree is what the directories of networkd and udevd contain at one moment. It does not change.
type Tree struct {
	dirs  []*Directory
	files map[string]*File
	subs  map[string]*Directory
	// networks are the names of all .network files.
	networks func() []string

	mu     sync.Mutex // guards what follows
	units  map[string]Unit
	unread map[string]error
}

// NewTree returns the tree of directories in the order of [Dirs], and of other files.
func NewTree(dirs []*Directory, others ...*File) *Tree {
	t := &Tree{dirs: dirs, files: make(map[string]*File), subs: make(map[string]*Directory), units: make(map[string]Unit), unread: make(map[string]error)}
	for _, dir := range dirs {
		for _, f := range dir.Files {
			t.files[f.Path] = f
		}
		for _, sub := range dir.Subs {
			t.subs[sub.Path] = sub
			for _, f := range sub.Files {
				t.files[f.Path] = f
			}
		}
	}
	for _, f := range others {
		t.files[f.Path] = f
	}
	t.networks = sync.OnceValue(func() []string { return t.names(".network") })
	return t
}

// file returns the file under a path, one of the kind [Nothing] if there is none.
func (t *Tree) file(p string) *File {
	if f := t.files[p]; f != nil {
		return f
	}
	return &File{}
}

// Read returns the content of a unit file or drop-in, empty if there is none.
func (t *Tree) Read(p string) string {
	f := t.file(p)
	t.note(f)
	return f.text()
}

// Target returns where a symbolic link leads, empty if the file is none.
func (t *Tree) Target(p string) string { return t.file(p).Target }

// Regular reports whether a file is a regular one and no link.
func (t *Tree) Regular(p string) bool { return t.file(p).Kind == Regular }

// Gone reports whether a unit file is empty or no longer there. One outside of the directories counts
// as there.
func (t *Tree) Gone(p string) bool {
	return slices.Contains(Dirs(), path.Dir(p)) && t.Read(p) == ""
}

// note notes a file that was needed and cannot be read.
func (t *Tree) note(f *File) { t.noteErr(f.Path, f.Err) }

func (t *Tree) noteErr(p string, err error) {
	if err == nil {
		return
	}
	t.mu.Lock()
	defer t.mu.Unlock()
	t.unread[p] = err
}

// Unread returns why files and directories that were needed so far cannot be read, by path.
func (t *Tree) Unread() map[string]error {
	t.mu.Lock()
	defer t.mu.Unlock()
	return maps.Clone(t.unread)
}

// Lists reports whether there is a file under a path, or a directory of files, and whether it can be
// read.
func (t *Tree) Lists(p string) (there, readable bool) {
	if f := t.files[p]; f != nil {
		return true, f.Err == nil
	}
	dir := t.directory(p)
	return dir != nil, dir != nil && dir.Err == nil
}

// directory returns the directory under a path, nil if there is none.
func (t *Tree) directory(p string) *Directory {
	if i := slices.IndexFunc(t.dirs, func(d *Directory) bool { return d.Path == p }); i >= 0 {
		return t.dirs[i]
	}
	return t.subs[p]
}

// dropIns returns the drop-ins in the directory that belongs to a unit file.
func (t *Tree) dropIns(dir, name string) []*File {
	sub := t.subs[dir+"/"+name+".d"]
	if sub == nil {
		return nil
	}
	t.noteErr(sub.Path, sub.Err)
	return sub.Files
}

// Base returns the base unit in force and its drop-ins in force, sorted by name. It returns the
// shipped path also if the file does not exist.
func (t *Tree) Base() (unit string, dropIns []string) {
	unit = Shipped()
	byName := make(map[string]*File)
	for _, dir := range slices.Backward(Dirs()) {
		if f := t.file(dir + "/" + dropin.BaseName); f.Leads == Regular || f.Leads == Device {
			unit = f.Path
		}
		for _, f := range t.dropIns(dir, dropin.BaseName) {
			if name := path.Base(f.Path); name != dropin.FileName {
				byName[name] = f
			}
		}
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		f := byName[name]
		// A mask only takes away one of lower directories, which is not here any more. Of what is no
		// file there is no copy among the drop-ins of ENIs: networkd drops a unit that has a link to
		// itself there, and waits for a FIFO (facts: file-in-force).
		if f.masked() {
			continue
		}
		if !f.readable() {
			t.note(f)
			continue
		}
		if len(dropIns) < mostDropIns {
			dropIns = append(dropIns, f.Path)
		}
	}
	return unit, dropIns
}

// OwnDropIns returns the drop-ins that others have for the own unit of a link, sorted by path.
func (t *Tree) OwnDropIns(link string) []string {
	byName := make(map[string]string)
	for _, dir := range slices.Backward(Dirs()) {
		if dir == dropin.Directory {
			continue
		}
		for _, f := range t.dropIns(dir, path.Base(dropin.NetworkPath(link))) {
			// Of what is no file there is no copy, see [Tree.Base].
			if f.masked() || f.readable() {
				byName[path.Base(f.Path)] = f.Path
			} else {
				t.note(f)
			}
		}
	}
	return slices.Sorted(maps.Values(byName))
}

// Look returns what networkd and udevd read under the name of a unit file. Callers must not change
// the texts.
func (t *Tree) Look(name string) Unit {
	t.mu.Lock()
	unit, known := t.units[name]
	t.mu.Unlock()
	if !known {
		unit = t.look(name, "")
		t.mu.Lock()
		t.units[name] = unit
		t.mu.Unlock()
	}
	return unit
}

// look is Look. It reads absent if there is no file of that name, unless absent is empty.
func (t *Tree) look(name, absent string) Unit {
	var unit Unit
	byName := make(map[string]*File)
	for _, dir := range slices.Backward(Dirs()) {
		if f := t.file(dir + "/" + name); f.Exists() {
			unit.Path, unit.Masked = f.Path, f.masked()
		}
		for _, f := range t.dropIns(dir, name) {
			if f.Exists() {
				byName[path.Base(f.Path)] = f
			}
		}
	}
	if unit.Path == "" {
		unit.Path = absent
	}
	if unit.Path == "" || unit.Masked {
		return unit
	}
	unit.Texts = make([]Text, 0, 1+len(byName))
	left := mostText
	read := func(f *File) {
		text := t.asText(f)
		if left -= len(text.Content); left < 0 {
			text.Content, text.of = "", nil
		}
		unit.Texts = append(unit.Texts, text)
	}
	if f := t.file(unit.Path); f.Path != "" {
		read(f)
	} else {
		unit.Texts = append(unit.Texts, Text{Path: unit.Path, Source: unit.Path})
	}
	for _, name := range slices.Sorted(maps.Keys(byName)) {
		f := byName[name]
		if f.masked() {
			unit.MaskedDropIns = append(unit.MaskedDropIns, f.Path)
			continue
		}
		read(f)
	}
	return unit
}

func (t *Tree) asText(f *File) Text {
	t.note(f)
	text := Text{Path: f.Path, Source: f.source()}
	if f.Content != nil { // networkd does not read any other file either
		text.Content, text.of = f.Content.Text, f.Content
	}
	return text
}

// names returns the names of the unit files with an extension, in the order in which networkd and
// udevd look at them.
func (t *Tree) names(extension string) []string {
	var names []string
	for _, dir := range t.dirs {
		t.noteErr(dir.Path, dir.Err)
		for _, f := range dir.Files {
			if name := path.Base(f.Path); path.Ext(name) == extension && !strings.HasPrefix(name, ".") {
				names = append(names, name)
			}
		}
	}
	slices.Sort(names)
	return slices.Compact(names)
}

// Networks returns the names of all .network files, in the order in which networkd looks at them.
func (t *Tree) Networks() []string { return slices.Clone(t.networks()) }

// Policies returns the .link files that somebody else has made, in the order in which udevd looks at
// them, with their drop-ins.
func (t *Tree) Policies() []Unit {
	var units []Unit
	for _, name := range t.names(".link") {
		unit := t.Look(name)
		generated := path.Dir(unit.Path) == dropin.Directory && strings.HasPrefix(name, "70-") && t.Target(unit.Path) != ""
		if unit.Path != "" && !generated {
			units = append(units, unit)
		}
	}
	return units
}

// Policy returns the .link file that holds for a link. applied is the one that udevd says it has
// applied. If that is a generated one, Policy returns the one that it leads to.
func (t *Tree) Policy(applied string) string {
	if path.Dir(applied) != dropin.Directory || !strings.HasPrefix(path.Base(applied), "70-") {
		return applied
	}
	if target := t.Target(applied); target != "" {
		return target
	}
	return applied
}

// Unmanaged returns the .network file that networkd takes for a link if the file tells networkd to
// leave the link alone, and the text of it that says so; culprit is empty otherwise. A file counts if
// only networkd knows whether it matches. The unit in which a new ENI waits for its own does not
// count, and the drop-ins of the own unit count before that unit is there.
func (t *Tree) Unmanaged(link *Link) (unit Unit, culprit string) {
	own := path.Base(dropin.NetworkPath(link.Name))
	names := t.Networks()
	if i, there := slices.BinarySearch(names, own); !there {
		names = slices.Insert(names, i, own)
	}
	for _, name := range names {
		unit := t.Look(name)
		awaited := unit.Path == "" && name == own
		if awaited {
			unit = t.look(name, Shipped())
		}
		if unit.Path == "" || unit.Masked || unit.Path == dropin.HoldPath {
			continue
		}
		match, _ := unit.Match(link)
		if match == NoMatch {
			continue
		}
		if culprit := unit.Unmanaged(); culprit != "" {
			return unit, culprit
		}
		if match == Matches && !awaited {
			break
		}
	}
	return Unit{}, ""
}

// Every returns the texts of all .network files and their drop-ins, whoever has written them, in
// force or not. It fails if that of one is not known.
func (t *Tree) Every() ([]Text, error) {
	var all []Text
	take := func(files []*File) error {
		for _, f := range files {
			if f.Err != nil && (f.Leads == Regular || f.Leads == Unknown) {
				return fmt.Errorf("looking for rules and addresses: %w", f.Err)
			}
			if f.Content != nil {
				all = append(all, t.asText(f))
			}
		}
		return nil
	}
	for _, dir := range t.dirs {
		if dir.Err != nil && !dir.NoDirectory {
			return nil, fmt.Errorf("looking at %s: %w", dir.Path, dir.Err)
		}
		for _, f := range dir.Files {
			if path.Ext(f.Path) != ".network" {
				continue
			}
			if err := take([]*File{f}); err != nil {
				return nil, err
			}
		}
		for _, sub := range dir.Subs {
			if !strings.HasSuffix(sub.Path, ".network.d") {
				continue
			}
			if sub.Err != nil && !sub.NoDirectory {
				t.noteErr(sub.Path, sub.Err)
				return nil, fmt.Errorf("looking at %s: %w", dir.Path, sub.Err)
			}
			if err := take(sub.Files); err != nil {
				return nil, err
			}
		}
	}
	return all, nil
}

// Stamp changes when one of some files does, in what networkd compares.
func (t *Tree) Stamp(files ...string) string {
	var stamp strings.Builder
	for _, p := range files {
		if f := t.file(p); f.Leads != Nothing && f.Leads != Unknown {
			fmt.Fprintf(&stamp, "%s %d %d\n", p, f.Modified, f.Size)
		}
	}
	return stamp.String()
}
