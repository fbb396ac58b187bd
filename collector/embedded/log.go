package embedded

import (
	"context"
	"log/slog"
	"strings"

	"go.uber.org/zap/zapcore"
)

// slogCore hands the collector's log entries to our own handler, so that the process has one log. The configuration's own core
// still decides which levels there are.
type slogCore struct {
	level   zapcore.LevelEnabler
	handler slog.Handler
	fields  []zapcore.Field
	// persistent is Options.Persistent.
	persistent bool
}

func (c *slogCore) Enabled(level zapcore.Level) bool {
	return c.level.Enabled(level) && c.handler.Enabled(context.Background(), slogLevel(level))
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	with := *c
	with.fields = append(c.fields[:len(c.fields):len(c.fields)], fields...)
	return &with
}

func (c *slogCore) Check(entry zapcore.Entry, checked *zapcore.CheckedEntry) *zapcore.CheckedEntry {
	if c.Enabled(entry.Level) {
		return checked.AddCore(entry, c)
	}
	return checked
}

func (c *slogCore) Write(entry zapcore.Entry, fields []zapcore.Field) error {
	encoder := zapcore.NewMapObjectEncoder()
	for _, f := range c.fields {
		f.AddTo(encoder)
	}
	for _, f := range fields {
		f.AddTo(encoder)
	}
	level, message := slogLevel(entry.Level), entry.Message
	if reason, _ := encoder.Fields["error"].(string); c.persistent && strings.HasPrefix(reason, "interrupted due to shutdown") {
		// The library says that it drops the data, whatever the queue: queue_sender.go. A queue on disk keeps it.
		level, message = slog.LevelInfo, "Export interrupted by shutdown, the data stays in the queue"
	}
	record := slog.NewRecord(entry.Time, level, message, 0)
	record.AddAttrs(slog.String("component", "collector"))
	for key, value := range encoder.Fields {
		// The whole resource of the process, the same in every line.
		if key != "resource" {
			record.AddAttrs(slog.Any(key, value))
		}
	}
	return c.handler.Handle(context.Background(), record)
}

func (c *slogCore) Sync() error { return nil }

func slogLevel(level zapcore.Level) slog.Level {
	switch {
	case level <= zapcore.DebugLevel:
		return slog.LevelDebug
	case level == zapcore.InfoLevel:
		return slog.LevelInfo
	case level == zapcore.WarnLevel:
		return slog.LevelWarn
	}
	return slog.LevelError
}
