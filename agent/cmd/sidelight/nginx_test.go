package main

import (
	"bufio"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netns"

	"github.com/sidelight-mesh/sidelight/agent/lab"
)

const nginxConfig = `
daemon off;
user root;
worker_processes 2;
pid %[1]s/nginx.pid;
error_log stderr error;
events { worker_connections 1024; }
http {
	log_format bytes '$connection $request_length $bytes_sent';
	access_log %[1]s/bytes.log bytes;
	client_body_temp_path %[1]s/body; proxy_temp_path %[1]s/proxy; fastcgi_temp_path %[1]s/fastcgi; uwsgi_temp_path %[1]s/uwsgi; scgi_temp_path %[1]s/scgi;
	server {
		listen 127.0.0.1:8080;
		listen [::1]:8080;
		location / { return 200 "%[2]s"; }
	}
}
`

// TestNginx observes programs that know nothing of us. Their own account and the kernel's are the truth: nginx says the bytes of
// each request, /proc/net/snmp of the namespace counts connections.
func TestNginx(t *testing.T) {
	needRoot(t)
	for _, name := range []string{"nginx", "curl", "wrk"} {
		if _, err := exec.LookPath(name); err != nil {
			t.Fatalf("%v; run make setup", err)
		}
	}
	t.Run("curl", func(t *testing.T) {
		w := startNginx(t)
		const count = 200
		for i := range count {
			url := []string{"http://127.0.0.1:8080/", "http://[::1]:8080/"}[i%2]
			w.client("curl", "-sS", "-o", "/dev/null", url)
		}
		lines := w.finish()
		requested, responded := w.nginxBytes(count)
		w.wantLines(lines, count)
		for _, role := range []string{"client", "server"} {
			sent, received, executable := requested, responded, "curl"
			if role == "server" {
				sent, received, executable = responded, requested, "nginx"
			}
			var gotSent, gotReceived uint64
			for _, l := range lines {
				if l.Role != role {
					continue
				}
				gotSent += l.Sent
				gotReceived += l.Received
				if l.Executable != executable || l.Reason != "ok" || l.Cgroup != w.below+executable {
					t.Errorf("%+v", l)
				}
			}
			if gotSent != sent || gotReceived != received {
				t.Errorf("%s: sent %d and received %d bytes, nginx says %d and %d", role, gotSent, gotReceived, sent, received)
			}
		}
	})
	t.Run("wrk", func(t *testing.T) {
		w := startNginx(t)
		w.client("wrk", "-t2", "-c20", "-d2s", "-H", "Connection: close", "http://127.0.0.1:8080/")
		lines := w.finish()
		made := w.made("TcpActiveOpens")
		if made < 100 {
			t.Fatalf("wrk made %d connections only", made)
		}
		t.Logf("%d connections", made)
		w.wantLines(lines, made)
		if accepted := w.made("TcpPassiveOpens"); accepted != made {
			t.Errorf("the kernel accepted %d and opened %d", accepted, made)
		}
		// Each connection has its two ends, and what one sent the other received, but where one of them gave up.
		for id, pair := range pairs(lines) {
			c, s := pair["client"], pair["server"]
			if (c.UID == "" || s.UID == "") && w.lost == 0 {
				t.Fatalf("trace %s lacks an end: %+v", id, pair)
			}
			if c.Reason == "ok" && s.Reason == "ok" && (c.Sent != s.Received || c.Received != s.Sent) {
				t.Errorf("the ends disagree: %+v %+v", c, s)
			}
		}
	})
}

func pairs(lines []logLine) map[string]map[string]logLine {
	pairs := make(map[string]map[string]logLine)
	for _, l := range lines {
		if pairs[l.TraceID] == nil {
			pairs[l.TraceID] = make(map[string]logLine)
		}
		pairs[l.TraceID][l.Role] = l
	}
	return pairs
}

