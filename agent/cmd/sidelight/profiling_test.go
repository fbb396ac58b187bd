package main

import (
	"fmt"
	"io"
	"log/slog"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/config"
)

// pyroscopeServer takes profiles, as /ingest of a Pyroscope does.
type pyroscopeServer struct {
	*httptest.Server
	mu     sync.Mutex
	pushes []push
}

type push struct {
	path, name, user, tenant string
	profile                  bool
}

func newPyroscopeServer(t *testing.T) *pyroscopeServer {
	s := &pyroscopeServer{}
	s.Server = httptest.NewServer(http.HandlerFunc(func(_ http.ResponseWriter, r *http.Request) {
		body, _ := io.ReadAll(r.Body)
		user, _, _ := r.BasicAuth()
		s.mu.Lock()
		defer s.mu.Unlock()
		s.pushes = append(s.pushes, push{
			path: r.URL.Path, name: r.URL.Query().Get("name"), user: user, tenant: r.Header.Get("X-Scope-OrgID"),
			profile: strings.Contains(string(body), `name="profile"`) && len(body) > 200,
		})
	}))
	t.Cleanup(s.Close)
	return s
}

func (s *pyroscopeServer) taken() []push {
	s.mu.Lock()
	defer s.mu.Unlock()
	return slices.Clone(s.pushes)
}

// TestPushProfiles wants what was pushed to name the application, the host and the tags.
func TestPushProfiles(t *testing.T) {
	s := newPyroscopeServer(t)
	stop, err := pushProfiles(&config.Pyroscope{
		URL: s.URL, Application: "mesh", Tags: map[string]string{"zone": "a"}, Tenant: "red", User: "me", Password: "secret",
	}, "host1", 200*time.Millisecond, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	eventually(t, "a push", func() error {
		for _, p := range s.taken() {
			if p.path == "/ingest" && p.profile && p.user == "me" && p.tenant == "red" && strings.HasPrefix(p.name, "mesh{") &&
				strings.Contains(p.name, "hostname=host1") && strings.Contains(p.name, "zone=a") {
				return nil
			}
		}
		return fmt.Errorf("pushes: %+v", s.taken())
	})
	stop()
}

// TestPushProfilesToNobody ends in time, and says what is wrong.
func TestPushProfilesToNobody(t *testing.T) {
	listener := httptest.NewServer(nil)
	listener.Close()
	stop, err := pushProfiles(&config.Pyroscope{URL: listener.URL, Application: "mesh"}, "", time.Minute, slog.New(slog.DiscardHandler))
	if err != nil {
		t.Fatal(err)
	}
	before := time.Now()
	stop()
	if took := time.Since(before); took > pushTime+10*time.Second {
		t.Errorf("the end took %v", took)
	}
}

// TestStages runs an agent that pushes profiles, and wants every stage of it to be labelled.
func TestStages(t *testing.T) {
	needRoot(t)
	s := newPyroscopeServer(t)
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	grpc := freePort(t)
	startBackend(t, grpc, freePort(t))
	a := startAgent(t, cgroup, "--config", writeConfig(t,
		"profiling: {pyroscope: {url: "+s.URL+"}}", "budget: {cpu: 100%}"), "--otlp-endpoint", "http://"+grpc)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	runScript(t, ns, filepath.Join(cgroup, "client"), script{
		Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: 10,
	})
	response, err := http.Get("http://" + a.Address + "/debug/pprof/goroutine?debug=1")
	if err != nil {
		t.Fatal(err)
	}
	defer response.Body.Close()
	text, err := io.ReadAll(response.Body)
	if err != nil {
		t.Fatal(err)
	}
	for _, stage := range []string{"read", "access_log", "http", "budget", "collector", "logs", "traces", "metrics"} {
		if !strings.Contains(string(text), `labels: {"stage":"`+stage+`"}`) {
			t.Errorf("no goroutine has the stage %s", stage)
		}
	}
	a.stop() // which pushes what there is
	if pushes := s.taken(); len(pushes) == 0 || !strings.HasPrefix(pushes[0].name, "sidelight{") {
		t.Errorf("pushes: %+v", pushes)
	}
}
