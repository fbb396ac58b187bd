package edge

import "github.com/sidelight-mesh/sidelight/agent/enrich"

// ends lead to an edge without a look at its names, which are seven strings to hash for each record: whoever names the ends of connections hands out
// the same workload over and over.
type ends struct {
	local, peer *enrich.Workload
	service     *enrich.Service
	kind        uintptr // role and network type; of this width so that there is no padding, and the key is hashed in one go
}

func endsOf(r *enrich.Record) ends {
	kind := uintptr(r.Event.Role) << 1
	if r.Event.Peer.Addr().Is4() {
		kind++
	}
	var service *enrich.Service
	if r.Identity.Decision != nil {
		service = r.Identity.Decision.Service
	}
	return ends{r.Identity.Local, r.Identity.Peer, service, kind}
}

// mostEnds is how many an edge may have: workloads of one name are few. It bounds the table, and what it keeps of workloads.
const mostEnds = 4

// remember lets ends lead to an edge that is not an overflow edge, for as long as it is in the table.
func (t *Table) remember(e *entry, of ends) {
	if len(e.ends) == mostEnds {
		delete(t.ends, e.ends[0])
		e.ends = append(e.ends[:0], e.ends[1:]...)
	}
	e.ends = append(e.ends, of)
	t.ends[of] = e
}
