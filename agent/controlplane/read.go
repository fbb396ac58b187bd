package controlplane

import (
	"crypto/sha256"
	"encoding/binary"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
)

// file is one as it was read: what is compared is what is parsed.
type file struct {
	name string // as errors say it
	text []byte
}

// readFiles returns the file at path, or those of the directory there, sorted by name.
func readFiles(path string) ([]file, error) {
	info, err := os.Stat(path)
	if err != nil {
		return nil, fmt.Errorf("read mesh: %w", err)
	}
	names := []string{path}
	if info.IsDir() {
		if names, err = namesIn(path); err != nil {
			return nil, fmt.Errorf("read mesh: %w", err)
		}
		if len(names) == 0 { // rather a mount that is missing than a mesh of nothing
			return nil, fmt.Errorf("read mesh: no file *.yaml or *.yml in %s; add one, or name another directory", path)
		}
	}
	var files []file
	var errs []error
	for _, name := range names {
		switch info, err := os.Stat(name); {
		case err != nil:
			errs = append(errs, fmt.Errorf("read mesh: %w", err))
			continue
		case info.IsDir():
			continue
		case !info.Mode().IsRegular(): // to read a pipe could wait for ever
			errs = append(errs, fmt.Errorf("read mesh: %s is neither a file nor a directory; use one that is", name))
			continue
		}
		text, err := os.ReadFile(name)
		if err != nil {
			errs = append(errs, fmt.Errorf("read mesh: %w", err))
			continue
		}
		files = append(files, file{name, text})
	}
	if err := errors.Join(errs...); err != nil {
		return nil, err
	}
	return files, nil
}

func namesIn(directory string) ([]string, error) {
	entries, err := os.ReadDir(directory) // sorted
	if err != nil {
		return nil, err
	}
	var names []string
	for _, entry := range entries {
		name := entry.Name()
		extension := filepath.Ext(name)
		if !strings.HasPrefix(name, ".") && !entry.IsDir() && (extension == ".yaml" || extension == ".yml") {
			names = append(names, filepath.Join(directory, name))
		}
	}
	return names, nil
}

type digest [sha256.Size]byte

// digestOf is of names and texts.
func digestOf(files []file) digest {
	hash := sha256.New()
	for _, f := range files {
		hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(f.name))))
		hash.Write([]byte(f.name))
		hash.Write(binary.LittleEndian.AppendUint64(nil, uint64(len(f.text))))
		hash.Write(f.text)
	}
	return digest(hash.Sum(nil))
}

// isDirectory follows symbolic links.
func isDirectory(path string) bool {
	info, err := os.Stat(path)
	return err == nil && info.IsDir()
}
