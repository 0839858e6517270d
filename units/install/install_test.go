// Package install tests that "make install" and "make uninstall" agree on what they install.
package install

import (
	"errors"
	"fmt"
	"io/fs"
	"maps"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// top is the top directory of the repository.
const top = "../.."

// runMake runs a target of the Makefile with the umask that is given, without building anything:
// the programs are stand-ins in build/bin.
func runMake(t *testing.T, build, umask, target string, variables ...string) {
	t.Helper()
	if _, err := exec.LookPath("make"); err != nil {
		if os.Getenv("CI") != "" {
			t.Fatal(err)
		}
		t.Skip(err)
	}
	args := append([]string{"-c", `umask "$0" && exec make "$@"`, umask, "--no-print-directory", "-C", top, target,
		"GO=true", "BUILD=" + build, "VERSION=test"}, variables...)
	cmd := exec.CommandContext(t.Context(), "sh", args...)
	// The variables of a make that runs this test would go before those of the Makefile.
	for _, v := range os.Environ() {
		if name, _, _ := strings.Cut(v, "="); !slices.Contains([]string{"MAKEFLAGS", "MFLAGS", "MAKELEVEL", "PREFIX", "SYSCONFDIR", "DESTDIR"}, name) {
			cmd.Env = append(cmd.Env, v)
		}
	}
	if out, err := cmd.CombinedOutput(); err != nil {
		t.Fatalf("make %s: %v\n%s", target, err, out)
	}
}

// standIns makes a build directory with programs that only print their arguments.
func standIns(t *testing.T) string {
	t.Helper()
	build := t.TempDir()
	for _, name := range []string{"ec2netd", "ec2netctl"} {
		write(t, filepath.Join(build, "bin", name), "#!/bin/sh\necho \"$@\"\n", 0o700)
	}
	return build
}

func write(t *testing.T, path, text string, mode fs.FileMode) {
	t.Helper()
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(path, []byte(text), mode); err != nil {
		t.Fatal(err)
	}
	if err := os.Chmod(path, mode); err != nil { // one that was there kept its mode
		t.Fatal(err)
	}
}

// files returns what is in a directory, other than directories: the mode and the content of each
// file, or the target of a link.
func files(t *testing.T, root string) map[string]string {
	t.Helper()
	found := map[string]string{}
	err := filepath.WalkDir(root, func(path string, d fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		name, err := filepath.Rel(root, path)
		if err != nil {
			return err
		}
		switch info, err := d.Info(); {
		case err != nil:
			return err
		case d.IsDir():
			if path != root && info.Mode().Perm() != 0o755 {
				t.Errorf("directory %s has mode %v", name, info.Mode())
			}
		case info.Mode().Type() == fs.ModeSymlink:
			target, err := os.Readlink(path)
			if err != nil {
				return err
			}
			found[name] = "-> " + target
		default:
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[name] = fmt.Sprintf("%v %s", info.Mode(), text)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// place is where files are installed.
type place struct {
	umask     string
	variables []string
	// Directories relative to the root.
	prefix, sysconfdir string
	bash, fish         string
	zsh                []string
}

// TestInstallAndUninstall installs below two prefixes, installs again, and uninstalls.
func TestInstallAndUninstall(t *testing.T) {
	for name, p := range map[string]place{
		"usr": {
			umask:  "022",
			prefix: "usr", sysconfdir: "etc",
			bash: "usr/share/bash-completion/completions",
			fish: "usr/share/fish/vendor_completions.d",
			zsh:  []string{"usr/share/zsh/site-functions", "usr/share/zsh/vendor-completions"},
		},
		"elsewhere": {
			umask: "077",
			variables: []string{
				"PREFIX=/usr/local", "SYSCONFDIR=/usr/local/etc",
				"BASH_COMPLETIONS=/c/bash", "FISH_COMPLETIONS=/c/fish", "ZSH_COMPLETIONS=/c/zsh/1 /c/zsh/2 /c/zsh/3",
			},
			prefix: "usr/local", sysconfdir: "usr/local/etc",
			bash: "c/bash", fish: "c/fish", zsh: []string{"c/zsh/1", "c/zsh/2", "c/zsh/3"},
		},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			build, root := standIns(t), filepath.Join(t.TempDir(), "a root")
			variables := append([]string{"DESTDIR=" + root}, p.variables...)
			config := p.sysconfdir + "/ec2netd.conf"

			runMake(t, build, p.umask, "install", variables...)
			installed := files(t, root)
			p.check(t, installed)

			write(t, filepath.Join(root, config), "# mine\n", 0o640)
			installed[config] = "-rw-r----- # mine\n"
			runMake(t, build, p.umask, "install", variables...)
			again := files(t, root)
			for file := range again {
				if again[file] != installed[file] {
					t.Errorf("installing again made %.40q of %s, which was %.40q", again[file], file, installed[file])
				}
			}

			foreign := p.prefix + "/lib/systemd/system/ifup@.service.d/other.conf"
			write(t, filepath.Join(root, foreign), "", 0o644)
			for range 2 { // the second time there is nothing to remove
				runMake(t, build, p.umask, "uninstall", variables...)
				if left := slices.Sorted(maps.Keys(files(t, root))); !slices.Equal(left, []string{config, foreign}) {
					t.Errorf("%q are left, want %q and %q", left, config, foreign)
				}
			}
			for _, dir := range []string{p.prefix + "/lib/ec2netd", p.prefix + "/lib/systemd/system/systemd-networkd.service.wants"} {
				if _, err := os.Lstat(filepath.Join(root, dir)); !errors.Is(err, fs.ErrNotExist) {
					t.Errorf("%s is left: %v", dir, err)
				}
			}
		})
	}
}

// check looks at a file of each kind, and for names in any file that were not replaced.
func (p place) check(t *testing.T, installed map[string]string) {
	t.Helper()
	want := map[string]string{
		p.prefix + "/bin/ec2netctl":                                                                    "-rwxr-xr-x #!/bin/sh\n",
		p.prefix + "/lib/ec2netd/ec2netd":                                                              "-rwxr-xr-x #!/bin/sh\n",
		p.prefix + "/lib/systemd/system/ec2netd.service":                                               "-rw-r--r-- ",
		p.prefix + "/lib/systemd/network/80-ec2.network":                                               "-rw-r--r-- ",
		p.prefix + "/lib/systemd/system/systemd-networkd.service.wants/ec2netd-networkd-start.service": "-> ../ec2netd-networkd-start.service",
		p.prefix + "/share/man/man8/ec2netd.8":                                                         "-rw-r--r-- ",
		p.sysconfdir + "/cloud/cloud.cfg.d/95-ec2netd.cfg":                                             "-> /run/ec2netd/cloud-init.cfg",
		p.sysconfdir + "/ec2netd.conf":                                                                 "-rw-r--r-- ",
		p.bash + "/ec2netctl":                                                                          "-rw-r--r-- completion bash\n",
		p.fish + "/ec2netctl.fish":                                                                     "-rw-r--r-- completion fish\n",
	}
	for _, dir := range p.zsh {
		want[dir+"/_ec2netctl"] = "-rw-r--r-- completion zsh\n"
	}
	for file, begin := range want {
		if !strings.HasPrefix(installed[file], begin) {
			t.Errorf("%s is %.40q, want %q", file, installed[file], begin)
		}
	}
	if unit, start := installed[p.prefix+"/lib/systemd/system/ec2netd.service"], "\nExecStart=/"+p.prefix+"/lib/ec2netd/ec2netd\n"; !strings.Contains(unit, start) {
		t.Errorf("ec2netd.service does not have %q:\n%s", start, unit)
	}
	name := regexp.MustCompile(`@[a-z_]+@`)
	for file, text := range installed {
		if found := name.FindString(text); found != "" {
			t.Errorf("%s has %s", file, found)
		}
	}
}

// TestListIsComplete looks for files that belong on a system and that nobody has put into the list.
func TestListIsComplete(t *testing.T) {
	list, err := os.ReadFile("files.list")
	if err != nil {
		t.Fatal(err)
	}
	listed := strings.Fields(string(list))
	for _, pattern := range []string{"units/*.*", "units/*/*", "presets/*", "api/*.xml", "api/*.[1-8]", "cmd/*/*.[1-8]"} {
		found, err := filepath.Glob(filepath.Join(top, pattern))
		if err != nil || len(found) == 0 {
			t.Fatalf("%s: %q, %v", pattern, found, err)
		}
		for _, path := range found {
			dir := filepath.Base(filepath.Dir(path))
			if info, err := os.Stat(path); err != nil || info.IsDir() || dir == "install" || dir == "packages" {
				continue
			}
			if file := strings.TrimPrefix(path, top+"/"); !slices.Contains(listed, file) {
				t.Errorf("%s is not in files.list", file)
			}
		}
	}
}
