package promview

import (
	"strings"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidelight-mesh/sidelight/collector/self"
)

// Self is a prometheus.Collector over the values that the agent tells of itself.
type Self struct {
	read  func() self.Reading
	descs map[*self.Metric]*prometheus.Desc
}

// NewSelf returns a collector that reads at each scrape.
func NewSelf(read func() self.Reading) *Self {
	s := &Self{read: read, descs: make(map[*self.Metric]*prometheus.Desc)}
	for _, m := range self.Metrics() {
		var labels []string
		for _, a := range m.Attributes {
			labels = append(labels, strings.ReplaceAll(a, ".", "_"))
		}
		s.descs[m] = prometheus.NewDesc(m.Prometheus, m.Description, labels, nil)
	}
	return s
}

// Describe implements prometheus.Collector.
func (s *Self) Describe(ch chan<- *prometheus.Desc) {
	for _, d := range s.descs {
		ch <- d
	}
}

// Collect implements prometheus.Collector.
func (s *Self) Collect(ch chan<- prometheus.Metric) {
	reading := s.read()
	for i := range reading.Values {
		v := &reading.Values[i]
		switch since := reading.Began(v); {
		case !v.Metric.Counter:
			ch <- prometheus.MustNewConstMetric(s.descs[v.Metric], prometheus.GaugeValue, v.Number, v.Attributes...)
		case since.IsZero():
			ch <- prometheus.MustNewConstMetric(s.descs[v.Metric], prometheus.CounterValue, v.Number, v.Attributes...)
		default:
			ch <- prometheus.MustNewConstMetricWithCreatedTimestamp(s.descs[v.Metric], prometheus.CounterValue, v.Number, since, v.Attributes...)
		}
	}
	if reading.Err != nil {
		ch <- prometheus.NewInvalidMetric(s.descs[self.Unaccounted], reading.Err)
	}
}
