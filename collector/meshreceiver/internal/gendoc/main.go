// Command gendoc makes documentation.md of metadata.yaml.
package main

import (
	"bytes"
	_ "embed"
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"text/template"

	"github.com/sidelight-mesh/sidelight/collector/meshreceiver/metadata"
)

//go:embed documentation.md.tmpl
var page string

func main() {
	dir := flag.String("dir", "collector/meshreceiver", "directory of metadata.yaml, where documentation.md goes")
	flag.Parse()
	if err := run(*dir); err != nil {
		fmt.Fprintln(os.Stderr, "gendoc:", err)
		os.Exit(1)
	}
}

func run(dir string) error {
	table, err := metadata.Read(filepath.Join(dir, "metadata.yaml"))
	if err != nil {
		return err
	}
	text, err := render(table)
	if err != nil {
		return err
	}
	return os.WriteFile(filepath.Join(dir, "documentation.md"), text, 0o644)
}

// render is a function of the table alone: the same table gives the same bytes.
func render(table *metadata.Table) ([]byte, error) {
	t, err := template.New("documentation.md").Funcs(template.FuncMap{
		"code":   code,
		"codes":  codes,
		"floats": floats,
		"of":     metadata.Of,
		"labels": func(m metadata.Metric) []string { return table.Labels(&m) },
		"requirement": func(name string) string {
			return table.Requirements[name]
		},
		"requirements": func() []string {
			// In the order of their first use: a map has none.
			var names []string
			use := func(name string) {
				if !slices.Contains(names, name) {
					names = append(names, name)
				}
			}
			for _, a := range slices.Concat(table.ResourceAttributes, table.LogAttributes) {
				use(a.Requirement)
			}
			for _, a := range table.MetricAttributes {
				use(a.Requirement)
			}
			return names
		},
		"join": strings.Join,
	}).Parse(page)
	if err != nil {
		return nil, err
	}
	var out bytes.Buffer
	if err := t.Execute(&out, table); err != nil {
		return nil, err
	}
	return out.Bytes(), nil
}

func code(s string) string {
	if s == "" {
		return ""
	}
	return "`" + s + "`"
}

func codes(all []string) string {
	quoted := make([]string, 0, len(all))
	for _, s := range all {
		quoted = append(quoted, code(s))
	}
	return strings.Join(quoted, ", ")
}

func floats(all []float64) string {
	texts := make([]string, 0, len(all))
	for _, f := range all {
		texts = append(texts, strconv.FormatFloat(f, 'g', -1, 64))
	}
	return strings.Join(texts, ", ")
}
