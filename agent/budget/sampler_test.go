package budget

import (
	"math"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// pair is the ends of both sides of a connection that nothing is special about.
func pair(r *rand.Rand) (client, server connection.Event) {
	c := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 0, byte(r.Uint32()), byte(r.Uint32())}), uint16(r.Uint32()))
	s := netip.AddrPortFrom(netip.AddrFrom4([4]byte{10, 1, 0, byte(r.Uint32())}), 443)
	client = connection.Event{
		Kind: connection.Close, Role: connection.Client, Local: c, Peer: s, ClientISN: r.Uint32(), Key: connection.Key{StartNS: 1e9},
		ConnectNS: 1e9, EstablishedNS: 1e9 + 1e6, EventNS: 3e9, Totals: connection.Totals{FirstSentNS: 1e9 + 2e6, FirstReceivedNS: 1e9 + 5e6},
	}
	server = client
	server.Role, server.Local, server.Peer, server.ConnectNS = connection.Server, s, c, 0
	server.Totals.FirstSentNS, server.Totals.FirstReceivedNS = client.Totals.FirstReceivedNS, client.Totals.FirstSentNS
	return client, server
}

var sampler = Sampler{Slow: 500 * time.Millisecond}

// TestSamplerIsExact samples many connections: both ends agree on every one, and as many are kept as the probability says, to within
// five standard deviations. A lower probability keeps a part of what a higher one does.
func TestSamplerIsExact(t *testing.T) {
	const count = 300_000
	r := rand.New(rand.NewPCG(1, 2))
	kept := make([]int, 10)
	for range count {
		client, server := pair(r)
		before := true
		for halvings := range uint8(len(kept)) {
			c, s := sampler.Keep(&client, halvings), sampler.Keep(&server, halvings)
			if c != s {
				t.Fatalf("the client's sampling is %d, the server's %d", c, s)
			}
			if c == 0 {
				before = false
				if halvings == 0 {
					t.Fatal("not everything is kept at a probability of 1")
				}
				continue
			}
			if !before {
				t.Fatal("kept at a low probability and not at a high one")
			}
			if p, sampled := c.Probability(); !sampled || p != math.Ldexp(1, -int(halvings)) {
				t.Fatalf("it says that its probability was %v", p)
			}
			kept[halvings]++
		}
		if !before && kept[0] == 0 {
			t.Fatal("nothing")
		}
	}
	for halvings, n := range kept {
		p := math.Ldexp(1, -halvings)
		if off := math.Abs(float64(n) - count*p); off > 5*math.Sqrt(count*p*(1-p)) {
			t.Errorf("at %v %d of %d are kept", p, n, count)
		}
	}
}

// TestSamplerThreshold looks at the two ids on both sides of a threshold: OpenTelemetry's for a probability of 1/8 is e0000000000000.
func TestSamplerThreshold(t *testing.T) {
	for id, want := range map[[16]byte]bool{
		{9: 0xe0}: true,
		{9: 0xdf, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}: false,
		{0: 0xff, 8: 0xff}: false, // not among the bits that decide
		{9: 0xff, 10: 0xff, 11: 0xff, 12: 0xff, 13: 0xff, 14: 0xff, 15: 0xff}: true,
	} {
		if got := sampledIn(id, 3); got != want {
			t.Errorf("%x: %v, want %v", id, got, want)
		}
	}
}

func TestSamplerKeepsWhatIsNotable(t *testing.T) {
	const half = 500_000_000
	for _, c := range []struct {
		name   string
		change func(client, server *connection.Event)
		want   [2]bool // client and server
	}{
		{"nothing", func(_, _ *connection.Event) {}, [2]bool{}},
		{"failed", func(c, _ *connection.Event) { c.Reason, c.EstablishedNS = connection.Refused, 0 }, [2]bool{true, false}},
		{"reset", func(c, s *connection.Event) { c.Reason, s.Reason = connection.ResetByPeer, connection.ResetByLocal }, [2]bool{true, true}},
		{"SYN again", func(c, _ *connection.Event) { c.Totals.SYNRetransmits = 1 }, [2]bool{true, false}},
		{"data again", func(c, _ *connection.Event) { c.Totals.Retransmits = 9 }, [2]bool{}},
		{"slow handshake", func(c, _ *connection.Event) { c.EstablishedNS = c.ConnectNS + half }, [2]bool{true, false}},
		{"almost slow handshake", func(c, _ *connection.Event) { c.EstablishedNS = c.ConnectNS + half - 1 }, [2]bool{}},
		{
			"slow answer", func(c, s *connection.Event) {
				c.Totals.FirstReceivedNS = c.Totals.FirstSentNS + half
				s.Totals.FirstSentNS = s.Totals.FirstReceivedNS + half
			}, [2]bool{true, true},
		},
		{
			"no answer", func(c, s *connection.Event) { c.Totals.FirstReceivedNS, s.Totals.FirstSentNS = 0, 0 }, [2]bool{},
		},
		{
			"the server speaks first", func(c, s *connection.Event) {
				c.Totals.FirstSentNS = c.Totals.FirstReceivedNS + half
				s.Totals.FirstReceivedNS = s.Totals.FirstSentNS + half
			}, [2]bool{},
		},
		{"adopted", func(c, _ *connection.Event) { c.Flags = connection.Adopted; c.EstablishedNS = c.ConnectNS + half }, [2]bool{}},
	} {
		r := rand.New(rand.NewPCG(3, 4))
		for range 100 {
			client, server := pair(r)
			if id := client.Trace().ID; sampledIn(id, 6) {
				continue
			}
			c.change(&client, &server)
			for i, e := range []*connection.Event{&client, &server} {
				got := sampler.Keep(e, 6)
				if p, _ := got.Probability(); (got != 0) != c.want[i] || p != 1 {
					t.Fatalf("%s: the %v's sampling is %d (probability %v), want it kept: %v", c.name, e.Role, got, p, c.want[i])
				}
			}
		}
	}
}

