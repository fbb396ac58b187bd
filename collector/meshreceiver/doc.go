// Package meshreceiver is an OpenTelemetry Collector receiver that gives the connections Sidelight saw as metrics, log records
// and spans. One instance of its configuration serves all three signals from one source.
package meshreceiver

//go:generate go run ./internal/gendoc -dir .
