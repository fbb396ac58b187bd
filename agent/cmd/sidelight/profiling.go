package main

import (
	"context"
	"fmt"
	"log/slog"
	"maps"
	"runtime/pprof"
	"time"

	"github.com/grafana/pyroscope-go"

	"github.com/sidelight-mesh/sidelight/agent/config"
)

// stageLabel is what profiles tell the goroutines of the pipeline apart by. It is set once for each, and costs nothing for an event. The mesh
// receiver sets it for its own.
const stageLabel = "stage"

// staged returns f with its goroutine, and all that it starts, labelled.
func staged(stage string, f func()) func() {
	return func() {
		pprof.Do(context.Background(), pprof.Labels(stageLabel, stage), func(context.Context) { f() })
	}
}

// uploadInterval is how often profiles are pushed, each of the time since the one before.
const uploadInterval = 15 * time.Second

// pushTime is how long the last push may take at the end.
const pushTime = 2 * time.Second

// pushProfiles profiles this process all the time and pushes the profiles until stop is called. A server that is not there is tried again at
// the next interval; what it missed is lost.
func pushProfiles(c *config.Pyroscope, host string, interval time.Duration, logger *slog.Logger) (stop func(), err error) {
	tags := map[string]string{"version": version()}
	if host != "" {
		tags["hostname"] = host
	}
	maps.Copy(tags, c.Tags)
	profiler, err := pyroscope.Start(pyroscope.Config{
		ApplicationName: c.Application, ServerAddress: c.URL, Tags: tags, TenantID: c.Tenant,
		BasicAuthUser: c.User, BasicAuthPassword: c.Password,
		UploadRate: interval, Logger: pyroscopeLog{logger},
		// A collection for each heap profile would cost more than the profile.
		DisableGCRuns: true,
	})
	if err != nil {
		return nil, fmt.Errorf("push profiles: %w; see profiling.pyroscope", err)
	}
	logger.Info("pushing profiles", "to", c.URL, "application", c.Application)
	return func() {
		done := make(chan struct{})
		go func() {
			_ = profiler.Stop() // there is nothing that it could say
			close(done)
		}()
		select {
		case <-done:
		case <-time.After(pushTime): // the server does not answer
		}
	}, nil
}

// pyroscopeLog is the library's log. What it says of each push is for who looks for it.
type pyroscopeLog struct{ logger *slog.Logger }

func (l pyroscopeLog) Infof(format string, args ...any) {
	l.logger.Debug("pyroscope: " + fmt.Sprintf(format, args...))
}

func (l pyroscopeLog) Debugf(format string, args ...any) {
	l.logger.Debug("pyroscope: " + fmt.Sprintf(format, args...))
}

func (l pyroscopeLog) Errorf(format string, args ...any) {
	l.logger.Warn("pyroscope: " + fmt.Sprintf(format, args...))
}
