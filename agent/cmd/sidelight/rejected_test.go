package main

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"

	"go.opentelemetry.io/collector/pdata/plog/plogotlp"
	"google.golang.org/grpc"

	"github.com/sidelight-mesh/sidelight/collector/embedded"
)

// picky is a backend that keeps all log records but one of each request, and knows neither spans nor metrics.
type picky struct {
	plogotlp.UnimplementedGRPCServer
	requests, records atomic.Int64
}

func (p *picky) Export(_ context.Context, request plogotlp.ExportRequest) (plogotlp.ExportResponse, error) {
	response := plogotlp.NewExportResponse()
	p.records.Add(int64(request.Logs().LogRecordCount()))
	p.requests.Add(1)
	response.PartialSuccess().SetRejectedLogRecords(1)
	response.PartialSuccess().SetErrorMessage("one too many")
	return response, nil
}

func startPicky(t *testing.T) (*picky, string) {
	t.Helper()
	listener, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p, server := new(picky), grpc.NewServer()
	plogotlp.RegisterGRPCServer(server, p)
	done := make(chan struct{})
	go func() {
		defer close(done)
		_ = server.Serve(listener) // until Stop
	}()
	t.Cleanup(func() { server.Stop(); <-done })
	return p, listener.Addr().String()
}

// TestRejected audits an agent whose backend rejects, over a reload of the collector: nothing is counted as sent that is not kept, and
// nothing twice.
func TestRejected(t *testing.T) {
	needRoot(t)
	const count = 200
	cgroup := newCgroup(t, "client", "server")
	ns := newNamespace(t)
	b, address := startPicky(t)
	a := startAgent(t, cgroup, "--config", writeConfig(t, "otlp: {protocol: grpc}"), "--otlp-endpoint", "http://"+address)
	_, port := startServer(t, ns, filepath.Join(cgroup, "server"))
	for round := range 2 {
		runScript(t, ns, filepath.Join(cgroup, "client"), script{
			Addr: netip.AddrPortFrom(netip.MustParseAddr("127.0.0.1"), port), Ending: clientCloses, Count: count, Parallel: 20,
		})
		ends := int64(2 * count * (round + 1))
		eventually(t, "everything to be sent", func() error {
			r := a.audit()
			logs, traces := r.Export["logs"], r.Export["traces"]
			wantLogs := embedded.Stats{Taken: ends, Sent: ends - b.requests.Load(), Rejected: b.requests.Load()}
			if logs != wantLogs || traces != (embedded.Stats{Taken: ends, Failed: ends}) {
				return fmt.Errorf("logs %+v, want %+v; traces %+v", logs, wantLogs, traces)
			}
			return nil
		})
		r := a.audit()
		if r.Unaccounted != 0 || r.AccessLog.Written != uint64(ends) || *r.Receiver["logs"] != (auditWay{Written: uint64(ends)}) || *r.Receiver["traces"] != (auditWay{Written: uint64(ends)}) {
			t.Errorf("unaccounted %d, access log %+v, logs %+v, traces %+v; want %d each", r.Unaccounted, r.AccessLog, r.Receiver["logs"], r.Receiver["traces"], ends)
		}
		if b.records.Load() != ends {
			t.Errorf("%d records came, want %d", b.records.Load(), ends)
		}
		metrics := a.metrics()
		for name, want := range map[string]uint64{
			`sidelight_dropped_total{kind="log",stage="exporter"}`:  uint64(b.requests.Load()),
			`sidelight_dropped_total{kind="span",stage="exporter"}`: uint64(ends),
			`sidelight_self_exported_total{signal="logs"}`:          uint64(ends - b.requests.Load()),
			`sidelight_accounting_unaccounted`:                      0,
		} {
			if got := value(t, metrics, name); got != want {
				t.Errorf("%s is %d, want %d", name, got, want)
			}
		}
		if round == 1 {
			break
		}
		if err := a.cmd.Process.Signal(syscall.SIGHUP); err != nil {
			t.Fatal(err)
		}
		eventually(t, "the collector to read its configuration again", func() error {
			if text, _ := os.ReadFile(a.log); !strings.Contains(string(text), "Config updated, restart service") {
				return fmt.Errorf("log so far: %s", text)
			}
			return nil
		})
	}
	rejected := b.requests.Load()
	out := runIn(t, ".", program, "audit", "--metrics-address", a.Address)
	for _, want := range []string{
		fmt.Sprintf("access log    %[1]d ended = %[1]d lines + 0 dropped + 0 waiting + 0 sampled out\n", 4*count),
		fmt.Sprintf("logs          %[1]d ended = %[1]d handed to the pipeline + 0 dropped + 0 waiting + 0 sampled out\n", 4*count),
		fmt.Sprintf("logs          %d taken = %d exported + 0 queued + %d rejected\n", 4*count, 4*count-rejected, rejected),
		fmt.Sprintf("traces        %[1]d taken = 0 exported + 0 queued + %[1]d rejected\n", 4*count),
	} {
		if !strings.Contains(out, want) {
			t.Errorf("audit lacks %q:\n%s", want, out)
		}
	}
	a.stop()
}
