package main

import (
	"bytes"
	"cmp"
	"context"
	"debug/buildinfo"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"runtime/debug"
	"slices"
	"strings"

	"github.com/google/licensecheck"
)

// standard is the name of Go's standard library, as in a package URL of Go.
const standard = "stdlib"

// recognised is how much of a file must be the text of known licences, in percent. The
// rest is names and years, which each has its own of.
const recognised = 75

// program is one of the programs in a package.
type program struct {
	// name is the file's, absolute on the system that it is installed on.
	name    string
	content []byte
	modules []*module
}

// module is what a program is linked with.
type module struct {
	path, version string
	// sum is that of go.sum, "" for the standard library.
	sum string
	// licence is an SPDX expression.
	licence string
	// files are its licences and notices, by their path in the module.
	files map[string]string
}

// readProgram reads of a program what it is linked with, and of the sources under which
// licences. The working directory is in the module that it is of.
func readProgram(ctx context.Context, root, name string) (*program, error) {
	content, err := os.ReadFile(filepath.Join(root, name))
	if err != nil {
		return nil, err
	}
	info, err := buildinfo.Read(bytes.NewReader(content))
	if err != nil {
		return nil, fmt.Errorf("reading what %s is made of: %w", name, err)
	}
	p := &program{name: name, content: content}
	dirs, err := linked(ctx, info)
	if err != nil {
		return nil, fmt.Errorf("listing the packages of %s: %w", name, err)
	}
	p.modules = append(p.modules, &module{path: standard, version: strings.TrimPrefix(info.GoVersion, "go")})
	for _, dep := range info.Deps {
		if dep.Replace != nil {
			return nil, fmt.Errorf("%s is linked with %s in place of %s, which has no version to tell", name, dep.Replace.Path, dep.Path)
		}
		p.modules = append(p.modules, &module{path: dep.Path, version: dep.Version, sum: dep.Sum})
	}
	for _, m := range p.modules {
		of := dirs[m.path+"@"+m.version]
		if m.path == standard {
			of = dirs[standard]
		}
		if len(of.packages) == 0 {
			return nil, fmt.Errorf("%s is linked with %s %s, which these sources do not need: build it of them", name, m.path, m.version)
		}
		if m.files, m.licence, err = readLicences(of.root, of.packages); err != nil {
			return nil, fmt.Errorf("licence of %s %s: %w", m.path, m.version, err)
		}
	}
	return p, nil
}

// sources are where a module is, and its packages that are linked.
type sources struct {
	root     string
	packages []string
}

// linked lists the sources of a program by module@version, of the system and the machine
// that it is for.
func linked(ctx context.Context, info *debug.BuildInfo) (map[string]sources, error) {
	cmd := exec.CommandContext(ctx, "go", "list", "-deps", "-json=ImportPath,Dir,Standard,Module", info.Path)
	cmd.Env = append(cmd.Environ(), "GOFLAGS=-mod=readonly")
	boring := false
	for _, s := range info.Settings {
		boring = boring || s.Key == "GOEXPERIMENT" && strings.Contains(s.Value, "boringcrypto")
		if s.Key == "GOOS" || s.Key == "GOARCH" || s.Key == "CGO_ENABLED" {
			cmd.Env = append(cmd.Env, s.Key+"="+s.Value)
		}
	}
	out, err := cmd.Output()
	if err != nil {
		var exit *exec.ExitError
		if errors.As(err, &exit) {
			err = fmt.Errorf("%w: %s", err, exit.Stderr)
		}
		return nil, err
	}
	goroot, err := exec.CommandContext(ctx, "go", "env", "GOROOT").Output()
	if err != nil {
		return nil, err
	}
	all := map[string]sources{}
	for list := json.NewDecoder(bytes.NewReader(out)); ; {
		var p struct {
			ImportPath, Dir string
			Standard        bool
			Module          *struct{ Path, Version, Dir string }
		}
		if err := list.Decode(&p); errors.Is(err, io.EOF) {
			return all, nil
		} else if err != nil {
			return nil, err
		}
		// What the licence in there is of is linked only with that experiment.
		if strings.HasPrefix(p.ImportPath, "crypto/internal/boring") && !boring {
			continue
		}
		key, root := standard, strings.TrimSpace(string(goroot))
		if !p.Standard {
			key, root = p.Module.Path+"@"+p.Module.Version, p.Module.Dir
		}
		all[key] = sources{root: root, packages: append(all[key].packages, p.Dir)}
	}
}

