package userspace

import (
	"encoding/binary"
	"fmt"
	"math"
	"math/rand/v2"
	"net/netip"
	"strings"
	"time"
	"unsafe"

	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
	"github.com/sidelight-mesh/sidelight/bpf"
)

// Load says what connections a Stream is of.
type Load struct {
	// Connections is how many there are, each with both of its ends on this machine, but for those that fail, which have one.
	Connections int
	// Open is how many of them are open at a time.
	Open int
	// Edges is over how many edges they are spread, client's and server's counted apart; it is rounded up to twice a square.
	Edges int
	// FailEvery makes every so manieth connect a refused one; 0 for none.
	FailEvery int
}

// Typical is the load that budgets are held on: 20,000 connections a second of 10 workloads that all talk to each other.
var Typical = Load{Connections: 5_000, Open: 2_000, Edges: 200, FailEvery: 51}

// spacing is the time between two connects.
const spacing = 50 * time.Microsecond

// Stream is a sequence of records as the kernel writes them into its ring. It can go on for ever: what it leaves open is closed by the
// same stream after Advance.
type Stream struct {
	// Before are to be played once, before all else: they open what the first Records close.
	Before [][]byte
	// Records are what the ring gives, one by one.
	Records [][]byte
	// Ends is how many ends of connections there are in Records: each begins there, and one each ends there.
	Ends int

	connections uint64
}

// workloads is how many there must be for so many edges.
func (l Load) workloads() int { return int(math.Ceil(math.Sqrt(float64(max(l.Edges, 2)) / 2))) }

// NewStream makes the records of a load.
func NewStream(load Load) *Stream {
	s := &Stream{connections: uint64(load.Connections)}
	random := rand.New(rand.NewPCG(1, 2))
	n := load.workloads()
	pairs := random.Perm(n * n)
	var open []*life
	var places []int // of closes of what was open before
	for i := range load.Connections {
		pair := pairs[i%len(pairs)]
		c := newLife(i, pair/n, pair%n, random)
		if load.FailEvery > 0 && i%load.FailEvery == load.FailEvery-1 {
			s.Records = append(s.Records, c.event(bpf.Client, bpf.PreConnect), c.refused())
			s.Ends++
			continue
		}
		s.Records = append(s.Records, c.opens()...)
		s.Ends += 2
		open = append(open, c)
		if len(open) <= load.Open {
			places = append(places, len(s.Records))
			s.Records = append(s.Records, nil, nil)
			continue
		}
		// Lives differ in length: any of the older half may end.
		at := random.IntN(len(open)/2 + 1)
		s.Records = append(s.Records, open[at].closes(uint64(i))...)
		open[at] = open[0]
		open = open[1:]
	}
	for i, place := range places {
		c := *open[i]
		c.back(s)
		c.told = [len(c.told)]uint16{}
		s.Before = append(s.Before, c.opens()...)
		copy(s.Records[place:], c.closes(uint64(place*load.Connections/len(s.Records))))
	}
	return s
}

// opened calls back with the records of connections that open and stay so, so many ends of them, in pieces. They are none of a Stream.
func opened(load Load, ends int, play func(records [][]byte) error) error {
	random := rand.New(rand.NewPCG(3, 4))
	n := load.workloads()
	var piece [][]byte
	for i := range (ends + 1) / 2 {
		c := newLife(i, i/n%n, i%n, random)
		c.cookie += 1 << 60
		if piece = append(piece, c.opens()...); len(piece) < 10_000 && 2*i+2 < ends {
			continue
		}
		if err := play(piece); err != nil {
			return err
		}
		piece = piece[:0]
	}
	return nil
}

// span is the time that the records tell of.
func (s *Stream) span() uint64 { return s.connections * uint64(spacing) }

// Advance turns the records into those of as many other connections that come after them.
func (s *Stream) Advance() {
	le := binary.LittleEndian
	later := func(b []byte, by uint64) {
		if at := le.Uint64(b); at != 0 {
			le.PutUint64(b, at+by)
		}
	}
	var e bpf.CloseEvent
	for _, r := range s.Records {
		later(r[unsafe.Offsetof(e.Event.Cookie):], 2*s.connections)
		for _, offset := range []uintptr{
			unsafe.Offsetof(e.Event.StartNs), unsafe.Offsetof(e.Event.ConnectNs), unsafe.Offsetof(e.Event.EstablishedNs),
			unsafe.Offsetof(e.Event.EventNs),
		} {
			later(r[offset:], s.span())
		}
		if len(r) == bpf.CloseEventSize {
			later(r[unsafe.Offsetof(e.FirstSentNs):], s.span())
			later(r[unsafe.Offsetof(e.FirstReceivedNs):], s.span())
		}
	}
}

// life is one connection.
type life struct {
	cookie     uint64 // the client's; the server's comes after it
	start      uint64
	client     int // workload
	server     int
	from, to   netip.AddrPort
	isn        uint32
	sent       uint64
	rtt        uint32
	handshake  uint64
	firstBytes uint64
	told       [int(bpf.RoleCount)]uint16
}

// begin is the time of the first connect: long enough after the machine's start for what was open before.
const begin = uint64(time.Hour)

