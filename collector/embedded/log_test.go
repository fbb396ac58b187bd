package embedded

import (
	"bytes"
	"encoding/json"
	"errors"
	"log/slog"
	"reflect"
	"testing"
	"time"

	"go.uber.org/zap"
	"go.uber.org/zap/zapcore"
)

// bridge logs through the collector's logger into lines of the process's own.
func bridge(from zapcore.Level, to slog.Level, persistent bool, log func(*zap.Logger)) []map[string]any {
	var out bytes.Buffer
	handler := slog.NewJSONHandler(&out, &slog.HandlerOptions{Level: to})
	log(zap.New(&slogCore{level: from, handler: handler, persistent: persistent}))
	var lines []map[string]any
	for line := range bytes.Lines(out.Bytes()) {
		var fields map[string]any
		if err := json.Unmarshal(line, &fields); err != nil {
			fields = map[string]any{"error": err.Error()}
		}
		lines = append(lines, fields)
	}
	return lines
}

func TestLogEntriesBecomeOurs(t *testing.T) {
	at := time.Date(2026, 1, 2, 3, 4, 5, 6, time.UTC)
	lines := bridge(zapcore.DebugLevel, slog.LevelDebug, false, func(l *zap.Logger) {
		l = l.WithOptions(zap.WithClock(constantClock(at)))
		component := l.With(zap.String("otelcol.component.id", "otlp_grpc/logs"), zap.Dict("resource", zap.String("service.name", "sidelight")))
		component.Warn("Exporting failed", zap.Error(errors.New("connection refused")), zap.Int("dropped_items", 3), zap.Duration("interval", time.Second))
		component.With(zap.Bool("again", true)).Info("Ready")
		component.Debug("Quiet") // what one With added is not in another's
	})
	const stamp = "2026-01-02T03:04:05.000000006Z"
	want := []map[string]any{
		{
			"time": stamp, "level": "WARN", "msg": "Exporting failed", "component": "collector", "otelcol.component.id": "otlp_grpc/logs",
			"error": "connection refused", "dropped_items": 3.0, "interval": 1e9,
		},
		{"time": stamp, "level": "INFO", "msg": "Ready", "component": "collector", "otelcol.component.id": "otlp_grpc/logs", "again": true},
		{"time": stamp, "level": "DEBUG", "msg": "Quiet", "component": "collector", "otelcol.component.id": "otlp_grpc/logs"},
	}
	if !reflect.DeepEqual(lines, want) {
		t.Errorf("lines\n%v\nwant\n%v", lines, want)
	}
}

type constantClock time.Time

func (c constantClock) Now() time.Time                         { return time.Time(c) }
func (c constantClock) NewTicker(d time.Duration) *time.Ticker { return time.NewTicker(d) }

func TestBothLevelsDecide(t *testing.T) {
	all := func(l *zap.Logger) {
		l.Debug("debug")
		l.Info("info")
		l.Warn("warn")
		l.Error("error")
		l.DPanic("dpanic")
	}
	for _, test := range []struct {
		from zapcore.Level
		to   slog.Level
		want []string
	}{
		{zapcore.DebugLevel, slog.LevelDebug, []string{"DEBUG", "INFO", "WARN", "ERROR", "ERROR"}},
		{zapcore.WarnLevel, slog.LevelDebug, []string{"WARN", "ERROR", "ERROR"}},
		{zapcore.DebugLevel, slog.LevelError, []string{"ERROR", "ERROR"}},
		{zapcore.FatalLevel, slog.LevelDebug, nil},
	} {
		var levels []string
		for _, line := range bridge(test.from, test.to, false, all) {
			levels = append(levels, line["level"].(string))
		}
		if !reflect.DeepEqual(levels, test.want) {
			t.Errorf("from %v to %v: %v, want %v", test.from, test.to, levels, test.want)
		}
	}
}

func TestInterruptedExportIsNoLossWithAQueueOnDisk(t *testing.T) {
	interrupted := func(l *zap.Logger) {
		l.Error("Exporting failed. Dropping data.", zap.Error(errors.New("interrupted due to shutdown: connection refused")))
	}
	for persistent, want := range map[bool][2]string{
		true:  {"INFO", "Export interrupted by shutdown, the data stays in the queue"},
		false: {"ERROR", "Exporting failed. Dropping data."},
	} {
		line := bridge(zapcore.DebugLevel, slog.LevelDebug, persistent, interrupted)[0]
		if got := [2]string{line["level"].(string), line["msg"].(string)}; got != want {
			t.Errorf("persistent %v: %v, want %v", persistent, got, want)
		}
	}
}
