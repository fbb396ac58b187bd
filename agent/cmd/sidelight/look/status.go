package look

import (
	"fmt"
	"slices"
	"strings"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/datapath"
)

// Status is how an agent is: what it answers.
type Status struct {
	Version        string         `json:"version"`
	Go             string         `json:"go"`
	Kernel         string         `json:"kernel"`
	PID            int            `json:"pid"`
	At             time.Time      `json:"at"`
	Started        time.Time      `json:"started"`
	Cgroup         string         `json:"cgroup"`
	Metrics        string         `json:"metrics_address"`
	StateDirectory string         `json:"state_directory"`
	Datapath       DatapathStatus `json:"datapath"`
	Mesh           *MeshStatus    `json:"mesh,omitempty"`   // nil: there is none
	Budget         *BudgetStatus  `json:"budget,omitempty"` // nil: there is none
	Account        AccountStatus  `json:"account"`
	Edges          EdgesStatus    `json:"edges"`
	Queues         []Queue        `json:"queues"`
	Readers        int            `json:"tail_readers"`
	datapath.Inventory
}

// DatapathStatus is about what outlives agents.
type DatapathStatus struct {
	Pins              string  `json:"pin_directory"` // or off
	Agents            uint64  `json:"agents"`
	UnattendedSeconds float64 `json:"unattended_seconds"`
}

// MeshStatus is about the mesh in force.
type MeshStatus struct {
	Path       string            `json:"path"`
	Generation uint64            `json:"generation"`
	Accepted   uint64            `json:"accepted"`
	Rejected   uint64            `json:"rejected"`
	LastError  string            `json:"last_error,omitempty"` // why the newest input is not in force
	Guarded    int               `json:"guarded_namespaces"`
	Out        map[string]string `json:"out,omitempty"` // endpoints that get no connections, with the cause
}

// BudgetStatus is about what the agent costs. A limit of 0 is none.
type BudgetStatus struct {
	Rung        int     `json:"rung"`
	Name        string  `json:"name"`
	Probability float64 `json:"sampling_probability"`
	CPU         float64 `json:"cpu_ratio"`
	CPULimit    float64 `json:"cpu_limit_ratio"`
	Memory      uint64  `json:"memory_bytes"`
	MemoryLimit uint64  `json:"memory_limit_bytes"`
	Measured    bool    `json:"measured"`
	Down        uint64  `json:"steps_down"`
	Up          uint64  `json:"steps_up"`
}

// AccountStatus is the account in short; all of it is what "sidelight audit" shows.
type AccountStatus struct {
	Attempts    uint64            `json:"attempts"`
	Failed      uint64            `json:"failed"`
	Established map[string]uint64 `json:"established"` // by role, as the next
	Adopted     map[string]uint64 `json:"adopted"`
	Closed      map[string]uint64 `json:"closed"`
	Live        int64             `json:"live"`
	MostLive    int               `json:"max_connections"`
	Unaccounted uint64            `json:"unaccounted"`
	Error       string            `json:"error,omitempty"` // why there is none
}

// EdgesStatus is about the table of edges.
type EdgesStatus struct {
	Edges   int    `json:"edges"`
	Most    int    `json:"max_edges"`
	Folded  uint64 `json:"folded"`
	Evicted uint64 `json:"evicted"`
}

// Queue is one on the way out.
type Queue struct {
	Name    string `json:"name"`
	Waiting uint64 `json:"waiting"`
	Room    uint64 `json:"room,omitempty"` // 0: it is somebody else's
	Lost    uint64 `json:"lost"`
	Unit    string `json:"unit"`
}

