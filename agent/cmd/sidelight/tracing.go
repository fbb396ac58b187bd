package main

import (
	"context"

	"go.opentelemetry.io/otel/attribute"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/collector/meshreceiver"
)

// The spans of what the node does for long, beside those that the mesh receiver makes of its batches.
const (
	spanAttach = "sidelight.attach"
	spanSweep  = "sidelight.sweep"
	spanAudit  = "sidelight.audit"
	spanStep   = "sidelight.budget.step"
)

// tracedSweep is sweep with a span.
func (n *node) tracedSweep(all bool, observe func(*connection.Event)) error {
	_, span := n.tracing.Start(context.Background(), spanSweep)
	if span.IsRecording() {
		span.SetAttributes(attribute.Bool("sidelight.all", all))
	}
	err := n.sweep(all, observe)
	meshreceiver.End(span, err)
	return err
}
