// Package docs has what people read about ec2netd, and what tests read.
package docs

import (
	"io/fs"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

var (
	links      = regexp.MustCompile(`\]\(([^)\s]+)\)`)
	headings   = regexp.MustCompile(`(?m)^#+ (.*)$`)
	code       = regexp.MustCompile("(?ms)^```.*?^```$")
	notAnchors = regexp.MustCompile(`[^\p{L}\p{N}\- ]`)
)

// pages are all pages of the repository, by path.
func pages(t *testing.T) map[string]string {
	t.Helper()
	const root = "../.."
	found := make(map[string]string)
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		if err != nil {
			return err
		}
		if name := entry.Name(); entry.IsDir() && path != root && (name == "build" || name == "testdata" || name == ".git") {
			return fs.SkipDir
		}
		if filepath.Ext(path) == ".md" {
			text, err := os.ReadFile(path)
			if err != nil {
				return err
			}
			found[path] = code.ReplaceAllString(string(text), "")
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return found
}

// anchors are those of a page's headings.
func anchors(page string) map[string]bool {
	found := make(map[string]bool)
	for _, heading := range headings.FindAllStringSubmatch(page, -1) {
		found[strings.ReplaceAll(notAnchors.ReplaceAllString(strings.ToLower(heading[1]), ""), " ", "-")] = true
	}
	return found
}

// Each link leads to a file that there is, and to a heading that it has.
func TestLinks(t *testing.T) {
	all, tried := pages(t), 0
	for path, page := range all {
		for _, link := range links.FindAllStringSubmatch(page, -1) {
			if strings.Contains(link[1], "://") {
				continue
			}
			tried++
			file, anchor, _ := strings.Cut(link[1], "#")
			to := path
			if file != "" {
				to = filepath.Join(filepath.Dir(path), file)
			}
			if _, err := os.Stat(to); err != nil {
				t.Errorf("%s has a link to %s: %v", path, link[1], err)
			} else if anchor != "" && !anchors(all[to])[anchor] {
				t.Errorf("%s has a link to %s, which has no such heading", path, link[1])
			}
		}
	}
	if tried < 20 {
		t.Errorf("there are %d links", tried)
	}
}

// README is an entrance.
func TestEntrance(t *testing.T) {
	const most = 150
	text, err := os.ReadFile("../../README.md")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(text), "\n"); n > most {
		t.Errorf("README has %d lines, more than %d: reference belongs in man pages and here", n, most)
	}
}
