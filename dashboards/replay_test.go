package dashboards

import (
	"context"
	"net/netip"
	"os"
	"path/filepath"
	"testing"
	"time"

	"github.com/prometheus/client_golang/prometheus"

	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/agent/event"
	"github.com/sidelight-mesh/sidelight/agent/pipeline"
	"github.com/sidelight-mesh/sidelight/agent/recording"
	"github.com/sidelight-mesh/sidelight/collector/edge"
	"github.com/sidelight-mesh/sidelight/collector/promview"
)

// world is somewhere that was scraped, for a time.
type world struct {
	*store
	cluster    string
	start, end time.Time
	timing
}

// replayScrape is how often a recording is scraped: it is of seconds, where a dashboard is of hours.
const replayScrape = 100 * time.Millisecond

// ticker is a sink that comes before the edges: it scrapes at all moments that have passed, so that a scrape has what came before it.
type ticker struct {
	now    func() time.Time
	next   time.Time
	scrape func(at time.Time)
}

func (k *ticker) Consume([]enrich.Record)       { k.pass(k.now()) }
func (k *ticker) ConsumeLosses(_ []enrich.Loss) { k.pass(k.now()) }

func (k *ticker) pass(now time.Time) {
	for ; k.next.Before(now); k.next = k.next.Add(replayScrape) {
		k.scrape(k.next)
	}
}

// replay runs one of the golden recordings through the pipeline of "sidelight replay", in the recording's time, and scrapes it meanwhile.
func replay(t *testing.T, s *store, name string) *world {
	t.Helper()
	in, err := os.Open(filepath.Join("..", "agent", "cmd", "sidelight", "testdata", "recordings", name+".rec"))
	if err != nil {
		t.Fatal(err)
	}
	defer in.Close()
	player, err := event.NewPlayer(in)
	if err != nil {
		t.Fatal(err)
	}
	table := edge.NewTable(1000)
	loopback := []netip.Prefix{netip.MustParsePrefix("127.0.0.0/8"), netip.MustParsePrefix("::1/128")}
	facts := enrich.NewFacts(enrich.NewPeers([]enrich.PeerGroup{{Name: "localhost", CIDRs: loopback}}))
	var played *recording.Replay
	tick := &ticker{now: func() time.Time { return played.Now() }}
	played = recording.NewReplay(player, facts, pipeline.Options{
		Limit: 1 << 20, Sinks: []pipeline.Sink{tick, table}, LossSinks: []pipeline.LossSink{tick, table},
	})
	table.Clock(func() time.Duration { return time.Duration(played.Now().UnixNano()) })
	registry := prometheus.NewPedanticRegistry()
	if err := registry.Register(promview.New(table.Snapshot, played.Clock)); err != nil {
		t.Fatal(err)
	}
	scraped := newTarget(registry, name+":9464", name)
	start := played.Now().Truncate(replayScrape)
	tick.next = start
	tick.scrape = func(at time.Time) { s.scrape(t, scraped, at) }
	if err := played.Run(context.Background()); err != nil {
		t.Fatal(err)
	}
	// It stays as it is for a second.
	end := played.Now().Truncate(replayScrape).Add(time.Second)
	tick.pass(end.Add(1))
	return &world{store: s, cluster: name, start: start, end: end, timing: timing{step: replayScrape, scrape: replayScrape, window: end.Sub(start)}}
}
