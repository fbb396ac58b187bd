package live

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"

	"go.yaml.in/yaml/v3"
)

// output is what a process writes, to be read while it runs.
type output struct {
	mu   sync.Mutex
	text bytes.Buffer
}

func (o *output) Write(p []byte) (int, error) {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.Write(p)
}

func (o *output) String() string {
	o.mu.Lock()
	defer o.mu.Unlock()
	return o.text.String()
}

// agent is a running sidelight program that observes one condition's workload. Used by one goroutine.
type agent struct {
	cmd     *exec.Cmd
	cgroup  string // its own, not the one that it observes
	address string
	log     *output
	ask     *http.Client
	lines   *logLines // of its access log, if it writes one
	backend string    // address of its OTLP receiver, if it has one
}

// startAgent starts a condition's agent and waits until it observes.
func startAgent(ctx context.Context, p *place, self, program string, c condition, port int, observed string, settings map[string]any) (*agent, error) {
	a := &agent{address: net.JoinHostPort("127.0.0.1", strconv.Itoa(port)), log: new(output), ask: httpClient(p)}
	// Of this agent alone: it must not find the queue or the log of one before it.
	directory, err := os.MkdirTemp(p.directory, c.name+"-")
	if err != nil {
		return nil, err
	}
	config := map[string]any{
		"cgroup": observed, "metrics_address": a.address, "state_directory": filepath.Join(directory, "state"), "log_level": "warn", "pin_directory": "off",
	}
	for key, value := range settings {
		config[key] = value
	}
	if c.accessLog {
		a.lines = &logLines{path: filepath.Join(directory, "access.log")}
		config["access_log"] = a.lines.path
	}
	if c.otlp {
		if a.backend, err = startReceiver(p, self, c.name); err != nil {
			return nil, err
		}
		config["otlp"] = map[string]any{"endpoint": "http://" + a.backend, "protocol": "http/protobuf"}
	}
	text, err := yaml.Marshal(config)
	if err != nil {
		return nil, err
	}
	file := filepath.Join(directory, "sidelight.yaml")
	if err := os.WriteFile(file, text, 0o600); err != nil {
		return nil, err
	}
	if a.cgroup, err = p.makeCgroup(c.name + "-agent"); err != nil {
		return nil, err
	}
	a.cmd = exec.Command(program, "run", "--config", file)
	a.cmd.Stdout, a.cmd.Stderr = a.log, a.log
	if err := p.start(a.cmd, a.cgroup); err != nil {
		return nil, err
	}
	err = poll(ctx, "agent of "+c.name+" gets ready", 20*time.Millisecond, func() (bool, error) {
		status, _, err := a.get(ctx, a.address, "/readyz")
		return err == nil && status == http.StatusOK, nil
	})
	if err != nil {
		// Killed first: its log is written to until it is gone.
		_ = a.cmd.Process.Kill()
		_ = a.cmd.Wait()
		return nil, fmt.Errorf("%w; it says:\n%s", err, a.log)
	}
	return a, nil
}

// startReceiver starts a receiver in a cgroup of its own and returns its address.
func startReceiver(p *place, self, name string) (string, error) {
	cgroup, err := p.makeCgroup(name + "-receiver")
	if err != nil {
		return "", err
	}
	return p.startAndRead(receiverCommand(self), cgroup)
}

// httpClient speaks in the run's network namespace.
func httpClient(p *place) *http.Client {
	dial := func(ctx context.Context, network, address string) (connection net.Conn, err error) {
		err = p.inside(func() error {
			connection, err = new(net.Dialer).DialContext(ctx, network, address)
			return err
		})
		return connection, err
	}
	return &http.Client{Timeout: patience, Transport: &http.Transport{DialContext: dial, DisableKeepAlives: true}}
}

func (a *agent) get(ctx context.Context, address, path string) (status int, text []byte, err error) {
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://"+address+path, nil)
	if err != nil {
		return 0, nil, err
	}
	response, err := a.ask.Do(request)
	if err != nil {
		return 0, nil, err
	}
	defer response.Body.Close()
	text, err = io.ReadAll(response.Body)
	return response.StatusCode, text, err
}

