package meshreceiver

import (
	"context"
	"sync/atomic"

	"go.opentelemetry.io/otel/attribute"
	"go.opentelemetry.io/otel/codes"
	"go.opentelemetry.io/otel/trace"
	"go.opentelemetry.io/otel/trace/noop"
)

// tracerName is the instrumentation scope of the spans of the agent itself.
const tracerName = "github.com/sidelight-mesh/sidelight/agent"

// Tracing makes spans of what the agent itself does for long, by the tracer provider of the collector that it embeds: nothing comes of them, and
// they cost next to nothing, unless service::telemetry::traces of the collector's configuration says where they go. A nil Tracing makes
// none. Safe for concurrent use.
type Tracing struct{ tracer atomic.Pointer[trace.Tracer] }

// use has further spans made by a provider: that of the collector whose configuration was read last.
func (t *Tracing) use(p trace.TracerProvider) {
	if t == nil || p == nil {
		return
	}
	tracer := p.Tracer(tracerName)
	t.tracer.Store(&tracer)
}

// Start begins a span. Who sets attributes asks IsRecording first.
func (t *Tracing) Start(ctx context.Context, name string) (context.Context, trace.Span) {
	if t == nil {
		return ctx, noop.Span{}
	}
	tracer := t.tracer.Load()
	if tracer == nil {
		return ctx, noop.Span{}
	}
	return (*tracer).Start(ctx, name)
}

// End ends a span, with its error if there was one.
func End(span trace.Span, err error) {
	if err != nil && span.IsRecording() {
		span.SetStatus(codes.Error, err.Error())
	}
	span.End()
}

// build is the span of making a batch for the pipelines.
func (t *Tracing) build(signal string, items int) trace.Span {
	_, span := t.Start(context.Background(), "sidelight.build")
	if span.IsRecording() {
		span.SetAttributes(attribute.String("sidelight.signal", signal), attribute.Int("sidelight.items", items))
	}
	return span
}
