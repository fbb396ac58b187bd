package demo

// Decision is what access log records of clients say of the mesh. What they do not say is empty.
type Decision struct {
	Client   string // workload
	Service  string
	Endpoint string
	Reason   string
	Verdict  string
	Policy   string
	Rule     int64 // of Policy
	Limit    string
	Bound    int64 // of Limit
}

// Decisions counts records by what they say.
type Decisions map[Decision]int

func (d Decisions) add(l *Line) {
	a := l.Attributes
	text := func(name string) string { s, _ := a[name].(string); return s }
	number := func(name string) int64 { n, _ := a[name].(int64); return n }
	if text("sidelight.role") != "client" || text("sidelight.original_destination") == "" {
		return
	}
	d[Decision{
		Client: l.Workload, Service: text("sidelight.service"), Endpoint: text("sidelight.backend"), Reason: text("sidelight.reason"),
		Verdict: text("sidelight.verdict"), Policy: text("sidelight.policy"), Rule: number("sidelight.policy.rule"),
		Limit: text("sidelight.limit"), Bound: number("sidelight.limit.value"),
	}]++
}

// count sums up those that are wanted.
func (d Decisions) count(want func(*Decision) bool) int {
	n := 0
	for decision, of := range d {
		if want(&decision) {
			n += of
		}
	}
	return n
}

// refused says that the mesh let no SYN leave.
func (d *Decision) refused() bool {
	switch d.Reason {
	case "denied", "circuit_open", "rate_limited", "no_endpoint":
		return true
	}
	return false
}
