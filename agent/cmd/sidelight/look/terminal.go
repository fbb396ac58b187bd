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
}

// table makes lines of rows. A width of 0 is any.
func table(paint Paint, columns []column, rows [][]cell, width int) []string {
	widths := make([]int, len(columns))
	for i, c := range columns {
		widths[i] = utf8.RuneCountInString(c.name)
		for _, row := range rows {
			widths[i] = max(widths[i], utf8.RuneCountInString(row[i].text))
		}
	}
	shrink(columns, widths, width)
	head := make([]cell, len(columns))
	for i, c := range columns {
		head[i] = cell{c.name, Head}
	}
	lines := make([]string, 0, len(rows)+1)
	for _, row := range append([][]cell{head}, rows...) {
		var b strings.Builder
		room := width
		for i, c := range row {
			text := shorten(c.text, widths[i])
			gap := strings.Repeat(" ", widths[i]-utf8.RuneCountInString(text))
			last := i == len(row)-1
			if width > 0 {
				if room <= 0 {
					break
				}
				text = shorten(text, room)
				room -= widths[i] + 2
			}
			switch {
			case columns[i].right:
				b.WriteString(gap + paint.apply(c.style, text))
			case last:
				b.WriteString(paint.apply(c.style, text))
			default:
				b.WriteString(paint.apply(c.style, text) + gap)
			}
			if !last {
				b.WriteString("  ")
			}
		}
		lines = append(lines, strings.TrimRight(b.String(), " "))
	}
	return lines
}

// shrink takes width away from the widest of the columns that may be cut, until all fit or none can give any more.
func shrink(columns []column, widths []int, width int) {
	if width == 0 {
		return
	}
	total := 2 * (len(widths) - 1)
	for _, w := range widths {
		total += w
	}
	for ; total > width; total-- {
		widest := -1
		for i, c := range columns {
			if c.least > 0 && widths[i] > c.least && (widest < 0 || widths[i] > widths[widest]) {
				widest = i
			}
		}
		if widest < 0 {
			return
		}
		widths[widest]--
	}
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
