package connection

import (
	"encoding/hex"
	"net/netip"
	"testing"
)

// The ids were computed apart from this code, as SHA-256 of: client address, server address (16 bytes each), client port, server
// port (2 bytes each), client ISN (4 bytes), all big-endian. Agents of different versions on two hosts must agree on them.
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
			"1acaa18fe2af612c145db0ffae9ff7c1", "3fe5a0234f86d76e", "51ce41dc17ec7b25",
		},
		{
			"IPv4 mapped into IPv6 is the same", "[::ffff:10.1.2.3]:43210", "[::ffff:10.4.5.6]:8080", 0x89abcdef,
			"1acaa18fe2af612c145db0ffae9ff7c1", "3fe5a0234f86d76e", "51ce41dc17ec7b25",
		},
		{
			"another ISN is another connection", "10.1.2.3:43210", "10.4.5.6:8080", 0x89abcdf0,
			"04b44f85c98d17fa2d055da88468c675", "074efdac626923c2", "03958580283a12a9",
		},
		{
			"the other way round is another connection", "10.4.5.6:8080", "10.1.2.3:43210", 0x89abcdef,
			"c691ebccdf1f6928cbc42b96d3113764", "abb77aa5dd79ed9e", "01633592d8469efb",
		},
		{
			"IPv6", "[fd00::1]:43210", "[2001:db8::2]:443", 1,
			"6b5ae166385279785289716d24e4ee94", "e0ef4ed8836328b6", "269fc22c01ec00b7",
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
