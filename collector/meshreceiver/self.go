package meshreceiver

import (
	"go.opentelemetry.io/collector/pdata/pcommon"
	"go.opentelemetry.io/collector/pdata/pmetric"

	"github.com/sidelight-mesh/sidelight/collector/self"
)

// appendSelf adds what the agent tells of itself.
func appendSelf(to pmetric.MetricSlice, reading self.Reading, now pcommon.Timestamp) {
	metrics := make(map[*self.Metric]pmetric.NumberDataPointSlice)
	for i := range reading.Values {
		v := &reading.Values[i]
		points, ok := metrics[v.Metric]
		if !ok {
			metric := to.AppendEmpty()
			metric.SetName(v.Metric.Name)
			metric.SetUnit(v.Metric.Unit)
			metric.SetDescription(v.Metric.Description)
			sum := metric.SetEmptySum()
			sum.SetIsMonotonic(v.Metric.Counter)
			sum.SetAggregationTemporality(pmetric.AggregationTemporalityCumulative)
			points = sum.DataPoints()
			metrics[v.Metric] = points
		}
		point := points.AppendEmpty()
		if since := reading.Began(v); !since.IsZero() { // else it stays 0, which is OTLP's "not known"
			point.SetStartTimestamp(pcommon.NewTimestampFromTime(since))
		}
		point.SetTimestamp(now)
		if v.Metric.Double {
			point.SetDoubleValue(v.Number)
		} else {
			point.SetIntValue(int64(v.Number))
		}
		for j, value := range v.Attributes {
			point.Attributes().PutStr(v.Metric.Attributes[j], value)
		}
	}
}
