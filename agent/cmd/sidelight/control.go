package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"net/http"
	"os/user"
	"path/filepath"
	"strconv"
	"sync"
	"time"

	"github.com/spf13/cobra"

	"github.com/sidelight-mesh/sidelight/agent/cmd/sidelight/look"
	"github.com/sidelight-mesh/sidelight/agent/config"
	"github.com/sidelight-mesh/sidelight/agent/status"
	"github.com/sidelight-mesh/sidelight/bpf"
	"github.com/sidelight-mesh/sidelight/collector/filter"
	"github.com/sidelight-mesh/sidelight/collector/tail"
)

// controlSocket is the name of the agent's socket in its state directory.
const controlSocket = "control.sock"

// What can be asked of it.
const (
	handoverPath = "/handover"
	meshPath     = "/mesh"
	edgesPath    = "/edges"
	tailPath     = "/tail"
	statusPath   = "/status"
)

// listenControl makes the control socket. Where nobody depends on it, which is without a mesh, without pins and without a group that is to have it, an agent
// goes without it rather than not at all: another agent may have it, or nothing can be written there.
func (n *node) listenControl() error {
	group, err := controlGroup(n.config.ControlGroup)
	if err != nil {
		return err
	}
	n.control, err = status.ListenControl(filepath.Join(n.config.StateDirectory, controlSocket), group)
	if err != nil && n.mesh == nil && n.config.PinDirectory == config.Off && group == status.NoGroup {
		n.logger.Warn("nobody can ask this agent with top, tail and status", "error", err)
		return nil
	}
	return err
}

// controlGroup finds the group of control_group.
func controlGroup(name string) (int, error) {
	if name == "" {
		return status.NoGroup, nil
	}
	if id, err := strconv.ParseUint(name, 10, 31); err == nil {
		return int(id), nil
	}
	group, err := user.LookupGroup(name)
	if err != nil {
		return 0, fmt.Errorf("control_group: %w; make it with: groupadd --system %s", err, name)
	}
	return strconv.Atoi(group.Gid)
}

// controlHandler answers on the control socket. Who may connect may look; only root may have the agent do something, or see of the access log what is past,
// for the log has a mode of its own.
func (n *node) controlHandler() http.Handler {
	mux, answers := http.NewServeMux(), status.NewAnswers()
	mux.Handle("GET "+handoverPath, status.OwnerOnly(http.HandlerFunc(func(w http.ResponseWriter, _ *http.Request) {
		n.asked.Do(func() { close(n.handover) })
		fmt.Fprintln(w, "handing over")
	})))
	mux.Handle("GET "+edgesPath, answers.Bound(func(w http.ResponseWriter, r *http.Request) {
		snapshot := n.snapshotFor(r.Context())
		at, monotonic := time.Now(), bpf.Monotonic()
		answerJSON(w, &look.Edges{At: at, MonotonicNS: monotonic, Rung: n.budget.rung(), Edges: look.EdgesOf(&snapshot)}, nil)
	}))
	mux.Handle("GET "+statusPath, answers.Bound(func(w http.ResponseWriter, r *http.Request) {
		s, err := n.status(r.Context())
		answerJSON(w, s, err)
	}))
	mux.HandleFunc("GET "+tailPath, n.serveTail)
	why := answers.Bound(n.serveWhy)
	ofLog := status.OwnerOnly(why)
	mux.HandleFunc("GET "+whyPath, func(w http.ResponseWriter, r *http.Request) {
		if r.URL.Query().Has("connection") {
			ofLog.ServeHTTP(w, r)
			return
		}
		why.ServeHTTP(w, r)
	})
	if n.mesh != nil {
		mux.Handle("GET "+meshPath, answers.Bound(func(w http.ResponseWriter, _ *http.Request) {
			report, err := n.mesh.report()
			answerJSON(w, report, err)
		}))
	}
	return mux
}

func answerJSON(w http.ResponseWriter, answer any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusInternalServerError)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(answer) // who asked is gone
}

// Parameters of tailPath.
const (
	tailFilter = "filter"
	tailNames  = "names"
)

func (n *node) serveTail(w http.ResponseWriter, r *http.Request) {
	o := tail.Options{Names: r.FormValue(tailNames) != "", Guest: status.Guest(r.Context())}
	if text := r.FormValue(tailFilter); text != "" {
		var err error
		if o.Filter, err = filter.Compile(text, tail.Fields()); err != nil {
			http.Error(w, err.Error(), http.StatusBadRequest)
			return
		}
	}
	stream := &controlStream{w: w, controller: http.NewResponseController(w), within: tailPatience}
	started := false
	err := n.tail.Follow(r.Context(), stream, o, func() error {
		started = true
		w.Header().Set("Content-Type", "application/x-ndjson")
		w.WriteHeader(http.StatusOK)
		return stream.Flush() // nothing is missed from now on, and whoever waits for that hears of it
	})
	if err != nil && !started {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
	}
	stream.move() // for the end of the answer
}

// tailPatience is how long who follows the log may read nothing while there is something to read.
const tailPatience = 30 * time.Second

// controlStream is a tail.Stream.
type controlStream struct {
	w          io.Writer
	controller *http.ResponseController
	within     time.Duration

	mu      sync.Mutex
	aborted bool
}

// move gives a write its time. Where there can be no deadline, the end of the server cuts it.
func (s *controlStream) move() {
	s.mu.Lock()
	defer s.mu.Unlock()
	if !s.aborted {
		_ = s.controller.SetWriteDeadline(time.Now().Add(s.within))
	}
}

func (s *controlStream) Write(b []byte) (int, error) {
	s.move()
	return s.w.Write(b)
}

func (s *controlStream) Flush() error {
	s.move()
	return s.controller.Flush()
}

func (s *controlStream) Abort() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.aborted = true
	_ = s.controller.SetWriteDeadline(time.Now())
}

// asking is what commands have in common that ask an agent's control socket.
type asking struct {
	directory string
	json      bool
	colour    string
}

func (a *asking) flags(cmd *cobra.Command, jsonMeaning string) {
	cmd.Flags().StringVar(&a.directory, "state-directory", config.Default().StateDirectory, "`DIR` of the agent")
	cmd.Flags().BoolVar(&a.json, "json", false, jsonMeaning)
	cmd.Flags().StringVar(&a.colour, "color", look.ColourAuto, "`WHEN` to use colours: auto, always, never; auto is on a terminal, unless NO_COLOR is set")
	complete(cmd, "color", look.ColourAuto, look.ColourAlways, look.ColourNever)
	_ = cmd.MarkFlagDirname("state-directory") // it is there
}

// complete gives the shell the values of a flag.
func complete(cmd *cobra.Command, flag string, values ...string) {
	_ = cmd.RegisterFlagCompletionFunc(flag, cobra.FixedCompletions(values, cobra.ShellCompDirectiveNoFileComp)) // it is there
}

func (a *asking) socket() string { return filepath.Join(a.directory, controlSocket) }

// askTime bounds how long an agent may take for an answer.
const askTime = 30 * time.Second

// ask reads the answer to a question into a value.
func (a *asking) ask(ctx context.Context, what string, into any) error {
	ctx, cancel := context.WithTimeout(ctx, askTime)
	defer cancel()
	text, err := status.AskControl(ctx, a.socket(), what)
	if err != nil {
		return err
	}
	if err := json.Unmarshal(text, into); err != nil {
		return fmt.Errorf("read the agent's answer: %w", err)
	}
	return nil
}
