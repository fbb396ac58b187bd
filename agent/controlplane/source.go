// Package controlplane is where the mesh comes from: a source reads and checks what people wrote, and hands whole snapshots on. What is wrong
// anywhere is refused as a whole, so that no half of a mesh is ever in force.
package controlplane

import (
	"context"
	"time"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// Source is where snapshots come from; File is the only one yet.
type Source interface {
	// Run hands the snapshot there is and each new one on, from one goroutine, until the context ends, and then returns nil. What apply refuses
	// counts as rejected, and the last good one stays in force. An error says that changes cannot be seen.
	Run(ctx context.Context, apply func(*model.Snapshot) error) error
	// Status is safe for concurrent use.
	Status() Status
}

// Status is what became of what a source read.
type Status struct {
	Accepted   uint64 // snapshots that are or were in force
	Rejected   uint64 // inputs that were faulty or unreadable, and snapshots that were not applied
	Generation uint64 // of the snapshot in force; 0: none was applied yet
	// LastError is why the newest input is not in force; empty while it is.
	LastError    string
	LastAccepted time.Time // zero: never
	LastRejected time.Time
}
