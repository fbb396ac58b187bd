// Package dashboards has Grafana dashboards and Prometheus rules for what Sidelight exports. The dashboards are generated in gen; the tests
// hold every query against the table of names, and against Prometheus' own engine over what a pipeline made of recorded events.
package dashboards

import "embed"

// Dashboards are Grafana's JSON, one file each.
//
//go:embed *.json
var Dashboards embed.FS

// Rules are rule files of Prometheus, in the directory rules.
//
//go:embed rules/*.yaml
var Rules embed.FS

// Runbook has a section for each alert, by its name.
//
//go:embed RUNBOOK.md
var Runbook string
