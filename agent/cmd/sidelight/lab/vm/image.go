package main

import (
	"bufio"
	"bytes"
	"debug/elf"
	"fmt"
	"io"
	"io/fs"
	"os"
	"os/exec"
	"path"
	"path/filepath"
	"strings"
)

// wantModules are what tests need and Debian does not build into its kernels: the demo's cable, and SOCK_DESTROY.
var wantModules = []string{"veth", "tcp_diag"}

// writeInitramfs packs the programs below root and the kernel's modules into an archive that the kernel unpacks as its root.
func (i image) writeInitramfs(file, root string) error {
	out, err := os.Create(file)
	if err != nil {
		return err
	}
	defer out.Close()
	buffered := bufio.NewWriterSize(out, 1<<20)
	a := archive{out: buffered}
	for _, dir := range []string{"bin", "test", "modules", "dev", "proc", "sys", "tmp", "run"} {
		a.entry(dir, modeDirectory|0o755, 0, nil)
	}
	// The kernel opens init's input and output before init can mount anything.
	a.device("dev/console", 5, 1)
	for _, name := range []string{guestInit[1:], testProgram, otherLayout, liveTests, datapathTests} {
		content, err := os.ReadFile(filepath.Join(root, name))
		if err != nil {
			return err
		}
		a.entry(name, modeRegular|0o755, 0, content)
	}
	modules, err := i.modules(wantModules)
	if err != nil {
		return err
	}
	for n, m := range modules {
		a.entry(fmt.Sprintf("modules/%02d-%s.ko", n, m.name), modeRegular|0o644, 0, m.content)
	}
	a.entry("TRAILER!!!", 0, 0, nil)
	if a.err != nil {
		return fmt.Errorf("write %s: %w", file, a.err)
	}
	return buffered.Flush()
}

// Modes as in stat(2), which cpio keeps.
const (
	modeDirectory = 0o040000
	modeRegular   = 0o100000
	modeCharacter = 0o020000
)

// archive is a cpio archive in the form "newc" (Documentation/driver-api/early-userspace/buffer-format.rst).
type archive struct {
	out   io.Writer
	inode int
	err   error
}

func (a *archive) device(name string, major, minor uint32) {
	a.entry(name, modeCharacter|0o600, major<<8|minor, nil)
}

func (a *archive) entry(name string, mode, device uint32, content []byte) {
	a.inode++
	header := fmt.Sprintf("070701%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X%08X",
		a.inode, mode, 0, 0, 1, 0, len(content), 0, 0, device>>8, device&0xff, len(name)+1, 0)
	a.write([]byte(header + name + "\x00"))
	a.pad(len(header) + len(name) + 1)
	a.write(content)
	a.pad(len(content))
}

func (a *archive) pad(length int) { a.write(make([]byte, (4-length%4)%4)) }

func (a *archive) write(p []byte) {
	if a.err == nil {
		_, a.err = a.out.Write(p)
	}
}

// module is a kernel module, unpacked.
type module struct {
	name    string
	content []byte
}

// modules reads modules and what they depend on, in an order in which they can be loaded.
func (i image) modules(names []string) ([]module, error) {
	files := make(map[string]string)
	if err := filepath.WalkDir(i.moduleDir, func(file string, _ fs.DirEntry, err error) error {
		if name, _, ok := strings.Cut(path.Base(file), ".ko"); ok {
			files[strings.ReplaceAll(name, "-", "_")] = file
		}
		return err
	}); err != nil {
		return nil, err
	}
	var ordered []module
	seen := make(map[string]bool)
	var add func(name string) error
	add = func(name string) error {
		name = strings.ReplaceAll(name, "-", "_")
		if seen[name] {
			return nil
		}
		seen[name] = true
		if files[name] == "" {
			return fmt.Errorf("%s has no module %s", i.release, name)
		}
		m := module{name: name}
		var err error
		if m.content, err = readModule(files[name]); err != nil {
			return fmt.Errorf("read module %s: %w", name, err)
		}
		needs, err := dependencies(m.content)
		if err != nil {
			return fmt.Errorf("read module %s: %w", name, err)
		}
		for _, need := range needs {
			if err := add(need); err != nil {
				return err
			}
		}
		ordered = append(ordered, m)
		return nil
	}
	for _, name := range names {
		if err := add(name); err != nil {
			return nil, err
		}
	}
	return ordered, nil
}

func readModule(file string) ([]byte, error) {
	if strings.HasSuffix(file, ".xz") {
		return exec.Command("xz", "-dc", file).Output()
	}
	return os.ReadFile(file)
}

// dependencies reads what a module says of itself, since depmod's table is only made where a kernel is installed.
func dependencies(content []byte) ([]string, error) {
	f, err := elf.NewFile(bytes.NewReader(content))
	if err != nil {
		return nil, err
	}
	section := f.Section(".modinfo")
	if section == nil {
		return nil, fmt.Errorf("no .modinfo")
	}
	info, err := section.Data()
	if err != nil {
		return nil, err
	}
	for field := range bytes.SplitSeq(info, []byte{0}) {
		if value, ok := bytes.CutPrefix(field, []byte("depends=")); ok && len(value) > 0 {
			return strings.Split(string(value), ","), nil
		}
	}
	return nil, nil
}