// taker is a Sink.
type taker struct{ got []enrich.Record }

func (s *taker) Consume(batch []enrich.Record) {
	if len(batch) == 0 {
		panic("an empty batch")
	}
	s.got = append(s.got, batch...)
}

// TestGate hands batches through on every rung: what each sink got and what was left out make up what came, and the inverse
// probabilities add up to about it.
func TestGate(t *testing.T) {
	const batches, size = 200, 50
	for _, d := range append(Details(everything), Detail{LogSampling, 1}) {
		r := rand.New(rand.NewPCG(5, 6))
		var logs, other, spans taker
		g := NewGate(sampler, []Sink{&logs, &other}, []Sink{&spans})
		g.Set(d)
		failed := 0
		for range batches {
			batch := make([]enrich.Record, size)
			for i := range batch {
				batch[i].Event, _ = pair(r)
				if r.IntN(20) == 0 {
					batch[i].Event.Reason = connection.Refused
					failed++
				}
			}
			g.Consume(batch)
			for i := range batch {
				if batch[i].Sampling != 0 {
					t.Fatalf("%v: the batch was changed; it belongs to all sinks", d)
				}
			}
		}
		if len(logs.got)+int(g.LogsOut()) != batches*size || len(other.got) != len(logs.got) || len(spans.got)+int(g.SpansOut()) != batches*size {
			t.Errorf("%v: %d and %d records and %d left out, %d spans and %d left out", d, len(logs.got), len(other.got), g.LogsOut(), len(spans.got), g.SpansOut())
		}
		if (g.LogsOut() > 0) != (d.Rung >= LogSampling) || (g.SpansOut() == 0) != (d.Rung < SpansOff) || (len(spans.got) == 0) != (d.Rung >= SpansOff) {
			t.Errorf("%v: %d records and %d spans left out", d, g.LogsOut(), g.SpansOut())
		}
		sum := 0.0
		for i := range logs.got {
			p, sampled := logs.got[i].Sampling.Probability()
			if sampled != (d.Rung >= LogSampling) || logs.got[i].Event.Reason != connection.OK && p != 1 {
				t.Fatalf("%v: a record with the probability %v, %v", d, p, sampled)
			}
			if logs.got[i].Event.Reason != connection.OK {
				failed--
			}
			sum += 1 / p
		}
		if failed != 0 {
			t.Errorf("%v: %d failures are missing", d, failed)
		}
		p := math.Ldexp(1, -int(d.Halvings))
		if off := math.Abs(sum - batches*size); off > 5*math.Sqrt(batches*size*(1-p)/p) {
			t.Errorf("%v: the records stand for %v connections, there were %d", d, sum, batches*size)
		}
	}
}

// TestGateOfOne counts nothing for what is not there.
func TestGateOfOne(t *testing.T) {
	var spans taker
	g := NewGate(sampler, nil, []Sink{&spans})
	g.Set(Detail{CountersOnly, 6})
	g.Consume(make([]enrich.Record, 3))
	var logs taker
	h := NewGate(sampler, []Sink{&logs}, nil)
	h.Set(Detail{SpansOff, 0})
	h.Consume(make([]enrich.Record, 3))
	if g.LogsOut() != 0 || g.SpansOut() != 3 || h.LogsOut() != 0 || h.SpansOut() != 0 || len(logs.got) != 3 {
		t.Errorf("left out: %d and %d, %d and %d", g.LogsOut(), g.SpansOut(), h.LogsOut(), h.SpansOut())
	}
}

// BenchmarkGate is the cost of a record at the gate, with all let through and with 1 in 8.
func BenchmarkGate(b *testing.B) {
	r := rand.New(rand.NewPCG(7, 8))
	batch := make([]enrich.Record, 256)
	for i := range batch {
		batch[i].Event, _ = pair(r)
	}
	for _, d := range []Detail{{Full, 0}, {LogSampling, 3}} {
		b.Run(d.Rung.String(), func(b *testing.B) {
			g := NewGate(sampler, []Sink{discard{}}, []Sink{discard{}})
			g.Set(d)
			b.ReportAllocs()
			for n := 0; n < b.N; n += len(batch) {
				g.Consume(batch)
			}
		})
	}
}

type discard struct{}

func (discard) Consume([]enrich.Record) {}
