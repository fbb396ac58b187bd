package datapath

import (
	"errors"
	"fmt"
	"path/filepath"

	"github.com/cilium/ebpf"
	"github.com/cilium/ebpf/link"
	"golang.org/x/sys/unix"
)

// checkLinks tells whether what is attached is attached where this process is to attach. It changes nothing.
func (d *Datapath) checkLinks(set string) error {
	id, err := d.cgroup.id()
	if err != nil {
		return err
	}
	_, links, err := d.pins.content(set)
	if err != nil {
		return err
	}
	for _, name := range links {
		path := filepath.Join(d.pins.dir, set, linkPrefix+name)
		l, err := link.LoadPinnedLink(path, nil)
		if err != nil {
			return fmt.Errorf("open pinned link %s: %w; if it is damaged, take all off with: sidelight uninstall", path, err)
		}
		at, err := cgroupOf(l)
		if closeErr := l.Close(); err == nil {
			err = closeErr
		}
		if err != nil {
			return fmt.Errorf("look at pinned link %s: %w", path, err)
		}
		// 0 is of a cgroup that is gone, and with it the attachment.
		if at != 0 && at != id {
			return &PinError{
				path, fmt.Sprintf("it is attached to the cgroup with id %d, and not to %s (%d)", at, d.cgroup.Dir, id),
				"start with the same --cgroup as before, take all off with: sidelight uninstall, or give this agent a pin_directory of its own",
			}
		}
	}
	return nil
}

// cgroupOf returns the id of the cgroup that a link is attached to; 0: to none.
func cgroupOf(l link.Link) (uint64, error) {
	info, err := l.Info()
	if err != nil {
		return 0, err
	}
	if cgroup := info.Cgroup(); cgroup != nil {
		return cgroup.CgroupId, nil
	}
	return 0, nil
}

// replace puts a program in the place of the one that an earlier process attached.
func (d *Datapath) replace(h hook, l link.Link) error {
	at, err := cgroupOf(l)
	if err != nil {
		return errors.Join(fmt.Errorf("look at pinned link %s: %w", h.name, err), l.Close())
	}
	if at == 0 { // that cgroup is gone, and one of the same name was made since
		if err := errors.Join(l.Close(), d.pins.removeLink(h.name)); err != nil {
			return err
		}
		return d.attachCgroup(h)
	}
	previous, err := programOf(l)
	if err != nil {
		return errors.Join(fmt.Errorf("look at the program of link %s: %w", h.name, err), l.Close())
	}
	if err := l.Update(h.program); err != nil {
		return errors.Join(fmt.Errorf("replace the program of link %s: %w", h.name, err), closeProgram(previous), l.Close())
	}
	d.links = append(d.links, attached{l, h.name, true, previous})
	return nil
}

// programOf returns the program of a link, to be put back if need be; nil without CAP_SYS_ADMIN, which it takes to open a program by its id.
func programOf(l link.Link) (*ebpf.Program, error) {
	info, err := l.Info()
	if err != nil {
		return nil, err
	}
	p, err := ebpf.NewProgramFromID(info.Program)
	if errors.Is(err, unix.EPERM) {
		return nil, nil
	}
	return p, err
}

func closeProgram(p *ebpf.Program) error {
	if p == nil {
		return nil
	}
	return p.Close()
}

// putBack gives a link that was taken over its program of before.
func putBack(l link.Link, name string, previous *ebpf.Program) error {
	if previous == nil {
		return fmt.Errorf("put back the program of link %s: it takes CAP_SYS_ADMIN to open it; the new one stays", name)
	}
	if err := l.Update(previous); err != nil {
		return fmt.Errorf("put back the program of link %s: %w", name, err)
	}
	return previous.Close()
}

// Rollback puts the programs back that were attached before Attach, and takes off those that had no predecessor; what is pinned stays. It does so after
// Attach and before Commit, of a Datapath that was resumed; then it is only good for Close.
func (d *Datapath) Rollback() error {
	if !d.resumed {
		return d.detach()
	}
	if d.carry != nil || d.ring.mixed || d.committed {
		d.keep = true // nothing is taken off that somebody's policies are in
		return errors.New("there is no way back to the programs before, which work with other maps: these stay")
	}
	errs := []error{d.mesh.rollback(), d.restoreTraceBlocks()}
	d.linksMu.Lock()
	defer d.linksMu.Unlock()
	for i := len(d.links) - 1; i >= 0; i-- {
		l := d.links[i]
		if !l.taken {
			errs = append(errs, d.pins.removeLink(l.name), l.Close())
			continue
		}
		errs = append(errs, putBack(l, l.name, l.previous), l.Close())
	}
	d.links = nil
	d.took = false
	return errors.Join(errs...)
}

// Commit lets go of the programs that were attached before: there is no way back.
func (d *Datapath) Commit() error {
	d.committed = true
	errs := []error{d.mesh.commit()}
	d.linksMu.Lock()
	defer d.linksMu.Unlock()
	for i := range d.links {
		if p := d.links[i].previous; p != nil {
			errs = append(errs, p.Close())
			d.links[i].previous = nil
		}
	}
	return errors.Join(errs...)
}

// detach takes everything off, or if it is to be kept lets go of it.
func (d *Datapath) detach() error {
	errs := []error{d.trace.detach(d.keep), d.mesh.detach(d.keep)}
	d.linksMu.Lock()
	defer d.linksMu.Unlock()
	for i := len(d.links) - 1; i >= 0; i-- {
		l := d.links[i]
		if d.pins != nil && !d.keep {
			errs = append(errs, d.pins.removeLink(l.name))
		}
		if l.previous != nil {
			errs = append(errs, l.previous.Close())
		}
		errs = append(errs, l.Close())
	}
	d.links = nil
	// What an earlier process left is not ours to remove before we have taken it over.
	if d.pins != nil && !d.keep && (d.took || !d.resumed) && !d.removed {
		d.removed = true
		errs = append(errs, d.pins.remove())
	}
	return errors.Join(errs...)
}

// lookupLink begins the name of the link of a network namespace; its cookie follows.
const lookupLink = "lookup-"
