package meshreceiver

import (
	"context"
	"sync/atomic"

	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/plog"

	"github.com/sidelight-mesh/sidelight/collector/self"
)

// stepEvent is the event name of a step on the ladder of the overhead budget.
const stepEvent = "sidelight.budget.step"

// Steps counts log records of steps that a pipeline took; HandedOn does not.
var Steps atomic.Uint64

// runSteps hands on a log record for each step, until the receiver stops.
func (r *meshReceiver) runSteps() {
	for {
		select {
		case <-r.stopping:
			return
		case step := <-r.settings.Steps: // never, of none
			if r.nextLogs == nil {
				continue
			}
			logs := newStep(&r.settings, &step)
			if r.deliver("logs", func(ctx context.Context) error { return r.nextLogs.ConsumeLogs(ctx, logs) }) {
				Steps.Add(1)
			}
		}
	}
}

// newStep makes the log record.
func newStep(settings *Settings, s *self.BudgetStep) plog.Logs {
	logs := plog.NewLogs()
	resource := logs.ResourceLogs().AppendEmpty()
	resource.Resource().Attributes().PutStr("service.name", "sidelight")
	if settings.HostName != "" {
		resource.Resource().Attributes().PutStr("host.name", settings.HostName)
	}
	scope := resource.ScopeLogs().AppendEmpty()
	scope.Scope().SetName(scopeName)
	log := scope.LogRecords().AppendEmpty()
	log.SetTimestamp(pcommon.NewTimestampFromTime(s.At))
	log.SetObservedTimestamp(pcommon.NewTimestampFromTime(s.At))
	log.SetEventName(stepEvent)
	severity := plog.SeverityNumberInfo
	if s.Down {
		severity = plog.SeverityNumberWarn
	}
	log.SetSeverityNumber(severity)
	log.SetSeverityText(severity.String())
	to := log.Attributes()
	to.PutStr("sidelight.budget.from", s.From)
	to.PutStr("sidelight.budget.to", s.To)
	to.PutInt("sidelight.budget.rung", s.Rung)
	to.PutDouble("sidelight.sampling_probability", s.Probability)
	to.PutStr("sidelight.budget.cause", s.Cause)
	to.PutDouble("sidelight.budget.cpu_ratio", s.CPU)
	to.PutDouble("sidelight.budget.cpu_limit_ratio", s.CPULimit)
	to.PutInt("sidelight.budget.memory_bytes", s.Memory)
	to.PutInt("sidelight.budget.memory_limit_bytes", s.MemoryLimit)
	return logs
}
