package main

import (
	"bufio"
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"path"
	"path/filepath"
	"strconv"
	"strings"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/agent/datapath"
	"github.com/sidelight-mesh/sidelight/agent/maps"
	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// What the control socket explains, and the parameters of the question.
const (
	whyPath       = "/why"
	whyConnection = "connection"
	whyFrom       = "from"
	whyTo         = "to"
)

// questionError is a fault of who asks.
type questionError struct{ error }

func (n *node) serveWhy(w http.ResponseWriter, r *http.Request) {
	answer, err := n.why(r.Context(), r.URL.Query())
	if fault := (questionError{}); errors.As(err, &fault) {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	answerJSON(w, answer, err)
}

// noMesh is why nothing is decided.
const noMesh = "there is no mesh: connections go where they are sent to"

func (n *node) why(ctx context.Context, query url.Values) (*look.Why, error) {
	answer := new(look.Why)
	q := whyQuestion{from: query.Get(whyFrom), to: query.Get(whyTo)}
	if uid := query.Get(whyConnection); uid != "" {
		var err error
		if answer.Connection, err = findLine(ctx, n.config.AccessLog, uid); err != nil {
			return nil, err
		}
		if err := q.past(answer.Connection); err != nil {
			answer.NotNow = err.Error()
			return answer, nil
		}
	}
	if n.mesh == nil {
		if answer.Connection == nil {
			return nil, questionError{errors.New(noMesh)}
		}
		answer.NotNow = noMesh
		return answer, nil
	}
	now, err := n.mesh.explain(n.cgroup, &q)
	if fault := (questionError{}); answer.Connection != nil && errors.As(err, &fault) { // who it was is gone
		answer.NotNow, err = "what would become of it now is not known: "+err.Error(), nil
	}
	answer.Now = now
	return answer, err
}

// mostSearched is how much of the end of an access log is searched for a line.
const mostSearched = 256 << 20

// findLine looks for the line of a connection in the access log.
func findLine(ctx context.Context, file, uid string) (json.RawMessage, error) {
	if info, err := os.Stat(file); err != nil || !info.Mode().IsRegular() {
		return nil, questionError{fmt.Errorf("access_log is %q, which is no file that can be searched; ask with --from and --to", file)}
	}
	f, err := os.Open(file)
	if err != nil {
		return nil, fmt.Errorf("search the access log: %w", err)
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, fmt.Errorf("search the access log: %w", err)
	}
	if _, err := f.Seek(max(0, info.Size()-mostSearched), io.SeekStart); err != nil {
		return nil, fmt.Errorf("search the access log: %w", err)
	}
	wanted := []byte(`"log.record.uid":"` + uid + `"`)
	lines := bufio.NewReaderSize(f, 256<<10)
	for {
		line, err := lines.ReadSlice('\n')
		if bytes.Contains(line, wanted) && json.Valid(line) {
			return bytes.Clone(bytes.TrimSpace(line)), nil
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil, questionError{fmt.Errorf("no line of %s has the log.record.uid %q; it may have been rotated away", file, uid)}
		case err != nil && !errors.Is(err, bufio.ErrBufferFull): // no line is as long as that
			return nil, fmt.Errorf("search the access log: %w", err)
		case ctx.Err() != nil:
			return nil, ctx.Err()
		}
	}
}

// whyQuestion is what is asked, as it is written.
type whyQuestion struct {
	from, to string
	address  netip.Addr // of the client, beside who it is; the zero value: not known
}

// past asks for a connection as there was one.
func (q *whyQuestion) past(line json.RawMessage) error {
	var past struct {
		Role        string     `json:"sidelight.role"`
		Cgroup      string     `json:"process.linux.cgroup"`
		Client      netip.Addr `json:"client.address"`
		Server      netip.Addr `json:"server.address"`
		ServerPort  uint16     `json:"server.port"`
		Destination string     `json:"sidelight.original_destination"`
	}
	if err := json.Unmarshal(line, &past); err != nil {
		return fmt.Errorf("read the line: %w", err)
	}
	q.to = netip.AddrPortFrom(past.Server, past.ServerPort).String()
	if past.Role != "client" {
		// Its server cannot tell: a client on this node is known by its cgroup.
		q.from = past.Client.String()
		if past.Client.IsLoopback() {
			return errors.New("this is the server's line, and the client was on this node: ask with the client's line, which says who it was")
		}
		return nil
	}
	q.from, q.address = strings.TrimPrefix(past.Cgroup, "0::"), past.Client // as /proc/PID/cgroup has it
	if past.Destination != "" {
		q.to = past.Destination
	}
	return nil
}

// mostDialled bounds how many addresses of a service are asked for at a time.
const mostDialled = 16

// explain asks for everything that a question can mean.
func (m *meshSide) explain(root datapath.Cgroup, asked *whyQuestion) ([]*maps.Explanation, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	if m.reconciler == nil || m.kernel == nil {
		return nil, errors.New("the agent stops")
	}
	q := maps.Question{NowNS: bpf.Monotonic(), Node: m.snapshot.Node, Out: make(map[model.Name]string)}
	for name, cause := range m.outliers.Out() {
		q.Out[name] = cause.String()
	}
	if asked.address.IsValid() {
		q.Addresses = []netip.Addr{asked.address.Unmap()}
	}
	if err := m.askFrom(&q, root, asked.from); err != nil {
		return nil, questionError{fmt.Errorf("--from %s: %w", asked.from, err)}
	}
	dialled, err := m.askTo(asked.to)
	if err != nil {
		return nil, questionError{fmt.Errorf("--to %s: %w", asked.to, err)}
	}
	var all []*maps.Explanation
	for _, q.Dialled = range dialled {
		e, err := m.reconciler.Explain(&q)
		if err != nil {
			return nil, err
		}
		all = append(all, e)
	}
	return all, nil
}

// askFrom finds out who connects.
func (m *meshSide) askFrom(q *maps.Question, root datapath.Cgroup, from string) error {
	switch {
	case from == "":
		return nil
	case strings.HasPrefix(from, "pid:"):
		pid, err := strconv.ParseUint(strings.TrimPrefix(from, "pid:"), 10, 32)
		if err != nil {
			return errors.New("a process is pid:NUMBER")
		}
		cgroup, err := cgroupOfProcess(pid)
		if err != nil {
			return err
		}
		q.Netns = datapath.NetnsOf(pid)
		m.addressesOf(q, root, cgroup)
		return askCgroup(q, root, cgroup)
	case strings.HasPrefix(from, "/"):
		m.addressesOf(q, root, path.Clean(from))
		return askCgroup(q, root, path.Clean(from))
	}
	if address, err := netip.ParseAddr(from); err == nil {
		q.Addresses = []netip.Addr{address.Unmap()}
		return nil
	}
	for i := range m.snapshot.Workloads {
		w := &m.snapshot.Workloads[i]
		if w.Name.String() != from {
			continue
		}
		q.Addresses = append(q.Addresses, w.Addresses...)
		if w.Cgroup == "" || len(w.Addresses) > 0 && !exists(root, w.Cgroup) { // one whose cgroup is not there does not run here now
			return nil
		}
		return askCgroup(q, root, w.Cgroup)
	}
	return errors.New("there is no such workload; use NAMESPACE/NAME, /CGROUP, pid:N or an address")
}

func exists(root datapath.Cgroup, cgroup string) bool {
	_, _, err := root.Resolve(cgroup)
	return err == nil
}

// addressesOf adds those of the workload that a cgroup belongs to, unless it is known where the client connects from.
func (m *meshSide) addressesOf(q *maps.Question, root datapath.Cgroup, cgroup string) {
	if len(q.Addresses) > 0 {
		return
	}
	best := ""
	for i := range m.snapshot.Workloads {
		w := &m.snapshot.Workloads[i]
		below := cgroup == w.Cgroup || strings.HasPrefix(cgroup, w.Cgroup+"/")
		if w.Cgroup != "" && below && len(w.Cgroup) > len(best) && exists(root, w.Cgroup) {
			best, q.Addresses = w.Cgroup, w.Addresses
		}
	}
}

// askCgroup adds a cgroup with those above it, and the network namespace of a process that is in it.
func askCgroup(q *maps.Question, root datapath.Cgroup, cgroup string) error {
	for at := cgroup; ; at = path.Dir(at) {
		id, _, err := root.Resolve(at)
		switch {
		case err == nil:
			q.Cgroups = append(q.Cgroups, id)
		case at == cgroup:
			return err
		}
		if at == "/" || at == "." {
			break
		}
	}
	if q.Netns == 0 {
		text, _ := os.ReadFile(filepath.Join(root.Mount, cgroup, "cgroup.procs")) // without one it is not known
		if first, _, found := strings.Cut(string(text), "\n"); found {
			if pid, err := strconv.ParseUint(first, 10, 32); err == nil {
				q.Netns = datapath.NetnsOf(pid)
			}
		}
	}
	return nil
}

// cgroupOfProcess reads /proc/PID/cgroup.
func cgroupOfProcess(pid uint64) (string, error) {
	text, err := os.ReadFile(fmt.Sprintf("/proc/%d/cgroup", pid))
	if err != nil {
		return "", err
	}
	for line := range strings.Lines(string(text)) {
		if at, ok := strings.CutPrefix(strings.TrimSpace(line), "0::"); ok {
			return path.Clean("/" + at), nil // one in a cgroup namespace of its own can see paths that begin with ..
		}
	}
	return "", errors.New("it is in no cgroup v2")
}

// askTo finds out what is dialled: of a service all of its addresses, at one port or at all.
func (m *meshSide) askTo(to string) ([]netip.AddrPort, error) {
	if address, err := netip.ParseAddrPort(to); err == nil {
		return []netip.AddrPort{netip.AddrPortFrom(address.Addr().Unmap(), address.Port())}, nil
	}
	name, port, hasPort := strings.Cut(to, ":")
	for i := range m.snapshot.Services {
		s := &m.snapshot.Services[i]
		if s.Name.String() != name {
			continue
		}
		var dialled []netip.AddrPort
		for _, p := range s.Ports {
			if hasPort && port != strconv.Itoa(int(p.Port)) && port != p.Name {
				continue
			}
			for _, a := range s.Addresses {
				dialled = append(dialled, netip.AddrPortFrom(a, p.Port))
			}
		}
		switch {
		case len(dialled) == 0:
			return nil, errors.New("the service has no such port, or no address")
		case len(dialled) > mostDialled:
			return nil, fmt.Errorf("the service has %d addresses and ports; name one, ADDRESS:PORT", len(dialled))
		}
		return dialled, nil
	}
	return nil, errors.New("it is neither ADDRESS:PORT nor a service, NAMESPACE/NAME or NAMESPACE/NAME:PORT")
}
