// Package otelconfig holds the collector configurations that Sidelight ships.
package otelconfig

import _ "embed"

// Default is the configuration of the embedded collector.
//
//go:embed default.yaml
var Default []byte
