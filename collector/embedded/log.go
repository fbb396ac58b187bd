package embedded

import (
	"context"
	"log/slog"

	"go.uber.org/zap/zapcore"
)

// slogCore hands the collector's log entries to our own handler, so that the process has one log. The configuration's own core
// still decides which levels there are.
type slogCore struct {
	level   zapcore.LevelEnabler
	handler slog.Handler
	fields  []zapcore.Field
}

func (c *slogCore) Enabled(level zapcore.Level) bool {
	return c.level.Enabled(level) && c.handler.Enabled(context.Background(), slogLevel(level))
}

func (c *slogCore) With(fields []zapcore.Field) zapcore.Core {
	return &slogCore{level: c.level, handler: c.handler, fields: append(c.fields[:len(c.fields):len(c.fields)], fields...)}
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
	record := slog.NewRecord(entry.Time, slogLevel(entry.Level), entry.Message, 0)
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
