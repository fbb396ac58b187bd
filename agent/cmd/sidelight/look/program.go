package look

import (
	"context"
	"errors"
	"fmt"
	"slices"
	"strings"
	"time"
	"unicode/utf8"

	tea "charm.land/bubbletea/v2"
	"github.com/charmbracelet/colorprofile"

	"github.com/sidelight-mesh/sidelight/collector/filter"
)

// TopOptions are how top begins; all of it can be changed while it runs.
type TopOptions struct {
	First    *Edges // nil: it is asked for
	Interval time.Duration
	Sort     Sort
	Filter   string
	Paint    Paint
}

// Least and most that an interval may be.
const (
	LeastInterval = 100 * time.Millisecond
	MostInterval  = time.Hour
)

// RunTop shows the edges on the terminal until the user or the context ends it. ask is called from other goroutines, one at a time.
func RunTop(ctx context.Context, ask func(context.Context) (*Edges, error), o TopOptions) error {
	m, err := newTop(ctx, ask, o)
	if err != nil {
		return err
	}
	// Whether there are colours was decided.
	profile := colorprofile.ANSI
	if !o.Paint {
		profile = colorprofile.ASCII
	}
	_, err = tea.NewProgram(m, tea.WithContext(ctx), tea.WithoutSignalHandler(), tea.WithColorProfile(profile)).Run()
	if ctx.Err() != nil || errors.Is(err, tea.ErrInterrupted) {
		return nil
	}
	return err
}

// top is the state of the program: a tea.Model.
type top struct {
	ctx           context.Context
	ask           func(context.Context) (*Edges, error)
	interval      time.Duration
	sort          Sort
	paint         Paint
	width, height int

	text   string // of the filter
	filter *filter.Expression

	before, after *Edges
	report        *Report
	fault         error // of the last answer
	paused, help  bool
	first         int // edge that is shown

	editing bool
	edit    string
	wrong   error // with what was edited
}

func newTop(ctx context.Context, ask func(context.Context) (*Edges, error), o TopOptions) (*top, error) {
	m := &top{ctx: ctx, ask: ask, interval: o.Interval, sort: o.Sort, paint: o.Paint, text: o.Filter, width: 80, height: 24, after: o.First}
	var err error
	m.filter, err = CompileEdges(o.Filter)
	return m, err
}

// CompileEdges compiles a filter of edges; nil of an empty one.
func CompileEdges(text string) (*filter.Expression, error) {
	if strings.TrimSpace(text) == "" {
		return nil, nil
	}
	return filter.Compile(text, edgeFields)
}

type (
	answer struct {
		edges *Edges
		err   error
	}
	again struct{}
)

func (m *top) look() tea.Msg {
	edges, err := m.ask(m.ctx)
	return answer{edges, err}
}

// Init asks for the first time.
func (m *top) Init() tea.Cmd {
	if m.after != nil {
		return m.later(m.soon())
	}
	return m.look
}

// soon is when to look for the second time, so that there is something to see.
func (m *top) soon() time.Duration { return min(m.interval, time.Second) }

// Update takes what happened.
func (m *top) Update(message tea.Msg) (tea.Model, tea.Cmd) {
	switch message := message.(type) {
	case tea.WindowSizeMsg:
		m.width, m.height = message.Width, message.Height
		m.scroll(0)
	case again:
		if m.paused {
			return m, m.later(m.interval)
		}
		return m, m.look
	case answer:
		return m, m.answered(message)
	case tea.PasteMsg:
		if m.editing {
			m.edit += strings.NewReplacer("\r\n", " ", "\n", " ", "\r", " ").Replace(strings.TrimRight(message.Content, "\r\n")) // it is one line
		}
	case tea.KeyPressMsg:
		if m.editing {
			m.edited(message)
			return m, nil
		}
		return m, m.pressed(message.String())
	}
	return m, nil
}

func (m *top) answered(a answer) tea.Cmd {
	next := m.interval
	if m.fault = a.err; a.err == nil && !m.paused {
		if m.before, m.after = m.after, a.edges; m.before == nil {
			next = m.soon()
		}
		m.compare()
	}
	return m.later(next)
}

func (m *top) later(after time.Duration) tea.Cmd {
	return tea.Tick(after, func(time.Time) tea.Msg { return again{} })
}

// compare makes the report anew.
func (m *top) compare() {
	if m.before == nil {
		return
	}
	m.report = Compare(m.before, m.after)
	m.report.Keep(m.filter)
	m.report.Order(m.sort)
	m.scroll(0)
}

