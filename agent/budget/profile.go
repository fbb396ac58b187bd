package budget

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"runtime/pprof"
	"slices"
	"strings"
	"sync"
	"time"
)

// Profiles captures profiles of this process into a directory, which it keeps small. Methods are safe for concurrent use.
type Profiles struct {
	Dir  string
	Keep int           // files, the newest
	Last time.Duration // of a CPU profile
	Rest time.Duration // between two captures at least
	Now  func() time.Time

	mu   sync.Mutex
	last time.Time
}

// The bounds of an agent's own profiles.
const (
	keepProfiles = 8
	profileTime  = 5 * time.Second
	profileRest  = time.Hour
)

// NewProfiles returns those of an agent. The directory is made when it is needed.
func NewProfiles(dir string) *Profiles {
	return &Profiles{Dir: dir, Keep: keepProfiles, Last: profileTime, Rest: profileRest, Now: time.Now}
}

// prefix is that of the files that Capture makes, and removes.
const prefix = "breach-"

// Capture writes a CPU profile, and for want of memory a profile of the heap beside it, and removes the oldest files. It returns the files,
// or none when the last capture was a short time ago. It takes as long as a CPU profile does.
func (p *Profiles) Capture(ctx context.Context, cause Cause) ([]string, error) {
	p.mu.Lock()
	defer p.mu.Unlock()
	now := p.Now()
	if !p.last.IsZero() && now.Sub(p.last) < p.Rest {
		return nil, nil
	}
	p.last = now
	if err := os.MkdirAll(p.Dir, 0o700); err != nil {
		return nil, fmt.Errorf("make directory for profiles: %w", err)
	}
	var files []string
	if cause == Memory {
		var heap bytes.Buffer
		if err := pprof.Lookup("heap").WriteTo(&heap, 0); err != nil {
			return nil, fmt.Errorf("profile heap: %w", err)
		}
		file, err := p.write(now, "heap", heap.Bytes())
		if err != nil {
			return nil, err
		}
		files = append(files, file)
	}
	var cpu bytes.Buffer
	if err := pprof.StartCPUProfile(&cpu); err != nil {
		return files, fmt.Errorf("profile CPU: %w", err) // somebody else does
	}
	_ = Sleep(ctx, p.Last) // at the end of the agent a short profile is better than none
	pprof.StopCPUProfile()
	file, err := p.write(now, "cpu", cpu.Bytes())
	if err != nil {
		return files, err
	}
	return append(files, file), p.tidy()
}

// write makes a file that is there whole or not at all: it has the names of functions only, and is the owner's.
func (p *Profiles) write(at time.Time, kind string, profile []byte) (string, error) {
	name := filepath.Join(p.Dir, prefix+at.UTC().Format("20060102T150405.000Z")+"-"+kind+".pprof")
	if err := os.WriteFile(name+".tmp", profile, 0o600); err != nil {
		return "", fmt.Errorf("write profile: %w", err)
	}
	if err := os.Rename(name+".tmp", name); err != nil {
		return "", fmt.Errorf("write profile: %w", err)
	}
	return name, nil
}

// tidy removes the oldest of our files. Their names sort by time.
func (p *Profiles) tidy() error {
	entries, err := os.ReadDir(p.Dir)
	if err != nil {
		return fmt.Errorf("read directory of profiles: %w", err)
	}
	var ours []string
	for _, e := range entries {
		if strings.HasPrefix(e.Name(), prefix) {
			ours = append(ours, e.Name())
		}
	}
	slices.Sort(ours)
	var errs []error
	for len(ours) > p.Keep {
		errs = append(errs, os.Remove(filepath.Join(p.Dir, ours[0])))
		ours = ours[1:]
	}
	return errors.Join(errs...)
}
