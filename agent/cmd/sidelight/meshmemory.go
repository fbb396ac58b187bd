package main

import (
	"cmp"
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"

	"github.com/sidelight-mesh/sidelight/agent/model"
	"github.com/sidelight-mesh/sidelight/agent/outlier"
)

// meshMemory keeps the meshes that are or may be in force in a directory, a file each, so that the next agent knows who was who: the kernel's maps hold
// numbers, and policies have to go from the old numbers to the new ones without a moment in which somebody is nobody.
type meshMemory struct{ directory string }

const memorySuffix = ".json"

// begin remembers a mesh that is about to be put in force, beside those that are already.
func (m meshMemory) begin(s *model.Snapshot) error {
	text, err := json.Marshal(s)
	if err == nil {
		err = os.MkdirAll(m.directory, 0o700)
	}
	if err == nil {
		err = replaceFile(filepath.Join(m.directory, strconv.FormatUint(s.Generation, 10)+memorySuffix), text)
	}
	if err != nil {
		return fmt.Errorf("remember the mesh for the next agent: %w", err)
	}
	return nil
}

// done forgets all but the one that is in force whole.
func (m meshMemory) done(generation uint64) error {
	entries, err := os.ReadDir(m.directory)
	if err != nil {
		return fmt.Errorf("forget meshes of the past: %w", err)
	}
	var errs []error
	for _, e := range entries {
		if name := e.Name(); name != strconv.FormatUint(generation, 10)+memorySuffix {
			errs = append(errs, os.Remove(filepath.Join(m.directory, name)))
		}
	}
	return errors.Join(errs...)
}

// recall returns what is remembered, the newest first, and an error for what cannot be read.
func (m meshMemory) recall() ([]*model.Snapshot, error) {
	entries, err := os.ReadDir(m.directory)
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	errs := []error{err}
	var all []*model.Snapshot
	for _, e := range entries {
		if !strings.HasSuffix(e.Name(), memorySuffix) {
			continue // half written
		}
		s := new(model.Snapshot)
		text, err := os.ReadFile(filepath.Join(m.directory, e.Name()))
		if err == nil {
			err = json.Unmarshal(text, s)
		}
		if err != nil {
			errs = append(errs, fmt.Errorf("recall the mesh of an earlier agent: %s: %w", e.Name(), err))
			continue
		}
		all = append(all, s)
	}
	slices.SortFunc(all, func(a, b *model.Snapshot) int { return cmp.Compare(b.Generation, a.Generation) })
	return all, errors.Join(errs...)
}

// replaceFile writes a file that is there whole or as it was.
func replaceFile(path string, text []byte) error {
	temporary := path + ".new"
	if err := os.WriteFile(temporary, text, 0o600); err != nil {
		return err
	}
	return os.Rename(temporary, path)
}

// savedOutliers is which endpoints are out, for the next agent of the same data path.
type savedOutliers struct {
	Boot     string        `json:"boot"`
	DataPath uint32        `json:"data_path"`
	Saved    outlier.Saved `json:"saved"`
}

// outlierMemory is a file that has them. It is written whenever that changes, so that an agent which is killed leaves it too.
type outlierMemory struct {
	path, boot string
}

func (m outlierMemory) save(dataPath uint32, s *outlier.State) error {
	text, err := json.Marshal(savedOutliers{m.boot, dataPath, s.Save()})
	if err == nil {
		err = os.MkdirAll(filepath.Dir(m.path), 0o700)
	}
	if err == nil {
		err = replaceFile(m.path, text)
	}
	if err != nil {
		return fmt.Errorf("save which endpoints are out for the next agent: %w", err)
	}
	return nil
}

func (m outlierMemory) restore(dataPath uint32, s *outlier.State) error {
	text, err := os.ReadFile(m.path)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	var saved savedOutliers
	if err == nil {
		err = json.Unmarshal(text, &saved)
	}
	if err != nil {
		return fmt.Errorf("read which endpoints an earlier agent had out: %w", err)
	}
	if saved.Boot == m.boot && saved.DataPath == dataPath {
		s.Restore(saved.Saved)
	}
	return nil
}
