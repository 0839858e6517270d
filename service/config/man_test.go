package config

import (
	"maps"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestManPage: ec2netd.conf(5) has every section and key, and no other.
func TestManPage(t *testing.T) {
	text, err := os.ReadFile("../../units/ec2netd.conf.5")
	if err != nil {
		t.Fatal(err)
	}
	want := map[string][]string{strings.ToUpper(eniSection): slices.Sorted(maps.Keys(eniKeys))}
	for section, keys := range sections {
		want[strings.ToUpper(section)] = slices.Sorted(maps.Keys(keys))
	}
	got := make(map[string][]string)
	section := ""
	header, key := regexp.MustCompile(`^\.Sh \[(.*)\] SECTION OPTIONS$`), regexp.MustCompile(`Va ([A-Za-z0-9]+)=`)
	for line := range strings.Lines(string(text)) {
		line = strings.TrimSpace(line)
		if strings.HasPrefix(line, ".Sh ") {
			section = ""
		}
		if m := header.FindStringSubmatch(line); m != nil {
			section = m[1]
		}
		if strings.HasPrefix(line, ".It Va ") && section != "" {
			for _, m := range key.FindAllStringSubmatch(line, -1) {
				got[section] = append(got[section], m[1])
			}
		}
	}
	for _, keys := range got {
		slices.Sort(keys)
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Error(diff)
	}
	for _, value := range []Prefixes{PrefixesRule, PrefixesLocal, PrefixesAssign} {
		if !strings.Contains(string(text), "\n.It Cm "+string(value)+"\n") {
			t.Errorf("no Prefixes=%s", value)
		}
	}
	for _, value := range []string{strings.Join(DefaultDrivers(), " ")} {
		if !strings.Contains(string(text), value) {
			t.Errorf("the default %q is not told", value)
		}
	}
}
