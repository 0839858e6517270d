package golden

import (
	"flag"
	"fmt"
	"maps"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"

	"github.com/rogpeppe/go-internal/diff"
)

var update = flag.Bool("update", false, "write the golden files anew")

// The versions of systemd: the oldest, and those of Debian trixie and sid.
var versions = []int{252, 257, 262}

// tried are the versions that a golden file is compared with. What the file says of several
// versions together is tried on one of them, if that is enough; on all with EC2NETD_LONG=1, and
// where the file is written.
func tried(path string, enough bool) []int {
	golden, err := os.ReadFile(path)
	says := func(versions string) bool { return strings.Contains(string(golden), "(systemd "+versions+")") }
	switch {
	case err != nil, *update, os.Getenv("EC2NETD_LONG") != "", says("262"), says("252 262"):
		return versions
	case enough && !says("252"):
		return []int{257}
	}
	return []int{252, 257}
}

// check compares a golden file with what it is to have, or writes it.
func check(t *testing.T, path, got string) {
	t.Helper()
	if *update {
		if err := os.WriteFile(path, []byte(got), 0o644); err != nil {
			t.Fatal(err)
		}
		return
	}
	want, err := os.ReadFile(path)
	if err != nil {
		t.Fatalf("%v (write it with -update)", err)
	}
	if d := diff.Diff(path, want, "now", []byte(got)); len(d) > 0 {
		t.Errorf("the behaviour has changed (if that is meant, write the golden file anew with -update):\n%s", d)
	}
}

// inputs are the names of the files of a directory with a suffix, without it.
func inputs(t *testing.T, dir, suffix string) []string {
	t.Helper()
	found, err := filepath.Glob(dir + "/*" + suffix)
	if err != nil {
		t.Fatal(err)
	}
	for i, path := range found {
		found[i] = strings.TrimSuffix(filepath.Base(path), suffix)
	}
	return found
}

// TestPairs: each golden file belongs to an input, and each input has one.
func TestPairs(t *testing.T) {
	for dir, names := range map[string][]string{worldsDir: inputs(t, worldsDir, ".txtar"), faultsDir: faultNames()} {
		golden := inputs(t, dir, ".golden")
		for _, name := range golden {
			if slices.Contains(names, name) {
				continue
			}
			if path := dir + "/" + name + ".golden"; !*update {
				t.Errorf("%s belongs to nothing: remove it", path)
			} else if err := os.Remove(path); err != nil {
				t.Error(err)
			}
		}
		for _, name := range names {
			if !slices.Contains(golden, name) && !*update {
				t.Errorf("%s/%s has no golden file: write it with -update", dir, name)
			}
		}
	}
}

// tree are files in the form of a txtar archive. Of those that are as before nothing is said.
func tree(now, before map[string]string) map[string]string {
	sections := make(map[string]string)
	for path, content := range now {
		if was, ok := before[path]; ok && was == content {
			continue
		}
		if strings.HasPrefix(content, "-> ") {
			sections[path+" "+content] = ""
		} else {
			sections[path] = content
		}
	}
	for path := range before {
		if _, ok := now[path]; !ok {
			sections[path+" (removed)"] = ""
		}
	}
	return sections
}

// shared puts what several versions of systemd have together. One that all have is said once.
func shared(prefix string, byVersion map[int]map[string]string) string {
	for _, version := range versions {
		if byVersion[version] == nil {
			byVersion[version] = byVersion[257] // see tried
		}
	}
	type group struct{ versions, content string }
	groups := make(map[string][]group)
	for _, version := range versions {
		for name, content := range byVersion[version] {
			i := slices.IndexFunc(groups[name], func(g group) bool { return g.content == content })
			if i < 0 {
				groups[name] = append(groups[name], group{content: content})
				i = len(groups[name]) - 1
			}
			groups[name][i].versions += fmt.Sprintf(" %d", version)
		}
	}
	every := strings.TrimSuffix(fmt.Sprintln(versions), "\n")
	var out strings.Builder
	for _, name := range slices.Sorted(maps.Keys(groups)) {
		for _, g := range groups[name] {
			where := ""
			if of := "[" + g.versions[1:] + "]"; of != every {
				where = " (systemd" + g.versions + ")"
			}
			fmt.Fprintf(&out, "-- %s%s%s --\n%s", prefix, strings.TrimSpace(name), where, g.content)
		}
	}
	return out.String()
}
