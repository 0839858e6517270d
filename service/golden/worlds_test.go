package golden

import (
	"fmt"
	"strconv"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/rogpeppe/go-internal/txtar"
)

const worldsDir = "testdata/worlds"

// settled is more than the daemon needs in any world: all its waits for what is late end before.
const settled = 39 * time.Second

// TestWorlds: from a metadata dump, links, configuration and files of others to the generated
// files, on each version of systemd.
func TestWorlds(t *testing.T) {
	t.Parallel()
	for _, name := range inputs(t, worldsDir, ".txtar") {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			path := worldsDir + "/" + name
			archive, err := txtar.ParseFile(path + ".txtar")
			if err != nil {
				t.Fatal(err)
			}
			check(t, path+".golden", world(t, archive, path+".golden"))
		})
	}
}

// steps are the steps of a world: a section "step N/NAME" belongs to step N, others to the first.
func steps(archive *txtar.Archive) [][]txtar.File {
	all := make([][]txtar.File, 1)
	for _, f := range archive.Files {
		n := 1
		if rest, ok := strings.CutPrefix(f.Name, "step "); ok {
			if number, name, ok := strings.Cut(rest, "/"); ok {
				n, _ = strconv.Atoi(number)
				f.Name = name
			}
		}
		for len(all) < n {
			all = append(all, nil)
		}
		all[n-1] = append(all[n-1], f)
	}
	return all
}

// world is what the golden file of a world is to have.
func world(t *testing.T, archive *txtar.Archive, path string) string {
	all := steps(archive)
	found := make([]map[int]map[string]string, len(all))
	for i := range found {
		found[i] = make(map[int]map[string]string)
	}
	for _, version := range tried(path, false) {
		t.Run(strconv.Itoa(version), func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				in := newInstance(t, version, 0)
				defer in.serve()()
				in.become(all[0])
				d := in.boot()
				defer d.stop()
				var before map[string]string
				for i, files := range all {
					if i > 0 {
						in.change(d, files)
					}
					pass(settled)
					now := in.files()
					found[i][version] = tree(now, before)
					found[i][version][" state"] = summary(in.describe(d))
					before = now
				}
			})
		})
	}
	var out strings.Builder
	for i := range all {
		prefix := ""
		if len(all) > 1 {
			prefix = fmt.Sprintf("step %d ", i+1)
		}
		out.WriteString(shared(prefix, found[i]))
	}
	return out.String()
}

// summary is the gist of a published state: what became of each ENI, and why.
func summary(state map[string]any) string {
	var b strings.Builder
	line := func(format string, args ...any) { fmt.Fprintf(&b, format+"\n", args...) }
	line("%s %s", text(state["state"]), text(state["reason"]))
	for _, c := range state["conflicts"].([]any) {
		c := c.(map[string]any)
		line("conflict with %s: %s", text(c["name"]), text(c["evidence"]))
	}
	for _, i := range state["interfaces"].([]any) {
		i := i.(map[string]any)
		line("%s %s: %s %s", text(i["name"]), text(i["eniId"]), text(i["state"]), text(i["reason"]))
		line("  primary %s, device index %s, network card %s, metric %s, table %s, priority %s",
			text(i["primary"]), text(i["deviceIndex"]), text(i["networkCard"]), text(i["metric"]), text(i["table"]), text(i["priority"]))
		for _, key := range []string{"addresses", "prefixes", "subnets", "altnames", "gaps", "unwanted"} {
			if list := i[key].([]any); len(list) > 0 {
				line("  %s %s", key, strings.Trim(fmt.Sprint(list), "[]"))
			}
		}
		if why := text(i["ipv6NotApplicable"]); why != "" {
			line("  no IPv6: %s", why)
		}
		line("  used by networkd: %s", text(i["networkFile"]))
	}
	return strings.ReplaceAll(b.String(), " \n", "\n")
}
