package main

import (
	"fmt"
	"os"
	"regexp"
	"slices"
	"strings"
	"testing"
)

// differencesFile has the accepted differences between the old package and ec2netd.
const differencesFile = "../../service/docs/differences.md"

// The sides of a difference: what only an instance with the old package has, or only one with
// ec2netd.
const (
	sideOld = "package"
	sideNew = "ec2netd"
)

// acceptedRow is a row of the table: lines of one side that the other does not have.
type acceptedRow struct {
	line          int
	side, pattern string
	suites        []string // empty for all
	match         *regexp.Regexp
	reason        string
}

// suits reports whether the row is for a suite.
func (d *acceptedRow) suits(suite string) bool {
	return len(d.suites) == 0 || slices.Contains(d.suites, suite)
}

func (d *acceptedRow) accepts(suite, side, line string) bool {
	return d.side == side && d.suits(suite) && d.match.MatchString(line)
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

// parseDifferences reads the rows "| side | suites | `pattern` | reason |".
func parseDifferences(text string) (table []acceptedRow, err error) {
	number := 0
	for line := range strings.Lines(text) {
		number++
		cells := strings.Split(strings.Trim(strings.TrimSpace(line), "|"), " | ")
		for i := range cells {
			cells[i] = strings.TrimSpace(cells[i])
		}
		if cells[0] != sideOld && cells[0] != sideNew {
			continue
		}
		if len(cells) != 4 || cells[3] == "" {
			return nil, fmt.Errorf("line %d: %d cells, want side, suites, pattern and reason", number, len(cells))
		}
		row := acceptedRow{line: number, side: cells[0], pattern: strings.Trim(cells[2], "`"), reason: cells[3]}
		if cells[1] != "all" {
			row.suites = strings.Fields(cells[1])
		}
		// * is any number of letters, as in a shell.
		row.match, err = regexp.Compile("^" + strings.ReplaceAll(regexp.QuoteMeta(row.pattern), `\*`, ".*") + "$")
		if err != nil {
			return nil, fmt.Errorf("line %d: %w", number, err)
		}
		table = append(table, row)
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
	table, err := parseDifferences("| Only | Where |\n|---|---|\n| package | trixie sid | `rule 1000* from eni1.ipv4[0] *` | a bug |\n")
	if err != nil || len(table) != 1 || table[0].reason != "a bug" {
		t.Fatalf("%+v, %v", table, err)
	}
	old := &view{Rules: []string{"rule 10001 from eni1.ipv4[0] lookup 10001", "rule 10001 from eni1.ipv4[1] lookup 10001", "rule 0 from all lookup local"}}
	now := &view{Rules: []string{"rule 0 from all lookup local"}, Links: []string{"link eni1 mtu 9001"}}
	for suite, want := range map[string][]string{
		"sid":      {"package: rule 10001 from eni1.ipv4[1] lookup 10001", "ec2netd: link eni1 mtu 9001"},
		"bookworm": {"package: rule 10001 from eni1.ipv4[0] lookup 10001", "package: rule 10001 from eni1.ipv4[1] lookup 10001", "ec2netd: link eni1 mtu 9001"},
	} {
		left, needed := compareViews(suite, old, now, table)
		if !slices.Equal(left, want) || needed[0] != (suite == "sid") {
			t.Errorf("%s: %q, rows %v", suite, left, needed)
		}
	}
	for _, bad := range []string{"| package | all | `x` |", "| package | all | `x` |  |"} {
		if _, err := parseDifferences(bad + "\n"); err == nil {
			t.Errorf("%q is well-formed", bad)
		}
	}
}
