package main

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"

	"github.com/spf13/cobra"
	"github.com/spf13/pflag"
)

// TestManPages: every manual page of the repository is without fault, for groff and for
// mandoc.
func TestManPages(t *testing.T) {
	var pages []string
	for _, dir := range []string{"../*", "../../units", "../../api"} {
		found, err := filepath.Glob(filepath.Join(dir, "*.[1-8]"))
		if err != nil {
			t.Fatal(err)
		}
		pages = append(pages, found...)
	}
	if len(pages) < 3 {
		t.Fatalf("there are only %q", pages)
	}
	for _, tool := range []string{"man", "mandoc"} {
		if _, err := exec.LookPath(tool); err != nil {
			const how = "%s is not installed: run make host-packages"
			if os.Getenv("CI") != "" {
				t.Fatalf(how, tool)
			}
			t.Skipf(how, tool)
		}
	}
	for _, page := range pages {
		check := func(name string, args ...string) {
			cmd := exec.CommandContext(t.Context(), name, args...)
			cmd.Env = append(os.Environ(), "LC_ALL=C.UTF-8", "MANWIDTH=80", "MANROFFSEQ=")
			var out bytes.Buffer
			// What man formats goes nowhere; its complaints are on stderr.
			cmd.Stderr = &out
			if name == "mandoc" {
				cmd.Stdout = &out
			}
			if err := cmd.Run(); err != nil || out.Len() > 0 {
				t.Errorf("%s: %v: %v\n%s", page, cmd.Args, err, &out)
			}
		}
		check("mandoc", "-T", "lint", "-W", "warning", page)
		check("man", "--warnings", "--encoding=UTF-8", "--local-file", "-Tutf8", "--ditroff", page)
	}
}

// TestManPage: ec2netctl(1) has every command and option, and no other.
func TestManPage(t *testing.T) {
	text, err := os.ReadFile("ec2netctl.1")
	if err != nil {
		t.Fatal(err)
	}
	page := string(text)
	_, commands, _ := strings.Cut(page, ".Sh COMMANDS\n")
	commands, options, _ := strings.Cut(commands, ".Sh OPTIONS\n")
	options, _, _ = strings.Cut(options, "\n.Sh ")

	root := newRoot(environment{})
	root.InitDefaultHelpCmd()
	root.InitDefaultCompletionCmd("status")
	var names, flags []string
	see := func(f *pflag.Flag) {
		if f.Hidden || slices.Contains(flags, "--"+f.Name) {
			return
		}
		flags = append(flags, "--"+f.Name)
		if f.Shorthand != "" {
			flags = append(flags, "-"+f.Shorthand)
		}
	}
	visit := func(cmd *cobra.Command) {
		cmd.InitDefaultHelpFlag()
		cmd.InitDefaultVersionFlag()
		cmd.PersistentFlags().VisitAll(see)
		cmd.Flags().VisitAll(see)
	}
	visit(root)
	for _, cmd := range root.Commands() {
		names = append(names, cmd.Name())
		if cmd.Name() != "completion" {
			visit(cmd)
		}
	}
	compare := func(what string, program, documented []string) {
		t.Helper()
		for _, s := range program {
			if !slices.Contains(documented, s) {
				t.Errorf("ec2netctl(1) does not have the %s %s", what, s)
			}
		}
		for _, s := range documented {
			if !slices.Contains(program, s) {
				t.Errorf("ec2netctl(1) has the %s %s, which there is not", what, s)
			}
		}
	}
	all := func(pattern, in string) (found []string) {
		for _, m := range regexp.MustCompile(pattern).FindAllStringSubmatch(in, -1) {
			found = append(found, m[1])
		}
		return found
	}
	compare("command", names, all(`(?m)^\.It Cm (\S+)`, commands))
	var documented []string
	for _, line := range all(`(?m)^\.It (Fl .*)$`, options) {
		for _, flag := range all(`Fl (-?[a-z-]+)`, line) {
			documented = append(documented, "-"+flag)
		}
	}
	compare("option", flags, documented)
	// Options that are named elsewhere exist too.
	for _, flag := range all(`Fl (-?[a-z][a-z-]*)`, page) {
		if !slices.Contains(flags, "-"+flag) {
			t.Errorf("ec2netctl(1) speaks of -%s, which there is not", flag)
		}
	}
}
