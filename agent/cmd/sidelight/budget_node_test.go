package main

import (
	"bufio"
	"context"
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"os/exec"
	"os/signal"
	"syscall"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/budget"
	"github.com/sidelight-mesh/sidelight/agent/config"
)

// nodeRole makes this test binary an agent whose budget is kept at another pace, and which can be put on a place of the ladder: no user
// can do either.
const nodeRole = "node"

// nodeSettings are told on its command line.
type nodeSettings struct {
	Config   string // file
	Cgroup   string
	Access   string
	Endpoint string // of OTLP; empty for none
	Interval time.Duration
	Pace     budget.Pace
	Profile  time.Duration
	Rest     time.Duration // between two profiles
}

// budgetAgent is such an agent.
type budgetAgent struct {
	*agent
	in  io.WriteCloser
	out *bufio.Reader
}

func startNode(t *testing.T, s nodeSettings) *budgetAgent {
	t.Helper()
	b := &budgetAgent{agent: newAgent(t)}
	s.Access = b.Access
	text, err := json.Marshal(s)
	if err != nil {
		t.Fatal(err)
	}
	b.cmd = exec.Command(os.Args[0], string(text))
	b.cmd.Env = append(os.Environ(), peerRole+"="+nodeRole)
	if b.in, err = b.cmd.StdinPipe(); err != nil {
		t.Fatal(err)
	}
	out, err := b.cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	b.out = bufio.NewReader(out)
	b.start()
	return b
}

// force puts it on a place of the ladder.
func (b *budgetAgent) force(d budget.Detail) {
	b.t.Helper()
	if err := json.NewEncoder(b.in).Encode(d); err != nil {
		b.t.Fatal(err)
	}
	if line, err := b.out.ReadString('\n'); err != nil || line != "done\n" {
		b.t.Fatalf("%+v: %q, %v", d, line, err)
	}
}

// runNode is that agent.
func runNode() error {
	var s nodeSettings
	if err := json.Unmarshal([]byte(os.Args[1]), &s); err != nil {
		return err
	}
	c := config.Default()
	if err := config.Load(s.Config, &c); err != nil {
		return err
	}
	c.Cgroup, c.AccessLog, c.MetricsAddress, c.OTLP.Endpoint = s.Cgroup, s.Access, "127.0.0.1:0", s.Endpoint
	c.PinDirectory = config.Off
	if err := c.Validate(); err != nil {
		return err
	}
	limitMemory(&c)
	logger := newLogger(slog.LevelInfo)
	slog.SetDefault(logger)
	ctx, stop := signal.NotifyContext(context.Background(), syscall.SIGTERM)
	defer stop()
	n, err := newNode(ctx, c, nodeOptions{}, logger)
	if err != nil {
		return err
	}
	if s.Interval > 0 {
		n.budget.interval, n.budget.pace = s.Interval, s.Pace
		n.budget.profiles.Last, n.budget.profiles.Rest = s.Profile, s.Rest
	}
	go func() {
		for in := json.NewDecoder(os.Stdin); ; {
			var d budget.Detail
			if in.Decode(&d) != nil {
				return
			}
			if err := n.applyDetail(d); err != nil {
				fmt.Println(err)
				continue
			}
			fmt.Println("done")
		}
	}()
	return n.run(ctx, nil)
}
