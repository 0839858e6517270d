package main

import (
	"slices"
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
	// below: it is the only one of its row, and may be wider than its column.
	below bool
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
// than the screen is made to [fit]; width 0 is that of no screen. Columns
// that can be spared are named as in the first row, which is a header then.
func table(rows [][]cell, width int, coloured bool, spare ...string) string {
	if width > 0 {
		rows = fit(rows, width, spare)
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
				if c.below {
					continue
				}
				widths[i] = max(widths[i], utf8.RuneCountInString(l))
			}
		}
	}
	return widths
}

// fit makes a table no wider than the screen, as far as that can be: the words of the last
// column are wrapped, or stand below their row where there is little room beside it; then
// columns go that can be spared, those of spare in that order; then the first is wrapped.
func fit(rows [][]cell, width int, spare []string) [][]cell {
	widths := columnWidths(rows)
	last := len(widths) - 1
	if last < 1 {
		return rows
	}
	var kept []int
	for i := range widths {
		kept = append(kept, i)
	}
	total := func() (sum int) {
		for _, i := range kept {
			sum += widths[i] + 2
		}
		return sum - 2
	}
	room := width - (total() - widths[last])
	below := false
	switch {
	case room >= widths[last]:
		return rows
	case !wordy(rows, last):
	case room >= narrowest:
		return wrap(rows, last, room)
	default:
		below, kept = true, kept[:last]
	}
	for _, name := range spare {
		if total() <= width {
			break
		}
		kept = slices.DeleteFunc(kept, func(i int) bool { return rows[0][i].lines[0] == name })
	}
	if excess := total() - width; excess > 0 && wordy(rows, 0) {
		rows = wrap(rows, 0, max(widths[0]-excess, narrowest))
	}
	var fitted [][]cell
	for n, row := range rows {
		isHeader := n == 0 && len(spare) > 0
		var some []cell
		for _, i := range kept {
			if i < len(row) {
				some = append(some, row[i])
			}
		}
		fitted = append(fitted, some)
		if below && !isHeader && len(row) > last && row[last].lines[0] != "-" {
			note := row[last].wrapped(max(width-2, narrowest))
			for i := range note.lines {
				note.lines[i] = "  " + note.lines[i]
			}
			note.below = true
			fitted = append(fitted, []cell{note})
		}
	}
	return fitted
}

// wordy tells whether a column has lines that can be wrapped.
func wordy(rows [][]cell, column int) bool {
	return slices.ContainsFunc(rows, func(row []cell) bool {
		return column < len(row) && slices.ContainsFunc(row[column].lines, func(l string) bool { return strings.Contains(l, " ") })
	})
}

// wrap wraps a column.
func wrap(rows [][]cell, column, width int) [][]cell {
	wrapped := make([][]cell, len(rows))
	for i, row := range rows {
		wrapped[i] = slices.Clone(row)
		if column < len(row) {
			wrapped[i][column] = row[column].wrapped(width)
		}
	}
	return wrapped
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
