// A real VictoriaLogs for the test of the log panels, in the versions that its authors chose. Nothing of Sidelight requires it.
module github.com/sidelight-mesh/sidelight/dashboards/backends/victorialogs

go 1.25.5

replace github.com/VictoriaMetrics/VictoriaMetrics => github.com/VictoriaMetrics/VictoriaMetrics v1.132.1-0.20251216144623-b6bc1860136e

require (
	github.com/VictoriaMetrics/VictoriaMetrics v1.132.0 // indirect
	github.com/VictoriaMetrics/easyproto v1.1.3 // indirect
	github.com/VictoriaMetrics/metrics v1.40.2 // indirect
	github.com/cespare/xxhash/v2 v2.3.0 // indirect
	github.com/golang/snappy v1.0.0 // indirect
	github.com/klauspost/compress v1.18.2 // indirect
	github.com/valyala/fastjson v1.6.7 // indirect
	github.com/valyala/fastrand v1.1.0 // indirect
	github.com/valyala/quicktemplate v1.8.0 // indirect
)

require (
	github.com/VictoriaMetrics/VictoriaLogs v1.43.1 // indirect
	github.com/VictoriaMetrics/metricsql v0.84.8 // indirect
	github.com/valyala/bytebufferpool v1.0.0 // indirect
	github.com/valyala/fasttemplate v1.2.2 // indirect
	github.com/valyala/gozstd v1.24.0 // indirect
	github.com/valyala/histogram v1.2.0 // indirect
	golang.org/x/oauth2 v0.34.0 // indirect
	golang.org/x/sys v0.39.0 // indirect
)

tool github.com/VictoriaMetrics/VictoriaLogs/app/victoria-logs
