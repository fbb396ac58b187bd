package controlplane

import (
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"log/slog"
	"path/filepath"
	"slices"
	"sync"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sidelight-mesh/sidelight/agent/model"
)

// File is a mesh in a file or in the files of a directory. It follows what editors and Kubernetes do to them.
type File struct {
	// Debounce is how long nothing must change before what changed is read; but after ten times as long it is read anyway. Set before Run.
	Debounce time.Duration
	// Recheck is how often the files are read without a sign of change, because not all changes give one: behind a symbolic link, on a network
	// file system, of a directory that was made anew. Set before Run.
	Recheck time.Duration

	path   string
	node   model.Locality
	logger *slog.Logger

	reloads chan chan error

	// Of Run.
	only    string // the base name of what changes matter of; empty: of all
	inForce digest // zero: nothing is yet
	seen    digest // what the newest reading was, or its error
	failure error  // why that is not in force
	refused bool   // by apply, which may be none of the files' fault: it is to be tried again

	mu       sync.Mutex
	snapshot *model.Snapshot
	status   Status
}

// NewFile reads and checks the file or directory; the error is as of Parse. The node is what snapshots are given as theirs.
func NewFile(path string, node model.Locality, logger *slog.Logger) (*File, error) {
	files, err := readFiles(path)
	if err != nil {
		return nil, err
	}
	snapshot, err := parse(files)
	if err != nil {
		return nil, err
	}
	snapshot.Generation, snapshot.Node = 1, node
	return &File{
		Debounce: 200 * time.Millisecond, Recheck: 30 * time.Second,
		path: filepath.Clean(path), node: node, logger: logger, reloads: make(chan chan error), snapshot: snapshot, seen: digestOf(files),
	}, nil
}

// Snapshot returns the one in force, or before there is one the one that NewFile read, whose generation is 1. Safe for concurrent use.
func (f *File) Snapshot() *model.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.snapshot
}

// Continue gives the snapshot of NewFile the generation after the last one that somebody had before, and returns it. Call it before Run.
func (f *File) Continue(last uint64) *model.Snapshot {
	f.mu.Lock()
	defer f.mu.Unlock()
	continued := *f.snapshot
	continued.Generation = last + 1
	f.snapshot = &continued
	f.status.Generation = last
	return f.snapshot
}

// Status is safe for concurrent use.
func (f *File) Status() Status {
	f.mu.Lock()
	defer f.mu.Unlock()
	return f.status
}

// Reload has Run read the files now, and returns why what it read is not in force. It waits for Run, until the context ends. Safe for concurrent
// use.
func (f *File) Reload(ctx context.Context) error {
	reply := make(chan error, 1)
	select {
	case f.reloads <- reply:
	case <-ctx.Done():
		return ctx.Err()
	}
	select {
	case err := <-reply:
		return err
	case <-ctx.Done():
		return ctx.Err()
	}
}

// Run is as of Source; it is to be called once.
func (f *File) Run(ctx context.Context, apply func(*model.Snapshot) error) error {
	watcher, err := fsnotify.NewWatcher()
	if err != nil {
		return fmt.Errorf("watch mesh: %w", err)
	}
	defer watcher.Close()
	if err := f.watch(watcher); err != nil {
		return fmt.Errorf("watch mesh: %w", err)
	}
	f.put(f.Snapshot(), f.seen, apply)
	f.reload(apply) // what changed since NewFile

	recheck := time.NewTicker(f.Recheck)
	defer recheck.Stop()
	quiet := time.NewTimer(0)
	quiet.Stop()
	var latest time.Time // by when a change is read that was seen; zero: none was
	changed := func() {
		now := time.Now()
		if latest.IsZero() {
			latest = now.Add(10 * f.Debounce)
		}
		quiet.Reset(min(f.Debounce, latest.Sub(now)))
	}
	again := func() error {
		if err := f.watch(watcher); err != nil { // what is not there is seen when it is read
			f.logger.Debug("changes of the mesh are not seen until it is read again", "error", err)
		}
		if f.refused {
			f.seen = digest{}
		}
		return f.reload(apply)
	}
	for {
		select {
		case <-ctx.Done():
			return nil
		case event := <-watcher.Events:
			if f.only == "" || f.only == filepath.Base(event.Name) {
				changed()
			}
		case err := <-watcher.Errors: // such as more changes than the kernel keeps
			f.logger.Warn("changes of the mesh may have been missed, it is read again", "error", err)
			changed()
		case <-quiet.C:
			latest = time.Time{}
			again()
		case <-recheck.C:
			again()
		case reply := <-f.reloads:
			reply <- again()
		}
	}
}

