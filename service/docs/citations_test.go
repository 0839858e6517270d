package docs

import (
	"bytes"
	"go/ast"
	"go/parser"
	"go/token"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// uncited are the requirements that no test cites, and why.
var uncited = map[string]string{
	"H7":  "not built yet: there is no WaitFor",
	"H8":  "not built yet: the codes are the daemon's own, and the API has words",
	"H9":  "not built yet: there are no claims",
	"H10": "not built yet: there are no targets for ENIs",
	"H11": "not built yet: no test freezes the descriptions, and there are no examples of clients",
	"I3":  "ProtectKernelTunables= keeps all units from it, and no test compares the sysctls",
	"J7":  "tests kill the daemon at each step that they know, and not at each system call by tracing",
	"J8":  "orders of events are drawn by chance (make soak), and not all tried",
}

// A citation is a list of items: a requirement, a section of the facts, or a decision. It is in
// brackets, or it opens a comment, as it does on tests.
const (
	item = `(?:[A-J][0-9]{1,2}|facts: [a-z0-9-]+|decisions/[0-9]{3})`
	list = item + `(?:, ` + item + `)*`
)

var (
	bracketed = regexp.MustCompile(`\((` + list + `)\)`)
	opening   = regexp.MustCompile(`^(` + list + `)(?::|$)`)
	// stray is what looks like a citation once those in the right form are gone.
	stray = regexp.MustCompile(`(?:^|[^\w:./%"'-])([A-J][0-9]{1,2}|facts(?:\.md|:)|decisions/[0-9]+|design\.md|[Ii]ssues? #?[0-9]+)(?:[^\w:/".-]|[:.](?:\s|$)|$)`)
	// marks begin the lines of comments in files other than Go's.
	marks     = regexp.MustCompile(`(?m)^[ \t]*(?:#+|//|\.\\"|;)?[ \t]*`)
	space     = regexp.MustCompile(`\s+`)
	pageNames = regexp.MustCompile(`[\w-]+\.md\b`)
	sections  = regexp.MustCompile(`(?m)^### (.*)$`)
	textFiles = regexp.MustCompile(`(?:\.(?:md|[1-8]|sh|pl|py|yml|yaml|xml|varlink|service|socket|network|link|conf|rules|preset|policy|cfg|list)|/Makefile|/\.ci/[a-z]+)$`)
)

// citation is one place of one comment or text.
type citation struct{ place, item string }

// cited returns the citations of a text without line feeds, and what is left of it. A text that
// is a comment can open with one.
func cited(text string, comment bool) (items []string, rest string) {
	split := func(list string) { items = append(items, strings.Split(list, ", ")...) }
	if found := opening.FindStringSubmatch(text); comment && found != nil {
		split(found[1])
		text = text[len(found[0]):]
	}
	for _, found := range bracketed.FindAllStringSubmatch(text, -1) {
		split(found[1])
	}
	return items, bracketed.ReplaceAllString(text, "")
}

// citations are all of the repository. Strays are reported.
func citations(t *testing.T) (all []citation) {
	t.Helper()
	const root = "../.."
	names := make(map[string]bool)
	for path := range pages(t) {
		names[filepath.Base(path)] = true
	}
	err := filepath.WalkDir(root, func(path string, entry fs.DirEntry, err error) error {
		switch {
		case err != nil:
			return err
		case entry.IsDir() && path != root && (entry.Name() == "build" || entry.Name() == ".git"):
			return fs.SkipDir
		case !entry.Type().IsRegular():
			return nil
		}
		isGo := filepath.Ext(path) == ".go"
		if !isGo && !textFiles.MatchString(filepath.ToSlash(path)) {
			return nil
		}
		content, err := os.ReadFile(path)
		if err != nil {
			return err
		}
		if isGo {
			all = append(all, ofComments(t, path, content, names)...)
			return nil
		}
		content = bytes.ReplaceAll(marks.ReplaceAll(content, nil), []byte("\n"), []byte(" "))
		items, _ := cited(string(content), false)
		for _, item := range items {
			all = append(all, citation{path, item})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return all
}

// ofComments returns the citations in the comments of a Go file. Pages that these name must be among
// those of the repository.
func ofComments(t *testing.T, path string, content []byte, names map[string]bool) (all []citation) {
	t.Helper()
	files := token.NewFileSet()
	file, err := parser.ParseFile(files, path, content, parser.ParseComments|parser.SkipObjectResolution)
	if err != nil {
		t.Fatal(err)
	}
	for _, comment := range file.Comments {
		place := files.Position(comment.Pos()).String()
		items, rest := cited(strings.TrimSpace(space.ReplaceAllString(comment.Text(), " ")), true)
		for _, item := range items {
			all = append(all, citation{place, item})
		}
		if found := stray.FindStringSubmatch(rest); found != nil && !ast.IsGenerated(file) {
			t.Errorf("%s: %q is no citation: write (A3), (facts: reload) or (decisions/003), or open the comment of a test with it", place, found[1])
		}
		for _, name := range pageNames.FindAllString(rest, -1) {
			if !names[name] {
				t.Errorf("%s names %s, and there is no such page", place, name)
			}
		}
	}
	return all
}

// headingsOf are the anchors of the third level of headings of a page.
func headingsOf(t *testing.T, path string) map[string]bool {
	t.Helper()
	page, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	var found strings.Builder
	for _, heading := range sections.FindAll(page, -1) {
		found.Write(heading)
		found.WriteByte('\n')
	}
	return anchors(found.String())
}

// TestCitations checks that there is what comments and pages cite, and that tests cite every
// requirement.
func TestCitations(t *testing.T) {
	requirements, facts, decisions := headingsOf(t, "requirements.md"), headingsOf(t, "facts.md"), decisionPages(t)
	tested := make(map[string]bool)
	all := citations(t)
	for _, c := range all {
		if section, ok := strings.CutPrefix(c.item, "facts: "); ok {
			if !facts[section] {
				t.Errorf("%s cites %s, and facts.md has no such section", c.place, c.item)
			}
			continue
		}
		if number, ok := strings.CutPrefix(c.item, "decisions/"); ok {
			if decisions[number] == "" {
				t.Errorf("%s cites %s, and there is no such page", c.place, c.item)
			}
			continue
		}
		if !requirements[strings.ToLower(c.item)] {
			t.Errorf("%s cites %s, and requirements.md has no such entry", c.place, c.item)
		}
		if strings.Contains(c.place, "_test.go:") {
			tested[strings.ToLower(c.item)] = true
		}
	}
	if len(all) < 300 {
		t.Errorf("there are %d citations", len(all))
	}
	for _, code := range slices.Sorted(maps.Keys(requirements)) {
		reason, excused := uncited[strings.ToUpper(code)]
		switch {
		case !tested[code] && !excused:
			t.Errorf("no test cites %s: cite it where it is proven, or say in uncited why it is not", strings.ToUpper(code))
		case tested[code] && excused:
			t.Errorf("a test cites %s, which uncited calls %q", strings.ToUpper(code), reason)
		}
	}
	for code := range uncited {
		if !requirements[strings.ToLower(code)] {
			t.Errorf("uncited has %s, and requirements.md has no such entry", code)
		}
	}
}

// decisionPages are the decisions by number. Each is in the list of them, and no two have one number.
func decisionPages(t *testing.T) map[string]string {
	t.Helper()
	index, err := os.ReadFile("decisions/README.md")
	if err != nil {
		t.Fatal(err)
	}
	paths, err := filepath.Glob("decisions/[0-9][0-9][0-9]-*.md")
	if err != nil || len(paths) == 0 {
		t.Fatal("there are no decisions:", err)
	}
	found := make(map[string]string)
	for _, path := range paths {
		name := filepath.Base(path)
		number := name[:3]
		if found[number] != "" {
			t.Errorf("%s and %s have one number", found[number], name)
		}
		if !strings.Contains(string(index), "["+number+"]("+name+")") {
			t.Errorf("decisions/README.md has no link to %s", name)
		}
		found[number] = name
	}
	return found
}

// TestCited is the form of citations.
func TestCited(t *testing.T) {
	for text, want := range map[string]struct {
		items []string
		stray string
	}{
		"A3":                             {[]string{"A3"}, ""},
		"A3, B12: the primary is first.": {[]string{"A3", "B12"}, ""},
		"It stays (E7, facts: reload, decisions/003), as (G2) says.": {[]string{"E7", "facts: reload", "decisions/003", "G2"}, ""},
		"A3 is not proven here.":                                     {nil, "A3"},
		"It is as B1 says.":                                          {nil, "B1"},
		"It is B1's.":                                                {nil, "B1"},
		"It stays (facts.md 8).":                                     {nil, "facts.md"},
		"It stays (facts: Reload).":                                  {nil, "facts:"},
		"It stays (E7; facts: reload).":                              {nil, "E7"},
		"This is issue 15.":                                          {nil, "issue 15"},
		"The MAC address 02:B1:00:00:00:0a, or A1:02:":               {nil, ""},
		"The address 2001:DB8::B1, the file F2.go, a-B1-c":           {nil, ""},
		`The flag "-D1" and RFC4861, VF10, B123.`:                    {nil, ""},
	} {
		items, rest := cited(text, true)
		if !slices.Equal(items, want.items) {
			t.Errorf("%q cites %q, want %q", text, items, want.items)
		}
		found := append(stray.FindStringSubmatch(rest), "", "")[1]
		if found != want.stray {
			t.Errorf("%q has the stray %q, want %q", text, found, want.stray)
		}
	}
	if items, _ := cited("A3: no comment, but a page (A4).", false); !slices.Equal(items, []string{"A4"}) {
		t.Errorf("a page cites %q", items)
	}
}