// Lines are the one screen of a status.
func (s *Status) Lines(paint Paint) []string {
	var lines []string
	add := func(name, format string, args ...any) {
		lines = append(lines, paint.apply(Head, fmt.Sprintf("%-11s", name))+" "+fmt.Sprintf(format, args...))
	}
	add("agent", "sidelight %s (%s) on Linux %s, process %d, up %v", printable(s.Version), s.Go, printable(s.Kernel), s.PID, s.At.Sub(s.Started).Round(time.Second))
	add("", "cgroup %s, metrics on %s, state in %s", printable(s.Cgroup), s.Metrics, printable(s.StateDirectory))
	pins := "pinned in " + printable(s.Datapath.Pins)
	if s.Datapath.Pins == "off" {
		pins = "not pinned: it ends with the agent"
	}
	add("data path", "%s; %d agents so far, %v without one", pins, s.Datapath.Agents, time.Duration(s.Datapath.UnattendedSeconds*1e9).Round(time.Millisecond))
	s.mesh(paint, add)
	s.budget(paint, add)
	s.account(paint, add)
	full := Plain
	if s.Edges.Edges >= s.Edges.Most {
		full = Warn
	}
	add("edges", "%s of %d; %d records folded, %d edges evicted", paint.apply(full, fmt.Sprint(s.Edges.Edges)), s.Edges.Most, s.Edges.Folded, s.Edges.Evicted)
	lines = append(append(lines, ""), s.queues(paint)...)
	lines = append(append(lines, ""), s.programs(paint)...)
	return append(append(lines, ""), s.maps(paint)...)
}

func (s *Status) mesh(paint Paint, add func(string, string, ...any)) {
	m := s.Mesh
	if m == nil {
		add("mesh", "none")
		return
	}
	add("mesh", "generation %d of %s in force, %d inputs rejected, %d network namespaces guarded", m.Generation, printable(m.Path), m.Rejected, m.Guarded)
	if m.LastError != "" {
		add("", "%s", paint.apply(Bad, "the newest input is not in force: "+printable(m.LastError)))
	}
	if len(m.Out) > 0 {
		var out []string
		for name, cause := range m.Out {
			out = append(out, printable(name)+" ("+cause+")")
		}
		slices.Sort(out)
		add("", "%s", paint.apply(Warn, "out of service: "+strings.Join(out, ", ")))
	}
}

func (s *Status) budget(paint Paint, add func(string, string, ...any)) {
	b := s.Budget
	if b == nil {
		add("budget", "none")
		return
	}
	rung := Good
	if b.Rung > 0 {
		rung = Warn
	}
	text := paint.apply(rung, fmt.Sprintf("rung %d, %s", b.Rung, b.Name))
	if b.Probability < 1 {
		text += fmt.Sprintf(", 1 in %.0f logged", 1/b.Probability)
	}
	if !b.Measured {
		add("budget", "%s; not measured yet", text)
		return
	}
	limit := func(of float64, text string) string {
		if of == 0 {
			return ""
		}
		return " of " + text
	}
	add("budget", "%s; CPU %.2f %%%s, memory %s%s; %d steps down, %d up", text, 100*b.CPU, limit(b.CPULimit, fmt.Sprintf("%.2f %%", 100*b.CPULimit)),
		bytes(float64(b.Memory)), limit(float64(b.MemoryLimit), bytes(float64(b.MemoryLimit))), b.Down, b.Up)
}

func (s *Status) account(paint Paint, add func(string, string, ...any)) {
	a := &s.Account
	if a.Error != "" {
		add("account", "%s", paint.apply(Bad, "not known: "+printable(a.Error)))
		return
	}
	add("account", "%d attempts = %d established + %d failed + %d connecting", a.Attempts, a.Established["client"], a.Failed,
		int64(a.Attempts-a.Established["client"]-a.Failed))
	style := Good
	if a.Unaccounted > 0 {
		style = Bad
	}
	add("", "%d live of %d; %s", a.Live, a.MostLive, paint.apply(style, fmt.Sprintf("%d unaccounted", a.Unaccounted)))
}

// share is how much of a room is in use.
func share(used, room uint64) cell {
	if room == 0 {
		return plain("-")
	}
	of := float64(used) / float64(room)
	style := Plain
	switch {
	case of >= 0.95:
		style = Bad
	case of >= 0.75:
		style = Warn
	}
	return cell{fmt.Sprintf("%.1f %%", 100*of), style}
}

