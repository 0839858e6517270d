package e2e

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// differencesFile has the accepted differences between the old package and ec2netd.
const differencesFile = "../docs/differences.md"

// The sides of a difference: what only an instance with the old package has, or only one with
// ec2netd.
const (
	sideOld = "package"
	sideNew = "ec2netd"
)

// acceptedRow is a line of the table: what one side has and the other does not. A row that has
// several lines is as many of these.
type acceptedRow struct {
	line          int
	side, pattern string
	suites        []string // empty for all
	// atTimes: whether there is such a line is a matter of luck.
	atTimes bool
	match   *regexp.Regexp
	reason  string
}

// suits reports whether the row is for a suite.
func (d *acceptedRow) suits(suite string) bool {
	return len(d.suites) == 0 || slices.Contains(d.suites, suite)
}

func (d *acceptedRow) accepts(suite, side, line string) bool {
	if d.side != side || !d.suits(suite) {
		return false
	}
	found := d.match.FindStringSubmatch(line)
	if found == nil {
		return false
	}
	enis := slices.Compact(found[1:])
	return len(enis) < 2 // one ENI throughout
}

// wildcards are what a pattern may have for a part of a line. Nothing stands for any text: a
// row is for the lines that its reason explains.
var wildcards = strings.NewReplacer(
	regexp.QuoteMeta("eni*"), `eni(\d+)`,
	regexp.QuoteMeta("eni+"), `eni([1-9]\d*)`,
	regexp.QuoteMeta("[*]"), `\[\d+\]`,
	regexp.QuoteMeta("[+]"), `\[[1-9]\d*\]`,
)

// compilePattern makes an expression of a pattern, in which each group is the number of an ENI.
func compilePattern(pattern string) (*regexp.Regexp, error) {
	expression := wildcards.Replace(regexp.QuoteMeta(pattern))
	if strings.Contains(expression, `\*`) || strings.Contains(expression, `\+`) {
		return nil, fmt.Errorf("%q has a * or + that is neither an ENI nor an index", pattern)
	}
	return regexp.Compile("^" + expression + "$")
}

// unusedRows are those for a suite that were not needed.
func unusedRows(suite string, table []acceptedRow, used map[int]bool) (rows []acceptedRow) {
	for i, row := range table {
		if !used[i] && row.suits(suite) {
			rows = append(rows, row)
		}
	}
	return rows
}

// readDifferences reads the table of [differencesFile].
func readDifferences(t testing.TB) []acceptedRow {
	t.Helper()
	text, err := os.ReadFile(differencesFile)
	if err != nil {
		t.Fatal(err)
	}
	table, err := parseDifferences(string(text))
	if err != nil {
		t.Fatalf("%s: %v", differencesFile, err)
	}
	return table
}

// parseDifferences reads the rows "| side | suites | `pattern`<br>`pattern` | reason |".
func parseDifferences(text string) (table []acceptedRow, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		side, atTimes := strings.CutSuffix(cells[0], ", at times")
		if side != sideOld && side != sideNew {
			continue
		}
		if len(cells) != 4 || cells[3] == "" {
			return nil, fmt.Errorf("line %d: %d cells, want side, suites, pattern and reason", number, len(cells))
		}
		row := acceptedRow{line: number, side: side, atTimes: atTimes, reason: cells[3]}
		if cells[1] != "all" {
			row.suites = strings.Fields(cells[1])
		}
		for pattern := range strings.SplitSeq(cells[2], "<br>") {
			row.pattern = strings.Trim(pattern, "`")
			if row.match, err = compilePattern(row.pattern); err != nil {
				return nil, fmt.Errorf("line %d: %w", number, err)
			}
			table = append(table, row)
		}
	}
	return table, nil
}

