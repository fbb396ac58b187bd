package attribute

import (
	"github.com/sidelight-mesh/sidelight/agent/connection"
	"github.com/sidelight-mesh/sidelight/agent/enrich"
)

// decision gives what the mesh decided, but for the time that it took. names may be nil: then only what the kernel said is known.
func decision(d *connection.Decision, names *enrich.Decision, flags connection.Flags, to Sink) {
	if names == nil {
		names = new(enrich.Decision)
	}
	to.AddrPort("sidelight.original_destination", d.Original)
	if s := names.Service; s != nil {
		to.Qualified("sidelight.service", s.Namespace, s.Name)
	}
	if names.Endpoint != "" {
		to.String("sidelight.backend", names.Endpoint)
	}
	if d.Verdict != connection.VerdictNone {
		to.String("sidelight.verdict", d.Verdict.String())
		if r := names.Rule; r != nil {
			to.String("sidelight.policy", r.Policy)
			to.Int("sidelight.policy.rule", int64(r.Index))
		}
	}
	if d.Generation != 0 {
		to.Int("sidelight.config_generation", int64(d.Generation))
	}
	if d.DryVerdict != connection.VerdictNone {
		to.String("sidelight.dry_run.verdict", d.DryVerdict.String())
		if r := names.DryRule; r != nil {
			to.String("sidelight.dry_run.policy", r.Policy)
			to.Int("sidelight.dry_run.policy.rule", int64(r.Index))
		}
	}
	if names.Limit != "" {
		to.String("sidelight.limit", names.Limit)
	}
	if d.Limit != 0 {
		to.Int("sidelight.limit.value", int64(d.LimitValue))
	}
	if flags&connection.RefusedHere != 0 {
		to.Bool("sidelight.refused_by_mesh", true)
	}
}
