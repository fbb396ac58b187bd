package report

import (
	"fmt"
	"html"
	"math"
	"strings"

	"github.com/sidelight-mesh/sidelight/bench/gate"
)

// Measures of a plot, in pixels.
const (
	plotWidth = 860
	plotLabel = 300 // left of the axis
	plotRow   = 22
	plotHead  = 46
	plotEdge  = 70 // right of it, for the number
)

var colours = map[gate.Verdict]string{
	gate.Broken: "#c0392b", gate.Open: "#b9770e", gate.Kept: "#1e8449", gate.Better: "#1e8449", gate.None: "#5d6d7e",
}

// plot draws ratios as an SVG: one row each, a bar for the interval, a dot for the ratio, a tick for the limit, a line at 1.
func plot(title string, results []gate.Result) string {
	low, high := 1.0, 1.0
	for _, r := range results {
		low, high = math.Min(low, r.Estimate.Low), math.Max(high, r.Estimate.High)
		if limit, ok := limitOf(r.Budget); ok {
			low, high = math.Min(low, limit), math.Max(high, limit)
		}
	}
	margin := math.Max((high-low)*0.05, 0.005)
	low, high = low-margin, high+margin
	x := func(v float64) float64 { return plotLabel + (v-low)/(high-low)*(plotWidth-plotLabel-plotEdge) }
	height := plotHead + plotRow*len(results) + 10
	var b strings.Builder
	fmt.Fprintf(&b, `<svg xmlns="http://www.w3.org/2000/svg" width="%d" height="%d" font-family="sans-serif" font-size="12">`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<rect width="%d" height="%d" fill="#fff"/>`+"\n", plotWidth, height)
	fmt.Fprintf(&b, `<text x="10" y="18" font-size="14">%s: ratio to bare, 95 %% interval; tick: budget</text>`+"\n", html.EscapeString(title))
	for _, v := range ticks(low, high) {
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#e5e8e8"/><text x="%.1f" y="%d" text-anchor="middle" fill="#5d6d7e">%.4g</text>`+"\n",
			x(v), x(v), plotHead-8, height-5, x(v), plotHead-12, v)
	}
	fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#17202a"/>`+"\n", x(1), x(1), plotHead-8, height-5)
	for i, r := range results {
		y := plotHead + plotRow*i + plotRow/2
		colour := colours[r.Verdict]
		fmt.Fprintf(&b, `<text x="10" y="%d">%s</text>`, y+4, html.EscapeString(strings.TrimPrefix(r.Figure.Name, title+".")))
		fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="%s" stroke-width="5" stroke-opacity="0.5"/>`,
			x(r.Estimate.Low), x(r.Estimate.High), y, y, colour)
		fmt.Fprintf(&b, `<circle cx="%.1f" cy="%d" r="4" fill="%s"/>`, x(r.Estimate.Point), y, colour)
		if limit, ok := limitOf(r.Budget); ok {
			fmt.Fprintf(&b, `<line x1="%.1f" x2="%.1f" y1="%d" y2="%d" stroke="#17202a" stroke-width="2"/>`, x(limit), x(limit), y-8, y+8)
		}
		fmt.Fprintf(&b, `<text x="%d" y="%d" text-anchor="end">%.3f</text>`+"\n", plotWidth-10, y+4, r.Estimate.Point)
	}
	b.WriteString("</svg>\n")
	return b.String()
}

func limitOf(b *gate.Budget) (float64, bool) {
	switch {
	case b == nil:
		return 0, false
	case b.AtMost != nil:
		return *b.AtMost, true
	case b.AtLeast != nil:
		return *b.AtLeast, true
	}
	return *b.Within, true
}

// ticks returns some round numbers between two others.
func ticks(low, high float64) []float64 {
	step := math.Pow(10, math.Floor(math.Log10((high-low)/2)))
	for (high-low)/step > 8 {
		step *= 2
	}
	var values []float64
	for v := math.Ceil(low/step) * step; v <= high; v += step {
		values = append(values, v)
	}
	return values
}
