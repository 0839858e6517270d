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
			t.Errorf("the default %q is not documented", value)
		}
	}
}

// TestConfigurationPage: configuration.md has every key with the default of the shipped
// file, and no other.
func TestConfigurationPage(t *testing.T) {
	page, err := os.ReadFile("../docs/configuration.md")
	if err != nil {
		t.Fatal(err)
	}
	shipped, err := os.ReadFile("../../units/ec2netd.conf")
	if err != nil {
		t.Fatal(err)
	}
	// The conditions of [ENI] have no defaults.
	want := make(map[string]string)
	for _, line := range regexp.MustCompile(`(?m)^#([A-Za-z]+)=(.*)$`).FindAllStringSubmatch(string(shipped), -1) {
		if want[line[1]] == "" { // [ENI] has a Driver= too, without a default
			want[line[1]] = line[2]
		}
	}
	for key, known := range eniKeys {
		if _, ok := want[key]; !ok {
			t.Errorf("%s= is not in the shipped file", key)
		}
		if known.selects && key != "Driver" {
			want[key] = ""
		}
	}
	got := make(map[string]string)
	key := regexp.MustCompile("`([A-Za-z]+)=`")
	for line := range strings.Lines(string(page)) {
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		if !strings.HasPrefix(line, "| `") {
			continue
		}
		if strings.HasPrefix(line, "| `[") {
			cells = cells[1:] // the section stands before the key
		}
		for _, m := range key.FindAllStringSubmatch(cells[0], -1) {
			if _, had := got[m[1]]; had && m[1] != "Driver" {
				t.Errorf("%s= is documented twice", m[1])
			}
			if len(cells) > 2 {
				got[m[1]] = strings.Trim(strings.TrimSpace(cells[1]), "`")
			} else if _, had := got[m[1]]; !had {
				got[m[1]] = ""
			}
		}
	}
	if diff := cmp.Diff(want, got); diff != "" {
		t.Errorf("configuration.md, which is wrong where this has a plus:\n%s", diff)
	}
}