func (m *top) pressed(key string) tea.Cmd {
	switch key {
	case "q", "ctrl+c":
		return tea.Quit
	case "s":
		m.order(Sorts[(slices.Index(Sorts, m.sort)+1)%len(Sorts)])
	case "r":
		m.order(ByRate)
	case "b":
		m.order(ByBytes)
	case "f":
		m.order(ByFailures)
	case "l":
		m.order(ByLatency)
	case "o":
		m.order(ByOpen)
	case "n":
		m.order(ByName)
	case "+":
		m.interval = min(2*m.interval, MostInterval)
	case "-":
		m.interval = max(m.interval/2, LeastInterval)
	case "space", "p":
		m.paused = !m.paused
	case "/":
		m.editing, m.edit, m.wrong = true, m.text, nil
	case "?", "h":
		m.help = !m.help
	case "up", "k":
		m.scroll(-1)
	case "down", "j":
		m.scroll(1)
	case "pgup":
		m.scroll(-m.room())
	case "pgdown":
		m.scroll(m.room())
	case "home":
		m.scroll(-m.first)
	case "end":
		if m.report != nil {
			m.scroll(len(m.report.Edges))
		}
	}
	return nil
}

func (m *top) order(by Sort) {
	m.sort = by
	m.compare()
}

// edited takes a key while the filter is written.
func (m *top) edited(key tea.KeyPressMsg) {
	switch key.String() {
	case "enter":
		expression, err := CompileEdges(m.edit)
		if m.wrong = err; err == nil {
			m.editing, m.text, m.filter = false, strings.TrimSpace(m.edit), expression
			m.compare()
		}
	case "esc", "ctrl+c":
		m.editing, m.wrong = false, nil
	case "ctrl+u":
		m.edit = ""
	case "backspace":
		_, size := utf8.DecodeLastRuneInString(m.edit)
		m.edit = m.edit[:len(m.edit)-size]
	default:
		m.edit += key.Text
	}
}

// room is how many edges fit.
func (m *top) room() int { return max(1, m.height-4) }

func (m *top) scroll(by int) {
	most := 0
	if m.report != nil {
		most = max(0, len(m.report.Edges)-m.room())
	}
	m.first = min(max(m.first+by, 0), most)
}

var topHelp = []string{
	"q quit           s next order     / filter         ? this help",
	"r by rate        b by bytes       f by failures    l by latency (P99 of connect)",
	"o by open        n by name        + - interval     space stop and go on",
	"up down pgup pgdown home end: scroll",
	"In a filter: " + "role local peer service type rate failures sent received open connecting connect first_byte,",
	`such as  failures > 0 && peer =~ "^shop"  or  connect > 10ms`,
}

// View shows the state.
func (m *top) View() tea.View {
	v := tea.NewView(strings.Join(m.lines(), "\n"))
	v.AltScreen = true
	v.WindowTitle = "sidelight top"
	return v
}

func (m *top) lines() []string {
	cut := func(line string) string {
		if runes := []rune(line); len(runes) > m.width {
			return string(runes[:m.width])
		}
		return line
	}
	state := fmt.Sprintf("every %v  by %s", m.interval, m.sort)
	if m.text != "" {
		state += "  filter " + printable(m.text)
	}
	if m.paused {
		state += "  stopped"
	}
	lines := []string{"", m.paint.apply(Faint, cut(state))}
	switch {
	case m.report != nil:
		lines[0] = m.paint.apply(Head, cut(m.report.Summary()))
		table := m.report.Lines(m.paint, m.width)
		lines = append(lines, table[0])
		lines = append(lines, table[1+m.first:min(len(table), 1+m.first+m.room())]...)
	case m.fault == nil:
		lines[0] = "the first rates come after an interval"
	}
	if m.help {
		lines = append(lines[:2], topHelp...)
	}
	last := cut("q quit  s order  / filter  + - interval  space stop  ? help")
	style := Faint
	switch {
	case m.editing:
		last, style = "filter: "+printable(m.edit)+"_", Plain
		if m.wrong != nil {
			last, style = printable(m.wrong.Error())+"; "+last, Bad
		}
		// What is written at the end is what matters.
		if runes := []rune(last); len(runes) > m.width {
			last = string(runes[len(runes)-m.width:])
		}
	case m.fault != nil:
		last, style = cut(printable(m.fault.Error())), Bad
	}
	for len(lines) < m.height-1 {
		lines = append(lines, "")
	}
	return append(lines[:max(0, min(len(lines), m.height-1))], m.paint.apply(style, last))
}
