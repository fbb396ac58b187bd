package restart

import (
	"bytes"
	"context"
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
	"syscall"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

// sidelight is a mesh under load, whose agent comes and goes.
type sidelight struct {
	*place
	*driver
	program string
	config  string
	started int
	cmd     *exec.Cmd
	log     *bytes.Buffer // what the agent that runs says
	address string        // of its metrics
	http    *http.Client
}

// mesh is a service with two endpoints, and a policy for them. %s is the cgroup of the load.
const mesh = `apiVersion: sidelight.io/v1alpha1
kind: Workload
metadata: {name: client, namespace: bench}
spec: {identity: client, cgroup: %s}
---
apiVersion: sidelight.io/v1alpha1
kind: Service
metadata: {name: service, namespace: bench}
spec: {addresses: [127.100.0.1], ports: [{name: tcp, port: 80, targetPort: 8080}]}
---
apiVersion: sidelight.io/v1alpha1
kind: AuthorizationPolicy
metadata: {name: allow, namespace: bench}
spec: {selector: {matchLabels: {app: server}}, rules: [{from: [{source: {identities: [client]}}]}]}
`

const meshEndpoint = `---
apiVersion: sidelight.io/v1alpha1
kind: Workload
metadata: {name: server-%[1]d, namespace: bench, labels: {app: server}}
spec: {identity: server, addresses: [%[2]s]}
---
apiVersion: sidelight.io/v1alpha1
kind: Endpoint
metadata: {name: endpoint-%[1]d, namespace: bench}
spec: {service: service, workload: server-%[1]d}
`

func startSidelight(ctx context.Context, program string) (s *sidelight, err error) {
	s = &sidelight{program: program}
	if s.place, err = newPlace(); err != nil {
		return s, err
	}
	s.http = &http.Client{Timeout: deadline, Transport: &http.Transport{
		DisableKeepAlives: true,
		DialContext: func(ctx context.Context, network, address string) (c net.Conn, err error) {
			err = lab.In(s.ns, func() error {
				c, err = new(net.Dialer).DialContext(ctx, network, address)
				return err
			})
			return c, err
		},
	}}
	if s.driver, err = s.startLoad(); err != nil {
		return s, err
	}
	observed := filepath.Join(s.cgroup, "load")
	text := fmt.Sprintf(mesh, strings.TrimPrefix(observed, s.root.Mount))
	for i, address := range endpoints {
		text += fmt.Sprintf(meshEndpoint, i+1, address)
	}
	file, err := s.file("mesh.yaml", text)
	if err != nil {
		return s, err
	}
	s.config, err = s.file("sidelight.yaml", fmt.Sprintf("cgroup: %s\naccess_log: %s\npin_directory: %s\nstate_directory: %s\nlog_level: warn\nmesh: {path: %s}\n",
		observed, filepath.Join(s.directory, "access.log"), filepath.Join(s.bpffs(), "sidelight"), filepath.Join(s.directory, "state"), file))
	if err != nil {
		return s, err
	}
	return s, s.run(ctx)
}

// run starts an agent and waits until it is ready.
func (s *sidelight) run(ctx context.Context, more ...string) error {
	s.started++
	s.address = "127.0.0.1:" + strconv.Itoa(9100+s.started%2) // of the one before it may still listen
	s.cmd = exec.Command(s.program, append([]string{"run", "--config", s.config, "--metrics-address", s.address}, more...)...)
	s.log = new(bytes.Buffer)
	s.cmd.Stdout, s.cmd.Stderr = s.log, s.log
	if err := s.start("agent", s.cmd); err != nil {
		return err
	}
	if err := poll(ctx, "the agent to be ready", func() bool { return s.get("/readyz", nil) == nil }); err != nil {
		_ = s.cmd.Process.Kill()
		_ = s.cmd.Wait()
		return fmt.Errorf("%w; it says:\n%s", err, s.log)
	}
	return nil
}

func (s *sidelight) get(path string, into *[]byte) error {
	response, err := s.http.Get("http://" + s.address + path)
	if err != nil {
		return err
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err == nil && response.StatusCode != http.StatusOK {
		err = errors.New(response.Status)
	}
	if into != nil {
		*into = text
	}
	return err
}

// unattended is for how long there was no agent, as the agent tells it.
func (s *sidelight) unattended() (time.Duration, error) {
	const metric = "\nsidelight_datapath_unattended_seconds_total "
	var text []byte
	if err := s.get("/metrics", &text); err != nil {
		return 0, fmt.Errorf("ask the agent: %w", err)
	}
	_, value, _ := bytes.Cut(text, []byte(metric))
	value, _, _ = bytes.Cut(value, []byte("\n"))
	seconds, err := strconv.ParseFloat(string(value), 64)
	return time.Duration(seconds * float64(time.Second)), err
}

// ended waits for an agent that was told to end, or killed.
func ended(cmd *exec.Cmd, killed bool) error {
	err := cmd.Wait()
	if exit := new(exec.ExitError); killed && errors.As(err, &exit) {
		return nil
	}
	if err != nil {
		return fmt.Errorf("the agent before: %w", err)
	}
	return nil
}

func (s *sidelight) stop(ctx context.Context) error {
	if err := s.cmd.Process.Signal(syscall.SIGTERM); err != nil {
		return err
	}
	if err := ended(s.cmd, false); err != nil {
		return err
	}
	return s.run(ctx)
}

func (s *sidelight) kill(ctx context.Context) error {
	if err := s.cmd.Process.Kill(); err != nil {
		return err
	}
	if err := ended(s.cmd, true); err != nil {
		return err
	}
	return s.run(ctx)
}

func (s *sidelight) takeOver(ctx context.Context) error {
	before := s.cmd
	if err := s.run(ctx, "--takeover"); err != nil {
		return err
	}
	return ended(before, false)
}

// otherLayout is the program whose maps have another layout than the agent's, beside that one.
func (s *sidelight) otherLayout() string { return s.program + "-other-layout" }

// layout has a version take over whose maps have another layout, and then this one again.
func (s *sidelight) layout(ctx context.Context) error {
	own := s.program
	s.program = s.otherLayout()
	err := s.takeOver(ctx)
	s.program = own
	if err != nil {
		return err
	}
	return s.takeOver(ctx)
}

// unattendedHalf is for what leaves the data path alone twice.
func (s *sidelight) unattendedHalf() (time.Duration, error) {
	d, err := s.unattended()
	return d / 2, err
}

// verify holds the last agent's account.
func (s *sidelight) verify(ctx context.Context, connections, failed int) error {
	var text []byte
	if err := s.get("/metrics", &text); err != nil {
		return err
	}
	if !bytes.Contains(text, []byte("\nsidelight_accounting_unaccounted 0\n")) {
		return errors.New("the account does not close")
	}
	want := fmt.Sprintf("\nsidelight_self_kernel_connections_total{role=\"client\",step=\"attempted\"} %d\n", connections)
	if !bytes.Contains(text, []byte(want)) {
		return fmt.Errorf("the account does not say %s", strings.TrimSpace(want))
	}
	if failed > 0 {
		return nil // how many lines those have is another matter
	}
	count := 0
	err := poll(ctx, "all lines of the access log", func() bool {
		lines, err := os.ReadFile(filepath.Join(s.directory, "access.log"))
		count = bytes.Count(lines, []byte("\n"))
		return err == nil && count >= 2*connections
	})
	if err != nil || count > 2*connections {
		return fmt.Errorf("%d lines in the access log of %d connections: %w", count, connections, err)
	}
	return nil
}
