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

// table lays rows out in columns, two spaces apart. text/tabwriter cannot do it: a
// cell has several lines here, and a colour that takes no room.
func table(rows [][]cell, coloured bool) string {
	var widths []int
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
