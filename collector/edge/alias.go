package edge

// aliases keeps exact what somebody sums over edges that are one under the names that he shows them by. When one of those is folded while another stays, his
// sum must not fall by what it had: that goes on to count for him, and is left out of what he shows of the overflow edge. Nil: nobody does that.
type aliases struct {
	nameOf func(Key) any
	byName map[any]*alias
}

// alias is a name, for as long as an edge has it.
type alias struct {
	name  any
	edges int
	// gone are the counters of its edges that were folded; nil: none was.
	gone *Edge
}

// KeepAliases keeps exact the sums over all edges of one name: see Snapshot.Gone. Names have to be comparable, and those of edges of two roles to differ. It is called before the
// first record.
func (t *Table) KeepAliases(nameOf func(Key) any) *Table {
	t.aliases = &aliases{nameOf, make(map[any]*alias)}
	return t
}

// add takes note of a new edge that is not an overflow edge.
func (a *aliases) add(e *entry) {
	if a == nil {
		return
	}
	name := a.nameOf(e.key)
	of := a.byName[name]
	if of == nil {
		of = &alias{name: name}
		a.byName[name] = of
	}
	of.edges++
	e.alias = of
}

// fold is called of an edge whose sums go to the overflow edge.
func (a *aliases) fold(e *entry) {
	if a == nil {
		return
	}
	if e.alias.edges--; e.alias.edges == 0 {
		delete(a.byName, e.alias.name)
		return
	}
	e.alias.fold(e.key, &e.sums)
}

func (a *alias) fold(key Key, sums *Sums) {
	if a.gone == nil {
		a.gone = &Edge{Key: key, Sums: Sums{SinceUnixNS: sums.SinceUnixNS}}
	}
	a.gone.Sums.foldCounters(sums)
	a.gone.Sums.SinceUnixNS = min(a.gone.Sums.SinceUnixNS, sums.SinceUnixNS)
}

// restore has the counters of an edge that was folded before.
func (a *aliases) restore(key Key, sums *Sums) {
	if a == nil {
		return
	}
	if of := a.byName[a.nameOf(key)]; of != nil {
		of.fold(key, sums)
	}
}

func (a *aliases) snapshot() (gone []Edge) {
	if a == nil {
		return nil
	}
	for _, of := range a.byName {
		if of.gone != nil {
			gone = append(gone, *of.gone)
		}
	}
	return gone
}