// web is nginx in a namespace, observed.
type web struct {
	t      *testing.T
	ns     netns.NsHandle
	cgroup string
	below  string // of the cgroup, as the access log has it
	dir    string
	nginx  *process
	agent  *agent
	lost   int               // lines, for want of room in the ring or in the log's queue, when it has finished
	before map[string]uint64 // the counters when the agent was attached and nobody had connected
}

func startNginx(t *testing.T) *web {
	t.Helper()
	w := &web{t: t, cgroup: newCgroup(t, "nginx", "curl", "wrk"), ns: newNamespace(t), dir: t.TempDir()}
	w.below = "0::/" + filepath.Base(w.cgroup) + "/"
	w.agent = startAgent(t, w.cgroup)
	w.before = mibs(t, w.ns)
	config := filepath.Join(w.dir, "nginx.conf")
	if err := os.WriteFile(config, fmt.Appendf(nil, nginxConfig, w.dir, strings.Repeat("x", 3000)), 0o600); err != nil {
		t.Fatal(err)
	}
	w.nginx = start(t, w.ns, filepath.Join(w.cgroup, "nginx"), exec.Command("nginx", "-c", config, "-p", w.dir))
	eventually(t, "nginx to listen", func() error {
		return lab.In(w.ns, func() error {
			table, err := os.ReadFile("/proc/thread-self/net/tcp6")
			// Port 8080 in state LISTEN, both workers' socket.
			if err == nil && !strings.Contains(string(table), ":1F90 00000000000000000000000000000000:0000 0A") {
				err = fmt.Errorf("not yet: %s", table)
			}
			return err
		})
	})
	return w
}

// client runs a program in the cgroup of its name.
func (w *web) client(name string, args ...string) {
	w.t.Helper()
	start(w.t, w.ns, filepath.Join(w.cgroup, name), exec.Command(name, args...)).end()
}

// finish stops nginx and the agent, and returns the access log.
func (w *web) finish() []logLine {
	w.t.Helper()
	if err := w.nginx.Process.Signal(syscall.SIGQUIT); err != nil { // nginx's own way to end in order
		w.t.Fatal(err)
	}
	w.nginx.end()
	w.agent.waitClosed()
	metrics := w.agent.metrics()
	w.lost = int(value(w.t, metrics, `sidelight_dropped_total{kind="close",stage="ring"}`) +
		value(w.t, metrics, `sidelight_dropped_total{kind="log",stage="access_log"}`))
	w.agent.stop()
	return w.agent.lines()
}

func (w *web) wantLines(lines []logLine, count int) {
	w.t.Helper()
	got := make(map[string]int)
	for _, l := range lines {
		got[l.Role]++
	}
	// On a machine with little to spare the ring can be full for a while: then lines are lost, and it is known how many.
	if got["client"] > count || got["server"] > count || len(lines)+w.lost != 2*count {
		w.t.Errorf("got %v lines and lost %d, want %d of each role", got, w.lost, count)
	}
	if opened := w.made("TcpActiveOpens"); opened != count {
		w.t.Errorf("the kernel opened %d connections, want %d", opened, count)
	}
}

// nginxBytes sums up nginx's own access log, which has to have count lines.
func (w *web) nginxBytes(count int) (requested, responded uint64) {
	w.t.Helper()
	f, err := os.Open(filepath.Join(w.dir, "bytes.log"))
	if err != nil {
		w.t.Fatal(err)
	}
	defer f.Close()
	lines := 0
	for scanner := bufio.NewScanner(f); scanner.Scan(); lines++ {
		var connection, request, response uint64
		if _, err := fmt.Sscan(scanner.Text(), &connection, &request, &response); err != nil {
			w.t.Fatal(err)
		}
		requested += request
		responded += response
	}
	if lines != count {
		w.t.Fatalf("nginx answered %d requests, want %d", lines, count)
	}
	return requested, responded
}

// made is how much a counter of the kernel has grown since the start.
func (w *web) made(name string) int {
	w.t.Helper()
	return int(mibs(w.t, w.ns)[name] - w.before[name])
}

func itoa(n int) string { return strconv.Itoa(n) }
