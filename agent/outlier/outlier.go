// Package outlier says which endpoints are out of service for now: because connects to them fail, or because they do not answer health checks.
// It knows neither the kernel nor where outcomes come from.
package outlier

import (
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Cause is why an endpoint is out of service.
type Cause uint8

// The causes. Of an endpoint that has two the last in this list is told: nobody knows when it ends.
const (
	None        Cause = iota // it is in service
	Outlier                  // connects to it failed
	HealthCheck              // it does not answer
)

// String returns "", "outlier" or "health_check".
func (c Cause) String() string {
	switch c {
	case Outlier:
		return "outlier"
	case HealthCheck:
		return "health_check"
	default:
		return ""
	}
}

// Change is what a Step does to an endpoint.
type Change uint8

// The changes.
const (
	Ejected Change = iota + 1 // out of service
	Back                      // in service again, as far as the cause goes
	Dropped                   // the same, by a change of the mesh: it left, is elsewhere now, or its service has other settings or fewer endpoints
)

// Step is one change for one cause.
type Step struct {
	Endpoint model.Name
	Service  model.Name
	Cause    Cause
	Change   Change
	Until    time.Time // of Ejected and Outlier: when it ends by itself
	Err      error     // of Ejected and HealthCheck: that of the last check
}

// Stats is what is known of an endpoint since it came into the mesh, or last moved to another address, port or service.
type Stats struct {
	Endpoint       model.Name
	Service        model.Name
	Ejections      uint64 // for connects that failed
	Suppressed     uint64 // ejections that were not made because too many endpoints of the service were out
	CheckEjections uint64 // for health checks that failed
	Failing        uint32 // connects that failed in a row, up to now
	FailingChecks  uint32 // the same of health checks
	Cause          Cause
	Until          time.Time // of Outlier: when it ends by itself; else zero
}