func (a *agent) stop() error         { return a.cmd.Process.Signal(syscall.SIGSTOP) }
func (a *agent) goOn() error         { return a.cmd.Process.Signal(syscall.SIGCONT) }
func (a *agent) rss() (int64, error) { return resident(a.cmd.Process.Pid) }

func (a *agent) received(ctx context.Context) (received, error) {
	var r received
	status, text, err := a.get(ctx, a.backend, "/received")
	if err != nil {
		return r, fmt.Errorf("ask the receiver: %w", err)
	}
	if status != http.StatusOK {
		return r, fmt.Errorf("ask the receiver: %s", text)
	}
	return r, json.Unmarshal(text, &r)
}

// arrived waits until everything of the ends of connections so far has come out of the agent, and returns the CPU time that the agent has used by then.
func (a *agent) arrived(ctx context.Context, ends int) (int64, error) {
	if a.lines != nil {
		err := poll(ctx, "access log", 10*time.Millisecond, func() (bool, error) {
			lines, err := a.lines.count()
			return lines >= ends, err
		})
		if err != nil {
			return 0, fmt.Errorf("%w: %d lines of %d", err, a.lines.lines, ends)
		}
	}
	if a.backend != "" {
		var last received
		err := poll(ctx, "OTLP receiver", 50*time.Millisecond, func() (ok bool, err error) {
			last, err = a.received(ctx)
			return last.Logs >= ends && last.Spans >= ends, err
		})
		if err != nil {
			return 0, fmt.Errorf("%w: %d log records and %d spans of %d", err, last.Logs, last.Spans, ends)
		}
	}
	// It has looked into the ring at least once after the last event.
	if err := pause(ctx, 2*drainInterval); err != nil {
		return 0, err
	}
	return still(ctx, a.cgroup)
}

// drainInterval is the agent's default.
const drainInterval = 50 * time.Millisecond

// verify holds what the agent, its log and its receiver say against the number of connections that were made. All of them must have ended.
func (a *agent) verify(ctx context.Context, connections int) error {
	var errs []error
	expect := func(what string, have, want int) {
		if have != want {
			errs = append(errs, fmt.Errorf("%s: %d, not %d", what, have, want))
		}
	}
	ends := 2 * connections
	if _, err := a.arrived(ctx, ends); err != nil {
		return err
	}
	if a.lines != nil {
		lines, err := a.lines.count()
		if err != nil {
			return err
		}
		expect("lines of the access log", lines, ends)
	}
	if a.backend != "" {
		r, err := a.received(ctx)
		if err != nil {
			return err
		}
		expect("log records received", r.Logs, ends)
		expect("spans received", r.Spans, ends)
	}
	status, text, err := a.get(ctx, a.address, "/metrics")
	if err != nil || status != http.StatusOK {
		return fmt.Errorf("ask the agent: status %d: %w", status, err)
	}
	const closed, unaccounted = "sidelight_tcp_connection_closed_total", "sidelight_accounting_unaccounted"
	for _, role := range []string{"client", "server"} {
		have, _ := sum(text, closed, `role="`+role+`"`)
		expect("connections closed at the "+role, have, connections)
	}
	if lost, found := sum(text, unaccounted, ""); !found {
		errs = append(errs, errors.New("no "+unaccounted))
	} else {
		expect("unaccounted", lost, 0)
	}
	dropped, _ := sum(text, "sidelight_dropped_total", "")
	expect("dropped", dropped, 0)
	if warnings := a.log.String(); warnings != "" {
		errs = append(errs, fmt.Errorf("the agent warns: %s", warnings))
	}
	return errors.Join(errs...)
}

// sum adds up the series of a metric, in Prometheus' text, that have a label.
func sum(text []byte, metric, label string) (total int, found bool) {
	for line := range bytes.Lines(text) {
		name, rest, _ := strings.Cut(strings.TrimSpace(string(line)), " ")
		base, labels, _ := strings.Cut(name, "{")
		if base != metric || !strings.Contains(labels, label) {
			continue
		}
		value, err := strconv.ParseFloat(rest, 64)
		if err != nil {
			continue // a label with a space: none of these metrics has one
		}
		total += int(value)
		found = true
	}
	return total, found
}
