// Package report writes what a run measured: JSON with every sample, a Markdown table, and a plot of each group of ratios.
package report

import (
	"encoding/json"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"runtime"
	"strings"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sidelight-mesh/sidelight/bench/figure"
	"github.com/sidelight-mesh/sidelight/bench/gate"
)

// About says which run it was.
type About struct {
	Name     string    `json:"name"`
	Time     time.Time `json:"time"`
	Revision string    `json:"revision,omitempty"`
	Kernel   string    `json:"kernel"`
	CPU      string    `json:"cpu"`
	CPUs     int       `json:"cpus"`
	Go       string    `json:"go"`
	Seed     uint64    `json:"seed"`
	Quick    bool      `json:"quick"`
}

// Describe looks at the machine and the work tree. What it cannot find out stays empty.
func Describe(name string, seed uint64, quick bool) About {
	a := About{Name: name, Time: time.Now().UTC().Truncate(time.Second), CPUs: runtime.NumCPU(), Go: runtime.Version(), Seed: seed, Quick: quick}
	if out, err := exec.Command("git", "describe", "--always", "--dirty").Output(); err == nil {
		a.Revision = strings.TrimSpace(string(out))
	}
	var name64 unix.Utsname
	if unix.Uname(&name64) == nil {
		a.Kernel = unix.ByteSliceToString(name64.Release[:])
	}
	text, _ := os.ReadFile("/proc/cpuinfo")
	for line := range strings.Lines(string(text)) {
		if key, value, _ := strings.Cut(line, ":"); strings.TrimSpace(key) == "model name" {
			a.CPU = strings.TrimSpace(value)
			break
		}
	}
	return a
}

// Write writes everything into a directory, which it makes. Files of an earlier run of that name are replaced.
func Write(dir string, about About, results []gate.Result) error {
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return err
	}
	text, err := json.MarshalIndent(struct {
		About   About         `json:"about"`
		Results []gate.Result `json:"results"`
	}{about, results}, "", " ")
	if err != nil {
		return err
	}
	files := map[string][]byte{"results.json": append(text, '\n')}
	var links strings.Builder
	for _, group := range groups(results) {
		name := strings.ReplaceAll(group.name, ".", "-") + ".svg"
		files[name] = []byte(plot(group.name, group.results))
		fmt.Fprintf(&links, "\n![%s](%s)\n", group.name, name)
	}
	files["table.md"] = []byte(Table(about, results) + links.String())
	for name, content := range files {
		if err := os.WriteFile(filepath.Join(dir, name), content, 0o644); err != nil {
			return err
		}
	}
	return nil
}

// group is the paired figures of one workload.
type group struct {
	name    string
	results []gate.Result
}

func groups(results []gate.Result) []group {
	var all []group
	for _, r := range results {
		if !r.Figure.Paired() {
			continue
		}
		parts := strings.SplitN(r.Figure.Name, ".", 3)
		name := strings.Join(parts[:min(2, len(parts))], ".")
		if len(all) == 0 || all[len(all)-1].name != name {
			all = append(all, group{name: name})
		}
		last := &all[len(all)-1]
		last.results = append(last.results, r)
	}
	return all
}

// Table is Markdown: what has a budget first, then the rest.
func Table(about About, results []gate.Result) string {
	var b strings.Builder
	mode := "full"
	if about.Quick {
		mode = "quick"
	}
	fmt.Fprintf(&b, "%s run of %s, revision %s, seed %d, on Linux %s, %d × %s, %s\n\n",
		mode, about.Time.Format(time.RFC3339), about.Revision, about.Seed, about.Kernel, about.CPUs, about.CPU, about.Go)
	b.WriteString("| figure | measured | 95 % interval | budget | verdict |\n| --- | ---: | ---: | ---: | --- |\n")
	for _, r := range results {
		if r.Budget != nil {
			fmt.Fprintf(&b, "| %s | %s | %s | %s | %s |\n", r.Figure.Name, measured(&r), interval(&r), r.Budget.Limit(), r.Verdict)
		}
	}
	b.WriteString("\nWithout a budget:\n\n| figure | measured | 95 % interval |\n| --- | ---: | ---: |\n")
	for _, r := range results {
		if r.Budget == nil {
			fmt.Fprintf(&b, "| %s | %s | %s |\n", r.Figure.Name, measured(&r), interval(&r))
		}
	}
	return b.String()
}

func measured(r *gate.Result) string {
	if r.Figure.Paired() {
		return number(&r.Figure, r.Estimate.Point)
	}
	if r.Figure.Unit == "1" {
		return number(&r.Figure, r.Estimate.Point)
	}
	return number(&r.Figure, r.Estimate.Point) + " " + r.Figure.Unit
}

func interval(r *gate.Result) string {
	if r.Figure.Exact() {
		return "exact"
	}
	return number(&r.Figure, r.Estimate.Low) + " – " + number(&r.Figure, r.Estimate.High)
}

// number writes ratios to the tenth of a percent, everything else to three figures, and integers as they are.
func number(f *figure.Figure, v float64) string {
	if f.Paired() {
		return fmt.Sprintf("%.3f", v)
	}
	if v == float64(int64(v)) {
		return fmt.Sprint(int64(v))
	}
	return fmt.Sprintf("%.3g", v)
}
