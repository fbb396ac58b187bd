// Package look is what an operator sees of a running agent in a terminal: what is asked of its control socket, what is made of the answers, and how
// that is shown. It is pure but for the program of bubbletea: it asks nobody.
package look

import (
	"fmt"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"
)

// Style is how a text stands out.
type Style uint8

// The styles.
const (
	Plain Style = iota
	Head
	Good
	Bad
	Warn
	Faint
	Marked
)

// The sixteen colours that every terminal has, as its owner chose them.
var codes = [...]string{Head: "1", Good: "32", Bad: "31", Warn: "33", Faint: "2", Marked: "7"}

// Paint shows styles, or does not.
type Paint bool

func (p Paint) apply(s Style, text string) string {
	if !p || s == Plain || text == "" {
		return text
	}
	return "\x1b[" + codes[s] + "m" + text + "\x1b[0m"
}

// What --color can be.
const (
	ColourAuto   = "auto"
	ColourAlways = "always"
	ColourNever  = "never"
)

// PaintFor says whether to use colours: by --color, and if that leaves it open on a terminal, unless the environment says otherwise (no-color.org).
func PaintFor(mode string, terminal bool, lookup func(string) (string, bool)) (Paint, error) {
	switch mode {
	case ColourAlways:
		return true, nil
	case ColourNever:
		return false, nil
	case ColourAuto:
		no, _ := lookup("NO_COLOR")
		kind, _ := lookup("TERM")
		return Paint(terminal && no == "" && kind != "dumb"), nil
	}
	return false, fmt.Errorf("--color %s: use %s, %s or %s", mode, ColourAuto, ColourAlways, ColourNever)
}

// printable makes a text safe to show: names come from workloads, and could make a terminal do things.
func printable(text string) string {
	for _, r := range text {
		if !unicode.IsPrint(r) {
			return strings.Map(func(r rune) rune {
				if unicode.IsPrint(r) {
					return r
				}
				return utf8.RuneError
			}, text)
		}
	}
	return text
}

// cell is one of a table.
type cell struct {
	text  string
	style Style
}

func plain(text string) cell { return cell{text: text} }

// column is what the cells of one have in common.
type column struct {
	name  string
	right bool // aligned
	// least is the width that it may be cut to when there is no room; 0: it is not cut.
	least int
	// tail is of the last one, whose end may be missing.
	tail bool
}

// leastTail is how much of the last column is worth to be shown.
const leastTail = 8

// table makes lines of rows. A width of 0 is any; of another, columns at the end that do not fit are left out.
func table(paint Paint, columns []column, rows [][]cell, width int) []string {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.name)
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	columns = columns[:fit(columns, widths, width)]
	head := make([]cell, len(columns))
	for i, c := range columns {
		head[i] = cell{c.name, Head}
	}
	lines := make([]string, 0, len(rows)+1)
	for _, row := range append([][]cell{head}, rows...) {
		var b strings.Builder
		for i, c := range columns {
			text := shorten(row[i].text, widths[i])
			if runes := []rune(row[i].text); c.tail && len(runes) > widths[i] {
				text = string(runes[:widths[i]-1]) + "…" // or a number would look like a smaller one
			}
			gap := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			if c.right {
				b.WriteString(gap)
			}
			b.WriteString(paint.apply(row[i].style, text))
			if i < len(columns)-1 {
				if !c.right {
					b.WriteString(gap)
				}
				b.WriteString("  ")
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// fit returns how many columns there is room for, and makes these as narrow as they have to be, the widest first.
func fit(columns []column, widths []int, width int) int {
	if width == 0 {
		return len(columns)
	}
	narrowest := func(i int) int {
		switch c := columns[i]; {
		case c.tail:
			return min(widths[i], leastTail)
		case c.least > 0:
			return min(widths[i], c.least)
		}
		return widths[i]
	}
	n, needed := 0, -2
	for n < len(columns) && needed+2+narrowest(n) <= width {
		needed += 2 + narrowest(n)
		n++
	}
	if n == 0 {
		widths[0] = width
		return 1
	}
	total := -2
	for _, w := range widths[:n] {
		total += 2 + w
	}
	for ; total > width; total-- {
		widest := -1
		for i := range n {
			// The end of the last column first: it is made to be cut.
			if widths[i] > narrowest(i) && (widest < 0 || columns[i].tail || widths[i] > widths[widest] && !columns[widest].tail) {
				widest = i
			}
		}
		widths[widest]--
	}
	return n
}

// shorten cuts the middle out of a text: of a name both ends tell something.
func shorten(text string, most int) string {
	n := utf8.RuneCountInString(text)
	if n <= most {
		return text
	}
	runes := []rune(text)
	if most <= 1 {
		return string(runes[:max(most, 0)])
	}
	left := most / 2
	return string(runes[:left]) + "…" + string(runes[n-(most-1-left):])
}

// bytes is a number of them.
func bytes(n float64) string {
	switch {
	case n >= 1<<30:
		return fmt.Sprintf("%.1f GiB", n/(1<<30))
	case n >= 1<<20:
		return fmt.Sprintf("%.1f MiB", n/(1<<20))
	case n >= 1<<10:
		return fmt.Sprintf("%.1f KiB", n/(1<<10))
	}
	return fmt.Sprintf("%.0f B", n)
}

// rate is a number a second.
func rate(n float64) string {
	switch {
	case n == 0:
		return "0"
	case n < 0.05:
		return "<0.1"
	case n < 100:
		return fmt.Sprintf("%.1f", n)
	}
	return fmt.Sprintf("%.0f", n)
}

// duration has three digits at most before its unit.
func duration(d time.Duration) string {
	switch {
	case d < time.Microsecond:
		return d.String()
	case d < time.Millisecond:
		return d.Round(time.Microsecond).String()
	case d < 100*time.Millisecond:
		return d.Round(10 * time.Microsecond).String()
	case d < time.Second:
		return d.Round(time.Millisecond).String()
	case d < 100*time.Second:
		return d.Round(10 * time.Millisecond).String()
	}
	return d.Round(time.Second).String()
}

// seconds is one that may not be known.
func seconds(s *float64) string {
	if s == nil {
		return "-"
	}
	return duration(time.Duration(*s * 1e9))
}