// TestDifferences: the table is well-formed, and reads as it is written.
func TestDifferences(t *testing.T) {
	for _, row := range readDifferences(t) {
		if row.pattern == "" || strings.HasPrefix(row.pattern, "*") {
			t.Errorf("%s:%d accepts anything: %q", differencesFile, row.line, row.pattern)
		}
		for _, suite := range row.suites {
			if suite != "bookworm" && suite != "trixie" && suite != "sid" {
				t.Errorf("%s:%d is for the unknown suite %q", differencesFile, row.line, suite)
			}
		}
	}
	table, err := parseDifferences("| Only | Where |\n|---|---|\n| package | trixie sid | `rule eni+.table from eni+.ipv4[0] lookup eni+.table`<br>`link eni* x` | a bug |\n")
	if err != nil || len(table) != 2 || table[0].reason != "a bug" || table[1].reason != "a bug" || table[0].atTimes {
		t.Fatalf("%+v, %v", table, err)
	}
	checkPatterns(t)
	old := &view{Rules: []string{"rule eni1.table from eni1.ipv4[0] lookup eni1.table", "rule eni1.table from eni1.ipv4[1] lookup eni1.table", "rule 0 from all lookup local"}}
	now := &view{Rules: []string{"rule 0 from all lookup local"}, Links: []string{"link eni1 mtu 9001"}}
	for suite, want := range map[string][]string{
		"sid":      {"package: rule eni1.table from eni1.ipv4[1] lookup eni1.table", "ec2netd: link eni1 mtu 9001"},
		"bookworm": {"package: rule eni1.table from eni1.ipv4[0] lookup eni1.table", "package: rule eni1.table from eni1.ipv4[1] lookup eni1.table", "ec2netd: link eni1 mtu 9001"},
	} {
		left, needed := compareViews(suite, old, now, table)
		if !slices.Equal(left, want) || needed[0] != (suite == "sid") {
			t.Errorf("%s: %q, rows %v", suite, left, needed)
		}
		if unused := unusedRows(suite, table, needed); suite == "sid" && (len(unused) != 1 || unused[0].pattern != "link eni* x") || suite != "sid" && len(unused) > 0 {
			t.Errorf("%s: not needed: %+v", suite, unused)
		}
	}
	for _, bad := range []string{
		"| package | all | `x` |", "| package | all | `x` |  |",
		"| package | all | `route main * dev eni0` | anything |", "| package | all | `rule 1000+ from all` | some number |",
	} {
		if _, err := parseDifferences(bad + "\n"); err == nil {
			t.Errorf("%q is well-formed", bad)
		}
	}
}

// checkPatterns checks which lines a pattern accepts.
func checkPatterns(t *testing.T) {
	t.Helper()
	for _, c := range []struct {
		pattern, line string
		want          bool
	}{
		{"link eni* group 3778", "link eni0 group 3778", true},
		{"link eni* group 3778", "link eni12 group 3778", true},
		{"link eni* group 3778", "link eni1 group 37780", false},
		{"link eni+ group 3778", "link eni0 group 3778", false},
		{"link eni+ group 3778", "link eni10 group 3778", true},
		{"route eni*.table default dev eni*", "route eni1.table default dev eni1", true},
		{"route eni*.table default dev eni*", "route eni1.table default dev eni2", false},
		{"address eni* eni*.ipv6[*]/128", "address eni1 eni1.ipv6[0]/128", true},
		{"address eni* eni*.ipv6[*]/128", "address eni1 2001:db8::1/128", false},
		{"address eni* eni*.ipv6[+]/128", "address eni1 eni1.ipv6[0]/128", false},
		{"address eni* eni*.ipv6[+]/128", "address eni1 eni1.ipv6[10]/128", true},
	} {
		table, err := parseDifferences("| package, at times | all | `" + c.pattern + "` | a bug |\n")
		if err != nil || len(table) != 1 || !table[0].atTimes {
			t.Errorf("%s: %+v, %v", c.pattern, table, err)
			continue
		}
		if got := table[0].accepts("sid", sideOld, c.line); got != c.want {
			t.Errorf("%q accepts %q: %t", c.pattern, c.line, got)
		}
	}
}
