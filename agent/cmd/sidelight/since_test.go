package main

import (
	"errors"
	"io"
	"net/http"
	"strconv"
	"strings"
	"testing"
	"time"
)

// created waits for a scrape that tells when the counters of a name began: one that finds no time to read the ring leaves some out.
func (a *agent) created(name string) (began time.Time) {
	a.t.Helper()
	eventually(a.t, "the beginning of "+name, func() error {
		if began = a.createdNow(name); began.IsZero() {
			return errors.New("it is not told")
		}
		return nil
	})
	return began
}

func (a *agent) createdNow(name string) time.Time {
	a.t.Helper()
	request, err := http.NewRequestWithContext(a.t.Context(), http.MethodGet, "http://"+a.Address+"/metrics", nil)
	if err != nil {
		a.t.Fatal(err)
	}
	request.Header.Set("Accept", "application/openmetrics-text;version=1.0.0")
	response, err := http.DefaultClient.Do(request)
	if err != nil {
		a.t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		a.t.Fatal(err)
	}
	for line := range strings.Lines(string(text)) {
		series, value, _ := strings.Cut(strings.TrimSpace(line), " ")
		if of, _, _ := strings.Cut(series, "{"); of != name+"_created" {
			continue
		}
		seconds, err := strconv.ParseFloat(value, 64)
		if err != nil {
			a.t.Fatalf("%s: %v", line, err)
		}
		return time.UnixMicro(int64(seconds * 1e6))
	}
	return time.Time{}
}

// TestSince has agents follow each other: what is counted where it outlives them began with the first, whichever tells it, and what is counted by the process
// with the process. Else each start would look like a reset of a sum that is still there.
func TestSince(t *testing.T) {
	needRoot(t)
	cgroup := newCgroup(t, "client", "server")
	l := newLasting(t, cgroup)
	lasting := []string{"sidelight_datapath_agents", "sidelight_datapath_unattended_seconds", "sidelight_self_kernel_connections", "sidelight_self_events_decoded"}
	before := time.Now()
	l.restart()
	first := l.created(lasting[0])
	if first.Before(before.Add(-time.Second)) || first.After(time.Now()) {
		t.Errorf("the data path began at %v, want from %v to now", first, before)
	}
	own := make(map[time.Time]bool)
	check := func(agents int) {
		t.Helper()
		for _, name := range lasting {
			if got := l.created(name); !got.Equal(first) {
				t.Errorf("%s of agent %d began at %v, want %v", name, agents, got, first)
			}
		}
		own[l.created("sidelight_self_access_log_lines")] = true
		if len(own) != agents {
			t.Errorf("what %d agents count themselves began at %v", agents, own)
		}
	}
	check(1)
	l.stop()
	l.restart()
	check(2)
	l.kill()
	l.restart()
	check(3)
	l.stop()
	l.startOf(otherLayoutProgram(t))
	check(4)
	l.stop()
	l.startOf(program, "--on-exit", "remove")
	check(5)
	l.stop()
}
