package main

import (
	"strings"
	"unicode"
	"unicode/utf8"
)

// colour is an ANSI colour, or none.
type colour string

// The colours that systemd's tools use for the same things.
const (
	plain  colour = ""
	bold   colour = "\x1b[0;1;39m"
	green  colour = "\x1b[0;1;32m"
	yellow colour = "\x1b[0;1;38;5;185m"
	red    colour = "\x1b[0;1;31m"
	grey   colour = "\x1b[0;38;5;245m"
	reset         = "\x1b[0m"
)

// cell is one field of a table: lines that stand below each other.
type cell struct {
	lines  []string
	colour colour
}

// text is a cell of one line, with - for nothing.
func text(s string) cell { return lines([]string{s}) }

// lines is a cell of several lines.
func lines(l []string) cell {
	cleaned := make([]string, 0, len(l))
	for _, s := range l {
		if s = clean(s); s != "" {
			cleaned = append(cleaned, s)
		}
	}
	if len(cleaned) == 0 {
		cleaned = []string{"-"}
	}
	return cell{lines: cleaned}
}

func (c cell) in(col colour) cell {
	c.colour = col
	return c
}

// narrowest is the least width that the last column of a table is left.
const narrowest = 24

// table lays rows out in columns, two spaces apart. text/tabwriter cannot do it: a
// cell has several lines here, and a colour that takes no room. A table that is wider
// than the screen has the words of its last column wrapped; width 0 is that of no screen.
func table(rows [][]cell, width int, coloured bool) string {
	if width > 0 {
		rows = fit(rows, width)
	}
	widths := columnWidths(rows)
	var b strings.Builder
	for _, row := range rows {
		height := 0
		for _, c := range row {
			height = max(height, len(c.lines))
		}
		for n := range height {
			gap := 0 // spaces that are due before the next text; none end a line
			for i, c := range row {
				if n < len(c.lines) && c.lines[n] != "" {
					b.WriteString(strings.Repeat(" ", gap))
					b.WriteString(paint(c.lines[n], c.colour, coloured))
					gap = widths[i] - utf8.RuneCountInString(c.lines[n]) + 2
				} else {
					gap += widths[i] + 2
				}
			}
			b.WriteByte('\n')
		}
	}
	return b.String()
}

func columnWidths(rows [][]cell) (widths []int) {
	for _, row := range rows {
		for i, c := range row {
			if i == len(widths) {
				widths = append(widths, 0)
			}
			for _, l := range c.lines {
				widths[i] = max(widths[i], utf8.RuneCountInString(l))
			}
		}
	}
	return widths
}

// fit wraps the last column so that a table is no wider than the screen.
func fit(rows [][]cell, width int) [][]cell {
	widths := columnWidths(rows)
	last := len(widths) - 1
	for _, w := range widths[:last] {
		width -= w + 2
	}
	if widths[last] <= width {
		return rows
	}
	fitted := make([][]cell, len(rows))
	for i, row := range rows {
		fitted[i] = row
		if len(row) == last+1 {
			fitted[i] = append(append([]cell(nil), row[:last]...), row[last].wrapped(max(width, narrowest)))
		}
	}
	return fitted
}

// wrapped is the cell with lines of at most width, unless a word is longer.
func (c cell) wrapped(width int) cell {
	var out []string
	for _, l := range c.lines {
		line := ""
		for word := range strings.FieldsSeq(l) {
			switch {
			case line == "":
				line = word
			case utf8.RuneCountInString(line)+1+utf8.RuneCountInString(word) <= width:
				line += " " + word
			default:
				out, line = append(out, line), word
			}
		}
		out = append(out, line)
	}
	c.lines = out
	return c
}

// paint gives s a colour.
func paint(s string, c colour, coloured bool) string {
	if !coloured || c == plain {
		return s
	}
	return string(c) + s + reset
}

// clean replaces what could move the cursor or hide text: link names and errors may
// have any byte. Line ends stay.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if r != '\n' && (unicode.IsControl(r) || r == utf8.RuneError || unicode.Is(unicode.Bidi_Control, r)) {
			return '?'
		}
		return r
	}, s)
}
