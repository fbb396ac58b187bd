package connection

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// The ids were computed apart from this code. The trace id is MurmurHash3_x64_128, seed 0, of: client address, server address (16 bytes each), client port, server
// port (2 bytes each), client ISN (4 bytes), all big-endian, and its halves are; the spans' are the first two times 8 bytes of its SHA-256. Agents of
// different versions on two hosts must agree on them.
func TestTrace(t *testing.T) {
	tests := []struct {
		name           string
		client, server string
		isn            uint32
		wantID         string
		wantClient     string
		wantServer     string
	}{
		{
			"IPv4", "10.1.2.3:43210", "10.4.5.6:8080", 0x89abcdef,
			"5837135414417a583995d81bcd53c023", "d9c8bd17ed36d3cc", "acfb4c2360f795c7",
		},
		{
			"IPv4 mapped into IPv6 is the same", "[::ffff:10.1.2.3]:43210", "[::ffff:10.4.5.6]:8080", 0x89abcdef,
			"5837135414417a583995d81bcd53c023", "d9c8bd17ed36d3cc", "acfb4c2360f795c7",
		},
		{
			"another ISN is another connection", "10.1.2.3:43210", "10.4.5.6:8080", 0x89abcdf0,
			"83a63407493fa9e22c8dca18a9acdc78", "3786d0cc89b34bb7", "86502fdc0ed03b8b",
		},
		{
			"the other way round is another connection", "10.4.5.6:8080", "10.1.2.3:43210", 0x89abcdef,
			"ab52c0a53d7e10a4aff3e42568495088", "d1f9a651c156d246", "0c31734e8b47db9e",
		},
		{
			"IPv6", "[fd00::1]:43210", "[2001:db8::2]:443", 1,
			"370aac9d785e87668c1b71595df92047", "3b975d11fad4c2b4", "5bcbbd7d5af528ba",
		},
	}
	for _, test := range tests {
		t.Run(test.name, func(t *testing.T) {
			clientAddr, serverAddr := netip.MustParseAddrPort(test.client), netip.MustParseAddrPort(test.server)
			ends := []Event{
				{Kind: PreConnect, Role: Client, Local: clientAddr, Peer: serverAddr, ClientISN: test.isn},
				// What each end alone knows has no say.
				{
					Kind: Close, Role: Server, Local: serverAddr, Peer: clientAddr, ClientISN: test.isn,
					Key: Key{9, 9}, EventNS: 9, CgroupID: 9, Totals: Totals{SentBytes: 9},
				},
			}
			for _, e := range ends {
				if e.Client() != clientAddr || e.Server() != serverAddr {
					t.Errorf("the %s's event is of %v to %v", e.Role, e.Client(), e.Server())
				}
				trace := e.Trace()
				for _, id := range []struct {
					what string
					got  []byte
					want string
				}{
					{"trace id", trace.ID[:], test.wantID},
					{"client span", trace.ClientSpan[:], test.wantClient},
					{"server span", trace.ServerSpan[:], test.wantServer},
				} {
					if got := hex.EncodeToString(id.got); got != id.want {
						t.Errorf("%s of the %s's event is %s, want %s", id.what, e.Role, got, id.want)
					}
				}
			}
		})
	}
}

func TestTraceSpan(t *testing.T) {
	trace := Trace{ClientSpan: [8]byte{1}, ServerSpan: [8]byte{2}}
	for role, want := range map[Role][8]byte{Client: trace.ClientSpan, Server: trace.ServerSpan} {
		if got := trace.Span(role); got != want {
			t.Errorf("span of the %s is %x, want %x", role, got, want)
		}
	}
}

// What a client's SYN said is a server's name of the connection, whatever it sees of it.
func TestTraceTold(t *testing.T) {
	client, server := netip.MustParseAddrPort("10.1.2.3:43210"), netip.MustParseAddrPort("10.4.5.6:8080")
	sent := Event{Role: Client, Local: client, Peer: server, ClientISN: 7, Flags: TraceTold}
	unsent := sent
	unsent.Flags = 0
	if sent.Trace() != unsent.Trace() {
		t.Error("a client has another name by having told it")
	}
	found := Event{
		Role: Server, Local: netip.MustParseAddrPort("192.0.2.1:80"), Peer: netip.MustParseAddrPort("192.0.2.9:1024"),
		Flags: TraceTold, ToldTraceID: sent.TraceID(),
	}
	if a, b := found.Trace(), sent.Trace(); a.ID != b.ID || a.ClientSpan != b.ClientSpan {
		t.Errorf("the server's names are %x, the client's %x", a, b)
	}
	// Two that were told the same are two.
	other := found
	other.Key.Cookie++
	if other.Trace().ServerSpan == found.Trace().ServerSpan || other.Trace().ClientSpan != found.Trace().ClientSpan {
		t.Error("two connections that were told one id have one span")
	}
	found.Flags = 0
	if found.TraceID() == sent.TraceID() || found.TraceID() == (TraceID{}) {
		t.Errorf("without the flag the server's name is %x", found.TraceID())
	}
}