// licenceFile and noticeFile are names of what has to go along with a program.
var (
	licenceFile = regexp.MustCompile(`(?i)^(un)?(licen[cs]e|copying)\b`)
	noticeFile  = regexp.MustCompile(`(?i)^(notice|patents)\b`)
)

// readLicences reads the licences and notices of a module: those of its packages that are
// linked, and of all directories above them. A package may be somebody else's, under
// another licence than the module.
func readLicences(root string, packages []string) (files map[string]string, expression string, err error) {
	dirs := map[string]bool{}
	for _, dir := range packages {
		for ; strings.HasPrefix(dir, root) && !dirs[dir]; dir = filepath.Dir(dir) {
			dirs[dir] = true
		}
	}
	files = map[string]string{}
	ids := map[string]bool{}
	for _, dir := range slices.Sorted(maps.Keys(dirs)) {
		entries, err := os.ReadDir(dir)
		if err != nil {
			return nil, "", err
		}
		for _, e := range entries {
			licence := licenceFile.MatchString(e.Name())
			if !e.Type().IsRegular() || !licence && !noticeFile.MatchString(e.Name()) || strings.HasSuffix(e.Name(), ".go") {
				continue
			}
			path := filepath.Join(dir, e.Name())
			text, err := os.ReadFile(path)
			if err != nil {
				return nil, "", err
			}
			relative, err := filepath.Rel(root, path)
			if err != nil {
				return nil, "", err
			}
			files[relative] = string(text)
			if !licence {
				continue
			}
			found := licensecheck.Scan(text)
			if found.Percent < recognised {
				return nil, "", fmt.Errorf("%s is no licence that is known (%.0f %% of it are)", relative, found.Percent)
			}
			for _, match := range found.Match {
				if !match.IsURL {
					ids[match.ID] = true
				}
			}
		}
	}
	if len(ids) == 0 {
		return nil, "", errors.New("there is no licence file")
	}
	return files, strings.Join(slices.Sorted(maps.Keys(ids)), " AND "), nil
}

// combine returns the modules of all programs, each once, by path. They are of one build:
// a module has one version.
func combine(programs []*program) ([]*module, error) {
	all := map[string]*module{}
	for _, p := range programs {
		for _, m := range p.modules {
			before, ok := all[m.path]
			if !ok {
				before = &module{path: m.path, version: m.version, sum: m.sum, files: map[string]string{}}
				all[m.path] = before
			}
			if before.version != m.version {
				return nil, fmt.Errorf("of %s there are %s and %s: build all programs of the same sources", m.path, before.version, m.version)
			}
			maps.Copy(before.files, m.files)
			ids := append(strings.Split(before.licence, " AND "), strings.Split(m.licence, " AND ")...)
			slices.Sort(ids)
			before.licence = strings.TrimPrefix(strings.Join(slices.Compact(ids), " AND "), " AND ")
		}
	}
	return slices.SortedFunc(maps.Values(all), func(a, b *module) int { return cmp.Compare(a.path, b.path) }), nil
}

// licenceText is the list of modules with their licences, and the texts of these.
func licenceText(modules []*module) string {
	var b strings.Builder
	b.WriteString("The programs of ec2netd are linked with these Go modules, each under its own licence.\n\n")
	for _, m := range modules {
		fmt.Fprintf(&b, "%-50s %-40s %s\n", m.path, m.version, m.licence)
	}
	for _, m := range modules {
		for _, file := range slices.Sorted(maps.Keys(m.files)) {
			fmt.Fprintf(&b, "\n%s\n%s %s: %s\n\n%s\n", strings.Repeat("=", 80), m.path, m.version, file, strings.TrimSpace(m.files[file]))
		}
	}
	return b.String()
}
