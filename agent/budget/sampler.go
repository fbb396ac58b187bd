package budget

import (
	"encoding/binary"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/connection"
)

// Sampler says which connections have a log line.
type Sampler struct {
	// Slow is how long a handshake or an answer takes that is worth a line in any case.
	Slow time.Duration
}

// Keep says of the end of a connection with which probability it is kept, and the zero Sampling if it is not. What failed, was slow or lost
// a SYN is kept always. Of the others 1 in 2^halvings is, by the trace id: so both ends are kept or neither is, by any two agents.
func (s Sampler) Keep(e *connection.Event, halvings uint8) connection.Sampling {
	if halvings == 0 || s.notable(e) {
		return connection.SampledAt(0)
	}
	if sampledIn(e.TraceID(), halvings) {
		return connection.SampledAt(halvings)
	}
	return 0
}

func (s Sampler) notable(e *connection.Event) bool {
	if e.Reason != connection.OK || e.Totals.SYNRetransmits > 0 {
		return true
	}
	slow := uint64(s.Slow)
	if e.Role == connection.Client && e.StartKnown() && e.ConnectNS != 0 && e.EstablishedNS != 0 && e.EstablishedNS-e.ConnectNS >= slow {
		return true
	}
	// Who asked first waits for the answer; of the other end the same two times are how long it took to give it.
	asked, answered := e.Totals.FirstSentNS, e.Totals.FirstReceivedNS
	if e.Role == connection.Server {
		asked, answered = answered, asked
	}
	return asked != 0 && answered > asked && answered-asked >= slow
}

// randomBits is how many bits of a trace id decide, from the right: those that W3C Trace Context level 2 calls random.
const randomBits = 56

// sampledIn is OpenTelemetry's consistent probability sampling: kept is what is not below the threshold of its probability.
func sampledIn(id connection.TraceID, halvings uint8) bool {
	random := binary.BigEndian.Uint64(id[8:]) & (1<<randomBits - 1)
	return random >= 1<<randomBits-1<<(randomBits-halvings)
}
