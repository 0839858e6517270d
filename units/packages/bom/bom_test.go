package main

import (
	"bytes"
	"fmt"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	spdxjson "github.com/spdx/tools-golang/json"
	"github.com/spdx/tools-golang/spdxlib"
)

// mayLink are the licences that dependencies may have: those whose only condition for a
// program is that their text goes along with it. Another one is for people to decide.
var mayLink = []string{"Apache-2.0", "BSD-2-Clause", "BSD-3-Clause", "ISC", "MIT"}

// TestDependencies builds the programs for each machine that there are packages for, and
// holds what they are linked with to its licences.
func TestDependencies(t *testing.T) { // I4
	for _, arch := range []string{"amd64", "arm64"} {
		if testing.Short() && arch != runtime.GOARCH {
			continue // the packages are for both; building takes time
		}
		t.Run(arch, func(t *testing.T) {
			root := t.TempDir()
			var programs []*program
			for _, name := range []string{"ec2netd", "ec2netctl"} {
				cmd := exec.CommandContext(t.Context(), "go", "build", "-trimpath", "-buildvcs=false", "-o", filepath.Join(root, name), "ec2netd/cmd/"+name)
				cmd.Env = append(cmd.Environ(), "CGO_ENABLED=0", "GOOS=linux", "GOARCH="+arch)
				if out, err := cmd.CombinedOutput(); err != nil {
					t.Fatalf("%v\n%s", err, out)
				}
				p, err := readProgram(t.Context(), root, name)
				if err != nil {
					t.Fatal(err)
				}
				programs = append(programs, p)
			}
			modules, err := combine(programs)
			if err != nil {
				t.Fatal(err)
			}
			if len(modules) < 10 || !slices.ContainsFunc(modules, func(m *module) bool { return m.path == standard }) {
				t.Errorf("%d modules", len(modules))
			}
			text := licenceText(modules)
			for _, m := range modules {
				for id := range strings.SplitSeq(m.licence, " AND ") {
					if !slices.Contains(mayLink, id) {
						t.Errorf("%s %s is under %s: is that fit for a program under Apache-2.0? See mayLink", m.path, m.version, id)
					}
				}
				for file, words := range m.files {
					if !strings.Contains(text, m.path+" "+m.version+": "+file) || !strings.Contains(text, strings.TrimSpace(words)) {
						t.Errorf("%s of %s is not in the text", file, m.path)
					}
				}
			}

			about := about{version: "1.2.3", maintainer: "Nobody", created: time.Unix(1e9, 0)}
			var once, twice bytes.Buffer
			for _, out := range []*bytes.Buffer{&once, &twice} {
				if err := writeSPDX(out, about, programs, modules); err != nil {
					t.Fatal(err)
				}
			}
			if once.String() != twice.String() {
				t.Error("the same programs give two documents")
			}
			document, err := spdxjson.Read(&once)
			if err != nil {
				t.Fatal(err)
			}
			if err := spdxlib.ValidateDocument(document); err != nil {
				t.Error(err)
			}
			if len(document.Packages) != len(modules)+1 || len(document.Files) != 2 {
				t.Errorf("%d packages and %d files, want %d and 2", len(document.Packages), len(document.Files), len(modules)+1)
			}
			linked := 0
			for _, r := range document.Relationships {
				if r.Relationship == "STATIC_LINK" {
					linked++
				}
			}
			if want := len(programs[0].modules) + len(programs[1].modules); linked != want {
				t.Errorf("%d times a program is linked with a module, want %d", linked, want)
			}
		})
	}
}

// TestLicences: what has no licence that is known is an error that says what and where.
func TestLicences(t *testing.T) {
	mit, err := os.ReadFile(filepath.Join(moduleDir(t, "github.com/cenkalti/backoff/v5"), "LICENSE"))
	if err != nil {
		t.Fatal(err)
	}
	for name, c := range map[string]struct {
		files   map[string]string
		licence string
		err     string
		kept    []string
	}{
		"one":            {files: map[string]string{"LICENSE": string(mit), "README": "words"}, licence: "MIT", kept: []string{"LICENSE"}},
		"notice":         {files: map[string]string{"COPYING.txt": string(mit), "NOTICE": "words"}, licence: "MIT", kept: []string{"COPYING.txt", "NOTICE"}},
		"of a package":   {files: map[string]string{"a/b/LICENSE.md": string(mit)}, licence: "MIT", kept: []string{"a/b/LICENSE.md"}},
		"of another one": {files: map[string]string{"other/LICENSE": string(mit)}, err: "there is no licence file"},
		"none":           {err: "there is no licence file"},
		"own words":      {files: map[string]string{"LICENSE": "You may look at it.\n"}, err: "LICENSE is no licence that is known"},
		"code":           {files: map[string]string{"license.go": string(mit)}, err: "there is no licence file"},
		"one of two":     {files: map[string]string{"LICENSE": string(mit), "a/LICENCE": "Ask me.\n"}, err: "a/LICENCE is no licence"},
	} {
		root := t.TempDir()
		for file, text := range c.files {
			if err := os.MkdirAll(filepath.Dir(filepath.Join(root, file)), 0o755); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(filepath.Join(root, file), []byte(text), 0o644); err != nil {
				t.Fatal(err)
			}
		}
		if err := os.MkdirAll(filepath.Join(root, "a/b"), 0o755); err != nil {
			t.Fatal(err)
		}
		files, licence, err := readLicences(root, []string{filepath.Join(root, "a/b")})
		if (err != nil) != (c.err != "") || c.err != "" && !strings.Contains(fmt.Sprint(err), c.err) || licence != c.licence || !slices.Equal(slices.Sorted(maps.Keys(files)), c.kept) {
			t.Errorf("%s: %v, %q, %v", name, slices.Sorted(maps.Keys(files)), licence, err)
		}
	}
}

func moduleDir(t *testing.T, path string) string {
	t.Helper()
	out, err := exec.CommandContext(t.Context(), "go", "list", "-m", "-f", "{{.Dir}}", path).Output()
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(out))
}
