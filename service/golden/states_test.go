package golden

import (
	"fmt"
	"maps"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/diff"
	"github.com/rogpeppe/go-internal/txtar"
)

func faultNames() (names []string) {
	for _, f := range faults() {
		names = append(names, f.name)
	}
	return append(names, "healthy")
}

// TestFaults: the state that is published while something fails, and the generated files. Golden
// files say what differs from healthy.golden, which has all.
func TestFaults(t *testing.T) {
	t.Parallel()
	archive, err := txtar.ParseFile(faultsDir + "/instance.txtar")
	if err != nil {
		t.Fatal(err)
	}
	healthy := make(map[int]published)
	all := make(map[int]map[string]string)
	for _, version := range versions {
		synctest.Test(t, func(t *testing.T) {
			in := newInstance(t, version, 0)
			defer in.serve()()
			in.become(archive.Files)
			d := in.boot()
			defer d.stop()
			pass(last)
			healthy[version] = in.published(d)
			all[version] = map[string]string{"state": healthy[version].state, "files": healthy[version].files}
		})
	}
	check(t, faultsDir+"/healthy.golden", shared("", all))
	for _, f := range faults() {
		t.Run(f.name, func(t *testing.T) {
			t.Parallel()
			path := faultsDir + "/" + f.name + ".golden"
			check(t, path, states(t, archive, f, path, healthy))
		})
	}
}

// keyOfENI is a key of an ENI in an error.
var keyOfENI = regexp.MustCompile(`(reading ` + macsDir + `[0-9a-f:]+/)[0-9a-z-]*`)

// states are what differs from a healthy instance after each step of a fault.
func states(t *testing.T, archive *txtar.Archive, f fault, path string, healthy map[int]published) string {
	found := make([]map[int]map[string]string, len(f.steps))
	for i := range found {
		found[i] = make(map[int]map[string]string)
	}
	for _, version := range tried(path, true) {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := newInstance(t, version, f.tokens)
				defer in.serve()()
				in.become(archive.Files)
				if f.before != nil {
					f.before(in)
				}
				d := in.boot()
				defer func() { d.stop() }()
				if f.before == nil {
					pass(time.Minute)
				}
				for i, s := range f.steps {
					reloads, anew := in.counts()
					if i == 0 && f.before != nil {
						reloads, anew = 0, 0 // since the boot
					}
					if s.do != nil {
						s.do(in, d)
					}
					pass(s.after)
					told := in.published(d)
					if f.anyKey {
						told.state = keyOfENI.ReplaceAllString(told.state, "$1(a key)")
					}
					state, files := changes(healthy[version], told)
					now, nowAnew := in.counts()
					if now > reloads {
						files += "networkd was asked to reload\n"
					}
					if nowAnew > anew {
						files += "networkd was asked to reconfigure a link\n"
					}
					title := fmt.Sprintf("%d: %s, %s later", i+1, s.what, s.after)
					found[i][version] = map[string]string{title + ": 1 state": state, title + ": 2 files": files}
				}
			})
		})
	}
	var out strings.Builder
	for _, byVersion := range found {
		out.WriteString(strings.NewReplacer(": 1 state", ": state", ": 2 files", ": files").Replace(shared("", byVersion)))
	}
	return out.String()
}

func (in *instance) counts() (reloads, anew int) {
	in.mu.Lock()
	defer in.mu.Unlock()
	return in.reloads, in.anew
}

// published is what the daemon tells and has written, a fact in each line.
type published struct{ state, files string }

func (in *instance) published(d *daemon) published {
	var state, files strings.Builder
	flatten(&state, "", in.describe(d))
	found := in.files()
	for _, path := range slices.Sorted(maps.Keys(found)) {
		for line := range strings.Lines(found[path]) {
			if line = strings.TrimSpace(line); line != "" && !strings.HasPrefix(line, "#") {
				fmt.Fprintf(&files, "%s: %s\n", path, line)
			}
		}
	}
	return published{state.String(), files.String()}
}

// changes are the lines that are not as in before.
func changes(before, now published) (state, files string) {
	changed := func(before, now string) string {
		if before == now {
			return "as if healthy\n"
		}
		var out strings.Builder
		for i, line := range strings.Split(string(diff.Diff("before", []byte(before), "now", []byte(now))), "\n") {
			if i > 2 && line != "" && (line[0] == '+' || line[0] == '-') {
				out.WriteString(line + "\n")
			}
		}
		return out.String()
	}
	return changed(before.state, now.state), changed(before.files, now.files)
}

// flatten writes a JSON value. What is another in each run is left out; of times it says whether
// there is one.
func flatten(out *strings.Builder, name string, value any) {
	switch v := value.(type) {
	case map[string]any:
		for _, key := range slices.Sorted(maps.Keys(v)) {
			under := strings.TrimPrefix(name+"."+key, ".")
			switch under {
			case "metadata.requests", "metadata.errors", "networkd.reloads", "networkd.version":
				continue
			}
			switch key {
			case "lastChange", "lastSuccess", "since":
				fmt.Fprintf(out, "%s = (a time)\n", under)
			default:
				flatten(out, under, v[key])
			}
		}
	case []any:
		if len(v) == 0 {
			fmt.Fprintf(out, "%s = none\n", name)
		}
		for _, e := range v {
			item, ok := e.(map[string]any)
			switch {
			case !ok:
				flatten(out, name, e)
			case item["kind"] != nil:
				fmt.Fprintf(out, "%s %s %s:%s\n", name, text(item["kind"]), text(item["value"]), flat(item))
			default:
				// An interface, by its name, or a conflict.
				flatten(out, name+"["+text(item["name"])+"]", e)
			}
		}
	case string:
		fmt.Fprintf(out, "%s = %q\n", name, v)
	default:
		fmt.Fprintf(out, "%s = %v\n", name, v)
	}
}

// flat is an item in one line.
func flat(item map[string]any) string {
	var b strings.Builder
	for _, key := range slices.Sorted(maps.Keys(item)) {
		if key != "kind" && key != "value" && item[key] != "" {
			fmt.Fprintf(&b, " %s %v", key, item[key])
		}
	}
	return b.String()
}