func (s *Status) queues(paint Paint) []string {
	columns := []column{{name: "QUEUE"}, {name: "WAITING", right: true}, {name: "ROOM", right: true}, {name: "USED", right: true}, {name: "LOST", right: true}, {name: "OF"}}
	var rows [][]cell
	for i := range s.Queues {
		q := &s.Queues[i]
		lost := Plain
		if q.Lost > 0 {
			lost = Bad
		}
		room := "-"
		if q.Room > 0 {
			room = fmt.Sprint(q.Room)
		}
		rows = append(rows, []cell{
			plain(q.Name), plain(fmt.Sprint(q.Waiting)), plain(room), share(q.Waiting, q.Room), {fmt.Sprint(q.Lost), lost}, plain(q.Unit),
		})
	}
	return table(paint, columns, rows, 0)
}

// programs has each program with where it is attached.
func (s *Status) programs(paint Paint) []string {
	columns := []column{
		{name: "PROGRAM"},
		{name: "TYPE"},
		{name: "ID", right: true},
		{name: "TAG"},
		{name: "RUNS MEASURED", right: true},
		{name: "NS A RUN", right: true},
		{name: "LINKS"},
	}
	var rows [][]cell
	linked := make(map[uint32][]string)
	for _, l := range s.Links {
		linked[l.Program] = append(linked[l.Program], fmt.Sprintf("%s (%s %d)", l.Name, l.Type, l.ID))
	}
	row := func(name, kind string, id uint32, tag, runs, each string) {
		links := linked[id]
		delete(linked, id)
		rows = append(rows, []cell{
			plain(name), plain(kind), plain(fmt.Sprint(id)), plain(tag), plain(runs), plain(each), plain(few(links)),
		})
	}
	for i := range s.Programs {
		p := &s.Programs[i]
		each := "-"
		if p.Runs > 0 {
			each = fmt.Sprintf("%.0f", p.Seconds*1e9/float64(p.Runs))
		}
		row(p.Name, p.Type, p.ID, p.Tag, fmt.Sprint(p.Runs), each)
	}
	// Those of network namespaces, each of which has a program of its own, and what another version left.
	var others []string
	for id := range linked {
		others = append(others, linked[id]...)
	}
	if len(others) > 0 {
		slices.Sort(others)
		rows = append(rows, []cell{plain("others"), {}, {}, {}, {}, {}, plain(few(others))})
	}
	return table(paint, columns, rows, 0)
}

// few leaves out what makes a line too long.
func few(links []string) string {
	const most = 3
	if len(links) > most {
		return fmt.Sprintf("%s and %d more", strings.Join(links[:most], ", "), len(links)-most)
	}
	return strings.Join(links, ", ")
}

func (s *Status) maps(paint Paint) []string {
	columns := []column{
		{name: "MAP"},
		{name: "TYPE"},
		{name: "ID", right: true},
		{name: "ENTRIES", right: true},
		{name: "ROOM", right: true},
		{name: "USED", right: true},
		{name: "MEMORY", right: true},
	}
	var rows [][]cell
	// Those that are not filled by and by, or not counted, only take a place on the screen.
	others, memory := 0, uint64(0)
	for i := range s.Maps {
		m := &s.Maps[i]
		if m.Entries == nil {
			others++
			memory += m.Memory
			continue
		}
		entries, used, room := fmt.Sprint(*m.Entries), share(*m.Entries, uint64(m.MaxEntries)), "-"
		if m.MaxEntries > 0 {
			room = fmt.Sprint(m.MaxEntries)
		}
		rows = append(rows, []cell{
			plain(m.Name), plain(m.Type), plain(fmt.Sprint(m.ID)), plain(entries), plain(room), used, plain(bytes(float64(m.Memory))),
		})
	}
	lines := table(paint, columns, rows, 0)
	if others > 0 {
		lines = append(lines, fmt.Sprintf("and %d whose entries are not counted, %s", others, bytes(float64(memory))))
	}
	return lines
}
