package main

import (
	"bytes"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/google/go-cmp/cmp"
)

// TestManPage: ec2netd(8) has every option and unit, and no other.
func TestManPage(t *testing.T) {
	text, err := os.ReadFile("ec2netd.8")
	if err != nil {
		t.Fatal(err)
	}
	all := func(pattern, in string) (found []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(in, -1) {
			found = append(found, m[1])
		}
		slices.Sort(found)
		return slices.Compact(found)
	}
	var usage bytes.Buffer
	if code := run([]string{"-help"}, &usage, &usage); code != 0 {
		t.Fatalf("exit code %d: %s", code, &usage)
	}
	want := append(all(`(?m)^  -([a-z-]+)`, usage.String()), "help")
	slices.Sort(want)
	_, options, _ := strings.Cut(string(text), ".Sh OPTIONS\n")
	options, rest, _ := strings.Cut(options, "\n.Sh ")
	if diff := cmp.Diff(want, all(`(?m)^\.It Fl ([a-z-]+)(?: Ar \S+)?$`, options)); diff != "" {
		t.Errorf("options: %s", diff)
	}
	units, err := filepath.Glob("../../units/ec2netd*.*")
	if err != nil {
		t.Fatal(err)
	}
	want = nil
	for _, unit := range units {
		if name := filepath.Base(unit); strings.HasSuffix(name, ".service") || strings.HasSuffix(name, ".socket") {
			want = append(want, name)
		}
	}
	slices.Sort(want)
	described, _, _ := strings.Cut(rest, "\n.Sh ")
	if diff := cmp.Diff(want, all(`(?m)^\.It Pa (ec2netd\S*)$`, described)); diff != "" {
		t.Errorf("units: %s", diff)
	}
}