func newLife(i, client, server int, random *rand.Rand) *life {
	handshake := 20_000 + random.Uint64N(400_000)
	return &life{
		cookie: 1<<32 + 2*uint64(i), start: begin + uint64(i)*uint64(spacing),
		client: client, server: server,
		from:      netip.AddrPortFrom(address(client, random.IntN(4)), uint16(32768+i%28000)),
		to:        netip.AddrPortFrom(address(server, random.IntN(4)), uint16(8000+server%16)),
		isn:       random.Uint32(),
		sent:      100 + random.Uint64N(20_000),
		rtt:       uint32(handshake / 1000),
		handshake: handshake, firstBytes: 100_000 + random.Uint64N(20_000_000),
	}
}

// back makes it a connection of before a stream.
func (c *life) back(s *Stream) {
	c.cookie -= 2 * s.connections
	c.start -= s.span()
}

func (c *life) opens() [][]byte {
	return [][]byte{c.event(bpf.Client, bpf.PreConnect), c.event(bpf.Client, bpf.Established), c.event(bpf.Server, bpf.Established)}
}

func (c *life) closes(at uint64) [][]byte {
	return [][]byte{c.closed(bpf.Client, at), c.closed(bpf.Server, at)}
}

// event is one without totals.
func (c *life) event(role, kind uint8) []byte {
	e := c.base(role, kind)
	if role == bpf.Client {
		c.told[role] |= uint16(bpf.ToldAttempt)
	}
	if kind == bpf.Established {
		c.told[role] |= uint16(bpf.ToldEstablished)
	}
	return bytesOf(e)
}

func (c *life) base(role, kind uint8) bpf.Event {
	e := bpf.Event{Kind: kind, Role: role, ClientIsn: c.isn, Told: c.told[role]}
	if role == bpf.Client {
		e.Cookie, e.StartNs, e.ConnectNs = c.cookie, c.start, c.start+3_000
		setEnds(&e, c.from, c.to, c.client)
	} else {
		e.Cookie, e.StartNs = c.cookie+1, c.start+c.handshake/2
		setEnds(&e, c.to, c.from, c.server)
	}
	e.EventNs = e.ConnectNs
	if kind != bpf.PreConnect {
		e.EstablishedNs = c.start + c.handshake
		e.EventNs = e.EstablishedNs
	}
	return e
}

func (c *life) closed(role uint8, at uint64) []byte {
	e := bpf.CloseEvent{Event: c.base(role, bpf.Close), SrttUs: c.rtt, MinRttUs: c.rtt / 2, SentBytes: c.sent, ReceivedBytes: 3 * c.sent}
	e.Event.EventNs = max(begin+at*uint64(spacing), c.start) + c.firstBytes + 1_000_000
	e.FirstSentNs, e.FirstReceivedNs = e.Event.EstablishedNs+c.firstBytes/2, e.Event.EstablishedNs+c.firstBytes
	if role == bpf.Server {
		e.SentBytes, e.ReceivedBytes = e.ReceivedBytes, e.SentBytes
	}
	return bytesOf(e)
}

func (c *life) refused() []byte {
	e := bpf.CloseEvent{Event: c.base(bpf.Client, bpf.Close), MinRttUs: bpf.NoRTT, SkErr: 111}
	e.Event.Reason, e.Event.EstablishedNs = uint8(connection.Refused), 0
	e.Event.EventNs = c.start + c.handshake
	return bytesOf(e)
}

func setEnds(e *bpf.Event, local, peer netip.AddrPort, workload int) {
	e.LocalAddr, e.LocalPort = local.Addr().As16(), local.Port()
	e.PeerAddr, e.PeerPort = peer.Addr().As16(), peer.Port()
	owner := ownerOf(workload)
	e.CgroupId, e.Owner.Pid, e.Owner.StartBoottimeNs = cgroupID(workload), owner.PID, owner.StartBoottimeNS
	for i, b := range owner.Comm {
		e.Owner.Comm[i] = int8(b)
	}
}

func bytesOf[T bpf.Event | bpf.CloseEvent](value T) []byte {
	b := make([]byte, unsafe.Sizeof(value))
	copy(b, unsafe.Slice((*byte)(unsafe.Pointer(&value)), len(b)))
	return b
}

// address is one of a workload's.
func address(workload, replica int) netip.Addr {
	return netip.AddrFrom4([4]byte{10, byte(workload >> 8), byte(workload), byte(replica + 1)})
}

func cgroupID(workload int) uint64 { return uint64(1000 + workload) }

func ownerOf(workload int) connection.Owner {
	owner := connection.Owner{StartBoottimeNS: uint64(workload+1) * 10_000_000, PID: uint32(2000 + workload)}
	copy(owner.Comm[:], fmt.Sprintf("server-%d", workload))
	return owner
}

// NewFacts names the ends of the connections of so many edges: half of the workloads are containers, half are systemd units.
func NewFacts(load Load) *enrich.Facts {
	var groups []enrich.PeerGroup
	n := load.workloads()
	for w := range n {
		name := fmt.Sprintf("workload-%04d", w)
		groups = append(groups, enrich.PeerGroup{Name: name, CIDRs: []netip.Prefix{netip.PrefixFrom(address(w, 0), 24)}})
	}
	facts := enrich.NewFacts(enrich.NewPeers(groups))
	for w := range n {
		path := fmt.Sprintf("/system.slice/service-%04d.service", w)
		if w%2 == 1 {
			path = fmt.Sprintf("/system.slice/docker-%04x%s.scope", w, strings.Repeat("c0ffee", 10))
		}
		facts.AddCgroup(cgroupID(w), path)
		facts.AddProcess(ownerOf(w), fmt.Sprintf("server-%d", w))
	}
	return facts
}
