// Package dashboards has Grafana dashboards and Prometheus rules for what Sidelight exports. The dashboards are generated in gen; the tests
// hold every query against the table of names and against a PromQL engine that has scraped a replayed recording.
package dashboards