// watch watches what is there now: the directory that has the file, because what is renamed over the file is another one, and where symbolic links
// lead to.
func (f *File) watch(watcher *fsnotify.Watcher) error {
	holder, err := filepath.EvalSymlinks(filepath.Dir(f.path))
	if err != nil {
		return err
	}
	named := filepath.Join(holder, filepath.Base(f.path))
	target, err := filepath.EvalSymlinks(named)
	linked := target != named
	f.only = ""
	var wanted []string
	switch directory := isDirectory(target); {
	case err != nil: // gone for now, or a link to nothing
		wanted = []string{holder}
	case !directory && linked:
		wanted = []string{holder, filepath.Dir(target)}
	case !directory:
		wanted, f.only = []string{holder}, filepath.Base(f.path)
	case linked:
		wanted = []string{holder, target}
	default:
		wanted = []string{target}
	}
	for _, old := range watcher.WatchList() {
		if !slices.Contains(wanted, old) {
			watcher.Remove(old) // one that is gone is no harm
		}
	}
	var errs []error
	for _, directory := range wanted {
		errs = append(errs, watcher.Add(directory))
	}
	return errors.Join(errs...)
}

// reload puts in force what changed, and returns why what is there is not in force.
func (f *File) reload(apply func(*model.Snapshot) error) error {
	files, err := readFiles(f.path)
	now := digestOf(files)
	if err != nil {
		now = sha256.Sum256([]byte(err.Error()))
	}
	switch now {
	case f.seen:
		return f.failure
	case f.inForce: // a faulty change was taken back
		f.seen, f.failure, f.refused = now, nil, false
		f.mu.Lock()
		f.status.LastError = ""
		f.mu.Unlock()
		f.logger.Info("the mesh in force is again what the files say")
		return nil
	}
	var snapshot *model.Snapshot
	if err == nil {
		snapshot, err = parse(files)
	}
	if err != nil {
		f.refused = false
		return f.reject(now, err)
	}
	snapshot.Generation, snapshot.Node = f.Status().Generation+1, f.node
	return f.put(snapshot, now, apply)
}

func (f *File) put(snapshot *model.Snapshot, now digest, apply func(*model.Snapshot) error) error {
	if err := apply(snapshot); err != nil {
		f.refused = true
		return f.reject(now, fmt.Errorf("apply mesh: %w", err))
	}
	f.seen, f.inForce, f.failure, f.refused = now, now, nil, false
	f.mu.Lock()
	f.snapshot = snapshot
	f.status.Accepted++
	f.status.Generation = snapshot.Generation
	f.status.LastError = ""
	f.status.LastAccepted = time.Now()
	f.mu.Unlock()
	f.logger.Info("mesh in force", "generation", snapshot.Generation, "workloads", len(snapshot.Workloads), "services", len(snapshot.Services),
		"endpoints", len(snapshot.Endpoints), "policies", len(snapshot.Policies), "bypasses", len(snapshot.Bypasses))
	return nil
}

func (f *File) reject(now digest, err error) error {
	f.seen, f.failure = now, err
	f.mu.Lock()
	f.status.Rejected++
	f.status.LastError = err.Error()
	f.status.LastRejected = time.Now()
	generation := f.status.Generation
	f.mu.Unlock()
	f.logger.Error("mesh refused, the last one stays in force", "generation", generation, "error", err)
	return err
}
